//! Bad days of an engine: it dies in the middle of an update, containers are taken away, the disk is full, a volume is
//! in use. What served before serves on, the message says what happened, and the next `up` finishes.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::dockerd::{Dockerd, IMAGE};
use crate::engine::with_engine;
use crate::need_root;
use crate::scratch::{HOST, Host, Ran, patiently};

/// A server that says its version.
fn shop(version: u32) -> String {
    format!(
        r#"
name: shop
services:
  web:
    image: {IMAGE}
    command: ["sh", "-c", "echo version $$V; echo $$V >/tmp/index.html; exec httpd -f -p 8080 -h /tmp"]
    environment: {{V: "{version}"}}
    ports: ["8080:8080"]
    restart: always
    stop_grace_period: 1s
    deploy: {{update_config: {{monitor: 500ms}}}}
    healthcheck: {{test: [CMD, wget, -q, -O-, "http://127.0.0.1:8080/"], interval: 1s, start_period: 3s, start_interval: 200ms}}
"#
    )
}

/// What somebody on the internet gets, if anything.
fn served(host: &Host) -> Option<String> {
    let ask = || {
        let mut command = Command::new("timeout");
        command.args(["3", "busybox", "wget", "-q", "-O-", &format!("http://{HOST}:8080/")]);
        command.stdin(Stdio::null()).output().unwrap()
    };
    let output = host.internet.run(ask).unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[track_caller]
fn serves(host: &Host, version: u32) {
    patiently(&format!("version {version}"), || (served(host) == Some(version.to_string())).then_some(()));
}

/// Runs `up` and kills the engine as soon as so many lines of progress were shown.
fn up_with_a_dying_engine(host: &Host, engine: &mut Dockerd, lines: usize) -> Ran {
    let mut command = host.command(&["up"]);
    command.env("DOCKER_HOST", engine.socket()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let (mut said, mut steps) = (String::new(), 0);
    if lines == 0 {
        engine.kill();
    }
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        said += &line;
        said.push('\n');
        if line.starts_with('[') {
            steps += 1;
            if steps == lines {
                engine.kill();
            }
        }
    }
    Ran { code: child.wait().unwrap().code(), out: String::new(), err: said }
}

#[test]
fn an_engine_that_dies_during_an_update() {
    need_root!("an_engine_that_dies_during_an_update");
    with_engine("an_engine_that_dies_during_an_update", |host, engine| {
        host.write(&shop(1));
        engine.palisade(host, &["up", "--wait"]).expect(0);
        serves(host, 1);
        let mut failed = 0;
        // Before it begins, while the newer one starts and gets ready, when it has taken over, when the older one is to go.
        for (version, lines) in (1..).zip([0, 1, 2, 4, 7]) {
            host.write(&shop(version + 1));
            let ran = up_with_a_dying_engine(host, engine, lines);
            let now = served(host);
            assert!(
                now == Some(version.to_string()) || now == Some((version + 1).to_string()),
                "killed after {lines} steps, {now:?} is served:\n{}",
                ran.err
            );
            if ran.code != Some(0) {
                failed += 1;
                assert_eq!(ran.err.matches("doesn't answer").count(), 1, "it is said once:\n{}", ran.err);
            }
            engine.start_again();
            engine.palisade(host, &["up", "--wait"]).expect(0);
            serves(host, version + 1);
            assert_eq!(engine.docker(&["ps", "--all", "--quiet"]).unwrap().lines().count(), 1);
        }
        assert!(failed >= 4, "{failed}");
        engine.palisade(host, &["prove"]).expect(0);
        engine.palisade(host, &["down", "--volumes", "--yes"]).expect(0);
        host.assert_nothing_left();
    });
}
