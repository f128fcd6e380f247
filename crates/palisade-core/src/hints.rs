//! Which line of the file would allow what the guard refused.
//!
//! How a refusal gets here from the kernel is the guard's business.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

use crate::address::{AddressBook, InstanceAddress, ServiceAddress};
use crate::edge::is_own;
use crate::names::ServiceName;
use crate::place::Place;
use crate::stack::{PortProto, Proto, Service, Stack};

/// What the guard refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Whose socket it was; `None`: a process of the host.
    pub client: Option<ServiceName>,
    /// Protocol; meaningless for [`Reason::SocketType`] and [`Reason::AbstractUnix`].
    pub proto: Proto,
    /// Where it wanted to bind, connect or send.
    pub address: IpAddr,
    /// At which port.
    pub port: u16,
    /// Why not.
    pub reason: Reason,
}

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A service that the client may not connect to.
    NotAPeer,
    /// A bind to an undeclared port of a strict service.
    UndeclaredPort,
    /// A socket that takes connections without ever having been bound where the guard puts it.
    UndeclaredListener,
    /// A service of the host's own loopback.
    HostLoopback,
    /// A port of the host at one of its own addresses.
    HostPort,
    /// A service of another stack.
    OtherStack,
    /// A metadata address of a cloud.
    Metadata,
    /// Outside, and not in `egress`.
    Egress,
    /// `localhost:PORT`, which several services have.
    AmbiguousLocalhost,
    /// A service of which no instance runs.
    NoBackend,
    /// A bind to an address that isn't the service's.
    ForeignAddress,
    /// A socket of a kind that can't be guarded.
    SocketType,
    /// Another service's abstract unix socket.
    AbstractUnix,
    /// There is no policy for the service: it is being set up, or was taken out of the file.
    NoPolicy,
    /// A datagram to `::1`, which the kernel can't turn into one to a service's IPv4 address.
    Ipv6LocalDatagram,
    /// A packet for a private address that came in from outside; the address is its sender's.
    FromOutside,
}

/// A refusal in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// What was refused.
    pub what: String,
    /// What would allow it, if it should be allowed.
    pub hint: Option<String>,
    /// The line of the file to look at.
    pub place: Option<Place>,
}

/// Says what was refused and which line of the file would allow it.
pub fn explain(stack: &Stack, addresses: &AddressBook, refusal: &Refusal) -> Explanation {
    let Refusal { client, proto, address, port, reason } = refusal;
    let address = address.to_canonical();
    let port_proto = PortProto { port: *port, proto: *proto };
    let who = client.as_ref().map_or_else(|| "a process of the host".to_owned(), |name| format!("service {name}"));
    let service = client.as_ref().and_then(|name| stack.service(name));
    let server = server_at(addresses, address);
    let target = match server {
        Some(name) => format!("{name}:{port_proto}"),
        None => endpoint(address, port_proto),
    };
    let (what, hint, place) = match reason {
        Reason::NotAPeer => {
            not_a_peer(stack, service, server, port_proto, format!("{who} may not connect to {target}"))
        }
        Reason::UndeclaredPort => (
            format!("{who} is strict and may not bind {port_proto}, which it doesn't declare"),
            client.as_ref().map(|name| format!("add \"{}\" to expose of service {name}", short(port_proto))),
            service.and_then(|service| service.expose.first()).map(|port| &port.place),
        ),
        Reason::UndeclaredListener => (
            format!("{who} listens at {port_proto} on a socket that it never bound; nobody reaches it there"),
            client.as_ref().map(|name| {
                format!(
                    "bind the socket before listening, and add \"{}\" to expose of service {name}",
                    short(port_proto)
                )
            }),
            None,
        ),
        Reason::HostLoopback => (
            format!("{who} may not connect to {target}, a service of the host itself"),
            client.as_ref().map(|name| format!("add {port} to x-palisade.host of service {name}")),
            service.and_then(|service| service.host_ports.first()).map(|port| &port.place),
        ),
        Reason::HostPort => {
            host_port(stack, service, port_proto, format!("{who} may not connect to {target} of this host"))
        }
        Reason::OtherStack => (
            format!("{who} may not connect to {target}, which belongs to another stack"),
            Some("let the other stack publish the port, or put both services into one file".to_owned()),
            None,
        ),
        Reason::Metadata => (
            format!("{who} may not reach the cloud's metadata at {target}, where credentials of the machine are"),
            client.as_ref().map(|name| {
                format!("if it needs them, add \"{}\" to x-palisade.egress of service {name}", network(address, *port))
            }),
            None,
        ),
        Reason::Egress => (
            format!("{who} may not connect to {target} outside"),
            client
                .as_ref()
                .map(|name| format!("add \"{}\" to x-palisade.egress of service {name}", network(address, *port))),
            service.and_then(|service| match &service.egress {
                crate::stack::Egress::Only(rules) => rules.first().map(|rule| &rule.place),
                _ => None,
            }),
        ),
        Reason::AmbiguousLocalhost => {
            let having: Vec<_> = stack.services.iter().filter(|peer| has_port(peer, port_proto)).collect();
            let names: Vec<_> = having.iter().map(|peer| peer.name.as_str()).collect();
            (
                format!("{who} connected to localhost:{port}, which could be any of {}", names.join(", ")),
                names.first().map(|name| format!("use the name: {name}:{port}")),
                None,
            )
        }
        Reason::NoBackend => (
            format!("{who} connected to {target}, and no instance of it takes connections now"),
            server.map(|name| format!("`palisade ps` shows its state, `palisade logs {name}` why")),
            None,
        ),
        Reason::ForeignAddress => (
            format!("{who} may not bind {target}, which isn't its address"),
            Some("bind 0.0.0.0, [::] or localhost; `ports:` says where it is visible".to_owned()),
            None,
        ),
        Reason::SocketType => (
            format!("{who} may not make a socket of this kind, because it can't be guarded"),
            Some("TCP, UDP and unix sockets are possible".to_owned()),
            None,
        ),
        Reason::AbstractUnix => (
            format!("{who} may not use an abstract unix socket of another service"),
            Some("share a volume and use a socket with a path".to_owned()),
            None,
        ),
        Reason::NoPolicy => (
            format!("{who} is in no policy, so it may neither bind nor connect"),
            Some("run `palisade up`".to_owned()),
            None,
        ),
        Reason::Ipv6LocalDatagram => (
            format!("{who} may not send a datagram to {target}, because it can't be led to a service"),
            Some("use the service's name or 127.0.0.1 instead of ::1".to_owned()),
            None,
        ),
        Reason::FromOutside => (
            format!("{address} sent a packet from outside to the private address of {who}, port {port_proto}"),
            Some(
                "`ports:` says what is visible outside; whoever sends to private addresses looks for holes".to_owned(),
            ),
            None,
        ),
    };
    let place = place.or(service.filter(|_| hint.is_some()).map(|service| &service.place));
    Explanation { what, hint, place: place.cloned() }
}

