//! Certificates that servers of this host really serve: each listening TCP port is asked for a TLS handshake.
//!
//! Only addresses of this host are asked, in the network namespace of who started it. A server may say nothing, or anything:
//! how long it is waited for and how much of it is read is bounded. PostgreSQL is asked for TLS in its own words.

mod certificate;
mod hello;
mod roots;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use palisade_core::audit::facts::{About, Facts, Listener, Owner, TlsFacts, Unknown};
use palisade_core::stack::Proto;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::link::InterfaceAddresses;

/// Ports that are asked at most; each costs a connection, those that speak TLS three more and one for each name.
const PORTS_MAX: usize = 512;
/// Connections at once: half of the files that a process may usually have open, so that all wait for the silent together.
const AT_ONCE: usize = 512;
/// Names that one port is asked for at most.
const NAMES_MAX: usize = 16;
/// For the answer to one handshake. A server on this host needs a hundredth of it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// The same at ports that are known for TLS, where no answer would be an answer.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(3);
/// For everything.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(8);
/// A handshake takes a few thousand bytes; whoever sends more talks of something else.
const READ_BYTES_MAX: usize = 1 << 16;
/// HTTPS, and what speaks TLS from the first byte by its registration (IANA).
const KNOWN_PORTS: [u16; 12] = [443, 465, 563, 636, 853, 990, 993, 995, 2376, 5061, 6443, 8443];
/// PostgreSQL's `SSLRequest`: its length, and a number that no version of the protocol has. `S` is its yes.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Questions that are under way.
pub(super) struct Asked {
    thread: JoinHandle<io::Result<Answers>>,
    ports: usize,
    unknown: Vec<Unknown>,
}

/// A port to be asked.
#[derive(Clone, Debug)]
struct Target {
    at: SocketAddr,
    local: SocketAddr,
    owner: Owner,
    names: Vec<String>,
}

#[derive(Default)]
struct Answers {
    found: Vec<TlsFacts>,
    unknown: Vec<Unknown>,
}

/// What came back from one handshake.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Certificates as they were sent.
    Chain(Vec<Vec<u8>>),
    /// It speaks TLS and has refused.
    Refused,
    /// Something else answered, or nobody.
    NotTls,
    /// It took too long.
    Silent,
}

impl Asked {
    /// Begins to ask, beside the calling thread and in its network namespace. `names`: with the port where each is served.
    pub(super) fn start(
        listeners: &[Listener],
        interfaces: &[InterfaceAddresses],
        names: &[(String, u16)],
    ) -> io::Result<Self> {
        let own: BTreeSet<IpAddr> =
            interfaces.iter().flat_map(|interface| &interface.addresses).map(|(ip, _)| *ip).collect();
        let mut unknown = Vec::new();
        let mut targets: BTreeMap<(bool, bool, SocketAddr), Target> = BTreeMap::new();
        for listener in listeners.iter().filter(|listener| listener.proto == Proto::Tcp) {
            let port = listener.local.port();
            let Some(ip) = address(listener, &own) else { continue };
            if listener.interface.as_ref().is_some_and(|name| name != "lo") {
                unknown
                    .push(not_known(format!("what is served at {}, which is for one interface only", listener.local)));
                continue;
            }
            let names = names.iter().filter(|(_, at)| *at == port).map(|(name, _)| name.clone());
            let names: Vec<String> = names.take(NAMES_MAX).collect();
            let unlikely = !KNOWN_PORTS.contains(&port) && names.is_empty();
            let at = SocketAddr::new(ip, port);
            let target = Target { at, local: listener.local, owner: listener.owner.clone(), names };
            // The likely ones first, then those that most can reach.
            targets.entry((unlikely, !listener.is_wide(), at)).or_insert(target);
        }
        let mut targets: Vec<Target> = targets.into_values().collect();
        if targets.len() > PORTS_MAX {
            let more = targets.len() - PORTS_MAX;
            unknown.push(not_known(format!("whether TLS is served at {more} more ports: only {PORTS_MAX} are asked")));
            targets.truncate(PORTS_MAX);
        }
        let ports = targets.len();
        let thread = std::thread::Builder::new().name("certificates".to_owned()).spawn(move || ask_all(targets))?;
        Ok(Self { thread, ports, unknown })
    }

