mod adopted;

use super::*;
use crate::address::ServiceIndex;
use crate::edge;
use crate::instance::{Health, InstanceStatus};
use crate::lint::lint;
use crate::observed::{AgentSeen, FirewallSeen, GuardSeen, InstanceSeen, SocketOwner, SocketSeen};
use crate::stack::{Condition, Healthcheck, Mount, MountSource, Proto, Service};
use crate::testing::{AGENT, at, depends, healthcheck, name, publish, service, stack, tcp};

pub(super) fn wishes() -> Wishes<'static> {
    Wishes {
        mode: Mode::Enforce,
        wait_for_health: false,
        fetch: None,
        only: None,
        recreate: false,
        back: false,
        confirm: None,
        volume_path: &|name, _| PathBuf::from("/var/lib/palisade/shop/volumes").join(name),
    }
}

/// Where certificates are given, nobody else of the stack waits for the edge.
#[test]
fn an_edge_is_waited_for_until_it_serves() {
    let mut stack = crate::testing::stack_with_edge();
    let waited = |stack: &Stack| {
        let plan = plan(stack, &empty_host(), wishes()).unwrap();
        let awaits = plan.steps.iter().filter_map(|step| match &step.action {
            Action::Await { id, condition, .. } if id.service.as_str() == edge::SERVICE_NAME => Some(*condition),
            _ => None,
        });
        awaits.collect::<Vec<_>>()
    };
    assert_eq!(waited(&stack), [Condition::ServiceHealthy]);
    stack.services.retain(|service| service.name.as_str() != edge::WORKER_NAME);
    assert_eq!(waited(&stack), [Condition::ServiceHealthy]);
}

/// A database, a migration and an application that waits for both.
fn shop() -> Stack {
    let mut db = service("db");
    db.expose = vec![at(tcp(5432))];
    db.healthcheck = Some(healthcheck());
    db.run.process.as_mut().unwrap().user = Some("postgres".into());
    db.mounts = vec![at(Mount {
        source: MountSource::Volume("data".into()),
        target: "/data".into(),
        read_only: false,
        nocopy: false,
    })];
    db.environment.insert("POSTGRES_PASSWORD".into(), "hunter2-secret".into());
    let mut migrate = service("migrate");
    migrate.depends_on = vec![depends("db", Condition::ServiceHealthy)];
    let mut app = service("app");
    app.replicas = 2;
    app.depends_on =
        vec![depends("migrate", Condition::ServiceCompletedSuccessfully), depends("db", Condition::ServiceHealthy)];
    let mut web = service("web");
    web.publish = vec![publish(None, 80, 8080)];
    let mut stack = stack([app, db, migrate, web]);
    stack.volumes.insert("data".into(), crate::stack::Volume::default());
    stack
}

pub(super) fn empty_host() -> Observed {
    Observed { ssh_ports: BTreeSet::from([22]), ..Observed::default() }
}

