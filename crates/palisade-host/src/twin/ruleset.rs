//! The host's ruleset as text that loads into another namespace, with what had to be changed or can't be known.
//!
//! Rules are never interpreted to find out what they let through: that is the kernel's job. They are looked at only
//! to say on what else, besides the port, the answer depends.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;

use crate::firewall::walk;
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
    pub(super) nft: String,
    /// For the other tools: the program and its input.
    pub(super) restore: Vec<(&'static str, String)>,
    /// Destinations may be rewritten.
    pub(super) rewrites: bool,
    /// What one packet a port can't show.
    pub(super) unknown: Vec<Unknown>,
    /// Rules that were copied without their rate limit: the probe is a patient client.
    pub(super) without_limit: Vec<String>,
}

/// Reads the ruleset of the calling thread's network namespace. Nothing is said about rules of `own_table`.
pub(super) fn read(own_table: Option<&str>) -> Result<Ruleset, ToolError> {
    let text = nft::run("nft", &["-s", "list", "ruleset"], "")?;
    let mut ruleset = Ruleset::default();
    if !text.trim().is_empty() {
        let objects = nft::json(&["-s", "list", "ruleset"])?;
        ruleset.rewrites = rewrites(&objects);
        let extensions = tables_with_extensions(&objects);
        for table in tables(&text) {
            let (family, name) = heading(table);
            let program = match family {
                "ip" => "iptables-nft",
                "ip6" => "ip6tables-nft",
                _ => "",
            };
            if extensions.contains(&(family.to_owned(), name.to_owned()))
                && !program.is_empty()
                && ruleset.take_iptables(program, Some(name))
            {
                continue;
            }
            ruleset.take_table(table, own_table.is_some_and(|own| (family, name) == ("inet", own)));
        }
    }
    for (names, program) in [("ip_tables_names", "iptables-legacy"), ("ip6_tables_names", "ip6tables-legacy")] {
        // The file is there, and not empty, when the old iptables is in use in this namespace.
        let names = std::fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
        if !names.trim().is_empty() {
            ruleset.take_iptables(program, None);
        }
    }
    ruleset.unknown.sort();
    ruleset.unknown.dedup();
    Ok(ruleset)
}

fn rewrites(objects: &[Value]) -> bool {
    let mut found = false;
    for object in objects {
        found |= object.get("chain").and_then(|chain| chain.get("type")).is_some_and(|kind| kind == "nat");
        walk(object, &mut |name, _| found |= matches!(name, "dnat" | "redirect" | "tproxy"));
    }
    found
}

fn tables_with_extensions(objects: &[Value]) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let field = |key| rule.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        walk(rule, &mut |name, _| {
            if name == "xt" {
                found.insert((field("family"), field("table")));
            }
        });
    }
    found
}

/// The blocks `table … { … }` of a listing.
fn tables(text: &str) -> Vec<&str> {
    let mut blocks = Vec::new();
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
            blocks.push(&text[start..at]);
        }
    }
    blocks
}

/// Family and name of a table block.
fn heading(table: &str) -> (&str, &str) {
    let mut words = table.split_whitespace().skip(1);
    (words.next().unwrap_or_default(), words.next().unwrap_or_default())
}

impl Ruleset {
    fn note(&mut self, why: Why, rule: &str) {
        self.unknown.push(Unknown { why, rule: rule.trim().to_owned() });
    }

