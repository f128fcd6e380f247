//! The container engine of this host: Docker Engine, or Podman through its compatible socket.
//!
//! Containers, volumes and questions go through the engine's API. Images are fetched by its command line tool, because that
//! knows the user's registry credentials, build secrets and `.dockerignore`, and shows its progress. Whether and when
//! anything runs is the agent's business.

mod attach;
mod body;
mod change;
mod container;
mod fetch;
mod filter;
mod inspect;
mod look;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::{API_DEFAULT_VERSION, Docker};

pub(crate) use attach::attach;
pub use change::{create_volume, other_users_of, remove_foreign, remove_volume, start_foreign, stop_foreign};
pub(crate) use container::{Started, end, exec, follow, running, start, take_away};
pub use fetch::{FetchError, fetch};
pub(crate) use inspect::InspectedContainer;
pub use look::look;

/// The engine answers within this time, or counts as away. Starting a container on a busy disk takes seconds.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Where engines listen, in the order in which they are looked for.
const SOCKETS: [&str; 3] = ["/run/docker.sock", "/var/run/docker.sock", "/run/podman/podman.sock"];

/// Labels of ours: the realm and the stack's instance that a container is, and what it was made of.
pub(crate) const LABEL_REALM: &str = "dev.palisade.realm";
pub(crate) const LABEL_INSTANCE: &str = "dev.palisade.instance";
pub(crate) const LABEL_SPEC: &str = "dev.palisade.spec";
/// Labels of Docker Compose, by which it and other tools know a stack's containers.
pub(crate) const COMPOSE_PROJECT: &str = "com.docker.compose.project";
pub(crate) const COMPOSE_SERVICE: &str = "com.docker.compose.service";

/// The engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It doesn't answer.
    #[error("the container engine at {} doesn't answer", socket.display())]
    Away {
        /// Its socket.
        socket: PathBuf,
        /// What the client's layers have wrapped.
        #[source]
        source: std::io::Error,
    },
    /// It refuses, or fails.
    #[error("the container engine can't {operation}")]
    Refused {
        /// "start container shop-app-1" …
        operation: String,
        /// What it says.
        #[source]
        source: bollard::errors::Error,
    },
    /// Somebody else has the name.
    #[error("there is a container called {name} already, and it isn't Palisade's")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The engine didn't put the container where it was told to.
    #[error("the container engine put {name} into the cgroup {cgroup}, where the guard can't hold it; it was stopped")]
    Elsewhere {
        /// The container.
        name: String,
        /// Where it was.
        cgroup: String,
    },
    /// The engine's client could not be set up.
    #[error("cannot {operation}")]
    Local {
        /// "make the folder …"
        operation: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl EngineError {
    /// It doesn't answer, so trying again later makes sense.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Away { .. })
    }
    /// There is no such thing at the engine.
    fn is_missing(&self) -> bool {
        matches!(
            self,
            Self::Refused { source: bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }, .. }
        )
    }
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Away { .. } => Some("is it running? `systemctl status docker`".to_owned()),
            Self::NameTaken { name } => {
                Some(format!("look at it with `docker inspect {name}`; take it away (`docker rm {name}`) or rename it"))
            }
            Self::Elsewhere { .. } => Some(
                "the engine's cgroup driver and its parent (`docker info`), and runc, decide that: please report it with their versions".to_owned(),
            ),
            Self::Refused { .. } | Self::Local { .. } => None,
        }
    }
}

/// A connection to an engine. Every question is asked on a connection of its own, so it can be kept.
pub struct Engine {
    runtime: tokio::runtime::Runtime,
    docker: Docker,
    socket: PathBuf,
}

impl Engine {
    /// Of the engine that listens there.
    pub fn connect(socket: &Path) -> Result<Self, EngineError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|source| EngineError::Local { operation: "start the engine's client".to_owned(), source })?;
        let away = |source| EngineError::Away { socket: socket.to_owned(), source: root_cause(&source) };
        let connected = runtime.block_on(async {
            let docker = Docker::connect_with_unix(&socket.to_string_lossy(), TIMEOUT.as_secs(), API_DEFAULT_VERSION)?;
            // Engines refuse versions that are newer than they are, and newer ones also those that are long gone.
            docker.negotiate_version().await
        });
        let docker = connected.map_err(away)?;
        Ok(Self { runtime, docker, socket: socket.to_owned() })
    }

    /// Waits for an answer; `operation` is what can't be done if there is none.
    fn ask<T>(
        &self,
        operation: impl FnOnce() -> String,
        question: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, EngineError> {
        use bollard::errors::Error;
        self.runtime.block_on(question).map_err(|source| match source {
            Error::HyperResponseError { .. }
            | Error::HyperLegacyError { .. }
            | Error::SocketNotFoundError(_)
            | Error::IOError { .. } => EngineError::Away { socket: self.socket.clone(), source: root_cause(&source) },
            _ => EngineError::Refused { operation: operation(), source },
        })
    }
}

/// The client wraps "connection refused" three times, and says "client error" each time.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> std::io::Error {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    match deepest.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
        Some(code) => std::io::Error::from_raw_os_error(code),
        None => std::io::Error::other(deepest.to_string()),
    }
}

/// Podman, by its socket: its command line tool and some of its answers are its own.
fn is_podman(socket: &Path) -> bool {
    socket.ends_with("podman.sock")
}

/// The socket of this host's engine: `DOCKER_HOST` if it is set, or the first usual place where one is.
pub fn socket(docker_host: Option<&str>) -> Result<PathBuf, String> {
    match docker_host.filter(|host| !host.is_empty()) {
        Some(host) => match host.strip_prefix("unix://") {
            Some(path) => Ok(PathBuf::from(path)),
            None => Err(format!(
                "DOCKER_HOST is {host}, and only an engine of this host (unix://…) can run guarded containers"
            )),
        },
        None => {
            let found = SOCKETS.iter().map(Path::new).find(|path| path.exists());
            found.map(Path::to_owned).ok_or_else(|| "no container engine listens on this host".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_engine_of_this_host_will_do() {
        assert_eq!(socket(Some("unix:///run/user/1000/docker.sock")).unwrap(), Path::new("/run/user/1000/docker.sock"));
        assert!(socket(Some("tcp://192.0.2.1:2375")).unwrap_err().contains("only an engine of this host"));
    }
}
