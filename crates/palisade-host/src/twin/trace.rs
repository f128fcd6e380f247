//! Which rules judged a packet: the kernel's own trace of packets that are sent to single ports of a twin.
//!
//! What the rules should say is for others to judge.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use palisade_core::stack::Proto;

use super::copy::{OUTSIDE, OUTSIDE_MAC, Twin};
use super::rules::{self, ChainId, SUBSYSTEM};
use super::{PortSet, TwinError, failed, recorder};
use crate::link;
use crate::netlink::{Netlink, attributes, text_of};
use crate::nft;
use crate::packets::{self, Sender, Template};

/// NFNLGRP_NFTRACE of linux/netfilter/nfnetlink.h.
const GROUP: u32 = 9;
/// NFT_MSG_TRACE of linux/netfilter/nf_tables.h.
const NFT_MSG_TRACE: u16 = SUBSYSTEM | 17;
/// So many packets are on their way at once that their traces fit into the socket's buffer.
const AT_ONCE: usize = 8;
/// How long the trace of a packet that doesn't seem to end may take.
const SETTLE: Duration = Duration::from_millis(100);

/// What became of a packet, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traced {
    /// The port it was for.
    pub port: u16,
    /// What became of it.
    pub verdict: Verdict,
    /// The rules that judged it, in order. Those that didn't match aren't here.
    pub rules: Vec<TracedRule>,
    /// `iptables-legacy` had a say too; its rules can't be traced.
    pub legacy: bool,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It gets to a local process, if one listens on this port.
    Local {
        /// The packet's own, or what a rule rewrote it to.
        port: u16,
    },
    /// It is passed on to another machine or container.
    Forwarded,
    /// A rule or a chain's policy dropped, refused or took it.
    Dropped,
    /// `iptables-legacy` dropped it; by which rule can't be traced.
    DroppedByLegacy,
    /// No rule did: the kernel drops packets that come by an interface where nobody of their source is
    /// (`rp_filter`), or that can't be delivered.
    DroppedByKernel,
}

/// A rule, as the host's own tool says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedRule {
    /// `inet filter`, `ip nat` …
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// `tcp dport 22 accept`, `-A INPUT -p tcp … -j ACCEPT`, or `policy drop`.
    pub rule: String,
    /// What it said: `accept`, `drop`, `jump web`, `continue` …
    pub verdict: String,
}

impl std::fmt::Display for TracedRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "table {}, chain {}: {}", self.table, self.chain, self.rule)
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Local { port } => write!(f, "gets to local port {port}"),
            Self::Forwarded => f.write_str("is passed on"),
            Self::Dropped => f.write_str("is dropped"),
            Self::DroppedByLegacy => f.write_str("is dropped by iptables-legacy; it can't be traced"),
            Self::DroppedByKernel => f.write_str("is dropped by the kernel, by no rule (rp_filter, or no way there)"),
        }
    }
}

impl Traced {
    /// The rule that settled it: the one that dropped the packet, or the last that accepted it. A chain's policy where
    /// no rule did.
    pub fn decided_by(&self) -> Option<&TracedRule> {
        match self.verdict {
            Verdict::Dropped => self.rules.last(),
            Verdict::DroppedByLegacy | Verdict::DroppedByKernel => None,
            Verdict::Local { .. } | Verdict::Forwarded => {
                let mut accepted = self.rules.iter().rev().filter(|rule| rule.verdict == "accept");
                let last = accepted.clone().next();
                accepted.find(|rule| !rule.rule.starts_with("policy ")).or(last)
            }
        }
    }
}

/// One step of a trace, as the kernel tells it.
#[derive(Debug)]
struct Event {
    id: u32,
    kind: Kind,
    place: ChainId,
    handle: u64,
    verdict: i32,
    /// Of a jump.
    to: String,
    /// The destination port, in the first event of each base chain.
    port: Option<u16>,
}

/// `enum nft_trace_types`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Policy,
    Return,
    Rule,
}

