//! Heads of requests and answers: what is passed on, what is dropped, and what is added.

use super::http1::Framing;
use crate::server::Client;
use hyper::header::{self, HeaderMap, HeaderName};
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};
use std::io::Write;

/// The domain that a request names: in lower case, without port and final dot.
///
/// # Errors
/// With the answer, if it names none or several.
pub(super) fn host<B>(request: &Request<B>) -> Result<String, StatusCode> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let named = hosts.next();
    if hosts.next().is_some() {
        return Err(StatusCode::BAD_REQUEST);
    }
    let text = match (request.uri().authority(), named) {
        (Some(authority), None) => authority.as_str(),
        (None, Some(host)) => host.to_str().map_err(|_| StatusCode::BAD_REQUEST)?,
        (Some(authority), Some(host)) if authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            authority.as_str()
        }
        _ => return Err(StatusCode::BAD_REQUEST),
    };
    let name = match text.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => text,
    };
    Ok(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase())
}

/// Fields that concern one connection only, and those that the edge writes itself.
fn is_ours(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::HOST
        || *name == header::CONTENT_LENGTH
        || *name == header::TRANSFER_ENCODING
        || *name == header::UPGRADE
        || *name == header::TE
        || *name == header::TRAILER
        || *name == header::EXPECT
        || *name == header::PROXY_AUTHORIZATION
        || *name == header::FORWARDED
        || *name == "keep-alive"
        || *name == "proxy-connection"
        || name.as_str().starts_with("x-forwarded-")
        || *name == "x-real-ip"
}

/// The field is named by `Connection`, so it concerns this connection only.
pub(super) fn named_by_connection(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|value| {
        value
            .as_bytes()
            .split(|&byte| byte == b',')
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
    })
}

/// Writes the head of a request to an upstream that speaks HTTP/1.1.
pub(super) fn write_request(out: &mut Vec<u8>, parts: &Parts, host: &str, client: &Client, framing: Framing) {
    out.clear();
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(parts.uri.path_and_query().map_or("/", |it| it.as_str()).as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    match parts.headers.get(header::HOST) {
        Some(host) => out.extend_from_slice(host.as_bytes()),
        None => out.extend_from_slice(parts.uri.authority().map_or(host, |it| it.as_str()).as_bytes()),
    }
    out.extend_from_slice(b"\r\n");
    let has_connection = parts.headers.contains_key(header::CONNECTION);
    for (name, value) in &parts.headers {
        if is_ours(name) || has_connection && named_by_connection(&parts.headers, name) {
            continue;
        }
        field(out, name.as_str(), value.as_bytes());
    }
    match framing {
        Framing::None => {}
        // Writing to a vector can't fail.
        Framing::Length(length) => drop(write!(out, "content-length: {length}\r\n")),
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    let address = client.peer.ip().to_canonical();
    let _ = write!(out, "x-real-ip: {address}\r\nx-forwarded-for: {address}\r\n");
    field(out, "x-forwarded-proto", client.scheme.as_str().as_bytes());
    field(out, "x-forwarded-host", host.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
