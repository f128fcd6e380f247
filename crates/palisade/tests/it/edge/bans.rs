//! Who is refused too often is kept out by the host's firewall, whichever it has, by IPv4 and IPv6, until the time is over.
//! Whoever operates the host never is.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_host::firewall::bans::Bans;
use palisade_host::link;

use super::shop::APP;
use crate::host_firewalls::{Place, lacks, with_firewalld, with_iptables_of_old, with_ufw};
use crate::need_root;
use crate::scratch::{HOST, Host, STRANGER, connects, patiently};

const HOST6: &str = "2001:db8::1";
/// Two of one /64, and one of another.
const OFFENDER: &str = "2001:db8:0:1::2";
const NEIGHBOUR: &str = "2001:db8:0:1::3";
const OTHER: &str = "2001:db8:0:2::2";
/// Of the operator, and of somebody who only knocks.
const OPERATOR: &str = "2001:db8:0:3::2";
const KNOCKER: &str = "2001:db8:0:4::2";

fn file() -> String {
    let limited = "to: app:8081\n        rate_limit: {per_client: 1/s, burst: 1}\n        ban: {after: 5, for: 1h}\n";
    APP.replace("to: app:8081\n", limited)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// More networks of IPv6 between the host and its internet.
fn with_networks(place: &Place) {
    link::add_address("eth0", ip("2001:db8::ffff"), 48).unwrap();
    let addresses = [OFFENDER, NEIGHBOUR, OTHER, OPERATOR, KNOCKER];
    place.host.internet.run(|| addresses.map(|address| link::add_address("eth0", ip(address), 48).unwrap())).unwrap();
}

/// What somebody with this address on the internet gets: the status, or nothing.
fn ask(host: &Host, from: IpAddr) -> Option<u16> {
    let to = if from.is_ipv4() { HOST.to_string() } else { format!("[{HOST6}]") };
    let mut command = Command::new("timeout");
    command.args(["20", "curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "5"]);
    command.args(["--connect-timeout", "2", "--interface", &from.to_string()]);
    command.args(["--resolve", &format!("shop.example:443:{to}"), "https://shop.example/"]);
    let output = host.internet.run(|| command.output()).unwrap().unwrap();
    String::from_utf8_lossy(&output.stdout).parse().ok().filter(|status| output.status.success() && *status > 0)
}

/// Somebody gets an answer, if not at once: the machine may be busy.
fn is_answered(host: &Host, from: IpAddr) {
    patiently(&format!("an answer to {from}"), || ask(host, from));
}

/// Asks much too often, until this is among the events.
fn offend(host: &Host, from: IpAddr, event: &str) {
    patiently(event, || {
        for _ in 0..5 {
            ask(host, from);
        }
        host.palisade(&["events"]).expect(0).out.contains(event).then_some(())
    });
}

/// Whether the host's other doors can be told from those that the edge's ban closes.
fn reaches(host: &Host, from: &str, port: u16) -> bool {
    let from = from.to_owned();
    let python = format!("import socket; socket.create_connection(('{HOST6}', {port}), 2, ('{from}', 0))");
    let mut command = Command::new("timeout");
    command.args(["20", "python3", "-c", &python]);
    host.internet.run(|| command.output()).unwrap().unwrap().status.success()
}

#[test]
fn a_network_of_ipv6_is_banned_as_a_whole_and_no_other() {
    need_root!("edge::bans::a_network_of_ipv6_is_banned_as_a_whole_and_no_other");
    let place = Place::new();
    with_networks(&place);
    let host = &place.host;
    host.write(&file());
    host.up();
    is_answered(host, ip(NEIGHBOUR));
    offend(host, ip(OFFENDER), " banned client=2001:db8:0:1::/64 for_s=3600");
    let others = || [ip(OTHER), STRANGER].iter().for_each(|other| is_answered(host, *other));
    assert_eq!([OFFENDER, NEIGHBOUR].map(|client| ask(host, ip(client))), [None, None]);
    assert!(!reaches(host, NEIGHBOUR, 80), "a ban is from all of the edge's ports");
    others();

    // Another agent knows who is banned, also when somebody has loaded the host's rules anew.
    kill(Pid::from_raw(host.agent().unwrap()), Signal::SIGKILL).unwrap();
    patiently("the agent's end", || host.agent().is_none().then_some(()));
    assert_eq!(ask(host, ip(NEIGHBOUR)), None);
    host.palisade(&["up"]).expect(0);
    assert_eq!(ask(host, ip(NEIGHBOUR)), None);
    // The new one has to have looked before the rules are gone.
    std::thread::sleep(std::time::Duration::from_secs(6));
    place.tool(&["nft", "flush", "ruleset"]);
    patiently("the ban, set anew", || ask(host, ip(NEIGHBOUR)).is_none().then_some(()));
    others();
    host.palisade(&["up"]).expect(0);

    // A short one ends in time.
    let bans = Bans::new(&host.layout);
    bans.add(&BTreeSet::from([80, 443]), &[("2001:db8:0:2::/64".parse().unwrap(), 15)]).unwrap();
    assert_eq!(ask(host, ip(OTHER)), None);
    patiently("the end of the ban", || ask(host, ip(OTHER)));
    assert_eq!(ask(host, ip(NEIGHBOUR)), None);
    host.down();
}

#[test]
fn whoever_couldnt_be_banned_at_once_is_banned_and_told_of_later() {
    need_root!("edge::bans::whoever_couldnt_be_banned_at_once_is_banned_and_told_of_later");
    let place = Place::new();
    let host = &place.host;
    host.write(&file());
    host.up();
    // Somebody has a set of another kind where the bans are to be: nothing can be added to it.
    let table = format!("{}.{}.bans", host.layout.realm, host.layout.project);
    place.tool(&["nft", "add", "table", "inet", &table]);
    place.tool(&["nft", "add", "set", "inet", &table, "banned4", "{ type inet_service; flags timeout; }"]);
    offend(host, STRANGER, " ban_failed ");
    is_answered(host, STRANGER);
    place.tool(&["nft", "delete", "table", "inet", &table]);
    let banned = " banned client=203.0.113.2 for_s=3600";
    patiently(banned, || host.palisade(&["events"]).expect(0).out.contains(banned).then_some(()));
    assert_eq!(ask(host, STRANGER), None);
    host.down();
}

/// A real sshd of this host that takes this key of root's.
fn with_sshd(place: &mut Place) {
    let folder = place.host.folder.clone();
    for key in ["host-key", "key"] {
        place.tool(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &folder.join(key).to_string_lossy()]);
    }
    let config = format!(
        "HostKey {0}/host-key\nAuthorizedKeysFile {0}/key.pub\nPidFile none\nUsePAM no\nPermitRootLogin yes\n\
         StrictModes no\nPasswordAuthentication no\nUseDNS no\nLoginGraceTime 600\n",
        folder.display()
    );
    fs::write(folder.join("sshd_config"), config).unwrap();
    // It wants a folder of the machine's that may not be there, and leaves no trace of whoever logs in here.
    let script = format!(
        "mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/sshd && mount -t tmpfs tmpfs /var/log && exec /usr/sbin/sshd -D -e -f {}/sshd_config",
        folder.display()
    );
    place.start(Command::new("unshare").args(["--mount", "--propagation", "private", "sh", "-c", &script]));
    patiently("sshd", || connects(SocketAddr::new(HOST, 22)).then_some(()));
}

/// Somebody logs in, and stays until the place is gone.
fn log_in(place: &mut Place, from: &str) {
    let folder = place.host.folder.clone();
    let here = folder.join("logged-in");
    let _ = fs::remove_file(&here);
    let mut command = Command::new("ssh");
    command.args(["-F", "none", "-n", "-b", from, "-i"]).arg(folder.join("key"));
    command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]);
    command.arg(format!("root@{HOST6}")).arg(format!("touch {} && sleep 600", here.display()));
    let internet = place.host.internet.enter().unwrap();
    place.start(&mut command);
    drop(internet);
    patiently("a login", || here.exists().then_some(()));
}

