//! The host's firewall keeps what is private from everybody whom it isn't for.

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, setsockopt, socket, sockopt,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use palisade_core::firewall::{Backend, FirewallRules, OpenPort};
use palisade_core::stack::{PortProto, Proto};
use palisade_host::firewall::{self, DoorsError, Firewall, FirewallError, SERVICE_MARK};
use palisade_host::link;
use palisade_host::probe::Response;

use crate::{HOST4, HOST6, Scratch, ask, ask_briefly, at, missing, nft, scratch, tool};

const PRIVATE6: &str = "fd70:616c:6973:6164::7f4d:101";

fn rules() -> FirewallRules {
    let open =
        |proto, port, host_ip: Option<&str>| OpenPort { proto, port, host_ip: host_ip.map(|ip| ip.parse().unwrap()) };
    FirewallRules {
        ssh_ports: [22].into(),
        published: [
            open(Proto::Tcp, 8084, None),
            open(Proto::Udp, 8085, None),
            open(Proto::Tcp, 8086, Some(HOST4)),
            open(Proto::Tcp, 8086, Some("203.0.113.77")),
            open(Proto::Tcp, 8087, Some(HOST6)),
        ]
        .into(),
        allow: [PortProto { port: 443, proto: Proto::Tcp }].into(),
        ..FirewallRules::default()
    }
}

/// Runs `work` as nobody, on a thread of its own. The raw call changes this thread alone.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: setresuid() takes plain numbers.
            let result = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, 65534, 65534, 65534) };
            assert_eq!(result, 0);
            work()
        });
        thread.join().unwrap()
    })
}

/// A TCP socket as the guard would make it: with the mark of a service.
fn marked(family: AddressFamily) -> OwnedFd {
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&fd, sockopt::Mark, &SERVICE_MARK).unwrap();
    fd
}

fn marked_listener(address: SocketAddr) -> OwnedFd {
    let fd = marked(if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 });
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
    listen(&fd, Backlog::new(16).unwrap()).unwrap();
    fd
}

/// Connects as a service would, from its own address.
fn marked_connect(from: &str, to: &str) -> nix::Result<()> {
    let (from, to) = (at(from), at(to));
    let fd = marked(if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 });
    setsockopt(&fd, sockopt::SendTimeout, &nix::sys::time::TimeVal::new(0, 400_000)).unwrap();
    bind(fd.as_raw_fd(), &SockaddrStorage::from(from)).unwrap();
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))
}

