//! Connects to peers from inside a service, and tells what the kernel answered.
//!
//! Runs as `palisade __probe` in the service's own cgroup and namespaces: targets as JSON in its argument, answers
//! as JSON on standard output, in the same order. What should have been answered is judged outside.

use palisade_core::prove::Answer;
use palisade_core::stack::Proto;
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

/// What to connect to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Targets {
    /// Longest wait for each of them.
    pub timeout_ms: u64,
    /// In any order.
    pub targets: Vec<Target>,
}

/// One port of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    /// The peer's service address.
    pub address: IpAddr,
    /// The port as the peer's file has it.
    pub port: u16,
    /// TCP or UDP.
    pub proto: Proto,
}

/// At most so many probes wait at once: a service may have a low limit of threads.
const AT_ONCE: usize = 16;

/// Asks what the JSON says and writes the answers to standard output.
pub(crate) fn main(asked: &str) -> io::Result<()> {
    let asked: Targets = serde_json::from_str(asked)?;
    let timeout = Duration::from_millis(asked.timeout_ms);
    let mut answers = Vec::with_capacity(asked.targets.len());
    for chunk in asked.targets.chunks(AT_ONCE) {
        thread::scope(|scope| {
            let probes: Vec<_> = chunk.iter().map(|target| scope.spawn(move || probe(*target, timeout))).collect();
            for probe in probes {
                answers.push(probe.join().unwrap_or_else(|_| Answer::Failed("the probe crashed".into())));
            }
        });
    }
    serde_json::to_writer(io::stdout().lock(), &answers)?;
    Ok(())
}

/// One probe.
pub(crate) fn probe(target: Target, timeout: Duration) -> Answer {
    let to = SocketAddr::new(target.address, target.port);
    let result = match target.proto {
        Proto::Tcp => TcpStream::connect_timeout(&to, timeout).map(drop),
        Proto::Udp => datagram(to),
    };
    match result {
        Ok(()) => Answer::Reached,
        Err(error) => match error.kind() {
            ErrorKind::PermissionDenied => Answer::Refused,
            ErrorKind::ConnectionRefused => Answer::NobodyListens,
            ErrorKind::TimedOut => Answer::Silent,
            _ => Answer::Failed(error.to_string()),
        },
    }
}

/// Nothing tells whether a datagram was taken, only that nobody was there: the kernel's refusal comes at once on loopback.
fn datagram(to: SocketAddr) -> io::Result<()> {
    let any: IpAddr = if to.is_ipv4() { [0, 0, 0, 0].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.send(&[])?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    match socket.recv(&mut [0; 1]) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_listener_and_its_absence_are_told_apart() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let at = listener.local_addr().unwrap();
        let tcp = Target { address: at.ip(), port: at.port(), proto: Proto::Tcp };
        let wait = Duration::from_secs(1);
        assert_eq!(probe(tcp, wait), Answer::Reached);
        drop(listener);
        assert_eq!(probe(tcp, wait), Answer::NobodyListens);
        let socket = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let udp = Target { port: socket.local_addr().unwrap().port(), proto: Proto::Udp, ..tcp };
        assert_eq!(probe(udp, wait), Answer::Reached);
        drop(socket);
        assert_eq!(probe(udp, wait), Answer::NobodyListens);
    }
}
