//! The steps that a plan can have: what is done, and why.
//!
//! How an action is done is the host's business; which are needed, the planner's.

use serde::Serialize;
use std::fmt;

use crate::address::InstanceAddress;
use crate::firewall::{Backend, FirewallRules};
use crate::instance::{CgroupDriver, Hosts, InstanceSpec};
use crate::names::{InstanceId, ServiceName};
use crate::policy::{Mode, Policy};
use crate::stack::Condition;

/// One step and why it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is done.
    pub action: Action,
    /// Why.
    pub cause: Cause,
}

/// Something that is done to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Makes the directory of a named volume.
    CreateVolume {
        /// The stack's volume.
        name: VolumeName,
        /// `user[:group]` of the service that writes to it; `None`: root.
        owner: Option<String>,
    },
    /// Brings an image to the engine.
    FetchImage {
        /// Who needs it first.
        service: ServiceName,
        /// What it is called.
        image: String,
        /// How it comes there.
        how: Fetch,
    },
    /// Stops a container of the same Compose project that somebody else has made, and puts its name aside.
    StopForeign {
        /// The engine's id.
        id: String,
        /// What it is called.
        name: String,
    },
    /// Starts such a container again, under its name.
    StartForeign {
        /// The engine's id.
        id: String,
        /// What it is called.
        name: String,
    },
    /// Takes away a container of the same Compose project that somebody else has made; its volumes stay.
    RemoveForeign {
        /// The engine's id.
        id: String,
        /// What it is called.
        name: String,
    },
    /// Starts the stack's agent.
    StartAgent,
    /// Has this program's agent take over from one of another version; instances don't notice.
    ReplaceAgent,
    /// Loads the guard's programs and pins them.
    LoadGuard,
    /// Makes the instance's cgroup and attaches the guard to it, before anything runs in it.
    GuardInstance {
        /// The instance.
        id: InstanceId,
        /// The address that the guard gives it.
        address: InstanceAddress,
        /// Who makes the cgroup.
        driver: CgroupDriver,
    },
    /// Swaps the policy in the kernel as a whole.
    SetPolicy {
        /// The new one.
        policy: Policy,
        /// Its digest, to be kept.
        digest: String,
    },
    /// Sends new connections to other instances of a service; those that are open stay where they are.
    Shift {
        /// The service.
        service: ServiceName,
        /// Who takes new connections from now on.
        to: Vec<InstanceId>,
        /// The policy that says so.
        policy: Policy,
        /// Its digest, to be kept.
        digest: String,
    },
    /// Waits, and fails when one of the instances ends, is started again or becomes unhealthy meanwhile.
    Watch {
        /// Who is watched.
        ids: Vec<InstanceId>,
        /// For so long.
        for_ms: u64,
    },
    /// Waits until nobody is connected to an instance any more. Open connections after that time are no failure.
    Drain {
        /// The instance.
        id: InstanceId,
        /// Longest time to wait.
        timeout_ms: u64,
    },
    /// Replaces Palisade's table of the firewall as a whole.
    SetFirewall {
        /// What it lets in.
        rules: FirewallRules,
        /// Longest time until it is confirmed over a new connection, in milliseconds; then it is taken back.
        confirm_within_ms: Option<u64>,
    },
    /// Replaces the hosts file of an instance that runs on.
    SetHosts {
        /// The instance.
        id: InstanceId,
        /// The new lines.
        hosts: Hosts,
    },
    /// Starts an instance in its guarded cgroup.
    StartInstance {
        /// What runs.
        spec: Box<InstanceSpec>,
    },
    /// Waits until an instance is as far as `condition` says.
    Await {
        /// The instance.
        id: InstanceId,
        /// How far it must be.
        condition: Condition,
        /// Longest time to wait; `None`: as long as it takes.
        timeout_ms: Option<u64>,
        /// When it never is, that is told and the plan goes on (`required: false`).
        optional: bool,
    },
    /// Stops an instance: stop signal, grace period, SIGKILL.
    StopInstance {
        /// The instance.
        id: InstanceId,
    },
    /// Stops several instances that don't depend on each other, at the same time.
    StopInstances {
        /// At least two.
        ids: Vec<InstanceId>,
    },
    /// Removes a stopped instance's cgroup and detaches the guard.
    RemoveInstance {
        /// The instance.
        id: InstanceId,
    },
    /// Removes Palisade's table of the firewall.
    RemoveFirewall,
    /// Removes the guard's programs.
    UnloadGuard,
    /// Ends the stack's agent.
    StopAgent,
    /// Deletes a named volume with its data.
    RemoveVolume {
        /// The stack's volume.
        name: VolumeName,
    },
}

