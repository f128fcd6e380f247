//! Values that nobody reads more closely: checked against what the table says can stand there, and made canonical.
//!
//! That is how mistakes below keys without effect are found, and how an engine gets what only it understands.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::keys::{Class, Kind, Pairs, Section, Shape, Short};
use super::read::{Reader, Text};
use super::units;
use super::words;
use super::yaml::{Data, Node};
use crate::diagnostic::{Diagnostic, Span, quoted};

/// What can stand where names have values, for messages.
pub(crate) const PAIRS: &str = "a mapping or a list of `KEY=value`";

impl Reader<'_> {
    /// The value in its long form. `None`: there was a mistake, and it was reported.
    pub(crate) fn shaped(&mut self, node: &Arc<Node>, shape: Shape, what: &str) -> Option<Value> {
        if node.is_null() {
            return Some(Value::Null);
        }
        match shape {
            Shape::One(kind) => self.shaped_single(node, kind, what),
            Shape::List(kind, _) => {
                let items = self.list(node, what)?;
                self.all(items, |reader, item| reader.shaped_single(item, kind, what))
            }
            Shape::OneOrList(kind, _) => {
                let items = self.one_or_list(node, what)?;
                self.all(items, |reader, item| reader.shaped_single(item, kind, what))
            }
            Shape::Command => Some(self.command(node, what)?.into()),
            Shape::Test => match node.data {
                Data::Scalar(_) => Some(self.text(node, what)?.value.as_str().into()),
                _ => Some(self.texts(node, what)?.into_iter().map(|text| String::from(text.value)).collect()),
            },
            Shape::Pairs(pairs) => self.shaped_pairs(node, pairs, what),
            Shape::Section(section) => self.shaped_section(node, section),
            Shape::Short(short, section) => self.shaped_short(node, short, section, what),
            Shape::Named(section) => self.shaped_named(node, Short::None, section, what),
            Shape::NamedShort(short, section) => self.shaped_named(node, short, section, what),
            Shape::NamedOrList(section) => match &node.data {
                Data::List(_) => {
                    let names = self.texts(node, what)?;
                    Some(Value::Object(names.into_iter().map(|name| (name.value.into(), Value::Null)).collect()))
                }
                _ => self.shaped_named(node, Short::None, section, what),
            },
            Shape::Items(short, section) => {
                let items = self.list(node, what)?;
                self.all(items, |reader, item| reader.shaped_short(item, short, section, what))
            }
            Shape::OneOrItems(short, section) => {
                let items = self.one_or_list(node, what)?;
                self.all(items, |reader, item| reader.shaped_short(item, short, section, what))
            }
            Shape::Whole | Shape::Any => Some(raw(node)),
        }
    }

    fn all(
        &mut self,
        items: &[Arc<Node>],
        mut read: impl FnMut(&mut Self, &Arc<Node>) -> Option<Value>,
    ) -> Option<Value> {
        let values: Vec<Value> = items.iter().filter_map(|item| read(self, item)).collect();
        (values.len() == items.len()).then_some(Value::Array(values))
    }

    fn shaped_single(&mut self, node: &Node, kind: Kind, what: &str) -> Option<Value> {
        match kind {
            Kind::Bool => self.bool(node, what).map(Value::Bool),
            Kind::Int => {
                let text = self.text(node, what)?;
                match text.value.trim().parse::<i64>() {
                    Ok(number) => Some(number.into()),
                    Err(_) => self.unfit(&text, what, "a whole number", "write a whole number"),
                }
            }
            Kind::Float => {
                let text = self.text(node, what)?;
                match text.value.trim().parse::<f64>().ok().filter(|number| number.is_finite()) {
                    Some(number) => Some(number.into()),
                    None => self.unfit(&text, what, "a number", "write a decimal number, like `0.5`"),
                }
            }
            Kind::Duration => {
                let text = self.text(node, what)?;
                match units::duration_ms(&text.value) {
                    Some(_) => Some(text.value.as_str().into()),
                    None => self.unfit(&text, what, "a duration", "write a number with a unit, like `30s` or `1m30s`"),
                }
            }
            Kind::Bytes => {
                let text = self.text(node, what)?;
                match units::bytes(&text.value, 1024) {
                    Some(bytes) => Some(bytes.to_string().into()),
                    None => self.unfit(&text, what, "a size", "write bytes or a number with a unit, like `512m`"),
                }
            }
            Kind::Mode => Some(format!("{:04o}", self.mode(node)?).into()),
            Kind::Path => {
                let text = self.text(node, what)?;
                Some(self.path(&text.value, text.span).to_string_lossy().into())
            }
            Kind::Context => {
                let text = self.text(node, what)?;
                Some(self.context(&text.value, text.span).into())
            }
            Kind::Text => Some(self.text(node, what)?.value.as_str().into()),
        }
    }

    fn unfit<T>(&mut self, text: &Text, what: &str, wanted: &str, hint: &str) -> Option<T> {
        self.invalid(text, format!("{what} is {wanted}, not {}", text.quoted()), hint)
    }

    fn shaped_pairs(&mut self, node: &Node, kind: Pairs, what: &str) -> Option<Value> {
        let mut values = Map::new();
        for (name, value) in self.pairs(node, what)? {
            let value = value.map(|value| match kind {
                Pairs::Contexts => self.context(&value, node.span),
                Pairs::Equals | Pairs::Hosts => value,
            });
            values.insert(name, value.map_or(Value::Null, Value::from));
        }
        Some(Value::Object(values))
    }

    /// A path made absolute, or what a builder fetches by itself.
    fn context(&self, context: &str, span: Span) -> String {
        if is_remote(context) {
            return context.to_owned();
        }
        self.path(context, span).to_string_lossy().into_owned()
    }

    /// `KEY: value` or a list of `KEY=value`. A key may have a list of values, which are written behind each other.
    pub(crate) fn pairs(&mut self, node: &Node, what: &str) -> Option<Vec<(String, Option<String>)>> {
        let mut pairs = Vec::new();
        if let Data::Map(entries) = &node.data {
            for entry in entries {
                match &entry.value.data {
                    Data::Null => pairs.push((entry.key.to_string(), None)),
                    Data::List(_) => {
                        for text in self.texts(&entry.value, what)? {
                            pairs.push((entry.key.to_string(), Some(text.value.into())));
                        }
                    }
                    _ => pairs.push((entry.key.to_string(), Some(self.text(&entry.value, what)?.value.into()))),
                }
            }
            return Some(pairs);
        }
        for text in self.texts_or(node, what, PAIRS)? {
            pairs.push(match text.value.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (text.value.into(), None),
            });
        }
        Some(pairs)
    }

    fn shaped_named(&mut self, node: &Node, short: Short, section: &'static Section, what: &str) -> Option<Value> {
        let mut values = Map::new();
        let entries = self.map(node, what)?;
        for entry in entries {
            let value = self.shaped_short(&entry.value, short, section, what);
            values.insert(entry.key.to_string(), value?);
        }
        Some(Value::Object(values))
    }

    fn shaped_short(&mut self, node: &Arc<Node>, short: Short, section: &'static Section, what: &str) -> Option<Value> {
        if short == Short::None || !matches!(node.data, Data::Scalar(_)) {
            return if node.is_null() { Some(Value::Null) } else { self.shaped_section(node, section) };
        }
        let text = self.text(node, what)?;
        let one = |key: &str, value: Value| Some(Value::Object(Map::from_iter([(key.to_owned(), value)])));
        match short {
            Short::Build => {
                let context = self.shaped_single(node, Kind::Context, what)?;
                one("context", context)
            }
            Short::FileReference => one("source", text.value.as_str().into()),
            Short::EnvFile | Short::Include => one("path", text.value.as_str().into()),
            Short::Extends => one("service", text.value.as_str().into()),
            Short::Gpus => one("count", text.value.as_str().into()),
            Short::Device => {
                let mut parts = text.value.splitn(3, ':');
                let source = parts.next().unwrap_or_default().to_owned();
                let target = parts.next().unwrap_or(&source).to_owned();
                let permissions = parts.next().unwrap_or("rwm").to_owned();
                Some(serde_json::json!({"source": source, "target": target, "permissions": permissions}))
            }
            Short::External | Short::Switch => self.bool(node, what).map(Value::Bool),
            Short::Ulimit => self.shaped_single(node, Kind::Int, what),
            Short::Directory => one("url", text.value.as_str().into()),
            Short::Rate if text.value != "off" => one("per_client", text.value.as_str().into()),
            Short::Port | Short::Volume | Short::Certificate | Short::Edge | Short::Rate | Short::None => {
                Some(text.value.as_str().into())
            }
        }
    }

    fn shaped_section(&mut self, node: &Node, section: &'static Section) -> Option<Value> {
        let Data::Map(entries) = &node.data else { return self.mistyped(node, section.what, "a mapping") };
        let mut values = Map::new();
        let mut fine = true;
        for entry in entries {
            let Some(key) = section.key(&entry.key) else {
                fine &= entry.key.starts_with("x-");
                self.unknown_key(entry, section);
                continue;
            };
            if let Class::Refused { why, instead } = key.class
                && !entry.value.is_null()
            {
                self.refuse(key.name, why, instead, entry.key_span, section);
                fine = false;
                continue;
            }
            match self.shaped(&entry.value, key.shape, &quoted(key.name)) {
                Some(Value::Null) => {}
                Some(value) => drop(values.insert(key.name.to_owned(), value)),
                None => fine = false,
            }
        }
        fine.then_some(Value::Object(values))
    }

    /// A command: a list of words, or one text that is split.
    pub(crate) fn command(&mut self, node: &Node, what: &str) -> Option<Vec<String>> {
        if !matches!(node.data, Data::Scalar(_)) {
            return Some(
                self.texts_or(node, what, "a list of words, or one text")?
                    .into_iter()
                    .map(|text| text.value.into())
                    .collect(),
            );
        }
        let text = self.text(node, what)?;
        let Some(split) = words::split(&text.value) else {
            let hint = "close it, or write a list of words: `[\"program\", \"argument\"]`";
            return self.invalid(&text, format!("a quote or a bracket in {what} is left open"), hint);
        };
        if let Some(at) = split.cut_at {
            let rest = &text.value[at..];
            let sign = quoted(&rest[..rest.find(|c: char| !c.is_ascii_punctuation()).unwrap_or(rest.len()).max(1)]);
            self.push(
                Diagnostic::warning("no-shell", format!("{what} ends before {sign}, because no shell reads it"))
                    .at(text.span, "the rest is ignored, as Docker Compose does")
                    .hint("for a shell, write `[\"sh\", \"-c\", \"…\"]`; for plain text, quote the sign"),
            );
        }
        Some(split.words)
    }

    /// Permission bits: octal when they are quoted or begin with a zero, as Docker Compose reads them.
    pub(crate) fn mode(&mut self, node: &Node) -> Option<u32> {
        let text = self.text(node, "a mode")?;
        let plain = matches!(&node.data, Data::Scalar(scalar) if scalar.plain);
        let Some((mode, decimal)) = units::mode(&text.value, plain) else {
            let message = format!("{} is not a mode", text.quoted());
            return self.invalid(&text, message, "write permission bits in octal, with a zero in front: `0440`");
        };
        if decimal {
            self.push(
                Diagnostic::warning(
                    "decimal-mode",
                    format!("the mode {} is a decimal number: it is {mode:04o}", text.quoted()),
                )
                .at(text.span, "")
                .hint("write permission bits in octal, with a zero in front: `0440`"),
            );
        }
        Some(mode)
    }
}

/// What a builder fetches by itself.
fn is_remote(context: &str) -> bool {
    context.contains("://")
        || context.starts_with("service:")
        || context.starts_with("git@")
        || context.starts_with("github.com/")
        || context == "-"
}

fn raw(node: &Node) -> Value {
    match &node.data {
        Data::Null => Value::Null,
        Data::Scalar(scalar) => scalar.text.as_str().into(),
        Data::List(items) => items.iter().map(|item| raw(item)).collect(),
        Data::Map(entries) => entries.iter().map(|entry| (entry.key.to_string(), raw(&entry.value))).collect(),
    }
}
