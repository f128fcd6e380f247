//! The proxies and what stands behind them, configured alike.

use anyhow::{Context, Result, bail};
use palisade_core::edge::{
    AccessLog, Answer, CertificateSource, ConnectionLimits, DRAIN_MS, Edge, LogFormat, Order, Rate, Route, Settings,
    TlsVersion, Upstream as Target, UpstreamInstance, UpstreamProtocol, Upstreams,
};
use palisade_core::names::{InstanceId, ServiceName};
use palisade_core::place::{Place, Placed};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::load::DESCRIPTORS;
use crate::Options;
use crate::scratch::Scratch;
use crate::world::Background;

pub(super) const DOMAIN: &str = "shop.example";
/// Requests a second of one client, and at once: all of the load comes from one, and none is to be refused.
const RATE: u32 = 1_000_000;
const BURST: u32 = 100_000;
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Nginx,
    Haproxy,
    Caddy,
    Edge,
}

pub(super) const KINDS: [Kind; 4] = [Kind::Nginx, Kind::Haproxy, Kind::Caddy, Kind::Edge];

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Caddy => "caddy",
            Self::Edge => "edge",
        }
    }

    pub(super) fn installed(self) -> bool {
        let asked = match self {
            Self::Edge => return true,
            Self::Nginx | Self::Haproxy => "-v",
            Self::Caddy => "version",
        };
        Command::new(self.name()).arg(asked).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn wait_for(port: u16, who: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > deadline {
            bail!("{who} doesn't listen");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// On one processor, with descriptors enough.
fn pinned(cpu: usize) -> Command {
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}")).args(["taskset", "-c", &cpu.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// nginx with an answer from memory.
pub(super) struct Upstream {
    address: SocketAddr,
    process: Background,
}

impl Upstream {
    pub(super) fn start(options: &Options, scratch: &Scratch) -> Result<Self> {
        let (folder, port) = (scratch.folder.join("edge-upstream"), free_port()?);
        fs::create_dir_all(&folder)?;
        let body = "All is well. ".repeat(40);
        let text = format!(
            "daemon off; user root; worker_processes 1; pid pid; error_log stderr error;\nevents {{ worker_connections 10000; }}\n\
             http {{ access_log off; keepalive_requests 100000000; default_type text/plain;\n\
             server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 '{body}'; }} }} }}\n"
        );
        fs::write(folder.join("nginx.conf"), text)?;
        let process = Background::start(
            pinned(options.cpus.1).args(["nginx", "-c", "nginx.conf", "-p"]).arg(&folder).arg("-e").arg("stderr"),
        )?;
        wait_for(port, "the upstream")?;
        Ok(Self { address: SocketAddr::from(([127, 0, 0, 1], port)), process })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.process.ask_to_end();
    }
}

/// One that runs.
pub(super) struct Proxy {
    pub(super) kind: Kind,
    pub(super) http: u16,
    pub(super) https: u16,
    pub(super) folder: PathBuf,
    log: PathBuf,
    process: Background,
}

impl Proxy {
    pub(super) fn start(options: &Options, scratch: &Scratch, upstream: &Upstream, kind: Kind) -> Result<Self> {
        let folder = scratch.folder.join("edge").join(kind.name());
        fs::create_dir_all(&folder)?;
        let (http, https, log) = (free_port()?, free_port()?, folder.join("access.log"));
        certificate(&folder)?;
        let mut command = pinned(options.cpus.0);
        let up = upstream.address;
        let configured = match kind {
            Kind::Nginx => {
                command.args(["nginx", "-c", "nginx.conf", "-e", "stderr", "-p"]).arg(&folder);
                ("nginx.conf", nginx(http, https, up))
            }
            Kind::Haproxy => {
                // It logs to syslog or to a descriptor; a daemon of syslog would have to be counted. With -q it would log nothing.
                command.args(["haproxy", "-db", "-f"]).arg(folder.join("haproxy.cfg"));
                command.stdout(fs::File::options().append(true).create(true).open(&log)?);
                command.stderr(fs::File::create(folder.join("errors"))?);
                ("haproxy.cfg", haproxy(&folder, http, https, up))
            }
            Kind::Caddy => {
                command.env("GOMAXPROCS", "1").env("HOME", &folder).env_remove("XDG_DATA_HOME");
                command.args(["caddy", "run", "--adapter", "caddyfile", "--config"]).arg(folder.join("Caddyfile"));
                command.stderr(fs::File::create(folder.join("errors"))?);
                ("Caddyfile", caddy(&folder, http, https, up))
            }
            Kind::Edge => {
                let program = std::env::current_exe()?.with_file_name("palisade");
                command.arg(program).arg("__edge").arg(folder.join("settings.json"));
                ("settings.json", serde_json::to_string_pretty(&edge(&folder, http, https)?)?)
            }
        };
        fs::write(folder.join(configured.0), configured.1)?;
        let process = Background::start(&mut command)?;
        let proxy = Self { kind, http, https, folder, log, process };
        for port in [http, https] {
            wait_for(port, kind.name())?;
        }
        if kind == Kind::Edge {
            proxy.tell_upstream(up)?;
        }
        Ok(proxy)
    }

    fn tell_upstream(&self, address: SocketAddr) -> Result<()> {
        let id = InstanceId::parse("web.1").context("an instance's name")?;
        let order = Order::SetUpstreams(Upstreams::from([("web:80".into(), vec![UpstreamInstance { id, address }])]));
        // It listens for clients before it takes orders.
        let deadline = Instant::now() + PATIENCE;
        let mut stream = loop {
            match UnixStream::connect(self.folder.join("control")) {
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
                connected => break connected.context("connecting to the edge's socket")?,
            }
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        writeln!(stream, "{}", serde_json::to_string(&order)?)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        match serde_json::from_str(&line)? {
            Answer::Done => Ok(()),
            other => bail!("the edge doesn't take its upstream: {other:?}"),
        }
    }

    /// The process and those that it has started.
    fn processes(&self) -> Vec<u32> {
        let mut all = vec![self.process.id()];
        let mut at = 0;
        while let Some(pid) = all.get(at) {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            at += 1;
        }
        all
    }

    /// Nanoseconds that all its threads have run, by the scheduler.
    pub(super) fn ran_ns(&self) -> Result<f64> {
        let mut sum = 0.0;
        for pid in self.processes() {
            for thread in fs::read_dir(format!("/proc/{pid}/task")).context("listing threads")?.flatten() {
                let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
                sum += text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0);
            }
        }
        Ok(sum)
    }

    /// Bytes of memory, each process with its part of what several share.
    pub(super) fn pss(&self) -> Result<f64> {
        let mut sum = 0.0;
        for pid in self.processes() {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("reading memory")?;
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
            sum += line.trim().trim_end_matches(" kB").parse::<f64>()? * 1024.0;
        }
        Ok(sum)
    }

    /// Established connections of clients to its TLS port.
    pub(super) fn connections(&self) -> Result<u64> {
        let local = format!("0100007F:{:04X}", self.https);
        let text = fs::read_to_string("/proc/net/tcp").context("reading connections")?;
        let established = |line: &&str| {
            let mut fields = line.split_whitespace().skip(1);
            fields.next() == Some(&local) && fields.nth(1) == Some("01")
        };
        Ok(text.lines().filter(established).count() as u64)
    }

    /// Ends it; it must have kept its access log, or it had less to do than the others.
    pub(super) fn end(mut self) -> Result<()> {
        self.process.ask_to_end();
        if fs::metadata(&self.log).map_or(0, |log| log.len()) == 0 {
            bail!("{} has logged nothing to {}", self.kind.name(), self.log.display());
        }
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.process.ask_to_end();
    }
}

/// ECDSA P-256: `key.pem`, `cert.pem`, both in `both.pem` and where the edge looks.
fn certificate(folder: &Path) -> Result<()> {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]);
    command.args(["-subj", &format!("/CN={DOMAIN}"), "-addext", &format!("subjectAltName=DNS:{DOMAIN}")]);
    command.arg("-keyout").arg(folder.join("key.pem")).arg("-out").arg(folder.join("cert.pem"));
    let output = command.output().context("starting openssl")?;
    if !output.status.success() {
        bail!("openssl made no certificate: {}", String::from_utf8_lossy(&output.stderr));
    }
    let both = fs::read_to_string(folder.join("key.pem"))? + &fs::read_to_string(folder.join("cert.pem"))?;
    fs::create_dir_all(folder.join("certificates/http-01"))?;
    fs::write(folder.join("both.pem"), &both)?;
    fs::write(folder.join("certificates").join(format!("{DOMAIN}.pem")), both)?;
    Ok(())
}

fn nginx(http: u16, https: u16, upstream: SocketAddr) -> String {
    format!(
        "daemon off; user root; worker_processes 1; worker_rlimit_nofile {DESCRIPTORS}; pid pid; error_log stderr error;
events {{ worker_connections {DESCRIPTORS}; }}
http {{
  limit_req_zone $binary_remote_addr zone=clients:10m rate={RATE}r/s;
  access_log access.log combined buffer=64k flush=1s;
  keepalive_requests 100000000;
  keepalive_timeout 75s;
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_certificate cert.pem;
  ssl_certificate_key key.pem;
  upstream web {{ server {upstream}; keepalive 128; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{http} backlog=4096;
    listen 127.0.0.1:{https} ssl http2 backlog=4096;
    server_name {DOMAIN};
    location / {{
      limit_req zone=clients burst={BURST} nodelay;
      limit_req_status 429;
      proxy_pass http://web;
      proxy_http_version 1.1;
      proxy_set_header Connection '';
      proxy_set_header Host $host;
      proxy_set_header X-Real-IP $remote_addr;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $host;
      proxy_set_header Forwarded 'for=$remote_addr;proto=$scheme;host=$host';
    }}
  }}
}}
"
    )
}

fn haproxy(folder: &Path, http: u16, https: u16, upstream: SocketAddr) -> String {
    let certificate = folder.join("both.pem");
    format!(
        "global
  nbthread 1
  maxconn 10500
  no strict-limits
  log stdout format raw local0
  ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
  mode http
  log global
  option httplog
  timeout connect 5s
  timeout client 75s
  timeout server 60s
  timeout http-keep-alive 75s
frontend edge
  bind 127.0.0.1:{http} backlog 4096
  bind 127.0.0.1:{https} ssl crt {certificate} alpn h2,http/1.1 backlog 4096
  stick-table type ip size 100k expire 10s store http_req_rate(1s)
  http-request track-sc0 src
  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {RATE} }}
  http-request set-header X-Real-IP %[src]
  http-request set-header X-Forwarded-For %[src]
  http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}
  http-request set-header X-Forwarded-Proto http if !{{ ssl_fc }}
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  http-request set-header Forwarded for=%[src];host=%[req.hdr(host)]
  default_backend web
