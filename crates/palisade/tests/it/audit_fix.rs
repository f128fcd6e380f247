//! `audit --fix` on real firewalls and a real sshd: what nobody needs is closed, what could cut somebody off isn't touched.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::host_firewalls::{Place, lacks, with_firewalld};
use crate::need_root;
use crate::scratch::{Ran, connects, patiently};
use crate::support::skipped;

const FIX: [&str; 6] = ["audit", "--host-only", "--format", "json", "--fix", "--yes"];

fn report(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

fn has(report: &Value, id: &str, part: &str) -> bool {
    let all = report["findings"].as_array().unwrap();
    all.iter().any(|it| it["id"] == id && it["subject"].as_str().unwrap().contains(part))
}

#[test]
fn ports_that_are_open_for_nobody_are_closed_in_firewalld() {
    const TEST: &str = "audit_fix::ports_that_are_open_for_nobody_are_closed_in_firewalld";
    need_root!("audit_fix::ports_that_are_open_for_nobody_are_closed_in_firewalld");
    if lacks(TEST, &["firewalld", "dbus-daemon"]) {
        return;
    }
    let place = with_firewalld();
    place.tool(&["firewall-cmd", "--zone=public", "--change-interface=eth0"]);
    for permanent in [&[][..], &["--permanent"]] {
        for port in ["9090/tcp", "9091/tcp", "9100-9102/tcp", "9200/tcp", "22/tcp"] {
            let option = format!("--add-port={port}");
            place.tool(&[&["firewall-cmd", "--zone=public", option.as_str()], permanent].concat());
        }
    }
    // Somebody listens at one of them, and another one is lived with.
    let _listener = std::net::TcpListener::bind("127.0.0.1:9091").unwrap();
    let fixed = place.palisade(&FIX);
    for told in [
        "close 9090/tcp in zone public of firewalld, now and permanently (door-without-listener)",
        "door-without-listener: no plain entry of firewalld opens 9100/tcp",
    ] {
        assert!(fixed.err.contains(told), "{told}: {}", fixed.err);
    }
    let after = report(&fixed);
    assert!(!has(&after, "door-without-listener", "9090") && has(&after, "door-without-listener", "9100-9102/tcp"));
    let listed =
        |permanent: &[&str]| place.tool(&[&["firewall-cmd"], permanent, &["--zone=public", "--list-ports"]].concat());
    let left = "22/tcp 9091/tcp 9100-9102/tcp";
    assert_eq!([listed(&[]), listed(&["--permanent"])], [left, left], "{}", fixed.err);
}

#[test]
fn rules_of_iptables_for_nobody_go_and_come_back_if_that_does_not_help() {
    const TEST: &str = "audit_fix::rules_of_iptables_for_nobody_go_and_come_back_if_that_does_not_help";
    need_root!("audit_fix::rules_of_iptables_for_nobody_go_and_come_back_if_that_does_not_help");
    if lacks(TEST, &["iptables-nft"]) {
        return;
    }
    let place = Place::new();
    let script = "for t in iptables-nft ip6tables-nft; do
        $t -A INPUT -i lo -j ACCEPT
        $t -A INPUT -p tcp -m conntrack --ctstate NEW -m tcp --dport 7001 -j ACCEPT
        $t -A INPUT -p tcp -m tcp --dport 7002 -j ACCEPT
        $t -A INPUT -p tcp -m multiport --dports 7002,7003 -j ACCEPT
        $t -P INPUT DROP; done";
    place.tool(&["sh", "-c", script]);
    let rules = || place.tool(&["sh", "-c", "iptables-nft -S INPUT; ip6tables-nft -S INPUT"]);
    let before = rules();
    let fixed = place.palisade(&FIX);
    // 7002 is let in by another rule as well: its own goes, the next audit shows no difference, and it is put back.
    assert!(fixed.err.contains("7002/tcp is let in by something else as well; its entry is put back"), "{}", fixed.err);
    assert!(fixed.err.contains("no plain entry of iptables opens 7003/tcp"), "{}", fixed.err);
    let gone: String =
        before.lines().filter(|line| !line.contains("--dport 7001")).map(|line| format!("{line}\n")).collect();
    assert_eq!(rules(), gone.trim_end());
}

/// A host with an sshd of its own: settings, keys and `/run` in a mount namespace.
fn with_sshd(config: &str, keys: &str) -> Place {
    let mut place = Place::new();
    let folder = place.host.folder.clone();
    let ssh = folder.join("ssh");
    fs::create_dir_all(ssh.join("sshd_config.d")).unwrap();
    fs::write(ssh.join("sshd_config"), config).unwrap();
    fs::write(ssh.join("keys"), keys).unwrap();
    let key = ssh.join("host_key").display().to_string();
    place.tool(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &key]);
    let script = format!(
        "mount --bind {0}/ssh /etc/ssh && mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && touch {0}/ready && exec sleep 600",
        folder.display()
    );
    let pid = place.start(Command::new("unshare").args(["--mount", "--propagation", "private", "sh", "-c", &script]));
    patiently("a mount namespace", || folder.join("ready").exists().then_some(()));
    place.inside = Some(pid);
    let mut sshd = Command::new("/usr/sbin/sshd");
    sshd.arg("-D");
    let mut sshd = place.wrapped(sshd);
    place.start(&mut sshd);
    patiently("sshd", || connects("203.0.113.1:22".parse().unwrap()).then_some(()));
    place
}

