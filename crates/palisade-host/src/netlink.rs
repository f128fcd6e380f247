//! Netlink messages: just enough to write requests and walk the attributes of answers.
//!
//! What the messages mean stands in the modules that send them.

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket,
    sockopt,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// Make the object if it is missing.
pub(crate) const NLM_F_CREATE: u16 = 0x400;
/// Fail if the object exists.
pub(crate) const NLM_F_EXCL: u16 = 0x200;
/// Replace the object if it exists.
pub(crate) const NLM_F_REPLACE: u16 = 0x100;

/// One request; built front to back.
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// A message of `kind` whose fixed part (`ifinfomsg` and the like) is `fixed`.
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self(bytes).padded()
    }
    fn padded(mut self) -> Self {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
    /// Adds an attribute.
    pub(crate) fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.padded()
    }
    /// Adds a string attribute with its terminating zero.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }
    /// What follows the header, as a copy of it would start.
    pub(crate) fn body(self) -> Vec<u8> {
        self.0[16..].to_vec()
    }
    /// Adds an attribute that `fill` fills with more of them (and, as veth needs, a fixed part of its own).
    pub(crate) fn nest(mut self, kind: u16, fixed: &[u8], fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(fixed);
        let mut filled = fill(self.padded());
        let len = (filled.0.len() - start) as u16;
        filled.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        filled
    }
}

/// The attributes of an answer, as (kind, value); nested-flag bits are taken off.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// A 32-bit attribute in host order; 0 when it is too short.
pub(crate) fn u32_of(value: &[u8]) -> u32 {
    value.get(..4).map_or(0, |bytes| u32::from_ne_bytes(bytes.try_into().expect("four bytes")))
}

/// A text attribute without its terminating zero.
pub(crate) fn text_of(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|b| *b == 0).next().unwrap_or(&[])).into_owned()
}

/// The messages of one read, each as its kind, its sequence number and what follows its header.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, u32, io::Result<&[u8]>)> {
    std::iter::from_fn(move || {
        let header = rest.get(..16)?;
        let (len, kind) = (u32_of(header) as usize, u16::from_ne_bytes([header[4], header[5]]));
        let body = (len >= 16).then(|| rest.get(16..len)).flatten();
        rest = body.and_then(|_| rest.get(len.next_multiple_of(4)..)).unwrap_or(&[]);
        let truncated = || io::Error::new(io::ErrorKind::InvalidData, "truncated netlink message");
        Some((kind, u32_of(&header[8..]), body.ok_or_else(truncated)))
    })
}

/// A netlink socket of the network namespace that the thread was in when it was made.
pub(crate) struct Netlink {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket of one netlink family.
    pub(crate) fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        // A dump of many sockets or set elements must not outrun us; refused without root, and then the default does.
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &(4 << 20));
        setsockopt(&fd, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(5, 0))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; 1 << 16] })
    }
    /// Opens a socket that hears what the kernel tells everybody in multicast groups (netlink(7)).
    pub(crate) fn listen(protocol: SockProtocol, groups: &[u32]) -> io::Result<Self> {
        let socket = Self::open(protocol)?;
        // Without an address of its own a socket is taken for the kernel that sends (do_one_broadcast of
        // net/netlink/af_netlink.c), and hears nothing.
        bind(socket.fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let (level, option, len) = (libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, size_of::<u32>());
        for group in groups {
            let group: *const u32 = group;
            // SAFETY: the pointer and length describe one of `groups`, which outlives the call.
            let result =
                unsafe { libc::setsockopt(socket.fd.as_raw_fd(), level, option, group.cast(), len as libc::socklen_t) };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(socket)
    }
    /// Waits up to `timeout` for something that the kernel tells a group and hands it to `each`; false when there was
    /// nothing.
    pub(crate) fn receive(&mut self, timeout: Duration, mut each: impl FnMut(u16, &[u8])) -> io::Result<bool> {
        let timeout_ms = u16::try_from(timeout.as_millis()).unwrap_or(u16::MAX);
        let mut polled = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::from(timeout_ms)) {
            Ok(0) | Err(nix::Error::EINTR) => return Ok(false),
            other => other?,
        };
        let received = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT)?;
        for (kind, _, body) in messages(&self.buffer[..received]) {
            each(kind, body?);
        }
        Ok(true)
    }
    /// Sends a request and waits for the kernel's word that it is done.
    pub(crate) fn request(&mut self, message: Message) -> io::Result<()> {
        self.exchange(message, NLM_F_ACK, |_, _| ())
    }
    /// Sends a question that has one answer and hands it to `each`.
    pub(crate) fn ask(&mut self, message: Message, each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.exchange(message, NLM_F_ACK, each)
    }
    /// Sends a question and hands every answer (its kind, and what follows the header) to `each`.
    pub(crate) fn dump(&mut self, message: Message, each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.exchange(message, NLM_F_DUMP, each)
    }

    fn exchange(&mut self, message: Message, flags: u16, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.sequence += 1;
        let mut bytes = message.0;
        let len = bytes.len() as u32;
        bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        let flags = u16::from_ne_bytes([bytes[6], bytes[7]]) | flags | NLM_F_REQUEST;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
        loop {
            let received = loop {
                match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                    Err(nix::Error::EINTR) => continue,
                    other => break other?,
                }
            };
            for (kind, sequence, body) in messages(&self.buffer[..received]) {
                let body = body?;
                // Answers to an earlier question that was given up on are not ours.
                if sequence == self.sequence {
                    match kind {
                        NLMSG_DONE => return Ok(()),
                        NLMSG_ERROR => match u32_of(body) as i32 {
                            0 => return Ok(()),
                            code => return Err(io::Error::from_raw_os_error(-code)),
                        },
                        kind => each(kind, body),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_walked() {
        let message = Message::new(16, 0, &[1, 2, 3]).text(3, "lo").nest(18, &[], |m| m.attr(1, &7u32.to_ne_bytes()));
        let found: Vec<_> = attributes(&message.0[20..]).collect();
        assert_eq!(found[0], (3, &b"lo\0"[..]));
        assert_eq!(attributes(found[1].1).map(|(k, v)| (k, u32_of(v))).collect::<Vec<_>>(), [(1, 7)]);
        assert_eq!(attributes(&[9, 0, 1]).count(), 0);
        assert_eq!(attributes(&[200, 0, 1, 0, 5]).count(), 0);
    }
}
