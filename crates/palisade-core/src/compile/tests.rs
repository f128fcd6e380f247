use super::*;
use crate::policy::EgressPolicy;
use crate::stack::{Dns, Egress, EgressRule, Unguarded};
use crate::testing::{at, grant, name, publish, service, stack, tcp};

fn compiled(stack: &Stack) -> Result<Compiled, Vec<Finding>> {
    let names = stack.services.iter().map(|service| &service.name);
    let addresses = AddressBook::default().assign(names, &BTreeSet::new()).unwrap();
    compile(
        stack,
        Surroundings {
            addresses: &addresses,
            resolvers: &[],
            mode: Mode::Enforce,
            volume_path: &|name, _| PathBuf::from("/volumes").join(name),
            files: None,
            engine: &EngineState::NotAsked,
            numbers: Numbers::FIRST,
            own: None,
        },
    )
}

fn hosts(compiled: &Compiled, service: &str) -> Vec<String> {
    let instance = compiled.instances.iter().find(|i| i.spec.id.service == name(service)).unwrap();
    instance.spec.hosts.iter().map(|(host, ip)| format!("{host}={ip}")).collect()
}

#[test]
fn names_resolve_for_those_who_may_connect() {
    let mut app = service("app");
    app.connect = Some(vec![grant("db", Some(5432))]);
    let mut db = service("db");
    db.aliases.insert("postgres".into());
    let cache = service("cache");
    let mut lonely = service("lonely");
    lonely.networks.clear();
    lonely.extra_hosts.push(("registry".into(), "192.0.2.9".parse().unwrap()));
    let compiled = compiled(&stack([app, db, cache, lonely])).unwrap();
    assert_eq!(hosts(&compiled, "app"), ["app=127.77.1.0", "db=127.77.2.0", "postgres=127.77.2.0"]);
    assert_eq!(hosts(&compiled, "db"), ["app=127.77.1.0", "db=127.77.2.0", "postgres=127.77.2.0", "cache=127.77.3.0"]);
    assert_eq!(hosts(&compiled, "lonely"), ["lonely=127.77.4.0", "registry=192.0.2.9"]);
}

#[test]
fn a_link_names_whom_one_may_reach_for_its_own_service_only() {
    let link = |to: &str, alias: &str| at(crate::stack::Link { service: name(to), alias: alias.into() });
    let mut app = service("app");
    app.links = vec![link("db", "database"), link("db", "db")];
    let compiled_one = compiled(&stack([app.clone(), service("db")])).unwrap();
    assert_eq!(hosts(&compiled_one, "app"), ["app=127.77.1.0", "db=127.77.2.0", "database=127.77.2.0"]);
    assert_eq!(hosts(&compiled_one, "db"), ["app=127.77.1.0", "db=127.77.2.0"]);
    let mut db = service("db");
    db.networks = BTreeSet::from(["back".into()]);
    let ids = |stack| compiled(&stack).unwrap_err().iter().map(|f| f.message.clone()).collect::<Vec<_>>();
    let far = ids(stack([app.clone(), db]));
    assert_eq!(far, ["it is linked to db, which it can't reach: they share no network"; 2]);
    app.connect = Some(Vec::new());
    assert!(ids(stack([app, service("db")]))[0].ends_with("its x-palisade.connect doesn't have it"));
}

