//! Reads the host into [`Observed`]: what is asked of the kernel, of the agent and of our own files.
//!
//! What it means is decided in `palisade_core`. What can't be read is listed as unknown and assumed to be nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use palisade_core::action::VolumeName;
use palisade_core::address::InstanceAddress;
use palisade_core::compile::OwnPlaces;
use palisade_core::digest::digest_of;
use palisade_core::firewall::{Backend, FirewallRules};
use palisade_core::instance::CgroupDriver;
use palisade_core::names::{InstanceId, ProjectName};
use palisade_core::observed::{
    AgentSeen, FileSeen, FirewallSeen, GuardSeen, InstanceSeen, KernelFacts, Observed, SocketOwner, SocketSeen,
};
use palisade_core::policy::ServicePolicy;
use palisade_core::stack::{FileSource, Proto, Stack};
use palisade_guard::{Guard, GuardError};
use palisade_host::cgroup::{Cgroup, Mounts};
use palisade_host::engine;
use palisade_host::firewall::pending::Book;
use palisade_host::firewall::{self, Firewall, Ufw, boot};
use palisade_host::layout::Layout;
use palisade_host::session::{self, Connection};
use palisade_host::sockets::{self, SocketProto, Which};
use palisade_host::{program, provided, volumes};

use crate::agent;
use crate::state::{Applied, State, read_json};

/// Where the guard of a stack is pinned.
pub(crate) fn pins(layout: &Layout) -> PathBuf {
    palisade_guard::pin_root(&layout.realm, &layout.realm_run()).join(layout.project.as_str())
}

/// Reads everything that can be read, the files that secrets and configs of this stack come from, and what the container
/// engine has of it.
pub(crate) fn observe_for(layout: &Layout, stack: &Stack) -> Observed {
    let mut host = observe(layout);
    if stack.edge.is_some() {
        match program::own(layout) {
            Ok(program) => host.own = Some(OwnPlaces { program, edge: layout.edge() }),
            Err(error) => host.unknown.push(format!("which version of Palisade this is: {error}")),
        }
    }
    host.engine = engine::look(layout, stack, std::env::var("DOCKER_HOST").ok().as_deref());
    name_replaced(&mut host);
    if host.firewall_runs == Backend::Ufw {
        let ufw = Ufw::read();
        let rules = FirewallRules::of(stack, &host.ssh_ports, Backend::Ufw);
        let doors = rules.iter().flat_map(FirewallRules::doors);
        host.shut_by_ufw = doors.filter(|door| !ufw.lets_in(door)).collect();
    }
    let files = stack.services.iter().flat_map(|service| &service.files);
    for file in files {
        if let FileSource::Path(path) = &file.value.source
            && !host.files.contains_key(path)
        {
            let seen = provided::look_at(path);
            if seen == FileSeen::NotForUs {
                host.unknown.push(format!("what {} holds: only root can read it", path.display()));
            }
            host.files.insert(path.clone(), seen);
        }
    }
    host
}

/// What is held by containers that the stack takes the place of, or by the engine's proxies for them, is in nobody's way.
fn name_replaced(host: &mut Observed) {
    let Some(engine) = host.engine.seen() else { return };
    for socket in &mut host.sockets {
        let SocketOwner::Process { pid, command } = &socket.owner else { continue };
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let holder = engine.foreign.iter().find(|container| {
            let proxied = command == "docker-proxy" && container.ports.contains(&socket.local.port());
            proxied || (!container.id.is_empty() && cgroups.contains(&container.id))
        });
        if let Some(container) = holder {
            socket.owner = SocketOwner::Replaced(container.name.clone());
        }
    }
}

/// Reads everything that can be read without knowing the stack's file.
pub(crate) fn observe(layout: &Layout) -> Observed {
    let mut observer = Observer { layout, host: Observed::default() };
    let state = observer.state();
    observer.instances();
    observer.guard(&state);
    observer.firewall();
    observer.sockets();
    observer.network();
    observer.kernel();
    observer.host.volumes = folders(&layout.lib().join("volumes")).collect();
    observer.host.named_volumes = volumes::names(layout);
    observer.host.made_volumes = volumes::made(layout);
    observer.host
}

