//! ufw, read and never changed: what it lets in, by the lines in which it keeps what its user typed.

use palisade_core::firewall::OpenPort;
use palisade_core::stack::Proto;
use std::net::IpAddr;
use std::path::Path;

use crate::nft;

/// Where its settings and rules are.
const FOLDER: &str = "/etc/ufw";
const DEFAULTS: &str = "/etc/default/ufw";

/// What ufw does with what comes in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ufw {
    accepts_by_default: bool,
    ipv4: Vec<Rule>,
    ipv6: Vec<Rule>,
}

/// One line that its user typed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    lets_in: bool,
    proto: Option<Proto>,
    /// Ranges of ports; empty: all.
    ports: Vec<(u16, u16)>,
    to: Option<String>,
}

/// Whether ufw is enabled, and its chains are in the calling thread's network namespace.
pub(crate) fn runs() -> bool {
    is_enabled() && has_chains()
}

/// Its user has switched it on: it is loaded at boot. Its package comes switched off.
pub(crate) fn is_enabled() -> bool {
    std::fs::read_to_string(Path::new(FOLDER).join("ufw.conf"))
        .is_ok_and(|text| text.lines().any(|line| line.trim().eq_ignore_ascii_case("ENABLED=yes")))
}

/// Its chains are there.
pub(crate) fn has_chains() -> bool {
    let is_its = |object: &serde_json::Value| object["chain"]["name"] == "ufw-user-input";
    let by_nft = nft::json(&["list", "chains"]).is_ok_and(|objects| objects.iter().any(is_its));
    let old = || {
        let names = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
        !names.is_empty() && nft::run("iptables-legacy", &["-S", "ufw-user-input"], "").is_ok()
    };
    by_nft || old()
}

impl Ufw {
    /// As it is set up.
    pub fn read() -> Self {
        let text = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let folder = Path::new(FOLDER);
        Self::parse(&text(Path::new(DEFAULTS)), &text(&folder.join("user.rules")), &text(&folder.join("user6.rules")))
    }

    fn parse(defaults: &str, rules: &str, rules6: &str) -> Self {
        let accepts = |line: &str| {
            let value = line.trim().strip_prefix("DEFAULT_INPUT_POLICY=");
            value.is_some_and(|value| value.trim_matches('"').eq_ignore_ascii_case("accept"))
        };
        let rules_of = |text: &str| text.lines().filter_map(Rule::parse).collect();
        Self { accepts_by_default: defaults.lines().any(accepts), ipv4: rules_of(rules), ipv6: rules_of(rules6) }
    }

    /// It lets this port in from everywhere.
    pub fn lets_in(&self, door: &OpenPort) -> bool {
        let by = |rules: &[Rule]| {
            let first = rules.iter().find(|rule| rule.matches(door));
            first.map_or(self.accepts_by_default, |rule| rule.lets_in)
        };
        match door.host_ip {
            Some(IpAddr::V4(_)) => by(&self.ipv4),
            Some(IpAddr::V6(_)) => by(&self.ipv6),
            None => by(&self.ipv4) && by(&self.ipv6),
        }
    }
}

impl Rule {
    /// `### tuple ### allow tcp 8080 0.0.0.0/0 any 0.0.0.0/0 in`: action, protocol, port, to, source port, from, direction.
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.strip_prefix("### tuple ### ")?.split_whitespace().collect();
        let [action, proto, port, to, from_port, from, rest @ ..] = &words[..] else { return None };
        // What goes by interface or source isn't for everybody: it neither opens nor shuts the port to the world.
        let everybody = ["0.0.0.0/0", "::/0"];
        let direction = *rest.iter().find(|word| word.starts_with("in") || word.starts_with("out"))?;
        if direction != "in" || *from_port != "any" || !everybody.contains(from) || action.starts_with("route:") {
            return None;
        }
        let range = |text: &str| {
            let (low, high) = text.split_once(':').unwrap_or((text, text));
            Some((low.parse().ok()?, high.parse().ok()?))
        };
        let ports = if *port == "any" { Vec::new() } else { port.split(',').map(range).collect::<Option<_>>()? };
        let proto = match *proto {
            "tcp" => Some(Proto::Tcp),
            "udp" => Some(Proto::Udp),
            "any" => None,
            _ => return None,
        };
        let action = action.split('_').next()?;
        Some(Self {
            lets_in: matches!(action, "allow" | "limit"),
            proto,
            ports,
            to: (!everybody.contains(to)).then(|| (*to).to_owned()),
        })
    }

    fn matches(&self, door: &OpenPort) -> bool {
        let proto = self.proto.is_none_or(|proto| proto == door.proto);
        let port = self.ports.is_empty() || self.ports.iter().any(|(low, high)| (*low..=*high).contains(&door.port));
        let to = self.to.as_ref().is_none_or(|to| door.host_ip.is_some_and(|ip| ip.to_string() == *to));
        proto && port && to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(port: u16) -> OpenPort {
        OpenPort { proto: Proto::Tcp, port, host_ip: None }
    }

    #[test]
    fn what_its_user_typed_is_understood_in_order_and_for_both_families() {
        let rules = "*filter\n### tuple ### deny tcp 8081 0.0.0.0/0 any 0.0.0.0/0 in\n-A x\n\
                     ### tuple ### allow tcp 8000:8999 0.0.0.0/0 any 0.0.0.0/0 in\n\
                     ### tuple ### limit tcp 22 0.0.0.0/0 any 0.0.0.0/0 in comment=73\n\
                     ### tuple ### allow any 53,5353 0.0.0.0/0 any 0.0.0.0/0 in\n\
                     ### tuple ### allow tcp 5432 0.0.0.0/0 any 10.0.0.0/8 in\n\
                     ### tuple ### allow tcp 81 192.0.2.1 any 0.0.0.0/0 in\n\
                     ### tuple ### allow tcp 9000 0.0.0.0/0 any 0.0.0.0/0 in_eth1\n";
        let rules6 = rules.replace("0.0.0.0/0", "::/0");
        let ufw = Ufw::parse("DEFAULT_INPUT_POLICY=\"DROP\"\n", rules, &rules6);
        let open = |port| ufw.lets_in(&tcp(port));
        assert_eq!([22, 8080, 53].map(open), [true; 3]);
        assert_eq!([8081, 5432, 9000, 81, 443].map(open), [false; 5]);
        assert!(ufw.lets_in(&OpenPort { host_ip: Some([192, 0, 2, 1].into()), ..tcp(81) }));
        assert!(ufw.lets_in(&OpenPort { proto: Proto::Udp, ..tcp(5353) }));
        let only4 = Ufw::parse("DEFAULT_INPUT_POLICY=\"DROP\"\n", rules, "");
        assert!(!only4.lets_in(&tcp(8080)), "IPv6 is shut");
        assert!(Ufw::parse("DEFAULT_INPUT_POLICY=\"ACCEPT\"\n", "", "").lets_in(&tcp(1)));
    }
}
