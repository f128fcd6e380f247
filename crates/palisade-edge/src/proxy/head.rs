//! Heads of requests and answers: what is passed on, what is dropped, and what is added.

use super::http1::Framing;
use crate::address::Address;
use crate::forwarded;
use hyper::Uri;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use std::io::Write;
use std::net::IpAddr;

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// What upstreams are told of a request's way so far.
#[derive(Debug)]
pub(super) struct Origin<'a> {
    pub(super) address: &'a Address,
    /// Trusted proxies between it and the edge, in the request's direction.
    pub(super) proxies: &'a [IpAddr],
    pub(super) scheme: &'static str,
    /// The domain that the client named.
    pub(super) domain: &'a str,
    /// The host that the client named to the nearest trusted proxy, if that says so. It is told, and decides nothing.
    pub(super) named: Option<&'a str>,
}

/// Fields that concern one connection only, and those that the edge writes itself. Services that get fields as variables
/// (`HTTP_X_REAL_IP`) can't tell `_` from `-`, so neither makes a difference here.
fn is_ours(name: &HeaderName) -> bool {
    is_known(name)
        || name.as_str().contains('_')
            && HeaderName::try_from(name.as_str().replace('_', "-")).is_ok_and(|name| is_known(&name))
}

fn is_known(name: &HeaderName) -> bool {
    match *name {
        header::CONNECTION
        | header::HOST
        | header::CONTENT_LENGTH
        | header::TRANSFER_ENCODING
        | header::UPGRADE
        | header::TE
        | header::TRAILER
        | header::EXPECT
        | header::PROXY_AUTHORIZATION
        | header::FORWARDED
        | header::COOKIE => true,
        _ => match name.as_str() {
            "x-real-ip" | "keep-alive" | "http2-settings" | "proxy-connection" => true,
            name => name.starts_with("x-forwarded-"),
        },
    }
}

/// The field is named by `Connection`, so it concerns this connection only.
pub(super) fn named_by_connection(headers: &HeaderMap, name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    connection_tokens(headers).any(|token| token.eq_ignore_ascii_case(name))
}

fn connection_tokens(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(header::CONNECTION).iter();
    values.flat_map(|value| value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii))
}

/// The protocol that the client wants to go on with, if that is one that only concerns it and the upstream. HTTP/2 isn't: whoever
/// speaks it behind the edge's back could ask for anything.
pub(super) fn wanted_protocol(parts: &Parts) -> Option<&HeaderValue> {
    let mut values = parts.headers.get_all(header::UPGRADE).iter();
    let value = values.next()?;
    let text = value.to_str().ok()?;
    let lower = text.to_ascii_lowercase();
    let wanted = parts.version == hyper::Version::HTTP_11
        && values.next().is_none()
        && connection_tokens(&parts.headers).any(|token| token.eq_ignore_ascii_case(b"upgrade"))
        && !lower
            .split(',')
            .any(|it| it.trim().starts_with("h2") || it.trim().starts_with("http") || it.trim().starts_with("tls"));
    wanted.then_some(value)
}

