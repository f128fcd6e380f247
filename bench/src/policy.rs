//! What a decision costs by the size of the policy, and how long loading and attaching take.

use anyhow::{Context, Result, bail};
use palisade_guard::Guard;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::Options;
use crate::bpf::{self, Program};
use crate::data_path::{figures_of, per_second};
use crate::report::{duration, table};
use crate::scratch::Scratch;
use crate::stats::median;
use crate::world::{Background, LOAD_PORT, Netns, Seat, flat_policy, instance, narrowed_policy};

const SIZES: [u16; 3] = [3, 100, 1000];
/// In a narrowed stack every service was given so many peers.
const PEERS: u16 = 10;
const CONNECTIONS: u64 = 4_000;
const TIMEOUT_S: u32 = 60;

pub(crate) fn measure(options: &Options, scratch: &Scratch) -> Result<String> {
    Ok(format!("{}\n{}", decisions(options, scratch)?, preparation(options, scratch)?))
}

/// Connects to one peer, and to every service of the stack in turn, so that each look-up is of another entry, and in
/// a large stack of one that no cache holds. One process answers for all of them: it is not guarded, so it can listen on
/// every private address of its namespace.
fn decisions(options: &Options, scratch: &Scratch) -> Result<String> {
    let netns = Netns::new()?;
    let pins = scratch.pins("policy")?;
    let seat =
        |name: &str| -> Result<Seat> { Ok(Seat::Process { netns: netns.path(), cgroup: scratch.cgroup(name)? }) };
    let (server, client) = (seat("policy-server")?, seat("policy-client")?);
    let client_cgroup = scratch.cgroup("policy-client")?;
    let guard = netns.inside(|| {
        let guard = Guard::load(&pins)?;
        guard.attach(&client_cgroup, instance(1))?;
        Ok(guard)
    })?;
    let program = |name: &str| Program::open(&pins.join("programs").join(name));
    let programs = [
        ("socket", program("guard_sock_create")?),
        ("connect", program("guard_connect4")?),
        ("receive", program("guard_ingress")?),
    ];
    let same = targets(scratch, 1)?;
    let mut found: BTreeMap<(u16, &str), BTreeMap<&str, Vec<f64>>> = BTreeMap::new();
    let count = ((CONNECTIONS as f64 * options.scale) as u64).max(100);
    for _ in 0..options.rounds {
        for size in SIZES {
            let targets = targets(scratch, size)?;
            for (shape, policy) in [("flat", flat_policy(size)), ("narrowed", narrowed_policy(size, PEERS))] {
                let started = Instant::now();
                guard.set_policy(&policy)?;
                let swap_ns = started.elapsed().as_nanos() as f64;
                let entry = found.entry((size, shape)).or_default();
                entry.entry("swap").or_default().push(swap_ns);
                // The rate without statistics, then the programs' own time with them.
                entry.entry("rate").or_default().push(connect(options, &server, &client, &targets, count)?);
                let enabled = bpf::enable()?;
                let before = programs.iter().map(|(_, program)| program.runs()).collect::<Result<Vec<_>>>()?;
                connect(options, &server, &client, &targets, count)?;
                for ((name, program), before) in programs.iter().zip(before) {
                    let each = program.runs()?.each_ns_since(before).with_context(|| format!("`{name}` never ran"))?;
                    entry.entry(name).or_default().push(each);
                }
                let before = programs[1].1.runs()?;
                connect(options, &server, &client, &same, count)?;
                let each = programs[1].1.runs()?.each_ns_since(before).context("connect never ran")?;
                entry.entry("connect same").or_default().push(each);
                drop(enabled);
            }
        }
    }
    guard.unload()?;
    let head = [
        "services",
        "policy",
        "connect hook, one peer",
        "… all in turn",
        "socket hook",
        "receive hook",
        "connect + close, all in turn",
        "swap of the policy",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    for ((size, shape), figures) in &found {
        let show = |name: &str, show: fn(f64) -> String| {
            figures.get(name).and_then(|values| median(values)).map_or("–".into(), show)
        };
        let shape = if *shape == "flat" { "one network" } else { "10 named peers each" };
        rows.push(vec![
            size.to_string(),
            shape.into(),
            show("connect same", duration),
            show("connect", duration),
            show("socket", duration),
            show("receive", duration),
            show("rate", per_second),
            show("swap", duration),
        ]);
    }
    Ok(table(&rows))
}

fn targets(scratch: &Scratch, size: u16) -> Result<PathBuf> {
    let path = scratch.folder.join(format!("targets-{size}"));
    // The client itself is left out: to it, its own name is itself. The first must be the server: control goes there.
    let lines: Vec<_> =
        (0..size).filter(|index| *index != 1).map(|index| instance(index).service().to_string()).collect();
    fs::write(&path, lines.join("\n"))?;
    Ok(path)
}

fn connect(options: &Options, server: &Seat, client: &Seat, targets: &Path, count: u64) -> Result<f64> {
    let (server_cpu, client_cpu) = options.cpus;
    let mut server =
        Background::start(server.load(server_cpu, TIMEOUT_S)?.args(["serve", &LOAD_PORT.to_string(), "-"]))?;
    let host = format!("@{}", targets.display());
    let mut command = client.load(client_cpu, TIMEOUT_S)?;
    let output = command.args(["drive", "connect", &host, &LOAD_PORT.to_string(), &count.to_string(), "-"]).output()?;
    if !output.status.success() {
        bail!("the client failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    server.wait()?;
    let figures = figures_of(&String::from_utf8_lossy(&output.stdout));
    figures.into_iter().find(|(name, _)| name == "per_second").map(|(_, value)| value).context("no rate")
}

/// From nothing to a guarded stack, and back.
fn preparation(options: &Options, scratch: &Scratch) -> Result<String> {
    let netns = Netns::new()?;
    let head = ["services", "load the programs", "attach to all", "write the policy", "together", "take it all away"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for size in SIZES {
        let cgroups = (0..size).map(|index| scratch.cgroup(&format!("prepare-{index}"))).collect::<Result<Vec<_>>>()?;
        let mut columns = vec![vec![]; head.len() - 1];
        for _ in 0..options.rounds {
            let times = netns.inside(|| {
                let started = Instant::now();
                let guard = Guard::load(&scratch.pins("prepare")?)?;
                let loaded = started.elapsed();
                for (index, cgroup) in (0..).zip(&cgroups) {
                    guard.attach(cgroup, instance(index))?;
                }
                let attached = started.elapsed();
                guard.set_policy(&flat_policy(size))?;
                let ready = started.elapsed();
                guard.unload()?;
                let gone = started.elapsed();
                Ok([loaded, attached - loaded, ready - attached, ready, gone - ready])
            })?;
            for (column, time) in columns.iter_mut().zip(times) {
                column.push(time.as_nanos() as f64);
            }
        }
        let cells = columns.iter().map(|column| median(column).map_or("–".into(), duration));
        rows.push(std::iter::once(size.to_string()).chain(cells).collect());
        for cgroup in &cgroups {
            fs::remove_dir(cgroup).with_context(|| format!("removing {}", cgroup.display()))?;
        }
    }
    Ok(table(&rows))
}
