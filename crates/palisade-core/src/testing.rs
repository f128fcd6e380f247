//! Stacks built by hand for the tests of this crate. Compiled for tests only.

use std::collections::{BTreeMap, BTreeSet};

use crate::edge::{
    CertificateSource, ConnectionLimits, DRAIN_MS, Edge, Rate, Route, TlsVersion, Upstream, UpstreamProtocol,
    with_services,
};
use crate::environment::Environment;
use crate::names::{ProjectName, ServiceName};
use crate::observed::AgentSeen;
use crate::place::{Place, Placed};
use crate::stack::*;

/// An agent of the version that looks.
pub(crate) const AGENT: AgentSeen = AgentSeen { pid: 1, other_version: false };

pub(crate) fn name(text: &str) -> ServiceName {
    ServiceName::parse(text).unwrap()
}

pub(crate) fn at<T>(value: T) -> Placed<T> {
    Placed { value, place: place() }
}

pub(crate) fn place() -> Place {
    Place { file: "compose.yaml".into(), line: 12, column: 5 }
}

pub(crate) fn tcp(port: u16) -> PortProto {
    PortProto { port, proto: Proto::Tcp }
}

pub(crate) fn publish(host_ip: Option<&str>, host_port: u16, container: u16) -> Placed<Publish> {
    at(Publish { host_ip: host_ip.map(|ip| ip.parse().unwrap()), host_port, container: tcp(container) })
}

pub(crate) fn grant(service: &str, port: Option<u16>) -> Placed<Grant> {
    at(Grant { service: name(service), port: port.map(tcp) })
}

pub(crate) fn depends(service: &str, condition: Condition) -> Placed<Dependency> {
    at(Dependency { service: name(service), condition, restart: false, required: true })
}

pub(crate) fn healthcheck() -> Healthcheck {
    Healthcheck {
        test: HealthTest::Command(vec!["true".into()]),
        interval_ms: 1_000,
        timeout_ms: 2_000,
        retries: 3,
        start_period_ms: 5_000,
        start_interval_ms: 500,
    }
}

pub(crate) fn service(text: &str) -> Service {
    Service {
        name: name(text),
        place: place(),
        replicas: 1,
        run: Run {
            container: None,
            process: Some(Process {
                command: vec![format!("/usr/bin/{text}")],
                user: None,
                working_dir: None,
                own: false,
            }),
            runtime: RuntimeChoice::Auto,
        },
        environment: Environment::default(),
        networks: BTreeSet::from(["default".to_owned()]),
        aliases: BTreeSet::new(),
        host_mode: false,
        expose: Vec::new(),
        publish: Vec::new(),
        connect: None,
        strict: false,
        egress: Egress::All,
        host_ports: Vec::new(),
        depends_on: Vec::new(),
        healthcheck: None,
        healthcheck_disabled: false,
        healthcheck_times: Default::default(),
        restart: Restart::No,
        limits: Limits::default(),
        stop_signal: "SIGTERM".into(),
        stop_grace_ms: 10_000,
        mounts: Vec::new(),
        extra_hosts: Vec::new(),
        log: LogRotation::default(),
        cap_add: BTreeSet::new(),
        cap_drop: BTreeSet::new(),
        read_only: false,
        unguarded: Vec::new(),
        links: Vec::new(),
        files: Vec::new(),
        settings: ProcessSettings::default(),
        update: None,
        rollback: None,
    }
}

/// An edge that serves `barter.example` from app's port 8081, as a file without anything else says it.
pub(crate) fn edge() -> Edge {
    let route = Route {
        domains: vec!["barter.example".into()],
        path: "/".into(),
        to: Upstream { service: name("app"), port: 8081 },
        protocol: UpstreamProtocol::default(),
        rate: Some(Rate { milli_per_s: 10_000, burst: 20 }),
        connections_per_client: None,
        allow: Vec::new(),
        deny: Vec::new(),
        ban: None,
        body_bytes_max: 10 << 20,
        upstream_timeout_ms: 60_000,
        compress: BTreeSet::new(),
        hsts: None,
    };
    Edge {
        routes: vec![at(route)],
        http_port: 80,
        https_port: 443,
        redirect: true,
        certificates: BTreeMap::from([("barter.example".into(), CertificateSource::Local)]),
        default_domain: None,
        acme: None,
        tls_minimum: TlsVersion::default(),
        trusted_proxies: Vec::new(),
        proxy_protocol: false,
        http3: false,
        access_log: None,
        error_pages: None,
        limits: ConnectionLimits::default(),
        drain_ms: DRAIN_MS,
    }
}

/// A stack with app behind an edge that has more than one route, and the service that stands for it.
pub(crate) fn stack_with_edge() -> Stack {
    let mut app = service("app");
    app.expose = vec![at(tcp(8081))];
    let mut edge = edge();
    let mut admin = edge.routes[0].value.clone();
    admin.domains = ["admin", "b", "c", "d"].map(|name| format!("{name}.example")).into();
    admin.path = "/private".into();
    admin.allow = vec!["192.0.2.0/24".parse().unwrap()];
    admin.deny = vec!["192.0.2.7".parse().unwrap()];
    edge.routes.push(at(admin));
    edge.http3 = true;
    with_services(Stack { edge: Some(edge), ..stack([app]) })
}

pub(crate) fn stack(services: impl IntoIterator<Item = Service>) -> Stack {
    Stack {
        project: ProjectName::parse("shop").unwrap(),
        services: services.into_iter().collect(),
        volumes: BTreeMap::new(),
        firewall: Firewall::default(),
        edge: None,
    }
}

/// What the first instance of a service of this name is started with.
pub(crate) fn spec(text: &str) -> crate::instance::InstanceSpec {
    let service = service(text);
    crate::instance::InstanceSpec {
        project: ProjectName::parse("shop").unwrap(),
        id: crate::names::InstanceId { service: service.name, number: 1 },
        address: crate::address::ServiceIndex(0).address().unwrap().instance(1),
        program: crate::instance::Program::Process(service.run.process.unwrap()),
        environment: service.environment,
        hosts: Default::default(),
        mounts: Vec::new(),
        limits: service.limits,
        stop_signal: service.stop_signal,
        stop_grace_ms: service.stop_grace_ms,
        restart: service.restart,
        healthcheck: service.healthcheck,
        log: service.log,
        cap_add: service.cap_add,
        cap_drop: service.cap_drop,
        read_only: service.read_only,
        files: Vec::new(),
        settings: service.settings,
        published: Vec::new(),
        own_program: None,
    }
}
