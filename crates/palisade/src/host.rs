//! Carries out the actions of a plan on this host, through the guard, the agent, the firewall and the file system.
//!
//! It decides nothing: an action is done as it says or fails, and what it returns undoes it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod clean;
mod error;
mod firewall;
mod instances;
mod policy;
mod volumes;
mod wait;

use palisade_core::action::Action;
use palisade_core::apply::{Host, Undo};
use palisade_core::edge::Edge;
use palisade_core::instance::InstanceSpec;
use palisade_core::names::InstanceId;
use palisade_core::observed::EngineState;
use palisade_guard::Guard;
use palisade_host::agent::{self as host_agent, AgentError, Client};
use palisade_host::cgroup::Cgroup;
use palisade_host::engine;
use palisade_host::firewall::Firewall;
use palisade_host::firewall::pending::Book;
use palisade_host::layout::Layout;
use palisade_host::link;
use palisade_host::runtime::THIS_PROGRAM;

use self::instances::applied;
use crate::observe::pins;
use crate::signals;
use crate::state::{State, StateError, read_json, write_json};

pub(crate) use self::error::HostError;

/// The adapters of one stack.
pub(crate) struct Adapters {
    layout: Layout,
    state: State,
    guard: Option<Guard>,
    firewall: Firewall,
    book: Book,
    /// Where the container engine listens, if the stack needs one.
    engine: Option<PathBuf>,
    /// What the edge serves, as the file says it, if the stack has one.
    edge: Option<Edge>,
    /// How long the log of each instance was when it was started: what comes after is this run's.
    log_starts: HashMap<InstanceId, u64>,
    /// That what was done can't be noted was told.
    told_unnoted: bool,
    /// What was done is being undone.
    undoes: bool,
    /// Interruptions that have had their effect: what was done is being undone because of them.
    heeded: u32,
}

impl Adapters {
    /// For the stack of `layout`, of which `state` was applied before.
    pub(crate) fn new(layout: Layout, state: State) -> Self {
        Self {
            firewall: Firewall::new(&layout.realm),
            book: Book::of(&layout.realm),
            layout,
            state,
            guard: None,
            engine: None,
            edge: None,
            log_starts: HashMap::new(),
            told_unnoted: false,
            undoes: false,
            heeded: 0,
        }
    }

    /// Uses this container engine.
    pub(crate) fn with_engine(&mut self, engine: &EngineState) {
        self.engine = engine.seen().map(|engine| engine.socket.clone());
    }

    /// Serves this by the edge.
    pub(crate) fn with_edge(&mut self, edge: Option<&Edge>) {
        self.edge = edge.cloned();
    }

    /// Whether waiting is to end. What is undone because of an interruption waits until the next one.
    fn interrupted(&self) -> bool {
        signals::interruptions() > self.heeded
    }

    fn engine(&self) -> Result<&Path, HostError> {
        self.engine.as_deref().ok_or(HostError::NoEngine)
    }

    /// Changes what is noted about the stack.
    pub(crate) fn remember(&mut self, change: impl FnOnce(&mut State)) -> Result<(), StateError> {
        change(&mut self.state);
        self.state.write(&self.layout)
    }

    /// Notes what was just done. That a disk is full is no reason to report it as not done, as then it would not be
    /// undone either; the next run compares the note with the kernel, and does again what differs.
    fn note(&mut self) {
        if let Err(error) = self.state.write(&self.layout)
            && !std::mem::replace(&mut self.told_unnoted, true)
        {
            eprintln!("warning: what was done can't be noted: {}", crate::exit::chain(&error));
        }
    }

    /// A connection of its own for each request: the agent may have been replaced meanwhile.
    fn agent(&self) -> Result<Client, AgentError> {
        Client::connect(&self.layout)
    }
}

impl Host for Adapters {
    type Error = HostError;

    fn begin_to_undo(&mut self) {
        self.undoes = true;
        self.heeded = signals::interruptions();
    }

