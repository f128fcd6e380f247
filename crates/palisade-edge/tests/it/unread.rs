//! Requests that never become one: they are logged and counted nevertheless.

use crate::support::{DOMAIN, Edge, settings, wait_until};
use crate::upstream::Echo;
use palisade_core::edge::{AccessLog, LogFormat};
use std::io::Write;

fn edge(format: LogFormat, upstream: &Echo) -> (Edge, std::path::PathBuf) {
    let (mut settings, folder) = settings();
    let log = folder.path().join("access.log");
    settings.edge.access_log = Some(AccessLog { format, query: false, file_bytes_max: 1 << 20, files: 2 });
    settings.access_log = Some(log.clone());
    settings.edge.limits.header_timeout_ms = 6_000;
    (Edge::with((settings, folder), &[upstream.address]), log)
}

/// Status and request of what is new in the log, once there are so many lines.
fn logged(log: &std::path::Path, known: &mut usize, count: usize) -> Vec<(u64, String)> {
    let lines = || std::fs::read_to_string(log).unwrap_or_default().lines().map(str::to_owned).collect::<Vec<_>>();
    wait_until("it is logged", || lines().len() >= *known + count);
    let all = lines();
    let new = all[*known..].iter().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).expect("each line is JSON");
        assert_eq!((line["client"].as_str(), line["scheme"].as_str()), (Some("127.0.0.1"), Some("http")), "{line}");
        let what = line["request"].as_str().or(line["path"].as_str()).expect("what it was");
        (line["status"].as_u64().expect("a number"), what.to_owned())
    });
    let new: Vec<_> = new.collect();
    *known = all.len();
    new
}

#[test]
fn requests_that_nobody_could_read_are_logged_and_counted() {
    let echo = Echo::start();
    let (edge, log) = edge(LogFormat::Json, &echo);
    let good = format!("GET /good HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n");
    let mut known = 0;
    for (sent, expected) in [
        // Refused before the library sees it.
        ("GET /a HTTP/1.1\nHost: a\n\n".to_owned(), &[(400, "GET /a HTTP/1.1")][..]),
        (format!("GET /b HTTP/1.1\r\nHost: {DOMAIN}\r\nA : b\r\n\r\n"), &[(400, "GET /b HTTP/1.1")]),
        // Refused by the library; secrets aren't logged unless asked.
        ("GET /c?token=secret HTTP/1.2\r\nHost: a\r\n\r\n".to_owned(), &[(400, "GET /c")]),
        ("\u{16}\u{3}\u{1}\r\n\r\n".to_owned(), &[(400, "\u{16}\u{3}\u{1}")]),
        (format!("GET /d HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "x".repeat(40_000)), &[(431, "GET /d HTTP/1.1")]),
        // Behind one that is fine.
        (format!("{good}GET /e\nHost: a"), &[(200, "/good"), (400, "GET /e")]),
        (format!("{good}GET /f HTTP/1.1\r\nHost\r\n\r\n"), &[(200, "/good"), (400, "GET /f HTTP/1.1")]),
        // Begun, and then nothing.
        ("GET /g HTTP/1.1\r\nHost: a".to_owned(), &[(408, "GET /g HTTP/1.1")]),
        // A request that is there has its line already.
        (format!("POST /h HTTP/1.1\r\nHost: {DOMAIN}\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"), &[(400, "/h")]),
    ] {
        edge.raw(&sent);
        let found = logged(&log, &mut known, expected.len());
        let expected: Vec<_> = expected.iter().map(|(status, what)| (*status, (*what).to_owned())).collect();
        assert_eq!(found, expected, "{sent:?}");
    }
    // In parts, each of which looks fine.
    let mut client = edge.connect();
    for part in ["GET /i?tok", "en=1 HTTP/1.1\r\nHo", "st: a\r\nA: b\rc", ": d\r\n\r\n"] {
        client.write_all(part.as_bytes()).expect("it is sent");
        std::thread::sleep(std::time::Duration::from_millis(30));
    }
    assert!(crate::support::read_all(&mut client).starts_with("HTTP/1.1 400 "));
    assert_eq!(logged(&log, &mut known, 1), [(400, "GET /i".to_owned())]);
    // The client goes within its head.
    let mut client = edge.connect();
    client.write_all(b"GET /j HTTP/1.1\r\nA").expect("it is sent");
    drop(client);
    assert_eq!(logged(&log, &mut known, 1), [(499, "GET /j HTTP/1.1".to_owned())]);
    // Who has said nothing has asked for nothing.
    drop(edge.connect());
    edge.raw("");
    edge.get("/good");
    assert_eq!(logged(&log, &mut known, 1), [(200, "/good".to_owned())]);
    let answered = edge.report().answered;
    assert_eq!((answered.get("2xx"), answered.get("4xx")), (Some(&3), Some(&9)), "{answered:?}");
}

#[test]
fn unread_requests_over_tls_and_in_the_combined_format_are_logged_too() {
    let echo = Echo::start();
    let (edge, log) = edge(LogFormat::Combined, &echo);
    let mut client = std::process::Command::new("openssl")
        .args(["s_client", "-quiet", "-servername", DOMAIN, "-connect", &edge.https().to_string()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("openssl is installed");
    let mut input = client.stdin.take().expect("a pipe");
    input.write_all(b"GET /\x1b[2J\" HTTP/1.1\r\n\r\n").expect("it is sent");
    wait_until("it is logged", || std::fs::read_to_string(&log).is_ok_and(|text| text.ends_with('\n')));
    let _ = client.kill();
    let _ = client.wait();
    let text = std::fs::read_to_string(&log).expect("it is there");
    assert!(text.starts_with("127.0.0.1 - - ["), "{text}");
    assert!(text.ends_with("] \"GET /\\x1B[2J\\x22 HTTP/1.1\" 400 0 \"-\" \"-\"\n"), "{text}");
}
