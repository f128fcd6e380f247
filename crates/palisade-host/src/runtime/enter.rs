//! Runs a command inside a running instance, confined as its service is: for health checks and for probes.
//!
//! The caller starts a helper (hidden verb `__enter`) that joins the cgroups and namespaces and forks, because a PID
//! namespace is entered by children only. When to run what is the callers' business.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio, exit};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, pipe2};
use serde::{Deserialize, Serialize};

use palisade_core::instance::{self as spec, InstanceSpec};

use super::confine::{Confinement, Program};
use super::init::{Failure, SentFailure, take_stdio};
use super::{Error, InitProcess, Running, sys, user};
use crate::cgroup::Cgroup;
use crate::engine;
use crate::layout::Layout;

/// What is run inside an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Inside {
    /// An argument vector; the first is a path inside or a name for the service's PATH.
    Command(Vec<String>),
    /// This program, with these arguments after its name. It need not exist inside.
    Own(Vec<String>),
    /// The version of this program that the instance runs, with these arguments after its name.
    Same(Vec<String>),
}

/// How a command inside an instance is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnterOptions {
    /// After this it is killed with all of its process group.
    pub timeout: Duration,
    /// So much of its output is kept; the rest is read and dropped.
    pub output_bytes_max: usize,
    /// Run as root (still without the capabilities that services lack) instead of as the service's user.
    pub as_root: bool,
}

/// How a command inside an instance ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnterResult {
    /// Exit code, or 128 + signal; `None`: it took longer than the timeout.
    pub code: Option<i32>,
    /// What it wrote to standard output and error, mixed.
    pub output: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Request {
    layout: Layout,
    spec: InstanceSpec,
    init: InitProcess,
    inside: Inside,
    as_root: bool,
    timeout_ms: u64,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Ended { code: i32 },
    TimedOut,
    Failed(SentFailure),
}

/// Runs something inside a running instance and waits for its end.
pub fn enter(
    layout: &Layout,
    spec: &InstanceSpec,
    running: &Running,
    exe: &Path,
    inside: Inside,
    options: EnterOptions,
) -> Result<EnterResult, Error> {
    let failed = |operation: &str| {
        let (instance, operation) = (spec.id.clone(), operation.to_owned());
        move |source: std::io::Error| Error::Enter { instance, operation, source }
    };
    if let (spec::Program::Container(program), Inside::Command(command)) = (&spec.program, &inside) {
        let user = if options.as_root { Some("0") } else { None };
        return Ok(engine::exec(spec, program, command.clone(), user, options)?);
    }
    let timeout_ms = options.timeout.as_millis() as u64;
    let init = running.process();
    let request =
        Request { layout: layout.clone(), spec: spec.clone(), init, inside, as_root: options.as_root, timeout_ms };
    // Both the request and the answer travel in this file: nothing else has to be handed down.
    let mut file = sys::memfd(c"palisade-enter").map_err(failed("make a file in memory"))?;
    serde_json::to_writer(&mut file, &request).map_err(|error| failed("write the request")(error.into()))?;
    file.rewind().map_err(failed("write the request"))?;
    let program = sys::own_program(exe).map_err(failed("open this program"))?;
    let (read, write) = pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|error| failed("make a pipe")(error.into()))?;
    let both = |fd: &OwnedFd| fd.try_clone().map(Stdio::from).map_err(failed("make a pipe"));
    let mut command = Command::new(super::descriptor_path(&program));
    command.arg0("palisade").arg("__enter").env_clear().current_dir("/");
    command
        .stdin(file.try_clone().map_err(failed("hand the request down"))?)
        .stdout(both(&write)?)
        .stderr(both(&write)?);
    let mut child = command.spawn().map_err(failed("start the helper"))?;
    drop((command, write));

    // The helper keeps the time itself; this is for a helper that hangs or was stopped.
    let deadline = Instant::now() + options.timeout + Duration::from_secs(5);
    let output = collect(&mut child, &read, deadline, options.output_bytes_max);
    let output = output.inspect_err(|_| drop((child.kill(), child.wait()))).map_err(failed("wait for the helper"))?;
    let mut text = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut text)).map_err(failed("read the answer"))?;
    match serde_json::from_slice(&text) {
        Ok(Answer::Ended { code }) => Ok(EnterResult { code: Some(code), output }),
        Ok(Answer::TimedOut) => Ok(EnterResult { code: None, output }),
        Ok(Answer::Failed(sent)) => {
            let failure = Failure::from(sent);
            Err(failed(&failure.operation)(failure.source))
        }
        // The instance's end (or its memory limit) took the helper with it.
        Err(_) => Err(failed("wait for the command")(std::io::Error::other("it was killed from outside"))),
    }
}

