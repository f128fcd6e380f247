//! `exec` and `rollback` where an engine runs the services: a Docker Engine of the test's own.

use std::io::Write;
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::meaning::docker::{Docker, IMAGE, missing};
use crate::need_root;
use crate::scratch::{PATIENCE, Ran, Running, patiently};
use crate::support::skipped;

const SERVICE: &str = r#"
name: docker
services:
  app:
    image: IMAGE
    environment: { COLOUR: blue }
    command: [python3, -c, "import time; time.sleep(1000)"]
"#;

#[test]
fn commands_run_in_containers_and_images_of_then_come_back() {
    const NAME: &str = "containers::commands_run_in_containers_and_images_of_then_come_back";
    need_root!("containers::commands_run_in_containers_and_images_of_then_come_back");
    let lacking = missing();
    if !lacking.is_empty() {
        return skipped(NAME, &format!("{} not installed", lacking.join(", ")));
    }
    let docker = match Docker::start() {
        Ok(docker) => docker,
        Err(why) => return skipped(NAME, &why),
    };
    let (client, host) = (docker.client(), docker.host());
    let command = |arguments: &[&str]| {
        let mut command = host.command(arguments);
        command.env("DOCKER_HOST", client.address());
        command
    };
    let run = |arguments: &[&str]| -> Ran { Running::start(command(arguments)).end(PATIENCE) };
    // A name that comes to stand for another image.
    client.run("docker", &["tag", IMAGE, "moving:1"]).unwrap();
    host.write(&SERVICE.replace("IMAGE", "moving:1"));
    run(&["up"]).expect(0);

    let script = "import os, sys; print(os.environ['COLOUR'], os.environ.get('MORE'), os.getcwd(), os.getuid()); print('err', file=sys.stderr); sys.exit(42)";
    let ran = run(&["exec", "app", "python3", "-c", script]).expect(42);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("blue None / 0\n", "err\n"));
    let ran = run(&["exec", "-u", "65534", "-w", "/etc", "-e", "MORE=1", "app", "python3", "-c", script]).expect(42);
    assert_eq!(ran.out, "blue 1 /etc 65534\n");
    let bind = "import socket; print(socket.create_server(('0.0.0.0', 7777)).getsockname()[0])";
    assert_eq!(run(&["exec", "app", "python3", "-c", bind]).expect(0).out, "127.77.1.1\n");

    let echo = "import sys; sys.stdout.write(sys.stdin.read()); print('ended', file=sys.stderr)";
    let mut child = command(&["exec", "app", "python3", "-c", echo])
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

    let trap = "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nopen('/ready', 'w').close()\nwhile True: time.sleep(0.1)";
    let running = Running::start(command(&["exec", "app", "python3", "-c", trap]));
    let ready = "import os, sys; sys.exit(not os.path.exists('/ready'))";
    patiently("the command", || (run(&["exec", "app", "python3", "-c", ready]).code == Some(0)).then_some(()));
    running.signal(Signal::SIGTERM);
    running.end(PATIENCE).expect(7);

    let image = || client.run("docker", &["inspect", "--format", "{{.Image}}", "docker-app-1"]).unwrap();
    let before = image();
    run(&["restart"]).expect(0);
    run(&["stop"]).expect(0);
    run(&["start"]).expect(0);
    client.run("docker", &["commit", "docker-app-1", "moving:1"]).unwrap();
    run(&["up"]).expect(0);
    assert_ne!(image(), before);
    let back = run(&["rollback", "--yes"]).expect(0);
    assert!(back.err.contains("app: image digest"), "{}", back.err);
    assert_eq!(image(), before);
    run(&["down", "--volumes", "--yes"]).expect(0);
    assert_eq!(docker.end(), [""; 0]);
}
