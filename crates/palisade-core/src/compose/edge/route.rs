//! One of `routes`.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::super::keys::{EDGE_BAN, EDGE_CONNECTIONS, EDGE_HSTS, EDGE_RATE, EDGE_ROUTE};
use super::super::read::{Fields, Reader, Text, no_mapping, other_type};
use super::super::units;
use super::super::yaml::{Data, Entry, Node};
use super::values::{self, Wrong};
use super::{FileRoute, FileUpstream};
use crate::diagnostic::{Diagnostic, Span, Spanned, quoted};
use crate::edge::{Ban, COMPRESSED, Domain, Hsts, Rate, UpstreamProtocol};
use crate::network::{Network, NotANetwork};

/// Of a request's body, unless it is said.
const BODY_BYTES_MAX: u64 = 10 << 20;
const TIMEOUT_MS: u64 = 60_000;
/// With less, services that are only busy seem dead.
const TIMEOUT_MIN_MS: u64 = 100;
/// RFC 6797 names no usual time; browsers' lists ask for this one.
const HSTS_AGE_S: u64 = 365 * 86_400;
const BURST_MAX: u64 = 1_000_000;
const CLIENT_CONNECTIONS_MAX: u64 = 1_000_000;
const BAN_AFTER_MAX: u64 = 1_000_000;
/// Longer, and nobody remembers why.
const BAN_FOR_S: RangeInclusive<u64> = 1..=365 * 86_400;

/// How an override file says which route it means.
pub(crate) const CHANGED_BY: &str =
    "a later file changes a route of an earlier one by naming all of its domains, and its path";

const DOMAIN_HINT: &str = "write a name like `barter.example`";
const NETWORK_HINT: &str = "write an address or a network: `192.0.2.7`, `192.0.2.0/24`, `2001:db8::/32`";
const DAYS_HINT: &str = "write a number with a unit: `10m`, `12h`, `365d`";
const TYPES_HINT: &str =
    "write media types, like `text/html` or `text/*`; `true` stands for those that are usually worth it";

/// `::ffff:192.0.2.0/120`
fn is_mapped(network: Network) -> bool {
    matches!(network.address(), IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() && network.prefix_len() >= 96)
}

