//! What a runtime needs to know to run one instance, and what it tells about one.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use crate::address::InstanceAddress;
use crate::digest::{Fingerprint, digest_of};
use crate::environment::Environment;
use crate::names::{InstanceId, ProjectName};
use crate::policy::BindRule;
use crate::stack::{
    Container, FileSource, Healthcheck, Limits, LogRotation, Process, ProcessSettings, ProvidedFile, Restart,
};

/// Everything that a runtime needs to run one instance. Holds secrets (the environment): stored with mode 0600.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// The stack it belongs to.
    pub project: ProjectName,
    /// Which instance.
    pub id: InstanceId,
    /// Its private address.
    pub address: InstanceAddress,
    /// What runs, and who runs it.
    pub program: Program,
    /// Environment, complete but for PATH and HOME defaults.
    pub environment: Environment,
    /// Lines of its `/etc/hosts` beyond `localhost`: names of its peers and extra hosts.
    pub hosts: Hosts,
    /// Mounts; named volumes are already paths.
    pub mounts: Vec<InstanceMount>,
    /// Limits.
    pub limits: Limits,
    /// With SIG: `SIGTERM`.
    pub stop_signal: String,
    /// Between the stop signal and SIGKILL.
    pub stop_grace_ms: u64,
    /// When to run it again.
    pub restart: Restart,
    /// How to know that it works.
    pub healthcheck: Option<Healthcheck>,
    /// Rotation of its log.
    pub log: LogRotation,
    /// Capabilities added to the default set, without `CAP_`.
    pub cap_add: BTreeSet<String>,
    /// Capabilities dropped from it; may hold `ALL`.
    pub cap_drop: BTreeSet<String>,
    /// The root file system is not writable (it is host's, read-only, anyway): also no writable `/tmp`.
    pub read_only: bool,
    /// `secrets` and `configs`.
    pub files: Vec<InstanceFile>,
    /// What its processes start with.
    pub settings: ProcessSettings,
    /// Where its UDP ports are published. A datagram socket stays where it was bound, so another place is another
    /// instance.
    pub published: Vec<BindRule>,
    /// What is run as Palisade's own program, where that is what runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_program: Option<OwnProgram>,
}

/// One version of Palisade's own program. A newer one is another specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnProgram {
    /// Where it is kept while something runs it, so that it stays the same when Palisade is updated.
    pub file: PathBuf,
    /// Stands for its content.
    pub digest: String,
}

impl InstanceSpec {
    /// How its cgroup is made. Processes of the host have one that nobody else knows of.
    pub fn cgroup_driver(&self) -> CgroupDriver {
        self.program.container().map_or(CgroupDriver::Cgroupfs, |container| container.cgroup_driver)
    }

    /// What it was made of, so that a later run can say which part changed without keeping the secrets in it.
    /// Its hosts file is no part of it: that can be replaced while the instance runs.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut parts = vec![
            ("address".to_owned(), digest_of(&self.address)),
            ("mounts".to_owned(), digest_of(&(&self.mounts, self.read_only))),
            ("stop".to_owned(), digest_of(&(&self.stop_signal, self.stop_grace_ms))),
            ("restart".to_owned(), digest_of(&self.restart)),
            ("healthcheck".to_owned(), digest_of(&self.healthcheck)),
            ("log".to_owned(), digest_of(&self.log)),
            ("capabilities".to_owned(), digest_of(&(&self.cap_add, &self.cap_drop))),
            ("ports".to_owned(), digest_of(&self.published)),
        ];
        parts.extend(self.program.parts());
        parts.extend(self.own_program.iter().map(|own| ("palisade".to_owned(), own.digest.clone())));
        parts.extend(self.limit_parts());
        parts.extend(self.settings_parts());
        parts.extend(self.files.iter().map(|file| {
            let kind = if file.file.secret { "secret" } else { "config" };
            (format!("{kind}.{}", file.file.name), digest_of(file))
        }));
        parts.extend(self.environment.iter().map(|(key, value)| (format!("environment.{key}"), digest_of(value))));
        Fingerprint::new(parts)
    }

    fn limit_parts(&self) -> impl Iterator<Item = (String, String)> {
        let Limits { memory_bytes, cpu_milli, pids, memory_reservation_bytes, memory_swap_bytes, cpu_shares, cpuset } =
            &self.limits;
        let parts = [
            ("limits.memory", digest_of(memory_bytes)),
            ("limits.cpus", digest_of(cpu_milli)),
            ("limits.pids", digest_of(pids)),
            ("limits.memory_reservation", digest_of(memory_reservation_bytes)),
            ("limits.memory_swap", digest_of(memory_swap_bytes)),
            ("limits.cpu_shares", digest_of(cpu_shares)),
            ("limits.cpuset", digest_of(cpuset)),
        ];
        parts.into_iter().map(|(name, digest)| (name.to_owned(), digest))
    }

    fn settings_parts(&self) -> impl Iterator<Item = (String, String)> {
        // Taken apart whole, so that a setting that is added can't be forgotten here.
        let ProcessSettings {
            groups,
            ulimits,
            oom_score_adj,
            hostname,
            domainname,
            dns,
            shm_bytes,
            post_start,
            pre_stop,
        } = &self.settings;
        let parts = [
            ("groups", digest_of(groups)),
            ("ulimits", digest_of(ulimits)),
            ("oom_score_adj", digest_of(oom_score_adj)),
            ("hostname", digest_of(hostname)),
            ("domainname", digest_of(domainname)),
            ("dns", digest_of(dns)),
            ("shm_size", digest_of(shm_bytes)),
            ("post_start", digest_of(post_start)),
            ("pre_stop", digest_of(pre_stop)),
        ];
        parts.into_iter().map(|(name, digest)| (name.to_owned(), digest))
    }
}

