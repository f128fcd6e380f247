//! What a rehearsal can do without root: in a user namespace, the firewall of the plan on a scratch host, asked with
//! packets to every port. No cgroups and no eBPF, so no service runs; what was left out is said.

use std::collections::BTreeSet;
use std::fs;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};
use palisade_core::firewall::{Backend, FirewallRules};
use palisade_core::observed::Observed;
use palisade_core::stack::Stack;
use palisade_host::firewall::Firewall;
use palisade_host::layout::Layout;
use palisade_host::netns::Netns;

use super::scene::{self, INTERFACE};
use crate::commands::prove::{doors_text, findings_text};
use crate::exit::{Answer, Failure};
use crate::proof;

/// What isn't done without root, and why.
const LEFT_OUT: &str =
    "Left out without root: starting the services (cgroups), the guard (eBPF), probes between services and attacks.\n";

/// Proves the firewall; the answer is never yes, since most was left out.
pub(crate) fn rehearse(stack: &Stack) -> Result<Answer, Failure> {
    enter_user_namespace()?;
    let failed = |error| Failure::new("can't build the scratch host in a user namespace", error);
    let (host, internet) = (Netns::current().map_err(failed)?, Netns::unnamed().map_err(failed)?);
    scene::connect(&host, &internet).map_err(|error| Failure::new("can't build the scratch host", error))?;
    let layout = Layout::host(stack.project.clone());
    // Nobody listens on the scratch host, so there is no sshd either.
    let Some(rules) = FirewallRules::of(stack, &BTreeSet::new(), Backend::Nftables) else {
        return Err(Failure::Unable(format!(
            "{LEFT_OUT}The file leaves the firewall alone (x-palisade.firewall), so nothing else was left to prove."
        )));
    };
    Firewall::new(&layout.realm)
        .apply(stack.project.as_str(), &rules)
        .map_err(|error| Failure::new("can't set up the firewall of the scratch host", error))?;
    let doors = proof::doors(&layout, stack, &Observed::default(), &[INTERFACE.to_owned()])?;
    print!("{}{}", doors_text(&doors), findings_text([&doors.findings]));
    if !doors.findings.is_empty() {
        return Ok(Answer::No);
    }
    Err(Failure::Unable(format!("{LEFT_OUT}hint: run `sudo palisade rehearse` for all of it")))
}

/// From here on this process is root of nothing but its own new namespaces.
fn enter_user_namespace() -> Result<(), Failure> {
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(|error| {
        Failure::lacking(
            format!("this user may not make user namespaces ({error}), and without root a rehearsal needs one"),
            "run `sudo palisade rehearse`, or allow them: sysctl kernel.unprivileged_userns_clone=1 (Debian), \
             kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu)",
        )
    })?;
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text)
            .map_err(|error| Failure::new("can't map this user in its user namespace", error))
    };
    write("setgroups", "deny".into())?;
    write("uid_map", format!("0 {uid} 1"))?;
    write("gid_map", format!("0 {gid} 1"))?;
    // A place for locks that nobody else sees.
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=700"))
        .map_err(|error| Failure::new("can't make a private /run", error))
}
