//! The port document: the same for everybody, told when it is out of date, and held against a host that runs.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::need_root;
use crate::scratch::{Host, Running};
use crate::support::PALISADE;

const FILE: &str = r#"
name: shop
services:
  web:
    ports: ["8080:80"]
    environment: { SECRET_KEY: correct-horse-battery }
    x-palisade:
      connect: ["db:5432"]
      process: { command: [python3, -uc, &serve "import socket, sys, time; all = [socket.create_server(('0.0.0.0', int(port))) for port in sys.argv[1:]]; time.sleep(1000)", "80"] }
    stop_grace_period: 0s
  db:
    expose: ["5432"]
    x-palisade:
      egress: none
      process: { command: [python3, -uc, *serve, "5432"] }
    stop_grace_period: 0s
"#;

/// A folder with a Compose file, for what needs no root.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(test: &str, text: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("palisade-test-{}-ports-{test}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("compose.yaml"), text).unwrap();
        Self(folder)
    }

    fn run(&self, at: &Path, arguments: &[&str]) -> (Option<i32>, String) {
        // Nothing of this name is up on this machine, so that the host isn't looked at.
        let mut command = Command::new(PALISADE);
        command.args(["--realm", "palisade-test-nowhere"]).args(arguments).current_dir(at).env("NO_COLOR", "1");
        let ran = Running::start(command).end(crate::scratch::PATIENCE);
        (ran.code, ran.out + &ran.err)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_document_is_the_same_wherever_it_is_asked_for() {
    let folder = Folder::new("same", FILE);
    let (code, text) = folder.run(&folder.0, &["ports"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains("correct-horse"), "{text}");
    assert!(!text.contains(&*folder.0.to_string_lossy()), "{text}");
    assert!(
        text.contains("| 8080/tcp | web (port 80 inside) | **public** | anybody | ports: compose.yaml, line 5 |"),
        "{text}"
    );
    assert!(text.contains("| 5432/tcp | db | private | web | expose: compose.yaml, line 12 |"), "{text}");
    assert!(text.contains("| web | db: port 5432/tcp | x-palisade.connect: compose.yaml, line 8 |"), "{text}");
    let file = folder.0.join("compose.yaml");
    let elsewhere = folder.run(Path::new("/"), &["-f", file.to_str().unwrap(), "ports"]);
    assert_eq!(elsewhere, (code, text.clone()));

    let (code, said) = folder.run(Path::new("/"), &["-f", file.to_str().unwrap(), "ports", "--write"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::read_to_string(folder.0.join("PORTS.md")).unwrap(), text);
    let names: Vec<_> = fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn the_document_of_the_example_is_up_to_date() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/barter");
    let mut command = Command::new(PALISADE);
    command.args(["--realm", "palisade-test-nowhere", "ports", "--check"]).current_dir(example);
    Running::start(command).end(crate::scratch::PATIENCE).expect(0);
}

#[test]
fn what_changed_is_told_line_by_line() {
    let folder = Folder::new("stale", FILE);
    let check = || folder.run(&folder.0, &["ports", "--check"]);
    let (code, said) = check();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("PORTS.md doesn't exist") && said.contains("--write"), "{said}");
    folder.run(&folder.0, &["ports", "--write"]);
    let (code, said) = check();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("Only the file was compared: "), "{said}");

    // A comment opens no port.
    fs::write(folder.0.join("compose.yaml"), format!("# why\n{FILE}")).unwrap();
    let (code, said) = check();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("only lines have moved"), "{said}");

    fs::write(folder.0.join("compose.yaml"), FILE.replace("8080:80", "8081:80")).unwrap();
    let (code, said) = check();
    assert_eq!(code, Some(1), "{said}");
    let lines: Vec<_> = said.lines().filter(|line| line.contains(" - | ") || line.contains(" + | ")).collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].contains("- | 8080/tcp | web") && lines[1].contains("+ | 8081/tcp | web"), "{said}");
    let (code, said) = folder.run(&folder.0, &["ports", "--check", "--format", "json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &said["stale"], &said["host"]["compared"]), (Some(1), &true.into(), &false.into()));
    assert_eq!(said["changes"][0]["change"], "gone");
}

#[test]
fn a_host_that_has_more_than_the_document_is_told() {
    need_root!("ports::a_host_that_has_more_than_the_document_is_told");
    let host = Host::new();
    host.write(FILE);
    host.up();
    host.palisade(&["ports", "--write"]).expect(0);
    let clean = host.palisade(&["ports", "--check"]).expect(0);
    assert!(clean.out.contains("nothing that the Compose file doesn't declare"), "{clean:?}");

    // A debugger that nobody wrote down: db may connect to it, as nothing narrows whom it connects to.
    host.write(
        &FILE
            .replace("*serve, \"5432\"", "*serve, \"5432\", \"6061\"")
            .replace("*serve, \"80\"", "*serve, \"80\", \"6060\"")
            .replace("\"80\"] }", "\"80\", \"6060\"] }"),
    );
    host.up();
    // Somebody else's firewall rule comes after Palisade's table and can't open it; a hole in ours can.
    let hole = format!("add element inet {} published.shop {{ tcp . 7777 }}", host.layout.realm);
    let status = Command::new("timeout").args(["20", "nft", &hole]).status().unwrap();
    assert!(status.success());
    let _squatter = TcpListener::bind("0.0.0.0:7777").unwrap();
    let found = host.palisade(&["ports", "--check", "--format", "json"]).expect(1);
    let said: Value = serde_json::from_str(&found.out).unwrap();
    assert_eq!((&said["stale"], &said["host"]["compared"]), (&false.into(), &true.into()));
    let subjects: Vec<_> =
        said["findings"].as_array().unwrap().iter().map(|it| it["subject"].as_str().unwrap()).collect();
    assert_eq!(subjects, ["7777/tcp", "web:6060/tcp"], "{found:?}");
    host.down();
}
