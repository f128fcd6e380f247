//! The twin against the truth: for many rulesets, what the twin says of a port and what real packets from another
//! namespace get there. Not one answer may differ.
//!
//! `generate` makes rulesets by chance, `cases/` holds written ones, `daemons` those of real firewalls and engines.

mod daemons;
mod generate;
mod ground;

use std::fmt::Write;
use std::path::Path;

use palisade_core::stack::Proto;
use palisade_host::twin::{self, TwinSpec};

use crate::{missing, tool};
use generate::Chance;
use ground::{Ground, Outcome, ROADS, Road};

/// Where chance starts; another one finds other rulesets: `PALISADE_SEED=7 cargo nextest run …`.
const SEED: u64 = 20_261_126;
/// Ports that are asked for in any case, and how many by chance.
const USUAL: [u16; 5] = [22, 53, 80, 443, 65_535];
const BY_CHANCE: usize = 8;
const NAMED_MAX: usize = 56;

/// Which tool loads a ruleset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speech {
    Nft,
    IptablesNft,
    IptablesLegacy,
}

/// One ruleset, ready to be loaded.
#[derive(Clone, Debug)]
struct Ruleset {
    name: String,
    speech: Speech,
    /// For `nft`, or `iptables-restore`.
    text: String,
    /// For `ip6tables-restore`, and for `ipset restore` before the others.
    ipv6: String,
    ipsets: String,
    /// What `nft` adds to what iptables has loaded.
    added: String,
    /// `net.ipv4.conf.all.rp_filter`.
    rp_filter: u8,
}

impl Ruleset {
    fn new(name: impl Into<String>, speech: Speech, text: impl Into<String>) -> Self {
        let (ipv6, ipsets, added) = (String::new(), String::new(), String::new());
        Self { name: name.into(), speech, text: text.into(), ipv6, ipsets, added, rp_filter: 0 }
    }

    /// Loads it into the calling thread's namespace, where nothing is loaded.
    fn load(&self) {
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", self.rp_filter.to_string()).unwrap();
        if !self.ipsets.is_empty() {
            tool(&["ipset", "restore"], &self.ipsets);
        }
        let (ipv4, ipv6) = match self.speech {
            Speech::Nft => return tool(&["nft", "-f", "-"], &self.text),
            Speech::IptablesNft => ("iptables-nft-restore", "ip6tables-nft-restore"),
            Speech::IptablesLegacy => ("iptables-legacy-restore", "ip6tables-legacy-restore"),
        };
        tool(&[ipv4], &self.text);
        if !self.ipv6.is_empty() {
            tool(&[ipv6], &self.ipv6);
        }
        if !self.added.is_empty() {
            tool(&["nft", "-f", "-"], &self.added);
        }
    }
}

/// Empties the calling thread's namespace of rules.
fn clear(ruleset: &Ruleset) {
    tool(&["nft", "flush", "ruleset"], "");
    if ruleset.speech == Speech::IptablesLegacy {
        let nothing = "*raw\nCOMMIT\n*mangle\nCOMMIT\n*nat\nCOMMIT\n*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n";
        tool(&["iptables-legacy-restore"], nothing);
        tool(&["ip6tables-legacy-restore"], nothing);
    }
    if ruleset.ipsets.is_empty() {
        return;
    }
    // Rules that nftables held are taken away a little later, and their sets with them.
    let destroyed = "ipset flush
        for _ in $(seq 3000); do ipset destroy 2>/dev/null && exit 0; sleep 0.01; done; exit 1";
    tool(&["sh", "-c", destroyed], "");
}

/// What was compared.
#[derive(Default)]
struct Tally {
    rulesets: usize,
    answers: usize,
    open: usize,
    disagreements: Vec<String>,
}

impl Tally {
    fn report(self, test: &str) {
        let (rulesets, answers, open) = (self.rulesets, self.answers, self.open);
        println!(
            "{test}: rulesets {rulesets}, answers {answers} ({open} let in), disagreements {}",
            self.disagreements.len()
        );
        assert!(
            self.disagreements.is_empty(),
            "{}",
            self.disagreements[..self.disagreements.len().min(5)].join("\n\n")
        );
        assert!(open * 20 > answers && open * 20 < answers * 19, "{open} of {answers}: these rulesets decide nothing");
    }
}

/// Ports that a ruleset names, their neighbours, and some others.
fn sample(text: &str, chance: &mut Chance) -> Vec<u16> {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u16>().ok());
    let mut named: Vec<u16> =
        numbers.flat_map(|n| [n.saturating_sub(1), n, n.saturating_add(1)]).filter(|port| *port > 0).collect();
    named.sort_unstable();
    named.dedup();
    chance.shuffle(&mut named);
    named.truncate(NAMED_MAX);
    named.extend(USUAL);
    named.extend((0..BY_CHANCE).map(|_| chance.below(65_535) as u16 + 1));
    named.sort_unstable();
    named.dedup();
    named
}

