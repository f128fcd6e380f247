//! A network of addresses as people write it: `198.51.100.0/24`, `2001:db8::/32`, or one address.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Addresses of one family that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    /// Its bits behind the prefix are zero.
    address: IpAddr,
    /// 0 to 32 or 128.
    prefix_len: u8,
}

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotANetwork {
    /// What stands before the slash.
    #[error("{0:?} is not an address")]
    Address(String),
    /// What stands behind it.
    #[error("the prefix length {length:?} is not 0 to {bits}")]
    PrefixLength {
        /// As written.
        length: String,
        /// The family's.
        bits: u8,
    },
    /// Bits behind the prefix are set.
    #[error("{address}/{prefix_len} has bits behind its prefix: the network is {network}")]
    HostBits {
        /// As written.
        address: IpAddr,
        /// As written.
        prefix_len: u8,
        /// What was probably meant.
        network: Network,
    },
}

impl Network {
    /// The network of that prefix length that holds the address. A length beyond the family's is the family's.
    pub fn around(address: IpAddr, prefix_len: u8) -> Self {
        match address {
            IpAddr::V4(v4) => {
                let prefix_len = prefix_len.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix_len)).unwrap_or(0);
                Self { address: Ipv4Addr::from_bits(v4.to_bits() & mask).into(), prefix_len }
            }
            IpAddr::V6(v6) => {
                let prefix_len = prefix_len.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix_len)).unwrap_or(0);
                Self { address: Ipv6Addr::from_bits(v6.to_bits() & mask).into(), prefix_len }
            }
        }
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits its addresses share.
    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }

    /// The address is one of its own. An IPv4 address in IPv6's mapped form is an IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && Self::around(address, self.prefix_len).address == self.address
    }
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let address: IpAddr = address.parse().map_err(|_| NotANetwork::Address(address.to_owned()))?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix_len = match length {
            None => bits,
            Some(length) => length
                .parse()
                .ok()
                .filter(|length| *length <= bits)
                .ok_or_else(|| NotANetwork::PrefixLength { length: length.to_owned(), bits })?,
        };
        let network = Self::around(address, prefix_len);
        match network.address == address {
            true => Ok(network),
            false => Err(NotANetwork::HostBits { address, prefix_len, network }),
        }
    }
}

/// `198.51.100.0/24`; one address stands alone.
impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = if self.address.is_ipv4() { 32 } else { 128 };
        match self.prefix_len == bits {
            true => write!(f, "{}", self.address),
            false => write!(f, "{}/{}", self.address, self.prefix_len),
        }
    }
}

impl TryFrom<String> for Network {
    type Error = NotANetwork;
    fn try_from(text: String) -> Result<Self, NotANetwork> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_networks_or_told_what_is_wrong() {
        for text in ["198.51.100.0/24", "198.51.100.7", "0.0.0.0/0", "2001:db8::/32", "::1"] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
        }
        for (text, message) in [
            ("here", "\"here\" is not an address"),
            ("198.51.100.0/33", "the prefix length \"33\" is not 0 to 32"),
            ("198.51.100.7/24", "198.51.100.7/24 has bits behind its prefix: the network is 198.51.100.0/24"),
        ] {
            assert_eq!(text.parse::<Network>().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let network: Network = "198.51.100.0/24".parse().unwrap();
        assert!(network.contains("::ffff:198.51.100.9".parse().unwrap()));
        assert!(!network.contains("198.51.101.9".parse().unwrap()));
        assert!(!network.contains("2001:db8::1".parse().unwrap()));
        let all: Network = "::/0".parse().unwrap();
        assert!(all.contains("2001:db8::1".parse().unwrap()));
        assert!(!all.contains("198.51.100.9".parse().unwrap()));
    }
}