struct Observer<'a> {
    layout: &'a Layout,
    host: Observed,
}

impl Observer<'_> {
    fn unknown(&mut self, what: &str, why: impl std::fmt::Display) {
        self.host.unknown.push(format!("{what}: {why}"));
    }

    fn state(&mut self) -> State {
        let state = match State::read(self.layout) {
            Ok(state) => state,
            Err(error) if error.is_permission() => {
                self.unknown("what was applied before", "only root can read it");
                State::default()
            }
            Err(error) => {
                self.unknown("what was applied before", error);
                State::default()
            }
        };
        self.host.addresses = state.addresses.clone();
        for project in folders(&self.layout.realm_run()) {
            let Ok(project) = ProjectName::parse(project) else { continue };
            if project == self.layout.project {
                continue;
            }
            let other = Layout { project, ..self.layout.clone() };
            match State::read(&other) {
                Ok(state) => {
                    self.host.taken.extend(state.addresses.iter().map(|(_, index)| index));
                    let volumes = state.stack.iter().flat_map(|stack| &stack.volumes);
                    self.host.volumes_of_others.extend(volumes.filter_map(|(key, volume)| {
                        match volume.named(&other.project, key) {
                            VolumeName::Named(name) => Some(name),
                            VolumeName::Own(_) | VolumeName::Engine(_) => None,
                        }
                    }));
                }
                Err(error) => {
                    let what = format!("addresses of stack {}", other.project);
                    self.unknown(&what, error);
                }
            }
        }
        state
    }

    fn instances(&mut self) {
        match agent::seen(self.layout) {
            Ok((agent, instances)) => {
                self.host.agent = agent.map(|agent| {
                    // What this is can't be read: then nothing says that it is another version.
                    let own = program::own_digest().ok();
                    AgentSeen { pid: agent.pid, other_version: own.is_some() && own != agent.program }
                });
                self.host.instances = instances
                    .into_iter()
                    .map(|status| {
                        let path = self.layout.instance(&status.id).join("applied.json");
                        let applied = read_json::<Applied>(&path).ok().flatten();
                        let applied = applied.filter(|applied| applied.fingerprint.digest == status.spec_digest);
                        let (fingerprint, hosts_digest) =
                            applied.map(|applied| (applied.fingerprint, applied.hosts_digest)).unzip();
                        InstanceSeen { status, fingerprint, hosts_digest }
                    })
                    .collect();
            }
            Err(error) => self.unknown("instances", error),
        }
    }

    fn guard(&mut self, state: &State) {
        let guard = match Guard::open(&pins(self.layout)) {
            Ok(Some(guard)) => guard,
            Ok(None) => return,
            Err(error) => return self.unknown("the guard", error),
        };
        let mut seen = GuardSeen::default();
        if let Some(policy) = &state.policy {
            match guard.has_policy(policy) {
                Ok(true) => {
                    seen.policy_digest = Some(digest_of(policy));
                    seen.policy = Some(policy.clone());
                    seen.serving = policy.services.iter().flat_map(|service| &service.backends).copied().collect();
                }
                // Some policy, and not the one that was set: anything but a digest of ours says so.
                Ok(false) => seen.policy_digest = Some(String::new()),
                Err(error) => self.unknown("the policy in the kernel", error),
            }
        }
        for (id, cgroups) in instance_cgroups(self.layout) {
            match cgroups.iter().map(|cgroup| address_in(&guard, cgroup)).collect::<Result<Vec<_>, _>>() {
                // Wherever a process of it may be, the guard must be.
                Ok(addresses) => match addresses[..] {
                    [Some(address), ref others @ ..] if others.iter().all(|other| *other == Some(address)) => {
                        if cgroups.iter().any(|cgroup| cgroup.driver() == CgroupDriver::Systemd) {
                            seen.in_slices.insert(id.clone());
                        }
                        seen.attached.insert(id, address);
                    }
                    _ => {}
                },
                Err(error) => self.unknown(&format!("whether {id} is guarded"), error),
            }
        }
        self.host.kernel.unix_hooks = Some(guard.guards_abstract_unix());
        self.host.guard = Some(seen);
    }

    fn firewall(&mut self) {
        self.host.firewall_runs = firewall::runs();
        if !nix::unistd::geteuid().is_root() {
            return self.unknown("the firewall", "only root can read it");
        }
        self.host.firewall_at_boot = boot::fault(&self.layout.realm);
        let firewall = Firewall::new(&self.layout.realm);
        match firewall::foreign_chains(&firewall) {
            Ok(chains) => {
                let decisive = chains.iter().filter(|chain| chain.drops_by_default && chain.hook == "input");
                self.host.foreign_drops =
                    decisive.map(|chain| format!("{} {} {}", chain.family, chain.table, chain.chain)).collect();
            }
            Err(error) => self.unknown("what other tables of the firewall drop", crate::exit::chain(&error)),
        }
        match firewall.current() {
            Ok(Some(current)) => {
                let sound = firewall.is_sound(&current).unwrap_or_else(|error| {
                    self.unknown(
                        "whether the host's own firewall lets in what is published",
                        crate::exit::chain(&error),
                    );
                    true
                });
                let rules = current.stacks.get(self.layout.project.as_str());
                self.host.firewall_of_all = Some(current.stacks.clone());
                self.host.firewall = rules.map(|rules| FirewallSeen { digest: sound.then(|| rules.digest()) });
            }
            Ok(None) => {}
            Err(error) => self.unknown("the firewall", crate::exit::chain(&error)),
        }
    }

    fn sockets(&mut self) {
        let listed = match sockets::list(Which::Listening) {
            Ok(listed) => listed,
            Err(error) => return self.unknown("sockets", error),
        };
        let holders = sockets::holders();
        let cgroups = cgroup_owners(self.layout);
        self.ports_of_other_stacks();
        let mut nameless = 0;
        for socket in listed {
            let proto = match socket.proto {
                SocketProto::Tcp => Proto::Tcp,
                SocketProto::Udp | SocketProto::UdpLite => Proto::Udp,
                SocketProto::Raw => continue,
            };
            let by_cgroup = socket.cgroup_id.and_then(|id| cgroups.get(&id)).cloned();
            let holder = holders.get(&socket.inode).and_then(|holders| holders.first());
            let owner = by_cgroup.unwrap_or_else(|| match holder {
                Some(holder) => SocketOwner::Process { pid: holder.pid, command: holder.comm.clone() },
                None => {
                    nameless += 1;
                    SocketOwner::Unknown
                }
            });
            self.host.sockets.push(SocketSeen {
                proto,
                local: socket.local,
                v6_only: socket.v6_only == Some(true),
                uid: socket.uid,
                inode: u64::from(socket.inode),
                owner,
            });
        }
        if nameless > 0 && !nix::unistd::geteuid().is_root() {
            self.unknown("who has some of the sockets", "only root can read it");
        }
        let session = session::own().connection.filter(Connection::is_here);
        self.host.operator = session.as_ref().map(|connection| connection.client);
        self.host.confirmed = Book::of(&self.layout.realm).confirmed();
        match sockets::ssh_ports(session.as_ref().map(|connection| connection.text.as_str())) {
            Ok(ports) => self.host.ssh_ports = ports,
            Err(error) => self.unknown("where sshd listens", error),
        }
    }

    /// No socket is bound to a published TCP port: the guard of its stack leads what arrives there to the instances.
    fn ports_of_other_stacks(&mut self) {
        let others = stacks_of(self.layout).into_iter().filter(|layout| layout.project != self.layout.project);
        for layout in others {
            let policy = match State::read(&layout) {
                Ok(state) => state.policy,
                Err(error) => {
                    self.unknown(&format!("the published ports of {}", layout.project), error);
                    continue;
                }
            };
            for service in policy.iter().flat_map(|policy| &policy.services) {
                for (local, of_one_address) in led_to(service) {
                    self.host.sockets.push(SocketSeen {
                        proto: Proto::Tcp,
                        local,
                        v6_only: of_one_address,
                        uid: 0,
                        inode: 0,
                        owner: SocketOwner::OtherStack(format!("{}/{}", layout.project, service.name)),
                    });
                }
            }
        }
    }

    fn network(&mut self) {
        match fs::read_to_string("/etc/resolv.conf") {
            Ok(text) => self.host.resolvers = resolvers(&text),
            Err(error) => self.unknown("the host's name servers", error),
        }
        match host_addresses() {
            Ok(addresses) => self.host.host_addresses = addresses,
            Err(error) => self.unknown("the host's addresses", error),
        }
    }

    fn kernel(&mut self) {
        let release = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_else(|_| "unknown".to_owned());
        let mounts = Mounts::find().ok();
        let conf = Path::new("/proc/sys/net/ipv4/conf");
        let is_on = |interface: &String| {
            fs::read_to_string(conf.join(interface).join("route_localnet")).is_ok_and(|value| value.trim() == "1")
        };
        let unix_hooks = self.host.kernel.unix_hooks.or_else(|| Some(release_number(&release)? >= (6, 7)));
        self.host.kernel = KernelFacts {
            unix_hooks,
            release,
            cgroup2: mounts.map(|mounts| mounts.v2.display().to_string()),
            route_localnet: folders(conf).filter(is_on).collect(),
        };
    }
}

