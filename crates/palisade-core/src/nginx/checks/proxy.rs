//! What is passed on, to whom, and what they are told of the client.

use std::net::{IpAddr, Ipv4Addr};

use crate::audit::usual_internal;
use crate::diagnostic::{Diagnostic, Sink, Span, quoted};
use crate::stack::{Proto, Service, Stack};

use super::super::parse::Directive;
use super::super::rules;
use super::super::view::{At, Server, holds, is_http, is_restricted, list, server_of, walk};
use super::Case;
use super::locations::{captures_anything, expression};
use super::set;

/// Parts of paths that say what they are for.
const SOCKETS: [&str; 6] = ["ws", "wss", "websocket", "websockets", "socket.io", "cable"];

/// Where a `proxy_pass` leads.
struct Target<'a> {
    scheme: &'a str,
    /// Host and port as written, a path of a unix socket, or the name of an upstream.
    host: &'a str,
    port: Option<u16>,
    /// Whatever stands behind the address.
    uri: Option<&'a str>,
}

fn target(text: &str) -> Option<Target<'_>> {
    // In `stream` there is no scheme.
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    if let Some(path) = rest.strip_prefix("unix:") {
        return Some(Target { scheme, host: path.split(':').next().unwrap_or(path), port: None, uri: None });
    }
    let (address, uri) = match rest.find('/') {
        Some(at) => (&rest[..at], Some(&rest[at..])),
        None => (rest, None),
    };
    let (host, port) = match address.rsplit_once(':') {
        // What follows may be a variable with the path.
        Some((host, port)) if !port.ends_with(']') => (host, port.split('$').next().and_then(|port| port.parse().ok())),
        _ => (address, None),
    };
    (!host.is_empty()).then_some(Target { scheme, host, port, uri })
}

fn ip(host: &str) -> Option<IpAddr> {
    match host {
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        host => host.trim_start_matches('[').trim_end_matches(']').parse().ok(),
    }
}

pub(super) fn check(case: &Case<'_>, at: At<'_, '_>, sink: &mut Sink) {
    match at.directive.name() {
        "proxy_pass" | "grpc_pass" => {}
        "proxy_set_header" if is_http(at.around) => return passed_on(at.directive, sink),
        _ => return,
    }
    let Some(word) = at.directive.args.first() else { return };
    let text = set::expanded(&word.text, at.around);
    if is_open(&text, at) && is_http(at.around) {
        let found = rules::OPEN_PROXY.hit("the client says where its request is sent").at(word.span, "it chooses this");
        sink.push(found.hint("name the service here, or choose among known ones by a `map` with a default"));
        return;
    }
    let Some(target) = target(&text) else { return };
    for place in places(case, &target, word.span) {
        judge(case, at, place, sink);
    }
    if is_http(at.around) {
        // With a variable in it the path stays as the client sent it.
        if !word.text.contains('$') {
            uri(at, &target, word.span, sink);
        }
        unverified(at, &target, word.span, sink);
        websocket(at, sink);
    }
}

/// A variable that the client fills is the whole address, or its host.
fn is_open(text: &str, at: At<'_, '_>) -> bool {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let Some((variable, behind)) = set::variable(rest) else { return false };
    // `$host` is one of the names of a server that names them all.
    let names = server_of(at.around).map(|server| Server::of(server).names);
    let anybody = names.is_none_or(|names| names.is_empty() || names.iter().any(|name| name.contains(['*', '~', '_'])));
    let is_clients = match variable {
        "host" => anybody,
        "request_uri" | "uri" => true,
        _ => ["arg_", "http_", "cookie_"].iter().any(|kind| variable.starts_with(kind)),
    };
    is_clients
        || (behind.is_empty() || behind.starts_with(['/', ':', '$'])) && {
            let expression = at.around.iter().rev().find_map(|block| expression(block));
            expression.is_some_and(|expression| captures_anything(&expression.text, variable))
        }
}

