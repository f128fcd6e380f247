//! A small HTTP/1.1 client for JSON services on a trusted network: one request a connection, bounded in time and size.
//!
//! No TLS, redirects, proxies or cookies: Ollama needs none of them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// `http://host:port`, without a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    host: String,
    port: u16,
}

impl BaseUrl {
    /// The host may be a name or an address; an IPv6 address without its brackets.
    pub fn new(host: &str, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority())
    }
}

/// Not of the form `http://host[:port][/]`.
#[derive(Debug, thiserror::Error)]
#[error("not an http:// URL without a path")]
pub struct BadUrl;

impl FromStr for BaseUrl {
    type Err = BadUrl;
    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let uri: hyper::Uri = text.parse().map_err(|_| BadUrl)?;
        let plain = uri.scheme_str() == Some("http") && uri.path() == "/" && uri.query().is_none();
        let authority = uri.authority().filter(|authority| plain && !authority.as_str().contains('@')).ok_or(BadUrl)?;
        let port = match (authority.port(), authority.as_str().rsplit_once(':')) {
            (Some(_), _) => authority.port_u16().filter(|port| *port > 0).ok_or(BadUrl)?,
            // "host:" and "host:99999" have a colon but no usable port.
            (None, Some((_, tail))) if !tail.ends_with(']') => return Err(BadUrl),
            (None, _) => 80,
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() { Err(BadUrl) } else { Ok(Self::new(host, port)) }
    }
}

/// What came back.
#[derive(Debug)]
pub struct Response {
    /// Status code.
    pub status: StatusCode,
    /// Whole body.
    pub body: Bytes,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Nobody there.
    #[error("can't connect to {0}")]
    Connect(String, #[source] std::io::Error),
    /// The connection broke, or what came isn't HTTP.
    #[error("no HTTP answer from {0}")]
    Protocol(String, #[source] hyper::Error),
    /// The body broke off or is over the limit.
    #[error("the answer of {0} broke off or is too long")]
    Body(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// Took too long.
    #[error("no answer from {0} within {1:?}")]
    Timeout(String, Duration),
}

/// Longest answer that is accepted: 64 embeddings of 4,096 dimensions as JSON are about 3 MB.
const BODY_BYTES_MAX: usize = 16 << 20;

/// Sends one request and reads the whole answer, everything within `timeout`.
pub async fn request(
    base: &BaseUrl,
    method: Method,
    path: &str,
    json: Option<String>,
    timeout: Duration,
) -> Result<Response, HttpError> {
    let exchange = exchange(base, method, path, json);
    tokio::time::timeout(timeout, exchange).await.map_err(|_| HttpError::Timeout(base.authority(), timeout))?
}

async fn exchange(base: &BaseUrl, method: Method, path: &str, json: Option<String>) -> Result<Response, HttpError> {
    let authority = base.authority();
    let stream = TcpStream::connect((base.host.as_str(), base.port))
        .await
        .map_err(|source| HttpError::Connect(authority.clone(), source))?;
    let protocol = |source| HttpError::Protocol(authority.clone(), source);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(protocol)?;
    // The connection's own errors also reach the request below.
    let driver = tokio::spawn(connection);
    let mut request = Request::new(Full::new(Bytes::from(json.clone().unwrap_or_default())));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap_or_else(|_| hyper::Uri::from_static("/"));
    if let Ok(host) = authority.parse() {
        request.headers_mut().insert(header::HOST, host);
    }
    if json.is_some() {
        request.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    }
    let answer = sender.send_request(request).await.map_err(protocol)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), BODY_BYTES_MAX)
        .collect()
        .await
        .map_err(|source| HttpError::Body(authority.clone(), source))?
        .to_bytes();
    driver.abort();
    Ok(Response { status, body })
}

/// An error and its causes on one line, for logs and for people.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries repeat their source in their own text.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_written() {
        let written = |text: &str| text.parse::<BaseUrl>().map(|url| url.to_string()).ok();
        assert_eq!(written("http://ollama:11434").as_deref(), Some("http://ollama:11434"));
        assert_eq!(written("http://ollama/").as_deref(), Some("http://ollama:80"));
        assert_eq!(written("http://[::1]:5").as_deref(), Some("http://[::1]:5"));
        assert_eq!(written("http://[::1]").as_deref(), Some("http://[::1]:80"));
        for bad in [
            "",
            "ollama:11434",
            "https://ollama",
            "http://u:p@ollama",
            "http://ollama/api",
            "http://o:99999",
            "http://o:0",
        ] {
            assert_eq!(written(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_silent_or_absent_server_is_an_error_in_time() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = BaseUrl::new("127.0.0.1", silent.local_addr().unwrap().port());
        let timeout = Duration::from_millis(100);
        let error = request(&url, Method::GET, "/", None, timeout).await.unwrap_err();
        assert!(matches!(error, HttpError::Timeout(..)), "{error:?}");
        drop(silent);
        let error = request(&url, Method::GET, "/", None, timeout).await.unwrap_err();
        assert!(matches!(error, HttpError::Connect(..)), "{error:?}");
        assert!(chain(&error).contains("refused"), "{}", chain(&error));
    }
}
