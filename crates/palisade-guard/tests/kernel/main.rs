//! The guard in the real kernel: loads, attaches, enforces, survives, goes away.
//!
//! The attacks that it has to withstand are in the integration suite of the `palisade` crate.

mod outside;
mod published;

use nix::sched::{CloneFlags, unshare};
use palisade_core::address::{InstanceAddress, ServiceIndex};
use palisade_core::names::ServiceName;
use palisade_core::policy::*;
use palisade_core::stack::{PortProto, Proto};
use palisade_guard::{Guard, Kind, Reason, mount_bpffs, pin_root, unmount_bpffs};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A cgroup subtree, pins and a network namespace of one test, removed on drop.
struct Scratch {
    realm: String,
    cgroup: PathBuf,
    run: PathBuf,
    pins: PathBuf,
}

fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4)).map(PathBuf::from)
}

impl Scratch {
    fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: {test}: needs root");
            return None;
        }
        let Some(mount) = cgroup2() else {
            eprintln!("SKIPPED: {test}: no cgroup2 is mounted");
            return None;
        };
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let realm = format!("palisade-test-{}-{test}", std::process::id());
        let run = Path::new("/run").join(&realm);
        let pins = pin_root(&realm, &run);
        mount_bpffs(&pins).expect("a bpffs");
        let cgroup = mount.join(&realm);
        fs::create_dir_all(&cgroup).unwrap();
        Some(Self { realm, cgroup, run, pins })
    }
    fn guard(&self) -> Guard {
        Guard::load(&self.pins.join("stack")).unwrap_or_else(|error| panic!("{error}"))
    }
    fn instance(&self, name: &str) -> PathBuf {
        let path = self.cgroup.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
    /// Runs Python inside the cgroup; returns what it printed.
    fn python(&self, cgroup: &Path, script: &str) -> String {
        self.python_with(cgroup, script, &[])
    }
    fn python_with(&self, cgroup: &Path, script: &str, arguments: &[&str]) -> String {
        let procs = cgroup.join("cgroup.procs");
        let output = Command::new("sh")
            .args(["-c", "echo 0 > \"$1\" && shift && exec timeout 10 python3 -c \"$@\"", "sh"])
            .arg(procs)
            .arg(script)
            .args(arguments)
            .output()
            .unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
            .trim()
            .to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = Guard::remove(&self.pins.join("stack"));
        let _ = unmount_bpffs(&self.pins);
        for entry in fs::read_dir(&self.cgroup).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_dir(&self.cgroup);
        let _ = fs::remove_dir_all(&self.run);
        assert!(!self.cgroup.exists(), "cgroup of {} is left", self.realm);
    }
}

fn service(name: &str, index: u16) -> ServicePolicy {
    let address = ServiceIndex(index).address().unwrap();
    ServicePolicy {
        name: ServiceName::parse(name).unwrap(),
        address,
        networks: 1,
        backends: vec![address.instance(1)],
        binds: vec![],
        strict: false,
        host_mode: false,
        connect: None,
        localhost: vec![],
        host_ports: vec![],
        egress: EgressPolicy::All,
        resolvers: vec![],
    }
}

fn instance(index: u16) -> InstanceAddress {
    ServiceIndex(index).address().unwrap().instance(1)
}

fn policy(services: Vec<ServicePolicy>) -> Policy {
    Policy { mode: Mode::Enforce, services, resolvers: vec![] }
}

