//! What the parts of a file mean together: names refer to something, and nothing is in anything else's way.
//!
//! It only looks: the stack is made in `settle`, and only when nothing was found here.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::file::{ComposeFile, FileEgress, FileService, NetworkMode};
use super::suggest::nearest;
use crate::address::{INSTANCES_MAX, SERVICES_MAX};
use crate::diagnostic::{Diagnostic, Sink, Span, Spanned, quoted};
use crate::policy::{EGRESS_RULES_MAX, NETWORKS_MAX};
use crate::stack::{Condition, MountSource, Proto, Restart};

mod edge;
mod ports;
mod provided;
pub(crate) use edge::given_certificates;
pub(crate) use ports::settled as settled_ports;

/// The network of services that name none.
pub(crate) const DEFAULT_NETWORK: &str = "default";

/// The networks that a service is in.
pub(crate) fn networks_of(service: &FileService) -> BTreeSet<&str> {
    if service.network_mode.as_ref().is_some_and(|mode| mode.value == NetworkMode::None) {
        return BTreeSet::new();
    }
    match &service.networks {
        Some(uses) if !uses.is_empty() => uses.iter().map(|network| network.name.value.as_str()).collect(),
        _ => BTreeSet::from([DEFAULT_NETWORK]),
    }
}

/// The file with what is looked up again and again.
struct View<'f> {
    file: &'f ComposeFile,
    by_name: HashMap<&'f str, usize>,
    networks: Vec<BTreeSet<&'f str>>,
}

impl<'f> View<'f> {
    fn service(&self, name: &str) -> Option<&'f FileService> {
        self.by_name.get(name).map(|index| &self.file.services[*index])
    }
    /// "did you mean …", or what else to do.
    fn suggest(&self, sink: &Sink, name: &str, otherwise: &str) -> String {
        suggest(sink, name, self.by_name.keys().copied()).unwrap_or_else(|| otherwise.to_owned())
    }
}

/// "did you mean …", while anybody reads on.
fn suggest<'a>(sink: &Sink, name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let near = if sink.is_full() { None } else { nearest(name, known) };
    near.map(|near| format!("did you mean `{near}`?"))
}

/// Reports everything that is wrong.
pub(crate) fn validate(file: &ComposeFile, sink: &mut Sink) {
    let view = View {
        file,
        by_name: file.services.iter().enumerate().map(|(index, s)| (s.name.value.as_str(), index)).collect(),
        networks: file.services.iter().map(networks_of).collect(),
    };
    if let Some(service) = file.services.get(usize::from(SERVICES_MAX)) {
        sink.push(
            Diagnostic::error("too-many", format!("a host has private addresses for {SERVICES_MAX} services"))
                .at(service.name.span, "this one is too much"),
        );
    }
    for (index, (service, networks)) in file.services.iter().zip(&view.networks).enumerate() {
        runnable(service, sink);
        numbers(service, sink);
        memory(service, sink);
        mounts(service, file, sink);
        provided::files(service, file, sink);
        provided::links(index, &view, sink);
        provided::guard(service, sink);
        host_gateway(service, sink);
        used_networks(service, file, sink);
        egress(service, networks, file, sink);
        unreachable_ports(service, networks, file, sink);
        dependencies(service, &view, sink);
        grants(service, networks, &view, sink);
    }
    network_count(&view, sink);
    names(&view, sink);
    cycles(&view, sink);
    ports::validate(file, sink);
    edge::validate(&view, sink);
}

fn runnable(service: &FileService, sink: &mut Sink) {
    if service.process_written || service.image.is_some() || service.build.is_some() {
        return;
    }
    let name = quoted(service.name.value.as_str());
    sink.push(
        Diagnostic::error("no-process", format!("{name} says nothing about what to run"))
            .at(service.name.span, "")
            .hint("give it an `image` or a `build`; or say how to run it as a process of the host: `x-palisade: {process: {command: [\"…\"]}}`"),
    );
}

/// The value, when all that were written agree.
pub(crate) fn agreed(values: &[Spanned<u64>]) -> Result<Option<u64>, (&Spanned<u64>, &Spanned<u64>)> {
    match values {
        [first, rest @ ..] => match rest.iter().find(|other| other.value != first.value) {
            Some(other) => Err((first, other)),
            None => Ok(Some(first.value)),
        },
        [] => Ok(None),
    }
}

