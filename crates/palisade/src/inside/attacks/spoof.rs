//! Talking to a peer that was given, but looking like somebody else: the peer is asked whom it saw.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use super::attack;
use super::identity::{granted_tcp, granted_udp};
use crate::inside::attack::Attack;
use crate::inside::sys::{
    At, Attempt, RawAddress, Socket, Stop, family_of, mapped, not_applicable, refused, source_control,
};
use crate::inside::targets::Targets;

const SPOOF: &str = "a peer that tells services apart by address (pg_hba.conf, logs) is deceived";
const LIMIT: Duration = Duration::from_millis(1500);
/// Where spoofing sockets are bound when they need a port.
const OWN_PORT: u16 = 39_480;

fn telling_peer(t: &Targets) -> Result<(), Stop> {
    match &t.granted {
        Some(peer) if peer.tells_source => Ok(()),
        _ => not_applicable("no peer that tells whom it sees"),
    }
}

fn is_own(t: &Targets, ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let own = t.own_address;
    ip == IpAddr::from(own.ip()) || ip == IpAddr::from(own.own_localhost()) || ip == IpAddr::from(own.ipv6())
}

/// Judges what a socket believes, and what the peer saw if it says so.
fn judge(t: &Targets, seen: IpAddr, who: &str) -> Attempt {
    if is_own(t, seen) {
        refused(format!("{who} saw {seen}, which is the service's own address"))
    } else {
        Ok(format!("{who} saw {seen}, which isn't the service's address"))
    }
}

/// Connects by TCP from a bound address.
fn connects_from(t: &Targets, from: SocketAddr, to: SocketAddr) -> Attempt {
    let socket = Socket::tcp(family_of(from))?;
    let _ = socket.set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1);
    socket.bind(&from.into()).at(format!("bind({from})"))?;
    socket.connect(&to.into(), LIMIT).at(format!("connect({to}) from {from}"))?;
    judge(t, socket.local().at("getsockname")?.ip(), "getsockname")
}

fn granted6(t: &Targets, port: u16) -> Result<SocketAddr, Stop> {
    match &t.granted {
        Some(peer) => Ok(SocketAddr::new(peer.address.ipv6().into(), port)),
        None => not_applicable("no service was given"),
    }
}
fn granted_mapped(to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(v4) => mapped(v4),
        v6 => v6,
    }
}

fn host_address(t: &Targets, v6: bool) -> Result<IpAddr, Stop> {
    let found = t.host.iter().flat_map(|host| &host.addresses).find(|ip| ip.is_ipv6() == v6);
    found.map_or_else(|| not_applicable("the host has no such address"), |ip| Ok(*ip))
}

/// Sends one datagram with `send`, then asks the peer by TCP where it came from.
fn tells(t: &Targets, send: impl FnOnce(&[u8]) -> Result<(), Stop>) -> Attempt {
    telling_peer(t)?;
    // Process numbers are used again, and the peer remembers.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let token = format!("token-{}-{}", std::process::id(), now.as_nanos());
    send(token.as_bytes())?;
    std::thread::sleep(Duration::from_millis(150));
    let to = granted_tcp(t)?;
    let ask = Socket::tcp(libc::AF_INET)?;
    ask.connect(&to.into(), LIMIT).at(format!("connect({to})"))?;
    let mut told = String::new();
    while let Some((part, _)) = ask.receive(LIMIT).at("recv")? {
        if part.is_empty() {
            break;
        }
        told.push_str(&part);
        told.push(' ');
    }
    // The peer tells `token address` for what it got.
    let mut words = told.split_whitespace().skip_while(|word| *word != token).skip(1);
    match words.next().and_then(|word| word.parse::<IpAddr>().ok()) {
        Some(seen) => judge(t, seen, "the peer"),
        None => refused(format!("the datagram did not arrive; the peer saw {told:?}")),
    }
}

/// A datagram that asks for a source address by control data.
fn with_source(t: &Targets, source: IpAddr, to: SocketAddr, connected: bool) -> Attempt {
    tells(t, |token| {
        let socket = Socket::udp(family_of(to))?;
        if to.is_ipv6() {
            let only = matches!(to.ip(), IpAddr::V6(v6) if v6.to_ipv4_mapped().is_none());
            let _ = socket.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, i32::from(only));
        }
        let control = source_control(source);
        let address = RawAddress::from(to);
        if connected {
            socket.connect(&address, LIMIT).at(format!("connect({to})"))?;
        }
        let to_address = (!connected).then_some(&address);
        socket.send_message(token, to_address, Some(&control), false).at(format!("sendmsg({to}, source {source})"))
    })
}

/// Speaks to the internet first: the socket keeps the host's public address as its source.
fn after_outside(t: &Targets, to: SocketAddr) -> Attempt {
    let Some(outside) = &t.outside else { return not_applicable("no internet") };
    let usable = if t.egress_restricted { &outside.allowed } else { &outside.addresses };
    let Some(first) = usable.iter().find(|ip| ip.is_ipv6() == to.is_ipv6()) else {
        return not_applicable("nothing outside may be used");
    };
    let first = SocketAddr::new(*first, outside.udp_port);
    tells(t, |token| {
        let socket = Socket::udp(family_of(to))?;
        socket.connect(&first.into(), LIMIT).at(format!("connect({first}, UDP)"))?;
        socket.connect(&to.into(), LIMIT).at(format!("connect({to}) of a socket connected to {first}"))?;
        socket.send(token, 0, None).at("send")
    })
}

