//! The copy is loaded into the namespace that this process is in, and mended until the kernel says what the host said.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::listed::listed;
use super::rules::{self, ChainId};
use super::{Expected, Restore, Ruleset, Why, Words, with_protocol_apart};
use crate::nft::{self, ToolError};

/// How often a load that fails is tried again without the rule that it failed at.
const REFUSALS_MAX: usize = 20;

impl Ruleset {
    /// Loads the copy into the calling thread's namespace, and then `recorder`. Rules that are refused are left out,
    /// with a remark. Says how the rules that are there are said on the host.
    pub(in crate::twin) fn load(&mut self, recorder: &str) -> Result<Words, ToolError> {
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
    fn what_a_tool_complains_of_is_found() {
        let refused = |stderr: &str| ToolError::Refused { command: "x".into(), stderr: stderr.into() };
        let nft = refused("/dev/stdin:12:3-20: Error: No such file\nx\n/dev/stdin:15:1-2: Error: y");
        assert_eq!(refused_lines(&nft, "/dev/stdin:"), [12, 15]);
        assert_eq!(refused_lines(&refused("Set foo doesn't exist.\n\nError occurred at line: 3\n"), "at line: "), [3]);
    }
}
