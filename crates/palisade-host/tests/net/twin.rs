//! The twin says what is true of crafted rulesets, and what the live host answers.

use std::collections::BTreeSet;
use std::net::TcpListener;

use palisade_core::stack::Proto;
use palisade_host::link::{self, VethEnd};
use palisade_host::netns::Netns;
use palisade_host::probe;
use palisade_host::twin::{self, PortSet, TwinReport, TwinSpec, Why};

use crate::{HOST4, HOST6, nft, scratch, tool};

pub(crate) fn run(host: &Netns) -> TwinReport {
    host.run(|| twin::probe(&TwinSpec::new("eth0"))).unwrap().unwrap()
}

/// Probes a host with these rules, and compares each answer with `expected`: TCP and UDP over IPv4, then over IPv6.
fn check(test: &str, rules: &str, expected: [&str; 4]) -> Option<TwinReport> {
    let scratch = scratch(test)?;
    scratch.host.run(|| nft(rules)).unwrap();
    let report = run(&scratch.host);
    let answers: Vec<_> = report.reached.iter().map(|reached| reached.local.to_string()).collect();
    assert_eq!(answers, expected, "{rules}");
    Some(report)
}

#[test]
fn without_rules_every_port_is_reached() {
    let all = "1-65535";
    let Some(report) = check("without_rules_every_port_is_reached", "", [all; 4]) else { return };
    assert_eq!(report.unknown, []);
    assert!(report.packets >= 4 * 65535);
}

#[test]
fn interfaces_ranges_sets_and_maps() {
    let rules = r#"
        table inet t {
          set web { type inet_service; flags interval; elements = { 80, 443, 8000-8010 } }
          map verdicts { type inet_proto . inet_service : verdict; elements = { udp . 53 : accept, tcp . 25 : goto mail } }
          chain mail { meta nfproto ipv6 accept; }
          chain input {
            type filter hook input priority filter; policy drop;
            iif lo accept
            ct state vmap { established : accept, related : accept, invalid : drop }
            iifname "eth9" accept
            iifname "eth*" tcp dport @web ct state new accept
            iif "eth0" udp dport 60000-60100 accept
            ip daddr 203.0.113.1 tcp dport 22 accept
            ip6 daddr 2001:db8::/32 tcp dport 2222 accept
            meta l4proto . th dport vmap @verdicts
          }
        }"#;
    let udp = "53,60000-60100";
    check("interfaces_ranges_sets_and_maps", rules, ["22,80,443,8000-8010", udp, "25,80,443,2222,8000-8010", udp]);
}

#[test]
fn every_chain_on_the_way_has_a_say() {
    let rules = r#"
        table netdev early { chain c { type filter hook ingress device "eth0" priority 0; udp dport 5353 drop; }; }
        table inet raw { chain c { type filter hook prerouting priority raw; tcp dport 1000-1999 drop; }; }
        table inet first { chain c { type filter hook input priority -10; tcp dport 1-3000 accept; drop; }; }
        table ip late { chain c { type filter hook input priority 2147483646; tcp dport 22 reject with tcp reset; }; }
        "#;
    check("every_chain_on_the_way_has_a_say", rules, ["1-21,23-999,2000-3000", "none", "1-999,2000-3000", "none"]);
}

#[test]
fn rate_limits_are_taken_as_a_patient_client_meets_them() {
    let rules = r#"
        table inet t {
          chain input {
            type filter hook input priority filter; policy drop;
            tcp dport 22 limit rate over 3/minute drop
            tcp dport 22-25 limit rate 2/minute burst 1 packets accept
            udp dport 53 ct count over 2 drop
            udp dport 53 accept comment "limit rate over 1/second"
            ip saddr 10.0.0.0/8 tcp dport 3306 accept
          }
        }"#;
    let name = "rate_limits_are_taken_as_a_patient_client_meets_them";
    let Some(report) = check(name, rules, ["22-25", "53", "22-25", "53"]) else { return };
    assert_eq!(report.without_limit.len(), 3, "{:?}", report.without_limit);
    let unknown: Vec<_> = report.unknown.iter().map(|unknown| (unknown.why, unknown.rule.as_str())).collect();
    assert_eq!(unknown, [(Why::Source, "inet t: ip saddr 10.0.0.0/8 tcp dport 3306 accept")]);
}

