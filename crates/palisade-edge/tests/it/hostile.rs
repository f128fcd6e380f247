//! Requests that two servers could read differently never get to a second one, and whoever sends them is cut off.

use crate::support::{DOMAIN, Edge, read_all, settings};
use crate::upstream::{Echo, raw, read_head};
use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// What is sent, and how the answer begins; an empty one is none at all. The connection ends in any case.
const ATTACKS: &[(&str, &str)] = &[
    // Lengths and codings.
    ("POST / HTTP/1.1\r\nHost: H\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nContent-Length: 1, 1\r\n\r\na", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nContent-Length: +1\r\n\r\na", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nContent-Length: -1\r\n\r\na", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nContent-Length: 0x1\r\n\r\na", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nContent-Length: 1 1\r\n\r\na", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nContent-Length: 99999999999999999999\r\n\r\na", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nContent-Length:\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nContent_Length: 1\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: identity\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    (
        "POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 400 ",
    ),
    (
        "POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 400 ",
    ),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer_Encoding: x\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.0\r\nHost: H\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    // Chunks.
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: chunked\r\n\r\n1;a\nb\r\na\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\na", "HTTP/1.1 400 "),
    ("POST / HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\n\r\n", "HTTP/1.1 400 "),
    // Line ends and spaces.
    ("GET / HTTP/1.1\nHost: H\n\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: H\nA: b\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: H\r\nA: b\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: H\r\n\nGET /x HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\rHost: H\r\r", ""),
    ("GET / HTTP/1.1\r\nHost: H\r\nA: b\rC: d\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: H\r\nA: b\r\n c\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\n Host: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost : H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: H\r\nA\t: b\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: H\r\n: b\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: H\r\nA b: c\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: H\r\nno colon\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: H\r\nA: b\0c\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: H\r\nA: b\x01c\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: H\r\nA: b\x7f\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: H\r\nA\0: b\r\n\r\n", "HTTP/1.1 400 "),
    ("GET  / HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET\t/ HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / x HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("G(ET / HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    (" GET / HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET /\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.2\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / http/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1 \r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ""),
    // Whose it is.
    ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost:\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: H\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: H\r\nHost: other.example\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: H, other.example\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: H:80:80\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: H/x\r\n\r\n", "HTTP/1.1 400 "),
    ("GET / HTTP/1.1\r\nHost: a@H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET http://other.example/ HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET http://a@H/ HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    // Paths.
    ("GET /a/../b HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET /.. HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET /./a HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET /a/%2e%2e/b HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET /a/.%2e/b HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET /a%2f..%2fb HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET /a/..%5cb HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET /a/..\\b HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET /a/..;/b HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET /a%00 HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET /a%zz HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET a HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET * HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("GET /a\x7fb HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 400 "),
    ("CONNECT H:443 HTTP/1.1\r\nHost: H:443\r\n\r\n", "HTTP/1.1 405 "),
    ("TRACE / HTTP/1.1\r\nHost: H\r\n\r\n", "HTTP/1.1 405 "),
    // Not HTTP.
    ("\x16\x03\x01\x02\x00\x01\x00\x01\x0d\x0a", "HTTP/1.1 400 "),
    ("\0", "HTTP/1.1 400 "),
    ("\r\n\r\n\r\n", ""),
];

/// An edge and how many requests have come through it.
fn counted() -> (Edge, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&count);
    let upstream = raw(move |mut stream, _| {
        while let Some(head) = read_head(&mut stream) {
            if !head.contains("expected: yes") {
                counting.fetch_add(1, Ordering::Relaxed);
            }
            // It doesn't wait for the rest: an upstream that is deceived wouldn't either.
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    (Edge::with(settings(), &[upstream]), count)
}

/// `ends`: the client says that it sends no more.
fn send(edge: &Edge, attack: &[u8], piece: usize, ends: bool) -> String {
    let mut stream = edge.connect();
    for piece in attack.chunks(piece) {
        if stream.write_all(piece).is_err() {
            break;
        }
        if piece.len() < attack.len() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    if ends {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    read_all(&mut stream)
}

#[test]
fn what_is_ambiguous_is_refused_and_nothing_reaches_an_upstream() {
    let (edge, count) = counted();
    let mut wrong = Vec::new();
    for (attack, expected) in ATTACKS {
        let attack = attack
            .replace("Host: H", &format!("Host: {DOMAIN}"))
            .replace("//H", &format!("//{DOMAIN}"))
            .replace("@H", &format!("@{DOMAIN}"));
        // The body of a request may be on its way when its end turns out to be wrong.
        let may_begin = attack.contains("chunked\r\n\r\n") && !attack.contains("Content");
        for piece in [attack.len(), 7] {
            let before = count.load(Ordering::Relaxed);
            let answer = send(&edge, attack.as_bytes(), piece, expected.is_empty());
            if may_begin {
                // The upstream's thread counts when it gets to it.
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            let passed = count.load(Ordering::Relaxed) - before;
            let right = if expected.is_empty() {
                answer.is_empty() || answer.starts_with("HTTP/1.1 400 ")
            } else {
                answer.starts_with(expected)
            };
            let one = answer.matches("HTTP/1.1 ").count() <= 1;
            if !(right || may_begin && passed == 1) || !one || passed > usize::from(may_begin) {
                wrong.push(format!("{attack:?} by {piece}: {answer:?}, {passed} passed"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // It still serves.
    assert!(edge.get("/").0.starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_request_behind_a_refused_one_is_not_served() {
    let (edge, count) = counted();
    for first in [
        "POST / HTTP/1.1\r\nHost: H\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /a/../b HTTP/1.1\r\nHost: H\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: H\r\nHost: H\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: H\r\n\r\n",
    ] {
        let text =
            format!("{first}GET /admin HTTP/1.1\r\nHost: H\r\n\r\n").replace("Host: H", &format!("Host: {DOMAIN}"));
        let answer = edge.raw(text);
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
    assert_eq!(count.load(Ordering::Relaxed), 0);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    let request = |path: &str, more: &str| format!("POST {path} HTTP/1.1\r\nHost: {DOMAIN}\r\n{more}");
    let text = request("/1", "Content-Length: 3\r\n\r\nabc")
        + &request("/2", "Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n0\r\nA: b\r\n\r\n")
        + &request("/3", "Connection: close\r\n\r\n");
    let answer = edge.raw(text);
    let found: Vec<_> = answer.lines().filter(|line| line.starts_with("POST ") || line.starts_with("body: ")).collect();
    assert_eq!(found, ["POST /1", "body: 3", "POST /2", "body: 2", "POST /3", "body: 0"], "{answer}");
}

#[test]
fn what_a_client_sends_reaches_the_upstream_framed_anew() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heads = Arc::clone(&seen);
    let upstream = raw(move |mut stream, _| {
        let Some(head) = read_head(&mut stream) else { return };
        let mut body = vec![0; 13];
        let _ = stream.read_exact(&mut body);
        heads.lock().expect("no panic").push(head + &String::from_utf8_lossy(&body));
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    });
    let edge = Edge::with(settings(), &[upstream]);
    // One chunk in, one chunk out: extensions and trailers are gone.
    edge.raw(format!(
        "POST / HTTP/1.1\r\nHost: {DOMAIN}\r\nTransfer-Encoding: CHUNKED\r\nConnection: close\r\n\r\n003;a=\"b\"\r\nabc\r\n0\r\nX: y\r\n\r\n"
    ));
    let seen = seen.lock().expect("no panic");
    assert!(
        seen[0].contains("\r\ntransfer-encoding: chunked\r\n") && seen[0].ends_with("\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        "{}",
        seen[0]
    );
}
