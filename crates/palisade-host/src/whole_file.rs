//! Files that are there complete or not at all, also when somebody is killed while they are written.
//!
//! What stands in them is the business of who writes them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Puts a file with these bytes in the place of what is at `path`. `mode`: of a file that is made, before the umask. What
/// couldn't be written isn't left behind.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    put(path, bytes, mode, |_| Ok(()))
}

/// The same with exactly this mode, whatever the umask is: for files that other users read.
pub fn replace_for_others(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    put(path, bytes, mode, |file| file.set_permissions(fs::Permissions::from_mode(mode)))
}

fn put(path: &Path, bytes: &[u8], mode: u32, open: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // Of somebody who was killed, and perhaps for others to read.
    let _ = fs::remove_file(&beside);
    let file = File::options().write(true).create(true).truncate(true).mode(mode).open(&beside);
    let written = file.and_then(|mut file| {
        open(&file)?;
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&beside, path)).inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })
}
