//! Reaching a service that wasn't given, by every spelling of its address and every way to send.

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use super::attack;
use crate::inside::attack::Attack;
use crate::inside::sys::{At, Attempt, RawAddress, Socket, Stop, family_of, mapped, not_applicable, refused};
use crate::inside::targets::{Peer, Targets};

const SIBLING: &str = "a compromised service talks to a service that it wasn't given";
const LIMIT: Duration = Duration::from_millis(1500);
/// What every attack's datagrams hold, so that whoever gets one can tell.
pub(super) const MESSAGE: &[u8] = b"palisade-attack";

fn sibling(t: &Targets) -> Result<&Peer, Stop> {
    t.sibling.as_ref().map_or_else(|| not_applicable("there is no other service"), Ok)
}
fn sibling_tcp(t: &Targets) -> Result<SocketAddrV4, Stop> {
    let peer = sibling(t)?;
    let port = peer.tcp_port.map_or_else(|| not_applicable("the other service has no TCP port"), Ok)?;
    Ok(SocketAddrV4::new(peer.address.ip(), port))
}
fn sibling_udp(t: &Targets) -> Result<SocketAddrV4, Stop> {
    let peer = sibling(t)?;
    let port = peer.udp_port.map_or_else(|| not_applicable("the other service has no UDP port"), Ok)?;
    Ok(SocketAddrV4::new(peer.address.ip(), port))
}
fn private6(t: &Targets, port: u16) -> Result<SocketAddr, Stop> {
    Ok(SocketAddr::new(sibling(t)?.address.ipv6().into(), port))
}
pub(super) fn granted_tcp(t: &Targets) -> Result<SocketAddr, Stop> {
    match &t.granted {
        Some(Peer { address, tcp_port: Some(port), .. }) => Ok(SocketAddr::new(address.ip().into(), *port)),
        _ => not_applicable("no service with a TCP port was given"),
    }
}
pub(super) fn granted_udp(t: &Targets) -> Result<SocketAddr, Stop> {
    match &t.granted {
        Some(Peer { address, udp_port: Some(port), .. }) => Ok(SocketAddr::new(address.ip().into(), *port)),
        _ => not_applicable("no service with a UDP port was given"),
    }
}

/// Connects; a connection is the prize.
pub(super) fn connects(to: SocketAddr) -> Attempt {
    let socket = Socket::tcp(family_of(to))?;
    connects_with(&socket, to)
}
pub(super) fn connects_with(socket: &Socket, to: SocketAddr) -> Attempt {
    socket.connect(&to.into(), LIMIT).at(format!("connect({to})"))?;
    Ok(format!("connected to {to}"))
}

/// An answer is the prize.
pub(super) fn answered(socket: &Socket, to: impl std::fmt::Display) -> Attempt {
    match socket.receive(Duration::from_millis(700)).at("recvfrom")? {
        Some((text, _)) => Ok(format!("{to} answered {text:?}")),
        None => refused(format!("sent to {to}; no answer")),
    }
}
pub(super) fn sends(to: SocketAddr) -> Attempt {
    let socket = Socket::udp(family_of(to))?;
    socket.send(MESSAGE, 0, Some(&to.into())).at(format!("sendto({to})"))?;
    answered(&socket, to)
}
pub(super) fn sends_connected(to: SocketAddr) -> Attempt {
    let socket = Socket::udp(family_of(to))?;
    socket.connect(&to.into(), LIMIT).at(format!("connect({to}, UDP)"))?;
    socket.send(MESSAGE, 0, None).at("send")?;
    answered(&socket, to)
}

/// To an address under family AF_UNSPEC, which Linux takes for AF_INET in a datagram's destination.
pub(super) fn sends_unspecified_family(to: SocketAddr) -> Attempt {
    let socket = Socket::udp(libc::AF_INET)?;
    let address = RawAddress::from(to).with_family(libc::AF_UNSPEC);
    socket.send(MESSAGE, 0, Some(&address)).at(format!("sendto({{AF_UNSPEC, {to}}})"))?;
    answered(&socket, to)
}

fn fastopen_sendto(to: SocketAddr) -> Attempt {
    let socket = Socket::tcp(family_of(to))?;
    socket.send(MESSAGE, libc::MSG_FASTOPEN, Some(&to.into())).at(format!("sendto({to}, MSG_FASTOPEN)"))?;
    socket.finish_connect(LIMIT).at("fast open")?;
    Ok(format!("connected to {to} by fast open"))
}

