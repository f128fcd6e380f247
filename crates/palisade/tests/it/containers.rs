//! `exec` and `rollback` where an engine runs the services: a Docker Engine of the test's own.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::dockerd::{self, Dockerd, IMAGE};
use crate::need_root;
use crate::scratch::{Host, PATIENCE, Ran, Running, patiently};
use crate::support::skipped;

const SERVICE: &str = r#"
name: shop
services:
  app:
    image: IMAGE
    environment: { COLOUR: blue }
    command: [sleep, "1000"]
    security_opt: ["seccomp=filter.json"]
    stop_grace_period: 1s
"#;

/// A filter of the user's own, which is used in place of Palisade's.
const FILTER: &str = r#"{
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]
}"#;

#[test]
fn commands_run_in_containers_and_images_of_then_come_back() {
    const NAME: &str = "containers::commands_run_in_containers_and_images_of_then_come_back";
    need_root!("containers::commands_run_in_containers_and_images_of_then_come_back");
    if let Some(why) = dockerd::missing() {
        return skipped(NAME, &why);
    }
    let host = Host::new();
    let engine = match Dockerd::start(&host) {
        Ok(engine) => engine,
        Err(why) => return skipped(NAME, &format!("no Docker Engine can run here: {why}")),
    };
    let command = |arguments: &[&str]| {
        let mut command = host.command(arguments);
        command.env("DOCKER_HOST", engine.socket());
        command
    };
    let run = |arguments: &[&str]| -> Ran { Running::start(command(arguments)).end(PATIENCE) };
    // A name that comes to stand for another image.
    engine.docker(&["tag", IMAGE, "127.0.0.1:1/moving:1"]).unwrap();
    host.write(&SERVICE.replace("IMAGE", "127.0.0.1:1/moving:1"));
    std::fs::write(host.folder.join("filter.json"), FILTER).unwrap();
    run(&["up"]).expect(0);
    let refused = run(&["exec", "app", "mkdir", "/tmp/folder"]).expect(1);
    assert!(refused.err.contains("Operation not permitted"), "{}", refused.err);

    let script = "echo $COLOUR $MORE $(pwd) $(id -u); echo err >&2; exit 42";
    let ran = run(&["exec", "app", "sh", "-c", script]).expect(42);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("blue / 0\n", "err\n"));
    let ran = run(&["exec", "-u", "65534", "-w", "/etc", "-e", "MORE=1", "app", "sh", "-c", script]).expect(42);
    assert_eq!(ran.out, "blue 1 /etc 65534\n");
    let cgroups = run(&["exec", "app", "cat", "/proc/self/cgroup"]).expect(0).out;
    assert!(cgroups.contains("shop") || cgroups.contains("0::/"), "{cgroups}");
    // Which of the two is the engine's choice.
    let missing = run(&["exec", "app", "no-such-command"]);
    assert!(matches!(missing.code, Some(126 | 127)), "{missing:?}");

    let echo = "cat; echo ended >&2";
    let mut child = command(&["exec", "app", "sh", "-c", echo])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = "0123456789abcde\n".repeat(20_000);
    let mut input = child.stdin.take().unwrap();
    let written = text.clone();
    let writer = std::thread::spawn(move || input.write_all(written.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b"ended\n"[..]));
    assert!(output.stdout == text.as_bytes(), "{} of {} bytes", output.stdout.len(), text.len());

    let trap = "trap 'exit 7' TERM; touch /ready; while :; do sleep 0.1; done";
    let running = Running::start(command(&["exec", "app", "sh", "-c", trap]));
    patiently("the command", || (run(&["exec", "app", "test", "-e", "/ready"]).code == Some(0)).then_some(()));
    running.signal(Signal::SIGTERM);
    running.end(PATIENCE).expect(7);

    // A terminal, as wide as ours, in which Ctrl-C is the command's.
    let size = nix::pty::Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(&size, None).unwrap();
    let slave = || Stdio::from(pty.slave.try_clone().unwrap());
    let script = "trap 'exit 5' INT; until stty size | grep '33 77'; do sleep 0.1; done; while :; do sleep 0.1; done";
    let mut child =
        command(&["exec", "app", "sh", "-c", script]).stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
    let mut console = File::from(pty.master.try_clone().unwrap());
    let mut shown = String::new();
    while !shown.contains("33 77") {
        let mut buffer = [0; 1024];
        let length = console.read(&mut buffer).unwrap();
        shown += &String::from_utf8_lossy(&buffer[..length]);
    }
    console.write_all(b"\x03").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5), "{shown}");

    let image = || {
        let name = engine.docker(&["ps", "--filter", "name=shop-app", "--format", "{{.Names}}"]).unwrap();
        engine.inspect(name.trim(), "{{.Image}}")
    };
    let before = image();
    run(&["restart"]).expect(0);
    run(&["stop"]).expect(0);
    run(&["start"]).expect(0);
    engine.docker(&["commit", "shop-app-1", "127.0.0.1:1/moving:1"]).unwrap();
    run(&["up", "--force-recreate"]).expect(0);
    assert_ne!(image(), before);
    let back = run(&["rollback", "--yes"]).expect(0);
    assert!(back.err.contains("app: image digest"), "{}", back.err);
    assert_eq!(image(), before);
    engine.docker(&["tag", IMAGE, "127.0.0.1:1/moving:1"]).unwrap();
    let refused = run(&["up", "--pull", "always"]).expect(1);
    assert!(refused.err.contains("pull image 127.0.0.1:1/moving:1"), "{}", refused.err);
    run(&["up", "--pull", "never"]).expect(0);
    run(&["down", "--volumes", "--yes"]).expect(0);
    assert_eq!(engine.end(), [""; 0]);
}
