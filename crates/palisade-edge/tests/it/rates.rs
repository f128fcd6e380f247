//! Clients that take or send a body more slowly than `body_rate` are cut; those that are a little faster aren't. Each test takes as
//! long as it takes to measure that, which is ten seconds at least.

use crate::frames::{Client, DATA, END_STREAM, Frame, RST_STREAM, WINDOW_UPDATE, frame, request};
use crate::support::{DOMAIN, Edge, PATIENCE, read_until, settings, wait_until};
use crate::upstream::Echo;
use nix::sys::socket::{setsockopt, sockopt::RcvBuf};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const RATE: u32 = 100_000;
const TOO_SLOW: u32 = RATE / 2;
const FAST_ENOUGH: u32 = RATE * 3 / 2;
/// A client that is fast enough goes on for so long: it is measured more than twice.
const LONG_ENOUGH: Duration = Duration::from_secs(24);
/// More than anybody takes in that time.
const BYTES: usize = 40_000_000;

fn edge(echo: &Echo) -> Edge {
    let (mut settings, folder) = settings();
    settings.edge.limits.body_bytes_per_s_min = RATE;
    settings.edge.routes[0].value.body_bytes_max = BYTES as u64;
    Edge::with((settings, folder), &[echo.address])
}

/// Does a step that passes so many bytes, at this rate, until it fails or `most` is over. True if it was cut.
fn paced(rate: u32, most: Duration, mut step: impl FnMut(usize) -> bool) -> bool {
    const STEP: usize = 4_000;
    let begin = Instant::now();
    let mut passed = 0;
    while begin.elapsed() < most {
        if !step(STEP) {
            return true;
        }
        passed += STEP;
        // By the time since the beginning, so that a busy machine's pauses are caught up with.
        let due = Duration::from_secs_f64(passed as f64 / f64::from(rate));
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
    }
    false
}

/// The kernel doesn't take much more than the client reads.
fn little_room(stream: &TcpStream) {
    setsockopt(stream, RcvBuf, &16_384).expect("a socket");
}

#[test]
fn a_client_of_http1_that_takes_an_answer_too_slowly_is_cut() {
    let echo = Echo::start();
    let edge = edge(&echo);
    let begin = || {
        let mut client = edge.connect();
        little_room(&client);
        let text = format!("GET /big/{BYTES} HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n");
        client.write_all(text.as_bytes()).expect("it is sent");
        read_until(&mut client, "\r\n\r\n");
        client
    };
    let take = |mut client: TcpStream, rate, most| {
        let mut part = vec![0; 8_192];
        paced(rate, most, |bytes| client.read_exact(&mut part[..bytes]).is_ok())
    };
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| take(begin(), TOO_SLOW, PATIENCE));
        let fast = scope.spawn(|| take(begin(), FAST_ENOUGH, LONG_ENOUGH));
        assert!(slow.join().expect("it reads"), "whoever is too slow isn't cut");
        assert!(!fast.join().expect("it reads"), "whoever is fast enough is cut");
    });
}

#[test]
fn a_client_of_http2_that_takes_an_answer_too_slowly_is_cut() {
    let echo = Echo::start();
    let edge = edge(&echo);
    let take = |rate, most| {
        // The stream's window is as large as it can be: what holds the edge up is the connection.
        let mut client = Client::connect(&edge, &[&[0, 4][..], &0x7fff_ffff_u32.to_be_bytes()].concat());
        little_room(client.tcp());
        client.send(&request(1, "GET", &format!("/big/{BYTES}"), END_STREAM)).expect("it is sent");
        let mut part = vec![0; 8_192];
        paced(rate, most, |bytes| {
            let mut left = bytes;
            while left > 0 {
                match client.read(&mut part[..left]) {
                    Ok(read) if read > 0 => left -= read,
                    _ => return false,
                }
            }
            true
        })
    };
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| take(TOO_SLOW, PATIENCE));
        let fast = scope.spawn(|| take(FAST_ENOUGH, LONG_ENOUGH));
        assert!(slow.join().expect("it reads"), "whoever is too slow isn't cut");
        assert!(!fast.join().expect("it reads"), "whoever is fast enough is cut");
    });
}

