//! How the agent is spoken to: one JSON object a line in each direction, over a socket that only root can open.
//!
//! The client's half is here; what requests do is in [`super::server`].

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use palisade_core::instance::{Hosts, InstanceSpec, InstanceStatus};
use palisade_core::names::InstanceId;

use crate::layout::Layout;

/// Longer than any request may take: starting is quick, and stopping takes the grace period and then ends.
const SLACK: Duration = Duration::from_secs(60);

/// What can be asked of an agent.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    Hello,
    Status,
    Start { spec: Box<InstanceSpec> },
    Stop { id: InstanceId },
    Remove { id: InstanceId },
    Restart { id: InstanceId },
    SetHosts { id: InstanceId, hosts: Hosts },
    Shutdown,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Response {
    Hello {
        pid: i32,
        /// Digest of its program; versions that don't tell it are older than this field.
        #[serde(default)]
        program: Option<String>,
    },
    Status {
        instances: Vec<InstanceStatus>,
    },
    Done,
    Hosts {
        old: Option<Hosts>,
    },
    Failed {
        message: String,
    },
}

/// What went wrong between us and an agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No agent runs, or it doesn't listen.
    #[error("no agent answers at {socket}")]
    Away {
        /// Where it would listen.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It stopped answering in the middle.
    #[error("the agent at {socket} broke off while it was asked to {request}")]
    BrokeOff {
        /// Where it listens.
        socket: PathBuf,
        /// "start web.1" …
        request: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It could not do as it was asked. The message is the agent's, with all causes.
    #[error("{0}")]
    Refused(String),
    /// The program of one that is to be replaced can't be kept to go back to.
    #[error("cannot open the program of the agent that runs, {}", path.display())]
    Unknown {
        /// The program.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another version didn't start, and the former one runs again, or doesn't. The messages are the agents'.
    #[error("the agent of this version doesn't start ({newer}); {former}")]
    NotReplaced {
        /// Why the new one didn't start.
        newer: String,
        /// What became of the former one.
        former: String,
    },
    /// It could not be started. The message is the new agent's.
    #[error("cannot start the agent: {0}")]
    NotStarted(String),
}

/// Who an agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its process.
    pub pid: i32,
    /// What stands for its program's content, see [`crate::program::own_digest`]; `None`: it is of a version that doesn't tell.
    pub program: Option<String>,
}

/// A connection to an agent.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    stream: BufReader<UnixStream>,
}

/// The socket's path by way of its opened folder: a path to a socket may have no more than 107 characters.
pub(super) fn short_socket_path(layout: &Layout) -> io::Result<(File, PathBuf)> {
    let folder = File::open(layout.run())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/agent.sock", folder.as_raw_fd()));
    Ok((folder, path))
}

impl Client {
    /// Connects to the stack's agent.
    pub fn connect(layout: &Layout) -> Result<Self, AgentError> {
        let socket = layout.agent_socket();
        let stream = short_socket_path(layout).and_then(|(_folder, path)| UnixStream::connect(path));
        let stream = stream.map_err(|source| AgentError::Away { socket: socket.clone(), source })?;
        Ok(Self { socket, stream: BufReader::new(stream) })
    }

    fn ask(&mut self, what: &str, request: &Request, patience: Option<Duration>) -> Result<Response, AgentError> {
        let broke_off = |source| AgentError::BrokeOff { socket: self.socket.clone(), request: what.to_owned(), source };
        let mut line = serde_json::to_vec(request).map_err(|error| broke_off(error.into()))?;
        line.push(b'\n');
        let mut answer = String::new();
        let stream = self.stream.get_mut();
        let asked = stream.set_read_timeout(patience).and_then(|()| stream.write_all(&line));
        let read = asked.and_then(|()| self.stream.read_line(&mut answer));
        let response = read.and_then(|length| match length {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => serde_json::from_str(&answer).map_err(io::Error::from),
        });
        match response {
            Ok(Response::Failed { message }) => Err(AgentError::Refused(message)),
            other => other.map_err(|source| AgentError::BrokeOff {
                socket: self.socket.clone(),
                request: what.to_owned(),
                source,
            }),
        }
    }

    fn unexpected<T>(&self, what: &str, response: &Response) -> Result<T, AgentError> {
        let source = io::Error::new(io::ErrorKind::InvalidData, format!("unexpected answer {response:?}"));
        Err(AgentError::BrokeOff { socket: self.socket.clone(), request: what.to_owned(), source })
    }

    fn done(&mut self, what: &str, request: &Request, patience: Option<Duration>) -> Result<(), AgentError> {
        match self.ask(what, request, patience)? {
            Response::Done => Ok(()),
            other => self.unexpected(what, &other),
        }
    }

    /// Who the agent is.
    pub fn identity(&mut self) -> Result<Identity, AgentError> {
        let what = "tell its process id";
        match self.ask(what, &Request::Hello, Some(SLACK))? {
            Response::Hello { pid, program } => Ok(Identity { pid, program }),
            other => self.unexpected(what, &other),
        }
    }

    /// The status of every instance that it knows. Quick, whatever it is doing.
    pub fn status(&mut self) -> Result<Vec<InstanceStatus>, AgentError> {
        let what = "tell the status";
        match self.ask(what, &Request::Status, Some(SLACK))? {
            Response::Status { instances } => Ok(instances),
            other => self.unexpected(what, &other),
        }
    }

    /// Starts an instance, or does nothing if it runs with the same spec. Returns once its program was executed.
    /// The instance's cgroup must exist and be guarded.
    pub fn start(&mut self, spec: &InstanceSpec) -> Result<(), AgentError> {
        let request = Request::Start { spec: Box::new(spec.clone()) };
        self.done(&format!("start {}", spec.id), &request, Some(SLACK))
    }

    /// Ends an instance and keeps it ended. Returns when nothing of it runs, after its grace period at the latest.
    pub fn stop(&mut self, id: &InstanceId) -> Result<(), AgentError> {
        self.done(&format!("stop {id}"), &Request::Stop { id: id.clone() }, None)
    }

    /// Ends an instance if it runs and forgets it: its folder and cgroup go, its log and volumes stay.
    pub fn remove(&mut self, id: &InstanceId) -> Result<(), AgentError> {
        self.done(&format!("remove {id}"), &Request::Remove { id: id.clone() }, None)
    }

    /// Ends an instance and starts it again with the spec that it has.
    pub fn restart(&mut self, id: &InstanceId) -> Result<(), AgentError> {
        self.done(&format!("restart {id}"), &Request::Restart { id: id.clone() }, None)
    }

    /// Gives an instance other names in its hosts file, now and for later starts; returns those it had.
    /// `None`: the agent doesn't know the instance.
    pub fn set_hosts(&mut self, id: &InstanceId, hosts: &Hosts) -> Result<Option<Hosts>, AgentError> {
        let what = format!("change the hosts file of {id}");
        match self.ask(&what, &Request::SetHosts { id: id.clone(), hosts: hosts.clone() }, Some(SLACK))? {
            Response::Hosts { old } => Ok(old),
            other => self.unexpected(&what, &other),
        }
    }

    /// Ends the agent. Its instances go on, supervised by nobody.
    pub fn shutdown(mut self) -> Result<(), AgentError> {
        let Identity { pid, .. } = self.identity()?;
        let process = crate::runtime::sys::pidfd_open(pid);
        self.done("end", &Request::Shutdown, Some(SLACK))?;
        if let Ok(process) = process {
            let _ = crate::runtime::sys::wait_readable(std::os::fd::AsFd::as_fd(&process), SLACK);
        }
        Ok(())
    }
}
