//! The edge of a rehearsal, asked from the internet of the scene: redirect, certificates, headers, limits, upgrades.
//!
//! That nothing but the edge answers is shown by the stranger, who tries everything.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use palisade_core::edge::{AUTHORITIES_VOLUME, CertificateSource, Edge, Rate, Route};
use palisade_core::finding::Finding;
use palisade_core::stack::Stack;
use palisade_edge::client;
use palisade_edge::local_ca::LocalCa;
use palisade_host::layout::Layout;
use serde::Serialize;

use super::scene::HOST;

/// For one answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// More requests at once would test the machine. Routes that let more pass are told, not tried.
const AT_ONCE_MAX: u32 = 300;
/// Requests beyond those that may pass.
const TOO_MANY: u32 = 10;

/// What was found out about the edge.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Served {
    /// Domains that a client without TLS is led to HTTPS for.
    pub redirected: Vec<String>,
    /// Domains whose certificate a client believes.
    pub believed: Vec<String>,
    /// By domain and path: what was answered to `GET`.
    pub answered: BTreeMap<String, u16>,
    /// By domain and path: what was answered to the wish for a WebSocket; 101 is yes.
    pub upgraded: BTreeMap<String, u16>,
    /// By domain and path: of how many requests at once how many passed.
    pub limited: BTreeMap<String, Burst>,
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
}

/// Asks for everything that the edge serves. Runs in the internet's namespace.
pub(crate) fn ask(layout: &Layout, stack: &Stack) -> Option<Served> {
    let edge = stack.edge.as_ref()?;
    let root = LocalCa::roots(&layout.volume(AUTHORITIES_VOLUME));
    let mut asking = Asking { edge, root, served: Served::default() };
    for domain in edge.domains() {
        asking.domain(domain);
    }
    // Limits last: whoever has used them up is refused for a while.
    for route in &edge.routes {
        asking.route(&route.value);
    }
    for route in &edge.routes {
        asking.limit(&route.value);
    }
    Some(asking.served)
}

struct Asking<'a> {
    edge: &'a Edge,
    root: Vec<u8>,
    served: Served,
}

/// A name that a wildcard stands for.
fn name_of(domain: &str) -> String {
    domain.strip_prefix("*.").map_or_else(|| domain.to_owned(), |parent| format!("rehearsal.{parent}"))
}

