//! Whether a change of the firewall could lock out whoever makes it, so that it has to be confirmed over a new
//! connection or is taken back.
//!
//! Pure. Who waits, who takes back and how is the host crate's business.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::firewall::FirewallRules;
use crate::stack::PortProto;

/// So long somebody has to confirm unless the file or the command line says otherwise, in milliseconds.
pub const CONFIRM_WITHIN_MS: u64 = 60_000;

/// When a change of the firewall has to be confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confirm {
    /// When it could lock out whoever makes it.
    WhenNeeded {
        /// Longest time to wait.
        within_ms: u64,
    },
    /// Whenever something changes.
    Always {
        /// Longest time to wait.
        within_ms: u64,
    },
    /// Never: somebody who knows another way in says so, or nobody is there to confirm.
    Never,
}

impl Default for Confirm {
    fn default() -> Self {
        Self::WhenNeeded { within_ms: CONFIRM_WITHIN_MS }
    }
}

/// By what people come in, of what was confirmed on this host before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaysIn {
    /// TCP ports of sshd that were let in.
    pub ssh_ports: BTreeSet<u16>,
    /// What else `x-palisade.firewall.allow` let in.
    pub allow: BTreeSet<PortProto>,
}

/// What the decision goes by.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// What Palisade's table lets in now, by stack; `None`: there is no table, and it closes nothing.
    pub before: Option<&'a BTreeMap<String, FirewallRules>>,
    /// Where whoever makes the change came in from over SSH; `None`: from this machine's own console, or a program did.
    pub operator: Option<IpAddr>,
    /// What was confirmed before.
    pub confirmed: Option<&'a WaysIn>,
}

/// How a change could lock somebody out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Risk {
    /// Nothing was closed so far, and now everything is that isn't listed: a tunnel, a port forwarded to sshd, another
    /// way in.
    ClosesAll,
    /// These ports of `allow` or of sshd are closed.
    Closes(BTreeSet<PortProto>),
}

impl WaysIn {
    /// Of rules.
    pub fn of<'a>(all: impl IntoIterator<Item = &'a FirewallRules>) -> Self {
        let mut ways = Self::default();
        for rules in all {
            ways.ssh_ports.extend(&rules.ssh_ports);
            ways.allow.extend(&rules.allow);
        }
        ways
    }
    /// Those of `self` that `other` hasn't got.
    fn without(&self, other: &Self) -> BTreeSet<PortProto> {
        let tcp = |port: &u16| PortProto { port: *port, proto: crate::stack::Proto::Tcp };
        let ports = |ways: &Self| -> BTreeSet<PortProto> {
            ways.ssh_ports.iter().map(tcp).chain(ways.allow.iter().copied()).collect()
        };
        ports(self).difference(&ports(other)).copied().collect()
    }
}

impl Confirm {
    /// Within which time, in milliseconds, `stack`'s new `rules` have to be confirmed, if they have to.
    ///
    /// They needn't be when nothing is closed that was open; when nobody came in over SSH to make the change (the
    /// console of the machine isn't cut by a firewall, and a program can't confirm); and when a firewall that let in no
    /// more ways was confirmed on this host before.
    pub fn within_ms(self, stack: &str, rules: &FirewallRules, facts: Facts<'_>) -> Option<u64> {
        match self {
            Self::Never => None,
            Self::Always { within_ms } => Some(within_ms),
            Self::WhenNeeded { within_ms } => {
                facts.operator?;
                risk(stack, rules, facts.before)?;
                let known = facts.confirmed.is_some_and(|known| known.without(&WaysIn::of([rules])).is_empty());
                (!known).then_some(within_ms)
            }
        }
    }
}

/// How `stack`'s new `rules` could lock somebody out.
pub fn risk(stack: &str, rules: &FirewallRules, before: Option<&BTreeMap<String, FirewallRules>>) -> Option<Risk> {
    if !rules.closes() {
        return None;
    }
    let closing = before.filter(|before| before.values().any(FirewallRules::closes));
    let Some(before) = closing else { return Some(Risk::ClosesAll) };
    let others = before.iter().filter(|(name, _)| *name != stack).map(|(_, rules)| rules);
    let after = WaysIn::of(others.chain([rules]));
    let closed = WaysIn::of(before.values()).without(&after);
    (!closed.is_empty()).then_some(Risk::Closes(closed))
}

