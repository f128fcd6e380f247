//! The scene of a rehearsal: a scratch "host" and an "internet" in network namespaces, and everything of ours below
//! names that no other run has.
//!
//! What is played there is `rehearse`'s business. Whatever happens, it is cleared: at the end, after a failure, and by
//! the next rehearsal after a SIGKILL.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use palisade_core::names::ProjectName;
use palisade_guard::{Guard, pin_root, pinned_stacks, unmount_bpffs};
use palisade_host::cgroup::{Cgroup, Mounts};
use palisade_host::layout::Layout;
use palisade_host::link::{self, LinkError, VethEnd};
use palisade_host::netns::{self, Entered, Netns, NetnsError};

use crate::exit::Failure;

const PREFIX: &str = "palisade-rehearse";
/// The interface of the scratch host that leads outside.
pub(crate) const INTERFACE: &str = "eth0";
/// The scratch host's addresses; documentation networks of RFC 5737 and RFC 3849.
pub(crate) const HOST: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];
/// The stranger's addresses.
pub(crate) const STRANGER: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 2)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
];

/// Namespaces and names of one rehearsal; cleared when dropped. The calling thread is on the scratch host.
pub(crate) struct Scene {
    /// Where everything of the stack is.
    pub layout: Layout,
    /// The stranger's namespace.
    pub internet: Netns,
    host: Option<Netns>,
    entered: Option<Entered>,
}

impl Scene {
    /// Clears what dead rehearsals left, and builds a new scene.
    pub(crate) fn build(project: ProjectName) -> Result<Self, Failure> {
        clear_leftovers();
        let layout = Layout { realm: format!("{PREFIX}-{}", std::process::id()), project };
        let failed = |error: NetnsError| Failure::new("can't build the scratch host", error);
        let host = Netns::create(&netns::owned_name(PREFIX, "host")).map_err(failed)?;
        let internet = match Netns::create(&netns::owned_name(PREFIX, "internet")) {
            Ok(internet) => internet,
            Err(error) => {
                // The first failure is the one to tell.
                let _ = host.remove();
                return Err(failed(error));
            }
        };
        let mut scene = Self { layout, internet, host: Some(host), entered: None };
        scene.connect().map_err(|error| Failure::new("can't build the scratch host", error))?;
        Ok(scene)
    }

    fn connect(&mut self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let Some(host) = &self.host else { return Ok(()) };
        connect(host, &self.internet)?;
        self.entered = Some(host.enter()?);
        Ok(())
    }

    /// Where the scratch host's namespace can be opened.
    pub(crate) fn host_path(&self) -> PathBuf {
        Path::new("/run/netns").join(netns::owned_name(PREFIX, "host"))
    }
    /// Where the internet's namespace can be opened.
    pub(crate) fn internet_path(&self) -> PathBuf {
        Path::new("/run/netns").join(netns::owned_name(PREFIX, "internet"))
    }

    /// Takes everything away and says what could not be.
    pub(crate) fn clear(mut self) -> Vec<String> {
        self.clear_now()
    }

    fn clear_now(&mut self) -> Vec<String> {
        let mut left = clear_realm(&self.layout.realm);
        self.entered = None;
        if let Some(host) = self.host.take() {
            left.extend(host.remove().err().map(|error| error.to_string()));
            let internet = self.internet.try_clone().and_then(Netns::remove);
            left.extend(internet.err().map(|error| error.to_string()));
        }
        left
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for left in self.clear_now() {
            eprintln!("left behind: {left}");
        }
    }
}

/// Two namespaces, a wire between them, and a way to each other.
pub(crate) fn connect(host: &Netns, internet: &Netns) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    link::add_veth(
        VethEnd { netns: host, name: INTERFACE, index: None, mac: None },
        VethEnd { netns: internet, name: INTERFACE, index: None, mac: None },
    )?;
    for (netns, own, other) in [(host, HOST, STRANGER), (internet, STRANGER, HOST)] {
        netns.run(|| -> Result<(), LinkError> {
            link::set_up("lo", false)?;
            link::set_up(INTERFACE, false)?;
            for (ip, prefix_len) in own.iter().zip([24, 64]) {
                link::add_address(INTERFACE, *ip, prefix_len)?;
            }
            // A default route, so that a private address is asked for on the wire instead of being unreachable.
            for gateway in other {
                link::add_route(INTERFACE, None, Some(gateway), gateway.is_ipv6())?;
            }
            Ok(())
        })??;
    }
    Ok(())
}

/// Removes everything that a realm has outside its network namespaces. What isn't there is fine.
fn clear_realm(realm: &str) -> Vec<String> {
    let mut left = Vec::new();
    let mut tell = |what: &str, result: Result<(), Box<dyn std::error::Error>>| {
        left.extend(result.err().map(|error| format!("{what} of {realm}: {}", crate::exit::chain(&*error))));
    };
    let Ok(any_project) = ProjectName::parse("any") else { return left };
    let layout = Layout { realm: realm.to_owned(), project: any_project };
    // Processes first: agents and instances alike are in the realm's cgroup.
    let removed = Cgroup::all_of_realm(&layout).and_then(|all| all.iter().try_for_each(Cgroup::remove));
    tell("cgroups", removed.map_err(Into::into));
    let pins = pin_root(realm, &layout.realm_run());
    if pins.exists() {
        for stack in pinned_stacks(&pins) {
            tell("pins", Guard::remove(&stack).map_err(Into::into));
        }
        tell("bpffs", unmount_bpffs(&pins).map_err(Into::into));
    }
    for folder in ["/run", "/var/lib", "/var/log"] {
        let path = Path::new(folder).join(realm);
        let removed = match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        tell(&path.display().to_string(), removed.map_err(Into::into));
    }
    // The lock of the firewall stands beside the folder, as the table outlives single stacks.
    let lock = format!("/run/{realm}-firewall.lock");
    if Path::new(&lock).exists() {
        tell(&lock, fs::remove_file(&lock).map_err(Into::into));
    }
    left
}

/// Clears rehearsals whose process is gone. Failing at it is told and stops nothing.
fn clear_leftovers() {
    for pid in rehearsals_with_leftovers().into_iter().filter(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
        eprintln!("clearing what rehearsal {pid} left behind");
        clear_realm(&format!("{PREFIX}-{pid}")).iter().for_each(|left| eprintln!("left behind: {left}"));
    }
    if let Err(error) = netns::remove_leftovers(PREFIX) {
        eprintln!("left behind: {error}");
    }
}

/// The processes of all rehearsals that have something outside of network namespaces, be it only a cgroup or a lock:
/// one that was killed while it cleared has lost any part of it.
fn rehearsals_with_leftovers() -> BTreeSet<i32> {
    let mounts = Mounts::find().ok();
    let cgroups = mounts.iter().flat_map(Mounts::paths);
    ["/run", "/var/lib", "/var/log", "/sys/fs/bpf"]
        .into_iter()
        .map(Path::new)
        .chain(cgroups)
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten())
        .filter_map(|entry| owner(entry.file_name().to_str()?))
        .collect()
}

/// The process of the rehearsal that a realm, or a file beside its folder, is named after.
fn owner(name: &str) -> Option<i32> {
    name.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::owner;

    #[test]
    fn leftovers_tell_whose_they_are() {
        assert_eq!(owner("palisade-rehearse-17"), Some(17));
        assert_eq!(owner("palisade-rehearse-17-firewall.lock"), Some(17));
        assert_eq!([owner("palisade"), owner("palisade-rehearse"), owner("palisade-rehearse-mine")], [None; 3]);
    }
}