impl Asking<'_> {
    fn wrong(&mut self, id: &'static str, subject: &str, message: String) {
        self.served.findings.push(Finding::error(id, subject, message));
    }

    fn https(&self) -> SocketAddr {
        SocketAddr::new(HOST[0], self.edge.https_port)
    }

    fn is_local(&self, domain: &str) -> bool {
        self.edge.certificates.get(domain) == Some(&CertificateSource::Local)
    }

    fn domain(&mut self, domain: &str) {
        let name = name_of(domain);
        if self.edge.redirect {
            let at = SocketAddr::new(HOST[0], self.edge.http_port);
            let answer = client::plain(at, PATIENCE).and_then(|opened| opened.get(&name, "/a?b=c", &[]));
            let port = if self.edge.https_port == 443 { String::new() } else { format!(":{}", self.edge.https_port) };
            let wanted = format!("https://{name}{port}/a?b=c");
            match answer {
                Ok(head) if head.status == 308 && head.field("location") == Some(&wanted) => {
                    self.served.redirected.push(domain.to_owned());
                }
                Ok(head) => {
                    let to = head.field("location").unwrap_or("nowhere");
                    let message =
                        format!("plain HTTP is answered with {} and leads to {to}, not to {wanted}", head.status);
                    self.wrong("edge-redirect", domain, message);
                }
                Err(error) => self.wrong("edge-redirect", domain, format!("plain HTTP isn't answered: {error}")),
            }
        }
        if self.is_local(domain) {
            for address in HOST {
                let at = SocketAddr::new(address, self.edge.https_port);
                if let Err(error) = client::tls(at, &name, &self.root, PATIENCE) {
                    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                    self.wrong("edge-certificate", domain, format!("a client over {family} doesn't connect: {error}"));
                    return;
                }
            }
            self.served.believed.push(domain.to_owned());
        }
    }

    /// The first domain of the route whose certificate this client can judge.
    fn name(&self, route: &Route) -> Option<String> {
        let allowed = route.allow.is_empty() || route.allow.iter().any(|network| network.contains(stranger()));
        let denied = route.deny.iter().any(|network| network.contains(stranger()));
        let domain = route.domains.iter().find(|domain| self.is_local(domain));
        domain.filter(|_| allowed && !denied).map(|domain| name_of(domain))
    }

    fn route(&mut self, route: &Route) {
        let Some(name) = self.name(route) else { return };
        let what = format!("{name}{}", route.path);
        let get = |fields: &[&str]| {
            client::tls(self.https(), &name, &self.root, PATIENCE)
                .and_then(|opened| opened.get(&name, &route.path, fields))
        };
        let answer = get(&[]);
        let upgrade = get(&[
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ]);
        match answer {
            Ok(head) => {
                self.served.answered.insert(what.clone(), head.status);
                if [502, 503, 504].contains(&head.status) {
                    let message = format!("{} is answered: {} doesn't serve it", head.status, route.to);
                    self.wrong("edge-upstream", &what, message);
                }
                let hsts = head.field("strict-transport-security").unwrap_or_default();
                if let Some(wanted) = route.hsts.filter(|w| !hsts.contains(&format!("max-age={}", w.max_age_s))) {
                    let message = format!("Strict-Transport-Security is `{hsts}` and not for {} s", wanted.max_age_s);
                    self.wrong("edge-hsts", &what, message);
                }
            }
            Err(error) => self.wrong("edge-unanswered", &what, format!("there is no answer: {error}")),
        }
        match upgrade {
            Ok(head) => drop(self.served.upgraded.insert(what, head.status)),
            Err(error) => {
                self.wrong("edge-unanswered", &what, format!("the wish for a WebSocket isn't answered: {error}"))
            }
        }
    }

    fn limit(&mut self, route: &Route) {
        let (Some(name), Some(rate)) = (self.name(route), route.rate) else { return };
        let what = format!("{name}{}", route.path);
        let expected = rate.burst.saturating_add(1);
        let tried = expected.saturating_add(TOO_MANY);
        if tried > AT_ONCE_MAX || route.connections_per_client.is_some_and(|connections| connections < tried) {
            return;
        }
        // What was asked before must be forgotten first.
        std::thread::sleep(forgotten(rate));
        let at = self.https();
        let connected: Result<Vec<_>, _> = (0..tried).map(|_| client::tls(at, &name, &self.root, PATIENCE)).collect();
        let opened = match connected {
            Ok(opened) => opened,
            Err(error) => {
                return self.wrong("edge-limit", &what, format!("{tried} clients can't connect at once: {error}"));
            }
        };
        let (began, barrier) = (Instant::now(), Barrier::new(opened.len()));
        let (name, path, barrier) = (&name, &route.path, &barrier);
        let statuses: Vec<_> = std::thread::scope(|scope| {
            let ask = |opened: client::Opened| {
                scope.spawn(move || {
                    barrier.wait();
                    opened.get(name, path, &[]).map(|head| head.status)
                })
            };
            let asked: Vec<_> = opened.into_iter().map(ask).collect();
            asked.into_iter().filter_map(|asked| asked.join().ok()).collect()
        });
        let refused = statuses.iter().filter(|status| matches!(status, Ok(429))).count() as u32;
        let failed = statuses.iter().filter(|status| status.is_err()).count();
        let passed = tried - refused;
        // On a slow machine "at once" takes a while, and some more may pass by then.
        let meanwhile = began.elapsed().as_millis() * u128::from(rate.milli_per_s) / 1_000_000;
        let most = u128::from(expected) + meanwhile;
        if failed > 0 {
            self.wrong("edge-limit", &what, format!("{failed} of {tried} requests at once weren't answered at all"));
        } else if passed < expected || u128::from(passed) > most {
            let message = format!("{passed} of {tried} requests at once passed, and {expected} should");
            self.wrong("edge-limit", &what, message);
        }
        self.served.limited.insert(what, Burst { tried, passed, expected });
    }
}

fn stranger() -> IpAddr {
    super::scene::STRANGER[0]
}

/// After this time a client that asked some times is as one who never did.
fn forgotten(rate: Rate) -> Duration {
    const ASKED: u64 = 3;
    Duration::from_millis(ASKED * 1_000_000 / u64::from(rate.milli_per_s.max(100)))
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
        let upgrade = match served.upgraded.get(what) {
            Some(101) => ", WebSockets pass".to_owned(),
            Some(status) => format!(", a WebSocket is answered with {status}"),
            None => String::new(),
        };
        let limit = served
            .limited
            .get(what)
            .map_or_else(String::new, |burst| format!(", {} of {} requests at once passed", burst.passed, burst.tried));
        text += &format!("  {what} is answered with {status}{upgrade}{limit}\n");
    }
    text
}
