//! Answers to challenges: files that the edge serves while an authority asks, and not longer.

use instant_acme::KeyAuthorization;
use palisade_core::edge::Challenge;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use std::fs;
use std::path::{Path, PathBuf};

use super::store::{self, Owner, StoreError};
use crate::tls::file_of;

/// Why an answer can't be given.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the authority's token {0:?} is none (RFC 8555, section 8.1)")]
    Token(String),
    #[error("can't make the challenge's certificate")]
    Certificate(#[source] rcgen::Error),
}

/// An answer that is there until this is dropped.
#[derive(Debug)]
pub(super) struct Answer {
    path: PathBuf,
}

impl Drop for Answer {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

pub(super) fn folder_of(folder: &Path, challenge: Challenge) -> PathBuf {
    folder.join(match challenge {
        Challenge::Http01 => "http-01",
        Challenge::TlsAlpn01 => "tls-alpn-01",
    })
}

/// `http-01`: the text is served below `/.well-known/acme-challenge/<token>`.
pub(super) fn http(folder: &Path, token: &str, text: &str, owner: Owner) -> Result<Answer, AnswerError> {
    // It becomes a file's name.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if token.is_empty() || token.len() > 200 || !token.bytes().all(plain) {
        return Err(AnswerError::Token(token.to_owned()));
    }
    let path = folder_of(folder, Challenge::Http01).join(token);
    store::replace(&path, text.as_bytes(), owner)?;
    Ok(Answer { path })
}

/// `tls-alpn-01`: a certificate with this digest is shown to who offers only `acme-tls/1`. Returns the certificate, too.
pub(super) fn tls(folder: &Path, domain: &str, digest: &[u8], owner: Owner) -> Result<(Answer, Vec<u8>), AnswerError> {
    let mut params = CertificateParams::new([domain.to_owned()]).map_err(AnswerError::Certificate)?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().map_err(AnswerError::Certificate)?;
    let certificate = params.self_signed(&key).map_err(AnswerError::Certificate)?;
    let path = folder_of(folder, Challenge::TlsAlpn01).join(file_of(domain));
    store::replace(&path, format!("{}{}", key.serialize_pem(), certificate.pem()).as_bytes(), owner)?;
    Ok((Answer { path }, certificate.der().to_vec()))
}

/// The answer that a challenge of an authority wants.
pub(super) fn answer(
    folder: &Path,
    challenge: Challenge,
    domain: &str,
    token: &str,
    authorization: &KeyAuthorization,
    owner: Owner,
) -> Result<Answer, AnswerError> {
    match challenge {
        Challenge::Http01 => http(folder, token, authorization.as_str(), owner),
        Challenge::TlsAlpn01 => Ok(tls(folder, domain, authorization.digest().as_ref(), owner)?.0),
    }
}