/// The same for an unconnected socket under family AF_UNSPEC.
fn unspecified_family(t: &Targets) -> Attempt {
    let to = granted_udp(t)?;
    tells(t, |token| {
        let socket = Socket::udp(libc::AF_INET)?;
        let address = RawAddress::from(to).with_family(libc::AF_UNSPEC);
        let control = source_control(Ipv4Addr::LOCALHOST.into());
        socket.send_message(token, Some(&address), Some(&control), false).at(format!("sendmsg({{AF_UNSPEC, {to}}})"))
    })
}

fn sibling_source(t: &Targets) -> Result<IpAddr, Stop> {
    t.sibling.as_ref().map_or_else(|| not_applicable("no other service"), |peer| Ok(peer.address.ip().into()))
}

pub(super) const ATTACKS: &[Attack] = &[
    attack!(Guard, "spoof.tcp_localhost", "connect to a peer from 127.0.0.1", SPOOF, |t| {
        connects_from(t, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into(), granted_tcp(t)?)
    }),
    attack!(Guard, "spoof.tcp_wildcard", "connect to a peer from a wildcard socket with a port", SPOOF, |t| {
        connects_from(t, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, OWN_PORT).into(), granted_tcp(t)?)
    }),
    attack!(Guard, "spoof.tcp_wildcard6", "the same from an IPv6 socket", SPOOF, |t| {
        connects_from(t, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), OWN_PORT + 1), granted_mapped(granted_tcp(t)?))
    }),
    attack!(Guard, "spoof.tcp_localhost6", "connect to a peer's IPv6 address from ::1", SPOOF, |t| {
        let port = granted_tcp(t)?.port();
        connects_from(t, SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 0), granted6(t, port)?)
    }),
    attack!(Guard, "spoof.tcp_host_address", "connect to a peer from the host's public address", SPOOF, |t| {
        connects_from(t, SocketAddr::new(host_address(t, false)?, 0), granted_tcp(t)?)
    }),
    attack!(Guard, "spoof.tcp_sibling", "connect to a peer from another service's address", SPOOF, |t| {
        connects_from(t, SocketAddr::new(sibling_source(t)?, 0), granted_tcp(t)?)
    }),
    attack!(Guard, "spoof.udp_localhost", "a datagram from 127.0.0.1 by IP_PKTINFO", SPOOF, |t| {
        with_source(t, Ipv4Addr::LOCALHOST.into(), granted_udp(t)?, false)
    }),
    attack!(Guard, "spoof.udp_sibling", "a datagram from another service's address by IP_PKTINFO", SPOOF, |t| {
        with_source(t, sibling_source(t)?, granted_udp(t)?, false)
    }),
    attack!(Guard, "spoof.udp_connected_localhost", "the same on a connected socket, from 127.0.0.2", SPOOF, |t| {
        with_source(t, Ipv4Addr::new(127, 0, 0, 2).into(), granted_udp(t)?, true)
    }),
    attack!(Guard, "spoof.udp_connected_sibling", "on a connected socket, from another service", SPOOF, |t| {
        with_source(t, sibling_source(t)?, granted_udp(t)?, true)
    }),
    attack!(Guard, "spoof.udp_connected_host", "on a connected socket, from the host's public address", SPOOF, |t| {
        with_source(t, host_address(t, false)?, granted_udp(t)?, true)
    }),
    attack!(Guard, "spoof.udp_connected_mapped", "on a connected IPv6 socket to a mapped peer", SPOOF, |t| {
        with_source(t, sibling_source(t)?, granted_mapped(granted_udp(t)?), true)
    }),
    attack!(Guard, "spoof.udp6_localhost", "an IPv6 datagram from ::1 by IPV6_PKTINFO", SPOOF, |t| {
        let port = granted_udp(t)?.port();
        with_source(t, Ipv6Addr::LOCALHOST.into(), granted6(t, port)?, false)
    }),
    attack!(Guard, "spoof.udp6_connected_localhost", "the same on a connected socket", SPOOF, |t| {
        let port = granted_udp(t)?.port();
        with_source(t, Ipv6Addr::LOCALHOST.into(), granted6(t, port)?, true)
    }),
    attack!(Guard, "spoof.udp6_connected_host", "on a connected socket, from the host's public address", SPOOF, |t| {
        let port = granted_udp(t)?.port();
        with_source(t, host_address(t, true)?, granted6(t, port)?, true)
    }),
    attack!(
        Guard,
        "spoof.udp_unspecified_family",
        "a destination of family AF_UNSPEC, from 127.0.0.1",
        SPOOF,
        unspecified_family
    ),
    attack!(Guard, "spoof.udp_after_outside", "connect UDP to the internet, then to a peer", SPOOF, |t| {
        after_outside(t, granted_udp(t)?)
    }),
    attack!(Guard, "spoof.udp6_after_outside", "the same with IPv6", SPOOF, |t| {
        let port = granted_udp(t)?.port();
        after_outside(t, granted6(t, port)?)
    }),
];
