//! Sends real packets and compares the answers with what the stack says.
//!
//! What is expected and what an answer means is decided in `palisade_core::prove`; here packets are sent and results
//! laid out. Used by `prove` on a host and by `rehearse` in its scratch namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use palisade_core::address::is_reserved;
use palisade_core::finding::Finding;
use palisade_core::firewall::FirewallRules;
use palisade_core::instance::{InstanceSpec, RunState};
use palisade_core::names::{InstanceId, ServiceName};
use palisade_core::observed::{Observed, SocketOwner, SocketSeen};
use palisade_core::prove::{
    Answer, Door, Family, PeerExpectation, judge_doors, judge_peer, open_doors, peer_expectations,
};
use palisade_core::stack::{PortProto, Proto, Stack};
use palisade_host::firewall::Firewall;
use palisade_host::layout::Layout;
use palisade_host::link;
use palisade_host::probe::{self, Response};
use palisade_host::runtime::{self, EnterOptions, Found, Inside, Running, THIS_PROGRAM};
use palisade_host::twin::{self, TwinSpec};
use serde::Serialize;

use crate::exit::Failure;
use crate::inside::probe::{Target, Targets};
use crate::state::read_json;

/// Longest wait for one peer to answer: on loopback an answer comes at once or never.
const PEER_TIMEOUT: Duration = Duration::from_millis(1_000);