/// One address that requests are sent to.
struct Place {
    host: String,
    port: Option<u16>,
    span: Span,
}

/// The address itself, or those of the upstream that it names.
fn places(case: &Case<'_>, target: &Target<'_>, span: Span) -> Vec<Place> {
    let mut found = Vec::new();
    if target.port.is_none() {
        walk(case.root, &mut |at: At<'_, '_>| {
            if at.directive.name() != "upstream" || at.directive.arg(0) != Some(target.host) {
                return;
            }
            for server in at.directive.children().iter().filter(|child| child.name() == "server") {
                let Some(word) = server.args.first() else { continue };
                if let Some(inner) = self::target(&word.text) {
                    let host = inner.host.to_owned();
                    let port = inner.port.or((!host.starts_with('/')).then_some(80));
                    found.push(Place { host, port, span: word.span });
                }
            }
        });
    }
    if found.is_empty() {
        let usual = match target.scheme {
            "https" | "grpcs" => 443,
            _ => 80,
        };
        let port = if target.host.starts_with('/') { None } else { Some(target.port.unwrap_or(usual)) };
        found.push(Place { host: target.host.to_owned(), port, span });
    }
    found
}

fn judge(case: &Case<'_>, at: At<'_, '_>, place: Place, sink: &mut Sink) {
    let told = |found: Diagnostic| {
        let found = found.at(place.span, "");
        if place.span == at.directive.args[0].span { found } else { found.also(at.directive.span(), "it is used here") }
    };
    let open = !is_restricted(at.around) && !is_stream_private(at.around);
    let engine = place.host.ends_with("docker.sock")
        || place.host.ends_with("podman.sock")
        || place.host.ends_with("containerd.sock");
    let service = case.known.stack.and_then(|stack| service_at(stack, &place));
    let image = service.and_then(|(service, _)| service.run.container.as_ref()?.image.as_deref());
    let internal = if engine {
        Some("the container engine's API")
    } else {
        place.port.and_then(|port| usual_internal(image, port))
    };
    if let Some(what) = internal.filter(|_| open) {
        let found = told(rules::INTERNAL_PORT.hit(format!("{what} is handed to everybody")));
        sink.push(found.hint(
            "take it out; those who need it can come by SSH (`ssh -L`), or through `allow` and `deny all`, or auth_basic",
        ));
    } else if let Some((service, port)) = service.filter(|_| open) {
        internal_service(case, service, port, &told, sink);
    }
    let ours = ip(&place.host).is_some_and(|ip| ip.is_loopback());
    let everywhere = service.and_then(|(service, _)| published_to_all(service, place.port));
    let listens =
        case.known.open_ports.filter(|_| ours).zip(place.port).is_some_and(|(open, port)| open.contains(&port));
    if let Some(place_of) = everywhere {
        let found = told(rules::UPSTREAM_PUBLIC.hit(format!("{} publishes this port for everybody", place_of.0)));
        let port = place_of.1;
        sink.push(found.hint(format!("{}: write \"127.0.0.1:{port}:…\" in `ports` instead", place_of.2)));
    } else if listens {
        let port = place.port.unwrap_or_default();
        let found =
            told(rules::UPSTREAM_PUBLIC.hit(format!("something on this host listens at port {port} of every address")));
        sink.push(
            found.hint("bind it to 127.0.0.1, or see with `palisade audit` whether a firewall keeps strangers away"),
        );
    }
}

/// Nobody but this host comes in, or those of a network that was chosen for it.
fn is_stream_private(around: &[&Directive]) -> bool {
    !is_http(around)
        && server_of(around).is_some_and(|server| {
            Server::of(server).listens.iter().all(|listen| listen.is_private() || listen.is_local())
        })
}

