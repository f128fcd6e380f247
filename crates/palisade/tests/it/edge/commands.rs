//! What the commands say of an edge, and who is banned from it.

use std::collections::BTreeSet;

use palisade_core::network::Network;
use palisade_host::firewall::Firewall;
use palisade_host::firewall::bans::Bans;

use super::shop::{APP, Shop};
use crate::need_root;
use crate::scratch::{HOST, patiently};

#[test]
fn the_commands_know_the_edge() {
    need_root!("edge::commands::the_commands_know_the_edge");
    let shop = Shop::new(APP);
    let said = |arguments: &[&str]| {
        let ran = shop.0.palisade(arguments);
        format!("{}{}", ran.out, ran.err)
    };
    let ps = said(&["ps"]);
    assert!(ps.contains("palisade-edge.1") && ps.contains("palisade-certificates.1"), "{ps}");
    let explained = said(&["explain", "443"]);
    assert!(explained.contains("the edge for shop.example"), "{explained}");
    let ports = said(&["ports"]);
    assert!(ports.contains("443/tcp") && ports.contains("shop.example"), "{ports}");
    shop.0.palisade(&["check"]);
    let health =
        shop.0.ps()["instances"].as_array().unwrap().iter().find(|seen| seen["instance"] == "palisade-edge.1").cloned();
    assert_eq!(health.unwrap()["health"], "healthy");
    patiently("the event of the certificate", || said(&["events"]).contains("certificate_served").then_some(()));
    assert!(shop.0.palisade(&["logs", "palisade-edge"]).expect(0).err.is_empty());
    // Nobody but the edge and root may give it orders or read its keys.
    let keys = shop.0.layout.volume(palisade_core::edge::CERTIFICATES_VOLUME);
    let mode = |path: &std::path::Path| {
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions())
    };
    assert_eq!(mode(&keys) & 0o777, 0o700);
    assert_eq!(mode(&keys.join("shop.example.pem")) & 0o777, 0o600);
    shop.0.down();
}

#[test]
fn whoever_is_banned_gets_no_answer_from_the_edge_until_the_time_is_over() {
    need_root!("edge::commands::whoever_is_banned_gets_no_answer_from_the_edge_until_the_time_is_over");
    let shop = Shop::new(APP);
    let bans = Bans::new(&shop.0.layout);
    let ports = BTreeSet::from([80, 443]);
    let clients = |text: &[&str]| text.iter().map(|text| (text.parse::<Network>().unwrap(), 15)).collect::<Vec<_>>();
    bans.add(&ports, &clients(&["203.0.113.2", "2001:db8:7::/64"])).unwrap();
    bans.add(&ports, &clients(&["203.0.113.2", "198.51.100.1"])).unwrap();
    assert_eq!(shop.0.all_open_to_strangers(&[80, 443]), Vec::<u16>::new());
    // Another stack, or the same one, changes the firewall meanwhile.
    let firewall = Firewall::new(&shop.0.layout.realm);
    let before = firewall.snapshot().unwrap();
    firewall.restore(&before).unwrap();
    assert_eq!(shop.0.all_open_to_strangers(&[80, 443]), Vec::<u16>::new());
    patiently("the end of the ban", || (shop.0.all_open_to_strangers(&[80, 443]) == [80, 443]).then_some(()));
    bans.add(&ports, &clients(&["203.0.113.2"])).unwrap();
    shop.0.palisade(&["prove"]).expect(0);
    shop.0.down();
}

#[test]
fn connections_that_are_reset_are_told_of() {
    need_root!("edge::commands::connections_that_are_reset_are_told_of");
    let shop = Shop::new(&APP.replace("  edge:\n", "  edge:\n    limits: {connections: 64}\n"));
    let connect = || std::net::TcpStream::connect(std::net::SocketAddr::new(HOST, 443)).unwrap();
    let open = || shop.0.internet.run(|| (0..72).map(|_| connect()).collect::<Vec<_>>()).unwrap();
    let _open = open();
    patiently("the event", || {
        let events = shop.0.palisade(&["events"]).expect(0).out;
        events.contains(" overloaded limit=64 reset=").then_some(())
    });
    let said = shop.0.palisade(&["logs", "palisade-edge"]).expect(0);
    assert!(format!("{}{}", said.out, said.err).contains("limits.connections"), "{said:?}");
    shop.0.down();
}

#[test]
fn whoever_asks_too_often_again_and_again_is_told_of_and_banned() {
    need_root!("edge::commands::whoever_asks_too_often_again_and_again_is_told_of_and_banned");
    let limited = "to: app:8081\n        rate_limit: {per_client: 1/s, burst: 1}\n        ban: {after: 10, for: 1h}\n";
    let shop = Shop::new(&APP.replace("to: app:8081\n", limited));
    let mut refused = 0;
    patiently("the ban", || {
        let mut arguments = vec!["-o", "/dev/null", "-w", "%{http_code}\n", "--max-time", "3"];
        arguments.extend(["https://shop.example/"; 1]);
        let (_, text) = shop.curl(&arguments);
        refused += u32::from(text.starts_with("429"));
        let events = shop.0.palisade(&["events"]).expect(0).out;
        (events.contains(" banned client=203.0.113.2 for_s=3600") && events.contains(" limited ")).then_some(())
    });
    assert!(refused >= 10, "{refused}");
    // Who, and how often; in all it is counted by the edge.
    let events = shop.0.palisade(&["events", "--format", "json"]).expect(0).out;
    let mut events = events.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let told = events.rfind(|event| event["kind"] == "limited").unwrap();
    let [client] = &told["details"]["clients"].as_array().unwrap()[..] else { panic!("{told}") };
    assert_eq!(client["client"], "203.0.113.2", "{told}");
    assert!(client["times"].as_u64() >= told["details"]["refused"].as_u64(), "{told}");
    let edge = |ps: serde_json::Value| {
        let all = ps["instances"].as_array().unwrap().clone();
        all.into_iter().find(|seen| seen["service"] == "palisade-edge").unwrap()["edge"].clone()
    };
    let counted = edge(shop.0.ps());
    assert_eq!(counted["limited"]["shop.example/"], refused, "{counted}");
    assert!(counted["answered"]["4xx"].as_u64() >= Some(refused.into()), "{counted}");
    assert_eq!((counted["reset"].as_u64(), counted["starved"].as_u64()), (Some(0), Some(0)), "{counted}");
    assert_eq!(shop.0.all_open_to_strangers(&[80, 443]), Vec::<u16>::new());
    // The stack comes up anew, and the ban stays.
    shop.up(&APP.replace("to: app:8081\n", &limited.replace("burst: 1", "burst: 2"))).expect(0);
    assert_eq!(shop.0.all_open_to_strangers(&[80, 443]), Vec::<u16>::new());
    shop.0.down();
}