impl fmt::Display for Risk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClosesAll => f.write_str("everything that isn't listed is closed"),
            Self::Closes(ports) => {
                let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
                write!(f, "{} is closed", ports.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::Proto;

    const WITHIN: Confirm = Confirm::WhenNeeded { within_ms: 7 };

    fn rules(ssh: &[u16], allow: &[u16]) -> FirewallRules {
        FirewallRules {
            ssh_ports: ssh.iter().copied().collect(),
            allow: allow.iter().map(|&port| PortProto { port, proto: Proto::Udp }).collect(),
            ..FirewallRules::default()
        }
    }

    fn over_ssh() -> Facts<'static> {
        Facts { before: None, operator: Some([192, 0, 2, 1].into()), confirmed: None }
    }

    #[test]
    fn the_first_closing_over_ssh_has_to_be_confirmed_and_no_other_first_one() {
        let rules = rules(&[22], &[]);
        assert_eq!(WITHIN.within_ms("shop", &rules, over_ssh()), Some(7));
        assert_eq!(WITHIN.within_ms("shop", &rules, Facts { operator: None, ..over_ssh() }), None);
        assert_eq!(Confirm::Never.within_ms("shop", &rules, over_ssh()), None);
        let nobody = Facts { operator: None, ..over_ssh() };
        assert_eq!(Confirm::Always { within_ms: 9 }.within_ms("shop", &rules, nobody), Some(9));
    }

    #[test]
    fn only_a_table_that_closes_locks_anybody_out() {
        let with = |backend| FirewallRules { backend, ..rules(&[22], &[]) };
        assert_eq!(risk("shop", &with(crate::firewall::Backend::Firewalld), None), None);
        let before = BTreeMap::from([("shop".to_owned(), with(crate::firewall::Backend::Firewalld))]);
        assert_eq!(risk("shop", &rules(&[22], &[]), Some(&before)), Some(Risk::ClosesAll));
    }

    #[test]
    fn what_closes_nothing_needs_no_confirmation() {
        let before = BTreeMap::from([("shop".to_owned(), rules(&[22], &[51820]))]);
        let facts = Facts { before: Some(&before), ..over_ssh() };
        let mut more = rules(&[22, 2222], &[51820]);
        more.published = [crate::firewall::OpenPort { proto: Proto::Tcp, port: 80, host_ip: None }].into();
        assert_eq!(WITHIN.within_ms("shop", &more, facts), None);
        // Another stack beside it closes nothing of the first.
        assert_eq!(WITHIN.within_ms("blog", &rules(&[22], &[]), facts), None);
        // The tunnel's port goes: whoever comes in through it is cut off.
        assert_eq!(WITHIN.within_ms("shop", &rules(&[22], &[]), facts), Some(7));
        assert_eq!(risk("shop", &rules(&[22], &[]), Some(&before)).unwrap().to_string(), "51820/udp is closed");
        assert_eq!(WITHIN.within_ms("shop", &rules(&[2222], &[51820]), facts), Some(7));
    }

    #[test]
    fn what_was_confirmed_once_is_not_asked_again_unless_it_is_narrower() {
        let confirmed = WaysIn::of([&rules(&[22], &[51820])]);
        let facts = Facts { confirmed: Some(&confirmed), ..over_ssh() };
        assert_eq!(WITHIN.within_ms("shop", &rules(&[22], &[51820]), facts), None);
        assert_eq!(WITHIN.within_ms("shop", &rules(&[22, 2222], &[51820, 9]), facts), None);
        assert_eq!(WITHIN.within_ms("shop", &rules(&[22], &[]), facts), Some(7));
        assert_eq!(WITHIN.within_ms("shop", &rules(&[2222], &[51820]), facts), Some(7));
    }
}
