//! The edge of a rehearsal, asked from the internet of the scene: redirect, certificates, headers, limits, upgrades.
//!
//! That nothing but the edge answers is shown by the stranger, who tries everything. What can't be tried here is said.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use palisade_core::edge::{AUTHORITIES_VOLUME, CertificateSource, Domain, Edge, Rate, Route};
use palisade_core::finding::Finding;
use palisade_core::stack::Stack;
use palisade_edge::client::{self, Answer, Believed, Opened};
use palisade_edge::local_ca::LocalCa;
use palisade_host::layout::Layout;
use palisade_host::link;
use serde::Serialize;

use super::scene::{HOST, INTERFACE, STRANGER};

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// More requests at once would test the machine. Limits that let more pass are told, not tried.
const AT_ONCE_MAX: u32 = 300;
/// Requests beyond those that may pass.
const TOO_MANY: u32 = 10;
/// So long is waited at least for a limit that is used up to let more pass, and at most.
const REFILL_MIN_MS: u64 = 1_000;
const REFILL_MAX_MS: u64 = 5_000;
/// What is waited longer, as the edge counts whole milliseconds.
const REFILL_MARGIN: Duration = Duration::from_millis(50);
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

/// Where a route is asked for.
struct Door<'a> {
    at: SocketAddr,
    name: String,
    path: &'a str,
    believed: Believed,
    /// Its domain and path.
    what: String,
}

impl Door<'_> {
    fn open(&self, source: Option<IpAddr>) -> io::Result<Opened> {
        client::tls(self.at, source, &self.name, &self.believed, PATIENCE)
    }

    fn get(&self, opened: &mut Opened, fields: &[&str]) -> io::Result<Answer> {
        opened.get(&self.name, self.path, fields)
    }

    /// Asks as the stranger, and again when a limit wants to be waited for.
    fn ask(&self, fields: &[&str]) -> io::Result<Answer> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.get(&mut self.open(None)?, fields)?;
            let again = answer.field("retry-after").filter(|_| answer.status == 429);
            match again.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs) {
                Some(wait) if Instant::now() + wait < deadline => std::thread::sleep(wait),
                _ => return Ok(answer),
            }
        }
    }

    /// So many connections of this client.
    fn open_all(&self, client: IpAddr, count: u32) -> io::Result<Vec<Opened>> {
        (0..count).map(|_| self.open(Some(client))).collect()
    }

    /// Asks once on each of these connections, on so many at a time. Whoever asks claims to be somebody else each time, if it
    /// `forges`.
    fn burst(&self, opened: Vec<Opened>, at_once: u32, forges: bool) -> Asked {
        let tried = opened.len() as u32;
        let waiting = Mutex::new(opened);
        let barrier = Barrier::new(at_once as usize + 1);
        let ask = || {
            let mut statuses = Vec::new();
            barrier.wait();
            loop {
                let next = {
                    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                    waiting.pop().map(|opened| (opened, waiting.len()))
                };
                let Some((mut opened, number)) = next else { return statuses };
                let claim = forged(Ipv4Addr::new(192, 0, 2, (number % 250) as u8 + 1).into());
                let claim: Vec<&str> = claim.iter().map(String::as_str).collect();
                let answer = self.get(&mut opened, if forges { &claim } else { &[] });
                statuses.push(answer.map(|answer| answer.status));
            }
        };
        std::thread::scope(|scope| {
            let asking: Vec<_> = (0..at_once).map(|_| scope.spawn(ask)).collect();
            let began = Instant::now();
            barrier.wait();
            let statuses: Vec<_> = asking.into_iter().flat_map(|asking| asking.join().unwrap_or_default()).collect();
            let refused = statuses.iter().filter(|status| matches!(status, Ok(429))).count() as u32;
            let answered = statuses.iter().filter(|status| status.is_ok()).count() as u32;
            Asked { began, ended: Instant::now(), passed: answered - refused, unanswered: tried - answered }
        })
    }
}

/// What came of requests at once.
struct Asked {
    began: Instant,
    ended: Instant,
    passed: u32,
    unanswered: u32,
}

/// Fields of a client that claims to be somebody else.
fn forged(address: IpAddr) -> Vec<String> {
    let node = if address.is_ipv4() { address.to_string() } else { format!("\"[{address}]\"") };
    ["X-Forwarded-For", "X-Real-IP", "X_Forwarded_For"]
        .iter()
        .map(|name| format!("{name}: {address}"))
        .chain([format!("Forwarded: for={node}")])
        .collect()
}

