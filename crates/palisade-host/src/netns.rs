//! Network namespaces: made, entered, named, and cleared away when their owner is gone.
//!
//! What is in one (interfaces, addresses, rules) is the business of `link` and `firewall`.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{self, File};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

const NAMED: &str = "/run/netns";

/// Why a network namespace couldn't be made, entered or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// A system call failed.
    #[error("cannot {operation} network namespace `{name}`")]
    System {
        /// "make", "enter" …
        operation: &'static str,
        /// Its name, or "unnamed".
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The work in it took too long; its thread was left behind.
    #[error("work in network namespace `{name}` was not done after {timeout_ms} ms")]
    TimedOut {
        /// Its name.
        name: String,
        /// What it was given.
        timeout_ms: u64,
    },
    /// The work in it panicked.
    #[error("work in network namespace `{name}` panicked")]
    Panicked {
        /// Its name.
        name: String,
    },
}

/// An open network namespace. One without a name is gone when nothing uses it any more, whatever happens to us.
#[derive(Debug)]
pub struct Netns {
    name: Option<String>,
    file: File,
}

/// The thread is in another network namespace until this is dropped. Bound to its thread.
#[derive(Debug)]
pub struct Entered {
    previous: File,
    _bound_to_thread: PhantomData<*const ()>,
}

fn own() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

fn path(name: &str) -> PathBuf {
    Path::new(NAMED).join(name)
}

/// Runs `work` on a thread of its own, so that what it does to its namespace ends with it.
fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

impl Netns {
    fn error(&self, operation: &'static str) -> impl FnOnce(io::Error) -> NetnsError + use<> {
        let name = self.label();
        move |source| NetnsError::System { operation, name, source }
    }
    fn label(&self) -> String {
        self.name.clone().unwrap_or_else(|| "unnamed".into())
    }
    /// A new one without a name.
    pub fn unnamed() -> Result<Self, NetnsError> {
        let made = aside(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            own()
        });
        match made {
            Ok(file) => Ok(Self { name: None, file }),
            Err(source) => Err(NetnsError::System { operation: "make", name: "unnamed".into(), source }),
        }
    }
    /// A new one at `/run/netns/<name>`, where `ip netns` and a later run find it.
    pub fn create(name: &str) -> Result<Self, NetnsError> {
        let error = |source| NetnsError::System { operation: "make", name: name.to_owned(), source };
        prepare_directory().map_err(error)?;
        let target = path(name);
        File::options().write(true).create_new(true).open(&target).map_err(error)?;
        let made = aside(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            own()
        });
        match made {
            Ok(file) => Ok(Self { name: Some(name.to_owned()), file }),
            Err(source) => {
                let _ = fs::remove_file(&target);
                Err(error(source))
            }
        }
    }
    /// The named one that `create` or `ip netns add` made.
    pub fn open(name: &str) -> Result<Self, NetnsError> {
        let file = File::open(path(name)).map_err(|source| NetnsError::System {
            operation: "open",
            name: name.to_owned(),
            source,
        })?;
        Ok(Self { name: Some(name.to_owned()), file })
    }
    /// The one that the calling thread is in.
    pub fn current() -> Result<Self, NetnsError> {
        let file = own().map_err(|source| NetnsError::System { operation: "open", name: "current".into(), source })?;
        Ok(Self { name: None, file })
    }
    /// Its name, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
    /// A second handle.
    pub fn try_clone(&self) -> Result<Self, NetnsError> {
        let file = self.file.try_clone().map_err(self.error("open"))?;
        Ok(Self { name: self.name.clone(), file })
    }
    /// Puts the calling thread into it until the guard is dropped. Children that the thread starts are in it too.
    pub fn enter(&self) -> Result<Entered, NetnsError> {
        let previous = own().map_err(self.error("enter"))?;
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|e| self.error("enter")(e.into()))?;
        Ok(Entered { previous, _bound_to_thread: PhantomData })
    }
    /// Runs `work` in it on a fresh thread.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.enter().map(|_entered| work()));
            thread.join().unwrap_or_else(|_| Err(NetnsError::Panicked { name: self.label() }))
        })
    }
    /// Runs `work` in it on a fresh thread, and gives up waiting after `timeout`.
    pub fn run_in<T: Send + 'static>(
        &self,
        timeout: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NetnsError> {
        let (sender, receiver) = mpsc::channel();
        let inside = self.try_clone()?;
        std::thread::spawn(move || {
            let result = inside.enter().map(|_entered| work());
            // Nobody listens any more when the time was up.
            let _ = sender.send(result);
        });
        match receiver.recv_timeout(timeout) {
            Ok(result) => result,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(NetnsError::TimedOut { name: self.label(), timeout_ms: timeout.as_millis() as u64 })
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(NetnsError::Panicked { name: self.label() }),
        }
    }
    /// Takes the name away; the kernel frees the namespace when its last process is gone.
    pub fn remove(self) -> Result<(), NetnsError> {
        match &self.name {
            Some(name) => remove(name),
            None => Ok(()),
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // A thread that would go on in the wrong namespace could change the machine's own network: stop everything.
        if let Err(error) = setns(&self.previous, CloneFlags::CLONE_NEWNET) {
            eprintln!("cannot return to the thread's network namespace: {error}");
            std::process::abort();
        }
    }
}

/// Makes `/run/netns` a shared mount of its own as `ip netns` does, so that names taken away are gone in every
/// mount namespace.
fn prepare_directory() -> io::Result<()> {
    fs::create_dir_all(NAMED)?;
    let share = || mount(None::<&str>, NAMED, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    if share().is_err() {
        mount(Some(NAMED), NAMED, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
        share()?;
    }
    Ok(())
}

fn remove(name: &str) -> Result<(), NetnsError> {
    let error = |source| NetnsError::System { operation: "remove", name: name.to_owned(), source };
    match umount2(&path(name), MntFlags::MNT_DETACH) {
        // EINVAL: the file is there but nothing is mounted on it, as after a crash between the two.
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => (),
        Err(e) => return Err(error(e.into())),
    }
    match fs::remove_file(path(name)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(error(e)),
        _ => Ok(()),
    }
}

/// The name of a namespace of this process: `<prefix>-<pid>-<role>`.
pub fn owned_name(prefix: &str, role: &str) -> String {
    format!("{prefix}-{}-{role}", std::process::id())
}

/// Removes the namespaces `<prefix>-<pid>-…` whose process is gone, and returns their names.
pub fn remove_leftovers(prefix: &str) -> Result<Vec<String>, NetnsError> {
    let entries = match fs::read_dir(NAMED) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(NetnsError::System { operation: "list", name: format!("{prefix}-*"), source }),
    };
    let mut removed = Vec::new();
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner =
            name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-')).and_then(|rest| rest.split('-').next());
        let Some(pid) = owner.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new("/proc").join(pid.to_string()).exists() {
            remove(&name)?;
            removed.push(name);
        }
    }
    Ok(removed)
}
