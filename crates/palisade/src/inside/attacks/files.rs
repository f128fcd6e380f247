//! Reading what belongs to the host, and opening what would change it. Nothing is written, and nothing that is read
//! is told.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::attack;
use crate::inside::attack::Attack;
use crate::inside::sys::{At, Attempt, RawAddress, Socket, Stop, call, not_applicable, refused};
use crate::inside::targets::{HostFile, Targets};

const SECRETS: &str = "reading the host's secrets, Palisade's state or another service's data";
const CONTROL: &str = "changing the host through files";
const DEVICE: &str = "reading and writing the host's disks and memory";
const SOCKET: &str = "steering the host through a service of it that trusts root";

/// Tries all and tells those that worked.
fn any<'a>(paths: impl IntoIterator<Item = &'a Path>, works: impl Fn(&Path) -> std::io::Result<bool>) -> Attempt {
    let (mut got, mut answers) = (Vec::new(), Vec::new());
    for path in paths {
        match works(path) {
            Ok(true) => got.push(path.display().to_string()),
            Ok(false) => answers.push(format!("{}: empty, or its own", path.display())),
            Err(error) => answers.push(format!("{}: {error}", path.display())),
        }
    }
    match (got.is_empty(), answers.is_empty()) {
        (false, _) => Ok(format!("opened {}", got.join(", "))),
        (true, false) => refused(answers.join("; ")),
        (true, true) => not_applicable("there is nothing of this kind"),
    }
}

/// A folder counts when something is in it: a service may have an empty one in its place.
fn readable(path: &Path) -> std::io::Result<bool> {
    if path.is_dir() {
        return Ok(fs::read_dir(path)?.next().is_some());
    }
    fs::File::open(path).map(|file| file.metadata().is_ok_and(|m| m.len() > 0 || !m.is_file()) && !is_null(path))
}

/// What runtimes put over files that must not be seen.
fn is_null(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.rdev() == libc::makedev(1, 3))
}

fn writable(path: &Path) -> std::io::Result<bool> {
    fs::File::options().write(true).open(path).map(|_| true)
}

/// A file of the same name that the service has of its own is none of the host's.
fn of_host<'a>(files: &'a [HostFile], works: impl Fn(&Path) -> std::io::Result<bool> + 'a) -> Attempt {
    let is_here = |path: &Path| files.iter().find(|file| file.path == path).map_or(Ok(false), HostFile::is_here);
    any(files.iter().map(|file| file.path.as_path()), |path| Ok(works(path)? && is_here(path)?))
}

fn reads(t: &Targets) -> Attempt {
    of_host(&t.files, readable)
}

fn talks(t: &Targets) -> Attempt {
    any(t.unix_sockets.iter().map(PathBuf::as_path), |path| {
        let socket = Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
        socket.connect(&RawAddress::unix(&path.to_string_lossy()), Duration::from_secs(1)).map(|()| true)
    })
}

fn kernel_memory(_: &Targets) -> Attempt {
    any(["/proc/kcore", "/dev/mem", "/dev/kmsg", "/dev/port"].map(Path::new), |path| {
        fs::File::open(path).map(|_| !is_null(path))
    })
}

fn settings(_: &Targets) -> Attempt {
    let paths = [
        "/proc/sys/net/ipv4/conf/all/route_localnet",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
        "/sys/power/state",
    ];
    any(paths.map(Path::new), writable)
}

/// Opened for writing, closed without.
fn host_files(t: &Targets) -> Attempt {
    of_host(&t.host_files, writable)
}

fn debug_files(_: &Targets) -> Attempt {
    any(
        ["/sys/kernel/debug", "/sys/kernel/tracing", "/sys/fs/bpf", "/sys/fs/cgroup/cgroup.procs", "/sys/firmware"]
            .map(Path::new),
        readable,
    )
}

fn disks(_: &Targets) -> Attempt {
    let entries = fs::read_dir("/dev").at("opendir(/dev)")?.flatten();
    let disks: Vec<_> =
        entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_block_device())).map(|e| e.path()).collect();
    if disks.is_empty() {
        return refused("no block device is visible in /dev");
    }
    any(disks.iter().map(PathBuf::as_path), |path| fs::File::open(path).map(|_| true))
}

/// A device file of its own for the disk that the root folder is on, or for the first loop device; opened, not read.
fn makes_device(_: &Targets) -> Attempt {
    let root = fs::metadata("/").at("stat(/)")?.dev();
    let mut answers = Vec::new();
    for number in [root, libc::makedev(7, 0)] {
        let (major, minor) = (libc::major(number), libc::minor(number));
        for folder in ["/tmp", "/run", "/var/tmp", "/dev/shm", "/dev", "/"] {
            let path = format!("{folder}/palisade-attack-{}", std::process::id());
            let Ok(name) = CString::new(path.clone()) else { continue };
            let made = call!(libc::SYS_mknodat, libc::AT_FDCWD, name.as_ptr(), libc::S_IFBLK | 0o600, number)
                .at(format!("mknod({path}, block {major}:{minor})"));
            let opened = made.and_then(|_| fs::File::open(&path).at(format!("open({path}, block {major}:{minor})")));
            let _ = fs::remove_file(&path);
            match opened {
                Ok(_) => return Ok(format!("made and opened a device file for disk {major}:{minor} in {folder}")),
                Err(Stop::Refused(why) | Stop::NotApplicable(why)) => answers.push(why),
            }
        }
    }
    refused(answers.join("; "))
}

pub(super) const ATTACKS: &[Attack] = &[
    attack!(Confinement, "files.secrets", "read what only the host may", SECRETS, reads),
    attack!(Confinement, "files.sockets", "connect to control sockets of the host", SOCKET, talks),
    attack!(Confinement, "files.kernel_memory", "open the kernel's memory and log", DEVICE, kernel_memory),
    attack!(Confinement, "files.settings", "open kernel settings for writing", CONTROL, settings),
    attack!(Confinement, "files.host", "open the host's own files for writing", CONTROL, host_files),
    attack!(Confinement, "files.debug", "read debugging and control file systems", SECRETS, debug_files),
    attack!(Confinement, "files.disks", "open a disk", DEVICE, disks),
    attack!(Confinement, "files.mknod", "make a device file and open it", DEVICE, makes_device),
];
