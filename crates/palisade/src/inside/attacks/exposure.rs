//! Opening something that strangers reach, or taking what was meant for another service.
//!
//! Somebody outside keeps knocking at fixed ports; an attack opens one of them in its own way and waits.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::attack;
use super::identity::{granted_tcp, granted_udp};
use crate::inside::attack::Attack;
use crate::inside::sys::{At, Attempt, RawAddress, Socket, Stop, family_of, not_applicable, refused, until, wildcard};
use crate::inside::targets::Targets;

const EXPOSED: &str = "a compromised service opens a port to the internet, past what the file declares";
const INTERCEPT: &str = "a compromised service receives what was sent to another one";
const WAIT: Duration = Duration::from_millis(1000);
const LIMIT: Duration = Duration::from_millis(1500);

/// Every attack has a knocked port of its own, as they run at the same time.
fn port(t: &Targets, number: usize) -> Result<u16, Stop> {
    t.knocked_ports.get(number).map_or_else(|| not_applicable("nobody knocks from outside"), |port| Ok(*port))
}

fn is_outside(t: &Targets, ip: IpAddr) -> bool {
    t.outside.as_ref().is_some_and(|outside| outside.addresses.contains(&ip.to_canonical()))
}

fn strangers_connect(t: &Targets, socket: &Socket) -> Attempt {
    socket.listen().at("listen")?;
    let local = socket.local().at("getsockname")?;
    socket.set_nonblocking().at("fcntl")?;
    let found = until(WAIT, |left| {
        let Some(connection) = socket.accept(left)? else { return Ok(None) };
        Ok(connection.peer().ok().filter(|peer| is_outside(t, peer.ip())))
    });
    match found.at("accept")? {
        Some(peer) => Ok(format!("listening on {local}, accepted {peer}")),
        None => refused(format!("listening on {local}; nobody from outside within {} ms", WAIT.as_millis())),
    }
}

/// Waits for a datagram from outside that isn't an answer (those come from the internet's own server).
fn strangers_send(t: &Targets, socket: &Socket) -> Attempt {
    let local = socket.local().at("getsockname")?;
    let server = t.outside.as_ref().map(|outside| outside.udp_port);
    let found = until(WAIT, |left| {
        let Some((text, from)) = socket.receive(left)? else { return Ok(None) };
        Ok(from.filter(|from| is_outside(t, from.ip()) && Some(from.port()) != server).map(|from| (text, from)))
    });
    match found.at("recvfrom")? {
        Some((text, from)) => Ok(format!("at {local}, received {text:?} from {from}")),
        None => refused(format!("waiting at {local}; nothing from a stranger within {} ms", WAIT.as_millis())),
    }
}

fn bound(address: SocketAddr, kind: libc::c_int, prepare: impl FnOnce(&Socket)) -> Result<Socket, Stop> {
    let socket = Socket::new(family_of(address), kind, 0).at("socket")?;
    prepare(&socket);
    socket.bind(&address.into()).at(format!("bind({address})"))?;
    Ok(socket)
}

fn listens(t: &Targets, address: SocketAddr) -> Attempt {
    strangers_connect(t, &bound(address, libc::SOCK_STREAM, |_| {})?)
}

fn host_address(t: &Targets, v6: bool) -> Result<IpAddr, Stop> {
    let found = t.host.iter().flat_map(|host| &host.addresses).find(|ip| ip.is_ipv6() == v6);
    found.map_or_else(|| not_applicable("the host has no such address"), |ip| Ok(*ip))
}

fn v6_only(socket: &Socket) {
    let _ = socket.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1);
}

/// The kernel binds a socket that listens without having been bound, and no hook sees it.
fn without_bind(t: &Targets, family: libc::c_int, port: u16, prepare: impl FnOnce(&Socket)) -> Attempt {
    let socket = Socket::tcp(family)?;
    socket.choose_port(port).at("setsockopt(IP_LOCAL_PORT_RANGE)")?;
    prepare(&socket);
    strangers_connect(t, &socket)
}

