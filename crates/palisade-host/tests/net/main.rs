//! Namespaces, firewall, twin and probes against the real kernel, in namespaces of their own.
//!
//! Needs root; says so and returns where it isn't.

mod export;
mod firewall;
mod truth;
mod twin;

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use palisade_core::stack::Proto;
use palisade_host::link::{self, AddressChanges, VethEnd};
use palisade_host::netns::{self, Netns};
use palisade_host::probe::{self, Response};
use palisade_host::routes::{self, Way};
use palisade_host::sockets::{self, SocketProto, Which};

const HOST4: &str = "203.0.113.1";
const HOST6: &str = "2001:db8::1";

/// A host and an internet that only know each other. They have no names, so the kernel clears them away.
struct Scratch {
    host: Netns,
    internet: Netns,
}

/// Makes them, or says why the test is skipped.
fn scratch(test: &str) -> Option<Scratch> {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: {test}: not root");
        return None;
    }
    if let Err(error) = Command::new("nft").arg("--version").stdout(Stdio::null()).status() {
        println!("SKIPPED: {test}: nft: {error}");
        return None;
    }
    let (host, internet) = (Netns::unnamed().unwrap(), Netns::unnamed().unwrap());
    link::add_veth(
        VethEnd { netns: &host, name: "eth0", index: Some(7), mac: None },
        VethEnd { netns: &internet, name: "inet0", index: None, mac: None },
    )
    .unwrap();
    let set_up = |name: &str, last: u16| {
        link::set_up(name, false).unwrap();
        link::add_address(name, [203, 0, 113, last as u8].into(), 24).unwrap();
        let ipv6 = [0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into();
        link::add_address(name, ipv6, 64).unwrap();
        // The kernel routes an IPv6 address a little later than it has it.
        let deadline = Instant::now() + Duration::from_secs(2);
        while routes::way_to(ipv6).unwrap() != Way::Here && Instant::now() < deadline {
            std::thread::sleep(Duration::from_micros(200));
        }
    };
    host.run(|| {
        link::set_up("lo", false).unwrap();
        set_up("eth0", 1);
        link::add_route("eth0", None, Some([203, 0, 113, 2].into()), false).unwrap();
    })
    .unwrap();
    // The internet's loopback stays down, so that it can have a route to somebody else's 127.0.0.0/8.
    internet.run(|| set_up("inet0", 2)).unwrap();
    Some(Scratch { host, internet })
}

/// Runs a tool of the namespace that the thread is in; a wedged one is killed after 20 s.
fn tool(command: &[&str], input: &str) {
    let mut child =
        Command::new("timeout").args(["20"]).args(command).stdin(Stdio::piped()).spawn().expect("timeout is installed");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{command:?} failed with {input}");
}

/// The first of these programs that isn't installed.
fn missing<'a>(programs: &[&'a str]) -> Option<&'a str> {
    let is_there =
        |name: &str| Command::new("sh").args(["-c", "command -v \"$0\"", name]).stdout(Stdio::null()).status();
    programs.iter().copied().find(|name| !is_there(name).is_ok_and(|status| status.success()))
}

fn nft(rules: &str) {
    tool(&["nft", "-f", "-"], rules);
}

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn ask_within(proto: Proto, address: &str, timeout_ms: u64) -> Response {
    probe::ask(&[(proto, at(address))], b"?", Duration::from_millis(timeout_ms)).unwrap().remove(0)
}

/// For an answer that should come: patient, as the machine may be busy.
fn ask(proto: Proto, address: &str) -> Response {
    ask_within(proto, address, 3000)
}

/// For an answer that should not come: no test waits long for nothing.
fn ask_briefly(proto: Proto, address: &str) -> Response {
    ask_within(proto, address, 300)
}

#[test]
fn a_thread_comes_back_from_a_namespace() {
    let Some(scratch) = scratch("a_thread_comes_back_from_a_namespace") else { return };
    let names = || link::interfaces().unwrap().into_iter().map(|i| i.name).collect::<Vec<_>>();
    let before = names();
    {
        let _entered = scratch.host.enter().unwrap();
        assert_eq!(names(), ["lo", "eth0"]);
        assert_eq!(link::index_of("eth0").unwrap(), 7);
        assert_eq!(link::default_route_interfaces().unwrap(), ["eth0"]);
    }
    assert_eq!(names(), before);
    let error = scratch.host.run_in(Duration::from_millis(50), || std::thread::sleep(Duration::from_secs(30)));
    assert_eq!(error.unwrap_err().to_string(), "work in network namespace `unnamed` was not done after 50 ms");
}

#[test]
fn namespaces_of_dead_owners_are_removed() {
    let Some(_scratch) = scratch("namespaces_of_dead_owners_are_removed") else { return };
    let prefix = format!("palisade-nettest{}", std::process::id());
    let mut child = Command::new("true").spawn().unwrap();
    let dead = child.id();
    child.wait().unwrap();
    let (left, own) = (format!("{prefix}-{dead}-host"), netns::owned_name(&prefix, "host"));
    Netns::create(&left).unwrap();
    let kept = Netns::create(&own).unwrap();
    assert!(Netns::create(&own).is_err(), "a name is given only once");
    assert_eq!(netns::remove_leftovers(&prefix).unwrap(), [left.as_str()]);
    assert!(Netns::open(&left).is_err());
    let again = Netns::open(&own).unwrap();
    assert_eq!(again.run(|| link::interfaces().unwrap().len()).unwrap(), 1);
    kept.remove().unwrap();
    assert!(Netns::open(&own).is_err());
}

