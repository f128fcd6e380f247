//! Where another server finds the upstreams of a stack's routes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::super::{Edge, Upstream};
use crate::place::Place;
use crate::stack::{Proto, Stack};

/// Who looks for upstreams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// A server on the host: it reaches what the stack publishes, on loopback at best, with or without Palisade.
    /// Under Palisade a published port leads to whichever instances take connections.
    #[default]
    Published,
    /// A server that is a service of the stack: names of services are addresses to it.
    Name,
}

/// Where an upstream is found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// `127.0.0.1:8081`, `app:8081`: one or more.
    pub addresses: Vec<String>,
    /// Anybody reaches it past the server, and what keeps them away.
    pub warning: Option<String>,
}

/// An upstream that can't be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {upstream} isn't published, so a server beside the stack can't reach it")]
pub struct Unreachable {
    /// Which.
    pub upstream: Upstream,
    /// Where it is written.
    pub place: Place,
}

impl Unreachable {
    /// What to do.
    pub fn hint(&self) -> String {
        let Upstream { service, port } = &self.upstream;
        format!(
            "publish it on loopback (`ports: [\"127.0.0.1:{port}:{port}\"]` of {service}), say where it is with \
             --upstream {service}:{port}=ADDRESS:PORT, or make the server a service of the stack and use --upstreams names"
        )
    }
}

/// Finds all of them; `told` are those of which somebody said where they are.
pub fn reach(
    stack: &Stack,
    edge: &Edge,
    by: By,
    told: &BTreeMap<Upstream, Vec<String>>,
) -> Result<BTreeMap<Upstream, Reach>, Vec<Unreachable>> {
    let mut found = BTreeMap::new();
    let mut missing = Vec::new();
    for route in &edge.routes {
        let upstream = &route.value.to;
        if found.contains_key(upstream) {
            continue;
        }
        let reach = match (told.get(upstream), by) {
            (Some(addresses), _) => Reach { addresses: addresses.clone(), warning: None },
            (None, By::Name) => Reach { addresses: vec![upstream.to_string()], warning: None },
            (None, By::Published) => published(stack, upstream),
        };
        if reach.addresses.is_empty() {
            missing.push(Unreachable { upstream: upstream.clone(), place: route.place.clone() });
        }
        found.insert(upstream.clone(), reach);
    }
    if missing.is_empty() { Ok(found) } else { Err(missing) }
}

/// What the file publishes of it: on loopback if it does, else wherever.
fn published(stack: &Stack, upstream: &Upstream) -> Reach {
    let Some(service) = stack.service(&upstream.service) else { return Reach::default() };
    let is_it = |port: u16, proto| port == upstream.port && proto == Proto::Tcp;
    let all: Vec<_> = service
        .publish
        .iter()
        .map(|publish| publish.value)
        .filter(|publish| is_it(publish.container.port, publish.container.proto))
        .collect();
    let is_loopback = |ip: Option<IpAddr>| ip.is_some_and(|ip| ip.is_loopback());
    let private: Vec<_> = all.iter().filter(|publish| is_loopback(publish.host_ip)).collect();
    let chosen = if private.is_empty() { all.iter().collect() } else { private };
    let mut addresses: Vec<String> = Vec::new();
    for publish in &chosen {
        let address = match publish.host_ip {
            Some(IpAddr::V6(ip)) if !ip.is_unspecified() => format!("[{ip}]:{}", publish.host_port),
            Some(IpAddr::V4(ip)) if !ip.is_unspecified() => format!("{ip}:{}", publish.host_port),
            _ => format!("127.0.0.1:{}", publish.host_port),
        };
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    // One port published on both loopback addresses is one instance, not two.
    if addresses.iter().any(|address| address.starts_with("127.")) {
        addresses.retain(|address| !address.starts_with("[::1]"));
    }
    let open = all.iter().find(|publish| !is_loopback(publish.host_ip));
    let mut warning = open.map(|publish| {
        format!(
            "{upstream} is published as port {} for everybody, who so come past this server and its limits: write \
             \"127.0.0.1:{}:{}\" in `ports`",
            publish.host_port, publish.host_port, publish.container.port
        )
    });
    if addresses.is_empty() && service.host_mode {
        addresses.push(format!("127.0.0.1:{}", upstream.port));
        warning = Some(format!(
            "{upstream} is on the host's network; unless it binds 127.0.0.1, everybody comes past this server"
        ));
    }
    Reach { addresses, warning }
}
