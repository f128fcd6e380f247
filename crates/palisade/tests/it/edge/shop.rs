//! A stack with an edge on a scratch host, and clients of it on the internet.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use palisade_core::edge::AUTHORITIES_VOLUME;

use crate::scratch::{HOST, Host, Ran};

/// An application that tells its version, and whom it takes its client for.
pub(super) const APP: &str = r#"
name: shop
x-palisade:
  allow:
    no-healthcheck: it lives for a test
    no-memory-limit: it lives for a test
    no-rate-limit: clients of a test ask as often as they like
  edge:
    certificates: {default: local}
    routes:
      - domain: shop.example
        to: app:8081
services:
  app:
    expose: ["8081"]
    environment: {VERSION: "1"}
    stop_grace_period: 3s
    deploy: {replicas: 1, update_config: {monitor: 300ms}}
    healthcheck:
      test: ["CMD", "python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8081/', timeout=2)"]
      interval: 200ms
      timeout: 5s
      retries: 2
      start_period: 20s
      start_interval: 100ms
    x-palisade:
      process:
        command:
          - python3
          - -c
          - |
            import http.server, os
            version = os.environ['VERSION']
            class Answer(http.server.BaseHTTPRequestHandler):
                protocol_version = 'HTTP/1.1'
                def do_GET(self):
                    if self.headers.get('Upgrade'):
                        return self.echo()
                    names = ['Host', 'X-Real-IP', 'X-Forwarded-For', 'X-Forwarded-Proto', 'X-Forwarded-Host']
                    said = ' '.join(f'{name}={self.headers.get(name)}' for name in names)
                    text = f'version {version} {said}'.encode()
                    self.send_response(200)
                    self.send_header('Content-Length', str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)
                def echo(self):
                    self.send_response(101)
                    for name, value in [('Connection', 'Upgrade'), ('Upgrade', 'websocket')]: self.send_header(name, value)
                    self.end_headers()
                    self.close_connection = True
                    while data := self.rfile.read1(4096): self.wfile.write(data)
                def log_message(self, *arguments): pass
            class Server(http.server.ThreadingHTTPServer): request_queue_size = 128
            Server(('0.0.0.0', 8081), Answer).serve_forever()
  db:
    expose: ["5432"]
    x-palisade:
      process: {command: ["python3", "-c", "import socket; s = socket.create_server(('0.0.0.0', 5432)); [s.accept() for _ in iter(int, 1)]"]}
"#;

pub(super) struct Shop(pub(super) Host);

impl Shop {
    /// With this file, up and healthy.
    pub(super) fn new(file: &str) -> Self {
        let host = Host::new();
        host.write(file);
        host.up();
        Self(host)
    }

    pub(super) fn up(&self, file: &str) -> Ran {
        self.0.write(file);
        self.0.palisade(&["up"])
    }

    /// The root that local certificates end in.
    pub(super) fn root(&self) -> PathBuf {
        root_of(&self.0.layout.volume(AUTHORITIES_VOLUME))
    }

    /// curl, as somebody on the internet who trusts the local authority.
    pub(super) fn curl(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new("timeout");
        command.args(["30", "curl", "-sS", "--max-time", "20", "--cacert"]).arg(self.root());
        for (name, port) in [("shop.example", 443), ("shop.example", 80)] {
            command.args(["--resolve", &format!("{name}:{port}:{HOST}")]);
        }
        command.args(arguments);
        let output = self.0.internet.run(|| command.output()).unwrap().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code(), text.concat())
    }

    /// The edge's instances that run, by `ps`.
    pub(super) fn edges(&self) -> Vec<String> {
        let ps = self.0.ps();
        let all = ps["instances"].as_array().unwrap().iter();
        all.map(|seen| seen["instance"].as_str().unwrap().to_owned())
            .filter(|id| id.starts_with("palisade-edge."))
            .collect()
    }
}

/// The roots of the authority that has this folder.
pub(super) fn root_of(folder: &Path) -> PathBuf {
    let entries = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    let roots: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "pem" || e == "crt")).collect();
    let is_root = |path: &&PathBuf| !fs::read_to_string(path).unwrap().contains("PRIVATE KEY");
    roots.iter().find(is_root).unwrap_or_else(|| panic!("{roots:?}")).clone()
}
