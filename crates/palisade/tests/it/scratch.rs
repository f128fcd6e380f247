//! A scratch host for the binary: a network namespace with an internet beside it, a realm of its own, a folder for the
//! Compose file; everything removed at the end, also when the test panics.
//!
//! What is expected of the binary is said by the tests.

use std::fs;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_core::names::ProjectName;
use palisade_host::cgroup::{Cgroup, Mounts};
use palisade_host::layout::Layout;
use palisade_host::link::{self, VethEnd};
use palisade_host::netns::{Entered, Netns};

use crate::support::PALISADE;

/// Address of the host and of somebody on the internet.
pub(crate) const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1));
pub(crate) const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 2));

/// Longer than anything takes on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// The calling thread, and what it starts, is on the scratch host until this is dropped.
pub(crate) struct Host {
    pub(crate) layout: Layout,
    pub(crate) folder: PathBuf,
    pub(crate) internet: Netns,
    _entered: Entered,
}

/// How a run of the binary ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A run of the binary that goes on; killed when dropped.
pub(crate) struct Running {
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
    line: String,
}

impl Host {
    /// For the stack `shop`.
    pub(crate) fn new() -> Self {
        Self::of("shop")
    }

    pub(crate) fn of(project: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let realm = format!("palisade-test-{}-host{number:02}", std::process::id());
        let folder = std::env::temp_dir().join(&realm);
        fs::create_dir_all(&folder).unwrap();
        let host = Netns::unnamed().unwrap();
        let internet = Netns::unnamed().unwrap();
        link::add_veth(
            VethEnd { netns: &host, name: "eth0", index: None, mac: None },
            VethEnd { netns: &internet, name: "eth0", index: None, mac: None },
        )
        .unwrap();
        for (netns, own, other) in [(&host, HOST, STRANGER), (&internet, STRANGER, HOST)] {
            netns
                .run(|| {
                    link::set_up("lo", false).unwrap();
                    link::set_up("eth0", false).unwrap();
                    link::add_address("eth0", own, 24).unwrap();
                    link::add_route("eth0", None, Some(other), false).unwrap();
                })
                .unwrap();
        }
        let entered = host.enter().unwrap();
        let layout = Layout { realm, project: ProjectName::parse(project).unwrap() };
        Self { layout, folder, internet, _entered: entered }
    }

    /// Writes the Compose file.
    pub(crate) fn write(&self, text: &str) {
        fs::write(self.folder.join("compose.yaml"), text).unwrap();
    }

