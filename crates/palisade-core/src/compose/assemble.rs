//! Several files become one tree: variables filled in, services extended, other files included, `-f` files merged.
//!
//! Every node keeps the place it came from, and the file of that place says what its relative paths and variables mean
//! ([`Origin`]). What keys mean is not looked at here, but for those that bring other files in.
//!
//! The order is the Compose Specification's (13-merge, 14-include, 05-services `extends`): each file has its variables
//! filled in and its services extended; then it is merged over the ones before it; then what it includes is added.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::yaml::{self, Data, Node};
use super::{FILE_BYTES_MAX, InputFile, LoadInputs, ReadError, dotenv, fill, keys, merge};
use crate::diagnostic::{Diagnostic, FileId, Sink, SourceMap, Span, quoted};
use crate::names::ProjectName;

/// Variables for `${…}`: the environment, then `.env`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Variables {
    pub(crate) environment: Rc<BTreeMap<String, String>>,
    pub(crate) dot_env: Rc<BTreeMap<String, String>>,
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
pub(crate) struct Origins(Vec<Rc<Origin>>);

impl Origins {
    pub(crate) fn of(&self, span: Span) -> &Origin {
        &self.0[span.file.index()]
    }
}

/// All files as one.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub(crate) root: Rc<Node>,
    pub(crate) origins: Origins,
    pub(crate) project: Option<ProjectName>,
}

pub(crate) struct Assembler<'a> {
    pub(crate) inputs: &'a LoadInputs<'a>,
    pub(crate) sources: &'a mut SourceMap,
    pub(crate) sink: &'a mut Sink,
    origins: Origins,
}

impl<'a> Assembler<'a> {
    pub(crate) fn new(inputs: &'a LoadInputs<'a>, sources: &'a mut SourceMap, sink: &'a mut Sink) -> Self {
        Self { inputs, sources, sink, origins: Origins::default() }
    }

    /// `None`: there is nothing that could be read on; why was reported.
    pub(crate) fn assemble(mut self) -> Option<Assembled> {
        let dot_env = self.env_files();
        let mut origin = Origin {
            directory: self.inputs.project_dir.to_owned(),
            variables: Variables {
                environment: Rc::new(self.inputs.environment.clone()),
                dot_env: Rc::new(dot_env),
                project: None,
            },
        };
        // All of them are parsed before any is filled in: the last one that has a `name` gives the project's.
        let parsed: Vec<_> = self.inputs.files.iter().map(|file| self.parse(file, &origin)).collect();
        let trees = parsed.into_iter().collect::<Option<Vec<_>>>()?;
        let project = self.project(&trees, &origin.variables);
        origin.variables.project = project.as_ref().map(ToString::to_string);
        let origin = Rc::new(origin);
        self.origins.0.iter_mut().for_each(|known| *known = Rc::clone(&origin));
        let mut merged: Option<Rc<Node>> = None;
        for tree in trees {
            let tree = fill::fill(&tree, &origin.variables, self.sources, self.sink);
            merged = Some(match merged {
                None => tree,
                Some(earlier) => merge::merge(&earlier, &tree, &keys::TOP, self.sink),
            });
        }
        Some(Assembled { root: merge::finish(&merged?, self.sink), origins: self.origins, project })
    }

    /// Adds a file to the source map and parses it. `None` when it can't be a Compose file.
    pub(crate) fn parse(&mut self, file: &InputFile<'_>, origin: &Origin) -> Option<Rc<Node>> {
        let text = text_of(file).map_err(|problem| self.sink.push(*problem)).ok()?;
        let Some(id) = self.sources.add(file.name, text) else {
            self.sink.push(
                Diagnostic::error("too-many", format!("{} is one file too many", quoted(file.name)))
                    .hint("put the services into fewer files"),
            );
            return None;
        };
        self.origins.0.push(Rc::new(origin.clone()));
        let (root, problems) = yaml::parse(text, id);
        for problem in problems {
            self.sink.push(problem);
        }
        let root = root?;
        if !matches!(root.data, Data::Map(_)) {
            let hint = "it begins with `services:`, and the services are indented below; if this is another kind of file, give the Compose file with `-f`";
            let diagnostic = if text.trim().is_empty() {
                Diagnostic::error("not-compose", format!("{} is empty", quoted(file.name)))
            } else {
                Diagnostic::error("not-compose", format!("a Compose file is a mapping, but this is {}", root.kind()))
                    .at(first_line(text, root.span), "")
            };
            self.sink.push(diagnostic.hint(hint));
            return None;
        }
        Some(root)
    }

    /// `.env`, or what `--env-file` names; a later one wins.
    fn env_files(&mut self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for file in self.inputs.env_files {
            let name = quoted(file.name);
            let Ok(text) = std::str::from_utf8(file.contents) else {
                let diagnostic = Diagnostic::error("dot-env", format!("{name} is not UTF-8 text"));
                self.sink.push(diagnostic.hint("save it as UTF-8"));
                continue;
            };
            match dotenv::parse(text, &|name| self.inputs.environment.get(name).or_else(|| all.get(name)).cloned()) {
                Ok(variables) => all.extend(variables.into_iter().filter_map(|(name, value)| Some((name, value?)))),
                Err(problems) => {
                    for problem in problems {
                        let message = format!("line {} of {name}: {}", problem.line, problem.what);
                        let diagnostic = Diagnostic::error("dot-env", message);
                        self.sink.push(diagnostic.hint("lines are `NAME=value`, comments or empty"));
                    }
                }
            }
        }
        all
    }

    /// The project's name: from the option, COMPOSE_PROJECT_NAME, the last `name:`, or the directory.
    fn project(&mut self, trees: &[Rc<Node>], variables: &Variables) -> Option<ProjectName> {
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
        let written = trees.iter().rev().filter_map(|tree| tree.get("name")).find(|entry| !entry.value.is_null());
        if let Some(entry) = written {
            // What is wrong with its variables is told when the whole tree is filled in.
            let value = fill::fill(&entry.value, variables, self.sources, &mut Sink::default());
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
    inputs.others.read(path).map_err(|error| match error {
        ReadError::NotFound => "it does not exist".to_owned(),
        ReadError::Other(why) => why,
    })
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