fn numbers(service: &FileService, sink: &mut Sink) {
    let pairs: [(&str, &[Spanned<u64>]); 5] = [
        ("`scale` and `deploy.replicas`", &service.replicas),
        ("`mem_limit` and `deploy.resources.limits.memory`", &service.memory_bytes),
        ("`mem_reservation` and `deploy.resources.reservations.memory`", &service.memory_reservation_bytes),
        ("`cpus`, `cpu_count`, `cpu_quota` and `deploy.resources.limits.cpus`", &service.cpu_milli),
        ("`pids_limit` and `deploy.resources.limits.pids`", &service.pids),
    ];
    for (what, values) in pairs {
        if let Err((first, other)) = agreed(values) {
            sink.push(
                Diagnostic::error("conflict", format!("{what} say different things"))
                    .at(other.span, "")
                    .also(first.span, "the other one")
                    .hint("keep one of them"),
            );
        }
    }
    let Some(replicas) = service.replicas.first() else { return };
    let max = u64::from(INSTANCES_MAX);
    if replicas.value > max {
        sink.push(
            Diagnostic::error("invalid-value", format!("a service has at most {max} replicas, not {}", replicas.value))
                .at(replicas.span, "")
                .hint("split the service into several"),
        );
    }
    if replicas.value > 1 {
        if let Some(port) = service.ports.iter().find(|port| port.value.container.proto == Proto::Udp) {
            let message = format!("{} replicas can't share one UDP port of the host", replicas.value);
            sink.push(
                Diagnostic::error("replicas-publish", message)
                    .at(replicas.span, "")
                    .also(port.span, "published here")
                    .hint("publish a proxy service that connects to this one, or run one replica; TCP ports can be shared, and peers reach all replicas by the service's name"),
            );
        }
        if let Some(name) = &service.container_name {
            sink.push(
                Diagnostic::error("conflict", format!("{} replicas can't have one `container_name`", replicas.value))
                    .at(name.span, "")
                    .also(replicas.span, "replicas are given here")
                    .hint("use an alias below `networks`: it stands for all replicas"),
            );
        }
    }
}

/// Reservations and swap have a meaning only beside the limit.
fn memory(service: &FileService, sink: &mut Sink) {
    let limit = agreed(&service.memory_bytes).ok().flatten().filter(|bytes| *bytes > 0);
    if let (Some(reserved), Some(limit)) = (service.memory_reservation_bytes.first(), limit)
        && reserved.value > limit
    {
        sink.push(
            Diagnostic::error("conflict", "more memory is reserved than the service may have")
                .at(reserved.span, "")
                .also(service.memory_bytes[0].span, "the limit")
                .hint("reserve at most as much as the limit"),
        );
    }
    let Some(swap) = &service.memory_swap_bytes else { return };
    match limit {
        None if swap.value != u64::MAX => sink.push(
            Diagnostic::error("conflict", "`memswap_limit` needs a limit of memory beside it")
                .at(swap.span, "it counts memory and swap together")
                .hint("add `mem_limit`, or remove it"),
        ),
        Some(limit) if swap.value < limit => sink.push(
            Diagnostic::error("conflict", "`memswap_limit` is less than the limit of memory")
                .at(swap.span, "it counts memory and swap together")
                .also(service.memory_bytes[0].span, "the limit of memory")
                .hint("the same number means no swap"),
        ),
        _ => {}
    }
}

/// What is reached at the host's own address needs to be said.
fn host_gateway(service: &FileService, sink: &mut Sink) {
    let Some(span) = service.host_gateway.filter(|_| service.host_ports.is_empty()) else { return };
    sink.push(
        Diagnostic::note(
            "host-gateway",
            "`host-gateway` is this host, and none of its own ports is open to the service",
        )
        .at(span, "")
        .hint("list the ports that it needs: `x-palisade: {host: [5432]}`"),
    );
}

