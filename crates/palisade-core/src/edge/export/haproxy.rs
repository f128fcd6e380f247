//! For HAProxy, from 2.6 on.
//!
//! The frontends find out who asks and which route it is; each route is a backend of its own, with its limits. Clients are
//! counted in stick tables, whose keys are addresses cut to their network (`ipmask`).

use super::super::{CertificateSource, LogFormat, Rate, Route, TlsVersion, UpstreamProtocol};
use super::nginx::CIPHERS;
use super::{ACME_PORT, Export, Lines, Site, Unwritable, Written};
use super::{file_name, hsts, literal, media_types, path, retry_after_s, shown, time};
use crate::network::Network;

/// Statuses for which HAProxy can have a page.
const PAGES: [u16; 15] = [400, 401, 403, 404, 405, 407, 408, 410, 413, 425, 429, 500, 502, 503, 504];
/// Hops of trusted proxies that are looked through.
const HOPS: usize = 4;

/// The file.
pub fn haproxy(export: &Export<'_>) -> Result<Written, Unwritable> {
    export.writable()?;
    let writer = Writer { export, prefix: export.prefix(), sites: export.sites() };
    let differs = writer.differs();
    let mut lines = Lines::default();
    writer.head(&differs, &mut lines);
    writer.global(&mut lines);
    writer.defaults(&mut lines);
    writer.frontends(&mut lines);
    for (number, route) in writer.routes() {
        writer.backend(number, route, &mut lines);
    }
    writer.challenges(&mut lines);
    Ok(Written { text: lines.text, differs })
}

struct Writer<'a> {
    export: &'a Export<'a>,
    prefix: String,
    sites: Vec<Site<'a>>,
}

