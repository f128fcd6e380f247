//! A Compose file's text becomes a [`Stack`], or a list of everything that is wrong with it.
//!
//! No file is opened here: contents, variables and directories are parameters.
//!
//! The way: `yaml` (a tree with places) → `assemble` (variables filled in, several files as one) → `read`, `service`, `ports`, `mounts`, `palisade` (a [`ComposeFile`], as
//! written) → `validate` (names refer to something, nothing is in anything's way) → `settle` (the [`Stack`]).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::diagnostic::{Diagnostic, Severity, Sink, SourceMap, quoted};
use crate::lockout::Confirm;
use crate::names::ProjectName;
use crate::stack::{BackendChoice, Stack};

mod ascii;
mod assemble;
pub mod canonical;
mod capabilities;
mod container;
mod dotenv;
pub mod edge;
mod extends;
mod file;
mod fill;
mod include;
mod interpolate;
pub mod keys;
mod limits;
mod masks;
mod merge;
mod mounts;
mod palisade;
mod parse;
mod ports;
mod profiles;
mod provided;
mod read;
pub mod risk;
mod service;
mod settings;
mod settle;
mod shaped;
pub(crate) mod suggest;
mod top;
mod units;
mod validate;
mod words;
pub(crate) mod yaml;

pub use self::palisade::confirm_ms;
pub use file::{
    Absent, ComposeFile, FileAllow, FileDependency, FileEgress, FileGrant, FileLink, FileNetwork, FileProvided,
    FileReference, FileService, FileVolume, FileVolumesFrom, NetworkMode, NetworkUse,
};

/// A bigger file is refused: reading stops making sense long before.
pub const FILE_BYTES_MAX: usize = 8 << 20;

/// One file that was given.
#[derive(Clone, Copy, Debug)]
pub struct InputFile<'a> {
    /// The path as the user gave it, for messages.
    pub name: &'a str,
    /// The absolute path.
    pub path: &'a Path,
    /// Its contents. Of a file that is bigger than [`FILE_BYTES_MAX`], one byte more than that is enough.
    pub contents: &'a [u8],
}

/// All that is known about the world when files are read.
#[derive(Clone, Copy)]
pub struct LoadInputs<'a> {
    /// The `-f` files in their order, at least one.
    pub files: &'a [InputFile<'a>],
    /// The absolute path of the folder that relative paths start from: the first file's, or `--project-directory`.
    pub project_dir: &'a Path,
    /// `--project-name`.
    pub project_name: Option<&'a str>,
    /// `--profile`s and those of COMPOSE_PROFILES.
    pub profiles: &'a [String],
    /// The environment of the command.
    pub environment: &'a BTreeMap<String, String>,
    /// `.env` of the project directory if there is one, or the `--env-file`s.
    pub env_files: &'a [InputFile<'a>],
    /// Contents of the other files: those that `env_file`, `extends`, `include`, `secrets` and `configs` name.
    pub others: &'a dyn Files,
}

/// Where `env_file` contents come from. A map from absolute paths will do.
pub trait Files {
    /// The contents of the file at this absolute path.
    fn read(&self, path: &Path) -> Result<Vec<u8>, ReadError>;
    /// What messages call the file: short, from where the user stands.
    fn name(&self, path: &Path) -> String {
        path.display().to_string()
    }
    /// What is wrong with a certificate that these domains are to be served with, in PEM. Whoever can't look into one finds nothing.
    fn certificate_flaws(&self, _chain: &[u8], _key: &[u8], _domains: &[&str]) -> Vec<CertificateFlaw> {
        Vec::new()
    }
}

/// Something that is wrong with a certificate that is given as files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateFlaw {
    /// The key is another certificate's.
    OtherKey,
    /// It is for others.
    OtherNames {
        /// Who was to be served with it.
        domain: String,
        /// Who it is for.
        names: Vec<String>,
    },
    /// It can't be used at all, and why.
    Unusable(String),
    /// It can be served, and clients refuse it; why they do.
    Refused(String),
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
    /// Risks that nobody accepted, in the order of the file.
    pub risks: Vec<Diagnostic>,
    /// Risks that somebody did.
    pub accepted: Vec<risk::Accepted>,
    /// What the diagnostics point into.
    pub sources: SourceMap,
    /// What is left of reading.
    pub leftovers: Leftovers,
}

/// What nobody needs any more. To take it apart takes time, which a command that ends soon need not spend.
#[derive(Clone, Debug)]
pub struct Leftovers {
    _tree: Arc<yaml::Node>,
}

/// A file with mistakes.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{errors} in {file}", errors = count(.diagnostics), file = .file_name)]
pub struct Rejected {
    /// As the user gave it.
    pub file_name: String,
    /// What the stack is called, if at least that could be read.
    pub project: Option<ProjectName>,
    /// All mistakes, and warnings and notes between them, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
    /// Risks that nobody accepted, in the order of the file.
    pub risks: Vec<Diagnostic>,
    /// Risks that somebody did.
    pub accepted: Vec<risk::Accepted>,
    /// What the diagnostics point into.
    pub sources: SourceMap,
}

