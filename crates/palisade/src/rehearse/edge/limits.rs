//! Limits of the edge's routes: just so many pass as the file says.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use palisade_core::edge::{Rate, Route};

use super::door::{Asked, Door};
use super::{Asking, Burst, Later, UPGRADE, may_ask};

/// More requests at once would test the machine. Limits that let more pass are told, not tried.
const AT_ONCE_MAX: u32 = 300;
/// Requests beyond those that may pass.
const TOO_MANY: u32 = 10;
/// So long is waited at least for a limit that is used up to let more pass, and at most.
const REFILL_MIN_MS: u64 = 1_000;
const REFILL_MAX_MS: u64 = 5_000;
/// What is waited longer, as the edge counts whole milliseconds.
const REFILL_MARGIN: Duration = Duration::from_millis(50);

impl Asking<'_> {
    /// A client that asks for the first time, if it may.
    fn client_for(&mut self, route: &Route) -> Result<IpAddr, String> {
        let client = self.new_client()?;
        if may_ask(route, client) { Ok(client) } else { Err(format!("{client} may not ask, only the stranger")) }
    }

    pub(super) fn rate(&mut self, door: &Door<'_>, route: &Route) {
        let Some(rate) = route.rate else { return };
        let limit = format!("{}: its rate_limit", door.what);
        let expected = rate.burst.saturating_add(1);
        // Whoever is banned gets no answer at all.
        let refusals_max = route.ban.map_or(u32::MAX, |ban| ban.after.saturating_sub(1));
        let beyond = TOO_MANY.min(refusals_max.div_ceil(2));
        let tried = expected.saturating_add(beyond);
        if beyond == 0 {
            return self.not_tried(limit, "who is refused once is banned");
        }
        if tried > AT_ONCE_MAX {
            let why = format!("{tried} requests at once would test this machine; it tries {AT_ONCE_MAX} at most");
            return self.not_tried(limit, why);
        }
        let client = match self.client_for(route) {
            Ok(client) => client,
            Err(why) => return self.not_tried(limit, why),
        };
        // Where so many at once would be refused by `connections`, they come one after the other, which takes a moment longer.
        let at_once = route.connections_per_client.map_or(tried, |most| most.div_ceil(2).clamp(1, tried));
        let forges = !self.is_trusted(client);
        let first = match door.open_all(client, tried) {
            Ok(opened) => door.burst(opened, at_once, forges),
            Err(error) => {
                return self.wrong("edge-limit", &door.what, format!("{tried} clients can't connect: {error}"));
            }
        };
        let mut burst = Burst { tried, passed: first.passed, expected, later: None };
        let what = &door.what;
        if first.unanswered > 0 {
            let message = format!("{} of {tried} requests weren't answered at all", first.unanswered);
            self.wrong("edge-limit", what, message);
        } else if first.passed < expected || first.passed > expected.saturating_add(leaked(rate, &first, &first)) {
            let message = format!("{} of {tried} requests at once passed, and {expected} should", first.passed);
            self.wrong("edge-limit", what, message);
        } else {
            let beyond = TOO_MANY.min(refusals_max - beyond);
            burst.later = self.later(door, rate, client, (&first, expected), beyond, at_once);
        }
        self.served.limited.insert(what.clone(), burst);
    }

    /// A limit that was used up lets so many pass again as its rate says.
    fn later(
        &mut self,
        door: &Door<'_>,
        rate: Rate,
        client: IpAddr,
        (first, capacity): (&Asked, u32),
        beyond: u32,
        at_once: u32,
    ) -> Option<Later> {
        let one_ms = 1_000_000u64.checked_div(rate.milli_per_s.into()).map_or(u64::MAX, |ms| ms.saturating_add(1));
        if one_ms > REFILL_MAX_MS {
            let why = format!("the next one would pass after {} s only", one_ms.div_ceil(1_000));
            self.not_tried(format!("{}: that its rate_limit lets more pass later", door.what), why);
            return None;
        }
        let after_ms = one_ms.max(REFILL_MIN_MS);
        let expected = u64::from(rate.milli_per_s) * after_ms / 1_000_000;
        let expected = u32::try_from(expected).unwrap_or(u32::MAX).min(capacity).min(AT_ONCE_MAX);
        let tried = expected + beyond;
        let due = first.ended + Duration::from_millis(after_ms) + REFILL_MARGIN;
        let wait = || std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // Connecting takes a while, in which more could pass; but whoever connects and doesn't ask is cut some time.
        if self.edge.limits.header_timeout_ms < 2 * after_ms {
            wait();
        }
        let again = match door.open_all(client, tried) {
            Ok(opened) => {
                wait();
                door.burst(opened, at_once.min(tried), !self.is_trusted(client))
            }
            Err(error) => {
                self.wrong("edge-limit", &door.what, format!("{tried} clients can't connect: {error}"));
                return None;
            }
        };
        let most = capacity.saturating_add(leaked(rate, first, &again));
        if again.unanswered > 0 {
            let message = format!("{} of {tried} requests weren't answered at all", again.unanswered);
            self.wrong("edge-limit", &door.what, message);
        } else if again.passed < expected || first.passed.saturating_add(again.passed) > most {
            let message = format!(
                "{} of {tried} requests passed {after_ms} ms after the limit was used up, and {expected} should",
                again.passed
            );
            self.wrong("edge-limit", &door.what, message);
        }
        Some(Later { after_ms, tried, passed: again.passed, expected })
    }

    /// Requests at once that take so long as one likes: WebSockets.
    pub(super) fn connections(&mut self, door: &Door<'_>, route: &Route) {
        let Some(most) = route.connections_per_client else { return };
        let limit = format!("{}: its connections", door.what);
        if self.served.upgraded.get(&door.what) != Some(&101) {
            return self.not_tried(
                limit,
                "how long an answer takes is its application's business, unless it takes WebSockets",
            );
        }
        let tried = most.saturating_add(1);
        if tried > AT_ONCE_MAX {
            let why = format!("{tried} WebSockets at once would test this machine; it tries {AT_ONCE_MAX} at most");
            return self.not_tried(limit, why);
        }
        if route.rate.is_some_and(|rate| rate.burst < most) {
            return self.not_tried(limit, "its rate_limit doesn't let so many pass at once");
        }
        if route.ban.is_some_and(|ban| ban.after <= 1) {
            return self.not_tried(limit, "who is refused once is banned");
        }
        let client = match self.client_for(route) {
            Ok(client) => client,
            Err(why) => return self.not_tried(limit, why),
        };
        let mut open = Vec::new();
        let mut passed = 0;
        for _ in 0..tried {
            let asked = door.open(Some(client)).and_then(|mut opened| {
                let answer = door.get(&mut opened, &UPGRADE)?;
                Ok((opened, answer.status))
            });
            match asked {
                Ok((opened, status)) => {
                    passed += u32::from(status == 101);
                    open.push(opened);
                }
                Err(error) => {
                    let message = format!("the wish for a WebSocket isn't answered: {error}");
                    return self.wrong("edge-limit", &door.what, message);
                }
            }
        }
        if passed != most {
            let message = format!("{passed} of {tried} WebSockets at once passed, and {most} should");
            self.wrong("edge-limit", &door.what, message);
        }
        self.served.at_once.insert(door.what.clone(), Burst { tried, passed, expected: most, later: None });
    }
}

/// So many requests more than a burst may pass from the first one of these to the last, as asking takes a while.
fn leaked(rate: Rate, first: &Asked, last: &Asked) -> u32 {
    let ms = last.ended.duration_since(first.began).as_millis() + 1;
    u32::try_from(ms * u128::from(rate.milli_per_s) / 1_000_000).unwrap_or(u32::MAX)
}
