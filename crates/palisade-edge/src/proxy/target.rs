//! What a request is for: its domain and its path, in the one form in which routes are looked for.
//!
//! A server behind the edge may undo escapes, join slashes or walk up at `..`; whatever it does, it must not get to a path that
//! another route stands for. So routes are looked for by what the path may become, and where that is open the request is refused.

use hyper::header::{self, HeaderMap};
use hyper::{Method, StatusCode, Uri};
use std::borrow::Cow;

/// The domain that a request names: in lower case, without port and final dot. Empty if it names none, which only HTTP/1.0 may.
///
/// # Errors
/// It names several, or something that is no domain.
pub(super) fn domain<'a>(uri: &'a Uri, headers: &'a HeaderMap, may_lack: bool) -> Result<Cow<'a, str>, StatusCode> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().map(|host| host.to_str().map_err(|_| StatusCode::BAD_REQUEST)).transpose()?;
    let text = match (uri.authority(), host) {
        _ if hosts.next().is_some() => return Err(StatusCode::BAD_REQUEST),
        (Some(authority), None) => authority.as_str(),
        (None, Some(host)) => host,
        (Some(authority), Some(host)) if authority.as_str().eq_ignore_ascii_case(host) => host,
        (None, None) if may_lack => return Ok(Cow::Borrowed("")),
        _ => return Err(StatusCode::BAD_REQUEST),
    };
    let name = match text.as_bytes().first() {
        // The brackets of an IPv6 address stay.
        Some(b'[') => text.find(']').map(|end| text.split_at(end + 1)),
        _ => Some(text.split_at(text.find(':').unwrap_or(text.len()))),
    };
    let (name, port) = name.ok_or(StatusCode::BAD_REQUEST)?;
    let is_port = port.is_empty()
        || port.len() <= 6 && port[1..].bytes().all(|byte| byte.is_ascii_digit()) && port.starts_with(':');
    let is_name = match name.strip_prefix('[') {
        Some(address) => address.trim_end_matches(']').parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if !is_port || !is_name || name.is_empty() || name.len() > 253 {
        return Err(StatusCode::BAD_REQUEST);
    }
    Ok(match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(name.to_ascii_lowercase()),
        false => Cow::Borrowed(name),
    })
}

/// The path by which routes are looked for: escapes undone, slashes joined, parameters of segments (`;…`) left out.
///
/// # Errors
/// It has segments `.` or `..` in any spelling, escapes that are none, bytes that no path has, or a parameter with a slash that isn't
/// written as one: servers that leave parameters out before they undo escapes would see another path.
pub(super) fn path<'a>(method: &Method, uri: &'a Uri) -> Result<Cow<'a, str>, StatusCode> {
    if *method == Method::CONNECT || *method == Method::TRACE {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    let path = uri.path();
    if !path.starts_with('/') || uri.query().is_some_and(|query| !query.bytes().all(|byte| byte > 0x20 && byte < 0x7f))
    {
        return Err(StatusCode::BAD_REQUEST);
    }
    let mut before = 0;
    let plain = path.bytes().all(|byte| {
        let decoded_or_cut = matches!(byte, b'%' | b';' | b'\\' | 0..=0x20 | 0x7f..);
        let empty_or_dotted = before == b'/' && matches!(byte, b'/' | b'.');
        let fine = !decoded_or_cut && !empty_or_dotted;
        before = byte;
        fine
    });
    if plain {
        Ok(Cow::Borrowed(path))
    } else {
        settled(path.as_bytes()).map(Cow::Owned).ok_or(StatusCode::BAD_REQUEST)
    }
}

fn settled(path: &[u8]) -> Option<String> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.iter();
    let mut in_parameter = false;
    while let Some(&written) = rest.next() {
        let byte = match written {
            b'%' => {
                let mut digit = || rest.next().and_then(|&digit| char::from(digit).to_digit(16));
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high << 4 | low).ok().filter(|&byte| byte != 0)?
            }
            0..=0x20 | 0x7f.. => return None,
            byte => byte,
        };
        match byte {
            b'/' | b'\\' if in_parameter && written != b'/' => return None,
            b'/' | b'\\' => in_parameter = false,
            b';' => in_parameter = true,
            _ => {}
        }
        decoded.push(if byte == b'\\' { b'/' } else { byte });
    }
    let mut path = String::with_capacity(decoded.len() + 1);
    let mut segments = decoded.split(|&byte| byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let segment = segment.split(|&byte| byte == b';').next().unwrap_or_default();
        match segment {
            b"." | b".." => return None,
            // A final slash is one.
            b"" if segments.peek().is_none() => path.push('/'),
            b"" => {}
            segment => {
                path.push('/');
                path.push_str(&String::from_utf8_lossy(segment));
            }
        }
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_domain_is_named_once_and_well() {
        for (uri, hosts, expected) in [
            ("/", &["shop.example"][..], Some("shop.example")),
            ("/", &["Shop.Example.:8443"], Some("shop.example")),
            ("/", &["[2001:db8::1]:80"], Some("[2001:db8::1]")),
            ("http://a.example/", &["A.example"], Some("a.example")),
            ("http://a.example/", &[], Some("a.example")),
            ("http://a.example/", &["b.example"], None),
            ("/", &[], None),
            ("/", &["a", "a"], None),
            ("/", &[""], None),
            ("/", &["."], None),
            ("/", &["a@b"], None),
            ("/", &["a b"], None),
            ("/", &["a:b"], None),
            ("/", &["a/b"], None),
            ("/", &["a,b"], None),
            ("/", &["[::1"], None),
        ] {
            let uri: Uri = uri.parse().expect("a URI");
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, host.parse().expect("a value"));
            }
            assert_eq!(domain(&uri, &headers, false).ok().as_deref(), expected, "{uri} {hosts:?}");
        }
    }

    #[test]
    fn a_path_means_what_a_server_may_make_of_it() {
        for (written, expected) in [
            ("/", Some("/")),
            ("/a/b", Some("/a/b")),
            ("/a.b/..c/.d", Some("/a.b/..c/.d")),
            ("/%61dmin", Some("/admin")),
            ("/%2561dmin", Some("/%61dmin")),
            ("//admin", Some("/admin")),
            ("/%2fadmin", Some("/admin")),
            ("/x%5cadmin/", Some("/x/admin/")),
            ("/admin;a=b/c", Some("/admin/c")),
            ("/a%20b", Some("/a b")),
            ("/..", None),
            ("/a/../admin", None),
            ("/a/./b", None),
            ("/a/%2e%2e/admin", None),
            ("/a/.%2E/admin", None),
            ("/a%2f..%2fadmin", None),
            ("/a/..%5cadmin", None),
            ("/a/..;/admin", None),
            ("/a/..;x=y/admin", None),
            ("/a;b;c/d;e", Some("/a/d")),
            ("/a;b%2fc", None),
            ("/;%2Fa/admin", None),
            ("/a%3bb%5cc", None),
            ("/a;b\\c", None),
            ("/a%00", None),
            ("/a%", None),
            ("/a%zz", None),
            ("/a%2", None),
        ] {
            let uri: Uri = written.parse().expect("a URI");
            assert_eq!(path(&Method::GET, &uri).ok().as_deref(), expected, "{written}");
        }
    }
}
