//! WebSockets, and whatever else a connection is upgraded to.

use crate::support::{DOMAIN, Edge, read_until, settings, wait_until};
use crate::upstream::{Echo, raw, read_head};
use palisade_core::edge::{Answer, Order};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};

/// Answers with what it was sent, after the upgrade.
fn websocket() -> SocketAddr {
    raw(|mut stream, _| {
        let Some(head) = read_head(&mut stream) else { return };
        if !head.contains("\r\nupgrade: websocket\r\n") || !head.contains("\r\nconnection: upgrade\r\n") {
            let _ = stream.write_all(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n");
            return;
        }
        // The first words come with the answer.
        let _ = stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nhello");
        let mut part = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut part) {
            if stream.write_all(&part[..read]).is_err() {
                break;
            }
        }
    })
}

fn asking() -> String {
    format!(
        "GET /ws HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
    )
}

fn upgrade(edge: &Edge) -> std::net::TcpStream {
    let mut client = edge.connect();
    client.write_all(asking().as_bytes()).expect("it is sent");
    let head = read_until(&mut client, "\r\n\r\n").to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 101 ")
            && head.contains("upgrade: websocket")
            && head.contains("connection: upgrade"),
        "{head}"
    );
    read_until(&mut client, "hello");
    client
}

#[test]
fn a_websocket_passes_both_ways_outlives_idle_limits_and_ends_for_both() {
    let (mut settings, folder) = settings();
    settings.edge.limits.idle_timeout_ms = 2_000;
    settings.edge.limits.header_timeout_ms = 2_000;
    settings.edge.limits.body_timeout_ms = 2_000;
    settings.edge.routes[0].value.upstream_timeout_ms = 2_000;
    let edge = Edge::with((settings, folder), &[websocket()]);
    let mut client = upgrade(&edge);
    client.write_all(b"ping\n").expect("it is sent");
    read_until(&mut client, "ping\n");
    std::thread::sleep(std::time::Duration::from_secs(5));
    // What looks like a request that would be refused is none here.
    client.write_all(b"GET / HTTP/1.1\nContent-Length: x\n\0\n\n").expect("it is sent");
    read_until(&mut client, "\0\n\n");
    let large = vec![b'x'; 3_000_000];
    let mut sender = client.try_clone().expect("a socket");
    let sending = std::thread::spawn(move || {
        sender.write_all(&large).expect("it is sent");
        sender.shutdown(Shutdown::Write).expect("it is open");
    });
    let mut all = Vec::new();
    client.read_to_end(&mut all).expect("all of it, then the end");
    sending.join().expect("all is sent");
    assert_eq!(all.len(), 3_000_000);
    wait_until("the connection is gone", || edge.report().connections == 0);
}

#[test]
fn an_upgraded_connection_is_one_of_those_that_a_client_may_have_at_once() {
    let (mut settings, folder) = settings();
    settings.edge.routes[0].value.connections_per_client = Some(2);
    let edge = Edge::with((settings, folder), &[websocket()]);
    let status = || edge.raw(asking().replace("keep-alive, Upgrade", "close"));
    let (first, _second) = (upgrade(&edge), upgrade(&edge));
    let refused = status();
    assert!(refused.starts_with("HTTP/1.1 429 ") && refused.contains("retry-after: "), "{refused}");
    drop(first);
    wait_until("there is room", || status().starts_with("HTTP/1.1 426 "));
}

#[test]
fn a_drained_edge_lets_upgraded_connections_go_on() {
    let mut edge = Edge::with(settings(), &[websocket()]);
    let mut client = upgrade(&edge);
    assert_eq!(edge.report().connections, 1);
    assert_eq!(edge.order(&Order::Drain), Answer::Done);
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(edge.child.try_wait().expect("it is our child").is_none());
    client.write_all(b"still there\n").expect("it is sent");
    read_until(&mut client, "still there\n");
    drop(client);
    wait_until("the edge ends", || edge.child.try_wait().expect("it is our child").is_some());
}

#[test]
fn an_upgrade_that_nobody_asked_for_or_that_is_refused_is_none() {
    let edge = Edge::with(
        settings(),
        &[raw(|mut stream, _| {
            read_head(&mut stream);
            let _ = stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n");
        })],
    );
    assert!(edge.get("/").0.starts_with("HTTP/1.1 502 "));
    // Plain answers to the wish for another protocol; the connection goes on.
    let echo = Echo::start();
    edge.set("web:80", &[echo.address]);
    let asking = format!("GET /a HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let mut client = edge.connect();
    for _ in 0..2 {
        client.write_all(asking.as_bytes()).expect("it is sent");
        let answer = read_until(&mut client, "body: 0\n");
        assert!(answer.contains("upgrade: websocket\n"), "{answer}");
    }
    // HTTP/2 behind the edge's back is not passed on.
    for protocol in ["h2c", "H2C, websocket", "HTTP/2.0"] {
        let answer = edge.raw(format!(
            "GET /a HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
        ));
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && !answer.contains("upgrade:") && !answer.contains("http2-settings"),
            "{answer}"
        );
    }
}
