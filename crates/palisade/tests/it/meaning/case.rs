//! The table of a case, read.
//!
//! ```text
//! What the case shows.
//! speakers web db db
//!
//! app → db:5432              db
//! app → web:8080/udp         no        web       why it is otherwise under Palisade
//! ```
//!
//! Columns are two spaces apart: the question, the answer under Docker, and where Palisade's is another one, that and the
//! reason. Questions are asked from inside a service, from a process of the `host`, or from the `internet`:
//!
//! - `A → NAME:PORT[/udp][ by hand][ ×N]`: who answers there; `by hand` resolves like programs without the C library do,
//!   `×N` asks so many times. `@NAME` is the service's address without its name; `host`, `host6`, `internet` are theirs.
//! - `A binds SPEC`: how a bind went.
//! - `events TEXT`: what `palisade events` says in the end.
//! - `palisade refuses TEXT`: the file isn't run, with this message.
//!
//! An answer is the name of who answered; `closed` (refused as where nobody listens), `no` (not reached, in whichever
//! manner), `unknown` (the name means nothing), `-` (not asked there).

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// A folder with a Compose file and a table.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    /// The first line of the table.
    pub(crate) title: String,
    /// What runs, once for each instance.
    pub(crate) speakers: Vec<String>,
    pub(crate) probes: Vec<Probe>,
}

/// A line of the table.
pub(crate) struct Probe {
    /// As written.
    pub(crate) text: String,
    pub(crate) question: Question,
    /// The answer under Docker.
    pub(crate) docker: String,
    /// The answer under Palisade and the reason, where it is another one.
    pub(crate) differs: Option<(String, String)>,
}

/// What is asked.
pub(crate) enum Question {
    Reach { from: String, host: String, port: u16, udp: bool, by_hand: bool, times: u32 },
    Binds { from: String, spec: String },
    Events { part: String },
    Refuses { part: String },
}

impl Case {
    /// All of them, by name.
    pub(crate) fn all() -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/cases/meaning");
        let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let only = std::env::var("MEANING_CASE").ok();
        let mut cases: Vec<_> = entries.filter(|path| path.is_dir()).map(|path| Self::read(&path)).collect();
        cases.retain(|case| only.as_ref().is_none_or(|only| *only == case.name));
        cases.sort_by(|one, other| one.name.cmp(&other.name));
        assert!(!cases.is_empty());
        cases
    }

    fn read(folder: &Path) -> Self {
        let path = folder.join("probes");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let title = lines.next().unwrap().to_owned();
        let speakers = lines.next().and_then(|line| line.strip_prefix("speakers ")).unwrap();
        Self {
            name: folder.file_name().unwrap().to_string_lossy().into_owned(),
            folder: folder.to_owned(),
            title,
            speakers: speakers.split_whitespace().map(str::to_owned).collect(),
            probes: lines
                .map(|line| Probe::read(line).unwrap_or_else(|| panic!("{}: {line}", path.display())))
                .collect(),
        }
    }
}

impl Probe {
    fn read(line: &str) -> Option<Self> {
        let mut columns = line.split("  ").map(str::trim).filter(|column| !column.is_empty());
        let text = columns.next()?.to_owned();
        let docker = columns.next()?.to_owned();
        let differs = match (columns.next(), columns.next(), columns.next()) {
            (None, None, None) => None,
            (Some(answer), Some(why), None) => Some((answer.to_owned(), why.to_owned())),
            _ => return None,
        };
        let question = Question::read(&text)?;
        Some(Self { text, question, docker, differs })
    }

    /// What is expected under Palisade.
    pub(crate) fn ours(&self) -> &str {
        self.differs.as_ref().map_or(&self.docker, |(answer, _)| answer)
    }
}

impl Question {
    fn read(text: &str) -> Option<Self> {
        if let Some(part) = text.strip_prefix("events ") {
            return Some(Self::Events { part: part.to_owned() });
        }
        if let Some(part) = text.strip_prefix("palisade refuses ") {
            return Some(Self::Refuses { part: part.to_owned() });
        }
        if let Some((from, spec)) = text.split_once(" binds ") {
            return Some(Self::Binds { from: from.to_owned(), spec: spec.to_owned() });
        }
        let (from, to) = text.split_once(" → ")?;
        let mut words = to.split(' ');
        let (place, udp) = match words.next()? {
            place if place.ends_with("/udp") => (place.strip_suffix("/udp")?, true),
            place => (place, false),
        };
        let (host, port) = place.rsplit_once(':')?;
        let rest: Vec<&str> = words.collect();
        let times = rest.iter().find_map(|word| word.strip_prefix('×'));
        Some(Self::Reach {
            from: from.to_owned(),
            host: host.trim_matches(['[', ']']).to_owned(),
            port: port.parse().ok()?,
            udp,
            by_hand: rest.contains(&"by"),
            times: times.map_or(Some(1), |times| times.parse().ok())?,
        })
    }

    /// From where it is asked; `None` if not by a speaker.
    pub(crate) fn from(&self) -> Option<&str> {
        match self {
            Self::Reach { from, .. } | Self::Binds { from, .. } => Some(from),
            Self::Events { .. } | Self::Refuses { .. } => None,
        }
    }

    /// As a speaker understands it. `address` tells what stands for the host's words and `@NAME`.
    pub(crate) fn asked(&self, address: impl Fn(&str) -> String) -> Value {
        match self {
            Self::Reach { host, port, udp, by_hand, times, .. } => json!({
                "kind": "reach",
                "host": address(host),
                "port": port,
                "proto": if *udp { "udp" } else { "tcp" },
                "resolver": if *by_hand { "hand" } else { "libc" },
                "times": times,
            }),
            Self::Binds { spec, .. } => json!({"kind": "binds", "spec": spec}),
            Self::Events { .. } | Self::Refuses { .. } => Value::Null,
        }
    }
}

/// Whether an answer is what the table expects.
pub(crate) fn fits(expected: &str, answer: &str) -> bool {
    match expected {
        "-" => true,
        "no" => ["closed", "denied", "silent", "unreachable"].contains(&answer),
        exactly => exactly == answer,
    }
}
