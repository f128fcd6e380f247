//! `rehearse`: the stack on a scratch host with the real adapters, proven by real packets, then taken away.
//!
//! Nothing of this machine is changed: the scratch host and its internet are network namespaces of their own.

mod attacks;
mod edge;
pub(crate) mod scene;
mod unprivileged;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use palisade_core::finding::Finding;
use palisade_core::lockout::Confirm;
use palisade_core::policy::Mode;
use palisade_core::stack::{BackendChoice, Stack};
use palisade_host::firewall::Firewall;
use palisade_host::layout::Layout;
use palisade_host::volumes;
use serde::Serialize;

use crate::cli::{Format, StackArgs};
use crate::commands::prove::{doors_text, findings_text, peers_text, stranger_text, verdict};
use crate::commands::{self, down, up};
use crate::exit::{Answer, Failure, NOTHING_LEFT};
use crate::proof::{self, Doors, Peers, Stranger};
use crate::{load, observe, signals};
use attacks::Attacks;
use scene::Scene;

/// Everything that a rehearsal found out.
#[derive(Debug, Serialize)]
struct Report {
    version: u32,
    stack: String,
    up_ms: u64,
    doors: Doors,
    stranger: Stranger,
    /// The same stranger while the firewall is away: what the guard holds alone.
    without_firewall: Stranger,
    peers: Peers,
    /// If the stack has an edge.
    #[serde(skip_serializing_if = "Option::is_none")]
    edge: Option<edge::Served>,
    attacks: Attacks,
}

impl Report {
    fn findings(&self) -> Vec<&Vec<Finding>> {
        let Self { doors, stranger, without_firewall, peers, edge, attacks, .. } = self;
        let edge = edge.iter().map(|edge| &edge.findings);
        let others =
            [&doors.findings, &stranger.findings, &without_firewall.findings, &peers.findings, &attacks.findings];
        others.into_iter().chain(edge).collect()
    }
}

/// Rehearses the stack of the file.
pub(crate) fn run(args: &StackArgs, format: Format) -> Result<Answer, Failure> {
    let loaded = load::load_to_start(args).map_err(load::Unusable::into_failure)?;
    loaded.print_warnings();
    if !nix::unistd::geteuid().is_root() {
        return unprivileged::rehearse(&loaded.stack);
    }
    commands::require_machine("rehearse")?;
    signals::catch();
    let stack = loaded.stack;
    let scene = Scene::build(stack.project.clone())?;
    let result = play(&scene, &stack);
    let left = scene.clear();
    let report = match (result, left.is_empty()) {
        (Ok(report), true) => report,
        (Err(failure), true) => return Err(failure),
        (Ok(_), false) => {
            return Err(Failure::plain(format!("the rehearsal left something behind: {}", left.join("; "))));
        }
        (Err(failure), false) => {
            return Err(left.iter().fold(failure, |f, left| f.hint(format!("left behind: {left}"))));
        }
    };
    match format {
        Format::Text => print!("{}", text(&report)),
        Format::Json => {
            let json = serde_json::to_string(&report).map_err(|error| Failure::new("can't write the report", error))?;
            println!("{json}");
        }
    }
    Ok(verdict(report.findings()))
}

fn uninterrupted() -> Result<(), Failure> {
    if signals::interrupted() { Err(Failure::Interrupted { left: Vec::new(), undone: NOTHING_LEFT }) } else { Ok(()) }
}

