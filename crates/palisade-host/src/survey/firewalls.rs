//! Which programs keep a firewall here, whether they are at work, and whether their files say what is in force.

use std::fs;
use std::path::Path;

use palisade_core::audit::facts::FirewallService;

use crate::nft;

pub(super) fn read() -> Vec<FirewallService> {
    [firewalld(), ufw()].into_iter().flatten().collect()
}

fn firewalld() -> Option<FirewallService> {
    let state = match nft::run("firewall-cmd", &["--state"], "") {
        Err(nft::ToolError::Missing { .. }) => return None,
        other => other,
    };
    let active = state.is_ok_and(|text| text.trim() == "running");
    let differences = if active { zones_that_differ() } else { Vec::new() };
    Some(FirewallService { name: "firewalld".into(), active, at_boot: enabled("firewalld"), differences })
}

/// Zones whose permanent settings aren't those in force.
fn zones_that_differ() -> Vec<String> {
    let list =
        |arguments: &[&str]| nft::run("firewall-cmd", arguments, "").map(|text| zones(&text)).unwrap_or_default();
    let (now, permanent) = (list(&["--list-all-zones"]), list(&["--permanent", "--list-all-zones"]));
    let mut differences = Vec::new();
    for (zone, line) in now.iter().filter(|entry| !permanent.contains(entry)) {
        differences.push(format!("in force and not in the files, zone {zone}: {line}"));
    }
    for (zone, line) in permanent.iter().filter(|entry| !now.contains(entry)) {
        differences.push(format!("in the files and not in force, zone {zone}: {line}"));
    }
    differences
}

/// The settings of each zone; which interfaces are in it at the moment isn't one.
fn zones(text: &str) -> Vec<(String, String)> {
    let mut zone = String::new();
    let mut found = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        if !line.starts_with(char::is_whitespace) {
            zone = line.split_whitespace().next().unwrap_or_default().to_owned();
            continue;
        }
        let setting = line.trim();
        // With a colon and nothing behind it there is nothing in it, and lists come in no order.
        if let Some((key, value)) = setting.split_once(':') {
            let mut words: Vec<&str> = value.split_whitespace().collect();
            words.sort_unstable();
            if !words.is_empty() && key != "interfaces" {
                found.push((zone.clone(), format!("{key}: {}", words.join(" "))));
            }
        } else {
            found.push((zone.clone(), setting.to_owned()));
        }
    }
    found
}

fn ufw() -> Option<FirewallService> {
    let active = match nft::run("ufw", &["status"], "") {
        Err(nft::ToolError::Missing { .. }) => return None,
        Ok(text) => text.lines().any(|line| line.trim() == "Status: active"),
        Err(_) => false,
    };
    let conf = fs::read_to_string("/etc/ufw/ufw.conf").unwrap_or_default();
    let at_boot = conf.lines().find_map(|line| line.trim().strip_prefix("ENABLED=")).map(|value| value.trim() == "yes");
    Some(FirewallService { name: "ufw".into(), active, at_boot, differences: Vec::new() })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_compared_by_their_settings() {
        let now = "public (active)\n  target: default\n  interfaces: eth0\n  services: ssh dhcpv6-client\n  ports: \n\trule family=\"ipv4\" drop\n\ntrusted\n  target: ACCEPT\n";
        let files = "public\n  target: default\n  interfaces: \n  services: dhcpv6-client ssh\n  ports: 5432/tcp\n\ntrusted\n  target: ACCEPT\n";
        let (now, files) = (zones(now), zones(files));
        let only: Vec<_> = files.iter().filter(|entry| !now.contains(entry)).collect();
        assert_eq!(only, [&("public".to_owned(), "ports: 5432/tcp".to_owned())]);
        let gone: Vec<_> = now.iter().filter(|entry| !files.contains(entry)).collect();
        assert_eq!(gone, [&("public".to_owned(), "rule family=\"ipv4\" drop".to_owned())]);
    }
}
