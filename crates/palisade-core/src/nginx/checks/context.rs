//! Where directives may stand, those that are gone, and limits without a zone.

use std::collections::BTreeSet;

use crate::diagnostic::{Sink, quoted};

use super::super::parse::Directive;
use super::super::rules;
use super::super::view::{At, holds, is_http, walk};
use super::{Case, kind};

/// Contexts by their letters: main, events, http, server, location, `if` in server, `if` in location, limit_except,
/// upstream.
const LETTERS: [(char, &str, &str); 9] = [
    ('m', "main", "outside of all blocks"),
    ('e', "events", "`events`"),
    ('h', "http", "`http`"),
    ('s', "server", "`server`"),
    ('l', "location", "`location`"),
    ('i', "if", "`if` in `server`"),
    ('j', "if in location", "`if` in `location`"),
    ('x', "limit_except", "`limit_except`"),
    ('u', "upstream", "`upstream`"),
];

/// Directives of nginx's http side and where they may stand: those that are put in the wrong place now and then.
const PLACES: &[(&str, &[&str])] = &[
    (
        "h",
        &[
            "limit_req_zone",
            "limit_conn_zone",
            "map",
            "geo",
            "split_clients",
            "upstream",
            "log_format",
            "proxy_cache_path",
            "fastcgi_cache_path",
            "uwsgi_cache_path",
            "map_hash_bucket_size",
            "map_hash_max_size",
            "server_names_hash_bucket_size",
            "server_names_hash_max_size",
            "charset_map",
        ],
    ),
    (
        "m",
        &[
            "user",
            "pid",
            "worker_processes",
            "worker_rlimit_nofile",
            "load_module",
            "events",
            "http",
            "stream",
            "daemon",
        ],
    ),
    ("e", &["worker_connections", "multi_accept", "use"]),
    ("s", &["listen", "server_name"]),
    ("sl", &["location", "try_files"]),
    (
        "hs",
        &[
            "ssl_certificate",
            "ssl_certificate_key",
            "ssl_protocols",
            "ssl_ciphers",
            "ssl_session_cache",
            "ssl_session_timeout",
            "ssl_session_tickets",
            "ssl_prefer_server_ciphers",
            "ssl_stapling",
            "ssl_dhparam",
            "client_header_timeout",
            "large_client_header_buffers",
            "http2",
            "ssl_verify_client",
        ],
    ),
    (
        "hsl",
        &[
            "limit_req",
            "limit_conn",
            "limit_req_status",
            "limit_conn_status",
            "proxy_set_header",
            "client_max_body_size",
            "server_tokens",
            "proxy_read_timeout",
            "proxy_connect_timeout",
            "proxy_buffering",
            "proxy_http_version",
            "proxy_cache",
            "set_real_ip_from",
            "real_ip_header",
            "gzip_types",
            "autoindex",
        ],
    ),
    ("hslu", &["keepalive_timeout"]),
    ("hslj", &["add_header", "error_page", "root", "gzip", "sendfile"]),
    ("hsljx", &["access_log"]),
    ("hslx", &["allow", "deny", "auth_basic", "auth_basic_user_file"]),
    ("lj", &["fastcgi_pass", "uwsgi_pass", "grpc_pass"]),
    ("ljx", &["proxy_pass"]),
    ("l", &["alias", "internal", "limit_except"]),
    ("slij", &["return", "rewrite", "set", "break"]),
    ("sl", &["if", "stub_status"]),
    ("u", &["least_conn", "ip_hash"]),
];

/// Directives that were taken out, and what is said instead.
const GONE: &[(&str, &str)] = &[
    ("ssl", "say `listen 443 ssl;` instead: `ssl on` is gone since 1.25.1"),
    ("spdy_headers_comp", "take it out: SPDY is gone since 1.9.5"),
    ("http2_push", "take it out: browsers have given server push up, and nginx since 1.25.1"),
    ("http2_push_preload", "take it out: browsers have given server push up, and nginx since 1.25.1"),
    ("http2_max_field_size", "say `large_client_header_buffers` instead (since 1.19.7)"),
    ("http2_max_header_size", "say `large_client_header_buffers` instead (since 1.19.7)"),
    ("http2_idle_timeout", "say `keepalive_timeout` instead (since 1.19.7)"),
];

/// The narrowest context in which all of these may stand, of those that files are included in.
pub(super) fn narrowest(directives: &[Directive]) -> Option<&'static str> {
    let fits = |letter: char| directives.iter().filter_map(letters).all(|letters| letters.contains(letter));
    let found = ['l', 's', 'u', 'h', 'e', 'm'].into_iter().find(|letter| fits(*letter))?;
    LETTERS.iter().find(|(letter, ..)| *letter == found).map(|(_, context, _)| *context)
}

