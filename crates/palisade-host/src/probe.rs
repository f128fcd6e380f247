//! Real packets from the calling thread's network namespace to real ports, and the answers.
//!
//! What an answer means for a stack is for `palisade_core::prove` to say.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, getsockopt, recv, send,
    setsockopt, socket, sockopt,
};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use palisade_core::stack::Proto;

use crate::packets::{SOURCE_PORT, Sender, Template};
use crate::twin::PortSet;

/// A probe couldn't be made at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} for {target}")]
pub struct ProbeError {
    /// "open a socket" …
    pub operation: &'static str,
    /// The address.
    pub target: String,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// A connection, or a datagram.
    Open,
    /// A reset, or an ICMP message that nobody listens.
    Refused,
    /// Nothing. For UDP that says little: most servers don't answer what they don't understand.
    Silent,
    /// Something else, in the kernel's words: no route, forbidden …
    Error(String),
}

struct Pending {
    at: usize,
    fd: OwnedFd,
    proto: Proto,
}

/// How many sockets are open at once; stays below the usual limit of 1024 files.
const AT_ONCE: usize = 512;

/// Asks each target once, many at a time, each for at most `timeout`. UDP sends `payload`.
pub fn ask(targets: &[(Proto, SocketAddr)], payload: &[u8], timeout: Duration) -> Result<Vec<Response>, ProbeError> {
    let mut responses = vec![Response::Silent; targets.len()];
    for (chunk_at, chunk) in targets.chunks(AT_ONCE).enumerate() {
        let mut pending = Vec::new();
        for (offset, (proto, target)) in chunk.iter().enumerate() {
            let at = chunk_at * AT_ONCE + offset;
            let failed = |source: Errno| ProbeError {
                operation: "open a socket",
                target: target.to_string(),
                source: source.into(),
            };
            match start(*proto, *target, payload).map_err(failed)? {
                Ok(fd) => pending.push(Pending { at, fd, proto: *proto }),
                Err(errno) => responses[at] = meaning(errno),
            }
        }
        wait(&mut pending, &mut responses, timeout);
    }
    Ok(responses)
}

/// Opens a socket and sends the first packet. The inner error is an answer.
fn start(proto: Proto, target: SocketAddr, payload: &[u8]) -> nix::Result<Result<OwnedFd, Errno>> {
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let (kind, protocol) = match proto {
        Proto::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Proto::Udp => (SockType::Datagram, SockProtocol::Udp),
    };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, protocol)?;
    if proto == Proto::Tcp {
        // A connection that was accepted is closed by a reset, so that thousands of them leave no trace behind.
        setsockopt(&fd, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
    }
    Ok(match connect(fd.as_raw_fd(), &SockaddrStorage::from(target)) {
        Ok(()) | Err(Errno::EINPROGRESS) => match proto {
            Proto::Tcp => Ok(fd),
            Proto::Udp => send(fd.as_raw_fd(), payload, MsgFlags::empty()).map(|_| fd),
        },
        Err(errno) => Err(errno),
    })
}

fn meaning(errno: Errno) -> Response {
    match errno {
        Errno::ECONNREFUSED | Errno::ECONNRESET => Response::Refused,
        Errno::ETIMEDOUT => Response::Silent,
        other => Response::Error(other.desc().to_owned()),
    }
}

