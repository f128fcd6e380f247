//! What single clients are allowed, who they are, and what is kept of what they did.

use crate::support::{DOMAIN, Edge, PATIENCE, free_address, read_until, settings, skipped, wait_until};
use crate::upstream::{Echo, saying};
use palisade_core::edge::{AccessLog, Ban, LogFormat, Rate};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const RATE: Rate = Rate { milli_per_s: 10_000, burst: 20 };

/// Requests that are sent at once on one connection, and how many of them pass.
fn burst(address: SocketAddr, count: usize) -> usize {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let one = format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n");
    let last = format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n");
    stream.write_all((one.repeat(count - 1) + &last).as_bytes()).expect("it is sent");
    let mut all = String::new();
    stream.read_to_string(&mut all).expect("answers");
    let refused = all.matches("HTTP/1.1 429 ").count();
    let passed = all.matches("HTTP/1.1 200 ").count();
    assert_eq!(passed + refused, count, "{all}");
    passed
}

/// What passes of forty at once, of forty a second later, and three seconds later. `None` if the machine was too busy to tell.
fn passed(address: SocketAddr) -> Option<[usize; 3]> {
    let begin = Instant::now();
    let first = burst(address, 40);
    let took_first = begin.elapsed();
    std::thread::sleep(Duration::from_millis(1_010));
    let second = burst(address, 40);
    let exact = begin.elapsed() < Duration::from_millis(1_095) && took_first < Duration::from_millis(85);
    std::thread::sleep(Duration::from_millis(3_000));
    let begin = Instant::now();
    let third = burst(address, 40);
    (exact && begin.elapsed() < Duration::from_millis(95)).then_some([first, second, third])
}

fn when_exact(name: &str, address: SocketAddr) -> Option<[usize; 3]> {
    for _ in 0..6 {
        if let Some(passed) = passed(address) {
            return Some(passed);
        }
        // Until nothing is left of what was counted.
        std::thread::sleep(Duration::from_millis(2_200));
    }
    skipped(
        "as many requests pass as nginx lets pass",
        format!("the machine is too busy to tell what {name} lets pass"),
    );
    None
}

/// nginx in front of the same upstream. It is killed with the value.
struct Nginx(Child, SocketAddr);

