//! Certificates obtained and renewed: by a process of its own, which may reach authorities and write where the edge only reads.
//!
//! One look at all domains is [`ensure`]; [`worker_main`] looks again and again. What a host's administrator gave as files, and what the stack's own authority
//! signs, is put in place by [`prepare`] before the edge starts; what he changes later, by [`copy_given`]. Nothing in here serves clients.

mod account;
mod challenge;
mod check;
mod client;
mod domain;
mod events;
mod given;
mod memory;
mod order;
mod schedule;
mod served;
mod store;
mod worker;

use palisade_core::edge::{CertificateSource, Challenge, Domain, WorkerSettings};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::local_ca::{LocalCa, LocalCaError};
use crate::tls;
pub use given::{GivenError, NotServed, flaws};
use memory::Unwritten;
use order::now_s;
pub use store::StoreError;
pub(crate) use store::replace;
pub use worker::{WorkerError, worker_main};

/// What is so with a domain's certificate after a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is as it should be, until then (seconds since the Unix epoch).
    Kept {
        /// When it is to be renewed.
        renew_s: u64,
    },
    /// There is a new one, and it is in its file.
    Obtained {
        /// When it is to be renewed.
        renew_s: u64,
    },
    /// An attempt failed, now or before.
    Waiting {
        /// Why.
        text: String,
        /// When it is tried again (seconds since the Unix epoch).
        again_s: u64,
    },
    /// It can't be obtained at all as things are written.
    Impossible(String),
}

/// Why no domain could be looked at.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    /// A folder or file of the worker's.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another look is going on.
    #[error("can't lock {0}")]
    Lock(PathBuf, #[source] io::Error),
    /// The stack's own authority.
    #[error(transparent)]
    Local(#[from] LocalCaError),
    /// A certificate that was given as files can't be served, and there is no copy from before.
    #[error(transparent)]
    Given(#[from] Box<NotServed>),
    /// Root would follow whatever the owner of the folders puts there.
    #[error("certificates are obtained as the user who owns the folders, not as root")]
    Root,
}

/// Makes the folders, and puts in place what nobody has to be asked for: copies of files of the host ([`CertificateSource::Files`]) and certificates of the stack's
/// own authority. For whoever starts the edge, before it does; as root, files are given to [`WorkerSettings::owner`].
///
/// # Errors
///
/// A folder can't be made, or a given certificate can't be served (its key doesn't match, it is for other names, or it can't be read) and there is no
/// copy from before. Everything else is in place even then. What is given and served otherwise than it should be is no error but returned: a
/// domain whose file was spoilt is to keep no other from being served.
pub fn prepare(settings: &WorkerSettings) -> Result<Vec<NotServed>, EnsureError> {
    for folder in folders(settings) {
        store::folder(&folder, owner(settings))?;
    }
    let mut wrong = given::copy(settings);
    local(settings)?;
    match wrong.iter().position(|wrong| !wrong.has_copy) {
        Some(at) => Err(Box::new(wrong.swap_remove(at)).into()),
        None => Ok(wrong),
    }
}

/// Copies given certificates that have changed, each whatever is wrong with the others, which is returned. For whoever looks after an edge that runs.
///
/// # Errors
///
/// The folder can't be used.
pub fn copy_given(settings: &WorkerSettings) -> Result<Vec<NotServed>, StoreError> {
    store::folder(&settings.folder, owner(settings))?;
    Ok(given::copy(settings))
}

/// Looks once at every domain and does what is due: signs, orders, tells the edge and makes sure that it serves what is in the files. It waits for
/// authorities, up to some minutes for each domain; the edge must be up, or challenges fail.
///
/// # Errors
///
/// Nothing could be looked at. What fails for one domain is its [`Outcome`].
pub fn ensure(settings: &WorkerSettings) -> Result<BTreeMap<Domain, Outcome>, EnsureError> {
    let runtime = worker::runtime().map_err(|error| EnsureError::Lock(settings.state.clone(), error))?;
    runtime.block_on(look(settings, false, &mut Unwritten::new()))
}

/// `asked`: somebody wants it now, so what failed without an authority's refusal is tried at once.
async fn look(
    settings: &WorkerSettings,
    asked: bool,
    unwritten: &mut Unwritten,
) -> Result<BTreeMap<Domain, Outcome>, EnsureError> {
    if nix::unistd::geteuid().is_root() && settings.owner.is_some_and(|(uid, _)| uid != 0) {
        return Err(EnsureError::Root);
    }
    for folder in folders(settings) {
        store::folder(&folder, owner(settings))?;
        store::sweep(&folder);
    }
    let _lock = lock(&settings.state).await?;
    events::Events::in_folder(&settings.state).reserve();
    let renewed = local(settings)?;
    let mut outcomes = BTreeMap::new();
    for (name, source) in &settings.certificates {
        let mut look = domain::Look::new(settings, name, unwritten.remove(name));
        let outcome = match source {
            CertificateSource::Acme => look.outcome(asked).await,
            CertificateSource::Local | CertificateSource::Files { .. } => look.settled(renewed.contains(name)).await,
        };
        unwritten.extend(look.unwritten().map(|memory| (name.clone(), memory)));
        outcomes.insert(name.clone(), outcome);
    }
    // Nobody else orders while the lock is held: no answer is waited for any more.
    for challenge in [Challenge::Http01, Challenge::TlsAlpn01] {
        store::empty(&challenge::folder_of(&settings.folder, challenge));
    }
    Ok(outcomes)
}

fn folders(settings: &WorkerSettings) -> [PathBuf; 6] {
    [
        settings.folder.clone(),
        challenge::folder_of(&settings.folder, Challenge::Http01),
        challenge::folder_of(&settings.folder, Challenge::TlsAlpn01),
        settings.state.clone(),
        settings.state.join("accounts"),
        settings.state.join("domains"),
    ]
}

/// Only root can give files away.
fn owner(settings: &WorkerSettings) -> store::Owner {
    settings.owner.filter(|_| nix::unistd::geteuid().is_root())
}

/// Two looks at once would order twice. The lock goes with its process.
async fn lock(state: &Path) -> Result<nix::fcntl::Flock<fs::File>, EnsureError> {
    use nix::fcntl::{Flock, FlockArg};
    use std::os::unix::fs::OpenOptionsExt;
    let path = state.join("lock");
    let failed = |error| EnsureError::Lock(path.clone(), error);
    let mut file =
        fs::File::options().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::errno::Errno::EWOULDBLOCK)) => file = back,
            Err((_, error)) => return Err(failed(error.into())),
        }
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
}

/// Signs what the stack's own authority has to sign. Returns whose certificates are new.
fn local(settings: &WorkerSettings) -> Result<Vec<Domain>, EnsureError> {
    let ours = |source: &CertificateSource| matches!(source, CertificateSource::Local);
    let domains: Vec<&Domain> =
        settings.certificates.iter().filter(|(_, source)| ours(source)).map(|(domain, _)| domain).collect();
    if domains.is_empty() {
        return Ok(Vec::new());
    }
    let authority = LocalCa::open(&settings.state, &domains, owner(settings))?;
    let mut renewed = Vec::new();
    for domain in domains {
        let file = settings.folder.join(tls::file_of(domain));
        if !authority.has_signed(&file, domain, now_s()) {
            store::replace(&file, authority.sign(domain)?.as_bytes(), owner(settings))?;
            renewed.push(domain.clone());
        }
    }
    Ok(renewed)
}
