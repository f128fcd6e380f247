//! The edge, nginx and HAProxy beside each other, with the same file: whoever asks them the same is answered the same, and
//! services are told the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use palisade_core::compose::{self, InputFile, LoadInputs};
use palisade_core::edge::{Edge, Settings, UpstreamInstance, Upstreams};
use palisade_core::names::InstanceId;

use super::{Answer, Served, Shop, Tool, curl, get, missing, upstream};
use crate::free_ports::free_ports;
use crate::need_root;
use crate::support::{PALISADE, eventually, skipped};

/// Services by name, all of which tell what they were told.
const SERVICES: [&str; 3] = ["web", "api", "admin"];

/// One of the three.
struct Server {
    name: &'static str,
    http: u16,
    https: u16,
    shop: Shop,
    served: Served,
}

impl Server {
    /// All of them, each with what `edge` says below `x-palisade.edge` in lines of its own.
    fn all(edge: &str) -> Vec<Self> {
        let ports: BTreeMap<&str, u16> = SERVICES.into_iter().map(|name| (name, upstream(name))).collect();
        let services: String = ports
            .iter()
            .map(|(name, port)| format!("  {name}: {{ image: \"{name}:1\", ports: [\"127.0.0.1:{port}:80\"] }}\n"))
            .collect();
        let edge: String = edge.lines().map(|line| format!("    {line}\n")).collect();
        let start = |name: &'static str, tool: Option<Tool>| {
            let [http, https] = free_ports();
            let shop = Shop::new(&format!(
                "name: shop\nservices:\n{services}x-palisade:\n  edge:\n    ports: {{ http: {http}, https: {https} }}\n    \
                 certificates: local\n    limits: {{ connections: 1000 }}\n{edge}"
            ));
            let served = match tool {
                Some(tool) => {
                    let file = shop.export(tool, &[]);
                    let (good, said) = shop.tried(tool, &file);
                    assert!(good && !said.contains("[warn]") && !said.contains("[WARNING]"), "{said}");
                    Served::start(&shop, tool, &file, http)
                }
                None => the_edge(&shop, [http, https], &ports),
            };
            Self { name, http, https, shop, served }
        };
        vec![start("edge", None), start("nginx", Some(Tool::Nginx)), start("haproxy", Some(Tool::Haproxy))]
    }

    /// What is to be the same; the port is the only thing that isn't.
    fn ask(&self, host: &str, path: &str, headers: &[&str]) -> Seen {
        let port = self.http.to_string();
        let headers: Vec<String> = headers.iter().map(|header| header.replace("PORT", &port)).collect();
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let answer = get(self.http, host, path, &headers);
        Seen::of(&answer, [self.http, self.https])
    }
}

/// An answer, as far as it is to be the same.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: u16,
    location: Option<String>,
    service: Option<String>,
    /// Fields that the service got.
    told: BTreeSet<(String, String)>,
}

impl Seen {
    fn of(answer: &Answer, [http, https]: [u16; 2]) -> Self {
        let plain = |text: &str| text.replace(&format!(":{http}"), ":HTTP").replace(&format!(":{https}"), ":HTTPS");
        let mut lines = answer.body.lines();
        let first = lines.next().unwrap_or_default();
        let told = lines.filter_map(|line| line.split_once(": "));
        // nginx passes the host on in its usual form.
        let field = |name: &str, value: &str| match name {
            "host" | "x-forwarded-host" | "forwarded" => {
                (name.to_owned(), value.to_ascii_lowercase().replace(".:", ":"))
            }
            _ => (name.to_owned(), value.to_owned()),
        };
        Self {
            status: answer.status,
            location: answer.headers.get("location").map(|location| plain(location)),
            service: SERVICES.contains(&first).then(|| first.to_owned()),
            told: match answer.status {
                200 => told.map(|(name, value)| field(&name.to_ascii_lowercase(), &plain(value))).collect(),
                _ => BTreeSet::new(),
            },
        }
    }

