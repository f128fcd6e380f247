//! The worker's events as others read them, who may be root: each once, whoever is restarted.

use serde::Deserialize;
use serde_json::Value;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::events::rfc3339;
use super::order::now_s;

/// What is read at once at most. A longer line is none of the worker's.
const BYTES_MAX: u64 = 256 << 10;

/// The last minutes.
const RECENT_S: u64 = 600;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct WorkerEvent {
    /// RFC 3339, UTC.
    pub time: String,
    /// `certificate_obtained`, `certificate_refused` …
    pub kind: String,
    /// `domain`, and what belongs to the kind.
    pub details: Value,
}

/// How far the worker's events were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, Deserialize)]
pub struct Position {
    inode: u64,
    bytes: u64,
}

/// Events in the worker's folder that came after a position, which moves on. Without a position: those of the last minutes, as
/// nobody knows who has read the former ones.
///
/// # Errors
///
/// The file can't be read. That there is none is no error.
pub fn events_since(state: &Path, position: &mut Option<Position>) -> io::Result<Vec<WorkerEvent>> {
    let path = state.join("events.jsonl");
    // What lies there is the worker's doing: root follows no link, and waits for no pipe.
    let open = |path: &Path| File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let current = match open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            position.get_or_insert_default();
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let inode = current.metadata()?.ino();
    let mut events = Vec::new();
    let mut from = position.unwrap_or_default();
    if from.inode != inode {
        // The file was put aside: its end comes first.
        if let Ok(old) = open(&path.with_extension("jsonl.1"))
            && old.metadata()?.ino() == from.inode
        {
            read(old, from.bytes, &mut events)?;
        }
        from = Position { inode, bytes: 0 };
    }
    from.bytes = read(current, from.bytes, &mut events)?;
    if position.replace(from).is_none() {
        let recent = rfc3339(now_s().saturating_sub(RECENT_S));
        events.retain(|event| event.time >= recent);
    }
    Ok(events)
}

/// Returns where the last whole line ends.
fn read(mut file: File, from: u64, events: &mut Vec<WorkerEvent>) -> io::Result<u64> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from))?;
    file.take(BYTES_MAX).read_to_end(&mut bytes)?;
    let whole = match bytes.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => end + 1,
        // Skipped, or nothing after it would ever be read.
        None if bytes.len() as u64 == BYTES_MAX => bytes.len(),
        None => 0,
    };
    // A line of another version is no reason to hide the rest.
    events.extend(bytes[..whole].split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()));
    Ok(from + whole as u64)
}

#[cfg(test)]
mod tests {
    use super::super::events::Events;
    use super::*;
    use serde_json::json;
    use std::fs;

    #[test]
    fn each_event_is_read_once_also_when_the_file_was_put_aside() {
        let folder = std::env::temp_dir().join(format!("palisade-relay-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut position = None;
        let mut read = || {
            let events = events_since(&folder, &mut position).unwrap();
            events.into_iter().map(|event| event.kind).collect::<Vec<_>>()
        };
        let events = Events::in_folder(&folder);
        events.tell("certificate_old", "a.example", json!({}), 0);
        events.tell("certificate_new", "a.example", json!({}), now_s());
        assert_eq!(read(), ["certificate_new"]);
        events.tell("certificate_a", "a.example", json!({}), 0);
        events.tell("certificate_b", "a.example", json!({}), 1);
        assert_eq!(read(), ["certificate_a", "certificate_b"]);
        assert_eq!(read(), [""; 0]);
        events.tell("certificate_c", "a.example", json!({}), 2);
        fs::rename(folder.join("events.jsonl"), folder.join("events.jsonl.1")).unwrap();
        events.tell("certificate_d", "a.example", json!({}), 3);
        assert_eq!(read(), ["certificate_c", "certificate_d"]);
        // Half a line waits for its end.
        let line = r#"{"time":"","kind":"certificate_e","details":{}}"#;
        let mut file = File::options().append(true).open(folder.join("events.jsonl")).unwrap();
        io::Write::write_all(&mut file, &line.as_bytes()[..9]).unwrap();
        assert_eq!(read(), [""; 0]);
        io::Write::write_all(&mut file, format!("{}\nno event\n", &line[9..]).as_bytes()).unwrap();
        assert_eq!(read(), ["certificate_e"]);
        // Where there is none yet, every one that comes is new.
        fs::remove_file(folder.join("events.jsonl")).unwrap();
        let mut position = None;
        assert_eq!(events_since(&folder, &mut position).unwrap(), []);
        events.tell("certificate_first", "a.example", json!({}), 0);
        assert_eq!(events_since(&folder, &mut position).unwrap().len(), 1);
        // A link is not followed.
        fs::remove_file(folder.join("events.jsonl")).unwrap();
        std::os::unix::fs::symlink(folder.join("events.jsonl.1"), folder.join("events.jsonl")).unwrap();
        assert!(events_since(&folder, &mut None).is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
