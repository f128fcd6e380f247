//! Sockets and system calls as an attacker wants them: every family, every option, addresses byte by byte.
//!
//! No policy and no judgement: what an answer means is decided by each attack.

use nix::errno::Errno;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Why an attack came to nothing.
pub(super) enum Stop {
    /// Something stood in its way.
    Refused(String),
    /// There is nothing to attack here.
    NotApplicable(String),
}

pub(super) type Attempt = Result<String, Stop>;

pub(super) fn refused<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Refused(why.into()))
}
pub(super) fn not_applicable<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::NotApplicable(why.into()))
}

/// What a kernel answers that was built without it.
fn is_missing(errno: Errno) -> bool {
    matches!(errno, Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT | Errno::ESOCKTNOSUPPORT | Errno::ENOSYS)
}

/// Names the call that failed.
pub(super) trait At<T> {
    fn at(self, call: impl AsRef<str>) -> Result<T, Stop>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, call: impl AsRef<str>) -> Result<T, Stop> {
        let call = call.as_ref();
        self.map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            // What a kernel that was built without it says. A filter may say the same: whoever compares with an
            // unguarded run sees the difference.
            Some(errno) if is_missing(errno) && (call.starts_with("socket") || errno == Errno::ENOSYS) => {
                Stop::NotApplicable(format!("{call}: {errno:?}"))
            }
            Some(errno) => Stop::Refused(format!("{call}: {errno:?}")),
            None => Stop::Refused(format!("{call}: {error}")),
        })
    }
}

/// What a call returned, or errno.
pub(super) fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Calls the kernel; every argument is widened, as the C function reads whole words. They must fit the call: numbers, or addresses of live memory of the right size.
macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {
        $crate::inside::sys::check(
            // SAFETY: every caller passes integers or pointers to live values of the layout that this call reads or
            // writes; calls that would be harmful if they succeeded are given arguments that make them fail later.
            unsafe { libc::syscall($number $(, ($argument) as libc::c_long)*) }
        )
    };
}
pub(super) use call;

/// A socket address as the kernel reads it.
#[derive(Clone)]
pub(super) struct RawAddress(pub(super) Vec<u8>);

impl RawAddress {
    /// The same bytes under another family.
    pub(super) fn with_family(mut self, family: libc::c_int) -> Self {
        self.0[..2].copy_from_slice(&(family as u16).to_ne_bytes());
        self
    }
    /// Unix, abstract.
    pub(super) fn abstract_unix(name: &str) -> Self {
        let mut bytes = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
        bytes.push(0);
        bytes.extend(name.as_bytes());
        Self(bytes)
    }
    /// Unix, a path.
    pub(super) fn unix(path: &str) -> Self {
        let mut bytes = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
        bytes.extend(path.as_bytes());
        bytes.push(0);
        Self(bytes)
    }
    /// AF_UNSPEC: dissolves a connection.
    pub(super) fn unspecified() -> Self {
        Self(vec![0; 16])
    }
    fn parse(bytes: &[u8]) -> Option<SocketAddr> {
        let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
        match i32::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?)) {
            libc::AF_INET => {
                let ip: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
                Some(SocketAddrV4::new(ip.into(), port).into())
            }
            libc::AF_INET6 => {
                let ip: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
                let scope = u32::from_ne_bytes(bytes.get(24..28)?.try_into().ok()?);
                Some(SocketAddrV6::new(ip.into(), port, 0, scope).into())
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> Self {
        let mut bytes;
        match address {
            SocketAddr::V4(v4) => {
                bytes = (libc::AF_INET as u16).to_ne_bytes().to_vec();
                bytes.extend(v4.port().to_be_bytes());
                bytes.extend(v4.ip().octets());
                bytes.extend([0; 8]);
            }
            SocketAddr::V6(v6) => {
                bytes = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
                bytes.extend(v6.port().to_be_bytes());
                bytes.extend(v6.flowinfo().to_ne_bytes());
                bytes.extend(v6.ip().octets());
                bytes.extend(v6.scope_id().to_ne_bytes());
            }
        }
        Self(bytes)
    }
}

pub(super) fn family_of(address: SocketAddr) -> libc::c_int {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

/// `::ffff:a.b.c.d`.
pub(super) fn mapped(address: SocketAddrV4) -> SocketAddr {
    SocketAddr::new(address.ip().to_ipv6_mapped().into(), address.port())
}

/// The wildcard of an address's family.
pub(super) fn wildcard(family: libc::c_int, port: u16) -> SocketAddr {
    if family == libc::AF_INET {
        SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)
    } else {
        SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)
    }
}

