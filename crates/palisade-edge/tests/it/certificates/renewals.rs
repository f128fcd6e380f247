//! Certificates are renewed in time, by a worker that runs for long, while connections go on.

use super::between::{Between, Rule};
use super::pebble::{self, Authority};
use super::stack::Stack;
use crate::support::{DOMAIN, wait_until};
use palisade_core::edge::Challenge;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

#[test]
fn a_worker_renews_in_time_and_open_connections_go_on() {
    if !pebble::is_here("renewal") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let mut wish = stack.wish();
    wish.validity_s = 15;
    let authority = Authority::start(wish);
    stack.order_from(vec![authority.directory()]);
    let mut worker = stack.start_worker();
    wait_until("there is a certificate", || !stack.served().is_empty());
    let first = stack.served();
    // A connection that is there before the renewal.
    let mut open = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &stack.edge.https().to_string(), "-servername", DOMAIN])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl is installed");
    let mut ask = open.stdin.take().expect("it is piped");
    let mut answers = BufReader::new(open.stdout.take().expect("it is piped"));
    let mut ask_once = || {
        ask.write_all(format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n").as_bytes()).expect("it is sent");
        let mut head = String::new();
        let mut length = 0;
        loop {
            let mut line = String::new();
            assert!(answers.read_line(&mut line).expect("the connection is there") > 0, "it ended after {head}");
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
            if line == "\r\n" {
                break;
            }
            head.push_str(&line);
        }
        std::io::copy(&mut std::io::Read::take(&mut answers, length), &mut std::io::sink()).expect("the body");
        head
    };
    assert!(ask_once().starts_with("HTTP/1.1 "));
    wait_until("it is renewed", || ![String::new(), first.clone()].contains(&stack.served()));
    let second = stack.served();
    wait_until("it is renewed again", || ![String::new(), second.clone()].contains(&stack.served()));
    assert!(ask_once().starts_with("HTTP/1.1 "), "the connection from before the renewals goes on");
    let _ = open.kill();
    let _ = open.wait();
    assert!(!stack.kinds().contains(&"certificate_failed".to_owned()), "{:?}", stack.events());
    // Ended by a signal, it ends well.
    let pid = nix::unistd::Pid::from_raw(worker.0.id().try_into().expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
    wait_until("the worker ends", || worker.0.try_wait().expect("it is our child").is_some());
    assert!(worker.0.try_wait().expect("it is our child").is_some_and(|status| status.success()));
}

/// Gives an authority that knows no renewal windows (RFC 9773) this one.
fn say(authority: &Between, start: &str, end: &str) {
    let at = authority.directory.url.replace("/dir", "/renewal");
    let head = "200 OK\r\nContent-Type: application/json\r\nRetry-After: 21600".to_owned();
    let window = format!(r#"{{"suggestedWindow":{{"start":"{start}","end":"{end}"}}}}"#);
    authority.rules([
        Rule::Replace(r#""keyChange""#.to_owned(), format!(r#""renewalInfo": "{at}", "keyChange""#)),
        Rule::Answer("/renewal", head, window),
    ]);
}

#[test]
fn a_certificate_that_its_authority_wants_replaced_is_replaced_at_once() {
    if !pebble::is_here("renewal windows") {
        return;
    }
    let mut stack = Stack::new(Challenge::Http01);
    let authority = Authority::start(stack.wish());
    let windows = Between::new(&authority, &stack);
    stack.order_from(vec![windows.directory.clone()]);
    say(&windows, "2100-01-01T00:00:00Z", "2100-01-02T00:00:00Z");
    stack.obtain();
    let first = stack.served();
    // Asked when there is something to ask about: far away, so the last tenth decides, and no change is told.
    assert!(matches!(stack.look(), palisade_edge::acme::Outcome::Kept { .. }));
    assert_eq!(stack.remembered()["window"]["renew_s"].as_u64().map(|time| time > 4_000_000_000), Some(true));
    // It is about to be revoked: the window is in the past (section 4.1), which is seen when it is time to ask again.
    say(&windows, "2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z");
    assert!(matches!(stack.look(), palisade_edge::acme::Outcome::Kept { .. }), "not asked before it is time");
    let mut memory = stack.remembered();
    memory["window"]["look_s"] = 0.into();
    std::fs::write(stack.worker.state.join("domains/shop.example.json"), memory.to_string()).expect("it is there");
    // This authority knows nothing of replacing, so the order is made again without it.
    stack.obtain();
    assert_ne!(stack.served(), first);
    assert!(stack.kinds().contains(&"certificate_window_changed".to_owned()), "{:?}", stack.kinds());
}
