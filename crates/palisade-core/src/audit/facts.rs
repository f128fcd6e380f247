//! What an audit knows about a host, as it was seen.
//!
//! Nothing in here is judged. Who reads it from the kernel, from files and from daemons is the host crate's business;
//! what could not be read is listed in [`Facts::unknown`], and nothing is assumed about it.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::port_set::PortSet;
use crate::prove::{Door, Family};
use crate::stack::Proto;

/// Everything that was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// The host's name.
    pub host: String,
    /// `6.18.0`, as the kernel tells it.
    pub kernel: String,
    /// Sockets that take packets from anybody, and doors that the guard leads to a service.
    pub listeners: Vec<Listener>,
    /// Sockets that hear what isn't for them, or send what they like.
    pub raw: Vec<RawSocket>,
    /// Abstract unix sockets: any process of the network namespace may connect, whatever its user or file system.
    pub abstract_sockets: Vec<AbstractSocket>,
    /// Who might ask, and which doors the firewall leaves open for them.
    pub worlds: Vec<World>,
    /// Kernel settings by their names with dots: `net.ipv4.ip_forward`.
    pub settings: BTreeMap<String, String>,
    /// Addresses of the loopback interface besides 127/8 and ::1.
    pub loopback_addresses: Vec<IpAddr>,
    /// Firewall services that are installed.
    pub firewalls: Vec<FirewallService>,
    /// The container engine, if one is installed.
    pub engine: Option<EngineFacts>,
    /// PostgreSQL servers that run.
    pub postgres: Vec<PostgresFacts>,
    /// sshd's settings in force, by their names in lower case; `None` when sshd isn't installed or can't say.
    pub sshd: Option<BTreeMap<String, String>>,
    /// Why a reboot is due, if it is.
    pub reboot: Option<String>,
    /// What could not be read, and why.
    pub unknown: Vec<String>,
}

/// A socket that takes connections or datagrams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listener {
    /// Protocol.
    pub proto: Proto,
    /// Where it is bound.
    pub local: SocketAddr,
    /// An IPv6 socket that takes no IPv4.
    pub v6_only: bool,
    /// The interface that it is bound to, if it is.
    pub interface: Option<String>,
    /// Whose it is.
    pub owner: Owner,
}

impl Listener {
    /// It takes packets that come for this address of the host.
    pub fn takes(&self, target: IpAddr) -> bool {
        let bound = self.local.ip().to_canonical();
        if !bound.is_unspecified() {
            return bound == target.to_canonical();
        }
        match (bound.is_ipv6(), target.is_ipv6()) {
            (true, true) => true,
            (true, false) => !self.v6_only,
            (false, ipv6) => !ipv6,
        }
    }

    /// It is bound to every address of a family.
    pub fn is_wide(&self) -> bool {
        self.local.ip().to_canonical().is_unspecified()
    }
}

/// Whose something is, as far as it could be found out.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Owner {
    /// `stack/service.1`: an instance of Palisade's.
    pub instance: Option<String>,
    /// Name of the engine's container.
    pub container: Option<String>,
    /// `postgresql@15-main.service`.
    pub unit: Option<String>,
    /// Its process; none when the kernel itself listens.
    pub process: Option<Process>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Its short name. Whoever runs it chooses it: it may hold anything.
    pub name: String,
}

impl Owner {
    /// The name of its program, by which it is known.
    pub fn program(&self) -> &str {
        self.process.as_ref().map_or("", |process| process.name.as_str())
    }
}

/// Without process ids, so that it is the same tomorrow.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.process.as_ref().map(|process| printable(&process.name));
        match (&self.instance, &self.container, &self.unit, name) {
            (Some(instance), ..) => write!(f, "service {instance}"),
            (None, Some(container), _, Some(name)) => write!(f, "{name} in container {}", printable(container)),
            (None, Some(container), _, None) => write!(f, "container {}", printable(container)),
            (None, None, Some(unit), Some(name)) => write!(f, "{name} ({})", printable(unit)),
            (None, None, Some(unit), None) => f.write_str(&printable(unit)),
            (None, None, None, Some(name)) => f.write_str(&name),
            (None, None, None, None) => f.write_str("the kernel, or a process that can't be seen"),
        }
    }
}

/// What somebody else has named, without what could move a terminal's cursor or look like another line.
pub fn printable(text: &str) -> String {
    let harmless = |c: char| {
        !c.is_control() && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().flat_map(|c| if harmless(c) { vec![c] } else { c.escape_unicode().collect() }).collect()
}

/// A socket that hears or sends whole packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RawSocket {
    /// `AF_PACKET on eth0`, `raw IPv4, protocol 1`.
    pub what: String,
    /// Whose it is.
    pub owner: Owner,
}

/// A listening unix socket that lives in no file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AbstractSocket {
    /// Without the leading zero byte.
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
}

/// Somebody who might ask, and what the firewall lets through for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct World {
    /// `the internet`, `the network on eth1`, `198.51.100.0/24`.
    pub name: String,
    /// Who that is.
    pub kind: WorldKind,
    /// The interface that their packets come in by.
    pub interface: String,
    /// Who was taken to ask, by IPv4 and by IPv6, as far as it has them.
    pub sources: [Option<IpAddr>; 2],
    /// What got through, by address of the host and by protocol.
    pub doors: Vec<Doors>,
    /// The rule that let packets through to ports where somebody listens, as far as it was asked.
    #[serde(skip)]
    pub rules: BTreeMap<Door, String>,
    /// Packets that were sent to find out.
    pub packets: u64,
}

