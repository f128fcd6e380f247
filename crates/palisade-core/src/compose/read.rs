//! Reading typed values out of the tree: variables filled in, keys checked against the table, mistakes collected.
//!
//! A function that returns `None` has reported why. What the values mean together is checked in `validate`.

use smol_str::SmolStr;
use std::str::FromStr;
use std::sync::Arc;

use super::assemble::{Origin, Origins};
use super::keys::{Class, Section};
use super::suggest::nearest;
use super::yaml::{Data, Entry, Node};
use crate::diagnostic::{Diagnostic, Sink, Span, Spanned, quoted};

pub(crate) struct Reader<'a> {
    pub(crate) origins: &'a Origins,
    pub(crate) sink: Sink,
    /// Keys without effect: where each stands first, and how often.
    idle: Vec<(&'static str, &'static str, Span, usize)>,
}

/// A single value, variables filled in.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    pub(crate) value: SmolStr,
    pub(crate) span: Span,
    /// The value as written, when variables were filled in.
    written: Option<Arc<str>>,
}

impl Text {
    /// For messages: as written, so that no variable's value is shown.
    pub(crate) fn quoted(&self) -> String {
        quoted(self.written.as_deref().unwrap_or(&self.value))
    }
    pub(crate) fn spanned(self) -> Spanned<String> {
        Spanned::new(self.value.into(), self.span)
    }
}

/// The keys of one mapping that the table says are honoured.
pub(crate) struct Fields<'n> {
    section: &'static Section,
    entries: Vec<&'n Entry>,
    pub(crate) image: Vec<&'n Entry>,
}

