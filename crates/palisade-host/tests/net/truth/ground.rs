//! The place where the truth is found out: a host with two networks and a container, and listeners wherever a packet
//! may end.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, getpeername, getsockopt,
    setsockopt, socket, sockopt,
};
use std::collections::{BTreeMap, HashMap, btree_map};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use palisade_core::stack::Proto;
use palisade_host::link::{self, VethEnd};
use palisade_host::netns::Netns;
use palisade_host::twin::World;

use crate::{Scratch, scratch, tool};

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Nothing,
    /// A listener of the host got it, on this port.
    Local(u16),
    /// The container got it.
    Elsewhere,
}

/// How somebody comes to the host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Road {
    pub(super) interface: &'static str,
    peer: &'static str,
    host: [&'static str; 2],
    source: [&'static str; 2],
}

pub(super) const ROADS: [Road; 2] = [
    Road {
        interface: "eth0",
        peer: "inet0",
        host: ["203.0.113.1", "2001:db8::1"],
        source: ["203.0.113.2", "2001:db8::2"],
    },
    Road { interface: "lan0", peer: "peer0", host: ["10.1.0.1", "fd00:1::1"], source: ["10.1.0.2", "fd00:1::2"] },
];

const CONTAINER_PORTS: [u16; 4] = [53, 80, 5432, 8080];
/// How long nothing more must come until nothing more is expected.
const QUIET: Duration = Duration::from_millis(4);
/// What the twin says should come is waited for, on a machine that may be busy, and asked for again.
const PATIENCE: Duration = Duration::from_millis(1500);
const ATTEMPTS: usize = 3;
const LISTENERS_MAX: usize = 500;

impl Road {
    pub(super) fn world(&self) -> World {
        let mut world = World::internet(self.interface);
        world.ipv4 = self.source[0].parse().ok();
        world.ipv6 = self.source[1].parse().ok();
        world
    }
}

type Listeners = BTreeMap<u16, (TcpListener, UdpSocket)>;

pub(super) struct Ground {
    scratch: Scratch,
    lan: Netns,
    _container: Netns,
    on_host: Listeners,
    in_container: Listeners,
    /// Every question comes from a port of its own, so that no earlier connection has to do with it.
    next_port: u16,
}

/// Neighbours are known, so that rules against ICMPv6 and ARP don't matter; none are asked for meanwhile.
fn introduce(interface: &str, others: &[&str], mac: &str) {
    for other in others {
        tool(&["ip", "neigh", "replace", other, "lladdr", mac, "dev", interface, "nud", "permanent"], "");
    }
}

fn mac_of(interface: &str) -> String {
    let all = link::interfaces().unwrap();
    let mac = &all.iter().find(|one| one.name == interface).unwrap().mac;
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// Listens on ports that nobody else has.
fn listen(ports: impl IntoIterator<Item = u16>, listeners: &mut Listeners) {
    for port in ports {
        if let btree_map::Entry::Vacant(vacant) = listeners.entry(port)
            && let (Ok(tcp), Ok(udp)) = (TcpListener::bind(("::", port)), UdpSocket::bind(("::", port)))
        {
            tcp.set_nonblocking(true).unwrap();
            udp.set_nonblocking(true).unwrap();
            vacant.insert((tcp, udp));
        }
    }
}

impl Ground {
    /// Makes it, or says why the test is skipped.
    pub(super) fn new(test: &str) -> Option<Self> {
        let scratch = scratch(test)?;
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, most.min(65_536), most).unwrap();
        let (lan, container) = (Netns::unnamed().unwrap(), Netns::unnamed().unwrap());
        for (name, peer, netns) in [("lan0", "peer0", &lan), ("docker0", "inner0", &container)] {
            link::add_veth(
                VethEnd { netns: &scratch.host, name, index: None, mac: None },
                VethEnd { netns, name: peer, index: None, mac: None },
            )
            .unwrap();
        }
        let add = |interface: &str, ip: &str, prefix_len| {
            link::set_up(interface, false).unwrap();
            link::add_address(interface, ip.parse().unwrap(), prefix_len).unwrap();
        };
        scratch
            .host
            .run(|| {
                for (interface, ip, prefix_len) in
                    [("lan0", "10.1.0.1", 24), ("lan0", "fd00:1::1", 64), ("docker0", "172.17.0.1", 16)]
                {
                    add(interface, ip, prefix_len);
                }
                std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            })
            .unwrap();
        lan.run(|| {
            add("peer0", "10.1.0.2", 24);
            add("peer0", "fd00:1::2", 64);
        })
        .unwrap();
        let mut in_container = Listeners::new();
        container
            .run(|| {
                add("inner0", "172.17.0.2", 16);
                link::add_route("inner0", None, Some([172, 17, 0, 1].into()), false).unwrap();
                listen(CONTAINER_PORTS, &mut in_container);
            })
            .unwrap();
        for (road, netns) in ROADS.iter().zip([&scratch.internet, &lan]) {
            let (here, there) =
                (scratch.host.run(|| mac_of(road.interface)).unwrap(), netns.run(|| mac_of(road.peer)).unwrap());
            scratch.host.run(|| introduce(road.interface, &road.source, &there)).unwrap();
            netns.run(|| introduce(road.peer, &road.host, &here)).unwrap();
        }
        let (here, there) =
            (scratch.host.run(|| mac_of("docker0")).unwrap(), container.run(|| mac_of("inner0")).unwrap());
        scratch.host.run(|| introduce("docker0", &["172.17.0.2"], &there)).unwrap();
        container.run(|| introduce("inner0", &["172.17.0.1"], &here)).unwrap();
        Some(Self { scratch, lan, _container: container, on_host: Listeners::new(), in_container, next_port: 10_000 })
    }

    pub(super) fn host(&self) -> &Netns {
        &self.scratch.host
    }

    /// Has listeners of the host on these ports.
    pub(super) fn listen(&mut self, ports: impl Iterator<Item = u16>) {
        if self.on_host.len() > LISTENERS_MAX {
            self.on_host.clear();
        }
        let _host = self.scratch.host.enter().unwrap();
        listen(ports, &mut self.on_host);
    }

    /// Whether the port is ours: what gets to somebody else's can be seen by TCP only.
    pub(super) fn has(&self, port: u16) -> bool {
        self.on_host.contains_key(&port)
    }

    /// What real packets to these ports get. What is expected is only waited for; an answer that isn't expected is
    /// taken as it is.
    pub(super) fn truth(
        &mut self,
        road: &Road,
        target: IpAddr,
        proto: Proto,
        expected: &[(u16, Outcome)],
    ) -> Vec<Outcome> {
        let mut found: HashMap<u16, Outcome> = HashMap::new();
        for attempt in 0..ATTEMPTS {
            let missing = |found: &HashMap<u16, Outcome>| {
                let late = |(port, said): &&(u16, Outcome)| *said != Outcome::Nothing && !found.contains_key(port);
                expected.iter().filter(late).map(|(port, _)| *port).collect::<Vec<_>>()
            };
            let ports: Vec<u16> = match attempt {
                0 => expected.iter().map(|(port, _)| *port).collect(),
                _ => missing(&found),
            };
            if ports.is_empty() {
                break;
            }
            let sent = self.ask(road, target, proto, &ports);
            let deadline = Instant::now() + PATIENCE;
            loop {
                let news = self.collect(&sent, &mut found);
                if !news && (missing(&found).is_empty() || Instant::now() > deadline) {
                    break;
                }
            }
            for port in sent.answered() {
                // A handshake whose end the rules don't let through still was answered; or somebody else answered it,
                // and where can't be told.
                let said =
                    expected.iter().find(|(asked, _)| *asked == port).map_or(Outcome::Nothing, |(_, said)| *said);
                let somewhere = if self.has(port) { Outcome::Local(port) } else { Outcome::Elsewhere };
                found.entry(port).or_insert(if said == Outcome::Nothing { somewhere } else { said });
            }
        }
        expected.iter().map(|(port, _)| found.get(port).copied().unwrap_or(Outcome::Nothing)).collect()
    }

    fn ask(&mut self, road: &Road, target: IpAddr, proto: Proto, ports: &[u16]) -> Sent {
        let needed = if proto == Proto::Tcp { ports.len() as u16 } else { 1 };
        if self.next_port > u16::MAX - needed {
            self.next_port = 10_000;
        }
        let first = self.next_port;
        self.next_port += needed;
        let source: IpAddr = road.source[usize::from(target.is_ipv6())].parse().unwrap();
        let netns = if road.interface == "eth0" { &self.scratch.internet } else { &self.lan };
        let _outside = netns.enter().unwrap();
        let mut sent = Sent { first, ports: ports.to_vec(), source, connections: Vec::new(), _datagrams: None };
        match proto {
            Proto::Tcp => {
                let connections = ports
                    .iter()
                    .zip(first..)
                    .map(|(port, from)| (*port, start(SocketAddr::new(source, from), SocketAddr::new(target, *port))));
                sent.connections = connections.collect();
            }
            Proto::Udp => {
                let socket = UdpSocket::bind((source, first)).unwrap();
                for port in ports {
                    // What the host refuses comes back as an error of a later datagram; that one is sent again.
                    let to = (target, *port);
                    let _ =
                        socket.send_to(&port.to_be_bytes(), to).or_else(|_| socket.send_to(&port.to_be_bytes(), to));
                }
                sent._datagrams = Some(socket);
            }
        }
        sent
    }

    /// Notes what has arrived; false when nothing did for a while.
    fn collect(&self, sent: &Sent, found: &mut HashMap<u16, Outcome>) -> bool {
        let all: Vec<_> = self
            .on_host
            .iter()
            .map(|(port, listeners)| (Outcome::Local(*port), listeners))
            .chain(self.in_container.values().map(|listeners| (Outcome::Elsewhere, listeners)))
            .collect();
        let mut polled: Vec<PollFd<'_>> = all
            .iter()
            .flat_map(|(_, (tcp, udp))| [tcp.as_fd(), udp.as_fd()])
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        if poll(&mut polled, PollTimeout::from(QUIET.as_millis() as u8)).unwrap_or(0) == 0 {
            return false;
        }
        let mut news = false;
        for ((outcome, (tcp, udp)), ready) in all.iter().zip(polled.chunks(2)) {
            if ready[0].any().unwrap_or(false) {
                while let Ok((stream, peer)) = tcp.accept() {
                    gone(stream);
                    if let Some(port) = sent.port_from(peer) {
                        news |= found.insert(port, *outcome).is_none();
                    }
                }
            }
            if ready[1].any().unwrap_or(false) {
                let mut bytes = [0; 2];
                while let Ok((_, peer)) = udp.recv_from(&mut bytes) {
                    if peer.port() == sent.first && peer.ip().to_canonical() == sent.source {
                        news |= found.insert(u16::from_be_bytes(bytes), *outcome).is_none();
                    }
                }
            }
        }
        news
    }
}

/// Closes a connection by a reset, so that nothing of it is left.
fn gone(stream: TcpStream) {
    let _ = setsockopt(&stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 });
}

