//! The services that an edge adds to its stack: the edge itself, and who obtains its certificates.
//!
//! They are services like those of the file, so that everything that is done with services is done with them: the guard
//! holds them to what they need, they are updated without a gap, and every command shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{
    CertificateSource, DRAIN_MS, Edge, HTTP_PORT, HTTPS_PORT, Route, SERVICE_NAME, Settings, Upstream,
    UpstreamInstance, Upstreams, WORKER_NAME, WorkerSettings,
};
use crate::address::{AddressBook, InstanceAddress};
use crate::environment::{Environment, Hidden};
use crate::instance::{InstanceMount, InstanceMountSource};
use crate::names::{InstanceId, ServiceName};
use crate::place::{Place, Placed};
use crate::stack::{
    Condition, Dependency, Egress, FileSource, Grant, HealthTest, Healthcheck, Limits, LogRotation, Mount, MountSource,
    PortProto, Process, ProcessSettings, Proto, ProvidedFile, Restart, Run, RuntimeChoice, Service, Stack, UpdateOrder,
    UpdatePolicy, Volume,
};

/// User and group of the edge and of who obtains its certificates: nobody else's, as systemd leaves the numbers between its
/// containers (to 60577) and its dynamic users (from 61184) to nobody.
pub const USER: u32 = 60_842;
/// The stack's volume with certificates and keys, which the edge reads.
pub const CERTIFICATES_VOLUME: &str = "palisade-certificates";
/// The stack's volume with accounts at authorities and the stack's own authority, which the edge doesn't see.
pub const AUTHORITIES_VOLUME: &str = "palisade-authorities";
/// The stack's volume with the edge's access log.
pub const ACCESS_LOG_VOLUME: &str = "palisade-access-log";

/// In the folder of a stack's edge below `/run`: one folder for each instance, with its control socket.
pub const INSTANCES: &str = "instances";
/// In that folder: what instances that start are told.
pub const TOLD: &str = "told";
/// In that of an instance.
pub const CONTROL_SOCKET: &str = "edge.sock";
/// In [`TOLD`]: who answers for each upstream.
pub const UPSTREAMS_FILE: &str = "upstreams.json";
/// In [`TOLD`]: which instances of the edge there are, for who obtains certificates.
pub const EDGES_FILE: &str = "edges.json";

/// Everything of the edge inside its instances is below it.
const INSIDE: &str = "/run/palisade-edge";
/// Has this program ask an edge, by its control socket, whether it serves as it should.
pub const READY_VERB: &str = "__edge-ready";
/// So long a newer edge is watched before the older one goes.
const MONITOR_MS: u64 = 2_000;
/// The same for who obtains certificates: it ends at once or not at all.
const WORKER_MONITOR_MS: u64 = 500;

fn inside(name: &str) -> PathBuf {
    Path::new(INSIDE).join(name)
}

/// The stack with the services that its edge needs. A stack without an edge, or one that has them already, stays as it is.
pub fn with_services(mut stack: Stack) -> Stack {
    let Some(edge) = &stack.edge else { return stack };
    if stack.services.iter().any(|service| service.name.as_str() == SERVICE_NAME) {
        return stack;
    }
    let (Some(name), Some(worker_name)) = (ServiceName::parse(SERVICE_NAME).ok(), ServiceName::parse(WORKER_NAME).ok())
    else {
        return stack;
    };
    let place = edge.routes.first().map_or_else(nowhere, |route| route.place.clone());
    let maker = Maker { stack: &stack, edge, place };
    let service = maker.edge(name.clone());
    let worker = needs_worker(edge).then(|| maker.worker(worker_name, name));
    let mounts = [&service].into_iter().chain(&worker).flat_map(|service| &service.mounts);
    let volumes: Vec<String> = mounts
        .filter_map(|mount| match &mount.value.source {
            MountSource::Volume(key) => Some(key.clone()),
            _ => None,
        })
        .collect();
    stack.volumes.extend(volumes.into_iter().map(|key| (key, Volume::default())));
    stack.services.push(service);
    stack.services.extend(worker);
    stack
}

