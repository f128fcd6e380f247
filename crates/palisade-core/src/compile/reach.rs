//! Who may reach whom, by which name and port: the policy of each service, and its hosts file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::Compiler;
use crate::edge;
use crate::finding::Finding;
use crate::instance::Hosts;
use crate::policy::{
    BindRule, EGRESS_RULES_MAX, EgressPolicy, LocalhostPort, PeerGrant, PublishedAt, RESOLVERS_MAX, ServicePolicy,
};
use crate::stack::{Dns, Egress, EgressRule, Grant, PortProto, Proto, Service};

impl<'a> Compiler<'a> {
    pub(super) fn policy(&mut self, index: usize) -> ServicePolicy {
        let service = &self.stack.services[index];
        let address = self.addresses[index];
        let connect = service.connect.as_ref().map(|grants| {
            let grants = grants.iter().filter_map(|grant| {
                let server = self.addresses[*self.by_name.get(&grant.value.service)?];
                Some(PeerGrant { server, port: grant.value.port })
            });
            grants.collect()
        });
        let egress = match &service.egress {
            // `network_mode: none`.
            _ if service.networks.is_empty() => EgressPolicy::None,
            Egress::All => EgressPolicy::All,
            Egress::None => EgressPolicy::None,
            Egress::Only(rules) => {
                if let Some(rule) = rules.get(EGRESS_RULES_MAX) {
                    let message =
                        format!("it has {} egress rules, and at most {EGRESS_RULES_MAX} are possible", rules.len());
                    self.findings.push(Finding::error("too-many-egress-rules", &service.name, message).at(&rule.place));
                }
                EgressPolicy::Only(rules.iter().map(|rule| rule.value).collect())
            }
        };
        ServicePolicy {
            name: service.name.clone(),
            address,
            networks: self.masks[index],
            backends: self.surroundings.numbers.of(service).into_iter().map(|n| address.instance(n)).collect(),
            binds: binds(service),
            strict: service.strict,
            host_mode: service.host_mode,
            connect,
            localhost: if service.host_mode { self.localhost(index) } else { Vec::new() },
            host_ports: service.host_ports.iter().map(|port| port.value).collect(),
            resolvers: self.resolvers(service, &egress),
            egress,
        }
    }

    /// Name servers that the file gives the service and that need a rule of their own. One that its egress rules keep
    /// it from is refused: every look-up would only time out.
    pub(super) fn resolvers(&mut self, service: &Service, egress: &EgressPolicy) -> Vec<IpAddr> {
        let Some(Dns { servers, .. }) = &service.settings.dns else { return Vec::new() };
        let host_port = service.host_ports.iter().any(|port| port.value == 53);
        let mut resolvers = Vec::new();
        for server in servers.iter().map(IpAddr::to_canonical) {
            let loopback = server.is_loopback() || server.is_unspecified();
            let allowed = match egress {
                // Another container's localhost is its own; only with the host's network it is the host's.
                _ if loopback => {
                    let own = ports_of(service).any(|port| port.port == 53);
                    if !(service.host_mode || host_port || own || self.surroundings.resolvers.contains(&server)) {
                        let message = format!("its name server {server} is itself, and it has no port 53");
                        let remedy = "write `expose: [\"53/udp\"]` if it has one, x-palisade.host: [53] if the host's is meant, or take it off `dns`";
                        self.findings.push(
                            Finding::error("dns-unreachable", &service.name, message).remedy(remedy).at(&service.place),
                        );
                        continue;
                    }
                    service.host_mode && *egress == EgressPolicy::All
                }
                EgressPolicy::All => true,
                EgressPolicy::None => host_port,
                EgressPolicy::Only(rules) => host_port || rules.iter().any(|rule| lets_ask(rule, server)),
            };
            if !allowed && !loopback {
                let message = format!("its egress doesn't let it ask its name server {server}");
                let remedy = match egress {
                    EgressPolicy::None if service.networks.is_empty() => {
                        "take `dns` away: with network_mode none it reaches nobody".to_owned()
                    }
                    _ => {
                        let prefix = if server.is_ipv4() { 32 } else { 128 };
                        let rule = if server.is_ipv4() {
                            format!("{server}/{prefix}:53")
                        } else {
                            format!("[{server}]/{prefix}:53")
                        };
                        format!("add \"{rule}\" to x-palisade.egress, or take `dns` away")
                    }
                };
                self.findings
                    .push(Finding::error("dns-unreachable", &service.name, message).remedy(remedy).at(&service.place));
                continue;
            }
            if allowed && resolvers.len() < RESOLVERS_MAX && !resolvers.contains(&server) {
                resolvers.push(server);
            }
        }
        resolvers
    }

