//! Control groups: where they are mounted, and those of a stack's instances: made, limited, read, emptied, removed.
//!
//! Nothing in here starts a process or attaches a program. The cgroup2 directory is the identity that the guard attaches
//! to; where controllers are still on version 1 (hybrid mode), the same path is mirrored below each of their mounts.
//!
//! A container whose engine leaves cgroups to systemd is in a [slice](crate::slice). The guard goes with the slice's directory,
//! which others may have removed and made anew, so a directory in it ([`Cgroup::mark_guarded`]) says that it is still the one.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use palisade_core::instance::{CgroupDriver, InstanceSpec};
use palisade_core::names::InstanceId;
use palisade_core::stack::Limits;

use crate::layout::Layout;
use crate::nft::ToolError;
use crate::slice::Slice;

/// How long leftover processes get to disappear after SIGKILL.
const KILL_WAIT: Duration = Duration::from_secs(10);
/// The period that CPU quotas refer to: the kernel's default, and Docker's.
const CPU_PERIOD_US: u64 = 100_000;
/// What everybody has who asks for nothing.
const CPU_SHARES_USUAL: u64 = 1024;
/// Made in a slice's directory by whoever has attached the guard to it; it can't outlive that directory.
const GUARDED: &str = "guarded";
/// In there, only while the agent starts the slice's container: what the container mounts.
const GATE: &str = "gate";

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cgroup2 anywhere.
    #[error("this machine has no cgroup2 file system mounted (looked in /proc/self/mountinfo)")]
    NoCgroup2,
    /// Reading, writing, making or removing a file of a cgroup failed.
    #[error("cannot {operation} {path}")]
    Io {
        /// "write 1000 to", "remove" …
        operation: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A limit was asked for that nothing enforces.
    #[error(
        "cannot limit {what} of {cgroup}: the `{controller}` controller is neither in cgroup2 nor mounted as version 1"
    )]
    NoController {
        /// "memory" …
        what: &'static str,
        /// Path below the mount.
        cgroup: PathBuf,
        /// The kernel's name of it.
        controller: &'static str,
    },
    /// systemd didn't do what it was asked.
    #[error("systemd can't {operation} {unit}")]
    Systemd {
        /// "start" …
        operation: &'static str,
        /// The slice.
        unit: String,
        /// What it said.
        #[source]
        source: ToolError,
    },
    /// A slice was started and has no directory.
    #[error("systemd has started {unit}, but there is no cgroup {path}")]
    NoSlice {
        /// The slice.
        unit: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// Processes survived SIGKILL (they sit in an uninterruptible system call).
    #[error("{count} processes in cgroup {cgroup} are still there {waited_s} s after SIGKILL")]
    Unkillable {
        /// Path.
        cgroup: PathBuf,
        /// How many.
        count: usize,
        /// How long was waited.
        waited_s: u64,
    },
}

type Result<T> = std::result::Result<T, Error>;

fn at<T>(result: io::Result<T>, operation: impl Into<String>, path: &Path) -> Result<T> {
    result.map_err(|source| Error::Io { operation: operation.into(), path: path.to_owned(), source })
}

/// A mount of version 1 controllers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1Mount {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Its controllers, as they must be named to mount the same hierarchy again.
    pub controllers: Vec<String>,
}

/// Where this machine's cgroups are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounts {
    /// The cgroup2 mount.
    pub v2: PathBuf,
    /// Version 1 mounts that have one of `memory`, `cpu`, `cpuacct`, `pids`.
    pub v1: Vec<V1Mount>,
    /// The version 1 mount of `cpuset` where that is one of its own: a cgroup in it must be given processors before
    /// anybody can join it, so only those instances get one that ask for some.
    pub v1_cpuset: Option<PathBuf>,
    /// Mounts of version 1 that only a container engine makes cgroups in.
    pub v1_engines: Vec<PathBuf>,
}

/// What an instance uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of memory in use, with the page cache that is charged to it.
    pub memory_bytes: Option<u64>,
    /// Processor time since it was made.
    pub cpu_usage_us: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

impl Mounts {
    /// Looks them up.
    pub fn find() -> Result<Self> {
        let path = Path::new("/proc/self/mountinfo");
        Self::parse(&at(fs::read_to_string(path), "read", path)?)
    }

