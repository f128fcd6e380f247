//! Changing the machine: its network, clock, kernel, power.
//!
//! Nothing is changed when it is permitted: each call is given an argument that the kernel rejects only after it has
//! asked for the privilege, so that the two answers tell who may from who may not; or it is undone at once.

use super::attack;
use crate::inside::attack::Attack;
use crate::inside::sys::{At, Attempt, Socket, Stop, call, not_applicable};
use crate::inside::targets::Targets;
use nix::errno::Errno;

const NETWORK: &str = "changing the host's addresses, routes or firewall";
const MARK: &str = "looking like the host to its own firewall";
const MACHINE: &str = "changing or stopping the whole machine";
const KERNEL: &str = "running code in the kernel, or watching it";

/// Permitted if the kernel got as far as to complain about the argument.
fn permitted(what: &str, result: std::io::Result<libc::c_long>, complaints: &[Errno]) -> Attempt {
    match result {
        Ok(_) => Ok(format!("{what} succeeded")),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(errno) if complaints.contains(&errno) => Ok(format!("{what} was permitted ({errno:?}: bad argument)")),
            _ => Err(error).at(what),
        },
    }
}

/// A netlink request and the kernel's answer to it.
fn netlink(family: libc::c_int, kind: u16, flags: u16, body: &[u8]) -> Result<std::io::Result<()>, Stop> {
    let socket = Socket::new(libc::AF_NETLINK, libc::SOCK_RAW, family).at("socket(AF_NETLINK)")?;
    let mut message = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((flags | libc::NLM_F_REQUEST as u16 | libc::NLM_F_ACK as u16).to_ne_bytes());
    message.extend(1_u32.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    socket.send(&message, 0, None).at("send(netlink)")?;
    if !socket.wait(libc::POLLIN, std::time::Duration::from_secs(1)).at("poll")? {
        return Err(Stop::Refused("no answer over netlink".into()));
    }
    let mut answer = [0_u8; 4096];
    let len = call!(libc::SYS_read, socket.fd(), answer.as_mut_ptr(), answer.len()).at("read(netlink)")?;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    if len >= 20 && i32::from(kind) == libc::NLMSG_ERROR {
        let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
        return Ok(if code == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(-code)) });
    }
    Ok(Ok(()))
}

/// Adds 203.0.113.77/32 to the loopback interface, and takes it away.
fn adds_address(t: &Targets) -> Attempt {
    if !t.scratch_network {
        return not_applicable("the network is a real one");
    }
    let index = 1_u32;
    let mut body = vec![libc::AF_INET as u8, 32, 0, 0];
    body.extend(index.to_ne_bytes());
    body.extend([8, 0, libc::IFA_LOCAL as u8, 0, 203, 0, 113, 77]);
    netlink(libc::NETLINK_ROUTE, libc::RTM_NEWADDR, libc::NLM_F_CREATE as u16, &body)?.at("RTM_NEWADDR")?;
    netlink(libc::NETLINK_ROUTE, libc::RTM_DELADDR, 0, &body)?.at("RTM_DELADDR")?;
    Ok("added an address to the host (and took it away)".into())
}

/// Adds a route to 198.51.100.0/24 that drops, and takes it away.
fn adds_route(t: &Targets) -> Attempt {
    if !t.scratch_network {
        return not_applicable("the network is a real one");
    }
    let table = libc::RT_TABLE_MAIN;
    let protocol = 4; // static
    let mut body = vec![libc::AF_INET as u8, 24, 0, 0, table, protocol, libc::RT_SCOPE_UNIVERSE, libc::RTN_BLACKHOLE];
    body.extend([0; 4]);
    body.extend([8, 0, libc::RTA_DST as u8, 0, 198, 51, 100, 0]);
    netlink(libc::NETLINK_ROUTE, libc::RTM_NEWROUTE, libc::NLM_F_CREATE as u16, &body)?.at("RTM_NEWROUTE")?;
    netlink(libc::NETLINK_ROUTE, libc::RTM_DELROUTE, 0, &body)?.at("RTM_DELROUTE")?;
    Ok("added a route to the host (and took it away)".into())
}

