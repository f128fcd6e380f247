//! Values by their shapes: what the table of keys says can stand there, in its long form.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::super::keys::{self, Kind, Pairs, Repeats, Section, Shape, Short};
use super::super::merge::{self, split_host};
use super::super::yaml::{Data, Entry, Node};
use super::super::{units, words};
use super::scalar::{duration, generic};
use super::{Builder, Map, Value, mask, pair};
use crate::diagnostic::{Span, quoted};

impl Builder<'_> {
    pub(super) fn value(&self, node: &Arc<Node>, shape: Shape, key: &str) -> Value {
        match shape {
            Shape::One(kind) => self.one(node, kind, key),
            Shape::List(kind, repeats) => self.list(node, kind, repeats, false, key),
            Shape::OneOrList(kind, repeats) => self.list(node, kind, repeats, true, key),
            Shape::Command => self.command(node, key),
            Shape::Test => match &node.data {
                Data::Scalar(scalar) => Value::List(vec![Value::text("CMD-SHELL"), Value::text(scalar.text.as_str())]),
                _ => self.list(node, Kind::Text, Repeats::Kept, false, key),
            },
            Shape::Pairs(Pairs::Hosts) => self.hosts(node, key),
            Shape::Pairs(pairs) => self.pairs(node, pairs, key),
            Shape::Section(section) => Value::Map(self.fields(node, section)),
            Shape::Short(short, section) => self.short(node, short, section, key),
            Shape::Named(section) => self.named(node, key, |value| self.or_null(value, section)),
            Shape::NamedShort(short, section) => {
                let all = merge::for_all(Arc::clone(node), short);
                self.named(&all, key, |value| self.short(value, short, section, key))
            }
            Shape::NamedOrList(section) => {
                self.named(&merge::listed_names(node, section), key, |value| self.or_null(value, section))
            }
            Shape::Items(short, section) => self.items(node, short, section, false, key),
            Shape::OneOrItems(short, section) => self.items(node, short, section, true, key),
            Shape::Whole | Shape::Any => generic(node),
        }
    }

    pub(super) fn text(&self, node: &Node, key: &str) -> Option<String> {
        match &node.data {
            Data::Scalar(scalar) => Some(scalar.text.to_string()),
            _ => self.mistyped(node, key, "a single value"),
        }
    }

    pub(super) fn one(&self, node: &Node, kind: Kind, key: &str) -> Value {
        let Some(text) = self.text(node, key) else { return Value::Null };
        let read = match kind {
            Kind::Text => Some(Value::text(&text)),
            Kind::Path => Some(Value::text(self.path(&text, node.span))),
            Kind::Context => Some(Value::text(self.context(&text, node.span))),
            Kind::Bool => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" | "y" => Some(Value::Bool(true)),
                "false" | "no" | "off" | "n" => Some(Value::Bool(false)),
                _ => None,
            },
            Kind::Int => text.trim().parse().ok().map(Value::Int),
            Kind::Float => text.trim().parse().ok().filter(|number: &f64| number.is_finite()).map(Value::Float),
            Kind::Duration => units::duration_ns(&text).map(|nanos| Value::Text(duration(nanos))),
            Kind::Bytes if text.trim() == "-1" => Some(Value::text("-1")),
            Kind::Bytes => units::bytes(&text, 1024).map(|bytes| Value::Text(bytes.to_string())),
            Kind::Mode => {
                let plain = matches!(&node.data, Data::Scalar(scalar) if scalar.plain);
                units::mode(&text, plain).map(|(mode, _)| Value::Text(format!("0{mode:o}")))
            }
        };
        read.unwrap_or_else(|| {
            let Data::Scalar(scalar) = &node.data else { return Value::Null };
            let shown = quoted(scalar.written.as_deref().unwrap_or(&text));
            self.wrong(node.span, format!("{shown} is nothing that {} can be", quoted(key)));
            Value::Null
        })
    }

    /// A folder, or something that a builder fetches.
    pub(super) fn context(&self, text: &str, span: Span) -> String {
        let fetched = text.contains("://")
            || text.ends_with(".git")
            || ["github.com/", "git@", "service:", "target:"].iter().any(|start| text.starts_with(start));
        if fetched { text.to_owned() } else { self.path(text, span) }
    }

    pub(super) fn list(&self, node: &Arc<Node>, kind: Kind, repeats: Repeats, one_too: bool, key: &str) -> Value {
        let items = match &node.data {
            Data::List(items) => items.as_slice(),
            Data::Scalar(_) if one_too => std::slice::from_ref(node),
            _ => return Value::List(self.mistyped(node, key, "a list")),
        };
        let mut seen = HashSet::new();
        let kept = items.iter().filter(|item| match &item.data {
            Data::Scalar(scalar) if repeats == Repeats::Dropped => seen.insert(scalar.text.clone()),
            _ => true,
        });
        Value::List(kept.map(|item| self.one(item, kind, key)).collect())
    }

    pub(super) fn command(&self, node: &Arc<Node>, key: &str) -> Value {
        let mut list: Vec<Value> = match &node.data {
            Data::Null => return Value::Null,
            Data::Scalar(scalar) => match words::split(&scalar.text) {
                Some(split) => split.words.into_iter().map(Value::Text).collect(),
                None => {
                    self.wrong(node.span, format!("a quote or bracket is left open in {}", quoted(key)));
                    Vec::new()
                }
            },
            _ => match self.list(node, Kind::Text, Repeats::Kept, false, key) {
                Value::List(list) => list,
                other => return other,
            },
        };
        if !self.view.secrets {
            mask::mask_words(&mut list);
        }
        Value::List(list)
    }

    pub(super) fn pairs(&self, node: &Node, pairs: Pairs, key: &str) -> Value {
        let Some(entries) = merge::pairs_of(node) else {
            return Value::Map(self.mistyped(node, key, "a mapping or a list of `KEY=value`"));
        };
        let from_outside = matches!(key, "environment" | "args");
        let mut map = Vec::with_capacity(entries.len());
        for Entry { key: name, key_span, value } in entries {
            let value = match &value.data {
                Data::Null if from_outside => match self.origins.of(key_span).variables.get(&name) {
                    Some(found) => Value::Text(found),
                    // An argument that nobody gives isn't one.
                    None if key == "args" => continue,
                    None => Value::Null,
                },
                Data::Null => Value::text(""),
                Data::Scalar(scalar) if pairs == Pairs::Contexts => Value::text(self.context(&scalar.text, value.span)),
                _ => self.one(&value, Kind::Text, &name),
            };
            map.push((name.to_string(), value));
        }
        self.hide(&mut map);
        map.sort_by(|(one, _), (other, _)| one.cmp(other));
        if key == "ssh" {
            // The only pairs that the reference lists: an agent's name, or `name=path`.
            let listed = map.into_iter().map(|(name, path)| match path.as_text() {
                None | Some("") => Value::Text(name),
                Some(path) => Value::Text(format!("{name}={path}")),
            });
            return Value::List(listed.collect());
        }
        Value::Map(map)
    }

    pub(super) fn hosts(&self, node: &Node, key: &str) -> Value {
        let Some(hosts) = merge::hosts_of(node) else {
            return Value::List(self.mistyped(node, key, "a mapping or a list of `name=address`"));
        };
        let texts = hosts.iter().filter_map(|host| self.text(host, key));
        let hosts: BTreeSet<_> = texts
            .map(|text| split_host(&text).map_or(text.clone(), |(name, address)| format!("{name}={address}")))
            .collect();
        Value::List(hosts.into_iter().map(Value::Text).collect())
    }

    pub(super) fn named(&self, node: &Node, key: &str, value_of: impl Fn(&Arc<Node>) -> Value) -> Value {
        let Data::Map(entries) = &node.data else { return Value::Map(self.mistyped(node, key, "a mapping")) };
        let value = |entry: &Entry| {
            // Beside names of the user's own, these are remarks as everywhere.
            if entry.key.starts_with("x-") && key != "services" {
                generic(&entry.value)
            } else {
                value_of(&entry.value)
            }
        };
        let mut map: Map = entries.iter().map(|entry| (entry.key.to_string(), value(entry))).collect();
        map.sort_by(|(one, _), (other, _)| one.cmp(other));
        Value::Map(map)
    }

    pub(super) fn or_null(&self, node: &Node, section: &'static Section) -> Value {
        let mut map = self.fields(node, section);
        if node.is_null() && std::ptr::eq(section, &raw const keys::DEPENDENCY) {
            self.defaults(&mut map, node, section);
        }
        if map.is_empty() && std::ptr::eq(section, &raw const keys::SERVICE_NETWORK) {
            Value::Null
        } else {
            Value::Map(map)
        }
    }

    pub(super) fn short(&self, node: &Arc<Node>, short: Short, section: &'static Section, key: &str) -> Value {
        if short == Short::Edge {
            return Value::Map(self.fields(&merge::edge_routes(node), section));
        }
        if !matches!(node.data, Data::Scalar(_)) {
            return Value::Map(self.fields(node, section));
        }
        match short {
            Short::Build => Value::Map(self.fields(&merge::build_context(node), section)),
            Short::Ulimit => self.one(node, Kind::Int, key),
            Short::External | Short::Switch => self.one(node, Kind::Bool, key),
            Short::Rate => match self.text(node, key) {
                Some(rate) if rate != "off" => Value::Map(vec![pair("per_client", Value::Text(rate))]),
                off => off.map_or(Value::Null, Value::Text),
            },
            _ => self.one(node, Kind::Text, key),
        }
    }

    pub(super) fn items(
        &self,
        node: &Arc<Node>,
        short: Short,
        section: &'static Section,
        one_too: bool,
        key: &str,
    ) -> Value {
        let items = match &node.data {
            Data::List(items) => items.as_slice(),
            Data::Scalar(_) if one_too => std::slice::from_ref(node),
            _ => return Value::List(self.mistyped(node, key, "a list")),
        };
        let mut all: Vec<Value> = Vec::with_capacity(items.len());
        for item in items {
            match &item.data {
                Data::Scalar(scalar) => all.extend(self.short_item(&scalar.text, item, short, section, key)),
                _ => all.push(Value::Map(self.fields(item, section))),
            }
        }
        if short == Short::Port {
            // Written out, ranges may turn out to hold the same port twice.
            let mut seen = HashSet::new();
            all.retain(|port| seen.insert(port.to_json()));
        }
        Value::List(all)
    }
}
