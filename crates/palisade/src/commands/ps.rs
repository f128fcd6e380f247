//! `ps`: what runs, at which address, and what of it is visible from outside.

use palisade_core::edge::{Report, SERVICE_NAME};
use palisade_core::instance::{Health, RunState};
use palisade_core::observed::{InstanceSeen, Observed, SocketOwner};
use palisade_core::policy::Policy;
use palisade_core::stack::{PortProto, Proto};
use palisade_host::edge;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::cli::{Format, StackArgs};
use crate::exit::{Answer, Failure};
use crate::state::State;
use crate::{load, observe};

/// Prints a table, or an object for programs.
pub(crate) fn run(args: &StackArgs, format: Format) -> Result<Answer, Failure> {
    let project = load::project(args)?;
    let layout = args.layout(project.clone());
    let host = observe::observe(&layout);
    // What can't be read is among what `observe` couldn't.
    let state = State::read(&layout).unwrap_or_default();
    let policy = state.policy.as_ref();
    match format {
        Format::Json => {
            let instances = host.instances.iter().map(|seen| {
                let mut shown = json!({
                    "instance": seen.status.id.to_string(),
                    "service": seen.status.id.service,
                    "address": seen.status.address.ip(),
                    "state": seen.status.state,
                    "stopped": seen.status.stopped,
                    "health": seen.status.health,
                    "pid": seen.status.pid,
                    "restarts": seen.status.restarts,
                    "started_at_s": seen.status.started_at_s,
                    "guarded": guarded(&host, seen),
                    "listens": listeners(&host, policy, seen, |_| true),
                });
                // Whoever may not ask it knows as much as of one that doesn't answer.
                if seen.status.id.service.as_str() == SERVICE_NAME
                    && let Ok(Some(report)) = edge::look(&layout, seen.status.id.number)
                {
                    shown["edge"] = counted(&report);
                }
                shown
            });
            let instances: Vec<_> = instances.collect();
            println!(
                "{}",
                json!({ "version": 1, "project": project, "instances": instances, "unknown": host.unknown })
            );
        }
        Format::Text => {
            for unknown in &host.unknown {
                eprintln!("not known: {unknown}");
            }
            print!("{}", table(&host, policy));
        }
    }
    Ok(Answer::Yes)
}

/// What an instance of the edge has counted since it started.
fn counted(report: &Report) -> Value {
    json!({
        "connections": report.connections,
        "answered": report.answered,
        "limited": report.limited,
        "reset": report.reset,
        "starved": report.starved,
    })
}

fn table(host: &Observed, policy: Option<&Policy>) -> String {
    let header = ["INSTANCE", "STATE", "HEALTH", "ADDRESS", "PRIVATE", "VISIBLE"].map(str::to_owned);
    let rows = host.instances.iter().map(|seen| {
        let status = &seen.status;
        let mut state = match status.state {
            RunState::Starting => "starting".to_owned(),
            RunState::Running => "running".to_owned(),
            RunState::BackingOff => format!("crashing, {} restarts", status.restarts),
            RunState::Exited { .. } if status.stopped => "stopped".to_owned(),
            RunState::Exited { code } => format!("exited ({code})"),
        };
        if !guarded(host, seen) && host.unknown.is_empty() {
            state.push_str(", NOT GUARDED");
        }
        let health = match status.health {
            Health::None => "-",
            Health::Starting => "starting",
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
        };
        let dash = |ports: Vec<String>| if ports.is_empty() { "-".to_owned() } else { ports.join(" ") };
        let private = dash(listeners(host, policy, seen, |inside| inside));
        let visible = dash(listeners(host, policy, seen, |inside| !inside));
        [status.id.to_string(), state, health.to_owned(), status.address.to_string(), private, visible]
    });
    super::table(std::iter::once(header).chain(rows).collect())
}

fn guarded(host: &Observed, seen: &InstanceSeen) -> bool {
    host.guard.as_ref().is_some_and(|guard| guard.attached.contains_key(&seen.status.id))
}

/// Sockets of the instance, of which those inside the host, or those visible from outside, are wanted. Private ones are
/// told by port alone: the address is a column. A TCP socket of a published port is both: it is at its private address, and
/// the guard leads there what arrives at the published one.
fn listeners(
    host: &Observed,
    policy: Option<&Policy>,
    seen: &InstanceSeen,
    wanted: impl Fn(bool) -> bool,
) -> Vec<String> {
    let own = |owner: &SocketOwner| *owner == SocketOwner::Instance(seen.status.id.clone());
    let sockets = host.sockets.iter().filter(|socket| own(&socket.owner));
    let mut texts = Vec::new();
    for socket in sockets {
        let ip = socket.local.ip().to_canonical();
        let address = seen.status.address;
        let private = ip == IpAddr::V4(address.ip()) || ip == IpAddr::V6(address.ipv6());
        let port = PortProto { port: socket.local.port(), proto: socket.proto };
        if wanted(private || ip.is_loopback()) {
            texts.push(if private { port.to_string() } else { format!("{}/{}", socket.local, socket.proto) });
        }
        if private && port.proto == Proto::Tcp && wanted(false) {
            texts.extend(places(policy, seen, port, ip.is_ipv4(), socket.local.is_ipv6()));
        }
    }
    texts.sort_unstable();
    texts.dedup();
    texts
}

/// Where the world reaches a TCP socket of the instance that takes these families.
fn places(policy: Option<&Policy>, seen: &InstanceSeen, port: PortProto, ipv4: bool, ipv6: bool) -> Vec<String> {
    let services = policy.iter().flat_map(|policy| &policy.services);
    let mine = services.filter(|service| service.backends.contains(&seen.status.address));
    let binds = mine.flat_map(|service| &service.binds).filter(|bind| bind.container == port);
    let places = binds.filter_map(|bind| bind.published).flat_map(|at| {
        let everywhere = [IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from(Ipv6Addr::UNSPECIFIED)];
        let ips = at.host_ip.map_or(everywhere.to_vec(), |ip| vec![ip]);
        ips.into_iter().map(move |ip| SocketAddr::new(ip, at.host_port))
    });
    let taken = places.filter(|place| if place.is_ipv4() { ipv4 } else { ipv6 });
    taken.map(|place| format!("{place}/tcp")).collect()
}
