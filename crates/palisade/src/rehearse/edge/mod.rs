//! The edge of a rehearsal, asked from the internet of the scene: redirect, certificates, headers, limits, upgrades.
//!
//! That nothing but the edge answers is shown by the stranger, who tries everything. What can't be tried here is said.

mod door;
mod limits;
mod text;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use palisade_core::edge::{self, AUTHORITIES_VOLUME, CertificateSource, Domain, Edge, Route};
use palisade_core::finding::Finding;
use palisade_core::stack::Stack;
use palisade_edge::client::{self, Believed};
use palisade_edge::local_ca::LocalCa;
use palisade_host::layout::Layout;
use palisade_host::link;
use serde::Serialize;

use super::scene::{HOST, INTERFACE, STRANGER};
use door::{Door, forged};
pub(crate) use text::text;

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// The first of the clients that nobody has seen yet: each limit is tried by one of its own.
const FIRST_CLIENT: u8 = 10;
/// Nobody's address (RFC 5737), which clients claim to have.
const FORGED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);

const UPGRADE: [&str; 4] = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

/// What was found out about the edge.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Served {
    /// Domains that a client without TLS is led to HTTPS for.
    pub redirected: Vec<String>,
    /// Domains whose certificate a client believes; one that was given is believed when it is the one that is shown.
    pub believed: Vec<String>,
    /// By domain and path: what was answered to `GET`.
    pub answered: BTreeMap<String, u16>,
    /// By domain and path: what was answered to the wish for a WebSocket; 101 is yes.
    pub upgraded: BTreeMap<String, u16>,
    /// Domains and paths that refuse the stranger, as the file says, also when it claims to be somebody who may ask.
    pub refused: Vec<String>,
    /// Domains and paths whose application told the client's own address, though another one was claimed.
    pub unforged: Vec<String>,
    /// By domain and path: of how many requests at once how many passed.
    pub limited: BTreeMap<String, Burst>,
    /// By domain and path: of how many WebSockets at once how many passed `connections`.
    pub at_once: BTreeMap<String, Burst>,
    /// What can't be tried here.
    pub not_tried: Vec<NotTried>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Requests at once.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Burst {
    /// Tried.
    pub tried: u32,
    /// Not answered with 429.
    pub passed: u32,
    /// So many are to pass.
    pub expected: u32,
    /// The same once the limit has let more pass again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub later: Option<Later>,
}

/// Requests at once, a while after a limit was used up.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Later {
    /// So long after.
    pub after_ms: u64,
    /// Tried.
    pub tried: u32,
    /// Not answered with 429.
    pub passed: u32,
    /// So many are to pass at least; more do when asking takes long.
    pub expected: u32,
}

/// Something that the file says and that can't be tried.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct NotTried {
    /// What.
    pub what: String,
    /// And why.
    pub why: String,
}

/// Asks for everything that the edge serves. Runs in the internet's namespace.
pub(crate) fn ask(layout: &Layout, stack: &Stack) -> Option<Served> {
    let edge = stack.edge.as_ref()?;
    let mut asking = Asking { edge, believed: BTreeMap::new(), clients: 0, served: Served::default() };
    let root = LocalCa::roots(&layout.volume(AUTHORITIES_VOLUME));
    for (domain, source) in &edge.certificates {
        let believed = match source {
            CertificateSource::Acme | CertificateSource::Local => Believed::Roots(root.clone()),
            CertificateSource::Files { chain, .. } => match fs::read(chain) {
                Ok(pem) => Believed::Chain(pem),
                Err(error) => {
                    asking.wrong("edge-certificate", domain, format!("can't read {}: {error}", chain.display()));
                    continue;
                }
            },
        };
        asking.believed.insert(domain, believed);
    }
    for domain in edge.domains() {
        asking.domain(domain);
    }
    for route in &edge.routes {
        asking.route(&route.value);
    }
    if edge.http3 {
        asking.not_tried("HTTP/3", "the client of a rehearsal doesn't speak it");
    }
    Some(asking.served)
}

