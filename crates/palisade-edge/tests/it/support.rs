//! Starts edges, and talks with them as clients and as root do.

use palisade_core::edge::{
    Answer, CertificateSource, ConnectionLimits, DRAIN_MS, Edge as Model, Order, Report, Route, Settings, TlsVersion,
    Upstream, UpstreamInstance, UpstreamProtocol, Upstreams,
};
use palisade_core::names::{InstanceId, ServiceName};
use palisade_core::place::{Place, Placed};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The domain of most tests.
pub(crate) const DOMAIN: &str = "shop.example";

/// An address of loopback that no other test uses at the same time.
pub(crate) fn own_address() -> IpAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 88, high, low).into()
}

/// A port of [`own_address`] that nobody listens on, another one each time: below those that the kernel gives to whoever
/// doesn't care, so that nobody gets it by chance before it is used.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let address = SocketAddr::new(own_address(), NEXT.fetch_add(1, Ordering::Relaxed));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

/// Waits until this is true.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Says that a test, or a part of it, can't run here, and why: also in the file that `scripts/test` collects these in.
pub(crate) fn skipped(what: &str, reason: impl std::fmt::Display) {
    let line = format!("SKIPPED: {what}: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("PALISADE_SKIP_LOG") {
        // One write of a short line: those of other processes don't come between.
        let log = std::fs::OpenOptions::new().append(true).create(true).open(path);
        log.and_then(|mut log| log.write_all(line.as_bytes())).expect("the log of skipped tests is there");
    }
}

/// A folder that goes with the value.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("palisade-edge-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder below the temporary one");
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A route below `/` of [`DOMAIN`] to the service `web`, without limits.
pub(crate) fn route() -> Route {
    Route {
        domains: vec![DOMAIN.to_owned()],
        path: "/".to_owned(),
        to: Upstream { service: ServiceName::parse("web").expect("a name"), port: 80 },
        protocol: UpstreamProtocol::Http1,
        rate: None,
        connections_per_client: None,
        allow: Vec::new(),
        deny: Vec::new(),
        ban: None,
        body_bytes_max: 1 << 20,
        upstream_timeout_ms: 30_000,
        compress: BTreeSet::new(),
        hsts: None,
    }
}

/// An edge of one worker with [`route`], plain HTTP not redirected.
pub(crate) fn settings() -> (Settings, Folder) {
    let folder = Folder::new();
    let edge = Model {
        routes: vec![placed(route())],
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
        access_log: None,
        error_pages: None,
        limits: ConnectionLimits::default(),
        drain_ms: DRAIN_MS,
    };
    let settings = Settings {
        edge,
        http: vec![free_address()],
        https: vec![free_address()],
        certificates: folder.path().join("certificates"),
        control: folder.path().join("control"),
        access_log: None,
        upstreams: None,
        workers: 1,
    };
    std::fs::create_dir_all(settings.certificates.join("http-01")).expect("its folder is there");
    certificate(&settings.certificates, DOMAIN);
    (settings, folder)
}

pub(crate) fn placed(route: Route) -> Placed<Route> {
    Placed { value: route, place: Place { file: "compose.yaml".into(), line: 1, column: 1 } }
}

/// Makes a certificate that signs itself.
pub(crate) fn certificate(folder: &Path, domain: &str) {
    let made = rcgen::generate_simple_self_signed([domain.to_owned()]).expect("a certificate");
    let text = made.signing_key.serialize_pem() + &made.cert.pem();
    std::fs::write(folder.join(format!("{domain}.pem")), text).expect("its folder is there");
}

/// For a client that trusts the edge's own certificate and no other.
pub(crate) fn roots(edge: &Edge) -> RootCertStore {
    let certificate = CertificateDer::from_pem_file(edge.settings.certificates.join(format!("{DOMAIN}.pem")));
    let mut roots = RootCertStore::empty();
    roots.add(certificate.expect("it is there")).expect("it is one");
    roots
}

/// A running edge. It is killed with the value.
pub(crate) struct Edge {
    pub(crate) settings: Settings,
    folder: Folder,
    pub(crate) child: Child,
}

impl Edge {
    pub(crate) fn start((settings, folder): (Settings, Folder)) -> Self {
        Self::start_by(Command::new(std::env::current_exe().expect("this program has a path")), (settings, folder))
    }