#[test]
fn a_stream_of_http2_that_is_opened_byte_by_byte_is_reset() {
    let (mut settings, folder) = settings();
    settings.edge.limits.body_timeout_ms = 2_000;
    let echo = Echo::start();
    let edge = Edge::with((settings, folder), &[echo.address]);
    // Windows of streams begin at nothing.
    let mut client = Client::connect(&edge, &[0, 4, 0, 0, 0, 0]);
    client.send(&request(1, "GET", "/big/1000000", END_STREAM)).expect("it is sent");
    wait_until("it is asked", || echo.requests() == 1);
    let mut taken = 0;
    let reset = paced(20_000, PATIENCE, |_| {
        client.send(&frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes())).expect("the connection goes on");
        while client.waits() {
            match client.next().expect("the connection goes on") {
                Frame { kind: RST_STREAM, .. } => return false,
                Frame { kind: DATA, payload, .. } => taken += payload.len(),
                _ => {}
            }
        }
        true
    });
    assert!(reset && taken > 0, "it isn't reset after {taken} bytes");
}

#[test]
fn a_client_of_http1_that_sends_a_body_too_slowly_is_told_so() {
    let echo = Echo::start();
    let edge = edge(&echo);
    let send = |rate: u32, most: Duration| {
        let mut client = edge.connect();
        let length = (most.as_secs() as usize * rate as usize).min(BYTES);
        let text =
            format!("POST / HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        client.write_all(text.as_bytes()).expect("it is sent");
        let mut left = length;
        client.set_nonblocking(true).expect("a socket");
        // An answer before the end of the body is the one that is looked for.
        paced(rate, PATIENCE, |bytes| {
            let bytes = bytes.min(left);
            left -= bytes;
            let sent = client.write_all(&vec![b'x'; bytes]);
            left > 0 && sent.is_ok() && client.peek(&mut [0]).is_err()
        });
        client.set_nonblocking(false).expect("a socket");
        (left, crate::support::read_all(&mut client))
    };
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| send(TOO_SLOW, PATIENCE));
        let fast = scope.spawn(|| send(FAST_ENOUGH, LONG_ENOUGH));
        let (left, answer) = slow.join().expect("it sends");
        assert!(left > 0 && answer.starts_with("HTTP/1.1 408 "), "{left}: {answer}");
        let (left, answer) = fast.join().expect("it sends");
        assert!(left == 0 && answer.starts_with("HTTP/1.1 200 "), "{left}: {answer}");
    });
}

#[test]
fn a_client_of_http2_that_sends_a_body_too_slowly_is_told_so() {
    let echo = Echo::start();
    let edge = edge(&echo);
    // True if all was sent and the answer is fine.
    let send = |rate: u32, most: Duration| {
        let mut client = Client::connect(&edge, &[]);
        client.send(&request(1, "POST", "/", 0)).expect("it is sent");
        let begin = Instant::now();
        // Its settings; what TLS had to say has come before them.
        client.next();
        let mut early = None;
        // Windows that are opened again are taken as they come.
        let answered = |frame: &Frame| frame.stream == 1 && frame.kind != WINDOW_UPDATE;
        paced(rate, PATIENCE, |bytes| {
            let ends = begin.elapsed() >= most;
            let sent = client.send(&frame(DATA, u8::from(ends), 1, &vec![b'x'; bytes]));
            while early.is_none() && client.waits() {
                let Some(frame) = client.next() else { return false };
                early = Some(frame).filter(answered);
            }
            sent.is_ok() && !ends && early.is_none()
        });
        let ended = begin.elapsed() >= most;
        let answer = early.or_else(|| std::iter::from_fn(|| client.next()).find(answered));
        ended && answer.is_some_and(|frame| frame.is_ok())
    };
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| send(TOO_SLOW, PATIENCE / 2));
        let fast = scope.spawn(|| send(FAST_ENOUGH, LONG_ENOUGH));
        assert!(!slow.join().expect("it sends"), "whoever is too slow is served");
        assert!(fast.join().expect("it sends"), "whoever is fast enough isn't served");
    });
}
