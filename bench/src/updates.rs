//! What clients notice while a service is updated, rolled back and given versions that don't work: nothing, or it is
//! told.

use anyhow::{Context, Result, bail};
use palisade_host::link::{self, VethEnd};
use palisade_host::netns::Netns;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::Options;
use crate::postgres;
use crate::report::table;
use crate::scratch::Scratch;
use crate::stats::median;

const UPDATES: usize = 15;
const ROLLBACKS: usize = 5;
/// Versions that end at once, that answer with errors, and that die a second after they took over.
const BAD: [(&str, &str); 3] = [("exits", "exits"), ("sick", "is sick"), ("dies", "dies")];
const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1));
const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 2));
/// Updates of the application behind the edge, and of the edge itself, at least; and requests meanwhile, for each.
const THROUGH_THE_EDGE: usize = 15;
const REQUESTS: u64 = 60_000;
/// No update is begun after this time, whatever was reached.
const LIMIT: Duration = Duration::from_secs(110);
/// So many programs ask from outside: one is bounded by its interpreter.
const ASKING: usize = 2;
/// Time between two changes, in which traffic goes on as usual.
const PAUSE: Duration = Duration::from_millis(500);

/// How strangers reach the application.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Front {
    /// Its own port is published.
    Own,
    /// Through the TLS edge.
    Edge,
}

impl Front {
    /// Where the traffic from outside goes.
    fn target(self) -> String {
        match self {
            Self::Own => format!("{HOST}:8081"),
            Self::Edge => format!("https://app.example@{HOST}:443"),
        }
    }
}

/// The stack, and traffic from outside; from inside as well where nothing is before the application.
struct Stage {
    front: Front,
    palisade: PathBuf,
    realm: String,
    folder: PathBuf,
    host: Netns,
    outside: Vec<Outside>,
}

/// Traffic from outside, and what it told last.
struct Outside {
    load: Child,
    last: Arc<Mutex<String>>,
}

