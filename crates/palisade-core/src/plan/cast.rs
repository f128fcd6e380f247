//! Which instances a service has on a host, by number, and which of them takes the place of which.
//!
//! A newer version of an instance that can run beside the older one gets another number. An update that was cut off is
//! found here: two versions of one instance are there, and the plan goes on with them.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::planner::{asked, change, restarts_with};
use super::{Wishes, is_alive};
use crate::action::Cause;
use crate::address::{INSTANCES_MAX, ServiceAddress};
use crate::compile::{Compiled, CompiledInstance, Numbers, Surroundings, compile};
use crate::finding::Finding;
use crate::image;
use crate::names::{InstanceId, ServiceName};
use crate::observed::{InstanceSeen, Observed};
use crate::stack::{Service, Stack};
use crate::update::Order;

/// An instance that takes the place of another, which runs until then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Succession {
    pub(super) old: InstanceId,
    pub(super) new: InstanceId,
    pub(super) cause: Cause,
}

/// Compiles the stack with the instances that the host has: as far as they are as the file says, those.
pub fn compile_standing(
    stack: &Stack,
    observed: &Observed,
    surroundings: Surroundings<'_>,
) -> Result<Compiled, Vec<Finding>> {
    let (candidates, compiled) = candidates(stack, observed, surroundings)?;
    let numbers = standing(stack, observed, &candidates, &compiled);
    if numbers == candidates {
        Ok(compiled)
    } else {
        compile(stack, Surroundings { numbers: &numbers, ..surroundings })
    }
}

/// Every instance that there is or that could be, compiled: what is there may be as the file says under any number.
pub(super) fn candidates(
    stack: &Stack,
    observed: &Observed,
    surroundings: Surroundings<'_>,
) -> Result<(Numbers, Compiled), Vec<Finding>> {
    let mut numbers = Numbers::default();
    let seen = seen_numbers(observed);
    for service in &stack.services {
        let all = (1..=service.replicas).chain(seen.get(&service.name).into_iter().flatten().copied());
        numbers.set(service, if service.replicas == 0 { BTreeSet::new() } else { all.collect() });
    }
    let compiled = compile(stack, Surroundings { numbers: &numbers, ..surroundings })?;
    Ok((numbers, compiled))
}

fn seen_numbers(observed: &Observed) -> BTreeMap<&ServiceName, BTreeSet<u8>> {
    let mut numbers: BTreeMap<&ServiceName, BTreeSet<u8>> = BTreeMap::new();
    for InstanceId { service, number } in observed.instances.iter().map(|seen| &seen.status.id) {
        numbers.entry(service).or_default().insert(*number);
    }
    numbers
}

/// As many of the candidates as there are replicas: first what is as the file says, then what serves, then what is
/// there, then the lowest.
pub(super) fn standing(stack: &Stack, observed: &Observed, candidates: &Numbers, compiled: &Compiled) -> Numbers {
    let mut numbers = Numbers::default();
    for service in &stack.services {
        let all = candidates.of(service);
        if all.len() <= usize::from(service.replicas) {
            numbers.set(service, all);
            continue;
        }
        let mut ranked: Vec<_> =
            all.into_iter().map(|number| (rank(service, number, observed, compiled), number)).collect();
        ranked.sort_unstable();
        numbers.set(service, ranked.into_iter().take(service.replicas.into()).map(|(_, number)| number).collect());
    }
    numbers
}

fn rank(service: &Service, number: u8, observed: &Observed, compiled: &Compiled) -> (bool, bool, bool) {
    let id = InstanceId { service: service.name.clone(), number };
    let seen = observed.instances.iter().find(|seen| seen.status.id == id && is_alive(seen.status.state));
    let wanted = compiled.instances.iter().find(|instance| instance.spec.id == id);
    let same =
        matches!((seen, wanted), (Some(seen), Some(wanted)) if seen.status.spec_digest == wanted.fingerprint.digest);
    let serving = seen.is_some_and(|seen| serves(seen, observed));
    (!same, !serving, seen.is_none())
}

fn serves(seen: &InstanceSeen, observed: &Observed) -> bool {
    observed.guard.as_ref().is_some_and(|guard| guard.serving.contains(&seen.status.address))
}

/// Which of two versions of an instance comes first on this host.
pub(super) fn order(stack: &Stack, service: &Service, observed: &Observed) -> Order {
    let image = image::image_of(stack, service, &observed.engine);
    let mut known = observed.guard.iter().filter_map(|guard| guard.policy.as_ref()).flat_map(|policy| &policy.services);
    let known = known.find(|known| known.name == service.name).map(|known| known.host_mode);
    match service.update_order(image) {
        Order::StartFirst if known.is_some_and(|before| before != service.host_mode) => {
            let because = "what localhost is changes with `network_mode`, for both versions at once".to_owned();
            Order::StopFirst { because }
        }
        order => order,
    }
}

/// It runs, guarded, at an address of the service: connections can go on to it.
fn holds_its_place(seen: &InstanceSeen, observed: &Observed, service: ServiceAddress) -> bool {
    let attached = observed.guard.as_ref().and_then(|guard| guard.attached.get(&seen.status.id));
    is_alive(seen.status.state) && attached.is_some_and(|address| address.service() == service)
}