/// How far away somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorldKind {
    /// Anybody.
    Internet,
    /// Whoever was asked about.
    Given,
    /// Those on a network of the host's own.
    Network,
}

/// What got through to one address of the host by one protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Doors {
    /// The host's address.
    pub target: IpAddr,
    /// Protocol.
    pub proto: Proto,
    /// Ports whose packets get to a local process, if one listens.
    pub local: PortSet,
    /// Outside ports and the local ports that they are rewritten to.
    pub redirected: BTreeSet<(u16, u16)>,
    /// Outside ports that are passed on to another address, as an engine's published ports are.
    pub forwarded: PortSet,
}

impl Doors {
    /// IPv4 or IPv6.
    pub fn family(&self) -> Family {
        if self.target.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// A program that keeps a firewall.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FirewallService {
    /// `firewalld`, `ufw`, `nftables`, `iptables`.
    pub name: String,
    /// It is at work now: it runs, or its rules are loaded.
    pub active: bool,
    /// It comes back at the next boot; `None`: not known.
    pub at_boot: Option<bool>,
    /// What differs between its files and what is in force, if that could be compared.
    pub differences: Vec<String>,
}

/// A container engine and its containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EngineFacts {
    /// `Docker 20.10.24`.
    pub version: String,
    /// Options of its daemon, from its file or its command line, with where they stand.
    pub options: Vec<EngineOption>,
    /// It speaks TLS and asks for certificates where it listens on TCP.
    pub verifies_tls: bool,
    /// Containers that run.
    pub containers: Vec<ContainerFacts>,
}

/// An option of an engine's daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EngineOption {
    /// `iptables`.
    pub key: String,
    /// As JSON says it: `false`.
    pub value: serde_json::Value,
    /// `/etc/docker/daemon.json`, or `command line of dockerd`.
    pub from: String,
}

/// A container that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ContainerFacts {
    /// Its name.
    pub name: String,
    /// Its image, as it was named.
    pub image: String,
    /// Palisade made it: it is guarded, and its stack's file answers for it.
    pub ours: bool,
    /// Its `User`; empty is root.
    pub user: String,
    /// All of root's power.
    pub privileged: bool,
    /// Capabilities that were added, without `CAP_`.
    pub cap_add: BTreeSet<String>,
    /// Capabilities that were taken away, without `CAP_`.
    pub cap_drop: BTreeSet<String>,
    /// `host`, `bridge`, the name of a network …
    pub network_mode: String,
    /// Namespaces that it shares with the host besides the network's: `pid`, `ipc`, `uts`, `user`.
    pub host_namespaces: BTreeSet<String>,
    /// Paths of the host that it sees, with whether it may write.
    pub mounts: BTreeMap<String, bool>,
    /// Its log is kept in a file that is never cut.
    pub logs_grow: bool,
    /// Ports that the engine publishes for it: the host's address and port.
    pub published: Vec<(Proto, SocketAddr)>,
}

/// A PostgreSQL server that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PostgresFacts {
    /// Whose process.
    pub owner: Owner,
    /// Its data folder as the host sees it.
    pub data: String,
    /// Path and content of its pg_hba.conf; `None` when it couldn't be read.
    #[serde(skip)]
    pub hba: Option<(String, String)>,
    /// It has `ssl = on`; `None` when that couldn't be read.
    pub tls: Option<bool>,
    /// Variables of its environment that set a weak password, by name; the values stay where they are.
    pub weak_passwords: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(local: &str, v6_only: bool) -> Listener {
        let local = local.parse().unwrap();
        Listener { proto: Proto::Tcp, local, v6_only, interface: None, owner: Owner::default() }
    }

    #[test]
    fn a_socket_takes_what_its_address_covers() {
        let takes = |local: &str, v6_only, target: &str| listener(local, v6_only).takes(target.parse().unwrap());
        assert!(takes("0.0.0.0:1", false, "203.0.113.1"));
        assert!(!takes("0.0.0.0:1", false, "2001:db8::1"));
        assert!(takes("[::]:1", false, "203.0.113.1"));
        assert!(!takes("[::]:1", true, "203.0.113.1"));
        assert!(takes("[::]:1", true, "2001:db8::1"));
        assert!(takes("203.0.113.1:1", false, "203.0.113.1"));
        assert!(!takes("203.0.113.2:1", false, "203.0.113.1"));
        assert!(!takes("127.0.0.1:1", false, "203.0.113.1"));
        assert!(takes("[::ffff:203.0.113.1]:1", false, "203.0.113.1"));
        assert!(takes("[::ffff:0.0.0.0]:1", false, "203.0.113.1"), "a wildcard in disguise");
        assert!(!takes("[::ffff:0.0.0.0]:1", false, "2001:db8::1"));
    }

    #[test]
    fn names_cannot_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\u{a}");
        assert_eq!(printable("\u{202e}txt"), "\\u{202e}txt");
        assert_eq!(printable("bücher"), "bücher");
    }
}
