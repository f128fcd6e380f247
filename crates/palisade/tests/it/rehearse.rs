//! Rehearsals and proofs: a good stack is proven, the reference stack works for a stranger who may use it, and what isn't
//! as the file says is found, told, and cleared.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::need_root;
use crate::scratch::{HOST, Host, Ran, Running, left_at_last, left_of};
use crate::support::skipped;

pub(crate) const BARTER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/barter");

/// The reference stack needs more than a machine without `scripts/test` has.
pub(crate) fn barter_is_missing() -> Option<String> {
    for program in ["barter", "ollama-stand-in"] {
        if !Path::new(BARTER).join("bin").join(program).exists() {
            return Some(format!("examples/barter/bin/{program} isn't built; scripts/test builds it"));
        }
    }
    let list = "ls -d /usr/lib/postgresql/*/bin/postgres /usr/pgsql-*/bin/postgres /usr/bin/postgres";
    let found = Command::new("sh").args(["-c", list]).output().is_ok_and(|output| !output.stdout.is_empty());
    (!found).then(|| "no PostgreSQL server is installed".to_owned())
}

/// Rehearses, and makes sure that nothing is left of it.
#[track_caller]
fn rehearse(host: &Host, arguments: &[&str]) -> Ran {
    let running = Running::start(host.command(arguments));
    let realm = format!("palisade-rehearse-{}", running.pid());
    let ran = running.end(Duration::from_secs(200));
    assert_eq!(left_at_last(|| left_of(&realm)), Vec::<String>::new(), "{ran:?}");
    host.assert_nothing_left();
    ran
}

