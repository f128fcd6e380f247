//! Several instances at one published TCP port: who gets connections, who doesn't, and who tries in vain.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use super::*;

/// Listens on one port until it is killed; says its name to each connection and echoes what it is sent.
const SERVER: &str = "import signal,socket,sys,threading
signal.alarm(300)
name,family,address,port,options=sys.argv[1:6]
s=socket.socket(getattr(socket,family))
if 'reuse' in options: s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEPORT,1)
if 'only6' in options: s.setsockopt(socket.IPPROTO_IPV6,socket.IPV6_V6ONLY,1)
s.bind((address,int(port))); s.listen(128); print('listening',flush=True)
def serve(c,a):
  c.sendall((name+' '+a[0]+'\\n').encode())
  while d:=c.recv(99): c.sendall(d)
  c.close()
while True: threading.Thread(target=serve,args=s.accept(),daemon=True).start()";

/// Connects so many times; prints how often it was answered by whom, and how often it failed.
const CLIENT: &str = "import socket,sys,collections
to,port,times=sys.argv[1],int(sys.argv[2]),int(sys.argv[3]); seen=collections.Counter()
for i in range(times):
  try:
    with socket.create_connection((to,port),5) as s: seen[s.makefile().readline().split()[0]]+=1
  except OSError as error: seen[type(error).__name__]+=1
for name,count in seen.items(): print(name,count)";

pub(super) struct Server(Child);

