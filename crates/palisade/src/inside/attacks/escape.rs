//! Leaving the service's cgroup, namespaces and mounts, and reaching other processes.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use super::attack;
use crate::inside::attack::Attack;
use crate::inside::sys::{At, Attempt, Stop, call, not_applicable, refused};
use crate::inside::targets::{Targets, VICTIM_MARK};

const NAMESPACE: &str = "a namespace of its own, where it is root over what the host's rules rely on";
const MOUNT: &str = "another view of the file system";
const CGROUP: &str = "leaving the cgroup that the guard is attached to";
const BPF: &str = "detaching or outvoting the guard";
const PROCESS: &str = "reading or steering processes outside of the service";
const PRIVILEGE: &str = "a privilege that makes other attacks possible";

fn unshares(flag: libc::c_int, name: &str) -> Attempt {
    call!(libc::SYS_unshare, flag).at(format!("unshare({name})"))?;
    Ok(format!("unshare({name}) gave a new namespace"))
}

/// clone(2) or clone3(2) with a namespace flag; the child ends at once.
fn clones(by_clone3: bool) -> Attempt {
    let flags = libc::CLONE_NEWNET as u64;
    let result = if by_clone3 {
        // flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls
        let arguments = [flags, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
        call!(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments))
    } else {
        call!(libc::SYS_clone, flags | libc::SIGCHLD as u64, 0, 0, 0, 0)
    };
    match result.at(if by_clone3 { "clone3(CLONE_NEWNET)" } else { "clone(CLONE_NEWNET)" }) {
        Err(Stop::NotApplicable(why)) => refused(why),
        Err(other) => Err(other),
        // SAFETY: the child of the call, which does nothing but end.
        Ok(0) => unsafe { libc::_exit(0) },
        Ok(_) => Ok("a child in a network namespace of its own".into()),
    }
}

fn victim(t: &Targets) -> Result<i32, Stop> {
    t.victim_pid.map_or_else(|| not_applicable("no process of the host to attack"), Ok)
}

fn enters(pid: &str, kind: &str) -> Attempt {
    let path = format!("/proc/{pid}/ns/{kind}");
    let file = fs::File::open(&path).at(format!("open({path})"))?;
    call!(libc::SYS_setns, file.as_raw_fd(), 0).at(format!("setns({path})"))?;
    Ok(format!("setns({path}) put the process there"))
}

/// Mounts at a folder that every system has and nothing is mounted on; each attack at another one, as they run at the
/// same time.
fn mounts(kind: &CStr, at: &CStr, flags: libc::c_ulong) -> Attempt {
    let name = kind.to_string_lossy();
    let source = if flags & libc::MS_BIND != 0 { c"/" } else { kind };
    call!(libc::SYS_mount, source.as_ptr(), at.as_ptr(), kind.as_ptr(), flags, 0).at(format!("mount({name})"))?;
    call!(libc::SYS_umount2, at.as_ptr(), libc::MNT_DETACH).at("umount2")?;
    Ok(format!("mounted {name}"))
}

fn mounts_cgroup(_: &Targets) -> Attempt {
    // The unified hierarchy, and one of version 1 that exists everywhere that version 1 does.
    let at = c"/usr/local/bin";
    if let Err(Stop::Refused(first)) = mounts(c"cgroup2", at, 0) {
        let v1 = call!(libc::SYS_mount, c"cgroup".as_ptr(), at.as_ptr(), c"cgroup".as_ptr(), 0, c"freezer".as_ptr());
        v1.at(format!("{first}; mount(cgroup)"))?;
        call!(libc::SYS_umount2, at.as_ptr(), libc::MNT_DETACH).at("umount2")?;
    }
    Ok("mounted the cgroup file system".into())
}

/// Asked for a place that isn't a mount point, who may unmount hears EINVAL and who may not EPERM.
fn unmounts(_: &Targets) -> Attempt {
    match call!(libc::SYS_umount2, c"/etc/passwd".as_ptr(), 0) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Ok("umount2 was permitted (EINVAL: not a mount)".into())
        }
        Err(error) => Err(error).at("umount2"),
        Ok(_) => Ok("umount2 took a mount away".into()),
    }
}

fn file_system_context(_: &Targets) -> Attempt {
    call!(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0).at("fsopen(tmpfs)")?;
    Ok("fsopen gave a file system context".into())
}

fn open_tree(_: &Targets) -> Attempt {
    const OPEN_TREE_CLONE: libc::c_int = 1;
    call!(libc::SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), OPEN_TREE_CLONE).at("open_tree(/, CLONE)")?;
    Ok("open_tree cloned the root mount".into())
}

