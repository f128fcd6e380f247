//! Several files become one tree: variables filled in, services extended, other files included, `-f` files merged.
//!
//! Every node keeps the place it came from, and the file of that place says what its relative paths and variables mean
//! ([`Origin`]). What keys mean is not looked at here, but for those that bring other files in (`extends`, `include`)
//! and for `profiles`.
//!
//! The order is that of Compose: each document of a file has its variables filled in, gets what it includes, and has
//! its services extended; then it is merged over the ones before it.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::extends::Extended;
use super::file::looked_for;
use super::include::Included;
use super::keys::{self, Section};
use super::parse::{self, Trees};
use super::suggest::nearest;
use super::yaml::{self, Data, Entry, NODES_MAX, Node};
use super::{FILE_BYTES_MAX, InputFile, LoadInputs, dotenv, fill, masks, merge, profiles};
use crate::diagnostic::{Diagnostic, FileId, Sink, SourceMap, Span, quoted};
use crate::names::ProjectName;

/// So many Compose files make up a stack at most.
const FILES_MAX: usize = 1_000;
/// So large may all of them be together.
const ALL_BYTES_MAX: usize = 4 * FILE_BYTES_MAX;

/// Variables for `${…}`: the environment, then `.env`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Variables {
    pub(crate) environment: Arc<BTreeMap<String, String>>,
    pub(crate) dot_env: Arc<BTreeMap<String, String>>,
    pub(crate) project: Option<String>,
}

impl Variables {
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        let project = || self.project.as_ref().filter(|_| name == "COMPOSE_PROJECT_NAME");
        self.environment.get(name).or_else(|| self.dot_env.get(name)).or_else(project).cloned()
    }
}

/// What the text of one file refers to.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// Where its relative paths start: absolute.
    pub(crate) directory: PathBuf,
    pub(crate) variables: Variables,
}

/// One for each file of the source map.
#[derive(Debug, Default)]
pub(crate) struct Origins(Vec<Arc<Origin>>);

impl Origins {
    pub(crate) fn of(&self, span: Span) -> &Origin {
        &self.0[span.file.index()]
    }
}

/// All files as one.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub(crate) root: Arc<Node>,
    pub(crate) origins: Origins,
    pub(crate) project: Option<ProjectName>,
    /// Services that no active profile asks for: only their form is checked.
    pub(crate) inactive: Vec<Entry>,
}

/// One file whose variables aren't filled in yet.
pub(crate) struct Parsed {
    pub(crate) path: PathBuf,
    documents: Vec<Arc<Node>>,
}

/// Why a file is not even parsed.
enum Refusal {
    /// It is no text, or too large for one.
    NoText(Box<Diagnostic>),
    /// With it there are more than so many files, or bytes.
    NoRoom(String),
}

pub(crate) struct Assembler<'a> {
    pub(crate) inputs: &'a LoadInputs<'a>,
    pub(crate) sources: &'a mut SourceMap,
    pub(crate) sink: &'a mut Sink,
    origins: Origins,
    /// Values that no message may show.
    masked: &'a mut Vec<Span>,
    bytes: usize,
    nodes: u64,
    /// A limit was passed and told: nothing more is brought in.
    exhausted: bool,
    pub(crate) extended: Extended,
    pub(crate) included: Included,
}

impl<'a> Assembler<'a> {
    pub(crate) fn new(
        inputs: &'a LoadInputs<'a>,
        sources: &'a mut SourceMap,
        sink: &'a mut Sink,
        masked: &'a mut Vec<Span>,
    ) -> Self {
        Self {
            inputs,
            sources,
            sink,
            origins: Origins::default(),
            masked,
            bytes: 0,
            nodes: 0,
            exhausted: false,
            extended: Extended::default(),
            included: Included::default(),
        }
    }

    /// `None`: there is nothing that could be read on; why was reported.
    pub(crate) fn assemble(mut self) -> Option<Assembled> {
        let environment = Arc::new(self.inputs.environment.clone());
        let mut variables = Variables { environment, ..Variables::default() };
        variables.dot_env = Arc::new(self.env_files(&variables));
        let mut origin = Origin { directory: self.inputs.project_dir.to_owned(), variables };
        // All of them are parsed before any is filled in: the last one that has a `name` gives the project's.
        let early = Arc::new(origin.clone());
        let files = self.inputs.files;
        let admitted: Vec<_> = files.iter().map(|file| self.admit(file, &early)).collect();
        let texts: Vec<_> = admitted.iter().filter_map(|admitted| admitted.as_ref().ok().copied()).collect();
        let mut trees = parse::all(&texts).into_iter();
        let parsed = files.iter().zip(admitted).map(|(file, admitted)| {
            let trees = admitted.is_ok().then(|| trees.next()).flatten();
            self.take_in(file, admitted, trees)
        });
        let parsed: Vec<_> = parsed.collect();
        let files = parsed.into_iter().collect::<Option<Vec<_>>>()?;
        let project = self.project(&files, &origin.variables);
        origin.variables.project = project.as_ref().map(ToString::to_string);
        let origin = Arc::new(origin);
        self.origins.0.iter_mut().for_each(|known| *known = Arc::clone(&origin));
        let root = self.model(files)?;
        let root = merge::finish(&root, self.sink);
        let (root, inactive) = profiles::select(root, self.inputs, self.sink);
        Some(Assembled { root, origins: self.origins, project, inactive })
    }

