//! Plans `stop`, `start` and `restart`: what is there is ended or started as it was, and nothing is changed.
//!
//! Pure, like [`crate::plan`], which brings a file's changes to the host; here the stack is as it was applied.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::action::{Action, Cause, Step};
use crate::address::InstanceAddress;
use crate::digest::digest_of;
use crate::instance::{Health, InstanceSpec, RunState};
use crate::names::{InstanceId, ServiceName};
use crate::observed::{InstanceSeen, Observed};
use crate::plan::{Plan, is_alive, satisfies, start_order, stops, timeout_ms};
use crate::policy::Policy;
use crate::stack::{Condition, Stack};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// End what runs; it stays ended.
    Stop,
    /// Start what doesn't run.
    Start,
    /// End what runs and start it again, and start what doesn't run.
    Restart,
}

/// Plans a turn of the services in `wanted`, of all when it is empty. What depends on others is stopped before them and
/// started after them. `specs`: what the instances were started with; one that isn't among them can't be started.
///
/// A service that is restarted by its name and has several instances that serve, by `policy`, is never away: one after the
/// other lets connections go to the others first.
pub fn plan_turn(
    turn: Turn,
    stack: &Stack,
    observed: &Observed,
    wanted: &BTreeSet<ServiceName>,
    specs: &BTreeMap<InstanceId, InstanceSpec>,
    policy: Option<&Policy>,
) -> Plan {
    let chosen = chosen(stack, observed, wanted);
    let by_name = turn == Turn::Restart && !wanted.is_empty();
    let (in_turns, chosen): (Vec<_>, Vec<_>) = chosen.iter().partition(|seen| {
        by_name && policy.is_some_and(|policy| others_serve(policy, &chosen, &seen.status.id.service, specs))
    });
    let mut planner = Turning { stack, turn, chosen: &chosen, specs, steps: Vec::new(), awaited: BTreeSet::new() };
    if turn != Turn::Start {
        let running = chosen.iter().filter(|seen| is_alive(seen.status.state)).map(|seen| &seen.status.id);
        for stop in stops(Some(stack), running) {
            planner.push(stop, Cause::Asked);
        }
    }
    if turn != Turn::Stop {
        planner.start();
    }
    if let Some(policy) = policy {
        planner.restart_in_turns(&in_turns, policy);
    }
    let mut steps = planner.steps;
    if observed.agent.is_none() && !steps.is_empty() {
        steps.insert(0, Step { action: Action::StartAgent, cause: Cause::Missing });
    }
    Plan { project: stack.project.clone(), steps, addresses: observed.addresses.clone() }
}

/// The instances of the services that are wanted, in the order in which they are started.
fn chosen<'a>(stack: &Stack, observed: &'a Observed, wanted: &BTreeSet<ServiceName>) -> Vec<&'a InstanceSeen> {
    // A stack that was applied has no circle.
    let order = start_order(stack).unwrap_or_else(|_| (0..stack.services.len()).collect());
    let ranks: HashMap<&ServiceName, usize> =
        order.iter().enumerate().map(|(rank, &service)| (&stack.services[service].name, rank)).collect();
    let mut chosen: Vec<_> = observed
        .instances
        .iter()
        .filter(|seen| wanted.is_empty() || wanted.contains(&seen.status.id.service))
        .collect();
    chosen.sort_by_key(|seen| (ranks.get(&seen.status.id.service).copied().unwrap_or(usize::MAX), &seen.status.id));
    chosen
}

/// All instances of the service serve, and there is more than one.
fn others_serve(
    policy: &Policy,
    chosen: &[&InstanceSeen],
    service: &ServiceName,
    specs: &BTreeMap<InstanceId, InstanceSpec>,
) -> bool {
    let known = policy.services.iter().find(|known| known.name == *service);
    let serves = |seen: &&InstanceSeen| {
        let status = &seen.status;
        status.state == RunState::Running
            && matches!(status.health, Health::None | Health::Healthy)
            && specs.contains_key(&status.id)
            && known.is_some_and(|known| known.backends.contains(&status.address))
    };
    let all: Vec<_> = chosen.iter().filter(|seen| seen.status.id.service == *service).collect();
    all.len() > 1 && all.into_iter().all(serves)
}

