use super::super::tests::{after, empty_host, planned, running, wishes};
use super::super::{Plan, Wishes, plan};
use crate::action::{Action, Step};
use crate::lint::lint;
use crate::observed::Observed;
use crate::policy::{EgressPolicy, Policy, ServicePolicy};
use crate::stack::{Egress, EgressRule, Mount, MountSource, Service, Stack, UpdatePolicy, Volume};
use crate::testing::{at, grant, healthcheck, name, publish, service, stack, tcp};

/// An application with so many replicas and a client of it.
fn app(replicas: u8, change: impl FnOnce(&mut Service)) -> Stack {
    let mut app = service("app");
    app.expose = vec![at(tcp(8081))];
    app.healthcheck = Some(healthcheck());
    app.replicas = replicas;
    change(&mut app);
    let mut stack = stack([app, service("client")]);
    stack.volumes.insert("data".into(), Volume::default());
    stack
}

fn newer(stack: &Stack) -> Stack {
    let mut newer = stack.clone();
    newer.services[0].environment.insert("VERSION".into(), "2".into());
    newer
}

fn with_volume(service: &mut Service) {
    let source = MountSource::Volume("data".into());
    service.mounts = vec![at(Mount { source, target: "/data".into(), read_only: false, nocopy: false })];
}

#[test]
fn a_newer_version_serves_before_the_older_one_goes() {
    let old = app(1, |_| {});
    let plan = planned(&newer(&old), &running(&old));
    insta::assert_snapshot!(plan, @r"
    shop: 8 steps
      guard app.2 at 127.77.1.2 (it isn't there)
      start app.2 (changed: environment.VERSION)
      wait until app.2 is healthy, at most 24 s (it was just started)
      send new connections for app to app.2 (ready)
      watch app.2 for 5 s (before what it replaces goes)
      let connections to app.1 end, at most 10 s (app.2 takes its place)
      stop app.1 (app.2 takes its place)
      remove app.1 (app.2 takes its place)
    ");
    // And again: the number that is free by then is taken.
    let host = after(&plan, &running(&old));
    assert!(planned(&old, &host).to_string().contains("start app.1 (changed: environment.VERSION)"));
}

#[test]
fn replicas_are_replaced_in_groups() {
    let policy =
        |parallelism| UpdatePolicy { parallelism, delay_ms: 2_000, monitor_ms: Some(1_000), ..UpdatePolicy::default() };
    let old = app(3, |app| app.update = Some(policy(2)));
    insta::assert_snapshot!(planned(&newer(&old), &running(&old)), @r"
    shop: 22 steps
      guard app.4 at 127.77.1.4 (it isn't there)
      guard app.5 at 127.77.1.5 (it isn't there)
      guard app.6 at 127.77.1.6 (it isn't there)
      start app.4 (changed: environment.VERSION)
      start app.5 (changed: environment.VERSION)
      wait until app.4 is healthy, at most 24 s (it was just started)
      wait until app.5 is healthy, at most 24 s (it was just started)
      send new connections for app to app.3, app.4, app.5 (ready)
      watch app.4, app.5 for 3 s (before what it replaces goes)
      let connections to app.1 end, at most 10 s (app.4 takes its place)
      stop app.1 (app.4 takes its place)
      remove app.1 (app.4 takes its place)
      let connections to app.2 end, at most 10 s (app.5 takes its place)
      stop app.2 (app.5 takes its place)
      remove app.2 (app.5 takes its place)
      start app.6 (changed: environment.VERSION)
      wait until app.6 is healthy, at most 24 s (it was just started)
      send new connections for app to app.4, app.5, app.6 (ready)
      watch app.6 for 1 s (before what it replaces goes)
      let connections to app.3 end, at most 10 s (app.6 takes its place)
      stop app.3 (app.6 takes its place)
      remove app.3 (app.6 takes its place)
    ");
    let all = app(3, |app| app.update = Some(policy(0)));
    let text = planned(&newer(&all), &running(&all)).to_string();
    assert!(
        text.contains(
            "send new connections for app to app.4, app.5, app.6 (ready)\n  watch app.4, app.5, app.6 for 1 s"
        ),
        "{text}"
    );
}

#[test]
fn a_rollback_goes_as_its_own_settings_say() {
    let policy = |parallelism| UpdatePolicy { parallelism, ..UpdatePolicy::default() };
    let old = app(3, |app| {
        app.update = Some(policy(1));
        app.rollback = Some(policy(0));
    });
    let shifts = |back| {
        let plan = plan(&newer(&old), &running(&old), Wishes { back, ..wishes() }).unwrap();
        plan.steps.iter().filter(|step| step.action.kind() == "shift").count()
    };
    assert_eq!((shifts(false), shifts(true)), (3, 1));
}

#[test]
fn where_two_versions_can_not_run_side_by_side_the_others_serve_meanwhile() {
    let old = app(2, with_volume);
    insta::assert_snapshot!(planned(&newer(&old), &running(&old)), @r"
    shop: 13 steps
      send new connections for app to app.2 (app.1 is about to be replaced)
      let connections to app.1 end, at most 10 s (changed: environment.VERSION)
      stop app.1 (changed: environment.VERSION)
      start app.1 (changed: environment.VERSION)
      wait until app.1 is healthy, at most 24 s (it was just started)
      send new connections for app to app.1, app.2 (ready)
      send new connections for app to app.1 (app.2 is about to be replaced)
      let connections to app.2 end, at most 10 s (changed: environment.VERSION)
      stop app.2 (changed: environment.VERSION)
      start app.2 (changed: environment.VERSION)
      wait until app.2 is healthy, at most 24 s (it was just started)
      send new connections for app to app.1, app.2 (ready)
      watch app.1, app.2 for 5 s (it was just started)
    ");
}

#[test]
fn more_replicas_join_when_they_are_ready_and_fewer_are_drained() {
    let one = app(1, |_| {});
    let three = app(3, |_| {});
    insta::assert_snapshot!(planned(&three, &running(&one)), @r"
    shop: 7 steps
      guard app.2 at 127.77.1.2 (it isn't there)
      guard app.3 at 127.77.1.3 (it isn't there)
      start app.2 (it isn't there)
      start app.3 (it isn't there)
      wait until app.2 is healthy, at most 24 s (it was just started)
      wait until app.3 is healthy, at most 24 s (it was just started)
      send new connections for app to app.1, app.2, app.3 (ready)
    ");
    insta::assert_snapshot!(planned(&one, &running(&three)), @r"
    shop: 7 steps
      set the policy of 2 services (enforced) (it changed)
      let connections to app.2 end, at most 10 s (the file doesn't have it)
      stop app.2 (the file doesn't have it)
      remove app.2 (the file doesn't have it)
      let connections to app.3 end, at most 10 s (the file doesn't have it)
      stop app.3 (the file doesn't have it)
      remove app.3 (the file doesn't have it)
    ");
}

/// The first steps of a plan, done.
fn cut(plan: &Plan, steps: usize, host: &Observed) -> Observed {
    let steps: Vec<Step> = plan.steps[..steps].to_vec();
    after(&Plan { steps, ..plan.clone() }, host)
}

#[test]
fn an_update_that_was_cut_off_anywhere_is_finished_or_taken_back() {
    let parallel = |parallelism| Some(UpdatePolicy { parallelism, ..UpdatePolicy::default() });
    let stacks = [
        app(1, |_| {}),
        app(3, |_| {}),
        app(3, |app| app.update = parallel(2)),
        app(1, with_volume),
        app(3, with_volume),
    ];
    let mut cuts = 0;
    for old in stacks {
        let new = newer(&old);
        let host = running(&old);
        let update = planned(&new, &host);
        for steps in 0..=update.steps.len() {
            for wanted in [&new, &old] {
                // `planned` also says that the plan is safe and that nothing is left to do after it.
                let host = cut(&update, steps, &host);
                let rest = planned(wanted, &host);
                let done = after(&rest, &host);
                let alive = done.instances.iter().filter(|seen| seen.status.id.service == name("app")).count();
                assert_eq!(alive, usize::from(wanted.services[0].replicas), "{steps} of {update}, then {rest}");
                let serving = done.guard.as_ref().unwrap().serving.len();
                assert_eq!(serving, alive + 1, "{rest}");
                cuts += 1;
            }
        }
    }
    assert!(cuts > 100, "{cuts}");
}

#[test]
fn somebody_serves_at_every_moment() {
    for old in [app(1, |_| {}), app(3, |_| {}), app(2, with_volume)] {
        let host = running(&old);
        let update = plan(&newer(&old), &host, wishes()).unwrap();
        assert_eq!(lint(&update, &host), []);
        for steps in 0..=update.steps.len() {
            let host = cut(&update, steps, &host);
            let serving = &host.guard.as_ref().unwrap().serving;
            let app = host.instances.iter().filter(|seen| seen.status.id.service == name("app"));
            let serves = |seen: &&crate::observed::InstanceSeen| {
                seen.status.state == crate::instance::RunState::Running && serving.contains(&seen.status.address)
            };
            assert!(app.filter(serves).count() > 0, "after {steps} steps of {update}");
        }
    }
}

#[test]
fn a_stack_without_anything_starts_all_at_once() {
    let text = planned(&app(3, |_| {}), &empty_host()).to_string();
    assert!(!text.contains("send new connections") && !text.contains("watch"), "{text}");
}

/// What each of the plan's policies says about the first service.
fn policies<T>(plan: &Plan, look: impl Fn(&Policy, &ServicePolicy) -> T) -> Vec<T> {
    let steps = plan.steps.iter().filter_map(|step| match &step.action {
        Action::SetPolicy { policy, .. } | Action::Shift { policy, .. } => Some(policy),
        _ => None,
    });
    steps.map(|policy| look(policy, &policy.services[0])).collect()
}

/// Where what arrives at a port of the host goes, and who takes it.
fn place(service: &ServicePolicy) -> (u16, Vec<u8>) {
    let mut published = service.binds.iter().filter(|bind| bind.published.is_some());
    let port = published.next().unwrap().container.port;
    assert_eq!(published.next(), None);
    (port, service.backends.iter().map(|backend| backend.ip().octets()[3]).collect())
}

#[test]
fn a_port_leads_to_where_those_who_take_its_connections_listen() {
    let volume: fn(&mut Service) = with_volume;
    for (replicas, change, expected) in [
        (1, None, vec![(8080, vec![1]), (9090, vec![2])]),
        (2, None, vec![(8080, vec![1, 2]), (8080, vec![2, 3]), (9090, vec![3, 4])]),
        (1, Some(volume), vec![(8080, vec![1]), (9090, vec![1])]),
        (
            2,
            Some(volume),
            vec![(8080, vec![1, 2]), (8080, vec![2]), (8080, vec![1, 2]), (9090, vec![1]), (9090, vec![1, 2])],
        ),
    ] {
        let old = app(replicas, |app| {
            app.publish = vec![publish(None, 80, 8080)];
            change.into_iter().for_each(|change| change(app));
        });
        let mut new = newer(&old);
        new.services[0].publish = vec![publish(None, 80, 9090)];
        let plan = planned(&new, &running(&old));
        assert_eq!(policies(&plan, |_, app| place(app)), expected, "{plan}");
        // The newer one may listen before it is led to.
        let may_listen = policies(&plan, |_, app| app.binds.iter().any(|bind| bind.container == tcp(9090)));
        assert!(!may_listen.contains(&false), "{plan}");
    }
}

#[test]
fn what_runs_may_do_what_it_needs_until_it_is_gone() {
    let mut old = app(1, |app| app.host_ports = vec![at(9100)]);
    old.services.push(service("db"));
    let mut new = newer(&old);
    let app = &mut new.services[0];
    app.connect = Some(vec![grant("client", None)]);
    let network = "192.0.2.0".parse().unwrap();
    app.egress = Egress::Only(vec![at(EgressRule { network, prefix_len: 24, port: Some(443), proto: None })]);
    app.host_ports = vec![at(9200)];
    let plan = planned(&new, &running(&old));
    insta::assert_snapshot!(plan, @r"
    shop: 10 steps
      guard app.2 at 127.77.1.2 (it isn't there)
      set the policy of 3 services (enforced) (it changed)
      start app.2 (changed: environment.VERSION)
      wait until app.2 is healthy, at most 24 s (it was just started)
      send new connections for app to app.2 (ready)
      watch app.2 for 5 s (before what it replaces goes)
      let connections to app.1 end, at most 10 s (app.2 takes its place)
      stop app.1 (app.2 takes its place)
      remove app.1 (app.2 takes its place)
      set the policy of 3 services (enforced) (what only the older app needed goes)
    ");
    let may = policies(&plan, |policy, app| {
        let db = policy.services.iter().find(|service| service.name == name("db")).unwrap().address;
        let db = app.connect.as_ref().is_none_or(|grants| grants.iter().any(|grant| grant.server == db));
        (db, app.egress == EgressPolicy::All, app.host_ports.clone())
    });
    let both = (true, true, vec![9200, 9100]);
    assert_eq!(may, [both.clone(), both, (false, false, vec![9200])]);
    // Nothing is left to do, and an update that ends anywhere goes on from there.
    for steps in 0..=plan.steps.len() {
        for wanted in [&new, &old] {
            let host = cut(&plan, steps, &running(&old));
            planned(wanted, &host);
        }
    }
    // The same version is bound by the file at once.
    let mut narrowed = old.clone();
    narrowed.services[0].host_ports.clear();
    let plan = planned(&narrowed, &running(&old));
    assert_eq!(policies(&plan, |_, app| app.host_ports.clone()), [[0_u16; 0]]);
}

#[test]
fn both_versions_have_the_localhost_of_the_one_that_binds() {
    let old = app(1, |app| app.host_mode = true);
    let mut new = newer(&old);
    new.services[0].host_mode = false;
    let plan = planned(&new, &running(&old));
    insta::assert_snapshot!(plan, @r"
    shop: 5 steps
      stop app.1 (changed: environment.VERSION; nobody serves for at most 34 s, because what localhost is changes with `network_mode`, for both versions at once)
      set the policy of 2 services (enforced) (what only the older app needed goes)
      start app.1 (changed: environment.VERSION)
      wait until app.1 is healthy, at most 24 s (it was just started)
      watch app.1 for 5 s (it was just started)
    ");
    assert_eq!(policies(&plan, |_, app| app.host_mode), [false], "set when the older one is gone");
    let plan = planned(&newer(&old), &running(&old));
    assert!(plan.to_string().contains("send new connections for app to app.2"), "{plan}");
    // Undeclared ports are what the newer one must not bind, from its start on.
    let mut strict = newer(&app(1, |_| {}));
    strict.services[0].strict = true;
    let plan = planned(&strict, &running(&app(1, |_| {})));
    assert_eq!(policies(&plan, |_, app| app.strict), [true, true], "{plan}");
}

#[test]
fn a_port_that_another_service_gets_is_given_up() {
    let old = app(1, |app| app.publish = vec![publish(None, 80, 8080), publish(None, 81, 8080)]);
    let mut new = newer(&old);
    new.services[0].publish = vec![publish(None, 82, 8080)];
    new.services[1].publish = vec![publish(None, 80, 8080)];
    let plan = planned(&new, &running(&old));
    let ports = |app: &ServicePolicy| -> Vec<u16> {
        app.binds.iter().filter_map(|bind| Some(bind.published?.host_port)).collect()
    };
    assert_eq!(policies(&plan, |_, app| ports(app)), [vec![82, 81], vec![82]], "{plan}");
}
