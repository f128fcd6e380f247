//! A later tree over an earlier one. Compose Specification, 13-merge.
//!
//! What can stand at a key decides how it is merged: its [`Shape`]. What values mean is not looked at, but for what
//! makes two items of a list the same thing.
//!
//! Where the specification is silent, Compose's own behaviour is followed: an item takes the place of the one before it
//! that is the same thing, and nothing written (`key:`) leaves what was there.

use smol_str::{SmolStr, format_smolstr};
use std::collections::HashMap;
use std::sync::Arc;

use super::keys::{self, Identity, Pairs, Repeats, Section, Shape, Short};
use super::yaml::{Data, Entry, MergeTag, Node, Scalar};
use crate::diagnostic::{Diagnostic, Sink, quoted};

mod edge;
pub(crate) use edge::{edge_routes, for_all};
use edge::{rate, route};

/// The mapping `later` over the mapping `earlier`; `section` says how each of their keys is merged.
///
/// What `!reset` and `!override` stand at stays marked, so that a service may first be laid over the one that it extends
/// and then over that of an earlier file: [`finish`] comes last.
///
/// What nobody else holds of the earlier tree is changed where it is, without a copy.
pub(crate) fn merge(earlier: Arc<Node>, later: &Arc<Node>, section: &'static Section, sink: &mut Sink) -> Arc<Node> {
    Merger { sink }.value(earlier, later, Shape::Section(section), section.what)
}

/// The service `later` over the one that it extends. What the extended one's own file took away is gone.
pub(crate) fn service(earlier: &Arc<Node>, later: &Arc<Node>, sink: &mut Sink) -> Arc<Node> {
    let earlier = finish(earlier, sink);
    merge(earlier, later, &keys::SERVICE, sink)
}

/// Takes away what `!reset` stands at, once nothing more is merged.
pub(crate) fn finish(root: &Arc<Node>, sink: &mut Sink) -> Arc<Node> {
    Finisher { sink, done: HashMap::new() }.node(root)
}

/// Whether two trees say the same, wherever they stand: what is included twice is no conflict then.
pub(crate) fn same(one: &Node, other: &Node) -> bool {
    match (&one.data, &other.data) {
        (Data::Null, Data::Null) => true,
        (Data::Scalar(one), Data::Scalar(other)) => one.text == other.text,
        (Data::List(one), Data::List(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Data::Map(one), Data::Map(other)) => {
            let other: HashMap<_, _> = other.iter().map(|entry| (entry.key.as_str(), &entry.value)).collect();
            let known = |entry: &Entry| other.get(entry.key.as_str()).is_some_and(|value| same(&entry.value, value));
            one.len() == other.len() && one.iter().all(known)
        }
        _ => false,
    }
}

/// Mappings with fewer entries than this are searched, bigger ones hashed.
const FEW: usize = 32;

struct Merger<'s> {
    sink: &'s mut Sink,
}

