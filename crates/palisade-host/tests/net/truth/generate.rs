//! Rulesets made by chance, of what people write: sets, maps, chains, marks, limits, rewritten destinations.
//!
//! Limits are so high that the few packets of a comparison stay below them.

use std::fmt::Write;

use super::{Ruleset, Speech};

/// A small generator of numbers (xorshift64*), so that a seed gives the same rulesets everywhere.
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }
    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
    pub(super) fn shuffle<T>(&mut self, values: &mut [T]) {
        for at in (1..values.len()).rev() {
            values.swap(at, self.below(at as u64 + 1) as usize);
        }
    }
    /// Mostly one of a few, so that rules meet each other.
    fn port(&mut self) -> u16 {
        let usual = [22, 25, 53, 80, 443, 993, 3000, 5432, 8000, 8080, 9090, 11434, 51820, 60000];
        if self.one_in(4) { self.below(65_535) as u16 + 1 } else { self.of(&usual) }
    }
    fn range(&mut self, separator: char) -> String {
        let first = self.port();
        let last = first.saturating_add(self.of(&[1, 10, 100, 2000, 20_000]));
        format!("{first}{separator}{last}")
    }
    fn port_or_range(&mut self, separator: char) -> String {
        if self.one_in(3) { self.range(separator) } else { self.port().to_string() }
    }
    fn ports(&mut self, most: u64, separator: char) -> Vec<String> {
        (0..=self.below(most)).map(|_| self.port_or_range(separator)).collect()
    }
}

pub(super) fn ruleset(name: String, speech: Speech, chance: &mut Chance) -> Ruleset {
    let mut ruleset = match speech {
        Speech::Nft => Ruleset::new(name, speech, nft(chance)),
        _ => iptables(name, speech, chance),
    };
    ruleset.rp_filter = chance.of(&[0, 0, 1, 2]);
    ruleset
}

fn nft(chance: &mut Chance) -> String {
    let mut text = String::new();
    let tables = 1 + chance.below(3);
    for table in 0..tables {
        nft_table(chance, table, &mut text);
    }
    if chance.one_in(3) {
        nft_rewriting(chance, &mut text);
    }
    if chance.one_in(5) {
        let ports = chance.port_or_range('-');
        let proto = chance.of(&["tcp", "udp"]);
        let _ = writeln!(
            text,
            "table netdev early {{ chain c {{ type filter hook ingress device \"eth0\" priority {}; {proto} dport {ports} drop; }}; }}",
            chance.of(&[-500, 0, 10])
        );
    }
    text
}

fn nft_table(chance: &mut Chance, number: u64, text: &mut String) {
    let family = chance.of(&["inet", "inet", "inet", "ip", "ip6"]);
    let _ = writeln!(text, "table {family} t{number} {{");
    let distinct: Vec<String> = (0..3).map(|_| chance.port().to_string()).collect();
    let _ = writeln!(text, "  set plain {{ type inet_service; elements = {{ {} }}; }}", unique(distinct).join(", "));
    let _ = writeln!(
        text,
        "  set ranges {{ type inet_service; flags interval; auto-merge; elements = {{ {} }}; }}",
        chance.ports(4, '-').join(", ")
    );
    let keys: Vec<_> = (0..3).map(|_| format!("{} . {}", chance.of(&["tcp", "udp"]), chance.port())).collect();
    let elements: Vec<_> = unique(keys)
        .into_iter()
        .map(|key| {
            format!("{key} : {}", chance.of(&["accept", "drop", "jump first", "goto second", "return", "continue"]))
        })
        .collect();
    let _ = writeln!(
        text,
        "  map verdicts {{ type inet_proto . inet_service : verdict; elements = {{ {} }}; }}",
        elements.join(", ")
    );
    // A chain leads only to later ones, so there is no loop.
    for (chain, deeper) in [("second", &[][..]), ("first", &["second"][..])] {
        let _ = writeln!(text, "  chain {chain} {{");
        for _ in 0..1 + chance.below(3) {
            let rule = nft_rule(chance, family, deeper);
            let _ = writeln!(text, "    {rule}");
        }
        text.push_str("  }\n");
    }
    if chance.one_in(4) {
        let priority = chance.of(&["raw", "mangle", "-350"]);
        let (mark, untracked) = (nft_mark(chance), nft_condition(chance, family, "notrack"));
        let _ = writeln!(
            text,
            "  chain before {{\n    type filter hook prerouting priority {priority};\n    {mark}\n    {untracked}\n  }}"
        );
    }
    let policy = chance.of(&["drop", "drop", "accept"]);
    let priority = chance.of(&["filter", "filter + 10", "-5", "security", "0"]);
    let _ = writeln!(text, "  chain input {{\n    type filter hook input priority {priority}; policy {policy};");
    if chance.one_in(2) {
        text.push_str(
            "    ct state vmap { established : accept, related : accept, invalid : drop }\n    iif lo accept\n",
        );
    }
    for _ in 0..3 + chance.below(6) {
        let rule = nft_rule(chance, family, &["first", "second"]);
        let _ = writeln!(text, "    {rule}");
    }
    text.push_str("  }\n}\n");
}

