//! A Compose file as written: typed and with places, but names may still refer to nothing.
//!
//! What the parts mean together is settled on the way to [`crate::stack::Stack`], in `validate`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use super::edge::FileEdge;
use crate::diagnostic::{Span, Spanned};
use crate::lockout::Confirm;
use crate::names::{ProjectName, ServiceName};
use crate::stack::{
    BackendChoice, Condition, Container, CpuSet, EgressRule, FileSource, HealthTimes, Healthcheck, LogRotation, Mount,
    MountSource, PortProto, Process, ProcessSettings, Publish, Restart, RuntimeChoice, UpdatePolicy, Volume,
};

/// The whole file.
#[derive(Clone, Debug)]
pub struct ComposeFile {
    /// Settled from the option, the environment, the file and the directory.
    pub project: ProjectName,
    /// In the order of the file.
    pub services: Vec<FileService>,
    /// `networks:` of the file.
    pub networks: BTreeMap<String, FileNetwork>,
    /// `volumes:` of the file.
    pub volumes: BTreeMap<String, FileVolume>,
    /// `secrets:` of the file.
    pub secrets: BTreeMap<String, FileProvided>,
    /// `configs:` of the file.
    pub configs: BTreeMap<String, FileProvided>,
    /// `x-palisade.allow`.
    pub allow: Vec<FileAllow>,
    /// `x-palisade.firewall.allow`.
    pub firewall_allow: Vec<Spanned<PortProto>>,
    /// `x-palisade.firewall.backend`.
    pub firewall_backend: BackendChoice,
    /// `x-palisade.firewall.confirm`.
    pub firewall_confirm: Confirm,
    /// `x-palisade.edge`.
    pub edge: Option<FileEdge>,
}

/// A network of the file.
#[derive(Clone, Debug)]
pub struct FileNetwork {
    /// Its key.
    pub span: Span,
    /// `internal: true`.
    pub internal: bool,
    /// `external: true`.
    pub external: bool,
}

/// A volume of the file.
#[derive(Clone, Debug)]
pub struct FileVolume {
    /// Its key.
    pub span: Span,
    /// `name` and `external`.
    pub volume: Volume,
    /// What `driver_opts` mount in its place, and whether it is read only.
    pub source: Option<(MountSource, bool)>,
}

/// A secret or config of the file.
#[derive(Clone, Debug)]
pub struct FileProvided {
    /// Its key.
    pub span: Span,
    /// Where it comes from, or why it can't be had: told when a service uses it.
    pub source: Result<FileSource, Absent>,
}

/// Why a secret or config can't be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absent {
    /// What it is made of has a mistake, which was reported.
    Reported,
    /// There is no such file: where it was looked for, in words.
    File(String, Span),
    /// There is no such variable.
    Variable(String, Span),
}

/// One of a service's `secrets` or `configs`.
#[derive(Clone, Debug)]
pub struct FileReference {
    /// As written.
    pub name: String,
    /// One of `secrets`.
    pub secret: bool,
    /// Where it is seen.
    pub target: PathBuf,
    /// `uid`.
    pub uid: Option<u32>,
    /// `gid`.
    pub gid: Option<u32>,
    /// `mode`.
    pub mode: u32,
}

/// One of `links`.
#[derive(Clone, Debug)]
pub struct FileLink {
    /// As written.
    pub service: String,
    /// What this service calls it.
    pub alias: String,
}

/// One of `volumes_from`.
#[derive(Clone, Debug)]
pub struct FileVolumesFrom {
    /// As written.
    pub service: String,
    /// `:ro`.
    pub read_only: bool,
}

