//! A service is replaced while somebody talks to it all the time: nobody may notice, and what doesn't work is taken back.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::need_root;
use crate::scratch::{HOST, Host, PATIENCE, Ran, patiently};

/// An application that tells its version, and a client that asks it all the time: over new connections and over one that
/// it keeps as long as the server does.
const FILE: &str = r#"
name: shop
x-palisade:
  allow:
    no-healthcheck: it lives for a test
    no-memory-limit: it lives for a test
services:
  app:
    expose: ["8081"]
    environment: {VERSION: "1"}
    stop_grace_period: 30s
    deploy: {replicas: 1, update_config: {monitor: 300ms}}
    healthcheck:
      test: ["CMD", "python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8081/health', timeout=4)"]
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
            import http.server, os, signal, sys, threading, time
            version = os.environ['VERSION']
            if version == 'exits': sys.exit('cannot read the settings')
            class Answer(http.server.BaseHTTPRequestHandler):
                protocol_version = 'HTTP/1.1'
                def do_GET(self):
                    if version == 'dies later' and self.path == '/': threading.Timer(1.5, lambda: os._exit(7)).start()
                    self.send_response(500 if version == 'sick' else 200)
                    self.send_header('Content-Length', str(len(version)))
                    if leaving.is_set(): self.send_header('Connection', 'close')
                    self.end_headers()
                    self.wfile.write(version.encode())
                def log_message(self, *arguments): pass
            class Server(http.server.ThreadingHTTPServer): request_queue_size = 128
            leaving = threading.Event()
            server = Server(('0.0.0.0', 8081), Answer)
            signal.signal(signal.SIGTERM, lambda *_: (leaving.set(), threading.Thread(target=server.shutdown).start()))
            server.serve_forever()
  client:
    depends_on: {app: {condition: service_healthy}}
    x-palisade:
      process:
        command:
          - python3
          - -u
          - -c
          - |
            import http.client, sys, threading, time
            seen = {}
            def tell(line): sys.stdout.write(line + '\n')
            def ask(connection, kind):
                connection.request('GET', '/')
                answer = connection.getresponse()
                version = answer.read().decode()
                if answer.status != 200: raise OSError(f'status {answer.status}')
                if seen.get(kind) != version: tell(f'{kind} sees {version}')
                seen[kind] = version
                return answer.getheader('Connection') == 'close'
            def often():
                while True:
                    try:
                        connection = http.client.HTTPConnection('app', 8081, timeout=5)
                        ask(connection, 'new')
                        connection.close()
                    except OSError as error: tell(f'FAILED: new connection: {error}')
                    time.sleep(0.005)
            def kept():
                while True:
                    connection = http.client.HTTPConnection('app', 8081, timeout=5)
                    for _ in range(40):
                        try:
                            if ask(connection, 'kept'): break
                        except OSError as error:
                            tell(f'FAILED: kept connection: {error}')
                            break
                        time.sleep(0.005)
                    connection.close()
            threading.Thread(target=often).start()
            kept()
"#;

fn version(replicas: u8, version: &str) -> String {
    FILE.replace("VERSION: \"1\"", &format!("VERSION: \"{version}\""))
        .replace("replicas: 1", &format!("replicas: {replicas}"))
}

struct Shop(Host);

impl Shop {
    fn new(replicas: u8) -> Self {
        let host = Host::new();
        host.write(&version(replicas, "1"));
        host.up();
        host.wait_for_line("client", "new sees 1");
        Self(host)
    }

    fn up(&self, file: &str) -> Ran {
        self.0.write(file);
        self.0.palisade(&["up"])
    }

    /// The client sees a version, and has seen no failure.
    fn serves(&self, version: &str) {
        patiently(&format!("version {version}"), || {
            let log = self.0.log("client");
            let last = |kind: &str| log.iter().rfind(|line| line.starts_with(kind)).cloned().unwrap_or_default();
            (last("new") == format!("new sees {version}") && last("kept") == format!("kept sees {version}"))
                .then_some(())
        });
        self.nothing_failed();
    }

    fn nothing_failed(&self) {
        let log = self.0.log("client");
        let failed: Vec<_> = log.iter().filter(|line| !line.contains(" sees ")).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }

    fn instances(&self) -> Vec<String> {
        let ps = self.0.ps();
        let all = ps["instances"].as_array().unwrap().iter();
        all.map(|seen| seen["instance"].as_str().unwrap().to_owned()).filter(|id| id.starts_with("app.")).collect()
    }
}

#[test]
fn nobody_notices_an_update() {
    need_root!("update::nobody_notices_an_update");
    for replicas in [1, 2] {
        let shop = Shop::new(replicas);
        for newer in ["2", "3"] {
            shop.up(&version(replicas, newer)).expect(0);
            shop.serves(newer);
        }
        assert_eq!(shop.instances().len(), usize::from(replicas));
        shop.up(&version(replicas, "3")).expect(0);
        shop.up(&version(3 - replicas, "3")).expect(0);
        std::thread::sleep(Duration::from_millis(200));
        shop.nothing_failed();
        shop.0.palisade(&["prove"]).expect(0);
        shop.0.down();
    }
}

