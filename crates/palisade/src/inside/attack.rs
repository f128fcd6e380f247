//! Runs attacks, each in a process of its own, and tells what came of them.
//!
//! `palisade __attack JSON` takes [`Targets`] (or `-`: from standard input) and writes one [`Report`] a line. It is run as
//! root inside a service, where all of them must fail, and outside of one, where they must succeed, or they would
//! prove nothing. What the attacks are is in `attacks`.

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use super::attacks;
use super::sys::{Attempt, Stop};
use super::targets::{Layer, Targets};

/// So many at a time: most of them wait for somebody else.
const AT_ONCE: usize = 12;
/// An attack that is still at it has failed.
const LIMIT_S: u32 = 10;

/// One way to break out.
pub(super) struct Attack {
    /// Stable name: `exposure.listen_without_bind4`.
    pub(super) id: &'static str,
    /// What it does.
    pub(super) title: &'static str,
    /// What somebody would gain.
    pub(super) threat: &'static str,
    /// What stops it.
    pub(super) layer: Layer,
    /// Returns what was obtained.
    pub(super) run: fn(&Targets) -> Attempt,
}

/// How an attack ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// It came to nothing.
    Refused,
    /// It must not have.
    Succeeded,
    /// There was nothing to attack, or the kernel lacks what it uses.
    NotApplicable,
}

/// What is told about one attack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Stable name.
    pub(crate) id: String,
    /// What it does.
    pub(crate) title: String,
    /// What somebody would gain.
    pub(crate) threat: String,
    /// What stops it.
    pub(crate) layer: Layer,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// The call and the kernel's answer, or what was obtained.
    pub(crate) evidence: String,
}

struct Running<'a> {
    attack: &'a Attack,
    pid: Pid,
    answer: File,
}

/// The verb: never returns an error for an attack that fails, only for input that can't be read.
pub(crate) fn main(asked: &str) -> io::Result<()> {
    let mut text = asked.to_owned();
    if text == "-" {
        text.clear();
        io::stdin().read_to_string(&mut text)?;
    }
    let targets: Targets = serde_json::from_str(&text).map_err(io::Error::other)?;
    let all = attacks::ALL.iter().copied().flatten();
    let chosen: Vec<&Attack> =
        all.filter(|attack| targets.layers.is_empty() || targets.layers.contains(&attack.layer)).collect();
    for wave in chosen.chunks(AT_ONCE) {
        let running = wave.iter().map(|attack| start(attack, &targets)).collect::<io::Result<Vec<_>>>()?;
        for one in running {
            let mut line = serde_json::to_string(&finish(one)?).map_err(io::Error::other)?;
            line.push('\n');
            io::stdout().write_all(line.as_bytes())?;
        }
    }
    Ok(())
}

fn start<'a>(attack: &'a Attack, targets: &Targets) -> io::Result<Running<'a>> {
    let (read, write): (OwnedFd, OwnedFd) = nix::unistd::pipe()?;
    // SAFETY: this program has one thread, so the child may do whatever a program may.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Running { attack, pid: child, answer: read.into() }),
        ForkResult::Child => {
            drop(read);
            // Neither a SIGCHLD nor an alarm of ours outlives this process.
            nix::unistd::alarm::set(LIMIT_S);
            let (outcome, evidence) = match (attack.run)(targets) {
                Ok(obtained) => (Outcome::Succeeded, obtained),
                Err(Stop::Refused(why)) => (Outcome::Refused, why),
                Err(Stop::NotApplicable(why)) => (Outcome::NotApplicable, why),
            };
            let told = serde_json::to_vec(&(outcome, evidence)).unwrap_or_default();
            let wrote = File::from(write).write_all(&told);
            // SAFETY: ends the child without running what the parent registered for its own exit.
            unsafe { libc::_exit(i32::from(wrote.is_err())) }
        }
    }
}

fn finish(mut running: Running<'_>) -> io::Result<Report> {
    let mut told = Vec::new();
    running.answer.read_to_end(&mut told)?;
    let status = waitpid(running.pid, None)?;
    let (outcome, evidence) = match serde_json::from_slice::<(Outcome, String)>(&told) {
        Ok(answer) => answer,
        Err(_) => (
            Outcome::Refused,
            match status {
                WaitStatus::Signaled(_, signal, _) => format!("the attacking process was killed: {signal}"),
                other => format!("the attacking process ended without an answer: {other:?}"),
            },
        ),
    };
    let Attack { id, title, threat, layer, .. } = *running.attack;
    Ok(Report { id: id.into(), title: title.into(), threat: threat.into(), layer, outcome, evidence })
}
