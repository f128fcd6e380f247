//! Mappings with known keys: what is shown of them, and what Compose adds.

use super::super::keys::{self, Section, Shape, Short};
use super::super::merge;
use super::super::yaml::{Data, Node};
use super::scalar::generic;
use super::{Builder, Map, Value, default, get, has, pair, text_of};
use crate::diagnostic::{Diagnostic, quoted};

/// Booleans that say something when they are false.
const MEANT_WHEN_FALSE: [&str; 9] = [
    "init",
    "attach",
    "enable_ipv4",
    "enable_ipv6",
    "required",
    "create_host_path",
    "initial_sync",
    "redirect",
    "access_log",
];
/// Keys that are done with once all files are one.
const DONE_WITH: [&str; 6] = ["version", "include", "extends", "env_file", "label_file", "name"];

impl Builder<'_> {
    /// The keys of a mapping that have a value, sorted, defaults added.
    pub(super) fn fields(&self, node: &Node, section: &'static Section) -> Map {
        let Data::Map(entries) = &node.data else {
            return if node.is_null() { Vec::new() } else { self.mistyped(node, section.what, "a mapping") };
        };
        let mut map = Vec::with_capacity(entries.len());
        for entry in entries {
            let Some(key) = section.key(&entry.key).filter(|_| !entry.key.starts_with("x-")) else {
                if entry.key.starts_with("x-") {
                    let mut value = generic(&entry.value);
                    if entry.key == "x-palisade" && std::ptr::eq(section, &raw const keys::TOP) {
                        self.edge(&entry.value, &mut value);
                    }
                    map.push((entry.key.to_string(), value));
                } else {
                    let message = format!("{} is not a key of {}", quoted(&entry.key), section.what);
                    self.wrong.borrow_mut().push(Diagnostic::error("unknown-key", message).at(entry.key_span, ""));
                }
                continue;
            };
            let place = section.path.matches('.').count();
            // `name` is the file's, elsewhere it is a key like others.
            if place <= 1 && DONE_WITH.contains(&key.name) && (key.name != "name" || section.path.is_empty()) {
                continue;
            }
            let value = match &entry.value.data {
                Data::Null if !matches!(key.shape, Shape::Command) => continue,
                _ => self.value(&entry.value, key.shape, key.name),
            };
            let idle = match &value {
                Value::Bool(false) => !MEANT_WHEN_FALSE.contains(&key.name),
                Value::List(_) | Value::Map(_) if matches!(key.shape, Shape::Section(_) | Shape::Command) => false,
                value => value.is_empty(),
            };
            if !idle {
                map.push((key.name.to_owned(), value));
            }
        }
        self.defaults(&mut map, node, section);
        map.sort_by(|(one, _), (other, _)| one.cmp(other));
        map
    }

    /// `x-palisade` is shown as it is written, but for `edge`: that names files, whose paths start where it is written.
    fn edge(&self, own: &Node, shown: &mut Value) {
        let (Some(entry), Value::Map(map)) = (own.get("edge"), shown) else { return };
        if !entry.value.is_null()
            && let Some(edge) = get(map, "edge")
        {
            *edge = self.short(&entry.value, Short::Edge, &keys::EDGE, "edge");
        }
    }

    /// What Compose adds to a mapping.
    pub(super) fn defaults(&self, map: &mut Map, node: &Node, section: &'static Section) {
        let is = |other: &'static Section| std::ptr::eq(section, other);
        if is(&keys::SERVICE) {
            self.service(map, node);
        } else if is(&keys::DEPENDENCY) {
            default(map, "condition", || Value::text("service_started"));
            default(map, "required", || Value::Bool(true));
        } else if is(&keys::PORT) {
            default(map, "mode", || Value::text("ingress"));
            default(map, "protocol", || Value::text("tcp"));
        } else if is(&keys::SERVICE_SECRET) {
            let source = text_of(map, "source").unwrap_or_default().to_owned();
            default(map, "target", || Value::text(format!("/run/secrets/{source}")));
        } else if is(&keys::BUILD) {
            default(map, "context", || Value::text(self.path(".", node.span)));
            if !has(map, "dockerfile_inline") {
                default(map, "dockerfile", || Value::text("Dockerfile"));
            }
        } else if is(&keys::MOUNT) {
            let bind = text_of(map, "type") == Some("bind");
            if let Some(Value::Text(source)) = get(map, "source").filter(|_| bind) {
                let span = node.get("source").map_or(node.span, |entry| entry.value.span);
                *source = self.path(source, span);
            }
            if let Some(Value::Text(target)) = get(map, "target") {
                *target = merge::clean(target).into();
            }
        } else if is(&keys::MOUNT_BIND) {
            default(map, "create_host_path", || Value::Bool(true));
        } else if is(&keys::MOUNT_TMPFS) {
            // Unlike the modes of files, a number in the reference's model.
            if let Some(mode) = get(map, "mode")
                && let Some(bits) = mode.as_text().and_then(|text| i64::from_str_radix(text, 8).ok())
            {
                *mode = Value::Int(bits);
            }
        } else if is(&keys::DEVICE_REQUEST) {
            if !has(map, "device_ids") {
                default(map, "count", || Value::Int(-1));
            }
            if let Some(count) = get(map, "count")
                && let Value::Text(text) = &*count
            {
                *count = text.parse().map_or_else(|_| Value::Int(-1), Value::Int);
            }
        } else if is(&keys::DEPLOY) && self.view.empty_values {
            default(map, "resources", || Value::Map(Vec::new()));
            default(map, "placement", || Value::Map(Vec::new()));
        }
    }

    pub(super) fn service(&self, map: &mut Map, node: &Node) {
        let from_files = node.get("env_file").map(|entry| self.env_files(&entry.value)).unwrap_or_default();
        if !from_files.is_empty() {
            let mut all = from_files;
            if let Some(Value::Map(own)) = get(map, "environment") {
                all.retain(|(name, _)| !has(own, name));
                all.append(own);
            }
            self.hide(&mut all);
            all.sort_by(|(one, _), (other, _)| one.cmp(other));
            map.retain(|(name, _)| name != "environment");
            map.push(pair("environment", Value::Map(all)));
        }
        if let Some(entry) = node.get("label_file") {
            let mut labels = self.files_of(&entry.value, false).unwrap_or_default();
            labels.retain(|(name, _)| !matches!(get(map, "labels"), Some(Value::Map(own)) if has(own, name)));
            default(map, "labels", || Value::Map(Vec::new()));
            if let Some(Value::Map(own)) = get(map, "labels") {
                own.extend(labels);
                own.sort_by(|(one, _), (other, _)| one.cmp(other));
            }
        }
        implied_dependencies(map);
        if !has(map, "network_mode") && !has(map, "provider") {
            default(map, "networks", || Value::Map(vec![pair("default", Value::Null)]));
        }
        if self.view.empty_values {
            default(map, "command", || Value::Null);
            default(map, "entrypoint", || Value::Null);
        } else {
            map.retain(|(name, value)| !matches!(name.as_str(), "command" | "entrypoint") || *value != Value::Null);
        }
    }
}