impl Merger<'_> {
    /// `name` is the key's, for messages.
    fn value(&mut self, earlier: Arc<Node>, later: &Arc<Node>, shape: Shape, name: &str) -> Arc<Node> {
        if later.tag != MergeTag::None || earlier.tag == MergeTag::Reset || earlier.is_null() {
            return Arc::clone(later);
        }
        // A command that is nothing is one of the things that a command can be: the image's.
        if later.is_null() && !matches!(shape, Shape::Command | Shape::Test) {
            return earlier;
        }
        match shape {
            Shape::Command | Shape::Test | Shape::Whole => Arc::clone(later),
            Shape::One(_) => self.one(&earlier, later, name),
            Shape::List(_, repeats) => self.list(&earlier, later, repeats, false, name),
            Shape::OneOrList(_, repeats) => self.list(&earlier, later, repeats, true, name),
            Shape::Pairs(Pairs::Equals | Pairs::Contexts) => self.pairs(earlier, later, name),
            Shape::Pairs(Pairs::Hosts) => self.hosts(&earlier, later, name),
            Shape::Section(section) => self.section(earlier, later, section, name),
            Shape::Short(short, section) => self.short(earlier, later, short, section, name),
            Shape::Named(section) => self.map(earlier, later, name, |_| Shape::Section(section)),
            Shape::NamedShort(short, section) => {
                let (earlier, later) = (for_all(earlier, short), for_all(Arc::clone(later), short));
                self.map(earlier, &later, name, |_| Shape::Short(short, section))
            }
            Shape::NamedOrList(section) => {
                let (earlier, later) = (listed_names(&earlier, section), listed_names(later, section));
                self.map(earlier, &later, name, |_| Shape::Section(section))
            }
            Shape::Items(_, section) => self.items(&earlier, later, false, section, name),
            Shape::OneOrItems(_, section) => self.items(&earlier, later, true, section, name),
            Shape::Any => self.any(&earlier, later, name),
        }
    }

    fn section(&mut self, earlier: Arc<Node>, later: &Arc<Node>, section: &'static Section, name: &str) -> Arc<Node> {
        if section.identity == Identity::Driver && differ(&earlier, later, "driver") {
            return Arc::clone(later);
        }
        self.map(earlier, later, name, |key| section.key(key).map_or(Shape::Any, |key| key.shape))
    }

    fn map(
        &mut self,
        mut earlier: Arc<Node>,
        later: &Arc<Node>,
        name: &str,
        shape_of: impl Fn(&str) -> Shape,
    ) -> Arc<Node> {
        let (Data::Map(old), Data::Map(new)) = (&earlier.data, &later.data) else {
            return self.conflict(&earlier, later, name);
        };
        let places = places(old, new);
        let mut entries = match Arc::get_mut(&mut earlier).map(|own| &mut own.data) {
            Some(Data::Map(own)) => std::mem::take(own),
            _ => entries_of(&earlier).to_vec(),
        };
        for (entry, place) in new.iter().zip(places) {
            match place {
                Some(at) => {
                    let before = std::mem::replace(&mut entries[at].value, Arc::clone(&entry.value));
                    entries[at].value = self.value(before, &entry.value, shape_of(&entry.key), &entry.key);
                }
                None => entries.push(entry.clone()),
            }
        }
        later.with(Data::Map(entries))
    }

    fn one(&mut self, earlier: &Arc<Node>, later: &Arc<Node>, name: &str) -> Arc<Node> {
        match (&earlier.data, &later.data) {
            (Data::Scalar(_), Data::Scalar(_)) => Arc::clone(later),
            _ => self.conflict(earlier, later, name),
        }
    }

    /// What no table describes: mappings and lists grow, all else is replaced.
    fn any(&mut self, earlier: &Arc<Node>, later: &Arc<Node>, name: &str) -> Arc<Node> {
        match (&earlier.data, &later.data) {
            (Data::Map(_), Data::Map(_)) => self.map(Arc::clone(earlier), later, name, |_| Shape::Any),
            (Data::List(old), Data::List(new)) => later.with(Data::List(old.iter().chain(new).cloned().collect())),
            (Data::Scalar(_), _) => Arc::clone(later),
            _ => self.conflict(earlier, later, name),
        }
    }

    fn list(
        &mut self,
        earlier: &Arc<Node>,
        later: &Arc<Node>,
        repeats: Repeats,
        one_too: bool,
        name: &str,
    ) -> Arc<Node> {
        let (Some(old), Some(new)) = (items_of(earlier, one_too), items_of(later, one_too)) else {
            return self.conflict(earlier, later, name);
        };
        let all = old.iter().chain(new);
        later.with(Data::List(match repeats {
            Repeats::Kept => all.cloned().collect(),
            Repeats::Dropped => distinct(all, text_of, |old, _| Arc::clone(old)),
        }))
    }

    /// By key, whatever their forms.
    fn pairs(&mut self, earlier: Arc<Node>, later: &Arc<Node>, name: &str) -> Arc<Node> {
        let (Some(pairs), Some(new)) = (pairs_of(&earlier), pairs_of(later)) else {
            return self.conflict(&earlier, later, name);
        };
        later.with(Data::Map(last_of_each(pairs.into_iter().chain(new))))
    }

    /// A name may have several addresses, so that only what is the same altogether is dropped.
    fn hosts(&mut self, earlier: &Arc<Node>, later: &Arc<Node>, name: &str) -> Arc<Node> {
        let (Some(old), Some(new)) = (hosts_of(earlier), hosts_of(later)) else {
            return self.conflict(earlier, later, name);
        };
        let identity = |item: &Node| {
            let text = text_of(item)?;
            Some(split_host(&text).map(|(name, address)| format_smolstr!("{name}={address}")).unwrap_or(text))
        };
        later.with(Data::List(distinct(old.iter().chain(&new), identity, |old, _| Arc::clone(old))))
    }

    fn short(
        &mut self,
        earlier: Arc<Node>,
        later: &Arc<Node>,
        short: Short,
        section: &'static Section,
        name: &str,
    ) -> Arc<Node> {
        match (&earlier.data, &later.data, short) {
            (Data::Map(_), Data::Map(_), _) => self.section(earlier, later, section, name),
            (Data::List(_) | Data::Map(_), Data::List(_) | Data::Map(_), Short::Edge) => {
                self.section(edge_routes(&earlier), &edge_routes(later), section, name)
            }
            (Data::Scalar(_) | Data::Map(_), Data::Scalar(_) | Data::Map(_), Short::Rate) => {
                match (rate(&earlier), rate(later)) {
                    (Some(earlier), Some(later)) => self.section(earlier, &later, section, name),
                    _ => Arc::clone(later),
                }
            }
            (Data::Scalar(_) | Data::Map(_), Data::Scalar(_) | Data::Map(_), Short::Build) => {
                self.section(build_context(&earlier), &build_context(later), section, name)
            }
            (Data::Scalar(_) | Data::Map(_), Data::Scalar(_) | Data::Map(_), _) => Arc::clone(later),
            _ => self.conflict(&earlier, later, name),
        }
    }

    fn items(
        &mut self,
        earlier: &Arc<Node>,
        later: &Arc<Node>,
        one_too: bool,
        section: &'static Section,
        name: &str,
    ) -> Arc<Node> {
        let (Some(old), Some(new)) = (items_of(earlier, one_too), items_of(later, one_too)) else {
            return self.conflict(earlier, later, name);
        };
        // One word for all there are, and a list of some.
        let word = |node: &Node| matches!(node.data, Data::Scalar(_));
        if section.identity == Identity::Place && (word(earlier) || word(later)) {
            return Arc::clone(later);
        }
        let together = |old: &Arc<Node>, new: &Arc<Node>| match section.identity {
            // Its domains are the same, if perhaps spelled otherwise.
            Identity::Route => self.section(Arc::clone(old), &new.without("domain"), section, name),
            // What a pool of addresses lacks is looked up in the one before.
            Identity::Subnet => self.section(Arc::clone(old), new, section, name),
            _ => Arc::clone(new),
        };
        later.with(Data::List(distinct(old.iter().chain(new), |item| identity(item, section), together)))
    }

    fn conflict(&mut self, earlier: &Arc<Node>, later: &Arc<Node>, name: &str) -> Arc<Node> {
        let name = if name.contains('`') { name.to_owned() } else { quoted(name) };
        let message = if earlier.kind() == later.kind() {
            format!("{name} can't be {}", earlier.kind())
        } else {
            format!(
                "{name} is {} in one file and {} in another, so the two can't be merged",
                earlier.kind(),
                later.kind()
            )
        };
        self.sink.push(
            Diagnostic::error("merge-conflict", message)
                .at(later.span, format!("{} here", later.kind()))
                .also(earlier.span, format!("{} here", earlier.kind()))
                .hint("write both the same way, or put `!override` before the later one to replace the earlier"),
        );
        Arc::clone(later)
    }
}

