//! What a stack was at one time: enough to bring it back, and to say what changed since.
//!
//! Pure. Where generations are kept is the binary's business. They hold secrets: the environment is in the stack.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::action::counted;
use crate::digest::{Fingerprint, digest_of};
use crate::image::image_name;
use crate::names::ServiceName;
use crate::observed::ImageSeen;
use crate::stack::{Grant, Stack};

/// A stack as it was brought up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Generation {
    /// Counted from 1.
    pub number: u64,
    /// Seconds since the Unix epoch.
    pub made_at_s: u64,
    /// What made it.
    pub origin: Origin,
    /// Who typed the command: a user of the host.
    pub user: String,
    /// What was typed.
    pub command: Vec<String>,
    /// The files, merged and interpolated.
    pub stack: Stack,
    /// The images that ran, by the names that the stack has for them.
    pub images: BTreeMap<String, ImageSeen>,
}

/// What made a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// `up`.
    Up,
    /// `rollback`.
    Rollback {
        /// The generation that it went back to.
        to: u64,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Up => f.write_str("up"),
            Origin::Rollback { to } => write!(f, "rollback to {to}"),
        }
    }
}

/// What became different between two generations, without values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Services that are new.
    pub added: BTreeSet<String>,
    /// Services that are gone.
    pub removed: BTreeSet<String>,
    /// Services that differ, and in what.
    pub changed: BTreeMap<String, Vec<String>>,
    /// What differs outside services.
    pub stack: Vec<String>,
}

impl Changes {
    /// From one generation to a later one.
    pub fn between(from: &Generation, to: &Generation) -> Self {
        let (before, after) = (services(from), services(to));
        let names = |of: &BTreeMap<String, Fingerprint>, other: &BTreeMap<String, Fingerprint>| {
            of.keys().filter(|name| !other.contains_key(*name)).cloned().collect()
        };
        let changed = after.iter().filter_map(|(name, after)| {
            let keys = before.get(name)?.differences(after);
            (!keys.is_empty()).then(|| (name.clone(), keys))
        });
        let whole = |stack: &Stack| {
            let mut parts = vec![
                ("volumes".to_owned(), digest_of(&stack.volumes)),
                ("firewall".to_owned(), digest_of(&placeless(&stack.firewall))),
            ];
            if let Value::Object(fields) = placeless(&stack.edge) {
                let fields =
                    fields.iter().map(|(field, value)| (format!("edge.{}", edge_word(field)), digest_of(value)));
                parts.extend(fields);
            }
            Fingerprint::new(parts)
        };
        let mut stack = whole(&from.stack).differences(&whole(&to.stack));
        if from.stack.edge.is_some() != to.stack.edge.is_some() {
            stack.retain(|part| !part.starts_with("edge."));
            stack.push("edge".to_owned());
        }
        Self { added: names(&after, &before), removed: names(&before, &after), changed: changed.collect(), stack }
    }

    /// Nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing");
        }
        let added = self.added.iter().map(|name| format!("+{name}"));
        let removed = self.removed.iter().map(|name| format!("-{name}"));
        let changed = self.changed.iter().map(|(name, keys)| match keys.len() {
            0..=4 => format!("{name}: {}", keys.join(", ")),
            number => format!("{name}: {} and {}", keys[..3].join(", "), counted(number - 3, "other")),
        });
        let all: Vec<_> = added.chain(removed).chain(changed).chain(self.stack.iter().cloned()).collect();
        f.write_str(&all.join("; "))
    }
}

