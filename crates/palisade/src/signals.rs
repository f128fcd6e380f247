//! Ctrl-C and SIGTERM as a count that long work asks for.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::sync::atomic::{AtomicU32, Ordering};

static INTERRUPTIONS: AtomicU32 = AtomicU32::new(0);

extern "C" fn note(_: i32) {
    INTERRUPTIONS.fetch_add(1, Ordering::SeqCst);
}

/// From now on the two signals are counted and end nothing. A system call that waits returns early.
pub(crate) fn catch() {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only adds to an atomic, which is async-signal-safe.
        let result = unsafe { sigaction(signal, &action) };
        // These three can be caught by any process; if not, they end us as they did before.
        debug_assert!(result.is_ok());
    }
}

/// Whether one of them came.
pub(crate) fn interrupted() -> bool {
    interruptions() > 0
}

/// How many of them came.
pub(crate) fn interruptions() -> u32 {
    INTERRUPTIONS.load(Ordering::SeqCst)
}