impl Nginx {
    fn start(folder: &std::path::Path, upstream: SocketAddr) -> Option<Self> {
        let address = free_address();
        let text = format!(
            "daemon off; master_process off; pid nginx.pid; error_log stderr; events {{}}\n\
             http {{ access_log off; client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;\n\
             limit_req_zone $binary_remote_addr zone=z:1m rate=10r/s;\n\
             server {{ listen {address}; location / {{ limit_req zone=z burst=20 nodelay; limit_req_status 429; proxy_pass http://{upstream}; }} }} }}"
        );
        std::fs::write(folder.join("nginx.conf"), text).expect("its folder is there");
        let program = if std::path::Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
        let child = Command::new(program)
            .arg("-p")
            .arg(folder)
            .args(["-c", "nginx.conf"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        wait_until("nginx listens", || TcpStream::connect(address).is_ok());
        Some(Self(child, address))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn as_many_requests_pass_as_nginx_lets_pass() {
    let echo = Echo::start();
    let (mut settings, folder) = settings();
    settings.edge.redirect = false;
    settings.edge.routes[0].value.rate = Some(RATE);
    let nginx = Nginx::start(folder.path(), echo.address);
    let edge = Edge::with((settings, folder), &[echo.address]);
    let by_edge = when_exact("the edge", edge.http());
    assert!(by_edge.is_none_or(|passed| passed == [21, 10, 21]), "{by_edge:?}");
    let Some(nginx) = nginx else {
        return skipped("as many requests pass as nginx lets pass", "there is no nginx to compare with");
    };
    if let (Some(by_edge), Some(by_nginx)) = (by_edge, when_exact("nginx", nginx.1)) {
        assert_eq!(by_edge, by_nginx);
    }
}

#[test]
fn who_is_refused_is_told_when_to_come_again_and_reported() {
    let echo = Echo::start();
    let (mut settings, folder) = settings();
    settings.edge.redirect = false;
    let route = &mut settings.edge.routes[0].value;
    route.rate = Some(Rate { milli_per_s: 10, burst: 1 });
    route.ban = Some(Ban { after: 5, for_s: 600 });
    let edge = Edge::with((settings, folder), &[echo.address]);
    assert!(edge.get("/").0.starts_with("HTTP/1.1 200 "));
    assert!(edge.get("/").0.starts_with("HTTP/1.1 200 "));
    for _ in 0..8 {
        let (head, _) = edge.get("/");
        assert!(head.starts_with("HTTP/1.1 429 "), "{head}");
        let after = head.lines().find_map(|line| line.strip_prefix("retry-after: ")).expect("it says when");
        assert!((1..=100).contains(&after.parse::<u32>().expect("seconds")), "{after}");
    }
    let report = edge.report();
    assert_eq!(report.limited.values().collect::<Vec<_>>(), [&8]);
    assert_eq!((report.limited_clients.len(), report.limited_clients[0].times), (1, 8));
    assert_eq!(report.limited_clients[0].client.to_string(), "127.0.0.1");
    assert_eq!((report.to_ban.len(), report.to_ban[0].for_s), (1, 600));
    assert_eq!(edge.report().to_ban, [], "it is told once");
    assert_eq!(echo.requests(), 2);
}

#[test]
fn connections_on_which_nobody_asks_take_no_place() {
    let echo = Echo::start();
    let (mut settings, folder) = settings();
    settings.edge.routes[0].value.connections_per_client = Some(1);
    let edge = Edge::with((settings, folder), &[echo.address]);
    let mut idle: Vec<_> = (0..40).map(|_| edge.connect()).collect();
    for client in &mut idle {
        client.write_all(format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\n\r\n").as_bytes()).expect("it is sent");
        let answer = read_until(client, "body: 0\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    // A request is being answered: there is no place for another one, and it is told so.
    let asking = format!("POST / HTTP/1.1\r\nHost: {DOMAIN}\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n");
    idle[0].write_all(asking.as_bytes()).expect("it is sent");
    read_until(&mut idle[0], "100 Continue\r\n\r\n");
    let (head, _) = edge.get("/");
    assert!(head.starts_with("HTTP/1.1 429 ") && head.contains("retry-after: "), "{head}");
}

#[test]
fn what_the_edge_answers_by_itself_costs_no_client_its_requests() {
    const MANY: usize = 50;
    let echo = Echo::start();
    let (mut settings, folder) = settings();
    settings.edge.redirect = true;
    settings.edge.default_domain = None;
    settings.edge.trusted_proxies = vec!["127.0.0.0/8".parse().expect("a network")];
    std::fs::write(settings.certificates.join("http-01/token"), "token.print").expect("its folder is there");
    let route = &mut settings.edge.routes[0].value;
    route.path = "/app".to_owned();
    route.rate = Some(Rate { milli_per_s: 1, burst: 0 });
    route.ban = Some(Ban { after: 1, for_s: 600 });
    let edge = Edge::with((settings, folder), &[echo.address]);
    let ask = |count: usize, path: &str, domain: &str, scheme: &str| {
        let one = format!("GET {path} HTTP/1.1\r\nHost: {domain}\r\nX-Forwarded-Proto: {scheme}\r\n");
        edge.raw(format!("{one}\r\n").repeat(count - 1) + &one + "Connection: close\r\n\r\n")
    };
    let challenge = "/.well-known/acme-challenge/token";
    for (path, domain, scheme, expected) in [
        ("/app", DOMAIN, "http", "HTTP/1.1 308 "),
        (challenge, DOMAIN, "http", "HTTP/1.1 200 "),
        ("/elsewhere", DOMAIN, "https", "HTTP/1.1 404 "),
        ("/app", "other.example", "https", "HTTP/1.1 421 "),
    ] {
        let answers = ask(MANY, path, domain, scheme);
        assert_eq!(answers.matches(expected).count(), MANY, "{path} {domain}: {answers}");
    }
    let report = edge.report();
    assert!(report.limited.is_empty() && report.limited_clients.is_empty() && report.to_ban.is_empty(), "{report:?}");
    // The one request that the client has is still there; only the next is too many.
    let answers = ask(2, "/app", DOMAIN, "https");
    let passed = |status: &str| answers.matches(status).count();
    assert_eq!((passed("HTTP/1.1 200 "), passed("HTTP/1.1 429 ")), (1, 1), "{answers}");
    // An authority is answered also while the client that it seems to be is refused.
    let answers = ask(MANY, challenge, DOMAIN, "http");
    assert_eq!(answers.matches("HTTP/1.1 200 ").count(), MANY, "{answers}");
}

#[test]
fn trusted_proxies_are_believed_and_their_clients_counted_apart() {
    let echo = Echo::start();
    let (mut settings, folder) = settings();
    settings.edge.trusted_proxies = vec!["127.0.0.0/8".parse().expect("a network")];
    settings.edge.routes[0].value.deny = vec!["198.51.100.7".parse().expect("a network")];
    settings.edge.routes[0].value.rate = Some(Rate { milli_per_s: 1, burst: 0 });
    let edge = Edge::with((settings, folder), &[echo.address]);
    let ask = |client: &str| {
        edge.raw(format!(
            "GET / HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\nX-Forwarded-For: 6.6.6.6, {client}\r\nX-Forwarded-Proto: https\r\n\r\n"
        ))
    };
    assert!(ask("198.51.100.7").starts_with("HTTP/1.1 403 "));
    let answer = ask("198.51.100.8");
    for line in [
        "x-real-ip: 198.51.100.8",
        "x-forwarded-for: 198.51.100.8, 127.0.0.1",
        "x-forwarded-proto: https",
        &format!("forwarded: for=198.51.100.8;proto=https;host={DOMAIN}, for=127.0.0.1"),
    ] {
        assert!(answer.lines().any(|it| it == line), "{line} in {answer}");
    }
    assert!(ask("198.51.100.8").starts_with("HTTP/1.1 429 "));
    assert!(ask("2001:db8::1").starts_with("HTTP/1.1 200 "));
    assert!(ask("2001:db8::2").starts_with("HTTP/1.1 429 "), "the same /64");
}

#[test]
fn what_trusted_proxies_say_of_the_host_is_told_and_decides_nothing() {
    let echo = Echo::start();
    let (mut settings, folder) = settings();
    settings.edge.trusted_proxies = vec!["127.0.0.0/8".parse().expect("a network")];
    settings.edge.routes[0].value.rate = Some(Rate { milli_per_s: 1, burst: 0 });
    settings.edge.default_domain = None;
    let edge = Edge::with((settings, folder), &[echo.address]);
    let ask = |host: &str, fields: &str| {
        edge.raw(format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n"))
    };
    let answer = ask(DOMAIN, "X-Real-IP: 198.51.100.8\r\nX-Forwarded-Host: lie.example, public.example\r\n");
    for line in [
        &format!("host: {DOMAIN}") as &str,
        "x-real-ip: 198.51.100.8",
        "x-forwarded-for: 198.51.100.8, 127.0.0.1",
        "x-forwarded-host: public.example",
        "forwarded: for=198.51.100.8;proto=http;host=public.example, for=127.0.0.1",
    ] {
        assert!(answer.lines().any(|it| it == line), "{line} in {answer}");
    }
    // Clients of a proxy that writes X-Real-IP only are counted apart as well.
    assert!(ask(DOMAIN, "X-Real-IP: 198.51.100.8\r\n").starts_with("HTTP/1.1 429 "));
    assert!(ask(DOMAIN, "X-Real-IP: 198.51.100.9\r\n").starts_with("HTTP/1.1 200 "));
    assert!(ask("other.example", &format!("X-Forwarded-Host: {DOMAIN}\r\n")).starts_with("HTTP/1.1 421 "));
}

#[test]
fn requests_are_logged_and_errors_have_pages() {
    let (mut settings, folder) = settings();
    settings.edge.redirect = false;
    let (log, pages) = (folder.path().join("access.log"), folder.path().join("pages"));
    std::fs::create_dir_all(&pages).expect("its folder is there");
    std::fs::write(pages.join("503.html"), "<h1>soon</h1>").expect("its folder is there");
    settings.edge.error_pages = Some(pages);
    settings.edge.access_log =
        Some(AccessLog { format: LogFormat::Json, query: false, file_bytes_max: 4_000, files: 3 });
    settings.access_log = Some(log.clone());
    // Nobody answers for it.
    let edge = Edge::start((settings, folder));
    let (head, body) = edge.get("/a?token=secret");
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("text/html"), "{head}");
    assert_eq!(body, "<h1>soon</h1>");
    for number in 0..60 {
        edge.get(&format!("/{number}"));
    }
    let text = || std::fs::read_to_string(&log).unwrap_or_default();
    wait_until("the last request is logged", || text().contains("\"path\":\"/59\""));
    for line in text().lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("each line is JSON");
        assert_eq!((line["status"].as_u64(), line["bytes"].as_u64()), (Some(503), Some(13)), "{line}");
        assert_eq!((line["client"].as_str(), line["host"].as_str()), (Some("127.0.0.1"), Some(DOMAIN)), "{line}");
    }
    let aside = |number: u32| std::path::PathBuf::from(format!("{}.{number}", log.display()));
    assert!(aside(1).exists() && aside(2).exists() && !aside(3).exists());
    let all = [text(), std::fs::read_to_string(aside(1)).expect("it is there")].concat();
    assert!(!all.contains("secret"), "{all}");
}

#[test]
fn answers_are_compressed_for_those_who_can_read_it() {
    let body = "It is said again and again. ".repeat(400);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nETag: \"a\"\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let upstream = saying(answer.leak().as_bytes());
    let (mut settings, folder) = settings();
    settings.edge.routes[0].value.compress = ["text/*".to_owned()].into();
    let edge = Edge::with((settings, folder), &[upstream]);
    for version in ["--http1.1", "--http2"] {
        let url = format!("https://{DOMAIN}/");
        assert_eq!(edge.curl(&[version, "--compressed", &url]), body);
        let coding =
            ["--output", "/dev/null", "--dump-header", "-", "--header", "Accept-Encoding: gzip", version, &url];
        let head = edge.curl(&coding).to_ascii_lowercase();
        assert!(head.contains("content-encoding: gzip") && head.contains("etag: w/\"a\""), "{head}");
        assert!(!head.contains("content-length") && head.contains("vary: accept-encoding"), "{head}");
        assert_eq!(edge.curl(&[version, &url]), body, "whoever asks for nothing gets it as it is");
    }
}

#[test]
fn the_proxy_protocol_says_who_is_connected() {
    let echo = Echo::start();
    let (mut settings, folder) = settings();
    settings.edge.trusted_proxies = vec!["127.0.0.1".parse().expect("a network")];
    settings.edge.proxy_protocol = true;
    settings.edge.redirect = false;
    let edge = Edge::with((settings, folder), &[echo.address]);
    let request = format!("GET / HTTP/1.1\r\nHost: {DOMAIN}\r\nX-Forwarded-For: 6.6.6.6\r\nConnection: close\r\n\r\n");
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x09\x0a\0\0\x01\x12\x34\0\x50";
    for header in [&b"PROXY TCP4 198.51.100.9 10.0.0.1 4711 80\r\n"[..], v2] {
        let answer = edge.raw([header, request.as_bytes()].concat());
        assert!(answer.lines().any(|line| line == "x-forwarded-for: 198.51.100.9"), "{answer}");
    }
    let answer = edge.raw([&b"PROXY UNKNOWN\r\n"[..], request.as_bytes()].concat());
    assert!(answer.lines().any(|line| line == "x-forwarded-for: 6.6.6.6, 127.0.0.1"), "{answer}");
    assert_eq!(edge.raw(&request), "", "whoever doesn't begin with it gets no answer");
    // The header comes before TLS, too; curl can say it.
    let url = format!("https://{DOMAIN}/");
    let answer = edge.curl(&["--haproxy-protocol", &url]);
    assert!(answer.contains("x-forwarded-proto: https\n"), "{answer}");
}