fn wait(pending: &mut Vec<Pending>, responses: &mut [Response], timeout: Duration) {
    let deadline = Instant::now() + timeout;
    while !pending.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let mut polled: Vec<PollFd<'_>> = pending
            .iter()
            .map(|one| {
                let wanted = if one.proto == Proto::Tcp { PollFlags::POLLOUT } else { PollFlags::POLLIN };
                PollFd::new(one.fd.as_fd(), wanted)
            })
            .collect();
        let left_ms = u16::try_from(left.as_millis()).unwrap_or(u16::MAX).max(1);
        match poll(&mut polled, PollTimeout::from(left_ms)) {
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => (),
            Err(errno) => {
                pending.drain(..).for_each(|one| responses[one.at] = meaning(errno));
                return;
            }
        }
        let ready: Vec<bool> = polled.iter().map(|one| one.any().unwrap_or(false)).collect();
        let mut ready = ready.into_iter();
        pending.retain(|one| {
            if !ready.next().unwrap_or(false) {
                return true;
            }
            let error = getsockopt(&one.fd, sockopt::SocketError).unwrap_or(0);
            responses[one.at] = match (error, one.proto) {
                (0, Proto::Tcp) => Response::Open,
                (0, Proto::Udp) => match recv(one.fd.as_raw_fd(), &mut [0; 64], MsgFlags::empty()) {
                    Ok(_) => Response::Open,
                    Err(Errno::EAGAIN) => return true,
                    Err(errno) => meaning(errno),
                },
                (error, _) => meaning(Errno::from_raw(error)),
            };
            false
        });
    }
}

/// What a real host answered to a SYN on each of its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SynScan {
    /// Somebody listens, and the packet got there.
    pub open: PortSet,
    /// Refused with a reset: by a kernel where nobody listens, or by a firewall.
    pub refused: PortSet,
    /// Packets sent.
    pub packets: u64,
    /// How long it took.
    pub duration_ms: u64,
}

/// How long after the last packet answers may still come.
const LINGER: Duration = Duration::from_millis(150);

/// Sends a SYN to every TCP port of `target` and collects what comes back; our own kernel then takes connections
/// that nobody here knows down with a reset. Two rounds: what was lost once is asked again.
pub fn scan_tcp(target: IpAddr) -> Result<SynScan, ProbeError> {
    let start = Instant::now();
    let failed = |operation| move |source| ProbeError { operation, target: target.to_string(), source };
    let source = source_for(target).map_err(failed("find the own address"))?;
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let listener = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, SockProtocol::Tcp)
        .map_err(|e| failed("open a raw socket")(e.into()))?;
    // 131,070 answers at most; without the privilege to force it, batches are small enough to be read in between.
    let _ = setsockopt(&listener, sockopt::RcvBufForce, &(64 << 20));
    connect(listener.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(target, 0)))
        .map_err(|e| failed("connect a raw socket")(e.into()))?;
    let mut scan = SynScan::default();
    let mut sender = Sender::routed(target).map_err(failed("open a raw socket"))?;
    let template = Template::new(None, source, target, Proto::Tcp);
    for _ in 0..2 {
        let mut answered = scan.open.clone();
        answered.extend_from(&scan.refused);
        let silent = PortSet::all().minus(&answered);
        let sent = sender.send(&template, silent.iter(), || collect(&listener, target, &mut scan));
        scan.packets += sent.map_err(failed("send packets"))?;
        let end = Instant::now() + LINGER;
        while Instant::now() < end {
            let mut polled = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            if poll(&mut polled, PollTimeout::from(20u8)).unwrap_or(0) > 0 {
                collect(&listener, target, &mut scan);
            }
        }
    }
    scan.duration_ms = start.elapsed().as_millis() as u64;
    Ok(scan)
}

/// Reads answers until there is none.
fn collect(listener: &OwnedFd, target: IpAddr, scan: &mut SynScan) {
    let mut packet = [0; 128];
    while let Ok(len) = recv(listener.as_raw_fd(), &mut packet, MsgFlags::empty()) {
        // IPv4 raw sockets hand the IP header over, IPv6 ones don't.
        let header = if target.is_ipv4() { usize::from(packet[0] & 15) * 4 } else { 0 };
        let Some(segment) = packet[..len].get(header..header + 20) else { continue };
        let port = u16::from_be_bytes([segment[0], segment[1]]);
        if u16::from_be_bytes([segment[2], segment[3]]) != SOURCE_PORT {
            continue;
        }
        match segment[13] & 0x16 {
            0x12 => scan.open.insert(port),
            flags if flags & 4 != 0 => scan.refused.insert(port),
            _ => (),
        }
    }
}

/// The address that packets to `target` leave with; nothing is sent.
fn source_for(target: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if target.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((target, 9))?;
    Ok(socket.local_addr()?.ip())
}
