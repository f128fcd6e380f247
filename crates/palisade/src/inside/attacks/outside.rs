//! Getting out where nothing was allowed: metadata services, the internet by any protocol, source routes.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::attack;
use super::identity::{MESSAGE, answered, connects, sends, sends_connected, sends_unspecified_family};
use crate::inside::attack::Attack;
use crate::inside::sys::{At, Attempt, Control, Socket, Stop, family_of, not_applicable, refused};
use crate::inside::targets::{Outside, Targets};

const METADATA: &str = "a compromised service fetches the machine's cloud credentials";
const EGRESS: &str = "a compromised service sends data to a place that its file doesn't allow";

fn outside(t: &Targets) -> Result<&Outside, Stop> {
    t.outside.as_ref().map_or_else(|| not_applicable("there is no internet"), Ok)
}
fn metadata(t: &Targets, v6: bool) -> Result<SocketAddr, Stop> {
    let outside = outside(t)?;
    let found = outside.metadata.iter().find(|ip| ip.is_ipv6() == v6);
    let ip = found.map_or_else(|| not_applicable("no such metadata service"), Ok)?;
    Ok(SocketAddr::new(*ip, outside.tcp_port))
}
/// An address that the service must not use.
fn forbidden(t: &Targets, v6: bool) -> Result<IpAddr, Stop> {
    if !t.egress_restricted {
        return not_applicable("the service may use the whole internet");
    }
    let outside = outside(t)?;
    let mut candidates = outside.addresses.iter().filter(|ip| ip.is_ipv6() == v6 && !outside.allowed.contains(ip));
    candidates.next().map_or_else(|| not_applicable("no such address outside"), |ip| Ok(*ip))
}
fn tcp(t: &Targets, v6: bool) -> Result<SocketAddr, Stop> {
    Ok(SocketAddr::new(forbidden(t, v6)?, outside(t)?.tcp_port))
}
fn udp(t: &Targets, v6: bool) -> Result<SocketAddr, Stop> {
    Ok(SocketAddr::new(forbidden(t, v6)?, outside(t)?.udp_port))
}
fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// One ICMP echo request with its checksum.
fn echo_request(v6: bool) -> Vec<u8> {
    let mut packet = vec![if v6 { 128 } else { 8 }, 0, 0, 0, 0x50, 0x41, 0, 1];
    packet.extend(b"palisade");
    let mut sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !(sum as u16);
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

fn pings(t: &Targets, v6: bool, kind: libc::c_int) -> Attempt {
    let to = SocketAddr::new(forbidden(t, v6)?, 0);
    let protocol = if v6 { libc::IPPROTO_ICMPV6 } else { libc::IPPROTO_ICMP };
    let socket = Socket::new(family_of(to), kind, protocol).at("socket(ICMP)")?;
    socket.send(&echo_request(v6), 0, Some(&to.into())).at(format!("sendto({to}, ICMP echo)"))?;
    match socket.receive(Duration::from_millis(700)).at("recvfrom")? {
        Some(_) => Ok(format!("{} answered an ICMP echo", to.ip())),
        None => refused("no answer"),
    }
}

/// An IPv4 loose source route by way of `hop`.
fn loose_source_route(hop: IpAddr) -> Option<Vec<u8>> {
    let IpAddr::V4(hop) = hop else { return None };
    // Type, length, pointer, the hop; and an end of options that fills the word.
    let mut option = vec![131, 7, 4];
    option.extend(hop.octets());
    option.push(0);
    Some(option)
}

/// An IPv6 segment routing header by way of `hop`; the kernel fills in the destination.
fn segment_route(hop: IpAddr) -> Option<Vec<u8>> {
    let IpAddr::V6(hop) = hop else { return None };
    // Next header, length in eight bytes, type 4, segments left, last entry, flags, tag, and two segments.
    let mut header = vec![0, 4, 4, 1, 1, 0, 0, 0];
    header.extend([0; 16]);
    header.extend(hop.octets());
    Some(header)
}

/// The destination is allowed, the router that every packet goes through isn't: it gets to read them.
fn detour(t: &Targets, v6: bool, tcp: bool, by_control: bool) -> Attempt {
    let outside = outside(t)?;
    let hop = forbidden(t, v6)?;
    let Some(ip) = outside.allowed.iter().find(|ip| ip.is_ipv6() == v6) else {
        return not_applicable("nothing outside is allowed");
    };
    let to = SocketAddr::new(*ip, if tcp { outside.tcp_port } else { outside.udp_port });
    let kind = if tcp { libc::SOCK_STREAM } else { libc::SOCK_DGRAM };
    let (level, option) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_RTHDR) } else { (libc::IPPROTO_IP, libc::IP_OPTIONS) };
    let Some(route) = loose_source_route(hop).or_else(|| segment_route(hop)) else {
        return not_applicable("no route");
    };
    let socket = Socket::new(family_of(to), kind, 0).at("socket")?;
    if by_control {
        // Linux takes no segment route this way.
        let control = Control { level, kind: libc::IP_RETOPTS, data: route };
        socket
            .send_message(MESSAGE, Some(&to.into()), Some(&control), false)
            .at(format!("sendmsg({to}, source route by {hop})"))?;
        return answered(&socket, format_args!("{to} by way of {hop}"));
    }
    socket.set_bytes(level, option, &route).at(format!("setsockopt(source route by {hop})"))?;
    if tcp {
        socket.connect(&to.into(), Duration::from_millis(1200)).at(format!("connect({to}) by way of {hop}"))?;
        return Ok(format!("connected to {to} by way of {hop}, which isn't allowed"));
    }
    socket.send(MESSAGE, 0, Some(&to.into())).at(format!("sendto({to}) by way of {hop}"))?;
    answered(&socket, format_args!("{to} by way of {hop}"))
}

