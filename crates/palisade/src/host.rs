//! Carries out the actions of a plan on this host, through the guard, the agent, the firewall and the file system.
//!
//! It decides nothing: an action is done as it says or fails, and what it returns undoes it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod wait;

use palisade_core::action::{Action, VolumeName};
use palisade_core::address::InstanceAddress;
use palisade_core::apply::{Host, Undo};
use palisade_core::edge::{Edge, Settings};
use palisade_core::firewall::FirewallRules;
use palisade_core::instance::{CgroupDriver, InstanceSpec};
use palisade_core::names::{InstanceId, ServiceName};
use palisade_core::observed::EngineState;
use palisade_core::policy::Policy;
use palisade_core::stack::Condition;
use palisade_edge::acme::EnsureError;
use palisade_guard::{Guard, GuardError, mount_bpffs, pin_root, unmount_bpffs};
use palisade_host::agent::{self as host_agent, AgentError, Client};
use palisade_host::cgroup::{self, Cgroup};
use palisade_host::edge as host_edge;
use palisade_host::engine::{self, EngineError, FetchError};
use palisade_host::firewall::bans::Bans;
use palisade_host::firewall::boot::{self, BootError};
use palisade_host::firewall::pending::{self, PendingError};
use palisade_host::firewall::{Firewall, FirewallError};
use palisade_host::layout::Layout;
use palisade_host::link::{self, LinkError};
use palisade_host::nft::ToolError;
use palisade_host::program;
use palisade_host::runtime::{self, THIS_PROGRAM};
use palisade_host::session;
use palisade_host::sockets::{self, SocketsError};

use crate::agent;
use crate::confirmation;
use crate::edge::{self, TellError};
use crate::exit::Lacking;
use crate::observe::pins;
use crate::signals;
use crate::state::{Applied, Lock, State, StateError, make_private_dir, read_json, write_json};

