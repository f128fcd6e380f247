//! A cgroup's limits: of memory, swap, processor time, processors and processes, in version 2 or where that lacks the
//! controller in version 1.

use std::fs;
use std::path::{Path, PathBuf};

use palisade_core::stack::Limits;

use super::{Cgroup, Error, Result, at, child_directories, read_number};

/// The period that CPU quotas refer to: the kernel's default, and Docker's.
const CPU_PERIOD_US: u64 = 100_000;
/// What everybody has who asks for nothing.
const CPU_SHARES_USUAL: u64 = 1024;

impl Cgroup {
    /// Sets the limits; those that are `None` are lifted.
    pub fn limit(&self, limits: &Limits) -> Result<()> {
        let max = |value: Option<u64>| value.map_or_else(|| "max".to_owned(), |value| value.to_string());
        let minus_one = |value: Option<u64>| value.map_or_else(|| "-1".to_owned(), |value| value.to_string());
        let memory = limits.memory_bytes.or(limits.memory_reservation_bytes).is_some();
        let quota_us = limits.cpu_milli.map(|milli| (milli * CPU_PERIOD_US / 1000).max(1000));

        if let Some(path) = self.writable("memory", "memory", memory, "memory.max")? {
            write(&path.join("memory.max"), &max(limits.memory_bytes))?;
            // Swap at most as much again, as Docker does. A kernel without swap accounting lacks the file.
            let swap = match (limits.memory_bytes, limits.memory_swap_bytes) {
                (Some(_), Some(u64::MAX)) => None,
                (Some(memory), Some(both)) => Some(both.saturating_sub(memory)),
                (memory, _) => memory,
            };
            self.write_swap(&path.join("memory.swap.max"), &max(swap), limits)?;
            write_if_there(&path.join("memory.low"), &limits.memory_reservation_bytes.unwrap_or(0).to_string())?;
            self.protect_parents()?;
        } else if let Some(path) = self.mounts.v1("memory").map(|mount| mount.join(&self.path)) {
            let limit = minus_one(limits.memory_bytes);
            let with_swap = match (limits.memory_bytes, limits.memory_swap_bytes) {
                (Some(_), Some(u64::MAX)) => None,
                (Some(_), Some(both)) => Some(both),
                (memory, _) => memory.map(|bytes| bytes.saturating_mul(2)),
            };
            // Memory may never be above memory plus swap: which goes first depends on the direction.
            let lifted = path.join("memory.memsw.limit_in_bytes");
            write_if_there(&lifted, "-1")?;
            write(&path.join("memory.limit_in_bytes"), &limit)?;
            self.write_swap(&lifted, &minus_one(with_swap), limits)?;
            write(&path.join("memory.soft_limit_in_bytes"), &minus_one(limits.memory_reservation_bytes))?;
        }
        let shares = limits.cpu_shares.filter(|shares| *shares > 0);
        let cpu = quota_us.is_some() || shares.is_some();
        if let Some(path) = self.writable("cpu", "processor time", cpu, "cpu.max")? {
            write(&path.join("cpu.max"), &format!("{} {CPU_PERIOD_US}", max(quota_us)))?;
            write(&path.join("cpu.weight"), &weight(shares.unwrap_or(CPU_SHARES_USUAL)).to_string())?;
        } else if let Some(path) = self.mounts.v1("cpu").map(|mount| mount.join(&self.path)) {
            write(&path.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string())?;
            write(&path.join("cpu.cfs_quota_us"), &minus_one(quota_us))?;
            write(&path.join("cpu.shares"), &shares.unwrap_or(CPU_SHARES_USUAL).to_string())?;
        }
        self.limit_processors(limits)?;
        if let Some(path) = self.writable("pids", "processes", limits.pids.is_some(), "pids.max")? {
            write(&path.join("pids.max"), &max(limits.pids))?;
        } else if let Some(path) = self.mounts.v1("pids").map(|mount| mount.join(&self.path)) {
            write(&path.join("pids.max"), &max(limits.pids))?;
        }
        Ok(())
    }

