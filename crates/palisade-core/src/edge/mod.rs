//! The TLS edge as meant: what `x-palisade.edge` says, with every default and unit settled, and what the edge's process is told.
//!
//! Whether a service or a port exists is settled when the file is read; nothing in here opens a file or a socket.

mod reach;
mod service;
mod worker;

pub use reach::{granting_key, is_own};
pub(crate) use service::mounts;
pub use service::{
    ACCESS_LOG_VOLUME, AUTHORITIES_VOLUME, CERTIFICATES_VOLUME, CONTROL_SOCKET, EDGES_FILE, INSTANCES, READY_VERB,
    TOLD, UPSTREAMS_FILE, USER, control_for_worker, drains_itself, needs_worker, rehearsed, settings, upstreams,
    with_services, worker_settings,
};
pub use worker::{EdgeAt, WorkerSettings};

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use crate::names::{InstanceId, ServiceName};
use crate::network::Network;
use crate::place::Placed;

pub mod export;

/// Port of the edge's instance where plain HTTP arrives; published as [`Edge::http_port`].
pub const HTTP_PORT: u16 = 8080;
/// Port of the edge's instance where TLS (and, over UDP, HTTP/3) arrives; published as [`Edge::https_port`].
pub const HTTPS_PORT: u16 = 8443;

/// The name of the service that stands for the edge.
pub const SERVICE_NAME: &str = "palisade-edge";
/// The name of the service that obtains the edge's certificates.
pub const WORKER_NAME: &str = "palisade-certificates";

/// Media types that are compressed where a route says `compress: true`: those that get much smaller.
pub const COMPRESSED: [&str; 12] = [
    "text/*",
    "application/atom+xml",
    "application/javascript",
    "application/json",
    "application/ld+json",
    "application/manifest+json",
    "application/problem+json",
    "application/rss+xml",
    "application/wasm",
    "application/xhtml+xml",
    "application/xml",
    "image/svg+xml",
];

/// What the TLS edge of a stack serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// In the order of the file. Among those of one domain the longest path that matches wins.
    pub routes: Vec<Placed<Route>>,
    /// The host's port for HTTP: redirects and challenges; 80 unless written.
    pub http_port: u16,
    /// The host's port for HTTPS; 443 unless written.
    pub https_port: u16,
    /// Plain HTTP is answered with a redirect (308), but for challenges. Otherwise it is served like HTTPS.
    pub redirect: bool,
    /// Where certificates come from, by domain. Each domain of a route is in here.
    pub certificates: BTreeMap<Domain, CertificateSource>,
    /// Who serves a client that names no domain, or an unknown one. `None`: such a handshake is refused.
    pub default_domain: Option<Domain>,
    /// How certificates are ordered, if any domain's is.
    pub acme: Option<Acme>,
    /// The lowest version of TLS that is spoken.
    pub tls_minimum: TlsVersion,
    /// Peers whose `X-Forwarded-*` and `Forwarded` are believed.
    pub trusted_proxies: Vec<Network>,
    /// Trusted proxies begin each connection with the PROXY protocol (versions 1 and 2); others must not.
    pub proxy_protocol: bool,
    /// HTTP/3 over UDP is served as well.
    pub http3: bool,
    /// How requests are logged. `None`: they aren't.
    pub access_log: Option<AccessLog>,
    /// Folder of the host with pages for errors: `502.html`, `404.html` …
    pub error_pages: Option<PathBuf>,
    /// Limits of all connections.
    pub limits: ConnectionLimits,
    /// So long connections that are in use may go on when the edge is replaced or stopped.
    #[serde(default = "usual_drain_ms")]
    pub drain_ms: u64,
}

fn usual_drain_ms() -> u64 {
    DRAIN_MS
}

/// [`Edge::drain_ms`] unless written: WebSockets, streams of events and long downloads have no end of their own.
pub const DRAIN_MS: u64 = 30_000;

/// A domain name in lower case ASCII (international names in their `xn--` form), without a final dot; or `*.` and one.
pub type Domain = String;

