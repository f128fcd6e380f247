//! `acme`: how certificates are ordered.

use std::path::PathBuf;
use std::sync::Arc;

use super::super::LoadInputs;
use super::super::keys::{EDGE_ACME, EDGE_DIRECTORY, EDGE_EAB};
use super::super::read::Reader;
use super::super::yaml::{Data, Entry, Node};
use super::FileAcme;
use super::certificates::Holds;
use super::values::Wrong;
use crate::diagnostic::{Diagnostic, Span, Spanned, quoted};
use crate::edge::{Acme, AcmeDirectory, Challenge, ExternalAccount};

/// An authority that has a short name.
pub(super) struct Known {
    name: &'static str,
    url: &'static str,
    /// It takes only accounts that it knows from elsewhere.
    needs_eab: bool,
}

const KNOWN: [Known; 3] = [
    Known { name: "letsencrypt", url: "https://acme-v02.api.letsencrypt.org/directory", needs_eab: false },
    Known {
        name: "letsencrypt-staging",
        url: "https://acme-staging-v02.api.letsencrypt.org/directory",
        needs_eab: false,
    },
    Known { name: "zerossl", url: "https://acme.zerossl.com/v2/DV90", needs_eab: true },
];

/// The directory is that of an authority which certifies public names only.
pub(crate) fn is_public(directory: &AcmeDirectory) -> bool {
    KNOWN.iter().any(|known| known.url == directory.url)
}

const DIRECTORY_HINT: &str = "write `letsencrypt`, `letsencrypt-staging`, `zerossl`, or the address of an authority's directory: `https://ca.example/acme/directory`";

/// What is ordered from whom, unless it is said.
pub(super) fn usual() -> Acme {
    Acme {
        directories: vec![AcmeDirectory { url: KNOWN[0].url.to_owned(), root: None, eab: None }],
        email: None,
        challenge: Challenge::default(),
    }
}

fn directory_url(text: &str) -> Result<String, Wrong> {
    if let Some(known) = KNOWN.iter().find(|known| known.name == text) {
        return Ok(known.url.to_owned());
    }
    let wrong = |message: &str, hint: String| Err(Wrong { message: message.to_owned(), hint });
    if let Some(near) = super::super::suggest::nearest(text, KNOWN.iter().map(|known| known.name)) {
        return wrong("is not an authority's name or address", format!("did you mean `{near}`?"));
    }
    if let Some(rest) = text.strip_prefix("http://") {
        return wrong("is an address without TLS, which no authority has", format!("write `https://{rest}`"));
    }
    let Some(rest) = text.strip_prefix("https://") else {
        return wrong("is not an authority's name or address", DIRECTORY_HINT.to_owned());
    };
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let fine =
        !host.is_empty() && rest.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '#' | '"' | '\\' | '<' | '>'));
    if host.contains('@') {
        return wrong("holds a login, which an authority's address has not", "an account goes into `eab`".to_owned());
    }
    if !fine {
        return wrong("is not an authority's name or address", DIRECTORY_HINT.to_owned());
    }
    Ok(text.to_owned())
}

/// A directory with the place where it is written, or `acme` where it isn't.
struct Placed {
    directory: AcmeDirectory,
    span: Span,
    /// Something in it is wrong, and was reported.
    broken: bool,
}

