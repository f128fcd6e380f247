//! The rules of `iptables` and `ip6tables`: ports are opened in a chain of our own, which stands behind everything that
//! denies and before what drops the rest.
//!
//! Other chains (Docker's, Tailscale's, libvirt's, fail2ban's) are never changed: all that is written is one chain and one
//! jump to it, with `--noflush`; and the same in the file that the distribution loads at boot (`iptables_kept`).

use palisade_core::firewall::OpenPort;
use palisade_core::stack::PortProto;
use std::collections::BTreeSet;
use std::fmt::{self, Write};

use super::doors::{Doors, DoorsError};
use super::iptables_kept;
use crate::nft;

/// Our chain.
pub(super) const CHAIN: &str = "PALISADE";

/// The programs that have the rules of one family.
#[derive(Clone, Copy, Debug)]
struct Family {
    /// `iptables-nft`, `ip6tables-legacy` …
    program: &'static str,
    ipv6: bool,
}

/// The families whose rules decide what comes in.
pub(super) struct Iptables {
    families: Vec<Family>,
}

impl Iptables {
    /// `None` when no rules of iptables drop what isn't let in.
    pub(super) fn find() -> Result<Option<Self>, DoorsError> {
        let mut families = Vec::new();
        for family in candidates() {
            if decides(&family.input()?) || family.input()?.iter().any(|rule| is_our_jump(rule)) {
                families.push(family);
            }
        }
        Ok((!families.is_empty()).then_some(Self { families }))
    }
}

/// Where there are rules, perhaps in both ways that they can be spoken: asked without making any, as `iptables` does when it is only run.
fn candidates() -> Vec<Family> {
    let mut found = Vec::new();
    let tables = nft::json(&["list", "tables"]).unwrap_or_default();
    for (ipv6, kernel, new, old) in
        [(false, "ip", "iptables-nft", "iptables-legacy"), (true, "ip6", "ip6tables-nft", "ip6tables-legacy")]
    {
        let is_filter = |object: &serde_json::Value| {
            let table = &object["table"];
            table["family"] == kernel && table["name"] == "filter"
        };
        let names = std::fs::read_to_string(format!("/proc/thread-self/net/{kernel}_tables_names")).unwrap_or_default();
        if tables.iter().any(is_filter) {
            found.push(Family { program: new, ipv6 });
        }
        if names.lines().any(|name| name == "filter") {
            found.push(Family { program: old, ipv6 });
        }
    }
    found
}

/// Whether rules of iptables decide what comes in.
pub(crate) fn runs() -> bool {
    candidates().into_iter().any(|family| family.input().is_ok_and(|input| decides(&input)))
}

/// The policy of `INPUT` drops, or its last rule drops everything.
fn decides(input: &[String]) -> bool {
    input.iter().any(|line| line == "-P INPUT DROP") || input.iter().any(|line| drops_all(line))
}

pub(super) fn drops_all(line: &str) -> bool {
    line == "-A INPUT -j DROP" || line == "-A INPUT -j REJECT" || line.starts_with("-A INPUT -j REJECT --reject-with ")
}

pub(super) fn is_our_jump(line: &str) -> bool {
    line == format!("-A INPUT -j {CHAIN}")
}

impl Family {
    fn run(self, arguments: &[&str], input: &str) -> Result<String, DoorsError> {
        // A lock that somebody else holds is waited for.
        Ok(nft::run(self.program, &[&["-w", "10"], arguments].concat(), input)?)
    }
    /// The lines of `-S INPUT`.
    fn input(self) -> Result<Vec<String>, DoorsError> {
        Ok(self.run(&["-S", "INPUT"], "")?.lines().map(str::to_owned).collect())
    }
    /// The lines of our chain; empty when it isn't there.
    fn chain(self) -> Vec<String> {
        let listed = self.run(&["-S", CHAIN], "").unwrap_or_default();
        listed.lines().filter(|line| line.starts_with("-A ")).map(str::to_owned).collect()
    }
    fn serves(self, door: &OpenPort) -> bool {
        door.host_ip.is_none_or(|ip| ip.is_ipv6() == self.ipv6)
    }
    /// A port as a rule of our chain, as `iptables -S` prints it.
    fn rule(self, door: &OpenPort) -> String {
        let OpenPort { proto, port, host_ip } = door;
        let prefix = if self.ipv6 { 128 } else { 32 };
        let to = host_ip.map_or_else(String::new, |ip| format!("-d {ip}/{prefix} "));
        format!("-A {CHAIN} {to}-p {proto} -m {proto} --dport {port} -j ACCEPT")
    }
    /// Replaces our chain in one transaction; one without rules goes, with the jump to it.
    fn replace(self, rules: &BTreeSet<String>) -> Result<(), DoorsError> {
        let input = self.input()?;
        let jumps = input.iter().filter(|line| is_our_jump(line)).count();
        let mut text = format!("*filter\n:{CHAIN} - [0:0]\n");
        for rule in rules {
            let _ = writeln!(text, "{rule}");
        }
        if rules.is_empty() {
            text.push_str(&format!("-D INPUT -j {CHAIN}\n").repeat(jumps));
            let _ = writeln!(text, "-X {CHAIN}");
        } else if jumps == 0 {
            // Behind every ban, before what drops the rest.
            let last = input.iter().filter(|line| line.starts_with("-A ")).position(|line| drops_all(line));
            let _ = match last {
                Some(index) => writeln!(text, "-I INPUT {} -j {CHAIN}", index + 1),
                None => writeln!(text, "-A INPUT -j {CHAIN}"),
            };
        }
        text.push_str("COMMIT\n");
        let restore = match self.program {
            "iptables-nft" => "iptables-nft-restore",
            "ip6tables-nft" => "ip6tables-nft-restore",
            "iptables-legacy" => "iptables-legacy-restore",
            _ => "ip6tables-legacy-restore",
        };
        nft::run(restore, &["-w", "10", "--noflush"], &text)?;
        iptables_kept::keep(self.ipv6, rules).map_err(DoorsError::Kept)
    }
    /// A rule of somebody else that does nothing but let everybody in to this port, and those that follow it.
    fn plain_rule(self, port: PortProto) -> Result<Option<PlainRule>, DoorsError> {
        let PortProto { port, proto } = port;
        let each = ["", "-m state --state NEW ", "-m conntrack --ctstate NEW "];
        let [a, b, c] = each.map(|new| format!("-A INPUT -p {proto} {new}-m {proto} --dport {port} -j ACCEPT"));
        let [d, e] = [1, 2].map(|at| format!("-A INPUT -p {proto} -m {proto} --dport {port} {}-j ACCEPT", each[at]));
        let input = self.input()?;
        let mut rules = input.into_iter().filter(|line| line.starts_with("-A "));
        let found = rules.find(|line| [&a, &b, &c, &d, &e].contains(&line));
        Ok(found.map(|rule| PlainRule { family: self, rule, following: rules.collect() }))
    }
}