#[test]
fn private_ports_are_for_services_and_root() {
    let Some(scratch) = scratch("private_ports_are_for_services_and_root") else { return };
    let work = || {
        let ip: Ipv6Addr = PRIVATE6.parse().unwrap();
        link::add_private_ipv6(ip).unwrap();
        let service6 = format!("[{PRIVATE6}]:5432");
        let _services = [marked_listener(at("127.77.1.1:5432")), marked_listener(at(&service6))];
        // Bound by somebody who isn't a service: at a private address, and everywhere.
        let _squatters =
            as_nobody(|| [TcpListener::bind("127.77.1.2:7000").unwrap(), TcpListener::bind("[::]:7001").unwrap()]);
        let udp = UdpSocket::bind("127.77.1.1:53").unwrap();
        udp.set_read_timeout(Some(std::time::Duration::from_millis(200))).unwrap();

        // Without the firewall, everything is reached: otherwise this would prove nothing.
        assert_eq!(as_nobody(|| ask(Proto::Tcp, "127.77.1.1:5432")), Response::Open);
        assert_eq!(as_nobody(|| ask(Proto::Tcp, &service6)), Response::Open);
        assert_eq!(marked_connect("127.77.2.1:0", "127.77.1.2:7000"), Ok(()));
        assert_eq!(marked_connect("127.77.2.1:0", "127.77.1.1:7001"), Ok(()));

        let table = Firewall::new("palisade");
        table.apply("shop", &rules()).unwrap();
        assert_eq!(as_nobody(|| ask(Proto::Tcp, "127.77.1.1:5432")), Response::Refused);
        assert_eq!(as_nobody(|| ask(Proto::Tcp, &service6)), Response::Refused);
        assert!(matches!(as_nobody(|| ask(Proto::Udp, "127.77.1.1:53")), Response::Error(_) | Response::Refused));
        assert!(udp.recv(&mut [0; 8]).is_err(), "a datagram of nobody's got through");
        assert_eq!(ask(Proto::Tcp, "127.77.1.1:5432"), Response::Open);
        assert_eq!(ask(Proto::Tcp, &service6), Response::Open);
        assert_eq!(marked_connect("127.77.2.1:0", "127.77.1.1:5432"), Ok(()));
        assert_eq!(marked_connect(&format!("[{PRIVATE6}]:0"), &service6), Ok(()));

        // Nobody pretends to be a service that isn't there, and nobody's own address gets out from a private one.
        assert_ne!(marked_connect("127.77.2.1:0", "127.77.1.2:7000"), Ok(()));
        assert_ne!(marked_connect("127.77.2.1:0", "127.77.1.1:7001"), Ok(()));
        assert_ne!(marked_connect(&format!("[{PRIVATE6}]:0"), &format!("[{PRIVATE6}]:7001")), Ok(()));
        let from_private = as_nobody(|| {
            let socket = UdpSocket::bind("127.77.9.9:0").unwrap();
            socket.send_to(b"x", "127.0.0.1:9")
        });
        assert!(from_private.is_err(), "{from_private:?}");

        // Ports that are closed say so, at once; and the host's own loopback is as it was.
        assert_eq!(marked_connect("127.77.2.1:0", "127.77.1.1:9"), Err(nix::Error::ECONNREFUSED));
        assert_eq!(ask(Proto::Udp, "127.77.1.1:9"), Response::Refused);
        assert_eq!(as_nobody(|| ask(Proto::Tcp, "127.0.0.1:7001")), Response::Open);
        assert_eq!(as_nobody(|| ask(Proto::Tcp, "[::1]:7001")), Response::Open);

        // A service's UDP works with its mark, in both directions.
        setsockopt(&udp, sockopt::Mark, &SERVICE_MARK).unwrap();
        let client = UdpSocket::bind("127.77.2.1:0").unwrap();
        setsockopt(&client, sockopt::Mark, &SERVICE_MARK).unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        client.send_to(b"ping", "127.77.1.1:53").unwrap();
        let (_, from) = udp.recv_from(&mut [0; 8]).unwrap();
        udp.send_to(b"pong", from).unwrap();
        assert_eq!(client.recv(&mut [0; 8]).unwrap(), 4);
    };
    scratch.host.run(work).unwrap();
}

#[test]
fn what_passes_between_services_is_not_tracked() {
    let Some(scratch) = scratch("what_passes_between_services_is_not_tracked") else { return };
    let work = || {
        Firewall::new("palisade").apply("shop", &rules()).unwrap();
        let tracked = || std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
        let _service = marked_listener(at("127.77.1.1:5432"));
        let _host = TcpListener::bind("127.0.0.1:5432").unwrap();
        assert_eq!(marked_connect("127.77.2.1:0", "127.77.1.1:5432"), Ok(()));
        assert_eq!(tracked().trim(), "0");
        // The counter counts: the host's own connection is tracked, as other tables may rely on it.
        assert_eq!(ask(Proto::Tcp, "127.0.0.1:5432"), Response::Open);
        assert_ne!(tracked().trim(), "0");
    };
    scratch.host.run(work).unwrap();
}

