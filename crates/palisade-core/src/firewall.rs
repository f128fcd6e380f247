//! What the host's firewall should let in, as data.
//!
//! The words of nftables are the host crate's business; so is what other tables do.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::digest::digest_of;
use crate::edge::Edge;
use crate::stack::{BackendChoice, PortProto, Proto, Stack};

/// Whose firewall decides what comes in from outside. Private ports are kept by Palisade's own table in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Palisade's own table, which drops what isn't let in.
    #[default]
    Nftables,
    /// firewalld: ports are opened in the zones of the host's interfaces, and closed again.
    Firewalld,
    /// ufw: it is read and never changed; whoever runs it opens ports.
    Ufw,
    /// The rules of `iptables` and `ip6tables`: ports are opened in a chain of Palisade's own.
    Iptables,
}

impl Backend {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Nftables, Self::Firewalld, Self::Ufw, Self::Iptables];
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Firewalld => "firewalld",
            Self::Ufw => "ufw",
            Self::Iptables => "iptables",
        }
    }
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Everything that may come in besides loopback, answers to what went out, and the ICMP that IP needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallRules {
    /// TCP ports where sshd really listens.
    pub ssh_ports: BTreeSet<u16>,
    /// What the stack publishes to other machines.
    pub published: BTreeSet<OpenPort>,
    /// `x-palisade.firewall.allow`.
    pub allow: BTreeSet<PortProto>,
    /// Who decides about the rest.
    #[serde(default)]
    pub backend: Backend,
}

/// A published port as other machines see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpenPort {
    /// Protocol.
    pub proto: Proto,
    /// The host's port.
    pub port: u16,
    /// The host's address; `None`: all of them.
    pub host_ip: Option<IpAddr>,
}

impl FirewallRules {
    /// What the stack needs on a host that runs this firewall; `None` when the stack says that the host's firewall is not
    /// Palisade's business.
    pub fn of(stack: &Stack, ssh_ports: &BTreeSet<u16>, runs: Backend) -> Option<Self> {
        let backend = match stack.firewall.backend {
            BackendChoice::None => return None,
            BackendChoice::Auto => runs,
            BackendChoice::Nftables => Backend::Nftables,
            BackendChoice::Firewalld => Backend::Firewalld,
            BackendChoice::Iptables => Backend::Iptables,
        };
        let published = stack.services.iter().flat_map(|service| &service.publish).map(|publish| publish.value);
        Some(Self {
            ssh_ports: ssh_ports.clone(),
            published: published
                .filter(|publish| !publish.host_ip.is_some_and(|ip| ip.to_canonical().is_loopback()))
                .map(|publish| OpenPort {
                    proto: publish.container.proto,
                    port: publish.host_port,
                    host_ip: publish.host_ip.map(|ip| ip.to_canonical()).filter(|ip| !ip.is_unspecified()),
                })
                .collect(),
            allow: stack.firewall.allow.iter().map(|port| port.value).collect(),
            backend,
        })
    }
    /// Palisade's own table drops what it doesn't let in.
    pub fn closes(&self) -> bool {
        self.backend == Backend::Nftables
    }
    /// What another firewall has to let in, of all that isn't sshd's.
    pub fn doors(&self) -> BTreeSet<OpenPort> {
        let allow = self.allow.iter().map(|allow| OpenPort { proto: allow.proto, port: allow.port, host_ip: None });
        self.published.iter().copied().chain(allow).collect()
    }
    /// Tells whether the table in the kernel was made from the same rules.
    pub fn digest(&self) -> String {
        digest_of(self)
    }
}

/// Who publishes or allows a port of the host, and in which line.
pub fn reasons(stack: &Stack) -> BTreeMap<PortProto, String> {
    let published = stack.services.iter().flat_map(|service| {
        service.publish.iter().map(move |publish| {
            let port = PortProto { port: publish.value.host_port, proto: publish.value.container.proto };
            let who = stack.edge_of(service).map_or_else(|| service.name.to_string(), Edge::purpose);
            (port, format!("{who}, {}:{}", publish.place.file, publish.place.line))
        })
    });
    let allowed = stack
        .firewall
        .allow
        .iter()
        .map(|port| (port.value, format!("x-palisade.firewall.allow, {}:{}", port.place.file, port.place.line)));
    let mut reasons: BTreeMap<PortProto, Vec<String>> = BTreeMap::new();
    for (port, reason) in published.chain(allowed) {
        let reasons = reasons.entry(port).or_default();
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    reasons.into_iter().map(|(port, reasons)| (port, reasons.join("; "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{publish, service, stack};

    #[test]
    fn the_edge_is_the_reason_for_its_ports() {
        let stack = crate::testing::stack_with_edge();
        let why = "the edge for barter.example, admin.example, b.example and 2 more, compose.yaml:12";
        let (http, https) = (PortProto { port: 80, proto: Proto::Tcp }, PortProto { port: 443, proto: Proto::Tcp });
        let quic = PortProto { proto: Proto::Udp, ..https };
        assert_eq!(reasons(&stack), [http, https, quic].map(|port| (port, why.to_owned())).into());
        let rules = FirewallRules::of(&stack, &BTreeSet::new(), Backend::Nftables).unwrap();
        let mut doors = crate::prove::open_doors(Some(&rules)).unwrap();
        stack.edge.unwrap().tell_doors(&mut doors);
        assert_eq!(doors.len(), 6);
        assert!(doors.values().all(|why| why.starts_with("the edge for barter.example")), "{doors:?}");
    }

    #[test]
    fn a_port_that_is_published_to_the_host_alone_is_not_opened() {
        let mut web = service("web");
        web.publish = vec![publish(None, 80, 8080), publish(Some("127.0.0.1"), 9000, 9000)];
        web.publish.push(publish(Some("::ffff:127.0.0.1"), 9001, 9001));
        web.publish.push(publish(Some("192.0.2.1"), 81, 8081));
        let rules = FirewallRules::of(&stack([web]), &BTreeSet::from([2222]), Backend::Nftables).unwrap();
        let ports: Vec<_> = rules.published.iter().map(|open| (open.port, open.host_ip)).collect();
        assert_eq!(ports, [(80, None), (81, Some("192.0.2.1".parse().unwrap()))]);
        assert_eq!(rules.ssh_ports, BTreeSet::from([2222]));
    }

    #[test]
    fn a_stack_can_leave_the_firewall_alone() {
        let mut stack = stack([service("web")]);
        stack.firewall.backend = BackendChoice::None;
        assert_eq!(FirewallRules::of(&stack, &BTreeSet::new(), Backend::Firewalld), None);
    }
}
