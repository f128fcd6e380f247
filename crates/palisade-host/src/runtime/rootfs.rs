//! The file system that an instance sees: the host's programs read-only, everything else its own.
//!
//! [`Plan::gather`] runs while the host's tree is still in view and takes hold of all that comes from it;
//! [`Plan::build`] runs after it. Between the two the root is already the instance's, so a path in a mount's target means
//! what it means to the service, and no symbolic link can lead out. Users and capabilities are not dealt with here.

use std::ffi::CString;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use palisade_core::instance::{InstanceMount, InstanceMountSource, InstanceSpec};

use super::files::{self, Ready, Shown};
use super::init::Failure;
use super::resolver;
use super::sys::{self, NODEV, NOEXEC, NOSUID, RDONLY};
use crate::cgroup::Mounts;
use crate::hosts_file;

/// Host directories shown read-only, if they exist; symbolic links among them are copied as they are.
const TREES: [&str; 9] = ["usr", "opt", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix"];
/// Secrets in the host's `/etc` that a service has no business with, even as root.
const SECRETS: [&str; 18] = [
    "shadow",
    "shadow-",
    "gshadow",
    "gshadow-",
    "sudoers",
    "sudoers.d",
    "krb5.keytab",
    "security/opasswd",
    "ssl/private",
    "pki/tls/private",
    "letsencrypt",
    "wireguard",
    "openvpn",
    "ipsec.secrets",
    "NetworkManager/system-connections",
    "docker",
    "palisade",
    "ppp",
];
/// Files below /proc that tell about or steer the whole machine.
const PROC_MASKED: [&str; 12] = [
    "acpi",
    "asound",
    "interrupts",
    "kcore",
    "keys",
    "kallsyms",
    "latency_stats",
    "timer_list",
    "timer_stats",
    "sched_debug",
    "scsi",
    "config.gz",
];
const PROC_READ_ONLY: [&str; 6] = ["bus", "fs", "irq", "sys", "sysrq-trigger", "mtrr"];
const SYS_MASKED: [&str; 4] = ["firmware", "devices/virtual/powercap", "kernel/security", "kernel/debug"];

/// Everything taken from the host before its tree goes out of view.
pub(super) struct Plan<'a> {
    spec: &'a InstanceSpec,
    hostname: String,
    cgroups: Mounts,
    trees: Vec<(&'static str, Tree)>,
    etc: OwnedFd,
    resolv_conf: String,
    ssh_keys: Vec<String>,
    mounts: Vec<Option<OwnedFd>>,
    files: Vec<Ready>,
}

enum Tree {
    Link(PathBuf),
    Directory(OwnedFd),
}

pub(super) fn failed<T>(result: io::Result<T>, operation: impl FnOnce() -> String) -> Result<T, Failure> {
    result.map_err(|source| Failure::new(operation(), source))
}

impl<'a> Plan<'a> {
    /// Opens what the instance sees of the host.
    pub(super) fn gather(spec: &'a InstanceSpec, hostname: &str, cgroups: Mounts) -> Result<Self, Failure> {
        let mut trees = Vec::new();
        for name in TREES {
            let path = Path::new("/").join(name);
            let Ok(metadata) = path.symlink_metadata() else { continue };
            if metadata.is_symlink() {
                trees.push((
                    name,
                    Tree::Link(failed(fs::read_link(&path), || format!("read link {}", path.display()))?),
                ));
            } else if metadata.is_dir() {
                trees.push((name, Tree::Directory(clone(&path, RDONLY | NOSUID | NODEV)?)));
            }
        }
        // Follows a link to what a resolver daemon keeps below /run; a host without the file has no resolver.
        let resolv_conf = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let resolv_conf = resolver::resolv_conf(&resolv_conf, spec.settings.dns.as_ref());
        let ssh_keys = fs::read_dir("/etc/ssh")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with("ssh_host_") && name.ends_with("_key"))
            .map(|name| format!("ssh/{name}"))
            .collect();
        let mut mounts = Vec::new();
        for mount in &spec.mounts {
            let attributes = NOSUID | NODEV | if mount.read_only { RDONLY } else { 0 };
            mounts.push(match &mount.source {
                InstanceMountSource::Path(path) | InstanceMountSource::Volume(path) => Some(clone(path, attributes)?),
                InstanceMountSource::Tmpfs { .. } => None,
                InstanceMountSource::EngineVolume { name, .. } => {
                    let why =
                        io::Error::new(io::ErrorKind::Unsupported, "only the engine's own containers can mount it");
                    return Err(Failure::new(format!("mount the engine's volume {name}"), why));
                }
            });
        }
        let etc = clone(Path::new("/etc"), RDONLY | NOSUID | NODEV)?;
        let files = files::gather(&spec.files)?;
        Ok(Self { spec, hostname: hostname.to_owned(), cgroups, trees, etc, resolv_conf, ssh_keys, mounts, files })
    }

    /// Makes an empty file system the root and lets go of the host's. `staging` is an existing directory.
    pub(super) fn enter(&self, staging: &Path) -> Result<(), Failure> {
        // An in-memory root needs few bytes: what grows has mounts of its own.
        tmpfs(staging, "mode=755,size=16m", MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
        let step = |result: nix::Result<()>, what: &str| failed(result.map_err(io::Error::from), || what.to_owned());
        step(nix::unistd::chdir(staging), "change to the new root")?;
        step(nix::unistd::pivot_root(".", "."), "make the new root the root")?;
        step(umount2(".", MntFlags::MNT_DETACH), "detach the host's root")?;
        step(nix::unistd::chdir("/"), "change to /")
    }

    /// Builds the tree.
    pub(super) fn build(self) -> Result<(), Failure> {
        let read_only = self.spec.read_only;
        for name in ["proc", "sys", "dev", "etc", "run", "tmp", "var", "root"] {
            directory(Path::new("/").join(name), 0o755)?;
        }
        failed(fs::set_permissions("/root", Permissions::from_mode(0o700)), || "set the mode of /root".into())?;
        self.kernel_file_systems()?;
        for (name, tree) in &self.trees {
            let target = Path::new("/").join(name);
            match tree {
                Tree::Link(to) => failed(symlink(to, &target), || format!("link {}", target.display()))?,
                Tree::Directory(tree) => {
                    directory(&target, 0o755)?;
                    put(tree, &target)?;
                }
            }
        }
        self.etc()?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        tmpfs(Path::new("/run"), "mode=755", flags)?;
        tmpfs(Path::new("/tmp"), "mode=1777", flags)?;
        tmpfs(Path::new("/var"), "mode=755", flags)?;
        for name in ["lib", "log", "cache", "spool"] {
            directory(Path::new("/var").join(name), 0o755)?;
        }
        directory("/var/tmp", 0o1777)?;
        directory("/run/lock", 0o1777)?;
        failed(symlink("/run", "/var/run"), || "link /var/run".into())?;
        failed(symlink("/run/lock", "/var/lock"), || "link /var/lock".into())?;
        self.resolv_conf_behind_a_link()?;
        let shown = files::write(&self.files)?;
        let mounts = self.spec.mounts.iter().zip(&self.mounts);
        let mut places: Vec<_> = mounts.map(|(mount, tree)| Placing::Mount(mount, tree.as_ref())).collect();
        places.extend(shown.iter().map(Placing::File));
        // What is mounted below another mount comes after it, and a file over a mount of the same place.
        places.sort_by_key(|place| place.target().components().count());
        for place in places {
            place.put()?;
        }
        for path in ["/run", "/tmp", "/var"] {
            if read_only {
                set_read_only(Path::new(path), 0)?;
            }
        }
        set_read_only(Path::new("/dev"), NOSUID | NOEXEC)?;
        set_read_only(Path::new("/"), NOSUID | NODEV)
    }

    fn kernel_file_systems(&self) -> Result<(), Failure> {
        let all = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        new("proc", Path::new("/proc"), all, "")?;
        for name in PROC_READ_ONLY {
            let path = Path::new("/proc").join(name);
            if path.exists() {
                put(&clone(&path, RDONLY | NOSUID | NODEV | NOEXEC)?, &path)?;
            }
        }
        // A fresh sysfs has none of the host's mounts below it: no debugfs, tracefs, bpffs, cgroups.
        new("sysfs", Path::new("/sys"), all, "")?;
        let cgroup = Path::new("/sys/fs/cgroup");
        if self.cgroups.v1.is_empty() {
            new("cgroup2", cgroup, all, "")?;
            set_read_only(cgroup, 0)?;
        } else {
            tmpfs(cgroup, "mode=755,size=64k", all)?;
            directory(cgroup.join("unified"), 0o755)?;
            new("cgroup2", &cgroup.join("unified"), all, "")?;
            set_read_only(&cgroup.join("unified"), 0)?;
            for mount in &self.cgroups.v1 {
                let target = cgroup.join(mount.controllers.join(","));
                directory(&target, 0o755)?;
                new("cgroup", &target, all, &mount.controllers.join(","))?;
                set_read_only(&target, 0)?;
            }
            set_read_only(cgroup, 0)?;
        }
        self.dev()?;
        PROC_MASKED.iter().try_for_each(|name| mask(&Path::new("/proc").join(name)))?;
        SYS_MASKED.iter().try_for_each(|name| mask(&Path::new("/sys").join(name)))?;
        set_read_only(Path::new("/sys"), 0)
    }

    fn dev(&self) -> Result<(), Failure> {
        let safe = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        tmpfs(Path::new("/dev"), "mode=755,size=64k", safe)?;
        for (name, major, minor) in
            [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)]
        {
            let path = Path::new("/dev").join(name);
            let made = mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor));
            failed(made.map_err(io::Error::from), || format!("make the device {}", path.display()))?;
            failed(fs::set_permissions(&path, Permissions::from_mode(0o666)), || {
                format!("set the mode of {}", path.display())
            })?;
        }
        for (name, to) in [
            ("ptmx", "pts/ptmx"),
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
        ] {
            failed(symlink(to, Path::new("/dev").join(name)), || format!("link /dev/{name}"))?;
        }
        directory("/dev/pts", 0o755)?;
        new("devpts", Path::new("/dev/pts"), safe, "newinstance,ptmxmode=0666,mode=620,gid=5")?;
        directory("/dev/shm", 0o1777)?;
        let size = self.spec.settings.shm_bytes.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
        tmpfs(Path::new("/dev/shm"), &format!("mode=1777{size}"), safe | MsFlags::MS_NODEV)
    }

    /// The host's `/etc`, with our own files laid over it.
    fn etc(&self) -> Result<(), Failure> {
        // Both layers must have a place while they are put together; afterwards only the overlay holds them.
        let (layer, lower, etc) = (Path::new("/run/own"), Path::new("/run/host"), Path::new("/etc"));
        directory(layer, 0o755)?;
        directory(lower, 0o755)?;
        put(&self.etc, lower)?;
        let own = [
            ("hosts", hosts_file::text(self.spec, Some(&self.hostname))),
            ("hostname", format!("{}\n", self.hostname)),
            ("resolv.conf", self.resolv_conf.clone()),
        ];
        for (name, text) in &own {
            failed(fs::write(layer.join(name), text), || format!("write /etc/{name}"))?;
        }
        for name in ["shadow", "gshadow"] {
            let path = layer.join(name);
            let made = fs::write(&path, "").and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o000)));
            failed(made, || format!("write /etc/{name}"))?;
        }
        // Mount points that the file asks for below /etc are made in our layer, because the host's is read-only.
        let mounts = self.spec.mounts.iter().zip(&self.mounts);
        let mounts = mounts.map(|(mount, tree)| (mount.target.as_path(), tree.as_ref().is_some_and(is_file)));
        let points: Vec<_> = mounts.chain(files::targets(&self.files).map(|target| (target, true))).collect();
        for (target, is_file) in &points {
            let Ok(inner) = target.strip_prefix("/etc") else { continue };
            if inner.components().any(|part| part == Component::ParentDir) {
                continue;
            }
            if !inner.as_os_str().is_empty() && !lower.join(inner).exists() {
                failed(mount_point(&layer.join(inner), *is_file), || {
                    format!("make the mount point {}", target.display())
                })?;
            }
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
        let layers = format!("lowerdir={}:{}", layer.display(), lower.display());
        match mount(Some("overlay"), etc, Some("overlay"), flags, Some(layers.as_str())) {
            Ok(()) => {}
            // A kernel without overlayfs: the host's directory, with our files over those that it has.
            Err(nix::Error::ENODEV) => {
                put(&clone(lower, RDONLY | NOSUID | NODEV)?, etc)?;
                for name in ["hosts", "hostname", "resolv.conf"] {
                    let target = etc.join(name);
                    if target.symlink_metadata().is_ok_and(|metadata| metadata.is_file()) {
                        put(&clone(&layer.join(name), RDONLY | NOSUID | NODEV)?, &target)?;
                    }
                }
            }
            Err(error) => return failed(Err(error.into()), || "mount overlayfs on /etc".into()),
        }
        let detached = umount2(lower, MntFlags::MNT_DETACH).map_err(io::Error::from);
        failed(detached, || "detach the host's /etc".into())?;
        let secrets = SECRETS.iter().map(|name| (*name).to_owned()).chain(self.ssh_keys.iter().cloned());
        for name in secrets {
            let path = etc.join(name);
            let inside: Vec<_> = points.iter().filter(|(at, _)| at.starts_with(&path) && *at != path).collect();
            if inside.is_empty() || !path.is_dir() {
                mask(&path)?;
                continue;
            }
            // The file puts something of its own there: that is all that is seen.
            tmpfs(&path, "mode=755,size=64k", MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC)?;
            for (target, is_file) in inside {
                failed(mount_point(target, *is_file), || format!("make the mount point {}", target.display()))?;
            }
            set_read_only(&path, 0)?;
        }
        Ok(())
    }

    /// Without overlayfs `/etc/resolv.conf` may still be the host's link into `/run`: its target is ours to make.
    fn resolv_conf_behind_a_link(&self) -> Result<(), Failure> {
        let path = Path::new("/etc/resolv.conf");
        let Ok(to) = fs::read_link(path) else { return Ok(()) };
        let to = Path::new("/etc").join(to);
        let normal: PathBuf = to.components().fold(PathBuf::new(), |mut path, part| {
            match part {
                Component::ParentDir => drop(path.pop()),
                part => path.push(part),
            }
            path
        });
        if let Some(parent) = normal.parent() {
            let made = fs::create_dir_all(parent).and_then(|()| fs::write(&normal, &self.resolv_conf));
            failed(made, || format!("write {}", normal.display()))?;
        }
        Ok(())
    }
}