type Parts<'a> = (String, Option<String>, Option<&'a Place>);

fn not_a_peer<'a>(
    stack: &Stack,
    client: Option<&'a Service>,
    server: Option<&ServiceName>,
    port: PortProto,
    what: String,
) -> Parts<'a> {
    let Some(client) = client else {
        return (what, Some("publish the port at 127.0.0.1 with `ports:` to let the host use it".to_owned()), None);
    };
    let Some(server) = server.and_then(|name| stack.service(name)) else { return (what, None, None) };
    if client.networks.is_disjoint(&server.networks) {
        let hint = match server.networks.first() {
            Some(network) => format!("they share no network: add {network} to networks of service {}", client.name),
            None => format!("service {} is in no network: give both the same one in networks", server.name),
        };
        return (what, Some(hint), None);
    }
    if is_own(&client.name) {
        return (
            what,
            Some("the edge connects to what its routes lead to, and to nothing else".to_owned()),
            Some(&client.place),
        );
    }
    let hint = format!("add \"{}:{}\" to x-palisade.connect of service {}", server.name, short(port), client.name);
    let grants = client.connect.as_deref().unwrap_or_default();
    let same = grants.iter().find(|grant| grant.value.service == server.name);
    (what, Some(hint), same.or(grants.first()).map(|grant| &grant.place))
}

fn host_port<'a>(stack: &Stack, client: Option<&'a Service>, port: PortProto, what: String) -> Parts<'a> {
    let published = |service: &&Service| {
        service.publish.iter().any(|p| p.value.host_port == port.port && p.value.container.proto == port.proto)
    };
    let hint = match (stack.services.iter().find(published), client) {
        (Some(server), _) => {
            let container = server.publish.iter().find(|p| p.value.host_port == port.port).map(|p| p.value.container);
            Some(format!("use the name: {}:{}", server.name, container.unwrap_or(port).port))
        }
        (None, Some(client)) => Some(format!("add {} to x-palisade.host of service {}", port.port, client.name)),
        (None, None) => None,
    };
    (what, hint, client.and_then(|client| client.host_ports.first()).map(|port| &port.place))
}

fn has_port(service: &Service, port: PortProto) -> bool {
    service.expose.iter().any(|p| p.value == port) || service.publish.iter().any(|p| p.value.container == port)
}

/// The service whose address, or whose instance's address, this is.
fn server_at(addresses: &AddressBook, address: IpAddr) -> Option<&ServiceName> {
    let ip = match address {
        IpAddr::V4(ip) => ip,
        IpAddr::V6(ip) if ip.segments()[..6] == [0xfd70, 0x616c, 0x6973, 0x6164, 0, 0] => {
            let [.., a, b, c, d] = ip.octets();
            [a, b, c, d].into()
        }
        IpAddr::V6(_) => return None,
    };
    addresses.iter().find_map(|(name, index)| {
        let service: ServiceAddress = index.address()?;
        let instance: InstanceAddress = service.instance(ip.octets()[3]);
        (instance.ip() == ip || instance.own_localhost() == ip).then_some(name)
    })
}

fn endpoint(address: IpAddr, port: PortProto) -> String {
    match address {
        IpAddr::V4(ip) => format!("{ip}:{port}"),
        IpAddr::V6(ip) => format!("[{ip}]:{port}"),
    }
}

/// As it is written in a file: TCP goes without saying.
pub(crate) fn short(port: PortProto) -> String {
    match port.proto {
        Proto::Tcp => port.port.to_string(),
        Proto::Udp => port.to_string(),
    }
}

fn network(address: IpAddr, port: u16) -> String {
    match address {
        IpAddr::V4(ip) => format!("{ip}/32:{port}"),
        IpAddr::V6(ip) => format!("[{ip}]/128:{port}"),
    }
}

#[cfg(test)]
mod tests;
