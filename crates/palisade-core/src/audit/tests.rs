use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::facts::{
    ContainerFacts, Doors, EngineFacts, EngineOption, FirewallService, Listener, Owner, Process, Reboot, World,
    WorldKind,
};
use super::*;
use crate::port_set::PortSet;
use crate::prove::Family;
use crate::stack::{PortProto, Proto};

const SOURCES: [&str; 2] = ["203.0.113.250", "2001:db8::250"];

fn ports(ports: &[u16]) -> PortSet {
    ports.iter().copied().collect()
}

/// The internet, for which these TCP ports are open over IPv4 and over IPv6.
fn internet(v4: &[u16], v6: &[u16]) -> World {
    let doors = |target: &str, open: &[u16]| Doors {
        target: target.parse().unwrap(),
        proto: Proto::Tcp,
        local: ports(open),
        redirected: BTreeSet::new(),
        forwarded: PortSet::default(),
    };
    let rule_for = Door { family: Family::V6, port: PortProto { port: 5432, proto: Proto::Tcp } };
    World {
        name: "the internet".into(),
        kind: WorldKind::Internet,
        interface: "eth0".into(),
        sources: SOURCES.map(|ip| Some(ip.parse().unwrap())),
        rules: BTreeMap::from([(rule_for, "table inet filter, chain input: tcp dport 5432 accept".to_owned())]),
        doors: vec![doors("203.0.113.1", v4), doors("2001:db8::1", v6)],
        packets: 0,
    }
}

fn listener(local: &str, program: &str) -> Listener {
    let process = Some(Process { pid: 7, name: program.into() });
    let owner = Owner { process, ..Owner::default() };
    Listener { proto: Proto::Tcp, local: local.parse().unwrap(), v6_only: false, interface: None, owner }
}

fn host(listeners: &[(&str, &str)], world: World) -> Facts {
    let listeners = listeners.iter().map(|(local, program)| listener(local, program)).collect();
    Facts { host: "web1".into(), listeners, worlds: vec![world], ..Facts::default() }
}

fn told(audit: &Audit) -> Vec<String> {
    audit.findings.iter().map(|it| format!("{:?} {} {}", it.severity, it.id, it.subject)).collect()
}

fn declaring(open: &[u16]) -> Declared {
    let door = |port: &u16| {
        let port = PortProto { port: *port, proto: Proto::Tcp };
        [Family::V4, Family::V6].map(|family| (Door { family, port }, "published".to_owned()))
    };
    Declared { doors: open.iter().flat_map(door).collect::<BTreeMap<_, _>>() }
}

#[test]
fn a_service_that_is_reached_over_one_family_only_is_reached() {
    let v6_only = host(&[("[::]:5432", "postgres")], internet(&[], &[5432]));
    let audit = audit(&v6_only, None);
    assert_eq!(told(&audit), ["Error internal-exposed 5432/tcp", "Warning ipv6-wider eth0"]);
    assert_eq!(audit.findings[0].message, "PostgreSQL can be reached from the internet over IPv6 (postgres)");
    assert_eq!(
        audit.findings[0].evidence,
        [
            "tcp [::]:5432 held by postgres, process 7",
            "a packet from 2001:db8::250 to 2001:db8::1 port 5432/tcp that came in by eth0 was let through",
            "let through over IPv6 by table inet filter, chain input: tcp dport 5432 accept",
        ]
    );
}

#[test]
fn neighbours_are_fewer_than_everybody() {
    let mut world = internet(&[5432], &[5432]);
    (world.kind, world.name) = (WorldKind::Network, "the network on eth1".into());
    let facts = host(&[("0.0.0.0:5432", "postgres"), ("[::]:5432", "postgres")], world);
    assert_eq!(told(&audit(&facts, None)), ["Warning internal-exposed 5432/tcp"]);
}

#[test]
fn what_is_declared_may_be_reached_and_nothing_else() {
    let facts = host(
        &[("[::]:80", "nginx"), ("[::]:22", "sshd"), ("[::]:8081", "app")],
        internet(&[22, 80, 443, 8081], &[22, 80, 443, 8081]),
    );
    assert_eq!(
        told(&audit(&facts, None)),
        [
            "Warning port-unknown 8081/tcp",
            "Warning door-without-listener 443/tcp over IPv4 by eth0",
            "Warning door-without-listener 443/tcp over IPv6 by eth0"
        ]
    );
    let of = |declared: &[u16]| told(&audit(&facts, Some(&declaring(declared))));
    assert_eq!(of(&[22, 80, 443, 8081]), [""; 0]);
    assert_eq!(of(&[22, 443, 8081]), ["Error port-undeclared 80/tcp"]);
}

