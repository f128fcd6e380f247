//! The terminal of whoever runs a command inside a service: raw while it runs, and always put back.
//!
//! What is read from it and written to it is the business of those who run the command.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::poll::PollTimeout;
use nix::pty::Winsize;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Standard input's terminal in raw mode, until this is dropped.
pub(crate) struct Raw(Termios);

impl Raw {
    /// `None`: standard input is no terminal.
    pub(crate) fn of_stdin() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let saved = tcgetattr(&stdin)?;
        let mut raw = saved.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSADRAIN, &raw)?;
        Ok(Some(Self(saved)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing put back.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}

/// Rows and columns of standard input's terminal.
pub(crate) fn size() -> Option<Winsize> {
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request writes one winsize, which outlives the call.
    let done = unsafe { libc::ioctl(io::stdin().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (done == 0).then_some(size)
}

/// Gives a terminal the size of standard input's, if that has one.
pub(crate) fn pass_size(terminal: BorrowedFd<'_>) {
    if let Some(size) = size() {
        // SAFETY: the request reads one winsize, which outlives the call.
        unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    }
}

/// Signals that would end this program or say that its terminal has another size, held back to be passed on.
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// From now on. Threads that are started later hold them back, too.
    pub(crate) fn hold() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGWINCH] {
            set.add(signal);
        }
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// The next one that has come, if any.
    pub(crate) fn next(&self) -> Option<i32> {
        self.0.read_signal().ok().flatten().map(|info| info.ssi_signo as i32)
    }

    /// Waits for the next one.
    pub(crate) fn wait(&self) -> i32 {
        loop {
            if let Some(signal) = self.next() {
                return signal;
            }
            let mut polled = [nix::poll::PollFd::new(self.0.as_fd(), nix::poll::PollFlags::POLLIN)];
            let _ = nix::poll::poll(&mut polled, PollTimeout::NONE);
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
