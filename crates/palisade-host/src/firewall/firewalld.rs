//! firewalld, asked over D-Bus: ports of the zones that the host's interfaces are in, permanent and at once.
//!
//! Services, rich rules of others, policies and other zones are never changed; an audit compares them with the files.

use palisade_core::firewall::OpenPort;
use palisade_core::stack::PortProto;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use zbus::wire::{OwnedObjectPath, OwnedVariant};
use zbus::{Connection, Message, Variant};

use super::doors::{Doors, DoorsError};

const NAME: &str = "org.fedoraproject.FirewallD1";
const PATH: &str = "/org/fedoraproject/FirewallD1";
const ZONE: &str = "org.fedoraproject.FirewallD1.zone";
const CONFIG_PATH: &str = "/org/fedoraproject/FirewallD1/config";
const CONFIG: &str = "org.fedoraproject.FirewallD1.config";
const CONFIG_ZONE: &str = "org.fedoraproject.FirewallD1.config.zone";
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// A reload of thousands of rules takes it some seconds, and it answers nobody meanwhile.
const TIMEOUT_S: u64 = 20;

/// A connection to the firewalld of this network namespace.
pub(crate) struct Firewalld {
    runtime: tokio::runtime::Runtime,
    bus: Connection,
    /// Its process id.
    pid: u32,
}

/// Whether a firewalld looks after the calling thread's network namespace.
pub(super) fn runs() -> bool {
    let somewhere = std::env::var_os("DBUS_SYSTEM_BUS_ADDRESS").is_some() || Path::new(SYSTEM_BUS).exists();
    somewhere && Firewalld::connect().is_ok()
}

impl Firewalld {
    pub(crate) fn connect() -> Result<Self, DoorsError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| DoorsError::Away(Box::new(error.into())))?;
        let within = async { tokio::time::timeout(Duration::from_secs(TIMEOUT_S), Connection::system()).await };
        let bus = runtime.block_on(within).map_err(|_| DoorsError::Slow(TIMEOUT_S))?;
        let bus = bus.map_err(|error| DoorsError::Away(Box::new(error)))?;
        let mut firewalld = Self { runtime, bus, pid: 0 };
        // Asked of the bus itself, which doesn't start anything for it.
        let bus = "org.freedesktop.DBus";
        let asked = firewalld.ask(bus, "/org/freedesktop/DBus", bus, "GetConnectionUnixProcessID", &(NAME,));
        let asked = asked.map_err(|error| match error {
            // The bus is there, and nobody has the name.
            DoorsError::Refused { .. } => DoorsError::NotRunning,
            error => error,
        });
        let pid: u32 = body(&asked?)?;
        if !is_in_our_namespace(pid) {
            return Err(DoorsError::OtherNamespace);
        }
        firewalld.pid = pid;
        Ok(firewalld)
    }

    fn ask<B>(&self, to: &str, path: &str, interface: &str, method: &str, body: &B) -> Result<Message, DoorsError>
    where
        B: Serialize + zbus::wire::DynamicType,
    {
        let call = async {
            let call = self.bus.call_method(Some(to), path, Some(interface), method, body);
            tokio::time::timeout(Duration::from_secs(TIMEOUT_S), call).await
        };
        match self.runtime.block_on(call) {
            Err(_) => Err(DoorsError::Slow(TIMEOUT_S)),
            Ok(Ok(message)) => Ok(message),
            Ok(Err(zbus::Error::MethodError(_, message, _))) => {
                Err(DoorsError::Refused { what: method.to_owned(), message: message.unwrap_or_default() })
            }
            Ok(Err(error)) => Err(DoorsError::Away(Box::new(error))),
        }
    }

    /// As it is now.
    fn zone<B: Serialize + zbus::wire::DynamicType>(&self, method: &str, body: &B) -> Result<Message, DoorsError> {
        self.ask(NAME, PATH, ZONE, method, body)
    }

    /// As it will be when it is loaded anew.
    fn permanent_zone<B>(&self, zone: &str, method: &str, asked: &B) -> Result<Message, DoorsError>
    where
        B: Serialize + zbus::wire::DynamicType,
    {
        let path: OwnedObjectPath = body(&self.ask(NAME, CONFIG_PATH, CONFIG, "getZoneByName", &(zone,))?)?;
        self.ask(NAME, path.as_str(), CONFIG_ZONE, method, asked)
    }

    /// Its zone lets everything in, or is that of bridges whose guests it is about.
    fn needs_ports(&self, zone: &str, interfaces: &[String]) -> Result<bool, DoorsError> {
        let real: Vec<_> = interfaces.iter().filter(|name| !is_bridge_of_guests(name)).collect();
        if real.is_empty() {
            return Ok(false);
        }
        let path: OwnedObjectPath = body(&self.ask(NAME, CONFIG_PATH, CONFIG, "getZoneByName", &(zone,))?)?;
        let settings = self.ask(NAME, path.as_str(), CONFIG_ZONE, "getSettings2", &())?;
        let settings: Settings = body(&settings)?;
        let target = settings.get("target").and_then(|target| <&str>::try_from(&**target).ok()).unwrap_or("default");
        Ok(target != "ACCEPT")
    }
}