/// What each service is made of, by the words of a Compose file.
fn services(generation: &Generation) -> BTreeMap<String, Fingerprint> {
    let stack = &generation.stack;
    let of = |service: &crate::stack::Service| {
        let mut parts = Vec::new();
        if let Value::Object(fields) = placeless(service) {
            for (field, value) in fields {
                match (field.as_str(), value) {
                    ("name", _) => {}
                    // What runs and how is one level deeper.
                    ("run", Value::Object(runs)) => {
                        for (field, value) in runs {
                            match (field.as_str(), value) {
                                ("container", Value::Object(settings)) => {
                                    parts.extend(settings.iter().map(|(key, value)| (key.clone(), digest_of(value))));
                                }
                                (_, value) => parts.push((word(&field).to_owned(), digest_of(&value))),
                            }
                        }
                    }
                    ("environment", Value::Object(variables)) => {
                        let variables = variables.iter();
                        parts.extend(variables.map(|(key, value)| (format!("environment.{key}"), digest_of(value))));
                    }
                    (_, value) => parts.push((word(&field).to_owned(), digest_of(&value))),
                }
            }
        }
        if let Some(container) = service.run.container_run() {
            let image = generation.images.get(&image_name(&stack.project, service, container));
            parts.push(("image digest".to_owned(), digest_of(&image.map(|image| &image.id))));
        }
        (service.name.to_string(), Fingerprint::new(parts))
    };
    stack.services.iter().map(of).collect()
}

/// What the file calls a field of ours.
fn word(field: &str) -> &str {
    match field {
        "publish" => "ports",
        "mounts" => "volumes",
        "files" => "secrets and configs",
        "stop_grace_ms" => "stop_grace_period",
        "log" => "logging",
        "host_mode" => "network_mode",
        "settings" => "process settings",
        "host_ports" => "x-palisade.host",
        "connect" => "x-palisade.connect",
        "egress" => "x-palisade.egress",
        "strict" => "x-palisade.strict",
        "process" => "x-palisade.process",
        "runtime" => "x-palisade.runtime",
        field => field,
    }
}

/// What the file calls a field of the edge.
fn edge_word(field: &str) -> &str {
    match field {
        "http_port" => "ports.http",
        "https_port" => "ports.https",
        "tls_minimum" => "tls.minimum",
        field => field,
    }
}

/// The value without the places where it was written: a line that moved is no change.
fn placeless(value: &impl Serialize) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                // A variable of this name is a text.
                if fields.get("place").is_some_and(|place| place.get("line").is_some()) {
                    fields.remove("place");
                }
                fields.values_mut().for_each(strip);
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    // As in `digest_of`: nothing of ours fails here.
    let mut value = serde_json::to_value(value).unwrap_or_default();
    strip(&mut value);
    value
}

/// The services that are asked for and, unless `alone`, everything that they depend on.
pub fn with_dependencies(stack: &Stack, asked: &BTreeSet<ServiceName>, alone: bool) -> BTreeSet<ServiceName> {
    let mut chosen = asked.clone();
    let mut queue: Vec<ServiceName> = if alone { Vec::new() } else { asked.iter().cloned().collect() };
    while let Some(service) = queue.pop().and_then(|name| stack.service(&name)) {
        for dependency in &service.depends_on {
            if chosen.insert(dependency.value.service.clone()) {
                queue.push(dependency.value.service.clone());
            }
        }
    }
    chosen
}

