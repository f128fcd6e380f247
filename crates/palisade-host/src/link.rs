//! Interfaces, addresses and routes of the calling thread's network namespace, through rtnetlink.
//!
//! Which interfaces a rehearsal or a stack needs is decided elsewhere.

use nix::sys::socket::SockProtocol;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use crate::netlink::{Message, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Netlink, attributes, text_of, u32_of};
use crate::netns::Netns;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_XDP: u16 = 43;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;

/// Why an interface, address or route couldn't be read or changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {object}")]
pub struct LinkError {
    /// "add", "list" …
    pub operation: &'static str,
    /// "address 203.0.113.1/24 on eth0" …
    pub object: String,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// An interface with its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceAddresses {
    /// Name.
    pub name: String,
    /// Number in its namespace.
    pub index: u32,
    /// It is a loopback interface.
    pub loopback: bool,
    /// It is up.
    pub up: bool,
    /// Hardware address; empty for interfaces without one.
    pub mac: Vec<u8>,
    /// An XDP program sees packets before every firewall.
    pub xdp: bool,
    /// It belongs to a VRF: its packets are routed, and their sockets found, apart from the others'.
    pub vrf: bool,
    /// Addresses with prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
}

/// One end of a veth pair to be made.
#[derive(Clone, Copy, Debug)]
pub struct VethEnd<'a> {
    /// Where it goes.
    pub netns: &'a Netns,
    /// Interface name.
    pub name: &'a str,
    /// Interface number, if it must have a certain one.
    pub index: Option<u32>,
    /// Hardware address, if it must have a certain one.
    pub mac: Option<[u8; 6]>,
}

pub(crate) fn failed(operation: &'static str, object: impl Into<String>) -> impl FnOnce(io::Error) -> LinkError {
    let object = object.into();
    move |source| LinkError { operation, object, source }
}

fn route_socket() -> Result<Netlink, LinkError> {
    Netlink::open(SockProtocol::NetlinkRoute).map_err(failed("open", "a route netlink socket"))
}

/// `struct ifinfomsg`.
fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&change.to_ne_bytes());
    fixed
}

pub(crate) fn octets(ip: IpAddr) -> (u8, Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => (nix::libc::AF_INET as u8, ip.octets().to_vec()),
        IpAddr::V6(ip) => (nix::libc::AF_INET6 as u8, ip.octets().to_vec()),
    }
}

pub(crate) fn ip_of(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The number of an interface.
pub fn index_of(name: &str) -> Result<u32, LinkError> {
    nix::net::if_::if_nametoindex(name).map_err(|e| failed("find", format!("interface {name}"))(e.into()))
}

/// Makes a pair of connected interfaces, each in its namespace, both down.
pub fn add_veth(one: VethEnd<'_>, other: VethEnd<'_>) -> Result<(), LinkError> {
    let end = |message: Message, end: VethEnd<'_>| {
        let message = message.text(IFLA_IFNAME, end.name);
        let message = message.attr(IFLA_NET_NS_FD, &end.netns.as_fd().as_raw_fd().to_ne_bytes());
        match end.mac {
            Some(mac) => message.attr(IFLA_ADDRESS, &mac),
            None => message,
        }
    };
    let header = ifinfo(one.index.unwrap_or(0), 0, 0);
    let peer_header = ifinfo(other.index.unwrap_or(0), 0, 0);
    let message = end(Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &header), one);
    let message = message.nest(IFLA_LINKINFO, &[], |info| {
        info.text(1, "veth").nest(2, &[], |data| data.nest(1, &peer_header, |peer| end(peer, other)))
    });
    route_socket()?.request(message).map_err(failed("add", format!("veth pair {} and {}", one.name, other.name)))
}

/// Brings an interface up; `no_arp` for one whose neighbours can't be asked.
pub fn set_up(name: &str, no_arp: bool) -> Result<(), LinkError> {
    let arp = if no_arp { nix::libc::IFF_NOARP as u32 } else { 0 };
    let up = nix::libc::IFF_UP as u32 | arp;
    let message = Message::new(RTM_NEWLINK, 0, &ifinfo(index_of(name)?, up, up));
    route_socket()?.request(message).map_err(failed("bring up", format!("interface {name}")))
}

