//! PostgreSQL: whom its pg_hba.conf lets in and how, passwords that everybody knows, and TLS.
//!
//! The format is that of chapter "The pg_hba.conf File" of PostgreSQL's manual.

use std::net::IpAddr;

use super::facts::{Facts, PostgresFacts};
use super::rules::{POSTGRES_CLEAR, POSTGRES_NO_TLS, POSTGRES_TRUST, POSTGRES_WEAK_PASSWORD};
use crate::finding::{Finding, Severity};

/// One line of pg_hba.conf, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    line: usize,
    /// `local`, `host`, `hostssl`, `hostnossl` …
    kind: String,
    address: String,
    method: String,
    /// As written, with single spaces.
    text: String,
}

impl Entry {
    /// It is for TCP from other machines.
    fn is_remote(&self) -> bool {
        if self.kind == "local" || self.address == "samehost" {
            return false;
        }
        let ip = self.address.split('/').next().unwrap_or_default();
        !ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) && !matches!(self.address.as_str(), "localhost")
    }
}

/// Lines that can be read; others are PostgreSQL's to complain about.
fn entries(text: &str) -> Vec<Entry> {
    let each = text.lines().enumerate().filter_map(|(index, line)| {
        let words = words(line);
        let mut rest = words.iter().map(String::as_str);
        let (kind, _databases, _users) = (rest.next()?, rest.next()?, rest.next()?);
        let address = if kind == "local" { "" } else { rest.next()? };
        let mut method = rest.next()?;
        // An address may be followed by a mask of its own.
        if method.parse::<IpAddr>().is_ok() {
            method = rest.next()?;
        }
        Some(Entry {
            line: index + 1,
            kind: kind.to_lowercase(),
            address: address.to_lowercase(),
            method: method.to_lowercase(),
            text: words.join(" "),
        })
    });
    each.collect()
}

/// Words between spaces or in quotes, without what stands behind `#`.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted, mut any) = (String::new(), false, false);
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                any = true;
            }
            '#' if !quoted => break,
            c if c.is_whitespace() && !quoted => {
                if any {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            c => {
                word.push(c);
                any = true;
            }
        }
    }
    if any {
        words.push(word);
    }
    words
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    facts.postgres.iter().flat_map(of_server).collect()
}

