//! A systemd of its own for one engine: process 1 of a PID namespace, with the machine's files, and a cgroup2 mount that
//! shows nothing but a cgroup of the test. It boots into a target without services.
//!
//! What runs beside it is given by the test; of the machine it sees no `/run`, no units of administrators, and kernel
//! settings that it can't change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use palisade_host::cgroup::Mounts;

/// Boots in a few tenths of a second, or not at all.
const BOOTED_WITHIN: Duration = Duration::from_secs(20);

/// Runs in namespaces of its own, and becomes systemd: `sh -ec BOOT`.
const BOOT: &str = r#"
umount --recursive /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,ro,bind /proc/sys
mount --rbind /dev /dev
mount -o remount,ro,bind /dev
for folder in /run /etc/systemd/system /var/lib/systemd /etc/docker; do
    mkdir -p $folder
    mount -t tmpfs -o mode=755 tmpfs $folder
done
printf '[Unit]\nDefaultDependencies=no\n' >/etc/systemd/system/alone.target
eval "$1"
for systemd in /usr/lib/systemd/systemd /lib/systemd/systemd; do
    [ ! -x $systemd ] || exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        $systemd --system --unit=alone.target --log-target=console --log-level=warning --show-status=no
done
echo 'systemd is not installed'
exit 1
"#;

/// Ended with everything below it when dropped.
pub(crate) struct Systemd {
    /// `unshare`, whose child is process 1.
    parent: Child,
    /// Process 1, in the machine's numbers.
    pid: i32,
    name: String,
}

impl Systemd {
    /// Boots it in a cgroup of this name, with its log in the folder; or says why that can't be.
    pub(crate) fn boot(name: &str, folder: &Path) -> Result<Self, String> {
        Self::boot_prepared(name, folder, ":")
    }

    /// The same, when a script has prepared its files.
    pub(crate) fn boot_prepared(name: &str, folder: &Path, prepare: &str) -> Result<Self, String> {
        let log = fs::File::create(folder.join("systemd.log")).map_err(|error| error.to_string())?;
        let cgroup = cgroup(name);
        fs::create_dir_all(&cgroup).map_err(|error| format!("no cgroup can be made: {error}"))?;
        let mut command = Command::new("sh");
        let unshare = "echo 0 >\"$1/cgroup.procs\"; exec setpriv --pdeathsig KILL unshare --kill-child --fork \
                       --pid --mount --propagation private --cgroup --uts --ipc sh -ec \"$2\" sh \"$3\"";
        command.args(["-ec", unshare, "sh", &cgroup.to_string_lossy(), BOOT, prepare]).stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(|error| error.to_string())?).stderr(log);
        let parent = command.spawn().map_err(|error| error.to_string())?;
        let mut systemd = Self { parent, pid: 0, name: name.to_owned() };
        let deadline = Instant::now() + BOOTED_WITHIN;
        while !systemd.is_up() {
            if Instant::now() > deadline || !matches!(systemd.parent.try_wait(), Ok(None)) {
                let log = fs::read_to_string(folder.join("systemd.log")).unwrap_or_default();
                return Err(format!("no systemd can run here: {}", log.lines().last().unwrap_or("it says nothing")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        // The root of its cgroups may hold no process where controllers are to be enabled.
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned();
        let mounts = Mounts::find().map_err(|error| error.to_string())?;
        fs::write(mounts.v2.join(own).join("cgroup.procs"), systemd.parent.id().to_string())
            .map_err(|error| error.to_string())?;
        Ok(systemd)
    }

    fn is_up(&mut self) -> bool {
        let parent = self.parent.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        let child = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
        child.is_some_and(|pid| {
            self.pid = pid;
            self.run("systemctl", &["is-active", "alone.target"]).is_ok()
        })
    }

    /// What a command line that runs beside it begins with.
    pub(crate) fn prefix(&self) -> Vec<String> {
        let target = format!("--target={}", self.pid);
        ["nsenter", &target, "--pid", "--mount", "--cgroup", "--uts", "--ipc", "--"].map(str::to_owned).to_vec()
    }

    /// Runs a command beside it: what it printed, or its errors.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "60"]).args(self.prefix()).arg(program).args(arguments).stdin(Stdio::null());
        let output = command.output().map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// A service like Docker's own: what it has started goes on when it ends, and it may make cgroups in its own.
    pub(crate) fn add_service(&self, name: &str, command: &str, log: &Path) {
        let log = log.display();
        let unit = format!(
            "[Unit]\nDefaultDependencies=no\n[Service]\nType=notify\nExecStart=/usr/bin/env {command}\nKillMode=process\n\
             Delegate=yes\nTimeoutStopSec=20\nEnvironment=PATH=/usr/sbin:/usr/bin:/sbin:/bin\nStandardOutput=append:{log}\n\
             StandardError=append:{log}\n"
        );
        let path = format!("/proc/{}/root/run/systemd/system", self.pid);
        fs::create_dir_all(&path).unwrap();
        fs::write(Path::new(&path).join(format!("{name}.service")), unit).unwrap();
        self.run("systemctl", &["daemon-reload"]).unwrap();
    }

    /// Kills it, and with it everything in its PID namespace; its cgroup is left to who removes it.
    pub(crate) fn end(&mut self) {
        let _ = fs::write(cgroup(&self.name).join("cgroup.kill"), "1");
        let _ = self.parent.kill();
        let _ = self.parent.wait();
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        self.end();
        crate::dockerd::remove_cgroup(&cgroup(&self.name));
    }
}

fn cgroup(name: &str) -> PathBuf {
    let mounts = Mounts::find().unwrap();
    mounts.v2.join(name)
}
