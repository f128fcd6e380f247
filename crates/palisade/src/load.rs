//! Reads the Compose files that are meant and what belongs to them, and shows what is wrong with them.
//!
//! Which files those are is decided in `find`, what they mean in `palisade_core::compose`, which is given contents only.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use palisade_core::compose::canonical::{self, Value, View};
use palisade_core::compose::risk::Accepted;
use palisade_core::compose::{
    self, CertificateFlaw, FILE_BYTES_MAX, Files, InputFile, Leftovers, LoadInputs, ReadError, Rejected,
};
use palisade_core::diagnostic::{Diagnostic, Severity, SourceMap, Style, render_all};
use palisade_core::edge;
use palisade_core::finding::Finding;
use palisade_core::names::ProjectName;
use palisade_core::stack::Stack;
use palisade_edge::acme;
use serde_json::json;

use crate::cli::StackArgs;
use crate::exit::Failure;
use crate::progress::wants_color;

mod find;
use find::Found;

/// What messages call standard input.
const STDIN: &str = "<stdin>";

/// A file without mistakes.
pub(crate) struct Loaded {
    /// What it means.
    pub(crate) stack: Stack,
    /// Risks that are accepted in the file.
    pub(crate) accepted: Vec<Accepted>,
    /// The folder that relative paths start from.
    pub(crate) folder: PathBuf,
    diagnostics: Vec<Diagnostic>,
    risks: Vec<Diagnostic>,
    sources: SourceMap,
    _leftovers: Leftovers,
}

/// There is no stack to work with.
pub(crate) enum Unusable {
    /// The file has mistakes.
    Rejected(Box<Rejected>),
    /// There is no file, or it can't be read. Holds the message.
    NoFile(String),
}

impl Loaded {
    /// Shows warnings on standard error, and counts risks and notes: `check` tells them at length.
    pub(crate) fn print_warnings(&self) {
        let (notes, warnings): (Vec<_>, Vec<_>) = self.diagnostics.iter().partition(|d| d.severity == Severity::Note);
        eprint!("{}", render_all(warnings, &self.sources, style()));
        let counts = [(self.risks.len(), "risk"), (notes.len(), "note")];
        let told: Vec<_> = counts.iter().filter(|(number, _)| *number > 0).map(|(n, what)| counted(*n, what)).collect();
        if !told.is_empty() {
            eprintln!("{}: see `palisade check`", told.join(", "));
        }
    }
    /// Shows everything that is said about the files on standard error.
    pub(crate) fn print_all(&self) {
        eprint!("{}", render_all(in_order(&self.diagnostics, &self.risks), &self.sources, style()));
    }
    /// How many there are that nobody accepted.
    pub(crate) fn count(&self, severity: Severity) -> usize {
        self.diagnostics.iter().chain(&self.risks).filter(|diagnostic| diagnostic.severity == severity).count()
    }
    /// Risks that nobody accepted, as findings: about the file, at their lines.
    pub(crate) fn risk_findings(&self) -> Vec<Finding> {
        let each = self.risks.iter().map(|risk| {
            let place = risk.primary.as_ref().map(|label| self.sources.place(label.span));
            let subject = place.as_ref().map_or_else(|| self.stack.project.to_string(), |place| place.file.to_string());
            let hints = risk.hints.iter().map(String::as_str).chain(["or accept it: x-palisade.allow"]);
            let finding = Finding::warning(risk.id, subject, risk.message.as_str());
            Finding { why: risk.why, place, ..finding.remedy(hints.collect::<Vec<_>>().join("; ")) }
        });
        each.collect()
    }
    /// Everything that is said about the files, for programs.
    pub(crate) fn diagnostics_json(&self) -> serde_json::Value {
        to_json(&in_order(&self.diagnostics, &self.risks), &self.sources)
    }
}

