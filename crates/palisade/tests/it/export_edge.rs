//! What `export nginx` and `export haproxy` write, taken and carried out by the programs themselves.
//!
//! Everything listens on loopback, at ports that no other test has.

mod beside;
mod grpc;
mod proxied;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::free_ports::free_ports;
use crate::need_root;
use crate::support::{PALISADE, eventually, skipped};

/// nginx and HAProxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Nginx,
    Haproxy,
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Tool::Nginx => "nginx",
            Tool::Haproxy => "haproxy",
        }
    }
    fn program(self) -> PathBuf {
        ["/usr/sbin", "/usr/bin", "/usr/local/sbin"]
            .map(|folder| Path::new(folder).join(self.name()))
            .into_iter()
            .find(|path| path.exists())
            .unwrap_or_else(|| PathBuf::from(self.name()))
    }
}

/// Programs that aren't here.
pub(crate) fn missing(tools: &[&str]) -> Option<String> {
    let folders = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin", "/bin"];
    let is_there = |name: &str| folders.iter().any(|folder| Path::new(folder).join(name).exists());
    let missing: Vec<_> = tools.iter().copied().filter(|name| !is_there(name)).collect();
    (!missing.is_empty()).then(|| format!("{} not installed", missing.join(", ")))
}

/// A folder with a stack, certificates, pages and challenges.
pub(crate) struct Shop {
    pub(crate) folder: PathBuf,
}

impl Shop {
    pub(crate) fn new(compose: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("palisade-export-{}-{number}", std::process::id()));
        for part in ["certs", "log", "pages", "acme/.well-known/acme-challenge", "tmp"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        fs::write(folder.join("acme/.well-known/acme-challenge/token"), "the answer").unwrap();
        fs::write(folder.join("pages/502.html"), "<h1>we are away</h1>").unwrap();
        let shop = Self { folder };
        shop.certificate();
        shop.write(compose);
        shop
    }

    pub(crate) fn write(&self, compose: &str) {
        fs::write(self.folder.join("compose.yaml"), compose).unwrap();
    }

    /// One certificate for all names, in each form that a tool wants.
    fn certificate(&self) {
        let folder = &self.folder;
        let names = "subjectAltName=DNS:shop.example,DNS:*.shop.example,DNS:other.example";
        let command =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
        let status = Command::new("openssl")
            .args(command)
            .args(["-subj", "/CN=shop.example", "-addext", names, "-keyout", "key.pem", "-out", "chain.pem"])
            .current_dir(folder)
            .stderr(Stdio::null())
            .status();
        assert!(status.unwrap().success());
        let [chain, key] = ["chain.pem", "key.pem"].map(|name| fs::read_to_string(folder.join(name)).unwrap());
        for name in ["shop.example", "_.shop.example", "www.shop.example", "own.shop.example", "other.example"] {
            let live = folder.join("certs").join(name);
            fs::create_dir_all(&live).unwrap();
            fs::write(live.join("fullchain.pem"), &chain).unwrap();
            fs::write(live.join("privkey.pem"), &key).unwrap();
            fs::write(folder.join(format!("certs/{name}.pem")), format!("{chain}{key}")).unwrap();
        }
    }

