//! Several instances behind one published port: who on the internet is answered by whom, and what happens when one is
//! ill or dies.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_host::netns::Netns;
use palisade_host::{link, sockets};

use crate::need_root;
use crate::scratch::{HOST, Host, PATIENCE, Running, STRANGER, patiently};

/// Each instance tells how it is, its own address, and whom it sees; told to be ill, it is.
const FILE: &str = r#"
name: shop
services:
  web:
    ports: ["8081:80"]
    deploy: {replicas: 3}
    restart: always
    healthcheck:
      test: ["CMD", "python3", "-c", "import socket,sys; sys.exit('ill' in socket.create_connection(('127.0.0.1', 80), 8).makefile().readline())"]
      interval: 300ms
      timeout: 10s
      retries: 1
      start_period: 60s
      start_interval: 100ms
    x-palisade:
      process:
        command:
          - python3
          - -c
          - |
            import socket, threading
            state = 'well'
            def serve(c, a):
                global state
                c.sendall(f'{state} {server.getsockname()[0]} {a[0]}\n'.encode())
                if c.recv(99) == b'be ill': state = 'ill'
                c.close()
            server = socket.create_server(('0.0.0.0', 80), backlog=128)
            while True: threading.Thread(target=serve, args=server.accept(), daemon=True).start()
"#;

/// Connects; the address of the instance that answered, and the connection.
fn knock() -> Option<(String, TcpStream)> {
    let stream = TcpStream::connect_timeout(&SocketAddr::new(HOST, 8081), Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).ok()?;
    let words: Vec<_> = line.split_whitespace().collect();
    let [_, instance, client] = words[..] else { return None };
    assert_eq!(client, STRANGER.to_string(), "the real client is seen");
    Some((instance.to_owned(), stream))
}

/// Who answered a stranger how often; "" stands for failures.
fn answers(internet: &Netns, times: u32) -> BTreeMap<String, u32> {
    let mut seen = BTreeMap::new();
    internet
        .run(|| {
            for _ in 0..times {
                *seen.entry(knock().map(|(name, _)| name).unwrap_or_default()).or_insert(0) += 1;
            }
        })
        .unwrap();
    seen
}

fn names(seen: &BTreeMap<String, u32>) -> Vec<&str> {
    seen.keys().map(String::as_str).collect()
}

fn health(host: &Host, instance: &str) -> String {
    let ps = host.ps();
    let seen = ps["instances"].as_array().unwrap().iter().find(|seen| seen["instance"] == instance);
    seen.map(|seen| seen["health"].to_string()).unwrap_or_default()
}

const ALL: [&str; 3] = ["127.77.1.1", "127.77.1.2", "127.77.1.3"];

#[test]
fn three_instances_share_a_published_port_and_one_that_is_ill_or_dead_is_passed_over() {
    need_root!("replicas::three_instances_share_a_published_port_and_one_that_is_ill_or_dead_is_passed_over");
    let host = Host::new();
    host.write(FILE);
    host.up();
    // The last one may be told to the guard a moment after `up` has seen it.
    patiently("all three answer", || (names(&answers(&host.internet, 30)) == ALL).then_some(()));
    let seen = answers(&host.internet, 300);
    eprintln!("300 connections from outside: {seen:?}");
    assert_eq!(names(&seen), ALL);
    // 100 are expected; 60 to 140 is five standard deviations.
    assert!(seen.values().all(|count| (60..=140).contains(count)), "{seen:?}");

    let told = host.internet.run(|| {
        let (_, mut stream) = std::iter::repeat_with(knock).flatten().find(|(name, _)| name == ALL[1]).unwrap();
        stream.write_all(b"be ill").unwrap();
    });
    told.unwrap();
    patiently("web.2 is found ill", || health(&host, "web.2").contains("unhealthy").then_some(()));
    patiently("web.2 is passed over", || (names(&answers(&host.internet, 30)) == [ALL[0], ALL[2]]).then_some(()));
    let seen = answers(&host.internet, 200);
    eprintln!("200 connections with web.2 ill: {seen:?}");
    assert_eq!(names(&seen), [ALL[0], ALL[2]]);

    // One is killed while a client connects again and again: it loses at most what that one had accepted or queued.
    let victim = host.pid("web.3").unwrap();
    let internet = &host.internet;
    let seen = std::thread::scope(|scope| {
        let client = scope.spawn(move || answers(internet, 1500));
        std::thread::sleep(Duration::from_millis(100));
        kill(Pid::from_raw(victim as i32), Signal::SIGKILL).unwrap();
        client.join().unwrap()
    });
    eprintln!("1500 connections while web.3 was killed: {seen:?}");
    assert!(seen.get("").is_none_or(|lost| *lost <= 2), "one connection at a time: {seen:?}");
    patiently("web.3 is back", || names(&answers(&host.internet, 30)).contains(&ALL[2]).then_some(()));
    host.down();
}

