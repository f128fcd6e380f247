//! Risks: what works as written, and makes a bad day likelier or worse.
//!
//! Nothing here stands in the way of reading a file. What is wrong with it is found in `validate`.

use std::collections::{BTreeMap, HashMap};

use super::Files;
use super::assemble::Origins;
use super::file::{ComposeFile, FileAllow, FileService};
use super::yaml::Node;
use crate::diagnostic::{Diagnostic, SourceMap, Span};
use crate::names::ServiceName;
use crate::place::{Place, Placed};
use crate::stack::Unguarded;

mod allow;
mod document;
mod edge;
mod exposure;
mod images;
mod passwords;
mod power;
mod running;
mod secrets;
mod table;

pub use document::document;
pub use table::{Risk, TABLE};

/// A file with everything that is needed to see its risks.
#[derive(Clone, Copy)]
pub(crate) struct Sight<'a> {
    pub(crate) file: &'a ComposeFile,
    /// All files as one, variables filled in.
    pub(crate) root: &'a Node,
    pub(crate) origins: &'a Origins,
    pub(crate) sources: &'a SourceMap,
    pub(crate) others: &'a dyn Files,
}

/// One service of it.
#[derive(Clone, Copy)]
struct Seen<'a> {
    index: usize,
    service: &'a FileService,
    /// As written.
    node: &'a Node,
}

impl<'a> Seen<'a> {
    /// The value of one of its keys.
    fn get(&self, key: &str) -> Option<&'a Node> {
        self.node.get(key).map(|entry| &*entry.value).filter(|node| !node.is_null())
    }
    fn name(&self) -> &'a str {
        self.service.name.value.as_str()
    }
    /// It runs as a process of the host, and its image is for other tools.
    fn is_process(&self) -> bool {
        self.service.is_process()
    }
}

/// A risk that was accepted in the file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Accepted {
    /// Its id.
    pub id: &'static str,
    /// The service that has it; `None`: the file as a whole.
    pub service: Option<ServiceName>,
    /// Why it is accepted.
    pub reason: Option<String>,
    /// Where what it is about is written.
    pub place: Place,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Risks {
    /// Those that nobody accepted.
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// Those that somebody did.
    pub(crate) accepted: Vec<Accepted>,
    /// What the guard can't hold, by the service's place in the file.
    pub(crate) unguarded: BTreeMap<usize, Vec<Placed<Unguarded>>>,
    /// Secrets that no message may show.
    pub(crate) masked: Vec<Span>,
    /// What is to be said about `x-palisade.allow`.
    pub(crate) notes: Vec<Diagnostic>,
}

/// One risk in one service, or in the file.
struct Hit {
    risk: &'static Risk,
    service: Option<usize>,
    message: String,
    span: Span,
    label: &'static str,
    /// More of the same in this service.
    also: Vec<Span>,
    hint: String,
    /// What the service could do to the guard.
    could: Option<String>,
}

impl Hit {
    fn new(risk: &'static Risk, seen: &Seen<'_>, span: Span, message: impl Into<String>) -> Self {
        Self {
            risk,
            service: Some(seen.index),
            message: message.into(),
            span,
            label: "",
            also: Vec::new(),
            hint: risk.instead.to_owned(),
            could: None,
        }
    }
    fn label(mut self, label: &'static str) -> Self {
        self.label = label;
        self
    }
    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
    /// The guard can't hold a service that could do this.
    fn breach(mut self, could: impl Into<String>) -> Self {
        self.could = Some(could.into());
        self
    }
}

/// What is written in so many more places of one service is only counted.
const ALSO_MAX: usize = 8;

