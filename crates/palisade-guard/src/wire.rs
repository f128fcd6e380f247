//! A policy as the kernel program reads it: the twin of `bpf/guard.h`.
//!
//! Only layout lives here; what is allowed was decided in `palisade_core::policy`.

use palisade_core::address::ServiceAddress;
use palisade_core::policy::{EGRESS_RULES_MAX, EgressPolicy, Mode, PLACES_MAX, Policy, RESOLVERS_MAX, ServicePolicy};
use palisade_core::stack::Proto;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

/// `struct rule_key`.
pub(crate) const KEY_LEN: usize = 12;
/// `struct rule`.
pub(crate) const RULE_LEN: usize = 40;
/// `NEAR_BACKENDS`: so many fit into the service's own rule.
const NEAR_BACKENDS: usize = 4;

pub(crate) type Key = [u8; KEY_LEN];
pub(crate) type Value = [u8; RULE_LEN];

/// `enum rule_kind`.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Kind {
    Service = 1,
    Peer = 2,
    Bind = 3,
    Backend = 4,
    Localhost = 5,
    HostPort = 6,
    Egress = 7,
    Published = 8,
    Resolver = 9,
    Place = 10,
}

const SERVICE_STRICT: u16 = 1 << 0;
const SERVICE_HOST_MODE: u16 = 1 << 1;
const SERVICE_NARROWED: u16 = 1 << 2;
const SERVICE_EGRESS_ALL: u16 = 1 << 3;
const SERVICE_LEARN: u16 = 1 << 4;
const SERVICE_PUBLISHES: u16 = 1 << 5;
const BIND_PUBLISHED: u16 = 1 << 0;
const LOCALHOST_AMBIGUOUS: u16 = 1 << 0;

/// `struct rule`, before it becomes bytes.
#[derive(Default)]
struct Rule {
    networks: u64,
    addr: [u8; 16],
    count: u32,
    flags: u16,
    port: u16,
    proto: u8,
    prefix: u8,
}

impl Rule {
    fn bytes(&self) -> Value {
        let mut out = [0; RULE_LEN];
        out[0..8].copy_from_slice(&self.networks.to_ne_bytes());
        out[8..24].copy_from_slice(&self.addr);
        out[24..28].copy_from_slice(&self.count.to_ne_bytes());
        out[28..30].copy_from_slice(&self.flags.to_ne_bytes());
        out[30..32].copy_from_slice(&self.port.to_ne_bytes());
        out[32] = self.proto;
        out[33] = self.prefix;
        out
    }
}

fn key(kind: Kind, proto: u8, port: u16, client: Option<ServiceAddress>, server: Option<ServiceAddress>) -> Key {
    let mut out = [0; KEY_LEN];
    out[0] = kind as u8;
    out[1] = proto;
    out[2..4].copy_from_slice(&port.to_ne_bytes());
    if let Some(client) = client {
        out[4..8].copy_from_slice(&client.ip().octets());
    }
    if let Some(server) = server {
        out[8..12].copy_from_slice(&server.ip().octets());
    }
    out
}

pub(crate) fn proto_number(proto: Proto) -> u8 {
    match proto {
        Proto::Tcp => libc::IPPROTO_TCP as u8,
        Proto::Udp => libc::IPPROTO_UDP as u8,
    }
}

