//! Who is banned from the edge: its reports are judged, the host's firewall is told, and told again when it has forgotten.
//!
//! How the firewall keeps them out is in `palisade_host::firewall::bans`, who offends is counted by the edge.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use palisade_core::edge::{TO_BAN_MAX, ToBan};
use palisade_core::names::InstanceId;
use palisade_core::network::Network;
use palisade_host::agent::EventSink;
use palisade_host::firewall::bans::{Bans, CLIENTS_MAX};
use palisade_host::layout::Layout;
use palisade_host::operators;
use serde_json::json;

use crate::exit::chain;

/// So many wait to be judged at most, while that can't be done: two whole reports.
const WAITING_MAX: usize = 2 * TO_BAN_MAX;

/// The bans of a stack, as its agent knows them.
pub(super) struct Banned<'a> {
    bans: Bans,
    events: &'a EventSink,
    /// Until when. `None`: what the kernel has from before wasn't read yet.
    until: Option<BTreeMap<Network, Instant>>,
    /// What the edge has told once and nobody has judged.
    waiting: Vec<Offender>,
    /// Who is banned and has to be told of, once the firewall knows.
    new: Vec<Offender>,
    /// The firewall doesn't have it all, as it couldn't be told.
    untold: bool,
    ports: BTreeSet<u16>,
}

struct Offender {
    told_by: InstanceId,
    client: ToBan,
    trusted_proxies: Vec<Network>,
}

impl<'a> Banned<'a> {
    pub(super) fn new(layout: &Layout, events: &'a EventSink) -> Self {
        Self {
            bans: Bans::new(layout),
            events,
            until: None,
            waiting: Vec::new(),
            new: Vec::new(),
            untold: false,
            ports: BTreeSet::new(),
        }
    }

    /// Whether another report may be asked for. What it tells of it tells once; until then the edge remembers it.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() + TO_BAN_MAX <= WAITING_MAX
    }

    /// An instance of the edge told of them, once.
    pub(super) fn told(&mut self, by: &InstanceId, trusted_proxies: &[Network], clients: &[ToBan]) {
        self.waiting.extend(clients.iter().take(TO_BAN_MAX).map(|told| Offender {
            told_by: by.clone(),
            // Whatever an edge says: nobody is banned with his neighbours.
            client: ToBan { client: client_of(told.client.address()), for_s: told.for_s },
            trusted_proxies: trusted_proxies.to_vec(),
        }));
    }

    /// Bans who is to be banned from these ports, has the firewall keep who is, and lets operators in.
    pub(super) fn keep(&mut self, ports: BTreeSet<u16>) -> Result<(), String> {
        if self.until.is_none() {
            self.until = Some(self.left_by_the_last_agent()?);
        }
        if !ports.is_empty() && ports != self.ports {
            // The rule names the ports; those of a former agent aren't known.
            self.untold = true;
            self.ports = ports;
        }
        let now = Instant::now();
        let until = self.until.get_or_insert_default();
        until.retain(|_, end| *end > now);
        self.new.retain(|offender| until.contains_key(&offender.client.client));
        if until.is_empty() && self.waiting.is_empty() {
            return Ok(());
        }
        let concerned = Concerned::of(until, &self.waiting);
        let operators = operators::addresses(|ip| concerned.have(ip)).map_err(|error| {
            format!("nobody is banned, as it can't be seen who operates this host: {}", chain(&error))
        })?;
        self.let_in(&operators)?;
        self.judge(&operators, now);
        self.tell(now)?;
        for Offender { told_by, client, .. } in std::mem::take(&mut self.new) {
            self.events.append("banned", Some(&told_by), json!({ "client": client.client, "for_s": client.for_s }));
        }
        Ok(())
    }

    fn left_by_the_last_agent(&self) -> Result<BTreeMap<Network, Instant>, String> {
        let listed = self.bans.list().map_err(|error| chain(&error))?;
        let now = Instant::now();
        Ok(listed.into_iter().map(|(client, left_s)| (client, now + Duration::from_secs(left_s.into()))).collect())
    }

    /// Who is banned and has logged in since.
    fn let_in(&mut self, operators: &[IpAddr]) -> Result<(), String> {
        let until = self.until.get_or_insert_default();
        let operates = |client: &&Network| operators.iter().any(|operator| client.contains(*operator));
        let lifted: Vec<Network> = until.keys().filter(operates).copied().collect();
        if !lifted.is_empty() && self.bans.exist().map_err(|error| chain(&error))? {
            self.bans.lift(&lifted).map_err(|error| chain(&error))?;
        }
        for client in lifted {
            until.remove(&client);
            let because = "somebody is logged in from there over SSH";
            self.events.append("ban_lifted", None, json!({ "client": client, "because": because }));
        }
        Ok(())
    }

    /// Says who is banned from now on.
    fn judge(&mut self, operators: &[IpAddr], now: Instant) {
        let until = self.until.get_or_insert_default();
        for offender in std::mem::take(&mut self.waiting) {
            let ToBan { client, for_s } = offender.client;
            let room = until.len() < CLIENTS_MAX || until.contains_key(&client);
            let why = why_spared(&client, operators, &offender.trusted_proxies);
            if let Some(because) = why.or((!room).then_some("too many are banned already")) {
                let details = json!({ "client": client, "because": because });
                self.events.append("not_banned", Some(&offender.told_by), details);
                continue;
            }
            let end = now + Duration::from_secs(for_s.into());
            let known = until.entry(client).or_insert(end);
            *known = end.max(*known);
            self.new.push(offender);
        }
    }

    /// Tells the firewall of those who are new, or of all when it doesn't know the others any more.
    fn tell(&mut self, now: Instant) -> Result<(), String> {
        let exist = self.bans.exist().map_err(|error| chain(&error));
        // What can't be told now is told then, whoever is new by then.
        self.untold |= exist.is_err();
        let all = self.untold || !exist?;
        let left_s = |end: &Instant| u32::try_from(end.saturating_duration_since(now).as_secs()).unwrap_or(u32::MAX);
        let clients: Vec<_> = if all {
            self.until.iter().flatten().map(|(client, end)| (*client, left_s(end).max(1))).collect()
        } else {
            self.new.iter().map(|offender| (offender.client.client, offender.client.for_s)).collect()
        };
        let added = self.bans.add(&self.ports, &clients).map_err(|error| chain(&error));
        self.untold = added.is_err();
        added
    }
}

