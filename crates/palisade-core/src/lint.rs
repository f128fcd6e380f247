//! Checks a plan for order and safety, whoever made it.
//!
//! It doesn't make plans and doesn't know why one was made.

use std::collections::{HashMap, HashSet};

use crate::action::{Action, Step};
use crate::address::InstanceAddress;
use crate::finding::Finding;
use crate::instance::RunState;
use crate::names::InstanceId;
use crate::observed::Observed;
use crate::plan::Plan;
use crate::policy::Policy;

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
        serving: None,
        addresses: known_addresses(host),
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
    /// Who takes new connections, as far as the plan says; `None` before it says anything.
    serving: Option<HashSet<InstanceAddress>>,
    addresses: HashMap<&'a InstanceId, InstanceAddress>,
    host: &'a Observed,
    findings: Vec<Finding>,
}

impl<'a> Linter<'a> {
    fn step(&mut self, number: usize, step: &'a Step) {
        let cuts = match &step.action {
            Action::StopInstance { id } => self.cuts(id),
            Action::StopInstances { ids } => ids.iter().any(|id| self.cuts(id)),
            _ => false,
        };
        let mut require = |holds: bool, id: &'static str, why: &str| {
            if !holds {
                let message = format!("step {number}, `{}`: {why}", step.action);
                self.findings.push(Finding::error(id, "plan", message));
            }
        };
        match &step.action {
            Action::StartAgent => self.agent = true,
            Action::ReplaceAgent => require(self.agent, "no-agent", "there is none to take over from"),
            Action::LoadGuard => self.guard = true,
            Action::GuardInstance { id, address, .. } => {
                self.addresses.insert(id, *address);
                require(self.guard, "guard-not-loaded", "the guard isn't loaded by then");
                self.guarded.insert(id);
            }
            Action::SetPolicy { policy, .. } => {
                require(self.guard, "guard-not-loaded", "the guard isn't loaded by then");
                self.policy = true;
                self.serving = Some(backends(policy));
            }
            Action::Shift { to, policy, .. } => {
                require(self.policy, "shift-without-policy", "there is no policy by then");
                let ready = to.iter().all(|id| self.alive.get(id) == Some(&true));
                require(ready, "shift-to-nobody", "somebody of those doesn't run by then");
                self.serving = Some(backends(policy));
            }
            Action::SetFirewall { rules, .. } => {
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
            Action::Watch { ids, .. } => {
                let started = ids.iter().all(|id| self.alive.contains_key(id));
                require(started, "await-unknown", "nothing started one of them");
            }
            Action::Await { id, .. } | Action::SetHosts { id, .. } | Action::Drain { id, .. } => {
                require(self.alive.contains_key(id), "await-unknown", "nothing started it");
            }
            Action::StopInstance { id } => {
                let known = self.alive.insert(id, false).is_some();
                require(known, "stop-unknown", "there is no such instance");
                require(self.agent, "no-agent", "nothing would stop it in order");
                require(!cuts, "stop-serving", "it still gets connections that others could take");
            }
            Action::StopInstances { ids } => {
                let known = ids.iter().all(|id| self.alive.insert(id, false).is_some());
                require(known, "stop-unknown", "there is no such instance");
                require(self.agent, "no-agent", "nothing would stop it in order");
                require(!cuts, "stop-serving", "it still gets connections that others could take");
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

impl Linter<'_> {
    /// Stopping the instance would refuse connections that another one of its service could take.
    fn cuts(&self, id: &InstanceId) -> bool {
        let Some(serving) = &self.serving else { return false };
        let takes = |id: &InstanceId| self.addresses.get(id).is_some_and(|address| serving.contains(address));
        let others = self
            .alive
            .iter()
            .any(|(other, alive)| *alive && *other != id && other.service == id.service && takes(other));
        takes(id) && others
    }
}

fn backends(policy: &Policy) -> HashSet<InstanceAddress> {
    policy.services.iter().flat_map(|service| &service.backends).copied().collect()
}

fn known_addresses(host: &Observed) -> HashMap<&InstanceId, InstanceAddress> {
    let attached = host.guard.iter().flat_map(|guard| &guard.attached);
    attached.map(|(id, address)| (id, *address)).collect()
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
            back: false,
            confirm: None,
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
                back: false,
                confirm: None,
                volume_path: &|name, _| PathBuf::from(name),
            },
        )
        .unwrap();
        let rules = FirewallRules { ssh_ports: BTreeSet::from([22]), ..FirewallRules::default() };
        plan.steps =
            vec![Step { action: Action::SetFirewall { rules, confirm_within_ms: None }, cause: Cause::Missing }];
        let host = Observed { ssh_ports: BTreeSet::from([22, 2222]), ..Observed::default() };
        assert_eq!(ids(&plan, &host), ["ssh-cut-off"]);
    }
}
