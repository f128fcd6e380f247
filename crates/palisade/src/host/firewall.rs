//! The firewall's table: what this stack has in it.

use std::time::Duration;

use palisade_core::action::Action;
use palisade_core::apply::Undo;
use palisade_core::firewall::FirewallRules;
use palisade_host::firewall::pending::{Book, PendingError};
use palisade_host::session;

use super::{Adapters, HostError};
use crate::confirmation;

/// How often it is looked whether a change of somebody else still waits.
const LOOK: Duration = Duration::from_millis(200);

impl Adapters {
    pub(super) fn set_firewall(
        &mut self,
        rules: &FirewallRules,
        confirm_within_ms: Option<u64>,
    ) -> Result<Undo, HostError> {
        match confirm_within_ms {
            Some(ms) => confirmation::change(&self.layout, rules, ms)?,
            None => self.change_firewall(|book, stack| book.set(stack, rules))?,
        }
        let old = self.state.firewall.replace(rules.clone());
        self.note();
        Ok(Undo::Do(vec![old.map_or(Action::RemoveFirewall, set_again)]))
    }

    pub(super) fn remove_firewall(&mut self) -> Result<Undo, HostError> {
        // Where sshd listens can't be found out: then nothing more than the stack's own is known.
        let ssh_ports = session::ssh_ports().unwrap_or_default();
        // Noted first: when this takes the table away, others go by the notes.
        let old = self.state.firewall.take();
        self.note();
        if let Err(error) = self.change_firewall(|book, stack| book.remove(stack, &ssh_ports)) {
            self.state.firewall = old;
            self.note();
            return Err(error);
        }
        Ok(old.map_or(Undo::Nothing, |rules| Undo::Do(vec![set_again(rules)])))
    }

    /// While a change of another stack waits, nothing is changed. What is undone is done when that is over.
    fn change_firewall(&self, change: impl Fn(&Book, &str) -> Result<(), PendingError>) -> Result<(), HostError> {
        let mut told = false;
        loop {
            match change(&self.book, self.layout.project.as_str()) {
                Err(error @ PendingError::Busy { .. }) if self.undoes && !self.interrupted() => {
                    if !std::mem::replace(&mut told, true) {
                        eprintln!("{error}: the rest is undone when that is over");
                    }
                    std::thread::sleep(LOOK);
                }
                changed => return Ok(changed?),
            }
        }
    }

    /// Sees to it that the next boot finds what loads the table. What can't be done is a finding of who looks afterwards.
    pub(crate) fn renew_for_boot(&self) {
        if let Err(error) = self.book.renew() {
            eprintln!("warning: {}", crate::exit::chain(&error));
        }
    }

    /// A stack that is down lets nothing in any more, also where somebody else has taken the table away.
    pub(super) fn clean_up_firewall(&mut self) -> Result<(), HostError> {
        if self.state.firewall.take().is_some() {
            self.note();
        }
        self.firewall.shut_what_is_left()?;
        // A `down` that was killed may have taken the table away and not what is kept of it for the next boot.
        Ok(self.book.tidy()?)
    }
}

/// Going back to what was there closes nothing that it didn't close before.
fn set_again(rules: FirewallRules) -> Action {
    Action::SetFirewall { rules, confirm_within_ms: None }
}
