//! The steps by which an instance takes the place of another, so that nobody who connects finds nobody.

use std::collections::{BTreeSet, HashSet};

use super::cast;
use super::meanwhile::Meanwhile;
use super::planner::{Awaited, Fates, Older, Planner, timeout_ms};
use crate::action::{Action, Cause};
use crate::compile::CompiledInstance;
use crate::digest::digest_of;
use crate::edge;
use crate::names::InstanceId;
use crate::policy::Policy;
use crate::stack::Condition;
use crate::update::Order;

impl<'a> Planner<'a> {
    /// Who takes new connections while nothing is started yet: what runs and stays as it is, and what goes only when
    /// something has taken its place. When nobody does, whoever comes.
    pub(super) fn serves_at_first(&self, service: usize, fates: &Fates<'a>) -> BTreeSet<u8> {
        let instances = self.instances[service].iter().map(|instance| &instance.spec.id);
        let stays = instances.clone().filter(|id| {
            let fate = &fates[id];
            let succeeds = self.successions[service].iter().any(|succession| succession.new == **id);
            !succeeds && (fate.start.is_none() || fate.stop.is_some())
        });
        let goes_later = self.successions[service].iter().map(|succession| &succession.old);
        let serving: BTreeSet<u8> = stays.chain(goes_later).map(|id| id.number).collect();
        if serving.is_empty() { instances.map(|id| id.number).collect() } else { serving }
    }

    /// Who of an older version runs while nothing is started yet, and what it needs besides.
    pub(super) fn older_at_first(&self, service: usize, fates: &Fates<'a>, early: &HashSet<&'a InstanceId>) -> Older {
        let instances = self.instances[service].iter().map(|instance| &instance.spec.id);
        let newer_runs = instances.clone().any(|id| fates[id].start.is_none() && self.seen.contains_key(id));
        let replaced = instances.filter(|id| fates[id].stop.is_some() && !early.contains(id));
        let succeeded = self.successions[service].iter().map(|succession| &succession.old);
        let succeeded = succeeded.filter(|id| !early.contains(id));
        let numbers: BTreeSet<u8> = replaced.chain(succeeded).map(|id| id.number).collect();
        let after = &self.compiled.policy;
        let before = self.observed.guard.as_ref().and_then(|guard| guard.policy.as_ref());
        let before = before.filter(|_| !numbers.is_empty());
        let meanwhile = before.and_then(|before| Meanwhile::between(before, after, &after.services[service]));
        Older { numbers, meanwhile, newer_runs }
    }

    /// The policy at this point of the plan: what runs keeps what it needs until it is gone.
    fn policy_now(&self) -> (Policy, String) {
        let mut policy = self.compiled.policy.clone();
        for ((service, serving), older) in policy.services.iter_mut().zip(&self.serving).zip(&self.older) {
            if let Some(meanwhile) = older.meanwhile.as_ref().filter(|_| !older.numbers.is_empty()) {
                *service = meanwhile.policy(!older.numbers.is_disjoint(serving), older.newer_runs);
            }
            service.backends = serving.iter().map(|number| service.address.instance(*number)).collect();
        }
        let digest = digest_of(&policy);
        (policy, digest)
    }

    /// Sets the policy of this point of the plan, unless it is in force.
    pub(super) fn settle(&mut self, cause: Cause) {
        let (policy, digest) = self.policy_now();
        if self.in_force.as_ref() != Some(&digest) {
            self.in_force = Some(digest.clone());
            self.push(Action::SetPolicy { policy, digest }, cause);
        }
    }

    /// Takes back what only an older version of the service needs, as far as it isn't needed any more.
    fn settle_older(&mut self, service: usize) {
        if self.older[service].meanwhile.is_some() {
            self.settle(Cause::OlderLeaves { service: self.stack.services[service].name.clone() });
        }
    }

    /// Starts an instance by the policy of its own version.
    fn start_newer(&mut self, service: usize, instance: &CompiledInstance, cause: Cause) {
        self.older[service].newer_runs = true;
        self.settle_older(service);
        self.push(Action::StartInstance { spec: Box::new(instance.spec.clone()) }, cause);
    }

    /// Stops an instance that something newer takes the place of.
    fn stop_older(&mut self, service: usize, id: &InstanceId, cause: Cause) {
        self.push(Action::StopInstance { id: id.clone() }, cause);
        self.older[service].numbers.remove(&id.number);
    }

    /// Sends new connections to those that serve now.
    fn shift(&mut self, service: usize, cause: Cause) {
        let name = &self.stack.services[service].name;
        let to =
            self.serving[service].iter().map(|number| InstanceId { service: name.clone(), number: *number }).collect();
        let (policy, digest) = self.policy_now();
        self.in_force = Some(digest.clone());
        self.push(Action::Shift { service: name.clone(), to, policy, digest }, cause);
    }

    /// As far as an instance must be to take connections.
    pub(super) fn readiness(&self, service: usize) -> Condition {
        match self.stack.services[service].healthcheck {
            Some(_) => Condition::ServiceHealthy,
            None => Condition::ServiceStarted,
        }
    }

