//! What is let in after a boot: by our unit, which a real systemd starts, and by the file from which the distribution loads
//! the rules of iptables.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::host_firewalls::lacks;
use crate::need_root;
use crate::scratch::{Host, PATIENCE, Running, patiently};
use crate::support::{PALISADE, skipped};
use crate::systemd::Systemd;

const FILE: &str = r#"
name: shop
services:
  web:
    ports: ["8080:8080"]
    stop_signal: SIGKILL
    x-palisade:
      process: { command: [python3, -c, "import socket; s = socket.create_server(('0.0.0.0', 8080)); [s.accept()[0].close() for _ in iter(int, 1)]"] }
      allow: { no-healthcheck: it lives for a test }
"#;

/// The folders that a host's own stacks use, and the kernel's pins: empty ones of its own.
const OWN_FOLDERS: &str = "mount -t tmpfs tmpfs /var/lib; mount -t tmpfs tmpfs /var/log; mkdir -p /sys/fs/bpf; \
                           mount -t bpf bpf /sys/fs/bpf; mkdir /var/lib/palisade";

/// A boot that starts nothing but what `sysinit.target` is told to by who has written units.
const OUR_UNITS: &str = "for wants in /usr/lib/systemd/system/sysinit.target.wants /lib/systemd/system/sysinit.target.wants; do \
                         [ ! -d $wants ] || mount -t tmpfs tmpfs $wants; done; \
                         printf '[Unit]\\nDefaultDependencies=no\\n' >/etc/systemd/system/sysinit.target; \
                         printf '[Unit]\\nDefaultDependencies=no\\nRequires=sysinit.target\\nAfter=sysinit.target\\n' >/etc/systemd/system/alone.target";

#[test]
fn systemd_loads_the_table_at_boot() {
    const TEST: &str = "boots::systemd_loads_the_table_at_boot";
    need_root!("boots::systemd_loads_the_table_at_boot");
    if lacks(TEST, &["python3"]) {
        return;
    }
    let host = Host::new();
    host.write(FILE);
    let name = format!("{}-boot", host.layout.realm);
    let mut systemd = match Systemd::boot_prepared(&name, &host.folder, OWN_FOLDERS) {
        Ok(systemd) => systemd,
        Err(why) => return skipped(TEST, &why),
    };
    let compose = host.folder.join("compose.yaml").display().to_string();
    let palisade = |systemd: &Systemd, arguments: &[&str]| {
        systemd.run("env", &[&["-u", "SSH_CONNECTION", PALISADE, "-f", &compose], arguments].concat())
    };
    // The first `up` is that of a file that is gone afterwards; the second one changes nothing that is in force.
    let passing = host.folder.join("palisade").display().to_string();
    fs::copy(PALISADE, &passing).unwrap();
    let first = ["-u", "SSH_CONNECTION", &passing, "-f", &compose, "up", "--wait", "--no-confirm"];
    systemd.run("env", &first).unwrap();
    fs::remove_file(&passing).unwrap();
    palisade(&systemd, &["plan"]).unwrap();
    palisade(&systemd, &["up", "--no-confirm"]).unwrap();
    let table = || {
        let listed = Command::new("nft").args(["-s", "list", "table", "inet", "palisade"]).output().unwrap();
        // What sshd of the machine is set up for is let in at boot as well, whether or not it ran before.
        let plain = |text: &str| text.replace("\t\telements = { 22 }\n", "");
        listed.status.success().then(|| plain(&String::from_utf8_lossy(&listed.stdout)))
    };
    let before = table().expect("the table is there");
    // What a disk would keep.
    let kept = host.folder.join("kept").display().to_string();
    let save = "mkdir $0; cp -a /var/lib/palisade $0/lib; cp -a /etc/systemd/system $0/units; rm -f $0/units/*.target";
    systemd.run("sh", &["-ec", save, &kept]).unwrap();
    systemd.end();
    drop(systemd);
    // The power goes: the kernel has no rules any more.
    assert!(Command::new("nft").args(["flush", "ruleset"]).status().unwrap().success());
    assert_eq!(table(), None);

    let restore = format!(
        "{OWN_FOLDERS}; cp -a {kept}/lib/. /var/lib/palisade; cp -a {kept}/units/. /etc/systemd/system; {OUR_UNITS}"
    );
    let systemd = Systemd::boot_prepared(&name, &host.folder, &restore).unwrap();
    let state = || {
        let properties = ["show", "--property=Result,ActiveState", "palisade-firewall.service"];
        systemd.run("systemctl", &properties).unwrap()
    };
    let settled = patiently("the unit to settle", || Some(state()).filter(|state| !state.contains("activating")));
    let log = fs::read_to_string(host.folder.join("systemd.log")).unwrap_or_default();
    assert_eq!(settled, "Result=success\nActiveState=active", "{log}");
    assert_eq!(table().as_ref(), Some(&before), "{log}");
    // What the next boot lacks is told.
    systemd.run("rm", &["/var/lib/palisade/_boot/palisade"]).unwrap();
    let told = palisade(&systemd, &["plan"]).unwrap_err();
    assert!(told.contains("/var/lib/palisade/_boot/palisade, which palisade-firewall.service runs, is gone"), "{told}");
    // The stack isn't up; `down` takes the table and the unit away.
    palisade(&systemd, &["down", "--volumes", "--yes"]).unwrap();
    assert_eq!(table(), None);
    assert!(systemd.run("ls", &["/etc/systemd/system/palisade-firewall.service"]).is_err());
    assert!(systemd.run("ls", &["/var/lib/palisade/_boot"]).is_err());
}

