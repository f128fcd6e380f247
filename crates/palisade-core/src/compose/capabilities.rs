//! `cap_add` and `cap_drop`: what a service can be given without a way around the guard.
//!
//! What the runtime drops by default is the runtime's business.

use super::read::Reader;
use super::suggest::nearest;
use super::yaml::Node;
use crate::diagnostic::Spanned;

/// Capabilities that a service may have: what Docker gives by default but NET_RAW and MKNOD, and some that don't
/// reach beyond the service.
const GRANTABLE: [&str; 18] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "WAKE_ALARM",
];
/// The others, and what a service could do with them.
const NOT_GRANTABLE: [(&str, &str); 24] = [
    ("ALL", "holds capabilities that break the guard"),
    ("NET_ADMIN", "could change the host's addresses, routes and firewall"),
    ("NET_RAW", "could send and sniff packets below the guard"),
    ("NET_BROADCAST", "is not used by the kernel"),
    ("SYS_ADMIN", "could detach the guard, mount, and enter other namespaces"),
    ("SYS_PTRACE", "could take over processes that are not in the service"),
    ("SYS_MODULE", "could load code into the kernel"),
    ("SYS_RAWIO", "could write to the machine's memory and disks"),
    ("SYS_BOOT", "could restart the machine"),
    ("SYS_TIME", "could change the host's clock"),
    ("SYS_PACCT", "could switch the host's accounting"),
    ("SYS_TTY_CONFIG", "could hang up the host's terminals"),
    ("SYSLOG", "could read kernel addresses"),
    ("BPF", "could detach or replace the guard"),
    ("PERFMON", "could watch every process of the host"),
    ("MKNOD", "could make device files of the host's disks"),
    ("DAC_READ_SEARCH", "could open every file of the host"),
    ("LINUX_IMMUTABLE", "could make files of the host undeletable"),
    ("MAC_ADMIN", "could change the host's access rules"),
    ("MAC_OVERRIDE", "could pass by the host's access rules"),
    ("AUDIT_CONTROL", "could switch the host's audit off"),
    ("AUDIT_READ", "could read the host's audit log"),
    ("CHECKPOINT_RESTORE", "could choose process ids"),
    ("BLOCK_SUSPEND", "could keep the machine from sleeping"),
];

/// What a service could do beyond itself with a capability (in upper case, without `CAP_`).
pub(crate) fn reaches_beyond(capability: &str) -> Option<&'static str> {
    NOT_GRANTABLE.iter().find(|(name, _)| *name == capability).map(|(_, could)| *could)
}

impl Reader<'_> {
    /// Names in upper case without `CAP_`. Whether a service can have them is checked in `validate`.
    pub(crate) fn capabilities(&mut self, node: &Node, what: &str) -> Vec<Spanned<String>> {
        let mut capabilities: Vec<Spanned<String>> = Vec::new();
        for text in self.texts(node, what).unwrap_or_default() {
            let upper = text.value.to_ascii_uppercase();
            let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if beyond_the_guard(name).is_some() || GRANTABLE.contains(&name) {
                capabilities.push(Spanned::new(name.to_owned(), text.span));
                continue;
            }
            let known = GRANTABLE.iter().copied().chain(NOT_GRANTABLE.iter().map(|(name, _)| *name));
            let near = nearest(name, known).map(|near| format!("did you mean `{near}`?"));
            let message = format!("{} is not a capability", text.quoted());
            self.invalid::<()>(&text, message, &near.unwrap_or_else(|| "`man 7 capabilities` lists them".into()));
        }
        capabilities
    }
}

/// What a service could do with a capability (upper case without `CAP_`) that breaks the guard.
pub(crate) fn beyond_the_guard(name: &str) -> Option<&'static str> {
    NOT_GRANTABLE.iter().find(|(known, _)| *known == name).map(|(_, could)| *could)
}
