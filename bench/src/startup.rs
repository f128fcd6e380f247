//! How long a stack takes from nothing to healthy, and back to nothing: by Palisade and by docker-compose, of the same
//! file, with the same engine, images and health checks.

use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::Options;
use crate::docker::{Docker, IMAGE};
use crate::postgres;
use crate::report::{duration, table};
use crate::scratch::Scratch;
use crate::stats::{median, ratio};
use crate::world::Netns;

/// How often it is asked whether all is well.
const POLL: Duration = Duration::from_millis(20);
/// Longer than any start takes.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often health is checked, as written in the file: the shortest that makes sense shows what the tools themselves
/// take, the longest is what many files have.
const INTERVALS: [(&str, &str); 3] =
    [("every 100 ms", "100ms"), ("every second", "1s"), ("every 5 seconds, as many files have it", "5s")];
const SERVICES: usize = 3;
/// The file of [`Tool::ComposeOnHost`].
const ON_HOST: &str = "on-host.yaml";
/// Published by the application.
const PORT: u16 = 8080;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tool {
    Palisade,
    Compose,
    /// The same without a bridge: services on the host's network, nothing between them.
    ComposeOnHost,
}

const TOOLS: [Tool; 3] = [Tool::Palisade, Tool::Compose, Tool::ComposeOnHost];

/// Nanoseconds from the call of `up` until something was so.
#[derive(Default)]
struct Found {
    answers_ns: Vec<f64>,
    healthy_ns: Vec<f64>,
    down_ns: Vec<f64>,
}

struct Stage {
    palisade: PathBuf,
    realm: String,
    folder: PathBuf,
    host: Netns,
    docker: Docker,
}

impl Stage {
    fn new(scratch: &Scratch) -> Result<Self> {
        let palisade = std::env::current_exe()?.with_file_name("palisade");
        if !palisade.exists() {
            bail!("{} is not there: `cargo build --release -p palisade`", palisade.display());
        }
        let folder = scratch.folder.join("up");
        fs::create_dir_all(folder.join("programs")).context("making a folder")?;
        fs::write(folder.join("programs/server.py"), include_str!("../up/server.py"))?;
        let data = folder.join("data");
        fs::create_dir_all(&data).context("making a folder")?;
        let owner = database_user()?;
        std::os::unix::fs::chown(&data, Some(owner.uid.as_raw()), None).context("giving the database its folder")?;
        let host = Netns::new()?;
        let docker = Docker::start_empty(scratch, "up", &host)?;
        Ok(Self { palisade, realm: scratch.realm.clone(), folder, host, docker })
    }

    fn write(&self, interval: &str) -> Result<()> {
        let bridged = compose_file(interval, &format!("ports: [\"{PORT}:{PORT}\"]"), "expose: []")?;
        fs::write(self.folder.join("compose.yaml"), bridged).context("writing the Compose file")?;
        let on_host = "network_mode: host\n    extra_hosts: [\"database:127.0.0.1\", \"model:127.0.0.1\"]";
        let on_host = compose_file(interval, on_host, "network_mode: host")?;
        fs::write(self.folder.join(ON_HOST), on_host).context("writing the Compose file")
    }

    fn run(&self, tool: Tool, arguments: &[&str]) -> Result<()> {
        let mut command = crate::world::enter(Some(&self.host.path()), None, None);
        match tool {
            Tool::Palisade => command.arg(&self.palisade).args(["--realm", &self.realm]),
            Tool::Compose => command.arg("docker-compose"),
            Tool::ComposeOnHost => command.args(["docker-compose", "--file", ON_HOST]),
        };
        command.args(arguments).current_dir(&self.folder).stdin(Stdio::null());
        command.env("DOCKER_HOST", format!("unix://{}", self.docker.socket().display()));
        let output = command.output().with_context(|| format!("starting {}", tool.name()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`{} {}` ended with {}:\n{said}", tool.name(), arguments.join(" "), output.status);
        }
        Ok(())
    }

    /// docker-compose doesn't wait for health; the engine is asked.
    fn await_health(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut command = Docker::client(&self.docker.socket());
            let output = command.args(["ps", "--quiet", "--filter", "health=healthy"]).output()?;
            if output.stdout.iter().filter(|byte| **byte == b'\n').count() == SERVICES {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("not all services were healthy after {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(POLL);
        }
    }

    /// On a thread of its own in the host's namespace: tells when the application has answered.
    fn await_answer(&self) -> Result<mpsc::Receiver<Option<Instant>>> {
        let (tell, told) = mpsc::channel();
        let netns = fs::File::open(self.host.path())?;
        let address = SocketAddr::from((self.docker.host_address().parse::<Ipv4Addr>()?, PORT));
        std::thread::spawn(move || {
            let deadline = Instant::now() + PATIENCE;
            let entered = nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).is_ok();
            while entered && Instant::now() < deadline {
                if answers(address) {
                    let _ = tell.send(Some(Instant::now()));
                    return;
                }
                std::thread::sleep(POLL);
            }
            let _ = tell.send(None);
        });
        Ok(told)
    }

    fn once(&self, tool: Tool, found: &mut Found) -> Result<()> {
        let answered = self.await_answer()?;
        let began = Instant::now();
        match tool {
            Tool::Palisade => self.run(tool, &["up", "--wait"])?,
            Tool::Compose | Tool::ComposeOnHost => {
                self.run(tool, &["up", "-d"])?;
                self.await_health()?;
            }
        }
        found.healthy_ns.push(began.elapsed().as_nanos() as f64);
        let answered = answered.recv()?.with_context(|| format!("{}: the application never answered", tool.name()))?;
        found.answers_ns.push(answered.duration_since(began).as_nanos() as f64);
        let began = Instant::now();
        self.run(tool, &["down"])?;
        found.down_ns.push(began.elapsed().as_nanos() as f64);
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Of a round that failed; otherwise there is nothing.
        for tool in TOOLS {
            let _ = self.run(tool, &["down"]);
        }
        for base in ["/run", "/var/lib", "/var/log"] {
            let _ = fs::remove_dir_all(PathBuf::from(base).join(&self.realm));
        }
    }
}

impl Tool {
    fn name(self) -> &'static str {
        match self {
            Tool::Palisade => "palisade",
            Tool::Compose | Tool::ComposeOnHost => "docker-compose",
        }
    }
}