/// A rule of somebody else that lets everybody in to one port.
#[derive(Clone, Debug)]
pub(super) struct PlainRule {
    family: Family,
    rule: String,
    following: Vec<String>,
}

/// The rules that let everybody in to this port and do nothing else.
pub(super) fn plain_rules(port: PortProto) -> Result<Vec<PlainRule>, DoorsError> {
    let mut found = Vec::new();
    for family in candidates() {
        found.extend(family.plain_rule(port)?);
    }
    Ok(found)
}

impl fmt::Display for PlainRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.family.program, self.rule)
    }
}

impl PlainRule {
    fn words(&self) -> Vec<&str> {
        self.rule.split_whitespace().skip(2).collect()
    }
    /// Takes it away, also from the file that is loaded at boot.
    pub(super) fn remove(&self) -> Result<(), DoorsError> {
        self.family.run(&[&["-D", "INPUT"][..], &self.words()].concat(), "")?;
        iptables_kept::forget(self.family.ipv6, &self.rule).map_err(DoorsError::Kept)
    }
    /// Puts it where it was.
    pub(super) fn put_back(&self) -> Result<(), DoorsError> {
        // Others may have gone or come meanwhile: before the first of those that followed it.
        let now: Vec<String> = self.family.input()?.into_iter().filter(|line| line.starts_with("-A ")).collect();
        let at = self.following.iter().find_map(|line| now.iter().rposition(|other| other == line));
        let number = (at.unwrap_or(now.len()) + 1).to_string();
        self.family.run(&[&["-I", "INPUT", &number][..], &self.words()].concat(), "")?;
        iptables_kept::remember(self.family.ipv6, &self.rule).map_err(DoorsError::Kept)
    }
}

impl Doors for Iptables {
    fn zones(&self) -> Result<BTreeSet<String>, DoorsError> {
        Ok([String::new()].into())
    }
    fn is_open(&self, _zone: &str, door: &OpenPort) -> Result<bool, DoorsError> {
        for family in self.families.iter().filter(|family| family.serves(door)) {
            let jumps = family.input()?.iter().any(|line| is_our_jump(line));
            if !jumps || !family.chain().contains(&family.rule(door)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
    fn open(&self, _zone: &str, door: &OpenPort) -> Result<(), DoorsError> {
        for family in self.families.iter().filter(|family| family.serves(door)) {
            let mut rules: BTreeSet<String> = family.chain().into_iter().collect();
            rules.insert(family.rule(door));
            family.replace(&rules)?;
        }
        Ok(())
    }
    fn close(&self, _zone: &str, door: &OpenPort) -> Result<(), DoorsError> {
        for family in self.families.iter().filter(|family| family.serves(door)) {
            let mut rules: BTreeSet<String> = family.chain().into_iter().collect();
            if rules.remove(&family.rule(door)) {
                family.replace(&rules)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn only_rules_that_drop_everything_decide() {
        assert!(decides(&lines("-P INPUT DROP")));
        assert!(decides(&lines(
            "-P INPUT ACCEPT\n-A INPUT -i lo -j ACCEPT\n-A INPUT -j REJECT --reject-with icmp-host-prohibited"
        )));
        // Docker, Tailscale and fail2ban alone leave the rest open.
        assert!(!decides(&lines(
            "-P INPUT ACCEPT\n-A INPUT -j ts-input\n-A INPUT -p tcp -j f2b-sshd\n-A INPUT -s 192.0.2.1/32 -j DROP"
        )));
        assert!(!decides(&[]));
    }
}
