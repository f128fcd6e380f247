//! From outside to a port of the host: the firewall, the guard or a socket, and what the file says about it.

use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use super::{Explanation, Step, Verdict, state};
use crate::address::is_reserved;
use crate::firewall::FirewallRules;
use crate::observed::{Observed, SocketOwner, SocketSeen};
use crate::policy::{BindRule, Policy, ServicePolicy};
use crate::prove::{Door, Family, open_doors};
use crate::stack::{PortProto, Proto, Service, Stack};

/// What is asked, and what was seen.
#[derive(Clone, Copy, Debug)]
pub struct FromOutside<'a> {
    /// `the internet`, `198.51.100.0/24`.
    pub who: &'a str,
    /// Which port of the host.
    pub port: PortProto,
    /// What the firewall did with packets, for each address that they could be for.
    pub ways: &'a [Way],
    /// The stack, if there is one.
    pub stack: Option<&'a Stack>,
    /// What its guard was given.
    pub policy: Option<&'a Policy>,
    /// The host.
    pub host: &'a Observed,
    /// What the firewall's answers leave open.
    pub unknown: &'a [String],
}

/// What became of a packet to one address of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// The address that it was for.
    pub target: IpAddr,
    /// The interface that it came in by.
    pub interface: String,
    /// What became of it.
    pub passage: Passage,
    /// Rules that judged it, in their order, as the host's own tool says them; empty where they weren't traced.
    pub rules: Vec<String>,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Passage {
    /// It gets to a local process, if one listens.
    Local {
        /// On this port: its own, or what a rule rewrote it to.
        port: u16,
    },
    /// It is passed on to another machine or container.
    Forwarded,
    /// It is dropped or refused.
    Stopped,
}

/// Explains whether somebody outside reaches a port of the host.
pub fn from_outside(asked: FromOutside<'_>) -> Explanation {
    let FromOutside { who, port, ways, .. } = asked;
    let mut steps: Vec<Step> = by_answer(ways).iter().map(|same| firewall(port, same)).collect();
    if ways.is_empty() {
        steps.push(Step::new(None, format!("no interface of this host leads to {who}")));
    }
    // What would be met without the firewall is told as well.
    let mut arriving: Vec<(IpAddr, u16)> = ways
        .iter()
        .map(|way| match way.passage {
            Passage::Local { port } => (way.target, port),
            Passage::Forwarded | Passage::Stopped => (way.target, port.port),
        })
        .collect();
    arriving.dedup();
    let met: Vec<_> = arriving.iter().map(|(target, local)| asked.meets(*target, *local)).collect();
    let mut takers: Vec<Step> = Vec::new();
    for step in met.iter().flat_map(|met| &met.steps) {
        if !takers.contains(step) {
            takers.push(step.clone());
        }
    }
    if !takers.iter().any(|step| step.passes.is_some()) && !ways.iter().any(|way| way.passage == Passage::Forwarded) {
        takers.insert(0, Step::no(format!("nobody listens on {port} for packets from outside")));
    }
    takers.extend(asked.elsewhere());
    steps.extend(takers);
    let reached: Vec<bool> = ways
        .iter()
        .zip(&met)
        .map(|(way, met)| match way.passage {
            Passage::Local { .. } => met.taken,
            Passage::Forwarded => true,
            Passage::Stopped => false,
        })
        .collect();
    let reachable = reached.contains(&true);
    let mut families: Vec<Family> =
        ways.iter().zip(&reached).filter(|(_, yes)| **yes).map(|(way, _)| family(way.target)).collect();
    families.dedup();
    let over: Vec<_> = families.iter().map(ToString::to_string).collect();
    let (declared, mut hints) = asked.declared(reachable);
    steps.extend(declared);
    if !reachable && ways.iter().zip(&met).any(|(way, met)| way.passage == Passage::Stopped && met.taken) {
        hints.extend(asked.who_stops());
    }
    let only_ipv4 = ways.iter().zip(&met).any(|(way, met)| {
        way.target.is_ipv6() && matches!(way.passage, Passage::Local { .. }) && !met.taken && !met.steps.is_empty()
    });
    if reachable && only_ipv4 {
        hints.push(
            "let the program listen on [::] inside, which takes both, if it is to be reached over IPv6".to_owned(),
        );
    }
    let over = if over.is_empty() { String::new() } else { format!(", over {}", over.join(" and ")) };
    let verdict = match (reachable, ways.is_empty()) {
        (true, _) => Verdict::Reachable,
        (false, true) => Verdict::Unknown,
        (false, false) => Verdict::Unreachable,
    };
    Explanation {
        question: format!("{who} → {port} of this host{over}"),
        verdict,
        steps,
        hints,
        unknown: asked.unknown.to_vec(),
    }
}