/// What an instance runs, and who runs it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// A supervised process of the host.
    Process(Process),
    /// A container of an engine.
    Container(Box<ContainerProgram>),
}

/// What an engine is told about a container besides what is the same for every instance.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerProgram {
    /// The engine's socket on this host.
    pub socket: PathBuf,
    /// Who decides where the cgroups of containers are.
    pub cgroup_driver: CgroupDriver,
    /// What the container is called.
    pub name: String,
    /// The image as the file names it.
    pub image: String,
    /// The image that this name stands for on this host: `sha256:…`. `None`: it is still to be fetched.
    pub image_id: Option<String>,
    /// What the file says about the container.
    pub settings: Container,
    /// `network_mode: host` was written, so the host's name is the container's, too.
    pub host_mode: bool,
}

/// How an instance's cgroup is made: for a container as its engine does, `docker info` calls it the cgroup driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupDriver {
    /// As a directory, at any path.
    Cgroupfs,
    /// By systemd, so only a slice can hold it.
    Systemd,
}

impl Program {
    /// The process of the host that it is, if it is one.
    pub fn process(&self) -> Option<&Process> {
        match self {
            Program::Process(process) => Some(process),
            Program::Container(_) => None,
        }
    }

    /// The container that it is, if it is one.
    pub fn container(&self) -> Option<&ContainerProgram> {
        match self {
            Program::Process(_) => None,
            Program::Container(container) => Some(container),
        }
    }

    /// The user that its commands run as, if one is named.
    pub fn user(&self) -> Option<&str> {
        match self {
            Program::Process(process) => process.user.as_deref(),
            Program::Container(container) => container.settings.user.as_deref(),
        }
    }

    /// What it is made of, for the fingerprint.
    fn parts(&self) -> Vec<(String, String)> {
        let parts = match self {
            Program::Process(process) => vec![
                ("command", digest_of(&process.command)),
                ("user", digest_of(&process.user)),
                ("working_dir", digest_of(&process.working_dir)),
            ],
            Program::Container(container) => {
                // Taken apart whole, so that a setting that is added can't be forgotten here.
                let ContainerProgram { socket, cgroup_driver, name, image, image_id, settings, host_mode } =
                    container.as_ref();
                let Container { command, entrypoint, user, working_dir, .. } = settings;
                // How the image is made or fetched is no part of what runs; which image that gave is.
                let rest = Container {
                    command: None,
                    entrypoint: None,
                    user: None,
                    working_dir: None,
                    build: None,
                    pull_policy: None,
                    pull_refresh_after: None,
                    image: None,
                    ..settings.clone()
                };
                vec![
                    ("engine", digest_of(&(socket, cgroup_driver))),
                    ("container_name", digest_of(name)),
                    ("image", digest_of(&(image, image_id))),
                    ("command", digest_of(&(command, entrypoint))),
                    ("user", digest_of(user)),
                    ("working_dir", digest_of(working_dir)),
                    ("network_mode", digest_of(host_mode)),
                    ("container", digest_of(&rest)),
                ]
            }
        };
        parts.into_iter().map(|(name, digest)| (name.to_owned(), digest)).collect()
    }
}

/// The program or image alone: arguments may be secrets.
impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Program::Process(process) => process.command.first().map_or("", String::as_str),
            Program::Container(container) => &container.image,
        })
    }
}