#[test]
fn binds_are_rewritten_peers_are_reached_and_others_refused() {
    let Some(scratch) = Scratch::new("rewrite") else { return };
    let guard = scratch.guard();
    let (db, app, other) = (scratch.instance("db.1"), scratch.instance("app.1"), scratch.instance("other.1"));
    guard.attach(&db, instance(0)).unwrap();
    // Attached but without a policy: refused, whatever it is.
    let refused = scratch.python(&db, "import socket; s=socket.socket(); s.bind(('0.0.0.0',5432))");
    assert!(refused.contains("PermissionError"), "{refused}");
    guard.attach(&app, instance(1)).unwrap();
    guard.attach(&other, instance(2)).unwrap();
    let mut third = service("other", 2);
    third.connect = Some(vec![PeerGrant {
        server: ServiceIndex(1).address().unwrap(),
        port: Some(PortProto { port: 80, proto: Proto::Tcp }),
    }]);
    let wanted = policy(vec![service("db", 0), service("app", 1), third]);
    guard.set_policy(&wanted).unwrap();
    assert!(guard.has_policy(&wanted).unwrap());
    assert!(!guard.has_policy(&policy(vec![service("db", 0)])).unwrap());

    for (bind, family, seen) in [
        ("0.0.0.0", "AF_INET", "127.77.1.1"),
        ("127.0.0.1", "AF_INET", "127.205.1.1"),
        ("127.77.1.1", "AF_INET", "127.77.1.1"),
        ("::", "AF_INET6", "::ffff:127.77.1.1"),
        ("::1", "AF_INET6", "::ffff:127.205.1.1"),
        ("::ffff:0.0.0.0", "AF_INET6", "::ffff:127.77.1.1"),
    ] {
        let script = format!(
            "import socket\ns=socket.socket(socket.{family})\ns.bind(('{bind}',5432)); print(s.getsockname()[:2])"
        );
        assert_eq!(scratch.python(&db, &script), format!("('{seen}', 5432)"), "bind to {bind}");
    }
    for foreign in ["127.77.2.1", "127.205.2.1", "203.0.113.1"] {
        let refused = scratch.python(&db, &format!("import socket; s=socket.socket(); s.bind(('{foreign}',5432))"));
        assert!(refused.contains("PermissionError"), "{foreign}: {refused}");
    }

    let script = "import socket\ns=socket.socket(); s.bind(('0.0.0.0',5432)); s.listen()\nprint('listening',flush=True)\nc,a=s.accept(); c.sendall(('%s %s' % (a[0], c.getpeername()[0])).encode()); c.close()";
    let mut server = Command::new("sh")
        .args(["-c", "echo 0 > \"$1\" && exec timeout 20 python3 -c \"$2\"", "sh"])
        .arg(db.join("cgroup.procs"))
        .arg(script)
        .spawn()
        .unwrap();
    let client = |to: &str| {
        format!(
            "import socket,time\nfor i in range(50):\n  try:\n    s=socket.create_connection(('{to}',5432),3); print(s.getpeername()[0], s.recv(99).decode()); break\n  except ConnectionRefusedError: time.sleep(.1)\n"
        )
    };
    let refused = scratch.python(&other, &client("127.77.1.0"));
    assert!(refused.contains("PermissionError"), "{refused}");
    assert_eq!(scratch.python(&app, &client("127.77.1.0")), "127.77.1.0 127.77.2.1 127.77.2.1");
    assert!(server.wait().unwrap().success());

    let events = guard.events().unwrap().poll(Duration::from_secs(1)).unwrap();
    assert!(
        events.iter().any(|e| e.reason == Reason::NotAPeer
            && e.kind == Kind::Refused
            && e.instance_address() == Some(instance(2))
            && e.address.to_string() == "127.77.1.0"
            && e.port == 5432
            && e.command.starts_with("python3")),
        "{events:#?}"
    );
}

#[test]
fn datagrams_go_to_peers_and_come_back_from_where_they_were_sent() {
    let Some(scratch) = Scratch::new("datagrams") else { return };
    let guard = scratch.guard();
    let (db, app) = (scratch.instance("db.1"), scratch.instance("app.1"));
    guard.attach(&db, instance(0)).unwrap();
    guard.attach(&app, instance(1)).unwrap();
    let mut quiet = service("app", 1);
    for egress in [EgressPolicy::All, EgressPolicy::None] {
        quiet.egress = egress.clone();
        guard.set_policy(&policy(vec![service("db", 0), quiet.clone()])).unwrap();
        // The server tells whom it saw.
        let server = "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(('0.0.0.0',53)); \nwhile True:\n  d,a=s.recvfrom(99); s.sendto(a[0].encode(),a)";
        let mut server = Command::new("sh")
            .args(["-c", "echo 0 > \"$1\" && exec python3 -c \"$2\"", "sh"])
            .arg(db.join("cgroup.procs"))
            .arg(server)
            .spawn()
            .unwrap();
        let client = |prepare: &str, send: &str| {
            format!(
                "import socket,time\nfor i in range(50):\n  s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(2)\n  try:\n    {prepare}\n    {send}\n    d,a=s.recvfrom(99); print(d.decode(), *a); break\n  except (TimeoutError, ConnectionRefusedError): time.sleep(.1)\n"
            )
        };
        let sendto = "s.sendto(b'x',('127.77.1.0',53))";
        let connect = "s.connect(('127.77.1.0',53)); s.send(b'x')";
        let bound = "s.bind(('0.0.0.0',0))";
        assert_eq!(scratch.python(&app, &client("pass", sendto)), "127.77.2.1 127.77.1.0 53");
        assert_eq!(scratch.python(&app, &client("pass", connect)), "127.77.2.1 127.77.1.0 53");
        // A wildcard client that may go outside keeps its wildcard, and connected it has the loopback's own address.
        let seen = if egress == EgressPolicy::All { "127.0.0.1" } else { "127.77.2.1" };
        assert_eq!(scratch.python(&app, &client(bound, connect)), format!("{seen} 127.77.1.0 53"));
        // Root of the host asks as well.
        let host = client("pass", "s.sendto(b'x',('127.77.1.1',53))");
        let output = Command::new("python3").args(["-c", &host]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "127.0.0.1 127.77.1.1 53");
        server.kill().unwrap();
        server.wait().unwrap();
    }
}

