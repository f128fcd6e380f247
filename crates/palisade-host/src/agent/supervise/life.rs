//! How an instance is started, taken over, stopped, and started again when it ends.

use std::time::{Duration, Instant};

use palisade_core::causes::chain;
use palisade_core::instance::{Health, InstanceSpec, InstanceStatus, Program, RunState};
use serde_json::json;

use super::super::rules::{HealthState, Restarts};
use super::super::ship::ship;
use super::hooks::Moment;
use super::{Reply, Saved, Stopping, Worker, lock, now_s};
use crate::cgroup::Cgroup;
use crate::runtime::{self, Exit, Found, Running};

/// What a container printed is in the log within this time after its end.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Worker {
    pub(super) fn start_by_user(&mut self, spec: InstanceSpec) -> Result<(), String> {
        if self.running.is_some() {
            return if spec.fingerprint() == self.spec.fingerprint() && self.stopping.is_none() {
                Ok(())
            } else {
                Err(format!("{} runs with another specification: stop it first", spec.id))
            };
        }
        self.spec = spec;
        *lock(&self.shared.spec) = self.spec.clone();
        self.stopped_by_user = false;
        self.restart_at = None;
        self.restarts = Restarts::default();
        self.by_user = true;
        let (digest, address) = (self.spec.fingerprint().digest, self.spec.address);
        self.publish(|status| {
            status.spec_digest = digest;
            status.address = address;
        });
        self.start().map_err(|error| {
            // What can't even be executed is a mistake to be told, not one to be tried again.
            let message = chain(&error);
            self.event("start_failed", json!({ "error": message }));
            self.publish(|status| status.state = RunState::Exited { code: 127 });
            message
        })
    }

    pub(super) fn start(&mut self) -> Result<(), runtime::Error> {
        self.run += 1;
        self.started = Instant::now();
        self.health = HealthState::new(if self.spec.healthcheck.is_some() { Health::Starting } else { Health::None });
        self.check_at = None;
        self.publish(|status| {
            status.state = RunState::Starting;
            status.started_at_s = now_s();
            status.health_output = None;
            status.hook_failure = None;
        });
        self.hook_failure = None;
        match runtime::start(self.layout(), &self.spec, self.exe()) {
            Ok(Found::Running(running)) => {
                self.event("started", json!({ "pid": running.process().pid }));
                self.runs(running);
                self.check_at =
                    self.spec.healthcheck.as_ref().map(|check| self.started + HealthState::first_check(check));
                Ok(())
            }
            Ok(Found::Ended(exit)) => {
                if let Program::Container(program) = &self.spec.program {
                    // What it printed before anybody followed is what says why.
                    ship(self.layout(), &self.spec, program, None);
                }
                self.exited(exit.unwrap_or(Exit { code: 128 + libc::SIGKILL, ended_at_s: now_s() }));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// It runs; it counts as started when its `post_start` is through.
    pub(super) fn runs(&mut self, running: Running) {
        self.ship_output(&running);
        self.running = Some(running);
        if self.spec.settings.post_start.is_empty() {
            self.publish(|status| status.state = RunState::Running);
        } else {
            self.publish(|status| status.state = RunState::Starting);
            self.hook(Moment::PostStart);
        }
    }

    /// A process writes its log itself; what a container prints is with its engine.
    fn ship_output(&mut self, running: &Running) {
        let Program::Container(program) = self.spec.program.clone() else { return };
        let Ok(running) = running.try_clone() else { return };
        let (layout, spec) = (self.layout().clone(), self.spec.clone());
        let work = move || ship(&layout, &spec, &program, Some(&running));
        match std::thread::Builder::new().name("log".into()).spawn(work) {
            Ok(thread) => self.shipping = Some(thread),
            Err(error) => eprintln!("{}: cannot start a thread for its log: {error}", self.id()),
        }
    }

    /// Whoever learns that it has ended finds its last words in the log, unless its engine is too slow.
    fn await_last_words(&mut self) {
        let deadline = Instant::now() + LAST_WORDS;
        while self.shipping.as_ref().is_some_and(|thread| !thread.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.shipping = None;
    }

    pub(super) fn adopt(&mut self, saved: Option<Saved>, found: Option<Found>) {
        if let Some(saved) = &saved {
            self.restarts = Restarts::continued(saved.status.restarts);
            self.stopped_by_user = saved.stopped_by_user;
            let ran_s = now_s().saturating_sub(saved.status.started_at_s);
            self.started = Instant::now().checked_sub(Duration::from_secs(ran_s)).unwrap_or_else(Instant::now);
            *lock(&self.shared.status) = saved.status.clone();
            if let RunState::Exited { code } = saved.status.state {
                self.last_code = code;
            }
        }
        match found {
            Some(Found::Running(running)) => {
                let known = saved.as_ref().map(|saved| saved.status.health);
                self.health = match (&self.spec.healthcheck, known) {
                    (None, _) => HealthState::new(Health::None),
                    (Some(_), Some(health @ (Health::Healthy | Health::Unhealthy))) => HealthState::new(health),
                    (Some(_), _) => HealthState::new(Health::Starting),
                };
                self.check_at = self.spec.healthcheck.as_ref().map(|_| Instant::now());
                if saved.as_ref().is_some_and(|saved| saved.status.state == RunState::Starting) {
                    // Whether its hooks got through isn't known: they run once more.
                    self.runs(running);
                } else {
                    self.ship_output(&running);
                    self.running = Some(running);
                    self.publish(|status| status.state = RunState::Running);
                }
                if self.stopped_by_user {
                    // The agent that was told to stop it died before it was done.
                    self.begin_to_stop(None);
                }
            }
            Some(Found::Ended(exit)) => {
                let stays =
                    matches!(saved, Some(Saved { status: InstanceStatus { state: RunState::Exited { .. }, .. }, .. }));
                if !stays {
                    self.exited(exit.unwrap_or(Exit { code: 128 + libc::SIGKILL, ended_at_s: now_s() }));
                }
            }
            None => self.publish(|status| status.state = RunState::Exited { code: 0 }),
        }
    }

    /// The init process is gone.
    pub(super) fn ended(&mut self) {
        let before = self.running.as_ref().map(Running::process);
        let found = runtime::find(self.layout(), self.id());
        let exit = match found {
            Ok(Some(Found::Ended(Some(exit)))) => exit,
            // Killed as a whole, by us or for want of memory.
            _ => Exit { code: 128 + libc::SIGKILL, ended_at_s: now_s() },
        };
        // After `docker restart` there is another one by now.
        if !matches!(found, Ok(Some(Found::Ended(Some(_)))))
            && self.stopping.is_none()
            && let Ok(Some(running)) = runtime::find_started_by_others(self.layout(), &self.spec)
            && Some(running.process()) != before
        {
            self.await_last_words();
            return self.started_by_others(running);
        }
        self.await_last_words();
        self.exited(exit);
    }

    pub(super) fn exited(&mut self, mut exit: Exit) {
        self.running = None;
        let hook_failure = self.hook_failure.take();
        if let Some((_, code)) = &hook_failure {
            // How it reacted to the stop signal says nothing: that it was sent is a failure.
            exit.code = *code;
        }
        let told = hook_failure.map(|(message, _)| message);
        if told.is_some() {
            self.publish(|status| status.hook_failure = told.clone());
        }
        let ordered = self.stopped_by_user || (self.stopping.is_some() && (told.is_none() || self.by_user));
        self.check_at = None;
        self.last_code = exit.code;
        // A health check may be on its way inside. What an engine has in there is its own to end: it still writes down
        // how the container ended.
        let leftovers = Cgroup::of(self.layout(), &self.spec).and_then(|cgroup| match self.spec.program {
            Program::Process(_) => cgroup.kill(),
            Program::Container(_) => Ok(()),
        });
        if let Err(error) = leftovers {
            eprintln!("{}: {}", self.id(), chain(&error));
        }
        self.event("exited", json!({ "code": exit.code }));
        let next =
            if ordered { None } else { self.restarts.next(self.spec.restart, exit.code, self.started.elapsed()) };
        self.health = HealthState::new(if self.spec.healthcheck.is_some() { Health::Starting } else { Health::None });
        match next {
            Some(pause) => {
                self.event("restarting", json!({ "in_ms": pause.as_millis() as u64 }));
                self.restart_at = Some(Instant::now() + pause);
                self.publish(|status| status.state = RunState::BackingOff);
            }
            None => self.publish(|status| status.state = RunState::Exited { code: exit.code }),
        }
        for reply in self.stopping.take().into_iter().flat_map(|stopping| stopping.replies) {
            let _ = reply.send(Ok(()));
        }
    }

    pub(super) fn stop_by_user(&mut self, reply: Reply) {
        self.stopped_by_user = true;
        if let Some(stopping) = &mut self.stopping {
            stopping.replies.push(reply);
            return;
        }
        if self.running.is_some() {
            // Noted before the signal: an agent that comes after us must know that it shall end.
            self.publish(|_| {});
            return self.begin_to_stop(Some(reply));
        }
        if self.restart_at.take().is_some() {
            let code = self.last_code;
            self.publish(|status| status.state = RunState::Exited { code });
        } else {
            self.publish(|_| {});
        }
        let _ = reply.send(Ok(()));
    }

    pub(super) fn begin_to_stop(&mut self, reply: Option<Reply>) {
        let deadline = Instant::now() + Duration::from_millis(self.spec.stop_grace_ms);
        let replies = reply.into_iter().collect();
        self.stopping = Some(Stopping { deadline, signalled: false, killed: false, replies });
        if self.spec.settings.pre_stop.is_empty() || self.hook_failure.is_some() {
            self.send_stop_signal();
        } else {
            self.hook(Moment::PreStop);
        }
    }

    pub(super) fn send_stop_signal(&mut self) {
        self.event("stopping", json!({ "signal": self.spec.stop_signal }));
        let signal = runtime::signal_number(&self.spec.stop_signal).unwrap_or(libc::SIGTERM);
        if let Some(running) = &self.running {
            let _ = running.signal(signal);
        }
        if let Some(stopping) = &mut self.stopping {
            stopping.signalled = true;
        }
    }
}
