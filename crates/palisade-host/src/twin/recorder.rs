//! The chains at the very end that write down what got there, and the reading of what they wrote.

use nix::sys::socket::SockProtocol;
use std::collections::BTreeSet;
use std::io;

use palisade_core::stack::Proto;

use super::PortSet;
use super::rules::SUBSYSTEM;
use crate::netlink::{Message, Netlink, attributes, text_of};

pub(super) const TABLE: &str = "palisade_recorder";
const NFT_MSG_GETSETELEM: u16 = SUBSYSTEM | 13;
const NFT_MSG_GETOBJ: u16 = SUBSYSTEM | 19;
/// `struct nfgenmsg` for NFPROTO_INET and NFPROTO_NETDEV.
const INET: [u8; 4] = [1, 0, 0, 0];
const NETDEV: [u8; 4] = [5, 0, 0, 0];

/// What the names of the sets of a probe start with.
pub(super) const SETS: [&str; 3] = ["in", "nat", "forward"];
/// Takes away what `tracing` adds.
pub(super) const TRACING_OFF: &str = "flush chain netdev palisade_recorder traced
delete chain netdev palisade_recorder traced
";

/// What one probe is called in the recorder: `tcp4`, `udp6` …
pub(super) fn label(proto: Proto, ipv6: bool) -> String {
    format!("{proto}{}", if ipv6 { 6 } else { 4 })
}

/// The recorder's tables. Ports before a rewriting of destinations are looked up only where there is one, because
/// asking turns connection tracking on.
pub(super) fn tables(interface: &str, rewrites: bool) -> String {
    let probes = [("tcp", 4), ("tcp", 6), ("udp", 4), ("udp", 6)];
    let each = |rule: &dyn Fn(&str, &str) -> String| -> String {
        probes.iter().map(|(proto, family)| rule(proto, &format!("{proto}{family}"))).collect()
    };
    let rules = |rule: &dyn Fn(&str, &str) -> String| -> String {
        let probe = |proto: &str, label: &str| {
            let family = &label[3..];
            format!("  meta nfproto ipv{family} meta l4proto {proto} {}\n", rule(proto, label))
        };
        each(&probe)
    };
    let counters = each(&|_, label| format!(" counter {label} {{ }}\n"));
    // Before every other chain: what was sent and didn't even get here was lost on the way, not refused.
    let arrived = each(&|proto, label| {
        let protocol = if label.ends_with('6') { "ip6" } else { "ip" };
        format!("  meta protocol {protocol} meta l4proto {proto} counter name {label}\n")
    });
    let sets = each(&|_, label| {
        format!(
            " set in_{label} {{ type inet_service; size 65536; flags dynamic; }}
 set nat_{label} {{ type inet_service . inet_service; size 65536; flags dynamic; }}
 set forward_{label} {{ type inet_service; size 65536; flags dynamic; }}\n"
        )
    });
    let heading = |name: &str, hook: &str| {
        let last = i32::MAX;
        format!(
            " chain {name} {{\n  type filter hook {hook} priority {last}; policy accept;\n  iifname != \"{interface}\" accept\n"
        )
    };
    // A set can refuse an element while the kernel enlarges it; the rule then doesn't match, and the next one counts.
    let missed = rules(&|_, label| format!("counter name {label} drop"));
    let (mut rewritten, mut forward) = (String::new(), String::new());
    if rewrites {
        rewritten = rules(&|proto, label| {
            format!("ct status & dnat != 0 add @nat_{label} {{ ct original proto-dst . {proto} dport }} drop")
        }) + &rules(&|_, label| format!("ct status & dnat != 0 counter name {label} drop"));
        forward = heading("last_forward", "forward")
            + &rules(&|_, label| format!("add @forward_{label} {{ ct original proto-dst }} drop"))
            + &missed
            + " }\n";
    }
    let local = rules(&|proto, label| format!("add @in_{label} {{ {proto} dport }} drop"));
    let input = heading("last_input", "input") + &rewritten + &local + &missed + " }\n";
    let first = i32::MIN;
    format!(
        "table netdev {TABLE} {{
{counters} chain arrived {{
  type filter hook ingress device \"{interface}\" priority {first}; policy accept;
{arrived} }}
}}
table inet {TABLE} {{
{counters}{sets}{input}{forward}}}
"
    )
}

