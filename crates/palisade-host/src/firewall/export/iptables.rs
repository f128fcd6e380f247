//! Files for `iptables-restore` and `ip6tables-restore`.

use std::fmt::Write;

use palisade_core::prove::Family;

use super::{Export, comments};

/// The chain that holds the rules.
const CHAIN: &str = "STACK-INPUT";

/// The text of the file for one family; a host needs both.
pub fn iptables(export: &Export<'_>, family: Family) -> String {
    let (program, other, file, debian) = match family {
        Family::V4 => ("iptables-restore", "ip6tables-restore", "rules.v4", "/etc/iptables/rules.v4"),
        Family::V6 => ("ip6tables-restore", "iptables-restore", "rules.v6", "/etc/iptables/rules.v6"),
    };
    let mut text = comments(&export.head(&[
        format!("{family} only: the other half is for {other}, and without it the host is open by the other protocol."),
        format!("Load it with `{program} {file}`; try it with `{program} --test {file}`. For every boot, keep it as"),
        format!("{debian} (Debian, package iptables-persistent)."),
        "Loading replaces the whole table `filter`, with what an engine or another tool has in it: restart those then, or".to_owned(),
        format!("add `--noflush`, which leaves other chains alone and fills {CHAIN} anew."),
    ]));
    let _ = writeln!(text, "\n*filter\n:INPUT DROP [0:0]\n:{CHAIN} - [0:0]\n-A INPUT -j {CHAIN}\n");
    let mut rule = |rule: &str| {
        let _ = writeln!(text, "-A {CHAIN} {rule}");
    };
    rule("-i lo -j ACCEPT");
    let common = ["-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT", "-m conntrack --ctstate INVALID -j DROP"];
    let own: &[&str] = match family {
        Family::V4 => &IPV4,
        Family::V6 => &IPV6,
    };
    let (before, after) = own.split_at(BEFORE);
    before.iter().chain(&common).chain(after).for_each(|text| rule(text));
    for opening in export.openings() {
        let port = opening.port;
        let ip = port.host_ip.map(|ip| ip.to_canonical());
        if ip.is_some_and(|ip| ip.is_ipv4() != (family == Family::V4)) {
            continue;
        }
        let to = ip.map(|ip| format!("-d {ip} ")).unwrap_or_default();
        let _ = writeln!(text, "\n# {}", opening.comment);
        let _ = writeln!(text, "-A {CHAIN} {to}-p {} --dport {} -j ACCEPT", port.proto, port.port);
    }
    let _ = writeln!(text, "\n-A {CHAIN} -j DROP\nCOMMIT");
    text
}

/// So many of the rules below come before those for answers.
const BEFORE: usize = 2;

const IPV4: [&str; 7] = [
    "-s 127.0.0.0/8 -j DROP",
    "-d 127.0.0.0/8 -m conntrack ! --ctstate DNAT -j DROP",
    "-p icmp --icmp-type destination-unreachable -j ACCEPT",
    "-p icmp --icmp-type time-exceeded -j ACCEPT",
    "-p icmp --icmp-type parameter-problem -j ACCEPT",
    "-p icmp --icmp-type echo-request -m limit --limit 50/second --limit-burst 100 -j ACCEPT",
    "-p udp --sport 67 --dport 68 -j ACCEPT",
];

/// Neighbours count only when no router has passed them on (RFC 4861 section 11.2). 130 to 132 and 143: multicast groups.
const IPV6: [&str; 15] = [
    "-s ::1 -j DROP",
    "-d ::1 -m conntrack ! --ctstate DNAT -j DROP",
    "-p ipv6-icmp --icmpv6-type destination-unreachable -j ACCEPT",
    "-p ipv6-icmp --icmpv6-type packet-too-big -j ACCEPT",
    "-p ipv6-icmp --icmpv6-type time-exceeded -j ACCEPT",
    "-p ipv6-icmp --icmpv6-type parameter-problem -j ACCEPT",
    "-p ipv6-icmp --icmpv6-type echo-request -m limit --limit 50/second --limit-burst 100 -j ACCEPT",
    "-p ipv6-icmp --icmpv6-type router-advertisement -m hl --hl-eq 255 -j ACCEPT",
    "-p ipv6-icmp --icmpv6-type neighbour-solicitation -m hl --hl-eq 255 -j ACCEPT",
    "-p ipv6-icmp --icmpv6-type neighbour-advertisement -m hl --hl-eq 255 -j ACCEPT",
    "-p ipv6-icmp --icmpv6-type 130 -j ACCEPT",
    "-p ipv6-icmp --icmpv6-type 131 -j ACCEPT",
    "-p ipv6-icmp --icmpv6-type 132 -j ACCEPT",
    "-p ipv6-icmp --icmpv6-type 143 -j ACCEPT",
    "-s fe80::/10 -p udp --sport 547 --dport 546 -j ACCEPT",
];
