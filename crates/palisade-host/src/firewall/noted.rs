//! What the stacks that are up have let in by their own notes, for when somebody else has taken the table away.
//!
//! The notes are the binary's, which writes them; only this is read of them here.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use palisade_core::firewall::FirewallRules;
use palisade_core::names::ProjectName;

use super::FirewallError;
use crate::layout::Layout;

/// What matters of a stack's `state.json`.
#[derive(Deserialize)]
struct Noted {
    firewall: Option<FirewallRules>,
}

/// By stack. One whose notes can't be read is an error: without what it lets in, it would be shut out.
pub(super) fn stacks(realm: &str) -> Result<BTreeMap<String, FirewallRules>, FirewallError> {
    let folder = Path::new("/run").join(realm);
    let failed = |path: &Path, source| FirewallError::Noted { path: path.to_owned(), source };
    let names = match fs::read_dir(&folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries.and_then(|all| all.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()),
    };
    let mut stacks = BTreeMap::new();
    for name in names.map_err(|error| failed(&folder, error))? {
        // Files have names that no stack has.
        let Some(project) = name.to_str().and_then(|name| ProjectName::parse(name).ok()) else { continue };
        let layout = Layout { realm: realm.to_owned(), project };
        let path = layout.state();
        let noted: Noted = match fs::read(&path) {
            // Its first `up` is under way.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => continue,
            bytes => bytes
                .and_then(|bytes| serde_json::from_slice(&bytes).map_err(Into::into))
                .map_err(|error| failed(&path, error))?,
        };
        stacks.extend(noted.firewall.map(|rules| (layout.project.to_string(), rules)));
    }
    Ok(stacks)
}
