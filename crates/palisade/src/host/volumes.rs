//! Folders of volumes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use palisade_core::action::{Action, VolumeName};
use palisade_core::apply::Undo;
use palisade_host::engine;

use super::error::io_error;
use super::{Adapters, HostError};

impl Adapters {
    pub(super) fn create_volume(&self, name: &VolumeName, owner: Option<&str>) -> Result<Undo, HostError> {
        if let VolumeName::Engine(volume) = name {
            engine::create_volume(self.engine()?, &self.layout.project, volume)?;
            return Ok(Undo::Do(vec![Action::RemoveVolume { name: name.clone() }]));
        }
        let path = self.volume_folder(name);
        if path.exists() {
            return Ok(Undo::Nothing);
        }
        let owner = owner.map(resolve).transpose()?;
        make_private_parents(&path)?;
        fs::create_dir(&path).map_err(io_error("making", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(io_error("making", &path))?;
        if let Some(note) = self.volume_note(name) {
            make_private_parents(&note)?;
            fs::write(&note, "").map_err(io_error("making", &note))?;
        }
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(&path, Some(uid), gid).map_err(io_error("giving away", &path))?;
        }
        Ok(Undo::Do(vec![Action::RemoveVolume { name: name.clone() }]))
    }

    pub(super) fn remove_volume(&self, name: &VolumeName) -> Result<Undo, HostError> {
        if let VolumeName::Engine(volume) = name {
            engine::remove_volume(self.engine()?, volume)?;
        } else {
            let path = self.volume_folder(name);
            fs::remove_dir_all(&path).map_err(io_error("deleting", &path))?;
            if let Some(note) = self.volume_note(name) {
                fs::remove_file(&note).map_err(io_error("deleting", &note))?;
            }
        }
        Ok(Undo::Impossible("its data is deleted"))
    }

    fn volume_folder(&self, name: &VolumeName) -> PathBuf {
        match name {
            VolumeName::Own(key) => self.layout.volume(key),
            VolumeName::Named(name) | VolumeName::Engine(name) => self.layout.named_volume(name),
        }
    }

    /// Where it is noted that this stack has made a volume that others may use.
    fn volume_note(&self, name: &VolumeName) -> Option<PathBuf> {
        match name {
            VolumeName::Own(_) | VolumeName::Engine(_) => None,
            VolumeName::Named(name) => Some(self.layout.made_volumes().join(name)),
        }
    }
}

/// The folders above a volume let everybody through and nobody look around.
fn make_private_parents(path: &Path) -> Result<(), HostError> {
    let Some(parent) = path.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(io_error("making", parent))?;
    fs::set_permissions(parent, fs::Permissions::from_mode(0o711)).map_err(io_error("making", parent))
}

/// `user[:group]`, by name or number.
fn resolve(owner: &str) -> Result<(u32, Option<u32>), HostError> {
    let (user, group) = owner.split_once(':').map_or((owner, None), |(user, group)| (user, Some(group)));
    let unknown = || HostError::NoUser(owner.to_owned());
    let found = nix::unistd::User::from_name(user).ok().flatten();
    let (uid, own_group) = match (found, user.parse::<u32>()) {
        (Some(user), _) => (user.uid.as_raw(), Some(user.gid.as_raw())),
        (None, Ok(uid)) => (uid, None),
        (None, Err(_)) => return Err(unknown()),
    };
    let Some(group) = group else { return Ok((uid, own_group)) };
    let found = nix::unistd::Group::from_name(group).ok().flatten().map(|group| group.gid.as_raw());
    let gid = found.or_else(|| group.parse().ok()).ok_or_else(unknown)?;
    Ok((uid, Some(gid)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_found_by_name_and_number() {
        assert_eq!(resolve("root").unwrap(), (0, Some(0)));
        assert_eq!(resolve("12345:root").unwrap(), (12345, Some(0)));
        assert_eq!(resolve("12345:54321").unwrap(), (12345, Some(54321)));
        assert!(resolve("no-such-user").is_err());
    }
}
