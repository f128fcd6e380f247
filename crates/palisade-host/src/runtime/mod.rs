//! Runs single instances: as an init process with namespaces, a file system, a cgroup and a log of its own, or as a
//! container of an engine ([`crate::engine`]), which is told apart from it in here and nowhere else.
//!
//! This part starts, finds, signals and enters single instances. Whether and when one should run is the agent's business
//! ([`crate::agent`]), and what it may reach the guard's, which must be attached to the cgroup before [`start`].

mod attach;
mod capability;
mod confine;
mod enter;
pub(crate) mod files;
mod init;
pub(crate) mod logs;
mod resolver;
mod rootfs;
mod seccomp;
pub(crate) mod sys;
mod user;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use palisade_core::instance::{CgroupDriver, ContainerProgram, InstanceSpec, Program};
use palisade_core::names::InstanceId;

use crate::cgroup::{self, Cgroup};
use crate::engine::{self, EngineError};
use crate::layout::Layout;
use crate::whole_file;

pub use attach::{Attach, attach, attach_main};
pub use capability::{DEFAULT as DEFAULT_CAPABILITIES, GRANTABLE as GRANTABLE_CAPABILITIES};
pub use enter::{EnterOptions, EnterResult, Inside, enter, enter_main};
pub use init::init_main;
pub use logs::rfc3339;
pub(crate) use resolver::resolv_conf;
pub use user::UserError;

/// This program, for [`start`] and [`enter`]: right also after an update has replaced the file.
pub const THIS_PROGRAM: &str = "/proc/self/exe";

/// What went wrong with an instance.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It has no cgroup, so nothing can guard it.
    #[error("instance {instance} is not started: its cgroup {path} doesn't exist, so nothing guards it")]
    Unguarded {
        /// Which.
        instance: InstanceId,
        /// The directory that is missing.
        path: PathBuf,
    },
    /// The slice that the guard was attached to is gone: somebody has stopped it.
    #[error(
        "instance {instance} is not started: somebody has stopped {slice}, and the guard went with it; `palisade up` makes both anew"
    )]
    SliceLost {
        /// Which.
        instance: InstanceId,
        /// The unit of systemd.
        slice: String,
    },
    /// It runs already.
    #[error("instance {0} runs already")]
    AlreadyRunning(InstanceId),
    /// A step of starting it failed.
    #[error("cannot start {instance}: cannot {operation}")]
    Start {
        /// Which.
        instance: InstanceId,
        /// The step, without "cannot".
        operation: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A step of running something inside it failed.
    #[error("cannot run a command in {instance}: cannot {operation}")]
    Enter {
        /// Which.
        instance: InstanceId,
        /// The step, without "cannot".
        operation: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Sending it a signal failed.
    #[error("cannot send signal {signal} to the instance with process {pid}")]
    Signal {
        /// The signal's number.
        signal: i32,
        /// Its init process.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of its state can't be read or written.
    #[error("cannot {operation} {path}")]
    State {
        /// "read", "write" …
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl Error {
    /// Nobody is there to start it, so trying again soon makes sense.
    pub fn is_engine_away(&self) -> bool {
        matches!(self, Self::Engine(error) if error.is_away())
    }
}

/// Names an instance's init process for good: a number is used again, a number with a start time isn't.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitProcess {
    /// In the host's PID namespace.
    pub pid: i32,
    /// Clock ticks after boot.
    pub start_time: u64,
}

/// How an instance ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// Seconds since the Unix epoch.
    pub ended_at_s: u64,
}

/// A running instance.
#[derive(Debug)]
pub struct Running {
    process: InitProcess,
    pidfd: OwnedFd,
}

impl Running {
    /// Its init process.
    pub fn process(&self) -> InitProcess {
        self.process
    }
    /// Readable once the instance has ended.
    pub fn pidfd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
    /// Sends a signal to the service's main process. SIGKILL ends the whole instance.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        match sys::pidfd_signal(self.pidfd.as_fd(), signal) {
            // It has ended: what a signal would lead to at most.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other.map_err(|source| Error::Signal { signal, pid: self.process.pid, source }),
        }
    }
    /// Waits for its end; false: the time was over first.
    pub fn wait(&self, timeout: Duration) -> bool {
        sys::wait_readable(self.pidfd.as_fd(), timeout).unwrap_or(false)
    }

    /// The same instance once more.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { process: self.process, pidfd: self.pidfd.try_clone()? })
    }

    fn find(process: InitProcess) -> Option<Self> {
        let pidfd = sys::pidfd_open(process.pid).ok()?;
        // After the descriptor is held the number can't change hands, so the comparison stays true.
        (sys::start_time(process.pid) == Some(process.start_time)).then_some(Self { process, pidfd })
    }
}

