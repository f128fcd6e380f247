//! The table after a boot: what was let in last is kept below `/var/lib`, and a unit of our own loads it before the network
//! is there. No file of the distribution's or of the user's is touched. What the unit runs is kept beside that: the file that
//! `up` ran from may be another one's by the next boot, or nobody's.
//!
//! What isn't confirmed is never kept, so a boot goes back to what was there before.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use palisade_core::firewall::FirewallRules;

use super::{Firewall, FirewallError, Snapshot};
use crate::layout::HOST_REALM;
use crate::program;
use crate::sockets;
use crate::whole_file;

/// The hidden verb that the unit runs.
pub const VERB: &str = "__firewall-at-boot";

const UNITS: &str = "/etc/systemd/system";
const UNIT: &str = "palisade-firewall.service";

/// What is let in can't be kept for the next boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The table.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// A file.
    #[error("{operation} {} failed", path.display())]
    Io {
        /// "writing" …
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BootError {
    move |source| BootError::Io { operation, path: path.to_owned(), source }
}

fn kept(realm: &str) -> PathBuf {
    Path::new("/var/lib").join(realm).join("firewall-at-boot.json")
}

/// This program as the unit runs it. No project is called like its folder.
fn program_of(realm: &str) -> PathBuf {
    Path::new("/var/lib").join(realm).join("_boot").join("palisade")
}

/// Keeps what is let in now, for who has seen to it that nothing waits to be confirmed. Without a table that closes, nothing is
/// kept: whoever's firewall decides then loads it.
pub(super) fn keep(realm: &str) -> Result<(), BootError> {
    let stacks = Firewall::new(realm).stacks()?;
    let path = kept(realm);
    if !stacks.values().any(FirewallRules::closes) {
        remove_unit(realm)?;
        return remove(&path);
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(at("making", folder))?;
    let json = serde_json::to_vec(&Snapshot(Some(stacks))).map_err(|error| at("writing", &path)(error.into()))?;
    write(&path, &json)?;
    install_unit(realm)
}

/// Takes away what is kept of stacks that aren't there any more, or keeps what is let in now. Where nothing is kept, nothing is
/// asked.
pub(super) fn tidy(realm: &str) -> Result<(), BootError> {
    if kept(realm).exists() { keep(realm) } else { Ok(()) }
}

/// What the unit does: puts the table back, with the ports that sshd is set up for by now.
pub fn load(realm: &str) -> Result<(), BootError> {
    let path = kept(realm);
    let json = fs::read(&path).map_err(at("reading", &path))?;
    let mut snapshot: Snapshot = serde_json::from_slice(&json).map_err(|error| at("reading", &path)(error.into()))?;
    let configured = sockets::configured_ssh_ports();
    for rules in snapshot.0.iter_mut().flat_map(|stacks| stacks.values_mut()) {
        rules.ssh_ports.extend(&configured);
    }
    match Firewall::new(realm).restore(&snapshot) {
        // The table is there. What was opened elsewhere is permanent, and who keeps it may not run yet.
        Ok(()) | Err(FirewallError::Doors(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Writes the unit and what it runs where they aren't as this version has them.
pub(super) fn renew(realm: &str) -> Result<(), BootError> {
    if kept(realm).exists() { install_unit(realm) } else { Ok(()) }
}

/// Why what is kept wouldn't be loaded at the next boot.
pub fn fault(realm: &str) -> Option<String> {
    if !kept(realm).exists() || !has_units(realm) {
        return None;
    }
    let (unit, program) = (Path::new(UNITS).join(UNIT), program_of(realm));
    if !unit.exists() {
        Some(format!("{} is gone", unit.display()))
    } else if !fs::read_link(wanted_by()).is_ok_and(|leads| leads == unit) {
        Some(format!("{} doesn't lead to {UNIT}", wanted_by().display()))
    } else if !fs::read_to_string(&unit).is_ok_and(|text| text == unit_text(realm)) {
        Some(format!("{} isn't as this version of Palisade writes it", unit.display()))
    } else if !program.exists() {
        Some(format!("{}, which {UNIT} runs, is gone", program.display()))
    } else {
        None
    }
}

/// systemd runs here, and it is this network namespace that it brings up: not a test's, a rehearsal's or a container's.
fn has_units(realm: &str) -> bool {
    let namespace = |path: &str| fs::metadata(path).map(|metadata| metadata.ino()).ok();
    let own = namespace("/proc/thread-self/ns/net");
    realm == HOST_REALM
        && Path::new("/run/systemd/system").is_dir()
        && own.is_some()
        && own == namespace("/proc/1/ns/net")
}

fn wanted_by() -> PathBuf {
    Path::new(UNITS).join("sysinit.target.wants").join(UNIT)
}

fn install_unit(realm: &str) -> Result<(), BootError> {
    if !has_units(realm) {
        return Ok(());
    }
    let program = program_of(realm);
    program::keep_at(&program).map_err(at("keeping this program at", &program))?;
    let unit = Path::new(UNITS).join(UNIT);
    let text = unit_text(realm);
    if !fs::read_to_string(&unit).is_ok_and(|there| there == text) {
        write(&unit, text.as_bytes())?;
    }
    let link = wanted_by();
    let folder = link.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(at("making", folder))?;
    if fs::read_link(&link).is_ok_and(|leads| leads == unit) {
        return Ok(());
    }
    remove(&link)?;
    std::os::unix::fs::symlink(&unit, &link).map_err(at("making", &link))
}

fn remove_unit(realm: &str) -> Result<(), BootError> {
    if !has_units(realm) {
        return Ok(());
    }
    remove(&wanted_by())?;
    remove(&Path::new(UNITS).join(UNIT))?;
    let program = program_of(realm);
    remove(&program)?;
    // Stays if something is in it.
    let _ = program.parent().map(fs::remove_dir);
    Ok(())
}

/// `env` stands before the program because SELinux lets systemd itself start nothing that is below /var/lib.
fn unit_text(realm: &str) -> String {
    format!(
        "# Written by `palisade up`, removed by `palisade down`.\n\
         [Unit]\n\
         Description=Palisade's table of the firewall\n\
         DefaultDependencies=no\n\
         After=local-fs.target systemd-modules-load.service nftables.service\n\
         Before=network-pre.target shutdown.target\n\
         Wants=network-pre.target\n\
         Conflicts=shutdown.target\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStart=/usr/bin/env \"{}\" {VERB} {realm}\n\
         \n\
         [Install]\n\
         WantedBy=sysinit.target\n",
        program_of(realm).display()
    )
}

/// Complete or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<(), BootError> {
    whole_file::replace(path, bytes, 0o644).map_err(at("writing", path))
}

fn remove(path: &Path) -> Result<(), BootError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("removing", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_runs_what_is_kept_before_the_network_is_there() {
        let text = unit_text("palisade");
        let runs = "ExecStart=/usr/bin/env \"/var/lib/palisade/_boot/palisade\" __firewall-at-boot palisade\n";
        assert!(text.contains(runs), "{text}");
        assert!(text.contains("Before=network-pre.target"), "{text}");
    }

    #[test]
    fn a_test_has_no_units() {
        assert!(!has_units("palisade-test"));
    }
}
