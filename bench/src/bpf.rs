//! How long the kernel spent in an eBPF program, and how much memory programs have for their maps.
//!
//! Statistics are switched on by holding a descriptor, not by the machine-wide sysctl, so they end with the process.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
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

/// More than any program of the guard has.
const MAPS_MAX: usize = 64;

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
    /// Numbers of the maps that it uses.
    fn maps(&self) -> Result<Vec<u32>> {
        let mut maps = vec![0_u32; MAPS_MAX];
        // SAFETY: zeros are what the kernel expects of a structure that asks for nothing beyond plain fields.
        let mut info: libbpf_sys::bpf_prog_info = unsafe { std::mem::zeroed() };
        info.nr_map_ids = MAPS_MAX as u32;
        info.map_ids = maps.as_mut_ptr() as u64;
        let mut len = size_of_val(&info) as u32;
        // SAFETY: `info` has `len` bytes, `map_ids` room for `nr_map_ids` numbers, and all outlive the call.
        let failed = unsafe { libbpf_sys::bpf_prog_get_info_by_fd(self.0.as_raw_fd(), &raw mut info, &raw mut len) };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(-failed)).context("asking about an eBPF program");
        }
        maps.truncate(info.nr_map_ids as usize);
        Ok(maps)
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

/// Memory of all maps that the programs pinned in this folder use, in bytes.
pub(crate) fn maps_bytes(programs: &Path) -> Result<f64> {
    let mut maps = BTreeSet::new();
    for entry in fs::read_dir(programs).with_context(|| format!("reading {}", programs.display()))? {
        maps.extend(Program::open(&entry?.path())?.maps()?);
    }
    maps.into_iter().map(map_bytes).sum()
}

fn map_bytes(id: u32) -> Result<f64> {
    // SAFETY: takes a number, returns a descriptor or an error.
    let map = owned(unsafe { libbpf_sys::bpf_map_get_fd_by_id(id) }).context("opening an eBPF map")?;
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:")).context("the kernel doesn't say")?;
    Ok(bytes.trim().parse()?)
}
