//! The attack kit: every attack fails inside a service, and succeeds outside of one, or it would prove nothing.
//!
//! Runs in namespaces of its own: a "host" with services, and an "internet" from which somebody keeps knocking. There
//! is no firewall on that host.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use palisade_core::address::{InstanceAddress, ServiceIndex};
use palisade_core::instance::CgroupDriver;
use palisade_core::names::{InstanceId, ServiceName};
use palisade_core::policy::{EgressPolicy, Mode, PeerGrant, Policy, ServicePolicy};
use palisade_core::stack::{EgressRule, PortProto, Proto};
use palisade_guard::{Guard, mount_bpffs, pin_root, unmount_bpffs};
use palisade_host::cgroup::Cgroup;
use palisade_host::netns::Netns;
use palisade_host::runtime::{self, EnterOptions, Found, Inside};
use serde_json::{Value, json};

use crate::need_root;
use crate::support::{PALISADE, Realm, eventually};

const SIBLING: u16 = 0;
const GRANTED: u16 = 1;
/// May reach one address of the internet.
const RESTRICTED: u16 = 2;
/// May reach all of it.
const OPEN: u16 = 3;
/// Of the sibling and of the granted service: without a guard they share what isn't bound to one address.
const TCP_PORTS: [u16; 2] = [7001, 7101];
const UDP_PORT: u16 = 7002;
const OTHER_TCP_PORT: u16 = 7103;
const CALLED_PORT: u16 = 39_470;

/// What this kernel can't do at all; none of it may be missing by accident.
const MAY_BE_MISSING: [&str; 10] = [
    "kinds.sctp",
    "kinds.dccp",
    "kinds.smc",
    "kinds.tipc",
    "kinds.crypto",
    "kinds.other_families",
    "kinds.x32_socket",
    "machine.module",
    "machine.kexec",
    "machine.io_ports",
];

