//! The edge: what it serves is there, and nothing that it needs is taken.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::edge::{CHANGED_BY, FileCertificate, FileEdge, FileRoute, Sources, is_public, tcp_ports};
use super::super::{CertificateFlaw, Files};
use super::View;
use crate::address::SERVICES_MAX;
use crate::diagnostic::{Diagnostic, Sink, Span, Spanned, quoted};
use crate::edge::{
    ACCESS_LOG_VOLUME, AUTHORITIES_VOLUME, CERTIFICATES_VOLUME, CertificateSource, Challenge, SERVICE_NAME, WORKER_NAME,
};
use crate::stack::{PortProto, Proto};

/// Top level domains that no public authority certifies names below (RFC 6761, RFC 6762, RFC 7686, RFC 8375, ICANN's `internal`).
const PRIVATE_ENDINGS: [&str; 10] =
    ["local", "localhost", "internal", "test", "invalid", "onion", "lan", "home", "corp", "home.arpa"];

/// Reports everything that is wrong with the edge.
pub(super) fn validate(view: &View<'_>, sink: &mut Sink) {
    let Some(edge) = &view.file.edge else { return };
    if edge.routes_written == 0 {
        sink.push(
            Diagnostic::error("missing-key", "the edge has no route, so it would serve nothing")
                .at(edge.routes_span.unwrap_or(edge.span), "")
                .hint("say which service answers for which domain: `routes: [{domain: barter.example, to: \"app:8081\"}]`"),
        );
    }
    own_names(view, edge, sink);
    let mut ports_of: HashMap<usize, Vec<u16>> = HashMap::new();
    for route in &edge.routes {
        upstream(route, view, &mut ports_of, sink);
        who_may_ask(route, sink);
        challenges(edge, route, sink);
    }
    same_routes(edge, sink);
    certificates(edge, sink);
    acme(edge, sink);
    default_domain(edge, sink);
    ports(edge, sink);
    taken_ports(view, edge, sink);
    proxies(edge, sink);
}

/// The edge becomes two more services of the stack, with volumes of their own.
fn own_names(view: &View<'_>, edge: &FileEdge, sink: &mut Sink) {
    let taken = |span: Span, name: &str, what: &str| {
        let message = format!("{} is the name of a {what} that the edge has", quoted(name));
        let diagnostic = Diagnostic::error("reserved-name", message).at(span, "").also(edge.span, "the edge");
        diagnostic.hint("give it another name: those that begin with `palisade-` are Palisade's")
    };
    let services = &view.file.services;
    for name in [SERVICE_NAME, WORKER_NAME] {
        if let Some(service) = view.service(name) {
            sink.push(taken(service.name.span, name, "service"));
            continue;
        }
        let networks = services.iter().flat_map(|service| service.networks.iter().flatten());
        let aliases = networks.flat_map(|network| &network.aliases);
        for alias in aliases.chain(services.iter().filter_map(|service| service.container_name.as_ref())) {
            if alias.value == name {
                sink.push(taken(alias.span, name, "service"));
            }
        }
    }
    for name in [CERTIFICATES_VOLUME, AUTHORITIES_VOLUME, ACCESS_LOG_VOLUME] {
        if let Some(volume) = view.file.volumes.get(name) {
            sink.push(taken(volume.span, name, "volume"));
        }
    }
    let max = usize::from(SERVICES_MAX);
    if services.len() <= max && services.len() + 2 > max {
        let message = format!("a host has private addresses for {SERVICES_MAX} services, and the edge is two more");
        sink.push(Diagnostic::error("too-many", message).at(edge.span, ""));
    }
}

