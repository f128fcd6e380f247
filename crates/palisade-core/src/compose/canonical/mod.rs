//! The canonical model: all files as one, variables filled in, every short form written out.
//!
//! Its shape is that of `docker compose config --format json`. It is a view of the files, not of the stack: what
//! Palisade refuses is shown, too. What can stand at a key comes from the table; only defaults that depend on what a
//! value means are written down here.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::rc::Rc;

use super::assemble::{Assembler, Origins};
use super::file::resolve;
use super::keys::{self, Kind, Pairs, Repeats, Section, Shape, Short};
use super::masks;
use super::merge::{self, split_host, split_port};
use super::yaml::{Data, Entry, Node, Scalar};
use super::{LoadInputs, ReadError, Rejected, dotenv, read, units, validate, words};
use crate::diagnostic::{Diagnostic, Severity, Sink, SourceMap, Span, quoted};

pub(super) mod mask;
mod value;
pub use value::Value;

/// How the model is shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct View {
    /// What looks like a secret is shown as well.
    pub secrets: bool,
    /// With the empty values that Compose writes in JSON and leaves out in YAML.
    pub empty_values: bool,
}

/// The model, and what is to be said about the files.
#[derive(Clone, Debug)]
pub struct Canonical {
    /// The model.
    pub model: Value,
    /// Errors too: of what has a form, but not one that Palisade can honour.
    pub diagnostics: Vec<Diagnostic>,
    /// What the diagnostics point into.
    pub sources: SourceMap,
}

/// Reads Compose files and writes them out as one. Fails when one of them has no sound form.
pub fn canonical(inputs: &LoadInputs<'_>, view: View) -> Result<Canonical, Box<Rejected>> {
    let (mut sources, mut sink, mut masked) = (SourceMap::default(), Sink::default(), Vec::new());
    let assembled = Assembler::new(inputs, &mut sources, &mut sink, &mut masked).assemble();
    let mut model = None;
    if let Some(mut assembled) = assembled {
        let sound = !sink.has_errors();
        let project = assembled.project.take();
        let builder = Builder {
            origins: &assembled.origins,
            inputs,
            project: project.as_ref().map(ToString::to_string).unwrap_or_default(),
            view,
            wrong: RefCell::default(),
        };
        let made = builder.file(&assembled.root);
        let wrong = builder.wrong.into_inner();
        let mut reader = read::Reader::new(&assembled.origins, std::mem::take(&mut sink));
        let file = reader.file(&assembled.root, inputs, project);
        sink = reader.finish();
        if let Some(file) = &file {
            validate::validate(file, &mut sink);
        }
        model = Some(made).filter(|_| sound && wrong.is_empty());
        // What the reader has told already in its own words need not be told twice.
        let told = std::mem::take(&mut sink).finish();
        let at = |d: &Diagnostic| d.primary.as_ref().map(|label| (label.span.file, label.span.start));
        let known: HashSet<_> = told.iter().filter(|d| d.severity == Severity::Error).map(at).collect();
        let news = wrong.into_iter().filter(|d| !known.contains(&at(d)));
        news.chain(told.iter().cloned()).for_each(|diagnostic| sink.push(diagnostic));
    }
    sources.mask(&masked);
    let diagnostics = masks::without_secrets(sink.finish(), inputs);
    match model {
        Some(model) => Ok(Canonical { model, diagnostics, sources }),
        None => {
            let names: Vec<_> = inputs.files.iter().map(|file| file.name).collect();
            Err(Box::new(Rejected {
                file_name: names.join(", "),
                diagnostics,
                risks: Vec::new(),
                accepted: Vec::new(),
                sources,
            }))
        }
    }
}

/// What only a person or an engine's plug-in understands, with the types that YAML gives it.
pub(super) fn generic(node: &Node) -> Value {
    match &node.data {
        Data::Null => Value::Null,
        Data::Scalar(scalar) => plain(scalar),
        Data::List(items) => Value::List(items.iter().map(|item| generic(item)).collect()),
        Data::Map(entries) => {
            Value::Map(entries.iter().map(|entry| (entry.key.clone(), generic(&entry.value))).collect())
        }
    }
}