    /// Where cgroups of ours can be: all of them.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let v1 = self.v1.iter().map(|mount| &mount.path);
        v1.chain(&self.v1_cpuset).chain(&self.v1_engines).chain([&self.v2]).map(PathBuf::as_path)
    }

    fn parse(mountinfo: &str) -> Result<Self> {
        let mut v2 = None;
        let mut v1: Vec<V1Mount> = Vec::new();
        let mut v1_cpuset = None;
        let mut v1_engines = Vec::new();
        for line in mountinfo.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let Some(path) = mount.split(' ').nth(4) else { continue };
            let path = PathBuf::from(unescape(path));
            let mut filesystem = filesystem.split(' ');
            match filesystem.next() {
                // The first one mounted is the system's own; a later one is somebody's extra view.
                Some("cgroup2") => v2 = v2.or(Some(path)),
                Some("cgroup") => {
                    let options = filesystem.nth(1).unwrap_or_default();
                    let controllers: Vec<String> = options
                        .split(',')
                        .filter(|option| !matches!(*option, "rw" | "ro" | "xattr" | "clone_children" | "noprefix"))
                        .filter(|option| !option.contains('='))
                        .map(str::to_owned)
                        .collect();
                    if controllers == ["cpuset"] {
                        v1_cpuset = v1_cpuset.or(Some(path));
                        continue;
                    }
                    let ours = ["memory", "cpu", "cpuacct", "pids"];
                    let known = v1.iter().any(|mount| mount.controllers == controllers);
                    if !controllers.iter().any(|controller| ours.contains(&controller.as_str())) {
                        v1_engines.push(path);
                    } else if !known {
                        v1.push(V1Mount { path, controllers });
                    }
                }
                _ => {}
            }
        }
        Ok(Self { v2: v2.ok_or(Error::NoCgroup2)?, v1, v1_cpuset, v1_engines })
    }

    /// Where a controller of version 1 is mounted.
    pub fn v1(&self, controller: &str) -> Option<&Path> {
        if let ("cpuset", Some(own)) = (controller, &self.v1_cpuset) {
            return Some(own);
        }
        self.v1.iter().find(|mount| mount.controllers.iter().any(|c| c == controller)).map(|mount| mount.path.as_path())
    }
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('\\') {
        result.push_str(&rest[..position]);
        match rest.get(position + 1..position + 4).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) => {
                result.push(byte as char);
                rest = &rest[position + 4..];
            }
            None => {
                result.push('\\');
                rest = &rest[position + 1..];
            }
        }
    }
    result + rest
}

/// One cgroup of ours: a path below cgroup2 and, in hybrid mode, the same below each version 1 mount; or a slice.
#[derive(Clone, Debug)]
pub struct Cgroup {
    mounts: Mounts,
    path: PathBuf,
    slice: Option<Slice>,
}

/// A cgroup's `cgroup.events`: its descriptor has POLLPRI when something has changed since it was read.
#[derive(Debug)]
pub struct Events {
    file: fs::File,
}

impl Events {
    /// Whether somebody is in the cgroup or one below.
    pub fn is_populated(&self) -> bool {
        let mut text = [0; 256];
        // A cgroup that is gone has nobody.
        let length = std::os::unix::fs::FileExt::read_at(&self.file, &mut text, 0).unwrap_or(0);
        text[..length].split(|byte| *byte == b'\n').any(|line| line == b"populated 1")
    }
}