#[test]
fn private_ipv6_addresses_come_and_go() {
    let Some(scratch) = scratch("private_ipv6_addresses_come_and_go") else { return };
    let ip = "fd70:616c:6973:6164::7f4d:101".parse().unwrap();
    let present = || {
        let lo = link::interfaces().unwrap().into_iter().find(|i| i.loopback).unwrap();
        lo.addresses.contains(&(IpAddr::V6(ip), 128))
    };
    let work = || {
        link::add_private_ipv6(ip).unwrap();
        link::add_private_ipv6(ip).unwrap();
        assert!(present());
        TcpListener::bind((ip, 5432)).unwrap();
        // Deprecated: a connection to somebody else doesn't come from it.
        let socket = UdpSocket::bind("[::]:0").unwrap();
        socket.connect("[::1]:9").unwrap();
        assert_eq!(socket.local_addr().unwrap().ip().to_string(), "::1");
        link::remove_private_ipv6(ip).unwrap();
        link::remove_private_ipv6(ip).unwrap();
        assert!(!present());
    };
    scratch.host.run(work).unwrap();
}

#[test]
fn new_addresses_are_heard_of() {
    let Some(scratch) = scratch("new_addresses_are_heard_of") else { return };
    let work = || {
        let mut changes = AddressChanges::listen().unwrap();
        assert!(!changes.wait(Duration::from_millis(100)).unwrap(), "nothing has changed");
        for address in ["203.0.113.77", "2001:db8::77"] {
            link::add_address("eth0", address.parse().unwrap(), 32).unwrap();
            assert!(changes.wait(Duration::from_secs(20)).unwrap(), "{address}");
            while changes.wait(Duration::from_millis(100)).unwrap() {}
        }
    };
    scratch.host.run(work).unwrap();
}

#[test]
fn sockets_are_listed_with_their_holders() {
    let Some(scratch) = scratch("sockets_are_listed_with_their_holders") else { return };
    let work = || {
        let tcp = TcpListener::bind("[::]:4000").unwrap();
        let udp = UdpSocket::bind("203.0.113.1:4001").unwrap();
        nix::sys::socket::setsockopt(&udp, nix::sys::socket::sockopt::Mark, &77).unwrap();
        let found = sockets::list(Which::Listening).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        let one = found.iter().find(|s| s.proto == SocketProto::Tcp).unwrap();
        assert_eq!((one.local, one.state, one.v6_only), (at("[::]:4000"), 10, Some(false)));
        assert!(one.serves(false) && one.serves(true));
        let other = found.iter().find(|s| s.proto == SocketProto::Udp).unwrap();
        assert_eq!((other.local, other.mark, other.uid), (at("203.0.113.1:4001"), Some(77), 0));
        assert!(other.cgroup_id.is_some_and(|id| id > 0));
        let link = std::fs::read_link(format!("/proc/self/fd/{}", tcp.as_raw_fd())).unwrap();
        assert_eq!(link.to_str().unwrap(), format!("socket:[{}]", one.inode));
        let holders = sockets::holders();
        assert_eq!(holders[&one.inode][0].pid, std::process::id() as i32);
        assert_eq!(
            sockets::ssh_ports(Some("192.0.2.1 5 192.0.2.2 2222")).unwrap().into_iter().collect::<Vec<_>>(),
            [2222]
        );
    };
    scratch.host.run(work).unwrap();
}

#[test]
fn every_kind_of_answer_is_told_apart() {
    let Some(scratch) = scratch("every_kind_of_answer_is_told_apart") else { return };
    let _listeners = scratch
        .host
        .run(|| {
            nft("table inet t { chain c { type filter hook input priority 0; th dport 81 drop; }; }");
            (TcpListener::bind("[::]:80").unwrap(), TcpListener::bind("[::]:81").unwrap())
        })
        .unwrap();
    scratch
        .internet
        .run(|| {
            for host in [HOST4.to_owned(), format!("[{HOST6}]")] {
                assert_eq!(ask(Proto::Tcp, &format!("{host}:80")), Response::Open);
                assert_eq!(ask_briefly(Proto::Tcp, &format!("{host}:81")), Response::Silent);
                assert_eq!(ask(Proto::Tcp, &format!("{host}:82")), Response::Refused);
                assert_eq!(ask_briefly(Proto::Udp, &format!("{host}:81")), Response::Silent);
                assert_eq!(ask(Proto::Udp, &format!("{host}:82")), Response::Refused);
            }
            assert!(matches!(ask(Proto::Tcp, "198.51.100.1:80"), Response::Error(_)));
        })
        .unwrap();
}
