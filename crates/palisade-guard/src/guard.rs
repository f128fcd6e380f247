//! Loads the programs, attaches them to instances, swaps the policy.
//!
//! Everything is pinned below one folder for each stack, so that it outlives Palisade:
//! `programs/<name>`, `maps/<name>`, `links/<instance address with dashes>/<hook>`, and `complete-<version>` when loading is done.

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, Object, ObjectBuilder, Program, libbpf_sys};
use nix::sys::utsname::uname;
use palisade_core::address::InstanceAddress;
use palisade_core::policy::Policy;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::events::EventReader;
use crate::{raw, wire};

static GUARD_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guard.bpf.o"));
static UNIX_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/unix.bpf.o"));

/// Program, the hook it belongs to, and the kernel that brought the hook.
const HOOKS: [(&str, u32); 16] = [
    ("guard_bind4", libbpf_sys::BPF_CGROUP_INET4_BIND),
    ("guard_bind6", libbpf_sys::BPF_CGROUP_INET6_BIND),
    ("guard_connect4", libbpf_sys::BPF_CGROUP_INET4_CONNECT),
    ("guard_connect6", libbpf_sys::BPF_CGROUP_INET6_CONNECT),
    ("guard_sendmsg4", libbpf_sys::BPF_CGROUP_UDP4_SENDMSG),
    ("guard_sendmsg6", libbpf_sys::BPF_CGROUP_UDP6_SENDMSG),
    ("guard_recvmsg4", libbpf_sys::BPF_CGROUP_UDP4_RECVMSG),
    ("guard_recvmsg6", libbpf_sys::BPF_CGROUP_UDP6_RECVMSG),
    ("guard_getpeername4", libbpf_sys::BPF_CGROUP_INET4_GETPEERNAME),
    ("guard_getpeername6", libbpf_sys::BPF_CGROUP_INET6_GETPEERNAME),
    ("guard_sock_create", libbpf_sys::BPF_CGROUP_INET_SOCK_CREATE),
    ("guard_ingress", libbpf_sys::BPF_CGROUP_INET_INGRESS),
    ("guard_egress", libbpf_sys::BPF_CGROUP_INET_EGRESS),
    ("guard_listen", libbpf_sys::BPF_CGROUP_SOCK_OPS),
    ("guard_connect_unix", libbpf_sys::BPF_CGROUP_UNIX_CONNECT),
    ("guard_sendmsg_unix", libbpf_sys::BPF_CGROUP_UNIX_SENDMSG),
];
/// How many of [`HOOKS`] every kernel since 5.15 has; the rest is 6.7.
const HOOKS_EVERYWHERE: usize = 14;
/// Runs once for the network namespace: leads what arrives at published TCP ports to the instances.
const ENTER: &str = "guard_enter";
/// The namespace of the calling thread.
const THIS_NETWORK: &str = "/proc/thread-self/ns/net";
const MAPS: [&str; 5] = ["identities", "policies", "host_addresses", "events", "suspended"];
const UNIX_IDENTITIES: &str = "unix_identities";

/// Something about the guard did not work.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The kernel refused the programs.
    #[error("loading the guard's eBPF programs into the kernel failed{}", log_tail(.log))]
    Load {
        /// What it answered.
        #[source]
        source: libbpf_rs::Error,
        /// What libbpf and the verifier said, if anything.
        log: String,
    },
    /// Pins of another version of Palisade are there.
    #[error("the guard in {} was loaded by another version of Palisade; `palisade down` and `up` replaces it", .0.display())]
    OtherVersion(PathBuf),
    /// Reading or writing a map.
    #[error("{what} in the guard's maps failed")]
    Map {
        /// "writing the policy" …
        what: &'static str,
        /// What the kernel answered.
        #[source]
        source: libbpf_rs::Error,
    },
    /// A file or pin.
    #[error("{what} {} failed", path.display())]
    Io {
        /// "pinning", "opening" …
        what: &'static str,
        /// What it was about.
        path: PathBuf,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
}

fn log_tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    let tail = lines[lines.len().saturating_sub(12)..].join("\n  ");
    if tail.is_empty() { String::new() } else { format!(":\n  {tail}\n ") }
}

