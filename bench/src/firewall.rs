//! Firewalls in scratch network namespaces: Palisade's own, and what a host usually has.

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use palisade_core::firewall::{FirewallRules, OpenPort};
use palisade_core::stack::Proto;
use palisade_host::firewall::Firewall;
use std::fs::File;

use crate::world::Netns;

/// Puts the table there, as for a stack that publishes one port on a host with SSH.
pub(crate) fn set(netns: &Netns, realm: &str) -> Result<()> {
    let file = File::open(netns.path())?;
    let realm = realm.to_owned();
    let work = std::thread::spawn(move || -> Result<()> {
        setns(file, CloneFlags::CLONE_NEWNET)?;
        let rules = FirewallRules {
            ssh_ports: [22].into(),
            published: [OpenPort { proto: Proto::Tcp, port: 443, host_ip: None }].into(),
            allow: [].into(),
            ..FirewallRules::default()
        };
        Ok(Firewall::new(&realm).apply("bench", &rules)?)
    });
    work.join().ok().context("the thread died")?.context("setting the host firewall")
}

/// What the documentation of nftables and the defaults of firewalld amount to.
const USUAL: &str = "table inet usual {
  chain input {
    type filter hook input priority 0; policy drop;
    ct state { established, related } accept
    iif lo accept
    tcp dport { 22, 443 } accept
  }
}";

/// An ordinary stateful firewall, with connections on loopback tracked like all others.
pub(crate) fn set_usual(netns: &Netns) -> Result<()> {
    netns.run(["nft", USUAL])
}