    /// By a command that leads to this program.
    pub(crate) fn start_by(mut command: Command, (settings, folder): (Settings, Folder)) -> Self {
        let file = folder.path().join("settings.json");
        std::fs::write(&file, serde_json::to_vec_pretty(&settings).expect("settings are data"))
            .expect("its folder is there");
        let child = command
            .args(["--ignored", "--exact", "child::edge", "--nocapture"])
            .env("EDGE_SETTINGS", file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("this program can be started");
        let mut edge = Self { settings, folder, child };
        wait_until("the edge takes orders", || {
            if let Some(status) = edge.child.try_wait().expect("it is our child") {
                panic!("the edge ended: {status}");
            }
            UnixStream::connect(&edge.settings.control).is_ok()
        });
        edge
    }

    /// With these instances of `web:80`.
    pub(crate) fn with(settings: (Settings, Folder), upstreams: &[SocketAddr]) -> Self {
        let edge = Self::start(settings);
        edge.set("web:80", upstreams);
        edge
    }

    pub(crate) fn order(&self, order: &Order) -> Answer {
        let mut stream = UnixStream::connect(&self.settings.control).expect("the edge takes orders");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
        stream
            .write_all((serde_json::to_string(order).expect("orders are data") + "\n").as_bytes())
            .expect("it is sent");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("there is an answer");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    /// Gives the edge the instances of one upstream.
    pub(crate) fn set(&self, upstream: &str, addresses: &[SocketAddr]) {
        let id = InstanceId::parse("web.1").expect("an instance's name");
        let instances = addresses.iter().map(|&address| UpstreamInstance { id: id.clone(), address }).collect();
        let order = Order::SetUpstreams(Upstreams::from([(upstream.to_owned(), instances)]));
        assert_eq!(self.order(&order), Answer::Done);
    }

    pub(crate) fn report(&self) -> Report {
        match self.order(&Order::Report) {
            Answer::Report(report) => *report,
            other => panic!("no report: {other:?}"),
        }
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.settings.http[0]
    }

    pub(crate) fn https(&self) -> SocketAddr {
        self.settings.https[0]
    }

    /// A connection to the port for HTTP.
    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.http())
    }

    /// Sends this over plain HTTP, says that no more comes, and reads until the edge closes.
    pub(crate) fn raw(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect();
        stream.write_all(request.as_ref()).expect("it is sent");
        read_all(&mut stream)
    }

    /// One request over plain HTTP; the head and the body of the answer.
    pub(crate) fn get(&self, path: &str) -> (String, String) {
        let answer = self.raw(format!("GET {path} HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n"));
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) => (head.to_owned(), body.to_owned()),
            None => panic!("no answer: {answer:?}"),
        }
    }

    /// Arguments of curl that send so many bytes.
    pub(crate) fn body(&self, bytes: usize) -> [String; 2] {
        let file = self.folder.path().join(format!("body-{bytes}"));
        std::fs::write(&file, vec![b'x'; bytes]).expect("its folder is there");
        ["--data-binary".to_owned(), format!("@{}", file.display())]
    }

    /// curl, told where the domain is.
    pub(crate) fn curl(&self, arguments: &[&str]) -> String {
        let resolve = [(443, self.https()), (80, self.http())]
            .map(|(port, address)| format!("{DOMAIN}:{port}:{}:{}", address.ip(), address.port()));
        let connect = resolve.map(|resolve| {
            let mut parts = resolve.splitn(3, ':');
            let (host, port, to) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
            format!("{host}:{port}:{to}")
        });
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--insecure", "--max-time", "60", "--noproxy", "*"])
            .args(["--connect-to", &connect[0], "--connect-to", &connect[1]])
            .args(arguments)
            .output()
            .expect("curl is installed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "curl {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the edge listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    stream.set_write_timeout(Some(PATIENCE)).expect("a time limit");
    stream
}

/// A client's TLS connection.
pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A connection to the port for HTTPS that speaks one of these protocols.
pub(crate) fn tls(edge: &Edge, protocols: &[&[u8]]) -> Tls {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("there are some")
        .with_root_certificates(roots(edge))
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(DOMAIN).expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    StreamOwned::new(connection, connect(edge.https()))
}

/// What is read until the other side closes; a reset ends it as well.
pub(crate) fn read_all(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let mut part = [0; 4096];
    loop {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(read) => all.extend_from_slice(&part[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("neither an answer nor an end ({error}) after {:?}", String::from_utf8_lossy(&all)),
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads until the text ends with this.
pub(crate) fn read_until(stream: &mut impl Read, end: &str) -> String {
    let mut all = Vec::new();
    let mut byte = [0];
    while !all.ends_with(end.as_bytes()) {
        match stream.read(&mut byte) {
            Ok(1) => all.push(byte[0]),
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&all)),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}