backend web
  http-reuse always
  server web {upstream}
",
        certificate = certificate.display()
    )
}

/// It has no rate limit of its own.
fn caddy(folder: &Path, http: u16, https: u16, upstream: SocketAddr) -> String {
    let folder = folder.display();
    format!(
        "{{
  admin off
  auto_https off
  default_sni {DOMAIN}
  servers {{
    protocols h1 h2
  }}
}}
(same) {{
  bind 127.0.0.1
  log {{
    output file {folder}/access.log {{
      roll_size 1GiB
    }}
  }}
  reverse_proxy {upstream} {{
    header_up X-Real-IP {{remote_host}}
  }}
}}
http://:{http} {{
  import same
}}
https://:{https} {{
  tls {folder}/cert.pem {folder}/key.pem
  import same
}}
"
    )
}

fn edge(folder: &Path, http: u16, https: u16) -> Result<Settings> {
    let route = Route {
        domains: vec![DOMAIN.to_owned()],
        path: "/".to_owned(),
        to: Target { service: ServiceName::parse("web").context("a service's name")?, port: 80 },
        protocol: UpstreamProtocol::Http1,
        rate: Some(Rate { milli_per_s: RATE * 1_000, burst: BURST }),
        connections_per_client: None,
        allow: Vec::new(),
        deny: Vec::new(),
        ban: None,
        body_bytes_max: 1 << 20,
        upstream_timeout_ms: 60_000,
        compress: BTreeSet::new(),
        hsts: None,
    };
    let place = Place { file: "compose.yaml".into(), line: 1, column: 1 };
    let edge = Edge {
        routes: vec![Placed { value: route, place }],
        http_port: 80,
        https_port: 443,
        redirect: false,
        certificates: BTreeMap::from([(DOMAIN.to_owned(), CertificateSource::Local)]),
        default_domain: Some(DOMAIN.to_owned()),
        acme: None,
        tls_minimum: TlsVersion::V1_2,
        trusted_proxies: Vec::new(),
        proxy_protocol: false,
        http3: false,
        access_log: Some(AccessLog { format: LogFormat::Combined, query: true, file_bytes_max: 1 << 30, files: 2 }),
        error_pages: None,
        limits: ConnectionLimits::default(),
        drain_ms: DRAIN_MS,
    };
    Ok(Settings {
        edge,
        http: vec![SocketAddr::from(([127, 0, 0, 1], http))],
        https: vec![SocketAddr::from(([127, 0, 0, 1], https))],
        certificates: folder.join("certificates"),
        control: folder.join("control"),
        access_log: Some(folder.join("access.log")),
        workers: 1,
        upstreams: None,
    })
}