#[test]
fn a_bad_version_is_taken_back() {
    need_root!("update::a_bad_version_is_taken_back");
    let shop = Shop::new(1);
    for (bad, reason) in [
        ("exits", "cannot read the settings"),
        ("sick", "is unhealthy"),
        ("dies later", "exited with 7 after it had taken over"),
    ] {
        // A version that works for a while takes over, and its clients lose what they had open when it dies: no
        // request may fail only because Palisade does something.
        let file = version(1, bad).replace("monitor: 300ms", "monitor: 4s");
        let file = if bad == "sick" { file.replace("start_period: 20s", "start_period: 300ms") } else { file };
        let ran = shop.up(&file).expect(1);
        assert!(ran.err.contains(reason), "{bad}: {}", ran.err);
        assert!(ran.err.contains("what was done before is undone"), "{}", ran.err);
        assert_eq!(shop.instances(), ["app.1"]);
        if bad == "dies later" {
            patiently("the first version", || {
                let log = shop.0.log("client");
                (log.iter().rfind(|line| line.starts_with("new"))? == "new sees 1").then_some(())
            });
        } else {
            shop.serves("1");
        }
    }
    shop.0.down();
}

#[test]
fn an_update_killed_at_any_step_is_finished_by_the_next_run() {
    need_root!("update::an_update_killed_at_any_step_is_finished_by_the_next_run");
    let shop = Shop::new(1);
    let (mut cuts, mut current) = (0, 1);
    for step in 1.. {
        shop.0.write(&version(1, &(current + 1).to_string()));
        let mut command = shop.0.command(&["up"]);
        let killed = command.env("PALISADE_TEST_CUT", step.to_string()).output().unwrap();
        if killed.status.success() {
            break;
        }
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&killed.status), Some(9), "{killed:?}");
        cuts += 1;
        // Every second time the user has thought better of it.
        if step % 2 == 0 {
            current += 1;
        }
        shop.up(&version(1, &current.to_string())).expect(0);
        shop.serves(&current.to_string());
        assert_eq!(shop.instances().len(), 1, "after a cut before step {step}");
        shop.0.palisade(&["prove"]).expect(0);
    }
    // And while a bad version is taken back.
    shop.0.write(&version(1, "exits"));
    let killed = shop.0.command(&["up"]).env("PALISADE_TEST_CUT", "undo").output().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&killed.status), Some(9), "{killed:?}");
    shop.up(&version(1, "last")).expect(0);
    shop.serves("last");
    eprintln!("{} cut points were tried", cuts + 1);
    assert!(cuts >= 8, "{cuts}");
    shop.0.down();
}

/// A server that listens on `PORT` and says so to whoever connects.
fn listens_on(port: u16, replicas: u8) -> String {
    format!(
        r#"
name: shop
services:
  app:
    ports: ["8080:{port}"]
    environment: {{PORT: "{port}"}}
    deploy: {{replicas: {replicas}, update_config: {{monitor: 300ms}}}}
    healthcheck:
      test: ["CMD-SHELL", "exec python3 -c \"import os,socket; socket.create_connection(('127.0.0.1', int(os.environ['PORT'])), 8)\""]
      interval: 5s
      timeout: 10s
      start_period: 60s
      start_interval: 100ms
    x-palisade:
      process:
        command:
          - python3
          - -c
          - |
            import os, socket, time
            time.sleep(1)
            server = socket.create_server(('0.0.0.0', int(os.environ['PORT'])), backlog=128)
            while True:
                client = server.accept()[0]
                client.sendall(os.environ['PORT'].encode())
                client.close()
"#
    )
}

/// What a stranger is told at a published port.
fn told() -> String {
    let told = || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(HOST, 8080), Duration::from_secs(10))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    };
    told().unwrap_or_else(|error| format!("FAILED: {error}"))
}

#[test]
fn nobody_outside_notices_that_a_service_listens_on_another_port() {
    need_root!("update::nobody_outside_notices_that_a_service_listens_on_another_port");
    for replicas in [1, 2] {
        let host = Host::new();
        host.write(&listens_on(80, replicas));
        host.up();
        let (internet, done) = (&host.internet, &AtomicBool::new(false));
        let (ran, answers) = std::thread::scope(|scope| {
            let stranger = scope.spawn(move || {
                let ask = || {
                    let mut answers = vec![told()];
                    let until = Instant::now() + PATIENCE;
                    while !done.load(Ordering::Relaxed) && Instant::now() < until {
                        answers.push(told());
                        answers.dedup();
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    answers.push(told());
                    answers.dedup();
                    answers
                };
                internet.run(ask).unwrap()
            });
            host.write(&listens_on(8081, replicas));
            let ran = host.palisade(&["up"]);
            done.store(true, Ordering::Relaxed);
            (ran, stranger.join().unwrap())
        });
        ran.expect(0);
        assert_eq!(answers, ["80", "8081"], "{replicas} replicas");
        assert_eq!(host.palisade(&["plan"]).expect(0).out, "shop: nothing to change\n");
        host.palisade(&["prove"]).expect(0);
        host.down();
    }
}
