//! How long the kernel spent in an eBPF program.
//!
//! Statistics are switched on by holding a descriptor, not by the machine-wide sysctl, so they end with the process.

use anyhow::{Context, Result};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just given us this descriptor, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Statistics are kept as long as this lives.
pub(crate) struct Enabled(#[allow(dead_code, reason = "it is held, not used")] OwnedFd);

/// Starts counting. It costs each run of a program two readings of the clock.
pub(crate) fn enable() -> Result<Enabled> {
    // SAFETY: takes a number, returns a descriptor or an error.
    let fd = unsafe { libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) };
    Ok(Enabled(owned(fd).context("enabling run-time statistics of eBPF programs")?))
}

/// A pinned program.
pub(crate) struct Program(OwnedFd);

/// How often a program ran, and how long altogether.
#[derive(Clone, Copy, Default)]
pub(crate) struct Runs {
    pub(crate) count: u64,
    pub(crate) time_ns: u64,
}

impl Runs {
    /// Nanoseconds a run since `earlier`; none if it didn't run.
    pub(crate) fn each_ns_since(self, earlier: Runs) -> Option<f64> {
        let count = self.count.checked_sub(earlier.count).filter(|count| *count > 0)?;
        Some((self.time_ns - earlier.time_ns) as f64 / count as f64)
    }
}

impl Program {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let text = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: the string is NUL-terminated and lives through the call.
        let fd = unsafe { libbpf_sys::bpf_obj_get(text.as_ptr()) };
        Ok(Self(owned(fd).with_context(|| format!("opening {}", path.display()))?))
    }
    pub(crate) fn runs(&self) -> Result<Runs> {
        // SAFETY: zeros are what the kernel expects of a structure that asks for nothing beyond plain fields.
        let mut info: libbpf_sys::bpf_prog_info = unsafe { std::mem::zeroed() };
        let mut len = size_of_val(&info) as u32;
        // SAFETY: `info` has `len` bytes and both outlive the call.
        let failed = unsafe { libbpf_sys::bpf_prog_get_info_by_fd(self.0.as_raw_fd(), &raw mut info, &raw mut len) };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(-failed)).context("asking about an eBPF program");
        }
        Ok(Runs { count: info.run_cnt, time_ns: info.run_time_ns })
    }
}
