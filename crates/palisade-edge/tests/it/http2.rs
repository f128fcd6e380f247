//! HTTP/2 with upstreams (gRPC needs it), and what clients may not do with it.

use crate::frames::{Client, END_STREAM, GOAWAY, HEADERS, RST_STREAM, frame, request};
use crate::support::{DOMAIN, Edge, PATIENCE, settings, skipped, wait_until};
use crate::upstream::{Echo, Grpc};
use palisade_core::edge::UpstreamProtocol;
use palisade_core::edge::{AccessLog, LogFormat};
use std::process::Command;
use std::time::{Duration, Instant};

fn edge(upstreams: &[std::net::SocketAddr]) -> Edge {
    let (mut settings, folder) = settings();
    settings.edge.routes[0].value.protocol = UpstreamProtocol::H2c;
    Edge::with((settings, folder), upstreams)
}

#[test]
fn grpc_passes_with_its_trailers() {
    let grpc = Grpc::start();
    let edge = edge(&[grpc.address]);
    let text = edge.curl(&[
        "--http2",
        "--dump-header",
        "-",
        "--header",
        "te: trailers",
        "--header",
        "content-type: application/grpc",
        "--data-binary",
        "abcde",
        &format!("https://{DOMAIN}/pkg.Service/Call"),
    ]);
    assert!(text.starts_with("HTTP/2 200"), "{text}");
    for part in
        ["method: POST", "path: /pkg.Service/Call", "x-te: trailers", "bytes: 5", &format!("authority: {DOMAIN}")]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.ends_with("answer"), "{text}");
    // curl keeps trailers of HTTP/2 to itself.
    let script = format!(
        "const c = require('http2').connect('https://{}', {{rejectUnauthorized: false, servername: '{DOMAIN}'}});
         const r = c.request({{':method': 'POST', ':path': '/x', ':authority': '{DOMAIN}', te: 'trailers'}});
         r.on('trailers', t => console.log('trailer', t['grpc-status']));
         r.on('data', d => console.log('data', d.toString()));
         r.on('end', () => c.close());
         r.end('abcde');",
        edge.https()
    );
    match Command::new("node").args(["-e", &script]).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            assert_eq!(text, "data answer\ntrailer 0\n", "{}", String::from_utf8_lossy(&output.stderr));
        }
        Err(error) => eprintln!("trailers aren't looked at: node can't be started: {error}"),
    }
    // The same over HTTP/1.1 in front.
    let text = edge.curl(&["--http1.1", "--include", "--data-binary", "abc", &format!("https://{DOMAIN}/x")]);
    assert!(
        text.starts_with("HTTP/1.1 200") && text.contains("bytes: 3") && text.contains("version: HTTP/2.0"),
        "{text}"
    );
    // All on one connection.
    assert_eq!(grpc.connections.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn an_upstream_of_http2_that_is_away_is_a_bad_gateway() {
    let edge = edge(&[crate::support::free_address()]);
    assert!(edge.get("/").0.starts_with("HTTP/1.1 502 "));
    let grpc = Grpc::start();
    edge.set("web:80", &[crate::support::free_address(), grpc.address]);
    for _ in 0..4 {
        assert!(edge.get("/").0.starts_with("HTTP/1.1 200 "));
    }
}

/// Resident memory of the edge, and its processor time in ticks.
pub(crate) fn burden(edge: &Edge) -> (u64, u64) {
    let read = |what: &str| std::fs::read_to_string(format!("/proc/{}/{what}", edge.child.id())).expect("it runs");
    let status = read("status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    let stat = read("stat");
    let fields: Vec<_> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks = fields[11].parse::<u64>().expect("a number") + fields[12].parse::<u64>().expect("a number");
    (resident.trim().trim_end_matches(" kB").parse().expect("a number"), ticks)
}

/// Speaks HTTP/2 by hand, over TLS of the system's openssl.
fn flood(edge: &Edge, frames: &[u8]) {
    use std::io::Write;
    let mut client = Command::new("openssl")
        .args(["s_client", "-quiet", "-alpn", "h2", "-servername", DOMAIN, "-connect", &edge.https().to_string()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("openssl is installed");
    let mut input = client.stdin.take().expect("a pipe");
    let _ = input.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    let _ = input.write_all(frames);
    let _ = input.flush();
    // The edge has ended the connection, so openssl ends when it notices.
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while client.try_wait().expect("it is our child").is_none() {
        assert!(std::time::Instant::now() < deadline, "the edge lets it go on");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// `GET https://shop.example/` as HPACK without dictionary entries of its own.
fn head() -> Vec<u8> {
    let mut head = vec![0x82, 0x87, 0x84, 0x41, u8::try_from(DOMAIN.len()).expect("short")];
    head.extend_from_slice(DOMAIN.as_bytes());
    head
}

#[test]
fn many_streams_at_once_are_all_answered_and_logged() {
    const REQUESTS: usize = 600;
    let echo = Echo::start();
    let (mut settings, folder) = settings();
    let log = folder.path().join("access.log");
    settings.edge.access_log =
        Some(AccessLog { format: LogFormat::Json, query: false, file_bytes_max: 50 << 20, files: 2 });
    settings.access_log = Some(log.clone());
    settings.workers = 2;
    let edge = Edge::with((settings, folder), &[echo.address]);
    let ran = Command::new("h2load")
        .args(["--clients=4", "--max-concurrent-streams=50", &format!("--requests={REQUESTS}")])
        .arg(format!("--connect-to={}", edge.https()))
        .arg(format!("https://{DOMAIN}/load"))
        .output();
    let ran = match ran {
        Ok(ran) => ran,
        Err(error) => return skipped("many streams at once", format!("h2load can't be started: {error}")),
    };
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(text.contains("Application protocol: h2"), "{text}{}", String::from_utf8_lossy(&ran.stderr));
    assert!(text.contains(&format!("{REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout")), "{text}");
    assert!(text.contains(&format!("status codes: {REQUESTS} 2xx, 0 3xx, 0 4xx, 0 5xx")), "{text}");
    assert_eq!(echo.requests(), REQUESTS);
    let logged = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("it is JSON"));
        lines.filter(|line| line["path"] == "/load" && line["status"] == 200).count()
    };
    wait_until("every request is logged", || logged() >= REQUESTS);
    assert_eq!((logged(), edge.report().answered["2xx"]), (REQUESTS, REQUESTS as u64));
}

#[test]
fn rapid_resets_end_the_connection_and_cost_little() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    let before = burden(&edge);
    let mut frames = Vec::new();
    for stream in (1..200_001).step_by(2) {
        frames.extend(frame(1, 0x5, stream, &head()));
        frames.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
    }
    for _ in 0..3 {
        flood(&edge, &frames);
    }
    let after = burden(&edge);
    assert!(after.0 < before.0 + 40_000, "{before:?} {after:?} kB");
    assert!(after.1 < before.1 + 1000, "{before:?} {after:?} ticks");
    assert!(echo.requests() < 10_000, "{}", echo.requests());
    assert!(edge.get("/").0.starts_with("HTTP/1.1 200 "));
}

#[test]
fn endless_heads_end_the_connection_and_cost_little() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    let before = burden(&edge);
    // A head that never ends: CONTINUATION frames, empty ones and full ones.
    for payload in [&[][..], &[0x40, 1, b'a', 1, b'b'].repeat(3000)] {
        let mut frames = frame(1, 0x1, 1, &head());
        for _ in 0..(20_000_000 / (payload.len() + 9)).min(400_000) {
            frames.extend(frame(9, 0, 1, payload));
        }
        flood(&edge, &frames);
    }
    let after = burden(&edge);
    assert!(after.0 < before.0 + 40_000, "{before:?} {after:?} kB");
    assert!(after.1 < before.1 + 1000, "{before:?} {after:?} ticks");
    assert_eq!(echo.requests(), 0);
    assert!(edge.get("/").0.starts_with("HTTP/1.1 200 "));
}

/// A client of HTTP/2 that says on standard output what happens to it. `None`, with the reason, if node isn't there.
fn node(edge: &Edge, script: &str) -> Option<std::process::Child> {
    let script = format!(
        "const c = require('http2').connect('https://{}', {{rejectUnauthorized: false, servername: '{DOMAIN}'}});
         c.on('error', () => {{}});
         c.on('goaway', () => console.log('goaway'));
         c.on('close', () => console.log('closed'));
         const ask = path => c.request({{':path': path, ':authority': '{DOMAIN}'}}).on('error', () => {{}});
         {script}",
        edge.https()
    );
    let node = Command::new("node").args(["-e", &script]).stdout(std::process::Stdio::piped()).spawn();
    node.inspect_err(|error| skipped("a client of HTTP/2", format!("node can't be started: {error}"))).ok()
}

#[test]
fn a_signal_drains_and_clients_of_http2_are_told() {
    use std::io::{BufRead, BufReader};
    let echo = Echo::start();
    let mut edge = Edge::with(settings(), &[echo.address]);
    let Some(mut client) = node(&edge, "ask('/').on('end', () => console.log('answered')).resume();") else { return };
    let mut lines = BufReader::new(client.stdout.take().expect("a pipe")).lines().map(|line| line.expect("text"));
    assert_eq!(lines.next().as_deref(), Some("answered"));
    let edge_pid = nix::unistd::Pid::from_raw(i32::try_from(edge.child.id()).expect("a process number"));
    nix::sys::signal::kill(edge_pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
    assert_eq!(lines.next().as_deref(), Some("goaway"));
    assert_eq!(lines.next().as_deref(), Some("closed"));
    crate::support::wait_until("the edge ends", || {
        edge.child.try_wait().expect("it is our child").is_some_and(|status| status.success())
    });
    let _ = client.wait();
}

#[test]
fn idle_clients_of_http2_are_told_before_the_connection_ends() {
    use std::io::{BufRead, BufReader};
    let (mut settings, folder) = settings();
    settings.edge.limits.idle_timeout_ms = 3_000;
    let echo = Echo::start();
    let edge = Edge::with((settings, folder), &[echo.address]);
    let Some(mut client) = node(&edge, "ask('/').on('end', () => console.log('answered')).resume();") else { return };
    let lines = BufReader::new(client.stdout.take().expect("a pipe")).lines().map(|line| line.expect("text"));
    assert_eq!(lines.collect::<Vec<_>>(), ["answered", "goaway", "closed"]);
    let _ = client.wait();
    // One that doesn't listen.
    let mut deaf = Client::connect(&edge, &[]);
    deaf.send(&request(1, "GET", "/", END_STREAM)).expect("it listens");
    let kinds: Vec<u8> = std::iter::from_fn(|| deaf.next()).map(|frame| frame.kind).collect();
    assert!(kinds.contains(&GOAWAY), "{kinds:?}");
    crate::support::wait_until("it is gone", || edge.report().connections == 0);
}

/// Until the head of this stream's answer. `None`: the edge has ended the connection.
fn answered(client: &mut Client, stream: u32) -> Option<bool> {
    loop {
        let frame = client.next()?;
        if frame.stream == stream && frame.kind == HEADERS {
            return Some(frame.is_ok());
        }
    }
}

#[test]
fn a_stream_that_its_client_leaves_no_room_is_reset_and_the_others_go_on() {
    let (mut settings, folder) = settings();
    settings.edge.limits.body_timeout_ms = 1000;
    settings.edge.routes[0].value.connections_per_client = Some(1);
    let echo = Echo::start();
    let edge = Edge::with((settings, folder), &[echo.address]);
    let mut client = Client::connect(&edge, &[]);
    client.send(&request(1, "GET", "/big/5000000", END_STREAM)).expect("it listens");
    let reset = loop {
        let frame = client.next().expect("the connection goes on");
        if frame.kind == RST_STREAM {
            break frame;
        }
        assert_ne!(frame.kind, GOAWAY);
    };
    assert_eq!((reset.stream, &reset.payload[..]), (1, &8_u32.to_be_bytes()[..]), "CANCEL");
    // Its place is free again.
    client.send(&request(3, "GET", "/big/10", END_STREAM)).expect("it listens");
    assert_eq!(answered(&mut client, 3), Some(true));
}

/// The library has all of a short answer; nobody can reset its stream.
#[test]
fn short_answers_that_nobody_takes_end_the_connection_however_much_else_is_asked_on_it() {
    let (mut settings, folder) = settings();
    settings.edge.limits.body_timeout_ms = 3_000;
    let echo = Echo::start();
    let edge = Edge::with((settings, folder), &[echo.address]);
    // Each stream has room for one byte.
    let mut client = Client::connect(&edge, &[0, 4, 0, 0, 0, 1]);
    client.send(&request(1, "GET", "/big/100", END_STREAM)).expect("it listens");
    assert_eq!(answered(&mut client, 1), Some(true));
    let deadline = Instant::now() + PATIENCE;
    for stream in (3..).step_by(2) {
        assert!(Instant::now() < deadline, "it goes on");
        // Nothing that would have to be taken.
        if client.send(&request(stream, "HEAD", "/", END_STREAM)).is_err() || answered(&mut client, stream).is_none() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    crate::support::wait_until("it is gone", || edge.report().connections == 0);
}
