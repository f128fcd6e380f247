//! The stack as meant: what a valid Compose file says, with every short form, default and unit settled.
//!
//! Nothing in here can be invalid on its own; what refers to something else (a peer, a network, a dependency)
//! refers to something that exists. Addresses are not part of it: the file doesn't know them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::environment::Environment;
use crate::names::{ProjectName, ServiceName};
use crate::place::{Place, Placed};

/// A whole stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// Compose's project name.
    pub project: ProjectName,
    /// In the order of the file.
    pub services: Vec<Service>,
    /// Top-level `volumes:` that services use, by name.
    pub volumes: BTreeSet<String>,
    /// `x-palisade.firewall`.
    pub firewall: Firewall,
}

impl Stack {
    /// The service of that name.
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.iter().find(|s| &s.name == name)
    }
}

/// One service, as meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its key below `services:`.
    pub name: ServiceName,
    /// Where that key stands.
    pub place: Place,
    /// How many instances run; 1 to 254.
    pub replicas: u8,
    /// What runs.
    pub run: Run,
    /// Environment, after `env_file` and `environment`. Values may be secrets: they are never printed.
    pub environment: Environment,
    /// Networks it is in; services that share one may reach each other. Empty with `network_mode: none`.
    pub networks: BTreeSet<String>,
    /// Names besides its own that peers know it by.
    pub aliases: BTreeSet<String>,
    /// `network_mode: host` was written: `localhost` also means peers (design: "as written, plus").
    pub host_mode: bool,
    /// `expose:` and the container side of `ports:`: ports that peers may expect here.
    pub expose: Vec<Placed<PortProto>>,
    /// `ports:`.
    pub publish: Vec<Placed<Publish>>,
    /// `x-palisade.connect`: narrows who it may connect to. `None`: every service it shares a network with.
    pub connect: Option<Vec<Placed<Grant>>>,
    /// `x-palisade.strict`: a bind to an undeclared port is refused.
    pub strict: bool,
    /// `x-palisade.egress`.
    pub egress: Egress,
    /// `x-palisade.host`: ports of the host's own loopback services that it may use.
    pub host_ports: Vec<Placed<u16>>,
    /// `depends_on`, in the order of the file.
    pub depends_on: Vec<Placed<Dependency>>,
    /// `healthcheck`; `None` also when disabled.
    pub healthcheck: Option<Healthcheck>,
    /// `restart`.
    pub restart: Restart,
    /// `deploy.resources.limits`, `mem_limit`, `cpus`, `pids_limit`.
    pub limits: Limits,
    /// `stop_signal`, as a name with SIG: `SIGTERM`.
    pub stop_signal: String,
    /// `stop_grace_period`.
    pub stop_grace_ms: u64,
    /// `volumes:` and `tmpfs:` of the service.
    pub mounts: Vec<Placed<Mount>>,
    /// `extra_hosts`.
    pub extra_hosts: Vec<(String, IpAddr)>,
    /// `logging.options`.
    pub log: LogRotation,
    /// `cap_add` (upper case without `CAP_`), within what Palisade can grant.
    pub cap_add: BTreeSet<String>,
    /// `cap_drop`; may hold `ALL`.
    pub cap_drop: BTreeSet<String>,
    /// `read_only`.
    pub read_only: bool,
}

/// What a service runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// `image:`, used by the engine runtime.
    pub image: Option<String>,
    /// `x-palisade.process`: how to run it without an engine.
    pub process: Option<Process>,
}

/// `x-palisade.process`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Argument vector; the first is a path or a name looked up in the service's PATH.
    pub command: Vec<String>,
    /// `user` or `user:group`, by name or number; `None`: root without the dangerous capabilities.
    pub user: Option<String>,
    /// Where it starts; `/` unless given.
    pub working_dir: Option<PathBuf>,
}

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// Also what MPTCP falls back to.
    Tcp,
    /// Also UDP-Lite.
    Udp,
}