#[test]
fn a_name_server_of_its_own_is_let_through_or_refused_with_what_to_do() {
    let with = |egress: Egress, servers: &[&str], change: &dyn Fn(&mut Service)| {
        let mut app = service("app");
        app.egress = egress;
        let servers = servers.iter().map(|server| server.parse().unwrap()).collect();
        app.settings.dns = Some(Dns { servers, ..Dns::default() });
        change(&mut app);
        match compiled(&stack([app])) {
            Ok(compiled) => {
                let servers = compiled.policy.services[0].resolvers.iter().map(ToString::to_string);
                servers.collect::<Vec<_>>().join(" ")
            }
            Err(findings) => findings.iter().filter_map(|f| f.remedy.clone()).collect::<Vec<_>>().join("; "),
        }
    };
    let rule = |port, prefix_len| {
        let network = "192.0.2.0".parse().unwrap();
        Egress::Only(vec![at(EgressRule { network, prefix_len, port, proto: None })])
    };
    let nothing = |_: &mut Service| {};
    // Also one that is link-local, as clouds have it, or an address of the host.
    assert_eq!(with(Egress::All, &["169.254.169.253", "192.0.2.53"], &nothing), "169.254.169.253 192.0.2.53");
    let hint = "add \"192.0.2.53/32:53\" to x-palisade.egress, or take `dns` away";
    assert_eq!(with(Egress::None, &["192.0.2.53"], &nothing), hint);
    assert_eq!(with(rule(Some(443), 24), &["192.0.2.53"], &nothing), hint);
    assert_eq!(with(rule(Some(53), 24), &["192.0.2.53"], &nothing), "192.0.2.53");
    assert_eq!(with(rule(None, 28), &["192.0.2.53"], &nothing), hint);
    assert!(with(Egress::None, &["2001:db8::53"], &nothing).starts_with("add \"[2001:db8::53]/128:53\""));
    assert_eq!(with(Egress::None, &[], &nothing), "", "search and options alone need nobody");
    assert!(with(Egress::All, &["127.0.0.1"], &nothing).contains("expose"));
    assert_eq!(with(Egress::All, &["127.0.0.1"], &|app| app.expose = vec![at(tcp(53))]), "");
    assert_eq!(with(Egress::All, &["127.0.0.1"], &|app| app.host_mode = true), "127.0.0.1");
    assert_eq!(with(Egress::None, &["127.0.0.1"], &|app| app.host_ports = vec![at(53)]), "");
    let isolated = |app: &mut Service| app.networks.clear();
    assert!(with(Egress::All, &["192.0.2.53"], &isolated).contains("network_mode none"));
}

#[test]
fn without_networks_nothing_is_reached() {
    let mut lonely = service("lonely");
    lonely.networks.clear();
    let policy = compiled(&stack([lonely, service("app")])).unwrap().policy;
    assert_eq!((policy.services[0].networks, &policy.services[0].egress), (0, &EgressPolicy::None));
}

#[test]
fn a_volume_that_is_a_path_and_a_swap_limit_alone_are_refused() {
    let mut app = service("app");
    app.limits.memory_swap_bytes = Some(1);
    let mut stack = stack([app]);
    stack.volumes.insert("data".into(), Volume { name: Some("../../etc".into()), external: true });
    let findings = compiled(&stack).unwrap_err();
    assert_eq!(findings.iter().map(|f| f.id).collect::<Vec<_>>(), ["volume-name", "swap-limit"]);
}

#[test]
fn a_grant_across_networks_gives_no_name() {
    let mut app = service("app");
    app.connect = Some(vec![grant("db", None)]);
    let mut db = service("db");
    db.networks = BTreeSet::from(["back".into()]);
    let compiled = compiled(&stack([app, db])).unwrap();
    assert_eq!(hosts(&compiled, "app"), ["app=127.77.1.0"]);
    assert_eq!(compiled.policy.services[0].networks & compiled.policy.services[1].networks, 0);
}

/// `(port, server)` of the service's localhost table.
fn localhost(stack: &Stack, service: &str) -> Vec<(u16, Option<String>)> {
    let compiled = compiled(stack).unwrap();
    let policy = compiled.policy.services.iter().find(|s| s.name == name(service)).unwrap();
    policy.localhost.iter().map(|l| (l.port.port, l.server.map(|server| server.to_string()))).collect()
}