    /// Ports of peers that `localhost` means too. What the service has itself is its own and not listed.
    pub(super) fn localhost(&mut self, client: usize) -> Vec<LocalhostPort> {
        let entry = |port: PortProto, server: Option<usize>| LocalhostPort {
            port,
            server: server.map(|server| self.addresses[server]),
        };
        if let Some(grants) = &self.stack.services[client].connect {
            let mut ports = BTreeMap::new();
            for (server, grant) in self.granted(client, grants) {
                for port in ports_of(&self.stack.services[server]) {
                    if grant.port.is_none_or(|granted| granted == port) {
                        let holders = Holders::add(ports.get(&port).copied(), server);
                        ports.insert(port, holders);
                    }
                }
            }
            let own: BTreeSet<_> = ports_of(&self.stack.services[client]).collect();
            let ports = ports.into_iter().filter(|(port, _)| !own.contains(port));
            return ports.filter_map(|(port, holders)| Some(entry(port, holders.seen_by(client)?))).collect();
        }
        let mask = self.masks[client];
        let (stack, masks) = (self.stack, &self.masks);
        let ports = self.ports_by_mask.entry(mask).or_insert_with(|| {
            let mut ports = BTreeMap::new();
            let servers = stack.services.iter().enumerate().filter(|(server, _)| masks[*server] & mask != 0);
            // The edge is nobody's localhost: its ports may be numbers that services of the file have.
            for (server, service) in servers.filter(|(_, service)| service.name.as_str() != edge::SERVICE_NAME) {
                for port in ports_of(service) {
                    let holders = Holders::add(ports.get(&port).copied(), server);
                    ports.insert(port, holders);
                }
            }
            ports
        });
        let own: BTreeSet<_> = ports_of(&stack.services[client]).collect();
        let addresses = &self.addresses;
        let ports = ports.iter().filter(|(port, _)| !own.contains(port));
        let ports = ports.filter_map(|(port, holders)| Some((*port, holders.seen_by(client)?)));
        ports.map(|(port, server)| LocalhostPort { port, server: server.map(|server| addresses[server]) }).collect()
    }

    /// Peers that are granted and that share a network.
    pub(super) fn granted<'g>(
        &'g self,
        client: usize,
        grants: &'g [crate::place::Placed<Grant>],
    ) -> impl Iterator<Item = (usize, &'g Grant)> {
        grants.iter().filter_map(move |grant| {
            let server = *self.by_name.get(&grant.value.service)?;
            (self.masks[server] & self.masks[client] != 0 && server != client).then_some((server, &grant.value))
        })
    }

    /// Lines of its hosts file, `links` among them.
    pub(super) fn hosts(&mut self, client: usize, links: Vec<(String, IpAddr)>) -> Hosts {
        let service = &self.stack.services[client];
        let shared = match &service.connect {
            Some(grants) => {
                let mut peers: BTreeSet<usize> = self.granted(client, grants).map(|(server, _)| server).collect();
                peers.insert(client);
                self.hosts_of(peers)
            }
            None if self.masks[client] == 0 => self.hosts_of([client]),
            None => {
                let mask = self.masks[client];
                match self.hosts_by_mask.get(&mask) {
                    Some(hosts) => hosts.clone(),
                    None => {
                        let peers = (0..self.masks.len()).filter(|&server| self.masks[server] & mask != 0);
                        let hosts = self.hosts_of(peers);
                        self.hosts_by_mask.insert(mask, hosts.clone());
                        hosts
                    }
                }
            }
        };
        if service.extra_hosts.is_empty() && service.links.is_empty() {
            return shared;
        }
        let extra = service.extra_hosts.iter().cloned();
        let links = links.into_iter().filter(|link| !shared.contains(link));
        shared.iter().cloned().chain(links).chain(extra).collect::<Vec<_>>().into()
    }

    /// The names that `links` give to peers, each once.
    pub(super) fn links(&mut self, client: usize) -> Vec<(String, IpAddr)> {
        let service = &self.stack.services[client];
        let mut links = Vec::new();
        for link in &service.links {
            let Some(&server) = self.by_name.get(&link.value.service) else { continue };
            // A link gives a name to somebody who may be reached, and no right to reach him.
            if !self.sees(client, server) {
                let why = if self.masks[client] & self.masks[server] == 0 {
                    "they share no network"
                } else {
                    "its x-palisade.connect doesn't have it"
                };
                let message = format!("it is linked to {}, which it can't reach: {why}", link.value.service);
                let finding = Finding::error("link-unreachable", &service.name, message).at(&link.place);
                self.findings.push(finding.remedy("take the link away, or let it reach that service"));
                continue;
            }
            let entry = (link.value.alias.clone(), IpAddr::V4(self.addresses[server].ip()));
            if !links.contains(&entry) {
                links.push(entry);
            }
        }
        links
    }

    /// Whether the server's name is in the client's hosts file.
    pub(super) fn sees(&self, client: usize, server: usize) -> bool {
        server == client
            || match &self.stack.services[client].connect {
                Some(grants) => self.granted(client, grants).any(|(granted, _)| granted == server),
                None => self.masks[client] & self.masks[server] != 0,
            }
    }

    pub(super) fn hosts_of(&self, peers: impl IntoIterator<Item = usize>) -> Hosts {
        let mut lines = Vec::new();
        for peer in peers {
            let ip = IpAddr::V4(self.addresses[peer].ip());
            let service = &self.stack.services[peer];
            lines.push((service.name.to_string(), ip));
            let aliases = service.aliases.iter().filter(|alias| *alias != service.name.as_str());
            lines.extend(aliases.map(|alias| (alias.clone(), ip)));
        }
        lines.into()
    }
}

