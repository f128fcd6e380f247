//! The table as text for `nft -f`.
//!
//! Nothing is run in here, and nothing is read back.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use palisade_core::firewall::FirewallRules;
use palisade_core::lockout::Risk;

use super::SERVICE_MARK;
use super::read::Current;

/// A table that closes only for a time, in the kernel itself: when nobody has confirmed it by then and nobody was left to
/// take it back, what it closed is open again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ForATime {
    /// How long it closes.
    pub ms: u64,
    /// What it closes.
    pub closes: Risk,
}

/// A chain: its name, its hook if it is a base chain, and its rules, each with the sentence that names it.
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<(String, String)>,
}

/// Where a base chain hangs.
pub(super) struct Base {
    pub(super) hook: &'static str,
    pub(super) priority: i64,
    pub(super) policy: &'static str,
}

/// Sets that each stack has: prefix of the name, and type.
const SETS: [(&str, &str); 5] = [
    ("ssh", "inet_service"),
    ("published", "inet_proto . inet_service"),
    ("published4", "ipv4_addr . inet_proto . inet_service"),
    ("published6", "ipv6_addr . inet_proto . inet_service"),
    ("allow", "inet_proto . inet_service"),
];

/// 127.64.0.0/10 and 127.192.0.0/10 in one comparison; see `palisade_core::address`.
const PRIVATE4: &str = "& 255.64.0.0 == 127.64.0.0";
const PRIVATE6: &str = "fd70:616c:6973:6164::/96";

/// The batch that makes a new table in place of whatever is there, or removes it when no stack is left.
///
/// Towards packets this isn't one step, although it is one transaction: a new base chain gets its policy `drop` only after
/// its rules are in use, and the old one is out of the hook before (`nf_tables_commit()`, seen in 6.18). So the last rule
/// drops what the policy would, and a table that stands is changed by [`in_place`].
pub(super) fn anew(table: &str, stacks: &BTreeMap<String, FirewallRules>, for_a_time: Option<&ForATime>) -> String {
    // Adding it first makes the deletion valid whether or not it is there.
    let mut text = format!("table inet {table}\ndelete table inet {table}\n");
    if !stacks.is_empty() {
        text += &definition(table, stacks, for_a_time);
    }
    text
}

/// The batch that changes the table that is there, if some stack is left. Its base chains stay where they hang, so each packet
/// meets all of the old rules or all of the new ones.
pub(super) fn in_place(
    table: &str,
    stacks: &BTreeMap<String, FirewallRules>,
    for_a_time: Option<&ForATime>,
    found: &Current,
) -> String {
    if stacks.is_empty() {
        return anew(table, stacks, for_a_time);
    }
    let mut text = format!("flush table inet {table}\n");
    for chain in found.foreign_chains(&chains(stacks, for_a_time)) {
        let _ = writeln!(text, "delete chain inet {table} {chain}");
    }
    let wanted = sets(stacks, for_a_time);
    for set in &found.sets {
        let verb = if wanted.iter().any(|(name, _)| name == set) { "flush" } else { "delete" };
        let _ = writeln!(text, "{verb} set inet {table} {set}");
    }
    text + &definition(table, stacks, for_a_time)
}

/// The sets of a table: name, and what is in the braces.
pub(super) fn sets(stacks: &BTreeMap<String, FirewallRules>, for_a_time: Option<&ForATime>) -> Vec<(String, String)> {
    let mut sets = Vec::new();
    for (stack, rules) in stacks {
        for (kind, set_type) in SETS {
            let elements = elements(kind, rules).join(", ");
            let elements = if elements.is_empty() { elements } else { format!(" elements = {{ {elements} }}") };
            sets.push((format!("{kind}.{stack}"), format!("type {set_type};{elements}")));
        }
        if !rules.closes() {
            // Nothing goes by it: it is where it is written who decides.
            sets.push((format!("{}.{stack}", rules.backend), "type inet_service;".to_owned()));
        }
    }
    if let Some(ForATime { ms, .. }) = for_a_time {
        let elements = format!("ipv4 timeout {ms}ms, ipv6 timeout {ms}ms");
        sets.push(("waiting".to_owned(), format!("type nf_proto; flags timeout; elements = {{ {elements} }}")));
    }
    sets
}

