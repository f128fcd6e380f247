//! Servers as wholes: what they speak, with which certificates, and who comes in without TLS.

use std::collections::{BTreeMap, BTreeSet};

use crate::diagnostic::{Diagnostic, Sink, quoted};

use super::super::parse::Directive;
use super::super::rules;
use super::super::view::{At, Listen, Server, has_below, holds, is_for_some_addresses, is_http, is_internal, walk};
use super::Case;

/// Directives that hand requests to a service.
const PASSES: [&str; 6] = ["proxy_pass", "grpc_pass", "fastcgi_pass", "uwsgi_pass", "scgi_pass", "memcached_pass"];

/// A server with the blocks around it.
struct Seen<'a> {
    server: Server<'a>,
    /// Itself included, innermost last.
    around: Vec<&'a Directive>,
}

pub(super) fn check(case: &Case<'_>, sink: &mut Sink) {
    let mut all: Vec<Seen<'_>> = Vec::new();
    walk(case.root, &mut |at: At<'_, '_>| {
        if at.directive.name() == "server" && at.directive.block.is_some() && is_http(at.around) {
            let around = [at.around, &[at.directive]].concat();
            all.push(Seen { server: Server::of(at.directive), around });
        }
    });
    // A file of `listen` and `location` without a server around it. One of locations alone says nothing of its server.
    let listens = |root: &Directive| root.children().iter().any(|child| child.name() == "listen");
    if case.outermost == "server" && listens(case.root) {
        all.push(Seen { server: Server::of(case.root), around: vec![case.root] });
    }
    for seen in &all {
        speaks(seen, sink);
        certificates(case, seen, sink);
        without_tls(seen, &all, sink);
        families(seen, sink);
    }
    defaults(case, &all, sink);
    versions(case, &all, sink);
    tokens(case, &all, sink);
}

/// Where a server is pointed at: its name, if it has one.
fn point<'a>(diagnostic: Diagnostic, seen: &Seen<'a>, label: &str) -> Diagnostic {
    let named = seen.server.directive.children().iter().find(|child| child.name() == "server_name");
    diagnostic.at(named.map_or(seen.server.directive.name.span, Directive::span), label)
}

fn speaks(seen: &Seen<'_>, sink: &mut Sink) {
    if !seen.server.has_tls() {
        return;
    }
    let Some(protocols) = holds(&seen.around, "ssl_protocols") else { return };
    let old = |word: &&super::Word| matches!(word.text.as_str(), "SSLv2" | "SSLv3" | "TLSv1" | "TLSv1.1");
    let Some(first) = protocols.args.iter().find(old) else { return };
    let shown: Vec<_> = protocols.args.iter().filter(old).map(|word| word.text.as_str()).collect();
    let mut found = rules::TLS_OLD.hit(format!("{} is spoken", shown.join(", "))).at(first.span, "");
    if let Some(listen) = seen.server.listens.iter().find(|listen| listen.tls).and_then(|listen| listen.directive) {
        found = found.also(listen.span(), "this server speaks TLS");
    }
    sink.push(found.hint("say `ssl_protocols TLSv1.2 TLSv1.3;`"));
}

fn certificates(case: &Case<'_>, seen: &Seen<'_>, sink: &mut Sink) {
    let Some(listen) = seen.server.listens.iter().find(|listen| listen.tls) else { return };
    let rejects = holds(&seen.around, "ssl_reject_handshake").is_some_and(|it| it.arg(0) == Some("on"));
    if rejects {
        return;
    }
    for (name, what) in [("ssl_certificate", "certificate"), ("ssl_certificate_key", "key")] {
        let Some(given) = holds(&seen.around, name) else {
            let could_be_outside = !case.is_whole && seen.around.len() <= 2;
            if let Some(directive) = listen.directive.filter(|_| !could_be_outside || case.outermost == "main") {
                let found = rules::CERTIFICATE_MISSING.hit(format!("there is no `{name}`"));
                sink.push(found.at(directive.span(), "TLS is spoken here").hint(format!("add `{name} FILE;`")));
            }
            continue;
        };
        let Some(file) = given.args.first() else { continue };
        let elsewhere = file.text.contains('$')
            || file.text.starts_with("data:")
            || file.text.starts_with("engine:")
            || file.text.starts_with("store:");
        if !elsewhere && case.source.exists(&file.text) == Some(false) {
            let found = rules::CERTIFICATE_MISSING.hit(format!("the {what}'s file isn't there")).at(file.span, "");
            sink.push(found.hint("nginx -t stops here, too: order the certificate first, or mend the path"));
        }
    }
}