/// Settings of a zone, by firewalld's own words.
type Settings = BTreeMap<String, OwnedVariant>;

impl Firewalld {
    /// Where its user's settings are.
    fn settings_folder(&self) -> std::path::PathBuf {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let mut words = line.split('\0').skip_while(|word| *word != "--system-config");
        words.nth(1).filter(|folder| !folder.is_empty()).unwrap_or("/etc/firewalld").into()
    }

    /// Zones of the host's interfaces that have this very port, now and permanently: not in a range or by a service.
    pub(super) fn zones_with(&self, port: PortProto) -> Result<Vec<String>, DoorsError> {
        let entry = vec![port.port.to_string(), port.proto.to_string()];
        let mut found = Vec::new();
        for zone in self.zones()? {
            let now: Vec<Vec<String>> = body(&self.zone("getPorts", &(zone.as_str(),))?)?;
            let permanent: Vec<(String, String)> = body(&self.permanent_zone(&zone, "getPorts", &())?)?;
            let kept = permanent.iter().any(|(number, proto)| [number, proto] == [&entry[0], &entry[1]]);
            if kept && now.contains(&entry) {
                found.push(zone);
            }
        }
        Ok(found)
    }

    /// In what its files differ from what is in force: zones, what is set in them, and which interfaces they are for.
    pub(crate) fn differences(&self) -> Result<Vec<String>, DoorsError> {
        let names: Vec<String> = body(&self.zone("getZones", &())?)?;
        let mut now = BTreeMap::new();
        for name in names {
            let settings: Settings = body(&self.zone("getZoneSettings2", &(name.as_str(),))?)?;
            now.insert(name, settings);
        }
        let paths: Vec<OwnedObjectPath> = body(&self.ask(NAME, CONFIG_PATH, CONFIG, "listZones", &())?)?;
        let mut permanent = BTreeMap::new();
        let properties = "org.freedesktop.DBus.Properties";
        let zones = self.settings_folder().join("zones");
        let mut not_seen = Vec::new();
        for path in paths {
            let property = |key: &str| -> Result<String, DoorsError> {
                let value: OwnedVariant =
                    body(&self.ask(NAME, path.as_str(), properties, "Get", &(CONFIG_ZONE, key))?)?;
                Ok(<&str>::try_from(&*value).unwrap_or_default().to_owned())
            };
            let (name, folder) = (property("name")?, property("path")?);
            // It watches its files, and misses one that takes the place of its package's.
            let file = zones.join(format!("{name}.xml"));
            if Path::new(&folder) != zones && file.exists() {
                not_seen
                    .push(format!("zone {name} is in force as it came with firewalld, and {} isn't", file.display()));
            }
            let settings: Settings = body(&self.ask(NAME, path.as_str(), CONFIG_ZONE, "getSettings2", &())?)?;
            permanent.insert(name, settings);
        }
        let mut found = compare(&now, &permanent);
        found.extend(not_seen);
        let default: String = body(&self.ask(NAME, PATH, NAME, "getDefaultZone", &())?)?;
        let written = self.ask(NAME, CONFIG_PATH, properties, "Get", &(CONFIG, "DefaultZone"))?;
        let written: OwnedVariant = body(&written)?;
        if let Ok(written) = <&str>::try_from(&*written)
            && written != default
        {
            found.push(format!("the default zone is {default} in force, and {written} in the files"));
        }
        Ok(found)
    }
}