/// Moves this process (a child made for the attack) to the root of whatever cgroup file system is visible.
fn leaves_cgroup(_: &Targets) -> Attempt {
    let own = || fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let before = own();
    let mounts = fs::read_to_string("/proc/self/mountinfo").at("open(/proc/self/mountinfo)")?;
    let seen = mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    let usual = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let mut answers = Vec::new();
    for mount in seen.chain(usual) {
        let path = format!("{mount}/cgroup.procs");
        // Without making the file: where no cgroups are mounted there may be a folder that can be written to.
        match fs::File::options().write(true).open(&path).and_then(|mut file| file.write_all(b"0")) {
            Ok(()) if own() != before => return Ok(format!("moved itself by writing to {path}")),
            Ok(()) => answers.push(format!("{path}: written, and it stays where it was")),
            Err(error) => answers.push(format!("{path}: {error}")),
        }
    }
    refused(answers.join("; "))
}

/// bpf(2) with the attributes given as words.
fn bpf(command: libc::c_int, attributes: &[u64]) -> std::io::Result<libc::c_long> {
    let mut block = [0_u64; 16];
    block[..attributes.len()].copy_from_slice(attributes);
    call!(libc::SYS_bpf, command, block.as_mut_ptr(), size_of_val(&block))
}

fn loads_program(_: &Targets) -> Attempt {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const SOCKET_FILTER: u64 = 1;
    // r0 = 0; exit
    let instructions: [u64; 2] = [0xb7, 0x95];
    let license = c"GPL";
    let attributes = [SOCKET_FILTER | 2 << 32, instructions.as_ptr() as u64, license.as_ptr() as u64];
    bpf(BPF_PROG_LOAD, &attributes).at("bpf(BPF_PROG_LOAD)")?;
    Ok("loaded an eBPF program".into())
}

fn opens_program(_: &Targets) -> Attempt {
    const BPF_PROG_GET_NEXT_ID: libc::c_int = 11;
    const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
    let mut block = [0_u32; 32];
    call!(libc::SYS_bpf, BPF_PROG_GET_NEXT_ID, block.as_mut_ptr(), size_of_val(&block))
        .at("bpf(BPF_PROG_GET_NEXT_ID)")?;
    let id = block[1];
    bpf(BPF_PROG_GET_FD_BY_ID, &[u64::from(id)]).at("bpf(BPF_PROG_GET_FD_BY_ID)")?;
    Ok(format!("opened the host's eBPF program {id}"))
}

/// Any pin below the folder.
fn opens_pin(t: &Targets) -> Attempt {
    const BPF_OBJ_GET: libc::c_int = 7;
    let Some(folder) = &t.pins else { return not_applicable("no pins are there") };
    let mut folders: Vec<PathBuf> = vec![folder.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).at(format!("opendir({})", folder.display()))?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let Ok(name) = CString::new(path.as_os_str().as_encoded_bytes()) else { continue };
            bpf(BPF_OBJ_GET, &[name.as_ptr() as u64]).at(format!("bpf(BPF_OBJ_GET, {})", path.display()))?;
            return Ok(format!("opened the pin {}", path.display()));
        }
    }
    refused(format!("no pin is visible in {}", folder.display()))
}

fn sees(t: &Targets) -> Attempt {
    let path = format!("/proc/{}/status", victim(t)?);
    fs::read(&path).at(format!("open({path})"))?;
    Ok(format!("read {path}"))
}

fn reads_environment(t: &Targets) -> Attempt {
    let path = format!("/proc/{}/environ", victim(t)?);
    let text = fs::read(&path).at(format!("read({path})"))?;
    if text.split(|byte| *byte == 0).any(|part| part == VICTIM_MARK.as_bytes()) {
        Ok(format!("read another process's environment in {path}"))
    } else {
        refused(format!("{path} is another process's"))
    }
}

fn opens_of_victim(t: &Targets, name: &str, write: bool) -> Attempt {
    let path = format!("/proc/{}/{name}", victim(t)?);
    fs::File::options().read(true).write(write).open(&path).at(format!("open({path})"))?;
    Ok(format!("opened {path}"))
}

/// Attaches without stopping it; ends with this process.
fn traces(t: &Targets) -> Attempt {
    const PTRACE_SEIZE: libc::c_int = 0x4206;
    let pid = victim(t)?;
    call!(libc::SYS_ptrace, PTRACE_SEIZE, pid, 0, 0).at(format!("ptrace(PTRACE_SEIZE, {pid})"))?;
    Ok(format!("traces process {pid}"))
}