#[test]
fn outside_gets_what_is_opened_and_nothing_else() {
    let Some(scratch) = scratch("outside_gets_what_is_opened_and_nothing_else") else { return };
    let table = Firewall::new("palisade");
    let start = || {
        let ports = [22, 443, 5432, 8084, 8086, 8087].map(|port| TcpListener::bind(("::", port)).unwrap());
        let udp = UdpSocket::bind(("::", 8085)).unwrap();
        std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
        link::add_private_ipv6(PRIVATE6.parse().unwrap()).unwrap();
        (ports, udp, marked_listener(at("127.77.1.1:6000")), marked_listener(at(&format!("[{PRIVATE6}]:6000"))))
    };
    let listeners = scratch.host.run(start).unwrap();
    let private6 = format!("[{PRIVATE6}]:6000");
    let internet = |work: &(dyn Fn() + Sync)| scratch.internet.run(work).unwrap();
    internet(&|| {
        std::fs::write("/proc/sys/net/ipv4/conf/inet0/route_localnet", "1").unwrap();
        link::add_route("inet0", Some(([127, 77, 0, 0].into(), 16)), Some(HOST4.parse().unwrap()), false).unwrap();
        let all: Ipv6Addr = "fd70:616c:6973:6164::".parse().unwrap();
        link::add_route("inet0", Some((all.into(), 96)), Some(HOST6.parse().unwrap()), true).unwrap();
        // The hole is real, or closing it would prove nothing.
        assert_eq!(ask(Proto::Tcp, "127.77.1.1:6000"), Response::Open);
        assert_eq!(ask(Proto::Tcp, &private6), Response::Open);
    });
    scratch.host.run(|| table.apply("shop", &rules())).unwrap().unwrap();
    internet(&|| {
        assert_eq!(ask_briefly(Proto::Tcp, "127.77.1.1:6000"), Response::Silent);
        assert_eq!(ask_briefly(Proto::Tcp, &private6), Response::Silent);
        for (ipv6, host) in [(false, HOST4.to_owned()), (true, format!("[{HOST6}]"))] {
            let tcp = |port: u16| ask(Proto::Tcp, &format!("{host}:{port}"));
            let open_if = |open| if open { Response::Open } else { Response::Silent };
            assert_eq!([tcp(22), tcp(443), tcp(8084)], [Response::Open, Response::Open, Response::Open]);
            let briefly = |port: u16| ask_briefly(Proto::Tcp, &format!("{host}:{port}"));
            let (only4, only6) = if ipv6 { (briefly(8086), tcp(8087)) } else { (tcp(8086), briefly(8087)) };
            assert_eq!(briefly(5432), Response::Silent);
            assert_eq!((only4, only6), (open_if(!ipv6), open_if(ipv6)));
            assert_eq!(briefly(9), Response::Silent);
            let socket = UdpSocket::bind(if ipv6 { "[::]:0" } else { "0.0.0.0:0" }).unwrap();
            socket.send_to(b"in", format!("{host}:8085")).unwrap();
        }
    });
    listeners.1.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    for _ in 0..2 {
        assert_eq!(listeners.1.recv(&mut [0; 8]).unwrap(), 2);
    }
    // A second stack adds its ports and takes away only those.
    let other = FirewallRules {
        published: [OpenPort { proto: Proto::Tcp, port: 5432, host_ip: None }].into(),
        ..Default::default()
    };
    scratch.host.run(|| table.apply("9-lives", &other)).unwrap().unwrap();
    internet(&|| assert_eq!(ask(Proto::Tcp, "203.0.113.1:5432"), Response::Open));
    scratch.host.run(|| table.remove("9-lives", &BTreeSet::new())).unwrap().unwrap();
    internet(&|| {
        assert_eq!(ask_briefly(Proto::Tcp, "203.0.113.1:5432"), Response::Silent);
        assert_eq!(ask(Proto::Tcp, "203.0.113.1:8084"), Response::Open);
    });
    scratch.host.run(|| table.remove("shop", &BTreeSet::new())).unwrap().unwrap();
    internet(&|| assert_eq!(ask(Proto::Tcp, "203.0.113.1:5432"), Response::Open));
    assert_eq!(scratch.host.run(|| table.current()).unwrap().unwrap(), None);
}

/// Counts datagrams to two ports before the firewall and behind it.
const WITNESS: &str = "table inet witness {
  counter open_arrived {}; counter open_passed {}; counter closed_arrived {}; counter closed_passed {};
  chain before {
    type filter hook input priority -400
    udp dport 8085 counter name open_arrived
    udp dport 9999 counter name closed_arrived
  }
  chain behind {
    type filter hook input priority 400
    udp dport 8085 counter name open_passed
    udp dport 9999 counter name closed_passed
  }
}";

/// What the witness has counted, by the counter's name.
fn witnessed() -> BTreeMap<String, u64> {
    let output = Command::new("nft").args(["-j", "list", "counters", "table", "inet", "witness"]).output().unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let counters = listed["nftables"].as_array().unwrap().iter().filter_map(|object| object.get("counter"));
    counters.map(|c| (c["name"].as_str().unwrap().to_owned(), c["packets"].as_u64().unwrap())).collect()
}

/// The number that the kernel gave the chain where packets from outside come in.
fn input_handle() -> u64 {
    let output = Command::new("nft").args(["-j", "list", "chain", "inet", "palisade", "input"]).output().unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    listed["nftables"].as_array().unwrap().iter().find_map(|o| o["chain"]["handle"].as_u64()).unwrap()
}

