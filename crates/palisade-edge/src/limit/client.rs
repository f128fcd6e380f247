//! Who counts as one client: an IPv4 address, or an IPv6 network of /64, which is what one household or machine is given.

use palisade_core::network::Network;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientKey {
    /// An address.
    V4(u32),
    /// The first half of addresses.
    V6(u64),
}

impl From<IpAddr> for ClientKey {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.to_bits()),
            // Only the first half is left.
            IpAddr::V6(v6) => Self::V6((v6.to_bits() >> 64) as u64),
        }
    }
}

impl From<ClientKey> for Network {
    fn from(client: ClientKey) -> Self {
        match client {
            ClientKey::V4(bits) => Self::around(Ipv4Addr::from_bits(bits).into(), 32),
            ClientKey::V6(bits) => Self::around(Ipv6Addr::from_bits(u128::from(bits) << 64).into(), 64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_is_one_address_or_one_64() {
        let key = |text: &str| ClientKey::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(key("198.51.100.7"), key("::ffff:198.51.100.7"));
        assert_ne!(key("198.51.100.7"), key("198.51.100.8"));
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_eq!(Network::from(key("2001:db8:1:2::1")).to_string(), "2001:db8:1:2::/64");
        assert_eq!(Network::from(key("198.51.100.7")).to_string(), "198.51.100.7");
    }
}