/// Who takes whose place, and which numbers the services have then. `order`: services before those that depend on them.
pub(super) fn cast(
    stack: &Stack,
    observed: &Observed,
    compiled: &Compiled,
    numbers: &mut Numbers,
    order: &[usize],
    wishes: Wishes<'_>,
) -> Vec<Succession> {
    let mut all = Vec::new();
    let mut changed: HashSet<&ServiceName> = HashSet::new();
    let mut by_service: BTreeMap<&ServiceName, Vec<&InstanceSeen>> = BTreeMap::new();
    for seen in &observed.instances {
        by_service.entry(&seen.status.id.service).or_default().push(seen);
    }
    let mut wanted: BTreeMap<&ServiceName, Vec<&CompiledInstance>> = BTreeMap::new();
    for instance in &compiled.instances {
        wanted.entry(&instance.spec.id.service).or_default().push(instance);
    }
    for service in order.iter().map(|index| &stack.services[*index]) {
        let Some(seen) = by_service.get(&service.name) else { continue };
        let Some(instances) = wanted.get(&service.name) else { continue };
        let mut casting = Casting {
            stack,
            service,
            observed,
            seen,
            instances,
            numbers: numbers.of(service),
            successions: Vec::new(),
        };
        let why = restarts_with(service, &changed).or_else(|| asked(service, wishes));
        if casting.replace(why) {
            changed.insert(&service.name);
        }
        casting.finish_earlier();
        numbers.set(service, casting.numbers);
        all.extend(casting.successions);
    }
    all
}

struct Casting<'a> {
    stack: &'a Stack,
    service: &'a Service,
    observed: &'a Observed,
    seen: &'a [&'a InstanceSeen],
    instances: &'a [&'a CompiledInstance],
    numbers: BTreeSet<u8>,
    successions: Vec<Succession>,
}

impl<'a> Casting<'a> {
    fn id(&self, number: u8) -> InstanceId {
        InstanceId { service: self.service.name.clone(), number }
    }

    fn seen(&self, number: u8) -> Option<&'a InstanceSeen> {
        self.seen.iter().copied().find(|seen| seen.status.id.number == number)
    }

    fn instance(&self, number: u8) -> Option<&'a CompiledInstance> {
        self.instances.iter().copied().find(|instance| instance.spec.id.number == number)
    }

    /// Gives what must change a successor where the service lets it. `why`: a reason for all instances. Tells whether anything that runs must change.
    fn replace(&mut self, why: Option<Cause>) -> bool {
        let mut changes = false;
        let mut start_first = None;
        for number in self.numbers.clone() {
            let (Some(seen), Some(instance)) = (self.seen(number), self.instance(number)) else { continue };
            let Some(cause) = change(self.observed, seen, instance).or(why.clone()) else { continue };
            if !is_alive(seen.status.state) {
                continue;
            }
            changes = true;
            // What ran without the guard may hold what it should not.
            let stays =
                cause != Cause::NotGuarded && holds_its_place(seen, self.observed, instance.spec.address.service());
            let start_first =
                *start_first.get_or_insert_with(|| order(self.stack, self.service, self.observed) == Order::StartFirst);
            if let Some(new) = self.free_number().filter(|_| start_first && stays) {
                self.numbers.remove(&number);
                self.numbers.insert(new);
                self.successions.push(Succession { old: self.id(number), new: self.id(new), cause });
            }
        }
        changes
    }

    /// The lowest number that no instance of the service has.
    fn free_number(&self) -> Option<u8> {
        let attached = self.observed.guard.iter().flat_map(|guard| guard.attached.keys());
        let attached: BTreeSet<u8> =
            attached.filter(|id| id.service == self.service.name).map(|id| id.number).collect();
        let taken = |number: &u8| {
            let successor = self.successions.iter().any(|s| s.new.number == *number || s.old.number == *number);
            self.numbers.contains(number) || attached.contains(number) || self.seen(*number).is_some() || successor
        };
        (1..=INSTANCES_MAX).find(|number| !taken(number))
    }

    /// An update that was cut off: what is as the file says doesn't serve yet, and what isn't wanted any more does.
    fn finish_earlier(&mut self) {
        let waiting = self.numbers.iter().copied().filter(|number| {
            let paired = self.successions.iter().any(|succession| succession.new.number == *number);
            let (Some(seen), Some(instance)) = (self.seen(*number), self.instance(*number)) else { return false };
            !paired && !serves(seen, self.observed) && change(self.observed, seen, instance).is_none()
        });
        let Some(address) = self.instances.first().map(|instance| instance.spec.address.service()) else { return };
        let known = self.observed.guard.as_ref().is_some_and(|guard| !guard.serving.is_empty());
        let leftover = self.seen.iter().filter(|seen| {
            let number = seen.status.id.number;
            let paired = self.successions.iter().any(|succession| succession.old.number == number);
            let serves = serves(seen, self.observed) || !known;
            !paired && !self.numbers.contains(&number) && serves && holds_its_place(seen, self.observed, address)
        });
        let pairs: Vec<_> = waiting.zip(leftover.map(|seen| seen.status.id.number)).collect();
        for (new, old) in pairs {
            self.successions.push(Succession { old: self.id(old), new: self.id(new), cause: Cause::Unfinished });
        }
    }
}
