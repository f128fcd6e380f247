//! The edge beside a running stack: who takes requests is told to it, its reports become events and bans, and given
//! certificates are copied when they change.
//!
//! How it is spoken to is in `palisade_host::edge`, what it serves in `palisade_core::edge`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use palisade_core::address::{AddressBook, InstanceAddress};
use palisade_core::edge::{self as model, CertificateSource, Report, Settings, ToBan};
use palisade_core::instance::InstanceSpec;
use palisade_core::network::Network;
use palisade_core::policy::Policy;
use palisade_core::stack::Stack;
use palisade_edge::acme;
use palisade_guard::Guard;
use palisade_host::agent::EventSink;
use palisade_host::edge::{self, EdgeError, Teller};
use palisade_host::firewall::bans::Bans;
use palisade_host::layout::Layout;
use palisade_host::sockets::{self, SocketProto, Which};
use serde::Deserialize;
use serde_json::json;

use crate::exit::chain;
use crate::observe::pins;
use crate::state::State;

/// How often it is looked whether the edge knows who takes requests, besides when something happens.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is asked how it is.
const REPORT: Duration = Duration::from_secs(5);
/// How often it is looked whether given certificates have changed.
const COPY: Duration = Duration::from_secs(10);
/// How often it is told that clients are limited.
const TELL_LIMITED: Duration = Duration::from_secs(60);
/// So many clients are named in an event.
const CLIENTS_NAMED: usize = 10;

/// Tells the edge, and leaves it for those of its instances that start later, who takes requests: as the guard has it.
/// `more`: what an instance that is about to start serves.
pub(crate) fn tell(
    layout: &Layout,
    guard: &Guard,
    addresses: &AddressBook,
    policy: Option<&Policy>,
    more: Option<&Settings>,
) -> Result<(), TellError> {
    let wanted = edge::upstreams_wanted(layout, more);
    if wanted.is_empty() {
        return Ok(());
    }
    let teller = Teller::lock(layout)?;
    let upstreams = model::upstreams(&wanted, addresses, &serving(policy), &guard.suspended()?);
    Ok(teller.set_upstreams(&upstreams)?)
}

fn serving(policy: Option<&Policy>) -> BTreeSet<InstanceAddress> {
    policy.into_iter().flat_map(|policy| &policy.services).flat_map(|service| &service.backends).copied().collect()
}

/// An instance of the edge was started: who obtains certificates is to know.
pub(crate) fn started(layout: &Layout) -> Result<(), TellError> {
    Ok(Teller::lock(layout)?.set_edges()?)
}

/// Who takes requests couldn't be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TellError {
    /// The guard couldn't be asked.
    #[error(transparent)]
    Guard(#[from] palisade_guard::GuardError),
    /// The edge couldn't be told.
    #[error(transparent)]
    Edge(#[from] EdgeError),
}

/// Looks after the stack's edge as long as the agent lives. `woken`: the guard was just told who is well.
pub(crate) fn look_after(layout: &Layout, events: &EventSink, woken: &Receiver<()>) {
    // What was there before is known from a former agent.
    let passed_on = fs::metadata(certificate_events(layout)).map_or(0, |metadata| metadata.len());
    let mut keeper = Keeper {
        layout,
        events,
        complained: BTreeMap::new(),
        passed_on,
        reported: None,
        copied: None,
        seen: BTreeMap::new(),
    };
    loop {
        if layout.edge().exists() {
            keeper.look();
        }
        if let Err(RecvTimeoutError::Disconnected) = woken.recv_timeout(LOOK) {
            std::thread::sleep(LOOK);
        }
    }
}

struct Keeper<'a> {
    layout: &'a Layout,
    events: &'a EventSink,
    /// What was said last about each thing that goes wrong.
    complained: BTreeMap<&'static str, String>,
    /// How much of what is told about certificates was passed on.
    passed_on: u64,
    reported: Option<Instant>,
    copied: Option<Instant>,
    /// By the instance's number.
    seen: BTreeMap<u8, Seen>,
}

/// A line about certificates.
#[derive(Deserialize)]
struct Told {
    kind: String,
    details: serde_json::Value,
}

/// So much of it is passed on at once.
const EVENTS_BYTES_MAX: u64 = 1 << 20;

fn certificate_events(layout: &Layout) -> PathBuf {
    layout.volume(model::AUTHORITIES_VOLUME).join("events.jsonl")
}

/// Domains whose certificates are ordered and that have none yet.
pub(crate) fn waiting(layout: &Layout, stack: &Stack) -> Vec<String> {
    let Some(edge) = &stack.edge else { return Vec::new() };
    let reports = edge::specs(layout).into_iter().filter_map(|(spec, _)| edge::look(layout, spec.id.number).ok()?);
    let served: BTreeSet<String> = reports.flat_map(|report| report.certificates.into_keys()).collect();
    let ordered = edge.certificates.iter().filter(|(_, source)| **source == CertificateSource::Acme);
    ordered.map(|(domain, _)| domain.clone()).filter(|domain| !served.contains(domain)).collect()
}

