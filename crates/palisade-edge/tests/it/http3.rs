//! HTTP/3, with a client of the library that the edge uses too.

use crate::support::{DOMAIN, Edge, PATIENCE, roots, settings, wait_until};
use crate::upstream::{Echo, raw, read_head};
use bytes::{Buf, Bytes};
use hyper::{HeaderMap, Request, StatusCode};
use palisade_core::edge::{AccessLog, Answer, LogFormat, Order};
use quinn::crypto::rustls::QuicClientConfig;
use std::io::Write;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

type Sender = h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>;

fn served(upstreams: &[std::net::SocketAddr], change: impl FnOnce(&mut palisade_core::edge::Edge)) -> Edge {
    let (mut told, folder) = settings();
    told.edge.http3 = true;
    change(&mut told.edge);
    Edge::with((told, folder), upstreams)
}

/// Runs a client's part.
fn block_on<T>(part: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(PATIENCE, part).await.expect("it doesn't take so long") })
}

/// What is below HTTP/3.
struct Quic {
    connection: quinn::Connection,
    endpoint: quinn::Endpoint,
}

impl Quic {
    /// Says so to the edge, too.
    async fn close(self) {
        self.connection.close(0_u32.into(), b"");
        self.endpoint.wait_idle().await;
    }
}

/// A connection that trusts the edge's certificate.
async fn connect(edge: &Edge) -> (Sender, h3::client::Connection<h3_quinn::Connection, Bytes>, Quic) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).expect("the provider speaks it");
    let mut tls = builder.with_root_certificates(roots(edge)).with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).expect("it is of TLS 1.3")));
    let mut endpoint = quinn::Endpoint::client((crate::support::own_address(), 0).into()).expect("a socket");
    endpoint.set_default_client_config(config);
    let quic = endpoint.connect(edge.https(), DOMAIN).expect("an address").await.expect("the edge speaks QUIC");
    let (connection, sender) = h3::client::new(h3_quinn::Connection::new(quic.clone())).await.expect("and HTTP/3");
    (sender, connection, Quic { connection: quic, endpoint })
}

/// One request with its whole answer.
async fn ask(sender: &mut Sender, request: Request<()>, body: Option<Bytes>) -> (StatusCode, HeaderMap, String) {
    let mut stream = sender.send_request(request).await.expect("the connection is there");
    if let Some(body) = body {
        // An edge that has heard enough doesn't take the rest.
        let _ = stream.send_data(body).await;
    }
    let _ = stream.finish().await;
    let answer = stream.recv_response().await.expect("an answer");
    let mut text = Vec::new();
    while let Some(mut data) = stream.recv_data().await.expect("its body") {
        text.extend_from_slice(&data.copy_to_bytes(data.remaining()));
    }
    (answer.status(), answer.headers().clone(), String::from_utf8(text).expect("text"))
}

fn get(url: &str) -> Request<()> {
    Request::get(url).body(()).expect("a request")
}

/// Drives a connection beside what is asked on it.
fn drive(mut connection: h3::client::Connection<h3_quinn::Connection, Bytes>) {
    tokio::spawn(async move { connection.wait_idle().await });
}

#[test]
fn requests_take_the_same_way_as_those_of_other_versions() {
    let echo = Echo::start();
    let edge = served(&[echo.address], |model| model.routes[0].value.body_bytes_max = 300_000);
    block_on(async {
        let (mut sender, connection, _quic) = connect(&edge).await;
        drive(connection);
        let (status, headers, text) = ask(&mut sender, get("https://shop.example/a?b=c"), None).await;
        assert_eq!((status, headers["x-upstream"].as_bytes()), (StatusCode::OK, &b"echo"[..]));
        assert!(text.starts_with("GET /a?b=c\n"), "{text}");
        assert!(text.contains("host: shop.example\n") && text.contains("x-forwarded-proto: https\n"), "{text}");
        assert!(text.contains(&format!("x-real-ip: {}\n", crate::support::own_address())), "{text}");
        assert!(
            !text.contains("transfer-encoding") && text.ends_with("body: 0\n"),
            "nothing is said of no body: {text}"
        );
        // A body whose length is said, and one whose length isn't.
        let body = Bytes::from(vec![b'x'; 200_000]);
        let post = || Request::post("https://shop.example/");
        let request = post().header("content-length", "200000").body(()).expect("a request");
        let (_, _, text) = ask(&mut sender, request, Some(body.clone())).await;
        assert!(text.contains("content-length: 200000\n") && text.ends_with("body: 200000\n"), "{text}");
        let (_, _, text) = ask(&mut sender, post().body(()).expect("a request"), Some(body.clone())).await;
        assert!(text.contains("transfer-encoding: chunked\n") && text.ends_with("body: 200000\n"), "{text}");
        // A long answer, and several at once.
        let (_, _, text) = ask(&mut sender, get("https://shop.example/big/3000000"), None).await;
        assert_eq!(text.len(), 3_000_000);
        let mut others = (sender.clone(), sender.clone());
        let (first, second) = tokio::join!(
            ask(&mut others.0, get("https://shop.example/big/500000"), None),
            ask(&mut others.1, get("https://shop.example/one"), None)
        );
        assert_eq!((first.2.len(), second.0), (500_000, StatusCode::OK));
        // Limits and routes are those of everybody.
        let more = Bytes::from(vec![b'x'; 400_000]);
        let (status, ..) = ask(&mut sender, post().body(()).expect("a request"), Some(more)).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        let (status, ..) = ask(&mut sender, get("https://shop.example/a/%2e%2e/b"), None).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        let connect = Request::connect("shop.example:443").body(()).expect("a request");
        assert_eq!(ask(&mut sender, connect, None).await.0, StatusCode::METHOD_NOT_ALLOWED);
        let (status, ..) = ask(&mut sender, get("https://shop.example/again"), None).await;
        assert_eq!(status, StatusCode::OK, "the connection has borne all of it");
    });
    assert!(edge.report().answered["2xx"] >= 6);
}

