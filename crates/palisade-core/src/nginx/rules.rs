//! The one table of what may be found in an nginx configuration: stable ids, how bad it is at worst, and why it matters.
//!
//! What exactly was seen, and what to do about it, belongs to the finding; docs/check-nginx.md is made from this table.

use crate::diagnostic::{Diagnostic, Severity};

/// One thing that may be found.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// Stable, for scripts.
    pub id: &'static str,
    /// How bad it is at worst.
    pub severity: Severity,
    /// What it is, in a few words.
    pub title: &'static str,
    /// Why it matters.
    pub why: &'static str,
}

impl Rule {
    /// A finding of this rule, as bad as it gets.
    pub(super) fn hit(&'static self, message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: self.severity, why: Some(self.why), ..Diagnostic::error(self.id, message) }
    }
}

/// The documentation's page: every rule, the worst first.
pub fn document() -> String {
    let mut page = String::from(
        "# What `palisade check-nginx` may find\n\n\
         Made from the table in `crates/palisade-core/src/nginx/rules.rs` by its test (`UPDATE_DOCS=1`).\n\
         The exit code is 1 when an error is found, 2 when a file can't be read, and 0 otherwise. How it is used is in\n\
         [nginx.md](nginx.md).\n",
    );
    for (severity, heading) in [(Severity::Error, "Errors"), (Severity::Warning, "Warnings"), (Severity::Note, "Notes")]
    {
        page += &format!("\n## {heading}\n\n| id | what | why it matters |\n| --- | --- | --- |\n");
        for rule in RULES.iter().filter(|rule| rule.severity == severity) {
            page += &format!("| `{}` | {} | {} |\n", rule.id, rule.title, rule.why);
        }
    }
    page
}

macro_rules! rules {
    ($($name:ident $severity:ident $id:literal $title:literal $why:literal)*) => {
        $(pub(super) static $name: Rule =
            Rule { id: $id, severity: Severity::$severity, title: $title, why: $why };)*
        /// All of them, in the order of the documentation.
        pub static RULES: &[&Rule] = &[$(&$name),*];
    };
}

