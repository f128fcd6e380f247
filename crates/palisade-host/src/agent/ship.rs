//! Brings what a container prints into the log of its instance, so that logs are read the same way whoever runs it, and
//! outlive the container.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, SystemTime};

use palisade_core::causes::chain;
use palisade_core::instance::{ContainerProgram, InstanceSpec};

use crate::engine;
use crate::layout::Layout;
use crate::runtime::Running;
use crate::runtime::logs::{Shipped, rfc3339};

/// Between attempts while the engine is away.
const PAUSE: Duration = Duration::from_secs(1);
/// A line of a log is not longer than this.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Until the container has ended and everything that it printed is written. An engine that goes away and comes back is
/// asked for what came meanwhile. Without `running` it has ended already.
pub(super) fn ship(layout: &Layout, spec: &InstanceSpec, program: &ContainerProgram, running: Option<&Running>) {
    let path = layout.log(&spec.id);
    let mut log = match Shipped::open(&path, spec.log) {
        Ok(log) => log,
        Err(error) => return eprintln!("{}: cannot open its log: {error}", spec.id),
    };
    let mut last = last_of(&path, &rfc3339(SystemTime::now()));
    loop {
        let mut known = Known { last, is_behind: false };
        let followed = engine::follow(program, seconds(&known.last), &mut |printed| {
            let time = log.time(printed.time);
            if known.is_new(&time) {
                log.take(printed.stream, &time, printed.text);
            }
        });
        last = known.last;
        log.finish(&last);
        match followed {
            Ok(()) => return,
            Err(error) if error.is_away() && running.is_some_and(|running| !running.wait(PAUSE)) => {}
            Err(error) => return eprintln!("{}: {}", spec.id, chain(&error)),
        }
    }
}

/// What the log has already of what the engine tells, which is asked by the second and begins with some of that.
struct Known {
    /// Time of the last line.
    last: String,
    is_behind: bool,
}

impl Known {
    /// Once something newer has come, everything is new: a clock that was set back is no reason to lose what is printed.
    fn is_new(&mut self, time: &str) -> bool {
        self.is_behind |= time > self.last.as_str();
        if self.is_behind {
            time.clone_into(&mut self.last);
        }
        self.is_behind
    }
}

/// The time of the last line of a log, or nothing when that is in the future: the clock was set back, and what comes
/// now is older. Then all is asked for, as it is better told twice than never.
fn last_of(path: &Path, now: &str) -> String {
    last_time(path).filter(|last| last.as_str() <= now).unwrap_or_default()
}

/// The time of the last line of a log.
fn last_time(path: &Path) -> Option<String> {
    let mut file = fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LINE_BYTES_MAX))).ok()?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).ok()?;
    let text = String::from_utf8_lossy(&tail);
    Some(text.lines().next_back()?.split(' ').next()?.to_owned())
}

/// Seconds since the Unix epoch of `2026-11-26T06:50:16.123456Z`; 0 for what is no such time.
fn seconds(time: &str) -> i32 {
    let number = |range: std::ops::Range<usize>| time.get(range).and_then(|text| text.parse::<i64>().ok());
    let (Some(year), Some(month), Some(day)) = (number(0..4), number(5..7), number(8..10)) else { return 0 };
    let (Some(hour), Some(minute), Some(second)) = (number(11..13), number(14..16), number(17..19)) else { return 0 };
    // Days since 1970-01-01; March is the first month, so that the leap day is the last of its year.
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    i32::try_from(days * 86_400 + hour * 3_600 + minute * 60 + second).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        for at_s in [0_u64, 951_827_696, 1_772_323_199, 1_795_680_000] {
            let text = rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(at_s));
            assert_eq!(seconds(&text), at_s as i32, "{text}");
        }
        assert_eq!(seconds(""), 0);
    }
    #[test]
    fn a_clock_that_is_set_back_loses_no_line() {
        let mut known = Known { last: "2026-11-26T06:50:16.2Z".to_owned(), is_behind: false };
        let new = |known: &mut Known, time: &str| known.is_new(&format!("2026-11-26T06:{time}Z"));
        assert!(!new(&mut known, "50:16.1") && !new(&mut known, "50:16.2"), "these are here already");
        assert!(new(&mut known, "50:16.3"));
        assert!(new(&mut known, "20:00.0") && new(&mut known, "20:00.1"), "half an hour was taken back");
        assert_eq!(known.last, "2026-11-26T06:20:00.1Z");

        let folder = std::env::temp_dir().join(format!("palisade-test-ship-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let log = folder.join("web.1.log");
        fs::write(&log, "2026-11-26T06:50:16.2Z stdout F x\n").unwrap();
        let last = |now: &str| last_of(&log, now);
        assert_eq!(last("2026-11-26T06:50:17.0Z"), "2026-11-26T06:50:16.2Z");
        assert_eq!(last("2026-11-26T06:20:00.0Z"), "");
        fs::remove_dir_all(&folder).unwrap();
    }
}