fn compare(now: &BTreeMap<String, Settings>, permanent: &BTreeMap<String, Settings>) -> Vec<String> {
    let mut found = Vec::new();
    let items = |all: &BTreeMap<String, Settings>, zone: &str| all.get(zone).map(items).unwrap_or_default();
    let zones: BTreeSet<&String> = now.keys().chain(permanent.keys()).collect();
    for zone in zones {
        let interfaces = now.get(zone).map(interfaces).unwrap_or_default();
        let of = if interfaces.is_empty() { String::new() } else { format!(" ({})", interfaces.join(", ")) };
        match (now.contains_key(zone), permanent.contains_key(zone)) {
            (true, false) => found.push(format!("zone {zone}{of} is in force and not in the files")),
            (false, true) => found.push(format!("zone {zone} is in the files and not in force")),
            _ => {
                let (live, kept) = (items(now, zone), items(permanent, zone));
                let only = |what: &str, item: &String| format!("{what}, zone {zone}{of}: {item}");
                found.extend(live.difference(&kept).map(|item| only("in force and not in the files", item)));
                found.extend(kept.difference(&live).map(|item| only("in the files and not in force", item)));
            }
        }
    }
    // Which zone an interface without a place in the files goes to is others' business (NetworkManager's, for one).
    for (zone, interface) in
        permanent.iter().flat_map(|(zone, it)| interfaces(it).into_iter().map(move |interface| (zone, interface)))
    {
        let live = now.iter().find(|(_, settings)| interfaces(settings).contains(&interface));
        if let Some((other, _)) = live.filter(|(other, _)| *other != zone) {
            found.push(format!("interface {interface} is in zone {other} in force, and in zone {zone} in the files"));
        }
    }
    found
}

fn interfaces(settings: &Settings) -> Vec<String> {
    let all = settings.get("interfaces").map(|value| words("", value)).unwrap_or_default();
    all.into_iter().map(|word| word.trim().to_owned()).collect()
}

/// Everything that is set in a zone, one thing a line. What is empty, or switched off, isn't there.
fn items(settings: &Settings) -> BTreeSet<String> {
    const NO_SETTINGS: [&str; 4] = ["version", "short", "description", "interfaces"];
    let each = settings.iter().filter(|(key, _)| !NO_SETTINGS.contains(&key.as_str()));
    each.flat_map(|(key, value)| words(if key == "rules_str" { "" } else { key }, value)).collect()
}

fn words(key: &str, value: &Variant<'_>) -> Vec<String> {
    let word = |text: &str| if key.is_empty() { text.to_owned() } else { format!("{key} {text}") };
    match value {
        Variant::Bool(true) => vec![key.to_owned()],
        // `{chain}_{zone}` is what the target `default` is called inside.
        Variant::Str(text) if ["", "default", "{chain}_{zone}"].contains(&text.as_str()) => Vec::new(),
        Variant::Str(text) => vec![word(text)],
        Variant::I32(number) if *number != 0 => vec![word(&number.to_string())],
        Variant::Variant(inner) => words(key, inner),
        Variant::Array(all) => all.inner().iter().flat_map(|one| words(key, one)).collect(),
        Variant::Structure(fields) => {
            let fields = fields.fields().iter().flat_map(|field| words("", field));
            vec![word(&fields.collect::<Vec<_>>().join("/"))]
        }
        _ => Vec::new(),
    }
}

impl Doors for Firewalld {
    fn zones(&self) -> Result<BTreeSet<String>, DoorsError> {
        let active = self.zone("getActiveZones", &())?;
        let active: BTreeMap<String, BTreeMap<String, Vec<String>>> = body(&active)?;
        let mut zones: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (zone, mut of) in active {
            // A zone of source addresses only is for those who are treated apart, perhaps because they are banned.
            zones.insert(zone, of.remove("interfaces").unwrap_or_default());
        }
        let assigned: BTreeSet<&String> = zones.values().flatten().collect();
        let all = crate::link::interfaces().unwrap_or_default();
        let others = all.into_iter().filter(|interface| !interface.loopback).map(|interface| interface.name);
        let others: Vec<String> = others.filter(|name| !assigned.contains(name)).collect();
        if !others.is_empty() {
            let default: String = body(&self.ask(NAME, PATH, NAME, "getDefaultZone", &())?)?;
            zones.entry(default).or_default().extend(others);
        }
        let mut needed = BTreeSet::new();
        for (zone, interfaces) in zones {
            if self.needs_ports(&zone, &interfaces)? {
                needed.insert(zone);
            }
        }
        Ok(needed)
    }

