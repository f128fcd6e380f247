//! `ps`: what runs, at which address, and what of it is visible from outside.

use palisade_core::instance::{Health, RunState};
use palisade_core::observed::{InstanceSeen, Observed, SocketOwner};
use serde_json::json;
use std::net::IpAddr;

use crate::cli::{Format, StackArgs};
use crate::exit::{Answer, Failure};
use crate::{load, observe};

/// Prints a table, or an object for programs.
pub(crate) fn run(args: &StackArgs, format: Format) -> Result<Answer, Failure> {
    let project = load::project(args)?;
    let host = observe::observe(&args.layout(project.clone()));
    match format {
        Format::Json => {
            let instances = host.instances.iter().map(|seen| {
                json!({
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
                    "listens": listeners(&host, seen, |_| true),
                })
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
            print!("{}", table(&host));
        }
    }
    Ok(Answer::Yes)
}

fn table(host: &Observed) -> String {
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
        let private = dash(listeners(host, seen, |inside| inside));
        let visible = dash(listeners(host, seen, |inside| !inside));
        [status.id.to_string(), state, health.to_owned(), status.address.to_string(), private, visible]
    });
    super::table(std::iter::once(header).chain(rows).collect())
}

fn guarded(host: &Observed, seen: &InstanceSeen) -> bool {
    host.guard.as_ref().is_some_and(|guard| guard.attached.contains_key(&seen.status.id))
}

/// Sockets of the instance, of which those inside the host, or those visible from outside, are wanted. Private ones are told by port alone: the address is a column.
fn listeners(host: &Observed, seen: &InstanceSeen, wanted: impl Fn(bool) -> bool) -> Vec<String> {
    let own = |owner: &SocketOwner| *owner == SocketOwner::Instance(seen.status.id.clone());
    let sockets = host.sockets.iter().filter(|socket| own(&socket.owner));
    let mut texts: Vec<String> = sockets
        .filter_map(|socket| {
            let ip = socket.local.ip().to_canonical();
            let address = seen.status.address;
            let private = ip == IpAddr::V4(address.ip()) || ip == IpAddr::V6(address.ipv6());
            let port = format!("{}/{}", socket.local.port(), socket.proto);
            let inside = private || ip.is_loopback();
            wanted(inside).then(|| if private { port } else { format!("{}/{}", socket.local, socket.proto) })
        })
        .collect();
    texts.sort_unstable();
    texts.dedup();
    texts
}
