//! `prove`: what the file says about reachability, asked from the kernel with real packets.

use palisade_core::finding::{Finding, Severity};
use palisade_core::names::ServiceName;
use serde_json::json;
use std::collections::BTreeMap;

use crate::cli::{Format, StackArgs};
use crate::exit::{Answer, Failure};
use crate::proof::{self, Doors, Peers, Stranger};
use crate::{load, observe};

/// Proves a stack that is up.
pub(crate) fn run(args: &StackArgs, format: Format) -> Result<Answer, Failure> {
    let loaded = load::load(args).map_err(load::Unusable::into_failure)?;
    super::require_machine("prove")?;
    let stack = loaded.stack;
    let layout = args.layout(stack.project.clone());
    let host = observe::observe(&layout);
    if host.instances.is_empty() {
        return Err(Failure::plain(format!("{} isn't up, so there is nothing to prove", stack.project))
            .hint("`palisade up` brings it up; `palisade rehearse` proves it in a scratch namespace first"));
    }
    let doors = proof::doors(&layout, &stack, &host, &proof::external_interfaces()?)?;
    let peers = proof::peers(&layout, &stack, &host)?;
    match format {
        Format::Text => {
            print!("{}{}", doors_text(&doors), peers_text(&peers));
            println!("Not tried from here: real connections by a stranger. `palisade rehearse` does that.");
            print!("{}", findings_text([&doors.findings, &peers.findings]));
        }
        Format::Json => println!("{}", json!({ "version": 1, "stack": stack.project, "doors": doors, "peers": peers })),
    }
    Ok(verdict([&doors.findings, &peers.findings]))
}

/// No as soon as one finding is an error.
pub(crate) fn verdict<'a>(findings: impl IntoIterator<Item = &'a Vec<Finding>>) -> Answer {
    let bad = findings.into_iter().flatten().any(|finding| finding.severity == Severity::Error);
    if bad { Answer::No } else { Answer::Yes }
}

/// The doors for people.
pub(crate) fn doors_text(doors: &Doors) -> String {
    let mut text = format!(
        "Firewall, asked by {} packets from outside on {} in {} ms: {} of {} doors open\n",
        doors.packets,
        doors.interfaces.join(", "),
        doors.duration_ms,
        doors.open.len(),
        doors.tried
    );
    for (door, why) in &doors.open {
        text += &format!("  open      {door:<22} {why}\n");
    }
    for socket in &doors.reachable {
        text += &format!("  behind    {socket}\n");
    }
    for unknown in &doors.unknown {
        text += &format!("  unknown   {unknown}\n");
    }
    text
}

/// What a stranger got, for people.
pub(crate) fn stranger_text(stranger: &Stranger) -> String {
    let addresses: Vec<_> = stranger.addresses.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "A stranger at {}, {} packets to all 65,535 TCP ports in {} ms: {} answered\n",
        addresses.join(" and "),
        stranger.packets,
        stranger.duration_ms,
        stranger.open.len()
    );
    for (at, said) in &stranger.open {
        text += &format!("  answered  {at:<22} {said}\n");
    }
    for (socket, tried) in &stranger.unanswered {
        let tried: Vec<_> = tried.iter().map(ToString::to_string).collect();
        text += &format!("  silent    {socket:<22} at {}\n", tried.join(", "));
    }
    text
}

/// What services got from each other, for people: what works one by one, what was refused by client.
pub(crate) fn peers_text(peers: &Peers) -> String {
    let held = |allowed| peers.pairs.iter().filter(move |pair| pair.holds && pair.expectation.allowed == allowed);
    let mut text = format!(
        "Service to service, {} probes from inside in {} ms: {} reached as given, {} refused as not given\n",
        peers.pairs.len(),
        peers.duration_ms,
        held(true).count(),
        held(false).count()
    );
    for pair in held(true) {
        text += &format!("  reached   {:<34} {}\n", pair.expectation.to_string(), pair.expectation.because);
    }
    let mut refused: BTreeMap<&ServiceName, Vec<String>> = BTreeMap::new();
    for pair in held(false) {
        let target = format!("{}:{}", pair.expectation.server, pair.expectation.port);
        refused.entry(&pair.expectation.client).or_default().push(target);
    }
    for (client, targets) in refused {
        text += &format!("  refused   {client} → {}\n", targets.join(", "));
    }
    for pair in peers.pairs.iter().filter(|pair| !pair.holds) {
        text += &format!("  WRONG     {:<34} {}\n", pair.expectation.to_string(), pair.answer);
    }
    text
}

/// Everything that is wrong, for people; a line that nothing is otherwise.
pub(crate) fn findings_text<'a>(findings: impl IntoIterator<Item = &'a Vec<Finding>>) -> String {
    let all: Vec<_> = findings.into_iter().flatten().collect();
    if all.is_empty() {
        return "Everything is as the file says.\n".into();
    }
    all.iter().fold(String::new(), |text, finding| format!("{text}\n{finding}\n"))
}
