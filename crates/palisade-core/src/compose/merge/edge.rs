//! Short forms of the edge in their long form, and what makes two of its routes the same.

use smol_str::{SmolStr, format_smolstr};
use std::sync::Arc;

use super::super::keys::Short;
use super::super::yaml::{Data, Entry, Node};
use super::{items_of, text_of};

/// `edge: [route]` as `edge: {routes: [route]}`.
pub(crate) fn edge_routes(node: &Arc<Node>) -> Arc<Node> {
    if !matches!(node.data, Data::List(_)) {
        return Arc::clone(node);
    }
    let routes = Entry { key: SmolStr::new_static("routes"), key_span: node.span, value: Arc::clone(node) };
    node.with(Data::Map(vec![routes]))
}

/// `rate_limit: 10/s` as `rate_limit: {per_client: 10/s}`; `off` is none.
pub(super) fn rate(node: &Arc<Node>) -> Option<Arc<Node>> {
    let Data::Scalar(scalar) = &node.data else { return Some(Arc::clone(node)) };
    let rate = Entry { key: SmolStr::new_static("per_client"), key_span: node.span, value: Arc::clone(node) };
    scalar.text.contains('/').then(|| node.with(Data::Map(vec![rate])))
}

/// `certificates: local` as `certificates: {default: local}`.
pub(crate) fn for_all(node: Arc<Node>, short: Short) -> Arc<Node> {
    if short != Short::Certificate || !matches!(node.data, Data::Scalar(_)) {
        return node;
    }
    let all = Entry { key: SmolStr::new_static("default"), key_span: node.span, value: Arc::clone(&node) };
    node.with(Data::Map(vec![all]))
}

/// The domains of a route, in whatever order, and its path.
pub(super) fn route(item: &Node, path: Option<&str>) -> Option<SmolStr> {
    let domains = items_of(&item.get("domain")?.value, true)?.iter();
    let known = |item: &Arc<Node>| Some(text_of(item)?.trim_end_matches('.').to_lowercase());
    let mut domains = domains.map(known).collect::<Option<Vec<String>>>()?;
    domains.sort_unstable();
    let path = path.unwrap_or("/").trim_end_matches('/');
    Some(format_smolstr!("{}{path}/", domains.join(" ")))
}