    fn perform(&mut self, action: &Action) -> Result<Undo, HostError> {
        #[cfg(debug_assertions)]
        pause_before(action);
        match action {
            Action::CreateVolume { name, owner } => self.create_volume(name, owner.as_deref()),
            Action::FetchImage { image, how, .. } => {
                engine::fetch(self.engine()?, image, how, true)?;
                Ok(Undo::Nothing)
            }
            Action::StopForeign { id, name } => {
                engine::stop_foreign(self.engine()?, id, name)?;
                Ok(Undo::Do(vec![Action::StartForeign { id: id.clone(), name: name.clone() }]))
            }
            Action::StartForeign { id, name } => {
                engine::start_foreign(self.engine()?, id, name)?;
                Ok(Undo::Do(vec![Action::StopForeign { id: id.clone(), name: name.clone() }]))
            }
            Action::RemoveForeign { id, name } => {
                engine::remove_foreign(self.engine()?, id, name)?;
                Ok(Undo::Impossible("the container is gone; its volumes are there"))
            }
            Action::StartAgent => {
                host_agent::ensure(&self.layout, Path::new(THIS_PROGRAM))?;
                Ok(Undo::Do(vec![Action::StopAgent]))
            }
            Action::ReplaceAgent => {
                host_agent::replace(&self.layout, Path::new(THIS_PROGRAM))?;
                // One is as good as the other for what was there before.
                Ok(Undo::Nothing)
            }
            Action::LoadGuard => self.load_guard(),
            Action::GuardInstance { id, address, driver } => {
                let cgroup = Cgroup::made_by(&self.layout, id, *driver)?;
                let existed = cgroup.exists();
                cgroup.create()?;
                self.guard()?.attach(&cgroup.v2_path(), *address)?;
                cgroup.mark_guarded()?;
                self.require_guard(&cgroup)?;
                if has_ipv6() {
                    link::add_private_ipv6(address.ipv6())?;
                }
                // One that was there may run: taking the guard off it would open it.
                Ok(if existed { Undo::Nothing } else { Undo::Do(vec![Action::RemoveInstance { id: id.clone() }]) })
            }
            Action::SetPolicy { policy, .. } => self.set_policy(policy),
            Action::Shift { service, to, policy, .. } => self.shift(service, to, policy),
            Action::Watch { ids, for_ms } => self.watch(ids, Duration::from_millis(*for_ms)),
            Action::Drain { id, timeout_ms } => self.drain(id, Duration::from_millis(*timeout_ms)),
            Action::SetFirewall { rules, confirm_within_ms } => self.set_firewall(rules, *confirm_within_ms),
            Action::RemoveFirewall => self.remove_firewall(),
            Action::SetHosts { id, hosts } => {
                let path = self.layout.instance(id).join("applied.json");
                let old = self.agent()?.set_hosts(id, hosts)?;
                if let Some(spec) = read_json::<InstanceSpec>(&self.layout.instance(id).join("spec.json"))? {
                    write_json(&path, &applied(&spec))?;
                }
                Ok(old.map_or(Undo::Nothing, |hosts| Undo::Do(vec![Action::SetHosts { id: id.clone(), hosts }])))
            }
            Action::StartInstance { spec } => self.start_instance(spec),
            Action::Await { id, condition, timeout_ms, optional } => match self.wait(id, *condition, *timeout_ms) {
                Err(error @ HostError::NotReady { .. }) if *optional => {
                    eprintln!("warning: {error}; what depends on it goes on without (`required: false`)");
                    if let Some(hint) = error.hint() {
                        eprintln!("  hint: {hint}");
                    }
                    Ok(Undo::Nothing)
                }
                waited => waited,
            },
            Action::StopInstance { id } => self.stop_instance(id),
            Action::StopInstances { ids } => self.stop_instances(ids),
            Action::RemoveInstance { id } => self.remove_instance(id),
            Action::UnloadGuard => {
                self.guard = None;
                Guard::remove(&pins(&self.layout))?;
                let policy = self.state.policy.take();
                self.note();
                let policy = policy.map(|policy| {
                    let digest = palisade_core::digest::digest_of(&policy);
                    Action::SetPolicy { policy, digest }
                });
                Ok(Undo::Do([Action::LoadGuard].into_iter().chain(policy).collect()))
            }
            Action::StopAgent => {
                self.agent()?.shutdown()?;
                Ok(Undo::Do(vec![Action::StartAgent]))
            }
            Action::RemoveVolume { name } => self.remove_volume(name),
        }
    }
}

/// For tests of what others do meanwhile: stops this process before it does what PALISADE_TEST_PAUSE names, until it is told
/// to go on. No release has this.
#[cfg(debug_assertions)]
fn pause_before(action: &Action) {
    if std::env::var("PALISADE_TEST_PAUSE").is_ok_and(|kind| kind == action.kind()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGSTOP);
    }
}

/// Without IPv6 on loopback nobody can bind an IPv6-only socket, so none needs an address.
fn has_ipv6() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6").is_ok_and(|text| text.trim() == "0")
}
