//! Measures what the guard costs, side by side with no guard and with containers on a bridge, and how long files take
//! to be read.
//!
//! Nothing is decided here about what is good: the figures go into a table, the aims stand in the README.

mod audit;
mod bpf;
mod data_path;
mod docker;
mod edge;
mod firewall;
mod loading;
mod memory;
mod policy;
mod postgres;
mod replicas;
mod report;
mod scratch;
mod startup;
mod stats;
mod updates;
mod world;

use anyhow::{Context, Result, bail};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use scratch::Scratch;

/// What is to be measured, and how long.
struct Options {
    /// `audit`, `data-path`, `edge`, `loading`, `memory`, `pgbench`, `policy`, `replicas`, `up`, `updates`; none: all.
    parts: Vec<String>,
    /// How often each measurement is repeated, all worlds in turn.
    rounds: usize,
    /// Multiplies the number of requests of each measurement.
    scale: f64,
    /// Processors of server and client where both work at once; where they take turns, both are on the latter.
    cpus: (usize, usize),
    /// Leaves out Docker and docker-compose.
    docker: bool,
    /// Only worlds and works whose names contain this.
    only: Option<String>,
    /// Programs of the guard that are taken off, to see what each of them costs.
    without: Vec<String>,
    /// File whose tables are replaced.
    write: Option<PathBuf>,
}

const USAGE: &str = "usage: palisade-bench [audit|data-path|edge|loading|memory|pgbench|policy|replicas|up|updates]… [--rounds N] [--scale X] [--cpus SERVER,CLIENT] \
                     [--no-docker] [--only WORK] [--without PROGRAM]… [--write FILE]";
/// Set for the copy of this program that runs in namespaces of its own.
const INSIDE: &str = "PALISADE_BENCH_REALM";

fn parse(arguments: impl Iterator<Item = String>) -> Result<Options> {
    let mut arguments = arguments.peekable();
    let mut options = Options {
        parts: vec![],
        rounds: 7,
        scale: 1.0,
        cpus: (0, 1),
        docker: true,
        only: None,
        without: vec![],
        write: None,
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value\n{USAGE}"));
        match argument.as_str() {
            "audit" | "data-path" | "edge" | "loading" | "memory" | "pgbench" | "policy" | "replicas" | "up"
            | "updates" => options.parts.push(argument),
            "--rounds" => options.rounds = value()?.parse()?,
            "--scale" => options.scale = value()?.parse()?,
            "--only" => options.only = Some(value()?),
            "--without" => options.without.push(value()?),
            "--write" => options.write = Some(std::path::absolute(value()?)?),
            "--no-docker" => options.docker = false,
            "--cpus" => {
                let text = value()?;
                let (server, client) = text.split_once(',').context("--cpus needs two numbers: 0,1")?;
                options.cpus = (server.parse()?, client.parse()?);
            }
            _ => bail!("unknown argument `{argument}`\n{USAGE}"),
        }
    }
    if options.parts.is_empty() {
        options.parts =
            ["loading", "audit", "up", "memory", "updates", "policy", "replicas", "edge", "data-path", "pgbench"]
                .map(String::from)
                .to_vec();
    }
    Ok(options)
}

fn run(options: &Options, realm: &str) -> Result<()> {
    let scratch = Scratch::new(realm)?;
    for part in &options.parts {
        let table = match part.as_str() {
            "audit" => audit::measure(options, &scratch)?,
            "loading" => loading::measure(options, &scratch)?,
            "memory" => memory::measure(options, &scratch)?,
            "up" => startup::measure(options, &scratch)?,
            "updates" => updates::measure(options, &scratch)?,
            "policy" => policy::measure(options, &scratch)?,
            "replicas" => replicas::measure(options, &scratch)?,
            "data-path" => data_path::measure(options, &scratch)?,
            "edge" => edge::measure(options, &scratch)?,
            _ => postgres::measure(options, &scratch)?,
        };
        let rounds = match part.as_str() {
            // What clients notice is counted, not repeated.
            "updates" => 1,
            "memory" => options.rounds.min(memory::ROUNDS_MAX),
            _ => options.rounds,
        };
        let text = format!("{}\n{table}", report::circumstances(rounds));
        println!("\n{text}");
        if let Some(file) = &options.write {
            report::replace(file, part, &text)?;
        }
    }
    Ok(())
}

/// Starts this program again in mount and process namespaces of its own and clears up after it, however it ended:
/// when its first process is gone, the kernel ends all others in there and takes their mounts and network
/// namespaces. What is left is cgroups and files.
fn run_apart() -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("measuring needs root: namespaces, cgroups and eBPF");
    }
    scratch::clear_stale();
    let realm = scratch::new_realm();
    // However this process ends, it takes `unshare` along, and that its child.
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "unshare"])
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "--"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, &realm)
        // Ctrl-C is for all of us; this process has to outlive the others to clear up.
        .process_group(0)
        .spawn()
        .context("starting setpriv and unshare (util-linux)");
    let status = status.and_then(|mut child| {
        scratch::end_with_us(child.id());
        child.wait().context("waiting for the measurement")
    });
    scratch::clear(&realm);
    Ok(if status?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn main() -> ExitCode {
    let outcome = parse(std::env::args().skip(1)).and_then(|options| match std::env::var(INSIDE) {
        Ok(realm) => run(&options, &realm).map(|()| ExitCode::SUCCESS),
        Err(_) => run_apart(),
    });
    outcome.unwrap_or_else(|error| {
        eprintln!("palisade-bench: {error:#}");
        ExitCode::FAILURE
    })
}