    /// Files that make up one model: later ones are merged over earlier ones.
    pub(crate) fn model(&mut self, files: Vec<Parsed>) -> Option<Arc<Node>> {
        let mut merged: Option<Arc<Node>> = None;
        for file in files {
            self.included.open.push(file.path);
            for document in file.documents {
                let tree = self.fill(document);
                let tree = self.include(tree);
                let tree = self.extend(tree);
                merged = Some(match merged {
                    None => tree,
                    Some(earlier) => merge::merge(earlier, &tree, &keys::TOP, self.sink),
                });
            }
            self.included.open.pop();
        }
        merged
    }

    /// The documents of a file as one, filled in, with all their `extends` and `include` as written.
    pub(crate) fn as_written(&mut self, file: Parsed) -> Option<Arc<Node>> {
        let mut merged: Option<Arc<Node>> = None;
        for document in file.documents {
            let tree = self.fill(document);
            merged = Some(match merged {
                None => tree,
                Some(earlier) => merge::merge(earlier, &tree, &keys::TOP, self.sink),
            });
        }
        merged
    }

    fn fill(&mut self, document: Arc<Node>) -> Arc<Node> {
        masks::literals(&document, self.sources, self.masked);
        let origin = self.origin(document.span);
        fill::fill(document, &origin.variables, self.sources, self.sink)
    }

    /// The file that something was written in.
    pub(crate) fn origin(&self, span: Span) -> Arc<Origin> {
        Arc::clone(&self.origins.0[span.file.index()])
    }

    /// Counts values that were brought in or multiplied. `false`: it is too much, and nothing more must be made.
    pub(crate) fn afford(&mut self, nodes: u64, at: Span) -> bool {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > NODES_MAX && !self.exhausted {
            self.exhausted = true;
            let message = format!("put together, the files of this stack hold more than {NODES_MAX} values");
            let hint = "services that extend a large one multiply it: make it smaller, or split the stack";
            self.sink.push(Diagnostic::error("too-large", message).at(at, "this goes past the limit").hint(hint));
        }
        !self.exhausted
    }

    /// Reads and parses a file that another one names at `at`.
    pub(crate) fn bring(&mut self, path: &Path, written: &str, at: Span, origin: Origin) -> Option<Parsed> {
        if self.exhausted {
            return None;
        }
        let name = self.inputs.others.name(path);
        match read_other(self.inputs, path) {
            Ok(contents) => self.parse(&InputFile { name: &name, path, contents: &contents }, &Arc::new(origin)),
            Err(why) => {
                let diagnostic = Diagnostic::error("no-file", format!("{written} can't be read: {why}"));
                let looked_for = looked_for(written, path);
                let start = quoted(&self.origin(at).directory.to_string_lossy());
                self.sink.push(diagnostic.at(at, looked_for).hint(format!("relative paths start at {start} here")));
                None
            }
        }
    }

    /// Reports keys that the mapping can't have.
    pub(crate) fn known_keys(&mut self, node: &Node, section: &'static Section) {
        let Data::Map(entries) = &node.data else { return };
        for entry in entries {
            if section.key(&entry.key).is_some() || entry.key.starts_with("x-") {
                continue;
            }
            let names: Vec<_> = section.keys.iter().map(|key| key.name).collect();
            let hint = match nearest(&entry.key, names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("its keys are `{}`", names.join("`, `")),
            };
            let message = format!("{} is not a key of {}", quoted(&entry.key), section.what);
            self.sink.push(Diagnostic::error("unknown-key", message).at(entry.key_span, "unknown key").hint(hint));
        }
    }

    /// Says that something of another kind was expected.
    pub(crate) fn mistyped<T>(&mut self, node: &Node, what: &str, wanted: &str) -> Option<T> {
        let message = format!("{what} is {wanted}, but this is {}", node.kind());
        self.sink.push(Diagnostic::error("type", message).at(node.span, format!("expected {wanted}")));
        None
    }

    /// Adds a file to the source map and parses it. `None` when it can't be a Compose file.
    fn parse(&mut self, file: &InputFile<'_>, origin: &Arc<Origin>) -> Option<Parsed> {
        let admitted = self.admit(file, origin);
        let trees = admitted.as_ref().ok().map(|(id, text)| yaml::parse(text, *id));
        self.take_in(file, admitted, trees)
    }

