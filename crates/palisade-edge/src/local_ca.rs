//! A certificate authority of the stack's own, for rehearsals: nobody trusts it who wasn't told to.
//!
//! Its root may sign only names of the stack (name constraints), so whoever trusts it for a rehearsal trusts it for nothing else. Key and root are
//! in the worker's folder; the root alone, for `curl --cacert`, is `local-ca.pem` there.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::acme::{StoreError, replace};
use crate::tls;

const DAY: Duration = Duration::from_secs(86_400);
/// A root that ends sooner than this is replaced.
const ROOT_LEFT: Duration = Duration::from_secs(90 * 86_400);
const ROOT_LIFETIME: Duration = Duration::from_secs(3650 * 86_400);
/// What clients accept at most is 398 days.
const LEAF_LIFETIME: Duration = Duration::from_secs(90 * 86_400);

/// The authority.
pub struct LocalCa {
    root: CertificateDer<'static>,
    root_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Why it can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalCaError {
    /// Its file can't be read.
    #[error("can't read the stack's own authority in {0}")]
    Read(PathBuf, #[source] io::Error),
    /// A file of it can't be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The library can't make a certificate.
    #[error("the stack's own authority can't sign")]
    Sign(#[source] rcgen::Error),
}

impl LocalCa {
    /// Where the root alone is, for clients that are to trust it.
    pub fn root_file(state: &Path) -> PathBuf {
        state.join("local-ca.pem")
    }

    /// The authority in this folder, which is made anew if there is none, or if it is damaged, about to end, or may not sign for all these domains.
    ///
    /// # Errors
    ///
    /// Its file can't be read or written.
    pub fn open(state: &Path, domains: &[&String], owner: Option<(u32, u32)>) -> Result<Self, LocalCaError> {
        let path = state.join("local-ca-key.pem");
        let kept = match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, domains),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // What isn't text is damaged.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
            Err(error) => return Err(LocalCaError::Read(path, error)),
        };
        let authority = match kept {
            Some(authority) => authority,
            None => {
                let (authority, key) = Self::make(domains).map_err(LocalCaError::Sign)?;
                replace(&path, format!("{key}{}", authority.root_pem).as_bytes(), owner)?;
                authority
            }
        };
        let root = Self::root_file(state);
        if fs::read_to_string(&root).ok().as_deref() != Some(&authority.root_pem) {
            replace(&root, authority.root_pem.as_bytes(), owner)?;
        }
        Ok(authority)
    }

    fn parse(text: &str, domains: &[&String]) -> Option<Self> {
        let key = KeyPair::from_pem(text).ok()?;
        let root = CertificateDer::from_pem_slice(text.as_bytes()).ok()?;
        let root_pem = text.get(text.find("-----BEGIN CERTIFICATE-----")?..)?.to_owned();
        let (_, parsed) = X509Certificate::from_der(&root).ok()?;
        let end = parsed.validity().not_after.timestamp();
        let needed = SystemTime::now().checked_add(ROOT_LEFT)?.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
        let allowed = allowed(&parsed);
        let fits = u64::try_from(end).ok()? > needed
            && parsed.public_key().raw == rcgen::PublicKeyData::subject_public_key_info(&key)
            && domains.iter().all(|domain| allowed.iter().any(|name| name == base(domain)));
        let issuer = Issuer::from_ca_cert_der(&root, key).ok().filter(|_| fits)?;
        Some(Self { root, root_pem, issuer })
    }

    fn make(domains: &[&String]) -> Result<(Self, String), rcgen::Error> {
        let key = KeyPair::generate()?;
        let pem = key.serialize_pem();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = named("Palisade rehearsal authority");
        params.not_before = (SystemTime::now() - DAY).into();
        params.not_after = (SystemTime::now() + ROOT_LIFETIME).into();
        let permitted = domains.iter().map(|domain| GeneralSubtree::DnsName(base(domain).to_owned())).collect();
        params.name_constraints =
            Some(NameConstraints { permitted_subtrees: permitted, excluded_subtrees: Vec::new() });
        let certificate = params.self_signed(&key)?;
        let (root, root_pem) = (certificate.der().clone(), certificate.pem());
        Ok((Self { root, root_pem, issuer: Issuer::new(params, key) }, pem))
    }

    /// A new key and a certificate for a domain, as the file that is served.
    ///
    /// # Errors
    ///
    /// The library can't make it: the name is none.
    pub fn sign(&self, domain: &str) -> Result<String, LocalCaError> {
        let make = || {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new([domain.to_owned()])?;
            params.distinguished_name = DistinguishedName::new();
            params.use_authority_key_identifier_extension = true;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.not_before = (SystemTime::now() - DAY).into();
            params.not_after = (SystemTime::now() + LEAF_LIFETIME).into();
            let certificate = params.signed_by(&key, &self.issuer)?;
            Ok(format!("{}{}", key.serialize_pem(), certificate.pem()))
        };
        make().map_err(LocalCaError::Sign)
    }

    /// The file holds a certificate for the domain that this authority has signed and that has a third of its time left.
    pub fn has_signed(&self, file: &Path, domain: &str, now_s: u64) -> bool {
        let Ok((key, facts)) = tls::read(file, domain, &aws_lc_rs::default_provider()) else { return false };
        let Some((_, leaf)) = key.cert.first().and_then(|leaf| X509Certificate::from_der(leaf).ok()) else {
            return false;
        };
        let Ok((_, root)) = X509Certificate::from_der(&self.root) else { return false };
        let left = facts.not_after_s.saturating_sub(now_s);
        leaf.verify_signature(Some(root.public_key())).is_ok()
            && facts.not_before_s <= now_s
            && left > (facts.not_after_s - facts.not_before_s) / 3
    }

    /// The root in PEM, for `curl --cacert`.
    pub fn root(&self) -> &str {
        &self.root_pem
    }
}

/// Names that a root may sign for.
fn allowed(root: &X509Certificate<'_>) -> Vec<String> {
    let constraints = root.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::NameConstraints(constraints) => constraints.permitted_subtrees.as_ref(),
        _ => None,
    });
    let names = constraints.into_iter().flatten().filter_map(|subtree| match subtree.base {
        GeneralName::DNSName(name) => Some(name.to_owned()),
        _ => None,
    });
    names.collect()
}

/// A constraint names a domain, and is for everything below it.
fn base(domain: &str) -> &str {
    domain.strip_prefix("*.").unwrap_or(domain)
}

fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}
