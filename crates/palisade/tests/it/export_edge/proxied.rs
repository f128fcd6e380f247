//! Exported servers behind proxies that speak the PROXY protocol.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::Duration;

use super::{Answer, Served, Shop, Tool, missing, upstream};
use crate::free_ports::free_ports;
use crate::need_root;
use crate::support::skipped;

fn stack(http: u16, https: u16, app: u16, trusted: &str) -> String {
    format!(
        r#"
name: shop
services:
  app: {{ image: app:1, ports: ["127.0.0.1:{app}:8081"] }}
x-palisade:
  edge:
    ports: {{ http: {http}, https: {https} }}
    certificates: local
    limits: {{ connections: 1000 }}
    redirect: false
    trusted_proxies: [{trusted}]
    proxy_protocol: true
    routes:
      - {{ domain: shop.example, to: "app:8081" }}
      - {{ domain: shop.example, path: /once, to: "app:8081", rate_limit: {{ per_client: 1/m, burst: 0 }} }}
      - {{ domain: shop.example, path: /closed, to: "app:8081", allow: [192.0.2.0/24] }}
"#
    )
}

/// Version 1 is a line.
fn line(client: &str) -> Vec<u8> {
    let family = if client.contains(':') { "TCP6" } else { "TCP4" };
    let own = if client.contains(':') { "2001:db8::1" } else { "203.0.113.1" };
    format!("PROXY {family} {client} {own} 40000 443\r\n").into_bytes()
}

/// Version 2 is binary.
fn binary(client: Ipv4Addr) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    bytes.extend(client.octets());
    bytes.extend([203, 0, 113, 1, 0x9c, 0x40, 0x01, 0xbb]);
    bytes
}

fn connect(port: u16, head: &[u8], path: &str, more: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: shop.example:{port}\r\n{more}\r\n");
    // At once, as proxies do.
    stream.write_all(&[head, request.as_bytes()].concat()).unwrap();
    stream
}

fn ask(port: u16, head: &[u8], path: &str, more: &str) -> Answer {
    Answer::of(&connect(port, head, path, more))
}

