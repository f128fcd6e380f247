//! What shows that something isn't wrong: nothing is taken for good only because nothing was found.

use std::collections::BTreeSet;

use super::facts::{About, Facts, Reboot, World, printable};
use super::rules::{Needs, Rule};

/// Why a rule has found nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// It was looked at, and this was seen.
    Seen(Vec<String>),
    /// It could not be looked at whole, and why.
    NotRead(Vec<String>),
    /// There is nothing of the kind here.
    Nothing,
}

/// What else is known besides the facts of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// There is a stack that says what is meant.
    pub stack: bool,
    /// How many findings are accepted in the file.
    pub acceptances: usize,
}

/// What there is to show for a rule that has found nothing.
pub fn checked(rule: &Rule, facts: &Facts, known: Known) -> Checked {
    let about: BTreeSet<About> = rule.read_from.iter().copied().collect();
    let not_read: Vec<String> = facts
        .unknown
        .iter()
        .filter(|unknown| about.contains(&unknown.about))
        .map(|unknown| unknown.why.clone())
        .collect();
    if !not_read.is_empty() {
        return Checked::NotRead(not_read);
    }
    let there = match rule.needs {
        Needs::Host => true,
        Needs::Stack => known.stack,
        Needs::Engine => facts.engine.is_some(),
        Needs::Postgres => !facts.postgres.is_empty(),
        Needs::Ssh => facts.sshd.is_some(),
        Needs::Firewall => !facts.firewalls.is_empty(),
        Needs::Tls => !facts.tls.is_empty(),
    };
    if !there {
        return Checked::Nothing;
    }
    let mut seen = Vec::new();
    for about in about {
        match evidence(about, rule, facts, known) {
            Ok(all) => seen.extend(all),
            Err(why) => return Checked::NotRead(vec![why]),
        }
    }
    Checked::Seen(seen)
}

fn evidence(about: About, rule: &Rule, facts: &Facts, known: Known) -> Result<Vec<String>, String> {
    let of = |text: String| Ok(vec![text]);
    match about {
        About::Reach if facts.worlds.is_empty() => Err("no interface has an address: nobody was asked for".to_owned()),
        About::Reach => Ok(facts.worlds.iter().map(asked).collect()),
        About::Sockets => of(format!(
            "the kernel lists {} listening or bound sockets, {} raw and packet sockets, {} abstract unix sockets",
            facts.listeners.len(),
            facts.raw.len(),
            facts.abstract_sockets.len()
        )),
        About::Firewalls => {
            let each = facts.firewalls.iter().map(|firewall| {
                let at_boot = match firewall.at_boot {
                    Some(true) => ", and is started at boot",
                    Some(false) => ", and isn't started at boot",
                    None => "",
                };
                format!("{} {}{at_boot}", firewall.name, if firewall.active { "is at work" } else { "is not at work" })
            });
            // Whether it comes back can't be told where nobody says so.
            if rule.id == "firewall-not-at-boot" && facts.firewalls.iter().all(|firewall| firewall.at_boot.is_none()) {
                return Err("nothing here tells what is started at boot".to_owned());
            }
            if facts.firewalls.is_empty() { of("no firewall is installed".to_owned()) } else { Ok(each.collect()) }
        }
        About::Engine => match &facts.engine {
            Some(engine) => of(format!("{} tells of {} containers that run", engine.version, engine.containers.len())),
            None => of("no container engine is installed".to_owned()),
        },
        About::Kernel => kernel(rule, facts),
        About::Postgres => facts
            .postgres
            .iter()
            .map(|server| match &server.hba {
                Some((path, _)) => Ok(format!("{} of {}", printable(path), server.owner)),
                None => Err(format!("the pg_hba.conf of {}", server.owner)),
            })
            .collect(),
        About::Ssh => {
            let sshd = facts.sshd.iter().flatten();
            let keys = ["permitrootlogin", "passwordauthentication", "kbdinteractiveauthentication"];
            let found: Vec<String> = sshd
                .filter(|(key, _)| keys.contains(&key.as_str()))
                .map(|(key, value)| format!("{key} {value}"))
                .collect();
            if found.is_empty() {
                return Err("`sshd -T` says nothing about logins".to_owned());
            }
            of(format!("sshd -T says: {}", found.join(", ")))
        }
        About::Tls => {
            let ports: BTreeSet<u16> = facts.tls.iter().map(|server| server.port).collect();
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            of(format!("handshakes with {} of {} TCP ports: {}", ports.len(), facts.tls_asked, ports.join(", ")))
        }
        About::Reboot => match &facts.reboot {
            Reboot::NotDue(seen) => of(seen.clone()),
            Reboot::Due(why) => of(why.clone()),
            Reboot::Unknown => Err("nothing here tells whether a reboot is due".to_owned()),
        },
        About::Accepted if known.acceptances == 0 => of("nothing is accepted".to_owned()),
        About::Accepted => of(format!("{} acceptances", known.acceptances)),
    }
}

