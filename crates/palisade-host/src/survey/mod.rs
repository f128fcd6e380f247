//! Reads a host for an audit: sockets and whose they are, what the firewall lets through, and the settings that matter.
//!
//! Nothing is judged here. What can't be read is listed as unknown.

mod engine;
mod firewalls;
mod owners;
mod postgres;
mod settings;
mod tls;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use palisade_core::audit::facts::{
    About, AbstractSocket, Doors, Facts, FirewallService, Listener, Owner, RawSocket, Unknown, World, WorldKind,
};
use palisade_core::prove::{Door, Family};
use palisade_core::stack::{PortProto, Proto};

use crate::link::{self, InterfaceAddresses};
use crate::sockets::{self, SocketProto, Which};
use crate::twin::{self, PortSet, Twin, TwinError, TwinReport, TwinSpec};
use owners::Owners;

/// Addresses of one interface that are asked at most; each costs 131,070 packets.
const TARGETS_MAX: usize = 8;

/// What is to be read besides what every host has.
pub struct Request<'a> {
    /// Our own table of the firewall: its rules need no remarks.
    pub own_table: &'a str,
    /// That table is in force.
    pub own_firewall: bool,
    /// The engine's address, from DOCKER_HOST.
    pub docker_host: Option<&'a str>,
    /// Names of Palisade's instances, `stack/service.1`, by the ids of their cgroups.
    pub instances: &'a HashMap<u64, String>,
    /// Doors that the guard leads to services, which no socket is bound to.
    pub led: Vec<Listener>,
    /// Where strangers come in; others are networks of the host's own.
    pub external: &'a [String],
    /// Names that servers have to have a certificate for, and the ports where they are asked for; `None`: servers aren't asked.
    pub names: Option<&'a [(String, u16)]>,
    /// More who might ask: networks, `198.51.100.0/24`.
    pub given: &'a [String],
}