/// Does `work` in the host while the internet sends datagrams to a published port and to a closed one, as fast as it can.
fn under_fire(scratch: &Scratch, work: impl FnOnce() + Send) {
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let firing = scope.spawn(|| {
            let fire = || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                // Bounded also when the work hangs.
                for _ in 0..2_000_000 {
                    if enough.load(Ordering::Relaxed) {
                        break;
                    }
                    socket.send_to(b"!", (HOST4, 8085)).unwrap();
                    socket.send_to(b"!", (HOST4, 9999)).unwrap();
                }
            };
            scratch.internet.run(fire).unwrap();
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| scratch.host.run(work).unwrap()));
        enough.store(true, Ordering::Relaxed);
        firing.join().unwrap();
        done.unwrap();
    });
}

#[test]
fn replacing_the_table_opens_and_closes_nothing_meanwhile() {
    let Some(scratch) = scratch("replacing_the_table_opens_and_closes_nothing_meanwhile") else { return };
    let table = Firewall::new("palisade");
    let _receivers = scratch
        .host
        .run(|| {
            table.apply("shop", &rules()).unwrap();
            nft(WITNESS);
            [8085, 9999].map(|port| UdpSocket::bind(("0.0.0.0", port)).unwrap())
        })
        .unwrap();
    let hangs_as = scratch.host.run(input_handle).unwrap();
    let another = FirewallRules { allow: [PortProto { port: 7, proto: Proto::Udp }].into(), ..Default::default() };
    under_fire(&scratch, || {
        for _ in 0..10 {
            table.apply("shop", &rules()).unwrap();
            table.apply("another", &another).unwrap();
            table.apply_for_a_time("shop", &rules(), 60_000).unwrap();
            table.apply("shop", &rules()).unwrap();
            table.remove("another", &BTreeSet::new()).unwrap();
        }
    });
    let (seen, hangs) = scratch.host.run(|| (witnessed(), input_handle())).unwrap();
    assert_eq!(hangs, hangs_as, "the chain was made anew");
    assert!(seen["closed_arrived"] > 1000, "hardly anything was sent: {seen:?}");
    assert_eq!((seen["closed_passed"], seen["open_passed"]), (0, seen["open_arrived"]), "{seen:?}");
}

#[test]
fn confirming_what_was_closed_for_a_time_opens_nothing_meanwhile() {
    let Some(scratch) = scratch("confirming_what_was_closed_for_a_time_opens_nothing_meanwhile") else { return };
    let table = Firewall::new("palisade");
    scratch.host.run(|| nft(WITNESS)).unwrap();
    under_fire(&scratch, || {
        for _ in 0..10 {
            table.apply_for_a_time("shop", &rules(), 60_000).unwrap();
            nft("reset counters table inet witness");
            table.apply("shop", &rules()).unwrap();
            let seen = witnessed();
            assert_eq!(seen["closed_passed"], 0, "{seen:?}");
            table.remove("shop", &BTreeSet::new()).unwrap();
        }
    });
}

#[test]
fn another_firewall_that_does_not_run_opens_nothing_meanwhile() {
    let Some(scratch) = scratch("another_firewall_that_does_not_run_opens_nothing_meanwhile") else { return };
    let table = Firewall::new("palisade");
    scratch
        .host
        .run(|| {
            table.apply("shop", &rules()).unwrap();
            nft(WITNESS);
        })
        .unwrap();
    let elsewhere = FirewallRules { backend: Backend::Iptables, ..rules() };
    under_fire(&scratch, || {
        for _ in 0..20 {
            assert!(matches!(table.apply("shop", &elsewhere), Err(FirewallError::Doors(DoorsError::NoIptables))));
        }
    });
    let (seen, stacks) = scratch.host.run(|| (witnessed(), table.current().unwrap().unwrap().stacks)).unwrap();
    assert!(seen["closed_arrived"] > 1000, "hardly anything was sent: {seen:?}");
    assert_eq!(seen["closed_passed"], 0, "{seen:?}");
    assert_eq!(stacks["shop"].backend, Backend::Nftables);
}

