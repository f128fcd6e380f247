//! From a stack and the addresses of its services to what the guard and the runtime are given.
//!
//! Whether any of it is already so on the host is the planner's question.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;

use crate::action::VolumeName;
use crate::address::{AddressBook, ServiceAddress};
use crate::digest::{Fingerprint, digest_of};
use crate::edge;
use crate::finding::Finding;
use crate::image;
use crate::instance::{
    CgroupDriver, ContainerProgram, Hosts, InstanceFile, InstanceMount, InstanceMountSource, InstanceSpec, OwnProgram,
    Program,
};
use crate::names::{InstanceId, ProjectName, ServiceName};
use crate::observed::{EngineState, FileSeen};
use crate::policy::{
    BindRule, EGRESS_RULES_MAX, EgressPolicy, LocalhostPort, Mode, NETWORKS_MAX, PLACES_MAX, PeerGrant, Policy,
    PublishedAt, RESOLVERS_MAX, ServicePolicy,
};
use crate::stack::{
    Dns, Egress, EgressRule, FileSource, Grant, Mount, MountSource, PortProto, Proto, ProvidedFile, Runner,
    RuntimeChoice, Service, Stack, Unguarded, Volume,
};

/// What compiling needs to know besides the stack.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// The addresses of the stack's services.
    pub addresses: &'a AddressBook,
    /// The host's name servers.
    pub resolvers: &'a [IpAddr],
    /// What is done about a breach.
    pub mode: Mode,
    /// Where a volume's data is, by its key and what the file says about it.
    pub volume_path: &'a dyn Fn(&str, &Volume) -> PathBuf,
    /// Files that secrets and configs come from, as they were seen; `None`: nobody looked.
    pub files: Option<&'a BTreeMap<PathBuf, FileSeen>>,
    /// The host's container engine.
    pub engine: &'a EngineState,
    /// Which instances the services have.
    pub numbers: &'a Numbers,
    /// What services that are Palisade's own need of this host; `None`: nobody looked.
    pub own: Option<&'a OwnPlaces>,
}

/// What services that are Palisade's own need of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPlaces {
    /// The program that is running now.
    pub program: OwnProgram,
    /// The folder, below `/run`, by which the edge and those who speak with it find each other.
    pub edge: PathBuf,
}

/// The numbers of the instances that services have. A newer version of an instance has another number, as both run
/// for a while; so they aren't always 1 to the number of replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers(BTreeMap<ServiceName, BTreeSet<u8>>);

impl Numbers {
    /// From 1 to the number of replicas: what a host has that had nothing before.
    pub const FIRST: &'static Numbers = &Numbers(BTreeMap::new());

    /// Of this service.
    pub fn of(&self, service: &Service) -> BTreeSet<u8> {
        self.0.get(&service.name).cloned().unwrap_or_else(|| (1..=service.replicas).collect())
    }

    /// Gives a service these.
    pub fn set(&mut self, service: &Service, numbers: BTreeSet<u8>) {
        if numbers == (1..=service.replicas).collect() {
            self.0.remove(&service.name);
        } else {
            self.0.insert(service.name.clone(), numbers);
        }
    }
}

/// A stack as its guard and its runtime see it.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// For the guard.
    pub policy: Policy,
    /// Of the policy.
    pub policy_digest: String,
    /// In the order of the file.
    pub instances: Vec<CompiledInstance>,
}

/// One instance for the runtime.
#[derive(Clone, Debug)]
pub struct CompiledInstance {
    /// What it needs.
    pub spec: InstanceSpec,
    /// What the spec was made of.
    pub fingerprint: Fingerprint,
}

/// Compiles the stack, or says everything that stands against it.
pub fn compile(stack: &Stack, surroundings: Surroundings<'_>) -> Result<Compiled, Vec<Finding>> {
    let mut compiler = Compiler::new(stack, surroundings)?;
    compiler.volume_names();
    let mut services = Vec::with_capacity(stack.services.len());
    let mut instances = Vec::with_capacity(stack.services.len());
    for index in 0..stack.services.len() {
        services.push(compiler.policy(index));
        compiler.instances(index, &mut instances);
    }
    if !compiler.findings.is_empty() {
        return Err(compiler.findings);
    }
    let mut resolvers = surroundings.resolvers.to_vec();
    resolvers.sort_unstable();
    resolvers.dedup();
    let policy = Policy { mode: surroundings.mode, services, resolvers };
    Ok(Compiled { policy_digest: digest_of(&policy), policy, instances })
}