/// An action that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    /// The guard.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// The firewall.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// A change of the firewall that is to be confirmed.
    #[error(transparent)]
    Pending(#[from] PendingError),
    /// The firewall after the next boot.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Nobody confirmed the firewall.
    #[error("nobody confirmed it in time, so the firewall is as it was before")]
    NotConfirmed,
    /// An address on loopback.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Clients that the edge has had banned.
    #[error("can't change who is banned")]
    Bans(#[from] ToolError),
    /// The edge.
    #[error(transparent)]
    Edge(#[from] TellError),
    /// The edge's certificates.
    #[error("the edge's certificates can't be put in place")]
    Certificates(#[from] EnsureError),
    /// The container engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An image.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// There is no engine although the plan needs one.
    #[error("no container engine is known")]
    NoEngine,
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The runtime.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// The kernel's sockets.
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    /// Our own notes.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file or folder.
    #[error("{operation} {} failed", path.display())]
    Io {
        /// "making" …
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The guard isn't loaded.
    #[error("the guard isn't in the kernel")]
    NoGuard,
    /// Somebody else changes our slices.
    #[error("somebody has stopped {0} while the guard was attached to it")]
    SliceReplaced(String),
    /// The owner of a volume.
    #[error("this host has no user or group `{0}`")]
    NoUser(String),
    /// An instance did not come as far as it should.
    #[error("{id} {what}")]
    NotReady {
        /// Which.
        id: InstanceId,
        /// "exited with 1" …
        what: String,
        /// The end of its log.
        log: Vec<String>,
    },
    /// The user interrupted the waiting.
    #[error("interrupted")]
    Interrupted,
}

impl HostError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NotReady { id, log, .. } => Some(match log.len() {
                0 => format!("{id} printed nothing"),
                _ => format!("the end of what {id} printed:\n    {}", log.join("\n    ")),
            }),
            Self::Firewall(FirewallError::Tool { source, .. }) => source.hint().map(str::to_owned),
            Self::Firewall(FirewallError::Doors(_)) => Some(
                "start it, or write `firewall: {backend: nftables}` below x-palisade for a firewall of Palisade's own".to_owned(),
            ),
            Self::Engine(error) => error.hint(),
            Self::Pending(error) => error.hint().map(str::to_owned),
            Self::NotConfirmed => Some(
                "run `palisade up` again and `sudo palisade confirm` over a new SSH connection; give yourself more time \
                 with `--confirm-within 5m`, or say that there is another way in with `--no-confirm`"
                    .to_owned(),
            ),
            Self::NoUser(_) => Some("make the user, or name one that exists in x-palisade.process.user".to_owned()),
            _ => None,
        }
    }

    /// What this machine lacks, if that is the reason.
    pub(crate) fn lacking(&self) -> Option<Lacking> {
        let lacking = |what: &str, remedy: &str| Some(Lacking { what: what.to_owned(), remedy: remedy.to_owned() });
        match self {
            Self::Firewall(FirewallError::Tool { source: ToolError::Missing { program }, .. })
            | Self::Pending(PendingError::Firewall(FirewallError::Tool {
                source: ToolError::Missing { program },
                ..
            })) => lacking(
                &format!("`{program}` is not installed, and it is what changes the firewall"),
                "install the package nftables, or write `firewall: {backend: none}` below x-palisade",
            ),
            Self::Cgroup(cgroup::Error::NoCgroup2) => {
                lacking("this machine has no cgroup2 mounted", "mount -t cgroup2 none /sys/fs/cgroup/unified")
            }
            Self::Fetch(FetchError::NoTool { program, .. }) => lacking(
                &format!("`{program}` is not installed, and it is what fetches images"),
                "install the engine's command line tool (docker-ce-cli, docker-cli, podman)",
            ),
            Self::Guard(GuardError::Load { log, source }) => {
                let text = format!("{log} {source}");
                let signs = ["EPERM", "Operation not permitted", "ENOSYS", "Function not implemented"];
                let forbidden = signs.iter().any(|sign| text.contains(sign));
                if forbidden { no_bpf() } else { None }
            }
            // Where a bpffs may not be mounted, programs may not be loaded either: root of a container, mostly.
            Self::Io { operation: MOUNTING, source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                no_bpf()
            }
            _ => None,
        }
    }
}

/// What is done to a bpffs.
const MOUNTING: &str = "mounting a bpffs at";

fn no_bpf() -> Option<Lacking> {
    let what = "this kernel doesn't let eBPF programs be loaded, and they are what keeps services apart";
    let remedy = "Palisade needs Linux 5.15 or later with CONFIG_BPF_SYSCALL and without lockdown; inside a container it needs --privileged";
    Some(Lacking { what: what.to_owned(), remedy: remedy.to_owned() })
}

/// The adapters of one stack.
pub(crate) struct Adapters {
    layout: Layout,
    state: State,
    guard: Option<Guard>,
    firewall: Firewall,
    /// Where the container engine listens, if the stack needs one.
    engine: Option<PathBuf>,
    /// What the edge serves, as the file says it, if the stack has one.
    edge: Option<Edge>,
    /// How long the log of each instance was when it was started: what comes after is this run's.
    log_starts: HashMap<InstanceId, u64>,
    /// That what was done can't be noted was told.
    told_unnoted: bool,
    /// Interruptions that have had their effect: what was done is being undone because of them.
    heeded: u32,
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostError {
    move |source| HostError::Io { operation, path: path.to_owned(), source }
}

impl Adapters {
    /// For the stack of `layout`, of which `state` was applied before.
    pub(crate) fn new(layout: Layout, state: State) -> Self {
        Self {
            firewall: Firewall::new(&layout.realm),
            layout,
            state,
            guard: None,
            engine: None,
            edge: None,
            log_starts: HashMap::new(),
            told_unnoted: false,
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

    /// Removes the folders of a stack that is down; those that others still use stay.
    pub(crate) fn clean_up(&mut self) -> Result<(), HostError> {
        self.remove_private_addresses()?;
        self.firewall.shut_what_is_left()?;
        // A `down` that was killed may have taken the table away and not what is kept of it for the next boot.
        boot::tidy(&self.layout.realm)?;
        if self.layout.edge().exists() {
            Bans::new(&self.layout).remove()?;
        }
        let run = self.layout.run();
        if run.exists() {
            fs::remove_dir_all(&run).map_err(io_error("removing", &run))?;
        }
        for stack in Cgroup::all_of_stack(&self.layout)? {
            if stack.exists() {
                stack.remove()?;
            }
            stack.remove_empty_parents();
        }
        let pins = pin_root(&self.layout.realm, &self.layout.realm_run());
        // A bpffs has files of its own; stacks have folders.
        let is_folder =
            |entry: io::Result<fs::DirEntry>| entry.is_ok_and(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
        let others = fs::read_dir(&pins).is_ok_and(|mut entries| entries.any(is_folder));
        if pins.exists() && !others {
            unmount_bpffs(&pins).map_err(io_error("removing", &pins))?;
        }
        program::tidy(&self.layout, &[]);
        // Folders of volumes go when no volume is in them.
        let lib = self.layout.lib();
        let folders = [lib.join("volumes"), self.layout.made_volumes(), lib.clone(), self.layout.named_volumes()];
        for folder in folders.iter().map(PathBuf::as_path).chain(lib.parent()) {
            let _ = fs::remove_dir(folder);
        }
        self.clean_up_realm();
        Ok(())
    }

    /// Removes the realm's folder if no stack is left in it. Whoever takes the lock meanwhile notices.
    fn clean_up_realm(&self) {
        let realm = self.layout.realm_run();
        let lock = realm.join("lock");
        let Ok(_held) = Lock::try_take(&lock) else { return };
        let locks = ["lock", pending::LOCK];
        let is_lock = |entry: io::Result<fs::DirEntry>| {
            entry.is_ok_and(|entry| locks.iter().any(|lock| entry.file_name() == *lock))
        };
        if fs::read_dir(&realm).is_ok_and(|mut entries| entries.all(is_lock)) {
            // Whoever changes the firewall has a folder in the realm, so nobody holds this lock. Nothing depends on
            // any of it: what stays is untidy and no more.
            let _ = fs::remove_file(format!("/run/{}-firewall.lock", self.firewall.table()));
            for cgroup in Cgroup::all_of_realm(&self.layout).into_iter().flatten() {
                let _ = cgroup.remove_if_empty();
            }
            let _ = fs::remove_file(realm.join(pending::LOCK));
            let _ = fs::remove_file(&lock).and_then(|()| fs::remove_dir(&realm));
        }
    }

    /// A connection of its own for each request: the agent may have been replaced meanwhile.
    fn agent(&self) -> Result<Client, AgentError> {
        Client::connect(&self.layout)
    }

    /// Takes the stack's IPv6 addresses off loopback, also those of instances that a killed `down` had removed.
    fn remove_private_addresses(&self) -> Result<(), HostError> {
        let own: Vec<_> = self.state.addresses.iter().filter_map(|(_, index)| index.address()).collect();
        let loopback = link::interfaces()?.into_iter().filter(|interface| interface.loopback);
        for (ip, _) in loopback.flat_map(|interface| interface.addresses) {
            let std::net::IpAddr::V6(ip) = ip else { continue };
            let [.., a, b, c, d] = ip.octets();
            let instance = InstanceAddress::from_ip([a, b, c, d].into());
            if instance.is_some_and(|instance| instance.ipv6() == ip && own.contains(&instance.service())) {
                link::remove_private_ipv6(ip)?;
            }
        }
        Ok(())
    }

    fn guard(&mut self) -> Result<&Guard, HostError> {
        if self.guard.is_none() {
            self.guard = Guard::open(&pins(&self.layout))?;
        }
        self.guard.as_ref().ok_or(HostError::NoGuard)
    }

    /// A slice may have been stopped and made anew while the guard was attached: then the mark must not stay.
    fn require_guard(&mut self, cgroup: &Cgroup) -> Result<(), HostError> {
        let missing = match cgroup.driver() {
            CgroupDriver::Cgroupfs => return Ok(()),
            CgroupDriver::Systemd => self.guard()?.missing_hooks(&cgroup.v2_path()),
        };
        if missing.as_ref().is_ok_and(Vec::is_empty) {
            return Ok(());
        }
        cgroup.unmark()?;
        missing?;
        Err(HostError::SliceReplaced(cgroup.parent_for_engines()))
    }

    fn create_volume(&self, name: &VolumeName, owner: Option<&str>) -> Result<Undo, HostError> {
        if let VolumeName::Engine(volume) = name {
            engine::create_volume(self.engine()?, &self.layout.project, volume)?;
            return Ok(Undo::Do(vec![Action::RemoveVolume { name: name.clone() }]));
        }
        let path = self.volume_folder(name);
        if path.exists() {
            return Ok(Undo::Nothing);
        }
        let owner = owner.map(resolve).transpose()?;
        make_private_parents(&path)?;
        fs::create_dir(&path).map_err(io_error("making", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(io_error("making", &path))?;
        if let Some(note) = self.volume_note(name) {
            make_private_parents(&note)?;
            fs::write(&note, "").map_err(io_error("making", &note))?;
        }
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(&path, Some(uid), gid).map_err(io_error("giving away", &path))?;
        }
        Ok(Undo::Do(vec![Action::RemoveVolume { name: name.clone() }]))
    }

    fn volume_folder(&self, name: &VolumeName) -> PathBuf {
        match name {
            VolumeName::Own(key) => self.layout.volume(key),
            VolumeName::Named(name) | VolumeName::Engine(name) => self.layout.named_volume(name),
        }
    }

    /// Where it is noted that this stack has made a volume that others may use.
    fn volume_note(&self, name: &VolumeName) -> Option<PathBuf> {
        match name {
            VolumeName::Own(_) | VolumeName::Engine(_) => None,
            VolumeName::Named(name) => Some(self.layout.made_volumes().join(name)),
        }
    }

    fn load_guard(&mut self) -> Result<Undo, HostError> {
        let root = pin_root(&self.layout.realm, &self.layout.realm_run());
        mount_bpffs(&root).map_err(io_error(MOUNTING, &root))?;
        let pins = pins(&self.layout);
        let loaded = Guard::load(&pins).inspect_err(|_| {
            // Of a guard that isn't complete nothing may be left; that it failed is what is told.
            let _ = Guard::remove(&pins);
        });
        self.guard = Some(loaded?);
        Ok(Undo::Do(vec![Action::UnloadGuard]))
    }

    fn set_policy(&mut self, policy: &Policy) -> Result<Undo, HostError> {
        let addresses = crate::observe::host_addresses().map_err(io_error("reading", Path::new("addresses")))?;
        let guard = self.guard()?;
        guard.set_host_addresses(&addresses)?;
        guard.set_policy(policy)?;
        let old = self.state.policy.replace(policy.clone());
        self.note();
        if let Err(error) = self.tell_edge(None) {
            // What can't be told isn't so: requests would go on to whoever is stopped next.
            if let Some(old) = old {
                self.guard()?.set_policy(&old)?;
                self.state.policy = Some(old);
                self.note();
                let _ = self.tell_edge(None);
            }
            return Err(error);
        }
        Ok(match old {
            Some(policy) => {
                let digest = palisade_core::digest::digest_of(&policy);
                Undo::Do(vec![Action::SetPolicy { policy, digest }])
            }
            // The guard goes with whatever loaded it.
            None => Undo::Nothing,
        })
    }

    /// Tells the edge, if there is one, who takes requests.
    fn tell_edge(&mut self, more: Option<&Settings>) -> Result<(), HostError> {
        if more.is_none() && !self.layout.edge().exists() {
            return Ok(());
        }
        self.guard()?;
        let guard = self.guard.as_ref().ok_or(HostError::NoGuard)?;
        Ok(edge::tell(&self.layout, guard, &self.state.addresses, self.state.policy.as_ref(), more)?)
    }

    /// Undone, connections to those who took over meanwhile may still end.
    fn shift(&mut self, service: &ServiceName, to: &[InstanceId], policy: &Policy) -> Result<Undo, HostError> {
        let backends = self.state.policy.iter().flat_map(|policy| &policy.services);
        let before: Vec<_> =
            backends.filter(|known| known.name == *service).flat_map(|known| &known.backends).copied().collect();
        let service = policy.services.iter().find(|known| known.name == *service);
        let joined = to
            .iter()
            .filter(|id| service.is_some_and(|service| !before.contains(&service.address.instance(id.number))));
        let drains: Vec<_> = joined.map(|id| Action::Drain { id: id.clone(), timeout_ms: UNDO_DRAIN_MS }).collect();
        Ok(match self.set_policy(policy)? {
            Undo::Do(actions) => Undo::Do(actions.into_iter().chain(drains).collect()),
            undo => undo,
        })
    }

    /// Peers' connected datagram sockets pass no hook, so they go on to an instance that is gone for good. One that the
    /// policy still has comes back at the same address.
    fn end_datagrams_to(&self, address: InstanceAddress) {
        let services = self.state.policy.iter().flat_map(|policy| &policy.services);
        if services.flat_map(|service| &service.backends).any(|backend| *backend == address) {
            return;
        }
        // Nothing that would stop a removal: they write to nobody, as they would without it.
        if let Err(error) = sockets::abort_datagrams_to(&[address.ip().into(), address.ipv6().into()].into()) {
            eprintln!("warning: {}", crate::exit::chain(&error));
        }
    }

    fn start_instance(&mut self, spec: &InstanceSpec) -> Result<Undo, HostError> {
        let folder = self.layout.instance(&spec.id);
        make_private_dir(&folder)?;
        let log_start = fs::metadata(self.layout.log(&spec.id)).map_or(0, |metadata| metadata.len());
        self.log_starts.insert(spec.id.clone(), log_start);
        // Noted first: a note about an instance that didn't start says nothing, as its status has another digest.
        write_json(&folder.join("applied.json"), &applied(spec))?;
        if let Some(own) = &spec.own_program {
            program::keep(own).map_err(io_error("keeping this program at", &own.file))?;
        }
        if let Some(settings) = host_edge::settings_of(spec) {
            if let Some(edge) = &self.edge {
                for wrong in edge::prepare(&self.layout, edge)? {
                    eprintln!("warning: {wrong}: {}", wrong.text());
                }
            }
            self.tell_edge(Some(&settings))?;
        }
        self.agent()?.start(spec)?;
        if host_edge::settings_of(spec).is_some() {
            edge::started(&self.layout)?;
        }
        Ok(Undo::Do(vec![Action::StopInstance { id: spec.id.clone() }]))
    }

    fn stop_instance(&mut self, id: &InstanceId) -> Result<Undo, HostError> {
        let spec = read_json::<InstanceSpec>(&self.layout.instance(id).join("spec.json"))?;
        self.agent()?.stop(id)?;
        Ok(match spec {
            Some(spec) => Undo::Do(start_again(spec).into()),
            None => Undo::Impossible(SPEC_UNKNOWN),
        })
    }

    /// All of them at the same time. When one can't be stopped, the others run again.
    fn stop_instances(&mut self, ids: &[InstanceId]) -> Result<Undo, HostError> {
        let specs: Vec<_> = ids
            .iter()
            .map(|id| read_json::<InstanceSpec>(&self.layout.instance(id).join("spec.json")))
            .collect::<Result<_, _>>()?;
        let stopped = self.stop_together(ids);
        let mut failure = None;
        let mut undo = Vec::new();
        let mut unknown = false;
        for (stopped, spec) in stopped.into_iter().zip(specs) {
            match (stopped, spec) {
                (Ok(()), Some(spec)) => undo.extend(start_again(spec)),
                (Ok(()), None) => unknown = true,
                (Err(error), _) => failure = failure.or(Some(HostError::from(error))),
            }
        }
        // All are started before one is waited for.
        undo.sort_by_key(|action| matches!(action, Action::Await { .. }));
        match failure {
            None if unknown => Ok(Undo::Impossible(SPEC_UNKNOWN)),
            None => Ok(Undo::Do(undo)),
            Some(error) => {
                for action in &undo {
                    if let Err(error) = self.perform(action) {
                        eprintln!("warning: can't {action}: {}", crate::exit::chain(&error));
                    }
                }
                Err(error)
            }
        }
    }

    fn stop_together(&self, ids: &[InstanceId]) -> Vec<Result<(), AgentError>> {
        let layout = &self.layout;
        let stop = |id: &InstanceId| Client::connect(layout).and_then(|mut agent| agent.stop(id));
        let together = |ids: &[InstanceId]| -> Vec<_> {
            std::thread::scope(|scope| {
                let threads: Vec<_> = ids.iter().map(|id| scope.spawn(move || stop(id))).collect();
                let ended = threads.into_iter().map(|thread| thread.join());
                ended.map(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
            })
        };
        ids.chunks(STOPS_AT_ONCE).flat_map(together).collect()
    }

    /// The last lines that the instance printed in this run, without time and stream.
    fn log_end(&self, id: &InstanceId, lines: usize) -> Vec<String> {
        let bytes = fs::read(self.layout.log(id)).unwrap_or_default();
        let start = self.log_starts.get(id).and_then(|start| usize::try_from(*start).ok()).unwrap_or(0);
        // A log that is shorter was rotated since.
        let text = String::from_utf8_lossy(bytes.get(start..).unwrap_or(&bytes)).into_owned();
        let all: Vec<_> = text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or(line)).collect();
        all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect()
    }
}

impl Host for Adapters {
    type Error = HostError;

    fn begin_to_undo(&mut self) {
        self.heeded = signals::interruptions();
    }

    fn perform(&mut self, action: &Action) -> Result<Undo, HostError> {
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
            Action::SetFirewall { rules, confirm_within_ms } => {
                let old = self.state.firewall.clone();
                match confirm_within_ms {
                    Some(ms) => confirmation::change(&self.layout, rules, *ms)?,
                    None => {
                        self.firewall.apply(self.layout.project.as_str(), rules)?;
                        boot::keep(&self.layout.realm)?;
                    }
                }
                self.state.firewall = Some(rules.clone());
                self.note();
                Ok(Undo::Do(vec![old.map_or(Action::RemoveFirewall, set_again)]))
            }
            Action::RemoveFirewall => {
                // Where sshd listens can't be found out: then nothing more than the stack's own is known.
                let ssh_ports = session::ssh_ports().unwrap_or_default();
                self.firewall.remove(self.layout.project.as_str(), &ssh_ports)?;
                boot::keep(&self.layout.realm)?;
                let old = self.state.firewall.take();
                self.note();
                Ok(old.map_or(Undo::Nothing, |rules| Undo::Do(vec![set_again(rules)])))
            }
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
            Action::RemoveInstance { id } => {
                let cgroups = Cgroup::all_of_instance(&self.layout, id)?;
                let guard = self.guard()?;
                let guarded = cgroups.iter().find_map(|cgroup| {
                    let address = guard.identity(&cgroup.v2_path()).ok().flatten()?;
                    Some((InstanceAddress::from_ip(address)?, cgroup.driver()))
                });
                agent::remove(&self.layout, id)?;
                cgroups.iter().try_for_each(Cgroup::remove)?;
                if let Some((address, driver)) = guarded {
                    self.guard()?.detach(address)?;
                    self.end_datagrams_to(address);
                    if has_ipv6() {
                        link::remove_private_ipv6(address.ipv6())?;
                    }
                    return Ok(Undo::Do(vec![Action::GuardInstance { id: id.clone(), address, driver }]));
                }
                Ok(Undo::Nothing)
            }
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
            Action::RemoveVolume { name: VolumeName::Engine(name) } => {
                engine::remove_volume(self.engine()?, name)?;
                Ok(Undo::Impossible("its data is deleted"))
            }
            Action::RemoveVolume { name } => {
                let path = self.volume_folder(name);
                fs::remove_dir_all(&path).map_err(io_error("deleting", &path))?;
                if let Some(note) = self.volume_note(name) {
                    fs::remove_file(&note).map_err(io_error("deleting", &note))?;
                }
                Ok(Undo::Impossible("its data is deleted"))
            }
        }
    }
}

/// Going back to what was there closes nothing that it didn't close before.
fn set_again(rules: FirewallRules) -> Action {
    Action::SetFirewall { rules, confirm_within_ms: None }
}

/// So long connections to what didn't prove itself may go on when it is taken back.
const UNDO_DRAIN_MS: u64 = 5_000;

/// More stops than that at once only wait for each other.
const STOPS_AT_ONCE: usize = 64;

const SPEC_UNKNOWN: &str = "what it was started with isn't known any more";

/// What takes a stop back.
fn start_again(spec: InstanceSpec) -> [Action; 2] {
    let id = spec.id.clone();
    let (condition, timeout_ms) = match &spec.healthcheck {
        Some(check) => (Condition::ServiceHealthy, Some(check.verdict_within_ms())),
        None => (Condition::ServiceStarted, None),
    };
    [Action::StartInstance { spec: Box::new(spec) }, Action::Await { id, condition, timeout_ms, optional: false }]
}

fn applied(spec: &InstanceSpec) -> Applied {
    Applied { fingerprint: spec.fingerprint(), hosts_digest: spec.hosts.digest().to_owned() }
}

/// The folders above a volume let everybody through and nobody look around.
fn make_private_parents(path: &Path) -> Result<(), HostError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(io_error("making", parent))?;
    fs::set_permissions(parent, fs::Permissions::from_mode(0o711)).map_err(io_error("making", parent))
}

/// `user[:group]`, by name or number.
fn resolve(owner: &str) -> Result<(u32, Option<u32>), HostError> {
    let (user, group) = owner.split_once(':').map_or((owner, None), |(user, group)| (user, Some(group)));
    let unknown = || HostError::NoUser(owner.to_owned());
    let found = nix::unistd::User::from_name(user).ok().flatten();
    let (uid, own_group) = match (found, user.parse::<u32>()) {
        (Some(user), _) => (user.uid.as_raw(), Some(user.gid.as_raw())),
        (None, Ok(uid)) => (uid, None),
        (None, Err(_)) => return Err(unknown()),
    };
    let Some(group) = group else { return Ok((uid, own_group)) };
    let found = nix::unistd::Group::from_name(group).ok().flatten().map(|group| group.gid.as_raw());
    let gid = found.or_else(|| group.parse().ok()).ok_or_else(unknown)?;
    Ok((uid, Some(gid)))
}

/// Without IPv6 on loopback nobody can bind an IPv6-only socket, so none needs an address.
fn has_ipv6() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6").is_ok_and(|text| text.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_found_by_name_and_number() {
        assert_eq!(resolve("root").unwrap(), (0, Some(0)));
        assert_eq!(resolve("12345:root").unwrap(), (12345, Some(0)));
        assert_eq!(resolve("12345:54321").unwrap(), (12345, Some(54321)));
        assert!(resolve("no-such-user").is_err());
    }
}
