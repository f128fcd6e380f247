//! Finds and reads the Compose file and what belongs to it, and shows what is wrong with it.
//!
//! What it means is decided in `palisade_core::compose`, which is given contents only.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use palisade_core::compose::{self, FILE_BYTES_MAX, Files, InputFile, LoadInputs, ReadError, Rejected};
use palisade_core::diagnostic::{Diagnostic, SourceMap, Style, render_all};
use palisade_core::names::ProjectName;
use palisade_core::stack::Stack;
use serde_json::{Value, json};

use crate::cli::StackArgs;
use crate::exit::Failure;
use crate::progress::wants_color;

/// Names that Compose looks for, in its order.
const NAMES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];

/// A file without mistakes.
pub(crate) struct Loaded {
    /// What it means.
    pub(crate) stack: Stack,
    diagnostics: Vec<Diagnostic>,
    sources: SourceMap,
}

/// There is no stack to work with.
pub(crate) enum Unusable {
    /// The file has mistakes.
    Rejected(Box<Rejected>),
    /// There is no file, or it can't be read. Holds the message.
    NoFile(String),
}

impl Loaded {
    /// Shows warnings and notes on standard error.
    pub(crate) fn print_warnings(&self) {
        eprint!("{}", render_all(&self.diagnostics, &self.sources, style()));
    }
    /// Warnings and notes for programs.
    pub(crate) fn warnings_json(&self) -> Value {
        to_json(&self.diagnostics, &self.sources)
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
    /// The mistakes for programs, if there is a file.
    pub(crate) fn to_json(&self) -> Option<Value> {
        match self {
            Self::Rejected(rejected) => Some(to_json(&rejected.diagnostics, &rejected.sources)),
            Self::NoFile(_) => None,
        }
    }
}

/// The one file that is meant.
pub(crate) fn path(args: &StackArgs) -> Result<PathBuf, Unusable> {
    Ok(match args.files.as_slice() {
        [] => find(
            &std::env::current_dir()
                .map_err(|error| Unusable::NoFile(format!("error: the current folder can't be read: {error}")))?,
        )?,
        [file] => file.clone(),
        [first, second, ..] => {
            return Err(Unusable::NoFile(format!(
                "error: {} and {} can't be merged: this version reads one file\n  hint: `docker compose -f {} -f {} config` prints them as one",
                first.display(),
                second.display(),
                first.display(),
                second.display()
            )));
        }
    })
}

/// Reads the stack that is meant.
pub(crate) fn load(args: &StackArgs) -> Result<Loaded, Unusable> {
    let path = path(args)?;
    let contents = read(&path, FILE_BYTES_MAX + 1).map_err(|error| cannot_read(&path, &error))?;
    let absolute = std::path::absolute(&path).map_err(|error| cannot_read(&path, &error))?;
    let project_dir = absolute.parent().unwrap_or(Path::new("/"));
    let dot_env = match &args.env_file {
        Some(file) => Some(read(file, FILE_BYTES_MAX).map_err(|error| cannot_read(file, &error))?),
        None => match read(&project_dir.join(".env"), FILE_BYTES_MAX) {
            Ok(bytes) => Some(bytes),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => None,
            Err(error) => return Err(cannot_read(&project_dir.join(".env"), &error)),
        },
    };
    let dot_env_path = args.env_file.clone().unwrap_or_else(|| project_dir.join(".env"));
    let dot_env_name = args.env_file.as_ref().map_or(".env".to_owned(), |file| file.display().to_string());
    let dot_env = dot_env.as_deref().map(|contents| InputFile { name: &dot_env_name, path: &dot_env_path, contents });
    // A variable that isn't text can't be written in a Compose file either.
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let file_name = path.display().to_string();
    let inputs = LoadInputs {
        files: &[InputFile { name: &file_name, path: &absolute, contents: &contents }],
        project_dir,
        project_name: args.project_name.as_deref(),
        environment: &environment,
        profiles: &[],
        env_files: dot_env.as_slice(),
        others: &Disk,
    };
    match compose::load(&inputs) {
        Ok(compose::Loaded { stack, diagnostics, sources }) => Ok(Loaded { stack, diagnostics, sources }),
        Err(rejected) => Err(Unusable::Rejected(rejected)),
    }
}

/// The name of the stack. With `--project-name`, a stack can be looked at and taken down although its file is gone.
pub(crate) fn project(args: &StackArgs) -> Result<ProjectName, Failure> {
    match &args.project_name {
        Some(name) => ProjectName::parse(name.as_str()).map_err(|error| Failure::Input(format!("error: {error}"))),
        None => Ok(load(args).map_err(Unusable::into_failure)?.stack.project),
    }
}

/// The first file of a usual name in the folder or those above it, as Compose looks.
fn find(folder: &Path) -> Result<PathBuf, Unusable> {
    for above in folder.ancestors() {
        for name in NAMES {
            let path = above.join(name);
            if path.is_file() {
                // Messages are easier to read with the short name.
                return Ok(if above == folder { name.into() } else { path });
            }
        }
    }
    Err(Unusable::NoFile(format!(
        "error: there is no {} in {} or the folders above it\n  hint: give the file with `palisade -f FILE …`",
        NAMES.join(", "),
        folder.display()
    )))
}

fn cannot_read(path: &Path, error: &io::Error) -> Unusable {
    Unusable::NoFile(format!("error: can't read {}: {}", path.display(), plain(error)))
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
    let mut contents = Vec::new();
    File::open(path)?.take(bytes_max as u64).read_to_end(&mut contents)?;
    Ok(contents)
}

/// Files that `env_file` names.
struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> Result<Vec<u8>, ReadError> {
        read(path, FILE_BYTES_MAX).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ReadError::NotFound,
            _ => ReadError::Other(plain(&error)),
        })
    }
}

fn style() -> Style {
    let color = io::stderr().is_terminal() && wants_color();
    Style { color, width: 120 }
}

fn to_json(diagnostics: &[Diagnostic], sources: &SourceMap) -> Value {
    let one = |diagnostic: &Diagnostic| {
        let place = diagnostic.primary.as_ref().map(|label| sources.place(label.span));
        json!({
            "severity": diagnostic.severity,
            "id": diagnostic.id,
            "message": diagnostic.message,
            "place": place,
            "hints": diagnostic.hints,
        })
    };
    diagnostics.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_file_of_the_first_name_is_found() {
        let root = std::env::temp_dir().join(format!("palisade-test-{}-find", std::process::id()));
        let inner = root.join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        let found = |folder: &Path| find(folder).ok();
        std::fs::write(root.join("docker-compose.yml"), "").unwrap();
        assert_eq!(found(&inner), Some(root.join("docker-compose.yml")));
        std::fs::write(root.join("a/docker-compose.yaml"), "").unwrap();
        std::fs::write(root.join("a/compose.yml"), "").unwrap();
        assert_eq!(found(&inner), Some(root.join("a/compose.yml")));
        assert_eq!(found(&root.join("a")), Some("compose.yml".into()));
        std::fs::remove_dir_all(root).unwrap();
    }
}