/// Everything that stands against the stack, without making anything of it.
pub fn objections(stack: &Stack, surroundings: Surroundings<'_>) -> Vec<Finding> {
    let mut compiler = match Compiler::new(stack, surroundings) {
        Ok(compiler) => compiler,
        Err(findings) => return findings,
    };
    compiler.volume_names();
    for index in 0..stack.services.len() {
        compiler.policy(index);
        compiler.needs(index);
    }
    compiler.findings
}

/// What is looked up for the instances of one service.
struct Needs {
    program: Program,
    links: Vec<(String, IpAddr)>,
    files: Vec<InstanceFile>,
}

struct Compiler<'a> {
    stack: &'a Stack,
    surroundings: Surroundings<'a>,
    /// Per service, in the order of the stack.
    addresses: Vec<ServiceAddress>,
    masks: Vec<u64>,
    by_name: HashMap<&'a ServiceName, usize>,
    /// Services that are in the same networks and have no `connect` see the same names and ports: computed once.
    hosts_by_mask: HashMap<u64, Hosts>,
    ports_by_mask: HashMap<u64, BTreeMap<PortProto, Holders>>,
    findings: Vec<Finding>,
}

/// Which services have a port: the first two are enough to answer whose it is for a third.
#[derive(Clone, Copy)]
struct Holders {
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

impl<'a> Compiler<'a> {
    fn new(stack: &'a Stack, surroundings: Surroundings<'a>) -> Result<Self, Vec<Finding>> {
        let mut findings = Vec::new();
        let networks: BTreeSet<&str> =
            stack.services.iter().flat_map(|service| &service.networks).map(String::as_str).collect();
        if networks.len() > NETWORKS_MAX {
            let message = format!("{} networks are used, and at most {NETWORKS_MAX} are possible", networks.len());
            findings.push(Finding::error("too-many-networks", &stack.project, message));
        }
        let mut addresses = Vec::with_capacity(stack.services.len());
        for service in &stack.services {
            match surroundings.addresses.address(&service.name) {
                Some(address) => addresses.push(address),
                None => findings
                    .push(Finding::error("no-address", &service.name, "it has no private address").at(&service.place)),
            }
        }
        let mut places: BTreeMap<u16, usize> = BTreeMap::new();
        for publish in stack.services.iter().flat_map(|service| &service.publish) {
            let port = publish.value.host_port;
            let count = places.entry(port).or_default();
            *count += usize::from(publish.value.container.proto == Proto::Tcp);
            if *count == PLACES_MAX + 1 {
                let message = format!("port {port}/tcp is published on more than {PLACES_MAX} addresses of the host");
                let remedy = "publish it on all addresses";
                findings
                    .push(Finding::error("too-many-places", &stack.project, message).remedy(remedy).at(&publish.place));
            }
        }
        if !findings.is_empty() {
            return Err(findings);
        }
        let bits: HashMap<&str, u32> = networks.into_iter().zip(0..).collect();
        let masks = stack.services.iter();
        let masks = masks.map(|s| s.networks.iter().fold(0, |mask, network| mask | 1 << bits[network.as_str()]));
        Ok(Self {
            stack,
            surroundings,
            addresses,
            masks: masks.collect(),
            by_name: stack.services.iter().enumerate().map(|(index, service)| (&service.name, index)).collect(),
            hosts_by_mask: HashMap::new(),
            ports_by_mask: HashMap::new(),
            findings,
        })
    }

