//! The init process of an instance: process 1 of its PID namespace, parent of the service, keeper of its log and exit status.
//!
//! It depends on nobody: the agent and the command line may die, be killed or be replaced while it goes on. It has no
//! say in whether the service runs again; it tells how it ended and ends too.
//!
//! Two processes, because a PID namespace begins with a child: the first one joins the cgroups and forks the second,
//! which becomes process 1, and leaves.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::exit;
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg, OFlag, openat, renameat};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2};
use serde::{Deserialize, Serialize};

use palisade_core::instance::{InstanceMountSource, InstanceSpec};

use super::capability::{self, Set};
use super::confine::{Confinement, Program};
use super::logs::{Log, Stream};
use super::{Exit, InitProcess, hostname_of, rootfs, sys, user};
use crate::cgroup::Cgroup;
use crate::layout::Layout;

/// A step that failed, in a form that can cross from one process to another.
#[derive(Debug)]
pub(super) struct Failure {
    /// Without "cannot": "mount tmpfs on /run".
    pub(super) operation: String,
    pub(super) source: io::Error,
}

impl Failure {
    pub(super) fn new(operation: String, source: io::Error) -> Self {
        Self { operation, source }
    }
}

/// [`Failure`] on its way.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SentFailure {
    operation: String,
    errno: Option<i32>,
    text: String,
}

impl From<Failure> for SentFailure {
    fn from(failure: Failure) -> Self {
        let (errno, text) = (failure.source.raw_os_error(), failure.source.to_string());
        Self { operation: failure.operation, errno, text }
    }
}

impl From<SentFailure> for Failure {
    fn from(sent: SentFailure) -> Self {
        let source = sent.errno.map_or_else(|| io::Error::other(sent.text), io::Error::from_raw_os_error);
        Self { operation: sent.operation, source }
    }
}

/// What the starter passes on, through a file in memory that is the init process's standard input.
#[derive(Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) layout: Layout,
    pub(super) spec: InstanceSpec,
}

/// What the init process tells its starter, one JSON object a line, on the pipe that is its standard output.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    Running(InitProcess),
    Failed(SentFailure),
}

/// The reports' way out. That nobody listens any more is no reason to stop.
struct Reporter(Option<File>);

impl Reporter {
    fn send(&mut self, report: &Report) {
        if let Ok(mut line) = serde_json::to_vec(report) {
            line.push(b'\n');
            if let Some(pipe) = &mut self.0 {
                let _ = pipe.write_all(&line);
            }
        }
    }
}

fn failed<T, E: Into<io::Error>>(result: Result<T, E>, operation: impl FnOnce() -> String) -> Result<T, Failure> {
    result.map_err(|source| Failure::new(operation(), source.into()))
}

/// Entry point of the hidden verb `__init`. Its standard input and output are the starter's request and report.
pub fn init_main() -> ! {
    match first_process() {
        Ok(()) => exit(0),
        Err((failure, reporter)) => {
            if let Some(mut reporter) = reporter {
                reporter.send(&Report::Failed(failure.into()));
            }
            exit(1)
        }
    }
}

/// Standard input, output and error become /dev/null; the first two are returned.
pub(super) fn take_stdio() -> io::Result<(File, File)> {
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok((input, output))
}

type WithReporter<T> = Result<T, (Failure, Option<Reporter>)>;

fn first_process() -> WithReporter<()> {
    let stdio = failed(take_stdio(), || "take over standard input and output".into());
    let (mut input, output) = stdio.map_err(|failure| (failure, None))?;
    let mut reporter = Reporter(Some(output));
    let request = (|| {
        let mut text = Vec::new();
        failed(input.read_to_end(&mut text), || "read the request".into())?;
        failed(serde_json::from_slice::<Request>(&text), || "understand the request".into())
    })();
    match request.and_then(|request| prepare_and_fork(request, &mut reporter)) {
        Ok(()) => Ok(()),
        Err(failure) => Err((failure, Some(reporter))),
    }
}

/// What the second process needs from before the host's tree goes out of view.
struct Prepared {
    request: Request,
    confinement: Confinement,
    log: Log,
    directory: OwnedFd,
    cgroup: Cgroup,
    /// Palisade's own program, if that is what runs: the service sees no path to it.
    own_program: Option<OwnedFd>,
    /// Held as long as the init process lives: there is never a second one for the same instance.
    _lock: Flock<File>,
}

