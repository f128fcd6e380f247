//! The guard alone, without any firewall: packets from outside for private addresses, and addresses of the host that the
//! guard hasn't been told of.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use super::published::{Server, web};
use super::*;

/// Does what it is told, line by line, and says what came of it.
const TALKER: &str = "import signal,socket,sys,time
signal.alarm(300)
kept={}
def family(to): return socket.AF_INET6 if ':' in to else socket.AF_INET
def outcome(work):
  try: return work()
  except TimeoutError: return 'silent'
  except PermissionError: return 'refused'
  except ConnectionRefusedError: return 'closed'
  except OSError as error: return str(error)
def tcp(to,port,wait=10,source=None):
  with socket.socket(family(to)) as s:
    s.settimeout(wait)
    if source: s.bind((source,0))
    def work(): s.connect((to,port)); return s.recv(99).decode().split()[0]
    return outcome(work)
def answered(s,wait): s.settimeout(wait); return s.recv(99).decode()
def udp(to,port,wait=10,s=None):
  s=s or socket.socket(family(to),socket.SOCK_DGRAM)
  def work(): s.sendto(b'?',(to,port)); return answered(s,wait)
  return outcome(work)
def send(s,wait):
  def work(): s.send(b'?'); return answered(s,wait)
  return outcome(work)
def begin(name,to,port):
  kept[name]=socket.socket(family(to)); kept[name].setblocking(False)
  return kept[name].connect_ex((to,port))
def connected(s):
  return outcome(lambda: s.getpeername() and 'connected')
def datagrams(name,to): kept[name]=socket.socket(family(to),socket.SOCK_DGRAM)
def joined(name,to,port): datagrams(name,to); kept[name].connect((to,port))
for line in sys.stdin: print(eval(line),flush=True)";

/// Answers datagrams; prints each.
const UDP_SERVER: &str = "import signal,socket,sys
signal.alarm(300)
name,family,address,port,peer=sys.argv[1:6]
s=socket.socket(getattr(socket,family),socket.SOCK_DGRAM)
if family=='AF_INET6': s.setsockopt(socket.IPPROTO_IPV6,socket.IPV6_V6ONLY,1)
s.bind((address,int(port)))
if peer: s.connect((peer,int(port)))
print('serving',flush=True)
while True:
  data,who=s.recvfrom(99); print(data.decode(),flush=True)
  try: s.send(name.encode()) if peer else s.sendto(name.encode(),who)
  except OSError: pass";

