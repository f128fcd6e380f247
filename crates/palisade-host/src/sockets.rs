//! Which sockets exist in the calling thread's network namespace, and whose they are.
//!
//! Whether one should exist is for the audit to say.

use nix::sys::socket::SockProtocol;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::netlink::{Message, Netlink, attributes, u32_of};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Needs CONFIG_INET_DIAG_DESTROY, as distributions have it.
const SOCK_DESTROY: u16 = 21;
/// The kernel's number for a connected socket, of UDP too.
const ESTABLISHED: u8 = 1;
/// The same for one that listens.
pub(crate) const LISTENING: u8 = 10;
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_MARK: u16 = 15;
const INET_DIAG_CGROUP_ID: u16 = 21;

/// Sockets couldn't be listed.
#[derive(Debug, thiserror::Error)]
#[error("cannot list {what}")]
pub struct SocketsError {
    /// Which kind.
    pub what: &'static str,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// Protocols that are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SocketProto {
    /// TCP, also the subflows of MPTCP.
    Tcp,
    /// UDP.
    Udp,
    /// UDP-Lite.
    UdpLite,
    /// Raw IP; the local "port" is the IP protocol's number.
    Raw,
}

/// Which sockets are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that take packets from anybody: TCP that listens (or is bound, where the kernel tells), unconnected UDP, raw.
    Listening,
    /// Also connections.
    All,
}

/// One socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// Protocol.
    pub proto: SocketProto,
    /// Local address and port.
    pub local: SocketAddr,
    /// Remote address and port; port 0 when it is not connected.
    pub remote: SocketAddr,
    /// The kernel's number for its state: 1 established, 7 closed (unconnected UDP), 10 listening.
    pub state: u8,
    /// IPv6 only; `None` when the kernel didn't say, as for IPv4.
    pub v6_only: Option<bool>,
    /// Interface it is bound to, or 0.
    pub interface: u32,
    /// Owner.
    pub uid: u32,
    /// Inode, or 0 when no process holds it.
    pub inode: u32,
    /// SO_MARK; `None` without CAP_NET_ADMIN.
    pub mark: Option<u32>,
    /// Id (inode) of the cgroup v2 that made it; since Linux 5.9.
    pub cgroup_id: Option<u64>,
}

impl Socket {
    /// Its address without IPv4 in IPv6 clothing.
    pub fn local_ip(&self) -> IpAddr {
        self.local.ip().to_canonical()
    }
    /// It takes packets for addresses of this family.
    pub fn serves(&self, ipv6: bool) -> bool {
        match self.local.ip() {
            IpAddr::V4(_) => !ipv6,
            IpAddr::V6(ip) if ip.is_unspecified() => ipv6 || self.v6_only != Some(true),
            IpAddr::V6(ip) => ip.to_ipv4_mapped().is_none() == ipv6,
        }
    }
}

/// A process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    /// Process id.
    pub pid: i32,
    /// Its short name.
    pub comm: String,
}

/// Lists the sockets of the calling thread's network namespace.
pub fn list(which: Which) -> Result<Vec<Socket>, SocketsError> {
    let failed = |source| SocketsError { what: "sockets", source };
    let mut netlink = Netlink::open(SockProtocol::NetlinkSockDiag).map_err(failed)?;
    let mut found = Vec::new();
    for proto in [SocketProto::Tcp, SocketProto::Udp, SocketProto::UdpLite, SocketProto::Raw] {
        let states: u32 = match (which, proto) {
            (Which::All, _) => u32::MAX,
            // 10 listens; 13 is bound and no more, since Linux 6.8.
            (_, SocketProto::Tcp) => 1 << 10 | 1 << 13,
            _ => 1 << 7,
        };
        for family in [nix::libc::AF_INET, nix::libc::AF_INET6] {
            let number = match proto {
                SocketProto::Tcp => nix::libc::IPPROTO_TCP,
                SocketProto::Udp => nix::libc::IPPROTO_UDP,
                SocketProto::UdpLite => nix::libc::IPPROTO_UDPLITE,
                SocketProto::Raw => nix::libc::IPPROTO_RAW,
            };
            // `struct inet_diag_req_v2`: family, protocol, extensions (none needed), padding, states, id.
            let mut request = [0; 56];
            request[0] = family as u8;
            request[1] = number as u8;
            request[4..8].copy_from_slice(&states.to_ne_bytes());
            let message = Message::new(SOCK_DIAG_BY_FAMILY, 0, &request);
            match netlink.dump(message, |_, body| found.extend(parse(proto, body))) {
                // The kernel has no such protocol, or can't tell about it.
                Err(e) if e.raw_os_error() == Some(nix::libc::ENOENT) && proto != SocketProto::Tcp => (),
                other => other.map_err(failed)?,
            }
        }
    }
    Ok(found)
}

