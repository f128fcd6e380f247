//! A client's address together with its text.

use std::fmt;
use std::io::Write;
use std::net::IpAddr;

/// The longest text that an address has.
const TEXT_BYTES_MAX: usize = 45;

/// An address whose text is wanted several times for each request, and so is made once for each connection: that was an eighth of the
/// processor time that a request takes outside the kernel.
#[derive(Clone, Copy)]
pub struct Address {
    ip: IpAddr,
    text: [u8; TEXT_BYTES_MAX],
    length: u8,
}

impl Address {
    /// The address itself.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        let text = self.text.get(..usize::from(self.length)).unwrap_or_default();
        // It was written as text.
        std::str::from_utf8(text).unwrap_or_default()
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        let mut text = [0; TEXT_BYTES_MAX];
        let mut rest: &mut [u8] = &mut text;
        // Every address fits.
        let _ = write!(rest, "{ip}");
        let length = (TEXT_BYTES_MAX - rest.len()) as u8;
        Self { ip, text, length }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::Address;
    use std::net::IpAddr;

    #[test]
    fn every_address_has_its_text() {
        for text in [
            "0.0.0.0",
            "255.255.255.255",
            "::",
            "2001:db8::1",
            "1111:2222:3333:4444:5555:6666:7777:8888",
            "::ffff:255.255.255.255",
        ] {
            let address = Address::from(text.parse::<IpAddr>().unwrap());
            assert_eq!((address.as_str(), address.ip()), (text, text.parse().unwrap()));
        }
    }
}
