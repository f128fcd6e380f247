//! Linux capabilities by name, and the set that an instance gets.
//!
//! What a Compose file may ask for is decided here ([`GRANTABLE`]), because only here is it known what would undo the
//! confinement; reading the file is not.

use std::collections::BTreeSet;
use std::io;

use super::sys;

/// Names by number, without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What root in an instance has unless the file says otherwise: Docker's set without raw sockets, device nodes and
/// writing to the audit log, which a service that shares the host's network must not have.
pub const DEFAULT: [&str; 11] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// What `cap_add` may name. Every other capability reaches around the guard, the mount namespace or the init process.
pub const GRANTABLE: [&str; 19] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
    "AUDIT_WRITE",
    "IPC_LOCK",
    "IPC_OWNER",
    "LEASE",
    "NET_BROADCAST",
    "SYS_NICE",
    "SYS_RESOURCE",
    "WAKE_ALARM",
];

/// The init process keeps this one and an instance never has it: so the kernel lets nobody inside trace the init process.
pub(super) const INIT_ONLY: &str = "SYS_PTRACE";

/// A set of capabilities as the kernel's bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Set(pub(super) u64);

/// The bit of a capability.
pub(super) fn bit(name: &str) -> Option<u64> {
    NAMES.iter().position(|known| *known == name).map(|number| 1 << number)
}

impl Set {
    /// The default with `add` and without `drop`. An error names the capability that can't be granted.
    pub(super) fn of(add: &BTreeSet<String>, drop: &BTreeSet<String>) -> Result<Self, String> {
        let union = |names: &[&str]| names.iter().filter_map(|name| bit(name)).fold(0, |set, bit| set | bit);
        let mut set = if drop.contains("ALL") { 0 } else { union(&DEFAULT) };
        for name in drop.iter().filter(|name| *name != "ALL") {
            set &= !bit(name).ok_or_else(|| name.clone())?;
        }
        for name in add {
            if name == "ALL" {
                set |= union(&GRANTABLE);
            } else if GRANTABLE.contains(&name.as_str()) {
                set |= bit(name).unwrap_or_default();
            } else {
                return Err(name.clone());
            }
        }
        Ok(Self(set))
    }

    /// Whether this process could hand the whole set on; else the names that it lacks itself.
    pub(super) fn missing_here(self) -> Vec<&'static str> {
        NAMES
            .iter()
            .enumerate()
            .filter(|(number, _)| self.0 >> number & 1 == 1)
            // Errors mean that this kernel doesn't know the capability.
            .filter(|(number, _)| sys::prctl(libc::PR_CAPBSET_READ, *number as u64).unwrap_or(0) != 1)
            .map(|(_, name)| *name)
            .collect()
    }
}

/// Takes everything that isn't in `set` out of the bounding set: no exec can bring it back.
pub(super) fn bound(set: Set) -> io::Result<()> {
    for number in 0..64u64 {
        if set.0 >> number & 1 == 1 {
            continue;
        }
        match sys::prctl(libc::PR_CAPBSET_DROP, number) {
            Ok(_) => {}
            // The kernel's last capability was the one before.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sets permitted and effective capabilities of this thread; inheritable and ambient ones are emptied.
pub(super) fn set(permitted: Set, effective: Set) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64)?;
    let header = Header { version: 0x2008_0522, pid: 0 };
    let half = |shift: u32| Data {
        effective: (effective.0 >> shift) as u32,
        permitted: (permitted.0 >> shift) as u32,
        inheritable: 0,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 of the interface takes a header and two data structs, which is what is passed.
    if unsafe { libc::syscall(libc::SYS_capset, &header, &data) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_follow_compose_and_never_hold_what_undoes_the_confinement() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(bit("CHOWN"), Some(1));
        assert_eq!(bit("CHECKPOINT_RESTORE"), Some(1 << 40));
        let only_bind = Set::of(&names(&["NET_BIND_SERVICE"]), &names(&["ALL"])).unwrap();
        assert_eq!(only_bind.0, 1 << 10);
        assert_eq!(Set::of(&names(&["NET_RAW"]), &names(&[])), Err("NET_RAW".to_owned()));
        assert_eq!(Set::of(&names(&[]), &names(&["NET_RAWW"])), Err("NET_RAWW".to_owned()));
        let everything = Set::of(&names(&["ALL"]), &names(&[])).unwrap();
        for forbidden in ["SYS_ADMIN", "NET_RAW", "NET_ADMIN", "SYS_PTRACE", "BPF", "MKNOD", "DAC_READ_SEARCH"] {
            assert_eq!(everything.0 & bit(forbidden).unwrap(), 0, "{forbidden}");
        }
    }
}
