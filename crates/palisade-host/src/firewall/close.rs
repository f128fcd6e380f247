//! Closes a port that somebody else has opened in the firewall that the host runs, and opens it again: only where one plain
//! entry does nothing but let everybody in to this one port.
//!
//! Whether it should be closed is decided by who asks.

use std::fmt;

use palisade_core::firewall::{Backend, OpenPort};
use palisade_core::stack::PortProto;

use super::doors::{Doors, DoorsError};
use super::firewalld::Firewalld;
use super::iptables::{PlainRule, plain_rules};

/// An entry that opens one port to everybody.
#[derive(Clone, Debug)]
pub struct Opening {
    port: PortProto,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    /// firewalld's zone, now and permanently.
    Zone(String),
    /// A rule of iptables.
    Rule(PlainRule),
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Zone(zone) => write!(f, "close {} in zone {zone} of firewalld, now and permanently", self.port),
            Place::Rule(rule) => write!(f, "close {}: delete the rule of {rule}", self.port),
        }
    }
}

impl Opening {
    /// The port.
    pub fn port(&self) -> PortProto {
        self.port
    }

    fn door(&self) -> OpenPort {
        OpenPort { proto: self.port.proto, port: self.port.port, host_ip: None }
    }

    /// Takes the entry away.
    pub fn close(&self) -> Result<(), DoorsError> {
        match &self.place {
            Place::Zone(zone) => Firewalld::connect()?.close(zone, &self.door()),
            Place::Rule(rule) => rule.remove(),
        }
    }

    /// Puts it back.
    pub fn open_again(&self) -> Result<(), DoorsError> {
        match &self.place {
            Place::Zone(zone) => Firewalld::connect()?.open(zone, &self.door()),
            Place::Rule(rule) => rule.put_back(),
        }
    }
}

/// What opens this port in the firewall that runs; empty where no plain entry does.
pub fn openings(backend: Backend, port: PortProto) -> Result<Vec<Opening>, DoorsError> {
    let places: Vec<Place> = match backend {
        Backend::Firewalld => Firewalld::connect()?.zones_with(port)?.into_iter().map(Place::Zone).collect(),
        Backend::Iptables => plain_rules(port)?.into_iter().map(Place::Rule).collect(),
        Backend::Nftables | Backend::Ufw => Vec::new(),
    };
    Ok(places.into_iter().map(|place| Opening { port, place }).collect())
}