    /// The binary with this host's realm, in the folder of the Compose file.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.wrapped(&[], Path::new(PALISADE), arguments)
    }

    /// The same, started by another program.
    pub(crate) fn wrapped(&self, wrapper: &[&str], binary: &Path, arguments: &[&str]) -> Command {
        let mut command = match wrapper {
            [] => Command::new(binary),
            [program, rest @ ..] => {
                let mut command = Command::new(program);
                command.args(rest).arg(binary);
                command
            }
        };
        command.args(["--realm", &self.layout.realm]).args(arguments);
        command.current_dir(&self.folder).env("NO_COLOR", "1").env_remove("SSH_CONNECTION");
        command
    }

    pub(crate) fn palisade(&self, arguments: &[&str]) -> Ran {
        Running::start(self.command(arguments)).end(PATIENCE)
    }

    /// `up --wait`, which has to work.
    pub(crate) fn up(&self) -> Ran {
        self.palisade(&["up", "--wait"]).expect(0)
    }

    /// `down` with everything, after which nothing may be left.
    pub(crate) fn down(&self) {
        self.palisade(&["down", "--volumes", "--yes"]).expect(0);
        self.assert_nothing_left();
    }

    /// What `ps` tells programs.
    pub(crate) fn ps(&self) -> serde_json::Value {
        serde_json::from_str(&self.palisade(&["ps", "--format", "json"]).expect(0).out).unwrap()
    }

    /// The instance's own process, by `ps`.
    pub(crate) fn pid(&self, instance: &str) -> Option<i64> {
        let ps = self.ps();
        let instances = ps["instances"].as_array().unwrap();
        instances.iter().find(|seen| seen["instance"] == instance).and_then(|seen| seen["pid"].as_i64())
    }

    /// What a service printed, without times.
    pub(crate) fn log(&self, service: &str) -> Vec<String> {
        let path = self.layout.log_directory().join(format!("{service}.1.log"));
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or(line).to_owned()).collect()
    }

    /// Waits until a service has printed a line that contains this.
    pub(crate) fn wait_for_line(&self, service: &str, part: &str) {
        patiently(&format!("`{part}` of {service}, which printed {:?}", self.log(service)), || {
            self.log(service).iter().any(|line| line.contains(part)).then_some(())
        });
    }

    /// Whether somebody on the internet can connect to this port of the host.
    pub(crate) fn open_to_strangers(&self, port: u16) -> bool {
        !self.all_open_to_strangers(&[port]).is_empty()
    }

    /// To which of these ports of the host somebody on the internet can connect; all are tried at once.
    pub(crate) fn all_open_to_strangers(&self, ports: &[u16]) -> Vec<u16> {
        let internet = &self.internet;
        let knock = move |port| internet.run(|| connects(SocketAddr::new(HOST, port))).unwrap();
        std::thread::scope(|scope| {
            let knocks: Vec<_> = ports.iter().map(|port| (*port, scope.spawn(move || knock(*port)))).collect();
            knocks.into_iter().filter_map(|(port, knock)| knock.join().unwrap().then_some(port)).collect()
        })
    }

    /// Processes of the realm: those in its cgroups, and those that have its name among their arguments.
    pub(crate) fn processes(&self) -> Vec<(i32, String)> {
        processes_of(&self.layout.realm)
    }

    /// The stack's agent.
    pub(crate) fn agent(&self) -> Option<i32> {
        self.processes().into_iter().find(|(_, line)| line.contains(" __agent ")).map(|(pid, _)| pid)
    }

    /// Everything of the stack that is still somewhere on this machine, but for its logs.
    pub(crate) fn left(&self) -> Vec<String> {
        let mut left = left_of(&self.layout.realm);
        left.retain(|what| !what.starts_with("/var/log/"));
        let tables = Command::new("timeout").args(["20", "nft", "list", "tables"]).output().unwrap();
        left.extend(String::from_utf8_lossy(&tables.stdout).lines().map(str::to_owned));
        let interfaces = link::interfaces().unwrap();
        let addresses = interfaces.iter().filter(|interface| interface.loopback).flat_map(|i| &i.addresses);
        left.extend(addresses.map(|(ip, _)| ip.to_string()).filter(|ip| ip != "127.0.0.1" && ip != "::1"));
        left
    }

    #[track_caller]
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(left_at_last(|| self.left()), Vec::<String>::new());
    }

    /// A message without what differs from run to run.
    pub(crate) fn redacted(&self, text: &str) -> String {
        let text = text.replace(&self.layout.realm, "[realm]").replace(&*self.folder.to_string_lossy(), "[folder]");
        without_numbers_after(&text, &["process id ", "process ", "pid "])
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        remove_all(&self.layout);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Removes what a realm has outside its network namespaces, whatever became of the test.
pub(crate) fn remove_all(layout: &Layout) {
    // A command that hangs is none of the cgroup's.
    for (pid, _) in processes_of(&layout.realm) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    if let Err(error) = Cgroup::all_of_realm(layout).and_then(|all| all.iter().try_for_each(Cgroup::remove)) {
        eprintln!("cannot clean up {}: {error}", layout.realm);
    }
    let pins = palisade_guard::pin_root(&layout.realm, &layout.realm_run());
    for stack in palisade_guard::pinned_stacks(&pins) {
        let _ = palisade_guard::Guard::remove(&stack);
    }
    let _ = palisade_guard::unmount_bpffs(&pins);
    for base in ["/run", "/var/lib", "/var/log"] {
        let _ = fs::remove_dir_all(Path::new(base).join(&layout.realm));
    }
    let _ = fs::remove_file(format!("/run/{}-firewall.lock", layout.realm));
}

/// Processes in a realm's cgroups, or with its name among their arguments.
pub(crate) fn processes_of(realm: &str) -> Vec<(i32, String)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let own = std::process::id() as i32;
    pids.filter(|pid| *pid != own)
        .filter_map(|pid| {
            let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let cgroups = String::from_utf8_lossy(&read("cgroup")).into_owned();
            let dead =
                String::from_utf8_lossy(&read("stat")).rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'));
            (!dead && (line.contains(realm) || cgroups.contains(realm))).then_some((pid, line))
        })
        .collect()
}