rules! {
    SYNTAX Error "syntax" "the file isn't in nginx's language"
        "nginx refuses the whole configuration: after the next restart nothing is served"
    UNREADABLE Error "unreadable" "a file that belongs to the configuration can't be read"
        "What is in there may change everything that is said about the rest"
    WRONG_CONTEXT Error "wrong-context" "a directive stands where nginx doesn't allow it"
        "nginx refuses the whole configuration (`directive is not allowed here`)"
    GONE Error "directive-gone" "a directive that nginx has no longer"
        "nginx refuses the whole configuration with the next version"
    ZONE_UNKNOWN Error "zone-unknown" "a limit uses a zone that nobody defines"
        "nginx refuses the whole configuration (`zero size shared memory zone`)"
    INTERNAL_PORT Error "internal-port-proxied" "an internal service is handed to everybody"
        "Databases, caches, model servers and the container engine are made for trusted peers, and many ask for no password"
    INTERNAL_SERVICE Error "internal-service-proxied" "a service that the stack keeps internal is handed to everybody"
        "The Compose file doesn't publish it; this server does, without anybody having decided so"
    OPEN_PROXY Error "open-proxy" "the client says where its request is sent"
        "Whoever asks reaches what this server reaches: metadata of the cloud, databases, other people's sites in your name"
    UPSTREAM_PUBLIC Warning "upstream-public" "the service behind the proxy can be reached past it"
        "TLS, limits and the addresses in X-Forwarded-For hold only for those who come through the proxy"
    TLS_OLD Error "tls-old" "old versions of TLS are spoken"
        "TLS 1.0 and 1.1 have been given up since 2021 (RFC 8996), and SSL is broken; a browser that needs them is a danger itself"
    TLS_CIPHERS Error "tls-weak-ciphers" "ciphers are allowed that are broken"
        "Who listens long enough, or sits in between, reads along"
    TLS_OF_DEFAULT Warning "tls-of-default-server" "versions of TLS are those of another server"
        "Before nginx 1.29.2 the version is picked before the name is known: `ssl_protocols` of the address's default server counts, whatever the others say"
    CERTIFICATE_MISSING Error "certificate-missing" "TLS without a certificate, or its file isn't there"
        "nginx doesn't start, or answers no handshake for the name"
    NOT_REDIRECTED Warning "http-not-redirected" "what is served with TLS is served without it, too"
        "Whoever types the name comes without TLS: passwords and sessions can be read and changed on the way"
    HTTP_ONLY Warning "http-only" "a service is handed to everybody without TLS"
        "Passwords and sessions can be read and changed on the way"
    TRUST_EVERYBODY Error "real-ip-from-everybody" "everybody may say which address they have"
        "Logs, limits and allow lists are for whichever address the client writes into a header"
    LIMIT_KEY Error "limit-by-header" "a limit counts by something that the client chooses"
        "A new value with each request, and the limit never holds"
    FORWARDED_SPOOFABLE Warning "forwarded-spoofable" "an address that the client chooses is passed on as its own"
        "The service behind takes it for the client's address: for its logs, its limits, and sometimes for who is an administrator"
    ALIAS_TRAVERSAL Error "alias-traversal" "files beside the folder can be fetched"
        "`/files../secret` becomes `/srv/files/../secret`: everything beside the folder is public, too"
    FILES_EXPOSED Error "hidden-files-served" "a folder that is served has files in it that nobody should see"
        "A `.git` is the whole source with its history, a `.env` is all passwords"
    AUTOINDEX Warning "autoindex" "folders are listed"
        "Whatever is put there is found, also what nobody linked to"
    STATUS_PUBLIC Warning "status-public" "nginx's own statistics are for everybody"
        "They tell when nobody looks and how much is needed to be too much"
    URI_IN_REDIRECT Error "decoded-path-in-redirect" "a redirect holds a path that nginx has decoded"
        "`%0d%0a` in a path becomes a line end in the answer: whoever sends a link adds headers and content to your page"
    OPEN_REDIRECT Warning "open-redirect" "a redirect leads wherever the client says"
        "A link to your site ends at a copy of it that somebody else made to collect passwords"
    LOCATION_NEVER Warning "location-never-asked" "a location that keeps people out is never asked"
        "Of locations by regular expression the first that matches wins: what was to be denied is served, or run"
    HEADER_LOST Warning "add-header-lost" "an inner block takes headers of an outer one away"
        "A block that has one `add_header` gets none from outside: protection is missing exactly there"
    PROXY_URI Warning "proxy-uri" "paths are put together wrongly on their way to the service"
        "`proxy_pass` with a path replaces what the location matched: a slash on one side only gives `//x` or `/v1x`"
    WEBSOCKET Warning "websocket-broken" "a WebSocket won't come through"
        "Without `Upgrade`, `Connection` and HTTP/1.1 the service sees an ordinary request and refuses"
    IF_IS_EVIL Warning "if-in-location" "an `if` in a location does more than return or rewrite"
        "What is in there replaces the location's handling in part, and in ways that surprise everybody"
    UPSTREAM_UNVERIFIED Warning "upstream-unverified" "TLS to another host, whose certificate isn't looked at"
        "Anybody on the way can pretend to be the service; nginx checks nothing unless it is told to"
    LIMIT_STATUS Note "limit-status" "who asks too often is told that the server is broken"
        "503 is the default; 429 says what is the matter, and monitoring doesn't take it for an outage"
    SERVER_TOKENS Note "server-tokens" "the version of nginx is told to everybody"
        "It saves attackers the guess"
    NO_DEFAULT Note "no-default-server" "no server was chosen for unknown names"
        "Whoever asks for the bare address, or has pointed a name of their own here, gets the first site of the files"
    NO_IPV6 Note "ipv6-missing" "a port is served by IPv4 only"
        "Clients with IPv6 alone don't come in, and a certificate's challenge fails if the name has an AAAA record"
    RESOLVER_PUBLIC Note "resolver-public" "names are asked of a resolver on the internet"
        "Its answers come without protection; whoever forges one is the service"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_what_the_table_says() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/check-nginx.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path, document()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(written == document(), "docs/check-nginx.md is out of date: run this test with UPDATE_DOCS=1");
        let mut ids: Vec<_> = RULES.iter().map(|rule| rule.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), RULES.len());
    }
}
