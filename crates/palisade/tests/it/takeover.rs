//! SIGKILL at any moment: services and enforcement stay, nothing is open, and the next run takes over.
//!
//! One service of the stack tries all the time what it may not do, and says so when it works even once.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_core::names::ProjectName;
use palisade_host::cgroup::Cgroup;
use palisade_host::layout::Layout;
use palisade_host::link;
use palisade_host::sockets::{self, Which};

use crate::need_root;
use crate::scratch::{HOST, Host, Running, connects, left_of, patiently};

/// `db` and `secret` are private, `web` is published, `prober` may use `db` only. Addresses go by order in the file.
const FILE: &str = r#"
name: shop
services:
  db: &server
    expose: ["5432"]
    volumes: ["./:/case:ro"]
    healthcheck: &check
      { test: [CMD, python3, /case/stack.py, check], interval: 5s, start_period: 60s, start_interval: 100ms }
    x-palisade: { process: { command: [python3, /case/stack.py, serve, "5432"], user: nobody }, connect: [] }
  secret:
    expose: ["7000"]
    volumes: ["./:/case:ro"]
    x-palisade: { process: { command: [python3, /case/stack.py, serve, "7000"], user: nobody }, connect: [] }
  web:
    ports: ["8080:8080"]
    volumes: ["./:/case:ro"]
    depends_on: { db: { condition: service_healthy } }
    x-palisade: { process: { command: [python3, /case/stack.py, serve, "8080"], user: nobody }, connect: [] }
  prober:
    volumes: ["./:/case:ro"]
    x-palisade: { process: { command: [python3, /case/stack.py, probe], user: nobody }, connect: [db] }
"#;

const PROGRAM: &str = r#"
import socket, sys, time

def say(*words):
    print(*words, flush=True)

if sys.argv[1] == "check":
    socket.create_connection(("127.0.0.1", 5432), 2)
    sys.exit()
elif sys.argv[1] == "serve":
    server = socket.create_server(("0.0.0.0", int(sys.argv[2])), reuse_port=False)
    say("serving at", server.getsockname()[0])
    while True:
        server.accept()[0].close()

def is_private(address):
    return address.startswith("127.77.")

def refused(what, *where):
    try:
        socket.create_connection(where, 2).close()
        say("BAD:", what, "reached", where)
    except PermissionError:
        return True
    except OSError as error:
        say("BAD:", what, "was not refused but failed:", error)

tick = 0
while True:
    tick += 1
    with socket.socket() as server:
        server.bind(("0.0.0.0", 9001))
        server.listen()
        if not is_private(server.getsockname()[0]):
            say("BAD: a bind was left as it is:", server.getsockname())
    refused("secret", "127.77.2.0", 7000)
    refused("secret's instance", "127.77.2.1", 7000)
    try:
        with socket.create_connection(("db", 5432), 2) as connection:
            if not is_private(connection.getsockname()[0]) or not is_private(connection.getpeername()[0]):
                say("BAD: connected as", connection.getsockname(), "to", connection.getpeername())
            reached = "reached db"
    except OSError as error:
        reached = f"db is not there: {error}"
    say("tick", tick, reached)
    time.sleep(0.02)
"#;

fn stage() -> Host {
    let host = Host::new();
    host.write(FILE);
    std::fs::write(host.folder.join("stack.py"), PROGRAM).unwrap();
    host
}

/// Nothing is open but what is published, and nothing that a service tried has worked.
#[track_caller]
fn assert_shut(host: &Host, when: &str) {
    let bad: Vec<String> = host.log("prober").into_iter().filter(|line| line.contains("BAD")).collect();
    assert_eq!(bad, Vec::<String>::new(), "{when}");
    for socket in sockets::list(Which::Listening).unwrap() {
        let private = match socket.local.ip().to_canonical() {
            IpAddr::V4(ip) => ip.octets()[0] == 127 && ip.octets()[1] == 77,
            IpAddr::V6(_) => false,
        };
        assert!(private || socket.local.port() == 8080, "{when}: {socket:?}");
    }
    const PRIVATE: [u16; 3] = [5432, 7000, 9001];
    assert_eq!(host.all_open_to_strangers(&PRIVATE), [0; 0], "{when}");
    for port in PRIVATE {
        assert!(!connects(SocketAddr::new(HOST, port)), "{when}: {port} from the host itself");
    }
    let ps = host.ps();
    for seen in ps["instances"].as_array().unwrap() {
        let runs = !seen["pid"].is_null();
        assert!(!runs || seen["guarded"] == true, "{when}: {seen}");
    }
}

