//! Health checks: what is run, and when.

use serde::{Deserialize, Serialize};

/// `healthcheck`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healthcheck {
    /// What is run inside the service; exit code 0 is healthy.
    pub test: HealthTest,
    /// Default 30 s, as in Compose.
    pub interval_ms: u64,
    /// Default 30 s.
    pub timeout_ms: u64,
    /// Default 3.
    pub retries: u32,
    /// Failures in this time after the start don't count. Default 0.
    pub start_period_ms: u64,
    /// Time between checks during the start period. Default 5 s.
    pub start_interval_ms: u64,
}

/// What a health check gets beyond the time that its own settings add up to.
pub(crate) const HEALTH_MARGIN_MS: u64 = 10_000;

impl Healthcheck {
    /// Time in milliseconds after which it is certain whether what was just started is healthy, with some reserve.
    pub fn verdict_within_ms(&self) -> u64 {
        let once = self.interval_ms.saturating_add(self.timeout_ms);
        let needed = self.start_period_ms.saturating_add(once.saturating_mul(u64::from(self.retries).max(1)));
        needed.saturating_add(HEALTH_MARGIN_MS)
    }
}

/// What a file says about the check that an image brings; `None`: what the image says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "as in `Healthcheck`")]
pub struct HealthTimes {
    pub interval_ms: Option<u64>,
    pub timeout_ms: Option<u64>,
    pub retries: Option<u32>,
    pub start_period_ms: Option<u64>,
    pub start_interval_ms: Option<u64>,
}

impl HealthTimes {
    /// It says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The check with these times in place of its own.
    pub fn over(&self, check: Healthcheck) -> Healthcheck {
        Healthcheck {
            test: check.test,
            interval_ms: self.interval_ms.unwrap_or(check.interval_ms),
            timeout_ms: self.timeout_ms.unwrap_or(check.timeout_ms),
            retries: self.retries.unwrap_or(check.retries),
            start_period_ms: self.start_period_ms.unwrap_or(check.start_period_ms),
            start_interval_ms: self.start_interval_ms.unwrap_or(check.start_interval_ms),
        }
    }

    /// A check with this test, and Compose's times where none are given.
    pub fn with(&self, test: HealthTest) -> Healthcheck {
        self.over(Healthcheck {
            test,
            interval_ms: 30_000,
            timeout_ms: 30_000,
            retries: 3,
            start_period_ms: 0,
            start_interval_ms: 5_000,
        })
    }
}

/// `healthcheck.test`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthTest {
    /// `["CMD", …]`: argument vector.
    Command(Vec<String>),
    /// `["CMD-SHELL", …]` or a string: for `/bin/sh -c`.
    Shell(String),
    /// Palisade's own program with these arguments; no file says that.
    Own(Vec<String>),
}
