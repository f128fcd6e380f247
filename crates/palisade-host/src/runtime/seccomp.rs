//! The system call filter of an instance, written directly as classic BPF.
//!
//! One program of our own rather than a library's: three different refusals, the x32 check and the architecture check
//! fit into one filter, so a call that must be inspected runs through one program instead of four. Calls that are
//! allowed whatever their arguments don't run it at all: since Linux 5.11 the kernel remembers them.
//!
//! It refuses what reaches around the namespaces and the guard. What only needs a capability that instances lack is
//! refused again here, because a mistake in one of the two must not be enough.

use std::io;

const EPERM: u32 = libc::EPERM as u32;
const ENOSYS: u32 = libc::ENOSYS as u32;
const EAFNOSUPPORT: u32 = libc::EAFNOSUPPORT as u32;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

/// Offsets in `struct seccomp_data`; arguments are 64 bits, of which the low half comes first.
const OFFSET_NR: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const fn offset_argument(number: u32) -> u32 {
    16 + 8 * number
}

/// Every namespace flag of clone and unshare.
const NEW_NAMESPACE: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// Refused with EPERM whatever the arguments.
const FORBIDDEN: &[libc::c_long] = &[
    // Another view of the file system, or another namespace.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_fanotify_init,
    // The kernel's programs, counters and keys.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
    libc::SYS_lookup_dcookie,
    libc::SYS_kcmp,
    // Asynchronous calls that seccomp doesn't see.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // The machine.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_nfsservctl,
    // Another process's memory and placement.
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS__sysctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
];

/// clone3 takes its flags by pointer, where no filter can look: answering "no such call" makes C libraries use clone.
const ABSENT: &[libc::c_long] = &[libc::SYS_clone3];

/// Personalities that programs ask for: the default, `setarch`'s 32 bits, and the question "which is it?".
const PERSONALITIES: [u32; 5] = [0, 0x0008, 0x0002_0000, 0x0002_0008, 0xFFFF_FFFF];

/// A program under construction.
struct Program(Vec<libc::sock_filter>);

impl Program {
    fn push(&mut self, code: u32, k: u32, jump_true: u8, jump_false: u8) {
        self.0.push(libc::sock_filter { code: code as u16, jt: jump_true, jf: jump_false, k });
    }
    fn load(&mut self, offset: u32) {
        self.push(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0);
    }
    fn answer(&mut self, action: u32) {
        self.push(libc::BPF_RET | libc::BPF_K, action, 0, 0);
    }
    /// The rest that `then` adds runs only if the loaded value is `value`.
    fn when_equal(&mut self, value: u32, then: impl FnOnce(&mut Self)) {
        let at = self.0.len();
        self.push(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 0, 0);
        then(self);
        // Blocks are a handful of instructions; far below the 255 that a jump can skip.
        self.0[at].jf = (self.0.len() - at - 1) as u8;
    }
    fn refuse_when_equal(&mut self, value: u32, errno: u32) {
        self.when_equal(value, |program| program.answer(libc::SECCOMP_RET_ERRNO | errno));
    }
    fn allow_when_equal(&mut self, value: u32) {
        self.when_equal(value, |program| program.answer(libc::SECCOMP_RET_ALLOW));
    }
}

/// Builds the filter.
pub(super) fn program() -> Vec<libc::sock_filter> {
    let refuse = |errno| libc::SECCOMP_RET_ERRNO | errno;
    let mut p = Program(Vec::with_capacity(256));
    // The numbers below mean something else to a 32-bit process: it is not run at all.
    p.load(OFFSET_ARCHITECTURE);
    p.push(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, ARCHITECTURE, 1, 0);
    p.answer(libc::SECCOMP_RET_KILL_PROCESS);
    p.load(OFFSET_NR);
    // x32 has every call a second time, under another number.
    p.push(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0x4000_0000, 0, 1);
    p.answer(refuse(ENOSYS));
    for call in FORBIDDEN {
        p.refuse_when_equal(*call as u32, EPERM);
    }
    for call in ABSENT {
        p.refuse_when_equal(*call as u32, ENOSYS);
    }
    p.when_equal(libc::SYS_clone as u32, |p| {
        p.load(offset_argument(0));
        p.push(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, NEW_NAMESPACE, 0, 1);
        p.answer(refuse(EPERM));
        p.answer(libc::SECCOMP_RET_ALLOW);
    });
    p.when_equal(libc::SYS_personality as u32, |p| {
        p.load(offset_argument(0));
        for known in PERSONALITIES {
            p.allow_when_equal(known);
        }
        p.answer(refuse(EPERM));
    });
    // Pushing bytes into a terminal's input queue, so that whoever uses it next runs them.
    p.when_equal(libc::SYS_ioctl as u32, |p| {
        p.load(offset_argument(1));
        for request in [libc::TIOCSTI as u32, libc::TIOCLINUX as u32] {
            p.refuse_when_equal(request, EPERM);
        }
        p.answer(libc::SECCOMP_RET_ALLOW);
    });
    // Families whose sockets no cgroup hook sees are refused; AF_NETLINK only for reading routes and addresses.
    p.when_equal(libc::SYS_socket as u32, |p| {
        p.load(offset_argument(0));
        for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6] {
            p.allow_when_equal(family as u32);
        }
        p.when_equal(libc::AF_NETLINK as u32, |p| {
            p.load(offset_argument(2));
            p.allow_when_equal(libc::NETLINK_ROUTE as u32);
            p.answer(refuse(EPERM));
        });
        p.answer(refuse(EAFNOSUPPORT));
    });
    p.when_equal(libc::SYS_socketpair as u32, |p| {
        p.load(offset_argument(0));
        p.allow_when_equal(libc::AF_UNIX as u32);
        p.answer(refuse(EAFNOSUPPORT));
    });
    // Reading the clock's state is adjtimex with no mode bits, but they are behind a pointer; CAP_SYS_TIME guards it.
    p.answer(libc::SECCOMP_RET_ALLOW);
    p.0
}