    /// Adds a file to the source map, if it is text and there is room for it. Nothing is told yet, so that what is
    /// told stays in the order of the files.
    fn admit<'f>(&mut self, file: &InputFile<'f>, origin: &Arc<Origin>) -> Result<(FileId, &'f str), Refusal> {
        let text = text_of(file).map_err(Refusal::NoText)?;
        self.bytes = self.bytes.saturating_add(text.len());
        if self.origins.0.len() >= FILES_MAX {
            return Err(Refusal::NoRoom(format!("{FILES_MAX} files")));
        }
        if self.bytes > ALL_BYTES_MAX {
            return Err(Refusal::NoRoom(format!("{} MiB of files", ALL_BYTES_MAX >> 20)));
        }
        let id = self.sources.add(file.name, text).ok_or_else(|| Refusal::NoRoom(format!("{FILES_MAX} files")))?;
        self.origins.0.push(Arc::clone(origin));
        Ok((id, text))
    }

    /// The trees of a file that was admitted, or why there are none. `None` when it can't be a Compose file.
    fn take_in(
        &mut self,
        file: &InputFile<'_>,
        admitted: Result<(FileId, &str), Refusal>,
        trees: Option<Trees>,
    ) -> Option<Parsed> {
        let (id, text) = match admitted {
            Ok(admitted) => admitted,
            Err(Refusal::NoText(problem)) => {
                self.sink.push(*problem);
                return None;
            }
            Err(Refusal::NoRoom(limit)) => {
                if !std::mem::replace(&mut self.exhausted, true) {
                    let message = format!("with {}, this stack has more than {limit}", quoted(file.name));
                    let hint = "put the services into fewer files, or into several stacks";
                    self.sink.push(Diagnostic::error("too-large", message).hint(hint));
                }
                return None;
            }
        };
        let (documents, problems) = trees?;
        for problem in problems {
            self.sink.push(problem);
        }
        let mut documents = documents?;
        if documents.len() > 1 {
            // A `---` at the end, or above the first line, begins a document with nothing in it.
            documents.retain(|document| !document.is_null());
        }
        if documents.is_empty() {
            documents.push(Arc::new(Node::made(Span { file: id, start: 0, end: 0 }, Data::Null)));
        }
        for root in &documents {
            if !matches!(root.data, Data::Map(_)) {
                let hint = "it begins with `services:`, and the services are indented below; if this is another kind of file, give the Compose file with `-f`";
                let diagnostic = if text.trim().is_empty() {
                    Diagnostic::error("not-compose", format!("{} is empty", quoted(file.name)))
                } else {
                    let message = format!("a Compose file is a mapping, but this is {}", root.kind());
                    Diagnostic::error("not-compose", message).at(first_line(text, root.span), "")
                };
                self.sink.push(diagnostic.hint(hint));
                return None;
            }
            if !self.afford(root.weight(), root.span) {
                return None;
            }
        }
        Some(Parsed { path: join(Path::new("/"), file.path), documents })
    }

    /// `.env`, or what `--env-file` names; a later one wins.
    fn env_files(&mut self, known: &Variables) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for file in self.inputs.env_files {
            self.env_file(file, known, &mut all);
        }
        all
    }

    /// Adds the variables of one file to those of files before it; what is known already comes first in its `${…}`.
    pub(crate) fn env_file(&mut self, file: &InputFile<'_>, known: &Variables, all: &mut BTreeMap<String, String>) {
        let name = quoted(file.name);
        let Ok(text) = std::str::from_utf8(file.contents) else {
            let diagnostic = Diagnostic::error("dot-env", format!("{name} is not UTF-8 text"));
            self.sink.push(diagnostic.hint("save it as UTF-8"));
            return;
        };
        match dotenv::parse(text, &|name| known.get(name).or_else(|| all.get(name).cloned())) {
            Ok(lines) => {
                for warning in lines.warnings {
                    let message = format!("line {} of {name}: {}", warning.line, warning.what);
                    self.sink.push(Diagnostic::warning("unset-variable", message));
                }
                all.extend(lines.variables.into_iter().filter_map(|(name, value)| Some((name, value?))));
            }
            Err(problems) => {
                for problem in problems {
                    let message = format!("line {} of {name}: {}", problem.line, problem.what);
                    let diagnostic = Diagnostic::error("dot-env", message);
                    self.sink.push(diagnostic.hint("lines are `NAME=value`, comments or empty"));
                }
            }
        }
    }

    /// The project's name: from the option, COMPOSE_PROJECT_NAME, the last `name:`, or the directory.
    fn project(&mut self, files: &[Parsed], variables: &Variables) -> Option<ProjectName> {
        let rule = |error: crate::names::InvalidName| format!("project names are {}", error.rule);
        let variable = variables.get("COMPOSE_PROJECT_NAME").filter(|name| !name.is_empty());
        let given = self.inputs.project_name.map(|name| (name.to_owned(), "--project-name"));
        if let Some((name, from)) = given.or_else(|| variable.map(|name| (name, "COMPOSE_PROJECT_NAME"))) {
            return ProjectName::parse(name.as_str())
                .map_err(|error| {
                    let message = format!("{} (from {from}) is not a valid project name", quoted(&name));
                    self.sink.push(Diagnostic::error("invalid-name", message).hint(rule(error)));
                })
                .ok();
        }
        let trees = files.iter().flat_map(|file| &file.documents);
        let written = trees.rev().filter_map(|tree| tree.get("name")).find(|entry| !entry.value.is_null());
        if let Some(entry) = written {
            // What is wrong with its variables is told when the whole tree is filled in.
            let value = fill::fill(Arc::clone(&entry.value), variables, self.sources, &mut Sink::default());
            let Data::Scalar(scalar) = &value.data else {
                if !matches!(entry.value.data, Data::Scalar(_)) {
                    let message = format!("`name` is a single value, but this is {}", value.kind());
                    self.sink.push(Diagnostic::error("type", message).at(value.span, "expected a single value"));
                }
                return None;
            };
            return ProjectName::parse(scalar.text.as_str())
                .map_err(|error| {
                    let shown = quoted(scalar.written.as_deref().unwrap_or(&scalar.text));
                    let message = format!("{shown} is not a valid project name");
                    self.sink.push(Diagnostic::error("invalid-value", message).at(value.span, "").hint(rule(error)));
                })
                .ok();
        }
        let directory = self.inputs.project_dir.file_name().map(|name| name.to_string_lossy().to_lowercase());
        let mut name: String = directory.unwrap_or_default();
        name.retain(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_');
        name.truncate(63);
        ProjectName::parse(name.trim_start_matches(['-', '_']))
            .map_err(|_| {
                let directory = quoted(&self.inputs.project_dir.to_string_lossy());
                let message = format!("the directory {directory} gives no project name");
                self.sink.push(Diagnostic::error("invalid-name", message).hint("add `name: …` at the top of the file"));
            })
            .ok()
    }
}

