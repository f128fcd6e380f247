//! `audit --fix`: shows what can be mended without harm, asks, does it, and takes it back if it can't be done whole.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use palisade_core::audit::fix::{Setting, fixes, sysctl_file};
use palisade_core::finding::Finding;
use palisade_host::whole_file;

use crate::exit::Failure;

const FILE: &str = "/etc/sysctl.d/90-palisade.conf";

/// Mends what can be mended. Tells whether anything was changed.
pub(super) fn run(findings: &[Finding], yes: bool) -> Result<bool, Failure> {
    let settings = fixes(findings);
    if settings.is_empty() {
        eprintln!("Nothing of this can be mended without harm by itself: each finding says what to do.");
        return Ok(false);
    }
    eprintln!("To be mended, now and at each boot ({FILE}):");
    settings.iter().for_each(|setting| eprintln!("  {setting}"));
    if !yes && !crate::commands::says_yes("Do it? Type yes: ") {
        let message = "error: not confirmed, so nothing was changed\n  hint: say yes on a terminal, or give --yes";
        return Err(Failure::Input(message.to_owned()));
    }
    let mut done = Done::default();
    done.all(&settings).map_err(|(what, error)| {
        let left = done.undo();
        let failure = Failure::new(format!("can't {what}; what was changed before is undone"), error);
        left.into_iter().fold(failure, Failure::hint)
    })?;
    Ok(true)
}

/// What was there before.
#[derive(Default)]
struct Done {
    values: Vec<(PathBuf, String)>,
    file: Option<Option<String>>,
}

impl Done {
    fn all(&mut self, settings: &[Setting]) -> Result<(), (String, io::Error)> {
        for setting in settings {
            let path = Path::new("/proc/sys").join(&setting.path);
            let failed = |error| (setting.to_string(), error);
            let before = fs::read_to_string(&path).map_err(failed)?;
            fs::write(&path, setting.value.to_string()).map_err(failed)?;
            self.values.push((path, before));
        }
        let old = fs::read_to_string(FILE).ok();
        let text = sysctl_file(old.as_deref().unwrap_or_default(), settings);
        write_whole(&text).map_err(|error| (format!("write {FILE}"), error))?;
        self.file = Some(old);
        Ok(())
    }

    /// Puts everything back; what can't be is told.
    fn undo(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        for (path, before) in self.values.drain(..).rev() {
            if let Err(error) = fs::write(&path, before.trim()) {
                left.push(format!("{} couldn't be put back to {}: {error}", path.display(), before.trim()));
            }
        }
        let put_back = match self.file.take() {
            Some(Some(old)) => write_whole(&old),
            Some(None) => fs::remove_file(FILE),
            None => Ok(()),
        };
        left.extend(put_back.err().map(|error| format!("{FILE} couldn't be put back: {error}")));
        left
    }
}

fn write_whole(text: &str) -> io::Result<()> {
    fs::create_dir_all(Path::new(FILE).parent().unwrap_or(Path::new("/")))?;
    whole_file::replace(Path::new(FILE), text.as_bytes(), 0o666)
}