/// The stack with certificates of its own authority in the place of those that somebody else has to be asked for, and at
/// once: for a rehearsal, where nobody can be asked.
pub fn rehearsed(mut stack: Stack) -> Stack {
    let Some(edge) = &mut stack.edge else { return stack };
    for source in edge.certificates.values_mut().filter(|source| **source == CertificateSource::Acme) {
        *source = CertificateSource::Local;
    }
    edge.acme = None;
    stack.services.retain(|service| ![SERVICE_NAME, WORKER_NAME].contains(&service.name.as_str()));
    with_services(stack)
}

/// Certificates are ordered or signed, and have to be renewed; given ones are only copied.
pub fn needs_worker(edge: &Edge) -> bool {
    edge.certificates.values().any(|source| !matches!(source, CertificateSource::Files { .. }))
}

/// The edge can be replaced without a word to its clients, and ends their connections itself once it is to stop.
pub fn drains_itself(service: &ServiceName) -> bool {
    service.as_str() == SERVICE_NAME
}

/// What the edge is told when it starts.
pub fn settings(edge: &Edge) -> Settings {
    let everywhere = |port| vec![SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))];
    let mut inner = edge.clone();
    // It is whoever stops the edge that waits: the edge needn't be replaced for it.
    inner.drain_ms = DRAIN_MS;
    // Where a route is written changes nothing for who serves it.
    for route in &mut inner.routes {
        route.place = nowhere();
    }
    if inner.error_pages.is_some() {
        inner.error_pages = Some(inside("error-pages"));
    }
    // The edge reads copies; where the originals are is none of its business.
    for (domain, source) in &mut inner.certificates {
        if let CertificateSource::Files { chain, key } = source {
            let copy = inside("certificates").join(format!("{domain}.pem"));
            (*chain, *key) = (copy.clone(), copy);
        }
    }
    Settings {
        http: everywhere(HTTP_PORT),
        https: everywhere(HTTPS_PORT),
        certificates: inside("certificates"),
        control: inside("control").join(CONTROL_SOCKET),
        access_log: edge.access_log.map(|_| PathBuf::from("/var/log/palisade-edge/access.log")),
        workers: 0,
        upstreams: Some(inside(TOLD).join(UPSTREAMS_FILE)),
        edge: inner,
    }
}

/// What who obtains certificates is told: of the host (`folder` and `state` are paths there, for root), or inside.
pub fn worker_settings(edge: &Edge, host: Option<(PathBuf, PathBuf)>) -> WorkerSettings {
    let root = host.is_some();
    let (folder, state) = host.unwrap_or_else(|| (inside("certificates"), inside("authorities")));
    let mut settings = WorkerSettings::new(edge, folder, state);
    settings.owner = root.then_some((USER, USER));
    if !root {
        settings.edges_file = Some(inside(TOLD).join(EDGES_FILE));
        let directories = settings.acme.iter_mut().flat_map(|acme| &mut acme.directories);
        for (number, directory) in directories.enumerate() {
            if directory.root.is_some() {
                directory.root = Some(inside(&format!("root-{number}.pem")));
            }
            if let Some(account) = &mut directory.eab {
                account.key_file = inside(&format!("account-{number}"));
            }
        }
    }
    settings
}

/// Where instances of the edge find their control sockets and those who speak with them, inside. `run`: the edge's folder of the host.
pub(crate) fn mounts(service: &ServiceName, number: u8, run: &Path) -> Vec<InstanceMount> {
    let mount = |source: PathBuf, target: &str, read_only| InstanceMount {
        source: InstanceMountSource::Volume(source),
        target: inside(target),
        read_only,
    };
    let instances = run.join(INSTANCES);
    let told = mount(run.join(TOLD), TOLD, true);
    match service.as_str() {
        SERVICE_NAME => vec![mount(instances.join(number.to_string()), "control", false), told],
        WORKER_NAME => vec![mount(instances, INSTANCES, true), told],
        _ => Vec::new(),
    }
}

/// The control socket of an instance of the edge, as who obtains certificates sees it.
pub fn control_for_worker(number: u8) -> PathBuf {
    inside(INSTANCES).join(number.to_string()).join(CONTROL_SOCKET)
}

