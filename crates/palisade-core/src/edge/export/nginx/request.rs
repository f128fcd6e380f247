//! What is found out about a request in `http`: whether it can be read in two ways, and which way it came.

use super::super::{Lines, hsts, literal};
use super::server::redirects_by_scheme;
use super::{PAGES, Writer};
use crate::network::Network;

impl Writer<'_> {
    /// A server behind this one may undo escapes, leave parameters out and walk up at `..` in any order. What could so become
    /// another route's path is refused, as the edge does.
    pub(super) fn refused(&self, lines: &mut Lines) {
        let p = &self.prefix;
        lines.comment("Paths that two programs could read differently (`.` and `..`, an escaped slash behind `;`), and hosts that are none.");
        let has_pages = self.pages().next().is_some();
        // The page for it is asked for with the same request.
        let of = if has_pages { "$request_uri $http_host $uri" } else { "$request_uri $http_host" };
        lines.open(format!("map \"{of}\" ${p}_refused {{"));
        lines.line("default \"\";");
        if has_pages {
            lines.line("volatile;");
            lines.line(format!(r#""~^\S+ \S* {}/" "";"#, literal(PAGES)));
        }
        lines.line(r#""~*^[^?\s]*(?:[/\x5c]|%2f|%5c)(?:\.|%2e){1,2}(?:[/\x5c;?\s]|%2f|%5c|%3b)" 1;"#);
        lines.line(r#""~*^[^?\s]*(?:;|%3b)[^/?\s]*(?:\x5c|%2f|%5c)" 1;"#);
        lines.line(r#""~*^\S+ \S*[^\sa-z0-9._:\x5b\x5d-]" 1;"#);
        lines.close("}");
    }

    /// Who asks and how: of what clients say of themselves only the part that trusted proxies have written.
    pub(super) fn origin(&self, lines: &mut Lines) {
        let p = &self.prefix;
        let edge = self.export.edge;
        if edge.trusted_proxies.is_empty() {
            lines.comment("What clients say of themselves is dropped; upstreams are told what is seen here.");
        } else {
            lines.comment("What clients say of themselves is dropped, but for what a trusted proxy has written.");
            self.scheme(&edge.trusted_proxies, lines);
        }
        if redirects_by_scheme(edge) {
            lines.open(format!("map \"${p}_proto:$uri\" ${p}_redirected {{"));
            lines.line("default \"\";");
            lines.line(format!(r#""~^http:(?!/\.well-known/acme-challenge/|{}/)" 1;"#, literal(PAGES)));
            lines.close("}");
        }
        if !edge.redirect {
            self.policies(lines);
        }
        if self.is_by_header() {
            self.proxies(lines);
        }
        lines.comment("The host is told with the port that the client asked.");
        lines.open(format!("map $http_host ${p}_port {{"));
        lines.line("default \"\";");
        lines.line("\"~(:[0-9]+)$\" $1;");
        lines.close("}");
        lines.comment("In `Forwarded`, addresses of IPv6 stand in brackets and quotes, and so do hosts with a port.");
        let host = self.host();
        for (of, name) in [("$remote_addr", "node"), (host.as_str(), "named")] {
            lines.open(format!("map \"{of}\" ${p}_{name} {{"));
            lines.line(format!("default \"{of}\";"));
            let (before, behind) = if name == "node" { ("[", "]") } else { ("", "") };
            lines.line(format!(r#""~:" "\"{before}{of}{behind}\"";"#));
            lines.close("}");
        }
    }

    /// `Strict-Transport-Security` where plain HTTP is served as well: it may stand in answers over TLS only.
    fn policies(&self, lines: &mut Lines) {
        for (number, route) in self.routes() {
            let Some(policy) = route.hsts else { continue };
            lines.open(format!("map {} ${}_hsts_{number} {{", self.proto(), self.prefix));
            lines.line("default \"\";");
            lines.line(format!("https \"{}\";", hsts(policy)));
            lines.close("}");
        }
    }

    /// What trusted proxies say that the client spoke with them; with the PROXY protocol the peer is who came to the proxy.
    fn scheme(&self, trusted: &[Network], lines: &mut Lines) {
        let p = &self.prefix;
        let peer = if self.is_by_header() { "$realip_remote_addr" } else { "$remote_addr" };
        lines.open(format!("geo {peer} ${p}_trusted {{"));
        lines.line("default 0;");
        for network in trusted {
            lines.line(format!("{network} 1;"));
        }
        lines.close("}");
        lines.open(format!("map \"${p}_trusted:$http_x_forwarded_proto\" ${p}_proto {{"));
        lines.line("default $scheme;");
        for scheme in ["http", "https"] {
            lines.line(format!(r#""~*^1:(?:.*,)?\s*{scheme}\s*$" {scheme};"#));
        }
        lines.close("}");
    }

    /// The proxies on the way: from the client on, all that is left of X-Forwarded-For was written by trusted ones.
    fn proxies(&self, lines: &mut Lines) {
        let p = &self.prefix;
        let rest = format!("{p}_rest");
        lines.open(format!("map \"$remote_addr $realip_remote_addr $http_x_forwarded_for\" ${p}_for {{"));
        lines.line("default \"$remote_addr, $realip_remote_addr\";");
        lines.line(r#""~^(\S+) \1 " $remote_addr;"#);
        lines.line(format!(r#""~^(\S+) \S+ (?:.*,\s*)?(?<{rest}>\1(?:\s*,.*)?)$" "${rest}, $realip_remote_addr";"#));
        lines.close("}");
        lines.open(format!("map \"$remote_addr $realip_remote_addr\" ${p}_way {{"));
        lines.line("default \", for=$realip_remote_addr\";");
        lines.line(r#""~^(\S+) \1$" "";"#);
        lines.line(r#""~ \S*:" ", for=\"[$realip_remote_addr]\"";"#);
        lines.close("}");
    }

    /// Whether trusted proxies say in a header who asks.
    pub(super) fn is_by_header(&self) -> bool {
        !self.export.edge.trusted_proxies.is_empty() && !self.export.edge.proxy_protocol
    }

    /// What the client speaks, as far as it is known: `http` or `https`.
    pub(super) fn proto(&self) -> String {
        if self.export.edge.trusted_proxies.is_empty() {
            "$scheme".to_owned()
        } else {
            format!("${}_proto", self.prefix)
        }
    }

    /// The host as the upstream is to see it.
    fn host(&self) -> String {
        format!("$host${}_port", self.prefix)
    }

    /// Fields for upstreams, with their values.
    pub(super) fn told(&self) -> Vec<(&'static str, String)> {
        let p = &self.prefix;
        let proto = self.proto();
        let by_header = self.is_by_header();
        let chain = if by_header { format!("${p}_for") } else { "$remote_addr".to_owned() };
        let way = if by_header { format!("${p}_way") } else { String::new() };
        let mut all = vec![
            ("Host", self.host()),
            ("X-Real-IP", "$remote_addr".to_owned()),
            ("X-Forwarded-For", chain),
            ("X-Forwarded-Proto", proto.clone()),
            ("X-Forwarded-Host", self.host()),
            ("Forwarded", format!("\"for=${p}_node;proto={proto};host=${p}_named{way}\"")),
        ];
        all.extend(DROPPED.map(|name| (name, "\"\"".to_owned())));
        all
    }
}

/// Fields that clients could say something of themselves with; nginx drops only what it is told by name.
pub(super) const DROPPED: [&str; 19] = [
    "X-Forwarded-Port",
    "X-Forwarded-Client-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Path",
    "X-Forwarded-Uri",
    "X-Forwarded-Method",
    "X-Forwarded-Server",
    "X-Forwarded-By",
    "X-Forwarded-Ssl",
    "X-Forwarded-Https",
    "X-Forwarded-Scheme",
    "X-Forwarded-Protocol",
    "X-Forwarded-User",
    "X-Forwarded-Email",
    "X-Forwarded-Groups",
    "X-Forwarded-Preferred-Username",
    "X-Forwarded-Access-Token",
    "X-Forwarded-Client-Cert",
    "Proxy",
];