fn unique(mut values: Vec<String>) -> Vec<String> {
    values.sort();
    values.dedup();
    values
}

fn nft_mark(chance: &mut Chance) -> String {
    format!(
        "{} dport {} meta mark set {}",
        chance.of(&["tcp", "udp"]),
        chance.port_or_range('-'),
        chance.of(&[1, 2, 3])
    )
}

fn nft_rule(chance: &mut Chance, family: &str, chains: &[&str]) -> String {
    if chance.one_in(12) {
        return "meta l4proto . th dport vmap @verdicts"
            .replace("@verdicts", if chains.len() == 2 { "@verdicts" } else { "{ tcp . 22 : accept }" });
    }
    if chance.one_in(12) {
        let ports = unique((0..3).map(|_| chance.port().to_string()).collect());
        let elements: Vec<_> =
            ports.iter().map(|port| format!("{port} : {}", chance.of(&["accept", "drop", "continue"]))).collect();
        return format!("{} dport vmap {{ {} }}", chance.of(&["tcp", "udp"]), elements.join(", "));
    }
    let mut verdicts = vec!["accept", "accept", "accept", "drop", "return", "counter accept", "reject", "counter"];
    let jumps: Vec<String> =
        chains.iter().flat_map(|chain| [format!("jump {chain}"), format!("goto {chain}")]).collect();
    verdicts.extend(jumps.iter().map(String::as_str));
    let verdict = chance.of(&verdicts).to_owned();
    nft_condition(chance, family, &verdict)
}

fn nft_condition(chance: &mut Chance, family: &str, verdict: &str) -> String {
    let mut rule: Vec<String> = Vec::new();
    if chance.one_in(3) {
        let interface = chance.of(&[
            "iif \"eth0\"",
            "iifname \"eth0\"",
            "iifname \"eth*\"",
            "iifname \"lan*\"",
            "iifname != \"lo\"",
            "iifname { \"lan0\", \"eth9\" }",
            "iifname \"wlan0\"",
            "meta iifname != \"eth0\"",
        ]);
        rule.push(interface.to_owned());
    }
    if chance.one_in(3) {
        let source = match (family, chance.below(2)) {
            ("ip", _) | ("inet", 0) => chance.of(&[
                "ip saddr 203.0.113.0/24",
                "ip saddr != 10.0.0.0/8",
                "ip saddr { 10.1.0.2, 198.51.100.0/24 }",
                "ip daddr 203.0.113.1",
                "ip daddr != { 203.0.113.9, 10.1.0.0/24 }",
                "ip protocol { tcp, udp }",
            ]),
            _ => chance.of(&[
                "ip6 saddr 2001:db8::/32",
                "ip6 saddr != fd00::/8",
                "ip6 daddr { fd00:1::1, 2001:db8::7 }",
                "ip6 nexthdr tcp",
            ]),
        };
        rule.push(source.to_owned());
    }
    if chance.one_in(4) {
        let other = chance.of(&[
            "ct state new",
            "ct state != invalid",
            "ct state established,related",
            "fib daddr type local",
            "fib saddr . iif oif exists",
            "fib saddr . iif oif missing",
            "meta mark 1",
            "meta mark != 2",
            "limit rate 10000/second burst 60000 packets",
            "limit rate over 50000/second burst 60000 packets",
            "meta pkttype host",
            "ct count over 60000",
            "meta l4proto { tcp, udp }",
            "tcp flags & (fin | syn | rst | ack) == syn",
        ]);
        rule.push(other.to_owned());
    }
    if !chance.one_in(6) {
        let proto = chance.of(&["tcp", "tcp", "udp", "th"]);
        if proto == "th" && !rule.iter().any(|part| part.contains("{ tcp, udp }")) {
            rule.push("meta l4proto { tcp, udp }".into());
        }
        let ports = match chance.below(6) {
            0 => "@plain".into(),
            1 => "@ranges".into(),
            2 => format!("{{ {} }}", unique((0..4).map(|_| chance.port().to_string()).collect()).join(", ")),
            3 => format!("!= {}", chance.range('-')),
            4 => chance.range('-'),
            _ => chance.port().to_string(),
        };
        rule.push(format!("{proto} dport {ports}"));
    }
    // Reads as an error where a protocol was ruled out before.
    let text = rule.join(" ");
    let text = match () {
        () if text.contains("{ tcp, udp }") => text.replace("tcp dport", "th dport").replace("udp dport", "th dport"),
        () if text.contains("tcp flags") || text.contains("nexthdr tcp") => text.replace("udp dport", "tcp dport"),
        () => text,
    };
    format!("{text} {verdict}")
}

