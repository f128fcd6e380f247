//! Runs a command inside a running instance for somebody who sits at it: with standard input and output, a terminal if
//! that is wished, and signals passed on.
//!
//! Like [`super::enter`], a helper (hidden verb `__attach`) joins the instance. It never gets a terminal of the host: one
//! that is given to a service stays in the hands of whatever it leaves in the background.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio, exit};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, pipe2};
use palisade_core::instance::{self as spec, InstanceSpec};
use serde::{Deserialize, Serialize};

use super::confine::Program;
use super::enter::join;
use super::init::{Failure, SentFailure, take_stdio};
use super::{Error, InitProcess, Running, sys};
use crate::engine;
use crate::layout::Layout;
use crate::terminal::{Raw, Signals, pass_size, size};

/// What was printed before the end is still shown, but what goes on printing in the background is not waited for longer.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What is run, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// An argument vector; the first is a path inside or a name for the service's PATH.
    pub command: Vec<String>,
    /// With a terminal of its own. Standard input should be one, too.
    pub terminal: bool,
}

#[derive(Serialize, Deserialize)]
struct Request {
    layout: Layout,
    spec: InstanceSpec,
    init: InitProcess,
    attach: Attach,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Ended { code: i32 },
    Failed(SentFailure),
}

/// Runs a command inside, with this process's standard input, output and error, and waits for its end. Returns its exit
/// code, or 128 + signal. User, folder and environment are those of `spec`. Signals are held back from then on.
pub fn attach(
    layout: &Layout,
    spec: &InstanceSpec,
    running: &Running,
    exe: &Path,
    attach: &Attach,
) -> Result<i32, Error> {
    let failed = |operation: &str| {
        let (instance, operation) = (spec.id.clone(), operation.to_owned());
        move |source: io::Error| Error::Enter { instance, operation, source }
    };
    let signals = Signals::hold().map_err(failed("hold signals back"))?;
    if let spec::Program::Container(program) = &spec.program {
        return Ok(engine::attach(spec, program, attach, signals)?);
    }
    let request =
        Request { layout: layout.clone(), spec: spec.clone(), init: running.process(), attach: attach.clone() };
    let mut file = sys::memfd(c"palisade-attach").map_err(failed("make a file in memory"))?;
    serde_json::to_writer(&mut file, &request).map_err(|error| failed("write the request")(error.into()))?;
    file.rewind().map_err(failed("write the request"))?;
    let program = sys::own_program(exe).map_err(failed("open this program"))?;
    let mut command = Command::new(super::descriptor_path(&program));
    let number = file.as_raw_fd();
    command.arg0("palisade").args(["__attach", &number.to_string()]).env_clear().current_dir("/");
    // Ctrl-C on our terminal is passed on by us, once.
    command.process_group(0);
    // SAFETY: only system calls that are safe after a fork.
    unsafe {
        command.pre_exec(move || {
            nix::fcntl::fcntl(
                BorrowedFd::borrow_raw(number),
                nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
            )?;
            // When we are killed, the command hears of it as from a terminal that is gone.
            Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGHUP)?)
        });
    }
    let console = match attach.terminal {
        true => Some(nix::pty::openpty(size().as_ref(), None).map_err(|e| failed("make a terminal")(e.into()))?),
        false => None,
    };
    let pipe_or_own = |ours: bool| if ours { Stdio::piped() } else { Stdio::inherit() };
    match &console {
        Some(pty) => {
            let slave = || pty.slave.try_clone().map(Stdio::from).map_err(failed("make a terminal"));
            command.stdin(slave()?).stdout(slave()?).stderr(slave()?);
        }
        None => {
            command.stdin(pipe_or_own(io::stdin().is_terminal()));
            command.stdout(pipe_or_own(io::stdout().is_terminal()));
            command.stderr(pipe_or_own(io::stderr().is_terminal()));
        }
    }
    let mut child = command.spawn().map_err(failed("start the helper"))?;
    drop(command);
    let master = console.map(|pty| pty.master);
    let _raw = match &master {
        Some(_) => Raw::of_stdin().map_err(failed("use the terminal"))?,
        None => None,
    };
    let input: Option<OwnedFd> = match &master {
        Some(master) => Some(master.try_clone().map_err(failed("use the terminal"))?),
        None => child.stdin.take().map(Into::into),
    };
    if let Some(input) = input {
        pass_input(input).map_err(failed("start a thread"))?;
    }
    let outputs: Vec<(OwnedFd, i32)> = match &master {
        Some(master) => vec![(master.try_clone().map_err(failed("use the terminal"))?, 1)],
        None => {
            let out = child.stdout.take().map(|pipe| (OwnedFd::from(pipe), 1));
            out.into_iter().chain(child.stderr.take().map(|pipe| (OwnedFd::from(pipe), 2))).collect()
        }
    };
    let relayed = relay(&child, outputs, master.as_ref(), &signals);
    relayed.inspect_err(|_| drop((child.kill(), child.wait()))).map_err(failed("wait for the helper"))?;
    child.wait().map_err(failed("wait for the helper"))?;
    let mut text = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut text)).map_err(failed("read the answer"))?;
    match serde_json::from_slice(&text) {
        Ok(Answer::Ended { code }) => Ok(code),
        Ok(Answer::Failed(sent)) => {
            let failure = Failure::from(sent);
            Err(failed(&failure.operation)(failure.source))
        }
        Err(_) => Err(failed("wait for the command")(io::Error::other("its instance was stopped, or it was killed"))),
    }
}