impl std::os::fd::AsFd for Events {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Cgroup {
    fn plain(path: PathBuf) -> Result<Self> {
        Ok(Self { mounts: Mounts::find()?, path, slice: None })
    }
    fn slice(slice: Slice) -> Result<Self> {
        Ok(Self { mounts: Mounts::find()?, path: slice.path(), slice: Some(slice) })
    }
    /// Where an instance's processes are. Nothing is made.
    pub fn of(layout: &Layout, spec: &InstanceSpec) -> Result<Self> {
        Self::made_by(layout, &spec.id, spec.cgroup_driver())
    }
    /// The cgroup of an instance that is made in this way. Nothing is made.
    pub fn made_by(layout: &Layout, id: &InstanceId, driver: CgroupDriver) -> Result<Self> {
        match driver {
            CgroupDriver::Cgroupfs => Self::plain(layout.instance_cgroup(id)),
            CgroupDriver::Systemd => Self::slice(Slice::of_instance(layout, id)),
        }
    }
    /// Everywhere an instance may be, whatever runs it. Nothing is made.
    pub fn all_of_instance(layout: &Layout, id: &InstanceId) -> Result<[Self; 2]> {
        let made_by = |driver| Self::made_by(layout, id, driver);
        Ok([made_by(CgroupDriver::Cgroupfs)?, made_by(CgroupDriver::Systemd)?])
    }
    /// The cgroup that a stack's agent runs in. Nothing is made.
    pub fn of_agent(layout: &Layout) -> Result<Self> {
        Self::plain(layout.cgroup().join("agent"))
    }
    /// The cgroups of a whole stack, to be removed with everything below them. Nothing is made.
    pub fn all_of_stack(layout: &Layout) -> Result<[Self; 2]> {
        Ok([Self::plain(layout.cgroup())?, Self::slice(Slice::of_stack(layout))?])
    }
    /// The cgroups of a whole realm. Nothing is made.
    pub fn all_of_realm(layout: &Layout) -> Result<[Self; 2]> {
        Ok([Self::plain(PathBuf::from(&layout.realm))?, Self::slice(Slice::of_realm(layout))?])
    }
    /// The cgroup of the processes that take back a realm's firewall. No stack's name begins like that. Nothing is made.
    pub fn of_keepers(realm: &str) -> Result<Self> {
        Self::plain(Path::new(realm).join("_firewall"))
    }
    /// One below it, which is no slice. Nothing is made.
    pub fn below(&self, name: &str) -> Self {
        Self { mounts: self.mounts.clone(), path: self.path.join(name), slice: None }
    }
    /// Who makes it.
    pub fn driver(&self) -> CgroupDriver {
        if self.slice.is_some() { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs }
    }
    /// What an engine is told that puts a container below it.
    pub fn parent_for_engines(&self) -> String {
        self.slice.as_ref().map_or_else(|| format!("/{}", self.path.display()), Slice::unit)
    }
    /// The names of the instances, or of the stacks, that are right below it, with their directories.
    pub fn children(&self) -> Vec<(String, PathBuf)> {
        let directories = child_directories(&self.v2_path()).unwrap_or_default().into_iter();
        let named = directories.filter_map(|path| {
            let name = path.file_name()?.to_str()?;
            let name = self.slice.as_ref().map_or_else(|| Some(name.to_owned()), |slice| slice.child(name))?;
            Some((name, path))
        });
        named.collect()
    }
    /// The mounts that it is below.
    pub fn mounts(&self) -> &Mounts {
        &self.mounts
    }
    /// Its path below every mount.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// Its cgroup2 directory: what the guard attaches to.
    pub fn v2_path(&self) -> PathBuf {
        self.mounts.v2.join(&self.path)
    }
    /// Whether the cgroup2 directory is there.
    pub fn exists(&self) -> bool {
        self.v2_path().is_dir()
    }

    /// In every mount of version 1 where it is or has to be: among those of `cpuset` only if it was made there.
    fn v1_paths(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let cpuset = self.mounts.v1_cpuset.as_ref().map(|mount| mount.join(&self.path));
        let mirrored = self.mounts.v1.iter().map(|mount| mount.path.join(&self.path));
        mirrored.chain(cpuset.filter(|path| path.is_dir()))
    }

    /// In every mount where it can be.
    fn paths(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.mounts.paths().map(|mount| mount.join(&self.path))
    }

    /// Makes the cgroup2 directory and those above it.
    pub fn create(&self) -> Result<()> {
        let path = self.v2_path();
        let Some(slice) = &self.slice else { return at(fs::create_dir_all(&path), "make cgroup", &path) };
        self.ask_systemd("start", Slice::start)?;
        if !self.exists() {
            // One whose directory was taken away from systemd counts as started.
            self.ask_systemd("stop", Slice::stop)?;
            self.ask_systemd("start", Slice::start)?;
        }
        if self.exists() { Ok(()) } else { Err(Error::NoSlice { unit: slice.unit(), path }) }
    }

    fn ask_systemd(
        &self,
        operation: &'static str,
        ask: fn(&Slice) -> std::result::Result<(), ToolError>,
    ) -> Result<()> {
        let Some(slice) = &self.slice else { return Ok(()) };
        ask(slice).map_err(|source| Error::Systemd { operation, unit: slice.unit(), source })
    }

