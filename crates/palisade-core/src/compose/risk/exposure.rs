//! Who reaches what: published stores, flat networks, resolvers of somebody else.

use std::net::IpAddr;

use super::images::{Image, Kind, kind_of_port};
use super::power::texts;
use super::running::image_of;
use super::{Hit, Hits, Risk, Seen, Sight, table};
use crate::compose::file::NetworkMode;
use crate::compose::validate::networks_of;
use crate::stack::Publish;

/// Resolvers that anybody may use.
const PUBLIC_RESOLVERS: [&str; 22] = [
    "8.8.8.8",
    "8.8.4.4",
    "1.1.1.1",
    "1.0.0.1",
    "1.1.1.2",
    "1.0.0.2",
    "9.9.9.9",
    "149.112.112.112",
    "208.67.222.222",
    "208.67.220.220",
    "94.140.14.14",
    "94.140.15.15",
    "4.2.2.1",
    "4.2.2.2",
    "64.6.64.6",
    "77.88.8.8",
    "223.5.5.5",
    "114.114.114.114",
    "2001:4860:4860::8888",
    "2001:4860:4860::8844",
    "2606:4700:4700::1111",
    "2620:fe::fe",
];
/// With fewer services there is little to narrow.
const FLAT_MIN: usize = 3;

pub(super) fn examine(seen: &Seen<'_>, hits: &mut Hits) {
    let name = seen.name();
    if let Some(mode) = &seen.service.network_mode
        && mode.value == NetworkMode::Host
        && let Some(port) = seen.node.get("ports").filter(|_| !seen.service.ports.is_empty())
    {
        let message = format!("`{name}` has `ports` beside `network_mode: host`");
        let mut hit = Hit::new(&table::HOST_MODE_PORTS, seen, port.key_span, message);
        hit.label = "ignored by Docker, mapped by Palisade";
        hits.push(hit);
    }
    for (text, span) in seen.get("dns").map(texts).unwrap_or_default() {
        if PUBLIC_RESOLVERS.contains(&text) {
            hits.push(Hit::new(
                &table::PUBLIC_DNS,
                seen,
                span,
                format!("`{name}` looks names up at a public resolver"),
            ));
        }
    }
    for port in seen.service.ports.iter().filter(|port| is_public(&port.value)) {
        let (inside, outside) = (port.value.container.port, port.value.host_port);
        let Some((risk, what)) = not_for_everybody(seen, inside) else { continue };
        let message = format!("`{name}` publishes {what} to whoever reaches this host, on port {outside}");
        let hint = match risk.id {
            "admin-published" => format!(
                "write `\"127.0.0.1:{outside}:{inside}\"`, and reach it with `ssh -L {outside}:127.0.0.1:{outside} HOST`"
            ),
            _ => format!(
                "peers reach it as `{name}:{inside}` without `ports`; for tools of this host, write `\"127.0.0.1:{outside}:{inside}\"`"
            ),
        };
        hits.push(Hit::new(risk, seen, port.span, message).hint(hint));
    }
}

/// What is behind this port of a service, if it is something that isn't for everybody.
pub(super) fn not_for_everybody(seen: &Seen<'_>, port: u16) -> Option<(&'static Risk, &'static str)> {
    let kind = image_of(seen).and_then(|image| Image::parse(image).kind());
    Some(match kind.or_else(|| kind_of_port(port))? {
        Kind::Store(what) | Kind::Cache(what) => (&table::DATABASE_PUBLISHED, what),
        Kind::Model => (&table::MODEL_SERVER_PUBLISHED, "a model server"),
        Kind::Admin => (&table::ADMIN_PUBLISHED, "an administration tool"),
    })
}

pub(super) fn is_public(publish: &Publish) -> bool {
    !publish.host_ip.is_some_and(|ip| match ip {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback(),
    })
}

/// What only all services together tell.
pub(super) fn examine_all(sight: Sight<'_>, services: &[Seen<'_>], hits: &mut Hits) {
    let Some(entry) = sight.root.get("services") else { return };
    if services.len() < FLAT_MIN || services.iter().any(|seen| seen.service.connect.is_some()) {
        return;
    }
    let first = networks_of(services[0].service);
    let Some(network) = first.iter().next().filter(|_| first.len() == 1) else { return };
    if services.iter().all(|seen| networks_of(seen.service) == first) {
        let message = format!(
            "all {} services are in one network, `{network}`, and nothing narrows who reaches whom",
            services.len()
        );
        hits.push(Hit { service: None, ..Hit::new(&table::FLAT_NETWORK, &services[0], entry.key_span, message) });
    }
}
