//! The yardstick: a Docker Engine of its own, on a scratch host, with all cases.
//!
//! The machine's engine, if there is one, is neither used nor seen: socket, data and rules are the run's own, and it is in
//! a PID namespace that ends with the test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::case::Case;
use super::place::{Asker, Place, copy, wait_for};
use crate::scratch::{STRANGER, left_at_last, left_of};

/// What the services of every case say as their `image`.
const IMAGE: &str = "palisade-speaker:1";

/// The daemon, on a scratch host.
pub(crate) struct Docker {
    // Ends before the host does.
    daemon: Daemon,
    /// The thread that started it is on the scratch host, and stays there.
    place: Place,
}

/// What threads need to use it.
#[derive(Clone)]
pub(crate) struct Client {
    asker: Asker,
    socket: PathBuf,
    folder: PathBuf,
}

struct Daemon {
    child: Child,
    data: PathBuf,
}

/// Programs that a machine without `scripts/install-deps test` may lack.
pub(crate) fn missing() -> Vec<&'static str> {
    let is_there = |name: &str| {
        let command = format!("command -v {name}");
        Command::new("sh").args(["-c", &command]).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    ["dockerd", "docker", "docker-compose", "iptables", "/usr/bin/python3"]
        .into_iter()
        .filter(|name| !is_there(name))
        .collect()
}

