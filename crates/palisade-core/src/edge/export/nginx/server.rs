//! The `server` blocks: what listens, and what each path leads to.

use super::super::super::{CertificateSource, Edge, Route, TlsVersion, UpstreamProtocol};
use super::super::{Lines, Site, file_name, hsts, literal, media_types, path, retry_after_s, shown, time};
use super::{CIPHERS, HTTP2_DIRECTIVE, PAGES, Writer};

impl Writer<'_> {
    /// Who asks for another name gets no certificate, and no page.
    pub(super) fn catch_all(&self, lines: &mut Lines) {
        if self.export.edge.default_domain.is_some() || self.export.options.conf_d {
            return;
        }
        lines.line("");
        lines.comment("Other names, and none.");
        lines.open("server {");
        self.listen_http(true, lines);
        self.listen_https(true, true, lines);
        lines.line("server_name _;");
        lines.line("ssl_reject_handshake on;");
        lines.comment(
            "Versions of TLS, and limits of a head, are this server's until it is known which name is asked for.",
        );
        self.tls(lines);
        self.connection(lines);
        self.refusal(lines);
        lines.line("return 421;");
        lines.close("}");
    }

    fn listen(&self, port: u16) -> Vec<String> {
        match &self.export.options.listen[..] {
            [] => vec![port.to_string(), format!("[::]:{port}")],
            given => given.iter().map(|ip| std::net::SocketAddr::new(*ip, port).to_string()).collect(),
        }
    }

    fn listen_http(&self, default: bool, lines: &mut Lines) {
        let mut more = if default { " default_server".to_owned() } else { String::new() };
        more += if self.export.edge.proxy_protocol { " proxy_protocol" } else { "" };
        for address in self.listen(self.export.edge.http_port) {
            lines.line(format!("listen {address}{more};"));
        }
    }

    /// `first`: of those at these addresses, of which one has to share QUIC out among the workers.
    fn listen_https(&self, default: bool, first: bool, lines: &mut Lines) {
        let directive = self.version_is_at_least(HTTP2_DIRECTIVE);
        let mut more = if directive { " ssl".to_owned() } else { " ssl http2".to_owned() };
        more += if default { " default_server" } else { "" };
        more += if self.export.edge.proxy_protocol { " proxy_protocol" } else { "" };
        for address in self.listen(self.export.edge.https_port) {
            lines.line(format!("listen {address}{more};"));
            if self.has_quic() {
                let share = if first { " reuseport" } else { "" };
                let default = if default { " default_server" } else { "" };
                lines.line(format!("listen {address} quic{share}{default};"));
            }
        }
        if directive {
            lines.line("http2 on;");
        }
    }

    pub(super) fn site(&self, site: &Site<'_>, lines: &mut Lines) {
        let edge = self.export.edge;
        let names = site.domains.iter().map(|domain| server_name(domain)).collect::<Vec<_>>().join(" ");
        let default = site.is_default && !self.export.options.conf_d;
        let by_scheme = redirects_by_scheme(edge);
        let has_http = !edge.redirect || by_scheme;
        lines.line("");
        if !has_http {
            self.redirect(site, default, lines);
            lines.line("");
        }
        lines.open("server {");
        if has_http {
            self.listen_http(default, lines);
        }
        let first =
            default || self.export.options.conf_d && self.sites.first().is_some_and(|first| std::ptr::eq(first, site));
        self.listen_https(default, first, lines);
        lines.line(format!("server_name {names};"));
        self.certificate(site, lines);
        self.tls(lines);
        self.connection(lines);
        self.real_ip(lines);
        match edge.access_log {
            Some(_) => {
                lines.line(format!("access_log /var/log/nginx/{}.access.log {};", self.export.stack, self.prefix))
            }
            None => lines.line("access_log off;"),
        }
        for status in self.pages() {
            lines.line(format!("error_page {status} {PAGES}/{status}.html;"));
        }
        self.told_to_upstreams(site, lines);
        self.refusal(lines);
        if by_scheme {
            lines.comment("Behind a proxy that ends TLS only it knows what the client speaks.");
            lines.open(format!("if (${}_redirected) {{", self.prefix));
            lines.line(self.redirection());
            lines.close("}");
        }
        if has_http {
            self.challenges(lines);
        }
        for (number, route) in &site.routes {
            self.location(*number, route, lines);
        }
        if !site.routes.iter().any(|(_, route)| path(route).is_empty()) {
            lines.open("location / {");
            lines.line("return 404;");
            lines.close("}");
        }
        self.error_pages(site, lines);
        lines.close("}");
    }

    /// The server for plain HTTP, where all of it leads to HTTPS.
    fn redirect(&self, site: &Site<'_>, default: bool, lines: &mut Lines) {
        let names = site.domains.iter().map(|domain| server_name(domain)).collect::<Vec<_>>().join(" ");
        lines.open("server {");
        self.listen_http(default, lines);
        lines.line(format!("server_name {names};"));
        self.connection(lines);
        lines.line("access_log off;");
        self.refusal(lines);
        self.challenges(lines);
        lines.open("location / {");
        lines.line(self.redirection());
        lines.close("}");
        lines.close("}");
    }

    fn redirection(&self) -> String {
        let port = match self.export.edge.https_port {
            443 => String::new(),
            port => format!(":{port}"),
        };
        format!("return 308 https://$host{port}$request_uri;")
    }

    fn refusal(&self, lines: &mut Lines) {
        lines.open(format!("if (${}_refused) {{", self.prefix));
        lines.line("return 400;");
        lines.close("}");
    }

    fn certificate(&self, site: &Site<'_>, lines: &mut Lines) {
        let (chain, key) = match site.certificate {
            CertificateSource::Files { chain, key } => (shown(chain), shown(key)),
            CertificateSource::Acme | CertificateSource::Local => {
                let folder =
                    self.export.options.certificates.as_ref().map_or("/etc/letsencrypt/live".to_owned(), |f| shown(f));
                let name = file_name(site);
                (format!("{folder}/{name}/fullchain.pem"), format!("{folder}/{name}/privkey.pem"))
            }
        };
        lines.line(format!("ssl_certificate \"{chain}\";"));
        lines.line(format!("ssl_certificate_key \"{key}\";"));
    }

    fn tls(&self, lines: &mut Lines) {
        match self.export.edge.tls_minimum {
            TlsVersion::V1_2 => {
                lines.line("ssl_protocols TLSv1.2 TLSv1.3;");
                lines.line(format!("ssl_ciphers {CIPHERS};"));
                lines.line(
                    "ssl_prefer_server_ciphers off; # all of them are good, and phones know which is fast for them",
                );
            }
            TlsVersion::V1_3 => lines.line("ssl_protocols TLSv1.3;"),
        }
        lines.line(format!("ssl_session_cache shared:{}_tls:10m;", self.prefix));
        lines.line("ssl_session_timeout 4h;");
        lines.line("ssl_session_tickets off; # nginx never changes their key while it runs");
    }

    fn connection(&self, lines: &mut Lines) {
        let limits = self.export.edge.limits;
        lines.line("server_tokens off;");
        lines.line(format!("client_header_timeout {};", time(limits.header_timeout_ms)));
        lines.line(format!("client_body_timeout {};", time(limits.body_timeout_ms)));
        lines.line(format!("send_timeout {};", time(limits.body_timeout_ms)));
        lines.line(format!("keepalive_timeout {};", time(limits.idle_timeout_ms)));
        // A single field may be as large as the head; without a second buffer requests couldn't follow each other at once.
        lines.line(format!("large_client_header_buffers 2 {};", limits.header_bytes_max.max(1_024)));
        lines.line("underscores_in_headers off; # services may take X_Real_IP for X-Real-IP");
        lines.line("reset_timedout_connection on;");
    }

    fn real_ip(&self, lines: &mut Lines) {
        let edge = self.export.edge;
        for network in &edge.trusted_proxies {
            lines.line(format!("set_real_ip_from {network};"));
        }
        match (edge.trusted_proxies.is_empty(), edge.proxy_protocol) {
            (true, _) => {}
            (false, true) => lines.line("real_ip_header proxy_protocol;"),
            (false, false) => {
                lines.line("real_ip_header X-Forwarded-For;");
                lines.line("real_ip_recursive on;");
            }
        }
    }

    /// Answered before anything is redirected: the authority may come by HTTP only.
    fn challenges(&self, lines: &mut Lines) {
        lines.open("location ^~ /.well-known/acme-challenge/ {");
        lines.line(format!("root \"{}\";", shown(&self.export.options.acme_root)));
        lines.line("default_type text/plain;");
        lines.close("}");
    }

    fn location(&self, number: usize, route: &Route, lines: &mut Lines) {
        let p = &self.prefix;
        lines.line("");
        match path(route) {
            "" => lines.open("location / {"),
            path => {
                lines.comment(format!(
                    "{path} and what is below it, by whole segments; `;…` in one doesn't count, and \\ is a slash (\\x5c)."
                ));
                lines.open(format!("location ~ \"{}\" {{", below(path)));
            }
        }
        for network in &route.deny {
            lines.line(format!("deny {network};"));
        }
        for network in &route.allow {
            lines.line(format!("allow {network};"));
        }
        if !route.allow.is_empty() {
            lines.line("deny all;");
        }
        if let Some(rate) = route.rate {
            let burst = if rate.burst == 0 { String::new() } else { format!(" burst={} nodelay", rate.burst) };
            lines.line(format!("limit_req zone={p}_rate_{number}{burst};"));
            lines.line("limit_req_status 429;");
        }
        if let Some(connections) = route.connections_per_client {
            lines.line(format!("limit_conn {p}_connections_{number} {connections};"));
            lines.line("limit_conn_status 429;");
        }
        self.headers(number, route, lines);
        lines.line(format!("client_max_body_size {};", body_limit(route.body_bytes_max)));
        let (html, types): (Vec<_>, Vec<_>) = media_types(route).into_iter().partition(|kind| *kind == "text/html");
        if !html.is_empty() {
            lines.line("gzip on;");
            lines.line("gzip_proxied any;");
            lines.line("gzip_vary on;");
            lines.line("gzip_min_length 256;");
            if !types.is_empty() {
                lines.line(format!("gzip_types {};", types.join(" ")));
            }
        }
        self.pass(route, lines);
        lines.close("}");
    }

    /// `add_header` of a location; all that it has.
    fn headers(&self, number: usize, route: &Route, lines: &mut Lines) {
        if route.rate.is_some() || route.connections_per_client.is_some() {
            let wait = retry_after_s(route.rate);
            lines.line(format!("add_header Retry-After ${}_retry_{wait} always;", self.prefix));
        }
        if let Some(it) = route.hsts {
            let policy = match self.export.edge.redirect {
                true => format!("\"{}\"", hsts(it)),
                false => format!("${}_hsts_{number}", self.prefix),
            };
            lines.line(format!("add_header Strict-Transport-Security {policy} always;"));
        }
        if self.has_quic() {
            lines.line(format!("add_header Alt-Svc 'h3=\":{}\"; ma=86400' always;", self.export.edge.https_port));
        }
    }

    /// Once for all locations of the server, in which nothing of the kind may stand then.
    fn told_to_upstreams(&self, site: &Site<'_>, lines: &mut Lines) {
        for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::H2c] {
            if !site.routes.iter().any(|(_, route)| route.protocol == protocol) {
                continue;
            }
            let module = module(protocol);
            lines.line("");
            if protocol == UpstreamProtocol::Http1 {
                lines.line("proxy_http_version 1.1;");
                lines.line("proxy_set_header Upgrade $http_upgrade;");
                lines.line(format!("proxy_set_header Connection ${}_connection;", self.prefix));
            }
            for (name, value) in self.told() {
                lines.line(format!("{module}_set_header {name} {value};"));
            }
        }
        lines.line("");
    }

    fn pass(&self, route: &Route, lines: &mut Lines) {
        let upstream = self.upstream_name(&route.to);
        let module = module(route.protocol);
        match route.protocol {
            UpstreamProtocol::Http1 => {
                lines.line(format!("proxy_pass http://{upstream};"));
                lines
                    .comment("Passed on as it comes: server-sent events, and uploads that nobody wants on disk first.");
                lines.line("proxy_buffering off;");
                lines.line("proxy_request_buffering off;");
            }
            UpstreamProtocol::H2c => {
                lines.comment("HTTP/2 without TLS; for nginx that is gRPC, whatever is sent.");
                lines.line(format!("grpc_pass grpc://{upstream};"));
            }
        }
        if route.hsts.is_some() {
            lines.line(format!("{module}_hide_header Strict-Transport-Security;"));
        }
        let timeout = time(route.upstream_timeout_ms);
        lines.line(format!("{module}_connect_timeout 5s;"));
        lines.line(format!("{module}_read_timeout {timeout};"));
        lines.line(format!("{module}_send_timeout {timeout};"));
        lines.line(format!("{module}_next_upstream error timeout; # another instance, but not for POST and the like"));
        lines.line(format!("{module}_next_upstream_tries 2;"));
    }

    pub(super) fn pages(&self) -> impl Iterator<Item = u16> {
        self.export.error_pages.iter().copied().filter(|status| (400..=599).contains(status))
    }

    fn error_pages(&self, site: &Site<'_>, lines: &mut Lines) {
        let Some(folder) = self.export.edge.error_pages.as_ref().filter(|_| self.pages().next().is_some()) else {
            return;
        };
        lines.line("");
        lines.open(format!("location ^~ {PAGES}/ {{"));
        lines.line("internal;");
        lines.line(format!("alias \"{}/\";", shown(folder).trim_end_matches('/')));
        lines.line("default_type text/html;");
        if let Some((number, route)) = site.routes.last() {
            self.headers(*number, route, lines);
        }
        lines.close("}");
    }
}

