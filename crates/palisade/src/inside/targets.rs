//! What the attack kit attacks: filled in by whoever set the stage, read inside the service.

use palisade_core::address::InstanceAddress;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What keeps an attack from succeeding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Layer {
    /// The eBPF programs alone.
    Guard,
    /// Namespaces, capabilities and the system call filter of the runtime.
    Confinement,
    /// Each of the two, so that a mistake in one is not enough.
    Either,
}

/// Everything that there is to attack. What is missing is not attacked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Targets {
    /// Only attacks that these layers stop; empty: all.
    #[serde(default)]
    pub(crate) layers: Vec<Layer>,
    /// Address of the instance that is attacked from.
    pub(crate) own_address: InstanceAddress,
    /// A service that it was not given.
    pub(crate) sibling: Option<Peer>,
    /// A service that it was given, with these ports only.
    pub(crate) granted: Option<Peer>,
    /// A port of the granted service that it was not given.
    #[serde(default)]
    pub(crate) granted_other_tcp_port: Option<u16>,
    /// A port at the sibling's address, in the ephemeral range, that nobody listens on and that the granted
    /// service keeps connecting and sending to; and the port after it.
    #[serde(default)]
    pub(crate) called_port: Option<u16>,
    /// Something that listens on all addresses of the host.
    pub(crate) host: Option<HostService>,
    /// The internet.
    pub(crate) outside: Option<Outside>,
    /// The service may reach nothing outside but `outside.allowed`.
    pub(crate) egress_restricted: bool,
    /// Ports in the ephemeral range to which somebody outside keeps connecting and sending, on every address of
    /// the host.
    #[serde(default)]
    pub(crate) knocked_ports: Vec<u16>,
    /// A process of the host whose environment holds [`VICTIM_MARK`].
    pub(crate) victim_pid: Option<i32>,
    /// A folder of a bpffs that holds pins.
    pub(crate) pins: Option<PathBuf>,
    /// What only the host may read. Everything here exists.
    #[serde(default)]
    pub(crate) files: Vec<HostFile>,
    /// The files that decide who may do what on the host.
    #[serde(default)]
    pub(crate) host_files: Vec<HostFile>,
    /// Unix sockets that only the host may use. Everything here exists.
    #[serde(default)]
    pub(crate) unix_sockets: Vec<PathBuf>,
    /// The network namespace may be changed by an attack that succeeds.
    #[serde(default)]
    pub(crate) scratch_network: bool,
}

/// In the environment of the victim.
pub(crate) const VICTIM_MARK: &str = "PALISADE_VICTIM=secret";

/// A file or folder of the host, and what tells it from one of the same name that a service has of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostFile {
    /// Where it is on the host.
    pub(crate) path: PathBuf,
    /// Number of the file system that it is on.
    pub(crate) device: u64,
    /// Its number there.
    pub(crate) inode: u64,
}

impl HostFile {
    /// Asked on the host.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self { path: path.to_owned(), device: found.dev(), inode: found.ino() })
    }
    /// Whether what is at its path here is the host's.
    pub(crate) fn is_here(&self) -> io::Result<bool> {
        let found = fs::metadata(&self.path)?;
        Ok((found.dev(), found.ino()) == (self.device, self.inode))
    }
}

/// Another service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// One instance of it.
    pub(crate) address: InstanceAddress,
    /// Listens.
    pub(crate) tcp_port: Option<u16>,
    /// Answers.
    pub(crate) udp_port: Option<u16>,
    /// It is `palisade __attack-peer`: tells whom it sees.
    #[serde(default)]
    pub(crate) tells_source: bool,
}

/// Listeners on all addresses of the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct HostService {
    /// Listens on 127.0.0.1, 127.0.0.2, ::1 and `addresses`.
    pub(crate) tcp_port: u16,
    /// Answers on every address, also to broadcasts and multicasts.
    pub(crate) udp_port: u16,
    /// Of the interface that leads outside.
    pub(crate) addresses: Vec<IpAddr>,
    /// Its link-local address.
    pub(crate) link_local: Option<SocketAddrV6>,
    /// Broadcast address of its IPv4 network.
    pub(crate) broadcast: Option<Ipv4Addr>,
    /// Its name.
    pub(crate) interface: String,
    /// Abstract unix sockets: a stream, a datagram and a sequenced one of this name with `-stream` … appended.
    pub(crate) abstract_unix: String,
}

/// Servers on the internet, on all of these addresses.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outside {
    /// IPv4 and IPv6.
    pub(crate) addresses: Vec<IpAddr>,
    /// Addresses that the service may use if `egress_restricted`.
    #[serde(default)]
    pub(crate) allowed: Vec<IpAddr>,
    /// Link-local addresses of cloud metadata services.
    pub(crate) metadata: Vec<IpAddr>,
    /// Accepts and answers.
    pub(crate) tcp_port: u16,
    /// Answers.
    pub(crate) udp_port: u16,
}
