use super::*;
use crate::address::AddressBook;
use crate::compile::{Numbers, Surroundings, compile};
use crate::instance::InstanceStatus;
use crate::observed::{EngineState, FirewallSeen, GuardSeen};
use crate::policy::Mode;
use crate::stack::{BackendChoice, Volume};
use crate::testing::{AGENT, at, name, publish, service, stack, tcp};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// A stack with a database and a web server, and a host on which everything is as it says.
fn good() -> (Stack, Compiled, Observed) {
    let mut db = service("db");
    db.expose = vec![at(tcp(5432))];
    let mut web = service("web");
    web.publish = vec![publish(None, 80, 8080)];
    let stack = stack([db, web]);
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
    let compiled = compile(&stack, surroundings).unwrap();
    let mut host = Observed {
        agent: Some(AGENT),
        firewall: Some(FirewallSeen {
            digest: FirewallRules::of(&stack, &BTreeSet::new(), Backend::Nftables).map(|r| r.digest()),
        }),
        ..Observed::default()
    };
    let mut guard = GuardSeen { policy_digest: Some(compiled.policy_digest.clone()), ..GuardSeen::default() };
    for CompiledInstance { spec, fingerprint } in &compiled.instances {
        guard.attached.insert(spec.id.clone(), spec.address);
        host.instances.push(InstanceSeen {
            status: InstanceStatus {
                id: spec.id.clone(),
                address: spec.address,
                spec_digest: fingerprint.digest.clone(),
                state: RunState::Running,
                health: Health::None,
                pid: Some(7),
                restarts: 0,
                started_at_s: 0,
                health_output: None,
                hook_failure: None,
                stopped: false,
            },
            fingerprint: Some(fingerprint.clone()),
            hosts_digest: Some(spec.hosts.digest().to_owned()),
        });
    }
    host.guard = Some(guard);
    host.sockets = vec![
        socket("127.77.1.1:5432", SocketOwner::Instance(id("db"))),
        socket("127.205.1.1:5433", SocketOwner::Instance(id("db"))),
        socket("[::ffff:127.77.2.1]:8080", SocketOwner::Instance(id("web"))),
        socket("0.0.0.0:80", SocketOwner::Instance(id("web"))),
        socket("[::]:80", SocketOwner::Instance(id("web"))),
        socket("0.0.0.0:22", SocketOwner::Process { pid: 2, command: "sshd".into() }),
        socket("127.77.9.1:80", SocketOwner::OtherStack("blog/web.1".into())),
    ];
    (stack, compiled, host)
}

fn id(service: &str) -> InstanceId {
    InstanceId { service: name(service), number: 1 }
}

fn socket(local: &str, owner: SocketOwner) -> SocketSeen {
    SocketSeen { proto: Proto::Tcp, local: local.parse().unwrap(), v6_only: false, uid: 0, inode: 1, owner }
}

/// Ids of the findings after one thing was spoilt on a good host.
fn after(spoil: impl FnOnce(&mut Observed)) -> Vec<&'static str> {
    let (stack, compiled, mut host) = good();
    spoil(&mut host);
    verify(&stack, &compiled, &host).iter().map(|finding| finding.id).collect()
}

#[test]
fn a_good_host_has_no_findings() {
    assert_eq!(after(|_| {}), [""; 0]);
}

