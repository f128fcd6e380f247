//! Networks and volumes of the file.

use super::file::{ComposeFile, FileNetwork, FileVolume, resolve};
use super::keys;
use super::mounts::is_volume_name;
use super::read::{Fields, Reader, Text};
use super::units;
use super::yaml::{Data, Entry, Node};
use crate::diagnostic::{Diagnostic, Spanned, quoted};
use crate::stack::{MountSource, Volume};

const VOLUME_NAMES: &str = "volume names are letters, digits, `.`, `_` and `-`, and begin with a letter or digit";
const MOUNT_YOURSELF: &str = "mount it on the host, and use a bind mount";

impl Reader<'_> {
    pub(crate) fn top_networks(&mut self, node: &Node, file: &mut ComposeFile) {
        for entry in self.map(node, "`networks`").unwrap_or_default() {
            let mut network = FileNetwork { span: entry.key_span, internal: false, external: false };
            if !entry.value.is_null() {
                let Some(mut fields) = self.fields(&entry.value, &keys::NETWORK) else { continue };
                if let Some(node) = fields.value("driver") {
                    let hint = "every network is a group of services on one host: remove it; for the host's own network, use `network_mode: host`";
                    self.parsed(node, "a network driver that Palisade has", hint, |text| {
                        matches!(text, "bridge" | "default" | "overlay" | "").then_some(())
                    });
                }
                if let Some(node) = fields.value("internal") {
                    network.internal = self.bool(node, "`internal`").unwrap_or_default();
                }
                if let Some(entry) = self.external(&mut fields).1 {
                    network.external = true;
                    self.push(
                        Diagnostic::note("external-network", "this network is a group of this stack's services: what other stacks have in it is not reached")
                            .at(entry.key_span, "")
                            .hint("to reach a service of another stack, publish its port there and use `x-palisade.host`"),
                    );
                }
                fields.finish();
            }
            file.networks.insert(entry.key.to_string(), network);
        }
    }

    /// `external`, as a name that its old form gives, and where it says yes.
    fn external<'n>(&mut self, fields: &mut Fields<'n>) -> (Option<Spanned<String>>, Option<&'n Entry>) {
        let Some(entry) = fields.take("external") else { return (None, None) };
        if let Data::Map(_) = entry.value.data {
            let Some(mut old) = self.fields(&entry.value, &keys::EXTERNAL) else { return (None, None) };
            let name = old.value("name").and_then(|node| self.text(node, "`name`")).map(Text::spanned);
            old.finish();
            return (name, Some(entry));
        }
        let external = self.bool(&entry.value, "`external`").unwrap_or_default();
        (None, external.then_some(entry))
    }

    pub(crate) fn top_volumes(&mut self, node: &Node, file: &mut ComposeFile) {
        for entry in self.map(node, "`volumes`").unwrap_or_default() {
            if !is_volume_name(&entry.key) {
                self.push(
                    Diagnostic::error("invalid-name", format!("{} is not a valid volume name", quoted(&entry.key)))
                        .at(entry.key_span, "")
                        .hint(VOLUME_NAMES),
                );
            }
            let mut volume = FileVolume { span: entry.key_span, volume: Volume::default(), source: None };
            if !entry.value.is_null() {
                self.volume(&entry.value, &mut volume);
            }
            file.volumes.insert(entry.key.to_string(), volume);
        }
    }

    fn volume(&mut self, node: &Node, volume: &mut FileVolume) {
        let Some(mut fields) = self.fields(node, &keys::VOLUME) else { return };
        if let Some(node) = fields.value("driver") {
            self.parsed(node, "a volume driver that Palisade has", MOUNT_YOURSELF, |text| {
                matches!(text, "local" | "").then_some(())
            });
        }
        let (old_name, external) = self.external(&mut fields);
        volume.volume.external = external.is_some();
        let name = fields.value("name").and_then(|node| self.text(node, "`name`")).map(Text::spanned).or(old_name);
        if let Some(name) = name {
            if is_volume_name(&name.value) {
                volume.volume.name = Some(name.value);
            } else {
                self.push(
                    Diagnostic::error("invalid-name", "this is not a valid volume name")
                        .at(name.span, "")
                        .hint(VOLUME_NAMES),
                );
            }
        }
        if let Some(node) = fields.value("driver_opts") {
            volume.source = self.volume_options(node);
        }
        fields.finish();
    }

    /// What the `local` driver would mount: a folder of the host, or memory.
    fn volume_options(&mut self, node: &Node) -> Option<(MountSource, bool)> {
        let mut fields = self.fields(node, &keys::VOLUME_OPTIONS)?;
        let mut read = |name: &str| fields.value(name).map(|node| self.text(node, "an option of the driver"));
        let (kind, options, device) = (read("type"), read("o"), read("device"));
        fields.finish();
        let (kind, options, device) = (kind.transpose_text()?, options.transpose_text()?, device.transpose_text()?);
        let kind_text = kind.as_ref().map_or("", |text| text.value.as_str());
        let (mut bind, mut read_only, mut size_bytes) = (false, false, None);
        for option in options.iter().flat_map(|text| text.value.split(',')).filter(|option| !option.is_empty()) {
            let size = option.strip_prefix("size=").map(|size| units::bytes(size, 1024));
            match (option, size) {
                ("bind" | "rbind", _) => bind = true,
                ("ro", _) => read_only = true,
                ("rw", _) => {}
                (_, Some(Some(bytes))) => size_bytes = Some(bytes),
                _ if matches!(kind_text, "none" | "bind" | "tmpfs") || bind => {
                    let text = options.as_ref()?;
                    let message = format!("{} is not an option that a volume can have here", quoted(option));
                    return self.invalid(text, message, "`bind`, `ro`, `rw` and `size=64m` are");
                }
                // What is wrong is the kind of file system, and that is said below.
                _ => {}
            }
        }
        match (kind_text, &device) {
            ("" | "none" | "bind", Some(device)) if bind || kind_text == "bind" => {
                let origin = self.origin(device.span);
                let home = origin.variables.get("HOME");
                let path = resolve(&origin.directory, home.as_deref(), &device.value);
                Some((MountSource::Bind(path), read_only))
            }
            ("tmpfs", _) => Some((MountSource::Tmpfs { size_bytes, mode: None }, read_only)),
            ("", None) if options.is_none() => None,
            _ => {
                let shown = kind.as_ref().map_or_else(|| "this".to_owned(), Text::quoted);
                self.push(
                    Diagnostic::error("refused-value", format!("a volume of the type {shown} can't be honoured: Palisade mounts no file systems of devices and networks"))
                        .at(kind.as_ref().map_or(node.span, |kind| kind.span), "")
                        .hint(MOUNT_YOURSELF),
                );
                None
            }
        }
    }
}

/// A value that may be left out, but not be wrong.
trait TransposeText {
    /// `None` when it is wrong.
    fn transpose_text(self) -> Option<Option<Text>>;
}
impl TransposeText for Option<Option<Text>> {
    fn transpose_text(self) -> Option<Option<Text>> {
        match self {
            None => Some(None),
            Some(Some(text)) => Some(Some(text)),
            Some(None) => None,
        }
    }
}