/// By TLS: what the upstream was told. The protocol's line stands before the handshake.
fn by_tls(shop: &Shop, port: u16, client: &str) -> String {
    let script = "
import socket, ssl, sys
port, root, client = sys.argv[1:]
plain = socket.create_connection(('127.0.0.1', int(port)), 30)
plain.sendall(f'PROXY TCP4 {client} 203.0.113.1 40000 443\\r\\n'.encode())
stream = ssl.create_default_context(cafile=root).wrap_socket(plain, server_hostname='shop.example')
stream.sendall(b'GET / HTTP/1.1\\r\\nHost: shop.example\\r\\nConnection: close\\r\\n\\r\\n')
while data := stream.recv(65536): sys.stdout.write(data.decode())
";
    let mut command = Command::new("timeout");
    command.args(["60", "python3", "-c", script, &port.to_string()]).arg(shop.folder.join("chain.pem")).arg(client);
    let output = command.output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn exported_servers_take_clients_from_the_proxy_protocol() {
    const TEST: &str = "export_edge::proxied::exported_servers_take_clients_from_the_proxy_protocol";
    need_root!("export_edge::proxied::exported_servers_take_clients_from_the_proxy_protocol");
    if let Some(missing) = missing(&["nginx", "haproxy", "openssl", "python3"]) {
        return skipped(TEST, &missing);
    }
    for tool in [Tool::Nginx, Tool::Haproxy] {
        let [http, https] = free_ports();
        let shop = Shop::new(&stack(http, https, upstream("app"), "127.0.0.1/32"));
        let file = shop.export(tool, &[]);
        let (good, said) = shop.tried(tool, &file);
        assert!(good, "{said}");
        let _served = Served::start(&shop, tool, &file, http);

        // Both versions and both families; what the client says of itself is nobody's word.
        let lie = "X-Forwarded-For: 192.0.2.66\r\nX-Real-IP: 192.0.2.66\r\nForwarded: for=192.0.2.66\r\n";
        for (head, client) in [
            (line("198.51.100.7"), "198.51.100.7"),
            (line("2001:db8:1::7"), "2001:db8:1::7"),
            (binary(Ipv4Addr::new(198, 51, 100, 8)), "198.51.100.8"),
        ] {
            let answer = ask(http, &head, "/", lie);
            assert_eq!(answer.status, 200, "{tool:?} {client} {answer:?}");
            assert_eq!(answer.got("X-Real-IP"), Some(client), "{tool:?} {answer:?}");
            assert_eq!(answer.got("X-Forwarded-For"), Some(client), "{tool:?} {answer:?}");
            assert!(!answer.body.contains("192.0.2.66"), "{tool:?} {answer:?}");
        }
        let told = by_tls(&shop, https, "198.51.100.9").to_ascii_lowercase();
        assert!(told.starts_with("http/1.1 200") && told.contains("x-real-ip: 198.51.100.9"), "{tool:?} {told}");
        assert!(told.contains("x-forwarded-proto: https"), "{tool:?} {told}");

        // Limits and lists are for clients, not for the proxy that they share.
        assert_eq!(ask(http, &line("198.51.100.1"), "/once", "").status, 200, "{tool:?}");
        assert_eq!(ask(http, &line("198.51.100.1"), "/once", "").status, 429, "{tool:?}");
        assert_eq!(ask(http, &line("198.51.100.2"), "/once", "").status, 200, "{tool:?}");
        assert_eq!(ask(http, &line("198.51.100.1"), "/closed", "").status, 403, "{tool:?}");
        assert_eq!(ask(http, &line("192.0.2.5"), "/closed", "").status, 200, "{tool:?}");

        // Whoever comes without it gets nothing.
        let mut bare = connect(http, b"", "/", "");
        let mut text = String::new();
        let _ = bare.read_to_string(&mut text);
        assert!(!text.contains(" 200 "), "{tool:?} {text}");
    }
}

#[test]
fn a_stranger_cant_say_who_he_is_by_the_proxy_protocol() {
    const TEST: &str = "export_edge::proxied::a_stranger_cant_say_who_he_is_by_the_proxy_protocol";
    need_root!("export_edge::proxied::a_stranger_cant_say_who_he_is_by_the_proxy_protocol");
    if let Some(missing) = missing(&["nginx", "haproxy", "openssl"]) {
        return skipped(TEST, &missing);
    }
    for tool in [Tool::Nginx, Tool::Haproxy] {
        let [http, https] = free_ports();
        // The proxy is elsewhere: who comes from loopback is a stranger.
        let shop = Shop::new(&stack(http, https, upstream("app"), "203.0.113.9/32"));
        let file = shop.export(tool, &[]);
        let _served = Served::start(&shop, tool, &file, http);
        let stream = connect(http, &line("192.0.2.5"), "/closed", "");
        let mut text = String::new();
        let _ = stream.take(15).read_to_string(&mut text);
        assert!(!text.contains(" 200"), "{tool:?} an allowed address that he made up: {text}");
    }
}

#[test]
fn quic_is_shared_out_among_workers_once_for_each_address() {
    let shop = Shop::new(
        r#"
name: shop
services:
  app: { image: app:1, ports: ["127.0.0.1:8081:8081"] }
x-palisade:
  edge:
    certificates: local
    http3: true
    routes:
      - { domain: shop.example, to: "app:8081" }
      - { domain: other.example, to: "app:8081" }
"#,
    );
    for more in [&[][..], &["--conf-d"]] {
        let arguments = [&["export", "nginx", "--nginx-version", "1.26"], more].concat();
        let (code, text, said) = shop.palisade(&arguments);
        assert_eq!(code, 0, "{said}");
        for address in ["443", "[::]:443"] {
            let all: Vec<_> = text.lines().filter(|line| line.contains(&format!("listen {address} quic"))).collect();
            assert!(all.len() >= 2, "{more:?} {text}");
            assert_eq!(all.iter().filter(|line| line.contains("reuseport")).count(), 1, "{more:?} {all:?}");
        }
    }
}
