//! What real packets have to show for a stack to be as its file says, and whether they did.
//!
//! Sending them is the host's business. What got no answer is called unknown here, never open or closed.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::edge::{granting_key, is_own};
use crate::finding::Finding;
use crate::firewall::FirewallRules;
use crate::names::ServiceName;
use crate::stack::{PortProto, Proto, Service, Stack};

/// That one service reaches a port of another, or doesn't.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerExpectation {
    /// Who connects.
    pub client: ServiceName,
    /// To whom.
    pub server: ServiceName,
    /// To which of its known ports.
    pub port: PortProto,
    /// Whether it must work.
    pub allowed: bool,
    /// Which line of the file says so.
    pub because: String,
}

impl fmt::Display for PeerExpectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}:{}", self.client, self.server, self.port)
    }
}

/// Every pair of services and every known port of the second.
pub fn peer_expectations(stack: &Stack) -> Vec<PeerExpectation> {
    let mut expectations = Vec::new();
    for client in &stack.services {
        for server in stack.services.iter().filter(|server| server.name != client.name) {
            let ports: BTreeSet<PortProto> = server.expose.iter().map(|port| port.value).collect();
            for port in ports {
                let (allowed, because) = reaches(client, server, port);
                expectations.push(PeerExpectation {
                    client: client.name.clone(),
                    server: server.name.clone(),
                    port,
                    allowed,
                    because,
                });
            }
        }
    }
    expectations
}

/// Whether a service may connect to a port of another, and which line says so.
pub(crate) fn reaches(client: &Service, server: &Service, port: PortProto) -> (bool, String) {
    let shared = client.networks.intersection(&server.networks).next();
    match (&client.connect, shared) {
        (_, None) => (false, format!("they share no network ({})", client.place)),
        (None, Some(network)) => (true, format!("both are in network `{network}`")),
        (Some(grants), Some(_)) => {
            let grant = grants.iter().find(|grant| {
                grant.value.service == server.name && grant.value.port.is_none_or(|granted| granted == port)
            });
            match grant {
                Some(grant) => (true, format!("{} at {}", granting_key(&client.name), grant.place)),
                None if is_own(&client.name) => (false, format!("x-palisade.edge needs none of it ({})", client.place)),
                None => (false, format!("x-palisade.connect of `{}` doesn't name it ({})", client.name, client.place)),
            }
        }
    }
}

/// What a probe inside the client's cgroup was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer", content = "detail")]
pub enum Answer {
    /// The connection was made; for UDP: the datagram was let go.
    Reached,
    /// The guard said no (EPERM).
    Refused,
    /// It was let through, and nobody listens (ECONNREFUSED).
    NobodyListens,
    /// No answer within the time.
    Silent,
    /// Something else.
    Failed(String),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Reached => f.write_str("reached"),
            Answer::Refused => f.write_str("refused by the guard (EPERM)"),
            Answer::NobodyListens => f.write_str("let through, but nobody listens (ECONNREFUSED)"),
            Answer::Silent => f.write_str("no answer"),
            Answer::Failed(why) => f.write_str(why),
        }
    }
}

/// What is wrong with an answer, if anything.
pub fn judge_peer(expectation: &PeerExpectation, answer: &Answer) -> Option<Finding> {
    let wrong = |id, message: String| {
        Some(
            Finding::error(id, expectation, message)
                .seen(format!("a probe inside `{}` to {}: {answer}", expectation.client, expectation.port))
                .seen(format!("expected because {}", expectation.because)),
        )
    };
    match (expectation.allowed, answer) {
        (true, Answer::Reached) | (false, Answer::Refused) => None,
        (true, Answer::NobodyListens) => wrong("peer-port-silent", "it may connect, but nobody listens there".into())
            .map(|f| {
                f.remedy("is the service up, and does it really use this port? `palisade logs` and `palisade ps` tell")
            }),
        (true, _) => wrong("peer-unreachable", "it should reach this port and doesn't".into()),
        (false, Answer::Reached | Answer::NobodyListens) => {
            wrong("peer-reachable", "it reaches a port that it was not given".into())
        }
        (false, _) => wrong("peer-unclear", "the guard should have refused this, and that is not what happened".into()),
    }
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// One door of the host, seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Door {
    /// Over which IP.
    pub family: Family,
    /// Which port.
    #[serde(flatten)]
    pub port: PortProto,
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} over {}", self.port, self.family)
    }
}

/// The doors that the firewall should leave open to the world, and why. `None`: the file says that the firewall isn't
/// Palisade's business, so nothing is expected of it.
pub fn open_doors(rules: Option<&FirewallRules>) -> Option<BTreeMap<Door, String>> {
    let rules = rules?;
    let mut doors = BTreeMap::new();
    let mut open = |port: PortProto, families: &[Family], why: &str| {
        for family in families {
            doors.entry(Door { family: *family, port }).or_insert_with(|| why.to_owned());
        }
    };
    let both = [Family::V4, Family::V6];
    for published in &rules.published {
        let families: &[Family] = match published.host_ip.map(|ip| ip.to_canonical().is_ipv4()) {
            None => &both,
            Some(true) => &both[..1],
            Some(false) => &both[1..],
        };
        open(PortProto { port: published.port, proto: published.proto }, families, "published by `ports:`");
    }
    for port in &rules.ssh_ports {
        open(PortProto { port: *port, proto: Proto::Tcp }, &both, "sshd listens there");
    }
    for port in &rules.allow {
        open(*port, &both, "x-palisade.firewall.allow");
    }
    Some(doors)
}

