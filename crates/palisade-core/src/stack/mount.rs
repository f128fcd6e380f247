//! Mounts of services, and which volume of the stack each is.

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

use super::Service;
use crate::digest::digest_of;
use crate::names::ServiceName;

impl Service {
    /// Its mounts of the volume that the stack knows by this key.
    pub fn mounts_of(&self, key: &str) -> impl Iterator<Item = &Mount> {
        let is = move |mount: &&Mount| match &mount.source {
            MountSource::Volume(name) => name == key,
            MountSource::Anonymous { of } if key.starts_with(of.as_str()) => {
                (1..=self.replicas).any(|instance| mount.volume_key(&self.name, instance).as_deref() == Some(key))
            }
            _ => false,
        };
        self.mounts.iter().map(|mount| &mount.value).filter(is)
    }
}

/// A mount of the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where it comes from.
    pub source: MountSource,
    /// Absolute path inside the service.
    pub target: PathBuf,
    /// `:ro`.
    pub read_only: bool,
    /// `nocopy`: a new volume doesn't begin with what the image has at the target.
    pub nocopy: bool,
}

/// Where a mount comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A directory or file of the host, absolute.
    Bind(PathBuf),
    /// A named volume of the stack.
    Volume(String),
    /// A volume without a name: each instance of the service has one of its own, which outlives it.
    Anonymous {
        /// The service that says so: another one has it by `volumes_from`.
        of: ServiceName,
    },
    /// Memory.
    Tmpfs {
        /// Bytes at most, if given.
        size_bytes: Option<u64>,
        /// Permission bits of its root; 1777 unless given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
    },
}

impl Mount {
    /// The stack's key of the volume that an instance of the service has here, if it is one. Of volumes without a name
    /// the first instance's is what other services see.
    pub fn volume_key(&self, service: &ServiceName, instance: u8) -> Option<String> {
        match &self.source {
            MountSource::Volume(key) => Some(key.clone()),
            MountSource::Anonymous { of } => {
                Some(anonymous_key(of, if of == service { instance } else { 1 }, &self.target))
            }
            MountSource::Bind(_) | MountSource::Tmpfs { .. } => None,
        }
    }
}

/// `web.1.var-lib-data.0123abcd`: the same for every start, and nobody else's.
fn anonymous_key(service: &ServiceName, instance: u8, target: &Path) -> String {
    let letters = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let target = target.to_string_lossy();
    let shown: String = target.trim_matches('/').chars().map(letters).take(40).collect();
    let digest = digest_of(&(service, instance, &target));
    format!("{service}.{instance}.{shown}.{}", digest.get(..8).unwrap_or(&digest))
}
