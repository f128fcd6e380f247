//! Real servers under guard, as distributions ship them: each binds as it always does, two of them the same port, and a
//! client uses all of them by name.
//!
//! The stack is `cases/servers`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::need_root;
use crate::scratch::{HOST, Host, Running, connects, patiently};
use crate::support::skipped;

const CASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/cases/servers/compose.yaml");

/// Servers and clients that a machine without `scripts/install-deps test` may lack.
fn missing() -> Vec<&'static str> {
    let is_there = |name: &str| {
        let places = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin"];
        places.iter().any(|place| Path::new(place).join(name).exists())
    };
    let programs = ["psql", "redis-server", "redis-cli", "memcached", "nginx", "node", "java", "python3"];
    programs.into_iter().filter(|name| !is_there(name)).collect()
}

/// Addresses of a service: the first is the one that names mean, the second its first instance's own.
fn addresses(ps: &Value, service: &str) -> [Ipv4Addr; 2] {
    let instances = ps["instances"].as_array().unwrap();
    let seen = instances.iter().find(|seen| seen["service"] == service).unwrap();
    let own: Ipv4Addr = seen["address"].as_str().unwrap().parse().unwrap();
    let [a, b, c, d] = own.octets();
    assert_eq!((a, d), (127, 1), "{ps}");
    [Ipv4Addr::new(a, b, c, 0), own]
}

#[test]
fn real_servers_work_under_guard() {
    const TEST: &str = "servers::real_servers_work_under_guard";
    need_root!("servers::real_servers_work_under_guard");
    let missing = missing();
    if !missing.is_empty() {
        return skipped(TEST, &format!("{} not installed", missing.join(", ")));
    }
    let host = Host::of("servers");
    let palisade = |arguments: &[&str]| {
        let arguments = [&["-f", CASE], arguments].concat();
        Running::start(host.command(&arguments)).end(Duration::from_secs(200))
    };
    palisade(&["up", "--wait"]).expect(0);
    // The client is a job that ends when it has used everything.
    let ps = patiently("the client's end", || {
        let ps: Value = serde_json::from_str(&palisade(&["ps", "--format", "json"]).expect(0).out).unwrap();
        let client = ps["instances"].as_array().unwrap().iter().find(|seen| seen["service"] == "client").cloned();
        client.is_some_and(|client| client["state"].to_string().contains("exited")).then_some(ps)
    });

    let logs = palisade(&["logs", "client"]).expect(0).out;
    let said: Vec<&str> = logs.lines().map(|line| line.split_once(" | ").unwrap().1).collect();
    let [_, client] = addresses(&ps, "client");
    let [_, one] = addresses(&ps, "pg-one");
    let [_, two] = addresses(&ps, "pg-two");
    let [_, nginx] = addresses(&ps, "nginx");
    let expected = [
        // Who connects is known by its address, to servers of both families.
        format!("pg-one one|{client}|{one}"),
        format!("pg-two two|{client}|{two}"),
        "redis +PONG".to_owned(),
        "memcached VERSION".to_owned(),
        // An answer to a datagram comes from where the question went.
        "memcached udp VERSION True".to_owned(),
        format!("http://nginx:80/ nginx sees {client}"),
        format!("http://nginx/node node sees ::ffff:{nginx}"),
        format!("http://node:3000/ node sees ::ffff:{client}"),
        format!("http://java:8000/ java sees {client}"),
        "done".to_owned(),
    ];
    assert_eq!(said, expected);

    // What is where: nothing but the published port is on an address that anybody else has.
    let listens = |service: &str| {
        let instances = ps["instances"].as_array().unwrap();
        let seen = instances.iter().find(|seen| seen["service"] == service).unwrap();
        assert_eq!(seen["guarded"], true, "{seen}");
        let listens = seen["listens"].as_array().unwrap().iter().map(|at| at.as_str().unwrap().to_owned());
        listens.collect::<Vec<_>>()
    };
    assert_eq!(listens("pg-one"), ["5432/tcp"]);
    assert_eq!(listens("pg-two"), ["5432/tcp"]);
    assert_eq!(listens("memcached"), ["11211/tcp", "11211/udp"]);
    assert_eq!(listens("java"), ["8000/tcp"]);
    assert_eq!(listens("nginx"), ["0.0.0.0:8080/tcp", "80/tcp", "[::]:8080/tcp"]);
    const PRIVATE: [u16; 6] = [80, 3000, 5432, 6379, 8000, 11211];
    assert_eq!(host.all_open_to_strangers(&PRIVATE), [0; 0]);
    for port in PRIVATE {
        assert!(!connects(SocketAddr::new(HOST, port)), "{port} from the host itself");
    }
    assert!(host.open_to_strangers(8080));
    // What a process of the host gets at a private address: root is let in, others are not.
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c"];
    for port in [5432, 6379] {
        let [_, own] = addresses(&ps, if port == 5432 { "pg-one" } else { "redis" });
        let script = format!("import socket; socket.create_connection(('{own}', {port}), 2)");
        let mut command = Command::new("timeout");
        command.arg("20").args(nobody).arg(script);
        let ran = Running::start(command).end(Duration::from_secs(30));
        assert_ne!(ran.code, Some(0), "a user of the host reaches {own}:{port}");
    }

    let proof = palisade(&["prove", "--format", "json"]).expect(0);
    let proof: Value = serde_json::from_str(&proof.out).unwrap();
    assert_eq!(proof["version"], 1);
    let open: Vec<&String> = proof["doors"]["open"].as_object().unwrap().keys().collect();
    assert_eq!(open, ["8080/tcp over IPv4"], "{proof}");
    let pairs = proof["peers"]["pairs"].as_array().unwrap();
    assert!(pairs.iter().all(|pair| pair["holds"] == true), "{proof}");
    // The client has ended, so nothing can be tried from inside it; everybody else is asked, the stranger in vain.
    let of = |client: &str| pairs.iter().filter(|pair| pair["client"] == client).collect::<Vec<_>>();
    assert_eq!((of("stranger").len(), of("client").len()), (8, 0), "{proof}");
    assert!(of("stranger").iter().all(|pair| pair["allowed"] == false), "{proof}");
    assert!(of("node").iter().all(|pair| pair["allowed"] == true), "{proof}");
    let text = palisade(&["prove"]).expect(0).out;
    assert!(text.contains("1 of 131070 doors open"), "{text}");

    let table = palisade(&["ps"]).expect(0).out;
    assert!(table.contains("client.1") && table.contains("exited (0)") && !table.contains("NOT GUARDED"), "{table}");
    palisade(&["down", "--volumes", "--yes"]).expect(0);
    host.assert_nothing_left();
}
