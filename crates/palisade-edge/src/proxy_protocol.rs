//! The PROXY protocol, versions 1 and 2: what a trusted proxy says, before anything else, of who is connected with it.
//!
//! No byte beyond the header is read, and no header may be longer than [`BYTES_MAX`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE_V2: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// A line of version 1, its end included.
const LINE_BYTES_MAX: usize = 107;
/// Addresses and what may follow them in version 2.
pub(crate) const BYTES_MAX: usize = 4096;

/// Reads the header. `None`: the proxy speaks for itself (a health check), or doesn't say for whom.
///
/// # Errors
/// The connection ended, or it doesn't begin with a header: it is to be closed.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut begin = [0; SIGNATURE_V2.len()];
    stream.read_exact(&mut begin).await?;
    if begin == SIGNATURE_V2 {
        return read_v2(stream).await;
    }
    let mut line = begin.to_vec();
    // Whoever doesn't begin so isn't listened to any longer.
    while line.starts_with(b"PROXY ") && line.len() < LINE_BYTES_MAX {
        line.push(stream.read_u8().await?);
        if line.ends_with(b"\r\n") {
            return line_v1(&line).ok_or_else(unreadable);
        }
    }
    Err(unreadable())
}

fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no header of the PROXY protocol")
}

/// `PROXY TCP4 <source> <destination> <port> <port>`.
fn line_v1(line: &[u8]) -> Option<Option<SocketAddr>> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix("\r\n")?;
    let mut words = text.split(' ');
    let (_, family) = (words.next()?, words.next()?);
    if family == "UNKNOWN" {
        return Some(None);
    }
    let mut address = || words.next()?.parse::<IpAddr>().ok();
    let (source, destination) = (address()?, address()?);
    let is_family = match family {
        "TCP4" => source.is_ipv4() && destination.is_ipv4(),
        "TCP6" => source.is_ipv6() && destination.is_ipv6(),
        _ => false,
    };
    let port = words.next()?.parse().ok()?;
    let _: u16 = words.next()?.parse().ok()?;
    (is_family && words.next().is_none()).then_some(Some(SocketAddr::new(source, port)))
}

async fn read_v2(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let (version, family, length) =
        (stream.read_u8().await?, stream.read_u8().await?, usize::from(stream.read_u16().await?));
    if version >> 4 != 2 || length > BYTES_MAX {
        return Err(unreadable());
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    match (version & 0xf, family) {
        // LOCAL; or a family that isn't TCP's, of which nothing is to be known.
        (0, _) | (1, 0x00 | 0x12 | 0x22 | 0x31 | 0x32) => Ok(None),
        (1, 0x11) => address_v2::<4>(&rest).ok_or_else(unreadable).map(Some),
        (1, 0x21) => address_v2::<16>(&rest).ok_or_else(unreadable).map(Some),
        _ => Err(unreadable()),
    }
}

/// Source and destination, then their ports.
fn address_v2<const BYTES: usize>(rest: &[u8]) -> Option<SocketAddr> {
    let source = rest.get(..BYTES)?;
    let port = rest.get(2 * BYTES..2 * BYTES + 2)?;
    // The destination's port has to be there as well.
    rest.get(2 * BYTES + 2..2 * BYTES + 4)?;
    let address: IpAddr = match BYTES {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(source).ok()?).into(),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(source).ok()?).into(),
    };
    Some(SocketAddr::new(address, u16::from_be_bytes(port.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read, and what is left.
    fn reading(bytes: &[u8]) -> (Option<Option<SocketAddr>>, usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut rest = bytes;
        let read = runtime.block_on(read(&mut rest)).ok();
        (read, rest.len())
    }

    fn v2(command: u8, family: u8, length: u16, rest: &[u8]) -> Vec<u8> {
        [&SIGNATURE_V2[..], &[0x20 | command, family], &length.to_be_bytes(), rest].concat()
    }

    #[test]
    fn headers_of_both_versions_are_read_and_nothing_behind_them() {
        let four = Some(Some("198.51.100.7:4711".parse().unwrap()));
        let six = Some(Some("[2001:db8::1]:4711".parse().unwrap()));
        let port = 4711_u16.to_be_bytes();
        let v4 = [&[198, 51, 100, 7, 10, 0, 0, 1][..], &port, &[0, 80]].concat();
        let v6 = [&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets()[..], &[0; 16], &port, &[0, 80]].concat();
        for (header, expected) in [
            (b"PROXY TCP4 198.51.100.7 10.0.0.1 4711 80\r\n".to_vec(), four),
            (b"PROXY TCP6 2001:db8::1 ::1 4711 80\r\n".to_vec(), six),
            (b"PROXY UNKNOWN\r\n".to_vec(), Some(None)),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), Some(None)),
            (v2(1, 0x11, 12, &v4), four),
            (v2(1, 0x11, 15, &[&v4[..], &[4, 0, 0]].concat()), four),
            (v2(1, 0x21, 36, &v6), six),
            (v2(0, 0x00, 0, &[]), Some(None)),
            (v2(1, 0x31, 216, &[0; 216]), Some(None)),
        ] {
            let behind = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(reading(&behind), (expected, 16), "{header:?}");
            for end in 0..header.len() {
                assert_eq!(reading(&header[..end]).0, None, "cut off at {end}: {header:?}");
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused_and_not_read_for_long() {
        let long = [&b"PROXY UNKNOWN "[..], &[b'x'; 5_000]].concat();
        for bytes in [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            long,
            b"PROXY TCP4 198.51.100.7 10.0.0.1 4711\r\n".to_vec(),
            b"PROXY TCP4 198.51.100.7 10.0.0.1 4711 99999\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::1 ::1 4711 80\r\n".to_vec(),
            b"PROXY TCP4 198.51.100.7 10.0.0.1 4711 80 1\r\n".to_vec(),
            b"PROXY UDP4 198.51.100.7 10.0.0.1 4711 80\r\n".to_vec(),
            v2(1, 0x11, 4, &[0; 4]),
            v2(2, 0x11, 12, &[0; 12]),
            v2(1, 0x11, u16::MAX, &[0; 65_535]),
        ] {
            let (read, left) = reading(&bytes);
            assert_eq!(read, None, "{bytes:?}");
            assert!(bytes.len() - left <= LINE_BYTES_MAX, "{bytes:?}");
        }
    }
}