/// Addresses of the host's interfaces, without loopback; with broadcast addresses, which the host hears too.
pub(crate) fn host_addresses() -> io::Result<Vec<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?.flat_map(|interface| {
        let broadcast = interface.broadcast.and_then(|address| Some(IpAddr::V4(address.as_sockaddr_in()?.ip())));
        let own = interface.address.and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        });
        [own, broadcast].into_iter().flatten()
    });
    let addresses: BTreeSet<IpAddr> = addresses.filter(|address| !address.is_loopback()).collect();
    Ok(addresses.into_iter().collect())
}

/// `nameserver` lines.
fn resolvers(text: &str) -> Vec<IpAddr> {
    let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let servers = words.filter_map(|words| match words[..] {
        // An address may carry the interface that it belongs to.
        ["nameserver", server, ..] => server.split('%').next()?.parse().ok(),
        _ => None,
    });
    servers.collect()
}

fn release_number(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Names of the folders in a folder; none if it can't be read.
fn folders(path: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
}

/// Cgroups of the stack's instances that are there.
fn instance_cgroups(layout: &Layout) -> BTreeMap<InstanceId, Vec<Cgroup>> {
    let mut found: BTreeMap<InstanceId, Vec<Cgroup>> = BTreeMap::new();
    for stack in Cgroup::all_of_stack(layout).into_iter().flatten() {
        for (name, _) in stack.children() {
            let Some(id) = InstanceId::parse(&name) else { continue };
            let cgroup = Cgroup::made_by(layout, &id, stack.driver());
            found.entry(id).or_default().extend(cgroup);
        }
    }
    found
}

/// Who the kernel thinks the cgroup is, if it has the whole guard.
fn address_in(guard: &Guard, cgroup: &Cgroup) -> Result<Option<InstanceAddress>, GuardError> {
    let path = cgroup.v2_path();
    if !cgroup.is_guardable() || !guard.missing_hooks(&path)?.is_empty() {
        return Ok(None);
    }
    Ok(guard.identity(&path)?.and_then(InstanceAddress::from_ip))
}

/// Who owns the sockets of a cgroup, by the cgroup's id, for all cgroups of the realm and those below.
fn cgroup_owners(layout: &Layout) -> HashMap<u64, SocketOwner> {
    let mut owners = HashMap::new();
    let realms = Cgroup::all_of_realm(layout).into_iter().flatten();
    let projects = realms.flat_map(|realm| realm.children()).filter_map(|(name, _)| ProjectName::parse(name).ok());
    for project in projects.collect::<BTreeSet<_>>() {
        let stack = Layout { project, ..layout.clone() };
        for (name, path) in Cgroup::all_of_stack(&stack).into_iter().flatten().flat_map(|cgroup| cgroup.children()) {
            let Some(id) = InstanceId::parse(&name) else { continue };
            let owner = if stack.project == layout.project {
                SocketOwner::Instance(id)
            } else {
                SocketOwner::OtherStack(format!("{}/{id}", stack.project))
            };
            add_below(&path, &owner, &mut owners);
        }
    }
    owners
}

/// Names of all instances of the realm, `stack/service.1`, by the ids of their cgroups and of those below.
pub(crate) fn instance_names(layout: &Layout) -> HashMap<u64, String> {
    let named = cgroup_owners(layout).into_iter().filter_map(|(cgroup, owner)| match owner {
        SocketOwner::Instance(id) => Some((cgroup, format!("{}/{id}", layout.project))),
        SocketOwner::OtherStack(name) => Some((cgroup, name)),
        SocketOwner::Process { .. } | SocketOwner::Replaced(_) | SocketOwner::Unknown => None,
    });
    named.collect()
}

/// Published TCP ports that the guard leads to the service, and whether the file names an address for each.
pub(crate) fn led_to(service: &ServicePolicy) -> impl Iterator<Item = (SocketAddr, bool)> {
    let tcp = service.binds.iter().filter(|bind| bind.container.proto == Proto::Tcp);
    tcp.filter_map(|bind| bind.published).map(|at| {
        let everywhere = IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED);
        (SocketAddr::new(at.host_ip.unwrap_or(everywhere), at.host_port), at.host_ip.is_some())
    })
}

