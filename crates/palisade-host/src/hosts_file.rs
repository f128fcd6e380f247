//! The hosts file of an instance: its text, and how it is replaced while the instance runs, so that it learns the names of
//! new peers without a restart.
//!
//! Which names belong into it is decided in `palisade_core::compile`.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use palisade_core::instance::InstanceSpec;
use palisade_core::names::InstanceId;

use crate::layout::Layout;
use crate::runtime::sys;
use crate::whole_file;

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
    text.extend(spec.hosts.iter().map(line));
    text
}

fn line((name, address): &(String, IpAddr)) -> String {
    format!("{address}\t{name}\n")
}

/// Gives the instance whose init process is `pid` these names besides its own.
pub fn replace(layout: &Layout, id: &InstanceId, pid: i32, names: &[(String, IpAddr)]) -> Result<(), HostsFileError> {
    let failed = |operation: &'static str, path: &Path| {
        let (instance, path) = (id.clone(), path.to_owned());
        move |source: io::Error| HostsFileError { instance, operation, path, source }
    };
    let seen = PathBuf::from(format!("/proc/{pid}/root/etc/hosts"));
    let file = layout.instance(id).join("hosts");
    let identity = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    let mounted = identity(&seen).map_err(failed("read", &seen))?;
    if identity(&file).is_ok_and(|ours| ours == mounted) {
        return edit(&file, names).map_err(failed("write", &file));
    }
    let mut text = own_lines(&fs::read_to_string(&seen).map_err(failed("read", &seen))?);
    text.extend(names.iter().map(line));
    whole_file::replace_for_others(&file, text.as_bytes(), 0o644).map_err(failed("write", &file))?;
    mount_inside(pid, &file).map_err(failed("mount", &file))
}

