//! Ports that are opened in a firewall of the host that isn't ours, and closed again: only those that we opened.
//!
//! Which ports is decided in `palisade_core::firewall`; how each firewall is asked is in a module of its own. What was open
//! before stays open, so it is noted below `/var/lib` what was opened here; permanent rules outlive a reboot.

use palisade_core::firewall::{Backend, FirewallRules, OpenPort};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{firewalld, iptables};
use crate::nft::ToolError;
use crate::whole_file;

/// Another firewall couldn't be asked or changed.
#[derive(Debug, thiserror::Error)]
pub enum DoorsError {
    /// firewalld doesn't answer.
    #[error("firewalld doesn't answer over D-Bus")]
    Away(#[source] Box<zbus::Error>),
    /// It doesn't run.
    #[error("firewalld doesn't run")]
    NotRunning,
    /// It is another host's.
    #[error("the firewalld that answers looks after another network namespace")]
    OtherNamespace,
    /// It took too long.
    #[error("firewalld didn't answer within {0} s")]
    Slow(u64),
    /// It refused.
    #[error("firewalld refused to {what}: {message}")]
    Refused {
        /// "open 8080/tcp in zone public" …
        what: String,
        /// Its own words.
        message: String,
    },
    /// iptables refused.
    #[error("can't change the rules of iptables")]
    Tool(#[from] ToolError),
    /// Our chain can't be kept for the next boot.
    #[error("can't write the file of iptables' rules that is loaded at boot")]
    Kept(#[source] io::Error),
    /// It isn't what this host runs.
    #[error("the file says `backend: iptables`, and no rules of iptables decide on this host")]
    NoIptables,
    /// What was opened can't be noted.
    #[error("{operation} {} failed", path.display())]
    Note {
        /// "writing" …
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A port that was opened in another firewall by us.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Opened {
    pub(super) backend: Backend,
    /// firewalld's zone; empty elsewhere.
    pub(super) zone: String,
    pub(super) door: OpenPort,
}

/// A firewall in which ports can be opened.
pub(super) trait Doors {
    /// Where a port has to be open: zones; one without a name where there is no such thing.
    fn zones(&self) -> Result<BTreeSet<String>, DoorsError>;
    /// It lets this port in, now and after it is loaded anew.
    fn is_open(&self, zone: &str, door: &OpenPort) -> Result<bool, DoorsError>;
    /// From now on, and after it is loaded anew.
    fn open(&self, zone: &str, door: &OpenPort) -> Result<(), DoorsError>;
    /// What isn't open is closed already.
    fn close(&self, zone: &str, door: &OpenPort) -> Result<(), DoorsError>;
}

fn reach(backend: Backend) -> Result<Option<Box<dyn Doors>>, DoorsError> {
    Ok(match backend {
        Backend::Nftables | Backend::Ufw => None,
        Backend::Firewalld => Some(Box::new(firewalld::Firewalld::connect()?)),
        Backend::Iptables => Some(Box::new(iptables::Iptables::find()?.ok_or(DoorsError::NoIptables)?)),
    })
}

fn wanted(stacks: &BTreeMap<String, FirewallRules>, backend: Backend) -> BTreeSet<OpenPort> {
    stacks.values().filter(|rules| rules.backend == backend).flat_map(FirewallRules::doors).collect()
}

/// Comes to each door that the stacks need and that isn't open.
fn each_closed(
    stacks: &BTreeMap<String, FirewallRules>,
    mut each: impl FnMut(&dyn Doors, Opened) -> Result<(), DoorsError>,
) -> Result<(), DoorsError> {
    for backend in Backend::ALL {
        let wanted = wanted(stacks, backend);
        if wanted.is_empty() {
            continue;
        }
        let Some(doors) = reach(backend)? else { continue };
        let zones = doors.zones()?;
        for (zone, door) in zones.iter().flat_map(|zone| wanted.iter().map(move |door| (zone, door))) {
            if !doors.is_open(zone, door)? {
                each(&*doors, Opened { backend, zone: zone.clone(), door: *door })?;
            }
        }
    }
    Ok(())
}

/// Opens what the stacks need.
pub(super) fn open(realm: &str, stacks: &BTreeMap<String, FirewallRules>) -> Result<(), DoorsError> {
    let note = note_path(realm);
    let mut opened: BTreeSet<Opened> = read(&note)?;
    each_closed(stacks, |doors, closed| {
        // Noted first: closing something twice is harmless, forgetting to is not.
        opened.insert(closed.clone());
        write(&note, &opened)?;
        doors.open(&closed.zone, &closed.door)
    })
}

/// Closes what we opened and no stack needs any more. It comes after [`open`]: of a port that is opened in another way, one
/// or the other is there.
pub(super) fn shut(realm: &str, stacks: &BTreeMap<String, FirewallRules>) -> Result<(), DoorsError> {
    let note = note_path(realm);
    let mut opened: BTreeSet<Opened> = read(&note)?;
    for backend in Backend::ALL {
        let wanted = wanted(stacks, backend);
        let ours: Vec<Opened> = opened.iter().filter(|opened| opened.backend == backend).cloned().collect();
        if ours.is_empty() {
            continue;
        }
        let doors = match reach(backend) {
            Ok(Some(doors)) => doors,
            Ok(None) => continue,
            // It doesn't run, and its settings still have what we opened: they are closed when it is there again.
            Err(DoorsError::Away(_) | DoorsError::NotRunning | DoorsError::OtherNamespace) if wanted.is_empty() => {
                continue;
            }
            // It isn't there any more, and neither is what we opened in its memory.
            Err(DoorsError::NoIptables) if wanted.is_empty() => {
                opened.retain(|opened| opened.backend != backend);
                write(&note, &opened)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        let zones = doors.zones()?;
        for stale in ours.iter().filter(|ours| !wanted.contains(&ours.door) || !zones.contains(&ours.zone)) {
            doors.close(&stale.zone, &stale.door)?;
            opened.remove(stale);
            write(&note, &opened)?;
        }
    }
    Ok(())
}

/// Whether there is something that we opened.
pub(super) fn any(realm: &str) -> bool {
    note_path(realm).exists()
}

/// Ports that the stacks need and that another firewall doesn't let in.
pub(super) fn missing(stacks: &BTreeMap<String, FirewallRules>) -> Result<BTreeSet<OpenPort>, DoorsError> {
    let mut missing = BTreeSet::new();
    each_closed(stacks, |_, closed| {
        missing.insert(closed.door);
        Ok(())
    })?;
    Ok(missing)
}

fn note_path(realm: &str) -> PathBuf {
    Path::new("/var/lib").join(realm).join("firewall-opened.json")
}

fn noting(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DoorsError {
    move |source| DoorsError::Note { operation, path: path.to_owned(), source }
}

fn read(path: &Path) -> Result<BTreeSet<Opened>, DoorsError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| noting("reading", path)(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(noting("reading", path)(error)),
    }
}

/// Complete or not at all; nothing opened is no file.
fn write(path: &Path, opened: &BTreeSet<Opened>) -> Result<(), DoorsError> {
    if opened.is_empty() {
        return match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(noting("removing", path)(error)),
            _ => Ok(()),
        };
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(noting("making", folder))?;
    }
    let bytes = serde_json::to_vec(opened).map_err(|error| noting("writing", path)(error.into()))?;
    whole_file::replace(path, &bytes, 0o666).map_err(noting("writing", path))
}