/// What an instance of the edge had reported when it was told last.
#[derive(Default)]
struct Seen {
    limited: BTreeMap<String, u64>,
    told: Option<Instant>,
    certificates: BTreeMap<String, u64>,
}

impl Keeper<'_> {
    fn look(&mut self) {
        let told = self.tell();
        self.say("edge_untold", told);
        self.pass_on();
        let due = |last: Option<Instant>, every| last.is_none_or(|last: Instant| last.elapsed() >= every);
        if due(self.reported, REPORT) {
            self.reported = Some(Instant::now());
            for (spec, settings) in edge::specs(self.layout) {
                let looked = self.report(&spec, &settings);
                self.say("edge_silent", looked);
            }
        }
        if due(self.copied, COPY) {
            self.copied = Some(Instant::now());
            let copied = self.copy();
            self.say("certificate_failed", copied);
        }
    }

    /// What is told about certificates becomes events of the stack.
    fn pass_on(&mut self) {
        let path = certificate_events(self.layout);
        // The folder belongs to whom the events come from: no link of his leads anywhere.
        let opened = File::options().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(path);
        let Ok(mut file) = opened else { return };
        let Ok(metadata) = file.metadata() else { return };
        // A file that is shorter was begun anew.
        let from = if metadata.len() < self.passed_on { 0 } else { self.passed_on };
        if !metadata.is_file() || metadata.len() == from {
            return;
        }
        let mut text = Vec::new();
        let read = file.seek(SeekFrom::Start(from)).and_then(|_| file.take(EVENTS_BYTES_MAX).read_to_end(&mut text));
        let Some(end) = text.iter().rposition(|byte| *byte == b'\n').filter(|_| read.is_ok()) else { return };
        self.passed_on = from + end as u64 + 1;
        for line in text[..end].split(|byte| *byte == b'\n') {
            let Ok(Told { kind, details }) = serde_json::from_slice::<Told>(line) else { continue };
            if kind.starts_with("certificate_") {
                self.events.append(&kind, None, details);
            }
        }
    }

    /// What goes wrong is said once, and said again when it is something else.
    fn say(&mut self, kind: &'static str, result: Result<(), String>) {
        match result {
            Ok(()) => drop(self.complained.remove(kind)),
            Err(message) if self.complained.get(kind) != Some(&message) => {
                self.events.append(kind, None, json!({ "error": message }));
                self.complained.insert(kind, message);
            }
            Err(_) => {}
        }
    }

    /// What was told last may be what isn't so any more, or nobody has answered.
    fn tell(&self) -> Result<(), String> {
        let wanted = edge::upstreams_wanted(self.layout, None);
        if wanted.is_empty() {
            return Ok(());
        }
        let Some(guard) = Guard::open(&pins(self.layout)).map_err(|error| chain(&error))? else { return Ok(()) };
        // Read under the lock: whoever changes the policy tells the edge himself, and must not be contradicted.
        let teller = Teller::lock(self.layout).map_err(|error| chain(&error))?;
        let state = State::read(self.layout).map_err(|error| chain(&error))?;
        let suspended = guard.suspended().map_err(|error| chain(&error))?;
        let upstreams = model::upstreams(&wanted, &state.addresses, &serving(state.policy.as_ref()), &suspended);
        if teller.is_told(&upstreams) {
            return teller.set_edges().map_err(|error| chain(&error));
        }
        teller.set_upstreams(&upstreams).map_err(|error| chain(&error))
    }

    fn report(&mut self, spec: &InstanceSpec, settings: &Settings) -> Result<(), String> {
        let number = spec.id.number;
        let Some(report) = edge::report(self.layout, number).map_err(|error| chain(&error))? else {
            // Its counters begin anew.
            self.seen.remove(&number);
            return Ok(());
        };
        let seen = self.seen.entry(number).or_default();
        for (domain, ends_s) in &report.certificates {
            if seen.certificates.get(domain) != Some(ends_s) {
                let ends = json!({ "domain": domain, "ends_s": ends_s });
                self.events.append("certificate_served", Some(&spec.id), ends);
            }
        }
        seen.certificates.clone_from(&report.certificates);
        if seen.told.is_none_or(|told| told.elapsed() >= TELL_LIMITED) {
            for (route, all) in &report.limited {
                let new = all.saturating_sub(seen.limited.get(route).copied().unwrap_or(0));
                if new > 0 {
                    seen.told = Some(Instant::now());
                    let limited = json!({ "route": route, "refused": new, "clients": clients(&report, route) });
                    self.events.append("limited", Some(&spec.id), limited);
                }
            }
            seen.limited.clone_from(&report.limited);
        }
        self.ban(spec, settings, &report.to_ban)
    }

    fn ban(&self, spec: &InstanceSpec, settings: &Settings, clients: &[ToBan]) -> Result<(), String> {
        if clients.is_empty() {
            return Ok(());
        }
        let operators = operators()
            .map_err(|error| format!("nobody is banned, as it can't be seen who operates this host: {error}"))?;
        let (mut banned, mut spared) = (Vec::new(), Vec::new());
        for client in clients {
            match why_spared(&client.client, &operators, &settings.edge.trusted_proxies) {
                Some(why) => spared.push((client, why)),
                None => banned.push((client.client, client.for_s)),
            }
        }
        let ports = BTreeSet::from([settings.edge.http_port, settings.edge.https_port]);
        Bans::new(self.layout).add(&ports, &banned).map_err(|error| chain(&error))?;
        for (client, for_s) in &banned {
            self.events.append("banned", Some(&spec.id), json!({ "client": client, "for_s": for_s }));
        }
        for (ToBan { client, .. }, why) in spared {
            self.events.append("not_banned", Some(&spec.id), json!({ "client": client, "because": why }));
        }
        Ok(())
    }

    /// Copies given certificates that have changed.
    fn copy(&self) -> Result<(), String> {
        let state = State::read(self.layout).map_err(|error| chain(&error))?;
        let Some(edge) = state.stack.as_ref().and_then(|stack| stack.edge.as_ref()) else { return Ok(()) };
        if !edge.certificates.values().any(|source| matches!(source, CertificateSource::Files { .. })) {
            return Ok(());
        }
        prepare(self.layout, edge).map_err(|error| chain(&error))?;
        edge::reload_certificates(self.layout).map_err(|error| chain(&error))
    }
}

