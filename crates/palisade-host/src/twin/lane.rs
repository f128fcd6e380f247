//! One family's probe of a twin: packets to every port, and what the recorder has written down of them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use palisade_core::stack::Proto;

use super::copy::{OUTSIDE, OUTSIDE_MAC, Twin};
use super::{PortSet, Reached, TwinError, failed, recorder};
use crate::link;
use crate::nft;
use crate::packets::{self, BATCH, Sender, Template};

/// How often packets that were lost on the way, or that couldn't be written down, are sent again.
pub(super) const ROUNDS_MAX: u32 = 16;
/// How long packets that are still queued may take.
const SETTLE: Duration = Duration::from_millis(300);

/// How far packets may be ahead of what the kernel has got through with; below its `netdev_max_backlog` of 1000.
const AHEAD_MAX: u64 = 512;
/// A batch that takes longer than this has a ruleset in its way that takes its time.
const BATCH_SLOW: Duration = Duration::from_millis(5);

/// Keeps packets from overtaking a slow ruleset: the kernel drops what queues up too far.
struct Pace {
    since: Instant,
    batches: u64,
}

impl Pace {
    fn keep(&mut self, mut arrived: impl FnMut() -> Option<u64>) {
        self.batches += 1;
        if self.since.elapsed() > BATCH_SLOW {
            let sent = self.batches * BATCH as u64;
            let deadline = Instant::now() + SETTLE;
            while arrived().is_some_and(|arrived| arrived + AHEAD_MAX < sent) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        self.since = Instant::now();
    }
}

/// One family's probe.
pub(super) struct Lane<'a> {
    twin: &'a Twin,
    source: IpAddr,
    ports: &'a PortSet,
    pub(super) packets: u64,
    pub(super) lost: u64,
}

impl<'a> Lane<'a> {
    pub(super) fn new(twin: &'a Twin, source: IpAddr, ports: &'a PortSet) -> Self {
        Self { twin, source, ports, packets: 0, lost: 0 }
    }

    /// What gets through to one address.
    pub(super) fn probe(&mut self, target: IpAddr) -> Result<Vec<Reached>, TwinError> {
        let mut reader = {
            let _inside = self.twin.inside.enter()?;
            recorder::Reader::open().map_err(failed("open the recorder"))?
        };
        let mut sender = {
            let _outside = self.twin.outside.enter()?;
            Sender::frames(link::index_of(OUTSIDE)?).map_err(failed("open a packet socket"))?
        };
        [Proto::Tcp, Proto::Udp]
            .into_iter()
            .map(|proto| self.probe_by(proto, target, &mut reader, &mut sender))
            .collect()
    }

    fn probe_by(
        &mut self,
        proto: Proto,
        target: IpAddr,
        reader: &mut recorder::Reader,
        sender: &mut Sender,
    ) -> Result<Reached, TwinError> {
        let label = recorder::label(proto, target.is_ipv6());
        let template = Template::new(Some((self.twin.mac(), OUTSIDE_MAC)), self.source, target, proto);
        let read = || failed("read the recorder");
        let mut arrived = reader.arrived(&label).map_err(read())?;
        let mut missed = reader.missed(&label).map_err(read())?;
        if arrived > 0 {
            // Of another target.
            self.empty(&label)?;
        }
        let mut missing = self.ports.clone();
        let mut rounds = 0;
        let local = loop {
            let before = arrived;
            let mut pace = Pace { since: Instant::now(), batches: 0 };
            let between = || pace.keep(|| Some(reader.arrived(&label).ok()? - before));
            let sent = sender.send(&template, missing.iter(), between).map_err(failed("send packets"))?;
            self.packets += sent;
            let start = Instant::now();
            arrived = loop {
                let now = reader.arrived(&label).map_err(read())?;
                if now - before >= sent || start.elapsed() > SETTLE {
                    break now;
                }
                std::thread::sleep(Duration::from_millis(1));
            };
            packets::delivered();
            let now_missed = reader.missed(&label).map_err(read())?;
            let local = reader.reached(&label).map_err(read())?;
            let lost = sent.saturating_sub(arrived - before) + (now_missed - missed);
            missed = now_missed;
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
            missing = self.ports.minus(&local);
        };
        let mut reached = Reached { target, proto, local, redirected: BTreeSet::new(), forwarded: PortSet::default() };
        if self.twin.original.ruleset.rewrites {
            reached.redirected = reader.redirected(&label).map_err(read())?;
            reached.forwarded = reader.forwarded(&label).map_err(read())?;
        }
        Ok(reached)
    }

    fn empty(&self, label: &str) -> Result<(), TwinError> {
        let text: String =
            recorder::SETS.map(|set| format!("flush set inet palisade_recorder {set}_{label}\n")).concat();
        let _inside = self.twin.inside.enter()?;
        nft::run("nft", &["-f", "-"], &text)
            .map_err(|source| TwinError::Ruleset { operation: "empty the recorder", source })?;
        Ok(())
    }
}
