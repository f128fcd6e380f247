//! Certificates that servers serve: valid for how long, for which names, and how strong.

use std::collections::{BTreeMap, BTreeSet};

use super::Row;
use super::accepted::Date;
use super::facts::{Certificate, Facts, TlsFacts, WorldKind, printable};
use super::rules::{
    Rule, TLS_CHAIN, TLS_EXPIRED, TLS_EXPIRES_SOON, TLS_OLD, TLS_SELF_SIGNED, TLS_WEAK, TLS_WRONG_NAME,
};
use crate::finding::{Finding, Severity};
use crate::stack::{PortProto, Proto};

/// Certificates that live for 90 days are renewed a month before their end: by now that has failed for days. Of those that
/// live shorter, the last third of their time counts.
const SOON_S: i64 = 21 * DAY_S;
const DAY_S: i64 = 86_400;

pub(super) fn judge(facts: &Facts, ports: &mut [Row]) -> Vec<Finding> {
    // The same over IPv4 and IPv6, and for several names, is one finding.
    let mut found: BTreeMap<(&'static str, u16, String), Finding> = BTreeMap::new();
    for server in &facts.tls {
        let port = PortProto { port: server.port, proto: Proto::Tcp };
        let who = server.owner.to_string();
        let mut row = ports.iter_mut().find(|row| row.port == port && row.who == who);
        let kind = row.as_ref().and_then(|row| row.worst());
        for (rule, what, remedy) in of_server(server, facts.seen_at_s as i64) {
            if rule == &TLS_SELF_SIGNED && kind.is_none_or(|kind| kind == WorldKind::Network) {
                continue;
            }
            if let Some(row) = row.as_mut().filter(|row| !row.findings.contains(&rule.id)) {
                row.findings.push(rule.id);
            }
            let by = match &server.name {
                Some(name) if rule == &TLS_WRONG_NAME => format!("{port} {}", printable(name)),
                _ => port.to_string(),
            };
            let evidence = evidence(server);
            let finding = found.entry((rule.id, server.port, format!("{by} {what}"))).or_insert_with(|| {
                let message = format!("{what} ({})", server.owner);
                let mut finding = rule.hit(by, message).remedy(remedy);
                // What only this host or its neighbours see is less bad.
                if kind.is_none_or(|kind| kind == WorldKind::Network) {
                    finding.severity = match finding.severity {
                        Severity::Error => Severity::Warning,
                        _ => Severity::Note,
                    };
                }
                finding
            });
            if !finding.evidence.contains(&evidence) {
                finding.evidence.push(evidence);
            }
        }
    }
    found.into_values().collect()
}

fn evidence(server: &TlsFacts) -> String {
    let at = server.local.map_or_else(|| format!("port {}", server.port), |local| local.to_string());
    let name = server.name.as_ref().map(|name| format!(" asked for {}", printable(name))).unwrap_or_default();
    let Some(leaf) = server.chain.first() else { return format!("{at}{name}: no certificate was served") };
    let mut names: Vec<String> = leaf.names.iter().map(|name| printable(name)).collect();
    names.extend(leaf.addresses.iter().map(ToString::to_string));
    let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
    format!(
        "{at}{name}: {} for {names}, signed by {}, valid from {} to {}, with {} more",
        printable(&leaf.subject),
        if leaf.self_signed { "itself".to_owned() } else { printable(&leaf.issuer) },
        day(leaf.not_before_s),
        day(leaf.not_after_s),
        server.chain.len() - 1
    )
}

fn day(seconds: i64) -> Date {
    Date::of_unix_s(seconds.max(0) as u64)
}

fn of_server(server: &TlsFacts, now_s: i64) -> Vec<(&'static Rule, String, String)> {
    let mut found = Vec::new();
    if !server.old_versions.is_empty() {
        let what = format!("a server agrees to {}", server.old_versions.join(" and "));
        let remedy = "nginx: `ssl_protocols TLSv1.2 TLSv1.3;`, PostgreSQL: `ssl_min_protocol_version = 'TLSv1.2'`; or as its manual says";
        found.push((&TLS_OLD, what, remedy.to_owned()));
    }
    let Some(leaf) = server.chain.first() else { return found };
    if let Some((certificate, what)) = out_of_time(&server.chain, now_s) {
        let renewed = "renew it, and load it into the server (`systemctl reload …`): the file alone changes nothing";
        let remedy = if certificate.not_before_s > now_s {
            "look at the clocks of this host and of who made it"
        } else {
            renewed
        };
        found.push((&TLS_EXPIRED, what, remedy.to_owned()));
    } else if let Some(next) = server.chain.iter().min_by_key(|it| it.not_after_s).filter(|it| is_soon(it, now_s)) {
        let what = format!("the certificate of {} expires on {}", named(next), day(next.not_after_s));
        let remedy = "see what renews it (`systemctl list-timers`, `certbot renew --dry-run`), and whether the server has loaded what is there";
        found.push((&TLS_EXPIRES_SOON, what, remedy.to_owned()));
    }
    if let Some(name) = server.name.as_ref().filter(|name| !leaf.is_for(name)) {
        let what = format!("who asks for {} is served a certificate of {}", printable(name), named(leaf));
        let remedy = "a certificate for that name, or the server's block for it; certificates without subjectAltName are for no name";
        found.push((&TLS_WRONG_NAME, what, remedy.to_owned()));
    }
    let mut weak = BTreeSet::new();
    for certificate in &server.chain {
        weak.extend(certificate.weak_key.as_ref().map(|key| format!("the key of {} is {key}", named(certificate))));
        // Nobody checks the signature of what is known by itself.
        let signed =
            certificate.weak_signature.as_ref().filter(|_| !certificate.self_signed || server.chain.len() == 1);
        weak.extend(signed.map(|how| format!("{} is signed by {how}", named(certificate))));
    }
    if !weak.is_empty() {
        let what = weak.into_iter().collect::<Vec<_>>().join(", ");
        found.push((
            &TLS_WEAK,
            what,
            "a new certificate with a key of its own: ECDSA on P-256, or RSA with 2048 bits, signed by SHA-256"
                .to_owned(),
        ));
    }
    let last = server.chain.last().unwrap_or(leaf);
    if leaf.self_signed {
        let what = format!("{} has signed its own certificate", named(leaf));
        found.push((
            &TLS_SELF_SIGNED,
            what,
            "a certificate of a public authority (Let's Encrypt, for one), if browsers or other people's programs ask"
                .to_owned(),
        ));
    } else if server.issuer_known == Some(false) && last.has_issuer_url && !last.self_signed {
        let what = format!("who signed {} is neither sent nor known here: {}", named(last), printable(&last.issuer));
        found.push((
            &TLS_CHAIN,
            what,
            "give the server the file with the whole chain (`fullchain.pem`), not the certificate alone".to_owned(),
        ));
    } else if server.issuer_known == Some(false) {
        let what = format!(
            "the certificate of {} is signed by {}, whom this host doesn't know",
            named(leaf),
            printable(&last.issuer)
        );
        found.push((
            &TLS_SELF_SIGNED,
            what,
            "a certificate of a public authority, if others than your own clients ask".to_owned(),
        ));
    }
    found
}

fn is_soon(certificate: &Certificate, now_s: i64) -> bool {
    let lives_s = certificate.not_after_s - certificate.not_before_s;
    certificate.not_after_s - now_s < SOON_S.min(lives_s / 3)
}

fn out_of_time(chain: &[Certificate], now_s: i64) -> Option<(&Certificate, String)> {
    chain.iter().find_map(|certificate| {
        if certificate.not_after_s < now_s {
            Some((
                certificate,
                format!("the certificate of {} expired on {}", named(certificate), day(certificate.not_after_s)),
            ))
        } else if certificate.not_before_s > now_s {
            let from = day(certificate.not_before_s);
            Some((certificate, format!("the certificate of {} isn't valid before {from}", named(certificate))))
        } else {
            None
        }
    })
}

fn named(certificate: &Certificate) -> String {
    let name = certificate.names.first().map(|name| printable(name));
    name.unwrap_or_else(|| {
        if certificate.subject.is_empty() { "nobody".to_owned() } else { printable(&certificate.subject) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: i64 = 1_800_000_000;

    fn certificate(days: i64) -> Certificate {
        Certificate {
            subject: "CN=shop".into(),
            issuer: "CN=R11".into(),
            names: vec!["shop.example".into()],
            not_before_s: NOW_S + (days - 90) * DAY_S,
            not_after_s: NOW_S + days * DAY_S,
            has_issuer_url: true,
            ..Certificate::default()
        }
    }

    fn ids(server: &TlsFacts) -> Vec<&'static str> {
        of_server(server, NOW_S).into_iter().map(|(rule, ..)| rule.id).collect()
    }

    fn served(chain: Vec<Certificate>) -> TlsFacts {
        TlsFacts { port: 443, chain, issuer_known: Some(true), ..TlsFacts::default() }
    }

    #[test]
    fn a_certificate_is_judged_by_its_days() {
        assert_eq!(ids(&served(vec![certificate(60)])), [""; 0]);
        assert_eq!(ids(&served(vec![certificate(21)])), [""; 0]);
        assert_eq!(ids(&served(vec![certificate(20)])), ["tls-expires-soon"]);
        assert_eq!(ids(&served(vec![certificate(-1)])), ["tls-expired"]);
        let short = |days: i64| Certificate { not_before_s: NOW_S + (days - 6) * DAY_S, ..certificate(days) };
        assert_eq!(ids(&served(vec![short(3)])), [""; 0]);
        assert_eq!(ids(&served(vec![short(1)])), ["tls-expires-soon"]);
        // Also that of who signed it.
        assert_eq!(ids(&served(vec![certificate(60), certificate(-1)])), ["tls-expired"]);
        let early = Certificate { not_before_s: NOW_S + 1, ..certificate(60) };
        assert_eq!(ids(&served(vec![early])), ["tls-expired"]);
    }

    #[test]
    fn what_is_wrong_with_it_is_told_once_each() {
        let asked = |name: &str| TlsFacts { name: Some(name.into()), ..served(vec![certificate(60)]) };
        assert_eq!(ids(&asked("shop.example")), [""; 0]);
        assert_eq!(ids(&asked("www.shop.example")), ["tls-wrong-name"]);
        let alone = TlsFacts { issuer_known: Some(false), ..served(vec![certificate(60)]) };
        assert_eq!(ids(&alone), ["tls-chain-incomplete"]);
        let private = Certificate { has_issuer_url: false, ..certificate(60) };
        let private = TlsFacts { issuer_known: Some(false), ..served(vec![private]) };
        assert_eq!(ids(&private), ["tls-self-signed"]);
        let unknown = TlsFacts { issuer_known: None, ..served(vec![certificate(60)]) };
        assert_eq!(ids(&unknown), [""; 0]);
        let weak = Certificate {
            weak_key: Some("RSA with 1024 bits".into()),
            weak_signature: Some("SHA-1".into()),
            ..certificate(60)
        };
        let old = TlsFacts { old_versions: vec!["TLS 1.0".into()], ..served(vec![weak]) };
        assert_eq!(ids(&old), ["tls-old-version", "tls-weak"]);
    }
}
