//! What a directive means where it stands: which blocks it is in, what holds there, who can reach it.

use std::net::IpAddr;

use super::parse::Directive;

/// A directive and the blocks around it, outermost first. The first is the file itself, whose name is empty.
#[derive(Clone, Copy)]
pub(super) struct At<'a, 'c> {
    pub(super) directive: &'a Directive,
    pub(super) around: &'c [&'a Directive],
}

/// Goes through all of them, blocks before what is in them.
pub(super) fn walk<'a>(root: &'a Directive, visit: &mut dyn FnMut(At<'a, '_>)) {
    fn inner<'a>(block: &'a Directive, around: &mut Vec<&'a Directive>, visit: &mut dyn FnMut(At<'a, '_>)) {
        around.push(block);
        for directive in block.children() {
            visit(At { directive, around });
            if !holds_data(directive.name()) {
                inner(directive, around, visit);
            }
        }
        around.pop();
    }
    inner(root, &mut Vec::new(), visit);
}

/// What is in its braces are no directives.
fn holds_data(name: &str) -> bool {
    matches!(name, "map" | "geo" | "types" | "split_clients" | "charset_map" | "match" | "geoip2")
}

/// What holds inside of these blocks: the innermost word on it.
pub(super) fn holds<'a>(around: &[&'a Directive], name: &str) -> Option<&'a Directive> {
    around.iter().rev().find_map(|block| block.children().iter().rfind(|directive| directive.name() == name))
}

/// All of the innermost block that has any of these names: how lists are inherited.
pub(super) fn list<'a>(around: &[&'a Directive], names: &[&str]) -> Vec<&'a Directive> {
    let of = |block: &&'a Directive| {
        let found = block.children().iter().filter(|directive| names.contains(&directive.name()));
        let found: Vec<_> = found.collect();
        (!found.is_empty()).then_some(found)
    };
    around.iter().rev().find_map(of).unwrap_or_default()
}

/// Only some addresses come here.
pub(super) fn is_for_some_addresses(around: &[&Directive]) -> bool {
    let access = list(around, &["allow", "deny"]);
    access.iter().any(|directive| directive.name() == "deny" && directive.arg(0) == Some("all"))
}

/// nginx alone comes here.
pub(super) fn is_internal(around: &[&Directive]) -> bool {
    around.last().is_some_and(|block| block.children().iter().any(|it| it.name() == "internal"))
}

/// Not everybody comes here: addresses, a password, a client's certificate, or nginx alone.
pub(super) fn is_restricted(around: &[&Directive]) -> bool {
    let is_on = |name: &str| holds(around, name).is_some_and(|directive| directive.arg(0) != Some("off"));
    let needs_certificate = holds(around, "ssl_verify_client").is_some_and(|it| it.arg(0) == Some("on"));
    let lua = holds(around, "access_by_lua_block").or_else(|| holds(around, "access_by_lua_file"));
    is_for_some_addresses(around)
        || is_internal(around)
        || needs_certificate
        || lua.is_some()
        || around.iter().any(|block| turns_away(block, around))
        || ["auth_basic", "auth_request", "auth_jwt", "auth_oidc"].into_iter().any(is_on)
        || server_of(around).is_some_and(|server| Server::of(server).is_private())
}

/// `if ($ssl_client_verify != SUCCESS) { return 403; }`, or the same with what a `geo` says of the address.
fn turns_away(block: &Directive, around: &[&Directive]) -> bool {
    let is_known = |name: &str| {
        let says_it = |it: &Directive| it.name() == "geo" && it.args.last().is_some_and(|word| word.text == name);
        name == "$ssl_client_verify" || around.iter().any(|outer| outer.children().iter().any(says_it))
    };
    let refuses = |it: &Directive| it.name() == "return" && it.arg(0).is_some_and(|status| status.starts_with('4'));
    block.children().iter().any(|it| {
        let variable = it.args.iter().map(|word| word.text.trim_matches(['(', ')'])).find(|word| word.starts_with('$'));
        it.name() == "if" && variable.is_some_and(is_known) && it.children().iter().any(refuses)
    })
}