/// Puts the filter on this thread for good. Needs no_new_privs or CAP_SYS_ADMIN.
pub(super) fn apply() -> io::Result<()> {
    let program = program();
    let header = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: `header` describes `program`, which lives through the call; the kernel copies it and doesn't write to it.
    if unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &header) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with the program, for the instructions that it uses.
    fn run(program: &[libc::sock_filter], architecture: u32, nr: u32, arguments: [u32; 3]) -> u32 {
        let (mut at, mut loaded) = (0usize, 0u32);
        loop {
            let instruction = program[at];
            at += 1;
            let k = instruction.k;
            let jump = |taken: bool| usize::from(if taken { instruction.jt } else { instruction.jf });
            match u32::from(instruction.code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    loaded = match k {
                        OFFSET_NR => nr,
                        OFFSET_ARCHITECTURE => architecture,
                        _ => arguments[((k - 16) / 8) as usize],
                    }
                }
                code if code == libc::BPF_RET | libc::BPF_K => return k,
                code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => at += jump(loaded == k),
                code if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => at += jump(loaded >= k),
                code if code == libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K => at += jump(loaded & k != 0),
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn the_filter_refuses_what_it_should_and_nothing_else() {
        let program = program();
        let call = |nr: libc::c_long, arguments| run(&program, ARCHITECTURE, nr as u32, arguments);
        let refused = |errno| libc::SECCOMP_RET_ERRNO | errno;
        let allowed = libc::SECCOMP_RET_ALLOW;
        assert_eq!(run(&program, 0x4000_0003, 1, [0; 3]), libc::SECCOMP_RET_KILL_PROCESS);
        assert_eq!(call(0x4000_0000 + libc::SYS_mount, [0; 3]), refused(ENOSYS));
        for forbidden in FORBIDDEN {
            assert_eq!(call(*forbidden, [0; 3]), refused(EPERM), "{forbidden}");
        }
        assert_eq!(call(libc::SYS_clone3, [0; 3]), refused(ENOSYS));
        assert_eq!(call(libc::SYS_clone, [libc::CLONE_NEWUSER as u32, 0, 0]), refused(EPERM));
        assert_eq!(call(libc::SYS_clone, [(libc::CLONE_VM | libc::CLONE_THREAD) as u32, 0, 0]), allowed);
        assert_eq!(call(libc::SYS_socket, [libc::AF_INET as u32, libc::SOCK_STREAM as u32, 0]), allowed);
        assert_eq!(call(libc::SYS_socket, [libc::AF_NETLINK as u32, 3, libc::NETLINK_ROUTE as u32]), allowed);
        assert_eq!(
            call(libc::SYS_socket, [libc::AF_NETLINK as u32, 3, libc::NETLINK_NETFILTER as u32]),
            refused(EPERM)
        );
        for family in [libc::AF_PACKET, libc::AF_VSOCK, libc::AF_ALG, libc::AF_XDP, libc::AF_TIPC, libc::AF_RDS] {
            assert_eq!(call(libc::SYS_socket, [family as u32, 3, 0]), refused(EAFNOSUPPORT), "{family}");
        }
        assert_eq!(call(libc::SYS_ioctl, [0, libc::TIOCSTI as u32, 0]), refused(EPERM));
        assert_eq!(call(libc::SYS_ioctl, [0, libc::TIOCGWINSZ as u32, 0]), allowed);
        assert_eq!(call(libc::SYS_personality, [0x0004_0000, 0, 0]), refused(EPERM));
        for common in [libc::SYS_read, libc::SYS_execve, libc::SYS_futex, libc::SYS_ptrace, libc::SYS_prctl] {
            assert_eq!(call(common, [0; 3]), allowed, "{common}");
        }
    }
}
