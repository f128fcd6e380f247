//! When a certificate is renewed, when something that failed is tried again, and when somebody is to be warned.
//!
//! Only decisions: time and chance are parameters. All times are wall clock, in seconds since the Unix epoch, because that is what certificates and
//! authorities mean; whoever waits looks again at least each hour ([`LOOK_S_MAX`]), so that a clock that jumps does no lasting harm.

use serde::{Deserialize, Serialize};

use crate::tls::Facts;

/// The longest sleep.
pub(super) const LOOK_S_MAX: u64 = 3600;
const MINUTE_S: u64 = 60;
const DAY_S: u64 = 86_400;
/// A note to wait longer than this is a mistake, of this host's clock or of an authority.
const WAIT_S_MAX: u64 = 8 * DAY_S;
/// Between two replacements that an authority asks for out of turn, so that one that asks each time isn't asked each time.
const HURRIED_S: u64 = DAY_S;
/// A clock that differs by more from an authority's is wrong: its certificates would be over, or not yet begun.
const CLOCK_S_MAX: u64 = DAY_S;

/// What kind of failure it was decides how soon it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Trouble {
    /// The domain doesn't point here. No authority was asked: nothing is used up by looking again.
    Check,
    /// This host is in the way: its disk is full, or its clock is wrong. No authority was asked for a certificate.
    Host,
    /// No authority could be reached.
    Unreachable,
    /// An authority said no.
    Refused,
}

/// Seconds until the next attempt after so many failures in a row: twice as long each time, up to an hour where nobody's limits are touched and up to
/// a day where they are. `chance` spreads those of many hosts: a quarter less or more.
pub(super) fn pause_s(trouble: Trouble, failures: u32, chance: u64) -> u64 {
    let (first, longest) = match trouble {
        Trouble::Check => (MINUTE_S / 4, LOOK_S_MAX),
        Trouble::Host => (MINUTE_S, LOOK_S_MAX),
        Trouble::Unreachable => (MINUTE_S, 6 * 3600),
        Trouble::Refused => (5 * MINUTE_S, DAY_S),
    };
    let pause = first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(longest);
    pause - pause / 4 + chance % (pause / 2 + 1)
}

/// Whether a note to wait until then is one of this clock's: none is longer ([`demanded_s`]).
pub(super) fn waits(until_s: u64, now_s: u64) -> bool {
    until_s > now_s && until_s - now_s <= WAIT_S_MAX
}

/// Until when an authority is left alone that demands to be left alone until then. Longer than any limit of theirs lasts, nobody is waited for.
pub(super) fn demanded_s(until_s: u64, now_s: u64) -> u64 {
    until_s.min(now_s + WAIT_S_MAX)
}

/// The authority's own word for when to renew (RFC 9773), of one certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Window {
    /// The serial number of the certificate.
    pub serial: String,
    /// A moment in the window, chosen once.
    pub renew_s: u64,
    /// When the authority is to be asked again.
    pub look_s: u64,
}

impl Window {
    /// Chooses a moment. Section 4.2: uniformly, or now if it is past.
    pub(super) fn choose(serial: &str, start_s: u64, end_s: u64, look_in_s: u64, now_s: u64, chance: u64) -> Self {
        let renew_s = start_s + chance % (end_s.saturating_sub(start_s) + 1);
        // An authority that wants to be asked every second, or never again, is asked as often as is good.
        let look_s = now_s + look_in_s.clamp(MINUTE_S, DAY_S);
        Self { serial: serial.to_owned(), renew_s, look_s }
    }
}

/// When a certificate is to be renewed: when its authority says, but for the last tenth of its time; else after two thirds of it.
pub(super) fn renew_s(facts: &Facts, window: Option<&Window>) -> u64 {
    let lifetime = facts.not_after_s.saturating_sub(facts.not_before_s);
    match window.filter(|window| window.serial == facts.serial) {
        Some(window) => window.renew_s.min(facts.not_after_s - lifetime / 10),
        None => facts.not_before_s + lifetime * 2 / 3,
    }
}

/// The same, if an authority had another one replaced out of turn at `hurried_s`.
pub(super) fn unhurried_s(facts: &Facts, renew_s: u64, hurried_s: Option<u64>) -> u64 {
    let usual_s = self::renew_s(facts, None);
    match hurried_s {
        Some(hurried_s) if renew_s < usual_s => renew_s.max(hurried_s + HURRIED_S).min(usual_s),
        _ => renew_s,
    }
}

/// Whether this host's clock can't be right, if that is an authority's.
pub(super) fn is_wrong(now_s: u64, theirs_s: u64) -> bool {
    now_s.abs_diff(theirs_s) > CLOCK_S_MAX
}

