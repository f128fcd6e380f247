//! The ruleset as `nft` lists it, held against what the kernel has.

use std::collections::BTreeMap;
use std::time::Duration;

use super::rules::{self, Rule};
use crate::nft::{self, ToolError};

/// How often the host is read anew when its rules change meanwhile.
const READINGS_MAX: usize = 5;

/// A table as `nft` lists it.
pub(super) struct Listed<'a> {
    pub(super) family: &'static str,
    pub(super) name: &'a str,
    pub(super) text: &'a str,
    /// Every line with the chain it is a rule of, if it is one. A rule with a chain of its own takes several lines.
    pub(super) lines: Vec<(String, Option<&'a str>)>,
}

/// What `nft` and what the kernel says, when both tell of the same rules.
pub(super) fn read_both() -> Result<(String, Vec<Rule>), ToolError> {
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
pub(super) fn listed(text: &str) -> Vec<Listed<'_>> {
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
}
