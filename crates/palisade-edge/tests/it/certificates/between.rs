//! Who stands between the worker and a real authority, and answers some things in its place: authorities differ from the one for tests.

use super::pebble::Authority;
use super::stack::Stack;
use crate::support::{PATIENCE, free_address, own_address};
use palisade_core::edge::AcmeDirectory;
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What it does otherwise than the authority.
#[derive(Clone)]
pub(crate) enum Rule {
    /// In all answers this stands for that.
    Replace(String, String),
    /// What is asked for at this path, or below it, is answered here: a status with more fields, and a body.
    Answer(&'static str, String, String),
}

/// A problem of RFC 8555 for [`Rule::Answer`].
pub(crate) fn problem(kind: &str) -> String {
    format!(r#"{{"type":"urn:ietf:params:acme:error:{kind}","detail":"not now","status":400}}"#)
}

/// It answers until the test ends.
pub(crate) struct Between {
    pub(crate) directory: AcmeDirectory,
    shared: Arc<Shared>,
}

struct Shared {
    authority: SocketAddr,
    client: Arc<rustls::ClientConfig>,
    server: Arc<rustls::ServerConfig>,
    rules: Mutex<Vec<Rule>>,
    /// First lines of requests.
    asked: Mutex<Vec<String>>,
}

impl Between {
    pub(crate) fn new(authority: &Authority, stack: &Stack) -> Self {
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new([own_address().to_string()]).expect("a name");
        let certificate = certificate.self_signed(&key).expect("a certificate");
        let at = free_address();
        let roots = stack.worker.state.parent().expect("it has one").join(format!("roots-{}.pem", at.port()));
        std::fs::write(&roots, certificate.pem()).expect("the folder is there");
        let mut trusted = rustls::RootCertStore::empty();
        let root = CertificateDer::from_pem_file(authority.api_root()).expect("it is there");
        trusted.add(root).expect("it is a root");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider));
        let client = client.with_safe_default_protocol_versions().expect("versions");
        let server = rustls::ServerConfig::builder_with_provider(provider);
        let server = server.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
        let own = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let shared = Arc::new(Shared {
            authority: authority.api,
            client: Arc::new(client.with_root_certificates(trusted).with_no_client_auth()),
            server: Arc::new(server.with_single_cert(vec![certificate.der().clone()], own).expect("they match")),
            rules: Mutex::default(),
            asked: Mutex::default(),
        });
        let listener = TcpListener::bind(at).expect("it was free");
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Whoever goes away before the end is no matter.
                let _ = serving.serve(stream);
            }
        });
        let directory = AcmeDirectory { url: format!("https://{at}/dir"), root: Some(roots), eab: None };
        Self { directory, shared }
    }

    /// From now on only these count.
    pub(crate) fn rules(&self, rules: impl IntoIterator<Item = Rule>) {
        *self.shared.rules.lock().expect("nobody panics with it") = rules.into_iter().collect();
    }

    /// How often something was asked for at this path.
    pub(crate) fn asked(&self, path: &str) -> usize {
        let asked = self.shared.asked.lock().expect("nobody panics with it");
        asked.iter().filter(|line| line.split(' ').nth(1) == Some(path)).count()
    }
}

impl Shared {
    /// One request, as the worker makes one a connection.
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let connection = rustls::ServerConnection::new(Arc::clone(&self.server)).map_err(io::Error::other)?;
        let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
        let (line, head, length) = head(&mut stream)?;
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        self.asked.lock().expect("nobody panics with it").push(line.clone());
        let rules = self.rules.lock().expect("nobody panics with it").clone();
        let path = line.split(' ').nth(1).unwrap_or_default();
        let here = rules.iter().find_map(|rule| match rule {
            Rule::Answer(at, head, body) if path.starts_with(at) => {
                Some((format!("HTTP/1.1 {head}\r\n"), body.clone()))
            }
            _ => None,
        });
        let (head, mut body) = match here {
            Some(answer) => answer,
            None => self.ask(&line, &head, &body)?,
        };
        for rule in &rules {
            if let Rule::Replace(this, that) = rule {
                body = body.replace(this, that);
            }
        }
        write!(stream.get_mut(), "{head}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())?;
        stream.get_mut().conn.send_close_notify();
        stream.get_mut().flush()
    }

    /// Asks the authority: the head without its end, and the body of its answer.
    fn ask(&self, line: &str, head: &str, body: &[u8]) -> io::Result<(String, String)> {
        let name = ServerName::from(self.authority.ip());
        let connection = rustls::ClientConnection::new(Arc::clone(&self.client), name).map_err(io::Error::other)?;
        let stream = TcpStream::connect(self.authority)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut stream = rustls::StreamOwned::new(connection, stream);
        // Nobody cuts a body into parts for a client of old.
        write!(stream, "{}\r\n{head}\r\n", line.replace("HTTP/1.1", "HTTP/1.0"))?;
        stream.write_all(body)?;
        let mut stream = BufReader::new(stream);
        let (line, head, _) = self::head(&mut stream)?;
        let mut body = Vec::new();
        stream.read_to_end(&mut body)?;
        let head: String = head.lines().filter(|field| !is_about_length(field)).map(|f| format!("{f}\r\n")).collect();
        Ok((format!("{}\r\n{head}", line.replace("HTTP/1.0", "HTTP/1.1")), String::from_utf8_lossy(&body).into_owned()))
    }
}

fn is_about_length(field: &str) -> bool {
    let name = field.split(':').next().unwrap_or_default();
    ["content-length", "connection"].iter().any(|about| name.eq_ignore_ascii_case(about))
}

/// The first line, the fields, and how long the body is.
fn head(stream: &mut impl BufRead) -> io::Result<(String, String, usize)> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let (mut fields, mut length) = (String::new(), 0);
    loop {
        let mut field = String::new();
        if stream.read_line(&mut field)? <= 2 {
            return Ok((line.trim_end().to_owned(), fields, length));
        }
        if let Some(value) = field.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        fields.push_str(&field);
    }
}
