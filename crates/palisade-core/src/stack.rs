//! The stack as meant: what a valid Compose file says, with every short form, default and unit settled.
//!
//! Nothing in here can be invalid on its own; what refers to something else (a peer, a network, a dependency)
//! refers to something that exists. Addresses are not part of it: the file doesn't know them.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use crate::action::VolumeName;
use crate::edge::Edge;
use crate::environment::{Environment, Hidden};
use crate::lockout::Confirm;
use crate::names::{ProjectName, ServiceName};
use crate::place::{Place, Placed};

mod health;
mod mount;
pub(crate) use health::HEALTH_MARGIN_MS;
pub use health::{HealthTest, HealthTimes, Healthcheck};
pub use mount::{Mount, MountSource};

/// A whole stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// Compose's project name.
    pub project: ProjectName,
    /// In the order of the file.
    pub services: Vec<Service>,
    /// Top-level `volumes:` that services use, by the key in the file.
    pub volumes: BTreeMap<String, Volume>,
    /// `x-palisade.firewall`.
    pub firewall: Firewall,
    /// `x-palisade.edge`: what the TLS edge serves. `None`: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<Edge>,
}

impl Stack {
    /// The service of that name.
    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.iter().find(|s| &s.name == name)
    }

    /// Some service is run by a container engine.
    pub fn needs_engine(&self) -> bool {
        self.services.iter().any(|service| service.replicas > 0 && service.run.container_run().is_some())
    }

    /// The volume belongs to the container engine: a service that it runs uses it.
    pub fn is_engine_volume(&self, key: &str) -> bool {
        self.services
            .iter()
            .any(|service| service.run.container_run().is_some() && service.mounts_of(key).next().is_some())
    }

    /// Which volume of the host the file's `key` is.
    pub fn volume_name(&self, key: &str) -> VolumeName {
        let unknown = Volume::default();
        let volume = self.volumes.get(key).unwrap_or(&unknown);
        match (self.is_engine_volume(key), volume.named(&self.project, key)) {
            (true, VolumeName::Own(key)) => VolumeName::Engine(format!("{}_{key}", self.project)),
            (true, VolumeName::Named(name)) => VolumeName::Engine(name),
            (_, name) => name,
        }
    }

    /// Somebody depends on the service, and everybody who does can do without it (`required: false`).
    pub fn is_optional(&self, name: &ServiceName) -> bool {
        let mut dependencies = self
            .services
            .iter()
            .flat_map(|service| &service.depends_on)
            .filter(|d| &d.value.service == name)
            .peekable();
        dependencies.peek().is_some() && dependencies.all(|dependency| !dependency.value.required)
    }
}

/// One service, as meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its key below `services:`.
    pub name: ServiceName,
    /// Where that key stands.
    pub place: Place,
    /// How many instances run; 0 to 254.
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
    /// The file says that it shall have none, not even its image's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub healthcheck_disabled: bool,
    /// Times of the image's own check that the file gives, without a test of its own.
    #[serde(default, skip_serializing_if = "HealthTimes::is_empty")]
    pub healthcheck_times: HealthTimes,
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
    /// What lets an image's processes out of the guard; nothing of this is possible for a process of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unguarded: Vec<Placed<Unguarded>>,
    /// `links`: other names of peers that this service alone knows.
    pub links: Vec<Placed<Link>>,
    /// `secrets` and `configs`: files that are put into its file system.
    pub files: Vec<Placed<ProvidedFile>>,
    /// What its processes start with.
    pub settings: ProcessSettings,
    /// `deploy.update_config`, if it is written.
    pub update: Option<UpdatePolicy>,
    /// `deploy.rollback_config`, if it is written.
    pub rollback: Option<UpdatePolicy>,
}

/// How instances are replaced: `deploy.update_config` and `deploy.rollback_config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdatePolicy {
    /// So many instances at once; 0 is all of them.
    pub parallelism: u32,
    /// Time between one and the next.
    pub delay_ms: u64,
    /// What is done when an instance fails, if it is written.
    pub failure_action: Option<FailureAction>,
    /// So long an instance must run to count as good, if it is written.
    pub monitor_ms: Option<u64>,
    /// So many of a thousand instances may fail.
    pub max_failure_milli: u16,
    /// Which of the two comes first, if it is written.
    pub order: Option<UpdateOrder>,
}

impl Default for UpdatePolicy {
    /// One instance at a time, and everything else as it is best for the service.
    fn default() -> Self {
        Self { parallelism: 1, delay_ms: 0, failure_action: None, monitor_ms: None, max_failure_milli: 0, order: None }
    }
}