    /// Waits for what isn't answered yet.
    pub(super) fn end(self, facts: &mut Facts) {
        facts.unknown.extend(self.unknown);
        facts.tls_asked = self.ports;
        match self.thread.join() {
            Ok(Ok(answers)) => {
                facts.tls = answers.found;
                facts.unknown.extend(answers.unknown);
            }
            Ok(Err(error)) => facts.unknown.push(not_known(format!("certificates that are served: {error}"))),
            Err(_) => facts.unknown.push(not_known("certificates that are served: asking for them failed".to_owned())),
        }
    }
}

fn not_known(why: String) -> Unknown {
    Unknown { about: About::Tls, why }
}

/// Where this host reaches the listener; `None` for what isn't this host's own.
fn address(listener: &Listener, own: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let bound = listener.local.ip().to_canonical();
    match bound {
        // An IPv6 socket that takes IPv4 serves the same by both.
        IpAddr::V6(ip) if ip.is_unspecified() => Some(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        IpAddr::V4(ip) if ip.is_unspecified() => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => None,
        ip => (ip.is_loopback() || own.contains(&ip)).then_some(ip),
    }
}

fn ask_all(targets: Vec<Target>) -> io::Result<Answers> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let all = Mutex::new(Answers::default());
    let done = runtime.block_on(async {
        let each = stream::iter(targets.iter()).for_each_concurrent(AT_ONCE, |target| {
            let all = &all;
            async move {
                let answers = ask(target).await;
                let mut all = all.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                all.found.extend(answers.found);
                all.unknown.extend(answers.unknown);
            }
        });
        tokio::time::timeout(TOTAL_TIMEOUT, each).await
    });
    let mut all = all.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    if done.is_err() {
        let why = format!("certificates of all ports: not everything answered within {} s", TOTAL_TIMEOUT.as_secs());
        all.unknown.push(not_known(why));
    }
    if let Some(roots) = (!all.found.is_empty()).then(roots::Roots::read) {
        for server in &mut all.found {
            roots.cut(server);
        }
    }
    all.found.sort_by(|a, b| (a.port, a.local, &a.name).cmp(&(b.port, b.local, &b.name)));
    Ok(all)
}

/// Everything that is asked of one port.
async fn ask(target: &Target) -> Answers {
    let mut answers = Answers::default();
    let patience = if KNOWN_PORTS.contains(&target.at.port()) || !target.names.is_empty() {
        KNOWN_TIMEOUT
    } else {
        ANSWER_TIMEOUT
    };
    let first = handshake(target, None, patience).await;
    match first {
        Answer::NotTls => return answers,
        Answer::Silent => {
            // What is silent where nobody expects TLS isn't remarkable.
            if patience == KNOWN_TIMEOUT {
                let why = format!("what is served at {}: no answer within {} s", target.local, patience.as_secs());
                answers.unknown.push(not_known(why));
            }
            return answers;
        }
        Answer::Chain(_) | Answer::Refused => {}
    }
    let mut old_versions = Vec::new();
    for (version, name) in [(hello::TLS_1_0, "TLS 1.0"), (hello::TLS_1_1, "TLS 1.1")] {
        if in_the_clear(target, target.names.first().map(String::as_str), version).await.is_some() {
            old_versions.push(name.to_owned());
        }
    }
    // Whoever serves several names may refuse who names none.
    let unnamed = facts(target, None, first, old_versions);
    if !unnamed.chain.is_empty() || target.names.is_empty() || !unnamed.old_versions.is_empty() {
        answers.found.push(unnamed);
    }
    for name in &target.names {
        match handshake(target, Some(name), patience).await {
            Answer::NotTls | Answer::Silent => {
                answers.unknown.push(not_known(format!("what is served at {} for {name}: no answer", target.local)));
            }
            answer => answers.found.push(facts(target, Some(name), answer, Vec::new())),
        }
    }
    answers
}

fn facts(target: &Target, name: Option<&String>, answer: Answer, old_versions: Vec<String>) -> TlsFacts {
    let chain = match answer {
        Answer::Chain(chain) => certificate::path(&chain),
        _ => Vec::new(),
    };
    TlsFacts {
        port: target.at.port(),
        local: Some(target.local),
        owner: target.owner.clone(),
        name: name.cloned(),
        chain,
        issuer_known: None,
        old_versions,
    }
}