fn play(scene: &Scene, stack: &Stack) -> Result<Report, Failure> {
    let layout = &scene.layout;
    // The scratch host runs no firewall of its own.
    let mut stack = palisade_core::edge::rehearsed(stack.clone());
    if stack.firewall.backend != BackendChoice::None {
        stack.firewall.backend = BackendChoice::Auto;
    }
    let stack = &stack;
    make_external_volumes(layout, stack)?;
    let began = Instant::now();
    eprintln!("The scratch host is ready; bringing {} up on it", stack.project);
    if up::bring_up(
        layout,
        &up::Goal { wait: true, confirm: Some(Confirm::Never), ..up::Goal::of(stack, Mode::Enforce) },
    )? == Answer::No
    {
        return Err(Failure::plain("the stack came up, but not as the file says: see the findings above"));
    }
    let up_ms = began.elapsed().as_millis() as u64;
    uninterrupted()?;
    eprintln!("Proving it with real packets");
    let host = observe::observe(layout);
    let doors = proof::doors(layout, stack, &host, &[scene::INTERFACE.to_owned()])?;
    uninterrupted()?;
    let knock = || scene.internet.run(|| proof::stranger(stack, &host, &scene::HOST));
    let outside = |error| Failure::new("can't send packets from the scratch internet", error);
    let stranger = knock().map_err(outside)??;
    let peers = proof::peers(layout, stack, &host)?;
    uninterrupted()?;
    let edge = scene.internet.run(|| edge::ask(layout, stack)).map_err(outside)?;
    uninterrupted()?;
    let (without_firewall, attacks) = without_firewall(layout, || {
        let stranger = knock().map_err(outside)??;
        uninterrupted()?;
        eprintln!("Attacking it from inside");
        Ok((stranger, attacks::run(scene, stack, &host)?))
    })?;
    uninterrupted()?;
    eprintln!("Taking it down");
    down::take_down(layout, true, &|_| true)?;
    Ok(Report {
        version: 1,
        stack: stack.project.to_string(),
        up_ms,
        doors,
        stranger,
        without_firewall,
        peers,
        edge,
        attacks,
    })
}

/// The scratch host has none of the real one's volumes: those that belong to somebody else are empty ones. They go
/// with the scratch host.
fn make_external_volumes(layout: &Layout, stack: &Stack) -> Result<(), Failure> {
    for (key, volume) in stack.volumes.iter().filter(|(_, volume)| volume.external) {
        let folder = volumes::folder(layout, key, volume);
        let made = std::fs::create_dir_all(&folder);
        made.map_err(|error| Failure::new(format!("can't make {} for the rehearsal", folder.display()), error))?;
        eprintln!("The external volume {key} is an empty one in the rehearsal");
    }
    Ok(())
}

/// Does something while the scratch host has no firewall, and puts it back.
fn without_firewall<T>(layout: &Layout, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let firewall = Firewall::new(&layout.realm);
    let failed = |error| Failure::new("can't take the scratch host's firewall away and put it back", error);
    let before = firewall.snapshot().map_err(failed)?;
    firewall.remove(layout.project.as_str(), &BTreeSet::new()).map_err(failed)?;
    let result = work();
    firewall.restore(&before).map_err(failed)?;
    result
}

fn text(report: &Report) -> String {
    let addresses = |all: &[IpAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    let mut text = format!(
        "Rehearsal of {} on a scratch host with {}\nUp and healthy after {}.{} s\n\n",
        report.stack,
        addresses(&scene::HOST),
        report.up_ms / 1_000,
        report.up_ms % 1_000 / 100
    );
    text += &doors_text(&report.doors);
    text += &stranger_text(&report.stranger);
    let open: Vec<_> = report.without_firewall.open.keys().map(String::as_str).collect();
    text += &format!(
        "The same stranger without any firewall: {} answered ({}), all {} others stayed silent\n",
        open.len(),
        open.join(", "),
        report.without_firewall.unanswered.len()
    );
    text += &peers_text(&report.peers);
    text += &report.edge.as_ref().map_or_else(String::new, edge::text);
    text += &attacks::text(&report.attacks);
    text += "Cleared: namespaces, cgroups, pins, processes, volumes and logs of the rehearsal are gone\n\n";
    let wrong = report.findings().into_iter().any(|findings| !findings.is_empty());
    match report.edge.iter().any(|edge| !edge.not_tried.is_empty()) {
        true if !wrong => text + "Everything that was tried is as the file says.\n",
        _ => text + &findings_text(report.findings()),
    }
}
