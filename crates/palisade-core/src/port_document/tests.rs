use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::audit::facts::{Doors, Facts, Listener, Owner, World, WorldKind};
use crate::audit::{Declared, audit};
use crate::place::Placed;
use crate::prove::peer_expectations;
use crate::stack::Unguarded;
use crate::testing::{at, grant, publish, service, stack, tcp};

fn shop() -> Stack {
    let (mut app, mut db, mut batch) = (service("app"), service("db"), service("batch"));
    app.publish =
        vec![publish(None, 8084, 8094), publish(Some("127.0.0.1"), 9000, 9000), publish(Some("2001:db8::1"), 81, 80)];
    app.expose = vec![at(tcp(8094)), at(tcp(9000)), at(tcp(80))];
    app.connect = Some(vec![grant("db", Some(5432)), grant("batch", None)]);
    app.host_ports = vec![at(631)];
    app.egress = Egress::Only(vec![at(EgressRule {
        network: "198.51.100.7".parse().unwrap(),
        prefix_len: 32,
        port: Some(443),
        proto: None,
    })]);
    db.expose = vec![at(tcp(5432)), at(tcp(5432))];
    db.egress = Egress::None;
    db.connect = Some(Vec::new());
    batch.networks = BTreeSet::from(["default".to_owned(), "back".to_owned()]);
    batch.unguarded = vec![Placed {
        value: Unguarded {
            risk: "privileged".into(),
            could: "do | anything".into(),
            accepted: Some("it *must*".into()),
        },
        place: batch.place.clone(),
    }];
    let mut stack = stack([app, db, batch]);
    stack.firewall.allow = vec![at(PortProto { port: 51820, proto: Proto::Udp })];
    stack
}

fn document(stack: &Stack) -> PortDocument {
    PortDocument::of(stack, &str::to_owned)
}

#[test]
fn the_document_says_who_reaches_what_and_why() {
    insta::assert_snapshot!(document(&shop()).to_markdown());
}

#[test]
fn what_the_edge_leads_to_is_told_with_who_may_ask() {
    let text = document(&crate::testing::stack_with_edge()).to_markdown();
    insta::assert_snapshot!(text);
    let json = serde_json::to_value(document(&shop())).unwrap();
    assert!(json.get("edge").is_none(), "a stack without an edge says nothing of one");
}

#[test]
fn without_palisades_firewall_nothing_is_promised_about_it() {
    let mut stack = shop();
    stack.firewall.backend = crate::stack::BackendChoice::None;
    let text = document(&stack).to_markdown();
    assert!(text.contains("| anybody, as far as the host's firewall lets them |"), "{text}");
    assert!(text.contains("somebody else's business") && !text.contains("51820"), "{text}");
}

#[test]
fn both_tables_say_the_same_as_what_is_proved() {
    let stack = shop();
    let document = document(&stack);
    for expectation in peer_expectations(&stack) {
        let reach = document.reaches.iter().find(|reach| reach.service == expectation.client).unwrap();
        let peers = reach.peers.iter().filter(|peer| peer.service == expectation.server);
        let may = peers.clone().any(|peer| peer.port.is_none_or(|port| port == expectation.port));
        assert_eq!(may, expectation.allowed, "{expectation}");
        let private = document.ports.iter().filter(|entry| entry.exposure == Exposure::Private);
        let entry = private
            .clone()
            .find(|entry| entry.service.as_ref() == Some(&expectation.server) && entry.port == expectation.port);
        assert_eq!(entry.is_some_and(|entry| entry.callers.contains(&expectation.client)), expectation.allowed);
    }
}

#[test]
fn what_a_host_has_besides_is_told() {
    let stack = shop();
    let listener = |proto, local: &str, instance: Option<&str>| Listener {
        proto,
        local: local.parse().unwrap(),
        v6_only: false,
        interface: None,
        owner: Owner { instance: instance.map(str::to_owned), ..Owner::default() },
    };
    let doors = Doors {
        target: "203.0.113.1".parse().unwrap(),
        proto: Proto::Tcp,
        local: [22, 8084, 7777, 6000].into_iter().collect(),
        redirected: BTreeSet::new(),
        forwarded: Default::default(),
    };
    let world = World {
        name: "the internet".into(),
        kind: WorldKind::Internet,
        interface: "eth0".into(),
        sources: ["203.0.113.9", "2001:db8::9"].map(|ip| Some(ip.parse().unwrap())),
        rules: BTreeMap::new(),
        doors: vec![doors],
        packets: 1,
    };
    let facts = Facts {
        listeners: vec![
            listener(Proto::Tcp, "[::]:8084", Some("shop/app")),
            listener(Proto::Tcp, "127.77.1.1:8094", Some("shop/app.1")),
            // Of those that nobody declared: batch's is reached by app and db's by nobody.
            listener(Proto::Tcp, "127.77.3.1:6060", Some("shop/batch.1")),
            listener(Proto::Tcp, "127.77.3.2:6060", Some("shop/batch.2")),
            listener(Proto::Tcp, "127.205.3.1:6061", Some("shop/batch.1")),
            listener(Proto::Udp, "127.77.3.1:40000", Some("shop/batch.1")),
            listener(Proto::Tcp, "127.77.9.1:6062", Some("other/batch.1")),
            listener(Proto::Tcp, "0.0.0.0:22", None),
            listener(Proto::Tcp, "0.0.0.0:7777", None),
        ],
        worlds: vec![world],
        ..Facts::default()
    };
    let declared = Declared::by(&stack, &BTreeSet::from([22]));
    let audit = audit(&facts, Some(&declared));
    let found: BTreeMap<_, _> = host::unnamed(&stack, &facts, &audit, &(32768..=60999))
        .into_iter()
        .map(|finding| (finding.subject, finding.message))
        .collect();
    let subjects: Vec<_> = found.keys().map(String::as_str).collect();
    assert_eq!(subjects, ["6000/tcp over IPv4 by eth0", "7777/tcp", "batch:6060/tcp"]);
    assert_eq!(found["batch:6060/tcp"], "batch.1 listens there, and app may connect");
}

#[test]
fn a_network_stands_for_all_that_are_in_it() {
    let services = ["a", "b", "c", "d", "e"].map(|name| {
        let mut it = service(name);
        it.expose = vec![at(tcp(80))];
        it
    });
    let mut stack = stack(services);
    stack.services[4].connect = Some(vec![grant("a", Some(80))]);
    let document = document(&stack);
    let who: Vec<_> = document.ports.iter().map(|entry| document.who(entry)).collect();
    assert_eq!(who, ["everybody in network default", "a, c, d", "a, b, d", "a, b, c", "everybody in network default"]);
    let text = document.to_markdown();
    assert!(text.contains("| b | everybody in network default: every port | both are in network default: "), "{text}");
    assert!(text.contains("| default | a, b, c, d, e |"), "{text}");
}
