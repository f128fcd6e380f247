//! `include`: another Compose application becomes a part of this one, with its own folder and variables.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::assemble::{Assembler, Origin, Parsed, Variables, is_remote, join, read_other, remote};
use super::file::looked_for;
use super::yaml::{Data, Entry, MergeTag, Node};
use super::{InputFile, ReadError, keys, merge};
use crate::diagnostic::{Diagnostic, Span, quoted};

/// Files that include each other deeper than this are refused.
const DEPTH_MAX: usize = 32;

/// What is taken over from an included application. Its `name` and its extensions stay with it, but for ours: a part of
/// the policy must not get lost.
const TAKEN: [&str; 7] = ["services", "networks", "volumes", "secrets", "configs", "models", "x-palisade"];

/// What was included.
#[derive(Debug, Default)]
pub(crate) struct Included {
    /// The files that are being read, each included by the one before it.
    pub(crate) open: Vec<PathBuf>,
    /// An application is read once, whoever includes it with the same variables. `None`: it can't be, which was told.
    done: Vec<(Inclusion, Option<Arc<Node>>)>,
}

/// An application to include: all that its meaning depends on.
#[derive(Debug, PartialEq, Eq)]
struct Inclusion {
    paths: Vec<PathBuf>,
    directory: PathBuf,
    dot_env: Arc<BTreeMap<String, String>>,
}

/// A path as written in an `include`.
struct Written {
    path: PathBuf,
    /// As a message may show it.
    shown: String,
    span: Span,
}