fn upstream(route: &FileRoute, view: &View<'_>, ports_of: &mut HashMap<usize, Vec<u16>>, sink: &mut Sink) {
    let Some(to) = &route.to else { return };
    let name = &to.value.service;
    let Some(service) = view.service(name) else {
        sink.push(
            Diagnostic::error("unknown-service", format!("there is no service {}", quoted(name))).at(to.span, "").hint(
                view.suggest(sink, name, "a route leads to a service of this stack: add it, or correct the name"),
            ),
        );
        return;
    };
    let index = view.by_name[name.as_str()];
    if view.networks[index].is_empty() {
        sink.push(
            Diagnostic::error(
                "no-shared-network",
                format!("the edge can't reach {}: it is in no network", quoted(name)),
            )
            .at(to.span, "")
            .also(service.name.span, "`network_mode: none`")
            .hint("put it into a network, or remove the route"),
        );
    }
    if service.replicas.first().is_some_and(|replicas| replicas.value == 0) {
        sink.push(
            Diagnostic::warning(
                "no-instance",
                format!("{} has no instance, so this route answers with 503", quoted(name)),
            )
            .at(to.span, "")
            .also(service.replicas[0].span, "none is asked for")
            .hint("ask for one, or remove the route"),
        );
    }
    let ports = ports_of.entry(index).or_insert_with(|| tcp_ports(service));
    let shown = || ports.iter().take(8).map(u16::to_string).collect::<Vec<_>>().join(", ");
    match to.value.port {
        None if ports.len() == 1 => {}
        None => {
            let message = match ports.len() {
                0 => format!("{} declares no TCP port, so the route must say which one is meant", quoted(name)),
                _ => format!("{} has several TCP ports, so the route must say which one is meant", quoted(name)),
            };
            let label = if ports.is_empty() { "declares none".to_owned() } else { format!("declares {}", shown()) };
            let port = ports.first().copied().unwrap_or(8081);
            sink.push(
                Diagnostic::error("ambiguous-port", message)
                    .at(to.span, "")
                    .also(service.name.span, label)
                    .hint(format!("write it behind the name: `to: {name}:{port}`")),
            );
        }
        // What declares nothing may have its ports from its image.
        Some(port) if !ports.contains(&port) && (!ports.is_empty() || service.strict) => {
            let udp = service
                .expose
                .iter()
                .map(|port| port.value)
                .chain(service.ports.iter().map(|port| port.value.container));
            let is_udp = udp.into_iter().any(|declared| declared.port == port);
            let published = service.ports.iter().find(|published| published.value.host_port == port);
            let mut diagnostic = match is_udp {
                true => Diagnostic::error(
                    "undeclared-port",
                    format!("port {port} of {} is for UDP, and HTTP needs TCP", quoted(name)),
                ),
                false => Diagnostic::error("undeclared-port", format!("{} does not declare port {port}", quoted(name))),
            }
            .at(to.span, "")
            .also(
                service.name.span,
                if ports.is_empty() {
                    "declares none, and is `strict`".to_owned()
                } else {
                    format!("declares {}", shown())
                },
            );
            diagnostic = match published {
                Some(published) => diagnostic.hint(format!(
                    "{port} is where the host has its port {0}: write `to: {name}:{0}`",
                    published.value.container.port
                )),
                None => diagnostic.hint(format!("add \"{port}\" to `expose` of {}, or correct the port", quoted(name))),
            };
            sink.push(diagnostic);
        }
        Some(_) => {}
    }
}

fn who_may_ask(route: &FileRoute, sink: &mut Sink) {
    let denied: HashMap<_, _> = route.deny.iter().map(|denied| (denied.value, denied)).collect();
    for network in &route.allow {
        if let Some(denied) = denied.get(&network.value) {
            sink.push(
                Diagnostic::error(
                    "conflict",
                    format!("{} is both allowed and denied", quoted(&network.value.to_string())),
                )
                .at(denied.span, "")
                .also(network.span, "allowed here")
                .hint("keep one of them: what is denied may not ask, even if allowed"),
            );
        }
    }
    if let Some(ban) = &route.ban
        && !route.limited
    {
        let mut diagnostic =
            Diagnostic::error("conflict", "`ban` counts refused requests, and nothing here refuses any")
                .at(ban.span, "");
        if let Some(off) = route.rate_span {
            diagnostic = diagnostic.also(off, "switched off here");
        }
        sink.push(diagnostic.hint("add a limit to the route: `rate_limit: {per_client: 10/s, burst: 20}`"));
    }
}

