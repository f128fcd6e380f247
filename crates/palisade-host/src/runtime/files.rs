//! Secrets and configs of an instance: read while the host's tree is in view, then kept in memory that no other instance
//! and no disk has, and shown read-only at their targets.
//!
//! Where targets may be is the file system's business ([`super::rootfs`]).

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use palisade_core::instance::InstanceFile;
use palisade_core::stack::FileSource;

use super::init::Failure;
use super::rootfs::{clone, directory, failed, tmpfs};
use super::sys::{NODEV, NOEXEC, NOSUID, RDONLY};
use crate::provided;

/// Where secrets are unless the file says otherwise: a directory of its own, that nobody can put anything into.
pub(super) const SECRETS: &str = "/run/secrets";
/// Where the memory is while it is filled. Afterwards only the places where it is shown lead to it.
const WORKSHOP: &str = "/.files";

/// A file as it will be inside. Its content may be secret.
pub(super) struct Ready {
    target: PathBuf,
    bytes: Vec<u8>,
    uid: u32,
    gid: u32,
    mode: u32,
}

/// Something to be shown at a place inside.
pub(super) struct Shown {
    pub(super) target: PathBuf,
    pub(super) tree: OwnedFd,
}

/// Takes hold of the contents.
pub(super) fn gather(files: &[InstanceFile]) -> Result<Vec<Ready>, Failure> {
    let gather = |whole: &InstanceFile| {
        let file = &whole.file;
        let (bytes, uid, gid) = match &file.source {
            FileSource::Inline(text) => (text.0.clone().into_bytes(), 0, 0),
            FileSource::Path(path) => {
                let kind = if file.secret { "secret" } else { "config" };
                let read =
                    failed(provided::read(path), || format!("read {} for the {kind} {}", path.display(), file.name));
                let content = read?;
                (content.bytes, content.uid, content.gid)
            }
        };
        let (uid, gid) = (file.uid.unwrap_or(uid), file.gid.unwrap_or(gid));
        Ok(Ready { target: file.target.clone(), bytes, uid, gid, mode: file.mode & 0o7777 })
    };
    files.iter().map(gather).collect()
}

/// Where something will be shown.
pub(super) fn targets(files: &[Ready]) -> impl Iterator<Item = &Path> {
    files.iter().map(|file| file.target.as_path()).filter(|target| !is_in_secrets(target))
}

fn is_in_secrets(target: &Path) -> bool {
    target.parent() == Some(Path::new(SECRETS)) && target.file_name().is_some()
}

/// Writes the files and gives what has to be shown where. The root is the instance's by now, and still writable.
pub(super) fn write(files: &[Ready]) -> Result<Vec<Shown>, Failure> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let workshop = Path::new(WORKSHOP);
    directory(workshop, 0o700)?;
    let flags = nix::mount::MsFlags::MS_NOSUID | nix::mount::MsFlags::MS_NODEV | nix::mount::MsFlags::MS_NOEXEC;
    // Room for the contents and a page for what each file and directory needs besides.
    let pages: usize = files.iter().map(|file| file.bytes.len().div_ceil(4096) + 1).sum::<usize>() + 16;
    tmpfs(workshop, &format!("mode=700,size={}", pages * 4096), flags)?;
    let secrets = workshop.join("secrets");
    directory(&secrets, 0o755)?;
    let attributes = RDONLY | NOSUID | NODEV | NOEXEC;
    let mut shown = Vec::new();
    for (number, file) in files.iter().enumerate() {
        let in_secrets = is_in_secrets(&file.target);
        let path = match file.target.file_name() {
            Some(name) if in_secrets => secrets.join(name),
            _ => workshop.join(number.to_string()),
        };
        failed(write_one(&path, file), || format!("make the file {}", file.target.display()))?;
        if !in_secrets {
            shown.push(Shown { target: file.target.clone(), tree: clone(&path, attributes)? });
        }
    }
    if files.iter().any(|file| is_in_secrets(&file.target)) {
        shown.push(Shown { target: PathBuf::from(SECRETS), tree: clone(&secrets, attributes)? });
    }
    failed(umount2(workshop, MntFlags::MNT_DETACH).map_err(io::Error::from), || "detach the files' memory".into())?;
    failed(fs::remove_dir(workshop), || format!("remove {WORKSHOP}"))?;
    Ok(shown)
}

/// Writes the files into a folder of the host that only root enters, for an engine to mount: what is shown where.
pub(crate) fn provide(files: &[InstanceFile], folder: &Path) -> Result<Vec<(PathBuf, PathBuf)>, (String, io::Error)> {
    let ready = gather(files).map_err(|failure| (failure.operation, failure.source))?;
    let at = |operation: &str, path: &Path| {
        let operation = format!("{operation} {}", path.display());
        move |source: io::Error| (operation, source)
    };
    let mut shown = Vec::new();
    for (number, file) in ready.iter().enumerate() {
        if number == 0 {
            fs::create_dir_all(folder).map_err(at("make", folder))?;
        }
        let path = folder.join(number.to_string());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at("remove", &path)(error)),
            _ => {}
        }
        write_one(&path, file).map_err(at("make", &path))?;
        shown.push((file.target.clone(), path));
    }
    Ok(shown)
}

fn write_one(path: &Path, file: &Ready) -> io::Result<()> {
    let mut made = fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    io::Write::write_all(&mut made, &file.bytes)?;
    chown(path, Some(file.uid), Some(file.gid))?;
    // Last: giving a file away takes its set-user-id bit.
    fs::set_permissions(path, Permissions::from_mode(file.mode))
}
