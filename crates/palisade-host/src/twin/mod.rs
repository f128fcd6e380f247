//! The reachability twin: which ports of this host get a packet from outside to a local process, for all ports, by
//! letting the kernel judge real packets in a copy of the host.
//!
//! Which of them should be reachable, and who listens there, is for others to say. The copy lives in namespaces
//! without a name, so that the kernel clears it away even when we are killed.

mod recorder;
mod ruleset;

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use palisade_core::stack::Proto;

use crate::link::{self, InterfaceAddresses, LinkError, VethEnd};
use crate::netns::{Netns, NetnsError};
use crate::nft::{self, ToolError};
use crate::packets::{self, Sender, Template};
pub use palisade_core::port_set::PortSet;
pub use ruleset::{Unknown, Why};

/// The outside end of the twin's wire.
const OUTSIDE: &str = "outside0";
const OUTSIDE_MAC: [u8; 6] = [0x02, 0x70, 0x61, 0x6c, 0x00, 0x02];
const INSIDE_MAC: [u8; 6] = [0x02, 0x70, 0x61, 0x6c, 0x00, 0x01];
/// How often packets that were lost on the way, or that couldn't be written down, are sent again.
const ROUNDS_MAX: u32 = 16;
/// How long packets that are still queued may take.
const SETTLE: Duration = Duration::from_millis(300);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum TwinError {
    /// The namespaces couldn't be made.
    #[error("cannot make the twin's namespaces")]
    Netns(#[from] NetnsError),
    /// The host's interfaces couldn't be read or copied.
    #[error("cannot copy the host's interfaces")]
    Link(#[from] LinkError),
    /// The ruleset couldn't be read or loaded.
    #[error("cannot {operation}")]
    Ruleset {
        /// "read the host's ruleset" …
        operation: &'static str,
        /// What the tool said.
        #[source]
        source: ToolError,
    },
    /// There is no such interface.
    #[error("there is no interface `{name}`")]
    NoInterface {
        /// Its name.
        name: String,
    },
    /// Packets couldn't be sent, or the answer couldn't be read.
    #[error("cannot {operation}")]
    Packets {
        /// "send packets" …
        operation: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Packets got lost again and again.
    #[error("{lost} packets to {target} were lost in {ROUNDS_MAX} rounds")]
    Lossy {
        /// How many in the last round.
        lost: u64,
        /// To which address.
        target: IpAddr,
    },
}

/// What is probed.
#[derive(Clone, Debug)]
pub struct TwinSpec {
    /// The interface that packets arrive on.
    pub interface: String,
    /// The IPv4 and IPv6 address they are for; `None`: the interface's first global one, if it has one.
    pub targets: Vec<IpAddr>,
    /// Who asks by IPv4 and by IPv6.
    pub sources: [IpAddr; 2],
    /// Our own table: its rules are known and need no remarks.
    pub own_table: Option<String>,
}

impl TwinSpec {
    /// All ports of the first addresses of `interface`, asked by somebody of the documentation's networks.
    pub fn new(interface: &str) -> Self {
        Self {
            interface: interface.to_owned(),
            targets: Vec::new(),
            sources: [[203, 0, 113, 250].into(), [0x2001, 0xdb8, 0, 0xffff, 0, 0, 0, 0x250].into()],
            own_table: None,
        }
    }
}

/// What got through to one address by one protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// The host's address.
    pub target: IpAddr,
    /// The protocol.
    pub proto: Proto,
    /// Ports whose packets get to a local process, if one listens.
    pub local: PortSet,
    /// Outside ports and the local ports that they are rewritten to.
    pub redirected: BTreeSet<(u16, u16)>,
    /// Outside ports that are passed on to another address, as an engine's published ports are.
    pub forwarded: PortSet,
}

/// What the twin found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwinReport {
    /// The interface that packets arrived on.
    pub interface: String,
    /// TCP and UDP for every target.
    pub reached: Vec<Reached>,
    /// What one packet a port can't show.
    pub unknown: Vec<Unknown>,
    /// Rules that were taken without their rate limit, as they are for a patient client.
    pub without_limit: Vec<String>,
    /// Packets sent, with those sent again.
    pub packets: u64,
    /// Packets that had to be sent again.
    pub lost: u64,
    /// How long it took.
    pub duration_ms: u64,
}

impl TwinReport {
    /// Ports reached by a protocol over a family, on whatever target; rewritten ones count as where they lead.
    pub fn ports(&self, proto: Proto, ipv6: bool) -> PortSet {
        let mut all = PortSet::default();
        for reached in self.reached.iter().filter(|r| r.proto == proto && r.target.is_ipv6() == ipv6) {
            all.extend_from(&reached.local);
            reached.redirected.iter().for_each(|(_, local)| all.insert(*local));
        }
        all
    }
}

/// Copies the calling thread's network namespace and sends a packet to each of its ports. Nothing of the original
/// is changed, and no packet leaves the copy.
pub fn probe(spec: &TwinSpec) -> Result<TwinReport, TwinError> {
    let start = Instant::now();
    let (copied, prepared) = std::thread::scope(|scope| {
        let namespaces = scope.spawn(|| Ok::<_, NetnsError>((Netns::unnamed()?, Netns::unnamed()?)));
        let original = Original::read(spec);
        (original, namespaces.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (mut original, (inside, outside)) = (copied?, prepared?);
    let targets = original.targets(spec)?;
    original.build(&inside, &outside)?;
    inside.run(|| original.load())??;
    let mac = original.external.mac.as_slice().try_into().unwrap_or(INSIDE_MAC);
    let results = std::thread::scope(|scope| {
        let lanes: Vec<_> = [false, true]
            .into_iter()
            .map(|ipv6| {
                let targets: Vec<_> = targets.iter().filter(|target| target.is_ipv6() == ipv6).copied().collect();
                let (inside, outside, rewrites) = (&inside, &outside, original.ruleset.rewrites);
                let source = spec.sources[usize::from(ipv6)];
                scope.spawn(move || {
                    let mut results = Vec::new();
                    // Sets and counters hold one target's answer at a time; each lane has its own.
                    let mut seen = Lane {
                        inside,
                        outside,
                        mac,
                        source,
                        rewrites,
                        packets: 0,
                        lost: 0,
                        arrived: [0; 2],
                        missed: [0; 2],
                    };
                    for target in targets {
                        results.extend(seen.probe(target)?);
                    }
                    Ok::<_, TwinError>((results, seen.packets, seen.lost))
                })
            })
            .collect();
        lanes
            .into_iter()
            .map(|lane| lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Vec<_>>()
    });
    let mut report = TwinReport {
        interface: spec.interface.clone(),
        reached: Vec::new(),
        unknown: std::mem::take(&mut original.ruleset.unknown),
        without_limit: std::mem::take(&mut original.ruleset.without_limit),
        packets: 0,
        lost: 0,
        duration_ms: 0,
    };
    for result in results {
        let (reached, packets, lost) = result?;
        report.reached.extend(reached);
        report.packets += packets;
        report.lost += lost;
    }
    report.duration_ms = start.elapsed().as_millis() as u64;
    Ok(report)
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> TwinError {
    move |source| TwinError::Packets { operation, source }
}

/// What is copied.
struct Original {
    external: InterfaceAddresses,
    others: Vec<InterfaceAddresses>,
    ruleset: ruleset::Ruleset,
    settings: Vec<(String, String)>,
}

impl Original {
    fn read(spec: &TwinSpec) -> Result<Self, TwinError> {
        let ruleset = ruleset::read(spec.own_table.as_deref())
            .map_err(|source| TwinError::Ruleset { operation: "read the host's ruleset", source })?;
        let mut others = link::interfaces()?;
        let at = others.iter().position(|interface| interface.name == spec.interface);
        let external = at.map(|at| others.swap_remove(at));
        let external = external.ok_or_else(|| TwinError::NoInterface { name: spec.interface.clone() })?;
        // The others matter when they have an address or a rule names them.
        others.retain(|interface| {
            !interface.addresses.is_empty()
                || ruleset.nft.contains(&interface.name)
                || ruleset.restore.iter().any(|(_, text)| text.contains(&interface.name))
        });
        let settings = ["all", &spec.interface]
            .iter()
            .flat_map(|name| {
                ["rp_filter", "route_localnet", "accept_local"].map(|key| format!("ipv4/conf/{name}/{key}"))
            })
            .chain(["ipv4/ip_forward".into(), "ipv6/conf/all/forwarding".into()])
            .filter_map(|key| {
                // `/proc/sys/net` shows the reader's namespace.
                let value = std::fs::read_to_string(format!("/proc/sys/net/{key}")).ok()?;
                Some((key, value.trim().to_owned()))
            })
            .collect();
        let mut original = Self { external, others, ruleset, settings };
        if original.external.xdp {
            let rule = format!("the XDP program on {}", spec.interface);
            original.ruleset.unknown.push(Unknown { why: Why::NotCopied, rule });
        }
        Ok(original)
    }

    fn targets(&self, spec: &TwinSpec) -> Result<Vec<IpAddr>, TwinError> {
        if !spec.targets.is_empty() {
            return Ok(spec.targets.clone());
        }
        let addresses = || self.external.addresses.iter().map(|(ip, _)| *ip);
        let global = |ip: &IpAddr| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        Ok(addresses()
            .find(IpAddr::is_ipv4)
            .into_iter()
            .chain(addresses().filter(IpAddr::is_ipv6).find(global))
            .collect())
    }

    fn build(&mut self, inside: &Netns, outside: &Netns) -> Result<(), TwinError> {
        let mac = self.external.mac.as_slice().try_into().unwrap_or(INSIDE_MAC);
        let (name, index) = (self.external.name.as_str(), Some(self.external.index));
        link::add_veth(
            VethEnd { netns: inside, name, index, mac: Some(mac) },
            VethEnd { netns: outside, name: OUTSIDE, index: None, mac: Some(OUTSIDE_MAC) },
        )?;
        for other in self.others.iter().filter(|other| !other.loopback) {
            let peer = format!("other{}", other.index);
            link::add_veth(
                VethEnd { netns: inside, name: &other.name, index: Some(other.index), mac: None },
                VethEnd { netns: outside, name: &peer, index: None, mac: None },
            )?;
        }
        outside.run(|| link::set_up(OUTSIDE, true))??;
        let problems = inside.run(|| {
            // Settings of an interface are there once it is; forwarding comes first, as it resets others.
            let mut problems = Vec::new();
            for (key, value) in self.settings.iter().rev() {
                let path = format!("/proc/sys/net/{key}");
                let same = || std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value);
                if !same() && std::fs::write(&path, value).is_err() {
                    problems.push(Unknown { why: Why::NotCopied, rule: format!("the setting net/{key} = {value}") });
                }
            }
            link::set_up("lo", false)?;
            link::set_up(&self.external.name, true)?;
            for interface in self.others.iter().chain([&self.external]) {
                if interface.up && !interface.loopback && interface.index != self.external.index {
                    link::set_up(&interface.name, true)?;
                }
                for (ip, prefix_len) in &interface.addresses {
                    if !(interface.loopback && ip.is_loopback()) {
                        link::add_address(&interface.name, *ip, *prefix_len)?;
                    }
                }
            }
            // Whoever asks is reached through the interface that the question came in by, so that filters of the
            // reverse path judge as they do for a host whose default route leads there.
            for ipv6 in [false, true] {
                if self.external.addresses.iter().any(|(ip, _)| ip.is_ipv6() == ipv6) {
                    link::add_route(&self.external.name, None, None, ipv6)?;
                }
            }
            Ok::<_, LinkError>(problems)
        })??;
        self.ruleset.unknown.extend(problems);
        Ok(())
    }

    /// Loads the copy and the recorder; runs inside.
    fn load(&self) -> Result<(), TwinError> {
        let wrong = |operation| move |source| TwinError::Ruleset { operation, source };
        for (program, text) in &self.ruleset.restore {
            nft::run(program, &[], text).map_err(wrong("load the copy of the iptables rules"))?;
        }
        let recorder = recorder::tables(&self.external.name, self.ruleset.rewrites);
        let text = format!("{}{recorder}", self.ruleset.nft);
        nft::run("nft", &["-f", "-"], &text).map_err(wrong("load the copy of the ruleset"))?;
        Ok(())
    }
}

/// One family's probe.
struct Lane<'a> {
    inside: &'a Netns,
    outside: &'a Netns,
    mac: [u8; 6],
    source: IpAddr,
    rewrites: bool,
    packets: u64,
    lost: u64,
    /// What the counters said before, for TCP and UDP.
    arrived: [u64; 2],
    missed: [u64; 2],
}

impl Lane<'_> {
    fn probe(&mut self, target: IpAddr) -> Result<Vec<Reached>, TwinError> {
        let (mut reader, flush) = {
            let _inside = self.inside.enter()?;
            let flush = self.arrived != [0; 2];
            (recorder::Reader::open().map_err(failed("open the recorder"))?, flush)
        };
        if flush {
            let label = |proto| recorder::label(proto, target.is_ipv6());
            let sets = [Proto::Tcp, Proto::Udp].map(label);
            let sets = sets.iter().flat_map(|label| ["in", "nat", "forward"].map(|set| format!("{set}_{label}")));
            let text: String = sets.map(|set| format!("flush set inet palisade_recorder {set}\n")).collect();
            let _inside = self.inside.enter()?;
            nft::run("nft", &["-f", "-"], &text)
                .map_err(|source| TwinError::Ruleset { operation: "empty the recorder", source })?;
        }
        let mut sender = {
            let _outside = self.outside.enter()?;
            Sender::frames(link::index_of(OUTSIDE)?).map_err(failed("open a packet socket"))?
        };
        let mut results = Vec::new();
        for (which, proto) in [Proto::Tcp, Proto::Udp].into_iter().enumerate() {
            let label = recorder::label(proto, target.is_ipv6());
            let template = Template::new(Some((self.mac, OUTSIDE_MAC)), self.source, target, proto);
            let mut missing = PortSet::all();
            let mut rounds = 0;
            let reached = loop {
                let sent = sender.send(&template, missing.iter(), || ()).map_err(failed("send packets"))?;
                self.packets += sent;
                let before = self.arrived[which];
                let start = Instant::now();
                let arrived = loop {
                    let now = reader.arrived(&label).map_err(failed("read the recorder"))?;
                    if now - before >= sent || start.elapsed() > SETTLE {
                        break now;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                };
                self.arrived[which] = arrived;
                packets::delivered();
                let missed = reader.missed(&label).map_err(failed("read the recorder"))?;
                let local = reader.reached(&label).map_err(failed("read the recorder"))?;
                let lost = sent.saturating_sub(arrived - before) + (missed - self.missed[which]);
                self.missed[which] = missed;
                if lost == 0 {
                    break local;
                }
                self.lost += lost;
                rounds += 1;
                if rounds == ROUNDS_MAX {
                    return Err(TwinError::Lossy { lost, target });
                }
                // Time for the kernel to empty its queues and to enlarge the set.
                std::thread::sleep(Duration::from_millis(u64::from(rounds) * 2));
                // Nobody knows which ones were lost: all that haven't been seen go out again.
                missing = PortSet::all().minus(&local);
            };
            let mut result =
                Reached { target, proto, local: reached, redirected: BTreeSet::new(), forwarded: PortSet::default() };
            if self.rewrites {
                result.redirected = reader.redirected(&label).map_err(failed("read the recorder"))?;
                result.forwarded = reader.forwarded(&label).map_err(failed("read the recorder"))?;
            }
            results.push(result);
        }
        Ok(results)
    }
}
