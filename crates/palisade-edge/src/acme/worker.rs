//! The worker's life: it looks, sleeps until something is due, and looks again.

use palisade_core::edge::{Domain, EdgeAt, WorkerSettings};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

use super::memory::Unwritten;
use super::order::now_s;
use super::schedule::LOOK_S_MAX;
use super::{Outcome, look};
use crate::chain;

/// After a look that failed as a whole: a full disk, mostly.
const FAILED_S: u64 = 60;
/// Between two looks at least.
const PAUSE_S_MIN: u64 = 1;
/// How often it is looked whether the clock was set.
const STEP: Duration = Duration::from_secs(10);
/// By so much at least; a clock that is made to go faster or slower for an hour stays below.
const JUMP_S_MIN: u64 = 10;

/// Why there is no worker.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The settings can't be read.
    #[error("can't read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// They are no settings.
    #[error("{0} holds no settings of this version")]
    Settings(PathBuf, #[source] serde_json::Error),
    /// The kernel gave no event loop or signals.
    #[error("can't wait for signals")]
    Runtime(#[source] io::Error),
}

/// The worker, until SIGTERM or SIGINT. On SIGHUP it reads its settings again and looks at once, also at
/// what it would try later, unless an authority has refused it. An order that is on its way when it ends is gone on with
/// when it starts again.
///
/// # Errors
///
/// It can't start. Once it runs, what goes wrong is told as events and tried again.
pub fn worker_main(settings: &Path) -> Result<(), WorkerError> {
    read(settings)?;
    runtime().map_err(WorkerError::Runtime)?.block_on(run(settings))
}

pub(super) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn read(path: &Path) -> Result<WorkerSettings, WorkerError> {
    let bytes = fs::read(path).map_err(|error| WorkerError::Read(path.to_owned(), error))?;
    let mut settings: WorkerSettings =
        serde_json::from_slice(&bytes).map_err(|error| WorkerError::Settings(path.to_owned(), error))?;
    if let Some(path) = &settings.edges_file {
        // It is written whenever there is another edge; before there is one, nobody has to be told anything.
        let edges: Vec<EdgeAt> =
            fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        settings.edges.extend(edges);
    }
    Ok(settings)
}

async fn run(path: &Path) -> Result<(), WorkerError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(WorkerError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(WorkerError::Runtime)?;
    let mut again = signal(SignalKind::hangup()).map_err(WorkerError::Runtime)?;
    // Whoever starts it anew wants to know now, as whoever sends it a signal.
    let mut asked = true;
    let mut unwritten = Unwritten::new();
    loop {
        // From before the look: the clock may be set meanwhile, too.
        let before = (Instant::now(), now_s());
        let looked = tokio::select! {
            looked = look_once(path, std::mem::take(&mut asked), &mut unwritten) => looked,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        tokio::select! {
            // A clock that was set is news, as a signal is: what failed by the other clock may go well by this one.
            was_set = wait(Duration::from_secs(looked), before) => asked = was_set,
            _ = again.recv() => asked = true,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

/// Waits so long, or until the clock was set since `before`; tells whether it was. A host that slept has such a clock, too.
async fn wait(pause: Duration, (before, before_s): (Instant, u64)) -> bool {
    let since = Instant::now();
    loop {
        if now_s().abs_diff(before_s + before.elapsed().as_secs()) > JUMP_S_MIN {
            return true;
        }
        let left = pause.saturating_sub(since.elapsed());
        if left.is_zero() {
            return false;
        }
        tokio::time::sleep(left.min(STEP)).await;
    }
}

/// Returns after how many seconds the next look is due.
async fn look_once(path: &Path, asked: bool, unwritten: &mut Unwritten) -> u64 {
    let looked = match read(path) {
        Ok(settings) => look(&settings, asked, unwritten).await.map_err(|error| chain(&error)),
        Err(error) => Err(chain(&error)),
    };
    match looked {
        Ok(outcomes) => pause_s(&outcomes, now_s()),
        Err(text) => {
            eprintln!("palisade: {text}");
            FAILED_S
        }
    }
}

/// Never longer than an hour: the edge may have been replaced by one that serves something else.
fn pause_s(outcomes: &BTreeMap<Domain, Outcome>, now_s: u64) -> u64 {
    let due = outcomes.values().filter_map(|outcome| match outcome {
        Outcome::Kept { renew_s } | Outcome::Obtained { renew_s } => Some(*renew_s),
        Outcome::Waiting { again_s, .. } => Some(*again_s),
        Outcome::Impossible(_) => None,
    });
    due.min().map_or(LOOK_S_MAX, |due| due.saturating_sub(now_s)).clamp(PAUSE_S_MIN, LOOK_S_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_look_is_when_the_first_is_due_and_within_an_hour() {
        let of = |outcomes: &[Outcome]| {
            let outcomes = outcomes.iter().enumerate().map(|(at, outcome)| (format!("{at}.example"), outcome.clone()));
            pause_s(&outcomes.collect(), 1_000)
        };
        let kept = Outcome::Kept { renew_s: 900_000 };
        let waiting = Outcome::Waiting { text: String::new(), again_s: 1_060 };
        assert_eq!(of(&[]), 3600);
        assert_eq!(of(std::slice::from_ref(&kept)), 3600);
        assert_eq!(of(&[kept, waiting]), 60);
        assert_eq!(of(&[Outcome::Obtained { renew_s: 10 }]), 1);
        assert_eq!(of(&[Outcome::Impossible(String::new())]), 3600);
    }
}
