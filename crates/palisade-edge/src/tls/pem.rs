//! One file with a private key and its certificates: read, and checked before anything is served with it.

use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::io;
use std::path::{Path, PathBuf};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::plain_file;

/// What matters about a certificate besides its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Names that it is for, in lower case.
    pub names: Vec<String>,
    /// From when, in seconds since the Unix epoch.
    pub not_before_s: u64,
    /// Until when, in seconds since the Unix epoch.
    pub not_after_s: u64,
    /// It is valid only with an OCSP staple (RFC 7633).
    pub must_staple: bool,
    /// Its serial number, in hexadecimal.
    pub serial: String,
}

/// Why a file isn't taken.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// There is none.
    #[error("there is no {0}")]
    Missing(PathBuf),
    /// It can't be read.
    #[error("can't read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// It isn't PEM.
    #[error("{0} is not in PEM: {1}")]
    Pem(PathBuf, String),
    /// Something is not in it.
    #[error("{0} has no {1}")]
    Lacks(PathBuf, &'static str),
    /// The library can't use the key.
    #[error("the private key in {0} can't be used")]
    Key(PathBuf, #[source] rustls::Error),
    /// Key and certificate are of two pairs.
    #[error("the private key in {0} is not that of its first certificate, which has to be the server's own")]
    Mismatch(PathBuf),
    /// Not a certificate.
    #[error("certificate {number} in {file} can't be parsed")]
    Certificate {
        /// The file.
        file: PathBuf,
        /// From 1.
        number: usize,
    },
    /// For others.
    #[error("the certificate in {file} is for {}, not for {domain}", list(.names))]
    Names {
        /// The file.
        file: PathBuf,
        /// Who it is for.
        names: Vec<String>,
        /// Who it should be for.
        domain: String,
    },
}

impl Facts {
    /// What is wrong with the time of use.
    pub fn untimely(&self, now_s: u64) -> Option<String> {
        if now_s > self.not_after_s {
            Some(format!("the certificate expired {} ago", span(now_s - self.not_after_s)))
        } else if now_s < self.not_before_s {
            Some(format!("the certificate is valid only in {} (is the clock right?)", span(self.not_before_s - now_s)))
        } else {
            None
        }
    }

    /// It is for this domain. A wildcard's certificate is for the names one label below.
    pub fn covers(&self, domain: &str) -> bool {
        let wildcard = domain.split_once('.').map(|(_, parent)| format!("*.{parent}"));
        self.names.iter().any(|name| name == domain || (!domain.starts_with("*.") && Some(name) == wildcard.as_ref()))
    }

    /// Of a certificate in DER. `None`: it can't be parsed.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let names = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        Some(Self {
            names: names.collect(),
            not_before_s: seconds(parsed.validity().not_before.timestamp()),
            not_after_s: seconds(parsed.validity().not_after.timestamp()),
            must_staple: parsed.extensions().iter().any(demands_staple),
            serial: parsed.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }
}

/// RFC 7633: the feature `status_request` (5).
fn demands_staple(extension: &x509_parser::extensions::X509Extension<'_>) -> bool {
    const TLS_FEATURE: &str = "1.3.6.1.5.5.7.1.24";
    extension.oid.to_id_string() == TLS_FEATURE
        && matches!(extension.parsed_extension(), ParsedExtension::UnsupportedExtension { .. })
        && extension.value.windows(3).any(|bytes| bytes == [2, 1, 5])
}

/// Reads a file and checks that it can be served for a domain. Whether it is expired is for the caller to judge ([`Facts::untimely`]).
///
/// # Errors
///
/// The file is missing, unreadable or not what it should be.
pub fn read(file: &Path, domain: &str, provider: &CryptoProvider) -> Result<(CertifiedKey, Facts), PemError> {
    let named = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => PemError::Missing(file.to_owned()),
        _ => PemError::Read(file.to_owned(), error),
    };
    read_bytes(&plain_file::read(file).map_err(named)?, file, domain, provider)
}

/// The same of what would stand in the file.
///
/// # Errors
///
/// As [`read`].
pub fn read_bytes(
    bytes: &[u8],
    file: &Path,
    domain: &str,
    provider: &CryptoProvider,
) -> Result<(CertifiedKey, Facts), PemError> {
    let key = match PrivateKeyDer::from_pem_slice(bytes) {
        Ok(key) => key,
        Err(rustls_pki_types::pem::Error::NoItemsFound) => {
            return Err(PemError::Lacks(
                file.to_owned(),
                "private key (in PKCS#8, PKCS#1 or SEC1, without a password)",
            ));
        }
        Err(error) => return Err(PemError::Pem(file.to_owned(), wrong(&error))),
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let chain = chain.map_err(|error| PemError::Pem(file.to_owned(), wrong(&error)))?;
    let parsed: Vec<Option<Facts>> = chain.iter().map(|certificate| Facts::of(certificate)).collect();
    if let Some(at) = parsed.iter().position(Option::is_none) {
        return Err(PemError::Certificate { file: file.to_owned(), number: at + 1 });
    }
    let Some(facts) = parsed.into_iter().flatten().next() else {
        return Err(PemError::Lacks(file.to_owned(), "certificate"));
    };
    if !facts.covers(domain) {
        return Err(PemError::Names { file: file.to_owned(), names: facts.names, domain: domain.to_owned() });
    }
    let key = provider.key_provider.load_private_key(key).map_err(|error| PemError::Key(file.to_owned(), error))?;
    // The library's own comparison refuses the certificates of challenges, whose extension it doesn't know.
    let own = X509Certificate::from_der(&chain[0]).ok().map(|(_, parsed)| parsed.tbs_certificate.subject_pki.raw);
    if key.public_key().is_some_and(|public| Some(public.as_ref()) != own) {
        return Err(PemError::Mismatch(file.to_owned()));
    }
    Ok((CertifiedKey::new(chain, key), facts))
}

/// The library's own words show bytes.
fn wrong(error: &rustls_pki_types::pem::Error) -> String {
    use rustls_pki_types::pem::Error;
    match error {
        Error::MissingSectionEnd { end_marker } => {
            format!("a section {} doesn't end; is the file whole?", String::from_utf8_lossy(end_marker))
        }
        Error::IllegalSectionStart { line } => format!("a section begins with {:?}", String::from_utf8_lossy(line)),
        Error::Base64Decode(why) => format!("a section is not base64 ({why})"),
        error => error.to_string(),
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "no name at all (subjectAltName)".to_owned() } else { names.join(", ") }
}

/// About how long, in words.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}
