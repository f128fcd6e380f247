//! Bad days of an engine: it dies in the middle of an update, containers are taken away, the disk is full, a volume is
//! in use. What served before serves on, the message says what happened, and the next `up` finishes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::MsFlags;

use crate::dockerd::{self, Dockerd, IMAGE};
use crate::engine::{with_engine, with_engine_on};
use crate::need_root;
use crate::scratch::{HOST, Host, Ran, patiently};
use crate::support::skipped;

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
        command.args(["10", "busybox", "wget", "-q", "-O-", &format!("http://{HOST}:8080/")]);
        command.stdin(Stdio::null()).output().unwrap()
    };
    let output = host.internet.run(ask).unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[track_caller]
fn serves(host: &Host, version: u32) {
    patiently(&format!("version {version}"), || (served(host) == Some(version.to_string())).then_some(()));
}

/// Runs `up` and lets something happen as soon as so many lines of progress were shown.
fn up_when(mut command: Command, lines: usize, mut happens: impl FnMut()) -> Ran {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let (mut said, mut steps) = (String::new(), 0);
    if lines == 0 {
        happens();
    }
    let mut child = command.spawn().unwrap();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        steps += usize::from(line.starts_with('['));
        if steps == lines && line.starts_with('[') {
            happens();
        }
        said += &line;
        said.push('\n');
    }
    Ran { code: child.wait().unwrap().code(), out: String::new(), err: said }
}

/// `up` with the engine.
fn up(host: &Host, engine: &Dockerd) -> Command {
    let mut command = host.command(&["up"]);
    command.env("DOCKER_HOST", engine.socket());
    command
}

