//! Worlds: where a server and its client run, and how one starts there.
//!
//! What is measured in them is not known here.

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_core::address::{InstanceAddress, ServiceIndex};
use palisade_core::names::ServiceName;
use palisade_core::policy::{BindRule, EgressPolicy, Mode, PeerGrant, Policy, ServicePolicy};
use palisade_core::stack::{PortProto, Proto};
use palisade_guard::Guard;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Options;
use crate::docker::Docker;
use crate::scratch::Scratch;

/// TCP and UDP; the next one is for control.
pub(crate) const LOAD_PORT: u16 = 7000;
/// Closed connections keep a port for a minute; where they are used up it takes long to find one, which is not what is
/// to be measured. So there are more of them than usual, in every world.
pub(crate) const CLIENT_PORTS: &str = "10000 65000";
/// Of PostgreSQL.
pub(crate) const POSTGRES_PORT: u16 = 5432;

/// A network namespace that is gone when nobody uses it any more.
pub(crate) struct Netns(File);

impl Netns {
    pub(crate) fn new() -> Result<Self> {
        let made = std::thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        });
        let netns = Self(made.join().ok().context("the thread died")?.context("making a network namespace")?);
        netns.run(["ip", "link", "set", "lo", "up"])?;
        netns.run(["sysctl", "-qw", &format!("net.ipv4.ip_local_port_range={CLIENT_PORTS}")])?;
        Ok(netns)
    }
    /// A path that opens it as long as this lives.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
    /// Does something in it, on a thread of its own: what the guard is loaded and attached by must be there, since it
    /// leads the published ports of that namespace.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
                work()
            });
            thread.join().ok().context("the thread died")?
        })
    }
    /// Runs a command in it.
    pub(crate) fn run<const N: usize>(&self, command: [&str; N]) -> Result<()> {
        let status = enter(Some(&self.path()), None, None).args(["timeout", "20"]).args(command).status()?;
        if !status.success() {
            bail!("`{}` failed in a network namespace", command.join(" "));
        }
        Ok(())
    }
}

/// The program with both ends of the data path; it lies beside this one.
pub(crate) fn load_program() -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name("palisade-load");
    if !path.exists() {
        bail!("{} is missing: build the whole crate with `cargo build --release -p palisade-bench`", path.display());
    }
    Ok(path)
}

/// A command that is given as further arguments, in a namespace, a cgroup and on a processor.
pub(crate) fn enter(netns: Option<&Path>, cgroup: Option<&Path>, cpu: Option<usize>) -> Command {
    let word =
        |path: Option<&Path>| path.map_or_else(|| OsStr::new("-").to_owned(), |path| path.as_os_str().to_owned());
    let mut command = Command::new(load_program().unwrap_or_else(|_| "palisade-load".into()));
    command.arg("enter").arg(word(netns)).arg(word(cgroup)).arg(cpu.map_or("-".into(), |cpu| cpu.to_string()));
    command.stdin(Stdio::null());
    command
}

/// Where one end runs.
#[derive(Clone)]
pub(crate) enum Seat {
    /// A process of the host.
    Process { netns: PathBuf, cgroup: PathBuf },
    /// A process in a container.
    Container { docker_socket: PathBuf, name: &'static str },
}

impl Seat {
    /// A command that is given as further arguments; it ends after so many seconds whatever happens.
    pub(crate) fn command(&self, cpu: usize, timeout_s: u32, user: Option<&str>) -> Command {
        let mut command = match self {
            Seat::Process { netns, cgroup } => enter(Some(netns), Some(cgroup), Some(cpu)),
            Seat::Container { docker_socket, name } => {
                let mut command = Docker::client(docker_socket);
                command.args(["exec", name, "/bench/palisade-load", "enter", "-", "-", &cpu.to_string()]);
                command
            }
        };
        command.args(["/usr/bin/timeout", &timeout_s.to_string()]);
        if let Some(user) = user {
            command.args(["/usr/bin/setpriv", "--reuid", user, "--regid", user, "--init-groups"]);
        }
        command.stdin(Stdio::null());
        command
    }
    /// The load program there.
    pub(crate) fn load(&self, cpu: usize, timeout_s: u32) -> Result<Command> {
        let mut command = self.command(cpu, timeout_s, None);
        match self {
            Seat::Process { .. } => command.arg(load_program()?),
            Seat::Container { .. } => command.arg("/bench/palisade-load"),
        };
        Ok(command)
    }
}

/// A server and a client, and the way between them.
pub(crate) struct World {
    pub(crate) label: &'static str,
    pub(crate) server: Seat,
    pub(crate) client: Seat,
    /// Where the client finds the server.
    pub(crate) host: String,
    /// Of which other world this one's server is, for servers that keep running.
    pub(crate) same_server_as: Option<usize>,
}

/// Everything that has to live while worlds are used.
pub(crate) struct Worlds {
    pub(crate) list: Vec<World>,
    netns_list: Vec<Netns>,
    _docker: Option<Docker>,
    guards: Vec<(Guard, [PathBuf; 2])>,
}

impl Drop for Worlds {
    fn drop(&mut self) {
        for (guard, _) in self.guards.drain(..) {
            // The pins are in a file system of our own and go with it anyway.
            let _ = guard.unload();
        }
    }
}

impl Worlds {
    /// Makes all of them. `volumes` are folders that the server's container sees at the same place.
    pub(crate) fn new(scratch: &Scratch, prefix: &str, options: &Options, volumes: &[PathBuf]) -> Result<Self> {
        let mut worlds = Self { list: vec![], netns_list: vec![], _docker: None, guards: vec![] };
        for label in ["unguarded", "unguarded again"] {
            worlds.add_processes(scratch, prefix, label, "127.0.0.1")?;
        }
        worlds.add_processes(scratch, prefix, "unguarded, usual firewall", "127.0.0.1")?;
        crate::firewall::set_usual(worlds.netns_list.last().context("a namespace was just made")?)?;
        for (label, firewall) in [("guarded", false), ("guarded, host firewall", true)] {
            let server = instance(0);
            worlds.add_processes(scratch, prefix, label, &server.service().to_string())?;
            let netns = worlds.netns_list.last().context("a namespace was just made")?;
            if firewall {
                crate::firewall::set(netns, &scratch.realm)?;
            }
            let pins = scratch.pins(&format!("{prefix}-{firewall}"))?;
            let [server, client] = worlds.cgroups(scratch, prefix, label)?;
            let guard = netns.inside(|| {
                let guard = Guard::load(&pins)?;
                guard.attach(&server, instance(0))?;
                guard.attach(&client, instance(1))?;
                guard.set_policy(&flat_policy(3))?;
                Ok(guard)
            })?;
            for (program, index) in options.without.iter().flat_map(|program| [(program, 0), (program, 1)]) {
                let link = instance(index).to_string().replace('.', "-");
                let path = pins.join("links").join(link).join(program);
                fs::remove_file(&path).with_context(|| format!("detaching {}", path.display()))?;
            }
            worlds.guards.push((guard, [server, client]));
        }
        if options.docker {
            worlds.add_docker(scratch, prefix, volumes)?;
        }
        Ok(worlds)
    }

