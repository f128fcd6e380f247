//! `stop`, `start`, `restart` and `exec`, with real services.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::need_root;
use crate::scratch::{Host, PATIENCE, Running, patiently};

/// `app` depends on `db`; `job` is done when it has run once; `two` has two instances.
const FILE: &str = r#"
name: shop
services:
  db: &server
    restart: always
    environment: { COLOUR: blue }
    healthcheck: { test: [CMD, "true"], interval: 1s, start_period: 60s, start_interval: 100ms }
    x-palisade: { process: { command: [sh, -c, "echo began; exec sleep 1000"], user: nobody }, connect: [] }
  app:
    restart: always
    depends_on: { db: { condition: service_healthy } }
    x-palisade: { process: { command: [sleep, "1000"] }, connect: [db] }
  job:
    x-palisade: { process: { command: [sh, -c, "echo ran"] } }
  two:
    deploy: { replicas: 2 }
    x-palisade: { process: { command: [sleep, "1000"] } }
"#;

fn stage() -> Host {
    let host = Host::new();
    host.write(FILE);
    host.up();
    host
}

/// State and "stopped" of an instance, by `ps`.
fn state(host: &Host, instance: &str) -> (String, bool) {
    let ps = host.ps();
    let instances = ps["instances"].as_array().unwrap();
    let seen = instances.iter().find(|seen| seen["instance"] == instance).unwrap();
    (seen["state"].to_string(), seen["stopped"].as_bool().unwrap())
}

fn steps(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| Some(line.split_once("] ")?.1.split(" (").next()?.to_owned())).collect()
}

#[test]
fn what_is_stopped_stays_stopped_until_it_is_started() {
    need_root!("life::what_is_stopped_stays_stopped_until_it_is_started");
    let host = stage();
    let stopped = host.palisade(&["stop", "db", "app"]).expect(0);
    assert_eq!(steps(&stopped.err), ["stop app.1", "stop db.1"]);
    // Its restart policy is `always`, and a new agent knows it, too.
    kill(Pid::from_raw(host.agent().unwrap()), Signal::SIGKILL).unwrap();
    patiently("the agent's end", || host.agent().is_none().then_some(()));
    let started = host.palisade(&["start", "two"]).expect(0);
    assert!(started.err.contains("nothing to start"), "{}", started.err);
    host.palisade(&["stop", "two"]).expect(0);
    std::thread::sleep(Duration::from_millis(500));
    for instance in ["db.1", "app.1", "two.1", "two.2"] {
        assert!(state(&host, instance).1 && host.pid(instance).is_none(), "{instance}");
    }
    let ps = host.palisade(&["ps"]).expect(0).out;
    assert!(ps.lines().any(|line| line.starts_with("db.1") && line.contains(" stopped ")), "{ps}");
    let plan = host.palisade(&["plan"]).expect(1).out;
    assert!(plan.contains("start db.1 (it was stopped)") && !plan.contains("job"), "{plan}");

    let started = host.palisade(&["start", "db", "app"]).expect(0);
    let told = steps(&started.err);
    assert_eq!(told[0], "start db.1");
    assert!(told[1].starts_with("wait until db.1 is healthy") && told[2] == "start app.1", "{told:?}");
    assert_eq!(state(&host, "app.1"), ("\"running\"".to_owned(), false));
    host.palisade(&["up"]).expect(0);
    assert!(host.pid("two.2").is_some());
    host.palisade(&["plan"]).expect(0);
    host.down();
}

/// `one` and `two` end only when the other one has been told to end, too. `db` takes its time, and must not end before
/// them.
const TOGETHER: &str = r#"
name: shop
services:
  db:
    volumes: [ "met:/met" ]
    stop_grace_period: 60s
    x-palisade: { process: { command: [sh, -c, "trap 'ls /met >/met/at-the-end; until [ -e /met/go-on ]; do sleep 0.02; done; exit' TERM; while :; do sleep 0.02; done"] } }
  one: &server
    depends_on: [db]
    volumes: [ "met:/met" ]
    stop_grace_period: 20s
    environment: { OWN: one, OTHER: two }
    x-palisade:
      process: { command: [sh, -c, "trap 'touch /met/$$OWN; until [ -e /met/$$OTHER ]; do sleep 0.02; done; touch /met/$$OWN-ended; exit' TERM; while :; do sleep 0.02; done"] }
      allow: { no-healthcheck: it lives for a test }
  two:
    <<: *server
    environment: { OWN: two, OTHER: one }