    /// Notes in a slice that its directory has the guard. Any other cgroup is made and removed by us alone.
    pub fn mark_guarded(&self) -> Result<()> {
        let Some(mark) = self.mark() else { return Ok(()) };
        make_one(&mark)
    }

    /// Takes that back.
    pub fn unmark(&self) -> Result<()> {
        self.mark().map_or(Ok(()), |mark| remove_tree(&mark))
    }

    /// Whether it is there, and is still the directory that the guard was attached to.
    pub fn is_guardable(&self) -> bool {
        self.mark().unwrap_or_else(|| self.v2_path()).is_dir()
    }

    fn mark(&self) -> Option<PathBuf> {
        self.slice.is_some().then(|| self.v2_path().join(GUARDED))
    }

    /// The file that a container in a slice mounts, so that it can be started only while there is the gate: by the agent,
    /// in the directory that has the guard.
    pub fn gate(&self) -> Option<PathBuf> {
        self.mark().map(|mark| mark.join(GATE).join("cgroup.events"))
    }

    /// Lets the container of a slice be started as long as the result is kept. Fails when the slice isn't the one that was guarded.
    pub fn open_gate(&self) -> Result<Option<Gate>> {
        let Some(mark) = self.mark() else { return Ok(None) };
        let gate = Gate(mark.join(GATE));
        make_one(&gate.0).map(|()| Some(gate))
    }

    /// Closes a gate that somebody has left open who was killed.
    pub fn close_gate(&self) {
        drop(self.mark().map(|mark| Gate(mark.join(GATE))));
    }

    /// Makes the mirrored directories of version 1 controllers.
    pub fn create_v1(&self) -> Result<()> {
        self.v1_paths().try_for_each(|path| at(fs::create_dir_all(&path), "make cgroup", &path))
    }

    /// Moves the calling process into it, below every mount.
    pub fn join(&self) -> Result<()> {
        for path in self.v1_paths().chain([self.v2_path()]) {
            let procs = path.join("cgroup.procs");
            at(fs::write(&procs, "0"), "join cgroup through", &procs)?;
        }
        Ok(())
    }

    /// Sets the limits; those that are `None` are lifted.
    pub fn limit(&self, limits: &Limits) -> Result<()> {
        let max = |value: Option<u64>| value.map_or_else(|| "max".to_owned(), |value| value.to_string());
        let minus_one = |value: Option<u64>| value.map_or_else(|| "-1".to_owned(), |value| value.to_string());
        let memory = limits.memory_bytes.or(limits.memory_reservation_bytes).is_some();
        let quota_us = limits.cpu_milli.map(|milli| (milli * CPU_PERIOD_US / 1000).max(1000));

        if let Some(path) = self.writable("memory", "memory", memory, "memory.max")? {
            write(&path.join("memory.max"), &max(limits.memory_bytes))?;
            // Swap at most as much again, as Docker does. A kernel without swap accounting lacks the file.
            let swap = match (limits.memory_bytes, limits.memory_swap_bytes) {
                (Some(_), Some(u64::MAX)) => None,
                (Some(memory), Some(both)) => Some(both.saturating_sub(memory)),
                (memory, _) => memory,
            };
            self.write_swap(&path.join("memory.swap.max"), &max(swap), limits)?;
            write_if_there(&path.join("memory.low"), &limits.memory_reservation_bytes.unwrap_or(0).to_string())?;
            self.protect_parents()?;
        } else if let Some(path) = self.mounts.v1("memory").map(|mount| mount.join(&self.path)) {
            let limit = minus_one(limits.memory_bytes);
            let with_swap = match (limits.memory_bytes, limits.memory_swap_bytes) {
                (Some(_), Some(u64::MAX)) => None,
                (Some(_), Some(both)) => Some(both),
                (memory, _) => memory.map(|bytes| bytes.saturating_mul(2)),
            };
            // Memory may never be above memory plus swap: which goes first depends on the direction.
            let lifted = path.join("memory.memsw.limit_in_bytes");
            write_if_there(&lifted, "-1")?;
            write(&path.join("memory.limit_in_bytes"), &limit)?;
            self.write_swap(&lifted, &minus_one(with_swap), limits)?;
            write(&path.join("memory.soft_limit_in_bytes"), &minus_one(limits.memory_reservation_bytes))?;
        }
        let shares = limits.cpu_shares.filter(|shares| *shares > 0);
        let cpu = quota_us.is_some() || shares.is_some();
        if let Some(path) = self.writable("cpu", "processor time", cpu, "cpu.max")? {
            write(&path.join("cpu.max"), &format!("{} {CPU_PERIOD_US}", max(quota_us)))?;
            write(&path.join("cpu.weight"), &weight(shares.unwrap_or(CPU_SHARES_USUAL)).to_string())?;
        } else if let Some(path) = self.mounts.v1("cpu").map(|mount| mount.join(&self.path)) {
            write(&path.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string())?;
            write(&path.join("cpu.cfs_quota_us"), &minus_one(quota_us))?;
            write(&path.join("cpu.shares"), &shares.unwrap_or(CPU_SHARES_USUAL).to_string())?;
        }
        self.limit_processors(limits)?;
        if let Some(path) = self.writable("pids", "processes", limits.pids.is_some(), "pids.max")? {
            write(&path.join("pids.max"), &max(limits.pids))?;
        } else if let Some(path) = self.mounts.v1("pids").map(|mount| mount.join(&self.path)) {
            write(&path.join("pids.max"), &max(limits.pids))?;
        }
        Ok(())
    }

