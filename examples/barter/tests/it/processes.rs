//! Starts and stops the stack's parts for tests, on loopback and in a folder of their own. No test stands here.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use barter::http::BaseUrl;

use crate::free_ports::free_ports;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bin");
const PATIENCE: Duration = Duration::from_secs(30);

/// A port of 127.0.0.1 that nobody listens on.
pub(crate) fn free_port() -> u16 {
    let [port] = free_ports();
    port
}

/// Waits until it holds, or fails the test.
pub(crate) async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Sends a signal to a child of ours, or to the process group that it leads.
fn signal(child: &Child, name: &str, group: bool) {
    let target = format!("{}{}", if group { "-" } else { "" }, child.id());
    let sent = Command::new("kill").args(["-s", name, "--", &target]).stderr(Stdio::null()).status();
    assert!(sent.is_ok());
}

/// Waits for the end of a child; kills it (and its group) when it takes too long.
fn end(child: &mut Child, group: bool) -> Option<i32> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    signal(child, "KILL", group);
    let _ = child.wait();
    None
}

/// A PostgreSQL that `bin/postgres` makes and runs. Ends and is removed with this value.
pub(crate) struct Cluster {
    folder: PathBuf,
    port: u16,
    user: Option<(u32, u32)>,
    running: Option<Child>,
}

impl Cluster {
    /// Folders for one, or `None` after saying why the test is skipped.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let skip = |reason: &str| {
            println!("SKIPPED: {test}: {reason}");
            None
        };
        let installed = Command::new("sh")
            .args([
                "-c",
                "ls -d /usr/lib/postgresql/*/bin/initdb /usr/pgsql-*/bin/initdb 2>/dev/null || command -v initdb",
            ])
            .output();
        if installed.unwrap().stdout.is_empty() {
            return skip("PostgreSQL's server isn't installed");
        }
        // PostgreSQL refuses to run as root.
        let user = match fs::metadata("/proc/self").unwrap().uid() {
            0 => match (id("-u"), id("-g")) {
                (Some(uid), Some(gid)) => Some((uid, gid)),
                _ => return skip("running as root, and there is no user postgres to run the server as"),
            },
            _ => None,
        };
        let folder = std::env::temp_dir().join(format!("barter-{}-{}", std::process::id(), free_port()));
        for name in ["", "home", "secrets", "sockets"] {
            let path = folder.join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            if let Some((uid, gid)) = user {
                chown(&path, Some(uid), Some(gid)).unwrap();
            }
        }
        Some(Self { folder, port: free_port(), user, running: None })
    }

    fn script(&self) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .arg(format!("{SCRIPTS}/postgres"))
            .current_dir("/")
            .env("BARTER_PG_HOME", self.folder.join("home"))
            .env("BARTER_SECRETS", self.folder.join("secrets"))
            .env("BARTER_PG_SOCKETS", self.folder.join("sockets"))
            .env("BARTER_PG_LISTEN", "127.0.0.1")
            .env("BARTER_CLIENTS", "127.0.0.0/8")
            .env("PGPORT", self.port.to_string())
            .stdin(Stdio::null())
            .process_group(0);
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn spawn(&self) -> Child {
        let log = fs::File::options().create(true).append(true).open(self.folder.join("log")).unwrap();
        self.script().stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    /// Starts it and waits until it is ready.
    pub(crate) fn start(&mut self) {
        let started = Instant::now();
        let mut child = self.spawn();
        while !self.script().arg("ready").stderr(Stdio::null()).status().unwrap().success() {
            let ended = child.try_wait().unwrap();
            if ended.is_some() || started.elapsed() > PATIENCE {
                self.running = Some(child);
                panic!("PostgreSQL did not start: {}", fs::read_to_string(self.folder.join("log")).unwrap());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.running = Some(child);
    }

    /// Starts it and kills it and everything that it started, whatever it is doing then.
    pub(crate) fn start_and_kill(&mut self, after: Duration) {
        let mut child = self.spawn();
        std::thread::sleep(after);
        signal(&child, "KILL", true);
        child.wait().unwrap();
        // What it had started is waited for by nobody, and may still write.
        let started = Instant::now();
        while Command::new("pgrep")
            .args(["-g", &child.id().to_string()])
            .stdout(Stdio::null())
            .status()
            .unwrap()
            .success()
        {
            assert!(started.elapsed() < PATIENCE, "something of it still runs");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops it without waiting for its clients.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.running.take() {
            signal(&child, "INT", false);
            end(&mut child, true);
        }
    }

    fn password_file(&self) -> PathBuf {
        self.folder.join("secrets/postgres-password")
    }
    /// What is in force.
    pub(crate) fn password(&self) -> String {
        fs::read_to_string(self.password_file()).unwrap()
    }
    /// As if the secrets' volume had been removed.
    pub(crate) fn lose_password(&self) {
        fs::remove_file(self.password_file()).unwrap();
    }
    /// Mode of the password's file.
    pub(crate) fn password_mode(&self) -> u32 {
        fs::metadata(self.password_file()).unwrap().mode()
    }
    /// What is in the cluster's volume besides the cluster and the log of its making.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let names = fs::read_dir(self.folder.join("home")).unwrap();
        names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "data" && name != "initdb.log")
            .collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn id(what: &str) -> Option<u32> {
    let output = Command::new("id").args([what, "postgres"]).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// `ollama-stand-in` on a port of 127.0.0.1.
pub(crate) struct OllamaStandIn(Child);

impl OllamaStandIn {
    pub(crate) fn start(port: u16) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_ollama-stand-in"))
            .env("OLLAMA_HOST", format!("127.0.0.1:{port}"))
            .env_remove("OLLAMA_STAND_IN_MODEL")
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }
    /// At once, as if it had crashed.
    pub(crate) fn stop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for OllamaStandIn {
    fn drop(&mut self) {
        self.stop();
    }
}

/// `barter` on a port of 127.0.0.1.
pub(crate) struct App {
    child: Child,
    port: u16,
    pub(crate) base: BaseUrl,
}

impl App {
    pub(crate) fn start(cluster: &Cluster, ollama_port: u16) -> Self {
        let port = free_port();
        let mut command = Self::command(port);
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", cluster.port.to_string())
            .env("PGPASSWORD_FILE", cluster.password_file())
            .env("OLLAMA_URL", format!("http://127.0.0.1:{ollama_port}"))
            .stderr(Stdio::null());
        Self { child: command.spawn().unwrap(), port, base: BaseUrl::new("127.0.0.1", port) }
    }

    /// Waits until it listens, whatever it answers.
    pub(crate) async fn answers(&self) {
        eventually("the application to listen", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok()
        })
        .await;
    }

    fn command(port: u16) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_barter")));
        command.env_clear().env("BIND", "127.0.0.1").env("PORT", port.to_string());
        command
    }

    /// What `barter health` says.
    pub(crate) fn health_verb(&self) -> bool {
        Self::command(self.port).arg("health").stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    }

    /// Asks it to stop; its exit code.
    pub(crate) fn stop(mut self) -> Option<i32> {
        signal(&self.child, "TERM", false);
        end(&mut self.child, false)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