/// How an image comes to an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetch {
    /// From its registry.
    Pull {
        /// `platform`.
        platform: Option<String>,
    },
    /// Built by the engine: `build`, in its canonical long form.
    Build(serde_json::Value),
}

/// Which volume of the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VolumeName {
    /// The stack's own, by its key in the file.
    Own(String),
    /// One with a name of its own, that other stacks may use too.
    Named(String),
    /// One of the container engine, by its name there.
    Engine(String),
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VolumeName::Own(name) | VolumeName::Named(name) | VolumeName::Engine(name) => f.write_str(name),
        }
    }
}

impl Action {
    /// Stable name of the kind, for scripts.
    pub fn kind(&self) -> &'static str {
        match self {
            Action::CreateVolume { .. } => "create_volume",
            Action::FetchImage { how: Fetch::Pull { .. }, .. } => "pull_image",
            Action::FetchImage { how: Fetch::Build(_), .. } => "build_image",
            Action::StopForeign { .. } => "stop_foreign",
            Action::StartForeign { .. } => "start_foreign",
            Action::RemoveForeign { .. } => "remove_foreign",
            Action::StartAgent => "start_agent",
            Action::ReplaceAgent => "replace_agent",
            Action::LoadGuard => "load_guard",
            Action::GuardInstance { .. } => "guard_instance",
            Action::SetPolicy { .. } => "set_policy",
            Action::Shift { .. } => "shift",
            Action::Watch { .. } => "watch",
            Action::Drain { .. } => "drain",
            Action::SetFirewall { .. } => "set_firewall",
            Action::SetHosts { .. } => "set_hosts",
            Action::StartInstance { .. } => "start_instance",
            Action::Await { .. } => "await",
            Action::StopInstance { .. } => "stop_instance",
            Action::StopInstances { .. } => "stop_instances",
            Action::RemoveInstance { .. } => "remove_instance",
            Action::RemoveFirewall => "remove_firewall",
            Action::UnloadGuard => "unload_guard",
            Action::StopAgent => "stop_agent",
            Action::RemoveVolume { .. } => "remove_volume",
        }
    }
    /// The instance that it is about.
    pub fn instance(&self) -> Option<&InstanceId> {
        match self {
            Action::GuardInstance { id, .. }
            | Action::SetHosts { id, .. }
            | Action::Await { id, .. }
            | Action::Drain { id, .. }
            | Action::StopInstance { id }
            | Action::RemoveInstance { id } => Some(id),
            Action::StartInstance { spec } => Some(&spec.id),
            _ => None,
        }
    }
    /// It deletes data.
    pub fn destroys_data(&self) -> bool {
        matches!(self, Action::RemoveVolume { .. })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::CreateVolume { name, owner: None } => write!(f, "create volume {name}"),
            Action::CreateVolume { name, owner: Some(owner) } => write!(f, "create volume {name} for {owner}"),
            Action::FetchImage { image, how: Fetch::Pull { .. }, .. } => write!(f, "pull image {image}"),
            Action::FetchImage { image, how: Fetch::Build(_), .. } => write!(f, "build image {image}"),
            Action::StopForeign { name, .. } => write!(f, "stop container {name}"),
            Action::StartForeign { name, .. } => write!(f, "start container {name}"),
            Action::RemoveForeign { name, .. } => write!(f, "remove container {name}, keep its volumes"),
            Action::StartAgent => f.write_str("start the agent"),
            Action::ReplaceAgent => f.write_str("replace the agent"),
            Action::LoadGuard => f.write_str("load the guard"),
            Action::GuardInstance { id, address, .. } => write!(f, "guard {id} at {address}"),
            Action::SetPolicy { policy, .. } => {
                let mode = match policy.mode {
                    Mode::Enforce => "enforced",
                    Mode::Learn => "learning",
                };
                write!(f, "set the policy of {} ({mode})", counted(policy.services.len(), "service"))
            }
            Action::Shift { service, to, .. } => {
                write!(f, "send new connections for {service} to {}", listed(to))
            }
            Action::Watch { ids, for_ms } => {
                write!(f, "watch {} for {}", listed(ids), seconds(*for_ms))
            }
            Action::Drain { id, timeout_ms } => {
                write!(f, "let connections to {id} end, at most {}", seconds(*timeout_ms))
            }
            Action::SetFirewall { rules, confirm_within_ms } => {
                match rules.backend {
                    Backend::Nftables => f.write_str("set the firewall: let in")?,
                    Backend::Firewalld | Backend::Iptables => {
                        write!(f, "keep private ports private, and let in by {}:", rules.backend)?;
                    }
                    Backend::Ufw => f.write_str("keep private ports private; ufw has to let in")?,
                }
                // In somebody else's firewall it is let in or not, and stays as it is.
                let ssh = rules.ssh_ports.iter().filter(|_| rules.closes()).map(|port| format!("{port}/tcp (ssh)"));
                let published = rules.published.iter().map(|open| match open.host_ip {
                    Some(ip) => format!("{}/{} at {ip}", open.port, open.proto),
                    None => format!("{}/{}", open.port, open.proto),
                });
                let allow = rules.allow.iter().map(ToString::to_string);
                let ports: Vec<_> = ssh.chain(published).chain(allow).collect();
                write!(f, " {}", if ports.is_empty() { "nothing".to_owned() } else { ports.join(", ") })?;
                match confirm_within_ms {
                    Some(ms) => write!(f, "; taken back unless it is confirmed within {}", seconds(*ms)),
                    None => Ok(()),
                }
            }
            Action::SetHosts { id, hosts } => {
                write!(f, "tell {id} the addresses of {}", counted(hosts.len(), "name"))
            }
            Action::StartInstance { spec } => write!(f, "start {}", spec.id),
            Action::Await { id, condition, timeout_ms, optional } => {
                let condition = match condition {
                    Condition::ServiceStarted => "runs",
                    Condition::ServiceHealthy => "is healthy",
                    Condition::ServiceCompletedSuccessfully => "has exited with 0",
                };
                write!(f, "wait until {id} {condition}")?;
                if let Some(ms) = timeout_ms {
                    write!(f, ", at most {} s", ms.div_ceil(1_000))?;
                }
                if *optional { f.write_str(", or go on without it") } else { Ok(()) }
            }
            Action::StopInstance { id } => write!(f, "stop {id}"),
            Action::StopInstances { ids } => write!(f, "stop {}", listed(ids)),
            Action::RemoveInstance { id } => write!(f, "remove {id}"),
            Action::RemoveFirewall => f.write_str("remove the firewall's table"),
            Action::UnloadGuard => f.write_str("unload the guard"),
            Action::StopAgent => f.write_str("stop the agent"),
            Action::RemoveVolume { name } => write!(f, "delete volume {name} and its data"),
        }
    }
}

