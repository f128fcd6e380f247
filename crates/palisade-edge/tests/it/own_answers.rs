//! Answers of the edge's own, over each version of HTTP.

use crate::frames::{ACK, Client, DATA, END_STREAM, HEADERS, PING, RST_STREAM, frame, request};
use crate::support::{DOMAIN, Edge, free_address, placed, route, settings};
use crate::upstream::Echo;
use palisade_core::edge::{Hsts, Rate};

#[test]
fn an_answer_to_head_has_a_length_and_no_body() {
    // Nobody is there to answer.
    let edge = Edge::start(settings());
    let url = format!("https://{DOMAIN}/");
    for version in ["--http1.1", "--http2"] {
        let head = edge.curl(&[version, "--head", &url]).to_ascii_lowercase();
        assert!(head.contains(" 503") && head.contains("content-length: 24\r\n"), "{head}");
    }
    let mut client = Client::connect(&edge, &[]);
    client.send(&request(1, "HEAD", "/", END_STREAM)).expect("it is sent");
    let head = std::iter::from_fn(|| client.next()).find(|frame| frame.stream == 1).expect("an answer");
    assert_eq!((head.kind, head.flags & END_STREAM), (HEADERS, END_STREAM));
}

/// Node, curl and others break off when a stream is reset that they haven't sent whole, and forget its answer.
#[test]
fn what_is_refused_is_taken_nevertheless_over_http2() {
    let (mut settings, folder) = settings();
    let of = |path: &str| {
        let mut route = route();
        route.path = path.to_owned();
        route
    };
    let (mut denied, mut limited) = (of("/denied"), of("/limited"));
    denied.deny = vec!["127.0.0.0/8".parse().expect("a network")];
    limited.rate = Some(Rate { milli_per_s: 1, burst: 0 });
    limited.to.port = 81;
    settings.edge.routes = [of("/none"), denied, limited].map(placed).into();
    let edge = Edge::start((settings, folder));
    edge.set("web:81", &[free_address()]);
    let paths = ["/a/../b", "/elsewhere", "/none", "/denied", "/limited", "/limited"];
    let mut client = Client::connect(&edge, &[]);
    for (stream, path) in (1..).step_by(2).zip(paths) {
        client.send(&request(stream, "POST", path, 0)).expect("it is sent");
        let mut of_stream = std::iter::from_fn(|| client.next()).filter(|frame| frame.stream == stream);
        let ended = of_stream.find(|frame| frame.kind == DATA && frame.flags & END_STREAM != 0);
        assert!(ended.is_some(), "{path}: an answer");
        client.send(&frame(DATA, 0, stream, &[b'x'; 10_000])).expect("it is sent");
        client.send(&frame(DATA, END_STREAM, stream, b"x")).expect("it is sent");
        client.send(&frame(PING, 0, 0, &[7; 8])).expect("it is sent");
        loop {
            let next = client.next().expect("the connection is there");
            assert!(next.kind != RST_STREAM, "{path}: its stream is reset");
            if next.kind == PING && next.flags & ACK != 0 {
                break;
            }
        }
    }
    assert_eq!(edge.report().answered, [("4xx".to_owned(), 4), ("5xx".to_owned(), 2)].into());
}

#[test]
fn hsts_is_said_by_the_edges_own_answers_too() {
    let (mut settings, folder) = settings();
    let mut plain = route();
    plain.path = "/plain".to_owned();
    let mut strict = route();
    strict.path = "/strict".to_owned();
    strict.hsts = Some(Hsts { max_age_s: 3_600, subdomains: false, preload: false });
    let (mut denied, mut limited) = (strict.clone(), strict.clone());
    denied.path = "/strict/denied".to_owned();
    denied.deny = vec!["127.0.0.0/8".parse().expect("a network")];
    limited.path = "/strict/limited".to_owned();
    limited.rate = Some(Rate { milli_per_s: 1, burst: 0 });
    settings.edge.routes = [plain, strict, denied, limited].map(placed).into();
    let edge = Edge::start((settings, folder));
    let ask = |path: &str| {
        let head = edge.curl(&["--head", &format!("https://{DOMAIN}{path}")]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).expect("a status").to_owned();
        (status, head.contains("strict-transport-security: max-age=3600\r\n"))
    };
    for (path, expected) in [
        ("/plain", ("503", false)),
        ("/strict", ("503", true)),
        ("/strict/denied", ("403", true)),
        ("/strict/limited", ("503", true)),
        ("/strict/limited", ("429", true)),
        ("/elsewhere", ("404", true)),
    ] {
        let (status, strict) = ask(path);
        assert_eq!((status.as_str(), strict), expected, "{path}");
    }
    edge.set("web:80", &[free_address()]);
    assert_eq!(ask("/strict"), ("502".to_owned(), true));
    assert!(!edge.get("/strict").0.to_ascii_lowercase().contains("strict-transport"), "over plain HTTP");
}

#[test]
fn fields_are_counted_over_http2_too() {
    let echo = Echo::start();
    let (mut settings, folder) = settings();
    // Fewer than the upstream takes.
    settings.edge.limits.header_fields_max = 50;
    let edge = Edge::with((settings, folder), &[echo.address]);
    let status = |field: &dyn Fn(u32) -> String, count: u32| {
        let fields: Vec<String> = (0..count).flat_map(|number| ["--header".to_owned(), field(number)]).collect();
        let url = format!("https://{DOMAIN}/");
        let mut arguments = vec!["--http2", "--output", "/dev/null", "--write-out", "%{http_code}", &url];
        arguments.extend(fields.iter().map(String::as_str));
        edge.curl(&arguments)
    };
    assert_eq!(status(&|number| format!("a{number}: b"), 40), "200");
    assert_eq!(status(&|number| format!("a{number}: b"), 60), "431");
    // The pieces of a cookie aren't fields but for HTTP/2.
    assert_eq!(status(&|number| format!("cookie: a{number}=b"), 60), "200");
    assert_eq!(echo.requests(), 2);
    assert_eq!(edge.report().answered["4xx"], 1);
}
