//! Floods of frames of HTTP/2 that cost their sender nothing: memory stays where it is, and others are answered meanwhile.

use crate::frames::{Client, DATA, END_STREAM, PING, PRIORITY, SETTINGS, WINDOW_UPDATE, frame, request};
use crate::http2::burden;
use crate::support::{Edge, settings};
use crate::upstream::{Echo, raw, read_head};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Frames of a flood, unless the edge ends it before.
const FRAMES: usize = 1_000_000;
const AT_ONCE: usize = 1_000;
/// What the edge may have more afterwards.
const MORE_KB_MAX: u64 = 24_000;
/// How long others may wait for an answer meanwhile, on a busy machine.
const WAIT_MAX: Duration = Duration::from_secs(20);

fn resident_kb(edge: &Edge) -> u64 {
    burden(edge).0
}

/// Sends a flood while others ask. Afterwards the edge is as before.
fn withstands(edge: &Edge, what: &str, opened: &[u8], part: &[u8]) {
    let before = resident_kb(edge);
    let over = AtomicBool::new(false);
    let (mut asked, mut most_kb, mut longest) = (0, 0, Duration::ZERO);
    let passed = std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let mut client = Client::connect(edge, &[]);
            client.send(opened).expect("it listens");
            let passed = client.flood(&part.repeat(AT_ONCE), FRAMES / AT_ONCE);
            over.store(true, Ordering::Relaxed);
            passed
        });
        while !over.load(Ordering::Relaxed) || asked == 0 {
            let begin = Instant::now();
            assert!(edge.get("/").0.starts_with("HTTP/1.1 200 "), "{what}");
            longest = longest.max(begin.elapsed());
            asked += 1;
            most_kb = most_kb.max(resident_kb(edge));
        }
        flood.join().expect("it ends")
    });
    eprintln!(
        "{what}: {passed}; {before} and then {most_kb} kB; {asked} answers meanwhile, the slowest in {longest:?}"
    );
    assert!(most_kb < before + MORE_KB_MAX, "{what}: {before} and then {most_kb} kB");
    assert!(longest < WAIT_MAX, "{what}: {longest:?}");
}

/// Answers nobody reads: what answers to a flood waits for its sender.
#[test]
fn frames_that_are_to_be_answered_wait_for_their_sender() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    withstands(&edge, "PING", &[], &frame(PING, 0, 0, &[7; 8]));
    withstands(&edge, "SETTINGS", &[], &frame(SETTINGS, 0, 0, &[]));
    let window = |size: u32| frame(SETTINGS, 0, 0, &[&[0, 4][..], &size.to_be_bytes()].concat());
    withstands(
        &edge,
        "windows that change",
        &request(1, "GET", "/big/1000000", END_STREAM),
        &[window(0), window(9)].concat(),
    );
}

#[test]
fn frames_that_say_nothing_cost_nothing() {
    let echo = Echo::start();
    // It answers, and takes nothing of a body.
    let sluggish = raw(|mut stream, _| {
        let Some(head) = read_head(&mut stream) else { return };
        if head.starts_with("GET ") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        } else {
            std::thread::sleep(crate::support::PATIENCE);
        }
    });
    let edge = Edge::with(settings(), &[sluggish]);
    let post = request(1, "POST", "/", 0);
    withstands(&edge, "empty DATA", &post, &frame(DATA, 0, 1, &[]));
    // A byte of padding and no data.
    withstands(&edge, "padded DATA", &post, &frame(DATA, 8, 1, &[1, 0]));
    withstands(&edge, "DATA byte by byte", &post, &frame(DATA, 0, 1, b"x"));
    edge.set("web:80", &[echo.address]);
    withstands(&edge, "WINDOW_UPDATE", &[], &frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()));
    withstands(&edge, "WINDOW_UPDATE of a stream", &post, &frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes()));
    withstands(&edge, "PRIORITY", &[], &frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 7]));
    withstands(&edge, "unknown frames", &[], &frame(0xfa, 0, 0, b"x"));
}

#[test]
fn priorities_of_streams_that_never_come_are_not_kept() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    let streams = (1..2 * AT_ONCE as u32).step_by(2);
    let all: Vec<u8> = streams.flat_map(|stream| frame(PRIORITY, 0, stream * 101, &[0, 0, 0, 0, 7])).collect();
    let before = resident_kb(&edge);
    Client::connect(&edge, &[]).flood(&all, FRAMES / AT_ONCE);
    assert!(resident_kb(&edge) < before + MORE_KB_MAX);
    assert!(edge.get("/").0.starts_with("HTTP/1.1 200 "));
}

/// CVE-2025-8671: it is the edge that resets the streams, because of what the client says of them.
#[test]
fn streams_that_the_edge_is_made_to_reset_end_the_connection() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    let before = resident_kb(&edge);
    let mut client = Client::connect(&edge, &[]);
    let mut streams = (1..).step_by(2);
    let ended = (0..200).any(|_| {
        let part: Vec<u8> = streams
            .by_ref()
            .take(AT_ONCE)
            .flat_map(|stream| {
                let nothing = frame(WINDOW_UPDATE, 0, stream, &0_u32.to_be_bytes());
                [request(stream, "GET", "/", END_STREAM), nothing].concat()
            })
            .collect();
        !client.flood(&part, 1)
    });
    assert!(ended, "the edge lets it go on");
    assert!(resident_kb(&edge) < before + MORE_KB_MAX);
    assert!(echo.requests() < 20_000, "{}", echo.requests());
    assert!(edge.get("/").0.starts_with("HTTP/1.1 200 "));
}
