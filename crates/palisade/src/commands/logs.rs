//! `logs`: what services printed, oldest first, and what they print next.
//!
//! The lines are written by the init process of each instance; here they are only read.

use palisade_core::names::{InstanceId, ServiceName};
use palisade_host::layout::Layout;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::StackArgs;
use crate::exit::{Answer, Failure};
use crate::{load, signals};

/// How often a log that is followed is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Prints, and goes on printing if that is wished.
pub(crate) fn run(args: &StackArgs, services: &[String], follow: bool, tail: Option<usize>) -> Result<Answer, Failure> {
    let layout = args.layout(load::project(args)?);
    let wanted = services
        .iter()
        .map(|name| ServiceName::parse(name.as_str()).map_err(|error| Failure::Input(format!("error: {error}"))))
        .collect::<Result<Vec<_>, _>>()?;
    let folder = log_folder(&layout);
    let logs = logs(&folder, &wanted).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Failure::lacking(format!("only root can read {}", folder.display()), "run it with sudo")
        }
        _ => Failure::new(format!("can't read {}", folder.display()), error),
    })?;
    for service in &wanted {
        if !logs.keys().any(|id| id.service == *service) {
            return Err(Failure::Input(format!("error: there is no log of service {service} in {}", layout.project)));
        }
    }
    if follow {
        signals::catch();
    }
    let width = logs.keys().map(|id| id.to_string().len()).max().unwrap_or(0);
    match show(logs, follow, tail, width, &mut io::stdout().lock()) {
        Ok(()) => Ok(Answer::Yes),
        // Whoever read us has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Answer::Yes),
        Err(error) => Err(Failure::new("can't show the logs", error)),
    }
}

fn log_folder(layout: &Layout) -> PathBuf {
    let id = InstanceId { service: ServiceName::parse("any").expect("a valid name"), number: 1 };
    layout.log(&id).parent().map(Path::to_owned).unwrap_or_default()
}

/// The current log of each wanted instance.
fn logs(folder: &Path, wanted: &[ServiceName]) -> io::Result<BTreeMap<InstanceId, PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let mut logs = BTreeMap::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".log")).and_then(InstanceId::parse);
        if let Some(id) = name.filter(|id| wanted.is_empty() || wanted.contains(&id.service)) {
            logs.insert(id, path);
        }
    }
    Ok(logs)
}

/// One printed line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    time: String,
    text: String,
}

