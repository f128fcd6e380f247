//! The system call filter of containers, in the words of the engines' seccomp profiles.
//!
//! Pure. Engines have one of their own, which differs from version to version: those of Docker before 20.10.22 make
//! AF_VSOCK sockets (moby/moby#44564), those before 25 io_uring (moby/moby#46762), those before 29 AF_ALG
//! (moby/moby#52494), and all make netlink sockets of every protocol. What services of a stack may do on the host's
//! network must not depend on that. It allows what is known to be harmless (`calls.txt`, the names of the kernel's
//! tables without those below) and no more, so that a call that comes with a newer kernel is refused until it is judged.

use std::collections::BTreeSet;

use serde_json::{Value, json};

const ALLOWED: &str = include_str!("calls.txt");

/// Calls that a capability brings along, as engines' own profiles have it: somebody who adds one means to use it.
const WITH_CAPABILITY: [(&str, &[&str]); 13] = [
    ("BPF", &["bpf"]),
    ("DAC_READ_SEARCH", &["open_by_handle_at"]),
    ("PERFMON", &["perf_event_open"]),
    (
        "SYS_ADMIN",
        &[
            "bpf",
            "clone",
            "clone3",
            "fanotify_init",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "lookup_dcookie",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "perf_event_open",
            "quotactl",
            "setdomainname",
            "sethostname",
            "setns",
            "syslog",
            "umount",
            "umount2",
            "unshare",
        ],
    ),
    ("SYS_BOOT", &["reboot"]),
    ("SYS_MODULE", &["delete_module", "finit_module", "init_module"]),
    ("SYS_NICE", &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    ("SYS_PACCT", &["acct"]),
    ("SYS_PTRACE", &["kcmp"]),
    ("SYS_RAWIO", &["ioperm", "iopl"]),
    ("SYS_TIME", &["clock_adjtime", "clock_adjtime64", "clock_settime", "clock_settime64", "settimeofday", "stime"]),
    ("SYS_TTY_CONFIG", &["vhangup"]),
    ("SYSLOG", &["syslog"]),
];

/// Every namespace flag of clone.
const NEW_NAMESPACE: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// Personalities that programs ask for: as in the filter of processes.
const PERSONALITIES: [u32; 5] = [0, 0x0008, 0x0002_0000, 0x0002_0008, 0xFFFF_FFFF];

/// Families whose sockets the guard sees, or that stay inside the host's kernel.
const FAMILIES: [libc::c_int; 3] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];

/// 32-bit programs run as well; the call that makes their sockets behind a pointer (`socketcall`) doesn't exist for
/// them, as in Docker's own profile since 29.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: [&str; 2] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: [&str; 2] = ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"];

/// A condition on an argument, by its index: how it compares, with what.
struct Argument(u32, &'static str, u64, u64);

/// The profile for a container that is given these capabilities beside the default ones.
pub(super) fn profile(added: &BTreeSet<String>) -> Value {
    let has = |name: &str| added.contains(name) || added.contains("ALL");
    let mut names: BTreeSet<&str> = ALLOWED.split_whitespace().collect();
    for (_, calls) in WITH_CAPABILITY.iter().filter(|(capability, _)| has(capability)) {
        names.extend(*calls);
    }
    let mut rules = sockets(has("NET_RAW"), has("NET_ADMIN"));
    if !names.contains("clone") {
        rules.push(allow("clone", &[Argument(0, "SCMP_CMP_MASKED_EQ", NEW_NAMESPACE as u64, 0)]));
    }
    if !names.contains("clone3") {
        // Its flags are behind a pointer, where no filter can look: C libraries use clone instead.
        rules.push(refuse("clone3", libc::ENOSYS, &[]));
    }
    rules.extend(PERSONALITIES.map(|known| allow("personality", &[equal(0, known)])));
    rules.push(json!({"names": names, "action": "SCMP_ACT_ALLOW"}));
    json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ARCHITECTURES, "syscalls": rules})
}