/// `published` is the application's key for the network, `private` that of the others.
fn compose_file(interval: &str, published: &str, private: &str) -> Result<String> {
    let bin = postgres::programs()?;
    let database_user = database_user()?;
    Ok(format!(
        r#"x-palisade:
  allow:
    no-memory-limit: it lives for a measurement
    stateful-without-backup: it lives for a measurement
x-common: &common
  image: {IMAGE}
services:
  database:
    <<: *common
    user: "{uid}:{gid}"
    {private}
    command: ["/bin/sh", "-c", "test -e /data/db/PG_VERSION || {{ {bin}/initdb --auth trust --no-sync -D /data/db && echo 'host all all all trust' >/data/db/pg_hba.conf; }}; exec {bin}/postgres -D /data/db -c listen_addresses=* -c unix_socket_directories= -c fsync=off"]
    stop_signal: SIGINT
    volumes: ["/usr:/usr:ro", "/etc:/etc:ro", "./data:/data"]
    healthcheck: {{test: ["CMD", "{bin}/pg_isready", "-h", "127.0.0.1"], interval: {interval}, retries: 100}}
  model:
    <<: *common
    user: "65534"
    {private}
    command: [python3, /programs/server.py, "11434"]
    volumes: ["/usr:/usr:ro", "/etc:/etc:ro", "./programs:/programs:ro"]
    healthcheck: {{test: ["CMD", "busybox", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:11434/"], interval: {interval}, retries: 100}}
  app:
    <<: *common
    user: "65534"
    {published}
    command: [python3, /programs/server.py, "{PORT}", "database:5432", "model:11434"]
    volumes: ["/usr:/usr:ro", "/etc:/etc:ro", "./programs:/programs:ro"]
    healthcheck: {{test: ["CMD", "busybox", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:{PORT}/"], interval: {interval}, retries: 100}}
    depends_on:
      database: {{condition: service_healthy}}
      model: {{condition: service_healthy}}
"#,
        bin = bin.display(),
        uid = database_user.uid,
        gid = database_user.gid,
    ))
}

/// The image has no file of users, so containers get the number.
fn database_user() -> Result<nix::unistd::User> {
    nix::unistd::User::from_name("postgres")?.context("there is no user `postgres`: install PostgreSQL's server")
}

fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut start = [0; 12];
        stream.read_exact(&mut start)?;
        Ok(start.ends_with(b"200"))
    };
    ask().unwrap_or(false)
}

pub(crate) fn measure(options: &Options, scratch: &Scratch) -> Result<String> {
    let stage = Stage::new(scratch)?;
    // Fills the database and every cache.
    stage.write(INTERVALS[0].1)?;
    for tool in TOOLS {
        stage.once(tool, &mut Found::default())?;
    }
    let head = ["health is checked", "what", "`palisade`", "`docker-compose`", "… with `network_mode: host`"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for (shape, interval) in INTERVALS {
        if options.only.as_ref().is_some_and(|only| !shape.contains(only.as_str())) {
            continue;
        }
        stage.write(interval)?;
        let mut found = TOOLS.map(|_| Found::default());
        for round in 0..options.rounds {
            for step in 0..TOOLS.len() {
                let at = (round + step) % TOOLS.len();
                stage.once(TOOLS[at], &mut found[at])?;
            }
            eprintln!("up: {shape}: round {} of {}", round + 1, options.rounds);
        }
        rows.push(row(shape, "`up`, until all is healthy", &found, |found| &found.healthy_ns));
        rows.push(row(shape, "`up`, until the application answers", &found, |found| &found.answers_ns));
        rows.push(row(shape, "`down`", &found, |found| &found.down_ns));
    }
    Ok(table(&rows))
}

/// Times, the others' with how many times as long they took as Palisade in the same round.
fn row(shape: &str, what: &str, found: &[Found], figure: fn(&Found) -> &[f64]) -> Vec<String> {
    let cells = found.iter().enumerate().map(|(at, each)| {
        let times = ratio(figure(each), figure(&found[0]), true).filter(|_| at > 0);
        let time = median(figure(each)).map_or("–".into(), duration);
        time + &times.map_or(String::new(), |times| format!(" (**{times:.2}** times as long)"))
    });
    [shape.to_owned(), what.to_owned()].into_iter().chain(cells).collect()
}
