//! A Docker Engine for one scratch host, with an image that has nothing but busybox; everything of it is removed at the
//! end, also when the test panics.
//!
//! It is in no PID namespace: Palisade looks at the processes of containers by the engine's numbers. An engine that is run by
//! systemd is in one with it ([`Systemd`]), and so are Palisade's commands.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use palisade_host::cgroup::Mounts;

use crate::scratch::{Host, PATIENCE, Ran, Running};
use crate::support::PALISADE;
use crate::systemd::Systemd;

/// Busybox, and nothing to run by default.
pub(crate) const IMAGE: &str = "box:1";

/// The engine of a scratch host. The thread that starts it is on that host.
pub(crate) struct Dockerd {
    runs: Runs,
    /// Of its folder and of its cgroups.
    name: String,
    folder: PathBuf,
}

/// Who runs the daemon.
enum Runs {
    Here {
        /// Keeps the mounts of the engine while the engine is dead.
        holder: Child,
        daemon: Child,
    },
    BySystemd(Systemd),
}

/// Programs that a machine without `scripts/install-deps test` may lack.
pub(crate) fn missing() -> Option<String> {
    let is_there = |name: &&str| {
        let command = format!("command -v {name}");
        Command::new("sh").args(["-c", &command]).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let names = ["dockerd", "docker", "busybox", "tar", "unshare", "nsenter"];
    let missing: Vec<_> = names.into_iter().filter(|name| !is_there(name)).collect();
    let linked = || {
        let listed = Command::new("sh").args(["-c", "ldd \"$(command -v busybox)\" 2>&1"]).output();
        listed.is_ok_and(|listed| String::from_utf8_lossy(&listed.stdout).contains("=>"))
    };
    match missing.is_empty() {
        false => Some(format!("{} not installed", missing.join(", "))),
        true if linked() => Some("busybox isn't static".to_owned()),
        true => None,
    }
}

/// The daemon raises limits of the machine when it starts, and has files below /run and /etc: neither shall reach the
/// machine.
const FENCE: &str = r#"
for folder in /proc/sys/kernel /proc/sys/vm /proc/sys/fs; do
    mount --bind $folder $folder
    mount -o remount,ro,bind $folder
done
for folder in /run/containerd /run/docker /etc/docker; do
    mkdir -p $folder
    mount -t tmpfs -o mode=755 tmpfs $folder
done
[ -z "$2" ] || mount -t tmpfs -o "size=$2" tmpfs "$1"
echo fenced
exec sleep 3600
"#;

/// Moves itself into the daemon's cgroups and becomes it: `sh -c JOIN sh NAME PID PROGRAM …`.
const JOIN: &str = r#"
for folder in /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs; do
    [ -e "$folder" ] || continue
    own=${folder%/cgroup.procs}/$1/daemon
    mkdir -p "$own"
    # The cpuset of a new cgroup is empty, and nobody may be in such a one.
    for file in cpuset.cpus cpuset.mems; do
        [ ! -e "$own/$file" ] || { cat "$own/../../$file" >"$own/../$file"; cat "$own/../$file" >"$own/$file"; }
    done 2>/dev/null
    echo 0 >"$own/cgroup.procs"
done
holder=$2
shift 2
exec nsenter "--mount=/proc/$holder/ns/mnt" "$@"
"#;

const ROOT: &str = r#"
mkdir -p "$1/bin" "$1/tmp" "$1/etc" "$1/data"
chmod 1777 "$1/tmp"
for name in $(busybox --list); do ln -sf busybox "$1/bin/$name"; done
rm -f "$1/bin/busybox"
cp "$(command -v busybox)" "$1/bin/busybox"
echo 'root:x:0:0::/:/bin/sh' >"$1/etc/passwd"
"#;

impl Dockerd {
    /// Starts it and gives it the image, or says why that can't be.
    pub(crate) fn start(host: &Host) -> Result<Self, String> {
        Self::start_on(host, None)
    }

    /// The same on a disk of this size, as `mount` reads it, that nobody else uses.
    pub(crate) fn start_on(host: &Host, size: Option<&str>) -> Result<Self, String> {
        let name = host.layout.realm.replace("palisade-test", "palisade-engine");
        // Not /tmp, which may be memory: images go there.
        let folder = Path::new("/var/tmp").join(&name);
        fs::create_dir_all(folder.join("data")).map_err(|error| error.to_string())?;
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-ec",
            FENCE,
            "sh",
        ]);
        command.arg(folder.join("data")).arg(size.unwrap_or_default());
        let mut holder =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
        let mut said = String::new();
        let lines = holder.stdout.as_mut().map(std::io::BufReader::new);
        let _ = lines.map(|mut lines| std::io::BufRead::read_line(&mut lines, &mut said));
        let daemon = Self::daemon(&name, &folder, holder.id())?;
        Self { runs: Runs::Here { holder, daemon }, name, folder }.ready()
    }

    /// The same with systemd, which runs it and makes the cgroups of its containers.
    pub(crate) fn start_with_systemd(host: &Host) -> Result<Self, String> {
        let name = host.layout.realm.replace("palisade-test", "palisade-systemd");
        let folder = Path::new("/var/tmp").join(&name);
        fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        let booted = Systemd::boot(&name, &folder);
        let systemd = booted.inspect_err(|_| drop(fs::remove_dir_all(&folder)))?;
        let path = |file: &str| folder.join(file).display().to_string();
        let command = format!(
            "dockerd --data-root {} --exec-root {} --pidfile {} --host unix://{} --exec-opt native.cgroupdriver=systemd \
             --log-level warn --bridge=none --iptables=false --ip-forward=false --ip-masq=false",
            path("data"),
            path("exec"),
            path("pid"),
            path("docker.sock"),
        );
        systemd.add_service("docker", &command, &folder.join("log"));
        let engine = Self { runs: Runs::BySystemd(systemd), name, folder };
        engine.systemctl(&["start", "--no-block", "docker"])?;
        engine.ready()
    }

    fn ready(mut self) -> Result<Self, String> {
        self.wait()?;
        let root = self.root();
        self.import(&root, IMAGE);
        Ok(self)
    }

    fn daemon(name: &str, folder: &Path, holder: u32) -> Result<Child, String> {
        let log = fs::File::options().append(true).create(true).open(folder.join("log"));
        let log = log.map_err(|error| error.to_string())?;
        let mut command = Command::new("sh");
        command.args(["-c", JOIN, "sh", name, &holder.to_string(), "dockerd"]);
        command.arg("--data-root").arg(folder.join("data")).arg("--exec-root").arg(folder.join("exec"));
        command.arg("--pidfile").arg(folder.join("pid"));
        command.arg("--host").arg(format!("unix://{}", folder.join("docker.sock").display()));
        command.args(["--cgroup-parent", &format!("/{name}/containers"), "--log-level", "warn"]);
        command.args(["--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.spawn().map_err(|error| error.to_string())
    }

    fn wait(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while !self.docker(&["version"]).is_ok_and(|text| text.contains("Server")) {
            let ended = match &mut self.runs {
                Runs::Here { daemon, .. } => !matches!(daemon.try_wait(), Ok(None)),
                Runs::BySystemd(_) => self.systemctl(&["is-failed", "docker"]).is_ok(),
            };
            if Instant::now() > deadline || ended {
                let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                return Err(format!("dockerd didn't start; its log ends with: {}", log.lines().last().unwrap_or("")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// A folder with what is in the image.
    pub(crate) fn root(&self) -> PathBuf {
        let root = self.folder.join("root");
        let status = Command::new("sh").args(["-ec", ROOT, "sh"]).arg(&root).status().unwrap();
        assert!(status.success());
        root
    }

    /// Makes an image of a folder.
    pub(crate) fn import(&self, root: &Path, image: &str) {
        let archive = self.folder.join("image.tar");
        let status = Command::new("tar").arg("-C").arg(root).arg("-cf").arg(&archive).arg(".").status().unwrap();
        assert!(status.success());
        self.docker(&["import", &archive.to_string_lossy(), image]).unwrap();
        fs::remove_file(archive).unwrap();
    }

    /// Kills the daemon as a crash would, without a chance to tidy up.
    pub(crate) fn kill(&mut self) {
        match &mut self.runs {
            Runs::Here { daemon, .. } => {
                let _ = daemon.kill();
                let _ = daemon.wait();
            }
            Runs::BySystemd(systemd) => {
                let _ = systemd.run("systemctl", &["kill", "--signal=KILL", "docker"]);
                return;
            }
        }
        // Its containerd follows; a daemon that starts before that waits for the dying one.
        let pid = fs::read_to_string(self.folder.join("exec/containerd/containerd.pid")).unwrap_or_default();
        let alive = Path::new("/proc").join(pid.trim());
        let deadline = Instant::now() + Duration::from_secs(10);
        while !pid.is_empty() && alive.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts it again, with what it knows.
    pub(crate) fn start_again(&mut self) {
        let _ = fs::remove_file(self.folder.join("pid"));
        match &mut self.runs {
            Runs::Here { holder, daemon } => {
                *daemon = Self::daemon(&self.name, &self.folder, holder.id()).unwrap();
            }
            Runs::BySystemd(systemd) => drop(systemd.run("systemctl", &["restart", "docker"]).unwrap()),
        }
        self.wait().unwrap();
    }

    /// What systemd says to this.
    pub(crate) fn systemctl(&self, arguments: &[&str]) -> Result<String, String> {
        self.inside("systemctl", arguments)
    }

    /// Runs a command where the engine is: what it printed, or its errors.
    pub(crate) fn inside(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        match &self.runs {
            Runs::Here { .. } => Err("no systemd runs this engine".to_owned()),
            Runs::BySystemd(systemd) => systemd.run(program, arguments),
        }
    }

    pub(crate) fn socket(&self) -> String {
        format!("unix://{}", self.folder.join("docker.sock").display())
    }

    /// Where everything of it is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Sockets by which whoever may connect is root on this machine: the engine's, and those of what is below it.
    pub(crate) fn control_sockets(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.folder.clone()];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_socket() => found.push(entry.path()),
                    // Images are many files.
                    Ok(kind) if kind.is_dir() && !entry.path().ends_with("data") => folders.push(entry.path()),
                    _ => {}
                }
            }
        }
        found
    }

    /// Runs a script where the engine's disk is.
    pub(crate) fn on_its_disk(&self, script: &str) {
        let Runs::Here { holder, .. } = &self.runs else {
            panic!("the disk of an engine that systemd runs is its own")
        };
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", holder.id())).args(["sh", "-c", script]);
        let status = command.env("DATA", self.folder.join("data")).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{script}: {status}");
    }

    /// The engine's own tool; what it printed, or its errors.
    pub(crate) fn docker(&self, arguments: &[&str]) -> Result<String, String> {
        self.tool("docker", arguments)
    }

    /// A tool that uses the engine.
    pub(crate) fn tool(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "60", program]).args(arguments).stdin(Stdio::null());
        command.env("DOCKER_HOST", self.socket()).env("DOCKER_CONFIG", &self.folder);
        let output = command.output().map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        // What can't be executed inside is told on standard output.
        let failed = || format!("{}{}", text(&output.stdout), text(&output.stderr));
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(failed()) }
    }

    /// One value of `docker inspect`.
    pub(crate) fn inspect(&self, container: &str, format: &str) -> String {
        self.docker(&["inspect", "--format", format, container]).unwrap()
    }

    /// The binary, with this engine.
    pub(crate) fn palisade(&self, host: &Host, arguments: &[&str]) -> Ran {
        let mut command = match &self.runs {
            Runs::Here { .. } => host.command(arguments),
            Runs::BySystemd(systemd) => {
                let folder = format!("--chdir={}", host.folder.display());
                let prefix = systemd.prefix();
                let wrapper: Vec<&str> = prefix.iter().map(String::as_str).chain(["env", &folder]).collect();
                host.wrapped(&wrapper, Path::new(PALISADE), arguments)
            }
        };
        command.env("DOCKER_HOST", self.socket()).env("DOCKER_CONFIG", &self.folder);
        Running::start(command).end(PATIENCE)
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let all = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        let all = all.chain([PathBuf::from("/sys/fs/cgroup")]).map(|path| path.join(&self.name));
        all.filter(|path| path.exists()).collect()
    }

    /// Ends it; what is left of it on this machine is returned.
    pub(crate) fn end(self) -> Vec<String> {
        let (name, folder) = (self.name.clone(), self.folder.clone());
        drop(self);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mut left: Vec<String> = mounts.lines().filter(|line| line.contains(&name)).map(str::to_owned).collect();
        left.extend(folder.exists().then(|| folder.display().to_string()));
        let cgroups = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let cgroups = cgroups.map(|entry| entry.path().join(&name)).filter(|path| path.exists());
        left.extend(cgroups.map(|path| path.display().to_string()));
        left
    }
}

/// With everything below, also of hierarchies that only an engine uses.
pub(crate) fn remove_cgroup(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path());
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while path.exists() && fs::remove_dir(path).is_err() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        match &mut self.runs {
            Runs::Here { .. } => self.kill(),
            Runs::BySystemd(systemd) => systemd.end(),
        }
        // Shims and containers, which outlive the daemon.
        if let Ok(mounts) = Mounts::find() {
            let _ = fs::write(mounts.v2.join(&self.name).join("cgroup.kill"), "1");
        }
        for cgroup in self.cgroups() {
            remove_cgroup(&cgroup);
        }
        // Its mounts go with the last process that sees them.
        if let Runs::Here { holder, .. } = &mut self.runs {
            let _ = holder.kill();
            let _ = holder.wait();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir_all(&self.folder).is_err() && self.folder.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
