//! The files, cgroups and pins of one run, and how they are cleared away.
//!
//! What the machine has besides them is not touched.

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PREFIX: &str = "palisade-bench-";

/// Folders of one run. They are removed by [`clear`], from outside.
pub(crate) struct Scratch {
    /// Names everything of this run.
    pub(crate) realm: String,
    /// Files.
    pub(crate) folder: PathBuf,
    cgroup: PathBuf,
}

impl Scratch {
    /// Makes the folders.
    pub(crate) fn new(realm: &str) -> Result<Self> {
        let folder = files(realm);
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let cgroup = cgroup2_mount().context("no cgroup2 is mounted")?.join(realm);
        fs::create_dir_all(&cgroup).with_context(|| format!("creating {}", cgroup.display()))?;
        Ok(Self { realm: realm.into(), folder, cgroup })
    }
    /// A cgroup of this run.
    pub(crate) fn cgroup(&self, name: &str) -> Result<PathBuf> {
        let path = self.cgroup.join(name);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(path)
    }
    /// A folder for pins: a bpffs that nobody else sees.
    pub(crate) fn pins(&self, name: &str) -> Result<PathBuf> {
        let root = self.folder.join("bpf");
        palisade_guard::mount_bpffs(&root).context("mounting a bpffs")?;
        Ok(root.join(name))
    }
}

/// A name that no other run has.
pub(crate) fn new_realm() -> String {
    format!("{PREFIX}{}", std::process::id())
}

fn files(realm: &str) -> PathBuf {
    // Not /tmp, which may be memory: databases go there.
    Path::new("/var/tmp").join(realm)
}

fn mounts_of(kind: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let wanted = format!(" - {kind} ");
    mounts.lines().filter(|l| l.contains(&wanted)).filter_map(|l| l.split(' ').nth(4)).map(PathBuf::from).collect()
}

fn cgroup2_mount() -> Option<PathBuf> {
    mounts_of("cgroup2").into_iter().next()
}

/// Passes Ctrl-C and the like on to the process that does the work, from a thread that waits for them.
pub(crate) fn end_with_us(child: u32) {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    if signals.thread_block().is_ok() {
        std::thread::spawn(move || {
            if signals.wait().is_ok() {
                // `unshare --kill-child` takes the rest along.
                let _ = kill(Pid::from_raw(child as i32), Signal::SIGKILL);
            }
        });
    }
}

/// Removes what runs left that were killed.
pub(crate) fn clear_stale() {
    let folders = mounts_of("cgroup2").into_iter().chain([PathBuf::from("/var/tmp")]);
    for entry in folders.flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(pid) = name.strip_prefix(PREFIX).and_then(|pid| pid.parse::<u32>().ok())
            && !Path::new(&format!("/proc/{pid}")).exists()
        {
            clear(&name);
        }
    }
}

/// Removes everything of a run whose processes have ended or are about to.
pub(crate) fn clear(realm: &str) {
    let cgroups: Vec<_> = ["cgroup2", "cgroup"].iter().flat_map(|kind| mounts_of(kind)).collect();
    let deadline = Instant::now() + Duration::from_secs(10);
    for cgroup in cgroups.into_iter().map(|mount| mount.join(realm)) {
        while cgroup.exists() && remove_cgroup(&cgroup).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    // The lock of the realm's firewall, which lies where other programs would look for it.
    let _ = fs::remove_file(format!("/run/{realm}-firewall.lock"));
    let folder = files(realm);
    if folder.exists()
        && let Err(error) = fs::remove_dir_all(&folder)
    {
        eprintln!("palisade-bench: {} is left: {error}", folder.display());
    }
}

fn remove_cgroup(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_cgroup(&entry.path())?;
        }
    }
    for pid in fs::read_to_string(path.join("cgroup.procs"))?.lines().filter_map(|pid| pid.parse().ok()) {
        // Only what this run started gets into its cgroups.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    fs::remove_dir(path)
}