/// Who answers for each upstream: of those that the policy sends connections to, those that aren't suspended, unless there
/// are none. That is what the guard does for all others.
pub fn upstreams<'a>(
    wanted: impl IntoIterator<Item = &'a Upstream>,
    addresses: &AddressBook,
    serving: &BTreeSet<InstanceAddress>,
    suspended: &BTreeSet<InstanceAddress>,
) -> Upstreams {
    let instances = |upstream: &Upstream| {
        let Some(address) = addresses.address(&upstream.service) else { return Vec::new() };
        let all: Vec<_> = serving.iter().filter(|instance| instance.service() == address).collect();
        let well: Vec<_> = all.iter().copied().filter(|instance| !suspended.contains(instance)).collect();
        let chosen = if well.is_empty() { all } else { well };
        let instance = |instance: &InstanceAddress| {
            let number = instance.ip().octets()[3];
            UpstreamInstance {
                id: InstanceId { service: upstream.service.clone(), number },
                address: (instance.ip(), upstream.port).into(),
            }
        };
        chosen.into_iter().map(instance).collect()
    };
    wanted.into_iter().map(|upstream| (upstream.to_string(), instances(upstream))).collect()
}

fn start_first(monitor_ms: u64) -> UpdatePolicy {
    UpdatePolicy { order: Some(UpdateOrder::StartFirst), monitor_ms: Some(monitor_ms), ..UpdatePolicy::default() }
}

fn nowhere() -> Place {
    Place { file: Arc::from("x-palisade.edge"), line: 1, column: 1 }
}

struct Maker<'a> {
    stack: &'a Stack,
    edge: &'a Edge,
    place: Place,
}