/// The host after `plan` was done on it.
pub(super) fn after(plan: &Plan, before: &Observed) -> Observed {
    let mut host = before.clone();
    host.addresses = plan.addresses.clone();
    for Step { action, .. } in &plan.steps {
        let guard = |host: &mut Observed| host.guard.take().unwrap_or_default();
        match action {
            Action::CreateVolume { name: VolumeName::Own(key), .. } => drop(host.volumes.insert(key.clone())),
            Action::RemoveVolume { name: VolumeName::Own(key) } => drop(host.volumes.remove(key)),
            Action::CreateVolume { name: VolumeName::Named(name), .. } => {
                host.named_volumes.insert(name.clone());
                host.made_volumes.insert(name.clone());
            }
            Action::RemoveVolume { name: VolumeName::Named(name) } => {
                host.named_volumes.remove(name);
                host.made_volumes.remove(name);
            }
            Action::CreateVolume { .. }
            | Action::RemoveVolume { .. }
            | Action::FetchImage { .. }
            | Action::StopForeign { .. }
            | Action::StartForeign { .. }
            | Action::RemoveForeign { .. } => {}
            Action::StartAgent | Action::ReplaceAgent => host.agent = Some(AGENT),
            Action::StopAgent => host.agent = None,
            Action::LoadGuard => host.guard = Some(GuardSeen::default()),
            Action::UnloadGuard => host.guard = None,
            Action::GuardInstance { id, address, .. } => {
                let mut guard = guard(&mut host);
                assert_eq!(guard.attached.insert(id.clone(), *address), None, "{id} was guarded already");
                host.guard = Some(guard);
            }
            Action::SetPolicy { policy, digest } | Action::Shift { policy, digest, .. } => {
                let mut guard = guard(&mut host);
                guard.policy_digest = Some(digest.clone());
                guard.policy = Some(policy.clone());
                guard.serving = policy.services.iter().flat_map(|service| &service.backends).copied().collect();
                host.guard = Some(guard);
            }
            Action::SetFirewall { rules, .. } => host.firewall = Some(FirewallSeen { digest: Some(rules.digest()) }),
            Action::RemoveFirewall => host.firewall = None,
            Action::StartInstance { spec } => {
                let alive = host.instances.iter().any(|i| i.status.id == spec.id && is_alive(i.status.state));
                assert!(!alive, "{} was started while it ran", spec.id);
                host.instances.retain(|i| i.status.id != spec.id);
                let fingerprint = spec.fingerprint();
                let health = if spec.healthcheck.is_some() { Health::Healthy } else { Health::None };
                let state =
                    if spec.id.service == name("migrate") { RunState::Exited { code: 0 } } else { RunState::Running };
                host.instances.push(InstanceSeen {
                    status: InstanceStatus {
                        id: spec.id.clone(),
                        address: spec.address,
                        spec_digest: fingerprint.digest.clone(),
                        state,
                        health,
                        pid: Some(100),
                        restarts: 0,
                        started_at_s: 0,
                        health_output: None,
                        hook_failure: None,
                        stopped: false,
                    },
                    fingerprint: Some(fingerprint),
                    hosts_digest: Some(spec.hosts.digest().to_owned()),
                });
            }
            Action::SetHosts { id, hosts } => {
                let seen = host.instances.iter_mut().find(|i| i.status.id == *id).unwrap();
                seen.hosts_digest = Some(hosts.digest().to_owned());
            }
            Action::StopInstance { id } => stopped(&mut host, id),
            Action::StopInstances { ids } => ids.iter().for_each(|id| stopped(&mut host, id)),
            Action::RemoveInstance { id } => {
                assert!(!host.instances.iter().any(|i| i.status.id == *id && is_alive(i.status.state)));
                host.instances.retain(|i| i.status.id != *id);
                if let Some(guard) = &mut host.guard {
                    guard.attached.remove(id);
                    guard.in_slices.remove(id);
                }
            }
            Action::Watch { ids, .. } => {
                assert!(ids.iter().all(|id| host.instances.iter().any(|i| i.status.id == *id)));
            }
            Action::Await { id, .. } | Action::Drain { id, .. } => {
                assert!(host.instances.iter().any(|i| i.status.id == *id))
            }
        }
    }
    host
}

fn stopped(host: &mut Observed, id: &InstanceId) {
    let seen = host.instances.iter_mut().find(|i| i.status.id == *id).unwrap();
    assert!(is_alive(seen.status.state), "{id} was stopped twice");
    seen.status.state = RunState::Exited { code: 143 };
}

/// The plan, after it was found safe and after doing it twice was found to be doing it once.
pub(super) fn planned(stack: &Stack, host: &Observed) -> Plan {
    let plan = plan(stack, host, wishes()).unwrap();
    assert_eq!(lint(&plan, host), []);
    let again = super::plan(stack, &after(&plan, host), wishes()).unwrap();
    assert!(again.is_empty(), "a second up would change something: {again}");
    plan
}

pub(super) fn running(stack: &Stack) -> Observed {
    after(&planned(stack, &empty_host()), &empty_host())
}

