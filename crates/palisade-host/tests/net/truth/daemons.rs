//! Rulesets of real firewalls and engines, which run in the host's namespace and in mount and process namespaces of
//! their own, so that nothing of them reaches the machine or outlives the test.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::generate::Chance;
use super::ground::{Ground, ROADS};
use super::{Tally, compare, sample, seed};
use crate::missing;

/// How long a daemon may take to set its rules up.
const START: Duration = Duration::from_secs(120);

/// A program in its own corner; it and all its children end with it.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // `unshare --kill-child`: the first process of the namespace goes with it, and all others with that one.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `/mnt` is a folder in memory, to write to.
const CORNER: &str = r#"
exec 2>&1
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
mkdir /mnt/run
mount --bind /mnt/run /run
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
soon() {
    for _ in $(seq 600); do
        if timeout 3 "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    echo "never done: $*"
    exit 1
}
"#;

impl Daemon {
    /// Runs a script in the calling thread's network namespace until it says that its rules are there.
    fn start(script: &str) -> Result<Self, String> {
        let script = format!("{CORNER}\n{script}\necho rules are there\nexec sleep 300");
        let mut child = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-ec", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let output = child.stdout.take().expect("piped");
        let daemon = Self(child);
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut said = Vec::new();
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if line == "rules are there" {
                    let _ = sender.send(Ok(()));
                    return;
                }
                said.push(line);
            }
            let _ = sender.send(Err(said.join("\n")));
        });
        match receiver.recv_timeout(START) {
            Ok(Ok(())) => Ok(daemon),
            Ok(Err(said)) => Err(said),
            Err(_) => Err(format!("no rules after {} s", START.as_secs())),
        }
    }
}

/// The cgroups of an engine's containers, in every hierarchy; gone when this is dropped.
struct Cgroups(String);