    pub(crate) fn palisade(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(PALISADE).args(arguments).current_dir(&self.folder).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    /// The exported file, with the places that are the system's moved into the folder.
    pub(crate) fn export(&self, tool: Tool, more: &[&str]) -> PathBuf {
        let certificates = self.folder.join("certs");
        let acme = self.folder.join("acme");
        let mut arguments =
            vec!["export", tool.name(), "--listen", "127.0.0.1", "--certificates", certificates.to_str().unwrap()];
        if tool == Tool::Nginx {
            arguments.extend(["--acme-root", acme.to_str().unwrap()]);
        }
        arguments.extend(more);
        let (code, text, said) = self.palisade(&arguments);
        assert_eq!(code, 0, "{said}");
        let here = self.folder.display();
        let text = text
            .replace("/var/log/nginx", &format!("{here}/log"))
            .replace("/run/nginx.pid", &format!("{here}/nginx.pid"))
            .replace("127.0.0.1:8402", "127.0.0.1:1");
        let file = self.folder.join(tool.name()).with_extension("conf");
        fs::write(&file, text).unwrap();
        file
    }

    /// What the program itself says about the file.
    pub(crate) fn tried(&self, tool: Tool, file: &Path) -> (bool, String) {
        let mut command = Command::new(tool.program());
        match tool {
            Tool::Nginx => command.args(["-t", "-p"]).arg(&self.folder).arg("-c").arg(file),
            Tool::Haproxy => command.args(["-c", "-f"]).arg(file),
        };
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A server that runs with an exported file, ended with the test.
struct Served(Child);

impl Served {
    fn start(shop: &Shop, tool: Tool, file: &Path, port: u16) -> Self {
        let mut command = Command::new(tool.program());
        match tool {
            Tool::Nginx => command.args(["-g", "daemon off;", "-p"]).arg(&shop.folder).arg("-c").arg(file),
            Tool::Haproxy => command.args(["-db", "-f"]).arg(file),
        };
        let log = fs::File::create(shop.folder.join("log/stderr")).unwrap();
        let mut served = Self(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        eventually("the server", || {
            let ended = served.0.try_wait().unwrap();
            assert_eq!(ended, None, "{tool:?}: {}", fs::read_to_string(shop.folder.join("log/stderr")).unwrap());
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        served
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // nginx takes its workers along when it is asked to go.
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// An upstream that answers with the head that it got; a WebSocket's handshake is taken, and what comes is sent back.
fn upstream(name: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(name, stream));
        }
    });
    port
}

fn serve(name: &str, mut stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        if head.to_ascii_lowercase().contains("\nupgrade: websocket") {
            // The answer to the key of RFC 6455, which is the one that `socket` sends.
            let accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{accept}\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).ok()?;
            let mut byte = [0];
            while reader.read(&mut byte).ok()? > 0 {
                stream.write_all(&byte).ok()?;
            }
            return None;
        }
        if head.starts_with("GET /events") {
            let start = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(format!("{start}9\r\ndata: 1\n\n\r\n").as_bytes()).ok()?;
            // The next one never comes: whoever waits for more than the first event waits for ever.
            let mut rest = Vec::new();
            reader.read_to_end(&mut rest).ok()?;
            return None;
        }
        let body = format!("{name}\n{head}{}", "x".repeat(2_000));
        let length = body.len();
        let kind = if head.contains(".html ") { "html" } else { "plain" };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/{kind}\r\nStrict-Transport-Security: max-age=1\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(answer.as_bytes()).ok()?;
    }
}

/// One answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Answer {
    fn of(stream: &TcpStream) -> Self {
        let mut reader = BufReader::new(stream);
        let head = head_of(&mut reader);
        let status = head.split(' ').nth(1).unwrap_or_else(|| panic!("no status: {head:?}")).parse().unwrap();
        let fields = head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let headers: BTreeMap<_, _> =
            fields.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        Self { status, headers, body: String::from_utf8_lossy(&body).into_owned() }
    }
    /// A line of the head that the upstream got.
    fn got(&self, name: &str) -> Option<&str> {
        let mut lines = self.body.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// Lines up to the empty one.
fn head_of(reader: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
    head
}

fn send(port: u16, host: &str, path: &str, headers: &[&str]) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let more: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let host = format!("{host}:{port}");
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n").as_bytes()).unwrap();
    stream
}

fn websocket(port: u16, path: &str) -> TcpStream {
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    send(port, "shop.example", path, &["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key])
}

fn get(port: u16, host: &str, path: &str, headers: &[&str]) -> Answer {
    Answer::of(&send(port, host, path, headers))
}

/// By TLS, with the real thing.
fn curl(shop: &Shop, port: u16, host: &str, path: &str, more: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["-sS", "-i", "--max-time", "60", "--cacert"])
        .arg(shop.folder.join("chain.pem"))
        .args(["--resolve", &format!("{host}:{port}:127.0.0.1")])
        .args(more)
        .arg(format!("https://{host}:{port}{path}"))
        .output()
        .unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

fn stack(http: u16, https: u16, app: u16, api: u16, dead: u16, more: &str) -> String {
    format!(
        r#"
name: shop
services:
  app:
    image: app:1
    ports: ["127.0.0.1:{app}:8081"]
  api:
    image: api:1
    ports: ["127.0.0.1:{api}:9000", "127.0.0.1:{dead}:9001"]
  db: {{ image: "postgres:16", expose: [5432] }}
x-palisade:
  edge:
    ports: {{ http: {http}, https: {https} }}
    certificates: local
    error_pages: ./pages
    limits: {{ connections: 1000 }}
    {more}
    routes:
      - {{ domain: shop.example, to: "app:8081", hsts: true, compress: true }}
      - {{ domain: shop.example, path: /api, to: "api:9000" }}
      - {{ domain: shop.example, path: /api/v1.0, to: "app:8081" }}
      - {{ domain: shop.example, path: /slow, to: "app:8081", rate_limit: {{ per_client: 1/m, burst: 20 }}, hsts: true }}
      - {{ domain: shop.example, path: /once, to: "app:8081", rate_limit: {{ per_client: 1/m, burst: 0 }} }}
      - {{ domain: shop.example, path: /few, to: "app:8081", connections: {{ per_client: 1 }} }}
      - {{ domain: shop.example, path: /closed, to: "app:8081", allow: [192.0.2.0/24] }}
      - {{ domain: shop.example, path: /away, to: "api:9001" }}
      - {{ domain: shop.example, path: /small, to: "app:8081", body_limit: 10 }}
      - {{ domain: other.example, path: /only, to: "app:8081" }}
"#
    )
}

#[test]
fn exported_servers_do_what_the_edge_does() {
    const TEST: &str = "export_edge::exported_servers_do_what_the_edge_does";
    need_root!("export_edge::exported_servers_do_what_the_edge_does");
    if let Some(missing) = missing(&["nginx", "haproxy", "openssl", "curl"]) {
        return skipped(TEST, &missing);
    }
    for tool in [Tool::Nginx, Tool::Haproxy] {
        redirected(tool);
        in_the_clear(tool);
    }
}

/// HTTP leads to HTTPS, and that is served.
fn redirected(tool: Tool) {
    let [http, https, dead] = free_ports();
    let (app, api) = (upstream("app"), upstream("api"));
    let shop = Shop::new(&stack(http, https, app, api, dead, ""));
    let file = shop.export(tool, &[]);
    let (good, said) = shop.tried(tool, &file);
    assert!(good, "{said}");
    let _served = Served::start(&shop, tool, &file, http);

    let answer = get(http, "shop.example", "/a/b?c=d", &[]);
    assert_eq!(answer.status, 308, "{tool:?} {answer:?}");
    assert_eq!(answer.headers["location"], format!("https://shop.example:{https}/a/b?c=d"));
    let challenge = get(http, "shop.example", "/.well-known/acme-challenge/token", &[]);
    match tool {
        Tool::Nginx => assert_eq!((challenge.status, challenge.body.as_str()), (200, "the answer")),
        // Nobody is at certbot's port; what matters is that it isn't redirected.
        Tool::Haproxy => assert!(matches!(challenge.status, 502 | 503), "{challenge:?}"),
    }

    let said = curl(
        &shop,
        https,
        "shop.example",
        "/a",
        &["-H", "X-Forwarded-For: 192.0.2.66", "-H", "Forwarded: for=192.0.2.66"],
    );
    let lower = said.to_ascii_lowercase();
    assert!(said.starts_with("HTTP/2 200"), "{tool:?} {said}");
    assert!(lower.contains("\nstrict-transport-security: max-age=31536000\r"), "{said}");
    assert_eq!(lower.matches("strict-transport-security:").count(), 1, "the upstream's own is replaced: {said}");
    assert!(!said.contains("192.0.2.66"), "what the client says of itself is dropped: {said}");
    assert!(lower.contains("\nx-forwarded-for: 127.0.0.1\r") && lower.contains("\nx-real-ip: 127.0.0.1\r"), "{said}");
    assert!(lower.contains("\nx-forwarded-proto: https\r"), "{said}");
    assert!(lower.contains(&format!("\nx-forwarded-host: shop.example:{https}\r")), "{said}");
    assert!(lower.contains(&format!("\nhost: shop.example:{https}\r")), "{said}");
    let forwarded = format!("\nforwarded: for=127.0.0.1;proto=https;host=\"shop.example:{https}\"\r");
    assert!(lower.contains(&forwarded), "{said}");
    let old =
        curl(&shop, https, "shop.example", "/", &["--tls-max", "1.1", "--tlsv1.0", "--ciphers", "DEFAULT@SECLEVEL=0"]);
    assert!(!old.contains("HTTP/"), "TLS 1.1 isn't spoken: {old}");
    let unknown = curl(&shop, https, "nobody.example", "/", &["-k"]);
    assert!(!unknown.contains("HTTP/"), "an unknown name gets no handshake: {unknown}");
    let zipped =
        curl(&shop, https, "shop.example", "/", &["-H", "Accept-Encoding: gzip", "--output", "/dev/null", "-D", "-"]);
    assert!(zipped.to_ascii_lowercase().contains("content-encoding: gzip"), "{zipped}");
    assert!(curl(&shop, https, "other.example", "/", &[]).starts_with("HTTP/2 404"));
    assert!(curl(&shop, https, "other.example", "/only/x", &[]).starts_with("HTTP/2 200"));
}

/// Without a redirect everything else can be tried with bare connections.
fn in_the_clear(tool: Tool) {
    let [http, https, dead] = free_ports();
    let (one, two, api) = (upstream("one"), upstream("two"), upstream("api"));
    let more = "redirect: false\n    trusted_proxies: [127.0.0.1/32]";
    let shop = Shop::new(&stack(http, https, one, api, dead, more));
    let both = [one, two].map(|port| format!("app:8081=127.0.0.1:{port}"));
    let file = shop.export(tool, &["--upstream", &both[0], "--upstream", &both[1]]);
    let (good, said) = shop.tried(tool, &file);
    assert!(good, "{said}");
    let _served = Served::start(&shop, tool, &file, http);
    let ask = |path: &str, headers: &[&str]| get(http, "shop.example", path, headers);

    // Whole segments; the longest wins; what is a dot is only a dot.
    for (path, expected) in [
        ("/api", "api"),
        ("/api/x", "api"),
        ("/apis", "o|t"),
        ("/api/v1.0/x", "o|t"),
        ("/api/v1x0", "api"),
        ("/", "o|t"),
    ] {
        let answer = ask(path, &["Accept-Encoding: identity"]);
        assert_eq!(answer.status, 200, "{tool:?} {path} {answer:?}");
        let first = answer.body.lines().next().unwrap_or_default();
        assert!(expected.split('|').any(|start| first.starts_with(start)), "{tool:?} {path}: {first}");
    }
    let tried: Vec<_> = (0..20).map(|_| ask("/", &[]).body.lines().next().unwrap_or_default().to_owned()).collect();
    assert!(["one", "two"].iter().all(|name| tried.iter().any(|it| it == name)), "{tool:?} both serve: {tried:?}");

    // 21 of 40, and who is refused is told when to come again.
    let all: Vec<_> = (0..40).map(|_| send(http, "shop.example", "/slow", &[])).collect();
    let all: Vec<_> = all.iter().map(Answer::of).collect();
    assert_eq!(all.iter().filter(|answer| answer.status == 200).count(), 21, "{tool:?}");
    let refused: Vec<_> = all.iter().filter(|answer| answer.status == 429).collect();
    assert_eq!(refused.len(), 19, "{tool:?}");
    assert_eq!(refused[0].headers["retry-after"], "63", "{:?}", refused[0]);
    assert!(!all[0].headers.contains_key("retry-after"));

    // The client behind a trusted proxy; those of one /64 are one.
    let from = |address: &str| ask("/once", &[&format!("X-Forwarded-For: {address}")]).status;
    assert_eq!(from("2001:db8:1:2::a"), 200, "{tool:?}");
    assert_eq!(from("2001:db8:1:2:ffff::b"), 429, "{tool:?} the same /64");
    assert_eq!(from("2001:db8:1:3::a"), 200, "{tool:?} another one");
    assert_eq!(from("198.51.100.7"), 200);
    assert_eq!(from("198.51.100.8"), 200);
    assert_eq!(from("192.0.2.1, 198.51.100.8"), 429, "{tool:?} the last one counts");
    assert_eq!(from("198.51.100.9, 127.0.0.1"), 200, "{tool:?} trusted proxies are looked through");
    assert_eq!(from("198.51.100.9"), 429);
    let behind = ask("/", &["X-Forwarded-For: 198.51.100.7", "X-Forwarded-Proto: https", "Accept-Encoding: identity"]);
    assert_eq!(behind.got("X-Forwarded-For"), Some("198.51.100.7, 127.0.0.1"), "{tool:?} {behind:?}");
    assert_eq!(behind.got("X-Real-IP"), Some("198.51.100.7"), "{tool:?}");
    assert_eq!(behind.got("X-Forwarded-Proto"), Some("https"), "{tool:?}");

    assert_eq!(ask("/closed", &[]).status, 403);
    assert_eq!(ask("/closed", &["X-Forwarded-For: 192.0.2.9"]).status, 200, "{tool:?}");
    assert_eq!(ask("/small", &["Content-Length: 11"]).status, 413, "{tool:?}");
    let away = ask("/away", &[]);
    match tool {
        Tool::Nginx => assert_eq!((away.status, away.body.as_str()), (502, "<h1>we are away</h1>")),
        Tool::Haproxy => assert!(matches!(away.status, 502 | 503), "{away:?}"),
    }

    // What is streamed comes as it is sent, and a WebSocket passes.
    let events = send(http, "shop.example", "/events", &[]);
    let mut lines = BufReader::new(&events).lines();
    assert!(lines.any(|line| line.unwrap() == "data: 1"), "{tool:?}");
    let mut socket = websocket(http, "/ws");
    assert_eq!(Answer::of(&socket).status, 101, "{tool:?}");
    socket.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    socket.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");

    // One connection of a client: the first is held by a WebSocket.
    let held = websocket(http, "/few");
    assert_eq!(Answer::of(&held).status, 101);
    assert_eq!(ask("/few", &[]).status, 429, "{tool:?}");
    drop(held);
    eventually("the connection's end is noticed", || (ask("/few", &[]).status == 200).then_some(()));

    if tool == Tool::Nginx {
        ask("/page?token=secret", &["Referer: https://x.example/?token=secret"]);
        let log = eventually("the line", || {
            let log = fs::read_to_string(shop.folder.join("log/shop.access.log")).unwrap();
            log.contains("/page").then_some(log)
        });
        assert!(!log.contains("secret"), "{log}");
        assert!(log.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{log}");
    }
}
