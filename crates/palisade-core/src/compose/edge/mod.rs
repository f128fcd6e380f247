//! `x-palisade.edge` as written: typed and with places. Whether services and ports exist is checked in `validate`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::diagnostic::{Span, Spanned};
use crate::edge::{
    AccessLog, Acme, Ban, CertificateSource, ConnectionLimits, Domain, Hsts, Rate, TlsVersion, UpstreamProtocol,
};
use crate::network::Network;

mod acme;
mod asleep;
mod certificates;
mod read;
mod route;
mod settle;
mod values;

pub(crate) use acme::is_public;
pub(crate) use asleep::awake;
pub(crate) use route::CHANGED_BY;
pub(crate) use settle::{Sources, settle, tcp_ports};

/// The edge as written.
#[derive(Clone, Debug)]
pub struct FileEdge {
    /// Its key.
    pub span: Span,
    /// `routes`, in the order of the file.
    pub routes: Vec<FileRoute>,
    /// Where `routes` is written, if it is.
    pub routes_span: Option<Span>,
    /// So many items are written below it, right or wrong.
    pub routes_written: usize,
    /// `ports.http`.
    pub http_port: Option<Spanned<u16>>,
    /// `ports.https`.
    pub https_port: Option<Spanned<u16>>,
    /// `redirect`.
    pub redirect: bool,
    /// `redirect: false`.
    pub plain_http: Option<Span>,
    /// `certificates`, in the order of the file.
    pub certificates: Vec<FileCertificate>,
    /// `default_domain`.
    pub default_domain: Option<Spanned<Domain>>,
    /// `acme`.
    pub acme: Option<Spanned<FileAcme>>,
    /// `tls.minimum`.
    pub tls_minimum: TlsVersion,
    /// `trusted_proxies`.
    pub trusted_proxies: Vec<Spanned<Network>>,
    /// `trusted_proxies` is written, though perhaps wrong.
    pub trusted_proxies_written: bool,
    /// `proxy_protocol: true`.
    pub proxy_protocol: Option<Span>,
    /// `http3: true`.
    pub http3: Option<Span>,
    /// `access_log`.
    pub access_log: Option<AccessLog>,
    /// `error_pages`.
    pub error_pages: Option<PathBuf>,
    /// `limits`.
    pub limits: ConnectionLimits,
    /// `drain`.
    pub drain_ms: u64,
}

/// One of `routes`.
#[derive(Clone, Debug)]
pub struct FileRoute {
    /// All of it.
    pub span: Span,
    /// `domain`.
    pub domains: Vec<Spanned<Domain>>,
    /// None of them has a mistake.
    pub domains_sound: bool,
    /// `path`.
    pub path: Spanned<String>,
    /// `to`. `None`: it has a mistake, which was reported.
    pub to: Option<Spanned<FileUpstream>>,
    /// `protocol`.
    pub protocol: UpstreamProtocol,
    /// `rate_limit`.
    pub rate: Option<Rate>,
    /// `connections.per_client`.
    pub connections_per_client: Option<u32>,
    /// `rate_limit` or `connections` is written, though perhaps wrong, and isn't `off`.
    pub limited: bool,
    /// Where `rate_limit` is written, if only to say `off`.
    pub rate_span: Option<Span>,
    /// `allow`.
    pub allow: Vec<Spanned<Network>>,
    /// `deny`.
    pub deny: Vec<Spanned<Network>>,
    /// `ban`.
    pub ban: Option<Spanned<Ban>>,
    /// `body_limit`.
    pub body_bytes_max: u64,
    /// `timeout`.
    pub upstream_timeout_ms: u64,
    /// `compress`.
    pub compress: BTreeSet<String>,
    /// `hsts`.
    pub hsts: Option<Hsts>,
}

/// `to`: a service and its port, as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileUpstream {
    /// As written.
    pub service: String,
    /// `None`: the only one that it has.
    pub port: Option<u16>,
}

/// One of `certificates`.
#[derive(Clone, Debug)]
pub struct FileCertificate {
    /// Whose; `None`: of all that aren't named.
    pub domain: Spanned<Option<Domain>>,
    /// Where it comes from. `None`: it has a mistake, which was reported.
    pub source: Option<CertificateSource>,
}

/// `acme`.
#[derive(Clone, Debug)]
pub struct FileAcme {
    /// What it says.
    pub acme: Acme,
    /// Where its directories are written, in their order; none if it is the default one.
    pub directories: Vec<Span>,
}
