//! The guard, the policy in force, and who is told of it.

use std::path::Path;

use palisade_core::action::Action;
use palisade_core::address::InstanceAddress;
use palisade_core::apply::Undo;
use palisade_core::edge::Settings;
use palisade_core::instance::CgroupDriver;
use palisade_core::names::{InstanceId, ServiceName};
use palisade_core::policy::Policy;
use palisade_guard::{Guard, mount_bpffs, pin_root};
use palisade_host::cgroup::Cgroup;
use palisade_host::sockets;

use super::error::{MOUNTING, io_error};
use super::{Adapters, HostError};
use crate::edge;
use crate::observe::{host_addresses, pins};

/// So long connections to what didn't prove itself may go on when it is taken back.
const UNDO_DRAIN_MS: u64 = 5_000;

impl Adapters {
    pub(super) fn guard(&mut self) -> Result<&Guard, HostError> {
        if self.guard.is_none() {
            self.guard = Guard::open(&pins(&self.layout))?;
        }
        self.guard.as_ref().ok_or(HostError::NoGuard)
    }

    /// A slice may have been stopped and made anew while the guard was attached: then the mark must not stay.
    pub(super) fn require_guard(&mut self, cgroup: &Cgroup) -> Result<(), HostError> {
        let missing = match cgroup.driver() {
            CgroupDriver::Cgroupfs => return Ok(()),
            CgroupDriver::Systemd => self.guard()?.missing_hooks(&cgroup.v2_path()),
        };
        if missing.as_ref().is_ok_and(Vec::is_empty) {
            return Ok(());
        }
        cgroup.unmark()?;
        missing?;
        Err(HostError::SliceReplaced(cgroup.parent_for_engines()))
    }

    pub(super) fn load_guard(&mut self) -> Result<Undo, HostError> {
        let root = pin_root(&self.layout.realm, &self.layout.realm_run());
        mount_bpffs(&root).map_err(io_error(MOUNTING, &root))?;
        let pins = pins(&self.layout);
        let loaded = Guard::load(&pins).inspect_err(|_| {
            // Of a guard that isn't complete nothing may be left; that it failed is what is told.
            let _ = Guard::remove(&pins);
        });
        self.guard = Some(loaded?);
        Ok(Undo::Do(vec![Action::UnloadGuard]))
    }

    pub(super) fn set_policy(&mut self, policy: &Policy) -> Result<Undo, HostError> {
        let addresses = host_addresses().map_err(io_error("reading", Path::new("addresses")))?;
        let guard = self.guard()?;
        guard.set_host_addresses(&addresses)?;
        guard.set_policy(policy)?;
        let old = self.state.policy.replace(policy.clone());
        self.note();
        if let Err(error) = self.tell_edge(None) {
            // What can't be told isn't so: requests would go on to whoever is stopped next.
            if let Some(old) = old {
                self.guard()?.set_policy(&old)?;
                self.state.policy = Some(old);
                self.note();
                let _ = self.tell_edge(None);
            }
            return Err(error);
        }
        Ok(match old {
            Some(policy) => {
                let digest = palisade_core::digest::digest_of(&policy);
                Undo::Do(vec![Action::SetPolicy { policy, digest }])
            }
            // The guard goes with whatever loaded it.
            None => Undo::Nothing,
        })
    }

    /// Tells the edge, if there is one, who takes requests.
    pub(super) fn tell_edge(&mut self, more: Option<&Settings>) -> Result<(), HostError> {
        if more.is_none() && !self.layout.edge().exists() {
            return Ok(());
        }
        self.guard()?;
        let guard = self.guard.as_ref().ok_or(HostError::NoGuard)?;
        Ok(edge::tell(&self.layout, guard, &self.state.addresses, self.state.policy.as_ref(), more)?)
    }

    /// Undone, connections to those who took over meanwhile may still end.
    pub(super) fn shift(
        &mut self,
        service: &ServiceName,
        to: &[InstanceId],
        policy: &Policy,
    ) -> Result<Undo, HostError> {
        let backends = self.state.policy.iter().flat_map(|policy| &policy.services);
        let before: Vec<_> =
            backends.filter(|known| known.name == *service).flat_map(|known| &known.backends).copied().collect();
        let service = policy.services.iter().find(|known| known.name == *service);
        let joined = to
            .iter()
            .filter(|id| service.is_some_and(|service| !before.contains(&service.address.instance(id.number))));
        let drains: Vec<_> = joined.map(|id| Action::Drain { id: id.clone(), timeout_ms: UNDO_DRAIN_MS }).collect();
        Ok(match self.set_policy(policy)? {
            Undo::Do(actions) => Undo::Do(actions.into_iter().chain(drains).collect()),
            undo => undo,
        })
    }

    /// Peers' connected datagram sockets pass no hook, so they go on to an instance that is gone for good. One that the
    /// policy still has comes back at the same address.
    pub(super) fn end_datagrams_to(&self, address: InstanceAddress) {
        let services = self.state.policy.iter().flat_map(|policy| &policy.services);
        if services.flat_map(|service| &service.backends).any(|backend| *backend == address) {
            return;
        }
        // Nothing that would stop a removal: they write to nobody, as they would without it.
        if let Err(error) = sockets::abort_datagrams_to(&[address.ip().into(), address.ipv6().into()].into()) {
            eprintln!("warning: {}", crate::exit::chain(&error));
        }
    }
}