fn plain(scalar: &Scalar) -> Value {
    let text = &scalar.text;
    let digits = text.trim_start_matches(['+', '-']);
    // `0440` is a number to some and a text to others: as text it stays what it is.
    let number = digits == "0" || digits.starts_with("0.") || digits.starts_with(|c| matches!(c, '1'..='9'));
    match text.as_str() {
        _ if !scalar.plain => Value::text(text),
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if !number => Value::text(text),
        _ => match (text.parse::<i64>(), text.parse::<f64>()) {
            (Ok(number), _) => Value::Int(number),
            (_, Ok(number)) if number.is_finite() => Value::Float(number),
            _ => Value::text(text),
        },
    }
}

/// Booleans that say something when they are false.
const MEANT_WHEN_FALSE: [&str; 7] =
    ["init", "attach", "enable_ipv4", "enable_ipv6", "required", "create_host_path", "initial_sync"];
/// Keys that are done with once all files are one.
const DONE_WITH: [&str; 6] = ["version", "include", "extends", "env_file", "label_file", "name"];

type Map = Vec<(String, Value)>;

struct Builder<'a> {
    origins: &'a Origins,
    inputs: &'a LoadInputs<'a>,
    project: String,
    view: View,
    wrong: RefCell<Vec<Diagnostic>>,
}

fn has(map: &Map, key: &str) -> bool {
    map.iter().any(|(name, _)| name == key)
}
fn default(map: &mut Map, key: &str, value: impl FnOnce() -> Value) {
    if !has(map, key) {
        map.push((key.to_owned(), value()));
    }
}
fn get<'m>(map: &'m mut Map, key: &str) -> Option<&'m mut Value> {
    map.iter_mut().find(|(name, _)| name == key).map(|(_, value)| value)
}
fn text_of<'m>(map: &'m Map, key: &str) -> Option<&'m str> {
    map.iter().find(|(name, _)| name == key).and_then(|(_, value)| value.as_text())
}
fn pair(key: &str, value: Value) -> (String, Value) {
    (key.to_owned(), value)
}

