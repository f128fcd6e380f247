//! What is answered on the port for plain HTTP, where nothing else is served: challenges of certificate authorities, and where to go.

use super::{Body, Refused, head};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::{Method, Response, StatusCode, Uri};
use std::path::Path;

const CHALLENGES: &str = "/.well-known/acme-challenge/";
/// Tokens are shorter, and so are answers.
const TOKEN_BYTES_MAX: usize = 255;
const ANSWER_BYTES_MAX: u64 = 4096;

/// The answer to a challenge (RFC 8555, section 8.3), if the request is for one that is known.
pub(super) fn challenge(folder: &Path, method: &Method, uri: &Uri) -> Option<Response<Body>> {
    let token = uri.path().strip_prefix(CHALLENGES)?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if *method != Method::GET && *method != Method::HEAD
        || token.is_empty()
        || token.len() > TOKEN_BYTES_MAX
        || !token.bytes().all(is_token)
    {
        return None;
    }
    let path = folder.join("http-01").join(token);
    // Small, and read a few times in months: not worth another thread.
    let size = std::fs::symlink_metadata(&path).ok().filter(|it| it.is_file())?.len();
    if size > ANSWER_BYTES_MAX {
        return None;
    }
    let answer = std::fs::read(&path).ok()?;
    let mut response = Response::new(Body::default());
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(answer.len()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    *response.body_mut() = Body::full(answer.into());
    Some(response)
}

/// The same over HTTPS; method and body stay what they are (308).
pub(super) fn redirect(domain: &str, https_port: u16, uri: &Uri) -> Result<Response<Body>, Refused> {
    // Nobody is sent away from a challenge, which might end at a certificate that isn't there yet.
    if uri.path().starts_with(CHALLENGES) {
        return Err(StatusCode::NOT_FOUND.into());
    }
    let port = if https_port == 443 { String::new() } else { format!(":{https_port}") };
    let (slash, target) = head::path(uri);
    let location =
        HeaderValue::try_from(format!("https://{domain}{port}{slash}{target}")).map_err(|_| StatusCode::BAD_REQUEST)?;
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    response.headers_mut().insert(LOCATION, location);
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    Ok(response)
}
