//! `learn` watches and prints a patch that, applied, allows what was used and nothing else; `events` tells what was
//! refused and how to allow it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::need_root;
use crate::scratch::{Host, Running, patiently};
use crate::support::skipped;

/// Three servers. The client uses two of them and, once it is told to, the third; the stranger tries the first.
const FILE: &str = r#"name: shop
services:
  db:
    expose: ["5432"]
    volumes: ["./:/case:ro"]
    x-palisade:
      process: { command: [python3, /case/stack.py, serve, "5432"], user: nobody }
  cache:
    expose: ["6379"]
    volumes: ["./:/case:ro"]
    x-palisade:
      process: { command: [python3, /case/stack.py, serve, "6379"], user: nobody }
  other:
    expose: ["7000"]
    volumes: ["./:/case:ro"]
    x-palisade:
      process: { command: [python3, /case/stack.py, serve, "7000"], user: nobody }
  client:
    volumes: ["./:/case:ro"]
    x-palisade:
      process: { command: [python3, /case/stack.py, use, db:5432, cache:6379], user: nobody }
  stranger:
    volumes: ["./:/case:ro"]
    x-palisade:
      connect: []
      process: { command: [python3, /case/stack.py, use, "127.77.1.0:5432"], user: nobody }
"#;

const PROGRAM: &str = r#"
import os, socket, sys, time

def attempt(target):
    host, port = target.split(":")
    try:
        socket.create_connection((host, int(port)), 2).close()
        return "reached"
    except PermissionError:
        return "refused"
    except OSError as error:
        return f"failed: {error}"

if sys.argv[1] == "serve":
    server = socket.create_server(("0.0.0.0", int(sys.argv[2])))
    print("serving", flush=True)
    while True:
        server.accept()[0].close()

while True:
    targets = sys.argv[2:]
    if os.path.exists("/case/also"):
        targets += open("/case/also").read().split()
    for target in targets:
        print(target, attempt(target), flush=True)
    time.sleep(0.1)
"#;

fn stage() -> Host {
    let host = Host::new();
    host.write(FILE);
    fs::write(host.folder.join("stack.py"), PROGRAM).unwrap();
    host.up();
    for server in ["db", "cache", "other"] {
        host.wait_for_line(server, "serving");
    }
    host
}

/// Waits until a service has said this again, from now on.
fn wait_for_new(host: &Host, service: &str, line: &str) {
    let count = || host.log(service).iter().filter(|said| *said == line).count();
    let before = count();
    patiently(&format!("`{line}` of {service} once more"), || (count() > before + 1).then_some(()));
}

/// How often a service has said this.
fn said(host: &Host, service: &str, line: &str) -> usize {
    host.log(service).iter().filter(|said| *said == line).count()
}

#[test]
fn a_lesson_allows_what_was_used_and_nothing_else() {
    need_root!("learn::a_lesson_allows_what_was_used_and_nothing_else");
    if Command::new("patch").arg("--version").output().is_err() {
        return skipped("learn::a_lesson_allows_what_was_used_and_nothing_else", "`patch` is not installed");
    }
    let host = stage();
    wait_for_new(&host, "client", "cache:6379 reached");
    wait_for_new(&host, "stranger", "127.77.1.0:5432 refused");

    let learning = Running::start(host.command(&["-f", "compose.yaml", "learn", "--for", "10"]));
    // While it watches, nothing inside the stack is refused.
    host.wait_for_line("stranger", "127.77.1.0:5432 reached");
    let learned = learning.end(Duration::from_secs(60)).expect(0);
    // The policy is back, although the file is not changed yet.
    wait_for_new(&host, "stranger", "127.77.1.0:5432 refused");
    let reached = said(&host, "stranger", "127.77.1.0:5432 reached");
    wait_for_new(&host, "stranger", "127.77.1.0:5432 refused");
    assert_eq!(said(&host, "stranger", "127.77.1.0:5432 reached"), reached);
    assert_eq!(host.palisade(&["plan"]).expect(0).out, "shop: nothing to change\n");

    fs::write(host.folder.join("lesson.patch"), &learned.out).unwrap();
    let mut patch = Command::new("patch");
    patch.args(["-p1", "--batch", "-i", "lesson.patch"]).current_dir(&host.folder);
    Running::start(patch).end(Duration::from_secs(20)).expect(0);
    let patched = fs::read_to_string(host.folder.join("compose.yaml")).unwrap();
    insta::with_settings!({
        snapshot_path => "cases/learn",
        prepend_module_to_snapshot => false,
        omit_expression => true,
    }, {
        insta::assert_snapshot!("patched", patched);
    });
    host.palisade(&["check"]).expect(0);

    host.up();
    fs::write(host.folder.join("also"), "127.77.3.0:7000").unwrap();
    wait_for_new(&host, "client", "127.77.3.0:7000 refused");
    wait_for_new(&host, "client", "db:5432 reached");
    wait_for_new(&host, "client", "cache:6379 reached");
    assert_eq!(said(&host, "client", "127.77.3.0:7000 reached"), 0);
    assert_eq!(said(&host, "client", "db:5432 refused"), 0);
    host.down();
}

