//! The host's ruleset as text that loads into another namespace, with what had to be changed or can't be known.
//!
//! Rules are never interpreted to find out what they let through: that is the kernel's job. They are looked at only
//! to say on what else, besides the port, the answer depends.

mod listed;
mod load;

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

use self::listed::{Listed, listed, read_both};
use super::PortSet;
use super::classes;
use super::doubts::{doubts, iptables_doubts};
use super::patient;
use super::rules::{self, ChainId, Rule};
use crate::nft::{self, ToolError};

/// A rule on which the answer hangs in a way that one packet a port can't show.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Unknown {
    /// Why.
    pub why: Why,
    /// The rule, or what couldn't be copied.
    pub rule: String,
}

/// Why something is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Other source addresses or ports than the probe's may be let in.
    Source,
    /// Other packets to the same port, longer ones or with other marks, may be treated differently.
    Content,
    /// It depends on earlier packets.
    State,
    /// It depends on the time, or on chance.
    Chance,
    /// A process decides.
    Process,
    /// It couldn't be copied: what the twin says is what the host would do without it.
    NotCopied,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Source => "depends on who asks",
            Self::Content => "depends on what else is in the packet",
            Self::State => "depends on earlier packets",
            Self::Chance => "depends on time or chance",
            Self::Process => "is decided by a process",
            Self::NotCopied => "could not be copied",
        })
    }
}

/// A ruleset ready to be loaded elsewhere.
#[derive(Clone, Debug, Default)]
pub(super) struct Ruleset {
    /// For `nft -f`.
    nft: Vec<Line>,
    /// For the restoring tools of iptables.
    restore: Vec<Restore>,
    /// For `ipset restore`.
    ipsets: String,
    /// Destinations may be rewritten.
    pub(super) rewrites: bool,
    /// IPv4 and IPv6 have rules that no trace tells of.
    pub(super) legacy: [bool; 2],
    /// What one packet a port can't show.
    pub(super) unknown: Vec<Unknown>,
    /// Rules that were copied without their rate limit: the probe is a patient client.
    pub(super) without_limit: Vec<String>,
}

#[derive(Clone, Debug)]
struct Line {
    text: String,
    /// Where it stands and how the host says it, if it is a rule.
    rule: Option<(ChainId, String)>,
}

/// What one of iptables' tools loads.
#[derive(Clone, Debug)]
struct Restore {
    program: &'static str,
    lines: Vec<RestoreLine>,
}

impl Restore {
    fn is_nft(&self) -> bool {
        self.program.contains("-nft-")
    }
}

#[derive(Clone, Debug)]
struct RestoreLine {
    text: String,
    rule: Option<RestoreRule>,
}

impl RestoreLine {
    fn uses_ipset(&self) -> bool {
        self.rule.is_some() && (self.text.contains(" --match-set ") || self.text.contains(" -j SET "))
    }
}

#[derive(Clone, Debug)]
struct RestoreRule {
    place: ChainId,
    /// As iptables says it.
    original: String,
    /// As `nft` says it on the host.
    as_nft: String,
    expected: Expected,
    has_extension: bool,
}

/// What `nft` should say of a copied rule.
#[derive(Clone, Debug)]
enum Expected {
    /// This.
    Rule(String),
    /// Nothing: it doesn't matter to a patient client.
    Absent,
    /// It can't be told.
    Unknown,
}

impl Expected {
    /// `changed` when iptables' words for the rule had to be changed for a patient client.
    fn of(as_nft: &str, changed: bool, has_extension: bool) -> Self {
        let patient = patient::nft(as_nft, &BTreeSet::new());
        match patient.rule {
            // A match that only iptables knows was taken out.
            _ if changed && has_extension && !patient.changed => Self::Unknown,
            Some(rule) => Self::Rule(rule),
            None => Self::Absent,
        }
    }
}

/// How the rules of each chain are said on the host, in the order of the copy.
pub(super) type Words = BTreeMap<ChainId, Vec<String>>;