/// Waits until the prober, if it runs, has tried everything once more.
fn wait_for_more_ticks(host: &Host) {
    let ticks = || host.log("prober").len();
    let before = ticks();
    patiently("more ticks of the prober", || (ticks() > before + 3).then_some(()));
}

/// The server behind a published port may take its time.
fn wait_until_open(host: &Host) {
    patiently("the published port", || host.open_to_strangers(8080).then_some(()));
}

/// How many moments of an `up` are tried.
const MOMENTS: u32 = 12;

#[test]
fn killed_early_up_opens_nothing_and_the_next_one_finishes() {
    need_root!("takeover::killed_early_up_opens_nothing_and_the_next_one_finishes");
    kill_up_at(0..MOMENTS / 2);
}

#[test]
fn killed_late_up_opens_nothing_and_the_next_one_finishes() {
    need_root!("takeover::killed_late_up_opens_nothing_and_the_next_one_finishes");
    kill_up_at(MOMENTS / 2..MOMENTS);
}

fn kill_up_at(moments: std::ops::Range<u32>) {
    let host = stage();
    let began = Instant::now();
    host.up();
    let mut whole = began.elapsed();
    wait_for_more_ticks(&host);
    assert_shut(&host, "after a whole up");
    assert!(host.log("prober").iter().any(|line| line.ends_with("reached db")), "{:?}", host.log("prober"));
    wait_until_open(&host);
    host.down();

    let mut cut_short = 0;
    for moment in moments.clone() {
        let delay = whole * moment / MOMENTS;
        let when = format!("killed after {} of {} ms", delay.as_millis(), whole.as_millis());
        let mut first = Running::start(host.command(&["up", "--wait"]));
        let began = Instant::now();
        while began.elapsed() < delay && !first.is_over() {
            std::thread::sleep(Duration::from_millis(5));
        }
        match first.is_over() {
            // The first one of all had to wait for what others didn't.
            true => whole = whole.min(began.elapsed()),
            false => cut_short += 1,
        }
        drop(first);
        assert_shut(&host, &when);
        if host.pid("prober.1").is_some() {
            wait_for_more_ticks(&host);
            assert_shut(&host, &when);
        }
        let next = host.palisade(&["up", "--wait"]);
        assert_eq!(next.code, Some(0), "{when}: {}{}", next.out, next.err);
        wait_for_more_ticks(&host);
        assert_shut(&host, &format!("{when}, after the next up"));
        wait_until_open(&host);
        host.palisade(&["plan"]).expect(0);
        host.down();
        // A new life's log has no lines of the old one.
        let _ = std::fs::remove_dir_all(host.layout.log_directory());
    }
    assert!(cut_short >= 2, "only {cut_short} of {moments:?} were killed before they were done");
}

#[test]
fn down_that_is_killed_opens_nothing_and_the_next_one_finishes() {
    need_root!("takeover::down_that_is_killed_opens_nothing_and_the_next_one_finishes");
    let host = stage();
    host.up();
    let began = Instant::now();
    host.down();
    let whole = began.elapsed();
    const MOMENTS: u32 = 5;
    for moment in 0..MOMENTS {
        host.up();
        let down = Running::start(host.command(&["down", "--volumes", "--yes"]));
        let delay = whole * moment / MOMENTS;
        std::thread::sleep(delay);
        drop(down);
        assert_shut(&host, &format!("down killed after {} ms", delay.as_millis()));
        host.down();
    }
}

#[test]
fn a_killed_agent_changes_nothing_for_services() {
    need_root!("takeover::a_killed_agent_changes_nothing_for_services");
    let host = stage();
    host.up();
    wait_for_more_ticks(&host);
    let services = ["db.1", "secret.1", "web.1", "prober.1"];
    let pids = || services.map(|service| host.pid(service));
    let before = pids();
    assert!(before.iter().all(Option::is_some));
    let agent = host.agent().expect("an agent");
    kill(Pid::from_raw(agent), Signal::SIGKILL).unwrap();
    patiently("the agent's end", || (host.agent() != Some(agent)).then_some(()));
    assert_eq!(host.agent(), None);
    wait_for_more_ticks(&host);
    assert_shut(&host, "without an agent");
    assert_eq!(pids(), before, "known without an agent, too");
    assert!(host.open_to_strangers(8080));
    let last = host.log("prober").pop().unwrap();
    assert!(last.ends_with("reached db"), "{last}");

    host.up();
    let new = host.agent().expect("a new agent");
    assert_ne!(new, agent);
    assert_eq!(pids(), before);
    wait_for_more_ticks(&host);
    assert_shut(&host, "with a new agent");
    // The new one supervises what it did not start.
    host.down();
}