impl Event {
    fn read(body: &[u8]) -> Option<Self> {
        let place = ChainId { family: rules::family_name(*body.first()?), table: String::new(), chain: String::new() };
        let (id, kind) = (0, Kind::Return);
        let mut event = Self { id, kind, place, handle: 0, verdict: 0, to: String::new(), port: None };
        let number = |value: &[u8]| Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?));
        // NFTA_TRACE_* of linux/netfilter/nf_tables.h.
        for (attribute, value) in attributes(body.get(4..)?) {
            match attribute {
                1 => event.place.table = text_of(value),
                2 => event.place.chain = text_of(value),
                3 => event.handle = u64::from_be_bytes(value.try_into().ok()?),
                4 => {
                    event.kind = match number(value)? {
                        1 => Kind::Policy,
                        3 => Kind::Rule,
                        _ => Kind::Return,
                    }
                }
                5 => {
                    for (part, value) in attributes(value) {
                        match part {
                            1 => event.verdict = number(value)? as i32,
                            2 => event.to = text_of(value),
                            _ => (),
                        }
                    }
                }
                6 => event.id = number(value)?,
                9 => event.port = value.get(2..4).map(|port| u16::from_be_bytes([port[0], port[1]])),
                16 => event.verdict = number(value)? as i32,
                _ => (),
            }
        }
        // The end of a chain is told of as a rule without a number.
        if event.kind == Kind::Rule && event.handle == 0 {
            event.kind = Kind::Return;
        }
        Some(event)
    }
    fn is_recorder(&self) -> bool {
        self.place.table == recorder::TABLE
    }
    /// `enum nft_verdicts` of linux/netfilter/nf_tables.h, `NF_*` of linux/netfilter.h.
    fn verdict(&self) -> String {
        match self.verdict & 0xff {
            _ if self.verdict == -1 => "continue".into(),
            _ if self.verdict == -2 => "break".into(),
            _ if self.verdict == -3 => format!("jump {}", self.to),
            _ if self.verdict == -4 => format!("goto {}", self.to),
            _ if self.verdict == -5 => "return".into(),
            0 => "drop".into(),
            1 => "accept".into(),
            2 => "stolen".into(),
            3 => "queue".into(),
            _ => format!("verdict {}", self.verdict),
        }
    }
    /// After this the packet goes no further.
    fn is_end(&self) -> bool {
        matches!(self.kind, Kind::Rule | Kind::Policy) && matches!(self.verdict().as_str(), "drop" | "stolen" | "queue")
    }
}

impl Twin {
    /// Sends one packet to each port by one protocol and one family, to the first target of that family, and tells
    /// which rules judged it. Empty when the world or the host doesn't have that family.
    pub fn trace(&self, proto: Proto, ipv6: bool, ports: &[u16]) -> Result<Vec<Traced>, TwinError> {
        let target = self.targets.iter().find(|target| target.is_ipv6() == ipv6);
        let (Some(source), Some(target)) = (self.spec.world.source(ipv6), target) else { return Ok(Vec::new()) };
        let wrong = |operation| move |source| TwinError::Ruleset { operation, source };
        let switch = recorder::tracing(&self.spec.world.interface, proto, ipv6);
        let switch_on = self.inside.run(|| nft::run("nft", &["-f", "-"], &switch))?.map_err(wrong("turn tracing on"));
        switch_on?;
        let events = self.events(source, *target, proto, ports);
        let switch_off = self.inside.run(|| nft::run("nft", &["-f", "-"], recorder::TRACING_OFF))?;
        switch_off.map_err(wrong("turn tracing off"))?;
        let mut events = events?;
        let words = self.words_of(&events)?;
        let legacy = self.original.ruleset.legacy[usize::from(ipv6)];
        Ok(ports
            .iter()
            .map(|port| {
                let events = events.remove(port).unwrap_or_default();
                judge(*port, &events, &words, legacy)
            })
            .collect())
    }

