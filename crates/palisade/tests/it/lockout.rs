//! A change of the firewall that locks the operator out is taken back in the promised time, whoever is killed.
//!
//! The operator comes in as many do: through a multiplexer on port 443 that passes SSH on to sshd at 127.0.0.1:22. No rule
//! of the firewall knows of it, so `up` cuts it off. sshd is one that runs a line of text and says where it came from.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use palisade_host::firewall::Firewall;
use palisade_host::link;
use palisade_host::netns::Netns;

use crate::need_root;
use crate::scratch::{HOST, Host, PATIENCE, patiently};
use crate::support::PALISADE;

const HOST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
const STRANGER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));

const FILE: &str = r#"
name: shop
services:
  web:
    ports: ["8080:8080"]
    stop_signal: SIGKILL
    x-palisade: { process: { command: [sleep, "1000"], user: nobody } }
"#;

/// Another stack, whose `up` was started on the console.
const OTHER: &str = r#"
name: blog
services:
  web:
    ports: ["9090:9090"]
    stop_signal: SIGKILL
    x-palisade: { process: { command: [sleep, "1000"], user: nobody } }
"#;

/// Python, as a program whose name is `sshd`: each connection has a process of its own, and a hang-up ends what it ran.
const SSHD: &str = r#"
import os, select, signal, socket, subprocess
open("/proc/self/comm", "w").write("sshd")
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
server = socket.create_server(("::", 22), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    connection, peer = server.accept()
    if os.fork():
        connection.close()
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    server.close()
    line = connection.makefile("r").readline()
    if not line:
        os._exit(0)  # Who only knocks has not logged in.
    local = connection.getsockname()
    come = f"{peer[0]} {peer[1]} {local[0]} {local[1]}"
    process = subprocess.Popen(
        ["sh", "-c", line], env={**os.environ, "SSH_CONNECTION": come}, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=connection, stderr=connection)
    def hung_up():
        try:
            return select.select([connection], [], [], 0.05)[0] and not connection.recv(1)
        except ConnectionResetError:
            return True
    while process.poll() is None:
        if hung_up():
            os.killpg(process.pid, signal.SIGHUP)
            break
    os._exit(0)
"#;

/// Passes what comes to 443 on to sshd.
const MULTIPLEXER: &str = r#"
import os, select, signal, socket
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
server = socket.create_server(("::", 443), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    client, _ = server.accept()
    if os.fork():
        client.close()
        continue
    other = {client: socket.create_connection(("127.0.0.1", 22))}
    other[other[client]] = client
    while True:
        for ready in select.select(list(other), [], [])[0]:
            data = ready.recv(4096)
            if not data:
                os._exit(0)
            other[ready].sendall(data)
"#;

/// A scratch host with both of them.
struct Stage {
    host: Host,
    servers: Vec<Child>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = killpg(Pid::from_raw(server.id() as i32), Signal::SIGKILL);
            let _ = server.wait();
        }
    }
}

fn stage() -> Stage {
    let host = Host::new();
    host.write(FILE);
    link::add_address("eth0", HOST6, 64).unwrap();
    host.internet.run(|| link::add_address("eth0", STRANGER6, 64).unwrap()).unwrap();
    let servers = [SSHD, MULTIPLEXER].map(|program| {
        let mut command = Command::new("python3");
        command.args(["-c", program]).env_remove("SSH_CONNECTION").stdin(Stdio::null()).process_group(0);
        command.spawn().unwrap()
    });
    let stage = Stage { host, servers: servers.into() };
    patiently("sshd and the multiplexer", || (stage.ways_in() == ALL).then_some(()));
    stage
}

/// 443 and 22 over IPv4 and IPv6.
const ALL: [bool; 4] = [true; 4];
/// Only 22, as the firewall has it.
const ONLY_22: [bool; 4] = [false, false, true, true];

impl Stage {
    /// Which of [`ALL`] somebody on the internet can connect to.
    fn ways_in(&self) -> [bool; 4] {
        let ways = [(HOST, 443), (HOST6, 443), (HOST, 22), (HOST6, 22)];
        let internet = &self.host.internet;
        std::thread::scope(|scope| {
            let knock = |(ip, port)| scope.spawn(move || connect(internet, SocketAddr::new(ip, port), 400).is_some());
            ways.map(knock).map(|knock| knock.join().unwrap())
        })
    }

