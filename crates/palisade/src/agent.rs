//! The binary's side of the agent: asking it, reading what it left when it is away, and what runs beside it.
//!
//! Supervision itself is in `palisade_host::agent`; what a stack should consist of is decided by plans.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use palisade_core::address::InstanceAddress;
use palisade_core::instance::{Health, InstanceStatus, RunState};
use palisade_core::names::InstanceId;
use palisade_guard::{Event, EventReader, Guard, Kind};
use palisade_host::agent::{AgentError, Client, EventSink, Identity, Task};
use palisade_host::layout::Layout;
use palisade_host::link::AddressChanges;
use palisade_host::runtime::{self, Found};
use serde::Deserialize;

use crate::edge;
use crate::observe::{host_addresses, pins};
use crate::state::{Lock, LockError, State, read_json};

/// How long a listener waits for an event before it looks at what else may have changed.
const LISTEN: Duration = Duration::from_secs(1);

/// The agent, and the instances of the stack: as it tells, or as they were left when it is away.
pub(crate) fn seen(layout: &Layout) -> io::Result<(Option<Identity>, Vec<InstanceStatus>)> {
    match Client::connect(layout).and_then(|mut client| Ok((client.identity()?, client.status()?))) {
        Ok((agent, instances)) => Ok((Some(agent), instances)),
        Err(AgentError::Away { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            Err(io::Error::new(source.kind(), "only root can ask the agent"))
        }
        Err(_) => Ok((None, left_behind(layout)?)),
    }
}

/// What an agent that is gone knew, corrected by what still runs.
fn left_behind(layout: &Layout) -> io::Result<Vec<InstanceStatus>> {
    /// `status.json`, as far as it matters here.
    #[derive(Deserialize)]
    struct Saved {
        status: InstanceStatus,
    }
    let entries = match fs::read_dir(layout.run().join("instances")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut instances = Vec::new();
    for entry in entries {
        let path = entry?.path().join("status.json");
        let Some(Saved { mut status }) = read_json(&path).map_err(io::Error::other)? else { continue };
        match runtime::find(layout, &status.id).map_err(io::Error::other)? {
            Some(Found::Running(running)) => {
                status.state = RunState::Running;
                status.pid = Some(running.process().pid);
            }
            Some(Found::Ended(exit)) => {
                // One that was to be started again isn't, as nobody is there to do it.
                let code = exit.map_or(128 + nix::libc::SIGKILL, |exit| exit.code);
                status.state = RunState::Exited { code };
                status.pid = None;
            }
            None => status.pid = None,
        }
        instances.push(status);
    }
    instances.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(instances)
}

/// Takes an ended instance away when there is no agent to do it.
pub(crate) fn remove(layout: &Layout, id: &InstanceId) -> Result<(), crate::host::HostError> {
    match Client::connect(layout) {
        Ok(mut client) => Ok(client.remove(id)?),
        Err(AgentError::Away { .. }) => Ok(runtime::remove(layout, id)?),
        Err(error) => Err(error.into()),
    }
}

/// What the agent's process does beside supervising: it writes down what the guard tells, and tells the guard when
/// the host's addresses change and who gets no new connections.
pub(crate) fn tasks(layout: &Layout) -> Vec<Task> {
    let (watching, naming, telling, serving) = (layout.clone(), layout.clone(), layout.clone(), layout.clone());
    let (wake, woken) = std::sync::mpsc::channel();
    vec![
        Box::new(move |events| watch(&watching, &events)),
        Box::new(move |_| tell_addresses(&naming)),
        Box::new(move |events| tell_health(&telling, &events, &wake)),
        Box::new(move |events| edge::look_after(&serving, &events, &woken)),
    ]
}

/// How soon after an event the next look at the instances comes.
const SETTLE: Duration = Duration::from_millis(50);

/// Prints why something isn't done, each reason once.
struct Complaint {
    what: &'static str,
    told: Option<String>,
}

impl Complaint {
    fn that_cannot(what: &'static str) -> Self {
        Self { what, told: None }
    }
    fn hear(&mut self, done: Result<(), String>) {
        let message = done.err();
        if message != self.told
            && let Some(message) = &message
        {
            eprintln!("can't {}: {message}", self.what);
        }
        self.told = message;
    }
}

/// Tells one guard of the stack from another: one that was loaded anew knows nothing yet.
fn loaded(layout: &Layout) -> Option<u64> {
    fs::metadata(pins(layout).join("maps")).map(|metadata| metadata.ino()).ok()
}

/// Keeps the guard's list of the host's addresses. Until it has heard of one the kernel refuses what goes there.
fn tell_addresses(layout: &Layout) {
    let mut told: Option<(u64, Vec<IpAddr>)> = None;
    let mut changes: Option<AddressChanges> = None;
    let (mut complaint, mut deaf) = (
        Complaint::that_cannot("tell the guard the host's addresses"),
        Complaint::that_cannot("hear of new addresses"),
    );
    loop {
        // Before the addresses are read: none may come between.
        if changes.is_none() {
            let listening = AddressChanges::listen().map_err(|error| crate::exit::chain(&error));
            deaf.hear(listening.map(|listening| changes = Some(listening)));
        }
        complaint.hear(tell_new_addresses(layout, &mut told));
        match changes.as_mut().map(|changes| changes.wait(LISTEN)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => {
                changes = None;
                std::thread::sleep(LISTEN);
            }
        }
    }
}

fn tell_new_addresses(layout: &Layout, told: &mut Option<(u64, Vec<IpAddr>)>) -> Result<(), String> {
    let Some(guard) = loaded(layout) else { return Ok(()) };
    let now = (guard, host_addresses().map_err(|error| error.to_string())?);
    if told.as_ref() == Some(&now) {
        return Ok(());
    }
    let Some(open) = Guard::open(&pins(layout)).map_err(|error| crate::exit::chain(&error))? else { return Ok(()) };
    open.set_host_addresses(&now.1).map_err(|error| crate::exit::chain(&error))?;
    *told = Some(now);
    Ok(())
}

/// Keeps the guard's list of those that get no new connections.
fn tell_health(layout: &Layout, events: &EventSink, wake: &Sender<()>) {
    let mut told: Option<(Option<u64>, BTreeSet<InstanceAddress>)> = None;
    let mut complaint = Complaint::that_cannot("tell the guard who is well");
    loop {
        let guard = loaded(layout);
        let done = unready(layout).and_then(|unready| {
            if guard.is_none() || told.as_ref() == Some(&(guard, unready.clone())) {
                return Ok(());
            }
            let Some(open) = Guard::open(&pins(layout)).map_err(|error| crate::exit::chain(&error))? else {
                return Ok(());
            };
            open.set_suspended(&unready).map_err(|error| crate::exit::chain(&error))?;
            told = Some((guard, unready));
            // The edge chooses for itself, and has to know as well.
            let _ = wake.send(());
            Ok(())
        });
        complaint.hear(done);
        events.wait(LISTEN);
        std::thread::sleep(SETTLE);
    }
}

/// Addresses of instances that don't run, or whose health check fails or hasn't passed yet.
fn unready(layout: &Layout) -> Result<BTreeSet<InstanceAddress>, String> {
    let instances = Client::connect(layout).and_then(|mut client| client.status());
    let instances = instances.map_err(|error| crate::exit::chain(&error))?;
    let ready = |status: &InstanceStatus| {
        status.state == RunState::Running && matches!(status.health, Health::None | Health::Healthy)
    };
    let unready: Vec<_> = instances.into_iter().filter(|status| !ready(status)).collect();
    if unready.is_empty() {
        return Ok(BTreeSet::new());
    }
    let state = State::read(layout).map_err(|error| crate::exit::chain(&error))?;
    let address =
        |status: InstanceStatus| Some(state.addresses.address(&status.id.service)?.instance(status.id.number));
    Ok(unready.into_iter().filter_map(address).collect())
}

fn watch(layout: &Layout, events: &EventSink) {
    let folder = pins(layout);
    let mut complaint = Complaint::that_cannot("listen to the guard");
    loop {
        // The guard is loaded after the agent is started, and perhaps anew by a later `up`.
        let listened = match Guard::open(&folder) {
            Ok(Some(guard)) => listen(layout, &guard, events),
            Ok(None) => Ok(()),
            Err(error) => Err(crate::exit::chain(&error)),
        };
        complaint.hear(listened);
        std::thread::sleep(LISTEN);
    }
}

/// Until this guard is replaced by another one.
fn listen(layout: &Layout, guard: &Guard, events: &EventSink) -> Result<(), String> {
    let this = loaded(layout);
    let reader: EventReader = guard.events().map_err(|error| crate::exit::chain(&error))?;
    let mut names = Names::default();
    while loaded(layout) == this {
        end_orphaned_learning(layout, guard).map_err(|error| crate::exit::chain(&*error))?;
        for event in reader.poll(LISTEN).map_err(|error| error.to_string())? {
            let instance = names.of(layout, &event);
            let kind = match event.kind {
                Kind::Refused => "refused",
                Kind::Used => "used",
            };
            let details = serde_json::to_value(&event).unwrap_or_default();
            events.append(kind, instance.as_ref(), details);
        }
    }
    Ok(())
}

/// Locked by `learn` while services may do more than the file says.
pub(crate) fn learning_mark(layout: &Layout) -> PathBuf {
    layout.run().join("learning")
}

/// A `learn` that was killed can't put the policy back.
fn end_orphaned_learning(layout: &Layout, guard: &Guard) -> Result<(), Box<dyn std::error::Error>> {
    let mark = learning_mark(layout);
    if !mark.exists() {
        return Ok(());
    }
    match Lock::try_take(&mark) {
        Ok(_orphaned) => {
            if let Some(policy) = State::read(layout)?.policy {
                guard.set_policy(&policy)?;
            }
            fs::remove_file(&mark)?;
            Ok(())
        }
        Err(LockError::Held(_)) => Ok(()),
        Err(LockError::State(error)) => Err(error.into()),
    }
}

/// Names of instances by address, read again when an unknown one turns up.
#[derive(Default)]
struct Names {
    services: BTreeMap<palisade_core::address::ServiceAddress, palisade_core::names::ServiceName>,
    read: Option<Instant>,
}

impl Names {
    fn of(&mut self, layout: &Layout, event: &Event) -> Option<InstanceId> {
        let address = event.instance_address()?;
        // A file that is read for every event of a noisy service would be a way to keep the host busy.
        let may_read = self.read.is_none_or(|read| read.elapsed() > LISTEN);
        if !self.services.contains_key(&address.service()) && may_read {
            self.read = Some(Instant::now());
            if let Ok(state) = State::read(layout) {
                let entries = state.addresses.iter();
                self.services = entries.filter_map(|(name, index)| Some((index.address()?, name.clone()))).collect();
            }
        }
        let service = self.services.get(&address.service())?.clone();
        Some(InstanceId { service, number: address.ip().octets()[3] })
    }
}
