//! What a host looks like, as far as the planner and the checks need to know it.
//!
//! Who reads it from the kernel and from files is the host crate's and the binary's business. What could not be
//! read is `None` or listed in [`Observed::unknown`]; nothing is assumed.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::address::{AddressBook, InstanceAddress, ServiceIndex};
use crate::compile::OwnPlaces;
use crate::digest::Fingerprint;
use crate::firewall::{Backend, FirewallRules, OpenPort};
use crate::instance::{CgroupDriver, InstanceSpec, InstanceStatus};
use crate::lockout::{Facts, WaysIn};
use crate::names::{InstanceId, ServiceName};
use crate::policy::Policy;
use crate::stack::{Healthcheck, PortProto, Proto};

/// A host and what one stack has on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The stack's agent, if it answers.
    pub agent: Option<AgentSeen>,
    /// Instances that the agent knows.
    pub instances: Vec<InstanceSeen>,
    /// The stack's guard, if it is in the kernel.
    pub guard: Option<GuardSeen>,
    /// Digest of the rules that Palisade's table of the firewall was made from, if the table is there.
    pub firewall: Option<FirewallSeen>,
    /// Whose firewall decides on this host, as far as nobody says otherwise.
    pub firewall_runs: Backend,
    /// What ufw doesn't let in although the stack publishes it, where ufw decides.
    pub shut_by_ufw: BTreeSet<OpenPort>,
    /// Chains of other tables that drop what they don't let in, as `inet filter input`.
    pub foreign_drops: Vec<String>,
    /// What that table lets in, by stack, for all stacks of the host; `None`: it isn't there.
    pub firewall_of_all: Option<BTreeMap<String, FirewallRules>>,
    /// Why a boot wouldn't bring that table back, if it wouldn't.
    pub firewall_at_boot: Option<String>,
    /// Where whoever runs this came in from over SSH.
    pub operator: Option<IpAddr>,
    /// Which ways in were confirmed on this host, when the firewall was closed before.
    pub confirmed: Option<WaysIn>,
    /// Addresses that the stack's services have.
    pub addresses: AddressBook,
    /// Indexes that other stacks have.
    pub taken: BTreeSet<ServiceIndex>,
    /// Listening TCP sockets and bound UDP sockets.
    pub sockets: Vec<SocketSeen>,
    /// TCP ports where sshd listens.
    pub ssh_ports: BTreeSet<u16>,
    /// The host's name servers.
    pub resolvers: Vec<IpAddr>,
    /// Addresses of the host's interfaces.
    pub host_addresses: Vec<IpAddr>,
    /// The stack's own volumes that exist, by their keys.
    pub volumes: BTreeSet<String>,
    /// Volumes of this host by the names that any stack can use: those that have one of their own, and
    /// `<project>_<key>` of all others.
    pub named_volumes: BTreeSet<String>,
    /// Volumes with a name of their own that this stack has made.
    pub made_volumes: BTreeSet<String>,
    /// Volumes with a name of their own that other stacks use, which are up.
    pub volumes_of_others: BTreeSet<String>,
    /// Files of the host that secrets and configs of the stack come from.
    pub files: BTreeMap<PathBuf, FileSeen>,
    /// The container engine, for stacks that have images.
    pub engine: EngineState,
    /// What the kernel can do.
    pub kernel: KernelFacts,
    /// What services that are Palisade's own need, where the stack has some.
    pub own: Option<OwnPlaces>,
    /// What could not be read, and why.
    pub unknown: Vec<String>,
}

impl Observed {
    /// What tells whether a change of the firewall could lock somebody out.
    pub fn lockout(&self) -> Facts<'_> {
        Facts { before: self.firewall_of_all.as_ref(), operator: self.operator, confirmed: self.confirmed.as_ref() }
    }
}

/// What is known about the host's container engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EngineState {
    /// Nobody looked: no service of the stack needs one.
    #[default]
    NotAsked,
    /// There is none that could be used.
    Away {
        /// Why, in one sentence without a full stop.
        why: String,
        /// What to do about it.
        remedy: String,
    },
    /// It answers.
    There(Box<EngineSeen>),
}

impl EngineState {
    /// The engine, if it answers.
    pub fn seen(&self) -> Option<&EngineSeen> {
        match self {
            EngineState::There(seen) => Some(seen),
            EngineState::NotAsked | EngineState::Away { .. } => None,
        }
    }
}

/// A container engine that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineSeen {
    /// Where it was asked.
    pub socket: PathBuf,
    /// `Docker 20.10.24`.
    pub version: String,
    /// How it makes cgroups.
    pub cgroup_driver: CgroupDriver,
    /// It gives containers other users than they see (`userns-remap`), which shuts them out of the host's network.
    pub remaps_users: bool,
    /// Where the data of its volumes is.
    pub volumes_folder: PathBuf,
    /// Images that the stack names, by those names; what isn't there is missing here.
    pub images: BTreeMap<String, ImageSeen>,
    /// Its volumes, by their names.
    pub volumes: BTreeSet<String>,
    /// Containers that belong to a Compose project of the stack's name and aren't Palisade's.
    pub foreign: Vec<ForeignContainer>,
}

