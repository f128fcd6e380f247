//! `profiles`: which services belong to the stack at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::LoadInputs;
use super::suggest::nearest;
use super::yaml::{Data, Entry, Node};
use crate::diagnostic::{Diagnostic, Sink, quoted};

/// The tree with the active services only, and the other ones.
pub(crate) fn select(root: Arc<Node>, inputs: &LoadInputs<'_>, sink: &mut Sink) -> (Arc<Node>, Vec<Entry>) {
    let wanted: BTreeSet<&str> =
        inputs.profiles.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
    let Some(Entry { value: services, key_span, .. }) = root.get("services") else { return (root, Vec::new()) };
    let Data::Map(entries) = &services.data else { return (root, Vec::new()) };
    let mut known = BTreeSet::new();
    let mut active = Vec::new();
    let mut inactive = Vec::new();
    for entry in entries {
        let profiles = profiles_of(entry, sink);
        let asked_for = wanted.contains("*") || profiles.iter().any(|name| wanted.contains(name.as_str()));
        let list = if profiles.is_empty() || asked_for { &mut active } else { &mut inactive };
        list.push(entry.clone());
        known.extend(profiles);
    }
    for name in wanted.iter().filter(|name| **name != "*" && !known.contains(**name)) {
        let diagnostic = Diagnostic::warning("unknown-profile", format!("no service has the profile {}", quoted(name)));
        let hint = match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.is_empty() => "this file has no profiles".to_owned(),
            None => format!("its profiles are {}", list(known.iter().map(String::as_str))),
        };
        sink.push(diagnostic.hint(hint));
    }
    if inactive.is_empty() {
        return (root, inactive);
    }
    if active.is_empty() {
        let message = "all services have profiles, and none of them is asked for";
        let hint = format!("ask for one with `--profile NAME`: {}", list(known.iter().map(String::as_str)));
        sink.push(Diagnostic::error("no-active-services", message).at(*key_span, "").hint(hint));
        return (root, Vec::new());
    }
    let asleep: BTreeMap<&str, &Entry> = inactive.iter().map(|entry| (entry.key.as_str(), entry)).collect();
    for entry in &mut active {
        entry.value = awake(entry, &asleep, sink);
    }
    let services = services.with(Data::Map(active));
    let root = super::edge::awake(root.replacing("services", &services), &asleep, sink);
    (root, inactive)
}

/// The profiles of a service; what isn't a list of texts is reported.
fn profiles_of(entry: &Entry, sink: &mut Sink) -> Vec<String> {
    let Some(profiles) = entry.value.get("profiles") else { return Vec::new() };
    let mut mistyped = |node: &Node, wanted: &str| {
        let message = format!("`profiles` is a list of names, but this is {}", node.kind());
        sink.push(Diagnostic::error("type", message).at(node.span, format!("expected {wanted}")));
    };
    let items = match &profiles.value.data {
        Data::List(items) => items.as_slice(),
        Data::Null => &[],
        _ => {
            mistyped(&profiles.value, "a list");
            &[]
        }
    };
    let mut names = Vec::new();
    for item in items {
        match &item.data {
            Data::Scalar(scalar) => names.push(scalar.text.to_string()),
            _ => mistyped(item, "a name"),
        }
    }
    names
}

/// The service without what it says about services that aren't there; what can't do without them is reported.
fn awake(entry: &Entry, asleep: &BTreeMap<&str, &Entry>, sink: &mut Sink) -> Arc<Node> {
    let mut service = Arc::clone(&entry.value);
    if let Some(depends_on) = entry.value.get("depends_on") {
        let node = &depends_on.value;
        let kept = match &node.data {
            Data::Map(dependencies) => Data::Map(
                dependencies
                    .iter()
                    .filter(|dependency| match asleep.get(dependency.key.as_str()) {
                        Some(other) => {
                            if !is_optional(dependency) {
                                sink.push(
                                    needs(entry, other)
                                        .at(dependency.key_span, "not in the stack")
                                        .also(other.key_span, "it has `profiles`"),
                                );
                            }
                            false
                        }
                        None => true,
                    })
                    .cloned()
                    .collect(),
            ),
            Data::List(names) => Data::List(
                names
                    .iter()
                    .filter(|name| match &name.data {
                        Data::Scalar(scalar) => match asleep.get(scalar.text.as_str()) {
                            Some(other) => {
                                sink.push(
                                    needs(entry, other)
                                        .at(name.span, "not in the stack")
                                        .also(other.key_span, "it has `profiles`"),
                                );
                                false
                            }
                            None => true,
                        },
                        _ => true,
                    })
                    .cloned()
                    .collect(),
            ),
            other => other.clone(),
        };
        service = service.replacing("depends_on", &node.with(kept));
    }
    let ours = service.get("x-palisade").map(|entry| Arc::clone(&entry.value));
    let connect = ours.as_ref().and_then(|ours| ours.get("connect")).map(|entry| Arc::clone(&entry.value));
    if let (Some(ours), Some(connect)) = (ours, connect)
        && let Data::List(peers) = &connect.data
    {
        // A peer that isn't there can't be reached anyway.
        let there = |peer: &&Arc<Node>| match &peer.data {
            Data::Scalar(scalar) => {
                !asleep.contains_key(scalar.text.split_once(':').map_or(scalar.text.as_str(), |(name, _)| name))
            }
            _ => true,
        };
        let kept = connect.with(Data::List(peers.iter().filter(there).cloned().collect()));
        service = service.replacing("x-palisade", &ours.replacing("connect", &kept));
    }
    service
}

fn is_optional(dependency: &Entry) -> bool {
    let required = dependency.value.get("required").map(|entry| &entry.value.data);
    matches!(required, Some(Data::Scalar(scalar)) if matches!(scalar.text.to_ascii_lowercase().as_str(), "false" | "no" | "off" | "n"))
}

fn needs(service: &Entry, other: &Entry) -> Diagnostic {
    let message =
        format!("{} depends on {}, which no active profile asks for", quoted(&service.key), quoted(&other.key));
    let profiles = profiles_of(other, &mut Sink::default());
    let ask = match profiles.as_slice() {
        [one] => format!("ask for it with `--profile {one}`"),
        many => format!("ask for it with `--profile` and one of {}", list(many.iter().map(String::as_str))),
    };
    Diagnostic::error("inactive-dependency", message).hint(format!("{ask}, or say `required: false` in `depends_on`"))
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const SHOWN_MAX: usize = 12;
    let names: Vec<_> = names.map(quoted).collect();
    let rest = names.len().saturating_sub(SHOWN_MAX);
    let shown = names[..names.len() - rest].join(", ");
    if rest == 0 { shown } else { format!("{shown} and {rest} more") }
}
