//! Who was refused, how often, and who is to be banned for it.

use super::client::ClientKey;
use super::table::{Key, Table};
use palisade_core::edge::{Ban, LimitedClient, TO_BAN_MAX, ToBan};
use palisade_core::network::Network;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Clients that are remembered, at most; those with the most refusals within the last minute stay.
const REMEMBERED: usize = 8_192;
/// Clients in a report.
const SHOWN_MAX: usize = 100;
/// A minute is counted in parts of this length, so refusals count for 50 to 60 seconds.
const PART_MS: u64 = 10_000;
const PARTS: usize = 6;

#[derive(Clone, Copy, Debug)]
struct Offender {
    times: u64,
    last_ms: u64,
    /// By part of the minute.
    recent: [u32; PARTS],
    /// When it was last said that it is to be banned.
    told_ms: Option<u64>,
}

impl Offender {
    fn recent(&self, now_ms: u64) -> u64 {
        let last_part = part(self.last_ms);
        let age = part(now_ms).saturating_sub(last_part);
        // Parts that have passed since the last refusal hold what is older than a minute.
        let live = (PARTS as u64).saturating_sub(age);
        (0..live).map(|back| u64::from(self.recent[place(last_part - back)])).sum()
    }

    fn offends(&mut self, now_ms: u64) {
        let (last, current) = (part(self.last_ms), part(now_ms.max(self.last_ms)));
        for passed in (last + 1..=current).take(PARTS) {
            self.recent[place(passed)] = 0;
        }
        // After a long time all parts have been emptied, whichever came first.
        let count = &mut self.recent[place(current)];
        *count = count.saturating_add(1);
        self.last_ms = self.last_ms.max(now_ms);
        self.times = self.times.saturating_add(1);
    }
}

/// Counted so that a minute lies before the first one.
fn part(ms: u64) -> u64 {
    ms / PART_MS + PARTS as u64
}

fn place(part: u64) -> usize {
    // The remainder is less than the number of parts.
    (part % PARTS as u64) as usize
}

#[derive(Debug)]
pub(super) struct Offenders {
    table: Table<Offender>,
    /// For how long, until somebody asks.
    to_ban: Mutex<HashMap<ClientKey, u32>>,
}

impl Offenders {
    pub(super) fn new() -> Self {
        Self { table: Table::new(REMEMBERED), to_ban: Mutex::default() }
    }

    /// A client was refused.
    pub(super) fn note(&self, route: u16, client: ClientKey, ban: Option<Ban>, now_ms: u64) {
        let new =
            |_: Option<(&Key, &Offender)>| Offender { times: 0, last_ms: now_ms, recent: [0; PARTS], told_ms: None };
        let worth = |_: &Key, other: &Offender| {
            // Who was told of stays longer than who wasn't, so that it is told once.
            let told = other.told_ms.is_some_and(|told| now_ms.saturating_sub(told) < PART_MS * PARTS as u64);
            i64::try_from(other.recent(now_ms)).unwrap_or(i64::MAX).saturating_mul(if told { 2 } else { 1 })
        };
        self.table.with((route, client), worth, new, |offender| {
            offender.offends(now_ms);
            let Some(ban) = ban else { return };
            let before =
                offender.told_ms.is_none_or(|told| now_ms.saturating_sub(told) >= u64::from(ban.for_s) * 1_000);
            if before && offender.recent(now_ms) >= u64::from(ban.after) && self.tell(client, ban.for_s) {
                offender.told_ms = Some(now_ms);
            }
        });
    }

    /// Whoever asks next is told to ban it. Not if there is no room: then the client's next refusal is told.
    fn tell(&self, client: ClientKey, for_s: u32) -> bool {
        let mut to_ban = self.to_ban.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = to_ban.len() < TO_BAN_MAX;
        match to_ban.get_mut(&client) {
            Some(longest) => *longest = for_s.max(*longest),
            None if has_room => drop(to_ban.insert(client, for_s)),
            None => return false,
        }
        true
    }