impl Assembler<'_> {
    /// The tree with what it includes.
    pub(crate) fn include(&mut self, tree: Arc<Node>) -> Arc<Node> {
        let Some(entry) = tree.get("include") else { return tree };
        let mut whole = tree.without("include");
        let items = match &entry.value.data {
            _ if entry.value.tag == MergeTag::Reset => return whole,
            Data::Null => return whole,
            Data::List(items) => items,
            _ => {
                self.mistyped::<()>(&entry.value, "`include`", "a list of files");
                return whole;
            }
        };
        for item in items.iter().filter(|item| item.tag != MergeTag::Reset) {
            if let Some(part) = self.part(item) {
                whole = self.import(&part, &whole);
            }
        }
        whole
    }

    /// One application that is included.
    fn part(&mut self, item: &Arc<Node>) -> Option<Arc<Node>> {
        let (paths, directory, env_files) = match &item.data {
            Data::Scalar(_) => (self.paths(item, "`path`")?, None, None),
            Data::Map(_) => {
                self.known_keys(item, &keys::INCLUDE);
                let of = |key: &str| item.get(key).map(|entry| &entry.value).filter(|node| !node.is_null());
                let paths = match of("path") {
                    Some(node) => self.paths(node, "`path`")?,
                    None => Vec::new(),
                };
                let directory = match of("project_directory") {
                    Some(node) => Some(self.paths(node, "`project_directory`")?.pop()?.path),
                    None => None,
                };
                let env_files = match of("env_file") {
                    Some(node) => Some(self.paths(node, "`env_file`")?),
                    None => None,
                };
                (paths, directory, env_files)
            }
            _ => return self.mistyped(item, "an `include`", "a path, or `{path: …}`"),
        };
        let Some(first) = paths.first() else {
            let diagnostic = Diagnostic::error("missing-key", "this `include` names no file");
            self.sink.push(diagnostic.at(item.span, "").hint("say which one: `path: FILE`"));
            return None;
        };
        let own = || first.path.parent().unwrap_or(&first.path).to_owned();
        let directory = directory.unwrap_or_else(own);
        let around = self.origin(item.span);
        let variables = self.variables(env_files, &directory, &around.variables);
        if !self.may_open(&paths) {
            return None;
        }
        let dot_env = Arc::clone(&variables.dot_env);
        let inclusion = Inclusion { paths: paths.iter().map(|p| p.path.clone()).collect(), directory, dot_env };
        if let Some((_, known)) = self.included.done.iter().find(|(known, _)| *known == inclusion) {
            return known.clone();
        }
        let origin = Origin { directory: inclusion.directory.clone(), variables };
        let files: Vec<Option<Parsed>> =
            paths.iter().map(|path| self.bring(&path.path, &path.shown, path.span, origin.clone())).collect();
        let files = files.into_iter().collect::<Option<Vec<_>>>();
        // What takes something away does so among its own files.
        let part = files.and_then(|files| self.model(files)).map(|model| merge::finish(&model, self.sink));
        self.included.done.push((inclusion, part.clone()));
        part
    }

    /// Reports files that include themselves.
    fn may_open(&mut self, paths: &[Written]) -> bool {
        for wanted in paths {
            let open = &self.included.open;
            if let Some(from) = open.iter().position(|path| *path == wanted.path) {
                let round = open[from..].iter().chain([&wanted.path]);
                let names: Vec<_> = round.map(|path| quoted(&self.inputs.others.name(path))).collect();
                let message = format!("{} includes itself", names[0]);
                let diagnostic = Diagnostic::error("include-cycle", message).at(wanted.span, names.join(" → "));
                self.sink.push(diagnostic.hint("move what both need into a file of its own"));
                return false;
            }
            if open.len() >= DEPTH_MAX {
                let message = format!("files include each other more than {DEPTH_MAX} deep");
                let hint = "include them from one file, side by side";
                self.sink.push(Diagnostic::error("too-deep", message).at(wanted.span, "").hint(hint));
                return false;
            }
        }
        true
    }

    /// One path or a list of them; they start where the file that they are written in says.
    fn paths(&mut self, node: &Arc<Node>, what: &str) -> Option<Vec<Written>> {
        let items = match &node.data {
            Data::Scalar(_) => std::slice::from_ref(node),
            Data::List(items) => items,
            _ => return self.mistyped(node, what, "a path, or a list of paths"),
        };
        let mut paths = Vec::with_capacity(items.len());
        for item in items {
            let Data::Scalar(scalar) = &item.data else { return self.mistyped(item, what, "a path") };
            let shown = quoted(scalar.written.as_deref().unwrap_or(&scalar.text));
            if is_remote(&scalar.text) {
                self.sink.push(remote(&shown, item.span));
                return None;
            }
            let path = join(&self.origin(item.span).directory, scalar.text.as_str());
            paths.push(Written { path, shown, span: item.span });
        }
        Some(paths)
    }

    /// The variables of an included application: those of the one that includes it win over its own.
    fn variables(
        &mut self,
        env_files: Option<Vec<Written>>,
        directory: &std::path::Path,
        around: &Variables,
    ) -> Variables {
        let mut own = BTreeMap::new();
        match env_files {
            Some(files) => {
                for file in files.iter().filter(|file| file.path.as_os_str() != "/dev/null") {
                    let name = self.inputs.others.name(&file.path);
                    match read_other(self.inputs, &file.path) {
                        Ok(contents) => {
                            let file = InputFile { name: &name, path: &file.path, contents: &contents };
                            self.env_file(&file, around, &mut own);
                        }
                        Err(why) => {
                            let message = format!("the `env_file` {} can't be read: {why}", file.shown);
                            let looked_for = looked_for(&file.shown, &file.path);
                            self.sink.push(Diagnostic::error("no-file", message).at(file.span, looked_for));
                        }
                    }
                }
            }
            None => {
                let path = directory.join(".env");
                let name = self.inputs.others.name(&path);
                match self.inputs.others.read(&path) {
                    Ok(contents) => {
                        let file = InputFile { name: &name, path: &path, contents: &contents };
                        self.env_file(&file, around, &mut own);
                    }
                    Err(ReadError::NotFound) => {}
                    Err(ReadError::Other(why)) => {
                        self.sink.push(Diagnostic::error("dot-env", format!("{} can't be read: {why}", quoted(&name))));
                    }
                }
            }
        }
        own.extend(around.dot_env.iter().map(|(name, value)| (name.clone(), value.clone())));
        let dot_env = if own == *around.dot_env { Arc::clone(&around.dot_env) } else { Arc::new(own) };
        Variables { dot_env, ..around.clone() }
    }

    /// What was included, below what the tree itself says.
    fn import(&mut self, part: &Arc<Node>, whole: &Arc<Node>) -> Arc<Node> {
        let mut taken = Vec::new();
        let Data::Map(entries) = &part.data else { return Arc::clone(whole) };
        for entry in entries.iter().filter(|entry| TAKEN.contains(&entry.key.as_str())) {
            let mine = whole.get(&entry.key).map(|mine| &mine.value);
            let value = match (&entry.value.data, mine) {
                (Data::Map(theirs), Some(mine)) => {
                    let differs = |their: &&Entry| match mine.get(&their.key) {
                        Some(my) if Arc::ptr_eq(&my.value, &their.value) || merge::same(&my.value, &their.value) => {
                            false
                        }
                        Some(my) if entry.key != "x-palisade" => {
                            self.conflict(&entry.key, their, my);
                            true
                        }
                        _ => true,
                    };
                    entry.value.with(Data::Map(theirs.iter().filter(differs).cloned().collect()))
                }
                _ => Arc::clone(&entry.value),
            };
            taken.push(Entry { value, ..entry.clone() });
        }
        if !self.afford(part.weight(), part.span) {
            return Arc::clone(whole);
        }
        let below = Arc::new(Node::made(part.span, Data::Map(taken)));
        merge::merge(below, whole, &keys::TOP, self.sink)
    }

    /// Compose once refused this and now merges; either way the reader of the file should know.
    fn conflict(&mut self, section: &str, their: &Entry, my: &Entry) {
        let what = section.strip_suffix('s').unwrap_or(section);
        let message =
            format!("the {what} {} is defined here and in an included file: they are merged", quoted(&my.key));
        self.sink.push(
            Diagnostic::warning("include-conflict", message)
                .at(my.key_span, "this one's values win")
                .also(their.key_span, "included")
                .hint("if both are meant, give one of them another name; if this one changes the other, all is well"),
        );
    }
}
