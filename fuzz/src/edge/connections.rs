//! How a connection from a proxy begins (the PROXY protocol): nothing behind the header is read, and it means the same however it
//! arrives.

use super::pieces;
use super::pipe::{Pipe, run};
use super::proxy_protocol::{BYTES_MAX, read};
use std::net::SocketAddr;

/// Checks one connection's beginning.
pub fn check(input: &[u8]) {
    let Some((piece, _, bytes)) = pieces(input) else { return };
    let (found, taken) = begun(bytes, bytes.len().max(1));
    assert_eq!(begun(bytes, piece), (found, taken), "it depends on how it arrives");
    assert!(taken <= 16 + BYTES_MAX, "{taken} bytes were read");
    let Some(client) = found else { return };
    // What follows is left for whoever it is for, and nothing less would have been enough.
    assert_eq!(begun(&[&bytes[..taken], b"GET / HTTP/1.1\r\n"].concat(), piece), (found, taken));
    assert_eq!(begun(&bytes[..taken - 1], piece).0, None);
    if let Some(client) = client {
        let (family, other) = if client.is_ipv4() { ("TCP4", "0.0.0.0") } else { ("TCP6", "::") };
        let line = format!("PROXY {family} {} {other} {} 1\r\n", client.ip(), client.port());
        assert_eq!(begun(line.as_bytes(), piece), (Some(Some(client)), line.len()));
    }
}

/// Who is connected, if that is said, and how much was read.
fn begun(bytes: &[u8], piece: usize) -> (Option<Option<SocketAddr>>, usize) {
    let mut pipe = Pipe::new(bytes.to_vec(), piece);
    let found = run(read(&mut pipe)).ok();
    (found, pipe.taken())
}
