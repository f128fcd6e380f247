//! What was applied: addresses, policy and rules of a stack, kept below `/run` with mode 0600.
//!
//! It is what Palisade did, not what is so: the host is read afresh, and this only tells what to compare it with.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use palisade_core::address::AddressBook;
use palisade_core::digest::Fingerprint;
use palisade_core::firewall::FirewallRules;
use palisade_core::policy::Policy;
use palisade_core::stack::Stack;
use palisade_host::layout::Layout;
use palisade_host::whole_file;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// `state.json` of a stack.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Shape of this file.
    pub(crate) version: u32,
    /// Addresses of the services.
    pub(crate) addresses: AddressBook,
    /// As last brought up completely.
    pub(crate) stack: Option<Stack>,
    /// As last given to the guard.
    pub(crate) policy: Option<Policy>,
    /// As last given to the firewall. The host crate reads it as well, where the table is gone that tells it.
    pub(crate) firewall: Option<FirewallRules>,
}

/// `applied.json` of an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Applied {
    /// What its spec was made of.
    pub(crate) fingerprint: Fingerprint,
    /// What its hosts file was made of.
    pub(crate) hosts_digest: String,
}

/// A file of ours could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {} failed", path.display())]
pub(crate) struct StateError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl StateError {
    /// Whether the reason is that we are not root.
    pub(crate) fn is_permission(&self) -> bool {
        self.source.kind() == io::ErrorKind::PermissionDenied
    }
}

const VERSION: u32 = 1;

impl State {
    /// The stack's state; an empty one if there is none.
    pub(crate) fn read(layout: &Layout) -> Result<Self, StateError> {
        Ok(read_json(&layout.state())?.unwrap_or_default())
    }
    /// Replaces the file as a whole.
    pub(crate) fn write(&self, layout: &Layout) -> Result<(), StateError> {
        make_private_dir(&layout.run())?;
        write_json(&layout.state(), &Self { version: VERSION, ..self.clone() })
    }
}

/// Reads a JSON file; `None` if it isn't there.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StateError> {
    let failed = |source| StateError { operation: "reading", path: path.to_owned(), source };
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Writes a JSON file that only root reads: complete or not at all, also when we are killed meanwhile.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StateError> {
    let failed = |source| StateError { operation: "writing", path: path.to_owned(), source };
    let bytes = serde_json::to_vec(value).map_err(|error| failed(error.into()))?;
    whole_file::replace(path, &bytes, 0o600).map_err(failed)
}

/// Makes a folder that only root enters, and those above it.
pub(crate) fn make_private_dir(path: &Path) -> Result<(), StateError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| StateError {
        operation: "making",
        path: path.to_owned(),
        source,
    })
}

/// One `up` or `down` of a stack at a time: held until dropped, also by a process that is killed.
pub(crate) struct Lock(#[expect(dead_code, reason = "unlocks when it is dropped")] Flock<File>);

/// Somebody else has the lock.
#[derive(Debug)]
pub(crate) enum LockError {
    /// The process that has it, if it could be read.
    Held(Option<i32>),
    /// It could not be made.
    State(StateError),
}

impl Lock {
    /// Takes the lock at `path`, or says who has it.
    pub(crate) fn try_take(path: &Path) -> Result<Self, LockError> {
        Self::take_with(path, FlockArg::LockExclusiveNonblock)
    }
    /// Takes the lock at `path`; waits for whoever has it.
    pub(crate) fn take(path: &Path) -> Result<Self, LockError> {
        Self::take_with(path, FlockArg::LockExclusive)
    }

    fn take_with(path: &Path, how: FlockArg) -> Result<Self, LockError> {
        if let Some(folder) = path.parent() {
            make_private_dir(folder).map_err(LockError::State)?;
        }
        let failed = |source| LockError::State(StateError { operation: "locking", path: path.to_owned(), source });
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).to_owned();
        let file = options.open(path).map_err(failed)?;
        match Flock::lock(file, how) {
            Ok(mut file) => {
                let ours = file.metadata().map_err(failed)?.ino();
                if !fs::metadata(path).is_ok_and(|metadata| metadata.ino() == ours) {
                    // Whoever had it has removed the file: the lock that counts is another file's.
                    return Self::take_with(path, how);
                }
                file.set_len(0).map_err(failed)?;
                write!(file, "{}", std::process::id()).map_err(failed)?;
                Ok(Self(file))
            }
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                // Who has it is only said; that it is held is certain.
                let _ = file.read_to_string(&mut pid);
                Err(LockError::Held(pid.trim().parse().ok()))
            }
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn folder(test: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("palisade-test-{}-{test}", std::process::id()));
        make_private_dir(&folder).unwrap();
        folder
    }

    #[test]
    fn files_are_private_and_replaced_as_a_whole() {
        let folder = folder("state");
        let path = folder.join("state.json");
        assert_eq!(read_json::<State>(&path).unwrap(), None);
        let state = State { version: 7, ..State::default() };
        write_json(&path, &State::default()).unwrap();
        write_json(&path, &state).unwrap();
        assert_eq!(read_json::<State>(&path).unwrap(), Some(state));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing else is left");
        fs::write(&path, "{").unwrap();
        let error = read_json::<State>(&path).unwrap_err();
        assert!(error.to_string().starts_with("reading ") && !error.is_permission());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_second_taker_learns_who_has_the_lock() {
        let folder = folder("lock");
        let path = folder.join("lock");
        let first = Lock::try_take(&path).unwrap_or_else(|error| panic!("{error:?}"));
        let held = matches!(Lock::try_take(&path), Err(LockError::Held(Some(pid))) if pid == std::process::id() as i32);
        assert!(held);
        fs::remove_file(&path).unwrap();
        assert!(Lock::try_take(&path).is_ok(), "a lock whose file is gone is nobody's");
        drop(first);
        assert!(Lock::try_take(&path).is_ok());
        fs::remove_dir_all(folder).unwrap();
    }
}
