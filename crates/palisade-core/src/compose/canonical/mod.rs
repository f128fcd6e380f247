//! The canonical model: all files as one, variables filled in, every short form written out.
//!
//! Its shape is that of `docker compose config --format json`. It is a view of the files, not of the stack: what
//! Palisade refuses is shown, too. What can stand at a key comes from the table; only defaults that depend on what a
//! value means are written down here.

use std::cell::RefCell;
use std::collections::HashSet;

use super::assemble::{Assembler, Origins};
use super::file::resolve;
use super::keys;
use super::yaml::Node;
use super::{LoadInputs, Rejected, masks, read, validate};
use crate::diagnostic::{Diagnostic, Severity, Sink, SourceMap, Span, quoted};

mod fields;
mod files;
pub(super) mod mask;
mod scalar;
mod shape;
mod short;
mod used;
mod value;
pub use value::Value;

use used::Used;

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
                project: None,
                diagnostics,
                risks: Vec::new(),
                accepted: Vec::new(),
                sources,
            }))
        }
    }
}

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
}

#[cfg(test)]
mod tests;