impl Outside {
    fn start(mut command: Command) -> Result<Self> {
        let mut load = command.stdout(Stdio::piped()).spawn().context("starting the traffic from outside")?;
        let lines = BufReader::new(load.stdout.take().context("it is piped")?).lines();
        let last: Arc<Mutex<String>> = Arc::default();
        let told = Arc::clone(&last);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *told.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = line;
            }
        });
        Ok(Self { load, last })
    }

    fn told(&self) -> String {
        self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

/// What was done, and what failed.
#[derive(Default)]
struct Told {
    done: BTreeMap<String, u64>,
    failed: u64,
    first: Vec<String>,
}

impl Told {
    fn parse(text: &str) -> Result<Self> {
        let told: serde_json::Value = serde_json::from_str(text).with_context(|| format!("reading {text:?}"))?;
        let done = told["done"].as_object().into_iter().flatten();
        Ok(Self {
            done: done.map(|(what, number)| (what.clone(), number.as_u64().unwrap_or(0))).collect(),
            failed: told["failed"].as_u64().context("it didn't say what failed")?,
            first: told["first"].as_array().into_iter().flatten().map(ToString::to_string).collect(),
        })
    }

    fn and(mut self, other: Self) -> Self {
        for (what, number) in other.done {
            *self.done.entry(what).or_default() += number;
        }
        self.failed += other.failed;
        self.first.extend(other.first);
        self
    }

    /// Requests that were answered; a WebSocket's messages and queries aren't requests.
    fn requests(&self) -> u64 {
        self.done.iter().filter(|(what, _)| what.contains("connection")).map(|(_, number)| number).sum()
    }
}

impl Stage {
    fn new(scratch: &Scratch, front: Front) -> Result<Self> {
        let palisade = std::env::current_exe()?.with_file_name("palisade");
        if !palisade.exists() {
            bail!("{} is not there: `cargo build --release -p palisade`", palisade.display());
        }
        let folder = scratch.folder.join(match front {
            Front::Own => "updates",
            Front::Edge => "updates-edge",
        });
        fs::create_dir_all(folder.join("programs")).context("making a folder")?;
        fs::write(folder.join("programs/app.py"), include_str!("../updates/app.py"))?;
        fs::write(folder.join("programs/load.py"), include_str!("../updates/load.py"))?;
        let (host, internet) = (Netns::unnamed()?, Netns::unnamed()?);
        let end = |netns| VethEnd { netns, name: "eth0", index: None, mac: None };
        link::add_veth(end(&host), end(&internet))?;
        for (netns, own) in [(&host, HOST), (&internet, STRANGER)] {
            netns.run(|| -> Result<()> {
                link::set_up("lo", false)?;
                link::set_up("eth0", false)?;
                Ok(link::add_address("eth0", own, 24)?)
            })??;
        }
        let mut stage = Self { front, palisade, realm: scratch.realm.clone(), folder, host, outside: Vec::new() };
        stage.write("1", 0)?;
        stage.expect(&["up", "--wait"], 0)?;
        for _ in 0..if front == Front::Edge { ASKING } else { 1 } {
            let mut load = Command::new("python3");
            load.arg(stage.folder.join("programs/load.py")).arg(front.target());
            stage.outside.push(internet.run(|| Outside::start(load))??);
        }
        std::thread::sleep(Duration::from_secs(2));
        Ok(stage)
    }

    /// `edges`: how often the edge was given another setting.
    fn write(&self, version: &str, edges: usize) -> Result<()> {
        let (edge, ports, inside) = match self.front {
            Front::Own => (String::new(), "ports: [\"8081:8081\"]", inside(&postgres::programs()?)),
            // All of the machine is the edge's and of those who ask it.
            Front::Edge => (
                format!(
                    "  edge:\n    certificates: local\n    routes:\n      - {{domain: app.example, to: \"app:8081\", timeout: {}s}}\n",
                    60 + edges
                ),
                "expose: [\"8081\"]",
                String::new(),
            ),
        };
        let text = format!(
            r#"name: updates
x-palisade:
  allow:
    no-memory-limit: it lives for a measurement
    stateful-without-backup: it lives for a measurement
    no-healthcheck: it lives for a measurement
    no-rate-limit: all of the traffic is one client's
{edge}services:
  app:
    {ports}
    environment: {{VERSION: "{version}"}}
    volumes: ["./programs:/programs:ro"]
    stop_grace_period: 2s
    deploy: {{update_config: {{monitor: 2s}}}}
    healthcheck:
      test: ["CMD", "python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8081/', timeout=2)"]
      interval: 1s
      timeout: 5s
      retries: 3
      start_period: 2s
      start_interval: 100ms
    x-palisade: {{connect: [], process: {{user: nobody, command: [python3, /programs/app.py]}}}}
{inside}"#
        );
        fs::write(self.folder.join("compose.yaml"), text).context("writing the Compose file")
    }

    fn palisade(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.palisade);
        command.args(["--realm", &self.realm]).args(arguments).current_dir(&self.folder).stdin(Stdio::null());
        self.host.run(|| command.output())?.with_context(|| format!("starting palisade {}", arguments.join(" ")))
    }

    fn expect(&self, arguments: &[&str], code: i32) -> Result<()> {
        let output = self.palisade(arguments)?;
        if output.status.code() != Some(code) {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("`palisade {}` ended with {}, not with {code}:\n{text}", arguments.join(" "), output.status);
        }
        Ok(())
    }

    /// What each source of traffic told last.
    fn told(&self) -> Result<Vec<(&'static str, Told)>> {
        // They tell it once a second.
        std::thread::sleep(Duration::from_millis(2_500));
        let mut told = Vec::new();
        if self.front == Front::Own {
            let inside = String::from_utf8(self.palisade(&["logs", "client"])?.stdout)?;
            let last = inside.lines().rfind(|line| line.contains('{')).context("the client inside printed nothing")?;
            told.push(("inside", Told::parse(&last[last.find('{').unwrap_or(0)..])?));
        }
        let mut outside = Told::default();
        for source in &self.outside {
            outside = outside.and(Told::parse(&source.told())?);
        }
        told.push(("outside", outside));
        Ok(told)
    }
}

/// PostgreSQL, and traffic to it and to the application.
fn inside(bin: &Path) -> String {
    format!(
        r#"  postgres:
    expose: ["5432"]
    volumes: ["data:/data"]
    stop_signal: SIGINT
    healthcheck: {{test: ["CMD", "{bin}/pg_isready", "-h", "127.0.0.1"], interval: 1s, start_period: 30s, start_interval: 100ms}}
    x-palisade:
      process:
        user: postgres
        command: ["/bin/sh", "-c", "test -e /data/db/PG_VERSION || {{ {bin}/initdb --auth trust --no-sync -D /data/db && echo 'host all all all trust' >/data/db/pg_hba.conf; }}; exec {bin}/postgres -D /data/db -c listen_addresses=* -c unix_socket_directories= -c fsync=off"]
  client:
    volumes: ["./programs:/programs:ro"]
    depends_on: {{postgres: {{condition: service_healthy}}, app: {{condition: service_healthy}}}}
    x-palisade: {{process: {{user: nobody, command: [python3, /programs/load.py, "app:8081", "postgres:5432"]}}}}
volumes: {{data: {{}}}}
"#,
        bin = bin.display(),
    )
}