    /// Sends the packets and collects what the kernel tells of each.
    fn events(
        &self,
        source: IpAddr,
        target: IpAddr,
        proto: Proto,
        ports: &[u16],
    ) -> Result<HashMap<u16, Vec<Event>>, TwinError> {
        let mut listener = {
            let _inside = self.inside.enter()?;
            Netlink::listen(nix::sys::socket::SockProtocol::NetlinkNetFilter, &[GROUP])
                .map_err(failed("listen to the kernel's trace"))?
        };
        let mut sender = {
            let _outside = self.outside.enter()?;
            Sender::frames(link::index_of(OUTSIDE)?).map_err(failed("open a packet socket"))?
        };
        let template = Template::new(Some((self.mac(), OUTSIDE_MAC)), source, target, proto);
        let mut found: HashMap<u16, Vec<Event>> = HashMap::new();
        let asked: PortSet = ports.iter().copied().collect();
        let asked: Vec<u16> = asked.iter().collect();
        for ports in asked.chunks(AT_ONCE) {
            sender.send(&template, ports.iter().copied(), || ()).map_err(failed("send packets"))?;
            let deadline = Instant::now() + SETTLE;
            let mut on_its_way: HashMap<u32, u16> = HashMap::new();
            let mut ended = 0;
            let mut last_round = false;
            loop {
                let wait = if ended < ports.len() {
                    deadline.saturating_duration_since(Instant::now())
                } else {
                    Duration::ZERO
                };
                let take = |kind: u16, body: &[u8]| {
                    let Some(event) = (kind == NFT_MSG_TRACE).then(|| Event::read(body)).flatten() else { return };
                    // Numbers of packets are used again; each packet starts where tracing is turned on.
                    if event.is_recorder() && event.place.family == "netdev" {
                        on_its_way.extend(event.port.map(|port| (event.id, port)));
                        return;
                    }
                    let Some(port) = on_its_way.get(&event.id) else { return };
                    ended += usize::from(event.is_end());
                    found.entry(*port).or_default().push(event);
                };
                let news = listener.receive(wait, take).map_err(failed("read the kernel's trace"))?;
                if !news && (ended >= ports.len() || last_round) {
                    break;
                }
                if !news {
                    // No rule has ended some of them; they have been delivered or dropped when this returns.
                    packets::delivered();
                    last_round = true;
                }
            }
        }
        Ok(found)
    }

    /// How the host says the rules that these events tell of.
    fn words_of(&self, events: &HashMap<u16, Vec<Event>>) -> Result<HashMap<(ChainId, u64), String>, TwinError> {
        let chains: std::collections::HashSet<&ChainId> = events.values().flatten().map(|event| &event.place).collect();
        let listed = self.inside.run(rules::list)?.map_err(failed("read the copy's rules"))?;
        let mut words = HashMap::new();
        let mut at: HashMap<ChainId, usize> = HashMap::new();
        for rule in listed.into_iter().filter(|rule| chains.contains(&rule.place)) {
            let at = at.entry(rule.place.clone()).or_default();
            if let Some(said) = self.words.get(&rule.place).and_then(|chain| chain.get(*at)) {
                words.insert((rule.place, rule.handle), said.clone());
            }
            *at += 1;
        }
        Ok(words)
    }
}

fn judge(port: u16, events: &[Event], words: &HashMap<(ChainId, u64), String>, legacy: bool) -> Traced {
    let rules = events.iter().filter(|event| !event.is_recorder() && event.kind != Kind::Return).map(|event| {
        let verdict = event.verdict();
        let rule = match event.kind {
            Kind::Policy => format!("policy {verdict}"),
            _ => match words.get(&(event.place.clone(), event.handle)) {
                Some(said) => said.clone(),
                // A rule inside a rule's braces: it has no place that a list of rules would tell.
                None => format!("rule handle {}", event.handle),
            },
        };
        let ChainId { family, table, chain } = &event.place;
        TracedRule { table: format!("{family} {table}"), chain: chain.clone(), rule, verdict }
    });
    let recorded = events.iter().rfind(|event| event.is_recorder());
    let arrived_at = events.iter().filter(|event| event.is_recorder()).find_map(|event| event.port);
    let verdict = match recorded.map(|event| event.place.chain.as_str()) {
        Some("last_forward") => Verdict::Forwarded,
        Some(_) => Verdict::Local { port: arrived_at.unwrap_or(port) },
        None if events.last().is_some_and(Event::is_end) => Verdict::Dropped,
        None if legacy => Verdict::DroppedByLegacy,
        None => Verdict::DroppedByKernel,
    };
    Traced { port, verdict, rules: rules.collect(), legacy }
}
