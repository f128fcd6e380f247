//! Short forms of items of lists, written out: ports, mounts, devices, references to files.

use super::super::keys::{Section, Short};
use super::super::merge::{self, split_port};
use super::super::yaml::{Data, Node};
use super::{Builder, Map, Value, pair};
use crate::diagnostic::quoted;

impl Builder<'_> {
    pub(super) fn short_item(
        &self,
        text: &str,
        node: &Node,
        short: Short,
        section: &'static Section,
        key: &str,
    ) -> Vec<Value> {
        let mut map = match short {
            Short::Port => return self.ports(text, node, section),
            Short::Volume => self.mount(text, node),
            Short::FileReference => vec![pair("source", Value::text(text))],
            Short::Directory => vec![pair("url", Value::text(text))],
            Short::Gpus => Vec::new(),
            Short::Device => {
                let mut parts = text.split(':');
                let source = parts.next().unwrap_or_default();
                let (target, permissions) = (parts.next().unwrap_or(source), parts.next().unwrap_or("rwm"));
                vec![
                    pair("source", Value::text(source)),
                    pair("target", Value::text(target)),
                    pair("permissions", Value::text(permissions)),
                ]
            }
            _ => return self.mistyped(node, key, "a list of mappings"),
        };
        self.defaults(&mut map, node, section);
        map.sort_by(|(one, _), (other, _)| one.cmp(other));
        vec![Value::Map(map)]
    }

    /// `"127.0.0.1:8080-8081:80-81/udp"`, one port each.
    pub(super) fn ports(&self, text: &str, node: &Node, section: &'static Section) -> Vec<Value> {
        let (ip, published, target, protocol) = split_port(text);
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
            (first <= last && last - first < 1024).then_some(first..=last)
        };
        let targets = range(target);
        let hosts = published.map(range);
        let (Some(targets), Some(Some(_)) | None) = (targets, &hosts) else {
            let Data::Scalar(scalar) = &node.data else { return Vec::new() };
            let shown = quoted(scalar.written.as_deref().unwrap_or(text));
            self.wrong(node.span, format!("{shown} is not a port"));
            return Vec::new();
        };
        let mut hosts = hosts.flatten();
        if hosts.as_ref().is_some_and(|hosts| targets.len() != hosts.len() && targets.len() > 1) {
            self.wrong(node.span, "the two ranges have different lengths".to_owned());
        }
        let single = targets.len() == 1;
        let one = |target: u16| {
            let mut port = vec![pair("target", Value::Int(target.into()))];
            if let Some(published) = published.filter(|_| single) {
                port.push(pair("published", Value::text(published)));
            } else if let Some(host) = hosts.as_mut().and_then(Iterator::next) {
                port.push(pair("published", Value::text(host.to_string())));
            }
            if let Some(ip) = ip {
                port.push(pair("host_ip", Value::text(ip.trim_start_matches('[').trim_end_matches(']'))));
            }
            if let Some(protocol) = protocol {
                port.push(pair("protocol", Value::text(protocol.to_ascii_lowercase())));
            }
            self.defaults(&mut port, node, section);
            port.sort_by(|(one, _), (other, _)| one.cmp(other));
            Value::Map(port)
        };
        targets.map(one).collect()
    }

    /// `source:target:options`.
    pub(super) fn mount(&self, text: &str, node: &Node) -> Map {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, options) = match parts[..] {
            [target] => (None, target, ""),
            [source, target] => (Some(source), target, ""),
            [source, target, options] => (Some(source), target, options),
            _ => {
                self.wrong(node.span, "this is not a mount".to_owned());
                return Vec::new();
            }
        };
        let bind = source.is_some_and(|source| source.starts_with(['/', '.', '~']));
        let mut map = vec![
            pair("type", Value::text(if bind { "bind" } else { "volume" })),
            pair("target", Value::text(merge::clean(target))),
        ];
        // A relative path is made absolute with the other defaults.
        map.extend(source.map(|source| pair("source", Value::text(source))));
        // Docker Compose keeps these options below `bind`, also of a volume.
        let mut of_bind = if bind { vec![pair("create_host_path", Value::Bool(true))] } else { Vec::new() };
        let mut of_volume = Vec::new();
        for option in options.split(',') {
            match option {
                "ro" => map.push(pair("read_only", Value::Bool(true))),
                "z" | "Z" => of_bind.push(pair("selinux", Value::text(option))),
                "nocopy" if !bind => of_volume.push(pair("nocopy", Value::Bool(true))),
                "cached" | "delegated" | "consistent" => map.push(pair("consistency", Value::text(option))),
                "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => {
                    of_bind.push(pair("propagation", Value::text(option)));
                }
                // Compose takes no notice of others; what reads mounts refuses what it doesn't know.
                _ => {}
            }
        }
        of_bind.sort_by(|(one, _), (other, _)| one.cmp(other));
        if !of_bind.is_empty() {
            map.push(pair("bind", Value::Map(of_bind)));
        }
        if !bind {
            map.push(pair("volume", Value::Map(of_volume)));
        }
        map
    }
}
