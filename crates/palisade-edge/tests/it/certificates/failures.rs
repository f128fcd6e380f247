//! Certificates that can't be had now: why is said, nobody is asked too often, and what is served stays.

use super::pebble::{self, Authority};
use super::stack::Stack;
use crate::support::{DOMAIN, free_address, wait_until};
use palisade_core::edge::Challenge;
use palisade_edge::acme::Outcome;
use serde_json::Value;
use std::net::IpAddr;

#[test]
fn a_domain_that_points_elsewhere_is_found_out_before_an_authority_is_asked() {
    for challenge in [Challenge::Http01, Challenge::TlsAlpn01] {
        let mut stack = Stack::new(challenge);
        // Another stack's: it serves, but not this one's answers.
        let other = Stack::new(challenge);
        stack.worker.challenge_port = other.worker.challenge_port;
        let text = stack.fail();
        assert!(text.starts_with("shop.example is 127."), "{text}");
        assert!(text.contains("that is not this host's edge, or something stands before it"), "{text}");
        if challenge == Challenge::Http01 {
            assert!(text.contains("404 Not Found"), "{text}");
        }
        assert!(stack.worker.state.join("accounts").read_dir().expect("the folder is there").next().is_none());
        // Nobody listens, and the address is this host's.
        stack.worker.challenge_port = Some(free_address().port());
        stack.wait_over();
        let text = stack.fail();
        assert!(text.contains("which is this host, but nobody listens at"), "{text}");
        // No address.
        stack.worker.addresses.insert(DOMAIN.to_owned(), vec![]);
        stack.wait_over();
        let text = stack.fail();
        assert!(text.contains("has no address in the DNS"), "{text}");
        assert_eq!(stack.kinds(), ["certificate_failed"; 3]);
        assert_eq!(stack.remembered()["failures"], 3);
    }
}

#[test]
fn an_address_that_cant_be_seen_from_here_is_left_to_the_authority() {
    if !pebble::is_here("an address behind a router") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let authority = Authority::start(stack.wish());
    stack.order_from(vec![authority.directory()]);
    // Nothing leads there: a test's network (RFC 5737) stands for a public address that the router doesn't lead back.
    let outside: IpAddr = "192.0.2.7".parse().expect("an address");
    stack.worker.addresses.insert(DOMAIN.to_owned(), vec![outside]);
    if std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect((outside, 80))).is_ok() {
        eprintln!("a route leads to {outside}: this waits until nobody answers");
    }
    stack.obtain();
    assert_eq!(stack.kinds()[0], "certificate_check_unsure");
}

#[test]
fn what_the_authority_found_wrong_is_said_and_it_is_left_alone_for_a_while() {
    if !pebble::is_here("a failed challenge") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    // It looks where nobody listens, as if its DNS were another.
    let mut wish = stack.wish();
    wish.http = free_address();
    let authority = Authority::start(wish);
    stack.order_from(vec![authority.directory()]);
    let text = stack.fail();
    assert!(text.contains("the authority didn't accept the challenge") && text.contains("connection"), "{text}");
    let (asked, events) = (authority.log().len(), stack.events().len());
    // Also after a restart: what is remembered is in a file.
    let outcome = stack.look();
    let Outcome::Waiting { text: again, again_s } = outcome else { panic!("{outcome:?}") };
    assert_eq!(again, text);
    let now_s = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    assert!((now_s + 60..now_s + 400).contains(&again_s), "{again_s} at {now_s}");
    assert_eq!(authority.log().len(), asked);
    assert_eq!(stack.events().len(), events);
    // The clock was wrong when it was noted: that is no reason to wait for years.
    let wrong_s = now_s + 400 * 86_400;
    stack.note(|memory| {
        memory["again_s"] = wrong_s.into();
        memory["refused"][&authority.directory().url] = wrong_s.into();
    });
    stack.fail();
    assert!(authority.log().len() > asked);
    assert_eq!(stack.remembered()["failures"], 2);
}

#[test]
fn an_authority_may_be_away_and_come_back() {
    if !pebble::is_here("an authority that is away") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let mut wish = stack.wish();
    wish.validity_s = 30;
    let mut authority = Authority::start(wish);
    stack.order_from(vec![authority.directory()]);
    stack.obtain();
    let first = stack.served();
    authority.down();
    // The renewal is due at once if two thirds of the time are over.
    wait_until("the renewal fails", || matches!(stack.look(), Outcome::Waiting { .. }));
    assert_eq!(stack.served(), first, "what there is is served on");
    wait_until("somebody is warned until the end, and after it", || {
        stack.wait_over();
        let _ = stack.look();
        stack.kinds().iter().any(|kind| kind == "certificate_expired")
    });
    assert!(stack.kinds().iter().filter(|kind| *kind == "certificate_expiring").count() <= 4, "{:?}", stack.kinds());
    assert_eq!(stack.served(), first, "a browser says more about an expired certificate than about none");
    // It is back, and has forgotten everybody, as such authorities do: the account is made anew.
    authority.up();
    stack.wait_over();
    stack.obtain();
    assert_ne!(stack.served(), first);
    assert_eq!(stack.remembered()["failures"], 0);
}

#[test]
fn a_worker_that_is_killed_goes_on_where_it_was() {
    if !pebble::is_here("a killed worker") {
        return;
    }
    // Killed as soon as this can be seen.
    type Seen = fn(&Stack) -> bool;
    let steps: [(&str, Seen); 4] = [
        ("the account is made", |stack| {
            stack.worker.state.join("accounts").read_dir().is_ok_and(|mut entries| entries.next().is_some())
        }),
        ("the order is made", |stack| stack.pending() != Value::Null),
        ("the challenge is answered", |stack| {
            let answers = stack.worker.folder.join("http-01").read_dir();
            answers.is_ok_and(|entries| {
                entries.flatten().any(|entry| {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    !name.starts_with('.') && !name.starts_with("palisade-look-")
                })
            })
        }),
        ("the certificate is written", |stack| stack.certificate().exists()),
    ];
    for (what, seen) in steps {
        let mut stack = Stack::new(Challenge::Http01);
        let mut wish = stack.wish();
        wish.slow_s = Some(5);
        let authority = Authority::start(wish);
        stack.order_from(vec![authority.directory()]);
        let worker = stack.start_worker();
        wait_until(what, || seen(&stack));
        drop(worker);
        let pending = stack.pending();
        let outcome = stack.look();
        assert!(matches!(outcome, Outcome::Obtained { .. } | Outcome::Kept { .. }), "{what}: {outcome:?}");
        let file = std::fs::read_to_string(stack.certificate()).expect("it was obtained");
        if let Some(key) = pending["key"].as_str() {
            assert!(file.starts_with(key), "{what}: the order that was on its way was gone on with");
        }
        assert_ne!(stack.served(), "", "{what}");
        assert!(stack.worker.folder.join("http-01").read_dir().expect("it is there").next().is_none(), "{what}");
        let issued = authority.log().matches("Issued certificate").count();
        assert!(
            issued <= 1 || what == "the certificate is written",
            "{what}: {issued} certificates\n{}",
            authority.log()
        );
    }
}