pub(super) const ATTACKS: &[Attack] = &[
    attack!(Guard, "outside.metadata4", "connect to 169.254.169.254", METADATA, |t| connects(metadata(t, false)?)),
    attack!(Guard, "outside.metadata6", "connect to fd00:ec2::254", METADATA, |t| connects(metadata(t, true)?)),
    attack!(Guard, "outside.metadata_mapped", "connect to ::ffff:169.254.169.254", METADATA, |t| {
        connects(mapped(metadata(t, false)?))
    }),
    attack!(Guard, "outside.metadata_udp", "a datagram to 169.254.169.254", METADATA, |t| {
        let mut to = metadata(t, false)?;
        to.set_port(outside(t)?.udp_port);
        sends(to)
    }),
    attack!(Guard, "outside.metadata_unspecified_family", "the same under family AF_UNSPEC", METADATA, |t| {
        let mut to = metadata(t, false)?;
        to.set_port(outside(t)?.udp_port);
        sends_unspecified_family(to)
    }),
    attack!(Guard, "outside.tcp4", "connect to the internet", EGRESS, |t| connects(tcp(t, false)?)),
    attack!(Guard, "outside.tcp6", "connect to the internet, IPv6", EGRESS, |t| connects(tcp(t, true)?)),
    attack!(Guard, "outside.tcp_mapped", "connect to the internet, IPv4-mapped", EGRESS, |t| {
        connects(mapped(tcp(t, false)?))
    }),
    attack!(Guard, "outside.udp4", "a datagram to the internet", EGRESS, |t| sends(udp(t, false)?)),
    attack!(Guard, "outside.udp6", "a datagram to the internet, IPv6", EGRESS, |t| sends(udp(t, true)?)),
    attack!(Guard, "outside.udp_connected", "connected UDP", EGRESS, |t| sends_connected(udp(t, false)?)),
    attack!(Guard, "outside.udp_mapped", "a datagram to an IPv4-mapped address", EGRESS, |t| {
        sends(mapped(udp(t, false)?))
    }),
    attack!(Guard, "outside.udp_unspecified_family", "a datagram under family AF_UNSPEC", EGRESS, |t| {
        sends_unspecified_family(udp(t, false)?)
    }),
    attack!(Guard, "outside.dns", "a question to a foreign name server", EGRESS, |t| {
        sends(SocketAddr::new(forbidden(t, false)?, 53))
    }),
    attack!(Either, "outside.icmp_raw4", "ICMP echo through a raw socket", EGRESS, |t| pings(t, false, libc::SOCK_RAW)),
    attack!(Either, "outside.icmp_raw6", "ICMPv6 echo through a raw socket", EGRESS, |t| pings(
        t,
        true,
        libc::SOCK_RAW
    )),
    attack!(Guard, "outside.icmp_ping4", "ICMP echo through a ping socket", EGRESS, |t| pings(
        t,
        false,
        libc::SOCK_DGRAM
    )),
    attack!(Guard, "outside.icmp_ping6", "ICMPv6 echo through a ping socket", EGRESS, |t| pings(
        t,
        true,
        libc::SOCK_DGRAM
    )),
    attack!(Guard, "outside.source_route4", "a loose source route", EGRESS, |t| detour(t, false, false, false)),
    attack!(Guard, "outside.source_route4_control", "a loose source route by control data", EGRESS, |t| {
        detour(t, false, false, true)
    }),
    attack!(Guard, "outside.source_route4_tcp", "a loose source route, TCP", EGRESS, |t| detour(t, false, true, false)),
    attack!(Guard, "outside.source_route6", "an IPv6 segment route", EGRESS, |t| detour(t, true, false, false)),
    attack!(Guard, "outside.source_route6_tcp", "an IPv6 segment route, TCP", EGRESS, |t| detour(t, true, true, false)),
];