trait Context<T> {
    fn on(self, what: &'static str, path: &Path) -> Result<T, GuardError>;
}
impl<T> Context<T> for io::Result<T> {
    fn on(self, what: &'static str, path: &Path) -> Result<T, GuardError> {
        self.map_err(|source| GuardError::Io { what, path: path.into(), source })
    }
}
impl<T> Context<T> for libbpf_rs::Result<T> {
    fn on(self, what: &'static str, path: &Path) -> Result<T, GuardError> {
        self.map_err(|source| GuardError::Io { what, path: path.into(), source: io::Error::other(source) })
    }
}
fn map_error(what: &'static str) -> impl Fn(libbpf_rs::Error) -> GuardError {
    move |source| GuardError::Map { what, source }
}

/// The guard of one stack.
pub struct Guard {
    folder: PathBuf,
    programs: Vec<(&'static str, u32, OwnedFd)>,
    enter: OwnedFd,
    identities: MapHandle,
    unix_identities: Option<MapHandle>,
    policies: MapHandle,
    host_addresses: MapHandle,
    events: MapHandle,
    suspended: MapHandle,
}

impl Guard {
    /// Loads the programs and pins them below `folder`, which must be on a bpffs. What an interrupted load left
    /// there is removed first; a complete guard must not be there.
    pub fn load(folder: &Path) -> Result<Self, GuardError> {
        remove_pins(folder).on("removing", folder)?;
        for part in ["programs", "maps", "links"] {
            let path = folder.join(part);
            fs::create_dir_all(&path).on("creating", &path)?;
        }
        let guard = load_object(GUARD_OBJECT, |_| Ok(()))?;
        let events = guard.maps().find(|map| map.name() == "events").and_then(|map| MapHandle::try_from(&map).ok());
        let unix = load_object(UNIX_OBJECT, |map| match &events {
            Some(events) if map.name() == "events" => map.reuse_fd(events.as_fd()),
            _ => Ok(()),
        });
        pin_object(&guard, folder)?;
        match unix {
            Ok(unix) => pin_object(&unix, folder)?,
            Err(error) if kernel_at_least(6, 7) => return Err(error),
            // The hooks aren't there: `guards_abstract_unix` tells it to whoever asks.
            Err(_) => {}
        }
        let done = folder.join(complete_marker());
        fs::create_dir(&done).on("creating", &done)?;
        let guard = Self::open_pins(folder)?;
        guard.attach_to_network()?;
        Ok(guard)
    }

    /// The guard whose pins are in `folder`, if it was completely loaded.
    pub fn open(folder: &Path) -> Result<Option<Self>, GuardError> {
        if folder.join(complete_marker()).is_dir() {
            return Self::open_pins(folder).map(Some);
        }
        let others = fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in others {
            if entry.file_name().to_string_lossy().starts_with("complete-") {
                return Err(GuardError::OtherVersion(folder.into()));
            }
        }
        Ok(None)
    }

    fn open_pins(folder: &Path) -> Result<Self, GuardError> {
        let map = |name: &str| {
            let path = folder.join("maps").join(name);
            MapHandle::from_pinned_path(&path).on("opening", &path)
        };
        let has_unix = folder.join("maps").join(UNIX_IDENTITIES).exists();
        let mut programs = Vec::new();
        for (name, hook) in &HOOKS[..if has_unix { HOOKS.len() } else { HOOKS_EVERYWHERE }] {
            let path = folder.join("programs").join(name);
            programs.push((*name, *hook, Program::fd_from_pinned_path(&path).on("opening", &path)?));
        }
        let enter = folder.join("programs").join(ENTER);
        Ok(Self {
            folder: folder.into(),
            programs,
            enter: Program::fd_from_pinned_path(&enter).on("opening", &enter)?,
            identities: map("identities")?,
            unix_identities: has_unix.then(|| map(UNIX_IDENTITIES)).transpose()?,
            policies: map("policies")?,
            host_addresses: map("host_addresses")?,
            events: map("events")?,
            suspended: map("suspended")?,
        })
    }

    /// Whether abstract unix sockets are guarded, which needs Linux 6.7.
    pub fn guards_abstract_unix(&self) -> bool {
        self.unix_identities.is_some()
    }