    /// Those who were refused most lately, newest first. `wall_s` is the time of day that `now_ms` is.
    pub(super) fn latest(&self, names: &[String], now_ms: u64, wall_s: u64) -> Vec<LimitedClient> {
        let mut all = self.table.entries();
        all.sort_by_key(|(_, offender)| std::cmp::Reverse(offender.last_ms));
        let shown = all.into_iter().take(SHOWN_MAX).map(|((route, client), offender)| LimitedClient {
            client: client.into(),
            route: names.get(usize::from(route)).cloned().unwrap_or_default(),
            times: offender.times,
            last_s: wall_s.saturating_sub(now_ms.saturating_sub(offender.last_ms) / 1_000),
        });
        shown.collect()
    }

    /// Those who are to be banned, each told once.
    pub(super) fn take_to_ban(&self) -> Vec<ToBan> {
        let taken = std::mem::take(&mut *self.to_ban.lock().unwrap_or_else(PoisonError::into_inner));
        taken.into_iter().map(|(client, for_s)| ToBan { client: Network::from(client), for_s }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAN: Option<Ban> = Some(Ban { after: 10, for_s: 600 });
    const CLIENT: ClientKey = ClientKey::V4(0xc633_6407);

    #[test]
    fn a_client_is_banned_once_for_enough_refusals_within_a_minute() {
        let offenders = Offenders::new();
        for at in 0..9 {
            offenders.note(0, CLIENT, BAN, 5_000 + at);
        }
        assert_eq!(offenders.take_to_ban(), []);
        // The others are more than a minute old.
        offenders.note(0, CLIENT, BAN, 71_000);
        assert_eq!(offenders.take_to_ban(), []);
        for at in 0..30 {
            offenders.note(0, CLIENT, BAN, 80_000 + at * 100);
        }
        assert_eq!(offenders.take_to_ban(), [ToBan { client: "198.51.100.7".parse().unwrap(), for_s: 600 }]);
        for at in 0..30 {
            offenders.note(0, CLIENT, BAN, 90_000 + at * 100);
        }
        assert_eq!(offenders.take_to_ban(), []);
        // The ban is over, and it goes on.
        for at in 0..30 {
            offenders.note(0, CLIENT, BAN, 900_000 + at * 100);
        }
        assert_eq!(offenders.take_to_ban().len(), 1);
    }

    #[test]
    fn who_finds_no_room_among_those_to_be_banned_is_told_of_later() {
        let offenders = Offenders::new();
        let offend = |client: u32, now_ms| {
            (0..BAN.unwrap().after).for_each(|_| offenders.note(0, ClientKey::V4(client), BAN, now_ms));
        };
        let late = 1_024;
        let storm = u32::try_from(TO_BAN_MAX).unwrap() + late;
        (0..storm).for_each(|client| offend(client, 5_000));
        let first = offenders.take_to_ban();
        assert_eq!(first.len(), TO_BAN_MAX);
        // They go on while the first are banned.
        (0..storm).for_each(|client| offend(client, 6_000));
        let known: std::collections::BTreeSet<_> = first.iter().map(|to_ban| to_ban.client).collect();
        let new = offenders.take_to_ban().iter().filter(|to_ban| !known.contains(&to_ban.client)).count();
        assert_eq!(new, usize::try_from(late).unwrap());
    }

    #[test]
    fn slow_offenders_are_not_banned_however_long_they_offend() {
        let offenders = Offenders::new();
        for at in 0..1_000 {
            offenders.note(0, CLIENT, BAN, at * 7_000);
        }
        assert_eq!(offenders.take_to_ban(), []);
        let latest = offenders.latest(&["shop.example/".to_owned()], 7_000_000, 1_000_000);
        assert_eq!(latest.len(), 1);
        assert_eq!((latest[0].times, latest[0].last_s, latest[0].route.as_str()), (1_000, 999_993, "shop.example/"));
    }

    #[test]
    fn many_others_do_not_make_a_heavy_offender_forgotten() {
        let offenders = Offenders::new();
        for _ in 0..9 {
            offenders.note(0, CLIENT, BAN, 5_000);
        }
        for client in 0..200_000 {
            offenders.note(0, ClientKey::V6(client), BAN, 5_000);
        }
        offenders.note(0, CLIENT, BAN, 6_000);
        assert_eq!(offenders.take_to_ban().len(), 1);
        let latest = offenders.latest(&[], 6_000, 1_000);
        assert_eq!(latest.len(), 100);
        assert_eq!(latest[0].client, Network::from(CLIENT));
    }
}
