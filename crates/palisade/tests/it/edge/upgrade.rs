//! Palisade itself is upgraded as a package manager does it, while a stack runs: its file is replaced, and what runs goes on
//! from the old one until `up`, which replaces the edge and the agent.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::load::Load;
use super::shop::{APP, Shop};
use crate::need_root;
use crate::scratch::{Host, PATIENCE, Ran, Running, patiently};
use crate::support::PALISADE;

/// The name and length of the note that holds the linker's digest, which follows.
const NOTE: &[u8] = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0";

/// Another version of the program: as far as anybody can tell, as the linker's digest is another one.
fn other_version(path: &Path) {
    let mut bytes = fs::read(PALISADE).unwrap();
    let at = bytes.windows(NOTE.len()).position(|window| window == NOTE).expect("a build id") + NOTE.len();
    bytes[at] ^= 0xff;
    install(&bytes, path);
}

/// A new file in the place of the old one, which is gone by name only.
fn install(bytes: &[u8], path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let beside = path.with_extension("new");
    fs::write(&beside, bytes).unwrap();
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&beside, path).unwrap();
}

fn run(host: &Host, program: &Path, arguments: &[&str]) -> Ran {
    Running::start(host.wrapped(&[], program, arguments)).end(PATIENCE)
}

#[test]
fn a_newer_palisade_takes_the_place_of_the_one_that_serves_without_a_gap() {
    need_root!("edge::upgrade::a_newer_palisade_takes_the_place_of_the_one_that_serves_without_a_gap");
    let host = Host::new();
    let program = host.folder.join("palisade");
    install(&fs::read(PALISADE).unwrap(), &program);
    host.write(&APP.replace("certificates: {default: local}", "certificates: {default: local}\n    http3: true"));
    run(&host, &program, &["up", "--wait"]).expect(0);
    let shop = Shop(host);
    let host = &shop.0;
    let programs = || {
        let folder = fs::read_dir(host.layout.programs()).unwrap().flatten();
        let mut names: Vec<_> = folder.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let (before, agent) = (programs(), host.agent().unwrap());
    assert_eq!(before.len(), 1, "{before:?}");

    other_version(&program);
    // What is killed comes back as what it was: nobody has asked for the newer version yet.
    let old = host.pid("palisade-edge.1").unwrap();
    kill(Pid::from_raw(old as i32), Signal::SIGKILL).unwrap();
    patiently("another process of the edge", || host.pid("palisade-edge.1").filter(|new| *new != old));
    let healthy = || {
        let ps = host.ps();
        let all = ps["instances"].as_array()?.iter();
        all.filter(|seen| seen["instance"] == "palisade-edge.1").find(|seen| seen["health"] == "healthy").map(drop)
    };
    patiently("a healthy edge", healthy);
    assert_eq!(programs(), before);

    let load = Load::start(&shop);
    let plan = run(host, &program, &["plan"]).expect(1).out;
    for step in [
        "replace the agent (it is of another version of Palisade)",
        "start palisade-edge.2",
        "send new connections for palisade-edge to palisade-edge.2",
        "changed: palisade",
    ] {
        assert!(plan.contains(step), "{plan}");
    }
    assert!(!plan.contains(" app.1"), "services have nothing of it: {plan}");
    run(host, &program, &["up", "--wait"]).expect(0);
    assert_eq!(shop.edges(), ["palisade-edge.2"]);
    let after = programs();
    assert!(after.len() == 1 && after != before, "{after:?}");
    load.wait_for("version 1", 100);
    load.end();
    let plan = run(host, &program, &["plan"]).expect(0).out;
    assert!(plan.contains("nothing to change"), "{plan}");

    // Who looks after them is of the new version, too.
    let exe = |pid: i32| fs::read_link(format!("/proc/{pid}/exe")).unwrap().to_string_lossy().into_owned();
    assert_ne!(host.agent(), Some(agent));
    assert_eq!(exe(host.agent().unwrap()), program.display().to_string());
    run(host, &program, &["down", "--volumes", "--yes"]).expect(0);
    host.assert_nothing_left();
}
