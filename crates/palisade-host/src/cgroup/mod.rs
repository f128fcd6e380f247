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

use crate::layout::Layout;
use crate::nft::ToolError;
use crate::slice::Slice;

mod limits;
mod mounts;

pub use mounts::{Mounts, V1Mount};

/// How long leftover processes get to disappear after SIGKILL.
const KILL_WAIT: Duration = Duration::from_secs(10);
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