fn fastopen_connect(to: SocketAddr) -> Attempt {
    let socket = Socket::tcp(family_of(to))?;
    socket.set(libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1).at("setsockopt(TCP_FASTOPEN_CONNECT)")?;
    socket.connect(&to.into(), LIMIT).at(format!("connect({to})"))?;
    socket.send(MESSAGE, 0, None).at("send")?;
    socket.finish_connect(LIMIT).at("fast open")?;
    Ok(format!("connected to {to} by fast open"))
}

fn blocking(to: SocketAddr) -> Attempt {
    match std::net::TcpStream::connect_timeout(&to, LIMIT) {
        Ok(_) => Ok(format!("connected to {to}")),
        Err(error) => Err(error).at(format!("connect({to})")),
    }
}

fn from_thread(to: SocketAddr) -> Attempt {
    std::thread::spawn(move || connects(to)).join().unwrap_or_else(|_| refused("the thread panicked"))
}

/// From a grandchild in a session of its own, whose parent is gone.
fn from_orphan(to: SocketAddr) -> Attempt {
    let (read, write) = nix::unistd::pipe().map_err(std::io::Error::from).at("pipe")?;
    // SAFETY: the attacking process has one thread.
    match unsafe { fork() }.map_err(std::io::Error::from).at("fork")? {
        ForkResult::Parent { child } => {
            drop(write);
            let _ = waitpid(child, None);
            let mut told = String::new();
            std::io::Read::read_to_string(&mut std::fs::File::from(read), &mut told).at("read")?;
            match told.strip_prefix('+') {
                Some(obtained) => Ok(obtained.to_owned()),
                None => refused(told),
            }
        }
        ForkResult::Child => {
            let _ = nix::unistd::setsid();
            // SAFETY: as above.
            if let Ok(ForkResult::Child) = unsafe { fork() } {
                nix::unistd::alarm::set(5);
                let text = match connects(to) {
                    Ok(obtained) => format!("+{obtained}"),
                    Err(Stop::Refused(why) | Stop::NotApplicable(why)) => why,
                };
                let _ = std::io::Write::write_all(&mut std::fs::File::from(write), text.as_bytes());
            }
            // SAFETY: ends the child and the grandchild.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Makes a socket innocent first: connected where it may, then dissolved, then connected again.
fn reconnects(t: &Targets) -> Attempt {
    let (first, then) = (granted_tcp(t)?, sibling_tcp(t)?);
    let socket = Socket::tcp(libc::AF_INET)?;
    socket.connect(&first.into(), LIMIT).at(format!("connect({first})"))?;
    socket.connect(&RawAddress::unspecified(), LIMIT).at("connect(AF_UNSPEC)")?;
    connects_with(&socket, then.into())
}

fn reconnects_udp(t: &Targets) -> Attempt {
    let (first, then) = (granted_udp(t)?, SocketAddr::from(sibling_udp(t)?));
    let socket = Socket::udp(libc::AF_INET)?;
    socket.connect(&first.into(), LIMIT).at(format!("connect({first})"))?;
    socket.connect(&then.into(), LIMIT).at(format!("connect({then}) of a connected socket"))?;
    socket.send(MESSAGE, 0, None).at("send")?;
    answered(&socket, then)
}

fn connected_elsewhere(t: &Targets) -> Attempt {
    let (first, then) = (granted_udp(t)?, SocketAddr::from(sibling_udp(t)?));
    let socket = Socket::udp(libc::AF_INET)?;
    socket.connect(&first.into(), LIMIT).at(format!("connect({first})"))?;
    socket.send(MESSAGE, 0, Some(&then.into())).at(format!("sendto({then}) of a connected socket"))?;
    // A connected socket hears only its peer, so ask who got it.
    delivered_to_sibling(t)
}

fn delivered_to_sibling(t: &Targets) -> Attempt {
    let to = sibling_udp(t)?;
    let socket = Socket::udp(libc::AF_INET)?;
    match socket.send(MESSAGE, 0, Some(&SocketAddr::from(to).into())) {
        Ok(()) => answered(&socket, to),
        // The message may be gone without an answer; the stage's own record of what arrived has the last word.
        Err(error) => Err(error).at(format!("sent; asking {to}")),
    }
}

fn mapped_datagram(t: &Targets) -> Attempt {
    let to = mapped(sibling_udp(t)?);
    let socket = Socket::udp(libc::AF_INET6)?;
    socket.send(MESSAGE, 0, Some(&to.into())).at(format!("sendto({to})"))?;
    answered(&socket, to)
}

/// An IPv4 address given to an IPv6 socket.
fn datagram_of_other_family(t: &Targets) -> Attempt {
    let to = SocketAddr::from(sibling_udp(t)?);
    let socket = Socket::udp(libc::AF_INET6)?;
    socket.send(MESSAGE, 0, Some(&to.into())).at(format!("sendto({to}) on an IPv6 socket"))?;
    answered(&socket, to)
}

fn many(t: &Targets) -> Attempt {
    let to = SocketAddr::from(sibling_udp(t)?);
    let socket = Socket::udp(libc::AF_INET)?;
    socket.send_message(MESSAGE, Some(&to.into()), None, true).at(format!("sendmmsg({to})"))?;
    answered(&socket, to)
}

fn udplite(t: &Targets) -> Attempt {
    // Nobody answers UDP-Lite, so what the kernel lets out is what counts.
    let to = SocketAddr::from(sibling_udp(t)?);
    let socket = Socket::new(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE).at("socket(UDP-Lite)")?;
    socket.send(MESSAGE, 0, Some(&to.into())).at(format!("sendto({to}, UDP-Lite)"))?;
    Ok(format!("the kernel sent a UDP-Lite datagram to {to}"))
}

fn mptcp(t: &Targets) -> Attempt {
    let to = SocketAddr::from(sibling_tcp(t)?);
    let socket = Socket::new(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).at("socket(MPTCP)")?;
    connects_with(&socket, to)
}

/// A connected IPv6 socket turned into an IPv4 one.
fn address_form(t: &Targets) -> Attempt {
    let SocketAddr::V4(first) = granted_tcp(t)? else { return not_applicable("IPv6 peer") };
    let then = SocketAddr::from(sibling_tcp(t)?);
    let socket = Socket::tcp(libc::AF_INET6)?;
    socket.connect(&mapped(first).into(), LIMIT).at(format!("connect({})", mapped(first)))?;
    socket.set(libc::IPPROTO_IPV6, libc::IPV6_ADDRFORM, libc::AF_INET).at("setsockopt(IPV6_ADDRFORM)")?;
    socket.connect(&RawAddress::unspecified(), LIMIT).at("connect(AF_UNSPEC)")?;
    connects_with(&socket, then)
}

fn other_port(t: &Targets) -> Attempt {
    match (&t.granted, t.granted_other_tcp_port) {
        (Some(peer), Some(port)) => connects(SocketAddr::new(peer.address.ip().into(), port)),
        _ => not_applicable("no service with a port that wasn't given"),
    }
}

/// Takes an address that is another's.
fn squats(t: &Targets, kind: libc::c_int, ip: IpAddr, options: &[(libc::c_int, libc::c_int)]) -> Attempt {
    const FREE_PORT: u16 = 39_499;
    let port =
        if options.contains(&(libc::SOL_SOCKET, libc::SO_REUSEPORT)) { sibling_tcp(t)?.port() } else { FREE_PORT };
    let address = SocketAddr::new(ip, port);
    let socket = Socket::new(family_of(address), kind, 0).at("socket")?;
    for (level, option) in options {
        // Some need a capability; the bind is tried without, then.
        let _ = socket.set(*level, *option, 1);
    }
    socket.bind(&address.into()).at(format!("bind({address})"))?;
    let got = socket.local().at("getsockname")?;
    if got.ip().to_canonical() == ip.to_canonical() {
        Ok(format!("bound {got}"))
    } else {
        refused(format!("bind({address}) gave {got}"))
    }
}

const TCP: libc::c_int = libc::SOCK_STREAM;
const UDP: libc::c_int = libc::SOCK_DGRAM;
const SQUAT: &str = "a compromised service takes the address of another one and gets its connections";

pub(super) const ATTACKS: &[Attack] = &[
    attack!(Guard, "identity.tcp", "connect to another service's address", SIBLING, |t| connects(
        sibling_tcp(t)?.into()
    )),
    attack!(Guard, "identity.tcp_service_address", "connect to another service's service address", SIBLING, |t| {
        let to = sibling_tcp(t)?;
        connects(SocketAddr::new(sibling(t)?.address.service().ip().into(), to.port()))
    }),
    attack!(Guard, "identity.tcp_mapped", "connect to it as an IPv4-mapped address", SIBLING, |t| connects(mapped(
        sibling_tcp(t)?
    ))),
    attack!(Guard, "identity.tcp_private6", "connect to its private IPv6 address", SIBLING, |t| connects(private6(
        t,
        sibling_tcp(t)?.port()
    )?)),
    attack!(Guard, "identity.tcp_blocking", "connect to it with a blocking socket", SIBLING, |t| blocking(
        sibling_tcp(t)?.into()
    )),
    attack!(Guard, "identity.tcp_fastopen_sendto", "TCP fast open by sendto", SIBLING, |t| fastopen_sendto(
        sibling_tcp(t)?.into()
    )),
    attack!(Guard, "identity.tcp_fastopen_connect", "TCP fast open by TCP_FASTOPEN_CONNECT", SIBLING, |t| {
        fastopen_connect(sibling_tcp(t)?.into())
    }),
    attack!(Guard, "identity.tcp_thread", "connect from another thread", SIBLING, |t| from_thread(
        sibling_tcp(t)?.into()
    )),
    attack!(Guard, "identity.tcp_orphan", "connect from an orphaned grandchild in its own session", SIBLING, |t| {
        from_orphan(sibling_tcp(t)?.into())
    }),
    attack!(Guard, "identity.tcp_reconnect", "connect, dissolve with AF_UNSPEC, connect again", SIBLING, reconnects),
    attack!(Guard, "identity.tcp_address_form", "turn an IPv6 socket into IPv4, then reconnect", SIBLING, address_form),
    attack!(Guard, "identity.tcp_other_port", "connect to a port of a peer that wasn't given", SIBLING, other_port),
    attack!(Guard, "identity.mptcp", "connect with Multipath TCP", SIBLING, mptcp),
    attack!(Guard, "identity.udp", "sendto another service", SIBLING, |t| sends(sibling_udp(t)?.into())),
    attack!(Guard, "identity.udp_connected", "connected UDP", SIBLING, |t| sends_connected(sibling_udp(t)?.into())),
    attack!(Guard, "identity.udp_sendmmsg", "sendmmsg", SIBLING, many),
    attack!(Guard, "identity.udp_mapped", "an IPv4-mapped destination on an IPv6 socket", SIBLING, mapped_datagram),
    attack!(
        Guard,
        "identity.udp_other_family",
        "an IPv4 destination on an IPv6 socket",
        SIBLING,
        datagram_of_other_family
    ),
    attack!(Guard, "identity.udp_private6", "sendto its private IPv6 address", SIBLING, |t| sends(private6(
        t,
        sibling_udp(t)?.port()
    )?)),
    attack!(Guard, "identity.udp_unspecified_family", "a destination of family AF_UNSPEC", SIBLING, |t| {
        sends_unspecified_family(sibling_udp(t)?.into())
    }),
    attack!(Guard, "identity.udp_reconnect", "connect UDP to a peer, then to another service", SIBLING, reconnects_udp),
    attack!(
        Guard,
        "identity.udp_connected_elsewhere",
        "sendto another service on a socket connected to a peer",
        SIBLING,
        connected_elsewhere
    ),
    attack!(Guard, "identity.udplite", "UDP-Lite", SIBLING, udplite),
    attack!(Guard, "identity.bind_tcp", "bind another service's address", SQUAT, |t| {
        squats(t, TCP, sibling(t)?.address.ip().into(), &[])
    }),
    attack!(Guard, "identity.bind_udp", "bind another service's address, UDP", SQUAT, |t| {
        squats(t, UDP, sibling(t)?.address.ip().into(), &[])
    }),
    attack!(Guard, "identity.bind_mapped", "bind it as an IPv4-mapped address", SQUAT, |t| {
        squats(t, TCP, sibling(t)?.address.ip().to_ipv6_mapped().into(), &[])
    }),
    attack!(Guard, "identity.bind_private6", "bind its private IPv6 address", SQUAT, |t| {
        squats(t, TCP, sibling(t)?.address.ipv6().into(), &[])
    }),
    attack!(Guard, "identity.bind_service_address", "bind its service address", SQUAT, |t| {
        squats(t, TCP, sibling(t)?.address.service().ip().into(), &[])
    }),
    attack!(Guard, "identity.bind_own_localhost", "bind what is another service's localhost", SQUAT, |t| {
        squats(t, TCP, sibling(t)?.address.own_localhost().into(), &[])
    }),
    attack!(Guard, "identity.bind_reuseport", "share its listening port by SO_REUSEPORT", SQUAT, |t| {
        squats(
            t,
            TCP,
            sibling(t)?.address.ip().into(),
            &[(libc::SOL_SOCKET, libc::SO_REUSEPORT), (libc::SOL_SOCKET, libc::SO_REUSEADDR)],
        )
    }),
    attack!(Guard, "identity.bind_freebind", "bind its address with IP_FREEBIND", SQUAT, |t| {
        squats(t, TCP, sibling(t)?.address.ip().into(), &[(libc::IPPROTO_IP, libc::IP_FREEBIND)])
    }),
    attack!(Guard, "identity.bind_transparent", "bind its address with IP_TRANSPARENT", SQUAT, |t| {
        squats(t, TCP, sibling(t)?.address.ip().into(), &[(libc::IPPROTO_IP, libc::IP_TRANSPARENT)])
    }),
];
