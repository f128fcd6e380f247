//! What must be done so that the host is as the stack says: an ordered list of steps, each with its cause.
//!
//! Pure: the host is a parameter, and nothing is done here. A plan for a host that is as it should be is empty.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;

use crate::action::{Action, Cause, Step, VolumeName, counted};
use crate::address::AddressBook;
use crate::compile::{Compiled, CompiledInstance, Surroundings, compile};
use crate::finding::Finding;
use crate::firewall::FirewallRules;
use crate::image::{self, FetchWishes};
use crate::instance::{Health, InstanceStatus, RunState};
use crate::names::{InstanceId, ProjectName, ServiceName};
use crate::observed::{ForeignContainer, InstanceSeen, Observed};
use crate::policy::Mode;
use crate::ports;
use crate::stack::{Condition, MountSource, Restart, Service, Stack, Volume};

/// What is to be planned, besides the stack and the host.
#[derive(Clone, Copy)]
pub struct Wishes<'a> {
    /// What the guard does about a breach.
    pub mode: Mode,
    /// Wait for the health of everything that was started, not only of what others depend on.
    pub wait_for_health: bool,
    /// Which images are to be fetched first; `None`: they have been.
    pub fetch: Option<FetchWishes>,
    /// Only these services are started or replaced; what else the stack has stays as it is. `None`: all.
    pub only: Option<&'a BTreeSet<ServiceName>>,
    /// Replace instances also when nothing changed.
    pub recreate: bool,
    /// Where a volume's data is, by its key and what the file says about it.
    pub volume_path: &'a dyn Fn(&str, &Volume) -> PathBuf,
}

/// What is done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The stack.
    pub project: ProjectName,
    /// The steps.
    pub steps: Vec<Step>,
    /// Addresses of the services once it is done.
    pub addresses: AddressBook,
}

/// Longest time for a process to be there after it was started.
const STARTED_TIMEOUT_MS: u64 = 10_000;
/// What a health check gets beyond the time that its own settings add up to.
const HEALTH_MARGIN_MS: u64 = 10_000;

impl Plan {
    /// There is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Takes out what starts instances, what waits for them, and what stops them only to start them anew.
    pub fn start_nothing(&mut self) {
        let starts: HashSet<InstanceId> = self
            .steps
            .iter()
            .filter_map(|step| match &step.action {
                Action::StartInstance { spec } => Some(spec.id.clone()),
                _ => None,
            })
            .collect();
        let removed: HashSet<InstanceId> = self
            .steps
            .iter()
            .filter_map(|step| match &step.action {
                Action::RemoveInstance { id } => Some(id.clone()),
                _ => None,
            })
            .collect();
        self.steps.retain(|Step { action, cause }| match action {
            Action::StartInstance { .. } | Action::Await { .. } => false,
            Action::StopInstance { id } => {
                !starts.contains(id) || removed.contains(id) || matches!(cause, Cause::PortGoesTo { .. })
            }
            Action::StopForeign { .. } | Action::RemoveForeign { .. } => false,
            _ => true,
        });
    }

    /// For programs. Holds no value of an environment variable and no argument of a command.
    pub fn to_json(&self) -> serde_json::Value {
        #[derive(Serialize)]
        struct StepView<'a> {
            action: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            instance: Option<String>,
            text: String,
            cause: &'a Cause,
            destroys_data: bool,
        }
        let steps = self.steps.iter().map(|Step { action, cause }| StepView {
            action: action.kind(),
            instance: action.instance().map(ToString::to_string),
            text: action.to_string(),
            cause,
            destroys_data: action.destroys_data(),
        });
        serde_json::json!({ "version": 1, "project": self.project, "steps": steps.collect::<Vec<_>>() })
    }
}

/// One line for each step; no secrets.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return writeln!(f, "{}: nothing to change", self.project);
        }
        writeln!(f, "{}: {}", self.project, counted(self.steps.len(), "step"))?;
        for Step { action, cause } in &self.steps {
            writeln!(f, "  {action} ({cause})")?;
        }
        Ok(())
    }
}