impl std::fmt::Display for Proto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        })
    }
}

/// A port with its protocol; the port is never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortProto {
    /// 1 to 65535.
    pub port: u16,
    /// TCP unless written otherwise.
    pub proto: Proto,
}

impl std::fmt::Display for PortProto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.port, self.proto)
    }
}

/// One entry of `ports:`, after ranges are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// The host address it is bound to; `None`: all of them.
    pub host_ip: Option<IpAddr>,
    /// The host's port.
    pub host_port: u16,
    /// The service's port.
    pub container: PortProto,
}

/// One entry of `x-palisade.connect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The peer.
    pub service: ServiceName,
    /// `None`: all of its ports.
    pub port: Option<PortProto>,
}

/// What a service may reach outside the stack and the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Egress {
    /// Everything but metadata addresses.
    All,
    /// Nothing.
    None,
    /// Only these.
    Only(Vec<Placed<EgressRule>>),
}

/// `1.2.3.4/32:443`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRule {
    /// Network address, host bits zero.
    pub network: IpAddr,
    /// 0 to 32 or 128.
    pub prefix_len: u8,
    /// `None`: any port.
    pub port: Option<u16>,
    /// `None`: TCP and UDP.
    pub proto: Option<Proto>,
}

/// `depends_on`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// Who must come first.
    pub service: ServiceName,
    /// How far it must be.
    pub condition: Condition,
    /// `restart: true`: restarted after the dependency was.
    pub restart: bool,
}

/// The conditions of `depends_on`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Its process runs.
    ServiceStarted,
    /// Its health check passes.
    ServiceHealthy,
    /// It ran and exited with 0.
    ServiceCompletedSuccessfully,
}

/// `healthcheck`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healthcheck {
    /// What is run inside the service; exit code 0 is healthy.
    pub test: HealthTest,
    /// Default 30 s, as in Compose.
    pub interval_ms: u64,
    /// Default 30 s.
    pub timeout_ms: u64,
    /// Default 3.
    pub retries: u32,
    /// Failures in this time after the start don't count. Default 0.
    pub start_period_ms: u64,
    /// Time between checks during the start period. Default 5 s.
    pub start_interval_ms: u64,
}

/// `healthcheck.test`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthTest {
    /// `["CMD", …]`: argument vector.
    Command(Vec<String>),
    /// `["CMD-SHELL", …]` or a string: for `/bin/sh -c`.
    Shell(String),
}

/// `restart`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// The default.
    No,
    /// Whatever the exit code.
    Always,
    /// When the exit code isn't 0; at most so many times if given.
    OnFailure {
        /// `on-failure:3`.
        attempts_max: Option<u32>,
    },
    /// Like `always`, but not after the user stopped it.
    UnlessStopped,
}

/// Limits; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a processor.
    pub cpu_milli: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// A mount of the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where it comes from.
    pub source: MountSource,
    /// Absolute path inside the service.
    pub target: PathBuf,
    /// `:ro`.
    pub read_only: bool,
}

/// Where a mount comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A directory or file of the host, absolute.
    Bind(PathBuf),
    /// A named volume of the stack.
    Volume(String),
    /// Memory.
    Tmpfs {
        /// Bytes at most, if given.
        size_bytes: Option<u64>,
    },
}

/// Rotation of a service's log. `max_files` counts the one being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRotation {
    /// `max-size`.
    pub max_bytes: u64,
    /// `max-file`.
    pub max_files: u32,
}

impl Default for LogRotation {
    /// 3 × 10 MB: enough for a look at last night, and no disk fills up.
    fn default() -> Self {
        Self { max_bytes: 10 << 20, max_files: 3 }
    }
}

/// Top-level `x-palisade.firewall`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firewall {
    /// Ports besides SSH and the published ones that stay open.
    pub allow: Vec<Placed<PortProto>>,
    /// `backend: none`: Palisade leaves the host's firewall alone.
    pub disabled: bool,
}
