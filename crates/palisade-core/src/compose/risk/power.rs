//! Services that are given more of the host than a service should have, and those that the guard can't hold.
//!
//! For a process of the host most of this is refused where it is read.

use std::borrow::Cow;

use super::{Hit, Hits, Seen, table};
use crate::compose::capabilities;
use crate::compose::mounts::{BEYOND_THE_GUARD, ENGINE_SOCKETS};
use crate::compose::yaml::{Data, Node};
use crate::diagnostic::Span;
use crate::stack::MountSource;

/// Whole folders of the system.
const SYSTEM: [&str; 16] = [
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr",
    "/var", "/var/lib",
];
/// And what is secret or runs as root below them.
const WITHIN: [&str; 17] = [
    "/boot",
    "/root",
    "/sys",
    "/proc",
    "/etc/shadow",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/ssh",
    "/etc/cron.d",
    "/etc/crontab",
    "/etc/systemd",
    "/etc/pam.d",
    "/etc/ld.so.preload",
    "/var/lib/docker",
    "/var/lib/containers",
    "/var/lib/palisade",
    "/run/palisade",
];
const DISKS: [&str; 10] = ["sd", "hd", "vd", "xvd", "nvme", "dm-", "md", "mapper", "mem", "kmem"];

pub(super) fn examine(seen: &Seen<'_>, hits: &mut Hits) {
    mounts(seen, hits);
    if seen.is_process() {
        return;
    }
    let name = seen.name();
    if let Some(entry) = seen.node.get("privileged")
        && texts(&entry.value).first().is_some_and(|(text, _)| matches!(*text, "true" | "yes" | "on"))
    {
        hits.push(
            Hit::new(&table::PRIVILEGED, seen, entry.key_span, format!("`{name}` is privileged"))
                .breach("it is privileged, and could take the guard away"),
        );
    }
    for (text, span) in seen.get("cap_add").map(texts).unwrap_or_default() {
        let upper = text.to_ascii_uppercase();
        let capability = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if let Some(could) = capabilities::reaches_beyond(capability) {
            hits.push(
                Hit::new(
                    &table::ADDED_CAPABILITY,
                    seen,
                    span,
                    format!("`{name}` is given {capability}, which {could}"),
                )
                .breach(format!("it is given {capability}, which {could}")),
            );
        }
    }
    if let Some(entry) = seen.node.get("use_api_socket") {
        engine(seen, entry.key_span, hits);
    }
    for key in ["pid", "ipc", "uts", "userns_mode", "cgroup"] {
        let Some((text, span)) = seen.get(key).and_then(|node| texts(node).first().copied()) else { continue };
        if text == "host" {
            hits.push(Hit::new(
                &table::HOST_NAMESPACE,
                seen,
                span,
                format!("`{name}` shares the host's `{key}` namespace"),
            ));
        }
    }
    for (text, span) in seen.get("security_opt").map(texts).unwrap_or_default() {
        let text = text.replace('=', ":");
        let off = ["seccomp:unconfined", "apparmor:unconfined", "label:disable", "systempaths:unconfined"];
        if let Some(option) = off.iter().find(|option| text == **option) {
            hits.push(Hit::new(&table::UNCONFINED, seen, span, format!("`{name}` runs with `{option}`")));
        }
    }
    for (text, span) in seen.get("devices").map(devices).unwrap_or_default() {
        let device = text.split(':').next().unwrap_or_default();
        let below = device.strip_prefix("/dev/").unwrap_or_default();
        if DISKS.iter().any(|disk| below.starts_with(disk)) {
            hits.push(
                Hit::new(
                    &table::HOST_DEVICE,
                    seen,
                    span,
                    format!("`{name}` is given a disk or the memory of the host"),
                )
                .breach("it is given a disk or the memory of the host"),
            );
        }
    }
}

fn engine(seen: &Seen<'_>, span: Span, hits: &mut Hits) {
    hits.push(
        Hit::new(&table::ENGINE_SOCKET, seen, span, format!("`{}` may talk to the container engine", seen.name()))
            .breach("it may talk to the container engine, and so start containers that nobody guards"),
    );
}

fn mounts(seen: &Seen<'_>, hits: &mut Hits) {
    for mount in &seen.service.mounts {
        let MountSource::Bind(source) = &mount.value.source else { continue };
        let mut source = source.to_string_lossy();
        // `/var/run` is `/run` on every system of today.
        if is_within(&source, "/var/run") {
            source = Cow::Owned(source.replacen("/var", "", 1));
        }
        let source = &*source;
        let name = source.rsplit('/').next().unwrap_or_default();
        let holds_socket = ENGINE_SOCKETS.iter().any(|socket| is_within(source, socket))
            || source == "/run"
            || matches!(name, "docker.sock" | "podman.sock" | "containerd.sock");
        if holds_socket && !seen.is_process() {
            engine(seen, mount.span, hits);
            continue;
        }
        // A single device file is no folder of the system.
        let device = is_within(source, "/dev") && source != "/dev";
        if device || !(SYSTEM.contains(&source) || WITHIN.iter().any(|folder| is_within(source, folder))) {
            continue;
        }
        let beyond = BEYOND_THE_GUARD.iter().find(|path| is_within(source, path) || is_within(path, source));
        let writable = !mount.value.read_only;
        let how = if writable { "may write to" } else { "may read" };
        let mut hit =
            Hit::new(&table::ROOT_MOUNT, seen, mount.span, format!("`{}` {how} `{source}` of the host", seen.name()));
        if writable && !seen.is_process() {
            if let Some(path) = beyond {
                hit = hit.breach(format!("it may write to `{path}` of the host, and so change its own guard"));
            } else if ["/etc", "/root", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/boot"]
                .iter()
                .any(|path| is_within(source, path))
            {
                hit = hit.breach(format!("it may write to `{source}` of the host, to what runs there as root"));
            }
        } else if writable && beyond.is_some() {
            // A process of the host was refused this already.
            continue;
        }
        hits.push(hit);
    }
}

/// The path is that folder, or lies in it. Both are absolute and have no `..` and no slash too many.
fn is_within(path: &str, folder: &str) -> bool {
    folder == "/" || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The single values of a list, or the one that stands for a list.
pub(super) fn texts(node: &Node) -> Vec<(&str, Span)> {
    match &node.data {
        Data::Scalar(scalar) => vec![(&scalar.text, node.span)],
        Data::List(items) => items
            .iter()
            .filter_map(|item| match &item.data {
                Data::Scalar(scalar) => Some((scalar.text.as_str(), item.span)),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// The host's side of `devices`, in either form.
fn devices(node: &Node) -> Vec<(&str, Span)> {
    let mut devices = texts(node);
    if let Data::List(items) = &node.data {
        let long = items.iter().filter_map(|item| item.get("source"));
        devices.extend(long.flat_map(|entry| texts(&entry.value)));
    }
    devices
}
