//! Every key of a Compose file and what becomes of it: the one table that the parser obeys and documents are made of.
//!
//! Only words here; reading the values is done in the modules beside this one.

mod build;
mod deploy;
mod document;
mod edge;
mod palisade;
mod parts;
mod service;
mod top;

pub use build::{BUILD, BUILD_SECRET};
pub use deploy::{
    DEPLOY, DEVICE_REQUEST, DISCRETE_RESOURCE, GENERIC_RESOURCE, PLACEMENT, PREFERENCE, RESERVATIONS, RESOURCE_LIMITS,
    RESOURCES, RESTART_POLICY, ROLLBACK_CONFIG, UPDATE_CONFIG,
};
pub use document::document;
pub use edge::{
    EDGE, EDGE_ACCESS_LOG, EDGE_ACME, EDGE_BAN, EDGE_CERTIFICATE, EDGE_CONNECTIONS, EDGE_DIRECTORY, EDGE_EAB,
    EDGE_HSTS, EDGE_LIMITS, EDGE_PORTS, EDGE_RATE, EDGE_ROUTE, EDGE_TLS,
};
pub use palisade::{ALLOW, FIREWALL, PROCESS, SERVICE_PALISADE, TOP_PALISADE};
pub use parts::{
    BLKIO, BLKIO_RATE, BLKIO_WEIGHT, CREDENTIAL_SPEC, DEPENDENCY, DEVELOP, DEVICE, ENV_FILE, EXTENDS, HEALTHCHECK,
    HOOK, LOGGING, LOGGING_OPTIONS, MOUNT, MOUNT_BIND, MOUNT_IMAGE, MOUNT_TMPFS, MOUNT_VOLUME, PORT, PROVIDER,
    SERVICE_CONFIG, SERVICE_MODEL, SERVICE_NETWORK, SERVICE_SECRET, ULIMIT, WATCH,
};
pub use service::SERVICE;
pub use top::{CONFIG, EXTERNAL, INCLUDE, IPAM, IPAM_CONFIG, MODEL, NETWORK, SECRET, TOP, VOLUME, VOLUME_OPTIONS};

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Palisade does what it says; the text says what that is.
    Honoured(&'static str),
    /// Accepted, and needs nothing done; the text says why.
    NoEffect(&'static str),
    /// What an image runs with; the text says what it does there. Beside `x-palisade.process`, which takes the image's
    /// place, it has no effect.
    Image(&'static str),
    /// An error.
    Refused {
        /// Why it can't be honoured.
        why: &'static str,
        /// What to do about it.
        instead: &'static str,
    },
}

/// One key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// As written.
    pub name: &'static str,
    /// What becomes of it.
    pub class: Class,
    /// What can stand there.
    pub shape: Shape,
}

/// What can stand at a key: from this follow how it is merged (Compose Specification, 13-merge), what its short forms
/// mean, and how the canonical file shows it. Whether a value makes sense is for the readers to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A single value; a later one takes its place.
    One(Kind),
    /// A list of single values; a later list is added to it.
    List(Kind, Repeats),
    /// The same, and a single value stands for a list of one.
    OneOrList(Kind, Repeats),
    /// A command: a list of words, or one text that is split into words like a shell would; a later one takes its place.
    Command,
    /// The test of a health check: a list whose first word says what the others are, or one text for a shell; a later
    /// one takes its place.
    Test,
    /// `KEY: value`, or a list of `KEY=value`; merged by key. A key without value has none.
    Pairs(Pairs),
    /// A mapping with these keys.
    Section(&'static Section),
    /// The same, or a short form.
    Short(Short, &'static Section),
    /// A mapping from names of the user's own to mappings with these keys.
    Named(&'static Section),
    /// The same, and a value may be a short form.
    NamedShort(Short, &'static Section),
    /// The same as [`Shape::Named`], and a list of names stands for a mapping to nothing.
    NamedOrList(&'static Section),
    /// A list of mappings with these keys, each of which may be a short form. Items that are the same thing
    /// ([`Section::identity`]) are merged, others added.
    Items(Short, &'static Section),
    /// The same, and a single value stands for a list of one: its short form.
    OneOrItems(Short, &'static Section),
    /// Anything at all, and a later one takes its place whole.
    Whole,
    /// Anything at all: what only an engine's plug-in or a person understands.
    Any,
}

/// What a single value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A path of the host; a relative one starts where its file says.
    Path,
    /// A path of the host, or the address of something on another machine.
    Context,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Int,
    /// A decimal number.
    Float,
    /// `1m30s`.
    Duration,
    /// `64m`, in bytes.
    Bytes,
    /// Permission bits, in octal: `0440`.
    Mode,
}

/// Whether a list may hold a value twice once it is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// It may.
    Kept,
    /// The first one stays.
    Dropped,
}

/// What a list of pairs looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// `KEY=value`, values are text.
    Equals,
    /// The same, and values are of [`Kind::Context`].
    Contexts,
    /// `extra_hosts`: `name=address` or `name:address`; a name may have several addresses.
    Hosts,
}

/// Short forms, by the key that they are known from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the key's own name")]
pub enum Short {
    /// There is none.
    None,
    Build,
    Certificate,
    Device,
    Directory,
    Edge,
    EnvFile,
    Extends,
    External,
    FileReference,
    Gpus,
    Include,
    Port,
    Rate,
    Switch,
    Ulimit,
    Volume,
}

/// What makes two mappings of a kind the same thing, so that a later one is merged into an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// Of a single mapping: that it stands at the same key. In a list, no two are the same.
    Place,
    /// `target`.
    Target,
    /// `target`, which is `source` below this directory unless it is given.
    TargetBelow(&'static str),
    /// `host_ip`, `target`, `published` and `protocol` together.
    Port,
    /// `path`.
    Path,
    /// `subnet`.
    Subnet,
    /// `domain` and `path`.
    Route,
    /// `driver`, where both give one: options of one driver mean nothing to another, so that another takes the
    /// place of all of them.
    Driver,
}

/// The keys of one kind of mapping.
#[derive(Debug, PartialEq, Eq)]
pub struct Section {
    /// Where it stands: `services.*.deploy`.
    pub path: &'static str,
    /// What it is, for messages: "`deploy`".
    pub what: &'static str,
    /// What makes two of them the same thing.
    pub identity: Identity,
    /// Its keys, in the order of the documentation.
    pub keys: &'static [Key],
    /// What people write that isn't a key of it.
    pub mistaken: Mistaken,
}

/// What isn't a key, though people write it, with what to do instead. One `s` more at its end is the same.
pub type Mistaken = &'static [(&'static str, &'static str)];

impl Section {
    /// The key of that name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    const fn not(self, mistaken: Mistaken) -> Self {
        Self { mistaken, ..self }
    }
}

const fn section(path: &'static str, what: &'static str, keys: &'static [Key]) -> Section {
    same_by(Identity::Place, path, what, keys)
}
const fn same_by(identity: Identity, path: &'static str, what: &'static str, keys: &'static [Key]) -> Section {
    Section { path, what, identity, keys, mistaken: &[] }
}
const fn yes(name: &'static str, shape: Shape, does: &'static str) -> Key {
    Key { name, class: Class::Honoured(does), shape }
}
const fn idle(name: &'static str, shape: Shape, why: &'static str) -> Key {
    Key { name, class: Class::NoEffect(why), shape }
}
const fn image(name: &'static str, shape: Shape, does: &'static str) -> Key {
    Key { name, class: Class::Image(does), shape }
}
const fn no(name: &'static str, shape: Shape, why: &'static str, instead: &'static str) -> Key {
    Key { name, class: Class::Refused { why, instead }, shape }
}

const TEXT: Shape = Shape::One(Kind::Text);
const BOOL: Shape = Shape::One(Kind::Bool);
const INT: Shape = Shape::One(Kind::Int);
const FLOAT: Shape = Shape::One(Kind::Float);
const BYTES: Shape = Shape::One(Kind::Bytes);
const DURATION: Shape = Shape::One(Kind::Duration);
const PATH: Shape = Shape::One(Kind::Path);
const MODE: Shape = Shape::One(Kind::Mode);
const TEXTS: Shape = Shape::List(Kind::Text, Repeats::Kept);
const SET: Shape = Shape::List(Kind::Text, Repeats::Dropped);
const ONE_OR_SET: Shape = Shape::OneOrList(Kind::Text, Repeats::Dropped);
const PAIRS: Shape = Shape::Pairs(Pairs::Equals);

const REMOVE: &str = "remove it";
const LABELS: &str = "labels are for engines and their tools";
const ONE_MACHINE: &str = "it is about a cluster, and a stack runs on one machine";
const BRIDGE: &str = "there is no bridge: a network is a group of services that may reach each other";
const ADDRESSES: &str = "private addresses are given by Palisade, and peers find each other by name";
const WINDOWS: &str = "it is for Windows";

/// Everything, in the order of the documentation.
pub static TABLE: &[&Section] = &[
    &TOP,
    &INCLUDE,
    &SERVICE,
    &BUILD,
    &BUILD_SECRET,
    &EXTENDS,
    &ENV_FILE,
    &SERVICE_NETWORK,
    &PORT,
    &DEPENDENCY,
    &HEALTHCHECK,
    &DEPLOY,
    &RESOURCES,
    &RESOURCE_LIMITS,
    &RESERVATIONS,
    &DEVICE_REQUEST,
    &GENERIC_RESOURCE,
    &DISCRETE_RESOURCE,
    &RESTART_POLICY,
    &UPDATE_CONFIG,
    &ROLLBACK_CONFIG,
    &PLACEMENT,
    &PREFERENCE,
    &MOUNT,
    &MOUNT_BIND,
    &MOUNT_VOLUME,
    &MOUNT_TMPFS,
    &MOUNT_IMAGE,
    &SERVICE_SECRET,
    &SERVICE_CONFIG,
    &LOGGING,
    &LOGGING_OPTIONS,
    &ULIMIT,
    &HOOK,
    &DEVICE,
    &BLKIO,
    &BLKIO_RATE,
    &BLKIO_WEIGHT,
    &CREDENTIAL_SPEC,
    &DEVELOP,
    &WATCH,
    &PROVIDER,
    &SERVICE_MODEL,
    &SERVICE_PALISADE,
    &PROCESS,
    &NETWORK,
    &IPAM,
    &IPAM_CONFIG,
    &VOLUME,
    &VOLUME_OPTIONS,
    &SECRET,
    &CONFIG,
    &EXTERNAL,
    &MODEL,
    &TOP_PALISADE,
    &ALLOW,
    &FIREWALL,
    &EDGE,
    &EDGE_ROUTE,
    &EDGE_RATE,
    &EDGE_CONNECTIONS,
    &EDGE_BAN,
    &EDGE_HSTS,
    &EDGE_PORTS,
    &EDGE_CERTIFICATE,
    &EDGE_ACME,
    &EDGE_DIRECTORY,
    &EDGE_EAB,
    &EDGE_TLS,
    &EDGE_ACCESS_LOG,
    &EDGE_LIMITS,
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_key_stands_twice() {
        let paths: BTreeSet<_> = TABLE.iter().map(|section| section.path).collect();
        assert_eq!(paths.len(), TABLE.len(), "two sections have one path");
        for section in TABLE {
            let names: BTreeSet<_> = section.keys.iter().map(|key| key.name).collect();
            assert_eq!(names.len(), section.keys.len(), "{}", section.path);
        }
    }

    #[test]
    fn every_section_that_a_key_leads_to_is_in_the_table() {
        for key in TABLE.iter().flat_map(|section| section.keys) {
            let section = match key.shape {
                Shape::Section(section)
                | Shape::Short(_, section)
                | Shape::Named(section)
                | Shape::NamedShort(_, section)
                | Shape::NamedOrList(section)
                | Shape::Items(_, section)
                | Shape::OneOrItems(_, section) => section,
                _ => continue,
            };
            assert!(TABLE.iter().any(|known| std::ptr::eq(*known, section)), "{} of `{}`", section.path, key.name);
        }
    }
}
