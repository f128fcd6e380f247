//! From a valid file to the stack: defaults, merged ports, units and places.
//!
//! Nothing can fail here; what could, was found by `validate`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::file::{ComposeFile, FileEgress, NetworkMode};
use super::validate::{agreed, networks_of, only_internal, settled_ports};
use crate::diagnostic::{SourceMap, Spanned};
use crate::names::ServiceName;
use crate::place::Placed;
use crate::stack::{
    Container, Dependency, Egress, Firewall, Grant, Limits, Link, Mount, MountSource, ProvidedFile, Run, Service,
    Stack, Volume,
};

/// The stack that a valid file means.
pub(crate) fn settle(file: ComposeFile, sources: &SourceMap) -> Stack {
    let by_name: HashMap<&str, usize> =
        file.services.iter().enumerate().map(|(index, service)| (service.name.value.as_str(), index)).collect();
    let view = View { file: &file, by_name, sources };
    let mut mounts = Mounts { view: &view, done: HashMap::new() };
    let services: Vec<Service> =
        (0..file.services.len()).map(|index| settle_service(index, &view, mounts.of(index))).collect();
    let mut volumes = BTreeMap::new();
    for service in &services {
        for mount in service.mounts.iter().map(|mount| &mount.value) {
            match &mount.source {
                MountSource::Volume(name) => {
                    volumes.extend(file.volumes.get(name).map(|known| (name.clone(), known.volume.clone())));
                }
                MountSource::Anonymous { .. } => {
                    let keys = (1..=service.replicas).filter_map(|number| mount.volume_key(&service.name, number));
                    volumes.extend(keys.map(|key| (key, Volume::default())));
                }
                MountSource::Bind(_) | MountSource::Tmpfs { .. } => {}
            }
        }
    }
    Stack {
        volumes,
        firewall: Firewall {
            allow: file.firewall_allow.iter().map(|port| placed(port, port.value, sources)).collect(),
            backend: file.firewall_backend,
            confirm: file.firewall_confirm,
        },
        services,
        project: file.project,
    }
}

/// The file with what is looked up again and again.
struct View<'f> {
    file: &'f ComposeFile,
    by_name: HashMap<&'f str, usize>,
    sources: &'f SourceMap,
}

/// The mounts of services, with those of others that `volumes_from` brings.
struct Mounts<'f> {
    view: &'f View<'f>,
    done: HashMap<usize, Vec<Placed<Mount>>>,
}

impl Mounts<'_> {
    /// `validate` has found no circle: what `volumes_from` names is a dependency, too.
    fn of(&mut self, index: usize) -> Vec<Placed<Mount>> {
        if let Some(done) = self.done.get(&index) {
            return done.clone();
        }
        let service = &self.view.file.services[index];
        let mut mounts: Vec<Placed<Mount>> = service.mounts.iter().map(|mount| self.own(mount)).collect();
        for from in &service.volumes_from {
            let Some(&other) = self.view.by_name.get(from.value.service.as_str()) else { continue };
            for mut mount in self.of(other) {
                mount.value.read_only |= from.value.read_only;
                // What is in memory is nobody else's, and what the service says itself goes first.
                let tmpfs = matches!(mount.value.source, MountSource::Tmpfs { .. });
                if !tmpfs && mounts.iter().all(|known| known.value.target != mount.value.target) {
                    mounts.push(mount);
                }
            }
        }
        self.done.insert(index, mounts.clone());
        mounts
    }

    /// A volume that its options mount is a mount like those written at services.
    fn own(&self, mount: &Spanned<Mount>) -> Placed<Mount> {
        let mut meant = mount.value.clone();
        if let MountSource::Volume(name) = &meant.source
            && let Some((source, read_only)) = self.view.file.volumes.get(name).and_then(|v| v.source.clone())
        {
            meant.source = source;
            meant.read_only |= read_only;
        }
        placed(mount, meant, self.view.sources)
    }
}

fn placed<T, U>(at: &Spanned<T>, value: U, sources: &SourceMap) -> Placed<U> {
    Placed { value, place: sources.place(at.span) }
}

