//! Puts the steps of `up` in order.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::cast::Succession;
use super::meanwhile::Meanwhile;
use super::{Wishes, is_alive, new_volumes};
use crate::action::{Action, Cause, Step};
use crate::compile::{Compiled, CompiledInstance};
use crate::edge;
use crate::firewall::FirewallRules;
use crate::instance::{Health, InstanceStatus, RunState};
use crate::lockout::Confirm;
use crate::names::{InstanceId, ServiceName};
use crate::observed::{ForeignContainer, InstanceSeen, Observed};
use crate::ports;
use crate::stack::{Condition, HEALTH_MARGIN_MS, Healthcheck, Restart, Runner, Service, Stack};

/// Longest time for a process to be there after it was started.
const STARTED_TIMEOUT_MS: u64 = 10_000;

/// What becomes of an instance that the file has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fate {
    pub(super) start: Option<Cause>,
    pub(super) stop: Option<Cause>,
    guard: Option<Cause>,
    /// The guard has it at another address: that must go first.
    remove: bool,
}

pub(super) type Fates<'a> = HashMap<&'a InstanceId, Fate>;

/// Whom was waited for, and whether the plan may go on without.
pub(super) type Awaited<'a> = HashMap<(&'a InstanceId, Condition), bool>;

pub(super) struct Planner<'a> {
    pub(super) stack: &'a Stack,
    pub(super) observed: &'a Observed,
    pub(super) compiled: &'a Compiled,
    order: Vec<usize>,
    index: HashMap<&'a ServiceName, usize>,
    pub(super) seen: HashMap<&'a InstanceId, &'a InstanceSeen>,
    wanted: HashSet<&'a InstanceId>,
    /// Instances of each service, in the order of the stack.
    pub(super) instances: Vec<Vec<&'a CompiledInstance>>,
    /// Who takes whose place, for each service.
    pub(super) successions: Vec<Vec<Succession>>,
    /// Who takes new connections at this point of the plan, for each service.
    pub(super) serving: Vec<BTreeSet<u8>>,
    /// Who of an older version runs at this point of the plan, for each service.
    pub(super) older: Vec<Older>,
    /// Digest of the policy at this point of the plan.
    pub(super) in_force: Option<String>,
    steps: Vec<Step>,
}

