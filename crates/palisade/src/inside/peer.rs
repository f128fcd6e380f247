//! A service that tells whom it sees: the attack kit's counterpart.
//!
//! `palisade __attack-peer` reads [`PeerSpec`] from standard input's first line, serves until standard input ends, and
//! writes each datagram that it got as a line. Judging is done by whoever reads.

use palisade_core::address::InstanceAddress;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io::{self, BufRead, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::sys::{Socket, family_of, wildcard};

/// What to serve.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PeerSpec {
    /// Its own address, from which it answers.
    pub(crate) address: InstanceAddress,
    /// Listens on these, IPv4 and IPv6.
    pub(crate) tcp_ports: Vec<u16>,
    /// Answers on these.
    pub(crate) udp_ports: Vec<u16>,
    /// Keeps connecting and sending to this address and port, and to the port after it.
    pub(crate) calls: Option<(Ipv4Addr, u16)>,
}

/// Token and source address of the last datagrams.
type Seen = Arc<Mutex<VecDeque<(String, IpAddr)>>>;

/// The verb.
pub(crate) fn main() -> io::Result<()> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let spec: PeerSpec = serde_json::from_str(&line).map_err(io::Error::other)?;
    let seen = Seen::default();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for port in &spec.tcp_ports {
            match bound(wildcard(family, *port), libc::SOCK_STREAM) {
                Ok(socket) => spawn(move |seen| serve_tcp(&socket, seen), &seen),
                Err(error) if family == libc::AF_INET => return Err(error),
                Err(error) => eprintln!("no IPv6 on TCP port {port}: {error}"),
            }
        }
        let own: IpAddr = if family == libc::AF_INET { spec.address.ip().into() } else { spec.address.ipv6().into() };
        for port in &spec.udp_ports {
            match bound(SocketAddr::new(own, *port), libc::SOCK_DGRAM) {
                Ok(socket) => spawn(move |seen| serve_udp(&socket, seen), &seen),
                Err(error) if family == libc::AF_INET => return Err(error),
                Err(error) => eprintln!("no IPv6 on UDP port {port}: {error}"),
            }
        }
    }
    if let Some((address, port)) = spec.calls {
        for port in [port, port + 1] {
            std::thread::spawn(move || call(SocketAddr::new(address.into(), port)));
        }
    }
    println!("serving");
    io::copy(&mut io::stdin().lock().take(u64::MAX), &mut io::sink()).map(drop)
}

fn spawn(work: impl FnOnce(&Seen) + Send + 'static, seen: &Seen) {
    let seen = Arc::clone(seen);
    std::thread::spawn(move || work(&seen));
}

/// Shares its port, as a server with several processes does.
fn bound(address: SocketAddr, kind: libc::c_int) -> io::Result<Socket> {
    let socket = Socket::new(family_of(address), kind, 0)?;
    socket.set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    socket.set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    if address.is_ipv6() {
        socket.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
    }
    socket.bind(&address.into())?;
    if kind == libc::SOCK_STREAM {
        socket.listen()?;
    }
    Ok(socket)
}

fn serve_tcp(socket: &Socket, seen: &Seen) {
    loop {
        let Ok(Some(connection)) = socket.accept(Duration::from_secs(1)) else { continue };
        let Ok(peer) = connection.peer() else { continue };
        let mut text = format!("palisade-peer {}\n", peer.ip());
        for (token, source) in seen.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            text.push_str(&format!("{token} {source}\n"));
        }
        let _ = connection.send(text.as_bytes(), 0, None);
        // What came unread would turn the end of the connection into a reset.
        let _ = connection.receive(Duration::from_millis(20));
    }
}

fn serve_udp(socket: &Socket, seen: &Seen) {
    loop {
        let Ok(Some((text, Some(from)))) = socket.receive(Duration::from_secs(1)) else { continue };
        let _ = socket.send(format!("palisade-peer {}", from.ip()).as_bytes(), 0, Some(&from.into()));
        let _ = writeln!(io::stdout(), "{} {text}", from.ip());
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push_back((text, from.ip()));
        // An answer fits into one segment of loopback.
        if seen.len() > 64 {
            seen.pop_front();
        }
    }
}

fn call(to: SocketAddr) {
    loop {
        if let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_millis(100)) {
            let _ = stream.write_all(b"for the other service\n");
        }
        if let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) {
            let _ = socket.send_to(b"for the other service", to);
        }
        std::thread::sleep(Duration::from_millis(40));
    }
}