/// Compares the doors that let packets through with those that should. Neighbouring ports make one finding.
pub fn judge_doors(expected: &BTreeMap<Door, String>, seen: &BTreeSet<Door>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for doors in ranges(seen.iter().filter(|door| !expected.contains_key(door))) {
        findings.push(
            Finding::error("door-open", &doors, "the firewall lets packets from outside through")
                .seen(format!("a packet to {doors} arrived behind the last rule of the firewall"))
                .remedy(
                    "if that is meant, publish the port or name it in x-palisade.firewall.allow; otherwise see which \
                     rule accepts it: nft list ruleset",
                ),
        );
    }
    for (door, why) in expected.iter().filter(|(door, _)| !seen.contains(door)) {
        findings.push(
            Finding::error("door-shut", door, format!("the firewall should let packets through ({why}) and doesn't"))
                .seen(format!("no packet to {door} arrived behind the last rule of the firewall"))
                .remedy("another table may drop it, and Palisade's can only subtract: nft list ruleset"),
        );
    }
    findings
}

/// `8000-8999/tcp over IPv4` for doors in a row.
fn ranges<'a>(doors: impl Iterator<Item = &'a Door>) -> Vec<String> {
    // The order of doors is by family, port, protocol: rows are of one family and protocol.
    let mut rows: BTreeMap<(Family, Proto), Vec<(u16, u16)>> = BTreeMap::new();
    for door in doors {
        let row = rows.entry((door.family, door.port.proto)).or_default();
        match row.last_mut() {
            Some((_, last)) if u32::from(*last) + 1 == u32::from(door.port.port) => *last = door.port.port,
            _ => row.push((door.port.port, door.port.port)),
        }
    }
    let text = |(first, last): (u16, u16)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    let rows = rows.into_iter();
    rows.flat_map(|((family, proto), row)| {
        row.into_iter().map(move |range| format!("{}/{proto} over {family}", text(range)))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::Placed;
    use crate::stack::Grant;
    use crate::testing::{name, service, stack, tcp};

    fn exposing(name: &str, port: u16) -> Service {
        let mut it = service(name);
        it.expose = vec![Placed { value: tcp(port), place: it.place.clone() }];
        it.networks = BTreeSet::from(["default".to_owned()]);
        it
    }

    #[test]
    fn every_pair_and_known_port_is_expected_one_way_or_the_other() {
        let (db, mut app, mut apart) = (exposing("db", 5432), exposing("app", 80), exposing("apart", 9));
        app.connect = Some(vec![Placed {
            value: Grant { service: db.name.clone(), port: Some(tcp(5432)) },
            place: app.place.clone(),
        }]);
        apart.networks = BTreeSet::from(["other".to_owned()]);
        let said: Vec<_> = peer_expectations(&stack([db, app, apart]))
            .iter()
            .map(|e| format!("{e} {}", if e.allowed { "yes" } else { "no" }))
            .collect();
        assert_eq!(
            said,
            [
                "db → app:80/tcp yes",
                "db → apart:9/tcp no",
                "app → db:5432/tcp yes",
                "app → apart:9/tcp no",
                "apart → db:5432/tcp no",
                "apart → app:80/tcp no"
            ]
        );
    }

    #[test]
    fn a_refusal_must_come_from_the_guard_and_a_permission_must_end_at_a_listener() {
        let expectation = |allowed| PeerExpectation {
            client: name("a"),
            server: name("b"),
            port: tcp(1),
            allowed,
            because: "of a test".into(),
        };
        let id = |allowed, answer: Answer| judge_peer(&expectation(allowed), &answer).map(|finding| finding.id);
        assert_eq!(id(true, Answer::Reached), None);
        assert_eq!(id(false, Answer::Refused), None);
        assert_eq!(id(true, Answer::NobodyListens), Some("peer-port-silent"));
        assert_eq!(id(true, Answer::Refused), Some("peer-unreachable"));
        assert_eq!(id(true, Answer::Silent), Some("peer-unreachable"));
        assert_eq!(id(false, Answer::Reached), Some("peer-reachable"));
        assert_eq!(id(false, Answer::NobodyListens), Some("peer-reachable"));
        assert_eq!(id(false, Answer::Silent), Some("peer-unclear"));
    }

    #[test]
    fn a_door_too_many_and_a_door_too_few_are_both_found() {
        let rules = FirewallRules { ssh_ports: BTreeSet::from([22]), ..FirewallRules::default() };
        let expected = open_doors(Some(&rules)).unwrap();
        let door = |family, port| Door { family, port: tcp(port) };
        let mut seen = BTreeSet::from([door(Family::V4, 22), door(Family::V6, 5432)]);
        seen.extend((80..=99).map(|port| door(Family::V4, port)));
        let found: Vec<_> = judge_doors(&expected, &seen).iter().map(|f| format!("{} {}", f.id, f.subject)).collect();
        let wanted = ["door-open 80-99/tcp over IPv4", "door-open 5432/tcp over IPv6", "door-shut 22/tcp over IPv6"];
        assert_eq!(found, wanted);
        assert!(judge_doors(&expected, &expected.keys().copied().collect()).is_empty());
    }
}
