//! Clients of the edge that are banned for a time: a table of its own, which only drops, so that it works beside any
//! firewall and stays when Palisade's other table is replaced.
//!
//! Who is banned is decided by whoever asks. The kernel forgets it when the time is over.

use std::collections::BTreeSet;
use std::fmt::Write;

use palisade_core::network::Network;

use crate::layout::Layout;
use crate::nft::{self, ToolError};

/// So many clients are banned at once at most; a set that is full takes no more.
const CLIENTS_MAX: u32 = 65_536;

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

    /// Bans clients from these ports of the host, each for so many seconds. Who is banned already stays so until then.
    pub fn add(&self, ports: &BTreeSet<u16>, clients: &[(Network, u32)]) -> Result<(), ToolError> {
        if clients.is_empty() || ports.is_empty() {
            return Ok(());
        }
        nft::run("nft", &["-f", "-"], &self.batch(ports, clients)).map(drop)
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
        for (set, kind, flags) in [("banned4", "ipv4_addr", "timeout"), ("banned6", "ipv6_addr", "interval, timeout")] {
            let _ = writeln!(text, "  set {set} {{ type {kind}; flags {flags}; size {CLIENTS_MAX}; }}");
        }
        // Before anything else looks at the packet, as it is to cost little. Loopback is never looked at.
        let _ = writeln!(text, "  chain input {{ type filter hook input priority -10; policy accept; }}\n}}");
        let _ = writeln!(text, "flush chain inet {table} input");
        for (proto, set) in [("ip", "banned4"), ("ip6", "banned6")] {
            let _ = writeln!(
                text,
                "add rule inet {table} input iif != lo meta l4proto {{ tcp, udp }} th dport {{ {ports} }} {proto} saddr @{set} counter drop comment \"banned by the edge\""
            );
        }
        for (client, for_s) in clients {
            let set = if client.address().is_ipv4() { "banned4" } else { "banned6" };
            let _ = writeln!(text, "add element inet {table} {set} {{ {client} timeout {for_s}s }}");
        }
        text
    }
}