#[test]
fn a_socket_of_one_interface_is_not_reached_by_another() {
    let mut facts = host(&[("0.0.0.0:5432", "postgres")], internet(&[5432], &[]));
    facts.listeners[0].interface = Some("eth1".into());
    let told = told(&audit(&facts, None));
    assert_eq!(told, ["Warning door-without-listener 5432/tcp over IPv4 by eth0", "Warning only-firewall 5432/tcp"]);
}

#[test]
fn redirected_ports_lead_to_their_listener() {
    let mut world = internet(&[], &[]);
    world.doors[0].redirected.insert((80, 5432));
    let audit = audit(&host(&[("127.0.0.1:5432", "postgres")], world), None);
    assert_eq!(told(&audit), ["Error internal-exposed 5432/tcp"]);
    assert_eq!(audit.ports[0].outside, BTreeSet::from([80]));
}

#[test]
fn published_ports_of_containers_are_theirs_and_pass_ufw_by() {
    let mut world = internet(&[], &[]);
    world.doors[0].forwarded = ports(&[15432, 9999]);
    let mut facts = host(&[], world);
    let published = vec![(Proto::Tcp, "0.0.0.0:15432".parse::<SocketAddr>().unwrap())];
    let container = ContainerFacts {
        name: "shop-db-1".into(),
        image: "postgres:16".into(),
        user: "999".into(),
        network_mode: "bridge".into(),
        published,
        ..ContainerFacts::default()
    };
    facts.engine = Some(EngineFacts { containers: vec![container], ..EngineFacts::default() });
    facts.firewalls =
        vec![FirewallService { name: "ufw".into(), active: true, at_boot: Some(true), ..FirewallService::default() }];
    let audit = audit(&facts, None);
    assert_eq!(
        told(&audit),
        [
            "Error internal-exposed 15432/tcp",
            "Error published-past-ufw 15432/tcp",
            "Error published-past-ufw 9999/tcp",
            "Warning port-forwarded 9999/tcp",
        ]
    );
    assert!(audit.findings[0].remedy.as_ref().unwrap().contains("127.0.0.1:15432:…"), "{:?}", audit.findings[0]);
    // What ufw's user lets in anyway isn't past it.
    facts.firewalls[0].lets_in.insert(PortProto { port: 9999, proto: Proto::Tcp });
    let told = told(&super::audit(&facts, None));
    assert!(told.contains(&"Error published-past-ufw 15432/tcp".to_owned()), "{told:?}");
    assert!(!told.contains(&"Error published-past-ufw 9999/tcp".to_owned()), "{told:?}");
}

#[test]
fn a_firewall_is_missed_by_who_has_meant_it() {
    let service = |name: &str, active, at_boot| FirewallService {
        name: name.into(),
        active,
        at_boot,
        ..FirewallService::default()
    };
    let of = |firewalls: Vec<FirewallService>| told(&audit(&Facts { firewalls, ..Facts::default() }, None));
    assert_eq!(of(vec![service("firewalld", false, None)]), ["Error firewall-not-running firewalld"]);
    assert_eq!(of(vec![service("ufw", false, Some(true))]), ["Error firewall-not-running ufw"]);
    assert_eq!(of(vec![service("ufw", false, Some(false))]), ["Note firewall-not-running ufw"]);
    let by_hand = service("nftables", true, None);
    assert_eq!(of(vec![service("firewalld", false, None), by_hand]), [""; 0]);
}

