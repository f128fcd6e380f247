//! Files that are served, headers that are lost, and answers that nginx gives itself.

use std::net::IpAddr;

use crate::diagnostic::{Sink, quoted};

use super::super::parse::Directive;
use super::super::rules;
use super::super::view::{At, holds, is_http, is_restricted, list, server_of};
use super::Case;

/// Files that are in a folder by mistake.
const HIDDEN: [&str; 6] = [".git", ".env", ".svn", ".hg", ".htpasswd", ".aws"];
/// Headers that protect; the ones that must not get lost.
const PROTECTIVE: [&str; 5] = [
    "strict-transport-security",
    "content-security-policy",
    "x-frame-options",
    "x-content-type-options",
    "referrer-policy",
];

pub(super) fn check(case: &Case<'_>, at: At<'_, '_>, sink: &mut Sink) {
    if !is_http(at.around) {
        return;
    }
    match at.directive.name() {
        "server" | "location" => super::locations::never_asked(at.directive, sink),
        "alias" => alias(at, sink),
        "autoindex" if at.directive.arg(0) == Some("on") && !is_restricted(at.around) => {
            let found = rules::AUTOINDEX.hit("folders are listed to everybody").at(at.directive.span(), "");
            sink.push(found.hint("take it out, or allow it to those who need it: auth_basic, or allow and deny"));
        }
        "stub_status" if !is_restricted(at.around) => {
            let found = rules::STATUS_PUBLIC.hit("nginx's statistics are for everybody").at(at.directive.span(), "");
            sink.push(found.hint("add `allow 127.0.0.1; deny all;` to the location"));
        }
        "root" => hidden_files(case, at, sink),
        "add_header" => lost_headers(at, sink),
        "if" if at.around.last().is_some_and(|block| block.name() == "location") => evil_if(at, sink),
        "return" => redirect(at, sink),
        "set_real_ip_from" => {
            let everybody = at.directive.arg(0).is_some_and(|network| network.ends_with("/0"));
            if everybody {
                let found = rules::TRUST_EVERYBODY.hit("everybody may say which address they have");
                let found = found.at(at.directive.span(), "this is every address");
                sink.push(found.hint("name the networks of your proxies only; without a proxy in front, take it out"));
            }
        }
        "limit_req_zone" | "limit_conn_zone" => {
            let key = at.directive.args.first();
            if let Some(key) = key.filter(|key| {
                key.text.contains("$http_") || key.text.contains("$arg_") || key.text.contains("$cookie_")
            }) {
                // A map may have judged it before; a header as it comes has nobody.
                let found = rules::LIMIT_KEY.hit(format!("the limit counts by {}", quoted(&key.text)));
                let found = found.at(key.span, "the client writes this");
                sink.push(
                    found.hint("count by $binary_remote_addr; behind a proxy, set it right with set_real_ip_from"),
                );
            }
        }
        "resolver" => resolver(at.directive, sink),
        _ => {}
    }
}

fn alias(at: At<'_, '_>, sink: &mut Sink) {
    let Some(location) = at.around.last().filter(|block| block.name() == "location") else { return };
    let prefix = match &location.args[..] {
        [path] => path,
        [modifier, path] if modifier.text == "^~" => path,
        _ => return,
    };
    let ends = |text: &str| text.ends_with('/');
    let folder = at.directive.arg(0).unwrap_or_default();
    if prefix.text.starts_with('/') && !ends(&prefix.text) && ends(folder) {
        let found = rules::ALIAS_TRAVERSAL
            .hit(format!("{}../ leads out of {}", prefix.text, quoted(folder)))
            .at(prefix.span, "no slash at its end")
            .also(at.directive.span(), "but here");
        sink.push(found.hint(format!("say `location {}/ {{`", prefix.text)));
    }
}

/// What is there is looked for; that something could be there is no finding.
fn hidden_files(case: &Case<'_>, at: At<'_, '_>, sink: &mut Sink) {
    let Some(root) = at.directive.args.first().filter(|root| !root.text.contains('$')) else { return };
    let Some(server) = server_of(at.around) else { return };
    // Served files only: what is passed on to a service isn't looked for in the folder.
    let here = at.around.last().copied();
    let location = match here {
        Some(block) if block.name() == "server" => "/",
        Some(block) if block.name() == "location" => match &block.args[..] {
            [path] => path.text.as_str(),
            _ => return,
        },
        _ => return,
    };
    let takes_all = |block: &Directive| {
        block.name() == "location"
            && block.args.last().is_some_and(|path| path.text == "/")
            && block.children().iter().any(|child| child.name().ends_with("_pass") || child.name() == "return")
    };
    if location == "/" && server.children().iter().any(takes_all) || is_restricted(at.around) {
        return;
    }
    let keeps_back = |block: &Directive| {
        let is_about = block.args.iter().any(|word| word.text.contains("/\\.") || word.text.contains("/."));
        let refuses = block.children().iter().any(|child| matches!(child.name(), "deny" | "return"));
        // Challenges live below /.well-known, which has nothing to do with these.
        block.name() == "location" && is_about && refuses
    };
    if server.children().iter().any(keeps_back) {
        return;
    }
    for name in HIDDEN {
        let path = format!("{}/{}{name}", root.text.trim_end_matches('/'), location.trim_matches('/'));
        let path = if location.trim_matches('/').is_empty() { path } else { path.replace(name, &format!("/{name}")) };
        if case.source.exists(&path) == Some(true) {
            let found = rules::FILES_EXPOSED.hit(format!("{path} can be fetched")).at(root.span, "it is in here");
            sink.push(found.hint("move it away, and add `location ~ /\\.(?!well-known/) { deny all; }` to the server"));
        }
    }
}

