//! The agent on the real kernel: restarts, health, stops, and that its death changes nothing for services.

use std::path::Path;
use std::time::{Duration, Instant};

use palisade_core::instance::{Health, InstanceSpec, InstanceStatus, RunState};
use palisade_core::stack::{HealthTest, Healthcheck, Restart};
use palisade_host::agent::{self, AgentError, Client, Event};
use palisade_host::cgroup::Cgroup;
use palisade_host::runtime;

use crate::need_root;
use crate::support::{PALISADE, Realm, Scratch, eventually};

fn agent(realm: &Realm) -> Client {
    agent::ensure(&realm.layout, Path::new(PALISADE)).unwrap()
}

fn status(client: &mut Client, spec: &InstanceSpec) -> InstanceStatus {
    client.status().unwrap().into_iter().find(|status| status.id == spec.id).expect("a status")
}

fn wait_for(
    client: &mut Client,
    spec: &InstanceSpec,
    what: &str,
    so: impl Fn(&InstanceStatus) -> bool,
) -> InstanceStatus {
    eventually(what, || Some(status(client, spec)).filter(&so))
}

fn events(realm: &Realm, kind: &str) -> Vec<Event> {
    let text = std::fs::read_to_string(realm.layout.events()).unwrap_or_default();
    let events = text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap());
    events.filter(|event| event.kind == kind).collect()
}

fn check(script: &str) -> Option<Healthcheck> {
    Some(Healthcheck {
        test: HealthTest::Shell(script.into()),
        interval_ms: 100,
        timeout_ms: 2_000,
        retries: 2,
        start_period_ms: 0,
        start_interval_ms: 5_000,
    })
}

fn kill_agent(client: &mut Client) {
    let pid = client.identity().unwrap().pid;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("the agent's end", || (!is_alive(pid)).then_some(()));
}

fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// The file that a process runs from.
fn program_of(pid: i32) -> String {
    std::fs::read_link(format!("/proc/{pid}/exe")).unwrap().to_string_lossy().into_owned()
}

#[test]
fn a_newer_agent_takes_over_or_the_former_one_goes_on() {
    need_root!("a_newer_agent_takes_over_or_the_former_one_goes_on");
    let realm = Realm::new();
    let scratch = Scratch::new(&realm);
    let older = scratch.0.join("older");
    std::fs::copy(PALISADE, &older).unwrap();
    let mut client = agent::ensure(&realm.layout, &older).unwrap();
    std::fs::remove_file(&older).unwrap();
    let spec = realm.shell("web", "sleep 1000");
    client.start(&spec).unwrap();
    let before = (client.identity().unwrap(), status(&mut client, &spec));

    let error = agent::replace(&realm.layout, Path::new("/bin/false")).unwrap_err().to_string();
    let why = "/bin/false: exit status: 1";
    assert_eq!(error, format!("the agent of this version doesn't start ({why}); the former one goes on"));
    let mut client = Client::connect(&realm.layout).unwrap();
    let former = client.identity().unwrap();
    assert_ne!(former.pid, before.0.pid);
    assert_eq!(former.program, before.0.program);
    assert_eq!(program_of(former.pid), format!("{} (deleted)", older.display()));

    agent::replace(&realm.layout, Path::new(PALISADE)).unwrap();
    let mut client = Client::connect(&realm.layout).unwrap();
    assert_eq!(program_of(client.identity().unwrap().pid), PALISADE);
    assert_eq!(status(&mut client, &spec), before.1, "nothing happened to the instance");
}

#[test]
fn an_instance_is_started_restarted_stopped_and_removed() {
    need_root!("an_instance_is_started_restarted_stopped_and_removed");
    let realm = Realm::new();
    let mut client = agent(&realm);
    let mut spec = realm.shell("web", "echo up; sleep 1000");
    spec.restart = Restart::Always;
    client.start(&spec).unwrap();
    let first = status(&mut client, &spec);
    assert_eq!((first.state, first.health, first.restarts), (RunState::Running, Health::None, 0));
    assert_eq!(first.spec_digest, spec.fingerprint().digest);
    client.start(&spec).unwrap();
    assert_eq!(status(&mut client, &spec).pid, first.pid, "started twice is started once");
    let mut other = spec.clone();
    other.environment.insert("A".into(), "b".into());
    assert!(client.start(&other).unwrap_err().to_string().contains("stop it first"));
    client.restart(&spec.id).unwrap();
    let second = status(&mut client, &spec);
    assert_ne!(second.pid, first.pid);
    client.stop(&spec.id).unwrap();
    let stopped = status(&mut client, &spec);
    assert_eq!((stopped.state, stopped.pid), (RunState::Exited { code: 143 }, None));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        status(&mut client, &spec).state,
        RunState::Exited { code: 143 },
        "`always` ends where the user stops it"
    );
    client.remove(&spec.id).unwrap();
    client.remove(&spec.id).unwrap();
    assert!(client.status().unwrap().is_empty());
    assert!(!Cgroup::of(&realm.layout, &spec).unwrap().exists());
    let pid = client.identity().unwrap().pid;
    client.shutdown().unwrap();
    assert!(!is_alive(pid));
    assert!(matches!(Client::connect(&realm.layout), Err(AgentError::Away { .. })));
}