#[test]
fn rewritten_destinations_are_followed() {
    let test = "rewritten_destinations_are_followed";
    let Some(scratch) = scratch(test) else { return };
    let elsewhere = Netns::unnamed().unwrap();
    link::add_veth(
        VethEnd { netns: &scratch.host, name: "docker0", index: None, mac: None },
        VethEnd { netns: &elsewhere, name: "inner", index: None, mac: None },
    )
    .unwrap();
    let set_up = || {
        link::set_up("docker0", false).unwrap();
        link::add_address("docker0", [172, 17, 0, 1].into(), 16).unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        nft(r#"
            table ip nat {
              chain pre {
                type nat hook prerouting priority dstnat;
                iifname != "docker0" tcp dport 8080 dnat to 172.17.0.2:80
                tcp dport 80 redirect to :3000
              }
            }
            table ip filter {
              chain forward { type filter hook forward priority filter; policy drop; ip daddr 172.17.0.2 tcp dport 80 accept; }
              chain input { type filter hook input priority filter; policy drop; tcp dport { 22, 3000 } accept; }
            }"#);
    };
    scratch.host.run(set_up).unwrap();
    let report = run(&scratch.host);
    let tcp4 = &report.reached[0];
    assert_eq!(tcp4.local.to_string(), "22,3000");
    assert_eq!(tcp4.redirected, BTreeSet::from([(80, 3000)]));
    assert_eq!(tcp4.forwarded.to_string(), "8080");
    assert_eq!(report.ports(Proto::Tcp, true), PortSet::all());
}

#[test]
fn iptables_rules_are_copied_whichever_way_they_are_spoken() {
    let test = "iptables_rules_are_copied_whichever_way_they_are_spoken";
    let Some(scratch) = scratch(test) else { return };
    if std::process::Command::new("iptables-nft").arg("-V").output().is_err() {
        println!("SKIPPED: {test}: iptables-nft is not installed");
        return;
    }
    let rules = || {
        let iptables = |rule: &str| tool(&[&["iptables-nft"], &rule.split(' ').collect::<Vec<_>>()[..]].concat(), "");
        iptables("-P INPUT DROP");
        iptables("-A INPUT -p tcp -m multiport --dports 22,80:82 -m limit --limit 3/min -j ACCEPT");
        iptables("-A INPUT -p udp --dport 53 -m addrtype --dst-type LOCAL -j ACCEPT");
    };
    scratch.host.run(rules).unwrap();
    let report = run(&scratch.host);
    let answers: Vec<_> = report.reached.iter().map(|reached| reached.local.to_string()).collect();
    assert_eq!(answers, ["22,80-82", "53", "1-65535", "1-65535"]);
}

#[test]
fn the_live_host_answers_as_the_twin_says() {
    let Some(scratch) = scratch("the_live_host_answers_as_the_twin_says") else { return };
    let rules = r#"
        table inet t {
          chain input {
            type filter hook input priority filter; policy drop;
            ct state established,related accept
            icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
            tcp dport { 22, 80, 20000-30000 } accept
            ip6 version 6 tcp dport 50000 accept
            udp dport 53 accept
          }
        }"#;
    let start = || {
        nft(rules);
        [22, 23, 50000].map(|port| TcpListener::bind(("::", port)).unwrap())
    };
    let _listeners = scratch.host.run(start).unwrap();
    let report = run(&scratch.host);
    for (target, open) in [(HOST4, "22"), (HOST6, "22,50000")] {
        let target = target.parse().unwrap();
        let scan = scratch.internet.run(|| probe::scan_tcp(target)).unwrap().unwrap();
        assert_eq!(scan.open.to_string(), open);
        let mut answered = scan.refused.clone();
        answered.extend_from(&scan.open);
        assert_eq!(answered, report.ports(Proto::Tcp, target.is_ipv6()), "{target}");
    }
}

#[test]
fn an_interface_that_is_not_there_is_an_error() {
    let Some(scratch) = scratch("an_interface_that_is_not_there_is_an_error") else { return };
    let error = scratch.host.run(|| twin::probe(&TwinSpec::new("eth5"))).unwrap().unwrap_err();
    assert_eq!(error.to_string(), "there is no interface `eth5`");
}
