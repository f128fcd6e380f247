//! For nginx, from 1.22 on.
//!
//! Everything but the outermost blocks stands in `http`, so that the same text is a whole nginx.conf or a file of
//! `conf.d`. Whatever a `location` sets with `add_header` is set in each: those of outer blocks don't count there.

mod request;
mod server;

use super::super::{AccessLog, CertificateSource, LogFormat, Route};
use super::{Export, Lines, Site, Unwritable, Version, Written};
use super::{file_name, media_types, retry_after_s, shown};
use std::collections::BTreeSet;

/// Where nginx's own parameter for HTTP/2 became a directive.
const HTTP2_DIRECTIVE: Version = Version(1, 25, 1);
/// Since then it speaks HTTP/3.
const QUIC: Version = Version(1, 25, 0);
/// Forward secrecy and authenticated encryption only, as browsers of the last ten years have it.
pub(super) const CIPHERS: &str = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:\
     ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";
/// Where error pages are asked for, within nginx.
const PAGES: &str = "/.palisade-error-pages";

/// The file.
pub fn nginx(export: &Export<'_>) -> Result<Written, Unwritable> {
    export.writable()?;
    let writer = Writer { export, prefix: export.prefix(), sites: export.sites() };
    let differs = writer.differs();
    let mut lines = Lines::default();
    writer.head(&differs, &mut lines);
    if export.options.conf_d {
        writer.http(&mut lines);
    } else {
        writer.whole(&mut lines);
    }
    Ok(Written { text: lines.text, differs })
}

struct Writer<'a> {
    export: &'a Export<'a>,
    prefix: String,
    sites: Vec<Site<'a>>,
}