    /// Logs in and runs palisade there.
    fn log_in(&self, to: SocketAddr, before: &str, arguments: &str) -> Login {
        let mut stream = connect(&self.host.internet, to, 3_000).expect("no way in");
        let realm = &self.host.layout.realm;
        let folder = self.host.folder.display();
        let line =
            format!("cd {folder}; echo began; {before} {PALISADE} --realm {realm} {arguments}; echo exit code $?\n");
        stream.write_all(line.as_bytes()).unwrap();
        // A connection that was never tracked is taken for one when the host sends something first.
        let mut began = [0; 6];
        stream.read_exact(&mut began).unwrap();
        Login { stream }
    }

    /// Whether there is a table of ours.
    fn closes(&self) -> bool {
        Firewall::new(&self.host.layout.realm).current().unwrap().is_some()
    }

    /// Starts a change of another stack, with what it says in `blog.err`, and waits until it stops before it takes this step.
    fn other(&self, file: &str, verb: &[&str], step: &str) -> Other {
        let folder = &self.host.folder;
        std::fs::write(folder.join("blog.yaml"), file).unwrap();
        let mut command = self.host.command(&[&["-f", "blog.yaml"], verb].concat());
        command.env("PALISADE_TEST_PAUSE", step).stdin(Stdio::null());
        command.stderr(std::fs::File::create(folder.join("blog.err")).unwrap());
        let other = Other { child: command.spawn().unwrap(), said: folder.join("blog.err") };
        let stat = format!("/proc/{}/stat", other.child.id());
        patiently("another stack's turn", || std::fs::read_to_string(&stat).unwrap().contains(") T ").then_some(()));
        other
    }

    /// The stacks that the table lets in, and those that it will let in after a boot.
    fn stacks(&self) -> [Vec<String>; 2] {
        let realm = &self.host.layout.realm;
        let current = Firewall::new(realm).current().unwrap().map(|current| current.stacks.into_keys().collect());
        let kept = std::fs::read(format!("/var/lib/{realm}/firewall-at-boot.json")).unwrap_or_else(|_| b"{}".to_vec());
        let kept: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&kept).unwrap();
        [current.unwrap_or_default(), kept.into_iter().map(|(stack, _)| stack).collect()]
    }

    fn keepers(&self) -> Vec<i32> {
        self.host.processes().into_iter().filter(|(_, line)| line.contains("__take-back")).map(|(pid, _)| pid).collect()
    }

    fn wait_for(&self, ways: [bool; 4], limit: Duration) -> Duration {
        let began = Instant::now();
        while self.ways_in() != ways {
            assert!(began.elapsed() < limit, "not {ways:?} but {:?} after {limit:?}", self.ways_in());
        }
        began.elapsed()
    }
}

fn connect(internet: &Netns, to: SocketAddr, timeout_ms: u64) -> Option<TcpStream> {
    let timeout = Duration::from_millis(timeout_ms);
    internet.run(|| TcpStream::connect_timeout(&to, timeout).ok()).unwrap()
}

/// A change of another stack.
struct Other {
    child: Child,
    said: std::path::PathBuf,
}