    /// Starts what has no place to take over, and replaces what must go before its newer version comes.
    pub(super) fn start_in_place(
        &mut self,
        service: usize,
        fates: &Fates<'a>,
        early: &HashSet<&'a InstanceId>,
        awaited: &mut Awaited<'a>,
    ) {
        let mut joining = Vec::new();
        for instance in self.instances[service].clone() {
            let id = &instance.spec.id;
            let fate = &fates[id];
            let hosts = &instance.spec.hosts;
            let kept = self.seen.get(id).filter(|_| fate.start.is_none());
            if kept.is_some_and(|seen| seen.hosts_digest.as_deref() != Some(hosts.digest())) {
                let cause = Cause::Changed { keys: Vec::new() };
                self.push(Action::SetHosts { id: id.clone(), hosts: hosts.clone() }, cause);
            }
            let succeeds = self.successions[service].iter().any(|succession| succession.new == *id);
            let Some(cause) = fate.start.as_ref().filter(|_| !succeeds) else { continue };
            let others = self.serving[service].iter().any(|number| *number != id.number);
            let serves = self.serving[service].contains(&id.number);
            let stop = fate.stop.as_ref().filter(|_| !early.contains(id));
            match stop {
                Some(stop) if others && serves => {
                    self.serving[service].remove(&id.number);
                    self.shift(service, Cause::MakesWay { id: id.clone() });
                    self.drain(service, id, stop.clone());
                    self.stop_older(service, id, stop.clone());
                    self.start_newer(service, instance, cause.clone());
                    self.await_ready(service, instance, awaited);
                    self.serving[service].insert(id.number);
                    self.shift(service, Cause::Ready);
                }
                Some(stop) => {
                    let stop = self.outage(service, stop);
                    self.stop_older(service, id, stop);
                    self.start_newer(service, instance, cause.clone());
                }
                None => {
                    self.start_newer(service, instance, cause.clone());
                    if !serves {
                        joining.push(instance);
                    }
                }
            }
        }
        self.join(service, joining, awaited);
    }

    /// Lets instances take connections beside those that do already, once they are ready.
    fn join(&mut self, service: usize, joining: Vec<&'a CompiledInstance>, awaited: &mut Awaited<'a>) {
        if joining.is_empty() {
            return;
        }
        for instance in &joining {
            self.await_ready(service, instance, awaited);
        }
        self.serving[service].extend(joining.iter().map(|instance| instance.spec.id.number));
        self.shift(service, Cause::Ready);
    }

    /// Starts successors, lets them take over when they are ready, watches them, and lets their predecessors go.
    pub(super) fn succeed(
        &mut self,
        service: usize,
        fates: &Fates<'a>,
        early: &HashSet<&'a InstanceId>,
        awaited: &mut Awaited<'a>,
    ) {
        let settings = &self.stack.services[service];
        let successions = self.successions[service].clone();
        let groups = successions.chunks(settings.update_parallelism().min(successions.len().max(1)));
        let last = groups.len();
        for (number, group) in (1..).zip(groups) {
            let is_new = |id: &InstanceId| group.iter().any(|succession| succession.new == *id);
            let instances: Vec<_> =
                self.instances[service].iter().copied().filter(|instance| is_new(&instance.spec.id)).collect();
            for instance in &instances {
                if let Some(cause) = &fates[&instance.spec.id].start {
                    self.start_newer(service, instance, cause.clone());
                }
            }
            for instance in &instances {
                self.await_ready(service, instance, awaited);
            }
            for succession in group {
                self.serving[service].remove(&succession.old.number);
                self.serving[service].insert(succession.new.number);
            }
            self.shift(service, Cause::Ready);
            let delay = if number == last { 0 } else { settings.update_delay_ms() };
            let for_ms = settings.update_monitor_ms().saturating_add(delay);
            if for_ms > 0 {
                let ids = group.iter().map(|succession| succession.new.clone()).collect();
                self.push(Action::Watch { ids, for_ms }, Cause::JustReplaced);
            }
            for succession in group {
                let cause = Cause::Replaced { by: succession.new.clone() };
                if !early.contains(&succession.old) {
                    self.drain(service, &succession.old, cause.clone());
                    self.stop_older(service, &succession.old, cause.clone());
                }
                self.push(Action::RemoveInstance { id: succession.old.clone() }, cause);
            }
        }
        self.settle_older(service);
    }

    /// What ends its connections itself is only told to stop.
    pub(super) fn drain(&mut self, service: usize, id: &InstanceId, cause: Cause) {
        if edge::drains_itself(&id.service) {
            return;
        }
        let timeout_ms = self.stack.services[service].stop_grace_ms;
        self.push(Action::Drain { id: id.clone(), timeout_ms }, cause);
    }

    /// The cause of stopping the only instance that serves says for how long nobody will.
    fn outage(&self, service: usize, cause: &Cause) -> Cause {
        let service_settings = &self.stack.services[service];
        match (cause, cast::order(self.stack, service_settings, self.observed)) {
            (Cause::Changed { keys }, Order::StopFirst { because }) => {
                let coming = timeout_ms(self.readiness(service), service_settings);
                let at_most_ms = coming.map(|ms| ms.saturating_add(service_settings.stop_grace_ms));
                Cause::Outage { keys: keys.clone(), at_most_ms, because }
            }
            (cause, _) => cause.clone(),
        }
    }

    /// What was changed where it stands is watched like what took another's place.
    pub(super) fn watch_changed(&mut self, fates: &Fates<'a>) {
        let mut ids = Vec::new();
        let mut for_ms = 0;
        for (service, instances) in self.stack.services.iter().zip(&self.instances) {
            let changed = instances.iter().map(|instance| &instance.spec.id).filter(|id| {
                let fate = &fates[id];
                matches!(fate.start, Some(Cause::Changed { .. })) && fate.stop.is_some()
            });
            let before = ids.len();
            ids.extend(changed.cloned());
            if ids.len() > before {
                for_ms = for_ms.max(service.update_monitor_ms());
            }
        }
        if !ids.is_empty() && for_ms > 0 {
            self.push(Action::Watch { ids, for_ms }, Cause::JustStarted);
        }
    }
}

#[cfg(test)]
mod tests;
