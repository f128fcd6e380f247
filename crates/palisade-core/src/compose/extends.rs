//! `extends`: a service begins as a copy of another one, of the same file or of another.
//!
//! Which keys there are is no business of this module: the copy is merged like an earlier file's service would be.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::assemble::{Assembler, Origin, Variables, is_remote, join, remote};
use super::suggest::nearest;
use super::yaml::{Data, Entry, MergeTag, Node};
use super::{keys, merge};
use crate::diagnostic::{Diagnostic, Span, quoted};

/// A service that is more copies away from its origin is refused.
const DEPTH_MAX: usize = 50;

/// The files that services were taken from, and the services that are complete.
#[derive(Debug, Default)]
pub(crate) struct Extended {
    bases: Vec<Base>,
    files: Vec<BaseFile>,
}

/// A file that was read for its services.
#[derive(Debug)]
struct BaseFile {
    path: PathBuf,
    dot_env: Arc<BTreeMap<String, String>>,
    /// `None`: it can't be read, which was told.
    base: Option<usize>,
}

/// The services of one tree.
#[derive(Debug)]
struct Base {
    /// Of another file: what messages call it.
    name: Option<String>,
    services: HashMap<String, Arc<Node>>,
    done: HashMap<String, Complete>,
}

/// A service with everything that it extends.
#[derive(Clone, Debug)]
struct Complete {
    node: Arc<Node>,
    depth: usize,
}

/// What `extends` says.
struct Wanted {
    service: String,
    service_span: Span,
    /// As a message may show it, where it is written, and the path.
    file: Option<(String, Span, PathBuf)>,
}