/// At the port for plain HTTP the edge answers these itself, so that it can obtain certificates.
fn challenges(edge: &FileEdge, route: &FileRoute, sink: &mut Sink) {
    const PATH: &str = "/.well-known/acme-challenge";
    let below = route.path.value.strip_prefix(PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if edge.redirect && below {
        sink.push(
            Diagnostic::warning(
                "challenge-route",
                "no challenge of an authority gets to this route: over plain HTTP, the edge answers for this path itself",
            )
            .at(route.path.span, "")
            .hint("remove it: the edge obtains and renews certificates itself; for a program of your own that does, write `redirect: false`, with which plain HTTP is served by routes"),
        );
    }
}

/// Two routes for one domain and path: nobody could say which one answers.
fn same_routes(edge: &FileEdge, sink: &mut Sink) {
    let mut known: HashMap<(&str, &str), Span> = HashMap::new();
    for route in &edge.routes {
        for domain in &route.domains {
            let path = route.path.value.as_str();
            let Some(first) = known.insert((&domain.value, path), domain.span) else { continue };
            let shown = if path == "/" { String::new() } else { path.to_owned() };
            let message = format!("two routes are for {}", quoted(&format!("{}{shown}", domain.value)));
            let diagnostic = Diagnostic::error("duplicate-route", message)
                .at(domain.span, "")
                .also(first, "the first one")
                .hint("give one of them another `path`, or remove it; several instances of a service share one route");
            let diagnostic = match first.file == domain.span.file {
                true => diagnostic,
                false => diagnostic.hint(CHANGED_BY),
            };
            sink.push(diagnostic);
        }
    }
}

/// Looks into certificates that are given as files, as far as they can be read here.
pub(crate) fn given_certificates(edge: &FileEdge, others: &dyn Files, sink: &mut Sink) {
    let sources = Sources::new(edge);
    let mut served_with: BTreeMap<Option<&str>, Vec<&Spanned<String>>> = BTreeMap::new();
    for (name, domain) in domains(edge) {
        let Some(certificate) = sources.of(name) else { continue };
        served_with.entry(certificate.domain.value.as_deref()).or_default().push(domain);
    }
    for certificate in &edge.certificates {
        let Some(CertificateSource::Files { chain, key }) = &certificate.source else { continue };
        let Some(served) = served_with.get(&certificate.domain.value.as_deref()) else { continue };
        let (Ok(chain_pem), Ok(key_pem)) = (others.read(chain), others.read(key)) else { continue };
        let names: Vec<&str> = served.iter().map(|domain| domain.value.as_str()).collect();
        for flaw in others.certificate_flaws(&chain_pem, &key_pem, &names) {
            sink.push(flawed(certificate, served, flaw));
        }
    }
}

fn flawed(certificate: &FileCertificate, served: &[&Spanned<String>], flaw: CertificateFlaw) -> Diagnostic {
    let whose = format!("the certificate of {}", quoted(certificate.domain.value.as_deref().unwrap_or("default")));
    let span = certificate.domain.span;
    match flaw {
        CertificateFlaw::OtherKey => Diagnostic::error(
            "certificate-key",
            format!("{whose} and its key are of two pairs: the key in `key` is not that of the first one in `chain`"),
        )
        .at(span, "")
        .hint("give the two files that belong together; the first certificate in `chain` has to be the server's own"),
        CertificateFlaw::OtherNames { domain, names } => {
            let names = match names.is_empty() {
                true => "for no name at all (subjectAltName)".to_owned(),
                false => format!("for {}", names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ")),
            };
            let diagnostic =
                Diagnostic::error("certificate-names", format!("{whose} is {names}, not for {}", quoted(&domain)));
            let diagnostic = match served.iter().find(|served| served.value == domain) {
                Some(served) => diagnostic.at(span, "").also(served.span, "clients would refuse it here"),
                None => diagnostic.at(span, ""),
            };
            diagnostic.hint("give the files of that domain's certificate")
        }
        CertificateFlaw::Unusable(why) => {
            Diagnostic::error("certificate-file", format!("{whose} can't be served: {why}")).at(span, "")
        }
        CertificateFlaw::Refused(why) => {
            Diagnostic::warning("certificate-refused", format!("clients refuse {whose}: {why}"))
                .at(span, "")
                .hint("give a newer one; it is served from within ten seconds after its files have changed")
        }
    }
}

/// The domains of all routes, each where it stands first.
fn domains(edge: &FileEdge) -> BTreeMap<&str, &Spanned<String>> {
    let mut all = BTreeMap::new();
    for domain in edge.routes.iter().flat_map(|route| &route.domains) {
        all.entry(domain.value.as_str()).or_insert(domain);
    }
    all
}

/// Every domain is there that somebody wanted to have a route for.
fn knows_domains(edge: &FileEdge) -> bool {
    let read = edge.routes_written > 0 && edge.routes.len() == edge.routes_written;
    read && edge.routes.iter().all(|route| route.domains_sound)
}

fn certificates(edge: &FileEdge, sink: &mut Sink) {
    let (domains, sources) = (domains(edge), Sources::new(edge));
    let mut used: BTreeSet<Option<&str>> = BTreeSet::new();
    for (name, domain) in &domains {
        let certificate = sources.of(name);
        used.extend(certificate.map(|certificate| certificate.domain.value.as_deref()));
        let acme = certificate.is_none_or(|certificate| certificate.source == Some(CertificateSource::Acme));
        if !acme {
            continue;
        }
        let label = |diagnostic: Diagnostic| match certificate {
            Some(certificate) => diagnostic.also(certificate.domain.span, "`acme` is said here"),
            None => diagnostic,
        };
        if name.starts_with("*.") {
            let message = format!(
                "a certificate for {} can't be ordered: for a wildcard, authorities want a change of the domain's DNS",
                quoted(name)
            );
            sink.push(label(Diagnostic::error("wildcard-acme", message).at(domain.span, "")).hint(format!(
                "list the names themselves, or give files: `certificates: {{\"{name}\": {{chain: ./x.pem, key: ./x.key}}}}`"
            )));
        } else if only_public(edge) && is_private(name) {
            let message = format!("no public authority gives a certificate for {}", quoted(name));
            sink.push(label(Diagnostic::error("private-domain", message).at(domain.span, "nobody else can look it up")).hint(
                "write `certificates: local` to try things out, give files, or name your own authority: `acme: {directory: \"https://…\"}`",
            ));
        }
    }
    if !knows_domains(edge) {
        return;
    }
    for certificate in edge.certificates.iter().filter(|known| !used.contains(&known.domain.value.as_deref())) {
        unused(certificate, &domains, sink);
    }
}

fn unused(certificate: &FileCertificate, domains: &BTreeMap<&str, &Spanned<String>>, sink: &mut Sink) {
    let Some(name) = &certificate.domain.value else {
        // An override file may say it to be sure.
        let message = "`default` of `certificates` is for no domain: each has its own";
        sink.push(Diagnostic::note("no-effect", message).at(certificate.domain.span, ""));
        return;
    };
    let near = super::suggest(sink, name, domains.keys().copied());
    sink.push(
        Diagnostic::error("unknown-domain", format!("no route is for {}", quoted(name)))
            .at(certificate.domain.span, "its certificate would serve nobody")
            .hint(near.unwrap_or_else(|| "remove it, or add a route for the domain".to_owned())),
    );
}

/// Every authority that is asked certifies public names only.
fn only_public(edge: &FileEdge) -> bool {
    edge.acme.as_ref().is_none_or(|acme| acme.value.acme.directories.iter().all(is_public))
}

fn is_private(name: &str) -> bool {
    let below = |ending: &&str| name.strip_suffix(*ending).is_some_and(|rest| rest.ends_with('.'));
    !name.contains('.') || PRIVATE_ENDINGS.iter().any(below)
}

/// Whether any domain's certificate is ordered.
fn orders(edge: &FileEdge) -> bool {
    let sources = Sources::new(edge);
    domains(edge).keys().any(|name| {
        sources
            .of(name)
            .is_none_or(|known| known.source.as_ref().is_none_or(|source| *source == CertificateSource::Acme))
    })
}

fn acme(edge: &FileEdge, sink: &mut Sink) {
    let challenge = edge.acme.as_ref().map(|acme| acme.value.acme.challenge).unwrap_or_default();
    if !orders(edge) {
        if let (Some(acme), false) = (&edge.acme, edge.routes.is_empty()) {
            let message = "`acme` has no effect: no domain's certificate is ordered";
            sink.push(Diagnostic::note("no-effect", message).at(acme.span, ""));
        }
        return;
    }
    let (port, wanted, key) = match challenge {
        Challenge::Http01 => (&edge.http_port, 80, "http"),
        Challenge::TlsAlpn01 => (&edge.https_port, 443, "https"),
    };
    if let Some(port) = port.as_ref().filter(|port| port.value != wanted) {
        let name = if wanted == 80 { "http-01" } else { "tls-alpn-01" };
        sink.push(
            Diagnostic::warning(
                "acme-port",
                format!("authorities ask at port {wanted} (`{name}`), and the edge is at {}", port.value),
            )
            .at(port.span, "")
            .hint(format!("remove `{key}`, unless something in front of this host leads its port {wanted} here")),
        );
    }
}

fn default_domain(edge: &FileEdge, sink: &mut Sink) {
    let Some(default) = &edge.default_domain else { return };
    let domains = domains(edge);
    if domains.contains_key(default.value.as_str()) || !knows_domains(edge) {
        return;
    }
    let near = super::suggest(sink, &default.value, domains.keys().copied());
    sink.push(
        Diagnostic::error("unknown-domain", format!("no route is for {}", quoted(&default.value)))
            .at(default.span, "")
            .hint(near.unwrap_or_else(|| "write one of the domains that routes are for".to_owned())),
    );
}

fn ports(edge: &FileEdge, sink: &mut Sink) {
    let (http, https) = (edge.http_port.as_ref(), edge.https_port.as_ref());
    if http.map_or(80, |port| port.value) == https.map_or(443, |port| port.value)
        && let Some(span) = https.or(http).map(|port| port.span)
    {
        let diagnostic = Diagnostic::error("conflict", "HTTP and HTTPS can't have one port");
        let diagnostic = match (http, https) {
            (Some(http), Some(_)) => diagnostic.at(span, "").also(http.span, "HTTP"),
            (None, _) => diagnostic.at(span, "HTTP has port 80 unless another is given"),
            (_, None) => diagnostic.at(span, "HTTPS has port 443 unless another is given"),
        };
        sink.push(diagnostic.hint("80 and 443 are what browsers ask at: remove both"));
    }
}

/// Ports of the host that a service has already. Private TCP ports are in nobody's way; a UDP port is bound on every address.
fn taken_ports(view: &View<'_>, edge: &FileEdge, sink: &mut Sink) {
    let port = |port: u16, proto: Proto| PortProto { port, proto };
    let http = (port(edge.http_port.as_ref().map_or(80, |port| port.value), Proto::Tcp), edge.http_port.as_ref());
    let https = (port(edge.https_port.as_ref().map_or(443, |port| port.value), Proto::Tcp), edge.https_port.as_ref());
    let udp = edge.http3.map(|span| (port(https.0.port, Proto::Udp), span));
    for service in &view.file.services {
        let name = quoted(service.name.value.as_str());
        for published in super::settled_ports(service) {
            let own = port(published.value.host_port, published.value.container.proto);
            let mine =
                [http, https].into_iter().find(|(port, _)| *port == own).map(|(_, port)| port.map(|port| port.span));
            let mine = mine.or(udp.filter(|(port, _)| *port == own).map(|(_, span)| Some(span)));
            let Some(span) = mine else { continue };
            let mut hint = format!("remove it from `ports` of {name}");
            if let Some(ordinary) = edge
                .routes
                .iter()
                .find_map(|route| route.to.as_ref())
                .filter(|to| to.value.service == service.name.value.as_str())
            {
                hint = format!("{hint}: the edge leads to {} without it", quoted(&ordinary.value.service));
            } else {
                hint.push_str(", or give the edge other ones: `ports: {http: 8080, https: 8443}`");
            }
            sink.push(
                Diagnostic::error("port-conflict", format!("{name} publishes port {own}, where the edge listens"))
                    .at(published.span, "")
                    .also(span.unwrap_or(edge.span), "the edge")
                    .hint(hint),
            );
        }
        let Some((udp, span)) = udp else { continue };
        let published = |port: PortProto| service.ports.iter().any(|published| published.value.container == port);
        for exposed in service.expose.iter().filter(|exposed| exposed.value == udp && !published(udp)) {
            sink.push(
                Diagnostic::error(
                    "port-conflict",
                    format!("the edge has port {udp} on every address, and {name} has it as a private port"),
                )
                .at(exposed.span, format!("{name} could not bind it any more"))
                .also(span, "HTTP/3 takes it")
                .hint("give the edge another port, or switch `http3` off"),
            );
        }
    }
}

fn proxies(edge: &FileEdge, sink: &mut Sink) {
    if let Some(span) = edge.proxy_protocol
        && !edge.trusted_proxies_written
    {
        sink.push(
            Diagnostic::error("missing-key", "`proxy_protocol` is for proxies that are trusted, and none is")
                .at(span, "whoever connects could say any address")
                .hint("list their networks: `trusted_proxies: [192.0.2.0/28]`"),
        );
    }
}
