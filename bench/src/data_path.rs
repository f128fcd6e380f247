//! Requests, streams and connections between two processes, in every world.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::process::Stdio;

use crate::Options;
use crate::report::{duration, table};
use crate::scratch::Scratch;
use crate::stats::{median, ratio};
use crate::world::{Background, LOAD_PORT, World, Worlds};

/// Longer than any measurement takes.
const TIMEOUT_S: u32 = 60;

/// A measurement: its name, what the client does, how often, and whether client and server share a processor. Where
/// they take turns that shows what the way itself costs; on two processors most of the time is spent waking up.
/// Connections are short and scatter most, so they come several times a round; not more of them at once, because ports
/// and tracked connections are used up for a minute or two.
const WORKS: [(&str, &str, u64, bool); 7] = [
    ("request", "request", 40_000, true),
    ("request2", "request", 10_000, false),
    ("datagram", "datagram", 40_000, true),
    ("stream", "stream", 16_000, true),
    ("connect", "connect", 2_000, false),
    ("connect", "connect", 2_000, false),
    ("connect", "connect", 2_000, false),
];

/// A row of the table: what the client did, the figure it printed, how it is called and shown, and what is better.
struct Row {
    work: &'static str,
    figure: &'static str,
    title: &'static str,
    show: fn(f64) -> String,
    lower_is_better: bool,
}

const fn time(work: &'static str, figure: &'static str, title: &'static str) -> Row {
    Row { work, figure, title, show: duration, lower_is_better: true }
}

const ROWS: [Row; 13] = [
    time("request", "p50_ns", "TCP request/response of 64 B on one processor, p50"),
    time("request", "p99_ns", "… p99"),
    time("request", "cpu_ns_each", "… processor time of both, each request"),
    time("request2", "p50_ns", "TCP request/response of 64 B on two processors, p50"),
    time("request2", "p99_ns", "… p99"),
    time("request2", "cpu_ns_each", "… processor time of both, each request"),
    time("datagram", "p50_ns", "UDP request/response of 64 B on one processor, p50"),
    time("datagram", "p99_ns", "… p99"),
    time("datagram", "cpu_ns_each", "… processor time of both, each request"),
    Row {
        work: "stream",
        figure: "per_second",
        title: "TCP throughput, 64 KiB writes, on one processor",
        show: gigabytes,
        lower_is_better: false,
    },
    time("stream", "cpu_ns_each", "… processor time of both, each 64 KiB"),
    Row {
        work: "connect",
        figure: "per_second",
        title: "TCP connect + close",
        show: per_second,
        lower_is_better: false,
    },
    time("connect", "cpu_ns_each", "… processor time of both, each connection"),
];

fn gigabytes(chunks_per_second: f64) -> String {
    format!("{:.2} GB/s", chunks_per_second * 65536.0 / 1e9)
}

pub(crate) fn per_second(rate: f64) -> String {
    format!("{rate:.0} /s")
}

/// Figures by what was done, by name, and by world; one a round.
pub(crate) type Figures = BTreeMap<(&'static str, String), Vec<Vec<f64>>>;

pub(crate) fn measure(options: &Options, scratch: &Scratch) -> Result<String> {
    let worlds = Worlds::new(scratch, "data-path", options, &[])?;
    let mut figures = Figures::new();
    for round in 0..options.rounds {
        for (name, work, count, together) in WORKS {
            if options.only.as_ref().is_some_and(|only| !name.contains(only.as_str())) {
                continue;
            }
            let cpus = if together { (options.cpus.1, options.cpus.1) } else { options.cpus };
            let count = (count as f64 * options.scale).max(10.0) as u64;
            for step in 0..worlds.list.len() {
                // Each world comes first, last and in between.
                let at = (round + step) % worlds.list.len();
                let world = &worlds.list[at];
                let found = once(cpus, world, work, count).with_context(|| format!("{work}, {}", world.label))?;
                eprintln!("round {round} {name} {}: {found:?}", world.label);
                for (figure, value) in found {
                    let entry = figures.entry((name, figure)).or_default();
                    entry.resize(worlds.list.len(), vec![]);
                    entry[at].push(value);
                }
            }
        }
    }
    let labels: Vec<_> = worlds.list.iter().map(|world| world.label).collect();
    let mut rows = vec![std::iter::once("").chain(labels).map(String::from).collect::<Vec<_>>()];
    for row in ROWS {
        if let Some(values) = figures.get(&(row.work, row.figure.into())) {
            rows.push(row_of(row.title, values, row.show, row.lower_is_better));
        }
    }
    Ok(table(&rows))
}

/// Medians with the ratio to the first world, above 1 being better.
pub(crate) fn row_of(title: &str, values: &[Vec<f64>], show: fn(f64) -> String, lower_is_better: bool) -> Vec<String> {
    let mut row = vec![title.to_owned()];
    for (at, each) in values.iter().enumerate() {
        let Some(middle) = median(each) else {
            row.push("–".into());
            continue;
        };
        let ratio = ratio(&values[0], each, lower_is_better).filter(|_| at > 0);
        row.push(format!("{}{}", show(middle), ratio.map(|r| format!(" (**{r:.3}**)")).unwrap_or_default()));
    }
    row
}

/// A new server and a new client: what chance decides about a process (addresses, cache colours) differs each time.
fn once(cpus: (usize, usize), world: &World, work: &str, count: u64) -> Result<Vec<(String, f64)>> {
    let (server_cpu, client_cpu) = cpus;
    let mut command = world.server.load(server_cpu, TIMEOUT_S)?;
    let mut server = Background::start(command.args(["serve", &LOAD_PORT.to_string(), "-"]))?;
    let mut command = world.client.load(client_cpu, TIMEOUT_S)?;
    command.args(["drive", work, &world.host, &LOAD_PORT.to_string(), &count.to_string(), "-"]);
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("the client failed: {}", output.status);
    }
    server.wait()?;
    Ok(figures_of(&String::from_utf8_lossy(&output.stdout)))
}

/// Lines of a name and a number.
pub(crate) fn figures_of(text: &str) -> Vec<(String, f64)> {
    let line = |line: &str| line.split_once(' ').and_then(|(name, value)| Some((name.to_owned(), value.parse().ok()?)));
    text.lines().filter_map(line).collect()
}
