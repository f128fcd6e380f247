//! The attack kit, run as root inside the services of a rehearsal: each attack is expected to fail.
//!
//! The attacks are in `inside::attacks`; that each of them works where nobody guards is shown by the integration tests.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use palisade_core::finding::Finding;
use palisade_core::names::InstanceId;
use palisade_core::observed::Observed;
use palisade_core::prove::peer_expectations;
use palisade_core::stack::{Egress, Proto, Service, Stack};
use palisade_host::layout::Layout;
use palisade_host::runtime::{self, EnterOptions, Inside, THIS_PROGRAM};
use serde::Serialize;

use super::scene::{INTERFACE, Scene};
use crate::exit::Failure;
use crate::inside::attack::{Outcome, Report};
use crate::inside::stage::{Stage, StageSpec};
use crate::inside::targets::{Peer, Targets};
use crate::observe::pins;
use crate::proof;

/// The kit takes a few seconds; attacks that hang are ended by it.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What came of the attacks.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Attacks {
    /// From inside which services, and how many were tried there.
    pub(crate) tried: BTreeMap<String, usize>,
    /// How many were refused.
    pub(crate) refused: usize,
    /// What this kernel or this stack doesn't have, so that it can't be attacked.
    pub(crate) not_applicable: usize,
    /// How long it took.
    pub(crate) duration_ms: u64,
    /// What is wrong.
    pub(crate) findings: Vec<Finding>,
}

/// Attacks from inside the most exposed service and from inside the most confined one.
pub(crate) fn run(scene: &Scene, stack: &Stack, host: &Observed) -> Result<Attacks, Failure> {
    let began = Instant::now();
    let mut attacks = Attacks::default();
    let attackers = attackers(stack);
    let Some(first) = attackers.first().and_then(|service| host.addresses.address(&service.name)) else {
        return Ok(attacks);
    };
    let spec = StageSpec {
        host_netns: scene.host_path(),
        host_interface: INTERFACE.into(),
        internet_netns: scene.internet_path(),
        internet_interface: INTERFACE.into(),
        allowed: Vec::new(),
        private: Vec::new(),
        own_address: first.instance(1),
        egress_restricted: false,
        sibling: None,
        granted: None,
        granted_other_tcp_port: None,
        called_port: None,
        pins: Some(pins(&scene.layout)),
        files: vec![scene.layout.run(), scene.layout.lib()],
    };
    let stage = Stage::start(&spec).map_err(|error| Failure::new("can't set the stage for the attacks", error))?;
    for service in attackers {
        attack_from(&stage, &scene.layout, stack, host, service, &mut attacks)?;
    }
    attacks.duration_ms = began.elapsed().as_millis() as u64;
    Ok(attacks)
}

/// The published service that may reach most, and the one that may reach least: each closes what the other can't show.
fn attackers(stack: &Stack) -> Vec<&Service> {
    let freedom = |service: &&Service| {
        let egress = match &service.egress {
            Egress::All => 2,
            Egress::Only(_) => 1,
            Egress::None => 0,
        };
        (service.publish.len().min(1), egress)
    };
    let mut chosen: Vec<&Service> = stack.services.iter().max_by_key(freedom).into_iter().collect();
    chosen.extend(stack.services.iter().min_by_key(freedom).filter(|least| least.name != chosen[0].name));
    chosen
}

fn attack_from(
    stage: &Stage,
    layout: &Layout,
    stack: &Stack,
    host: &Observed,
    service: &Service,
    attacks: &mut Attacks,
) -> Result<(), Failure> {
    let id = InstanceId { service: service.name.clone(), number: 1 };
    let Some((running, spec)) = proof::running(layout, &id)? else {
        let message = "it doesn't run, so nothing could be attacked from inside it";
        attacks.findings.push(Finding::warning("attacker-away", &id, message));
        return Ok(());
    };
    let peer = |allowed: bool| {
        let expectations = peer_expectations(stack);
        let mut wanted = expectations
            .iter()
            .filter(|e| e.client == service.name && e.allowed == allowed && e.port.proto == Proto::Tcp);
        let expectation = wanted.next()?;
        let address = host.addresses.address(&expectation.server)?.instance(1);
        Some(Peer { address, tcp_port: Some(expectation.port.port), udp_port: None, tells_source: false })
    };
    // With a list, the internet of the scene is not on it: documentation addresses are nobody's.
    let restricted = service.egress != Egress::All;
    let targets = Targets {
        own_address: spec.address,
        sibling: peer(false),
        granted: peer(true),
        egress_restricted: restricted,
        ..stage.targets().clone()
    };
    let targets =
        serde_json::to_string(&targets).map_err(|error| Failure::new("can't write down the targets", error))?;
    let delivered_before = stage.delivered().len();
    let inside = Inside::Own(vec!["__attack".into(), targets]);
    let options = EnterOptions { timeout: TIMEOUT, output_bytes_max: 4 << 20, as_root: true };
    let result = runtime::enter(layout, &spec, &running, Path::new(THIS_PROGRAM), inside, options)
        .map_err(|error| Failure::new(format!("can't attack from inside {id}"), error))?;
    let text = String::from_utf8_lossy(&result.output);
    if result.code != Some(0) {
        return Err(Failure::plain(format!(
            "the attacks from inside {id} ended with {:?}: {}",
            result.code,
            text.trim()
        )));
    }
    for line in text.lines() {
        let report: Report = serde_json::from_str(line)
            .map_err(|error| Failure::new(format!("the attacks from inside {id} said: {line}"), error))?;
        *attacks.tried.entry(service.name.to_string()).or_default() += 1;
        match report.outcome {
            Outcome::Refused => attacks.refused += 1,
            Outcome::NotApplicable => attacks.not_applicable += 1,
            Outcome::Succeeded => attacks.findings.push(
                Finding::error("attack-succeeded", format!("{id}: {}", report.id), report.title).seen(report.evidence),
            ),
        }
    }
    // A datagram that arrived although its sender was told otherwise.
    for delivered in stage.delivered().split_off(delivered_before) {
        if delivered.contains("palisade-attack") && (restricted || delivered.starts_with("host")) {
            let message = "a datagram of an attack arrived where it must not";
            attacks.findings.push(Finding::error("attack-succeeded", &id, message).seen(delivered));
        }
    }
    Ok(())
}

/// For people.
pub(crate) fn text(attacks: &Attacks) -> String {
    let tried: usize = attacks.tried.values().sum();
    let from: Vec<_> = attacks.tried.keys().map(String::as_str).collect();
    format!(
        "Attacks as root inside {}, without any firewall: {tried} tried in {}.{} s, {} refused, {} with nothing to attack here, {} succeeded\n",
        from.join(" and "),
        attacks.duration_ms / 1_000,
        attacks.duration_ms % 1_000 / 100,
        attacks.refused,
        attacks.not_applicable,
        tried - attacks.refused - attacks.not_applicable,
    )
}
