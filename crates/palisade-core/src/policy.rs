//! What the guard enforces, in the words of the domain. How it is laid out in kernel maps is the guard's business.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

use crate::address::{InstanceAddress, ServiceAddress};
use crate::names::ServiceName;
use crate::stack::{EgressRule, PortProto};

/// At most this many networks in one stack: they are bits of one word in the kernel.
pub const NETWORKS_MAX: usize = 64;
/// At most this many egress rules for one service: the kernel walks them.
pub const EGRESS_RULES_MAX: usize = 32;

/// At most this many name servers: what C libraries read of resolv.conf.
pub const RESOLVERS_MAX: usize = 3;
/// At most on this many addresses of the host can one of its TCP ports be published: the kernel walks them.
pub const PLACES_MAX: usize = 16;

/// The policy of one stack, swapped into the kernel as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// What is done about a breach.
    pub mode: Mode,
    /// Every service of the stack.
    pub services: Vec<ServicePolicy>,
    /// Name servers of the host that services may ask on port 53 although they are on its loopback or link-local.
    pub resolvers: Vec<IpAddr>,
}

/// What is done about a breach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Refuse it.
    Enforce,
    /// Allow it inside the stack and report everything used once: what `learn` reads.
    Learn,
}

/// The policy of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePolicy {
    /// For messages.
    pub name: ServiceName,
    /// Names the service in the kernel.
    pub address: ServiceAddress,
    /// Bit n set: member of the stack's n-th network.
    pub networks: u64,
    /// Instances that take new connections, from peers and at published TCP ports. Empty: connections are refused.
    /// Others may run and listen: what they have accepted goes on, and they get nothing new.
    pub backends: Vec<InstanceAddress>,
    /// Declared ports.
    pub binds: Vec<BindRule>,
    /// Undeclared binds are refused.
    pub strict: bool,
    /// `localhost` is shared with the stack.
    pub host_mode: bool,
    /// `Some`: only these; `None`: every service that shares a network.
    pub connect: Option<Vec<PeerGrant>>,
    /// What `localhost:PORT` means beyond the service itself (`host_mode` only).
    pub localhost: Vec<LocalhostPort>,
    /// The host's own loopback services that it may use.
    pub host_ports: Vec<u16>,
    /// Outside the stack and the host.
    pub egress: EgressPolicy,
    /// Name servers of its own that it may ask on port 53 although they are on the host or link-local: at most
    /// [`RESOLVERS_MAX`].
    pub resolvers: Vec<IpAddr>,
}

/// A declared port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindRule {
    /// What the service binds.
    pub container: PortProto,
    /// Where it becomes visible on the host, if it is published.
    pub published: Option<PublishedAt>,
}

/// Where a published port is bound on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedAt {
    /// `None`: every address.
    pub host_ip: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
}

/// A peer that may be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerGrant {
    /// The peer.
    pub server: ServiceAddress,
    /// `None`: any port and protocol.
    pub port: Option<PortProto>,
}

/// What `localhost:PORT` means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalhostPort {
    /// As connected to.
    pub port: PortProto,
    /// The one service that has it; `None`: several have, so it is refused.
    pub server: Option<ServiceAddress>,
}

/// Outside the stack and the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EgressPolicy {
    /// Everything but metadata addresses.
    All,
    /// Nothing.
    None,
    /// At most [`EGRESS_RULES_MAX`].
    Only(Vec<EgressRule>),
}
