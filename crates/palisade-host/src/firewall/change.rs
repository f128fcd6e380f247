//! Changes of the table that nobody has to confirm: each is complete, also for the next boot, or without effect, and none is
//! made over one that waits.

use std::collections::BTreeSet;

use palisade_core::causes::chain;
use palisade_core::firewall::FirewallRules;

use super::pending::{Book, PendingError, Result, State};
use super::{Firewall, FirewallError, boot};

impl Book {
    /// Lets in what `stack` needs.
    pub fn set(&self, stack: &str, rules: &FirewallRules) -> Result<()> {
        self.change_at_once(|firewall| firewall.apply(stack, rules))
    }

    /// Takes away what `stack` opened, but for the ports where sshd listens.
    pub fn remove(&self, stack: &str, ssh_ports: &BTreeSet<u16>) -> Result<()> {
        self.change_at_once(|firewall| firewall.remove(stack, ssh_ports))
    }

    fn change_at_once(&self, change: impl FnOnce(&Firewall) -> std::result::Result<(), FirewallError>) -> Result<()> {
        let _lock = self.lock_when_nothing_waits()?;
        let before = self.firewall.snapshot()?;
        let changed = change(&self.firewall).map_err(PendingError::from);
        let Err(error) = changed.and_then(|()| Ok(boot::keep(&self.realm)?)) else { return Ok(()) };
        match self.firewall.restore(&before) {
            // What another firewall has too much is noted, and shut by the next change.
            Ok(()) | Err(FirewallError::Doors(_)) => {
                // Where that fails as well, what was kept before is there still.
                let _ = boot::keep(&self.realm);
                Err(error)
            }
            Err(source) => Err(PendingError::NotPutBack { failure: chain(&error), source }),
        }
    }

    /// Forgets for the next boot what a killed `down` has taken away. What waits is kept or not by how it ends.
    pub fn tidy(&self) -> Result<()> {
        let _lock = self.lock()?;
        match self.read()? {
            Some(pending) if pending.state == State::Waiting => Ok(()),
            _ => Ok(boot::tidy(&self.realm)?),
        }
    }

    /// Sees to it that a boot finds what loads the table, as this version does it.
    pub fn renew(&self) -> Result<()> {
        let _lock = self.lock()?;
        Ok(boot::renew(&self.realm)?)
    }
}