#[test]
fn narrowing_what_iptables_lets_in_shuts_it_for_nobody_meanwhile() {
    const TEST: &str = "narrowing_what_iptables_lets_in_shuts_it_for_nobody_meanwhile";
    if let Some(program) = missing(&["iptables-nft"]) {
        println!("SKIPPED: {TEST}: no {program}");
        return;
    }
    let Some(scratch) = scratch(TEST) else { return };
    // What was opened is noted below /var/lib by this name.
    let table = Firewall::new(&format!("palisade-test-narrow-{}", std::process::id()));
    let open = |host_ip: Option<&str>| FirewallRules {
        published: [OpenPort { proto: Proto::Udp, port: 8085, host_ip: host_ip.map(|ip| ip.parse().unwrap()) }].into(),
        backend: Backend::Iptables,
        ..FirewallRules::default()
    };
    scratch
        .host
        .run(|| {
            tool(&["iptables-nft", "-P", "INPUT", "DROP"], "");
            table.apply("shop", &open(None)).unwrap();
            nft(WITNESS);
        })
        .unwrap();
    under_fire(&scratch, || {
        for _ in 0..5 {
            table.apply("shop", &open(Some(HOST4))).unwrap();
            table.apply("shop", &open(None)).unwrap();
        }
    });
    let seen = scratch.host.run(witnessed).unwrap();
    scratch.host.run(|| table.remove("shop", &BTreeSet::new())).unwrap().unwrap();
    let _ = std::fs::remove_dir(format!("/var/lib/{}", table.table()));
    let _ = std::fs::remove_file(format!("/run/{}-firewall.lock", table.table()));
    assert!(seen["open_arrived"] > 1000, "hardly anything was sent: {seen:?}");
    assert_eq!((seen["closed_passed"], seen["open_passed"]), (0, seen["open_arrived"]), "{seen:?}");
}

#[test]
fn meddling_is_seen_and_other_tables_are_named() {
    let Some(scratch) = scratch("meddling_is_seen_and_other_tables_are_named") else { return };
    let work = || {
        let table = Firewall::new("palisade");
        table.apply("shop", &rules()).unwrap();
        let wanted = BTreeMap::from([("shop".to_owned(), rules())]);
        let differences = || table.current().unwrap().unwrap().differences(&wanted);
        assert_eq!(differences(), Vec::<String>::new());
        assert_eq!(table.current().unwrap().unwrap().stacks["shop"].digest(), rules().digest());
        let before = table.snapshot().unwrap();

        nft("insert rule inet palisade input tcp dport 5432 accept");
        assert_eq!(differences(), ["the rules of chain `input` differ"]);
        nft("add element inet palisade published.shop { tcp . 9 }");
        assert_eq!(differences(), ["the ports of stack `shop` differ", "the rules of chain `input` differ"]);
        nft("add chain inet palisade input { policy accept; }");
        assert!(differences().contains(&"chain `input` hangs elsewhere or has another policy".to_owned()));
        nft("add set inet palisade odd { type inet_service; }
             add map inet palisade pairs { type inet_service : verdict; }
             add chain inet palisade stray { type filter hook forward priority 0; }
             add chain inet palisade deep
             add rule inet palisade stray jump deep");
        for foreign in ["set `odd`", "map `pairs`", "chain `stray`", "chain `deep`"] {
            let told = format!("there is a {foreign} that is not ours");
            assert!(differences().contains(&told), "{told}: {:?}", differences());
        }
        table.restore(&before).unwrap();
        assert_eq!(differences(), Vec::<String>::new());
        // Of the same name, and hung elsewhere: this can't be mended where it is.
        nft("delete chain inet palisade input
             add chain inet palisade input { type filter hook input priority 5; policy accept; }");
        table.restore(&before).unwrap();
        assert_eq!(differences(), Vec::<String>::new());

        assert_eq!(firewall::foreign_chains(&table).unwrap(), []);
        nft("table ip other { chain deep { drop; };
             chain c { type filter hook input priority 5; tcp dport 80 jump deep; };
             chain harmless { type filter hook input priority 6; counter; }; }
             table inet another { chain d { type filter hook input priority 9; policy drop; accept; }; }");
        let found = firewall::foreign_chains(&table).unwrap();
        let found: Vec<_> = found.iter().map(|c| (c.table.as_str(), c.chain.as_str(), c.drops_by_default)).collect();
        assert_eq!(found, [("other", "c", false), ("another", "d", true)]);
        table.remove("shop", &BTreeSet::new()).unwrap();
        table.remove("shop", &BTreeSet::new()).unwrap();
        assert_eq!(firewall::foreign_chains(&table).unwrap().len(), 2, "other tables are not touched");
    };
    scratch.host.run(work).unwrap();
}