/// Which services have a port: the first two are enough to answer whose it is for a third.
#[derive(Clone, Copy)]
pub(super) struct Holders {
    first: usize,
    second: Option<usize>,
    more: bool,
}

impl Holders {
    fn add(entry: Option<Self>, service: usize) -> Self {
        match entry {
            None => Self { first: service, second: None, more: false },
            Some(holders) if holders.first == service || holders.second == Some(service) => holders,
            Some(Self { first, second: None, .. }) => Self { first, second: Some(service), more: false },
            Some(holders) => Self { more: true, ..holders },
        }
    }
    /// What `localhost:PORT` means to another service than itself: `None` when it has the port itself.
    fn seen_by(self, client: usize) -> Option<Option<usize>> {
        if self.first == client || self.second == Some(client) {
            return None;
        }
        Some(if self.second.is_none() && !self.more { Some(self.first) } else { None })
    }
}

/// The egress rule lets a name server be asked.
fn lets_ask(rule: &EgressRule, server: IpAddr) -> bool {
    let port = rule.port.is_none_or(|port| port == 53) && rule.proto.is_none_or(|proto| proto == Proto::Udp);
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)) << 96, 32),
        IpAddr::V6(ip) => (u128::from(ip), 128),
    };
    let ((network, length), (server, server_length)) = (bits(rule.network), bits(server));
    let mask = u128::MAX.checked_shl(128 - u32::from(rule.prefix_len)).unwrap_or(0);
    port && length == server_length && (network ^ server) & mask == 0
}

/// Ports that peers may expect at the service, each once.
fn ports_of(service: &Service) -> impl Iterator<Item = PortProto> {
    let exposed = service.expose.iter().map(|port| port.value);
    exposed.chain(service.publish.iter().map(|publish| publish.value.container)).collect::<BTreeSet<_>>().into_iter()
}

/// It is a socket's own business where it is published: a datagram socket stays where it was bound, and connections are
/// handed out by the policy.
pub(super) fn is_fixed(bind: &BindRule) -> bool {
    bind.container.proto == Proto::Udp && bind.published.is_some()
}

/// One rule for each published place and one for each port that is only exposed.
pub(super) fn binds(service: &Service) -> Vec<BindRule> {
    let published = service.publish.iter().map(|publish| BindRule {
        container: publish.value.container,
        published: Some(PublishedAt { host_ip: publish.value.host_ip, host_port: publish.value.host_port }),
    });
    let published: Vec<_> = published.collect();
    let private = ports_of(service).filter(|port| !published.iter().any(|rule| rule.container == *port));
    let private: Vec<_> = private.map(|container| BindRule { container, published: None }).collect();
    published.into_iter().chain(private).collect()
}