/// A service.
#[derive(Clone, Debug)]
pub struct FileService {
    /// Its key.
    pub name: Spanned<ServiceName>,
    /// `image`.
    pub image: Option<Spanned<String>>,
    /// `build`.
    pub build: Option<Span>,
    /// What only an engine uses: all of it, whether or not there is an image.
    pub container: Container,
    /// `privileged: true`.
    pub privileged: Option<Span>,
    /// `x-palisade.process`, completed by `user` and `working_dir`.
    pub process: Option<Process>,
    /// `x-palisade.runtime`.
    pub runtime: RuntimeChoice,
    /// `x-palisade.process` is written, though perhaps wrong.
    pub process_written: bool,
    /// After `env_file` and `environment`.
    pub environment: BTreeMap<String, String>,
    /// `container_name`.
    pub container_name: Option<Spanned<String>>,
    /// `networks`; `None`: not written.
    pub networks: Option<Vec<NetworkUse>>,
    /// `network_mode`.
    pub network_mode: Option<Spanned<NetworkMode>>,
    /// `expose`.
    pub expose: Vec<Spanned<PortProto>>,
    /// `ports`, ranges spread.
    pub ports: Vec<Spanned<Publish>>,
    /// `depends_on`, and what `links` and `volumes_from` add to it.
    pub depends_on: Vec<Spanned<FileDependency>>,
    /// `links`.
    pub links: Vec<Spanned<FileLink>>,
    /// `healthcheck`, unless it is disabled.
    pub healthcheck: Option<Healthcheck>,
    /// Where `healthcheck` is written, perhaps with mistakes.
    pub healthcheck_span: Option<Span>,
    /// It is written, and says that there is none.
    pub healthcheck_disabled: bool,
    /// Its times, when they are for the image's own test.
    pub healthcheck_times: HealthTimes,
    /// `restart`, `deploy.restart_policy`.
    pub restart: Restart,
    /// Where `restart` is written.
    pub restart_span: Option<Span>,
    /// `deploy.update_config`.
    pub update: Option<UpdatePolicy>,
    /// `deploy.rollback_config`.
    pub rollback: Option<UpdatePolicy>,
    /// `deploy.replicas`, `scale`.
    pub replicas: Vec<Spanned<u64>>,
    /// `deploy.resources.limits.memory`, `mem_limit`. 0 is unlimited.
    pub memory_bytes: Vec<Spanned<u64>>,
    /// `deploy.resources.reservations.memory`, `mem_reservation`. 0 is none.
    pub memory_reservation_bytes: Vec<Spanned<u64>>,
    /// `memswap_limit`; `u64::MAX` is as much swap as there is.
    pub memory_swap_bytes: Option<Spanned<u64>>,
    /// `cpu_shares`.
    pub cpu_shares: Option<u64>,
    /// `cpuset`.
    pub cpuset: Option<CpuSet>,
    /// `deploy.resources.limits.cpus`, `cpus`, `cpu_count`, `cpu_quota`. 0 is unlimited.
    pub cpu_milli: Vec<Spanned<u64>>,
    /// `deploy.resources.limits.pids`, `pids_limit`. 0 is unlimited.
    pub pids: Vec<Spanned<u64>>,
    /// `stop_signal`.
    pub stop_signal: String,
    /// `stop_grace_period`.
    pub stop_grace_ms: u64,
    /// `volumes`, `tmpfs`.
    pub mounts: Vec<Spanned<Mount>>,
    /// `volumes_from`.
    pub volumes_from: Vec<Spanned<FileVolumesFrom>>,
    /// `secrets`, `configs`.
    pub files: Vec<Spanned<FileReference>>,
    /// What its processes start with.
    pub settings: ProcessSettings,
    /// `extra_hosts`.
    pub extra_hosts: Vec<(String, IpAddr)>,
    /// Where one of them is `host-gateway`.
    pub host_gateway: Option<Span>,
    /// `logging`.
    pub log: LogRotation,
    /// `cap_add`.
    pub cap_add: Vec<Spanned<String>>,
    /// `cap_drop`.
    pub cap_drop: Vec<String>,
    /// `read_only`.
    pub read_only: bool,
    /// `x-palisade.allow`.
    pub allow: Vec<FileAllow>,
    /// `x-palisade.connect`.
    pub connect: Option<Vec<Spanned<FileGrant>>>,
    /// `x-palisade.strict`.
    pub strict: bool,
    /// `x-palisade.egress`.
    pub egress: Option<Spanned<FileEgress>>,
    /// `x-palisade.host`.
    pub host_ports: Vec<Spanned<u16>>,
}

impl FileService {
    /// It runs as a process of the host, and its image is for other tools.
    pub fn is_process(&self) -> bool {
        self.process_written && self.runtime != RuntimeChoice::Engine
    }
}

/// One of a service's networks.
#[derive(Clone, Debug)]
pub struct NetworkUse {
    /// Its name.
    pub name: Spanned<String>,
    /// Other names of the service.
    pub aliases: Vec<Spanned<String>>,
}

/// `network_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// `localhost` also means peers.
    Host,
    /// No peers.
    None,
    /// As if it weren't written.
    Bridge,
}

/// One of `depends_on`.
#[derive(Clone, Debug)]
pub struct FileDependency {
    /// As written.
    pub service: String,
    /// How far it must be.
    pub condition: Condition,
    /// Restarted with it.
    pub restart: bool,
    /// It must be there.
    pub required: bool,
}

/// One of `connect`.
#[derive(Clone, Debug)]
pub struct FileGrant {
    /// As written.
    pub service: String,
    /// `None`: all ports.
    pub port: Option<PortProto>,
}

/// One of `allow`: a risk that is accepted.
#[derive(Clone, Debug)]
pub struct FileAllow {
    /// Its id.
    pub risk: Spanned<&'static str>,
    /// Why it is accepted.
    pub reason: Option<String>,
}

/// `egress`.
#[derive(Clone, Debug)]
pub enum FileEgress {
    /// Everything but metadata addresses.
    All,
    /// Nothing.
    None,
    /// Only these.
    Only(Vec<Spanned<EgressRule>>),
}

/// The word beside a path that can't be read. A path with a variable in it is not written out: its value may be a secret.
pub(crate) fn looked_for(shown: &str, path: &std::path::Path) -> String {
    if shown.contains('$') {
        "with the variables filled in".to_owned()
    } else {
        format!("looked for {}", crate::diagnostic::quoted(&path.to_string_lossy()))
    }
}

/// A path of the user's file, made absolute without asking the file system.
pub(crate) fn resolve(directory: &std::path::Path, home: Option<&str>, path: &str) -> PathBuf {
    use std::path::Component;
    let full = match (path.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            std::path::Path::new(home).join(rest.trim_start_matches('/'))
        }
        _ => directory.join(path),
    };
    let mut clean = PathBuf::with_capacity(full.as_os_str().len());
    for component in full.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean
}