#[test]
fn localhost_means_the_one_reachable_service_that_has_the_port() {
    let with_port = |text: &str, ports: &[u16]| {
        let mut service = service(text);
        service.expose = ports.iter().map(|port| at(tcp(*port))).collect();
        service
    };
    let mut app = with_port("app", &[80]);
    app.host_mode = true;
    let stack_of = |app: Service| {
        stack([app, with_port("a", &[80, 5432]), with_port("b", &[6379, 9000]), with_port("c", &[9000])])
    };
    let db = Some("127.77.2.0".to_owned());
    let redis = Some("127.77.3.0".to_owned());
    let all = stack_of(app.clone());
    assert_eq!(localhost(&all, "app"), [(5432, db.clone()), (6379, redis.clone()), (9000, None)]);
    assert_eq!(localhost(&all, "a"), [], "only with network_mode: host");
    let mut narrow = app.clone();
    narrow.connect = Some(vec![grant("a", None), grant("b", Some(9000))]);
    assert_eq!(localhost(&stack_of(narrow), "app"), [(5432, db), (9000, redis)]);
}

#[test]
fn three_holders_stay_ambiguous_for_each_other() {
    let services = ["a", "b", "c", "d"].map(|text| {
        let mut service = service(text);
        service.host_mode = true;
        if text != "d" {
            service.expose = vec![at(tcp(80))];
        }
        service
    });
    let stack = stack(services);
    assert_eq!(localhost(&stack, "c"), []);
    assert_eq!(localhost(&stack, "d"), [(80, None)]);
}

#[test]
fn a_published_port_is_bound_where_it_is_published_and_an_exposed_one_stays_private() {
    let mut web = service("web");
    web.expose = vec![at(tcp(8094)), at(tcp(9100))];
    web.publish = vec![publish(None, 8084, 8094)];
    let policy = compiled(&stack([web])).unwrap().policy;
    let binds: Vec<_> =
        policy.services[0].binds.iter().map(|b| (b.container.port, b.published.map(|p| p.host_port))).collect();
    assert_eq!(binds, [(8094, Some(8084)), (9100, None)]);
}

#[test]
fn what_the_guard_can_not_hold_is_refused_unless_a_reason_accepts_it() {
    let breach = |risk: &str, accepted: Option<&str>| {
        at(Unguarded {
            risk: risk.to_owned(),
            could: "it is privileged".to_owned(),
            accepted: accepted.map(str::to_owned),
        })
    };
    let mut agent = service("agent");
    agent.unguarded = vec![breach("privileged", None), breach("engine-socket", Some("it is the log shipper"))];
    let findings = compiled(&stack([agent.clone()])).unwrap_err();
    let text = findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert_eq!(
        text,
        "error[beyond-the-guard]: agent: it is privileged, so the guard can't hold it\n  --> compose.yaml:12:5\n  \
         hint: remove it, or accept it with a reason: `x-palisade: {allow: [{id: privileged, reason: \"…\"}]}`"
    );
    agent.unguarded.remove(0);
    assert!(compiled(&stack([agent])).is_ok());
}

#[test]
fn every_objection_is_reported_at_once() {
    let mut image = service("image");
    image.run.process = None;
    let mut web = service("web");
    web.replicas = 2;
    web.publish = vec![publish(None, 80, 80)];
    assert!(compiled(&stack([web.clone()])).is_ok(), "a TCP port can be shared");
    web.publish[0].value.container.proto = Proto::Udp;
    let findings = compiled(&stack([image, web])).unwrap_err();
    assert_eq!(findings.iter().map(|f| f.id).collect::<Vec<_>>(), ["nothing-to-run", "published-replicas"]);
}

#[test]
fn a_flat_network_shares_one_hosts_table() {
    let compiled = compiled(&stack((0..50).map(|n| service(&format!("s{n}"))))).unwrap();
    let first = compiled.instances[0].spec.hosts.as_ptr();
    assert!(compiled.instances.iter().all(|instance| std::ptr::eq(instance.spec.hosts.as_ptr(), first)));
}