#[test]
fn containers_are_judged_by_what_they_may_do_to_the_host() {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let container = |name: &str| ContainerFacts {
        name: name.into(),
        image: "app:1".into(),
        user: "app".into(),
        network_mode: "shop_default".into(),
        ..ContainerFacts::default()
    };
    let engine = EngineFacts {
        options: vec![
            EngineOption { key: "iptables".into(), value: false.into(), from: "/etc/docker/daemon.json".into() },
            EngineOption {
                key: "dns".into(),
                value: serde_json::json!(["9.9.9.9"]),
                from: "/etc/docker/daemon.json".into(),
            },
        ],
        containers: vec![
            container("fine"),
            ContainerFacts { privileged: true, logs_grow: true, ..container("power") },
            ContainerFacts { cap_add: set(&["NET_ADMIN", "CHOWN"]), ..container("admin") },
            ContainerFacts { network_mode: "host".into(), ..container("hosted") },
            ContainerFacts { network_mode: "host".into(), cap_drop: set(&["ALL"]), ours: true, ..container("guarded") },
            ContainerFacts {
                mounts: BTreeMap::from([("/var/run/docker.sock".into(), false), ("/etc".into(), false)]),
                ..container("watch")
            },
            ContainerFacts { user: String::new(), host_namespaces: set(&["pid"]), ..container("root\u{1b}[2J") },
        ],
        ..EngineFacts::default()
    };
    let facts = Facts { engine: Some(engine), ..Facts::default() };
    assert_eq!(
        told(&audit(&facts, None)),
        [
            "Error container-privileged power",
            "Error container-engine-socket watch",
            "Warning engine-without-rules iptables",
            "Warning container-host-files watch /etc",
            "Warning container-capability admin",
            "Warning container-capability hosted",
            "Warning container-host-namespace hosted",
            "Warning container-host-namespace root\\u{1b}[2J",
            "Warning container-logs power",
            "Note engine-pinned-dns dns",
            "Note container-root root\\u{1b}[2J",
        ]
    );
}

#[test]
fn an_engine_that_anybody_of_the_host_may_command_is_told() {
    let facts = host(&[("127.0.0.1:2375", "dockerd"), ("0.0.0.0:2376", "dockerd")], internet(&[2376], &[]));
    let listening = told(&audit(&facts, None));
    assert_eq!(listening, ["Error engine-api-exposed 2376/tcp", "Warning engine-api-local 2375/tcp"]);
    let verifies_tls = Facts { engine: Some(EngineFacts { verifies_tls: true, ..EngineFacts::default() }), ..facts };
    assert_eq!(told(&audit(&verifies_tls, None)), [""; 0]);
}

#[test]
fn settings_of_the_kernel_and_of_ssh_are_told_with_their_remedy() {
    let mut facts = host(&[], internet(&[], &[]));
    let settings = [
        ("net.ipv4.conf.all.route_localnet", "1"),
        ("net.ipv4.conf.eth0.route_localnet", "0"),
        ("net.ipv4.conf.all.rp_filter", "0"),
        ("net.ipv4.conf.eth0.rp_filter", "2"),
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv4.conf.eth0.accept_redirects", "1"),
        ("kernel.unprivileged_bpf_disabled", "2"),
    ];
    facts.settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    facts.loopback_addresses = ["127.0.0.1", "127.77.1.1", "::1", "10.9.9.9"].map(|ip| ip.parse().unwrap()).into();
    let ssh = [("permitrootlogin", "yes"), ("passwordauthentication", "yes")];
    facts.sshd = Some(ssh.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
    facts.firewalls = vec![FirewallService {
        name: "firewalld".into(),
        active: true,
        at_boot: Some(false),
        differences: vec!["zone public: ports: 5432/tcp".into()],
        ..FirewallService::default()
    }];
    facts.reboot = Reboot::Due("/run/reboot-required is there".into());
    assert_eq!(
        told(&audit(&facts, None)),
        [
            "Error kernel-route-localnet eth0",
            "Error ssh-root-password sshd",
            "Warning firewall-not-at-boot firewalld",
            "Warning firewall-files-differ firewalld",
            "Warning kernel-forwarding net.ipv4.ip_forward",
            "Warning loopback-address 10.9.9.9",
            "Warning reboot-pending reboot",
        ]
    );
    facts.sshd.as_mut().unwrap().insert("permitrootlogin".into(), "prohibit-password".into());
    assert!(told(&audit(&facts, None)).contains(&"Note ssh-password sshd".to_owned()));
}

#[test]
fn a_host_without_a_firewall_is_one_finding_for_each_family() {
    let all: Vec<u16> = (1..=u16::MAX).collect();
    let facts = host(&[("127.0.0.1:5432", "postgres")], internet(&all, &[]));
    let audit = audit(&facts, None);
    assert_eq!(told(&audit), ["Error firewall-open IPv4 by eth0"]);
    assert!(audit.ports[0].is_local());
}