/// Writes the head of a request to an upstream that speaks HTTP/1.1.
pub(super) fn write_request(
    out: &mut Vec<u8>,
    parts: &Parts,
    origin: &Origin<'_>,
    framing: Framing,
    protocol: Option<&HeaderValue>,
) {
    out.clear();
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    let (slash, path) = path(&parts.uri);
    out.extend_from_slice(slash.as_bytes());
    out.extend_from_slice(path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let host = host(parts, origin);
    field(out, "host", host.as_bytes());
    let has_connection = parts.headers.contains_key(header::CONNECTION);
    for (name, value) in &parts.headers {
        if is_ours(name) || has_connection && named_by_connection(&parts.headers, name) {
            continue;
        }
        field(out, name.as_str(), value.as_bytes());
    }
    let mut cookies = parts.headers.get_all(header::COOKIE).iter();
    if let Some(cookie) = cookies.next() {
        // HTTP/2 cuts them into pieces, which only it may (RFC 9113, section 8.2.3).
        out.extend_from_slice(b"cookie: ");
        out.extend_from_slice(cookie.as_bytes());
        for cookie in cookies {
            out.extend_from_slice(b"; ");
            out.extend_from_slice(cookie.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }
    match framing {
        Framing::None => {}
        // Writing to a vector can't fail.
        Framing::Length(length) => drop(write!(out, "content-length: {length}\r\n")),
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    if let Some(protocol) = protocol {
        out.extend_from_slice(b"connection: upgrade\r\n");
        field(out, "upgrade", protocol.as_bytes());
    }
    let address = origin.address.as_str().as_bytes();
    field(out, "x-real-ip", address);
    out.extend_from_slice(b"x-forwarded-for: ");
    out.extend_from_slice(address);
    for proxy in origin.proxies {
        let _ = write!(out, ", {proxy}");
    }
    out.extend_from_slice(b"\r\n");
    field(out, "x-forwarded-proto", origin.scheme.as_bytes());
    let named = origin.named.unwrap_or(host);
    field(out, "x-forwarded-host", named.as_bytes());
    out.extend_from_slice(b"forwarded: ");
    forwarded::write(out, origin.address, origin.proxies, origin.scheme, named);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(b"\r\n");
}

/// The URI of a request to an upstream that speaks HTTP/2.
pub(super) fn absolute(parts: &Parts, origin: &Origin<'_>) -> Option<Uri> {
    let builder = Uri::builder().scheme("http").authority(host(parts, origin));
    let builder = match path(&parts.uri) {
        ("", path) => builder.path_and_query(path),
        (slash, path) => builder.path_and_query([slash, path].concat()),
    };
    builder.build().ok()
}

/// The fields of a request to an upstream that speaks HTTP/2.
pub(super) fn for_http2(parts: &Parts, origin: &Origin<'_>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(parts.headers.len() + 5);
    for (name, value) in &parts.headers {
        let is_cookie = *name == header::COOKIE;
        if (is_cookie || !is_ours(name)) && !named_by_connection(&parts.headers, name) {
            headers.append(name, value.clone());
        }
    }
    if let Some(length) = parts.headers.get(header::CONTENT_LENGTH) {
        headers.insert(header::CONTENT_LENGTH, length.clone());
    }
    // gRPC asks for it, and it is the one value that may be passed on (RFC 9113, section 8.2.2).
    if parts.headers.get_all(header::TE).iter().any(|value| value.as_bytes().eq_ignore_ascii_case(b"trailers")) {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let (address, named) = (origin.address.as_str(), origin.named.unwrap_or_else(|| host(parts, origin)));
    let chain = forwarded::for_chain(origin.address.ip(), origin.proxies);
    let added = [
        ("x-real-ip", address),
        ("x-forwarded-for", chain.as_str()),
        ("x-forwarded-proto", origin.scheme),
        ("x-forwarded-host", named),
    ];
    for (name, value) in added {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    let mut value = Vec::new();
    forwarded::write(&mut value, origin.address, origin.proxies, origin.scheme, named);
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(header::FORWARDED, value);
    }
    headers
}

/// The field that an answer's `Connection` makes one of this connection only, if it doesn't say something else.
fn field_of_connection(token: &[u8]) -> Option<HeaderName> {
    const OPTIONS: [&[u8]; 4] = [b"", b"close", b"keep-alive", b"upgrade"];
    if OPTIONS.iter().any(|option| token.eq_ignore_ascii_case(option)) {
        return None;
    }
    HeaderName::from_bytes(token).ok().filter(|name| *name != header::CONTENT_LENGTH)
}

/// Takes out what an answer says of the connection that it came on.
pub(super) fn drop_connection_fields(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = connection_tokens(headers).filter_map(field_of_connection).collect();
    for name in named.iter().chain([&header::CONNECTION, &header::TRANSFER_ENCODING, &KEEP_ALIVE, &PROXY_CONNECTION]) {
        headers.remove(name);
    }
}

/// The target's path and query, and the slash that an absolute one may lack (`http://a?b=c`).
pub(super) fn path(uri: &Uri) -> (&'static str, &str) {
    let path = uri.path_and_query().map_or("/", |it| it.as_str());
    (if path.starts_with('?') { "/" } else { "" }, path)
}

/// The host as the client named it, with its port.
fn host<'a>(parts: &'a Parts, origin: &'a Origin<'_>) -> &'a str {
    match parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()) {
        Some(host) => host,
        None => parts.uri.authority().map_or(origin.domain, |it| it.as_str()),
    }
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
