//! The agent: the long-running process that supervises the instances of one stack.
//!
//! It keeps them running as their restart policy says and knows their health. It holds no policy and opens no port: when
//! it dies, services and the guard go on, and the next agent takes over. What a stack should consist of is decided by
//! whoever asks it.

mod events;
mod protocol;
mod rules;
mod server;
mod ship;
mod supervise;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use palisade_core::causes::chain;

use crate::layout::Layout;

pub use events::{Event, EventSink};
pub use protocol::{AgentError, Client, Identity};
pub use server::{Task, agent_main};

/// Connects to the stack's agent; starts one with the program `exe` if none answers.
pub fn ensure(layout: &Layout, exe: &Path) -> Result<Client, AgentError> {
    if let Ok(client) = Client::connect(layout) {
        return Ok(client);
    }
    let mut command = Command::new(exe);
    command
        .args(["__agent", &layout.realm, layout.project.as_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    die_with_parent(&mut command);
    let message = match command.output() {
        Ok(output) if output.status.success() => return Client::connect(layout),
        Ok(output) => match String::from_utf8_lossy(&output.stderr).trim() {
            "" => format!("{}: {}", exe.display(), output.status),
            message => message.to_owned(),
        },
        Err(error) => format!("{}: {error}", exe.display()),
    };
    // Somebody else may have started one at the same moment.
    Client::connect(layout).map_err(|_| AgentError::NotStarted(message))
}

/// Has an agent of the program `exe` take over from the one that runs, whatever version that is. When the new one doesn't
/// start, the former one is started again from the file that it ran from, which may have no name any more.
pub fn replace(layout: &Layout, exe: &Path) -> Result<(), AgentError> {
    let mut former = Client::connect(layout)?;
    let path = PathBuf::from(format!("/proc/{}/exe", former.identity()?.pid));
    let program = File::open(&path).map_err(|source| AgentError::Unknown { path, source })?;
    former.shutdown()?;
    let newer = match ensure(layout, exe) {
        Ok(_) => return Ok(()),
        Err(AgentError::NotStarted(message)) => message,
        Err(error) => chain(&error),
    };
    let former = match ensure(layout, Path::new(&format!("/proc/self/fd/{}", program.as_raw_fd()))) {
        Ok(_) => "the former one goes on".to_owned(),
        Err(error) => {
            format!("nor does the former one ({}): services run on, and nothing restarts them", chain(&error))
        }
    };
    Err(AgentError::NotReplaced { newer, former })
}

/// Kills what it starts when the calling thread is gone: an agent that is not in its cgroup yet would come up after
/// everything of a killed run has been cleared, and nobody would find it. The daemon does not inherit it.
fn die_with_parent(command: &mut Command) {
    let parent = nix::unistd::getpid();
    // SAFETY: only system calls that are safe after a fork.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            // It may have died before it was asked for.
            if nix::unistd::getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
        });
    }
}