    /// Attaches all programs to the cgroup of an instance and tells them who it is. From the first attachment to
    /// the last step its sockets are refused everything, so call it before anything runs there. Doing it again for
    /// a cgroup that is guarded changes nothing, for one that has lost programs it adds those alone; one that was made
    /// anew gets new links.
    pub fn attach(&self, cgroup: &Path, address: InstanceAddress) -> Result<(), GuardError> {
        let directory = File::open(cgroup).on("opening", cgroup)?;
        let missing = self.missing_hooks_of(directory.as_fd())?;
        let links = self.links(address);
        fs::create_dir_all(&links).on("creating", &links)?;
        for (name, hook, program) in self.programs.iter().filter(|(name, ..)| missing.contains(name)) {
            let link =
                raw::link_to_cgroup(program.as_fd(), directory.as_fd(), *hook).on("attaching the guard to", cgroup)?;
            let path = links.join(name);
            // The link of a cgroup that is gone, or one that somebody has detached.
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on("removing", &path)?,
                _ => raw::pin(link.as_fd(), &path).on("pinning", &path)?,
            }
        }
        self.attach_to_network()?;
        // The storage's key is the cgroup's id, which is the inode number of its folder (kernfs, 64-bit hosts).
        let id = directory.metadata().on("reading", cgroup)?.ino();
        let mut identity = [0; 8];
        identity[..4].copy_from_slice(&address.ip().octets());
        self.identities
            .update(&id.to_ne_bytes(), &identity, MapFlags::EXIST)
            .map_err(map_error("naming the instance"))?;
        if let Some(unix) = &self.unix_identities {
            let mut identity = [0; 16];
            identity[..4].copy_from_slice(&address.ip().octets());
            unix.update(&id.to_ne_bytes(), &identity, MapFlags::EXIST).map_err(map_error("naming the instance"))?;
        }
        Ok(())
    }

    /// Published ports are led to instances in the network namespace of the calling thread, from now on.
    fn attach_to_network(&self) -> Result<(), GuardError> {
        let path = Path::new(THIS_NETWORK);
        let network = File::open(path).on("opening", path)?;
        if self.enters(network.as_fd())? {
            return Ok(());
        }
        let pins = self.folder.join("network");
        remove_pins(&pins).on("removing", &pins)?;
        fs::create_dir(&pins).on("creating", &pins)?;
        let link = raw::link_to_network(self.enter.as_fd(), network.as_fd()).on("attaching the guard to", path)?;
        let path = pins.join(ENTER);
        raw::pin(link.as_fd(), &path).on("pinning", &path)
    }

    fn enters(&self, network: BorrowedFd<'_>) -> Result<bool, GuardError> {
        let id = Program::id_from_fd(self.enter.as_fd()).on("reading program", Path::new(ENTER))?;
        Ok(raw::programs_of_network(network).on("asking for programs at", Path::new(ENTER))?.contains(&id))
    }

    /// Takes the programs off the instance. Only for one whose processes are gone.
    pub fn detach(&self, address: InstanceAddress) -> Result<(), GuardError> {
        let links = self.links(address);
        remove_pins(&links).on("removing", &links)
    }

    /// Addresses of the instances that have links. Their cgroup may be gone: see [`Guard::missing_hooks`].
    pub fn attached(&self) -> Result<BTreeSet<Ipv4Addr>, GuardError> {
        let links = self.folder.join("links");
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(&links).on("reading", &links)? {
            let entry = entry.on("reading", &links)?;
            found.extend(entry.file_name().to_str().and_then(|name| name.replace('-', ".").parse::<Ipv4Addr>().ok()));
        }
        Ok(found)
    }

    /// Which of the guard's programs do not run for this cgroup and the caller's network namespace: asked from the kernel, not read off the pins.
    pub fn missing_hooks(&self, cgroup: &Path) -> Result<Vec<&'static str>, GuardError> {
        let directory = File::open(cgroup).on("opening", cgroup)?;
        let network = File::open(THIS_NETWORK).on("opening", Path::new(THIS_NETWORK))?;
        let mut missing = self.missing_hooks_of(directory.as_fd())?;
        if !self.enters(network.as_fd())? {
            missing.push(ENTER);
        }
        Ok(missing)
    }

