//! Firewall services: installed, running, coming back, and as their files say.

use super::facts::Facts;
use super::rules::{FIREWALL_FILES_DIFFER, FIREWALL_NOT_AT_BOOT, FIREWALL_NOT_RUNNING};
use crate::finding::{Finding, Severity};

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    let some_active = facts.firewalls.iter().any(|firewall| firewall.active);
    for firewall in &facts.firewalls {
        let name = &firewall.name;
        let start = match name.as_str() {
            "ufw" => "ufw allow OpenSSH && ufw enable".to_owned(),
            _ => format!("systemctl enable --now {name}"),
        };
        // Whoever is cut off by it is let in again when the time is over.
        let stop = if name == "ufw" { "ufw disable".to_owned() } else { format!("systemctl stop {name}") };
        let way_back = format!(
            "`systemd-run --on-active=3min --unit=way-back {stop}`, then `{start}`; log in a second time, and if that works: `systemctl stop way-back.timer`"
        );
        // Of several that are installed, one is enough; more would fight each other.
        if !firewall.active && !some_active {
            // ufw comes switched off with its distribution: only who has switched it on meant it to run.
            let meant = name != "ufw" || firewall.at_boot == Some(true);
            let is = if meant { "isn't running" } else { "is switched off" };
            let mut finding = FIREWALL_NOT_RUNNING.hit(name, format!("{name} is installed and {is}"));
            if !meant {
                finding.severity = Severity::Note;
            }
            findings.push(finding.remedy(format!(
                "let sshd's port in first, then with a way back: {way_back}; or take the package away"
            )));
        }
        if firewall.active && firewall.at_boot == Some(false) {
            let message = format!("{name} runs now and isn't enabled for the next boot");
            findings.push(FIREWALL_NOT_AT_BOOT.hit(name, message).remedy(format!("`{start}`")));
        }
        if !firewall.differences.is_empty() {
            let message = format!("what {name} has in its files is not what is in force");
            let mut finding = FIREWALL_FILES_DIFFER.hit(name, message);
            finding.evidence.clone_from(&firewall.differences);
            findings.push(finding.remedy(match name.as_str() {
                "firewalld" => "keep what is in force: `firewall-cmd --runtime-to-permanent`; or go back to the files: `firewall-cmd --reload`",
                _ => "load the files again, or write down what is in force",
            }));
        }
    }
    findings
}
