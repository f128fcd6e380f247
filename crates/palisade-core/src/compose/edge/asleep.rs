//! Routes to services that no active profile asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::merge::edge_routes;
use super::super::yaml::{Data, Entry, Node};
use crate::diagnostic::{Diagnostic, Sink, quoted};

/// The tree without routes to services that aren't there, and without what is said about domains that only such routes
/// are for. Each is told.
pub(crate) fn awake(root: Arc<Node>, asleep: &BTreeMap<&str, &Entry>, sink: &mut Sink) -> Arc<Node> {
    let part = |node: &Node, key: &str| node.get(key).map(|entry| Arc::clone(&entry.value));
    let Some(own) = part(&root, "x-palisade") else { return root };
    let Some(edge) = part(&own, "edge").map(|edge| edge_routes(&edge)) else { return root };
    let Some(routes) = part(&edge, "routes") else { return root };
    let Data::List(items) = &routes.data else { return root };
    let (gone, kept): (Vec<_>, Vec<_>) = items.iter().partition(|item| leads_to(item, asleep).is_some());
    if gone.is_empty() {
        return root;
    }
    for (to, service) in gone.iter().filter_map(|item| leads_to(item, asleep)) {
        let message = format!("this route is left out: no active profile asks for {}", quoted(&service.key));
        let note =
            Diagnostic::note("inactive-route", message).at(to.span, "").also(service.key_span, "it has `profiles`");
        sink.push(note.hint("ask for it with `--profile`"));
    }
    if kept.is_empty() {
        return root.replacing("x-palisade", &own.without("edge"));
    }
    let served: BTreeSet<String> = kept.iter().flat_map(|item| domains(item)).collect();
    let lost: BTreeSet<String> =
        gone.iter().flat_map(|item| domains(item)).filter(|name| !served.contains(name)).collect();
    let mut edge = edge.replacing("routes", &routes.with(Data::List(kept.into_iter().cloned().collect())));
    if let Some(certificates) = part(&edge, "certificates")
        && let Data::Map(entries) = &certificates.data
    {
        let left = entries.iter().filter(|entry| !lost.contains(&plain(&entry.key))).cloned().collect();
        edge = edge.replacing("certificates", &certificates.with(Data::Map(left)));
    }
    if let Some(Data::Scalar(default)) = part(&edge, "default_domain").as_deref().map(|node| &node.data)
        && lost.contains(&plain(&default.text))
    {
        edge = edge.without("default_domain");
    }
    root.replacing("x-palisade", &own.replacing("edge", &edge))
}

/// Where the route says `to`, and the service, if it isn't there.
fn leads_to<'n>(route: &'n Node, asleep: &BTreeMap<&str, &'n Entry>) -> Option<(&'n Node, &'n Entry)> {
    let to = &route.get("to")?.value;
    let Data::Scalar(scalar) = &to.data else { return None };
    let name = scalar.text.split_once(':').map_or(scalar.text.as_str(), |(name, _)| name);
    Some((to, *asleep.get(name)?))
}

fn domains(route: &Node) -> Vec<String> {
    let text = |node: &Node| match &node.data {
        Data::Scalar(scalar) => Some(plain(&scalar.text)),
        _ => None,
    };
    match route.get("domain").map(|entry| &entry.value) {
        Some(node) => match &node.data {
            Data::List(items) => items.iter().filter_map(|item| text(item)).collect(),
            _ => text(node).into_iter().collect(),
        },
        None => Vec::new(),
    }
}

fn plain(domain: &str) -> String {
    domain.trim_end_matches('.').to_lowercase()
}