/// Each risk once for a service.
#[derive(Default)]
struct Hits {
    list: Vec<Hit>,
    by_key: HashMap<(&'static str, Option<usize>), usize>,
    masked: Vec<Span>,
}

impl Hits {
    fn push(&mut self, hit: Hit) {
        match self.by_key.get(&(hit.risk.id, hit.service)) {
            Some(&known) => {
                let known = &mut self.list[known];
                if known.could.is_none() && hit.could.is_some() {
                    // The worse of two is the one to tell.
                    known.also.insert(0, known.span);
                    let also = std::mem::take(&mut known.also);
                    *known = Hit { also, ..hit };
                } else if known.span != hit.span && !known.also.contains(&hit.span) && known.also.len() < ALSO_MAX {
                    known.also.push(hit.span);
                }
            }
            None => {
                self.by_key.insert((hit.risk.id, hit.service), self.list.len());
                self.list.push(hit);
            }
        }
    }
}

/// A password that is tried first, whatever stands beside it.
pub(crate) fn is_weak_password(password: &str) -> bool {
    passwords::weakness(password, &[]).is_some()
}

/// Looks at the whole file.
pub(crate) fn examine(sight: Sight<'_>) -> Risks {
    let mut hits = Hits::default();
    let nodes: HashMap<&str, &Node> = match sight.root.get("services").map(|entry| &entry.value.data) {
        Some(super::yaml::Data::Map(entries)) => entries.iter().map(|e| (e.key.as_str(), &*e.value)).collect(),
        _ => HashMap::new(),
    };
    let services: Vec<Seen<'_>> = sight
        .file
        .services
        .iter()
        .enumerate()
        .filter_map(|(index, service)| {
            let node = nodes.get(service.name.value.as_str())?;
            Some(Seen { index, service, node })
        })
        .collect();
    let running = running::Running::new(&services);
    for seen in &services {
        power::examine(seen, &mut hits);
        secrets::examine(seen, sight, &mut hits);
        exposure::examine(seen, &mut hits);
        running.examine(seen, &mut hits);
    }
    secrets::examine_provided(sight, &services, &mut hits);
    exposure::examine_all(sight, &services, &mut hits);
    edge::examine(sight, &services, &mut hits);
    sort_out(sight, hits)
}

/// What somebody accepted is set apart, and what many services share is told once.
fn sort_out(sight: Sight<'_>, hits: Hits) -> Risks {
    let mut risks = Risks { masked: hits.masked, ..Risks::default() };
    let services = &sight.file.services;
    let mut used: Vec<Span> = Vec::new();
    let mut open: BTreeMap<usize, Vec<Hit>> = BTreeMap::new();
    for hit in hits.list {
        let own = hit.service.map_or(&[][..], |service| &services[service].allow);
        let allow: Option<&FileAllow> =
            own.iter().chain(&sight.file.allow).find(|allow| allow.risk.value == hit.risk.id);
        used.extend(allow.map(|allow| allow.risk.span));
        let reason = allow.and_then(|allow| allow.reason.clone());
        if let (Some(could), Some(service)) = (&hit.could, hit.service) {
            let breach = Unguarded { risk: hit.risk.id.into(), could: could.clone(), accepted: reason.clone() };
            let placed = Placed { value: breach, place: sight.sources.place(hit.span) };
            risks.unguarded.entry(service).or_default().push(placed);
        }
        // What the guard can't hold is accepted with a reason only.
        if allow.is_some() && (reason.is_some() || hit.could.is_none()) {
            risks.accepted.push(Accepted {
                id: hit.risk.id,
                service: hit.service.map(|service| services[service].name.value.clone()),
                reason,
                place: sight.sources.place(hit.span),
            });
        } else {
            let order = TABLE.iter().position(|risk| risk.id == hit.risk.id).unwrap_or(TABLE.len());
            open.entry(order).or_default().push(hit);
        }
    }
    for hits in open.into_values() {
        if hits.len() > hits[0].risk.services_max {
            risks.diagnostics.push(folded(&hits, services));
        } else {
            risks.diagnostics.extend(hits.into_iter().map(single));
        }
    }
    risks.diagnostics.sort_by_key(|risk| risk.primary.as_ref().map(|label| (label.span.file, label.span.start)));
    let all = services.iter().flat_map(|service| &service.allow).chain(&sight.file.allow);
    for allow in all.filter(|allow| !used.contains(&allow.risk.span)) {
        let message = format!("`{}` is accepted here, but there is no such risk", allow.risk.value);
        let note = Diagnostic::note("unused-allow", message).at(allow.risk.span, "");
        risks.notes.push(note.hint("remove it, so that the risk is told if it comes back"));
    }
    risks
}

fn single(hit: Hit) -> Diagnostic {
    let mut diagnostic = Diagnostic::risk(hit.risk.id, hit.message, hit.risk.why).at(hit.span, hit.label);
    for also in hit.also {
        diagnostic = diagnostic.also(also, "and here");
    }
    diagnostic = diagnostic.hint(hit.hint);
    if hit.could.is_some() {
        let id = hit.risk.id;
        diagnostic = diagnostic.hint(format!(
            "the guard can't hold this: `palisade up` refuses it without `x-palisade: {{allow: [{{id: {id}, reason: \"…\"}}]}}`"
        ));
    }
    diagnostic
}

fn folded(hits: &[Hit], services: &[FileService]) -> Diagnostic {
    const NAMED_MAX: usize = 5;
    let risk = hits[0].risk;
    let names: Vec<&str> = hits.iter().filter_map(|hit| Some(services[hit.service?].name.value.as_str())).collect();
    let shown = names.iter().take(NAMED_MAX).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let more = match names.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let message = format!("{}, in {} services: {shown}{more}", risk.title, names.len());
    let mut diagnostic = Diagnostic::risk(risk.id, message, risk.why).at(hits[0].span, hits[0].label);
    for (hit, name) in hits.iter().zip(&names).skip(1) {
        let label = crate::diagnostic::Label { span: hit.span, text: (*name).to_owned() };
        diagnostic.elsewhere.push(label);
    }
    diagnostic.hint(risk.instead)
}
