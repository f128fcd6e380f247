//! Settings of the kernel and of sshd, and whether a reboot is due.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use palisade_core::audit::facts::{About, Listener, Reboot, Unknown};

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

/// What `sshd -T` says, for a client that no `Match` block is for. Of an sshd that listens here, with the file and the
/// options that it was started with.
pub(super) fn sshd(listeners: &[Listener], unknown: &mut Vec<Unknown>) -> Option<BTreeMap<String, String>> {
    let servers = listeners.iter().filter(|it| it.owner.program() == "sshd" && it.owner.container.is_none());
    let pids = servers.filter_map(|it| it.owner.process.as_ref()).map(|process| process.pid);
    let title = pids.filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()).next();
    let options = title.map(|title| started_with(&title)).unwrap_or_default();
    let arguments: Vec<&str> = std::iter::once("-T").chain(options.iter().map(String::as_str)).collect();
    let said = match nft::run("sshd", &arguments, "") {
        // Where sshd is started for each connection, the folder that it retires to isn't there meanwhile: it sees one in a
        // /run of its own.
        Err(nft::ToolError::Refused { stderr, .. }) if stderr.contains("privilege separation directory") => {
            let script = "mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && exec sshd \"$@\"";
            let apart = ["--mount", "--propagation", "private", "sh", "-c", script, "sh"];
            nft::run("unshare", &[&apart[..], &arguments].concat(), "")
        }
        said => said,
    };
    match said {
        Ok(text) => {
            let each = text.lines().filter_map(|line| line.split_once(' '));
            Some(each.map(|(key, value)| (key.to_lowercase(), value.trim().to_lowercase())).collect())
        }
        Err(nft::ToolError::Missing { .. }) => None,
        Err(error) => {
            unknown.push(Unknown { about: About::Ssh, why: format!("sshd's settings: {error}") });
            None
        }
    }
}

/// `-f` and `-o` of what sshd writes over its command line: `sshd: /usr/sbin/sshd -D -f FILE [listener] 0 of 10-100 startups`.
fn started_with(title: &str) -> Vec<String> {
    let line = title.split(['\0', '[']).next().unwrap_or_default();
    let mut words = line.split_whitespace();
    let mut options = Vec::new();
    while let Some(word) = words.next() {
        if matches!(word, "-f" | "-o")
            && let Some(value) = words.next()
        {
            options.extend([word.to_owned(), value.to_owned()]);
        } else if (word.starts_with("-f") || word.starts_with("-o")) && word.len() > 2 {
            options.push(word.to_owned());
        }
    }
    options
}

/// Whether a reboot is due, as Debian's and Fedora's families tell it.
pub(super) fn reboot() -> Reboot {
    let note = "/run/reboot-required";
    if Path::new(note).exists() {
        let packages = fs::read_to_string(format!("{note}.pkgs")).unwrap_or_default();
        let mut packages: Vec<&str> = packages.lines().collect();
        packages.sort_unstable();
        packages.dedup();
        let for_what = if packages.is_empty() { String::new() } else { format!(", for {}", packages.join(", ")) };
        return Reboot::Due(format!("{note} is there{for_what}"));
    }
    match nft::run("needs-restarting", &["-r"], "") {
        Err(nft::ToolError::Refused { .. }) => Reboot::Due("`needs-restarting -r` says so".to_owned()),
        Ok(_) => Reboot::NotDue("`needs-restarting -r` says that none is".to_owned()),
        // Debian's packages write the note.
        Err(_) if Path::new("/var/lib/dpkg/status").exists() => Reboot::NotDue(format!("{note} isn't there")),
        Err(_) => Reboot::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sshd_is_asked_as_it_was_started() {
        let of = |title: &str| started_with(title).join(" ");
        assert_eq!(of("sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups\0\0"), "");
        assert_eq!(of("sshd: sshd -f /etc/x -o Port=22 -D [listener] 0 of 10-100 startups"), "-f /etc/x -o Port=22");
        assert_eq!(of("sshd: /usr/sbin/sshd -f/etc/x [listener]"), "-f/etc/x");
    }
}