fn address_message(kind: u16, flags: u16, index: u32, ip: IpAddr, prefix_len: u8) -> Message {
    let (family, bytes) = octets(ip);
    let mut fixed = [family, prefix_len, 0, 0, 0, 0, 0, 0];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    Message::new(kind, flags, &fixed).attr(IFA_LOCAL, &bytes).attr(IFA_ADDRESS, &bytes)
}

/// Gives an interface an address, usable at once (no duplicate address detection). One that is there stays.
pub fn add_address(name: &str, ip: IpAddr, prefix_len: u8) -> Result<(), LinkError> {
    let message = address_message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index_of(name)?, ip, prefix_len)
        .attr(IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes());
    route_socket()?.request(message).map_err(failed("add", format!("address {ip}/{prefix_len} on {name}")))
}

/// Puts an instance's IPv6 address on loopback. It is deprecated from the start, so that the kernel never picks it
/// as the source of somebody else's connection.
pub fn add_private_ipv6(ip: Ipv6Addr) -> Result<(), LinkError> {
    let mut cache = [0; 16];
    cache[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    let message = address_message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index_of("lo")?, ip.into(), 128)
        .attr(IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes())
        .attr(IFA_CACHEINFO, &cache);
    let done = route_socket()?.request(message).and_then(|()| wait_for_route(ip));
    done.map_err(failed("add", format!("address {ip}/128 on lo")))
}

/// Waits until the kernel routes an IPv6 address that was just added to itself, which it does a little later.
fn wait_for_route(ip: Ipv6Addr) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(2);
    // Connecting a datagram socket sends nothing; a local address is reached from itself.
    let routed = || -> io::Result<bool> {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        Ok(socket.connect((ip, 9)).is_ok() && socket.local_addr()?.ip() == ip)
    };
    while !routed()? {
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// Takes an instance's IPv6 address off loopback; one that isn't there is no mistake.
pub fn remove_private_ipv6(ip: Ipv6Addr) -> Result<(), LinkError> {
    let message = address_message(RTM_DELADDR, 0, index_of("lo")?, ip.into(), 128);
    match route_socket()?.request(message) {
        Err(e) if e.raw_os_error() == Some(nix::libc::EADDRNOTAVAIL) => Ok(()),
        other => other.map_err(failed("remove", format!("address {ip}/128 on lo"))),
    }
}

/// Adds a route through an interface; `destination` `None` is the default route of `gateway`'s family.
pub fn add_route(
    name: &str,
    destination: Option<(IpAddr, u8)>,
    gateway: Option<IpAddr>,
    ipv6: bool,
) -> Result<(), LinkError> {
    let family = if ipv6 { nix::libc::AF_INET6 } else { nix::libc::AF_INET } as u8;
    let scope = if gateway.is_none() && !ipv6 { nix::libc::RT_SCOPE_LINK } else { nix::libc::RT_SCOPE_UNIVERSE };
    let prefix_len = destination.map_or(0, |(_, len)| len);
    let fixed = [family, prefix_len, 0, 0, nix::libc::RT_TABLE_MAIN, 4, scope, 1, 0, 0, 0, 0];
    let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &fixed);
    if let Some((ip, _)) = destination {
        message = message.attr(RTA_DST, &octets(ip).1);
    }
    if let Some(ip) = gateway {
        message = message.attr(RTA_GATEWAY, &octets(ip).1);
    }
    message = message.attr(RTA_OIF, &index_of(name)?.to_ne_bytes());
    let object = match destination {
        Some((ip, len)) => format!("route to {ip}/{len} through {name}"),
        None => format!("default route through {name}"),
    };
    route_socket()?.request(message).map_err(failed("add", object))
}

/// Whether traffic control looks at what comes in by an interface, before every firewall: filters of `clsact` or `ingress`.
/// Programs that are attached without either (tcx, Linux 6.6) aren't seen.
pub(crate) fn has_ingress_filters(index: u32) -> bool {
    // `struct tcmsg`; the parent is TC_H_CLSACT with TC_H_MIN_INGRESS, which both answer to.
    let mut fixed = [0; 20];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[12..16].copy_from_slice(&0xffff_fff2_u32.to_ne_bytes());
    let mut found = false;
    let asked = route_socket().and_then(|mut socket| {
        let dump = socket.dump(Message::new(RTM_GETTFILTER, 0, &fixed), |kind, _| found |= kind == RTM_NEWTFILTER);
        dump.map_err(failed("list", "filters of traffic control"))
    });
    // A kernel without traffic control has none.
    asked.is_ok() && found
}

