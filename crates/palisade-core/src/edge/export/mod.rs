//! What the edge serves, written for nginx and HAProxy: for those who keep theirs.
//!
//! Pure: text out of the model. What such a file can't do stands in it as a comment, and is told besides.

mod haproxy;
mod nginx;
mod reach;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::{CertificateSource, Challenge, Edge, Rate, Route, Upstream};
pub use haproxy::haproxy;
pub use nginx::nginx;
pub use reach::{By, Reach, Unreachable, reach};

/// Where HAProxy finds somebody who answers challenges: it can't serve a file itself.
pub const ACME_PORT: u16 = 8402;

/// What is to be written down.
#[derive(Clone, Copy, Debug)]
pub struct Export<'a> {
    /// The stack's name: lower-case letters, digits, `-` and `_`.
    pub stack: &'a str,
    /// What is served.
    pub edge: &'a Edge,
    /// Where each upstream of the routes is found.
    pub reach: &'a BTreeMap<Upstream, Reach>,
    /// Statuses for which the folder of error pages has a page.
    pub error_pages: &'a BTreeSet<u16>,
    /// How the file is wished.
    pub options: &'a Options,
}

/// How the file is wished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Addresses to listen on. Empty: all of them, IPv4 and IPv6.
    pub listen: Vec<IpAddr>,
    /// For this version of nginx. `None`: what every version from 1.22 on takes.
    pub nginx_version: Option<Version>,
    /// Only what belongs into nginx's `http` block, as a file for `conf.d`.
    pub conf_d: bool,
    /// Folder of certificates that aren't named in the stack's file; each tool has its own by default.
    pub certificates: Option<PathBuf>,
    /// Folder that holds `.well-known/acme-challenge`.
    pub acme_root: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            nginx_version: None,
            conf_d: false,
            certificates: None,
            acme_root: PathBuf::from("/var/www/acme"),
        }
    }
}

/// A version of nginx: `1.26.3`, or `1.26`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16, pub u16);

impl std::str::FromStr for Version {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no version: 1.26.3, or 1.26");
        let parts: Result<Vec<u16>, _> = text.split('.').map(str::parse).collect();
        let version = match parts.map_err(|_| wrong())?[..] {
            [major, minor] => Version(major, minor, 0),
            [major, minor, patch] => Version(major, minor, patch),
            _ => return Err(wrong()),
        };
        if version < Version(1, 22, 0) {
            return Err(format!("{text} is older than 1.22, which is the oldest that is written for"));
        }
        Ok(version)
    }
}

/// A file, and what it can't do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The file.
    pub text: String,
    /// What the edge does and this file doesn't, or differently; each a sentence without a full stop.
    pub differs: Vec<String>,
}

/// Why no file can be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{}` can't be written in this tool's language: it has {character:?} in it", path.display())]
pub struct Unwritable {
    what: &'static str,
    path: PathBuf,
    character: char,
}

/// Domains that are served alike.
struct Site<'a> {
    domains: Vec<&'a str>,
    /// By their numbers in the edge, the longest path first.
    routes: Vec<(usize, &'a Route)>,
    certificate: &'a CertificateSource,
    is_default: bool,
}

