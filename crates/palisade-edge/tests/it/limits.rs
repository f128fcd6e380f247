//! Clients and upstreams that are too slow, too many or too long.

use crate::support::{DOMAIN, Edge, PATIENCE, read_all, read_until, settings, skipped, tls, wait_until};
use crate::upstream::{Echo, raw, read_head};
use nix::sys::socket::{setsockopt, sockopt::RcvBuf};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

#[test]
fn bodies_that_are_too_long_are_refused_before_and_while_they_come() {
    let (mut settings, folder) = settings();
    settings.edge.routes[0].value.body_bytes_max = 1000;
    let echo = Echo::start();
    let edge = Edge::with((settings, folder), &[echo.address]);
    let text = edge.raw(format!("POST / HTTP/1.1\r\nHost: {DOMAIN}\r\nContent-Length: 1001\r\n\r\n"));
    assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
    assert_eq!(echo.requests(), 0);
    for version in ["--http1.1", "--http2"] {
        for (bytes, expected) in [(1000, "200"), (1001, "413"), (500_000, "413")] {
            for more in ["X: y", "Transfer-Encoding: chunked"] {
                let [send, file] = edge.body(bytes);
                let url = format!("https://{DOMAIN}/");
                let status = edge.curl(&[
                    version,
                    "--output",
                    "/dev/null",
                    "--write-out",
                    "%{http_code}",
                    "--header",
                    more,
                    &send,
                    &file,
                    &url,
                ]);
                assert_eq!(status, expected, "{version} {bytes} {more}");
            }
        }
    }
}