    fn is_open(&self, zone: &str, door: &OpenPort) -> Result<bool, DoorsError> {
        let (port, proto) = (door.port.to_string(), door.proto.to_string());
        let (now, permanent) = match rich_rule(door) {
            Some(rule) => (
                self.zone("queryRichRule", &(zone, rule.as_str()))?,
                self.permanent_zone(zone, "queryRichRule", &(rule.as_str(),))?,
            ),
            None => (
                self.zone("queryPort", &(zone, port.as_str(), proto.as_str()))?,
                self.permanent_zone(zone, "queryPort", &(port.as_str(), proto.as_str()))?,
            ),
        };
        Ok(body::<bool>(&now)? && body::<bool>(&permanent)?)
    }

    fn open(&self, zone: &str, door: &OpenPort) -> Result<(), DoorsError> {
        let (port, proto) = (door.port.to_string(), door.proto.to_string());
        let what = format!("open {port}/{proto} in zone {zone}");
        let (now, permanent) = match rich_rule(door) {
            Some(rule) => (
                self.zone("addRichRule", &(zone, rule.as_str(), 0_i32)),
                self.permanent_zone(zone, "addRichRule", &(rule.as_str(),)),
            ),
            None => (
                self.zone("addPort", &(zone, port.as_str(), proto.as_str(), 0_i32)),
                self.permanent_zone(zone, "addPort", &(port.as_str(), proto.as_str())),
            ),
        };
        unless(now, "ALREADY_ENABLED", &what)?;
        unless(permanent, "ALREADY_ENABLED", &what)
    }

    fn close(&self, zone: &str, door: &OpenPort) -> Result<(), DoorsError> {
        let (port, proto) = (door.port.to_string(), door.proto.to_string());
        let what = format!("close {port}/{proto} in zone {zone}");
        let (now, permanent) = match rich_rule(door) {
            Some(rule) => (
                self.zone("removeRichRule", &(zone, rule.as_str())),
                self.permanent_zone(zone, "removeRichRule", &(rule.as_str(),)),
            ),
            None => (
                self.zone("removePort", &(zone, port.as_str(), proto.as_str())),
                self.permanent_zone(zone, "removePort", &(port.as_str(), proto.as_str())),
            ),
        };
        for answer in [now, permanent] {
            // A zone that is gone has no port open.
            unless(unless(answer.map(drop), "INVALID_ZONE", &what), "NOT_ENABLED", &what)?;
        }
        Ok(())
    }
}

/// For a port of one address, which firewalld has no shorter word for.
fn rich_rule(door: &OpenPort) -> Option<String> {
    let ip = door.host_ip?;
    let family = if ip.is_ipv4() { "ipv4" } else { "ipv6" };
    let OpenPort { port, proto, .. } = door;
    Some(format!(
        "rule family=\"{family}\" destination address=\"{ip}\" port port=\"{port}\" protocol=\"{proto}\" accept"
    ))
}

/// An answer that says that nothing had to be done is as good.
fn unless<T>(answer: Result<T, DoorsError>, harmless: &str, doing: &str) -> Result<(), DoorsError> {
    match answer {
        Err(DoorsError::Refused { message, .. }) if message.starts_with(harmless) => Ok(()),
        Err(DoorsError::Refused { message, .. }) => Err(DoorsError::Refused { what: doing.to_owned(), message }),
        answer => answer.map(drop),
    }
}

fn body<T>(message: &Message) -> Result<T, DoorsError>
where
    T: for<'a> zbus::wire::DynamicDeserialize<'a>,
{
    message.body().deserialize().map_err(|error| DoorsError::Away(Box::new(error)))
}

/// Guests of Docker and libvirt are reached by forwarding, which local ports have nothing to do with.
fn is_bridge_of_guests(interface: &str) -> bool {
    let named = ["docker", "br-", "virbr", "veth"].iter().any(|prefix| interface.starts_with(prefix));
    named && !interface.starts_with("br-lan")
}

fn is_in_our_namespace(pid: u32) -> bool {
    let inode = |path: &str| fs::metadata(path).map(|metadata| metadata.ino()).ok();
    // Only root may look; whoever isn't changes nothing either.
    let theirs = inode(&format!("/proc/{pid}/ns/net"));
    theirs.is_none() || theirs == inode("/proc/thread-self/ns/net")
}