/// A connection on which TLS comes next.
async fn connect(target: &Target) -> io::Result<Bounded> {
    let mut stream = Bounded { inner: TcpStream::connect(target.at).await?, left: READ_BYTES_MAX };
    let is_postgres = matches!(target.owner.program(), "postgres" | "postmaster") || target.at.port() == 5432;
    if is_postgres {
        stream.write_all(&SSL_REQUEST).await?;
        if stream.read_u8().await? != b'S' {
            return Err(io::ErrorKind::Unsupported.into());
        }
    }
    Ok(stream)
}

/// A handshake by today's rules; where that leads to nothing, one in which certificates are sent in the clear.
async fn handshake(target: &Target, name: Option<&str>, patience: Duration) -> Answer {
    let recorder = Arc::new(Recorder::default());
    let tried = tokio::time::timeout(patience, async {
        let stream = connect(target).await?;
        let server = match name.map(|name| ServerName::try_from(name.to_owned())) {
            Some(Ok(server)) => server,
            Some(Err(_)) => return Err(io::ErrorKind::InvalidInput.into()),
            // An address is never sent as a name.
            None => ServerName::IpAddress(target.at.ip().into()),
        };
        let config = config(recorder.clone()).map_err(io::Error::other)?;
        TlsConnector::from(Arc::new(config)).connect(server, stream).await.map(drop)
    });
    let ended = tried.await;
    let chain = recorder.take();
    if !chain.is_empty() {
        return Answer::Chain(chain);
    }
    match ended {
        Err(_) => Answer::Silent,
        Ok(Ok(())) => Answer::Refused,
        Ok(Err(error)) if speaks_tls(&error) => match in_the_clear(target, name, hello::TLS_1_2).await {
            Some(chain) if !chain.is_empty() => Answer::Chain(chain),
            _ => Answer::Refused,
        },
        Ok(Err(_)) => Answer::NotTls,
    }
}

/// Whether what went wrong went wrong in words of TLS.
fn speaks_tls(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    inner.is_some_and(|error| !matches!(error, rustls::Error::InvalidMessage(_) | rustls::Error::General(_)))
}

/// The certificates that a server sends when it is offered nothing newer than this version; `None` when it doesn't agree to it.
async fn in_the_clear(target: &Target, name: Option<&str>, version: [u8; 2]) -> Option<Vec<Vec<u8>>> {
    let asked = async {
        let mut stream = connect(target).await.ok()?;
        stream.write_all(&hello::client_hello(version, name)).await.ok()?;
        let mut reader = hello::Reader::new(version);
        let mut buffer = [0; 4096];
        loop {
            let read = stream.read(&mut buffer).await.ok().filter(|read| *read > 0);
            let Some(read) = read else { return reader.agreed().then(Vec::new) };
            match reader.take(&buffer[..read]) {
                hello::Said::More => {}
                hello::Said::Refused => return reader.agreed().then(Vec::new),
                hello::Said::Certificates(chain) => return Some(chain),
            }
        }
    };
    tokio::time::timeout(ANSWER_TIMEOUT, asked).await.ok().flatten()
}

fn config(recorder: Arc<Recorder>) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.dangerous().with_custom_certificate_verifier(recorder).with_no_client_auth())
}

/// Keeps what a server sends, and believes everything: nothing is told to it.
#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<Vec<u8>>>);

impl Recorder {
    fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(leaf).chain(more).take(certificate::CHAIN_MAX).map(|der| der.to_vec()).collect();
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = chain;
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        use SignatureScheme::*;
        vec![
            ECDSA_NISTP256_SHA256,
            ECDSA_NISTP384_SHA384,
            ECDSA_NISTP521_SHA512,
            ED25519,
            RSA_PSS_SHA256,
            RSA_PSS_SHA384,
            RSA_PSS_SHA512,
            RSA_PKCS1_SHA256,
            RSA_PKCS1_SHA384,
            RSA_PKCS1_SHA512,
            ECDSA_SHA1_Legacy,
            RSA_PKCS1_SHA1,
        ]
    }
}

/// A connection of which only so much is read.
struct Bounded {
    inner: TcpStream,
    left: usize,
}

impl AsyncRead for Bounded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left == 0 {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buffer);
        self.left = self.left.saturating_sub(buffer.filled().len() - before);
        polled
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
