//! Who can reach what: sockets against the doors that the firewall leaves open.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Declared;
use super::facts::{ContainerFacts, Doors, Facts, Listener, Owner, World, WorldKind, printable};
use super::known::{Known, Purpose, known};
use super::rules::{
    DNS_EXPOSED, DOOR_WITHOUT_LISTENER, ENGINE_API_EXPOSED, ENGINE_API_LOCAL, FIREWALL_OPEN, INTERNAL_EXPOSED,
    IPV6_WIDER, ONLY_FIREWALL, PORT_FORWARDED, PORT_UNDECLARED, PORT_UNKNOWN, PUBLISHED_PAST_UFW, Rule,
};
use crate::address::is_reserved;
use crate::finding::{Finding, Severity};
use crate::port_set::PortSet;
use crate::prove::{Door, Family};
use crate::stack::{PortProto, Proto};

/// A port of the host with everything that is known about it: one line of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The port where it listens; of what is passed on, the outside port.
    #[serde(flatten)]
    pub port: PortProto,
    /// Who has it.
    pub owner: Owner,
    /// The same in words.
    pub who: String,
    /// Where it is bound; empty for what is passed on to another address.
    pub bound: BTreeSet<String>,
    /// Who reaches it, by the names of worlds, and over which IP.
    pub reached_from: BTreeMap<String, BTreeSet<Family>>,
    /// Outside ports that lead here, when they are others.
    pub outside: BTreeSet<u16>,
    /// Why it is meant to be reachable, if somebody said so.
    pub declared: Option<String>,
    /// Ids of what was found about it.
    pub findings: Vec<&'static str>,
    #[serde(skip)]
    evidence: Vec<String>,
    #[serde(skip)]
    worst: Option<WorldKind>,
    #[serde(skip)]
    undeclared: bool,
    #[serde(skip)]
    wide: bool,
    #[serde(skip)]
    image: Option<String>,
    #[serde(skip)]
    forwarded: bool,
}

impl Row {
    fn known(&self) -> Option<Known> {
        known(self.owner.program(), self.image.as_deref(), self.port.proto, self.port.port)
    }

    /// The farthest away who reaches it.
    pub(super) fn worst(&self) -> Option<WorldKind> {
        self.worst
    }

    /// Somebody besides this host reaches it.
    pub fn is_reached(&self) -> bool {
        !self.reached_from.is_empty()
    }

    /// It takes packets only from this host, whatever the firewall does.
    pub fn is_local(&self) -> bool {
        !self.wide && !self.is_reached()
    }

    fn reach(&mut self, world: &World, doors: &Doors, outside: u16, declared: Option<&Declared>) {
        self.reached_from.entry(world.name.clone()).or_default().insert(doors.family());
        self.worst = Some(self.worst.map_or(world.kind, |worst| worst.min(world.kind)));
        if outside != self.port.port {
            self.outside.insert(outside);
        }
        let door = Door { family: doors.family(), port: PortProto { port: outside, proto: doors.proto } };
        match declared.and_then(|declared| declared.doors.get(&door)) {
            Some(why) => self.declared = Some(why.clone()),
            None => self.undeclared = true,
        }
        let source = world.sources[usize::from(doors.target.is_ipv6())];
        let source = source.map_or_else(|| world.name.clone(), |source| source.to_string());
        let packet = format!(
            "a packet from {source} to {} port {outside}/{} that came in by {} was let through",
            doors.target, doors.proto, world.interface
        );
        if !self.evidence.contains(&packet) {
            self.evidence.push(packet);
        }
        if let Some(rule) = world.rules.get(&door) {
            let rule = format!("let through over {} by {}", doors.family(), printable(rule));
            if !self.evidence.contains(&rule) {
                self.evidence.push(rule);
            }
        }
    }

    /// `from the internet over IPv4 and IPv6, from the network on eth1 over IPv4`.
    fn reached_by(&self) -> String {
        let each = self.reached_from.iter().map(|(world, families)| {
            let families: Vec<_> = families.iter().map(ToString::to_string).collect();
            format!("from {world} over {}", families.join(" and "))
        });
        each.collect::<Vec<_>>().join(", ")
    }
}

