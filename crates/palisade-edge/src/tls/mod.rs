//! TLS as the edge speaks it: which certificate a client is shown, in which versions, and how certificates are replaced while connections go on.
//!
//! It only reads: whoever obtains certificates writes them into the folder and then says so ([`Certificates::reload`]).
//! There is no OCSP stapling: the large authorities have ended OCSP, and a staple that nobody keeps fresh breaks more than it
//! shows. A certificate that demands one is named as a problem.

mod pem;
mod resolve;

use palisade_core::edge::{Challenge, Domain, Settings, TlsVersion};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ProducesTickets, ServerSessionMemoryCache, StoresServerSessions};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, SupportedProtocolVersion};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::chain;

pub(crate) use pem::span;
pub use pem::{Facts, PemError, read, read_bytes};
pub use resolve::file_of;

/// The protocol of a `tls-alpn-01` challenge (RFC 8737). A connection that has agreed on it is to be closed after the handshake.
pub const ACME_ALPN: &[u8] = b"acme-tls/1";

/// TLS 1.2 clients without tickets whose sessions are remembered at once.
const REMEMBERED_SESSIONS: usize = 4096;

/// Everything that may be shown to clients, for all workers and all versions of HTTP.
#[derive(Debug)]
pub struct Certificates {
    folder: PathBuf,
    domains: Vec<Domain>,
    default_domain: Option<Domain>,
    minimum: TlsVersion,
    /// Answers to `tls-alpn-01` are looked for.
    challenges: bool,
    provider: Arc<CryptoProvider>,
    tickets: Arc<dyn ProducesTickets>,
    sessions: Arc<dyn StoresServerSessions>,
    held: RwLock<Arc<Held>>,
}

/// What is held now. It is replaced whole.
#[derive(Debug, Default)]
struct Held {
    by_domain: BTreeMap<Domain, Usable>,
    problems: Vec<Problem>,
}

#[derive(Clone, Debug)]
struct Usable {
    key: Arc<CertifiedKey>,
    facts: Facts,
}

/// Something that is wrong with a domain's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whose.
    pub domain: Domain,
    /// What is wrong, and what is served meanwhile.
    pub text: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.domain, self.text)
    }
}

/// Why TLS can't be spoken at all, or why not everything could be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The library has no random numbers or no memory.
    #[error("can't prepare TLS")]
    Library(#[source] rustls::Error),
    /// Some files weren't taken. Everything else was.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Files(Vec<Problem>),
}

impl Certificates {
    /// Loads what is in the folder. Files that are missing or wrong are no error, because the edge has to serve challenges
    /// before there is any certificate: [`Certificates::problems`] has them.
    ///
    /// # Errors
    ///
    /// TLS can't be spoken at all.
    pub fn open(settings: &Settings) -> Result<Arc<Self>, TlsError> {
        let acme = settings.edge.acme.as_ref();
        let certificates = Self {
            folder: settings.certificates.clone(),
            domains: settings.edge.certificates.keys().cloned().collect(),
            default_domain: settings.edge.default_domain.clone(),
            minimum: settings.edge.tls_minimum,
            challenges: acme.is_some_and(|acme| acme.challenge == Challenge::TlsAlpn01),
            provider: Arc::new(aws_lc_rs::default_provider()),
            tickets: aws_lc_rs::Ticketer::new().map_err(TlsError::Library)?,
            sessions: ServerSessionMemoryCache::new(REMEMBERED_SESSIONS),
            held: RwLock::default(),
        };
        // What is wrong is kept with what is held; here nobody is told yet.
        let _ = certificates.reload();
        Ok(Arc::new(certificates))
    }

    /// Looks at the folder again; from now on handshakes get what is there. Connections that are there go on. In place of a file
    /// that is wrong, the last good certificate stays.
    ///
    /// It reads files, so a worker that serves should not wait for it.
    ///
    /// # Errors
    ///
    /// [`TlsError::Files`]: some files are wrong; all others are served from now on.
    pub fn reload(&self) -> Result<(), TlsError> {
        let before = self.held();
        let now = now_s();
        let mut held = Held::default();
        for domain in &self.domains {
            let last = before.by_domain.get(domain);
            let (usable, problem) = self.load(domain, last, now);
            if let Some(usable) = usable {
                held.by_domain.insert(domain.clone(), usable);
            }
            held.problems.extend(problem.map(|text| Problem { domain: domain.clone(), text }));
        }
        let problems = held.problems.clone();
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(held);
        if problems.is_empty() { Ok(()) } else { Err(TlsError::Files(problems)) }
    }

    /// What is served for a domain from now on, and what is wrong with it.
    fn load(&self, domain: &str, last: Option<&Usable>, now_s: u64) -> (Option<Usable>, Option<String>) {
        let new = match pem::read(&self.folder.join(file_of(domain)), domain, &self.provider) {
            Ok((key, facts)) => Usable { key: Arc::new(key), facts },
            Err(error) => {
                let text = chain(&error);
                return match last {
                    Some(last) => {
                        (Some(last.clone()), Some(format!("{text}; the certificate from before is served on")))
                    }
                    None => (None, Some(format!("{text}; clients of this domain are refused"))),
                };
            }
        };
        let Some(text) = new.facts.untimely(now_s) else {
            let text = new.facts.must_staple.then(|| "it demands OCSP stapling, which the edge doesn't do".to_owned());
            return (Some(new), text);
        };
        match last {
            Some(last) if last.facts.untimely(now_s).is_none() => {
                (Some(last.clone()), Some(format!("{text}; the certificate from before is served on")))
            }
            // A browser says more about an expired certificate than about none.
            _ => (Some(new), Some(format!("{text}; it is served nevertheless"))),
        }
    }

    /// What was wrong when the folder was looked at last.
    pub fn problems(&self) -> Vec<Problem> {
        self.held().problems.clone()
    }

    /// Domains that have a certificate which is valid now, and when it ends, in seconds since the Unix epoch.
    pub fn expiry(&self) -> BTreeMap<Domain, u64> {
        let now = now_s();
        let held = self.held();
        let usable = held.by_domain.iter().filter(|(_, usable)| usable.facts.untimely(now).is_none());
        usable.map(|(domain, usable)| (domain.clone(), usable.facts.not_after_s)).collect()
    }

    /// How TLS is spoken, for one set of protocols (`h2`, `http/1.1`; `h3`), the preferred one first. One is enough for all workers:
    /// what it remembers of sessions is shared in any case.
    ///
    /// A connection on which [`ACME_ALPN`] was agreed is a challenge: nothing is served on it.
    pub fn server_config(self: &Arc<Self>, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider));
        let builder = builder.with_protocol_versions(versions(self.minimum)).expect("the provider speaks 1.2 and 1.3");
        let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::clone(self) as _);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        // Authorities ask over TCP.
        if self.challenges && alpn.iter().any(|name| *name == b"http/1.1") {
            config.alpn_protocols.push(ACME_ALPN.to_vec());
        }
        config.send_tls13_tickets = 1;
        config.ticketer = Arc::clone(&self.tickets);
        config.session_storage = Arc::clone(&self.sessions);
        Arc::new(config)
    }

    fn held(&self) -> Arc<Held> {
        Arc::clone(&self.held.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn folder(&self) -> &Path {
        &self.folder
    }
}

fn versions(minimum: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
    match minimum {
        TlsVersion::V1_2 => &BOTH,
        TlsVersion::V1_3 => &BOTH[..1],
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
