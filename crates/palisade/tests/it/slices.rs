//! Containers of an engine whose cgroups systemd makes, with a Docker Engine and a systemd of the test's own.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_core::names::InstanceId;
use palisade_host::slice::Slice;

use crate::dockerd::{self, Dockerd, IMAGE};
use crate::need_root;
use crate::scratch::{Host, patiently};
use crate::support::skipped;

/// `ask` may ask `web` and nobody may ask `vault-2`.
fn shop() -> String {
    let serve =
        |word: &str, port: u16| format!("[sh, -c, 'echo {word} >/tmp/index.html; exec httpd -f -p {port} -h /tmp']");
    format!(
        r#"
name: shop
services:
  web:
    image: {IMAGE}
    command: {web}
    ports: ["8080:8080"]
    restart: always
    stop_grace_period: 1s
  vault-2:
    image: {IMAGE}
    command: {vault}
    expose: ["7000"]
    networks: [closed]
    restart: always
    stop_grace_period: 1s
  ask:
    image: {IMAGE}
    command: [sh, -c, 'while :; do wget -q -O- http://web:8080/index.html || echo nobody; sleep 0.2; done']
    depends_on: [web]
    restart: always
    stop_grace_period: 1s
networks: {{closed: {{}}}}
"#,
        web = serve("hello", 8080),
        vault = serve("secret", 7000),
    )
}

fn slice(host: &Host, instance: &str) -> Slice {
    Slice::of_instance(&host.layout, &InstanceId::parse(instance).unwrap())
}

fn running(engine: &Dockerd, container: &str) -> bool {
    engine.docker(&["inspect", "--format", "{{.State.Running}}", container]).is_ok_and(|text| text == "true")
}

/// The container runs, and its process is in a scope of its instance's slice.
#[track_caller]
fn assert_guarded(host: &Host, engine: &Dockerd, container: &str, instance: &str) {
    let (id, pid) = (engine.inspect(container, "{{.Id}}"), engine.inspect(container, "{{.State.Pid}}"));
    let cgroups = engine.inside("cat", &[&format!("/proc/{pid}/cgroup")]).unwrap();
    let own = cgroups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    assert_eq!(own, format!("{}/docker-{id}.scope", slice(host, instance).path().display()));
}

#[track_caller]
fn assert_all_guarded(host: &Host, engine: &Dockerd) {
    for (container, instance) in [("shop-web-1", "web.1"), ("shop-vault-2-1", "vault-2.1"), ("shop-ask-1", "ask.1")] {
        patiently(&format!("{container} to run"), || running(engine, container).then_some(()));
        assert_guarded(host, engine, container, instance);
    }
    let plan = patiently("a settled stack", || {
        let plan = engine.palisade(host, &["plan"]);
        (plan.code == Some(0)).then_some(plan)
    });
    assert!(plan.out.contains("nothing to change"), "{}{}", plan.out, plan.err);
}

/// Where an instance listens, by `ps`.
fn address(host: &Host, engine: &Dockerd, instance: &str) -> String {
    let ps: serde_json::Value =
        serde_json::from_str(&engine.palisade(host, &["ps", "--format", "json"]).expect(0).out).unwrap();
    let instances = ps["instances"].as_array().unwrap();
    let seen = instances.iter().find(|seen| seen["instance"] == instance).unwrap();
    seen["address"].as_str().unwrap().to_owned()
}

/// What somebody gets in `container` who asks for the page at a port.
fn page(engine: &Dockerd, container: &str, at: &str) -> Result<String, String> {
    let script = format!("printf 'GET /index.html HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {}", at.replace(':', " "));
    engine.docker(&["exec", container, "sh", "-c", &script])
}

/// `docker start` and `docker restart` don't get it to run.
#[track_caller]
fn assert_nobody_else_starts(engine: &Dockerd, container: &str) {
    for verb in ["start", "restart"] {
        let said = engine.docker(&[verb, container]);
        assert!(said.is_err() && !running(engine, container), "`docker {verb}` started it: {said:?}");
    }
}

fn with_engine(test: &str, run: impl FnOnce(&Host, &mut Dockerd)) {
    if let Some(why) = dockerd::missing() {
        return skipped(test, &why);
    }
    let host = Host::new();
    let mut engine = match Dockerd::start_with_systemd(&host) {
        Ok(engine) => engine,
        Err(why) => return skipped(test, &format!("no Docker Engine with the systemd driver can run here: {why}")),
    };
    run(&host, &mut engine);
    assert_eq!(engine.end(), Vec::<String>::new());
}

/// Nothing of the stack is where systemd and the engine are.
#[track_caller]
fn assert_nothing_left(host: &Host, engine: &Dockerd) {
    assert_eq!(engine.docker(&["ps", "--all", "--quiet"]).unwrap(), "");
    let realm = Slice::of_realm(&host.layout).unit().replace(".slice", "*");
    let units =
        engine.systemctl(&["list-units", "--all", "--plain", "--no-legend", "--state=active", "*.slice"]).unwrap();
    assert!(!units.contains("palisade"), "{units}");
    assert_eq!(engine.inside("find", &["/sys/fs/cgroup", "-name", &realm.replace('\\', "\\\\")]).unwrap(), "");
    assert_eq!(engine.inside("find", &["/sys/fs/cgroup", "/run", "-name", "palisade*"]).unwrap(), "");
    host.assert_nothing_left();
}

