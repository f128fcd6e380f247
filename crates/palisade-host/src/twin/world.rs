//! Who asks, and by which interface: the parts of the world that packets to this host come from.

use palisade_core::network::{Network, NotANetwork};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::link::{self, InterfaceAddresses, LinkError};
use crate::routes::{self, Way};

/// Somebody of the internet: networks that RFC 5737 and RFC 3849 keep for documents.
const STRANGER4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 250);
const STRANGER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0xffff, 0, 0, 0, 0x250);
/// How many addresses of a network are looked at for one that the host doesn't have itself.
const TRIES: u128 = 256;

/// A part of the world that is asked from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct World {
    /// What a report calls it.
    pub name: String,
    /// The interface that its packets arrive on.
    pub interface: String,
    /// Who of it asks by IPv4, if it has that.
    pub ipv4: Option<Ipv4Addr>,
    /// Who of it asks by IPv6, if it has that.
    pub ipv6: Option<Ipv6Addr>,
}

/// Why nobody can ask from there.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// There is no such interface.
    #[error("there is no interface `{0}`")]
    NoInterface(String),
    /// The interface has no address with a network around it.
    #[error("no network is behind `{0}`: it has no address with neighbours")]
    NoNetwork(String),
    /// It is not an address or a network.
    #[error("`{0}` is not a network; write it as 198.51.100.0/24 or 2001:db8::/32")]
    NotANetwork(String),
    /// Nobody can have such an address.
    #[error("nobody outside can have an address of {0}")]
    NotOutside(String),
    /// It is the host's own.
    #[error("{0} is this host itself")]
    Own(String),
    /// The host couldn't answer.
    #[error("this host has no route to {0}, so nothing from there is answered")]
    NoRoute(String),
    /// Interfaces or routes couldn't be read.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl World {
    /// Somebody of the internet, who comes in by `interface`.
    pub fn internet(interface: &str) -> Self {
        let (ipv4, ipv6) = (Some(STRANGER4), Some(STRANGER6));
        Self { name: "the internet".into(), interface: interface.to_owned(), ipv4, ipv6 }
    }

    /// A neighbour on `interface`: somebody in the interface's own networks whose address the host doesn't have.
    /// Reads the interfaces of the calling thread's network namespace.
    pub fn network_of(interface: &str) -> Result<Self, WorldError> {
        let all = link::interfaces()?;
        let found = all.iter().find(|one| one.name == interface);
        let found = found.ok_or_else(|| WorldError::NoInterface(interface.to_owned()))?;
        let neighbour = |ipv6: bool, link_local: bool| {
            let networks = found.addresses.iter().filter(|(ip, _)| ip.is_ipv6() == ipv6);
            let mut networks = networks.filter(|(ip, _)| is_link_local(*ip) == link_local);
            networks.find_map(|(ip, prefix_len)| {
                hosts(Network::around(*ip, *prefix_len)).find(|candidate| !has(&all, *candidate))
            })
        };
        let ipv4 = neighbour(false, false).or_else(|| neighbour(false, true));
        let ipv6 = neighbour(true, false).or_else(|| neighbour(true, true));
        if ipv4.is_none() && ipv6.is_none() {
            return Err(WorldError::NoNetwork(interface.to_owned()));
        }
        Ok(Self::of(format!("the network of {interface}"), interface, ipv4.into_iter().chain(ipv6)))
    }

    /// Somebody of a network, `198.51.100.0/24`, or one address. Arrives on the interface that the host's routes and
    /// routing rules lead back to it by; the kernel is asked, in the calling thread's network namespace.
    pub fn from_cidr(cidr: &str) -> Result<Self, WorldError> {
        let network = parse(cidr)?;
        let all = link::interfaces()?;
        let mut why_not = WorldError::NotOutside(cidr.to_owned());
        for candidate in hosts(network) {
            match routes::way_to(candidate)? {
                Way::Out { interface, .. } => {
                    let interface = all.iter().find(|one| one.index == interface);
                    let interface = interface.ok_or_else(|| WorldError::NoRoute(cidr.to_owned()))?;
                    return Ok(Self::of(cidr.to_owned(), &interface.name, Some(candidate)));
                }
                Way::Here => why_not = WorldError::Own(cidr.to_owned()),
                Way::Unknown | Way::Forbidden => why_not = WorldError::NoRoute(cidr.to_owned()),
                Way::Many => (),
            }
        }
        Err(why_not)
    }

    fn of(name: String, interface: &str, sources: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut world = Self { name, interface: interface.to_owned(), ipv4: None, ipv6: None };
        for source in sources {
            match source {
                IpAddr::V4(ip) => world.ipv4 = Some(ip),
                IpAddr::V6(ip) => world.ipv6 = Some(ip),
            }
        }
        world
    }

    /// Who asks by a family.
    pub fn source(&self, ipv6: bool) -> Option<IpAddr> {
        if ipv6 { self.ipv6.map(IpAddr::V6) } else { self.ipv4.map(IpAddr::V4) }
    }
}