#[test]
fn a_learner_that_is_killed_or_interrupted_does_not_leave_the_stack_open() {
    need_root!("learn::a_learner_that_is_killed_or_interrupted_does_not_leave_the_stack_open");
    let host = stage();
    let learning = Running::start(host.command(&["learn"]));
    host.wait_for_line("stranger", "127.77.1.0:5432 reached");
    learning.signal(nix::sys::signal::Signal::SIGINT);
    let learned = learning.end(Duration::from_secs(60)).expect(0);
    assert!(learned.out.starts_with("--- a/"), "Ctrl-C ends the watching, not the lesson: {learned:?}");
    wait_for_new(&host, "stranger", "127.77.1.0:5432 refused");

    let before = said(&host, "stranger", "127.77.1.0:5432 reached");
    let learning = Running::start(host.command(&["learn"]));
    patiently("learning", || (said(&host, "stranger", "127.77.1.0:5432 reached") > before).then_some(()));
    drop(learning);
    // The agent notices that nobody is there to put the policy back.
    wait_for_new(&host, "stranger", "127.77.1.0:5432 refused");
    host.palisade(&["plan"]).expect(0);
    host.down();
}

#[test]
fn a_refusal_is_an_event_that_says_how_to_allow_it() {
    need_root!("learn::a_refusal_is_an_event_that_says_how_to_allow_it");
    let host = stage();
    wait_for_new(&host, "stranger", "127.77.1.0:5432 refused");
    let about = "service stranger may not connect to ";
    let text = patiently("the event", || {
        let events = host.palisade(&["events"]).expect(0).out;
        events.contains(about).then_some(events)
    });
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|line| line.contains(about)).unwrap();
    let (refusal, hint) = (lines[at], lines[at + 1]);
    assert!(refusal.contains(" stranger.1 refused: ") && refusal.contains("db:5432/tcp"), "{refusal}");
    assert!(refusal.contains("[python3, process "), "{refusal}");
    let line = FILE.lines().position(|line| line == "  stranger:").unwrap() + 1;
    assert!(
        hint.contains(r#"hint: add "db:5432" to"#) && hint.contains("x-palisade.connect of service stranger"),
        "{hint}"
    );
    assert!(hint.contains(&format!("compose.yaml:{line}:")), "{hint}");

    let json = host.palisade(&["events", "--format", "json"]).expect(0).out;
    let events: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let refused = events.iter().find(|event| event["kind"] == "refused").unwrap();
    assert_eq!((&refused["version"], &refused["instance"]), (&1.into(), &"stranger.1".into()), "{refused}");
    assert!(Path::new("/proc").join(refused["details"]["pid"].to_string()).exists(), "{refused}");

    // A refusal that happens all the time doesn't fill the disk.
    let refusals = events.iter().filter(|event| event["kind"] == "refused").count();
    assert!(refusals < 50, "{refusals}");
    host.down();
}

#[test]
fn a_file_that_was_edited_takes_effect_by_up_and_not_by_learning() {
    need_root!("learn::a_file_that_was_edited_takes_effect_by_up_and_not_by_learning");
    let host = stage();
    wait_for_new(&host, "stranger", "127.77.1.0:5432 refused");
    host.write(&FILE.replace("connect: []", "connect: [db]"));
    let learning = Running::start(host.command(&["learn", "--for", "3"]));
    host.wait_for_line("stranger", "127.77.1.0:5432 reached");
    learning.end(Duration::from_secs(60)).expect(0);
    wait_for_new(&host, "stranger", "127.77.1.0:5432 refused");
    let reached = said(&host, "stranger", "127.77.1.0:5432 reached");
    wait_for_new(&host, "stranger", "127.77.1.0:5432 refused");
    assert_eq!(said(&host, "stranger", "127.77.1.0:5432 reached"), reached);
    host.up();
    wait_for_new(&host, "stranger", "127.77.1.0:5432 reached");
    host.down();
}