/// Whether both say something, and not the same.
fn differ(earlier: &Node, later: &Node, key: &str) -> bool {
    let text = |node: &Node| node.get(key).and_then(|entry| text_of(&entry.value));
    matches!((text(earlier), text(later)), (Some(one), Some(other)) if one != other)
}

fn text_of(node: &Node) -> Option<SmolStr> {
    match &node.data {
        Data::Scalar(scalar) => Some(scalar.text.clone()),
        _ => None,
    }
}

fn items_of(node: &Arc<Node>, one_too: bool) -> Option<&[Arc<Node>]> {
    match &node.data {
        Data::List(items) => Some(items),
        Data::Scalar(_) if one_too => Some(std::slice::from_ref(node)),
        _ => None,
    }
}

/// Items that are the same thing become one, at the place of the first; what has no identity stays.
fn distinct<'n>(
    items: impl Iterator<Item = &'n Arc<Node>>,
    identity: impl Fn(&Node) -> Option<SmolStr>,
    mut together: impl FnMut(&Arc<Node>, &Arc<Node>) -> Arc<Node>,
) -> Vec<Arc<Node>> {
    let mut kept: Vec<Arc<Node>> = Vec::new();
    let mut places = HashMap::new();
    for item in items {
        let known = identity(item).map(|identity| *places.entry(identity).or_insert(kept.len()));
        match known {
            Some(at) if at < kept.len() => kept[at] = together(&kept[at], item),
            _ => kept.push(Arc::clone(item)),
        }
    }
    kept
}