/// Ends the connected UDP sockets of the calling thread's network namespace whose remote address is one of these: a
/// receive fails with ECONNABORTED once, sends with EDESTADDRREQ until the program connects anew. Returns how many there were.
pub fn abort_datagrams_to(remotes: &BTreeSet<IpAddr>) -> Result<usize, SocketsError> {
    let failed = |source| SocketsError { what: "connected UDP sockets", source };
    let mut netlink = Netlink::open(SockProtocol::NetlinkSockDiag).map_err(failed)?;
    let mut requests = Vec::new();
    for family in [nix::libc::AF_INET, nix::libc::AF_INET6] {
        // `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, `struct inet_diag_sockid`.
        let mut request = [0; 56];
        request[0] = family as u8;
        request[1] = nix::libc::IPPROTO_UDP as u8;
        request[4..8].copy_from_slice(&(1_u32 << ESTABLISHED).to_ne_bytes());
        let message = Message::new(SOCK_DIAG_BY_FAMILY, 0, &request);
        let each = |_: u16, body: &[u8]| {
            let Some(socket) = parse(SocketProto::Udp, body) else { return };
            if socket.state == ESTABLISHED && remotes.contains(&socket.remote.ip().to_canonical()) {
                request[8..56].copy_from_slice(&body[4..52]);
                requests.push(request);
            }
        };
        netlink.dump(message, each).map_err(failed)?;
    }
    for request in &requests {
        match netlink.request(Message::new(SOCK_DESTROY, 0, request)) {
            // Closed meanwhile.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOENT) => {}
            other => other.map_err(failed)?,
        }
    }
    Ok(requests.len())
}

/// Reads `struct inet_diag_msg` and the attributes after it.
fn parse(proto: SocketProto, body: &[u8]) -> Option<Socket> {
    let fixed: &[u8; 72] = body.get(..72)?.try_into().ok()?;
    let address = |at: usize, port: usize| {
        let ip: IpAddr = if i32::from(fixed[0]) == nix::libc::AF_INET {
            Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]).into()
        } else {
            Ipv6Addr::from(<[u8; 16]>::try_from(&fixed[at..at + 16]).expect("sixteen bytes")).into()
        };
        SocketAddr::new(ip, u16::from_be_bytes([fixed[port], fixed[port + 1]]))
    };
    let mut socket = Socket {
        proto,
        local: address(8, 4),
        remote: address(24, 6),
        state: fixed[1],
        v6_only: None,
        interface: u32_of(&fixed[40..]),
        uid: u32_of(&fixed[64..]),
        inode: u32_of(&fixed[68..]),
        mark: None,
        cgroup_id: None,
    };
    for (kind, value) in attributes(&body[72..]) {
        match kind {
            INET_DIAG_SKV6ONLY => socket.v6_only = value.first().map(|byte| *byte != 0),
            INET_DIAG_MARK => socket.mark = Some(u32_of(value)),
            INET_DIAG_CGROUP_ID => socket.cgroup_id = value.try_into().ok().map(u64::from_ne_bytes),
            _ => (),
        }
    }
    Some(socket)
}

/// A socket that hears whole frames (AF_PACKET).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketSocket {
    /// The interface that it is bound to, or 0 for all.
    pub interface: u32,
    /// Inode, or 0 when no process holds it.
    pub inode: u32,
}

/// Lists the packet sockets of the calling thread's network namespace. Needs CONFIG_PACKET_DIAG, as distributions have it.
pub fn packet_sockets() -> Result<Vec<PacketSocket>, SocketsError> {
    let failed = |source| SocketsError { what: "packet sockets", source };
    // `struct packet_diag_req`: family, protocol, padding, inode, what to show (1: information), cookie.
    let mut request = [0; 20];
    request[0] = nix::libc::AF_PACKET as u8;
    request[8..12].copy_from_slice(&1_u32.to_ne_bytes());
    let mut found = Vec::new();
    let mut netlink = Netlink::open(SockProtocol::NetlinkSockDiag).map_err(failed)?;
    let each = |_: u16, body: &[u8]| {
        // `struct packet_diag_msg`: family, type, number, inode, cookie; then PACKET_DIAG_INFO (0), which starts with the interface.
        let Some(rest) = body.get(16..) else { return };
        let info = attributes(rest).find(|(kind, value)| *kind == 0 && value.len() >= 4);
        let interface = info.map_or(0, |(_, value)| u32_of(value));
        found.push(PacketSocket { interface, inode: u32_of(&body[4..]) });
    };
    netlink.dump(Message::new(SOCK_DIAG_BY_FAMILY, 0, &request), each).map_err(failed)?;
    Ok(found)
}

/// A unix socket that listens and has a name without a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbstractListener {
    /// Without the leading zero byte.
    pub name: String,
    /// Inode.
    pub inode: u32,
}

