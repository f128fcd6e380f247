//! What is left of a stack that is down.

use std::fs;
use std::io;
use std::path::PathBuf;

use palisade_core::address::InstanceAddress;
use palisade_guard::{pin_root, unmount_bpffs};
use palisade_host::cgroup::Cgroup;
use palisade_host::firewall::bans::Bans;
use palisade_host::firewall::pending;
use palisade_host::link;
use palisade_host::program;

use super::error::io_error;
use super::{Adapters, HostError};
use crate::state::Lock;

impl Adapters {
    /// Removes the folders of a stack that is down; those that others still use stay.
    pub(crate) fn clean_up(&mut self) -> Result<(), HostError> {
        self.remove_private_addresses()?;
        self.clean_up_firewall()?;
        if self.layout.edge().exists() {
            Bans::new(&self.layout).remove()?;
        }
        let run = self.layout.run();
        if run.exists() {
            fs::remove_dir_all(&run).map_err(io_error("removing", &run))?;
        }
        for stack in Cgroup::all_of_stack(&self.layout)? {
            if stack.exists() {
                stack.remove()?;
            }
            stack.remove_empty_parents();
        }
        let pins = pin_root(&self.layout.realm, &self.layout.realm_run());
        // A bpffs has files of its own; stacks have folders.
        let is_folder =
            |entry: io::Result<fs::DirEntry>| entry.is_ok_and(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
        let others = fs::read_dir(&pins).is_ok_and(|mut entries| entries.any(is_folder));
        if pins.exists() && !others {
            unmount_bpffs(&pins).map_err(io_error("removing", &pins))?;
        }
        program::tidy(&self.layout, &[]);
        // Folders of volumes go when no volume is in them.
        let lib = self.layout.lib();
        let folders = [lib.join("volumes"), self.layout.made_volumes(), lib.clone(), self.layout.named_volumes()];
        for folder in folders.iter().map(PathBuf::as_path).chain(lib.parent()) {
            let _ = fs::remove_dir(folder);
        }
        self.clean_up_realm();
        Ok(())
    }

    /// Removes the realm's folder if no stack is left in it. Whoever takes the lock meanwhile notices.
    pub(super) fn clean_up_realm(&self) {
        let realm = self.layout.realm_run();
        let lock = realm.join("lock");
        let Ok(_held) = Lock::try_take(&lock) else { return };
        let locks = ["lock", pending::LOCK];
        let is_lock = |entry: io::Result<fs::DirEntry>| {
            entry.is_ok_and(|entry| locks.iter().any(|lock| entry.file_name() == *lock))
        };
        if fs::read_dir(&realm).is_ok_and(|mut entries| entries.all(is_lock)) {
            // Whoever changes the firewall has a folder in the realm, so nobody holds this lock. Nothing depends on
            // any of it: what stays is untidy and no more.
            let _ = fs::remove_file(format!("/run/{}-firewall.lock", self.firewall.table()));
            for cgroup in Cgroup::all_of_realm(&self.layout).into_iter().flatten() {
                let _ = cgroup.remove_if_empty();
            }
            let _ = fs::remove_file(realm.join(pending::LOCK));
            let _ = fs::remove_file(&lock).and_then(|()| fs::remove_dir(&realm));
        }
    }

    /// Takes the stack's IPv6 addresses off loopback, also those of instances that a killed `down` had removed.
    pub(super) fn remove_private_addresses(&self) -> Result<(), HostError> {
        let own: Vec<_> = self.state.addresses.iter().filter_map(|(_, index)| index.address()).collect();
        let loopback = link::interfaces()?.into_iter().filter(|interface| interface.loopback);
        for (ip, _) in loopback.flat_map(|interface| interface.addresses) {
            let std::net::IpAddr::V6(ip) = ip else { continue };
            let [.., a, b, c, d] = ip.octets();
            let instance = InstanceAddress::from_ip([a, b, c, d].into());
            if instance.is_some_and(|instance| instance.ipv6() == ip && own.contains(&instance.service())) {
                link::remove_private_ipv6(ip)?;
            }
        }
        Ok(())
    }
}