/// Plans `up`, or says everything that stands against it.
pub fn plan(stack: &Stack, observed: &Observed, wishes: Wishes<'_>) -> Result<Plan, Vec<Finding>> {
    let stack = &*image::completed(stack, &observed.engine);
    let names = stack.services.iter().map(|service| &service.name);
    let known_names: HashSet<_> = names.clone().collect();
    // What leaves keeps its address until it is gone: a newcomer at that address would share its policy with it.
    let attached = observed.guard.iter().flat_map(|guard| guard.attached.values());
    let known = observed.instances.iter().map(|instance| &instance.status.address);
    let held: HashSet<_> = attached.chain(known).map(|address| address.service()).collect();
    let held = observed.addresses.iter().filter(|(_, index)| index.address().is_some_and(|a| held.contains(&a)));
    let taken = held.filter(|(name, _)| !known_names.contains(name)).map(|(_, index)| index);
    let taken = taken.chain(observed.taken.iter().copied()).collect();
    let addresses = observed
        .addresses
        .assign(names, &taken)
        .map_err(|error| vec![Finding::error("no-address-left", &error.0, error.to_string())])?;
    let surroundings = Surroundings {
        addresses: &addresses,
        resolvers: &observed.resolvers,
        mode: wishes.mode,
        volume_path: wishes.volume_path,
        files: Some(&observed.files),
        engine: &observed.engine,
    };
    let compiled = compile(stack, surroundings);
    let order = start_order(stack);
    let mut conflicts = ports::conflicts(stack, observed);
    conflicts.extend(missing_volumes(stack, observed, wishes));
    match (compiled, order, conflicts.is_empty()) {
        (Ok(compiled), Ok(order), true) => {
            let mut steps = Planner::new(stack, observed, &compiled, order).steps(wishes);
            adopt(stack, observed, &mut steps);
            if let Some(fetch) = wishes.fetch {
                steps.splice(0..0, image::fetches(stack, &observed.engine, fetch));
            }
            Ok(Plan { project: stack.project.clone(), steps, addresses })
        }
        (compiled, order, _) => {
            let findings =
                compiled.err().into_iter().flatten().chain(order.err().map(|finding| *finding)).chain(conflicts);
            Err(findings.collect())
        }
    }
}

/// Plans `down`: everything of the stack that is on the host goes, volumes only if that is wished. What depends on
/// others is stopped before them, as far as the stack that was applied last is known.
pub fn plan_down(project: &ProjectName, applied: Option<&Stack>, observed: &Observed, volumes: bool) -> Plan {
    let mut actions = Vec::new();
    let known: BTreeSet<&InstanceId> = observed.instances.iter().map(|instance| &instance.status.id).collect();
    let attached = observed.guard.iter().flat_map(|guard| guard.attached.keys());
    let all: BTreeSet<&InstanceId> = known.iter().copied().chain(attached).collect();
    let orphans = observed.agent.is_none() && observed.instances.iter().any(|seen| is_alive(seen.status.state));
    if orphans {
        // What runs is stopped in order by an agent that takes it over.
        actions.push(Action::StartAgent);
    }
    let order = applied.and_then(|stack| Some((stack, start_order(stack).ok()?)));
    let ranks: HashMap<&ServiceName, usize> = order
        .iter()
        .flat_map(|(stack, order)| {
            order.iter().enumerate().map(|(rank, &service)| (&stack.services[service].name, rank))
        })
        .collect();
    let mut running: Vec<_> = observed.instances.iter().filter(|instance| is_alive(instance.status.state)).collect();
    // What no file has any more depends on nothing that is known: it goes first.
    running.sort_by_key(|instance| {
        std::cmp::Reverse(ranks.get(&instance.status.id.service).copied().unwrap_or(usize::MAX))
    });
    let running = running.into_iter();
    actions.extend(running.map(|instance| Action::StopInstance { id: instance.status.id.clone() }));
    if observed.firewall.is_some() {
        actions.push(Action::RemoveFirewall);
    }
    actions.extend(all.into_iter().map(|id| Action::RemoveInstance { id: id.clone() }));
    if observed.guard.is_some() {
        actions.push(Action::UnloadGuard);
    }
    if observed.agent.is_some() || orphans {
        actions.push(Action::StopAgent);
    }
    if volumes {
        let own = observed.volumes.iter().cloned().map(VolumeName::Own);
        // What another stack works with stays, whoever made it.
        let named = observed.made_volumes.intersection(&observed.named_volumes);
        let named = named.filter(|name| !observed.volumes_of_others.contains(*name)).cloned().map(VolumeName::Named);
        let engines = applied.into_iter().flat_map(|stack| stack.volumes.iter().map(move |volume| (stack, volume)));
        let engines = engines.filter(|(_, (_, volume))| !volume.external && volume.name.is_none());
        let there = |name: &VolumeName| {
            let engine = observed.engine.seen();
            matches!(name, VolumeName::Engine(name) if engine.is_some_and(|engine| engine.volumes.contains(name)))
        };
        let engines = engines.map(|(stack, (key, _))| stack.volume_name(key)).filter(there);
        let of_images = applied.into_iter().flat_map(|stack| {
            let all = observed.engine.seen().into_iter().flat_map(|engine| &engine.volumes);
            all.filter(|name| stack.services.iter().any(|of| image::is_volume_of(&stack.project, &of.name, name)))
        });
        let of_images = of_images.cloned().map(VolumeName::Engine);
        actions.extend(own.chain(named).chain(engines).chain(of_images).map(|name| Action::RemoveVolume { name }));
    }
    let steps = actions.into_iter().map(|action| Step { action, cause: Cause::Down }).collect();
    Plan { project: project.clone(), steps, addresses: AddressBook::default() }
}