#[test]
fn first_up() {
    insta::assert_snapshot!(planned(&shop(), &empty_host()), @r"
    shop: 20 steps
      create volume data for postgres (it isn't there)
      start the agent (it isn't there)
      load the guard (it isn't there)
      set the firewall: let in 22/tcp (ssh), 80/tcp (it isn't there)
      guard app.1 at 127.77.1.1 (it isn't there)
      guard app.2 at 127.77.1.2 (it isn't there)
      guard db.1 at 127.77.2.1 (it isn't there)
      guard migrate.1 at 127.77.3.1 (it isn't there)
      guard web.1 at 127.77.4.1 (it isn't there)
      set the policy of 4 services (enforced) (it isn't there)
      start db.1 (it isn't there)
      start web.1 (it isn't there)
      wait until db.1 is healthy, at most 24 s (migrate depends on it)
      start migrate.1 (it isn't there)
      wait until migrate.1 has exited with 0 (app depends on it)
      start app.1 (it isn't there)
      start app.2 (it isn't there)
      wait until web.1 runs, at most 10 s (it was just started)
      wait until app.1 runs, at most 10 s (it was just started)
      wait until app.2 runs, at most 10 s (it was just started)
    ");
}

#[test]
fn a_changed_service_is_replaced_and_the_cause_names_the_keys() {
    let host = running(&shop());
    let mut stack = shop();
    let db = stack.services.iter_mut().find(|s| s.name == name("db")).unwrap();
    db.environment.insert("POSTGRES_PASSWORD".into(), "another-secret".into());
    db.environment.insert("TZ".into(), "UTC".into());
    db.stop_grace_ms = 1;
    let plan = planned(&stack, &host);
    insta::assert_snapshot!(plan, @r"
    shop: 4 steps
      stop db.1 (changed: environment.POSTGRES_PASSWORD, environment.TZ, stop; nobody serves for at most 25 s, because its volume `data` can't have two writers)
      start db.1 (changed: environment.POSTGRES_PASSWORD, environment.TZ, stop)
      wait until db.1 is healthy, at most 24 s (it was just started)
      watch db.1 for 5 s (it was just started)
    ");
    insta::assert_snapshot!(serde_json::to_string_pretty(&plan.to_json()).unwrap(), @r#"
    {
      "project": "shop",
      "steps": [
        {
          "action": "stop_instance",
          "cause": {
            "at_most_ms": 24001,
            "because": "its volume `data` can't have two writers",
            "keys": [
              "environment.POSTGRES_PASSWORD",
              "environment.TZ",
              "stop"
            ],
            "kind": "outage"
          },
          "destroys_data": false,
          "instance": "db.1",
          "text": "stop db.1"
        },
        {
          "action": "start_instance",
          "cause": {
            "keys": [
              "environment.POSTGRES_PASSWORD",
              "environment.TZ",
              "stop"
            ],
            "kind": "changed"
          },
          "destroys_data": false,
          "instance": "db.1",
          "text": "start db.1"
        },
        {
          "action": "await",
          "cause": {
            "kind": "just_started"
          },
          "destroys_data": false,
          "instance": "db.1",
          "text": "wait until db.1 is healthy, at most 24 s"
        },
        {
          "action": "watch",
          "cause": {
            "kind": "just_started"
          },
          "destroys_data": false,
          "text": "watch db.1 for 5 s"
        }
      ],
      "version": 1
    }
    "#);
}

#[test]
fn a_dependent_restarts_when_it_says_so() {
    let mut stack = shop();
    stack.services[0].depends_on[1].value.restart = true;
    let host = running(&stack);
    stack.services[1].environment.clear();
    insta::assert_snapshot!(planned(&stack, &host), @r"
    shop: 20 steps
      guard app.3 at 127.77.1.3 (it isn't there)
      guard app.4 at 127.77.1.4 (it isn't there)
      stop db.1 (changed: environment.POSTGRES_PASSWORD; nobody serves for at most 34 s, because its volume `data` can't have two writers)
      start db.1 (changed: environment.POSTGRES_PASSWORD)
      wait until db.1 is healthy, at most 24 s (app depends on it)
      start app.3 (it restarts with db)
      wait until app.3 runs, at most 10 s (it was just started)
      send new connections for app to app.2, app.3 (ready)
      watch app.3 for 5 s (before what it replaces goes)
      let connections to app.1 end, at most 10 s (app.3 takes its place)
      stop app.1 (app.3 takes its place)
      remove app.1 (app.3 takes its place)
      start app.4 (it restarts with db)
      wait until app.4 runs, at most 10 s (it was just started)
      send new connections for app to app.3, app.4 (ready)
      watch app.4 for 5 s (before what it replaces goes)
      let connections to app.2 end, at most 10 s (app.4 takes its place)
      stop app.2 (app.4 takes its place)
      remove app.2 (app.4 takes its place)
      watch db.1 for 5 s (it was just started)
    ");
}

#[test]
fn what_the_file_no_longer_has_goes_last() {
    let host = running(&shop());
    let mut stack = shop();
    stack.services[0].replicas = 1;
    stack.services.pop();
    insta::assert_snapshot!(planned(&stack, &host), @r"
    shop: 10 steps
      set the firewall: let in 22/tcp (ssh) (it changed)
      set the policy of 3 services (enforced) (it changed)
      tell db.1 the addresses of 3 names (it changed)
      tell migrate.1 the addresses of 3 names (it changed)
      tell app.1 the addresses of 3 names (it changed)
      let connections to app.2 end, at most 10 s (the file doesn't have it)
      stop app.2 (the file doesn't have it)
      remove app.2 (the file doesn't have it)
      stop web.1 (the file doesn't have it)
      remove web.1 (the file doesn't have it)
    ");
}

#[test]
fn a_port_is_given_up_before_it_is_taken() {
    let mut host = running(&shop());
    host.sockets.push(SocketSeen {
        proto: Proto::Tcp,
        local: "0.0.0.0:80".parse().unwrap(),
        v6_only: false,
        uid: 0,
        inode: 1,
        owner: SocketOwner::Instance(InstanceId { service: name("web"), number: 1 }),
    });
    let mut stack = shop();
    stack.services[3].name = name("www");
    insta::assert_snapshot!(planned(&stack, &host), @r"
    shop: 10 steps
      stop web.1 (its port 80 goes to www)
      guard www.1 at 127.77.5.1 (it isn't there)
      set the policy of 4 services (enforced) (it changed)
      tell db.1 the addresses of 4 names (it changed)
      start www.1 (it isn't there)
      tell migrate.1 the addresses of 4 names (it changed)
      tell app.1 the addresses of 4 names (it changed)
      tell app.2 the addresses of 4 names (it changed)
      wait until www.1 runs, at most 10 s (it was just started)
      remove web.1 (the file doesn't have it)
    ");
}

#[test]
fn an_instance_without_guard_is_guarded_and_restarted() {
    let mut host = running(&shop());
    let web = InstanceId { service: name("web"), number: 1 };
    host.guard.as_mut().unwrap().attached.remove(&web);
    insta::assert_snapshot!(planned(&shop(), &host), @r"
    shop: 4 steps
      guard web.1 at 127.77.4.1 (it isn't there)
      stop web.1 (it ran without the guard)
      start web.1 (it ran without the guard)
      wait until web.1 runs, at most 10 s (it was just started)
    ");
}

#[test]
fn an_instance_at_another_address_is_removed_before_it_is_guarded_anew() {
    let mut host = running(&shop());
    host.addresses = AddressBook::default();
    host.taken = (0..10).map(ServiceIndex).collect();
    let plan = planned(&shop(), &host);
    let text = plan.to_string();
    let at = |line: &str| text.find(line).unwrap_or_else(|| panic!("{line} is missing in {text}"));
    assert!(at("stop web.1") < at("remove web.1") && at("remove web.1") < at("guard web.1 at 127.77.14.1"));
}

#[test]
fn an_instance_in_a_cgroup_of_another_kind_is_removed_before_it_is_guarded_anew() {
    let mut host = running(&shop());
    let web = InstanceId::parse("web.1").unwrap();
    host.guard.as_mut().unwrap().in_slices.insert(web);
    let text = planned(&shop(), &host).to_string();
    let at = |line: &str| text.find(line).unwrap_or_else(|| panic!("{line} is missing in {text}"));
    assert!(at("stop web.1") < at("remove web.1") && at("remove web.1") < at("guard web.1 at"));
    assert!(!text.contains("db.1"), "{text}");
}

#[test]
fn a_crashed_instance_is_started_and_a_finished_job_is_not() {
    let mut host = running(&shop());
    for seen in &mut host.instances {
        if seen.status.id.service == name("web") {
            seen.status.state = RunState::Exited { code: 1 };
        }
    }
    insta::assert_snapshot!(planned(&shop(), &host), @r"
    shop: 2 steps
      start web.1 (it doesn't run)
      wait until web.1 runs, at most 10 s (it was just started)
    ");
}

#[test]
fn a_lost_agent_is_the_only_step() {
    let mut host = running(&shop());
    host.agent = None;
    insta::assert_snapshot!(planned(&shop(), &host), @r"
    shop: 1 step
      start the agent (it isn't there)
    ");
}

#[test]
fn an_agent_of_another_version_is_replaced_and_nothing_else() {
    let mut host = running(&shop());
    host.agent = Some(AgentSeen { other_version: true, ..AGENT });
    insta::assert_snapshot!(planned(&shop(), &host), @r"
    shop: 1 step
      replace the agent (it is of another version of Palisade)
    ");
}

#[test]
fn down_takes_everything_away() {
    let host = running(&shop());
    let plan = plan_down(&shop().project, Some(&shop()), &host, false);
    insta::assert_snapshot!(plan, @r"
    shop: 10 steps
      stop app.1, app.2 (the stack is taken down)
      stop db.1, web.1 (the stack is taken down)
      remove the firewall's table (the stack is taken down)
      remove app.1 (the stack is taken down)
      remove app.2 (the stack is taken down)
      remove db.1 (the stack is taken down)
      remove migrate.1 (the stack is taken down)
      remove web.1 (the stack is taken down)
      unload the guard (the stack is taken down)
      stop the agent (the stack is taken down)
    ");
    let left = after(&plan, &host);
    assert!(left.agent.is_none() && left.guard.is_none() && left.instances.is_empty() && left.firewall.is_none());
    assert_eq!(left.volumes.len(), 1);
    assert!(plan_down(&shop().project, Some(&shop()), &left, false).is_empty());
    let with_volumes = plan_down(&shop().project, Some(&shop()), &left, true);
    assert_eq!(after(&with_volumes, &left).volumes.len(), 0);
}

#[test]
fn down_without_an_agent_gets_one_to_stop_what_runs() {
    let mut host = running(&shop());
    host.agent = None;
    let plan = plan_down(&shop().project, Some(&shop()), &host, false);
    assert_eq!(lint(&plan, &host), []);
    let kinds: Vec<_> = plan.steps.iter().map(|step| step.action.kind()).collect();
    assert_eq!((kinds[0], kinds[kinds.len() - 1]), ("start_agent", "stop_agent"));
    assert!(after(&plan, &host).agent.is_none());
}

#[test]
fn a_cycle_and_a_taken_port_are_reported_together() {
    let mut stack = shop();
    stack.services[1].depends_on = vec![depends("app", Condition::ServiceStarted)];
    let mut host = empty_host();
    host.sockets.push(SocketSeen {
        proto: Proto::Tcp,
        local: "[::]:80".parse().unwrap(),
        v6_only: false,
        uid: 33,
        inode: 1,
        owner: SocketOwner::Process { pid: 41, command: "nginx".into() },
    });
    let ids: Vec<_> = plan(&stack, &host, wishes()).unwrap_err().iter().map(|f| f.id).collect();
    assert_eq!(ids, ["dependency-cycle", "port-taken"]);
}

#[test]
fn no_secret_is_shown() {
    let mut stack = shop();
    let secret = "hunter2-secret";
    let process = stack.services[0].run.process.as_mut().unwrap();
    process.command.push(format!("--password={secret}"));
    stack.services[0].healthcheck = Some(Healthcheck {
        test: crate::stack::HealthTest::Shell(format!("curl -u {secret} localhost")),
        ..healthcheck()
    });
    let first = planned(&stack, &empty_host());
    let host = after(&first, &empty_host());
    let mut changed = stack.clone();
    for service in &mut changed.services {
        service.environment.insert("POSTGRES_PASSWORD".into(), format!("new {secret}"));
    }
    for plan in [first, planned(&changed, &host), plan_down(&stack.project, None, &host, true)] {
        for shown in [plan.to_string(), plan.to_json().to_string(), format!("{plan:?}"), format!("{:?}", host)] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }
}

#[test]
fn waiting_for_health_waits_for_everything_that_has_a_check() {
    let mut stack = shop();
    stack.services[3].healthcheck = Some(healthcheck());
    let wishes = Wishes { wait_for_health: true, ..wishes() };
    let text = plan(&stack, &empty_host(), wishes).unwrap().to_string();
    assert!(text.contains("wait until web.1 is healthy, at most 24 s (it was just started)"), "{text}");

    let mut host = running(&stack);
    assert!(plan(&stack, &host, wishes).unwrap().is_empty());
    let instance = |host: &mut Observed, id: &str, state: RunState, health: Health| {
        let seen = host.instances.iter_mut().find(|seen| seen.status.id.to_string() == id).unwrap();
        (seen.status.state, seen.status.health) = (state, health);
    };
    // Somebody else is about to bring it back: the agent after an exit, or the engine after its own restart.
    instance(&mut host, "web.1", RunState::Running, Health::Starting);
    instance(&mut host, "app.1", RunState::BackingOff, Health::None);
    assert!(planned(&stack, &host).is_empty());
    assert_eq!(
        plan(&stack, &host, wishes).unwrap().to_string(),
        "shop: 2 steps
  wait until web.1 is healthy, at most 24 s (it isn't ready yet)
  wait until app.1 runs, at most 10 s (it isn't ready yet)
"
    );
    let only = BTreeSet::from([name("web")]);
    let of_one = plan(&stack, &host, Wishes { only: Some(&only), ..wishes }).unwrap();
    assert_eq!(of_one.steps.len(), 1);
}

#[test]
fn a_thousand_services_are_planned() {
    let services = (0..1_000).map(|n| {
        let mut service = service(&format!("service-{n}"));
        service.expose = vec![at(tcp(1_000 + n))];
        service.environment = (0..8).map(|key| (format!("KEY_{key}"), format!("value {key} of {n}"))).collect();
        if n > 10 {
            service.depends_on = vec![depends(&format!("service-{}", n - 7), Condition::ServiceHealthy)];
        }
        service.healthcheck = Some(healthcheck());
        service
    });
    let stack = stack(services);
    let host = running(&stack);
    assert!(plan(&stack, &host, wishes()).unwrap().is_empty());
    let steps = plan(&stack, &empty_host(), wishes()).unwrap().steps.len();
    assert_eq!(steps, 2 + 1_000 + 2 + 1_000 + 1_000);
}

#[test]
fn what_is_optional_is_waited_for_and_no_reason_to_fail() {
    let mut stack = shop();
    for service in &mut stack.services {
        for dependency in &mut service.depends_on {
            dependency.value.required = dependency.value.service != name("migrate");
        }
    }
    let text = planned(&stack, &empty_host()).to_string();
    assert!(text.contains("wait until migrate.1 has exited with 0, or go on without it (app depends on it)"), "{text}");
    assert!(text.contains("wait until db.1 is healthy, at most 24 s (migrate depends on it)"), "{text}");
    assert_eq!(text.matches("or go on without it").count(), 1, "{text}");

    // Somebody can do without it, and somebody else can't.
    let mut stack = shop();
    stack.services[0].depends_on[1].value.required = false;
    let text = planned(&stack, &empty_host()).to_string();
    assert!(!text.contains("go on without"), "the one who needs it is asked for first: {text}");
    assert!(!stack.is_optional(&name("db")) && !stack.is_optional(&name("web")));
}

#[test]
fn a_service_without_instances_loses_those_it_has_and_keeps_its_address() {
    let before = shop();
    let host = running(&before);
    let mut stack = before.clone();
    let db = stack.services.iter_mut().find(|service| service.name == name("db")).unwrap();
    db.replicas = 0;
    let address = host.addresses.address(&name("db"));
    let plan = planned(&stack, &host);
    let text = plan.to_string();
    assert!(text.contains("stop db.1 (") && text.contains("remove db.1 ("), "{text}");
    assert_eq!(plan.addresses.address(&name("db")), address);
    let Some(Action::SetPolicy { policy, .. }) =
        plan.steps.iter().map(|step| &step.action).find(|action| action.kind() == "set_policy")
    else {
        panic!("{text}")
    };
    let db = policy.services.iter().find(|service| service.name == name("db")).unwrap();
    assert!(db.backends.is_empty(), "connects are refused, as there is nobody");
}

#[test]
fn an_external_volume_must_be_there_and_is_never_deleted() {
    let mut stack = shop();
    let shared = crate::stack::Volume { name: Some("shared".into()), external: true };
    stack.volumes.insert("data".into(), shared.clone());
    let findings = plan(&stack, &empty_host(), wishes()).unwrap_err();
    assert_eq!(findings.iter().map(|finding| finding.id).collect::<Vec<_>>(), ["volume-missing"]);
    assert!(findings[0].to_string().contains("mkdir -p /var/lib/palisade/shop/volumes/data"), "{}", findings[0]);
    let mut host = empty_host();
    host.named_volumes.insert("shared".into());
    let host = after(&planned(&stack, &host), &host);
    let down = plan_down(&stack.project, Some(&stack), &host, true).to_string();
    assert!(!down.contains("delete volume"), "{down}");

    // With a name of its own, it is the stack's that made it, unless somebody else uses it.
    stack.volumes.insert("data".into(), crate::stack::Volume { external: false, ..shared });
    let plan = planned(&stack, &empty_host());
    assert!(plan.to_string().contains("create volume shared for postgres"), "{plan}");
    let mut host = after(&plan, &empty_host());
    let down = |host: &Observed| plan_down(&stack.project, Some(&stack), host, true).to_string();
    assert!(down(&host).contains("delete volume shared and its data"));
    host.volumes_of_others.insert("shared".into());
    assert!(!down(&host).contains("delete volume"));
}

#[test]
fn another_content_of_a_secret_is_another_instance_and_stays_unseen() {
    use crate::observed::FileSeen;
    use crate::stack::{FileSource, ProvidedFile};
    let mut stack = shop();
    let path = PathBuf::from("/srv/token");
    let source = FileSource::Path(path.clone());
    let target = PathBuf::from("/run/secrets/token");
    let secret = ProvidedFile { name: "token".into(), secret: true, target, source, uid: None, gid: None, mode: 0o444 };
    stack.services[3].files = vec![at(secret)];
    let with = |seen: FileSeen, host: &Observed| {
        let mut host = host.clone();
        host.files.insert(path.clone(), seen);
        host
    };
    let readable = |digest: &str| FileSeen::Readable { digest: digest.into() };
    let host = with(readable("one"), &empty_host());
    let host = after(&planned(&stack, &host), &host);
    let text = planned(&stack, &with(readable("two"), &host)).to_string();
    assert!(text.contains("start web.2 (changed: secret.token)"), "{text}");
    let ids = |seen| plan(&stack, &with(seen, &host), wishes()).unwrap_err().iter().map(|f| f.id).collect::<Vec<_>>();
    assert_eq!(ids(FileSeen::Missing), ["file-missing"]);
    assert_eq!(ids(FileSeen::Unusable { why: "it is a directory".into() }), ["file-unusable"]);
}

#[test]
fn every_setting_has_a_name_of_its_own_in_a_change() {
    use crate::environment::Environment;
    use crate::stack::{CpuSet, Dns, Hook, Ulimit};
    let host = running(&shop());
    let changed = |change: &dyn Fn(&mut Service)| {
        let mut stack = shop();
        change(&mut stack.services[3]);
        let text = planned(&stack, &host).to_string();
        let start = text.lines().find(|line| line.contains("start web.2")).unwrap_or_else(|| panic!("{text}"));
        start.trim().trim_start_matches("start web.2 (changed: ").trim_end_matches(')').to_owned()
    };
    let hook =
        || Hook { command: vec!["true".into()], user: None, working_dir: None, environment: Environment::default() };
    assert_eq!(changed(&|s| s.settings.groups.push("daemon".into())), "groups");
    let ulimit = Ulimit { soft: Some(1), hard: None };
    assert_eq!(changed(&|s| s.settings.ulimits = [("nofile".to_owned(), ulimit)].into()), "ulimits");
    assert_eq!(changed(&|s| s.settings.oom_score_adj = Some(1)), "oom_score_adj");
    assert_eq!(changed(&|s| s.settings.hostname = Some("x".into())), "hostname");
    assert_eq!(changed(&|s| s.settings.domainname = Some("x".into())), "domainname");
    assert_eq!(changed(&|s| s.settings.dns = Some(Dns::default())), "dns");
    assert_eq!(changed(&|s| s.settings.shm_bytes = Some(1)), "shm_size");
    assert_eq!(changed(&|s| s.settings.post_start.push(hook())), "post_start");
    assert_eq!(changed(&|s| s.settings.pre_stop.push(hook())), "pre_stop");
    assert_eq!(changed(&|s| s.limits.memory_bytes = Some(1)), "limits.memory");
    assert_eq!(changed(&|s| s.limits.memory_reservation_bytes = Some(1)), "limits.memory_reservation");
    assert_eq!(changed(&|s| s.limits.cpu_shares = Some(2)), "limits.cpu_shares");
    assert_eq!(changed(&|s| s.limits.cpuset = Some(CpuSet("0".into()))), "limits.cpuset");
}
