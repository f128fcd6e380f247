//! Checks a plan for order and safety, whoever made it.
//!
//! It doesn't make plans and doesn't know why one was made.

use std::collections::{HashMap, HashSet};

use crate::action::{Action, Step};
use crate::finding::Finding;
use crate::instance::RunState;
use crate::names::InstanceId;
use crate::observed::Observed;
use crate::plan::Plan;

/// Everything that makes the plan unsafe on this host. A plan of ours has none: one is a fault of the planner, and
/// the plan must not be carried out.
pub fn lint(plan: &Plan, host: &Observed) -> Vec<Finding> {
    let mut linter = Linter {
        agent: host.agent.is_some(),
        guard: host.guard.is_some(),
        policy: host.guard.as_ref().is_some_and(|guard| guard.policy_digest.is_some()),
        guarded: host.guard.iter().flat_map(|guard| guard.attached.keys()).collect(),
        alive: host
            .instances
            .iter()
            .map(|seen| (&seen.status.id, !matches!(seen.status.state, RunState::Exited { .. })))
            .collect(),
        host,
        findings: Vec::new(),
    };
    for (number, step) in (1..).zip(&plan.steps) {
        linter.step(number, step);
    }
    linter.findings
}

struct Linter<'a> {
    agent: bool,
    guard: bool,
    policy: bool,
    guarded: HashSet<&'a InstanceId>,
    alive: HashMap<&'a InstanceId, bool>,
    host: &'a Observed,
    findings: Vec<Finding>,
}

impl<'a> Linter<'a> {
    fn step(&mut self, number: usize, step: &'a Step) {
        let mut require = |holds: bool, id: &'static str, why: &str| {
            if !holds {
                let message = format!("step {number}, `{}`: {why}", step.action);
                self.findings.push(Finding::error(id, "plan", message));
            }
        };
        match &step.action {
            Action::StartAgent => self.agent = true,
            Action::LoadGuard => self.guard = true,
            Action::GuardInstance { id, .. } => {
                require(self.guard, "guard-not-loaded", "the guard isn't loaded by then");
                self.guarded.insert(id);
            }
            Action::SetPolicy { .. } => {
                require(self.guard, "guard-not-loaded", "the guard isn't loaded by then");
                self.policy = true;
            }
            Action::SetFirewall { rules } => {
                let kept = self.host.ssh_ports.is_subset(&rules.ssh_ports);
                require(kept, "ssh-cut-off", "a port where sshd listens would be closed");
            }
            Action::StartInstance { spec } => {
                let alive = self.alive.insert(&spec.id, true).unwrap_or(false);
                require(self.agent, "no-agent", "nothing supervises it");
                require(self.guarded.contains(&spec.id), "start-unguarded", "its cgroup isn't guarded by then");
                require(self.policy, "start-without-policy", "there is no policy by then");
                require(!alive, "start-twice", "it runs already");
            }
            Action::Await { id, .. } | Action::SetHosts { id, .. } => {
                require(self.alive.contains_key(id), "await-unknown", "nothing started it");
            }
            Action::StopInstance { id } => {
                let known = self.alive.insert(id, false).is_some();
                require(known, "stop-unknown", "there is no such instance");
                require(self.agent, "no-agent", "nothing would stop it in order");
            }
            Action::RemoveInstance { id } => {
                let alive = self.alive.remove(id).unwrap_or(false);
                require(!alive, "unguard-running", "it still runs, and would run on without the guard");
                self.guarded.remove(id);
            }
            Action::UnloadGuard => {
                let alive = self.alive.values().any(|alive| *alive);
                require(!alive, "unguard-running", "instances still run, and would run on without the guard");
                self.guard = false;
                self.policy = false;
            }
            Action::StopAgent => {
                let alive = self.alive.values().any(|alive| *alive);
                require(!alive, "unsupervised", "instances still run, and nothing would supervise them");
                self.agent = false;
            }
            Action::CreateVolume { .. }
            | Action::FetchImage { .. }
            | Action::StopForeign { .. }
            | Action::StartForeign { .. }
            | Action::RemoveForeign { .. }
            | Action::RemoveFirewall
            | Action::RemoveVolume { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::Cause;
    use crate::firewall::FirewallRules;
    use crate::plan::{Wishes, plan};
    use crate::policy::Mode;
    use crate::testing::{service, stack};
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    fn ids(plan: &Plan, host: &Observed) -> Vec<&'static str> {
        lint(plan, host).iter().map(|finding| finding.id).collect()
    }

    #[test]
    fn leaving_out_any_safety_step_is_noticed() {
        let wishes = Wishes {
            mode: Mode::Enforce,
            wait_for_health: false,
            fetch: None,
            only: None,
            recreate: false,
            volume_path: &|name, _| PathBuf::from(name),
        };
        let host = Observed::default();
        let good = plan(&stack([service("a")]), &host, wishes).unwrap();
        assert_eq!(ids(&good, &host), [""; 0]);
        let without = |kind: &str| {
            let mut plan = good.clone();
            let before = plan.steps.len();
            plan.steps.retain(|step| step.action.kind() != kind);
            assert_eq!(plan.steps.len(), before - 1, "{kind}");
            ids(&plan, &host)
        };
        assert_eq!(without("start_agent"), ["no-agent"]);
        assert_eq!(without("load_guard"), ["guard-not-loaded", "guard-not-loaded"]);
        assert_eq!(without("guard_instance"), ["start-unguarded"]);
        assert_eq!(without("set_policy"), ["start-without-policy"]);
        assert_eq!(without("start_instance"), ["await-unknown"]);
        let mut twice = good.clone();
        twice.steps.extend(good.steps.iter().filter(|step| step.action.kind() == "start_instance").cloned());
        assert_eq!(ids(&twice, &host), ["start-twice"]);
        let mut unloaded = good;
        for action in [Action::UnloadGuard, Action::StopAgent] {
            unloaded.steps.push(Step { action, cause: Cause::Down });
        }
        assert_eq!(ids(&unloaded, &host), ["unguard-running", "unsupervised"]);
    }

    #[test]
    fn a_firewall_that_closes_ssh_is_noticed() {
        let mut plan = plan(
            &stack([]),
            &Observed::default(),
            Wishes {
                mode: Mode::Enforce,
                wait_for_health: false,
                fetch: None,
                only: None,
                recreate: false,
                volume_path: &|name, _| PathBuf::from(name),
            },
        )
        .unwrap();
        let rules = FirewallRules { ssh_ports: BTreeSet::from([22]), ..FirewallRules::default() };
        plan.steps = vec![Step { action: Action::SetFirewall { rules }, cause: Cause::Missing }];
        let host = Observed { ssh_ports: BTreeSet::from([22, 2222]), ..Observed::default() };
        assert_eq!(ids(&plan, &host), ["ssh-cut-off"]);
    }
}
