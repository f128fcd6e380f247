//! Sockets that clients connect to: one for each worker and address, so that the kernel spreads connections over the workers.

use super::StartError;
use super::connection::Scheme;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt};
use palisade_core::edge::Settings;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;

/// Connections that wait to be accepted at most, on each socket; the kernel's own limit may be lower.
const BACKLOG: i32 = 4096;

/// After so many seconds of silence a client's host is asked whether it is still there.
const KEEPALIVE_S: u32 = 60;

/// One worker's sockets.
pub(crate) type Listeners = Vec<(Scheme, TcpListener)>;

/// Binds every address once for each worker, before any of them starts: whoever connects then finds all or none.
pub(super) fn bind_all(settings: &Settings, workers: usize) -> Result<Vec<Listeners>, StartError> {
    let mut all: Vec<Listeners> = (0..workers).map(|_| Vec::new()).collect();
    let addresses = settings.http.iter().map(|&address| (Scheme::Http, address));
    for (scheme, address) in addresses.chain(settings.https.iter().map(|&address| (Scheme::Https, address))) {
        for listeners in &mut all {
            let listener = bind(address).map_err(|source| StartError::Listen { address, source })?;
            listeners.push((scheme, listener));
        }
    }
    Ok(all)
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket::socket(family, SockType::Stream, flags, None)?;
    socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    socket::setsockopt(&fd, sockopt::ReusePort, &true)?;
    // Connections inherit these. Whoever is gone without a word is noticed, also where nothing is sent for hours.
    socket::setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    socket::setsockopt(&fd, sockopt::KeepAlive, &true)?;
    socket::setsockopt(&fd, sockopt::TcpKeepIdle, &KEEPALIVE_S)?;
    socket::setsockopt(&fd, sockopt::TcpKeepInterval, &(KEEPALIVE_S / 4))?;
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    socket::listen(&fd, socket::Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(fd))
}

/// As many descriptors as the process may have: each connection needs one, and most a second one to an upstream.
pub(super) fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // What is left then is what there was; accepting pauses when it is used up.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