impl Writer<'_> {
    fn version_is_at_least(&self, version: Version) -> bool {
        self.export.options.nginx_version.is_some_and(|given| given >= version)
    }

    fn routes(&self) -> impl Iterator<Item = (usize, &Route)> {
        self.export.routes()
    }

    fn has_quic(&self) -> bool {
        self.export.edge.http3 && self.version_is_at_least(QUIC)
    }

    fn differs(&self) -> Vec<String> {
        let edge = self.export.edge;
        let mut all = self.export.differs("nginx");
        if self.routes().any(|(_, route)| route.connections_per_client.is_some()) {
            all.push("connections of a client are counted while a request is on its way, and each request of HTTP/2 counts as one".to_owned());
        }
        all.push("a WebSocket on which nobody sends anything for as long as the upstream's timeout is closed: let it send pings".to_owned());
        if self.routes().any(|(_, route)| !route.compress.is_empty() && !media_types(route).contains(&"text/html")) {
            all.push(
                "nothing is compressed where text/html isn't listed: nginx always compresses that with the rest"
                    .to_owned(),
            );
        }
        all.push("fields with `_` in their names are dropped, whatever they are".to_owned());
        all.push(format!(
            "of X-Forwarded-… fields of clients these are dropped, and unknown ones aren't: {}",
            request::DROPPED.iter().filter_map(|name| name.strip_prefix("X-Forwarded-")).collect::<Vec<_>>().join(", ")
        ));
        if self.is_by_header() {
            all.push("`Forwarded` names the client and the nearest proxy, not those between".to_owned());
        }
        if edge.proxy_protocol {
            all.push("every connection must begin with the PROXY protocol, not only those of trusted proxies: let nobody else in".to_owned());
        }
        if edge.http3 && !self.has_quic() {
            all.push("no HTTP/3: nginx has it from 1.25 on (--nginx-version)".to_owned());
        }
        if self.has_quic() && self.export.options.conf_d {
            all.push("`reuseport` is allowed once for each address: if another of your files has it for `quic`, take it out here".to_owned());
        }
        all.push("a head may be twice as large as `header_size`, a single field as large".to_owned());
        all.push(format!("fields of a head aren't counted (`header_fields_max` {})", edge.limits.header_fields_max));
        all.push(format!(
            "connections are limited for each worker of nginx, not for all of them ({}), and each request that is passed on takes two",
            edge.limits.connections
        ));
        if edge.access_log.is_some() {
            all.push(
                "the log isn't rotated by nginx: logrotate does that below /var/log/nginx on most systems".to_owned(),
            );
        }
        if self.export.options.conf_d {
            all.push("versions of TLS (before nginx 1.29.2) and limits of a head are those of whichever server is the default of your other files at the same address, until it is known which name is asked for: give it the same `ssl_protocols` and `large_client_header_buffers`".to_owned());
        }
        if edge.default_domain.is_none() && self.export.options.conf_d {
            all.push("unknown names are answered by whichever server is the default of your other files: a file of conf.d can't claim that".to_owned());
        }
        all
    }

    fn head(&self, differs: &[String], lines: &mut Lines) {
        let export = self.export;
        lines.comment(format!(
            "nginx for what the stack {} serves (x-palisade.edge), and nothing else of it.",
            export.stack
        ));
        lines.comment("Made from its Compose file by `palisade export nginx`; make it again when that changes.");
        lines.comment("");
        match export.options.conf_d {
            true => lines.comment(format!(
                "It belongs into the `http` block: /etc/nginx/conf.d/{}.conf. Then: nginx -t && systemctl reload nginx",
                export.stack
            )),
            false => lines.comment("It is a whole /etc/nginx/nginx.conf. Try it before you use it: nginx -t -c FILE"),
        }
        match self.version_is_at_least(HTTP2_DIRECTIVE) {
            true => lines.comment("It needs nginx 1.25.1 or later (`http2 on`)."),
            false => lines.comment(
                "nginx 1.22 and every later one takes it; from 1.25.1 on they warn of `listen … http2` (--nginx-version 1.26 writes the newer form).",
            ),
        }
        lines.comment("");
        lines.comment("Where upstreams are found:");
        for (upstream, reach) in export.reach {
            lines.comment(format!("* {upstream}: {}", reach.addresses.join(", ")));
            if let Some(warning) = &reach.warning {
                lines.comment(format!("* CAUTION: {warning}"));
            }
        }
        let ordered: Vec<&Site<'_>> =
            self.sites.iter().filter(|site| *site.certificate == CertificateSource::Acme).collect();
        if !ordered.is_empty() {
            lines.comment("");
            lines.comment(
                "Certificates. nginx doesn't start without them: order them the first time with --standalone in the place of \
                 `--webroot -w FOLDER`, while nobody listens at port 80; then as it stands here with --force-renewal, so that they are renewed without a pause.",
            );
            for site in ordered {
                let domains: Vec<_> = site.domains.iter().map(|domain| format!("-d {domain}")).collect();
                let name = file_name(site);
                lines.comment(format!(
                    "* certbot certonly --webroot -w {} --cert-name {name} {} --deploy-hook \"systemctl reload nginx\"",
                    shown(&export.options.acme_root),
                    domains.join(" ")
                ));
                if site.domains.iter().any(|domain| domain.starts_with("*.")) {
                    lines.comment("* (a wildcard needs --dns-… of certbot instead of --webroot)");
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

    fn whole(&self, lines: &mut Lines) {
        let limits = self.export.edge.limits;
        lines.line("user www-data; # Debian's; elsewhere often `nginx`");
        lines.line("worker_processes auto;");
        lines.line(format!("worker_rlimit_nofile {};", u64::from(limits.connections) * 2 + 1_024));
        lines.line("pid /run/nginx.pid;");
        lines.line("error_log /var/log/nginx/error.log warn;");
        lines.line("");
        lines.open("events {");
        lines.line(format!("worker_connections {};", limits.connections.max(16)));
        lines.close("}");
        lines.line("");
        lines.open("http {");
        lines.line("sendfile on;");
        lines.line("tcp_nopush on;");
        lines.line("access_log off; # each server has its own");
        self.http(lines);
        lines.close("}");
    }

    fn http(&self, lines: &mut Lines) {
        self.maps(lines);
        self.zones(lines);
        self.upstreams(lines);
        self.catch_all(lines);
        for site in &self.sites {
            self.site(site, lines);
        }
    }

    /// What can be computed only in `http`.
    fn maps(&self, lines: &mut Lines) {
        let p = &self.prefix;
        lines.line("");
        lines.comment("Clients are counted by address, those with IPv6 by /64: the first half of it.");
        lines.open(format!("map $binary_remote_addr ${p}_client {{"));
        lines.line("default $binary_remote_addr;");
        lines.line(format!(r#""~(?s)^(?<{p}_net>.{{8}}).{{8}}\z" ${p}_net;"#));
        lines.close("}");
        lines.comment("A connection to an upstream is kept, unless it becomes a WebSocket.");
        lines.open(format!("map $http_upgrade ${p}_connection {{"));
        lines.line("default upgrade;");
        lines.line("\"\" \"\";");
        lines.close("}");
        self.refused(lines);
        self.origin(lines);
        let waits: BTreeSet<u64> = self.limited().map(|(_, route)| retry_after_s(route.rate)).collect();
        if !waits.is_empty() {
            lines.comment("When who is limited may come again; an upstream's own 429 is left as it is.");
        }
        for wait in waits {
            lines.open(format!("map \"$status:$upstream_status\" ${p}_retry_{wait} {{"));
            lines.line("default \"\";");
            lines.line(format!("\"429:\" {wait};"));
            lines.close("}");
        }
        if let Some(log) = self.export.edge.access_log {
            self.log_format(log, lines);
        }
    }

    fn limited(&self) -> impl Iterator<Item = (usize, &Route)> {
        self.routes().filter(|(_, route)| route.rate.is_some() || route.connections_per_client.is_some())
    }

    fn log_format(&self, log: AccessLog, lines: &mut Lines) {
        let p = &self.prefix;
        let (path, referer) = match log.query {
            true => ("$request_uri".to_owned(), "$http_referer".to_owned()),
            false => {
                lines.comment("What stands behind `?` may be secret, and isn't logged.");
                for (variable, name) in [("$request_uri", "path"), ("$http_referer", "referer")] {
                    lines.open(format!("map {variable} ${p}_{name} {{"));
                    lines.line(format!("\"~^(?<{p}_{name}_cut>[^?]*)\" ${p}_{name}_cut;"));
                    lines.close("}");
                }
                (format!("${p}_path"), format!("${p}_referer"))
            }
        };
        match log.format {
            LogFormat::Combined => {
                lines.line(format!("log_format {p} '$remote_addr - $remote_user [$time_local] '"));
                lines.line(format!(r#"    '"$request_method {path} $server_protocol" $status $body_bytes_sent "{referer}" "$http_user_agent"';"#));
            }
            LogFormat::Json => {
                lines.line(format!(r#"log_format {p} escape=json '{{"time":"$time_iso8601","client":"$remote_addr","method":"$request_method",'"#));
                lines.line(format!(r#"    '"host":"$host","path":"{path}","protocol":"$server_protocol","status":"$status","bytes":"$body_bytes_sent",'"#));
                lines.line(format!(r#"    '"seconds":"$request_time","upstream":"$upstream_addr","referer":"{referer}","agent":"$http_user_agent"}}';"#));
            }
        }
    }

    /// `limit_req_zone` and `limit_conn_zone` are allowed in `http` alone.
    fn zones(&self, lines: &mut Lines) {
        let p = &self.prefix;
        for (number, route) in self.limited() {
            lines.line("");
            lines.comment(format!(
                "Limits of {}{}: 10 MB are some 80,000 clients; the oldest are forgotten.",
                route.domains.join(", "),
                route.path
            ));
            if let Some(rate) = route.rate {
                let (text, exact) = rate_text(rate.milli_per_s);
                if !exact {
                    lines.comment(format!(
                        "The file says {} thousandths a second; nginx knows whole requests a second or minute.",
                        rate.milli_per_s
                    ));
                }
                lines.line(format!("limit_req_zone ${p}_client zone={p}_rate_{number}:10m rate={text};"));
            }
            if route.connections_per_client.is_some() {
                lines.line(format!("limit_conn_zone ${p}_client zone={p}_connections_{number}:10m;"));
            }
        }
    }

    fn upstreams(&self, lines: &mut Lines) {
        for (upstream, reach) in self.export.reach {
            lines.line("");
            lines.open(format!("upstream {} {{", self.upstream_name(upstream)));
            if reach.addresses.len() > 1 {
                lines.line("least_conn;");
            }
            for address in &reach.addresses {
                lines.line(format!("server {address};"));
            }
            lines.line("keepalive 64;");
            lines.close("}");
        }
    }

    fn upstream_name(&self, upstream: &super::Upstream) -> String {
        format!("{}_{}_{}", self.prefix, upstream.service, upstream.port)
    }
}

/// nginx's form of a rate, and whether it is that rate.
pub(super) fn rate_text(milli_per_s: u32) -> (String, bool) {
    let milli = milli_per_s.max(1);
    if milli.is_multiple_of(1_000) {
        return (format!("{}r/s", milli / 1_000), true);
    }
    // nginx keeps thousandths a second, too: whole ones of requests a minute.
    let per_minute = (u64::from(milli) * 60).div_ceil(1_000).max(1);
    (format!("{per_minute}r/m"), per_minute * 1_000 / 60 == u64::from(milli))
}
