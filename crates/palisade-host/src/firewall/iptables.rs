//! The rules of `iptables` and `ip6tables`: ports are opened in a chain of our own, which stands behind everything that
//! denies and before what drops the rest.
//!
//! Other chains (Docker's, Tailscale's, libvirt's, fail2ban's) are never changed: all that is written is one chain and one
//! jump to it, with `--noflush`.

use palisade_core::firewall::OpenPort;
use std::collections::BTreeSet;
use std::fmt::Write;

use super::doors::{Doors, DoorsError};
use crate::nft;

/// Our chain.
const CHAIN: &str = "PALISADE";

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

fn drops_all(line: &str) -> bool {
    line == "-A INPUT -j DROP" || line == "-A INPUT -j REJECT" || line.starts_with("-A INPUT -j REJECT --reject-with ")
}

fn is_our_jump(line: &str) -> bool {
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
        Ok(())
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
