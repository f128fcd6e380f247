//! What a host exposes, to whom, and what is wrong with that: [`facts`] in, rows and findings out.
//!
//! Pure: nothing is read here. Who can reach a port was answered by the kernel (the reachability twin) and is one of the
//! facts; no rule of a firewall is interpreted.

pub mod accepted;
pub mod checked;
mod engine;
mod exposure;
pub mod facts;
pub mod firewalls;
pub mod fix;
mod known;
mod machine;
mod postgres;
pub mod rules;
mod tls;

use serde::Serialize;
use std::collections::BTreeMap;

use crate::compose::risk;
use crate::finding::{Finding, Severity};
use crate::firewall::{Backend, FirewallRules};
use crate::prove::{Door, open_doors};
use crate::stack::{BackendChoice, Stack};
pub use exposure::{Row, idle_ports};
use facts::Facts;
pub(crate) use known::usual_internal;

/// What is meant to be reachable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// Doors that are meant to be open, and why.
    pub doors: BTreeMap<Door, String>,
}

impl Declared {
    /// What a stack publishes and allows, and SSH, whether or not the firewall is Palisade's business.
    pub fn by(stack: &Stack, ssh_ports: &std::collections::BTreeSet<u16>) -> Self {
        let mut own = stack.clone();
        own.firewall.backend = BackendChoice::Nftables;
        let rules = FirewallRules::of(&own, ssh_ports, Backend::Nftables);
        Self { doors: open_doors(rules.as_ref()).unwrap_or_default() }
    }

    /// With what another stack of the host publishes.
    pub fn and(mut self, stack: &str, doors: BTreeMap<Door, String>) -> Self {
        for (door, why) in doors {
            self.doors.entry(door).or_insert_with(|| format!("{why}, of stack {stack}"));
        }
        self
    }
}

/// What an audit has to say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// Every port of the host that somebody listens on, or that is passed on.
    pub ports: Vec<Row>,
    /// What is wrong, the worst first.
    pub findings: Vec<Finding>,
}

/// Judges a host. Without `declared` there is no stack, and what is reachable is judged by what it usually is.
pub fn audit(facts: &Facts, declared: Option<&Declared>) -> Audit {
    let mut ports = exposure::rows(facts, declared);
    let mut findings = exposure::judge(facts, &mut ports, declared);
    findings.extend(firewalls::judge(facts));
    findings.extend(engine::judge(facts));
    findings.extend(machine::judge(facts));
    findings.extend(postgres::judge(facts));
    findings.extend(tls::judge(facts, &mut ports));
    sort(&mut findings);
    Audit { ports, findings }
}

/// The worst first; otherwise in the order of the table, and of subjects.
pub fn sort(findings: &mut [Finding]) {
    let order = |finding: &Finding| rules::RULES.iter().position(|rule| rule.id == finding.id).unwrap_or(usize::MAX);
    findings.sort_by(|a, b| {
        let severity = |finding: &Finding| std::cmp::Reverse(finding.severity);
        (severity(a), order(a), &a.subject).cmp(&(severity(b), order(b), &b.subject))
    });
}

/// A password that is tried first: empty, short, or a word that everybody uses.
pub fn is_weak_password(password: &str) -> bool {
    risk::is_weak_password(password)
}

/// How many findings are at least that bad.
pub fn at_least(findings: &[Finding], severity: Severity) -> usize {
    findings.iter().filter(|finding| finding.severity >= severity).count()
}

#[cfg(test)]
mod tests;