fn settle_service(index: usize, view: &View<'_>, mounts: Vec<Placed<Mount>>) -> Service {
    let (file, sources) = (view.file, view.sources);
    let service = &file.services[index];
    let networks = networks_of(service);
    let publish: Vec<_> = settled_ports(service).into_iter().map(|port| placed(&port, port.value, sources)).collect();
    let mut expose: Vec<Placed<_>> = Vec::new();
    let internal = only_internal(&networks, file).is_some();
    let mut seen = BTreeSet::new();
    let declared = service.expose.iter().map(|port| placed(port, port.value, sources));
    let containers = publish.iter().map(|port| Placed { value: port.value.container, place: port.place.clone() });
    for port in declared.chain(containers) {
        if seen.insert(port.value) {
            expose.push(port);
        }
    }
    let egress = match service.egress.as_ref().map(|egress| &egress.value) {
        Some(FileEgress::All) => Egress::All,
        Some(FileEgress::None) => Egress::None,
        Some(FileEgress::Only(rules)) => {
            Egress::Only(rules.iter().map(|rule| placed(rule, rule.value, sources)).collect())
        }
        // Without any network (`network_mode: none`) there is no way out either.
        None if networks.is_empty() || only_internal(&networks, file).is_some() => Egress::None,
        None => Egress::All,
    };
    let connect = service.connect.as_ref().map(|grants| {
        grants
            .iter()
            .filter_map(|grant| {
                Some(placed(grant, Grant { service: known(&grant.value.service)?, port: grant.value.port }, sources))
            })
            .collect()
    });
    // Of what isn't required, `validate` let pass that it isn't there.
    let there = service.depends_on.iter().filter(|other| view.by_name.contains_key(other.value.service.as_str()));
    let depends_on = there.filter_map(|dependency| {
        let meant = Dependency {
            service: known(&dependency.value.service)?,
            condition: dependency.value.condition,
            restart: dependency.value.restart,
            required: dependency.value.required,
        };
        Some(placed(dependency, meant, sources))
    });
    let links = service.links.iter().filter_map(|link| {
        let meant = Link { service: known(&link.value.service)?, alias: link.value.alias.clone() };
        Some(placed(link, meant, sources))
    });
    let files = service.files.iter().filter_map(|reference| {
        let wanted = &reference.value;
        let all = if wanted.secret { &file.secrets } else { &file.configs };
        let meant = ProvidedFile {
            name: wanted.name.clone(),
            secret: wanted.secret,
            target: wanted.target.clone(),
            source: all.get(&wanted.name)?.source.clone().ok()?,
            uid: wanted.uid,
            gid: wanted.gid,
            mode: wanted.mode,
        };
        Some(placed(reference, meant, sources))
    });
    let aliases = service.networks.iter().flatten().flat_map(|network| &network.aliases).chain(&service.container_name);
    let own_name = service.name.value.as_str();
    // 0 is how Docker writes "unlimited".
    let limit = |values: &[Spanned<u64>]| agreed(values).ok().flatten().filter(|limit| *limit > 0);
    Service {
        name: service.name.value.clone(),
        place: sources.place(service.name.span),
        replicas: service.replicas.first().and_then(|replicas| u8::try_from(replicas.value).ok()).unwrap_or(1),
        run: Run {
            container: (service.image.is_some() || service.build.is_some()).then(|| Container {
                name: service.container_name.as_ref().map(|name| name.value.clone()),
                ..service.container.clone()
            }),
            process: service.process.clone(),
            runtime: service.runtime,
        },
        environment: service.environment.clone().into(),
        aliases: aliases.map(|alias| alias.value.clone()).filter(|alias| alias != own_name).collect(),
        networks: networks.into_iter().map(str::to_owned).collect(),
        host_mode: service.network_mode.as_ref().is_some_and(|mode| mode.value == NetworkMode::Host),
        expose,
        // What is only in internal networks has no way in from outside, as under an engine; `validate` says so.
        publish: if internal { Vec::new() } else { publish },
        connect,
        strict: service.strict,
        egress,
        host_ports: service.host_ports.iter().map(|port| placed(port, port.value, sources)).collect(),
        depends_on: depends_on.collect(),
        healthcheck: service.healthcheck.clone(),
        healthcheck_disabled: service.healthcheck_disabled,
        healthcheck_times: service.healthcheck_times,
        restart: service.restart,
        limits: Limits {
            memory_bytes: limit(&service.memory_bytes),
            cpu_milli: limit(&service.cpu_milli),
            pids: limit(&service.pids),
            memory_reservation_bytes: limit(&service.memory_reservation_bytes),
            memory_swap_bytes: service.memory_swap_bytes.as_ref().map(|bytes| bytes.value),
            cpu_shares: service.cpu_shares,
            cpuset: service.cpuset.clone(),
        },
        stop_signal: service.stop_signal.clone(),
        stop_grace_ms: service.stop_grace_ms,
        mounts,
        extra_hosts: service.extra_hosts.clone(),
        log: service.log,
        cap_add: service.cap_add.iter().map(|name| name.value.clone()).collect(),
        cap_drop: service.cap_drop.iter().cloned().collect(),
        read_only: service.read_only,
        unguarded: Vec::new(),
        links: links.collect(),
        files: files.collect(),
        settings: service.settings.clone(),
        update: service.update,
        rollback: service.rollback,
    }
}

/// The name of a service that `validate` has found in the file, so that it parses.
fn known(name: &str) -> Option<ServiceName> {
    ServiceName::parse(name).ok()
}
