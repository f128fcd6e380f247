//! Why an action failed, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use palisade_core::names::InstanceId;
use palisade_edge::acme::EnsureError;
use palisade_guard::GuardError;
use palisade_host::agent::AgentError;
use palisade_host::cgroup;
use palisade_host::engine::{EngineError, FetchError};
use palisade_host::firewall::FirewallError;
use palisade_host::firewall::pending::PendingError;
use palisade_host::link::LinkError;
use palisade_host::nft::ToolError;
use palisade_host::runtime;
use palisade_host::sockets::SocketsError;

use crate::edge::TellError;
use crate::exit::Lacking;
use crate::state::StateError;

/// An action that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    /// The guard.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// The firewall.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// A change of the firewall, or one that waits to be confirmed.
    #[error(transparent)]
    Pending(#[from] PendingError),
    /// Nobody confirmed the firewall.
    #[error("nobody confirmed it in time, so the firewall is as it was before")]
    NotConfirmed,
    /// An address on loopback.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Clients that the edge has had banned.
    #[error("can't change who is banned")]
    Bans(#[from] ToolError),
    /// The edge.
    #[error(transparent)]
    Edge(#[from] TellError),
    /// The edge's certificates.
    #[error("the edge's certificates can't be put in place")]
    Certificates(#[from] EnsureError),
    /// The container engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An image.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// There is no engine although the plan needs one.
    #[error("no container engine is known")]
    NoEngine,
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The runtime.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// The kernel's sockets.
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    /// Our own notes.
    #[error(transparent)]
    State(#[from] StateError),
    /// A file or folder.
    #[error("{operation} {} failed", path.display())]
    Io {
        /// "making" …
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The guard isn't loaded.
    #[error("the guard isn't in the kernel")]
    NoGuard,
    /// Somebody else changes our slices.
    #[error("somebody has stopped {0} while the guard was attached to it")]
    SliceReplaced(String),
    /// The owner of a volume.
    #[error("this host has no user or group `{0}`")]
    NoUser(String),
    /// An instance did not come as far as it should.
    #[error("{id} {what}")]
    NotReady {
        /// Which.
        id: InstanceId,
        /// "exited with 1" …
        what: String,
        /// The end of its log.
        log: Vec<String>,
    },
    /// The user interrupted the waiting.
    #[error("interrupted")]
    Interrupted,
}

impl HostError {
    /// What the firewall has to do with it.
    fn firewall(&self) -> Option<&FirewallError> {
        match self {
            Self::Firewall(error) | Self::Pending(PendingError::Firewall(error)) => Some(error),
            _ => None,
        }
    }

    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self.firewall() {
            Some(FirewallError::Tool { source, .. }) => return source.hint().map(str::to_owned),
            Some(FirewallError::Doors(_)) => {
                return Some(
                    "start it, or write `firewall: {backend: nftables}` below x-palisade for a firewall of Palisade's own"
                        .to_owned(),
                );
            }
            _ => {}
        }
        match self {
            Self::NotReady { id, log, .. } => Some(match log.len() {
                0 => format!("{id} printed nothing"),
                _ => format!("the end of what {id} printed:\n    {}", log.join("\n    ")),
            }),
            Self::Engine(error) => error.hint(),
            Self::Pending(error) => error.hint().map(str::to_owned),
            Self::NotConfirmed => Some(
                "run `palisade up` again and `sudo palisade confirm` over a new SSH connection; give yourself more time \
                 with `--confirm-within 5m`, or say that there is another way in with `--no-confirm`"
                    .to_owned(),
            ),
            Self::NoUser(_) => Some("make the user, or name one that exists in x-palisade.process.user".to_owned()),
            _ => None,
        }
    }

    /// What this machine lacks, if that is the reason.
    pub(crate) fn lacking(&self) -> Option<Lacking> {
        let lacking = |what: &str, remedy: &str| Some(Lacking { what: what.to_owned(), remedy: remedy.to_owned() });
        if let Some(FirewallError::Tool { source: ToolError::Missing { program }, .. }) = self.firewall() {
            return lacking(
                &format!("`{program}` is not installed, and it is what changes the firewall"),
                "install the package nftables, or write `firewall: {backend: none}` below x-palisade",
            );
        }
        match self {
            Self::Cgroup(cgroup::Error::NoCgroup2) => {
                lacking("this machine has no cgroup2 mounted", "mount -t cgroup2 none /sys/fs/cgroup/unified")
            }
            Self::Fetch(FetchError::NoTool { program, .. }) => lacking(
                &format!("`{program}` is not installed, and it is what fetches images"),
                "install the engine's command line tool (docker-ce-cli, docker-cli, podman)",
            ),
            Self::Guard(GuardError::Load { log, source }) => {
                let text = format!("{log} {source}");
                let signs = ["EPERM", "Operation not permitted", "ENOSYS", "Function not implemented"];
                let forbidden = signs.iter().any(|sign| text.contains(sign));
                if forbidden { no_bpf() } else { None }
            }
            // Where a bpffs may not be mounted, programs may not be loaded either: root of a container, mostly.
            Self::Io { operation: MOUNTING, source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                no_bpf()
            }
            _ => None,
        }
    }
}

/// What is done to a bpffs.
pub(super) const MOUNTING: &str = "mounting a bpffs at";

fn no_bpf() -> Option<Lacking> {
    let what = "this kernel doesn't let eBPF programs be loaded, and they are what keeps services apart";
    let remedy = "Palisade needs Linux 5.15 or later with CONFIG_BPF_SYSCALL and without lockdown; inside a container it needs --privileged";
    Some(Lacking { what: what.to_owned(), remedy: remedy.to_owned() })
}

pub(super) fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostError {
    move |source| HostError::Io { operation, path: path.to_owned(), source }
}
