//! Waits for the signals that mean "stop, but finish what you are doing".
//!
//! What is done about it is up to the programs.

use tokio::signal::unix::{SignalKind, signal};

/// Resolves with the signal's name after SIGTERM or SIGINT.
pub async fn stop_asked() -> &'static str {
    let (mut term, mut int) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(term), Ok(int)) => (term, int),
        // Without handlers the kernel's default applies: the process just ends.
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("barter: can't handle signals, so a stop won't wait for requests: {error}");
            return std::future::pending().await;
        }
    };
    tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    }
}