/// Reads the ruleset of the calling thread's network namespace. Nothing is said about rules of `own_table`.
pub(super) fn read(own_table: Option<&str>) -> Result<Ruleset, ToolError> {
    let mut ruleset = Ruleset::default();
    let (text, rules) = read_both()?;
    let mut by_table: BTreeMap<(&str, &str), Vec<&Rule>> = BTreeMap::new();
    for rule in &rules {
        by_table.entry((rule.place.family, &rule.place.table)).or_default().push(rule);
    }
    ruleset.rewrites = rules.iter().any(|rule| rule.rewrites) || text.contains("type nat hook");
    let mut saved = Saved::default();
    for table in listed(&text) {
        let rules = by_table.remove(&(table.family, table.name)).unwrap_or_default();
        let ours = own_table.is_some_and(|own| (table.family, table.name) == ("inet", own));
        let is_iptables = rules.iter().any(|rule| rule.has_extension);
        if !(is_iptables && ruleset.take_iptables(&table, &rules, &mut saved)) {
            ruleset.take_table(&table, &rules, ours);
        }
    }
    ruleset.unknown.append(&mut saved.unknown);
    for (which, (names, program)) in
        [("ip_tables_names", "iptables-legacy"), ("ip6_tables_names", "ip6tables-legacy")].into_iter().enumerate()
    {
        // The file is there, and not empty, when the old iptables is in use in this namespace.
        let names = std::fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
        if !names.trim().is_empty() {
            ruleset.legacy[which] = ruleset.take_legacy(program);
        }
    }
    ruleset.take_ipsets();
    ruleset.unknown.sort();
    ruleset.unknown.dedup();
    Ok(ruleset)
}

/// What `iptables-nft-save` and `ip6tables-nft-save` said.
#[derive(Default)]
struct Saved {
    text: BTreeMap<&'static str, Option<String>>,
    unknown: Vec<Unknown>,
}

impl Saved {
    fn by(&mut self, program: &'static str) -> Option<&str> {
        let unknown = &mut self.unknown;
        let ask = || match nft::run(&format!("{program}-save"), &[], "") {
            Ok(text) => Some(text),
            Err(error) => {
                unknown.push(Unknown { why: Why::NotCopied, rule: format!("{program}: {error}") });
                None
            }
        };
        self.text.entry(program).or_insert_with(ask).as_deref()
    }
}

/// The part of a table in what `iptables-save` prints.
fn saved_table<'a>(text: &'a str, name: &str) -> Option<Vec<&'a str>> {
    let mut lines = text.lines().skip_while(|line| line.strip_prefix('*') != Some(name));
    let first = lines.next()?;
    let mut part = vec![first];
    part.extend(lines.take_while(|line| *line != "COMMIT"));
    part.push("COMMIT");
    Some(part)
}

/// The chain that a line of `iptables-save` adds a rule to.
fn chain_of(line: &str) -> Option<&str> {
    line.strip_prefix("-A ")?.split(' ').next()
}

impl Ruleset {
    fn note(&mut self, why: Why, rule: &str) {
        self.unknown.push(Unknown { why, rule: rule.trim().to_owned() });
    }

    /// Copies one table as `nft` says it.
    fn take_table(&mut self, table: &Listed<'_>, rules: &[&Rule], ours: bool) {
        let (family, name) = (table.family, table.name);
        let named_over = patient::named_over(table.text);
        let mut in_words: BTreeMap<&str, Vec<&&Rule>> = BTreeMap::new();
        rules.iter().rev().for_each(|rule| in_words.entry(&rule.place.chain).or_default().push(rule));
        for (line, chain) in &table.lines {
            let statement = line.trim();
            let Some(chain) = chain else {
                match statement.strip_prefix("flags ") {
                    // A table with an owner is gone as soon as the `nft` that loads it ends.
                    Some(flags) if statement.contains("owner") => {
                        if flags.contains("dormant") {
                            self.nft.push(Line { text: "flags dormant".into(), rule: None });
                        }
                    }
                    _ => self.nft.push(Line { text: line.clone(), rule: None }),
                }
                continue;
            };
            let rule = in_words.get_mut(chain).and_then(Vec::pop);
            let place = ChainId { family, table: name.to_owned(), chain: (*chain).to_owned() };
            let full = format!("{family} {name}: {statement}");
            let patient = patient::nft(statement, &named_over);
            if !ours {
                if patient.changed {
                    self.without_limit.push(full.clone());
                }
                for why in doubts(statement) {
                    self.note(why, &full);
                }
                if rule.is_some_and(|rule| rule.has_extension) {
                    // `nft` says such a rule in words of its own, or not at all.
                    self.note(Why::NotCopied, &full);
                }
            }
            let Some(text) = patient.rule else { continue };
            if text.contains("xt match") || text.contains("xt target") {
                continue;
            }
            self.nft.push(Line { text, rule: Some((place, statement.to_owned())) });
        }
    }