volumes: { met: {} }
"#;

#[test]
fn what_depends_on_nothing_of_each_other_is_stopped_together() {
    need_root!("life::what_depends_on_nothing_of_each_other_is_stopped_together");
    let host = Host::new();
    host.write(TOGETHER);
    host.up();
    let note = host.layout.volume("met").join("at-the-end");
    let down = Running::start(host.command(&["down"]));
    patiently("the end of the database", || note.exists().then_some(()));
    down.signal(Signal::SIGINT);
    std::fs::write(note.with_file_name("go-on"), "").unwrap();
    let interrupted = down.end(PATIENCE).expect(130);
    assert!(
        interrupted.err.ends_with("interrupted; what was stopped runs again, and nothing was taken away\n"),
        "{}",
        interrupted.err
    );
    assert_eq!(steps(&interrupted.err)[0], "stop one.1, two.1");
    let met = std::fs::read_to_string(&note).unwrap();
    let met: Vec<_> = met.lines().filter(|name| name.ends_with("ended")).collect();
    assert_eq!(met, ["one-ended", "two-ended"]);
    for instance in ["db.1", "one.1", "two.1"] {
        assert_eq!(state(&host, instance), ("\"running\"".to_owned(), false), "{instance}");
    }
    host.palisade(&["down", "--volumes", "--yes"]).expect(0);
}

#[test]
fn restart_starts_what_runs_anew_as_it_was() {
    need_root!("life::restart_starts_what_runs_anew_as_it_was");
    let host = stage();
    let (db, app) = (host.pid("db.1"), host.pid("app.1"));
    // What the file has by now is none of its business.
    host.write(&FILE.replace("blue", "green"));
    host.palisade(&["restart", "db"]).expect(0);
    assert!(host.pid("db.1").is_some() && host.pid("db.1") != db);
    assert_eq!(host.pid("app.1"), app);
    patiently("its log", || (host.log("db") == ["began", "began"]).then_some(()));
    let colour = host.palisade(&["exec", "db", "sh", "-c", "echo $COLOUR"]).expect(0);
    assert_eq!(colour.out, "blue\n");
    let all = host.palisade(&["restart"]).expect(0);
    let told = steps(&all.err);
    let position = |step: &str| told.iter().position(|known| known == step).unwrap();
    assert!(position("stop app.1") < position("stop db.1, two.1, two.2"));
    assert!(position("stop db.1, two.1, two.2") < position("start db.1"));
    assert!(position("start db.1") < position("start app.1"));
    let wrong = host.palisade(&["restart", "nope"]).expect(2);
    assert!(wrong.err.contains("shop has no service `nope`") && wrong.err.contains("db, app"), "{}", wrong.err);
    host.down();
    let gone = host.palisade(&["stop"]).expect(1);
    assert!(gone.err.contains("can't stop shop: it isn't up"), "{}", gone.err);
}

#[test]
fn a_command_inside_is_the_services_own() {
    need_root!("life::a_command_inside_is_the_services_own");
    let host = stage();
    let run = |arguments: &[&str]| host.palisade(&[&["exec"], arguments].concat());
    let ran = run(&["db", "sh", "-c", "id -un; echo $COLOUR; echo to stderr >&2; exit 42"]).expect(42);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("nobody\nblue\n", "to stderr\n"));
    let script = "pwd; id -u; echo $COLOUR $MORE; grep -c '/db.1' /proc/self/cgroup > /dev/null; echo $?";
    let ran = run(&["-u", "root", "-w", "/tmp", "-e", "COLOUR=red", "-e", "MORE=1", "db", "sh", "-c", script]);
    assert!(ran.expect(0).out.starts_with("/tmp\n0\nred 1\n"));
    // Guarded as the service is: `db` may connect to nobody, and `app` to `db` only, where nobody listens.
    let connect = "import socket\ntry: socket.create_connection(('127.77.SERVICE.0', 9), 2)\nexcept OSError as error: print(error.strerror)";
    let to =
        |from: &str, service: &str| run(&[from, "python3", "-c", &connect.replace("SERVICE", service)]).expect(0).out;
    assert_eq!(to("db", "2"), "Operation not permitted\n");
    assert_eq!(to("app", "1"), "Connection refused\n");
    let bind = "import socket; s = socket.create_server(('0.0.0.0', 7777)); print(s.getsockname()[0])";
    assert_eq!(run(&["db", "python3", "-c", bind]).expect(0).out, "127.77.1.1\n");
    assert_eq!(run(&["two.2", "hostname"]).expect(0).out, "two-2\n");
    assert_eq!(run(&["two", "hostname"]).expect(0).out, "two-1\n");

    let missing = run(&["db", "no-such-command"]).expect(127);
    assert!(missing.err.contains("`no-such-command` not found"), "{}", missing.err);
    run(&["db", "/etc/passwd"]).expect(126);
    let done = run(&["job", "true"]).expect(1);
    assert!(done.err.contains("job.1: it doesn't run"), "{}", done.err);
    let wrong = run(&["two.9", "true"]).expect(2);
    assert!(wrong.err.contains("no instance `two.9`") && wrong.err.contains("two.1, two.2"), "{}", wrong.err);
    host.down();
}