    fn told(&self, name: &str) -> Option<&str> {
        self.told.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// `web`, or the status of who isn't served.
    fn answer(&self) -> String {
        self.service.clone().unwrap_or_else(|| self.status.to_string())
    }
}

/// Palisade's own, as a process.
fn the_edge(shop: &Shop, [http, https]: [u16; 2], ports: &BTreeMap<&str, u16>) -> Served {
    let folder = shop.folder.join("edge");
    fs::create_dir_all(folder.join("http-01")).unwrap();
    fs::write(folder.join("http-01/token"), "the answer").unwrap();
    let edge = model(&shop.folder);
    let pem = fs::read_to_string(shop.folder.join("certs/shop.example.pem")).unwrap();
    for domain in edge.routes.iter().flat_map(|route| &route.value.domains) {
        fs::write(folder.join(format!("{}.pem", domain.replace('*', "_"))), &pem).unwrap();
    }
    let instance = |name: &str| InstanceId::parse(&format!("{name}.1")).unwrap();
    let upstreams: Upstreams = ports
        .iter()
        .map(|(name, port)| {
            let address = SocketAddr::from(([127, 0, 0, 1], *port));
            (format!("{name}:80"), vec![UpstreamInstance { id: instance(name), address }])
        })
        .collect();
    fs::write(folder.join("upstreams.json"), serde_json::to_vec(&upstreams).unwrap()).unwrap();
    let here = |port: u16| vec![SocketAddr::from(([127, 0, 0, 1], port))];
    let settings = Settings {
        edge,
        http: here(http),
        https: here(https),
        certificates: folder.clone(),
        control: folder.join("control"),
        access_log: None,
        upstreams: Some(folder.join("upstreams.json")),
        workers: 1,
    };
    let file = folder.join("settings.json");
    fs::write(&file, serde_json::to_vec(&settings).unwrap()).unwrap();
    let log = fs::File::create(shop.folder.join("log/stderr")).unwrap();
    let mut command = Command::new(PALISADE);
    command.arg("__edge").arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let served = Served(command.spawn().unwrap());
    eventually("the edge", || UnixStream::connect(&settings.control).ok());
    eventually("the edge's port", || TcpStream::connect(("127.0.0.1", http)).ok());
    served
}

/// What the file in the folder says of its edge.
fn model(folder: &Path) -> Edge {
    let path = folder.join("compose.yaml");
    let contents = fs::read(&path).unwrap();
    let pages = ["pages/502.html"];
    let loaded = compose::load(&LoadInputs {
        files: &[InputFile { name: "compose.yaml", path: &path, contents: &contents }],
        project_dir: folder,
        project_name: None,
        profiles: &[],
        environment: &BTreeMap::new(),
        env_files: &[],
        others: &BTreeMap::from(pages.map(|name| (folder.join(name), b"a page".to_vec()))),
    });
    loaded.unwrap_or_else(|rejected| panic!("{:?}", rejected.diagnostics)).stack.edge.unwrap()
}

/// Asks all of them, and returns what the edge answered.
fn the_same(servers: &[Server], host: &str, path: &str, headers: &[&str]) -> Seen {
    let mut all = servers.iter().map(|server| (server.name, server.ask(host, path, headers)));
    let (_, edge) = all.next().unwrap();
    for (name, seen) in all {
        assert_eq!(seen, edge, "{name} and the edge on {host}{path} {headers:?}");
    }
    edge
}

fn lacks(test: &str) -> bool {
    let missing = missing(&["nginx", "haproxy", "openssl", "curl"]);
    if let Some(missing) = &missing {
        skipped(test, missing);
    }
    missing.is_some()
}

#[test]
fn paths_lead_where_they_lead_at_the_edge() {
    const TEST: &str = "export_edge::beside::paths_lead_where_they_lead_at_the_edge";
    need_root!("export_edge::beside::paths_lead_where_they_lead_at_the_edge");
    if lacks(TEST) {
        return;
    }
    let servers = Server::all(
        r#"redirect: false
routes:
  - { domain: shop.example, to: "web:80" }
  - { domain: shop.example, path: /api/v1.0, to: "api:80" }
  - { domain: shop.example, path: "/it's/~!$$&()+,=:@", to: "api:80" }
  - { domain: shop.example, path: /admin, to: "admin:80", allow: [192.0.2.0/24] }"#,
    );
    for (path, expected) in [
        ("/", "web"),
        ("/admin", "403"),
        ("/admin/x", "403"),
        ("/admins", "web"),
        ("/x/admin", "web"),
        ("/x/api/v1.0", "web"),
        ("/api/v1.0", "api"),
        ("/api/v1.0/x?a=/../b;c", "api"),
        ("/api/v1x0", "web"),
        ("/api/v1.01", "web"),
        ("/it's/~!$&()+,=:@/x", "api"),
        ("/it%27s/~%21$&()+,=:@", "api"),
        ("/its/~!$&()+,=:@", "web"),
        // Escapes are undone once, slashes joined.
        ("/%61dmin", "403"),
        ("/%2561dmin", "web"),
        ("//admin", "403"),
        ("/%2fadmin", "403"),
        ("/a%20b", "web"),
        ("/a+b", "web"),
        // A backslash is a slash to some servers.
        ("/\\admin", "403"),
        ("/%5cadmin", "403"),
        ("/admin\\x", "403"),
        ("/api%5cv1.0", "api"),
        // Parameters of segments are left out by some.
        ("/admin;x=1", "403"),
        ("/admin;x=1/secret", "403"),
        ("/admin%3bx=1/secret", "403"),
        ("/;x/admin", "403"),
        ("/;x//;y/admin/z", "403"),
        ("/api;a/v1.0;b/c;d", "api"),
        ("/api/v1.0;/c", "api"),
        ("/x;admin/y", "web"),
        ("/admin.;x", "web"),
        // What could be read in two ways is refused.
        ("/..", "400"),
        ("/a/../admin", "400"),
        ("/a/./admin", "400"),
        ("/a/%2e%2e/admin", "400"),
        ("/a/.%2E/admin", "400"),
        ("/a%2f..%2fadmin", "400"),
        ("/a/..%5cadmin", "400"),
        ("/a/..;/admin", "400"),
        ("/a/..;x=y/admin", "400"),
        ("/a/..%3b/admin", "400"),
        ("/a;b%2fc", "400"),
        ("/;%2Fa/admin", "400"),
        ("/a%3bb%5cc", "400"),
        ("/a;b\\c", "400"),
        ("/a%00", "400"),
        ("/admin/%", "400"),
        ("/admin/%zz", "400"),
        ("/admin/%2", "400"),
        ("/..c/.d/...", "web"),
    ] {
        assert_eq!(the_same(&servers, "shop.example", path, &[]).answer(), expected, "{path}");
    }
}

#[test]
fn domains_lead_where_they_lead_at_the_edge() {
    const TEST: &str = "export_edge::beside::domains_lead_where_they_lead_at_the_edge";
    need_root!("export_edge::beside::domains_lead_where_they_lead_at_the_edge");
    if lacks(TEST) {
        return;
    }
    let routes = r#"routes:
  - { domain: shop.example, to: "web:80" }
  - { domain: "*.shop.example", to: "web:80" }
  - { domain: own.shop.example, path: /api, to: "api:80" }
"#;
    for (more, unknown, redirected) in [
        ("redirect: false", "421", false),
        ("redirect: false\ndefault_domain: shop.example", "web", false),
        ("redirect: true", "421", true),
        ("redirect: true\ndefault_domain: shop.example", "308", true),
    ] {
        let servers = Server::all(&format!("{more}\n{routes}"));
        for (host, path, expected) in [
            ("shop.example", "/", "web"),
            ("SHOP.example", "/", "web"),
            ("shop.example.", "/", "web"),
            ("a.shop.example", "/api", "web"),
            ("own.shop.example", "/api", "api"),
            // A wildcard is for names without routes of their own.
            ("own.shop.example", "/other", "404"),
            ("a.b.shop.example", "/", unknown),
            ("other.example", "/", unknown),
            ("127.0.0.1", "/", unknown),
            ("a@shop.example", "/", "400"),
            ("shop.example/", "/", "400"),
        ] {
            let expected = if redirected && !matches!(expected, "421" | "400") { "308" } else { expected };
            let seen = the_same(&servers, host, path, &[]);
            assert_eq!(seen.answer(), expected, "{more} {host}{path}");
        }
        let strange = the_same(&servers, "shop.example", "/a/../b", &[]);
        assert_eq!(strange.answer(), "400", "{more}");
    }
}

#[test]
fn services_are_told_what_the_edge_tells_them() {
    const TEST: &str = "export_edge::beside::services_are_told_what_the_edge_tells_them";
    need_root!("export_edge::beside::services_are_told_what_the_edge_tells_them");
    if lacks(TEST) {
        return;
    }
    let routes = "redirect: false\ndefault_domain: shop.example\nroutes: [{ domain: shop.example, to: \"web:80\" }]\n";
    let lies = [
        "X-Forwarded-For: 6.6.6.6",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-Port: 1",
        "X-Forwarded-Prefix: /evil",
        "X-Forwarded-Server: evil",
        "X-Forwarded-Ssl: on",
        "X-Forwarded-Scheme: https",
        "X-Forwarded-User: root",
        "X_Forwarded_For: 6.6.6.6",
        "X-Forwarded_Prefix: /evil",
        "X_Real_IP: 6.6.6.6",
        "X-Real-IP: 6.6.6.6",
        "Forwarded: for=6.6.6.6;host=evil.example",
        "X-Mine: kept",
    ];
    let servers = Server::all(routes);
    let seen = the_same(&servers, "shop.example", "/", &lies);
    let told = |seen: &Seen| {
        let names = ["x-real-ip", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];
        names.map(|name| seen.told(name).unwrap_or_default().to_owned()).join(" ")
    };
    assert_eq!(told(&seen), "127.0.0.1 127.0.0.1 http shop.example:http");
    assert_eq!(seen.told("forwarded"), Some("for=127.0.0.1;proto=http;host=\"shop.example:http\""));
    assert_eq!(seen.told("x-mine"), Some("kept"));
    assert!(seen.told.iter().all(|(_, value)| !value.contains("6.6.6.6") && !value.contains("evil")), "{seen:?}");
    for host in ["127.0.0.1", "[::1]", "other.example"] {
        let seen = the_same(&servers, host, "/", &[]);
        assert_eq!(seen.told("x-forwarded-host"), Some(format!("{host}:http").as_str()), "{seen:?}");
    }

    let trusted = Server::all(&format!("trusted_proxies: [127.0.0.1/32, 10.0.0.0/8, \"2001:db8:f::/48\"]\n{routes}"));
    // Only the edge believes them of the host: the exported files say so.
    let of_the_host = |lie: &&&str| lie.contains("host=") || lie.starts_with("X-Forwarded-Host");
    let mut said: Vec<&str> = lies[2..].iter().filter(|lie| !of_the_host(lie)).copied().collect();
    said.push("X-Forwarded-For: 203.0.113.9");
    let seen = the_same(&trusted, "shop.example", "/", &said);
    assert_eq!(told(&seen), "203.0.113.9 203.0.113.9, 127.0.0.1 http shop.example:http");
    assert!(seen.told.iter().all(|(_, value)| !value.contains("6.6.6.6") && !value.contains("evil")), "{seen:?}");
    for (fields, expected) in [
        (&[][..], "127.0.0.1 127.0.0.1 http"),
        (&["X-Forwarded-Proto: https"], "127.0.0.1 127.0.0.1 https"),
        (&["X-Forwarded-Proto: HTTPS"], "127.0.0.1 127.0.0.1 https"),
        // What stands before the nearest proxy's word is the client's.
        (&["X-Forwarded-Proto: https, http"], "127.0.0.1 127.0.0.1 http"),
        (&["X-Forwarded-Proto: ftp"], "127.0.0.1 127.0.0.1 http"),
        (&["X-Forwarded-For: 6.6.6.6, 203.0.113.9"], "203.0.113.9 203.0.113.9, 127.0.0.1 http"),
        (&["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 203.0.113.9"], "203.0.113.9 203.0.113.9, 127.0.0.1 http"),
        (
            &["X-Forwarded-For: 6.6.6.6, 203.0.113.9, 10.0.0.2, 10.0.0.3"],
            "203.0.113.9 203.0.113.9, 10.0.0.2, 10.0.0.3, 127.0.0.1 http",
        ),
        (&["X-Forwarded-For: 10.0.0.3"], "10.0.0.3 10.0.0.3, 127.0.0.1 http"),
        (&["X-Forwarded-For: 6.6.6.6, unknown"], "127.0.0.1 127.0.0.1 http"),
        (&["X-Forwarded-For: 6.6.6.6, unknown, 10.0.0.3"], "10.0.0.3 10.0.0.3, 127.0.0.1 http"),
        (&["X-Forwarded-For: 6.6.6.6, 203.0.113.9:4711"], "203.0.113.9 203.0.113.9, 127.0.0.1 http"),
        (&["X-Forwarded-For: [2001:db8::7]:4711"], "2001:db8::7 2001:db8::7, 127.0.0.1 http"),
        (&["X-Forwarded-For: 2001:db8::7"], "2001:db8::7 2001:db8::7, 127.0.0.1 http"),
        (&["X-Forwarded-For: 2001:db8::7, 2001:db8:f::1"], "2001:db8::7 2001:db8::7, 2001:db8:f::1, 127.0.0.1 http"),
    ] {
        // Of proxies in a row nginx names only the nearest in `Forwarded`.
        let is_long = expected.matches(", ").count() > 1;
        let mut all: Vec<Seen> = trusted.iter().map(|server| server.ask("shop.example", "/", fields)).collect();
        if is_long {
            all.iter_mut().for_each(|seen| seen.told.retain(|(name, _)| name != "forwarded"));
        }
        assert_eq!(told(&all[0]), format!("{expected} shop.example:http"), "{fields:?}");
        for (seen, server) in all.iter().zip(&trusted) {
            assert_eq!(seen, &all[0], "{} and the edge on {fields:?}", server.name);
        }
    }
}

#[test]
fn what_a_trusted_proxy_took_by_tls_isnt_redirected() {
    const TEST: &str = "export_edge::beside::what_a_trusted_proxy_took_by_tls_isnt_redirected";
    need_root!("export_edge::beside::what_a_trusted_proxy_took_by_tls_isnt_redirected");
    if lacks(TEST) {
        return;
    }
    let routes = "error_pages: ./pages\nroutes: [{ domain: shop.example, to: \"web:80\" }]\n";
    let https = &["X-Forwarded-Proto: https"][..];
    for (trusted, expected) in [("127.0.0.1/32", "web"), ("10.0.0.0/8", "308")] {
        let servers = Server::all(&format!("trusted_proxies: [{trusted}]\n{routes}"));
        let seen = the_same(&servers, "shop.example", "/a?b", https);
        assert_eq!(seen.answer(), expected, "{trusted}");
        let seen = the_same(&servers, "shop.example", "/a?b", &[]);
        assert_eq!((seen.status, seen.location.as_deref()), (308, Some("https://shop.example:HTTPS/a?b")), "{trusted}");
        assert_eq!(the_same(&servers, "shop.example", "/a/../b", &[]).status, 400);
        for server in &servers {
            let status = server.ask("shop.example", "/.well-known/acme-challenge/token", &[]).status;
            // Nobody is at certbot's port, where HAProxy asks.
            let expected = if server.name == "haproxy" { 503 } else { 200 };
            assert_eq!(status, expected, "{}", server.name);
        }
    }
}

#[test]
fn the_same_versions_of_tls_are_spoken() {
    const TEST: &str = "export_edge::beside::the_same_versions_of_tls_are_spoken";
    need_root!("export_edge::beside::the_same_versions_of_tls_are_spoken");
    if lacks(TEST) {
        return;
    }
    for minimum in ["1.2", "1.3"] {
        for default in ["", "default_domain: shop.example\n"] {
            let routes =
                "routes: [{ domain: shop.example, to: \"web:80\" }, { domain: other.example, to: \"api:80\" }]";
            let servers = Server::all(&format!("tls: {{ minimum: \"{minimum}\" }}\n{default}{routes}"));
            for server in &servers {
                for (host, version) in [
                    ("shop.example", "1.2"),
                    ("shop.example", "1.3"),
                    ("other.example", "1.2"),
                    ("other.example", "1.3"),
                ] {
                    let wanted = ["--tls-max", version, &format!("--tlsv{version}")];
                    let said = curl(&server.shop, server.https, host, "/", &wanted);
                    let is_spoken = said.starts_with("HTTP/2 200");
                    assert_eq!(is_spoken, version >= minimum, "{} {minimum} {default} {version}: {said}", server.name);
                }
            }
        }
    }
}

#[test]
fn only_what_is_listed_is_compressed() {
    const TEST: &str = "export_edge::beside::only_what_is_listed_is_compressed";
    need_root!("export_edge::beside::only_what_is_listed_is_compressed");
    if lacks(TEST) {
        return;
    }
    for (types, expected) in [("[text/plain]", false), ("[text/plain, text/html]", true), ("[\"text/*\"]", true)] {
        let servers = Server::all(&format!(
            "redirect: false\nroutes: [{{ domain: shop.example, to: \"web:80\", compress: {types} }}]"
        ));
        for server in &servers {
            let stream = super::send(server.http, "shop.example", "/page.html", &["Accept-Encoding: gzip"]);
            let head = super::head_of(&mut std::io::BufReader::new(&stream));
            let is_compressed = head.to_ascii_lowercase().contains("content-encoding: gzip");
            assert_eq!(is_compressed, expected, "{} {types} {head}", server.name);
        }
    }
}

#[test]
fn heads_may_be_as_large_as_at_the_edge() {
    const TEST: &str = "export_edge::beside::heads_may_be_as_large_as_at_the_edge";
    need_root!("export_edge::beside::heads_may_be_as_large_as_at_the_edge");
    if lacks(TEST) {
        return;
    }
    let servers = Server::all("redirect: false\nroutes: [{ domain: shop.example, to: \"web:80\" }]");
    let of = |bytes: usize| format!("X-Large: {}", "x".repeat(bytes));
    for server in &servers {
        let one = server.ask("shop.example", "/", &[&of(30_000)]);
        assert_eq!(one.answer(), "web", "{}", server.name);
        let many = [of(7_000), of(7_000), of(7_000), of(7_000)];
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(server.ask("shop.example", "/", &many).answer(), "web", "{}", server.name);
        let refused = server.ask("shop.example", "/", &[&of(30_000), &of(30_000), &of(30_000)]).status;
        assert!(matches!(refused, 400 | 431), "{} {refused}", server.name);
        // Requests may follow each other at once.
        let request = format!("GET / HTTP/1.1\r\nHost: shop.example\r\n{}\r\n", of(9_000));
        let last = request.replace("Host", "Connection: close\r\nHost");
        let mut stream = TcpStream::connect(("127.0.0.1", server.http)).unwrap();
        stream.write_all(format!("{request}\r\n{request}\r\n{last}\r\n").as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text.matches("HTTP/1.1 200").count(), 3, "{} {text}", server.name);
    }
}

#[test]
fn haproxy_gives_up_what_it_doesnt_need() {
    const TEST: &str = "export_edge::beside::haproxy_gives_up_what_it_doesnt_need";
    need_root!("export_edge::beside::haproxy_gives_up_what_it_doesnt_need");
    if lacks(TEST) {
        return;
    }
    let servers = Server::all("error_pages: ./pages\nroutes: [{ domain: shop.example, to: \"web:80\" }]");
    let haproxy = servers.iter().find(|server| server.name == "haproxy").unwrap();
    // It serves, and has its pages. It listens before it has given anything up, and answers only afterwards.
    let said = curl(&haproxy.shop, haproxy.https, "shop.example", "/", &[]);
    assert!(said.starts_with("HTTP/2 200"), "{said}");
    let folder = Path::new("/proc").join(haproxy.served.0.id().to_string());
    let status = fs::read_to_string(folder.join("status")).unwrap();
    let ids = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    for name in ["Uid:", "Gid:"] {
        assert!(ids(name).split_whitespace().all(|id| id != "0"), "{name} {}", ids(name));
    }
    assert_eq!(ids("CapEff:").trim_start_matches('0'), "");
    assert_eq!(fs::read_link(folder.join("root")).unwrap(), Path::new("/var/lib/haproxy"));
}