/// A name that a wildcard stands for.
fn name_of(domain: &str) -> String {
    domain.strip_prefix("*.").map_or_else(|| domain.to_owned(), |parent| format!("rehearsal.{parent}"))
}

fn may_ask(route: &Route, address: IpAddr) -> bool {
    let allowed = route.allow.is_empty() || route.allow.iter().any(|network| network.contains(address));
    allowed && !route.deny.iter().any(|network| network.contains(address))
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

    /// A client that asks for the first time, if it may.
    fn client_for(&mut self, route: &Route) -> Result<IpAddr, String> {
        let client = self.new_client()?;
        if may_ask(route, client) { Ok(client) } else { Err(format!("{client} may not ask, only the stranger")) }
    }

    fn rate(&mut self, door: &Door<'_>, route: &Route) {
        let Some(rate) = route.rate else { return };
        let limit = format!("{}: its rate_limit", door.what);
        let expected = rate.burst.saturating_add(1);
        // Whoever is banned gets no answer at all.
        let refusals_max = route.ban.map_or(u32::MAX, |ban| ban.after.saturating_sub(1));
        let beyond = TOO_MANY.min(refusals_max.div_ceil(2));
        let tried = expected.saturating_add(beyond);
        if beyond == 0 {
            return self.not_tried(limit, "who is refused once is banned");
        }
        if tried > AT_ONCE_MAX {
            let why = format!("{tried} requests at once would test this machine; it tries {AT_ONCE_MAX} at most");
            return self.not_tried(limit, why);
        }
        let client = match self.client_for(route) {
            Ok(client) => client,
            Err(why) => return self.not_tried(limit, why),
        };
        // Where so many at once would be refused by `connections`, they come one after the other, which takes a moment longer.
        let at_once = route.connections_per_client.map_or(tried, |most| most.div_ceil(2).clamp(1, tried));
        let forges = !self.is_trusted(client);
        let first = match door.open_all(client, tried) {
            Ok(opened) => door.burst(opened, at_once, forges),
            Err(error) => {
                return self.wrong("edge-limit", &door.what, format!("{tried} clients can't connect: {error}"));
            }
        };
        let mut burst = Burst { tried, passed: first.passed, expected, later: None };
        let what = &door.what;
        if first.unanswered > 0 {
            let message = format!("{} of {tried} requests weren't answered at all", first.unanswered);
            self.wrong("edge-limit", what, message);
        } else if first.passed < expected || first.passed > expected.saturating_add(leaked(rate, &first, &first)) {
            let message = format!("{} of {tried} requests at once passed, and {expected} should", first.passed);
            self.wrong("edge-limit", what, message);
        } else {
            let beyond = TOO_MANY.min(refusals_max - beyond);
            burst.later = self.later(door, rate, client, (&first, expected), beyond, at_once);
        }
        self.served.limited.insert(what.clone(), burst);
    }

    /// A limit that was used up lets so many pass again as its rate says.
    fn later(
        &mut self,
        door: &Door<'_>,
        rate: Rate,
        client: IpAddr,
        (first, capacity): (&Asked, u32),
        beyond: u32,
        at_once: u32,
    ) -> Option<Later> {
        let one_ms = 1_000_000u64.checked_div(rate.milli_per_s.into()).map_or(u64::MAX, |ms| ms.saturating_add(1));
        if one_ms > REFILL_MAX_MS {
            let why = format!("the next one would pass after {} s only", one_ms.div_ceil(1_000));
            self.not_tried(format!("{}: that its rate_limit lets more pass later", door.what), why);
            return None;
        }
        let after_ms = one_ms.max(REFILL_MIN_MS);
        let expected = u64::from(rate.milli_per_s) * after_ms / 1_000_000;
        let expected = u32::try_from(expected).unwrap_or(u32::MAX).min(capacity).min(AT_ONCE_MAX);
        let tried = expected + beyond;
        let due = first.ended + Duration::from_millis(after_ms) + REFILL_MARGIN;
        let wait = || std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // Connecting takes a while, in which more could pass; but whoever connects and doesn't ask is cut some time.
        if self.edge.limits.header_timeout_ms < 2 * after_ms {
            wait();
        }
        let again = match door.open_all(client, tried) {
            Ok(opened) => {
                wait();
                door.burst(opened, at_once.min(tried), !self.is_trusted(client))
            }
            Err(error) => {
                self.wrong("edge-limit", &door.what, format!("{tried} clients can't connect: {error}"));
                return None;
            }
        };
        let most = capacity.saturating_add(leaked(rate, first, &again));
        if again.unanswered > 0 {
            let message = format!("{} of {tried} requests weren't answered at all", again.unanswered);
            self.wrong("edge-limit", &door.what, message);
        } else if again.passed < expected || first.passed.saturating_add(again.passed) > most {
            let message = format!(
                "{} of {tried} requests passed {after_ms} ms after the limit was used up, and {expected} should",
                again.passed
            );
            self.wrong("edge-limit", &door.what, message);
        }
        Some(Later { after_ms, tried, passed: again.passed, expected })
    }

    /// Requests at once that take so long as one likes: WebSockets.
    fn connections(&mut self, door: &Door<'_>, route: &Route) {
        let Some(most) = route.connections_per_client else { return };
        let limit = format!("{}: its connections", door.what);
        if self.served.upgraded.get(&door.what) != Some(&101) {
            return self.not_tried(
                limit,
                "how long an answer takes is its application's business, unless it takes WebSockets",
            );
        }
        let tried = most.saturating_add(1);
        if tried > AT_ONCE_MAX {
            let why = format!("{tried} WebSockets at once would test this machine; it tries {AT_ONCE_MAX} at most");
            return self.not_tried(limit, why);
        }
        if route.rate.is_some_and(|rate| rate.burst < most) {
            return self.not_tried(limit, "its rate_limit doesn't let so many pass at once");
        }
        if route.ban.is_some_and(|ban| ban.after <= 1) {
            return self.not_tried(limit, "who is refused once is banned");
        }
        let client = match self.client_for(route) {
            Ok(client) => client,
            Err(why) => return self.not_tried(limit, why),
        };
        let mut open = Vec::new();
        let mut passed = 0;
        for _ in 0..tried {
            let asked = door.open(Some(client)).and_then(|mut opened| {
                let answer = door.get(&mut opened, &UPGRADE)?;
                Ok((opened, answer.status))
            });
            match asked {
                Ok((opened, status)) => {
                    passed += u32::from(status == 101);
                    open.push(opened);
                }
                Err(error) => {
                    let message = format!("the wish for a WebSocket isn't answered: {error}");
                    return self.wrong("edge-limit", &door.what, message);
                }
            }
        }
        if passed != most {
            let message = format!("{passed} of {tried} WebSockets at once passed, and {most} should");
            self.wrong("edge-limit", &door.what, message);
        }
        self.served.at_once.insert(door.what.clone(), Burst { tried, passed, expected: most, later: None });
    }
}