/// A frame with fields. Each is a part of them as QPACK without a table of its own.
fn fields(parts: &[&[u8]]) -> Vec<u8> {
    let payload = [&[0, 0], parts.concat().as_slice()].concat();
    let length = 0x8000_0000 | u32::try_from(payload.len()).expect("short");
    [&[1], length.to_be_bytes().as_slice(), &payload].concat()
}

/// Sends this on a stream of its own, which is left open.
async fn send(quic: &Quic, bytes: &[u8]) -> (quinn::SendStream, quinn::RecvStream) {
    let (mut sending, receiving) = quic.connection.open_bi().await.expect("the connection is there");
    sending.write_all(bytes).await.expect("it is sent");
    (sending, receiving)
}

#[test]
fn requests_are_logged_and_counted_as_what_they_are() {
    let echo = Echo::start();
    let (mut told, folder) = settings();
    let log = folder.path().join("access.log");
    told.edge.http3 = true;
    told.edge.access_log = Some(AccessLog { format: LogFormat::Json, query: false, file_bytes_max: 1 << 20, files: 2 });
    told.access_log = Some(log.clone());
    told.edge.limits.header_timeout_ms = 6_000;
    let edge = Edge::with((told, folder), &[echo.address]);
    // The client has to go on meanwhile.
    let logged = async |count: usize| loop {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        match text.lines().nth(count - 1) {
            Some(line) => return serde_json::from_str::<serde_json::Value>(line).expect("each line is JSON"),
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    block_on(async {
        let (mut sender, connection, quic) = connect(&edge).await;
        drive(connection);
        assert_eq!(ask(&mut sender, get("https://shop.example/a"), None).await.0, StatusCode::OK);
        let line = logged(1).await;
        assert_eq!((&line["status"], &line["version"]), (&200.into(), &"HTTP/3.0".into()), "{line}");
        let request = Request::connect("shop.example:443").body(()).expect("a request");
        let (status, headers, text) = ask(&mut sender, request, None).await;
        assert_eq!((status, text.as_str()), (StatusCode::METHOD_NOT_ALLOWED, "405 Method Not Allowed\n"));
        assert_eq!(headers["content-length"], "23");
        let line = logged(2).await;
        assert_eq!((&line["status"], &line["method"]), (&405.into(), &"CONNECT".into()), "{line}");
        let many =
            (0..110).fold(Request::get("https://shop.example/many"), |it, number| it.header(format!("a{number}"), "b"));
        let (status, ..) = ask(&mut sender, many.body(()).expect("a request"), None).await;
        assert_eq!(status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        assert_eq!(logged(3).await["path"], "/many");
        let head = Request::head("https://shop.example/a/../b").body(()).expect("a request");
        let (status, headers, text) = ask(&mut sender, head, None).await;
        assert_eq!((status, text.as_str()), (StatusCode::BAD_REQUEST, ""));
        assert_eq!(
            (&headers["content-length"], &logged(4).await["status"]),
            (&"16".parse().expect("a value"), &400.into())
        );
        // A head of 40,000 bytes: `GET`, `https`, `/`, the domain, and a long `user-agent`.
        let long = vec![b'x'; 40_000];
        let domain = [&[0x50, 12], DOMAIN.as_bytes()].concat();
        let agent = [&[0x5f, 0x50, 0x7f, 0xc1, 0xb7, 0x02][..], &long].concat();
        let _long = send(&quic, &fields(&[&[0xd1, 0xd7, 0xc1], &domain, &agent])).await;
        assert_eq!(logged(5).await["status"], 431);
        // One without a domain, and one that doesn't come to its end.
        let _bad = send(&quic, &fields(&[&[0xd1, 0xd7, 0xc1]])).await;
        assert_eq!(logged(6).await["status"], 400);
        let _slow = send(&quic, &fields(&[&[0xd1, 0xd7, 0xc1]])[..6]).await;
        assert_eq!(logged(7).await["status"], 408);
        quic.close().await;
    });
    assert_eq!(edge.report().answered, [("2xx".to_owned(), 1), ("4xx".to_owned(), 4)].into());
}

#[test]
fn a_body_that_is_not_as_long_as_it_says_is_not_passed_on() {
    let echo = Echo::start();
    let edge = served(&[echo.address], |_| {});
    block_on(async {
        for said in ["10", "3"] {
            let (mut sender, connection, _quic) = connect(&edge).await;
            drive(connection);
            let request = Request::post("https://shop.example/").header("content-length", said);
            let mut stream = sender.send_request(request.body(()).expect("a request")).await.expect("it is sent");
            stream.send_data(Bytes::from_static(b"12345")).await.expect("it is sent");
            let _ = stream.finish().await;
            let answer = stream.recv_response().await;
            assert!(answer.as_ref().map_or(true, |answer| !answer.status().is_success()), "{said}: {answer:?}");
        }
    });
}

#[test]
fn other_versions_are_told_of_it_and_only_where_it_is_spoken() {
    let echo = Echo::start();
    let edge = served(&[echo.address], |model| model.https_port = 4443);
    let told = |version: &str| edge.curl(&[version, "--include", "https://shop.example/"]).to_ascii_lowercase();
    for version in ["--http1.1", "--http2"] {
        assert!(told(version).contains("alt-svc: h3=\":4443\"; ma=86400"), "{}", told(version));
    }
    let plain = edge.curl(&["--include", "http://shop.example/"]);
    assert!(!plain.to_ascii_lowercase().contains("alt-svc"), "{plain}");
    drop(edge);
    let edge = Edge::with(settings(), &[echo.address]);
    assert!(!edge.curl(&["--include", "https://shop.example/"]).to_ascii_lowercase().contains("alt-svc"));
    // The port is free then.
    UdpSocket::bind(edge.https()).expect("nobody has bound it");
}

#[test]
fn an_edge_whose_port_is_still_in_use_serves_it_as_soon_as_it_is_free() {
    let echo = Echo::start();
    let (mut told, folder) = settings();
    told.edge.http3 = true;
    let former = UdpSocket::bind(told.https[0]).expect("the port is free");
    let edge = Edge::with((told, folder), &[echo.address]);
    assert!(edge.curl(&["https://shop.example/a"]).starts_with("GET /a\n"), "the other versions don't wait");
    drop(former);
    // A client tries again for as long as its handshake may take.
    block_on(async {
        let (mut sender, connection, quic) = connect(&edge).await;
        drive(connection);
        assert_eq!(ask(&mut sender, get("https://shop.example/"), None).await.0, StatusCode::OK);
        quic.close().await;
    });
}

#[test]
fn a_drained_edge_finishes_requests_and_says_that_there_are_no_more() {
    let (arrived, wait) = channel();
    let (go, told) = channel::<()>();
    let told = std::sync::Mutex::new(told);
    let slow = raw(move |mut stream, _| {
        if read_head(&mut stream).is_some() {
            arrived.send(()).expect("the test waits");
            told.lock().expect("one at a time").recv().expect("the test tells");
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndone");
        }
    });
    let mut edge = served(&[slow], |_| {});
    block_on(async {
        let (sender, mut connection, _quic) = connect(&edge).await;
        let ended = tokio::spawn(async move { connection.wait_idle().await });
        let mut asking = sender.clone();
        let asked = tokio::spawn(async move { ask(&mut asking, get("https://shop.example/"), None).await });
        while wait.try_recv().is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(edge.order(&Order::Drain), Answer::Done);
        tokio::time::sleep(Duration::from_millis(200)).await;
        go.send(()).expect("the upstream waits");
        let (status, _, text) = asked.await.expect("the client lives");
        assert_eq!((status, text.as_str()), (StatusCode::OK, "done"));
        drop(sender);
        ended.await.expect("the connection ends");
    });
    wait_until("the edge ends", || edge.child.try_wait().expect("it is our child").is_some());
}

#[test]
fn what_is_no_quic_and_clients_that_reset_everything_hurt_nobody() {
    let echo = Echo::start();
    let edge = served(&[echo.address], |_| {});
    let garbage = UdpSocket::bind((crate::support::own_address(), 0)).expect("a socket");
    for size in [0, 1, 20, 1200, 1400] {
        let mut bytes = vec![0xc3; size];
        garbage.send_to(&bytes, edge.https()).expect("it is sent");
        bytes.fill(0x40);
        garbage.send_to(&bytes, edge.https()).expect("it is sent");
    }
    block_on(async {
        // Each request is given up as soon as it is sent.
        let (mut sender, connection, quic) = connect(&edge).await;
        drive(connection);
        for _ in 0..2_000 {
            match sender.send_request(get("https://shop.example/big/100000")).await {
                Ok(mut stream) => {
                    stream.stop_stream(h3::error::Code::H3_REQUEST_CANCELLED);
                    stream.stop_sending(h3::error::Code::H3_REQUEST_CANCELLED);
                }
                // The edge has had enough.
                Err(_) => break,
            }
        }
        quic.close().await;
        // Another client is served, as ever.
        let (mut sender, connection, quic) = connect(&edge).await;
        drive(connection);
        let (status, ..) = ask(&mut sender, get("https://shop.example/"), None).await;
        assert_eq!(status, StatusCode::OK);
        quic.close().await;
    });
    wait_until("connections are forgotten", || edge.report().connections == 0);
}
