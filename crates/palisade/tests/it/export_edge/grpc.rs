//! gRPC through exported servers, with a client and a server of Node's HTTP/2.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{Served, Shop, Tool, missing};
use crate::free_ports::free_ports;
use crate::need_root;
use crate::support::skipped;

/// The upstream. Killed with the value.
struct Upstream(Child);

impl Upstream {
    fn start(shop: &Shop) -> (Self, u16) {
        std::fs::write(shop.folder.join("grpc.js"), include_str!("grpc.js")).unwrap();
        let mut command = Command::new("node");
        command.arg(shop.folder.join("grpc.js")).arg("server").stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (Self(child), line.trim().parse().unwrap())
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn stack(http: u16, https: u16, app: u16) -> String {
    format!(
        r#"
name: shop
services:
  app: {{ image: app:1, ports: ["127.0.0.1:{app}:50051"] }}
x-palisade:
  edge:
    ports: {{ http: {http}, https: {https} }}
    certificates: local
    limits: {{ connections: 1000 }}
    routes:
      - {{ domain: shop.example, to: "app:50051", protocol: grpc, rate_limit: 100/s, body_limit: 8MB, hsts: true }}
"#
    )
}

#[test]
fn grpc_passes_through_exported_servers() {
    const TEST: &str = "export_edge::grpc::grpc_passes_through_exported_servers";
    need_root!("export_edge::grpc::grpc_passes_through_exported_servers");
    if let Some(missing) = missing(&["nginx", "haproxy", "openssl", "node"]) {
        return skipped(TEST, &missing);
    }
    for tool in [Tool::Nginx, Tool::Haproxy] {
        let [http, https] = free_ports();
        let shop = Shop::new("");
        let (_upstream, app) = Upstream::start(&shop);
        shop.write(&stack(http, https, app));
        let file = shop.export(tool, &[]);
        let (good, said) = shop.tried(tool, &file);
        assert!(good, "{said}");
        let _served = Served::start(&shop, tool, &file, http);
        let output = Command::new("timeout")
            .args(["60", "node"])
            .arg(shop.folder.join("grpc.js"))
            .args(["client", &https.to_string(), "shop.example"])
            .arg(shop.folder.join("chain.pem"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{tool:?} {}", String::from_utf8_lossy(&output.stderr));
        let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
        for (what, bytes) in [("unary", 5), ("stream", 6), ("large", 3 << 20)] {
            let one = &seen[what];
            assert_eq!((&one["status"], &one["bytes"]), (&200.into(), &bytes.into()), "{tool:?} {what} {one}");
            assert_eq!(one["trailers"]["grpc-status"], "0", "{tool:?} {what} {one}");
            assert_eq!(one["trailers"]["x-bytes"], bytes.to_string(), "{tool:?} {what} {one}");
        }
        assert_eq!(seen["refused"]["headers"]["grpc-status"], "7", "{tool:?} {}", seen["refused"]);
        let headers = &seen["unary"]["headers"];
        assert_eq!(headers["strict-transport-security"], "max-age=31536000", "{tool:?} {headers}");
        let got: Value = serde_json::from_str(headers["x-got"].as_str().unwrap()).unwrap();
        assert_eq!(got[":method"], "POST", "{tool:?} {got}");
        assert_eq!(got["te"], "trailers", "{tool:?} servers of gRPC refuse who doesn't want trailers: {got}");
        assert_eq!(got["x-forwarded-for"], "127.0.0.1", "{tool:?} {got}");
        assert_eq!(got["x-forwarded-proto"], "https", "{tool:?} {got}");
        let host = format!("shop.example:{https}");
        assert!(got[":authority"] == *host || got["host"] == *host, "{tool:?} {got}");
    }
}