fn mounts(service: &FileService, file: &ComposeFile, sink: &mut Sink) {
    let mut targets: HashMap<&std::path::Path, Span> = HashMap::new();
    for mount in &service.mounts {
        if let Some(first) = targets.insert(&mount.value.target, mount.span) {
            let target = quoted(&mount.value.target.to_string_lossy());
            sink.push(
                Diagnostic::error("conflict", format!("two mounts have the target {target}"))
                    .at(mount.span, "")
                    .also(first, "the first one")
                    .hint("only one of them would be seen: remove the other"),
            );
        }
        if let MountSource::Volume(name) = &mount.value.source
            && !file.volumes.contains_key(name)
        {
            let near = suggest(sink, name, file.volumes.keys().map(String::as_str));
            let hint = near.unwrap_or_else(|| {
                format!("add `{name}:` below `volumes:` at the file's top level, or write `./{name}` for a folder")
            });
            sink.push(
                Diagnostic::error("unknown-volume", format!("there is no volume {}", quoted(name)))
                    .at(mount.span, "")
                    .hint(hint),
            );
        }
    }
}

fn used_networks(service: &FileService, file: &ComposeFile, sink: &mut Sink) {
    for network in service.networks.iter().flatten() {
        let name = &network.name.value;
        if name != DEFAULT_NETWORK && !file.networks.contains_key(name) {
            let near = suggest(sink, name, file.networks.keys().map(String::as_str));
            let hint = near.unwrap_or_else(|| format!("add `{name}:` below `networks:` at the file's top level"));
            sink.push(
                Diagnostic::error("unknown-network", format!("there is no network {}", quoted(name)))
                    .at(network.name.span, "")
                    .hint(hint),
            );
        }
    }
}

/// Every network that the service is in is `internal: true`.
pub(crate) fn only_internal<'a>(networks: &BTreeSet<&'a str>, file: &ComposeFile) -> Option<&'a str> {
    let internal = |name: &&str| file.networks.get(*name).is_some_and(|network| network.internal);
    networks.first().copied().filter(|_| networks.iter().all(internal))
}

/// `ports` of a service that has no way in from outside.
fn unreachable_ports(service: &FileService, networks: &BTreeSet<&str>, file: &ComposeFile, sink: &mut Sink) {
    let (Some(port), Some(network)) = (service.ports.first(), only_internal(networks, file)) else { return };
    let name = quoted(service.name.value.as_str());
    let diagnostic = Diagnostic::warning(
        "internal-ports",
        format!("the ports of {name} are not published: all its networks are internal"),
    )
    .at(port.span, "reachable for peers only");
    let diagnostic = match file.networks.get(network) {
        Some(network) => diagnostic.also(network.span, "this network is internal"),
        None => diagnostic,
    };
    sink.push(diagnostic.hint("put the service into another network too, or remove its `ports`"));
}

fn egress(service: &FileService, networks: &BTreeSet<&str>, file: &ComposeFile, sink: &mut Sink) {
    let Some(egress) = &service.egress else { return };
    if let FileEgress::Only(rules) = &egress.value
        && let Some(rule) = rules.get(EGRESS_RULES_MAX)
    {
        sink.push(
            Diagnostic::error(
                "too-many",
                format!("a service has at most {EGRESS_RULES_MAX} egress rules, and this one has {}", rules.len()),
            )
            .at(rule.span, "this one is too much")
            .hint("join neighbouring networks into larger ones"),
        );
    }
    if let (Some(network), false) = (only_internal(networks, file), matches!(egress.value, FileEgress::None)) {
        let mut diagnostic = Diagnostic::error("conflict", "a service whose networks are all internal has no egress")
            .at(egress.span, "egress is given here");
        if let Some(network) = file.networks.get(network) {
            diagnostic = diagnostic.also(network.span, "`internal: true`");
        }
        sink.push(diagnostic.hint("put the service into one more network, or remove `egress`"));
    }
}

