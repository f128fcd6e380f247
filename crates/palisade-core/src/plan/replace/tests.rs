use super::super::tests::{after, empty_host, planned, running, wishes};
use super::super::{Plan, Wishes, plan};
use crate::action::Step;
use crate::lint::lint;
use crate::observed::Observed;
use crate::stack::{Mount, MountSource, Service, Stack, UpdatePolicy, Volume};
use crate::testing::{at, healthcheck, name, service, stack, tcp};

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