/// What a service needs of others without saying so at `depends_on`: links, namespaces and volumes of theirs.
fn implied_dependencies(map: &mut Map) {
    let mut first = Vec::new();
    let texts = |key: &str| {
        let list = map.iter().find(|(name, _)| name == key).map(|(_, value)| value.items()).unwrap_or_default();
        list.iter().filter_map(Value::as_text)
    };
    let before_colon = |text: &str| text.split(':').next().unwrap_or_default().to_owned();
    first.extend(texts("links").map(|link| (before_colon(link), true)));
    for key in ["network_mode", "ipc", "pid", "uts", "cgroup"] {
        let owner = text_of(map, key).and_then(|text| text.strip_prefix("service:"));
        first.extend(owner.map(|owner| (owner.to_owned(), true)));
    }
    let of_services = texts("volumes_from").filter(|text| !text.starts_with("container:"));
    first.extend(of_services.map(|text| (before_colon(text), false)));
    if first.is_empty() {
        return;
    }
    default(map, "depends_on", || Value::Map(Vec::new()));
    let Some(Value::Map(dependencies)) = get(map, "depends_on") else { return };
    for (service, restart) in first {
        default(dependencies, &service, || {
            let mut how = vec![pair("condition", Value::text("service_started")), pair("required", Value::Bool(true))];
            how.extend(restart.then(|| pair("restart", Value::Bool(true))));
            Value::Map(how)
        });
    }
    dependencies.sort_by(|(one, _), (other, _)| one.cmp(other));
}