/// A list of names as a mapping from them.
pub(crate) fn listed_names(node: &Arc<Node>, section: &'static Section) -> Arc<Node> {
    let Data::List(items) = &node.data else { return Arc::clone(node) };
    let mut entries: Vec<Entry> = Vec::with_capacity(items.len());
    let mut seen = std::collections::HashSet::new();
    for item in items {
        let Data::Scalar(scalar) = &item.data else { return Arc::clone(node) };
        if seen.insert(&scalar.text) {
            // A name in the list of `depends_on` says how far the other must be, so it replaces an earlier word on it.
            let value = if std::ptr::eq(section, &raw const keys::DEPENDENCY) {
                let part = |key: &str, text: &str| Entry {
                    key: key.into(),
                    key_span: item.span,
                    value: Arc::new(Node::made(
                        item.span,
                        Data::Scalar(Scalar { text: text.into(), written: None, plain: true }),
                    )),
                };
                Data::Map(vec![part("condition", "service_started"), part("required", "true")])
            } else {
                Data::Null
            };
            let value = Arc::new(Node::made(item.span, value));
            entries.push(Entry { key: scalar.text.clone(), key_span: item.span, value });
        }
    }
    node.with(Data::Map(entries))
}

/// `build: path` as `build: {context: path}`.
pub(crate) fn build_context(node: &Arc<Node>) -> Arc<Node> {
    if !matches!(node.data, Data::Scalar(_)) {
        return Arc::clone(node);
    }
    let context = Entry { key: SmolStr::new_static("context"), key_span: node.span, value: Arc::clone(node) };
    node.with(Data::Map(vec![context]))
}

/// Pairs of any form as a mapping.
pub(crate) fn pairs_of(node: &Node) -> Option<Vec<Entry>> {
    match &node.data {
        Data::Map(entries) => Some(entries.clone()),
        Data::List(items) => {
            items.iter().map(pair_of).collect::<Option<Vec<_>>>().map(|pairs| last_of_each(pairs.into_iter()))
        }
        _ => None,
    }
}