/// Why a step is needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Cause {
    /// It isn't there.
    Missing,
    /// It is there, and not as the file says.
    Changed {
        /// What differs, without values. Empty when only the digest was kept.
        keys: Vec<String>,
    },
    /// The same, and nobody serves between the old instance and the new one.
    Outage {
        /// What differs, without values.
        keys: Vec<String>,
        /// Longest time without, in milliseconds: stopping and coming up. `None`: no limit is known.
        at_most_ms: Option<u64>,
        /// Why the new instance can't run beside the old one, as the end of a sentence.
        because: String,
    },
    /// A newer instance is to take its place.
    Replaced {
        /// Which.
        by: InstanceId,
    },
    /// An earlier update of it was cut off.
    Unfinished,
    /// It is ready.
    Ready,
    /// It just took the place of another one.
    JustReplaced,
    /// It is about to be replaced where it stands, and others of its service run.
    MakesWay {
        /// Which.
        id: InstanceId,
    },
    /// It is there and doesn't run.
    NotRunning,
    /// Somebody had it stopped.
    Stopped,
    /// It is of another version of Palisade than the one that makes the plan.
    OtherVersion,
    /// The command line asks for it.
    Asked,
    /// It ran without the guard, so it may hold sockets that the guard has not seen.
    NotGuarded,
    /// Someone needs it to be that far.
    NeededBy {
        /// Who.
        service: ServiceName,
    },
    /// `depends_on` says to restart with it.
    RestartsWith {
        /// The dependency.
        service: ServiceName,
    },
    /// Docker Compose made it for the same project, without the guard.
    Adopted,
    /// The file or the command line says to fetch it each time.
    Refreshed,
    /// The port that it holds goes to another service.
    PortGoesTo {
        /// Who gets it.
        service: ServiceName,
        /// The port of the host.
        port: u16,
    },
    /// It is told whether it came up.
    JustStarted,
    /// It is on its way, and who waits for the stack waits for it too.
    NotReady,
    /// An older version of a service needed more than the file gives it, and is gone or about to be.
    OlderLeaves {
        /// Which service.
        service: ServiceName,
    },
    /// The file has no such service or fewer replicas.
    NotInFile,
    /// The stack is taken down.
    Down,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Missing => f.write_str("it isn't there"),
            Cause::Changed { keys } if keys.is_empty() => f.write_str("it changed"),
            Cause::Changed { keys } => write!(f, "changed: {}", keys.join(", ")),
            Cause::Outage { keys, at_most_ms, because } => {
                let keys =
                    if keys.is_empty() { "it changed".to_owned() } else { format!("changed: {}", keys.join(", ")) };
                let time = at_most_ms.map_or_else(String::new, |ms| format!(" for at most {}", seconds(ms)));
                write!(f, "{keys}; nobody serves{time}, because {because}")
            }
            Cause::Replaced { by } => write!(f, "{by} takes its place"),
            Cause::Unfinished => f.write_str("an earlier update was cut off"),
            Cause::Ready => f.write_str("ready"),
            Cause::JustReplaced => f.write_str("before what it replaces goes"),
            Cause::MakesWay { id } => write!(f, "{id} is about to be replaced"),
            Cause::NotRunning => f.write_str("it doesn't run"),
            Cause::Stopped => f.write_str("it was stopped"),
            Cause::OtherVersion => f.write_str("it is of another version of Palisade"),
            Cause::Asked => f.write_str("you asked for it"),
            Cause::NotGuarded => f.write_str("it ran without the guard"),
            Cause::NeededBy { service } => write!(f, "{service} depends on it"),
            Cause::RestartsWith { service } => write!(f, "it restarts with {service}"),
            Cause::Adopted => f.write_str("Docker Compose runs it, unguarded; this stack takes its place"),
            Cause::Refreshed => f.write_str("it is to be fetched each time"),
            Cause::PortGoesTo { service, port } => write!(f, "its port {port} goes to {service}"),
            Cause::JustStarted => f.write_str("it was just started"),
            Cause::NotReady => f.write_str("it isn't ready yet"),
            Cause::OlderLeaves { service } => write!(f, "what only the older {service} needed goes"),
            Cause::NotInFile => f.write_str("the file doesn't have it"),
            Cause::Down => f.write_str("the stack is taken down"),
        }
    }
}

fn seconds(ms: u64) -> String {
    format!("{} s", ms.div_ceil(1_000))
}

fn listed(ids: &[InstanceId]) -> String {
    if ids.is_empty() {
        return "nobody".to_owned();
    }
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

pub(crate) fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