/// Explains that a port which a service publishes nowhere isn't reached from outside.
pub fn unpublished(who: &str, service: &Service, port: PortProto) -> Explanation {
    let what = format!(
        "{} doesn't publish {port}: its sockets are at private addresses, which no packet from outside is for",
        service.name
    );
    let short = crate::hints::short(port);
    let hint = format!("if the world is meant to reach it, add \"{}:{short}\" to ports of {}", port.port, service.name);
    Explanation {
        question: format!("{who} → {}:{port}", service.name),
        verdict: Verdict::Unreachable,
        steps: vec![Step::no(what).at(&service.place)],
        hints: vec![hint],
        unknown: Vec::new(),
    }
}

fn family(ip: IpAddr) -> Family {
    if ip.to_canonical().is_ipv4() { Family::V4 } else { Family::V6 }
}

/// Ways with the same answer for the same reasons, together.
fn by_answer(ways: &[Way]) -> Vec<Vec<&Way>> {
    let mut groups: Vec<Vec<&Way>> = Vec::new();
    for way in ways {
        match groups.iter_mut().find(|group| group[0].passage == way.passage && group[0].rules == way.rules) {
            Some(group) => group.push(way),
            None => groups.push(vec![way]),
        }
    }
    groups
}

fn firewall(port: PortProto, same: &[&Way]) -> Step {
    let places: Vec<_> = same.iter().map(|way| format!("{} by {}", way.target, way.interface)).collect();
    let places = places.join(" and to ");
    let mut step = match same[0].passage {
        Passage::Local { port: local } if local == port.port => {
            Step::yes(format!("the firewall lets packets for {port} through that come to {places}"))
        }
        Passage::Local { port: local } => Step::yes(format!(
            "the firewall lets packets for {port} through that come to {places}, and rewrites them to port {local}"
        )),
        Passage::Forwarded => Step::yes(format!(
            "rules pass packets for {port} that come to {places} on to another address, as an engine does for its containers"
        )),
        Passage::Stopped => Step::no(format!("the firewall stops packets for {port} that come to {places}")),
    };
    step.seen = same[0].rules.clone();
    step
}

/// What a packet meets behind the firewall.
#[derive(Default)]
struct Met {
    taken: bool,
    steps: Vec<Step>,
}

impl<'a> FromOutside<'a> {
    /// What a packet to this address and local port meets.
    fn meets(&self, target: IpAddr, local: u16) -> Met {
        let mut met = Met::default();
        let port = PortProto { port: local, proto: self.port.proto };
        let leads = self.policy.into_iter().flat_map(|policy| &policy.services);
        let leads = leads.flat_map(|service| service.binds.iter().map(move |bind| (service, bind)));
        let led = leads.into_iter().find(|(_, bind)| port.proto == Proto::Tcp && is_published(bind, target, port));
        if let Some((service, bind)) = led {
            // The guard decides before any socket of the host is looked for.
            let handed = self.handed(service, bind.container, target);
            return Met { taken: handed.iter().any(|step| step.passes == Some(true)), steps: handed };
        }
        for socket in self.host.sockets.iter().filter(|socket| takes(socket, target, port)) {
            met.steps.push(match &socket.owner {
                SocketOwner::Instance(id) if !self.publishes(socket) => Step::no(format!(
                    "{id} listens at {}/{} on a socket that it never bound; the guard drops what comes for it",
                    socket.local, port.proto
                )),
                _ => {
                    met.taken = true;
                    Step::yes(format!("{} listens at {}/{}", holder(socket), socket.local, port.proto))
                }
            });
        }
        met
    }

