//! Files in folders of the certificates' worker, read by others than it: root, who prepares them, and the edge.
//!
//! Whoever owns such a folder can put anything there. No link of his leads the reader elsewhere, no pipe keeps him waiting, and no file is longer than
//! he can bear.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Keys with their chains, and roots, are a few kilobytes.
const BYTES_MAX: u64 = 1 << 20;

/// What is in the file.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    whole(open(path)?)
}

/// The same, if the file is this user's: another one's may have got here by a second name.
pub(crate) fn read_of(path: &Path, uid: u32) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let theirs = file.metadata()?.uid();
    if theirs != uid {
        return Err(io::Error::other(format!("it belongs to user {theirs}, not to {uid}: somebody else put it there")));
    }
    whole(file)
}

fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(|error| {
        match error.raw_os_error() {
            Some(libc::ELOOP) => io::Error::other("it is a link, and none is followed here"),
            // A socket.
            Some(libc::ENXIO) => no_file(),
            _ => error,
        }
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(no_file()) }
}

fn no_file() -> io::Error {
    io::Error::other("it is no file, but a folder, a pipe or the like")
}

fn whole(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}
