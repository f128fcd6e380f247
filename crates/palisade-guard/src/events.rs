//! What the guard refused, read from its ring buffer.

use libbpf_rs::{MapHandle, RingBuffer, RingBufferBuilder};
use palisade_core::address::{InstanceAddress, ServiceIndex};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;

use crate::wire::unmapped;

/// Why something was refused (`enum reason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Reason {
    None,
    NotAPeer,
    UndeclaredPort,
    HostLoopback,
    HostPort,
    UnknownPrivate,
    Metadata,
    Egress,
    AmbiguousLocalhost,
    NoBackend,
    ForeignAddress,
    SocketType,
    AbstractUnix,
    UndeclaredListener,
    NoPolicy,
    Ipv6LocalDatagram,
    FromOutside,
}

const REASONS: [Reason; 17] = [
    Reason::None,
    Reason::NotAPeer,
    Reason::UndeclaredPort,
    Reason::HostLoopback,
    Reason::HostPort,
    Reason::UnknownPrivate,
    Reason::Metadata,
    Reason::Egress,
    Reason::AmbiguousLocalhost,
    Reason::NoBackend,
    Reason::ForeignAddress,
    Reason::SocketType,
    Reason::AbstractUnix,
    Reason::UndeclaredListener,
    Reason::NoPolicy,
    Reason::Ipv6LocalDatagram,
    Reason::FromOutside,
];

/// Where it was noticed (`enum event_hook`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// bind(2).
    Bind,
    /// connect(2), also of TCP fast open.
    Connect,
    /// sendto(2), sendmsg(2) of an unconnected datagram socket.
    Send,
    /// socket(2).
    Socket,
    /// A packet for a socket that no bind declared.
    Receive,
    /// A unix socket.
    Unix,
}

/// Refused, or seen while learning (`enum event_kind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It did not happen.
    Refused,
    /// It happened; reported once.
    Used,
}

/// One event of the guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Nanoseconds since boot (CLOCK_BOOTTIME).
    pub time_ns: u64,
    /// Whose socket; `None` before the instance had an identity.
    pub instance: Option<Ipv4Addr>,
    /// Refused or used.
    pub kind: Kind,
    /// Where.
    pub hook: Hook,
    /// Why.
    pub reason: Reason,
    /// The process that called; 0 for received packets.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its name.
    pub command: String,
    /// IPPROTO_TCP or IPPROTO_UDP; 0 for sockets and unix.
    pub proto: u8,
    /// Destination, or what it wanted to bind, or (received packets) the sender. As the program gave it.
    pub address: IpAddr,
    /// Destination port, port to be bound, or (received packets) the local port. For sockets: the protocol number.
    pub port: u16,
    /// For sockets: address family and type.
    pub socket: Option<(u8, u8)>,
    /// For unix sockets: the start of the abstract name.
    pub unix_name: Option<String>,
    /// How many of the same kind before it were not reported.
    pub suppressed: u32,
}

impl Event {
    /// The instance's address, as the domain's type.
    pub fn instance_address(&self) -> Option<InstanceAddress> {
        let [_, b, c, d] = self.instance?.octets();
        let index = u16::from(b.checked_sub(77)?) * 254 + u16::from(c.checked_sub(1)?);
        Some(ServiceIndex(index).address()?.instance(d))
    }

    /// From `struct event`; `None` if it isn't one of this version.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let time_ns = u64::from_ne_bytes(bytes.get(0..8)?.try_into().ok()?);
        let instance: [u8; 4] = bytes.get(8..12)?.try_into().ok()?;
        let raw: [u8; 16] = bytes.get(24..40)?.try_into().ok()?;
        let port = u16::from_ne_bytes(bytes.get(40..42)?.try_into().ok()?);
        let &[proto, kind, hook, reason, family, kind_of_socket] = bytes.get(42..48)? else { return None };
        let hook = match hook {
            1 => Hook::Bind,
            2 => Hook::Connect,
            3 => Hook::Send,
            4 => Hook::Socket,
            5 => Hook::Receive,
            6 => Hook::Unix,
            _ => return None,
        };
        let text = |bytes: &[u8]| {
            let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        };
        Some(Self {
            time_ns,
            instance: (instance != [0; 4]).then(|| instance.into()),
            kind: match kind {
                1 => Kind::Refused,
                2 => Kind::Used,
                _ => return None,
            },
            hook,
            reason: *REASONS.get(usize::from(reason))?,
            pid: word(12)?,
            uid: word(16)?,
            suppressed: word(20)?,
            proto,
            address: if hook == Hook::Unix { Ipv4Addr::UNSPECIFIED.into() } else { unmapped(raw) },
            port,
            socket: (hook == Hook::Socket).then_some((family, kind_of_socket)),
            unix_name: (hook == Hook::Unix).then(|| text(&raw)),
            command: text(bytes.get(48..64)?),
        })
    }
}

/// Reads the ring buffer. Only one reader at a time gets each event.
pub struct EventReader {
    ring: RingBuffer<'static>,
    read: Rc<RefCell<Vec<Event>>>,
}

impl EventReader {
    pub(crate) fn new(map: &MapHandle) -> Result<Self, libbpf_rs::Error> {
        let read = Rc::new(RefCell::new(Vec::new()));
        let sink = Rc::clone(&read);
        let mut builder = RingBufferBuilder::new();
        builder.add(map, move |bytes| {
            sink.borrow_mut().extend(Event::parse(bytes));
            0
        })?;
        Ok(Self { ring: builder.build()?, read })
    }

    /// Waits at most so long and returns what came.
    pub fn poll(&self, timeout: Duration) -> Result<Vec<Event>, libbpf_rs::Error> {
        match self.ring.poll(timeout) {
            // A signal is no reason to stop listening.
            Err(error) if error.kind() == libbpf_rs::ErrorKind::Interrupted => {}
            other => other?,
        }
        Ok(self.read.take())
    }
}
