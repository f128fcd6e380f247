//! Which clients may ask, and how often: what is refused, and who was.
//!
//! Nothing in here knows of HTTP or looks at a clock: time is a parameter, in milliseconds of a clock that only goes on. All workers
//! share one [`Limits`]; its memory is bounded whatever the number of clients.
//!
//! **What an attacker with many addresses can do.** There is room for [`CLIENTS`] clients. A client whose bucket has leaked empty (two
//! seconds after its last request at 10 r/s with a burst of 20) is worth nothing and gives way first; then whoever has the least in its
//! bucket. Whoever takes its place takes over what is in it. So no state is lost that would refuse anything: to be forgotten, a client
//! that is refused would need hotter ones in all places of its set, and then they, and it, share those buckets. All clients together,
//! however many, get no more requests through than [`CLIENTS`] clients would; below `CLIENTS × rate` requests a second in all
//! (655,360 r/s at 10 r/s) buckets leak faster than they are needed and nobody is counted for anybody else.

mod bucket;
mod client;
mod concurrent;
mod offenders;
mod table;

pub use client::ClientKey;
pub use concurrent::Slot;

use bucket::Bucket;
use concurrent::Concurrent;
use offenders::Offenders;
use palisade_core::edge::{self, Ban, Edge, Rate, Report, Route};
use palisade_core::network::Network;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use table::Table;

/// Clients (at one route each) whose requests are counted at once: 2.6 MiB.
pub const CLIENTS: usize = 65_536;

/// So many connections, idle ones included, a client may have for each that its routes let it use, and in any case.
const CONNECTIONS_FOLD: u32 = 8;
const CONNECTIONS_MIN: u32 = 256;

/// The limits of all routes, shared by all workers.
#[derive(Debug)]
pub struct Limits {
    routes: Vec<RouteLimits>,
    /// Of routes: first domain and path.
    names: Vec<String>,
    /// `None` if no route has a rate.
    buckets: Option<Table<Bucket>>,
    requests: Arc<Concurrent>,
    connections: Arc<Concurrent>,
    connections_max: Option<u32>,
    offenders: Offenders,
}

#[derive(Debug)]
struct RouteLimits {
    rate: Option<Rate>,
    at_once: Option<u32>,
    allow: Vec<Network>,
    deny: Vec<Network>,
    ban: Option<Ban>,
    refused: AtomicU64,
}

/// Why a request isn't served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The client may not ask at all: 403.
    Denied,
    /// The client asks too often, or for too much at once: 429.
    TooMany {
        /// Whole seconds until one would pass: `Retry-After`.
        retry_after_s: u64,
    },
}

impl Limits {
    /// What the routes say, in their order, by which they are counted from 0.
    pub fn new(edge: &Edge) -> Self {
        let routes: Vec<&Route> = edge.routes.iter().map(|route| &route.value).collect();
        let limits = |route: &&Route| RouteLimits {
            rate: route.rate,
            at_once: route.connections_per_client,
            allow: route.allow.clone(),
            deny: route.deny.clone(),
            ban: route.ban,
            refused: AtomicU64::new(0),
        };
        let name = |route: &&Route| format!("{}{}", route.domains.first().map_or("", String::as_str), route.path);
        // A connection belongs to no route before it asks, and one on which nobody asks counts for none. Where every route says how
        // many a client may have, very many more are of no use to it, whoever it stands for.
        let at_once = routes.iter().map(|route| route.connections_per_client);
        let connections_max = at_once.collect::<Option<Vec<u32>>>().filter(|all| !all.is_empty());
        Self {
            names: routes.iter().map(name).collect(),
            buckets: routes.iter().any(|route| route.rate.is_some()).then(|| Table::new(CLIENTS)),
            routes: routes.iter().map(limits).collect(),
            requests: Arc::new(Concurrent::new()),
            connections: Arc::new(Concurrent::new()),
            connections_max: connections_max.map(|all| {
                let useful = all.into_iter().fold(0, u32::saturating_add);
                useful.saturating_mul(CONNECTIONS_FOLD).max(CONNECTIONS_MIN)
            }),
            offenders: Offenders::new(),
        }
    }

    /// A client has connected. `None`: it has too many connections already. The result counts while it is kept.
    pub fn connection(&self, client: IpAddr) -> Option<Option<Slot>> {
        match self.connections_max {
            None => Some(None),
            Some(max) => self.connections.enter((0, client.into()), max).map(Some),
        }
    }

    /// A request has come. What it holds at once (nginx's `limit_conn`: a connection whose request is being answered, or a
    /// stream) counts as long as the result is kept.
    ///
    /// # Errors
    /// It is to be refused.
    pub fn request(&self, route: u16, client: IpAddr, now_ms: u64) -> Result<Option<Slot>, Refusal> {
        let Some(limits) = self.routes.get(usize::from(route)) else { return Ok(None) };
        if !edge::may_ask(&limits.allow, &limits.deny, client) {
            return Err(Refusal::Denied);
        }
        if limits.rate.is_none() && limits.at_once.is_none() {
            return Ok(None);
        }
        let key = (route, ClientKey::from(client));
        let slot = match limits.at_once {
            None => None,
            Some(max) => Some(self.requests.enter(key, max).ok_or_else(|| self.refused(limits, key, now_ms, 1))?),
        };
        if let (Some(rate), Some(buckets)) = (limits.rate, &self.buckets) {
            // Buckets of other routes leak at their own rates.
            let level = |&(route, _): &table::Key, bucket: &Bucket| {
                let rate = self.routes.get(usize::from(route)).and_then(|limits| limits.rate);
                rate.map_or(i64::MIN, |rate| bucket.level(&rate, now_ms))
            };
            let new = |former: Option<(&table::Key, &Bucket)>| {
                let level = former.map_or(i64::MIN, |(key, bucket)| level(key, bucket));
                // What was a lot at another route may be more than fits here: then it is full.
                Bucket::taken_over(level.min(i64::from(rate.burst) * 1_000), now_ms)
            };
            let added = buckets.with(key, level, new, |bucket| bucket.add(&rate, now_ms));
            added.map_err(|full| self.refused(limits, key, now_ms, full.wait_ms))?;
        }
        Ok(slot)
    }

    fn refused(&self, limits: &RouteLimits, (route, client): table::Key, now_ms: u64, wait_ms: u64) -> Refusal {
        limits.refused.fetch_add(1, Ordering::Relaxed);
        self.offenders.note(route, client, limits.ban, now_ms);
        Refusal::TooMany { retry_after_s: wait_ms.div_ceil(1_000).max(1) }
    }

    /// Adds how many requests were refused.
    pub fn count(&self, report: &mut Report) {
        for (name, limits) in self.names.iter().zip(&self.routes) {
            let refused = limits.refused.load(Ordering::Relaxed);
            if refused > 0 {
                *report.limited.entry(name.clone()).or_default() += refused;
            }
        }
    }

    /// Adds who was refused. Who is to be banned is told once. `wall_s` is the time of day, in seconds since the Unix epoch.
    pub fn name(&self, report: &mut Report, now_ms: u64, wall_s: u64) {
        report.limited_clients.extend(self.offenders.latest(&self.names, now_ms, wall_s));
        report.to_ban.extend(self.offenders.take_to_ban());
    }
}

#[cfg(test)]
mod tests;
