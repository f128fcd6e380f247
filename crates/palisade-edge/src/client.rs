//! A client that asks the edge as a stranger does, one request for each connection: for proofs.
//!
//! It believes what it is told to, and no more. What an answer means is judged by whoever asked.

use crate::tls::Facts;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};
use nix::sys::time::TimeVal;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    StreamOwned,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An answer's head at most.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// So much of an answer's body is read, and for so long after the head: an answer may have no end.
const BODY_BYTES_MAX: usize = 1 << 20;
const BODY_TIME: Duration = Duration::from_secs(2);

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// `200`.
    pub status: u16,
    /// Names in lower case, and values, in the order of the answer.
    pub fields: Vec<(String, String)>,
    /// As much of it as came soon, and as it came.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first field of that name (lower case).
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Which certificates a client believes.
#[derive(Clone, Debug)]
pub enum Believed {
    /// Those that end in one of these roots (PEM).
    Roots(Vec<u8>),
    /// These (PEM, the server's own first), as they are: for a client that can't know whom others would believe. Still only for
    /// the domains that they are for, and as long as they are valid.
    Chain(Vec<u8>),
}

/// A connection on which nothing was asked yet.
#[derive(Debug)]
pub struct Opened(Stream);

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// Connects without TLS.
///
/// # Errors
///
/// Nobody accepts within the time.
pub fn plain(address: SocketAddr, timeout: Duration) -> io::Result<Opened> {
    Ok(Opened(Stream::Plain(tcp(address, None, timeout)?)))
}

/// Connects, as this address if one is given, and shakes hands as a client of this domain.
///
/// # Errors
///
/// Nobody accepts, or the certificate isn't believed.
pub fn tls(
    address: SocketAddr,
    source: Option<IpAddr>,
    domain: &str,
    believed: &Believed,
    timeout: Duration,
) -> io::Result<Opened> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let config = match believed {
        Believed::Roots(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(pem)? {
                roots.add(certificate).map_err(io::Error::other)?;
            }
            builder.with_root_certificates(roots)
        }
        Believed::Chain(pem) => {
            let verifier = Arc::new(Given { chain: certificates(pem)?, provider });
            builder.dangerous().with_custom_certificate_verifier(verifier)
        }
    };
    let name = ServerName::try_from(domain.to_owned()).map_err(io::Error::other)?;
    let mut connection =
        ClientConnection::new(Arc::new(config.with_no_client_auth()), name).map_err(io::Error::other)?;
    let mut stream = tcp(address, source, timeout)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(Opened(Stream::Tls(Box::new(StreamOwned::new(connection, stream)))))
}

fn certificates(pem: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(io::Error::other)
}

/// Believes the certificates that somebody gave, whoever signed them.
#[derive(Debug)]
struct Given {
    chain: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Given {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.chain.iter().eq(std::iter::once(own).chain(between)) {
            return Err(Error::General("it is shown another one than was given".to_owned()));
        }
        let facts = Facts::of(own).ok_or(CertificateError::BadEncoding)?;
        if let Some(untimely) = facts.untimely(now.as_secs()) {
            return Err(Error::General(untimely));
        }
        match name {
            ServerName::DnsName(name) if facts.covers(name.as_ref()) => Ok(ServerCertVerified::assertion()),
            _ => Err(CertificateError::NotValidForName.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, own, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, own, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn tcp(address: SocketAddr, source: Option<IpAddr>, timeout: Duration) -> io::Result<TcpStream> {
    let stream = match source {
        None => TcpStream::connect_timeout(&address, timeout)?,
        Some(source) => {
            let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let fd = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
            // Of a connection that isn't there yet, it is the time to make it.
            let seconds = TimeVal::new(i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX), 0);
            socket::setsockopt(&fd, sockopt::SendTimeout, &seconds)?;
            socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
            TcpStream::from(fd)
        }
    };
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Opened {
    /// Asks for a path, with more fields (`Name: value`), and reads the answer until its end, or as much as comes soon.
    ///
    /// # Errors
    ///
    /// There is no answer within the time, or it isn't one.
    pub fn get(&mut self, domain: &str, path: &str, fields: &[&str]) -> io::Result<Answer> {
        let more: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        let close = if fields.iter().any(|field| field.to_ascii_lowercase().starts_with("connection:")) {
            ""
        } else {
            "Connection: close\r\n"
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: {domain}\r\nAccept: */*\r\n{close}{more}\r\n");
        match &mut self.0 {
            Stream::Plain(stream) => exchange(&*stream, stream, &request),
            Stream::Tls(stream) => {
                let socket = stream.sock.try_clone()?;
                exchange(stream.as_mut(), &socket, &request)
            }
        }
    }
}

fn exchange(mut stream: impl Read + Write, socket: &TcpStream, request: &str) -> io::Result<Answer> {
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    let (mut answer, length) = loop {
        let length = stream.read(&mut part)?;
        bytes.extend_from_slice(&part[..length]);
        if let Some(found) = head(&bytes)? {
            break found;
        }
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if bytes.len() > HEAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer's head has no end"));
        }
    };
    answer.body = bytes.split_off(length);
    if answer.status != 101 {
        rest(stream, socket, &mut answer.body);
    }
    Ok(answer)
}

/// What comes soon. However it ends, there was an answer.
fn rest(mut stream: impl Read, socket: &TcpStream, body: &mut Vec<u8>) {
    let deadline = Instant::now() + BODY_TIME;
    let mut part = [0; 4096];
    while body.len() < BODY_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || socket.set_read_timeout(Some(left)).is_err() {
            return;
        }
        match stream.read(&mut part) {
            Ok(0) | Err(_) => return,
            Ok(length) => body.extend_from_slice(&part[..length]),
        }
    }
}

/// The answer without its body, and the length of its head. `None`: it isn't complete.
fn head(bytes: &[u8]) -> io::Result<Option<(Answer, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut answer = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(length) = answer.parse(bytes).map_err(io::Error::other)? else { return Ok(None) };
    let fields = answer
        .headers
        .iter()
        .map(|field| (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).into_owned()));
    let answer = Answer { status: answer.code.unwrap_or_default(), fields: fields.collect(), body: Vec::new() };
    Ok(Some((answer, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_when_they_are_complete() {
        let text = b"HTTP/1.1 308 Permanent Redirect\r\nLocation: https://x/\r\n\r\nbody";
        for length in 0..text.len() - 6 {
            assert_eq!(head(&text[..length]).unwrap(), None, "{length}");
        }
        let (answer, length) = head(text).unwrap().unwrap();
        assert_eq!((answer.status, answer.field("location")), (308, Some("https://x/")));
        assert_eq!(&text[length..], b"body");
        assert!(super::head(b"SSH-2.0-OpenSSH\r\n\r\n").is_err());
    }
}
