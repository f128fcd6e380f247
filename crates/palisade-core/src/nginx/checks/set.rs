//! What variables hold that `set` fills in the blocks around, as far as that is plain.

use std::borrow::Cow;

use super::super::parse::Directive;

/// Longer than any address; more isn't put together.
const BYTES_MAX: usize = 2_048;
/// Variables in variables in variables.
const ROUNDS: usize = 8;

/// The text with the values of such variables in it; others stay.
pub(super) fn expanded<'a>(text: &'a str, around: &[&Directive]) -> Cow<'a, str> {
    let mut text = Cow::Borrowed(text);
    for _ in 0..ROUNDS {
        match once(&text, around) {
            Some(next) => text = Cow::Owned(next),
            None => break,
        }
    }
    text
}

/// `None`: there is nothing to put in, or too much.
fn once(text: &str, around: &[&Directive]) -> Option<String> {
    let mut found = false;
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let (value, behind) = match variable(&rest[at..]) {
            Some((name, behind)) => (value(name, around), behind),
            None => (None, &rest[at + 1..]),
        };
        found |= value.is_some();
        let written = &rest[at..rest.len() - behind.len()];
        out.push_str(value.unwrap_or(written));
        rest = behind;
        if out.len() > BYTES_MAX {
            return None;
        }
    }
    out.push_str(rest);
    found.then_some(out)
}

/// The variable that a text begins with, and what stands behind it: `$name`, `${name}`.
pub(super) fn variable(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix('$')?;
    if let Some(inside) = rest.strip_prefix('{') {
        return inside.split_once('}');
    }
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    (end > 0).then(|| rest.split_at(end))
}

/// What the innermost block says that it holds.
fn value<'a>(name: &str, around: &[&'a Directive]) -> Option<&'a str> {
    let is_it = |it: &&Directive| it.name() == "set" && it.arg(0).and_then(|it| it.strip_prefix('$')) == Some(name);
    let found = around.iter().rev().find_map(|block| block.children().iter().rfind(is_it));
    found?.arg(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_ends_where_its_name_does() {
        for (text, expected) in [
            ("$a:1", Some(("a", ":1"))),
            ("${a}b", Some(("a", "b"))),
            ("$a_b1.c", Some(("a_b1", ".c"))),
            ("$", None),
            ("$.", None),
            ("${a", None),
            ("a", None),
        ] {
            assert_eq!(variable(text), expected, "{text}");
        }
    }
}
