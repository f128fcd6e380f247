//! What a Compose file means: who reaches whom by which name, and what the world sees. Each case is a file that runs
//! unchanged under Palisade and under a real Docker Engine, with one table of questions that is asked in both.
//!
//! A case is a folder of `cases/meaning`: `compose.yaml` and `probes`. How the table is written is said in `case`; how a
//! stack runs under each of the two in `ours` and `docker`. Where the two differ, the table says how and why, and
//! `docs/meaning.md` is made from it.

mod case;
mod docker;
mod ours;
mod page;
mod place;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::need_root;
use crate::support::skipped;
use case::Case;

/// Much of a case is waiting for silence.
const AT_ONCE: usize = 3;

/// Does it for every case; what was not as expected is returned.
fn for_each(cases: &[Case], what: &str, run: impl Fn(&Case) -> Vec<String> + Sync) -> Vec<String> {
    let began = Instant::now();
    let wrong = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(case)));
                    let found = found.unwrap_or_else(|_| vec!["panicked; see above".to_owned()]);
                    wrong.lock().unwrap().extend(found.into_iter().map(|line| format!("{}: {line}", case.name)));
                }
            });
        }
    });
    let mut wrong = wrong.into_inner().unwrap();
    wrong.sort();
    eprintln!("{} cases {what} in {} ms", cases.len(), began.elapsed().as_millis());
    wrong
}

#[test]
fn under_palisade() {
    need_root!("meaning::under_palisade");
    let wrong = for_each(&Case::all(), "under Palisade", ours::run);
    assert!(wrong.is_empty(), "under Palisade:\n{}", wrong.join("\n"));
}

#[test]
fn under_docker() {
    const TEST: &str = "meaning::under_docker";
    need_root!("meaning::under_docker");
    let missing = docker::missing();
    if !missing.is_empty() {
        return skipped(TEST, &format!("{} not installed", missing.join(", ")));
    }
    match docker::Docker::start() {
        Ok(docker) => {
            let client = docker.client();
            let wrong = for_each(&Case::all(), "under Docker", |case| client.case(case));
            assert_eq!(docker.end(), Vec::<String>::new());
            assert!(wrong.is_empty(), "under Docker:\n{}", wrong.join("\n"));
        }
        Err(why) => skipped(TEST, &format!("no Docker Engine can run here: {why}")),
    }
}

#[test]
fn the_page_says_what_the_tables_say() {
    page::check(&Case::all());
}

/// How long a speaker may take to answer all its questions.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