fn report(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

/// Identifiers of all findings in a report of a rehearsal or a proof.
fn findings(report: &Value) -> Vec<String> {
    let parts = report.as_object().unwrap().values().filter_map(|part| part["findings"].as_array());
    let mut all: Vec<String> = parts.flatten().map(|finding| finding["id"].as_str().unwrap().to_owned()).collect();
    all.sort();
    all.dedup();
    all
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn the_reference_stack_is_proven() {
    need_root!("rehearse::the_reference_stack_is_proven");
    if let Some(why) = barter_is_missing() {
        return skipped("rehearse::the_reference_stack_is_proven", &why);
    }
    let host = Host::of("barter");
    let file = format!("{BARTER}/compose.yaml");
    let ran = rehearse(&host, &["rehearse", &file, "--format", "json"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report = report(&ran);
    assert_eq!((&report["version"], &report["stack"]), (&json!(1), &json!("barter")));
    assert_eq!(findings(&report), Vec::<String>::new());
    assert_eq!(keys(&report["doors"]["open"]), ["8081/tcp over IPv4", "8081/tcp over IPv6"]);
    assert_eq!(report["doors"]["tried"], 4 * 65_535);
    // Real connections agree, also without any firewall.
    for stranger in ["stranger", "without_firewall"] {
        let open = &report[stranger]["open"];
        assert_eq!(keys(open), ["203.0.113.1:8081"], "{stranger}");
        assert_eq!(open["203.0.113.1:8081"], "HTTP/1.1 200 OK", "{stranger}");
    }
    let reached: Vec<String> = report["peers"]["pairs"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|pair| pair["allowed"] == true)
        .map(|pair| format!("{} {}", pair["client"].as_str().unwrap(), pair["server"].as_str().unwrap()))
        .collect();
    assert_eq!(reached, ["app postgres", "app ollama"]);
    assert_eq!(report["peers"]["pairs"].as_array().unwrap().len(), 6);
}

/// Asks the host's port 8081 from the internet; returns the status and the body.
pub(crate) fn ask(host: &Host, method: &str, path: &str, body: &str) -> (u16, Value) {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: barter.example\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let answer = host.internet.run(move || {
        let wait = Some(Duration::from_secs(20));
        let mut stream = TcpStream::connect(SocketAddr::new(HOST, 8081)).unwrap();
        stream.set_read_timeout(wait).unwrap();
        stream.set_write_timeout(wait).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answer.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}")))
}

#[test]
fn a_stranger_barters_and_sees_nothing_else() {
    need_root!("rehearse::a_stranger_barters_and_sees_nothing_else");
    if let Some(why) = barter_is_missing() {
        return skipped("rehearse::a_stranger_barters_and_sees_nothing_else", &why);
    }
    let host = Host::of("barter");
    let file = format!("{BARTER}/compose.yaml");
    let palisade = |arguments: &[&str]| host.palisade(&[&["-f", &file], arguments].concat());
    palisade(&["up", "--wait"]).expect(0);
    let (status, health) = ask(&host, "GET", "/health", "");
    assert_eq!((status, &health["postgres"], &health["ollama"]), (200, &json!("up"), &json!("up")), "{health}");
    let listing = |kind: &str, title: &str| json!({ "kind": kind, "title": title, "text": title, "location": "Here" });
    let (status, offer) = ask(&host, "POST", "/api/listings", &listing("offer", "a red bicycle").to_string());
    assert_eq!(status, 201, "{offer}");
    let (status, want) = ask(&host, "POST", "/api/listings", &listing("want", "bicycle, red").to_string());
    assert_eq!(status, 201, "{want}");
    let (status, matches) = ask(&host, "GET", &format!("/api/listings/{}/matches", want["id"]), "");
    assert_eq!((status, &matches["degraded"]), (200, &json!(false)), "{matches}");
    assert_eq!(matches["matches"][0]["listing"]["title"], "a red bicycle", "{matches}");
    assert_eq!(host.all_open_to_strangers(&[5432, 11434, 8081]), [8081]);
    // What the database knows of its clients: the application's own address.
    let log = host.log("postgres");
    let ps = report(&palisade(&["ps", "--format", "json"]));
    let app = ps["instances"].as_array().unwrap().iter().find(|seen| seen["instance"] == "app.1").unwrap();
    let own = app["address"].as_str().unwrap();
    let authorized = |line: &&String| line.contains("connection authorized") && line.contains("user=barter");
    assert!(log.iter().any(|line| authorized(&line)), "{log:?}");
    assert!(log.iter().filter(authorized).all(|line| line.contains(own)), "{own}: {log:?}");

    let proof = palisade(&["prove", "--format", "json"]).expect(0);
    assert_eq!(findings(&report(&proof)), Vec::<String>::new());
    palisade(&["down", "--volumes", "--yes"]).expect(0);
    host.assert_nothing_left();
}

#[test]
fn a_port_that_nobody_answers_is_found() {
    need_root!("rehearse::a_port_that_nobody_answers_is_found");
    let host = Host::new();
    host.write(
        "name: shop\nservices:\n  web:\n    ports: ['8080:80']\n    expose: ['5432']\n    \
         x-palisade: { process: { command: [sleep, '1000'] } }\n  \
         app:\n    x-palisade: { process: { command: [sleep, '1000'] }, connect: [web] }\n",
    );
    let ran = rehearse(&host, &["rehearse", "--format", "json"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let report = report(&ran);
    assert_eq!(findings(&report), ["peer-port-silent", "published-unanswered"]);
    let unanswered = &report["stranger"]["findings"][0];
    assert_eq!((&unanswered["subject"], &unanswered["place"]["line"]), (&json!("8080"), &json!(4)), "{unanswered}");
    let text = rehearse(&host, &["rehearse"]).expect(1).out;
    assert!(text.contains("error[published-unanswered]") && text.contains("compose.yaml:4:"), "{text}");
}

#[test]
fn a_service_that_fails_is_told_and_cleared() {
    need_root!("rehearse::a_service_that_fails_is_told_and_cleared");
    let host = Host::new();
    host.write(
        "name: shop\nservices:\n  web:\n    ports: ['8080:80']\n    volumes: ['data:/data']\n    \
         healthcheck: { test: [CMD, 'false'], start_period: 60s }\n    \
         x-palisade: { process: { command: [sh, -c, 'echo reading /etc/licence >&2; echo no licence >&2; exit 7'] } }\n\
         volumes: { data: {} }\n",
    );
    let ran = rehearse(&host, &["rehearse"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("web.1 exited with 7"), "{}", ran.err);
    assert!(
        ran.err.contains("the end of what web.1 printed:\n    reading /etc/licence\n    no licence"),
        "{}",
        ran.err
    );
    assert_eq!(ran.out, "");
}

const SERVED: &str = r#"
name: shop
services:
  web:
    ports: ["8080:8080"]
    healthcheck: { test: [CMD, test, -e, /tmp/ready], interval: 1s, start_period: 60s, start_interval: 50ms }
    x-palisade:
      process:
        command:
          - python3
          - -c
          - |
            import socket
            servers = [socket.create_server(("0.0.0.0", port)) for port in (8080, 5432)]
            open("/tmp/ready", "w").close()
            while True:
                servers[0].accept()[0].close()
"#;

/// Private sockets that take IPv6 only.
const SIX: &str = r#"
name: shop
services:
  web:
    healthcheck: { test: [CMD, test, -e, /tmp/ready], interval: 1s, start_period: 60s, start_interval: 50ms }
    x-palisade:
      process:
        command:
          - python3
          - -c
          - |
            import socket
            tcp = socket.create_server(("::", 5432), family=socket.AF_INET6)
            udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            udp.bind(("::", 5353))
            open("/tmp/ready", "w").close()
            while True:
                udp.sendto(*udp.recvfrom(99))
"#;

#[test]
fn private_ipv6_addresses_are_tried_from_outside() {
    need_root!("rehearse::private_ipv6_addresses_are_tried_from_outside");
    let host = Host::new();
    host.write(SIX);
    let ran = rehearse(&host, &["rehearse", "--format", "json"]);
    let report = report(&ran);
    assert_eq!(findings(&report), Vec::<String>::new(), "{}", ran.whole(&host));
    for part in ["stranger", "without_firewall"] {
        for socket in ["tcp 5432", "udp 5353"] {
            let tried = report[part]["unanswered"][socket].as_array().unwrap();
            assert!(tried.contains(&json!("fd70:616c:6973:6164::7f4d:101")), "{part}, {socket}: {tried:?}");
        }
    }
}

fn nft(arguments: &str) {
    let mut command = Command::new("timeout");
    command.args(["20", "nft", arguments]);
    Running::start(command).end(Duration::from_secs(30)).expect(0);
}

#[test]
fn what_others_do_to_the_firewall_is_found_by_packets() {
    need_root!("rehearse::what_others_do_to_the_firewall_is_found_by_packets");
    let host = Host::new();
    host.write(SERVED);
    host.up();
    let prove = |code: i32| {
        let ran = host.palisade(&["prove", "--format", "json"]).expect(code);
        let report = report(&ran);
        (findings(&report), report)
    };
    let (found, report) = prove(0);
    assert_eq!((found.as_slice(), keys(&report["doors"]["open"])), (&[][..], vec!["8080/tcp over IPv4"]));

    // Somebody else's table shuts the published port.
    nft(
        "add table inet other; add chain inet other in { type filter hook input priority -10; }; add rule inet other in tcp dport 8080 drop",
    );
    let (found, report) = prove(1);
    assert_eq!(found, ["door-shut"]);
    assert_eq!(report["doors"]["findings"][0]["subject"], "8080/tcp over IPv4");
    assert!(!host.open_to_strangers(8080));
    nft("delete table inet other");
    prove(0);

    // Somebody flushes everything, as careless scripts do: the guard still holds what is private.
    nft("flush ruleset");
    let (found, _) = prove(1);
    assert_eq!(found, ["door-open"]);
    assert_eq!(host.all_open_to_strangers(&[5432, 8080]), [8080]);
    let plan = host.palisade(&["plan"]).expect(1).out;
    assert!(plan.contains("set the firewall: let in 8080/tcp"), "{plan}");
    let pid = host.pid("web.1");
    host.up();
    assert_eq!(host.pid("web.1"), pid, "the firewall comes back without a restart");
    prove(0);
    host.down();
}

#[test]
fn what_is_not_up_cannot_be_proven() {
    need_root!("rehearse::what_is_not_up_cannot_be_proven");
    let host = Host::new();
    host.write(SERVED);
    let ran = host.palisade(&["prove"]).expect(1);
    assert_eq!(
        ran.err,
        "error: shop isn't up, so there is nothing to prove\n  hint: `palisade up` brings it up; `palisade rehearse` proves it in a scratch namespace first\n"
    );
    let _ = fs::remove_file(host.folder.join("compose.yaml"));
    host.palisade(&["rehearse"]).expect(2);
    host.assert_nothing_left();
}