#[test]
fn whoever_is_logged_in_is_never_banned_and_whoever_knocks_is() {
    const TEST: &str = "edge::bans::whoever_is_logged_in_is_never_banned_and_whoever_knocks_is";
    need_root!("edge::bans::whoever_is_logged_in_is_never_banned_and_whoever_knocks_is");
    if lacks(TEST, &["sshd", "ssh"]) {
        return;
    }
    let mut place = Place::new();
    with_networks(&place);
    with_sshd(&mut place);
    place.host.write(&file());
    place.host.up();
    log_in(&mut place, OPERATOR);
    let spared = " not_banned because=somebody is logged in from there over SSH client=2001:db8:0:3::/64";
    offend(&place.host, ip(OPERATOR), spared);
    is_answered(&place.host, ip(OPERATOR));

    // A connection to sshd that nobody has logged in over is no operator's.
    let program = format!(
        "import socket, time; s = socket.create_connection(('{HOST6}', 22), 5, ('{KNOCKER}', 0)); time.sleep(600)"
    );
    let internet = place.host.internet.enter().unwrap();
    place.start(Command::new("python3").args(["-c", &program]));
    drop(internet);
    let host = &place.host;
    patiently("a knock", || {
        let ss = place.tool(&["ss", "-Htn", "state", "established", "sport", "=", ":22"]);
        ss.contains(KNOCKER).then_some(())
    });
    offend(host, ip(KNOCKER), " banned client=2001:db8:0:4::/64 for_s=3600");
    assert_eq!(ask(host, ip(KNOCKER)), None);

    // Who turns out to be an operator is banned no longer.
    log_in(&mut place, KNOCKER);
    patiently("the end of the ban", || ask(&place.host, ip(KNOCKER)));
    let events = place.host.palisade(&["events"]).expect(0).out;
    assert!(events.contains(" ban_lifted "), "{events}");
    place.host.palisade(&["down", "--volumes", "--yes"]).expect(0);
}