/// One row for each port and owner.
pub(super) fn rows(facts: &Facts, declared: Option<&Declared>) -> Vec<Row> {
    let mut rows: BTreeMap<(PortProto, String), Row> = BTreeMap::new();
    let mut by_port: BTreeMap<(Proto, u16), Vec<&Listener>> = BTreeMap::new();
    for listener in &facts.listeners {
        by_port.entry((listener.proto, listener.local.port())).or_default().push(listener);
        let row = row_of(&mut rows, facts, listener);
        row.bound.insert(listener.local.to_string());
        row.wide |= listener.is_wide();
        let bound = format!("{} {} held by {}", listener.proto, listener.local, pids(&listener.owner));
        if !row.evidence.contains(&bound) {
            row.evidence.push(bound);
        }
    }
    for world in &facts.worlds {
        for doors in &world.doors {
            // Only ports with a listener matter here: asking 65,535 doors about each socket would be slow.
            for ((proto, port), listeners) in by_port.iter().filter(|((proto, _), _)| *proto == doors.proto) {
                let direct = doors.local.contains(*port).then_some(*port);
                let led = doors.redirected.iter().filter(|(_, local)| local == port).map(|(outside, _)| *outside);
                for outside in direct.into_iter().chain(led) {
                    let redirected = Some(outside) != direct;
                    for listener in listeners.iter().filter(|listener| hears(listener, doors, world, redirected)) {
                        debug_assert_eq!(listener.proto, *proto);
                        row_of(&mut rows, facts, listener).reach(world, doors, outside, declared);
                    }
                }
            }
            for port in doors.forwarded.iter() {
                let container = published(facts, doors, port);
                let owner = Owner { container: container.map(|it| it.name.clone()), ..Owner::default() };
                let who = container.map_or_else(|| "passed on to another address".to_owned(), |_| owner.to_string());
                let port = PortProto { port, proto: doors.proto };
                let row = rows.entry((port, who.clone())).or_insert_with(|| new_row(port, owner, who));
                row.image = container.map(|container| container.image.clone());
                row.forwarded = true;
                row.reach(world, doors, port.port, declared);
            }
        }
    }
    rows.into_values().collect()
}

fn row_of<'a>(rows: &'a mut BTreeMap<(PortProto, String), Row>, facts: &Facts, listener: &Listener) -> &'a mut Row {
    let port = PortProto { port: listener.local.port(), proto: listener.proto };
    let who = listener.owner.to_string();
    rows.entry((port, who.clone())).or_insert_with(|| {
        let mut row = new_row(port, listener.owner.clone(), who);
        let containers = facts.engine.iter().flat_map(|engine| &engine.containers);
        let name = listener.owner.container.as_deref();
        row.image = containers.filter(|it| Some(it.name.as_str()) == name).map(|it| it.image.clone()).next();
        row
    })
}

fn new_row(port: PortProto, owner: Owner, who: String) -> Row {
    Row {
        port,
        owner,
        who,
        bound: BTreeSet::new(),
        reached_from: BTreeMap::new(),
        outside: BTreeSet::new(),
        declared: None,
        findings: Vec::new(),
        evidence: Vec::new(),
        worst: None,
        undeclared: false,
        wide: false,
        image: None,
        forwarded: false,
    }
}

fn pids(owner: &Owner) -> String {
    let pid = owner.process.as_ref().map(|process| format!(", process {}", process.pid));
    format!("{owner}{}", pid.unwrap_or_default())
}

/// Packets through these doors end at this socket. `redirected`: their destination was rewritten, so the socket's address
/// may be another one than they were sent to.
fn hears(listener: &Listener, doors: &Doors, world: &World, redirected: bool) -> bool {
    let bound = listener.local.ip().to_canonical();
    if is_reserved(bound) || listener.interface.as_ref().is_some_and(|name| *name != world.interface) {
        return false;
    }
    listener.takes(doors.target) || (redirected && bound.is_ipv4() == doors.target.is_ipv4())
}

