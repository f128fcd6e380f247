//! The kernel's own list of nftables rules: where each stands, its handle, and what it is made of.
//!
//! What a rule says in words is the business of `ruleset`.

use nix::sys::socket::SockProtocol;
use std::io;

use crate::netlink::{Message, Netlink, attributes, text_of};

/// NFNL_SUBSYS_NFTABLES.
pub(super) const SUBSYSTEM: u16 = 10 << 8;
const NFT_MSG_GETRULE: u16 = SUBSYSTEM | 7;

/// Where a rule stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ChainId {
    /// `ip`, `inet` …
    pub(super) family: &'static str,
    pub(super) table: String,
    pub(super) chain: String,
}

/// One rule.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) place: ChainId,
    pub(super) handle: u64,
    /// It holds a match or target of iptables, which `nft` can't always say.
    pub(super) has_extension: bool,
    /// It changes a packet's destination.
    pub(super) rewrites: bool,
}

/// The name of a table's family (`NFPROTO_*` of linux/netfilter.h).
pub(super) fn family_name(number: u8) -> &'static str {
    match number {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "unknown",
    }
}

/// Every rule of the calling thread's network namespace; those of a chain in their order.
pub(super) fn list() -> io::Result<Vec<Rule>> {
    let mut found = Vec::new();
    let mut socket = Netlink::open(SockProtocol::NetlinkNetFilter)?;
    socket.dump(Message::new(NFT_MSG_GETRULE, 0, &[0; 4]), |_, body| found.extend(read(body)))?;
    Ok(found)
}

fn read(body: &[u8]) -> Option<Rule> {
    let place = ChainId { family: family_name(*body.first()?), table: String::new(), chain: String::new() };
    let mut rule = Rule { place, handle: 0, has_extension: false, rewrites: false };
    // NFTA_RULE_TABLE (1), _CHAIN (2), _HANDLE (3), _EXPRESSIONS (4) → list element → NFTA_EXPR_NAME (1).
    for (kind, value) in attributes(body.get(4..)?) {
        match kind {
            1 => rule.place.table = text_of(value),
            2 => rule.place.chain = text_of(value),
            3 => rule.handle = u64::from_be_bytes(value.try_into().ok()?),
            4 => {
                let names = attributes(value).flat_map(|(_, one)| attributes(one)).filter(|(kind, _)| *kind == 1);
                for (_, name) in names {
                    match text_of(name).as_str() {
                        "match" | "target" => rule.has_extension = true,
                        "nat" | "redir" | "tproxy" => rule.rewrites = true,
                        _ => (),
                    }
                }
            }
            _ => (),
        }
    }
    Some(rule)
}