fn start(from: SocketAddr, to: SocketAddr) -> OwnedFd {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, SockProtocol::Tcp).unwrap();
    setsockopt(&fd, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
    bind(fd.as_raw_fd(), &SockaddrStorage::from(from)).unwrap();
    // Refused at once, or on its way: which it is shows later.
    let _ = connect(fd.as_raw_fd(), &SockaddrStorage::from(to));
    fd
}

/// Questions that are on their way.
struct Sent {
    first: u16,
    ports: Vec<u16>,
    source: IpAddr,
    connections: Vec<(u16, OwnedFd)>,
    _datagrams: Option<UdpSocket>,
}

impl Sent {
    /// Ports whose SYN was answered by a SYN-ACK.
    fn answered(&self) -> impl Iterator<Item = u16> + '_ {
        // Whoever refuses the end of a handshake resets a connection that was there (tcp_reset of net/ipv4/tcp_input.c);
        // whoever refuses its beginning, none: that would be ECONNREFUSED.
        let answered = self.connections.iter().filter(|(_, fd)| {
            getpeername::<SockaddrStorage>(fd.as_raw_fd()).is_ok()
                || getsockopt(fd, sockopt::SocketError) == Ok(nix::libc::ECONNRESET)
        });
        answered.map(|(port, _)| *port)
    }
    /// The port that a connection was for that came from there.
    fn port_from(&self, peer: SocketAddr) -> Option<u16> {
        let at = peer.port().checked_sub(self.first)?;
        let port = self.ports.get(usize::from(at)).copied();
        port.filter(|_| peer.ip().to_canonical() == self.source)
    }
}