/// Letters of the contexts in which a directive may stand, if that is known.
fn letters(directive: &Directive) -> Option<&'static str> {
    // Entries of an upstream are servers, too.
    match (directive.name(), &directive.block) {
        ("server", Some(_)) => Some("h"),
        ("server", None) => Some("u"),
        (name, _) => PLACES.iter().find(|(_, names)| names.contains(&name)).map(|(letters, _)| *letters),
    }
}

pub(super) fn check(case: &Case<'_>, at: At<'_, '_>, sink: &mut Sink) {
    if !is_http(at.around) {
        return;
    }
    let directive = at.directive;
    let name = directive.name();
    let here = kind(case, at.around);
    if let Some((_, instead)) = GONE.iter().find(|(gone, _)| *gone == name) {
        let message = format!("{} is gone from nginx", quoted(name));
        sink.push(rules::GONE.hit(message).at(directive.span(), "").hint(*instead));
        return;
    }
    let Some(letters) = letters(directive) else { return };
    if !LETTERS.iter().any(|(_, context, _)| *context == here) {
        // A block of somebody else's module: its rules aren't known.
        return;
    }
    let may = |letter: char| LETTERS.iter().any(|(known, context, _)| *known == letter && *context == here);
    if !letters.chars().any(may) {
        misplaced(at, here, letters, sink);
    }
}

fn misplaced(at: At<'_, '_>, here: &str, letters: &str, sink: &mut Sink) {
    let name = at.directive.name();
    let shown =
        |context: &str| LETTERS.iter().find(|(_, known, _)| *known == context).map_or("there", |(.., text)| *text);
    let allowed: Vec<_> =
        letters.chars().filter_map(|letter| LETTERS.iter().find(|(known, ..)| *known == letter)).collect();
    let allowed: Vec<_> = allowed.into_iter().map(|(.., text)| *text).collect();
    let mut diagnostic = rules::WRONG_CONTEXT
        .hit(match here {
            "main" => format!("{} stands outside of all blocks", quoted(name)),
            _ => format!("{} stands in {}", quoted(name), shown(here)),
        })
        .at(at.directive.span(), format!("it belongs into {}", allowed.join(", ")));
    if let Some(block) = at.around.last().filter(|block| !block.name().is_empty()) {
        diagnostic = diagnostic.also(block.name.span, "this block");
    }
    sink.push(diagnostic.hint(match letters {
        "h" => "move it out of all `server` blocks; a file of its own in conf.d is read in `http`".to_owned(),
        _ => format!("move it into {}", allowed.join(" or ")),
    }));
}

/// Limits whose zone isn't there, and those that answer 503.
pub(super) fn zones(case: &Case<'_>, sink: &mut Sink) {
    let mut defined: BTreeSet<(&str, String)> = BTreeSet::new();
    walk(case.root, &mut |at: At<'_, '_>| {
        let (kind, zone) = match at.directive.name() {
            "limit_req_zone" => ("limit_req", at.directive.arg(1)),
            "limit_conn_zone" => ("limit_conn", at.directive.arg(1)),
            _ => return,
        };
        let zone = zone.and_then(|zone| zone.strip_prefix("zone=")).and_then(|zone| zone.split(':').next());
        defined.extend(zone.map(|zone| (kind, zone.to_owned())));
    });
    walk(case.root, &mut |at: At<'_, '_>| {
        let directive = at.directive;
        let (kind, zone) = match directive.name() {
            "limit_req" => {
                let zone = directive.args.iter().find_map(|word| Some((word.text.strip_prefix("zone=")?, word.span)));
                ("limit_req", zone)
            }
            "limit_conn" => ("limit_conn", directive.args.first().map(|word| (word.text.as_str(), word.span))),
            _ => return,
        };
        let Some((zone, span)) = zone else { return };
        if case.is_whole && !defined.contains(&(kind, zone.to_owned())) {
            let message = format!("no `{kind}_zone` defines {}", quoted(zone));
            let hint = format!(
                "in `http`: {kind}_zone $binary_remote_addr zone={zone}:10m{}",
                if kind == "limit_req" { " rate=10r/s;" } else { ";" }
            );
            sink.push(rules::ZONE_UNKNOWN.hit(message).at(span, "no zone has this name").hint(hint));
        }
        let status = if kind == "limit_req" { "limit_req_status" } else { "limit_conn_status" };
        if is_http(at.around) && holds(at.around, status).is_none() && (case.is_whole || case.outermost == "http") {
            let message = format!("{} answers 503", quoted(kind));
            sink.push(rules::LIMIT_STATUS.hit(message).at(directive.span(), "").hint(format!("add `{status} 429;`")));
        }
    });
}