fn of_server(server: &PostgresFacts) -> Vec<Finding> {
    let subject = super::facts::printable(&server.data);
    let mut findings = Vec::new();
    for variable in &server.weak_passwords {
        let message = format!("{variable} of {} is one of the passwords that are tried first", server.owner);
        findings.push(
            POSTGRES_WEAK_PASSWORD
                .hit(&subject, message)
                .seen(format!("{variable} in the environment of {}", server.owner))
                .remedy("`ALTER ROLE … PASSWORD '…'` with a long random one, and the same in the file: the variable counts only when the data folder is made"),
        );
    }
    let Some((path, text)) = &server.hba else { return findings };
    let entries = entries(text);
    let seen = |entry: &Entry| format!("{path}:{}: {}", entry.line, entry.text);
    let remote: Vec<&Entry> = entries.iter().filter(|entry| entry.is_remote()).collect();
    let of = |method: &'static [&'static str]| {
        remote.iter().copied().filter(move |entry| method.contains(&entry.method.as_str()))
    };
    let mut tell = |rule: &'static super::rules::Rule, lines: Vec<&Entry>, message: String, remedy: &str| {
        if !lines.is_empty() {
            let mut finding = rule.hit(&subject, message);
            finding.evidence.extend(lines.into_iter().map(seen));
            findings.push(finding.remedy(remedy));
        }
    };
    let owner = &server.owner;
    tell(
        &POSTGRES_TRUST,
        of(&["trust", "ident"]).collect(),
        format!("{owner} lets other machines in without a password"),
        "`scram-sha-256` instead of `trust`, then `SELECT pg_reload_conf()`; roles without a password need one first",
    );
    tell(
        &POSTGRES_CLEAR,
        of(&["password", "md5"]).filter(|entry| entry.method == "md5" || entry.kind != "hostssl").collect(),
        format!("{owner} takes passwords in a form that can be used by who hears them"),
        "`scram-sha-256` instead (PostgreSQL 10 and later): `SET password_encryption = 'scram-sha-256'`, set the passwords anew, change the lines, reload",
    );
    let open: Vec<&Entry> = remote
        .iter()
        .copied()
        .filter(|entry| matches!(entry.kind.as_str(), "host" | "hostnossl") && entry.method != "reject")
        .collect();
    if server.tls == Some(false) {
        tell(
            &POSTGRES_NO_TLS,
            open,
            format!("{owner} lets other machines in and has no TLS"),
            "`ssl = on` with a certificate in postgresql.conf, and `hostssl` instead of `host`; or keep it to this host",
        );
    }
    let local_trust: Vec<&Entry> =
        entries.iter().filter(|entry| !entry.is_remote() && entry.kind != "local" && entry.method == "trust").collect();
    if !local_trust.is_empty() {
        let message = format!("{owner} lets every process of this host in without a password");
        let mut finding = POSTGRES_TRUST.hit(format!("{subject} (this host)"), message);
        finding.severity = Severity::Warning;
        finding.evidence.extend(local_trust.into_iter().map(seen));
        findings.push(finding.remedy("`scram-sha-256` instead of `trust`, then `SELECT pg_reload_conf()`"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const HBA: &str = "# TYPE  DATABASE  USER  ADDRESS  METHOD
local   all   all                      peer
host    all   all   127.0.0.1/32       scram-sha-256
host    all   all   ::1/128            trust
host    all   \"the app\"  10.0.0.0   255.0.0.0   md5  # clients
hostssl all   all   0.0.0.0/0          password
host all all all trust
host all all 192.0.2.0/24 reject
";

    #[test]
    fn lines_are_read_as_postgresql_does() {
        let entries = entries(HBA);
        let told: Vec<_> =
            entries.iter().map(|e| format!("{} {} {} {}", e.line, e.kind, e.address, e.method)).collect();
        assert_eq!(
            told,
            [
                "2 local  peer",
                "3 host 127.0.0.1/32 scram-sha-256",
                "4 host ::1/128 trust",
                "5 host 10.0.0.0 md5",
                "6 hostssl 0.0.0.0/0 password",
                "7 host all trust",
                "8 host 192.0.2.0/24 reject"
            ]
        );
        assert_eq!(entries[3].text, "host all the app 10.0.0.0 255.0.0.0 md5");
    }

    #[test]
    fn what_lets_others_in_is_told_with_its_lines() {
        let server = PostgresFacts {
            data: "/data".into(),
            hba: Some(("/data/pg_hba.conf".into(), HBA.into())),
            tls: Some(false),
            weak_passwords: vec!["POSTGRES_PASSWORD".into()],
            ..PostgresFacts::default()
        };
        let found = of_server(&server);
        let told: Vec<_> =
            found.iter().map(|f| format!("{} {:?} {}", f.id, f.severity, f.evidence.join(" | "))).collect();
        assert_eq!(
            told,
            [
                "postgres-weak-password Error POSTGRES_PASSWORD in the environment of the kernel, or a process that can't be seen",
                "postgres-trust Error /data/pg_hba.conf:7: host all all all trust",
                "postgres-clear Warning /data/pg_hba.conf:5: host all the app 10.0.0.0 255.0.0.0 md5",
                "postgres-no-tls Warning /data/pg_hba.conf:5: host all the app 10.0.0.0 255.0.0.0 md5 | /data/pg_hba.conf:7: host all all all trust",
                "postgres-trust Warning /data/pg_hba.conf:4: host all all ::1/128 trust",
            ]
        );
    }
}
