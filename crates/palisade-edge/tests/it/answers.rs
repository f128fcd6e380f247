//! What the edge does with answers besides passing them on: compression, the user's own pages, and the access log.

use crate::support::{DOMAIN, Edge, connect, free_address, placed, read_until, route, settings, wait_until};
use crate::upstream::{Echo, raw, read_head};
use palisade_core::edge::{AccessLog, LogFormat};
use std::io::{Read, Write};
use std::sync::Mutex;
use std::sync::mpsc::channel;

const TEXT: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nETag: \"a\"\r\n";

fn compressing(types: &[&str]) -> (palisade_core::edge::Settings, crate::support::Folder) {
    let (mut settings, folder) = settings();
    let mut route = route();
    route.compress = types.iter().map(|kind| (*kind).to_owned()).collect();
    settings.edge.routes = vec![placed(route)];
    (settings, folder)
}

#[test]
fn what_a_route_lists_is_compressed_as_the_client_likes_it() {
    let body = "a line that comes again and again\n".repeat(3000);
    let answer = format!("{TEXT}Content-Length: {}\r\n\r\n{body}", body.len());
    let upstream = raw(move |mut stream, _| {
        while read_head(&mut stream).is_some() {
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let edge = Edge::with(compressing(&["text/*"]), &[upstream]);
    let url = format!("https://{DOMAIN}/");
    for version in ["--http1.1", "--http2"] {
        for coding in ["gzip", "br", "zstd"] {
            let head = edge.curl(&[
                version,
                "--dump-header",
                "-",
                "--output",
                "/dev/null",
                "-H",
                &format!("Accept-Encoding: {coding}"),
                &url,
            ]);
            let head = head.to_ascii_lowercase();
            assert!(head.contains(&format!("content-encoding: {coding}\r\n")), "{head}");
            assert!(head.contains("vary: accept-encoding\r\n") && head.contains("etag: w/\"a\"\r\n"), "{head}");
            assert!(!head.contains("content-length:"), "{head}");
        }
        let size = edge.curl(&[
            version,
            "--output",
            "/dev/null",
            "--write-out",
            "%{size_download}",
            "-H",
            "Accept-Encoding: gzip",
            &url,
        ]);
        assert!(size.parse::<usize>().is_ok_and(|size| size < body.len() / 10), "{size}");
        assert_eq!(edge.curl(&[version, "--compressed", &url]), body);
        assert_eq!(edge.curl(&[version, &url]), body);
    }
    let head = edge.curl(&["--head", "--compressed", &url]).to_ascii_lowercase();
    assert!(
        head.contains(&format!("content-length: {}\r\n", body.len())) && !head.contains("content-encoding"),
        "{head}"
    );
}

#[test]
fn a_compressed_answer_is_not_kept_back_until_it_is_whole() {
    let (next, wanted) = channel::<()>();
    let wanted = Mutex::new(wanted);
    let upstream = raw(move |mut stream, _| {
        read_head(&mut stream);
        let _ = stream.write_all(format!("{TEXT}\r\n").as_bytes());
        let _ = stream.write_all(b"first");
        let _ = wanted.lock().expect("no panic").recv();
        let _ = stream.write_all(b"second");
    });
    let edge = Edge::with(compressing(&["text/plain"]), &[upstream]);
    let mut client = edge.connect();
    client
        .write_all(
            format!("GET / HTTP/1.0\r\nHost: {DOMAIN}\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n")
                .as_bytes(),
        )
        .expect("it is sent");
    let head = read_until(&mut client, "\r\n\r\n").to_ascii_lowercase();
    assert!(head.contains("content-encoding: gzip"), "{head}");
    let mut body = flate2::read::GzDecoder::new(client);
    let mut part = [0; 5];
    body.read_exact(&mut part).expect("the first part comes before the second is sent");
    assert_eq!(&part, b"first");
    next.send(()).expect("the upstream waits");
    let mut rest = String::new();
    body.read_to_string(&mut rest).expect("the rest");
    assert_eq!(rest, "second");
}

#[test]
fn an_answer_that_breaks_off_is_not_made_whole_by_compression() {
    let upstream = raw(|mut stream, _| {
        read_head(&mut stream);
        let _ = stream.write_all(format!("{TEXT}Content-Length: 100000\r\n\r\n{}", "x".repeat(50_000)).as_bytes());
    });
    let edge = Edge::with(compressing(&["text/plain"]), &[upstream]);
    let answer =
        edge.raw(format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.ends_with("0\r\n\r\n"), "{answer}");
}

#[test]
fn errors_of_the_edges_own_have_the_users_pages() {
    let (mut settings, folder) = settings();
    let pages = folder.path().join("pages");
    std::fs::create_dir_all(&pages).expect("its folder is there");
    std::fs::write(pages.join("502.html"), "<h1>Back soon</h1>").expect("its folder is there");
    settings.edge.error_pages = Some(pages);
    let edge = Edge::with((settings, folder), &[free_address()]);
    let (head, body) = edge.get("/");
    assert!(
        head.starts_with("HTTP/1.1 502 ") && head.to_ascii_lowercase().contains("content-type: text/html"),
        "{head}"
    );
    assert_eq!(body, "<h1>Back soon</h1>");
    let answer = edge.raw("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("text/plain"), "{answer}");
}

#[test]
fn each_request_has_a_line_in_the_log_even_if_its_client_has_gone() {
    for format in [LogFormat::Json, LogFormat::Combined] {
        let (mut settings, folder) = settings();
        let path = folder.path().join("access.log");
        settings.edge.access_log = Some(AccessLog { format, query: false, file_bytes_max: 1 << 20, files: 2 });
        settings.access_log = Some(path.clone());
        let (asked, arrived) = channel();
        let asked = Mutex::new(asked);
        let slow = raw(move |mut stream, _| {
            read_head(&mut stream);
            let _ = asked.lock().expect("no panic").send(());
            // Until the edge closes.
            let _ = stream.read(&mut [0]);
        });
        let echo = Echo::start();
        let edge = Edge::with((settings, folder), &[echo.address]);
        edge.curl(&["--http2", "-A", "a\"b", &format!("https://{DOMAIN}/x?secret=1")]);
        edge.raw("nonsense\r\n\r\n");
        edge.set("web:80", &[slow]);
        let mut gone = connect(edge.http());
        gone.write_all(format!("GET /gone HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n").as_bytes()).expect("it is sent");
        arrived.recv_timeout(crate::support::PATIENCE).expect("the upstream is asked");
        drop(gone);
        let text = || std::fs::read_to_string(&path).unwrap_or_default();
        wait_until("all lines are there", || text().lines().count() == 3);
        let text = text();
        assert!(!text.contains("secret"), "{text}");
        let lines: Vec<_> = text.lines().collect();
        match format {
            LogFormat::Json => {
                let [first, unread, second] =
                    [0, 1, 2].map(|n| serde_json::from_str::<serde_json::Value>(lines[n]).expect("JSON"));
                assert_eq!(first["path"], "/x");
                assert_eq!(first["version"], "HTTP/2.0");
                assert_eq!((&first["status"], &first["host"]), (&200.into(), &DOMAIN.into()));
                assert_eq!(first["user_agent"], "a\"b");
                assert!(first["bytes"].as_u64().is_some_and(|bytes| bytes > 20), "{first}");
                assert_eq!((&unread["request"], &unread["status"]), (&"nonsense".into(), &400.into()));
                assert_eq!((&second["path"], &second["status"]), (&"/gone".into(), &499.into()));
            }
            LogFormat::Combined => {
                assert!(
                    lines[0].contains("\"GET /x HTTP/2.0\" 200 ") && lines[0].ends_with("\"-\" \"a\\x22b\""),
                    "{text}"
                );
                assert!(lines[1].contains("\"nonsense\" 400 0 "), "{text}");
                assert!(lines[2].contains("\"GET /gone HTTP/1.1\" 499 0 "), "{text}");
            }
        }
    }
}
