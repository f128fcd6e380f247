//! Which folder of the host a volume of a stack is, also when another stack has made it.
//!
//! Nothing is made or removed here.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use palisade_core::action::VolumeName;
use palisade_core::names::ProjectName;
use palisade_core::stack::Volume;

use crate::layout::Layout;

/// The folder of a volume that the stack's file calls `key`.
pub fn folder(layout: &Layout, key: &str, volume: &Volume) -> PathBuf {
    match volume.named(&layout.project, key) {
        VolumeName::Own(key) => layout.volume(&key),
        VolumeName::Named(name) | VolumeName::Engine(name) => named_folder(layout, &name),
    }
}

/// The folder of a volume by the name that any stack can use: one of its own, or `<project>_<key>` of whose it is.
/// One that doesn't exist would be where those with names of their own are.
pub fn named_folder(layout: &Layout, name: &str) -> PathBuf {
    let own = layout.named_volume(name);
    if own.is_dir() {
        return own;
    }
    let splits = name.match_indices('_').filter_map(|(at, _)| {
        let project = ProjectName::parse(&name[..at]).ok()?;
        Some(Layout { project, ..layout.clone() }.volume(&name[at + 1..]))
    });
    splits.into_iter().find(|path| path.is_dir()).unwrap_or(own)
}

/// The names of every volume of the realm that any stack can use.
pub fn names(layout: &Layout) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = folders(layout.named_volumes()).collect();
    let lib = layout.lib();
    for project in lib.parent().map(folders).into_iter().flatten().filter_map(|name| ProjectName::parse(name).ok()) {
        let other = Layout { project, ..layout.clone() };
        names.extend(folders(other.lib().join("volumes")).map(|key| format!("{}_{key}", other.project)));
    }
    names
}

/// Which volumes with names of their own the stack has made.
pub fn made(layout: &Layout) -> BTreeSet<String> {
    let entries = fs::read_dir(layout.made_volumes()).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn folders(path: impl AsRef<std::path::Path>) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
}