impl Server {
    /// In the cgroup, or outside of all of them.
    pub(super) fn start(cgroup: Option<&Path>, arguments: &[&str]) -> Self {
        let procs = cgroup.map_or("/dev/null".into(), |cgroup| cgroup.join("cgroup.procs"));
        let mut command = Command::new("sh");
        command.args(["-c", "echo 0 > \"$1\"; shift; exec python3 -c \"$@\"", "sh"]).arg(procs).arg(SERVER);
        let mut child = command.args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "listening\n", "{arguments:?}");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Who answered how often, asked from the host.
fn ask(to: &str, port: u16, times: u32) -> BTreeMap<String, u32> {
    let arguments = [to.to_owned(), port.to_string(), times.to_string()];
    let output = Command::new("python3").args(["-c", CLIENT]).args(arguments).output().unwrap();
    counts(&String::from_utf8_lossy(&output.stdout))
}

fn counts(text: &str) -> BTreeMap<String, u32> {
    text.lines().map(|line| line.split_once(' ').unwrap()).map(|(n, c)| (n.into(), c.parse().unwrap())).collect()
}

fn names(seen: &BTreeMap<String, u32>) -> Vec<&str> {
    seen.keys().map(String::as_str).collect()
}

/// A service with three instances whose port 80 is published at 8081.
pub(super) fn web(backends: &[u8]) -> ServicePolicy {
    let mut web = service("web", 0);
    web.backends = backends.iter().map(|number| web.address.instance(*number)).collect();
    let container = PortProto { port: 80, proto: Proto::Tcp };
    web.binds = vec![BindRule { container, published: Some(PublishedAt { host_ip: None, host_port: 8081 }) }];
    web
}

fn instance_of_web(number: u8) -> InstanceAddress {
    ServiceIndex(0).address().unwrap().instance(number)
}

fn host_address(address: &str) {
    assert!(Command::new("ip").args(["addr", "add", address, "dev", "lo"]).status().unwrap().success());
}

#[test]
fn instances_share_a_published_port_fairly_and_only_those_that_are_in() {
    let Some(scratch) = Scratch::new("published") else { return };
    let guard = scratch.guard();
    host_address("203.0.113.1/32");
    guard.set_host_addresses(&["203.0.113.1".parse().unwrap()]).unwrap();
    guard.set_policy(&policy(vec![web(&[1, 2, 3]), service("app", 1)])).unwrap();
    let cgroups: Vec<_> = (1..=4).map(|number| scratch.instance(&format!("web.{number}"))).collect();
    for (cgroup, number) in cgroups.iter().zip(1..) {
        guard.attach(cgroup, instance_of_web(number)).unwrap();
    }
    let app = scratch.instance("app.1");
    guard.attach(&app, instance(1)).unwrap();
    assert_eq!(ask("127.0.0.1", 8081, 5), BTreeMap::from([("ConnectionRefusedError".into(), 5)]), "nobody listens");
    let mut servers = vec![
        Server::start(Some(&cgroups[0]), &["one", "AF_INET", "0.0.0.0", "80", ""]),
        Server::start(Some(&cgroups[1]), &["two", "AF_INET6", "::", "80", ""]),
        Server::start(Some(&cgroups[2]), &["three", "AF_INET", "203.0.113.1", "80", ""]),
        // Runs and listens, and isn't in yet.
        Server::start(Some(&cgroups[3]), &["four", "AF_INET6", "::", "80", "reuse"]),
    ];
    for to in ["127.0.0.1", "203.0.113.1"] {
        let seen = ask(to, 8081, 900);
        eprintln!("900 connections to {to}: {seen:?}");
        assert_eq!(names(&seen), ["one", "three", "two"], "{seen:?}");
        // 300 are expected; 200 to 400 is seven standard deviations.
        assert!(seen.values().all(|count| (200..=400).contains(count)), "{seen:?}");
    }
    // IPv6 is for those that speak it; the port that the service itself knows is nobody's on the host.
    assert_eq!(names(&ask("::1", 8081, 30)), ["two"]);
    assert_eq!(names(&ask("203.0.113.1", 80, 3)), ["ConnectionRefusedError"]);
    // A peer goes to the service by its own port, by the host's at the host's address.
    let from_app = |to: &str, port: u16| counts(&scratch.python_with(&app, CLIENT, &[to, &port.to_string(), "60"]));
    assert_eq!(names(&from_app("127.77.1.0", 80)), ["one", "three", "two"]);
    assert_eq!(names(&from_app("203.0.113.1", 8081)), ["one", "three", "two"]);

    // Instance 4 comes in, 1 goes out: what 1 has accepted goes on, nothing fails meanwhile.
    let mut open = std::net::TcpStream::connect("127.0.0.1:8081").unwrap();
    let mut kept = BufReader::new(open.try_clone().unwrap());
    let mut line = String::new();
    kept.read_line(&mut line).unwrap();
    let mut client = Command::new("python3")
        .args(["-c", CLIENT, "127.0.0.1", "8081", "3000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // What it prints fits into its pipe.
    for backends in [[2, 3, 4], [1, 2, 3]].iter().cycle() {
        guard.set_policy(&policy(vec![web(backends), service("app", 1)])).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        if client.try_wait().unwrap().is_some() {
            break;
        }
    }
    guard.set_policy(&policy(vec![web(&[2, 3, 4]), service("app", 1)])).unwrap();
    let seen = counts(&String::from_utf8_lossy(&client.wait_with_output().unwrap().stdout));
    assert_eq!(names(&seen), ["four", "one", "three", "two"], "{seen:?}");
    assert_eq!(names(&ask("127.0.0.1", 8081, 300)), ["four", "three", "two"]);
    std::io::Write::write_all(&mut open, b"still here\n").unwrap();
    line.clear();
    kept.read_line(&mut line).unwrap();
    assert_eq!(line, "still here\n");
    // Out and drained, it can stop: nobody notices.
    drop((open, kept));
    drop(servers.remove(0));
    assert_eq!(names(&ask("127.0.0.1", 8081, 300)), ["four", "three", "two"]);

    // A second process of instance 4 shares its port: the connections go on when the first one ends.
    let second = Server::start(Some(&cgroups[3]), &["four-b", "AF_INET6", "::", "80", "reuse"]);
    let seen = ask("::1", 8081, 200);
    assert_eq!(names(&seen), ["four", "four-b", "two"], "{seen:?}");
    drop(servers.pop());
    assert_eq!(names(&ask("::1", 8081, 100)), ["four-b", "two"]);
    drop((second, servers));
}

#[test]
fn a_suspended_instance_gets_no_new_connections_unless_all_are() {
    let Some(scratch) = Scratch::new("suspended") else { return };
    let guard = scratch.guard();
    guard.set_policy(&policy(vec![web(&[1, 2, 3]), service("app", 1)])).unwrap();
    let app = scratch.instance("app.1");
    guard.attach(&app, instance(1)).unwrap();
    let mut servers = Vec::new();
    for (name, number) in [("one", 1), ("two", 2), ("three", 3)] {
        let cgroup = scratch.instance(&format!("web.{number}"));
        guard.attach(&cgroup, instance_of_web(number)).unwrap();
        servers.push(Server::start(Some(&cgroup), &[name, "AF_INET", "0.0.0.0", "80", ""]));
    }
    let from_app = |times: &str| counts(&scratch.python_with(&app, CLIENT, &["127.77.1.0", "80", times]));
    for (suspended, wanted) in [
        (vec![2], vec!["one", "three"]),
        (vec![1, 2], vec!["three"]),
        (vec![1, 2, 3], vec!["one", "three", "two"]),
        (vec![], vec!["one", "three", "two"]),
    ] {
        let suspended: BTreeSet<_> = suspended.into_iter().map(instance_of_web).collect();
        guard.set_suspended(&suspended).unwrap();
        assert_eq!(guard.suspended().unwrap(), suspended);
        for seen in [ask("127.0.0.1", 8081, 300), from_app("300")] {
            eprintln!("{suspended:?} suspended: {seen:?}");
            assert_eq!(names(&seen), wanted, "{suspended:?}");
            let fair = 300 / wanted.len() as u32;
            assert!(seen.values().all(|count| count.abs_diff(fair) <= 60), "{suspended:?}: {seen:?}");
        }
    }
    // Datagrams: each connect, and each send of a socket that isn't connected.
    guard.set_suspended(&BTreeSet::from([instance_of_web(1), instance_of_web(3)])).unwrap();
    let script = "import socket
seen=set()
for i in range(200):
  s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.77.1.0', 9))
  port=s.getsockname()[1]
  for line in open('/proc/net/udp'):
    if ':%04X ' % port in line.split()[1]+' ': seen.add(int(line.split()[2][:2],16))
print(sorted(seen))";
    assert_eq!(scratch.python(&app, script), "[2]");
    drop(servers);
}

#[test]
fn a_port_that_is_published_later_is_answered_by_whoever_listens_already() {
    let Some(scratch) = Scratch::new("later") else { return };
    let guard = scratch.guard();
    let web1 = scratch.instance("web.1");
    guard.attach(&web1, instance_of_web(1)).unwrap();
    let mut undeclared = web(&[1]);
    undeclared.binds.clear();
    guard.set_policy(&policy(vec![undeclared.clone()])).unwrap();
    let _web = Server::start(Some(&web1), &["web", "AF_INET6", "::", "80", ""]);
    // On a localhost of its own: it stays there.
    let _local = Server::start(Some(&web1), &["local", "AF_INET", "127.0.0.1", "81", ""]);
    assert_eq!(names(&ask("127.0.0.1", 8081, 3)), ["ConnectionRefusedError"]);
    let mut declared = web(&[1]);
    let container = PortProto { port: 81, proto: Proto::Tcp };
    declared.binds.push(BindRule { container, published: Some(PublishedAt { host_ip: None, host_port: 8082 }) });
    guard.set_policy(&policy(vec![declared])).unwrap();
    for to in ["127.0.0.1", "::1"] {
        assert_eq!(names(&ask(to, 8081, 10)), ["web"], "{to}");
    }
    assert_eq!(names(&ask("127.0.0.1", 8082, 3)), ["ConnectionRefusedError"]);
    guard.set_policy(&policy(vec![undeclared])).unwrap();
    assert_eq!(names(&ask("127.0.0.1", 8081, 3)), ["ConnectionRefusedError"]);
}

#[test]
fn many_sockets_that_share_a_port_may_be_replaced_by_as_many() {
    let Some(scratch) = Scratch::new("replaced") else { return };
    let guard = scratch.guard();
    guard.set_policy(&policy(vec![web(&[1])])).unwrap();
    let web1 = scratch.instance("web.1");
    guard.attach(&web1, instance_of_web(1)).unwrap();
    let six = |name: &str| -> Vec<Server> {
        (0..6).map(|_| Server::start(Some(&web1), &[name, "AF_INET", "0.0.0.0", "80", "reuse"])).collect()
    };
    let old = six("old");
    // The new ones are given up.
    drop(six("new"));
    assert_eq!(names(&ask("127.0.0.1", 8081, 20)), ["old"]);
    let _new = six("new");
    drop(old);
    assert_eq!(names(&ask("127.0.0.1", 8081, 20)), ["new"]);
}

#[test]
fn nobody_else_gets_connections_of_a_published_port() {
    let Some(scratch) = Scratch::new("rivals") else { return };
    let guard = scratch.guard();
    host_address("203.0.113.1/32");
    guard.set_host_addresses(&["203.0.113.1".parse().unwrap()]).unwrap();
    let mut other = service("other", 2);
    // It may have the same port number inside, and publishes another one.
    other.binds = vec![BindRule {
        container: PortProto { port: 80, proto: Proto::Tcp },
        published: Some(PublishedAt { host_ip: Some("203.0.113.1".parse().unwrap()), host_port: 8082 }),
    }];
    guard.set_policy(&policy(vec![web(&[1]), other])).unwrap();
    let (web1, web2, thief) = (scratch.instance("web.1"), scratch.instance("web.2"), scratch.instance("other.1"));
    guard.attach(&web1, instance_of_web(1)).unwrap();
    guard.attach(&web2, instance_of_web(2)).unwrap();
    guard.attach(&thief, instance(2)).unwrap();
    for instance in [instance_of_web(1), instance(2)] {
        host_address(&format!("{}/128", instance.ipv6()));
    }
    // On the host, before the service: a process that takes every address, and one on the very address.
    let rivals = [
        Server::start(None, &["host", "AF_INET6", "::", "8081", "reuse"]),
        Server::start(None, &["host", "AF_INET", "203.0.113.1", "8081", "reuse"]),
    ];
    assert_eq!(names(&ask("203.0.113.1", 8081, 20)), ["ConnectionRefusedError"], "the port is the service's");
    let honest = Server::start(Some(&web1), &["one", "AF_INET", "0.0.0.0", "80", "reuse"]);
    // In other services, as root, with every spelling that a bind lets through.
    let mut thieves = vec![
        Server::start(Some(&thief), &["thief", "AF_INET", "0.0.0.0", "80", "reuse"]),
        Server::start(Some(&thief), &["thief", "AF_INET6", "::", "8081", "reuse"]),
        Server::start(Some(&thief), &["thief", "AF_INET6", "::", "80", "reuse only6"]),
        Server::start(Some(&web2), &["late", "AF_INET6", "::", "80", "reuse"]),
    ];
    for address in ["127.77.1.1", "203.0.113.1", "127.205.1.1"] {
        let script = format!(
            "import socket\ns=socket.socket(); s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEPORT,1)\ntry: s.bind(('{address}',8081)); print('bound')\nexcept PermissionError: print('refused')"
        );
        assert_eq!(scratch.python(&thief, &script), "refused", "{address}");
    }
    // Listening without a bind takes a port of the kernel's choice on every address; until it is the published one.
    let unbound = "import socket
open('/proc/sys/net/ipv4/ip_local_port_range','w').write('8081 8082')
s=socket.socket()
try: s.listen(); print(s.getsockname())
except OSError as error: print(error.errno)";
    let listened = scratch.python(&thief, unbound);
    assert!(listened.contains("8082") || listened == "98", "{listened}");
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "32768 60999").unwrap();
    for to in ["127.0.0.1", "203.0.113.1"] {
        assert_eq!(names(&ask(to, 8081, 100)), ["one"], "{to}");
    }
    assert_eq!(names(&ask("::1", 8081, 20)), ["ConnectionRefusedError"], "the service has no IPv6");
    let honest6 = Server::start(Some(&web1), &["one", "AF_INET6", "::", "80", "reuse only6"]);
    assert_eq!(names(&ask("::1", 8081, 20)), ["one"]);
    // Published on one address only.
    assert_eq!(names(&ask("203.0.113.1", 8082, 20)), ["thief"]);
    assert_eq!(names(&ask("127.0.0.1", 8082, 3)), ["ConnectionRefusedError"]);
    // It is no way around the rules either: a service that is no peer of web's isn't let in by the host's address.
    let mut closed = service("other", 2);
    closed.connect = Some(vec![]);
    guard.set_policy(&policy(vec![web(&[1]), closed])).unwrap();
    for to in ["203.0.113.1", "127.0.0.1", "127.77.1.1", "127.77.1.0"] {
        let port = if to.starts_with("127.77") { "80" } else { "8081" };
        let seen = counts(&scratch.python_with(&thief, CLIENT, &[to, port, "3"]));
        assert!(!seen.contains_key("one") && !seen.contains_key("host"), "{to}: {seen:?}");
    }
    thieves.clear();
    drop((rivals, honest, honest6));
    // Once the guard is gone, so is what it did to the network namespace.
    guard.unload().unwrap();
    let _host = Server::start(None, &["host", "AF_INET", "0.0.0.0", "8081", ""]);
    assert_eq!(names(&ask("127.0.0.1", 8081, 3)), ["host"]);
}
