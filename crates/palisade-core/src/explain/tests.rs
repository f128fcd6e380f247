use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::*;
use crate::address::AddressBook;
use crate::compile::{Compiled, Numbers, Surroundings, compile};
use crate::names::InstanceId;
use crate::observed::{EngineState, GuardSeen, InstanceSeen, Observed, SocketOwner, SocketSeen};
use crate::policy::{Mode, Policy};
use crate::prove::Answer;
use crate::stack::{PortProto, Proto, Stack, Volume};
use crate::testing::{at, grant, name, publish, service, stack, tcp};

/// app may connect to db; app is published.
fn shop() -> Stack {
    let (mut app, mut db, other) = (service("app"), service("db"), service("other"));
    app.publish = vec![publish(None, 8084, 8094)];
    app.expose = vec![at(tcp(8094))];
    app.connect = Some(vec![grant("db", Some(5432))]);
    db.expose = vec![at(tcp(5432))];
    db.connect = Some(Vec::new());
    stack([app, db, other])
}

/// A host on which the stack is up and listens.
fn host(stack: &Stack) -> (Policy, Observed) {
    let names = stack.services.iter().map(|service| &service.name);
    let addresses = AddressBook::default().assign(names, &BTreeSet::new()).unwrap();
    let volume_path: &dyn Fn(&str, &Volume) -> PathBuf = &|name, _| PathBuf::from(name);
    let surroundings = Surroundings {
        addresses: &addresses,
        resolvers: &[],
        mode: Mode::Enforce,
        volume_path,
        files: None,
        engine: &EngineState::NotAsked,
        numbers: Numbers::FIRST,
        own: None,
    };
    let Compiled { policy, policy_digest, instances } = compile(stack, surroundings).unwrap();
    let mut host = Observed::default();
    let mut guard = GuardSeen { policy_digest: Some(policy_digest), ..GuardSeen::default() };
    guard.serving = policy.services.iter().flat_map(|service| &service.backends).copied().collect();
    for instance in instances {
        let spec = instance.spec;
        guard.attached.insert(spec.id.clone(), spec.address);
        let status = InstanceStatus {
            id: spec.id,
            address: spec.address,
            spec_digest: String::new(),
            state: RunState::Running,
            health: Health::None,
            pid: Some(7),
            restarts: 0,
            started_at_s: 0,
            health_output: None,
            hook_failure: None,
            stopped: false,
        };
        host.instances.push(InstanceSeen { status, fingerprint: None, hosts_digest: None });
    }
    host.guard = Some(guard);
    host.sockets = vec![
        socket("[::ffff:127.77.1.1]:8094", SocketOwner::Instance(id("app"))),
        socket("127.77.2.1:5432", SocketOwner::Instance(id("db"))),
        socket("0.0.0.0:22", SocketOwner::Process { pid: 2, command: "sshd".into() }),
    ];
    (policy, host)
}

fn id(service: &str) -> InstanceId {
    InstanceId { service: name(service), number: 1 }
}

fn socket(local: &str, owner: SocketOwner) -> SocketSeen {
    let local: SocketAddr = local.parse().unwrap();
    SocketSeen { proto: Proto::Tcp, local, v6_only: false, uid: 0, inode: 1, owner }
}

fn shown(answer: &Explanation) -> String {
    let mark = |passes| match passes {
        Some(true) => "yes",
        Some(false) => "no",
        None => "-",
    };
    let steps: String = answer.steps.iter().map(|step| format!("  {}: {}\n", mark(step.passes), step.what)).collect();
    let hints: String = answer.hints.iter().map(|hint| format!("  hint: {hint}\n")).collect();
    format!("{}: {:?}\n{steps}{hints}", answer.question, answer.verdict)
}

/// The answer about a port, when the firewall does this with packets by IPv4 and IPv6.
fn outside(port: u16, ipv4: Passage, ipv6: Passage, spoil: impl FnOnce(&mut Observed)) -> String {
    let stack = shop();
    let (policy, mut host) = host(&stack);
    spoil(&mut host);
    let way = |target: &str, passage| Way {
        target: target.parse().unwrap(),
        interface: "eth0".into(),
        passage,
        rules: Vec::new(),
    };
    let ways = [way("203.0.113.1", ipv4), way("2001:db8::1", ipv6)];
    shown(&from_outside(FromOutside {
        who: "the internet",
        port: tcp(port),
        ways: &ways,
        stack: Some(&stack),
        policy: Some(&policy),
        host: &host,
        unknown: &[],
    }))
}

fn local(port: u16) -> Passage {
    Passage::Local { port }
}

#[test]
fn a_published_port_is_followed_through_the_guard() {
    insta::assert_snapshot!(outside(8084, local(8084), local(8084), |_| {}));
}

#[test]
fn the_edge_is_told_with_what_it_is_for() {
    let ipv4 = Way {
        target: "203.0.113.1".parse().unwrap(),
        interface: "eth0".into(),
        passage: local(443),
        rules: Vec::new(),
    };
    let told = shown(&from_outside(FromOutside {
        who: "the internet",
        port: tcp(443),
        ways: &[ipv4],
        stack: Some(&crate::testing::stack_with_edge()),
        policy: None,
        host: &Observed::default(),
        unknown: &[],
    }));
    let line = "palisade-edge publishes it, from its port 8443/tcp: the edge for barter.example, admin.example, b.example and 2 more";
    assert!(told.contains(line), "{told}");
}