fn definition(table: &str, stacks: &BTreeMap<String, FirewallRules>, for_a_time: Option<&ForATime>) -> String {
    let mut text = format!("table inet {table} {{\n");
    for (name, inside) in sets(stacks, for_a_time) {
        let _ = writeln!(text, "  set {name} {{ {inside} }}");
    }
    // A chain must stand before those that jump to it.
    for chain in chains(stacks, for_a_time).iter().rev() {
        let _ = writeln!(text, "  chain {} {{", chain.name);
        if let Some(Base { hook, priority, policy }) = chain.base {
            let _ = writeln!(text, "    type filter hook {hook} priority {priority}; policy {policy};");
        }
        for (rule, comment) in &chain.rules {
            let _ = writeln!(text, "    {rule} comment \"{comment}\"");
        }
        text.push_str("  }\n");
    }
    text.push_str("}\n");
    text
}

fn elements(kind: &str, rules: &FirewallRules) -> Vec<String> {
    let published = |wanted: fn(&Option<IpAddr>) -> bool| {
        rules.published.iter().filter(move |open| wanted(&open.host_ip)).map(|open| {
            let address = open.host_ip.map(|ip| format!("{} . ", ip.to_canonical())).unwrap_or_default();
            format!("{address}{} . {}", open.proto, open.port)
        })
    };
    match kind {
        "ssh" => rules.ssh_ports.iter().map(u16::to_string).collect(),
        "published" => published(Option::is_none).collect(),
        "published4" => published(|ip| ip.is_some_and(|ip| ip.to_canonical().is_ipv4())).collect(),
        "published6" => published(|ip| ip.is_some_and(|ip| ip.to_canonical().is_ipv6())).collect(),
        _ => rules.allow.iter().map(|allow| format!("{} . {}", allow.proto, allow.port)).collect(),
    }
}

/// Localhost stays this host's own, whoever decides about the rest.
fn localhost() -> [(String, String); 2] {
    let rule = |rule: &str, comment: &str| (rule.to_owned(), comment.to_owned());
    [
        rule("ip daddr 127.0.0.0/8 ct status & dnat == 0 drop", "localhost is not for the wire, unless sent there"),
        rule("ip6 daddr ::1 ct status & dnat == 0 drop", "localhost is not for the wire by IPv6, unless sent there"),
    ]
}

/// What every host that closes the rest lets in.
fn open_to_all() -> Vec<(String, String)> {
    let rule = |rule: &str, comment: &str| (rule.to_owned(), comment.to_owned());
    vec![
        rule("ct state vmap { established : accept, related : accept, invalid : drop }", "answers"),
        rule("icmp type { destination-unreachable, time-exceeded, parameter-problem } accept", "errors of IPv4"),
        rule("icmp type echo-request limit rate 50/second burst 100 packets accept", "ping"),
        rule(
            "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } accept",
            "errors of IPv6",
        ),
        rule("icmpv6 type echo-request limit rate 50/second burst 100 packets accept", "ping by IPv6"),
        rule(
            "icmpv6 type { nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept",
            "neighbours of IPv6",
        ),
        rule(
            "icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report } accept",
            "multicast groups of IPv6",
        ),
        rule("udp sport 67 udp dport 68 accept", "answers of DHCP"),
        rule("ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept", "answers of DHCPv6"),
    ]
}

/// What every host lets in and keeps out, whatever its stacks publish.
pub(super) fn ordinary() -> Vec<(String, String)> {
    localhost().into_iter().chain(open_to_all()).collect()
}

