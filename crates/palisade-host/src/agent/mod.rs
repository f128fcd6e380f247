//! The agent: the long-running process that supervises the instances of one stack.
//!
//! It keeps them running as their restart policy says and knows their health. It holds no policy and opens no port: when
//! it dies, services and the guard go on, and the next agent takes over. What a stack should consist of is decided by
//! whoever asks it.

mod events;
mod protocol;
mod rules;
mod server;
mod supervise;

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
    let started = Command::new(exe)
        .args(["__agent", &layout.realm, layout.project.as_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output();
    let message = match started {
        Ok(output) if output.status.success() => return Client::connect(layout),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("{}: {error}", exe.display()),
    };
    // Somebody else may have started one at the same moment.
    Client::connect(layout).map_err(|_| AgentError::NotStarted(message))
}
