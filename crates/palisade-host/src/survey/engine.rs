//! What the host's container engine was told, and what its containers may do.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::net::{IpAddr, SocketAddr};

use palisade_core::audit::facts::{About, ContainerFacts, EngineFacts, EngineOption, Unknown};
use palisade_core::stack::Proto;
use serde_json::Value;

use crate::engine::{self, Engine, EngineError, InspectedContainer};

const DAEMON_FILE: &str = "/etc/docker/daemon.json";

/// The engine, if one answers, and the names of its containers by their ids.
pub(super) fn read(
    docker_host: Option<&str>,
    unknown: &mut Vec<Unknown>,
) -> (Option<EngineFacts>, HashMap<String, String>) {
    let Ok(socket) = engine::socket(docker_host) else { return (None, HashMap::new()) };
    let asked = Engine::connect(&socket).and_then(|engine| Ok((engine.version()?, engine.running()?)));
    let (version, running) = match asked {
        Ok(answer) => answer,
        Err(EngineError::Away { .. }) if !socket.exists() => return (None, HashMap::new()),
        Err(error) => {
            let why = format!("the container engine: {}", palisade_core::causes::chain(&error));
            unknown.push(Unknown { about: About::Engine, why });
            (String::new(), Vec::new())
        }
    };
    let names = running.iter().map(|it| (it.id.clone(), it.name.clone())).collect();
    let options = options(unknown);
    let verifies_tls = options.iter().any(|option| option.key == "tlsverify" && option.value != false);
    let containers = running.into_iter().map(facts).collect();
    (Some(EngineFacts { version, options, verifies_tls, containers }), names)
}

/// Options of the daemon: those of its file, and those of its command line.
fn options(unknown: &mut Vec<Unknown>) -> Vec<EngineOption> {
    let mut found = Vec::new();
    if let Ok(text) = fs::read_to_string(DAEMON_FILE) {
        match serde_json::from_str::<serde_json::Map<String, Value>>(&text) {
            Ok(map) => {
                found.extend(map.into_iter().map(|(key, value)| EngineOption { key, value, from: DAEMON_FILE.into() }))
            }
            Err(error) => {
                let why = format!("{DAEMON_FILE} can't be read: {error}");
                unknown.push(Unknown { about: About::Engine, why });
            }
        }
    }
    for argument in command_line("dockerd") {
        if let Some((key, value)) = flag(&argument) {
            found.push(EngineOption { key, value, from: "the command line of dockerd".into() });
        }
    }
    found
}

/// `--iptables=false` as `iptables` and `false`.
fn flag(argument: &str) -> Option<(String, Value)> {
    let flag = argument.strip_prefix("--")?;
    let (key, value) = flag.split_once('=').unwrap_or((flag, "true"));
    Some((
        key.to_owned(),
        match value {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            other => Value::String(other.to_owned()),
        },
    ))
}

/// Arguments of the first process of that name.
fn command_line(name: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let named = processes
        .filter(|entry| fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name));
    let line = named.map(|entry| fs::read(entry.path().join("cmdline")).unwrap_or_default()).next().unwrap_or_default();
    line.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

fn facts(it: InspectedContainer) -> ContainerFacts {
    let plain = |names: Vec<String>| -> BTreeSet<String> {
        names.into_iter().map(|name| name.to_uppercase().trim_start_matches("CAP_").to_owned()).collect()
    };
    let shared = [("pid", it.pid_mode), ("ipc", it.ipc_mode), ("uts", it.uts_mode), ("user", it.userns_mode)];
    let shared = shared.into_iter().filter(|(_, mode)| mode == "host").map(|(name, _)| name.to_owned());
    ContainerFacts {
        name: it.name,
        image: it.image,
        ours: it.ours,
        user: it.user,
        privileged: it.privileged,
        cap_add: plain(it.cap_add),
        cap_drop: plain(it.cap_drop),
        network_mode: it.network_mode,
        host_namespaces: shared.collect(),
        mounts: it.mounts.into_iter().collect::<BTreeMap<_, _>>(),
        logs_grow: it.logs_grow,
        published: it.published.into_iter().filter_map(|(proto, ip, port)| published(&proto, &ip, port)).collect(),
    }
}

/// An empty address is every one.
fn published(proto: &str, ip: &str, port: u16) -> Option<(Proto, SocketAddr)> {
    let proto = match proto {
        "tcp" => Proto::Tcp,
        "udp" => Proto::Udp,
        _ => return None,
    };
    let ip = if ip.is_empty() { IpAddr::from([0; 4]) } else { ip.parse().ok()? };
    Some((proto, SocketAddr::new(ip, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_options() {
        assert_eq!(flag("--iptables=false"), Some(("iptables".into(), Value::Bool(false))));
        assert_eq!(flag("--tlsverify"), Some(("tlsverify".into(), Value::Bool(true))));
        assert_eq!(flag("--data-root=/x"), Some(("data-root".into(), "/x".into())));
        assert_eq!(flag("-H"), None);
    }
}