fn collect(
    child: &mut std::process::Child,
    pipe: &OwnedFd,
    deadline: Instant,
    bytes_max: usize,
) -> std::io::Result<Vec<u8>> {
    let mut output = Vec::new();
    let mut buffer = [0u8; 16 << 10];
    let nonblocking = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
    nix::fcntl::fcntl(pipe, nonblocking)?;
    let pidfd = sys::pidfd_open(child.id() as i32)?;
    loop {
        let ended = {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut polled = [
                nix::poll::PollFd::new(pipe.as_fd(), nix::poll::PollFlags::POLLIN),
                nix::poll::PollFd::new(pidfd.as_fd(), nix::poll::PollFlags::POLLIN),
            ];
            let wait_ms = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
            match nix::poll::poll(&mut polled, wait_ms) {
                Err(nix::Error::EINTR) => continue,
                other => other?,
            };
            polled[1].any().unwrap_or(false)
        };
        // What a child in the background goes on writing is not waited for, once the command has ended.
        let mut closed = false;
        while let Ok(length) = nix::unistd::read(pipe, &mut buffer) {
            if length == 0 {
                closed = true;
                break;
            }
            let room = bytes_max.saturating_sub(output.len()).min(length);
            output.extend_from_slice(&buffer[..room]);
            if ended && output.len() >= bytes_max {
                break;
            }
        }
        if ended {
            child.wait()?;
            return Ok(output);
        }
        if Instant::now() >= deadline {
            child.kill()?;
        } else if closed {
            // A closed pipe is always readable: only the end is left to wait for.
            let left = deadline.saturating_duration_since(Instant::now());
            sys::wait_readable(pidfd.as_fd(), left)?;
        }
    }
}

/// Entry point of the hidden verb `__enter`. Its standard input is the caller's request.
pub fn enter_main() -> ! {
    let outcome = (|| {
        let step =
            |result: std::io::Result<()>, what: &str| result.map_err(|source| Failure::new(what.to_owned(), source));
        let input = std::io::stdin().as_fd().try_clone_to_owned();
        let mut file = File::from(input.map_err(|source| Failure::new("take over standard input".into(), source))?);
        let mut text = Vec::new();
        step(file.read_to_end(&mut text).map(drop), "read the request")?;
        let request: Request = serde_json::from_slice(&text)
            .map_err(|error| Failure::new("understand the request".into(), error.into()))?;
        Ok((file, request))
    })();
    let (mut file, answer) = match outcome {
        Ok((file, request)) => (file, run(&request).unwrap_or_else(|failure: Failure| Answer::Failed(failure.into()))),
        Err::<_, Failure>(_) => exit(1),
    };
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(&serde_json::to_vec(&answer)?));
    exit(i32::from(written.is_err()))
}