/// `failure_action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureAction {
    /// The rest stays as it is.
    Pause,
    /// The rest is replaced all the same.
    Continue,
    /// What was replaced is put back.
    Rollback,
}

/// `order`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOrder {
    /// The old instance stops, then the new one starts.
    StopFirst,
    /// The new instance starts, then the old one stops.
    StartFirst,
}

/// One thing that the guard can't hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unguarded {
    /// The risk's id, as `x-palisade.allow` names it.
    pub risk: String,
    /// What the service could do, in one sentence without a full stop.
    pub could: String,
    /// Why that is accepted, from `x-palisade.allow`. `None`: such a service is not started.
    pub accepted: Option<String>,
}

/// What a service runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// `image:`, `build:` and what belongs to them, used by the engine runtime. `None`: neither is given.
    pub container: Option<Container>,
    /// `x-palisade.process`: how to run it without an engine; it takes precedence unless `runtime` says otherwise.
    pub process: Option<Process>,
    /// `x-palisade.runtime`.
    #[serde(default, skip_serializing_if = "RuntimeChoice::is_auto")]
    pub runtime: RuntimeChoice,
}

/// `x-palisade.runtime`: who runs a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeChoice {
    /// A process where `x-palisade.process` says how, an engine otherwise.
    #[default]
    Auto,
    /// A container engine.
    Engine,
    /// Palisade, as a supervised process of the host.
    Process,
}

impl RuntimeChoice {
    /// Nothing was chosen.
    pub fn is_auto(&self) -> bool {
        *self == RuntimeChoice::Auto
    }
}

/// Who runs a service, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runner<'a> {
    /// Palisade itself.
    Process(&'a Process),
    /// A container engine.
    Engine(&'a Container),
    /// The file doesn't say.
    Nobody,
}

impl Run {
    /// Who runs the service.
    pub fn runner(&self) -> Runner<'_> {
        let engine = self.container.as_ref().map_or(Runner::Nobody, Runner::Engine);
        let process = self.process.as_ref().map_or(Runner::Nobody, Runner::Process);
        match (self.runtime, process) {
            (RuntimeChoice::Engine, _) | (RuntimeChoice::Auto, Runner::Nobody) => engine,
            (RuntimeChoice::Auto | RuntimeChoice::Process, process) => process,
        }
    }

    /// The container that an engine runs, if one does.
    pub fn container_run(&self) -> Option<&Container> {
        match self.runner() {
            Runner::Engine(container) => Some(container),
            Runner::Process(_) | Runner::Nobody => None,
        }
    }
}

/// What an engine needs to know besides what a process does, as the file says it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// `image`.
    pub image: Option<String>,
    /// `build`, in its canonical long form, for the engine's own builder.
    pub build: Option<serde_json::Value>,
    /// `pull_policy`.
    pub pull_policy: Option<String>,
    /// `pull_refresh_after`.
    pub pull_refresh_after: Option<String>,
    /// `platform`.
    pub platform: Option<String>,
    /// `container_name`.
    pub name: Option<String>,
    /// `entrypoint`; an empty list takes the image's away.
    pub entrypoint: Option<Vec<String>>,
    /// `command`; an empty list takes the image's away.
    pub command: Option<Vec<String>>,
    /// `user`.
    pub user: Option<String>,
    /// `working_dir`.
    pub working_dir: Option<PathBuf>,
    /// `tty`.
    pub tty: bool,
    /// `stdin_open`.
    pub stdin_open: bool,
    /// `init`.
    pub init: Option<bool>,
    /// `labels`, after `label_file`.
    pub labels: BTreeMap<String, String>,
    /// `annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `runtime` of the engine.
    pub runtime: Option<String>,
    /// `sysctls` that belong to the container's own namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// `devices`: `/dev/x:/dev/y:rwm`.
    pub devices: Vec<String>,
    /// `gpus` and `deploy.resources.reservations.devices`, as written.
    pub device_requests: Vec<serde_json::Value>,
    /// `security_opt`.
    pub security_opt: Vec<String>,
    /// `device_cgroup_rules`.
    pub device_cgroup_rules: Vec<String>,
    /// `blkio_config`, in its canonical form.
    pub blkio_config: Option<serde_json::Value>,
    /// `privileged`. An engine's container that has it is beyond the guard.
    pub privileged: bool,
    /// `storage_opt`.
    pub storage_opt: BTreeMap<String, String>,
}

/// One of `links`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The peer.
    pub service: ServiceName,
    /// What this service calls it.
    pub alias: String,
}