    /// Copies one table of `nft`'s listing.
    fn take_table(&mut self, table: &str, ours: bool) {
        let (family, name) = heading(table);
        let mut in_chain = false;
        for line in table.lines() {
            let statement = line.trim();
            if statement.starts_with("chain ") {
                in_chain = true;
            } else if statement == "}" {
                in_chain = false;
            }
            if statement.starts_with("flags ") && statement.contains("owner") {
                // A table with an owner is gone as soon as the `nft` that loads it ends.
                if statement.contains("dormant") {
                    self.nft.push_str("flags dormant\n");
                }
                continue;
            }
            if !in_chain || statement.starts_with("chain ") || statement.starts_with("type ") {
                self.nft.push_str(line);
                self.nft.push('\n');
                continue;
            }
            let full = format!("{family} {name}: {statement}");
            let (rule, limited) = without_limit(statement);
            if limited && !ours {
                self.without_limit.push(full.clone());
            }
            if !ours {
                for why in doubts(statement) {
                    self.note(why, &full);
                }
            }
            if let Some(rule) = rule {
                if rule.contains("xt match") || rule.contains("xt target") {
                    self.note(Why::NotCopied, &full);
                    continue;
                }
                self.nft.push_str(&rule);
                self.nft.push('\n');
            }
        }
    }

    /// Copies what `iptables-save` says; false when there is nothing of that table.
    fn take_iptables(&mut self, program: &'static str, table: Option<&str>) -> bool {
        let save = format!("{program}-save");
        let arguments: Vec<&str> = table.iter().flat_map(|table| ["-t", table]).collect();
        let text = match nft::run(&save, &arguments, "") {
            Ok(text) => text,
            Err(error) => {
                self.note(Why::NotCopied, &format!("{program} {}: {error}", table.unwrap_or("rules")));
                return false;
            }
        };
        if table.is_some_and(|table| !text.lines().any(|line| line.strip_prefix('*') == Some(table))) {
            return false;
        }
        let mut copy = String::new();
        for line in text.lines() {
            let (rule, limited) = without_iptables_limit(line);
            if limited {
                self.without_limit.push(format!("{program}: {line}"));
            }
            self.rewrites |= line.contains("-j DNAT") || line.contains("-j REDIRECT");
            for why in iptables_doubts(line) {
                self.note(why, &format!("{program}: {line}"));
            }
            copy.push_str(&rule);
            copy.push('\n');
        }
        let restore = match program {
            "iptables-nft" => "iptables-nft-restore",
            "ip6tables-nft" => "ip6tables-nft-restore",
            "iptables-legacy" => "iptables-legacy-restore",
            _ => "ip6tables-legacy-restore",
        };
        self.restore.push((restore, copy));
        true
    }
}

/// A rule without what is in quotes, so that a comment can't look like a statement.
fn without_quotes(rule: &str) -> String {
    rule.split('"').enumerate().map(|(i, part)| if i % 2 == 0 { part } else { "\"" }).collect()
}

/// The rule as it is for a client that sends one packet now and then: below every limit. `None`: such a rule never
/// matches. Also says whether there was a limit.
fn without_limit(rule: &str) -> (Option<String>, bool) {
    let bare = without_quotes(rule);
    if bare.contains("limit rate over ") || bare.contains("ct count over ") {
        return (None, true);
    }
    let mut words: Vec<&str> = rule.split(' ').collect();
    let mut limited = false;
    while bare.contains("limit rate ") || bare.contains("ct count ") {
        let Some(at) = words.windows(2).position(|pair| matches!(pair, ["limit", "rate"] | ["ct", "count"])) else {
            break;
        };
        limited = true;
        // limit rate 5/minute [burst 5 packets]; limit rate 1 mbytes/second [burst 5 kbytes]; ct count 5
        let mut end = at + 3;
        if words.get(end).is_some_and(|word| word.contains("bytes/")) {
            end += 1;
        }
        if words.get(end) == Some(&"burst") {
            end += 3;
        }
        words.drain(at..end.min(words.len()));
    }
    (Some(words.join(" ")), limited)
}

fn without_iptables_limit(rule: &str) -> (String, bool) {
    let mut words: Vec<&str> = rule.split(' ').collect();
    let before = words.len();
    while let Some(at) = words.windows(2).position(|pair| pair == ["-m", "limit"]) {
        let mut end = at + 2;
        while matches!(words.get(end), Some(&"--limit" | &"--limit-burst")) {
            end += 2;
        }
        words.drain(at..end.min(words.len()));
    }
    (words.join(" "), words.len() != before)
}