/// What is left of an instance, or what it is doing.
#[derive(Debug)]
pub enum Found {
    /// It runs.
    Running(Running),
    /// It ended; `None`: without a trace of how (it was killed whole).
    Ended(Option<Exit>),
}

/// The number of a signal: `SIGTERM`, `TERM`, `SIGRTMIN+3`, `15`.
pub fn signal_number(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = name.to_ascii_uppercase();
    let full = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    if let Some(offset) = full.strip_prefix("SIGRTMIN") {
        let number = libc::SIGRTMIN() + if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse().ok()? };
        return (number <= libc::SIGRTMAX()).then_some(number);
    }
    full.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

/// Starts an instance. Returns when its program was executed (a short job may have ended by then), or why it can't be.
/// The cgroup must exist and be guarded.
pub fn start(layout: &Layout, spec: &InstanceSpec, exe: &Path) -> Result<Found, Error> {
    let instance = || spec.id.clone();
    let failed = |operation: &str| {
        let (instance, operation) = (instance(), operation.to_owned());
        move |source: io::Error| Error::Start { instance, operation, source }
    };
    let cgroup = Cgroup::of(layout, spec)?;
    if !cgroup.is_guardable() {
        return Err(match cgroup.driver() {
            CgroupDriver::Cgroupfs => Error::Unguarded { instance: instance(), path: cgroup.v2_path() },
            CgroupDriver::Systemd => Error::SliceLost { instance: instance(), slice: cgroup.parent_for_engines() },
        });
    }
    let directory = layout.instance(&spec.id);
    make_private_directory(&directory)?;
    let lock = directory.join("lock");
    let file = File::create(&lock).map_err(|source| Error::State { operation: "make", path: lock, source })?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        // Only asked: the init process takes it for itself.
        Ok(lock) => drop(lock),
        Err(_) => return Err(Error::AlreadyRunning(instance())),
    }
    // What an init process that was killed has left behind.
    cgroup.kill()?;
    for name in ["exit", "pid"] {
        match fs::remove_file(directory.join(name)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(Error::State { operation: "remove", path: directory.join(name), source });
            }
            _ => {}
        }
    }
    write_private(&directory.join("spec.json"), spec)?;
    if let Program::Container(program) = &spec.program {
        return start_container(layout, spec, program);
    }

    let mut request = sys::memfd(c"palisade-init").map_err(failed("make a file in memory"))?;
    let content = init::Request { layout: layout.clone(), spec: spec.clone() };
    serde_json::to_writer(&mut request, &content).map_err(|error| failed("write the request")(error.into()))?;
    request.rewind().map_err(failed("write the request"))?;
    let program = sys::own_program(exe).map_err(failed("open this program"))?;
    let (read, write) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| failed("make a pipe")(e.into()))?;
    let mut command = Command::new(descriptor_path(&program));
    command.arg0("palisade").arg("__init").env_clear().current_dir("/");
    command.stdin(request).stdout(write).stderr(Stdio::null());
    let mut first = command.spawn().map_err(failed("start the init process"))?;
    drop(command);

    let mut line = String::new();
    let read = BufReader::new(File::from(read)).read_line(&mut line);
    first.wait().map_err(failed("wait for the init process"))?;
    read.map_err(failed("hear from the init process"))?;
    match serde_json::from_str(&line) {
        Ok(init::Report::Running(process)) => match Running::find(process) {
            Some(running) => Ok(Found::Running(running)),
            // A short job may have ended by now; its init process writes down how before it goes.
            None => Ok(Found::Ended(read_json(&directory.join("exit"))?)),
        },
        Ok(init::Report::Failed(sent)) => {
            let failure = init::Failure::from(sent);
            Err(failed(&failure.operation)(failure.source))
        }
        Err(_) => Err(failed("hear from the init process")(io::Error::other("it was killed"))),
    }
}

