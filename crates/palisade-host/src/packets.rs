//! One packet for each of many ports, made from a template and sent in batches.
//!
//! Which ports, from where and what the answers mean is the business of `twin` and `probe`.

use nix::libc;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use palisade_core::stack::Proto;

/// The largest: Ethernet, IPv6, TCP with one option.
const LEN_MAX: usize = 14 + 40 + 24;
/// How many packets go out at once.
pub(crate) const BATCH: usize = 256;

/// Where packets come from; an ephemeral port, as that of any client.
pub(crate) const SOURCE_PORT: u16 = 52_817;

/// A TCP SYN or an empty UDP datagram whose destination port is still open.
#[derive(Clone)]
pub(crate) struct Template {
    bytes: [u8; LEN_MAX],
    len: usize,
    port_at: usize,
    checksum_at: usize,
    sum: u32,
    udp: bool,
}

fn sum_of(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}

fn folded(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

impl Template {
    /// `ethernet` is the receiver's and the sender's hardware address; without it the packet starts with IP.
    pub(crate) fn new(ethernet: Option<([u8; 6], [u8; 6])>, source: IpAddr, target: IpAddr, proto: Proto) -> Self {
        let (number, transport_len) = match proto {
            Proto::Tcp => (6, 24_usize),
            Proto::Udp => (17, 8),
        };
        let (from, to) = (octets(source), octets(target));
        let mut bytes = Vec::with_capacity(LEN_MAX);
        if let Some((receiver, sender)) = ethernet {
            bytes.extend(receiver);
            bytes.extend(sender);
            bytes.extend(if target.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
        }
        let ip_at = bytes.len();
        if target.is_ipv4() {
            bytes.extend([0x45, 0, 0, 20 + transport_len as u8, 0, 0, 0x40, 0, 64, number, 0, 0]);
            bytes.extend(&from);
            bytes.extend(&to);
            let checksum = folded(sum_of(&bytes[ip_at..]));
            bytes[ip_at + 10..ip_at + 12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            bytes.extend([0x60, 0, 0, 0, 0, transport_len as u8, number, 64]);
            bytes.extend(&from);
            bytes.extend(&to);
        }
        let at = bytes.len();
        bytes.extend(SOURCE_PORT.to_be_bytes());
        bytes.extend([0, 0]);
        let checksum_at = match proto {
            Proto::Tcp => {
                // Sequence, no acknowledgement, 6 words and SYN, window, checksum, and the segment size that every
                // real client sends: firewalls drop a SYN without a sensible one.
                bytes.extend(0x7061_6c69_u32.to_be_bytes());
                bytes.extend([0, 0, 0, 0, 0x60, 0x02, 0xfa, 0xf0, 0, 0, 0, 0, 2, 4, 0x05, 0xb4]);
                at + 16
            }
            Proto::Udp => {
                bytes.extend([0, 8, 0, 0]);
                at + 6
            }
        };
        let sum = sum_of(&from) + sum_of(&to) + number as u32 + transport_len as u32 + sum_of(&bytes[at..]);
        let mut template =
            Self { bytes: [0; LEN_MAX], len: bytes.len(), port_at: at + 2, checksum_at, sum, udp: proto == Proto::Udp };
        template.bytes[..bytes.len()].copy_from_slice(&bytes);
        template
    }
    fn write(&self, port: u16, packet: &mut [u8; LEN_MAX]) {
        packet[self.port_at..self.port_at + 2].copy_from_slice(&port.to_be_bytes());
        let mut checksum = folded(self.sum + u32::from(port));
        if self.udp && checksum == 0 {
            // Zero would mean that there is none.
            checksum = 0xffff;
        }
        packet[self.checksum_at..self.checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// A socket that sends packets as they are.
pub(crate) struct Sender {
    fd: OwnedFd,
    destination: libc::sockaddr_storage,
    destination_len: libc::socklen_t,
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn raw_socket(domain: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: socket() takes plain numbers.
    let fd = checked(unsafe { libc::socket(domain, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_option(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer and length describe `value`, which outlives the call.
    checked(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len) }).map(drop)
}

impl Sender {
    /// Sends Ethernet frames straight out of an interface, past routing, neighbours and queues.
    pub(crate) fn frames(interface: u32) -> io::Result<Self> {
        let fd = raw_socket(libc::AF_PACKET, 0)?;
        // SAFETY: all-zero is a valid value of these plain C structures.
        let (mut address, destination) = unsafe { std::mem::zeroed::<(libc::sockaddr_ll, libc::sockaddr_storage)>() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = interface as i32;
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the pointer and length describe `address`, which outlives the call.
        checked(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) })?;
        // Only faster; kernels that refuse it still send.
        let _ = set_option(&fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1);
        Ok(Self { fd, destination, destination_len: 0 })
    }
    /// Sends IP packets to `target` as routing says.
    pub(crate) fn routed(target: IpAddr) -> io::Result<Self> {
        let domain = if target.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        // IPPROTO_RAW: our bytes start with the IP header.
        let fd = raw_socket(domain, libc::IPPROTO_RAW)?;
        // SAFETY: all-zero is a valid value of this plain C structure.
        let mut destination: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let destination_len = match target {
            IpAddr::V4(ip) => {
                let address: *mut libc::sockaddr_in = (&raw mut destination).cast();
                // SAFETY: the storage is large enough and aligned for every socket address.
                unsafe {
                    (*address).sin_family = libc::AF_INET as u16;
                    (*address).sin_addr.s_addr = u32::from_ne_bytes(ip.octets());
                }
                size_of::<libc::sockaddr_in>()
            }
            IpAddr::V6(ip) => {
                let address: *mut libc::sockaddr_in6 = (&raw mut destination).cast();
                // SAFETY: the storage is large enough and aligned for every socket address.
                unsafe {
                    (*address).sin6_family = libc::AF_INET6 as u16;
                    (*address).sin6_addr.s6_addr = ip.octets();
                }
                size_of::<libc::sockaddr_in6>()
            }
        };
        Ok(Self { fd, destination, destination_len: destination_len as libc::socklen_t })
    }
    /// Sends one packet to each port, and says how many that were. `between` is called after every batch.
    pub(crate) fn send(
        &mut self,
        template: &Template,
        ports: impl Iterator<Item = u16>,
        mut between: impl FnMut(),
    ) -> io::Result<u64> {
        let mut packets = vec![template.bytes; BATCH];
        let mut ports = ports.peekable();
        let mut total = 0;
        while ports.peek().is_some() {
            let mut filled = 0;
            for (packet, port) in packets.iter_mut().zip(ports.by_ref().take(BATCH)) {
                template.write(port, packet);
                filled += 1;
            }
            self.send_batch(&mut packets[..filled], template.len)?;
            total += filled as u64;
            between();
        }
        Ok(total)
    }
    fn send_batch(&mut self, packets: &mut [[u8; LEN_MAX]], len: usize) -> io::Result<()> {
        let name: *mut libc::c_void =
            if self.destination_len == 0 { std::ptr::null_mut() } else { (&raw mut self.destination).cast() };
        let mut vectors: Vec<libc::iovec> = packets
            .iter_mut()
            .map(|packet| libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: len })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = vectors
            .iter_mut()
            .map(|vector| {
                // SAFETY: all-zero is a valid value of this plain C structure.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_name = name;
                message.msg_hdr.msg_namelen = self.destination_len;
                message.msg_hdr.msg_iov = vector;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let mut sent = 0;
        let mut patience = 10_000;
        while sent < messages.len() {
            let rest = &mut messages[sent..];
            // SAFETY: every header points to a vector, a packet and an address that outlive the call.
            let result = unsafe { libc::sendmmsg(self.fd.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, 0) };
            match checked(result) {
                Ok(count) => sent += count as usize,
                Err(e) => match e.raw_os_error() {
                    // A full queue empties itself; a refusal by the sender's own firewall doesn't.
                    Some(libc::ENOBUFS | libc::EAGAIN | libc::EINTR) if patience > 0 => {
                        patience -= 1;
                        std::thread::yield_now();
                    }
                    _ => return Err(e),
                },
            }
        }
        Ok(())
    }
}

/// Waits until every packet that has begun its way up the stack on whatever CPU has ended it: a packet is delivered
/// inside one RCU read-side section (`process_backlog`), and this waits for a grace period.
pub(crate) fn delivered() {
    /// `MEMBARRIER_CMD_GLOBAL` of linux/membarrier.h: `synchronize_rcu` when there is more than one CPU.
    const GLOBAL: libc::c_long = 1;
    // SAFETY: the call takes no pointers.
    if unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) } != 0 {
        // Kernels with CPUs in nohz_full refuse it; a softirq gives way after 2 ms (`MAX_SOFTIRQ_TIME`).
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a receiver computes over the pseudo header and the segment is zero when the checksum is right.
    #[test]
    fn checksums_are_right() {
        for (source, target) in [("203.0.113.9", "203.0.113.1"), ("2001:db8::9", "2001:db8::1")] {
            let (source, target): (IpAddr, IpAddr) = (source.parse().unwrap(), target.parse().unwrap());
            for proto in [Proto::Tcp, Proto::Udp] {
                let template = Template::new(None, source, target, proto);
                let transport = if target.is_ipv4() { 20 } else { 40 };
                for port in [1, 22, 0x1234, 65535] {
                    let mut packet = template.bytes;
                    template.write(port, &mut packet);
                    let segment = &packet[transport..template.len];
                    let number = if proto == Proto::Tcp { 6 } else { 17 };
                    let pseudo = sum_of(&octets(source)) + sum_of(&octets(target)) + number + segment.len() as u32;
                    assert_eq!(folded(pseudo + sum_of(segment)), 0, "{target} {proto} {port}");
                    assert_eq!(segment[2..4], port.to_be_bytes());
                }
                if target.is_ipv4() {
                    assert_eq!(folded(sum_of(&template.bytes[..20])), 0);
                }
            }
        }
    }
}