fn dependencies(service: &FileService, view: &View<'_>, sink: &mut Sink) {
    let mut seen = HashSet::new();
    for dependency in &service.depends_on {
        let name = &dependency.value.service;
        if !seen.insert(name) {
            sink.push(
                Diagnostic::error("duplicate-key", format!("{} is listed twice in `depends_on`", quoted(name)))
                    .at(dependency.span, "")
                    .hint("keep one of them"),
            );
        }
        let Some(other) = view.service(name) else {
            if !dependency.value.required {
                continue;
            }
            sink.push(
                Diagnostic::error("unknown-service", format!("there is no service {}", quoted(name)))
                    .at(dependency.span, format!("{} waits for it", quoted(service.name.value.as_str())))
                    .hint(view.suggest(sink, name, "add the service, or remove it from `depends_on`")),
            );
            continue;
        };
        // A health check with a mistake in it was reported where the mistake is.
        let missing = other.healthcheck_span.is_none() || other.healthcheck_disabled;
        if dependency.value.condition == Condition::ServiceHealthy && missing {
            let (span, label) = match other.healthcheck_span {
                Some(span) => (span, "its health check is disabled"),
                None => (other.name.span, "this service has no `healthcheck`"),
            };
            sink.push(
                Diagnostic::error(
                    "no-healthcheck",
                    format!(
                        "{} would wait forever: {} has no health check",
                        quoted(service.name.value.as_str()),
                        quoted(name)
                    ),
                )
                .at(dependency.span, "waits for it to be healthy")
                .also(span, label)
                .hint(format!("give {} a `healthcheck`, or wait for `service_started`", quoted(name))),
            );
        }
        let again = matches!(other.restart, Restart::Always | Restart::UnlessStopped);
        if dependency.value.condition == Condition::ServiceCompletedSuccessfully && again {
            sink.push(
                Diagnostic::error(
                    "never-completes",
                    format!("{} is always started again, so it never completes", quoted(name)),
                )
                .at(dependency.span, "waits for it to complete")
                .also(other.name.span, "its `restart` starts it again")
                .hint(format!("give {} `restart: on-failure`", quoted(name))),
            );
        }
    }
}

fn grants(service: &FileService, networks: &BTreeSet<&str>, view: &View<'_>, sink: &mut Sink) {
    let own_name = quoted(service.name.value.as_str());
    for grant in service.connect.iter().flatten() {
        let name = &grant.value.service;
        let Some(&index) = view.by_name.get(name.as_str()) else {
            sink.push(
                Diagnostic::error("unknown-peer", format!("there is no service {} to connect to", quoted(name)))
                    .at(grant.span, "")
                    .hint(view.suggest(sink, name, "`connect` lists services of this file; what is outside goes into `egress`, the host's own services into `host`")),
            );
            continue;
        };
        let peer = &view.file.services[index];
        if peer.name.value == service.name.value {
            continue;
        }
        if networks.is_disjoint(&view.networks[index]) {
            let list = |networks: &BTreeSet<&str>| match networks.len() {
                0 => "is in no network".to_owned(),
                _ => format!("is in `{}`", networks.iter().copied().collect::<Vec<_>>().join("`, `")),
            };
            sink.push(
                Diagnostic::error("no-shared-network", format!("{own_name} and {} share no network", quoted(name)))
                    .at(grant.span, "can't be connected to")
                    .also(service.name.span, list(networks))
                    .also(peer.name.span, list(&view.networks[index]))
                    .hint(
                        "put both into one network, or remove the peer from `connect`: it narrows what networks allow",
                    ),
            );
        }
        let Some(port) = grant.value.port else { continue };
        let declared = || peer.expose.iter().map(|p| p.value).chain(peer.ports.iter().map(|p| p.value.container));
        if !declared().any(|declared| declared == port) {
            let ports: Vec<String> = declared().take(8).map(|port| port.to_string()).collect();
            let message = format!("{} does not declare port {port}", quoted(name));
            let hint = format!("add it to `expose` of {}, or correct the port", quoted(name));
            if peer.strict {
                sink.push(
                    Diagnostic::error("undeclared-port", message)
                        .at(grant.span, "")
                        .also(peer.name.span, "`strict`: it can listen on declared ports only")
                        .hint(hint),
                );
            } else if !ports.is_empty() {
                sink.push(
                    Diagnostic::warning("undeclared-port", message)
                        .at(grant.span, "")
                        .also(peer.name.span, format!("declares {}", ports.join(", ")))
                        .hint(hint),
                );
            }
        }
    }
}