impl Drop for Stage {
    fn drop(&mut self) {
        for outside in &mut self.outside {
            let _ = outside.load.kill();
            let _ = outside.load.wait();
        }
        if let Err(error) = self.expect(&["down", "--volumes", "--yes"], 0) {
            eprintln!("palisade-bench: {error:#}");
        }
        for base in ["/run", "/var/lib", "/var/log"] {
            let _ = fs::remove_dir_all(PathBuf::from(base).join(&self.realm));
        }
    }
}

/// What failed, and how many requests were answered.
fn counted(told: &[(&str, Told)]) -> (u64, u64) {
    let all = told.iter().map(|(_, told)| (told.failed, told.requests()));
    all.fold((0, 0), |(failed, requests), (more_failed, more)| (failed + more_failed, requests + more))
}

/// How long something is repeated.
#[derive(Clone, Copy)]
struct Often {
    times: usize,
    /// And until so many requests were answered meanwhile.
    requests: u64,
}

impl Often {
    fn times(times: usize) -> Self {
        Self { times, requests: 0 }
    }
}

/// What was done, how long it took and what failed meanwhile.
struct Acts<'a> {
    stage: &'a Stage,
    rows: Vec<Vec<String>>,
    failed: u64,
    requests: u64,
}

impl<'a> Acts<'a> {
    fn new(stage: &'a Stage) -> Result<Self> {
        let heads = ["what", "how often", "time each (median)", "requests meanwhile", "failed"];
        let (failed, requests) = counted(&stage.told()?);
        Ok(Self { stage, rows: vec![heads.map(String::from).to_vec()], failed, requests })
    }

    fn act(&mut self, what: &str, often: Often, mut step: impl FnMut(usize) -> Result<()>) -> Result<()> {
        let (mut took_ns, start) = (Vec::new(), Instant::now());
        let (failed, requests) = loop {
            let began = Instant::now();
            step(took_ns.len())?;
            took_ns.push(began.elapsed().as_nanos() as f64);
            std::thread::sleep(PAUSE);
            if took_ns.len() < often.times && start.elapsed() < LIMIT {
                continue;
            }
            let (failed, requests) = counted(&self.stage.told()?);
            if requests - self.requests >= often.requests || start.elapsed() >= LIMIT {
                break (failed, requests);
            }
        };
        let time = median(&took_ns).map_or_else(String::new, |ns| format!("{:.1} s", ns / 1e9));
        let (newly_failed, newly) = (failed - self.failed, requests - self.requests);
        self.rows.push(vec![what.into(), took_ns.len().to_string(), time, newly.to_string(), newly_failed.to_string()]);
        eprintln!("updates: {what}: {} times, {newly} requests, {newly_failed} failed", took_ns.len());
        (self.failed, self.requests) = (failed, requests);
        Ok(())
    }

    fn report(&self) -> Result<String> {
        let mut text = table(&self.rows);
        for (place, told) in self.stage.told()? {
            let done: Vec<_> = told.done.iter().filter(|(_, number)| **number != 0).collect();
            let done: Vec<_> = done.into_iter().map(|(what, number)| format!("{number} {what}")).collect();
            text += &format!(
                "\nFrom {place}: {}; {} requests in all, {} failed.\n",
                done.join(", "),
                told.requests(),
                told.failed
            );
            if !told.first.is_empty() {
                text += &format!("The first: {}\n", told.first.join(", "));
            }
        }
        Ok(text)
    }
}

pub(crate) fn measure(_: &Options, scratch: &Scratch) -> Result<String> {
    Ok(directly(scratch)?
        + "\nThe same through the TLS edge, which is updated as well:\n\n"
        + &through_the_edge(scratch)?)
}

fn directly(scratch: &Scratch) -> Result<String> {
    let stage = Stage::new(scratch, Front::Own)?;
    let mut acts = Acts::new(&stage)?;
    acts.act("update", Often::times(UPDATES), |number| {
        stage.write(&format!("{}", number + 2), 0)?;
        stage.expect(&["up"], 0)
    })?;
    acts.act("rollback", Often::times(ROLLBACKS), |_| stage.expect(&["rollback", "--yes"], 0))?;
    for (bad, does) in BAD {
        acts.act(&format!("a version that {does}"), Often::times(1), |_| {
            stage.write(bad, 0)?;
            stage.expect(&["up"], 1)
        })?;
    }
    acts.report()
}

fn through_the_edge(scratch: &Scratch) -> Result<String> {
    let stage = Stage::new(scratch, Front::Edge)?;
    let mut acts = Acts::new(&stage)?;
    let often = Often { times: THROUGH_THE_EDGE, requests: REQUESTS };
    let mut version = 1;
    acts.act("update of the application", often, |_| {
        version += 1;
        stage.write(&version.to_string(), 0)?;
        stage.expect(&["up"], 0)
    })?;
    acts.act("update of the edge", often, |number| {
        stage.write(&version.to_string(), number + 1)?;
        stage.expect(&["up"], 0)
    })?;
    acts.report()
}