fn run(request: &Request) -> Result<Answer, Failure> {
    let Request { layout, spec, init, .. } = request;
    let step = |result: std::io::Result<()>, what: &str| result.map_err(|source| Failure::new(what.to_owned(), source));
    step(sys::prctl(libc::PR_SET_DUMPABLE, 0).map(drop), "forbid tracing")?;
    step(sys::cloexec_from(3), "mark inherited files")?;
    let output =
        std::io::stdout().as_fd().try_clone_to_owned().map_err(|e| Failure::new("take over the output".into(), e))?;
    take_stdio().map_err(|source| Failure::new("take over standard input and output".into(), source))?;

    let user = if request.as_root { None } else { spec.program.process().and_then(|process| process.user.as_deref()) };
    let own = |fd: OwnedFd, arguments: &[String]| {
        Program::Own(fd, ["palisade".to_owned()].into_iter().chain(arguments.iter().cloned()).collect())
    };
    let program = match &request.inside {
        Inside::Command(line) => Program::Command(line.clone()),
        Inside::Own(arguments) => {
            // Already a read-only view of the program, see `sys::own_program`.
            let fd = File::open("/proc/self/exe").map_err(|source| Failure::new("open this program".into(), source))?;
            own(fd.into(), arguments)
        }
        Inside::Same(arguments) => {
            let path = spec.own_program.as_ref().map_or(Path::new("/proc/self/exe"), |own| &own.file);
            let fd = sys::own_program(path);
            own(fd.map_err(|source| Failure::new(format!("open {}", path.display()), source))?, arguments)
        }
    };
    let confinement = join(layout, spec, init, user)?;
    let (result_read, result_write) =
        pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|error| Failure::new("make a pipe".into(), error.into()))?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }.map_err(|error| Failure::new("fork the command".into(), error.into()))? {
        ForkResult::Child => {
            let redirected = nix::unistd::dup2_stdout(&output).and_then(|()| nix::unistd::dup2_stderr(&output));
            let failure = match redirected {
                Ok(()) => confinement.exec(program),
                Err(error) => Failure::new("redirect the output".into(), error.into()),
            };
            if let Ok(text) = serde_json::to_vec(&SentFailure::from(failure)) {
                let _ = File::from(result_write).write_all(&text);
            }
            exit(127)
        }
        ForkResult::Parent { child } => {
            drop((output, result_write));
            let mut text = Vec::new();
            step(File::from(result_read).read_to_end(&mut text).map(drop), "wait for the command's exec")?;
            if let Ok(sent) = serde_json::from_slice::<SentFailure>(&text) {
                let _ = waitpid(child, None);
                return Ok(Answer::Failed(sent));
            }
            let pidfd = sys::pidfd_open(child.as_raw()).map_err(|e| Failure::new("wait for the command".into(), e))?;
            let in_time = sys::wait_readable(pidfd.as_fd(), Duration::from_millis(request.timeout_ms));
            let in_time = in_time.map_err(|source| Failure::new("wait for the command".into(), source))?;
            if !in_time {
                // The command leads a session of its own, so this takes its children along.
                let _ = killpg(child, Signal::SIGKILL);
            }
            let status =
                waitpid(child, None).map_err(|error| Failure::new("wait for the command".into(), error.into()))?;
            Ok(match status {
                _ if !in_time => Answer::TimedOut,
                WaitStatus::Exited(_, code) => Answer::Ended { code },
                WaitStatus::Signaled(_, signal, _) => Answer::Ended { code: 128 + signal as i32 },
                _ => Answer::Ended { code: 255 },
            })
        }
    }
}

/// Brings the calling process into the cgroups and namespaces of the instance, but for the PID namespace, which only its
/// children enter. Returns as what they are to run.
pub(super) fn join(
    layout: &Layout,
    spec: &InstanceSpec,
    init: &InitProcess,
    user: Option<&str>,
) -> Result<Confinement, Failure> {
    let pidfd =
        sys::pidfd_open(init.pid).map_err(|source| Failure::new("find the instance's init process".into(), source))?;
    if sys::start_time(init.pid) != Some(init.start_time) {
        let gone = std::io::Error::from_raw_os_error(libc::ESRCH);
        return Err(Failure::new("find the instance's init process".into(), gone));
    }
    let identity = user::resolve(user, &spec.settings.groups, Path::new("/etc"));
    let identity =
        identity.map_err(|error| Failure::new("find the service's user".into(), std::io::Error::other(error)))?;
    let confinement = Confinement::of(spec, identity)?;
    let mut cgroup = Cgroup::of(layout, spec);
    let mut namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    if spec.program.container().is_some() {
        // Our program can't run on the container's files. What it asks the guard depends on the cgroup alone, and the
        // one that holds containers may hold no processes itself.
        cgroup = cgroup.map(|cgroup| cgroup.below("probe"));
        namespaces = CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    }
    let joined =
        cgroup.and_then(|cgroup| cgroup.create().and_then(|()| cgroup.create_v1()).and_then(|()| cgroup.join()));
    joined.map_err(|error| Failure::new("join the instance's cgroup".into(), std::io::Error::other(error)))?;
    setns(&pidfd, namespaces).map_err(|error| Failure::new("join the instance's namespaces".into(), error.into()))?;
    Ok(confinement)
}
