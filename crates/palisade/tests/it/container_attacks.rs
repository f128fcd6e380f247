//! The attack kit as root inside containers of a Docker Engine: every attack fails, that succeeds in a container that
//! the same engine runs on the host's network without Palisade.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use palisade_guard::pin_root;
use palisade_host::link;
use serde_json::{Value, json};

use crate::attacks::{Helper, Outcomes, breaches, list, outcomes, show};
use crate::dockerd::{self, Dockerd};
use crate::need_root;
use crate::scratch::Host;
use crate::support::{PALISADE, skipped};

/// Busybox, this program and its libraries.
const IMAGE: &str = "attack:1";
const PLAIN: &str = "plain";
const SERVICES: [&str; 5] = ["sibling", "granted", "restricted", "open", "raw"];
const TCP_PORTS: [u16; 2] = [7001, 7101];
const UDP_PORT: u16 = 7002;
const OTHER_TCP_PORT: u16 = 7103;
const CALLED_PORT: u16 = 39_470;

/// In the file's order, which is that of the addresses.
fn address(service: &str) -> Ipv4Addr {
    let index = SERVICES.iter().position(|name| *name == service).unwrap();
    Ipv4Addr::new(127, 77, 1 + index as u8, 1)
}

/// Two services to attack, and two to attack from: as an image's root, with what a container has by default.
fn file() -> String {
    let sibling =
        json!({"address": address("sibling"), "tcp_ports": [TCP_PORTS[0]], "udp_ports": [UDP_PORT], "calls": null});
    let granted = json!({
        "address": address("granted"),
        "tcp_ports": [TCP_PORTS[1], OTHER_TCP_PORT],
        "udp_ports": [UDP_PORT],
        "calls": [address("sibling"), CALLED_PORT],
    });
    let peer = |spec: Value| {
        format!(
            "{{image: \"{IMAGE}\", stop_grace_period: 0s, environment: {{SPEC: '{spec}'}}, command: [sh, -c, '(echo \"$$SPEC\"; sleep 10000) | palisade __attack-peer']}}"
        )
    };
    let attacker = |own: &str, more: &str| {
        format!(
            "{{image: \"{IMAGE}\", stop_grace_period: 0s, command: [sleep, \"10000\"]{own}, x-palisade: {{connect: [\"granted:{}\", \"granted:{UDP_PORT}/udp\"]{more}}}}}",
            TCP_PORTS[1],
        )
    };
    format!(
        "name: shop\nservices:\n  sibling: {}\n  granted: {}\n  restricted: {}\n  open: {}\n  raw: {}\n",
        peer(sibling),
        peer(granted),
        attacker("", ", egress: [\"203.0.113.3/32\", \"2001:db8::3/128\"]"),
        attacker("", ""),
        attacker(", cap_add: [NET_RAW]", ", allow: {added-capability: it watches packets}"),
    )
}

/// Puts this program and what it is linked with on top of a root folder: `sh -ec PROGRAM sh PROGRAM ROOT`.
const PROGRAM: &str = r#"
cp "$1" "$2/bin/palisade"
for library in $(ldd "$1" | grep -o '/[^ ]* (0x' | cut -d' ' -f1 | sort -u); do
    mkdir -p "$2$(dirname "$library")"
    cp -L "$library" "$2$library"
done
# Places of every image, over which attacks try to mount.
for place in bin sbin lib share src include; do mkdir -p "$2/usr/local/$place"; done
"#;

fn make_image(engine: &Dockerd) {
    let root = engine.root();
    let status = Command::new("sh").args(["-ec", PROGRAM, "sh", PALISADE]).arg(&root).status().unwrap();
    assert!(status.success());
    engine.import(&root, IMAGE);
}

/// A process on the internet, by which others find the way there.
struct Stranger(Child);

impl Stranger {
    fn on(host: &Host) -> Self {
        let mut command = Command::new("sleep");
        command.arg("3600").stdin(Stdio::null()).stdout(Stdio::null());
        Self(host.internet.run(|| command.spawn().unwrap()).unwrap())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The host and the internet also speak IPv6.
fn add_ipv6(host: &Host) {
    link::add_address("eth0", "2001:db8::1".parse().unwrap(), 64).unwrap();
    host.internet.run(|| link::add_address("eth0", "2001:db8::2".parse().unwrap(), 64).unwrap()).unwrap();
}

struct Scene<'a> {
    host: &'a Host,
    engine: &'a Dockerd,
    stage: Helper,
    targets: Value,
}

impl<'a> Scene<'a> {
    fn new(host: &'a Host, engine: &'a Dockerd, stranger: &Stranger, attacker: &str) -> Self {
        let peer = |service: &str, tcp_port: u16| json!({"address": address(service), "tcp_port": tcp_port, "udp_port": UDP_PORT, "tells_source": true});
        let spec = json!({
            "host_netns": "/proc/self/ns/net",
            "host_interface": "eth0",
            "internet_netns": format!("/proc/{}/ns/net", stranger.0.id()),
            "internet_interface": "eth0",
            "allowed": ["203.0.113.3", "2001:db8::3"],
            "private": [],
            "own_address": address(attacker),
            "egress_restricted": attacker == "restricted",
            "sibling": peer("sibling", TCP_PORTS[0]),
            "granted": peer("granted", TCP_PORTS[1]),
            "granted_other_tcp_port": OTHER_TCP_PORT,
            "called_port": CALLED_PORT,
            "pins": pin_root(&host.layout.realm, &host.layout.realm_run()),
            "files": [host.layout.run(), host.layout.lib(), engine.folder()],
        });
        let (stage, targets) = Helper::start(Command::new(PALISADE).arg("__stage"), &spec);
        let mut targets: Value = serde_json::from_str(&targets).expect("the stage's targets");
        for socket in engine.control_sockets() {
            targets["unix_sockets"].as_array_mut().unwrap().push(json!(socket));
        }
        Self { host, engine, stage, targets }
    }