/// Asks for the firewall's tables, for which the privilege is needed that changing them needs.
fn reads_firewall(_: &Targets) -> Attempt {
    const NFT_MSG_GETTABLE: u16 = 10 << 8 | 1;
    let body = [0, 0, 0, 0];
    netlink(libc::NETLINK_NETFILTER, NFT_MSG_GETTABLE, libc::NLM_F_DUMP as u16, &body)?.at("NFT_MSG_GETTABLE")?;
    Ok("may read and change the host's firewall".into())
}

fn marks(_: &Targets) -> Attempt {
    let socket = Socket::tcp(libc::AF_INET)?;
    socket.set(libc::SOL_SOCKET, libc::SO_MARK, 1).at("setsockopt(SO_MARK)")?;
    Ok("set the mark that firewall rules go by".into())
}

fn repairs(_: &Targets) -> Attempt {
    let socket = Socket::tcp(libc::AF_INET)?;
    socket.set(libc::IPPROTO_TCP, libc::TCP_REPAIR, 1).at("setsockopt(TCP_REPAIR)")?;
    Ok("may forge the state of connections".into())
}

fn transparent(_: &Targets) -> Attempt {
    let socket = Socket::tcp(libc::AF_INET)?;
    socket.set(libc::IPPROTO_IP, libc::IP_TRANSPARENT, 1).at("setsockopt(IP_TRANSPARENT)")?;
    Ok("may bind addresses that the host doesn't have".into())
}

fn sets_clock(_: &Targets) -> Attempt {
    // A time zone of 100 hours.
    let zone = [6000_i32, 0];
    permitted("settimeofday", call!(libc::SYS_settimeofday, 0, zone.as_ptr()), &[Errno::EINVAL])
}

fn adjusts_clock(_: &Targets) -> Attempt {
    // SAFETY: all zeroes is a request for nothing.
    let mut request: libc::timex = unsafe { std::mem::zeroed() };
    request.modes = libc::ADJ_TICK;
    permitted("adjtimex", call!(libc::SYS_adjtimex, std::ptr::from_mut(&mut request)), &[Errno::EINVAL])
}

fn reboots(_: &Targets) -> Attempt {
    permitted("reboot", call!(libc::SYS_reboot, 0, 0, 0, 0), &[Errno::EINVAL])
}

fn loads_module(_: &Targets) -> Attempt {
    let result = call!(libc::SYS_init_module, c"".as_ptr(), 0, c"".as_ptr());
    permitted("init_module", result, &[Errno::ENOEXEC, Errno::EINVAL, Errno::EFAULT])
}

fn replaces_kernel(_: &Targets) -> Attempt {
    // More segments than there may be.
    permitted("kexec_load", call!(libc::SYS_kexec_load, 0, 1_000_000, 0, 0), &[Errno::EINVAL])
}

fn swaps(_: &Targets) -> Attempt {
    let result = call!(libc::SYS_swapon, c"/nonexistent/palisade".as_ptr(), 0);
    permitted("swapon", result, &[Errno::ENOENT])
}

fn accounts(_: &Targets) -> Attempt {
    permitted("acct", call!(libc::SYS_acct, c"/nonexistent/palisade".as_ptr()), &[Errno::ENOENT])
}

fn renames_host(_: &Targets) -> Attempt {
    permitted("sethostname", call!(libc::SYS_sethostname, c"".as_ptr(), 65), &[Errno::EINVAL])
}

fn kernel_log(_: &Targets) -> Attempt {
    const SET_CONSOLE_LEVEL: libc::c_int = 8;
    permitted("syslog", call!(libc::SYS_syslog, SET_CONSOLE_LEVEL, 0, 0), &[Errno::EINVAL])
}

fn watches(_: &Targets) -> Attempt {
    // struct perf_event_attr: type PERF_TYPE_SOFTWARE, its size, config PERF_COUNT_SW_CPU_CLOCK.
    let mut attributes = [0_u32; 32];
    attributes[0] = 1;
    attributes[1] = 128;
    call!(libc::SYS_perf_event_open, attributes.as_ptr(), -1, 0, -1, 0).at("perf_event_open(all processes)")?;
    Ok("perf_event_open watches all processes of a processor".into())
}

fn watches_files(_: &Targets) -> Attempt {
    const FAN_CLASS_CONTENT: libc::c_int = 4;
    call!(libc::SYS_fanotify_init, FAN_CLASS_CONTENT, 0).at("fanotify_init")?;
    Ok("fanotify watches and vetoes all file accesses".into())
}

