//! The host's ruleset as text that loads into another namespace, with what had to be changed or can't be known.
//!
//! Rules are never interpreted to find out what they let through: that is the kernel's job. They are looked at only
//! to say on what else, besides the port, the answer depends.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

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

/// How often a load that fails is tried again without the rule that it failed at.
const REFUSALS_MAX: usize = 20;
/// How often the host is read anew when its rules change meanwhile.
const READINGS_MAX: usize = 5;

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

#[derive(Clone, Debug)]
struct RestoreLine {
    text: String,
    rule: Option<RestoreRule>,
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

/// A table as `nft` lists it.
struct Listed<'a> {
    family: &'static str,
    name: &'a str,
    text: &'a str,
    /// Every line with the chain it is a rule of, if it is one. A rule with a chain of its own takes several lines.
    lines: Vec<(String, Option<&'a str>)>,
}

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

/// What `nft` and what the kernel says, when both tell of the same rules.
fn read_both() -> Result<(String, Vec<Rule>), ToolError> {
    let garbled = |details| ToolError::Garbled { command: "nft -s list ruleset".into(), details };
    let mut readings = 0;
    loop {
        let text = nft::run("nft", &["-s", "list", "ruleset"], "")?;
        let rules = rules::list().map_err(|source| ToolError::Run { program: "nft".into(), source })?;
        let (told, there) = (counts(&listed(&text)), counts_of(&rules));
        if told == there {
            return Ok((text, rules));
        }
        readings += 1;
        if readings == READINGS_MAX {
            let differs = |(place, count): (&(String, String), &usize)| told.get(place) != Some(count);
            let place = there.iter().find(|(place, count)| differs((place, count))).map(|(place, _)| place);
            let place = place.or_else(|| told.keys().find(|place| !there.contains_key(*place)));
            let count = |counts: &BTreeMap<(String, String), usize>| {
                place.and_then(|place| counts.get(place)).copied().unwrap_or(0)
            };
            let name = place.map(|(table, chain)| format!("table {table}, chain {chain}")).unwrap_or_default();
            let details = format!("{name} has {} rules, and {} are listed", count(&there), count(&told));
            return Err(garbled(details));
        }
        // Somebody changes the rules just now.
        std::thread::sleep(Duration::from_millis(20 << readings));
    }
}

fn counts(tables: &[Listed<'_>]) -> BTreeMap<(String, String), usize> {
    let mut counts = BTreeMap::new();
    for table in tables {
        for (_, chain) in table.lines.iter().filter(|(_, chain)| chain.is_some()) {
            *counts
                .entry((format!("{} {}", table.family, table.name), chain.unwrap_or_default().to_owned()))
                .or_default() += 1;
        }
    }
    counts
}

fn counts_of(rules: &[Rule]) -> BTreeMap<(String, String), usize> {
    let mut counts = BTreeMap::new();
    // Rules of a chain without a name are part of the rule that leads there.
    for Rule { place, .. } in rules.iter().filter(|rule| !rule.place.chain.starts_with("__chain")) {
        *counts.entry((format!("{} {}", place.family, place.table), place.chain.clone())).or_default() += 1;
    }
    counts
}

/// The tables `table … { … }` of a listing.
fn listed(text: &str) -> Vec<Listed<'_>> {
    let mut tables = Vec::new();
    let mut start = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.starts_with("table ") {
            start = Some(at);
        }
        at += line.len();
        if line.starts_with('}')
            && let Some(start) = start.take()
        {
            tables.push(listed_table(&text[start..at]));
        }
    }
    tables
}

fn listed_table(text: &str) -> Listed<'_> {
    let mut words = text.split_whitespace().skip(1);
    let family = match words.next() {
        Some("ip") => "ip",
        Some("ip6") => "ip6",
        Some("inet") => "inet",
        Some("arp") => "arp",
        Some("bridge") => "bridge",
        Some("netdev") => "netdev",
        _ => "unknown",
    };
    let mut table = Listed { family, name: words.next().unwrap_or_default(), text, lines: Vec::new() };
    let mut chain = None;
    let mut open = 0;
    for line in text.lines() {
        let statement = line.trim();
        if open > 0 {
            open += usize::from(statement.ends_with('{'));
            open -= usize::from(statement.starts_with('}'));
            if let Some((rule, _)) = table.lines.last_mut() {
                rule.push('\n');
                rule.push_str(line);
            }
            continue;
        }
        match (chain, statement.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {"))) {
            (None, Some(name)) => {
                chain = Some(name);
                table.lines.push((line.to_owned(), None));
            }
            (Some(name), _) if is_rule(statement) => {
                open = usize::from(statement.ends_with('{'));
                table.lines.push((line.to_owned(), Some(name)));
            }
            _ => {
                if statement == "}" {
                    chain = None;
                }
                table.lines.push((line.to_owned(), None));
            }
        }
    }
    table
}

