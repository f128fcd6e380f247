//! System calls that neither `std` nor `nix` offers, each as one safe function.
//!
//! No policy: which file is opened or mounted, and with which flags, is the callers' business.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `MOUNT_ATTR_RDONLY` of linux/mount.h.
pub(crate) const RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_NOSUID`.
pub(crate) const NOSUID: u64 = 0x2;
/// `MOUNT_ATTR_NODEV`.
pub(crate) const NODEV: u64 = 0x4;
/// `MOUNT_ATTR_NOEXEC`.
pub(crate) const NOEXEC: u64 = 0x8;

const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

fn path_c(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn result(value: libc::c_long) -> io::Result<libc::c_long> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// # Safety
/// `value` must be what a system call that makes a file descriptor returned.
unsafe fn owned(value: libc::c_long) -> io::Result<OwnedFd> {
    let fd = result(value)? as RawFd;
    // SAFETY: the caller says that the kernel just made it; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A detached copy of the mounts at and below `path`: what a bind mount binds, before it has a place.
pub(crate) fn clone_tree(path: &Path) -> io::Result<OwnedFd> {
    let path = path_c(path)?;
    let flags = OPEN_TREE_CLONE | libc::AT_RECURSIVE as libc::c_uint | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: `path` is a NUL-terminated string that outlives the call, which returns a new descriptor.
    unsafe { owned(libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags)) }
}

/// Sets mount attributes on a mount and all below it, and makes them private.
pub(crate) fn set_attributes(tree: BorrowedFd<'_>, attributes: u64) -> io::Result<()> {
    let attr = MountAttr { attr_set: attributes, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    // SAFETY: the empty path is a NUL-terminated literal and `attr` is a struct mount_attr of the size given.
    result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &attr,
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// Sets mount attributes on the mount at `path` alone.
pub(crate) fn set_attributes_at(path: &Path, attributes: u64) -> io::Result<()> {
    let path = path_c(path)?;
    let attr = MountAttr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: `path` is NUL-terminated and `attr` is a struct mount_attr of the size given.
    result(unsafe {
        libc::syscall(libc::SYS_mount_setattr, libc::AT_FDCWD, path.as_ptr(), 0, &attr, size_of::<MountAttr>())
    })?;
    Ok(())
}

/// Gives a detached mount its place.
pub(crate) fn attach(tree: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let target = path_c(target)?;
    // SAFETY: both paths are NUL-terminated and outlive the call.
    result(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// A descriptor that stands for the process whatever becomes of its number.
pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers and returns a new descriptor.
    unsafe { owned(libc::syscall(libc::SYS_pidfd_open, pid, 0)) }
}

/// Sends a signal to the process that a pidfd stands for.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed; the rest are integers.
    result(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) })?;
    Ok(())
}

/// An unnamed file in memory.
pub(crate) fn memfd(name: &std::ffi::CStr) -> io::Result<std::fs::File> {
    // SAFETY: `name` is NUL-terminated; the call returns a new descriptor.
    unsafe { owned(libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC).into()) }.map(std::fs::File::from)
}

/// Marks every descriptor from `first` on to be closed by exec.
pub(crate) fn cloexec_from(first: u32) -> io::Result<()> {
    // SAFETY: changes a flag of descriptors and closes none, so no owner is cheated.
    result(unsafe { libc::close_range(first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) }.into())?;
    Ok(())
}

/// `prctl` with integer arguments.
pub(crate) fn prctl(option: i32, argument: u64) -> io::Result<i32> {
    // SAFETY: the options used in this crate take integers only.
    result(unsafe { libc::prctl(option, argument, 0, 0, 0) }.into()).map(|value| value as i32)
}

/// Sets a resource limit of the calling process; `resource` is a `RLIMIT_…`.
pub(crate) fn set_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is valid through the call, which only reads it.
    result(unsafe { libc::setrlimit(resource as _, &limit) }.into())?;
    Ok(())
}

/// Sets the NIS domain name of the calling process's UTS namespace.
pub(crate) fn set_domain_name(name: &str) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `name`.
    result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into())?;
    Ok(())
}

/// This program as a descriptor that a process inside an instance may run, but can't use to change the host's file:
/// the path that leads to it (`/proc/<pid>/exe`) goes through a mount of its own that is read-only. Without it, root in an
/// instance could reopen it for writing once it no longer runs (CVE-2019-5736 of runc).
pub(crate) fn own_program(exe: &Path) -> io::Result<OwnedFd> {
    let tree = clone_tree(exe)?;
    set_attributes(tree.as_fd(), RDONLY | NOSUID | NODEV)?;
    Ok(tree)
}

/// Every signal back to its default, none blocked: what a program expects to start with.
pub(crate) fn reset_signals() {
    // SAFETY: an all-zero sigset_t and sigaction are valid (SIG_DFL is 0); signals that can't be changed return EINVAL,
    // which is as good.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        for signal in 1..=64 {
            libc::sigaction(signal, &default, std::ptr::null_mut());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// When the process started, in clock ticks since boot: with its number, names it for good. `None`: it is gone, or a zombie.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Waits until a descriptor is readable (a pidfd: until the process ended) or the time is over; says which.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, timeout: std::time::Duration) -> io::Result<bool> {
    let deadline = std::time::Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let left_ms = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        // SAFETY: one valid pollfd.
        match result(unsafe { libc::poll(&mut poll, 1, left_ms) }.into()) {
            Ok(0) if left.is_zero() || left_ms < i32::MAX => return Ok(false),
            Ok(0) => {}
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