/// The host couldn't be read as far as every audit needs it.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// Sockets.
    #[error(transparent)]
    Sockets(#[from] sockets::SocketsError),
    /// Interfaces.
    #[error(transparent)]
    Link(#[from] link::LinkError),
    /// Who was asked about.
    #[error(transparent)]
    World(#[from] twin::WorldError),
    /// The firewall's answers.
    #[error("cannot find out what the firewall lets in by {interface}")]
    Twin {
        /// Where packets come in.
        interface: String,
        /// Why.
        #[source]
        source: TwinError,
    },
}

/// Reads the host that the calling thread's namespaces show.
pub fn survey(request: Request<'_>) -> Result<Facts, SurveyError> {
    let mut facts = Facts::default();
    let interfaces = link::interfaces()?;
    let (engine, containers) = engine::read(request.docker_host, &mut facts.unknown);
    facts.engine = engine;
    let mut owners = Owners::read(containers, request.instances);
    read_sockets(&mut facts, &interfaces, &mut owners)?;
    facts.listeners.extend(request.led);
    name_proxied(&mut facts);
    facts.host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    facts.kernel =
        nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    let loopback = interfaces.iter().filter(|interface| interface.loopback).flat_map(|interface| &interface.addresses);
    facts.loopback_addresses = loopback.map(|(ip, _)| *ip).collect();
    // Servers are asked while the firewall's copy is made and tried.
    let servers = request.names.map(|names| tls::Asked::start(&facts.listeners, &interfaces, names));
    let listening: PortSet = facts.listeners.iter().map(|listener| listener.local.port()).collect();
    for (world, kind) in worlds(&interfaces, request.external, request.given, &mut facts.unknown)? {
        let targets = targets(&interfaces, &world.interface, &mut facts.unknown);
        let spec = TwinSpec { targets, own_table: Some(request.own_table.to_owned()), ..TwinSpec::of(world) };
        let asked = |source| SurveyError::Twin { interface: spec.world.interface.clone(), source };
        let twin = Twin::copy(&spec).map_err(asked)?;
        let report = twin.probe_by_classes(&listening).map_err(asked)?;
        let reach = |why| Unknown { about: About::Reach, why };
        facts.unknown.extend(report.unknown.iter().map(|unknown| reach(format!("{}: {}", unknown.why, unknown.rule))));
        let limits = report.without_limit.iter();
        facts.unknown.extend(limits.map(|rule| reach(format!("taken without its rate limit: {rule}"))));
        let rules = rules(&twin, &report, &listening).map_err(asked)?;
        facts.worlds.push(seen(kind, report, rules));
    }
    facts.settings = settings::kernel(&interfaces);
    facts.sshd = settings::sshd(&facts.listeners, &mut facts.unknown);
    facts.reboot = settings::reboot();
    facts.firewalls = firewalls::read(request.own_table, facts.engine.as_ref(), &mut facts.unknown);
    if request.own_firewall {
        let own = FirewallService { name: "palisade".into(), active: true, ..FirewallService::default() };
        facts.firewalls.push(own);
    }
    facts.seen_at_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    match servers {
        None => {}
        Some(Ok(servers)) => servers.end(&mut facts),
        Some(Err(error)) => {
            let why = format!("certificates that are served: {error}");
            facts.unknown.push(Unknown { about: About::Tls, why });
        }
    }
    facts.postgres = postgres::read(&facts.listeners, &mut owners, &mut facts.unknown);
    facts.unknown.sort();
    facts.unknown.dedup();
    Ok(facts)
}

fn read_sockets(
    facts: &mut Facts,
    interfaces: &[InterfaceAddresses],
    owners: &mut Owners<'_>,
) -> Result<(), SurveyError> {
    let holders = sockets::holders();
    let pid =
        |inode: u32| holders.get(&inode).and_then(|all| all.first()).map(|holder| (holder.pid, holder.comm.as_str()));
    let name = |index: u32| interfaces.iter().find(|interface| interface.index == index).map(|it| it.name.clone());
    for socket in sockets::list(Which::Listening)? {
        let owner = owners.of(pid(socket.inode), socket.cgroup_id);
        let proto = match socket.proto {
            SocketProto::Tcp => Proto::Tcp,
            SocketProto::Udp => Proto::Udp,
            SocketProto::UdpLite => {
                facts.raw.push(RawSocket { what: format!("UDP-Lite on {}", socket.local), owner });
                continue;
            }
            SocketProto::Raw => {
                let what = format!(
                    "raw {}, protocol {}",
                    if socket.local.is_ipv4() { "IPv4" } else { "IPv6" },
                    socket.local.port()
                );
                facts.raw.push(RawSocket { what, owner });
                continue;
            }
        };
        // Only bound, and not listening: nobody gets an answer there.
        if proto == Proto::Tcp && socket.state != sockets::LISTENING {
            continue;
        }
        facts.listeners.push(Listener {
            proto,
            local: socket.local,
            v6_only: socket.v6_only == Some(true),
            interface: name(socket.interface),
            owner,
        });
    }
    match sockets::packet_sockets() {
        Ok(all) => {
            for socket in all {
                let on = name(socket.interface).unwrap_or_else(|| "every interface".to_owned());
                let owner = owners.of(pid(socket.inode), None);
                facts.raw.push(RawSocket { what: format!("AF_PACKET on {on}"), owner });
            }
        }
        Err(error) => facts.unknown.push(sockets_unknown(format!("packet sockets: {}", error.source))),
    }
    match sockets::abstract_listeners() {
        Ok(all) => {
            for socket in all {
                let owner = owners.of(pid(socket.inode), None);
                facts.abstract_sockets.push(AbstractSocket { name: socket.name, owner });
            }
        }
        Err(error) => facts.unknown.push(sockets_unknown(format!("abstract unix sockets: {}", error.source))),
    }
    Ok(())
}

fn sockets_unknown(why: String) -> Unknown {
    Unknown { about: About::Sockets, why }
}

/// What the engine's own proxy listens on belongs to the container behind it.
fn name_proxied(facts: &mut Facts) {
    let containers = facts.engine.iter().flat_map(|engine| &engine.containers);
    let published: BTreeMap<(Proto, u16), &str> = containers
        .flat_map(|container| {
            container.published.iter().map(|(proto, at)| ((*proto, at.port()), container.name.as_str()))
        })
        .collect();
    for listener in facts.listeners.iter_mut().filter(|listener| listener.owner.program() == "docker-proxy") {
        let container = published.get(&(listener.proto, listener.local.port()));
        listener.owner =
            Owner { container: container.map(|name| (*name).to_owned()), unit: None, ..listener.owner.clone() };
    }
}

fn worlds(
    interfaces: &[InterfaceAddresses],
    external: &[String],
    given: &[String],
    unknown: &mut Vec<Unknown>,
) -> Result<Vec<(twin::World, WorldKind)>, SurveyError> {
    let mut worlds = Vec::new();
    for interface in interfaces.iter().filter(|it| it.up && !it.loopback && !it.addresses.is_empty()) {
        let name = &interface.name;
        if external.contains(name) {
            worlds.push((twin::World::internet(name), WorldKind::Internet));
        } else if is_engines(name) {
            let why = format!("what containers behind {name} reach on this host was not asked");
            unknown.push(Unknown { about: About::Reach, why });
        } else {
            match twin::World::network_of(name) {
                Ok(world) => worlds.push((world, WorldKind::Network)),
                Err(error) => {
                    let why = format!("who is behind {name}: {error}");
                    unknown.push(Unknown { about: About::Reach, why });
                }
            }
        }
    }
    for cidr in given {
        worlds.push((twin::World::from_cidr(cidr)?, WorldKind::Given));
    }
    Ok(worlds)
}

/// Bridges and wires that container engines and libvirt make.
fn is_engines(name: &str) -> bool {
    ["docker", "br-", "veth", "virbr", "podman", "cni"].iter().any(|start| name.starts_with(start))
}

/// Addresses that packets by this interface may be for.
fn targets(interfaces: &[InterfaceAddresses], name: &str, unknown: &mut Vec<Unknown>) -> Vec<IpAddr> {
    let of = interfaces.iter().filter(|interface| interface.name == name).flat_map(|interface| &interface.addresses);
    let asked = |ip: &IpAddr| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let mut all: Vec<IpAddr> = of.map(|(ip, _)| *ip).filter(asked).collect();
    if all.len() > TARGETS_MAX {
        let rest: Vec<_> = all.split_off(TARGETS_MAX).iter().map(ToString::to_string).collect();
        let why = format!("what gets through by {name} to its addresses {} was not asked", rest.join(", "));
        unknown.push(Unknown { about: About::Reach, why });
    }
    all
}

/// Of so many ports by one protocol and family at most it is asked which rule let them through.
const RULES_ASKED_MAX: usize = 64;

/// Which rule let packets through to ports where somebody listens.
fn rules(twin: &Twin, report: &TwinReport, listening: &PortSet) -> Result<BTreeMap<Door, String>, TwinError> {
    let mut found = BTreeMap::new();
    for proto in [Proto::Tcp, Proto::Udp] {
        for family in [Family::V4, Family::V6] {
            let of =
                report.reached.iter().filter(|it| it.proto == proto && it.target.is_ipv6() == (family == Family::V6));
            let reached: BTreeSet<u16> =
                of.flat_map(|it| it.local.iter().filter(|port| listening.contains(*port))).collect();
            let ports: Vec<u16> = reached.into_iter().take(RULES_ASKED_MAX).collect();
            if ports.is_empty() {
                continue;
            }
            for traced in twin.trace(proto, family == Family::V6, &ports)? {
                if let Some(rule) = traced.decided_by() {
                    found.insert(Door { family, port: PortProto { port: traced.port, proto } }, rule.to_string());
                }
            }
        }
    }
    Ok(found)
}

fn seen(kind: WorldKind, report: TwinReport, rules: BTreeMap<Door, String>) -> World {
    let doors = report.reached.into_iter().map(|reached| Doors {
        target: reached.target,
        proto: reached.proto,
        local: reached.local,
        redirected: reached.redirected,
        forwarded: reached.forwarded,
    });
    World {
        name: report.world.name,
        kind,
        interface: report.world.interface,
        sources: [report.world.ipv4.map(IpAddr::V4), report.world.ipv6.map(IpAddr::V6)],
        doors: doors.collect(),
        rules,
        packets: report.packets,
    }
}
