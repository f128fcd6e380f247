//! Explanations are held against real connections: by somebody on the internet, and from inside services.

use std::net::TcpListener;
use std::process::Command;

use serde_json::Value;

use crate::need_root;
use crate::scratch::{Host, patiently};

const FILE: &str = r#"
name: shop
services:
  web:
    ports: ["8080:80", "127.0.0.1:9000:9000"]
    networks: [front, back]
    x-palisade:
      connect: ["db:5432"]
      process: { command: [python3, -uc, &serve "import socket, sys, time; all = [socket.create_server((at.split(' ')[0], int(at.split(' ')[1]))) for at in sys.argv[1:]]; time.sleep(1000)", "0.0.0.0 80", "0.0.0.0 9000"] }
    stop_grace_period: 0s
  db:
    expose: ["5432", "5433", "5434"]
    networks: [back]
    x-palisade:
      process: { command: [python3, -uc, *serve, "0.0.0.0 5432", "127.0.0.1 5433"] }
    stop_grace_period: 0s
  batch:
    networks: [back]
    x-palisade:
      process: { command: [sleep, "1000"] }
    stop_grace_period: 0s
  guest:
    networks: [front]
    x-palisade:
      process: { command: [sleep, "1000"] }
    stop_grace_period: 0s
networks: { front: {}, back: {} }
"#;

