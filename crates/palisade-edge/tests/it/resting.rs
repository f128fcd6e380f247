//! Connections on which nobody asks for a while: what was kept for their reader is given up, and clients can't tell.

use crate::support::{DOMAIN, Edge, read_all, read_until, settings, wait_until};
use crate::upstream::Echo;
use palisade_core::edge::{Answer, Order};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longer than it takes until a connection rests.
const LONG_MS: u64 = 2_000;

fn ask(client: &mut TcpStream) {
    client.write_all(format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n").as_bytes()).expect("it is sent");
}

fn asked(edge: &Edge) -> TcpStream {
    let mut client = edge.connect();
    ask(&mut client);
    read_until(&mut client, "body: 0\n");
    client
}

fn rest() {
    std::thread::sleep(Duration::from_millis(LONG_MS));
}

#[test]
fn whoever_asks_again_after_a_rest_is_answered() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    let mut plain = asked(&edge);
    let mut in_pieces = asked(&edge);
    in_pieces.write_all(b"GET / HT").expect("it is sent");
    let mut blank = asked(&edge);
    blank.write_all(b"\r\n").expect("it is sent");
    // An answer that is taken late is owed all the time.
    let mut late = asked(&edge);
    late.write_all(format!("GET /big/8000000 HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n").as_bytes()).expect("it is sent");
    let mut body = asked(&edge);
    let head = format!("POST / HTTP/1.1\r\nHost: {DOMAIN}\r\nContent-Length: 4\r\n\r\nab");
    body.write_all(head.as_bytes()).expect("it is sent");
    for _ in 0..2 {
        rest();
        ask(&mut plain);
        let answer = read_until(&mut plain, "body: 0\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    in_pieces.write_all(format!("TP/1.1\r\nHost: {DOMAIN}\r\n\r\n").as_bytes()).expect("it is sent");
    read_until(&mut in_pieces, "body: 0\n");
    ask(&mut blank);
    read_until(&mut blank, "body: 0\n");
    body.write_all(b"cd").expect("it is sent");
    read_until(&mut body, "body: 4\n");
    read_until(&mut late, "\r\n\r\n");
    let mut answer = vec![0; 8_000_000];
    late.read_exact(&mut answer).expect("all of it");
    assert!(answer.iter().all(|&byte| byte == b'x'));
    ask(&mut late);
    read_until(&mut late, "body: 0\n");
    assert_eq!(edge.report().connections, 5);
}

#[test]
fn a_rest_hides_no_request_from_those_who_judge_it() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    let mut client = asked(&edge);
    rest();
    let smuggled = format!(
        "POST / HTTP/1.1\r\nHost: {DOMAIN}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    );
    client.write_all(smuggled.as_bytes()).expect("it is sent");
    let answer = read_all(&mut client);
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(echo.requests(), 1);
}

#[test]
fn over_tls_as_well() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    let url = format!("https://{DOMAIN}/");
    // One connection, on which each request comes three seconds after the one before.
    let said =
        edge.curl(&["--http1.1", "--rate", "20/m", "--write-out", "connections: %{num_connects}\n", &url, &url, &url]);
    let connections: Vec<&str> = said.lines().filter(|line| line.starts_with("connections: ")).collect();
    assert_eq!(connections, ["connections: 1", "connections: 0", "connections: 0"], "{said}");
    assert_eq!(echo.requests(), 3);
}

#[test]
fn resting_connections_are_told_when_the_edge_drains_and_cut_when_they_are_idle_for_too_long() {
    let echo = Echo::start();
    let mut edge = Edge::with(settings(), &[echo.address]);
    let (mut asks, mut silent) = (asked(&edge), asked(&edge));
    rest();
    assert_eq!(edge.order(&Order::Drain), Answer::Done);
    ask(&mut asks);
    let answer = read_all(&mut asks).to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 200 ") && answer.contains("connection: close"), "{answer}");
    assert_eq!(silent.read(&mut [0]).expect("an end, no reset"), 0);
    wait_until("it ends", || edge.child.try_wait().expect("it is our child").is_some());

    let (mut settings, folder) = settings();
    settings.edge.limits.idle_timeout_ms = 3_000;
    let edge = Edge::with((settings, folder), &[echo.address]);
    let mut client = asked(&edge);
    assert_eq!(read_all(&mut client), "");
    wait_until("it is forgotten", || edge.report().connections == 0);
}
