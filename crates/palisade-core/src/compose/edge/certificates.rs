//! `certificates`, and the files of the host that the edge names.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::super::file::looked_for;
use super::super::keys::{EDGE_CERTIFICATE, Short};
use super::super::read::Reader;
use super::super::yaml::{Data, Entry, Node};
use super::super::{LoadInputs, ReadError, merge};
use super::FileCertificate;
use super::values;
use crate::diagnostic::{Diagnostic, Span, Spanned, quoted};
use crate::edge::{CertificateSource, Domain};

const SOURCE_HINT: &str = "write `acme` (ordered from an authority), `local` (made by an authority of this stack's own, for trying out), or files: `{chain: ./x.pem, key: ./x.key}`";

/// What a file holds, as far as its text tells.
#[derive(Clone, Copy)]
pub(super) enum Holds {
    /// Certificates in PEM.
    Certificates,
    /// A private key in PEM.
    Key,
    /// Something that isn't looked at.
    Anything,
}

impl Holds {
    /// What is wrong with the contents, and what to do.
    fn refuses(self, contents: &[u8]) -> Option<(&'static str, &'static str)> {
        let text = String::from_utf8_lossy(contents);
        let certificate = text.contains("-----BEGIN CERTIFICATE-----");
        let key = text.lines().any(|line| line.starts_with("-----BEGIN ") && line.contains("PRIVATE KEY-----"));
        match self {
            Holds::Certificates if !certificate && key => Some((
                "holds a private key, and no certificate",
                "`chain` is the file with the certificates, `key` the one with the private key",
            )),
            Holds::Certificates if !certificate => Some((
                "holds no certificate in PEM",
                "such a file has lines `-----BEGIN CERTIFICATE-----`; one in DER becomes one with `openssl x509 -inform der`",
            )),
            Holds::Key if text.contains("ENCRYPTED") && key => Some((
                "holds a private key that is locked by a password, which nobody could give when the edge starts",
                "write it out without one: `openssl pkey -in … -out …`, and keep the file to root (`chmod 600`)",
            )),
            Holds::Key if !key && certificate => Some((
                "holds a certificate, and no private key",
                "`chain` is the file with the certificates, `key` the one with the private key",
            )),
            Holds::Key if !key => {
                Some(("holds no private key in PEM", "such a file has a line `-----BEGIN PRIVATE KEY-----`"))
            }
            _ => None,
        }
    }
}

impl Reader<'_> {
    /// A file of the host that must be there.
    pub(super) fn host_file(
        &mut self,
        node: &Node,
        what: &str,
        holds: Holds,
        inputs: &LoadInputs<'_>,
    ) -> Option<PathBuf> {
        let text = self.text(node, what)?;
        let shown = text.quoted();
        if text.value.is_empty() || text.value.contains('\0') {
            return self.invalid(&text, format!("{shown} is not a path"), "write the path of a file of this host");
        }
        let path = self.path(&text.value, text.span);
        match inputs.others.read(&path) {
            Err(ReadError::NotFound) => {
                self.push(
                    Diagnostic::error("no-file", format!("the file {shown} does not exist"))
                        .at(text.span, looked_for(&shown, &path))
                        .hint("relative paths start where the file lies that they are written in"),
                );
                None
            }
            // What this user may not read, the one who starts the stack may.
            Err(ReadError::Other(_)) => Some(path),
            Ok(contents) => match holds.refuses(&contents) {
                Some((message, hint)) => self.invalid(&text, format!("the file {shown} {message}"), hint),
                None => Some(path),
            },
        }
    }

    pub(super) fn certificates(&mut self, node: &Arc<Node>, inputs: &LoadInputs<'_>) -> Vec<FileCertificate> {
        let all = merge::for_all(Arc::clone(node), Short::Certificate);
        let Data::Map(entries) = &all.data else {
            return self
                .mistyped(node, "`certificates`", "a mapping from domains, or one word for all")
                .unwrap_or_default();
        };
        let mut certificates: Vec<FileCertificate> = Vec::new();
        let mut known: HashMap<Option<Domain>, Span> = HashMap::new();
        for entry in entries {
            let source = self.certificate(entry, inputs);
            let domain = match entry.key.as_str() {
                "default" => None,
                name => match values::domain(name) {
                    Ok(domain) => Some(domain),
                    Err(wrong) => {
                        self.push(
                            Diagnostic::error("invalid-value", format!("{} {}", quoted(name), wrong.message))
                                .at(entry.key_span, "")
                                .hint(wrong.hint),
                        );
                        continue;
                    }
                },
            };
            if let Some(first) = known.insert(domain.clone(), entry.key_span) {
                let message = format!("{} has two certificates", quoted(&entry.key));
                let diagnostic = Diagnostic::error("duplicate-key", message).at(entry.key_span, "");
                self.push(diagnostic.also(first, "the first one").hint("keep one of them"));
                continue;
            }
            certificates.push(FileCertificate { domain: Spanned::new(domain, entry.key_span), source });
        }
        certificates
    }

    fn certificate(&mut self, entry: &Entry, inputs: &LoadInputs<'_>) -> Option<CertificateSource> {
        match &entry.value.data {
            Data::Map(_) => {
                let mut fields = self.fields(&entry.value, &EDGE_CERTIFICATE)?;
                let (chain, key) = (fields.value("chain"), fields.value("key"));
                fields.finish();
                for (name, missing) in [("chain", chain.is_none()), ("key", key.is_none())] {
                    if missing {
                        self.push(
                            Diagnostic::error("missing-key", format!("this certificate has no `{name}`"))
                                .at(entry.key_span, "")
                                .hint("give both files: `{chain: ./x.pem, key: ./x.key}`"),
                        );
                    }
                }
                let chain = chain.and_then(|node| self.host_file(node, "`chain`", Holds::Certificates, inputs));
                let key = key.and_then(|node| self.host_file(node, "`key`", Holds::Key, inputs));
                Some(CertificateSource::Files { chain: chain?, key: key? })
            }
            Data::Null => {
                let message = format!("the certificate of {} is not said", quoted(&entry.key));
                self.push(Diagnostic::error("missing-key", message).at(entry.key_span, "").hint(SOURCE_HINT));
                None
            }
            _ => self.parsed(&entry.value, "where a certificate comes from", SOURCE_HINT, |text| match text {
                "acme" => Some(CertificateSource::Acme),
                "local" => Some(CertificateSource::Local),
                _ => None,
            }),
        }
    }
}
