//! What `nft -j` says, as our types.
//!
//! Nothing is run in here.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use palisade_core::firewall::{Backend, FirewallRules, OpenPort};
use palisade_core::stack::{PortProto, Proto};

use super::render::{self, Chain, ForATime};

/// What our table in the kernel holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Current {
    /// What each stack opened.
    pub stacks: BTreeMap<String, FirewallRules>,
    chains: BTreeMap<String, FoundChain>,
    /// The names of its sets.
    pub(super) sets: BTreeSet<String>,
    /// What a table of ours never has: kind and name.
    others: BTreeSet<(String, String)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct FoundChain {
    /// Hook, priority, policy.
    base: Option<(String, i64, String)>,
    /// The comment of each rule.
    rules: Vec<String>,
}

/// A base chain of somebody else that drops or rejects something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignChain {
    /// `ip`, `inet` …
    pub family: String,
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
    /// Hook.
    pub hook: String,
    /// Its policy is to drop.
    pub drops_by_default: bool,
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("")
}

/// The object is the table `inet <table>`.
pub(super) fn is_table(object: &Value, table: &str) -> bool {
    object.get("table").is_some_and(|found| text(found, "family") == "inet" && text(found, "name") == table)
}

/// Reads the objects of `nft -j list table`.
pub(super) fn current(objects: &[Value]) -> Current {
    let mut current = Current::default();
    for object in objects {
        if let Some(set) = object.get("set") {
            current.sets.insert(text(set, "name").to_owned());
            let Some((kind, stack)) = text(set, "name").split_once('.') else { continue };
            let rules = current.stacks.entry(stack.to_owned()).or_default();
            if let Some(backend) = Backend::ALL.into_iter().find(|backend| backend.name() == kind) {
                rules.backend = backend;
                continue;
            }
            for element in set.get("elem").and_then(Value::as_array).into_iter().flatten() {
                add_element(rules, kind, element);
            }
        } else if let Some(chain) = object.get("chain") {
            let found = current.chains.entry(text(chain, "name").to_owned()).or_default();
            found.base = chain.get("hook").and_then(Value::as_str).map(|hook| {
                let priority = chain.get("prio").and_then(Value::as_i64).unwrap_or_default();
                (hook.to_owned(), priority, text(chain, "policy").to_owned())
            });
        } else if let Some(rule) = object.get("rule") {
            let found = current.chains.entry(text(rule, "chain").to_owned()).or_default();
            found.rules.push(text(rule, "comment").to_owned());
        } else if let Some((kind, other)) = object.as_object().and_then(|object| object.iter().next())
            && !matches!(kind.as_str(), "metainfo" | "table")
        {
            current.others.insert((kind.clone(), text(other, "name").to_owned()));
        }
    }
    current
}

fn add_element(rules: &mut FirewallRules, kind: &str, element: &Value) {
    let port_of = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    if kind == "ssh" {
        rules.ssh_ports.extend(port_of(element));
        return;
    }
    let Some(parts) = element.get("concat").and_then(Value::as_array) else { return };
    let (host_ip, rest) = match parts.as_slice() {
        [ip, rest @ ..] if rest.len() == 2 => (ip.as_str().and_then(|ip| ip.parse::<IpAddr>().ok()), rest),
        rest => (None, rest),
    };
    let [proto, port] = rest else { return };
    let proto = match proto.as_str() {
        Some("tcp") => Proto::Tcp,
        Some("udp") => Proto::Udp,
        _ => return,
    };
    let Some(port) = port_of(port) else { return };
    if kind == "allow" {
        rules.allow.insert(PortProto { port, proto });
    } else {
        rules.published.insert(OpenPort { proto, port, host_ip });
    }
}

/// IPv4 in IPv6 clothing is written, and so read back, as IPv4.
fn plain(rules: &FirewallRules) -> FirewallRules {
    let plain = |open: &OpenPort| OpenPort { host_ip: open.host_ip.map(|ip| ip.to_canonical()), ..*open };
    FirewallRules { published: rules.published.iter().map(plain).collect(), ..rules.clone() }
}

impl Current {
    /// The chains that aren't among these.
    pub(super) fn foreign_chains(&self, ours: &[Chain]) -> impl Iterator<Item = &str> {
        let names: BTreeSet<_> = ours.iter().map(|chain| chain.name).collect();
        self.chains.keys().map(String::as_str).filter(move |name| !names.contains(name))
    }