    /// Copies a table as iptables says it; false when iptables doesn't know the table or has other rules for it.
    fn take_iptables(&mut self, table: &Listed<'_>, rules: &[&Rule], saved: &mut Saved) -> bool {
        let (program, tool) = match table.family {
            "ip" => ("iptables-nft", "iptables-nft-restore"),
            "ip6" => ("ip6tables-nft", "ip6tables-nft-restore"),
            _ => return false,
        };
        let Some(lines) = saved.by(program).and_then(|text| saved_table(text, table.name)) else { return false };
        let lines: Vec<String> = lines.into_iter().map(str::to_owned).collect();
        // One rule of iptables is one rule of nftables; chain by chain they stand in the same order.
        let mut in_nft: BTreeMap<&str, Vec<(&str, bool)>> = BTreeMap::new();
        let mut has_extension: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
        rules.iter().rev().for_each(|rule| {
            has_extension.entry(&rule.place.chain).or_default().push(rule.has_extension);
        });
        for (line, chain) in table.lines.iter().filter_map(|(line, chain)| Some((line, (*chain)?))) {
            let extension = has_extension.get_mut(chain).and_then(Vec::pop).unwrap_or(true);
            in_nft.entry(chain).or_default().push((line.trim(), extension));
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        lines.iter().filter_map(|line| chain_of(line)).for_each(|chain| *counts.entry(chain).or_default() += 1);
        if counts.len() != in_nft.len() || in_nft.iter().any(|(chain, rules)| counts.get(chain) != Some(&rules.len())) {
            return false;
        }
        in_nft.values_mut().for_each(|rules| rules.reverse());
        let mut copy = Vec::with_capacity(lines.len());
        for line in &lines {
            let Some(chain) = chain_of(line) else {
                copy.push(RestoreLine { text: line.clone(), rule: None });
                continue;
            };
            let (as_nft, has_extension) = in_nft.get_mut(chain).and_then(Vec::pop).unwrap_or_default();
            let Some((text, changed)) = self.patient_iptables(program, line) else { continue };
            let place = ChainId { family: table.family, table: table.name.to_owned(), chain: chain.to_owned() };
            let expected = Expected::of(as_nft, changed, has_extension);
            let (original, as_nft) = (line.clone(), as_nft.to_owned());
            let rule = RestoreRule { place, original, as_nft, expected, has_extension };
            copy.push(RestoreLine { text, rule: Some(rule) });
        }
        self.restore.push(Restore { program: tool, lines: copy });
        true
    }

    /// Copies what the old iptables has; false when that is nothing that could stop a packet.
    fn take_legacy(&mut self, program: &'static str) -> bool {
        let text = match nft::run(&format!("{program}-save"), &[], "") {
            Ok(text) => text,
            Err(error) => {
                self.note(Why::NotCopied, &format!("{program} rules: {error}"));
                return true;
            }
        };
        let tool = if program == "iptables-legacy" { "iptables-legacy-restore" } else { "ip6tables-legacy-restore" };
        let family = if program == "iptables-legacy" { "ip" } else { "ip6" };
        let mut copy = Vec::new();
        let mut table = String::new();
        let mut has_rules = false;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('*') {
                name.clone_into(&mut table);
            }
            has_rules |= line.starts_with(':') && line.contains(" DROP ");
            let Some(chain) = chain_of(line) else {
                copy.push(RestoreLine { text: line.to_owned(), rule: None });
                continue;
            };
            has_rules = true;
            let Some((text, _)) = self.patient_iptables(program, line) else { continue };
            let place = ChainId { family, table: table.clone(), chain: chain.to_owned() };
            let (original, as_nft) = (line.to_owned(), String::new());
            let rule = RestoreRule { place, original, as_nft, expected: Expected::Unknown, has_extension: true };
            copy.push(RestoreLine { text, rule: Some(rule) });
        }
        self.restore.push(Restore { program: tool, lines: copy });
        has_rules
    }

