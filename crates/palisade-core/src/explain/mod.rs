//! Why something can or can't be reached: one step for each thing that a packet or a connection meets, in its order.
//!
//! Pure: what the firewall did with a packet, what the host has and what a real connection got are given.

mod outside;
mod peer;

use serde::Serialize;

use crate::instance::{Health, InstanceStatus, RunState};
use crate::place::Place;
pub use outside::{FromOutside, Passage, Way, from_outside, unpublished};
pub use peer::{FromPeer, from_peer};

/// A question and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `app → db:5432/tcp`.
    pub question: String,
    /// Yes or no.
    pub verdict: Verdict,
    /// What is met on the way. Steps behind one that doesn't let through are told all the same: they are met next when
    /// that one is mended.
    pub steps: Vec<Step>,
    /// What would make it otherwise.
    pub hints: Vec<String>,
    /// What couldn't be found out.
    pub unknown: Vec<String>,
}

/// Whether something is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is.
    Reachable,
    /// It isn't.
    Unreachable,
    /// Something on the way couldn't be found out.
    Unknown,
}

/// One thing that is met on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Whether it lets through; `None`: it couldn't be found out, or has no say.
    pub passes: Option<bool>,
    /// What is met, in one sentence without a full stop.
    pub what: String,
    /// What shows that.
    pub seen: Vec<String>,
    /// The line of the file that it is about.
    pub place: Option<Place>,
}

impl Step {
    fn new(passes: Option<bool>, what: impl Into<String>) -> Self {
        Self { passes, what: what.into(), seen: Vec::new(), place: None }
    }
    fn yes(what: impl Into<String>) -> Self {
        Self::new(Some(true), what)
    }
    fn no(what: impl Into<String>) -> Self {
        Self::new(Some(false), what)
    }
    fn at(mut self, place: &Place) -> Self {
        self.place = Some(place.clone());
        self
    }
}

/// `web.1 runs and is healthy`.
fn state(status: &InstanceStatus) -> String {
    let id = &status.id;
    match (status.state, status.health) {
        (RunState::Running, Health::None) => format!("{id} runs"),
        (RunState::Running, Health::Healthy) => format!("{id} runs and is healthy"),
        (RunState::Running, Health::Starting) => format!("{id} runs, and its health check hasn't passed yet"),
        (RunState::Running, Health::Unhealthy) => format!("{id} runs, and its health check fails"),
        (RunState::Starting, _) => format!("{id} is starting"),
        (RunState::BackingOff, _) => format!("{id} keeps exiting, {} restarts so far", status.restarts),
        (RunState::Exited { .. }, _) if status.stopped => format!("{id} was stopped"),
        (RunState::Exited { code }, _) => format!("{id} has exited with {code}"),
    }
}

/// It could answer, as far as the agent knows.
fn is_ready(status: &InstanceStatus) -> bool {
    status.state == RunState::Running && matches!(status.health, Health::None | Health::Healthy)
}

#[cfg(test)]
mod tests;