/// The container that an engine publishes the port for.
fn published<'a>(facts: &'a Facts, doors: &Doors, port: u16) -> Option<&'a ContainerFacts> {
    let containers = facts.engine.iter().flat_map(|engine| &engine.containers);
    containers
        .into_iter()
        .find(|container| container.published.iter().any(|(proto, at)| *proto == doors.proto && at.port() == port))
}

/// What is wrong with what can be reached, and with what only the firewall keeps from being reached.
pub(super) fn judge(facts: &Facts, rows: &mut [Row], declared: Option<&Declared>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let ufw = facts.firewalls.iter().find(|firewall| firewall.name == "ufw" && firewall.active);
    for row in rows.iter_mut() {
        let found: Vec<Finding> = if row.is_reached() {
            let denied = ufw.is_some_and(|ufw| !ufw.lets_in.contains(&row.port));
            let past_ufw = (denied && row.forwarded && row.undeclared).then(|| past_ufw(row));
            judge_reached(row, facts, declared.is_some()).into_iter().chain(past_ufw).collect()
        } else {
            judge_kept(row, facts).into_iter().collect()
        };
        row.findings = found.iter().map(|finding| finding.id).collect();
        findings.extend(found);
    }
    for world in &facts.worlds {
        findings.extend(judge_world(facts, world, declared));
    }
    findings
}

fn judge_reached(row: &Row, facts: &Facts, stack: bool) -> Option<Finding> {
    let known = row.known();
    let hit = |rule: &'static Rule, what: &str, remedy: String| {
        let message = format!("{what} can be reached {} ({})", row.reached_by(), row.who);
        let mut finding = rule.hit(row.port, message).remedy(remedy);
        finding.evidence.clone_from(&row.evidence);
        // Neighbours are fewer than everybody.
        if row.worst == Some(WorldKind::Network) && finding.severity == Severity::Error {
            finding.severity = Severity::Warning;
        }
        Some(finding)
    };
    let purpose = known.map(|known| known.purpose);
    if purpose == Some(Purpose::EngineApi) && !facts.engine.as_ref().is_some_and(|engine| engine.verifies_tls) {
        let remedy = "take `-H tcp://…` and `hosts` away from dockerd, and use `ssh://` contexts: `docker context create … --docker host=ssh://user@host`";
        return hit(&ENGINE_API_EXPOSED, "the container engine's API", remedy.into());
    }
    if !row.undeclared {
        return None;
    }
    match known {
        Some(known) if known.purpose == Purpose::Internal => {
            hit(&INTERNAL_EXPOSED, known.what, how_to_close(row, known.private))
        }
        Some(known) if known.purpose == Purpose::Dns => {
            let remedy = "let it listen on the addresses of those who ask only, or close the port in the firewall";
            hit(&DNS_EXPOSED, known.what, remedy.into())
        }
        Some(known) if known.purpose == Purpose::Host => None,
        _ if stack => {
            let what = known.map_or("a port that no service publishes", |known| known.what);
            let remedy = how_to_close(row, "stop it or bind it to 127.0.0.1");
            hit(&PORT_UNDECLARED, what, format!("{remedy}; if it is meant, name it in x-palisade.firewall.allow"))
        }
        Some(_) => None,
        None if row.forwarded && row.owner.container.is_none() => hit(
            &PORT_FORWARDED,
            "a port that is passed on to another address",
            "see which rule rewrites it: `nft list ruleset`".into(),
        ),
        None => hit(&PORT_UNKNOWN, "something", how_to_close(row, "stop it or bind it to 127.0.0.1")),
    }
}

fn how_to_close(row: &Row, private: &str) -> String {
    let port = row.port.port;
    match (&row.owner.instance, &row.owner.container, &row.owner.unit) {
        (Some(instance), ..) => format!("take the port out of `ports:` of {instance}, and run `palisade up`"),
        (None, Some(_), _) => format!(
            "publish it to this host only (`127.0.0.1:{port}:…`), or run its stack with Palisade, where `expose` keeps it private"
        ),
        (None, None, Some(unit)) => {
            format!("{private}; if nobody needs it: `systemctl disable --now {}`", printable(unit))
        }
        (None, None, None) => format!("{private}, or close the port in the firewall"),
    }
}

