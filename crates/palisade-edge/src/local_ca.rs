//! A certificate authority of the stack's own, for rehearsals: nobody trusts it who wasn't told to.
//!
//! Its root may sign only names of the stack (name constraints), so whoever trusts it for a rehearsal trusts it for nothing else. Domains that come later
//! get another root: whoever trusts the first one goes on. Keys and roots are in the worker's folder; the roots alone, for `curl --cacert`, are
//! `local-ca.pem` there.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::acme::{StoreError, replace};
use crate::plain_file;
use crate::tls;

/// Where a key and its certificate end in the file of the authority.
const CERTIFICATE_END: &str = "-----END CERTIFICATE-----\n";

const DAY: Duration = Duration::from_secs(86_400);
/// A root that ends sooner than this is replaced.
const ROOT_LEFT: Duration = Duration::from_secs(90 * 86_400);
const ROOT_LIFETIME: Duration = Duration::from_secs(3650 * 86_400);
/// What clients accept at most is 398 days.
const LEAF_LIFETIME: Duration = Duration::from_secs(90 * 86_400);

/// The authority.
pub struct LocalCa {
    /// Oldest first. Each is for other domains.
    roots: Vec<Root>,
}

struct Root {
    key_pem: String,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    /// Domains that it may sign, with everything below them.
    allowed: Vec<String>,
    issuer: Issuer<'static, KeyPair>,
}