struct Asking<'a> {
    edge: &'a Edge,
    /// By domain.
    believed: BTreeMap<&'a Domain, Believed>,
    /// Which clients have asked already.
    clients: u8,
    served: Served,
}

/// A name that a wildcard stands for.
fn name_of(domain: &str) -> String {
    domain.strip_prefix("*.").map_or_else(|| domain.to_owned(), |parent| format!("rehearsal.{parent}"))
}

fn may_ask(route: &Route, address: IpAddr) -> bool {
    edge::may_ask(&route.allow, &route.deny, address)
}

impl<'a> Asking<'a> {
    fn wrong(&mut self, id: &'static str, subject: &str, message: String) {
        self.served.findings.push(Finding::error(id, subject, message));
    }

    fn not_tried(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.served.not_tried.push(NotTried { what: what.into(), why: why.into() });
    }

    /// Whatever it says of itself is believed.
    fn is_trusted(&self, address: IpAddr) -> bool {
        self.edge.trusted_proxies.iter().any(|network| network.contains(address))
    }

    /// A client that the edge hasn't seen yet.
    fn new_client(&mut self) -> Result<IpAddr, String> {
        let IpAddr::V4(stranger) = STRANGER[0] else { return Err("the stranger has no address of IPv4".to_owned()) };
        let [a, b, c, _] = stranger.octets();
        let last = FIRST_CLIENT.checked_add(self.clients).filter(|last| *last < u8::MAX);
        let last = last.ok_or("there are too many routes for a client of its own each")?;
        let address = Ipv4Addr::new(a, b, c, last).into();
        link::add_address(INTERFACE, address, 24).map_err(|error| crate::exit::chain(&error))?;
        self.clients += 1;
        Ok(address)
    }

    fn domain(&mut self, domain: &str) {
        let name = name_of(domain);
        if self.edge.redirect {
            let at = SocketAddr::new(HOST[0], self.edge.http_port);
            let answer = client::plain(at, PATIENCE).and_then(|mut opened| opened.get(&name, "/a?b=c", &[]));
            let port = if self.edge.https_port == 443 { String::new() } else { format!(":{}", self.edge.https_port) };
            let wanted = format!("https://{name}{port}/a?b=c");
            match answer {
                Ok(answer) if answer.status == 308 && answer.field("location") == Some(&wanted) => {
                    self.served.redirected.push(domain.to_owned());
                }
                Ok(answer) => {
                    let to = answer.field("location").unwrap_or("nowhere");
                    let message =
                        format!("plain HTTP is answered with {} and leads to {to}, not to {wanted}", answer.status);
                    self.wrong("edge-redirect", domain, message);
                }
                Err(error) => self.wrong("edge-redirect", domain, format!("plain HTTP isn't answered: {error}")),
            }
        }
        let Some(believed) = self.believed.get(&domain.to_owned()) else { return };
        for address in HOST {
            let at = SocketAddr::new(address, self.edge.https_port);
            if let Err(error) = client::tls(at, None, &name, believed, PATIENCE) {
                let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                self.wrong("edge-certificate", domain, format!("a client over {family} doesn't connect: {error}"));
                return;
            }
        }
        self.served.believed.push(domain.to_owned());
    }