/// Verdict and steps of the only answer, and the exit code.
fn explained(host: &Host, arguments: &[&str]) -> (Option<i32>, Value) {
    let ran = host.palisade(&[&["explain", "--format", "json"], arguments].concat());
    let said: Value = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    let answers = said["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 1, "{ran:?}");
    (ran.code, answers[0].clone())
}

fn nft(rules: &str) {
    let status = Command::new("timeout").args(["20", "nft", rules]).status().unwrap();
    assert!(status.success(), "{rules}");
}

/// Whether a program inside the service connects.
fn connects(host: &Host, client: &str, server: &str, port: u16) -> bool {
    let program = format!("import socket; socket.create_connection((\"{server}\", {port}), 2)");
    match host.palisade(&["exec", "-T", client, "python3", "-c", &program]).code {
        Some(0) => true,
        Some(1) => false,
        other => panic!("{client} → {server}:{port} ended with {other:?}"),
    }
}

#[test]
fn explanations_agree_with_real_connections() {
    need_root!("explain::explanations_agree_with_real_connections");
    let host = Host::new();
    host.write(FILE);
    host.up();
    let _listeners = ["0.0.0.0:7777", "127.0.0.1:7778", "0.0.0.0:7779"].map(|at| TcpListener::bind(at).unwrap());
    let realm = &host.layout.realm;
    nft(&format!("add element inet {realm} published.shop {{ tcp . 7779 }}"));

    // From outside: published, private, the host's own behind the firewall, on loopback, through a hole, and nobody's.
    let ports = [8080, 80, 9000, 5432, 7777, 7778, 7779, 6000];
    patiently("the server", || host.open_to_strangers(8080).then_some(()));
    let open = host.all_open_to_strangers(&ports);
    assert_eq!(open, [8080, 7779], "otherwise this shows nothing");
    for port in ports {
        let (code, answer) = explained(&host, &[&port.to_string()]);
        let reached = open.contains(&port);
        assert_eq!(answer["verdict"], if reached { "reachable" } else { "unreachable" }, "{port}: {answer:#}");
        assert_eq!(code, Some(i32::from(!reached)), "{port}");
    }
    let told = |port: &str| host.palisade(&["explain", port]).out;
    let web = told("8080");
    assert!(web.contains("web publishes it, from its port 80/tcp (compose.yaml:5:"), "{web}");
    assert!(web.contains("web.1 runs, and listens at 127.77."), "{web}");
    assert!(told("7777").contains("NO   the firewall stops packets for 7777/tcp that come to 203.0.113.1 by eth0"));
    assert!(told("7779").contains("hint: nobody declared that it can be reached"));
    assert!(told("5432").contains("if the world is meant to reach it, add \"5432:5432\" to ports of db"));

    // Between services: granted, not granted, on a localhost, nobody listening, no network in common.
    for (client, port) in
        [("web", 5432), ("web", 5433), ("batch", 5432), ("batch", 5433), ("batch", 5434), ("guest", 5432)]
    {
        let (code, answer) = explained(&host, &[&format!("db:{port}"), "--from", client]);
        let reached = connects(&host, client, "db", port) || {
            // A name that isn't known would fail for another reason than the one asked about.
            let ip = host.palisade(&["ps", "--format", "json"]).out;
            let ps: Value = serde_json::from_str(&ip).unwrap();
            let instances = ps["instances"].as_array().unwrap().iter();
            let db = instances
                .filter(|seen| seen["service"] == "db")
                .map(|seen| seen["address"].as_str().unwrap().to_owned());
            db.into_iter().any(|address| connects(&host, client, &address, port))
        };
        assert_eq!(reached, matches!((client, port), ("web" | "batch", 5432)), "{client} {port}");
        assert_eq!(answer["verdict"], if reached { "reachable" } else { "unreachable" }, "{client} {port}: {answer:#}");
        assert_eq!(code, Some(i32::from(!reached)));
        // The steps lead to the same, without what was tried.
        let contradicted = answer["hints"].to_string().contains("please report");
        assert!(!contradicted, "{client} {port}: {answer:#}");
    }
    let between = |client: &str, port: u16| host.palisade(&["explain", &format!("db:{port}"), "--from", client]).out;
    assert!(between("guest", 5432).contains("NO   they share no network: guest is in front, db in back"));
    assert!(between("web", 5433).contains("hint: add \"db:5433\" to x-palisade.connect of service web"));
    assert!(between("batch", 5433).contains("db.1 listens on 5433/tcp at its own localhost only"));
    let nobody = between("batch", 5434);
    assert!(
        nobody.contains("db.1 doesn't listen on 5434/tcp")
            && nobody.contains("tried from inside batch.1: let through, but nobody listens"),
        "{nobody}"
    );

    // What is stopped doesn't answer; what was asked wrongly is said.
    host.palisade(&["stop", "db"]).expect(0);
    assert!(!connects(&host, "batch", "db", 5432));
    let (_, answer) = explained(&host, &["db:5432", "--from", "batch"]);
    assert_eq!(answer["verdict"], "unreachable", "{answer:#}");
    let all = host.palisade(&["explain", "db"]).expect(1);
    assert_eq!(all.out.lines().filter(|line| line.contains(" → ")).count(), 3 + 3 * 3, "{all:?}");
    let wrong = host.palisade(&["explain", "8080", "--from", "batch"]).expect(2);
    assert!(wrong.err.contains("`palisade explain web:80/tcp --from batch`"), "{wrong:?}");
    host.palisade(&["explain", "db", "--from", "nobody"]).expect(2);
    host.palisade(&["explain", "db", "--from", "db"]).expect(2);

    // The firewall isn't Palisade's business, and somebody else's looks at who asks.
    host.write(&format!("{FILE}x-palisade: {{ firewall: {{ backend: none }} }}\n"));
    host.up();
    nft(
        "table inet t { chain input { type filter hook input priority 0; ip saddr 203.0.113.2 tcp dport 8080 drop; }; }",
    );
    assert!(!host.open_to_strangers(8080));
    let asked = |from: &str| explained(&host, &["8080", "--from", from]).1["verdict"].as_str().unwrap().to_owned();
    assert_eq!([asked("203.0.113.2"), asked("203.0.113.3")], ["unreachable", "reachable"]);
    let rules = host.palisade(&["explain", "8080", "--from", "203.0.113.2"]).out;
    assert!(rules.contains("table inet t, chain input: ip saddr 203.0.113.2 tcp dport 8080 drop"), "{rules}");
    nft("delete table inet t");
    host.down();
}

#[test]
fn without_a_stack_the_host_alone_is_explained() {
    need_root!("explain::without_a_stack_the_host_alone_is_explained");
    let host = Host::of("nothing");
    let _listener = TcpListener::bind("0.0.0.0:8080").unwrap();
    let (code, answer) = explained(&host, &["8080"]);
    assert_eq!((code, answer["verdict"].as_str()), (Some(0), Some("reachable")), "{answer:#}");
    assert_eq!(explained(&host, &["8081"]).1["verdict"], "unreachable");
    host.palisade(&["explain", "db:5432"]).expect(2);
}