#[test]
fn a_private_port_is_not_for_packets_from_outside() {
    insta::assert_snapshot!(outside(5432, Passage::Stopped, Passage::Stopped, |_| {}));
    let open = outside(5432, local(5432), local(5432), |_| {});
    assert!(open.contains(": Unreachable\n") && open.contains("no: nobody listens on 5432/tcp"), "{open}");
}

#[test]
fn what_keeps_a_published_port_from_being_reached_is_told() {
    let stopped = outside(8084, Passage::Stopped, Passage::Stopped, |_| {});
    assert!(
        stopped.contains(": Unreachable\n") && stopped.contains("hint: Palisade's firewall table isn't"),
        "{stopped}"
    );
    let silent = outside(8084, local(8084), local(8084), |host| host.sockets.clear());
    assert!(
        silent.contains(": Unreachable\n") && silent.contains("app.1 runs, and doesn't listen on its port 8094/tcp"),
        "{silent}"
    );
    // A server that binds IPv4 only isn't published on IPv6.
    let ipv4 = outside(8084, local(8084), local(8084), |host| {
        host.sockets[0].local = "127.77.1.1:8094".parse().unwrap();
    });
    assert!(ipv4.starts_with("the internet → 8084/tcp of this host, over IPv4: Reachable\n"), "{ipv4}");
    assert!(ipv4.contains("no: the guard hands connections to service app: app.1 runs, and listens at 127.77.1.1:8094, which takes no IPv6"), "{ipv4}");
    assert!(ipv4.contains("hint: let the program listen on [::] inside"), "{ipv4}");
}

#[test]
fn ports_of_the_host_and_rewritten_ones_are_followed() {
    let ssh = outside(22, local(22), local(22), |_| {});
    assert!(ssh.starts_with("the internet → 22/tcp of this host, over IPv4: Reachable\n"), "{ssh}");
    assert!(
        ssh.contains("yes: sshd (process 2) listens at 0.0.0.0:22/tcp") && ssh.contains("nobody declared"),
        "{ssh}"
    );
    let led = outside(80, local(22), Passage::Stopped, |_| {});
    assert!(led.contains("rewrites them to port 22") && led.contains(": Reachable\n"), "{led}");
    let on = outside(80, Passage::Forwarded, Passage::Stopped, |_| {});
    assert!(on.contains(": Reachable\n") && on.contains("on to another address"), "{on}");
}

/// The answer about one service and a port of another.
fn peer(
    client: usize,
    server: usize,
    port: u16,
    tried: Option<Answer>,
    spoil: impl FnOnce(&mut Stack, &mut Policy, &mut Observed),
) -> String {
    let mut stack = shop();
    let (mut policy, mut host) = host(&stack);
    spoil(&mut stack, &mut policy, &mut host);
    let tried = tried.map(|answer| ("app.1".to_owned(), answer));
    shown(&from_peer(FromPeer {
        stack: &stack,
        policy: Some(&policy),
        host: &host,
        client: &stack.services[client],
        server: &stack.services[server],
        port: PortProto { port, proto: Proto::Tcp },
        tried: tried.as_ref(),
    }))
}

#[test]
fn a_peer_is_followed_to_its_listener() {
    insta::assert_snapshot!(peer(0, 1, 5432, Some(Answer::Reached), |_, _, _| {}));
}

#[test]
fn what_stands_between_peers_is_told() {
    let not_granted = peer(1, 0, 8094, Some(Answer::Refused), |_, _, _| {});
    insta::assert_snapshot!(not_granted);
    let apart = peer(0, 1, 5432, None, |stack, policy, _| {
        stack.services[1].networks = BTreeSet::from(["back".to_owned()]);
        policy.services[1].networks = 2;
    });
    assert!(
        apart.contains("no: they share no network: app is in default, db in back") && apart.contains("Unknown"),
        "{apart}"
    );
    let localhost = peer(0, 1, 5432, None, |_, _, host| {
        host.sockets[1].local = "127.205.2.1:5432".parse().unwrap();
    });
    assert!(localhost.contains("at its own localhost only") && localhost.contains("Unreachable"), "{localhost}");
    let stopped = peer(0, 1, 5432, None, |_, _, host| {
        host.instances[1].status.stopped = true;
        host.instances[1].status.state = RunState::Exited { code: 0 };
        host.sockets.clear();
    });
    assert!(stopped.contains("no: db.1 was stopped") && stopped.contains("Unreachable"), "{stopped}");
}

#[test]
fn the_guard_in_the_kernel_comes_before_the_file() {
    // The file allows it by now, and nobody has brought that up.
    let later = peer(0, 2, 80, None, |stack, _, host| {
        stack.services[0].connect = None;
        host.sockets.push(socket("127.77.3.1:80", SocketOwner::Instance(id("other"))));
    });
    assert!(
        later.contains("no: the guard in the kernel still refuses it") && later.contains("run `palisade up`"),
        "{later}"
    );
    let down = peer(0, 1, 5432, None, |_, _, host| host.guard = None);
    assert!(down.contains("Unknown") && down.contains("it isn't up"), "{down}");
    // What really happened is right, whatever was expected.
    let other = peer(0, 1, 5432, Some(Answer::NobodyListens), |_, _, _| {});
    assert!(other.contains("Unreachable") && other.contains("please report it"), "{other}");
}
