//! Values that no message may show: what is written into `environment` and the like in so many words.
//!
//! They are looked for in every file as it is read, whether or not its value is used in the end.

use std::sync::Arc;

use super::LoadInputs;
use super::canonical::mask::is_secret_name;
use super::yaml::{Data, Node};
use crate::diagnostic::{Diagnostic, SourceMap, Span};

/// Adds the places of all such values. Variables are not filled in yet: their names stay readable.
pub(crate) fn literals(root: &Arc<Node>, sources: &SourceMap, masked: &mut Vec<Span>) {
    let mut masks = Masks { sources, masked };
    for service in values(root, "services") {
        masks.environment(service);
        masks.pairs(service.get("build").and_then(|build| build.value.get("args")).map(|entry| &entry.value));
        for hooks in ["post_start", "pre_stop"] {
            if let Some(Data::List(hooks)) = service.get(hooks).map(|entry| &entry.value.data) {
                hooks.iter().for_each(|hook| masks.environment(hook));
            }
        }
    }
    for section in ["configs", "secrets"] {
        for given in values(root, section) {
            if let Some(content) = given.get("content") {
                masks.value(&content.value, 0);
            }
        }
    }
}

/// The values of a mapping below the top.
fn values<'n>(root: &'n Node, section: &str) -> impl Iterator<Item = &'n Arc<Node>> {
    let entries = match root.get(section).map(|entry| &entry.value.data) {
        Some(Data::Map(entries)) => entries.as_slice(),
        _ => &[],
    };
    entries.iter().map(|entry| &entry.value)
}

struct Masks<'a> {
    sources: &'a SourceMap,
    masked: &'a mut Vec<Span>,
}

impl Masks<'_> {
    fn environment(&mut self, node: &Node) {
        self.pairs(node.get("environment").map(|entry| &entry.value));
    }

    fn pairs(&mut self, node: Option<&Arc<Node>>) {
        match node.map(|node| &node.data) {
            Some(Data::Map(entries)) => entries.iter().for_each(|entry| self.value(&entry.value, 0)),
            Some(Data::List(items)) => {
                for item in items {
                    let Data::Scalar(scalar) = &item.data else { continue };
                    if let Some(equals) = scalar.text.find('=') {
                        self.value(item, equals + 1);
                    }
                }
            }
            _ => {}
        }
    }

    /// Masks a value from that byte on, but for the variables in it.
    fn value(&mut self, node: &Node, from: usize) {
        let Data::Scalar(scalar) = &node.data else { return };
        let text = &scalar.text;
        for (start, end) in literal_parts(text, from) {
            let span = self.sources.part(text, node.span, start, end);
            self.masked.push(span);
        }
    }
}

/// What lies between the variables of a value.
fn literal_parts(text: &str, from: usize) -> Vec<(usize, usize)> {
    let bytes = text.as_bytes();
    let mut parts = Vec::new();
    let (mut start, mut at) = (from, from);
    while at < bytes.len() {
        if bytes[at] != b'$' {
            at += 1;
            continue;
        }
        let variable = at;
        at += 1;
        match bytes.get(at) {
            Some(b'{') => {
                let mut depth = 0_usize;
                while at < bytes.len() {
                    match bytes[at] {
                        b'{' => depth += 1,
                        b'}' => depth -= 1,
                        _ => {}
                    }
                    at += 1;
                    if depth == 0 {
                        break;
                    }
                }
            }
            Some(b'$') => at += 1,
            _ => {
                while bytes.get(at).is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_') {
                    at += 1;
                }
            }
        }
        // What only looks like a variable may be the middle of a password.
        let name =
            bytes.get(variable + 1).is_some_and(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'{'));
        if name {
            parts.push((start, variable));
            start = at;
        }
    }
    parts.push((start, bytes.len()));
    parts.retain(|(start, end)| start < end);
    parts
}

/// A shorter value is more likely to be part of a word than a secret.
const SECRET_CHARS_MIN: usize = 4;

/// Puts the variable's name in the place of its value, where the name says that the value is a secret: a volume, a service
/// or a path can be named by a variable, and messages name what they speak of.
pub(super) fn without_secrets(diagnostics: Vec<Diagnostic>, inputs: &LoadInputs<'_>) -> Vec<Diagnostic> {
    let given = inputs.environment.clone().into_iter();
    let mut secrets: Vec<_> = given.chain(super::variables(inputs.env_files, inputs.environment)).collect();
    secrets.retain(|(name, value)| is_secret_name(name) && value.chars().count() >= SECRET_CHARS_MIN);
    // The longest first: it may contain another.
    secrets.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
    let hide = |text: &mut String| {
        for (name, value) in &secrets {
            if text.contains(value.as_str()) {
                *text = text.replace(value.as_str(), &format!("${{{name}}}"));
            }
        }
    };
    let mut diagnostics = diagnostics;
    for diagnostic in &mut diagnostics {
        hide(&mut diagnostic.message);
        diagnostic.hints.iter_mut().for_each(hide);
        let labels = diagnostic.primary.iter_mut().chain(&mut diagnostic.secondary);
        labels.for_each(|label| hide(&mut label.text));
    }
    diagnostics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_stay_readable_and_everything_else_does_not() {
        let shown = |text: &str| {
            let mut shown = text.to_owned();
            for (start, end) in literal_parts(text, 0) {
                shown.replace_range(start..end, &"*".repeat(end - start));
            }
            shown
        };
        assert_eq!(shown("hunter2"), "*******");
        assert_eq!(shown("a:$PW@${HOST:-x}/b"), "**$PW*${HOST:-x}**");
        assert_eq!(shown("${A:-${B}}c"), "${A:-${B}}*");
        assert_eq!(shown("pa$5word$$x$"), "************");
        assert_eq!(shown("${open"), "${open");
        assert_eq!(shown(""), "");
    }
}