fn past_ufw(row: &Row) -> Finding {
    let message = format!("{} is published past ufw, which has no say about it", row.who);
    let mut finding = PUBLISHED_PAST_UFW.hit(row.port, message);
    finding.evidence.clone_from(&row.evidence);
    finding.remedy(how_to_close(row, ""))
}

/// Nobody reaches it: because it is bound to loopback, or only because of the firewall.
fn judge_kept(row: &Row, facts: &Facts) -> Option<Finding> {
    let known = row.known().filter(|known| matches!(known.purpose, Purpose::Internal | Purpose::EngineApi))?;
    let is_engine = row.owner.program() == "dockerd" || row.owner.program() == "podman";
    if is_engine && row.port.proto == Proto::Tcp && !facts.engine.as_ref().is_some_and(|engine| engine.verifies_tls) {
        let message = format!("{} listens on TCP and asks for no certificate ({})", known.what, row.who);
        let mut finding = ENGINE_API_LOCAL.hit(row.port, message);
        finding.evidence.clone_from(&row.evidence);
        return Some(
            finding.remedy("take `-H tcp://…` and `hosts` away from dockerd; its unix socket is enough on this host"),
        );
    }
    if !row.wide || facts.worlds.is_empty() || row.owner.instance.is_some() {
        return None;
    }
    let message =
        format!("{} ({}) listens on every address, and only the firewall keeps it private", known.what, row.who);
    let mut finding = ONLY_FIREWALL.hit(row.port, message);
    finding.evidence.clone_from(&row.evidence);
    Some(finding.remedy(how_to_close(row, known.private)))
}

/// More open doors than this, and there is no firewall to speak of.
const ALL_BUT: usize = 60_000;

fn judge_world(facts: &Facts, world: &World, declared: Option<&Declared>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for family in [Family::V4, Family::V6] {
        let of_family = || world.doors.iter().filter(move |doors| doors.family() == family);
        let wide: BTreeSet<Proto> =
            of_family().filter(|doors| doors.local.len() > ALL_BUT).map(|doors| doors.proto).collect();
        if !wide.is_empty() {
            let protos: Vec<_> = wide.iter().map(ToString::to_string).collect();
            let message = format!(
                "{} can send packets to every port over {family} ({})",
                capital(&world.name),
                protos.join(" and ")
            );
            let counts = of_family().map(|doors| {
                let open = doors.local.len();
                format!(
                    "{open} of 65535 {} ports of {} let a packet through that came in by {}",
                    doors.proto, doors.target, world.interface
                )
            });
            let mut finding = FIREWALL_OPEN.hit(format!("{family} by {}", world.interface), message);
            finding.evidence.extend(counts);
            if world.kind == WorldKind::Network {
                finding.severity = Severity::Warning;
            }
            findings.push(finding.remedy(
                "`palisade up` closes everything that the stack doesn't publish; without a stack, switch on the distribution's firewall for both IPv4 and IPv6, SSH first",
            ));
        }
    }
    for idle in idle_of(facts, world, declared) {
        let ports =
            idle.ports.iter().map(|(doors, open)| format!("{open}/{}", doors.proto)).collect::<Vec<_>>().join(", ");
        let family = idle.family;
        let message =
            format!("the firewall lets {} through to {ports} over {family}, and nobody listens there", world.name);
        let mut finding = DOOR_WITHOUT_LISTENER.hit(idle.subject, message);
        finding.evidence.extend(idle.ports.iter().map(|(doors, open)| {
            format!(
                "packets to {open}/{} of {} that came in by {} were let through",
                doors.proto, doors.target, world.interface
            )
        }));
        findings.push(finding.remedy("take the rule away that opens it, if the service is gone for good"));
    }
    findings.extend(wider_by_ipv6(world));
    findings
}

/// Doors of one family and interface that lead nowhere.
struct Idle<'a> {
    /// The subject of what is found about them.
    subject: String,
    family: Family,
    ports: Vec<(&'a Doors, PortSet)>,
}