impl Writer<'_> {
    fn routes(&self) -> impl Iterator<Item = (usize, &Route)> {
        self.export.routes()
    }

    fn differs(&self) -> Vec<String> {
        let edge = self.export.edge;
        let mut all = self.export.differs("HAProxy");
        if self.routes().any(|(_, route)| route.rate.is_some()) {
            all.push("the rate is a sliding window instead of a leaky bucket: as many at once and as many in the long run, but what a client used up comes back when the window has passed, not one by one".to_owned());
        }
        if self.routes().any(|(_, route)| route.connections_per_client.is_some()) {
            all.push(
                "connections of a client are counted as requests on their way: each of HTTP/2 counts as one".to_owned(),
            );
        }
        if !edge.trusted_proxies.is_empty() {
            all.push(format!("at most {HOPS} trusted proxies in a row are looked through"));
        }
        all.push(
            "bodies are held against the limit by their declared length; those without one (chunked) aren't".to_owned(),
        );
        if self.routes().any(|(_, route)| route.protocol == UpstreamProtocol::H2c) {
            all.push("a stream of gRPC that sends much both ways at once may stand still in HAProxy 2.6; one way after the other is fine".to_owned());
        }
        if edge.http3 {
            all.push("no HTTP/3: distributions build HAProxy without it".to_owned());
        }
        if edge.access_log.is_some() {
            all.push("the log goes to syslog (/dev/log, local0), which keeps and rotates it".to_owned());
        }
        all
    }

    fn certificate_folder(&self) -> String {
        self.export.options.certificates.as_ref().map_or("/etc/haproxy/certs".to_owned(), |folder| shown(folder))
    }

    fn certificate(&self, site: &Site<'_>) -> String {
        format!("{}/{}.pem", self.certificate_folder(), file_name(site))
    }

    fn head(&self, differs: &[String], lines: &mut Lines) {
        let export = self.export;
        lines.comment(format!(
            "HAProxy for what the stack {} serves (x-palisade.edge), and nothing else of it.",
            export.stack
        ));
        lines.comment("Made from its Compose file by `palisade export haproxy`; make it again when that changes.");
        lines.comment("");
        lines.comment(
            "It is a whole /etc/haproxy/haproxy.cfg, for 2.6 and later. Try it before you use it: haproxy -c -f FILE",
        );
        lines.comment("");
        lines.comment("Where upstreams are found:");
        for (upstream, reach) in export.reach {
            lines.comment(format!("* {upstream}: {}", reach.addresses.join(", ")));
            if let Some(warning) = &reach.warning {
                lines.comment(format!("* CAUTION: {warning}"));
            }
        }
        lines.comment("");
        lines.comment(
            "HAProxy wants certificate and key in one file, readable for root alone, and doesn't start without:",
        );
        for site in &self.sites {
            let to = self.certificate(site);
            match site.certificate {
                CertificateSource::Files { chain, key } => {
                    lines.comment(format!("* (umask 077; cat {} {} > {to})", shown(chain), shown(key)));
                }
                CertificateSource::Local => lines.comment(format!("* {to}: for {}", site.domains.join(", "))),
                CertificateSource::Acme => {
                    let domain = site.domains.first().unwrap_or(&"");
                    lines.comment(format!(
                        "* the first time one that signs itself, with which HAProxy is started: (umask 077; openssl req -x509 -newkey ec \
                         -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 7 -subj /CN={domain} -keyout {to} -out {to})"
                    ));
                    let domains: Vec<_> = site.domains.iter().map(|domain| format!("-d {domain}")).collect();
                    lines.comment(format!(
                        "* then: certbot certonly --standalone --http-01-address 127.0.0.1 --http-01-port {ACME_PORT} --cert-name {} {} \
                         --deploy-hook '(umask 077; cat $RENEWED_LINEAGE/fullchain.pem $RENEWED_LINEAGE/privkey.pem > {to}) && systemctl reload haproxy'",
                        file_name(site),
                        domains.join(" ")
                    ));
                }
            }
        }
        lines.comment("");
        lines.comment("What is otherwise than at Palisade's own edge:");
        for line in differs {
            lines.comment(format!("* {line}"));
        }
        lines.line("");
    }

    fn global(&self, lines: &mut Lines) {
        let edge = self.export.edge;
        lines.open("global");
        lines.comment("As Debian's package has it: its unit brings /dev/log into the folder, and certificates and pages are read before.");
        lines.line("user haproxy");
        lines.line("group haproxy");
        lines.line("chroot /var/lib/haproxy");
        lines.line("log /dev/log local0");
        lines.line(format!("maxconn {}", edge.limits.connections.max(1)));
        let minimum = match edge.tls_minimum {
            TlsVersion::V1_2 => "TLSv1.2",
            TlsVersion::V1_3 => "TLSv1.3",
        };
        lines.line(format!("ssl-default-bind-options ssl-min-ver {minimum} no-tls-tickets"));
        lines.line(format!("ssl-default-bind-ciphers {CIPHERS}"));
        lines.comment("A head has to fit into a buffer.");
        lines.line(format!("tune.bufsize {}", (edge.limits.header_bytes_max + 1_024).clamp(16_384, 1 << 20)));
        lines.line(format!("tune.http.maxhdr {}", edge.limits.header_fields_max.clamp(1, 32_767)));
        lines.depth = 0;
        lines.line("");
    }

    fn defaults(&self, lines: &mut Lines) {
        let edge = self.export.edge;
        let limits = edge.limits;
        lines.open("defaults");
        lines.line("mode http");
        lines.line("option dontlognull");
        lines.line(format!("timeout http-request {}", time(limits.header_timeout_ms)));
        lines.line(format!("timeout http-keep-alive {}", time(limits.idle_timeout_ms)));
        lines.line(format!("timeout client {}", time(limits.body_timeout_ms)));
        lines.line("timeout connect 5s");
        lines.line("timeout server 60s");
        lines.line("timeout tunnel 1h");
        lines.line("timeout client-fin 30s");
        lines.comment("Nothing was sent yet when connecting fails: any request may go to another instance.");
        lines.line("retries 2");
        lines.line("retry-on conn-failure");
        lines.line("option redispatch 1");
        if let Some(folder) = &edge.error_pages {
            let folder = shown(folder);
            for status in self.export.error_pages.iter().filter(|status| PAGES.contains(status)) {
                let folder = folder.trim_end_matches('/');
                lines.line(format!("http-error status {status} content-type text/html file {folder}/{status}.html"));
            }
        }
        lines.depth = 0;
        lines.line("");
    }

    fn bind(&self, port: u16) -> Vec<String> {
        match &self.export.options.listen[..] {
            [] => vec![format!("0.0.0.0:{port}"), format!("[::]:{port} v6only")],
            given => given.iter().map(|ip| std::net::SocketAddr::new(*ip, port).to_string()).collect(),
        }
    }

    fn frontends(&self, lines: &mut Lines) {
        let edge = self.export.edge;
        let trusted = &edge.trusted_proxies;
        lines.open(format!("frontend {}_http", self.prefix));
        for address in self.bind(edge.http_port) {
            lines.line(format!("bind {address}"));
        }
        self.proxy_protocol(lines);
        lines.line("acl is_challenge path_beg /.well-known/acme-challenge/");
        let port = if edge.https_port == 443 { String::new() } else { format!(":{}", edge.https_port) };
        let redirect = format!("http-request redirect code 308 location https://%[var(txn.domain)]{port}%[pathq]");
        let challenges = format!("use_backend {}_challenges if is_challenge", self.prefix);
        if edge.redirect && trusted.is_empty() {
            self.path(lines);
            self.domain(" !is_challenge", lines);
            lines.line(format!("{redirect} if !is_challenge"));
            lines.line(challenges);
            lines.line(format!("default_backend {}_nothing", self.prefix));
        } else {
            self.asked(" !is_challenge", lines);
            if edge.redirect {
                lines.comment("Behind a proxy that ends TLS only it knows what the client speaks.");
                lines.line(format!("{redirect} if !is_challenge {{ var(txn.proto) -m str http }}"));
            }
            lines.line(challenges);
            self.choose(lines);
        }
        lines.depth = 0;
        lines.line("");

        lines.open(format!("frontend {}_https", self.prefix));
        let default = self.sites.iter().filter(|site| site.is_default);
        let others = self.sites.iter().filter(|site| !site.is_default);
        let certificates: Vec<_> =
            default.chain(others).map(|site| format!("crt {}", self.certificate(site))).collect();
        let strict = if edge.default_domain.is_none() { " strict-sni" } else { "" };
        for address in self.bind(edge.https_port) {
            lines.line(format!("bind {address} ssl {}{strict} alpn h2,http/1.1", certificates.join(" ")));
        }
        self.proxy_protocol(lines);
        self.asked("", lines);
        self.choose(lines);
        lines.depth = 0;
        lines.line("");
    }

    fn proxy_protocol(&self, lines: &mut Lines) {
        let trusted = &self.export.edge.trusted_proxies;
        if self.export.edge.proxy_protocol && !trusted.is_empty() {
            lines.line(format!("tcp-request connection expect-proxy layer4 if {{ src {} }}", spaced(trusted)));
        }
    }

    /// Who asks, and for what; and what the upstream is told of it. `but`: the condition of what is answered for any domain.
    fn asked(&self, but: &str, lines: &mut Lines) {
        let trusted = &self.export.edge.trusted_proxies;
        self.log(lines);
        self.path(lines);
        self.domain(but, lines);
        lines.comment("What clients say of themselves is dropped, but for what a trusted proxy has written.");
        lines.line("http-request set-var(txn.proto) str(https) if { ssl_fc }");
        lines.line("http-request set-var(txn.proto) str(http) unless { ssl_fc }");
        if !trusted.is_empty() {
            self.proxies(trusted, lines);
        }
        let known = "'^(x[-_]forwarded[-_].*|x[-_]real[-_]ip|forwarded|proxy)$'";
        lines.line(format!("http-request del-header {known} -m reg"));
        lines.comment("In `Forwarded`, addresses of IPv6 stand in brackets and quotes, and so do hosts with a port.");
        let quoted = r#"'regsub("^(.*:.*)$","\"[\1]\"")'"#;
        lines.line(format!("http-request set-var(txn.node) src,{quoted}"));
        lines.line("http-request set-var(txn.asked) req.hdr(host)");
        if self.export.edge.default_domain.is_some() {
            lines.line("http-request set-var(txn.asked) var(txn.domain) unless { req.hdr(host) -m found }");
        }
        lines.line(r#"http-request set-var(txn.named) var(txn.asked),'regsub("^(.*:.*)$","\"\1\"")'"#);
        let each = r#"'regsub("([^, ]*:[^, ]*)","\"[\1]\"",g)','regsub(", ",", for=",g)'"#;
        let way = if trusted.is_empty() { String::new() } else { "%[var(txn.way)]".to_owned() };
        if !trusted.is_empty() {
            lines.line(format!("http-request set-var(txn.way) var(txn.proxies),{each}"));
        }
        let chain = if trusted.is_empty() { "%[src]" } else { "%[src]%[var(txn.proxies)]" };
        let forwarded = format!("for=%[var(txn.node)];proto=%[var(txn.proto)];host=%[var(txn.named)]{way}");
        for (name, value) in [
            ("X-Real-IP", "%[src]"),
            ("X-Forwarded-For", chain),
            ("X-Forwarded-Proto", "%[var(txn.proto)]"),
            ("X-Forwarded-Host", "%[var(txn.asked)]"),
            ("Forwarded", &forwarded),
        ] {
            lines.line(format!("http-request set-header {name} {value}"));
        }
    }

    /// The path by which routes are looked for. A server behind this one may undo escapes, leave parameters out and walk up at
    /// `..` in any order: what could so become another route's path is refused, as the edge does.
    fn path(&self, lines: &mut Lines) {
        lines.comment("Paths that two programs could read differently are refused: escapes that are none, `.` and `..`, and an escaped slash behind `;`.");
        lines.line("http-request deny deny_status 405 if { method CONNECT TRACE }");
        for pattern in [
            "%([^0-9a-f]|.[^0-9a-f]|.?$|00)",
            r"([/\\]|%2f|%5c)([.]|%2e)([.]|%2e)?([/\\;]|%2f|%5c|%3b|$)",
            r"(;|%3b)[^/]*(\\|%2f|%5c)",
        ] {
            lines.line(format!("acl is_strange path -m reg -i '{pattern}'"));
        }
        lines.line("http-request deny deny_status 400 if is_strange or !{ path_beg / }");
        lines.comment("Routes are looked for without escapes, parameters of segments (`;…`) and doubled slashes.");
        let settled = r#"'regsub("[\\\\]","/",g)','regsub(";[^/]*","",g)','regsub("/+","/",g)'"#;
        lines.line(format!("http-request set-var(txn.path) path,url_dec,{settled}"));
    }

    /// The domain that is asked for (`txn.domain`), and the one as which it is served (`txn.host`).
    fn domain(&self, but: &str, lines: &mut Lines) {
        lines.line(r"acl is_host req.hdr(host) -m reg '^([a-zA-Z0-9._-]+|\[[0-9a-fA-F:.]+\])(:[0-9]*)?$'");
        lines.line("http-request deny deny_status 400 if { req.hdr(host) -m found } !is_host");
        lines.line(r#"http-request set-var(txn.domain) req.hdr(host),'regsub(":[0-9]*$","")',rtrim(.),lower"#);
        lines.line("http-request set-var(txn.host) var(txn.domain)");
        for domain in self.sites.iter().flat_map(|site| &site.domains) {
            lines.line(format!("acl is_known {}", host_is(domain)));
        }
        match &self.export.edge.default_domain {
            Some(default) => {
                lines.line(format!("http-request set-var(txn.domain) str({default}) unless {{ req.hdr(host) -m found }}"));
                lines.line(format!("http-request set-var(txn.host) str({default}) unless is_known"));
            }
            None => lines.line(format!(
                "http-request return status 421 content-type text/plain string \"Misdirected request\" if !is_known{but}"
            )),
        }
    }

    /// What trusted proxies say: what the client spoke with the nearest, who it is, and over which proxies it came
    /// (`txn.proxies`). Whoever isn't known by an address is somewhere behind the last who is.
    fn proxies(&self, trusted: &[Network], lines: &mut Lines) {
        lines.line(format!("acl is_trusted src -m ip {}", spaced(trusted)));
        let proto = "req.hdr(x-forwarded-proto,-1),lower";
        lines.line(format!("http-request set-var(txn.proto) {proto} if is_trusted {{ {proto} -m str http https }}"));
        lines.comment(format!(
            "The client is the last in X-Forwarded-For that isn't a trusted proxy, at most {HOPS} hops away."
        ));
        lines.line("http-request set-var(txn.hops) int(0)");
        // Some write the port as well, which is no part of an address.
        let bare = r#"'regsub("^\[(.*)\](:[0-9]*)?$","\1")','regsub("^([0-9.]+):[0-9]*$","\1")'"#;
        for hop in 1..=HOPS {
            let before = hop - 1;
            let is_here = format!("if {{ var(txn.hops) -m int {hop} }}");
            lines.line(format!("http-request set-var(txn.hop_{hop}) req.hdr(x-forwarded-for,-{hop}),{bare}"));
            lines.line(format!(
                "http-request set-var(txn.hops) int({hop}) if is_trusted {{ var(txn.hops) -m int {before} }} {{ var(txn.hop_{hop}) -m ip 0.0.0.0/0 ::/0 }}"
            ));
            lines.line(format!("http-request set-var-fmt(txn.proxies) \", %[src]%[var(txn.proxies)]\" {is_here}"));
            lines.line(format!("http-request set-src var(txn.hop_{hop}) {is_here}"));
        }
    }

    fn log(&self, lines: &mut Lines) {
        let Some(log) = self.export.edge.access_log else { return };
        lines.line("log global");
        let path = if log.query { "pathq" } else { "path" };
        let referer = if log.query { "req.hdr(referer)" } else { "req.hdr(referer),field(1,?)" };
        lines.line(format!("http-request set-var(txn.log_path) {path},json(utf8ps)"));
        lines.line("http-request set-var(txn.log_host) req.hdr(host),json(utf8ps)");
        lines.line(format!("http-request set-var(txn.log_referer) {referer},json(utf8ps)"));
        lines.line("http-request set-var(txn.log_agent) req.hdr(user-agent),json(utf8ps)");
        match log.format {
            LogFormat::Json => lines.line(concat!(
                r#"log-format '{"time":%Ts.%ms,"client":"%[src]","method":"%HM","host":"%[var(txn.log_host)]","path":"%[var(txn.log_path)]","#,
                r#""protocol":"%HV","status":%ST,"bytes":%B,"ms":%Ta,"upstream":"%b/%s","referer":"%[var(txn.log_referer)]","agent":"%[var(txn.log_agent)]"}'"#
            )),
            LogFormat::Combined => lines.line(
                r#"log-format '%[src] - - [%T] "%HM %[var(txn.log_path)] %HV" %ST %B "%[var(txn.log_referer)]" "%[var(txn.log_agent)]"'"#,
            ),
        }
    }

    /// The route: for each host the longest path that matches.
    fn choose(&self, lines: &mut Lines) {
        lines.comment("Whole segments of the path: /api is /api and /api/x, not /apis. The longest comes first.");
        // A name of its own wins over `*.`.
        let mut hosts: Vec<(&str, &Site<'_>)> = Vec::new();
        for site in &self.sites {
            hosts.extend(site.domains.iter().map(|domain| (*domain, site)));
        }
        hosts.sort_by_key(|(domain, _)| domain.starts_with("*."));
        for (domain, site) in hosts {
            let host = host_is(domain);
            for (number, route) in &site.routes {
                let at = match path(route) {
                    "" => String::new(),
                    path => format!(" {{ var(txn.path) -m reg ^{}(/|$) }}", pattern(path)),
                };
                lines.line(format!("use_backend {}_route_{number} if {{ {host} }}{at}", self.prefix));
            }
            // A wildcard is for names without routes of their own.
            if !site.routes.iter().any(|(_, route)| path(route).is_empty()) {
                lines.line(format!("use_backend {}_nothing if {{ {host} }}", self.prefix));
            }
        }
        lines.line(format!("default_backend {}_nothing", self.prefix));
    }

    fn backend(&self, number: usize, route: &Route, lines: &mut Lines) {
        lines.comment(format!("{}{} is {}", route.domains.join(", "), route.path, route.to));
        lines.open(format!("backend {}_route_{number}", self.prefix));
        if !route.deny.is_empty() {
            lines.line(format!("http-request deny deny_status 403 if {{ src {} }}", spaced(&route.deny)));
        }
        if !route.allow.is_empty() {
            lines.line(format!("http-request deny deny_status 403 unless {{ src {} }}", spaced(&route.allow)));
        }
        self.limits(route, lines);
        if route.body_bytes_max <= i64::MAX as u64 {
            lines.line(format!("http-request deny deny_status 413 if {{ req.body_size gt {} }}", route.body_bytes_max));
        }
        if let Some(it) = route.hsts {
            lines.line(format!(
                "http-after-response set-header Strict-Transport-Security \"{}\" if {{ var(txn.proto) -m str https }}",
                hsts(it)
            ));
        }
        let types = media_types(route);
        if !types.is_empty() {
            lines.line("compression algo gzip");
            lines.line(format!("compression type {}", types.join(" ")));
        }
        lines.line("balance leastconn");
        lines.line(format!("timeout server {}", time(route.upstream_timeout_ms)));
        let proto = match route.protocol {
            UpstreamProtocol::Http1 => "",
            UpstreamProtocol::H2c => " proto h2",
        };
        let addresses = self.export.reach.get(&route.to).map_or(&[][..], |reach| &reach.addresses);
        for (at, address) in addresses.iter().enumerate() {
            lines.line(format!(
                "server {}_{} {address}{proto} check inter 2s fall 2 rise 1 init-addr last,libc,none",
                route.to.service,
                at + 1
            ));
        }
        lines.depth = 0;
        lines.line("");
    }

    /// 429 for whoever asks too often, or has too much on its way. Only what passes is counted.
    fn limits(&self, route: &Route, lines: &mut Lines) {
        if route.rate.is_none() && route.connections_per_client.is_none() {
            return;
        }
        let (window_ms, many) = route.rate.map_or((1_000, 0), window);
        lines.line(format!(
            "stick-table type ipv6 size 100k expire {} store gpc0,gpc0_rate({window_ms}ms),conn_cur",
            time(window_ms.max(60_000))
        ));
        lines.line("http-request track-sc0 src,ipmask(32,64)");
        let refuse = format!(
            "http-request return status 429 content-type text/plain string \"Too many requests\" hdr Retry-After {}",
            retry_after_s(route.rate)
        );
        if route.rate.is_some() {
            lines.line(format!("{refuse} if {{ sc0_gpc0_rate ge {many} }}"));
        }
        if let Some(connections) = route.connections_per_client {
            lines.line(format!("{refuse} if {{ sc0_conn_cur gt {connections} }}"));
        }
        lines.line("http-request sc-inc-gpc0(0)");
    }

    fn challenges(&self, lines: &mut Lines) {
        lines.comment("Names and paths that nobody serves.");
        lines.open(format!("backend {}_nothing", self.prefix));
        lines.line("http-request deny deny_status 404");
        lines.depth = 0;
        lines.line("");
        lines.comment(format!("Answers to challenges: HAProxy serves no files, so certbot does, when it has something to say (port {ACME_PORT})."));
        lines.open(format!("backend {}_challenges", self.prefix));
        lines.line(format!("server certbot 127.0.0.1:{ACME_PORT}"));
        lines.depth = 0;
    }
}

/// The time in which `burst + 1` requests are what the rate allows, and that many.
pub(super) fn window(rate: Rate) -> (u64, u64) {
    let many = u64::from(rate.burst) + 1;
    let window_ms = (many * 1_000_000).div_ceil(u64::from(rate.milli_per_s.max(1)));
    (window_ms.max(1), many)
}

/// The part of a regular expression that matches this text; HAProxy takes one backslash of two away, and quotes that have none.
fn pattern(text: &str) -> String {
    literal(text).replace('\\', "\\\\").replace('\'', "\\'")
}

/// Whether the host is that domain, as a test without braces.
fn host_is(domain: &str) -> String {
    match domain.strip_prefix("*.") {
        Some(rest) => format!("var(txn.host) -m reg ^[^.]+\\\\.{}$", pattern(rest)),
        None => format!("var(txn.host) -m str {domain}"),
    }
}

fn spaced(networks: &[Network]) -> String {
    networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
