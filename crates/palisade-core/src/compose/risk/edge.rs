//! What the edge leaves open: ways past it, clients without limits, words that anybody could say.

use std::collections::HashSet;

use super::exposure::{is_public, not_for_everybody};
use super::{Hit, Hits, Risk, Seen, Sight, table};
use crate::compose::edge::{FileRoute, tcp_ports};
use crate::diagnostic::Span;
use crate::stack::Proto;

pub(super) fn examine(sight: Sight<'_>, services: &[Seen<'_>], hits: &mut Hits) {
    let Some(edge) = &sight.file.edge else { return };
    for seen in services {
        past(seen, &edge.routes, hits);
        inward(seen, &edge.routes, hits);
    }
    for route in edge.routes.iter().filter(|route| route.rate_span.is_none()) {
        let Some(domain) = route.domains.first() else { continue };
        let path = if route.path.value == "/" { "" } else { &route.path.value };
        let message = format!("one client may ask `{}{path}` as often as it likes", domain.value);
        hits.push(of_file(&table::NO_RATE_LIMIT, domain.span, message));
    }
    if let Some(span) = edge.plain_http.filter(|_| edge.trusted_proxies.is_empty()) {
        hits.push(of_file(&table::PLAIN_HTTP, span, "the edge serves plain HTTP as well".to_owned()));
    }
    for network in edge.trusted_proxies.iter().filter(|network| network.value.prefix_len() == 0) {
        let message = format!("the edge believes everybody's word about who asks: `{}`", network.value);
        hits.push(of_file(&table::TRUSTS_EVERYBODY, network.span, message));
    }
    let ban = edge.routes.iter().find_map(|route| route.ban.as_ref());
    if let (Some(ban), Some(proxies)) = (ban, edge.trusted_proxies.first()) {
        let message = format!("a ban keeps nobody out who comes by way of `{}`", proxies.value);
        hits.push(of_file(&table::BAN_BEHIND_PROXY, ban.span, message));
    }
}

/// Routes by which everybody gets at what isn't for everybody.
fn inward(seen: &Seen<'_>, routes: &[FileRoute], hits: &mut Hits) {
    let name = seen.name();
    let everybody = |route: &&FileRoute| {
        route.allow.is_empty() || route.allow.iter().any(|network| network.value.prefix_len() == 0)
    };
    for to in routes.iter().filter(everybody).filter_map(|route| route.to.as_ref()) {
        if to.value.service != name {
            continue;
        }
        let Some(port) = to.value.port.or_else(|| tcp_ports(seen.service).first().copied()) else { continue };
        let Some((risk, what)) = not_for_everybody(seen, port) else { continue };
        let message = format!("`{name}` is {what}, and this route of the edge leads everybody to it");
        let hint = format!(
            "say in the route who may ask (`allow: [192.0.2.0/24]`), or remove it: peers reach `{name}:{port}` without the edge"
        );
        hits.push(Hit::new(risk, seen, to.span, message).hint(hint));
    }
}

fn of_file(risk: &'static Risk, span: Span, message: String) -> Hit {
    Hit { risk, service: None, message, span, label: "", also: Vec::new(), hint: risk.instead.to_owned(), could: None }
}

/// Ports that the edge leads to and that are published besides.
fn past(seen: &Seen<'_>, routes: &[FileRoute], hits: &mut Hits) {
    let name = seen.name();
    let to_it = routes.iter().filter_map(|route| route.to.as_ref()).filter(|to| to.value.service == name);
    let written: HashSet<Option<u16>> = to_it.map(|to| to.value.port).collect();
    if written.is_empty() || seen.service.ports.is_empty() {
        return;
    }
    let only = tcp_ports(seen.service).first().copied();
    let led_to = |port: u16| written.contains(&Some(port)) || (written.contains(&None) && only == Some(port));
    for port in seen.service.ports.iter().filter(|port| is_public(&port.value)) {
        let (inside, outside) = (port.value.container, port.value.host_port);
        if inside.proto == Proto::Tcp && led_to(inside.port) {
            let message =
                format!("`{name}` is behind the edge, and port {outside} of this host leads to it past the edge");
            let hint = format!(
                "remove it from `ports`: the edge needs none; for tools of this host, write `\"127.0.0.1:{outside}:{}\"`",
                inside.port
            );
            hits.push(Hit::new(&table::PAST_THE_EDGE, seen, port.span, message).hint(hint));
        }
    }
}
