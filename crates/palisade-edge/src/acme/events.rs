//! What the worker has to tell: one JSON object a line, in the form of the stack's event log.
//!
//! `time` (RFC 3339, UTC), `kind` (all begin with `certificate_`) and `details`, in which `domain` says whose certificate it is about.

use nix::fcntl::{FallocateFlags, fallocate};
pub(super) use palisade_core::calendar::rfc3339;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file is put aside (as `.1`) when it would grow beyond this.
const BYTES_MAX: u64 = 1 << 20;
/// Some hundred events.
const RESERVED_BYTES: i64 = 64 << 10;

/// Appends to `events.jsonl` in the worker's folder, and says the same on standard error.
#[derive(Clone, Debug)]
pub(super) struct Events {
    path: PathBuf,
}

impl Events {
    pub(super) fn in_folder(state: &Path) -> Self {
        Self { path: state.join("events.jsonl") }
    }

    /// Tells that something happened. A file that can't be written loses the event and stops nothing.
    pub(super) fn tell(&self, kind: &str, domain: &str, mut details: Value, now_s: u64) {
        details["domain"] = json!(domain);
        let line = format!("{}\n", json!({ "time": rfc3339(now_s), "kind": kind, "details": details }));
        eprint!("{line}");
        let full = fs::metadata(&self.path).is_ok_and(|data| data.len() + line.len() as u64 > BYTES_MAX);
        if full {
            let _ = fs::rename(&self.path, self.path.with_extension("jsonl.1"));
        }
        let _ = self.append(line.as_bytes());
        self.reserve();
    }

    fn append(&self, line: &[u8]) -> io::Result<()> {
        let mut file = self.open()?;
        let length = file.metadata()?.len();
        file.write_all(line).inspect_err(|_| {
            // Half a line would spoil the next one.
            let _ = file.set_len(length);
        })
    }

    /// Keeps room for the next events, so that a full disk can be told of. Where a file system can't do that, it is done without.
    pub(super) fn reserve(&self) {
        let reserved = || {
            let file = self.open()?;
            let length = i64::try_from(file.metadata()?.len()).unwrap_or(i64::MAX / 2);
            Ok::<_, io::Error>(fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, length, RESERVED_BYTES)?)
        };
        let _ = reserved();
    }

    fn open(&self) -> io::Result<File> {
        File::options().append(true).create(true).mode(0o600).open(&self.path)
    }
}