#[test]
fn links_survive_the_loader_and_a_new_cgroup_of_the_same_name_is_seen_as_unguarded() {
    let Some(scratch) = Scratch::new("survive") else { return };
    let folder = scratch.pins.join("stack");
    let db = scratch.instance("db.1");
    {
        let guard = scratch.guard();
        guard.set_policy(&policy(vec![service("db", 0)])).unwrap();
        guard.attach(&db, instance(0)).unwrap();
    }
    let script = "import socket; s=socket.socket(); s.bind(('0.0.0.0',5432)); print(s.getsockname())";
    assert_eq!(scratch.python(&db, script), "('127.77.1.1', 5432)");
    let guard = Guard::open(&folder).unwrap().expect("the pins are complete");
    assert_eq!(guard.identity(&db).unwrap(), Some(instance(0).ip()));
    assert!(guard.missing_hooks(&db).unwrap().is_empty());
    fs::remove_dir(&db).unwrap();
    fs::create_dir(&db).unwrap();
    assert!(guard.missing_hooks(&db).unwrap().contains(&"guard_bind4"));
    guard.attach(&db, instance(0)).unwrap();
    assert!(guard.missing_hooks(&db).unwrap().is_empty());
    assert_eq!(scratch.python(&db, script), "('127.77.1.1', 5432)");
    guard.unload().unwrap();
    assert!(Guard::open(&folder).unwrap().is_none());
    assert_eq!(scratch.python(&db, script), "('0.0.0.0', 5432)");
}

