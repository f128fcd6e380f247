//! Certificates of a stack that come to their end: renewed under load, replaced because their authority wants it, or not to be had for weeks.

use super::certificates_authority::{Authority, Client, Ordering};
use crate::need_root;
use crate::scratch::{Host, patiently};

#[test]
fn a_certificate_is_renewed_while_somebody_asks_all_the_time() {
    const NAME: &str = "edge::certificates_renewals::a_certificate_is_renewed_while_somebody_asks_all_the_time";
    need_root!("edge::certificates_renewals::a_certificate_is_renewed_while_somebody_asks_all_the_time");
    if !Authority::is_here(NAME) {
        return;
    }
    let host = Host::new();
    let authority = Authority::start(&host, 90);
    let stack = Ordering::up(&host, 14_000);
    let first = stack.other_than("");
    let client = Client::start(&host, &authority.issued_root(&host));
    patiently("answers", || (client.counts().iter().filter(|(number, _)| *number > 20).count() == 2).then_some(()));
    // Two thirds of its time have to pass.
    let second = stack.other_than(&first);
    patiently("answers with the new one", || {
        client.counts().iter().any(|(number, what)| *number > 50 && second.ends_with(what)).then_some(())
    });
    let counts = client.end();
    assert!(counts.iter().all(|(_, what)| !what.starts_with("FAILED")), "{counts:?}");
    let count = |serial: &str| counts.iter().find(|(_, what)| serial.ends_with(what)).map_or(0, |(number, _)| *number);
    let kept = counts.iter().find(|(_, what)| what == "kept").map_or(0, |(number, _)| *number);
    assert!(count(&first) > 50 && count(&second) > 50 && kept > 100, "{first} {second} {counts:?}");
    patiently("the event", || (stack.events("certificate_obtained").len() == 2).then_some(()));
    assert_eq!(stack.events("certificate_failed"), [] as [serde_json::Value; 0]);
    stack.down();
}

#[test]
fn a_certificate_that_is_to_be_revoked_is_replaced_once() {
    const NAME: &str = "edge::certificates_renewals::a_certificate_that_is_to_be_revoked_is_replaced_once";
    need_root!("edge::certificates_renewals::a_certificate_that_is_to_be_revoked_is_replaced_once");
    if !Authority::is_here(NAME) {
        return;
    }
    let host = Host::new();
    let mut authority = Authority::start(&host, 86_400);
    authority.say_window(&host, "2100-01-01T00:00:00Z", "2100-01-02T00:00:00Z");
    let stack = Ordering::up(&host, 14_001);
    let first = stack.other_than("");
    patiently("the event", || (stack.events("certificate_obtained").len() == 1).then_some(()));
    // Before it is revoked, its window is moved into the past (RFC 9773, section 4.1).
    authority.say_window(&host, "2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z");
    stack.look();
    let second = stack.other_than(&first);
    patiently("the events", || {
        let changed = stack.events("certificate_window_changed");
        (changed.len() == 1 && stack.events("certificate_obtained").len() == 2).then_some(())
    });
    // An authority that says so of each certificate isn't asked for one after the other.
    stack.look();
    patiently("its window is known, too", || (stack.events("certificate_window_changed").len() == 2).then_some(()));
    stack.look();
    stack.look();
    assert_eq!(stack.serial(), second);
    assert_eq!(stack.events("certificate_obtained").len(), 2);
    stack.down();
}

#[test]
fn an_authority_that_is_away_for_long_takes_nothing_away_and_is_found_again() {
    const NAME: &str =
        "edge::certificates_renewals::an_authority_that_is_away_for_long_takes_nothing_away_and_is_found_again";
    need_root!("edge::certificates_renewals::an_authority_that_is_away_for_long_takes_nothing_away_and_is_found_again");
    if !Authority::is_here(NAME) {
        return;
    }
    let host = Host::new();
    let mut authority = Authority::start(&host, 30);
    let stack = Ordering::up(&host, 14_000);
    let first = stack.other_than("");
    authority.go_away();
    // Renewals in time fail, and whoever asks again and again makes the pauses longer.
    patiently("the renewal fails", || (stack.failures() >= 1).then_some(()));
    let first_failures = stack.failures();
    for more in 1..=6 {
        stack.look();
        patiently("it fails again", || (stack.failures() >= first_failures + more).then_some(()));
    }
    patiently("it has ended", || {
        stack.look();
        (stack.events("certificate_expired").len() == 1).then_some(())
    });
    let failed = stack.events("certificate_failed");
    let pause_s = |event: &serde_json::Value| {
        let at = |text: &serde_json::Value| {
            let output =
                std::process::Command::new("date").args(["+%s", "-d", text.as_str().unwrap()]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).trim().parse::<u64>().unwrap()
        };
        at(&event["details"]["again"]).saturating_sub(at(&event["time"]))
    };
    // Twice as long each time, a quarter less or more: 45 s to 75 s at first.
    assert!((30..=90).contains(&pause_s(&failed[0])), "{:?}", failed[0]);
    assert!(pause_s(&failed[6]) > 1_800, "{:?}", failed[6]);
    assert!(failed.iter().all(|event| event["details"]["why"] == "unreachable"), "{failed:?}");
    assert_eq!(stack.serial(), first, "a browser says more about an expired certificate than about none");
    // It is back, and has forgotten everybody.
    authority.come_back(&host);
    patiently("another certificate", || {
        stack.look();
        Some(stack.serial()).filter(|shown| !shown.is_empty() && *shown != first)
    });
    patiently("the failures are forgotten", || (stack.failures() == 0).then_some(()));
    stack.down();
}
