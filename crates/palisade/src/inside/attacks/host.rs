//! Reaching what the host runs for itself: its loopback services in every spelling, its abstract unix sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use super::attack;
use super::identity::{MESSAGE, answered, connects, sends, sends_connected, sends_unspecified_family};
use crate::inside::attack::Attack;
use crate::inside::sys::{At, Attempt, RawAddress, Socket, Stop, not_applicable};
use crate::inside::targets::{HostService, Targets};

const LOCAL: &str = "a compromised service uses what the host offers to itself only";
const ABSTRACT: &str = "a compromised service uses a control socket that has no file (CVE-2020-15257)";

fn host(t: &Targets) -> Result<&HostService, Stop> {
    t.host.as_ref().map_or_else(|| not_applicable("the host has no service to attack"), Ok)
}
fn tcp(t: &Targets, ip: impl Into<IpAddr>) -> Attempt {
    connects(SocketAddr::new(ip.into(), host(t)?.tcp_port))
}
fn udp(t: &Targets, ip: impl Into<IpAddr>) -> Result<SocketAddr, Stop> {
    Ok(SocketAddr::new(ip.into(), host(t)?.udp_port))
}
fn address(t: &Targets, v6: bool) -> Result<IpAddr, Stop> {
    let found = host(t)?.addresses.iter().find(|ip| ip.is_ipv6() == v6);
    found.map_or_else(|| not_applicable("the host has no such address"), |ip| Ok(*ip))
}
fn mapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        v6 => v6,
    }
}
fn link_local(t: &Targets, port: u16) -> Result<SocketAddrV6, Stop> {
    let mut address = host(t)?.link_local.map_or_else(|| not_applicable("no link-local address"), Ok)?;
    address.set_port(port);
    Ok(address)
}

/// To everybody on the link, of whom the host itself is one.
fn broadcasts(t: &Targets, ip: Ipv4Addr) -> Attempt {
    let to = udp(t, ip)?;
    let socket = Socket::udp(libc::AF_INET)?;
    socket.set(libc::SOL_SOCKET, libc::SO_BROADCAST, 1).at("setsockopt(SO_BROADCAST)")?;
    socket.set_bytes(libc::SOL_SOCKET, libc::SO_BINDTODEVICE, host(t)?.interface.as_bytes()).at("SO_BINDTODEVICE")?;
    socket.send(MESSAGE, 0, Some(&to.into())).at(format!("sendto({to})"))?;
    answered(&socket, to)
}

fn multicasts6(t: &Targets) -> Attempt {
    let scope = link_local(t, 0)?.scope_id();
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let to = SocketAddr::from(SocketAddrV6::new(all_nodes, host(t)?.udp_port, 0, scope));
    let socket = Socket::udp(libc::AF_INET6)?;
    socket.send(MESSAGE, 0, Some(&to.into())).at(format!("sendto({to})"))?;
    answered(&socket, to)
}

fn abstract_unix(t: &Targets, kind: libc::c_int, name: &str, by_connect: bool) -> Attempt {
    let full = format!("{}-{name}", host(t)?.abstract_unix);
    let to = RawAddress::abstract_unix(&full);
    let socket = Socket::new(libc::AF_UNIX, kind, 0).at("socket(AF_UNIX)")?;
    if by_connect {
        socket.connect(&to, std::time::Duration::from_secs(1)).at(format!("connect(@{full})"))?;
        Ok(format!("connected to @{full}"))
    } else {
        socket.send(MESSAGE, 0, Some(&to)).at(format!("sendto(@{full})"))?;
        Ok(format!("sent a datagram to @{full}"))
    }
}