    /// To whom the guard hands connections to a published port.
    fn handed(&self, service: &ServicePolicy, inside: PortProto, target: IpAddr) -> Vec<Step> {
        let seen = self.host.instances.iter().filter(|seen| service.backends.contains(&seen.status.address));
        let mut steps = Vec::new();
        for status in seen.map(|seen| &seen.status) {
            let own = self.host.sockets.iter().filter(|socket| {
                let ip = socket.local.ip().to_canonical();
                socket.owner == SocketOwner::Instance(status.id.clone())
                    && socket.proto == inside.proto
                    && socket.local.port() == inside.port
                    && (ip == IpAddr::V4(status.address.ip()) || ip == IpAddr::V6(status.address.ipv6()))
            });
            // A socket takes what it was made for: IPv4 only, IPv6 only, or both.
            let fits = |socket: &&SocketSeen| match family(target) {
                Family::V4 => socket.local.ip().to_canonical().is_ipv4(),
                Family::V6 => socket.local.is_ipv6(),
            };
            let lead = format!("the guard hands connections to service {}", service.name);
            let own: Vec<_> = own.collect();
            match (own.iter().copied().find(fits), own.first()) {
                (Some(socket), _) => {
                    steps.push(Step::yes(format!("{lead}: {}, and listens at {}", state(status), socket.local)));
                }
                (None, Some(socket)) => steps.push(Step::no(format!(
                    "{lead}: {}, and listens at {}, which takes no {}",
                    state(status),
                    socket.local,
                    family(target)
                ))),
                (None, None) => {
                    steps.push(Step::no(format!("{lead}: {}, and doesn't listen on its port {inside}", state(status))))
                }
            }
        }
        if steps.is_empty() {
            steps.push(Step::no(format!(
                "the guard refuses connections: they are for service {}, of which no instance runs",
                service.name
            )));
        }
        steps
    }

    /// An instance's socket at an address of the host, where it publishes the port.
    fn publishes(&self, socket: &SocketSeen) -> bool {
        let port = PortProto { port: socket.local.port(), proto: socket.proto };
        let services = self.policy.into_iter().flat_map(|policy| &policy.services);
        services.flat_map(|service| &service.binds).any(|bind| {
            bind.container.proto == port.proto && bind.published.is_some_and(|at| at.host_port == port.port)
        })
    }

    /// Sockets on the same port that no packet from outside gets to.
    fn elsewhere(&self) -> Vec<Step> {
        let same =
            self.host.sockets.iter().filter(|it| it.proto == self.port.proto && it.local.port() == self.port.port);
        let mut steps: Vec<Step> = Vec::new();
        for socket in same {
            let ip = socket.local.ip().to_canonical();
            let where_ = match ip {
                _ if is_reserved(ip) => "a private address",
                _ if ip.is_loopback() => "this host only",
                _ => continue,
            };
            let step = Step::new(
                None,
                format!(
                    "{} listens at {}: {where_}, which no packet from outside is for",
                    holder(socket),
                    SocketAddr::new(ip, socket.local.port())
                ),
            );
            if !steps.contains(&step) {
                steps.push(step);
            }
        }
        steps
    }

    /// What the file says about the port.
    fn declared(&self, reachable: bool) -> (Vec<Step>, Vec<String>) {
        let Some(stack) = self.stack else { return (Vec::new(), Vec::new()) };
        let port = self.port;
        let publish = stack.services.iter().flat_map(|service| service.publish.iter().map(move |it| (service, it)));
        let publish =
            publish.filter(|(_, it)| it.value.host_port == port.port && it.value.container.proto == port.proto);
        let mut steps = Vec::new();
        let mut hints = Vec::new();
        for (service, publish) in publish {
            let at = publish.value.host_ip.map(|ip| format!(" at {ip}")).unwrap_or_default();
            let mut what = format!("{} publishes it{at}, from its port {}", service.name, publish.value.container);
            if let Some(edge) = stack.edge_of(service) {
                let _ = write!(what, ": {}", edge.purpose());
            }
            if publish.value.host_ip.is_some_and(|ip| ip.to_canonical().is_loopback()) {
                steps.push(Step::no(format!("{what}: for this host only")).at(&publish.place));
            } else {
                steps.push(Step::yes(what).at(&publish.place));
            }
            if !self.is_applied(service, port) {
                hints.push(format!(
                    "what the file says about {} isn't so on this host yet: run `palisade up`",
                    service.name
                ));
            }
        }
        let allowed = stack.firewall.allow.iter().find(|allowed| allowed.value == port);
        steps.extend(allowed.map(|allowed| Step::yes("x-palisade.firewall.allow names it").at(&allowed.place)));
        if port.proto == Proto::Tcp && self.host.ssh_ports.contains(&port.port) {
            steps.push(Step::yes("sshd listens there, which is always let in"));
        }
        if steps.is_empty() {
            steps.push(Step::new(
                Some(false).filter(|_| !reachable),
                format!("nothing in the file of {} publishes it", stack.project),
            ));
            let having = stack.services.iter().find(|service| service.expose.iter().any(|it| it.value == port));
            match (having, reachable) {
                (Some(service), false) => hints.push(format!(
                    "{} has it, for its peers only; if the world is meant to reach it, add \"{}:{}\" to ports of {}",
                    service.name,
                    port.port,
                    crate::hints::short(port),
                    service.name
                )),
                (_, true) => hints.push(
                    "nobody declared that it can be reached: `palisade audit` tells what to do about it".to_owned(),
                ),
                (None, false) => {}
            }
        }
        (steps, hints)
    }

