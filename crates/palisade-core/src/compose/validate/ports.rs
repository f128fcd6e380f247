//! Ports of the host: nobody's is in anybody else's way.

use std::collections::HashMap;
use std::net::IpAddr;

use super::super::file::{ComposeFile, FileService, NetworkMode};
use crate::diagnostic::{Diagnostic, Sink, Span, Spanned, quoted};
use crate::stack::{PortProto, Publish};

/// So many ports of the host may be published by one stack.
const PUBLISHED_MAX: usize = 16_384;

/// The service's published ports; `0.0.0.0` and `[::]` together are "all addresses", and what is written twice counts
/// once.
pub(crate) fn settled(service: &FileService) -> Vec<Spanned<Publish>> {
    let mut settled: Vec<Spanned<Publish>> = Vec::with_capacity(service.ports.len());
    let mut by_ports: HashMap<(u16, PortProto), Vec<usize>> = HashMap::new();
    for port in &service.ports {
        let same_ports = by_ports.entry((port.value.host_port, port.value.container)).or_default();
        let mut merged = false;
        for &index in same_ports.iter() {
            let earlier = &mut settled[index].value.host_ip;
            let wildcard = |ip: &Option<IpAddr>| ip.is_none_or(|ip| ip.is_unspecified());
            if *earlier == port.value.host_ip {
                merged = true;
            } else if wildcard(earlier) && wildcard(&port.value.host_ip) {
                *earlier = None;
                merged = true;
            }
        }
        if !merged {
            same_ports.push(settled.len());
            settled.push(port.clone());
        }
    }
    settled
}

fn overlap(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    match (a, b) {
        (None, _) | (_, None) => true,
        (Some(a), Some(b)) => a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified())),
    }
}

fn shown(publish: &Publish) -> String {
    let port = PortProto { port: publish.host_port, proto: publish.container.proto };
    match publish.host_ip {
        None => format!("port {port}"),
        Some(IpAddr::V4(ip)) => format!("port {port} on {ip}"),
        Some(IpAddr::V6(ip)) => format!("port {port} on [{ip}]"),
    }
}

/// Reports every conflict.
pub(super) fn validate(file: &ComposeFile, sink: &mut Sink) {
    let published: Vec<Vec<Spanned<Publish>>> = file.services.iter().map(settled).collect();
    let total: usize = published.iter().map(Vec::len).sum();
    if total > PUBLISHED_MAX {
        let last = published.iter().rev().find_map(|ports| ports.last()).map(|port| port.span);
        let diagnostic = Diagnostic::error(
            "too-many",
            format!("a stack publishes at most {PUBLISHED_MAX} ports, and this one {total}"),
        );
        sink.push(match last {
            Some(span) => diagnostic.at(span, ""),
            None => diagnostic,
        });
        return;
    }
    let mut on_host: HashMap<PortProto, Vec<(&FileService, &Spanned<Publish>)>> = HashMap::new();
    for (service, ports) in file.services.iter().zip(&published) {
        own_ports(service, ports, sink);
        for port in ports {
            let key = PortProto { port: port.value.host_port, proto: port.value.container.proto };
            let others = on_host.entry(key).or_default();
            match others.iter().find(|(_, other)| overlap(other.value.host_ip, port.value.host_ip)) {
                Some((owner, other)) => {
                    let (name, owner_name) = (service.name.value.as_str(), owner.name.value.as_str());
                    let who = if name == owner_name {
                        format!("{} publishes", quoted(name))
                    } else {
                        format!("{} and {} both publish", quoted(owner_name), quoted(name))
                    };
                    let twice = if name == owner_name { " twice" } else { "" };
                    sink.push(
                        Diagnostic::error("port-conflict", format!("{who} {}{twice}", shown(&port.value)))
                            .at(port.span, "")
                            .also(other.span, "published here first")
                            .hint("give one of them another port of the host: the number before the `:`"),
                    );
                }
                None => others.push((service, port)),
            }
        }
    }
    private_ports(file, &published, &on_host, sink);
}

fn own_ports(service: &FileService, ports: &[Spanned<Publish>], sink: &mut Sink) {
    let mut by_container: HashMap<PortProto, Span> = HashMap::new();
    for port in ports {
        if let Some(first) = by_container.insert(port.value.container, port.span) {
            sink.push(
                Diagnostic::error("refused-value", format!("the service's port {} is published twice", port.value.container))
                    .at(port.span, "")
                    .also(first, "published here first")
                    .hint("one host port for each port of a service for now: keep one, and let the firewall or a proxy forward the other"),
            );
        }
    }
    let host = service.network_mode.as_ref().filter(|mode| mode.value == NetworkMode::Host);
    if let (Some(mode), Some(port)) = (host, ports.first()) {
        sink.push(
            Diagnostic::note(
                "ports-in-host-mode",
                format!("`docker compose` ignores `ports` in host mode; Palisade publishes {}", shown(&port.value)),
            )
            .at(port.span, "")
            .also(mode.span, "host mode"),
        );
    }
}

/// A published port is bound on all addresses of the host, private ones included: no other service can have it there.
fn private_ports(
    file: &ComposeFile,
    published: &[Vec<Spanned<Publish>>],
    on_host: &HashMap<PortProto, Vec<(&FileService, &Spanned<Publish>)>>,
    sink: &mut Sink,
) {
    for (service, own) in file.services.iter().zip(published) {
        for exposed in &service.expose {
            if own.iter().any(|port| port.value.container == exposed.value) {
                continue;
            }
            let everywhere = |port: &Publish| port.host_ip.is_none_or(|ip| ip.is_unspecified());
            let taken = on_host.get(&exposed.value).and_then(|ports| ports.iter().find(|(_, p)| everywhere(&p.value)));
            if let Some((owner, port)) = taken {
                let (owner, name) = (quoted(owner.name.value.as_str()), quoted(service.name.value.as_str()));
                sink.push(
                    Diagnostic::error(
                        "port-conflict",
                        format!(
                            "{owner} publishes {} on every address, and {name} has it as a private port",
                            exposed.value
                        ),
                    )
                    .at(port.span, "this takes the port on every address of the host")
                    .also(exposed.span, format!("{name} could not bind it any more"))
                    .hint("publish it at another port of the host, or on one address: `\"192.0.2.1:…\"`"),
                );
            }
        }
    }
}
