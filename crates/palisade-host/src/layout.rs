//! Where one stack keeps its state, logs, volumes, cgroups and pins.
//!
//! Only names are made here; nothing is created.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

use palisade_core::names::{InstanceId, ProjectName};

/// The realm of a real host.
pub const HOST_REALM: &str = "palisade";

/// The places of one stack on a host, or of one rehearsal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// `palisade` on a host, `palisade-rehearse-…` in a rehearsal: names the cgroup subtree and the state folders.
    pub realm: String,
    /// The stack.
    pub project: ProjectName,
}

impl Layout {
    /// The stack's places on the real host.
    pub fn host(project: ProjectName) -> Self {
        Self { realm: HOST_REALM.into(), project }
    }
    /// Volatile state of everything in the realm: `/run/palisade`.
    pub fn realm_run(&self) -> PathBuf {
        Path::new("/run").join(&self.realm)
    }
    /// Volatile state of the stack: `/run/palisade/<project>`, mode 0700.
    pub fn run(&self) -> PathBuf {
        self.realm_run().join(self.project.as_str())
    }
    /// What was applied.
    pub fn state(&self) -> PathBuf {
        self.run().join("state.json")
    }
    /// The agent's control socket.
    pub fn agent_socket(&self) -> PathBuf {
        self.run().join("agent.sock")
    }
    /// One folder for each instance: `spec.json`, `status.json`, `exit`.
    pub fn instance(&self, id: &InstanceId) -> PathBuf {
        self.run().join("instances").join(id.to_string())
    }
    /// By which the edge and those who speak with it find each other: control sockets, and what the edge is told.
    pub fn edge(&self) -> PathBuf {
        self.run().join("edge")
    }
    /// A version of Palisade's own program that something of the stack runs.
    pub fn program(&self, digest: &str) -> PathBuf {
        self.programs().join(digest)
    }
    /// Where all of those are.
    pub fn programs(&self) -> PathBuf {
        self.lib().join("programs")
    }
    /// Refusals and health changes, one JSON object a line.
    pub fn events(&self) -> PathBuf {
        self.run().join("events.jsonl")
    }
    /// What outlives a reboot: `/var/lib/palisade/<project>`.
    pub fn lib(&self) -> PathBuf {
        Path::new("/var/lib").join(&self.realm).join(self.project.as_str())
    }
    /// What the stack was, one folder for each time that it was brought up with changes; mode 0700, as it holds secrets.
    pub fn generations(&self) -> PathBuf {
        self.lib().join("generations")
    }
    /// A named volume's data.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.lib().join("volumes").join(name)
    }
    /// The data of a volume that has a name of its own and may be used by several stacks. No project is called like the
    /// folder that it is in.
    pub fn named_volume(&self, name: &str) -> PathBuf {
        self.named_volumes().join(name)
    }
    /// Where all of those are.
    pub fn named_volumes(&self) -> PathBuf {
        Path::new("/var/lib").join(&self.realm).join("_volumes")
    }
    /// Notes, one empty file each, which of those this stack has made.
    pub fn made_volumes(&self) -> PathBuf {
        self.lib().join("made-volumes")
    }
    /// Logs of the stack: `/var/log/palisade/<project>`.
    pub fn log_directory(&self) -> PathBuf {
        Path::new("/var/log").join(&self.realm).join(self.project.as_str())
    }
    /// The log of an instance; rotated ones get `.1`, `.2` … appended.
    pub fn log(&self, id: &InstanceId) -> PathBuf {
        self.log_directory().join(format!("{id}.log"))
    }
    /// Path of the stack's cgroup below a cgroup mount: `palisade/<project>`.
    pub fn cgroup(&self) -> PathBuf {
        Path::new(&self.realm).join(self.project.as_str())
    }
    /// Path of an instance's cgroup below a cgroup mount.
    pub fn instance_cgroup(&self, id: &InstanceId) -> PathBuf {
        self.cgroup().join(id.to_string())
    }
}
