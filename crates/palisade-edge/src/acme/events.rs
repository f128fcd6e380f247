//! What the worker has to tell: one JSON object a line, in the form of the stack's event log.
//!
//! `time` (RFC 3339, UTC), `kind` (all begin with `certificate_`) and `details`, in which `domain` says whose certificate it is about.

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

/// Seconds since the Unix epoch as RFC 3339 has them, UTC.
pub(super) fn rfc3339(time_s: u64) -> String {
    let (mut days, second) = (time_s / 86_400, time_s % 86_400);
    // Four hundred years have always the same number of days.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    let leap = |year: u64| u64::from(year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)));
    while days >= 365 + leap(year) {
        days -= 365 + leap(year);
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + leap(year), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}Z", days + 1, second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        // date -u -d @… +%FT%TZ
        let known = [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_709_164_800, "2024-02-29"),
            (4_107_542_400, "2100-03-01"),
        ];
        for (time_s, date) in known {
            assert_eq!(rfc3339(time_s), format!("{date}T00:00:00Z"));
        }
        assert_eq!(rfc3339(1_795_406_706), "2026-11-23T04:05:06Z");
    }
}
