//! Which networks, volumes, secrets and configs services refer to.

use std::collections::HashSet;

use super::Value;

/// What services refer to: the rest is left out, as Compose does.
#[derive(Default)]
pub(super) struct Used {
    pub(super) networks: HashSet<String>,
    volumes: HashSet<String>,
    secrets: HashSet<String>,
    configs: HashSet<String>,
}

impl Used {
    pub(super) fn look_at(&mut self, services: &Value) {
        let sources = |list: Option<&Value>| -> Vec<String> {
            let items = list.map(Value::items).unwrap_or_default();
            items.iter().filter_map(|item| item.get("source")?.as_text().map(str::to_owned)).collect()
        };
        for (_, service) in services.entries() {
            if let Some(networks) = service.get("networks") {
                self.networks.extend(networks.entries().iter().map(|(name, _)| name.clone()));
            }
            self.volumes.extend(sources(service.get("volumes")));
            self.secrets.extend(sources(service.get("secrets")));
            self.secrets.extend(sources(service.get("build").and_then(|build| build.get("secrets"))));
            self.configs.extend(sources(service.get("configs")));
        }
    }

    pub(super) fn of(&self, kind: &str) -> &HashSet<String> {
        match kind {
            "networks" => &self.networks,
            "volumes" => &self.volumes,
            "secrets" => &self.secrets,
            _ => &self.configs,
        }
    }
}