fn reads_memory(t: &Targets) -> Attempt {
    let pid = victim(t)?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).at(format!("open(/proc/{pid}/maps)"))?;
    let start = maps.split('-').next().and_then(|word| u64::from_str_radix(word, 16).ok());
    let Some(start) = start else { return refused("its map is empty") };
    let mut byte = [0_u8; 4];
    let mine = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    let theirs = libc::iovec { iov_base: start as *mut libc::c_void, iov_len: byte.len() };
    call!(libc::SYS_process_vm_readv, pid, std::ptr::from_ref(&mine), 1, std::ptr::from_ref(&theirs), 1, 0)
        .at("process_vm_readv")?;
    Ok(format!("read the memory of process {pid}"))
}

fn signals(t: &Targets) -> Attempt {
    let pid = victim(t)?;
    call!(libc::SYS_kill, pid, 0).at(format!("kill({pid}, 0)"))?;
    Ok(format!("may send signals to process {pid}"))
}

fn takes_descriptor(t: &Targets) -> Attempt {
    let pid = victim(t)?;
    let pidfd = call!(libc::SYS_pidfd_open, pid, 0).at(format!("pidfd_open({pid})"))?;
    call!(libc::SYS_pidfd_getfd, pidfd, 0, 0).at("pidfd_getfd")?;
    Ok(format!("took a descriptor of process {pid}"))
}

fn may_gain_privileges(_: &Targets) -> Attempt {
    if call!(libc::SYS_prctl, libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0).at("prctl")? == 1 {
        refused("no_new_privs is set")
    } else {
        Ok("no_new_privs isn't set: set-user-id programs work".into())
    }
}

/// What none of a container engine's defaults holds.
const FORBIDDEN_CAPABILITIES: [(u32, &str); 20] = [
    (2, "DAC_READ_SEARCH"),
    (9, "LINUX_IMMUTABLE"),
    (12, "NET_ADMIN"),
    (13, "NET_RAW"),
    (14, "IPC_LOCK"),
    (16, "SYS_MODULE"),
    (17, "SYS_RAWIO"),
    (19, "SYS_PTRACE"),
    (20, "SYS_PACCT"),
    (21, "SYS_ADMIN"),
    (22, "SYS_BOOT"),
    (23, "SYS_NICE"),
    (25, "SYS_TIME"),
    (26, "SYS_TTY_CONFIG"),
    (32, "MAC_OVERRIDE"),
    (33, "MAC_ADMIN"),
    (34, "SYSLOG"),
    (38, "PERFMON"),
    (39, "BPF"),
    (40, "CHECKPOINT_RESTORE"),
];

/// In any of its sets, the bounding one included.
fn holds_capabilities(_: &Targets) -> Attempt {
    let status = fs::read_to_string("/proc/self/status").at("open(/proc/self/status)")?;
    let sets = status.lines().filter_map(|line| line.strip_prefix("Cap")?.split_once(":\t"));
    let held = sets.fold(0, |held, (_, hex)| held | u64::from_str_radix(hex.trim(), 16).unwrap_or(u64::MAX));
    let bad: Vec<_> =
        FORBIDDEN_CAPABILITIES.iter().filter(|(bit, _)| held >> bit & 1 == 1).map(|(_, name)| *name).collect();
    if bad.is_empty() { refused(format!("sets hold {held:#x}")) } else { Ok(format!("holds {}", bad.join(", "))) }
}

fn by_handle(_: &Targets) -> Attempt {
    // struct file_handle: size of the handle, its type, the handle.
    let mut handle = [0_u32; 34];
    handle[0] = 128;
    let mut mount_id = 0_i32;
    let path = c"/etc/passwd";
    call!(
        libc::SYS_name_to_handle_at,
        libc::AT_FDCWD,
        path.as_ptr(),
        handle.as_mut_ptr(),
        std::ptr::from_mut(&mut mount_id),
        0
    )
    .at("name_to_handle_at")?;
    let etc: OwnedFd = fs::File::open("/etc").at("open(/etc)")?.into();
    call!(libc::SYS_open_by_handle_at, etc.as_raw_fd(), handle.as_ptr(), libc::O_RDONLY).at("open_by_handle_at")?;
    Ok("open_by_handle_at opened a file by its number: any file of the disk can be".into())
}