fn prepare_and_fork(request: Request, reporter: &mut Reporter) -> Result<(), Failure> {
    let Request { layout, spec } = &request;
    failed(sys::prctl(libc::PR_SET_DUMPABLE, 0), || "forbid tracing".into())?;
    failed(nix::unistd::setsid(), || "start a session".into())?;
    failed(sys::cloexec_from(3), || "mark inherited files".into())?;
    let _ = fs::write("/proc/self/comm", "palisade-init");

    let path = layout.instance(&spec.id);
    let lock = failed(File::create(path.join("lock")), || format!("make {}", path.join("lock").display()))?;
    let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| Failure::new(format!("lock instance {}: it runs already", spec.id), error.into()))?;
    let directory = OwnedFd::from(failed(File::open(&path), || format!("open {}", path.display()))?);

    let resolved = user::resolve(spec.program.user(), &spec.settings.groups, Path::new("/etc"));
    let identity = resolved.map_err(|error| Failure::new("find the service's user".into(), io::Error::other(error)))?;
    for mount in &spec.mounts {
        match &mount.source {
            InstanceMountSource::Path(source) => {
                failed(source.symlink_metadata().map(drop), || {
                    format!("bind {} on {}", source.display(), mount.target.display())
                })?;
            }
            InstanceMountSource::Volume(volume) if !volume.exists() => {
                let made = fs::create_dir_all(volume)
                    .and_then(|()| fs::set_permissions(volume, fs::Permissions::from_mode(0o755)))
                    .and_then(|()| chown(volume, Some(identity.uid), Some(identity.gid)));
                failed(made, || format!("make the volume {}", volume.display()))?;
            }
            _ => {}
        }
    }
    let confinement = Confinement::of(spec, identity)?;
    let own_program = match &spec.own_program {
        Some(own) => Some(failed(sys::own_program(&own.file), || format!("open {}", own.file.display()))?),
        None if spec.program.process().is_some_and(|process| process.own) => {
            let why = io::Error::new(io::ErrorKind::NotFound, "the specification doesn't say which version of it");
            return Err(Failure::new("run Palisade's own program".into(), why));
        }
        None => None,
    };
    let log_path = layout.log(&spec.id);
    let log = failed(Log::open(&log_path, spec.log), || format!("open the log {}", log_path.display()))?;

    let of_cgroup =
        |error: crate::cgroup::Error| Failure::new("set up the cgroup".into(), io::Error::other(Chain(error)));
    let cgroup = Cgroup::of(layout, spec).map_err(of_cgroup)?;
    cgroup.create_v1().map_err(of_cgroup)?;
    cgroup.limit(&spec.limits).map_err(of_cgroup)?;
    // Before anything of the service exists: all that comes is born inside, under the guard and the limits.
    cgroup.join().map_err(of_cgroup)?;

    failed(unshare(CloneFlags::CLONE_NEWPID), || "make a PID namespace".into())?;
    let (go_read, go_write) = failed(pipe2(OFlag::O_CLOEXEC), || "make a pipe".into())?;
    // SAFETY: this process has one thread.
    match failed(unsafe { fork() }, || "fork the init process".into())? {
        ForkResult::Parent { child } => {
            drop(go_read);
            let start_time = sys::start_time(child.as_raw()).unwrap_or_default();
            let identity = InitProcess { pid: child.as_raw(), start_time };
            // Written before process 1 goes on, so that whoever finds a running instance also finds its name.
            let text = failed(serde_json::to_vec(&identity), || "write the process id".into())?;
            failed(write_at(&directory, "pid", &text), || format!("write {}", path.join("pid").display()))?;
            let _ = File::from(go_write).write_all(&text);
            // The lock belongs to the open file that both share: releasing it here would release it for the child.
            std::mem::forget(lock);
            Ok(())
        }
        ForkResult::Child => {
            drop(go_write);
            let mut text = Vec::new();
            let _ = File::from(go_read).read_to_end(&mut text);
            // Nothing came: the first process failed and said so.
            let Ok(own) = serde_json::from_slice::<InitProcess>(&text) else { exit(1) };
            let prepared = Prepared { request, confinement, log, directory, cgroup, own_program, _lock: lock };
            process_one(prepared, own, reporter)
        }
    }
}

/// An error with its causes in one line, for the way between processes.
#[derive(Debug)]
struct Chain<E>(E);

