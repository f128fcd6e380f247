//! Bodies pass as they come, in both directions.

use crate::support::{DOMAIN, Edge, read_all, read_until, settings};
use crate::upstream::{Echo, Grpc, raw, read_head};
use palisade_core::edge::UpstreamProtocol;
use std::io::{Read, Write};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[test]
fn server_sent_events_arrive_one_by_one() {
    let (next, wanted) = channel::<()>();
    let wanted = Arc::new(Mutex::new(wanted));
    let upstream = raw(move |mut stream, _| {
        read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
        for number in 0..3 {
            let _ = stream.write_all(format!("data: {number}\n\n").as_bytes());
            // The next is sent only when the client has got this one.
            let _ = wanted.lock().expect("no panic").recv();
        }
    });
    let edge = Edge::with(settings(), &[upstream]);
    let mut client = edge.connect();
    client
        .write_all(format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n").as_bytes())
        .expect("it is sent");
    for number in 0..3 {
        let text = read_until(&mut client, &format!("data: {number}\n\n"));
        assert!(number > 0 || text.starts_with("HTTP/1.1 200 "), "{text}");
        next.send(()).expect("the upstream waits");
    }
}

#[test]
fn an_upload_arrives_as_it_is_sent_and_the_answer_may_come_first() {
    let (got, arrived) = channel();
    let got = Mutex::new(got);
    let upstream = raw(move |mut stream, _| {
        read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no");
        let mut part = [0; 5];
        for _ in 0..2 {
            if stream.read_exact(&mut part).is_ok() {
                let _ = got.lock().expect("no panic").send(String::from_utf8_lossy(&part).into_owned());
            }
        }
        let _ = stream.write_all(b"k");
    });
    let edge = Edge::with(settings(), &[upstream]);
    let mut client = edge.connect();
    client
        .write_all(format!("POST / HTTP/1.1\r\nHost: {DOMAIN}\r\nContent-Length: 10\r\n\r\nfirst").as_bytes())
        .expect("it is sent");
    assert_eq!(arrived.recv_timeout(crate::support::PATIENCE).expect("it arrives"), "first");
    read_until(&mut client, "\r\n\r\no");
    client.write_all(b"other").expect("it is sent");
    assert_eq!(arrived.recv_timeout(crate::support::PATIENCE).expect("it arrives"), "other");
    read_until(&mut client, "k");
}

/// The service may be silent for so long; tests may stand still for less.
const TIMEOUT: Duration = Duration::from_secs(7);

/// Sends a request whose body takes longer than that, though no part of it is long in coming, and returns the whole answer.
fn upload_slowly(edge: &Edge) -> String {
    const PARTS: u32 = 40;
    let mut client = edge.connect();
    let head = format!("POST / HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\nContent-Length: {PARTS}\r\n\r\n");
    client.write_all(head.as_bytes()).expect("it is sent");
    for _ in 0..PARTS {
        std::thread::sleep(TIMEOUT * 5 / 4 / PARTS);
        // An edge that has given up says so.
        let _ = client.write_all(b"x");
    }
    read_all(&mut client)
}

#[test]
fn whoever_takes_a_slow_upload_is_not_silent() {
    // It answers first.
    let early = raw(|mut stream, _| {
        read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\no");
        let _ = stream.read_exact(&mut [0; 40]);
        let _ = stream.write_all(b"k");
    });
    let (echo, grpc) = (Echo::start(), Grpc::start());
    std::thread::scope(|scope| {
        let all = [
            (early, UpstreamProtocol::Http1),
            (echo.address, UpstreamProtocol::Http1),
            (grpc.address, UpstreamProtocol::H2c),
        ];
        let all = all.map(|(address, protocol)| {
            scope.spawn(move || {
                let (mut settings, folder) = settings();
                let route = &mut settings.edge.routes[0].value;
                route.protocol = protocol;
                route.upstream_timeout_ms = TIMEOUT.as_millis() as u64;
                upload_slowly(&Edge::with((settings, folder), &[address]))
            })
        });
        let [early, echo, grpc] = all.map(|answer| answer.join().expect("it asks"));
        assert!(early.starts_with("HTTP/1.1 200 ") && early.ends_with("\r\nok"), "{early}");
        assert!(echo.starts_with("HTTP/1.1 200 ") && echo.ends_with("body: 40\n"), "{echo}");
        assert!(grpc.starts_with("HTTP/1.1 200 ") && grpc.contains("bytes: 40\r\n"), "{grpc}");
    });
}

#[test]
fn an_answer_to_half_a_request_reaches_the_client() {
    let upstream = raw(|mut stream, _| {
        read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno");
        let _ = stream.shutdown(std::net::Shutdown::Both);
    });
    let edge = Edge::with(settings(), &[upstream]);
    let [send, file] = edge.body(900_000);
    let status = edge.curl(&[
        &send,
        &file,
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
        &format!("https://{DOMAIN}/"),
    ]);
    assert_eq!(status, "413");
}

#[test]
fn large_bodies_pass_whole_in_both_directions_over_nginx() {
    let Some(nginx) = crate::upstream::Nginx::start() else { return };
    let edge = Edge::with(settings(), &[nginx.address]);
    for version in ["--http1.1", "--http2"] {
        let text = edge.curl(&[
            version,
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code} %{size_download}",
            &format!("https://{DOMAIN}/file"),
        ]);
        assert_eq!(text, format!("200 {}", crate::upstream::Nginx::FILE_BYTES));
        let text = edge.curl(&[
            version,
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
            &format!("https://{DOMAIN}/none"),
        ]);
        assert_eq!(text, "404");
    }
    let (head, _) = edge.get("/file");
    assert!(head.to_ascii_lowercase().contains("server: nginx"), "{head}");
}
