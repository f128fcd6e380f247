//! The log of an instance: lines of its output with time and stream, in files that are rotated by size.
//!
//! Every line is `<RFC 3339 time> stdout|stderr F|P <text>`, the format that Kubernetes runtimes write: `P` marks a piece
//! of a line that goes on in the next one. The init process writes, and the agent adds what hooks print; what reads and
//! follows lives elsewhere.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use palisade_core::calendar::Moment;
use palisade_core::stack::LogRotation;

/// Longer lines are written in pieces: a service that never ends its line must not fill our memory.
const PIECE_BYTES_MAX: usize = 16 << 10;

/// A log being written. It holds its directory open, so it works after the host's tree has gone out of view.
pub(super) struct Log {
    directory: OwnedFd,
    name: String,
    file: Option<File>,
    size_bytes: u64,
    rotation: LogRotation,
    out: Vec<u8>,
}

/// One of the two streams, with the beginning of a line that hasn't ended yet.
pub(super) struct Stream {
    name: &'static str,
    partial: Vec<u8>,
}

impl Stream {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, partial: Vec::new() }
    }
}

/// The log of a container, whose lines come from its engine with their times.
pub(crate) struct Shipped {
    log: Log,
    out: Stream,
    err: Stream,
}

impl Shipped {
    /// Opens the log, to be continued if it is there.
    pub(crate) fn open(path: &Path, rotation: LogRotation) -> io::Result<Self> {
        Ok(Self { log: Log::open(path, rotation)?, out: Stream::new("stdout"), err: Stream::new("stderr") })
    }

    /// The engine's time (nanoseconds, without trailing zeros) as the log writes it, so that the texts have the order of
    /// the times.
    pub(crate) fn time(&self, engines: &str) -> String {
        let (seconds, fraction) =
            engines.trim_end_matches('Z').split_once('.').unwrap_or((engines.trim_end_matches('Z'), ""));
        format!("{seconds}.{:0<6.6}Z", fraction)
    }

    /// Writes what a stream gave.
    pub(crate) fn take(&mut self, stream: &str, time: &str, bytes: &[u8]) {
        let stream = if stream == "stderr" { &mut self.err } else { &mut self.out };
        self.log.take_at(stream, time, bytes);
    }

    /// Writes what is left of lines that never ended.
    pub(crate) fn finish(&mut self, time: &str) {
        for stream in [&mut self.out, &mut self.err] {
            if !stream.partial.is_empty() {
                self.log.take_at(stream, time, b"\n");
            }
        }
    }
}

/// Adds lines to the log of an instance whose init process writes it too: each comes whole, and rotating stays its part.
pub(crate) fn append(path: &Path, output: &[u8]) -> io::Result<()> {
    let mut log = Log::open(path, LogRotation { max_bytes: u64::MAX, max_files: 1 })?;
    let mut stream = Stream::new("stdout");
    log.take(&mut stream, output);
    log.finish(&mut stream);
    Ok(())
}