impl Assembler<'_> {
    /// The tree with all its services complete.
    pub(crate) fn extend(&mut self, tree: Arc<Node>) -> Arc<Node> {
        let Some(Entry { value: services, .. }) = tree.get("services") else { return tree };
        let Data::Map(entries) = &services.data else { return tree };
        if entries.iter().all(|entry| entry.value.get("extends").is_none()) {
            return tree;
        }
        let base = self.extended.add(None, entries);
        let complete = entries.iter().map(|entry| {
            let complete = self.complete(base, &entry.key, &mut Vec::new());
            Entry { value: complete.map_or_else(|| Arc::clone(&entry.value), |c| c.node), ..entry.clone() }
        });
        let complete = services.with(Data::Map(complete.collect()));
        tree.replacing("services", &complete)
    }

    /// The service of that name, which the base has; `trail` is what is being completed already.
    fn complete(&mut self, base: usize, name: &str, trail: &mut Vec<(usize, String, Span)>) -> Option<Complete> {
        if let Some(done) = self.extended.bases[base].done.get(name) {
            return Some(done.clone());
        }
        let service = Arc::clone(self.extended.bases[base].services.get(name)?);
        let complete = match service.get("extends") {
            None => Complete { node: service, depth: 0 },
            Some(extends) => {
                let alone = service.without("extends");
                let alone = Complete { node: alone, depth: 0 };
                if self.closes_cycle(base, name, extends, trail) {
                    return Some(alone);
                }
                trail.push((base, name.to_owned(), extends.key_span));
                let merged = self.merged(base, extends, &alone.node, trail);
                trail.pop();
                merged.unwrap_or(alone)
            }
        };
        self.extended.bases[base].done.insert(name.to_owned(), complete.clone());
        Some(complete)
    }

    fn merged(
        &mut self,
        base: usize,
        extends: &Entry,
        alone: &Arc<Node>,
        trail: &mut Vec<(usize, String, Span)>,
    ) -> Option<Complete> {
        if extends.value.is_null() || extends.value.tag == MergeTag::Reset {
            return None;
        }
        let wanted = self.wanted(&extends.value)?;
        let base = match &wanted.file {
            None => base,
            Some((written, at, path)) => self.base_of_file(path, written, *at)?,
        };
        let known = &self.extended.bases[base];
        let Some(found) = known.services.get(&wanted.service).filter(|node| node.tag != MergeTag::Reset) else {
            let place = known.name.as_deref().map_or("in this file".to_owned(), |name| format!("in {}", quoted(name)));
            let message = format!("there is no service {} {place} to extend", quoted(&wanted.service));
            let hint = match nearest(&wanted.service, known.services.keys().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None if wanted.file.is_none() => {
                    "to extend a service of another file, say `extends: {file: …, service: …}`".to_owned()
                }
                None => {
                    "what that file itself includes can't be extended: name the file that has the service".to_owned()
                }
            };
            self.sink.push(Diagnostic::error("unknown-base", message).at(wanted.service_span, "").hint(hint));
            return None;
        };
        if found.is_null() {
            return None;
        }
        if trail.len() > DEPTH_MAX {
            return self.too_deep(extends.key_span);
        }
        let found = self.complete(base, &wanted.service, trail)?;
        if found.depth >= DEPTH_MAX {
            return self.too_deep(extends.key_span);
        }
        if !self.afford(found.node.weight().saturating_add(alone.weight()), extends.key_span) {
            return None;
        }
        let node = merge::service(&found.node, alone, self.sink);
        Some(Complete { node, depth: found.depth + 1 })
    }

    fn too_deep<T>(&mut self, at: Span) -> Option<T> {
        let message = format!("this is a copy of a copy, more than {DEPTH_MAX} times");
        let hint = "extend a service that is nearer to what is meant";
        self.sink.push(Diagnostic::error("too-deep", message).at(at, "").hint(hint));
        None
    }

    /// Reports a service that leads back to itself.
    fn closes_cycle(&mut self, base: usize, name: &str, extends: &Entry, trail: &[(usize, String, Span)]) -> bool {
        let Some(from) = trail.iter().position(|(of, known, _)| *of == base && known == name) else { return false };
        let round = &trail[from..];
        // One message for each cycle, wherever it was entered: it begins at the place that comes first.
        let first = (0..round.len()).min_by_key(|at| round[*at].2).unwrap_or(0);
        let names: Vec<_> = (0..=round.len()).map(|at| quoted(&round[(first + at) % round.len()].1)).collect();
        let (_, service, at) = &round[first];
        let mut diagnostic = Diagnostic::error("extends-cycle", format!("{} extends itself", quoted(service)))
            .at(*at, names.join(" → "))
            .hint("one of them must stand on its own");
        for (_, _, span) in round.iter().filter(|(_, _, span)| span != at) {
            diagnostic = diagnostic.also(*span, "");
        }
        debug_assert!(round.iter().any(|(_, _, span)| *span == extends.key_span));
        self.sink.push(diagnostic);
        true
    }

    fn wanted(&mut self, node: &Arc<Node>) -> Option<Wanted> {
        if let Data::Scalar(scalar) = &node.data {
            return Some(Wanted { service: scalar.text.to_string(), service_span: node.span, file: None });
        }
        if !matches!(node.data, Data::Map(_)) {
            return self.mistyped(node, "`extends`", "the name of a service, or `{file: …, service: …}`");
        }
        self.known_keys(node, &keys::EXTENDS);
        let Some(service) = node.get("service").filter(|entry| !entry.value.is_null()) else {
            let diagnostic = Diagnostic::error("missing-key", "this `extends` names no service");
            self.sink.push(diagnostic.at(node.span, "").hint("say which one: `service: NAME`"));
            return None;
        };
        let Data::Scalar(name) = &service.value.data else {
            return self.mistyped(&service.value, "`service`", "the name of a service");
        };
        let file = match node.get("file").map(|entry| &entry.value) {
            None => None,
            Some(file) if file.is_null() => None,
            Some(file) => {
                let Data::Scalar(path) = &file.data else { return self.mistyped(file, "`file`", "a path") };
                let written = path.written.as_deref().unwrap_or(&path.text);
                if is_remote(&path.text) {
                    self.sink.push(remote(&quoted(written), file.span));
                    return None;
                }
                let path = join(&self.origin(file.span).directory, path.text.as_str());
                Some((quoted(written), file.span, path))
            }
        };
        Some(Wanted { service: name.text.to_string(), service_span: service.value.span, file })
    }

    /// The services of another file, read once for all that extend them with the same variables.
    fn base_of_file(&mut self, path: &Path, written: &str, at: Span) -> Option<usize> {
        let Origin { variables, .. } = &*self.origin(at);
        let dot_env = &variables.dot_env;
        let known = self.extended.files.iter().find(|file| file.path == path && Arc::ptr_eq(&file.dot_env, dot_env));
        if let Some(known) = known {
            return known.base;
        }
        let base = self.read_base(path, written, at, variables.clone());
        self.extended.files.push(BaseFile { path: path.to_owned(), dot_env: Arc::clone(dot_env), base });
        base
    }

    fn read_base(&mut self, path: &Path, written: &str, at: Span, variables: Variables) -> Option<usize> {
        let directory = path.parent().unwrap_or(path).to_owned();
        let parsed = self.bring(path, written, at, Origin { directory, variables })?;
        let tree = self.as_written(parsed)?;
        let name = self.inputs.others.name(path);
        let services = tree.get("services").map(|entry| &entry.value).filter(|node| !node.is_null());
        let entries = match services.map(|node| (node, &node.data)) {
            Some((_, Data::Map(entries))) => entries.as_slice(),
            Some((other, _)) => return self.mistyped(other, "`services`", "a mapping"),
            None => &[],
        };
        Some(self.extended.add(Some(name), entries))
    }
}

impl Extended {
    fn add(&mut self, name: Option<String>, services: &[Entry]) -> usize {
        let services = services.iter().map(|entry| (entry.key.to_string(), Arc::clone(&entry.value))).collect();
        self.bases.push(Base { name, services, done: HashMap::new() });
        self.bases.len() - 1
    }
}
