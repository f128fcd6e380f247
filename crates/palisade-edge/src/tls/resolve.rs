//! Which certificate a client is shown.

use palisade_core::edge::Domain;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::sync::Arc;

use super::{ACME_ALPN, Certificates, pem};

/// The file of a domain's certificate in the folder. A wildcard's begins with `_.`.
pub fn file_of(domain: &str) -> String {
    match domain.strip_prefix("*.") {
        Some(parent) => format!("_.{parent}.pem"),
        None => format!("{domain}.pem"),
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(normal);
        if self.challenges && is_challenge(&hello) {
            return self.challenge(&name?);
        }
        self.certificate(name.as_deref())
    }
}

impl Certificates {
    /// Of this domain, else of its wildcard, else of the default domain.
    fn certificate(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let held = self.held();
        let exact = name.and_then(|name| held.by_domain.get(name));
        let wildcard = || {
            let (_, parent) = name?.split_once('.')?;
            held.by_domain.get(&format!("*.{parent}"))
        };
        let default = || held.by_domain.get(self.default_domain.as_ref()?);
        exact.or_else(wildcard).or_else(default).map(|usable| Arc::clone(&usable.key))
    }

    /// The answer to a `tls-alpn-01` challenge. It is read when it is asked for: that is rare, and it is there only for seconds.
    fn challenge(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        // Only names of ours become names of files.
        let domain: &Domain = self.domains.iter().find(|domain| domain.as_str() == name)?;
        let file = self.folder().join("tls-alpn-01").join(file_of(domain));
        pem::read(&file, domain, &self.provider).ok().map(|(key, _)| Arc::new(key))
    }
}

/// RFC 8737, section 3: the client offers this protocol and no other.
fn is_challenge(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut offered| offered.next() == Some(ACME_ALPN) && offered.next().is_none())
}

fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}