    /// A limit of swap that was asked for must not be lost; where there is no swap, there is nothing to limit.
    fn write_swap(&self, file: &Path, value: &str, limits: &Limits) -> Result<()> {
        let asked = limits.memory_swap_bytes.is_some_and(|bytes| bytes != u64::MAX);
        let no_swap = || fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() <= 1);
        if asked && !file.exists() && !no_swap() {
            return Err(Error::NoController { what: "swap", cgroup: self.path.clone(), controller: "memory" });
        }
        write_if_there(file, value)
    }

    /// What a cgroup keeps under pressure is bounded by what those above it keep: each of ours keeps the sum.
    fn protect_parents(&self) -> Result<()> {
        let mut above = self.path.as_path();
        while let Some(parent) = above.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            above = parent;
            let path = self.mounts.v2.join(parent);
            let children = child_directories(&path)?;
            let sum: u64 = children.iter().filter_map(|child| read_number(&child.join("memory.low"))).sum();
            write_if_there(&path.join("memory.low"), &sum.to_string())?;
        }
        Ok(())
    }

    fn limit_processors(&self, limits: &Limits) -> Result<()> {
        let wanted = limits.cpuset.as_ref().map(|set| set.0.as_str());
        if let Some(path) = self.writable("cpuset", "processors", wanted.is_some(), "cpuset.cpus")? {
            // Empty: those of the cgroup above.
            return write(&path.join("cpuset.cpus"), wanted.unwrap_or("\n"));
        }
        let Some(mount) = self.mounts.v1("cpuset") else { return Ok(()) };
        let path = mount.join(&self.path);
        match wanted {
            Some(wanted) => {
                self.make_cpuset(mount)?;
                write(&path.join("cpuset.cpus"), wanted)
            }
            None if path.is_dir() => {
                let above = path.parent().unwrap_or(mount).join("cpuset.cpus");
                let all = at(fs::read_to_string(&above), "read", &above)?;
                write(&path.join("cpuset.cpus"), all.trim())
            }
            None => Ok(()),
        }
    }

    /// Makes the cgroup in version 1 of `cpuset`, where a new one has no processors and no memory until it is given some.
    fn make_cpuset(&self, mount: &Path) -> Result<()> {
        let mut path = mount.to_owned();
        for component in self.path.components() {
            let parent = path.clone();
            path.push(component);
            at(fs::create_dir_all(&path), "make cgroup", &path)?;
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let (from, to) = (parent.join(file), path.join(file));
                if at(fs::read_to_string(&to), "read", &to)?.trim().is_empty() {
                    let all = at(fs::read_to_string(&from), "read", &from)?;
                    write(&to, all.trim())?;
                }
            }
        }
        Ok(())
    }

    /// The cgroup2 directory if that version has the controller, enabled down to it when a limit needs it (or when it
    /// happens to be enabled, so that an old limit can be lifted).
    fn writable(
        &self,
        controller: &'static str,
        what: &'static str,
        needed: bool,
        file: &str,
    ) -> Result<Option<PathBuf>> {
        let path = self.v2_path();
        if path.join(file).exists() {
            return Ok(Some(path));
        }
        let controllers = self.mounts.v2.join("cgroup.controllers");
        let available = at(fs::read_to_string(&controllers), "read", &controllers)?;
        let in_v2 = available.split_ascii_whitespace().any(|name| name == controller);
        if !needed || !in_v2 {
            if needed && self.mounts.v1(controller).is_none() {
                return Err(Error::NoController { what, cgroup: self.path.clone(), controller });
            }
            return Ok(None);
        }
        let mut above = self.mounts.v2.clone();
        let parents = self.path.parent().into_iter().flat_map(Path::components);
        let mut levels = vec![above.clone()];
        for component in parents {
            above.push(component);
            levels.push(above.clone());
        }
        for level in levels {
            let control = level.join("cgroup.subtree_control");
            let enabled = at(fs::read_to_string(&control), "read", &control)?;
            if !enabled.split_ascii_whitespace().any(|name| name == controller) {
                write(&control, &format!("+{controller}"))?;
            }
        }
        Ok(Some(path))
    }

    /// Tells when the first process comes into the cgroup or one below, and when the last one goes.
    pub fn events(&self) -> Result<Events> {
        let path = self.v2_path().join("cgroup.events");
        let file = fs::File::open(&path);
        let file = file.map_err(|source| Error::Io { operation: "open".to_owned(), path, source })?;
        Ok(Events { file })
    }

    /// Process ids in it and below it, in every mount.
    pub fn pids(&self) -> Result<BTreeSet<i32>> {
        let mut pids = BTreeSet::new();
        for path in self.paths() {
            collect_pids(&path, &mut pids)?;
        }
        Ok(pids)
    }

    /// Whether the process is in it or below it, in cgroup2: thus under the guard that is attached here.
    pub fn holds(&self, pid: i32) -> Result<bool> {
        let mut pids = BTreeSet::new();
        collect_pids(&self.v2_path(), &mut pids)?;
        Ok(pids.contains(&pid))
    }

    /// What it uses now. Figures that no controller keeps are `None`.
    pub fn stats(&self) -> Stats {
        let v2 = self.v2_path();
        let v1 = |controller: &str, file: &str| {
            self.mounts.v1(controller).and_then(|mount| read_number(&mount.join(&self.path).join(file)))
        };
        let cpu_v2 = || {
            let text = fs::read_to_string(v2.join("cpu.stat")).ok()?;
            text.lines().find_map(|line| line.strip_prefix("usage_usec ")).and_then(|value| value.parse().ok())
        };
        Stats {
            memory_bytes: read_number(&v2.join("memory.current")).or_else(|| v1("memory", "memory.usage_in_bytes")),
            cpu_usage_us: cpu_v2().or_else(|| v1("cpuacct", "cpuacct.usage").map(|ns| ns / 1000)),
            pids: read_number(&v2.join("pids.current")).or_else(|| v1("pids", "pids.current")),
        }
    }

    /// Whether the kernel killed something in it for want of memory since it was made.
    pub fn oom_kills(&self) -> u64 {
        let v1 = self.mounts.v1("memory").map(|mount| mount.join(&self.path).join("memory.oom_control"));
        [Some(self.v2_path().join("memory.events")), v1]
            .into_iter()
            .flatten()
            .filter_map(|path| fs::read_to_string(path).ok())
            .filter_map(|text| text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse::<u64>().ok()))
            .sum()
    }

    /// Kills everything in it and below it, and waits until it is gone.
    pub fn kill(&self) -> Result<()> {
        let deadline = Instant::now() + KILL_WAIT;
        let whole = self.v2_path().join("cgroup.kill");
        loop {
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let waited_s = KILL_WAIT.as_secs();
                return Err(Error::Unkillable { cgroup: self.path.clone(), count: pids.len(), waited_s });
            }
            // Linux 5.14 kills the tree at once, forks included; before, and for what an engine has put into version 1
            // only, one goes round until none is left.
            let _ = fs::write(&whole, "1");
            for pid in &pids {
                // A process that is gone already is what was wanted.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills what is left in it, then removes it with everything below it, in every mount. What isn't there is fine.
    pub fn remove(&self) -> Result<()> {
        self.kill()?;
        if self.slice.is_some() && self.exists() {
            self.ask_systemd("stop", Slice::stop)?;
        }
        self.paths().try_for_each(|path| remove_tree(&path))
    }

    /// Removes it if nothing is in it.
    pub fn remove_if_empty(&self) -> Result<()> {
        let is_empty = child_directories(&self.v2_path())?.is_empty() && self.pids()?.is_empty();
        if is_empty { self.remove() } else { Ok(()) }
    }

    /// Moves the calling process to the top of every mount. Where it can't be moved it stays.
    pub fn leave(&self) {
        for mount in self.mounts.paths() {
            let _ = fs::write(mount.join("cgroup.procs"), "0");
        }
    }

    /// Removes it, and the directories above it, as far as nothing is in them.
    pub fn remove_upwards_if_empty(&self) {
        for path in self.paths() {
            let _ = fs::remove_dir(path);
        }
        self.remove_empty_parents();
    }

    /// Removes the stack's and the realm's directories if nothing else is left in them. Slices above are systemd's.
    pub fn remove_empty_parents(&self) {
        if self.slice.is_some() {
            return;
        }
        for path in self.paths() {
            let mut parent = path.parent();
            for _ in self.path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
                let Some(directory) = parent else { break };
                // Not empty means that something else lives there, which is the reason to keep it.
                if fs::remove_dir(directory).is_err() {
                    break;
                }
                parent = directory.parent();
            }
        }
    }
}

