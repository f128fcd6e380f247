//! The kernel's settings, SSH, raw and abstract sockets, and whether a reboot is due.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::facts::{Facts, Reboot, printable};
use super::rules::{
    ABSTRACT_SOCKET, FORWARDING, LOOPBACK_ADDRESS, RAW_SOCKET, REBOOT_PENDING, REDIRECTS, ROUTE_LOCALNET, RP_FILTER,
    SSH_PASSWORD, SSH_ROOT_PASSWORD, UNPRIVILEGED_BPF,
};
use crate::address::is_reserved;
use crate::finding::{Finding, Severity};

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = kernel(facts);
    findings.extend(ssh(facts));
    findings.extend(raw(facts));
    findings.extend(abstract_sockets(facts));
    if let Reboot::Due(why) = &facts.reboot {
        let hit = REBOOT_PENDING.hit("reboot", "what was updated is in use only after a reboot").seen(why);
        findings.push(hit.remedy("reboot at a quiet time; `palisade up` and its agent bring the stack back"));
    }
    findings
}

/// The value of `net.ipv4.conf.IF.KEY` in force: for these keys the larger one of `all` and the interface's own, if
/// the host doesn't forward. Source: Documentation/networking/ip-sysctl.rst.
fn of_interface(facts: &Facts, interface: &str, key: &str) -> Option<u32> {
    let read = |of: &str| facts.settings.get(&format!("net.ipv4.conf.{of}.{key}"))?.parse::<u32>().ok();
    read("all").max(read(interface))
}

fn sysctl(key: &str, value: u32) -> String {
    format!("`sysctl -w {key}={value}`, and the line `{key} = {value}` in /etc/sysctl.d/90-hardening.conf")
}

fn kernel(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let interfaces: BTreeSet<&str> = facts.worlds.iter().map(|world| world.interface.as_str()).collect();
    for interface in &interfaces {
        let value = |key: &str| of_interface(facts, interface, key);
        let seen = |key: &str, value: u32| format!("net.ipv4.conf.{interface}.{key} is in force as {value}");
        if let Some(on @ 1..) = value("route_localnet") {
            let message = format!("packets for 127.0.0.0/8 that come in by {interface} are taken");
            findings.push(
                ROUTE_LOCALNET
                    .hit(interface, message)
                    .seen(seen("route_localnet", on))
                    .remedy(sysctl(&format!("net.ipv4.conf.{interface}.route_localnet"), 0)),
            );
        }
        if value("rp_filter") == Some(0) {
            let message = format!("no sender's address is checked on {interface}");
            // Whoever has one way out only is asked by everybody through it: the check would find little.
            let mut finding = RP_FILTER.hit(interface, message).seen(seen("rp_filter", 0));
            if interfaces.len() == 1 {
                finding.severity = Severity::Note;
            }
            findings.push(finding.remedy(sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), 2)));
        }
        let forwards = facts.settings.get("net.ipv4.ip_forward").is_some_and(|value| value == "1");
        // Accepted only by hosts that don't forward, unless `all` and the interface agree.
        if !forwards && value("accept_redirects") == Some(1) {
            let message = format!("ICMP redirects that come in by {interface} are followed");
            findings.push(
                REDIRECTS
                    .hit(interface, message)
                    .seen(seen("accept_redirects", 1))
                    .remedy(sysctl(&format!("net.ipv4.conf.{interface}.accept_redirects"), 0)),
            );
        }
    }
    let bridges = facts.engine.iter().flat_map(|engine| &engine.containers).any(|it| it.network_mode != "host");
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        let on = facts.settings.get(key).is_some_and(|value| value != "0");
        if on && !bridges {
            let hit = FORWARDING.hit(key, "this host passes packets on, and no container on a bridge needs that");
            let hint = format!("if it is no router and no VPN: {}", sysctl(key, 0));
            findings.push(hit.seen(format!("{key} is on")).remedy(hint));
        }
    }
    if facts.settings.get("kernel.unprivileged_bpf_disabled").is_some_and(|value| value == "0") {
        let hit = UNPRIVILEGED_BPF.hit("kernel.unprivileged_bpf_disabled", "any user may load eBPF programs");
        findings.push(
            hit.seen("kernel.unprivileged_bpf_disabled is 0").remedy(sysctl("kernel.unprivileged_bpf_disabled", 1)),
        );
    }
    for ip in facts.loopback_addresses.iter().filter(|ip| !is_reserved(**ip) && !is_private_to_loopback(ip)) {
        let message =
            format!("{ip} is an address of the loopback interface, and packets for it are taken on every interface");
        findings.push(
            LOOPBACK_ADDRESS
                .hit(ip, message)
                .remedy(format!("if it isn't meant to be public: drop what comes for it from outside, `nft add rule inet filter input iif != lo {} daddr {ip} drop`", if ip.is_ipv4() { "ip" } else { "ip6" })),
        );
    }
    findings
}

