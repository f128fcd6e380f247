//! Connections to a service with replicas: what it costs to find one, and how evenly they are spread. Beside one
//! listener that nothing stands before, and beside a proxy that spreads connections, which is what people put there.

use anyhow::{Context, Result, bail};
use palisade_core::policy::{BindRule, PublishedAt};
use palisade_core::stack::{PortProto, Proto};
use palisade_guard::Guard;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::Options;
use crate::bpf::{self, Program};
use crate::data_path::{figures_of, per_second};
use crate::report::{duration, table};
use crate::scratch::Scratch;
use crate::stats::{median, ratio};
use crate::world::{Background, LOAD_PORT, Netns, Seat, flat_policy, instance};

/// Each connects, gets one byte and closes. Not more, because closed connections keep their ports for a while.
const VISITS: u64 = 2_000;
const REPLICAS: [u8; 3] = [1, 2, 8];
/// The host's number of the published port, and the one that nobody has published.
const PUBLISHED_PORT: u16 = 7100;
const OTHER_PORT: u16 = 7200;
const TIMEOUT_S: u32 = 60;

/// How a client finds a server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// One listener, in a namespace that no guard is attached to.
    Plain,
    /// One listener that isn't the stack's, where the programs of published ports run for every connection.
    Beside,
    /// By the service's private address, from another service.
    Private,
    /// By the published port, from the host.
    Published,
    /// The same with the program that notes listeners taken off once it has done so.
    WithoutNotes,
    /// Through haproxy.
    Proxy,
}

/// Programs of the guard that run when somebody connects.
const PROGRAMS: [&str; 3] = ["guard_connect4", "guard_enter", "guard_listen"];

struct Row {
    title: String,
    way: Way,
    replicas: u8,
}

/// One figure a round.
#[derive(Default)]
struct Found {
    rates: Vec<f64>,
    /// Of client, servers and proxy.
    cpu_ns_each: Vec<f64>,
    /// What the replica with the fewest connections got, and that with the most, as parts of an even share.
    fewest: Vec<f64>,
    most: Vec<f64>,
    /// What each of [`PROGRAMS`] took for a connection.
    programs_ns: [Vec<f64>; PROGRAMS.len()],
}

/// What one measurement gave.
struct Measured {
    per_second: f64,
    cpu_ns: f64,
    /// Connections by replica, those that warm caches included.
    greeted: Vec<f64>,
}

fn rows() -> Vec<Row> {
    let row = |title: &str, way, replicas| Row { title: title.into(), way, replicas };
    let replicated = |title: &'static str, way| {
        REPLICAS.map(|count| row(&format!("{title}, {count} replica{}", if count == 1 { "" } else { "s" }), way, count))
    };
    let mut rows = vec![row("one listener, nothing before it", Way::Plain, 1), row("… again", Way::Plain, 1)];
    rows.push(row("a listener of the host beside a stack that publishes ports", Way::Beside, 1));
    rows.extend(replicated("private address", Way::Private));
    rows.extend(replicated("published port", Way::Published));
    rows.push(row("published port, 1 replica, without the program that notes listeners", Way::WithoutNotes, 1));
    rows.extend(replicated("haproxy", Way::Proxy));
    rows
}

/// The namespaces, and the guard of the one that has it.
struct Places {
    plain: Netns,
    guarded: Netns,
    guard: Guard,
    pins: PathBuf,
    programs: Vec<Program>,
    folder: PathBuf,
}

/// Who listens where, and who asks where.
struct Scene {
    servers: Vec<(Seat, String)>,
    port: u16,
    client: Seat,
    to: (String, u16),
}

impl Places {
    fn new(scratch: &Scratch) -> Result<Self> {
        let (plain, guarded) = (Netns::new()?, Netns::new()?);
        let (pins, folder) = (scratch.pins("replicas")?, scratch.folder.join("replicas"));
        fs::create_dir_all(&folder)?;
        let guard = guarded.inside(|| Ok(Guard::load(&pins)?))?;
        let programs = PROGRAMS.iter().map(|name| Program::open(&pins.join("programs").join(name)));
        let programs = programs.collect::<Result<_>>()?;
        Ok(Self { plain, guarded, guard, pins, programs, folder })
    }

    fn seat(netns: &Netns, scratch: &Scratch, cgroup: &str) -> Result<Seat> {
        Ok(Seat::Process { netns: netns.path(), cgroup: scratch.cgroup(cgroup)? })
    }