/// The port that people come to without TLS.
fn is_public_http(listen: &Listen<'_>) -> bool {
    !listen.tls && !listen.is_private() && listen.port == Some(80)
}

fn without_tls(seen: &Seen<'_>, all: &[Seen<'_>], sink: &mut Sink) {
    let server = &seen.server;
    let is_open = |listen: &&Listen<'_>| !listen.tls && !listen.is_private();
    let public = server.listens.iter().find(|listen| is_open(listen) && !listen.is_local());
    let Some(open) = public.or_else(|| server.listens.iter().find(is_open)) else { return };
    let redirects = redirects(server.directive);
    if redirects {
        return;
    }
    let with_tls = server
        .real_names()
        .find(|name| all.iter().any(|other| other.server.has_tls() && other.server.names.contains(name)));
    if let Some(name) = with_tls.filter(|_| is_public_http(open)) {
        let found = rules::NOT_REDIRECTED.hit(format!("{} is served without TLS, too", quoted(name)));
        let found = point(found, seen, "no redirect to https in this server");
        let found = match open.directive {
            Some(listen) => found.also(listen.span(), "without `ssl`"),
            None => found,
        };
        sink.push(found.hint(
            "serve it in the server with `ssl` alone; here: `location ^~ /.well-known/acme-challenge/ { root …; }` and `location / { return 308 https://$host$request_uri; }`",
        ));
    } else if !server.has_tls() && with_tls.is_none() && !open.is_local() && hands_on(&seen.around) {
        let found =
            point(rules::HTTP_ONLY.hit("a service is handed to everybody without TLS"), seen, "no `listen … ssl`");
        sink.push(found.hint("order a certificate and redirect to https: `palisade export nginx` writes it out"));
    }
}

/// It answers with a redirect to https, at least for most; or with nothing.
fn redirects(server: &Directive) -> bool {
    let to_https = |directive: &Directive| match directive.name() {
        "return" => directive.args.iter().any(|word| word.text.starts_with("https://")),
        "rewrite" => directive.arg(1).is_some_and(|target| target.starts_with("https://")),
        _ => false,
    };
    let any = |block: &Directive, is_it: &dyn Fn(&Directive) -> bool| block.children().iter().any(is_it);
    let inside = |block: &Directive| any(block, &|it| to_https(it) || it.name() == "if" && any(it, &to_https));
    let for_all = |it: &Directive| it.name() == "location" && it.args.last().is_some_and(|path| path.text == "/");
    let refused = |it: &Directive| for_all(it) && any(it, &is_refusal);
    inside(server)
        || any(server, &is_refusal)
        || any(server, &|it| for_all(it) && inside(it))
        // What has other locations serves those.
        || any(server, &refused) && !has_below(server, &PASSES)
}

/// `return 404`, `return 444`, `return 421`: nothing is served.
fn is_refusal(directive: &Directive) -> bool {
    directive.name() == "return"
        && directive.args.len() == 1
        && directive.arg(0).is_some_and(|status| status.starts_with('4'))
}

/// Something in the innermost block is passed on for whoever asks. A password doesn't count, as it could be read on the way.
fn hands_on(around: &[&Directive]) -> bool {
    let is_closed = is_for_some_addresses(around) || is_internal(around);
    around.last().is_some_and(|block| {
        block.children().iter().any(|child| {
            PASSES.contains(&child.name()) && !is_closed
                || child.block.is_some() && hands_on(&[around, &[child]].concat())
        })
    })
}

fn families(seen: &Seen<'_>, sink: &mut Sink) {
    let wide = |listen: &&Listen<'_>| listen.ip.is_none() && !listen.is_unix;
    let mut ports: BTreeMap<u16, (bool, Option<&Directive>)> = BTreeMap::new();
    for listen in seen.server.listens.iter().filter(wide) {
        let Some(port @ (80 | 443)) = listen.port else { continue };
        let entry = ports.entry(port).or_insert((false, None));
        entry.0 |= listen.is_v6;
        entry.1 = entry.1.or(listen.directive);
    }
    if let Some((port, (_, Some(directive)))) = ports.into_iter().find(|(_, (has_v6, _))| !has_v6) {
        let found = rules::NO_IPV6.hit(format!("port {port} is served by IPv4 only")).at(directive.span(), "");
        let rest: Vec<_> = directive.args.iter().skip(1).map(|word| word.text.as_str()).collect();
        let line = ["listen", &format!("[::]:{port}")].into_iter().chain(rest).collect::<Vec<_>>().join(" ");
        sink.push(found.hint(format!("add `{line};`")));
    }
}

