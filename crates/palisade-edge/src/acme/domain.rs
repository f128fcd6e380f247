//! One look at one domain: is its certificate as it should be, and what is done if it isn't.

use palisade_core::edge::{Acme, AcmeDirectory, WorkerSettings};
use rustls::crypto::aws_lc_rs;
use serde_json::{Value, json};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::time::Duration;

use super::account;
use super::check::{self, Seen};
use super::client::Https;
use super::events::{Events, rfc3339};
use super::memory::{Issued, Memory};
use super::order::{self, Attempt, Obtained, OrderError, now_s};
use super::schedule::{self, Trouble, Window};
use super::{Outcome, served, store};
use crate::chain;
use crate::tls::{self, Facts};

/// How often and how long the edge is given to serve what it was told of.
const SERVED_TRIES: u32 = 10;
const SERVED_PAUSE: Duration = Duration::from_millis(300);

pub(super) struct Look<'a> {
    settings: &'a WorkerSettings,
    domain: &'a str,
    file: PathBuf,
    events: Events,
    memory: Memory,
    is_written: bool,
}

/// What is in the domain's file, if it is of use.
struct Present {
    facts: Facts,
    /// DER.
    leaf: Vec<u8>,
}

impl<'a> Look<'a> {
    pub(super) fn new(settings: &'a WorkerSettings, domain: &'a str, unwritten: Option<Memory>) -> Self {
        let file = settings.folder.join(tls::file_of(domain));
        let events = Events::in_folder(&settings.state);
        let memory = unwritten.unwrap_or_else(|| Memory::read(&settings.state, domain)).by_this_clock(now_s());
        Self { settings, domain, file, events, memory, is_written: true }
    }

    /// What couldn't be written of it, for the next look.
    pub(super) fn unwritten(self) -> Option<Memory> {
        Some(self.memory).filter(|_| !self.is_written)
    }

    /// Of a certificate that others put in place: is it served?
    pub(super) async fn settled(&mut self, renewed: bool) -> Outcome {
        let present = match self.present() {
            Ok(present) => present,
            Err(text) => return Outcome::Impossible(text),
        };
        let renew_s = schedule::renew_s(&present.facts, None);
        self.make_served(&present.leaf, renewed).await;
        self.warn(Some(&present.facts));
        self.keep();
        if renewed { Outcome::Obtained { renew_s } } else { Outcome::Kept { renew_s } }
    }

    /// Of a certificate that is ordered. `asked`: now, from whichever authority hasn't refused it.
    pub(super) async fn outcome(&mut self, asked: bool) -> Outcome {
        let Some(acme) = &self.settings.acme else {
            return Outcome::Impossible("there is no authority to order from".to_owned());
        };
        if self.domain.starts_with("*.") {
            return Outcome::Impossible(format!(
                "a certificate for {} can be ordered only with dns-01 (RFC 8555, section 8.4), which isn't spoken: give it as files, or name each domain",
                self.domain
            ));
        }
        self.memory.asks_with(asked_with(acme));
        let present = self.present().ok();
        if let Some(present) = &present {
            self.ask_window(acme, present).await;
            self.make_served(&present.leaf, false).await;
        }
        self.warn(present.as_ref().map(|present| &present.facts));
        let now = now_s();
        let outcome = match present.as_ref().and_then(|present| self.good_until(acme, present)) {
            Some(renew_s) if renew_s > now => Outcome::Kept { renew_s },
            _ if schedule::waits(self.memory.again_s, now) && !(asked && self.may_ask_anybody(acme)) => {
                Outcome::Waiting { text: self.memory.text.clone(), again_s: self.memory.again_s }
            }
            _ => self.attempt(acme, present.as_ref()).await,
        };
        self.keep();
        outcome
    }

    fn present(&self) -> Result<Present, String> {
        let (key, facts) =
            tls::read(&self.file, self.domain, &aws_lc_rs::default_provider()).map_err(|error| chain(&error))?;
        let leaf = key.cert.first().map(|leaf| leaf.to_vec()).unwrap_or_default();
        Ok(Present { facts, leaf })
    }