const RULES: &str = "*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
";

#[test]
fn what_is_let_in_by_iptables_is_in_the_file_that_is_loaded_at_boot() {
    const TEST: &str = "boots::what_is_let_in_by_iptables_is_in_the_file_that_is_loaded_at_boot";
    need_root!("boots::what_is_let_in_by_iptables_is_in_the_file_that_is_loaded_at_boot");
    if lacks(TEST, &["iptables-nft", "python3"]) {
        return;
    }
    let host = Host::new();
    host.write(FILE);
    fs::write(host.folder.join("rules"), RULES).unwrap();
    // A host whose first process is in this network namespace, with an /etc of its own.
    let script = format!(
        "mount -t tmpfs tmpfs /mnt; cp -a /etc /mnt/etc; mount --bind /mnt/etc /etc; mkdir -p /etc/iptables
        for v in 4 6; do cp {0}/rules /etc/iptables/rules.v$v; done; chmod 640 /etc/iptables/rules.v4
        iptables-nft-restore <{0}/rules; ip6tables-nft-restore <{0}/rules
        \"$@\" up --wait >&2
        for v in 4 6; do cp /etc/iptables/rules.v$v {0}/up.v$v; done; stat -c %a /etc/iptables/rules.v4
        # A boot.
        iptables-nft-restore </etc/iptables/rules.v4; ip6tables-nft-restore </etc/iptables/rules.v6
        touch {0}/booted; while [ ! -e {0}/go-on ]; do sleep 0.1; done
        \"$@\" plan >&2
        \"$@\" down --volumes --yes >&2
        for v in 4 6; do cp /etc/iptables/rules.v$v {0}/down.v$v; done; ls /etc/iptables",
        host.folder.display()
    );
    let wrapper = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-ec", &script, "sh"];
    let mut running = Running::start(host.wrapped(&wrapper, Path::new(PALISADE), &[]));
    let booted = host.folder.join("booted");
    patiently("a boot", || (booted.exists() || running.is_over()).then_some(()));
    // The stack of the former life may still be starting its server.
    let open = (0..100).any(|_| {
        host.open_to_strangers(8080) || {
            std::thread::sleep(Duration::from_millis(100));
            false
        }
    });
    fs::write(host.folder.join("go-on"), "").unwrap();
    let ran = running.end(PATIENCE).expect(0);
    assert!(open, "{ran:?}");
    assert_eq!(ran.out, "640\nrules.v4\nrules.v6\n", "{}", ran.err);
    let file = |name: &str| fs::read_to_string(host.folder.join(name)).unwrap();
    let expected = RULES
        .replace("-A INPUT -i lo", ":PALISADE - [0:0]\n-A INPUT -i lo")
        .replace("COMMIT", "-A INPUT -j PALISADE\n-A PALISADE -p tcp -m tcp --dport 8080 -j ACCEPT\nCOMMIT");
    assert_eq!([file("up.v4"), file("up.v6")], [expected.clone(), expected]);
    assert_eq!([file("down.v4"), file("down.v6")], [RULES, RULES]);
}