pub(super) fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn has(interfaces: &[InterfaceAddresses], ip: IpAddr) -> bool {
    interfaces.iter().flat_map(|interface| &interface.addresses).any(|(own, _)| *own == ip)
}

/// As somebody types it: an address of the network stands for it, too.
fn parse(cidr: &str) -> Result<Network, WorldError> {
    match cidr.parse() {
        Ok(network) | Err(NotANetwork::HostBits { network, .. }) => Ok(network),
        Err(_) => Err(WorldError::NotANetwork(cidr.to_owned())),
    }
}

/// Addresses of a network that a machine can have, unlikely to be a router's first. At most `TRIES`.
fn hosts(network: Network) -> impl Iterator<Item = IpAddr> {
    let nth = move |offset: u128| match network.address() {
        IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() | offset as u32).into(),
        IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() | offset).into(),
    };
    let bits = if network.address().is_ipv4() { 32 } else { 128 };
    let host_bits = bits - u32::from(network.prefix_len());
    let last = 1_u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
    // The network's own and the broadcast address are nobody's, where there are so many (RFC 3021: /31).
    let (low, high) = if host_bits < 2 { (0, last) } else { (1, last - 1) };
    let strangers = [STRANGER4.into(), STRANGER6.into()];
    let strangers = strangers.into_iter().filter(move |ip| network.contains(*ip));
    let tail = low..=high.min(TRIES);
    let usual = Some(250).filter(|offset| (low..=high).contains(offset));
    strangers.chain(usual.into_iter().chain(tail).map(nth)).filter(can_be_outside)
}

/// Whether packets may come from such an address (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5).
fn can_be_outside(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[0] != 0 && !ip.is_loopback() && ip.octets()[0] < 224,
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn somebody_of_a_network_is_found() {
        let first = |text: &str| hosts(parse(text).unwrap()).next().map(|ip| ip.to_string());
        for (network, host) in [
            ("198.51.100.0/24", "198.51.100.250"),
            ("198.51.100.9/24", "198.51.100.250"),
            ("10.0.0.0/30", "10.0.0.1"),
            ("10.0.0.4/31", "10.0.0.4"),
            ("192.0.2.7", "192.0.2.7"),
            ("0.0.0.0/0", "203.0.113.250"),
            ("::/0", "2001:db8:0:ffff::250"),
            ("fd00::/8", "fd00::fa"),
            ("::1:2/127", "::1:2"),
        ] {
            assert_eq!(first(network).as_deref(), Some(host), "{network}");
        }
        for nobody in ["127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "::1", "ff02::/16", "0.0.0.0/32"] {
            assert_eq!(first(nobody), None, "{nobody}");
        }
        for wrong in ["10.0.0.0/33", "10.0.0/8", "eth0", "::/129", "10.0.0.0/", ""] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
