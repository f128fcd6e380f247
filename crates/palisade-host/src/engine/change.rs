//! What a plan changes at an engine besides instances: volumes, and containers that the stack takes the place of.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{ContainerSummary, VolumeCreateRequest};
use bollard::query_parameters::{
    ListContainersOptionsBuilder, RemoveContainerOptionsBuilder, RemoveVolumeOptions, RenameContainerOptionsBuilder,
    StartContainerOptions, StopContainerOptions,
};
use palisade_core::names::ProjectName;

use super::{COMPOSE_PROJECT, Engine, EngineError, LABEL_REALM};
use crate::layout::Layout;

/// Behind the name of a container whose place is being taken.
const ASIDE: &str = "before-palisade";

/// Makes a volume of the project, with the label by which Compose knows it. One that is there stays as it is.
pub fn create_volume(socket: &Path, project: &ProjectName, name: &str) -> Result<(), EngineError> {
    let engine = Engine::connect(socket)?;
    let key = name.strip_prefix(&format!("{project}_")).unwrap_or(name).to_owned();
    let labels = [(COMPOSE_PROJECT.to_owned(), project.to_string()), ("com.docker.compose.volume".to_owned(), key)];
    let request =
        VolumeCreateRequest { name: Some(name.to_owned()), labels: Some(labels.into()), ..Default::default() };
    engine.ask(|| format!("make volume {name}"), engine.docker.create_volume(request)).map(drop)
}

/// Containers that have a volume mounted, running or not, but for those of the stack. The engine keeps what they use.
pub fn other_users_of(socket: &Path, layout: &Layout, volume: &str) -> Result<Vec<String>, EngineError> {
    let engine = Engine::connect(socket)?;
    let filters = HashMap::from([("volume", vec![volume.to_owned()])]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let listed =
        engine.ask(|| format!("say who uses volume {volume}"), engine.docker.list_containers(Some(options)))?;
    let others = listed.into_iter().filter(|container| {
        let label = |name: &str| container.labels.as_ref().and_then(|labels| labels.get(name)).map(String::as_str);
        label(LABEL_REALM) != Some(&layout.realm) || label(COMPOSE_PROJECT) != Some(layout.project.as_str())
    });
    let name = |container: ContainerSummary| container.names.into_iter().flatten().next().or(container.id);
    Ok(others.filter_map(name).map(|name| name.trim_start_matches('/').to_owned()).collect())
}

/// Deletes a volume and its data.
pub fn remove_volume(socket: &Path, name: &str) -> Result<(), EngineError> {
    let engine = Engine::connect(socket)?;
    let remove = engine.docker.remove_volume(name, None::<RemoveVolumeOptions>);
    engine.ask(|| format!("delete volume {name}"), remove)
}

/// Stops a container of somebody else, with its own grace period, and puts its name aside.
pub fn stop_foreign(socket: &Path, id: &str, name: &str) -> Result<(), EngineError> {
    let engine = Engine::connect(socket)?;
    engine.ask(|| format!("stop container {name}"), engine.docker.stop_container(id, None::<StopContainerOptions>))?;
    rename(&engine, id, name, &format!("{name}-{ASIDE}"))
}

/// Starts it again, under its name.
pub fn start_foreign(socket: &Path, id: &str, name: &str) -> Result<(), EngineError> {
    let engine = Engine::connect(socket)?;
    rename(&engine, id, name, name)?;
    engine.ask(|| format!("start container {name}"), engine.docker.start_container(id, None::<StartContainerOptions>))
}

/// Removes it. Its volumes stay, also those without a name: whoever wants their data back finds it.
pub fn remove_foreign(socket: &Path, id: &str, name: &str) -> Result<(), EngineError> {
    let engine = Engine::connect(socket)?;
    let options = RemoveContainerOptionsBuilder::default().force(true).v(false).build();
    engine.ask(|| format!("remove container {name}"), engine.docker.remove_container(id, Some(options)))
}

fn rename(engine: &Engine, id: &str, name: &str, to: &str) -> Result<(), EngineError> {
    let options = RenameContainerOptionsBuilder::default().name(to).build();
    engine.ask(|| format!("rename container {name}"), engine.docker.rename_container(id, options))
}
