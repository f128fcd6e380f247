//! The worker's life: it looks, sleeps until something is due, and looks again.

use palisade_core::edge::{Domain, EdgeAt, WorkerSettings};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

use super::events::{Events, rfc3339};
use super::memory::Unwritten;
use super::order::now_s;
use super::schedule::{self, LOOK_S_MAX, Trouble};
use super::{Outcome, look, store};
use crate::chain;

/// Between two looks at least.
const PAUSE_S_MIN: u64 = 1;
/// How often it is looked whether the clock was set.
const STEP: Duration = Duration::from_secs(10);
/// By so much at least; a clock that is made to go faster or slower for an hour stays below.
const JUMP_S_MIN: u64 = 10;

/// In an event that is about no domain in particular.
const EVERY_DOMAIN: &str = "*";

/// What is remembered from look to look.
#[derive(Default)]
struct Kept {
    unwritten: Unwritten,
    /// Looks in a row that failed as a whole: a full disk, mostly.
    failures: u32,
}

impl Kept {
    /// Such a look; tells after how many seconds the next one is due.
    fn failed(&mut self) -> u64 {
        self.failures = self.failures.saturating_add(1);
        schedule::pause_s(Trouble::Host, self.failures, store::random())
    }
}

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
    let mut kept = Kept::default();
    loop {
        // From before the look: the clock may be set meanwhile, too.
        let before = (Instant::now(), now_s());
        let looked = tokio::select! {
            looked = look_once(path, std::mem::take(&mut asked), &mut kept) => looked,
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
async fn look_once(path: &Path, asked: bool, kept: &mut Kept) -> u64 {
    let settings = match read(path) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("palisade: {}", chain(&error));
            return kept.failed();
        }
    };
    match look(&settings, asked, &mut kept.unwritten).await {
        Ok(outcomes) => {
            kept.failures = 0;
            pause_s(&outcomes, now_s())
        }
        Err(error) => {
            let pause_s = kept.failed();
            let again = rfc3339(now_s() + pause_s);
            let details =
                json!({ "why": Trouble::Host, "text": chain(&error), "again": again, "failures": kept.failures });
            Events::in_folder(&settings.state).tell("certificate_failed", EVERY_DOMAIN, details, now_s());
            pause_s
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