/// Something that gets a place in the tree.
enum Placing<'a> {
    Mount(&'a InstanceMount, Option<&'a OwnedFd>),
    File(&'a Shown),
}

impl Placing<'_> {
    fn target(&self) -> &Path {
        match self {
            Placing::Mount(mount, _) => &mount.target,
            Placing::File(shown) => &shown.target,
        }
    }

    fn put(&self) -> Result<(), Failure> {
        let target = self.target();
        let wrong = |why: &str| {
            let operation = format!("mount on {}", target.display());
            Err(Failure::new(operation, io::Error::new(io::ErrorKind::InvalidInput, why.to_owned())))
        };
        if !target.is_absolute() || target.components().any(|part| part == Component::ParentDir) {
            return wrong("the target must be an absolute path without `..`");
        }
        let protected =
            ["/proc", "/sys", "/dev"].iter().any(|path| target.starts_with(path) && target != Path::new("/dev/shm"));
        if target == Path::new("/") || protected {
            return wrong("this place belongs to the runtime");
        }
        let tree = match self {
            Placing::Mount(InstanceMount { source: InstanceMountSource::Tmpfs { .. }, .. }, _) => None,
            Placing::Mount(_, tree) => *tree,
            Placing::File(shown) => Some(&shown.tree),
        };
        if target.symlink_metadata().is_err() {
            failed(mount_point(target, tree.is_some_and(is_file)), || {
                format!("make the mount point {} (it is in a read-only directory of the host)", target.display())
            })?;
        }
        match (self, tree) {
            (_, Some(tree)) => put(tree, target),
            (Placing::Mount(mount, _), None) => {
                let InstanceMountSource::Tmpfs { size_bytes, mode } = &mount.source else { return Ok(()) };
                let size = size_bytes.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
                let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
                flags.set(MsFlags::MS_RDONLY, mount.read_only);
                let mode = mode.unwrap_or(0o1777);
                tmpfs(target, &format!("mode={mode:o}{size}"), flags)
            }
            (Placing::File(_), None) => Ok(()),
        }
    }
}

