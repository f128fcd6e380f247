//! What an edge opens to the world, and for whom: the words that documents and explanations share.

use std::collections::BTreeMap;

use super::{Edge, HTTP_PORT, HTTPS_PORT, SERVICE_NAME, WORKER_NAME};
use crate::names::ServiceName;
use crate::place::Placed;
use crate::prove::Door;
use crate::stack::{PortProto, Proto, Publish, Service, Stack};

/// So many domains are named where a line is all that there is.
const NAMED_MAX: usize = 3;

impl Edge {
    /// Ports of the host where it listens, each with its own behind it. The line is the first route's.
    pub fn published(&self) -> Vec<Placed<Publish>> {
        let Some(first) = self.routes.first() else { return Vec::new() };
        let tcp = [(self.http_port, HTTP_PORT), (self.https_port, HTTPS_PORT)].map(|ports| (ports, Proto::Tcp));
        let udp = self.http3.then_some(((self.https_port, HTTPS_PORT), Proto::Udp));
        let publish = |((host_port, port), proto)| {
            let value = Publish { host_ip: None, host_port, container: PortProto { port, proto } };
            Placed { value, place: first.place.clone() }
        };
        tcp.into_iter().chain(udp).map(publish).collect()
    }

    /// The domains of its routes in the order of the file, each once.
    pub fn domains(&self) -> Vec<&str> {
        let mut domains: Vec<&str> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for domain in self.routes.iter().flat_map(|route| &route.value.domains) {
            if seen.insert(domain) {
                domains.push(domain);
            }
        }
        domains
    }

    /// What it is for, in a line: `the edge for barter.example, www.barter.example`.
    pub fn purpose(&self) -> String {
        let domains = self.domains();
        let named = domains.iter().take(NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
        match domains.len().saturating_sub(NAMED_MAX) {
            0 => format!("the edge for {named}"),
            more => format!("the edge for {named} and {more} more"),
        }
    }

    /// Puts what the edge is for in the place of what is said about ports of it that are open.
    pub fn tell_doors(&self, doors: &mut BTreeMap<Door, String>) {
        for published in self.published() {
            let port = PortProto { port: published.value.host_port, proto: published.value.container.proto };
            let mine = doors.iter_mut().filter(|(door, _)| door.port == port);
            mine.for_each(|(_, why)| *why = self.purpose());
        }
    }
}

/// The key by which a service may connect to some peers only: those that an edge brings along have theirs from its routes.
pub fn granting_key(client: &ServiceName) -> &'static str {
    if is_own(client) { "x-palisade.edge" } else { "x-palisade.connect" }
}

/// The service is one that an edge brings along, so that no file has it.
pub fn is_own(service: &ServiceName) -> bool {
    [SERVICE_NAME, WORKER_NAME].contains(&service.as_str())
}

impl Stack {
    /// The edge, if this service stands for it.
    pub fn edge_of(&self, service: &Service) -> Option<&Edge> {
        self.edge.as_ref().filter(|_| service.name.as_str() == SERVICE_NAME)
    }
}
