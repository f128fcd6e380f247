//! Audits beside a real firewalld and a real ufw: whether they run, and whether their files say what is in force.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::host_firewalls::{Place, lacks, with_firewalld, with_ufw};
use crate::need_root;
use crate::scratch::{PATIENCE, Ran, Running, patiently};
use crate::support::PALISADE;

const AUDIT: [&str; 4] = ["audit", "--host-only", "--format", "json"];

fn report(ran: Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

/// What is found about programs that keep a firewall: severity, id, subject, and what was seen.
fn about_firewalls(report: &Value) -> Vec<String> {
    let all = report["findings"].as_array().unwrap().iter();
    let about = all.filter(|it| it["id"].as_str().unwrap().starts_with("firewall-") && it["id"] != "firewall-open");
    let text = |it: &Value, key: &str| it[key].as_str().unwrap().to_owned();
    about
        .map(|it| {
            let seen: Vec<_> = it["evidence"].as_array().unwrap().iter().map(|seen| seen.as_str().unwrap()).collect();
            format!("{} {} {}: {}", text(it, "severity"), text(it, "id"), text(it, "subject"), seen.join(" | "))
        })
        .collect()
}

/// Whether others are installed beside it is the machine's business.
fn of_program(place: &Place, program: &str) -> Vec<String> {
    let mut all = about_firewalls(&report(place.palisade(&AUDIT)));
    all.retain(|line| line.contains(program));
    all
}

#[test]
fn a_zone_file_that_was_edited_and_not_loaded_is_found() {
    const TEST: &str = "audit_firewalls::a_zone_file_that_was_edited_and_not_loaded_is_found";
    need_root!("audit_firewalls::a_zone_file_that_was_edited_and_not_loaded_is_found");
    if lacks(TEST, &["firewalld", "dbus-daemon"]) {
        return;
    }
    let mut place = with_firewalld();
    let of = |place: &Place| of_program(place, "firewalld");
    place.tool(&["firewall-cmd", "--zone=public", "--change-interface=eth0"]);
    assert_eq!(of(&place), [""; 0]);

    let zone = place.host.folder.join("firewalld/zones/public.xml");
    let text = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<zone>\n  <short>Public</short>\n  <service name=\"ssh\"/>\n  \
                <service name=\"dhcpv6-client\"/>\n  <port port=\"5432\" protocol=\"tcp\"/>\n  <forward/>\n\
                <rule family=\"ipv4\"><source address=\"198.51.100.9\"/><drop/></rule>\n</zone>\n";
    fs::write(&zone, text).unwrap();
    // In the place of its package's file, firewalld itself doesn't see it.
    let told = of(&place);
    assert!(told.len() == 1 && told[0].contains("zone public is in force as it came with firewalld"), "{told:?}");
    place.tool(&["firewall-cmd", "--permanent", "--zone=public", "--add-port=1/tcp"]);
    place.tool(&["firewall-cmd", "--permanent", "--zone=public", "--remove-port=1/tcp"]);
    place.tool(&["firewall-cmd", "--reload"]);
    place.tool(&["firewall-cmd", "--zone=public", "--change-interface=eth0"]);
    assert_eq!(of(&place), [""; 0]);
    fs::write(&zone, text).unwrap();
    // It watches its files.
    let edited = [
        "warning firewall-files-differ firewalld: in the files and not in force, zone public (eth0): ports 5432/tcp | \
         in the files and not in force, zone public (eth0): rule family=\"ipv4\" source address=\"198.51.100.9\" drop",
    ];
    patiently("firewalld to see its file", || (of(&place) == edited).then_some(()));
    // From somewhere else it is nobody's business.
    let elsewhere = place.host.wrapped(&["unshare", "--net"], Path::new(PALISADE), &AUDIT);
    let elsewhere = report(Running::start(place.wrapped(elsewhere)).end(PATIENCE));
    assert!(!about_firewalls(&elsewhere).iter().any(|line| line.contains("firewalld")), "{elsewhere:#}");
    assert!(elsewhere["unknown"].to_string().contains("looks after another network namespace"), "{elsewhere:#}");

    place.tool(&["firewall-cmd", "--reload"]);
    assert_eq!(of(&place), [""; 0]);
    // Opened until the next reload, and an interface that goes elsewhere than its file says.
    place.tool(&["firewall-cmd", "--permanent", "--zone=internal", "--add-interface=eth0"]);
    place.tool(&["firewall-cmd", "--zone=public", "--change-interface=eth0"]);
    place.tool(&["firewall-cmd", "--zone=public", "--add-port=9090/udp"]);
    let told = of(&place).join("\n");
    assert!(told.contains("in force and not in the files, zone public (eth0): ports 9090/udp"), "{told}");
    assert!(told.contains("interface eth0 is in zone public in force, and in zone internal in the files"), "{told}");

    // The bus is there and firewalld is not.
    let mut firewalld = place.daemons.pop().unwrap();
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(firewalld.id() as i32), nix::sys::signal::Signal::SIGTERM)
        .unwrap();
    firewalld.wait().unwrap();
    assert_eq!(of(&place), ["error firewall-not-running firewalld: "]);
    // What is let in by rules that somebody has made by hand is closed to all others: then nobody needs firewalld.
    place.tool(&["nft", "add table inet t; add chain inet t c { type filter hook input priority 0; policy drop; }"]);
    assert_eq!(of(&place), [""; 0]);
}

