use super::*;
use crate::address::Address;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Uri, Version};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Instant;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("palisade-access-log-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn settings(format: LogFormat, query: bool) -> AccessLog {
    AccessLog { format, query, file_bytes_max: 1 << 20, files: 3 }
}

fn log_one(log: &Arc<Log>, uri: &str, agent: &[u8]) {
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static("shop.example"));
    headers.insert("user-agent", HeaderValue::from_bytes(agent).unwrap());
    headers.insert("referer", HeaderValue::from_static("https://a.example/x?token=secret"));
    let uri: Uri = uri.parse().unwrap();
    let client = Address::from("2001:db8::1".parse::<IpAddr>().unwrap());
    let seen = Seen {
        client: &client,
        scheme: "https",
        method: &Method::GET,
        uri: &uri,
        version: Version::HTTP_2,
        headers: &headers,
    };
    let mut entry = log.begin(&seen);
    entry.answered(200);
    entry.sent(5);
    entry.sent(6);
}

fn logged(format: LogFormat, query: bool) -> String {
    let folder = Folder::new(&format!("{format:?}-{query}"));
    let path = folder.0.join("access.log");
    let log = Arc::new(Log::start(&path, settings(format, query), |said| panic!("{said}")).unwrap());
    log_one(&log, "/a?password=1", b"curl \"quoted\" \\ \xe4\t\x1b"[..18].as_ref());
    drop(log);
    fs::read_to_string(path).unwrap()
}

#[test]
fn json_lines_are_json_and_hold_no_secrets_unless_asked() {
    let line = logged(LogFormat::Json, false);
    assert_eq!(line.lines().count(), 1);
    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(json["client"], "2001:db8::1");
    assert_eq!(json["path"], "/a");
    assert_eq!(json["referer"], "https://a.example/x");
    assert_eq!(json["user_agent"], "curl \"quoted\" \\ \u{e4}\t");
    assert_eq!((json["status"].as_u64(), json["bytes"].as_u64()), (Some(200), Some(11)));
    let json: serde_json::Value = serde_json::from_str(&logged(LogFormat::Json, true)).unwrap();
    assert_eq!(json["path"], "/a?password=1");
}

#[test]
fn combined_lines_cannot_be_forged() {
    let line = logged(LogFormat::Combined, false);
    let (before, behind) = line.split_once("] ").unwrap();
    assert!(before.starts_with("2001:db8::1 - - ["), "{line}");
    assert_eq!(
        behind,
        "\"GET /a HTTP/2.0\" 200 11 \"https://a.example/x\" \"curl \\x22quoted\\x22 \\x5C \\xE4\\x09\"\n"
    );
}

#[test]
fn what_could_not_be_read_is_logged_by_its_first_line() {
    for (line, query, json, combined) in [
        (&b"GET /a?token=secret HTTP/1.2"[..], false, "GET /a", "GET /a"),
        (b"GET /a?b HTTP/1.2", true, "GET /a?b HTTP/1.2", "GET /a?b HTTP/1.2"),
        (b"\x16\x03\" 200 1", false, "\u{16}\u{3}\" 200 1", "\\x16\\x03\\x22 200 1"),
        (b"", false, "", "-"),
    ] {
        let client = Address::from("198.51.100.7".parse::<IpAddr>().unwrap());
        let unread = Unread { client: &client, scheme: "http", status: 400, line };
        let text = String::from_utf8(unread.line(LogFormat::Json, query)).unwrap();
        assert!(text.ends_with("}\n") && text.lines().count() == 1, "{text}");
        let logged: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((logged["request"].as_str(), logged["status"].as_u64()), (Some(json), Some(400)));
        assert_eq!((logged["client"].as_str(), logged["scheme"].as_str()), (Some("198.51.100.7"), Some("http")));
        let text = String::from_utf8(unread.line(LogFormat::Combined, query)).unwrap();
        let (before, behind) = text.split_once("] ").unwrap();
        assert!(before.starts_with("198.51.100.7 - - ["), "{text}");
        assert_eq!(behind, format!("\"{combined}\" 400 0 \"-\" \"-\"\n"));
    }
}

#[test]
fn files_are_put_aside_and_the_oldest_goes() {
    let folder = Folder::new("rotation");
    let path = folder.0.join("access.log");
    let settings = AccessLog { file_bytes_max: 2_000, ..settings(LogFormat::Combined, false) };
    let log = Arc::new(Log::start(&path, settings, |said| panic!("{said}")).unwrap());
    for number in 0..300 {
        log_one(&log, &format!("/{number:03}"), b"x");
    }
    drop(log);
    let mut names: Vec<_> = fs::read_dir(&folder.0).unwrap().map(|it| it.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["access.log", "access.log.1", "access.log.2"]);
    let texts =
        ["access.log.2", "access.log.1", "access.log"].map(|name| fs::read_to_string(folder.0.join(name)).unwrap());
    assert!(texts.iter().all(|text| text.len() <= 2_000 && text.ends_with('\n')), "{texts:?}");
    // The last ones, none missing and none twice.
    let all = texts.concat();
    let numbers: Vec<u32> = all
        .lines()
        .map(|line| line.split(['/', ' ']).find_map(|it| it.parse().ok().filter(|_| it.len() == 3)).unwrap())
        .collect();
    let first = numbers[0];
    assert!(numbers.len() > 30, "{}", numbers.len());
    assert_eq!(numbers, (first..300).collect::<Vec<_>>());
}

#[test]
fn a_full_disk_is_said_once_and_gets_over() {
    let folder = Folder::new("full");
    let path = folder.0.join("access.log");
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let (sender, said) = mpsc::channel();
    let log = Log::start(&path, settings(LogFormat::Combined, false), move |text| sender.send(text).unwrap());
    let log = Arc::new(log.unwrap());
    let wait = Duration::from_secs(60);
    log_one(&log, "/1", b"x");
    let first = said.recv_timeout(wait).unwrap();
    assert!(first.contains("No space left on device"), "{first}");
    log_one(&log, "/2", b"x");
    let deadline = Instant::now() + wait;
    while log.dropped() < 2 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::remove_file(&path).unwrap();
    log_one(&log, "/3", b"x");
    let second = said.recv_timeout(wait).unwrap();
    assert!(second.contains("written again; 2 lines were lost"), "{second}");
    drop(log);
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains("GET /3 ") && text.lines().count() == 1, "{text}");
    assert!(said.recv().is_err(), "nothing else was said");
}

#[test]
fn a_log_that_cannot_be_written_holds_nobody_up() {
    let folder = Folder::new("bounded");
    let (sender, said) = mpsc::channel();
    let log = Log::start(&folder.0, settings(LogFormat::Combined, false), move |text| drop(sender.send(text)));
    let log = Arc::new(log.unwrap());
    for _ in 0..200_000 {
        log_one(&log, "/", &[b'x'; 100]);
    }
    assert!(log.shared.lock().lines.capacity() <= 2 * WAITING_BYTES_MAX);
    let shared = Arc::clone(&log.shared);
    drop(log);
    assert_eq!(shared.dropped.load(Ordering::Relaxed), 200_000);
    assert_eq!(said.iter().count(), 1);
}
