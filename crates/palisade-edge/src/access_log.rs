//! The access log: one line for each request, written by a thread of its own that no request waits for.
//!
//! Workers append whole lines to one buffer. The writer wakes when something is in it, gathers for a moment, and writes all of it at
//! once. What finds no room is dropped and counted; so is what can't be written. That is said once, and once more when it is over.

mod file;
mod line;

pub use line::{Entry, Seen, Unread};

use file::LogFile;
use palisade_core::edge::{AccessLog, LogFormat};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What waits to be written, at most.
const WAITING_BYTES_MAX: usize = 4 << 20;
/// A buffer that was once larger is given back.
const KEPT_BYTES_MAX: usize = 256 << 10;
/// Lines are gathered for so long.
const GATHER: Duration = Duration::from_millis(200);

/// The log, as workers see it.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    format: LogFormat,
    query: bool,
    writer: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Whoever panicked has appended a whole line or none.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// Starts the writer. A file that can't be opened is no reason not to serve: it is tried again with each batch of lines, and
    /// `say` is told.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start(path: &Path, settings: AccessLog, say: impl Fn(String) + Send + 'static) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let file = LogFile::new(path, settings.file_bytes_max, settings.files);
        let theirs = Arc::clone(&shared);
        let writer =
            std::thread::Builder::new().name("edge-log".to_owned()).spawn(move || write(&theirs, file, &say))?;
        Ok(Self { shared, format: settings.format, query: settings.query, writer: Some(writer) })
    }

    /// A request has come: what is known of it now. It is logged when the result is dropped.
    pub fn begin(self: &Arc<Self>, seen: &Seen<'_>) -> Entry {
        Entry::new(Arc::clone(self), self.format, self.query, seen)
    }

    /// Logs a request that couldn't be read.
    pub fn unread(&self, unread: &Unread<'_>) {
        self.append(&[&unread.line(self.format, self.query)]);
    }

    /// Lines that were lost since the start.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    fn append(&self, parts: &[&[u8]]) {
        let mut waiting = self.shared.lock();
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        if waiting.lines.len() + bytes > WAITING_BYTES_MAX {
            drop(waiting);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let first = waiting.lines.is_empty();
        for part in parts {
            waiting.lines.extend_from_slice(part);
        }
        drop(waiting);
        // The writer sleeps only while there is nothing.
        if first {
            self.shared.changed.notify_one();
        }
    }
}

impl Drop for Log {
    /// Everything that was logged is written.
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn write(shared: &Shared, mut file: LogFile, say: &dyn Fn(String)) {
    let mut lines = Vec::new();
    let mut failing = false;
    loop {
        let mut waiting = shared.lock();
        while waiting.lines.is_empty() && !waiting.ended {
            waiting = shared.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        if !waiting.ended {
            let end = |waiting: &mut Waiting| !waiting.ended;
            waiting = match shared.changed.wait_timeout_while(waiting, GATHER, end) {
                Ok((waiting, _)) => waiting,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        std::mem::swap(&mut waiting.lines, &mut lines);
        let ended = waiting.ended;
        drop(waiting);
        match file.write(&lines) {
            Ok(()) if failing => {
                failing = false;
                let dropped = shared.dropped.load(Ordering::Relaxed);
                say(format!(
                    "the access log {} is written again; {dropped} lines were lost so far",
                    file.path().display()
                ));
            }
            Ok(()) => {}
            Err(failed) => {
                shared.dropped.fetch_add(failed.lines_lost, Ordering::Relaxed);
                if !failing {
                    failing = true;
                    let (path, source) = (file.path().display(), failed.source);
                    say(format!(
                        "can't write the access log {path}: {source}; requests are served and not logged meanwhile"
                    ));
                }
            }
        }
        lines.clear();
        if lines.capacity() > KEPT_BYTES_MAX {
            lines = Vec::new();
        }
        if ended && shared.lock().lines.is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
