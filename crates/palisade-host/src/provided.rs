//! Files of the host that secrets and configs come from: looked at when a change is planned, read when an instance starts.
//!
//! Contents go into a digest or into an instance and nowhere else.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use palisade_core::digest::digest_of;
use palisade_core::observed::FileSeen;

/// An instance holds its secrets and configs in memory: what is larger belongs into a volume.
const BYTES_MAX: u64 = 16 << 20;

/// A file that was read. Its content may be secret.
pub(crate) struct Content {
    pub(crate) bytes: Vec<u8>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Reads a file; anything else, and what is too large, is an error that says so.
pub(crate) fn read(path: &Path) -> io::Result<Content> {
    let invalid = |why: String| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    // Opening a pipe would wait for whoever writes into it.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return invalid(if metadata.is_dir() { "it is a directory" } else { "it is no regular file" }.to_owned());
    }
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > BYTES_MAX {
        return invalid(format!("it has more than {} MiB", BYTES_MAX >> 20));
    }
    Ok(Content { bytes, uid: metadata.uid(), gid: metadata.gid() })
}

/// What a plan needs to know of a file: whether it can be used, and whether it is another one than before.
pub fn look_at(path: &Path) -> FileSeen {
    match read(path) {
        Ok(Content { bytes, uid, gid }) => FileSeen::Readable { digest: digest_of(&(bytes, uid, gid)) },
        Err(error) if error.kind() == io::ErrorKind::NotFound => FileSeen::Missing,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !nix::unistd::geteuid().is_root() => {
            FileSeen::NotForUs
        }
        Err(error) => FileSeen::Unusable { why: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_is_told_from_what_is_none_and_a_change_is_noticed() {
        let folder = std::env::temp_dir().join(format!("palisade-test-{}-provided", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("token");
        assert_eq!(look_at(&path), FileSeen::Missing);
        fs::write(&path, "one").unwrap();
        let first = look_at(&path);
        fs::write(&path, "two").unwrap();
        assert!(matches!(&first, FileSeen::Readable { .. }));
        assert_ne!(look_at(&path), first);
        let why = |path: &Path| match look_at(path) {
            FileSeen::Unusable { why } => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(why(&folder), "it is a directory");
        let pipe = folder.join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(why(&pipe), "it is no regular file");
        File::create(&path).unwrap().set_len(BYTES_MAX + 1).unwrap();
        assert_eq!(why(&path), "it has more than 16 MiB");
        fs::remove_dir_all(folder).unwrap();
    }
}