/// An image of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSeen {
    /// `sha256:…`, of its configuration.
    pub id: String,
    /// `name@sha256:…` where it came from, if it came from a registry.
    pub digest: Option<String>,
    /// Its `EXPOSE`.
    pub exposed: Vec<PortProto>,
    /// Its `HEALTHCHECK`.
    pub healthcheck: Option<Healthcheck>,
    /// It says what to run: `ENTRYPOINT` or `CMD`.
    pub has_command: bool,
    /// Its `USER`, if it isn't root.
    pub user: Option<String>,
    /// Its `VOLUME`s.
    pub volumes: Vec<PathBuf>,
}

/// A container of a Compose project that somebody else than Palisade has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignContainer {
    /// The engine's id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Compose's service, if its label says one.
    pub service: Option<ServiceName>,
    /// It runs.
    pub running: bool,
    /// Ports of the host that the engine publishes for it.
    pub ports: BTreeSet<u16>,
}

/// A file that a secret or a config comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileSeen {
    /// It can be read.
    Readable {
        /// Stands for its content and its owner.
        digest: String,
    },
    /// It isn't there.
    Missing,
    /// Only somebody else can read it: root, mostly. Whoever starts instances is root.
    NotForUs,
    /// It is no file, or too large, or the disk fails.
    Unusable {
        /// Why.
        why: String,
    },
}

/// An agent that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSeen {
    /// Its process.
    pub pid: i32,
    /// It is not of the version of Palisade that looks.
    pub other_version: bool,
}

/// An instance that the agent knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceSeen {
    /// What the agent tells.
    pub status: InstanceStatus,
    /// What its spec was made of, if that was kept.
    pub fingerprint: Option<Fingerprint>,
    /// Digest of its hosts file, if that was kept.
    pub hosts_digest: Option<String>,
}

/// A guard in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardSeen {
    /// Instances whose cgroups have every program of the guard attached.
    pub attached: BTreeMap<InstanceId, InstanceAddress>,
    /// Those of them whose cgroup is a slice of systemd.
    pub in_slices: BTreeSet<InstanceId>,
    /// Digest of the policy in force, if there is one.
    pub policy_digest: Option<String>,
    /// The policy in force, if it is known.
    pub policy: Option<Policy>,
    /// Instances that new connections go to. Empty also when the policy in force isn't known.
    pub serving: BTreeSet<InstanceAddress>,
}

impl GuardSeen {
    /// The instance is guarded, but not where and as who it is to be.
    pub fn has_elsewhere(&self, spec: &InstanceSpec) -> bool {
        let in_slice = spec.cgroup_driver() == CgroupDriver::Systemd;
        let here =
            |address: &InstanceAddress| *address == spec.address && self.in_slices.contains(&spec.id) == in_slice;
        self.attached.get(&spec.id).is_some_and(|address| !here(address))
    }
}

/// Palisade's table of the firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallSeen {
    /// Digest of the rules that it was made from; `None` when it isn't as Palisade left it.
    pub digest: Option<String>,
}

/// A socket that takes connections or datagrams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketSeen {
    /// Protocol.
    pub proto: Proto,
    /// Where it is bound.
    pub local: SocketAddr,
    /// An IPv6 socket that takes no IPv4.
    pub v6_only: bool,
    /// User that made it.
    pub uid: u32,
    /// Its inode in `/proc/PID/fd`.
    pub inode: u64,
    /// Whose it is.
    pub owner: SocketOwner,
}

/// Whose a socket is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SocketOwner {
    /// An instance of this stack, by its cgroup.
    Instance(InstanceId),
    /// Another stack of Palisade, by its cgroup; holds `project/instance`.
    OtherStack(String),
    /// A process of the host.
    Process {
        /// Process id.
        pid: i32,
        /// `comm` of the process.
        command: String,
    },
    /// A container that the stack takes the place of, by its name.
    Replaced(String),
    /// It could not be found out.
    Unknown,
}

impl fmt::Display for SocketSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} held by ", self.proto, self.local)?;
        match &self.owner {
            SocketOwner::Instance(id) => write!(f, "instance {id}"),
            SocketOwner::OtherStack(id) => write!(f, "instance {id} of another stack"),
            SocketOwner::Process { pid, command } => write!(f, "process {pid} ({command})"),
            SocketOwner::Replaced(name) => write!(f, "container {name}"),
            SocketOwner::Unknown => write!(f, "a process of user {}", self.uid),
        }
    }
}

/// What the kernel can do. `None`: not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelFacts {
    /// `6.18.0`, as the kernel tells it.
    pub release: String,
    /// Where cgroup v2 is mounted.
    pub cgroup2: Option<String>,
    /// Hooks for unix sockets exist (6.7).
    pub unix_hooks: Option<bool>,
    /// Interfaces with `route_localnet` on: 127/8 is reachable through them.
    pub route_localnet: Vec<String>,
}