/// Where the things of each stack of the realm are, as far as one is up.
pub(crate) fn stacks_of(layout: &Layout) -> Vec<Layout> {
    let run = layout.realm_run();
    let names = folders(&run).filter_map(|name| ProjectName::parse(&name).ok());
    names.map(|project| Layout { project, ..layout.clone() }).collect()
}

/// Ids of an instance's cgroup and of those below it.
pub(crate) fn cgroups_of(layout: &Layout, id: &InstanceId) -> HashSet<u64> {
    let mut owners = HashMap::new();
    for cgroup in Cgroup::all_of_instance(layout, id).into_iter().flatten() {
        add_below(&cgroup.v2_path(), &SocketOwner::Instance(id.clone()), &mut owners);
    }
    owners.into_keys().collect()
}

fn add_below(path: &Path, owner: &SocketOwner, owners: &mut HashMap<u64, SocketOwner>) {
    if let Ok(metadata) = fs::metadata(path) {
        owners.insert(metadata.ino(), owner.clone());
    }
    for child in folders(path) {
        add_below(&path.join(child), owner, owners);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_glibc_does() {
        let text = "# nameserver 192.0.2.9\nsearch example\nnameserver 127.0.0.53\nnameserver fe80::1%eth0\n  nameserver\t2001:db8::53 \n";
        let expected: Vec<IpAddr> = ["127.0.0.53", "fe80::1", "2001:db8::53"].map(|ip| ip.parse().unwrap()).to_vec();
        assert_eq!(resolvers(text), expected);
    }

    #[test]
    fn kernel_releases_are_compared_by_number() {
        assert_eq!(release_number("6.18.0-rc1"), Some((6, 18)));
        assert_eq!(release_number("5.15.0-91-generic"), Some((5, 15)));
        assert_eq!(release_number("unknown"), None);
    }
}