    fn cgroups(&self, scratch: &Scratch, prefix: &str, label: &str) -> Result<[PathBuf; 2]> {
        let name = format!("{prefix}-{}", label.replace([' ', ','], "-"));
        Ok([scratch.cgroup(&format!("{name}-server"))?, scratch.cgroup(&format!("{name}-client"))?])
    }

    fn add_processes(&mut self, scratch: &Scratch, prefix: &str, label: &'static str, host: &str) -> Result<()> {
        let netns = Netns::new()?;
        let [server, client] =
            self.cgroups(scratch, prefix, label)?.map(|cgroup| Seat::Process { netns: netns.path(), cgroup });
        self.netns_list.push(netns);
        self.list.push(World { label, server, client, host: host.into(), same_server_as: None });
        Ok(())
    }

    fn add_docker(&mut self, scratch: &Scratch, prefix: &str, volumes: &[PathBuf]) -> Result<()> {
        let netns = Netns::new()?;
        let docker = Docker::start(scratch, prefix, &netns, volumes)?;
        let container = |name| Seat::Container { docker_socket: docker.socket(), name };
        let on_host =
            Seat::Process { netns: netns.path(), cgroup: scratch.cgroup(&format!("{prefix}-docker-host-client"))? };
        let server = container("server");
        let first = self.list.len();
        for (label, client, host) in [
            ("Docker, container to container", container("client"), docker.address("server")?),
            ("Docker, published port", on_host.clone(), docker.host_address().into()),
            ("Docker, published port by localhost", on_host, "127.0.0.1".into()),
        ] {
            let same_server_as = (self.list.len() > first).then_some(first);
            self.list.push(World { label, server: server.clone(), client, host, same_server_as });
        }
        self.netns_list.push(netns);
        self._docker = Some(docker);
        Ok(())
    }
}

/// The only instance of a service.
pub(crate) fn instance(index: u16) -> InstanceAddress {
    ServiceIndex(index).address().expect("few services").instance(1)
}

/// A service that is in the same network as all others and declares the ports of the measurements.
pub(crate) fn service(index: u16) -> ServicePolicy {
    let tcp = |port| BindRule { container: PortProto { port, proto: Proto::Tcp }, published: None };
    ServicePolicy {
        name: ServiceName::parse(format!("s{index}")).expect("a valid name"),
        address: instance(index).service(),
        networks: 1,
        backends: vec![instance(index)],
        binds: vec![tcp(LOAD_PORT), tcp(LOAD_PORT + 1), tcp(POSTGRES_PORT)],
        strict: false,
        host_mode: false,
        connect: None,
        localhost: vec![],
        host_ports: vec![],
        egress: EgressPolicy::All,
        resolvers: vec![],
    }
}

/// A stack of so many services on one network.
pub(crate) fn flat_policy(services: u16) -> Policy {
    Policy { mode: Mode::Enforce, services: (0..services).map(service).collect(), resolvers: vec![] }
}

/// The same, but each service was given only some peers by name and port: itself-avoiding, the next `peers` ones.
pub(crate) fn narrowed_policy(services: u16, peers: u16) -> Policy {
    let mut policy = flat_policy(services);
    for (index, service) in (0..services).zip(&mut policy.services) {
        let grant = |server: u16| PeerGrant {
            server: instance(server).service(),
            port: Some(PortProto { port: LOAD_PORT, proto: Proto::Tcp }),
        };
        let control = |server: u16| PeerGrant {
            server: instance(server).service(),
            port: Some(PortProto { port: LOAD_PORT + 1, proto: Proto::Tcp }),
        };
        // The second one is the client of the measurement and may reach all.
        let count = if index == 1 { services } else { peers.min(services) };
        let reached = (1..=count).map(|step| (index + step) % services);
        service.connect = Some(reached.flat_map(|peer| [grant(peer), control(peer)]).collect());
    }
    policy
}

/// A child that doesn't outlive its owner.
pub(crate) struct Background(Child);

impl Background {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(command.spawn().with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?))
    }
    /// Lets it end in its own way, for some seconds.
    pub(crate) fn ask_to_end(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    /// Waits until it ends by itself.
    pub(crate) fn wait(&mut self) -> Result<()> {
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}