fn after_connection(t: &Targets) -> Attempt {
    let first = granted_tcp(t)?;
    let socket = Socket::tcp(libc::AF_INET)?;
    socket.choose_port(port(t, 6)?).at("setsockopt(IP_LOCAL_PORT_RANGE)")?;
    socket.connect(&first.into(), LIMIT).at(format!("connect({first})"))?;
    socket.connect(&RawAddress::unspecified(), LIMIT).at("connect(AF_UNSPEC)")?;
    strangers_connect(t, &socket)
}

/// Bound to localhost, which is nothing to refuse, then freed of it.
fn after_local_connection(t: &Targets) -> Attempt {
    let socket = Socket::tcp(libc::AF_INET)?;
    socket.choose_port(port(t, 7)?).at("setsockopt(IP_LOCAL_PORT_RANGE)")?;
    // Nobody listens there: the attempt alone gives the socket its port.
    let _ = socket.connect(&SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1).into(), LIMIT);
    let _ = socket.connect(&RawAddress::unspecified(), LIMIT);
    strangers_connect(t, &socket)
}

/// A datagram to somebody who may be written to gives the socket a wildcard address and a port.
fn autobound(t: &Targets, family: libc::c_int, port: u16) -> Attempt {
    let socket = Socket::udp(family)?;
    socket.choose_port(port).at("setsockopt(IP_LOCAL_PORT_RANGE)")?;
    let to = match &t.outside {
        Some(outside) if !t.egress_restricted => {
            let found = outside.addresses.iter().find(|ip| ip.is_ipv4() == (family == libc::AF_INET));
            SocketAddr::new(*found.map_or_else(|| not_applicable("no such address outside"), Ok)?, outside.udp_port)
        }
        _ => granted_udp(t)?,
    };
    socket.send(super::identity::MESSAGE, 0, Some(&to.into())).at(format!("sendto({to})"))?;
    strangers_send(t, &socket)
}

fn autobound_after_connection(t: &Targets) -> Attempt {
    let to = granted_udp(t)?;
    let socket = Socket::udp(libc::AF_INET)?;
    socket.choose_port(port(t, 12)?).at("setsockopt(IP_LOCAL_PORT_RANGE)")?;
    socket.connect(&to.into(), LIMIT).at(format!("connect({to}, UDP)"))?;
    socket.connect(&RawAddress::unspecified(), LIMIT).at("connect(AF_UNSPEC)")?;
    // Port 0 is what a client binds.
    socket.bind(&wildcard(libc::AF_INET, 0).into()).at("bind(0.0.0.0:0)")?;
    strangers_send(t, &socket)
}

/// Connected without a port at the other end: the kernel then takes every port of that peer for it.
fn connected_to_port_zero(t: &Targets) -> Attempt {
    let Some(outside) = &t.outside else { return not_applicable("no internet") };
    let Some(ip) = outside.addresses.iter().find(|ip| ip.is_ipv4()) else {
        return not_applicable("no IPv4 outside");
    };
    if !t.egress_restricted {
        return not_applicable("the service may talk to everybody outside");
    }
    let socket = Socket::udp(libc::AF_INET)?;
    socket.choose_port(port(t, 13)?).at("setsockopt(IP_LOCAL_PORT_RANGE)")?;
    socket.connect(&SocketAddr::new(*ip, 0).into(), LIMIT).at(format!("connect({ip}:0, UDP)"))?;
    strangers_send(t, &socket)
}

fn port_zero(t: &Targets, kind: libc::c_int, number: usize) -> Attempt {
    let at = port(t, number)?;
    let socket = bound(wildcard(libc::AF_INET, 0), kind, |socket| {
        let _ = socket.choose_port(at);
    })?;
    if kind == libc::SOCK_STREAM { strangers_connect(t, &socket) } else { strangers_send(t, &socket) }
}

fn unspecified_family(t: &Targets) -> Attempt {
    let address = wildcard(libc::AF_INET, port(t, 8)?);
    let socket = Socket::tcp(libc::AF_INET)?;
    socket
        .bind(&RawAddress::from(address).with_family(libc::AF_UNSPEC))
        .at(format!("bind({{AF_UNSPEC, {address}}})"))?;
    strangers_connect(t, &socket)
}