/// The server that these blocks are in.
pub(super) fn server_of<'a>(around: &[&'a Directive]) -> Option<&'a Directive> {
    around.iter().rev().copied().find(|block| block.name() == "server")
}

/// One `listen`.
#[derive(Clone, Debug)]
pub(super) struct Listen<'a> {
    /// `None`: it is in the defaults.
    pub(super) directive: Option<&'a Directive>,
    /// `None`: a unix socket, or something with a variable.
    pub(super) port: Option<u16>,
    /// `None`: every address of its family, or a name.
    pub(super) ip: Option<IpAddr>,
    pub(super) is_v6: bool,
    pub(super) is_unix: bool,
    pub(super) tls: bool,
    pub(super) is_quic: bool,
    pub(super) default: bool,
}

impl<'a> Listen<'a> {
    fn of(directive: &'a Directive) -> Self {
        let address = directive.arg(0).unwrap_or_default();
        let has = |word: &str| directive.args.iter().skip(1).any(|arg| arg.text == word);
        let is_unix = address.starts_with("unix:");
        let (host, port) = match address.rsplit_once(':') {
            _ if is_unix => ("", None),
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()),
            _ if address.chars().all(|c| c.is_ascii_digit()) => ("", address.parse().ok()),
            _ => (address, Some(80)),
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let ip = match bare {
            "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
            bare => bare.parse::<IpAddr>().ok(),
        };
        Self {
            directive: Some(directive),
            port,
            is_v6: host.starts_with('['),
            ip: ip.filter(|ip| !ip.is_unspecified()),
            is_unix,
            tls: has("ssl") || has("quic"),
            is_quic: has("quic"),
            default: has("default_server") || has("default"),
        }
    }

    /// Only this host comes in here.
    pub(super) fn is_private(&self) -> bool {
        self.is_unix || self.ip.is_some_and(|ip| ip.is_loopback())
    }

    /// It is an address of a network that isn't the internet.
    pub(super) fn is_local(&self) -> bool {
        self.ip.is_some_and(|ip| match ip {
            IpAddr::V4(ip) => ip.is_private() || ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
        })
    }
}

/// A `server` and where it listens.
#[derive(Clone, Debug)]
pub(super) struct Server<'a> {
    pub(super) directive: &'a Directive,
    pub(super) listens: Vec<Listen<'a>>,
    pub(super) names: Vec<&'a str>,
}

impl<'a> Server<'a> {
    pub(super) fn of(directive: &'a Directive) -> Self {
        let of_name = |name: &'static str| directive.children().iter().filter(move |child| child.name() == name);
        let mut listens: Vec<Listen<'a>> = of_name("listen").map(Listen::of).collect();
        if of_name("ssl").any(|it| it.arg(0) == Some("on")) {
            listens.iter_mut().for_each(|listen| listen.tls = true);
        }
        if listens.is_empty() {
            listens.push(Listen {
                directive: None,
                port: Some(80),
                ip: None,
                is_v6: false,
                is_unix: false,
                tls: false,
                is_quic: false,
                default: false,
            });
        }
        let names = of_name("server_name").flat_map(|it| &it.args).map(|word| word.text.as_str()).collect();
        Self { directive, listens, names }
    }

    /// Only this host comes in.
    pub(super) fn is_private(&self) -> bool {
        self.listens.iter().all(Listen::is_private)
    }

    /// Names that somebody may ask for.
    pub(super) fn real_names(&self) -> impl Iterator<Item = &'a str> {
        self.names.iter().copied().filter(|name| !matches!(*name, "_" | "" | "localhost"))
    }

    pub(super) fn has_tls(&self) -> bool {
        self.listens.iter().any(|listen| listen.tls)
    }
}

/// Some directive below this block is one of these.
pub(super) fn has_below(block: &Directive, names: &[&str]) -> bool {
    block.children().iter().any(|child| names.contains(&child.name()) || has_below(child, names))
}

/// It is about TCP or mail, where the same words mean other things.
pub(super) fn is_http(around: &[&Directive]) -> bool {
    !around.iter().any(|block| matches!(block.name(), "stream" | "mail"))
}