impl<'a> Export<'a> {
    /// In the order of the file, from 0.
    fn routes(&self) -> impl Iterator<Item = (usize, &'a Route)> + use<'a> {
        self.edge.routes.iter().map(|route| &route.value).enumerate()
    }

    /// Domains with the same routes and a certificate from the same place share a site.
    fn sites(&self) -> Vec<Site<'a>> {
        let mut sites: Vec<Site<'a>> = Vec::new();
        let mut seen = BTreeSet::new();
        for domain in self.edge.routes.iter().flat_map(|route| &route.value.domains) {
            if !seen.insert(domain.as_str()) {
                continue;
            }
            let mut routes: Vec<_> = self.routes().filter(|(_, route)| route.domains.contains(domain)).collect();
            routes.sort_by_key(|(number, route)| (std::cmp::Reverse(path(route).len()), *number));
            let certificate = self.edge.certificates.get(domain).unwrap_or(&CertificateSource::Acme);
            let is_default = self.edge.default_domain.as_ref() == Some(domain);
            let numbers = |routes: &[(usize, &Route)]| routes.iter().map(|(number, _)| *number).collect::<Vec<_>>();
            let alike =
                |site: &&mut Site<'_>| site.certificate == certificate && numbers(&site.routes) == numbers(&routes);
            match sites.iter_mut().find(alike) {
                Some(site) => {
                    site.domains.push(domain);
                    site.is_default |= is_default;
                }
                None => sites.push(Site { domains: vec![domain], routes, certificate, is_default }),
            }
        }
        sites
    }

    /// `palisade_shop`: what names in the file begin with, so that files of several stacks don't clash.
    fn prefix(&self) -> String {
        format!("palisade_{}", self.stack.replace(|c: char| !c.is_ascii_alphanumeric(), "_"))
    }

    /// What both tools do less well, whatever is in the edge; `tool` says it itself.
    fn differs(&self, tool: &str) -> Vec<String> {
        let routes = || self.edge.routes.iter().map(|route| &route.value);
        let mut all = Vec::new();
        if routes().any(|route| route.ban.is_some()) {
            all.push(
                "nobody is banned in the firewall (`ban`): fail2ban can do that from the log of refused requests"
                    .to_owned(),
            );
        }
        if routes().any(|route| !route.compress.is_empty()) {
            all.push(format!("compression is gzip only: br and zstd need modules that {tool} comes without"));
        }
        let is_ordered = |source: &CertificateSource| matches!(source, CertificateSource::Acme);
        if self.edge.certificates.values().any(is_ordered) {
            all.push("certificates are ordered and renewed by somebody else, such as certbot: see there".to_owned());
            if self.edge.acme.as_ref().is_some_and(|acme| acme.challenge == Challenge::TlsAlpn01) {
                all.push(format!("{tool} doesn't answer tls-alpn-01: order certificates with http-01"));
            }
        }
        if self.edge.certificates.values().any(|source| *source == CertificateSource::Local) {
            all.push(
                "no certificate authority of the stack's own (`local`): put certificates where the file says"
                    .to_owned(),
            );
        }
        if !self.edge.trusted_proxies.is_empty() && !self.edge.proxy_protocol {
            all.push("trusted proxies are asked for the client in X-Forwarded-For and X-Forwarded-Proto: what they say in `Forwarded` alone isn't read".to_owned());
        }
        if !self.edge.trusted_proxies.is_empty() {
            all.push("trusted proxies aren't believed which host the client asked for (X-Forwarded-Host, or `host=` in `Forwarded`), nor its address in X-Real-IP alone".to_owned());
        }
        all.push("a head that is too large is answered with 400 instead of 431".to_owned());
        let cut = self.edge.limits.body_bytes_per_s_min;
        if cut > 0 {
            all.push(format!(
                "clients that send or take slower than {cut} bytes a second aren't cut, only those that pause"
            ));
        }
        all
    }

    /// Paths go into the file as they are; neither language can quote everything.
    fn writable(&self) -> Result<(), Unwritable> {
        let files = self.edge.certificates.values().flat_map(|source| match source {
            CertificateSource::Files { chain, key } => vec![("the certificate's file", chain), ("the key's file", key)],
            CertificateSource::Acme | CertificateSource::Local => Vec::new(),
        });
        let folders = [("the folder of challenges", &self.options.acme_root)].into_iter();
        let more = self.options.certificates.iter().map(|path| ("the folder of certificates", path));
        let pages = self.edge.error_pages.iter().map(|path| ("the folder of error pages", path));
        for (what, path) in files.chain(folders).chain(more).chain(pages) {
            let text = path.to_string_lossy();
            let forbidden = |c: &char| {
                c.is_control() || matches!(c, '$' | '"' | '\'' | '\\' | '\u{fffd}' | '%' | '#' | '*' | '?' | '[')
            };
            if let Some(character) = text.chars().find(forbidden) {
                return Err(Unwritable { what, path: path.clone(), character });
            }
        }
        Ok(())
    }
}

