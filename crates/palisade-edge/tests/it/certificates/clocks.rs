//! The clock is set while certificates are served and renewed: forward past their end, and back before their beginning.
//!
//! The edge and the worker get their clock from `libfaketime`, whose difference to the host's is in a file that the test changes. The
//! authority has the host's clock, so one that is wrong is wrong for it, too.

use super::pebble::{self, Authority};
use super::stack::{Clock, Stack};
use crate::support::{DOMAIN, skipped, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_core::edge::{Answer, Challenge, Order};
use std::os::unix::fs::MetadataExt;

const DAY_S: u64 = 86_400;

/// A stack whose clock can be set; says why there is none. The clock outlives what has it.
fn stack(test: &str) -> Option<(Clock, Stack)> {
    if !pebble::is_here(test) {
        return None;
    }
    let Some(clock) = Clock::new() else {
        skipped(test, "it needs libfaketime (scripts/install-deps test)");
        return None;
    };
    let stack = Stack::with_clock(Challenge::Http01, &clock);
    Some((clock, stack))
}

/// What the edge says of when its certificate ends: nothing, if it isn't valid now.
fn ends_s(stack: &Stack) -> Option<u64> {
    match stack.edge.order(&Order::Report) {
        Answer::Report(report) => report.certificates.get(DOMAIN).copied(),
        other => panic!("{other:?}"),
    }
}

/// Which writing of the worker's notes this is: each look ends with one.
fn noted(stack: &Stack) -> Option<u64> {
    std::fs::metadata(stack.memory()).ok().map(|data| data.ino())
}

fn wait_for_a_look(stack: &Stack, what: &str, begin: impl FnOnce()) {
    let before = noted(stack);
    begin();
    wait_until(what, || noted(stack).is_some_and(|now| Some(now) != before));
}

fn said(stack: &Stack, kind: &str) -> Vec<String> {
    let text = |event: &serde_json::Value| event["details"]["text"].as_str().unwrap_or_default().to_owned();
    stack.events().iter().filter(|event| event["kind"] == kind).map(text).collect()
}

#[test]
fn a_clock_that_jumps_past_the_end_makes_the_worker_order_at_once() {
    let Some((clock, mut stack)) = stack("a clock that jumps forward") else { return };
    let mut wish = stack.wish();
    wish.validity_s = 3_600;
    let mut authority = Authority::start(wish);
    stack.order_from(vec![authority.directory()]);
    let worker = stack.start_worker_with(&clock.environment());
    wait_until("there is a certificate", || !stack.served().is_empty() && ends_s(&stack).is_some());
    let first = stack.served();
    // Nobody can give another one at first. The worker sleeps for half an hour by the clock that was right.
    authority.down();
    clock.set("+2h");
    wait_until("the jump is noticed", || !said(&stack, "certificate_failed").is_empty());
    assert_eq!(said(&stack, "certificate_expired").len(), 1, "{:?}", stack.events());
    assert_eq!(stack.served(), first, "a browser says more about an expired certificate than about none");
    assert_eq!(ends_s(&stack), None, "the edge doesn't take it for a good one");
    // It is back, and gives one that is good by both clocks.
    authority.up_for(DAY_S);
    kill(Pid::from_raw(worker.0.id().try_into().expect("a pid")), Signal::SIGHUP).expect("it runs");
    wait_until("there is a new one", || ![String::new(), first.clone()].contains(&stack.served()));
    wait_until("the edge takes it for a good one", || ends_s(&stack).is_some());
    assert_eq!(authority.orders(), 1, "{}", authority.log());
}

#[test]
fn a_clock_that_is_a_year_late_orders_nothing_and_what_is_served_stays() {
    let Some((clock, mut stack)) = stack("a clock that jumps back") else { return };
    let authority = Authority::start(stack.wish());
    stack.order_from(vec![authority.directory()]);
    let worker = stack.start_worker_with(&clock.environment());
    wait_until("there is a certificate", || stack.kinds().iter().any(|kind| kind == "certificate_served"));
    let first = stack.served();
    wait_for_a_look(&stack, "the jump is noticed", || clock.set("-365d"));
    assert_eq!(authority.orders(), 1);
    assert_eq!(stack.served(), first);
    // The certificate is lost as well. Nobody would be helped by ones that seem to come from the future.
    let kept = std::fs::read(stack.certificate()).expect("it was obtained");
    std::fs::remove_file(stack.certificate()).expect("it is there");
    let pid = Pid::from_raw(worker.0.id().try_into().expect("a pid"));
    for _ in 0..3 {
        wait_for_a_look(&stack, "it looks", || kill(pid, Signal::SIGHUP).expect("it runs"));
    }
    wait_until("it tried and failed", || said(&stack, "certificate_failed").len() >= 3);
    for text in said(&stack, "certificate_failed") {
        assert!(text.contains("this host's clock says") && text.contains("set the clock"), "{text}");
    }
    assert_eq!(authority.orders(), 1, "{}", authority.log());
    assert_eq!(stack.served(), first, "the edge serves on what it had");
    // The clock is set right: nobody has to ask for anything.
    clock.set("+0");
    wait_until("there is another one", || stack.certificate().exists());
    assert_ne!(std::fs::read(stack.certificate()).expect("it was obtained"), kept);
    wait_until("it is served", || ![String::new(), first.clone()].contains(&stack.served()));
    assert_eq!(authority.orders(), 2, "{}", authority.log());
}

#[test]
fn a_clock_that_was_ahead_leaves_no_pause_behind() {
    let Some((clock, mut stack)) = stack("a clock that was ahead") else { return };
    let authority = Authority::start(stack.wish());
    stack.order_from(vec![authority.directory()]);
    // Three days: not enough to be taken for a mistake by its length alone.
    clock.set("+3d");
    let worker = stack.start_worker_with(&clock.environment());
    wait_until("it can't have one", || !said(&stack, "certificate_failed").is_empty());
    assert!(said(&stack, "certificate_failed")[0].contains("this host's clock says"), "{:?}", stack.events());
    assert_eq!(authority.orders(), 0, "one that has ended before it comes is none: {}", authority.log());
    clock.set("+0");
    // Without a signal: within the pause that there would have been, counted from now.
    wait_until("the clock is right, so there is one", || !stack.served().is_empty());
    assert_eq!(authority.orders(), 1);
    drop(worker);
}