#[test]
fn ufw_is_missed_only_by_who_has_switched_it_on() {
    const TEST: &str = "audit_firewalls::ufw_is_missed_only_by_who_has_switched_it_on";
    need_root!("audit_firewalls::ufw_is_missed_only_by_who_has_switched_it_on");
    if lacks(TEST, &["ufw", "iptables-nft"]) {
        return;
    }
    let place = with_ufw();
    let of_ufw = || of_program(&place, "ufw");
    // As Ubuntu comes.
    assert_eq!(of_ufw(), ["note firewall-not-running ufw: "]);
    place.tool(&["ufw", "--force", "enable"]);
    assert_eq!(of_ufw(), [""; 0]);
    place.tool(&["nft", "flush", "ruleset"]);
    assert_eq!(of_ufw(), ["error firewall-not-running ufw: "]);
}

#[test]
fn a_to_do_list_ticks_only_what_was_seen() {
    need_root!("audit_firewalls::a_to_do_list_ticks_only_what_was_seen");
    let host = crate::scratch::Host::of("nothing");
    // An sshd that says nothing: whatever its settings are, nobody has read them.
    let tools = host.folder.join("tools");
    fs::create_dir(&tools).unwrap();
    let sshd = tools.join("sshd");
    fs::write(&sshd, "#!/bin/sh\necho no settings today >&2\nexit 1\n").unwrap();
    fs::set_permissions(&sshd, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut audit = host.command(&["audit", "--host-only", "--format", "markdown"]);
    audit.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", tools.display()));
    let list = Running::start(audit).end(PATIENCE).out;
    let part = |from: &str, to: &str| {
        let rest = &list[list.find(from).unwrap_or_else(|| panic!("{from}: {list}"))..];
        rest[..rest.find(to).unwrap_or(rest.len())].to_owned()
    };
    let done = part("## Done", "## Not known to be so");
    assert!(done.contains(
        "- [x] Packets from outside can't be for loopback (`kernel-route-localnet`)\n  - seen: net.ipv4.conf."
    ));
    assert!(
        done.contains("(`internal-exposed`)\n  - seen: ") && done.contains("packets to all ports of 203.0.113.1"),
        "{list}"
    );
    assert!(!done.contains("- [ ]"), "{list}");
    let open = part("## Not known to be so", "## Not known\n");
    let ssh = "- [ ] SSH takes keys only (`ssh-password`)\n  - could not be read: sshd's settings: ";
    assert!(open.contains(ssh) && open.contains("no settings today") && !open.contains("- [x]"), "{list}");
}