/// A route's path without a slash at its end; `/` is empty.
fn path(route: &Route) -> &str {
    route.path.trim_end_matches('/')
}

/// The part of a regular expression that matches this text.
fn literal(text: &str) -> String {
    let mut pattern = String::new();
    for c in text.chars() {
        if !c.is_ascii_alphanumeric() && !matches!(c, '/' | '-' | '_' | '~' | '%') && c.is_ascii() {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

/// Media types as words: `text/*` is those that servers send.
fn media_types(route: &Route) -> Vec<&str> {
    let spread = |kind: &'_ String| -> Vec<&str> {
        match kind.as_str() {
            // Not text/event-stream: whoever compresses may hold events back.
            "text/*" => {
                vec!["text/css", "text/csv", "text/html", "text/javascript", "text/markdown", "text/plain", "text/xml"]
            }
            _ => Vec::new(),
        }
    };
    let mut all: BTreeSet<&str> = route.compress.iter().flat_map(spread).collect();
    all.extend(route.compress.iter().map(String::as_str).filter(|kind| !kind.contains('*')));
    all.into_iter().collect()
}

/// Whole seconds until one more request fits, at least one.
fn retry_after_s(rate: Option<Rate>) -> u64 {
    rate.map_or(1, |rate| 1_000_u64.div_ceil(u64::from(rate.milli_per_s.max(1))).max(1))
}

/// `max-age=31536000; includeSubDomains`.
fn hsts(hsts: super::Hsts) -> String {
    let mut text = format!("max-age={}", hsts.max_age_s);
    text += if hsts.subdomains { "; includeSubDomains" } else { "" };
    text += if hsts.preload { "; preload" } else { "" };
    text
}

/// What a site's certificate is called: by its first domain, `_.example.org` for `*.example.org`, as the edge does it.
fn file_name(site: &Site<'_>) -> String {
    site.domains.first().map_or_else(String::new, |domain| domain.replacen('*', "_", 1))
}

/// A time for a configuration: whole seconds where it is that, else milliseconds.
fn time(ms: u64) -> String {
    if ms > 0 && ms.is_multiple_of(1_000) { format!("{}s", ms / 1_000) } else { format!("{}ms", ms.max(1)) }
}

/// A path as text; what isn't Unicode was refused before.
fn shown(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Lines with indentation.
#[derive(Default)]
struct Lines {
    text: String,
    depth: usize,
}

impl Lines {
    fn line(&mut self, line: impl AsRef<str>) {
        let line = line.as_ref();
        if !line.is_empty() {
            self.text.extend(std::iter::repeat_n("    ", self.depth));
        }
        self.text.push_str(line);
        self.text.push('\n');
    }
    fn comment(&mut self, text: impl AsRef<str>) {
        for line in wrapped(text.as_ref(), 110) {
            self.line(format!("# {line}").trim_end());
        }
    }
    fn open(&mut self, line: impl AsRef<str>) {
        self.line(line);
        self.depth += 1;
    }
    fn close(&mut self, line: &str) {
        self.depth = self.depth.saturating_sub(1);
        self.line(line);
    }
}

/// Lines of at most `width` characters; words stay whole, and what goes on is indented like the list item that it is in.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let indent = if text.starts_with("* ") { "  " } else { "" };
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().expect("there is one at least");
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > width {
            lines.push(format!("{indent}{word}"));
        } else {
            let space = if last.is_empty() { "" } else { " " };
            last.push_str(space);
            last.push_str(word);
        }
    }
    lines
}