/// The gate of a slice while it is open.
#[derive(Debug)]
pub struct Gate(PathBuf);

impl Drop for Gate {
    fn drop(&mut self) {
        // It may be gone with the slice, or never have been there.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Shares of version 1 as a weight of version 2, so that the usual and the outermost values of both meet: 2 is 1, 1024 is
/// 100, 262144 is 10000.
fn weight(shares: u64) -> u64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

fn write(path: &Path, value: &str) -> Result<()> {
    at(fs::write(path, value), format!("write {value} to"), path)
}

fn write_if_there(path: &Path, value: &str) -> Result<()> {
    if path.exists() { write(path, value) } else { Ok(()) }
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Only where the directory above it is still there.
fn make_one(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => at(made, "make cgroup", path),
    }
}

fn child_directories(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return at(Err(error), "list", path),
    };
    Ok(entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect())
}

fn collect_pids(path: &Path, pids: &mut BTreeSet<i32>) -> Result<()> {
    match fs::read_to_string(path.join("cgroup.procs")) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        // ENODEV: removed while it was read. EOPNOTSUPP: a threaded child, whose processes the parent lists.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)) => {}
        Err(error) => return at(Err(error), "read", &path.join("cgroup.procs")),
    }
    child_directories(path)?.iter().try_for_each(|child| collect_pids(child, pids))
}