/// The stack when only some services become as the file says: the others are as they were applied, or not there.
pub fn partly(file: &Stack, applied: Option<&Stack>, chosen: &BTreeSet<ServiceName>) -> Stack {
    let was = |name: &ServiceName| applied.and_then(|stack| stack.service(name)).cloned();
    let of_file = file.services.iter().filter_map(|service| match chosen.contains(&service.name) {
        true => Some(service.clone()),
        false => was(&service.name),
    });
    let left = applied.into_iter().flat_map(|stack| &stack.services);
    let left = left.filter(|service| file.service(&service.name).is_none()).cloned();
    let mut stack = Stack { services: of_file.chain(left).collect(), ..file.clone() };
    if let Some(applied) = applied {
        for (key, volume) in &applied.volumes {
            stack.volumes.entry(key.clone()).or_insert_with(|| volume.clone());
        }
    }
    // What isn't there yet can't be waited for or connected to; it comes with an `up` of its own.
    let there: BTreeSet<ServiceName> = stack.services.iter().map(|service| service.name.clone()).collect();
    for service in &mut stack.services {
        service.depends_on.retain(|dependency| there.contains(&dependency.value.service));
        service.links.retain(|link| there.contains(&link.value.service));
        if let Some(grants) = &mut service.connect {
            grants.retain(|grant: &crate::place::Placed<Grant>| there.contains(&grant.value.service));
        }
    }
    stack
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::Condition;
    use crate::testing::{at, depends, grant, name, service, stack, tcp};

    fn generation(stack: Stack) -> Generation {
        let (user, command) = ("root".to_owned(), vec!["up".to_owned()]);
        Generation { number: 1, made_at_s: 0, origin: Origin::Up, user, command, stack, images: BTreeMap::new() }
    }

    #[test]
    fn changes_name_services_and_fields_and_no_values() {
        let mut db = service("db");
        db.environment.insert("PASSWORD".into(), "hunter2".into());
        let before = generation(stack([db.clone(), service("old")]));
        db.environment.insert("PASSWORD".into(), "hunter3".into());
        db.expose.push(at(tcp(5432)));
        let mut after = generation(stack([db, service("new")]));
        let changes = Changes::between(&before, &after);
        assert_eq!(changes.to_string(), "+new; -old; db: environment.PASSWORD, expose");
        // Lines that moved are no change.
        after = before.clone();
        after.stack.services[0].place.line += 7;
        assert!(Changes::between(&before, &after).is_empty());
        let text = serde_json::to_string(&before).unwrap();
        assert_eq!(serde_json::from_str::<Generation>(&text).unwrap(), before);
    }

    #[test]
    fn changes_of_the_edge_are_named_by_their_keys() {
        let (mut none, mut edge) = (crate::testing::stack_with_edge(), crate::testing::stack_with_edge());
        none.edge = None;
        let (none, before) = (generation(none), generation(edge.clone()));
        assert_eq!(Changes::between(&none, &before).to_string(), "edge");
        assert_eq!(Changes::between(&before, &none).stack, ["edge"]);
        let changed = edge.edge.as_mut().unwrap();
        changed.routes[0].place.line += 1;
        assert!(Changes::between(&before, &generation(edge.clone())).is_empty());
        let changed = edge.edge.as_mut().unwrap();
        (changed.routes[0].value.rate, changed.https_port) = (None, 8443);
        assert_eq!(Changes::between(&before, &generation(edge)).to_string(), "edge.ports.https; edge.routes");
    }

    #[test]
    fn some_services_are_as_in_the_file_and_the_others_as_they_were() {
        let mut app = service("app");
        app.depends_on = vec![depends("db", Condition::ServiceStarted)];
        app.connect = Some(vec![grant("db", None), grant("other", None)]);
        let file = stack([app, service("db"), service("other")]);
        let chosen = with_dependencies(&file, &BTreeSet::from([name("app")]), false);
        assert_eq!(chosen, BTreeSet::from([name("app"), name("db")]));
        let names = |stack: &Stack| stack.services.iter().map(|s| s.name.to_string()).collect::<Vec<_>>();
        let first = partly(&file, None, &chosen);
        assert_eq!(names(&first), ["app", "db"]);
        assert_eq!(first.services[0].connect.as_ref().unwrap().len(), 1);
        let alone = with_dependencies(&file, &BTreeSet::from([name("app")]), true);
        assert!(partly(&file, None, &alone).services[0].depends_on.is_empty());
        let mut was = service("other");
        was.replicas = 3;
        let second = partly(&file, Some(&stack([was, service("gone")])), &chosen);
        assert_eq!(names(&second), ["app", "db", "other", "gone"]);
        assert_eq!(second.services[2].replicas, 3);
    }
}