/// Takes over from containers that Docker Compose runs for the same project: they are stopped when everything is ready
/// for what takes their place, and removed when that has come up.
fn adopt(stack: &Stack, observed: &Observed, steps: &mut Vec<Step>) {
    let Some(engine) = observed.engine.seen() else { return };
    let replaced = |container: &&ForeignContainer| {
        container.service.as_ref().is_some_and(|service| stack.service(service).is_some())
    };
    let ready =
        steps.iter().position(|step| matches!(step.action, Action::StartInstance { .. })).unwrap_or(steps.len());
    let (mut stops, mut removals) = (Vec::new(), Vec::new());
    for ForeignContainer { id, name, .. } in engine.foreign.iter().filter(replaced) {
        let stop = Action::StopForeign { id: id.clone(), name: name.clone() };
        stops.push(Step { action: stop, cause: Cause::Adopted });
        let remove = Action::RemoveForeign { id: id.clone(), name: name.clone() };
        removals.push(Step { action: remove, cause: Cause::Adopted });
    }
    steps.splice(ready..ready, stops);
    steps.extend(removals);
}

/// External volumes that nobody has made.
fn missing_volumes(stack: &Stack, observed: &Observed, wishes: Wishes<'_>) -> Vec<Finding> {
    let missing = stack.volumes.iter().filter(|(_, volume)| volume.external).filter_map(|(key, volume)| {
        let name = volume.name.as_ref().unwrap_or(key);
        if let VolumeName::Engine(name) = stack.volume_name(key) {
            let engine = observed.engine.seen()?;
            let message = format!("the external volume `{name}` doesn't exist on {}", engine.version);
            let finding = Finding::error("volume-missing", key, message);
            let hint = format!("make it (`docker volume create {name}`), or take `external` away");
            return (!engine.volumes.contains(&name)).then(|| finding.remedy(hint));
        }
        if observed.named_volumes.contains(name) {
            return None;
        }
        let path = (wishes.volume_path)(key, volume);
        let finding =
            Finding::error("volume-missing", key, format!("the external volume `{name}` doesn't exist on this host"));
        let hint =
            format!("bring up the stack that has it, make it (`mkdir -p {}`), or take `external` away", path.display());
        Some(finding.remedy(hint))
    });
    missing.collect()
}