/// Puts certificates in place that nobody has to be asked for.
pub(crate) fn prepare(layout: &Layout, edge: &model::Edge) -> Result<(), acme::EnsureError> {
    let folders = [model::CERTIFICATES_VOLUME, model::AUTHORITIES_VOLUME].map(|volume| layout.volume(volume));
    let [folder, state] = folders;
    acme::prepare(&model::worker_settings(edge, Some((folder, state))))
}

fn clients(report: &Report, route: &str) -> Vec<String> {
    let of_route = report.limited_clients.iter().filter(|client| client.route == route);
    of_route.take(CLIENTS_NAMED).map(|client| client.client.to_string()).collect()
}

/// From where somebody is logged in over SSH at this moment.
fn operators() -> Result<Vec<IpAddr>, String> {
    const ESTABLISHED: u8 = 1;
    let ports = sockets::ssh_ports(None).map_err(|error| chain(&error))?;
    let all = sockets::list(Which::All).map_err(|error| chain(&error))?;
    let sessions = all.iter().filter(|socket| {
        socket.proto == SocketProto::Tcp && socket.state == ESTABLISHED && ports.contains(&socket.local.port())
    });
    Ok(sessions.map(|socket| socket.remote.ip().to_canonical()).collect())
}

/// Why a client must not be banned.
fn why_spared(client: &Network, operators: &[IpAddr], proxies: &[Network]) -> Option<&'static str> {
    if client.address().to_canonical().is_loopback() {
        return Some("it is this host");
    }
    if operators.iter().any(|operator| client.contains(*operator)) {
        return Some("somebody is logged in from there over SSH");
    }
    let proxy = |proxy: &Network| proxy.contains(client.address()) || client.contains(proxy.address());
    proxies.iter().any(proxy).then_some("it is one of trusted_proxies")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_proxies_and_the_host_itself_are_never_banned() {
        let operators: Vec<IpAddr> = vec!["192.0.2.7".parse().unwrap(), "2001:db8:1:2::9".parse().unwrap()];
        let proxies: Vec<Network> = vec!["198.51.100.0/28".parse().unwrap(), "2001:db8:5::1".parse().unwrap()];
        let why = |client: &str| why_spared(&client.parse().unwrap(), &operators, &proxies);
        assert_eq!(why("192.0.2.8"), None);
        assert_eq!(why("2001:db8:1:3::/64"), None);
        assert_eq!(why("192.0.2.7"), Some("somebody is logged in from there over SSH"));
        assert_eq!(why("2001:db8:1:2::/64"), Some("somebody is logged in from there over SSH"));
        assert_eq!(why("198.51.100.9"), Some("it is one of trusted_proxies"));
        assert_eq!(why("2001:db8:5::/64"), Some("it is one of trusted_proxies"));
        assert_eq!(why("127.0.0.1"), Some("it is this host"));
        assert_eq!(why("::1"), Some("it is this host"));
    }
}
