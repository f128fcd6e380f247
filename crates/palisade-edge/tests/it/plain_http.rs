//! The port for plain HTTP where HTTPS is the rule.

use crate::support::{DOMAIN, Edge, settings};
use crate::upstream::Echo;

fn edge(https_port: u16) -> (Edge, Echo) {
    let (mut settings, folder) = settings();
    settings.edge.redirect = true;
    settings.edge.https_port = https_port;
    settings.edge.default_domain = None;
    std::fs::write(settings.certificates.join("http-01/tok_en-1"), "tok_en-1.thumb").expect("its folder is there");
    std::fs::write(settings.certificates.join("http-01/a.b"), "no").expect("its folder is there");
    std::fs::create_dir(settings.certificates.join("http-01/folder")).expect("its folder is there");
    let echo = Echo::start();
    (Edge::with((settings, folder), &[echo.address]), echo)
}

#[test]
fn plain_http_is_sent_to_https_with_method_path_and_query() {
    let (edge, echo) = edge(443);
    let answer = edge
        .raw(format!("POST /a/b?c=d HTTP/1.1\r\nHost: {DOMAIN}:80\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
    assert!(answer.contains(&format!("location: https://{DOMAIN}/a/b?c=d\r\n")), "{answer}");
    assert!(
        edge.raw("GET / HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n").starts_with("HTTP/1.1 421 ")
    );
    assert_eq!(echo.requests(), 0);
    // Over TLS it is served.
    assert!(edge.curl(&["--location", &format!("http://{DOMAIN}/x")]).starts_with("GET /x\n"));
}

#[test]
fn another_port_of_https_is_named() {
    let (edge, _echo) = edge(8443);
    let (head, _) = edge.get("/");
    assert!(head.contains(&format!("location: https://{DOMAIN}:8443/")), "{head}");
}

#[test]
fn challenges_are_answered_before_anything_else() {
    let (edge, echo) = edge(443);
    for host in [DOMAIN, "other.example", "192.0.2.1"] {
        let answer = edge.raw(format!(
            "GET /.well-known/acme-challenge/tok_en-1 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        ));
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\ntok_en-1.thumb"), "{answer}");
    }
    for path in
        ["unknown", "a.b", "folder", "", "tok_en-1/", "%74ok_en-1", "..%2fhttp-01%2ftok_en-1", "../../shop.example.pem"]
    {
        let (head, body) = edge.get(&format!("/.well-known/acme-challenge/{path}"));
        assert!(head.starts_with("HTTP/1.1 404 ") || head.starts_with("HTTP/1.1 400 "), "{path}: {head}");
        assert!(!body.contains("thumb") && !body.contains("PRIVATE"), "{path}: {body}");
    }
    assert_eq!(echo.requests(), 0);
}
