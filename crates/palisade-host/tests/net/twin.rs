//! The twin says what is true of crafted rulesets, and what the live host answers.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use palisade_core::stack::Proto;
use palisade_host::link::{self, VethEnd};
use palisade_host::netns::Netns;
use palisade_host::probe;
use palisade_host::twin::{self, PortSet, Traced, Twin, TwinReport, TwinSpec, Verdict, Why, World};

use crate::{HOST4, HOST6, missing, nft, scratch, tool};

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
    if let Some(missing) = missing(&["iptables-nft"]) {
        println!("SKIPPED: {test}: {missing} is not installed");
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

/// A second interface with a private network, a route to a network behind it, and one by a routing rule.
const MORE_ROADS: &str = "
    ip link add lan0 type veth peer name lan1
    ip addr add 10.1.0.1/24 dev lan0
    ip -6 addr add fd00:1::1/64 dev lan0 nodad
    ip link set lan0 up
    ip link set lan1 up
    ip route add 198.51.100.0/24 via 10.1.0.7
    ip route add 192.0.2.0/24 dev lan0 table 77
    ip rule add to 192.0.2.0/25 lookup 77
    ip route add unreachable 100.64.0.0/10
";

#[test]
fn worlds_come_in_by_the_interface_that_leads_back_to_them() {
    let Some(scratch) = scratch("worlds_come_in_by_the_interface_that_leads_back_to_them") else { return };
    let work = || {
        tool(&["sh", "-e"], MORE_ROADS);
        let world = |cidr: &str| {
            let world = World::from_cidr(cidr).map_err(|error| error.to_string())?;
            Ok((world.interface.clone(), [false, true].map(|ipv6| world.source(ipv6).map(|ip| ip.to_string()))))
        };
        let found = |interface: &str, ip: &str| {
            let sources =
                [Some(ip.to_owned()).filter(|ip| !ip.contains(':')), Some(ip.to_owned()).filter(|ip| ip.contains(':'))];
            Ok::<_, String>((interface.to_owned(), sources))
        };
        assert_eq!(world("198.51.100.0/24"), found("lan0", "198.51.100.250"));
        assert_eq!(world("192.0.2.0/25"), found("lan0", "192.0.2.1"));
        assert_eq!(world("192.0.2.128/25"), found("eth0", "192.0.2.129"));
        assert_eq!(world("10.1.0.1/31"), found("lan0", "10.1.0.0"), "the host has the other one");
        assert_eq!(world("fd00:1::/64"), found("lan0", "fd00:1::fa"));
        assert_eq!(world("8.8.8.8"), found("eth0", "8.8.8.8"));
        let no = |text: &str| Err(text.to_owned());
        assert_eq!(world("10.1.0.1"), no("10.1.0.1 is this host itself"));
        assert_eq!(world("127.0.0.0/8"), no("nobody outside can have an address of 127.0.0.0/8"));
        assert_eq!(
            world("100.64.0.0/10"),
            no("this host has no route to 100.64.0.0/10, so nothing from there is answered")
        );
        assert_eq!(
            world("10.1.0.0/99"),
            no("`10.1.0.0/99` is not a network; write it as 198.51.100.0/24 or 2001:db8::/32")
        );
        let lan = World::network_of("lan0").unwrap();
        assert_eq!((lan.ipv4, lan.ipv6), (Some([10, 1, 0, 250].into()), Some("fd00:1::fa".parse().unwrap())));
        let error = World::network_of("lan1").map(|world| (world.ipv4, world.ipv6.is_some())).unwrap();
        assert_eq!(error, (None, true), "neighbours by link-local addresses only");
        assert_eq!(World::network_of("lan7").unwrap_err().to_string(), "there is no interface `lan7`");
    };
    scratch.host.run(work).unwrap();
}

#[test]
fn each_world_gets_what_the_rules_give_it() {
    let Some(scratch) = scratch("each_world_gets_what_the_rules_give_it") else { return };
    let work = || {
        tool(&["sh", "-e"], MORE_ROADS);
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap();
        nft(r#"
            table inet t {
              chain input {
                type filter hook input priority filter; policy drop;
                tcp dport 443 accept
                iifname "lan0" tcp dport 5432 accept
                ip saddr 10.1.0.0/24 tcp dport 22 accept
                ip saddr 198.51.100.0/24 tcp dport 873 accept
                iifname "lan0" ip6 saddr fe80::/10 udp dport 546 accept
                ip daddr 10.1.0.1 udp dport 123 accept
                fib saddr . iif oif missing tcp dport 666 accept
              }
            }"#);
        let reached = |world: World| {
            let report = twin::probe(&TwinSpec::of(world)).unwrap();
            report.reached.iter().map(|reached| reached.local.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(reached(World::internet("eth0")), "443 none 443 none");
        assert_eq!(reached(World::network_of("lan0").unwrap()), "22,443,5432 123 443,5432 none");
        assert_eq!(reached(World::network_of("lan1").unwrap()), "443 none");
        assert_eq!(reached(World::from_cidr("198.51.100.0/24").unwrap()), "443,873,5432 123");
        // A neighbour of one network can't come in by the interface of the other.
        let mut stray = World::network_of("lan0").unwrap();
        stray.interface = "eth0".into();
        stray.ipv6 = None;
        assert_eq!(reached(stray), "none none");
        // Only some ports.
        let mut spec = TwinSpec::new("eth0");
        spec.ports = [442, 443, 444].into_iter().collect();
        let report = twin::probe(&spec).unwrap();
        assert_eq!((report.packets, report.reached[0].local.to_string().as_str()), (12, "443"));
    };
    scratch.host.run(work).unwrap();
}

/// What became of the packet, and the words of each rule with what it said.
fn told(traced: &Traced) -> String {
    let rules = traced.rules.iter().map(|rule| format!("{rule} => {}", rule.verdict));
    rules.chain([traced.verdict.to_string()]).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_trace_names_the_rules_that_judged() {
    let Some(scratch) = scratch("a_trace_names_the_rules_that_judged") else { return };
    let work = || {
        nft(r#"
            table inet t {
              set web { type inet_service; flags interval; elements = { 80, 443, 8000-8010 } }
              chain prerouting { type filter hook prerouting priority raw; meta l4proto tcp counter; }
              chain public { tcp dport 8005 return; tcp dport @web limit rate 5/second accept comment "the web"; }
              chain input {
                type filter hook input priority filter; policy drop;
                limit rate over 100/second drop
                tcp dport 1-9000 jump public
                tcp dport 8005 reject with tcp reset
                tcp dport 22 goto public
              }
            }
            table ip late {
              chain input { type filter hook input priority 10; tcp dport 443 drop; }
            }
            table ip nat {
              chain pre { type nat hook prerouting priority dstnat; tcp dport 81 redirect to :80; }
            }"#);
        let traced = twin::trace(&TwinSpec::new("eth0"), Proto::Tcp, false, &[80, 443, 8005, 22, 9999, 81]).unwrap();
        let at_first = "table inet t, chain prerouting: meta l4proto tcp counter => continue
table inet t, chain prerouting: policy accept => accept
";
        let nat = "table ip nat, chain pre: policy accept => accept\n";
        let jump = "table inet t, chain input: tcp dport 1-9000 jump public => jump public\n";
        let web =
            "table inet t, chain public: tcp dport @web limit rate 5/second accept comment \"the web\" => accept\n";
        let expected = [
            format!(
                "{at_first}{nat}{jump}{web}table ip late, chain input: policy accept => accept\ngets to local port 80"
            ),
            format!("{at_first}{nat}{jump}{web}table ip late, chain input: tcp dport 443 drop => drop\nis dropped"),
            format!(
                "{at_first}{nat}{jump}table inet t, chain public: tcp dport 8005 return => return\ntable inet t, chain input: tcp dport 8005 reject with tcp reset => drop\nis dropped"
            ),
            format!(
                "{at_first}{nat}{jump}table inet t, chain input: tcp dport 22 goto public => goto public\ntable inet t, chain input: policy drop => drop\nis dropped"
            ),
            format!("{at_first}{nat}table inet t, chain input: policy drop => drop\nis dropped"),
            format!(
                "{at_first}table ip nat, chain pre: tcp dport 81 redirect to :80 => accept\n{jump}{web}table ip late, chain input: policy accept => accept\ngets to local port 80"
            ),
        ];
        for (traced, expected) in traced.iter().zip(&expected) {
            assert_eq!(&told(traced), expected, "port {}", traced.port);
        }
        let decided = |at: usize| traced[at].decided_by().unwrap().rule.as_str();
        assert_eq!(decided(0), "tcp dport @web limit rate 5/second accept comment \"the web\"");
        assert_eq!(decided(1), "tcp dport 443 drop");
        assert_eq!(decided(4), "policy drop");
        // The same twin answers both questions, and tracing leaves nothing behind.
        let twin = twin::Twin::copy(&TwinSpec::new("eth0")).unwrap();
        let before = twin.probe().unwrap();
        let many: Vec<u16> = (1..=50).collect();
        assert_eq!(twin.trace(Proto::Udp, true, &many).unwrap().len(), 50);
        assert_eq!(twin.probe().unwrap().reached, before.reached);
    };
    scratch.host.run(work).unwrap();
}

#[test]
fn a_trace_speaks_as_iptables_does() {
    let test = "a_trace_speaks_as_iptables_does";
    let Some(scratch) = scratch(test) else { return };
    if let Some(missing) = missing(&["iptables-nft", "iptables-legacy"]) {
        println!("SKIPPED: {test}: {missing} is not installed");
        return;
    }
    let work = || {
        tool(
            &["iptables-nft-restore"],
            "*filter
:INPUT DROP [0:0]
:WEB - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m multiport --dports 80,443 -m limit --limit 3/min -j WEB
-A WEB -m comment --comment \"all of it\" -j ACCEPT
COMMIT
",
        );
        // What isn't iptables' own, but stands in its table.
        nft("add rule ip filter INPUT tcp dport { 25, 26 } accept");
        tool(&["ip6tables-legacy", "-A", "INPUT", "-p", "tcp", "--dport", "25", "-j", "DROP"], "");
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap();
        let twin = twin::Twin::copy(&TwinSpec::new("eth0")).unwrap();
        let traced = twin.trace(Proto::Tcp, false, &[443, 25, 27]).unwrap();
        let web = "table ip filter, chain INPUT: -A INPUT -p tcp -m multiport --dports 80,443 -m limit --limit 3/min -j WEB => jump WEB
table ip filter, chain WEB: -A WEB -m comment --comment \"all of it\" -j ACCEPT => accept
gets to local port 443";
        assert_eq!(told(&traced[0]), web);
        assert_eq!(traced[1].verdict, Verdict::Local { port: 25 });
        assert_eq!(told(&traced[2]), "table ip filter, chain INPUT: policy drop => drop\nis dropped");
        let report = twin.probe().unwrap();
        let answers: Vec<_> = report.reached.iter().map(|reached| reached.local.to_string()).collect();
        assert_eq!(answers, ["25-26,80,443", "none", "1-24,26-65535", "1-65535"]);
        let traced = twin.trace(Proto::Tcp, true, &[25, 26]).unwrap();
        assert_eq!(told(&traced[0]), "is dropped by iptables-legacy; it can't be traced");
        assert_eq!((told(&traced[1]).as_str(), traced[1].legacy), ("gets to local port 26", true));
        // Nobody of this network comes in by eth0: no rule drops that.
        let mut stray = World::internet("eth0");
        stray.ipv4 = Some([127, 0, 0, 9].into());
        let traced = twin::trace(&TwinSpec::of(stray), Proto::Tcp, false, &[443]).unwrap();
        assert_eq!(told(&traced[0]), "is dropped by the kernel, by no rule (rp_filter, or no way there)");
    };
    scratch.host.run(work).unwrap();
}

#[test]
fn classes_of_ports_answer_as_all_of_them_would() {
    let Some(scratch) = scratch("classes_of_ports_answer_as_all_of_them_would") else { return };
    let ports: String = (0..1_200_u32).map(|n| format!("tcp dport {} accept\n", 1 + n * 37 % 65_500)).collect();
    let rules = |more: &str| {
        format!(
            "table inet t {{\nchain input {{\ntype filter hook input priority 0; policy drop;\n{more}\n{ports}\
             udp dport 40000-50000 accept\nip6 nexthdr udp udp dport > 60000 accept\n}}\n}}\n"
        )
    };
    let known: PortSet = [5, 45_000].into_iter().collect();
    let mut sent = Vec::new();
    for more in ["", "tcp dport & 1024 == 1024 drop"] {
        scratch.host.run(|| nft(&format!("flush ruleset\n{}", rules(more)))).unwrap();
        let twin = scratch.host.run(|| Twin::copy(&TwinSpec::new("eth0"))).unwrap().unwrap();
        let (by_classes, all) = (twin.probe_by_classes(&known).unwrap(), twin.probe().unwrap());
        assert_eq!(by_classes.reached, all.reached, "{more}");
        sent.push(by_classes.packets);
    }
    assert!(sent[0] < 20_000 && sent[1] >= 4 * 65_535, "{sent:?}: what is computed from ports is asked in full");
}

/// Runs `work` on a thread that sees this script in the place of `nft`, in a mount namespace of its own.
fn with_fake_nft<T: Send>(script: &str, work: impl FnOnce() -> T + Send) -> T {
    let fake = std::env::temp_dir().join(format!("palisade-fake-nft-{}-{}", std::process::id(), script.len()));
    std::fs::write(&fake, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let output = std::process::Command::new("sh").args(["-c", "command -v nft"]).output().unwrap();
    let real = String::from_utf8(output.stdout).unwrap();
    let inside = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let (none, private) = (None::<&str>, nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE);
        nix::mount::mount(none, "/", none, private, none).unwrap();
        nix::mount::mount(Some(&fake), real.trim(), none, nix::mount::MsFlags::MS_BIND, none).unwrap();
        work()
    };
    let result = std::thread::scope(|scope| scope.spawn(inside).join());
    std::fs::remove_file(&fake).unwrap();
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What the twin says is wrong.
fn complaint(scratch: &crate::Scratch) -> String {
    let error = scratch.host.run(|| twin::probe(&TwinSpec::new("eth0"))).unwrap().unwrap_err();
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {source}")
}

#[test]
fn a_tool_that_lies_is_found_out() {
    let Some(scratch) = scratch("a_tool_that_lies_is_found_out") else { return };
    scratch
        .host
        .run(|| {
            nft("table inet t { chain c { type filter hook input priority 0; policy drop; tcp dport 22 accept; }; }")
        })
        .unwrap();
    let says = |script: &str| with_fake_nft(script, || complaint(&scratch));
    let what =
        "cannot read the host's ruleset: the answer of `nft -s list ruleset` isn't the ruleset that the kernel has";
    let missing = format!("{what}: table inet t, chain c has 1 rules, and 0 are listed");
    assert_eq!(says("exit 0"), missing);
    assert_eq!(says("head -c 100000 /dev/urandom"), missing);
    assert_eq!(says("echo 'table inet t {'; echo '\tchain c {'"), missing);
    let invented = "printf 'table inet t {\\n chain c {\\n tcp dport 22 accept\\n udp dport 53 accept\\n }\\n}\\n'";
    assert_eq!(says(invented), format!("{what}: table inet t, chain c has 1 rules, and 2 are listed"));
    assert_eq!(
        says("echo something is wrong >&2; exit 7"),
        "cannot read the host's ruleset: `nft -s list ruleset` failed: something is wrong"
    );
    assert_eq!(
        says("exec yes"),
        "cannot read the host's ruleset: `nft -s list ruleset` printed more than 268435456 bytes and was killed"
    );
}

#[test]
fn a_tool_that_hangs_is_killed_with_what_it_started() {
    let Some(scratch) = scratch("a_tool_that_hangs_is_killed_with_what_it_started") else { return };
    let name = format!("31{:05}", std::process::id() % 100_000);
    // Its child holds the ends of its pipes.
    let hangs = [format!("sleep {name}; exit 0"), format!("exec >&- 2>&-; sleep {name}")];
    std::thread::scope(|scope| {
        for script in &hangs {
            let scratch = &scratch;
            scope.spawn(move || {
                let says = with_fake_nft(script, || complaint(scratch));
                assert_eq!(says, "cannot read the host's ruleset: `nft -s list ruleset` was not done after 20000 ms");
            });
        }
    });
    let left = || {
        std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command) == format!("sleep\0{name}\0")
        })
    };
    // The shell's child dies of the same signal, but nobody here waits for it.
    let deadline = Instant::now() + Duration::from_secs(10);
    while left() {
        assert!(Instant::now() < deadline, "the tool's child still runs");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn filters_of_traffic_control_are_said_to_be_unknown() {
    let test = "filters_of_traffic_control_are_said_to_be_unknown";
    let Some(scratch) = scratch(test) else { return };
    if let Some(program) = missing(&["tc"]) {
        return println!("SKIPPED: {test}: there is no {program}");
    }
    let not_copied = || {
        let report = run(&scratch.host);
        let all = report.unknown.into_iter().filter(|unknown| unknown.why == Why::NotCopied);
        all.map(|unknown| unknown.rule).collect::<Vec<_>>()
    };
    let tc = |arguments: &str| {
        let ran = || std::process::Command::new("tc").args(arguments.split_whitespace()).output().unwrap();
        scratch.host.run(ran).unwrap()
    };
    if !tc("qdisc add dev eth0 clsact").status.success() {
        return println!("SKIPPED: {test}: this kernel has no traffic control");
    }
    assert_eq!(not_copied(), [""; 0]);
    // One instruction: what comes in isn't let through.
    let added = tc("filter add dev eth0 ingress bpf da bytecode 1,6 0 0 0");
    if !added.status.success() {
        return println!("SKIPPED: {test}: {}", String::from_utf8_lossy(&added.stderr));
    }
    assert_eq!(not_copied(), ["filters of traffic control on eth0 (`tc filter show dev eth0 ingress`)"]);
    assert!(tc("filter del dev eth0 ingress").status.success());
    // What leaves is no firewall for what comes in.
    assert!(tc("filter add dev eth0 egress bpf da bytecode 1,6 0 0 0").status.success());
    assert_eq!(not_copied(), [""; 0]);
}