fn instance(index: u16) -> InstanceAddress {
    ServiceIndex(index).address().unwrap().instance(1)
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new("timeout").args(["10", program]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A "host" and an "internet", joined by a pair of interfaces.
struct Network {
    host: String,
    internet: String,
}

impl Network {
    fn new(realm: &Realm, name: &str) -> Self {
        let network = Self {
            host: format!("{}-{name}-h", realm.layout.realm),
            internet: format!("{}-{name}-i", realm.layout.realm),
        };
        for namespace in [&network.host, &network.internet] {
            run("ip", &["netns", "add", namespace]);
            // Addresses are usable at once.
            let accept = "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad; ip link set lo up";
            run("nsenter", &[&format!("--net=/run/netns/{namespace}"), "sh", "-c", accept]);
        }
        run(
            "ip",
            &["-n", &network.host, "link", "add", "out0", "type", "veth", "peer", "in0", "netns", &network.internet],
        );
        for (namespace, device, number) in [(&network.host, "out0", 1), (&network.internet, "in0", 2)] {
            run(
                "ip",
                &["-n", namespace, "address", "add", &format!("203.0.113.{number}/24"), "brd", "+", "dev", device],
            );
            run("ip", &["-n", namespace, "address", "add", &format!("2001:db8::{number}/64"), "dev", device, "nodad"]);
            run("ip", &["-n", namespace, "link", "set", device, "up"]);
        }
        // The kernel makes it when it gets to it, after both ends are up.
        eventually("a link-local address", || {
            let show = ["-n", &network.host, "-6", "-o", "address", "show", "dev", "out0", "scope", "link"];
            let output = Command::new("ip").args(show).output().unwrap();
            (!output.stdout.is_empty()).then_some(())
        });
        network
    }
    fn path(&self) -> String {
        format!("/run/netns/{}", self.host)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in [&self.host, &self.internet] {
            let _ = Command::new("timeout").args(["10", "ip", "netns", "del", namespace]).status();
        }
    }
}

/// A helper process that lives until its standard input ends.
pub(crate) struct Helper {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Helper {
    /// Starts it, hands it one line and returns the line that it answers.
    pub(crate) fn start(command: &mut Command, line: &Value) -> (Self, String) {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "{line}").unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut answer = String::new();
        output.read_line(&mut answer).unwrap();
        (Self { child, input: Some(input), output }, answer)
    }
    /// Ends it and returns the rest of what it said.
    pub(crate) fn end(mut self) -> String {
        self.input = None;
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        rest
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.input = None;
        // It takes away what it made, unless it hangs.
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the namespace, and in the cgroup if there is one.
fn command(network: &Network, cgroup: Option<&Path>, program: &[&str]) -> Command {
    let script = match cgroup {
        Some(_) => "echo 0 > \"$1/cgroup.procs\" && shift && exec \"$@\"",
        None => "shift; exec \"$@\"",
    };
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(cgroup.unwrap_or(Path::new("/")));
    command.args(["nsenter", &format!("--net={}", network.path())]).args(program);
    command
}

/// The stage and the two peers of one run.
struct Scene {
    network: Network,
    stage: Helper,
    sibling: Helper,
    _granted: Helper,
    targets: Value,
}

impl Scene {
    fn new(realm: &Realm, name: &str, attacker: u16, cgroups: Option<&[PathBuf]>, pins: &Path) -> Self {
        let network = Network::new(realm, name);
        let peer = |index: u16| {
            let tcp_port = TCP_PORTS[usize::from(index)];
            json!({"address": instance(index), "tcp_port": tcp_port, "udp_port": UDP_PORT, "tells_source": true})
        };
        let run = realm.layout.run();
        let private = [SIBLING, GRANTED, attacker].map(|index| instance(index).ipv6());
        let spec = json!({
            "host_netns": network.path(),
            "host_interface": "out0",
            "internet_netns": format!("/run/netns/{}", network.internet),
            "internet_interface": "in0",
            "allowed": ["203.0.113.3", "2001:db8::3"],
            "private": private,
            "own_address": instance(attacker),
            "egress_restricted": attacker == RESTRICTED,
            "sibling": peer(SIBLING),
            "granted": peer(GRANTED),
            "granted_other_tcp_port": OTHER_TCP_PORT,
            "called_port": CALLED_PORT,
            "pins": pins,
            "files": [run],
        });
        let (stage, targets) = Helper::start(Command::new(PALISADE).arg("__stage"), &spec);
        let targets: Value = serde_json::from_str(&targets).expect("the stage's targets");
        let serve = |index: u16, spec: Value| {
            let cgroup = cgroups.map(|all| all[usize::from(index)].as_path());
            let (helper, said) = Helper::start(&mut command(&network, cgroup, &[PALISADE, "__attack-peer"]), &spec);
            assert_eq!(said, "serving\n");
            helper
        };
        let calls = json!([instance(SIBLING), CALLED_PORT]);
        let sibling = serve(
            SIBLING,
            json!({"address": instance(SIBLING), "tcp_ports": [TCP_PORTS[0]], "udp_ports": [UDP_PORT], "calls": null}),
        );
        let ports = [TCP_PORTS[1], OTHER_TCP_PORT];
        let granted = serve(
            GRANTED,
            json!({"address": instance(GRANTED), "tcp_ports": ports, "udp_ports": [UDP_PORT], "calls": calls}),
        );
        Self { network, stage, sibling, _granted: granted, targets }
    }
    /// Every address by which the host is reached from itself.
    fn host_addresses(&self) -> Vec<IpAddr> {
        let host = &self.targets["host"];
        let listed = host["addresses"].as_array().unwrap().iter().chain([&host["broadcast"]]);
        let mut addresses: Vec<IpAddr> = listed.map(|ip| ip.as_str().unwrap().parse().unwrap()).collect();
        let link_local = host["link_local"].as_str().expect("a link-local address");
        let bare = link_local.trim_start_matches('[').split(['%', ']']).next().unwrap();
        addresses.push(bare.parse().unwrap());
        addresses
    }
    fn targets(&self, layers: &[&str]) -> String {
        let mut targets = self.targets.clone();
        targets["layers"] = json!(layers);
        targets.to_string()
    }
    /// What arrived where it must not.
    fn arrived(self) -> (String, String) {
        (self.stage.end(), self.sibling.end())
    }
}

/// Outcome and evidence of each attack.
pub(crate) type Outcomes = BTreeMap<String, (String, String)>;

pub(crate) fn outcomes(output: &[u8]) -> Outcomes {
    let text = String::from_utf8_lossy(output);
    let lines =
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("not a report: {line}")));
    let word = |report: &Value, key: &str| report[key].as_str().unwrap().to_owned();
    lines.map(|report| (word(&report, "id"), (word(&report, "outcome"), word(&report, "evidence")))).collect()
}

fn attack(network: &Network, cgroup: Option<&Path>, targets: &str) -> Outcomes {
    // In mounts of its own, so that even an attack that goes wrong leaves the machine's alone.
    let program = ["timeout", "120", "unshare", "--mount", "--propagation", "private", PALISADE, "__attack", targets];
    let output = command(network, cgroup, &program).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    outcomes(&output.stdout)
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

fn policy() -> Policy {
    let server = ServiceIndex(GRANTED).address().unwrap();
    let grant = |port, proto| PeerGrant { server, port: Some(PortProto { port, proto }) };
    let only = |ip: &str, prefix_len| EgressRule { network: ip.parse().unwrap(), prefix_len, port: None, proto: None };
    let mut attacker = service("restricted", RESTRICTED);
    attacker.connect = Some(vec![grant(TCP_PORTS[1], Proto::Tcp), grant(UDP_PORT, Proto::Udp)]);
    let mut open = service("open", OPEN);
    open.connect = attacker.connect.clone();
    attacker.egress = EgressPolicy::Only(vec![only("203.0.113.3", 32), only("2001:db8::3", 128)]);
    let services = vec![service("sibling", SIBLING), service("granted", GRANTED), attacker, open];
    Policy { mode: Mode::Enforce, services, resolvers: vec![] }
}

/// Cgroups, pins and the loaded guard; taken down in order.
struct Guarded {
    guard: Guard,
    cgroups: Vec<PathBuf>,
    ids: Vec<InstanceId>,
    _pins: Pins,
}

struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = Guard::remove(&self.0.join("stack"));
        let _ = unmount_bpffs(&self.0);
    }
}

fn guarded(realm: &Realm) -> Guarded {
    let root = pin_root(&realm.layout.realm, &realm.layout.realm_run());
    mount_bpffs(&root).unwrap();
    let pins = Pins(root);
    let guard = Guard::load(&pins.0.join("stack")).unwrap_or_else(|error| panic!("{error}"));
    let (mut cgroups, mut ids) = (vec![], vec![]);
    for (index, name) in ["sibling", "granted", "restricted", "open"].into_iter().enumerate() {
        let id = InstanceId { service: ServiceName::parse(name).unwrap(), number: 1 };
        let cgroup = Cgroup::made_by(&realm.layout, &id, CgroupDriver::Cgroupfs).unwrap();
        cgroup.create().unwrap();
        guard.attach(&cgroup.v2_path(), instance(index as u16)).unwrap();
        cgroups.push(cgroup.v2_path());
        ids.push(id);
    }
    guard.set_policy(&policy()).unwrap();
    Guarded { guard, cgroups, ids, _pins: pins }
}

pub(crate) fn list(outcomes: &Outcomes, wanted: impl Fn(&str, &str, &str) -> bool) -> Vec<String> {
    let chosen = outcomes.iter().filter(|(id, (outcome, evidence))| wanted(id, outcome, evidence));
    chosen.map(|(id, (outcome, evidence))| format!("{id}: {outcome}: {evidence}")).collect()
}

/// What must not have happened under guard, compared with what happens without.
pub(crate) fn breaches(control: &Outcomes, guarded: &Outcomes) -> Vec<String> {
    let mut found = list(guarded, |id, outcome, evidence| match outcome {
        "refused" => false,
        "succeeded" => true,
        // A filter that denies a socket family answers as a kernel without it does.
        _ => {
            let denied = evidence.contains("EAFNOSUPPORT") || evidence.contains("ENOSYS");
            let applied = control.get(id).is_some_and(|(outcome, _)| outcome == "succeeded");
            applied && !denied
        }
    });
    if guarded.len() < 50 {
        found.push(format!("only {} attacks were tried", guarded.len()));
    }
    found
}

pub(crate) fn show(title: &str, outcomes: &Outcomes) {
    if std::env::var_os("PALISADE_ATTACKS_SHOW").is_some() {
        eprintln!("== {title}\n{}", list(outcomes, |_, _, _| true).join("\n"));
    }
}

/// Attacks that fail without a guard, so that it proves nothing when they fail with one.
fn unproven(control: &Outcomes) -> Vec<String> {
    list(control, |id, outcome, _| match outcome {
        "succeeded" => false,
        "not_applicable" => !MAY_BE_MISSING.contains(&id),
        _ => true,
    })
}

#[test]
fn attacks_succeed_on_an_unguarded_host_and_fail_inside_a_service() {
    need_root!("attacks_succeed_on_an_unguarded_host_and_fail_inside_a_service");
    let realm = Realm::new();
    let guarded = guarded(&realm);
    let pins = &guarded._pins.0.join("stack");

    // Some attacks need a service that may reach the internet, others one that may not.
    let mut controls = BTreeMap::new();
    let mut control = Outcomes::new();
    // What a busy machine keeps from succeeding in time gets another chance: without a guard nothing else does.
    for (name, attacker) in [("co", OPEN), ("cr", RESTRICTED), ("co2", OPEN), ("cr2", RESTRICTED)] {
        if name.ends_with('2') && unproven(&control).is_empty() {
            break;
        }
        let scene = Scene::new(&realm, name, attacker, None, pins);
        let outcomes = attack(&scene.network, None, &scene.targets(&[]));
        show(name, &outcomes);
        let (stage, sibling) = scene.arrived();
        assert!(stage.contains("palisade-attack") && sibling.contains("palisade-attack"), "{stage}\n{sibling}");
        controls.entry(attacker).or_insert_with(|| outcomes.clone());
        for (id, outcome) in outcomes {
            let before = control.get(&id).map_or("", |(outcome, _)| outcome);
            if before != "succeeded" {
                control.insert(id, outcome);
            }
        }
    }
    let unproven = unproven(&control);
    assert!(unproven.is_empty(), "these prove nothing, they fail without a guard:\n{}", unproven.join("\n"));

    for (name, attacker) in [("r", RESTRICTED), ("o", OPEN)] {
        let scene = Scene::new(&realm, name, attacker, Some(&guarded.cgroups), pins);
        guarded.guard.set_host_addresses(&scene.host_addresses()).unwrap();
        let cgroup = guarded.cgroups[usize::from(attacker)].as_path();
        let outcomes = attack(&scene.network, Some(cgroup), &scene.targets(&["guard", "either"]));
        show(name, &outcomes);
        let found = breaches(&controls[&attacker], &outcomes);
        let (stage, sibling) = scene.arrived();
        assert!(found.is_empty(), "under guard ({name}):\n{}", found.join("\n"));
        assert!(!sibling.contains("palisade-attack"), "the other service got datagrams:\n{sibling}");
        let reached: Vec<String> = serde_json::from_str(&stage).unwrap();
        let bad: Vec<_> = reached
            .iter()
            .filter(|line| line.contains("palisade-attack") && (attacker == RESTRICTED || line.starts_with("host")))
            .collect();
        assert!(bad.is_empty(), "datagrams got there: {bad:#?}");
    }

    // The whole: guard, namespaces, capabilities, filter; as root inside a service that the runtime started.
    let scene = Scene::new(&realm, "w", RESTRICTED, Some(&guarded.cgroups), pins);
    guarded.guard.set_host_addresses(&scene.host_addresses()).unwrap();
    let id = &guarded.ids[usize::from(RESTRICTED)];
    let mut spec = realm.command(id.service.as_str(), &["sleep", "300"]);
    spec.address = instance(RESTRICTED);
    let namespace = Netns::open(&scene.network.host).unwrap();
    let _entered = namespace.enter().unwrap();
    let running = match runtime::start(&realm.layout, &spec, Path::new(PALISADE)) {
        Ok(Found::Running(running)) => running,
        other => panic!("not running: {other:?}\n{}", realm.log(&spec)),
    };
    let inside = Inside::Own(vec!["__attack".into(), scene.targets(&[])]);
    let options = EnterOptions { timeout: Duration::from_secs(120), output_bytes_max: 1 << 20, as_root: true };
    let result = runtime::enter(&realm.layout, &spec, &running, Path::new(PALISADE), inside, options).unwrap();
    assert_eq!(result.code, Some(0), "{}", String::from_utf8_lossy(&result.output));
    let outcomes = outcomes(&result.output);
    show("whole", &outcomes);
    let found = breaches(&controls[&RESTRICTED], &outcomes);
    assert!(found.is_empty(), "inside a service:\n{}", found.join("\n"));
    assert_eq!(outcomes.len(), control.len());
    runtime::stop(&realm.layout, &spec, &running).unwrap();
}
