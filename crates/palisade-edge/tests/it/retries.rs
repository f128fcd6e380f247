//! Another instance gets a request only where nobody can have acted on it.

use crate::support::{DOMAIN, Edge, free_address, settings, wait_until};
use crate::upstream::{Echo, Grpc, raw, read_head};
use palisade_core::edge::UpstreamProtocol;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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
    wait_until("the first has one", || {
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

/// Reads a request and ends without a word.
fn mute() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    let address = raw(move |mut stream, _| {
        if read_head(&mut stream).is_some() {
            counting.fetch_add(1, Ordering::Relaxed);
        }
    });
    (address, count)
}

#[test]
fn an_instance_that_ends_without_an_answer_is_passed_over_where_that_is_safe() {
    let ((bad, asked), echo) = (mute(), Echo::start());
    let edge = Edge::with(settings(), &[bad, echo.address]);
    for _ in 0..6 {
        assert!(edge.get("/").0.starts_with("HTTP/1.1 200 "));
    }
    assert!(asked.load(Ordering::Relaxed) > 0, "it was asked first, sometimes");
    let post = format!("POST / HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n");
    let passed = (0..6).filter(|_| edge.raw(&post).starts_with("HTTP/1.1 200 ")).count();
    assert!(passed < 6, "what may have been acted on isn't sent twice");
}

#[test]
fn a_request_that_nobody_survives_reaches_two_instances_only() {
    let all = [mute(), mute(), mute(), mute()];
    let edge = Edge::with(settings(), &all.each_ref().map(|(address, _)| *address));
    assert!(edge.get("/").0.starts_with("HTTP/1.1 502 "));
    assert_eq!(all.iter().map(|(_, count)| count.load(Ordering::Relaxed)).sum::<usize>(), 2);
}

/// It listens, and the kernel takes no connection for it any more.
struct Unreachable {
    listener: std::net::TcpListener,
    _queued: Vec<std::net::TcpStream>,
}

impl Unreachable {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind((crate::support::own_address(), 0)).expect("a free port");
        let backlog = nix::sys::socket::Backlog::new(0).expect("a number");
        nix::sys::socket::listen(&listener, backlog).expect("it listens already");
        let address = listener.local_addr().expect("it is bound");
        let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
        let queued = std::iter::from_fn(connect).collect();
        Self { listener, _queued: queued }
    }

    fn address(&self) -> std::net::SocketAddr {
        self.listener.local_addr().expect("it is bound")
    }
}

#[test]
fn reaching_instances_is_part_of_the_time_that_a_service_has() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::H2c] {
        let (mut settings, folder) = settings();
        settings.edge.routes[0].value.upstream_timeout_ms = 1_000;
        settings.edge.routes[0].value.protocol = protocol;
        let unreachable = [Unreachable::start(), Unreachable::start(), Unreachable::start()];
        let mut addresses = unreachable.each_ref().map(Unreachable::address).to_vec();
        let edge = Edge::with((settings, folder), &addresses);
        let begin = Instant::now();
        let (head, _) = edge.get("/");
        assert!(head.starts_with("HTTP/1.1 502 ") || head.starts_with("HTTP/1.1 504 "), "{head}");
        // Five seconds for each of them would be fifteen.
        assert!(begin.elapsed() < Duration::from_secs(12), "{:?}", begin.elapsed());
        // Whoever can't be reached leaves time to ask who can.
        let (echo, grpc) = (Echo::start(), Grpc::start());
        addresses.push(if protocol == UpstreamProtocol::H2c { grpc.address } else { echo.address });
        edge.set("web:80", &addresses);
        wait_until("it is asked", || edge.get("/").0.starts_with("HTTP/1.1 200 "));
    }
}
