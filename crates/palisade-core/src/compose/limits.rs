//! Replicas and limits, below `deploy` and beside it, and how instances are replaced.
//!
//! Whether two spellings of one limit agree is checked in `validate`.

use super::file::FileService;
use super::keys;
use super::read::{Fields, Reader};
use super::units;
use super::yaml::{Entry, Node};
use crate::diagnostic::{Diagnostic, Span, Spanned};
use crate::stack::{CpuSet, FailureAction, Restart, UpdateOrder, UpdatePolicy};

const SIZE_HINT: &str = "write bytes or a number with a unit, like `512m` or `2g`";
const CPUS_HINT: &str = "write a decimal number, like `0.5` or `2`";
const COUNT_HINT: &str = "write a whole number";
/// Docker's `cpu_period` when none is given, in microseconds.
const PERIOD_US: u64 = 100_000;

impl Reader<'_> {
    pub(crate) fn limits(&mut self, fields: &mut Fields<'_>, service: &mut FileService) {
        if let Some(node) = fields.value("scale") {
            service.replicas.extend(self.number(node, "`scale`", COUNT_HINT));
        }
        if let Some(node) = fields.value("mem_limit") {
            service.memory_bytes.extend(self.memory(node));
        }
        if let Some(node) = fields.value("mem_reservation") {
            service.memory_reservation_bytes.extend(self.memory(node));
        }
        if let Some(node) = fields.value("memswap_limit") {
            let hint = "write bytes or a number with a unit, like `2g`; -1 is as much swap as there is";
            let bytes = self.parsed(node, "a size", hint, |text| match text {
                "-1" => Some(u64::MAX),
                _ => units::bytes(text, 1024),
            });
            // 0 is how Docker writes "not given".
            service.memory_swap_bytes = bytes.filter(|bytes| *bytes > 0).map(|bytes| Spanned::new(bytes, node.span));
        }
        if let Some(node) = fields.value("pids_limit") {
            service.pids.extend(self.pids(node));
        }
        self.processors(fields, service);
        let Some(mut deploy) = fields.value("deploy").and_then(|node| self.fields(node, &keys::DEPLOY)) else { return };
        if let Some(node) = deploy.value("replicas") {
            service.replicas.extend(self.number(node, "`replicas`", COUNT_HINT));
        }
        if let Some(node) = deploy.value("mode") {
            let hint = "`replicated` and `global` are; for a job, use `restart: on-failure` or `restart: no`";
            self.parsed(node, "a mode that Palisade has", hint, |mode| {
                matches!(mode, "replicated" | "global").then_some(())
            });
        }
        if let Some(node) = deploy.value("resources") {
            self.resources(node, service);
        }
        if let Some(entry) = deploy.take("restart_policy") {
            self.restart_policy(entry, service);
        }
        if let Some(node) = deploy.value("update_config") {
            service.update = self.update_policy(node, &keys::UPDATE_CONFIG);
        }
        if let Some(node) = deploy.value("rollback_config") {
            service.rollback = self.update_policy(node, &keys::ROLLBACK_CONFIG);
        }
        deploy.finish();
    }

    fn processors(&mut self, fields: &mut Fields<'_>, service: &mut FileService) {
        if let Some(node) = fields.value("cpus") {
            service.cpu_milli.extend(self.cpus(node));
        }
        if let Some(node) = fields.value("cpu_count") {
            let count = self.number::<u32>(node, "`cpu_count`", COUNT_HINT);
            service.cpu_milli.extend(count.map(|count| Spanned::new(u64::from(count.value) * 1000, count.span)));
        }
        let period = fields.value("cpu_period").and_then(|node| {
            let hint = "write microseconds from 1000 to 1000000, or a duration like `100ms`";
            // 0 is how Docker writes "not given".
            self.parsed(node, "a `cpu_period`", hint, |text| {
                microseconds(text).filter(|us| *us == 0 || (1_000..=1_000_000).contains(us))
            })
        });
        if let Some(node) = fields.value("cpu_quota") {
            let hint = "write microseconds of at least 1000, or a duration like `50ms`; -1 is unlimited";
            let quota = self.parsed(node, "a `cpu_quota`", hint, |text| match text {
                "-1" => Some(0),
                _ => microseconds(text).filter(|us| *us == 0 || *us >= 1_000),
            });
            let period = period.filter(|us| *us > 0).unwrap_or(PERIOD_US);
            let milli = quota.map(|quota| quota.saturating_mul(1000).div_ceil(period));
            service.cpu_milli.extend(milli.map(|milli| Spanned::new(milli, node.span)));
        }
        if let Some(node) = fields.value("cpu_shares") {
            let hint = "write a whole number from 2 to 262144; 1024 is usual";
            let shares = self.parsed(node, "a `cpu_shares`", hint, |text| {
                text.parse::<u64>().ok().filter(|shares| *shares == 0 || (2..=262_144).contains(shares))
            });
            service.cpu_shares = shares.filter(|shares| *shares > 0);
        }
        if let Some(node) = fields.value("cpuset") {
            let hint = "write the processors' numbers, like `0-3` or `0,2`";
            let set = self.parsed(node, "a set of processors", hint, cpuset);
            service.cpuset = set.filter(|set| !set.0.is_empty());
        }
    }

    fn resources(&mut self, node: &Node, service: &mut FileService) {
        let Some(mut resources) = self.fields(node, &keys::RESOURCES) else { return };
        let limits = resources.value("limits");
        if let Some(mut limits) = limits.and_then(|node| self.fields(node, &keys::RESOURCE_LIMITS)) {
            if let Some(node) = limits.value("memory") {
                service.memory_bytes.extend(self.memory(node));
            }
            if let Some(node) = limits.value("cpus") {
                service.cpu_milli.extend(self.cpus(node));
            }
            if let Some(node) = limits.value("pids") {
                service.pids.extend(self.pids(node));
            }
            limits.finish();
        }
        let reservations = resources.value("reservations");
        if let Some(mut reservations) = reservations.and_then(|node| self.fields(node, &keys::RESERVATIONS)) {
            if let Some(node) = reservations.value("memory") {
                service.memory_reservation_bytes.extend(self.memory(node));
            }
            for entry in reservations.image.clone() {
                self.reserved_devices(entry, service);
            }
            reservations.finish();
        }
        resources.finish();
    }

    fn memory(&mut self, node: &Node) -> Option<Spanned<u64>> {
        let bytes = self.parsed(node, "a size", SIZE_HINT, |text| units::bytes(text, 1024))?;
        Some(Spanned::new(bytes, node.span))
    }

    fn cpus(&mut self, node: &Node) -> Option<Spanned<u64>> {
        let milli = self.parsed(node, "a number of processors", CPUS_HINT, |text| {
            // What is too little to be a thousandth must not become "unlimited".
            units::cpu_milli(text).filter(|milli| *milli > 0 || text.chars().all(|c| matches!(c, '0' | '.')))
        })?;
        Some(Spanned::new(milli, node.span))
    }

    fn pids(&mut self, node: &Node) -> Option<Spanned<u64>> {
        let number = self.number::<i64>(node, "a limit of processes", "write a whole number; -1 is unlimited")?;
        if number.value < -1 {
            self.push(
                Diagnostic::error("invalid-value", "a limit of processes can't be negative")
                    .at(number.span, "")
                    .hint("write a whole number; -1 is unlimited"),
            );
            return None;
        }
        Some(Spanned::new(u64::try_from(number.value).unwrap_or(0), number.span))
    }

    /// `deploy.restart_policy`: `restart` goes before it, as in Docker Compose.
    fn restart_policy(&mut self, entry: &Entry, service: &mut FileService) {
        let Some(mut fields) = self.fields(&entry.value, &keys::RESTART_POLICY) else { return };
        let hint = "`none`, `on-failure` and `any` are";
        let condition = fields.value("condition").map_or(Some(Restart::Always), |node| {
            self.parsed(node, "a condition to restart", hint, |text| match text {
                "none" | "no" => Some(Restart::No),
                "on-failure" => Some(Restart::OnFailure { attempts_max: None }),
                "any" | "always" | "" => Some(Restart::Always),
                "unless-stopped" => Some(Restart::UnlessStopped),
                _ => None,
            })
        });
        let attempts = fields.take("max_attempts");
        let attempts_max =
            attempts.and_then(|entry| self.number::<u32>(&entry.value, "`max_attempts`", COUNT_HINT)).map(|n| n.value);
        fields.finish();
        let Some(mut meant) = condition else { return };
        match (&mut meant, attempts.zip(attempts_max.filter(|attempts| *attempts > 0))) {
            (Restart::OnFailure { attempts_max }, Some((_, attempts))) => *attempts_max = Some(attempts),
            (Restart::Always | Restart::UnlessStopped, Some((entry, _))) => self.push(
                Diagnostic::error(
                    "refused-value",
                    "`max_attempts` can't be honoured for a service that is always started again",
                )
                .at(entry.key_span, "")
                .hint("write `condition: on-failure` beside it, or remove it"),
            ),
            _ => {}
        }
        match service.restart_span {
            None => service.restart = meant,
            Some(span) if service.restart != meant => self.push(restarts_differ(entry.key_span, span)),
            Some(_) => {}
        }
    }

    fn update_policy(&mut self, node: &Node, section: &'static keys::Section) -> Option<UpdatePolicy> {
        let mut fields = self.fields(node, section)?;
        let mut policy = UpdatePolicy::default();
        if let Some(node) = fields.value("parallelism") {
            policy.parallelism = self.number(node, "`parallelism`", COUNT_HINT).map_or(1, |number| number.value);
        }
        if let Some(node) = fields.value("delay") {
            policy.delay_ms = self.duration(node).unwrap_or_default();
        }
        if let Some(node) = fields.value("monitor") {
            policy.monitor_ms = self.duration(node);
        }
        if let Some(node) = fields.value("failure_action") {
            let hint = "`pause`, `continue` and `rollback` are; a rollback itself can't be rolled back";
            let rollback = !std::ptr::eq(section, &keys::ROLLBACK_CONFIG);
            let action = self.parsed(node, "what can be done when an instance fails", hint, |text| match text {
                "pause" => Some(FailureAction::Pause),
                "continue" => Some(FailureAction::Continue),
                "rollback" if rollback => Some(FailureAction::Rollback),
                _ => None,
            });
            if matches!(action, Some(FailureAction::Pause | FailureAction::Continue)) {
                self.push(never_half(node.span, "`failure_action`"));
            }
            policy.failure_action = action;
        }
        if let Some(node) = fields.value("max_failure_ratio") {
            let ratio = self.parsed(node, "a `max_failure_ratio`", "write a decimal number from 0 to 1", |text| {
                units::cpu_milli(text).and_then(|milli| u16::try_from(milli).ok()).filter(|milli| *milli <= 1000)
            });
            policy.max_failure_milli = ratio.unwrap_or_default();
            if policy.max_failure_milli > 0 {
                self.push(never_half(node.span, "`max_failure_ratio`"));
            }
        }
        if let Some(node) = fields.value("order") {
            let order = self.parsed(node, "an order", "`stop-first` and `start-first` are", |text| match text {
                "stop-first" => Some(UpdateOrder::StopFirst),
                "start-first" => Some(UpdateOrder::StartFirst),
                _ => None,
            });
            policy.order = order;
        }
        fields.finish();
        Some(policy)
    }
}