#[test]
fn input_and_signals_reach_the_command() {
    need_root!("life::input_and_signals_reach_the_command");
    let host = stage();
    let mut command = host.command(&["exec", "db", "sh", "-c", "cat; echo ended >&2"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // More than any pipe holds.
    let text = "0123456789abcde\n".repeat(20_000);
    let mut input = child.stdin.take().unwrap();
    let written = text.clone();
    let writer = std::thread::spawn(move || input.write_all(written.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b"ended\n"[..]));
    assert!(output.stdout == text.as_bytes(), "{} of {} bytes", output.stdout.len(), text.len());

    let script = "trap 'echo heard; exit 7' TERM; echo ready > /tmp/ready; while :; do sleep 0.05; done";
    let running = Running::start(host.command(&["exec", "two", "sh", "-c", script]));
    patiently("the trap", || {
        (host.palisade(&["exec", "two", "test", "-e", "/tmp/ready"]).code == Some(0)).then_some(())
    });
    running.signal(Signal::SIGTERM);
    let ran = running.end(PATIENCE).expect(7);
    assert_eq!(ran.out, "heard\n");

    // Whoever is killed leaves nothing behind inside, and what is stopped ends its commands.
    let sleeping =
        |seconds: &str| host.processes().iter().filter(|(_, line)| *line == format!("sleep {seconds} ")).count();
    let running = Running::start(host.command(&["exec", "two", "sleep", "4321"]));
    patiently("the command", || (sleeping("4321") == 1).then_some(()));
    drop(running);
    patiently("the command's end", || (sleeping("4321") == 0).then_some(()));
    let running = Running::start(host.command(&["exec", "two.1", "sleep", "4322"]));
    patiently("the command", || (sleeping("4322") == 1).then_some(()));
    host.palisade(&["stop", "two"]).expect(0);
    let ran = running.end(PATIENCE);
    assert_ne!(ran.code, Some(0), "{ran:?}");
    host.down();
}

#[test]
fn a_terminal_is_the_commands_own_and_is_put_back() {
    need_root!("life::a_terminal_is_the_commands_own_and_is_put_back");
    let host = stage();
    let size = nix::pty::Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(&size, None).unwrap();
    let before = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
    let script =
        "test -t 0 && test -t 1 && stty size; trap 'echo interrupted; exit 5' INT; echo ready; sleep 1000 & wait";
    let mut command = host.command(&["exec", "two", "sh", "-c", script]);
    let slave = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut child = command.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
    drop(command);
    let mut console = File::from(pty.master.try_clone().unwrap());
    let mut shown = String::new();
    let mut read_until = |end: &str, console: &mut File| {
        while !shown.contains(end) {
            let mut buffer = [0; 1024];
            let length = console.read(&mut buffer).unwrap();
            shown += &String::from_utf8_lossy(&buffer[..length]);
        }
        shown.clone()
    };
    let text = read_until("ready", &mut console);
    assert!(text.contains("33 77"), "{text:?}");
    // Ctrl-C is for what runs inside; it is not what ends us.
    console.write_all(b"\x03").unwrap();
    let text = read_until("interrupted", &mut console);
    assert_eq!(child.wait().unwrap().code(), Some(5), "{text:?}");
    let after = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
    assert_eq!(after.local_flags, before.local_flags);
    host.down();
}