impl Reader<'_> {
    /// A value that `parse` understands, or says what is wrong with.
    pub(super) fn understood<T>(
        &mut self,
        text: &Text,
        what: &str,
        hint: &str,
        parse: impl FnOnce(&str) -> Result<T, Wrong>,
    ) -> Option<T> {
        let shown = text.quoted();
        match parse(&text.value) {
            Ok(value) => Some(value),
            Err(_) if text.value.is_empty() && shown == quoted("") => {
                self.invalid(text, format!("this is empty, where {what} is wanted"), hint)
            }
            // What came out of a variable could be anything, and is not for showing.
            Err(_) if shown != quoted(&text.value) => {
                self.invalid(text, format!("{shown} does not become {what}"), hint)
            }
            Err(wrong) => self.invalid(text, format!("{shown} {}", wrong.message), &wrong.hint),
        }
    }

    /// A whole number within a range.
    pub(super) fn within(&mut self, node: &Node, what: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let hint = format!("write a whole number from {} to {}", range.start(), range.end());
        self.parsed(node, what, &hint, |text| text.trim().parse().ok().filter(|number| range.contains(number)))
    }

    /// A duration in milliseconds, at least `min_ms` (`least`, as it is written).
    pub(super) fn timeout(&mut self, node: &Node, what: &str, min_ms: u64, least: &str) -> Option<u64> {
        let hint = format!("write a number with a unit, like `30s` or `1m30s`; `{least}` to `24h`");
        let parse = |text: &str| units::duration_ms(text).filter(|ms| (min_ms..=86_400_000).contains(ms));
        self.parsed(node, &format!("a time that {what} can be"), &hint, parse)
    }

    /// A list of networks.
    pub(super) fn networks(&mut self, node: &Node, what: &str) -> Vec<Spanned<Network>> {
        let mut networks: Vec<Spanned<Network>> = Vec::new();
        if let Data::Scalar(scalar) = &node.data {
            let written = scalar.text.parse::<Network>().ok().filter(|_| scalar.written.is_none());
            let one = written.map_or_else(|| "192.0.2.0/24".to_owned(), |one| one.to_string());
            let diagnostic = other_type(node, what, "a list");
            self.push(diagnostic.hint(format!("one network is a list, too: `[\"{one}\"]`")));
            return networks;
        }
        for item in self.list(node, what).unwrap_or_default() {
            let Some(text) = self.text(item, "a network") else { continue };
            let parse = |text: &str| {
                text.parse::<Network>().map_err(|wrong| match wrong {
                    NotANetwork::HostBits { address, prefix_len, network } => Wrong {
                        message: "is not a network: it has bits behind its prefix".into(),
                        hint: format!(
                            "write `{network}` for the network, or `{address}` for the one address, not `/{prefix_len}`"
                        ),
                    },
                    NotANetwork::PrefixLength { bits, .. } => Wrong {
                        message: format!("is not a network: its prefix length is not 0 to {bits}"),
                        hint: NETWORK_HINT.into(),
                    },
                    NotANetwork::Address(_) => {
                        Wrong { message: "is not an address or a network".into(), hint: NETWORK_HINT.into() }
                    }
                })
            };
            // Such clients are told from others by their IPv4 address.
            let parse = |text: &str| match parse(text)? {
                network if is_mapped(network) => Err(Wrong {
                    message: "is IPv4 in the form of IPv6, in which no client has it".into(),
                    hint: NETWORK_HINT.into(),
                }),
                network => Ok(network),
            };
            if let Some(network) = self.understood(&text, "a network", NETWORK_HINT, parse) {
                networks.push(Spanned::new(network, text.span));
            }
        }
        networks
    }

    pub(super) fn domain(&mut self, text: &Text) -> Option<Spanned<Domain>> {
        let domain = self.understood(text, "a domain name", DOMAIN_HINT, values::domain)?;
        Some(Spanned::new(domain, text.span))
    }

    pub(super) fn route(&mut self, node: &Arc<Node>) -> Option<FileRoute> {
        let mut fields = self.fields(node, &EDGE_ROUTE)?;
        let before = self.sink.error_count();
        let domains = self.route_domains(fields.take("domain"), node);
        let domains_sound = self.sink.error_count() == before;
        let path = fields.value("path").and_then(|node| {
            let text = self.text(node, "`path`")?;
            let path = self.understood(&text, "a path", "write what the path begins with", values::path)?;
            Some(Spanned::new(path, text.span))
        });
        let to = self.route_upstream(fields.value("to"), node);
        let hint =
            "write `http` (HTTP/1.1), `h2c` (HTTP/2) or `grpc`; all of them without TLS, as they stay on this host";
        let protocol = fields.value("protocol").and_then(|node| {
            self.parsed(node, "a protocol that the edge speaks with services", hint, |text| match text {
                "http" | "http1" | "http/1.1" => Some(UpstreamProtocol::Http1),
                "h2c" | "grpc" => Some(UpstreamProtocol::H2c),
                _ => None,
            })
        });
        let rate_entry = fields.take("rate_limit");
        let rate = rate_entry.map(|entry| self.rate(&entry.value));
        let connections = fields.value("connections").map(|node| self.client_connections(node));
        let limited = connections.is_some() || matches!(rate, Some(None | Some(Some(_))));
        let allow = fields.written("allow").map(|entry| self.allowed(entry)).unwrap_or_default();
        let deny = fields.value("deny").map(|node| self.networks(node, "`deny`")).unwrap_or_default();
        let ban = fields.take("ban").and_then(|entry| {
            let ban = self.ban(&entry.value)?;
            Some(Spanned::new(ban, entry.key_span))
        });
        let body = fields.value("body_limit").and_then(|node| {
            let hint = "write bytes, or a number with a unit: `10m`, `1g`; `none`: as much as it likes";
            self.parsed(node, "a size that a body can have", hint, |text| match text {
                "none" => Some(u64::MAX),
                text => units::bytes(text, 1024),
            })
        });
        let timeout = fields.value("timeout").and_then(|node| self.timeout(node, "`timeout`", TIMEOUT_MIN_MS, "100ms"));
        let compress = fields.value("compress").and_then(|node| self.compressed(node)).unwrap_or_default();
        let hsts = fields.value("hsts").and_then(|node| self.hsts(node));
        fields.finish();
        Some(FileRoute {
            span: node.span,
            domains,
            domains_sound,
            path: path.unwrap_or_else(|| Spanned::new("/".to_owned(), node.span)),
            to,
            protocol: protocol.unwrap_or_default(),
            rate: rate.flatten().flatten(),
            connections_per_client: connections.flatten(),
            limited,
            rate_span: rate_entry.map(|entry| entry.key_span),
            allow,
            deny,
            ban,
            body_bytes_max: body.unwrap_or(BODY_BYTES_MAX),
            upstream_timeout_ms: timeout.unwrap_or(TIMEOUT_MS),
            compress,
            hsts,
        })
    }

    /// A list that names nobody isn't left out: whoever wrote it didn't mean everybody.
    fn allowed(&mut self, entry: &Entry) -> Vec<Spanned<Network>> {
        if entry.value.is_null() || matches!(&entry.value.data, Data::List(items) if items.is_empty()) {
            self.push(
                Diagnostic::error("missing-key", "`allow` names nobody")
                    .at(entry.key_span, "")
                    .hint("list who may ask: `allow: [192.0.2.0/24]`; leave it out for everybody"),
            );
        }
        self.networks(&entry.value, "`allow`")
    }

    fn lacks(&mut self, node: &Node, what: &str, key: &str, hint: &str) {
        let message = format!("{what} has no `{key}`");
        self.push(Diagnostic::error("missing-key", message).at(node.span, "").hint(hint));
    }

    fn route_domains(&mut self, entry: Option<&Entry>, route: &Node) -> Vec<Spanned<Domain>> {
        let hint = "say for which domain it is: `domain: barter.example`, or a list of several";
        let Some(entry) = entry else {
            self.lacks(route, "this route", "domain", hint);
            return Vec::new();
        };
        let Some(items) = self.one_or_list(&entry.value, "`domain`") else { return Vec::new() };
        if items.is_empty() {
            self.push(
                Diagnostic::error("missing-key", "this route is for no domain").at(entry.key_span, "").hint(hint),
            );
        }
        let texts = items.iter().filter_map(|item| self.text(item, "a domain")).collect::<Vec<_>>();
        let mut domains: Vec<Spanned<Domain>> = Vec::with_capacity(texts.len());
        let mut known: HashMap<Domain, Span> = HashMap::new();
        for text in texts {
            let Some(domain) = self.domain(&text) else { continue };
            match known.insert(domain.value.clone(), domain.span) {
                Some(first) => {
                    let message = format!("{} is listed twice", quoted(&domain.value));
                    let diagnostic = Diagnostic::error("duplicate-key", message).at(domain.span, "");
                    self.push(diagnostic.also(first, "the first one").hint("keep one of them"));
                }
                None => domains.push(domain),
            }
        }
        domains
    }

    fn route_upstream(&mut self, node: Option<&Arc<Node>>, route: &Node) -> Option<Spanned<FileUpstream>> {
        let Some(node) = node else {
            let diagnostic = Diagnostic::error("missing-key", "this route has no `to`").at(route.span, "");
            let diagnostic = diagnostic.hint("say which service answers, and at which port: `to: app:8081`");
            self.push(match route.span.file.index() {
                0 => diagnostic,
                _ => diagnostic.hint(CHANGED_BY),
            });
            return None;
        };
        let text = self.text(node, "`to`")?;
        let hint = "write a service of this file and its port: `app:8081`";
        let upstream = self.understood(&text, "a service and its port", hint, values::upstream)?;
        Some(Spanned::new(upstream, text.span))
    }

    /// `None`: there is a mistake; `Some(None)`: `off`.
    fn rate(&mut self, node: &Node) -> Option<Option<Rate>> {
        let hint = "write requests a second or a minute, `10/s` or `90/m`; `off` for no limit";
        let per_client = |reader: &mut Self, node: &Node| {
            let text = reader.text(node, "a rate")?;
            reader.understood(&text, "a rate", hint, values::rate)
        };
        let Data::Map(_) = &node.data else {
            let Data::Scalar(scalar) = &node.data else {
                return self.mistyped(node, "`rate_limit`", "a rate, `off`, or a mapping");
            };
            if matches!(scalar.text.to_ascii_lowercase().as_str(), "off" | "no" | "false") {
                return Some(None);
            }
            let milli_per_s = per_client(self, node)?;
            return Some(Some(Rate { milli_per_s, burst: values::usual_burst(milli_per_s) }));
        };
        let mut fields = self.fields(node, &EDGE_RATE)?;
        let rate = fields.value("per_client").map(|node| per_client(self, node));
        let burst = fields.value("burst").map(|node| self.within(node, "a number that `burst` can be", 0..=BURST_MAX));
        fields.finish();
        let Some(rate) = rate else {
            self.lacks(node, "`rate_limit`", "per_client", hint);
            return None;
        };
        let milli_per_s = rate?;
        let burst = match burst {
            Some(burst) => u32::try_from(burst?).ok()?,
            None => values::usual_burst(milli_per_s),
        };
        Some(Some(Rate { milli_per_s, burst }))
    }

    fn client_connections(&mut self, node: &Node) -> Option<u32> {
        let hint = "write how many connections one client may have: `connections: {per_client: 50}`";
        if let Data::Scalar(_) = node.data {
            self.push(no_mapping(node, EDGE_CONNECTIONS.what).hint(hint));
            return None;
        }
        let mut fields = self.fields(node, &EDGE_CONNECTIONS)?;
        let what = "a number of connections that a client can have";
        let number = fields.value("per_client").map(|node| self.within(node, what, 1..=CLIENT_CONNECTIONS_MAX));
        fields.finish();
        if number.is_none() {
            self.lacks(node, "`connections`", "per_client", hint);
        }
        number.flatten().and_then(|number| u32::try_from(number).ok())
    }

    fn ban(&mut self, node: &Node) -> Option<Ban> {
        let hint = "say both: `ban: {after: 100, for: 10m}`";
        if let Data::Scalar(_) = node.data {
            self.push(no_mapping(node, EDGE_BAN.what).hint(hint));
            return None;
        }
        let mut fields = self.fields(node, &EDGE_BAN)?;
        let after = fields
            .value("after")
            .map(|node| self.within(node, "a number of refused requests that a ban comes after", 1..=BAN_AFTER_MAX));
        let time = fields.value("for").map(|node| {
            let hint = format!("{DAYS_HINT}; at most `365d`");
            self.parsed(node, "a time that a ban can last", &hint, |text| {
                units::days_s(text).filter(|seconds| BAN_FOR_S.contains(seconds))
            })
        });
        fields.finish();
        for (key, missing) in [("after", after.is_none()), ("for", time.is_none())] {
            if missing {
                self.lacks(node, "`ban`", key, hint);
            }
        }
        Some(Ban { after: u32::try_from(after??).ok()?, for_s: u32::try_from(time??).ok()? })
    }

    fn compressed(&mut self, node: &Node) -> Option<BTreeSet<String>> {
        if let Data::Scalar(_) = node.data {
            let hint = "write `true`, `false`, or the media types that are compressed, like `[text/html, application/json]`; whether by zstd, br or gzip is up to the client";
            let all =
                self.parsed(node, "what `compress` can be", hint, |text| match text.to_ascii_lowercase().as_str() {
                    "true" | "yes" | "on" => Some(true),
                    "false" | "no" | "off" => Some(false),
                    _ => None,
                })?;
            return Some(COMPRESSED.into_iter().filter(|_| all).map(str::to_owned).collect());
        }
        let texts = self.texts_or(node, "`compress`", "`true`, `false` or a list of media types")?;
        let mut types = BTreeSet::new();
        for text in texts {
            let token = |part: &str| {
                let other = |c: char| c.is_ascii_alphanumeric() || "!#$&-^_.+".contains(c);
                !part.is_empty() && part.chars().all(other)
            };
            let value = text.value.to_ascii_lowercase();
            match value.split_once('/') {
                Some(("text", "*")) => drop(types.insert(value)),
                Some((kind, sort)) if token(kind) && token(sort) => drop(types.insert(value)),
                _ => {
                    let message = format!("{} is not a media type", text.quoted());
                    self.invalid::<()>(&text, message, TYPES_HINT);
                }
            }
        }
        Some(types)
    }

    fn hsts(&mut self, node: &Node) -> Option<Hsts> {
        let whole = Hsts { max_age_s: HSTS_AGE_S, subdomains: false, preload: false };
        if let Data::Scalar(_) = node.data {
            return self.bool(node, "`hsts`").filter(|on| *on).map(|_| whole);
        }
        let mut fields = self.fields(node, &EDGE_HSTS)?;
        let age = fields
            .value("max_age")
            .map(|node| self.parsed(node, "a time that browsers can remember", DAYS_HINT, units::days_s));
        let flag = |reader: &mut Self, fields: &mut Fields<'_>, name: &str| {
            let entry = fields.take(name)?;
            Some((reader.bool(&entry.value, &quoted(name))?, entry.key_span))
        };
        let subdomains = flag(self, &mut fields, "subdomains");
        let preload = flag(self, &mut fields, "preload");
        fields.finish();
        let max_age_s = age.unwrap_or(Some(HSTS_AGE_S))?;
        let hsts = Hsts {
            max_age_s,
            subdomains: subdomains.is_some_and(|(on, _)| on),
            preload: preload.is_some_and(|(on, _)| on),
        };
        if let Some((true, span)) = preload
            && (!hsts.subdomains || hsts.max_age_s < HSTS_AGE_S)
        {
            self.push(
                Diagnostic::error(
                    "conflict",
                    "browsers' lists take only domains that are HTTPS for a year, with all domains below",
                )
                .at(span, "")
                .hint("add `subdomains: true` and a `max_age` of at least `365d`, or remove `preload`"),
            );
        }
        Some(hsts)
    }
}
