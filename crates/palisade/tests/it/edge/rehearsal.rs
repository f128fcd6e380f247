//! A stack with an edge is rehearsed: it is served through the edge, with certificates of its own.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::shop::APP;
use crate::need_root;
use crate::rehearse::{BARTER, barter_is_missing};
use crate::scratch::{Host, Running, left_at_last, left_of};
use crate::support::skipped;

fn rehearse_on(host: &Host, arguments: &[&str]) -> (Option<i32>, Value) {
    let running = Running::start(host.command(&[arguments, &["rehearse", "--format", "json"]].concat()));
    let realm = format!("palisade-rehearse-{}", running.pid());
    let ran = running.end(Duration::from_secs(200));
    assert_eq!(left_at_last(|| left_of(&realm)), Vec::<String>::new(), "{ran:?}");
    let report = serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    (ran.code, report)
}

fn rehearse(file: &str) -> (Option<i32>, Value) {
    let host = Host::new();
    host.write(file);
    rehearse_on(&host, &[])
}

fn findings(report: &Value) -> Vec<&Value> {
    report.as_object().unwrap().values().filter_map(|part| part["findings"].as_array()).flatten().collect()
}

/// So many pass of those who come at once, and after a second as many more as the rate says; on a slow machine more, as it takes longer.
fn assert_refills(burst: &Value, (tried, expected): (u64, u64), (later_tried, later_expected): (u64, u64)) {
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{burst:#}"));
    assert_eq!((number(&burst["tried"]), number(&burst["expected"])), (tried, expected), "{burst:#}");
    assert!((expected..=tried).contains(&number(&burst["passed"])), "{burst:#}");
    let later = &burst["later"];
    assert_eq!((number(&later["tried"]), number(&later["expected"])), (later_tried, later_expected), "{burst:#}");
    assert!((later_expected..=later_tried).contains(&number(&later["passed"])), "{burst:#}");
}

#[test]
fn the_reference_stack_is_proven_behind_its_edge() {
    need_root!("edge::rehearsal::the_reference_stack_is_proven_behind_its_edge");
    if let Some(why) = barter_is_missing() {
        return skipped("edge::rehearsal::the_reference_stack_is_proven_behind_its_edge", &why);
    }
    let files = ["compose.yaml", "edge.yaml"].map(|name| format!("{BARTER}/{name}"));
    let (code, report) = rehearse_on(&Host::of("barter"), &["-f", &files[0], "-f", &files[1]]);
    assert_eq!((code, findings(&report)), (Some(0), vec![]));
    let edge = &report["edge"];
    assert_eq!(edge["redirected"], json!(["barter.example"]));
    assert_eq!(edge["believed"], json!(["barter.example"]));
    assert_eq!(edge["answered"]["barter.example/"], 200);
    assert_eq!(edge["upgraded"]["barter.example/api/live"], 101);
    assert_refills(&edge["limited"]["barter.example/"], (31, 21), (20, 10));
    // Where fewer connections are allowed than requests, they come one after the other.
    assert_refills(&edge["limited"]["barter.example/api/live"], (16, 6), (11, 1));
    let at_once = &edge["at_once"]["barter.example/api/live"];
    assert_eq!((&at_once["tried"], &at_once["passed"]), (&json!(6), &json!(5)));
    let open = ["203.0.113.1:443", "203.0.113.1:80", "[2001:db8::1]:443", "[2001:db8::1]:80"];
    for stranger in ["stranger", "without_firewall"] {
        let seen = &report[stranger];
        assert!(seen["open"].as_object().unwrap().keys().eq(open), "{stranger}: {seen:#}");
        assert!(seen["unanswered"].as_object().unwrap().contains_key("tcp 8081"), "{stranger}: {seen:#}");
    }
    let doors: Vec<&String> = report["doors"]["open"].as_object().unwrap().keys().collect();
    assert_eq!(doors, ["443/tcp over IPv4", "443/tcp over IPv6", "80/tcp over IPv4", "80/tcp over IPv6"]);
}

/// Besides the application's own route: one for nobody on the scratch internet, one with a burst that is too large to try, and one
/// whose domain has files. Its application doesn't take WebSockets, and says so with 502.
#[test]
fn an_edge_is_asked_for_all_that_it_serves_and_what_cannot_be_tried_is_said() {
    need_root!("edge::rehearsal::an_edge_is_asked_for_all_that_it_serves_and_what_cannot_be_tried_is_said");
    let host = Host::new();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"])
        .args(["-subj", "/CN=given.example", "-addext", "subjectAltName=DNS:given.example"])
        .args(["-keyout", "given.key", "-out", "given.pem"])
        .current_dir(&host.folder)
        .output();
    assert!(made.as_ref().is_ok_and(|made| made.status.success()), "{made:?}");
    let routes = "to: app:8081
      - {domain: shop.example, path: /office, to: 'app:8081', allow: [192.0.2.0/24]}
      - {domain: given.example, to: 'app:8081', rate_limit: {per_client: 500/s, burst: 5000}}
";
    let file = APP
        .replace("to: app:8081\n", routes)
        .replace("{default: local}", "{default: local, given.example: {chain: ./given.pem, key: ./given.key}}")
        .replace("self.send_response(101)", "self.send_response(502)");
    host.write(&file);
    let (code, report) = rehearse_on(&host, &[]);
    let found: Vec<_> = findings(&report).iter().map(|finding| [&finding["id"], &finding["subject"]]).collect();
    let upgrade = |what: &str| [json!("edge-upgrade"), json!(what)];
    let wanted = [upgrade("shop.example/"), upgrade("given.example/")];
    assert!(found.into_iter().eq(wanted.iter().map(|[id, what]| [id, what])), "{report:#}");
    assert_eq!(code, Some(1));
    let edge = &report["edge"];
    assert_eq!(edge["believed"], json!(["shop.example", "given.example"]));
    assert_eq!(edge["answered"], json!({"shop.example/": 200, "shop.example/office": 403, "given.example/": 200}));
    assert_eq!(edge["refused"], json!(["shop.example/office"]));
    let not_tried: Vec<_> =
        edge["not_tried"].as_array().unwrap().iter().map(|it| it["what"].as_str().unwrap()).collect();
    assert_eq!(not_tried, ["given.example/: its rate_limit"], "{edge:#}");
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
    assert_eq!((code, findings(&report)), (Some(0), vec![]));
    let edge = &report["edge"];
    assert_eq!(edge["redirected"], json!(["shop.example"]));
    assert_eq!(edge["believed"], json!(["shop.example"]));
    assert_eq!(edge["answered"]["shop.example/"], 200);
    assert_refills(&edge["limited"]["shop.example/"], (31, 21), (20, 10));
    // The application tells whom it takes its client for, and was not deceived.
    assert_eq!((&edge["unforged"], &edge["not_tried"]), (&json!(["shop.example/"]), &json!([])));
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
