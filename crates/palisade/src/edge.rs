//! The edge beside a running stack: who takes requests is told to it, its reports become events and bans, and given
//! certificates are copied when they change.
//!
//! How it is spoken to is in `palisade_host::edge`, what it serves in `palisade_core::edge`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use palisade_core::address::{AddressBook, InstanceAddress};
use palisade_core::edge::{self as model, CertificateSource, Domain, Report, Settings, WorkerSettings};
use palisade_core::instance::InstanceSpec;
use palisade_core::policy::Policy;
use palisade_core::stack::Stack;
use palisade_edge::{acme, tls};
use palisade_guard::Guard;
use palisade_host::agent::EventSink;
use palisade_host::edge::{self, EdgeError, Teller};
use palisade_host::layout::Layout;
use serde_json::{Value, json};

use crate::exit::chain;
use crate::observe::pins;
use crate::state::State;

mod bans;
mod known;

use bans::Banned;
use known::{Kept, Told, since};

/// How often it is looked whether the edge knows who takes requests, besides when something happens.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is asked how it is.
const REPORT: Duration = Duration::from_secs(5);
/// How often it is looked whether given certificates have changed.
const COPY: Duration = Duration::from_secs(10);
/// How often it is told that clients are limited, or that there are too many.
const TELL_REFUSED: Duration = Duration::from_secs(60);
/// In an event that is about no domain in particular.
const EVERY_DOMAIN: &str = "*";
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
    let mut keeper = Keeper {
        layout,
        events,
        complained: BTreeMap::new(),
        kept: Kept::read(layout),
        banned: Banned::new(layout, events),
        reported: None,
        copied: None,
        served: None,
        told_refused: BTreeMap::new(),
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
    complained: BTreeMap<(&'static str, String), String>,
    kept: Kept,
    banned: Banned<'a>,
    reported: Option<Instant>,
    copied: Option<Instant>,
    /// Which files of given certificates the edge looked at last.
    served: Option<Vec<Written>>,
    /// When it was last told that an instance limits clients, or has no room for them, by its number.
    told_refused: BTreeMap<u8, Instant>,
}

/// A file that is replaced is another one: its inode, and when it became what it is.
type Written = (u64, i64, i64);

/// Domains whose certificates are ordered and that have none yet.
pub(crate) fn waiting(layout: &Layout, stack: &Stack) -> Vec<String> {
    let Some(edge) = &stack.edge else { return Vec::new() };
    let reports = edge::specs(layout).into_iter().filter_map(|(spec, _)| edge::look(layout, spec.id.number).ok()?);
    let served: BTreeSet<String> = reports.flat_map(|report| report.certificates.into_keys()).collect();
    let ordered = edge.certificates.iter().filter(|(_, source)| **source == CertificateSource::Acme);
    ordered.map(|(domain, _)| domain.clone()).filter(|domain| !served.contains(domain)).collect()
}

impl Keeper<'_> {
    fn look(&mut self) {
        let told = self.tell();
        self.say("edge_untold", "", told);
        self.pass_on();
        let due = |last: Option<Instant>, every| last.is_none_or(|last: Instant| last.elapsed() >= every);
        if due(self.reported, REPORT) {
            self.reported = Some(Instant::now());
            let mut ports = BTreeSet::new();
            for (spec, settings) in edge::specs(self.layout) {
                ports.extend([settings.edge.http_port, settings.edge.https_port]);
                let looked = self.report(&spec, &settings);
                self.say("edge_silent", &spec.id.to_string(), looked);
            }
            let banned = self.banned.keep(ports);
            self.say("ban_failed", "", banned);
        }
        if due(self.copied, COPY) {
            self.copied = Some(Instant::now());
            let copied = self.copy();
            self.say_of_certificates(EVERY_DOMAIN, copied);
        }
        let kept = self.kept.keep();
        self.say("events_not_kept", "", kept);
    }

    /// What is told about certificates becomes events of the stack.
    fn pass_on(&mut self) {
        for Told { kind, details } in self.kept.new_lines() {
            self.events.append(&kind, None, details);
        }
    }

    /// What goes wrong is said once, and said again when it is something else.
    fn say(&mut self, kind: &'static str, about: &str, result: Result<(), String>) {
        self.say_with(kind, about, result, |message| json!({ "error": message }));
    }

    /// The same of a domain's certificate, as its worker would say it.
    fn say_of_certificates(&mut self, domain: &str, result: Result<(), String>) {
        let details = |text: &str| json!({ "domain": domain, "why": "given", "text": text });
        self.say_with("certificate_failed", domain, result, details);
    }

    fn say_with(
        &mut self,
        kind: &'static str,
        about: &str,
        result: Result<(), String>,
        details: impl FnOnce(&str) -> Value,
    ) {
        let key = (kind, about.to_owned());
        match result {
            Ok(()) => drop(self.complained.remove(&key)),
            Err(message) if self.complained.get(&key) != Some(&message) => {
                self.events.append(kind, None, details(&message));
                self.complained.insert(key, message);
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
        let has_room = self.banned.has_room();
        let asked = if has_room { edge::report(self.layout, number) } else { edge::look(self.layout, number) };
        let Some(report) = asked.map_err(|error| chain(&error))? else {
            // Its counters begin anew.
            self.kept.forget(number);
            return Ok(());
        };
        let seen = self.kept.seen(number);
        for (domain, ends_s) in &report.certificates {
            if seen.certificates.get(domain) != Some(ends_s) {
                let ends = json!({ "domain": domain, "ends_s": ends_s });
                self.events.append("certificate_served", Some(&spec.id), ends);
            }
        }
        seen.certificates.clone_from(&report.certificates);
        if self.told_refused.get(&number).is_none_or(|told| told.elapsed() >= TELL_REFUSED) {
            let mut refused = Vec::new();
            if let Some(reset) = since(&mut seen.reset, report.reset) {
                let limit = settings.edge.limits.connections;
                refused.push(("overloaded", json!({ "limit": limit, "reset": reset })));
            }
            if let Some(times) = since(&mut seen.starved, report.starved) {
                refused.push(("starved", json!({ "times": times })));
            }
            // A look doesn't say who was limited: that is told, and bans, once those are judged who wait for it.
            if has_room {
                for (route, new) in seen.newly_limited(&report) {
                    let clients = clients(&report, &route);
                    refused.push(("limited", json!({ "route": route, "refused": new, "clients": clients })));
                }
                seen.limited.clone_from(&report.limited);
            }
            for (kind, details) in refused {
                self.told_refused.insert(number, Instant::now());
                self.events.append(kind, Some(&spec.id), details);
            }
        }
        if !has_room {
            return Ok(());
        }
        self.banned.told(&spec.id, &settings.edge.trusted_proxies, &report.to_ban);
        Ok(())
    }

    /// Copies given certificates that have changed, and has the edge look at them. One that is spoilt holds up no other.
    fn copy(&mut self) -> Result<(), String> {
        let state = State::read(self.layout).map_err(|error| chain(&error))?;
        let Some(edge) = state.stack.as_ref().and_then(|stack| stack.edge.as_ref()) else { return Ok(()) };
        let is_given = |source: &CertificateSource| matches!(source, CertificateSource::Files { .. });
        let given: Vec<&Domain> =
            edge.certificates.iter().filter(|(_, source)| is_given(source)).map(|(domain, _)| domain).collect();
        if given.is_empty() {
            return Ok(());
        }
        let settings = worker_settings(self.layout, edge);
        let wrong = acme::copy_given(&settings).map_err(|error| chain(&error))?;
        for domain in &given {
            let wrong = wrong.iter().find(|wrong| wrong.domain == **domain);
            self.say_of_certificates(domain, wrong.map_or(Ok(()), |wrong| Err(wrong.text())));
        }
        // Whoever wrote them: an `up` that failed has written and told nobody.
        let written = given.iter().filter_map(|domain| written(&settings.folder.join(tls::file_of(domain)))).collect();
        if self.served.as_ref() == Some(&written) {
            return Ok(());
        }
        let told = edge::reload_certificates(self.layout).map_err(|error| chain(&error));
        if told.is_ok() {
            self.served = Some(written);
        }
        let details = |text: &str| json!({ "domain": EVERY_DOMAIN, "text": text });
        self.say_with("certificate_not_served", EVERY_DOMAIN, told, details);
        Ok(())
    }
}

fn written(file: &Path) -> Option<Written> {
    let metadata = fs::symlink_metadata(file).ok()?;
    Some((metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
}

/// Puts certificates in place that nobody has to be asked for. Returns which are served otherwise than they were given.
pub(crate) fn prepare(layout: &Layout, edge: &model::Edge) -> Result<Vec<acme::NotServed>, acme::EnsureError> {
    acme::prepare(&worker_settings(layout, edge))
}

fn worker_settings(layout: &Layout, edge: &model::Edge) -> WorkerSettings {
    let folders = [model::CERTIFICATES_VOLUME, model::AUTHORITIES_VOLUME].map(|volume| layout.volume(volume));
    let [folder, state] = folders;
    model::worker_settings(edge, Some((folder, state)))
}

/// Clients with the most refusals of those that were refused lately.
fn clients(report: &Report, route: &str) -> Vec<Value> {
    let mut of_route: Vec<_> = report.limited_clients.iter().filter(|client| client.route == route).collect();
    of_route.sort_by_key(|client| std::cmp::Reverse(client.times));
    let named = of_route.into_iter().take(CLIENTS_NAMED);
    named.map(|limited| json!({ "client": limited.client, "times": limited.times })).collect()
}