fn keeps_keys(_: &Targets) -> Attempt {
    const PROCESS_KEYRING: libc::c_int = -2;
    call!(libc::SYS_add_key, c"user".as_ptr(), c"palisade-attack".as_ptr(), c"x".as_ptr(), 1, PROCESS_KEYRING)
        .at("add_key")?;
    Ok("add_key works: key rings are shared with the host".into())
}

fn reads_keys(_: &Targets) -> Attempt {
    const GET_KEYRING_ID: libc::c_int = 0;
    const USER_KEYRING: libc::c_int = -4;
    call!(libc::SYS_keyctl, GET_KEYRING_ID, USER_KEYRING, 1).at("keyctl")?;
    Ok("keyctl reached root's key ring".into())
}

#[cfg(target_arch = "x86_64")]
fn ports(_: &Targets) -> Attempt {
    call!(libc::SYS_iopl, 3).at("iopl(3)")?;
    Ok("iopl(3) gave the machine's I/O ports".into())
}
#[cfg(not(target_arch = "x86_64"))]
fn ports(_: &Targets) -> Attempt {
    not_applicable("only x86 has I/O ports")
}

fn priorities(_: &Targets) -> Attempt {
    const FIFO: libc::c_int = 1;
    let priority = 99_i32;
    call!(libc::SYS_sched_setscheduler, 0, FIFO, std::ptr::from_ref(&priority)).at("sched_setscheduler(FIFO, 99)")?;
    Ok("runs before everything else of the machine".into())
}

/// Types into a terminal that isn't its own.
fn types(_: &Targets) -> Attempt {
    let terminal = nix::pty::openpty(None, None).map_err(std::io::Error::from).at("openpty")?;
    let letter = b'x';
    let other = std::os::fd::AsRawFd::as_raw_fd(&terminal.slave);
    call!(libc::SYS_ioctl, other, libc::TIOCSTI, std::ptr::from_ref(&letter)).at("ioctl(TIOCSTI)")?;
    Ok("typed into a terminal that isn't its own".into())
}

pub(super) const ATTACKS: &[Attack] = &[
    attack!(Confinement, "machine.address", "add an address", NETWORK, adds_address),
    attack!(Confinement, "machine.route", "add a route", NETWORK, adds_route),
    attack!(Confinement, "machine.firewall", "read the firewall's tables", NETWORK, reads_firewall),
    attack!(Confinement, "machine.mark", "SO_MARK", MARK, marks),
    attack!(Confinement, "machine.repair", "TCP_REPAIR", NETWORK, repairs),
    attack!(Confinement, "machine.transparent", "IP_TRANSPARENT", NETWORK, transparent),
    attack!(Confinement, "machine.clock", "set the clock", MACHINE, sets_clock),
    attack!(Confinement, "machine.adjust_clock", "adjust the clock", MACHINE, adjusts_clock),
    attack!(Confinement, "machine.reboot", "reboot", MACHINE, reboots),
    attack!(Confinement, "machine.module", "load a kernel module", KERNEL, loads_module),
    attack!(Confinement, "machine.kexec", "replace the kernel", KERNEL, replaces_kernel),
    attack!(Confinement, "machine.swap", "add swap space", MACHINE, swaps),
    attack!(Confinement, "machine.accounting", "switch on process accounting", MACHINE, accounts),
    attack!(Confinement, "machine.hostname", "rename the host", MACHINE, renames_host),
    attack!(Confinement, "machine.kernel_log", "change the kernel's log", KERNEL, kernel_log),
    attack!(Confinement, "machine.perf", "perf events of all processes", KERNEL, watches),
    attack!(Confinement, "machine.fanotify", "watch all files", KERNEL, watches_files),
    attack!(Confinement, "machine.add_key", "add a key", KERNEL, keeps_keys),
    attack!(Confinement, "machine.keyring", "root's key ring", KERNEL, reads_keys),
    attack!(Confinement, "machine.io_ports", "I/O ports", MACHINE, ports),
    attack!(Confinement, "machine.realtime", "real-time priority", MACHINE, priorities),
    attack!(Confinement, "machine.terminal", "type into a terminal", MACHINE, types),
];
