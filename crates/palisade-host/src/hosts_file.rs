//! The hosts file of an instance: its text, and how it is replaced while the instance runs, so that it learns the names of
//! new peers without a restart.
//!
//! Which names belong into it is decided in `palisade_core::compile`.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use palisade_core::instance::InstanceSpec;
use palisade_core::names::InstanceId;

use crate::layout::Layout;
use crate::runtime::sys;

/// IPv4 localhost, IPv6 localhost, the instance itself: they stay as they are.
const OWN_LINES: usize = 3;

/// An instance could not be told new names.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {path} for the hosts file of {instance}")]
pub struct HostsFileError {
    /// Which.
    pub instance: InstanceId,
    /// "read", "write" …
    pub operation: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// What an instance starts with: three lines of its own, then the names of its peers. Without a host name of its own it
/// shares the host's.
pub(crate) fn text(spec: &InstanceSpec, hostname: Option<&str>) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let hostname = hostname
        .map_or_else(|| nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned(), str::to_owned);
    let full = spec.settings.domainname.as_ref().filter(|_| !hostname.contains('.'));
    let full = full.map(|domain| format!("{hostname}.{domain} ")).unwrap_or_default();
    text += &format!("{}\t{full}{hostname}\n", spec.address);
    for (name, address) in &spec.hosts {
        text += &format!("{address}\t{name}\n");
    }
    text
}

/// Gives the instance whose init process is `pid` these names besides its own.
pub fn replace(layout: &Layout, id: &InstanceId, pid: i32, names: &[(String, IpAddr)]) -> Result<(), HostsFileError> {
    let failed = |operation: &'static str, path: &Path| {
        let (instance, path) = (id.clone(), path.to_owned());
        move |source: io::Error| HostsFileError { instance, operation, path, source }
    };
    let seen = PathBuf::from(format!("/proc/{pid}/root/etc/hosts"));
    let mut text = own_lines(&fs::read_to_string(&seen).map_err(failed("read", &seen))?);
    for (name, address) in names {
        text += &format!("{address}\t{name}\n");
    }
    let file = layout.instance(id).join("hosts");
    fs::write(&file, text).map_err(failed("write", &file))?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).map_err(failed("write", &file))?;
    let identity = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    let ours = identity(&file).map_err(failed("read", &file))?;
    if identity(&seen).map_err(failed("read", &seen))? == ours {
        // It was mounted there before, so writing it was all.
        return Ok(());
    }
    mount_inside(pid, &file).map_err(failed("mount", &file))
}

fn own_lines(text: &str) -> String {
    text.split_inclusive('\n').take(OWN_LINES).collect()
}

/// Mounts the file over the `/etc/hosts` that the process sees, read-only.
fn mount_inside(pid: i32, file: &Path) -> io::Result<()> {
    let tree = sys::clone_tree(file)?;
    sys::set_attributes(tree.as_fd(), sys::RDONLY | sys::NOSUID | sys::NODEV | sys::NOEXEC)?;
    let namespace = fs::File::open(format!("/proc/{pid}/ns/mnt"))?;
    // A thread of its own enters the namespace and ends there: nobody else's view changes.
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS)?;
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNS)?;
            sys::attach(tree.as_fd(), Path::new("/etc/hosts"))
        });
        inside.join().unwrap_or_else(|_| Err(io::Error::other("the thread that mounts it panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use palisade_core::names::{ProjectName, ServiceName};
    use std::io::BufRead;
    use std::process::{Child, Command, Stdio};

    /// A process with a mount namespace in which `/etc/hosts` is another file, as an instance has it.
    struct Scratch {
        child: Child,
        layout: Layout,
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
            let _ = self.child.wait();
            let _ = fs::remove_dir_all(self.layout.realm_run());
        }
    }

    #[test]
    fn new_names_appear_inside_and_the_host_stays_as_it_is() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: new_names_appear_inside_and_the_host_stays_as_it_is: needs root");
            return;
        }
        let before = fs::read_to_string("/etc/hosts").unwrap();
        let realm = format!("palisade-test-{}-hosts", std::process::id());
        let layout = Layout { realm, project: ProjectName::parse("shop").unwrap() };
        let id = InstanceId { service: ServiceName::parse("app").unwrap(), number: 1 };
        fs::create_dir_all(layout.instance(&id)).unwrap();
        let first = layout.instance(&id).join("first");
        fs::write(&first, "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.77.1.1\tapp-1\n127.77.2.0\told\n").unwrap();
        let script = "mount --make-rprivate / && mount --bind \"$1\" /etc/hosts && echo ready && exec sleep 60";
        let mut child = Command::new("unshare")
            .args(["-m", "sh", "-c", script, "sh"])
            .arg(&first)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let scratch = Scratch { child, layout: layout.clone() };
        assert_eq!(line, "ready\n");
        let pid = scratch.child.id() as i32;
        let inside = || fs::read_to_string(format!("/proc/{pid}/root/etc/hosts")).unwrap();
        for (name, address) in [("db", "127.77.3.0"), ("cache", "127.77.4.0")] {
            replace(&layout, &id, pid, &[(name.into(), address.parse().unwrap())]).unwrap();
            let expected = format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n127.77.1.1\tapp-1\n{address}\t{name}\n");
            assert_eq!(inside(), expected);
        }
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        let over: Vec<_> = mounts.lines().filter(|line| line.contains(" /etc/hosts ")).collect();
        assert_eq!(over.len(), 2, "the first file and ours, once: {over:?}");
        assert!(over[1].contains(" ro,"), "{over:?}");
        assert_eq!(fs::read_to_string("/etc/hosts").unwrap(), before);
    }
}
