//! Certificates that a host's administrator gives as files: checked, and copied to where the edge reads them.
//!
//! The copy stays as long as what is given now is no better: a file that somebody spoils or removes costs nobody anything until the certificate ends.

use palisade_core::compose::CertificateFlaw;
use palisade_core::edge::{CertificateSource, Domain, WorkerSettings};
use rustls::crypto::aws_lc_rs;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::events::rfc3339;
use super::order::now_s;
use super::store::{self, StoreError};
use crate::chain;
use crate::plain_file;
use crate::tls::{self, Facts, PemError};

/// A given certificate that can't be served as it is.
#[derive(Debug, thiserror::Error)]
#[error("the certificate given for {domain}")]
pub struct NotServed {
    /// Whose.
    pub domain: Domain,
    /// What is wrong with it.
    #[source]
    pub error: GivenError,
    /// Something is in the edge's folder for this domain nevertheless: a copy from before, or this one.
    pub has_copy: bool,
}

impl NotServed {
    /// What is wrong, and what clients get meanwhile.
    pub fn text(&self) -> String {
        let meanwhile = match (&self.error, self.has_copy) {
            (GivenError::Refused(..), _) => "",
            (_, true) => "; the certificate from before is served on",
            (_, false) => "; clients of this domain are refused",
        };
        format!("{}{meanwhile}", chain(&self.error))
    }
}

/// What is wrong with a given certificate.
#[derive(Debug, thiserror::Error)]
pub enum GivenError {
    /// A file can't be read.
    #[error("can't read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// Its key doesn't match, it is for other names, or it is none.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// The copy can't be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Clients may refuse it.
    #[error("{file} {what}", file = .0.display(), what = .1)]
    Refused(PathBuf, String),
}

/// What is wrong with the contents of two files that these domains are to be given, for whoever looks before anything is started: what couldn't be
/// served, and what clients would refuse.
pub fn flaws(chain: &[u8], key: &[u8], domains: &[&str]) -> Vec<CertificateFlaw> {
    let pem = joined(key, chain);
    let mut flaws = Vec::new();
    let mut usable: Option<Facts> = None;
    for domain in domains {
        if usable.as_ref().is_some_and(|facts| facts.covers(domain)) {
            continue;
        }
        match tls::read_bytes(&pem, Path::new("`chain` with `key`"), domain, &aws_lc_rs::default_provider()) {
            Ok((_, facts)) => usable = Some(facts),
            Err(PemError::Names { names, domain, .. }) => flaws.push(CertificateFlaw::OtherNames { domain, names }),
            // The same for all of them.
            Err(PemError::Mismatch(_)) => return vec![CertificateFlaw::OtherKey],
            Err(error) => return vec![CertificateFlaw::Unusable(crate::chain(&error))],
        }
    }
    if let Some(facts) = usable {
        let staple = || facts.must_staple.then(|| "it demands OCSP stapling, which the edge doesn't do".to_owned());
        flaws.extend(facts.untimely(now_s()).or_else(staple).map(CertificateFlaw::Refused));
    }
    flaws
}

/// Copies what has changed. Each domain is tried, whatever is wrong with the others.
pub(super) fn copy(settings: &WorkerSettings) -> Vec<NotServed> {
    let mut wrong = Vec::new();
    for (domain, source) in &settings.certificates {
        let CertificateSource::Files { chain, key } = source else { continue };
        let file = settings.folder.join(tls::file_of(domain));
        if let Err(error) = copy_one(settings, domain, &file, chain, key) {
            let has_copy = tls::read(&file, domain, &aws_lc_rs::default_provider()).is_ok();
            wrong.push(NotServed { domain: domain.clone(), error, has_copy });
        }
    }
    wrong
}

fn copy_one(settings: &WorkerSettings, domain: &str, file: &Path, chain: &Path, key: &Path) -> Result<(), GivenError> {
    let pem = whole(chain, key)?;
    let both = PathBuf::from(format!("{} with {}", chain.display(), key.display()));
    let (_, facts) = tls::read_bytes(&pem, &both, domain, &aws_lc_rs::default_provider())?;
    let untimely = untimely(&facts, now_s());
    let is_better = |(_, there): (_, Facts)| self::untimely(&there, now_s()).is_none();
    let stays = untimely.is_some() && tls::read(file, domain, &aws_lc_rs::default_provider()).is_ok_and(is_better);
    // What is the same needn't be written, and the edge needn't be told.
    if !stays && plain_file::read(file).ok().as_ref() != Some(&pem) {
        store::replace(file, &pem, super::owner(settings))?;
    }
    let untimely = untimely.map(|what| match stays {
        true => format!("{what}; the certificate from before is served on"),
        false => format!("{what}: clients refuse it"),
    });
    let staple = || facts.must_staple.then(|| "demands OCSP stapling, which the edge doesn't do".to_owned());
    untimely.or_else(staple).map_or(Ok(()), |what| Err(GivenError::Refused(chain.to_owned(), what)))
}

/// The key, then the chain, as the edge reads it.
fn whole(chain: &Path, key: &Path) -> Result<Vec<u8>, GivenError> {
    let read = |path: &Path| fs::read(path).map_err(|error| GivenError::Read(path.to_owned(), error));
    let key = read(key)?;
    Ok(joined(&key, &read(chain)?))
}

fn joined(key: &[u8], chain: &[u8]) -> Vec<u8> {
    let between: &[u8] = if key.ends_with(b"\n") { b"" } else { b"\n" };
    [key, between, chain].concat()
}

/// Said in the same words as long as it is so.
fn untimely(facts: &Facts, now_s: u64) -> Option<String> {
    if now_s > facts.not_after_s {
        Some(format!("ended at {}", rfc3339(facts.not_after_s)))
    } else if now_s < facts.not_before_s {
        Some(format!("begins at {} (is the clock right?)", rfc3339(facts.not_before_s)))
    } else {
        None
    }
}
