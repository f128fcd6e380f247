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
use crate::stack::{PortProto, Proto};

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
    /// Whether a reboot is due.
    pub reboot: Reboot,
    /// Certificates that servers on this host serve, as they were seen in handshakes.
    pub tls: Vec<TlsFacts>,
    /// Ports that were asked whether they speak TLS.
    pub tls_asked: usize,
    /// When it was looked at, in seconds since 1970.
    pub seen_at_s: u64,
    /// What could not be read, and why.
    pub unknown: Vec<Unknown>,
}

/// What is read together, and by one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum About {
    /// What the firewall lets through.
    Reach,
    /// Sockets and whose they are.
    Sockets,
    /// Programs that keep a firewall.
    Firewalls,
    /// The container engine.
    Engine,
    /// The kernel's settings, and addresses.
    Kernel,
    /// PostgreSQL.
    Postgres,
    /// sshd.
    Ssh,
    /// Certificates that are served.
    Tls,
    /// Whether a reboot is due.
    Reboot,
    /// The file of what is accepted.
    Accepted,
}

/// Something that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Unknown {
    /// What it belongs to.
    pub about: About,
    /// What, and why.
    pub why: String,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

/// Whether a reboot is due, as the distribution tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Reboot {
    /// For this reason.
    Due(String),
    /// This says that none is.
    NotDue(String),
    /// Nothing here tells it.
    #[default]
    Unknown,
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

/// A program that keeps a firewall, or the tool with which somebody has made one by hand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FirewallService {
    /// `firewalld`, `ufw`, `nftables`, `iptables`.
    pub name: String,
    /// It is at work now: it runs, or its rules are loaded.
    pub active: bool,
    /// It comes back at the next boot; `None`: not known.
    pub at_boot: Option<bool>,
    /// What differs between its files and what is in force, if that could be compared.
    pub differences: Vec<String>,
    /// Of the ports that an engine publishes, those that its user has let in from everywhere.
    pub lets_in: BTreeSet<PortProto>,
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

/// What a TLS server answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TlsFacts {
    /// Its port.
    pub port: u16,
    /// Where it listens.
    pub local: Option<SocketAddr>,
    /// Whose it is.
    pub owner: Owner,
    /// The name that was asked for, if one was.
    pub name: Option<String>,
    /// What it sent, the leaf first. Empty when it refused.
    pub chain: Vec<Certificate>,
    /// The issuer of the last one is known to this host, or it is its own; `None`: this host knows no issuers.
    pub issuer_known: Option<bool>,
    /// Versions before 1.2 that it agrees to: `TLS 1.0`.
    pub old_versions: Vec<String>,
}

/// A certificate, as far as it matters to an audit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// `CN=shop.example`.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// It is signed by itself.
    pub self_signed: bool,
    /// Names that it is for, in lower case: of its `subjectAltName`. `*.shop.example` is one.
    pub names: Vec<String>,
    /// Addresses that it is for.
    pub addresses: Vec<IpAddr>,
    /// Seconds since 1970 from which it is valid.
    pub not_before_s: i64,
    /// Seconds since 1970 until which it is valid.
    pub not_after_s: i64,
    /// `RSA with 1024 bits`, if that is less than is safe.
    pub weak_key: Option<String>,
    /// `SHA-1 with RSA`, if that is broken.
    pub weak_signature: Option<String>,
    /// It says where its issuer's certificate can be fetched, as those of public authorities do.
    pub has_issuer_url: bool,
}

impl Certificate {
    /// It is for this name, by RFC 6125: a star stands for one whole label, the first.
    pub fn is_for(&self, name: &str) -> bool {
        if let Ok(ip) = name.parse::<IpAddr>() {
            return self.addresses.contains(&ip);
        }
        let name = name.to_lowercase();
        let matches = |pattern: &String| match pattern.strip_prefix("*.") {
            Some(rest) => name.split_once('.').is_some_and(|(first, after)| !first.is_empty() && after == rest),
            None => *pattern == name,
        };
        self.names.iter().any(matches)
    }
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

    #[test]
    fn a_star_stands_for_one_label() {
        let names = vec!["shop.example".to_owned(), "*.api.example".to_owned()];
        let certificate = Certificate { names, addresses: vec!["203.0.113.1".parse().unwrap()], ..Default::default() };
        for (name, is_for) in [
            ("Shop.example", true),
            ("www.shop.example", false),
            ("v1.api.example", true),
            ("api.example", false),
            ("a.v1.api.example", false),
            (".api.example", false),
            ("203.0.113.1", true),
            ("203.0.113.2", false),
        ] {
            assert_eq!(certificate.is_for(name), is_for, "{name}");
        }
    }

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
