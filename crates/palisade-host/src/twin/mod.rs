//! The reachability twin: which ports of this host get a packet from outside to a local process, for all ports, by
//! letting the kernel judge real packets in a copy of the host.
//!
//! Which of them should be reachable, and who listens there, is for others to say. The copy lives in namespaces
//! without a name, so that the kernel clears it away even when we are killed.

mod classes;
mod copy;
mod doubts;
mod lane;
mod patient;
mod recorder;
mod rules;
mod ruleset;
mod trace;
mod world;

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use palisade_core::stack::Proto;

use crate::link::LinkError;
use crate::netns::NetnsError;
use crate::nft::ToolError;
pub use copy::Twin;
use lane::ROUNDS_MAX;
pub use palisade_core::port_set::PortSet;
pub use ruleset::{Unknown, Why};
pub use trace::{Traced, TracedRule, Verdict};
pub use world::{World, WorldError};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum TwinError {
    /// The namespaces couldn't be made.
    #[error("cannot make the twin's namespaces")]
    Netns(#[from] NetnsError),
    /// The host's interfaces couldn't be read or copied.
    #[error("cannot copy the host's interfaces")]
    Link(#[from] LinkError),
    /// The ruleset couldn't be read or loaded.
    #[error("cannot {operation}")]
    Ruleset {
        /// "read the host's ruleset" …
        operation: &'static str,
        /// What the tool said.
        #[source]
        source: ToolError,
    },
    /// There is no such interface.
    #[error("there is no interface `{name}`")]
    NoInterface {
        /// Its name.
        name: String,
    },
    /// Packets couldn't be sent, or the answer couldn't be read.
    #[error("cannot {operation}")]
    Packets {
        /// "send packets" …
        operation: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Packets got lost again and again.
    #[error("{lost} packets to {target} were lost in {ROUNDS_MAX} rounds")]
    Lossy {
        /// How many in the last round.
        lost: u64,
        /// To which address.
        target: IpAddr,
    },
}

/// What is probed.
#[derive(Clone, Debug)]
pub struct TwinSpec {
    /// Who asks, and by which interface.
    pub world: World,
    /// The IPv4 and IPv6 addresses they ask for; none given: the interface's first global ones, if it has them.
    pub targets: Vec<IpAddr>,
    /// The ports they ask for.
    pub ports: PortSet,
    /// Our own table: its rules are known and need no remarks.
    pub own_table: Option<String>,
}

impl TwinSpec {
    /// All ports of the first addresses of `interface`, asked by somebody of the internet.
    pub fn new(interface: &str) -> Self {
        Self::of(World::internet(interface))
    }
    /// All ports of the first addresses of the world's interface.
    pub fn of(world: World) -> Self {
        Self { world, targets: Vec::new(), ports: PortSet::all(), own_table: None }
    }
}

/// What got through to one address by one protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// The host's address.
    pub target: IpAddr,
    /// The protocol.
    pub proto: Proto,
    /// Ports whose packets get to a local process, if one listens.
    pub local: PortSet,
    /// Outside ports and the local ports that they are rewritten to.
    pub redirected: BTreeSet<(u16, u16)>,
    /// Outside ports that are passed on to another address, as an engine's published ports are.
    pub forwarded: PortSet,
}

/// What the twin found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwinReport {
    /// Who asked.
    pub world: World,
    /// The interface that packets arrived on.
    pub interface: String,
    /// TCP and UDP for every target.
    pub reached: Vec<Reached>,
    /// What one packet a port can't show.
    pub unknown: Vec<Unknown>,
    /// Rules that were taken without their rate limit, or without remembering anybody, as they are for a patient
    /// client.
    pub without_limit: Vec<String>,
    /// Packets sent, with those sent again.
    pub packets: u64,
    /// Packets that had to be sent again.
    pub lost: u64,
    /// How long it took.
    pub duration_ms: u64,
}

impl TwinReport {
    /// Ports reached by a protocol over a family, on whatever target; rewritten ones count as where they lead.
    pub fn ports(&self, proto: Proto, ipv6: bool) -> PortSet {
        let mut all = PortSet::default();
        for reached in self.reached.iter().filter(|r| r.proto == proto && r.target.is_ipv6() == ipv6) {
            all.extend_from(&reached.local);
            reached.redirected.iter().for_each(|(_, local)| all.insert(*local));
        }
        all
    }
}

/// Copies the calling thread's network namespace and sends a packet to each of its ports. Nothing of the original
/// is changed, and no packet leaves the copy.
pub fn probe(spec: &TwinSpec) -> Result<TwinReport, TwinError> {
    Twin::copy(spec)?.probe()
}

/// Copies the calling thread's network namespace, sends one packet to each of some ports by one protocol and one
/// family, and tells which rules judged it. For a `Twin` that is there already, see [`Twin::trace`].
pub fn trace(spec: &TwinSpec, proto: Proto, ipv6: bool, ports: &[u16]) -> Result<Vec<Traced>, TwinError> {
    Twin::copy(spec)?.trace(proto, ipv6, ports)
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> TwinError {
    move |source| TwinError::Packets { operation, source }
}