impl Maker<'_> {
    fn at<T>(&self, value: T) -> Placed<T> {
        Placed { value, place: self.place.clone() }
    }

    fn upstreams(&self) -> BTreeSet<&Upstream> {
        self.edge.routes.iter().map(|route: &Placed<Route>| &route.value.to).collect()
    }

    fn edge(&self, name: ServiceName) -> Service {
        let tcp = |port| PortProto { port, proto: Proto::Tcp };
        let connect = self.upstreams().into_iter();
        let connect =
            connect.map(|to| self.at(Grant { service: to.service.clone(), port: Some(tcp(to.port)) })).collect();
        let servers: BTreeSet<&ServiceName> = self.upstreams().into_iter().map(|to| &to.service).collect();
        let depends_on = servers.into_iter().map(|service| {
            self.at(Dependency {
                service: service.clone(),
                condition: Condition::ServiceStarted,
                restart: false,
                required: true,
            })
        });
        let mut mounts = vec![self.volume(CERTIFICATES_VOLUME, inside("certificates"), true)];
        if self.edge.access_log.is_some() {
            mounts.push(self.volume(ACCESS_LOG_VOLUME, PathBuf::from("/var/log/palisade-edge"), false));
        }
        if let Some(pages) = &self.edge.error_pages {
            mounts.push(self.mount(MountSource::Bind(pages.clone()), inside("error-pages"), true));
        }
        Service {
            publish: self.edge.published(),
            connect: Some(connect),
            depends_on: depends_on.collect(),
            healthcheck: Some(Healthcheck {
                test: HealthTest::Own(vec![READY_VERB.to_owned(), text(&inside("control").join(CONTROL_SOCKET))]),
                interval_ms: 5_000,
                timeout_ms: 5_000,
                retries: 3,
                start_period_ms: 30_000,
                start_interval_ms: 200,
            }),
            mounts,
            files: vec![self.settings("edge", &settings(self.edge))],
            // Two edges serve side by side; their access log takes lines of both.
            update: Some(start_first(MONITOR_MS)),
            ..self.service(name, "__edge", self.edge.drain_ms)
        }
    }

    fn worker(&self, name: ServiceName, edge: ServiceName) -> Service {
        let acme = self.edge.certificates.values().any(|source| *source == CertificateSource::Acme);
        let grant = |port| Grant { service: edge.clone(), port: Some(PortProto { port, proto: Proto::Tcp }) };
        let mut files = vec![self.settings("certificates", &worker_settings(self.edge, None))];
        for (number, directory) in self.edge.acme.iter().flat_map(|acme| &acme.directories).enumerate() {
            let file = |name: String, path: &Path, mode| {
                self.at(ProvidedFile {
                    target: inside(&name),
                    source: FileSource::Path(path.to_owned()),
                    secret: mode == 0o400,
                    name,
                    uid: Some(USER),
                    gid: Some(USER),
                    mode,
                })
            };
            files.extend(directory.root.iter().map(|root| file(format!("root-{number}.pem"), root, 0o444)));
            files.extend(
                directory.eab.iter().map(|account| file(format!("account-{number}"), &account.key_file, 0o400)),
            );
        }
        Service {
            // Whoever looks before the edge answers finds nobody, and looks again much later.
            depends_on: vec![self.at(Dependency {
                service: edge.clone(),
                condition: Condition::ServiceHealthy,
                restart: false,
                required: true,
            })],
            connect: Some([HTTP_PORT, HTTPS_PORT].map(|port| self.at(grant(port))).into()),
            // An authority may be anywhere.
            egress: if acme { Egress::All } else { Egress::None },
            mounts: vec![
                self.volume(CERTIFICATES_VOLUME, inside("certificates"), false),
                self.volume(AUTHORITIES_VOLUME, inside("authorities"), false),
            ],
            files,
            // Two of them wait for each other: only one looks at a time.
            update: Some(start_first(WORKER_MONITOR_MS)),
            ..self.service(name, "__certificates", 5_000)
        }
    }

    fn settings(&self, name: &str, settings: &impl serde::Serialize) -> Placed<ProvidedFile> {
        // Nothing in them can fail to be written: they are read back from the same form.
        let json = serde_json::to_string(settings).unwrap_or_default();
        self.at(ProvidedFile {
            name: name.to_owned(),
            secret: false,
            target: inside("settings.json"),
            source: FileSource::Inline(Hidden(json)),
            uid: Some(USER),
            gid: Some(USER),
            mode: 0o400,
        })
    }

    fn volume(&self, key: &str, target: PathBuf, read_only: bool) -> Placed<Mount> {
        self.mount(MountSource::Volume(key.to_owned()), target, read_only)
    }

    fn mount(&self, source: MountSource, target: PathBuf, read_only: bool) -> Placed<Mount> {
        self.at(Mount { source, target, read_only, nocopy: false })
    }

    /// What both are: a process of the host without any right that it doesn't need.
    fn service(&self, name: ServiceName, verb: &str, stop_grace_ms: u64) -> Service {
        let servers = self.upstreams();
        let servers = self.stack.services.iter().filter(|s| servers.iter().any(|to| to.service == s.name));
        Service {
            name,
            place: self.place.clone(),
            replicas: 1,
            run: Run {
                container: None,
                process: Some(Process {
                    command: vec![verb.to_owned(), text(&inside("settings.json"))],
                    user: Some(format!("{USER}:{USER}")),
                    working_dir: None,
                    own: true,
                }),
                runtime: RuntimeChoice::Process,
            },
            environment: Environment::from(BTreeMap::new()),
            networks: servers.flat_map(|service| &service.networks).cloned().collect(),
            aliases: BTreeSet::new(),
            host_mode: false,
            expose: Vec::new(),
            publish: Vec::new(),
            connect: None,
            strict: true,
            egress: Egress::None,
            host_ports: Vec::new(),
            depends_on: Vec::new(),
            healthcheck: None,
            healthcheck_disabled: false,
            healthcheck_times: Default::default(),
            restart: Restart::Always,
            limits: Limits::default(),
            stop_signal: "SIGTERM".to_owned(),
            stop_grace_ms,
            mounts: Vec::new(),
            extra_hosts: Vec::new(),
            log: LogRotation::default(),
            cap_add: BTreeSet::new(),
            cap_drop: BTreeSet::from(["ALL".to_owned()]),
            read_only: true,
            unguarded: Vec::new(),
            links: Vec::new(),
            files: Vec::new(),
            settings: ProcessSettings::default(),
            update: None,
            rollback: None,
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