/// What the firewall lets through from outside, for all ports.
#[derive(Debug, Serialize)]
pub(crate) struct Doors {
    /// Interfaces that packets came in by.
    pub interfaces: Vec<String>,
    /// Packets sent.
    pub packets: u64,
    /// How long it took.
    pub duration_ms: u64,
    /// Doors that let packets through and should.
    pub open: BTreeMap<String, String>,
    /// How many doors were tried.
    pub tried: u64,
    /// Sockets behind open doors, and whose they are.
    pub reachable: Vec<String>,
    /// What could not be shown, with the rule that stands in the way.
    pub unknown: Vec<String>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// What one service got from another.
#[derive(Debug, Serialize)]
pub(crate) struct Peer {
    /// What should be.
    #[serde(flatten)]
    pub expectation: PeerExpectation,
    /// What was.
    #[serde(flatten)]
    pub answer: Answer,
    /// As expected.
    pub holds: bool,
}

/// What services got from each other.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Peers {
    /// Every pair and every known port.
    pub pairs: Vec<Peer>,
    /// How long it took.
    pub duration_ms: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// The interfaces that strangers come in by: those with a default route, or else all with addresses.
pub(crate) fn external_interfaces() -> Result<Vec<String>, Failure> {
    let failed = |error| Failure::new("can't find out which interfaces lead outside", error);
    let routed = link::default_route_interfaces().map_err(failed)?;
    if !routed.is_empty() {
        return Ok(routed);
    }
    let all = link::interfaces().map_err(failed)?;
    Ok(all.into_iter().filter(|i| i.up && !i.loopback && !i.addresses.is_empty()).map(|i| i.name).collect())
}

/// Sends a packet to every port of a copy of this host, from outside, by every external interface.
pub(crate) fn doors(layout: &Layout, stack: &Stack, host: &Observed, interfaces: &[String]) -> Result<Doors, Failure> {
    let began = Instant::now();
    let mut doors = Doors {
        interfaces: interfaces.to_vec(),
        packets: 0,
        duration_ms: 0,
        open: BTreeMap::new(),
        tried: 0,
        reachable: Vec::new(),
        unknown: Vec::new(),
        findings: Vec::new(),
    };
    let firewall = Firewall::new(&layout.realm);
    let mut seen = BTreeSet::new();
    let mut families = BTreeSet::new();
    for interface in interfaces {
        let mut spec = TwinSpec::new(interface);
        spec.own_table = Some(firewall.table().to_owned());
        let report = twin::probe(&spec)
            .map_err(|error| Failure::new(format!("can't find out what the firewall lets in by {interface}"), error))?;
        doors.packets += report.packets;
        doors.unknown.extend(report.unknown.iter().map(|unknown| format!("{}: {}", unknown.why, unknown.rule)));
        doors.unknown.extend(report.without_limit.iter().map(|rule| format!("taken without its rate limit: {rule}")));
        for reached in &report.reached {
            let family = if reached.target.is_ipv4() { Family::V4 } else { Family::V6 };
            families.insert(family);
            doors.tried += u64::from(u16::MAX);
            let ports = reached.local.iter().chain(reached.redirected.iter().map(|(_, local)| *local));
            seen.extend(ports.map(|port| Door { family, port: PortProto { port, proto: reached.proto } }));
            for port in reached.forwarded.iter() {
                doors.unknown.push(format!("{port}/{} over {family} is passed on to another address", reached.proto));
            }
        }
    }
    doors.duration_ms = began.elapsed().as_millis() as u64;
    doors.unknown.sort();
    doors.unknown.dedup();

    // The table is shared by all stacks of the host: what another one publishes is expected, too.
    let current = firewall.current().map_err(|error| Failure::new("can't read Palisade's firewall table", error))?;
    let own = FirewallRules::of(stack, &host.ssh_ports, host.firewall_runs);
    let others =
        current.into_iter().flat_map(|current| current.stacks).filter(|(name, _)| name != stack.project.as_str());
    let mut expected = open_doors(own.as_ref());
    if let Some(expected) = &mut expected {
        if let Some(edge) = &stack.edge {
            edge.tell_doors(expected);
        }
        for (name, rules) in others {
            for (door, why) in open_doors(Some(&rules)).into_iter().flatten() {
                expected.entry(door).or_insert(format!("{why}, of stack {name}"));
            }
        }
        // A family that no external interface has can't be tried.
        expected.retain(|door, _| families.contains(&door.family));
        doors.findings = judge_doors(expected, &seen);
        if own.as_ref().is_some_and(|rules| !rules.closes()) {
            // What else the host's own firewall lets in is its owner's decision.
            doors.findings.retain(|finding| finding.id != "door-open");
        }
        doors.open = expected
            .iter()
            .filter(|(door, _)| seen.contains(door))
            .map(|(d, why)| (d.to_string(), why.clone()))
            .collect();
    }
    for socket in &host.sockets {
        for door in seen.iter().filter(|door| behind(socket, **door)) {
            doors.reachable.push(format!("{door}: {socket}"));
            if expected.is_none() && is_unpublished(stack, socket, *door) {
                doors.findings.push(
                    Finding::error(
                        "service-exposed",
                        door,
                        "a service can be reached from outside on a port that it doesn't publish",
                    )
                    .seen(socket.to_string()),
                );
            }
        }
    }
    doors.reachable.sort();
    Ok(doors)
}

/// Whether packets through this door end at this socket.
fn behind(socket: &SocketSeen, door: Door) -> bool {
    let ip = socket.local.ip().to_canonical();
    let family = match (ip, socket.local.ip()) {
        (IpAddr::V4(_), _) => door.family == Family::V4,
        (IpAddr::V6(v6), _) if v6.is_unspecified() => door.family == Family::V6 || !socket.v6_only,
        (IpAddr::V6(_), _) => door.family == Family::V6,
    };
    family
        && !ip.is_loopback()
        && !is_reserved(ip)
        && socket.proto == door.port.proto
        && socket.local.port() == door.port.port
}

fn is_unpublished(stack: &Stack, socket: &SocketSeen, door: Door) -> bool {
    let SocketOwner::Instance(id) = &socket.owner else { return false };
    let Some(service) = stack.service(&id.service) else { return true };
    !service.publish.iter().any(|p| p.value.host_port == door.port.port && p.value.container.proto == door.port.proto)
}

/// An instance of the service that runs, if one does.
pub(crate) fn some_instance(host: &Observed, service: &ServiceName) -> InstanceId {
    let of_service = host.instances.iter().filter(|seen| seen.status.id.service == *service);
    let running = of_service.filter(|seen| seen.status.state == RunState::Running).map(|seen| &seen.status.id);
    running.min().cloned().unwrap_or_else(|| InstanceId { service: service.clone(), number: 1 })
}

/// Connects from inside every running service to every known port of every other.
pub(crate) fn peers(layout: &Layout, stack: &Stack, host: &Observed) -> Result<Peers, Failure> {
    let began = Instant::now();
    let mut by_client: BTreeMap<ServiceName, Vec<PeerExpectation>> = BTreeMap::new();
    for expectation in peer_expectations(stack) {
        by_client.entry(expectation.client.clone()).or_default().push(expectation);
    }
    let mut peers = Peers::default();
    for (client, expectations) in by_client {
        let id = some_instance(host, &client);
        let targets = expectations.iter().map(|expectation| {
            let address = host.addresses.address(&expectation.server);
            let address = address
                .ok_or_else(|| Failure::plain(format!("{} has no address: is the stack up?", expectation.server)));
            Ok(Target { address: address?.ip().into(), port: expectation.port.port, proto: expectation.port.proto })
        });
        let targets = targets.collect::<Result<Vec<_>, Failure>>()?;
        let answers = match inside(layout, &id, &targets)? {
            Some(answers) => answers,
            None => {
                peers.findings.push(
                    Finding::warning(
                        "client-away",
                        &client,
                        "it doesn't run, so nothing could be tried from inside it",
                    )
                    .remedy(format!("`palisade ps` and `palisade logs {client}` tell why")),
                );
                continue;
            }
        };
        for (expectation, answer) in expectations.into_iter().zip(answers) {
            let finding = judge_peer(&expectation, &answer);
            peers.pairs.push(Peer { holds: finding.is_none(), expectation, answer });
            peers.findings.extend(finding);
        }
    }
    peers.duration_ms = began.elapsed().as_millis() as u64;
    Ok(peers)
}

/// An instance that runs, and what it was started with: all that entering it takes. `None` when it doesn't run.
pub(crate) fn running(layout: &Layout, id: &InstanceId) -> Result<Option<(Running, InstanceSpec)>, Failure> {
    let found = runtime::find(layout, id).map_err(|error| Failure::new(format!("can't find {id}"), error))?;
    let Some(Found::Running(running)) = found else { return Ok(None) };
    let spec = read_json::<InstanceSpec>(&layout.instance(id).join("spec.json"))
        .map_err(|error| Failure::new(format!("can't read what {id} runs"), error))?;
    Ok(spec.map(|spec| (running, spec)))
}

/// The answers to probes that run inside an instance; `None` when it doesn't run.
pub(crate) fn inside(layout: &Layout, id: &InstanceId, targets: &[Target]) -> Result<Option<Vec<Answer>>, Failure> {
    let Some((running, spec)) = running(layout, id)? else { return Ok(None) };
    let mut answers = Vec::with_capacity(targets.len());
    // An argument has a limit of 128 KiB; a target takes about 60 bytes.
    for chunk in targets.chunks(1_000) {
        let timeout_ms = PEER_TIMEOUT.as_millis() as u64;
        let asked = Targets { timeout_ms, targets: chunk.to_vec() };
        let asked =
            serde_json::to_string(&asked).map_err(|error| Failure::new("can't write down the probes", error))?;
        let options = EnterOptions {
            timeout: Duration::from_secs(10) + PEER_TIMEOUT * chunk.len() as u32 / 8,
            output_bytes_max: 1 << 20,
            as_root: false,
        };
        let inside = Inside::Own(vec!["__probe".into(), asked]);
        let result = runtime::enter(layout, &spec, &running, Path::new(THIS_PROGRAM), inside, options)
            .map_err(|error| Failure::new(format!("can't run probes inside {id}"), error))?;
        let said: Vec<Answer> = serde_json::from_slice(&result.output).map_err(|error| {
            let text = String::from_utf8_lossy(&result.output).trim().to_owned();
            Failure::new(format!("the probes inside {id} ended with {:?} and said: {text}", result.code), error)
        })?;
        answers.extend(said);
    }
    Ok(Some(answers))
}

/// What a stranger gets who really connects.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Stranger {
    /// Addresses of the host that were tried.
    pub addresses: Vec<IpAddr>,
    /// Packets sent: a SYN to every TCP port of every address, twice.
    pub packets: u64,
    /// How long it took.
    pub duration_ms: u64,
    /// Ports that answered, with what a published one said to `GET /`.
    pub open: BTreeMap<String, String>,
    /// Other sockets of the host, `tcp 5432`, and the addresses where they were tried and didn't answer.
    pub unanswered: BTreeMap<String, BTreeSet<IpAddr>>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// Knocks at every TCP port of the real host, and at every other socket that it has, from the calling thread's
/// network namespace.
pub(crate) fn stranger(stack: &Stack, host: &Observed, addresses: &[IpAddr]) -> Result<Stranger, Failure> {
    let began = Instant::now();
    let mut stranger = Stranger { addresses: addresses.to_vec(), ..Stranger::default() };
    let published = |port: PortProto| {
        stack
            .services
            .iter()
            .flat_map(|service| &service.publish)
            .any(|publish| publish.value.host_port == port.port && publish.value.container.proto == port.proto)
    };
    let allowed = |port: PortProto| {
        let listed = stack.firewall.allow.iter().any(|allowed| allowed.value == port);
        listed || (port.proto == Proto::Tcp && host.ssh_ports.contains(&port.port))
    };
    for address in addresses {
        let scan = probe::scan_tcp(*address)
            .map_err(|error| Failure::new(format!("can't knock at the ports of {address}"), error))?;
        stranger.packets += scan.packets;
        for port in scan.open.iter() {
            let at = SocketAddr::new(*address, port);
            let port = PortProto { port, proto: Proto::Tcp };
            if published(port) || allowed(port) {
                stranger.open.insert(at.to_string(), greeting(at));
            } else {
                stranger.findings.push(
                    Finding::error("stranger-connected", at, "a stranger can connect to a port that isn't published")
                        .seen(format!("a SYN to {at} was answered with SYN-ACK")),
                );
            }
        }
    }
    let missing = stack.services.iter().flat_map(|service| &service.publish).filter(|publish| {
        let to_all = publish.value.host_ip.is_none_or(|ip| ip.is_unspecified());
        let port = publish.value.host_port;
        to_all
            && publish.value.container.proto == Proto::Tcp
            && !stranger.open.keys().any(|at| at.ends_with(&format!(":{port}")))
    });
    for publish in missing {
        stranger.findings.push(
            Finding::error(
                "published-unanswered",
                publish.value.host_port,
                "a stranger can't connect to a port that is published",
            )
            .at(&publish.place)
            .remedy("is the service up, and does it listen on its own port on all addresses?"),
        );
    }
    // Private sockets one by one, also datagram ones, that a scan of TCP ports doesn't tell about.
    let mut targets = Vec::new();
    for socket in &host.sockets {
        let port = PortProto { port: socket.local.port(), proto: socket.proto };
        if !published(port) && !allowed(port) {
            targets.extend(addresses.iter().map(|address| (socket.proto, SocketAddr::new(*address, port.port))));
        }
        // At the very address where it is, too: nothing but the guard and the firewall keeps IPv6 from delivering there.
        let ip = socket.local.ip().to_canonical();
        if !ip.is_unspecified() && (ip.is_ipv4() || is_reserved(ip)) {
            targets.push((socket.proto, SocketAddr::new(ip, port.port)));
        }
    }
    targets.sort();
    targets.dedup();
    let wait = Duration::from_millis(300);
    let responses = probe::ask(&targets, b"palisade?", wait)
        .map_err(|error| Failure::new("can't knock at the host's sockets", error))?;
    for ((proto, target), response) in targets.iter().zip(responses) {
        if response == Response::Open {
            stranger.findings.push(
                Finding::error("stranger-connected", target, "a stranger reaches a socket that isn't published")
                    .seen(format!("{proto} {target} answered")),
            );
        } else {
            let socket = format!("{proto} {}", target.port());
            stranger.unanswered.entry(socket).or_default().insert(target.ip());
        }
    }
    stranger.duration_ms = began.elapsed().as_millis() as u64;
    Ok(stranger)
}

/// How what a TLS server says begins when it is asked in plain text: type and major version of a record (RFC 8446, section 5.1).
const TLS_ALERT: &[u8] = &[21, 3];

/// The first line that a server says to an HTTP request, or that it says nothing.
fn greeting(at: SocketAddr) -> String {
    let wait = Duration::from_secs(2);
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&at, wait)?;
        stream.set_read_timeout(Some(wait))?;
        let host = match at.ip() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut bytes = [0; 256];
        let length = stream.read(&mut bytes)?;
        if bytes[..length].starts_with(TLS_ALERT) {
            return Ok("speaks TLS".to_owned());
        }
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    };
    match ask() {
        Ok(line) if line.is_empty() => "accepts, and says nothing to HTTP".into(),
        Ok(line) => line,
        Err(error) => format!("accepts, then: {error}"),
    }
}