#[test]
fn heads_that_are_too_long_are_refused() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    for (head, expected) in [
        (
            format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\nA: {}\r\n\r\n", "x".repeat(20_000)),
            "HTTP/1.1 200 ",
        ),
        (format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\nA: {}\r\n\r\n", "x".repeat(40_000)), "HTTP/1.1 431 "),
        (format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\n{}\r\n", "A: b\r\n".repeat(150)), "HTTP/1.1 431 "),
        (format!("GET /{} HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n", "x".repeat(40_000)), "HTTP/1.1 431 "),
        (format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\n{}", "A: b\r\n".repeat(100_000)), "HTTP/1.1 4"),
    ] {
        let mut stream = edge.connect();
        let _ = stream.write_all(head.as_bytes());
        let answer = read_all(&mut stream);
        assert!(answer.starts_with(expected), "{}: {answer:?}", head.len());
    }
}

#[test]
fn an_upstream_that_takes_too_long_is_a_gateway_timeout() {
    let (mut settings, folder) = settings();
    settings.edge.routes[0].value.upstream_timeout_ms = 2_000;
    let upstream = raw(|mut stream, number| {
        while read_head(&mut stream).is_some() {
            if number % 2 == 1 {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
            }
        }
    });
    let edge = Edge::with((settings, folder), &[upstream]);
    assert!(edge.get("/").0.starts_with("HTTP/1.1 504 "));
    // Within an answer nothing can be said any more.
    let answer = edge.raw(format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("abc"), "{answer}");
}

#[test]
fn clients_that_send_too_slowly_are_cut() {
    let (mut settings, folder) = settings();
    settings.edge.limits.header_timeout_ms = 1_500;
    settings.edge.limits.idle_timeout_ms = 1_700;
    settings.edge.limits.body_timeout_ms = 1_500;
    let echo = Echo::start();
    let edge = Edge::with((settings, folder), &[echo.address]);
    let begun = format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\nX: ");
    let whole = format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n");
    // Nothing, a part of a head, a head byte by byte, a request and then nothing, a request and then a part.
    for (text, expected) in
        [("", ""), (&begun, ""), (&whole, "HTTP/1.1 200 "), (&(whole.clone() + &begun), "HTTP/1.1 200 ")]
    {
        let answer = edge.raw(text);
        assert!(
            answer.starts_with(expected) && (answer.is_empty() || answer.ends_with("body: 0\n")),
            "{text:?}: {answer:?}"
        );
    }
    let mut dripping = edge.connect();
    let deadline = Instant::now() + PATIENCE;
    dripping.write_all(begun.as_bytes()).expect("it is sent");
    while dripping.write_all(b"x").is_ok() {
        assert!(Instant::now() < deadline, "it isn't cut");
        std::thread::sleep(Duration::from_millis(50));
    }
    let answer = edge.raw(format!("POST / HTTP/1.1\r\nHost: {DOMAIN}\r\nContent-Length: 10\r\n\r\nabc"));
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    // No handshake.
    assert_eq!(read_all(&mut crate::support::connect(edge.https())), "");
    wait_until("all are gone", || edge.report().connections == 0);
}

#[test]
fn clients_that_drip_a_body_are_cut() {
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    let mut client = edge.connect();
    client
        .write_all(format!("POST / HTTP/1.1\r\nHost: {DOMAIN}\r\nContent-Length: 100000\r\n\r\n").as_bytes())
        .expect("it is sent");
    let mut reader = client.try_clone().expect("a socket");
    let reading = std::thread::spawn(move || read_all(&mut reader));
    let deadline = Instant::now() + PATIENCE;
    while !reading.is_finished() {
        assert!(Instant::now() < deadline, "it isn't cut");
        let _ = client.write_all(b"x");
        std::thread::sleep(Duration::from_millis(250));
    }
    let answer = reading.join().expect("it reads");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[test]
fn clients_that_take_nothing_are_cut() {
    let (mut settings, folder) = settings();
    settings.edge.limits.body_timeout_ms = 1000;
    let echo = Echo::start();
    let edge = Edge::with((settings, folder), &[echo.address]);
    let mut client = edge.connect();
    client.write_all(format!("GET /big/50000000 HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n").as_bytes()).expect("it is sent");
    read_until(&mut client, "\r\n\r\n");
    wait_until("it is cut", || edge.report().connections == 0);
    let mut rest = Vec::new();
    let ended = client.read_to_end(&mut rest);
    assert!(ended.is_err() || rest.len() < 50_000_000, "{}", rest.len());
}

/// What it hasn't taken yet is owed to it, though all of it has been handed to the kernel.
#[test]
fn an_answer_that_is_taken_late_is_not_lost_when_nobody_asks_any_more() {
    const BYTES: usize = 500_000;
    fn ask(client: &mut impl Write) {
        let request = format!("GET /big/{BYTES} HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n");
        client.write_all(request.as_bytes()).expect("it is sent");
    }
    fn take(client: &mut impl Read) {
        read_until(client, "\r\n\r\n");
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).expect("all of it, and then an end, no reset");
        assert_eq!(answer.len(), BYTES);
    }
    let (mut settings, folder) = settings();
    settings.edge.limits.idle_timeout_ms = 500;
    let echo = Echo::start();
    let edge = Edge::with((settings, folder), &[echo.address]);
    let (mut plain, mut tls) = (edge.connect(), tls(&edge, &[b"http/1.1"]));
    for socket in [&plain, &tls.sock] {
        setsockopt(socket, RcvBuf, &(64 << 10)).expect("a socket");
    }
    ask(&mut plain);
    ask(&mut tls);
    std::thread::sleep(Duration::from_secs(2));
    take(&mut plain);
    take(&mut tls);
    wait_until("all are gone", || edge.report().connections == 0);
}

#[test]
fn whoever_sends_slowly_what_is_refused_gets_the_answer() {
    const PARTS: usize = 16;
    let echo = Echo::start();
    let edge = Edge::with(settings(), &[echo.address]);
    let part = vec![b'x'; 1 << 20];
    let head = format!("POST / HTTP/1.1\r\nHost: {DOMAIN}\r\nContent-Length: {}\r\n\r\n", PARTS * part.len());
    let refused = || {
        let mut client = edge.connect();
        client.write_all(head.as_bytes()).expect("it is sent");
        let mut longest = Duration::ZERO;
        // It reads nothing before all is sent.
        let whole = (0..PARTS).all(|_| {
            let begin = Instant::now();
            std::thread::sleep(Duration::from_millis(200));
            let sent = client.write_all(&part).is_ok();
            longest = longest.max(begin.elapsed());
            sent
        });
        let answer = whole.then(|| read_all(&mut client));
        // Whoever was held up may have been silent for too long.
        (longest < Duration::from_secs(2)).then_some(answer)
    };
    match (0..5).find_map(|_| refused()) {
        Some(answer) => assert!(answer.is_some_and(|it| it.starts_with("HTTP/1.1 413 ")), "the answer is lost"),
        None => skipped("the answer to what is sent slowly", "the machine is too busy"),
    }
}

#[test]
fn without_descriptors_accepting_rests_and_then_goes_on() {
    let echo = Echo::start();
    let mut command = std::process::Command::new("prlimit");
    command.args(["--nofile=60:60"]).arg(std::env::current_exe().expect("this program has a path"));
    let (settings, folder) = settings();
    let said = folder.path().join("said");
    command.stderr(std::fs::File::create(&said).expect("its folder is there"));
    let edge = Edge::start_by(command, (settings, folder));
    edge.set("web:80", &[echo.address]);
    let clients: Vec<_> = (0..120).map(|_| edge.connect()).collect();
    // Used up; the control socket needs one as well, so the processor's time is read from outside.
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", edge.child.id())).expect("it runs");
        let fields: Vec<_> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
        fields[11].parse::<u64>().expect("a number") + fields[12].parse::<u64>().expect("a number")
    };
    std::thread::sleep(Duration::from_millis(500));
    let before = ticks();
    std::thread::sleep(Duration::from_secs(2));
    // A hundred ticks are a second.
    assert!(ticks() - before < 40, "{} ticks in two seconds", ticks() - before);
    let said = || std::fs::read_to_string(&said).expect("it is there");
    wait_until("it is said", || said().contains("can't accept connections"));
    drop(clients);
    wait_until("it serves again", || {
        let mut client = edge.connect();
        let _ = client.set_read_timeout(Some(Duration::from_secs(2)));
        let _ = client.write_all(format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n").as_bytes());
        let mut text = Vec::new();
        let _ = client.read_to_end(&mut text);
        text.starts_with(b"HTTP/1.1 200 ")
    });
    // Each time was counted, and not each was said.
    let times_said = said().matches("can't accept connections").count() as u64;
    assert!(times_said < edge.report().starved, "{}", said());
}

#[test]
fn however_many_come_at_once_no_more_are_held_than_there_are_places() {
    const PLACES: u32 = 4;
    const CLIENTS: usize = 40;
    let (mut settings, folder) = settings();
    settings.edge.limits.connections = PLACES;
    // Nobody is cut while others are still on their way.
    settings.edge.limits.header_timeout_ms = 600_000;
    settings.workers = 2;
    let said = folder.path().join("said");
    let mut command = std::process::Command::new(std::env::current_exe().expect("this program has a path"));
    command.stderr(std::fs::File::create(&said).expect("its folder is there"));
    let echo = Echo::start();
    let edge = Edge::start_by(command, (settings, folder));
    edge.set("web:80", &[echo.address]);
    let barrier = std::sync::Barrier::new(CLIENTS);
    let clients: Vec<_> = std::thread::scope(|scope| {
        let connect = || {
            barrier.wait();
            edge.connect()
        };
        let threads: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(connect)).collect();
        threads.into_iter().map(|thread| thread.join().expect("it connects")).collect()
    });
    wait_until("all were taken or reset", || {
        let report = edge.report();
        report.connections + report.reset == CLIENTS as u64
    });
    assert_eq!(edge.report().connections, u64::from(PLACES));
    let said = || std::fs::read_to_string(&said).expect("it is there");
    let times_said = said().matches("limits.connections").count() as u64;
    assert!((1..edge.report().reset).contains(&times_said), "{}", said());
    // Each of those who were taken is served, and all places are given back.
    drop(clients);
    wait_until("there is room", || edge.report().connections == 0);
    let mut clients: Vec<_> = (0..PLACES).map(|_| edge.connect()).collect();
    for client in &mut clients {
        client.write_all(format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n").as_bytes()).expect("it is sent");
        assert!(read_until(client, "\r\n\r\n").starts_with("HTTP/1.1 200 "));
    }
}

#[test]
fn connections_beyond_the_limit_are_closed_at_once() {
    let (mut settings, folder) = settings();
    settings.edge.limits.connections = 10;
    let echo = Echo::start();
    let edge = Edge::with((settings, folder), &[echo.address]);
    let mut clients: Vec<_> = (0..10).map(|_| edge.connect()).collect();
    wait_until("they are accepted", || edge.report().connections == 10);
    assert_eq!(read_all(&mut edge.connect()), "");
    clients.pop();
    wait_until("there is room", || edge.report().connections < 10);
    assert!(edge.get("/").0.starts_with("HTTP/1.1 200 "));
}

#[test]
fn ten_thousand_idle_connections_cost_little_each() {
    const COUNT: usize = 10_000;
    // The test has the other ends.
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("a limit");
    if hard < 2 * COUNT as u64 {
        return skipped("ten thousand idle connections", format!("only {hard} descriptors may be open"));
    }
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard)
        .expect("up to the hard limit");
    let echo = Echo::start();
    let (mut settings, folder) = settings();
    // However long the machine takes for ten thousand.
    settings.edge.limits.idle_timeout_ms = 600_000;
    let edge = Edge::with((settings, folder), &[echo.address]);
    let request = format!("GET /big/10 HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n");
    let connect = || {
        let mut client = edge.connect();
        client.write_all(request.as_bytes()).expect("it is sent");
        read_until(&mut client, "\r\n\r\nxxxxxxxxxx");
        client
    };
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", edge.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number")
    };
    let first = connect();
    let before = resident();
    let mut clients = Vec::with_capacity(COUNT);
    while clients.len() < COUNT {
        clients.extend((0..COUNT / 5).map(|_| connect()));
        // What these had for their readers serves those that come later, once they rest.
        std::thread::sleep(Duration::from_secs(2));
    }
    let after = resident();
    eprintln!("{} bytes for each idle connection", (after - before) * 1024 / COUNT);
    assert!((after - before) * 1024 / COUNT < 8 << 10, "{before} and then {after} kB");
    assert_eq!(edge.report().connections, COUNT as u64 + 1);
    // None of them was given up, and new ones are served.
    for mut client in clients.into_iter().step_by(1000).chain([first]) {
        client.write_all(request.as_bytes()).expect("it is sent");
        read_until(&mut client, "\r\n\r\nxxxxxxxxxx");
    }
    drop(connect());
}
