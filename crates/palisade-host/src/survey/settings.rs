//! Settings of the kernel and of sshd, and whether a reboot is due.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::link::InterfaceAddresses;
use crate::nft;

/// Settings of each interface.
const OF_INTERFACES: [&str; 3] = ["route_localnet", "rp_filter", "accept_redirects"];
const OF_THE_HOST: [&str; 3] =
    ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "kernel.unprivileged_bpf_disabled"];

/// Kernel settings by their names with dots. What the kernel doesn't have is missing.
pub(super) fn kernel(interfaces: &[InterfaceAddresses]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut read = |key: String, path: String| {
        if let Ok(value) = fs::read_to_string(Path::new("/proc/sys").join(path)) {
            found.insert(key, value.trim().to_owned());
        }
    };
    for key in OF_THE_HOST {
        read(key.to_owned(), key.replace('.', "/"));
    }
    let names = interfaces.iter().filter(|interface| !interface.loopback).map(|interface| interface.name.as_str());
    for name in names.chain(["all"]) {
        for key in OF_INTERFACES {
            // A dot in an interface's name (a VLAN) is part of it.
            read(format!("net.ipv4.conf.{name}.{key}"), format!("net/ipv4/conf/{name}/{key}"));
        }
    }
    found
}

/// What `sshd -T` says, for a client that no `Match` block is for.
pub(super) fn sshd(unknown: &mut Vec<String>) -> Option<BTreeMap<String, String>> {
    match nft::run("sshd", &["-T"], "") {
        Ok(text) => {
            let each = text.lines().filter_map(|line| line.split_once(' '));
            Some(each.map(|(key, value)| (key.to_lowercase(), value.trim().to_lowercase())).collect())
        }
        Err(nft::ToolError::Missing { .. }) => None,
        Err(error) => {
            unknown.push(format!("sshd's settings: {error}"));
            None
        }
    }
}

/// Why a reboot is due, as Debian's and Fedora's families tell it.
pub(super) fn reboot() -> Option<String> {
    let note = "/run/reboot-required";
    if Path::new(note).exists() {
        let packages = fs::read_to_string(format!("{note}.pkgs")).unwrap_or_default();
        let mut packages: Vec<&str> = packages.lines().collect();
        packages.sort_unstable();
        packages.dedup();
        let for_what = if packages.is_empty() { String::new() } else { format!(", for {}", packages.join(", ")) };
        return Some(format!("{note} is there{for_what}"));
    }
    match nft::run("needs-restarting", &["-r"], "") {
        Err(nft::ToolError::Refused { .. }) => Some("`needs-restarting -r` says so".to_owned()),
        _ => None,
    }
}