/// A detached tree is a single file. Its own root tells; its path may mean something else by now.
fn is_file(tree: &OwnedFd) -> bool {
    nix::sys::stat::fstat(tree.as_fd()).is_ok_and(|stat| stat.st_mode & libc::S_IFMT != libc::S_IFDIR)
}

fn mount_point(path: &Path, is_file: bool) -> io::Result<()> {
    match path.parent() {
        Some(parent) if is_file => fs::create_dir_all(parent).and_then(|()| fs::write(path, "")),
        _ => fs::create_dir_all(path),
    }
}

pub(super) fn clone(path: &Path, attributes: u64) -> Result<OwnedFd, Failure> {
    let tree = failed(sys::clone_tree(path), || format!("bind {}", path.display()))?;
    failed(sys::set_attributes(tree.as_fd(), attributes), || format!("set mount flags of {}", path.display()))?;
    Ok(tree)
}

fn put(tree: &OwnedFd, target: &Path) -> Result<(), Failure> {
    failed(sys::attach(tree.as_fd(), target), || format!("mount on {}", target.display()))
}

fn new(kind: &str, target: &Path, flags: MsFlags, options: &str) -> Result<(), Failure> {
    let mounted = mount(Some(kind), target, Some(kind), flags, (!options.is_empty()).then_some(options));
    failed(mounted.map_err(io::Error::from), || format!("mount {kind} on {}", target.display()))
}