/// The host's firewall lets the edge's ports in, and is loaded anew while somebody is banned.
fn a_ban_holds(place: &Place, load_anew: &[&[&str]]) {
    with_networks(place);
    let host = &place.host;
    host.write(&file());
    place.palisade(&["up", "--wait"]).expect(0);
    patiently("the edge", || ask(host, STRANGER));
    offend(host, STRANGER, " banned client=203.0.113.2 for_s=3600");
    offend(host, ip(OFFENDER), " banned client=2001:db8:0:1::/64 for_s=3600");
    let banned = || [STRANGER, ip(OFFENDER), ip(NEIGHBOUR)].map(|client| ask(host, client));
    assert_eq!(banned(), [None; 3]);
    is_answered(host, ip(OTHER));
    for words in load_anew {
        place.tool(words);
        place.palisade(&["up"]).expect(0);
        patiently("who isn't banned", || ask(host, ip(OTHER)));
        assert_eq!(banned(), [None; 3], "after {words:?}");
    }
    place.palisade(&["down", "--volumes", "--yes"]).expect(0);
    assert!(!place.tool(&["nft", "list", "tables"]).contains(".bans"));
}

#[test]
fn a_ban_holds_beside_firewalld_also_when_it_is_reloaded() {
    const TEST: &str = "edge::bans::a_ban_holds_beside_firewalld_also_when_it_is_reloaded";
    need_root!("edge::bans::a_ban_holds_beside_firewalld_also_when_it_is_reloaded");
    if lacks(TEST, &["firewalld", "dbus-daemon"]) {
        return;
    }
    let place = with_firewalld();
    a_ban_holds(&place, &[&["firewall-cmd", "--reload"], &["firewall-cmd", "--complete-reload"]]);
}

#[test]
fn a_ban_holds_beside_ufw_also_when_it_is_reloaded() {
    const TEST: &str = "edge::bans::a_ban_holds_beside_ufw_also_when_it_is_reloaded";
    need_root!("edge::bans::a_ban_holds_beside_ufw_also_when_it_is_reloaded");
    if lacks(TEST, &["ufw", "iptables-nft"]) {
        return;
    }
    let place = with_ufw();
    place.tool(&["ufw", "--force", "enable"]);
    place.tool(&["ufw", "allow", "80,443/tcp"]);
    a_ban_holds(&place, &[&["ufw", "reload"], &["sh", "-c", "ufw disable && ufw --force enable"]]);
}

fn a_ban_holds_beside_iptables(place: &Place, variant: &str) {
    let rules = "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp --dport 22 -j ACCEPT\n\
                 -A INPUT -p ipv6-icmp -j ACCEPT\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n";
    let path = place.host.folder.join("rules");
    fs::write(&path, rules).unwrap();
    let load = ["iptables", "ip6tables"].map(|program| format!("{program}-{variant}-restore < {}", path.display()));
    let load = load.join(" && ");
    place.tool(&["sh", "-c", &load]);
    a_ban_holds(place, &[&["sh", "-c", &load]]);
}

#[test]
fn a_ban_holds_beside_iptables_of_today() {
    const TEST: &str = "edge::bans::a_ban_holds_beside_iptables_of_today";
    need_root!("edge::bans::a_ban_holds_beside_iptables_of_today");
    if lacks(TEST, &["iptables-nft"]) {
        return;
    }
    a_ban_holds_beside_iptables(&Place::new(), "nft");
}

#[test]
fn a_ban_holds_beside_iptables_of_old() {
    const TEST: &str = "edge::bans::a_ban_holds_beside_iptables_of_old";
    need_root!("edge::bans::a_ban_holds_beside_iptables_of_old");
    let Some(place) = with_iptables_of_old(TEST) else { return };
    a_ban_holds_beside_iptables(&place, "legacy");
}
