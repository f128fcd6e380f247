//! From a valid file to the stack: defaults, merged ports, units and places.
//!
//! Nothing can fail here; what could, was found by `validate`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::edge;
use super::file::{ComposeFile, FileEgress, FileService, NetworkMode};
use super::validate::{agreed, networks_of, only_internal, settled_ports};
use crate::diagnostic::{SourceMap, Spanned};
use crate::names::ServiceName;
use crate::place::Placed;
use crate::stack::{
    Container, Dependency, Egress, Firewall, Grant, Limits, Link, Mount, MountSource, ProvidedFile, Run, Service,
    Stack, Volume,
};

/// The stack that a valid file means.
pub(crate) fn settle(mut file: ComposeFile, sources: &SourceMap) -> Stack {
    let mounts = Mounts::of_all(&file, sources);
    let services = std::mem::take(&mut file.services);
    let edge = file.edge.take().map(|edge| {
        let ports = services.iter().map(|service| (service.name.value.clone(), edge::tcp_ports(service)));
        edge::settle(edge, &ports.collect::<Vec<_>>(), sources)
    });
    let names = services.iter().map(|service| service.name.value.clone()).collect();
    let view = View { file: &file, names, sources };
    let services: Vec<Service> =
        services.into_iter().zip(mounts).map(|(service, mounts)| settle_service(service, &view, mounts)).collect();
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
        edge,
        services,
        project: file.project,
    }
}

/// The file without its services, and their names.
struct View<'f> {
    file: &'f ComposeFile,
    names: HashSet<ServiceName>,
    sources: &'f SourceMap,
}

/// The mounts of services, with those of others that `volumes_from` brings.
struct Mounts<'f> {
    file: &'f ComposeFile,
    sources: &'f SourceMap,
    lenders: HashMap<&'f str, Lender>,
}

/// A service that `volumes_from` names.
struct Lender {
    index: usize,
    /// Once they are settled.
    mounts: Option<Vec<Placed<Mount>>>,
}

impl<'f> Mounts<'f> {
    fn of_all(file: &'f ComposeFile, sources: &'f SourceMap) -> Vec<Vec<Placed<Mount>>> {
        let named: HashSet<&str> = file
            .services
            .iter()
            .flat_map(|service| &service.volumes_from)
            .map(|from| from.value.service.as_str())
            .collect();
        let services = file.services.iter().enumerate().map(|(index, service)| (service.name.value.as_str(), index));
        let lenders = services
            .filter(|(name, _)| named.contains(name))
            .map(|(name, index)| (name, Lender { index, mounts: None }));
        let mut mounts = Self { file, sources, lenders: lenders.collect() };
        (0..file.services.len()).map(|index| mounts.of(index)).collect()
    }

    /// `validate` has found no circle: what `volumes_from` names is a dependency, too.
    fn of(&mut self, index: usize) -> Vec<Placed<Mount>> {
        let service = &self.file.services[index];
        let name = service.name.value.as_str();
        if let Some(done) = self.lenders.get(name).and_then(|lender| lender.mounts.as_ref()) {
            return done.clone();
        }
        let mut mounts: Vec<Placed<Mount>> = service.mounts.iter().map(|mount| self.own(mount)).collect();
        for from in &service.volumes_from {
            let Some(&Lender { index: other, .. }) = self.lenders.get(from.value.service.as_str()) else { continue };
            for mut mount in self.of(other) {
                mount.value.read_only |= from.value.read_only;
                // What is in memory is nobody else's, and what the service says itself goes first.
                let tmpfs = matches!(mount.value.source, MountSource::Tmpfs { .. });
                if !tmpfs && mounts.iter().all(|known| known.value.target != mount.value.target) {
                    mounts.push(mount);
                }
            }
        }
        if let Some(lender) = self.lenders.get_mut(name) {
            lender.mounts = Some(mounts.clone());
        }
        mounts
    }

    /// A volume that its options mount is a mount like those written at services.
    fn own(&self, mount: &Spanned<Mount>) -> Placed<Mount> {
        let mut meant = mount.value.clone();
        if let MountSource::Volume(name) = &meant.source
            && let Some((source, read_only)) = self.file.volumes.get(name).and_then(|v| v.source.clone())
        {
            meant.source = source;
            meant.read_only |= read_only;
        }
        placed(mount, meant, self.sources)
    }
}

fn placed<T, U>(at: &Spanned<T>, value: U, sources: &SourceMap) -> Placed<U> {
    Placed { value, place: sources.place(at.span) }
}

fn settle_service(service: FileService, view: &View<'_>, mounts: Vec<Placed<Mount>>) -> Service {
    let (file, sources) = (view.file, view.sources);
    let networks = networks_of(&service);
    let publish: Vec<_> = settled_ports(&service).into_iter().map(|port| placed(&port, port.value, sources)).collect();
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
        None if networks.is_empty() || internal => Egress::None,
        None => Egress::All,
    };
    let networks = networks.into_iter().map(str::to_owned).collect();
    let connect = service.connect.as_ref().map(|grants| {
        grants
            .iter()
            .filter_map(|grant| {
                Some(placed(grant, Grant { service: known(&grant.value.service)?, port: grant.value.port }, sources))
            })
            .collect()
    });
    // Of what isn't required, `validate` let pass that it isn't there.
    let depends_on = service.depends_on.iter().filter_map(|dependency| {
        let meant = Dependency {
            service: known(&dependency.value.service).filter(|name| view.names.contains(name))?,
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
    let aliases = aliases.map(|alias| &alias.value).filter(|alias| *alias != own_name).cloned().collect();
    let runs_image = service.image.is_some() || service.build.is_some();
    let container_name = service.container_name.map(|name| name.value);
    let container = runs_image.then_some(Container { name: container_name, ..service.container });
    // 0 is how Docker writes "unlimited".
    let limit = |values: &[Spanned<u64>]| agreed(values).ok().flatten().filter(|limit| *limit > 0);
    Service {
        name: service.name.value,
        place: sources.place(service.name.span),
        replicas: service.replicas.first().and_then(|replicas| u8::try_from(replicas.value).ok()).unwrap_or(1),
        run: Run { container, process: service.process, runtime: service.runtime },
        environment: service.environment.into(),
        aliases,
        networks,
        host_mode: service.network_mode.as_ref().is_some_and(|mode| mode.value == NetworkMode::Host),
        expose,
        // What is only in internal networks has no way in from outside, as under an engine; `validate` says so.
        publish: if internal { Vec::new() } else { publish },
        connect,
        strict: service.strict,
        egress,
        host_ports: service.host_ports.iter().map(|port| placed(port, port.value, sources)).collect(),
        depends_on: depends_on.collect(),
        healthcheck: service.healthcheck,
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
            cpuset: service.cpuset,
        },
        stop_signal: service.stop_signal,
        stop_grace_ms: service.stop_grace_ms,
        mounts,
        extra_hosts: service.extra_hosts,
        log: service.log,
        cap_add: service.cap_add.into_iter().map(|name| name.value).collect(),
        cap_drop: service.cap_drop.into_iter().collect(),
        read_only: service.read_only,
        unguarded: Vec::new(),
        links: links.collect(),
        files: files.collect(),
        settings: service.settings,
        update: service.update,
        rollback: service.rollback,
    }
}

/// The name of a service that `validate` has found in the file, so that it parses.
fn known(name: &str) -> Option<ServiceName> {
    ServiceName::parse(name).ok()
}