    /// Runs the kit by `docker ARGUMENTS palisade __attack …`.
    fn attack(&self, title: &str, arguments: &[&str]) -> Outcomes {
        let targets = self.targets.to_string();
        let said = self.engine.docker(&[arguments, &["palisade", "__attack", &targets]].concat());
        let outcomes = outcomes(said.unwrap_or_else(|error| panic!("{title}: {error}")).as_bytes());
        show(title, &outcomes);
        outcomes
    }

    /// What arrived where it must not: at the host or the internet, and at the service that wasn't given.
    fn arrived(self) -> (Vec<String>, Vec<String>) {
        let sibling = self.host.log("sibling");
        (serde_json::from_str(&self.stage.end()).unwrap(), sibling)
    }
}

fn is_of_attack(line: &&String) -> bool {
    line.contains("palisade-attack")
}

/// Images count on set-user-id programs and on capabilities of files, as `sudo` and web servers on port 80 do. What they
/// gain is bounded by the container's capabilities, which is an attack of its own.
const GRANTED: [&str; 1] = ["escape.new_privileges"];

/// How many lines a service has printed, once it prints nothing more.
fn settled(host: &Host, service: &str) -> usize {
    let mut before = host.log(service).len();
    loop {
        std::thread::sleep(Duration::from_secs(2));
        let now = host.log(service).len();
        if now == before {
            return now;
        }
        before = now;
    }
}

#[test]
fn attacks_that_succeed_in_a_plain_container_fail_under_palisade() {
    const TEST: &str = "container_attacks::attacks_that_succeed_in_a_plain_container_fail_under_palisade";
    need_root!("container_attacks::attacks_that_succeed_in_a_plain_container_fail_under_palisade");
    if let Some(why) = dockerd::missing() {
        return skipped(TEST, &why);
    }
    let host = Host::new();
    add_ipv6(&host);
    let stranger = Stranger::on(&host);
    let engine = match Dockerd::start(&host) {
        Ok(engine) => engine,
        Err(why) => return skipped(TEST, &format!("no Docker Engine can run here: {why}")),
    };
    make_image(&engine);
    host.write(&file());
    engine.palisade(&host, &["up", "--wait"]).expect(0);
    let ps = host.ps();
    for seen in ps["instances"].as_array().unwrap() {
        assert_eq!(seen["address"], json!(address(seen["service"].as_str().unwrap())), "{ps}");
    }
    for service in ["sibling", "granted"] {
        host.wait_for_line(service, "serving");
    }

    let mut controls = BTreeMap::new();
    for attacker in ["open", "restricted"] {
        let scene = Scene::new(&host, &engine, &stranger, attacker);
        let outcomes = scene.attack(attacker, &["run", "--rm", "--name", PLAIN, "--network", "host", IMAGE]);
        let (stage, sibling) = scene.arrived();
        assert!(stage.iter().any(|line| is_of_attack(&line)), "{stage:?}");
        assert!(sibling.iter().any(|line| is_of_attack(&line)), "{sibling:?}");
        controls.insert(attacker, outcomes);
    }
    for attacker in ["open", "restricted"] {
        let before = settled(&host, "sibling");
        let scene = Scene::new(&host, &engine, &stranger, attacker);
        let mut outcomes = scene.attack(attacker, &["exec", "--user", "0", &format!("shop-{attacker}-1")]);
        let (stage, sibling) = scene.arrived();
        outcomes.retain(|id, _| !GRANTED.contains(&id.as_str()));
        let found = breaches(&controls[attacker], &outcomes);
        let succeeded = |outcomes: &Outcomes| list(outcomes, |_, outcome, _| outcome == "succeeded").len();
        eprintln!(
            "{attacker}: {} of {} attacks succeed in a plain container, {} in a guarded one",
            succeeded(&controls[attacker]),
            controls[attacker].len(),
            succeeded(&outcomes),
        );
        assert!(found.is_empty(), "inside {attacker}:\n{}", found.join("\n"));
        let got: Vec<_> = sibling[before..].iter().filter(is_of_attack).collect();
        assert!(got.is_empty(), "the other service got datagrams: {got:?}");
        let bad = |line: &&String| is_of_attack(line) && (attacker == "restricted" || line.starts_with("host"));
        let got: Vec<_> = stage.iter().filter(bad).collect();
        assert!(got.is_empty(), "datagrams got there: {got:#?}");
    }
    // What the file grants is granted, and nothing beside it.
    let outcomes = Scene::new(&host, &engine, &stranger, "raw").attack("raw", &["exec", "--user", "0", "shop-raw-1"]);
    let succeeded = list(&outcomes, |id, outcome, _| outcome == "succeeded" && !GRANTED.contains(&id));
    // SO_MARK and IP_TRANSPARENT come with NET_RAW, the former since Linux 5.17.
    let granted = ["escape.capabilities", "kinds.packet_", "machine.mark", "machine.transparent"];
    let beyond: Vec<_> = succeeded.iter().filter(|line| !granted.iter().any(|id| line.starts_with(id))).collect();
    assert!(beyond.is_empty(), "{beyond:#?}");
    assert!(succeeded.iter().any(|line| line.starts_with("kinds.packet_raw")), "{succeeded:#?}");

    engine.palisade(&host, &["down", "--volumes", "--yes"]).expect(0);
    host.assert_nothing_left();
    assert_eq!(engine.end(), Vec::<String>::new());
}