    fn missing_hooks_of(&self, cgroup: BorrowedFd<'_>) -> Result<Vec<&'static str>, GuardError> {
        let mut missing = Vec::new();
        for (name, hook, program) in &self.programs {
            let id = Program::id_from_fd(program.as_fd()).on("reading program", Path::new(name))?;
            let running = raw::effective_programs(cgroup, *hook).on("asking for programs at", Path::new(name))?;
            if !running.contains(&id) {
                missing.push(*name);
            }
        }
        Ok(missing)
    }

    /// Who the kernel thinks the cgroup is.
    pub fn identity(&self, cgroup: &Path) -> Result<Option<Ipv4Addr>, GuardError> {
        let id = fs::metadata(cgroup).on("reading", cgroup)?.ino();
        let value = self
            .identities
            .lookup(&id.to_ne_bytes(), MapFlags::ANY)
            .map_err(map_error("reading an instance's name"))?;
        Ok(value.and_then(|bytes| {
            let octets: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
            (octets != [0; 4]).then(|| Ipv4Addr::from(octets))
        }))
    }

    /// Replaces the whole policy in one step: a program sees the old one or the new one, never a mixture.
    pub fn set_policy(&self, policy: &Policy) -> Result<(), GuardError> {
        let entries = wire::encode(policy);
        let error = map_error("writing the policy");
        // SAFETY: an all-zero option structure is libbpf's documented default; only the size is set.
        let mut options: libbpf_sys::bpf_map_create_opts = unsafe { std::mem::zeroed() };
        options.sz = size_of_val(&options) as _;
        let inner = MapHandle::create(
            MapType::Hash,
            Some("policy"),
            wire::KEY_LEN as u32,
            wire::RULE_LEN as u32,
            entries.len().max(1) as u32,
            &options,
        )
        .map_err(&error)?;
        if !entries.is_empty() {
            let keys: Vec<u8> = entries.keys().flatten().copied().collect();
            let values: Vec<u8> = entries.values().flatten().copied().collect();
            inner.update_batch(&keys, &values, entries.len() as u32, MapFlags::ANY, MapFlags::ANY).map_err(&error)?;
        }
        let fd = inner.as_fd().as_raw_fd().to_ne_bytes();
        self.policies.update(&0_u32.to_ne_bytes(), &fd, MapFlags::ANY).map_err(&error)
    }

    /// Whether the kernel holds exactly this policy.
    pub fn has_policy(&self, policy: &Policy) -> Result<bool, GuardError> {
        let error = map_error("reading the policy");
        let Some(id) = self.policies.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).map_err(&error)? else {
            return Ok(false);
        };
        let id = u32::from_ne_bytes(id.try_into().unwrap_or_default());
        let inner = MapHandle::from_map_id(id).map_err(&error)?;
        let mut found = BTreeMap::new();
        for key in inner.keys() {
            if let Some(value) = inner.lookup(&key, MapFlags::ANY).map_err(&error)? {
                found.insert(key, value);
            }
        }
        let wanted = wire::encode(policy);
        Ok(found.len() == wanted.len()
            && wanted.iter().all(|(key, value)| found.get(key.as_slice()).is_some_and(|v| v == value.as_slice())))
    }

    /// Tells the guard all addresses of the host. Loopback needn't be among them.
    pub fn set_host_addresses(&self, addresses: &[IpAddr]) -> Result<(), GuardError> {
        let error = map_error("writing the host's addresses");
        let wanted: BTreeSet<[u8; 16]> = addresses.iter().map(|address| wire::mapped(*address)).collect();
        for address in &wanted {
            self.host_addresses.update(address, &[1], MapFlags::ANY).map_err(&error)?;
        }
        for stale in self.host_addresses.keys() {
            if <[u8; 16]>::try_from(stale.as_slice()).is_ok_and(|known| !wanted.contains(&known)) {
                self.host_addresses.delete(&stale).map_err(&error)?;
            }
        }
        Ok(())
    }

    /// Exactly these instances get no new connections, as long as their service has others.
    pub fn set_suspended(&self, instances: &BTreeSet<InstanceAddress>) -> Result<(), GuardError> {
        let error = map_error("writing who gets no new connections");
        let mut wanted: BTreeMap<[u8; 4], [u64; 4]> = BTreeMap::new();
        for instance in instances {
            let number = instance.ip().octets()[3];
            let bits = wanted.entry(instance.service().ip().octets()).or_default();
            bits[usize::from(number / 64)] |= 1 << (number % 64);
        }
        for (service, bits) in &wanted {
            let value: Vec<u8> = bits.iter().flat_map(|word| word.to_ne_bytes()).collect();
            self.suspended.update(service, &value, MapFlags::ANY).map_err(&error)?;
        }
        for stale in self.suspended.keys() {
            if <[u8; 4]>::try_from(stale.as_slice()).is_ok_and(|known| !wanted.contains_key(&known)) {
                self.suspended.delete(&stale).map_err(&error)?;
            }
        }
        Ok(())
    }

