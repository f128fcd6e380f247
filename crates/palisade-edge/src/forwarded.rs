//! Who asks, when trusted proxies stand before the edge: what they say of a request's way is believed as far as they can know it.

use super::address::Address;
use hyper::header::{FORWARDED, HeaderMap};
use palisade_core::network::Network;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Proxies in a row at most; whoever stands behind more isn't known.
const HOPS_MAX: usize = 32;

/// A request's way to the edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Whoever asked the first proxy that is trusted.
    pub client: IpAddr,
    /// The proxies after it, in the request's direction. Empty if the client is connected with the edge itself.
    pub proxies: Vec<IpAddr>,
    /// What the nearest proxy says that the client spoke with it: `http` or `https`.
    pub scheme: Option<&'static str>,
    /// What the nearest proxy says that the client named as the host.
    pub host: Option<String>,
}

/// The way of a request that this peer has sent. Its fields are believed only if the peer is trusted, and of each the part that
/// trusted proxies have written: read from the right, up to the first address that isn't one of theirs.
pub fn way(trusted: &[Network], peer: IpAddr, headers: &HeaderMap) -> Way {
    let peer = peer.to_canonical();
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut way = Way { client: peer, proxies: Vec::new(), scheme: None, host: None };
    if trusted.is_empty() || !is_trusted(peer) {
        return way;
    }
    let mut hops: Vec<Option<IpAddr>> = list(headers, "x-forwarded-for").take(HOPS_MAX).map(address).collect();
    let forwarded: Vec<&str> = list(headers, FORWARDED.as_str()).take(HOPS_MAX).collect();
    if hops.is_empty() && !headers.contains_key(FORWARDED) && !headers.contains_key("x-forwarded-for") {
        // A proxy that writes no list says who has asked it.
        hops = list(headers, "x-real-ip").take(1).map(address).collect();
    } else if hops.is_empty() {
        hops = forwarded.iter().map(|element| parameter(element, "for").and_then(address)).collect();
    }
    for hop in hops {
        // Who isn't known by an address is somewhere behind the last who is.
        let Some(hop) = hop.filter(|_| is_trusted(way.client)) else { break };
        way.proxies.push(std::mem::replace(&mut way.client, hop));
    }
    way.proxies.reverse();
    let scheme = list(headers, "x-forwarded-proto").next();
    let scheme = scheme.or_else(|| forwarded.first().and_then(|element| parameter(element, "proto")));
    way.scheme = scheme.and_then(|it| ["http", "https"].into_iter().find(|known| it.eq_ignore_ascii_case(known)));
    let host = list(headers, "x-forwarded-host").next();
    let host = host.or_else(|| forwarded.first().and_then(|element| parameter(element, "host")));
    way.host = host.filter(|host| is_host(host)).map(str::to_owned);
    way
}

/// The elements of a list field, from the last to the first. What isn't text ends it.
fn list<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().rev();
    let texts = values.map_while(|value| value.to_str().ok());
    texts.flat_map(|text| text.rsplit(',').map(str::trim)).filter(|element| !element.is_empty())
}

/// A parameter of one element of `Forwarded`.
fn parameter<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let mut found = pairs.filter(|(key, _)| key.trim().eq_ignore_ascii_case(name));
    Some(found.next()?.1.trim().trim_matches('"'))
}

/// A name or an address, perhaps with a port: nothing that could be read otherwise in a field that has it as a part.
fn is_host(text: &str) -> bool {
    const BYTES_MAX: usize = 261;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    !text.is_empty() && text.len() <= BYTES_MAX && text.bytes().all(is_plain)
}

/// An address, perhaps with a port: `198.51.100.7:4711`, `[2001:db8::1]:4711`, `2001:db8::1`.
fn address(text: &str) -> Option<IpAddr> {
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let plain = text.parse::<IpAddr>().ok();
    let found = plain.or_else(bracketed).or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()));
    Some(found?.to_canonical())
}

/// `X-Forwarded-For` as upstreams get it.
pub fn for_chain(client: IpAddr, proxies: &[IpAddr]) -> String {
    let all = std::iter::once(&client).chain(proxies).map(IpAddr::to_string);
    all.collect::<Vec<_>>().join(", ")
}

/// `Forwarded` as upstreams get it (RFC 7239): addresses of IPv6 stand in brackets and quotes.
pub fn write(text: &mut Vec<u8>, client: &Address, proxies: &[IpAddr], scheme: &str, domain: &str) {
    node(text, client);
    let is_token = domain.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    let quote = if is_token { "" } else { "\"" };
    for part in [";proto=", scheme, ";host=", quote, domain, quote] {
        text.extend_from_slice(part.as_bytes());
    }
    for proxy in proxies {
        text.extend_from_slice(b", ");
        node(text, &Address::from(*proxy));
    }
}

