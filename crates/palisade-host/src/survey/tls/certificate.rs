//! What a certificate says, as far as an audit asks.

use std::net::IpAddr;

use palisade_core::audit::facts::Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

/// Certificates of one server that are looked at; chains have two or three.
pub(super) const CHAIN_MAX: usize = 10;
/// Bits below which a key can be broken. Source: NIST SP 800-131A, revision 2.
const RSA_BITS_MIN: usize = 2048;
const EC_BITS_MIN: usize = 224;
/// Signatures by MD2, MD5 or SHA-1, by their object identifiers (RFC 3279, RFC 3447).
const WEAK_SIGNATURES: [(&str, &str); 5] = [
    ("1.2.840.113549.1.1.2", "MD2 with RSA"),
    ("1.2.840.113549.1.1.4", "MD5 with RSA"),
    ("1.2.840.113549.1.1.5", "SHA-1 with RSA"),
    ("1.2.840.10045.4.1", "SHA-1 with ECDSA"),
    ("1.2.840.10040.4.3", "SHA-1 with DSA"),
];
/// `id-ad-caIssuers` (RFC 5280).
const ISSUERS_AT: &str = "1.3.6.1.5.5.7.48.2";

/// The certificates that lead from the first one upwards; others that were sent are of no use to anybody. Servers send them
/// in any order.
pub(super) fn path(chain: &[Vec<u8>]) -> Vec<Certificate> {
    let mut rest: Vec<Certificate> = chain.iter().filter_map(|der| read(der)).collect();
    if rest.is_empty() {
        return rest;
    }
    let mut path = vec![rest.remove(0)];
    while let Some(last) = path.last().filter(|last| !last.self_signed)
        && let Some(next) = rest.iter().position(|it| it.subject == last.issuer)
    {
        path.push(rest.remove(next));
    }
    path
}

/// `None` for bytes that are no certificate.
fn read(der: &[u8]) -> Option<Certificate> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let mut certificate = Certificate {
        subject: parsed.subject().to_string(),
        issuer: parsed.issuer().to_string(),
        self_signed: parsed.subject().as_raw() == parsed.issuer().as_raw(),
        not_before_s: parsed.validity().not_before.timestamp(),
        not_after_s: parsed.validity().not_after.timestamp(),
        weak_key: weak_key(&parsed),
        weak_signature: {
            let by = parsed.signature_algorithm.algorithm.to_id_string();
            WEAK_SIGNATURES.iter().find(|(id, _)| *id == by).map(|(_, name)| (*name).to_owned())
        },
        ..Certificate::default()
    };
    for extension in parsed.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::DNSName(name) => certificate.names.push(name.to_lowercase()),
                        GeneralName::IPAddress(bytes) => certificate.addresses.extend(address(bytes)),
                        _ => {}
                    }
                }
            }
            ParsedExtension::AuthorityInfoAccess(access) => {
                let mut all = access.accessdescs.iter();
                certificate.has_issuer_url = all.any(|access| access.access_method.to_id_string() == ISSUERS_AT);
            }
            _ => {}
        }
    }
    Some(certificate)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn weak_key(parsed: &X509Certificate<'_>) -> Option<String> {
    match parsed.public_key().parsed().ok()? {
        PublicKey::RSA(key) if key.key_size() < RSA_BITS_MIN => Some(format!("RSA with {} bits", key.key_size())),
        PublicKey::EC(key) if key.key_size() < EC_BITS_MIN => Some(format!("ECDSA with {} bits", key.key_size())),
        PublicKey::DSA(_) => Some("DSA".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_no_certificate() {
        assert_eq!(path(&[b"\x30\x82\xff\xff".to_vec(), Vec::new(), vec![0; 5000]]), []);
    }
}