impl<E: std::error::Error> std::fmt::Display for Chain<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl<E: std::error::Error> std::error::Error for Chain<E> {}

/// Replaces a file in one step.
fn write_at(directory: &OwnedFd, name: &str, content: &[u8]) -> io::Result<()> {
    let new = format!("{name}.new");
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(directory, new.as_str(), flags, Mode::from_bits_truncate(0o600))?);
    file.write_all(content)?;
    Ok(renameat(directory, new.as_str(), directory, name)?)
}

/// Process 1, from its first instruction to its last.
fn process_one(prepared: Prepared, own: InitProcess, reporter: &mut Reporter) -> ! {
    let Prepared { request, confinement, mut log, directory, cgroup, own_program, _lock } = prepared;
    match start_service(&request, &confinement, &cgroup, own_program) {
        Ok(service) => {
            // What is left is forwarding signals and one capability that the service lacks. Keeping everything if this
            // machine hasn't even those two only makes the init process harder to attack from inside.
            let keep = Set(capability::bit(capability::INIT_ONLY).unwrap_or(0) | capability::bit("KILL").unwrap_or(0));
            let _ = capability::set(keep, Set(capability::bit("KILL").unwrap_or(0)));
            reporter.send(&Report::Running(own));
            // The starter's read ends here; nothing of it is held any longer.
            reporter.0 = None;
            let exit_status = supervise(service, &mut log);
            finish(&directory, &exit_status);
            exit(exit_status.code)
        }
        Err(failure) => {
            reporter.send(&Report::Failed(failure.into()));
            exit(1)
        }
    }
}

/// A service's main process and the read ends of its output.
struct Service {
    pid: Pid,
    streams: [(OwnedFd, Stream); 2],
    signals: SignalFd,
}

/// Makes the namespaces and the file system, then the service's process in it.
fn start_service(
    request: &Request,
    confinement: &Confinement,
    cgroup: &Cgroup,
    own_program: Option<OwnedFd>,
) -> Result<Service, Failure> {
    let spec = &request.spec;
    let name = hostname_of(spec);
    let flags =
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWCGROUP;
    failed(unshare(flags), || "make namespaces".into())?;
    failed(nix::unistd::sethostname(&name), || format!("set the host name to `{name}`"))?;
    if let Some(domain) = &spec.settings.domainname {
        failed(sys::set_domain_name(domain), || format!("set the domain name to `{domain}`"))?;
    }
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    failed(nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>), || "make mounts private".into())?;
    let staging = request.layout.instance(&spec.id).join("root");
    failed(fs::create_dir_all(&staging), || format!("make {}", staging.display()))?;
    let plan = rootfs::Plan::gather(spec, &name, cgroup.mounts().clone())?;
    plan.enter(&staging)?;
    plan.build()?;

    // When memory runs out, the kernel should take the service and not the one who can tell about it. Needs a
    // capability that a machine may lack, and is only a preference.
    let score = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_else(|_| "0".into());
    let _ = fs::write("/proc/self/oom_score_adj", "-900");

    // Blocked before the service exists, so that no signal for it gets lost; process 1 would ignore them otherwise.
    let all = SigSet::all();
    failed(sigprocmask(SigmaskHow::SIG_BLOCK, Some(&all), None), || "block signals".into())?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = failed(SignalFd::with_flags(&all, flags), || "make a signal descriptor".into())?;
    let pipe = |flags| failed(pipe2(flags), || "make a pipe".into());
    let (out_read, out_write) = pipe(OFlag::O_CLOEXEC)?;
    let (err_read, err_write) = pipe(OFlag::O_CLOEXEC)?;
    let (result_read, result_write) = pipe(OFlag::O_CLOEXEC)?;
    let command = spec.program.process().map(|process| process.command.clone()).unwrap_or_default();
    let program = match own_program {
        Some(own) => Program::Own(own, ["palisade".to_owned()].into_iter().chain(command).collect()),
        None => Program::Command(command),
    };
    // SAFETY: this process has one thread.
    match failed(unsafe { fork() }, || "fork the service".into())? {
        ForkResult::Child => {
            let _ = fs::write("/proc/self/oom_score_adj", score.trim());
            let redirected = nix::unistd::dup2_stdout(&out_write).and_then(|()| nix::unistd::dup2_stderr(&err_write));
            let failure = match failed(redirected, || "redirect the output".into()) {
                Ok(()) => confinement.exec(program),
                Err(failure) => failure,
            };
            // Standard error is the log by now: the reason goes to the starter only.
            if let Ok(text) = serde_json::to_vec(&SentFailure::from(failure)) {
                let _ = File::from(result_write).write_all(&text);
            }
            exit(127)
        }
        ForkResult::Parent { child } => {
            drop((out_write, err_write, result_write));
            let mut text = Vec::new();
            failed(File::from(result_read).read_to_end(&mut text), || "wait for the service's exec".into())?;
            if !text.is_empty() {
                let sent =
                    failed(serde_json::from_slice::<SentFailure>(&text), || "understand why exec failed".into())?;
                return Err(sent.into());
            }
            // Reading must never block: poll says which has something, and the end comes at any time.
            for fd in [&out_read, &err_read] {
                let nonblocking = nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK);
                failed(nix::fcntl::fcntl(fd, nonblocking), || "set a pipe to non-blocking".into())?;
            }
            let streams = [(out_read, Stream::new("stdout")), (err_read, Stream::new("stderr"))];
            Ok(Service { pid: child, streams, signals })
        }
    }
}