/// One of several public servers on a port should have been chosen for the names that nobody knows.
fn defaults(case: &Case<'_>, all: &[Seen<'_>], sink: &mut Sink) {
    if !case.is_whole {
        return;
    }
    for port in [80, 443] {
        let on_port: Vec<(&Seen<'_>, &Listen<'_>)> = all
            .iter()
            .flat_map(|seen| seen.server.listens.iter().map(move |listen| (seen, listen)))
            .filter(|(_, listen)| listen.port == Some(port) && !listen.is_private())
            .collect();
        let chosen = on_port.iter().any(|(seen, listen)| listen.default || seen.server.real_names().next().is_none());
        let mut sites: Vec<_> = on_port.iter().map(|(seen, _)| std::ptr::from_ref(seen.server.directive)).collect();
        sites.dedup();
        let Some((first, _)) = on_port.first().filter(|_| !chosen && sites.len() > 1) else { continue };
        let found = rules::NO_DEFAULT.hit(format!("port {port} has no default server"));
        let found = point(found, first, "it gets whoever asks for an unknown name");
        sink.push(found.hint(match port {
            443 => "add `server { listen 443 ssl default_server; listen [::]:443 ssl default_server; ssl_reject_handshake on; }`, with the `ssl_protocols` of the others if they aren't in `http`",
            _ => "add `server { listen 80 default_server; listen [::]:80 default_server; return 444; }`",
        }));
    }
}

/// A version of TLS is picked before it is known which server is asked for.
fn versions(case: &Case<'_>, all: &[Seen<'_>], sink: &mut Sink) {
    let mut addresses: BTreeMap<_, Vec<(&Seen<'_>, bool)>> = BTreeMap::new();
    for seen in all {
        for listen in seen.server.listens.iter().filter(|listen| listen.tls && !listen.is_quic && !listen.is_unix) {
            addresses.entry((listen.port, listen.ip, listen.is_v6)).or_default().push((seen, listen.default));
        }
    }
    let mut told = BTreeSet::new();
    for servers in addresses.values() {
        let chosen = servers.iter().find(|(_, is_default)| *is_default);
        // What isn't here may be the first.
        let Some((default, _)) = chosen.or_else(|| servers.first().filter(|_| case.is_whole)) else { continue };
        let decides = protocols(default);
        for (seen, _) in servers.iter().filter(|(seen, _)| protocols(seen).1 != decides.1) {
            if !told.insert(std::ptr::from_ref(seen.server.directive)) {
                continue;
            }
            let found = rules::TLS_OF_DEFAULT
                .hit("the default server of this address decides which versions of TLS are spoken");
            let found = match protocols(seen).0 {
                Some(own) => found.at(own.span(), "this counts for nothing"),
                None => point(found, seen, "no `ssl_protocols` here"),
            };
            let (span, label) = match decides.0 {
                Some(theirs) => (theirs.span(), "this counts"),
                None => (default.server.directive.name.span, "the default server, without `ssl_protocols`"),
            };
            sink.push(
                found
                    .also(span, label)
                    .hint("say the same `ssl_protocols` in all servers of the address, or once in `http`"),
            );
        }
    }
}

/// The directive that holds in a server, and the versions in it.
fn protocols<'a>(seen: &Seen<'a>) -> (Option<&'a Directive>, BTreeSet<&'a str>) {
    let directive = holds(&seen.around, "ssl_protocols");
    (directive, directive.into_iter().flat_map(|it| &it.args).map(|word| word.text.as_str()).collect())
}

fn tokens(case: &Case<'_>, all: &[Seen<'_>], sink: &mut Sink) {
    let serves = |seen: &&Seen<'_>| seen.server.has_tls() || has_below(seen.server.directive, &PASSES);
    let told = |seen: &&Seen<'_>| holds(&seen.around, "server_tokens").is_none_or(|it| it.arg(0) != Some("off"));
    if let Some(seen) = all.iter().filter(serves).find(told).filter(|_| case.is_whole) {
        let found = point(rules::SERVER_TOKENS.hit("nginx tells its version"), seen, "here, for one");
        sink.push(found.hint("add `server_tokens off;` to `http`"));
    }
}
