//! The bpf(2) calls that libbpf-rs offers only for objects it loaded itself: pins are opened again by later runs.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn checked(result: i32) -> io::Result<i32> {
    // libbpf 1.x returns -errno.
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

fn path_text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Pins whatever the descriptor is.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let text = path_text(path)?;
    // SAFETY: the pointer is a NUL-terminated string that lives through the call; the descriptor is borrowed.
    checked(unsafe { libbpf_sys::bpf_obj_pin(fd.as_raw_fd(), text.as_ptr()) }).map(drop)
}

/// Attaches a program to a cgroup (a bpf_link, Linux 5.7; always together with what others attached).
pub(crate) fn link_to_cgroup(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    // SAFETY: no options are passed; both descriptors are borrowed for the call.
    let fd = checked(unsafe {
        libbpf_sys::bpf_link_create(program.as_raw_fd(), cgroup.as_raw_fd(), attach_type, std::ptr::null())
    })?;
    // SAFETY: the kernel has just given us this descriptor, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches an `sk_lookup` program to a network namespace (a bpf_link, Linux 5.9; at most 64 in one).
pub(crate) fn link_to_network(program: BorrowedFd<'_>, network: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    link_to_cgroup(program, network, libbpf_sys::BPF_SK_LOOKUP)
}

/// Ids of the `sk_lookup` programs of a network namespace.
pub(crate) fn programs_of_network(network: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; 64];
    let mut count = ids.len() as u32;
    let mut flags = 0;
    // SAFETY: `ids` has room for `count` numbers, which the kernel respects.
    checked(unsafe {
        libbpf_sys::bpf_prog_query(
            network.as_raw_fd(),
            libbpf_sys::BPF_SK_LOOKUP,
            0,
            &raw mut flags,
            ids.as_mut_ptr(),
            &raw mut count,
        )
    })?;
    ids.truncate(count as usize);
    Ok(ids)
}

/// Ids of all programs that run for this cgroup at a hook, inherited ones too.
pub(crate) fn effective_programs(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    // At most 64 of each cgroup on the path count (`BPF_CGROUP_MAX_PROGS`); four levels deep is plenty.
    let mut ids = vec![0_u32; 256];
    let mut count = ids.len() as u32;
    let mut flags = 0;
    // SAFETY: `ids` has room for `count` numbers, which the kernel respects.
    checked(unsafe {
        libbpf_sys::bpf_prog_query(
            cgroup.as_raw_fd(),
            attach_type,
            libbpf_sys::BPF_F_QUERY_EFFECTIVE,
            &raw mut flags,
            ids.as_mut_ptr(),
            &raw mut count,
        )
    })?;
    ids.truncate(count as usize);
    Ok(ids)
}