impl Unusable {
    /// As the end of a run.
    pub(crate) fn into_failure(self) -> Failure {
        Failure::Input(match self {
            Self::Rejected(rejected) => {
                let text = render_all(&rejected.diagnostics, &rejected.sources, style());
                format!("{text}error: {rejected}; nothing was changed")
            }
            Self::NoFile(message) => message,
        })
    }
    /// The same, with the risks at full length.
    pub(crate) fn into_failure_with_risks(mut self) -> Failure {
        if let Self::Rejected(rejected) = &mut self {
            let risks = std::mem::take(&mut rejected.risks);
            rejected.diagnostics = in_order(&rejected.diagnostics, &risks).into_iter().cloned().collect();
        }
        self.into_failure()
    }
    /// The mistakes for programs, if there is a file.
    pub(crate) fn to_json(&self) -> Option<serde_json::Value> {
        match self {
            Self::Rejected(rejected) => {
                Some(to_json(&in_order(&rejected.diagnostics, &rejected.risks), &rejected.sources))
            }
            Self::NoFile(_) => None,
        }
    }
}

/// Reads the stack that is meant.
pub(crate) fn load(args: &StackArgs) -> Result<Loaded, Unusable> {
    load_with(args, false)
}

/// The same for whoever is about to start it: certificates that are given as files are looked into.
pub(crate) fn load_to_start(args: &StackArgs) -> Result<Loaded, Unusable> {
    load_with(args, true)
}

fn load_with(args: &StackArgs, certificates: bool) -> Result<Loaded, Unusable> {
    let read = |inputs: &LoadInputs<'_>| Ok((compose::load(inputs)?, inputs.project_dir.to_owned()));
    let ((loaded, folder), warnings) = with_inputs(args, certificates, read)?;
    Ok(Loaded {
        folder,
        stack: edge::with_services(loaded.stack),
        diagnostics: warnings.into_iter().chain(loaded.diagnostics).collect(),
        risks: loaded.risks,
        accepted: loaded.accepted,
        sources: loaded.sources,
        _leftovers: loaded.leftovers,
    })
}

/// The files that are meant, written out as one; what is to be said about them stands on standard error.
pub(crate) fn canonical(args: &StackArgs, view: View) -> Result<Value, Unusable> {
    let (canonical, warnings) = with_inputs(args, false, |inputs| canonical::canonical(inputs, view))?;
    let diagnostics: Vec<_> = warnings.into_iter().chain(canonical.diagnostics).collect();
    eprint!("{}", render_all(&diagnostics, &canonical.sources, style()));
    Ok(canonical.model)
}

/// Finds and reads the files and has them read as Compose files. With the result come warnings about the search.
fn with_inputs<T>(
    args: &StackArgs,
    certificates: bool,
    read_files: impl FnOnce(&LoadInputs<'_>) -> Result<T, Box<Rejected>>,
) -> Result<(T, Vec<Diagnostic>), Unusable> {
    let here = std::env::current_dir()
        .map_err(|error| Unusable::NoFile(format!("error: the current folder can't be read: {error}")))?;
    // A variable that isn't text can't be written in a Compose file either.
    let environment = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let Found { files, project_dir, env_files, profiles, warnings } = find::find(args, &here, &environment)?;
    let names: Vec<String> = files.iter().map(|file| find::shown(file, &here)).collect();
    let files = files.iter().zip(&names).map(|(path, name)| {
        let contents = match name.as_str() {
            STDIN => read_from(io::stdin().lock(), FILE_BYTES_MAX + 1),
            _ => read(path, FILE_BYTES_MAX + 1),
        };
        contents.map(|contents| (name, path, contents)).map_err(|error| cannot_read(name, &error))
    });
    let files = files.collect::<Result<Vec<_>, _>>()?;
    let files: Vec<_> = files.iter().map(|(name, path, contents)| InputFile { name, path, contents }).collect();
    let env_files: Vec<_> = env_files
        .iter()
        .map(|file| InputFile { name: &file.name, path: &file.path, contents: &file.contents })
        .collect();
    let inputs = LoadInputs {
        files: &files,
        project_dir: &project_dir,
        project_name: args.project_name.as_deref(),
        environment: &environment,
        profiles: &profiles,
        env_files: &env_files,
        others: &Disk { here, certificates },
    };
    match read_files(&inputs) {
        Ok(result) => Ok((result, warnings)),
        Err(mut rejected) => {
            rejected.diagnostics = warnings.into_iter().chain(std::mem::take(&mut rejected.diagnostics)).collect();
            Err(Unusable::Rejected(rejected))
        }
    }
}

/// The name of the stack. With `--project-name`, a stack can be looked at and taken down although its file is gone; without, although
/// something that it names is, or something else in it is wrong.
pub(crate) fn project(args: &StackArgs) -> Result<ProjectName, Failure> {
    match &args.project_name {
        Some(name) => ProjectName::parse(name.as_str()).map_err(|error| Failure::Input(format!("error: {error}"))),
        None => match load(args) {
            Ok(loaded) => Ok(loaded.stack.project),
            Err(Unusable::Rejected(mut rejected)) => match rejected.project.take() {
                Some(project) => Ok(project),
                None => Err(Unusable::Rejected(rejected).into_failure()),
            },
            Err(no_file) => Err(no_file.into_failure()),
        },
    }
}

fn cannot_read(name: &str, error: &io::Error) -> Unusable {
    Unusable::NoFile(format!("error: can't read {name}: {}", plain(error)))
}

/// What the system said, without its number.
fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "it does not exist".to_owned(),
        io::ErrorKind::PermissionDenied => "this user may not read it".to_owned(),
        io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
        _ => error.to_string(),
    }
}

