//! What must be done so that the host is as the stack says: an ordered list of steps, each with its cause.
//!
//! Pure: the host is a parameter, and nothing is done here. A plan for a host that is as it should be is empty.

use serde::Serialize;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;

mod cast;
mod meanwhile;
mod planner;
mod replace;

pub use cast::compile_standing;
pub(crate) use planner::{satisfies, timeout_ms};

use planner::Planner;

use crate::action::{Action, Cause, Step, VolumeName, counted};
use crate::address::AddressBook;
use crate::compile::{Numbers, Surroundings, compile};
use crate::finding::Finding;
use crate::image::{self, FetchWishes};
use crate::instance::RunState;
use crate::lockout::Confirm;
use crate::names::{InstanceId, ProjectName, ServiceName};
use crate::observed::Observed;
use crate::policy::Mode;
use crate::ports;
use crate::stack::{Stack, Volume};

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
    /// Instances are replaced by earlier ones: `rollback_config` says how, where it is written.
    pub back: bool,
    /// When a change of the firewall has to be confirmed; `None`: as the file says.
    pub confirm: Option<Confirm>,
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

impl Plan {
    /// There is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Takes out what starts instances, what waits for them, and what stops others only because of them. A policy would
    /// give published ports to instances that aren't started, and take them from containers that go on.
    pub fn start_nothing(&mut self) {
        let ids = |wanted: fn(&Action) -> Option<&InstanceId>| -> HashSet<InstanceId> {
            self.steps.iter().filter_map(|step| wanted(&step.action)).cloned().collect()
        };
        let starts = ids(|action| match action {
            Action::StartInstance { spec } => Some(&spec.id),
            _ => None,
        });
        let removed = ids(|action| match action {
            Action::RemoveInstance { id } => Some(id),
            _ => None,
        });
        let adopts = self.steps.iter().any(|step| matches!(step.action, Action::StopForeign { .. }));
        self.steps.retain(|Step { action, cause }| match (action, cause) {
            (Action::SetPolicy { .. }, Cause::OlderLeaves { .. }) => false,
            (Action::SetPolicy { .. }, _) => !adopts,
            (Action::StartInstance { .. } | Action::Await { .. } | Action::Shift { .. } | Action::Watch { .. }, _)
            | (Action::StopForeign { .. } | Action::RemoveForeign { .. }, _)
            | (_, Cause::Replaced { .. }) => false,
            (Action::StopInstance { id } | Action::Drain { id, .. }, cause) => {
                !starts.contains(id) || removed.contains(id) || matches!(cause, Cause::PortGoesTo { .. })
            }
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
    let mut stack = image::completed(stack, &observed.engine);
    if wishes.back && stack.services.iter().any(|service| service.rollback.is_some()) {
        for service in &mut stack.to_mut().services {
            service.update = service.rollback.or(service.update);
        }
    }
    let stack = &*stack;
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
        numbers: Numbers::FIRST,
        own: observed.own.as_ref(),
    };
    let candidates = cast::candidates(stack, observed, surroundings);
    let order = start_order(stack);
    let mut conflicts = ports::conflicts(stack, observed);
    conflicts.extend(missing_volumes(stack, observed, wishes));
    let (candidates, order) = match (candidates, order) {
        (Ok(candidates), Ok(order)) if conflicts.is_empty() => (candidates, order),
        (candidates, order) => {
            let compiled = candidates.err().into_iter().flatten();
            return Err(compiled.chain(order.err().map(|finding| *finding)).chain(conflicts).collect());
        }
    };
    let (mut numbers, mut compiled) = candidates;
    let all = numbers.clone();
    numbers = cast::standing(stack, observed, &numbers, &compiled);
    let successions = cast::cast(stack, observed, &compiled, &mut numbers, &order, wishes);
    if numbers != all {
        compiled = compile(stack, Surroundings { numbers: &numbers, ..surroundings })?;
    }
    let mut steps = Planner::new(stack, observed, &compiled, order, successions).steps(wishes);
    if let Some(fetch) = wishes.fetch {
        steps.splice(0..0, image::fetches(stack, &observed.engine, fetch));
    }
    Ok(Plan { project: stack.project.clone(), steps, addresses })
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
    let running = observed.instances.iter().filter(|instance| is_alive(instance.status.state));
    actions.extend(stops(applied, running.map(|instance| &instance.status.id)));
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

/// Stops what runs: what depends on others before them, and together what is equally far from depending on nothing. What
/// no file has any more depends on nothing that is known: it goes first.
pub(crate) fn stops<'a>(stack: Option<&Stack>, running: impl Iterator<Item = &'a InstanceId>) -> Vec<Action> {
    let levels = stack.map(levels).unwrap_or_default();
    let mut together: BTreeMap<Reverse<usize>, Vec<InstanceId>> = BTreeMap::new();
    for id in running {
        let level = levels.get(&id.service).copied().unwrap_or(usize::MAX);
        together.entry(Reverse(level)).or_default().push(id.clone());
    }
    let stop = |mut ids: Vec<InstanceId>| match ids.pop() {
        Some(id) if ids.is_empty() => Some(Action::StopInstance { id }),
        Some(id) => Some(Action::StopInstances { ids: ids.into_iter().chain([id]).collect() }),
        None => None,
    };
    together.into_values().filter_map(stop).collect()
}

/// How many services must be there before a service, one after the other.
fn levels(stack: &Stack) -> HashMap<&ServiceName, usize> {
    let mut levels: HashMap<&ServiceName, usize> = HashMap::with_capacity(stack.services.len());
    // A stack that was applied has no circle.
    for service in start_order(stack).unwrap_or_default() {
        let service = &stack.services[service];
        let before = service.depends_on.iter().filter_map(|dependency| levels.get(&dependency.value.service));
        let level = before.max().map_or(0, |level| level + 1);
        levels.insert(&service.name, level);
    }
    levels
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

pub(crate) fn is_alive(state: RunState) -> bool {
    !matches!(state, RunState::Exited { .. })
}

#[cfg(test)]
mod tests;