/// How bad it is that a certificate isn't renewed yet: 0 is fine, each further number worth a warning of its own. The last: it has ended.
pub(super) fn alarm(facts: &Facts, now_s: u64) -> u8 {
    let lifetime = facts.not_after_s.saturating_sub(facts.not_before_s);
    let left = facts.not_after_s.saturating_sub(now_s);
    match left {
        0 => 5,
        left if left <= lifetime / 100 => 4,
        left if left <= lifetime / 20 => 3,
        left if left <= lifetime / 10 => 2,
        left if left <= lifetime / 4 => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(not_before_s: u64, not_after_s: u64) -> Facts {
        Facts { names: vec![], not_before_s, not_after_s, must_staple: false, serial: "01".into() }
    }

    #[test]
    fn pauses_grow_to_their_limit_and_are_spread() {
        for (trouble, first, longest) in
            [(Trouble::Check, 15, 3600), (Trouble::Unreachable, 60, 21_600), (Trouble::Refused, 300, 86_400)]
        {
            assert_eq!(pause_s(trouble, 1, 0), first - first / 4);
            assert_eq!(pause_s(trouble, 1, first / 2), first - first / 4 + first / 2);
            for failures in [1, 2, 5, 30, u32::MAX] {
                for chance in [0, 1, 12_345, u64::MAX] {
                    assert!((first * 3 / 4..=longest * 5 / 4).contains(&pause_s(trouble, failures, chance)));
                }
            }
            assert!(pause_s(trouble, 20, 0) >= longest * 3 / 4);
        }
    }

    #[test]
    fn a_note_from_a_clock_that_was_wrong_is_no_reason_to_wait() {
        assert!(waits(2_000, 1_000));
        assert!(!waits(1_000, 1_000));
        assert!(!waits(40 * DAY_S, DAY_S));
    }

    #[test]
    fn whoever_demands_to_be_left_alone_for_long_is_left_alone_for_some_days() {
        for (until_s, expected_s) in [(2_000, 2_000), (40 * DAY_S, 1_000 + 8 * DAY_S), (u64::MAX, 1_000 + 8 * DAY_S)] {
            assert_eq!(demanded_s(until_s, 1_000), expected_s);
            assert!(waits(demanded_s(until_s, 1_000), 1_000));
        }
    }

    #[test]
    fn renewal_is_the_authoritys_word_or_two_thirds() {
        let facts = facts(1_000, 1_900);
        assert_eq!(renew_s(&facts, None), 1_600);
        let window = |serial, renew_s| Window { serial: String::from(serial), renew_s, look_s: 0 };
        assert_eq!(renew_s(&facts, Some(&window("01", 1_200))), 1_200);
        assert_eq!(renew_s(&facts, Some(&window("02", 1_200))), 1_600, "of another certificate");
        assert_eq!(renew_s(&facts, Some(&window("01", 5_000))), 1_810, "not after it has ended");
    }

    #[test]
    fn an_authority_that_is_always_in_a_hurry_is_asked_once_a_day() {
        let facts = facts(0, 900_000);
        assert_eq!(unhurried_s(&facts, 500, None), 500);
        assert_eq!(unhurried_s(&facts, 500, Some(400)), 400 + 86_400);
        assert_eq!(unhurried_s(&facts, 500_000, Some(400)), 500_000);
        assert_eq!(unhurried_s(&facts, 599_000, Some(598_000)), 600_000, "not later than without it");
        assert_eq!(unhurried_s(&facts, 700_000, Some(650_000)), 700_000);
    }

    #[test]
    fn a_clock_may_differ_by_hours_and_not_by_days() {
        assert!(!is_wrong(100_000, 100_000 + 80_000) && !is_wrong(180_000, 100_000));
        assert!(is_wrong(100_000, 100_000 + 90_000) && is_wrong(190_000, 100_000));
    }

    #[test]
    fn a_moment_of_the_window_is_chosen() {
        for chance in [0, 5, u64::MAX] {
            let window = Window::choose("01", 100, 200, 0, 50, chance);
            assert!((100..=200).contains(&window.renew_s));
            assert_eq!(window.look_s, 110);
        }
        assert_eq!(Window::choose("01", 200, 100, 1 << 40, 50, 7).renew_s, 200);
    }

    #[test]
    fn alarms_grow_as_the_end_comes_nearer() {
        let facts = facts(0, 1_000);
        let alarms = [0, 740, 760, 910, 960, 995, 1_000, 9_000].map(|now_s| alarm(&facts, now_s));
        assert_eq!(alarms, [0, 0, 1, 2, 3, 4, 5, 5]);
    }
}