/// The stack's service that answers there, and its own port.
fn service_at<'a>(stack: &'a Stack, place: &Place) -> Option<(&'a Service, u16)> {
    let port = place.port?;
    let named = |service: &&Service| service.name.as_str() == place.host || service.aliases.contains(&place.host);
    if let Some(service) = stack.services.iter().find(named) {
        return Some((service, port));
    }
    ip(&place.host).filter(IpAddr::is_loopback)?;
    stack.services.iter().find_map(|service| {
        let published = service.publish.iter().map(|publish| publish.value);
        let by_port = published.filter(|publish| publish.container.proto == Proto::Tcp && publish.host_port == port);
        let own = by_port.map(|publish| publish.container.port).next();
        let exposed = || {
            service.host_mode && service.expose.iter().any(|it| it.value.port == port && it.value.proto == Proto::Tcp)
        };
        own.or_else(|| exposed().then_some(port)).map(|own| (service, own))
    })
}

fn internal_service(
    case: &Case<'_>,
    service: &Service,
    port: u16,
    told: &dyn Fn(Diagnostic) -> Diagnostic,
    sink: &mut Sink,
) {
    let edge = case.known.stack.and_then(|stack| stack.edge.as_ref());
    let is_route = edge.is_some_and(|edge| {
        edge.routes.iter().any(|route| route.value.to.service == service.name && route.value.to.port == port)
    });
    let is_published = service.publish.iter().any(|publish| publish.value.container.port == port);
    if is_route || (edge.is_none() && is_published) {
        return;
    }
    let message = format!("{}:{port} is internal to the stack, and handed to everybody", service.name);
    let place = &service.place;
    let hint = match edge {
        Some(_) => {
            format!("{place}: no route of x-palisade.edge leads there; add one if it is meant, or take this out")
        }
        None => format!("{place}: publish the port on 127.0.0.1 if it is meant, or take this out"),
    };
    sink.push(told(rules::INTERNAL_SERVICE.hit(message)).hint(hint));
}

/// Who publishes the port to all addresses, which, and where that is written.
fn published_to_all(service: &Service, port: Option<u16>) -> Option<(String, u16, crate::place::Place)> {
    let port = port?;
    let is_open = |ip: Option<IpAddr>| ip.is_none_or(|ip| !ip.is_loopback());
    let found = service.publish.iter().find(|publish| {
        let it = publish.value;
        it.container.proto == Proto::Tcp && (it.host_port == port || it.container.port == port) && is_open(it.host_ip)
    })?;
    Some((service.name.to_string(), found.value.host_port, found.place.clone()))
}

fn uri(at: At<'_, '_>, target: &Target<'_>, span: Span, sink: &mut Sink) {
    let Some(uri) = target.uri.filter(|uri| !uri.contains('$')) else { return };
    let Some(location) = at.around.last().filter(|block| block.name() == "location") else { return };
    let prefix = match &location.args[..] {
        [path] => path,
        [modifier, path] if modifier.text == "^~" => path,
        _ => return,
    };
    if prefix.text == "/" && uri == "/" || !prefix.text.starts_with('/') {
        return;
    }
    let (from, to) = (prefix.text.ends_with('/'), uri.ends_with('/'));
    if from == to {
        return;
    }
    let asked = format!("{}{}x", prefix.text, if from { "" } else { "/" });
    let becomes = format!("{uri}{}", &asked[prefix.text.len()..]);
    let found = rules::PROXY_URI
        .hit(format!("{asked} becomes {becomes} on its way"))
        .at(span, format!("this replaces {}", quoted(&prefix.text)))
        .also(prefix.span, if from { "a slash at its end" } else { "no slash at its end" });
    sink.push(found.hint("end both with a slash, or neither"));
}

