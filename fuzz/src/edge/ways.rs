//! Who asks, when proxies stand before the edge: nobody gets to be somebody else by what they write.

use super::address::Address;
use super::forwarded::{Way, for_chain, way, write};
use hyper::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use palisade_core::network::Network;
use std::net::IpAddr;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// As many proxies in a row as are looked at.
const HOPS_MAX: usize = 32;

/// Checks lines of a head (`name: value`), sent by a proxy and by somebody else.
pub fn check(input: &[u8]) {
    let trusted: Vec<Network> = ["10.0.0.0/8", "2001:db8:f::/48"].map(|text| text.parse().expect("a network")).into();
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let headers = fields(input);
    for peer in ["203.0.113.9", "2001:db8::9", "::ffff:203.0.113.9"] {
        let peer: IpAddr = peer.parse().expect("an address");
        let nobody = Way { client: peer.to_canonical(), proxies: Vec::new(), scheme: None, host: None };
        assert_eq!(way(&trusted, peer, &headers), nobody, "a stranger is believed");
    }
    for peer in ["10.0.0.1", "2001:db8:f::1", "::ffff:10.0.0.1"] {
        let peer: IpAddr = peer.parse().expect("an address");
        let found = way(&trusted, peer, &headers);
        assert!(found.proxies.iter().all(|proxy| is_trusted(*proxy)), "{found:?}");
        assert!(found.proxies.len() <= HOPS_MAX, "{found:?}");
        assert_eq!(found.proxies.last().copied().unwrap_or(found.client), peer.to_canonical(), "{found:?}");
        assert_eq!(found.client, found.client.to_canonical());
        if !is_trusted(found.client) {
            forged(&trusted, peer, &headers, &found);
        }
        if found.proxies.len() < HOPS_MAX {
            passed_on(&trusted, &found);
        }
    }
}

fn fields(input: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(200) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

/// What a client writes itself stands to the left of what the proxies have written, and changes nothing.
fn forged(trusted: &[Network], peer: IpAddr, headers: &HeaderMap, found: &Way) {
    for (name, lie) in [(FOR, "6.6.6.6"), (FORWARDED, "for=6.6.6.6;proto=https")] {
        // A field that isn't there is written by nobody but the proxies.
        if !headers.contains_key(&name) {
            continue;
        }
        let mut lied = HeaderMap::new();
        lied.append(&name, HeaderValue::from_static(lie));
        for (known, value) in headers {
            lied.append(known, value.clone());
        }
        let again = way(trusted, peer, &lied);
        assert_eq!((again.client, &again.proxies), (found.client, &found.proxies), "{name}");
    }
}

/// Another edge that trusts this one and its proxies finds the same.
fn passed_on(trusted: &[Network], found: &Way) {
    let edge: IpAddr = "10.255.0.1".parse().expect("an address");
    let scheme = found.scheme.unwrap_or("http");
    let mut forwarded = Vec::new();
    write(&mut forwarded, &Address::from(found.client), &found.proxies, scheme, "shop.example");
    for (name, value) in [(FOR, for_chain(found.client, &found.proxies).into_bytes()), (FORWARDED, forwarded)] {
        let headers = HeaderMap::from_iter([(name.clone(), HeaderValue::from_bytes(&value).expect("plain text"))]);
        let next = way(trusted, edge, &headers);
        let proxies = [&found.proxies[..], &[edge]].concat();
        assert_eq!((next.client, next.proxies), (found.client, proxies), "{name}");
    }
}
