//! Rules as a patient client meets them: one who sends a packet now and then, whom no rate limit holds up, and whom
//! nobody remembers. All ports are asked at once, and one question must not change the answer to the next.
//!
//! What a rule lets through is not looked at here.

use std::collections::BTreeSet;

/// A rule for a patient client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Patient {
    /// What is left of it; `None` when it never matches, or does nothing but remember.
    pub(super) rule: Option<String>,
    /// Something was left out.
    pub(super) changed: bool,
}

/// A rule without what is in quotes, so that a comment can't look like a statement.
pub(super) fn without_quotes(rule: &str) -> String {
    rule.split('"').enumerate().map(|(i, part)| if i % 2 == 0 { part } else { "\"" }).collect()
}

/// Limits and quotas of a table that match what is over them, by name, as `nft` lists the table.
pub(super) fn named_over(table: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut current = None;
    for line in table.lines().map(str::trim) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["limit" | "quota", name, "{"] => current = Some(name),
            ["rate", "over", ..] | ["over", ..] => names.extend(current.map(str::to_owned)),
            ["}"] => current = None,
            _ => (),
        }
    }
    names
}

/// A rule of `nft`; `named_over` are the named limits of its table that match what is over them.
pub(super) fn nft(rule: &str, named_over: &BTreeSet<String>) -> Patient {
    let bare = without_quotes(rule);
    let never = Patient { rule: None, changed: true };
    if ["limit rate over ", "ct count over ", "quota over "].iter().any(|over| bare.contains(over)) {
        return never;
    }
    let mut words: Vec<&str> = rule.split(' ').collect();
    let (mut at, mut changed) = (0, false);
    while at < words.len() {
        // A comment is the last thing in a rule.
        if words[at] == "comment" {
            break;
        }
        let rest = &words[at..];
        let len = match rest {
            ["limit" | "quota", "name", name, ..] => {
                if named_over.contains(name.trim_matches('"')) {
                    return never;
                }
                3
            }
            ["limit", "rate", ..] => limit_len(rest),
            ["ct", "count", ..] => 3,
            ["quota", ..] => quota_len(rest),
            ["add" | "update", set, "{", ..] if set.starts_with('@') => braces_len(rest),
            ["meter", ..] => braces_len(rest),
            _ => {
                at += 1;
                continue;
            }
        };
        let end = (at + len).min(words.len());
        let implied = implied(&words[at..end]);
        words.splice(at..end, implied.iter().copied());
        at += implied.len();
        changed = true;
    }
    let does_something = words.iter().any(|word| !word.is_empty());
    Patient { rule: does_something.then(|| words.join(" ")), changed }
}

/// What a statement that looks into packets asks of them without saying so: `ip saddr` is only there in IPv4 packets.
fn implied(statement: &[&str]) -> Vec<&'static str> {
    let has = |word: &str| statement.contains(&word);
    let mut implied = Vec::new();
    for (word, condition) in [
        ("ip", ["meta", "protocol", "ip"]),
        ("ip6", ["meta", "protocol", "ip6"]),
        ("tcp", ["meta", "l4proto", "tcp"]),
        ("udp", ["meta", "l4proto", "udp"]),
    ] {
        if has(word) {
            implied.extend(condition);
        }
    }
    implied
}

/// `limit rate 5/minute [burst 5 packets]`, `limit rate 1 mbytes/second [burst 5 kbytes]`.
fn limit_len(words: &[&str]) -> usize {
    let mut len = 3;
    if words.get(len).is_some_and(|word| word.contains("bytes/")) {
        len += 1;
    }
    if words.get(len) == Some(&"burst") {
        len += 3;
    }
    len
}

/// `quota [until] 5 mbytes [used 3 kbytes]`.
fn quota_len(words: &[&str]) -> usize {
    let mut len = if words.get(1) == Some(&"until") { 4 } else { 3 };
    if words.get(len) == Some(&"used") {
        len += 3;
    }
    len
}

/// Up to the closing brace.
fn braces_len(words: &[&str]) -> usize {
    words.iter().position(|word| *word == "}").map_or(words.len(), |at| at + 1)
}

/// The words of a line of `iptables-save`, with what is in quotes as one word.
fn iptables_words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b' ' if !quoted => {
                words.push(&line[start..at]);
                start = at + 1;
            }
            _ => (),
        }
    }
    words.push(&line[start..]);
    words
}

/// A line of `iptables-save`.
pub(super) fn iptables(line: &str) -> Patient {
    let words = iptables_words(line);
    let mut kept: Vec<&str> = Vec::with_capacity(words.len());
    let mut at = 0;
    while at < words.len() {
        if words[at] != "-m" {
            kept.push(words[at]);
            at += 1;
            continue;
        }
        let ends = |word: &&str| matches!(*word, "-m" | "-j" | "-g");
        let end = words[at + 1..].iter().position(ends).map_or(words.len(), |len| at + 1 + len);
        match meeting(&words[at..end]) {
            Meeting::AsItIs => kept.extend(&words[at..end]),
            Meeting::Always => (),
            Meeting::Never => return Patient { rule: None, changed: true },
        }
        at = end;
    }
    // Only remembers who came by.
    if kept.windows(2).any(|pair| pair == ["-j", "SET"]) {
        return Patient { rule: None, changed: true };
    }
    Patient { changed: kept.len() != words.len(), rule: Some(kept.join(" ")) }
}

