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

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::layout::Layout;

pub use events::{Event, EventSink};
pub use protocol::{AgentError, Client};
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
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("{}: {error}", exe.display()),
    };
    // Somebody else may have started one at the same moment.
    Client::connect(layout).map_err(|_| AgentError::NotStarted(message))
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
