//! Services behind the edge, and the edge itself, are replaced while somebody asks all the time.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::load::Load;
use super::shop::{APP, Shop};
use crate::need_root;
use crate::scratch::patiently;

fn version(replicas: u8, version: &str) -> String {
    APP.replace("VERSION: \"1\"", &format!("VERSION: \"{version}\""))
        .replace("replicas: 1", &format!("replicas: {replicas}"))
}

#[test]
fn nobody_notices_an_update_of_what_is_behind_the_edge() {
    need_root!("edge::update::nobody_notices_an_update_of_what_is_behind_the_edge");
    let shop = Shop::new(APP);
    let load = Load::start(&shop);
    for (replicas, newer) in [(1, "2"), (2, "3"), (1, "4")] {
        shop.up(&version(replicas, newer)).expect(0);
        load.wait_for(&format!("version {newer}"), 50);
    }
    assert_eq!(shop.edges(), ["palisade-edge.1"]);
    // The edge stays, so what is kept to it stays.
    assert_eq!(load.end(), 0);
    shop.0.down();
}

#[test]
fn nobody_notices_an_update_of_the_edge() {
    need_root!("edge::update::nobody_notices_an_update_of_the_edge");
    an_update_of_the_edge_is_noticed_by_nobody(APP);
}

#[test]
fn nobody_notices_an_update_of_an_edge_with_http_3() {
    need_root!("edge::update::nobody_notices_an_update_of_an_edge_with_http_3");
    an_update_of_the_edge_is_noticed_by_nobody(&APP.replace("  edge:\n", "  edge:\n    http3: true\n"));
}

/// The cgroup of whoever has the host's port 443 of UDP.
fn holder_of_udp_443() -> Option<String> {
    let mut command = Command::new("ss");
    command.args(["-Hlunp", "sport", "=", ":443"]);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let pid = text.split_once("pid=")?.1.split(',').next()?;
    fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()
}

fn an_update_of_the_edge_is_noticed_by_nobody(app: &str) {
    let shop = Shop::new(app);
    let load = Load::start(&shop);
    let mut file = app.to_owned();
    for (number, path) in [(2, "/more"), (1, "/still-more")] {
        let route =
            format!("      - domain: shop.example\n        path: {path}\n        to: app:8081\n        hsts: true\n");
        file = file.replacen("services:\n", &format!("{route}services:\n"), 1);
        shop.0.write(&file);
        let plan = shop.0.palisade(&["plan"]).expect(1).out;
        for step in ["start palisade-edge.", "send new connections for palisade-edge to", "stop palisade-edge."] {
            assert!(plan.contains(step), "{plan}");
        }
        assert!(plan.contains("changed: config.edge"), "{plan}");
        shop.up(&file).expect(0);
        assert_eq!(shop.edges(), [format!("palisade-edge.{number}")]);
        load.wait_for("version 1", 50);
        let (code, text) = shop.curl(&["-i", &format!("https://shop.example{path}/x")]);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.to_ascii_lowercase().contains("strict-transport-security: max-age="), "{text}");
        if app.contains("http3") {
            // Only one process can have the port: the newer one gets it when the former has ended.
            let newer = format!("palisade-edge.{number}");
            patiently("the newer edge has the port for HTTP/3", || holder_of_udp_443()?.contains(&newer).then_some(()));
        }
    }
    load.end();
    // Where a route is written in the file is nothing that it serves.
    shop.0.write(&format!("# A comment.\n\n{file}"));
    let plan = shop.0.palisade(&["plan"]).expect(0).out;
    assert!(plan.contains("nothing to change"), "{plan}");
    shop.0.down();
}

#[test]
fn an_edge_that_is_killed_comes_back_and_knows_who_answers() {
    need_root!("edge::update::an_edge_that_is_killed_comes_back_and_knows_who_answers");
    let shop = Shop::new(&version(2, "1"));
    // What it was told last isn't what the first one was told.
    shop.up(&version(1, "2")).expect(0);
    let pid = shop.0.pid("palisade-edge.1").unwrap();
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    patiently("another process of the edge", || shop.0.pid("palisade-edge.1").filter(|new| *new != pid));
    patiently("an answer", || {
        let (code, text) = shop.curl(&["https://shop.example/"]);
        assert!(code != Some(0) || text.starts_with("version 2 "), "{text}");
        (code == Some(0)).then_some(())
    });
    // An instance that dies gets no more requests, and one that comes back does.
    shop.up(&version(2, "3")).expect(0);
    std::thread::sleep(Duration::from_millis(100));
    shop.0.palisade(&["prove"]).expect(0);
    shop.0.down();
}
