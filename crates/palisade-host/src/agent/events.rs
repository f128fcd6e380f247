//! The event log of a stack: one JSON object a line, rotated by size.
//!
//! What happened is told by callers; nothing is interpreted here. Events never hold values of an environment.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use palisade_core::names::InstanceId;

use crate::layout::Layout;
use crate::runtime::logs::rfc3339;

/// The file is put aside (as `.1`) when it would grow beyond this.
const BYTES_MAX: u64 = 4 << 20;

/// A line of the event log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// RFC 3339, UTC.
    pub time: String,
    /// `started`, `start_failed`, `exited`, `restarting`, `stopped`, `health`; the guard adds its own.
    pub kind: String,
    /// Whom it is about, if it is about one instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceId>,
    /// What belongs to the kind.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub details: serde_json::Value,
}

/// Takes events from any thread. Clones write to the same file.
#[derive(Clone, Debug)]
pub struct EventSink(Arc<(Mutex<Sink>, Condvar)>);

#[derive(Debug)]
struct Sink {
    path: PathBuf,
    file: Option<File>,
    size_bytes: u64,
}

impl EventSink {
    /// The event log of the stack, to be continued.
    pub fn open(layout: &Layout) -> Self {
        Self::of(layout.events())
    }

    fn of(path: PathBuf) -> Self {
        Self(Arc::new((Mutex::new(Sink { path, file: None, size_bytes: 0 }), Condvar::new())))
    }

    /// Appends an event that happened now. A log that can't be written loses the event and stops nothing.
    pub fn append(&self, kind: &str, instance: Option<&InstanceId>, details: serde_json::Value) {
        let time = rfc3339(SystemTime::now());
        let event = Event { time, kind: kind.to_owned(), instance: instance.cloned(), details };
        let Ok(mut line) = serde_json::to_vec(&event) else { return };
        line.push(b'\n');
        let (sink, appended) = &*self.0;
        sink.lock().unwrap_or_else(PoisonError::into_inner).write(&line);
        appended.notify_all();
    }

    /// Until something is appended, and no longer than `timeout`. Who watches something should look at it now and then
    /// anyway: what was appended before this call isn't waited for.
    pub fn wait(&self, timeout: Duration) {
        let (sink, appended) = &*self.0;
        let guard = sink.lock().unwrap_or_else(PoisonError::into_inner);
        drop(appended.wait_timeout(guard, timeout));
    }
}

impl Sink {
    fn write(&mut self, line: &[u8]) {
        if self.size_bytes + line.len() as u64 > BYTES_MAX && self.size_bytes > 0 {
            self.file = None;
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            if fs::rename(&self.path, old).is_err() {
                return;
            }
        }
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            let Ok(file) = options.append(true).create(true).mode(0o600).open(&self.path) else { return };
            self.size_bytes = file.metadata().map_or(0, |metadata| metadata.len());
            self.file = Some(file);
        }
        if let Some(file) = &mut self.file
            && file.write_all(line).is_ok()
        {
            self.size_bytes += line.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_appended_and_old_ones_put_aside() {
        let path = std::env::temp_dir().join(format!("palisade-events-test-{}.jsonl", std::process::id()));
        let sink = EventSink::of(path.clone());
        sink.append("exited", None, serde_json::json!({"code": 3}));
        let event: Event = serde_json::from_str(fs::read_to_string(&path).unwrap().trim()).unwrap();
        assert_eq!((event.kind.as_str(), &event.details["code"]), ("exited", &serde_json::json!(3)));
        let long = "x".repeat(1 << 20);
        for _ in 0..9 {
            sink.append("long", None, serde_json::json!(long));
        }
        let old = PathBuf::from(format!("{}.1", path.display()));
        for file in [&path, &old] {
            let length = fs::metadata(file).unwrap().len();
            assert!(length > 0 && length <= BYTES_MAX, "{length}");
            fs::remove_file(file).unwrap();
        }
    }
}