/// Lists the listening abstract unix sockets of the calling thread's network namespace. Needs CONFIG_UNIX_DIAG.
pub fn abstract_listeners() -> Result<Vec<AbstractListener>, SocketsError> {
    let failed = |source| SocketsError { what: "unix sockets", source };
    // `struct unix_diag_req`: family, protocol, padding, states, inode, what to show (1: names), cookie.
    let mut request = [0; 24];
    request[0] = nix::libc::AF_UNIX as u8;
    request[4..8].copy_from_slice(&(1_u32 << LISTENING).to_ne_bytes());
    request[12..16].copy_from_slice(&1_u32.to_ne_bytes());
    let mut found = Vec::new();
    let mut netlink = Netlink::open(SockProtocol::NetlinkSockDiag).map_err(failed)?;
    let each = |_: u16, body: &[u8]| {
        // `struct unix_diag_msg`: family, type, state, padding, inode, cookie; then UNIX_DIAG_NAME (0).
        let Some(rest) = body.get(16..) else { return };
        if let Some((_, [0, name @ ..])) = attributes(rest).find(|(kind, _)| *kind == 0) {
            let name = String::from_utf8_lossy(name).into_owned();
            found.push(AbstractListener { name, inode: u32_of(&body[4..]) });
        }
    };
    netlink.dump(Message::new(SOCK_DIAG_BY_FAMILY, 0, &request), each).map_err(failed)?;
    Ok(found)
}

/// Which processes hold which sockets, by inode. Reads the whole of `/proc`: ask once and look up.
pub fn holders() -> HashMap<u32, Vec<Holder>> {
    let mut found: HashMap<u32, Vec<Holder>> = HashMap::new();
    // Processes come and go while we look: whatever can't be read is gone.
    let Ok(entries) = std::fs::read_dir("/proc") else { return found };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(files) = std::fs::read_dir(entry.path().join("fd")) else { continue };
        let mut inodes = BTreeSet::new();
        for file in files.flatten() {
            let Ok(target) = std::fs::read_link(file.path()) else { continue };
            let inode: Option<u32> =
                target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            inodes.extend(inode);
        }
        if inodes.is_empty() {
            continue;
        }
        let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default().trim_end().to_owned();
        for inode in inodes {
            found.entry(inode).or_default().push(Holder { pid, comm: comm.clone() });
        }
    }
    found
}

const SSH_FOLDER: &str = "/etc/ssh";

/// The TCP ports where sshd really listens: its own sockets, those that systemd holds for it, and the port that the
/// caller's SSH session came in through (`SSH_CONNECTION`), which must never be cut off.
pub fn ssh_ports(ssh_connection: Option<&str>) -> Result<BTreeSet<u16>, SocketsError> {
    let listening = list(Which::Listening)?;
    let holders = holders();
    let configured = configured_ssh_ports();
    let mut ports: BTreeSet<u16> = listening
        .iter()
        .filter(|socket| socket.proto == SocketProto::Tcp && socket.state == 10)
        .filter(|socket| {
            holders.get(&socket.inode).into_iter().flatten().any(|holder| {
                ["sshd", "dropbear"].contains(&holder.comm.as_str())
                    || (holder.comm == "systemd" && configured.contains(&socket.local.port()))
            })
        })
        .filter(|socket| !socket.local_ip().is_loopback())
        .map(|socket| socket.local.port())
        .collect();
    // Client address, client port, server address, server port.
    ports.extend(ssh_connection.and_then(|text| text.split_whitespace().nth(3)?.parse::<u16>().ok()));
    Ok(ports)
}

/// The TCP ports that sshd is set up to listen on, running or not.
pub fn configured_ssh_ports() -> BTreeSet<u16> {
    sshd_config_ports(SSH_FOLDER)
}

/// The `Port` and `ListenAddress` lines of sshd's configuration; 22 when there is none.
fn sshd_config_ports(folder: &str) -> BTreeSet<u16> {
    let mut files = vec![format!("{folder}/sshd_config").into()];
    if let Ok(entries) = std::fs::read_dir(format!("{folder}/sshd_config.d")) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    let mut ports = BTreeSet::new();
    for text in files.iter().flat_map(std::fs::read_to_string) {
        for line in text.lines() {
            let mut words = line.split([' ', '\t', '=']).filter(|word| !word.is_empty());
            let (Some(key), Some(value)) = (words.next(), words.next()) else { continue };
            if key.eq_ignore_ascii_case("port") {
                ports.extend(value.parse::<u16>().ok());
            } else if key.eq_ignore_ascii_case("listenaddress") {
                ports.extend(value.parse::<SocketAddr>().ok().map(|address| address.port()));
            }
        }
    }
    if ports.is_empty() {
        ports.insert(22);
    }
    ports
}
