//! What of the edge's and the certificate worker's reports has become events already: kept in a file, so that the next
//! agent neither repeats nor loses what happens while there is none.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use palisade_core::edge::{AUTHORITIES_VOLUME, Report};
use palisade_host::layout::Layout;
use serde::{Deserialize, Serialize};

use crate::state::{read_json, write_json};

/// So much of what is told about certificates is passed on at once.
const EVENTS_BYTES_MAX: u64 = 1 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    certificates: Position,
    /// By the number of the edge's instance.
    instances: BTreeMap<u8, Seen>,
}

/// How far a file was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    inode: u64,
    offset: u64,
}

/// What an instance of the edge had reported when it was told last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    /// Requests refused, by route.
    pub(super) limited: BTreeMap<String, u64>,
    /// Connections that were reset, and how often none could be accepted.
    #[serde(default)]
    pub(super) reset: u64,
    #[serde(default)]
    pub(super) starved: u64,
    /// When each domain's certificate ends.
    pub(super) certificates: BTreeMap<String, u64>,
}

impl Seen {
    /// Refused since then, by route.
    pub(super) fn newly_limited(&self, report: &Report) -> Vec<(String, u64)> {
        let new = |(route, all): (&String, &u64)| {
            let mut before = self.limited.get(route).copied().unwrap_or(0);
            Some((route.clone(), since(&mut before, *all)?))
        };
        report.limited.iter().filter_map(new).collect()
    }
}

/// What was counted since it was `before`, which is now `all`, if anything was.
pub(super) fn since(before: &mut u64, all: u64) -> Option<u64> {
    // An edge that was started again counts from nothing.
    let new = if all < *before { all } else { all - *before };
    *before = all;
    (new > 0).then_some(new)
}

/// A line about certificates.
#[derive(Deserialize)]
pub(super) struct Told {
    pub(super) kind: String,
    pub(super) details: serde_json::Value,
}

/// [`Known`], and where it is kept.
pub(super) struct Kept {
    path: PathBuf,
    told: PathBuf,
    known: Known,
    written: Known,
}

impl Kept {
    pub(super) fn read(layout: &Layout) -> Self {
        let told = layout.volume(AUTHORITIES_VOLUME).join("events.jsonl");
        let path = layout.edge().join("passed-on.json");
        let written: Option<Known> = read_json(&path).unwrap_or_else(|error| {
            eprintln!("what of the edge was told before is told again: {error}");
            None
        });
        // What lies there before the first agent looks is of a stack that is no more.
        let known = written.clone().unwrap_or_else(|| {
            let there = fs::metadata(&told).map(|data| Position { inode: data.ino(), offset: data.len() });
            Known { certificates: there.unwrap_or_default(), instances: BTreeMap::new() }
        });
        Self { path, told, known, written: written.unwrap_or_default() }
    }

    pub(super) fn seen(&mut self, number: u8) -> &mut Seen {
        self.known.instances.entry(number).or_default()
    }

    /// An instance is gone; another one of its number counts anew.
    pub(super) fn forget(&mut self, number: u8) {
        self.known.instances.remove(&number);
    }

    /// What was told about certificates since it was asked last.
    pub(super) fn new_lines(&mut self) -> Vec<Told> {
        let position = self.known.certificates.clone();
        let mut lines = Vec::new();
        if let Some(open) = open(&self.told)
            && open.0 == position.inode
        {
            self.known.certificates.offset = read_from(open.1, position.offset, &mut lines);
            return lines;
        }
        // It was put aside and begun anew, unless there was none.
        if let Some((inode, file)) = open(&self.told.with_extension("jsonl.1"))
            && inode == position.inode
        {
            read_from(file, position.offset, &mut lines);
        }
        if let Some((inode, file)) = open(&self.told) {
            self.known.certificates = Position { inode, offset: read_from(file, 0, &mut lines) };
        }
        lines
    }

    /// Leaves it for the next agent.
    pub(super) fn keep(&mut self) -> Result<(), String> {
        if self.known != self.written {
            write_json(&self.path, &self.known).map_err(|error| crate::exit::chain(&error))?;
            self.written = self.known.clone();
        }
        Ok(())
    }
}

/// A file of the worker's and its inode. The folder belongs to whom the events come from: no link of his leads anywhere.
fn open(path: &Path) -> Option<(u64, File)> {
    let opened = File::options().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(path);
    let file = opened.ok()?;
    let metadata = file.metadata().ok()?;
    metadata.is_file().then_some((metadata.ino(), file))
}

/// Whole lines from there on; tells how far they go.
fn read_from(mut file: File, from: u64, lines: &mut Vec<Told>) -> u64 {
    // A file that is shorter was begun anew.
    let from = if file.metadata().is_ok_and(|metadata| metadata.len() < from) { 0 } else { from };
    let mut text = Vec::new();
    let read = file.seek(SeekFrom::Start(from)).and_then(|_| file.take(EVENTS_BYTES_MAX).read_to_end(&mut text));
    let Some(end) = text.iter().rposition(|byte| *byte == b'\n').filter(|_| read.is_ok()) else { return from };
    let whole = text[..end].split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Told>(line).ok());
    lines.extend(whole.filter(|told| told.kind.starts_with("certificate_")));
    from + end as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn kept(folder: &Path) -> Kept {
        let path = folder.join("passed-on.json");
        let known: Known = read_json(&path).unwrap().unwrap_or_default();
        Kept { path, told: folder.join("events.jsonl"), written: known.clone(), known }
    }

    fn kinds(kept: &mut Kept) -> Vec<String> {
        kept.new_lines().into_iter().map(|told| told.kind).collect()
    }

    #[test]
    fn what_was_told_while_nobody_read_is_read_once_also_past_a_new_file() {
        let folder = std::env::temp_dir().join(format!("palisade-known-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let tell = |kind: &str| {
            let mut file = File::options().append(true).create(true).open(folder.join("events.jsonl")).unwrap();
            writeln!(file, "{{\"kind\": \"{kind}\", \"details\": {{}}}}").unwrap();
        };
        tell("certificate_a");
        let mut first = kept(&folder);
        assert_eq!(kinds(&mut first), ["certificate_a"]);
        first.seen(1).limited.insert("a/".to_owned(), 7);
        first.keep().unwrap();
        tell("certificate_b");
        tell("something_else");
        fs::rename(folder.join("events.jsonl"), folder.join("events.jsonl.1")).unwrap();
        tell("certificate_c");
        let mut second = kept(&folder);
        assert_eq!(kinds(&mut second), ["certificate_b", "certificate_c"]);
        assert_eq!(kinds(&mut second), [""; 0]);
        tell("certificate_d");
        assert_eq!(kinds(&mut second), ["certificate_d"]);
        let report = |times| Report { limited: [("a/".to_owned(), times)].into(), ..Report::default() };
        assert_eq!(second.seen(1).newly_limited(&report(9)), [("a/".to_owned(), 2)]);
        assert_eq!(second.seen(1).newly_limited(&report(7)), []);
        assert_eq!(second.seen(1).newly_limited(&report(3)), [("a/".to_owned(), 3)], "it was started again");
        fs::remove_dir_all(folder).unwrap();
    }
}
