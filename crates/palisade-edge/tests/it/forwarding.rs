//! Requests reach an instance of the right upstream, and answers come back whole.

use crate::support::{DOMAIN, Edge, PATIENCE, free_address, placed, read_all, read_until, route, settings, wait_until};
use crate::upstream::{Echo, saying};
use palisade_core::edge::{Answer, Order};
use std::io::{Read, Write};
use std::time::Instant;

#[test]
fn a_request_over_plain_http_reaches_the_upstream_and_connections_are_kept() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    let mut client = edge.connect();
    for number in 0..3 {
        client
            .write_all(format!("GET /a?b={number} HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n").as_bytes())
            .expect("it is sent");
        let head = read_until(&mut client, "\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let body = read_until(&mut client, "body: 0\n");
        assert!(body.starts_with(&format!("GET /a?b={number}\n")), "{body}");
    }
    assert_eq!(echo.connections.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(edge.report().answered["2xx"], 3);
    assert_eq!(edge.report().connections, 1);
}

#[test]
fn tls_is_spoken_with_both_versions_of_http() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    for (version, expected) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let text = edge.curl(&[version, "--write-out", "%{http_version}", &format!("https://{DOMAIN}/x")]);
        assert!(text.starts_with("GET /x\n") && text.ends_with(expected), "{text}");
        let text = edge.curl(&[version, "--data-binary", &"y".repeat(100_000), &format!("https://{DOMAIN}/x")]);
        assert!(text.starts_with("POST /x\n") && text.ends_with("body: 100000\n"), "{text}");
        let text = edge.curl(&[
            version,
            "--output",
            "/dev/null",
            "--write-out",
            "%{size_download}",
            &format!("https://{DOMAIN}/big/3000000"),
        ]);
        assert_eq!(text, "3000000");
    }
}

#[test]
fn the_longest_path_of_the_domain_decides() {
    let (web, api) = (Echo::named("web"), Echo::named("api"));
    let (mut settings, folder) = settings();
    let mut second = route();
    second.path = "/api".to_owned();
    second.to.port = 81;
    settings.edge.routes.push(placed(second));
    settings.edge.default_domain = None;
    let edge = Edge::start((settings, folder));
    let upstreams = [("web:80", web.address), ("web:81", api.address)].map(|(name, address)| {
        let id = palisade_core::names::InstanceId::parse("web.1").expect("a name");
        (name.to_owned(), vec![palisade_core::edge::UpstreamInstance { id, address }])
    });
    assert_eq!(edge.order(&Order::SetUpstreams(upstreams.into())), Answer::Done);
    for (path, expected) in [("/", "web"), ("/api", "api"), ("/api/x", "api"), ("/apis", "web"), ("/x/api", "web")] {
        let (head, _) = edge.get(path);
        assert!(head.contains(&format!("x-upstream: {expected}")), "{path}: {head}");
    }
    let answer = edge.raw("GET / HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
}

#[test]
fn without_instances_and_without_anybody_who_answers_it_is_said_at_once() {
    let edge = Edge::start(settings());
    assert!(edge.get("/").0.starts_with("HTTP/1.1 503 "));
    edge.set("web:80", &[free_address(), free_address()]);
    assert!(edge.get("/").0.starts_with("HTTP/1.1 502 "));
    let echo = Echo::start();
    edge.set("web:80", &[free_address(), echo.address]);
    for _ in 0..10 {
        assert!(edge.get("/").0.starts_with("HTTP/1.1 200 "));
    }
}

#[test]
fn answers_that_are_no_http_are_bad_gateways() {
    let edge = Edge::start(settings());
    for text in [
        &b"nonsense\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA",
        b"",
    ] {
        edge.set("web:80", &[saying(text)]);
        let (head, _) = edge.get("/");
        assert!(head.starts_with("HTTP/1.1 502 "), "{:?}: {head}", String::from_utf8_lossy(text));
    }
}

#[test]
fn a_drained_edge_finishes_what_it_has_and_exits() {
    let echo = Echo::start();
    let mut edge = Edge::with(settings(), &[echo.address]);
    let mut idle = edge.connect();
    idle.write_all(format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n").as_bytes()).expect("it is sent");
    read_until(&mut idle, "body: 0\n");
    let mut asks = edge.connect();
    asks.write_all(format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n").as_bytes()).expect("it is sent");
    read_until(&mut asks, "body: 0\n");
    let mut busy = edge.connect();
    busy.write_all(format!("POST / HTTP/1.1\r\nHost: {DOMAIN}\r\nContent-Length: 4\r\n\r\nab").as_bytes())
        .expect("it is sent");
    wait_until("all are accepted", || edge.report().connections == 3);
    assert_eq!(edge.order(&Order::Drain), Answer::Done);
    // The order is taken at once; workers follow it a moment later.
    wait_until("nobody is accepted any more", || std::net::TcpStream::connect(edge.http()).is_err());
    // Who asks once more is answered, and told that this was the last time.
    asks.write_all(format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n").as_bytes()).expect("it is sent");
    let answer = read_all(&mut asks);
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.to_ascii_lowercase().contains("connection: close"),
        "{answer}"
    );
    assert_eq!(idle.read(&mut [0]).expect("an end, no reset"), 0);
    busy.write_all(b"cd").expect("it is sent");
    let head = read_until(&mut busy, "\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.to_ascii_lowercase().contains("connection: close"), "{head}");
    read_until(&mut busy, "body: 4\n");
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = edge.child.try_wait().expect("it is our child") {
            break status;
        }
        assert!(Instant::now() < deadline, "it doesn't end");
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
}