    fn scene(&self, scratch: &Scratch, row: &Row) -> Result<Scene> {
        let plain = Self::seat(&self.plain, scratch, "replicas-plain")?;
        let outside = Self::seat(&self.guarded, scratch, "replicas-outside")?;
        let local = |number: u8| format!("127.0.0.{number}");
        let one = |seat: Seat, port| Scene {
            servers: vec![(seat.clone(), local(1))],
            port,
            client: seat,
            to: (local(1), port),
        };
        Ok(match row.way {
            Way::Plain => one(plain, LOAD_PORT),
            Way::Beside => {
                self.instances(scratch, 1)?;
                one(outside, OTHER_PORT)
            }
            Way::Proxy => Scene {
                servers: (1..=row.replicas).map(|number| (plain.clone(), local(number))).collect(),
                port: LOAD_PORT,
                client: plain,
                to: (local(1), PUBLISHED_PORT),
            },
            Way::Private | Way::Published | Way::WithoutNotes => {
                let instances = self.instances(scratch, row.replicas)?;
                let servers = instances.into_iter().map(|seat| (seat, "0.0.0.0".to_owned())).collect();
                let (client, to) = match row.way {
                    Way::Private => (self.client(scratch)?, (instance(0).service().to_string(), LOAD_PORT)),
                    _ => (outside, (local(1), PUBLISHED_PORT)),
                };
                Scene { servers, port: LOAD_PORT, client, to }
            }
        })
    }

    /// So many instances, guarded; the policy knows exactly these.
    fn instances(&self, scratch: &Scratch, replicas: u8) -> Result<Vec<Seat>> {
        let service = instance(0).service();
        let backends: Vec<_> = (1..=replicas).map(|number| service.instance(number)).collect();
        let mut seats = Vec::new();
        for (number, address) in (1..).zip(&backends) {
            let name = format!("replicas-{number}");
            let cgroup = scratch.cgroup(&name)?;
            self.guarded.inside(|| Ok(self.guard.attach(&cgroup, *address)?))?;
            seats.push(Self::seat(&self.guarded, scratch, &name)?);
        }
        let mut policy = flat_policy(2);
        policy.services[0].backends = backends;
        let container = PortProto { port: LOAD_PORT, proto: Proto::Tcp };
        let published = Some(PublishedAt { host_ip: None, host_port: PUBLISHED_PORT });
        policy.services[0].binds = vec![BindRule { container, published }];
        self.guard.set_policy(&policy)?;
        Ok(seats)
    }

    /// Another service.
    fn client(&self, scratch: &Scratch) -> Result<Seat> {
        let cgroup = scratch.cgroup("replicas-client")?;
        self.guarded.inside(|| Ok(self.guard.attach(&cgroup, instance(1))?))?;
        Self::seat(&self.guarded, scratch, "replicas-client")
    }

    /// What it has noted stays.
    fn stop_noting(&self) -> Result<()> {
        let link = instance(0).to_string().replace('.', "-");
        let path = self.pins.join("links").join(link).join("guard_listen");
        fs::remove_file(&path).with_context(|| format!("detaching {}", path.display()))
    }

    fn start_proxy(&self, options: &Options, replicas: u8) -> Result<Background> {
        let servers: String =
            (1..=replicas).map(|number| format!("  server s{number} 127.0.0.{number}:{LOAD_PORT}\n")).collect();
        let text = format!(
            "global\n  nbthread 1\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  \
             timeout server 60s\nlisten spread\n  bind 127.0.0.1:{PUBLISHED_PORT}\n  balance roundrobin\n{servers}"
        );
        let path = self.folder.join("haproxy.cfg");
        fs::write(&path, text)?;
        let mut command = crate::world::enter(Some(&self.plain.path()), None, Some(options.cpus.1));
        Background::start(command.args(["haproxy", "-q", "-db", "-f"]).arg(path))
    }

    /// New servers, a new client, a new proxy; all of them on one processor, so that what each adds is in the rate.
    fn once(&self, options: &Options, scratch: &Scratch, row: &Row) -> Result<Measured> {
        let scene = self.scene(scratch, row)?;
        let cpu = options.cpus.1;
        let servers = scene.servers.iter().map(|(seat, host)| Server::start(seat, cpu, host, scene.port));
        let servers = servers.collect::<Result<Vec<_>>>()?;
        if row.way == Way::WithoutNotes {
            self.stop_noting()?;
        }
        let proxy = (row.way == Way::Proxy).then(|| self.start_proxy(options, row.replicas)).transpose()?;
        let visits = ((VISITS as f64 * options.scale) as u64).max(100);
        let (host, port) = &scene.to;
        let mut command = scene.client.load(cpu, TIMEOUT_S)?;
        command.args(["visit", host, &port.to_string(), &visits.to_string(), "-"]);
        let output = command.stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            bail!("the client failed: {}", output.status);
        }
        let said = String::from_utf8_lossy(&output.stdout);
        let proxy_ns = proxy.map(|proxy| ran_ns(proxy.id())).transpose()?.unwrap_or(0.0);
        let ended = servers.into_iter().map(Server::end).collect::<Result<Vec<_>>>()?;
        let greeted: Vec<f64> = ended.iter().map(|(greeted, _)| *greeted).collect();
        // Servers and proxy count from their start, warming included.
        let theirs_ns = (ended.iter().map(|(_, ns)| ns).sum::<f64>() + proxy_ns) / greeted.iter().sum::<f64>();
        let cpu_ns = figure(&said, "cpu_ns")? / visits as f64 + theirs_ns;
        Ok(Measured { per_second: figure(&said, "per_second")?, cpu_ns, greeted })
    }
}

