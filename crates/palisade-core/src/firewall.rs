//! What the host's firewall should let in, as data.
//!
//! The words of nftables are the host crate's business; so is what other tables do.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::digest::digest_of;
use crate::stack::{PortProto, Proto, Stack};

/// Everything that may come in besides loopback, answers to what went out, and the ICMP that IP needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallRules {
    /// TCP ports where sshd really listens.
    pub ssh_ports: BTreeSet<u16>,
    /// What the stack publishes to other machines.
    pub published: BTreeSet<OpenPort>,
    /// `x-palisade.firewall.allow`.
    pub allow: BTreeSet<PortProto>,
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
    /// What the stack needs; `None` when it says that the host's firewall is not Palisade's business.
    pub fn of(stack: &Stack, ssh_ports: &BTreeSet<u16>) -> Option<Self> {
        if stack.firewall.disabled {
            return None;
        }
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
        })
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
            (port, format!("{}, {}:{}", service.name, publish.place.file, publish.place.line))
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
    fn a_port_that_is_published_to_the_host_alone_is_not_opened() {
        let mut web = service("web");
        web.publish = vec![publish(None, 80, 8080), publish(Some("127.0.0.1"), 9000, 9000)];
        web.publish.push(publish(Some("::ffff:127.0.0.1"), 9001, 9001));
        web.publish.push(publish(Some("192.0.2.1"), 81, 8081));
        let rules = FirewallRules::of(&stack([web]), &BTreeSet::from([2222])).unwrap();
        let ports: Vec<_> = rules.published.iter().map(|open| (open.port, open.host_ip)).collect();
        assert_eq!(ports, [(80, None), (81, Some("192.0.2.1".parse().unwrap()))]);
        assert_eq!(rules.ssh_ports, BTreeSet::from([2222]));
    }

    #[test]
    fn a_stack_can_leave_the_firewall_alone() {
        let mut stack = stack([service("web")]);
        stack.firewall.disabled = true;
        assert_eq!(FirewallRules::of(&stack, &BTreeSet::new()), None);
    }
}