fn to_device(t: &Targets, socket: &Socket) {
    if let Some(host) = &t.host {
        let _ = socket.set_bytes(libc::SOL_SOCKET, libc::SO_BINDTODEVICE, host.interface.as_bytes());
    }
}

fn link_local(t: &Targets) -> Attempt {
    match t.host.as_ref().and_then(|host| host.link_local) {
        // Nobody outside knocks there, so a bind that is granted is what counts.
        Some(address) => {
            let mut address = address;
            address.set_port(port(t, 18)?);
            bound(address.into(), libc::SOCK_STREAM, |_| {})?.listen().at("listen")?;
            Ok(format!("listening on {address}"))
        }
        None => not_applicable("the host has no link-local address"),
    }
}

fn multicast(t: &Targets) -> Attempt {
    let address = SocketAddr::new(Ipv4Addr::new(224, 0, 0, 1).into(), port(t, 19)?);
    bound(address, libc::SOCK_DGRAM, |_| {})?;
    Ok(format!("bound {address}: receives what anybody on the link sends to the group"))
}

fn called(t: &Targets) -> Result<(u16, IpAddr), Stop> {
    match (t.called_port, &t.sibling) {
        (Some(port), Some(sibling)) => Ok((port, sibling.address.ip().into())),
        _ => not_applicable("nobody calls another service"),
    }
}

/// Waits on all addresses at a port that another service does not use yet.
fn intercepts(t: &Targets, family: libc::c_int) -> Attempt {
    let (port, victim) = called(t)?;
    let port = if family == V4 { port } else { port + 1 };
    let socket = Socket::tcp(family)?;
    socket.choose_port(port).at("setsockopt(IP_LOCAL_PORT_RANGE)")?;
    socket.listen().at("listen")?;
    socket.set_nonblocking().at("fcntl")?;
    let found = until(WAIT, |left| {
        let Some(connection) = socket.accept(left)? else { return Ok(None) };
        Ok(connection.local().ok().filter(|local| local.ip().to_canonical() == victim))
    });
    match found.at("accept")? {
        Some(local) => Ok(format!("accepted a connection that was made to {local}")),
        None => refused(format!("listening on port {port}; no connection to {victim} came")),
    }
}

fn intercepts_datagrams(t: &Targets) -> Attempt {
    let (port, victim) = called(t)?;
    let socket = bound(wildcard(libc::AF_INET, 0), libc::SOCK_DGRAM, |socket| {
        let _ = socket.choose_port(port);
    })?;
    match socket.receive(WAIT).at("recvfrom")? {
        Some((text, from)) => Ok(format!("received {text:?}, sent to {victim}:{port} by {from:?}")),
        None => refused(format!("waiting at port {port}; no datagram to {victim} came")),
    }
}

const V4: libc::c_int = libc::AF_INET;
const V6: libc::c_int = libc::AF_INET6;
const TCP: libc::c_int = libc::SOCK_STREAM;
const UDP: libc::c_int = libc::SOCK_DGRAM;