fn nft_rewriting(chance: &mut Chance, text: &mut String) {
    let _ = writeln!(text, "table ip nat {{\n  chain pre {{\n    type nat hook prerouting priority dstnat;");
    for _ in 0..1 + chance.below(3) {
        let interface = chance.of(&["", "iif \"eth0\" ", "iifname != \"docker0\" "]);
        let proto = chance.of(&["tcp", "udp"]);
        let from = chance.port();
        let to = match chance.below(3) {
            0 => format!("redirect to :{}", chance.port()),
            1 => format!("dnat to 172.17.0.2:{}", chance.of(&[53, 80, 5432, 8080])),
            _ => format!("dnat to 203.0.113.1:{}", chance.port()),
        };
        let _ = writeln!(text, "    {interface}{proto} dport {from} {to}");
    }
    text.push_str("  }\n}\n");
    if chance.one_in(2) {
        let ports = unique((0..2).map(|_| chance.of(&[53, 80, 5432, 8080]).to_string()).collect()).join(", ");
        let _ = writeln!(
            text,
            "table inet passing {{ chain f {{ type filter hook forward priority filter; policy drop;
  ct state established,related accept
  iifname \"docker0\" accept
  oifname \"docker0\" {} accept
}}; }}",
            chance
                .of(&["ct status dnat", "th dport { PORTS }", "ip daddr 172.17.0.2 tcp dport { PORTS }"])
                .replace("PORTS", &ports)
        );
    }
}

fn iptables(name: String, speech: Speech, chance: &mut Chance) -> Ruleset {
    let ipsets = "create banned hash:net family inet
create friends hash:ip family inet
create services bitmap:port range 1-65535
create banned6 hash:net family inet6
create friends6 hash:ip family inet6
add banned 198.51.100.0/24
add banned6 2001:db8:bad::/48
";
    let mut sets = ipsets.to_owned();
    let member =
        |chance: &mut Chance, line: &str| if chance.one_in(2) { format!("add {line}\n") } else { String::new() };
    sets += &member(chance, "friends 203.0.113.2");
    sets += &member(chance, "friends6 2001:db8::2");
    sets += &member(chance, "banned 203.0.113.0/28");
    for port in unique((0..3).map(|_| chance.port().to_string()).collect()) {
        let _ = writeln!(sets, "add services {port}");
    }
    let mut ruleset = Ruleset::new(name, speech, iptables_tables(chance, false));
    if !chance.one_in(3) {
        ruleset.ipv6 = iptables_tables(chance, true);
    }
    if ruleset.text.contains("--match-set") || ruleset.ipv6.contains("--match-set") {
        ruleset.ipsets = sets;
    }
    ruleset
}

