//! When an instance is started again, and what its health checks mean: the rules of Compose and Docker.
//!
//! Pure: time is a parameter, nothing is started or run in here.

use std::time::Duration;

use palisade_core::instance::Health;
use palisade_core::stack::{Healthcheck, Restart};

/// The first pause before a restart; it doubles with each.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Whoever ran this long gets the first pause again.
const RAN_WELL: Duration = Duration::from_secs(10);
/// A service that is up at once should not be called "starting" for a whole interval.
const FIRST_CHECK_MAX: Duration = Duration::from_secs(1);

/// Counts the restarts of one instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Restarts {
    /// Since it was created or started by hand.
    pub(super) count: u32,
    in_a_row: u32,
}

impl Restarts {
    /// Continues the count of a former agent.
    pub(super) fn continued(count: u32) -> Self {
        Self { count, in_a_row: 0 }
    }

    /// After an exit: how long to pause before the next start, or `None` to leave it.
    pub(super) fn next(&mut self, policy: Restart, code: i32, ran: Duration) -> Option<Duration> {
        let again = match policy {
            Restart::No => false,
            Restart::Always | Restart::UnlessStopped => true,
            Restart::OnFailure { attempts_max } => code != 0 && attempts_max.is_none_or(|max| self.count < max),
        };
        if !again {
            return None;
        }
        if ran >= RAN_WELL {
            self.in_a_row = 0;
        }
        let pause = PAUSE_FIRST.saturating_mul(1u32.checked_shl(self.in_a_row).unwrap_or(u32::MAX)).min(PAUSE_MAX);
        self.count += 1;
        self.in_a_row = (self.in_a_row + 1).min(16);
        Some(pause)
    }
}

/// What is known about the health of one run of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HealthState {
    pub(super) health: Health,
    failures_in_a_row: u32,
}

impl HealthState {
    pub(super) fn new(health: Health) -> Self {
        Self { health, failures_in_a_row: 0 }
    }

    /// How long after the start the first check runs.
    pub(super) fn first_check(check: &Healthcheck) -> Duration {
        Duration::from_millis(check.interval_ms.min(check.start_interval_ms)).min(FIRST_CHECK_MAX)
    }

    /// The pause from one check to the next, `since_start` after the start.
    pub(super) fn pause(&self, check: &Healthcheck, since_start: Duration) -> Duration {
        let early = self.health == Health::Starting && self.forgiving(check, since_start);
        let interval_ms = if early { check.interval_ms.min(check.start_interval_ms) } else { check.interval_ms };
        // A check that runs without a pause would take a processor of its own.
        Duration::from_millis(interval_ms.max(10))
    }

    /// Failures don't count in the start period, nor before the first regular check: those early ones are our own
    /// addition, which may only make a service healthy sooner.
    fn forgiving(&self, check: &Healthcheck, since_start: Duration) -> bool {
        since_start < Duration::from_millis(check.start_period_ms.max(check.interval_ms))
    }

    /// Takes the result of a check that ended `since_start` after the start.
    pub(super) fn took(&mut self, check: &Healthcheck, passed: bool, since_start: Duration) {
        if passed {
            self.failures_in_a_row = 0;
            self.health = Health::Healthy;
        } else if self.health != Health::Starting || !self.forgiving(check, since_start) {
            self.failures_in_a_row += 1;
            if self.failures_in_a_row >= check.retries.max(1) {
                self.health = Health::Unhealthy;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::stack::HealthTest;

    #[test]
    fn pauses_double_are_capped_and_start_anew_after_a_good_run() {
        let mut restarts = Restarts::default();
        let short = Duration::from_secs(1);
        let pauses: Vec<u128> =
            (0..12).map(|_| restarts.next(Restart::Always, 0, short).unwrap().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]);
        assert_eq!(restarts.next(Restart::Always, 0, RAN_WELL), Some(PAUSE_FIRST));
        assert_eq!(restarts.count, 13);
    }

    #[test]
    fn policies_decide_by_exit_code_and_count() {
        let short = Duration::from_secs(1);
        let next = |policy, code| Restarts::default().next(policy, code, short).is_some();
        assert!(!next(Restart::No, 1));
        assert!(next(Restart::UnlessStopped, 0));
        assert!(!next(Restart::OnFailure { attempts_max: None }, 0));
        let mut restarts = Restarts::default();
        let policy = Restart::OnFailure { attempts_max: Some(2) };
        let again: Vec<bool> = (0..3).map(|_| restarts.next(policy, 1, short).is_some()).collect();
        assert_eq!(again, [true, true, false]);
    }

    #[test]
    fn health_follows_compose() {
        let check = Healthcheck {
            test: HealthTest::Shell("true".into()),
            interval_ms: 10_000,
            timeout_ms: 1_000,
            retries: 2,
            start_period_ms: 60_000,
            start_interval_ms: 2_000,
        };
        let at = Duration::from_secs;
        let mut state = HealthState::new(Health::Starting);
        state.took(&check, false, at(1));
        state.took(&check, false, at(59));
        assert_eq!((state.health, state.pause(&check, at(1))), (Health::Starting, at(2)));
        state.took(&check, false, at(61));
        assert_eq!(state.health, Health::Starting);
        state.took(&check, false, at(71));
        assert_eq!((state.health, state.pause(&check, at(71))), (Health::Unhealthy, at(10)));
        state.took(&check, true, at(81));
        assert_eq!(state.health, Health::Healthy);
        // Once healthy, the start period is over.
        let mut state = HealthState::new(Health::Starting);
        state.took(&check, true, at(2));
        state.took(&check, false, at(4));
        assert_eq!(state.health, Health::Healthy);
        state.took(&check, false, at(6));
        assert_eq!(state.health, Health::Unhealthy);
    }
}