pub(super) const ATTACKS: &[Attack] = &[
    attack!(Guard, "host.tcp_localhost4", "connect to 127.0.0.1", LOCAL, |t| tcp(t, Ipv4Addr::LOCALHOST)),
    attack!(Guard, "host.tcp_localhost6", "connect to ::1", LOCAL, |t| tcp(t, Ipv6Addr::LOCALHOST)),
    attack!(Guard, "host.tcp_any4", "connect to 0.0.0.0", LOCAL, |t| tcp(t, Ipv4Addr::UNSPECIFIED)),
    attack!(Guard, "host.tcp_any6", "connect to ::", LOCAL, |t| tcp(t, Ipv6Addr::UNSPECIFIED)),
    attack!(Guard, "host.tcp_mapped_localhost", "connect to ::ffff:127.0.0.1", LOCAL, |t| {
        tcp(t, mapped(Ipv4Addr::LOCALHOST.into()))
    }),
    attack!(Guard, "host.tcp_mapped_any", "connect to ::ffff:0.0.0.0", LOCAL, |t| {
        tcp(t, mapped(Ipv4Addr::UNSPECIFIED.into()))
    }),
    attack!(Guard, "host.tcp_other_localhost", "connect to 127.0.0.2", LOCAL, |t| tcp(t, Ipv4Addr::new(127, 0, 0, 2))),
    attack!(Guard, "host.tcp_public4", "connect to the host's public IPv4 address", LOCAL, |t| tcp(
        t,
        address(t, false)?
    )),
    attack!(Guard, "host.tcp_public6", "connect to the host's public IPv6 address", LOCAL, |t| tcp(
        t,
        address(t, true)?
    )),
    attack!(Guard, "host.tcp_public_mapped", "connect to it as an IPv4-mapped address", LOCAL, |t| {
        tcp(t, mapped(address(t, false)?))
    }),
    attack!(Guard, "host.tcp_link_local", "connect to the host's link-local address", LOCAL, |t| {
        connects(link_local(t, host(t)?.tcp_port)?.into())
    }),
    attack!(Guard, "host.udp_localhost4", "a datagram to 127.0.0.1", LOCAL, |t| sends(udp(t, Ipv4Addr::LOCALHOST)?)),
    attack!(Guard, "host.udp_localhost6", "a datagram to ::1", LOCAL, |t| sends(udp(t, Ipv6Addr::LOCALHOST)?)),
    attack!(Guard, "host.udp_any4", "a datagram to 0.0.0.0", LOCAL, |t| sends(udp(t, Ipv4Addr::UNSPECIFIED)?)),
    attack!(Guard, "host.udp_any6", "a datagram to ::", LOCAL, |t| sends(udp(t, Ipv6Addr::UNSPECIFIED)?)),
    attack!(Guard, "host.udp_connected", "connected UDP to 127.0.0.1", LOCAL, |t| {
        sends_connected(udp(t, Ipv4Addr::LOCALHOST)?)
    }),
    attack!(Guard, "host.udp_unspecified_family", "127.0.0.1 under family AF_UNSPEC", LOCAL, |t| {
        sends_unspecified_family(udp(t, Ipv4Addr::LOCALHOST)?)
    }),
    attack!(Guard, "host.udp_public4", "a datagram to the host's public IPv4 address", LOCAL, |t| {
        sends(udp(t, address(t, false)?)?)
    }),
    attack!(Guard, "host.udp_public6", "a datagram to the host's public IPv6 address", LOCAL, |t| {
        sends(udp(t, address(t, true)?)?)
    }),
    attack!(Guard, "host.udp_link_local", "a datagram to the host's link-local address", LOCAL, |t| {
        sends(link_local(t, host(t)?.udp_port)?.into())
    }),
    attack!(Guard, "host.udp_broadcast", "a broadcast that the host hears too", LOCAL, |t| {
        broadcasts(t, Ipv4Addr::BROADCAST)
    }),
    attack!(Guard, "host.udp_network_broadcast", "a broadcast to the host's network", LOCAL, |t| {
        match host(t)?.broadcast {
            Some(ip) => broadcasts(t, ip),
            None => not_applicable("the host's network has no broadcast address"),
        }
    }),
    attack!(Guard, "host.udp_multicast4", "a multicast that the host hears too", LOCAL, |t| {
        broadcasts(t, Ipv4Addr::new(224, 0, 0, 1))
    }),
    attack!(Guard, "host.udp_multicast6", "an IPv6 multicast that the host hears too", LOCAL, multicasts6),
    attack!(Guard, "host.abstract_stream", "connect to an abstract unix socket", ABSTRACT, |t| {
        abstract_unix(t, libc::SOCK_STREAM, "stream", true)
    }),
    attack!(Guard, "host.abstract_sequenced", "the same, sequenced packets", ABSTRACT, |t| {
        abstract_unix(t, libc::SOCK_SEQPACKET, "sequenced", true)
    }),
    attack!(Guard, "host.abstract_datagram", "send a datagram to an abstract unix socket", ABSTRACT, |t| {
        abstract_unix(t, libc::SOCK_DGRAM, "datagram", false)
    }),
    attack!(Guard, "host.abstract_connected_datagram", "connect a datagram socket to it", ABSTRACT, |t| {
        abstract_unix(t, libc::SOCK_DGRAM, "datagram", true)
    }),
];