    /// By the first domain of the route that a client can be of.
    fn door<'r>(&self, route: &'r Route) -> Option<Door<'r>> {
        let (domain, believed) =
            route.domains.iter().find_map(|domain| Some((domain, self.believed.get(domain)?.clone())))?;
        let name = name_of(domain);
        let what = format!("{name}{}", route.path);
        Some(Door { at: SocketAddr::new(HOST[0], self.edge.https_port), name, path: &route.path, believed, what })
    }

    fn route(&mut self, route: &Route) {
        // Why there is none was told.
        let Some(door) = self.door(route) else { return };
        if !may_ask(route, STRANGER[0]) {
            self.refused(&door, route);
            if route.rate.is_some() || route.connections_per_client.is_some() {
                self.not_tried(format!("{}: its limits", door.what), "nobody on the scratch internet may ask");
            }
            return;
        }
        self.served(&door, route);
        self.upgrade(&door);
        self.rate(&door, route);
        self.connections(&door, route);
    }

    /// Whoever may not ask is refused, whoever it claims to be.
    fn refused(&mut self, door: &Door<'_>, route: &Route) {
        let allowed = route.allow.iter().map(|network| network.address()).find(|address| may_ask(route, *address));
        let claim = forged(allowed.unwrap_or(FORGED.into()));
        let claim: Vec<&str> = claim.iter().map(String::as_str).collect();
        let fields: [&[&str]; 2] = [&[], &claim];
        // Who is trusted may say who asks.
        let asked = if self.is_trusted(STRANGER[0]) { 1 } else { 2 };
        for fields in &fields[..asked] {
            match door.ask(fields) {
                Ok(answer) if answer.status == 403 => {}
                Ok(answer) => {
                    let claims = if fields.is_empty() { "" } else { ", who claims to be somebody else," };
                    let message =
                        format!("{}{claims} is answered with {}, not refused (403)", STRANGER[0], answer.status);
                    return self.wrong("edge-allow", &door.what, message);
                }
                Err(error) => return self.wrong("edge-unanswered", &door.what, format!("there is no answer: {error}")),
            }
        }
        self.served.answered.insert(door.what.clone(), 403);
        self.served.refused.push(door.what.clone());
    }

    fn served(&mut self, door: &Door<'_>, route: &Route) {
        let what = &door.what;
        let claim = forged(FORGED.into());
        let claim: Vec<&str> = claim.iter().map(String::as_str).collect();
        let trusted = self.is_trusted(STRANGER[0]);
        let answer = match door.ask(if trusted { &[] } else { &claim }) {
            Ok(answer) => answer,
            Err(error) => return self.wrong("edge-unanswered", what, format!("there is no answer: {error}")),
        };
        self.served.answered.insert(what.clone(), answer.status);
        if [502, 503, 504].contains(&answer.status) {
            let message = format!("{} is answered: {} doesn't serve it", answer.status, route.to);
            self.wrong("edge-upstream", what, message);
        }
        let hsts = answer.field("strict-transport-security").unwrap_or_default();
        if let Some(wanted) = route.hsts.filter(|w| !hsts.contains(&format!("max-age={}", w.max_age_s))) {
            let message = format!("Strict-Transport-Security is `{hsts}` and not for {} s", wanted.max_age_s);
            self.wrong("edge-hsts", what, message);
        }
        let text = String::from_utf8_lossy(&answer.body);
        let forging = format!("{what}: that its application isn't deceived by a forged X-Forwarded-For");
        if trusted {
            self.not_tried(forging, "`trusted_proxies` has everybody on the scratch internet in it");
        } else if text.contains(&FORGED.to_string()) {
            let message = format!("{} was told that it is asked by {FORGED}, as {} had claimed", route.to, STRANGER[0]);
            self.wrong("edge-forged", what, message);
        } else if text.contains(&STRANGER[0].to_string()) {
            self.served.unforged.push(what.clone());
        } else {
            self.not_tried(forging, "its answer doesn't say by whom it was asked");
        }
    }

    fn upgrade(&mut self, door: &Door<'_>) {
        let what = &door.what;
        match door.ask(&UPGRADE) {
            Ok(answer) => {
                self.served.upgraded.insert(what.clone(), answer.status);
                if answer.status >= 500 && self.served.answered.get(what).is_some_and(|status| *status < 500) {
                    let message = format!("a WebSocket is answered with {}, though `GET` works", answer.status);
                    self.wrong("edge-upgrade", what, message);
                }
            }
            Err(error) => {
                self.wrong("edge-unanswered", what, format!("the wish for a WebSocket isn't answered: {error}"));
            }
        }
    }
}
