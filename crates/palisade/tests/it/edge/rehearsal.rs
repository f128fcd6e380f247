//! A stack with an edge is rehearsed: it is served through the edge, with certificates of its own.

use std::time::Duration;

use serde_json::{Value, json};

use super::shop::APP;
use crate::need_root;
use crate::scratch::{Host, Running, left_at_last, left_of};

fn rehearse(file: &str) -> (Option<i32>, Value) {
    let host = Host::new();
    host.write(file);
    let running = Running::start(host.command(&["rehearse", "--format", "json"]));
    let realm = format!("palisade-rehearse-{}", running.pid());
    let ran = running.end(Duration::from_secs(200));
    assert_eq!(left_at_last(|| left_of(&realm)), Vec::<String>::new(), "{ran:?}");
    let report = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    (ran.code, report)
}

#[test]
fn an_edge_is_proven_and_nothing_reaches_past_it() {
    need_root!("edge::rehearsal::an_edge_is_proven_and_nothing_reaches_past_it");
    // Nobody could be asked for a certificate.
    let file = APP.replace("default: local", "default: acme").replace(
        "to: app:8081\n",
        "to: app:8081\n        rate_limit: {per_client: 10/s, burst: 20}\n        hsts: true\n",
    );
    let (code, report) = rehearse(&file);
    let parts = report.as_object().unwrap().values();
    let findings: Vec<_> = parts.filter_map(|part| part["findings"].as_array()).flatten().collect();
    assert_eq!((code, findings), (Some(0), vec![]));
    let edge = &report["edge"];
    assert_eq!(edge["redirected"], json!(["shop.example"]));
    assert_eq!(edge["believed"], json!(["shop.example"]));
    assert_eq!(edge["answered"]["shop.example/"], 200);
    let burst = &edge["limited"]["shop.example/"];
    assert_eq!((&burst["tried"], &burst["expected"]), (&json!(31), &json!(21)));
    let silent = report["without_firewall"]["unanswered"].as_object().unwrap();
    assert!(silent.contains_key("tcp 8081"), "{silent:?}");
    for stranger in ["stranger", "without_firewall"] {
        let open: Vec<_> = report[stranger]["open"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(open, ["203.0.113.1:443", "203.0.113.1:80", "[2001:db8::1]:443", "[2001:db8::1]:80"], "{report:#}");
    }
    assert_eq!(report["stranger"]["open"]["203.0.113.1:443"], "speaks TLS");
    // The kit was run as root inside the edge, and nothing of it came through.
    assert!(report["attacks"]["tried"]["palisade-edge"].as_u64().is_some_and(|tried| tried > 20), "{report:#}");
}
