//! WebSockets that are open while the edge is replaced stay with the old instance until they end, or its time is over; new
//! ones are taken by the new instance.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::shop::{APP, Shop};
use crate::need_root;
use crate::scratch::{HOST, PATIENCE, Running, patiently};

/// Has one connection open all the time and others for a moment. Tells `OPEN` or `ENDED`, how often the first one answered
/// and how many others there were. Anything else is an error.
const CLIENT: &str = r#"
import os, select, socket, ssl, sys, time
host, root, out = sys.argv[1:]
context = ssl.create_default_context(cafile=root)
def connect():
    stream = context.wrap_socket(socket.create_connection((host, 443), 10), server_hostname='shop.example')
    stream.sendall(b'GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n'
                   b'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n')
    head = b''
    while not head.endswith(b'\r\n\r\n'):
        part = stream.recv(1)
        if not part: raise OSError(f'the connection ended after {head}')
        head += part
    if b' 101 ' not in head: raise OSError(head)
    return stream
def answered(stream):
    text = b''
    try:
        stream.sendall(b'ping')
        while len(text) < 4:
            part = stream.recv(4 - len(text))
            if not part: return False
            text += part
    except (ConnectionError, ssl.SSLError): return False
    if text != b'ping': raise OSError(text)
    return True
def tell(text):
    with open(out + '.new', 'w') as file: file.write(text)
    os.rename(out + '.new', out)
try:
    stays, is_open, answers, others = connect(), True, 0, 0
    end = time.time() + 200
    while time.time() < end and not select.select([sys.stdin], [], [], 0.02)[0]:
        is_open = is_open and answered(stays)
        answers += is_open
        other = connect()
        if not answered(other): raise OSError('a new connection ended')
        other.close()
        others += 1
        tell(f'{"OPEN" if is_open else "ENDED"} {answers} {others}')
    stays.close()
except Exception as error: tell(f'FAILED {error!r}')
"#;

struct Sockets {
    child: Child,
    told: PathBuf,
}

impl Sockets {
    fn open(shop: &Shop) -> Self {
        let told = shop.0.folder.join("sockets");
        let _ = fs::remove_file(&told);
        let mut command = Command::new("python3");
        command.args(["-c", CLIENT, &HOST.to_string()]).arg(shop.root()).arg(&told);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command.stderr(File::create(shop.0.folder.join("sockets.err")).unwrap());
        let child = shop.0.internet.run(|| command.spawn()).unwrap().unwrap();
        let sockets = Self { child, told };
        patiently("an open connection", || sockets.told().map(drop));
        sockets
    }

    /// Whether the first one is open, how often it was answered, and how many others were.
    fn told(&self) -> Option<(bool, u64, u64)> {
        let text = fs::read_to_string(&self.told).ok()?;
        assert!(!text.starts_with("FAILED"), "{text}");
        let mut words = text.split(' ');
        let is_open = words.next()? == "OPEN";
        Some((is_open, words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    }

    /// Until both kinds were answered so often more.
    fn wait_for(&self, more: u64) {
        let (_, answers, others) = self.told().unwrap();
        patiently("more answers", || {
            let now = self.told()?;
            (now.1 >= answers + more && now.2 >= others + more).then_some(())
        });
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
        self.told();
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// With so many routes more, which need another edge.
fn more_routes(paths: &[&str]) -> String {
    let route = |path: &&str| {
        format!("      - domain: shop.example\n        path: {path}\n        to: app:8081\n        hsts: true\n")
    };
    let routes: String = paths.iter().map(route).collect();
    APP.replacen("services:\n", &format!("{routes}services:\n"), 1)
}

#[test]
fn open_web_sockets_outlive_an_update_of_the_edge_until_its_grace_is_over() {
    need_root!("edge::web_sockets::open_web_sockets_outlive_an_update_of_the_edge_until_its_grace_is_over");
    let shop = Shop::new(APP);
    let sockets = Sockets::open(&shop);
    let update = |paths: &[&str]| {
        shop.0.write(&more_routes(paths));
        Running::start(shop.0.command(&["up"]))
    };
    let is_new = |path: &str| {
        patiently("the new edge", || {
            let (code, text) = shop.curl(&["-i", &format!("https://shop.example{path}")]);
            (code == Some(0) && text.to_ascii_lowercase().contains("strict-transport-security")).then_some(())
        });
    };

    let mut up = update(&["/more"]);
    is_new("/more");
    // Another instance serves what is new, and the old one goes on with what is there.
    sockets.wait_for(30);
    assert!(sockets.told().unwrap().0, "the open one was cut");
    assert!(!up.is_over(), "it waits for the open one");
    sockets.end();
    up.end(PATIENCE).expect(0);
    assert_eq!(shop.edges(), ["palisade-edge.2"]);

    // Nobody ends it.
    let sockets = Sockets::open(&shop);
    let up = update(&["/more", "/still-more"]);
    is_new("/still-more");
    let began = Instant::now();
    up.end(PATIENCE).expect(0);
    let took = began.elapsed();
    assert!(took > Duration::from_secs(20), "an open connection has half a minute, and had {took:?}");
    assert_eq!(shop.edges(), ["palisade-edge.1"]);
    patiently("its end", || (!sockets.told()?.0).then_some(()));
    sockets.end();
    shop.0.down();
}