/// What is served below a path of some domains.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// One or more.
    pub domains: Vec<Domain>,
    /// Begins with `/`. It matches whole segments: `/api` matches `/api` and `/api/x`, not `/apis`.
    pub path: String,
    /// The service that answers.
    pub to: Upstream,
    /// What is spoken with it.
    pub protocol: UpstreamProtocol,
    /// How often one client may ask. `None`: as often as it likes.
    pub rate: Option<Rate>,
    /// How many connections one client may have. `None`: no limit but the edge's own.
    pub connections_per_client: Option<u32>,
    /// Who may ask at all. Empty: everybody who isn't denied.
    pub allow: Vec<Network>,
    /// Who may not, even if allowed.
    pub deny: Vec<Network>,
    /// Clients that are limited again and again are banned in the host's firewall.
    pub ban: Option<Ban>,
    /// Bytes of a request's body at most.
    pub body_bytes_max: u64,
    /// Until the upstream must have sent the head of its answer, and between two parts of it.
    pub upstream_timeout_ms: u64,
    /// Media types that are compressed (gzip, br, zstd); `text/*` stands for all of text. Empty: nothing is.
    pub compress: BTreeSet<String>,
    /// `Strict-Transport-Security` of answers over TLS. `None`: the upstream's own word.
    pub hsts: Option<Hsts>,
}

/// Whether a client may ask by the lists of a route: who is denied may not, even if allowed, and without `allow` everybody else may.
pub fn may_ask(allow: &[Network], deny: &[Network], client: IpAddr) -> bool {
    let has = |networks: &[Network]| networks.iter().any(|network| network.contains(client));
    (allow.is_empty() || has(allow)) && !has(deny)
}

/// A service and its port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Upstream {
    /// The service.
    pub service: ServiceName,
    /// Its port (TCP).
    pub port: u16,
}

impl std::fmt::Display for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.service, self.port)
    }
}

/// What is spoken with an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 without TLS, prior knowledge (RFC 9113, section 3.3); also what gRPC needs.
    H2c,
}

/// Requests of one client: nginx's `limit_req` with `nodelay`, that is a leaky bucket. IPv6 clients are counted by /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Thousandths of a request a second: 10 r/s is 10,000, 1 r/m is 16.
    pub milli_per_s: u32,
    /// So many more may come at once.
    pub burst: u32,
}

/// When a client is banned, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    /// After so many refused requests within a minute.
    pub after: u32,
    /// Seconds.
    pub for_s: u32,
}

/// RFC 6797.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hsts {
    /// Seconds.
    pub max_age_s: u64,
    /// `includeSubDomains`.
    pub subdomains: bool,
    /// `preload`.
    pub preload: bool,
}

/// Where a domain's certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateSource {
    /// Ordered from a certificate authority.
    Acme,
    /// From a certificate authority of this stack's own, which nobody trusts who wasn't told to: for rehearsals.
    Local,
    /// Files of the host, in PEM.
    Files {
        /// The chain, leaf first.
        chain: PathBuf,
        /// The private key.
        key: PathBuf,
    },
}

/// How certificates are ordered (RFC 8555).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acme {
    /// Authorities' directories in the order in which they are tried.
    pub directories: Vec<AcmeDirectory>,
    /// Where the authority writes to about certificates.
    pub email: Option<String>,
    /// How it is shown that the domain is ours.
    pub challenge: Challenge,
}

/// One certificate authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcmeDirectory {
    /// `https://…`.
    pub url: String,
    /// PEM file with the root that its own server's certificate ends in, if the host's roots don't have it.
    pub root: Option<PathBuf>,
    /// External account binding (RFC 8555, section 7.3.4).
    pub eab: Option<ExternalAccount>,
}

/// An account that the authority knows from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalAccount {
    /// Its identifier there.
    pub key_id: String,
    /// File of the host with the MAC key, base64url.
    pub key_file: PathBuf,
}

/// A challenge of RFC 8555.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Challenge {
    /// `http-01`: at port 80.
    #[default]
    #[serde(rename = "http-01")]
    Http01,
    /// `tls-alpn-01` (RFC 8737): at port 443.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    V1_3,
}

/// How requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessLog {
    /// A line's form.
    pub format: LogFormat,
    /// The part behind `?` is logged too; it may hold secrets.
    pub query: bool,
    /// A file is put aside at this size.
    pub file_bytes_max: u64,
    /// So many files are kept, the current one included.
    pub files: u32,
}

/// A line of the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One JSON object.
    #[default]
    Json,
    /// The combined format of Apache and nginx.
    Combined,
}

/// Limits of all connections, whoever's they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionLimits {
    /// Connections at once.
    pub connections: u32,
    /// Bytes of a request's head.
    pub header_bytes_max: u32,
    /// Fields of a request's head.
    pub header_fields_max: u16,
    /// Until the head of a request must be there, from its first byte or from the handshake's end.
    pub header_timeout_ms: u64,
    /// Between two requests.
    pub idle_timeout_ms: u64,
    /// Between two parts of a request's body, or of an answer that the client takes.
    pub body_timeout_ms: u64,
    /// Clients that send or take a body slower than this for ten seconds are cut.
    pub body_bytes_per_s_min: u32,
}