#[test]
fn what_exits_is_started_again_with_growing_pauses() {
    need_root!("what_exits_is_started_again_with_growing_pauses");
    let realm = Realm::new();
    let mut client = agent(&realm);
    let mut flaky = realm.shell("flaky", "exit 3");
    flaky.restart = Restart::OnFailure { attempts_max: Some(3) };
    let before = Instant::now();
    client.start(&flaky).unwrap();
    let end = wait_for(&mut client, &flaky, "the last attempt", |s| matches!(s.state, RunState::Exited { .. }));
    assert_eq!((end.state, end.restarts), (RunState::Exited { code: 3 }, 3));
    assert!(before.elapsed() >= Duration::from_millis(700), "100 + 200 + 400 ms, not {:?}", before.elapsed());
    let pauses: Vec<u64> = events(&realm, "restarting").iter().map(|e| e.details["in_ms"].as_u64().unwrap()).collect();
    assert_eq!(pauses, [100, 200, 400]);
    let mut job = realm.shell("job", "exit 0");
    job.restart = Restart::No;
    client.start(&job).unwrap();
    wait_for(&mut client, &job, "the job's end", |s| s.state == RunState::Exited { code: 0 });
    let mut missing = realm.command("missing", &["no-such-command"]);
    missing.restart = Restart::Always;
    assert!(client.start(&missing).unwrap_err().to_string().contains("`no-such-command` not found"));
    assert_eq!(status(&mut client, &missing).state, RunState::Exited { code: 127 });
}

#[test]
fn health_follows_the_check() {
    need_root!("health_follows_the_check");
    let realm = Realm::new();
    let mut client = agent(&realm);
    let mut spec = realm.shell(
        "web",
        "trap 'rm /tmp/well' USR1; trap 'touch /tmp/well' USR2; touch /tmp/well; while :; do sleep 0.02; done",
    );
    spec.healthcheck = check("test -e /tmp/well || { echo feeling bad; exit 1; }").map(|check| Healthcheck {
        timeout_ms: 20_000,
        start_period_ms: 60_000,
        start_interval_ms: 100,
        ..check
    });
    client.start(&spec).unwrap();
    let healthy = wait_for(&mut client, &spec, "healthy", |s| s.health == Health::Healthy);
    let signal = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(healthy.pid.unwrap()), signal).unwrap();
    signal(nix::sys::signal::Signal::SIGUSR1);
    let ill = wait_for(&mut client, &spec, "unhealthy", |s| s.health == Health::Unhealthy);
    assert_eq!(ill.health_output.as_deref(), Some("feeling bad\n"));
    assert_eq!(ill.state, RunState::Running);
    signal(nix::sys::signal::Signal::SIGUSR2);
    wait_for(&mut client, &spec, "healthy again", |s| s.health == Health::Healthy && s.health_output.is_none());
    let seen: Vec<String> =
        events(&realm, "health").iter().map(|e| e.details["to"].as_str().unwrap().to_owned()).collect();
    assert_eq!(seen, ["healthy", "unhealthy", "healthy"]);

    let mut slow = realm.shell("slow", "sleep 1000");
    slow.healthcheck = check("sleep 1000");
    slow.healthcheck.as_mut().unwrap().timeout_ms = 100;
    slow.stop_grace_ms = 0;
    client.start(&slow).unwrap();
    let ill = wait_for(&mut client, &slow, "unhealthy", |s| s.health == Health::Unhealthy);
    assert!(ill.health_output.unwrap().starts_with("it took longer than 100 ms"));
    client.stop(&slow.id).unwrap();

    let mut slower = realm.shell("slower", "sleep 1000");
    slower.healthcheck = check("sleep 999");
    slower.healthcheck.as_mut().unwrap().timeout_ms = 100_000;
    slower.stop_grace_ms = 0;
    client.start(&slower).unwrap();
    let cgroup = Cgroup::of(&realm.layout, &slower).unwrap();
    eventually("a check that runs", || {
        let line = |pid| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        cgroup.pids().unwrap().into_iter().any(|pid| line(pid).contains("999")).then_some(())
    });
    let before = Instant::now();
    client.stop(&slower.id).unwrap();
    assert!(before.elapsed() < Duration::from_secs(30), "a stop doesn't wait for a check");
}

