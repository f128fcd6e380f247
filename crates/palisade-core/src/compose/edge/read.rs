//! The edge as a whole: its ports, log and limits; the larger parts are in the modules beside this one.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::super::LoadInputs;
use super::super::ReadError;
use super::super::file::looked_for;
use super::super::keys::{EDGE, EDGE_ACCESS_LOG, EDGE_LIMITS, EDGE_PORTS, EDGE_TLS};
use super::super::merge;
use super::super::read::Reader;
use super::super::units;
use super::super::yaml::{Data, Entry, Node};
use super::FileEdge;
use crate::diagnostic::{Diagnostic, Span, Spanned, quoted};
use crate::edge::{AccessLog, ConnectionLimits, DRAIN_MS, LogFormat, TlsVersion};

const LOG: AccessLog = AccessLog { format: LogFormat::Json, query: false, file_bytes_max: 50 << 20, files: 5 };

/// What the edge itself answers when something is wrong, so what a page can be for.
const ANSWERS: [u16; 12] = [400, 403, 404, 405, 408, 413, 421, 429, 431, 502, 503, 504];
/// A browser alone opens six, and with fewer than these a handful of visitors would shut out all others.
const CONNECTIONS: RangeInclusive<u64> = 64..=1_000_000;
/// Browsers send twenty or so, and proxies in front a few more.
const HEADER_FIELDS: RangeInclusive<u64> = 32..=1000;