/// Changes the names in a file that somebody may be reading, in whatever parts: the only byte of it that ever becomes
/// another one is the first of a line, which makes the line one that counts or a comment. New lines come before old ones go.
fn edit(path: &Path, names: &[(String, IpAddr)]) -> io::Result<()> {
    let mut file = fs::File::options().read(true).write(true).open(path)?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let lines: Vec<String> = names.iter().map(line).collect();
    let wanted: HashSet<&[u8]> = lines.iter().map(String::as_bytes).collect();
    let (mut there, mut gone, mut off) = (HashSet::new(), Vec::new(), HashMap::new());
    let mut end = 0;
    for (number, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let begin = end;
        end += line.len() as u64;
        match line {
            _ if number < OWN_LINES => {}
            [b'#', rest @ ..] => _ = off.insert(rest, begin),
            _ if wanted.contains(line) && there.insert(line) => {}
            _ => gone.push(begin),
        }
    }
    let mut on = Vec::new();
    let mut more = Vec::new();
    if !text.ends_with(b"\n") {
        more.push(b'\n');
    }
    for line in lines.iter().map(String::as_bytes) {
        if !there.insert(line) {
            continue;
        }
        let begin = off.remove(&line[1..]).unwrap_or_else(|| {
            let begin = end + more.len() as u64;
            more.push(b'#');
            more.extend_from_slice(&line[1..]);
            begin
        });
        on.push((begin, line[0]));
    }
    file.write_all_at(&more, end)?;
    let off = gone.into_iter().map(|begin| (begin, b'#'));
    on.into_iter().chain(off).try_for_each(|(begin, byte)| file.write_all_at(&[byte], begin))
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
        id: InstanceId,
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
            let _ = self.child.wait();
            let _ = fs::remove_dir_all(self.layout.realm_run());
        }
    }

    impl Scratch {
        fn new(test: &str) -> Self {
            let realm = format!("palisade-test-{}-{test}", std::process::id());
            let layout = Layout { realm, project: ProjectName::parse("shop").unwrap() };
            let id = InstanceId { service: ServiceName::parse("app").unwrap(), number: 1 };
            fs::create_dir_all(layout.instance(&id)).unwrap();
            let first = layout.instance(&id).join("first");
            fs::write(&first, "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.77.1.1\tapp-1\n127.77.2.0\told\n").unwrap();
            let script = "mount --make-rprivate / && mount --bind \"$1\" /etc/hosts && echo ready && exec sleep 600";
            let mut child = Command::new("unshare")
                .args(["-m", "sh", "-c", script, "sh"])
                .arg(&first)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            let scratch = Self { child, layout, id };
            assert_eq!(line, "ready\n");
            scratch
        }

        fn pid(&self) -> i32 {
            self.child.id() as i32
        }

        fn inside(&self) -> PathBuf {
            PathBuf::from(format!("/proc/{}/root/etc/hosts", self.pid()))
        }

        fn replace(&self, names: &[(String, IpAddr)]) {
            replace(&self.layout, &self.id, self.pid(), names).unwrap();
        }

        /// The lines that count, in order.
        fn live(&self) -> Vec<String> {
            let text = fs::read_to_string(self.inside()).unwrap();
            let mut lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
            lines[OWN_LINES..].sort();
            lines
        }
    }

    fn lines(names: &[(String, IpAddr)]) -> Vec<String> {
        let mut lines: Vec<_> = names.iter().map(|(name, address)| format!("{address}\t{name}")).collect();
        lines.sort();
        lines
    }

    #[test]
    fn new_names_appear_inside_and_the_host_stays_as_it_is() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: new_names_appear_inside_and_the_host_stays_as_it_is: needs root");
            return;
        }
        let before = fs::read_to_string("/etc/hosts").unwrap();
        let scratch = Scratch::new("hosts");
        for (name, address) in [("db", "127.77.3.0"), ("cache", "127.77.4.0")] {
            scratch.replace(&[(name.into(), address.parse().unwrap())]);
            let expected =
                ["127.0.0.1\tlocalhost", "::1\tlocalhost", "127.77.1.1\tapp-1", &format!("{address}\t{name}")];
            assert_eq!(scratch.live(), expected);
        }
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", scratch.pid())).unwrap();
        let over: Vec<_> = mounts.lines().filter(|line| line.contains(" /etc/hosts ")).collect();
        assert_eq!(over.len(), 2, "the first file and ours, once: {over:?}");
        assert!(over[1].contains(" ro,"), "{over:?}");
        assert_eq!(fs::read_to_string("/etc/hosts").unwrap(), before);
    }

    #[test]
    fn whoever_reads_meanwhile_finds_what_stays() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: whoever_reads_meanwhile_finds_what_stays: needs root");
            return;
        }
        let scratch = Scratch::new("busy-hosts");
        let db = ("db".to_owned(), "127.77.3.0".parse().unwrap());
        let own = fs::read_to_string(scratch.inside()).unwrap();
        let own = own_lines(&own);
        let names = |number: u32| -> Vec<(String, IpAddr)> {
            let others = (0..number % 7).map(|peer| {
                let name = format!("{}-{peer}", ["cache", "a-service-with-a-longer-name"][number as usize % 2]);
                (name, IpAddr::from([127, 77, 4 + (number % 3) as u8, peer as u8]))
            });
            let before = (number % 5) as usize;
            let mut names: Vec<_> = others.collect();
            names.insert(before.min(names.len()), db.clone());
            names
        };
        scratch.replace(&names(0));
        let done = std::sync::atomic::AtomicBool::new(false);
        let path = scratch.inside();
        let reads = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut reads = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let text = fs::read_to_string(&path).unwrap();
                    let lacks = !text.starts_with(&own) || !text.lines().any(|line| line == "127.77.3.0\tdb");
                    if lacks {
                        return Err(text);
                    }
                    reads += 1;
                }
                Ok(reads)
            });
            (1..=10_000).for_each(|number| scratch.replace(&names(number)));
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            reader.join().unwrap()
        });
        assert!(reads.unwrap() > 100);
        assert_eq!(scratch.live().split_off(OWN_LINES), lines(&names(10_000)));
    }
}
