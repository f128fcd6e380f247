//! From the edge as written to the edge as meant.
//!
//! Nothing can fail here; what could, was found by `validate`.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::super::file::FileService;
use super::{FileCertificate, FileEdge, FileUpstream, acme};
use crate::diagnostic::SourceMap;
use crate::edge::{CertificateSource, Domain, Edge, Route, Upstream};
use crate::names::ServiceName;
use crate::place::Placed;
use crate::stack::Proto;

/// `certificates`, by whom they are for.
pub(crate) struct Sources<'f>(HashMap<Option<&'f str>, &'f FileCertificate>);

impl<'f> Sources<'f> {
    pub(crate) fn new(edge: &'f FileEdge) -> Self {
        Self(edge.certificates.iter().map(|known| (known.domain.value.as_deref(), known)).collect())
    }

    /// Which one is for the domain: its own, that of the wildcard above it, or the one for all others.
    pub(crate) fn of(&self, domain: &str) -> Option<&'f FileCertificate> {
        let named = |name: &str| self.0.get(&Some(name)).copied();
        let above = || {
            let (_, parent) = domain.split_once('.')?;
            named(&format!("*.{parent}"))
        };
        named(domain).or_else(above).or_else(|| self.0.get(&None).copied())
    }
}

/// TCP ports that the service declares, each once.
pub(crate) fn tcp_ports(service: &FileService) -> Vec<u16> {
    let (mut ports, mut seen) = (Vec::new(), HashSet::new());
    let declared = service.expose.iter().map(|port| port.value);
    for port in declared.chain(service.ports.iter().map(|port| port.value.container)) {
        if port.proto == Proto::Tcp && seen.insert(port.port) {
            ports.push(port.port);
        }
    }
    ports
}

/// The edge that a valid file means.
pub(crate) fn settle(edge: FileEdge, services: &[(ServiceName, Vec<u16>)], sources: &SourceMap) -> Edge {
    let services: HashMap<&str, &(ServiceName, Vec<u16>)> =
        services.iter().map(|service| (service.0.as_str(), service)).collect();
    let upstream = |to: &FileUpstream| {
        let (name, ports) = services.get(to.service.as_str())?;
        Some(Upstream { service: name.clone(), port: to.port.or_else(|| ports.first().copied())? })
    };
    let sources_of = Sources::new(&edge);
    let mut certificates: BTreeMap<Domain, CertificateSource> = BTreeMap::new();
    for domain in edge.routes.iter().flat_map(|route| &route.domains) {
        let source = sources_of.of(&domain.value).and_then(|known| known.source.clone());
        certificates.insert(domain.value.clone(), source.unwrap_or(CertificateSource::Acme));
    }
    let ordered = certificates.values().any(|source| *source == CertificateSource::Acme);
    let acme = edge.acme.map_or_else(acme::usual, |acme| acme.value.acme);
    let routes = edge.routes.into_iter().filter_map(|route| {
        let value = Route {
            to: upstream(&route.to?.value)?,
            domains: route.domains.into_iter().map(|domain| domain.value).collect(),
            path: route.path.value,
            protocol: route.protocol,
            rate: route.rate,
            connections_per_client: route.connections_per_client,
            allow: route.allow.into_iter().map(|network| network.value).collect(),
            deny: route.deny.into_iter().map(|network| network.value).collect(),
            ban: route.ban.map(|ban| ban.value),
            body_bytes_max: route.body_bytes_max,
            upstream_timeout_ms: route.upstream_timeout_ms,
            compress: route.compress,
            hsts: route.hsts,
        };
        Some(Placed { value, place: sources.place(route.span) })
    });
    Edge {
        routes: routes.collect(),
        http_port: edge.http_port.map_or(80, |port| port.value),
        https_port: edge.https_port.map_or(443, |port| port.value),
        redirect: edge.redirect,
        certificates,
        default_domain: edge.default_domain.map(|domain| domain.value),
        acme: ordered.then_some(acme),
        tls_minimum: edge.tls_minimum,
        trusted_proxies: edge.trusted_proxies.into_iter().map(|network| network.value).collect(),
        proxy_protocol: edge.proxy_protocol.is_some(),
        http3: edge.http3.is_some(),
        access_log: edge.access_log,
        error_pages: edge.error_pages,
        limits: edge.limits,
        drain_ms: edge.drain_ms,
    }
}
