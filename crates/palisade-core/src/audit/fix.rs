//! What can be mended without harm: settings of the kernel that a server has no use for. (Ports that nobody listens on and
//! root's login by password depend on what the host has; the binary looks.)
//!
//! Whatever might cut somebody off, or changes a service, stays with people: their findings say what to do.

use std::fmt;

use serde::Serialize;

use super::rules::{
    FIREWALL_FILES_DIFFER, FIREWALL_NOT_RUNNING, FIREWALL_OPEN, REDIRECTS, ROUTE_LOCALNET, RP_FILTER, UNPRIVILEGED_BPF,
};
use crate::finding::{Finding, Severity};

/// One setting of the kernel, now and at each boot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Setting {
    /// Its path below `/proc/sys`: `net/ipv4/conf/eth0/rp_filter`. Names of interfaces may hold dots.
    pub path: String,
    /// What it is set to.
    pub value: u32,
    /// The finding that it mends.
    pub mends: &'static str,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "set {} to {} ({})", self.path, self.value, self.mends)
    }
}

/// What mends these findings, as far as it can be done without harm. Each setting once, in order.
pub fn fixes(findings: &[Finding]) -> Vec<Setting> {
    let mut all: Vec<Setting> = findings.iter().flat_map(fix).collect();
    all.sort();
    all.dedup();
    all
}

fn fix(finding: &Finding) -> Vec<Setting> {
    let of_interface = |key: &str, interfaces: &[&str], value| {
        let setting =
            |interface: &&str| Setting { path: format!("net/ipv4/conf/{interface}/{key}"), value, mends: finding.id };
        interfaces.iter().map(setting).collect()
    };
    // For these two the larger value of `all` and the interface counts: a zero must stand at both.
    let both = ["all", finding.subject.as_str()];
    match finding.id {
        id if id == ROUTE_LOCALNET.id => of_interface("route_localnet", &both, 0),
        id if id == REDIRECTS.id => of_interface("accept_redirects", &both, 0),
        // Loose: a host with several ways out keeps all of them.
        id if id == RP_FILTER.id => of_interface("rp_filter", &both[1..], 2),
        id if id == UNPRIVILEGED_BPF.id => {
            vec![Setting { path: "kernel/unprivileged_bpf_disabled".into(), value: 1, mends: finding.id }]
        }
        _ => Vec::new(),
    }
}

/// What is never mended by itself though it sounds easy, and why; the findings say what to do.
pub fn refused(findings: &[Finding]) -> Vec<String> {
    let why = |finding: &Finding| match finding.id {
        id if id == FIREWALL_NOT_RUNNING.id && finding.severity > Severity::Note => Some(
            "starting it may cut off this connection and whatever else is used; do it with a way back, as its hint says",
        ),
        id if id == FIREWALL_OPEN.id => {
            Some("what is to stay open is for you to say: in a stack's file, or in the firewall")
        }
        id if id == FIREWALL_FILES_DIFFER.id => Some("which of the two is meant is for you to say"),
        _ => None,
    };
    let told =
        findings.iter().filter_map(|finding| Some(format!("{} {}: {}", finding.id, finding.subject, why(finding)?)));
    told.collect()
}

/// The file for `/etc/sysctl.d` with these settings besides those that it had: `old`, if it was there.
pub fn sysctl_file(old: &str, settings: &[Setting]) -> String {
    const HEADING: &str = "# Set by `palisade audit --fix`.";
    let replaced = |line: &str| {
        let key = line.split('=').next().unwrap_or_default().trim();
        settings.iter().any(|setting| setting.path == key)
    };
    let mut text: String = old.lines().filter(|line| !replaced(line)).map(|line| format!("{line}\n")).collect();
    if !text.lines().any(|line| line == HEADING) {
        text = format!("{HEADING}\n{text}");
    }
    for setting in settings {
        text += &format!("{} = {}\n", setting.path, setting.value);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::rules::INTERNAL_EXPOSED;
    use super::*;

    #[test]
    fn settings_are_mended_where_they_count() {
        let findings = [
            REDIRECTS.hit("eth0.100", ""),
            RP_FILTER.hit("eth1", ""),
            INTERNAL_EXPOSED.hit("5432/tcp", ""),
            REDIRECTS.hit("eth1", ""),
        ];
        let told: Vec<_> = fixes(&findings).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "set net/ipv4/conf/all/accept_redirects to 0 (kernel-redirects)",
                "set net/ipv4/conf/eth0.100/accept_redirects to 0 (kernel-redirects)",
                "set net/ipv4/conf/eth1/accept_redirects to 0 (kernel-redirects)",
                "set net/ipv4/conf/eth1/rp_filter to 2 (kernel-rp-filter)",
            ]
        );
    }

    #[test]
    fn the_file_keeps_what_it_had() {
        let settings = fixes(&[RP_FILTER.hit("eth0", "")]);
        let first = sysctl_file("", &settings);
        assert_eq!(first, "# Set by `palisade audit --fix`.\nnet/ipv4/conf/eth0/rp_filter = 2\n");
        let other = "# Set by `palisade audit --fix`.\nnet/ipv4/conf/eth0/rp_filter = 0\nvm/swappiness = 10\n";
        let again = sysctl_file(other, &settings);
        assert_eq!(again, "# Set by `palisade audit --fix`.\nvm/swappiness = 10\nnet/ipv4/conf/eth0/rp_filter = 2\n");
    }
}