impl Log {
    /// Opens the log, to be continued if it is there.
    pub(super) fn open(path: &Path, rotation: LogRotation) -> io::Result<Self> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(parent)?;
        let directory = OwnedFd::from(File::open(parent)?);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut log = Self { directory, name, file: None, size_bytes: 0, rotation, out: Vec::new() };
        log.reopen()?;
        Ok(log)
    }

    fn reopen(&mut self) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = File::from(openat(&self.directory, self.name.as_str(), flags, Mode::from_bits_truncate(0o640))?);
        self.size_bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Takes what a stream gave and writes the lines that are complete.
    pub(super) fn take(&mut self, stream: &mut Stream, bytes: &[u8]) {
        self.take_at(stream, &rfc3339(SystemTime::now()), bytes);
    }

    fn take_at(&mut self, stream: &mut Stream, time: &str, bytes: &[u8]) {
        let prefix = format!("{time} {} ", stream.name);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            let mut text = text;
            while stream.partial.len() + text.len() > PIECE_BYTES_MAX {
                let (now, later) = text.split_at(PIECE_BYTES_MAX - stream.partial.len());
                self.line(&prefix, b"P ", &stream.partial, now);
                stream.partial.clear();
                text = later;
            }
            if ended {
                self.line(&prefix, b"F ", &stream.partial, text);
                stream.partial.clear();
            } else {
                stream.partial.extend_from_slice(text);
            }
        }
        self.flush();
    }

    /// Writes what is left of a line that never ended.
    pub(super) fn finish(&mut self, stream: &mut Stream) {
        if !stream.partial.is_empty() {
            let prefix = format!("{} {} ", rfc3339(SystemTime::now()), stream.name);
            let text = std::mem::take(&mut stream.partial);
            self.line(&prefix, b"F ", &text, b"");
            self.flush();
        }
    }

    fn line(&mut self, prefix: &str, tag: &[u8], first: &[u8], rest: &[u8]) {
        let length = (prefix.len() + tag.len() + first.len() + rest.len() + 1) as u64;
        if self.size_bytes > 0 && self.size_bytes + length > self.rotation.max_bytes {
            self.flush();
            // When it fails (no space, no directory), the log stops growing instead of filling the disk.
            if self.rotate().is_err() {
                self.file = None;
            }
        }
        self.size_bytes += length;
        for part in [prefix.as_bytes(), tag, first, rest, b"\n"] {
            self.out.extend_from_slice(part);
        }
    }

    /// A disk that is full loses lines; it must not stop the service.
    fn flush(&mut self) {
        if self.file.is_none() && self.reopen().is_err() {
            self.out.clear();
            return;
        }
        if let Some(file) = &mut self.file {
            let _ = file.write_all(&self.out);
        }
        self.out.clear();
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file = None;
        let directory = self.directory.as_fd();
        let numbered = |number: u32| if number == 0 { self.name.clone() } else { format!("{}.{number}", self.name) };
        let last = self.rotation.max_files.max(1) - 1;
        let oldest = numbered(last);
        match unlinkat(directory, oldest.as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(nix::Error::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        for number in (0..last).rev() {
            match renameat(directory, numbered(number).as_str(), directory, numbered(number + 1).as_str()) {
                Ok(()) | Err(nix::Error::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.reopen()
    }
}

/// `2026-11-23T04:05:06.789012Z`.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:06}Z", Moment::at(since.as_secs()).date_and_time(), since.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_rfc_3339() {
        // date -u -d @… +%FT%TZ
        for (seconds, text) in
            [(0, "1970-01-01T00:00:00"), (951_782_400, "2000-02-29T00:00:00"), (1_795_406_706, "2026-11-23T04:05:06")]
        {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), format!("{text}.000000Z"));
        }
    }

    #[test]
    fn lines_are_marked_long_ones_split_and_files_rotated() {
        let directory = std::env::temp_dir().join(format!("palisade-log-test-{}", std::process::id()));
        let path = directory.join("a.1.log");
        let mut log = Log::open(&path, LogRotation { max_bytes: 40_000, max_files: 2 }).unwrap();
        let mut out = Stream::new("stdout");
        log.take(&mut out, b"one\ntw");
        log.take(&mut out, b"o\n");
        log.take(&mut out, &[b'x'; PIECE_BYTES_MAX + 1]);
        log.finish(&mut out);
        let text = std::fs::read_to_string(&path).unwrap();
        let tails: Vec<&str> = text.lines().map(|line| line.split_once(' ').unwrap().1).collect();
        assert_eq!(&tails[..2], ["stdout F one", "stdout F two"]);
        assert_eq!(tails[2].len(), "stdout P ".len() + PIECE_BYTES_MAX);
        assert_eq!(tails[3], "stdout F x");
        for _ in 0..100 {
            log.take(&mut out, &[b'y'; 9_999]);
            log.take(&mut out, b"\n");
        }
        let sizes: Vec<u64> =
            std::fs::read_dir(&directory).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().all(|size| *size <= 40_000), "{sizes:?}");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