fn unverified(at: At<'_, '_>, target: &Target<'_>, span: Span, sink: &mut Sink) {
    let module = match target.scheme {
        "https" => "proxy",
        "grpcs" => "grpc",
        _ => return,
    };
    let near = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local(),
    };
    let verify = holds(at.around, &format!("{module}_ssl_verify"));
    if target.host.starts_with('/')
        || ip(target.host).is_some_and(near)
        || verify.is_some_and(|it| it.arg(0) == Some("on"))
    {
        return;
    }
    let found = rules::UPSTREAM_UNVERIFIED.hit(format!("the certificate of {} isn't looked at", quoted(target.host)));
    let found = found.at(span, "");
    let found = match verify {
        Some(off) => found.also(off.span(), "switched off here"),
        None => found,
    };
    sink.push(found.hint(format!(
        "add `{module}_ssl_verify on;`, `{module}_ssl_trusted_certificate /etc/ssl/certs/ca-certificates.crt;` and `{module}_ssl_server_name on;`"
    )));
}

fn headers<'a>(at: At<'a, '_>) -> impl Fn(&str) -> Option<&'a Directive> {
    let all = list(at.around, &["proxy_set_header"]);
    move |name: &str| all.iter().copied().find(|it| it.arg(0).is_some_and(|it| it.eq_ignore_ascii_case(name)))
}

fn websocket(at: At<'_, '_>, sink: &mut Sink) {
    let Some(location) = at.around.iter().rev().find(|block| block.name() == "location") else { return };
    let header = headers(at);
    let path = location.args.last().filter(|path| {
        let mut parts = path.text.split(['/', '^', '$', '(', ')', '|', '?', '~', '*', '\\']);
        at.directive.name() == "proxy_pass" && parts.any(|part| SOCKETS.contains(&part.to_ascii_lowercase().as_str()))
    });
    match (header("Upgrade"), path) {
        (None, Some(path)) => {
            let found = rules::WEBSOCKET.hit("a WebSocket won't come through").at(path.span, "this looks like one");
            sink.push(found.hint(
                "add `proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \"upgrade\";`",
            ));
        }
        (Some(upgrade), _) if header("Connection").is_none() => {
            let found = rules::WEBSOCKET.hit("`Upgrade` is passed on without `Connection`").at(upgrade.span(), "");
            sink.push(found.hint("add `proxy_set_header Connection \"upgrade\";`, or better a `map` of $http_upgrade"));
        }
        _ => {}
    }
}

/// `Upgrade` needs HTTP/1.1, which nginx speaks to services by itself only lately.
pub(super) fn versions(case: &Case<'_>, sink: &mut Sink) {
    walk(case.root, &mut |at: At<'_, '_>| {
        if at.directive.name() != "proxy_pass" || !is_http(at.around) {
            return;
        }
        let Some(upgrade) = headers(at)("Upgrade") else { return };
        let version = holds(at.around, "proxy_http_version");
        let is_old = version.is_none_or(|it| it.arg(0) == Some("1.0"));
        if is_old && (case.is_whole || version.is_some()) {
            let found = rules::WEBSOCKET.hit("`Upgrade` is passed on with HTTP/1.0").at(upgrade.span(), "");
            let found = found.also(at.directive.span(), "no `proxy_http_version 1.1` holds here");
            sink.push(found.hint("add `proxy_http_version 1.1;`"));
        }
    });
}

/// What the service is told of the client's address must not be what the client says.
fn passed_on(directive: &Directive, sink: &mut Sink) {
    let [name, value, ..] = &directive.args[..] else { return };
    let is_address = ["x-real-ip", "x-forwarded-for", "x-client-ip", "forwarded", "true-client-ip"]
        .iter()
        .any(|header| name.text.eq_ignore_ascii_case(header));
    let said =
        ["$http_x_forwarded_for", "$http_x_real_ip", "$http_forwarded", "$http_x_client_ip", "$http_true_client_ip"];
    if is_address && said.contains(&value.text.as_str()) {
        let found = rules::FORWARDED_SPOOFABLE.hit(format!("{} is what the client says", quoted(&name.text)));
        let hint = "say $remote_addr; behind a proxy that you trust, with set_real_ip_from and real_ip_header";
        sink.push(found.at(value.span, "the client writes this").hint(hint));
    }
}