/// One control message.
pub(super) struct Control {
    pub(super) level: libc::c_int,
    pub(super) kind: libc::c_int,
    pub(super) data: Vec<u8>,
}

/// `struct in_pktinfo` that asks for a source address.
pub(super) fn source_control(source: IpAddr) -> Control {
    match source {
        IpAddr::V4(v4) => {
            let mut data = vec![0; 4];
            data.extend(v4.octets());
            data.extend([0; 4]);
            Control { level: libc::IPPROTO_IP, kind: libc::IP_PKTINFO, data }
        }
        IpAddr::V6(v6) => {
            let mut data = v6.octets().to_vec();
            data.extend([0; 4]);
            Control { level: libc::IPPROTO_IPV6, kind: libc::IPV6_PKTINFO, data }
        }
    }
}

/// A socket of any kind.
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn new(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<Self> {
        let fd = call!(libc::SYS_socket, family, kind | libc::SOCK_CLOEXEC, protocol)?;
        // SAFETY: the kernel just gave us this descriptor.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    }
    pub(super) fn tcp(family: libc::c_int) -> Result<Self, Stop> {
        Self::new(family, libc::SOCK_STREAM, 0).at("socket(TCP)")
    }
    pub(super) fn udp(family: libc::c_int) -> Result<Self, Stop> {
        Self::new(family, libc::SOCK_DGRAM, 0).at("socket(UDP)")
    }
    /// As the standard library's type.
    pub(super) fn into_udp(self) -> UdpSocket {
        self.0.into()
    }
    pub(super) fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
    pub(super) fn set_bytes(&self, level: libc::c_int, option: libc::c_int, value: &[u8]) -> io::Result<()> {
        call!(libc::SYS_setsockopt, self.fd(), level, option, value.as_ptr(), value.len()).map(drop)
    }
    pub(super) fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        self.set_bytes(level, option, &value.to_ne_bytes())
    }
    pub(super) fn bind(&self, address: &RawAddress) -> io::Result<()> {
        call!(libc::SYS_bind, self.fd(), address.0.as_ptr(), address.0.len()).map(drop)
    }
    pub(super) fn listen(&self) -> io::Result<()> {
        call!(libc::SYS_listen, self.fd(), 16).map(drop)
    }
    /// connect(2), at most as long as said. A blocking socket becomes a non-blocking one.
    pub(super) fn connect(&self, address: &RawAddress, limit: Duration) -> io::Result<()> {
        self.set_nonblocking()?;
        match call!(libc::SYS_connect, self.fd(), address.0.as_ptr(), address.0.len()) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => self.finish_connect(limit),
            other => other.map(drop),
        }
    }
    /// Waits for a connection that is being made.
    pub(super) fn finish_connect(&self, limit: Duration) -> io::Result<()> {
        if !self.wait(libc::POLLOUT, limit)? {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        let mut error: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        call!(
            libc::SYS_getsockopt,
            self.fd(),
            libc::SOL_SOCKET,
            libc::SO_ERROR,
            std::ptr::from_mut(&mut error),
            std::ptr::from_mut(&mut len)
        )?;
        if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
    }
    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        call!(libc::SYS_fcntl, self.fd(), libc::F_SETFL, libc::O_NONBLOCK).map(drop)
    }
    /// Whether something happened within the limit.
    pub(super) fn wait(&self, events: libc::c_short, limit: Duration) -> io::Result<bool> {
        let mut poll = libc::pollfd { fd: self.fd(), events, revents: 0 };
        // SAFETY: one live pollfd.
        Ok(check(unsafe { libc::poll(&mut poll, 1, limit.as_millis() as libc::c_int) }.into())? > 0)
    }
    pub(super) fn accept(&self, limit: Duration) -> io::Result<Option<Socket>> {
        if !self.wait(libc::POLLIN, limit)? {
            return Ok(None);
        }
        let none = std::ptr::null::<u8>();
        match call!(libc::SYS_accept4, self.fd(), none, none, libc::SOCK_CLOEXEC) {
            // SAFETY: the kernel just gave us this descriptor.
            Ok(fd) => Ok(Some(Self(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
    pub(super) fn send(&self, data: &[u8], flags: libc::c_int, to: Option<&RawAddress>) -> io::Result<()> {
        let (address, len) = to.map_or((std::ptr::null(), 0), |to| (to.0.as_ptr(), to.0.len()));
        let flags = flags | libc::MSG_NOSIGNAL;
        call!(libc::SYS_sendto, self.fd(), data.as_ptr(), data.len(), flags, address, len).map(drop)
    }
    /// sendmsg(2) or, `many`, sendmmsg(2) with one message.
    pub(super) fn send_message(
        &self,
        data: &[u8],
        to: Option<&RawAddress>,
        control: Option<&Control>,
        many: bool,
    ) -> io::Result<()> {
        let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        // SAFETY: all zeroes is an empty header with no pointers.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        let header = &mut message.msg_hdr;
        header.msg_iov = &mut part;
        header.msg_iovlen = 1;
        if let Some(to) = to {
            header.msg_name = to.0.as_ptr().cast_mut().cast();
            header.msg_namelen = to.0.len() as libc::socklen_t;
        }
        // u64 elements keep the header in it aligned.
        let mut space = vec![0_u64; 64];
        if let Some(control) = control {
            let len = size_of::<libc::cmsghdr>() + control.data.len();
            let bytes: &mut [u8] =
                // SAFETY: the same memory as bytes, for the lifetime of this borrow.
                unsafe { std::slice::from_raw_parts_mut(space.as_mut_ptr().cast(), 512) };
            bytes[..8].copy_from_slice(&len.to_ne_bytes());
            bytes[8..12].copy_from_slice(&control.level.to_ne_bytes());
            bytes[12..16].copy_from_slice(&control.kind.to_ne_bytes());
            bytes[16..len].copy_from_slice(&control.data);
            header.msg_control = space.as_mut_ptr().cast();
            header.msg_controllen = len.next_multiple_of(8);
        }
        if many {
            call!(libc::SYS_sendmmsg, self.fd(), std::ptr::from_mut(&mut message), 1, 0).map(drop)
        } else {
            call!(libc::SYS_sendmsg, self.fd(), std::ptr::from_mut(&mut message.msg_hdr), 0).map(drop)
        }
    }
    /// A message and its sender, or nothing within the limit.
    pub(super) fn receive(&self, limit: Duration) -> io::Result<Option<(String, Option<SocketAddr>)>> {
        if !self.wait(libc::POLLIN, limit)? {
            return Ok(None);
        }
        let (mut data, mut from) = ([0_u8; 2048], [0_u8; 128]);
        let mut from_len = from.len() as libc::socklen_t;
        let len = call!(
            libc::SYS_recvfrom,
            self.fd(),
            data.as_mut_ptr(),
            data.len(),
            libc::MSG_DONTWAIT,
            from.as_mut_ptr(),
            std::ptr::from_mut(&mut from_len)
        )?;
        let text = String::from_utf8_lossy(&data[..len as usize]).trim().to_owned();
        Ok(Some((text, RawAddress::parse(&from[..(from_len as usize).min(from.len())]))))
    }
    fn name(&self, number: libc::c_long) -> io::Result<SocketAddr> {
        let mut address = [0_u8; 128];
        let mut len = address.len() as libc::socklen_t;
        call!(number, self.fd(), address.as_mut_ptr(), std::ptr::from_mut(&mut len))?;
        RawAddress::parse(&address).ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
    }
    pub(super) fn local(&self) -> io::Result<SocketAddr> {
        self.name(libc::SYS_getsockname)
    }
    pub(super) fn peer(&self) -> io::Result<SocketAddr> {
        self.name(libc::SYS_getpeername)
    }
    /// An attacker who can't choose by bind chooses by range: `IP_LOCAL_PORT_RANGE`, Linux 6.3.
    pub(super) fn choose_port(&self, port: u16) -> io::Result<()> {
        const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
        self.set(libc::IPPROTO_IP, IP_LOCAL_PORT_RANGE, i32::from(port) << 16 | i32::from(port))
    }
}

/// Runs a step again until it gives something or the time is over.
pub(super) fn until<T>(
    limit: Duration,
    mut step: impl FnMut(Duration) -> io::Result<Option<T>>,
) -> io::Result<Option<T>> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        if let Some(found) = step(left)? {
            return Ok(Some(found));
        }
    }
}
