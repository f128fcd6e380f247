//! PostgreSQL servers that run: where their settings are and what those say.
//!
//! Files are read through the server's own root, so that a container's are found, too. Passwords stay in here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use palisade_core::audit::facts::{About, Listener, PostgresFacts, Unknown};
use palisade_core::audit::is_weak_password;

use super::owners::Owners;

/// A file of settings that is larger isn't one.
const FILE_BYTES_MAX: u64 = 1 << 20;

pub(super) fn read(listeners: &[Listener], owners: &mut Owners<'_>, unknown: &mut Vec<Unknown>) -> Vec<PostgresFacts> {
    let servers: BTreeSet<i32> = listeners
        .iter()
        .filter(|listener| matches!(listener.owner.program(), "postgres" | "postmaster"))
        .filter_map(|listener| listener.owner.process.as_ref().map(|process| process.pid))
        .collect();
    let mut found = Vec::new();
    for pid in servers {
        let listener = listeners.iter().find(|it| it.owner.process.as_ref().is_some_and(|process| process.pid == pid));
        let owner =
            listener.map(|listener| listener.owner.clone()).unwrap_or_else(|| owners.of_process(pid, "postgres"));
        match server(pid) {
            Some(facts) => found.push(PostgresFacts { owner, ..facts }),
            None => {
                let why = format!("the settings of {owner}: its folder can't be seen");
                unknown.push(Unknown { about: About::Postgres, why });
            }
        }
    }
    found
}

fn server(pid: i32) -> Option<PostgresFacts> {
    // The server works in its data folder.
    let data = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let absolute = |path: &str| if path.starts_with('/') { PathBuf::from(path) } else { data.join(path) };
    let arguments = strings(&format!("/proc/{pid}/cmdline"));
    let given = |key: &str| arguments.iter().find_map(|argument| setting(argument.trim_start_matches("--"), key));
    let config = given("config_file").map_or_else(|| data.join("postgresql.conf"), |path| absolute(&path));
    let text = |path: &Path| read_small(&inside(path));
    let settings = [text(&data.join("postgresql.auto.conf")), text(&config)];
    let of = |key: &str| {
        given(key).or_else(|| {
            // The last line of a file counts, and the file that ALTER SYSTEM writes before the other.
            settings.iter().flatten().find_map(|text| text.lines().rev().find_map(|line| setting(line, key)))
        })
    };
    let hba = of("hba_file").map_or_else(|| data.join("pg_hba.conf"), |path| absolute(&path));
    let readable = settings[1].is_some();
    let weak = strings(&format!("/proc/{pid}/environ"));
    let weak = weak.iter().filter_map(|variable| variable.split_once('='));
    let weak =
        weak.filter(|(name, value)| matches!(*name, "POSTGRES_PASSWORD" | "PGPASSWORD") && is_weak_password(value));
    Some(PostgresFacts {
        data: data.display().to_string(),
        hba: text(&hba).map(|text| (hba.display().to_string(), text)),
        tls: readable.then(|| of("ssl").is_some_and(|value| matches!(value.as_str(), "on" | "true" | "yes" | "1"))),
        weak_passwords: weak.map(|(name, _)| name.to_owned()).collect(),
        ..PostgresFacts::default()
    })
}

fn read_small(path: &Path) -> Option<String> {
    let size = fs::metadata(path).ok().filter(fs::Metadata::is_file)?.len();
    (size <= FILE_BYTES_MAX)
        .then(|| fs::read(path).ok())
        .flatten()
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Strings that end with a zero byte.
fn strings(path: &str) -> Vec<String> {
    let bytes = fs::read(path).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// The value of `key = value`, `key value` or `key=value`, quoted or not. Names of settings don't mind their case.
fn setting(line: &str, key: &str) -> Option<String> {
    let line = line.trim_start();
    let (name, rest) = line.split_at_checked(key.len())?;
    if !name.eq_ignore_ascii_case(key) {
        return None;
    }
    let rest = rest.strip_prefix(|c: char| c == '=' || c.is_whitespace())?;
    let rest = rest.trim_start().trim_start_matches('=').trim_start();
    let value = match rest.strip_prefix('\'') {
        Some(quoted) => quoted.split('\'').next().unwrap_or_default(),
        None => rest.split(['#', ' ', '\t']).next().unwrap_or_default(),
    };
    Some(value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_postgresql_writes_them() {
        assert_eq!(
            setting("hba_file = '/etc/postgresql/15/main/pg_hba.conf'\t# (change requires restart)", "hba_file")
                .as_deref(),
            Some("/etc/postgresql/15/main/pg_hba.conf")
        );
        assert_eq!(setting("SSL on", "ssl").as_deref(), Some("on"));
        assert_eq!(setting("ssl=off#", "ssl").as_deref(), Some("off"));
        assert_eq!(setting("#ssl = on", "ssl"), None);
        assert_eq!(setting("ssl_ca_file = x", "ssl"), None);
        assert_eq!(setting("config_file=/a/b c", "config_file").as_deref(), Some("/a/b"));
    }
}
