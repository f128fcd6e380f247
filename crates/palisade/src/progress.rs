//! Shows how an apply goes: one line for each step.
//!
//! On a terminal a step that takes time is shown while it runs; elsewhere lines are complete and stay.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use palisade_core::apply::Progress;

/// Writes to standard error, so that standard output stays free for answers.
pub(crate) struct Lines {
    live: bool,
    color: bool,
    began: Instant,
    position: String,
}

impl Lines {
    /// For the standard error of this process.
    pub(crate) fn new() -> Self {
        let live = io::stderr().is_terminal();
        Self { live, color: live && wants_color(), began: Instant::now(), position: String::new() }
    }

    /// Shows what happens.
    pub(crate) fn show<E>(&mut self, progress: Progress<'_, E>) {
        match progress {
            Progress::Begins { number, total, step } => {
                self.began = Instant::now();
                let width = total.to_string().len();
                self.position = format!("[{number:>width$}/{total}]");
                if self.live {
                    // What is shown meanwhile is a convenience; the line that stays is written below.
                    let mut stderr = io::stderr();
                    let _ = write!(stderr, "\r\x1b[K{} {} …", self.position, step.action);
                    let _ = stderr.flush();
                }
            }
            Progress::Done { step } => {
                let ms = self.began.elapsed().as_millis();
                let took = if ms >= 100 { format!(" {}.{} s", ms / 1_000, ms % 1_000 / 100) } else { String::new() };
                let line = format!("{} {} ({}){took}", self.position, step.action, step.cause);
                self.line(&line, "");
            }
            Progress::Failed { step, .. } => {
                let line = format!("{} {}: failed", self.position, step.action);
                self.line(&line, "31");
            }
            Progress::Interrupted => self.line("interrupted", "33"),
            Progress::Undoes { action } => self.line(&format!("undo: {action}"), "33"),
        }
    }

    fn line(&self, text: &str, color: &str) {
        let clear = if self.live { "\r\x1b[K" } else { "" };
        // A terminal that hung up must not end what is half done, least of all when it is being undone.
        let _ = if self.color && !color.is_empty() {
            writeln!(io::stderr(), "{clear}\x1b[{color}m{text}\x1b[0m")
        } else {
            writeln!(io::stderr(), "{clear}{text}")
        };
    }
}

/// Whether a line can be written over by the next one.
pub(crate) fn counts_down() -> bool {
    io::stderr().is_terminal()
}

/// Whether colours are wanted at all: <https://no-color.org>.
pub(crate) fn wants_color() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}