#[test]
fn containers_in_slices_are_guarded_through_what_systemd_does() {
    const NAME: &str = "slices::containers_in_slices_are_guarded_through_what_systemd_does";
    need_root!("slices::containers_in_slices_are_guarded_through_what_systemd_does");
    with_engine(NAME, |host, engine| {
        host.write(&shop());
        engine.palisade(host, &["up", "--wait"]).expect(0);
        host.wait_for_line("ask", "hello");
        assert_all_guarded(host, engine);
        assert!(host.open_to_strangers(8080) && !host.open_to_strangers(7000));
        let prove = engine.palisade(host, &["prove"]).expect(0).out;
        assert!(prove.contains("reached   ask → web:8080/tcp"), "{prove}");

        let vault = format!("{}:7000", address(host, engine, "vault-2.1"));
        let is_held = |engine: &Dockerd| {
            let own = page(engine, "shop-vault-2-1", &vault).unwrap();
            assert!(own.ends_with("secret"), "{own}");
            let taken = page(engine, "shop-ask-1", &vault).unwrap_err();
            assert!(taken.contains("can't connect"), "{taken}");
        };
        is_held(engine);

        // What systemd does by itself leaves slices and what is attached to them alone.
        for verb in ["daemon-reload", "daemon-reexec"] {
            engine.systemctl(&[verb]).unwrap();
            assert_all_guarded(host, engine);
            is_held(engine);
        }

        // The engine crashes, and its containers go on; then it restarts, and ends them.
        engine.kill();
        assert!(host.open_to_strangers(8080), "containers don't need their engine");
        for _ in 0..2 {
            engine.start_again();
            assert_all_guarded(host, engine);
        }
        is_held(engine);
        engine.palisade(host, &["down", "--volumes", "--yes"]).expect(0);
        assert_nothing_left(host, engine);
    });
}

#[test]
fn nobody_starts_a_container_in_a_slice_past_the_guard() {
    const NAME: &str = "slices::nobody_starts_a_container_in_a_slice_past_the_guard";
    need_root!("slices::nobody_starts_a_container_in_a_slice_past_the_guard");
    with_engine(NAME, |host, engine| {
        // A scope whose processes don't heed SIGTERM fails, and stays with systemd.
        let script = "mkdir -p /run/systemd/system/docker-.scope.d
                      printf '[Scope]\\nTimeoutStopSec=1\\n' >/run/systemd/system/docker-.scope.d/soon.conf";
        engine.inside("sh", &["-ec", script]).unwrap();
        engine.systemctl(&["daemon-reload"]).unwrap();
        host.write(&shop());
        let palisade = |arguments: &[&str]| engine.palisade(host, arguments);
        palisade(&["up", "--wait"]).expect(0);
        assert_all_guarded(host, engine);

        // Only the agent starts it, also where the slice has the guard.
        palisade(&["stop", "web"]).expect(0);
        assert_nobody_else_starts(engine, "shop-web-1");
        palisade(&["start", "web"]).expect(0);
        assert_all_guarded(host, engine);
        // The agent, which starts it again, may end what the engine has begun before the gate does.
        let refused = engine.docker(&["restart", "--time", "0", "shop-web-1"]).unwrap_err();
        assert!(refused.contains("OCI runtime create failed"), "{refused}");
        assert_all_guarded(host, engine);

        // Somebody stops the slice, and takes the guard away with it.
        let (unit, id) = (slice(host, "web.1").unit(), engine.inspect("shop-web-1", "{{.Id}}"));
        engine.systemctl(&["stop", &unit]).unwrap();
        patiently("web.1 to be known as unguarded", || {
            let events = palisade(&["events"]).out;
            events.contains(&format!("somebody has stopped {}", unit)).then_some(())
        });
        assert!(engine.systemctl(&["is-failed", &format!("docker-{id}.scope")]).is_ok(), "its scope is forgotten");
        assert_nobody_else_starts(engine, "shop-web-1");
        engine.systemctl(&["start", &unit]).unwrap();
        assert_nobody_else_starts(engine, "shop-web-1");
        let plan = palisade(&["plan"]).expect(1).out;
        assert!(plan.contains("guard web.1 at"), "{plan}");
        palisade(&["up", "--wait"]).expect(0);
        assert_eq!(engine.inspect("shop-web-1", "{{.Id}}"), id, "it has kept what it has written");
        assert_all_guarded(host, engine);

        // An agent that is killed, and all slices with their containers: as after a boot, but for what is below /run.
        let agent = host.agent().unwrap();
        kill(Pid::from_raw(agent), Signal::SIGKILL).unwrap();
        engine.systemctl(&["stop", &Slice::of_realm(&host.layout).unit()]).unwrap();
        for container in ["shop-web-1", "shop-vault-2-1", "shop-ask-1"] {
            patiently(&format!("the end of {container}"), || (!running(engine, container)).then_some(()));
            assert_nobody_else_starts(engine, container);
        }
        palisade(&["up", "--wait"]).expect(0);
        assert_all_guarded(host, engine);
        palisade(&["down", "--volumes", "--yes"]).expect(0);
        assert_nothing_left(host, engine);
    });
}