/// A chain before all others that has the kernel tell what becomes of packets.
pub(super) fn tracing(interface: &str, proto: Proto, ipv6: bool) -> String {
    let (protocol, first) = (if ipv6 { "ip6" } else { "ip" }, i32::MIN);
    format!(
        "table netdev {TABLE} {{
 chain traced {{
  type filter hook ingress device \"{interface}\" priority {first}; policy accept;
  meta protocol {protocol} meta l4proto {proto} meta nftrace set 1
 }}
}}
"
    )
}

/// Reads the recorder of the calling thread's network namespace.
pub(super) struct Reader(Netlink);

impl Reader {
    pub(super) fn open() -> io::Result<Self> {
        Netlink::open(SockProtocol::NetlinkNetFilter).map(Self)
    }
    /// Local ports that were reached.
    pub(super) fn reached(&mut self, label: &str) -> io::Result<PortSet> {
        self.ports(&format!("in_{label}"))
    }
    /// Outside ports that are passed on to another address.
    pub(super) fn forwarded(&mut self, label: &str) -> io::Result<PortSet> {
        self.ports(&format!("forward_{label}"))
    }
    /// Outside ports and the local ports they lead to.
    pub(super) fn redirected(&mut self, label: &str) -> io::Result<BTreeSet<(u16, u16)>> {
        let mut found = BTreeSet::new();
        // A concatenation pads each part to 32 bits.
        self.elements(&format!("nat_{label}"), |key| {
            if let [a, b, _, _, c, d, ..] = *key {
                found.insert((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])));
            }
        })?;
        Ok(found)
    }
    fn ports(&mut self, set: &str) -> io::Result<PortSet> {
        let mut found = PortSet::default();
        self.elements(set, |key| {
            if let [a, b, ..] = *key {
                found.insert(u16::from_be_bytes([a, b]));
            }
        })?;
        Ok(found)
    }
    /// Tells of every element at least once. The kernel answers in parts, and while it rearranges the set (which it does
    /// on its own time) a part can skip elements: it is asked until it has nothing new to say.
    fn elements(&mut self, set: &str, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut known = std::collections::HashSet::new();
        loop {
            let mut news = false;
            self.dump_elements(set, |key| {
                let mut start = [0; 8];
                let len = key.len().min(8);
                start[..len].copy_from_slice(&key[..len]);
                if known.insert(start) {
                    news = true;
                    each(key);
                }
            })?;
            if !news {
                return Ok(());
            }
        }
    }
    fn dump_elements(&mut self, set: &str, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let question = Message::new(NFT_MSG_GETSETELEM, 0, &INET).text(1, TABLE).text(2, set);
        self.0.dump(question, |_, body| {
            // NFTA_SET_ELEM_LIST_ELEMENTS (3) → list element → NFTA_SET_ELEM_KEY (1) → NFTA_DATA_VALUE (1).
            let lists = attributes(body.get(4..).unwrap_or(&[])).filter(|(kind, _)| *kind == 3);
            for (_, element) in lists.flat_map(|(_, list)| attributes(list)) {
                let keys = attributes(element).filter(|(kind, _)| *kind == 1);
                keys.flat_map(|(_, key)| attributes(key)).filter(|(kind, _)| *kind == 1).for_each(|(_, key)| each(key));
            }
        })
    }
    /// How many packets of a probe arrived.
    pub(super) fn arrived(&mut self, label: &str) -> io::Result<u64> {
        self.counter(&NETDEV, label)
    }
    /// How many packets of a probe got to the end and couldn't be written down.
    pub(super) fn missed(&mut self, label: &str) -> io::Result<u64> {
        self.counter(&INET, label)
    }
    fn counter(&mut self, family: &[u8; 4], name: &str) -> io::Result<u64> {
        let mut packets = None;
        // NFTA_OBJ_TABLE (1), NFTA_OBJ_TYPE (3): counter.
        let question = Message::new(NFT_MSG_GETOBJ, 0, family).text(1, TABLE).attr(3, &1u32.to_be_bytes());
        self.0.dump(question, |_, body| {
            let fields: Vec<_> = attributes(body.get(4..).unwrap_or(&[])).collect();
            // Older kernels don't filter by table.
            let is = |kind, text: &str| fields.iter().any(|(k, value)| *k == kind && text_of(value) == text);
            if is(1, TABLE) && is(2, name) {
                let data = fields.iter().filter(|(kind, _)| *kind == 4).flat_map(|(_, data)| attributes(data));
                // NFTA_COUNTER_PACKETS (2), big-endian.
                let count = data.filter(|(kind, _)| *kind == 2).find_map(|(_, value)| value.try_into().ok());
                packets = count.map(u64::from_be_bytes);
            }
        })?;
        packets.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no counter {name}")))
    }
}