    /// A rule of iptables for a patient client and whether it is another one now, with remarks made; `None` when it
    /// does nothing for such a client.
    fn patient_iptables(&mut self, program: &str, line: &str) -> Option<(String, bool)> {
        let patient = patient::iptables(line);
        if patient.changed {
            self.without_limit.push(format!("{program}: {line}"));
        }
        self.rewrites |= line.contains("-j DNAT") || line.contains("-j REDIRECT");
        for why in iptables_doubts(line) {
            self.note(why, &format!("{program}: {line}"));
        }
        Some((patient.rule?, patient.changed))
    }

    /// Copies the sets that rules of iptables look into, or leaves those rules out.
    fn take_ipsets(&mut self) {
        let rules = || self.restore.iter().flat_map(|restore| &restore.lines).filter(|line| line.uses_ipset());
        if rules().next().is_none() {
            return;
        }
        match nft::run("ipset", &["save"], "") {
            Ok(text) => self.ipsets = text,
            Err(error) => self.leave_out_ipsets(&error.to_string()),
        }
    }

    fn leave_out_ipsets(&mut self, why: &str) {
        let mut left_out = Vec::new();
        for restore in &mut self.restore {
            restore.lines.retain(|line| {
                if line.uses_ipset() {
                    left_out.extend(line.rule.as_ref().map(|rule| format!("{} ({why})", rule.original)));
                }
                !line.uses_ipset()
            });
        }
        left_out.iter().for_each(|rule| self.note(Why::NotCopied, rule));
    }

    /// How many rules there are.
    pub(super) fn rules(&self) -> usize {
        let restored = self.restore.iter().flat_map(|restore| &restore.lines).filter(|line| line.rule.is_some());
        self.nft.iter().filter(|line| line.rule.is_some()).count() + restored.count()
    }

    /// All numbers that stand in it; `None` when something is computed from ports, or destinations are rewritten.
    pub(super) fn numbers(&self) -> Option<PortSet> {
        if self.rewrites || self.legacy.contains(&true) {
            return None;
        }
        let restored = self.restore.iter().flat_map(|restore| &restore.lines).map(|line| line.text.as_str());
        let lines = self.nft.iter().map(|line| line.text.as_str()).chain(restored).chain(self.ipsets.lines());
        let mut all = PortSet::default();
        for line in lines {
            classes::numbers_of(line)?.for_each(|number| all.insert(number));
        }
        Some(all)
    }

    /// Whether a rule of iptables, or one that `nft` says, mentions a name.
    pub(super) fn mentions(&self, name: &str) -> bool {
        self.nft.iter().any(|line| line.text.contains(name))
            || self.restore.iter().flat_map(|restore| &restore.lines).any(|line| line.text.contains(name))
    }
}

/// A rule that `nft` lists as `meta l4proto { tcp, udp } tcp dport 53` and then doesn't read ("conflicting protocols
/// specified", up to 1.0.6 at least), in words that say the same and are read. `None` for others.
fn with_protocol_apart(rule: &str) -> Option<String> {
    let reworded = ["tcp", "udp"].iter().fold(rule.to_owned(), |rule, proto| {
        ["dport", "sport"].iter().fold(rule, |rule, field| {
            rule.replace(&format!(" {proto} {field} "), &format!(" meta l4proto {proto} th {field} "))
        })
    });
    (rule.contains("l4proto {") && reworded != rule).then_some(reworded)
}