/// What of a realm is on this machine: folders, cgroups, mounts, pins, processes, named namespaces.
pub(crate) fn left_of(realm: &str) -> Vec<String> {
    let mounts = Mounts::find().unwrap();
    let cgroups = mounts.paths().map(|path| path.join(realm));
    let folders = ["/run", "/var/lib", "/var/log", "/sys/fs/bpf"].map(|base| Path::new(base).join(realm));
    let mut left: Vec<String> =
        cgroups.chain(folders).filter(|path| path.exists()).map(|path| path.display().to_string()).collect();
    left.extend(
        fs::read_to_string("/proc/self/mounts").unwrap().lines().filter(|line| line.contains(realm)).map(str::to_owned),
    );
    let lock = format!("/run/{realm}-firewall.lock");
    left.extend(Some(lock).filter(|lock| Path::new(lock).exists()));
    left.extend(processes_of(realm).into_iter().map(|(pid, line)| format!("process {pid}: {line}")));
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    left.extend(names.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.contains(realm)));
    left
}

/// What is left when processes that are ending have ended: one has left its cgroup before it is a zombie.
pub(crate) fn left_at_last(mut ask: impl FnMut() -> Vec<String>) -> Vec<String> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let left = ask();
        if !left.iter().any(|what| what.starts_with("process ")) || Instant::now() > until {
            return left;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asks until the answer is there.
#[track_caller]
pub(crate) fn patiently<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "waited {} s for {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether somebody accepts there, soon.
pub(crate) fn connects(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
}

fn without_numbers_after(text: &str, words: &[&str]) -> String {
    let mut text = text.to_owned();
    for word in words {
        let mut parts = text.split(word);
        let mut new = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
            new += word;
            new += if rest.len() < part.len() { "[pid]" } else { "" };
            new += rest;
        }
        text = new;
    }
    text
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let line = format!("{command:?}");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
        let out = read_aside(child.stdout.take().unwrap());
        let err = read_aside(child.stderr.take().unwrap());
        Self { child, out, err, line }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub(crate) fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end, and for the end of what it printed.
    #[track_caller]
    pub(crate) fn end(mut self, patience: Duration) -> Ran {
        let deadline = Instant::now() + patience;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if Instant::now() > deadline => {
                    let _ = self.child.kill();
                    let _ = self.child.wait();
                    break None;
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let (out, err) =
            (self.out.recv_timeout(Duration::from_secs(10)), self.err.recv_timeout(Duration::from_secs(10)));
        let held = |what: &str| panic!("{}: it ended, but somebody else still holds its {what}", self.line);
        let (out, err) = (out.unwrap_or_else(|_| held("output")), err.unwrap_or_else(|_| held("errors")));
        let Some(status) = status else { panic!("not done after {patience:?}: {}\n{out}{err}", self.line) };
        Ran { code: status.code(), out, err }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_aside(mut pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        // Nobody listens any more when the test has failed.
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

impl Ran {
    /// Fails unless it ended with this code.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.out, self.err);
        self
    }

    /// Its exit code and what it printed, for snapshots: without the steps that worked, which other tests show.
    pub(crate) fn whole(&self, host: &Host) -> String {
        let code = self.code.map_or("killed".to_owned(), |code| format!("exit code {code}"));
        let text = format!("{code}\n{}{}", self.out, self.err);
        let worked = |line: &&str| line.starts_with('[') && !line.ends_with(": failed");
        let lines = text.lines().filter(|line| !worked(line)).map(|line| match line.split_once("] ") {
            Some((position, step)) if position.starts_with('[') => step,
            _ => line,
        });
        host.redacted(&lines.collect::<Vec<_>>().join("\n"))
    }
}