    /// A limit of swap that was asked for must not be lost; where there is no swap, there is nothing to limit.
    fn write_swap(&self, file: &Path, value: &str, limits: &Limits) -> Result<()> {
        let asked = limits.memory_swap_bytes.is_some_and(|bytes| bytes != u64::MAX);
        let no_swap = || fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() <= 1);
        if asked && !file.exists() && !no_swap() {
            return Err(Error::NoController { what: "swap", cgroup: self.path.clone(), controller: "memory" });
        }
        write_if_there(file, value)
    }

    /// What a cgroup keeps under pressure is bounded by what those above it keep: each of ours keeps the sum.
    fn protect_parents(&self) -> Result<()> {
        let mut above = self.path.as_path();
        while let Some(parent) = above.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            above = parent;
            let path = self.mounts.v2.join(parent);
            let children = child_directories(&path)?;
            let sum: u64 = children.iter().filter_map(|child| read_number(&child.join("memory.low"))).sum();
            write_if_there(&path.join("memory.low"), &sum.to_string())?;
        }
        Ok(())
    }

    fn limit_processors(&self, limits: &Limits) -> Result<()> {
        let wanted = limits.cpuset.as_ref().map(|set| set.0.as_str());
        if let Some(path) = self.writable("cpuset", "processors", wanted.is_some(), "cpuset.cpus")? {
            // Empty: those of the cgroup above.
            return write(&path.join("cpuset.cpus"), wanted.unwrap_or("\n"));
        }
        let Some(mount) = self.mounts.v1("cpuset") else { return Ok(()) };
        let path = mount.join(&self.path);
        match wanted {
            Some(wanted) => {
                self.make_cpuset(mount)?;
                write(&path.join("cpuset.cpus"), wanted)
            }
            None if path.is_dir() => {
                let above = path.parent().unwrap_or(mount).join("cpuset.cpus");
                let all = at(fs::read_to_string(&above), "read", &above)?;
                write(&path.join("cpuset.cpus"), all.trim())
            }
            None => Ok(()),
        }
    }

    /// Makes the cgroup in version 1 of `cpuset`, where a new one has no processors and no memory until it is given some.
    fn make_cpuset(&self, mount: &Path) -> Result<()> {
        let mut path = mount.to_owned();
        for component in self.path.components() {
            let parent = path.clone();
            path.push(component);
            at(fs::create_dir_all(&path), "make cgroup", &path)?;
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let (from, to) = (parent.join(file), path.join(file));
                if at(fs::read_to_string(&to), "read", &to)?.trim().is_empty() {
                    let all = at(fs::read_to_string(&from), "read", &from)?;
                    write(&to, all.trim())?;
                }
            }
        }
        Ok(())
    }

    /// The cgroup2 directory if that version has the controller, enabled down to it when a limit needs it (or when it
    /// happens to be enabled, so that an old limit can be lifted).
    fn writable(
        &self,
        controller: &'static str,
        what: &'static str,
        needed: bool,
        file: &str,
    ) -> Result<Option<PathBuf>> {
        let path = self.v2_path();
        if path.join(file).exists() {
            return Ok(Some(path));
        }
        let controllers = self.mounts.v2.join("cgroup.controllers");
        let available = at(fs::read_to_string(&controllers), "read", &controllers)?;
        let in_v2 = available.split_ascii_whitespace().any(|name| name == controller);
        if !needed || !in_v2 {
            if needed && self.mounts.v1(controller).is_none() {
                return Err(Error::NoController { what, cgroup: self.path.clone(), controller });
            }
            return Ok(None);
        }
        let mut above = self.mounts.v2.clone();
        let parents = self.path.parent().into_iter().flat_map(Path::components);
        let mut levels = vec![above.clone()];
        for component in parents {
            above.push(component);
            levels.push(above.clone());
        }
        for level in levels {
            let control = level.join("cgroup.subtree_control");
            let enabled = at(fs::read_to_string(&control), "read", &control)?;
            if !enabled.split_ascii_whitespace().any(|name| name == controller) {
                write(&control, &format!("+{controller}"))?;
            }
        }
        Ok(Some(path))
    }
}

/// Shares of version 1 as a weight of version 2, so that the usual and the outermost values of both meet: 2 is 1, 1024 is
/// 100, 262144 is 10000.
fn weight(shares: u64) -> u64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

fn write(path: &Path, value: &str) -> Result<()> {
    at(fs::write(path, value), format!("write {value} to"), path)
}

fn write_if_there(path: &Path, value: &str) -> Result<()> {
    if path.exists() { write(path, value) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        assert_eq!([0, 2, 1024, 2048, 262_144, u64::MAX].map(weight), [1, 1, 100, 174, 10_000, 10_000]);
    }
}