/// At most so many bytes: a device or a huge file must not fill our memory.
fn read(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    read_from(File::open(path)?, bytes_max)
}

fn read_from(from: impl Read, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    from.take(bytes_max as u64).read_to_end(&mut contents)?;
    Ok(contents)
}

/// Files that the Compose files name.
struct Disk {
    /// Where the user stands.
    here: PathBuf,
    /// Given certificates are looked into.
    certificates: bool,
}

impl Files for Disk {
    fn read(&self, path: &Path) -> Result<Vec<u8>, ReadError> {
        read(path, FILE_BYTES_MAX + 1).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ReadError::NotFound,
            _ => ReadError::Other(plain(&error)),
        })
    }
    fn name(&self, path: &Path) -> String {
        find::shown(path, &self.here)
    }
    fn certificate_flaws(&self, chain: &[u8], key: &[u8], domains: &[&str]) -> Vec<CertificateFlaw> {
        if self.certificates { acme::flaws(chain, key, domains) } else { Vec::new() }
    }
}

pub(crate) fn style() -> Style {
    let color = io::stderr().is_terminal() && wants_color();
    Style { color, width: 120 }
}

/// In the order of the files; what has no place comes first.
fn in_order<'a>(diagnostics: &'a [Diagnostic], risks: &'a [Diagnostic]) -> Vec<&'a Diagnostic> {
    let mut all: Vec<_> = diagnostics.iter().chain(risks).collect();
    all.sort_by_key(|diagnostic| diagnostic.primary.as_ref().map(|label| (label.span.file, label.span.start)));
    all
}

/// `3 risks`.
pub(crate) fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// What is said about files of another kind, as text.
pub(crate) fn diagnostics_as_text(diagnostics: &[Diagnostic], sources: &SourceMap) -> String {
    render_all(diagnostics, sources, style())
}

/// The same for programs.
pub(crate) fn diagnostics_as_json(diagnostics: &[Diagnostic], sources: &SourceMap) -> serde_json::Value {
    to_json(&diagnostics.iter().collect::<Vec<_>>(), sources)
}

fn to_json(diagnostics: &[&Diagnostic], sources: &SourceMap) -> serde_json::Value {
    let one = |diagnostic: &&Diagnostic| {
        let place = diagnostic.primary.as_ref().map(|label| sources.place(label.span));
        let also = diagnostic.secondary.iter().chain(&diagnostic.elsewhere);
        let also: Vec<_> =
            also.map(|label| json!({ "place": sources.place(label.span), "text": label.text })).collect();
        json!({
            "severity": diagnostic.severity,
            "id": diagnostic.id,
            "message": diagnostic.message,
            "why": diagnostic.why,
            "place": place,
            "also": also,
            "hints": diagnostic.hints,
        })
    };
    diagnostics.iter().map(one).collect()
}