const CONFIG: &str = "Include /etc/ssh/sshd_config.d/*.conf\nListenAddress 203.0.113.1\nHostKey /etc/ssh/host_key\n\
                      PermitRootLogin yes\nPasswordAuthentication yes\nKbdInteractiveAuthentication no\nUsePAM no\n\
                      AuthorizedKeysFile /etc/ssh/keys\nPidFile none\n";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGBE9wYc6BL2RwSoCxdZhz6TRXcVYd2hQpKd8sZyqXb0 root@office\n";

#[test]
fn root_logs_in_with_a_key_only_where_there_is_one() {
    const TEST: &str = "audit_fix::root_logs_in_with_a_key_only_where_there_is_one";
    need_root!("audit_fix::root_logs_in_with_a_key_only_where_there_is_one");
    if lacks(TEST, &["sshd", "ssh-keygen"]) {
        return;
    }
    if fs::read_to_string("/proc/self/loginuid").is_ok_and(|uid| !["0", "4294967295"].contains(&uid.trim())) {
        return skipped(TEST, "somebody who isn't root has logged in here");
    }
    let place = with_sshd(CONFIG, "# nobody yet\n");
    let first = place.palisade(&FIX);
    assert!(first.err.contains("ssh-root-password: root has no key here"), "{}", first.err);
    assert!(has(&report(&first), "ssh-root-password", "sshd"), "{}", first.out);
    let ssh = place.host.folder.join("ssh");
    assert_eq!(fs::read_dir(ssh.join("sshd_config.d")).unwrap().count(), 0);

    fs::write(ssh.join("keys"), KEY).unwrap();
    let second = place.palisade(&FIX);
    assert!(second.err.contains("let root log in with a key only"), "{}", second.err);
    let after = report(&second);
    assert!(!has(&after, "ssh-root-password", "sshd") && has(&after, "ssh-password", "sshd"), "{after:#}");
    patiently("sshd to listen", || connects("203.0.113.1:22".parse().unwrap()).then_some(()));
    assert!(place.tool(&["sshd", "-T"]).contains("permitrootlogin without-password"));

    // A line that comes first: ours would change nothing, and isn't left behind.
    fs::remove_file(ssh.join("sshd_config.d/00-palisade.conf")).unwrap();
    fs::write(ssh.join("sshd_config"), format!("PermitRootLogin yes\n{CONFIG}")).unwrap();
    let third = place.palisade(&FIX).expect(1);
    assert!(third.err.contains("says something else before it reads"), "{}", third.err);
    assert_eq!(fs::read_dir(ssh.join("sshd_config.d")).unwrap().count(), 0);
}

#[test]
fn an_sshd_is_audited_with_the_settings_that_it_was_started_with() {
    const TEST: &str = "audit_fix::an_sshd_is_audited_with_the_settings_that_it_was_started_with";
    need_root!("audit_fix::an_sshd_is_audited_with_the_settings_that_it_was_started_with");
    if lacks(TEST, &["sshd", "ssh-keygen"]) {
        return;
    }
    // The usual place says that only keys count; the sshd that runs has another file.
    let mut place = with_sshd(&CONFIG.replace("yes", "no"), "");
    let other = place.host.folder.join("other");
    fs::write(&other, CONFIG.replace("ListenAddress", "Port 2222\nListenAddress")).unwrap();
    let mut first = place.daemons.pop().unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    let of = |place: &Place| report(&place.palisade(&FIX[..4]));
    let audit = of(&place);
    assert!(!has(&audit, "ssh-root-password", "") && !has(&audit, "ssh-password", ""), "{audit:#}");
    let mut sshd = Command::new("/usr/sbin/sshd");
    sshd.arg("-D").arg("-f").arg(&other);
    let mut sshd = place.wrapped(sshd);
    place.start(&mut sshd);
    patiently("sshd", || connects("203.0.113.1:2222".parse().unwrap()).then_some(()));
    assert!(has(&of(&place), "ssh-root-password", "sshd"));
    let refused = place.palisade(&FIX);
    assert!(refused.err.contains("sshd was started with settings of its own"), "{}", refused.err);
}
