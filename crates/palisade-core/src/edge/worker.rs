//! What the process that obtains certificates is told. It is another one than the edge, because it may reach authorities and write.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::{Acme, CertificateSource, Domain, Edge};

/// Everything that the process is told. It reads the file again before each look at the certificates, and at once on SIGHUP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSettings {
    /// Whose certificate comes from where. Paths of [`CertificateSource::Files`] are the host's: only root looks at them, before
    /// the edge starts.
    pub certificates: BTreeMap<Domain, CertificateSource>,
    /// How certificates are ordered, if any domain's is. Paths in it are those of the process's own file system view.
    pub acme: Option<Acme>,
    /// The folder that the edge reads ([`super::Settings::certificates`]). Mode 0700; the process and the edge are of one user, and in the
    /// edge's view it is read-only.
    pub folder: PathBuf,
    /// Folder of the process's own, mode 0700, that the edge doesn't see: accounts, the local authority, what was tried when, events.
    pub state: PathBuf,
    /// User and group that files are given to, where root writes them.
    pub owner: Option<(u32, u32)>,
    /// Who serves what is obtained. Several during an update.
    pub edges: Vec<EdgeAt>,
    /// File with more of them (an array of [`EdgeAt`]), which is replaced while the process runs.
    #[serde(default)]
    pub edges_file: Option<PathBuf>,
    /// The port at which a domain's answers are looked for before an authority is asked to: 80 for `http-01` and 443 for `tls-alpn-01`, as
    /// authorities do, unless set (for rehearsals).
    pub challenge_port: Option<u16>,
    /// Addresses of domains in place of the DNS's (for rehearsals).
    pub addresses: BTreeMap<Domain, Vec<IpAddr>>,
}

/// One instance of the edge, as the process reaches it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeAt {
    /// Its control socket.
    pub control: PathBuf,
    /// Where it serves TLS.
    pub https: Option<SocketAddr>,
}

impl WorkerSettings {
    /// For an edge whose certificates lie in `folder`.
    pub fn new(edge: &Edge, folder: PathBuf, state: PathBuf) -> Self {
        Self {
            certificates: edge.certificates.clone(),
            acme: edge.acme.clone(),
            folder,
            state,
            owner: None,
            edges: Vec::new(),
            edges_file: None,
            challenge_port: None,
            addresses: BTreeMap::new(),
        }
    }
}