#[test]
fn killing_the_agent_leaves_services_alone_and_the_next_one_takes_over() {
    need_root!("killing_the_agent_leaves_services_alone_and_the_next_one_takes_over");
    let realm = Realm::new();
    let mut client = agent(&realm);
    let mut spec = realm.shell("db", "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.05; done");
    spec.restart = Restart::UnlessStopped;
    spec.healthcheck = check("true");
    let mut stopped = realm.shell("stopped", "sleep 1000");
    stopped.restart = Restart::UnlessStopped;
    stopped.stop_grace_ms = 0;
    for spec in [&spec, &stopped] {
        client.start(spec).unwrap();
    }
    client.stop(&stopped.id).unwrap();
    wait_for(&mut client, &spec, "healthy", |s| s.health == Health::Healthy);
    let before = status(&mut client, &spec);
    kill_agent(&mut client);
    let ticks = realm.log(&spec).lines().count();
    eventually("more ticks without an agent", || (realm.log(&spec).lines().count() > ticks + 3).then_some(()));

    let mut client = agent(&realm);
    let after = status(&mut client, &spec);
    assert_eq!((after.pid, after.started_at_s, after.restarts), (before.pid, before.started_at_s, 0));
    let state = status(&mut client, &stopped).state;
    assert!(matches!(state, RunState::Exited { .. }), "what the user stopped stays so, and is {state:?}");
    wait_for(&mut client, &spec, "healthy", |s| s.health == Health::Healthy);

    // What ends while nobody looks is noticed by the next agent.
    kill_agent(&mut client);
    let pid = nix::unistd::Pid::from_raw(before.pid.unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("its end", || (!is_alive(pid.as_raw())).then_some(()));
    let mut client = agent(&realm);
    let again = wait_for(&mut client, &spec, "running again", |s| s.state == RunState::Running && s.pid != before.pid);
    assert_eq!(again.restarts, 1);
}

#[test]
fn without_its_cgroup_nothing_is_started_again() {
    need_root!("without_its_cgroup_nothing_is_started_again");
    let realm = Realm::new();
    let mut client = agent(&realm);
    let mut spec = realm.shell("web", "sleep 1000");
    spec.restart = Restart::Always;
    client.start(&spec).unwrap();
    let cgroup = Cgroup::of(&realm.layout, &spec).unwrap();
    // It may be started once more before the cgroup is empty.
    eventually("its removal", || cgroup.remove().ok());
    eventually("the refusal", || {
        let refusals = events(&realm, "start_failed");
        refusals.first().map(|event| assert!(event.details["error"].as_str().unwrap().contains("so nothing guards it")))
    });
    assert_ne!(status(&mut client, &spec).state, RunState::Running);
    assert!(cgroup.pids().unwrap().is_empty());
    assert!(matches!(runtime::find(&realm.layout, &spec.id), Ok(Some(runtime::Found::Ended(_)))));
}

#[test]
fn status_answers_while_a_stop_takes_its_time() {
    need_root!("status_answers_while_a_stop_takes_its_time");
    let realm = Realm::new();
    let mut client = agent(&realm);
    let mut spec = realm.shell("stubborn", "trap '' TERM; echo ready; while :; do sleep 0.05; done");
    spec.stop_grace_ms = 4_000;
    client.start(&spec).unwrap();
    eventually("the trap", || realm.log(&spec).contains("ready").then_some(()));
    let (layout, id) = (realm.layout.clone(), spec.id.clone());
    let stopper = std::thread::spawn(move || Client::connect(&layout).unwrap().stop(&id));
    let mut answers = 0;
    while !stopper.is_finished() {
        status(&mut client, &spec);
        answers += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    stopper.join().unwrap().unwrap();
    assert!(answers > 3, "{answers} answers while it was stopped");
    assert_eq!(status(&mut client, &spec).state, RunState::Exited { code: 137 });
}
