//! Files of the worker: there complete or not at all, and readable by one user only.

use rustls::crypto::aws_lc_rs;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a write leaves behind that was killed ends so, and is swept when it is this old.
const UNFINISHED: &str = ".new";
const UNFINISHED_AGE: Duration = Duration::from_secs(3600);

/// More than a key with its chain and all notes about it.
const ROOM_BYTES: usize = 32 << 10;

/// A folder that can't be used, or a file in it.
#[derive(Debug, thiserror::Error)]
#[error("can't {what} {path}{}", remedy(source))]
pub struct StoreError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What to do, where it isn't plain.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            " (make room on its disk; then it goes on by itself)"
        }
        io::ErrorKind::ReadOnlyFilesystem => " (its disk has become read-only: see `dmesg`)",
        _ => "",
    }
}

pub(super) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { what, path, source }
}

/// User and group that new files are given to. `None`: they stay the writer's.
pub(crate) type Owner = Option<(u32, u32)>;

/// Makes a folder that only its owner can look into, or closes one that others can. Root doesn't follow a link that the owner has put there.
pub(super) fn folder(path: &Path, owner: Owner) -> Result<(), StoreError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed("make the folder", path)(error));
        }
        _ => {}
    }
    let open = || File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path);
    let folder = open().map_err(failed("open the folder", path))?;
    let mode = folder.metadata().map_err(failed("look at", path))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        folder.set_permissions(fs::Permissions::from_mode(0o700)).map_err(failed("close", path))?;
    }
    match owner {
        Some((uid, gid)) => fchown(&folder, Some(uid), Some(gid)).map_err(failed("give away", path)),
        None => Ok(()),
    }
}

/// Puts a file with these bytes in the place of what is at `path`, for its owner only. After a return it survives a power cut.
pub(crate) fn replace(path: &Path, bytes: &[u8], owner: Owner) -> Result<(), StoreError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = folder.join(format!(".{name}.{:016x}{UNFINISHED}", random()));
    let write = || {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
        if let Some((uid, gid)) = owner {
            fchown(&file, Some(uid), Some(gid))?;
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&beside);
        failed("write", path)(error)
    })
}

/// Makes sure that there is room for what an order brings, before an authority is asked for it.
pub(super) fn room(folder: &Path) -> Result<(), StoreError> {
    let beside = folder.join(format!(".room.{:016x}{UNFINISHED}", random()));
    // Nothing that a file system could make smaller.
    let mut bytes = [0; ROOM_BYTES];
    aws_lc_rs::default_provider().secure_random.fill(&mut bytes).expect("the kernel has random numbers");
    let write = || {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(&bytes)?;
        file.sync_all()
    };
    let written = write().map_err(failed("keep anything more in", folder));
    let _ = fs::remove_file(&beside);
    written
}

/// Removes what writes left behind that were killed.
pub(super) fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let age = entry.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
        if name.starts_with('.') && name.ends_with(UNFINISHED) && age.is_some_and(|age| age > UNFINISHED_AGE) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Empties a folder of answers: nobody asks for those of an order that is over.
pub(super) fn empty(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let _ = fs::remove_file(entry.path());
    }
}

/// A number that nobody can guess.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    aws_lc_rs::default_provider().secure_random.fill(&mut bytes).expect("the kernel has random numbers");
    u64::from_ne_bytes(bytes)
}
