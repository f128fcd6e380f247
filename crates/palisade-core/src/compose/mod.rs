//! A Compose file's text becomes a [`Stack`], or a list of everything that is wrong with it.
//!
//! No file is opened here: contents, variables and directories are parameters.
//!
//! The way: `yaml` (a tree with places) → `read`, `service`, `ports`, `mounts`, `palisade` (a [`ComposeFile`], as
//! written) → `validate` (names refer to something, nothing is in anything's way) → `settle` (the [`Stack`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::diagnostic::{Diagnostic, Severity, Sink, SourceMap, Span, quoted};
use crate::names::ProjectName;
use crate::stack::Stack;

mod capabilities;
mod dotenv;
mod file;
mod interpolate;
pub mod keys;
mod mounts;
mod palisade;
mod ports;
mod read;
mod service;
mod settle;
mod suggest;
mod units;
mod validate;
mod yaml;

pub use file::{ComposeFile, FileDependency, FileEgress, FileGrant, FileNetwork, FileService, NetworkMode, NetworkUse};

/// A bigger file is refused: reading stops making sense long before.
pub const FILE_BYTES_MAX: usize = 8 << 20;

/// All that is known about the world when a file is read.
#[derive(Clone, Copy)]
pub struct LoadInputs<'a> {
    /// The file's path as the user gave it, for messages.
    pub file_name: &'a str,
    /// Its contents. Of a file that is bigger than [`FILE_BYTES_MAX`], one byte more than that is enough.
    pub contents: &'a [u8],
    /// The absolute path of the folder that relative paths start from: the file's.
    pub project_dir: &'a Path,
    /// `--project-name`.
    pub project_name: Option<&'a str>,
    /// The environment of the command.
    pub environment: &'a BTreeMap<String, String>,
    /// The contents of `.env` in the project directory, if there is one.
    pub dot_env: Option<&'a [u8]>,
    /// Contents of the other files: those that `env_file` names.
    pub files: &'a dyn Files,
}

/// Where `env_file` contents come from. A map from absolute paths will do.
pub trait Files {
    /// The contents of the file at this absolute path.
    fn read(&self, path: &Path) -> Result<Vec<u8>, ReadError>;
}

/// Why there are no contents.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It isn't there.
    #[error("it does not exist")]
    NotFound,
    /// Something else, in words.
    #[error("{0}")]
    Other(String),
}

impl Files for BTreeMap<PathBuf, Vec<u8>> {
    fn read(&self, path: &Path) -> Result<Vec<u8>, ReadError> {
        self.get(path).cloned().ok_or(ReadError::NotFound)
    }
}

/// A file without mistakes.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What it means.
    pub stack: Stack,
    /// Warnings and notes.
    pub diagnostics: Vec<Diagnostic>,
    /// What the diagnostics point into.
    pub sources: SourceMap,
}

/// A file with mistakes.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{errors} in {file}", errors = count(.diagnostics), file = .file_name)]
pub struct Rejected {
    /// As the user gave it.
    pub file_name: String,
    /// All mistakes, and warnings and notes between them, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
    /// What the diagnostics point into.
    pub sources: SourceMap,
}

fn count(diagnostics: &[Diagnostic]) -> String {
    match diagnostics.iter().filter(|d| d.severity == Severity::Error).count() {
        1 => "1 mistake".into(),
        many => format!("{many} mistakes"),
    }
}

/// Variables for `${…}`: the environment, then `.env`.
pub(crate) struct Variables<'a> {
    environment: &'a BTreeMap<String, String>,
    dot_env: BTreeMap<String, String>,
    project: Option<String>,
}

impl Variables<'_> {
    pub(crate) fn get(&self, name: &str) -> Option<String> {
        let project = || self.project.as_ref().filter(|_| name == "COMPOSE_PROJECT_NAME");
        self.environment.get(name).or_else(|| self.dot_env.get(name)).or_else(project).cloned()
    }
}

/// Reads one Compose file and settles what it means.
pub fn load(inputs: &LoadInputs<'_>) -> Result<Loaded, Box<Rejected>> {
    let mut sources = SourceMap::default();
    let mut sink = Sink::default();
    let mut masked = Vec::new();
    let file = text_of(inputs).map_err(|problem| sink.push(*problem)).ok().and_then(|text| {
        let (file, after, secrets) = read(inputs, text, &mut sources, std::mem::take(&mut sink));
        (sink, masked) = (after, secrets);
        file
    });
    if let Some(file) = &file {
        validate::validate(file, &mut sink);
    }
    let stack = file.filter(|_| !sink.has_errors()).map(|file| settle::settle(file, &sources));
    sources.mask(&masked);
    let diagnostics = sink.finish();
    match stack {
        Some(stack) => Ok(Loaded { stack, diagnostics, sources }),
        None => Err(Box::new(Rejected { file_name: inputs.file_name.to_owned(), diagnostics, sources })),
    }
}