impl Other {
    fn go_on(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGCONT).unwrap();
    }
    fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap()
    }
    /// Waits for its end.
    fn code(&mut self) -> Option<i32> {
        patiently("its end", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A shell over the network.
struct Login {
    stream: TcpStream,
}

impl Login {
    fn end(mut self) -> String {
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut text = String::new();
        // A line that was cut is at its end as well.
        let _ = self.stream.read_to_string(&mut text);
        text
    }
}

const WAY: SocketAddr = SocketAddr::new(HOST, 443);
const WAY6: SocketAddr = SocketAddr::new(HOST6, 443);
const SSH: SocketAddr = SocketAddr::new(HOST, 22);
/// What another stack does that nobody has to confirm.
const UP: [&str; 2] = ["up", "--no-confirm"];
/// What the tests give somebody to confirm, and how much later everything must be as it was.
const WITHIN: &str = "6s";
const PROMISED: Duration = Duration::from_secs(12);

#[test]
fn whoever_is_cut_off_gets_back_in_by_ipv4_and_ipv6() {
    need_root!("lockout::whoever_is_cut_off_gets_back_in_by_ipv4_and_ipv6");
    let stage = stage();
    for way in [WAY, WAY6] {
        let login = stage.log_in(way, "", &format!("up --confirm-within {WITHIN}"));
        stage.wait_for(ONLY_22, PATIENCE);
        let took = stage.wait_for(ALL, PROMISED);
        println!("back in after {took:?}");
        let said = login.end();
        assert!(said.contains("nobody confirmed it in time, so the firewall is as it was before"), "{said}");
        assert!(said.contains("exit code 1"), "{said}");
        assert!(said.contains("The firewall is set: everything that isn't listed is closed."), "{said}");
        assert!(!stage.closes());
        patiently("the end of everything", || stage.host.left().is_empty().then_some(()));
    }
}

#[test]
fn up_killed_at_any_step_leaves_nobody_locked_out() {
    need_root!("lockout::up_killed_at_any_step_leaves_nobody_locked_out");
    let stage = stage();
    for step in ["noted", "kept", "changed", "told"] {
        let before = format!("PALISADE_TEST_CUT_FIREWALL={step}");
        let said = stage.log_in(WAY, &before, &format!("up --confirm-within {WITHIN}")).end();
        assert!(said.contains("exit code 137"), "{step}: {said}");
        let closed = ["changed", "told"].contains(&step);
        assert_eq!(stage.ways_in(), if closed { ONLY_22 } else { ALL }, "{step}");
        stage.wait_for(ALL, PROMISED);
        assert!(!stage.closes(), "{step}");
        // Who comes next finds all of it, once the keeper is done, and makes the host as the file says.
        patiently("the next up", || (stage.host.palisade(&["up", "--no-confirm"]).code == Some(0)).then_some(()));
        assert_eq!(stage.ways_in(), ONLY_22, "{step}");
        stage.host.down();
    }
}

#[test]
fn a_killed_keeper_is_replaced_and_the_kernel_opens_when_nobody_is_left() {
    need_root!("lockout::a_killed_keeper_is_replaced_and_the_kernel_opens_when_nobody_is_left");
    let stage = stage();
    let kill_keeper = || {
        let keeper = patiently("the keeper", || stage.keepers().first().copied());
        kill(Pid::from_raw(keeper), Signal::SIGKILL).unwrap();
        keeper
    };
    let login = stage.log_in(WAY, "", &format!("up --confirm-within {WITHIN}"));
    stage.wait_for(ONLY_22, PATIENCE);
    let first = kill_keeper();
    patiently("another keeper", || stage.keepers().iter().any(|keeper| *keeper != first).then_some(()));
    stage.wait_for(ALL, PROMISED);
    let said = login.end();
    assert!(said.contains("was gone; another one does it"), "{said}");

    // Now everybody is killed. The kernel gives the keeper five seconds more, then it closes nothing any more.
    stage.log_in(WAY, "PALISADE_TEST_CUT_FIREWALL=told", &format!("up --confirm-within {WITHIN}")).end();
    kill_keeper();
    assert_eq!(stage.ways_in(), ONLY_22);
    stage.wait_for(ALL, PROMISED + Duration::from_secs(5));
    assert!(stage.closes(), "nobody was there to remove the table");
    assert_eq!(stage.keepers(), [0; 0]);
    let ran = stage.host.palisade(&["up", "--no-confirm"]).expect(0);
    assert!(ran.err.contains("never confirmed; it is taken back"), "{}", ran.err);
    assert_eq!(stage.ways_in(), ONLY_22);
    stage.host.down();
}

#[test]
fn a_boot_brings_back_what_was_kept_and_nothing_that_nobody_confirmed() {
    need_root!("lockout::a_boot_brings_back_what_was_kept_and_nothing_that_nobody_confirmed");
    let stage = stage();
    let firewall = Firewall::new(&stage.host.layout.realm);
    let nothing = BTreeSet::new();
    // As a boot does: the kernel's tables are empty, and the unit runs.
    let boot = || {
        firewall.remove("shop", &nothing).unwrap();
        let command = Command::new(PALISADE).args(["__firewall-at-boot", &stage.host.layout.realm]).output().unwrap();
        command.status.success()
    };
    stage.host.palisade(&["up", "--no-confirm"]).expect(0);
    let before = firewall.snapshot().unwrap();
    assert!(boot());
    assert_eq!(firewall.snapshot().unwrap(), before);
    assert_eq!(stage.ways_in(), ONLY_22);
    stage.host.palisade(&["plan"]).expect(0);
    stage.host.palisade(&["down"]).expect(0);
    assert!(!boot(), "nothing is kept of a stack that is down");
    assert_eq!(stage.ways_in(), ALL);

    stage.log_in(WAY, "PALISADE_TEST_CUT_FIREWALL=told", &format!("up --confirm-within {WITHIN}")).end();
    assert_eq!(stage.ways_in(), ONLY_22);
    assert!(!boot(), "what nobody confirmed is not kept");
    assert_eq!(stage.ways_in(), ALL);
    stage.host.palisade(&["down", "--volumes", "--yes"]).expect(0);
}

#[test]
fn only_a_login_that_came_after_the_change_confirms_it() {
    need_root!("lockout::only_a_login_that_came_after_the_change_confirms_it");
    let stage = stage();
    // This one is there before, waits for the change, and tries.
    let wait = "while ! nft list tables | grep -q palisade; do sleep 0.1; done; sleep 0.5;";
    let old = stage.log_in(WAY, wait, "confirm");
    // As `sudo` does it: the session is known all the same.
    let sudo = "env -u SSH_CONNECTION";
    let up = stage.log_in(WAY, sudo, "up");
    stage.wait_for(ONLY_22, PATIENCE);
    let said = old.end();
    assert!(said.contains("over a connection that was there before the change"), "{said}");
    // A multiplexer's process has no sshd above it: its connection may be any.
    let mut command = stage.host.command(&["confirm"]);
    let stray = command.env("SSH_CONNECTION", "203.0.113.2 5000 203.0.113.1 22").output().unwrap();
    let said = String::from_utf8_lossy(&stray.stderr).into_owned();
    assert!(said.contains("which SSH connection this is can't be told"), "{said}");
    // Others who would change the firewall are told.
    let noted = stage.host.palisade(&["plan"]);
    assert!(noted.err.contains("note: a change of the firewall by stack shop still waits"), "{}", noted.err);
    let busy = stage.host.palisade(&["--project-name", "blog", "up"]).expect(1);
    assert!(busy.err.contains("still waits to be confirmed"), "{}", busy.err);

    let said = stage.log_in(SSH, sudo, "confirm").end();
    assert!(said.contains("confirmed: the firewall of stack shop stays"), "{said}");
    let said = up.end();
    assert!(said.contains("The firewall is confirmed and stays") && said.contains("exit code 0"), "{said}");
    assert_eq!(stage.ways_in(), ONLY_22);
    patiently("the keeper's end", || stage.keepers().is_empty().then_some(()));
    assert_eq!(stage.host.palisade(&["plan"]).code, Some(0), "the table is as the file says");

    // What was confirmed once isn't asked again, also not after it was taken down.
    stage.host.palisade(&["down"]).expect(0);
    assert_eq!(stage.ways_in(), ALL);
    let said = stage.log_in(SSH, "", "up").end();
    assert!(said.contains("exit code 0") && !said.contains("taken back"), "{said}");
    stage.host.palisade(&["down", "--volumes", "--yes"]).expect(0);
}

#[test]
fn a_y_counts_when_somebody_has_logged_in_since() {
    need_root!("lockout::a_y_counts_when_somebody_has_logged_in_since");
    let stage = stage();
    // A terminal of a multiplexer: it outlives the login that it was opened from.
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut command = stage.host.command(&["up", "--confirm-within", "60s"]);
    command.env("SSH_CONNECTION", "203.0.113.2 5000 203.0.113.1 22").stdout(Stdio::null());
    command.stdin(pty.slave.try_clone().unwrap()).stderr(pty.slave);
    let mut up = command.spawn().unwrap();
    drop(command);
    let mut terminal = std::fs::File::from(pty.master);
    let said = Arc::new(Mutex::new(String::new()));
    let (heard, mut screen) = (Arc::clone(&said), terminal.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut bytes) {
            heard.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    });
    let wait_for = |text: &str| patiently(text, || said.lock().unwrap().contains(text).then_some(()));
    wait_for("s left");
    terminal.write_all(b"y\n").unwrap();
    wait_for("Not confirmed: which SSH connection this is can't be told");
    assert!(up.try_wait().unwrap().is_none());
    // Whoever only knocks proves nothing either.
    assert!(connect(&stage.host.internet, SSH, 1_000).is_some());
    terminal.write_all(b"y\n").unwrap();
    patiently("a second refusal", || (said.lock().unwrap().matches("Not confirmed").count() == 2).then_some(()));
    let login = stage.log_in(SSH, "sleep 5;", "ps");
    terminal.write_all(b"y\n").unwrap();
    wait_for("The firewall is confirmed and stays");
    assert!(up.wait().unwrap().success());
    assert_eq!(stage.ways_in(), ONLY_22);
    login.end();
    stage.host.palisade(&["down", "--volumes", "--yes"]).expect(0);
}

#[test]
fn a_hang_up_takes_the_change_back_at_once() {
    need_root!("lockout::a_hang_up_takes_the_change_back_at_once");
    let stage = stage();
    let login = stage.log_in(WAY, "exec", "up --confirm-within 5m");
    stage.wait_for(ONLY_22, PATIENCE);
    drop(login);
    stage.wait_for(ALL, Duration::from_secs(10));
    patiently("the end of everything", || stage.host.left().is_empty().then_some(()));
}

#[test]
fn who_came_in_by_no_network_is_not_asked() {
    need_root!("lockout::who_came_in_by_no_network_is_not_asked");
    let stage = stage();
    let ran = stage.host.palisade(&["up"]).expect(0);
    assert!(!ran.err.contains("taken back"), "{}", ran.err);
    assert_eq!(stage.ways_in(), ONLY_22);
    stage.host.down();
}

#[test]
fn a_change_that_waits_is_not_overwritten_by_what_began_before() {
    need_root!("lockout::a_change_that_waits_is_not_overwritten_by_what_began_before");
    let stage = stage();
    for confirmed in [false, true] {
        let mut blog = stage.other(OTHER, &UP, "set_firewall");
        let shop = stage.log_in(WAY, "exec", "up --confirm-within 5m");
        stage.wait_for(ONLY_22, PATIENCE);
        blog.go_on();
        assert_eq!(blog.code(), Some(1), "{}", blog.said());
        let said = blog.said();
        assert!(said.contains("a change of the firewall by stack shop still waits to be confirmed"), "{said}");
        assert!(said.contains("hint: run `palisade confirm` over a new SSH connection, or wait"), "{said}");
        assert_eq!(stage.stacks(), [vec!["shop".to_owned()], Vec::new()]);
        if confirmed {
            let said = stage.log_in(SSH, "", "confirm").end();
            assert!(said.contains("confirmed: the firewall of stack shop stays"), "{said}");
            assert!(shop.end().contains("The firewall is confirmed and stays"));
            assert_eq!(stage.stacks(), ["shop", "shop"].map(|stack| vec![stack.to_owned()]));
        } else {
            drop(shop);
            stage.wait_for(ALL, PATIENCE);
            assert!(!stage.closes());
        }
        patiently("the keeper's end", || stage.keepers().is_empty().then_some(()));
    }
    // Now it comes in beside, and its `down` gives way as well.
    let both = ["blog", "shop"].map(str::to_owned).to_vec();
    stage.host.palisade(&["-f", "blog.yaml", "up", "--no-confirm"]).expect(0);
    assert_eq!(stage.stacks(), [both.clone(), both.clone()]);
    let mut blog = stage.other(OTHER, &["down"], "remove_firewall");
    stage.host.write(&FILE.replace("8080:8080", "8081:8080"));
    let shop = stage.log_in(SSH, "exec", "up --confirm-within 5m");
    let note = std::path::PathBuf::from(format!("/run/{}/firewall-pending.json", stage.host.layout.realm));
    patiently("a change that waits", || note.exists().then_some(()));
    blog.go_on();
    assert_eq!(blog.code(), Some(1), "{}", blog.said());
    assert!(blog.said().contains("still waits to be confirmed"), "{}", blog.said());
    assert!(blog.said().contains("what was done before is undone"), "{}", blog.said());
    drop(shop);
    patiently("its end", || (!note.exists() && stage.keepers().is_empty()).then_some(()));
    assert_eq!(stage.stacks(), [both.clone(), both]);
    stage.host.palisade(&["-f", "blog.yaml", "down", "--volumes", "--yes"]).expect(0);
    stage.host.palisade(&["down", "--volumes", "--yes"]).expect(0);
}

#[test]
fn an_up_that_fails_while_a_change_waits_is_undone_after_that() {
    need_root!("lockout::an_up_that_fails_while_a_change_waits_is_undone_after_that");
    let stage = stage();
    let broken = OTHER.replace("[sleep, \"1000\"]", "[/nonexistent]");
    let mut blog = stage.other(&broken, &UP, "start_instance");
    assert_eq!(stage.stacks(), ["blog", "blog"].map(|stack| vec![stack.to_owned()]));
    let shop = stage.log_in(SSH, "", "up --confirm-within 5m");
    patiently("a change that waits", || (stage.stacks()[0].len() == 2).then_some(()));
    blog.go_on();
    patiently("what is undone to wait", || blog.said().contains("undone when that is over").then_some(()));
    let said = stage.log_in(SSH, "", "confirm").end();
    assert!(said.contains("confirmed: the firewall of stack shop stays"), "{said}");
    assert!(shop.end().contains("exit code 0"));
    assert_eq!(blog.code(), Some(1), "{}", blog.said());
    assert!(blog.said().contains("what was done before is undone"), "{}", blog.said());
    assert_eq!(stage.stacks(), ["shop", "shop"].map(|stack| vec![stack.to_owned()]));
    stage.host.palisade(&["down", "--volumes", "--yes"]).expect(0);
}