fn is_private_to_loopback(ip: &IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn ssh(facts: &Facts) -> Vec<Finding> {
    let Some(sshd) = &facts.sshd else { return Vec::new() };
    let is = |key: &str, value: &str| sshd.get(key).is_some_and(|now| now == value);
    let mut findings = Vec::new();
    let passwords = is("passwordauthentication", "yes") || is("kbdinteractiveauthentication", "yes");
    let seen = |key: &str| format!("sshd -T says: {key} {}", sshd.get(key).map_or("", String::as_str));
    if passwords && is("permitrootlogin", "yes") {
        findings.push(
            SSH_ROOT_PASSWORD
                .hit("sshd", "root may log in with a password")
                .seen(seen("permitrootlogin"))
                .seen(seen("passwordauthentication"))
                .remedy("try first that a key works, in a second session; then `PermitRootLogin prohibit-password` in /etc/ssh/sshd_config.d/10-root.conf and `systemctl reload sshd`"),
        );
    } else if passwords {
        findings.push(
            SSH_PASSWORD
                .hit("sshd", "users may log in with a password")
                .seen(seen("passwordauthentication"))
                .remedy("try first that keys work, in a second session; then `PasswordAuthentication no` and `KbdInteractiveAuthentication no` in /etc/ssh/sshd_config.d/10-keys.conf and `systemctl reload sshd`"),
        );
    }
    findings
}

fn raw(facts: &Facts) -> Vec<Finding> {
    let mut by_owner: BTreeMap<String, (BTreeSet<&str>, bool)> = BTreeMap::new();
    for socket in &facts.raw {
        let entry = by_owner.entry(socket.owner.to_string()).or_default();
        entry.0.insert(&socket.what);
        entry.1 |= socket.owner.container.is_some() || socket.owner.instance.is_some();
    }
    let each = by_owner.into_iter().map(|(who, (what, contained))| {
        let mut finding = RAW_SOCKET.hit(&who, format!("{who} can hear or send whole packets"));
        finding.evidence.extend(what.into_iter().map(str::to_owned));
        if contained {
            finding.severity = Severity::Warning;
        }
        finding.remedy(if contained {
            "take NET_RAW away from it (`cap_drop: [NET_RAW]`), if it doesn't need it"
        } else {
            "nothing, if you know what it is: DHCP clients, tcpdump and network managers have such sockets"
        })
    });
    each.collect()
}

/// Only those whose owner has root's power are worth a word, and one word for all.
fn abstract_sockets(facts: &Facts) -> Vec<Finding> {
    let shims = facts.abstract_sockets.iter().filter(|socket| socket.owner.program().starts_with("containerd-shim"));
    let evidence: BTreeSet<String> =
        shims.map(|socket| format!("@{} of {}", printable(&socket.name), socket.owner)).collect();
    if evidence.is_empty() {
        return Vec::new();
    }
    let message = "the container engine's shims can be spoken to by everything on the host's network";
    let mut finding = ABSTRACT_SOCKET.hit("containerd-shim", message);
    finding.severity = Severity::Error;
    finding.evidence.extend(evidence);
    vec![finding.remedy("update containerd: since 1.3.9 and 1.4.3 its shims use files, which only root reaches")]
}
