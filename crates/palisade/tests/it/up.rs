//! `up`, `plan`, `ps`, `events` and `down` as a user types them, in a network namespace and a realm of their own.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_host::cgroup::{Cgroup, Mounts};
use palisade_host::netns::Netns;

use crate::need_root;
use crate::support::{PALISADE, Realm, Scratch, eventually};

/// A database that answers, and an application that waits for it, connects, and tries to get out.
const FILE: &str = r#"
name: shop
x-palisade:
  allow:
    no-healthcheck: it lives for a test
    no-memory-limit: it lives for a test
    stateful-without-backup: it lives for a test
services:
  db:
    expose: ["5432"]
    volumes: ["data:/data"]
    environment: {SECRET: hunter2}
    healthcheck:
      test: ["CMD", "python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 5432), 4)"]
      interval: 1s
      timeout: 5s
      retries: 2
      start_period: 10s
      start_interval: 100ms
    x-palisade:
      connect: []
      process:
        user: nobody
        command:
          - python3
          - -c
          - |
            import socket
            open('/data/mine', 'w').close()
            server = socket.create_server(('0.0.0.0', 5432))
            while True: server.accept()[0].close()
  app:
    ports: ["8081:8081"]
    depends_on: {db: {condition: service_healthy}}
    x-palisade:
      connect: [db]
      egress: none
      process:
        command:
          - python3
          - -c
          - |
            import socket
            print('db at', socket.create_connection(('db', 5432)).getpeername()[0], flush=True)
            try: socket.create_connection(('203.0.113.9', 443), 1)
            except OSError as error: print('outside:', error.strerror, flush=True)
            server = socket.create_server(('0.0.0.0', 8081))
            while True: server.accept()[0].close()
volumes: {data: {}}
"#;

/// A file and a place to bring it up.
struct Stage {
    realm: Realm,
    folder: Scratch,
    netns: Netns,
}

impl Stage {
    fn new() -> Self {
        let realm = Realm::new();
        // `palisade` makes what it needs itself, and is to leave nothing.
        fs::remove_dir_all(realm.layout.realm_run()).unwrap();
        let stage = Self { folder: Scratch::new(&realm), netns: Netns::unnamed().unwrap(), realm };
        stage.write(FILE);
        let mut lo = Command::new("ip");
        lo.args(["link", "set", "lo", "up"]);
        assert!(stage.spawn(lo).wait().unwrap().success());
        stage
    }

    fn file(&self) -> PathBuf {
        self.folder.0.join("compose.yaml")
    }

    fn write(&self, text: &str) {
        fs::write(self.file(), text).unwrap();
    }

    fn spawn(&self, mut command: Command) -> Child {
        self.netns.run(|| command.spawn().unwrap()).unwrap()
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "60", PALISADE, "--realm", &self.realm.layout.realm, "-f"]);
        command.arg(self.file()).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.spawn(command)
    }

    /// Exit code and everything that it printed.
    fn palisade(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.start(arguments).wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
    }

    fn up(&self) -> String {
        let (code, text) = self.palisade(&["up"]);
        assert_eq!(code, 0, "{text}");
        text
    }

    /// What of the stack is anywhere on this machine.
    fn left(&self) -> Vec<String> {
        let layout = &self.realm.layout;
        let mut left = Vec::new();
        let mounts = Mounts::find().unwrap();
        let cgroups = mounts.v1.iter().map(|mount| mount.path.clone()).chain([mounts.v2.clone()]);
        let paths = cgroups.map(|path| path.join(&layout.realm)).chain([layout.realm_run(), layout.lib()]);
        left.extend(paths.filter(|path| path.exists()).map(|path| path.display().to_string()));
        let run = fs::read_dir("/run").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        left.extend(run.filter(|name| name.starts_with(&format!("{}-", layout.realm))));
        let mounted = fs::read_to_string("/proc/self/mounts").unwrap();
        left.extend(mounted.lines().filter(|line| line.contains(&layout.realm)).map(str::to_owned));
        let mut nft = Command::new("nft");
        nft.args(["list", "tables"]).stdout(Stdio::piped());
        let tables = self.spawn(nft).wait_with_output().unwrap().stdout;
        left.extend(String::from_utf8(tables).unwrap().lines().map(str::to_owned));
        left
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let (code, text) = self.palisade(&["down", "--volumes", "--yes"]);
        if code != 0 {
            eprintln!("down ended with {code}: {text}");
        }
    }
}