/// As the edge counts clients: an address of IPv4, or a /64 of IPv6.
fn client_of(address: IpAddr) -> Network {
    let address = address.to_canonical();
    Network::around(address, if address.is_ipv4() { 32 } else { 64 })
}

/// Whose logins matter: those who are banned, and those who may be. There may be very many of them, and very many connections.
struct Concerned<'a> {
    until: &'a BTreeMap<Network, Instant>,
    waiting: BTreeSet<Network>,
}

impl<'a> Concerned<'a> {
    fn of(until: &'a BTreeMap<Network, Instant>, waiting: &[Offender]) -> Self {
        Self { until, waiting: waiting.iter().map(|offender| offender.client.client).collect() }
    }

    fn have(&self, address: IpAddr) -> bool {
        let client = client_of(address);
        self.until.contains_key(&client) || self.waiting.contains(&client)
    }
}

/// Why a client must not be banned.
fn why_spared(client: &Network, operators: &[IpAddr], proxies: &[Network]) -> Option<&'static str> {
    if client.address().to_canonical().is_loopback() {
        return Some("it is this host");
    }
    if operators.iter().any(|operator| client.contains(*operator)) {
        return Some("somebody is logged in from there over SSH");
    }
    let proxy = |proxy: &Network| proxy.contains(client.address()) || client.contains(proxy.address());
    proxies.iter().any(proxy).then_some("it is one of trusted_proxies")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn whose_logins_matter_is_found_among_very_many_bans_and_connections() {
        let now = Instant::now();
        let until: BTreeMap<Network, Instant> =
            (0..65_536).map(|number| (client_of(Ipv4Addr::from_bits(number).into()), now)).collect();
        let waiting = Offender {
            told_by: InstanceId::parse("palisade-edge.1").unwrap(),
            client: ToBan { client: "2001:db8:1:2::/64".parse().unwrap(), for_s: 60 },
            trusted_proxies: Vec::new(),
        };
        let concerned = Concerned::of(&until, &[waiting]);
        for (address, expected) in
            [("0.0.255.255", true), ("::ffff:0.0.0.7", true), ("2001:db8:1:2::9", true), ("2001:db8:1:3::9", false)]
        {
            assert_eq!(concerned.have(address.parse().unwrap()), expected, "{address}");
        }
        // A moment; a comparison with each of them would take minutes.
        for number in 0..40_000 {
            assert!(!concerned.have(Ipv4Addr::from_bits(1 << 24 | number).into()));
            assert!(now.elapsed() < Duration::from_secs(30), "{number}");
        }
    }

    #[test]
    fn the_edge_keeps_offenders_while_too_many_wait_here() {
        let project = palisade_core::names::ProjectName::parse("waiting").unwrap();
        let layout = Layout { realm: "palisade-none".to_owned(), project };
        let events = EventSink::open(&layout);
        let mut banned = Banned::new(&layout, &events);
        let by = InstanceId::parse("palisade-edge.1").unwrap();
        let report: Vec<ToBan> =
            (0..TO_BAN_MAX).map(|_| ToBan { client: "198.51.100.0/24".parse().unwrap(), for_s: 60 }).collect();
        for _ in 0..2 {
            assert!(banned.has_room());
            banned.told(&by, &[], &report);
        }
        assert!(!banned.has_room());
        // Whatever it is said to be, a client is one address.
        let first = &banned.waiting[0].client.client;
        assert_eq!((banned.waiting.len(), first.to_string().as_str()), (2 * TO_BAN_MAX, "198.51.100.0"));
    }

    #[test]
    fn operators_proxies_and_the_host_itself_are_never_banned() {
        let operators: Vec<IpAddr> = vec!["192.0.2.7".parse().unwrap(), "2001:db8:1:2::9".parse().unwrap()];
        let proxies: Vec<Network> = vec!["198.51.100.0/28".parse().unwrap(), "2001:db8:5::1".parse().unwrap()];
        let why = |client: &str| why_spared(&client.parse().unwrap(), &operators, &proxies);
        assert_eq!(why("192.0.2.8"), None);
        assert_eq!(why("2001:db8:1:3::/64"), None);
        assert_eq!(why("192.0.2.7"), Some("somebody is logged in from there over SSH"));
        assert_eq!(why("2001:db8:1:2::/64"), Some("somebody is logged in from there over SSH"));
        assert_eq!(why("198.51.100.9"), Some("it is one of trusted_proxies"));
        assert_eq!(why("2001:db8:5::/64"), Some("it is one of trusted_proxies"));
        assert_eq!(why("127.0.0.1"), Some("it is this host"));
        assert_eq!(why("::1"), Some("it is this host"));
    }
}