impl<'n> Fields<'n> {
    /// Takes one key out; `None` when it isn't written or has no value.
    pub(crate) fn take(&mut self, name: &str) -> Option<&'n Entry> {
        self.written(name).filter(|entry| !entry.value.is_null())
    }
    /// Takes one key out, also without a value.
    pub(crate) fn written(&mut self, name: &str) -> Option<&'n Entry> {
        debug_assert!(
            matches!(self.section.key(name).map(|key| key.class), Some(Class::Honoured(_))),
            "`{name}` of {} is read, so the table must say that it is honoured",
            self.section.path
        );
        let at = self.entries.iter().position(|entry| entry.key == name)?;
        let first = self.entries.remove(at);
        // A key that is given twice was reported when the file was parsed.
        self.entries.retain(|entry| entry.key != name);
        Some(first)
    }
    pub(crate) fn value(&mut self, name: &str) -> Option<&'n Arc<Node>> {
        self.take(name).map(|entry| &entry.value)
    }
    /// A key that the table promises and nobody reads would be ignored in silence.
    pub(crate) fn finish(self) {
        let unread = self.entries.first().map(|entry| &entry.key);
        debug_assert_eq!(unread, None, "the table says that this key of {} is honoured", self.section.path);
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(origins: &'a Origins, sink: Sink) -> Self {
        Self { origins, sink, idle: Vec::new() }
    }

    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        self.sink.push(diagnostic);
    }

    /// Ends reading: tells about the keys that have no effect, each once.
    pub(crate) fn finish(mut self) -> Sink {
        for (name, why, span, count) in std::mem::take(&mut self.idle) {
            let times = match count {
                1 => String::new(),
                2 => ", here and in one more place".to_owned(),
                _ => format!(", here and in {} more places", count - 1),
            };
            self.push(
                Diagnostic::note("no-effect", format!("{} has no effect{times}: {why}", quoted(name))).at(span, ""),
            );
        }
        self.sink
    }

    /// The keys of a mapping, checked against the table.
    pub(crate) fn fields<'n>(&mut self, node: &'n Node, section: &'static Section) -> Option<Fields<'n>> {
        let Data::Map(entries) = &node.data else {
            self.push(no_mapping(node, section.what));
            return None;
        };
        let mut fields = Fields { section, entries: Vec::with_capacity(entries.len()), image: Vec::new() };
        for entry in entries {
            match section.key(&entry.key).map(|key| (key.name, key.class)) {
                Some((_, Class::Honoured(_))) => fields.entries.push(entry),
                Some((_, Class::Image(_))) => fields.image.push(entry),
                Some((name, Class::NoEffect(why))) => {
                    self.note_idle(name, why, entry.key_span);
                    // Nobody reads it, and a mistake in it is a mistake all the same.
                    if let Some(key) = section.key(name) {
                        self.shaped(&entry.value, key.shape, &quoted(name));
                    }
                }
                // Without a value it says nothing.
                Some((_, Class::Refused { .. })) if entry.value.is_null() => {}
                Some((name, Class::Refused { why, instead })) => {
                    self.refuse(name, why, instead, entry.key_span, section);
                }
                None => self.unknown_key(entry, section),
            }
        }
        Some(fields)
    }

    pub(crate) fn refuse(&mut self, name: &str, why: &str, instead: &str, span: Span, section: &Section) {
        self.push(
            Diagnostic::error("refused-key", format!("{} can't be honoured: {why}", quoted(name)))
                .at(span, format!("in {}", section.what))
                .hint(instead),
        );
    }

    fn note_idle(&mut self, name: &'static str, why: &'static str, span: Span) {
        match self.idle.iter_mut().find(|(known, known_why, ..)| *known == name && *known_why == why) {
            Some((.., count)) => *count += 1,
            None => self.idle.push((name, why, span, 1)),
        }
    }

    pub(crate) fn unknown_key(&mut self, entry: &Entry, section: &Section) {
        if entry.key.starts_with("x-") && entry.key != "x-palisade" {
            if nearest(&entry.key, ["x-palisade"]).is_some() {
                self.push(
                    Diagnostic::warning("extension", format!("the extension {} is ignored", quoted(&entry.key)))
                        .at(entry.key_span, "")
                        .hint("did you mean `x-palisade`?"),
                );
            }
            return;
        }
        let diagnostic =
            Diagnostic::error("unknown-key", format!("{} is not a key of {}", quoted(&entry.key), section.what))
                .at(entry.key_span, "unknown key");
        if self.sink.is_full() {
            return self.push(diagnostic);
        }
        let is_key = |name: &str| entry.key == name || entry.key.strip_suffix('s') == Some(name);
        let mistaken = section.mistaken.iter().find(|(name, _)| is_key(name));
        let hint = match (mistaken, nearest(&entry.key, section.keys.iter().map(|key| key.name))) {
            (Some((_, instead)), _) => (*instead).to_owned(),
            (None, Some(near)) => format!("did you mean `{near}`?"),
            (None, None) => {
                let honoured = |key: &&super::keys::Key| !matches!(key.class, Class::Refused { .. });
                let names: Vec<_> = section.keys.iter().filter(honoured).map(|key| key.name).collect();
                if names.len() > 12 {
                    "remove it, or begin its name with `x-` if it is for something else".to_owned()
                } else {
                    format!("its keys are `{}`", names.join("`, `"))
                }
            }
        };
        self.push(diagnostic.hint(hint));
    }

    /// A mapping with names of the user's own.
    pub(crate) fn map<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [Entry]> {
        match &node.data {
            Data::Map(entries) => Some(entries),
            Data::Null => Some(&[]),
            _ => self.mistyped(node, what, "a mapping"),
        }
    }

    pub(crate) fn list<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [Arc<Node>]> {
        match &node.data {
            Data::List(items) => Some(items),
            Data::Null => Some(&[]),
            _ => self.mistyped(node, what, "a list"),
        }
    }

    /// A list, or a single value that stands for a list of one.
    pub(crate) fn one_or_list<'n>(&mut self, node: &'n Arc<Node>, what: &str) -> Option<&'n [Arc<Node>]> {
        match &node.data {
            Data::Scalar(_) => Some(std::slice::from_ref(node)),
            Data::Map(_) => self.mistyped(node, what, "a single value or a list"),
            _ => self.list(node, what),
        }
    }

    pub(crate) fn mistyped<T>(&mut self, node: &Node, what: &str, wanted: &str) -> Option<T> {
        self.push(other_type(node, what, wanted));
        None
    }

    /// A single value, variables filled in.
    pub(crate) fn text(&mut self, node: &Node, what: &str) -> Option<Text> {
        match &node.data {
            Data::Scalar(scalar) => {
                Some(Text { value: scalar.text.clone(), span: node.span, written: scalar.written.clone() })
            }
            _ => self.mistyped(node, what, "a single value"),
        }
    }

    pub(crate) fn texts(&mut self, node: &Node, what: &str) -> Option<Vec<Text>> {
        let items = self.list(node, what)?;
        let texts: Vec<_> = items.iter().filter_map(|item| self.text(item, "an item of this list")).collect();
        (texts.len() == items.len()).then_some(texts)
    }

    /// A list of texts where something else could stand as well; `wanted` names both, for messages.
    pub(crate) fn texts_or(&mut self, node: &Node, what: &str, wanted: &str) -> Option<Vec<Text>> {
        match node.data {
            Data::List(_) | Data::Null => self.texts(node, what),
            _ => self.mistyped(node, what, wanted),
        }
    }

    /// The file that something was written in: what its relative paths and variables mean.
    pub(crate) fn origin(&self, span: Span) -> &'a Origin {
        self.origins.of(span)
    }

    /// An error about a value.
    pub(crate) fn invalid<T>(&mut self, text: &Text, message: impl Into<String>, hint: &str) -> Option<T> {
        self.push(Diagnostic::error("invalid-value", message).at(text.span, "").hint(hint));
        None
    }

    pub(crate) fn bool(&mut self, node: &Node, what: &str) -> Option<bool> {
        let text = self.text(node, what)?;
        match text.value.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => Some(true),
            "false" | "no" | "off" | "n" => Some(false),
            _ => {
                let message = format!("{what} is `true` or `false`, not {}", text.quoted());
                self.invalid(&text, message, "write `true` or `false`")
            }
        }
    }

    pub(crate) fn number<T: FromStr>(&mut self, node: &Node, what: &str, hint: &str) -> Option<Spanned<T>> {
        let text = self.text(node, what)?;
        match text.value.trim().parse() {
            Ok(value) => Some(Spanned::new(value, text.span)),
            Err(_) => {
                let message = format!("{} is not a number that {what} can be", text.quoted());
                self.invalid(&text, message, hint)
            }
        }
    }

    /// A value that `parse` understands.
    pub(crate) fn parsed<T>(
        &mut self,
        node: &Node,
        what: &str,
        hint: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(node, what)?;
        match parse(&text.value) {
            Some(value) => Some(value),
            None => {
                let message = format!("{} is not {what}", text.quoted());
                self.invalid(&text, message, hint)
            }
        }
    }
}

/// A value is of another kind than the one that is wanted.
pub(crate) fn other_type(node: &Node, what: &str, wanted: &str) -> Diagnostic {
    Diagnostic::error("type", format!("{what} is {wanted}, but this is {}", node.kind()))
        .at(node.span, format!("expected {wanted}"))
}

/// The same, where keys and values are wanted.
pub(crate) fn no_mapping(node: &Node, what: &str) -> Diagnostic {
    Diagnostic::error("type", format!("{what} is a mapping, but this is {}", node.kind()))
        .at(node.span, "expected `key: value` lines")
}