impl Builder<'_> {
    fn file(&self, root: &Node) -> Value {
        let mut parts = self.fields(root, &keys::TOP);
        let mut top = vec![pair("name", Value::text(&self.project))];
        let mut used = Used::default();
        for (key, value) in &mut parts {
            if key == "services" {
                used.look_at(value);
            }
        }
        default(&mut parts, "services", || Value::Map(Vec::new()));
        if used.networks.contains("default") {
            default(&mut parts, "networks", || Value::Map(Vec::new()));
            if let Some(Value::Map(networks)) = get(&mut parts, "networks") {
                default(networks, "default", || Value::Map(Vec::new()));
            }
        }
        for key in ["services", "networks", "volumes", "secrets", "configs"] {
            let Some(at) = parts.iter().position(|(name, _)| name == key) else { continue };
            let (_, Value::Map(mut entries)) = parts.swap_remove(at) else { continue };
            if key != "services" {
                entries.retain(|(name, _)| used.of(key).contains(name));
                for (name, value) in &mut entries {
                    self.resource(key, name, value);
                }
            }
            entries.sort_by(|(one, _), (other, _)| one.cmp(other));
            if !entries.is_empty() || key == "services" {
                top.push(pair(key, Value::Map(entries)));
            }
        }
        parts.sort_by(|(one, _), (other, _)| one.cmp(other));
        top.extend(parts);
        let mut model = Value::Map(top);
        if !self.view.secrets {
            model.map_texts(&mask::mask_urls);
        }
        // A dollar sign that is left is one: written out, it must not begin a variable.
        model.map_texts(&|text| text.replace('$', "$$"));
        model
    }

    /// The defaults of a network, volume, secret or config.
    fn resource(&self, kind: &str, key: &str, value: &mut Value) {
        if !matches!(value, Value::Map(_)) {
            *value = Value::Map(Vec::new());
        }
        let Value::Map(map) = value else { return };
        if let Some(external) = get(map, "external")
            && let Value::Map(old) = external
        {
            let name = text_of(old, "name").map(Value::text);
            *external = Value::Bool(true);
            if let Some(name) = name {
                default(map, "name", || name);
            }
        }
        let external = has(map, "external");
        default(map, "name", || Value::text(if external { key.to_owned() } else { format!("{}_{key}", self.project) }));
        if kind == "networks" && self.view.empty_values {
            default(map, "ipam", || Value::Map(Vec::new()));
        }
        if let Some(content) = get(map, "content").filter(|_| !self.view.secrets) {
            *content = Value::text(mask::MASK);
        }
        map.sort_by(|(one, _), (other, _)| one.cmp(other));
    }

    fn wrong(&self, span: Span, message: String) {
        self.wrong.borrow_mut().push(Diagnostic::error("invalid-value", message).at(span, ""));
    }

    fn mistyped<T: Default>(&self, node: &Node, key: &str, wanted: &str) -> T {
        let message = format!("{} is {wanted}, but this is {}", quoted(key), node.kind());
        self.wrong.borrow_mut().push(Diagnostic::error("type", message).at(node.span, format!("expected {wanted}")));
        T::default()
    }

    /// The keys of a mapping that have a value, sorted, defaults added.
    fn fields(&self, node: &Node, section: &'static Section) -> Map {
        let Data::Map(entries) = &node.data else {
            return if node.is_null() { Vec::new() } else { self.mistyped(node, section.what, "a mapping") };
        };
        let mut map = Vec::with_capacity(entries.len());
        for entry in entries {
            let Some(key) = section.key(&entry.key).filter(|_| !entry.key.starts_with("x-")) else {
                if entry.key.starts_with("x-") {
                    map.push((entry.key.clone(), generic(&entry.value)));
                } else {
                    let message = format!("{} is not a key of {}", quoted(&entry.key), section.what);
                    self.wrong.borrow_mut().push(Diagnostic::error("unknown-key", message).at(entry.key_span, ""));
                }
                continue;
            };
            let place = section.path.matches('.').count();
            // `name` is the file's, elsewhere it is a key like others.
            if place <= 1 && DONE_WITH.contains(&key.name) && (key.name != "name" || section.path.is_empty()) {
                continue;
            }
            let value = match &entry.value.data {
                Data::Null if !matches!(key.shape, Shape::Command) => continue,
                _ => self.value(&entry.value, key.shape, key.name),
            };
            let idle = match &value {
                Value::Bool(false) => !MEANT_WHEN_FALSE.contains(&key.name),
                Value::List(_) | Value::Map(_) if matches!(key.shape, Shape::Section(_) | Shape::Command) => false,
                value => value.is_empty(),
            };
            if !idle {
                map.push((key.name.to_owned(), value));
            }
        }
        self.defaults(&mut map, node, section);
        map.sort_by(|(one, _), (other, _)| one.cmp(other));
        map
    }

    /// What Compose adds to a mapping.
    fn defaults(&self, map: &mut Map, node: &Node, section: &'static Section) {
        let is = |other: &'static Section| std::ptr::eq(section, other);
        if is(&keys::SERVICE) {
            self.service(map, node);
        } else if is(&keys::DEPENDENCY) {
            default(map, "condition", || Value::text("service_started"));
            default(map, "required", || Value::Bool(true));
        } else if is(&keys::PORT) {
            default(map, "mode", || Value::text("ingress"));
            default(map, "protocol", || Value::text("tcp"));
        } else if is(&keys::SERVICE_SECRET) {
            let source = text_of(map, "source").unwrap_or_default().to_owned();
            default(map, "target", || Value::text(format!("/run/secrets/{source}")));
        } else if is(&keys::BUILD) {
            default(map, "context", || Value::text(self.path(".", node.span)));
            if !has(map, "dockerfile_inline") {
                default(map, "dockerfile", || Value::text("Dockerfile"));
            }
        } else if is(&keys::MOUNT) {
            let bind = text_of(map, "type") == Some("bind");
            if let Some(Value::Text(source)) = get(map, "source").filter(|_| bind) {
                let span = node.get("source").map_or(node.span, |entry| entry.value.span);
                *source = self.path(source, span);
            }
            if let Some(Value::Text(target)) = get(map, "target") {
                *target = merge::clean(target);
            }
        } else if is(&keys::MOUNT_BIND) {
            default(map, "create_host_path", || Value::Bool(true));
        } else if is(&keys::DEVICE_REQUEST) {
            if !has(map, "device_ids") {
                default(map, "count", || Value::Int(-1));
            }
            if let Some(count) = get(map, "count")
                && let Value::Text(text) = &*count
            {
                *count = text.parse().map_or_else(|_| Value::Int(-1), Value::Int);
            }
        } else if is(&keys::DEPLOY) && self.view.empty_values {
            default(map, "resources", || Value::Map(Vec::new()));
            default(map, "placement", || Value::Map(Vec::new()));
        }
    }

    fn service(&self, map: &mut Map, node: &Node) {
        let from_files = node.get("env_file").map(|entry| self.env_files(&entry.value)).unwrap_or_default();
        if !from_files.is_empty() {
            let mut all = from_files;
            if let Some(Value::Map(own)) = get(map, "environment") {
                all.retain(|(name, _)| !has(own, name));
                all.append(own);
            }
            self.hide(&mut all);
            all.sort_by(|(one, _), (other, _)| one.cmp(other));
            map.retain(|(name, _)| name != "environment");
            map.push(pair("environment", Value::Map(all)));
        }
        if let Some(entry) = node.get("label_file") {
            let mut labels = self.files_of(&entry.value, false).unwrap_or_default();
            labels.retain(|(name, _)| !matches!(get(map, "labels"), Some(Value::Map(own)) if has(own, name)));
            default(map, "labels", || Value::Map(Vec::new()));
            if let Some(Value::Map(own)) = get(map, "labels") {
                own.extend(labels);
                own.sort_by(|(one, _), (other, _)| one.cmp(other));
            }
        }
        if !has(map, "network_mode") && !has(map, "provider") {
            default(map, "networks", || Value::Map(vec![pair("default", Value::Null)]));
        }
        if self.view.empty_values {
            default(map, "command", || Value::Null);
            default(map, "entrypoint", || Value::Null);
        } else {
            map.retain(|(name, value)| !matches!(name.as_str(), "command" | "entrypoint") || *value != Value::Null);
        }
    }

    /// Variables of all `env_file`s, a later one over those before.
    fn env_files(&self, node: &Rc<Node>) -> Map {
        self.files_of(node, true).unwrap_or_default()
    }

    fn files_of(&self, node: &Rc<Node>, variables: bool) -> Option<Map> {
        let items = match &node.data {
            Data::List(items) => items.as_slice(),
            _ => std::slice::from_ref(node),
        };
        let mut all = Vec::new();
        for item in items {
            let field = |key: &str| match &item.get(key)?.value.data {
                Data::Scalar(scalar) => Some(scalar.text.as_str()),
                _ => None,
            };
            let (path, required, raw) = match &item.data {
                Data::Scalar(scalar) => (scalar.text.as_str(), true, false),
                _ => (field("path")?, field("required") != Some("false"), field("format") == Some("raw")),
            };
            let full = PathBuf::from(self.path(path, item.span));
            let text = match self.inputs.others.read(&full) {
                Ok(bytes) => String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned()),
                Err(ReadError::NotFound) if !required => continue,
                Err(ReadError::NotFound) => Err("it does not exist".to_owned()),
                Err(ReadError::Other(why)) => Err(why),
            };
            let text = match text {
                Ok(text) => text,
                Err(why) => {
                    self.wrong(item.span, format!("this file can't be read: {why}"));
                    continue;
                }
            };
            let origin = &self.origins.of(item.span).variables;
            let parsed =
                if raw || !variables { dotenv::raw(&text) } else { dotenv::parse(&text, &|name| origin.get(name)) };
            let Ok(lines) = parsed else {
                self.wrong(item.span, "this file has lines that are not `NAME=value`".to_owned());
                continue;
            };
            for (name, value) in lines.variables {
                let value = value.or_else(|| origin.get(&name)).map_or(Value::Null, Value::Text);
                all.retain(|(known, _)| *known != name);
                all.push((name, value));
            }
        }
        Some(all)
    }

    fn hide(&self, pairs: &mut Map) {
        if !self.view.secrets {
            let mut value = Value::Map(std::mem::take(pairs));
            mask::mask_pairs(&mut value);
            if let Value::Map(hidden) = value {
                *pairs = hidden;
            }
        }
    }

    /// A path of the user's, absolute.
    fn path(&self, path: &str, span: Span) -> String {
        let origin = self.origins.of(span);
        let full = resolve(&origin.directory, origin.variables.get("HOME").as_deref(), path);
        full.to_string_lossy().into_owned()
    }

    fn value(&self, node: &Rc<Node>, shape: Shape, key: &str) -> Value {
        match shape {
            Shape::One(kind) => self.one(node, kind, key),
            Shape::List(kind, repeats) => self.list(node, kind, repeats, false, key),
            Shape::OneOrList(kind, repeats) => self.list(node, kind, repeats, true, key),
            Shape::Command => self.command(node, key),
            Shape::Test => match &node.data {
                Data::Scalar(scalar) => Value::List(vec![Value::text("CMD-SHELL"), Value::text(&scalar.text)]),
                _ => self.list(node, Kind::Text, Repeats::Kept, false, key),
            },
            Shape::Pairs(Pairs::Hosts) => self.hosts(node, key),
            Shape::Pairs(pairs) => self.pairs(node, pairs, key),
            Shape::Section(section) => Value::Map(self.fields(node, section)),
            Shape::Short(short, section) => self.short(node, short, section, key),
            Shape::Named(section) => self.named(node, key, |value| self.or_null(value, section)),
            Shape::NamedShort(short, section) => self.named(node, key, |value| self.short(value, short, section, key)),
            Shape::NamedOrList(section) => {
                self.named(&merge::listed_names(node, section), key, |value| self.or_null(value, section))
            }
            Shape::Items(short, section) => self.items(node, short, section, false, key),
            Shape::OneOrItems(short, section) => self.items(node, short, section, true, key),
            Shape::Whole | Shape::Any => generic(node),
        }
    }

    fn text(&self, node: &Node, key: &str) -> Option<String> {
        match &node.data {
            Data::Scalar(scalar) => Some(scalar.text.clone()),
            _ => self.mistyped(node, key, "a single value"),
        }
    }

    fn one(&self, node: &Node, kind: Kind, key: &str) -> Value {
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
            Kind::Duration => units::duration_ms(&text).map(|ms| Value::Text(duration(ms))),
            Kind::Bytes if text.trim() == "-1" => Some(Value::text("-1")),
            Kind::Bytes => units::bytes(&text, 1024).map(|bytes| Value::Text(bytes.to_string())),
            Kind::Mode => {
                let digits = text.strip_prefix("0o").unwrap_or(&text);
                u32::from_str_radix(digits, 8).ok().map(|mode| Value::Text(format!("0{mode:o}")))
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
    fn context(&self, text: &str, span: Span) -> String {
        let fetched = text.contains("://")
            || text.ends_with(".git")
            || ["github.com/", "git@", "service:", "target:"].iter().any(|start| text.starts_with(start));
        if fetched { text.to_owned() } else { self.path(text, span) }
    }

    fn list(&self, node: &Rc<Node>, kind: Kind, repeats: Repeats, one_too: bool, key: &str) -> Value {
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

    fn command(&self, node: &Rc<Node>, key: &str) -> Value {
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

    fn pairs(&self, node: &Node, pairs: Pairs, key: &str) -> Value {
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
            map.push((name, value));
        }
        self.hide(&mut map);
        map.sort_by(|(one, _), (other, _)| one.cmp(other));
        Value::Map(map)
    }

    fn hosts(&self, node: &Node, key: &str) -> Value {
        let Some(hosts) = merge::hosts_of(node) else {
            return Value::List(self.mistyped(node, key, "a mapping or a list of `name=address`"));
        };
        let texts = hosts.iter().filter_map(|host| self.text(host, key));
        let hosts: BTreeSet<_> = texts
            .map(|text| split_host(&text).map_or(text.clone(), |(name, address)| format!("{name}={address}")))
            .collect();
        Value::List(hosts.into_iter().map(Value::Text).collect())
    }

    fn named(&self, node: &Node, key: &str, value_of: impl Fn(&Rc<Node>) -> Value) -> Value {
        let Data::Map(entries) = &node.data else { return Value::Map(self.mistyped(node, key, "a mapping")) };
        let value = |entry: &Entry| {
            // Beside names of the user's own, these are remarks as everywhere.
            if entry.key.starts_with("x-") && key != "services" {
                generic(&entry.value)
            } else {
                value_of(&entry.value)
            }
        };
        let mut map: Map = entries.iter().map(|entry| (entry.key.clone(), value(entry))).collect();
        map.sort_by(|(one, _), (other, _)| one.cmp(other));
        Value::Map(map)
    }

    fn or_null(&self, node: &Node, section: &'static Section) -> Value {
        let map = self.fields(node, section);
        if map.is_empty() && std::ptr::eq(section, &raw const keys::SERVICE_NETWORK) {
            Value::Null
        } else {
            Value::Map(map)
        }
    }

    fn short(&self, node: &Rc<Node>, short: Short, section: &'static Section, key: &str) -> Value {
        if !matches!(node.data, Data::Scalar(_)) {
            return Value::Map(self.fields(node, section));
        }
        match short {
            Short::Build => Value::Map(self.fields(&merge::build_context(node), section)),
            Short::Ulimit => self.one(node, Kind::Int, key),
            Short::External => self.one(node, Kind::Bool, key),
            _ => self.one(node, Kind::Text, key),
        }
    }

    fn items(&self, node: &Rc<Node>, short: Short, section: &'static Section, one_too: bool, key: &str) -> Value {
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

    fn short_item(&self, text: &str, node: &Node, short: Short, section: &'static Section, key: &str) -> Vec<Value> {
        let mut map = match short {
            Short::Port => return self.ports(text, node, section),
            Short::Volume => self.mount(text, node),
            Short::FileReference => vec![pair("source", Value::text(text))],
            Short::Gpus => Vec::new(),
            Short::Device => {
                let mut parts = text.split(':');
                let source = parts.next().unwrap_or_default();
                let (target, permissions) = (parts.next().unwrap_or(source), parts.next().unwrap_or("rwm"));
                vec![
                    pair("source", Value::text(source)),
                    pair("target", Value::text(target)),
                    pair("permissions", Value::text(permissions)),
                ]
            }
            _ => return self.mistyped(node, key, "a list of mappings"),
        };
        self.defaults(&mut map, node, section);
        map.sort_by(|(one, _), (other, _)| one.cmp(other));
        vec![Value::Map(map)]
    }

    /// `"127.0.0.1:8080-8081:80-81/udp"`, one port each.
    fn ports(&self, text: &str, node: &Node, section: &'static Section) -> Vec<Value> {
        let (ip, published, target, protocol) = split_port(text);
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
            (first <= last && last - first < 1024).then_some(first..=last)
        };
        let targets = range(target);
        let hosts = published.map(range);
        let (Some(targets), Some(Some(_)) | None) = (targets, &hosts) else {
            let Data::Scalar(scalar) = &node.data else { return Vec::new() };
            let shown = quoted(scalar.written.as_deref().unwrap_or(text));
            self.wrong(node.span, format!("{shown} is not a port"));
            return Vec::new();
        };
        let mut hosts = hosts.flatten();
        if hosts.as_ref().is_some_and(|hosts| targets.len() != hosts.len() && targets.len() > 1) {
            self.wrong(node.span, "the two ranges have different lengths".to_owned());
        }
        let single = targets.len() == 1;
        let one = |target: u16| {
            let mut port = vec![pair("target", Value::Int(target.into()))];
            if let Some(published) = published.filter(|_| single) {
                port.push(pair("published", Value::text(published)));
            } else if let Some(host) = hosts.as_mut().and_then(Iterator::next) {
                port.push(pair("published", Value::text(host.to_string())));
            }
            if let Some(ip) = ip {
                port.push(pair("host_ip", Value::text(ip.trim_start_matches('[').trim_end_matches(']'))));
            }
            if let Some(protocol) = protocol {
                port.push(pair("protocol", Value::text(protocol.to_ascii_lowercase())));
            }
            self.defaults(&mut port, node, section);
            port.sort_by(|(one, _), (other, _)| one.cmp(other));
            Value::Map(port)
        };
        targets.map(one).collect()
    }

    /// `source:target:options`.
    fn mount(&self, text: &str, node: &Node) -> Map {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, options) = match parts[..] {
            [target] => (None, target, ""),
            [source, target] => (Some(source), target, ""),
            [source, target, options] => (Some(source), target, options),
            _ => {
                self.wrong(node.span, "this is not a mount".to_owned());
                return Vec::new();
            }
        };
        let bind = source.is_some_and(|source| source.starts_with(['/', '.', '~']));
        let mut map = vec![
            pair("type", Value::text(if bind { "bind" } else { "volume" })),
            pair("target", Value::text(merge::clean(target))),
        ];
        // A relative path is made absolute with the other defaults.
        map.extend(source.map(|source| pair("source", Value::text(source))));
        // Docker Compose keeps these options below `bind`, also of a volume.
        let mut of_bind = if bind { vec![pair("create_host_path", Value::Bool(true))] } else { Vec::new() };
        let mut of_volume = Vec::new();
        for option in options.split(',') {
            match option {
                "ro" => map.push(pair("read_only", Value::Bool(true))),
                "z" | "Z" => of_bind.push(pair("selinux", Value::text(option))),
                "nocopy" if !bind => of_volume.push(pair("nocopy", Value::Bool(true))),
                "cached" | "delegated" | "consistent" => map.push(pair("consistency", Value::text(option))),
                "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => {
                    of_bind.push(pair("propagation", Value::text(option)));
                }
                // Compose takes no notice of others; what reads mounts refuses what it doesn't know.
                _ => {}
            }
        }
        of_bind.sort_by(|(one, _), (other, _)| one.cmp(other));
        if !of_bind.is_empty() {
            map.push(pair("bind", Value::Map(of_bind)));
        }
        if !bind {
            map.push(pair("volume", Value::Map(of_volume)));
        }
        map
    }
}

