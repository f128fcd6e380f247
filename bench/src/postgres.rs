//! PostgreSQL, as `pgbench -S` finds it in every world.

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Options;
use crate::data_path::{Figures, per_second, row_of};
use crate::report::{duration, table};
use crate::scratch::Scratch;
use crate::world::{Background, POSTGRES_PORT, World, Worlds};

const USER: &str = "postgres";
/// 100,000 rows each.
const SCALE: &str = "10";
/// For starting and filling; a measurement takes seconds.
const TIMEOUT_S: u32 = 120;
/// A server may run as long as all measurements take.
const SERVER_TIMEOUT_S: u32 = 1800;

/// Name, clients, further arguments, transactions of each client.
const WORKS: [(&str, u32, &[&str], u64); 3] =
    [("one", 1, &[], 10_000), ("four", 4, &[], 5_000), ("connect", 1, &["--connect"], 300)];

pub(crate) fn measure(options: &Options, scratch: &Scratch) -> Result<String> {
    let programs = programs()?;
    let data = scratch.folder.join("postgres");
    fs::create_dir_all(&data)?;
    owned_by_user(&data)?;
    let template = data.join("template");
    initialise(&programs, &template)?;
    let worlds = Worlds::new(scratch, "pgbench", options, std::slice::from_ref(&data))?;
    let mut servers = Vec::new();
    for (at, world) in worlds.list.iter().enumerate().filter(|(_, world)| world.same_server_as.is_none()) {
        let folder = data.join(format!("world-{at}"));
        succeed(Command::new("cp").args(["--archive", "--reflink=auto"]).args([&template, &folder]))?;
        servers.push(start(options, world, &programs, &folder, &data)?);
    }
    for (at, world) in worlds.list.iter().enumerate() {
        fill(options, world, &programs).with_context(|| {
            let log = fs::read_to_string(data.join(format!("world-{at}.log"))).unwrap_or_default();
            format!("PostgreSQL {}; its log: {log}", world.label)
        })?;
    }
    let mut figures = Figures::new();
    for round in 0..options.rounds {
        for (work, clients, arguments, transactions) in WORKS {
            if options.only.as_ref().is_some_and(|only| !work.contains(only.as_str())) {
                continue;
            }
            let transactions = (transactions as f64 * options.scale).max(10.0) as u64;
            for step in 0..worlds.list.len() {
                let at = (round + step) % worlds.list.len();
                let world = &worlds.list[at];
                let busy = machine_busy_ns();
                let mut command = pgbench(options, world, &programs);
                command.args(["--select-only", "--no-vacuum", "--client", &clients.to_string(), "--jobs", "1"]);
                command.args(["--transactions", &transactions.to_string()]).args(arguments);
                let said = output(&mut command).with_context(|| format!("pgbench, {}", world.label))?;
                let busy = (machine_busy_ns() - busy) as f64 / (transactions * u64::from(clients)) as f64;
                let found = [("tps", number_after(&said, "tps = ")?), ("machine_cpu_ns_each", busy)];
                eprintln!("round {round} pgbench {work} {}: {found:?}", world.label);
                for (name, value) in found {
                    let entry = figures.entry((work, name.to_owned())).or_default();
                    entry.resize(worlds.list.len(), vec![]);
                    entry[at].push(value);
                }
            }
        }
    }
    let labels = worlds.list.iter().map(|world| world.label);
    let mut rows = vec![std::iter::once("").chain(labels).map(String::from).collect::<Vec<_>>()];
    for (work, title) in [
        ("one", "`pgbench -S`, 1 client"),
        ("four", "`pgbench -S`, 4 clients"),
        ("connect", "`pgbench -S -C`, 1 client"),
    ] {
        let row = |figure: &str, title: &str, show, lower| {
            figures.get(&(work, figure.to_owned())).map(|values| row_of(title, values, show, lower))
        };
        rows.extend(row("tps", title, per_second, false));
        rows.extend(row("machine_cpu_ns_each", "… busy time of the machine, each transaction", duration, true));
    }
    Ok(table(&rows))
}

/// The folder of the newest PostgreSQL of the distribution.
pub(crate) fn programs() -> Result<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .chain([(0, PathBuf::from("/usr/bin"))])
        .filter(|(_, folder)| folder.join("initdb").exists() && folder.join("pgbench").exists())
        .collect();
    found.sort();
    Ok(found.pop().context("no initdb and pgbench: install PostgreSQL's server")?.1)
}

fn succeed(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

fn output(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn owned_by_user(folder: &Path) -> Result<()> {
    succeed(Command::new("chown").arg(USER).arg(folder))
}

fn initialise(programs: &Path, data: &Path) -> Result<()> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--init-groups"]).arg(programs.join("initdb"));
    command.args(["--auth", "trust", "--no-sync", "--no-locale", "--encoding", "UTF8", "--pgdata"]).arg(data);
    succeed(command.current_dir("/"))?;
    fs::write(data.join("pg_hba.conf"), "host all all 0.0.0.0/0 trust\n")?;
    fs::write(
        data.join("postgresql.conf"),
        "listen_addresses = '*'\nshared_buffers = 384MB\nfsync = off\nautovacuum = off\nssl = off\n\
         unix_socket_directories = ''\nmax_connections = 50\n",
    )?;
    Ok(())
}

fn start(options: &Options, world: &World, programs: &Path, data: &Path, logs: &Path) -> Result<Background> {
    let mut command = world.server.command(options.cpus.0, SERVER_TIMEOUT_S, Some(USER));
    command.arg(programs.join("postgres")).arg("-D").arg(data);
    let log = File::create(logs.join(format!("{}.log", data.file_name().unwrap_or_default().to_string_lossy())))?;
    Background::start(command.current_dir("/").stdout(log.try_clone()?).stderr(log))
}

fn pgbench(options: &Options, world: &World, programs: &Path) -> Command {
    let mut command = world.client.command(options.cpus.1, TIMEOUT_S, None);
    command.arg(programs.join("pgbench"));
    command.args(["--host", &world.host, "--port", &POSTGRES_PORT.to_string(), "--username", USER, "postgres"]);
    command
}

/// Creates the tables where they aren't yet, reads them once so that they are in memory.
fn fill(options: &Options, world: &World, programs: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let connect = || {
        let mut command = pgbench(options, world, programs);
        output(command.args(["--select-only", "--no-vacuum", "--transactions", "1"]))
    };
    if world.same_server_as.is_none() {
        loop {
            let mut command = pgbench(options, world, programs);
            match output(command.args(["--initialize", "--quiet", "--scale", SCALE])) {
                Ok(_) => break,
                Err(error) if Instant::now() > deadline => return Err(error).context(world.label),
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
        let mut command = pgbench(options, world, programs);
        succeed(command.args(["--select-only", "--no-vacuum", "--client", "4", "--transactions", "5000"]))?;
    }
    connect().map(drop).with_context(|| format!("the first connection, {}", world.label))
}

fn number_after(text: &str, what: &str) -> Result<f64> {
    let rest = text.split(what).nth(1).with_context(|| format!("no `{what}` in what pgbench said: {text}"))?;
    Ok(rest.split_whitespace().next().unwrap_or_default().parse()?)
}

fn machine_busy_ns() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> =
        stat.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    [0, 1, 2, 5, 6].iter().filter_map(|at| fields.get(*at)).sum::<u64>() * 10_000_000
}