impl Docker {
    /// Starts the daemon and gives it the image, or says why that can't be.
    pub(crate) fn start() -> Result<Self, String> {
        let place = Place::new("docker");
        let realm = place.host.layout.realm.clone();
        let folder = place.host.folder.clone();
        // Not /tmp, which may be memory: images go there.
        let data = Path::new("/var/tmp").join(&realm);
        fs::create_dir_all(&data).map_err(|error| error.to_string())?;
        let log = fs::File::create(folder.join("dockerd.log")).map_err(|error| error.to_string())?;
        let mut command = Command::new("setpriv");
        // Whatever ends this test ends the namespace's first process, and that everything in it.
        command.args(["--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["sh", "-ec", FENCE, "sh", "dockerd"]);
        command.arg("--data-root").arg(data.join("data")).arg("--exec-root").arg(data.join("exec"));
        command.arg("--pidfile").arg(data.join("pid"));
        command.arg("--host").arg(format!("unix://{}", folder.join("docker.sock").display()));
        command.args(["--cgroup-parent", &format!("/{realm}"), "--dns", &STRANGER.to_string(), "--log-level", "warn"]);
        command.args(["--default-address-pool", "base=10.213.0.0/16,size=24", "--bip", "10.212.0.1/24"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().map_err(|error| error.to_string())?;
        let mut docker = Self { daemon: Daemon { child, data }, place };
        let client = docker.client();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !client.run("docker", &["info"]).is_ok_and(|text| text.contains("Server Version")) {
            if Instant::now() > deadline || docker.daemon.has_ended() {
                let log = fs::read_to_string(folder.join("dockerd.log")).unwrap_or_default();
                return Err(format!(
                    "dockerd didn't start; the end of its log: {}",
                    log.lines().last().unwrap_or_default()
                ));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        import_image(&client)?;
        Ok(docker)
    }

    /// Ends it; what is left of it on this machine is returned.
    pub(crate) fn end(self) -> Vec<String> {
        let realm = self.place.host.layout.realm.clone();
        let data = self.daemon.data.clone();
        drop(self);
        let mut left = left_at_last(|| left_of(&realm));
        let mounts =
            fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path().join(&realm));
        left.extend(mounts.filter(|path| path.exists()).map(|path| path.display().to_string()));
        left.extend(data.exists().then(|| data.display().to_string()));
        left
    }

    /// To use it.
    pub(crate) fn client(&self) -> Client {
        let folder = self.place.host.folder.clone();
        Client { asker: self.place.asker.clone(), socket: folder.join("docker.sock"), folder }
    }
}

/// The daemon raises limits of the machine when it starts, and has files below /run and /etc: neither shall reach the
/// machine.
const FENCE: &str = r#"
for folder in /proc/sys/kernel /proc/sys/vm /proc/sys/fs; do
    mount --bind $folder $folder
    mount -o remount,ro,bind $folder
done
mount -t tmpfs -o mode=755 tmpfs /run
[ ! -d /etc/docker ] || mount -t tmpfs -o mode=755 tmpfs /etc/docker
exec "$@"
"#;

impl Client {
    /// Brings the case up, asks, and takes it away; what is not as expected is returned.
    pub(crate) fn case(&self, case: &Case) -> Vec<String> {
        let folder = self.folder.join(&case.name);
        fs::create_dir_all(&folder).unwrap();
        let speak = copy(case, &folder);
        leave_out_ports_in_host_mode(&folder.join("compose.yaml"));
        let file = folder.join("compose.yaml").to_string_lossy().into_owned();
        let compose = |arguments: &[&str]| {
            let project = ["--project-name", &case.name, "--file", &file, "--ansi", "never"];
            self.run("docker-compose", &[&project[..], arguments].concat())
        };
        if let Err(why) = compose(&["up", "--detach", "--no-build"]) {
            return vec![format!("docker-compose can't bring it up: {why}")];
        }
        wait_for(&speak, &case.speakers, || compose(&["logs"]).unwrap_or_default());
        let wrong = self.asker.ask(case, &speak, |probe| &probe.docker);
        if let Err(why) = compose(&["kill"]) {
            eprintln!("{}: {why}", case.name);
        }
        wrong
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "90", program]).args(arguments).stdin(Stdio::null());
        command.env("DOCKER_HOST", format!("unix://{}", self.socket.display())).env("DOCKER_CONFIG", &self.folder);
        let output = command.output().map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

/// Docker Compose 2 ignores them there; version 1, which distributions still ship, refuses the file.
fn leave_out_ports_in_host_mode(file: &Path) {
    let text = fs::read_to_string(file).unwrap();
    let kept = text.lines().filter(|line| !line.ends_with("# ignored by Docker in host mode"));
    fs::write(file, kept.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

/// Python, with the libraries that it needs, as the machine has it.
fn import_image(client: &Client) -> Result<(), String> {
    let archive = client.folder.join("image.tar");
    let mut command = Command::new("timeout");
    command.args(["60", "/usr/bin/python3", "-c", PACK]).arg(&archive).stdin(Stdio::null());
    let output = command.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("packing an image: {}", String::from_utf8_lossy(&output.stderr)));
    }
    client.run("docker", &["import", &archive.to_string_lossy(), IMAGE])?;
    let _ = fs::remove_file(archive);
    Ok(())
}

const PACK: &str = r#"
import glob, os, re, subprocess, sys, sysconfig, tarfile
base = [os.path.realpath(sys.executable)]
stdlib = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
modules = [path for folder in stdlib for path in glob.glob(folder + "/lib-dynload/*.so")]
listed = subprocess.run(["ldd", *base, *modules], capture_output=True, text=True).stdout
libraries = set(re.findall(r"(/\S+) \(0x", listed))
for place in ("/lib64", "/usr/lib64", "/lib/*-linux-gnu"):
    for name in ("libnss_files", "libnss_dns", "libresolv"):
        libraries.update(glob.glob(f"{place}/{name}.so.2"))

def small(member):
    parts = member.name.split("/")
    skipped = {"test", "tests", "idlelib", "lib2to3", "tkinter", "dist-packages", "site-packages", "ensurepip", "distutils"}
    return None if skipped & set(parts) or parts[3:4] and parts[3].startswith("config-") else member

with tarfile.open(sys.argv[1], "w") as archive:
    for name in ("bin", "sbin", "lib", "lib64"):
        if os.path.islink("/" + name):
            archive.add("/" + name, name)
    for path in sorted(libraries):
        # Where a folder is a link, what it leads to is what gets the file.
        target = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        archive.add(os.path.realpath(path), target)
    archive.add(base[0], "/usr/bin/python3")
    for folder in stdlib:
        archive.add(folder, folder, filter=small)
    for path in ("/etc/nsswitch.conf",):
        if os.path.exists(path):
            archive.add(path, path)
"#;

/// Also of hierarchies that only an engine uses.
fn remove_cgroup(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path());
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while path.exists() && fs::remove_dir(path).is_err() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Daemon {
    fn cgroups(&self) -> Vec<PathBuf> {
        let realm = self.data.file_name().unwrap();
        let mounts =
            fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path().join(realm));
        mounts.chain([Path::new("/sys/fs/cgroup").join(realm)]).filter(|path| path.exists()).collect()
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The PID namespace ends with `unshare`: daemon, shims and containers at once.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for cgroup in self.cgroups() {
            remove_cgroup(&cgroup);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir_all(&self.data).is_err() && self.data.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