/// The last entry of each key, at the place of the first.
fn last_of_each(all: impl Iterator<Item = Entry>) -> Vec<Entry> {
    let mut places: HashMap<SmolStr, usize> = HashMap::new();
    let mut kept: Vec<Entry> = Vec::with_capacity(all.size_hint().0);
    for entry in all {
        let known = match kept.len() {
            ..FEW => kept.iter().position(|known| known.key == entry.key),
            _ => {
                let unknown = places.len()..kept.len();
                places.extend(unknown.map(|at| (kept[at].key.clone(), at)));
                places.get(&entry.key).copied()
            }
        };
        match known {
            Some(at) => kept[at] = entry,
            None => kept.push(entry),
        }
    }
    kept
}

fn entries_of(node: &Node) -> &[Entry] {
    match &node.data {
        Data::Map(entries) => entries,
        _ => &[],
    }
}

/// Where the key of each new entry stands among the old ones.
fn places(old: &[Entry], new: &[Entry]) -> Vec<Option<usize>> {
    if old.len() < FEW || new.len() < FEW {
        return new.iter().map(|entry| old.iter().position(|old| old.key == entry.key)).collect();
    }
    let known: HashMap<&str, usize> = old.iter().enumerate().map(|(at, entry)| (entry.key.as_str(), at)).collect();
    new.iter().map(|entry| known.get(entry.key.as_str()).copied()).collect()
}

/// `KEY=value`, or `KEY` without one.
fn pair_of(item: &Arc<Node>) -> Option<Entry> {
    let Data::Scalar(scalar) = &item.data else { return None };
    let Some((key, text)) = scalar.text.split_once('=') else {
        return Some(Entry {
            key: scalar.text.clone(),
            key_span: item.span,
            value: Arc::new(Node::made(item.span, Data::Null)),
        });
    };
    // Where the name itself was made of variables, the whole item is shown.
    let written = scalar.written.as_deref().map(|written| match written.split_once('=') {
        Some((known, value)) if known == key => value.into(),
        _ => written.into(),
    });
    let value = Scalar { text: text.into(), written, plain: false };
    Some(Entry { key: key.into(), key_span: item.span, value: item.with(Data::Scalar(value)) })
}

/// `extra_hosts` of any form as a list of `name=address`.
pub(crate) fn hosts_of(node: &Node) -> Option<Vec<Arc<Node>>> {
    let entries = match &node.data {
        Data::List(items) => return Some(items.clone()),
        Data::Map(entries) => entries,
        _ => return None,
    };
    let mut list = Vec::with_capacity(entries.len());
    for entry in entries {
        let addresses = items_of(&entry.value, true).unwrap_or_default();
        for address in addresses {
            let Data::Scalar(scalar) = &address.data else { return None };
            let with_name = |text: &str| format_smolstr!("{}={text}", entry.key);
            list.push(address.with(Data::Scalar(Scalar {
                text: with_name(&scalar.text),
                written: scalar.written.as_deref().map(|written| with_name(written).as_str().into()),
                plain: false,
            })));
        }
    }
    Some(list)
}

/// `name=address` and `name:address` as their parts.
pub(crate) fn split_host(text: &str) -> Option<(&str, &str)> {
    let (name, address) = text.split_once('=').or_else(|| text.split_once(':'))?;
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    Some((name, bare.unwrap_or(address)))
}

/// What makes two items of a list the same thing; `None` when nothing does.
pub(crate) fn identity(item: &Node, section: &'static Section) -> Option<SmolStr> {
    let part = |key: &str| match item.get(key).map(|entry| &entry.value.data) {
        Some(Data::Scalar(scalar)) => Some(scalar.text.as_str()),
        _ => None,
    };
    let short = match &item.data {
        Data::Scalar(scalar) => Some(scalar.text.as_str()),
        _ => None,
    };
    match section.identity {
        Identity::Port => {
            let (ip, published, target, protocol) = match short {
                Some(text) => split_port(text),
                None => (part("host_ip"), part("published"), part("target")?, part("protocol")),
            };
            let bare = |ip: &str| ip.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
            let (ip, protocol) = (bare(ip.unwrap_or("0.0.0.0")), protocol.unwrap_or("tcp").to_ascii_lowercase());
            Some(format_smolstr!("{ip}|{}|{target}/{protocol}", published.unwrap_or_default()))
        }
        Identity::Target => Some(clean(short.map(mapped_target).or_else(|| part("target").or(part("source")))?)),
        Identity::TargetBelow(folder) => {
            let target = short.or(part("target")).or(part("source"))?;
            Some(if target.starts_with('/') { clean(target) } else { format_smolstr!("{folder}/{target}") })
        }
        Identity::Path => short.or(part("path")).map(SmolStr::from),
        Identity::Subnet => part("subnet").map(SmolStr::from),
        Identity::Route => route(item, part("path")),
        Identity::Place | Identity::Driver => None,
    }
}