/// Passes standard input on until its end, on a thread that nobody waits for.
fn pass_input(to: OwnedFd) -> io::Result<()> {
    let work = move || {
        let (mut from, mut to) = (io::stdin(), File::from(to));
        let mut buffer = [0u8; 8 << 10];
        while let Ok(length) = from.read(&mut buffer)
            && length > 0
            && to.write_all(&buffer[..length]).is_ok()
        {}
    };
    std::thread::Builder::new().name("input".into()).spawn(work).map(drop)
}

/// Shows what the command prints and passes signals on, until the helper ends.
fn relay(
    child: &std::process::Child,
    mut outputs: Vec<(OwnedFd, i32)>,
    console: Option<&OwnedFd>,
    signals: &Signals,
) -> io::Result<()> {
    let pid = child.id() as i32;
    let pidfd = sys::pidfd_open(pid)?;
    let mut ended: Option<Instant> = None;
    loop {
        let (signalled, over, ready) = {
            let mut polled =
                vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            polled.extend(outputs.iter().map(|(from, _)| PollFd::new(from.as_fd(), PollFlags::POLLIN)));
            match poll(&mut polled, if ended.is_some() { PollTimeout::ZERO } else { PollTimeout::NONE }) {
                Err(nix::Error::EINTR) => continue,
                other => other?,
            };
            let any = |polled: &PollFd<'_>| polled.any().unwrap_or(false);
            (any(&polled[0]), any(&polled[1]), polled[2..].iter().map(any).collect::<Vec<_>>())
        };
        let mut buffer = [0u8; 16 << 10];
        let mut open = ready.iter();
        outputs.retain(|(from, to)| {
            if open.next() != Some(&true) {
                return true;
            }
            // A terminal whose last user is gone answers with an error.
            let length = nix::unistd::read(from, &mut buffer).unwrap_or(0);
            let written = match to {
                1 => io::stdout().write_all(&buffer[..length]).and_then(|()| io::stdout().flush()),
                _ => io::stderr().write_all(&buffer[..length]),
            };
            // Where nobody reads us any more, the command learns it by its closed pipe.
            length > 0 && written.is_ok()
        });
        while signalled && let Some(signal) = signals.next() {
            match (signal, console) {
                (libc::SIGWINCH, Some(console)) => pass_size(console.as_fd()),
                (libc::SIGWINCH, None) => {}
                // SAFETY: takes two integers; the child isn't waited for yet, so its number is its own.
                _ => drop(unsafe { libc::kill(pid, signal) }),
            }
        }
        if over {
            let since = *ended.get_or_insert_with(Instant::now);
            if !ready.contains(&true) || outputs.is_empty() || since.elapsed() > LAST_WORDS {
                return Ok(());
            }
        }
    }
}

/// The command that the helper waits for.
static COMMAND: AtomicI32 = AtomicI32::new(0);

