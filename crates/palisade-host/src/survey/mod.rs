//! Reads a host for an audit: sockets and whose they are, what the firewall lets through, and the settings that matter.
//!
//! Nothing is judged here. What can't be read is listed as unknown.

mod engine;
mod firewalls;
mod owners;
mod postgres;
mod settings;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use palisade_core::audit::facts::{
    AbstractSocket, Doors, Facts, FirewallService, Listener, Owner, RawSocket, World, WorldKind,
};
use palisade_core::stack::Proto;

use crate::link::{self, InterfaceAddresses};
use crate::sockets::{self, SocketProto, Which};
use crate::twin::{self, TwinError, TwinReport, TwinSpec};
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
    /// More who might ask: names and addresses, IPv4 and IPv6, and the interface that they come in by.
    pub given: Vec<Given>,
}

/// Somebody who is asked about by name.
#[derive(Clone, Debug)]
pub struct Given {
    /// `198.51.100.0/24`.
    pub name: String,
    /// An address of theirs for IPv4 and one for IPv6.
    pub sources: [IpAddr; 2],
    /// The interface that they come in by.
    pub interface: String,
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
    let spec = |interface: &str| TwinSpec { own_table: Some(request.own_table.to_owned()), ..TwinSpec::new(interface) };
    let mut worlds = worlds(&interfaces, request.external, spec, &mut facts.unknown);
    for Given { name, sources, interface } in request.given {
        let targets = targets(&interfaces, &interface, &mut facts.unknown);
        worlds.push((name, WorldKind::Given, TwinSpec { sources, targets, ..spec(&interface) }));
    }
    for (name, kind, spec) in worlds {
        let asked = |source| SurveyError::Twin { interface: spec.interface.clone(), source };
        let report = twin::probe(&spec).map_err(asked)?;
        facts.unknown.extend(report.unknown.iter().map(|unknown| format!("{}: {}", unknown.why, unknown.rule)));
        facts.unknown.extend(report.without_limit.iter().map(|rule| format!("taken without its rate limit: {rule}")));
        facts.worlds.push(world(name, kind, &spec, report));
    }
    facts.settings = settings::kernel(&interfaces);
    facts.sshd = settings::sshd(&mut facts.unknown);
    facts.reboot = settings::reboot();
    facts.firewalls = firewalls::read();
    if request.own_firewall {
        let own = FirewallService { name: "palisade".into(), active: true, at_boot: None, differences: Vec::new() };
        facts.firewalls.push(own);
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
        Err(error) => facts.unknown.push(format!("packet sockets: {}", error.source)),
    }
    match sockets::abstract_listeners() {
        Ok(all) => {
            for socket in all {
                let owner = owners.of(pid(socket.inode), None);
                facts.abstract_sockets.push(AbstractSocket { name: socket.name, owner });
            }
        }
        Err(error) => facts.unknown.push(format!("abstract unix sockets: {}", error.source)),
    }
    Ok(())
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
    spec: impl Fn(&str) -> TwinSpec,
    unknown: &mut Vec<String>,
) -> Vec<(String, WorldKind, TwinSpec)> {
    let mut worlds = Vec::new();
    for interface in interfaces.iter().filter(|it| it.up && !it.loopback && !it.addresses.is_empty()) {
        let outside = external.contains(&interface.name);
        if !outside && is_engines(&interface.name) {
            unknown.push(format!("what containers behind {} reach on this host was not asked", interface.name));
            continue;
        }
        let targets = targets(interfaces, &interface.name, unknown);
        let spec = TwinSpec { targets, ..spec(&interface.name) };
        let (name, kind) = if outside {
            ("the internet".to_owned(), WorldKind::Internet)
        } else {
            (format!("the network on {}", interface.name), WorldKind::Network)
        };
        worlds.push((name, kind, spec));
    }
    worlds
}

/// Bridges and wires that container engines and libvirt make.
fn is_engines(name: &str) -> bool {
    ["docker", "br-", "veth", "virbr", "podman", "cni"].iter().any(|start| name.starts_with(start))
}

/// Addresses that packets by this interface may be for.
fn targets(interfaces: &[InterfaceAddresses], name: &str, unknown: &mut Vec<String>) -> Vec<IpAddr> {
    let of = interfaces.iter().filter(|interface| interface.name == name).flat_map(|interface| &interface.addresses);
    let asked = |ip: &IpAddr| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let mut all: Vec<IpAddr> = of.map(|(ip, _)| *ip).filter(asked).collect();
    if all.len() > TARGETS_MAX {
        let rest: Vec<_> = all.split_off(TARGETS_MAX).iter().map(ToString::to_string).collect();
        unknown.push(format!("what gets through by {name} to its addresses {} was not asked", rest.join(", ")));
    }
    all
}

fn world(name: String, kind: WorldKind, spec: &TwinSpec, report: TwinReport) -> World {
    let doors = report.reached.into_iter().map(|reached| Doors {
        target: reached.target,
        proto: reached.proto,
        local: reached.local,
        redirected: reached.redirected,
        forwarded: reached.forwarded,
    });
    World {
        name,
        kind,
        interface: spec.interface.clone(),
        sources: spec.sources,
        doors: doors.collect(),
        packets: report.packets,
    }
}