fn iptables_tables(chance: &mut Chance, ipv6: bool) -> String {
    let mut text = String::new();
    if chance.one_in(4) {
        let _ = writeln!(
            text,
            "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p {} --dport {} -j {}\nCOMMIT",
            chance.of(&["tcp", "udp"]),
            chance.port_or_range(':'),
            chance.of(&["DROP", "NOTRACK"])
        );
    }
    if chance.one_in(3) {
        text.push_str("*mangle\n:PREROUTING ACCEPT [0:0]\n");
        let _ = writeln!(
            text,
            "-A PREROUTING -p {} -m multiport --dports {} -j MARK --set-xmark 0x{}/0xffffffff\nCOMMIT",
            chance.of(&["tcp", "udp"]),
            multiport(chance),
            chance.of(&[1, 2])
        );
    }
    if chance.one_in(3) {
        text.push_str(
            "*nat\n:PREROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n",
        );
        for _ in 0..1 + chance.below(2) {
            let to = match chance.below(if ipv6 { 1 } else { 2 }) {
                0 => format!("REDIRECT --to-ports {}", chance.port()),
                _ => format!("DNAT --to-destination 172.17.0.2:{}", chance.of(&[53, 80, 5432, 8080])),
            };
            let _ = writeln!(
                text,
                "-A DOCKER {}-p {} --dport {} -j {to}",
                chance.of(&["", "! -i docker0 ", "-i eth0 "]),
                chance.of(&["tcp", "udp"]),
                chance.port()
            );
        }
        text.push_str("COMMIT\n");
    }
    let _ = writeln!(
        text,
        "*filter\n:INPUT {} [0:0]\n:FORWARD {} [0:0]\n:FIRST - [0:0]\n:SECOND - [0:0]",
        chance.of(&["DROP", "DROP", "ACCEPT"]),
        chance.of(&["DROP", "ACCEPT"])
    );
    text.push_str("-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -i docker0 -j ACCEPT\n");
    if chance.one_in(2) {
        text.push_str("-A FORWARD -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT\n");
    }
    if chance.one_in(2) {
        text.push_str("-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A INPUT -i lo -j ACCEPT\n");
    }
    for _ in 0..3 + chance.below(7) {
        let _ = writeln!(text, "-A INPUT {}", iptables_rule(chance, ipv6, &["FIRST", "SECOND"]));
    }
    for (chain, deeper) in [("FIRST", &["SECOND"][..]), ("SECOND", &[][..])] {
        for _ in 0..1 + chance.below(3) {
            let _ = writeln!(text, "-A {chain} {}", iptables_rule(chance, ipv6, deeper));
        }
    }
    text.push_str("COMMIT\n");
    text
}

fn multiport(chance: &mut Chance) -> String {
    chance.ports(4, ':').join(",")
}

fn iptables_rule(chance: &mut Chance, ipv6: bool, chains: &[&str]) -> String {
    let mut rule: Vec<String> = Vec::new();
    if chance.one_in(4) {
        let sources = if ipv6 {
            ["-s 2001:db8::/64", "! -s fd00::/8", "-d 2001:db8::1/128", "-s fd00:1::2/128"]
        } else {
            ["-s 203.0.113.0/24", "! -s 10.0.0.0/8", "-d 203.0.113.1/32", "-s 10.1.0.2/32"]
        };
        rule.push(chance.of(&sources).to_owned());
    }
    if chance.one_in(3) {
        rule.push(chance.of(&["-i eth0", "-i eth+", "! -i lan0", "! -i lo", "-i lan+", "-i wg0"]).to_owned());
    }
    match chance.below(8) {
        0 => (),
        1 => rule.push("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN".into()),
        2 | 3 => rule.push(format!("-p {} -m multiport --dports {}", chance.of(&["tcp", "udp"]), multiport(chance))),
        4 => rule.push(format!("-p tcp -m multiport ! --dports {}", multiport(chance))),
        _ => {
            let proto = chance.of(&["tcp", "udp"]);
            let not = chance.of(&["", "", "", "! "]);
            rule.push(format!("-p {proto} -m {proto} {not}--dport {}", chance.port_or_range(':')));
        }
    }
    let six = if ipv6 { "6" } else { "" };
    match chance.below(14) {
        0 => rule.push("-m conntrack --ctstate NEW".into()),
        1 => rule.push("-m conntrack --ctstate INVALID".into()),
        2 => rule.push("-m state --state NEW,ESTABLISHED".into()),
        3 if !ipv6 => rule.push("-m addrtype --dst-type LOCAL".into()),
        4 => rule.push(format!("-m set --match-set friends{six} src")),
        5 => rule.push(format!("-m set ! --match-set banned{six} src")),
        6 if !ipv6 => rule.push("-m set --match-set services dst".into()),
        7 => rule.push("-m mark --mark 0x1".into()),
        8 => rule.push("-m limit --limit 10000/sec --limit-burst 10000".into()),
        9 => rule.push("-m comment --comment \"-m limit --limit 1/sec, they said\"".into()),
        10 => rule.push(
            "-m hashlimit --hashlimit-upto 9000/sec --hashlimit-burst 9000 --hashlimit-mode srcip --hashlimit-name h"
                .into(),
        ),
        11 if !ipv6 => rule.push("-m iprange --src-range 203.0.113.1-203.0.113.9".into()),
        _ => (),
    }
    let mut targets = vec!["-j ACCEPT", "-j ACCEPT", "-j ACCEPT", "-j DROP", "-j REJECT", "-j RETURN"];
    let jumps: Vec<String> = chains.iter().flat_map(|chain| [format!("-j {chain}"), format!("-g {chain}")]).collect();
    targets.extend(jumps.iter().map(String::as_str));
    rule.push(chance.of(&targets).to_owned());
    rule.join(" ")
}