/// The instances of a service that run until something newer takes their place.
#[derive(Default)]
pub(super) struct Older {
    pub(super) numbers: BTreeSet<u8>,
    /// What they need and the newer version doesn't.
    pub(super) meanwhile: Option<Meanwhile>,
    /// Something newer was started.
    pub(super) newer_runs: bool,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        stack: &'a Stack,
        observed: &'a Observed,
        compiled: &'a Compiled,
        order: Vec<usize>,
        all: Vec<Succession>,
    ) -> Self {
        let index: HashMap<&ServiceName, usize> =
            stack.services.iter().enumerate().map(|(index, service)| (&service.name, index)).collect();
        let mut instances = vec![Vec::new(); stack.services.len()];
        for instance in &compiled.instances {
            instances[index[&instance.spec.id.service]].push(instance);
        }
        let mut successions = vec![Vec::new(); stack.services.len()];
        for succession in all {
            successions[index[&succession.new.service]].push(succession);
        }
        Self {
            stack,
            observed,
            compiled,
            successions,
            serving: Vec::new(),
            older: Vec::new(),
            in_force: observed.guard.as_ref().and_then(|guard| guard.policy_digest.clone()),
            order,
            index,
            seen: observed.instances.iter().map(|instance| (&instance.status.id, instance)).collect(),
            wanted: compiled.instances.iter().map(|instance| &instance.spec.id).collect(),
            instances,
            steps: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, action: Action, cause: Cause) {
        self.steps.push(Step { action, cause });
    }

    pub(super) fn steps(mut self, wishes: Wishes<'_>) -> Vec<Step> {
        let fates = self.fates(wishes);
        for (key, name) in new_volumes(self.stack, self.observed) {
            let owner = volume_owner(self.stack, &key);
            self.push(Action::CreateVolume { name, owner }, Cause::Missing);
        }
        match &self.observed.agent {
            None => self.push(Action::StartAgent, Cause::Missing),
            Some(agent) if agent.other_version => self.push(Action::ReplaceAgent, Cause::OtherVersion),
            Some(_) => {}
        }
        if self.observed.guard.is_none() {
            self.push(Action::LoadGuard, Cause::Missing);
        }
        // It may wait for somebody to confirm it, and whoever serves by now, guarded or not, serves meanwhile.
        self.set_firewall(wishes.confirm.unwrap_or(self.stack.firewall.confirm));
        let early = self.stop_early(&fates);
        for instance in &self.compiled.instances {
            let id = &instance.spec.id;
            if let Some(cause) = &fates[id].guard {
                let (address, driver) = (instance.spec.address, instance.spec.cgroup_driver());
                self.push(Action::GuardInstance { id: id.clone(), address, driver }, cause.clone());
            }
        }
        let adopted = self.adopted();
        for (id, name) in adopted.clone() {
            self.push(Action::StopForeign { id, name }, Cause::Adopted);
        }
        self.set_policy(&fates, &early);
        self.start(&fates, &early, wishes);
        self.retire(&early);
        for (id, name) in adopted {
            self.push(Action::RemoveForeign { id, name }, Cause::Adopted);
        }
        self.steps
    }

    /// Containers that Docker Compose runs for the same project, by id and name: they are stopped when everything is ready
    /// for what takes their place, and removed when that has come up. Once there is a policy they would get nothing that
    /// arrives at a published port.
    fn adopted(&self) -> Vec<(String, String)> {
        let foreign = self.observed.engine.seen().into_iter().flat_map(|engine| &engine.foreign);
        let replaced = |container: &&ForeignContainer| {
            container.service.as_ref().is_some_and(|service| self.stack.service(service).is_some())
        };
        foreign.filter(replaced).map(|container| (container.id.clone(), container.name.clone())).collect()
    }

    fn fates(&self, wishes: Wishes<'_>) -> Fates<'a> {
        let mut fates: Fates<'_> = HashMap::with_capacity(self.compiled.instances.len());
        let mut restarted: HashSet<&ServiceName> = HashSet::new();
        for &service in &self.order {
            let with = restarts_with(&self.stack.services[service], &restarted);
            for instance in &self.instances[service] {
                let mut fate = self.fate(instance);
                let id = &instance.spec.id;
                let chosen = wishes.only.is_none_or(|only| only.contains(&id.service));
                if !chosen && matches!(fate.start, Some(Cause::Stopped | Cause::NotRunning | Cause::Missing)) {
                    fate.start = None;
                }
                if let (None, Some(cause)) = (&fate.start, asked(&self.stack.services[service], wishes)) {
                    let alive = self.seen.get(id).is_some_and(|seen| is_alive(seen.status.state));
                    fate.stop = alive.then(|| cause.clone());
                    fate.start = Some(cause);
                }
                let succession = self.successions[service].iter().find(|succession| succession.new == *id);
                match (succession, &with) {
                    (Some(succession), _) => fate.start = fate.start.map(|_| succession.cause.clone()),
                    (None, Some(cause)) if fate.start.is_none() => {
                        fate.start = Some(cause.clone());
                        fate.stop = Some(cause.clone());
                    }
                    (None, _) => {}
                }
                if fate.stop.is_some() || succession.is_some() {
                    restarted.insert(&self.stack.services[service].name);
                }
                fates.insert(id, fate);
            }
        }
        fates
    }

    fn fate(&self, instance: &CompiledInstance) -> Fate {
        let id = &instance.spec.id;
        let attached = self.observed.guard.as_ref().and_then(|guard| guard.attached.get(id));
        let moved = self.observed.guard.as_ref().is_some_and(|guard| guard.has_elsewhere(&instance.spec));
        let guard = match attached {
            None => Some(Cause::Missing),
            Some(address) if moved => {
                let key = if *address == instance.spec.address { "engine" } else { "address" };
                Some(Cause::Changed { keys: vec![key.into()] })
            }
            Some(_) => None,
        };
        let Some(seen) = self.seen.get(id) else {
            return Fate { start: Some(Cause::Missing), stop: None, guard, remove: moved };
        };
        let cause = change(self.observed, seen, instance);
        let stop = cause.clone().filter(|_| is_alive(seen.status.state));
        Fate { start: cause, stop, guard, remove: moved }
    }

    /// Stops what must be gone before anything else happens: instances whose address changed, and those whose
    /// published port goes to another service. Returns who was stopped.
    fn stop_early(&mut self, fates: &Fates<'a>) -> HashSet<&'a InstanceId> {
        let mut early = HashSet::new();
        let mut steps = Vec::new();
        for instance in &self.compiled.instances {
            let id = &instance.spec.id;
            let fate = &fates[id];
            if fate.remove {
                if let Some(cause) = &fate.stop {
                    steps.push((Action::StopInstance { id: id.clone() }, cause.clone()));
                }
                let cause = Cause::Changed { keys: vec!["address".into()] };
                steps.push((Action::RemoveInstance { id: id.clone() }, cause));
                early.insert(id);
            }
        }
        for handover in ports::handovers(self.stack, self.observed) {
            let Some((&id, _)) = self.seen.get_key_value(&handover.holder) else { continue };
            let leaves = !self.wanted.contains(id) || fates[id].stop.is_some();
            if leaves && early.insert(id) {
                let cause = Cause::PortGoesTo { service: handover.to.clone(), port: handover.port };
                steps.push((Action::StopInstance { id: id.clone() }, cause));
            }
        }
        for (action, cause) in steps {
            self.push(action, cause);
        }
        early
    }

    fn set_policy(&mut self, fates: &Fates<'a>, early: &HashSet<&'a InstanceId>) {
        let services = 0..self.stack.services.len();
        self.serving = services.clone().map(|service| self.serves_at_first(service, fates)).collect();
        self.older = services.map(|service| self.older_at_first(service, fates, early)).collect();
        let cause = match self.in_force {
            Some(_) => Cause::Changed { keys: Vec::new() },
            None => Cause::Missing,
        };
        self.settle(cause);
    }

    fn set_firewall(&mut self, confirm: Confirm) {
        let (rules, cause) = match (
            FirewallRules::of(self.stack, &self.observed.ssh_ports, self.observed.firewall_runs),
            &self.observed.firewall,
        ) {
            (Some(rules), None) => (rules, Cause::Missing),
            (Some(rules), Some(seen)) if seen.digest.as_deref() != Some(&rules.digest()) => {
                (rules, Cause::Changed { keys: Vec::new() })
            }
            (None, Some(_)) => return self.push(Action::RemoveFirewall, Cause::NotInFile),
            (Some(_), Some(_)) | (None, None) => return,
        };
        let confirm_within_ms = confirm.within_ms(self.stack.project.as_str(), &rules, self.observed.lockout());
        self.push(Action::SetFirewall { rules, confirm_within_ms }, cause);
    }

    fn start(&mut self, fates: &Fates<'a>, early: &HashSet<&'a InstanceId>, wishes: Wishes<'_>) {
        let mut awaited = Awaited::new();
        for position in 0..self.order.len() {
            let service = self.order[position];
            let starts = self.instances[service].iter().any(|instance| fates[&instance.spec.id].start.is_some());
            if starts {
                self.await_dependencies(&self.stack.services[service], fates, &mut awaited, wishes.only);
            }
            self.start_in_place(service, fates, early, &mut awaited);
            self.succeed(service, fates, early, &mut awaited);
        }
        // Everything is started; now tell whether it came up. What was waited for already isn't again.
        for position in 0..self.order.len() {
            let service = self.order[position];
            for instance in self.instances[service].clone() {
                match &fates[&instance.spec.id].start {
                    // A newer version must prove that it works, or the older one comes back.
                    Some(Cause::Changed { .. } | Cause::Asked) => self.await_ready(service, instance, &mut awaited),
                    // `up` ends when the edge serves, whoever else waits for it.
                    Some(_) if wishes.wait_for_health || edge::is_own(&instance.spec.id.service) => {
                        self.await_ready(service, instance, &mut awaited)
                    }
                    Some(_) => {
                        self.await_instance(
                            service,
                            instance,
                            Condition::ServiceStarted,
                            Cause::JustStarted,
                            &mut awaited,
                        );
                    }
                    None => {
                        if wishes.wait_for_health
                            && wishes.only.is_none_or(|only| only.contains(&instance.spec.id.service))
                        {
                            self.await_untouched(service, instance, &mut awaited);
                        }
                    }
                }
            }
        }
        self.watch_changed(fates);
    }

    /// It was just started: now it is to come up.
    pub(super) fn await_ready(&mut self, service: usize, instance: &'a CompiledInstance, awaited: &mut Awaited<'a>) {
        self.await_instance(service, instance, self.readiness(service), Cause::JustStarted, awaited);
    }

    /// Somebody else started it: the agent after an exit, or the engine after its own restart.
    fn await_untouched(&mut self, service: usize, instance: &'a CompiledInstance, awaited: &mut Awaited<'a>) {
        let condition = self.readiness(service);
        let comes_up = |seen: &InstanceSeen| is_alive(seen.status.state) && !satisfies(&seen.status, condition);
        if self.seen.get(&instance.spec.id).is_some_and(|seen| comes_up(seen)) {
            self.await_instance(service, instance, condition, Cause::NotReady, awaited);
        }
    }

    /// Waits for an instance unless it was waited for already, until it was at least as far as that.
    fn await_instance(
        &mut self,
        service: usize,
        instance: &'a CompiledInstance,
        condition: Condition,
        cause: Cause,
        awaited: &mut Awaited<'a>,
    ) {
        let id = &instance.spec.id;
        let known = |condition| awaited.contains_key(&(id, condition));
        let enough =
            known(condition) || known(Condition::ServiceHealthy) || known(Condition::ServiceCompletedSuccessfully);
        if enough {
            return;
        }
        let optional = self.stack.is_optional(&id.service);
        awaited.insert((id, condition), optional);
        let timeout_ms = timeout_ms(condition, &self.stack.services[service]);
        self.push(Action::Await { id: id.clone(), condition, timeout_ms, optional }, cause);
    }

    fn await_dependencies(
        &mut self,
        client: &'a Service,
        fates: &Fates<'a>,
        awaited: &mut Awaited<'a>,
        only: Option<&BTreeSet<ServiceName>>,
    ) {
        for dependency in &client.depends_on {
            // What is to stay as it is can't be waited for.
            if only.is_some_and(|only| !only.contains(&dependency.value.service)) {
                continue;
            }
            let (condition, optional) = (dependency.value.condition, !dependency.value.required);
            // One that isn't in the file is waited for only if it is required, and then the file is refused before.
            let Some(&server) = self.index.get(&dependency.value.service) else { continue };
            for instance in self.instances[server].clone() {
                let id = &instance.spec.id;
                // What runs and isn't touched counts as it was seen; anything else is waited for, once.
                let seen = self.seen.get(id).filter(|_| fates[id].start.is_none());
                if seen.is_some_and(|seen| satisfies(&seen.status, condition)) {
                    continue;
                }
                // Who is healthy runs.
                if condition == Condition::ServiceStarted && awaited.contains_key(&(id, Condition::ServiceHealthy)) {
                    continue;
                }
                match awaited.get(&(id, condition)) {
                    // Somebody could do without it, and this one can't.
                    Some(true) if !optional => {}
                    Some(_) => continue,
                    None => {}
                }
                awaited.insert((id, condition), optional);
                let timeout_ms = timeout_ms(condition, &self.stack.services[server]);
                let cause = Cause::NeededBy { service: client.name.clone() };
                self.push(Action::Await { id: id.clone(), condition, timeout_ms, optional }, cause);
            }
        }
    }

    /// Stops and removes what the file no longer has.
    fn retire(&mut self, early: &HashSet<&'a InstanceId>) {
        let known =
            self.observed.instances.iter().map(|instance| (&instance.status.id, is_alive(instance.status.state)));
        let attached = self.observed.guard.iter().flat_map(|guard| guard.attached.keys()).map(|id| (id, false));
        let mut gone: BTreeMap<&InstanceId, bool> = BTreeMap::new();
        for (id, alive) in known.chain(attached).filter(|(id, _)| !self.wanted.contains(id)) {
            if self.successions.iter().flatten().any(|succession| succession.old == *id) {
                continue;
            }
            *gone.entry(id).or_default() |= alive && !early.contains(id);
        }
        for (id, alive) in gone {
            if alive {
                if let Some(service) = self.index.get(&id.service).copied() {
                    self.drain(service, id, Cause::NotInFile);
                }
                self.push(Action::StopInstance { id: id.clone() }, Cause::NotInFile);
            }
            self.push(Action::RemoveInstance { id: id.clone() }, Cause::NotInFile);
        }
    }
}

/// Why an instance that is there can't go on as it is.
pub(super) fn change(observed: &Observed, seen: &InstanceSeen, instance: &CompiledInstance) -> Option<Cause> {
    let id = &instance.spec.id;
    let attached = observed.guard.as_ref().and_then(|guard| guard.attached.get(id));
    let moved = observed.guard.as_ref().is_some_and(|guard| guard.has_elsewhere(&instance.spec));
    if seen.status.spec_digest != instance.fingerprint.digest {
        let keys = seen.fingerprint.as_ref().map(|seen| seen.differences(&instance.fingerprint));
        Some(Cause::Changed { keys: keys.unwrap_or_default() })
    } else if moved || (attached.is_none() && is_alive(seen.status.state)) {
        Some(Cause::NotGuarded)
    } else if seen.status.stopped && !is_alive(seen.status.state) {
        Some(Cause::Stopped)
    } else if !is_settled(&seen.status, instance) {
        Some(Cause::NotRunning)
    } else {
        None
    }
}

/// The command line asks for new instances of the service.
pub(super) fn asked(service: &Service, wishes: Wishes<'_>) -> Option<Cause> {
    let chosen = wishes.only.is_none_or(|only| only.contains(&service.name));
    (wishes.recreate && chosen).then_some(Cause::Asked)
}

/// `depends_on` says that the service is restarted with one of these.
pub(super) fn restarts_with(service: &Service, restarted: &HashSet<&ServiceName>) -> Option<Cause> {
    let mut dependencies = service.depends_on.iter().map(|dependency| &dependency.value);
    let with = dependencies.find(|dependency| dependency.restart && restarted.contains(&dependency.service))?;
    Some(Cause::RestartsWith { service: with.service.clone() })
}

/// The user of the first service that writes to the volume; an engine lets the image decide.
fn volume_owner(stack: &Stack, volume: &str) -> Option<String> {
    let writes = |service: &&Service| service.mounts_of(volume).any(|mount| !mount.read_only);
    match stack.services.iter().find(writes)?.run.runner() {
        Runner::Process(process) => process.user.clone(),
        Runner::Engine(_) | Runner::Nobody => None,
    }
}

/// The instance needs nothing: it runs, is about to, or has done what it was there for.
fn is_settled(status: &InstanceStatus, instance: &CompiledInstance) -> bool {
    match status.state {
        RunState::Starting | RunState::Running | RunState::BackingOff => true,
        RunState::Exited { code: 0 } => matches!(instance.spec.restart, Restart::No | Restart::OnFailure { .. }),
        RunState::Exited { .. } => false,
    }
}

pub(crate) fn satisfies(status: &InstanceStatus, condition: Condition) -> bool {
    match condition {
        Condition::ServiceStarted => matches!(status.state, RunState::Running | RunState::Exited { code: 0 }),
        Condition::ServiceHealthy => status.state == RunState::Running && status.health == Health::Healthy,
        Condition::ServiceCompletedSuccessfully => status.state == RunState::Exited { code: 0 },
    }
}

/// Longest time after which waiting makes no sense any more.
pub(crate) fn timeout_ms(condition: Condition, service: &Service) -> Option<u64> {
    match condition {
        // Hooks have no time limit, as in Compose, and it counts as started when they are through.
        Condition::ServiceStarted | Condition::ServiceHealthy if !service.settings.post_start.is_empty() => None,
        Condition::ServiceStarted => Some(STARTED_TIMEOUT_MS),
        Condition::ServiceHealthy => {
            let check = service.healthcheck.as_ref();
            Some(check.map_or(HEALTH_MARGIN_MS, Healthcheck::verdict_within_ms))
        }
        // A migration takes as long as it takes.
        Condition::ServiceCompletedSuccessfully => None,
    }
}