impl Default for ConnectionLimits {
    /// What suits a server with some gigabytes of memory, and close to what nginx does unless told otherwise.
    fn default() -> Self {
        Self {
            connections: 20_000,
            header_bytes_max: 32 << 10,
            header_fields_max: 100,
            header_timeout_ms: 10_000,
            idle_timeout_ms: 75_000,
            body_timeout_ms: 60_000,
            body_bytes_per_s_min: 256,
        }
    }
}

/// Everything that the edge's process is told when it starts: `settings.json` in its folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// What it serves. Paths in it are those of the edge's own file system view.
    pub edge: Edge,
    /// Where it listens for HTTP.
    pub http: Vec<SocketAddr>,
    /// Where it listens for TLS.
    pub https: Vec<SocketAddr>,
    /// Folder with certificates and answers to challenges, which others write and the edge reads:
    /// `<domain>.pem` (private key, then the chain, leaf first; a wildcard's file begins with `_.`),
    /// `http-01/<token>` (the answer) and `tls-alpn-01/<domain>.pem`.
    pub certificates: PathBuf,
    /// The unix socket where it takes orders from root.
    pub control: PathBuf,
    /// The access log's file, if one is kept.
    pub access_log: Option<PathBuf>,
    /// Threads. 0: one for each processor that it may use.
    pub workers: u16,
    /// File with [`Upstreams`], read once the control socket is there: who answers until the first order says it.
    #[serde(default)]
    pub upstreams: Option<PathBuf>,
}

/// Which instances answer for each upstream: what changes while the edge runs.
pub type Upstreams = BTreeMap<String, Vec<UpstreamInstance>>;

/// One instance that may be given requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamInstance {
    /// Which.
    pub id: InstanceId,
    /// Where it listens.
    pub address: SocketAddr,
}

/// What the edge is asked over its control socket: one JSON object a line, answered by one line ([`Answer`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// From now on these instances get new requests. Answered when no new request goes to any other and idle
    /// connections to others are closed; requests on their way there finish.
    SetUpstreams(Upstreams),
    /// Look at the certificates' folder again. Connections that are there go on.
    ReloadCertificates,
    /// No new connections: finish those that are there, tell clients to come again elsewhere, then exit.
    Drain,
    /// How it is, for whoever bans: clients that are to be banned are told once.
    Report,
    /// The same without the clients that were limited, for whoever bans nobody.
    Look,
}

/// What the edge answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done.
    Done,
    /// It wasn't done, and why.
    Refused(String),
    /// The answer to [`Order::Report`].
    Report(Box<Report>),
}

/// What the edge knows of itself. Counters begin with the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Open connections of clients.
    pub connections: u64,
    /// Requests answered, by status class: `1xx` … `5xx`.
    pub answered: BTreeMap<String, u64>,
    /// Requests refused by a limit, by the route's first domain and path.
    pub limited: BTreeMap<String, u64>,
    /// Connections that were reset because of [`ConnectionLimits::connections`].
    #[serde(default)]
    pub reset: u64,
    /// How often no connection could be accepted for want of descriptors or memory: clients had to wait.
    #[serde(default)]
    pub starved: u64,
    /// Clients that were limited most lately, newest first, at most 100.
    pub limited_clients: Vec<LimitedClient>,
    /// Clients whose offences reached [`Ban::after`] since the last report: whoever asks is to ban them.
    pub to_ban: Vec<ToBan>,
    /// Domains with a usable certificate, and when it ends (seconds since the Unix epoch).
    pub certificates: BTreeMap<Domain, u64>,
    /// What is missing until it serves as it should: nothing, once it is ready. Certificates that are ordered don't count,
    /// as they can only be obtained while the edge answers for them.
    #[serde(default)]
    pub missing: Vec<String>,
}

/// A client that was limited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitedClient {
    /// One address, or a /64.
    pub client: Network,
    /// The route: its first domain and path.
    pub route: String,
    /// How often.
    pub times: u64,
    /// The last time, seconds since the Unix epoch.
    pub last_s: u64,
}

/// So many clients that are to be banned are in one report at most.
pub const TO_BAN_MAX: usize = 4_096;

/// A client that is to be banned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToBan {
    /// One address, or a /64.
    pub client: Network,
    /// Seconds.
    pub for_s: u32,
}