struct Turning<'a> {
    stack: &'a Stack,
    turn: Turn,
    chosen: &'a [&'a InstanceSeen],
    specs: &'a BTreeMap<InstanceId, InstanceSpec>,
    steps: Vec<Step>,
    awaited: BTreeSet<(&'a InstanceId, &'static str)>,
}

impl<'a> Turning<'a> {
    fn push(&mut self, action: Action, cause: Cause) {
        self.steps.push(Step { action, cause });
    }

    fn start(&mut self) {
        let starts = |seen: &&&InstanceSeen| self.turn == Turn::Restart || !is_alive(seen.status.state);
        let starting: Vec<&InstanceSeen> = self.chosen.iter().filter(starts).copied().collect();
        for seen in &starting {
            let id = &seen.status.id;
            let Some(spec) = self.specs.get(id) else { continue };
            self.await_dependencies(&id.service, &starting);
            self.push(Action::StartInstance { spec: Box::new(spec.clone()) }, Cause::Asked);
        }
        for seen in &starting {
            let id = &seen.status.id;
            if self.specs.contains_key(id) && !self.awaited.iter().any(|(known, _)| *known == id) {
                self.wait(id, Condition::ServiceStarted, Cause::JustStarted);
            }
        }
    }

    /// One after the other: the others take its connections until it is back.
    fn restart_in_turns(&mut self, instances: &[&'a InstanceSeen], policy: &Policy) {
        for seen in instances {
            let id = &seen.status.id;
            let Some(spec) = self.specs.get(id) else { continue };
            let service = self.stack.service(&id.service);
            let all: Vec<_> = instances
                .iter()
                .filter(|other| other.status.id.service == id.service)
                .map(|other| &other.status)
                .collect();
            let others: Vec<_> = all.iter().copied().filter(|other| other.id != *id).collect();
            let to = |statuses: &[&crate::instance::InstanceStatus]| {
                let backends: Vec<InstanceAddress> = statuses.iter().map(|status| status.address).collect();
                shift(&id.service, statuses.iter().map(|status| status.id.clone()).collect(), &backends, policy)
            };
            self.push(to(&others), Cause::MakesWay { id: id.clone() });
            let timeout_ms = service.map_or(0, |service| service.stop_grace_ms);
            self.push(Action::Drain { id: id.clone(), timeout_ms }, Cause::Asked);
            self.push(Action::StopInstance { id: id.clone() }, Cause::Asked);
            self.push(Action::StartInstance { spec: Box::new(spec.clone()) }, Cause::Asked);
            let healthy = service.is_some_and(|service| service.healthcheck.is_some());
            let condition = if healthy { Condition::ServiceHealthy } else { Condition::ServiceStarted };
            self.wait(id, condition, Cause::JustStarted);
            self.push(to(&all), Cause::Ready);
        }
    }

    /// What is started by the same turn is waited for as `depends_on` says; what runs already counts as it is.
    fn await_dependencies(&mut self, client: &ServiceName, starting: &[&'a InstanceSeen]) {
        let Some(service) = self.stack.service(client) else { return };
        for dependency in &service.depends_on {
            let dependency = &dependency.value;
            for seen in starting.iter().filter(|seen| seen.status.id.service == dependency.service) {
                let settled = self.turn == Turn::Start && satisfies(&seen.status, dependency.condition);
                if !settled && self.specs.contains_key(&seen.status.id) {
                    self.wait(&seen.status.id, dependency.condition, Cause::NeededBy { service: client.clone() });
                }
            }
        }
    }

    fn wait(&mut self, id: &'a InstanceId, condition: Condition, cause: Cause) {
        let key = match condition {
            Condition::ServiceStarted => "started",
            Condition::ServiceHealthy => "healthy",
            Condition::ServiceCompletedSuccessfully => "completed",
        };
        if !self.awaited.insert((id, key)) {
            return;
        }
        let timeout_ms = self.stack.service(&id.service).and_then(|service| timeout_ms(condition, service));
        let optional = self.stack.is_optional(&id.service);
        self.push(Action::Await { id: id.clone(), condition, timeout_ms, optional }, cause);
    }
}

/// Sends new connections to these instances of a service.
fn shift(service: &ServiceName, to: Vec<InstanceId>, backends: &[InstanceAddress], policy: &Policy) -> Action {
    let mut policy = policy.clone();
    for known in policy.services.iter_mut().filter(|known| known.name == *service) {
        known.backends = backends.to_vec();
    }
    let digest = digest_of(&policy);
    Action::Shift { service: service.clone(), to, policy, digest }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ServiceIndex;
    use crate::instance::InstanceStatus;
    use crate::testing::{AGENT, depends, name, service, spec, stack};

    /// A database and an application that waits for its health; `states` in this order.
    fn shop(states: [RunState; 2]) -> (Stack, Observed, BTreeMap<InstanceId, InstanceSpec>) {
        let mut app = service("app");
        app.depends_on = vec![depends("db", Condition::ServiceHealthy)];
        let mut db = service("db");
        db.healthcheck = Some(crate::testing::healthcheck());
        let stack = stack([app, db]);
        let mut host = Observed { agent: Some(AGENT), ..Observed::default() };
        let mut specs = BTreeMap::new();
        for (service, state) in ["db", "app"].into_iter().zip(states) {
            let id = InstanceId { service: name(service), number: 1 };
            let address = ServiceIndex(0).address().unwrap().instance(1);
            let health = if state == RunState::Running { Health::Healthy } else { Health::Starting };
            let status = InstanceStatus {
                id: id.clone(),
                address,
                spec_digest: String::new(),
                state,
                health,
                pid: None,
                restarts: 0,
                started_at_s: 0,
                health_output: None,
                hook_failure: None,
                stopped: false,
            };
            host.instances.push(InstanceSeen { status, fingerprint: None, hosts_digest: None });
            specs.insert(id, spec(service));
        }
        (stack, host, specs)
    }

    fn steps(turn: Turn, states: [RunState; 2], wanted: &[&str]) -> Vec<String> {
        let (stack, host, specs) = shop(states);
        let wanted = wanted.iter().map(|service| name(service)).collect();
        let plan = plan_turn(turn, &stack, &host, &wanted, &specs, None);
        plan.steps.iter().map(|step| step.action.to_string()).collect()
    }

    #[test]
    fn turns_go_by_dependencies() {
        let (runs, ended) = (RunState::Running, RunState::Exited { code: 143 });
        assert_eq!(steps(Turn::Stop, [runs, runs], &[]), ["stop app.1", "stop db.1"]);
        assert_eq!(steps(Turn::Stop, [ended, runs], &["db"]), [""; 0], "it is stopped");
        let all = ["start db.1", "wait until db.1 is healthy, at most 24 s", "start app.1"];
        let runs_app = "wait until app.1 runs, at most 10 s";
        assert_eq!(steps(Turn::Start, [ended, ended], &[]), [&all[..], &[runs_app]].concat());
        assert_eq!(steps(Turn::Start, [runs, ended], &[]), ["start app.1", runs_app]);
        assert_eq!(steps(Turn::Start, [runs, runs], &[]), [""; 0]);
        let restarted = steps(Turn::Restart, [runs, runs], &[]);
        assert_eq!(restarted, [&["stop app.1", "stop db.1"], &all[..], &[runs_app]].concat());
        assert_eq!(steps(Turn::Restart, [runs, runs], &["app"]), ["stop app.1", "start app.1", runs_app]);
    }

    /// The policy of a stack that is brought up.
    fn policy_of(stack: &Stack) -> Policy {
        let wishes = crate::plan::Wishes {
            mode: crate::policy::Mode::Enforce,
            wait_for_health: false,
            fetch: None,
            only: None,
            recreate: false,
            back: false,
            confirm: None,
            volume_path: &|name, _| std::path::PathBuf::from(name),
        };
        let plan = crate::plan::plan(stack, &Observed::default(), wishes).unwrap();
        let policies = plan.steps.into_iter().filter_map(|step| match step.action {
            Action::SetPolicy { policy, .. } => Some(policy),
            _ => None,
        });
        policies.last().unwrap()
    }

    /// Restarts with two instances of `app`, of which those in `serving` take connections.
    fn restarted(health: [Health; 2], serving: &[u8], wanted: &[&str]) -> Vec<String> {
        let (mut stack, mut host, mut specs) = shop([RunState::Running; 2]);
        stack.services.iter_mut().filter(|service| service.name == name("app")).for_each(|app| app.replicas = 2);
        let mut policy = policy_of(&stack);
        let app = policy.services.iter_mut().find(|known| known.name == name("app")).unwrap();
        app.backends = serving.iter().map(|number| app.address.instance(*number)).collect();
        let other = host.instances.pop().unwrap();
        for (number, health) in (1..).zip(health) {
            let mut seen = other.clone();
            seen.status.id.number = number;
            (seen.status.address, seen.status.health) = (app.address.instance(number), health);
            specs.insert(seen.status.id.clone(), InstanceSpec { id: seen.status.id.clone(), ..spec("app") });
            host.instances.push(seen);
        }
        let wanted = wanted.iter().map(|service| name(service)).collect();
        let plan = plan_turn(Turn::Restart, &stack, &host, &wanted, &specs, Some(&policy));
        plan.steps.iter().map(|step| step.action.to_string()).collect()
    }

    #[test]
    fn instances_that_serve_are_restarted_one_after_the_other() {
        let well = [Health::None, Health::Healthy];
        let one = |number: u8, others: &str| {
            [
                format!("send new connections for app to {others}"),
                format!("let connections to app.{number} end, at most 10 s"),
                format!("stop app.{number}"),
                format!("start app.{number}"),
                format!("wait until app.{number} runs, at most 10 s"),
                "send new connections for app to app.1, app.2".to_owned(),
            ]
        };
        assert_eq!(restarted(well, &[1, 2], &["app"]), [one(1, "app.2"), one(2, "app.1")].concat());
        let together = ["stop app.1, app.2", "start app.1", "start app.2"];
        for (health, serving) in [(well, &[1][..]), ([Health::Healthy, Health::Unhealthy], &[1, 2])] {
            let steps = restarted(health, serving, &["app"]);
            assert_eq!(steps[..3], together, "nobody else could take over");
        }
        assert!(restarted(well, &[1, 2], &[]).iter().all(|step| !step.starts_with("send ")), "all of it is restarted");
        // Who goes away altogether goes first, and those who need it go after it.
        let both = restarted(well, &[1, 2], &["app", "db"]);
        assert_eq!(both[0], "stop db.1");
        assert_eq!(
            both.iter().position(|step| step == "stop app.1"),
            both.iter().position(|step| step == "start db.1").map(|at| at + 4),
            "{both:?}"
        );
    }

    #[test]
    fn an_agent_that_is_away_is_started_first() {
        let (stack, mut host, specs) = shop([RunState::Running; 2]);
        host.agent = None;
        let plan = plan_turn(Turn::Stop, &stack, &host, &BTreeSet::new(), &specs, None);
        assert_eq!(plan.steps[0].action, Action::StartAgent);
    }
}