#[test]
fn a_program_that_was_taken_off_is_put_back_beside_the_others() {
    let Some(scratch) = Scratch::new("taken-off") else { return };
    let guard = scratch.guard();
    guard.set_policy(&policy(vec![service("db", 0)])).unwrap();
    let db = scratch.instance("db.1");
    guard.attach(&db, instance(0)).unwrap();
    let links = scratch.pins.join("stack").join("links").join("127-77-1-1");
    // A pin of the same link has the same number.
    let numbers = || {
        let pins = fs::read_dir(&links).unwrap().map(|entry| entry.unwrap());
        pins.map(|pin| (pin.file_name().into_string().unwrap(), pin.metadata().unwrap().ino())).collect()
    };
    let before: BTreeMap<String, u64> = numbers();
    fs::remove_file(links.join("guard_bind4")).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while guard.missing_hooks(&db).unwrap() != ["guard_bind4"] {
        assert!(Instant::now() < until, "the link is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
    guard.attach(&db, instance(0)).unwrap();
    assert!(guard.missing_hooks(&db).unwrap().is_empty());
    let mut after = numbers();
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    after.retain(|name, number| before[name] != *number);
    assert_eq!(after.keys().collect::<Vec<_>>(), ["guard_bind4"]);
}

#[test]
fn a_hundred_services_are_guarded_quickly() {
    let Some(scratch) = Scratch::new("hundred") else { return };
    let cgroups: Vec<_> = (0..100).map(|i| scratch.instance(&format!("s{i}.1"))).collect();
    let started = Instant::now();
    let guard = scratch.guard();
    for (i, cgroup) in cgroups.iter().enumerate() {
        guard.attach(cgroup, instance(i as u16)).unwrap();
    }
    guard.set_policy(&policy((0..100).map(|i| service(&format!("s{i}"), i)).collect())).unwrap();
    eprintln!("loaded, attached to 100 and set the policy in {:?}", started.elapsed());
    assert_eq!(guard.attached().unwrap().len(), 100);
    for cgroup in &cgroups {
        assert!(guard.missing_hooks(cgroup).unwrap().is_empty());
    }
}

/// What a client believes to be connected to is what it asked for, whether the guard wrote that down or infers it;
/// and the connections that a server accepted come from whom they come from.
#[test]
fn getpeername_tells_what_was_asked_for() {
    let Some(scratch) = Scratch::new("getpeername") else { return };
    let guard = scratch.guard();
    let (db, app) = (scratch.instance("db.1"), scratch.instance("app.1"));
    guard.attach(&db, instance(0)).unwrap();
    guard.attach(&app, instance(1)).unwrap();
    guard.set_policy(&policy(vec![service("db", 0), service("app", 1)])).unwrap();
    let script = "import socket\ns=socket.socket(socket.AF_INET6); s.bind(('::',5432)); s.listen(); s.settimeout(15)\nfor i in range(6):\n  c,a=s.accept(); c.sendall(('%s %s' % (a[0], c.getpeername()[0])).encode()); c.close()";
    let mut server = Command::new("sh")
        .args(["-c", "echo 0 > \"$1\" && exec timeout 20 python3 -c \"$2\"", "sh"])
        .arg(db.join("cgroup.procs"))
        .arg(script)
        .spawn()
        .unwrap();
    let client = "import socket,time
def ask(family, to, source=None):
  for i in range(50):
    try:
      s=socket.socket(family)
      if source: s.bind((source,0))
      s.connect((to,5432)); break
    except ConnectionRefusedError: time.sleep(.1)
  answer=s.getpeername()[0], s.recv(99).decode()
  print(*answer)
four, six = socket.AF_INET, socket.AF_INET6
ask(four, '127.77.1.0')
ask(four, '127.77.1.1')
ask(four, '127.77.1.0', '0.0.0.0')
ask(six, '::ffff:127.77.1.0')
ask(six, '::ffff:127.77.1.1')
ask(six, '::ffff:127.77.1.0', '::')";
    let mapped = "::ffff:127.77.2.1 ::ffff:127.77.2.1";
    let wanted = [
        format!("127.77.1.0 {mapped}"),
        format!("127.77.1.1 {mapped}"),
        format!("127.77.1.0 {mapped}"),
        format!("::ffff:127.77.1.0 {mapped}"),
        format!("::ffff:127.77.1.1 {mapped}"),
        format!("::ffff:127.77.1.0 {mapped}"),
    ];
    let seen = scratch.python(&app, client);
    assert!(server.wait().unwrap().success(), "{seen}");
    assert_eq!(seen, wanted.join("\n"));
}

#[test]
fn connections_are_spread_over_all_replicas_however_many() {
    let Some(scratch) = Scratch::new("replicas") else { return };
    let guard = scratch.guard();
    let app = scratch.instance("app.1");
    guard.attach(&app, instance(1)).unwrap();
    let mut db = service("db", 0);
    db.backends = (1..=6).map(|number| db.address.instance(number)).collect();
    guard.set_policy(&policy(vec![db, service("app", 1)])).unwrap();
    // Nobody listens there; the kernel still tells where a connected datagram socket's packets go.
    let script = "import socket
seen=set()
for i in range(400):
  s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.77.1.0', 9))
  inode='%X' % s.getsockname()[1]
  for line in open('/proc/net/udp'):
    if ':'+inode.rjust(4,'0')+' ' in line.split()[1]+' ': seen.add(int(line.split()[2][:2],16))
print(sorted(seen))";
    assert_eq!(scratch.python(&app, script), "[1, 2, 3, 4, 5, 6]");
}

#[test]
fn a_name_server_of_its_own_is_asked_by_that_service_alone_and_for_names_only() {
    let Some(scratch) = Scratch::new("resolvers") else { return };
    let guard = scratch.guard();
    let (own, other) = (scratch.instance("own.1"), scratch.instance("other.1"));
    guard.attach(&own, instance(0)).unwrap();
    guard.attach(&other, instance(1)).unwrap();
    let mut asking = service("own", 0);
    asking.resolvers = vec!["169.254.169.253".parse().unwrap(), "203.0.113.1".parse().unwrap()];
    let mut closed = service("other", 1);
    guard.set_host_addresses(&["203.0.113.1".parse().unwrap()]).unwrap();
    // A refusal by the guard is EPERM; whatever else the kernel says, the guard let it through.
    let ask = |to: &str, port: u16| {
        format!(
            "import socket\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\ntry: s.connect(('{to}',{port})); print('passed')\nexcept PermissionError: print('refused')\nexcept OSError: print('passed')"
        )
    };
    for egress in [EgressPolicy::All, EgressPolicy::None] {
        asking.egress = egress.clone();
        closed.egress = egress;
        guard.set_policy(&policy(vec![asking.clone(), closed.clone()])).unwrap();
        for server in ["169.254.169.253", "203.0.113.1"] {
            assert_eq!(scratch.python(&own, &ask(server, 53)), "passed", "{server}");
            assert_eq!(scratch.python(&own, &ask(server, 80)), "refused", "{server} for something else");
            assert_eq!(scratch.python(&other, &ask(server, 53)), "refused", "{server} for another service");
        }
        assert_eq!(scratch.python(&own, &ask("169.254.169.254", 53)), "refused", "another link-local address");
    }
}