/// One of a service's `secrets` or `configs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProvidedFile {
    /// Its name in the file's top level.
    pub name: String,
    /// One of `secrets`: never shown, and not readable for everybody unless `mode` says so.
    pub secret: bool,
    /// Absolute path inside the service.
    pub target: PathBuf,
    /// Where it comes from.
    pub source: FileSource,
    /// Owner; as the host's file, or root, unless given.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Permission bits; 0444 unless given (Compose Specification, 08-configs and 09-secrets).
    pub mode: u32,
}

/// Where a provided file comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileSource {
    /// A file of the host, absolute.
    Path(PathBuf),
    /// `content`, or the value of the variable that `environment` names.
    Inline(Hidden),
}

/// What the processes of a service start with, besides their environment and files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSettings {
    /// `group_add`: names or numbers.
    pub groups: Vec<String>,
    /// `ulimits`, by their names in lower case: `nofile`.
    pub ulimits: BTreeMap<String, Ulimit>,
    /// `oom_score_adj`: -1000 to 1000.
    pub oom_score_adj: Option<i16>,
    /// `hostname`.
    pub hostname: Option<String>,
    /// `domainname`.
    pub domainname: Option<String>,
    /// `dns`, `dns_search`, `dns_opt`; `None` where none is written: the host's.
    pub dns: Option<Dns>,
    /// `shm_size`: bytes of `/dev/shm`.
    pub shm_bytes: Option<u64>,
    /// `post_start`: run inside, one after the other, once it has started.
    pub post_start: Vec<Hook>,
    /// `pre_stop`: run inside, one after the other, before the stop signal.
    pub pre_stop: Vec<Hook>,
}

/// One of `ulimits`; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// What counts.
    pub soft: Option<u64>,
    /// What it may be raised to.
    pub hard: Option<u64>,
}

/// How a service finds names outside of the stack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// `dns`; none: the host's.
    pub servers: Vec<IpAddr>,
    /// `dns_search`.
    pub search: Vec<String>,
    /// `dns_opt`.
    pub options: Vec<String>,
}

/// One of `post_start` or `pre_stop`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Argument vector.
    pub command: Vec<String>,
    /// As the service, unless given.
    pub user: Option<String>,
    /// As the service, unless given.
    pub working_dir: Option<PathBuf>,
    /// Besides the service's.
    pub environment: Environment,
}

/// A volume of the file that services use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// `name`: what it is called on the host; the project's name and the key unless given.
    pub name: Option<String>,
    /// `external`: it exists already, and belongs to somebody else.
    pub external: bool,
}

impl Volume {
    /// Which volume of the host it is, `key` being what the file of `project` calls it.
    pub fn named(&self, project: &ProjectName, key: &str) -> VolumeName {
        let own = |name: &str| {
            let rest = name.strip_prefix(project.as_str()).and_then(|rest| rest.strip_prefix('_'));
            rest == Some(key)
        };
        match &self.name {
            Some(name) if own(name) => VolumeName::Own(key.to_owned()),
            Some(name) => VolumeName::Named(name.clone()),
            None if self.external => VolumeName::Named(key.to_owned()),
            None => VolumeName::Own(key.to_owned()),
        }
    }
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
    /// It is Palisade's own program, whatever that is called and wherever it lies: `command` has only its arguments.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own: bool,
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
    /// `required: false`: when the dependency fails, that is told and not waited for.
    pub required: bool,
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a processor.
    pub cpu_milli: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Bytes of memory that it keeps under pressure: `mem_reservation`, `deploy.resources.reservations.memory`.
    pub memory_reservation_bytes: Option<u64>,
    /// Bytes of memory and swap together: `memswap_limit`; `u64::MAX` is as much swap as there is.
    pub memory_swap_bytes: Option<u64>,
    /// Share of the processors under pressure, 1024 being usual: `cpu_shares`.
    pub cpu_shares: Option<u64>,
    /// Processors it may run on, as the kernel writes them (`0-3,5`): `cpuset`.
    pub cpuset: Option<CpuSet>,
}

/// A set of processors in the kernel's notation: `0-3,5`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CpuSet(pub String);

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

/// `x-palisade.firewall.backend`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendChoice {
    /// What the host runs.
    #[default]
    Auto,
    /// Palisade's own table.
    Nftables,
    /// firewalld.
    Firewalld,
    /// iptables.
    Iptables,
    /// Palisade leaves the host's firewall alone.
    None,
}

/// Top-level `x-palisade.firewall`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firewall {
    /// Ports besides SSH and the published ones that stay open.
    pub allow: Vec<Placed<PortProto>>,
    /// Whose firewall decides.
    #[serde(default)]
    pub backend: BackendChoice,
    /// When a change has to be confirmed over a new connection.
    #[serde(default)]
    pub confirm: Confirm,
}