/// As Go writes durations: `1m30s`.
fn duration(ms: u64) -> String {
    if ms == 0 {
        return "0s".to_owned();
    }
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, (ms % 60_000) as f64 / 1000.0);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// What services refer to: the rest is left out, as Compose does.
#[derive(Default)]
struct Used {
    networks: HashSet<String>,
    volumes: HashSet<String>,
    secrets: HashSet<String>,
    configs: HashSet<String>,
}

impl Used {
    fn look_at(&mut self, services: &Value) {
        let sources = |list: Option<&Value>| -> Vec<String> {
            let items = list.map(Value::items).unwrap_or_default();
            items.iter().filter_map(|item| item.get("source")?.as_text().map(str::to_owned)).collect()
        };
        for (_, service) in services.entries() {
            if let Some(networks) = service.get("networks") {
                self.networks.extend(networks.entries().iter().map(|(name, _)| name.clone()));
            }
            self.volumes.extend(sources(service.get("volumes")));
            self.secrets.extend(sources(service.get("secrets")));
            self.secrets.extend(sources(service.get("build").and_then(|build| build.get("secrets"))));
            self.configs.extend(sources(service.get("configs")));
        }
    }

    fn of(&self, kind: &str) -> &HashSet<String> {
        match kind {
            "networks" => &self.networks,
            "volumes" => &self.volumes,
            "secrets" => &self.secrets,
            _ => &self.configs,
        }
    }
}

#[cfg(test)]
mod tests;
