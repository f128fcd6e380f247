//! What stays in memory so that ten services run: by Palisade as processes and as containers, and by the engine alone.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::Options;
use crate::bpf;
use crate::docker::{Docker, IMAGE};
use crate::report::table;
use crate::scratch::Scratch;
use crate::stats::median;
use crate::world::{Netns, enter};

const SERVICES: usize = 10;
/// So long they run before memory is looked at: some health checks and everything that is done once are over then.
const SETTLE: Duration = Duration::from_secs(12);
/// Memory scarcely varies, and each round takes a minute.
pub(crate) const ROUNDS_MAX: usize = 3;

/// Who runs the services, and as what.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Processes,
    Containers,
    Compose,
}

impl Way {
    fn title(self) -> &'static str {
        match self {
            Way::Processes => "`palisade`, processes of the host",
            Way::Containers => "`palisade`, containers",
            Way::Compose => "`docker-compose`",
        }
    }
}

/// Who has memory: its column, and the names of its programs.
const HOLDERS: [(&str, &[&str]); 5] = [
    ("Palisade's agent", &["palisade-agent"]),
    ("an init process each", &["palisade-init"]),
    ("`dockerd`", &["dockerd"]),
    ("`containerd`", &["containerd"]),
    ("shims and port proxies", &["containerd-shim-runc-v2", "containerd-shim", "docker-proxy"]),
];

/// Bytes of a process: its own and its part of what it shares (PSS), and all that it has mapped (RSS).
#[derive(Clone, Copy, Default)]
struct Size {
    pss: f64,
    rss: f64,
}

struct Stage {
    palisade: PathBuf,
    realm: String,
    folder: PathBuf,
    host: Netns,
    docker: Option<Docker>,
}

impl Stage {
    fn new(options: &Options, scratch: &Scratch) -> Result<Self> {
        let palisade = std::env::current_exe()?.with_file_name("palisade");
        if !palisade.exists() {
            bail!("{} is not there: `cargo build --release -p palisade`", palisade.display());
        }
        let folder = scratch.folder.join("memory");
        fs::create_dir_all(&folder).context("making a folder")?;
        let host = Netns::new()?;
        let docker = options.docker.then(|| Docker::start_empty(scratch, "memory", &host)).transpose()?;
        Ok(Self { palisade, realm: scratch.realm.clone(), folder, host, docker })
    }

    fn write(&self, way: Way) -> Result<()> {
        let run = match way {
            Way::Processes => "x-palisade: {process: {user: nobody, command: [/usr/bin/sleep, '3600']}}".to_owned(),
            Way::Containers | Way::Compose => format!(
                "image: {IMAGE}\n    user: '65534'\n    command: [/usr/bin/sleep, '3600']\n    volumes: ['/usr:/usr:ro']"
            ),
        };
        let mut text = String::from("services:\n");
        for number in 1..=SERVICES {
            // Half of them publish a port, for which Docker runs a proxy.
            let port = 8000 + number;
            let ports = if number % 2 == 0 { format!("    ports: ['{port}:{port}']\n") } else { String::new() };
            text += &format!(
                "  s{number}:\n    {run}\n{ports}    stop_grace_period: 1s\n    healthcheck: {{test: [CMD, /usr/bin/true], interval: 5s}}\n"
            );
        }
        fs::write(self.folder.join("compose.yaml"), text).context("writing the Compose file")
    }

