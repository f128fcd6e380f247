//! Real firewalld, ufw and iptables on a scratch host: what is published is let in and shut again, and nothing else of
//! theirs, of Docker's, Tailscale's, libvirt's or fail2ban's changes.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use palisade_host::link;

use crate::need_root;
use crate::scratch::{HOST, Host, PATIENCE, Ran, Running, connects, patiently};
use crate::support::{PALISADE, skipped};

const HOST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
const STRANGER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));

const FILE: &str = r#"
name: shop
services:
  web:
    ports: ["8080:8080"]
    stop_signal: SIGKILL
    x-palisade:
      process:
        user: nobody
        command:
          - python3
          - -c
          - |
            import socket
            server = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
            while True:
                server.accept()[0].close()
"#;

/// What Tailscale and libvirt have in the tables of iptables, as they write it. Docker and fail2ban are real.
const OTHERS: &str = "
*filter
:LIBVIRT_INP - [0:0]
:ts-input - [0:0]
-A INPUT -j ts-input
-A INPUT -j LIBVIRT_INP
-A LIBVIRT_INP -i virbr0 -p udp -m udp --dport 53 -j ACCEPT
-A ts-input -s 100.64.0.1/32 -i lo -j ACCEPT
-A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP
COMMIT
";

/// The engine raises limits of the machine when it starts, and has files below /run and /etc: neither shall reach the
/// machine.
const DOCKERD: &str = r#"
for folder in /proc/sys/kernel /proc/sys/vm /proc/sys/fs; do
    mount --bind $folder $folder && mount -o remount,ro,bind $folder
done
for folder in /run/containerd /run/docker /etc/docker; do
    mkdir -p $folder && mount -t tmpfs -o mode=755 tmpfs $folder
done
exec dockerd --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/docker.pid" --host "unix://$1/docker.sock"
"#;

/// A scratch host with IPv6, and what runs on it beside the stack.
pub(crate) struct Place {
    pub(crate) host: Host,
    pub(crate) daemons: Vec<Child>,
    environment: Vec<(String, String)>,
    /// Everything runs in the mount namespace of this process.
    pub(crate) inside: Option<u32>,
}

impl Drop for Place {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            let _ = killpg(Pid::from_raw(daemon.id() as i32), Signal::SIGKILL);
            let _ = daemon.wait();
        }
    }
}

impl Place {
    pub(crate) fn new() -> Self {
        let host = Host::new();
        host.write(FILE);
        link::add_address("eth0", HOST6, 64).unwrap();
        host.internet.run(|| link::add_address("eth0", STRANGER6, 64).unwrap()).unwrap();
        Self { host, daemons: Vec::new(), environment: Vec::new(), inside: None }
    }

    pub(crate) fn start(&mut self, command: &mut Command) -> u32 {
        command.envs(self.environment.iter().cloned()).process_group(0);
        let daemon = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.daemons.push(daemon);
        self.daemons.last().unwrap().id()
    }

    pub(crate) fn wrapped(&self, mut command: Command) -> Command {
        command.envs(self.environment.iter().cloned());
        let Some(pid) = self.inside else { return command };
        let mut nsenter = Command::new("nsenter");
        // Entering a mount namespace leads to its root.
        nsenter.args(["-m", "-t", &pid.to_string(), "--", "sh", "-c", "cd \"$1\" && shift && exec \"$@\"", "sh"]);
        nsenter.arg(command.get_current_dir().unwrap_or(Path::new("/")));
        nsenter.arg(command.get_program()).args(command.get_args());
        nsenter.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        nsenter
    }

    pub(crate) fn palisade(&self, arguments: &[&str]) -> Ran {
        let mut command = self.wrapped(self.host.command(arguments));
        command.env_remove("SSH_CONNECTION");
        Running::start(command).end(PATIENCE)
    }