    /// Who gets no new connections.
    pub fn suspended(&self) -> Result<BTreeSet<InstanceAddress>, GuardError> {
        let error = map_error("reading who gets no new connections");
        let mut found = BTreeSet::new();
        for service in self.suspended.keys() {
            let Some(value) = self.suspended.lookup(&service, MapFlags::ANY).map_err(&error)? else { continue };
            let Ok([a, b, c, _]) = <[u8; 4]>::try_from(service.as_slice()) else { continue };
            for (word, first) in value.chunks_exact(8).zip([0, 64, 128, 192]) {
                let bits = u64::from_ne_bytes(word.try_into().unwrap_or_default());
                let numbers = (0..64).filter(|bit| bits >> bit & 1 == 1).map(|bit| first + bit);
                found.extend(numbers.filter_map(|n| InstanceAddress::from_ip(Ipv4Addr::new(a, b, c, n))));
            }
        }
        Ok(found)
    }

    /// Listens to what is refused. One listener at a time.
    pub fn events(&self) -> Result<EventReader, GuardError> {
        EventReader::new(&self.events).map_err(map_error("opening the events"))
    }

    /// Takes everything out of the kernel. Nothing may run in the stack any more.
    pub fn unload(self) -> Result<(), GuardError> {
        Self::remove(&self.folder)
    }

    /// Removes whatever pins are in `folder`, of any version and however incomplete. Nothing may run there.
    pub fn remove(folder: &Path) -> Result<(), GuardError> {
        remove_pins(folder).on("removing", folder)
    }

    fn links(&self, address: InstanceAddress) -> PathBuf {
        // A bpffs refuses names with dots.
        self.folder.join("links").join(address.to_string().replace('.', "-"))
    }
}

/// Names the version of programs and layout: pins of another one can't be used.
fn complete_marker() -> String {
    // FNV-1a: a name, not a defence.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in GUARD_OBJECT.iter().chain(UNIX_OBJECT) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    }
    format!("complete-{hash:016x}")
}

fn kernel_at_least(major: u32, minor: u32) -> bool {
    let Ok(names) = uname() else { return false };
    let release = names.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// What libbpf printed since the last load began. It prints through one callback for the whole process.
static LIBBPF_SAID: Mutex<String> = Mutex::new(String::new());

fn load_object(
    bytes: &[u8],
    mut prepare: impl FnMut(&mut libbpf_rs::OpenMapMut<'_>) -> libbpf_rs::Result<()>,
) -> Result<Object, GuardError> {
    fn listen(_: libbpf_rs::PrintLevel, text: String) {
        if let Ok(mut said) = LIBBPF_SAID.lock() {
            said.push_str(&text);
        }
    }
    libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Warn, listen)));
    if let Ok(mut said) = LIBBPF_SAID.lock() {
        said.clear();
    }
    let mut load = || -> libbpf_rs::Result<Object> {
        let mut object = ObjectBuilder::default().open_memory(bytes)?;
        for mut map in object.maps_mut() {
            prepare(&mut map)?;
        }
        object.load()
    };
    load().map_err(|source| GuardError::Load {
        source,
        log: LIBBPF_SAID.lock().map(|said| said.clone()).unwrap_or_default(),
    })
}

fn pin_object(object: &Object, folder: &Path) -> Result<(), GuardError> {
    for name in HOOKS.map(|(name, _)| name).into_iter().chain([ENTER]) {
        if let Some(program) = object.progs().find(|program| program.name() == name) {
            let path = folder.join("programs").join(name);
            raw::pin(program.as_fd(), &path).on("pinning", &path)?;
        }
    }
    for name in MAPS.into_iter().chain([UNIX_IDENTITIES]) {
        let path = folder.join("maps").join(name);
        if let Some(map) = object.maps().find(|map| map.name() == name)
            && !path.exists()
        {
            raw::pin(map.as_fd(), &path).on("pinning", &path)?;
        }
    }
    Ok(())
}

/// Removes a folder of pins; that it isn't there is fine. The marker goes first: half a guard is none.
fn remove_pins(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut paths = entries.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort_by_key(|path| !path.to_string_lossy().contains("/complete-"));
    for path in paths {
        if path.is_dir() {
            remove_pins(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    fs::remove_dir(folder)
}