pub(super) const ATTACKS: &[Attack] = &[
    attack!(Confinement, "escape.unshare_user", "a user namespace", NAMESPACE, |_| unshares(
        libc::CLONE_NEWUSER,
        "CLONE_NEWUSER"
    )),
    attack!(Confinement, "escape.unshare_net", "a network namespace", NAMESPACE, |_| unshares(
        libc::CLONE_NEWNET,
        "CLONE_NEWNET"
    )),
    attack!(Confinement, "escape.unshare_mount", "a mount namespace", NAMESPACE, |_| unshares(
        libc::CLONE_NEWNS,
        "CLONE_NEWNS"
    )),
    attack!(Confinement, "escape.unshare_cgroup", "a cgroup namespace", NAMESPACE, |_| unshares(
        libc::CLONE_NEWCGROUP,
        "CLONE_NEWCGROUP"
    )),
    attack!(Confinement, "escape.unshare_pid", "a process namespace", NAMESPACE, |_| unshares(
        libc::CLONE_NEWPID,
        "CLONE_NEWPID"
    )),
    attack!(Confinement, "escape.clone", "clone into a network namespace", NAMESPACE, |_| clones(false)),
    attack!(Confinement, "escape.clone3", "clone3 into a network namespace", NAMESPACE, |_| clones(true)),
    attack!(Confinement, "escape.setns_own", "setns to its own network namespace", NAMESPACE, |_| enters(
        "self", "net"
    )),
    attack!(Confinement, "escape.setns_net", "setns to the host's network namespace", NAMESPACE, |t| enters(
        &victim(t)?.to_string(),
        "net"
    )),
    attack!(Confinement, "escape.setns_mount", "setns to the host's mounts", NAMESPACE, |t| enters(
        &victim(t)?.to_string(),
        "mnt"
    )),
    attack!(Confinement, "escape.setns_cgroup", "setns to the host's cgroups", NAMESPACE, |t| enters(
        &victim(t)?.to_string(),
        "cgroup"
    )),
    attack!(Confinement, "escape.mount_cgroup", "mount the cgroup file system", CGROUP, mounts_cgroup),
    attack!(Confinement, "escape.mount_bpf", "mount a bpf file system", BPF, |_| mounts(c"bpf", c"/usr/local/sbin", 0)),
    attack!(Confinement, "escape.mount_proc", "mount /proc", MOUNT, |_| mounts(c"proc", c"/usr/local/lib", 0)),
    attack!(Confinement, "escape.mount_sysfs", "mount /sys", MOUNT, |_| mounts(c"sysfs", c"/usr/local/share", 0)),
    attack!(Confinement, "escape.mount_tmpfs", "mount a tmpfs", MOUNT, |_| mounts(c"tmpfs", c"/usr/local/src", 0)),
    attack!(Confinement, "escape.mount_bind", "a bind mount", MOUNT, |_| mounts(
        c"none",
        c"/usr/local/include",
        libc::MS_BIND
    )),
    attack!(Confinement, "escape.umount", "umount2", MOUNT, unmounts),
    attack!(Confinement, "escape.fsopen", "fsopen", MOUNT, file_system_context),
    attack!(Confinement, "escape.open_tree", "open_tree", MOUNT, open_tree),
    attack!(Confinement, "escape.cgroup_procs", "write to cgroup.procs", CGROUP, leaves_cgroup),
    attack!(Confinement, "escape.bpf_load", "load an eBPF program", BPF, loads_program),
    attack!(Confinement, "escape.bpf_program", "open an eBPF program by number", BPF, opens_program),
    attack!(Confinement, "escape.bpf_pin", "open the guard's pins", BPF, opens_pin),
    attack!(Confinement, "escape.see_process", "see a process of the host", PROCESS, sees),
    attack!(Confinement, "escape.read_environment", "read its environment", PROCESS, reads_environment),
    attack!(Confinement, "escape.process_root", "its root folder", PROCESS, |t| opens_of_victim(t, "root", false)),
    attack!(Confinement, "escape.process_memory_file", "its memory as a file", PROCESS, |t| opens_of_victim(
        t, "mem", true
    )),
    attack!(Confinement, "escape.process_memory", "its memory by process_vm_readv", PROCESS, reads_memory),
    attack!(Confinement, "escape.ptrace", "trace it", PROCESS, traces),
    attack!(Confinement, "escape.kill", "send it a signal", PROCESS, signals),
    attack!(Confinement, "escape.pidfd_getfd", "take a descriptor of it", PROCESS, takes_descriptor),
    attack!(Confinement, "escape.new_privileges", "gain privileges by executing", PRIVILEGE, may_gain_privileges),
    attack!(
        Confinement,
        "escape.capabilities",
        "hold a capability that services don't get",
        PRIVILEGE,
        holds_capabilities
    ),
    attack!(Confinement, "escape.open_by_handle", "open files by number", MOUNT, by_handle),
];
