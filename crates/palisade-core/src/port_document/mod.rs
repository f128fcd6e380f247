//! The port document: what a stack lets the world, its host and its own services reach, and which line says so.
//!
//! It is made from the stack alone, so that it is the same on every machine and can be reviewed like code. Nothing of the
//! environment is in it. What a host really has is compared with it in [`host`].

mod changes;
pub mod host;
mod markdown;

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;

use crate::edge::{Route, granting_key};
use crate::names::{ProjectName, ServiceName};
use crate::network::Network;
use crate::place::{Place, Placed};
use crate::prove::reaches;
use crate::stack::{BackendChoice, Egress, EgressRule, PortProto, Proto, Publish, Service, Stack};
pub use changes::{Change, changes};

/// Everything that the document says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortDocument {
    /// Whose.
    pub project: ProjectName,
    /// Palisade keeps the host's firewall, so that what isn't public here is dropped.
    pub keeps_firewall: bool,
    /// One entry for each way to reach a port, the most exposed first.
    pub ports: Vec<PortEntry>,
    /// What the edge leads to, in the order of the file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub edge: Vec<EdgeEntry>,
    /// Who is in which network.
    pub networks: BTreeMap<String, Vec<ServiceName>>,
    /// What each service may reach, in the order of the file.
    pub reaches: Vec<ServiceReach>,
    /// What the guard can't hold, and why that is accepted.
    pub unguarded: Vec<UnguardedEntry>,
}

/// One way to reach a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PortEntry {
    /// The port as callers know it.
    #[serde(flatten)]
    pub port: PortProto,
    /// Who serves it; `None`: whoever listens there on the host.
    pub service: Option<ServiceName>,
    /// Who could reach it at all.
    pub exposure: Exposure,
    /// The one address of the host where it is; `None`: all of them, or the service's own.
    pub address: Option<IpAddr>,
    /// The service's own port, where that is another.
    pub inside: Option<u16>,
    /// Services that may connect, if it is private.
    pub callers: Vec<ServiceName>,
    /// The key that says so.
    pub key: &'static str,
    /// Where it stands.
    pub line: Line,
}

/// A route of the edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EdgeEntry {
    /// Domains and path, as a client asks for them.
    pub pages: Vec<String>,
    /// Who answers.
    pub service: ServiceName,
    /// At which port of its own.
    pub port: u16,
    /// Who may ask; empty: everybody who isn't denied.
    pub allow: Vec<Network>,
    /// Who may not.
    pub deny: Vec<Network>,
    /// Where it stands.
    pub line: Line,
}

impl EdgeEntry {
    /// Who may ask, in words.
    pub fn who(&self) -> String {
        let list = |networks: &[Network]| networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match (self.allow.is_empty(), self.deny.is_empty()) {
            (true, true) => "anybody".to_owned(),
            (true, false) => format!("anybody but {}", list(&self.deny)),
            (false, true) => list(&self.allow),
            (false, false) => format!("{}, but not {}", list(&self.allow), list(&self.deny)),
        }
    }
}

/// How far away somebody may be who reaches a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exposure {
    /// Anywhere.
    Public,
    /// On this host.
    ThisHost,
    /// In the stack.
    Private,
}

/// What one service may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceReach {
    /// Which.
    pub service: ServiceName,
    /// Its peers.
    pub peers: Vec<PeerReach>,
    /// Ports of the host's own loopback.
    pub host: Vec<HostReach>,
    /// Outside of the stack and the host.
    pub outside: OutsideReach,
    /// Where the service stands.
    pub line: Line,
}

/// A peer that a service may connect to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerReach {
    /// Which.
    pub service: ServiceName,
    /// `None`: every port that it listens on, declared or not.
    pub port: Option<PortProto>,
    /// What they have in common, or the key that says so.
    pub because: String,
    /// Where that stands.
    pub line: Line,
}

/// A port of the host's own loopback that a service may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostReach {
    /// Which.
    pub port: u16,
    /// Where it says so.
    pub line: Line,
}

/// What a service may reach outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutsideReach {
    /// Everything but the metadata of clouds.
    Everything,
    /// Nothing.
    Nothing,
    /// Networks and ports, and where they are named.
    Only(Vec<(String, Line)>),
}

/// Something that the guard can't hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnguardedEntry {
    /// Whose.
    pub service: ServiceName,
    /// What it could do.
    pub could: String,
    /// Why that is accepted; `None`: it isn't, and the service is not started.
    pub accepted: Option<String>,
    /// Where it stands.
    pub line: Line,
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// The file, as the document calls it.
    pub file: String,
    /// Counted from 1.
    pub line: u32,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `changes` knows line numbers by these words.
        write!(f, "{}, line {}", self.file, self.line)
    }
}

