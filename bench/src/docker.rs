//! A Docker daemon of its own, with its bridge and rules in a scratch network namespace.
//!
//! The machine's daemon, if there is one, is neither used nor seen. What runs in containers is not known here, but for
//! the two of the data path.

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::scratch::Scratch;
use crate::world::{Background, CLIENT_PORTS, LOAD_PORT, Netns, POSTGRES_PORT, enter, load_program};

/// The host's address on its (pretended) network.
const HOST: &str = "203.0.113.1";

/// The image of every container: folders only, the programs are the host's own and come as volumes.
pub(crate) const IMAGE: &str = "palisade-bench";

/// The daemon.
pub(crate) struct Docker {
    socket: PathBuf,
    folder: PathBuf,
    daemon: Background,
    /// Removed before the daemon ends.
    containers: &'static [&'static str],
}

impl Docker {
    /// Starts the daemon, with a container `server` whose ports are published and a container `client`.
    pub(crate) fn start(scratch: &Scratch, prefix: &str, netns: &Netns, volumes: &[PathBuf]) -> Result<Self> {
        let mut docker = Self::start_empty(scratch, prefix, netns)?;
        docker.containers = &["server", "client"];
        docker.run_containers(volumes)?;
        Ok(docker)
    }

    /// Starts the daemon and gives it the image. Its namespace has the host's address from then on.
    pub(crate) fn start_empty(scratch: &Scratch, prefix: &str, netns: &Netns) -> Result<Self> {
        let folder = scratch.folder.join(format!("docker-{prefix}"));
        fs::create_dir_all(&folder)?;
        protect_sysctls();
        netns.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "wire"])?;
        netns.run(["ip", "addr", "add", &format!("{HOST}/24"), "dev", "eth0"])?;
        netns.run(["ip", "link", "set", "eth0", "up"])?;
        netns.run(["ip", "link", "set", "wire", "up"])?;
        let socket = folder.join("docker.sock");
        let log = File::create(folder.join("log"))?;
        let daemon = Background::start(
            enter(Some(&netns.path()), None, None)
                .arg("dockerd")
                .arg("--data-root")
                .arg(folder.join("data"))
                .arg("--exec-root")
                .arg(folder.join("exec"))
                .arg("--pidfile")
                .arg(folder.join("pid"))
                .arg("--host")
                .arg(format!("unix://{}", socket.display()))
                .args(["--bip", "198.51.100.1/24", "--cgroup-parent", &format!("/{}", scratch.realm)])
                .stdout(log.try_clone()?)
                .stderr(log),
        )?;
        let docker = Self { socket, folder, daemon, containers: &[] };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !docker.succeeds(&["info"])? {
            if Instant::now() > deadline {
                bail!("dockerd did not start: {}", fs::read_to_string(docker.folder.join("log"))?);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        docker.import_image()?;
        Ok(docker)
    }

    /// A `docker` command for the daemon behind this socket.
    pub(crate) fn client(socket: &Path) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", format!("unix://{}", socket.display())).stdin(Stdio::null());
        command
    }
    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone()
    }
    pub(crate) fn host_address(&self) -> &'static str {
        HOST
    }
    /// A container's address on the bridge.
    pub(crate) fn address(&self, container: &str) -> Result<String> {
        let format = "{{.NetworkSettings.IPAddress}}";
        let output = Self::client(&self.socket).args(["inspect", "--format", format, container]).output()?;
        let address = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if address.is_empty() {
            bail!("container {container} has no address: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(address)
    }

    fn succeeds(&self, arguments: &[&str]) -> Result<bool> {
        let command = &mut Self::client(&self.socket);
        Ok(command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
    }

    fn import_image(&self) -> Result<()> {
        let image = self.folder.join("image");
        for name in ["proc", "sys", "dev", "etc", "usr", "tmp", "bench", "run", "var/tmp"] {
            fs::create_dir_all(image.join(name))?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            if fs::symlink_metadata(Path::new("/").join(name))?.is_symlink() {
                std::os::unix::fs::symlink(format!("usr/{name}"), image.join(name))?;
            }
        }
        let archive = self.folder.join("image.tar");
        let tar = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&image).arg(".").status()?;
        if !tar.success() {
            bail!("tar could not pack the image");
        }
        let archive = archive.to_string_lossy().into_owned();
        if !self.succeeds(&["import", &archive, IMAGE])? {
            bail!("docker could not import the image");
        }
        Ok(())
    }

    fn run_containers(&self, volumes: &[PathBuf]) -> Result<()> {
        let programs = load_program()?;
        let programs = programs.parent().context("the program is in a folder")?;
        for name in ["server", "client"] {
            let mut command = Self::client(&self.socket);
            // Without the seccomp filter: it slows every system call a little, which is not the bridge's fault.
            command.args(["run", "--detach", "--name", name, "--security-opt", "seccomp=unconfined"]);
            command.args(["--sysctl", &format!("net.ipv4.ip_local_port_range={CLIENT_PORTS}")]);
            command.args(["--volume", "/usr:/usr:ro", "--volume", "/etc:/etc:ro"]);
            command.arg("--volume").arg(format!("{}:/bench:ro", programs.display()));
            for volume in volumes {
                command.arg("--volume").arg(format!("{0}:{0}", volume.display()));
            }
            if name == "server" {
                for port in [LOAD_PORT, LOAD_PORT + 1, POSTGRES_PORT] {
                    command.args(["--publish", &format!("{port}:{port}")]);
                }
                command.args(["--publish", &format!("{LOAD_PORT}:{LOAD_PORT}/udp")]);
            }
            let output = command.args([IMAGE, "/bench/palisade-load", "hold"]).output()?;
            if !output.status.success() {
                bail!("starting container {name}: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        Ok(())
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if !self.containers.is_empty() {
            let _ = self.succeeds(&[&["rm", "--force"], self.containers].concat());
        }
        self.daemon.ask_to_end();
    }
}

/// dockerd raises limits of the machine (`kernel.keys.root_maxkeys`) when it starts. This run has mounts of its own,
/// so it can be kept from that; it only warns then.
fn protect_sysctls() {
    for folder in ["/proc/sys/kernel", "/proc/sys/vm", "/proc/sys/fs"] {
        let bound = Command::new("mount").args(["--bind", folder, folder]).status();
        if bound.is_ok_and(|status| status.success()) {
            let _ = Command::new("mount").args(["-o", "remount,ro,bind", folder]).status();
        }
    }
}
