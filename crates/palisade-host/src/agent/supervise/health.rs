//! The health check of an instance, and what comes of it.

use std::time::{Duration, Instant};

use palisade_core::causes::chain;
use palisade_core::stack::HealthTest;
use serde_json::json;

use super::{Order, Supervised, Surroundings, Worker};
use crate::edge;
use crate::runtime::{self, EnterOptions, Inside};

/// What a health check printed is kept up to this.
const HEALTH_OUTPUT_BYTES_MAX: usize = 4096;

impl Worker {
    /// Runs the health check on a thread of its own; its result comes back as an order.
    pub(super) fn check(&self) {
        let (Some(check), Some(running)) = (&self.spec.healthcheck, &self.running) else { return };
        let inside = match &check.test {
            HealthTest::Command(line) => Inside::Command(line.clone()),
            HealthTest::Shell(script) => Inside::Command(vec!["/bin/sh".into(), "-c".into(), script.clone()]),
            HealthTest::Own(arguments) => Inside::Same(arguments.clone()),
        };
        let timeout = Duration::from_millis(check.timeout_ms);
        let options = EnterOptions { timeout, output_bytes_max: HEALTH_OUTPUT_BYTES_MAX, as_root: false };
        let (surroundings, spec, run) = (self.surroundings.clone(), self.spec.clone(), self.run);
        let supervised = Supervised(self.shared.clone());
        let Ok(running) = running.try_clone() else { return };
        let asks = edge::asks_itself(&spec);
        let work = move || {
            let Surroundings { layout, exe, .. } = &surroundings;
            if asks {
                // It answers the agent over its socket: no process has to be started for that.
                let (passed, output) = edge::health(layout, spec.id.number, timeout);
                return supervised.order(Order::Checked { run, passed, output });
            }
            let result = runtime::enter(layout, &spec, &running, exe, inside, options);
            let (passed, output) = match result {
                Ok(result) => {
                    let text = String::from_utf8_lossy(&result.output).into_owned();
                    match result.code {
                        Some(0) => (true, text),
                        Some(code) => {
                            (false, if text.is_empty() { format!("it exited with code {code}") } else { text })
                        }
                        None => (false, format!("it took longer than {} ms\n{text}", timeout.as_millis())),
                    }
                }
                Err(error) => (false, chain(&error)),
            };
            supervised.order(Order::Checked { run, passed, output });
        };
        let failed = std::thread::Builder::new().name("health check".into()).spawn(work).err();
        if let Some(error) = failed {
            let output = format!("cannot start a thread: {error}");
            Supervised(self.shared.clone()).order(Order::Checked { run, passed: false, output });
        }
    }

    pub(super) fn checked(&mut self, run: u64, passed: bool, output: String) {
        if run != self.run || self.running.is_none() {
            return;
        }
        let Some(check) = self.spec.healthcheck.clone() else { return };
        let (before, since_start) = (self.health.health, self.started.elapsed());
        self.health.took(&check, passed, since_start);
        self.check_at = Some(Instant::now() + self.health.pause(&check, since_start));
        let now = self.health.health;
        if now != before {
            self.event("health", json!({ "from": before, "to": now, "output": if passed { "" } else { &output } }));
        }
        self.publish(|status| {
            if !passed {
                status.health_output = Some(output);
            } else {
                status.health_output = None;
            }
        });
    }
}
