//! The host's firewall as a stack wants it, written for other tools: files that can be loaded without Palisade.
//!
//! Nothing is run in here. What such a file can't do stands in it as a comment.

mod firewalld;
mod iptables;
mod nftables;

use std::collections::BTreeMap;
use std::fmt::Write;

use palisade_core::audit::facts::printable;
use palisade_core::firewall::{FirewallRules, OpenPort};
use palisade_core::stack::{PortProto, Proto};

pub use firewalld::{ZONE_NAME_MAX, zone, zone_name};
pub use iptables::iptables;
pub use nftables::nftables;

/// A policy to write down.
#[derive(Clone, Copy, Debug)]
pub struct Export<'a> {
    /// Whose it is.
    pub stack: &'a str,
    /// What it lets in.
    pub rules: &'a FirewallRules,
    /// Who publishes a port of the host and where that is written, for comments.
    pub because: &'a BTreeMap<PortProto, String>,
}

/// One port that is let in.
struct Opening {
    port: OpenPort,
    comment: String,
}

impl Export<'_> {
    /// Everything that is let in, in the order in which it is written.
    fn openings(&self) -> Vec<Opening> {
        let everywhere = |port, proto| OpenPort { proto, port, host_ip: None };
        let ssh = self.rules.ssh_ports.iter().map(|port| (everywhere(*port, Proto::Tcp), Some("SSH")));
        let published = self.rules.published.iter().map(|port| (*port, None));
        let allowed = self.rules.allow.iter().map(|port| (everywhere(port.port, port.proto), None));
        let all = ssh.chain(published).chain(allowed).map(|(port, comment)| {
            let because = self.because.get(&PortProto { port: port.port, proto: port.proto });
            let comment = comment.map(str::to_owned).or_else(|| because.map(|because| printable(because)));
            Opening { port, comment: comment.unwrap_or_else(|| "published".to_owned()) }
        });
        let mut openings: Vec<Opening> = all.collect();
        let mut told = std::collections::BTreeSet::new();
        openings.retain(|opening| told.insert(opening.port));
        openings
    }

    /// What stands at the head of each file.
    fn head(&self, how: &[String]) -> Vec<String> {
        let mut lines = vec![
            format!("What the stack {} lets in from outside: what is listed below, and nothing else.", self.stack),
            "Made from its Compose file by `palisade export`; make it again when that changes.".to_owned(),
            String::new(),
        ];
        lines.extend_from_slice(how);
        lines.push(String::new());
        lines.extend(CANT.iter().map(|line| (*line).to_owned()));
        lines
    }
}

/// What no such file can do.
const CANT: [&str; 10] = [
    "What this can't do, and `palisade up` does:",
    "  * keep services from each other: on the host's network, whoever is in reaches every port on loopback, and so does",
    "    every user of this host",
    "  * keep a port private when these rules aren't there: a service that listens on every address is one flushed table",
    "    or one stopped daemon away from the world; Palisade gives it an address that no packet from outside is for",
    "  * map a published port to another one, share it between replicas, or follow the stack when it changes: a program has",
    "    to listen on the published port itself",
    "  * hold what a service connects to (x-palisade.connect, x-palisade.egress)",
    "Ports that a container engine publishes from its bridges are passed on and don't come by here; the engine's own",
    "rules decide about them.",
];

/// Lines behind `#`.
fn comments(lines: &[String]) -> String {
    let mut text = String::new();
    for line in lines {
        let _ = writeln!(text, "{}", format!("# {line}").trim_end());
    }
    text
}

#[cfg(test)]
mod tests;
