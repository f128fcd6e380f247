//! The host's firewall: one nftables table of ours, changed in one step, read back, and compared.
//!
//! Which ports should be open is decided in `palisade_core::firewall`. Other tables are never changed: what they
//! drop stays dropped, and [`foreign_chains`] names them so that somebody can be told.
//!
//! One table serves all stacks of a host, because a second table with the policy `drop` would drop what the first
//! lets in. Each stack owns its sets in it, and what stands in them is what it opened; only where somebody else has taken the
//! table away, the stacks' own notes are asked.

pub mod bans;
pub mod boot;
mod change;
pub mod close;
mod doors;
pub mod export;
pub(crate) mod firewalld;
pub(crate) mod iptables;
mod iptables_kept;
mod noted;
pub mod pending;
mod read;
mod render;
pub(crate) mod ufw;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::PathBuf;

use palisade_core::firewall::{Backend, FirewallRules};
use palisade_core::lockout::{self, Risk};

use crate::nft::{self, ToolError};
pub use doors::DoorsError;
pub use read::{Current, ForeignChain};
use render::ForATime;
pub use ufw::Ufw;

/// The mark that the guard puts on every socket of a service; what carries no such mark is not one of ours.
/// `SOCKET_MARK` of `palisade-guard/bpf/guard.h`.
pub const SERVICE_MARK: u32 = 0x5041_4c49;

/// How often a table that isn't as written is written again: somebody else's tool may have come between.
const ATTEMPTS: u32 = 3;