/// One of these two versions is served.
#[track_caller]
fn serves_either(host: &Host, version: u32, when: &str, ran: &Ran) {
    // Whoever takes over may not be asked while the machine is busy.
    let now = (0..5).find_map(|_| served(host));
    let expected = [version, version + 1].map(|version| Some(version.to_string()));
    assert!(expected.contains(&now), "{when}, {now:?} is served:\n{}", ran.err);
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
            let ran = up_when(up(host, engine), lines, || engine.kill());
            serves_either(host, version, &format!("killed after {lines} steps"), &ran);
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

#[test]
fn containers_that_are_taken_away_during_an_update() {
    need_root!("containers_that_are_taken_away_during_an_update");
    with_engine("containers_that_are_taken_away_during_an_update", |host, engine| {
        host.write(&shop(1));
        engine.palisade(host, &["up", "--wait"]).expect(0);
        serves(host, 1);
        let containers = |engine: &Dockerd| engine.docker(&["ps", "--all", "--format", "{{.Names}}"]).unwrap();
        let mut of_older = containers(engine);
        // The newer one, when it was started and when it has taken over; the older one at the same moments.
        for (version, (lines, newer)) in (1..).zip([(2, true), (4, true), (2, false), (4, false)]) {
            host.write(&shop(version + 1));
            let older = of_older.clone();
            let mut took = None;
            let ran = up_when(up(host, engine), lines, || {
                let name = containers(engine).lines().find(|name| (*name != older) == newer).map(str::to_owned);
                took = Some(engine.docker(&["rm", "--force", &name.unwrap()]));
            });
            // Palisade may be about to take the older one away itself.
            let gone = ["No such container", "already in progress"];
            let was_there = took.as_ref().is_some_and(|took| {
                took.as_ref().err().is_none_or(|said| !newer && gone.iter().any(|words| said.contains(words)))
            });
            assert!(was_there, "{took:?}\n{}", ran.err);
            patiently(&format!("either version, after:\n{}", ran.err), || served(host));
            engine.palisade(host, &["up", "--wait"]).expect(0);
            serves(host, version + 1);
            of_older = containers(engine);
            assert_eq!(of_older.lines().count(), 1, "{of_older}");
        }
        engine.palisade(host, &["prove"]).expect(0);
        engine.palisade(host, &["down", "--volumes", "--yes"]).expect(0);
        host.assert_nothing_left();
    });
}

/// The same server as a process.
fn shop_of_processes(version: u32) -> String {
    let command = "mkdir -p /tmp/w; echo $$V >/tmp/w/index.html; exec busybox httpd -f -p 8080 -h /tmp/w";
    format!(
        r#"
name: shop
services:
  web:
    environment: {{V: "{version}"}}
    ports: ["8080:8080"]
    restart: always
    stop_grace_period: 1s
    deploy: {{update_config: {{monitor: 500ms}}}}
    healthcheck: {{test: [CMD, busybox, wget, -q, -O-, "http://127.0.0.1:8080/"], interval: 1s, start_period: 3s, start_interval: 200ms}}
    x-palisade: {{process: {{command: [sh, -c, "{command}"]}}}}
"#
    )
}

/// A small memory file system at a place that only this thread and what it starts sees.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(path: PathBuf, bytes: u32) -> Self {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        fs::create_dir_all(&path).unwrap();
        let size = format!("size={bytes},mode=700");
        nix::mount::mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        Self(path)
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("fill")).unwrap();
        while file.write(&[0; 512]).is_ok_and(|written| written > 0) {}
    }

    fn free(&self) {
        fs::remove_file(self.0.join("fill")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
        // What it was mounted on.
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_disk_that_is_full_of_something_else() {
    need_root!("a_disk_that_is_full_of_something_else");
    if let Some(why) = dockerd::missing() {
        return skipped("a_disk_that_is_full_of_something_else", &why);
    }
    let host = Host::new();
    let of_realm = |base: &str| Path::new(base).join(&host.layout.realm);
    for folder in [of_realm("/run"), of_realm("/var/lib")] {
        let disk = SmallDisk::at(folder.clone(), 1 << 20);
        host.write(&shop_of_processes(1));
        host.up();
        serves(&host, 1);
        for (version, lines) in (1..).zip([0, 1, 2, 3, 4, 6]) {
            host.write(&shop_of_processes(version + 1));
            let ran = up_when(host.command(&["up"]), lines, || disk.fill());
            serves_either(&host, version, &format!("{} was full after {lines} steps", folder.display()), &ran);
            if ran.code != Some(0) {
                assert!(ran.err.contains("No space left on device"), "{}", ran.err);
            }
            disk.free();
            host.up();
            serves(&host, version + 1);
        }
        host.palisade(&["prove"]).expect(0);
        host.palisade(&["down", "--volumes", "--yes"]).expect(0);
        drop(disk);
        host.assert_nothing_left();
    }
}

#[test]
fn an_engine_whose_disk_is_full() {
    const TEST: &str = "an_engine_whose_disk_is_full";
    need_root!("an_engine_whose_disk_is_full");
    with_engine_on("shop", Some("64m"), TEST, |host, engine| {
        host.write(&shop(1));
        engine.palisade(host, &["up", "--wait"]).expect(0);
        serves(host, 1);
        for (version, lines) in (1..).zip([0, 2, 4]) {
            host.write(&shop(version + 1));
            let ran = up_when(up(host, engine), lines, || {
                engine.on_its_disk("cat /dev/zero >\"$DATA/fill\"; true");
            });
            serves_either(host, version, &format!("the engine's disk was full after {lines} steps"), &ran);
            if ran.code != Some(0) {
                assert!(ran.err.contains("no space left on device"), "{}", ran.err);
            }
            engine.on_its_disk("rm \"$DATA/fill\"");
            engine.palisade(host, &["up", "--wait"]).expect(0);
            serves(host, version + 1);
        }
        engine.palisade(host, &["down", "--volumes", "--yes"]).expect(0);
        host.assert_nothing_left();
    });
}

#[test]
fn a_volume_that_somebody_else_uses_is_kept_and_named() {
    const TEST: &str = "a_volume_that_somebody_else_uses_is_kept_and_named";
    need_root!("a_volume_that_somebody_else_uses_is_kept_and_named");
    with_engine(TEST, |host, engine| {
        let more = "    volumes: [\"data:/data\"]\nvolumes: {data: {}}\n";
        host.write(&format!("{}{more}", shop(1)));
        engine.palisade(host, &["up", "--wait"]).expect(0);
        let other = ["run", "--detach", "--name", "backup", "--network", "none", "--volume", "shop_data:/data", IMAGE];
        engine.docker(&[&other[..], &["sleep", "1000"]].concat()).unwrap();
        let ran = engine.palisade(host, &["down", "--volumes", "--yes"]);
        let expected = "can't delete volume shop_data, which container backup of somebody else has mounted";
        assert!(ran.err.contains(expected) && ran.err.contains("docker rm --force backup"), "{}", ran.err);
        ran.expect(1);
        assert_eq!(engine.docker(&["volume", "ls", "--quiet"]).unwrap(), "shop_data");
        assert_eq!(served(host).as_deref(), Some("1"), "nothing was changed");
        engine.docker(&["rm", "--force", "backup"]).unwrap();
        engine.palisade(host, &["down", "--volumes", "--yes"]).expect(0);
        assert_eq!(engine.docker(&["volume", "ls", "--quiet"]).unwrap(), "");
        host.assert_nothing_left();
    });
}
