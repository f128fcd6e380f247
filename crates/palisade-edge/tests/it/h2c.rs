//! Upstreams of HTTP/2 that end, hang or take only so much at once.

use crate::frames::{Client, DATA, END_STREAM, HEADERS, request};
use crate::support::{DOMAIN, Edge, free_address, settings};
use crate::upstream::{Grpc, Http2, raw_http2};
use palisade_core::edge::UpstreamProtocol;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

/// Below `/short` the service may be silent for half a second only.
fn edge(upstreams: &[SocketAddr]) -> Edge {
    let (mut settings, folder) = settings();
    settings.edge.routes[0].value.protocol = UpstreamProtocol::H2c;
    let mut short = settings.edge.routes[0].clone();
    short.value.path = "/short".to_owned();
    short.value.upstream_timeout_ms = 500;
    settings.edge.routes.push(short);
    Edge::with((settings, folder), upstreams)
}

/// Sends requests without bodies at once, and says which of them were answered with 200.
fn at_once(client: &mut Client, method: &str, streams: &[u32]) -> BTreeMap<u32, bool> {
    let all: Vec<u8> = streams.iter().flat_map(|&stream| request(stream, method, "/", END_STREAM)).collect();
    client.send(&all).expect("it is sent");
    let mut answered = BTreeMap::new();
    while answered.len() < streams.len() {
        let frame = client.next().expect("an answer");
        // Trailers are no second answer.
        if frame.kind == HEADERS && streams.contains(&frame.stream) {
            answered.entry(frame.stream).or_insert(frame.is_ok());
        }
    }
    answered
}

#[test]
fn an_upstream_that_takes_no_more_of_a_body_or_no_more_requests_is_a_gateway_timeout() {
    // Its window for a body is never opened again.
    let edge = edge(&[raw_http2(|connection, _| connection.hang())]);
    let url = format!("https://{DOMAIN}/short");
    for version in ["--http1.1", "--http2"] {
        let [send, file] = edge.body(200_000);
        let status = edge.curl(&[version, "--output", "/dev/null", "--write-out", "%{http_code}", &send, &file, &url]);
        assert_eq!(status, "504", "{version}");
    }
    // After the first answer it takes no further request, until it is told to.
    let (go, told) = channel::<()>();
    let told = Mutex::new(told);
    let full = raw_http2(move |mut connection, number| {
        let first = connection.request();
        let (0, Some(first)) = (number, first) else { return };
        connection.settings(0);
        connection.answer(first);
        let _ = told.lock().expect("one connection").recv();
        connection.settings(100);
        while let Some(frame) = connection.next() {
            match frame.kind {
                HEADERS if frame.flags & END_STREAM != 0 => connection.answer(frame.stream),
                // A body that was given up has no end.
                DATA if frame.flags & END_STREAM != 0 => return,
                _ => {}
            }
        }
    });
    edge.set("web:80", &[full]);
    assert!(edge.get("/").0.starts_with("HTTP/1.1 200 "));
    let answers = edge.raw(format!(
        "POST /short HTTP/1.1\r\nHost: {DOMAIN}\r\nContent-Length: 5\r\n\r\nabcdeGET /short HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n"
    ));
    assert!(answers.starts_with("HTTP/1.1 504 "), "{answers}");
    go.send(()).expect("it waits");
    assert!(edge.get("/").0.starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_request_that_was_not_sent_before_its_connection_ended_is_sent_on_another_one() {
    let forgetful = |mut connection: Http2, number| {
        connection.settings(if number == 0 { 1 } else { 100 });
        while let Some(stream) = connection.request() {
            // The second of the first connection finds that it ends.
            if number == 0 && stream > 1 {
                return;
            }
            connection.answer(stream);
        }
    };
    let asked = |method| {
        let edge = edge(&[raw_http2(forgetful)]);
        let mut client = Client::connect(&edge, &[]);
        assert_eq!(at_once(&mut client, method, &[1]), [(1, true)].into());
        at_once(&mut client, method, &[3, 5, 7])
    };
    // One is sent, the next is with the library, and the last waits behind it.
    let posts = asked("POST");
    assert_eq!((posts.len(), posts.get(&3), posts.get(&7)), (3, Some(&false), Some(&true)), "{posts:?}");
    // What may be repeated is asked again, as it is when a kept connection of HTTP/1.1 ends.
    assert_eq!(asked("GET"), [(3, true), (5, true), (7, true)].into());
}

#[test]
fn an_instance_that_ends_without_an_answer_is_passed_over_where_that_is_safe() {
    let bad = raw_http2(|mut connection, _| {
        connection.settings(100);
        connection.request();
    });
    let grpc = Grpc::start();
    let edge = edge(&[bad, grpc.address]);
    let mut client = Client::connect(&edge, &[]);
    let ok = |answered: BTreeMap<u32, bool>| answered.values().filter(|ok| **ok).count();
    for stream in [1, 3, 5, 7] {
        assert_eq!(ok(at_once(&mut client, "GET", &[stream])), 1, "{stream}");
    }
    let posts: usize = [9, 11, 13, 15].map(|stream| ok(at_once(&mut client, "POST", &[stream]))).iter().sum();
    assert!(posts < 4, "what may have been acted on isn't sent twice");
    edge.set("web:80", &[bad]);
    assert_eq!(ok(at_once(&mut client, "GET", &[17])), 0);
}

#[test]
fn requests_that_come_at_once_share_a_new_connection() {
    let grpc = Grpc::start();
    let edge = edge(&[grpc.address]);
    let streams: Vec<u32> = (0..20).map(|number| 2 * number + 1).collect();
    let all_ok = |answered: &BTreeMap<u32, bool>, expected| {
        assert!(answered.len() == streams.len() && answered.values().all(|ok| *ok == expected), "{answered:?}");
    };
    all_ok(&at_once(&mut Client::connect(&edge, &[]), "GET", &streams), true);
    assert_eq!(grpc.connections.load(Ordering::Relaxed), 1);
    // Those that wait for a connection that can't be had don't try it one after the other.
    edge.set("web:80", &[free_address()]);
    all_ok(&at_once(&mut Client::connect(&edge, &[]), "POST", &streams), false);
    edge.set("web:80", &[free_address(), grpc.address]);
    all_ok(&at_once(&mut Client::connect(&edge, &[]), "POST", &streams), true);
}

#[test]
fn more_requests_than_one_connection_takes_are_spread_over_several() {
    static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
    // Nothing is answered before all have come.
    static ARRIVED: AtomicUsize = AtomicUsize::new(0);
    const ALL: usize = 120;
    let upstream = raw_http2(|mut connection, _| {
        CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        connection.settings(1_000);
        let mut streams = Vec::new();
        while let Some(stream) = connection.request() {
            streams.push(stream);
            ARRIVED.fetch_add(1, Ordering::Relaxed);
        }
    });
    let edge = edge(&[upstream]);
    let mut client = Client::connect(&edge, &[]);
    let all: Vec<u8> = (0..ALL as u32).flat_map(|number| request(2 * number + 1, "POST", "/", END_STREAM)).collect();
    client.send(&all).expect("it is sent");
    crate::support::wait_until("all have come", || ARRIVED.load(Ordering::Relaxed) == ALL);
    assert_eq!(CONNECTIONS.load(Ordering::Relaxed), 2);
}