impl PortDocument {
    /// Of a stack. `name` is what the document calls a file, whose name in messages depends on where the reader stands.
    pub fn of(stack: &Stack, name: &dyn Fn(&str) -> String) -> Self {
        let line = |place: &Place| Line { file: name(&place.file), line: place.line };
        let published = stack.services.iter().flat_map(|service| {
            let published = |publish: &'_ Placed<Publish>| published(service, says(stack, service), publish.value);
            service.publish.iter().map(move |publish| (published(publish), &publish.place))
        });
        let private = stack.services.iter().flat_map(|service| private(stack, service));
        let allowed = stack.firewall.allow.iter().map(|port| allowed(port.value, &port.place));
        let allowed = allowed.filter(|_| stack.firewall.backend != BackendChoice::None);
        let entries = published.chain(private).chain(allowed);
        let mut ports: Vec<PortEntry> =
            entries.map(|(entry, place)| PortEntry { line: line(place), ..entry }).collect();
        ports.sort_by(|a, b| {
            let key = |entry: &PortEntry| (entry.exposure, entry.port, entry.address, entry.service.clone());
            key(a).cmp(&key(b))
        });
        let unguarded = stack.services.iter().flat_map(|service| {
            service.unguarded.iter().map(|unguarded| UnguardedEntry {
                service: service.name.clone(),
                could: unguarded.value.could.clone(),
                accepted: unguarded.value.accepted.clone(),
                line: line(&unguarded.place),
            })
        });
        Self {
            project: stack.project.clone(),
            keeps_firewall: stack.firewall.backend != BackendChoice::None,
            ports,
            edge: stack
                .edge
                .iter()
                .flat_map(|edge| &edge.routes)
                .map(|route| led(&route.value, line(&route.place)))
                .collect(),
            networks: networks(stack),
            reaches: stack.services.iter().map(|service| reach(stack, service, &line)).collect(),
            unguarded: unguarded.collect(),
        }
    }
}

impl PortDocument {
    /// Who reaches a port, in words.
    pub fn who(&self, entry: &PortEntry) -> String {
        match (entry.exposure, entry.address) {
            (Exposure::Private, _) => {
                let own = entry.service.as_ref();
                self.together(own, entry.callers.iter()).unwrap_or_else(|| "nobody".to_owned())
            }
            (Exposure::ThisHost, _) => "processes of this host".to_owned(),
            (Exposure::Public, address) => {
                let who = match address {
                    None => "anybody".to_owned(),
                    Some(ip) if ip.is_unspecified() && ip.is_ipv4() => "anybody, over IPv4".to_owned(),
                    Some(ip) if ip.is_unspecified() => "anybody, over IPv6".to_owned(),
                    Some(ip) => format!("whoever reaches {ip}"),
                };
                if self.keeps_firewall { who } else { format!("{who}, as far as the host's firewall lets them") }
            }
        }
    }

    /// Names of services, in their order. Where all others of a network are among them, the network stands for them: with
    /// a service more, one line changes and not all of them. `None` for nobody.
    fn together<'a>(&self, own: Option<&ServiceName>, names: impl Iterator<Item = &'a ServiceName>) -> Option<String> {
        /// Fewer are better named.
        const TOGETHER_MIN: usize = 3;
        let mut names: Vec<&ServiceName> = names.collect();
        let all: HashSet<&ServiceName> = names.iter().copied().collect();
        let mut parts = Vec::new();
        for (network, members) in &self.networks {
            let others = || members.iter().filter(|member| Some(*member) != own);
            let mine = own.is_none_or(|own| members.contains(own));
            if mine && others().count() >= TOGETHER_MIN && others().all(|other| all.contains(other)) {
                let told: HashSet<&ServiceName> = others().collect();
                names.retain(|name| !told.contains(name));
                parts.push(format!("everybody in network {network}"));
            }
        }
        parts.extend(names.iter().map(ToString::to_string));
        (!parts.is_empty()).then(|| parts.join(", "))
    }
}

fn networks(stack: &Stack) -> BTreeMap<String, Vec<ServiceName>> {
    let mut networks: BTreeMap<String, Vec<ServiceName>> = BTreeMap::new();
    for service in &stack.services {
        for network in &service.networks {
            networks.entry(network.clone()).or_default().push(service.name.clone());
        }
    }
    networks
}

type Unplaced<'a> = (PortEntry, &'a Place);