/// The file as text, if it can be.
fn text_of<'a>(inputs: &LoadInputs<'a>) -> Result<&'a str, Box<Diagnostic>> {
    let name = quoted(inputs.file_name);
    if inputs.contents.len() > FILE_BYTES_MAX {
        let limit = FILE_BYTES_MAX >> 20;
        let message = format!("{name} is larger than {limit} MiB, so it was not read");
        let hint = "is it a Compose file? A thousand services need about half a MiB";
        return Err(Box::new(Diagnostic::error("too-large", message).hint(hint)));
    }
    let text = std::str::from_utf8(inputs.contents).map_err(|error| {
        let line = inputs.contents[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        let message = format!("{name} is not UTF-8 text: the first wrong byte is in line {line}");
        let hint = "save it as UTF-8; if it is another kind of file, give the Compose file with `-f`";
        Box::new(Diagnostic::error("not-text", message).hint(hint))
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// From text to the file as written.
fn read(
    inputs: &LoadInputs<'_>,
    text: &str,
    sources: &mut SourceMap,
    mut sink: Sink,
) -> (Option<ComposeFile>, Sink, Vec<Span>) {
    let id = sources.add(inputs.file_name, text);
    let dot_env = dot_env(inputs, &mut sink);
    let mut variables = Variables { environment: inputs.environment, dot_env, project: None };
    let (root, problems) = yaml::parse(text, id);
    for problem in problems {
        sink.push(problem);
    }
    let Some(root) = root else { return (None, sink, Vec::new()) };
    if !matches!(root.data, yaml::Data::Map(_)) {
        let hint = "it begins with `services:`, and the services are indented below; if this is another kind of file, give the Compose file with `-f`";
        let diagnostic = if text.trim().is_empty() {
            Diagnostic::error("not-compose", format!("{} is empty", quoted(inputs.file_name)))
        } else {
            Diagnostic::error("not-compose", format!("a Compose file is a mapping, but this is {}", root.kind()))
                .at(first_line(text, root.span), "")
        };
        sink.push(diagnostic.hint(hint));
        return (None, sink, Vec::new());
    }
    let mut reader = read::Reader::new(&variables, sources, sink);
    let project = reader.project(&root, inputs);
    let (sink, _) = reader.finish();
    variables.project = project.as_ref().map(ToString::to_string);
    let mut reader = read::Reader::new(&variables, sources, sink);
    let file = reader.file(&root, inputs, project);
    let (sink, masked) = reader.finish();
    (file, sink, masked)
}

/// A value over many lines is pointed at in its first.
fn first_line(text: &str, span: Span) -> Span {
    let shown = text.get(span.start as usize..span.end as usize).unwrap_or_default();
    span.part(0, shown.lines().next().unwrap_or_default().len())
}

fn dot_env(inputs: &LoadInputs<'_>, sink: &mut Sink) -> BTreeMap<String, String> {
    let Some(bytes) = inputs.dot_env else { return BTreeMap::new() };
    let Ok(text) = std::str::from_utf8(bytes) else {
        sink.push(Diagnostic::error("dot-env", "`.env` is not UTF-8 text").hint("save it as UTF-8"));
        return BTreeMap::new();
    };
    match dotenv::parse(text, &|name| inputs.environment.get(name).cloned()) {
        Ok(variables) => variables.into_iter().filter_map(|(name, value)| Some((name, value?))).collect(),
        Err(problems) => {
            for problem in problems {
                let message = format!("line {} of `.env`: {}", problem.line, problem.what);
                sink.push(Diagnostic::error("dot-env", message).hint("lines are `NAME=value`, comments or empty"));
            }
            BTreeMap::new()
        }
    }
}

impl read::Reader<'_> {
    /// The project's name: from the option, COMPOSE_PROJECT_NAME, `name:`, or the directory.
    fn project(&mut self, root: &yaml::Node, inputs: &LoadInputs<'_>) -> Option<ProjectName> {
        let yaml::Data::Map(entries) = &root.data else { return None };
        let written = entries.iter().find(|entry| entry.key == "name" && !entry.value.is_null());
        let text = match written {
            Some(entry) => Some(self.text(&entry.value, "`name`")?),
            None => None,
        };
        let variable = self.variables.get("COMPOSE_PROJECT_NAME").filter(|name| !name.is_empty());
        let given = inputs.project_name.map(|name| (name.to_owned(), "--project-name"));
        if let Some((name, from)) = given.or_else(|| variable.map(|name| (name, "COMPOSE_PROJECT_NAME"))) {
            return ProjectName::parse(name.as_str())
                .map_err(|error| {
                    let message = format!("{} (from {from}) is not a valid project name", quoted(&name));
                    self.push(
                        Diagnostic::error("invalid-name", message).hint(format!("project names are {}", error.rule)),
                    );
                })
                .ok();
        }
        if let Some(text) = text {
            return match ProjectName::parse(text.value.as_str()) {
                Ok(name) => Some(name),
                Err(error) => {
                    let message = format!("{} is not a valid project name", text.quoted());
                    self.invalid(&text, message, &format!("project names are {}", error.rule))
                }
            };
        }
        let directory = inputs.project_dir.file_name().map(|name| name.to_string_lossy().to_lowercase());
        let mut name: String = directory.unwrap_or_default();
        name.retain(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_');
        name.truncate(63);
        ProjectName::parse(name.trim_start_matches(['-', '_']))
            .map_err(|_| {
                let message =
                    format!("the directory {} gives no project name", quoted(&inputs.project_dir.to_string_lossy()));
                self.push(Diagnostic::error("invalid-name", message).hint("add `name: …` at the top of the file"));
            })
            .ok()
    }

    fn file(
        &mut self,
        root: &yaml::Node,
        inputs: &LoadInputs<'_>,
        project: Option<ProjectName>,
    ) -> Option<ComposeFile> {
        let mut fields = self.fields(root, &keys::TOP)?;
        let mut file = ComposeFile {
            // Without a name there was an error, so that this one is never used.
            project: project.or_else(|| ProjectName::parse("invalid").ok())?,
            services: Vec::new(),
            networks: BTreeMap::new(),
            volumes: BTreeMap::new(),
            firewall_allow: Vec::new(),
            firewall_disabled: false,
        };
        fields.take("name");
        if let Some(node) = fields.value("networks") {
            self.top_networks(node, &mut file);
        }
        if let Some(node) = fields.value("volumes") {
            self.top_volumes(node, &mut file);
        }
        if let Some(node) = fields.value("x-palisade") {
            self.top_palisade(node, &mut file);
        }
        let services = fields.take("services");
        fields.finish();
        let entries = match services {
            Some(entry) => self.map(&entry.value, "`services`")?,
            None => &[],
        };
        if entries.is_empty() {
            let at = services.map_or(root.span, |entry| entry.key_span);
            self.push(
                Diagnostic::error("no-services", "this file has no services")
                    .at(at, "")
                    .hint("list what runs, indented below `services:`"),
            );
            return None;
        }
        for entry in entries {
            file.services.extend(self.service(entry, inputs));
        }
        Some(file)
    }

    fn top_networks(&mut self, node: &yaml::Node, file: &mut ComposeFile) {
        for entry in self.map(node, "`networks`").unwrap_or_default() {
            let mut internal = false;
            if !entry.value.is_null() {
                let Some(mut fields) = self.fields(&entry.value, &keys::NETWORK) else { continue };
                if let Some(node) = fields.value("driver") {
                    let hint = "every network is a group of services on one host: remove it";
                    self.parsed(node, "a network driver that Palisade has", hint, |text| {
                        matches!(text, "bridge" | "default").then_some(())
                    });
                }
                if let Some(node) = fields.value("internal") {
                    internal = self.bool(node, "`internal`").unwrap_or_default();
                }
                fields.finish();
            }
            file.networks.insert(entry.key.clone(), FileNetwork { span: entry.key_span, internal });
        }
    }

    fn top_volumes(&mut self, node: &yaml::Node, file: &mut ComposeFile) {
        for entry in self.map(node, "`volumes`").unwrap_or_default() {
            if !mounts::is_volume_name(&entry.key) {
                self.push(
                    Diagnostic::error("invalid-name", format!("{} is not a valid volume name", quoted(&entry.key)))
                        .at(entry.key_span, "")
                        .hint("volume names are letters, digits, `.`, `_` and `-`, and begin with a letter or digit"),
                );
            }
            file.volumes.insert(entry.key.clone(), entry.key_span);
            if entry.value.is_null() {
                continue;
            }
            if let Some(mut fields) = self.fields(&entry.value, &keys::VOLUME) {
                if let Some(node) = fields.value("driver") {
                    let hint = "mount it on the host, and use a bind mount";
                    self.parsed(node, "a volume driver that Palisade has", hint, |text| {
                        (text == "local").then_some(())
                    });
                }
                fields.finish();
            }
        }
    }
}