/// Pumps output, forwards signals and reaps until the service's main process ends; then ends the rest.
fn supervise(mut service: Service, log: &mut Log) -> Exit {
    let mut buffer = vec![0u8; 64 << 10];
    let mut open = [true, true];
    let status = loop {
        let mut polled = [
            libc::pollfd { fd: service.signals.as_raw_fd(), events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 },
        ];
        for (number, (fd, _)) in service.streams.iter().enumerate() {
            if open[number] {
                polled[number + 1].fd = fd.as_raw_fd();
            }
        }
        // SAFETY: three valid pollfds; one with fd -1 is ignored.
        unsafe { libc::poll(polled.as_mut_ptr(), 3, -1) };
        for (number, (fd, stream)) in service.streams.iter_mut().enumerate() {
            if polled[number + 1].revents != 0 {
                open[number] = pump(fd, stream, log, &mut buffer);
            }
        }
        if polled[0].revents != 0 {
            while let Ok(Some(info)) = service.signals.read_signal() {
                forward(service.pid, info.ssi_signo);
            }
            if let Some(status) = reap(Some(service.pid)) {
                break status;
            }
        }
    };
    // Nothing of a service outlives its main process. ESRCH: there was nothing else.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    while !matches!(waitpid(None, None), Err(nix::Error::ECHILD)) {}
    for (number, (fd, stream)) in service.streams.iter_mut().enumerate() {
        while open[number] && pump(fd, stream, log, &mut buffer) {
            // A pipe that somebody outside the instance holds open has an end too: nothing in it now.
            let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid pollfd.
            if unsafe { libc::poll(&mut poll, 1, 0) } <= 0 {
                break;
            }
        }
        log.finish(stream);
    }
    let ended_at_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    match status {
        WaitStatus::Exited(_, code) => Exit { code, ended_at_s },
        WaitStatus::Signaled(_, signal, _) => Exit { code: 128 + signal as i32, ended_at_s },
        _ => Exit { code: 255, ended_at_s },
    }
}

/// Moves one piece of output to the log; says whether there may be more.
fn pump(fd: &OwnedFd, stream: &mut Stream, log: &mut Log, buffer: &mut [u8]) -> bool {
    match nix::unistd::read(fd, buffer) {
        Ok(0) => false,
        Ok(length) => {
            log.take(stream, &buffer[..length]);
            true
        }
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => true,
        Err(_) => false,
    }
}

fn forward(service: Pid, signal: u32) {
    if signal != libc::SIGCHLD as u32 {
        // SAFETY: sends a signal; real-time ones have no name in nix. A service that has just ended is fine.
        unsafe { libc::kill(service.as_raw(), signal as i32) };
    }
}

/// Collects every child that has ended; returns the status of the main one if it is among them.
fn reap(main: Option<Pid>) -> Option<WaitStatus> {
    let mut found = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => return found,
            Ok(status) => {
                let ended = matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..));
                if ended && status.pid() == main {
                    found = Some(status);
                }
            }
        }
    }
}

/// Writes down how it ended, for whoever supervises now.
fn finish(directory: &OwnedFd, exit: &Exit) {
    if let Ok(text) = serde_json::to_vec(exit) {
        let _ = write_at(directory, "exit", &text);
    }
}