impl Drop for Cgroups {
    fn drop(&mut self) {
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let folders = hierarchies.map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")]);
        for folder in folders.map(|folder| folder.join(&self.0)).filter(|folder| folder.exists()) {
            // The last processes may still be on their way out.
            let deadline = Instant::now() + Duration::from_secs(5);
            while folder.exists() && Instant::now() < deadline {
                remove(&folder);
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn remove(cgroup: &Path) {
    let inner = std::fs::read_dir(cgroup).into_iter().flatten().flatten();
    inner.map(|entry| entry.path()).filter(|path| path.is_dir()).for_each(|path| remove(&path));
    let _ = std::fs::remove_dir(cgroup);
}

fn check(test: &str, programs: &[&str], script: &str) {
    if let Some(missing) = missing(programs) {
        println!("SKIPPED: {test}: {missing} is not installed");
        return;
    }
    let Some(mut ground) = Ground::new(test) else { return };
    let _daemon = ground.host().run(|| Daemon::start(script)).unwrap().unwrap();
    let rules = ground.host().run(|| Command::new("nft").args(["-s", "list", "ruleset"]).output()).unwrap().unwrap();
    assert!(rules.stdout.len() > 200, "{test}: no rules were set up");
    let mut tally = Tally::default();
    let ports = sample(script, &mut Chance::new(seed()));
    compare(&mut ground, test, script, &ports, &ROADS, &mut tally);
    tally.report(test);
}

#[test]
fn real_ufw() {
    let script = r#"

cp -a /etc/ufw /mnt/etc-ufw
cp -a /etc/default/ufw /mnt/default-ufw
mount --bind /mnt/etc-ufw /etc/ufw
mount --bind /mnt/default-ufw /etc/default/ufw
ufw allow 22/tcp
ufw limit 2222/tcp
ufw allow 8000:8010/tcp
ufw allow in on lan0 to any port 5432 proto tcp
ufw deny from 203.0.113.2 to any port 9000 proto tcp
ufw allow 9000/tcp
ufw reject 113/tcp
ufw allow 53
ufw allow from 10.1.0.0/24 to any port 161 proto udp
ufw --force enable
"#;
    check("truth::real_ufw", &["ufw", "iptables", "unshare"], script);
}

#[test]
fn real_firewalld() {
    let script = r#"
cp -a /etc/firewalld /mnt/etc
cat >/mnt/bus.conf <<END
<busconfig><type>system</type><listen>unix:path=/mnt/bus</listen><auth>EXTERNAL</auth><policy context="default">
<allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
<allow send_type="method_call"/><allow send_type="method_return"/><allow send_type="error"/><allow send_type="signal"/>
</policy></busconfig>
END
dbus-daemon --config-file=/mnt/bus.conf --nofork --nopidfile --nosyslog >/dev/null 2>&1 &
DBUS_SYSTEM_BUS_ADDRESS=unix:path=/mnt/bus
export DBUS_SYSTEM_BUS_ADDRESS
soon test -S /mnt/bus
firewalld --nofork --nopid --system-config /mnt/etc --log-target file --log-file /mnt/log >/dev/null 2>&1 &
soon firewall-cmd --state
firewall-cmd --zone=public --change-interface=eth0
firewall-cmd --zone=internal --change-interface=lan0
firewall-cmd --zone=public --add-port=8000-8010/tcp --add-port=53/udp
firewall-cmd --zone=public --add-service=https
firewall-cmd --zone=internal --add-port=5432/tcp
firewall-cmd --zone=public --add-rich-rule='rule family=ipv4 source address=203.0.113.0/24 port port=3306 protocol=tcp accept'
firewall-cmd --zone=public --add-rich-rule='rule family=ipv4 source address=203.0.113.2 port port=8005 protocol=tcp reject'
firewall-cmd --zone=public --add-forward-port=port=8443:proto=tcp:toport=443
firewall-cmd --zone=trusted --add-source=2001:db8::/126
"#;
    check("truth::real_firewalld", &["firewalld", "firewall-cmd", "dbus-daemon", "unshare"], script);
}

#[test]
fn real_fail2ban() {
    let script = r#"
cp -a /etc/fail2ban /mnt/conf
rm -rf /mnt/conf/jail.d /mnt/conf/jail.local
touch /mnt/log
printf '[Definition]\nlogtarget = /mnt/server.log\ndbfile = :memory:\n' >/mnt/conf/fail2ban.local
cat >/mnt/conf/jail.conf <<END
[DEFAULT]
backend = polling
logpath = /mnt/log
bantime = 10m
filter =
enabled = true
[one]
action = iptables-multiport[name=one, port="22,2222", protocol=tcp, chain=INPUT]
[two]
action = nftables-multiport[name=two, port="443,8000:8010", protocol=tcp]
[three]
action = iptables-allports[name=three, protocol=udp, chain=INPUT]
END
fail2ban-server -c /mnt/conf -s /mnt/socket -p /mnt/pid -f >/dev/null 2>&1 &
soon grep -q "Jail 'three' started" /mnt/server.log
fail2ban-client -s /mnt/socket set one banip 203.0.113.2
fail2ban-client -s /mnt/socket set two banip 203.0.113.2
fail2ban-client -s /mnt/socket set three banip 10.1.0.2
soon sh -c 'iptables-nft-save | grep -q "A f2b-one -s 203.0.113.2"'
soon sh -c 'iptables-nft-save | grep -q "A f2b-three -s 10.1.0.2"'
soon sh -c 'nft list ruleset | grep -q 203.0.113.2' || { cat /mnt/server.log; exit 1; }
"#;
    check("truth::real_fail2ban", &["fail2ban-server", "iptables-nft", "unshare"], script);
}

#[test]
fn real_docker() {
    let cgroups = Cgroups(format!("palisade-truth-{}", std::process::id()));
    let script = r#"
for folder in /proc/sys/kernel /proc/sys/vm /proc/sys/fs; do
    mount --bind $folder $folder
    mount -o remount,ro,bind $folder
done
mkdir -p /etc/docker
mount -t tmpfs tmpfs /etc/docker
mkdir -p /mnt/root/bin
cp "$(command -v busybox)" /mnt/root/bin/busybox
ln -s busybox /mnt/root/bin/httpd
# The engine makes its own.
ip link del docker0
dockerd --data-root /mnt/data --exec-root /mnt/exec --pidfile /mnt/pid --host unix:///mnt/docker.sock \
    --log-level warn --cgroup-parent CGROUPS --storage-driver vfs >/mnt/log 2>&1 &
DOCKER_HOST=unix:///mnt/docker.sock
export DOCKER_HOST
soon docker version
tar -C /mnt/root -c . | docker import - box:1
docker run -d --name web -p 8080:80 -p 8443:80 box:1 /bin/httpd -f -p 80 || { cat /mnt/log; exit 1; }
iptables -P INPUT DROP
iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A INPUT -p tcp -m multiport --dports 22,8000:8010 -j ACCEPT
iptables -A DOCKER-USER -i lan0 -p tcp -m conntrack --ctorigdstport 8443 -j DROP
"#;
    let script = script.replace("CGROUPS", &format!("/{}", cgroups.0));
    check("truth::real_docker", &["dockerd", "docker", "busybox", "iptables", "unshare"], &script);
}