fn node(text: &mut Vec<u8>, address: &Address) {
    let (before, behind) = if address.ip().is_ipv4() { ("for=", "") } else { ("for=\"[", "]\"") };
    for part in [before, address.as_str(), behind] {
        text.extend_from_slice(part.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderName, HeaderValue};

    fn asked(peer: &str, fields: &[(&str, &str)]) -> (String, Option<&'static str>) {
        let way = way_of(peer, fields);
        (for_chain(way.client, &way.proxies), way.scheme)
    }

    fn way_of(peer: &str, fields: &[(&str, &str)]) -> Way {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
        }
        let trusted: Vec<Network> =
            ["10.0.0.0/8", "2001:db8:f::/48"].iter().map(|network| network.parse().unwrap()).collect();
        way(&trusted, peer.parse().unwrap(), &headers)
    }

    #[test]
    fn the_host_that_the_nearest_trusted_proxy_was_asked_for_is_believed() {
        let xfh = "x-forwarded-host";
        for (peer, fields, expected) in [
            ("10.0.0.1", &[(xfh, "public.example:8443")][..], Some("public.example:8443")),
            ("198.51.100.7", &[(xfh, "public.example")], None),
            // What the client has put before is worth nothing.
            ("10.0.0.1", &[(xfh, "lie.example"), (xfh, "inner.example, public.example")], Some("public.example")),
            (
                "10.0.0.1",
                &[("forwarded", "host=lie.example, for=1.1.1.1;host=\"public.example\"")],
                Some("public.example"),
            ),
            ("10.0.0.1", &[("forwarded", "host=other.example"), (xfh, "public.example")], Some("public.example")),
            ("10.0.0.1", &[(xfh, "a\";for=1.1.1.1")], None),
            ("10.0.0.1", &[(xfh, "a b")], None),
        ] {
            assert_eq!(way_of(peer, fields).host.as_deref(), expected, "{peer} {fields:?}");
        }
    }

    #[test]
    fn only_trusted_proxies_are_believed_and_only_what_they_know() {
        let xff = "x-forwarded-for";
        for (peer, fields, expected) in [
            ("198.51.100.7", &[(xff, "203.0.113.1"), ("x-forwarded-proto", "https")][..], ("198.51.100.7", None)),
            ("10.0.0.1", &[], ("10.0.0.1", None)),
            ("::ffff:10.0.0.1", &[(xff, "203.0.113.1")], ("203.0.113.1, 10.0.0.1", None)),
            // What the client has put before is worth nothing.
            ("10.0.0.1", &[(xff, "1.1.1.1, 203.0.113.1")], ("203.0.113.1, 10.0.0.1", None)),
            (
                "10.0.0.1",
                &[(xff, "1.1.1.1"), (xff, "203.0.113.1, 10.0.0.2")],
                ("203.0.113.1, 10.0.0.2, 10.0.0.1", None),
            ),
            ("10.0.0.1", &[(xff, "10.0.0.3")], ("10.0.0.3, 10.0.0.1", None)),
            ("10.0.0.1", &[(xff, "203.0.113.1, unknown")], ("10.0.0.1", None)),
            ("10.0.0.1", &[(xff, "203.0.113.1:4711"), ("x-forwarded-proto", "ftp")], ("203.0.113.1, 10.0.0.1", None)),
            ("10.0.0.1", &[(xff, "[2001:db8::1]:4711")], ("2001:db8::1, 10.0.0.1", None)),
            (
                "2001:db8:f::1",
                &[(xff, "2001:db8::1"), ("x-forwarded-proto", "HTTPS")],
                ("2001:db8::1, 2001:db8:f::1", Some("https")),
            ),
            (
                "10.0.0.1",
                &[("forwarded", "for=1.1.1.1, for=\"[2001:db8::7]:80\";proto=https;by=_x, For=10.0.0.9;proto=http")],
                ("2001:db8::7, 10.0.0.9, 10.0.0.1", Some("http")),
            ),
            ("10.0.0.1", &[("forwarded", "for=_hidden;proto=https")], ("10.0.0.1", Some("https"))),
            ("10.0.0.1", &[("x-real-ip", "203.0.113.1")], ("203.0.113.1, 10.0.0.1", None)),
            ("10.0.0.1", &[("x-real-ip", "nobody")], ("10.0.0.1", None)),
            ("198.51.100.7", &[("x-real-ip", "203.0.113.1")], ("198.51.100.7", None)),
            // Who writes a list says everything in it; the other field may be the client's.
            ("10.0.0.1", &[("x-real-ip", "1.1.1.1"), (xff, "203.0.113.1")], ("203.0.113.1, 10.0.0.1", None)),
            ("10.0.0.1", &[("x-real-ip", "1.1.1.1"), (xff, "unknown")], ("10.0.0.1", None)),
            (
                "10.0.0.1",
                &[("x-real-ip", "1.1.1.1"), ("forwarded", "for=203.0.113.1")],
                ("203.0.113.1, 10.0.0.1", None),
            ),
            ("10.0.0.1", &[("x-real-ip", "1.1.1.1"), ("forwarded", "proto=http")], ("10.0.0.1", Some("http"))),
        ] {
            assert_eq!(asked(peer, fields), (expected.0.to_owned(), expected.1), "{peer} {fields:?}");
        }
        let long = vec!["10.0.0.2"; 5_000].join(",");
        assert_eq!(asked("10.0.0.1", &[(xff, &long)]).0.split(',').count(), HOPS_MAX + 1);
    }

    #[test]
    fn upstreams_get_what_the_standard_says() {
        let forwarded = |client: IpAddr, proxies: &[IpAddr], scheme, domain| {
            let mut text = Vec::new();
            write(&mut text, &Address::from(client), proxies, scheme, domain);
            String::from_utf8(text).unwrap()
        };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let proxies = [ip("2001:db8:f::1"), ip("10.0.0.1")];
        assert_eq!(
            forwarded(ip("198.51.100.7"), &proxies, "https", "shop.example"),
            "for=198.51.100.7;proto=https;host=shop.example, for=\"[2001:db8:f::1]\", for=10.0.0.1"
        );
        assert_eq!(
            forwarded(ip("2001:db8::1"), &[], "http", "[2001:db8::2]"),
            "for=\"[2001:db8::1]\";proto=http;host=\"[2001:db8::2]\""
        );
    }
}