fn show(
    logs: BTreeMap<InstanceId, PathBuf>,
    follow: bool,
    tail: Option<usize>,
    width: usize,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut sources: Vec<(InstanceId, Source)> =
        logs.into_iter().map(|(id, path)| (id, Source::open(path, tail))).collect();
    loop {
        // The times are of one width, so the order of their text is the order of time.
        loop {
            let mut first: Option<(usize, String)> = None;
            for (number, (_, source)) in sources.iter_mut().enumerate() {
                if let Some(line) = source.peek()?
                    && first.as_ref().is_none_or(|(_, time)| line.time < *time)
                {
                    first = Some((number, line.time.clone()));
                }
            }
            let Some((number, _)) = first else { break };
            let (id, source) = &mut sources[number];
            if let Some(line) = source.next.take() {
                writeln!(out, "{:<width$} | {}", id.to_string(), line.text)?;
            }
        }
        out.flush()?;
        if !follow || signals::interrupted() {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
}

/// The log of one instance: its files from the oldest on, then what is appended.
struct Source {
    path: PathBuf,
    older: VecDeque<PathBuf>,
    reader: Option<(BufReader<File>, u64)>,
    raw: Vec<u8>,
    /// Beginnings of lines that go on, for each stream.
    parts: BTreeMap<String, String>,
    next: Option<Line>,
}

impl Source {
    fn open(path: PathBuf, tail: Option<usize>) -> Self {
        let rotated = |number: usize| PathBuf::from(format!("{}.{number}", path.display()));
        let count = (1..).take_while(|number| rotated(*number).exists()).count();
        let older: VecDeque<_> = (1..=count).rev().map(rotated).collect();
        let mut source = Self { path, older, reader: None, raw: Vec::new(), parts: BTreeMap::new(), next: None };
        if let Some(tail) = tail {
            source.skip_to_last(tail);
        }
        source
    }

    /// Reads to the end and starts again so many lines before it.
    fn skip_to_last(&mut self, lines: usize) {
        let mut counter = Self {
            path: self.path.clone(),
            older: self.older.clone(),
            reader: None,
            raw: Vec::new(),
            parts: BTreeMap::new(),
            next: None,
        };
        let mut total = 0;
        while let Ok(Some(_)) = counter.peek() {
            counter.next = None;
            total += 1;
        }
        for _ in 0..total.max(lines) - lines {
            let _ = self.peek();
            self.next = None;
        }
    }

    /// The next complete line, if there is one by now.
    fn peek(&mut self) -> io::Result<Option<&Line>> {
        while self.next.is_none() {
            if self.reader.is_none() && !self.open_next()? {
                break;
            }
            let Some((reader, inode)) = &mut self.reader else { break };
            if reader.read_until(b'\n', &mut self.raw)? == 0 || !self.raw.ends_with(b"\n") {
                // The end of this file for now. It goes on in a new one once it was rotated or is an older one.
                let rotated = fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() != *inode);
                if !rotated {
                    break;
                }
                self.reader = None;
                continue;
            }
            let raw = std::mem::take(&mut self.raw);
            self.next = self.parse(&String::from_utf8_lossy(&raw));
        }
        Ok(self.next.as_ref())
    }

    fn open_next(&mut self) -> io::Result<bool> {
        let path = self.older.pop_front().unwrap_or_else(|| self.path.clone());
        match File::open(&path) {
            Ok(file) => {
                let inode = file.metadata()?.ino();
                self.reader = Some((BufReader::new(file), inode));
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// `<time> <stream> F|P <text>`; `None` for a piece that goes on.
    fn parse(&mut self, raw: &str) -> Option<Line> {
        let mut fields = raw.trim_end_matches('\n').splitn(4, ' ');
        let (Some(time), Some(stream), Some(kind), text) = (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Some(Line { time: String::new(), text: raw.trim_end().to_owned() });
        };
        let part = self.parts.entry(stream.to_owned()).or_default();
        part.push_str(text.unwrap_or_default());
        (kind == "F").then(|| Line { time: time.to_owned(), text: std::mem::take(part) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> InstanceId {
        InstanceId::parse(text).unwrap()
    }

    #[test]
    fn lines_of_all_files_are_merged_by_time_and_pieces_are_joined() {
        let folder = std::env::temp_dir().join(format!("palisade-test-{}-logs", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        write("app.1.log.2", "01Z stdout F first\n");
        write("app.1.log.1", "03Z stdout P thi\n03Z stderr F err\n");
        write("app.1.log", "04Z stdout F rd\n09Z stdout F half a li");
        write("db.1.log", "02Z stderr F second\n05Z stdout F \n");
        write("notes.txt", "no log");
        let all = logs(&folder, &[]).unwrap();
        assert_eq!(all.keys().cloned().collect::<Vec<_>>(), [id("app.1"), id("db.1")]);
        let shown = |tail: Option<usize>| {
            let mut out = Vec::new();
            show(all.clone(), false, tail, 5, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(shown(None), "app.1 | first\ndb.1  | second\napp.1 | err\napp.1 | third\ndb.1  | \n");
        assert_eq!(shown(Some(1)), "app.1 | third\ndb.1  | \n");
        let only = logs(&folder, &[ServiceName::parse("db").unwrap()]).unwrap();
        assert_eq!(only.len(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_rotated_log_is_followed_without_losing_a_line() {
        let folder = std::env::temp_dir().join(format!("palisade-test-{}-follow", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("app.1.log");
        fs::write(&path, "01Z stdout F one\n").unwrap();
        let mut source = Source::open(path.clone(), None);
        let mut next = || source.peek().unwrap().cloned().inspect(|_| source.next = None).map(|line| line.text);
        assert_eq!(next().as_deref(), Some("one"));
        assert_eq!(next(), None);
        let append = |text: &str| {
            let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        append("02Z stdout F tw");
        assert_eq!(next(), None);
        append("o\n03Z stdout F three\n");
        fs::rename(&path, folder.join("app.1.log.1")).unwrap();
        fs::write(&path, "04Z stdout F four\n").unwrap();
        assert_eq!(
            (next(), next(), next(), next()),
            (Some("two".into()), Some("three".into()), Some("four".into()), None)
        );
        fs::remove_dir_all(folder).unwrap();
    }
}