fn count(diagnostics: &[Diagnostic]) -> String {
    match diagnostics.iter().filter(|d| d.severity == Severity::Error).count() {
        1 => "1 mistake".into(),
        many => format!("{many} mistakes"),
    }
}

/// What `.env` or `--env-file`s set; later ones win. What is wrong in them is left out: [`load`] reports it.
pub fn variables(files: &[InputFile<'_>], environment: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for file in files {
        let text = String::from_utf8_lossy(file.contents);
        let known = |name: &str| environment.get(name).or_else(|| all.get(name)).cloned();
        let read = dotenv::parse(&text, &known).unwrap_or_default();
        all.extend(read.variables.into_iter().filter_map(|(name, value)| Some((name, value?))));
    }
    all
}

/// A file that is both included and extended is read for each; what is wrong with it is told once.
fn once(diagnostics: Vec<Diagnostic>, sources: &SourceMap) -> Vec<Diagnostic> {
    let mut told = std::collections::HashSet::new();
    let place = |diagnostic: &Diagnostic| diagnostic.primary.as_ref().map(|label| sources.place(label.span));
    let new = |diagnostic: &Diagnostic| told.insert((diagnostic.id, diagnostic.message.clone(), place(diagnostic)));
    let mut diagnostics = diagnostics;
    diagnostics.retain(new);
    diagnostics
}

/// Reads Compose files and settles what they mean.
pub fn load(inputs: &LoadInputs<'_>) -> Result<Loaded, Box<Rejected>> {
    let mut sources = SourceMap::default();
    let mut sink = Sink::default();
    let mut masked = Vec::new();
    let assembled = assemble::Assembler::new(inputs, &mut sources, &mut sink, &mut masked).assemble();
    let mut risks = risk::Risks::default();
    let project = assembled.as_ref().and_then(|assembled| assembled.project.clone());
    let read = assembled.and_then(|assembled| {
        let mut reader = read::Reader::new(&assembled.origins, std::mem::take(&mut sink));
        let file = reader.file(&assembled.root, inputs, assembled.project);
        reader.form_only(&assembled.inactive, inputs);
        sink = reader.finish();
        if let Some(file) = &file {
            validate::validate(file, &mut sink);
            if let Some(edge) = &file.edge {
                validate::given_certificates(edge, inputs.others, &mut sink);
            }
            let (root, origins) = (&assembled.root, &assembled.origins);
            risks = risk::examine(risk::Sight { file, root, origins, sources: &sources, others: inputs.others });
        }
        Some((file?, Leftovers { _tree: assembled.root }))
    });
    masked.append(&mut risks.masked);
    for note in risks.notes {
        sink.push(note);
    }
    let mut settled =
        read.filter(|_| !sink.has_errors()).map(|(file, leftovers)| (settle::settle(file, &sources), leftovers));
    for (service, unguarded) in risks.unguarded {
        if let Some(service) = settled.as_mut().and_then(|(stack, _)| stack.services.get_mut(service)) {
            service.unguarded = unguarded;
        }
    }
    sources.mask(&masked);
    let diagnostics = masks::without_secrets(once(sink.finish(), &sources), inputs);
    let (risks, accepted) = (masks::without_secrets(risks.diagnostics, inputs), risks.accepted);
    match settled {
        Some((stack, leftovers)) => Ok(Loaded { stack, diagnostics, risks, accepted, sources, leftovers }),
        None => {
            let names: Vec<_> = inputs.files.iter().map(|file| file.name).collect();
            Err(Box::new(Rejected { file_name: names.join(", "), project, diagnostics, risks, accepted, sources }))
        }
    }
}

impl read::Reader<'_> {
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
            secrets: BTreeMap::new(),
            configs: BTreeMap::new(),
            allow: Vec::new(),
            firewall_allow: Vec::new(),
            firewall_backend: BackendChoice::default(),
            firewall_confirm: Confirm::default(),
            edge: None,
        };
        fields.take("name");
        // What it names was brought in when the files were put together.
        fields.take("include");
        if let Some(node) = fields.value("networks") {
            self.top_networks(node, &mut file);
        }
        if let Some(node) = fields.value("volumes") {
            self.top_volumes(node, &mut file);
        }
        for (name, secret) in [("secrets", true), ("configs", false)] {
            let Some(node) = fields.value(name) else { continue };
            for entry in self.map(node, &quoted(name)).unwrap_or_default() {
                let provided = self.provided(entry, secret, inputs);
                let all = if secret { &mut file.secrets } else { &mut file.configs };
                all.insert(entry.key.to_string(), provided);
            }
        }
        if let Some(node) = fields.value("x-palisade") {
            self.top_palisade(node, &mut file, inputs);
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

    /// Services that aren't part of the stack: what is written must be right, but files that they name may be missing.
    fn form_only(&mut self, services: &[yaml::Entry], inputs: &LoadInputs<'_>) {
        let before = std::mem::take(&mut self.sink);
        for entry in services {
            self.service(entry, inputs);
        }
        let found = std::mem::replace(&mut self.sink, before);
        for diagnostic in
            found.finish().into_iter().filter(|diagnostic| !matches!(diagnostic.id, "env-file" | "label-file"))
        {
            self.sink.push(diagnostic);
        }
    }
}