/// On what besides the port a rule of `nft` depends.
fn doubts(rule: &str) -> BTreeSet<Why> {
    let bare = format!(" {} ", without_quotes(rule));
    let has = |words: &[&str]| words.iter().any(|word| bare.contains(word));
    let mut found = BTreeSet::new();
    // A rule that only takes away from certain sources doesn't let anybody in that the probe isn't.
    let may_let_in = has(&["!="]) || !has(&[" drop ", " reject "]);
    if has(&[" saddr ", " sport "]) && may_let_in {
        found.insert(Why::Source);
    }
    if has(&[" add @", " update @", " quota ", " limit name ", " ct mark "]) {
        found.insert(Why::State);
    }
    if has(&[" meta hour ", " meta day ", " meta time ", " numgen random "]) {
        found.insert(Why::Chance);
    }
    if has(&[" queue ", " tproxy ", " socket "]) {
        found.insert(Why::Process);
    }
    found
}

/// On what besides the port a rule of iptables depends.
fn iptables_doubts(rule: &str) -> BTreeSet<Why> {
    let bare = format!(" {} ", without_quotes(rule));
    let has = |words: &[&str]| words.iter().any(|word| bare.contains(word));
    let mut found = BTreeSet::new();
    if has(&[" -s ", " --sport ", " --sports ", " --src-range ", " --match-set "])
        && (has(&[" ! "]) || !has(&[" -j DROP ", " -j REJECT "]))
    {
        found.insert(Why::Source);
    }
    if has(&["-m recent ", "-m hashlimit ", "-m connlimit ", "-m quota ", "-m connmark ", "--match-set "]) {
        found.insert(Why::State);
    }
    if has(&["-m time ", "-m statistic "]) {
        found.insert(Why::Chance);
    }
    if has(&["-j NFQUEUE ", "-j TPROXY ", "-m socket ", "-m bpf "]) {
        found.insert(Why::Process);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patient_client_is_below_every_limit() {
        let of = |rule| without_limit(rule).0;
        assert_eq!(of("tcp dport 22 limit rate 5/minute burst 5 packets accept").unwrap(), "tcp dport 22 accept");
        assert_eq!(of("limit rate 1 mbytes/second burst 5 kbytes accept").unwrap(), "accept");
        assert_eq!(of("tcp dport 80 limit rate over 5/second drop"), None);
        assert_eq!(of("tcp dport 80 ct count over 20 drop"), None);
        let commented = "accept comment \"limit rate over 1/second\"";
        assert_eq!(without_limit(commented), (Some(commented.into()), false));
        let (rule, limited) =
            without_iptables_limit("-A INPUT -p tcp -m limit --limit 5/min --limit-burst 9 -j ACCEPT");
        assert_eq!((rule.as_str(), limited), ("-A INPUT -p tcp -j ACCEPT", true));
    }

    #[test]
    fn what_one_packet_cannot_show_is_told() {
        let of = |rule| doubts(rule).into_iter().collect::<Vec<_>>();
        assert_eq!(of("ip saddr 10.0.0.0/8 tcp dport 22 accept"), [Why::Source]);
        assert_eq!(of("ip saddr 10.0.0.0/8 drop"), []);
        assert_eq!(of("ip saddr != 10.0.0.0/8 drop"), [Why::Source]);
        assert_eq!(of("tcp dport 23 add @banned { ip saddr }"), [Why::Source, Why::State]);
        assert_eq!(of("tcp dport 22 accept comment \"ip saddr \""), []);
        assert_eq!(of("queue flags bypass to 0"), [Why::Process]);
    }

    #[test]
    fn tables_are_cut_at_their_braces() {
        let text = "# Warning\ntable ip a {\n\tchain c {\n\t}\n}\ntable inet b {\n}\n";
        assert_eq!(tables(text).iter().map(|table| heading(table)).collect::<Vec<_>>(), [("ip", "a"), ("inet", "b")]);
    }
}