/// Whether a line inside a chain is a rule, and not what the chain is.
fn is_rule(statement: &str) -> bool {
    !(statement.is_empty() || statement == "}" || statement.starts_with("type ") || statement.starts_with("comment "))
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

    /// Loads the copy into the calling thread's namespace, and then `recorder`. Rules that are refused are left out,
    /// with a remark. Says how the rules that are there are said on the host.
    pub(super) fn load(&mut self, recorder: &str) -> Result<Words, ToolError> {
        if !self.ipsets.is_empty()
            && let Err(error) = nft::run("ipset", &["restore"], &self.ipsets)
        {
            self.leave_out_ipsets(&error.to_string());
        }
        for which in 0..self.restore.len() {
            self.load_iptables(which)?;
        }
        let repairs = self.repairs()?;
        let mut refusals = 0;
        loop {
            let mut text: String = self.nft.iter().flat_map(|line| [line.text.as_str(), "\n"]).collect();
            text.push_str(&repairs);
            text.push_str(recorder);
            let Err(error) = nft::run("nft", &["-f", "-"], &text) else { break };
            refusals += 1;
            // Lines count from one; a rule with a chain of its own takes several.
            let refused = refused_lines(&error, "/dev/stdin:");
            let mut at = 1;
            let (mut left_out, mut reworded) = (Vec::new(), false);
            self.nft.retain_mut(|line| {
                let next = at + line.text.lines().count().max(1);
                let is_refused = refused.iter().any(|number| (at..next).contains(number));
                at = next;
                let Some((place, rule)) = line.rule.as_ref().filter(|_| is_refused) else { return true };
                if let Some(text) = with_protocol_apart(&line.text) {
                    line.text = text;
                    reworded = true;
                    return true;
                }
                left_out.push(format!("{} {}: {rule}", place.family, place.table));
                false
            });
            if (left_out.is_empty() && !reworded) || refusals == REFUSALS_MAX {
                return Err(error);
            }
            left_out.iter().for_each(|rule| self.note(Why::NotCopied, rule));
        }
        Ok(self.words())
    }

    fn load_iptables(&mut self, which: usize) -> Result<(), ToolError> {
        for _ in 0..REFUSALS_MAX {
            let restore = &self.restore[which];
            let text: String = restore.lines.iter().flat_map(|line| [line.text.as_str(), "\n"]).collect();
            let Err(error) = nft::run(restore.program, &[], &text) else { return Ok(()) };
            let number = ["at line: ", "line "].iter().find_map(|before| refused_lines(&error, before).pop());
            let at = number.and_then(|number| number.checked_sub(1)).filter(|at| *at < restore.lines.len());
            let Some(rule) = at.and_then(|at| self.restore[which].lines.remove(at).rule) else { return Err(error) };
            self.note(Why::NotCopied, &rule.original);
        }
        Ok(())
    }

    /// What makes rules that aren't iptables' own, but stand in its tables, what they are on the host: its tools save
    /// them, without a word, as rules that match more.
    fn repairs(&mut self) -> Result<String, ToolError> {
        let mut repairs = String::new();
        if !self.restore.iter().any(Restore::is_nft) {
            return Ok(repairs);
        }
        let copies = copies()?;
        let mut not_copied = Vec::new();
        let mut at: BTreeMap<ChainId, usize> = BTreeMap::new();
        for restore in self.restore.iter_mut().filter(|restore| restore.is_nft()) {
            for rule in restore.lines.iter_mut().filter_map(|line| line.rule.as_mut()) {
                let ChainId { family, table, chain } = &rule.place;
                let at = at.entry(rule.place.clone()).or_default();
                let copy = copies.get(&rule.place).and_then(|copies| copies.get(*at));
                *at += 1;
                match (copy, &rule.expected) {
                    (_, Expected::Unknown) => continue,
                    (Some((text, _)), Expected::Rule(expected)) if text == expected => continue,
                    (Some((_, handle)), expected) if !rule.has_extension => {
                        // `nft replace rule` of nftables 1.0.6 fails with intervals.
                        if let Expected::Rule(expected) = expected {
                            let _ = writeln!(repairs, "add rule {family} {table} {chain} handle {handle} {expected}");
                        }
                        let _ = writeln!(repairs, "delete rule {family} {table} {chain} handle {handle}");
                    }
                    _ => not_copied.push(rule.original.clone()),
                }
                rule.original.clone_from(&rule.as_nft);
            }
        }
        not_copied.iter().for_each(|rule| self.note(Why::NotCopied, rule));
        Ok(repairs)
    }

    fn words(&self) -> Words {
        let mut words = Words::new();
        for (place, rule) in self.nft.iter().filter_map(|line| line.rule.as_ref()) {
            words.entry(place.clone()).or_default().push(rule.clone());
        }
        let through_nft = self.restore.iter().filter(|restore| restore.is_nft());
        let rules = through_nft.flat_map(|restore| &restore.lines).filter_map(|line| line.rule.as_ref());
        for rule in rules.filter(|rule| rule.has_extension || !matches!(rule.expected, Expected::Absent)) {
            words.entry(rule.place.clone()).or_default().push(rule.original.clone());
        }
        words
    }
}