/// So many requests more than a burst may pass from the first one of these to the last, as asking takes a while.
fn leaked(rate: Rate, first: &Asked, last: &Asked) -> u32 {
    let ms = last.ended.duration_since(first.began).as_millis() + 1;
    u32::try_from(ms * u128::from(rate.milli_per_s) / 1_000_000).unwrap_or(u32::MAX)
}

/// For people.
pub(crate) fn text(served: &Served) -> String {
    let listed = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let mut text = format!(
        "The edge, asked from outside: led to HTTPS (308): {}; certificates believed: {}\n",
        listed(&served.redirected),
        listed(&served.believed)
    );
    for (what, status) in &served.answered {
        text += &format!("  {what} is answered with {status}");
        match served.upgraded.get(what) {
            Some(101) => text += ", WebSockets pass",
            Some(status) => text += &format!(", a WebSocket with {status}"),
            None => {}
        }
        if let Some(Burst { tried, passed, later, .. }) = served.limited.get(what) {
            text += &format!(", {passed} of {tried} requests at once passed");
            if let Some(Later { after_ms, tried, passed, .. }) = later {
                text += &format!(", {passed} of {tried} after {}.{} s", after_ms / 1_000, after_ms % 1_000 / 100);
            }
        }
        if let Some(Burst { tried, passed, .. }) = served.at_once.get(what) {
            text += &format!(", {passed} of {tried} WebSockets at once");
        }
        if served.unforged.contains(what) {
            text += ", and its application saw through a forged X-Forwarded-For";
        }
        text.push('\n');
    }
    for NotTried { what, why } in &served.not_tried {
        text += &format!("  not tried: {what} ({why})\n");
    }
    text
}
