//! The certificates that the edge serves, chosen by the name that a client asks for.

use palisade_core::edge::{Domain, Settings};
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

/// Why certificates can't be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The library refuses the versions that are asked for.
    #[error("the versions of TLS can't be set")]
    Versions(#[source] rustls::Error),
}

/// The certificates of the folder that [`Settings::certificates`] names.
#[derive(Debug)]
pub struct Certificates {
    folder: PathBuf,
    domains: Vec<Domain>,
    default_domain: Option<Domain>,
    keys: Arc<Keys>,
    config: Arc<rustls::ServerConfig>,
}

#[derive(Debug, Default)]
struct Keys {
    by_domain: RwLock<BTreeMap<Domain, Arc<CertifiedKey>>>,
    default_domain: Option<Domain>,
}

impl ResolvesServerCert for Keys {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let keys = self.by_domain.read().ok()?;
        hello.server_name().and_then(|name| keys.get(name)).or_else(|| keys.get(self.default_domain.as_ref()?)).cloned()
    }
}

impl Certificates {
    /// Reads the folder. A certificate that isn't there, or can't be used, is missing until [`Self::reload`] finds it.
    ///
    /// # Errors
    /// When TLS can't be set up at all.
    pub fn open(settings: &Settings) -> Result<Self, TlsError> {
        let keys = Arc::new(Keys { default_domain: settings.edge.default_domain.clone(), ..Keys::default() });
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Versions)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&keys) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let certificates = Self {
            folder: settings.certificates.clone(),
            domains: settings.edge.certificates.keys().cloned().collect(),
            default_domain: settings.edge.default_domain.clone(),
            keys,
            config: Arc::new(config),
        };
        certificates.reload();
        Ok(certificates)
    }

    /// Reads the folder again. Connections that are there go on.
    pub fn reload(&self) {
        let mut found = BTreeMap::new();
        for domain in self.domains.iter().chain(&self.default_domain) {
            let path = self.folder.join(format!("{}.pem", domain.replacen('*', "_", 1)));
            match read(&path) {
                Ok(key) => {
                    found.insert(domain.clone(), Arc::new(key));
                }
                Err(why) => eprintln!("palisade-edge: {} can't be served: {why}", path.display()),
            }
        }
        if let Ok(mut keys) = self.keys.by_domain.write() {
            *keys = found;
        }
    }

    /// What connections are accepted with.
    pub fn server_config(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.config)
    }
}

fn read(path: &Path) -> Result<CertifiedKey, Box<dyn std::error::Error>> {
    let text = std::fs::read(path)?;
    let key = PrivateKeyDer::from_pem_slice(&text)?;
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>()?;
    Ok(CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())?)
}