/// Every interface of the calling thread's namespace with its addresses.
pub fn interfaces() -> Result<Vec<InterfaceAddresses>, LinkError> {
    let mut socket = route_socket()?;
    let mut found = Vec::new();
    let list = Message::new(RTM_GETLINK, 0, &ifinfo(0, 0, 0));
    let read_link = |_, body: &[u8]| {
        let Some(rest) = body.get(16..) else { return };
        let flags = u32_of(&body[8..]);
        let mut link = InterfaceAddresses {
            name: String::new(),
            index: u32_of(&body[4..]),
            loopback: flags & nix::libc::IFF_LOOPBACK as u32 != 0,
            up: flags & nix::libc::IFF_UP as u32 != 0,
            mac: Vec::new(),
            xdp: false,
            vrf: false,
            addresses: Vec::new(),
        };
        for (kind, value) in attributes(rest) {
            match kind {
                IFLA_IFNAME => link.name = text_of(value),
                IFLA_ADDRESS => link.mac = value.to_vec(),
                // IFLA_INFO_KIND and IFLA_INFO_SLAVE_KIND
                IFLA_LINKINFO => {
                    link.vrf = attributes(value).any(|(kind, what)| matches!(kind, 1 | 4) && text_of(what) == "vrf");
                }
                // IFLA_XDP_ATTACHED
                IFLA_XDP => link.xdp = attributes(value).any(|(kind, mode)| kind == 2 && mode.first() != Some(&0)),
                _ => (),
            }
        }
        found.push(link);
    };
    socket.dump(list, read_link).map_err(failed("list", "interfaces"))?;
    let list = Message::new(RTM_GETADDR, 0, &[0; 8]);
    let read_address = |_, body: &[u8]| {
        let Some(rest) = body.get(8..) else { return };
        let (mut local, mut address) = (None, None);
        for (kind, value) in attributes(rest) {
            match kind {
                IFA_LOCAL => local = ip_of(value),
                IFA_ADDRESS => address = ip_of(value),
                _ => (),
            }
        }
        let interface = found.iter_mut().find(|interface| interface.index == u32_of(&body[4..]));
        if let (Some(interface), Some(ip)) = (interface, local.or(address)) {
            interface.addresses.push((ip, body[1]));
        }
    };
    socket.dump(list, read_address).map_err(failed("list", "addresses"))?;
    Ok(found)
}

/// Hears when an address comes or goes in the network namespace that the thread was in when it began to.
pub struct AddressChanges(Netlink);

impl AddressChanges {
    /// Begins to listen: what changes from now on is heard.
    pub fn listen() -> Result<Self, LinkError> {
        let groups = [RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR];
        let socket = Netlink::listen(SockProtocol::NetlinkRoute, &groups);
        socket.map(Self).map_err(failed("listen to", "changes of addresses"))
    }

    /// Waits at most so long; whether anything may have changed.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, LinkError> {
        match self.0.receive(timeout, |_, _| ()) {
            // More was told than there was room for.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => Ok(true),
            other => other.map_err(failed("hear of", "changes of addresses")),
        }
    }
}

/// The interfaces that a default route leads through, best first.
pub fn default_route_interfaces() -> Result<Vec<String>, LinkError> {
    let mut found: Vec<(u32, u32)> = Vec::new();
    let read_route = |_, body: &[u8]| {
        let Some(rest) = body.get(12..) else { return };
        // Only unicast routes to everywhere in the main table.
        if body[1] != 0 || body[4] != nix::libc::RT_TABLE_MAIN || body[7] != 1 {
            return;
        }
        let (mut index, mut priority) = (0, 0);
        for (kind, value) in attributes(rest) {
            match kind {
                RTA_OIF => index = u32_of(value),
                RTA_PRIORITY => priority = u32_of(value),
                _ => (),
            }
        }
        if index != 0 {
            found.push((priority, index));
        }
    };
    route_socket()?.dump(Message::new(RTM_GETROUTE, 0, &[0; 12]), read_route).map_err(failed("list", "routes"))?;
    found.sort_unstable();
    let interfaces = interfaces()?;
    let mut names: Vec<String> = Vec::new();
    for (_, index) in found {
        if let Some(interface) = interfaces.iter().find(|interface| interface.index == index)
            && !names.contains(&interface.name)
        {
            names.push(interface.name.clone());
        }
    }
    Ok(names)
}