/// Why the firewall couldn't be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// `nft` failed.
    #[error("cannot {operation} table `inet {table}`")]
    Tool {
        /// "replace", "read" …
        operation: &'static str,
        /// The table.
        table: String,
        /// What `nft` said.
        #[source]
        source: ToolError,
    },
    /// The table in the kernel is not what was written.
    #[error("table `inet {table}` is not as written: {}", differences.join("; "))]
    Differs {
        /// The table.
        table: String,
        /// In words.
        differences: Vec<String>,
    },
    /// The firewall that the host runs.
    #[error("the host's own firewall can't be asked or changed")]
    Doors(#[from] DoorsError),
    /// The table is gone, and what a stack had in it can't be read.
    #[error("reading {} failed, and the table that should have told it is gone", path.display())]
    Noted {
        /// Its notes.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another change was under way and the lock couldn't be had.
    #[error("cannot lock the firewall with {path}")]
    Lock {
        /// The lock file.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The table `inet <name>` in the calling thread's network namespace.
#[derive(Clone, Debug)]
pub struct Firewall {
    table: String,
}

/// What a table held; for undoing a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot(Option<BTreeMap<String, FirewallRules>>);

impl Firewall {
    /// The table of a realm (`palisade` on a host).
    pub fn new(realm: &str) -> Self {
        Self { table: realm.to_owned() }
    }
    /// The table's name.
    pub fn table(&self) -> &str {
        &self.table
    }
    /// Lets in what `stack` needs, besides what other stacks have let in already. What was done when it fails is undone by
    /// [`Firewall::restore`].
    pub fn apply(&self, stack: &str, rules: &FirewallRules) -> Result<(), FirewallError> {
        let _lock = self.lock()?;
        let mut stacks = self.stacks()?;
        stacks.insert(stack.to_owned(), rules.clone());
        self.replace(&stacks, None)
    }
    /// The batch of `nft` that [`Firewall::apply`] would load, or [`Firewall::remove`] without rules: for trying it elsewhere.
    pub fn batch(
        &self,
        stack: &str,
        rules: Option<&FirewallRules>,
        ssh_ports: &BTreeSet<u16>,
    ) -> Result<String, FirewallError> {
        let mut stacks = self.stacks()?;
        match rules {
            Some(rules) => drop(stacks.insert(stack.to_owned(), rules.clone())),
            None if self.current()?.is_none() => stacks.clear(),
            None => {
                stacks.remove(stack);
                stacks.values_mut().for_each(|rules| rules.ssh_ports.extend(ssh_ports));
            }
        }
        Ok(render::anew(&self.table, &stacks, None))
    }
    /// The same, but what this closes is closed for a time only, whatever becomes of those who should take it back.
    pub fn apply_for_a_time(&self, stack: &str, rules: &FirewallRules, ms: u64) -> Result<(), FirewallError> {
        let _lock = self.lock()?;
        let Snapshot(before) = self.snapshot()?;
        let closes = lockout::risk(stack, rules, before.as_ref()).unwrap_or(Risk::Closes(BTreeSet::new()));
        let mut stacks = self.stacks()?;
        stacks.insert(stack.to_owned(), rules.clone());
        self.replace(&stacks, Some(&ForATime { ms, closes }))
    }
    /// Takes away what `stack` opened, but for the ports where sshd listens. The last stack takes the table with it.
    pub fn remove(&self, stack: &str, ssh_ports: &BTreeSet<u16>) -> Result<(), FirewallError> {
        let _lock = self.lock()?;
        let Some(current) = self.current()? else {
            // It isn't made for the others here: who took it away may have had no other way in. Their next `up` does it.
            let mut others = self.stacks()?;
            others.remove(stack);
            return Ok(doors::shut(&self.table, &others)?);
        };
        let mut stacks = current.stacks;
        if stacks.remove(stack).is_none() && !stacks.is_empty() {
            return Ok(());
        }
        // sshd may have moved since the others came up: then only this stack let it in.
        stacks.values_mut().for_each(|rules| rules.ssh_ports.extend(ssh_ports));
        self.replace(&stacks, None)
    }
    /// Shuts in the firewall that the host runs what no stack in the table needs: also when somebody else has removed the
    /// table.
    pub fn shut_what_is_left(&self) -> Result<(), FirewallError> {
        if !doors::any(&self.table) {
            return Ok(());
        }
        let _lock = self.lock()?;
        Ok(doors::shut(&self.table, &self.stacks()?)?)
    }
    /// What the table in the kernel holds; `None` when there is no such table.
    pub fn current(&self) -> Result<Option<Current>, FirewallError> {
        let tables = nft::json(&["list", "tables"]).map_err(self.failed("look for"))?;
        if !tables.iter().any(|object| read::is_table(object, &self.table)) {
            return Ok(None);
        }
        let objects = nft::json(&["list", "table", "inet", &self.table]).map_err(self.failed("read"))?;
        Ok(Some(read::current(&objects)))
    }
    /// What the stacks have let in: as the table says, or as they have noted it where somebody else has taken the table away,
    /// as a restart of `nftables.service` does.
    fn stacks(&self) -> Result<BTreeMap<String, FirewallRules>, FirewallError> {
        match self.current()? {
            Some(current) => Ok(current.stacks),
            None => noted::stacks(&self.table),
        }
    }
    /// Whether the table is as the stacks in it want it, and so is the firewall that the host runs.
    pub fn is_sound(&self, current: &Current) -> Result<bool, FirewallError> {
        Ok(current.differences(&current.stacks).is_empty() && doors::missing(&current.stacks)?.is_empty())
    }
    /// What the table holds now.
    pub fn snapshot(&self) -> Result<Snapshot, FirewallError> {
        Ok(Snapshot(self.current()?.map(|current| current.stacks)))
    }
    /// Puts the table back to what a snapshot holds.
    pub fn restore(&self, snapshot: &Snapshot) -> Result<(), FirewallError> {
        let _lock = self.lock()?;
        let nothing = BTreeMap::new();
        let stacks = snapshot.0.as_ref().unwrap_or(&nothing);
        // The table first: nobody stays locked out while another firewall is asked.
        self.write(stacks, None)?;
        let opened = doors::open(&self.table, stacks);
        Ok(opened.and(doors::shut(&self.table, stacks))?)
    }

    /// Another firewall first: ours goes on closing until that one lets in what it has to. What nobody needs any more is shut
    /// when nothing else is left to be done.
    fn replace(
        &self,
        stacks: &BTreeMap<String, FirewallRules>,
        for_a_time: Option<&ForATime>,
    ) -> Result<(), FirewallError> {
        doors::open(&self.table, stacks)?;
        self.write(stacks, for_a_time)?;
        Ok(doors::shut(&self.table, stacks)?)
    }
    fn write(
        &self,
        stacks: &BTreeMap<String, FirewallRules>,
        for_a_time: Option<&ForATime>,
    ) -> Result<(), FirewallError> {
        let load = |text: &str| nft::run("nft", &["-f", "-"], text).map(drop);
        let mut differences = Vec::new();
        let mut found = self.current()?;
        for _ in 0..ATTEMPTS {
            // Once: what can't be made right where it stands is made anew.
            let in_place = found.take().map(|found| render::in_place(&self.table, stacks, for_a_time, &found));
            if in_place.is_none_or(|batch| load(&batch).is_err()) {
                load(&render::anew(&self.table, stacks, for_a_time)).map_err(self.failed("replace"))?;
            }
            differences = match self.current()? {
                None if stacks.is_empty() => return Ok(()),
                None => vec!["it is not there".into()],
                Some(current) => current.differences_from(stacks, for_a_time),
            };
            if differences.is_empty() {
                return Ok(());
            }
        }
        Err(FirewallError::Differs { table: self.table.clone(), differences })
    }
    fn failed(&self, operation: &'static str) -> impl FnOnce(ToolError) -> FirewallError + use<> {
        let table = self.table.clone();
        move |source| FirewallError::Tool { operation, table, source }
    }
    /// One writer at a time, as a stack's new table is made from what the others have in the old one.
    fn lock(&self) -> Result<Flock<File>, FirewallError> {
        let path = format!("/run/{}-firewall.lock", self.table);
        let failed = |source| FirewallError::Lock { path: path.clone(), source };
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| failed(e.into()))
    }
}

/// Whose firewall decides in the calling thread's network namespace.
pub fn runs() -> Backend {
    if firewalld::runs() {
        Backend::Firewalld
    } else if ufw::runs() {
        Backend::Ufw
    } else if iptables::runs() {
        Backend::Iptables
    } else {
        Backend::Nftables
    }
}

/// Base chains of other tables that a packet from outside passes on its way to a local process, and that drop or
/// reject something: beside them, our table can only subtract.
pub fn foreign_chains(firewall: &Firewall) -> Result<Vec<ForeignChain>, FirewallError> {
    let objects = nft::json(&["list", "ruleset"]).map_err(firewall.failed("look beside"))?;
    Ok(read::foreign(&objects, &firewall.table))
}