fn network_count(view: &View<'_>, sink: &mut Sink) {
    let mut used = BTreeSet::new();
    for (service, networks) in view.file.services.iter().zip(&view.networks) {
        for network in networks {
            if used.insert(network) && used.len() == NETWORKS_MAX + 1 {
                let uses = service.networks.iter().flatten();
                let span = uses.clone().find(|u| u.name.value == **network).map_or(service.name.span, |u| u.name.span);
                sink.push(
                    Diagnostic::error("too-many", format!("a stack has at most {NETWORKS_MAX} networks"))
                        .at(span, "this one is too much")
                        .hint("use fewer networks, and `x-palisade.connect` to narrow who reaches whom"),
                );
            }
        }
    }
}

/// Other names of services: each must stand for one service.
fn names(view: &View<'_>, sink: &mut Sink) {
    let mut owners: HashMap<&str, (&FileService, Span)> = HashMap::new();
    for service in &view.file.services {
        let aliases = service.networks.iter().flatten().flat_map(|network| &network.aliases);
        for alias in aliases.chain(&service.container_name) {
            let other = match view.service(&alias.value) {
                Some(named) => Some((named, named.name.span)),
                None => owners.get(alias.value.as_str()).copied(),
            };
            match other {
                Some((owner, span)) if owner.name.value != service.name.value => sink.push(
                    Diagnostic::error(
                        "ambiguous-name",
                        format!("the name {} stands for two services", quoted(&alias.value)),
                    )
                    .at(alias.span, format!("for {} here", quoted(service.name.value.as_str())))
                    .also(span, format!("for {} here", quoted(owner.name.value.as_str())))
                    .hint("give one of them another name; to spread connections over instances, use `deploy.replicas`"),
                ),
                _ => {
                    owners.insert(&alias.value, (service, alias.span));
                }
            }
        }
    }
}

/// Follows `depends_on` from each service, without recursion: a file can hold a very long chain.
fn cycles(view: &View<'_>, sink: &mut Sink) {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        OnPath,
        Done,
    }
    let services = &view.file.services;
    let mut marks = vec![Mark::New; services.len()];
    for start in 0..services.len() {
        if marks[start] != Mark::New {
            continue;
        }
        // Each step: a service, and which of its dependencies comes next.
        let mut path: Vec<(usize, usize)> = vec![(start, 0)];
        marks[start] = Mark::OnPath;
        while let Some((service, next)) = path.last_mut() {
            let Some(dependency) = services[*service].depends_on.get(*next) else {
                marks[*service] = Mark::Done;
                path.pop();
                continue;
            };
            *next += 1;
            let Some(&other) = view.by_name.get(dependency.value.service.as_str()) else { continue };
            match marks[other] {
                Mark::Done => {}
                Mark::New => {
                    marks[other] = Mark::OnPath;
                    path.push((other, 0));
                }
                Mark::OnPath => {
                    let from = path.iter().position(|(service, _)| *service == other).unwrap_or(0);
                    report_cycle(view, &path[from..], sink);
                }
            }
        }
    }
}

fn report_cycle(view: &View<'_>, cycle: &[(usize, usize)], sink: &mut Sink) {
    const SHOWN_MAX: usize = 12;
    let name = |index: usize| view.file.services[index].name.value.as_str();
    let mut names: Vec<&str> = cycle.iter().map(|(service, _)| name(*service)).collect();
    if names.len() > SHOWN_MAX {
        names.truncate(SHOWN_MAX);
        names.push("…");
    }
    names.push(name(cycle[0].0));
    // `next` has already moved on to the dependency after the one that was followed.
    let edge = |(service, next): &(usize, usize)| &view.file.services[*service].depends_on[next - 1];
    let (last, others) = (cycle.len() - 1, cycle.len().min(SHOWN_MAX) - 1);
    let closing = edge(&cycle[last]);
    let mut diagnostic =
        Diagnostic::error("cycle", format!("services wait for each other in a circle: {}", names.join(" → ")))
            .at(closing.span, format!("`{}` waits for `{}`", name(cycle[last].0), closing.value.service));
    for step in &cycle[..others] {
        let dependency = edge(step);
        diagnostic =
            diagnostic.also(dependency.span, format!("`{}` waits for `{}`", name(step.0), dependency.value.service));
    }
    sink.push(
        diagnostic.hint("remove one of these: a service that can wait for a peer by itself needs no `depends_on`"),
    );
}