#[test]
fn each_thing_that_can_be_wrong_has_its_finding() {
    let state = |state: RunState| after(|host| host.instances[0].status.state = state);
    assert_eq!(state(RunState::Exited { code: 3 }), ["instance-exited"]);
    assert_eq!(state(RunState::Exited { code: 0 }), [""; 0], "a job that is done");
    assert_eq!(state(RunState::BackingOff), ["instance-crashing"]);
    assert_eq!(after(|host| host.instances[0].status.health = Health::Unhealthy), ["instance-unhealthy"]);
    assert_eq!(after(|host| drop(host.instances.pop())), ["instance-missing"]);
    assert_eq!(after(|host| host.instances[0].status.spec_digest = "old".into()), ["instance-outdated"]);
    assert_eq!(after(|host| host.agent = None), ["agent-away"]);
    assert_eq!(after(|host| host.guard = None), ["guard-missing"]);
    let detached = after(|host| host.guard.as_mut().unwrap().attached.retain(|id, _| id.service != name("db")));
    assert_eq!(detached, ["guard-detached"]);
    assert_eq!(after(|host| host.guard.as_mut().unwrap().policy_digest = None), ["policy-differs"]);
    assert_eq!(after(|host| host.firewall = None), ["firewall-differs"]);
    assert_eq!(after(|host| host.firewall_at_boot = Some("the unit is gone".to_owned())), ["firewall-at-boot"]);
    let by_ufw = after(|host| host.firewall_runs = Backend::Ufw);
    assert_eq!(by_ufw, ["firewall-differs"], "the table was made for a host without ufw");
    let mut stubborn = stack([service("web")]);
    stubborn.firewall.backend = BackendChoice::Nftables;
    let (mut findings, host) = (Vec::new(), Observed { firewall_runs: Backend::Firewalld, ..Observed::default() });
    firewall(&stubborn, &host, &mut findings);
    assert_eq!(findings.iter().map(|finding| finding.id).collect::<Vec<_>>(), ["two-firewalls", "firewall-differs"]);
    stubborn.firewall.backend = BackendChoice::Auto;
    stubborn.services[0].publish = vec![publish(None, 80, 8080)];
    let (mut findings, foreign_drops) = (Vec::new(), vec!["inet filter input".to_owned()]);
    firewall(&stubborn, &Observed { foreign_drops, ..Observed::default() }, &mut findings);
    assert_eq!(findings[0].id, "foreign-firewall");
    let rules = FirewallRules::of(&stubborn, &BTreeSet::new(), Backend::Ufw).unwrap();
    let digest = Some(rules.digest());
    let (firewall_runs, shut_by_ufw) = (Backend::Ufw, rules.doors());
    let host = Observed { firewall_runs, shut_by_ufw, firewall: Some(FirewallSeen { digest }), ..Observed::default() };
    let mut findings = Vec::new();
    firewall(&stubborn, &host, &mut findings);
    let said: Vec<_> = findings.iter().map(ToString::to_string).collect();
    assert!(said.len() == 1 && said[0].contains("run `ufw allow 80/tcp`"), "{said:?}");
    assert_eq!(after(|host| host.firewall = Some(FirewallSeen { digest: None })), ["firewall-differs"]);
    assert_eq!(after(|host| host.kernel.route_localnet.push("eth0".into())), ["route-localnet"]);
    assert_eq!(after(|host| host.kernel.unix_hooks = Some(false)), ["abstract-unix"]);
    assert_eq!(after(|host| host.unknown.push("sockets' owners: not root".into())), ["not-observed"]);
}

#[test]
fn a_socket_is_allowed_only_where_the_file_puts_it() {
    let with = |local: &str, owner: SocketOwner| after(|host| host.sockets.push(socket(local, owner)));
    let db = || SocketOwner::Instance(id("db"));
    assert_eq!(with("0.0.0.0:5432", db()), ["listener-misplaced"]);
    assert_eq!(with("[::]:5432", db()), ["listener-misplaced"]);
    assert_eq!(with("127.77.2.1:5432", db()), ["listener-misplaced"], "a sibling's address");
    assert_eq!(with("127.0.0.1:5432", db()), ["listener-misplaced"]);
    assert_eq!(with("[fd70:616c:6973:6164::7f4d:101]:5432", db()), [""; 0]);
    assert_eq!(with("0.0.0.0:8080", SocketOwner::Instance(id("web"))), ["listener-misplaced"]);
    assert_eq!(with("0.0.0.0:45000", db()), ["listener-unbound"], "no bind leads there");
    let udp = |port: u16| SocketSeen {
        proto: Proto::Udp,
        local: ([0, 0, 0, 0], port).into(),
        ..socket("0.0.0.0:1", SocketOwner::Instance(id("db")))
    };
    assert_eq!(after(|host| host.sockets.push(udp(40_000))), [""; 0], "a client of a name server");
    let nobody = || SocketOwner::Process { pid: 9, command: "nc".into() };
    for squatted in ["127.77.1.1:80", "127.127.254.9:80", "127.205.1.1:80", "127.64.0.1:1", "[::ffff:127.77.1.1]:80"] {
        assert_eq!(with(squatted, nobody()), ["address-squatted"], "{squatted}");
    }
    for free in ["127.0.0.1:80", "127.63.255.255:80", "127.128.0.1:80", "127.191.0.1:80", "[fd70:616c::1]:80"] {
        assert_eq!(with(free, nobody()), [""; 0], "{free}");
    }
}

#[test]
fn a_finding_reads_well() {
    let (stack, compiled, mut host) = good();
    host.sockets.push(socket("0.0.0.0:5432", SocketOwner::Instance(id("db"))));
    insta::assert_snapshot!(verify(&stack, &compiled, &host)[0], @r"
    error[listener-misplaced]: db.1: it listens where the file doesn't let it
      seen: tcp 0.0.0.0:5432 held by instance db.1
      hint: restart it with `palisade up`; if it comes back, the guard has a hole: please report it
    ");
}