impl Reader<'_> {
    /// `x-palisade.edge`.
    pub(crate) fn edge(&mut self, entry: &Entry, inputs: &LoadInputs<'_>) -> Option<FileEdge> {
        if matches!(entry.value.data, Data::Scalar(_)) {
            return self.mistyped(&entry.value, "`edge`", "a mapping, or a list of routes");
        }
        let node = merge::edge_routes(&entry.value);
        let mut fields = self.fields(&node, &EDGE)?;
        let routes = fields.written("routes");
        let mut edge = FileEdge {
            span: entry.key_span,
            routes: Vec::new(),
            routes_span: routes.map(|entry| entry.key_span),
            routes_written: 0,
            http_port: None,
            https_port: None,
            redirect: true,
            plain_http: None,
            certificates: Vec::new(),
            default_domain: None,
            acme: None,
            tls_minimum: TlsVersion::default(),
            trusted_proxies: Vec::new(),
            trusted_proxies_written: false,
            proxy_protocol: None,
            http3: None,
            access_log: Some(LOG),
            error_pages: None,
            limits: ConnectionLimits::default(),
            drain_ms: DRAIN_MS,
        };
        if let Some(entry) = routes {
            edge.routes_written = match &entry.value.data {
                Data::List(items) => items.len(),
                data => usize::from(!matches!(data, Data::Null)),
            };
            for item in self.list(&entry.value, "`routes`").unwrap_or_default() {
                edge.routes.extend(self.route(item));
            }
        }
        if let Some(node) = fields.value("ports") {
            self.edge_ports(node, &mut edge);
        }
        if let Some(entry) = fields.take("redirect") {
            edge.redirect = self.bool(&entry.value, "`redirect`").unwrap_or(true);
            edge.plain_http = Some(entry.key_span).filter(|_| !edge.redirect);
        }
        if let Some(node) = fields.value("certificates") {
            edge.certificates = self.certificates(node, inputs);
        }
        if let Some(node) = fields.value("default_domain") {
            edge.default_domain = self.text(node, "`default_domain`").and_then(|text| self.domain(&text));
        }
        if let Some(entry) = fields.take("acme") {
            edge.acme = self.acme(entry, inputs);
        }
        if let Some(node) = fields.value("tls") {
            edge.tls_minimum = self.tls(node).unwrap_or_default();
        }
        if let Some(node) = fields.value("trusted_proxies") {
            edge.trusted_proxies_written = !matches!(&node.data, Data::List(items) if items.is_empty());
            edge.trusted_proxies = self.networks(node, "`trusted_proxies`");
        }
        let on = |reader: &mut Self, entry: &Entry| -> Option<Span> {
            reader.bool(&entry.value, &quoted(&entry.key)).filter(|on| *on).map(|_| entry.key_span)
        };
        edge.proxy_protocol = fields.take("proxy_protocol").and_then(|entry| on(self, entry));
        edge.http3 = fields.take("http3").and_then(|entry| on(self, entry));
        if let Some(node) = fields.value("access_log") {
            edge.access_log = self.edge_log(node);
        }
        if let Some(node) = fields.value("error_pages") {
            edge.error_pages = self.error_pages(node, inputs);
        }
        if let Some(node) = fields.value("limits") {
            self.edge_limits(node, &mut edge.limits);
        }
        if let Some(node) = fields.value("drain") {
            edge.drain_ms = self.timeout(node, "`drain`", 1000, "1s").unwrap_or(DRAIN_MS);
        }
        fields.finish();
        Some(edge)
    }

    fn edge_ports(&mut self, node: &Node, edge: &mut FileEdge) {
        let Some(mut fields) = self.fields(node, &EDGE_PORTS) else { return };
        let mut port = |reader: &mut Self, name: &str| {
            let node = fields.value(name)?;
            let hint = "write a port of this host, 1 to 65535";
            let port = reader.parsed(node, "a port", hint, |text| super::super::ports::port(text).ok())?;
            Some(Spanned::new(port, node.span))
        };
        edge.http_port = port(self, "http");
        edge.https_port = port(self, "https");
        fields.finish();
    }

    fn tls(&mut self, node: &Node) -> Option<TlsVersion> {
        let mut fields = self.fields(node, &EDGE_TLS)?;
        let hint = "write `\"1.2\"` or `\"1.3\"`; what is older is broken, and no browser of the last years needs it";
        let minimum = fields.value("minimum").and_then(|node| {
            self.parsed(node, "a version of TLS that the edge speaks", hint, |text| match text {
                "1.2" => Some(TlsVersion::V1_2),
                "1.3" => Some(TlsVersion::V1_3),
                _ => None,
            })
        });
        fields.finish();
        minimum
    }

    fn edge_log(&mut self, node: &Node) -> Option<AccessLog> {
        if let Data::Scalar(_) = node.data {
            return self.bool(node, "`access_log`").unwrap_or(true).then_some(LOG);
        }
        let mut fields = self.fields(node, &EDGE_ACCESS_LOG)?;
        let mut log = LOG;
        if let Some(node) = fields.value("format") {
            let format =
                self.parsed(node, "a format of the access log", "write `json` or `combined`", |text| match text {
                    "json" => Some(LogFormat::Json),
                    "combined" => Some(LogFormat::Combined),
                    _ => None,
                });
            log.format = format.unwrap_or_default();
        }
        if let Some(node) = fields.value("query") {
            log.query = self.bool(node, "`query`").unwrap_or_default();
        }
        if let Some(node) = fields.value("max_size") {
            let size = self.size(node, "`max_size`", 64 << 10..=1 << 40, "`64k` to `1t`");
            log.file_bytes_max = size.unwrap_or(LOG.file_bytes_max);
        }
        if let Some(node) = fields.value("files") {
            let files = self.within(node, "a number of files", 1..=1000);
            log.files = files.and_then(|files| u32::try_from(files).ok()).unwrap_or(LOG.files);
        }
        fields.finish();
        Some(log)
    }

    fn size(&mut self, node: &Node, what: &str, range: RangeInclusive<u64>, shown: &str) -> Option<u64> {
        let hint = format!("write bytes, or a number with a unit: {shown}");
        let parse = |text: &str| units::bytes(text, 1024).filter(|bytes| range.contains(bytes));
        self.parsed(node, &format!("a size that {what} can be"), &hint, parse)
    }

    fn edge_limits(&mut self, node: &Node, limits: &mut ConnectionLimits) {
        let Some(mut fields) = self.fields(node, &EDGE_LIMITS) else { return };
        if let Some(node) = fields.value("connections") {
            let number = self.within(node, "a number of connections at once", CONNECTIONS);
            limits.connections = number.map_or(limits.connections, |number| number as u32);
        }
        if let Some(node) = fields.value("header_size") {
            let size = self.size(node, "`header_size`", 4 << 10..=1 << 20, "`4k` to `1m`");
            limits.header_bytes_max = size.map_or(limits.header_bytes_max, |size| size as u32);
        }
        if let Some(node) = fields.value("header_fields") {
            let number = self.within(node, "a number of header fields", HEADER_FIELDS);
            limits.header_fields_max = number.map_or(limits.header_fields_max, |number| number as u16);
        }
        let times = [
            ("header_timeout", &mut limits.header_timeout_ms),
            ("idle_timeout", &mut limits.idle_timeout_ms),
            ("body_timeout", &mut limits.body_timeout_ms),
        ];
        for (name, limit) in times {
            if let Some(node) = fields.value(name) {
                *limit = self.timeout(node, &quoted(name), 1000, "1s").unwrap_or(*limit);
            }
        }
        if let Some(node) = fields.value("body_rate") {
            let size = self.size(node, "`body_rate`", 0..=1 << 20, "`0` (any) to `1m`, for each second");
            limits.body_bytes_per_s_min = size.map_or(limits.body_bytes_per_s_min, |size| size as u32);
        }
        fields.finish();
    }

    /// A folder of the host. Nothing here can list one, so that it is there is told by what reading it, or a page in it, says.
    fn error_pages(&mut self, node: &Node, inputs: &LoadInputs<'_>) -> Option<PathBuf> {
        let text = self.text(node, "`error_pages`")?;
        let shown = text.quoted();
        if text.value.is_empty() || text.value.contains('\0') {
            return self.invalid(&text, format!("{shown} is not a path"), "write the path of a folder of this host");
        }
        let path = self.path(&text.value, text.span);
        let has_page = |code| inputs.others.read(&path.join(format!("{code}.html"))) != Err(ReadError::NotFound);
        let is_used = ANSWERS.into_iter().any(has_page);
        let is_there = match inputs.others.read(&path) {
            Ok(_) => {
                let hint =
                    "write the folder that the pages are in; a page is named by what it is for: `502.html`, `404.html`";
                return self.invalid(&text, format!("{shown} is a file, where a folder is wanted"), hint);
            }
            Err(ReadError::NotFound) => is_used || (400..=599).any(has_page),
            Err(ReadError::Other(_)) => true,
        };
        if !is_there {
            self.push(
                Diagnostic::error("no-file", format!("the folder {shown} does not exist"))
                    .at(text.span, looked_for(&shown, &path))
                    .hint("relative paths start where the file lies that they are written in"),
            );
            return None;
        }
        if !is_used {
            let codes = ANSWERS.map(|code| code.to_string()).join(", ");
            self.push(
                Diagnostic::warning("no-effect", format!("the folder {shown} has no page that the edge would show"))
                    .at(text.span, "")
                    .hint(format!(
                        "a page is named by the answer that it is for, as in `502.html`; the edge's own answers are {codes}"
                    )),
            );
        }
        Some(path)
    }
}
