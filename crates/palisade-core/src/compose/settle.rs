//! From a valid file to the stack: defaults, merged ports, units and places.
//!
//! Nothing can fail here; what could, was found by `validate`.

use std::collections::BTreeSet;

use super::file::{ComposeFile, FileEgress, FileService, NetworkMode};
use super::validate::{agreed, networks_of, only_internal, settled_ports};
use crate::diagnostic::{SourceMap, Spanned};
use crate::names::ServiceName;
use crate::place::Placed;
use crate::stack::{
    Container, Dependency, Egress, Firewall, Grant, Limits, MountSource, ProcessSettings, Run, Service, Stack, Volume,
};

/// The stack that a valid file means.
pub(crate) fn settle(file: ComposeFile, sources: &SourceMap) -> Stack {
    let services: Vec<Service> = file.services.iter().map(|service| settle_service(service, &file, sources)).collect();
    let mounts = services.iter().flat_map(|service| &service.mounts);
    let volumes = mounts.filter_map(|mount| match &mount.value.source {
        MountSource::Volume(name) => Some((name.clone(), Volume::default())),
        _ => None,
    });
    Stack {
        volumes: volumes.collect(),
        services,
        firewall: Firewall {
            allow: file.firewall_allow.iter().map(|port| placed(port, port.value, sources)).collect(),
            disabled: file.firewall_disabled,
        },
        project: file.project,
    }
}

fn placed<T, U>(at: &Spanned<T>, value: U, sources: &SourceMap) -> Placed<U> {
    Placed { value, place: sources.place(at.span) }
}

fn settle_service(service: &FileService, file: &ComposeFile, sources: &SourceMap) -> Service {
    let networks = networks_of(service);
    let publish: Vec<_> = settled_ports(service).into_iter().map(|port| placed(&port, port.value, sources)).collect();
    let mut expose: Vec<Placed<_>> = Vec::new();
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
        None if only_internal(&networks, file).is_some() => Egress::None,
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
    let depends_on = service.depends_on.iter().filter_map(|dependency| {
        let meant = Dependency {
            service: known(&dependency.value.service)?,
            condition: dependency.value.condition,
            restart: dependency.value.restart,
            required: true,
        };
        Some(placed(dependency, meant, sources))
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
            container: service
                .image
                .as_ref()
                .map(|image| Container { image: Some(image.value.clone()), ..Container::default() }),
            process: service.process.clone(),
        },
        environment: service.environment.clone().into(),
        aliases: aliases.map(|alias| alias.value.clone()).filter(|alias| alias != own_name).collect(),
        networks: networks.into_iter().map(str::to_owned).collect(),
        host_mode: service.network_mode.as_ref().is_some_and(|mode| mode.value == NetworkMode::Host),
        expose,
        publish,
        connect,
        strict: service.strict,
        egress,
        host_ports: service.host_ports.iter().map(|port| placed(port, port.value, sources)).collect(),
        depends_on: depends_on.collect(),
        healthcheck: service.healthcheck.clone(),
        restart: service.restart,
        limits: Limits {
            memory_bytes: limit(&service.memory_bytes),
            cpu_milli: limit(&service.cpu_milli),
            pids: limit(&service.pids),
            ..Limits::default()
        },
        stop_signal: service.stop_signal.clone(),
        stop_grace_ms: service.stop_grace_ms,
        mounts: service.mounts.iter().map(|mount| placed(mount, mount.value.clone(), sources)).collect(),
        extra_hosts: service.extra_hosts.clone(),
        log: service.log,
        cap_add: service.cap_add.iter().cloned().collect(),
        cap_drop: service.cap_drop.iter().cloned().collect(),
        read_only: service.read_only,
        unguarded: Vec::new(),
        links: Vec::new(),
        files: Vec::new(),
        settings: ProcessSettings::default(),
    }
}

/// The name of a service that `validate` has found in the file, so that it parses.
fn known(name: &str) -> Option<ServiceName> {
    ServiceName::parse(name).ok()
}
