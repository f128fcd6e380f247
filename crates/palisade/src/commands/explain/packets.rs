//! What the host's firewall does with a packet from somebody outside, and by which rules: asked from the reachability
//! twin.

use std::net::IpAddr;

use palisade_core::explain::{Passage, Way};
use palisade_core::port_set::PortSet;
use palisade_core::stack::PortProto;
use palisade_host::firewall::Firewall;
use palisade_host::layout::Layout;
use palisade_host::link::{self, InterfaceAddresses};
use palisade_host::twin::{Traced, Twin, TwinError, TwinSpec, Verdict, World, WorldError};

use crate::exit::Failure;
use crate::proof;

/// Addresses of one interface that are asked at most.
const TARGETS_MAX: usize = 8;

/// Somebody outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outsider {
    /// Anybody.
    Internet,
    /// Somebody of a network, as it was typed.
    Of(String),
}

impl Outsider {
    /// What answers call them.
    pub(crate) fn name(&self) -> &str {
        match self {
            Outsider::Internet => "the internet",
            Outsider::Of(network) => network,
        }
    }

    /// `internet`, an address, or a network; `None` for anything else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text == "internet" {
            return Some(Outsider::Internet);
        }
        let ip = text.split_once('/').map_or(text, |(ip, _)| ip);
        ip.parse::<IpAddr>().is_ok().then(|| Outsider::Of(text.to_owned()))
    }

    /// The part of the world that they are, once for each interface that they come in by.
    fn worlds(&self) -> Result<Vec<World>, Failure> {
        match self {
            Outsider::Internet => {
                Ok(proof::external_interfaces()?.iter().map(|interface| World::internet(interface)).collect())
            }
            Outsider::Of(network) => World::from_cidr(network).map(|world| vec![world]).map_err(|error| match error {
                WorldError::Link(_) => Failure::new(format!("can't find out where {network} comes in"), error),
                _ => Failure::Input(format!("error: {error}")),
            }),
        }
    }
}

/// What becomes of packets to a port, for each of the host's addresses that they could be for; and what that leaves open.
pub(crate) fn ways(layout: &Layout, from: &Outsider, port: PortProto) -> Result<(Vec<Way>, Vec<String>), Failure> {
    let all = link::interfaces().map_err(|error| Failure::new("can't read this host's interfaces", error))?;
    let firewall = Firewall::new(&layout.realm);
    let (mut ways, mut unknown) = (Vec::new(), Vec::new());
    for world in from.worlds()? {
        let interface = all.iter().find(|interface| interface.name == world.interface);
        for target in interface.into_iter().flat_map(|interface| targets(interface, &world)) {
            let spec = TwinSpec {
                targets: vec![target],
                ports: PortSet::from_iter([port.port]),
                own_table: Some(firewall.table().to_owned()),
                ..TwinSpec::of(world.clone())
            };
            let way = ask(&spec, target, port, &mut unknown).map_err(|error| {
                Failure::new(format!("can't find out what the firewall lets in by {}", world.interface), error)
            })?;
            ways.extend(way);
        }
    }
    unknown.sort();
    unknown.dedup();
    Ok((ways, unknown))
}

fn ask(spec: &TwinSpec, target: IpAddr, port: PortProto, unknown: &mut Vec<String>) -> Result<Option<Way>, TwinError> {
    let twin = Twin::copy(spec)?;
    let report = twin.probe()?;
    unknown.extend(report.unknown.iter().map(|unknown| format!("{}: {}", unknown.why, unknown.rule)));
    unknown.extend(report.without_limit.iter().map(|rule| format!("taken without its rate limit: {rule}")));
    let traced = twin.trace(port.proto, target.is_ipv6(), &[port.port])?;
    if traced.iter().any(|traced| traced.legacy) {
        let family = if target.is_ipv4() { "iptables-legacy" } else { "ip6tables-legacy" };
        unknown
            .push(format!("which rules of {family} judged it: they can't be traced, so they aren't among the rules"));
    }
    Ok(traced.into_iter().next().map(|traced| Way {
        target,
        interface: report.interface,
        passage: match traced.verdict {
            Verdict::Local { port } => Passage::Local { port },
            Verdict::Forwarded => Passage::Forwarded,
            Verdict::Dropped | Verdict::DroppedByLegacy | Verdict::DroppedByKernel => Passage::Stopped,
        },
        rules: told(&traced),
    }))
}

/// The rules in their order; of a packet that no rule has stopped, who did.
fn told(traced: &Traced) -> Vec<String> {
    let mut rules: Vec<String> = traced.rules.iter().map(ToString::to_string).collect();
    if matches!(traced.verdict, Verdict::DroppedByLegacy | Verdict::DroppedByKernel) {
        rules.push(format!("it {}", traced.verdict));
    }
    rules
}

/// Addresses of the interface that they can ask for.
fn targets(interface: &InterfaceAddresses, world: &World) -> Vec<IpAddr> {
    let asked = |ip: &IpAddr| {
        let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        !link_local && world.source(ip.is_ipv6()).is_some()
    };
    interface.addresses.iter().map(|(ip, _)| *ip).filter(asked).take(TARGETS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_told_from_services() {
        for network in ["198.51.100.0/24", "198.51.100.7", "2001:db8::/32", "10.0.0.0/33"] {
            assert_eq!(Outsider::parse(network), Some(Outsider::Of(network.to_owned())), "{network}");
        }
        assert_eq!(Outsider::parse("internet"), Some(Outsider::Internet));
        assert_eq!(Outsider::parse("app"), None);
    }
}
