//! This program: what stands for its content, and where a version of it is kept while something runs it.
//!
//! An update of Palisade replaces its file. What was started from the old one must start again as the same program, until
//! somebody decides otherwise.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::OnceLock;

use sha2::{Digest, Sha256};

use crate::layout::Layout;
use palisade_core::instance::OwnProgram;

/// What the kernel runs as this process.
const SELF: &str = "/proc/self/exe";
/// A note's type: the linker's digest of what it linked (`NT_GNU_BUILD_ID`).
const BUILD_ID: u32 = 3;
/// A program header's type: notes.
const PT_NOTE: u32 = 4;
/// Headers and notes are near the beginning, and small.
const NOTES_BYTES_MAX: u64 = 64 << 10;

/// This program, and where it is to be kept for the stack.
pub fn own(layout: &Layout) -> io::Result<OwnProgram> {
    let digest = own_digest()?;
    Ok(OwnProgram { file: layout.program(&digest), digest })
}

/// What stands for the content of the file that this process runs from: two with the same digest are the same version. A process
/// runs from one file for as long as it lives, so that is read once.
pub fn own_digest() -> io::Result<String> {
    static OWN: OnceLock<String> = OnceLock::new();
    match OWN.get() {
        Some(known) => Ok(known.clone()),
        None => digest(Path::new(SELF)).map(|read| OWN.get_or_init(|| read).clone()),
    }
}

/// Puts this program where `own` says, unless it is there. It is the same file if that is on the same file system.
pub fn keep(own: &OwnProgram) -> io::Result<()> {
    if own.file.exists() {
        return Ok(());
    }
    if own_digest()? != own.digest {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it is gone, and this is another version"));
    }
    put(&own.file)
}

/// Puts this program at `path`, unless this version of it is there.
pub fn keep_at(path: &Path) -> io::Result<()> {
    let own = own_digest()?;
    if digest(path).is_ok_and(|there| there == own) { Ok(()) } else { put(path) }
}

fn put(path: &Path) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    let beside = path.with_extension("new");
    let _ = fs::remove_file(&beside);
    // A link to the file itself costs nothing; a package manager puts a new file in its place and doesn't write to it.
    let linked = nix::unistd::linkat(
        nix::fcntl::AT_FDCWD,
        SELF,
        nix::fcntl::AT_FDCWD,
        &beside,
        nix::fcntl::AtFlags::AT_SYMLINK_FOLLOW,
    );
    if linked.is_err() {
        fs::copy(SELF, &beside)?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o755))?;
        // Complete also after the power was gone.
        File::open(&beside)?.sync_all()?;
    }
    fs::rename(&beside, path)
}

/// Removes kept programs, but for those with these digests.
pub fn tidy(layout: &Layout, used: &[String]) {
    for entry in fs::read_dir(layout.programs()).into_iter().flatten().flatten() {
        if !used.iter().any(|digest| entry.file_name() == digest.as_str()) {
            let _ = fs::remove_file(entry.path());
        }
    }
    // Stays if something is in it.
    let _ = fs::remove_dir(layout.programs());
}

/// The linker's digest; where it has left none, that of the whole file.
fn digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    if let Some(id) = build_id(&file)? {
        return Ok(hex(&id));
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    file.seek(SeekFrom::Start(0))?;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize()[..20])),
            length => hash.update(&buffer[..length]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Of a 64-bit ELF file in this machine's byte order, which is what runs here.
fn build_id(file: &File) -> io::Result<Option<Vec<u8>>> {
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)?;
    if header[..5] != *b"\x7fELF\x02" {
        return Ok(None);
    }
    let u16_at = |bytes: &[u8], at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let (table, size, count) = (long(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    for number in 0..u64::from(count) {
        let mut entry = [0; 56];
        file.read_exact_at(&mut entry, table.saturating_add(number * u64::from(size)))?;
        if word(&entry, 0) != PT_NOTE {
            continue;
        }
        let mut notes = vec![0; long(&entry, 32).min(NOTES_BYTES_MAX) as usize];
        file.read_exact_at(&mut notes, long(&entry, 8))?;
        if let Some(id) = find_note(&notes) {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

/// Notes are three words (lengths of name and content, and a type), the name and the content, each filled up to words.
fn find_note(mut notes: &[u8]) -> Option<Vec<u8>> {
    while notes.len() >= 12 {
        let (name, content, kind) = (word(notes, 0) as usize, word(notes, 4) as usize, word(notes, 8));
        let begin = 12_usize.checked_add(name.checked_next_multiple_of(4)?)?;
        let end = begin.checked_add(content)?;
        if kind == BUILD_ID && notes.get(12..12 + name) == Some(b"GNU\0") {
            return notes.get(begin..end).filter(|id| !id.is_empty()).map(<[u8]>::to_vec);
        }
        notes = notes.get(end.checked_next_multiple_of(4)?..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_kept_once_and_known_by_its_digest() {
        let realm = format!("palisade-test-program-{}", std::process::id());
        let layout = Layout { realm, project: palisade_core::names::ProjectName::parse("shop").unwrap() };
        // Not below /var/lib, as tests without root are to pass.
        let folder = std::env::temp_dir().join(&layout.realm);
        let mut own = own(&layout).unwrap();
        own.file = folder.join(&own.digest);
        keep(&own).unwrap();
        keep(&own).unwrap();
        assert_eq!(digest(&own.file).unwrap(), own.digest);
        let other = OwnProgram { digest: "0".into(), file: folder.join("0") };
        assert!(keep(&other).unwrap_err().to_string().contains("another version"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_note_is_found_among_others_and_rubbish_is_none() {
        let note = |name: &[u8], kind: u32, content: &[u8]| {
            let mut bytes = Vec::new();
            for word in [name.len() as u32, content.len() as u32, kind] {
                bytes.extend(word.to_ne_bytes());
            }
            for part in [name, content] {
                bytes.extend(part);
                bytes.resize(bytes.len().next_multiple_of(4), 0);
            }
            bytes
        };
        let notes = [note(b"GNU\0", 1, b"abcd"), note(b"GNU\0", BUILD_ID, b"\x01\x02\x03")].concat();
        assert_eq!(find_note(&notes), Some(vec![1, 2, 3]));
        for length in 0..notes.len() - 1 {
            assert_eq!(find_note(&notes[..length]), None, "{length}");
        }
        assert_eq!(find_note(&[0xff; 64]), None);
    }
}
