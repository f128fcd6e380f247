use super::*;
use palisade_core::edge::{
    AccessLog, ConnectionLimits, DRAIN_MS, LogFormat, TlsVersion, ToBan, Upstream, UpstreamProtocol,
};
use palisade_core::names::ServiceName;
use palisade_core::place::{Place, Placed};
use std::collections::{BTreeMap, BTreeSet, HashMap};

pub(crate) fn route(domain: &str, rate: Option<Rate>) -> Route {
    Route {
        domains: vec![domain.to_owned()],
        path: "/".to_owned(),
        to: Upstream { service: ServiceName::parse("web").unwrap(), port: 80 },
        protocol: UpstreamProtocol::Http1,
        rate,
        connections_per_client: None,
        allow: vec![],
        deny: vec![],
        ban: None,
        body_bytes_max: 1 << 20,
        upstream_timeout_ms: 60_000,
        compress: BTreeSet::new(),
        hsts: None,
    }
}

pub(crate) fn edge(routes: Vec<Route>) -> Edge {
    Edge {
        routes: routes
            .into_iter()
            .map(|value| Placed { value, place: Place { file: "compose.yaml".into(), line: 1, column: 1 } })
            .collect(),
        http_port: 80,
        https_port: 443,
        redirect: false,
        certificates: BTreeMap::new(),
        default_domain: None,
        acme: None,
        tls_minimum: TlsVersion::V1_2,
        trusted_proxies: vec![],
        proxy_protocol: false,
        http3: false,
        access_log: Some(AccessLog { format: LogFormat::Json, query: false, file_bytes_max: 1 << 20, files: 3 }),
        error_pages: None,
        limits: ConnectionLimits::default(),
        drain_ms: DRAIN_MS,
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Small, and the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What nginx does for each request, with a table that never ends.
#[derive(Default)]
struct Model(HashMap<(u16, u64), (i64, u64)>);

impl Model {
    fn passes(&mut self, rate: &Rate, route: u16, client: u64, now_ms: u64) -> bool {
        let Some((excess, last_ms)) = self.0.get_mut(&(route, client)) else {
            self.0.insert((route, client), (0, now_ms));
            return true;
        };
        let now_excess = (*excess - i64::from(rate.milli_per_s) * (now_ms - *last_ms) as i64 / 1_000 + 1_000).max(0);
        if now_excess > i64::from(rate.burst) * 1_000 {
            return false;
        }
        (*excess, *last_ms) = (now_excess, now_ms);
        true
    }
}

#[test]
fn requests_are_counted_as_by_the_model_whoever_asks_and_when() {
    let mut refused_in_all = 0;
    for seed in 1..=20 {
        let mut chance = Chance(seed * 0x9e37_79b9);
        let rates: Vec<Rate> = (0..3)
            .map(|_| Rate { milli_per_s: 1 + chance.below(3_000) as u32, burst: chance.below(30) as u32 })
            .collect();
        let limits = Limits::new(&edge(rates.iter().map(|rate| route("a.example", Some(*rate))).collect()));
        let (mut model, mut now_ms, mut refused) = (Model::default(), 1, 0);
        for step in 0..20_000 {
            now_ms += [0, 0, 0, 1, 3, 40, 900][chance.below(7) as usize] * chance.below(3);
            let at = chance.below(3) as u16;
            let client = chance.below(12);
            let ip = match client {
                0..6 => IpAddr::from([198, 51, 100, client as u8]),
                // Any address of a /64 is the same client.
                _ => IpAddr::from([0x2001, 0xdb8, 0, client as u16, chance.below(9) as u16, 0, 0, 1]),
            };
            let expected = model.passes(&rates[usize::from(at)], at, client, now_ms);
            let found = limits.request(at, ip, now_ms);
            assert_eq!(found.is_ok(), expected, "seed {seed} step {step}: {found:?}");
            refused += u64::from(!expected);
        }
        let mut report = Report::default();
        limits.count(&mut report);
        limits.name(&mut report, now_ms, 1_000_000);
        refused_in_all += refused;
        assert_eq!(report.limited.values().sum::<u64>(), refused);
    }
    assert!(refused_in_all > 4_000, "{refused_in_all}");
}

#[test]
fn lists_decide_before_anything_else() {
    let mut only = route("a.example", Some(Rate { milli_per_s: 1, burst: 0 }));
    only.allow = vec!["198.51.100.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
    only.deny = vec!["198.51.100.9".parse().unwrap()];
    let limits = Limits::new(&edge(vec![only]));
    for _ in 0..3 {
        assert_eq!(limits.request(0, address("198.51.100.9"), 1).unwrap_err(), Refusal::Denied);
        assert_eq!(limits.request(0, address("203.0.113.9"), 1).unwrap_err(), Refusal::Denied);
    }
    assert!(limits.request(0, address("198.51.100.8"), 1).is_ok());
    assert!(limits.request(0, address("::ffff:198.51.100.7"), 1).is_ok());
    assert!(limits.request(0, address("2001:db8::1"), 1).is_ok());
    assert_eq!(
        limits.request(0, address("2001:db8::2"), 1).unwrap_err(),
        Refusal::TooMany { retry_after_s: 1_000 },
        "the same client: one request in a thousand seconds"
    );
    let mut report = Report::default();
    limits.count(&mut report);
    limits.name(&mut report, 1, 1);
    assert_eq!(report.limited, BTreeMap::from([("a.example/".to_owned(), 1)]), "who may not ask at all isn't limited");
}

#[test]
fn requests_at_once_are_counted_until_they_end() {
    let mut at_once = route("a.example", None);
    at_once.connections_per_client = Some(3);
    at_once.ban = Some(Ban { after: 2, for_s: 60 });
    let limits = Limits::new(&edge(vec![at_once]));
    let client = address("198.51.100.9");
    let mut slots: Vec<Slot> = (0..3).map(|_| limits.request(0, client, 1).unwrap().unwrap()).collect();
    assert_eq!(limits.request(0, client, 1).unwrap_err(), Refusal::TooMany { retry_after_s: 1 });
    assert!(limits.request(0, address("198.51.100.8"), 1).is_ok());
    slots.pop();
    slots.push(limits.request(0, client, 1).unwrap().unwrap());
    assert_eq!(limits.request(0, client, 1).unwrap_err(), Refusal::TooMany { retry_after_s: 1 });
    drop(slots);
    assert_eq!(limits.requests.clients(), 0);
    let mut report = Report::default();
    limits.count(&mut report);
    limits.name(&mut report, 1, 1);
    assert_eq!(report.to_ban, [ToBan { client: "198.51.100.9".parse().unwrap(), for_s: 60 }]);
}

#[test]
fn idle_connections_count_only_when_there_are_very_many() {
    let client = address("198.51.100.9");
    let many = |at_once: &[Option<u32>]| {
        let routes = at_once.iter().map(|&at_once| {
            let mut route = route("a.example", None);
            route.connections_per_client = at_once;
            route
        });
        let limits = Limits::new(&edge(routes.collect()));
        let connections: Vec<_> = (0..2_000).map(|_| limits.connection(client)).collect();
        let count = connections.iter().filter(|slot| slot.is_some()).count();
        drop(connections);
        assert_eq!(limits.connections.clients(), 0);
        count
    };
    assert_eq!(many(&[Some(1), Some(2)]), 256);
    assert_eq!(many(&[Some(50), Some(100)]), 1_200);
    // Who may use one route as often as he likes may have any number.
    assert_eq!(many(&[Some(1), None]), 2_000);
    assert_eq!(many(&[]), 2_000);
}

#[test]
fn a_request_that_is_over_the_rate_holds_no_place() {
    let mut both = route("a.example", Some(Rate { milli_per_s: 1_000, burst: 0 }));
    both.connections_per_client = Some(2);
    let limits = Limits::new(&edge(vec![both]));
    let client = address("198.51.100.9");
    let first = limits.request(0, client, 1).unwrap();
    for _ in 0..10 {
        assert!(limits.request(0, client, 1).is_err());
    }
    let second = limits.request(0, client, 1_001).unwrap();
    assert!(limits.request(0, client, 9_001).is_err());
    drop((first, second));
    assert!(limits.request(0, client, 20_001).is_ok());
}

#[test]
fn a_limited_client_is_not_forgotten_because_of_a_million_others() {
    let limits = Limits::new(&edge(vec![route("a.example", Some(Rate { milli_per_s: 10_000, burst: 20 }))]));
    let client = address("198.51.100.9");
    let passed = (0..40).filter(|_| limits.request(0, client, 1).is_ok()).count();
    assert_eq!(passed, 21);
    // All within the same millisecond, each once: nothing leaks away meanwhile.
    for other in 0..1_000_000_u64 {
        let bits = 0x2001_0db8_u128 << 96 | u128::from(other) << 64;
        let _ = limits.request(0, std::net::Ipv6Addr::from_bits(bits).into(), 1);
    }
    assert!(limits.request(0, client, 1).is_err());
    let table = limits.buckets.as_ref().unwrap();
    assert!(table.entries().len() <= CLIENTS);
    assert!(table.bytes() < 2_800_000, "{}", table.bytes());
}

#[test]
fn all_clients_together_get_no_more_through_than_there_is_room_for() {
    let rate = Rate { milli_per_s: 1_000, burst: 1 };
    let limits = Limits::new(&edge(vec![route("a.example", Some(rate))]));
    let passed =
        (0..1_000_000_u32).filter(|other| limits.request(0, IpAddr::from((other | 1 << 31).to_be_bytes()), 1).is_ok());
    // Two each, and no client more than that.
    assert!(passed.count() <= CLIENTS * 2);
}

#[test]
fn workers_share_what_is_counted() {
    let limits = Limits::new(&edge(vec![route("a.example", Some(Rate { milli_per_s: 1, burst: 999 }))]));
    let passed: usize = std::thread::scope(|scope| {
        let ask = || (0..5_000).filter(|_| limits.request(0, address("198.51.100.9"), 1).is_ok()).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(passed, 1_000);
}