    fn run(&self, way: Way, arguments: &[&str]) -> Result<()> {
        let mut command = enter(Some(&self.host.path()), None, None);
        match way {
            Way::Compose => command.arg("docker-compose"),
            Way::Processes | Way::Containers => command.arg(&self.palisade).args(["--realm", &self.realm]),
        };
        if let Some(docker) = &self.docker {
            command.env("DOCKER_HOST", format!("unix://{}", docker.socket().display()));
        }
        let output = command.args(arguments).current_dir(&self.folder).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            bail!("{}: `{}`: {}", way.title(), arguments.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// The kernel's memory for what the guard knows and remembers, in bytes.
    fn maps_bytes(&self) -> Result<f64> {
        let pins = palisade_guard::pin_root(&self.realm, &Path::new("/run").join(&self.realm)).join("memory/programs");
        bpf::maps_bytes(&pins)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Of a round that failed; otherwise there is nothing.
        let _ = self.run(Way::Processes, &["down"]);
        if self.docker.is_some() {
            let _ = self.run(Way::Compose, &["down"]);
        }
        for base in ["/run", "/var/lib", "/var/log"] {
            let _ = fs::remove_dir_all(PathBuf::from(base).join(&self.realm));
        }
    }
}

/// All processes of this run (which has a PID namespace of its own) that are there for the services, by holder.
fn sizes() -> BTreeMap<usize, Size> {
    let mut found: BTreeMap<usize, Size> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(holder) = holder(&entry.path()) else { continue };
        // One that has just ended has no memory.
        let Ok(text) = fs::read_to_string(entry.path().join("smaps_rollup")) else { continue };
        let bytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) * 1024.0
        };
        let size = found.entry(holder).or_default();
        size.pss += bytes("Pss:");
        size.rss += bytes("Rss:");
    }
    found
}

fn holder(process: &Path) -> Option<usize> {
    let read = |name: &str| fs::read_to_string(process.join(name)).ok();
    // The agent and the init processes give themselves a name; the kernel cuts the others' after 15 bytes.
    let name = match read("comm")?.trim_end() {
        name @ ("palisade-agent" | "palisade-init") => name.to_owned(),
        _ => fs::read_link(process.join("exe")).ok()?.file_name()?.to_string_lossy().into_owned(),
    };
    HOLDERS.iter().position(|(_, programs)| programs.contains(&name.as_str()))
}

pub(crate) fn measure(options: &Options, scratch: &Scratch) -> Result<String> {
    let stage = Stage::new(options, scratch)?;
    let ways: &[Way] = match stage.docker {
        Some(_) => &[Way::Processes, Way::Containers, Way::Compose],
        None => &[Way::Processes],
    };
    let mut head = vec!["ten services".to_owned()];
    head.extend(HOLDERS.map(|(title, _)| title.to_owned()));
    head.extend(["together".to_owned(), "in the kernel: the guard's maps".to_owned()]);
    let mut rows = vec![head];
    for way in ways {
        stage.write(*way)?;
        let (mut rounds, mut maps) = (Vec::new(), Vec::new());
        for round in 0..options.rounds.min(ROUNDS_MAX) {
            stage.run(*way, if *way == Way::Compose { &["up", "-d"] } else { &["up", "--wait"] })?;
            std::thread::sleep(SETTLE);
            rounds.push(sizes());
            if *way != Way::Compose {
                maps.push(stage.maps_bytes()?);
            }
            stage.run(*way, &["down"])?;
            eprintln!("memory: {}: round {}", way.title(), round + 1);
        }
        // The engine runs beside process services because another row needs it; they don't.
        let counts = |holder: usize| (holder < 2) == (*way != Way::Compose) || (*way == Way::Containers && holder != 1);
        let all: Vec<Size> =
            (0..HOLDERS.len()).map(|holder| middle(&rounds, |at| at == holder && counts(at))).collect();
        let mut row = vec![way.title().to_owned()];
        row.extend(all.iter().map(|size| cell(*size)));
        row.push(cell(middle(&rounds, counts)));
        row.push(median(&maps).map_or("–".to_owned(), mebibytes));
        rows.push(row);
    }
    Ok(table(&rows))
}

/// The median of the rounds, of those who count together.
fn middle(rounds: &[BTreeMap<usize, Size>], counts: impl Fn(usize) -> bool) -> Size {
    let sum = |figure: fn(&Size) -> f64| -> Vec<f64> {
        let of = |round: &BTreeMap<usize, Size>| {
            round.iter().filter(|(holder, _)| counts(**holder)).map(|(_, size)| figure(size)).sum()
        };
        rounds.iter().map(of).collect()
    };
    Size {
        pss: median(&sum(|size| size.pss)).unwrap_or_default(),
        rss: median(&sum(|size| size.rss)).unwrap_or_default(),
    }
}

fn cell(size: Size) -> String {
    if size.rss == 0.0 { "–".to_owned() } else { format!("{} ({})", mebibytes(size.pss), mebibytes(size.rss)) }
}

fn mebibytes(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}
