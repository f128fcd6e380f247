//! Private loopback addresses: which belong to us, and how a service's and an instance's address relate.
//!
//! | range           | holds                                                                    |
//! |-----------------|--------------------------------------------------------------------------|
//! | 127.64.0.0/10   | services and instances: `127.77.<service>.<instance>`; `.0` is the service |
//! | 127.192.0.0/10  | an instance's own localhost: its address with 128 added to the second octet |
//! | fd70:616c:6973:6164::/96 | the same 32 bits as an IPv6 address, for sockets that are IPv6 only |
//!
//! The same arithmetic stands in `palisade-guard/bpf/guard.bpf.c`.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::names::ServiceName;

/// How many services fit below 127.77.0.0 … 127.127.0.0, 254 for each second octet.
pub const SERVICES_MAX: u16 = 51 * 254;
/// How many instances one service can have.
pub const INSTANCES_MAX: u8 = 254;

/// Whether an address is of the ranges in this module's table: nobody but services may have one.
pub fn is_reserved(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            first == 127 && second & 0x40 != 0
        }
        IpAddr::V6(ip) => ip.segments()[..6] == [0xfd70, 0x616c, 0x6973, 0x6164, 0, 0],
    }
}

/// The number of a service on this host, unique among all stacks; 0 is 127.77.1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceIndex(pub u16);

/// The address that a service's name resolves to; the guard sends each connection to one of its instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceAddress(Ipv4Addr);

/// The address that one instance binds and connects from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceAddress(Ipv4Addr);

impl ServiceIndex {
    /// The service's address. Indexes from [`SERVICES_MAX`] on have none.
    pub fn address(self) -> Option<ServiceAddress> {
        (self.0 < SERVICES_MAX)
            .then(|| ServiceAddress(Ipv4Addr::new(127, 77 + (self.0 / 254) as u8, 1 + (self.0 % 254) as u8, 0)))
    }
}

impl ServiceAddress {
    /// As the standard library's type.
    pub fn ip(self) -> Ipv4Addr {
        self.0
    }
    /// The address of the instance with this number, counted from 1.
    pub fn instance(self, number: u8) -> InstanceAddress {
        let [a, b, c, _] = self.0.octets();
        InstanceAddress(Ipv4Addr::new(a, b, c, number))
    }
}

impl InstanceAddress {
    /// As the standard library's type.
    pub fn ip(self) -> Ipv4Addr {
        self.0
    }
    /// The instance that has this address, if it is one of ours.
    pub fn from_ip(ip: Ipv4Addr) -> Option<Self> {
        let [first, second, third, number] = ip.octets();
        let index = u16::from(second.checked_sub(77)?) * 254 + u16::from(third.checked_sub(1)?);
        let address = ServiceIndex(index).address()?.instance(number);
        (first == 127 && number > 0 && address.0 == ip).then_some(address)
    }
    /// The address of the service that it is an instance of.
    pub fn service(self) -> ServiceAddress {
        let [a, b, c, _] = self.0.octets();
        ServiceAddress(Ipv4Addr::new(a, b, c, 0))
    }
    /// Where the guard puts what the instance binds to localhost, so that no peer reaches it.
    pub fn own_localhost(self) -> Ipv4Addr {
        let [a, b, c, d] = self.0.octets();
        Ipv4Addr::new(a, b | 0x80, c, d)
    }
    /// Where the guard puts an IPv6-only wildcard bind.
    pub fn ipv6(self) -> Ipv6Addr {
        let [a, b, c, d] = self.0.octets();
        Ipv6Addr::new(0xfd70, 0x616c, 0x6973, 0x6164, 0, 0, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
    }
}

impl fmt::Display for ServiceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Display for InstanceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which service has which index. Indexes stay with a service as long as its stack exists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressBook(BTreeMap<ServiceName, ServiceIndex>);

/// The host's private range is used up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no private address is left for service `{0}`: this host already has {SERVICES_MAX} services")]
pub struct NoAddressLeft(pub ServiceName);

impl AddressBook {
    /// Keeps what `self` has for `services`, gives each new one the lowest index that neither this stack nor
    /// another one (`taken`) uses, and drops services that are gone.
    pub fn assign<'a>(
        &self,
        services: impl IntoIterator<Item = &'a ServiceName>,
        taken: &BTreeSet<ServiceIndex>,
    ) -> Result<AddressBook, NoAddressLeft> {
        let services: Vec<_> = services.into_iter().collect();
        let mut used = taken.clone();
        let mut book = BTreeMap::new();
        for service in &services {
            if let Some(&index) = self.0.get(*service) {
                used.insert(index);
                book.insert((*service).clone(), index);
            }
        }
        let mut next = 0;
        for service in services {
            if book.contains_key(service) {
                continue;
            }
            while used.contains(&ServiceIndex(next)) {
                next += 1;
            }
            let index = ServiceIndex(next);
            index.address().ok_or_else(|| NoAddressLeft(service.clone()))?;
            used.insert(index);
            book.insert(service.clone(), index);
        }
        Ok(AddressBook(book))
    }
    /// The service's address, if it is in the book.
    pub fn address(&self, service: &ServiceName) -> Option<ServiceAddress> {
        self.0.get(service).and_then(|index| index.address())
    }
    /// Every service and its index.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceName, ServiceIndex)> {
        self.0.iter().map(|(name, index)| (name, *index))
    }
    /// The service that has this address.
    pub fn service_at(&self, address: ServiceAddress) -> Option<&ServiceName> {
        self.0.iter().find(|(_, index)| index.address() == Some(address)).map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_the_documented_layout() {
        let first = ServiceIndex(0).address().unwrap();
        assert_eq!(first.to_string(), "127.77.1.0");
        assert_eq!(first.instance(2).to_string(), "127.77.1.2");
        assert_eq!(first.instance(2).own_localhost().to_string(), "127.205.1.2");
        assert_eq!(first.instance(2).ipv6().to_string(), "fd70:616c:6973:6164::7f4d:102");
        assert_eq!(InstanceAddress::from_ip([127, 77, 1, 2].into()), Some(first.instance(2)));
        for other in
            [[127, 77, 1, 0], [127, 77, 0, 1], [127, 77, 255, 1], [127, 76, 1, 1], [127, 128, 1, 1], [10, 77, 1, 1]]
        {
            assert_eq!(InstanceAddress::from_ip(other.into()), None, "{other:?}");
        }
        assert_eq!(ServiceIndex(254).address().unwrap().to_string(), "127.78.1.0");
        assert_eq!(ServiceIndex(SERVICES_MAX - 1).address().unwrap().to_string(), "127.127.254.0");
        assert_eq!(ServiceIndex(SERVICES_MAX).address(), None);
    }

    #[test]
    fn a_service_keeps_its_index_and_others_stacks_indexes_are_avoided() {
        let name = |s: &str| ServiceName::parse(s).unwrap();
        let (a, b, c) = (name("a"), name("b"), name("c"));
        let taken = BTreeSet::from([ServiceIndex(0)]);
        let first = AddressBook::default().assign([&a, &b], &taken).unwrap();
        assert_eq!(first.address(&a).unwrap().to_string(), "127.77.2.0");
        let second = first.assign([&b, &c], &taken).unwrap();
        assert_eq!(second.address(&b), first.address(&b));
        assert_eq!(second.address(&c).unwrap().to_string(), "127.77.2.0");
    }
}
