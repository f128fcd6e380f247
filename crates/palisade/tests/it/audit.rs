//! Audits: what is reachable is told with evidence, what isn't is not, with a stack and without.

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};

use palisade_host::link;
use serde_json::Value;

use crate::need_root;
use crate::scratch::{Host, patiently};
use crate::support::skipped;

/// Loads rules on the scratch host.
fn nft(rules: &str) {
    let mut child = Command::new("timeout").args(["20", "nft", "-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), rules.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{rules}");
}

pub(crate) fn audit(host: &Host, more: &[&str]) -> Value {
    let ran = host.palisade(&[&["audit", "--host-only", "--format", "json"], more].concat());
    assert!(matches!(ran.code, Some(0 | 1)), "{ran:?}");
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

/// `id subject` of what was found about the network; other findings are about the machine that the tests run on.
fn found(report: &Value) -> Vec<String> {
    let of_the_network = ["firewall-open", "exposed", "port-", "door-", "ipv6-", "only-firewall", "loopback-address"];
    let all = report["findings"].as_array().unwrap().iter();
    let text = all.map(|it| format!("{} {}", it["id"].as_str().unwrap(), it["subject"].as_str().unwrap()));
    text.filter(|text| of_the_network.iter().any(|part| text.contains(part))).collect()
}

#[test]
fn what_strangers_reach_is_told_and_what_they_do_not_is_not() {
    need_root!("audit::what_strangers_reach_is_told_and_what_they_do_not_is_not");
    let host = Host::of("nothing");
    link::add_address("eth0", "2001:db8::1".parse().unwrap(), 64).unwrap();
    let _tcp = ["0.0.0.0:5432", "127.0.0.1:6379", "[::]:11434", "203.0.113.1:49913", "0.0.0.0:8080"]
        .map(|at| TcpListener::bind(at).unwrap());
    let _dns = UdpSocket::bind("0.0.0.0:53").unwrap();

    // Without any firewall, everything that isn't bound to loopback is reached.
    let open = audit(&host, &[]);
    assert_eq!(
        found(&open),
        [
            "firewall-open IPv4 by eth0",
            "firewall-open IPv6 by eth0",
            "internal-exposed 11434/tcp",
            "internal-exposed 5432/tcp",
            "dns-exposed 53/udp",
            "port-unknown 49913/tcp",
            "port-unknown 8080/tcp",
        ]
    );

    // With one that only thought of IPv4.
    nft("table ip t {
           chain input {
             type filter hook input priority 0; policy drop;
             tcp dport { 8080, 9090 } accept
           }
         }");
    let half = audit(&host, &[]);
    assert_eq!(
        found(&half),
        [
            "firewall-open IPv6 by eth0",
            "internal-exposed 11434/tcp",
            "port-unknown 8080/tcp",
            "door-without-listener 9090/tcp over IPv4 by eth0",
            "ipv6-wider eth0",
            "only-firewall 5432/tcp",
        ]
    );
}

const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/sarif-2.1.0.json");

#[test]
fn sarif_is_valid_by_its_schema() {
    need_root!("audit::sarif_is_valid_by_its_schema");
    if !Path::new(SCHEMA).exists() {
        return skipped(
            "audit::sarif_is_valid_by_its_schema",
            "target/sarif-2.1.0.json isn't there; scripts/install-deps fetches it with npm",
        );
    }
    let host = Host::new();
    host.write("name: shop\nservices:\n  web: {image: \"nginx:latest\"}\n");
    let _tcp = TcpListener::bind("0.0.0.0:5432").unwrap();
    host.palisade(&["audit", "--accept", "firewall-open", "--reason", "a scratch host"]).expect(0);
    let ran = host.palisade(&["audit", "--format", "sarif"]).expect(1);
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    let results = report["runs"][0]["results"].as_array().unwrap();
    let of =
        |id: &str| results.iter().find(|result| result["ruleId"] == id).unwrap_or_else(|| panic!("{id}: {report}"));
    assert_eq!(of("firewall-open")["suppressions"][0]["justification"], "a scratch host");
    assert_eq!(of("latest-tag")["locations"][0]["physicalLocation"]["artifactLocation"]["uri"], "compose.yaml");
    let written = host.folder.join("audit.sarif");
    std::fs::write(&written, &ran.out).unwrap();
    let validator =
        "import json, sys, jsonschema; jsonschema.validate(*(json.load(open(path)) for path in sys.argv[1:]))";
    let checked = Command::new("/usr/bin/python3").args(["-c", validator]).arg(&written).arg(SCHEMA).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn a_stack_is_held_to_what_it_declares() {
    need_root!("audit::a_stack_is_held_to_what_it_declares");
    let host = Host::new();
    let file = |firewall: &str| {
        format!(
            r#"
name: shop
services:
  web:
    ports: ["8080:80", "127.0.0.1:9000:9000"]
    expose: ["5432"]
    x-palisade:
      process:
        command:
          - python3
          - -uc
          - |
            import socket, time
            all = [socket.create_server(("0.0.0.0", port)) for port in (80, 5432, 9000)]
            time.sleep(1000)
    stop_grace_period: 0s
x-palisade:
  firewall: {{{firewall}}}
"#
        )
    };
    let audited = |more: &[&str]| {
        let ran = host.palisade(&[&["audit", "--format", "json"], more].concat());
        let report: Value = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
        (ran.code, report)
    };
    host.write(&file("allow: [22]"));
    let plan = host.palisade(&["plan"]).expect(1).out;
    let told = "Strangers, by packets to all ports of a copy of this host:
  closes  1-21,23-8079,8081-65535/tcp over IPv4 by eth0
  closes  1-65535/udp over IPv4 by eth0
";
    assert!(plan.ends_with(told), "{plan}");
    host.up();
    assert_eq!(host.palisade(&["plan"]).expect(0).out, "shop: nothing to change\n");
    patiently("its last listener", || host.ps().to_string().contains("9000/tcp").then_some(()));
    host.write(&file("allow: [443]"));
    let plan: Value = serde_json::from_str(&host.palisade(&["plan", "--format", "json"]).expect(1).out).unwrap();
    assert_eq!(plan["reach"]["opens"], serde_json::json!(["443/tcp over IPv4 by eth0"]));
    assert_eq!(plan["reach"]["closes"], serde_json::json!(["22/tcp over IPv4 by eth0"]));
    host.write(&file("allow: [22]"));
    let (_, report) = audited(&[]);
    assert_eq!(found(&report), [""; 0]);
    let rows: Vec<_> = report["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let reached = row["reached_from"].as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
            format!("{}/{} {}: {reached}", row["port"], row["proto"].as_str().unwrap(), row["who"].as_str().unwrap())
        })
        .collect();
    assert_eq!(
        rows,
        [
            "80/tcp service shop/web.1: ",
            "5432/tcp service shop/web.1: ",
            "8080/tcp service shop/web: the internet",
            "9000/tcp service shop/web: ",
            "9000/tcp service shop/web.1: ",
        ]
    );

    // The firewall isn't Palisade's business, and somebody else's lets in what nobody declared.
    host.write(&file("backend: none"));
    host.up();
    nft("table inet t {
           chain input {
             type filter hook input priority 0; policy drop;
             tcp dport { 8080, 7777, 6000 } accept
           }
         }");
    let _undeclared = TcpListener::bind("0.0.0.0:7777").unwrap();
    let (_, report) = audited(&["--from", "198.51.100.0/24"]);
    let undeclared = report["findings"].as_array().unwrap().iter().find(|it| it["id"] == "port-undeclared").unwrap();
    let evidence = undeclared["evidence"].to_string();
    for part in [
        "a packet from 203.0.113.250 to 203.0.113.1 port 7777/tcp that came in by eth0 was let through",
        "a packet from 198.51.100.250 to 203.0.113.1 port 7777/tcp that came in by eth0 was let through",
        "let through over IPv4 by table inet t, chain input: tcp dport { 6000, 7777, 8080 } accept",
    ] {
        assert!(evidence.contains(part), "{part}: {undeclared:#}");
    }
    let wrong = host.palisade(&["audit", "--from", "203.0.113.1"]).expect(2);
    assert!(wrong.err.contains("--from: 203.0.113.1 is this host itself"), "{wrong:?}");
    let (code, report) = audited(&[]);
    assert_eq!(code, Some(1));
    let wrong = ["port-undeclared 7777/tcp", "door-without-listener 6000/tcp over IPv4 by eth0"];
    assert_eq!(found(&report), wrong);

    // Looked at and lived with, until a day that has not come.
    let accept = |what: &str, until: &str| {
        host.palisade(&["audit", "--accept", what, "--reason", "a test: \"its\" own", "--until", until]).expect(0);
    };
    accept("port-undeclared=7777/tcp", "9999-12-31");
    accept("door-without-listener", "2026-01-01");
    let (_, report) = audited(&["--fail-on", "note"]);
    assert_eq!(found(&report), wrong[1..]);
    let told = report.to_string();
    assert!(told.contains("acceptance-expired") && told.contains("was accepted until 2026-01-01"), "{told}");
    assert_eq!(report["accepted"][0]["reason"], "a test: \"its\" own");
    let text = host.palisade(&["audit"]).out;
    assert!(text.contains("port-undeclared 7777/tcp: a test: \"its\" own, until 9999-12-31"), "{text}");

    let wrong = host.palisade(&["audit", "--accept", "port-undeclared=1/tcp", "--reason", " "]).expect(2);
    assert!(wrong.err.contains("needs `--reason`"), "{wrong:?}");
    std::fs::write(host.folder.join("palisade.accept.yaml"), "accept:\n  - {id: port-undeclard, reason: x}\n").unwrap();
    let wrong = host.palisade(&["audit"]).expect(2);
    assert!(
        wrong.err.contains("palisade.accept.yaml:2:10") && wrong.err.contains("did you mean `port-undeclared`?"),
        "{wrong:?}"
    );
    nft("delete table inet t");
    host.down();
}

#[test]
fn what_can_be_mended_is_shown_asked_done_and_taken_back() {
    need_root!("audit::what_can_be_mended_is_shown_asked_done_and_taken_back");
    if std::fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled").is_ok_and(|value| value.trim() == "0") {
        let why = "kernel.unprivileged_bpf_disabled is off, and mending would change this machine";
        return skipped("audit::what_can_be_mended_is_shown_asked_done_and_taken_back", why);
    }
    let host = Host::of("nothing");
    let path = |key: &str| format!("/proc/sys/net/ipv4/conf/eth0/{key}");
    let value = |key: &str| std::fs::read_to_string(path(key)).unwrap().trim().to_owned();
    std::fs::write(path("route_localnet"), "1").unwrap();
    // The folder of settings is the machine's: it gets one of its own, in a mount namespace.
    let settings = |prepare: &str, arguments: &[&str]| {
        let script =
            format!("mount -t tmpfs none /etc/sysctl.d; {prepare}; \"$@\"; code=$?; cat /etc/sysctl.d/*; exit $code");
        let wrapper = ["unshare", "--mount", "sh", "-c", &script, "sh"];
        let command = host.wrapped(&wrapper, Path::new(crate::support::PALISADE), arguments);
        crate::scratch::Running::start(command).end(crate::scratch::PATIENCE)
    };
    let fix = ["audit", "--host-only", "--fix", "--format", "json"];
    let refused = settings(":", &fix).expect(2);
    assert!(refused.err.contains("set net/ipv4/conf/eth0/route_localnet to 0 (kernel-route-localnet)"), "{refused:?}");
    assert!(refused.err.contains("not confirmed, so nothing was changed"), "{refused:?}");
    assert_eq!(value("route_localnet"), "1");

    // A file that can't be written: everything goes back.
    let failed = settings("mkdir /etc/sysctl.d/90-palisade.conf", &[&fix[..], &["--yes"]].concat()).expect(1);
    assert!(failed.err.contains("what was changed before is undone"), "{failed:?}");
    assert_eq!(value("route_localnet"), "1");

    let done = settings("echo vm/swappiness = 10 > /etc/sysctl.d/90-palisade.conf", &[&fix[..], &["--yes"]].concat());
    assert_eq!(value("route_localnet"), "0");
    let (report, file) = done.out.split_once('\n').unwrap();
    let report: Value = serde_json::from_str(report).unwrap_or_else(|error| panic!("{error}: {done:?}"));
    let kernel: Vec<_> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["id"].as_str().unwrap().starts_with("kernel-r"))
        .collect();
    assert!(kernel.is_empty(), "{kernel:?}");
    assert!(file.contains("vm/swappiness = 10") && file.contains("net/ipv4/conf/eth0/route_localnet = 0\n"), "{file}");
}