fn entry(port: PortProto, exposure: Exposure, key: &'static str) -> PortEntry {
    let line = Line { file: String::new(), line: 0 };
    PortEntry { port, service: None, exposure, address: None, inside: None, callers: Vec::new(), key, line }
}

/// The key that publishes a service's ports.
fn says(stack: &Stack, service: &Service) -> &'static str {
    if stack.edge_of(service).is_some() { "x-palisade.edge" } else { "ports" }
}

fn published(service: &Service, key: &'static str, publish: Publish) -> PortEntry {
    let address = publish.host_ip.map(|ip| ip.to_canonical());
    let exposure = if address.is_some_and(|ip| ip.is_loopback()) { Exposure::ThisHost } else { Exposure::Public };
    let port = PortProto { port: publish.host_port, proto: publish.container.proto };
    let inside = Some(publish.container.port).filter(|inside| *inside != publish.host_port);
    let service = Some(service.name.clone());
    PortEntry { service, address, inside, ..entry(port, exposure, key) }
}

fn led(route: &Route, line: Line) -> EdgeEntry {
    let path = if route.path == "/" { "" } else { &route.path };
    EdgeEntry {
        pages: route.domains.iter().map(|domain| format!("{domain}{path}")).collect(),
        service: route.to.service.clone(),
        port: route.to.port,
        allow: route.allow.clone(),
        deny: route.deny.clone(),
        line,
    }
}

/// Ports that peers may expect. One that is published, and that no peer may use, is told already.
fn private<'a>(stack: &'a Stack, service: &'a Service) -> impl Iterator<Item = Unplaced<'a>> {
    let mut told = BTreeSet::new();
    service.expose.iter().filter_map(move |port| {
        let peers = stack.services.iter().filter(|client| client.name != service.name);
        let callers = peers.filter(|client| reaches(client, service, port.value).0);
        let callers: Vec<_> = callers.map(|client| client.name.clone()).collect();
        let publish = service.publish.iter().any(|publish| publish.value.container == port.value);
        if (publish && callers.is_empty()) || !told.insert(port.value) {
            return None;
        }
        let key = match publish {
            true => says(stack, service),
            false => "expose",
        };
        let service = Some(service.name.clone());
        Some((PortEntry { service, callers, ..entry(port.value, Exposure::Private, key) }, &port.place))
    })
}

fn allowed(port: PortProto, place: &Place) -> Unplaced<'_> {
    (entry(port, Exposure::Public, "x-palisade.firewall.allow"), place)
}

fn reach(stack: &Stack, client: &Service, line: &dyn Fn(&Place) -> Line) -> ServiceReach {
    let peers = stack.services.iter().filter(|server| server.name != client.name);
    let outside = match &client.egress {
        _ if client.networks.is_empty() => OutsideReach::Nothing,
        Egress::All => OutsideReach::Everything,
        Egress::None => OutsideReach::Nothing,
        Egress::Only(rules) => {
            OutsideReach::Only(rules.iter().map(|rule| (rule.value.to_string(), line(&rule.place))).collect())
        }
    };
    ServiceReach {
        service: client.name.clone(),
        peers: peers.flat_map(|server| peer(client, server, line)).collect(),
        host: client.host_ports.iter().map(|port| HostReach { port: port.value, line: line(&port.place) }).collect(),
        outside,
        line: line(&client.place),
    }
}

fn peer(client: &Service, server: &Service, line: &dyn Fn(&Place) -> Line) -> Vec<PeerReach> {
    let Some(network) = client.networks.intersection(&server.networks).next() else { return Vec::new() };
    match &client.connect {
        None => vec![PeerReach {
            service: server.name.clone(),
            port: None,
            because: format!("both are in network {network}"),
            line: line(&client.place),
        }],
        Some(grants) => {
            let grants = grants.iter().filter(|grant| grant.value.service == server.name);
            let reach = grants.map(|grant| PeerReach {
                service: server.name.clone(),
                port: grant.value.port,
                because: granting_key(&client.name).to_owned(),
                line: line(&grant.place),
            });
            reach.collect()
        }
    }
}

/// As it is written in a file.
impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.network {
            IpAddr::V4(ip) => write!(f, "{ip}/{}", self.prefix_len)?,
            IpAddr::V6(ip) => write!(f, "[{ip}]/{}", self.prefix_len)?,
        }
        match (self.port, self.proto) {
            (Some(port), None) => write!(f, ":{port}"),
            (Some(port), Some(Proto::Tcp)) => write!(f, ":{port}/tcp"),
            (Some(port), Some(Proto::Udp)) => write!(f, ":{port}/udp"),
            (None, Some(proto)) => write!(f, "/{proto}"),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