/// Nothing is left half new and half old.
fn never_half(span: Span, what: &str) -> Diagnostic {
    Diagnostic::warning("no-effect", format!("{what} has no effect: an update that fails is undone as a whole"))
        .at(span, "")
        .hint("take it away")
}

fn restarts_differ(policy: Span, restart: Span) -> Diagnostic {
    Diagnostic::warning("conflict", "`restart` and `deploy.restart_policy` say different things: `restart` counts")
        .at(policy, "this has no effect")
        .also(restart, "`restart`")
        .hint("keep one of them")
}

/// Microseconds as a number, or as a duration.
fn microseconds(text: &str) -> Option<u64> {
    text.parse().ok().or_else(|| units::duration_us(text))
}

/// `0-3,5`: every range runs forwards, and no number is beyond what kernels count.
fn cpuset(text: &str) -> Option<CpuSet> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u16>().ok()).flatten().filter(|number| *number < 8192)
    };
    let clean: String = text.split_whitespace().collect();
    let fine = clean.is_empty()
        || clean.split(',').all(|range| match range.split_once('-') {
            Some((first, last)) => matches!((number(first), number(last)), (Some(first), Some(last)) if first <= last),
            None => number(range).is_some(),
        });
    fine.then_some(CpuSet(clean))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_processors() {
        assert_eq!(cpuset("0-3, 5").map(|set| set.0).as_deref(), Some("0-3,5"));
        assert!(cpuset("").is_some_and(|set| set.0.is_empty()));
        assert!(["3-0", "a", "0-", "1,,2", "-1", "99999", "0-3-5"].into_iter().all(|text| cpuset(text).is_none()));
    }

    #[test]
    fn microseconds_are_numbers_or_durations() {
        assert_eq!(
            (microseconds("50000"), microseconds("50ms"), microseconds("x")),
            (Some(50_000), Some(50_000), None)
        );
    }
}