/// Volumes that have to be made: neither external nor there.
fn new_volumes(stack: &Stack, observed: &Observed) -> Vec<(String, VolumeName)> {
    let new = stack.volumes.iter().filter(|(_, volume)| !volume.external).filter_map(|(key, _)| {
        let name = stack.volume_name(key);
        let there = match &name {
            VolumeName::Own(key) => observed.volumes.contains(key),
            VolumeName::Named(name) => observed.named_volumes.contains(name),
            VolumeName::Engine(name) => observed.engine.seen().is_some_and(|engine| engine.volumes.contains(name)),
        };
        (!there).then(|| (key.clone(), name))
    });
    new.collect()
}

/// Services in the order in which they can be started: what depends on nothing first, otherwise as in the file.
pub(crate) fn start_order(stack: &Stack) -> Result<Vec<usize>, Box<Finding>> {
    let index: HashMap<&ServiceName, usize> =
        stack.services.iter().enumerate().map(|(index, service)| (&service.name, index)).collect();
    let mut dependents = vec![Vec::new(); stack.services.len()];
    let mut missing = vec![0_usize; stack.services.len()];
    for (client, service) in stack.services.iter().enumerate() {
        for dependency in &service.depends_on {
            if let Some(&server) = index.get(&dependency.value.service) {
                dependents[server].push(client);
                missing[client] += 1;
            }
        }
    }
    let mut order = Vec::with_capacity(stack.services.len());
    let mut ready: Vec<usize> = (0..missing.len()).filter(|&service| missing[service] == 0).collect();
    // Level by level, so that everything of one level is started before anything waits for it.
    while !ready.is_empty() {
        let mut next = Vec::new();
        for service in ready {
            order.push(service);
            for &dependent in &dependents[service] {
                missing[dependent] -= 1;
                if missing[dependent] == 0 {
                    next.push(dependent);
                }
            }
        }
        next.sort_unstable();
        ready = next;
    }
    match (0..missing.len()).find(|&service| missing[service] > 0) {
        None => Ok(order),
        Some(service) => {
            let service = &stack.services[service];
            let finding = Finding::error("dependency-cycle", &service.name, "it waits, directly or not, for itself");
            Err(Box::new(finding.remedy("take one depends_on of the circle away").at(&service.place)))
        }
    }
}

/// What becomes of an instance that the file has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fate {
    start: Option<Cause>,
    stop: Option<Cause>,
    guard: Option<Cause>,
    /// The guard has it at another address: that must go first.
    remove: bool,
}

struct Planner<'a> {
    stack: &'a Stack,
    observed: &'a Observed,
    compiled: &'a Compiled,
    order: Vec<usize>,
    index: HashMap<&'a ServiceName, usize>,
    seen: HashMap<&'a InstanceId, &'a InstanceSeen>,
    wanted: HashSet<&'a InstanceId>,
    /// Instances of each service, in the order of the stack.
    instances: Vec<Vec<&'a CompiledInstance>>,
    steps: Vec<Step>,
}

impl<'a> Planner<'a> {
    fn new(stack: &'a Stack, observed: &'a Observed, compiled: &'a Compiled, order: Vec<usize>) -> Self {
        let index: HashMap<&ServiceName, usize> =
            stack.services.iter().enumerate().map(|(index, service)| (&service.name, index)).collect();
        let mut instances = vec![Vec::new(); stack.services.len()];
        for instance in &compiled.instances {
            instances[index[&instance.spec.id.service]].push(instance);
        }
        Self {
            stack,
            observed,
            compiled,
            order,
            index,
            seen: observed.instances.iter().map(|instance| (&instance.status.id, instance)).collect(),
            wanted: compiled.instances.iter().map(|instance| &instance.spec.id).collect(),
            instances,
            steps: Vec::new(),
        }
    }

    fn push(&mut self, action: Action, cause: Cause) {
        self.steps.push(Step { action, cause });
    }