    /// What a tool prints; it has to work.
    pub(crate) fn tool(&self, words: &[&str]) -> String {
        let mut command = Command::new("timeout");
        command.args(["60"]).args(words);
        let output = self.wrapped(command).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(output.status.success(), "{words:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// A real Docker Engine and a real fail2ban with a ban, and rules of Tailscale and libvirt.
    fn others(&mut self) {
        let folder = self.host.folder.clone();
        let mut dockerd = Command::new("unshare");
        dockerd.args(["--mount", "--propagation", "private", "sh", "-ec", DOCKERD, "sh"]).arg(&folder);
        self.start(&mut dockerd);
        let settings = folder.join("fail2ban");
        self.tool(&["cp", "-a", "/etc/fail2ban", &settings.to_string_lossy()]);
        let jail = format!(
            "[DEFAULT]\nusedns = no\nignoreself = false\n[sshd]\nenabled = true\nbackend = polling\nlogpath = {}\nbanaction = iptables-multiport\n",
            folder.join("auth.log").display()
        );
        fs::write(folder.join("auth.log"), "").unwrap();
        fs::write(settings.join("jail.local"), jail).unwrap();
        let _ = fs::remove_dir_all(settings.join("jail.d"));
        let mut fail2ban = Command::new("fail2ban-server");
        fail2ban.arg("-c").arg(&settings).arg("-s").arg(folder.join("f2b.sock")).arg("-p").arg(folder.join("f2b.pid"));
        self.start(fail2ban.args(["-x", "-f", "--logtarget"]).arg(folder.join("f2b.log")));
        let rules = |part: &str| self.rules().contains(part).then_some(());
        patiently("Docker's rules", || rules("DOCKER-USER"));
        patiently("fail2ban", || self.fail2ban(&["ping"]));
        patiently("a ban", || self.fail2ban(&["set", "sshd", "banip", "198.51.100.9"]));
        patiently("the ban's rule", || rules("ip saddr 198.51.100.9 counter reject"));
        // fail2ban bans on its own time, and once more what it was told twice.
        patiently("rules that stay", || {
            let before = self.rules();
            std::thread::sleep(std::time::Duration::from_secs(2));
            (self.rules() == before).then_some(())
        });
        let path = folder.join("others");
        fs::write(&path, OTHERS).unwrap();
        self.tool(&["sh", "-c", &format!("iptables-nft-restore --noflush < {}", path.display())]);
    }

    fn fail2ban(&self, words: &[&str]) -> Option<()> {
        let folder = &self.host.folder;
        let mut client = Command::new("fail2ban-client");
        client.arg("-c").arg(folder.join("fail2ban")).arg("-s").arg(folder.join("f2b.sock")).args(words);
        client.output().unwrap().status.success().then_some(())
    }

    /// Every rule of this host that isn't in our table.
    fn rules(&self) -> String {
        let text = self.tool(&["nft", "-s", "list", "ruleset"]);
        let own = format!("table inet {} {{", self.host.layout.realm);
        let mut kept = Vec::new();
        let mut skip = false;
        for line in text.lines() {
            if line == own {
                skip = true;
            } else if skip {
                skip = line != "}";
            } else {
                kept.push(line);
            }
        }
        kept.join("\n")
    }

    /// Whether a stranger reaches the service over IPv4 and IPv6.
    fn reached(&self) -> [bool; 2] {
        let knock = |ip| self.host.internet.run(move || connects(SocketAddr::new(ip, 8080))).unwrap();
        [knock(HOST), knock(HOST6)]
    }
}

pub(crate) fn lacks(test: &str, programs: &[&str]) -> bool {
    let folders = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
    let missing =
        programs.iter().find(|program| !folders.iter().any(|folder| Path::new(folder).join(program).exists()));
    if let Some(program) = missing {
        skipped(test, &format!("there is no {program}"));
    }
    missing.is_some()
}

/// A system bus and a firewalld of this network namespace, with settings of their own.
pub(crate) fn with_firewalld() -> Place {
    let mut place = Place::new();
    let folder = place.host.folder.clone();
    let bus = folder.join("bus");
    let config = folder.join("bus.conf");
    fs::write(
        &config,
        format!(
            "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN\" \
             \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n<busconfig>\
             <listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\"><allow user=\"*\"/>\
             <allow own=\"*\"/><allow send_destination=\"*\"/><allow receive_sender=\"*\"/></policy></busconfig>",
            bus.display()
        ),
    )
    .unwrap();
    place.environment.push(("DBUS_SYSTEM_BUS_ADDRESS".to_owned(), format!("unix:path={}", bus.display())));
    place.start(Command::new("dbus-daemon").arg("--config-file").arg(&config).args(["--nofork", "--nopidfile"]));
    patiently("the bus", || bus.exists().then_some(()));
    let settings = folder.join("firewalld");
    fs::create_dir_all(settings.join("zones")).unwrap();
    let mut firewalld = Command::new("firewalld");
    firewalld.args(["--nofork", "--nopid", "--system-config"]).arg(&settings).arg("--log-file").arg(folder.join("log"));
    place.start(&mut firewalld);
    let state = || {
        let mut command = Command::new("firewall-cmd");
        let command = command.arg("--state").envs(place.environment.iter().cloned());
        command.output().unwrap().status.success().then_some(())
    };
    patiently("firewalld", state);
    place
}

#[test]
fn firewalld_lets_in_what_is_published_until_down_and_keeps_the_rest() {
    const TEST: &str = "host_firewalls::firewalld_lets_in_what_is_published_until_down_and_keeps_the_rest";
    need_root!("host_firewalls::firewalld_lets_in_what_is_published_until_down_and_keeps_the_rest");
    if lacks(TEST, &["firewalld", "dbus-daemon", "iptables-nft", "python3", "dockerd", "fail2ban-server"]) {
        return;
    }
    let mut place = with_firewalld();
    place.others();
    let by_user = ["--add-port=9090/tcp", "--add-rich-rule=rule family=ipv4 source address=198.51.100.9 drop"];
    for option in by_user {
        place.tool(&["firewall-cmd", option]);
        place.tool(&["firewall-cmd", "--permanent", option]);
    }
    let settings = || {
        let all = |option: &[&str]| place.tool(&[&["firewall-cmd"], option, &["--list-all-zones"]].concat());
        [all(&[]), all(&["--permanent"])]
    };
    let (rules, before) = (place.rules(), settings());
    // It is no business of another network namespace, as that of a rehearsal.
    let elsewhere = place.host.wrapped(&["unshare", "--net"], Path::new(PALISADE), &["plan"]);
    let elsewhere = Running::start(place.wrapped(elsewhere)).end(PATIENCE);
    assert!(elsewhere.out.contains("set the firewall: let in 8080/tcp"), "{}", elsewhere.out);

    let plan = place.palisade(&["plan"]);
    assert!(plan.out.contains("keep private ports private, and let in by firewalld: 8080/tcp"), "{}", plan.out);
    place.palisade(&["up", "--wait"]).expect(0);
    patiently("the service", || (place.reached() == [true; 2]).then_some(()));
    let listed =
        |permanent: &[&str]| place.tool(&[&["firewall-cmd"], permanent, &["--zone=public", "--list-ports"]].concat());
    assert_eq!([listed(&[]), listed(&["--permanent"])], ["8080/tcp 9090/tcp", "8080/tcp 9090/tcp"]);
    place.palisade(&["plan"]).expect(0);

    // Somebody shuts it: the plan says so and `up` opens it again.
    place.tool(&["firewall-cmd", "--zone=public", "--remove-port=8080/tcp"]);
    place.palisade(&["plan"]).expect(1);
    place.palisade(&["up"]).expect(0);
    assert_eq!(place.reached(), [true; 2]);

    place.palisade(&["down", "--volumes", "--yes"]).expect(0);
    assert_eq!(settings(), before);
    assert_eq!(place.rules(), rules, "others' rules are as they were");

    // Published at one address. A reload, which is firewalld's own end of others' rules, changes nothing of what is let in.
    place.host.write(&FILE.replace("8080:8080", "203.0.113.1:8080:8080"));
    place.palisade(&["up", "--wait"]).expect(0);
    place.tool(&["firewall-cmd", "--reload"]);
    patiently("the service", || (place.reached() == [true, false]).then_some(()));
    place.palisade(&["plan"]).expect(0);
    // The interface goes to another zone, and the port with it.
    place.tool(&["firewall-cmd", "--zone=internal", "--change-interface=eth0"]);
    assert_eq!(place.reached(), [false; 2]);
    place.palisade(&["plan"]).expect(1);
    place.palisade(&["up"]).expect(0);
    assert_eq!(place.reached(), [true, false]);
    assert!(!place.tool(&["firewall-cmd", "--zone=public", "--list-rich-rules"]).contains("8080"));
    // Somebody removes our table: what was let in is shut all the same.
    place.tool(&["nft", "delete", "table", "inet", &place.host.layout.realm]);
    place.palisade(&["down", "--volumes", "--yes"]).expect(0);
    place.tool(&["firewall-cmd", "--zone=internal", "--remove-interface=eth0"]);
    assert_eq!(settings(), before);
}

#[test]
fn a_firewall_that_does_not_run_is_an_error_and_nothing_is_left() {
    need_root!("host_firewalls::a_firewall_that_does_not_run_is_an_error_and_nothing_is_left");
    let mut place = Place::new();
    place.environment.push(("DBUS_SYSTEM_BUS_ADDRESS".to_owned(), "unix:path=/nonexistent".to_owned()));
    let with =
        |backend: &str| place.host.write(&format!("{FILE}\nx-palisade: {{ firewall: {{ backend: {backend} }} }}\n"));
    let lacking = [("firewalld", "firewalld doesn't answer"), ("iptables", "no rules of iptables decide")];
    let fails = |backend: &str, says: &str| {
        with(backend);
        let up = place.palisade(&["up"]).expect(1);
        assert!(up.err.contains(says) && up.err.contains("what was done before is undone"), "{}", up.err);
        assert!(up.err.contains("hint: start it, or write `firewall: {backend: nftables}`"), "{}", up.err);
    };
    for (backend, says) in lacking {
        fails(backend, says);
        place.host.assert_nothing_left();
    }
    // Where Palisade's table closes already, it goes on closing.
    with("nftables");
    place.palisade(&["up"]).expect(0);
    let table = || place.tool(&["nft", "-s", "list", "ruleset"]);
    let before = table();
    for (backend, says) in lacking {
        fails(backend, says);
        assert_eq!(table(), before);
    }
    place.host.down();
}

/// Copies of ufw's settings, in a mount namespace that everything runs in.
pub(crate) fn with_ufw() -> Place {
    let mut place = Place::new();
    let folder: PathBuf = place.host.folder.clone();
    place.tool(&["cp", "-a", "/etc/ufw", &folder.join("ufw").to_string_lossy()]);
    place.tool(&["cp", "-a", "/etc/default/ufw", &folder.join("default-ufw").to_string_lossy()]);
    let script = format!(
        "mount --bind {0}/ufw /etc/ufw && mount --bind {0}/default-ufw /etc/default/ufw && touch {0}/ready && exec sleep 600",
        folder.display()
    );
    let pid = place.start(Command::new("unshare").args(["--mount", "--propagation", "private", "sh", "-c", &script]));
    patiently("a mount namespace", || folder.join("ready").exists().then_some(()));
    place.inside = Some(pid);
    place
}

#[test]
fn ufw_is_read_and_never_changed() {
    const TEST: &str = "host_firewalls::ufw_is_read_and_never_changed";
    need_root!("host_firewalls::ufw_is_read_and_never_changed");
    if lacks(TEST, &["ufw", "iptables-nft", "python3"]) {
        return;
    }
    let place = with_ufw();
    place.tool(&["ufw", "--force", "enable"]);
    place.tool(&["ufw", "allow", "22/tcp"]);
    let folder = place.host.folder.join("ufw");
    let files = || place.tool(&["sh", "-c", &format!("cat {0}/*.rules {0}/ufw.conf", folder.display())]);
    let (rules, before) = (place.rules(), files());
    let plan = place.palisade(&["plan"]);
    assert!(plan.out.contains("keep private ports private; ufw has to let in 8080/tcp"), "{}", plan.out);
    let up = place.palisade(&["up", "--wait"]).expect(0);
    assert!(up.err.contains("ufw doesn't let 8080/tcp in") && up.err.contains("ufw allow 8080/tcp"), "{}", up.err);
    assert_eq!(place.reached(), [false; 2], "an accept of ours opens nothing that ufw drops");
    assert_eq!((place.rules(), files()), (rules, before));

    place.tool(&["ufw", "allow", "8080/tcp"]);
    patiently("the service", || (place.reached() == [true; 2]).then_some(()));
    let up = place.palisade(&["up"]).expect(0);
    assert!(!up.err.contains("ufw"), "{}", up.err);
    let (rules, before) = (place.rules(), files());
    place.palisade(&["down", "--volumes", "--yes"]).expect(0);
    assert_eq!((place.rules(), files()), (rules, before));
}

/// What drops by default, with a ban in front.
const DROPS: &str = "
*filter
:INPUT DROP [0:0]
:f2b-web - [0:0]
-A INPUT -p tcp -m multiport --dports 8080 -j f2b-web
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A f2b-web -j RETURN
COMMIT
";

fn iptables_opens_and_shuts(place: &Place, variant: &str) {
    let saved = || {
        let both = ["iptables", "ip6tables"].map(|program| place.tool(&[&format!("{program}-{variant}-save")]));
        let counters = |line: &&str| !line.starts_with('#');
        let text = both.join("\n");
        let lines: Vec<_> =
            text.lines().filter(counters).map(|line| line.split(" [").next().unwrap().to_owned()).collect();
        lines.join("\n")
    };
    let path = place.host.folder.join("drops");
    fs::write(&path, DROPS).unwrap();
    for program in ["iptables", "ip6tables"] {
        place.tool(&["sh", "-c", &format!("{program}-{variant}-restore < {}", path.display())]);
        // Neighbours of IPv6 are found by ICMP.
        place.tool(&[
            &format!("{program}-{variant}"),
            "-A",
            "INPUT",
            "-p",
            if program == "iptables" { "icmp" } else { "ipv6-icmp" },
            "-j",
            "ACCEPT",
        ]);
    }
    let before = saved();
    let plan = place.palisade(&["plan"]);
    assert!(plan.out.contains("let in by iptables: 8080/tcp"), "{}", plan.out);
    place.palisade(&["up", "--wait"]).expect(0);
    patiently("the service", || (place.reached() == [true; 2]).then_some(()));
    place.palisade(&["plan"]).expect(0);
    // Who is banned stays banned: what we let in stands behind.
    place.tool(&[&format!("iptables-{variant}"), "-I", "f2b-web", "-s", "203.0.113.2", "-j", "DROP"]);
    assert_eq!(place.reached(), [false, true]);
    place.tool(&[&format!("iptables-{variant}"), "-D", "f2b-web", "-s", "203.0.113.2", "-j", "DROP"]);
    // Somebody loads their rules anew, and ours are gone.
    place.tool(&["sh", "-c", &format!("iptables-{variant}-restore < {}", path.display())]);
    place.palisade(&["plan"]).expect(1);
    place.palisade(&["up"]).expect(0);
    assert_eq!(place.reached(), [true; 2]);
    place.tool(&[&format!("iptables-{variant}"), "-A", "INPUT", "-p", "icmp", "-j", "ACCEPT"]);
    place.palisade(&["down", "--volumes", "--yes"]).expect(0);
    assert_eq!(saved(), before);
}

#[test]
fn iptables_of_today_lets_in_what_is_published_until_down() {
    const TEST: &str = "host_firewalls::iptables_of_today_lets_in_what_is_published_until_down";
    need_root!("host_firewalls::iptables_of_today_lets_in_what_is_published_until_down");
    if lacks(TEST, &["iptables-nft", "python3"]) {
        return;
    }
    iptables_opens_and_shuts(&Place::new(), "nft");
}

/// A place whose kernel has iptables of old; `None` where that can't be.
pub(crate) fn with_iptables_of_old(test: &str) -> Option<Place> {
    if lacks(test, &["iptables-legacy"]) {
        return None;
    }
    let place = Place::new();
    let works =
        Command::new("iptables-legacy").args(["-S", "INPUT"]).output().is_ok_and(|output| output.status.success());
    if !works {
        skipped(test, "this kernel has no iptables of old");
    }
    works.then_some(place)
}

#[test]
fn iptables_of_old_lets_in_what_is_published_until_down() {
    const TEST: &str = "host_firewalls::iptables_of_old_lets_in_what_is_published_until_down";
    need_root!("host_firewalls::iptables_of_old_lets_in_what_is_published_until_down");
    if lacks(TEST, &["python3"]) {
        return;
    }
    let Some(place) = with_iptables_of_old(TEST) else { return };
    iptables_opens_and_shuts(&place, "legacy");
}

#[test]
fn without_a_firewall_of_the_host_others_rules_survive_ours() {
    const TEST: &str = "host_firewalls::without_a_firewall_of_the_host_others_rules_survive_ours";
    need_root!("host_firewalls::without_a_firewall_of_the_host_others_rules_survive_ours");
    if lacks(TEST, &["iptables-nft", "python3", "dockerd", "fail2ban-server"]) {
        return;
    }
    let mut place = Place::new();
    place.others();
    let rules = place.rules();
    let plan = place.palisade(&["plan"]);
    assert!(plan.out.contains("set the firewall: let in 8080/tcp"), "{}", plan.out);
    place.palisade(&["up", "--wait"]).expect(0);
    patiently("the service", || (place.reached() == [true; 2]).then_some(()));
    assert_eq!(place.rules(), rules);
    // A table of somebody's own that doesn't know of the port: we can't open it, and say so.
    let own = "add table inet filter; add chain inet filter input { type filter hook input priority 10; policy drop; }";
    place.tool(&["nft", own]);
    let up = place.palisade(&["up"]).expect(0);
    assert!(up.err.contains("chain inet filter input drops what it doesn't let in"), "{}", up.err);
    assert_eq!(place.reached(), [false; 2]);
    place.tool(&["nft", "delete table inet filter"]);
    place.palisade(&["down", "--volumes", "--yes"]).expect(0);
    assert_eq!(place.rules(), rules);
}

#[test]
fn who_flushes_all_rules_shuts_out_no_stack() {
    const TEST: &str = "host_firewalls::who_flushes_all_rules_shuts_out_no_stack";
    need_root!("host_firewalls::who_flushes_all_rules_shuts_out_no_stack");
    if lacks(TEST, &["python3"]) {
        return;
    }
    let place = Place::new();
    fs::write(place.host.folder.join("blog.yaml"), FILE.replace("8080", "9090").replace("shop", "blog")).unwrap();
    let _private = TcpListener::bind("0.0.0.0:7000").unwrap();
    let kept = || {
        let kept = fs::read(format!("/var/lib/{}/firewall-at-boot.json", place.host.layout.realm)).unwrap();
        let kept: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&kept).unwrap();
        kept.into_iter().map(|(stack, _)| stack).collect::<Vec<_>>()
    };
    let open = || place.host.all_open_to_strangers(&[7000, 8080, 9090]);
    place.palisade(&["up", "--wait"]).expect(0);
    place.palisade(&["-f", "blog.yaml", "up", "--wait"]).expect(0);
    patiently("both services", || (open() == [8080, 9090]).then_some(()));

    // As a restart of nftables.service does.
    let flush = || place.tool(&["nft", "flush", "ruleset"]);
    flush();
    assert_eq!(open(), [7000, 8080, 9090]);
    place.palisade(&["plan"]).expect(1);
    place.palisade(&["up"]).expect(0);
    assert_eq!(open(), [8080, 9090]);
    assert_eq!(kept(), ["blog", "shop"]);
    place.palisade(&["-f", "blog.yaml", "plan"]).expect(0);

    // Nor does a `down` forget what the other one lets in.
    flush();
    place.palisade(&["down", "--volumes", "--yes"]).expect(0);
    assert_eq!(kept(), ["blog"]);
    place.palisade(&["-f", "blog.yaml", "up"]).expect(0);
    assert_eq!(open(), [9090]);
    place.palisade(&["-f", "blog.yaml", "down", "--volumes", "--yes"]).expect(0);
    place.host.assert_nothing_left();
}