/// What `nft` says of the rules in the calling thread's namespace, with their handles.
fn copies() -> Result<BTreeMap<ChainId, Vec<(String, u64)>>, ToolError> {
    let text = nft::run("nft", &["-s", "list", "ruleset"], "")?;
    let rules = rules::list().map_err(|source| ToolError::Run { program: "nft".into(), source })?;
    let mut handles: BTreeMap<ChainId, Vec<u64>> = BTreeMap::new();
    rules.into_iter().rev().for_each(|rule| handles.entry(rule.place).or_default().push(rule.handle));
    let mut copies: BTreeMap<ChainId, Vec<(String, u64)>> = BTreeMap::new();
    for table in listed(&text) {
        for (line, chain) in table.lines.iter().filter_map(|(line, chain)| Some((line, (*chain)?))) {
            let place = ChainId { family: table.family, table: table.name.to_owned(), chain: chain.to_owned() };
            let handle = handles.get_mut(&place).and_then(Vec::pop).unwrap_or_default();
            copies.entry(place).or_default().push((line.trim().to_owned(), handle));
        }
    }
    Ok(copies)
}

impl Restore {
    fn is_nft(&self) -> bool {
        self.program.contains("-nft-")
    }
}

impl RestoreLine {
    fn uses_ipset(&self) -> bool {
        self.rule.is_some() && (self.text.contains(" --match-set ") || self.text.contains(" -j SET "))
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

/// Line numbers after `before` in what a tool complained of.
fn refused_lines(error: &ToolError, before: &str) -> Vec<usize> {
    let ToolError::Refused { stderr, .. } = error else { return Vec::new() };
    let number = |rest: &str| rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    stderr.split(before).skip(1).filter_map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_cut_at_their_braces_and_chains_into_rules() {
        let text = "# Warning\ntable ip a {\n\tset s {\n\t\ttype inet_service\n\t\telements = { 1,\n\t\t\t     2 }\n\t}\n\n\tchain c {\n\t\ttype filter hook input priority filter; policy accept;\n\t\ttcp dport 1 accept\n\t\ttcp dport 2 jump {\n\t\t\tip saddr 1.2.3.4 accept\n\t\t\tdrop\n\t\t}\n\t\tdrop\n\t}\n}\ntable inet b {\n}\n";
        let tables = listed(text);
        assert_eq!(tables.iter().map(|t| (t.family, t.name)).collect::<Vec<_>>(), [("ip", "a"), ("inet", "b")]);
        let rules: Vec<_> = tables[0].lines.iter().filter(|(_, chain)| *chain == Some("c")).collect();
        assert_eq!(rules.len(), 3);
        assert!(rules[1].0.ends_with("drop\n\t\t}"), "{rules:?}");
        let again: String = tables[0].lines.iter().flat_map(|(line, _)| [line.as_str(), "\n"]).collect();
        assert_eq!(again, tables[0].text);
    }

    #[test]
    fn what_a_tool_complains_of_is_found() {
        let refused = |stderr: &str| ToolError::Refused { command: "x".into(), stderr: stderr.into() };
        let nft = refused("/dev/stdin:12:3-20: Error: No such file\nx\n/dev/stdin:15:1-2: Error: y");
        assert_eq!(refused_lines(&nft, "/dev/stdin:"), [12, 15]);
        assert_eq!(refused_lines(&refused("Set foo doesn't exist.\n\nError occurred at line: 3\n"), "at line: "), [3]);
    }
}
