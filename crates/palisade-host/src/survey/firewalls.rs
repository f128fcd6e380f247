//! Which programs keep a firewall here, whether they are at work in this network namespace, and whether their files say
//! what is in force.
//!
//! Asked as `up` asks them (`crate::firewall`): by the kernel's rules and over D-Bus, not by their command line tools.

use std::collections::BTreeSet;
use std::path::Path;

use palisade_core::audit::facts::{About, EngineFacts, FirewallService, Unknown};
use palisade_core::causes::chain;
use palisade_core::firewall::OpenPort;
use palisade_core::stack::PortProto;

use crate::firewall::firewalld::Firewalld;
use crate::firewall::{self, DoorsError, Firewall, Ufw, iptables, ufw};
use crate::nft;

pub(super) fn read(own_table: &str, engine: Option<&EngineFacts>, unknown: &mut Vec<Unknown>) -> Vec<FirewallService> {
    let mut found: Vec<FirewallService> = [firewalld(unknown), ufw(engine)].into_iter().flatten().collect();
    if found.iter().any(|service| service.active) {
        return found;
    }
    let by_hand = |name: &str| FirewallService { name: name.into(), active: true, ..FirewallService::default() };
    if iptables::runs() {
        found.push(by_hand("iptables"));
    } else if let Ok(chains) = firewall::foreign_chains(&Firewall::new(own_table))
        && chains.iter().any(|chain| chain.hook == "input" && chain.drops_by_default)
    {
        found.push(by_hand("nftables"));
    }
    found
}

fn firewalld(unknown: &mut Vec<Unknown>) -> Option<FirewallService> {
    let installed = is_installed("firewalld");
    let mut service = FirewallService { name: "firewalld".into(), ..FirewallService::default() };
    let mut not_known = |why: String| unknown.push(Unknown { about: About::Firewalls, why });
    match Firewalld::connect() {
        Ok(firewalld) => {
            service.active = true;
            match firewalld.differences() {
                Ok(differences) => service.differences = differences,
                Err(error) => not_known(format!("whether firewalld's files say what is in force: {}", chain(&error))),
            }
        }
        Err(DoorsError::OtherNamespace) => {
            not_known("the firewalld that runs looks after another network namespace".to_owned());
            return None;
        }
        Err(DoorsError::Away(_) | DoorsError::NotRunning) if installed => {}
        Err(DoorsError::Away(_) | DoorsError::NotRunning) => return None,
        Err(error) => {
            not_known(format!("firewalld: {}", chain(&error)));
            return None;
        }
    }
    service.at_boot = enabled("firewalld");
    Some(service)
}

/// Its package comes switched off: then nobody meant it to protect this host.
fn ufw(engine: Option<&EngineFacts>) -> Option<FirewallService> {
    if !is_installed("ufw") {
        return None;
    }
    let active = ufw::has_chains();
    let mut lets_in = BTreeSet::new();
    if active {
        let settings = Ufw::read();
        let published = engine.iter().flat_map(|engine| &engine.containers).flat_map(|container| &container.published);
        for (proto, at) in published {
            if settings.lets_in(&OpenPort { proto: *proto, port: at.port(), host_ip: None }) {
                lets_in.insert(PortProto { port: at.port(), proto: *proto });
            }
        }
    }
    let (name, at_boot) = ("ufw".to_owned(), Some(ufw::is_enabled()));
    Some(FirewallService { name, active, at_boot, lets_in, ..FirewallService::default() })
}

/// Whether the program is where those for root are.
fn is_installed(program: &str) -> bool {
    ["/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin"].iter().any(|folder| Path::new(folder).join(program).exists())
}

/// Whether systemd starts it at boot, where there is systemd.
fn enabled(unit: &str) -> Option<bool> {
    if !Path::new("/run/systemd/system").exists() {
        return None;
    }
    match nft::run("systemctl", &["is-enabled", unit], "") {
        Ok(text) => Some(text.trim() == "enabled"),
        Err(nft::ToolError::Refused { .. }) => Some(false),
        Err(_) => None,
    }
}