fn idle_of<'a>(facts: &Facts, world: &'a World, declared: Option<&Declared>) -> Vec<Idle<'a>> {
    let mut found = Vec::new();
    for family in [Family::V4, Family::V6] {
        let of_family = || world.doors.iter().filter(move |doors| doors.family() == family);
        let wide: BTreeSet<Proto> =
            of_family().filter(|doors| doors.local.len() > ALL_BUT).map(|doors| doors.proto).collect();
        let closed = of_family().filter(|doors| !wide.contains(&doors.proto));
        let open = closed.map(|doors| (doors, without_listener(facts, world, doors, declared)));
        let ports: Vec<(&Doors, PortSet)> = open.filter(|(_, open)| !open.is_empty()).collect();
        if !ports.is_empty() {
            let told: Vec<_> = ports.iter().map(|(doors, open)| format!("{open}/{}", doors.proto)).collect();
            let subject = format!("{} over {family} by {}", told.join(", "), world.interface);
            found.push(Idle { subject, family, ports });
        }
    }
    found
}

/// Ports that let packets through to nobody, by the subjects of what is found about them. Nothing on this host listens
/// there, at whatever address.
pub fn idle_ports(facts: &Facts, declared: Option<&Declared>) -> BTreeMap<String, BTreeSet<PortProto>> {
    let mut found: BTreeMap<String, BTreeSet<PortProto>> = BTreeMap::new();
    for idle in facts.worlds.iter().flat_map(|world| idle_of(facts, world, declared)) {
        let ports = found.entry(idle.subject).or_default();
        for (doors, open) in idle.ports {
            let all = open.iter().map(|port| PortProto { port, proto: doors.proto });
            let heard = |port: &PortProto| {
                let at = |it: &Listener| it.proto == port.proto && it.local.port() == port.port;
                facts.listeners.iter().any(at)
            };
            ports.extend(all.filter(|port| !heard(port)));
        }
    }
    found
}

/// Open doors with nobody behind, except those that are meant to be open.
fn without_listener(facts: &Facts, world: &World, doors: &Doors, declared: Option<&Declared>) -> PortSet {
    let mut open = doors.local.clone();
    open.extend_from(&doors.redirected.iter().map(|(_, local)| *local).collect());
    let redirected: BTreeSet<u16> = doors.redirected.iter().map(|(_, local)| *local).collect();
    let mut used = PortSet::default();
    for listener in facts.listeners.iter().filter(|listener| listener.proto == doors.proto) {
        let port = listener.local.port();
        if hears(listener, doors, world, redirected.contains(&port)) {
            used.insert(port);
        }
    }
    for door in declared.into_iter().flat_map(|declared| declared.doors.keys()) {
        if door.family == doors.family() && door.port.proto == doors.proto {
            used.insert(door.port.port);
        }
    }
    open.minus(&used)
}

/// Ports that are open over IPv6 and not over IPv4, where there are both.
fn wider_by_ipv6(world: &World) -> Option<Finding> {
    let mut parts = Vec::new();
    for proto in [Proto::Tcp, Proto::Udp] {
        let open = |family| {
            let mut of_family =
                world.doors.iter().filter(|doors| doors.family() == family && doors.proto == proto).peekable();
            of_family.peek()?;
            let mut all = PortSet::default();
            for doors in of_family {
                all.extend_from(&doors.local);
                all.extend_from(&doors.forwarded);
                all.extend_from(&doors.redirected.iter().map(|(outside, _)| *outside).collect());
            }
            Some(all)
        };
        let (Some(v4), Some(v6)) = (open(Family::V4), open(Family::V6)) else { continue };
        let more = v6.minus(&v4);
        if !more.is_empty() {
            parts.push(format!("{more}/{proto}"));
        }
    }
    if parts.is_empty() {
        return None;
    }
    let message = format!("{} is let through to {} over IPv6 and not over IPv4", world.name, parts.join(", "));
    let finding = IPV6_WIDER.hit(&world.interface, message);
    Some(finding.remedy(
        "make the same rules for both: a table of the family `inet`, `ip6tables` beside `iptables`, or `palisade up`",
    ))
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