fn start_container(layout: &Layout, spec: &InstanceSpec, program: &ContainerProgram) -> Result<Found, Error> {
    let directory = layout.instance(&spec.id);
    let pid = match engine::start(layout, spec, program)? {
        engine::Started::Running(pid) => pid,
        engine::Started::Ended(exit) => return Ok(Found::Ended(Some(exit))),
    };
    let running = sys::start_time(pid).and_then(|start_time| Running::find(InitProcess { pid, start_time }));
    let Some(running) = running else { return Ok(Found::Ended(engine::end(program))) };
    write_private(&directory.join("pid"), &running.process)?;
    Ok(Found::Running(running))
}

/// Looks for an instance that was started before, by whomever. `None`: there never was one.
pub fn find(layout: &Layout, id: &InstanceId) -> Result<Option<Found>, Error> {
    let directory = layout.instance(id);
    let Some(spec) = read_json::<InstanceSpec>(&directory.join("spec.json"))? else { return Ok(None) };
    if let Some(running) = read_json::<InitProcess>(&directory.join("pid"))?.and_then(Running::find) {
        return Ok(Some(Found::Running(running)));
    }
    Ok(Some(Found::Ended(match &spec.program {
        Program::Process(_) => read_json(&directory.join("exit"))?,
        Program::Container(program) => engine::end(program),
    })))
}

/// The instance's container, if it runs although nobody here has started it: `docker restart` did.
pub fn find_started_by_others(layout: &Layout, spec: &InstanceSpec) -> Result<Option<Running>, Error> {
    let Program::Container(program) = &spec.program else { return Ok(None) };
    let Some(pid) = engine::running(layout, spec, program)? else { return Ok(None) };
    let running = sys::start_time(pid).and_then(|start_time| Running::find(InitProcess { pid, start_time }));
    if let Some(running) = &running {
        write_private(&layout.instance(&spec.id).join("pid"), &running.process)?;
    }
    Ok(running)
}

/// Ends an instance: the stop signal, the grace period, then SIGKILL to everything in it.
pub fn stop(layout: &Layout, spec: &InstanceSpec, running: &Running) -> Result<(), Error> {
    running.signal(signal_number(&spec.stop_signal).unwrap_or(libc::SIGTERM))?;
    if !running.wait(Duration::from_millis(spec.stop_grace_ms)) {
        running.signal(libc::SIGKILL)?;
    }
    Ok(Cgroup::of(layout, spec)?.kill()?)
}

/// Removes what is left of an instance that has ended: its cgroups and its folder. Its log and volumes stay.
pub fn remove(layout: &Layout, id: &InstanceId) -> Result<(), Error> {
    let path = layout.instance(id);
    // The container first: as long as its folder is there, it is known, and without it nobody can start it again.
    if let Some(InstanceSpec { program: Program::Container(program), .. }) = read_json(&path.join("spec.json"))? {
        engine::take_away(layout, id, &program)?;
    }
    Cgroup::all_of_instance(layout, id)?.iter().try_for_each(Cgroup::remove)?;
    match fs::remove_dir_all(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::State { operation: "remove", path, source })
        }
        _ => Ok(()),
    }
}

fn descriptor_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Makes a directory that only root may enter, with those above it.
pub(crate) fn make_private_directory(path: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| Error::State { operation: "make", path: path.to_owned(), source })
}

/// Replaces a file of mode 0600 in one step.
pub(crate) fn write_private(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let written =
        serde_json::to_vec(value).map_err(io::Error::from).and_then(|bytes| whole_file::replace(path, &bytes, 0o600));
    written.map_err(|source| Error::State { operation: "write", path: path.to_owned(), source })
}

/// Reads a file that [`write_private`] wrote; `None`: it isn't there.
pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, Error> {
    let failed = |source| Error::State { operation: "read", path: path.to_owned(), source };
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| failed(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// What the instance calls itself, unless the file says otherwise.
pub(crate) fn hostname_of(spec: &InstanceSpec) -> String {
    spec.settings.hostname.clone().unwrap_or_else(|| hostname(&spec.id))
}

/// What an instance calls itself: dots would make a domain of it, and the kernel takes 64 characters.
fn hostname(id: &InstanceId) -> String {
    let number = format!("-{}", id.number);
    let service: String = id.service.as_str().chars().map(|c| if c == '.' || c == '_' { '-' } else { c }).collect();
    format!("{}{number}", &service[..service.len().min(63 - number.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_their_compose_names() {
        for (name, number) in [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", libc::SIGRTMIN() + 3)] {
            assert_eq!(signal_number(name), Some(number), "{name}");
        }
        for name in ["SIGNOPE", "0", "65", "SIGRTMIN+99", ""] {
            assert_eq!(signal_number(name), None, "{name}");
        }
    }
}
