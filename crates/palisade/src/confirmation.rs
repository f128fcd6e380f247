//! Waits for somebody to confirm a change of the firewall, and says how.
//!
//! When one has to be confirmed is decided in `palisade_core::lockout`; who takes it back is `palisade_host`'s keeper.

use std::io::{self, BufRead, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use palisade_core::firewall::FirewallRules;
use palisade_host::firewall::pending::{Book, Pending, PendingError, State};
use palisade_host::layout::Layout;
use palisade_host::session::{self, Session};

use crate::exit::Failure;
use crate::host::HostError;
use crate::progress::counts_down;
use crate::signals;

/// How often the answer is looked for.
const LOOK_MS: u16 = 200;

/// How often the time left is told where lines stay.
const TELL_EVERY_S: u64 = 15;

/// The SSH session of this process, unless it is another machine's or another network namespace's.
pub(crate) fn session() -> Session {
    let mut session = session::own();
    session.connection = session.connection.filter(session::Connection::is_here);
    session
}

/// Changes the firewall and waits until that is confirmed; when it isn't, it is as before.
pub(crate) fn change(layout: &Layout, rules: &FirewallRules, within_ms: u64) -> Result<(), HostError> {
    let book = Book::of(&layout.realm);
    let session = session();
    let mut pending = book.change(layout.project.as_str(), rules, within_ms, &session, &cut_off)?;
    let mut talk = Talk::begin(&pending);
    cut_off("told");
    loop {
        talk.time_left(pending.left_ms().div_ceil(1_000));
        match book.read()?.map(|now| now.state) {
            Some(State::Waiting) => {}
            Some(State::Confirmed) => {
                book.forget()?;
                talk.end("The firewall is confirmed and stays");
                return Ok(());
            }
            Some(State::TakenBack) | None => {
                book.forget()?;
                talk.end("Nobody confirmed the firewall: it is as it was before");
                return Err(HostError::NotConfirmed);
            }
        }
        if signals::interrupted() {
            book.take_back()?;
            book.forget()?;
            talk.end("The firewall is as it was before");
            return Err(HostError::Interrupted);
        }
        if book.keep(&mut pending)? {
            talk.line("The process that takes the firewall back was gone; another one does it");
        }
        if talk.somebody_says_yes()
            && let Err(error) = book.confirm(&session, false)
        {
            talk.refused(&error);
        }
    }
}

/// A change that waits for somebody stands in the way of another one. What was left by one that is gone is cleared.
pub(crate) fn require_none(layout: &Layout, verb: &str) -> Result<(), Failure> {
    let book = Book::of(&layout.realm);
    let failed = |error| Failure::new(format!("can't {verb} {}", layout.project), error);
    let Some(mut pending) = book.read().map_err(failed)? else { return Ok(()) };
    let own_down = verb == "down" && pending.project == layout.project.as_str() && pending.is_orphaned();
    match pending.state {
        State::Waiting if pending.is_abandoned() || own_down => {
            eprintln!("note: a change of the firewall was never confirmed; it is taken back");
            book.take_back().and_then(|()| book.forget()).map_err(failed)
        }
        State::Waiting => {
            book.keep(&mut pending).map_err(failed)?;
            let left_s = pending.left_ms().div_ceil(1_000);
            let busy = PendingError::Busy { project: pending.project, left_s };
            let hint = busy.hint().unwrap_or_default();
            Err(failed(busy).hint(hint))
        }
        State::Confirmed | State::TakenBack if pending.is_orphaned() => book.forget().map_err(failed),
        State::Confirmed | State::TakenBack => Ok(()),
    }
}

/// Says that a change waits, if one does and this user may know.
pub(crate) fn tell(layout: &Layout) {
    let pending = Book::of(&layout.realm).read().ok().flatten();
    if let Some(pending) = pending.filter(|pending| pending.state == State::Waiting) {
        let left_s = pending.left_ms().div_ceil(1_000);
        eprintln!("note: {}", PendingError::Busy { project: pending.project, left_s });
    }
}

/// What is said while it waits. Whoever should read it may be cut off: that nothing can be written is no failure.
struct Talk {
    live: bool,
    /// Somebody could type an answer.
    listens: bool,
    told_s: Option<u64>,
}

impl Talk {
    fn begin(pending: &Pending) -> Self {
        let listens = io::stdin().is_terminal() && io::stderr().is_terminal();
        let mut talk = Self { live: counts_down(), listens, told_s: None };
        let seconds = pending.left_ms().div_ceil(1_000);
        let closes = pending.closes.as_ref().map_or_else(String::new, |closes| format!(": {closes}"));
        talk.line(&format!("The firewall is set{closes}."));
        talk.line(&format!("It is taken back in {seconds} s unless you confirm that you can get in:"));
        talk.line("  log in over a new SSH connection and run `sudo palisade confirm` there");
        if listens {
            talk.line(match pending.client {
                Some(_) => "  (or log in anew, come back, and type y here)",
                None => "  (or type y here)",
            });
        }
        talk
    }

    fn line(&mut self, text: &str) {
        let clear = if self.live { "\r\x1b[K" } else { "" };
        let _ = writeln!(io::stderr(), "{clear}{text}");
    }

    fn time_left(&mut self, left_s: u64) {
        if self.told_s == Some(left_s) {
            return;
        }
        if self.live {
            let mut stderr = io::stderr();
            let _ = write!(stderr, "\r\x1b[K{left_s} s left ").and_then(|()| stderr.flush());
            self.told_s = Some(left_s);
        } else if self.told_s.is_none_or(|told| told >= left_s + TELL_EVERY_S) {
            self.line(&format!("{left_s} s left"));
            self.told_s = Some(left_s);
        }
    }

    fn refused(&mut self, error: &PendingError) {
        self.line(&format!("Not confirmed: {error}"));
        if let Some(hint) = error.hint() {
            self.line(&format!("  hint: {hint}"));
        }
    }

    fn end(&mut self, text: &str) {
        self.line(text);
    }

    /// Waits a moment for a line.
    fn somebody_says_yes(&mut self) -> bool {
        if !self.listens {
            std::thread::sleep(Duration::from_millis(LOOK_MS.into()));
            return false;
        }
        let stdin = io::stdin();
        let mut asked = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        // A signal ends the waiting early; the caller looks at it.
        if poll(&mut asked, PollTimeout::from(LOOK_MS)).unwrap_or(0) == 0 {
            return false;
        }
        let mut answer = String::new();
        match stdin.lock().read_line(&mut answer) {
            Ok(0) | Err(_) => {
                // The terminal is gone; somebody may still confirm from another one.
                self.listens = false;
                false
            }
            Ok(_) => matches!(answer.trim(), "y" | "yes"),
        }
    }
}

/// For tests of what a killed `up` leaves: ends this process when the step named in PALISADE_TEST_CUT_FIREWALL is done.
/// No release does this.
fn cut_off(done: &str) {
    if cfg!(debug_assertions) && std::env::var("PALISADE_TEST_CUT_FIREWALL").is_ok_and(|at| at == done) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}
