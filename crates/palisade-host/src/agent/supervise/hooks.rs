//! Commands of the file's that run inside, once an instance runs and before it is told to stop.

use std::time::{Duration, Instant};

use palisade_core::causes::chain;
use palisade_core::instance::{InstanceSpec, Program, RunState};
use palisade_core::stack::Hook;
use serde_json::json;

use super::{AFTER_PRE_STOP, Order, Supervised, Surroundings, Worker};
use crate::runtime::{self, EnterOptions, Inside, Running};

/// What one hook printed goes into the log up to this.
const HOOK_OUTPUT_BYTES_MAX: usize = 64 << 10;
/// A hook has no time limit of its own, as in Compose.
const HOOK_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);

/// When hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    PostStart,
    PreStop,
}

impl Moment {
    fn name(self) -> &'static str {
        match self {
            Moment::PostStart => "post_start",
            Moment::PreStop => "pre_stop",
        }
    }
}

impl Worker {
    /// Runs the hooks of a moment, one after the other, on a thread of its own; the result comes back as an order.
    pub(super) fn hook(&self, moment: Moment) {
        let (run, supervised) = (self.run, Supervised(self.shared.clone()));
        let (hooks, timeout) = match moment {
            Moment::PostStart => (self.spec.settings.post_start.clone(), HOOK_TIMEOUT),
            Moment::PreStop => {
                (self.spec.settings.pre_stop.clone(), Duration::from_millis(self.spec.stop_grace_ms) + AFTER_PRE_STOP)
            }
        };
        let running = self.running.as_ref().map(Running::try_clone);
        let Some(Ok(running)) = running else {
            let result = Err(("its process can't be reached".to_owned(), 1));
            return supervised.order(Order::Hooked { run, moment, result });
        };
        let (surroundings, spec) = (self.surroundings.clone(), self.spec.clone());
        let work = move || {
            let result = run_hooks(&surroundings, &spec, &running, moment, &hooks, timeout);
            supervised.order(Order::Hooked { run, moment, result });
        };
        if let Err(error) = std::thread::Builder::new().name("hook".into()).spawn(work) {
            let result = Err((format!("cannot start a thread: {error}"), 1));
            Supervised(self.shared.clone()).order(Order::Hooked { run, moment, result });
        }
    }

    pub(super) fn hooked(&mut self, run: u64, moment: Moment, result: Result<(), (String, i32)>) {
        if run != self.run || self.running.is_none() {
            return;
        }
        if let Err((message, code)) = &result {
            self.event("hook_failed", json!({ "hook": moment.name(), "error": message, "code": code }));
        }
        match (moment, result) {
            (Moment::PreStop, _) => {
                // A hook that failed is told, and no reason to go on running.
                if self.stopping.as_ref().is_some_and(|stopping| !stopping.signalled) {
                    self.send_stop_signal();
                }
            }
            (Moment::PostStart, Ok(())) => self.publish(|status| status.state = RunState::Running),
            (Moment::PostStart, Err(failure)) if self.stopping.is_none() => {
                self.hook_failure = Some(failure);
                self.begin_to_stop(None);
            }
            (Moment::PostStart, Err(_)) => {}
        }
    }
}

/// Runs hooks until one fails; says which, by its number and program (arguments may be secrets), and its exit code.
fn run_hooks(
    surroundings: &Surroundings,
    spec: &InstanceSpec,
    running: &Running,
    moment: Moment,
    hooks: &[Hook],
    timeout: Duration,
) -> Result<(), (String, i32)> {
    let Surroundings { layout, exe, .. } = surroundings;
    let deadline = Instant::now() + timeout;
    for (number, hook) in (1..).zip(hooks) {
        let mut spec = spec.clone();
        let (user, working_dir) = match &mut spec.program {
            Program::Process(process) => (&mut process.user, &mut process.working_dir),
            Program::Container(container) => (&mut container.settings.user, &mut container.settings.working_dir),
        };
        if hook.user.is_some() {
            user.clone_from(&hook.user);
        }
        if hook.working_dir.is_some() {
            working_dir.clone_from(&hook.working_dir);
        }
        spec.environment.extend(hook.environment.iter().map(|(name, value)| (name.clone(), value.clone())));
        let timeout = deadline.saturating_duration_since(Instant::now());
        let options = EnterOptions { timeout, output_bytes_max: HOOK_OUTPUT_BYTES_MAX, as_root: false };
        let program = hook.command.first().map_or("", String::as_str);
        let failed =
            |how: String, code| Err((format!("its {} hook {number} (`{program}`) {how}", moment.name()), code));
        match runtime::enter(layout, &spec, running, exe, Inside::Command(hook.command.clone()), options) {
            Ok(result) => {
                if let Err(error) = runtime::logs::append(&layout.log(&spec.id), &result.output) {
                    eprintln!("{}: cannot log what a hook printed: {error}", spec.id);
                }
                match result.code {
                    Some(0) => {}
                    Some(code) => return failed(format!("exited with {code}"), code),
                    None => return failed("took too long".to_owned(), 1),
                }
            }
            Err(error) => return failed(format!("can't be run: {}", chain(&error)), 1),
        }
    }
    Ok(())
}