pub(super) const ATTACKS: &[Attack] = &[
    attack!(Guard, "exposure.bind_any4", "bind 0.0.0.0 and listen", EXPOSED, |t| listens(t, wildcard(V4, port(t, 0)?))),
    attack!(Guard, "exposure.bind_any6", "bind :: and listen", EXPOSED, |t| listens(t, wildcard(V6, port(t, 1)?))),
    attack!(Guard, "exposure.bind_any6_only", "bind :: for IPv6 only and listen", EXPOSED, |t| {
        strangers_connect(t, &bound(wildcard(V6, port(t, 2)?), TCP, v6_only)?)
    }),
    attack!(Guard, "exposure.bind_mapped_any", "bind ::ffff:0.0.0.0 and listen", EXPOSED, |t| {
        let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().into(), port(t, 3)?);
        listens(t, address)
    }),
    attack!(Guard, "exposure.listen_without_bind4", "listen without a bind", EXPOSED, |t| {
        without_bind(t, V4, port(t, 4)?, |_| {})
    }),
    attack!(Guard, "exposure.listen_without_bind6", "listen without a bind, IPv6", EXPOSED, |t| {
        without_bind(t, V6, port(t, 5)?, |_| {})
    }),
    attack!(Guard, "exposure.listen_without_bind6_only", "listen without a bind, IPv6 only", EXPOSED, |t| {
        without_bind(t, V6, port(t, 20)?, v6_only)
    }),
    attack!(Guard, "exposure.reconnect_listen", "connect to a peer, dissolve, listen", EXPOSED, after_connection),
    attack!(Guard, "exposure.refused_listen", "connect to nobody, dissolve, listen", EXPOSED, after_local_connection),
    attack!(
        Guard,
        "exposure.bind_unspecified_family",
        "bind 0.0.0.0 under family AF_UNSPEC",
        EXPOSED,
        unspecified_family
    ),
    attack!(Guard, "exposure.bind_port_zero", "bind port 0 and listen", EXPOSED, |t| port_zero(t, TCP, 9)),
    attack!(Guard, "exposure.bind_device", "listen on the interface that leads outside", EXPOSED, |t| {
        without_bind(t, V4, port(t, 10)?, |socket| to_device(t, socket))
    }),
    attack!(Guard, "exposure.bind_public4", "bind the host's public IPv4 address", EXPOSED, |t| {
        listens(t, SocketAddr::new(host_address(t, false)?, port(t, 14)?))
    }),
    attack!(Guard, "exposure.bind_public6", "bind the host's public IPv6 address", EXPOSED, |t| {
        listens(t, SocketAddr::new(host_address(t, true)?, port(t, 15)?))
    }),
    attack!(Guard, "exposure.bind_public_mapped", "bind it as an IPv4-mapped address", EXPOSED, |t| {
        let IpAddr::V4(ip) = host_address(t, false)? else { return not_applicable("no IPv4") };
        listens(t, SocketAddr::new(ip.to_ipv6_mapped().into(), port(t, 16)?))
    }),
    attack!(Guard, "exposure.bind_link_local", "bind the host's link-local address", EXPOSED, link_local),
    attack!(Guard, "exposure.udp_bind_any4", "bind 0.0.0.0, UDP", EXPOSED, |t| {
        strangers_send(t, &bound(wildcard(V4, port(t, 0)?), UDP, |_| {})?)
    }),
    attack!(Guard, "exposure.udp_bind_any6", "bind ::, UDP", EXPOSED, |t| {
        strangers_send(t, &bound(wildcard(V6, port(t, 1)?), UDP, |_| {})?)
    }),
    attack!(Guard, "exposure.udp_autobind4", "receive from strangers after a sendto", EXPOSED, |t| {
        autobound(t, V4, port(t, 10)?)
    }),
    attack!(Guard, "exposure.udp_autobind6", "the same with IPv6", EXPOSED, |t| {
        if t.egress_restricted { not_applicable("nobody to write to") } else { autobound(t, V6, port(t, 11)?) }
    }),
    attack!(Guard, "exposure.udp_reconnect", "connect UDP, dissolve, bind port 0", EXPOSED, autobound_after_connection),
    attack!(Guard, "exposure.udp_port_zero", "bind UDP port 0 and receive", EXPOSED, |t| port_zero(t, UDP, 9)),
    attack!(
        Guard,
        "exposure.udp_connect_port_zero",
        "connect UDP to port 0 of a stranger",
        EXPOSED,
        connected_to_port_zero
    ),
    attack!(Guard, "exposure.udp_multicast", "bind a multicast group", EXPOSED, multicast),
    attack!(Guard, "exposure.intercept4", "accept connections to another service's unused port", INTERCEPT, |t| {
        intercepts(t, V4)
    }),
    attack!(Guard, "exposure.intercept6", "the same with an IPv6 socket", INTERCEPT, |t| intercepts(t, V6)),
    attack!(
        Guard,
        "exposure.intercept_udp",
        "receive datagrams to another service's unused port",
        INTERCEPT,
        intercepts_datagrams
    ),
];
