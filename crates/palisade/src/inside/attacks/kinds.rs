//! Sockets that the guard's hooks can't see or judge, and ways to make sockets that a filter may overlook.

use super::attack;
use crate::inside::attack::Attack;
use crate::inside::sys::{At, Attempt, Socket, call, not_applicable, refused};
use crate::inside::targets::Targets;

const RAW: &str = "forged packets, past every rule about addresses and ports";
const SNIFF: &str = "reading everybody's traffic on the host, and forging it";
const UNSEEN: &str = "a transport that no rule of the guard covers";
const KERNEL: &str = "more of the kernel to attack, or a view of other services' connections";
const FILTER: &str = "system calls that the filter doesn't recognise";

fn makes(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> Attempt {
    makes_any(&[(family, kind, protocol)])
}

/// Whether the kernel has the family, whatever a filter says about it.
fn exists(family: libc::c_int) -> bool {
    let name = match family {
        libc::AF_PACKET => "PACKET",
        libc::AF_VSOCK => "AF_VSOCK",
        libc::AF_XDP => "XDP",
        libc::AF_ALG => "ALG",
        libc::AF_TIPC => "TIPC",
        _ => return false,
    };
    let protocols = std::fs::read_to_string("/proc/net/protocols").unwrap_or_default();
    protocols.lines().any(|line| line.split_whitespace().next() == Some(name))
}

/// Any of these.
fn makes_any(kinds: &[(libc::c_int, libc::c_int, libc::c_int)]) -> Attempt {
    let mut answers = Vec::new();
    let mut missing = 0;
    for &(family, kind, protocol) in kinds {
        match Socket::new(family, kind, protocol) {
            Ok(_) => return Ok(format!("socket({family}, {kind}, {protocol}) gave a socket")),
            Err(error) => {
                let code = error.raw_os_error().unwrap_or_default();
                let unknown = [libc::EAFNOSUPPORT, libc::EPROTONOSUPPORT, libc::ESOCKTNOSUPPORT].contains(&code);
                missing += usize::from(unknown && !exists(family));
                answers.push(format!("({family}, {kind}, {protocol}): {:?}", nix::errno::Errno::from_raw(code)));
            }
        }
    }
    answers.dedup();
    let told = answers.join(", ");
    if missing == kinds.len() { not_applicable(told) } else { refused(told) }
}

const RAW4: &[(libc::c_int, libc::c_int, libc::c_int)] = &[
    (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW),
    (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP),
    (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_UDP),
    (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
    (libc::AF_INET, libc::SOCK_RAW, 89),
];
const RAW6: &[(libc::c_int, libc::c_int, libc::c_int)] = &[
    (libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_RAW),
    (libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_TCP),
    (libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_UDP),
    (libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6),
];
const SCTP: &[(libc::c_int, libc::c_int, libc::c_int)] = &[
    (libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
    (libc::AF_INET, libc::SOCK_SEQPACKET, libc::IPPROTO_SCTP),
    (libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
];
const SOCK_DCCP: libc::c_int = 6;
const IPPROTO_SMC: libc::c_int = 256;

/// Everything but unix, IPv4, IPv6 and routing netlink, which programs need, and what has an attack of its own.
fn other_families(_: &Targets) -> Attempt {
    let apart =
        [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET, libc::AF_VSOCK, libc::AF_XDP];
    let mut made = Vec::new();
    let mut forbidden = 0;
    for family in 1..=48 {
        if apart.contains(&family) {
            continue;
        }
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW, libc::SOCK_SEQPACKET] {
            match Socket::new(family, kind, 0) {
                Ok(_) => made.push(format!("({family}, {kind})")),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => forbidden += 1,
                Err(_) => {}
            }
        }
    }
    match (made.is_empty(), forbidden) {
        (false, _) => Ok(format!("sockets of families {}", made.join(", "))),
        (true, 0) => not_applicable("no other family exists here, or all are denied as unknown"),
        (true, _) => refused("EPERM"),
    }
}

fn io_uring(_: &Targets) -> Attempt {
    let parameters = [0_u64; 15];
    call!(libc::SYS_io_uring_setup, 4, parameters.as_ptr()).at("io_uring_setup")?;
    Ok("io_uring_setup gave a ring: calls that no filter sees".into())
}

/// The 32-bit way into the kernel has numbers of its own.
#[cfg(target_arch = "x86_64")]
fn int80(number: u32, first: u32, second: u32, third: u32) -> std::io::Result<i32> {
    let result: i32;
    // SAFETY: both calls made this way create a socket and read no memory but the three words of `socketcall`.
    unsafe {
        std::arch::asm!(
            // rbx is the compiler's own.
            "xchg {first:r}, rbx",
            "int 0x80",
            "xchg {first:r}, rbx",
            first = inout(reg) u64::from(first) => _,
            inlateout("eax") number as i32 => result,
            in("ecx") second,
            in("edx") third,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    if result < 0 { Err(std::io::Error::from_raw_os_error(-result)) } else { Ok(result) }
}

#[cfg(target_arch = "x86_64")]
fn old_socket(_: &Targets) -> Attempt {
    const SOCKET: u32 = 359;
    int80(SOCKET, libc::AF_VSOCK as u32, libc::SOCK_STREAM as u32, 0).at("int 0x80, socket(AF_VSOCK)")?;
    Ok("int 0x80 gave a socket of AF_VSOCK".into())
}

#[cfg(target_arch = "x86_64")]
fn old_socketcall(_: &Targets) -> Attempt {
    const SOCKETCALL: u32 = 102;
    const SYS_SOCKET: u32 = 1;
    // The arguments must lie where a 32-bit pointer reaches.
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
    let page = call!(libc::SYS_mmap, 0, 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0).at("mmap")?;
    // SAFETY: the page was just mapped, writable, and is aligned.
    unsafe { (page as *mut [u32; 3]).write([libc::AF_VSOCK as u32, libc::SOCK_STREAM as u32, 0]) };
    int80(SOCKETCALL, SYS_SOCKET, page as u32, 0).at("int 0x80, socketcall(socket, AF_VSOCK)")?;
    Ok("int 0x80 socketcall gave a socket of AF_VSOCK".into())
}

#[cfg(target_arch = "x86_64")]
fn x32(_: &Targets) -> Attempt {
    const X32: libc::c_long = 0x4000_0000;
    call!(X32 + libc::SYS_socket, libc::AF_VSOCK, libc::SOCK_STREAM, 0).at("x32 socket(AF_VSOCK)")?;
    Ok("the x32 call gave a socket of AF_VSOCK".into())
}

#[cfg(not(target_arch = "x86_64"))]
fn old_socket(_: &Targets) -> Attempt {
    not_applicable("only x86-64 has this")
}
#[cfg(not(target_arch = "x86_64"))]
use {old_socket as old_socketcall, old_socket as x32};

pub(super) const ATTACKS: &[Attack] = &[
    attack!(Either, "kinds.raw4", "raw IPv4 socket", RAW, |_| makes_any(RAW4)),
    attack!(Either, "kinds.raw6", "raw IPv6 socket", RAW, |_| makes_any(RAW6)),
    attack!(Guard, "kinds.ping4", "ping socket", RAW, |_| makes(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP)),
    attack!(Guard, "kinds.ping6", "IPv6 ping socket", RAW, |_| {
        makes(libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6)
    }),
    attack!(Confinement, "kinds.packet_raw", "AF_PACKET, raw", SNIFF, |_| makes(
        libc::AF_PACKET,
        libc::SOCK_RAW,
        0x0300
    )),
    attack!(Confinement, "kinds.packet_datagram", "AF_PACKET, datagram", SNIFF, |_| {
        makes(libc::AF_PACKET, libc::SOCK_DGRAM, 0x0300)
    }),
    attack!(Guard, "kinds.mptcp", "Multipath TCP", UNSEEN, |_| makes(
        libc::AF_INET,
        libc::SOCK_STREAM,
        libc::IPPROTO_MPTCP
    )),
    attack!(Guard, "kinds.mptcp6", "Multipath TCP over IPv6", UNSEEN, |_| {
        makes(libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)
    }),
    attack!(Guard, "kinds.sctp", "SCTP", UNSEEN, |_| makes_any(SCTP)),
    attack!(Guard, "kinds.dccp", "DCCP", UNSEEN, |_| makes(libc::AF_INET, SOCK_DCCP, libc::IPPROTO_DCCP)),
    attack!(Guard, "kinds.smc", "SMC in place of TCP", UNSEEN, |_| makes(
        libc::AF_INET,
        libc::SOCK_STREAM,
        IPPROTO_SMC
    )),
    attack!(Confinement, "kinds.vsock", "AF_VSOCK: to the hypervisor", UNSEEN, |_| {
        makes_any(&[(libc::AF_VSOCK, libc::SOCK_STREAM, 0), (libc::AF_VSOCK, libc::SOCK_DGRAM, 0)])
    }),
    attack!(Confinement, "kinds.vsock_upper_half", "AF_VSOCK with a bit that the kernel drops", UNSEEN, |_| {
        // Families are 32 bits; a filter that compares 64 sees another one.
        call!(libc::SYS_socket, 1_u64 << 32 | libc::AF_VSOCK as u64, libc::SOCK_STREAM, 0)
            .at("socket(2³² + AF_VSOCK)")?;
        Ok("socket(2³² + AF_VSOCK) gave a socket".into())
    }),
    attack!(Confinement, "kinds.tipc", "AF_TIPC", UNSEEN, |_| makes(libc::AF_TIPC, libc::SOCK_SEQPACKET, 0)),
    attack!(Confinement, "kinds.xdp", "AF_XDP", SNIFF, |_| makes(libc::AF_XDP, libc::SOCK_RAW, 0)),
    attack!(Confinement, "kinds.crypto", "AF_ALG", KERNEL, |_| makes(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    attack!(Confinement, "kinds.other_families", "every other family", KERNEL, other_families),
    attack!(Confinement, "kinds.socket_diagnosis", "netlink socket diagnosis", KERNEL, |_| {
        makes(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG)
    }),
    attack!(Confinement, "kinds.netfilter", "netlink netfilter", KERNEL, |_| {
        makes(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)
    }),
    attack!(Confinement, "kinds.transformations", "netlink IPsec", KERNEL, |_| {
        makes_any(&[
            (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_XFRM),
            (libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_GENERIC),
        ])
    }),
    attack!(Confinement, "kinds.io_uring", "io_uring", FILTER, io_uring),
    attack!(Confinement, "kinds.int80_socket", "a socket by the 32-bit system call", FILTER, old_socket),
    attack!(Confinement, "kinds.int80_socketcall", "a socket by the 32-bit socketcall", FILTER, old_socketcall),
    attack!(Confinement, "kinds.x32_socket", "a socket by the x32 system call", FILTER, x32),
];