/// A file that another one names, with a word about why it can't be read.
pub(crate) fn read_other(inputs: &LoadInputs<'_>, path: &Path) -> Result<Vec<u8>, String> {
    inputs.others.read(path).map_err(|error| error.to_string())
}

/// Where a path that is written in a file leads: without `.` and `..`, so that a file has one name only.
pub(crate) fn join(directory: &Path, written: impl AsRef<Path>) -> PathBuf {
    let mut joined = PathBuf::new();
    for part in directory.join(written).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                joined.pop();
            }
            part => joined.push(part),
        }
    }
    joined
}

/// Compose also fetches files from elsewhere; here that is refused.
pub(crate) fn is_remote(written: &str) -> bool {
    let schemes = ["https://", "http://", "git://", "ssh://", "oci://", "git@", "github.com/"];
    schemes.iter().any(|scheme| written.starts_with(scheme))
}

pub(crate) fn remote(what: &str, at: Span) -> Diagnostic {
    Diagnostic::error("remote-file", format!("{what} is not a file of this machine, and Palisade fetches nothing"))
        .at(at, "")
        .hint("fetch it yourself (`git clone`, `curl -O`), read it, and give the path of the copy")
}

/// The file as text, if it can be.
fn text_of<'f>(file: &InputFile<'f>) -> Result<&'f str, Box<Diagnostic>> {
    let name = quoted(file.name);
    if file.contents.len() > FILE_BYTES_MAX {
        let limit = FILE_BYTES_MAX >> 20;
        let message = format!("{name} is larger than {limit} MiB, so it was not read");
        let hint = "is it a Compose file? A thousand services need about half a MiB";
        return Err(Box::new(Diagnostic::error("too-large", message).hint(hint)));
    }
    let text = std::str::from_utf8(file.contents).map_err(|error| {
        let line = file.contents[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        let message = format!("{name} is not UTF-8 text: the first wrong byte is in line {line}");
        let hint = "save it as UTF-8; if it is another kind of file, give the Compose file with `-f`";
        Box::new(Diagnostic::error("not-text", message).hint(hint))
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// A value over many lines is pointed at in its first.
fn first_line(text: &str, span: Span) -> Span {
    let shown = text.get(span.start as usize..span.end as usize).unwrap_or_default();
    span.part(0, shown.lines().next().unwrap_or_default().len())
}

/// Only the files that were added here have an origin.
impl std::ops::Index<FileId> for Origins {
    type Output = Origin;
    fn index(&self, file: FileId) -> &Origin {
        &self.0[file.index()]
    }
}

#[cfg(test)]
mod tests;
