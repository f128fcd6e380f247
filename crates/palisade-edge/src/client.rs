//! A client that asks the edge as a stranger does, one request for each connection: for proofs.
//!
//! It believes one authority only. What an answer means is judged by whoever asked.

use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// An answer's head at most.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// `200`.
    pub status: u16,
    /// Names in lower case, and values, in the order of the answer.
    pub fields: Vec<(String, String)>,
}

impl Head {
    /// The first field of that name (lower case).
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
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
    Ok(Opened(Stream::Plain(tcp(address, timeout)?)))
}

/// Connects and shakes hands as a client of this domain, which believes only certificates that end in `root` (PEM).
///
/// # Errors
///
/// Nobody accepts, or the certificate isn't good for that client.
pub fn tls(address: SocketAddr, domain: &str, root: &[u8], timeout: Duration) -> io::Result<Opened> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(root) {
        roots.add(certificate.map_err(io::Error::other)?).map_err(io::Error::other)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(domain.to_owned()).map_err(io::Error::other)?;
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let mut stream = tcp(address, timeout)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(Opened(Stream::Tls(Box::new(StreamOwned::new(connection, stream)))))
}

fn tcp(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Opened {
    /// Asks for a path, with more fields (`Name: value`), and reads the head of the answer.
    ///
    /// # Errors
    ///
    /// There is no answer within the time, or it isn't one.
    pub fn get(self, domain: &str, path: &str, fields: &[&str]) -> io::Result<Head> {
        let more: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
        let close = if fields.iter().any(|field| field.to_ascii_lowercase().starts_with("connection:")) {
            ""
        } else {
            "Connection: close\r\n"
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: {domain}\r\nAccept: */*\r\n{close}{more}\r\n");
        match self.0 {
            Stream::Plain(stream) => exchange(stream, &request),
            Stream::Tls(stream) => exchange(*stream, &request),
        }
    }
}

fn exchange(mut stream: impl Read + Write, request: &str) -> io::Result<Head> {
    stream.write_all(request.as_bytes())?;
    stream.flush()?;
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        let length = stream.read(&mut part)?;
        bytes.extend_from_slice(&part[..length]);
        if let Some(head) = head(&bytes)? {
            return Ok(head);
        }
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if bytes.len() > HEAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer's head has no end"));
        }
    }
}

/// `None`: it isn't complete.
fn head(bytes: &[u8]) -> io::Result<Option<Head>> {
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut answer = httparse::Response::new(&mut fields);
    if answer.parse(bytes).map_err(io::Error::other)?.is_partial() {
        return Ok(None);
    }
    let fields = answer
        .headers
        .iter()
        .map(|field| (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).into_owned()));
    Ok(Some(Head { status: answer.code.unwrap_or_default(), fields: fields.collect() }))
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
        let head = head(text).unwrap().unwrap();
        assert_eq!((head.status, head.field("location")), (308, Some("https://x/")));
        assert!(super::head(b"SSH-2.0-OpenSSH\r\n\r\n").is_err());
    }
}