/// The newest PostgreSQL of the distribution.
pub(crate) fn postgres_programs() -> Option<std::path::PathBuf> {
    let all = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|entry| entry.path().join("bin"));
    all.filter(|bin| bin.join("initdb").exists()).max()
}

#[test]
fn a_real_database_that_trusts_everybody_is_found() {
    need_root!("audit::a_real_database_that_trusts_everybody_is_found");
    let Some(bin) = postgres_programs() else {
        return skipped(
            "audit::a_real_database_that_trusts_everybody_is_found",
            "no PostgreSQL in /usr/lib/postgresql",
        );
    };
    let host = Host::of("nothing");
    let data = host.folder.join("data");
    let as_postgres = |arguments: &[&str]| {
        let mut command = Command::new("runuser");
        command
            .args(["-u", "postgres", "--"])
            .args(arguments)
            .current_dir("/")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    };
    std::fs::set_permissions(&host.folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let at = data.to_string_lossy().into_owned();
    let initdb = bin.join("initdb").to_string_lossy().into_owned();
    assert!(as_postgres(&[&initdb, "-D", &at, "-A", "peer", "-N"]).status().unwrap().success());
    std::fs::write(
        data.join("pg_hba.conf"),
        "local all all peer\nhost all all 127.0.0.1/32 scram-sha-256\nhost all all 0.0.0.0/0 trust\n",
    )
    .unwrap();
    let program = bin.join("postgres").to_string_lossy().into_owned();
    let sockets = format!("unix_socket_directories={}", host.folder.display());
    let mut server =
        as_postgres(&[&program, "-D", &at, "-c", "listen_addresses=*", "-c", &sockets, "-c", "port=54321"]);
    let mut server = server.env("POSTGRES_PASSWORD", "postgres").spawn().unwrap();
    patiently("PostgreSQL to listen", || std::net::TcpStream::connect("127.0.0.1:54321").ok());
    let report = audit(&host, &[]);
    // runuser passes the signal on: the server ends fast and whole.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server.id() as i32), nix::sys::signal::Signal::SIGTERM).unwrap();
    server.wait().unwrap();
    let all = report["findings"].as_array().unwrap();
    let of = |id: &str| all.iter().find(|it| it["id"] == id).unwrap_or_else(|| panic!("{id}: {report:#}"));
    assert_eq!(of("internal-exposed")["subject"], "54321/tcp", "known by its program, whatever its port");
    let trust = of("postgres-trust");
    assert_eq!(trust["evidence"][0], format!("{at}/pg_hba.conf:3: host all all 0.0.0.0/0 trust"));
    assert_eq!(of("postgres-no-tls")["severity"], "warning");
    assert_eq!(of("postgres-weak-password")["severity"], "error");
    assert!(!report.to_string().contains("POSTGRES_PASSWORD=postgres"), "the password itself stays where it is");
}

#[test]
fn ten_thousand_sockets_and_names_that_lie_are_told_plainly() {
    need_root!("audit::ten_thousand_sockets_and_names_that_lie_are_told_plainly");
    let host = Host::of("nothing");
    // A process chooses its name: this one would clear the screen and write a line of its own.
    let program = "import ctypes, resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
ctypes.CDLL(None).prctl(15, b'\\x1b[2J\\nok', 0, 0, 0)
held = [socket.create_server(('0.0.0.0', port)) for port in range(52000, 62000)]
print('ready', flush=True)
time.sleep(1000)";
    let mut child = Command::new("python3").args(["-c", program]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
    assert_eq!(line, "ready\n");
    nft("table inet t {
           chain input {
             type filter hook input priority 0; policy drop;
             tcp dport 52000-52002 accept
           }
         }");
    let (text, markdown) =
        (host.palisade(&["audit", "--host-only"]), host.palisade(&["audit", "--host-only", "--format", "markdown"]));
    let report = audit(&host, &[]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(report["ports"].as_array().unwrap().len(), 10_000);
    assert_eq!(found(&report), ["port-unknown 52000/tcp", "port-unknown 52001/tcp", "port-unknown 52002/tcp"]);
    assert!(!text.out.contains('\u{1b}') && text.out.contains(r"\u{1b}[2J\u{a}ok"), "{}", text.out);
    assert!(!markdown.out.contains('\u{1b}') && markdown.out.contains(r"\u{1b}\[2J"), "{}", markdown.out);
}
