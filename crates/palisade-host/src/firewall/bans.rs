//! Clients of the edge that are banned for a time: a table of its own, which only drops, so that it works beside any
//! firewall and stays when Palisade's other table is replaced.
//!
//! Who is banned is decided by whoever asks. The kernel forgets it when the time is over.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use palisade_core::network::Network;
use serde_json::Value;

use crate::layout::Layout;
use crate::nft::{self, ToolError};

/// So many clients of a family are banned at once at most; a set that is full takes no more.
pub const CLIENTS_MAX: usize = 65_536;
/// A client of IPv6 is a network of this length. Its first address is what the set knows: a set of networks would have
/// to be read from the kernel before anything is added to it.
const CLIENT6_PREFIX_LEN: u8 = 64;

/// The bans of one stack's edge.
#[derive(Clone, Debug)]
pub struct Bans {
    table: String,
}

impl Bans {
    /// In the calling thread's network namespace.
    pub fn new(layout: &Layout) -> Self {
        // `.` is in no name of a realm or a stack.
        Self { table: format!("{}.{}.bans", layout.realm, layout.project) }
    }

    /// Bans clients (addresses of IPv4, networks /64 of IPv6) from these ports of the host, each for so many seconds. Who is
    /// banned already stays so at least as long as before.
    pub fn add(&self, ports: &BTreeSet<u16>, clients: &[(Network, u32)]) -> Result<(), ToolError> {
        if clients.is_empty() || ports.is_empty() {
            return Ok(());
        }
        nft::run("nft", &["-f", "-"], &self.batch(ports, clients)).map(drop)
    }

    /// Lifts the bans of clients; who isn't banned doesn't matter.
    pub fn lift(&self, clients: &[Network]) -> Result<(), ToolError> {
        let table = &self.table;
        let mut text = String::new();
        for client in clients {
            let (set, key) = (set_of(client), client.address());
            // Only what is there can be deleted.
            let _ = writeln!(text, "add element inet {table} {set} {{ {key} timeout 1s }}");
            let _ = writeln!(text, "delete element inet {table} {set} {{ {key} }}");
        }
        if text.is_empty() { Ok(()) } else { nft::run("nft", &["-f", "-"], &text).map(drop) }
    }

    /// Who is banned, and for how many seconds more.
    pub fn list(&self) -> Result<Vec<(Network, u32)>, ToolError> {
        if !self.exist()? {
            return Ok(Vec::new());
        }
        let objects = nft::json(&["list", "table", "inet", &self.table])?;
        let elements = objects.iter().filter_map(|object| object["set"]["elem"].as_array()).flatten();
        Ok(elements.filter_map(client_of).collect())
    }

    /// Lifts all bans.
    pub fn remove(&self) -> Result<(), ToolError> {
        let table = &self.table;
        nft::run("nft", &["-f", "-"], &format!("table inet {table}\ndelete table inet {table}\n")).map(drop)
    }

    /// Somebody was banned since the stack came up.
    pub fn exist(&self) -> Result<bool, ToolError> {
        let tables = nft::json(&["list", "tables"])?;
        Ok(tables.iter().any(|object| object["table"]["name"].as_str() == Some(&self.table)))
    }

    fn batch(&self, ports: &BTreeSet<u16>, clients: &[(Network, u32)]) -> String {
        let table = &self.table;
        let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
        let mut text = format!("table inet {table} {{\n");
        for (set, kind) in [(SET4, "ipv4_addr"), (SET6, "ipv6_addr")] {
            let _ = writeln!(text, "  set {set} {{ type {kind}; flags timeout; size {CLIENTS_MAX}; }}");
        }
        // Before anything else looks at the packet, as it is to cost little. Loopback is never looked at.
        let _ = writeln!(text, "  chain input {{ type filter hook input priority -10; policy accept; }}\n}}");
        let _ = writeln!(text, "flush chain inet {table} input");
        for (client, set) in [("ip saddr", SET4), ("ip6 saddr & ffff:ffff:ffff:ffff::", SET6)] {
            let _ = writeln!(
                text,
                "add rule inet {table} input iif != lo meta l4proto {{ tcp, udp }} th dport {{ {ports} }} {client} @{set} counter drop comment \"banned by the edge\""
            );
        }
        for (client, for_s) in clients {
            let (set, key) = (set_of(client), client.address());
            let _ = writeln!(text, "add element inet {table} {set} {{ {key} timeout {for_s}s }}");
        }
        text
    }
}

const SET4: &str = "banned4";
const SET6: &str = "banned6_64";

fn set_of(client: &Network) -> &'static str {
    if client.address().is_ipv4() { SET4 } else { SET6 }
}

/// `{"elem": {"val": "192.0.2.7", "timeout": 600, "expires": 597}}`
fn client_of(element: &Value) -> Option<(Network, u32)> {
    let element = &element["elem"];
    let address: IpAddr = element["val"].as_str()?.parse().ok()?;
    let prefix_len = if address.is_ipv4() { 32 } else { CLIENT6_PREFIX_LEN };
    let left_s = element["expires"].as_u64()?;
    Some((Network::around(address, prefix_len), u32::try_from(left_s).ok()?))
}
