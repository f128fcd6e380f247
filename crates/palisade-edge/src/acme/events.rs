//! What the worker has to tell: one JSON object a line, in the form of the stack's event log.
//!
//! `time` (RFC 3339, UTC), `kind` (all begin with `certificate_`) and `details`, in which `domain` says whose certificate it is about.

pub(super) use palisade_core::calendar::rfc3339;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file is put aside (as `.1`) when it would grow beyond this.
const BYTES_MAX: u64 = 1 << 20;

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
        let file = File::options().append(true).create(true).mode(0o600).open(&self.path);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}
