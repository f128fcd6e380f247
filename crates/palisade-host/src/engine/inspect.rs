//! All containers that run, whoever made them, as far as they may reach the host: read only.

use bollard::models::{ContainerInspectResponse, PortBinding};
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder};

use super::{Engine, EngineError, LABEL_REALM};

/// A container as the engine describes it. Modes and names are the engine's words; what isn't set is empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct InspectedContainer {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) image: String,
    /// It has Palisade's labels.
    pub(crate) ours: bool,
    pub(crate) user: String,
    pub(crate) privileged: bool,
    pub(crate) cap_add: Vec<String>,
    pub(crate) cap_drop: Vec<String>,
    pub(crate) network_mode: String,
    pub(crate) pid_mode: String,
    pub(crate) ipc_mode: String,
    pub(crate) uts_mode: String,
    pub(crate) userns_mode: String,
    /// Paths of the host and whether it may write there; volumes of the engine are not among them.
    pub(crate) mounts: Vec<(String, bool)>,
    /// Its log goes to a file of the engine that has no largest size.
    pub(crate) logs_grow: bool,
    /// Protocol, address and port of the host.
    pub(crate) published: Vec<(String, String, u16)>,
}

impl Engine {
    /// `Docker 20.10.24`.
    pub(crate) fn version(&self) -> Result<String, EngineError> {
        let info = self.ask(|| "say what it is".to_owned(), self.docker.version())?;
        let name = info.components.iter().flatten().next().map_or("Docker", |part| part.name.as_str());
        let name = name.trim_end_matches(" Engine").replace("Engine", "Docker");
        Ok(format!("{name} {}", info.version.unwrap_or_default()))
    }

    /// Containers that run.
    pub(crate) fn running(&self) -> Result<Vec<InspectedContainer>, EngineError> {
        let options = ListContainersOptionsBuilder::default().build();
        let listed = self.ask(|| "list its containers".to_owned(), self.docker.list_containers(Some(options)))?;
        let mut found = Vec::new();
        for id in listed.into_iter().filter_map(|container| container.id) {
            let question = self.docker.inspect_container(&id, None::<InspectContainerOptions>);
            match self.ask(|| format!("describe container {id}"), question) {
                Ok(inspected) => found.push(read(inspected)),
                // It ended meanwhile.
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

fn read(it: ContainerInspectResponse) -> InspectedContainer {
    let config = it.config.unwrap_or_default();
    let host = it.host_config.unwrap_or_default();
    let binds = it.mounts.into_iter().flatten().filter(|mount| mount.typ.as_deref() == Some("bind"));
    let ports = it.network_settings.and_then(|network| network.ports).into_iter().flatten();
    InspectedContainer {
        id: it.id.unwrap_or_default(),
        name: it.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        image: config.image.unwrap_or_default(),
        ours: config.labels.is_some_and(|labels| labels.contains_key(LABEL_REALM)),
        user: config.user.unwrap_or_default(),
        privileged: host.privileged == Some(true),
        cap_add: host.cap_add.unwrap_or_default(),
        cap_drop: host.cap_drop.unwrap_or_default(),
        network_mode: host.network_mode.unwrap_or_default(),
        pid_mode: host.pid_mode.unwrap_or_default(),
        ipc_mode: host.ipc_mode.unwrap_or_default(),
        uts_mode: host.uts_mode.unwrap_or_default(),
        userns_mode: host.userns_mode.unwrap_or_default(),
        mounts: binds.map(|mount| (mount.source.unwrap_or_default(), mount.rw != Some(false))).collect(),
        logs_grow: host.log_config.is_some_and(|log| {
            log.typ.as_deref() == Some("json-file") && !log.config.is_some_and(|config| config.contains_key("max-size"))
        }),
        published: ports.flat_map(|(port, bindings)| published(&port, bindings.unwrap_or_default())).collect(),
    }
}

/// `5432/tcp` and where the host has it.
fn published(port: &str, bindings: Vec<PortBinding>) -> Vec<(String, String, u16)> {
    let proto = port.split_once('/').map_or("tcp", |(_, proto)| proto);
    let each = bindings.into_iter().filter_map(|binding| {
        let port = binding.host_port?.parse().ok()?;
        Some((proto.to_owned(), binding.host_ip.unwrap_or_default(), port))
    });
    each.collect()
}
