//! What the host's firewall does with a packet from somebody outside: asked from the reachability twin.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use palisade_core::explain::{Passage, Way};
use palisade_core::stack::PortProto;
use palisade_host::firewall::Firewall;
use palisade_host::layout::Layout;
use palisade_host::link::{self, InterfaceAddresses};
use palisade_host::twin::{self, TwinReport, TwinSpec};

use crate::exit::Failure;
use crate::proof;

/// Addresses of one interface that are asked at most.
const TARGETS_MAX: usize = 8;

/// Somebody outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outsider {
    /// Anybody.
    Internet,
    /// Somebody of a network.
    Of {
        /// As it was typed.
        name: String,
        /// Who of it asks.
        source: IpAddr,
    },
}

impl Outsider {
    /// What answers call them.
    pub(crate) fn name(&self) -> &str {
        match self {
            Outsider::Internet => "the internet",
            Outsider::Of { name, .. } => name,
        }
    }

    /// `internet`, an address, or a network; `None` for anything else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text == "internet" {
            return Some(Outsider::Internet);
        }
        let (ip, prefix_len) = text.split_once('/').map_or((text, None), |(ip, len)| (ip, Some(len)));
        let ip: IpAddr = ip.parse().ok()?;
        let bits = if ip.is_ipv4() { 32 } else { 128 };
        let prefix_len = prefix_len.map_or(Some(bits), |len| len.parse().ok()).filter(|len| *len <= bits)?;
        Some(Outsider::Of { name: text.to_owned(), source: somebody(ip, bits - prefix_len) })
    }
}

/// An address of a network: the one that is written, or the first if none is.
fn somebody(ip: IpAddr, host_bits: u32) -> IpAddr {
    let number = match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    let hosts = 1_u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
    let number = if host_bits > 1 && number & hosts == 0 { number + 1 } else { number };
    match ip {
        IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

/// What becomes of packets to a port, for each of the host's addresses that they could be for; and what that leaves open.
pub(crate) fn ways(layout: &Layout, from: &Outsider, port: PortProto) -> Result<(Vec<Way>, Vec<String>), Failure> {
    let all = link::interfaces().map_err(|error| Failure::new("can't read this host's interfaces", error))?;
    let external = proof::external_interfaces()?;
    let firewall = Firewall::new(&layout.realm);
    let (mut ways, mut unknown) = (Vec::new(), Vec::new());
    for interface in entrances(&all, external, from) {
        let mut spec = TwinSpec::new(&interface.name);
        spec.own_table = Some(firewall.table().to_owned());
        spec.targets = targets(interface, from);
        if spec.targets.is_empty() {
            continue;
        }
        if let Outsider::Of { source, .. } = from {
            spec.sources[usize::from(source.is_ipv6())] = *source;
        }
        let report = twin::probe(&spec).map_err(|error| {
            Failure::new(format!("can't find out what the firewall lets in by {}", interface.name), error)
        })?;
        unknown.extend(report.unknown.iter().map(|unknown| format!("{}: {}", unknown.why, unknown.rule)));
        unknown.extend(report.without_limit.iter().map(|rule| format!("taken without its rate limit: {rule}")));
        ways.extend(ways_of(&report, port));
    }
    unknown.sort();
    unknown.dedup();
    Ok((ways, unknown))
}

/// Interfaces that their packets come in by.
fn entrances<'a>(all: &'a [InterfaceAddresses], external: Vec<String>, from: &Outsider) -> Vec<&'a InterfaceAddresses> {
    let neighbour = |interface: &&InterfaceAddresses| match from {
        Outsider::Internet => false,
        Outsider::Of { source, .. } => {
            !interface.loopback && interface.addresses.iter().any(|(ip, len)| is_near(*ip, *len, *source))
        }
    };
    if let Some(near) = all.iter().find(neighbour) {
        return vec![near];
    }
    external.iter().filter_map(|name| all.iter().find(|interface| interface.name == *name)).collect()
}

/// The address is in the network around another.
fn is_near(ip: IpAddr, prefix_len: u8, other: IpAddr) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)) << 96,
        IpAddr::V6(ip) => u128::from(ip),
    };
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix_len)).unwrap_or(0);
    ip.is_ipv4() == other.is_ipv4() && (bits(ip) ^ bits(other)) & mask == 0
}

/// Addresses of the interface that they can ask for.
fn targets(interface: &InterfaceAddresses, from: &Outsider) -> Vec<IpAddr> {
    let asked = |ip: &IpAddr| {
        let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let same_family = match from {
            Outsider::Internet => true,
            Outsider::Of { source, .. } => source.is_ipv4() == ip.is_ipv4(),
        };
        !link_local && same_family
    };
    interface.addresses.iter().map(|(ip, _)| *ip).filter(asked).take(TARGETS_MAX).collect()
}

fn ways_of(report: &TwinReport, port: PortProto) -> impl Iterator<Item = Way> {
    let of_proto = report.reached.iter().filter(move |reached| reached.proto == port.proto);
    of_proto.map(move |reached| {
        let rewritten = reached.redirected.iter().find(|(outside, _)| *outside == port.port);
        let passage = match rewritten {
            Some((_, local)) => Passage::Local { port: *local },
            None if reached.forwarded.contains(port.port) => Passage::Forwarded,
            None if reached.local.contains(port.port) => Passage::Local { port: port.port },
            None => Passage::Stopped,
        };
        Way { target: reached.target, interface: report.interface.clone(), passage, rules: Vec::new() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_somebody_of_what_was_typed() {
        let source = |text: &str| match Outsider::parse(text) {
            Some(Outsider::Of { source, .. }) => Some(source.to_string()),
            Some(Outsider::Internet) => Some("internet".to_owned()),
            None => None,
        };
        for (typed, somebody) in [
            ("internet", Some("internet")),
            ("198.51.100.0/24", Some("198.51.100.1")),
            ("198.51.100.7/24", Some("198.51.100.7")),
            ("198.51.100.7", Some("198.51.100.7")),
            ("2001:db8::/32", Some("2001:db8::1")),
            ("10.0.0.0/31", Some("10.0.0.0")),
            ("10.0.0.0/33", None),
            ("10.0.0/8", None),
            ("app", None),
        ] {
            assert_eq!(source(typed).as_deref(), somebody, "{typed}");
        }
    }

    #[test]
    fn neighbours_are_told_from_others() {
        let near = |ip: &str, len, other: &str| is_near(ip.parse().unwrap(), len, other.parse().unwrap());
        assert!(near("10.1.2.3", 16, "10.1.9.9") && !near("10.1.2.3", 24, "10.1.9.9"));
        assert!(near("2001:db8::1", 64, "2001:db8::ff") && !near("2001:db8::1", 64, "10.1.9.9"));
        assert!(near("10.1.2.3", 0, "192.0.2.1"));
    }
}
