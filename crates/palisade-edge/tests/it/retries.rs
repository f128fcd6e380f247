//! Another instance gets a request only where nobody can have acted on it.

use crate::support::{DOMAIN, Edge, free_address, settings};
use crate::upstream::{Echo, raw, read_head};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Answers the first request of each connection and closes at the second.
fn forgetful() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    let address = raw(move |mut stream, _| {
        if read_head(&mut stream).is_some() {
            counting.fetch_add(1, Ordering::Relaxed);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
        if read_head(&mut stream).is_some() {
            counting.fetch_add(1, Ordering::Relaxed);
        }
    });
    (address, count)
}

#[test]
fn a_kept_connection_that_was_closed_costs_nobody_a_request() {
    let (upstream, _) = forgetful();
    let edge = Edge::with(settings(), &[upstream]);
    for _ in 0..6 {
        let (head, body) = edge.get("/");
        assert!(head.starts_with("HTTP/1.1 200 ") && body == "ok", "{head}");
    }
}

#[test]
fn what_may_have_been_acted_on_is_not_sent_twice() {
    let (upstream, count) = forgetful();
    let edge = Edge::with(settings(), &[upstream]);
    assert!(edge.get("/").0.starts_with("HTTP/1.1 200 "));
    let answer = edge.raw(format!("POST / HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[test]
fn an_instance_that_refuses_connections_is_passed_over_for_any_method() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[free_address(), echo.address, free_address()]);
    for number in 0..6 {
        let answer = edge.raw(format!(
            "POST /{number} HTTP/1.1\r\nHost: {DOMAIN}\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
        ));
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("body: 3\n"), "{answer}");
    }
    assert_eq!(echo.requests(), 6);
}

#[test]
fn a_connection_that_breaks_within_an_answer_breaks_the_clients() {
    let upstream = raw(|mut stream, _| {
        read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
    });
    let edge = Edge::with(settings(), &[upstream]);
    let answer = edge.raw(format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("abc"), "{answer}");
}

#[test]
fn the_instance_with_fewest_requests_gets_the_next() {
    // The first keeps its requests.
    let held = Arc::new(AtomicUsize::new(0));
    let holding = Arc::clone(&held);
    let slow = raw(move |mut stream, _| {
        while read_head(&mut stream).is_some() {
            holding.fetch_add(1, Ordering::Relaxed);
        }
    });
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[slow, echo.address]);
    let mut waiting = Vec::new();
    // Among equals they take turns, so one of two reaches the first.
    crate::support::wait_until("the first has one", || {
        let mut client = edge.connect();
        client.write_all(format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n").as_bytes()).expect("it is sent");
        waiting.push(client);
        std::thread::sleep(std::time::Duration::from_millis(50));
        held.load(Ordering::Relaxed) == 1
    });
    for _ in 0..10 {
        assert!(edge.get("/").0.starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(held.load(Ordering::Relaxed), 1);
}

#[test]
fn requests_go_to_new_instances_once_the_order_is_acknowledged() {
    let (old, new) = (Echo::named("old"), Echo::named("new"));
    let edge = Edge::with(settings(), &[old.address]);
    for _ in 0..3 {
        assert!(edge.get("/").0.contains("x-upstream: old"));
    }
    edge.set("web:80", &[new.address]);
    let before = old.requests();
    for _ in 0..10 {
        assert!(edge.get("/").0.contains("x-upstream: new"));
    }
    assert_eq!(old.requests(), before);
}