    fn steps(mut self, wishes: Wishes<'_>) -> Vec<Step> {
        let fates = self.fates(wishes);
        for (key, name) in new_volumes(self.stack, self.observed) {
            let owner = volume_owner(self.stack, &key);
            self.push(Action::CreateVolume { name, owner }, Cause::Missing);
        }
        if self.observed.agent.is_none() {
            self.push(Action::StartAgent, Cause::Missing);
        }
        if self.observed.guard.is_none() {
            self.push(Action::LoadGuard, Cause::Missing);
        }
        let early = self.stop_early(&fates);
        for instance in &self.compiled.instances {
            let id = &instance.spec.id;
            if let Some(cause) = &fates[id].guard {
                self.push(Action::GuardInstance { id: id.clone(), address: instance.spec.address }, cause.clone());
            }
        }
        self.set_policy();
        self.set_firewall();
        self.start(&fates, &early, wishes);
        self.retire(&early);
        self.steps
    }

    fn fates(&self, wishes: Wishes<'_>) -> HashMap<&'a InstanceId, Fate> {
        let mut fates: HashMap<&InstanceId, Fate> = HashMap::with_capacity(self.compiled.instances.len());
        let mut restarted: HashSet<&ServiceName> = HashSet::new();
        for &service in &self.order {
            for instance in &self.instances[service] {
                let mut fate = self.fate(instance);
                let chosen = wishes.only.is_none_or(|only| only.contains(&instance.spec.id.service));
                if !chosen && matches!(fate.start, Some(Cause::Stopped | Cause::NotRunning | Cause::Missing)) {
                    fate.start = None;
                }
                if chosen && wishes.recreate && fate.start.is_none() {
                    let alive = self.seen.get(&instance.spec.id).is_some_and(|seen| is_alive(seen.status.state));
                    fate.start = Some(Cause::Asked);
                    fate.stop = alive.then_some(Cause::Asked);
                }
                let with = self.stack.services[service]
                    .depends_on
                    .iter()
                    .find(|dependency| dependency.value.restart && restarted.contains(&dependency.value.service));
                if let (None, Some(dependency)) = (&fate.start, with) {
                    let cause = Cause::RestartsWith { service: dependency.value.service.clone() };
                    fate.start = Some(cause.clone());
                    fate.stop = Some(cause);
                }
                if fate.stop.is_some() {
                    restarted.insert(&self.stack.services[service].name);
                }
                fates.insert(&instance.spec.id, fate);
            }
        }
        fates
    }

    fn fate(&self, instance: &CompiledInstance) -> Fate {
        let id = &instance.spec.id;
        let attached = self.observed.guard.as_ref().and_then(|guard| guard.attached.get(id));
        let moved = attached.is_some_and(|address| *address != instance.spec.address);
        let guard = match attached {
            None => Some(Cause::Missing),
            Some(_) if moved => Some(Cause::Changed { keys: vec!["address".into()] }),
            Some(_) => None,
        };
        let Some(seen) = self.seen.get(id) else {
            return Fate { start: Some(Cause::Missing), stop: None, guard, remove: moved };
        };
        let cause = if seen.status.spec_digest != instance.fingerprint.digest {
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
        };
        let stop = cause.clone().filter(|_| is_alive(seen.status.state));
        Fate { start: cause, stop, guard, remove: moved }
    }

    /// Stops what must be gone before anything else happens: instances whose address changed, and those whose
    /// published port goes to another service. Returns who was stopped.
    fn stop_early(&mut self, fates: &HashMap<&'a InstanceId, Fate>) -> HashSet<&'a InstanceId> {
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

    fn set_policy(&mut self) {
        let digest = &self.compiled.policy_digest;
        let current = self.observed.guard.as_ref().and_then(|guard| guard.policy_digest.as_ref());
        let cause = match current {
            Some(current) if current == digest => return,
            Some(_) => Cause::Changed { keys: Vec::new() },
            None => Cause::Missing,
        };
        self.push(Action::SetPolicy { policy: self.compiled.policy.clone(), digest: digest.clone() }, cause);
    }

    fn set_firewall(&mut self) {
        match (FirewallRules::of(self.stack, &self.observed.ssh_ports), &self.observed.firewall) {
            (Some(rules), None) => self.push(Action::SetFirewall { rules }, Cause::Missing),
            (Some(rules), Some(seen)) if seen.digest.as_deref() != Some(&rules.digest()) => {
                self.push(Action::SetFirewall { rules }, Cause::Changed { keys: Vec::new() });
            }
            (None, Some(_)) => self.push(Action::RemoveFirewall, Cause::NotInFile),
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    fn start(&mut self, fates: &HashMap<&'a InstanceId, Fate>, early: &HashSet<&'a InstanceId>, wishes: Wishes<'_>) {
        let stack = self.stack;
        let mut awaited: HashMap<(&InstanceId, Condition), bool> = HashMap::new();
        for position in 0..self.order.len() {
            let service = self.order[position];
            let starts = self.instances[service].iter().any(|instance| fates[&instance.spec.id].start.is_some());
            if starts {
                self.await_dependencies(&stack.services[service], fates, &mut awaited, wishes.only);
            }
            for instance in self.instances[service].clone() {
                let id = &instance.spec.id;
                let fate = &fates[id];
                if let Some(cause) = fate.stop.as_ref().filter(|_| !early.contains(id)) {
                    self.push(Action::StopInstance { id: id.clone() }, cause.clone());
                }
                let hosts = &instance.spec.hosts;
                let kept = self.seen.get(id).filter(|_| fate.start.is_none());
                if kept.is_some_and(|seen| seen.hosts_digest.as_deref() != Some(hosts.digest())) {
                    let cause = Cause::Changed { keys: Vec::new() };
                    self.push(Action::SetHosts { id: id.clone(), hosts: hosts.clone() }, cause);
                }
                if let Some(cause) = &fate.start {
                    self.push(Action::StartInstance { spec: Box::new(instance.spec.clone()) }, cause.clone());
                }
            }
        }
        // Everything is started; now tell whether it came up. A dependency was waited for already.
        for position in 0..self.order.len() {
            let service = self.order[position];
            let condition = match &stack.services[service].healthcheck {
                Some(_) if wishes.wait_for_health => Condition::ServiceHealthy,
                _ => Condition::ServiceStarted,
            };
            for instance in self.instances[service].clone() {
                let id = &instance.spec.id;
                let known = |condition| awaited.contains_key(&(id, condition));
                let enough = known(condition)
                    || known(Condition::ServiceHealthy)
                    || known(Condition::ServiceCompletedSuccessfully);
                if fates[id].start.is_some() && !enough {
                    let optional = stack.is_optional(&id.service);
                    let timeout_ms = timeout_ms(condition, &stack.services[service]);
                    let action = Action::Await { id: id.clone(), condition, timeout_ms, optional };
                    self.push(action, Cause::JustStarted);
                }
            }
        }
    }

    fn await_dependencies(
        &mut self,
        client: &Service,
        fates: &HashMap<&'a InstanceId, Fate>,
        // Whom was waited for, and whether the plan may go on without.
        awaited: &mut HashMap<(&'a InstanceId, Condition), bool>,
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
            *gone.entry(id).or_default() |= alive && !early.contains(id);
        }
        for (id, alive) in gone {
            if alive {
                self.push(Action::StopInstance { id: id.clone() }, Cause::NotInFile);
            }
            self.push(Action::RemoveInstance { id: id.clone() }, Cause::NotInFile);
        }
    }
}

/// The user of the first service that writes to the volume.
fn volume_owner(stack: &Stack, volume: &str) -> Option<String> {
    let writes = |service: &&Service| {
        service.mounts.iter().any(|mount| {
            !mount.value.read_only && matches!(&mount.value.source, MountSource::Volume(name) if name == volume)
        })
    };
    stack.services.iter().find(writes)?.run.process.as_ref()?.user.clone()
}

pub(crate) fn is_alive(state: RunState) -> bool {
    !matches!(state, RunState::Exited { .. })
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
            let needed = check.map_or(0, |check| {
                let once = check.interval_ms.saturating_add(check.timeout_ms);
                check.start_period_ms.saturating_add(once.saturating_mul(u64::from(check.retries).max(1)))
            });
            Some(needed.saturating_add(HEALTH_MARGIN_MS))
        }
        // A migration takes as long as it takes.
        Condition::ServiceCompletedSuccessfully => None,
    }
}

#[cfg(test)]
mod tests;