/// Listens on a port of which the file says nothing.
const UNDECLARED: &str = r#"
name: shop
services:
  web:
    x-palisade:
      process:
        command:
          - python3
          - -c
          - |
            import socket
            server = socket.create_server(('0.0.0.0', 8081))
            print('listening', flush=True)
            while True: server.accept()[0].close()
"#;

#[test]
fn a_port_that_is_published_while_somebody_listens_on_it_is_open_at_once() {
    need_root!("replicas::a_port_that_is_published_while_somebody_listens_on_it_is_open_at_once");
    let host = Host::new();
    host.write(UNDECLARED);
    host.up();
    host.wait_for_line("web", "listening");
    let before = host.pid("web.1");
    assert!(before.is_some() && host.all_open_to_strangers(&[8080, 8081]).is_empty());
    host.write(&UNDECLARED.replace("  web:", "  web:\n    ports: [\"8080:8081\"]"));
    host.up();
    patiently("the port is open", || host.open_to_strangers(8080).then_some(()));
    assert_eq!(host.pid("web.1"), before, "it wasn't restarted");
    host.write(UNDECLARED);
    host.up();
    assert!(!host.open_to_strangers(8080));
    assert_eq!(host.pid("web.1"), before);
    host.down();
}

/// Whether the policy, as it was noted, sends new connections to an instance of the first service.
fn takes_connections(host: &Host, instance: &str) -> bool {
    let state = std::fs::read(host.layout.run().join("state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    let backends = state["policy"]["services"][0]["backends"].as_array().unwrap();
    backends.iter().any(|backend| backend == instance)
}

#[test]
fn a_restart_waits_for_whoever_is_about_to_be_connected() {
    need_root!("replicas::a_restart_waits_for_whoever_is_about_to_be_connected");
    let host = Host::new();
    host.write(FILE);
    host.up();
    patiently("all three answer", || (names(&answers(&host.internet, 30)) == ALL).then_some(()));
    // What the stranger says gets lost on its way: its handshakes are done for it, and not for the host.
    let nft = |script: &'static str| {
        let mut command = std::process::Command::new("timeout");
        let status = command.args(["20", "nft", script]).status().unwrap();
        assert!(status.success(), "{script}: {status}");
    };
    let lossy = "table inet road { chain out { type filter hook output priority 0;
        tcp dport 8081 tcp flags & (syn | ack) == ack drop; }; }";
    let connected = host.internet.run(|| {
        nft(lossy);
        let connect = |_| TcpStream::connect_timeout(&SocketAddr::new(HOST, 8081), Duration::from_secs(10)).unwrap();
        (0..24).map(connect).collect::<Vec<_>>()
    });
    let connected = connected.unwrap();
    let restart = Running::start(host.command(&["restart", "web"]));
    patiently("web.1 makes way", || (!takes_connections(&host, ALL[0])).then_some(()));
    std::thread::sleep(Duration::from_millis(500));
    let heard = host.internet.run(|| {
        nft("delete table inet road");
        let hear = |mut stream: &TcpStream| {
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            stream.write_all(b"hello")?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            Ok::<_, std::io::Error>(line.split_whitespace().nth(1).map(str::to_owned))
        };
        connected.iter().map(hear).collect::<Vec<_>>()
    });
    let heard = heard.unwrap();
    drop(connected);
    restart.end(PATIENCE).expect(0);
    let from: BTreeSet<_> = heard.iter().map(|heard| heard.as_ref().ok().cloned().flatten()).collect();
    assert_eq!(from, ALL.map(|name| Some(name.to_owned())).into(), "{heard:?}");
    host.down();
}

#[test]
fn a_connected_datagram_socket_is_told_that_its_peer_is_gone() {
    need_root!("replicas::a_connected_datagram_socket_is_told_that_its_peer_is_gone");
    let netns = Netns::unnamed().unwrap();
    let _entered = netns.enter().unwrap();
    link::set_up("lo", false).unwrap();
    let peers = ["127.77.1.2:9", "127.77.1.3:9"].map(|address| UdpSocket::bind(address).unwrap());
    let sockets = peers.each_ref().map(|peer| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(peer.local_addr().unwrap()).unwrap();
        socket
    });
    let out = BTreeSet::from(["127.77.1.2".parse().unwrap()]);
    assert_eq!(sockets::abort_datagrams_to(&out).unwrap(), 1);
    let told = sockets[0].recv(&mut [0]).unwrap_err();
    assert_eq!(told.kind(), std::io::ErrorKind::ConnectionAborted, "{told}");
    assert!(sockets[0].send(b"x").is_err(), "it is connected no more");
    sockets[0].connect("127.77.1.3:9").unwrap();
    assert_eq!((sockets[0].send(b"x").unwrap(), sockets[1].send(b"x").unwrap()), (1, 1));
    assert_eq!(sockets::abort_datagrams_to(&out).unwrap(), 0);
}