    /// When what is there is to be renewed. `None`: it isn't what was asked for.
    fn good_until(&self, acme: &Acme, present: &Present) -> Option<u64> {
        // A certificate of the stack's own authority, or of an authority that the file doesn't name any more, is to be replaced.
        let issued = self.memory.issued.as_ref().filter(|issued| issued.serial == present.facts.serial)?;
        acme.directories.iter().find(|directory| directory.url == issued.directory)?;
        let renew_s = schedule::renew_s(&present.facts, self.memory.window.as_ref());
        Some(schedule::unhurried_s(&present.facts, renew_s, self.memory.hurried_s))
    }

    fn issuer<'b>(&self, acme: &'b Acme, present: &Present) -> Option<&'b AcmeDirectory> {
        let issued = self.memory.issued.as_ref().filter(|issued| issued.serial == present.facts.serial)?;
        acme.directories.iter().find(|directory| directory.url == issued.directory)
    }

    /// Asks the authority when it wants the certificate renewed, if it is time to ask and it has an opinion (RFC 9773).
    async fn ask_window(&mut self, acme: &Acme, present: &Present) {
        let serial = &present.facts.serial;
        let known = self.memory.window.as_ref().filter(|window| window.serial == *serial);
        let silent = self.memory.silent.as_ref().filter(|(of, _)| of == serial).map(|(_, look_s)| *look_s);
        if known.map(|window| window.look_s).max(silent).is_some_and(|look_s| schedule::waits(look_s, now_s())) {
            return;
        }
        let Some(directory) = self.issuer(acme, present) else { return };
        let Some(named) = order::identifier(&present.leaf) else { return };
        let asked = async {
            let client = Https::new(directory.root.as_deref()).ok()?;
            let account = account::open(&self.settings.state, directory, acme.email.as_deref(), &client).await.ok()?;
            account.renewal_info(&named).await.ok()
        };
        // Whoever doesn't answer has no opinion for now; the old one stands.
        let Some((info, look_in)) = asked.await else {
            self.memory.silent = Some((serial.clone(), now_s() + schedule::LOOK_S_MAX));
            return;
        };
        let seconds = |time: i64| u64::try_from(time).unwrap_or(0);
        let (start_s, end_s) = (
            seconds(info.suggested_window.start.unix_timestamp()),
            seconds(info.suggested_window.end.unix_timestamp()),
        );
        let chance = store::random();
        let mut window = Window::choose(serial, start_s, end_s, look_in.as_secs(), now_s(), chance);
        // The moment stays as long as it lies in the window.
        if let Some(known) = known.filter(|known| (start_s..=end_s).contains(&known.renew_s)) {
            window.renew_s = known.renew_s;
        } else if known.is_some() || start_s <= now_s() {
            let details = json!({ "window": [rfc3339(start_s), rfc3339(end_s)], "reason": info.explanation_url });
            self.events.tell("certificate_window_changed", self.domain, details, now_s());
        }
        self.memory.window = Some(window);
    }

    async fn attempt(&mut self, acme: &Acme, present: Option<&Present>) -> Outcome {
        if self.memory.is_cut_short(&acme.directories) {
            return self.failed(
                acme,
                Trouble::Host,
                "several attempts were cut short: is the process killed?".to_owned(),
            );
        }
        self.memory.begin();
        // What can't be noted would be done again and again, and what can't be kept would be lost.
        let folders = [&self.settings.state, &self.settings.folder];
        let noted = self.memory.write(&self.settings.state, self.domain, now_s());
        let room = noted.and_then(|()| folders.into_iter().try_for_each(|folder| store::room(folder)));
        if let Err(error) = room {
            return self.failed(acme, Trouble::Host, chain(&error));
        }
        match check::look(self.settings, acme.challenge, self.domain).await {
            Ok(Seen::Ours) => {}
            Ok(Seen::Unknown(text)) => self.tell("certificate_check_unsure", json!({ "text": text })),
            Ok(Seen::NotOurs(text)) => return self.failed(acme, Trouble::Check, text),
            Err(error) => return self.failed(acme, Trouble::Host, chain(&error)),
        }
        let mut worst: Option<OrderError> = None;
        // What is on its way is gone on with before anything else is ordered.
        let mut directories: Vec<&AcmeDirectory> = acme.directories.iter().collect();
        directories.sort_by_key(|directory| !self.memory.orders.contains_key(&directory.url));
        for directory in directories {
            if self.memory.left_alone_s(directory, now_s()) > 0 {
                continue;
            }
            let issuer = present.filter(|present| self.issuer(acme, present) == Some(directory));
            let has_window = self.memory.window.is_some();
            let replaces = issuer.filter(|_| has_window).map(|present| present.leaf.as_slice());
            let attempt = Attempt { settings: self.settings, acme, domain: self.domain, replaces };
            let (result, again_s) = attempt.at(directory, &mut self.memory).await;
            match result {
                Ok(obtained) => return self.obtained(acme, directory, obtained, present).await,
                Err(error) => {
                    let details = json!({ "directory": directory.url, "error": chain(&error) });
                    self.tell("certificate_refused", details);
                    if let Some(again_s) = again_s {
                        let until_s = schedule::demanded_s(again_s, now_s());
                        self.memory.blocked.insert(directory.url.clone(), until_s);
                    }
                    let (everywhere, is_refused) = (error.is_everywhere(), error.trouble() == Trouble::Refused);
                    if is_refused {
                        self.refused_by(if everywhere { &acme.directories } else { std::slice::from_ref(directory) });
                    }
                    if worst.is_none() || is_refused {
                        worst = Some(error);
                    }
                    if everywhere {
                        break;
                    }
                }
            }
        }
        match worst {
            Some(error) => self.failed(acme, error.trouble(), chain(&error)),
            None => self.failed(acme, Trouble::Check, "every authority has asked to be left alone for now".to_owned()),
        }
    }

    fn may_ask_anybody(&self, acme: &Acme) -> bool {
        acme.directories.iter().any(|directory| self.memory.left_alone_s(directory, now_s()) == 0)
    }

    /// These said no, or would: they are left alone for a while, also when somebody asks.
    fn refused_by(&mut self, directories: &[AcmeDirectory]) {
        let failures = self.memory.failures.saturating_add(1);
        let until_s = now_s() + schedule::pause_s(Trouble::Refused, failures, store::random());
        self.memory.refused.extend(directories.iter().map(|directory| (directory.url.clone(), until_s)));
    }

    async fn obtained(
        &mut self,
        acme: &Acme,
        directory: &AcmeDirectory,
        obtained: Obtained,
        before: Option<&Present>,
    ) -> Outcome {
        let Obtained { pem, facts } = obtained;
        if let Err(error) = store::replace(&self.file, pem.as_bytes(), super::owner(self.settings)) {
            // The order stays noted: the next attempt fetches the same certificate.
            return self.failed(acme, Trouble::Host, chain(&error));
        }
        let is_early = |before: &Present| schedule::renew_s(&before.facts, None) > now_s();
        if self.memory.window.is_some() && before.is_some_and(is_early) {
            self.memory.hurried_s = Some(now_s());
        }
        self.memory.succeeded(Issued { directory: directory.url.clone(), serial: facts.serial.clone() });
        self.keep();
        let renew_s = schedule::renew_s(&facts, None);
        let details = json!({
            "directory": directory.url,
            "serial": facts.serial,
            "not_after": rfc3339(facts.not_after_s),
            "renewed_at": rfc3339(renew_s),
        });
        self.tell("certificate_obtained", details);
        if let Ok(present) = self.present() {
            self.make_served(&present.leaf, true).await;
        }
        Outcome::Obtained { renew_s }
    }

    fn failed(&mut self, acme: &Acme, trouble: Trouble, text: String) -> Outcome {
        self.memory.failures = self.memory.failures.saturating_add(1);
        let now_s = now_s();
        let free_s = acme.directories.iter().map(|directory| self.memory.left_alone_s(directory, now_s)).min();
        // Who has refused is left alone; who couldn't be reached is asked again as soon as if nobody had refused.
        let pauses = if trouble == Trouble::Refused && free_s == Some(0) { Trouble::Unreachable } else { trouble };
        let pause_s = schedule::pause_s(pauses, self.memory.failures, store::random());
        let again_s = (now_s + pause_s).max(free_s.unwrap_or(0));
        self.memory.failed(text.clone(), again_s);
        let details =
            json!({ "why": trouble, "text": text, "again": rfc3339(again_s), "failures": self.memory.failures });
        self.tell("certificate_failed", details);
        self.keep();
        Outcome::Waiting { text, again_s }
    }

    /// Makes sure that each edge serves what is in the file; it is told if it doesn't, or if the file is new.
    async fn make_served(&mut self, leaf: &[u8], is_new: bool) {
        let mut wrong = None;
        for edge in &self.settings.edges {
            let mut seen = if is_new { Some(String::new()) } else { served::wrong(edge, self.domain, leaf).await };
            for _ in 0..SERVED_TRIES {
                if seen.is_none() {
                    break;
                }
                let told = served::tell(&edge.control).await;
                seen = served::wrong(edge, self.domain, leaf).await;
                if let (Some(text), Err(error)) = (&mut seen, told) {
                    text.push_str(&format!("; it can't be told over {}: {error}", edge.control.display()));
                }
                if seen.is_some() {
                    tokio::time::sleep(SERVED_PAUSE).await;
                }
            }
            wrong = wrong.or(seen);
        }
        // Said when it begins and when it ends, not at each look.
        match (&wrong, &self.memory.unserved) {
            (Some(text), before) if before.as_ref() != Some(text) => {
                self.tell("certificate_not_served", json!({ "text": text }))
            }
            (None, Some(_)) => self.tell("certificate_served", json!({})),
            (None, None) if is_new && !self.settings.edges.is_empty() => self.tell("certificate_served", json!({})),
            _ => {}
        }
        self.memory.unserved = wrong;
    }

    /// Warns while a certificate comes nearer to its end than it should.
    fn warn(&mut self, facts: Option<&Facts>) {
        let Some(facts) = facts else { return };
        let now = now_s();
        let level = schedule::alarm(facts, now);
        let told = self.memory.warned.filter(|(end_s, _)| *end_s == facts.not_after_s).map_or(0, |(_, level)| level);
        if level <= told {
            // It was told by a clock that was ahead: when it comes to that again, it is told again.
            self.memory.warned = self.memory.warned.map(|(end_s, _)| (end_s, level));
            return;
        }
        self.memory.warned = Some((facts.not_after_s, level));
        let text = match facts.not_after_s.checked_sub(now).filter(|left| *left > 0) {
            Some(left) => {
                format!("the certificate that is served ends in {}, and no new one could be had", tls::span(left))
            }
            None => "the certificate that is served has ended: clients refuse it".to_owned(),
        };
        let details = json!({ "text": text, "not_after": rfc3339(facts.not_after_s), "trouble": self.memory.text });
        self.tell(if level == 5 { "certificate_expired" } else { "certificate_expiring" }, details);
    }

    fn tell(&self, kind: &str, details: Value) {
        self.events.tell(kind, self.domain, details, now_s());
    }

    /// What can't be noted is remembered, and after this process found out again.
    fn keep(&mut self) {
        let written = self.memory.write(&self.settings.state, self.domain, now_s());
        self.is_written = written.is_ok();
        if let Err(error) = written {
            eprintln!("palisade: {}", chain(&error));
        }
    }
}

/// With what authorities are asked: which they are, whose account it is, and what is in the files with keys and roots. Whoever mends any of it wants it
/// tried.
fn asked_with(acme: &Acme) -> u64 {
    let mut hasher = DefaultHasher::new();
    serde_json::to_vec(acme).unwrap_or_default().hash(&mut hasher);
    for directory in &acme.directories {
        let key = directory.eab.as_ref().map(|external| &external.key_file);
        for file in directory.root.iter().chain(key) {
            fs::read(file).ok().hash(&mut hasher);
        }
    }
    hasher.finish()
}