/// One of an instance's secrets and configs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceFile {
    /// What the file says.
    pub file: ProvidedFile,
    /// Stands for the content and the owner of the host's file, so that another content is another specification.
    /// `None`: the content is part of `file`, or nobody could read it when it was planned.
    pub content_digest: Option<String>,
}

impl InstanceFile {
    /// The host's file that it is read from when the instance starts.
    pub fn path(&self) -> Option<&std::path::Path> {
        match &self.file.source {
            FileSource::Path(path) => Some(path),
            FileSource::Inline(_) => None,
        }
    }
}

/// Values of the environment and arguments may be secrets: their names and number are all that is shown.
impl fmt::Debug for InstanceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstanceSpec")
            .field("id", &format_args!("{}/{}", self.project, self.id))
            .field("address", &self.address)
            .field("program", &self.program.to_string())
            .field("environment", &self.environment)
            .finish_non_exhaustive()
    }
}

/// Lines of a hosts file. A flat network of n services gives each of them the same n lines, so they are shared.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "Vec<(String, IpAddr)>", into = "Vec<(String, IpAddr)>")]
pub struct Hosts(Arc<HostLines>);

struct HostLines {
    lines: Vec<(String, IpAddr)>,
    /// Made when somebody asks.
    digest: OnceLock<String>,
}

impl Hosts {
    /// Stands for the content.
    pub fn digest(&self) -> &str {
        self.0.digest.get_or_init(|| digest_of(&self.0.lines))
    }
}

impl PartialEq for Hosts {
    fn eq(&self, other: &Self) -> bool {
        self.0.lines == other.0.lines
    }
}

impl Eq for Hosts {}

impl From<Vec<(String, IpAddr)>> for Hosts {
    fn from(lines: Vec<(String, IpAddr)>) -> Self {
        Self(Arc::new(HostLines { lines, digest: OnceLock::new() }))
    }
}

impl From<Hosts> for Vec<(String, IpAddr)> {
    fn from(hosts: Hosts) -> Self {
        hosts.0.lines.clone()
    }
}

impl Default for Hosts {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl std::ops::Deref for Hosts {
    type Target = [(String, IpAddr)];
    fn deref(&self) -> &Self::Target {
        &self.0.lines
    }
}

impl<'a> IntoIterator for &'a Hosts {
    type Item = &'a (String, IpAddr);
    type IntoIter = std::slice::Iter<'a, (String, IpAddr)>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lines", self.len())
    }
}

/// A mount with its source settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceMount {
    /// Where it comes from.
    pub source: InstanceMountSource,
    /// Absolute path inside.
    pub target: PathBuf,
    /// Not writable.
    pub read_only: bool,
}

/// Where a settled mount comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InstanceMountSource {
    /// A path of the host that exists when the instance starts.
    Path(PathBuf),
    /// A volume's directory: made (mode 0755, owned by the instance's user) when it is missing.
    Volume(PathBuf),
    /// A volume of the engine, by its name there.
    EngineVolume {
        /// The engine's name of it.
        name: String,
        /// A new one doesn't begin with what the image has at the target.
        nocopy: bool,
    },
    /// Memory.
    Tmpfs {
        /// Bytes at most, if given.
        size_bytes: Option<u64>,
        /// Permission bits of its root; 1777 unless given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
    },
}

/// What is known about an instance's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Being set up.
    Starting,
    /// Its process runs.
    Running,
    /// It exited and will be started again after a pause.
    BackingOff,
    /// It exited and stays so.
    Exited {
        /// Exit code, or 128 + signal.
        code: i32,
    },
}

/// What is known about an instance's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It has no health check.
    None,
    /// Not passed yet.
    Starting,
    /// The last check passed.
    Healthy,
    /// `retries` checks in a row failed.
    Unhealthy,
}

/// What the agent tells about one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// Which.
    pub id: InstanceId,
    /// Its private address.
    pub address: InstanceAddress,
    /// Digest of the [`InstanceSpec`] that it was started with.
    pub spec_digest: String,
    /// Process.
    pub state: RunState,
    /// Health check.
    pub health: Health,
    /// Process id (in the host's namespace) of the instance's init, while it runs.
    pub pid: Option<i32>,
    /// How often it was started again since it was created.
    pub restarts: u32,
    /// Seconds since the Unix epoch of the last start.
    pub started_at_s: u64,
    /// What the last failed health check printed, shortened.
    pub health_output: Option<String>,
    /// Why it was stopped, if that was its own `post_start` failing.
    #[serde(default)]
    pub hook_failure: Option<String>,
    /// Somebody had it stopped, so it stays stopped until somebody has it started.
    #[serde(default)]
    pub stopped: bool,
}