impl Reader<'_> {
    pub(super) fn acme(&mut self, entry: &Entry, inputs: &LoadInputs<'_>) -> Option<Spanned<FileAcme>> {
        let mut fields = self.fields(&entry.value, &EDGE_ACME)?;
        let email = fields.value("email").and_then(|node| {
            let what = "an address that mail can be sent to";
            self.parsed(node, what, "write one address: `admin@barter.example`", |text| {
                let (user, host) = text.rsplit_once('@')?;
                let fine = |part: &str| {
                    !part.is_empty()
                        && !part.contains(|c: char| c.is_whitespace() || c.is_control() || c == ':' || c == '@')
                };
                (fine(user) && fine(host)).then(|| text.to_owned())
            })
        });
        let hint = "write `http-01` (asked at port 80) or `tls-alpn-01` (asked at port 443); `dns-01` isn't there: for a wildcard, give certificate files";
        let challenge = fields.value("challenge").and_then(|node| {
            self.parsed(node, "a way to show that the domain is yours", hint, |text| match text {
                "http-01" => Some(Challenge::Http01),
                "tls-alpn-01" => Some(Challenge::TlsAlpn01),
                _ => None,
            })
        });
        let written = fields.take("directory");
        let (root, eab) = (fields.take("root"), fields.take("eab"));
        fields.finish();
        let root_path = root.map(|entry| self.host_file(&entry.value, "`root`", Holds::Certificates, inputs));
        let account = eab.map(|entry| self.eab(&entry.value, inputs));
        let mut directories = match written {
            Some(entry) => self.directories(entry, inputs),
            None => {
                let directory = usual().directories.remove(0);
                vec![Placed { directory, span: entry.key_span, broken: false }]
            }
        };
        let (mut taken, mut root_taken, alone) = (false, false, directories.len() == 1);
        for placed in &mut directories {
            let known = KNOWN.iter().find(|known| known.url == placed.directory.url);
            // Beside others, one that everybody knows isn't the one that this host doesn't.
            if placed.directory.root.is_none() && (known.is_none() || alone) {
                root_taken = true;
                placed.directory.root = root_path.clone().flatten();
            }
            if placed.directory.eab.is_none() && !placed.broken && known.is_none_or(|known| known.needs_eab) {
                taken = true;
                placed.broken |= matches!(account, Some(None));
                placed.directory.eab = account.clone().flatten();
            }
        }
        let unused = [
            (eab, taken, "`eab` is for no directory: each has its own, or knows no such accounts"),
            (root, root_taken, "`root` is for no directory: each has its own, or one that everybody knows"),
        ];
        for (entry, _, message) in unused.into_iter().filter(|(_, taken, _)| !taken) {
            if let (Some(entry), Some(first)) = (entry, directories.first()) {
                let diagnostic = Diagnostic::error("conflict", message).at(entry.key_span, "");
                self.push(
                    diagnostic
                        .also(first.span, "the directory")
                        .hint("remove it, or name the authority that it is for"),
                );
            }
        }
        for directory in &directories {
            self.external_account(directory);
        }
        let spans = directories.iter().map(|directory| directory.span).collect();
        let acme = Acme {
            directories: directories.into_iter().map(|placed| placed.directory).collect(),
            email,
            challenge: challenge.unwrap_or_default(),
        };
        let directories = if written.is_some() { spans } else { Vec::new() };
        Some(Spanned::new(FileAcme { acme, directories }, entry.key_span))
    }

    /// Whether it needs an account from elsewhere, and has one.
    fn external_account(&mut self, placed: &Placed) {
        let Some(known) = KNOWN.iter().find(|known| known.url == placed.directory.url) else { return };
        match &placed.directory.eab {
            None if known.needs_eab && !placed.broken => self.push(
                Diagnostic::error(
                    "missing-key",
                    format!("`{}` takes only accounts that it knows: `eab` is missing", known.name),
                )
                .at(placed.span, "")
                .hint("make \"EAB credentials\" in its console, and write `eab: {key_id: …, key_file: ./eab.key}`"),
            ),
            Some(_) if !known.needs_eab => self.push(
                Diagnostic::error(
                    "conflict",
                    format!("`{}` has no accounts from elsewhere, so `eab` means nothing to it", known.name),
                )
                .at(placed.span, "")
                .hint("remove `eab`, or name the authority that it is for"),
            ),
            _ => {}
        }
    }

    fn directories(&mut self, entry: &Entry, inputs: &LoadInputs<'_>) -> Vec<Placed> {
        let items: &[Arc<Node>] = match &entry.value.data {
            Data::List(items) => items,
            _ => std::slice::from_ref(&entry.value),
        };
        if items.is_empty() {
            let message = "`directory` names no authority";
            self.push(Diagnostic::error("missing-key", message).at(entry.key_span, "").hint(DIRECTORY_HINT));
        }
        let mut directories: Vec<Placed> = Vec::new();
        for item in items {
            let Some(placed) = self.directory(item, inputs) else { continue };
            match directories.iter().find(|known| known.directory.url == placed.directory.url) {
                Some(known) => {
                    let message = "this authority is listed twice";
                    let diagnostic = Diagnostic::error("duplicate-key", message).at(placed.span, "");
                    self.push(diagnostic.also(known.span, "the first time").hint("keep one of them"));
                }
                None => directories.push(placed),
            }
        }
        directories
    }

    fn directory(&mut self, node: &Node, inputs: &LoadInputs<'_>) -> Option<Placed> {
        let what = "an authority's name or address";
        let Data::Map(_) = &node.data else {
            let text = self.text(node, "a directory")?;
            let url = self.understood(&text, what, DIRECTORY_HINT, directory_url)?;
            return Some(Placed {
                directory: AcmeDirectory { url, root: None, eab: None },
                span: node.span,
                broken: false,
            });
        };
        let mut fields = self.fields(node, &EDGE_DIRECTORY)?;
        let (url, root, eab) = (fields.take("url"), fields.value("root"), fields.value("eab"));
        fields.finish();
        let root = root.and_then(|node| self.host_file(node, "`root`", Holds::Certificates, inputs));
        let eab = eab.map(|node| self.eab(node, inputs));
        let Some(url_entry) = url else {
            self.push(
                Diagnostic::error("missing-key", "this directory has no `url`").at(node.span, "").hint(DIRECTORY_HINT),
            );
            return None;
        };
        let text = self.text(&url_entry.value, "`url`")?;
        let url = self.understood(&text, what, DIRECTORY_HINT, directory_url)?;
        let broken = matches!(eab, Some(None));
        Some(Placed { directory: AcmeDirectory { url, root, eab: eab.flatten() }, span: text.span, broken })
    }

    fn eab(&mut self, node: &Node, inputs: &LoadInputs<'_>) -> Option<ExternalAccount> {
        let mut fields = self.fields(node, &EDGE_EAB)?;
        let key_id = fields.value("key_id").map(|node| {
            self.parsed(node, "an account's identifier", "write it as the authority's console shows it", |text| {
                let fine = !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
                fine.then(|| text.to_owned())
            })
        });
        let key_file: Option<Option<PathBuf>> =
            fields.value("key_file").map(|node| self.host_file(node, "`key_file`", Holds::Anything, inputs));
        fields.finish();
        for (name, missing) in [("key_id", key_id.is_none()), ("key_file", key_file.is_none())] {
            if missing {
                self.push(
                    Diagnostic::error("missing-key", format!("`eab` has no {}", quoted(name)))
                        .at(node.span, "")
                        .hint("write both; the key is in a file of its own because it is a secret: `eab: {key_id: …, key_file: ./eab.key}`"),
                );
            }
        }
        Some(ExternalAccount { key_id: key_id??, key_file: key_file?? })
    }
}
