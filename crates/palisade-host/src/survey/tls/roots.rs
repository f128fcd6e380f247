//! Whom this host trusts to sign certificates, by name.

use std::collections::BTreeSet;
use std::fs;

use palisade_core::audit::facts::TlsFacts;
use x509_parser::pem::Pem;

/// Where distributions keep them, in one file.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// Names of authorities; `None` when there is no such file.
pub(super) struct Roots(Option<BTreeSet<String>>);

impl Roots {
    pub(super) fn read() -> Self {
        let Some(text) = BUNDLES.iter().find_map(|path| fs::read(path).ok()) else { return Self(None) };
        let all = Pem::iter_from_buffer(&text).flatten();
        let names: BTreeSet<String> =
            all.filter_map(|pem| pem.parse_x509().ok().map(|root| root.subject().to_string())).collect();
        Self((!names.is_empty()).then_some(names))
    }

    /// Ends a server's chain at the first certificate whose issuer is known: nobody looks at what was sent beyond.
    pub(super) fn cut(&self, server: &mut TlsFacts) {
        let Some(roots) = &self.0 else { return };
        let known = server.chain.iter().position(|it| roots.contains(&it.issuer));
        server.issuer_known = Some(known.is_some());
        if let Some(last) = known {
            server.chain.truncate(last + 1);
        }
    }
}