fn lost_headers(at: At<'_, '_>, sink: &mut Sink) {
    let [outer @ .., block] = at.around else { return };
    // An answer without content needs no protection.
    if block.children().iter().any(|child| child.name() == "return" && child.arg(0) == Some("204")) {
        return;
    }
    // Each block is judged once, at its first header.
    let first = block.children().iter().find(|child| child.name() == "add_header");
    if !first.is_some_and(|first| std::ptr::eq(first, at.directive)) || holds(at.around, "add_header_inherit").is_some()
    {
        return;
    }
    let name = |directive: &Directive| directive.arg(0).unwrap_or_default().to_ascii_lowercase();
    let own: Vec<String> = list(at.around, &["add_header"]).into_iter().map(name).collect();
    for header in list(outer, &["add_header"]) {
        let lost = name(header);
        if PROTECTIVE.contains(&lost.as_str()) && !own.contains(&lost) {
            let shown = header.arg(0).unwrap_or_default();
            let found = rules::HEADER_LOST
                .hit(format!("{} isn't sent from here", quoted(shown)))
                .at(at.directive.span(), "because this block has an `add_header` of its own")
                .also(header.span(), "it is set here");
            sink.push(found.hint("say it again in this block, or put all of them into a file that both include"));
        }
    }
}

fn evil_if(at: At<'_, '_>, sink: &mut Sink) {
    let harmless = ["return", "rewrite", "set", "break", "limit_rate", "limit_rate_after", "access_log"];
    // What belongs to an answer that is given right here, as to the question of a browser before it asks another site.
    let of_answer = ["add_header", "default_type", "charset", "expires"];
    let answers = at.directive.children().iter().any(|child| child.name() == "return");
    let is_harmless = |name: &str| harmless.contains(&name) || answers && of_answer.contains(&name);
    let evil = at.directive.children().iter().find(|child| !is_harmless(child.name()));
    if let Some(evil) = evil {
        let found = rules::IF_IS_EVIL
            .hit(format!("{} in an `if` of a location", quoted(evil.name())))
            .at(evil.span(), "this takes the place of what the location says")
            .also(at.directive.name.span, "in this `if`");
        sink.push(found.hint(
            "use `map` for values, another location, or `try_files`; `return` and `rewrite` are fine in an `if`",
        ));
    }
}

fn redirect(at: At<'_, '_>, sink: &mut Sink) {
    let (status, target) = match &at.directive.args[..] {
        [target] => ("302", target),
        [status, target] => (status.text.as_str(), target),
        _ => return,
    };
    let is_redirect = matches!(status, "301" | "302" | "303" | "307" | "308");
    let to = target.text.split_once("://").map_or(target.text.as_str(), |(_, rest)| rest);
    if is_redirect && ["$arg_", "$cookie_"].iter().any(|variable| to.starts_with(variable)) {
        let found = rules::OPEN_REDIRECT.hit("the client says where it is sent").at(target.span, "it chooses this");
        sink.push(found.hint("name the host here, or choose among known ones by a `map` with a default"));
    }
    let decoded = ["$uri", "$document_uri", "${uri}", "${document_uri}"];
    let holds_path = |variable: &&&str| {
        target.text.match_indices::<&str>(variable).any(|(at, _)| {
            let next = target.text[at + variable.len()..].chars().next();
            !next.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') || variable.ends_with('}')
        })
    };
    if let Some(variable) = decoded.iter().find(holds_path).filter(|_| is_redirect) {
        let found = rules::URI_IN_REDIRECT.hit(format!("the redirect holds {}", quoted(variable)));
        sink.push(
            found.at(target.span, "nginx has decoded this").hint("say $request_uri, which is as the client sent it"),
        );
    }
}

fn resolver(directive: &Directive, sink: &mut Sink) {
    let is_public = |text: &str| {
        let host = text.trim_start_matches('[').split(']').next().unwrap_or(text);
        let host = if host.matches(':').count() == 1 { host.split(':').next().unwrap_or(host) } else { host };
        match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => !(ip.is_private() || ip.is_loopback() || ip.is_link_local()),
            Ok(IpAddr::V6(ip)) => !(ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()),
            Err(_) => false,
        }
    };
    if let Some(word) = directive.args.iter().find(|word| is_public(&word.text)) {
        let found = rules::RESOLVER_PUBLIC.hit(format!("names are asked of {}", quoted(&word.text)));
        sink.push(
            found
                .at(word.span, "this is on the internet")
                .hint("run one here: 127.0.0.53 (systemd-resolved) or 127.0.0.1 (unbound)"),
        );
    }
}