/// Tries all the time to reach the host at addresses that it may have one day.
const WAITING: &str = r#"
name: shop
services:
  prober:
    x-palisade:
      process:
        command:
          - python3
          - -c
          - |
            import socket
            while True:
                for address in ("203.0.113.77", "203.0.113.78"):
                    try:
                        socket.create_connection((address, 4022), 0.2).close()
                        print("BAD: reached", address, flush=True)
                    except PermissionError:
                        print("refused", address, flush=True)
                    except OSError:
                        print("no answer of", address, flush=True)
"#;

#[test]
fn an_address_that_the_host_gets_later_opens_nothing_with_or_without_an_agent() {
    need_root!("takeover::an_address_that_the_host_gets_later_opens_nothing_with_or_without_an_agent");
    let host = Host::new();
    host.write(WAITING);
    let _server = std::net::TcpListener::bind("0.0.0.0:4022").unwrap();
    host.up();
    wait_for_more_ticks(&host);
    let get = |address: &str| {
        link::add_address("eth0", address.parse().unwrap(), 24).unwrap();
        let reached = || connects(SocketAddr::new(address.parse().unwrap(), 4022)).then_some(());
        patiently("there is something to be reached", reached);
        wait_for_more_ticks(&host);
    };
    let assert_never_reached = || {
        let bad: Vec<String> = host.log("prober").into_iter().filter(|line| line.contains("BAD")).collect();
        assert_eq!(bad, Vec::<String>::new());
    };
    get("203.0.113.77");
    host.wait_for_line("prober", "refused 203.0.113.77");
    assert_never_reached();
    let agent = host.agent().expect("an agent");
    kill(Pid::from_raw(agent), Signal::SIGKILL).unwrap();
    patiently("the agent's end", || host.agent().is_none().then_some(()));
    get("203.0.113.78");
    assert_never_reached();
    host.up();
    host.wait_for_line("prober", "refused 203.0.113.78");
    assert_never_reached();
    host.down();
}

#[test]
fn killed_rehearsals_are_cleared_by_the_next_one() {
    need_root!("takeover::killed_rehearsals_are_cleared_by_the_next_one");
    let host = Host::new();
    let file = |healthy: &str| {
        format!(
            "name: shop\nservices:\n  web:\n    volumes: ['data:/data']\n    \
             healthcheck: {{ test: [CMD, '{healthy}'], interval: 1s, retries: 1000, start_period: 1000s, start_interval: 100ms }}\n    \
             x-palisade: {{ process: {{ command: [sh, -c, 'echo ready; exec sleep 1000'] }} }}\nvolumes: {{ data: {{}} }}\n"
        )
    };
    // One that waits for ever, killed on the way there and when it waits.
    host.write(&file("false"));
    let mut realms = Vec::new();
    for moment in [Some(0), Some(10), Some(30), Some(60), Some(100), Some(150), None] {
        let rehearsal = Running::start(host.command(&["rehearse"]));
        let realm = format!("palisade-rehearse-{}", rehearsal.pid());
        match moment {
            Some(after_ms) => std::thread::sleep(Duration::from_millis(after_ms)),
            None => {
                let log = format!("/var/log/{realm}/shop/web.1.log");
                let read = || std::fs::read_to_string(&log).ok().filter(|text| text.contains("ready"));
                patiently("the service of the rehearsal", read);
            }
        }
        drop(rehearsal);
        realms.push(realm);
    }
    // One that was killed when it had cleared nearly all.
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let realm = format!("palisade-rehearse-{}", gone.id());
    let layout = Layout { realm: realm.clone(), project: ProjectName::parse("any").unwrap() };
    let [cgroup, _] = Cgroup::all_of_realm(&layout).unwrap();
    cgroup.create().and_then(|()| cgroup.create_v1()).unwrap();
    realms.push(realm);
    // Another rehearsal that runs beside this test may be clearing already, or all of it is still there.
    host.write(&file("true"));
    let next = host.palisade(&["rehearse"]).expect(0);
    assert!(next.out.contains("Everything is as the file says."), "{}", next.out);
    let began = Instant::now();
    let left = || realms.iter().flat_map(|realm| left_of(realm)).collect::<Vec<_>>();
    while !left().is_empty() && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(left(), Vec::<String>::new());
    host.assert_nothing_left();
}
