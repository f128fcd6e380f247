//! A later tree over an earlier one. Compose Specification, 13-merge.

use std::rc::Rc;

use super::keys::Section;
use super::yaml::{Data, MergeTag, Node};
use crate::diagnostic::Sink;

/// The mapping `later` over the mapping `earlier`; `section` says how each of their keys is merged.
pub(crate) fn merge(earlier: &Rc<Node>, later: &Rc<Node>, _section: &'static Section, _sink: &mut Sink) -> Rc<Node> {
    merge_any(earlier, later)
}

fn merge_any(earlier: &Rc<Node>, later: &Rc<Node>) -> Rc<Node> {
    match (&earlier.data, &later.data) {
        _ if later.tag != MergeTag::None => Rc::clone(later),
        (Data::Map(old), Data::Map(new)) => {
            let mut entries = old.clone();
            for entry in new {
                match entries.iter_mut().find(|old| old.key == entry.key) {
                    Some(old) => old.value = merge_any(&old.value, &entry.value),
                    None => entries.push(entry.clone()),
                }
            }
            later.with(Data::Map(entries))
        }
        (Data::List(old), Data::List(new)) => later.with(Data::List(old.iter().chain(new).cloned().collect())),
        _ => Rc::clone(later),
    }
}

/// Takes away what `!reset` stands at, once nothing more is merged.
pub(crate) fn finish(root: &Rc<Node>) -> Rc<Node> {
    match &root.data {
        Data::Map(entries) => {
            let kept = entries.iter().filter(|entry| entry.value.tag != MergeTag::Reset);
            let kept = kept.map(|entry| super::yaml::Entry { value: finish(&entry.value), ..entry.clone() });
            root.with(Data::Map(kept.collect()))
        }
        _ => Rc::clone(root),
    }
}
