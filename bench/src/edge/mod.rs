//! The TLS edge beside nginx, haproxy and caddy with the same features on: what a request, a handshake and an idle
//! connection cost each of them.
//!
//! Plain processes on loopback, without a guard: the edge's own work is to be seen, what the guard costs is measured elsewhere.

mod load;
mod proxies;

use anyhow::{Context, Result, bail};
use std::fs;
use std::time::Duration;

use crate::Options;
use crate::report::{duration, table};
use crate::scratch::Scratch;
use crate::stats::{median, ratio};
use load::{Load, Ran};
use proxies::{KINDS, Kind, Proxy, Upstream};

/// Requests of each measurement with keep-alive.
const REQUESTS: u64 = 30_000;
/// New connections of the measurement of handshakes, which come at this rate.
const HANDSHAKES: u64 = 2_000;
/// Requests of the measurement at a fixed rate: four seconds.
const PACED: u64 = 16_000;
/// Idle connections whose memory is measured.
const IDLE: u64 = 10_000;
/// In so many rounds: it takes long, and hardly differs.
const IDLE_ROUNDS_MAX: usize = 3;

/// One line of the table: a figure of each proxy.
struct Row {
    title: &'static str,
    /// How the figure is written.
    shown: fn(f64) -> String,
    lower_is_better: bool,
    /// What is aimed at for the edge, as a part of nginx's or of the better one's.
    aim: Option<Aim>,
    /// By proxy, in the order of [`KINDS`], and by round.
    values: [Vec<f64>; KINDS.len()],
}

/// At most this part of another's figure.
#[derive(Clone, Copy)]
enum Aim {
    OfNginx(f64),
    OfTheBetter(f64),
}

fn rate(each_second: f64) -> String {
    format!("{each_second:.0} /s")
}

fn bytes(count: f64) -> String {
    format!("{:.1} KiB", count / 1024.0)
}

fn rows() -> Vec<Row> {
    let row = |title, shown: fn(f64) -> String, lower_is_better, aim| Row {
        title,
        shown,
        lower_is_better,
        aim,
        values: Default::default(),
    };
    vec![
        row("HTTP, keep-alive: processor time of a request", duration, true, Some(Aim::OfTheBetter(1.0))),
        row("… requests", rate, false, None),
        row("HTTPS, keep-alive: processor time of a request", duration, true, Some(Aim::OfTheBetter(0.9))),
        row("… requests", rate, false, None),
        row("HTTP/2: processor time of a request", duration, true, None),
        row("… requests", rate, false, None),
        row("new TLS connection and one request: processor time", duration, true, Some(Aim::OfNginx(0.5))),
        row("HTTPS at 4,000 requests a second, p50", duration, true, None),
        row("… p99", duration, true, Some(Aim::OfNginx(1.0))),
        row("… processor time of a request", duration, true, None),
        row("memory of an idle TLS connection, of 10,000", bytes, true, Some(Aim::OfNginx(1.0))),
    ]
}

/// What is measured, and the rows that its figures go to.
const WORKS: [(&str, usize); 5] = [("http", 0), ("https", 2), ("http2", 4), ("handshake", 6), ("paced", 7)];
const MEMORY_ROW: usize = 10;

fn load(work: &str, options: &Options) -> Load {
    let scaled = |count: u64| ((count as f64 * options.scale) as u64 / 100 * 100).max(200);
    match work {
        "http" => Load::keep_alive(scaled(REQUESTS), false),
        "https" => Load::keep_alive(scaled(REQUESTS), true),
        "http2" => Load::http2(scaled(REQUESTS)),
        "handshake" => Load::handshakes(scaled(HANDSHAKES)),
        _ => Load::paced(scaled(PACED)),
    }
}

/// Asks one proxy and puts its figures into the rows.
fn once(options: &Options, proxy: &Proxy, work: &str, first: usize, at: usize, rows: &mut [Row]) -> Result<()> {
    let load = load(work, options);
    let before = proxy.ran_ns()?;
    let Ran { per_second, latency } = load.run(proxy, options.cpus.1)?;
    let each_ns = (proxy.ran_ns()? - before) / load.requests as f64;
    eprintln!("  {work} {}: {per_second:.0} /s, {}", proxy.kind.name(), duration(each_ns));
    let figures = match latency {
        Some((p50, p99)) => vec![p50, p99, each_ns],
        None if work == "handshake" => vec![each_ns],
        None => vec![each_ns, per_second],
    };
    for (row, figure) in rows[first..].iter_mut().zip(figures) {
        row.values[at].push(figure);
    }
    Ok(())
}