    fn policy(&mut self, index: usize) -> ServicePolicy {
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
    fn resolvers(&mut self, service: &Service, egress: &EgressPolicy) -> Vec<IpAddr> {
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

    /// Volumes become folders, so what they are called must be a name and not a path.
    fn volume_names(&mut self) {
        for (key, volume) in &self.stack.volumes {
            let name = volume.name.as_deref().unwrap_or(key);
            let first = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
            let rest = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
            if !(first && rest && name.len() <= 255) {
                let message = format!("a volume can't be called `{name}`");
                let remedy = "use letters, digits, `_`, `.` and `-`, beginning with a letter or digit";
                self.findings.push(Finding::error("volume-name", key, message).remedy(remedy));
            }
        }
    }

    /// Ports of peers that `localhost` means too. What the service has itself is its own and not listed.
    fn localhost(&mut self, client: usize) -> Vec<LocalhostPort> {
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
    fn granted<'g>(
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
    fn hosts(&mut self, client: usize, links: Vec<(String, IpAddr)>) -> Hosts {
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
    fn links(&mut self, client: usize) -> Vec<(String, IpAddr)> {
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
    fn sees(&self, client: usize, server: usize) -> bool {
        server == client
            || match &self.stack.services[client].connect {
                Some(grants) => self.granted(client, grants).any(|(granted, _)| granted == server),
                None => self.masks[client] & self.masks[server] != 0,
            }
    }

    /// With the digest of what the host's file holds, or a finding about it.
    fn file(&mut self, service: &Service, file: &ProvidedFile, place: &crate::place::Place) -> InstanceFile {
        let mut whole = InstanceFile { file: file.clone(), content_digest: None };
        let FileSource::Path(path) = &file.source else { return whole };
        let kind = if file.secret { "secret" } else { "config" };
        let mut wrong = |id, what: &str, remedy: &str| {
            let message = format!("the file of its {kind} `{}`, {}, {what}", file.name, path.display());
            self.findings.push(Finding::error(id, &service.name, message).remedy(remedy).at(place));
        };
        match self.surroundings.files.map(|files| files.get(path)) {
            None | Some(Some(FileSeen::NotForUs)) => {}
            Some(Some(FileSeen::Readable { digest })) => whole.content_digest = Some(digest.clone()),
            Some(Some(FileSeen::Missing)) => {
                wrong("file-missing", "doesn't exist", "make the file, or correct the path")
            }
            Some(Some(FileSeen::Unusable { why })) => {
                wrong(
                    "file-unusable",
                    &format!("can't be used: {why}"),
                    "name a file; a directory can be mounted with `volumes`",
                );
            }
            Some(None) => wrong("file-unusable", "was not looked at", "this is a fault of Palisade: please report it"),
        }
        whole
    }

    fn hosts_of(&self, peers: impl IntoIterator<Item = usize>) -> Hosts {
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

    /// What the guard can't hold is not started, unless somebody has written down why it may be.
    fn refuse_unguarded(&mut self, service: &Service) {
        for breach in service.unguarded.iter().filter(|breach| breach.value.accepted.is_none()) {
            let Unguarded { risk, could, .. } = &breach.value;
            let finding =
                Finding::error("beyond-the-guard", &service.name, format!("{could}, so the guard can't hold it"));
            let remedy = format!(
                "remove it, or accept it with a reason: `x-palisade: {{allow: [{{id: {risk}, reason: \"…\"}}]}}`"
            );
            self.findings.push(finding.remedy(remedy).at(&breach.place));
        }
    }

    fn check_limits(&mut self, service: &Service) {
        let limits = &service.limits;
        let Some(with_swap) = limits.memory_swap_bytes else { return };
        let message = match limits.memory_bytes {
            None => "its memswap_limit needs a limit of memory: it is memory and swap together",
            Some(memory) if with_swap < memory => "its memswap_limit is below its limit of memory, which it includes",
            Some(_) => return,
        };
        let finding = Finding::error("swap-limit", &service.name, message).at(&service.place);
        self.findings.push(finding.remedy("write `mem_limit` and a memswap_limit of at least as much"));
    }

    /// What its instances run, or a finding about why that can't be.
    fn program(&mut self, service: &Service) -> Option<Program> {
        let container = match service.run.runner() {
            Runner::Process(process) => return Some(Program::Process(process.clone())),
            Runner::Engine(container) => container,
            Runner::Nobody => {
                let (message, remedy) = match service.run.runtime {
                    RuntimeChoice::Process => (
                        "x-palisade.runtime is `process`, and nothing says how to run it as one",
                        "add x-palisade.process with the command to run, or take `runtime` away",
                    ),
                    RuntimeChoice::Engine => (
                        "x-palisade.runtime is `engine`, and it has no image",
                        "add `image` or `build`, or take `runtime` away",
                    ),
                    RuntimeChoice::Auto => ("nothing says what it runs", "add `image`, `build` or x-palisade.process"),
                };
                self.findings
                    .push(Finding::error("nothing-to-run", &service.name, message).remedy(remedy).at(&service.place));
                return None;
            }
        };
        let image = image::image_name(&self.stack.project, service, container);
        let mut program = ContainerProgram {
            socket: PathBuf::new(),
            cgroup_driver: CgroupDriver::Cgroupfs,
            name: String::new(),
            image_id: None,
            image,
            settings: container.clone(),
            host_mode: service.host_mode,
        };
        match self.surroundings.engine {
            EngineState::NotAsked => {}
            EngineState::Away { why, remedy } => {
                self.needs_engine(service, why, remedy);
                return None;
            }
            EngineState::There(engine) => {
                self.findings.extend(image::obstacles(self.stack, service, container, engine));
                program.socket.clone_from(&engine.socket);
                program.cgroup_driver = engine.cgroup_driver;
                program.image_id = engine.images.get(&program.image).map(|image| image.id.clone());
            }
        }
        Some(Program::Container(Box::new(program)))
    }

    /// One finding for all services that wait for the same engine.
    fn needs_engine(&mut self, service: &Service, why: &str, remedy: &str) {
        const ID: &str = "needs-engine";
        match self.findings.iter_mut().find(|finding| finding.id == ID) {
            Some(finding) => {
                finding.subject = format!("{}, {}", finding.subject, service.name);
                finding.message = format!("their images need a container engine, and {why}");
            }
            None => {
                let message = format!("its image needs a container engine, and {why}");
                self.findings.push(Finding::error(ID, &service.name, message).remedy(remedy).at(&service.place));
            }
        }
    }

    fn instances(&mut self, index: usize, instances: &mut Vec<CompiledInstance>) {
        let stack = self.stack;
        let service = &stack.services[index];
        let Some(mut spec) = self.template(index) else { return };
        for number in self.surroundings.numbers.of(service) {
            spec.id.number = number;
            if let Program::Container(container) = &mut spec.program {
                container.name = container_name(&stack.project, service, number);
            }
            spec.address = self.addresses[index].instance(number);
            spec.mounts = self.mounts(service, &spec.id, &spec.program);
            instances.push(CompiledInstance { fingerprint: spec.fingerprint(), spec: spec.clone() });
        }
    }

    /// What its instances need and the file doesn't say in so many words; or findings about why that can't be had.
    fn needs(&mut self, index: usize) -> Option<Needs> {
        let service = &self.stack.services[index];
        if self.surroundings.numbers.of(service).is_empty() {
            return None;
        }
        self.refuse_unguarded(service);
        let program = self.program(service)?;
        if service.replicas > 1
            && let Some(publish) = service.publish.iter().find(|publish| publish.value.container.proto == Proto::Udp)
        {
            let message = format!(
                "it publishes port {}/udp and has {} replicas, but only TCP ports of the host can be shared",
                publish.value.host_port, service.replicas
            );
            self.findings.push(Finding::error("published-replicas", &service.name, message).at(&publish.place));
        }
        let links = self.links(index);
        let files = service.files.iter().map(|file| self.file(service, &file.value, &file.place)).collect();
        self.check_limits(service);
        Some(Needs { program, links, files })
    }

    /// What all instances of a service have in common: everything but number, address and mounts.
    fn template(&mut self, index: usize) -> Option<InstanceSpec> {
        let Needs { program, links, files } = self.needs(index)?;
        let hosts = self.hosts(index, links);
        let service = &self.stack.services[index];
        let own = program.process().is_some_and(|process| process.own);
        Some(InstanceSpec {
            project: self.stack.project.clone(),
            id: InstanceId { service: service.name.clone(), number: 1 },
            address: self.addresses[index].instance(1),
            program,
            environment: service.environment.clone(),
            hosts,
            mounts: Vec::new(),
            limits: service.limits.clone(),
            stop_signal: service.stop_signal.clone(),
            stop_grace_ms: service.stop_grace_ms,
            restart: service.restart,
            healthcheck: service.healthcheck.clone(),
            log: service.log,
            cap_add: service.cap_add.clone(),
            cap_drop: service.cap_drop.clone(),
            read_only: service.read_only,
            files,
            settings: service.settings.clone(),
            published: binds(service).into_iter().filter(is_fixed).collect(),
            own_program: own.then(|| self.surroundings.own.map(|places| places.program.clone())).flatten(),
        })
    }

    /// What the file mounts, and what the image asks for at other places.
    fn mounts(&self, service: &Service, id: &InstanceId, program: &Program) -> Vec<InstanceMount> {
        let written = service.mounts.iter().map(|mount| self.mount(service, id.number, &mount.value, program));
        let image = image::image_of(self.stack, service, self.surroundings.engine);
        let asked = image.into_iter().flat_map(|image| image::uncovered_volumes(service, image));
        let asked = asked.map(|target| InstanceMount {
            source: InstanceMountSource::EngineVolume {
                name: image::volume_name(&self.stack.project, id, target),
                nocopy: false,
            },
            target: target.to_owned(),
            read_only: false,
        });
        let places = self.surroundings.own.into_iter();
        let own = places.flat_map(|places| edge::mounts(&service.name, id.number, &places.edge));
        written.chain(asked).chain(own).collect()
    }

    /// A mount of one instance, with its source settled.
    fn mount(&self, service: &Service, number: u8, mount: &Mount, program: &Program) -> InstanceMount {
        let source = match &mount.source {
            MountSource::Bind(path) => InstanceMountSource::Path(path.clone()),
            MountSource::Tmpfs { size_bytes, mode } => {
                InstanceMountSource::Tmpfs { size_bytes: *size_bytes, mode: *mode }
            }
            MountSource::Volume(_) | MountSource::Anonymous { .. } => {
                let key = mount.volume_key(&service.name, number).unwrap_or_default();
                self.volume(&key, mount.nocopy, program)
            }
        };
        InstanceMount { source, target: mount.target.clone(), read_only: mount.read_only }
    }

    fn volume(&self, key: &str, nocopy: bool, program: &Program) -> InstanceMountSource {
        match (self.stack.volume_name(key), program) {
            (VolumeName::Engine(name), Program::Container(_)) => InstanceMountSource::EngineVolume { name, nocopy },
            // A process next to containers uses the folder that the engine keeps the volume in.
            (VolumeName::Engine(name), Program::Process(_)) => {
                let folder = self.surroundings.engine.seen().map(|engine| engine.volumes_folder.clone());
                InstanceMountSource::Path(folder.unwrap_or_default().join(name).join("_data"))
            }
            _ => {
                let unknown = Volume::default();
                let volume = self.stack.volumes.get(key).unwrap_or(&unknown);
                InstanceMountSource::Volume((self.surroundings.volume_path)(key, volume))
            }
        }
    }
}

/// What the container of an instance is called: as Compose calls it, so that people and tools find it.
fn container_name(project: &ProjectName, service: &Service, number: u8) -> String {
    let own = service.run.container.as_ref().and_then(|container| container.name.clone());
    own.unwrap_or_else(|| format!("{project}-{}-{number}", service.name))
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
fn is_fixed(bind: &BindRule) -> bool {
    bind.container.proto == Proto::Udp && bind.published.is_some()
}

/// One rule for each published place and one for each port that is only exposed.
fn binds(service: &Service) -> Vec<BindRule> {
    let published = service.publish.iter().map(|publish| BindRule {
        container: publish.value.container,
        published: Some(PublishedAt { host_ip: publish.value.host_ip, host_port: publish.value.host_port }),
    });
    let published: Vec<_> = published.collect();
    let private = ports_of(service).filter(|port| !published.iter().any(|rule| rule.container == *port));
    let private: Vec<_> = private.map(|container| BindRule { container, published: None }).collect();
    published.into_iter().chain(private).collect()
}

#[cfg(test)]
mod tests;