/// Why it can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalCaError {
    /// Its file can't be read, or isn't one of the owner's.
    #[error(
        "can't read the stack's own authority in {0}; without it another one is made: remove it if it is of no use"
    )]
    Read(PathBuf, #[source] io::Error),
    /// A file of it can't be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The library can't make a certificate.
    #[error("the stack's own authority can't sign")]
    Sign(#[source] rcgen::Error),
}

impl LocalCa {
    /// Where the roots alone are, for clients that are to trust them.
    pub fn root_file(state: &Path) -> PathBuf {
        state.join("local-ca.pem")
    }

    /// What is in that file. None is as an empty one: nobody is trusted.
    pub fn roots(state: &Path) -> Vec<u8> {
        plain_file::read(&Self::root_file(state)).unwrap_or_default()
    }

    /// The authority in this folder. A root is made for those of the domains that no root may sign yet; one that is damaged or about to end is replaced.
    ///
    /// # Errors
    ///
    /// Its file can't be read or written, or somebody has put something else in its place.
    pub fn open(state: &Path, domains: &[&String], owner: Option<(u32, u32)>) -> Result<Self, LocalCaError> {
        let path = state.join("local-ca-key.pem");
        let uid = owner.map_or_else(|| nix::unistd::geteuid().as_raw(), |(uid, _)| uid);
        let text = match plain_file::read_of(&path, uid) {
            // What isn't text is damaged.
            Ok(bytes) => String::from_utf8(bytes).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(LocalCaError::Read(path, error)),
        };
        let mut roots: Vec<Root> = text.split_inclusive(CERTIFICATE_END).filter_map(Root::parse).collect();
        let new: Vec<&str> = domains.iter().map(|domain| base(domain)).collect();
        let new: Vec<&str> = new.into_iter().filter(|name| !roots.iter().any(|root| root.may_sign(name))).collect();
        if !new.is_empty() {
            roots.push(Root::make(&new).map_err(LocalCaError::Sign)?);
        }
        let authority = Self { roots };
        let whole: String =
            authority.roots.iter().map(|root| format!("{}{}", root.key_pem, root.certificate_pem)).collect();
        if whole != text {
            replace(&path, whole.as_bytes(), owner)?;
        }
        let file = Self::root_file(state);
        if Self::roots(state) != authority.root().as_bytes() {
            replace(&file, authority.root().as_bytes(), owner)?;
        }
        Ok(authority)
    }

    /// A new key and a certificate for a domain, as the file that is served.
    ///
    /// # Errors
    ///
    /// The library can't make it: the name is none.
    pub fn sign(&self, domain: &str) -> Result<String, LocalCaError> {
        let root = self.roots.iter().find(|root| root.may_sign(base(domain))).or(self.roots.last());
        let Some(root) = root else { return Err(LocalCaError::Sign(rcgen::Error::CouldNotParseCertificate)) };
        root.sign(domain).map_err(LocalCaError::Sign)
    }

    /// The file holds a certificate for the domain that this authority has signed and that has a third of its time left.
    pub fn has_signed(&self, file: &Path, domain: &str, now_s: u64) -> bool {
        let Ok((key, facts)) = tls::read(file, domain, &aws_lc_rs::default_provider()) else { return false };
        let Some((_, leaf)) = key.cert.first().and_then(|leaf| X509Certificate::from_der(leaf).ok()) else {
            return false;
        };
        let left = facts.not_after_s.saturating_sub(now_s);
        self.roots.iter().any(|root| root.may_sign(base(domain)) && root.has_signed(&leaf))
            && facts.not_before_s <= now_s
            && left > (facts.not_after_s - facts.not_before_s) / 3
    }

    /// The roots in PEM, for `curl --cacert`.
    pub fn root(&self) -> String {
        self.roots.iter().map(|root| root.certificate_pem.as_str()).collect()
    }
}

impl Root {
    /// From a key and its certificate, if it is as those that are made here: whatever else was put into the file is no root, and isn't kept there.
    fn parse(text: &str) -> Option<Self> {
        let at = text.find("-----BEGIN CERTIFICATE-----")?;
        let (key_pem, certificate_pem) = text.split_at(at);
        let key = KeyPair::from_pem(key_pem).ok()?;
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).ok()?;
        let (_, parsed) = X509Certificate::from_der(&certificate).ok()?;
        let end = parsed.validity().not_after.timestamp();
        let needed = SystemTime::now().checked_add(ROOT_LEFT)?.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
        let allowed = allowed(&parsed);
        let fits = u64::try_from(end).ok()? > needed
            && parsed.is_ca()
            && !allowed.is_empty()
            && parsed.public_key().raw == rcgen::PublicKeyData::subject_public_key_info(&key);
        let issuer = Issuer::from_ca_cert_der(&certificate, key).ok().filter(|_| fits)?;
        let (key_pem, certificate_pem) = (key_pem.to_owned(), certificate_pem.to_owned());
        Some(Self { key_pem, certificate, certificate_pem, allowed, issuer })
    }

    fn make(names: &[&str]) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let key_pem = key.serialize_pem();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // Of two roots with one name clients would try the wrong one.
        params.distinguished_name = named(&format!("Palisade rehearsal authority for {}", names[0]));
        params.not_before = (SystemTime::now() - DAY).into();
        params.not_after = (SystemTime::now() + ROOT_LIFETIME).into();
        let permitted = names.iter().map(|name| GeneralSubtree::DnsName((*name).to_owned())).collect();
        params.name_constraints =
            Some(NameConstraints { permitted_subtrees: permitted, excluded_subtrees: Vec::new() });
        let made = params.self_signed(&key)?;
        let (certificate, certificate_pem) = (made.der().clone(), pem_lines(&made.pem()));
        let allowed = names.iter().map(|name| (*name).to_owned()).collect();
        Ok(Self {
            key_pem: pem_lines(&key_pem),
            certificate,
            certificate_pem,
            allowed,
            issuer: Issuer::new(params, key),
        })
    }

    fn may_sign(&self, name: &str) -> bool {
        self.allowed.iter().any(|allowed| allowed == name)
    }

    fn sign(&self, domain: &str) -> Result<String, rcgen::Error> {
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
    }

    fn has_signed(&self, leaf: &X509Certificate<'_>) -> bool {
        let root = X509Certificate::from_der(&self.certificate);
        root.is_ok_and(|(_, root)| leaf.verify_signature(Some(root.public_key())).is_ok())
    }
}

/// With lines that end as those of other files do, so that what is read back is the same.
fn pem_lines(pem: &str) -> String {
    pem.replace("\r\n", "\n")
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
