//! The log's files: appended to, put aside when one is full, and never grown beyond what was said.

use memchr::{memchr_iter, memrchr};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    bytes_max: u64,
    files: u32,
    /// `None`: it has yet to be opened.
    open: Option<File>,
}

/// Why lines weren't written, and how many.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) lines_lost: u64,
    pub(super) source: io::Error,
}

impl LogFile {
    pub(super) fn new(path: &Path, bytes_max: u64, files: u32) -> Self {
        Self { path: path.to_owned(), bytes_max: bytes_max.max(1), files, open: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes whole lines, into as many files as they need.
    pub(super) fn write(&mut self, mut lines: &[u8]) -> Result<(), Failed> {
        while !lines.is_empty() {
            match self.write_some(lines) {
                Ok(written) => lines = lines.get(written..).unwrap_or_default(),
                Err(source) => {
                    self.open = None;
                    return Err(Failed { lines_lost: memchr_iter(b'\n', lines).count() as u64, source });
                }
            }
        }
        Ok(())
    }

    /// Writes what the current file has room for, or one line if the file is empty.
    fn write_some(&mut self, lines: &[u8]) -> io::Result<usize> {
        let mut file = match self.open.take() {
            Some(open) => open,
            None => OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path)?,
        };
        // During an update two edges append to it.
        let length = file.metadata()?.len();
        let room = usize::try_from(self.bytes_max.saturating_sub(length)).unwrap_or(usize::MAX);
        let fitting = match lines.get(..room) {
            None => lines.len(),
            Some(head) => memrchr(b'\n', head).map_or(0, |end| end + 1),
        };
        let whole = match fitting {
            0 if length == 0 => memchr_iter(b'\n', lines).next().map_or(lines.len(), |end| end + 1),
            0 => {
                drop(file);
                self.rotate()?;
                return Ok(0);
            }
            fitting => fitting,
        };
        append(&mut file, length, lines.get(..whole).unwrap_or(lines))?;
        self.open = Some(file);
        Ok(whole)
    }

    /// `log` becomes `log.1`, that `log.2`, and the last one goes.
    fn rotate(&self) -> io::Result<()> {
        let numbered = |number: u32| match number {
            0 => self.path.clone(),
            number => PathBuf::from(format!("{}.{number}", self.path.display())),
        };
        if self.files <= 1 {
            return std::fs::remove_file(&self.path);
        }
        for number in (0..self.files - 1).rev() {
            match std::fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Writes these lines behind what is there. Half a line is worse than none, so what can't be written whole is taken back, unless
/// somebody else has written more. A device has no length.
fn append(file: &mut File, length: u64, lines: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < lines.len() {
        match file.write(lines.get(written..).unwrap_or_default()) {
            Ok(more @ 1..) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            failed => {
                if file.metadata()?.len() == length + written as u64 {
                    let _ = file.set_len(length);
                }
                return Err(failed.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into()));
            }
        }
    }
    Ok(())
}