/// Whether plain HTTP is redirected only if no trusted proxy says that the client speaks TLS with it.
pub(super) fn redirects_by_scheme(edge: &Edge) -> bool {
    edge.redirect && !edge.trusted_proxies.is_empty()
}

/// nginx's module that passes requests on.
fn module(protocol: UpstreamProtocol) -> &'static str {
    match protocol {
        UpstreamProtocol::Http1 => "proxy",
        UpstreamProtocol::H2c => "grpc",
    }
}

/// A path and all below it, for what nginx has decoded: parameters of segments (`;…`) are left out, `\` is a slash, and empty
/// segments don't count. A backslash is written `\x5c`, as nginx takes one of two away.
fn below(path: &str) -> String {
    const PARAMETER: &str = r"(?:;[^/\x5c]*)?";
    const SLASH: &str = r"[/\x5c]";
    let mut pattern = "^".to_owned();
    for segment in path.split('/').skip(1) {
        pattern += &format!("{SLASH}(?:{PARAMETER}{SLASH})*{}{PARAMETER}", literal(segment));
    }
    pattern + &format!(r"(?:{SLASH}|\z)")
}

/// nginx takes 0 for no limit at all, and nothing that has more than 63 bits.
fn body_limit(bytes: u64) -> u64 {
    if bytes > i64::MAX as u64 { 0 } else { bytes.max(1) }
}

/// `*.` stands for one label, and for nginx's own `*.` for any number of them.
fn server_name(domain: &str) -> String {
    match domain.strip_prefix("*.") {
        Some(rest) => format!(r#""~^[^.]+\.{}$""#, literal(rest)),
        None => domain.to_owned(),
    }
}