/// Bytes that one idle connection takes, in a process that has done nothing else.
fn memory(options: &Options, scratch: &Scratch, upstream: &Upstream, kind: Kind) -> Result<f64> {
    let proxy = Proxy::start(options, scratch, upstream, kind)?;
    Load::keep_alive(200, true).run(&proxy, options.cpus.1)?;
    let before = proxy.pss()?;
    let idle = load::Idle::open(&proxy, options.cpus.1, IDLE)?;
    // What was needed for the handshakes only is given back meanwhile.
    std::thread::sleep(Duration::from_secs(5));
    let open = proxy.connections()?;
    let after = proxy.pss()?;
    drop(idle);
    if open < IDLE {
        bail!("{} has only {open} of {IDLE} connections", kind.name());
    }
    Ok((after - before) / IDLE as f64)
}

pub(crate) fn measure(options: &Options, scratch: &Scratch) -> Result<String> {
    let upstream = Upstream::start(options, scratch)?;
    let (mut rows, mut kinds) = (rows(), Vec::new());
    for (at, kind) in KINDS.into_iter().enumerate() {
        match kind.installed() {
            true => kinds.push((at, kind)),
            false => eprintln!("{} isn't installed and is left out", kind.name()),
        }
    }
    let wanted = |work: &str| options.only.as_ref().is_none_or(|only| work.contains(only.as_str()));
    let works: Vec<_> = WORKS.into_iter().filter(|(work, _)| wanted(work)).collect();
    for round in 0..options.rounds {
        eprintln!("round {round}");
        let served = if works.is_empty() { &[][..] } else { &kinds[..] };
        let started = served.iter().map(|&(at, kind)| Ok((at, Proxy::start(options, scratch, &upstream, kind)?)));
        let started = started.collect::<Result<Vec<_>>>()?;
        for &(work, first) in &works {
            for step in 0..started.len() {
                let (at, proxy) = &started[(round + step) % started.len()];
                once(options, proxy, work, first, *at, &mut rows)
                    .with_context(|| format!("{work} with {}", proxy.kind.name()))?;
            }
        }
        for (_, proxy) in started {
            proxy.end()?;
        }
        for step in 0..kinds.len() {
            let (at, kind) = kinds[(round + step) % kinds.len()];
            if wanted("memory") && round < IDLE_ROUNDS_MAX {
                let each = memory(options, scratch, &upstream, kind).with_context(|| kind.name())?;
                eprintln!("  memory {}: {}", kind.name(), bytes(each));
                rows[MEMORY_ROW].values[at].push(each);
            }
        }
        fs::remove_dir_all(scratch.folder.join("edge")).context("removing the logs of a round")?;
    }
    Ok(shown(&rows))
}

fn shown(rows: &[Row]) -> String {
    let mut head = vec![String::new()];
    head.extend(KINDS.map(|kind| kind.name().to_owned()));
    head.extend(["edge, of the better of nginx and haproxy".to_owned(), "aim".to_owned()]);
    let mut lines = vec![head];
    for row in rows {
        let [nginx, haproxy, _, edge] = &row.values;
        let part = |base: &[f64], values: &[f64]| {
            ratio(base, values, false).map_or(String::new(), |part| format!(" (**{part:.2}**)"))
        };
        let cell = |(at, values): (usize, &Vec<f64>)| match median(values) {
            Some(value) if at == 0 => (row.shown)(value),
            Some(value) => (row.shown)(value) + &part(nginx, values),
            None => "–".to_owned(),
        };
        let choose = if row.lower_is_better { f64::min } else { f64::max };
        let better: Vec<f64> = nginx.iter().zip(haproxy).map(|(a, b)| choose(*a, *b)).collect();
        let mut line = vec![row.title.to_owned()];
        line.extend(row.values.iter().enumerate().map(cell));
        line.push(ratio(&better, edge, false).map_or("–".to_owned(), |part| format!("**{part:.2}**")));
        line.push(match row.aim {
            Some(Aim::OfNginx(part)) => format!("≤ {part:.2} of nginx"),
            Some(Aim::OfTheBetter(part)) => format!("≤ {part:.2} of the better"),
            None => String::new(),
        });
        lines.push(line);
    }
    table(&lines)
}