#[test]
fn a_stack_comes_up_guarded_is_reported_and_goes() {
    need_root!("up::a_stack_comes_up_guarded_is_reported_and_goes");
    let stage = Stage::new();
    let (code, plan) = stage.palisade(&["plan"]);
    assert_eq!(code, 1, "{plan}");
    assert!(plan.contains("create volume data for nobody") && !plan.contains("hunter2"), "{plan}");
    assert_eq!(stage.left(), [""; 0], "a plan changes nothing");
    let up = stage.up();
    assert!(!up.contains("hunter2"), "{up}");
    let (code, plan) = stage.palisade(&["plan"]);
    assert_eq!((code, plan.as_str()), (0, "shop: nothing to change\n"));

    let row = |ps: &str, name: &str| ps.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let ps = eventually("app listens", || {
        let (_, ps) = stage.palisade(&["ps"]);
        row(&ps, "app.1").ends_with("8081/tcp  0.0.0.0:8081/tcp").then_some(ps)
    });
    assert!(row(&ps, "db.1").contains("healthy") && row(&ps, "db.1").ends_with("5432/tcp  -"), "{ps}");
    let logs = eventually("both lines", || {
        let (_, logs) = stage.palisade(&["logs", "app"]);
        (logs.lines().count() >= 2).then_some(logs)
    });
    assert_eq!(logs, "app.1 | db at 127.77.1.0\napp.1 | outside: Operation not permitted\n");
    let events = eventually("the refusal among the events", || {
        let (_, events) = stage.palisade(&["events"]);
        events.contains("refused").then_some(events)
    });
    assert!(events.contains("service app may not connect to 203.0.113.9:443/tcp outside"), "{events}");
    assert!(events.contains(r#"hint: add "203.0.113.9/32:443" to x-palisade.egress of service app"#), "{events}");

    let (code, text) = stage.palisade(&["down", "--volumes"]);
    assert_eq!(code, 2, "nobody was there to confirm: {text}");
    let (code, text) = stage.palisade(&["down"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(stage.left(), [stage.realm.layout.lib().display().to_string()], "the volume stays");
    assert!(stage.realm.layout.volume("data").join("mine").exists());
    let (code, text) = stage.palisade(&["down", "--volumes", "--yes"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(stage.left(), [""; 0]);
}

#[test]
fn a_service_that_fails_undoes_everything_and_says_why() {
    need_root!("up::a_service_that_fails_undoes_everything_and_says_why");
    let stage = Stage::new();
    // It isn't given the database, so its name means nothing to it.
    let waited_for = "healthcheck: {test: [CMD, 'false'], start_period: 60s}";
    let file = FILE.replace("connect: [db]", "connect: []");
    let ports = "ports: [\"8081:8081\"]\n";
    stage.write(&file.replace(ports, &format!("{ports}    {waited_for}\n")));
    let (code, text) = stage.palisade(&["up", "--wait"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("app.1 exited with 1; what was done before is undone"), "{text}");
    assert!(text.contains("the end of what app.1 printed:") && text.contains("name resolution"), "{text}");
    assert_eq!(stage.left(), [""; 0]);

    stage.write(
        &FILE.replace("('127.0.0.1', 5432)", "('127.0.0.1', 1)").replace("start_period: 10s", "start_period: 0s"),
    );
    let (code, text) = stage.palisade(&["up"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("db.1 is unhealthy: ConnectionRefusedError"), "{text}");
    assert_eq!(stage.left(), [""; 0]);
}

#[test]
fn an_interruption_undoes_everything() {
    need_root!("up::an_interruption_undoes_everything");
    let stage = Stage::new();
    stage.write(&FILE.replace("('127.0.0.1', 5432)", "('127.0.0.1', 1)"));
    let child = stage.start(&["up"]);
    eventually("the database runs", || stage.palisade(&["ps"]).1.contains("db.1").then_some(()));
    // `timeout` passes it on.
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.ends_with("interrupted; nothing was left behind\n"), "{text}");
    assert_eq!(stage.left(), [""; 0]);
}

#[test]
fn a_port_that_a_process_of_the_host_has_is_named_before_anything_changes() {
    need_root!("up::a_port_that_a_process_of_the_host_has_is_named_before_anything_changes");
    let stage = Stage::new();
    let mut squatter = Command::new("python3");
    let script =
        "import socket, time\ns = socket.create_server(('0.0.0.0', 8081))\nprint('ready', flush=True)\ntime.sleep(60)";
    squatter.args(["-c", script]).stdout(Stdio::piped());
    let mut squatter = stage.spawn(squatter);
    let mut ready = [0; 6];
    std::io::Read::read_exact(squatter.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let (code, text) = stage.palisade(&["up"]);
    squatter.kill().unwrap();
    squatter.wait().unwrap();
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("app: its published port 8081/tcp is taken on this host"), "{text}");
    assert!(text.contains("(python3)") && text.contains("compose.yaml:"), "{text}");
    assert_eq!(stage.left(), [""; 0]);
}

#[test]
fn killed_at_any_moment_the_next_up_takes_over() {
    need_root!("up::killed_at_any_moment_the_next_up_takes_over");
    let stage = Stage::new();
    for after_ms in [10, 40, 80, 120, 160, 200, 300, 450] {
        let mut first = Command::new(PALISADE);
        first.args(["--realm", &stage.realm.layout.realm, "-f"]).arg(stage.file()).arg("up");
        first.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut first = stage.spawn(first);
        sleep(Duration::from_millis(after_ms));
        first.kill().unwrap();
        first.wait().unwrap();
        stage.up();
        let (code, plan) = stage.palisade(&["plan"]);
        assert_eq!((code, plan.as_str()), (0, "shop: nothing to change\n"), "killed after {after_ms} ms");
        let (code, text) = stage.palisade(&["down", "--volumes", "--yes"]);
        assert_eq!(code, 0, "killed after {after_ms} ms: {text}");
        assert_eq!(stage.left(), [""; 0], "killed after {after_ms} ms");
    }
}

#[test]
fn a_killed_agent_is_replaced_and_nothing_else_happens() {
    need_root!("up::a_killed_agent_is_replaced_and_nothing_else_happens");
    let stage = Stage::new();
    stage.up();
    let [cgroup, _] = Cgroup::all_of_stack(&stage.realm.layout).unwrap();
    let pids = || cgroup.pids().unwrap();
    let agent = Cgroup::of_agent(&stage.realm.layout).unwrap().pids().unwrap();
    let before = pids();
    assert_eq!(agent.len(), 1);
    for pid in &agent {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
    }
    eventually("the agent is gone", || pids().is_disjoint(&agent).then_some(()));
    let (_, ps) = stage.palisade(&["ps"]);
    assert_eq!(ps.matches("running").count(), 2, "{ps}");
    let text = stage.up();
    assert!(text.starts_with("[1/1] start the agent"), "{text}");
    let now = pids();
    // Health checks come and go; the init process and the program of each of the two instances must not.
    let kept = before.iter().filter(|pid| !agent.contains(pid) && now.contains(pid)).count();
    assert!(kept >= 4, "{before:?} became {now:?}");
}

#[test]
fn a_change_touches_only_what_changed_and_new_names_reach_what_runs() {
    need_root!("up::a_change_touches_only_what_changed_and_new_names_reach_what_runs");
    let stage = Stage::new();
    let sleeper = |name: &str| format!("  {name}:\n    x-palisade: {{process: {{command: [sleep, '60']}}}}\n");
    let one = FILE.replace("volumes: {data: {}}", &(sleeper("one") + "volumes: {data: {}}"));
    stage.write(&one);
    stage.up();
    let two =
        one.replace("volumes: {data: {}}", &(sleeper("two") + "volumes: {data: {}}")).replace("hunter2", "hunter3");
    stage.write(&two);
    let text = stage.up();
    assert!(text.contains("stop db.1 (changed: environment.SECRET;") && !text.contains("hunter"), "{text}");
    assert!(text.contains("tell one.1 the addresses of"), "{text}");
    assert!(!text.contains("stop one.1") && !text.contains("stop app.1"), "{text}");
    let (_, ps) = stage.palisade(&["ps", "--format", "json"]);
    let ps: serde_json::Value = serde_json::from_str(ps.lines().next().unwrap()).unwrap();
    let instances = ps["instances"].as_array().unwrap();
    let one = instances.iter().find(|instance| instance["instance"] == "one.1").unwrap();
    let hosts = fs::read_to_string(format!("/proc/{}/root/etc/hosts", one["pid"])).unwrap();
    assert!(hosts.lines().any(|line| line == "127.77.4.0\ttwo"), "{hosts}");
}

#[test]
fn a_second_up_says_who_is_at_it() {
    need_root!("up::a_second_up_says_who_is_at_it");
    let stage = Stage::new();
    stage.write(&FILE.replace("('127.0.0.1', 5432)", "('127.0.0.1', 1)"));
    let first = stage.start(&["up"]);
    eventually("the first one is at it", || stage.palisade(&["ps"]).1.contains("db.1").then_some(()));
    let (code, text) = stage.palisade(&["up"]);
    kill(Pid::from_raw(first.id() as i32), Signal::SIGTERM).unwrap();
    first.wait_with_output().unwrap();
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("can't up shop: palisade with process id"), "{text}");
}