/// The address, port of the host, port and protocol of a short form, as far as they are there.
pub(crate) fn split_port(text: &str) -> (Option<&str>, Option<&str>, &str, Option<&str>) {
    let (rest, protocol) = text.rsplit_once('/').map_or((text, None), |(rest, protocol)| (rest, Some(protocol)));
    let (host, target) = rest.rsplit_once(':').map_or((None, rest), |(host, target)| (Some(host), target));
    let (ip, published) = match host.and_then(|host| host.rsplit_once(':')) {
        Some((ip, published)) => (Some(ip), Some(published)),
        None => (None, host),
    };
    (ip.filter(|ip| !ip.is_empty()), published.filter(|port| !port.is_empty()), target, protocol)
}

/// Where the short form of a mount or device is seen.
fn mapped_target(text: &str) -> &str {
    let mut parts = text.split(':');
    let first = parts.next().unwrap_or_default();
    parts.next().unwrap_or(first)
}

/// A path without needless slashes and dots.
pub(crate) fn clean(path: &str) -> SmolStr {
    let (root, rest) = path.strip_prefix('/').map_or(("", path), |rest| ("/", rest));
    let needless = |part: &&str| matches!(*part, "" | ".");
    if !rest.split('/').any(|part| needless(&part)) {
        return path.into();
    }
    let parts: Vec<_> = rest.split('/').filter(|part| !needless(part)).collect();
    format_smolstr!("{root}{}", parts.join("/"))
}

struct Finisher<'s> {
    sink: &'s mut Sink,
    /// What aliases share is looked at once, and shared again.
    done: HashMap<*const Node, Arc<Node>>,
}

impl Finisher<'_> {
    fn node(&mut self, node: &Arc<Node>) -> Arc<Node> {
        if !node.has_tags() {
            return Arc::clone(node);
        }
        let shared = Arc::strong_count(node) > 1;
        if let Some(done) = self.done.get(&Arc::as_ptr(node)).filter(|_| shared) {
            return Arc::clone(done);
        }
        let finished = match &node.data {
            Data::Null | Data::Scalar(_) => node.data.clone(),
            Data::Map(entries) => Data::Map(self.entries(entries)),
            Data::List(items) => Data::List(self.items(items)),
        };
        let finished = Arc::new(Node::made(node.span, finished));
        if shared {
            self.done.insert(Arc::as_ptr(node), Arc::clone(&finished));
        }
        finished
    }

    fn entries(&mut self, entries: &[Entry]) -> Vec<Entry> {
        let kept = entries.iter().filter(|entry| entry.value.tag != MergeTag::Reset);
        kept.map(|entry| Entry { value: self.node(&entry.value), ..entry.clone() }).collect()
    }

    fn items(&mut self, items: &[Arc<Node>]) -> Vec<Arc<Node>> {
        let mut finished = Vec::with_capacity(items.len());
        for item in items {
            if item.tag == MergeTag::Reset {
                self.sink.push(
                    Diagnostic::warning(
                        "tag",
                        "`!reset` on one item of a list takes nothing away from an earlier file",
                    )
                    .at(item.span, "this item is left out")
                    .hint("put `!override` before the list, and write all that it is to hold"),
                );
            } else {
                finished.push(self.node(item));
            }
        }
        finished
    }
}

#[cfg(test)]
mod tests;
