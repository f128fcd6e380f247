//! HTTP as the worker speaks it with an authority, and to look at a domain as an authority would.
//!
//! One connection a request: an order is a dozen requests. Every wait has an end, and what an answer says about when to come
//! again is kept, which the ACME library drops.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Body;
use hyper::header::{CONTENT_TYPE, DATE, HOST, HeaderValue, RETRY_AFTER};
use hyper::http::{request, response};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use rustls::crypto::aws_lc_rs;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::events::rfc3339;
use super::order::now_s;

/// For a request and its whole answer.
const REQUEST: Duration = Duration::from_secs(60);
/// For one address.
const CONNECT: Duration = Duration::from_secs(10);
/// Directories, orders and chains are kilobytes.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Why there is no answer that is one of an authority.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("can't read the root certificates in {0}")]
    Root(PathBuf, #[source] rustls_pki_types::pem::Error),
    #[error("can't use a root certificate in {0}")]
    RootUnusable(PathBuf, #[source] rustls::Error),
    #[error("this host has no root certificates (package ca-certificates), and the directory has no `root` of its own")]
    NoRoots,
    #[error("can't prepare TLS")]
    Tls(#[source] rustls::Error),
    #[error("{0} is not an https URL")]
    Url(String),
    #[error("can't find the address of {0}")]
    Resolve(String, #[source] io::Error),
    #[error("can't connect to {0}")]
    Connect(String, #[source] io::Error),
    #[error("the certificate of {0} isn't good at this time: is this host's clock right? It says {now}", now = now())]
    Clock(String, #[source] io::Error),
    #[error("no answer from {0} within {REQUEST:?}")]
    Late(String),
    #[error("can't talk with {0}")]
    Talk(String, #[source] hyper::Error),
    #[error("can't read the answer of {0}")]
    Body(String, #[source] Box<dyn StdError + Send + Sync>),
    #[error("{0} answers {1}, and not as an authority does")]
    Status(String, u16),
}

/// The client for one authority.
#[derive(Clone)]
pub(super) struct Https {
    tls: TlsConnector,
    /// What an answer asked for last, while it refused.
    again: Arc<Mutex<Option<SystemTime>>>,
    /// Its clock, when it answered last.
    date: Arc<Mutex<Option<SystemTime>>>,
}

impl Https {
    /// Trusts the host's roots, and those in `root`.
    pub(super) fn new(root: Option<&Path>) -> Result<Self, ClientError> {
        let mut roots = RootCertStore::empty();
        // Some of a host's roots are always unusable; what matters is whether the authority's own is there.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = root {
            let unreadable = |error| ClientError::Root(path.to_owned(), error);
            for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
                let certificate = certificate.map_err(unreadable)?;
                roots.add(certificate).map_err(|error| ClientError::RootUnusable(path.to_owned(), error))?;
            }
        }
        if roots.is_empty() {
            return Err(ClientError::NoRoots);
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(ClientError::Tls)?;
        let config = builder.with_root_certificates(roots).with_no_client_auth();
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), again: Arc::default(), date: Arc::default() })
    }

    /// When the authority wants to be asked again, if it has refused something since the last call and said so.
    pub(super) fn take_again(&self) -> Option<SystemTime> {
        self.again.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The time at the authority when it answered last.
    pub(super) fn date(&self) -> Option<SystemTime> {
        *self.date.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: Request<BodyWrapper<Bytes>>) -> Result<Response<Bytes>, ClientError> {
        let (parts, body) = request.into_parts();
        let url = parts.uri.clone();
        let host = url.host().filter(|_| url.scheme_str() == Some("https"));
        let host = host.ok_or_else(|| ClientError::Url(url.to_string()))?.trim_matches(['[', ']']).to_owned();
        let server = format!("{host}:{}", url.port_u16().unwrap_or(443));
        let late = |_| ClientError::Late(server.clone());
        let answer = timeout(REQUEST, async {
            let stream = connect(&host, url.port_u16().unwrap_or(443), &server).await?;
            let name = ServerName::try_from(host.clone()).map_err(|_| ClientError::Url(url.to_string()))?;
            let failed = |error| match is_about_time(&error) {
                true => ClientError::Clock(server.clone(), error),
                false => ClientError::Connect(server.clone(), error),
            };
            let stream = self.tls.connect(name, stream).await.map_err(failed)?;
            exchange(stream, &server, parts, body).await
        });
        let answer = answer.await.map_err(late)??;
        let date = answer.headers().get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        if date.is_some() {
            *self.date.lock().unwrap_or_else(PoisonError::into_inner) = date;
        }
        if answer.status().is_client_error() || answer.status().is_server_error() {
            let again = answer.headers().get(RETRY_AFTER).and_then(|value| retry_after(value, SystemTime::now()));
            if let Some(again) = again {
                *self.again.lock().unwrap_or_else(PoisonError::into_inner) = Some(again);
            }
            let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
            if !kind.contains("json") {
                return Err(ClientError::Status(server, answer.status().as_u16()));
            }
        }
        Ok(answer)
    }
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let client = self.clone();
        Box::pin(async move {
            let answer = client.answer(request).await.map_err(|error| instant_acme::Error::Other(error.into()))?;
            Ok(BytesResponse::from(answer.map(Full::new)))
        })
    }
}

fn is_about_time(error: &io::Error) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let error = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(error)) = error else { return false };
    matches!(error, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
}

fn now() -> String {
    rfc3339(now_s())
}

/// The first address that answers.
async fn connect(host: &str, port: u16, server: &str) -> Result<TcpStream, ClientError> {
    let found = tokio::net::lookup_host((host, port)).await;
    let addresses: Vec<SocketAddr> = found.map_err(|error| ClientError::Resolve(host.to_owned(), error))?.collect();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(ClientError::Connect(server.to_owned(), last))
}

/// One request and its answer over a connection of its own.
pub(super) async fn exchange<S, B>(
    stream: S,
    server: &str,
    mut parts: request::Parts,
    body: B,
) -> Result<Response<Bytes>, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let talk = |error| ClientError::Talk(server.to_owned(), error);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(talk)?;
    // Without this the connection would stand still; it ends with the sender.
    let connection = tokio::spawn(connection);
    if let Some(host) = parts.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok()) {
        parts.headers.insert(HOST, host);
    }
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    parts.uri = Uri::try_from(path).map_err(|_| ClientError::Url(server.to_owned()))?;
    let answer = sender.send_request(Request::from_parts(parts, body)).await.map_err(talk)?;
    let (head, body): (response::Parts, _) = answer.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|error| ClientError::Body(server.to_owned(), error))?.to_bytes();
    connection.abort();
    Ok(Response::from_parts(head, body))
}

/// RFC 9110, section 10.2.3: seconds, or a date.
fn retry_after(value: &HeaderValue, now: SystemTime) -> Option<SystemTime> {
    let text = value.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => now.checked_add(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn when_to_come_again_is_seconds_or_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000);
        let at = |text: &'static str| retry_after(&HeaderValue::from_static(text), now);
        assert_eq!(at("120"), Some(UNIX_EPOCH + Duration::from_secs(1_120)));
        assert_eq!(at("Thu, 01 Jan 1970 00:33:20 GMT"), Some(UNIX_EPOCH + Duration::from_secs(2_000)));
        assert_eq!(at("soon"), None);
        assert_eq!(at("18446744073709551615"), None);
    }
}