pub(super) fn tmpfs(target: &Path, options: &str, flags: MsFlags) -> Result<(), Failure> {
    new("tmpfs", target, flags, options)
}

pub(super) fn directory(path: impl AsRef<Path>, mode: u32) -> Result<(), Failure> {
    let path = path.as_ref();
    let made = fs::create_dir_all(path).and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)));
    failed(made, || format!("make the directory {}", path.display()))
}

fn set_read_only(path: &Path, more: u64) -> Result<(), Failure> {
    failed(sys::set_attributes_at(path, RDONLY | more), || format!("make {} read-only", path.display()))
}

/// Hides a path, if it is there: a file behind an empty one, a directory behind an empty directory.
fn mask(path: &Path) -> Result<(), Failure> {
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    if metadata.is_dir() {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
        return tmpfs(path, "mode=000,size=4k", flags);
    }
    if metadata.is_symlink() {
        return Ok(());
    }
    let empty = Path::new("/.empty");
    if !empty.exists() {
        let made = fs::write(empty, "").and_then(|()| fs::set_permissions(empty, Permissions::from_mode(0o000)));
        failed(made, || "make the file that hides others".into())?;
    }
    put(&clone(empty, RDONLY | NOSUID | NODEV | NOEXEC)?, path)
}

/// A path as the kernel takes it, for exec.
pub(super) fn c_string(bytes: impl Into<Vec<u8>>) -> Result<CString, Failure> {
    CString::new(bytes)
        .map_err(|error| Failure::new("use an argument or variable with a NUL byte".into(), error.into()))
}
