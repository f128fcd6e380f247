//! Where pins live: the machine's bpffs, or one of our own where nobody mounted it.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{FsType, statfs};
use std::io;
use std::path::{Path, PathBuf};

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11_u32 as _);

/// The place that systemd and everybody else uses.
const USUAL: &str = "/sys/fs/bpf";

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC)
}

/// The folder below which pins go: `/sys/fs/bpf/<realm>`, or `<run>/.bpf` if the former is no bpffs (no
/// stack can have that name).
pub fn pin_root(realm: &str, run: &Path) -> PathBuf {
    if is_bpffs(Path::new(USUAL)) { Path::new(USUAL).join(realm) } else { run.join(".bpf") }
}

/// Makes sure that `root` (of [`pin_root`]) can hold pins; mounts a bpffs there when it has to.
pub fn mount_bpffs(root: &Path) -> io::Result<()> {
    std::fs::create_dir_all(root)?;
    if !is_bpffs(root) {
        mount(
            Some("bpffs"),
            root,
            Some("bpf"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            Some("mode=700"),
        )?;
    }
    Ok(())
}

/// The folders of stacks below `root`. Kernels put files of their own into a new bpffs (`maps.debug`); they go with it.
pub fn pinned_stacks(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Takes away what [`mount_bpffs`] made. The pins below must be gone, or they go with it.
pub fn unmount_bpffs(root: &Path) -> io::Result<()> {
    if !root.starts_with(USUAL) && is_bpffs(root) {
        umount2(root, MntFlags::MNT_DETACH)?;
    }
    match std::fs::remove_dir(root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