/// Compares what the twin says of the rules that are loaded with what real packets get.
fn compare(ground: &mut Ground, name: &str, text: &str, ports: &[u16], roads: &[Road], tally: &mut Tally) {
    tally.rulesets += 1;
    for road in roads {
        let mut spec = TwinSpec::of(road.world());
        spec.ports = ports.iter().copied().collect();
        let report = ground.host().run(|| twin::probe(&spec)).unwrap();
        let report = match report {
            Ok(report) => report,
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                tally.disagreements.push(format!("{name}, {}: no answer: {error}: {source}\n{text}", road.interface));
                continue;
            }
        };
        for reached in &report.reached {
            let says = |port: u16| match () {
                () if reached.local.contains(port) => Outcome::Local(port),
                () if reached.forwarded.contains(port) => Outcome::Elsewhere,
                () => {
                    let rewritten = reached.redirected.iter().find(|(from, _)| *from == port);
                    rewritten.map_or(Outcome::Nothing, |(_, to)| Outcome::Local(*to))
                }
            };
            let local = reached.redirected.iter().map(|(_, to)| *to);
            ground.listen(ports.iter().copied().chain(local));
            let visible = ports.iter().filter(|port| reached.proto == Proto::Tcp || ground.has(**port));
            let expected: Vec<_> = visible.map(|port| (*port, says(*port))).collect();
            let truth = ground.truth(road, reached.target, reached.proto, &expected);
            for ((port, said), real) in expected.iter().zip(truth) {
                tally.answers += 1;
                tally.open += usize::from(real != Outcome::Nothing);
                if *said != real {
                    let mut words = String::new();
                    let _ = write!(
                        words,
                        "{name}: {} port {port} of {} by {}: ",
                        reached.proto, reached.target, road.interface
                    );
                    let _ = write!(words, "the twin says {said:?}, in truth it is {real:?}\n{text}");
                    tally.disagreements.push(words);
                }
            }
        }
    }
}

fn seed() -> u64 {
    std::env::var("PALISADE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(SEED)
}

/// Loads each ruleset, compares, and clears it away.
fn check(test: &str, rulesets: impl IntoIterator<Item = Ruleset>) {
    let Some(mut ground) = Ground::new(test) else { return };
    let mut chance = Chance::new(seed());
    let mut tally = Tally::default();
    for (at, ruleset) in rulesets.into_iter().enumerate() {
        ground.host().run(|| ruleset.load()).unwrap();
        let text = [&ruleset.ipsets, &ruleset.text, &ruleset.ipv6, &ruleset.added].map(String::as_str).concat();
        let ports = sample(&text, &mut chance);
        let name = format!("{} (seed {})", ruleset.name, seed());
        // Every fourth one is asked from the private network too.
        let roads = if at % 4 == 0 { &ROADS[..] } else { &ROADS[..1] };
        compare(&mut ground, &name, &text, &ports, roads, &mut tally);
        ground.host().run(|| clear(&ruleset)).unwrap();
    }
    tally.report(test);
}

fn generated(test: &str, speech: Speech, stream: u64, count: u64) {
    if speech != Speech::Nft
        && let Some(missing) = missing(&["iptables-nft", "iptables-legacy", "ipset"])
    {
        println!("SKIPPED: {test}: {missing} is not installed");
        return;
    }
    let make = |at: u64| {
        let number = stream * 10_000 + at;
        let mut chance = Chance::new(seed().wrapping_add(number.wrapping_mul(0x9e37_79b9)));
        generate::ruleset(format!("generated {number}"), speech, &mut chance)
    };
    check(test, (0..count).map(make));
}

#[test]
fn generated_nft_one() {
    generated("truth::generated_nft_one", Speech::Nft, 1, 60);
}

#[test]
fn generated_nft_two() {
    generated("truth::generated_nft_two", Speech::Nft, 2, 60);
}

#[test]
fn generated_iptables_nft() {
    generated("truth::generated_iptables_nft", Speech::IptablesNft, 3, 50);
}

#[test]
fn generated_iptables_legacy() {
    generated("truth::generated_iptables_legacy", Speech::IptablesLegacy, 4, 50);
}

/// `NAME.nft` is for nft; `NAME.iptables` for iptables in both ways that it is spoken, with `NAME.ip6tables` and
/// `NAME.ipset` beside it; `NAME.mixed` is for iptables-nft and has what nft adds after a line `--- nft`.
#[test]
fn written_rulesets() {
    let test = "truth::written_rulesets";
    if let Some(missing) = missing(&["iptables-nft", "iptables-legacy", "ipset"]) {
        println!("SKIPPED: {test}: {missing} is not installed");
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/net/truth/cases");
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read =
        |path: &Path, extension: &str| std::fs::read_to_string(path.with_extension(extension)).unwrap_or_default();
    let mut rulesets = Vec::new();
    for path in &files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).unwrap();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("nft") => rulesets.push(Ruleset::new(name, Speech::Nft, text)),
            Some("iptables") => {
                for speech in [Speech::IptablesNft, Speech::IptablesLegacy] {
                    let mut ruleset = Ruleset::new(format!("{name} {speech:?}"), speech, text.clone());
                    (ruleset.ipv6, ruleset.ipsets) = (read(path, "ip6tables"), read(path, "ipset"));
                    rulesets.push(ruleset);
                }
            }
            Some("mixed") => {
                let (iptables, added) = text.split_once("--- nft\n").unwrap();
                let mut ruleset = Ruleset::new(name, Speech::IptablesNft, iptables);
                ruleset.added = added.to_owned();
                rulesets.push(ruleset);
            }
            _ => (),
        }
    }
    assert!(rulesets.len() >= 30, "{}", rulesets.len());
    check(test, rulesets);
}