enum Meeting {
    AsItIs,
    Always,
    Never,
}

/// How a patient client meets one match, `-m NAME OPTION…` (iptables-extensions(8)).
fn meeting(words: &[&str]) -> Meeting {
    let has = |option: &str| words.contains(&option);
    let turned = has("!");
    let under = |holds: bool| if holds != turned { Meeting::Always } else { Meeting::Never };
    match words.get(1) {
        Some(&"limit") => Meeting::Always,
        Some(&"hashlimit") => under(!has("--hashlimit-above")),
        Some(&"connlimit") => under(!has("--connlimit-above")),
        Some(&"quota") => under(true),
        Some(&"recent") => under(has("--set")),
        _ => Meeting::AsItIs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nft_rule(rule: &str) -> Option<String> {
        let over = BTreeSet::from(["flood".to_owned()]);
        nft(rule, &over).rule
    }

    #[test]
    fn a_patient_client_is_below_every_limit() {
        for (rule, left) in [
            ("tcp dport 22 limit rate 5/minute burst 5 packets accept", Some("tcp dport 22 accept")),
            ("limit rate 1 mbytes/second burst 5 kbytes accept", Some("accept")),
            ("tcp dport 80 limit rate over 5/second drop", None),
            ("tcp dport 80 ct count over 20 drop", None),
            ("tcp dport 80 ct count 20 accept", Some("tcp dport 80 accept")),
            ("limit name \"flood\" drop", None),
            ("limit name \"calm\" accept", Some("accept")),
            ("quota over 5 mbytes drop", None),
            ("quota until 5 mbytes accept", Some("accept")),
            ("quota 5 mbytes used 3 kbytes accept", Some("accept")),
            ("accept comment \"limit rate over 1/second\"", Some("accept comment \"limit rate over 1/second\"")),
            ("accept comment \"add @x { y }\"", Some("accept comment \"add @x { y }\"")),
        ] {
            assert_eq!(nft_rule(rule).as_deref(), left, "{rule}");
        }
        let table = "table ip t {\n\tlimit a {\n\t\trate over 1/second\n\t}\n\tlimit b {\n\t\trate 1/second\n\t}\n}\n";
        assert_eq!(named_over(table), BTreeSet::from(["a".to_owned()]));
    }

    #[test]
    fn nobody_is_remembered() {
        for (rule, left) in [
            ("tcp dport 23 add @banned { ip saddr timeout 1m } drop", Some("tcp dport 23 meta protocol ip drop")),
            ("update @seen { meta mark }", None),
            ("add @seen { ip saddr limit rate over 3/minute } drop", None),
            ("add @seen { ip6 saddr limit rate 3/minute } accept", Some("meta protocol ip6 accept")),
            ("add @seen { ip saddr . tcp dport } accept", Some("meta protocol ip meta l4proto tcp accept")),
            ("ip saddr @banned drop", Some("ip saddr @banned drop")),
        ] {
            assert_eq!(nft_rule(rule).as_deref(), left, "{rule}");
        }
    }

    #[test]
    fn iptables_matches_are_met_as_well() {
        for (rule, left) in [
            ("-A INPUT -p tcp -m limit --limit 5/min --limit-burst 9 -j ACCEPT", Some("-A INPUT -p tcp -j ACCEPT")),
            ("-A INPUT -m hashlimit --hashlimit-above 5/sec --hashlimit-name x -j DROP", None),
            ("-A INPUT -m hashlimit --hashlimit-upto 5/sec --hashlimit-name x -j ACCEPT", Some("-A INPUT -j ACCEPT")),
            ("-A INPUT -m connlimit --connlimit-above 5 --connlimit-mask 32 -j DROP", None),
            ("-A INPUT -m connlimit ! --connlimit-above 5 -j ACCEPT", Some("-A INPUT -j ACCEPT")),
            ("-A INPUT -m recent --set --name A --rsource", Some("-A INPUT")),
            ("-A INPUT -m recent --update --seconds 9 --hitcount 4 --name A --rsource -j DROP", None),
            ("-A INPUT -m recent ! --rcheck --name A -j DROP", Some("-A INPUT -j DROP")),
            ("-A INPUT -j SET --add-set seen src", None),
            (
                "-A INPUT -m comment --comment \"-m limit --limit 1/s\" -j DROP",
                Some("-A INPUT -m comment --comment \"-m limit --limit 1/s\" -j DROP"),
            ),
            ("COMMIT", Some("COMMIT")),
        ] {
            assert_eq!(iptables(rule).rule.as_deref(), left, "{rule}");
        }
    }
}
