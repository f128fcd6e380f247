//! What a request is for: a route is found by what any server behind it may make of the path.

use super::target;
use hyper::header::{HOST, HeaderMap, HeaderValue};
use hyper::{Method, Uri};

/// Paths that a route of their own may guard.
const GUARDED: &[&str] = &["/a", "/a/b", "/admin", "/.well-known"];

/// Checks a target, and the hosts that stand in the lines below it.
pub fn check(input: &[u8]) {
    let mut lines = input.split(|byte| *byte == b'\n');
    let Ok(uri) = Uri::try_from(lines.next().unwrap_or_default()) else { return };
    if let Ok(path) = target::path(&Method::GET, &uri) {
        settled(&path);
        for guarded in GUARDED.iter().filter(|guarded| !leads(guarded, &path)) {
            for how in 0..32 {
                let seen = as_a_server_may(uri.path().as_bytes(), how);
                assert!(!leads(guarded, &seen), "{uri} is {path}, and {seen} for a server that does {how:#b}");
            }
        }
    }
    let mut headers = HeaderMap::new();
    for host in lines.take(3) {
        if let Ok(host) = HeaderValue::from_bytes(host.trim_ascii()) {
            headers.append(HOST, host);
        }
    }
    for may_lack in [false, true] {
        if let Ok(domain) = target::domain(&uri, &headers, may_lack) {
            named(&domain, may_lack && headers.is_empty() && uri.authority().is_none());
        }
    }
}

/// What holds of a path by which routes are looked for.
fn settled(path: &str) {
    assert!(path.starts_with('/') && !path.contains("//") && !path.contains(['\0', '\\', ';']), "{path:?}");
    assert!(!path.split('/').any(|segment| segment == "." || segment == ".."), "{path:?}");
    // What has no escapes left means itself.
    if let Ok(uri) = Uri::try_from(path)
        && !path.contains(['%', '?', '#'])
        && path.is_ascii()
    {
        assert_eq!(target::path(&Method::GET, &uri).as_deref(), Ok(path));
    }
}

/// What holds of a domain.
fn named(domain: &str, may_be_empty: bool) {
    assert!(may_be_empty || !domain.is_empty());
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._[]:".contains(&byte);
    assert!(domain.bytes().all(fine) && domain.len() <= 253, "{domain:?}");
    assert!(domain.starts_with('[') || !domain.contains(':'), "{domain:?}");
    if !domain.is_empty() && !domain.ends_with('.') {
        let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_str(domain).expect("plain text"))]);
        assert_eq!(target::domain(&Uri::from_static("/"), &headers, false).as_deref(), Ok(domain));
    }
}

/// A path as a server reads it that undoes escapes, takes a backslash for a slash, leaves out parameters (before or after the rest),
/// or joins slashes, and walks along dots in any case.
fn as_a_server_may(path: &[u8], how: u8) -> String {
    let does = |what: u8| how & (1 << what) != 0;
    let path = if does(4) { without_parameters(path) } else { path.to_vec() };
    let mut bytes = if does(0) { unescaped(&path) } else { path };
    if does(1) {
        bytes.iter_mut().filter(|byte| **byte == b'\\').for_each(|byte| *byte = b'/');
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut segments: Vec<&str> = Vec::new();
    for segment in text.split('/').skip(1) {
        let segment = if does(2) { segment.split(';').next().unwrap_or_default() } else { segment };
        match segment {
            "." => {}
            ".." => drop(segments.pop()),
            "" if does(3) => {}
            segment => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

fn without_parameters(path: &[u8]) -> Vec<u8> {
    let segments = path.split(|byte| *byte == b'/');
    let plain = segments.map(|segment| segment.split(|byte| *byte == b';').next().unwrap_or_default());
    plain.collect::<Vec<_>>().join(&b'/')
}

fn unescaped(path: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut at = 0;
    while at < path.len() {
        let digits = path.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| path[at] == b'%') {
            Some(byte) => {
                bytes.push(byte);
                at += 3;
            }
            None => {
                bytes.push(path[at]);
                at += 1;
            }
        }
    }
    bytes
}

fn leads(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
