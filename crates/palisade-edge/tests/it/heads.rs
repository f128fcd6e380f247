//! What upstreams and clients are told of each other.

use crate::support::{DOMAIN, Edge, placed, route, settings};
use crate::upstream::{Echo, Grpc, saying};
use palisade_core::edge::{Hsts, UpstreamProtocol};

#[test]
fn fields_of_one_connection_stay_there_and_the_edges_own_are_added() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    let answer = edge.raw(format!(
        "GET / HTTP/1.1\r\nHost: {DOMAIN}:8080\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: gzip\r\n\
         Proxy-Authorization: x\r\nTrailer: x\r\nExpect: 100-continue\r\nX-Real-IP: 6.6.6.6\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Host: evil\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Port: 1\r\nForwarded: for=6.6.6.6\r\nHTTP2-Settings: x\r\nX-Kept: yes\r\nCookie: a=b\r\n\r\n"
    ));
    let (_, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let mut lines: Vec<_> = body.lines().collect();
    lines.sort_unstable();
    let address = "127.0.0.1";
    assert_eq!(
        lines,
        [
            "GET /",
            "body: 0",
            "cookie: a=b",
            &format!("forwarded: for={address};proto=http;host=\"{DOMAIN}:8080\""),
            &format!("host: {DOMAIN}:8080"),
            &format!("x-forwarded-for: {address}"),
            &format!("x-forwarded-host: {DOMAIN}:8080"),
            "x-forwarded-proto: http",
            "x-kept: yes",
            &format!("x-real-ip: {address}"),
        ]
    );
}

#[test]
fn http2_is_told_on_as_http1() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    let text = edge.curl(&[
        "--http2",
        "--header",
        "Cookie: a=b",
        "--header",
        "cookie: c=d",
        "--header",
        "te: trailers",
        &format!("https://{DOMAIN}/x"),
    ]);
    assert!(text.contains("cookie: a=b; c=d\n"), "{text}");
    assert!(
        text.contains(&format!("host: {DOMAIN}\n"))
            && text.contains("x-forwarded-proto: https\n")
            && !text.contains("te:"),
        "{text}"
    );
}

#[test]
fn a_target_without_a_path_has_one_behind_the_edge() {
    let (echo, grpc) = (Echo::start(), Grpc::start());
    let edge = Edge::with(settings(), &[echo.address]);
    for (target, expected) in [("http://shop.example?x=1", "GET /?x=1\n"), ("http://shop.example", "GET /\n")] {
        let answer = edge.raw(format!("GET {target} HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n"));
        assert!(answer.contains(expected), "{answer}");
    }
    let (mut settings, folder) = settings();
    settings.edge.routes[0].value.protocol = UpstreamProtocol::H2c;
    let edge = Edge::with((settings, folder), &[grpc.address]);
    let answer = edge.raw(format!("GET http://{DOMAIN}?x=1 HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("target: /?x=1\r\n"), "{answer}");
    let (mut settings, folder) = crate::support::settings();
    settings.edge.redirect = true;
    let edge = Edge::start((settings, folder));
    let answer = edge.raw(format!("GET http://{DOMAIN}?x=1 HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n"));
    assert!(answer.contains("location: https://shop.example/?x=1\r\n"), "{answer}");
}

#[test]
fn answers_lose_what_concerned_the_edge_only() {
    let edge = Edge::with(
        settings(),
        &[saying(
            b"HTTP/1.1 200 OK\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\nKeep-Alive: x\r\nUpgrade: h2c\r\nX-Kept: 1\r\nX-Kept: 2\r\n\
              Content-Length: 2\r\n\r\nok",
        )],
    );
    let (head, body) = edge.get("/");
    let head = head.to_ascii_lowercase();
    assert_eq!(body, "ok");
    assert!(head.contains("x-kept: 1\r\nx-kept: 2"), "{head}");
    for gone in ["x-hop", "keep-alive", "upgrade"] {
        assert!(!head.contains(gone), "{head}");
    }
    let text = edge.curl(&["--http2", "--include", &format!("https://{DOMAIN}/")]);
    assert!(
        text.starts_with("HTTP/2 200") && text.contains("x-kept: 2") && !text.contains("x-hop") && text.ends_with("ok"),
        "{text}"
    );
}

#[test]
fn hsts_is_said_over_tls_only() {
    let (mut settings, folder) = settings();
    let mut route = route();
    route.hsts = Some(Hsts { max_age_s: 31_536_000, subdomains: true, preload: false });
    settings.edge.routes = vec![placed(route)];
    let echo = Echo::start();
    let edge = Edge::with((settings, folder), &[echo.address]);
    let text = edge.curl(&["--include", &format!("https://{DOMAIN}/")]);
    assert!(text.contains("strict-transport-security: max-age=31536000; includeSubDomains\r\n"), "{text}");
    assert!(!edge.get("/").0.to_ascii_lowercase().contains("strict-transport"), "over plain HTTP");
}

#[test]
fn a_head_request_and_answers_without_bodies_keep_the_connection_in_step() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    let answer = edge.raw(format!(
        "HEAD /big/1000 HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\nGET /x HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n"
    ));
    assert!(answer.to_ascii_lowercase().contains("content-length: 1000") && answer.contains("GET /x\n"), "{answer}");
    edge.set("web:80", &[saying(b"HTTP/1.1 204 No Content\r\n\r\n")]);
    assert!(edge.get("/").0.starts_with("HTTP/1.1 204 "));
    edge.set("web:80", &[saying(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n")]);
    let (head, _) = edge.get("/");
    assert!(head.starts_with("HTTP/1.1 304 ") && !head.contains("Link"), "{head}");
}