    /// In what the table differs from the one that lets in what `wanted` says; empty when it doesn't.
    pub fn differences(&self, wanted: &BTreeMap<String, FirewallRules>) -> Vec<String> {
        self.differences_from(wanted, None)
    }

    /// The same for a table that closes for a time only.
    pub(super) fn differences_from(
        &self,
        wanted: &BTreeMap<String, FirewallRules>,
        for_a_time: Option<&ForATime>,
    ) -> Vec<String> {
        let mut differences = Vec::new();
        let names: BTreeSet<_> = self.stacks.keys().chain(wanted.keys()).collect();
        for name in names {
            if self.stacks.get(name) != wanted.get(name).map(plain).as_ref() {
                differences.push(format!("the ports of stack `{name}` differ"));
            }
        }
        let chains = render::chains(wanted, for_a_time);
        let sets = render::sets(wanted, for_a_time);
        let foreign_sets = self.sets.iter().filter(|found| !sets.iter().any(|(name, _)| name == *found));
        let foreign = (self.foreign_chains(&chains).map(|name| ("chain", name)))
            .chain(foreign_sets.map(|name| ("set", name.as_str())))
            .chain(self.others.iter().map(|(kind, name)| (kind.as_str(), name.as_str())));
        differences.extend(foreign.map(|(kind, name)| format!("there is a {kind} `{name}` that is not ours")));
        for chain in chains {
            let Some(found) = self.chains.get(chain.name) else {
                differences.push(format!("chain `{}` is missing", chain.name));
                continue;
            };
            let base = chain.base.map(|base| (base.hook.to_owned(), base.priority, base.policy.to_owned()));
            if found.base != base {
                differences.push(format!("chain `{}` hangs elsewhere or has another policy", chain.name));
            }
            if !found.rules.iter().eq(chain.rules.iter().map(|(_, comment)| comment)) {
                differences.push(format!("the rules of chain `{}` differ", chain.name));
            }
        }
        differences
    }
}

/// Foreign base chains before a local process that drop or reject, themselves or in what they jump to.
pub(super) fn foreign(objects: &[Value], own_table: &str) -> Vec<ForeignChain> {
    type Key = (String, String, String);
    let key = |value: &Value, chain: &str| -> Key {
        (text(value, "family").into(), text(value, "table").into(), chain.to_owned())
    };
    let mut refusing: BTreeSet<Key> = BTreeSet::new();
    let mut jumps: Vec<(Key, Key)> = Vec::new();
    for rule in objects.iter().filter_map(|object| object.get("rule")) {
        let from = key(rule, text(rule, "chain"));
        let expressions = rule.get("expr").cloned().unwrap_or_default();
        walk(&expressions, &mut |name, value| match name {
            "drop" | "reject" | "queue" => {
                refusing.insert(from.clone());
            }
            "jump" | "goto" => jumps.push((from.clone(), key(rule, text(value, "target")))),
            _ => (),
        });
    }
    // As many rounds as chains can nest; each carries the answer one jump further up.
    loop {
        let more: Vec<_> = jumps
            .iter()
            .filter(|(from, to)| refusing.contains(to) && !refusing.contains(from))
            .map(|(from, _)| from.clone())
            .collect();
        if more.is_empty() {
            break;
        }
        refusing.extend(more);
    }
    objects
        .iter()
        .filter_map(|object| object.get("chain"))
        .filter(|chain| matches!(text(chain, "hook"), "ingress" | "prerouting" | "input"))
        .filter(|chain| (text(chain, "family"), text(chain, "table")) != ("inet", own_table))
        .filter_map(|chain| {
            let drops_by_default = text(chain, "policy") == "drop";
            (drops_by_default || refusing.contains(&key(chain, text(chain, "name")))).then(|| ForeignChain {
                family: text(chain, "family").into(),
                table: text(chain, "table").into(),
                chain: text(chain, "name").into(),
                hook: text(chain, "hook").into(),
                drops_by_default,
            })
        })
        .collect()
}

/// Calls `each` for every key of every object in `value`.
pub(crate) fn walk(value: &Value, each: &mut dyn FnMut(&str, &Value)) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| walk(value, each)),
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            each(name, value);
            walk(value, each);
        }),
        _ => (),
    }
}