/// A listener that tells how many it has greeted when its input ends.
struct Server(Child);

impl Server {
    fn start(seat: &Seat, cpu: usize, host: &str, port: u16) -> Result<Self> {
        let mut command = seat.load(cpu, TIMEOUT_S)?;
        command.args(["answer", host, &port.to_string(), "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut server = Self(command.spawn().context("starting a server")?);
        let mut line = [0; "listening\n".len()];
        server.0.stdout.as_mut().context("it is piped")?.read_exact(&mut line).context("a server didn't start")?;
        Ok(server)
    }

    /// Greeted, and nanoseconds of processor time.
    fn end(mut self) -> Result<(f64, f64)> {
        drop(self.0.stdin.take());
        let mut said = String::new();
        self.0.stdout.as_mut().context("it is piped")?.read_to_string(&mut said)?;
        self.0.wait()?;
        Ok((figure(&said, "greeted")?, figure(&said, "cpu_ns")?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn figure(text: &str, name: &str) -> Result<f64> {
    let found = figures_of(text).into_iter().find(|(known, _)| known == name);
    Ok(found.with_context(|| format!("no `{name}` in {text:?}"))?.1)
}

/// Nanoseconds that a process with one thread has run, by the scheduler.
fn ran_ns(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).context("reading what the proxy has run")?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

pub(crate) fn measure(options: &Options, scratch: &Scratch) -> Result<String> {
    let places = Places::new(scratch)?;
    let proxy = Command::new("haproxy").arg("-v").stdout(Stdio::null()).status().is_ok();
    let mut rows = rows();
    rows.retain(|row| proxy || row.way != Way::Proxy);
    let mut found: Vec<Found> = rows.iter().map(|_| Found::default()).collect();
    for round in 0..options.rounds {
        for step in 0..rows.len() {
            let at = (round + step) % rows.len();
            let (row, found) = (&rows[at], &mut found[at]);
            let measured = places.once(options, scratch, row).with_context(|| row.title.clone())?;
            eprintln!("round {round} {}: {:.0} /s, {:?}", row.title, measured.per_second, measured.greeted);
            found.rates.push(measured.per_second);
            found.cpu_ns_each.push(measured.cpu_ns);
            let even = measured.greeted.iter().sum::<f64>() / f64::from(row.replicas);
            found.fewest.push(measured.greeted.iter().copied().fold(f64::INFINITY, f64::min) / even);
            found.most.push(measured.greeted.iter().copied().fold(0.0, f64::max) / even);
            if matches!(row.way, Way::Plain | Way::Proxy) {
                continue;
            }
            // Once more with the kernel's statistics, which cost time themselves.
            let enabled = bpf::enable()?;
            let runs = || places.programs.iter().map(Program::runs).collect::<Result<Vec<_>>>();
            let before = runs()?;
            let visits: f64 = places.once(options, scratch, row)?.greeted.iter().sum();
            for (at, (after, before)) in runs()?.into_iter().zip(before).enumerate() {
                found.programs_ns[at].push((after.time_ns - before.time_ns) as f64 / visits);
            }
            drop(enabled);
        }
    }
    places.guard.unload()?;
    Ok(shown(&rows, &found))
}

fn shown(rows: &[Row], found: &[Found]) -> String {
    let mut head = vec!["".to_owned(), "connections".into(), "processor time each".into(), "spread".into()];
    head.extend(PROGRAMS.map(|name| format!("`{name}`")));
    let mut lines = vec![head];
    for (at, (row, each)) in rows.iter().zip(found).enumerate() {
        let bold = |ratio: Option<f64>| ratio.filter(|_| at > 0).map_or(String::new(), |r| format!(" (**{r:.3}**)"));
        let rate = median(&each.rates).map_or("–".into(), per_second);
        let cpu = median(&each.cpu_ns_each).map_or("–".into(), duration);
        let spread = match (median(&each.fewest), median(&each.most)) {
            (Some(fewest), Some(most)) if row.replicas > 1 => format!("{fewest:.2} – {most:.2}"),
            _ => "–".to_owned(),
        };
        let mut line = vec![
            row.title.clone(),
            rate + &bold(ratio(&found[0].rates, &each.rates, false)),
            cpu + &bold(ratio(&found[0].cpu_ns_each, &each.cpu_ns_each, true)),
            spread,
        ];
        line.extend(each.programs_ns.iter().map(|times| median(times).map_or("–".into(), duration)));
        lines.push(line);
    }
    table(&lines)
}