/// A program in a cgroup or a network namespace, with which a test talks.
struct Talker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Talker {
    fn start(cgroup: Option<&Path>, netns: Option<&Outside>, script: &str, arguments: &[&str]) -> Self {
        let procs = cgroup.map_or("/dev/null".into(), |cgroup| cgroup.join("cgroup.procs"));
        let network = netns.map_or("--net=/proc/self/ns/net".into(), Outside::network);
        let mut command = Command::new("sh");
        command.args(["-c", "echo 0 > \"$1\"; shift; exec nsenter \"$@\"", "sh"]).arg(procs);
        command.args([&network, "python3", "-c", script]).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }
    fn new(cgroup: Option<&Path>, netns: Option<&Outside>) -> Self {
        Self::start(cgroup, netns, TALKER, &[])
    }
    fn udp_server(cgroup: Option<&Path>, arguments: &[&str]) -> Self {
        let mut server = Self::start(cgroup, None, UDP_SERVER, arguments);
        assert_eq!(server.line(), "serving", "{arguments:?}");
        server
    }
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
    fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        self.line()
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A network namespace beside the host's, joined to it by a pair of interfaces.
struct Outside(Child);

impl Outside {
    fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo there; exec sleep 300"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "there\n");
        let outside = Self(child);
        let number = outside.0.id().to_string();
        shell(&format!("ip link add out0 type veth peer name in0 netns {number}"));
        // Its loopback stays down, so that it can have a route to somebody else's 127.0.0.0/8.
        outside.shell("in0", 2);
        shell(&Self::settings("out0", 1));
        outside
    }
    fn settings(device: &str, number: u8) -> String {
        format!(
            "ip addr add 203.0.113.{number}/24 dev {device}; ip addr add 2001:db8::{number}/64 dev {device} nodad
             ip link set {device} up; echo 1 > /proc/sys/net/ipv4/conf/{device}/route_localnet"
        )
    }
    fn network(&self) -> String {
        format!("--net=/proc/{}/ns/net", self.0.id())
    }
    fn shell(&self, device: &str, number: u8) {
        let routes = "ip route add 127.64.0.0/10 via 203.0.113.1
                      ip -6 route add fd70:616c:6973:6164::/96 via 2001:db8::1";
        let script = format!("{}\n{routes}", Self::settings(device, number));
        let status = Command::new("nsenter").args([&self.network(), "sh", "-ec", &script]).status().unwrap();
        assert!(status.success(), "{script}");
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn shell(script: &str) {
    assert!(Command::new("sh").args(["-ec", script]).status().unwrap().success(), "{script}");
}

/// Asks until the answer is the wanted one: a new address and a new neighbour take a moment.
fn patiently(wanted: &str, mut ask: impl FnMut() -> String) {
    let until = Instant::now() + Duration::from_secs(20);
    let mut said = ask();
    while said != wanted && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
        said = ask();
    }
    assert_eq!(said, wanted);
}

#[test]
fn nobody_outside_reaches_a_private_address_even_without_a_firewall() {
    let Some(scratch) = Scratch::new("wire") else { return };
    let guard = scratch.guard();
    let outside = Outside::new();
    guard.set_host_addresses(&["203.0.113.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]).unwrap();
    guard.set_policy(&policy(vec![web(&[1]), service("app", 1)])).unwrap();
    let (web1, app) = (scratch.instance("web.1"), scratch.instance("app.1"));
    guard.attach(&web1, instance(0)).unwrap();
    guard.attach(&app, instance(1)).unwrap();
    let [private6, app6] = [instance(0), instance(1)].map(|instance| instance.ipv6().to_string());
    for address in [&private6, &app6] {
        shell(&format!("ip addr add {address}/128 dev lo"));
    }
    let _servers = [
        Server::start(Some(&web1), &["web6", "AF_INET6", "::", "80", "only6"]),
        Server::start(Some(&web1), &["web4", "AF_INET", "0.0.0.0", "80", ""]),
        // Of the host itself, to show that there is a way from outside to such addresses.
        Server::start(None, &["host6", "AF_INET6", &private6, "7000", ""]),
        Server::start(None, &["host4", "AF_INET", "127.77.1.1", "7000", ""]),
    ];
    let mut heard = [
        Talker::udp_server(Some(&web1), &["udp6", "AF_INET6", "::", "5353", ""]),
        Talker::udp_server(Some(&web1), &["udp4", "AF_INET", "0.0.0.0", "5353", ""]),
        // Talks to one peer only, in whose name somebody outside may send.
        Talker::udp_server(Some(&web1), &["joined", "AF_INET6", "::", "5454", &app6]),
    ];
    let mut host_udp = Talker::udp_server(None, &["host", "AF_INET6", &private6, "7000", ""]);
    let mut stranger = Talker::new(None, Some(&outside));
    let mut host = Talker::new(None, None);
    let mut peer = Talker::new(Some(&app), None);

    patiently("host6", || stranger.ask(&format!("tcp('{private6}',7000)")));
    patiently("host4", || stranger.ask("tcp('127.77.1.1',7000)"));
    assert_eq!(stranger.ask(&format!("udp('{private6}',7000)")), "host");
    assert_eq!(host_udp.line(), "?");
    // The published port is answered by the same sockets.
    assert_eq!(stranger.ask("tcp('2001:db8::1',8081)"), "web6");
    assert_eq!(stranger.ask("tcp('203.0.113.1',8081)"), "web4");

    assert_eq!(stranger.ask(&format!("tcp('{private6}',80,0.5)")), "silent");
    assert_eq!(stranger.ask("tcp('127.77.1.1',80,0.5)"), "silent");
    assert_eq!(stranger.ask(&format!("udp('{private6}',5353,0.5)")), "silent");
    assert_eq!(stranger.ask("udp('127.77.1.1',5353,0.5)"), "silent");
    shell(&format!("nsenter {} ip addr add {app6}/128 dev in0 nodad", outside.network()));
    assert_eq!(stranger.ask("datagrams('posing','::')"), "None");
    patiently("None", || stranger.ask(&format!("outcome(lambda: kept['posing'].bind(('{app6}',5454)))")));
    assert_eq!(stranger.ask(&format!("kept['posing'].sendto(b'posing',('{private6}',5454))")), "6");
    std::thread::sleep(Duration::from_millis(300));

    // The host and peers reach them; nothing came before.
    assert_eq!(host.ask(&format!("tcp('{private6}',80)")), "web6");
    assert_eq!(host.ask("tcp('127.77.1.1',80)"), "web4");
    assert_eq!(peer.ask(&format!("tcp('{private6}',80)")), "web6");
    assert_eq!(peer.ask(&format!("kept.update(s=socket.socket(family('{app6}'),socket.SOCK_DGRAM))")), "None");
    assert_eq!(peer.ask(&format!("kept['s'].bind(('{app6}',5454))")), "None");
    assert_eq!(peer.ask(&format!("udp('{private6}',5454,10,kept['s'])")), "joined");
    assert_eq!(host.ask(&format!("udp('{private6}',5353)")), "udp6");
    assert_eq!(host.ask("udp('127.77.1.1',5353)"), "udp4");
    assert_eq!(heard.each_mut().map(Talker::line), ["?", "?", "?"]);
    // Nor was there more than that one.
    assert_eq!(host.ask(&format!("kept.update(h=socket.socket(family('{app6}'),socket.SOCK_DGRAM))")), "None");
    assert_eq!(host.ask(&format!("kept['h'].sendto(b'end',('{private6}',5353))")), "3");
    assert_eq!(heard[0].line(), "end");
    let events = guard.events().unwrap().poll(Duration::from_secs(10)).unwrap();
    let strangers: Vec<_> = events.iter().filter(|event| event.reason == Reason::FromOutside).collect();
    let from: Vec<_> = strangers.iter().map(|event| (event.address.to_string(), event.port)).collect();
    for wanted in [("2001:db8::2", 80), ("203.0.113.2", 80), ("2001:db8::2", 5353), ("203.0.113.2", 5353)] {
        assert!(from.iter().any(|(ip, port)| (ip.as_str(), *port) == wanted), "{wanted:?}: {events:?}");
    }
    assert!(from.contains(&(app6, 5454)), "{events:?}");
    assert!(events.iter().all(|event| event.reason == Reason::FromOutside), "{events:?}");
}

#[test]
fn an_address_that_the_guard_was_not_told_of_opens_nothing_of_the_host() {
    let Some(scratch) = Scratch::new("untold") else { return };
    let guard = scratch.guard();
    shell(
        "ip link add new0 type veth peer name gone0; ip link set gone0 up; ip link set new0 up
         ip addr add 203.0.113.1/24 dev new0; ip addr add 2001:db8::1/64 dev new0 nodad
         ip neigh add 203.0.113.77 lladdr 02:00:00:00:00:77 dev new0
         ip neigh add 2001:db8::77 lladdr 02:00:00:00:00:77 dev new0",
    );
    let told = ["203.0.113.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    guard.set_host_addresses(&told).unwrap();
    let cgroup = scratch.instance("app.1");
    guard.attach(&cgroup, instance(1)).unwrap();
    let mut app = service("app", 1);
    guard.set_policy(&policy(vec![app.clone()])).unwrap();
    let _servers = [
        Server::start(None, &["host", "AF_INET6", "::", "22", "only6"]),
        Server::start(None, &["host", "AF_INET", "0.0.0.0", "22", ""]),
    ];
    let _datagrams = [
        Talker::udp_server(None, &["host", "AF_INET6", "::", "53", ""]),
        Talker::udp_server(None, &["host", "AF_INET", "0.0.0.0", "53", ""]),
    ];
    let (mut inside, mut host) = (Talker::new(Some(&cgroup), None), Talker::new(None, None));
    let news = ["203.0.113.77", "2001:db8::77"];

    // While they are somebody else's: a connection that waits for its answer, datagrams that were sent.
    for new in news {
        assert_eq!(inside.ask(&format!("begin('early {new}','{new}',22)")), "115");
        assert_eq!(inside.ask(&format!("datagrams('sent {new}','{new}')")), "None");
        assert_eq!(inside.ask(&format!("udp('{new}',53,.1,kept['sent {new}'])")), "silent");
        assert_eq!(inside.ask(&format!("joined('joined {new}','{new}',53)")), "None");
    }
    shell("ip addr add 203.0.113.77/32 dev new0; ip addr add 2001:db8::77/128 dev new0 nodad");
    for new in news {
        // There is something to be reached.
        patiently("host", || host.ask(&format!("tcp('{new}',22)")));
        assert_eq!(host.ask(&format!("udp('{new}',53)")), "host");
        assert_eq!(inside.ask(&format!("tcp('{new}',22,.5)")), "silent");
        assert_ne!(inside.ask(&format!("udp('{new}',53,.5)")), "host");
    }
    // Also when the guard has been told meanwhile.
    for addresses in [told.to_vec(), news.map(|new| new.parse().unwrap()).into_iter().chain(told).collect()] {
        guard.set_host_addresses(&addresses).unwrap();
        for new in news {
            assert_ne!(inside.ask(&format!("udp('{new}',53,.5,kept['sent {new}'])")), "host", "{new}");
            assert_ne!(inside.ask(&format!("send(kept['joined {new}'],.5)")), "host", "{new}");
        }
        // Longer than it takes to ask again.
        std::thread::sleep(Duration::from_millis(2_500));
        for new in news {
            assert_ne!(inside.ask(&format!("connected(kept['early {new}'])")), "connected", "{new}");
        }
    }
    for new in news {
        assert_eq!(inside.ask(&format!("tcp('{new}',22)")), "refused");
        assert_eq!(inside.ask(&format!("udp('{new}',53)")), "refused");
    }

    // What the file allows works at either, and so does whoever asks a service.
    app.host_ports = vec![22, 53];
    let mut web = web(&[1]);
    let container = PortProto { port: 5353, proto: Proto::Udp };
    web.binds.push(BindRule { container, published: Some(PublishedAt { host_ip: None, host_port: 8053 }) });
    guard.set_policy(&policy(vec![app.clone(), web.clone()])).unwrap();
    let web1 = scratch.instance("web.1");
    guard.attach(&web1, instance(0)).unwrap();
    let _web = Server::start(Some(&web1), &["web", "AF_INET", "0.0.0.0", "80", ""]);
    let _web_udp = Talker::udp_server(Some(&web1), &["web", "AF_INET", "0.0.0.0", "5353", ""]);
    guard.set_host_addresses(&told).unwrap();
    for to in news.into_iter().chain(["203.0.113.1", "2001:db8::1"]) {
        assert_eq!(inside.ask(&format!("tcp('{to}',22)")), "host", "{to}");
        assert_eq!(inside.ask(&format!("udp('{to}',53)")), "host", "{to}");
    }
    for egress in [EgressPolicy::All, EgressPolicy::None] {
        web.egress = egress;
        guard.set_policy(&policy(vec![app.clone(), web.clone()])).unwrap();
        for to in ["203.0.113.77", "203.0.113.1", "127.0.0.1"] {
            assert_eq!(host.ask(&format!("tcp('{to}',8081)")), "web", "{to}");
            assert_eq!(host.ask(&format!("udp('{to}',8053)")), "web", "{to}");
        }
    }
    assert_eq!(host.ask("tcp('127.77.1.1',80,10,'203.0.113.77')"), "web", "a private address, from one that is new");
}