fn asked(world: &World) -> String {
    let of = |count: usize, proto: &str| format!("{count} {proto}");
    let targets: BTreeSet<_> = world.doors.iter().map(|doors| doors.target).collect();
    let targets: Vec<String> = targets.iter().map(ToString::to_string).collect();
    let open: Vec<String> =
        world.doors.iter().map(|doors| of(doors.local.len(), &format!("{}/{}", doors.family(), doors.proto))).collect();
    format!(
        "{} packets to all ports of {} for {} by {}; let through: {}",
        world.packets,
        targets.join(", "),
        world.name,
        world.interface,
        if open.is_empty() { "nothing".to_owned() } else { open.join(", ") }
    )
}

/// The settings that the rule is about, as they were read.
fn kernel(rule: &Rule, facts: &Facts) -> Result<Vec<String>, String> {
    let part = match rule.id {
        "kernel-route-localnet" => "route_localnet",
        "kernel-rp-filter" => "rp_filter",
        "kernel-redirects" => "accept_redirects",
        "kernel-forwarding" => "forward",
        "kernel-unprivileged-bpf" => "unprivileged_bpf",
        // Addresses of loopback are listed with the interfaces, without which there is no audit.
        _ => return Ok(vec![format!("loopback has {} addresses", facts.loopback_addresses.len())]),
    };
    let found: Vec<String> = facts
        .settings
        .iter()
        .filter(|(key, _)| key.contains(part))
        .map(|(key, value)| format!("{} = {}", printable(key), printable(value)))
        .collect();
    if found.is_empty() { Err(format!("the kernel shows no setting {part}")) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::super::facts::{PostgresFacts, Unknown};
    use super::super::rules::{RULES, rule};
    use super::*;

    fn of(id: &str, facts: &Facts) -> Checked {
        checked(rule(id).unwrap(), facts, Known::default())
    }

    #[test]
    fn nothing_is_good_of_a_host_of_which_nothing_is_known() {
        let facts = Facts::default();
        for rule in RULES.iter().filter(|rule| rule.read_from.contains(&About::Reach)) {
            let told = checked(rule, &facts, Known { stack: true, acceptances: 0 });
            assert!(!matches!(told, Checked::Seen(_)), "{}: {told:?}", rule.id);
        }
        for id in ["kernel-rp-filter", "kernel-unprivileged-bpf", "reboot-pending"] {
            assert!(matches!(of(id, &facts), Checked::NotRead(_)), "{id}");
        }
        assert_eq!(of("ssh-password", &facts), Checked::Nothing);
        assert_eq!(of("tls-expired", &facts), Checked::Nothing);
    }

    #[test]
    fn what_could_not_be_read_is_not_good() {
        let unknown = |about, why: &str| vec![Unknown { about, why: why.to_owned() }];
        let facts = Facts { unknown: unknown(About::Ssh, "sshd's settings: no"), ..Facts::default() };
        assert_eq!(of("ssh-root-password", &facts), Checked::NotRead(vec!["sshd's settings: no".to_owned()]));
        let server = PostgresFacts { data: "/data".into(), ..PostgresFacts::default() };
        let facts = Facts { postgres: vec![server], ..Facts::default() };
        assert!(matches!(of("postgres-trust", &facts), Checked::NotRead(_)));
    }

    #[test]
    fn what_was_seen_is_shown() {
        let settings = [("net.ipv4.conf.eth0.rp_filter".to_owned(), "2".to_owned())].into();
        let sshd = Some([("permitrootlogin".to_owned(), "no".to_owned())].into());
        let facts = Facts { settings, sshd, ..Facts::default() };
        assert_eq!(of("kernel-rp-filter", &facts), Checked::Seen(vec!["net.ipv4.conf.eth0.rp_filter = 2".to_owned()]));
        let told = Checked::Seen(vec!["sshd -T says: permitrootlogin no".to_owned()]);
        assert_eq!(of("ssh-root-password", &facts), told);
    }
}
