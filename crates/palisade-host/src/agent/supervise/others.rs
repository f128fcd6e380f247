//! A container that somebody else starts, at its engine: it comes up in its guarded cgroup, and has to be known.

use std::time::{Duration, Instant};

use palisade_core::causes::chain;
use palisade_core::instance::Health;
use serde_json::json;

use super::super::rules::HealthState;
use super::{Worker, now_s};
use crate::cgroup::{self, Cgroup};
use crate::runtime::{self, Running};

/// When somebody has come into the cgroup of a container that doesn't run, its engine says so within this time.
const STARTED_BY_OTHERS_WAIT: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile.
const STARTED_BY_OTHERS_PAUSE: Duration = Duration::from_millis(200);

impl Worker {
    /// A container that shall not run may be started all the same, by `docker start` or `docker restart`: it comes up in
    /// its guarded cgroup, and has to be known. While one is to be started here, nobody else is waited for.
    pub(super) fn watch_for_others(&mut self) {
        let waits = self.running.is_none() && self.restart_at.is_none() && self.stopping.is_none();
        if !waits || self.spec.program.container().is_none() {
            (self.events, self.look) = (None, None);
        } else if self.events.is_none() {
            self.events = Cgroup::of(self.layout(), &self.spec).and_then(|cgroup| cgroup.events()).ok();
            self.look_soon();
        }
    }

    /// Something has changed in the cgroup.
    pub(super) fn look_soon(&mut self) {
        let populated = self.events.as_ref().is_some_and(cgroup::Events::is_populated);
        let now = Instant::now();
        self.look = populated.then_some((now, now + STARTED_BY_OTHERS_WAIT));
    }

    /// The engine says that a container runs a little after its process is there.
    pub(super) fn look_for_others(&mut self, now: Instant) {
        let Some((_, until)) = self.look.take() else { return };
        match runtime::find_started_by_others(self.layout(), &self.spec) {
            Ok(Some(running)) => self.started_by_others(running),
            Ok(None) | Err(_) if now < until => self.look = Some((now + STARTED_BY_OTHERS_PAUSE, until)),
            Ok(None) => {}
            Err(error) => eprintln!("{}: {}", self.id(), chain(&error)),
        }
    }

    pub(super) fn started_by_others(&mut self, running: Running) {
        self.run += 1;
        self.started = Instant::now();
        self.stopped_by_user = false;
        self.hook_failure = None;
        self.health = HealthState::new(if self.spec.healthcheck.is_some() { Health::Starting } else { Health::None });
        self.check_at = self.spec.healthcheck.as_ref().map(|check| self.started + HealthState::first_check(check));
        self.event("started", json!({ "pid": running.process().pid, "by": "somebody else, at the engine" }));
        self.publish(|status| {
            status.started_at_s = now_s();
            status.health_output = None;
            status.hook_failure = None;
        });
        self.runs(running);
    }
}