/// An address as sixteen bytes, IPv4 mapped.
pub(crate) fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The opposite of [`mapped`].
pub(crate) fn unmapped(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

fn ipv4_word(address: ServiceAddress) -> [u8; 16] {
    let mut out = [0; 16];
    out[..4].copy_from_slice(&address.ip().octets());
    out
}

/// Every entry of the policy map.
pub(crate) fn encode(policy: &Policy) -> BTreeMap<Key, Value> {
    let mut entries = BTreeMap::new();
    for service in &policy.services {
        encode_service(policy.mode, service, &mut entries);
    }
    encode_resolvers(None, &policy.resolvers, &mut entries);
    encode_places(policy, &mut entries);
    entries
}

/// Where published TCP ports are on the host; what is published more precisely is found first.
fn encode_places(policy: &Policy, entries: &mut BTreeMap<Key, Value>) {
    let mut places: BTreeMap<u16, Vec<(u8, Rule)>> = BTreeMap::new();
    for service in &policy.services {
        for bind in &service.binds {
            let Some(at) = bind.published.filter(|_| bind.container.proto == Proto::Tcp) else { continue };
            let (breadth, addr, prefix) = match at.host_ip.map(|ip| ip.to_canonical()) {
                None => (2, [0; 16], 0),
                Some(ip) => (u8::from(ip.is_unspecified()), mapped(ip), if ip.is_ipv4() { 4 } else { 6 }),
            };
            let count = u32::from_ne_bytes(service.address.ip().octets());
            let rule = Rule { addr, count, port: bind.container.port, prefix, ..Rule::default() };
            places.entry(at.host_port).or_default().push((breadth, rule));
        }
    }
    for (port, mut rules) in places {
        rules.sort_by_key(|(breadth, _)| *breadth);
        for (slot, (_, rule)) in rules.iter().take(PLACES_MAX).enumerate() {
            let mut key = key(Kind::Place, proto_number(Proto::Tcp), port, None, None);
            key[8..12].copy_from_slice(&(slot as u32).to_ne_bytes());
            entries.insert(key, rule.bytes());
        }
    }
}

fn encode_resolvers(client: Option<ServiceAddress>, resolvers: &[IpAddr], entries: &mut BTreeMap<Key, Value>) {
    for (slot, resolver) in resolvers.iter().take(RESOLVERS_MAX).enumerate() {
        let rule = Rule { addr: mapped(*resolver), ..Rule::default() };
        entries.insert(key(Kind::Resolver, 0, slot as u16, client, None), rule.bytes());
    }
}

fn encode_service(mode: Mode, service: &ServicePolicy, entries: &mut BTreeMap<Key, Value>) {
    let me = service.address;
    let mut flags = 0;
    let mut set = |flag: u16, on: bool| {
        if on {
            flags |= flag;
        }
    };
    set(SERVICE_STRICT, service.strict);
    set(SERVICE_HOST_MODE, service.host_mode);
    set(SERVICE_NARROWED, service.connect.is_some());
    set(SERVICE_EGRESS_ALL, service.egress == EgressPolicy::All);
    set(SERVICE_LEARN, mode == Mode::Learn);
    set(SERVICE_PUBLISHES, service.binds.iter().any(|bind| bind.published.is_some()));

    let egress: &[_] = match &service.egress {
        EgressPolicy::Only(rules) => &rules[..rules.len().min(EGRESS_RULES_MAX)],
        EgressPolicy::All | EgressPolicy::None => &[],
    };
    for (slot, rule) in egress.iter().enumerate() {
        let ipv4_offset = if rule.network.is_ipv4() { 96 } else { 0 };
        let entry = Rule {
            addr: mapped(rule.network),
            prefix: rule.prefix_len + ipv4_offset,
            port: rule.port.unwrap_or(0),
            proto: rule.proto.map_or(0, proto_number),
            ..Rule::default()
        };
        entries.insert(key(Kind::Egress, 0, slot as u16, Some(me), None), entry.bytes());
    }

    let (near, far) = service.backends.split_at(service.backends.len().min(NEAR_BACKENDS));
    let mut addr = [0; 16];
    for (to, backend) in addr.chunks_exact_mut(4).zip(near) {
        to.copy_from_slice(&backend.ip().octets());
    }
    let entry = Rule {
        networks: service.networks,
        addr,
        count: service.backends.len() as u32,
        flags,
        port: egress.len() as u16,
        ..Rule::default()
    };
    entries.insert(key(Kind::Service, 0, 0, None, Some(me)), entry.bytes());

    for (slot, backend) in (near.len()..).zip(far) {
        let mut addr = [0; 16];
        addr[..4].copy_from_slice(&backend.ip().octets());
        let rule = Rule { addr, ..Rule::default() };
        entries.insert(key(Kind::Backend, 0, slot as u16, None, Some(me)), rule.bytes());
    }
    for bind in &service.binds {
        let proto = proto_number(bind.container.proto);
        let mut rule = Rule::default();
        if let Some(at) = bind.published {
            rule.flags = BIND_PUBLISHED;
            rule.port = at.host_port;
            if let Some(ip) = at.host_ip {
                rule.addr = mapped(ip);
                rule.prefix = if ip.is_ipv4() { 4 } else { 6 };
            }
            let public = Rule { addr: ipv4_word(me), port: bind.container.port, ..Rule::default() };
            entries.insert(key(Kind::Published, proto, at.host_port, None, None), public.bytes());
        }
        entries.insert(key(Kind::Bind, proto, bind.container.port, None, Some(me)), rule.bytes());
    }
    for grant in service.connect.iter().flatten() {
        let (proto, port) = grant.port.map_or((0, 0), |p| (proto_number(p.proto), p.port));
        entries.insert(key(Kind::Peer, proto, port, Some(me), Some(grant.server)), Rule::default().bytes());
    }
    for local in &service.localhost {
        let rule = match local.server {
            Some(server) => Rule { addr: ipv4_word(server), ..Rule::default() },
            None => Rule { flags: LOCALHOST_AMBIGUOUS, ..Rule::default() },
        };
        entries.insert(
            key(Kind::Localhost, proto_number(local.port.proto), local.port.port, Some(me), None),
            rule.bytes(),
        );
    }
    encode_resolvers(Some(me), &service.resolvers, entries);
    for port in &service.host_ports {
        entries.insert(key(Kind::HostPort, 0, *port, Some(me), None), Rule::default().bytes());
    }
}
