//! The container engine: what its daemon was told, and what its containers may do to the host.

use std::collections::BTreeSet;

use super::facts::{ContainerFacts, EngineFacts, EngineOption, Facts, printable};
use super::rules::{
    CONTAINER_CAPABILITY, CONTAINER_ENGINE_SOCKET, CONTAINER_HOST_FILES, CONTAINER_HOST_NAMESPACE, CONTAINER_LOGS,
    CONTAINER_PRIVILEGED, CONTAINER_ROOT, ENGINE_PINNED_DNS, ENGINE_WITHOUT_RULES,
};
use crate::finding::{Finding, Severity};

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let Some(engine) = &facts.engine else { return Vec::new() };
    let mut findings = daemon(engine);
    for container in &engine.containers {
        findings.extend(of_container(container));
    }
    findings
}

fn daemon(engine: &EngineFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let seen = |option: &EngineOption| format!("`{}: {}` in {}", option.key, option.value, option.from);
    let off = |key: &str| engine.options.iter().find(|option| option.key == key && option.value == false);
    let bridged = engine.containers.iter().filter(|it| it.network_mode != "host" && it.network_mode != "none");
    let bridged: Vec<_> = bridged.map(|it| printable(&it.name)).collect();
    for key in ["iptables", "ip6tables", "ip-forward", "ip-masq"] {
        let Some(option) = off(key) else { continue };
        let message = match key {
            "ip-forward" => {
                "the engine was told not to switch forwarding on: containers on bridges reach only this host".to_owned()
            }
            "ip-masq" => {
                "the engine was told not to rewrite senders: containers on bridges reach nothing outside".to_owned()
            }
            _ => format!(
                "the engine was told to make no rules (`{key}: false`): containers on bridges aren't kept apart, and reach nothing outside"
            ),
        };
        let mut finding = ENGINE_WITHOUT_RULES.hit(key, message).seen(seen(option));
        if bridged.is_empty() {
            // Palisade's own way of running containers needs none of it.
            finding.severity = Severity::Note;
            finding = finding.seen("no container runs on a bridge");
        } else {
            finding = finding.seen(format!("containers on bridges: {}", bridged.join(", ")));
        }
        findings.push(finding.remedy(format!(
            "with Palisade alone it may stay; if containers run on bridges, take it out of {} and `systemctl restart docker`",
            option.from
        )));
    }
    if let Some(option) = engine.options.iter().find(|option| option.key == "dns") {
        let message = "every container is told these name servers, whatever the host uses";
        findings.push(ENGINE_PINNED_DNS.hit("dns", message).seen(seen(option)).remedy(format!(
            "take `dns` out of {}, unless the host's own name servers can't be reached from containers",
            option.from
        )));
    }
    findings
}

/// Capabilities that reach beyond a container.
const DANGEROUS: [&str; 9] =
    ["ALL", "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "SYS_RAWIO", "DAC_READ_SEARCH", "BPF"];

/// Where writing is becoming root, and reading is half the way.
const DECISIVE: [&str; 8] = ["/", "/etc", "/root", "/boot", "/usr", "/proc", "/sys", "/var/lib/docker"];

fn of_container(it: &ContainerFacts) -> Vec<Finding> {
    let name = printable(&it.name);
    let mut findings = Vec::new();
    if it.privileged {
        let message = format!("{name} ({}) is privileged", printable(&it.image));
        findings.push(
            CONTAINER_PRIVILEGED
                .hit(&name, message)
                .seen("HostConfig.Privileged is true")
                .remedy("give it the single capability or device that it needs: `cap_add`, `devices`"),
        );
    }
    for (path, writable) in &it.mounts {
        let right = if *writable { "read and write" } else { "read-only" };
        let seen = format!("{} is mounted, {right}", printable(path));
        if path.ends_with("/docker.sock") || path.ends_with("/podman.sock") || path.ends_with("/containerd.sock") {
            let hit = CONTAINER_ENGINE_SOCKET.hit(&name, format!("{name} may command the engine"));
            findings.push(hit.seen(seen).remedy(
                "put a proxy in between that lets only the needed requests through; read-only mounts of a socket don't help",
            ));
        } else if DECISIVE.contains(&path.as_str()) {
            let mut hit = CONTAINER_HOST_FILES
                .hit(format!("{name} {}", printable(path)), format!("{name} sees {} of this host", printable(path)))
                .seen(seen);
            if !*writable {
                hit.severity = Severity::Warning;
            }
            findings.push(hit.remedy("mount the one folder that it needs, read-only if it only reads"));
        }
    }
    if it.logs_grow {
        let message = format!("what {name} prints is kept whole, without a limit");
        let hint = "`logging: {options: {max-size: 10m, max-file: \"3\"}}` in its file, or `log-opts` in /etc/docker/daemon.json for new containers";
        findings.push(CONTAINER_LOGS.hit(&name, message).seen("driver json-file without max-size").remedy(hint));
    }
    // What Palisade runs is held by the guard, and its file is checked before it starts.
    if it.ours {
        return findings;
    }
    let on_host = it.network_mode == "host";
    let mut added: BTreeSet<&str> =
        it.cap_add.iter().map(String::as_str).filter(|cap| DANGEROUS.contains(cap)).collect();
    let drops = |cap: &str| it.cap_drop.contains(cap) || it.cap_drop.contains("ALL");
    // The engine's own default has it: on the host's network it hears the host.
    let default_raw = on_host && !drops("NET_RAW") && !it.privileged;
    if default_raw {
        added.insert("NET_RAW");
    }
    if !added.is_empty() && !it.privileged {
        let list = added.iter().copied().collect::<Vec<_>>().join(", ");
        let hit = CONTAINER_CAPABILITY.hit(&name, format!("{name} has {list}"));
        let seen = if default_raw { "network_mode is host, and NET_RAW wasn't dropped" } else { "HostConfig.CapAdd" };
        findings.push(hit.seen(seen).remedy(format!(
            "take it away: `cap_drop: [{list}]`; under Palisade it isn't given on the host's network"
        )));
    }
    if on_host || !it.host_namespaces.is_empty() {
        let mut shared: Vec<&str> = it.host_namespaces.iter().map(String::as_str).collect();
        if on_host {
            shared.insert(0, "network");
        }
        let message = format!("{name} shares the host's {}, and nothing guards it", shared.join(", "));
        findings.push(
            CONTAINER_HOST_NAMESPACE.hit(&name, message).remedy(
                "run its stack with Palisade, which guards services on the host's network, or put it on a bridge",
            ),
        );
    }
    if it.user.is_empty()
        || it.user == "root"
        || it.user == "0"
        || it.user.starts_with("0:")
        || it.user.starts_with("root:")
    {
        findings.push(
            CONTAINER_ROOT
                .hit(&name, format!("{name} ({}) runs as root", printable(&it.image)))
                .remedy("`user:` in its file, if the image works without root; `security_opt: [no-new-privileges:true]` helps in any case"),
        );
    }
    findings
}