extern "C" fn pass_on(signal: i32) {
    let command = COMMAND.load(Ordering::SeqCst);
    if command > 0 {
        // SAFETY: async-signal-safe, takes two integers. The command leads a process group.
        unsafe { libc::kill(-command, signal) };
    }
}

/// Entry point of the hidden verb `__attach <descriptor>`; the descriptor is the caller's request, and takes the answer.
pub fn attach_main() -> ! {
    let number = std::env::args().nth(2).and_then(|number| number.parse::<i32>().ok()).filter(|number| *number > 2);
    let Some(number) = number else { exit(1) };
    // SAFETY: the caller handed this descriptor down for us alone; a wrong one gives an error when it is read.
    let mut file = unsafe { File::from_raw_fd(number) };
    let mut text = Vec::new();
    if file.read_to_end(&mut text).is_err() {
        exit(1)
    }
    let Ok(request) = serde_json::from_slice::<Request>(&text) else { exit(1) };
    let answer = run(&request).unwrap_or_else(|failure: Failure| Answer::Failed(failure.into()));
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(&serde_json::to_vec(&answer)?));
    exit(i32::from(written.is_err()))
}

fn run(request: &Request) -> Result<Answer, Failure> {
    let Request { layout, spec, init, attach } = request;
    let step = |result: io::Result<()>, what: &str| result.map_err(|source| Failure::new(what.to_owned(), source));
    step(sys::prctl(libc::PR_SET_DUMPABLE, 0).map(drop), "forbid tracing")?;
    step(sys::cloexec_from(3), "mark inherited files")?;
    let user = spec.program.process().and_then(|process| process.user.as_deref());
    let confinement = join(layout, spec, init, user)?;
    if attach.terminal {
        let (uid, gid) = (confinement.identity.uid.into(), confinement.identity.gid.into());
        step(nix::unistd::fchown(io::stdin(), Some(uid), Some(gid)).map_err(Into::into), "give the terminal away")?;
    }
    let action = SigAction::new(SigHandler::Handler(pass_on), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        // SAFETY: the handler makes one system call that is async-signal-safe.
        step(unsafe { sigaction(signal, &action) }.map(drop).map_err(Into::into), "take signals")?;
    }
    // Whoever started us holds them back.
    step(SigSet::all().thread_unblock().map_err(Into::into), "let signals come")?;
    let (result_read, result_write) =
        pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|error| Failure::new("make a pipe".into(), error.into()))?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }.map_err(|error| Failure::new("fork the command".into(), error.into()))? {
        ForkResult::Child => {
            let failure = match lead_session(attach.terminal) {
                Ok(()) => confinement.exec(Program::Command(attach.command.clone())),
                Err(error) => Failure::new("take the terminal".into(), error),
            };
            if let Ok(text) = serde_json::to_vec(&SentFailure::from(failure)) {
                let _ = File::from(result_write).write_all(&text);
            }
            exit(127)
        }
        ForkResult::Parent { child } => {
            COMMAND.store(child.as_raw(), Ordering::SeqCst);
            drop(result_write);
            // Whoever reads what the command prints is to see its end.
            step(take_stdio().map(drop), "let go of standard input and output")?;
            let mut text = Vec::new();
            step(File::from(result_read).read_to_end(&mut text).map(drop), "wait for the command's exec")?;
            if let Ok(sent) = serde_json::from_slice::<SentFailure>(&text) {
                let _ = waitpid(child, None);
                return Ok(Answer::Failed(sent));
            }
            let status =
                waitpid(child, None).map_err(|error| Failure::new("wait for the command".into(), error.into()))?;
            Ok(Answer::Ended {
                code: match status {
                    WaitStatus::Exited(_, code) => code,
                    WaitStatus::Signaled(_, signal, _) => 128 + signal as i32,
                    _ => 255,
                },
            })
        }
    }
}

/// A session of its own, so that it can't reach the terminal of whoever called; its terminal is standard input.
fn lead_session(terminal: bool) -> io::Result<()> {
    nix::unistd::setsid()?;
    if terminal {
        // SAFETY: takes integers only.
        nix::errno::Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })?;
    }
    Ok(())
}
