//! Where generations of a stack are kept: each in a folder of its own that is complete or isn't there.
//!
//! What changed between two is decided in `palisade_core::generation`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use palisade_core::digest::digest_of;
use palisade_core::generation::{Changes, Generation, Origin};
use palisade_core::observed::Observed;
use palisade_core::stack::Stack;
use palisade_host::layout::Layout;
use serde_json::{Value, json};

use crate::state::{StateError, make_private_dir};

/// So many are kept.
const KEPT: usize = 10;
/// Shape of `generation.json`.
const VERSION: u64 = 1;

/// A generation that can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GenerationError {
    /// There is none of this number.
    #[error("there is no generation {0}")]
    Missing(u64),
    /// Another version wrote it.
    #[error("generation {number} has format {found}, and this palisade reads format {VERSION}")]
    Version {
        /// Which.
        number: u64,
        /// Its format.
        found: u64,
    },
    /// It isn't as it was written.
    #[error("generation {number} is damaged: {} {what}", path.display())]
    Damaged {
        /// Which.
        number: u64,
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// It could not be read or written.
    #[error("{operation} {} failed", path.display())]
    Io {
        /// "reading" …
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// A folder could not be made.
    #[error(transparent)]
    State(#[from] StateError),
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> GenerationError {
    move |source| GenerationError::Io { operation, path: path.to_owned(), source }
}

fn file(layout: &Layout, number: u64) -> PathBuf {
    layout.generations().join(number.to_string()).join("generation.json")
}

/// Numbers of those that are there, the oldest first.
pub(crate) fn numbers(layout: &Layout) -> Result<Vec<u64>, GenerationError> {
    let folder = layout.generations();
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("reading", &folder)(error)),
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut numbers: Vec<u64> = names.collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads one.
pub(crate) fn read(layout: &Layout, number: u64) -> Result<Generation, GenerationError> {
    let path = file(layout, number);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.parent().is_some_and(Path::exists) => {
            return Err(GenerationError::Missing(number));
        }
        Err(error) => return Err(failed("reading", &path)(error)),
    };
    let damaged = |what: String| GenerationError::Damaged { number, path: path.clone(), what };
    let mut whole: Value = serde_json::from_slice(&bytes).map_err(|_| damaged("isn't JSON".into()))?;
    match whole["version"].as_u64() {
        Some(VERSION) => {}
        Some(found) => return Err(GenerationError::Version { number, found }),
        None => return Err(damaged("says no version".into())),
    }
    let content = whole["generation"].take();
    if whole["digest"].as_str() != Some(&digest_of(&content)) {
        return Err(damaged("isn't as it was written".into()));
    }
    // The message of the parser may show values.
    let generation: Generation =
        serde_json::from_value(content).map_err(|_| damaged("holds something else than a generation".into()))?;
    if generation.number != number {
        return Err(damaged(format!("is of generation {}", generation.number)));
    }
    Ok(generation)
}

/// Keeps what was brought up, if it differs from what was kept last; says under which number.
pub(crate) fn record(
    layout: &Layout,
    stack: &Stack,
    host: &Observed,
    origin: Origin,
) -> Result<Option<u64>, GenerationError> {
    let known = numbers(layout)?;
    let last = known.last().copied();
    let number = last.unwrap_or(0) + 1;
    let images = host.engine.seen().map(|engine| engine.images.clone()).unwrap_or_default();
    let made_at_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let command = std::env::args().skip(1).collect();
    let generation = Generation { number, made_at_s, origin, user: user(), command, stack: stack.clone(), images };
    // One that can't be read is no reason to keep nothing.
    let before = last.and_then(|last| read(layout, last).ok());
    if before.is_some_and(|before| Changes::between(&before, &generation).is_empty()) {
        return Ok(None);
    }
    write(layout, &generation)?;
    for old in known.iter().rev().skip(KEPT - 1) {
        let folder = layout.generations().join(old.to_string());
        fs::remove_dir_all(&folder).map_err(failed("deleting", &folder))?;
    }
    Ok(Some(number))
}

fn write(layout: &Layout, generation: &Generation) -> Result<(), GenerationError> {
    let folder = layout.generations();
    // Those above are for volumes, too, and let users through.
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent).map_err(failed("making", parent))?;
    }
    make_private_dir(&folder)?;
    let new = folder.join("new");
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("deleting", &new)(error)),
        _ => {}
    }
    make_private_dir(&new)?;
    let path = new.join("generation.json");
    let written = || {
        let content = serde_json::to_value(generation)?;
        let whole = json!({ "version": VERSION, "digest": digest_of(&content), "generation": content });
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(&serde_json::to_vec(&whole)?)?;
        file.sync_all()?;
        File::open(&new)?.sync_all()
    };
    written().map_err(failed("writing", &path))?;
    let place = folder.join(generation.number.to_string());
    fs::rename(&new, &place).and_then(|()| File::open(&folder)?.sync_all()).map_err(failed("writing", &place))
}

/// Forgets all of them, with the secrets in them.
pub(crate) fn remove_all(layout: &Layout) -> Result<(), GenerationError> {
    let folder = layout.generations();
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("deleting", &folder)(error)),
        _ => Ok(()),
    }
}

/// Who typed the command, also when it was with sudo.
fn user() -> String {
    let of_sudo = std::env::var("SUDO_USER").ok().filter(|name| !name.is_empty());
    of_sudo.unwrap_or_else(|| {
        let uid = nix::unistd::getuid();
        nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
    })
}