    /// The guard knows that the service publishes the port.
    fn is_applied(&self, service: &Service, port: PortProto) -> bool {
        let applied = self.policy.into_iter().flat_map(|policy| &policy.services).find(|it| it.name == service.name);
        applied.is_some_and(|applied| {
            applied.binds.iter().any(|bind| {
                bind.container.proto == port.proto && bind.published.is_some_and(|at| at.host_port == port.port)
            })
        })
    }

    /// Who has to be asked when something listens and the firewall is in the way.
    fn who_stops(&self) -> Option<String> {
        let rules = FirewallRules::of(self.stack?, &self.host.ssh_ports, self.host.firewall_runs);
        let Some(rules) = rules else {
            return Some(
                "the host's firewall is its own business (x-palisade.firewall.backend: none): open it there".into(),
            );
        };
        let doors = open_doors(Some(&rules))?;
        let door = |family| doors.contains_key(&Door { family, port: self.port });
        if !door(Family::V4) && !door(Family::V6) {
            return None;
        }
        let sound = self.host.firewall.as_ref().and_then(|seen| seen.digest.as_ref()) == Some(&rules.digest());
        Some(if sound {
            "Palisade's table lets it in, so another table drops it, and Palisade's can only subtract: nft list ruleset"
                .into()
        } else {
            "Palisade's firewall table isn't what the file asks for: run `palisade up`".into()
        })
    }
}

/// Whether what arrives there is led to the service.
fn is_published(bind: &BindRule, target: IpAddr, port: PortProto) -> bool {
    let Some(at) = bind.published.filter(|at| at.host_port == port.port && bind.container.proto == port.proto) else {
        return false;
    };
    match at.host_ip.map(|ip| ip.to_canonical()) {
        None => true,
        Some(ip) if ip.is_unspecified() => ip.is_ipv6() || target.to_canonical().is_ipv4(),
        Some(ip) => ip == target.to_canonical(),
    }
}

/// The socket takes packets to this address and port, as far as the kernel is concerned.
fn takes(socket: &SocketSeen, target: IpAddr, port: PortProto) -> bool {
    let bound = socket.local.ip().to_canonical();
    let fits = if bound.is_unspecified() {
        match (bound.is_ipv6(), target.is_ipv6()) {
            (true, true) => true,
            (true, false) => !socket.v6_only,
            (false, ipv6) => !ipv6,
        }
    } else {
        bound == target.to_canonical()
    };
    fits && socket.proto == port.proto && socket.local.port() == port.port && !is_reserved(bound)
}

/// `sshd (process 41)`.
fn holder(socket: &SocketSeen) -> String {
    match &socket.owner {
        SocketOwner::Instance(id) => id.to_string(),
        SocketOwner::OtherStack(id) => format!("{id} of another stack"),
        SocketOwner::Process { pid, command } => format!("{} (process {pid})", crate::audit::facts::printable(command)),
        SocketOwner::Replaced(name) => format!("container {name}"),
        SocketOwner::Unknown => "the kernel, or a process that can't be seen,".to_owned(),
    }
}
