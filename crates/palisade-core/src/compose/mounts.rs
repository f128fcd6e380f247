//! `volumes` and `tmpfs` of a service.
//!
//! Whether a named volume exists is checked in `validate`; whether a path does, when the stack starts.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::file::resolve;
use super::keys;
use super::read::{Reader, Text};
use super::units;
use super::yaml::{Data, Node};
use crate::diagnostic::{Diagnostic, Span, Spanned};
use crate::names::ServiceName;
use crate::stack::{Mount, MountSource};

const SHORT_HINT: &str = "write `./path:/target`, `volume:/target`, or with `:ro` behind it";
const SIZE_HINT: &str = "write bytes or a number with a unit, like `64m`";

/// Whoever may write here can leave the guard, and whoever may speak here can start processes outside of it.
pub(crate) const BEYOND_THE_GUARD: [&str; 5] = ["/sys", "/proc", "/dev", "/run/palisade", "/var/lib/palisade"];
pub(crate) const ENGINE_SOCKETS: [&str; 5] =
    ["/run/docker.sock", "/var/run/docker.sock", "/run/containerd", "/run/podman", "/run/crio"];

impl Reader<'_> {
    pub(crate) fn mounts(&mut self, node: &Node, service: &ServiceName) -> Vec<Spanned<Mount>> {
        let mut mounts = Vec::new();
        for item in self.list(node, "`volumes`").unwrap_or_default() {
            let mount = match &item.data {
                Data::Map(_) => self.long_mount(item, service),
                _ => self.text(item, "a mount").and_then(|text| self.short_mount(&text, service)),
            };
            if let Some(mount) = mount {
                mounts.push(Spanned::new(mount, item.span));
            }
        }
        mounts
    }

    fn short_mount(&mut self, text: &Text, service: &ServiceName) -> Option<Mount> {
        let parts: Vec<&str> = text.value.split(':').collect();
        let (source, target, options) = match parts[..] {
            [source, target] => (Some(source), target, ""),
            [source, target, options] => (Some(source), target, options),
            [target] if target.starts_with('/') => (None, target, ""),
            _ => return self.invalid(text, format!("{} is not a mount", text.quoted()), SHORT_HINT),
        };
        let (mut read_only, mut nocopy) = (false, false);
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" => read_only = true,
                "nocopy" => nocopy = true,
                // Labels of SELinux and caches of virtual machines don't matter to a process of the host.
                "rw" | "z" | "Z" | "private" | "rprivate" | "cached" | "delegated" | "consistent" => {}
                _ => {
                    let message = format!("`{option}` is not an option that a mount can have here");
                    return self.invalid(text, message, "`ro` and `rw` are");
                }
            }
        }
        let source = match source {
            Some(source) => self.source(text, source)?,
            None => MountSource::Anonymous { of: service.clone() },
        };
        Some(Mount { source, target: self.target(text, target)?, read_only, nocopy })
    }

    fn source(&mut self, text: &Text, source: &str) -> Option<MountSource> {
        if source.starts_with(['/', '.', '~']) {
            return Some(MountSource::Bind(self.path(source, text.span)));
        }
        if is_volume_name(source) {
            return Some(MountSource::Volume(source.to_owned()));
        }
        let message = format!("the source of {} is neither a path nor a volume's name", text.quoted());
        self.invalid(text, message, "paths begin with `/`, `./` or `~/`; names are letters, digits, `.`, `_` and `-`")
    }

    /// A path of the user's, made absolute: it starts where the file lies that it is written in.
    pub(crate) fn path(&self, path: &str, span: Span) -> PathBuf {
        let origin = self.origin(span);
        resolve(&origin.directory, origin.variables.get("HOME").as_deref(), path)
    }

    fn target(&mut self, text: &Text, target: &str) -> Option<PathBuf> {
        let path = Path::new(target);
        let clean = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
        if !clean || path == Path::new("/") {
            let message = format!("the target of {} is not an absolute path below `/`", text.quoted());
            return self.invalid(text, message, "write the path that the service sees, like `/var/lib/data`");
        }
        Some(path.components().collect())
    }

    fn long_mount(&mut self, node: &Node, service: &ServiceName) -> Option<Mount> {
        let mut fields = self.fields(node, &keys::MOUNT)?;
        let mut read = |name: &str| fields.value(name).map(|node| self.text(node, "a part of a mount"));
        let (kind, source, target) = (read("type"), read("source"), read("target"));
        let mut nocopy = false;
        let read_only = fields.value("read_only").is_some_and(|n| self.bool(n, "`read_only`").unwrap_or_default());
        if let Some(mut bind) = fields.value("bind").and_then(|node| self.fields(node, &keys::MOUNT_BIND)) {
            if let Some(node) = bind.value("propagation") {
                let hint = "mounts don't travel between services and the host: remove it, or write `rprivate`";
                self.parsed(node, "a propagation that mounts have here", hint, |text| {
                    matches!(text, "private" | "rprivate" | "").then_some(())
                });
            }
            if let Some(node) = bind.value("recursive") {
                let hint = "mounts are taken with what is mounted below: remove it, or write `enabled`";
                self.parsed(node, "a way to take mounts along", hint, |text| (text == "enabled").then_some(()));
            }
            bind.finish();
        }
        if let Some(mut volume) = fields.value("volume").and_then(|node| self.fields(node, &keys::MOUNT_VOLUME)) {
            nocopy = volume.value("nocopy").is_some_and(|n| self.bool(n, "`nocopy`").unwrap_or_default());
            volume.finish();
        }
        let (mut size_bytes, mut mode) = (None, None);
        if let Some(mut tmpfs) = fields.value("tmpfs").and_then(|node| self.fields(node, &keys::MOUNT_TMPFS)) {
            let size = tmpfs.value("size");
            size_bytes = size.and_then(|n| self.parsed(n, "a size", SIZE_HINT, |text| units::bytes(text, 1024)));
            mode = tmpfs.value("mode").and_then(|node| self.mode(node));
            tmpfs.finish();
        }
        fields.finish();
        let missing = |name: &str| {
            Diagnostic::error("missing-key", format!("this mount has no `{name}`"))
                .at(node.span, "")
                .hint("a mount has `type` and `target`, and one of a folder has `source`")
        };
        let (Some(kind), Some(target)) = (&kind, &target) else {
            self.push(missing(if kind.is_none() { "type" } else { "target" }));
            return None;
        };
        let (kind, target) = (kind.as_ref()?, target.as_ref()?);
        let target = self.target(target, &target.value)?;
        let source = match (kind.value.as_str(), source) {
            ("tmpfs", _) => MountSource::Tmpfs { size_bytes, mode },
            ("volume", None) => MountSource::Anonymous { of: service.clone() },
            ("bind", None) => {
                self.push(missing("source"));
                return None;
            }
            ("bind", Some(source)) => {
                let source = source?;
                MountSource::Bind(self.path(&source.value, source.span))
            }
            ("volume", Some(source)) => {
                let source = source?;
                if !is_volume_name(&source.value) {
                    let message = format!("{} is not a volume's name", source.quoted());
                    return self.invalid(&source, message, "for a path of the host, write `type: bind`");
                }
                MountSource::Volume(source.value.into())
            }
            _ => {
                let message = format!("{} is not a type of mount that Palisade has", kind.quoted());
                return self.invalid(kind, message, "`bind`, `volume` and `tmpfs` are");
            }
        };
        Some(Mount { source, target, read_only, nocopy })
    }

    /// `tmpfs`: a path or a list of them, each with options.
    pub(crate) fn tmpfs(&mut self, node: &Arc<Node>) -> Vec<Spanned<Mount>> {
        let mut mounts = Vec::new();
        for item in self.one_or_list(node, "`tmpfs`").unwrap_or_default() {
            let Some(text) = self.text(item, "a path") else { continue };
            let (path, options) = text.value.split_once(':').unwrap_or((&text.value, ""));
            let mut mount = Mount {
                source: MountSource::Tmpfs { size_bytes: None, mode: None },
                target: PathBuf::new(),
                read_only: false,
                nocopy: false,
            };
            let mut fine = true;
            let (mut size_bytes, mut mode) = (None, None);
            for option in options.split(',').filter(|option| !option.is_empty()) {
                let size = option.strip_prefix("size=").map(|size| units::bytes(size, 1024));
                let bits = option.strip_prefix("mode=").and_then(|bits| units::mode(bits, false));
                match (size, option) {
                    (Some(Some(bytes)), _) => size_bytes = Some(bytes),
                    (None, _) if bits.is_some() => mode = bits.map(|(bits, _)| bits),
                    // These are how it is mounted anyway.
                    (None, "rw" | "nosuid" | "nodev") => {}
                    (None, "ro") => mount.read_only = true,
                    (size, _) => {
                        fine = false;
                        let hint =
                            if size.is_some() { SIZE_HINT } else { "`size=64m`, `mode=0755`, `ro` and `rw` are" };
                        self.invalid::<()>(
                            &text,
                            format!("`{option}` is not an option that a tmpfs can have here"),
                            hint,
                        );
                    }
                }
            }
            mount.source = MountSource::Tmpfs { size_bytes, mode };
            if let Some(target) = self.target(&text, path) {
                mount.target = target;
                if fine {
                    mounts.push(Spanned::new(mount, text.span));
                }
            }
        }
        mounts
    }
}

/// How a mount would break the guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beyond {
    /// It holds an engine's socket.
    EngineSocket(&'static str),
    /// It holds this part of the host, and is writable.
    Writable(&'static str),
}

/// Whether a mount would let the service leave its guard.
pub(crate) fn beyond_the_guard(mount: &Mount) -> Option<Beyond> {
    let MountSource::Bind(source) = &mount.source else { return None };
    let reaches = |path: &&&str| source.starts_with(path) || Path::new(path).starts_with(source);
    if let Some(socket) = ENGINE_SOCKETS.iter().find(|socket| source.starts_with(socket)) {
        return Some(Beyond::EngineSocket(socket));
    }
    let path = BEYOND_THE_GUARD.iter().find(reaches).filter(|_| !mount.read_only)?;
    Some(Beyond::Writable(path))
}

/// A volume's name becomes a folder.
pub(crate) fn is_volume_name(name: &str) -> bool {
    name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}
