//! From a stack and the addresses of its services to what the guard and the runtime are given.
//!
//! Whether any of it is already so on the host is the planner's question.

mod reach;
mod specs;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;

use self::reach::Holders;
use crate::address::{AddressBook, ServiceAddress};
use crate::digest::{Fingerprint, digest_of};
use crate::finding::Finding;
use crate::instance::{Hosts, InstanceSpec, OwnProgram};
use crate::names::ServiceName;
use crate::observed::{EngineState, FileSeen};
use crate::policy::{Mode, NETWORKS_MAX, PLACES_MAX, Policy};
use crate::stack::{PortProto, Proto, Service, Stack, Volume};

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
}

#[cfg(test)]
mod tests;