/// The chains, those that are jumped to last.
///
/// Loopback comes first and is cheap: a segment of an established connection passes one comparison of flags on its
/// way in and one of addresses on its way out, and private addresses are never tracked.
pub(super) fn chains(stacks: &BTreeMap<String, FirewallRules>, for_a_time: Option<&ForATime>) -> Vec<Chain> {
    let rule = |rule: &str, comment: &str| (rule.to_owned(), comment.to_owned());
    let chain = |name, rules: Vec<_>| Chain { name, base: None, rules };
    let later_segment = "tcp flags & (syn|ack) != syn";
    let mut input = vec![
        rule("iif lo goto loopback", "the host with itself"),
        rule(&format!("ip daddr {PRIVATE4} drop"), "private addresses are not for the wire"),
        rule(&format!("ip6 daddr {PRIVATE6} drop"), "private IPv6 addresses are not for the wire"),
        rule("ip saddr 127.0.0.0/8 drop", "nobody out there is localhost"),
        rule(&format!("ip6 saddr {{ ::1, {PRIVATE6} }} drop"), "nobody out there is localhost by IPv6"),
    ];
    input.extend(localhost());
    // Where somebody else's firewall decides, this one only keeps what is private.
    let closes = stacks.values().any(FirewallRules::closes);
    if closes {
        input.extend(open_to_all());
    }
    for stack in stacks.keys().filter(|_| closes) {
        input.push((format!("tcp dport @ssh.{stack} accept"), format!("SSH, {stack}")));
        for (kind, key) in [
            ("published", "meta l4proto . th dport"),
            ("published4", "ip daddr . meta l4proto . th dport"),
            ("published6", "ip6 daddr . meta l4proto . th dport"),
            ("allow", "meta l4proto . th dport"),
        ] {
            input.push((format!("{key} @{kind}.{stack} accept"), format!("{kind}, {stack}")));
        }
    }
    let mut policy = if closes { "drop" } else { "accept" };
    if let Some(ForATime { closes, .. }) = for_a_time.filter(|_| closes) {
        input.push(rule("meta nfproto @waiting drop", "closed until the time to confirm is over"));
        match closes {
            Risk::ClosesAll => policy = "accept",
            Risk::Closes(ports) => input.extend(ports.iter().map(|open| {
                let text = format!("meta l4proto {} th dport {} accept", open.proto, open.port);
                (text, "open again, as nobody confirmed".to_owned())
            })),
        }
    }
    if policy == "drop" {
        input.push(rule("drop", "everything else"));
    }
    vec![
        Chain { name: "input", base: Some(Base { hook: "input", priority: 0, policy }), rules: input },
        Chain {
            name: "output",
            // Before connection tracking, so that what passes between services is never tracked.
            base: Some(Base { hook: "output", priority: -300, policy: "accept" }),
            rules: vec![
                rule("oif != lo accept", "outside is not our business"),
                rule(&format!("ip daddr {PRIVATE4} goto private_out"), "to a private address"),
                rule(&format!("ip saddr {PRIVATE4} goto private_out"), "from a private address"),
                rule(&format!("ip6 daddr {PRIVATE6} goto private_out"), "to a private IPv6 address"),
                rule(&format!("ip6 saddr {PRIVATE6} goto private_out"), "from a private IPv6 address"),
            ],
        },
        chain(
            "loopback",
            vec![
                rule(&format!("{later_segment} accept"), "segments of connections that were let in"),
                rule(&format!("ip daddr {PRIVATE4} goto private_in"), "new to a private address"),
                rule(&format!("ip6 daddr {PRIVATE6} goto private_in"), "new to a private IPv6 address"),
                rule("accept", "everything else on loopback"),
            ],
        ),
        chain(
            "private_out",
            vec![
                rule(&format!("{later_segment} notrack accept"), "segments of connections that were let out"),
                rule(&format!("meta mark {SERVICE_MARK:#x} notrack accept"), "services"),
                rule("meta skuid != 0 goto refused", "users of the host who are not root"),
                rule("notrack", "root, and the kernel's own answers"),
            ],
        ),
        chain(
            "private_in",
            vec![
                // Without a socket `socket mark` doesn't match, and the kernel answers that the port is closed.
                rule(&format!("socket mark & 0xfffffffd != {SERVICE_MARK:#x} counter drop"), "squatters get nothing"),
                rule("accept", "services"),
            ],
        ),
        chain(
            "refused",
            vec![
                rule("meta l4proto tcp counter reject with tcp reset", "TCP"),
                rule("counter reject with icmpx admin-prohibited", "anything else"),
            ],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::firewall::Backend;

    fn input(backend: Backend, for_a_time: Option<&ForATime>) -> (String, Vec<String>) {
        let rules = FirewallRules { backend, ..FirewallRules::default() };
        let chain = chains(&BTreeMap::from([("shop".to_owned(), rules)]), for_a_time).swap_remove(0);
        (chain.base.unwrap().policy.to_owned(), chain.rules.into_iter().map(|(rule, _)| rule).collect())
    }

    #[test]
    fn where_another_firewall_decides_ours_only_keeps_what_is_private() {
        let waiting = ForATime { ms: 1, closes: Risk::ClosesAll };
        for for_a_time in [None, Some(&waiting)] {
            let (policy, rules) = input(Backend::Firewalld, for_a_time);
            assert_eq!(policy, "accept");
            assert!(rules[1..].iter().all(|rule| rule.ends_with("drop") && rule.contains("addr")), "{rules:?}");
        }
    }

    #[test]
    fn what_closes_for_a_time_is_open_when_the_kernel_forgets_that_it_waits() {
        let waiting = ForATime { ms: 1, closes: Risk::ClosesAll };
        let (policy, rules) = input(Backend::Nftables, Some(&waiting));
        assert_eq!((policy.as_str(), rules.last().unwrap().as_str()), ("accept", "meta nfproto @waiting drop"));
        assert_eq!(input(Backend::Nftables, None).0, "drop");
    }
}