/// Who makes sockets of which family. The whole 64 bits are compared, so that a family with something in its upper
/// half, which the kernel ignores, is none that is allowed.
fn sockets(raw: bool, admin: bool) -> Vec<Value> {
    let mut families = Vec::from(FAMILIES);
    if raw {
        families.extend([libc::AF_PACKET, libc::AF_CAN, libc::AF_BLUETOOTH]);
    }
    if admin {
        families.extend([libc::AF_NETLINK, libc::AF_KEY, libc::AF_XDP]);
    }
    let mut rules: Vec<_> = families.iter().map(|family| allow("socket", &[equal(0, *family as u32)])).collect();
    if !admin {
        // C libraries read routes and addresses by themselves. Whoever wants more hears what libaudit and others take
        // for a kernel without it, and go on.
        let netlink = || equal(0, libc::AF_NETLINK as u32);
        let routes = libc::NETLINK_ROUTE as u32;
        rules.push(allow("socket", &[netlink(), equal(2, routes)]));
        rules.push(refuse("socket", libc::EAFNOSUPPORT, &[netlink(), Argument(2, "SCMP_CMP_NE", routes.into(), 0)]));
    }
    rules.push(allow("socketpair", &[equal(0, libc::AF_UNIX as u32)]));
    // Said, because libseccomp else makes an unconditional rule for it of those above.
    rules.push(refuse("socketcall", libc::ENOSYS, &[]));
    rules
}

fn equal(index: u32, value: u32) -> Argument {
    Argument(index, "SCMP_CMP_EQ", value.into(), 0)
}

fn allow(call: &str, arguments: &[Argument]) -> Value {
    rule(call, json!({"action": "SCMP_ACT_ALLOW"}), arguments)
}

fn refuse(call: &str, errno: libc::c_int, arguments: &[Argument]) -> Value {
    rule(call, json!({"action": "SCMP_ACT_ERRNO", "errnoRet": errno}), arguments)
}

fn rule(call: &str, mut rule: Value, arguments: &[Argument]) -> Value {
    let argument = |Argument(index, comparison, value, second): &Argument| json!({"index": index, "op": comparison, "value": value, "valueTwo": second});
    rule["names"] = json!([call]);
    rule["args"] = arguments.iter().map(argument).collect();
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls that are allowed whatever their arguments.
    fn allowed(added: &[&str]) -> BTreeSet<String> {
        let profile = profile(&added.iter().map(|name| (*name).to_owned()).collect());
        let rules = profile["syscalls"].as_array().unwrap().clone();
        let whole = rules.into_iter().filter(|rule| {
            rule["action"] == "SCMP_ACT_ALLOW" && rule["args"].as_array().is_none_or(|arguments| arguments.is_empty())
        });
        let names = whole.flat_map(|rule| rule["names"].as_array().unwrap().clone());
        names.map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_reaches_around_the_guard_comes_only_with_its_capability() {
        let default = allowed(&[]);
        for call in ["read", "execve", "bind", "connect", "futex", "openat2", "rseq", "statx", "ptrace", "chroot"] {
            assert!(default.contains(call), "{call}");
        }
        let never = ["add_key", "io_uring_setup", "keyctl", "kexec_load", "pivot_root", "socketcall", "userfaultfd"];
        for call in never {
            assert!(!allowed(&["ALL"]).contains(call), "{call}");
        }
        for (capability, calls) in WITH_CAPABILITY {
            for call in calls {
                assert!(!default.contains(*call), "{call}");
                assert!(allowed(&[capability]).contains(*call), "{call} with {capability}");
            }
        }
        assert!(["socket", "socketpair", "clone", "clone3", "personality"].iter().all(|call| !default.contains(*call)));
    }

    #[test]
    fn families_of_sockets_follow_from_capabilities() {
        let families = |added: &[&str]| -> Vec<u64> {
            let rules = profile(&added.iter().map(|name| (*name).to_owned()).collect())["syscalls"].clone();
            let allows = |rule: &&Value| {
                rule["names"] == json!(["socket"]) && rule["action"] == "SCMP_ACT_ALLOW" && rule["args"][1].is_null()
            };
            let found = rules.as_array().unwrap().iter().filter(allows).map(|rule| rule["args"][0]["value"].as_u64());
            found.map(Option::unwrap).collect()
        };
        assert_eq!(families(&[]), [1, 2, 10]);
        assert!(families(&["NET_RAW"]).contains(&17) && !families(&["NET_RAW"]).contains(&16));
        assert!(families(&["NET_ADMIN"]).contains(&16) && !families(&["NET_ADMIN"]).contains(&17));
        assert!(!families(&["ALL"]).contains(&(libc::AF_VSOCK as u64)));
    }
}
