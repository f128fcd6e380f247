//! The table after a boot: what was let in last is kept below `/var/lib`, and a unit of our own loads it before the network
//! is there. No file of the distribution's or of the user's is touched.
//!
//! What isn't confirmed is never kept, so a boot goes back to what was there before.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use palisade_core::firewall::FirewallRules;

use super::{Firewall, FirewallError, Snapshot};
use crate::layout::HOST_REALM;
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

/// Keeps what the table lets in now. Without a table that closes, nothing is kept: whoever's firewall decides then loads it.
pub fn keep(realm: &str) -> Result<(), BootError> {
    let snapshot = Firewall::new(realm).snapshot()?;
    let closes = snapshot.0.as_ref().is_some_and(|stacks| stacks.values().any(FirewallRules::closes));
    let path = kept(realm);
    if !closes {
        remove_unit(realm)?;
        return remove(&path);
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(at("making", folder))?;
    let json = serde_json::to_vec(&snapshot).map_err(|error| at("writing", &path)(error.into()))?;
    write(&path, &json)?;
    install_unit(realm)
}

/// Takes away what is kept of a table that isn't there any more, or keeps what it lets in now. Where nothing is kept, nothing
/// is asked.
pub fn tidy(realm: &str) -> Result<(), BootError> {
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
    Ok(Firewall::new(realm).restore(&snapshot)?)
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
    let program = std::env::current_exe().map_err(at("finding", Path::new("/proc/self/exe")))?;
    let unit = Path::new(UNITS).join(UNIT);
    write(&unit, unit_text(&program, realm).as_bytes())?;
    let link = wanted_by();
    let folder = link.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(at("making", folder))?;
    match std::os::unix::fs::symlink(&unit, &link) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at("making", &link)(error)),
        _ => Ok(()),
    }
}

fn remove_unit(realm: &str) -> Result<(), BootError> {
    if !has_units(realm) {
        return Ok(());
    }
    remove(&wanted_by())?;
    remove(&Path::new(UNITS).join(UNIT))
}

fn unit_text(program: &Path, realm: &str) -> String {
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
         ExecStart=\"{}\" {VERB} {realm}\n\
         \n\
         [Install]\n\
         WantedBy=sysinit.target\n",
        program.display()
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
    fn the_unit_runs_this_program_before_the_network_is_there() {
        let text = unit_text(Path::new("/usr/local/bin/palisade"), "palisade");
        assert!(text.contains("ExecStart=\"/usr/local/bin/palisade\" __firewall-at-boot palisade\n"), "{text}");
        assert!(text.contains("Before=network-pre.target"), "{text}");
    }

    #[test]
    fn a_test_has_no_units() {
        assert!(!has_units("palisade-test"));
    }
}