fn remove_tree(path: &Path) -> Result<()> {
    for child in child_directories(path)? {
        remove_tree(&child)?;
    }
    let deadline = Instant::now() + KILL_WAIT;
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // Zombies that nobody has reaped yet keep a cgroup busy without being listed.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return at(Err(error), "remove cgroup", path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        assert_eq!([0, 2, 1024, 2048, 262_144, u64::MAX].map(weight), [1, 1, 100, 174, 10_000, 10_000]);
    }

    #[test]
    fn hybrid_and_pure_mounts_are_told_apart() {
        let hybrid = "32 31 0:29 / /sys/fs/cgroup/cpu\\040x rw - cgroup cgroup rw,cpu,cpuacct\n\
                      33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let mounts = Mounts::parse(hybrid).unwrap();
        assert_eq!(mounts.v2, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(mounts.v1("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu x")));
        assert_eq!(mounts.v1("memory"), None);
        assert_eq!((mounts.v1("cpuset"), mounts.v1.len()), (Some(Path::new("/sys/fs/cgroup/cpuset")), 1));
        let pure = Mounts::parse("1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n").unwrap();
        assert_eq!((pure.v2.as_path(), pure.v1.len()), (Path::new("/sys/fs/cgroup"), 0));
        assert!(matches!(Mounts::parse("1 2 0:3 / /proc rw - proc proc rw\n"), Err(Error::NoCgroup2)));
    }
}
