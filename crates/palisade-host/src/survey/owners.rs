//! Whose a socket is: the process that holds it, and the unit, container or instance that the process belongs to.

use std::collections::HashMap;
use std::fs;

use palisade_core::audit::facts::{Owner, Process};

/// Looks owners up, each process once.
pub(super) struct Owners<'a> {
    /// Names of the engine's containers by their ids.
    containers: HashMap<String, String>,
    instances: &'a HashMap<u64, String>,
    by_pid: HashMap<i32, Owner>,
}

impl<'a> Owners<'a> {
    pub(super) fn read(containers: HashMap<String, String>, instances: &'a HashMap<u64, String>) -> Self {
        Self { containers, instances, by_pid: HashMap::new() }
    }

    /// Of a socket that this process holds and that was made in this cgroup.
    pub(super) fn of(&mut self, process: Option<(i32, &str)>, cgroup: Option<u64>) -> Owner {
        let mut owner = process.map(|(pid, name)| self.of_process(pid, name)).unwrap_or_default();
        if let Some(instance) = cgroup.and_then(|id| self.instances.get(&id)) {
            owner.instance = Some(instance.clone());
        }
        owner
    }

    pub(super) fn of_process(&mut self, pid: i32, name: &str) -> Owner {
        if let Some(known) = self.by_pid.get(&pid) {
            return known.clone();
        }
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let (unit, container) = place(&cgroups);
        let container = container.map(|id| self.containers.get(&id).cloned().unwrap_or_else(|| id[..12].to_owned()));
        let unit = unit.filter(|_| container.is_none());
        let process = Some(Process { pid, name: name.to_owned() });
        let owner = Owner { instance: None, container, unit, process };
        self.by_pid.insert(pid, owner.clone());
        owner
    }
}

/// The systemd unit and the id of the container that `/proc/PID/cgroup` tells of.
fn place(cgroups: &str) -> (Option<String>, Option<String>) {
    let paths = || cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let unit = paths().find_map(|path| {
        let service =
            |part: &&str| part.ends_with(".service") || (part.ends_with(".scope") && !part.starts_with("session-"));
        path.rsplit('/').find(service).map(str::to_owned)
    });
    // `docker-<id>.scope`, `/docker/<id>`, `libpod-<id>.scope`: 64 hexadecimal digits whoever made it.
    let container = paths().find_map(|path| {
        path.split(['/', '-', '.'])
            .find(|part| part.len() == 64 && part.bytes().all(|b| b.is_ascii_hexdigit()))
            .map(str::to_owned)
    });
    (unit, container)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_containers_are_read_from_cgroups() {
        let id = "0123456789abcdef".repeat(4);
        let unit = |text: &str| place(text).0;
        assert_eq!(
            unit("0::/system.slice/postgresql@15-main.service\n").as_deref(),
            Some("postgresql@15-main.service")
        );
        assert_eq!(unit("12:pids:/\n0::/system.slice/ssh.service/child\n").as_deref(), Some("ssh.service"));
        assert_eq!(unit("0::/user.slice/user-0.slice/session-3.scope\n"), None);
        for path in [
            format!("/docker/{id}"),
            format!("/system.slice/docker-{id}.scope"),
            format!("/machine.slice/libpod-{id}.scope/container"),
        ] {
            assert_eq!(place(&format!("0::{path}\n")).1, Some(id.clone()), "{path}");
        }
        assert_eq!(place("0::/\n"), (None, None));
    }
}
