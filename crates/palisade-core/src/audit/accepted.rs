//! Findings that somebody has looked at and lives with: a file that is reviewed like code, with reasons and dates.
//!
//! ```yaml
//! accept:
//!   - {id: port-unknown, subject: 49913/tcp, reason: the office's game server, until: 2027-03-01}
//! ```

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::rules::{ACCEPTANCE_EXPIRED, ACCEPTANCE_UNUSED, RULES, rule};
use crate::compose::suggest::nearest;
use crate::compose::yaml::{self, Data, Node};
use crate::diagnostic::{Diagnostic, Severity, SourceMap, Span, quoted};
use crate::finding::Finding;

/// A day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
}

impl Date {
    /// The day of a time since 1970, in UTC. Source of the arithmetic: Hinnant, "chrono-compatible low-level date algorithms".
    pub fn of_unix_s(seconds: u64) -> Self {
        let days = seconds / 86_400 + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * of_year + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let day = of_year - (153 * shifted + 2) / 5 + 1;
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        Self { year: year as u16, month: month as u8, day: day as u8 }
    }
}

impl FromStr for Date {
    type Err = ();

    /// `2027-03-01`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('-');
        let mut next =
            |len: usize| parts.next().filter(|part| part.len() == len && part.bytes().all(|b| b.is_ascii_digit()));
        let (year, month, day) = (next(4).ok_or(())?, next(2).ok_or(())?, next(2).ok_or(())?);
        if parts.next().is_some() {
            return Err(());
        }
        let date = Self {
            year: year.parse().map_err(|_| ())?,
            month: month.parse().map_err(|_| ())?,
            day: day.parse().map_err(|_| ())?,
        };
        let leap = (date.year.is_multiple_of(4) && !date.year.is_multiple_of(100)) || date.year.is_multiple_of(400);
        let last = match date.month {
            2 => 28 + u8::from(leap),
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return Err(()),
        };
        if (1..=last).contains(&date.day) { Ok(date) } else { Err(()) }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

impl Serialize for Date {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One entry of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptance {
    /// Which rule.
    pub id: &'static str,
    /// About what; `None`: whatever it is about.
    pub subject: Option<String>,
    /// Why.
    pub reason: String,
    /// The last day on which it counts.
    pub until: Option<Date>,
    /// `palisade.accept.yaml:3:5`.
    pub place: String,
}

/// A finding that somebody accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Accepted {
    /// What it is.
    pub finding: Finding,
    /// Why it is accepted.
    pub reason: String,
    /// Until when.
    pub until: Option<Date>,
}

/// A file that can't be used, with everything that is wrong with it.
#[derive(Debug)]
pub struct Unreadable {
    /// Mistakes.
    pub diagnostics: Vec<Diagnostic>,
    /// The file, for showing them.
    pub sources: SourceMap,
}

const HINT: &str = "write `- {id: port-unknown, subject: 49913/tcp, reason: \"…\", until: 2027-03-01}`";

/// Reads the file, or tells every mistake in it.
pub fn read(name: &str, text: &str) -> Result<Vec<Acceptance>, Box<Unreadable>> {
    let mut sources = SourceMap::default();
    let Some(file) = sources.add(name, text) else { return Ok(Vec::new()) };
    let (documents, diagnostics) = yaml::parse(text, file);
    let mut reading = Reading { diagnostics, sources };
    let mut all = Vec::new();
    for document in documents.into_iter().flatten() {
        all.extend(reading.document(&document));
    }
    if reading.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error) {
        let Reading { diagnostics, sources } = reading;
        return Err(Box::new(Unreadable { diagnostics, sources }));
    }
    Ok(all)
}

struct Reading {
    diagnostics: Vec<Diagnostic>,
    sources: SourceMap,
}

impl Reading {
    fn wrong(&mut self, id: &'static str, message: impl Into<String>, span: Span) {
        self.diagnostics.push(Diagnostic::error(id, message).at(span, "").hint(HINT));
    }

    fn document(&mut self, node: &Node) -> Vec<Acceptance> {
        if node.is_null() {
            return Vec::new();
        }
        let Data::Map(entries) = &node.data else {
            self.wrong("type", format!("this file has one key, `accept`, but this is {}", node.kind()), node.span);
            return Vec::new();
        };
        let mut all = Vec::new();
        for entry in entries {
            match (entry.key.as_str(), &entry.value.data) {
                ("accept", Data::List(items)) => all.extend(items.iter().filter_map(|item| self.acceptance(item))),
                ("accept", Data::Null) => {}
                ("accept", _) => {
                    self.wrong(
                        "type",
                        format!("`accept` is a list, but this is {}", entry.value.kind()),
                        entry.value.span,
                    );
                }
                (other, _) => {
                    self.wrong("unknown-key", format!("there is no key {} here", quoted(other)), entry.key_span)
                }
            }
        }
        all
    }

    fn acceptance(&mut self, item: &Node) -> Option<Acceptance> {
        let Data::Map(entries) = &item.data else {
            self.wrong("type", format!("an acceptance is a mapping, but this is {}", item.kind()), item.span);
            return None;
        };
        let (mut id, mut subject, mut reason, mut until, mut sound) = (None, None, None, None, true);
        for entry in entries {
            let text = match &entry.value.data {
                Data::Scalar(scalar) => scalar.text.trim(),
                _ => "",
            };
            let span = entry.value.span;
            if text.is_empty() {
                self.wrong("type", format!("{} needs a value", quoted(&entry.key)), entry.key_span);
                sound = false;
                continue;
            }
            match entry.key.as_str() {
                "id" => match rule(text) {
                    Some(rule) => id = Some(rule.id),
                    None => {
                        let near = nearest(text, RULES.iter().map(|rule| rule.id));
                        let hint = near.map_or_else(|| HINT.to_owned(), |near| format!("did you mean `{near}`?"));
                        let message = format!("nothing that an audit finds is called {}", quoted(text));
                        self.diagnostics.push(Diagnostic::error("unknown-id", message).at(span, "").hint(hint));
                        sound = false;
                    }
                },
                "subject" => subject = Some(text.to_owned()),
                "reason" => reason = Some(text.to_owned()),
                "until" => match text.parse() {
                    Ok(date) => until = Some(date),
                    Err(()) => {
                        self.wrong("date", format!("{} is no day", quoted(text)), span);
                        sound = false;
                    }
                },
                other => {
                    self.wrong("unknown-key", format!("an acceptance has no {}", quoted(other)), entry.key_span);
                    sound = false;
                }
            }
        }
        for (missing, key) in [(id.is_none() && sound, "id"), (reason.is_none() && sound, "reason")] {
            if missing {
                self.wrong("missing-key", format!("this says no `{key}`"), item.span);
            }
        }
        let place = self.sources.place(item.span).to_string();
        Some(Acceptance { id: id?, subject, reason: reason?, until, place })
    }
}

/// Takes out what is accepted, and says which acceptances are due or not needed any more.
pub fn apply(acceptances: &[Acceptance], findings: &mut Vec<Finding>, today: Date) -> Vec<Accepted> {
    let mut accepted = Vec::new();
    let mut used = vec![false; acceptances.len()];
    let mut told = Vec::new();
    let fits = |acceptance: &Acceptance, finding: &Finding| {
        acceptance.id == finding.id && acceptance.subject.as_ref().is_none_or(|subject| *subject == finding.subject)
    };
    findings.retain(|finding| {
        for (acceptance, used) in acceptances.iter().zip(&mut used).filter(|(acceptance, _)| fits(acceptance, finding))
        {
            *used = true;
            if acceptance.until.is_none_or(|until| today <= until) {
                let (reason, until) = (acceptance.reason.clone(), acceptance.until);
                accepted.push(Accepted { finding: finding.clone(), reason, until });
                return false;
            }
        }
        true
    });
    for (acceptance, used) in acceptances.iter().zip(used) {
        let what = acceptance.subject.as_ref().map_or_else(String::new, |subject| format!(" of {subject}"));
        match acceptance.until.filter(|until| today > *until) {
            Some(until) if used => told.push(
                ACCEPTANCE_EXPIRED
                    .hit(&acceptance.place, format!("{}{what} was accepted until {until}", acceptance.id))
                    .seen(format!("the reason was: {}", super::facts::printable(&acceptance.reason)))
                    .remedy("mend it, or accept it anew with a later day"),
            ),
            _ if !used => told.push(
                ACCEPTANCE_UNUSED
                    .hit(&acceptance.place, format!("{}{what} is accepted and isn't there", acceptance.id))
                    .remedy("take the entry out"),
            ),
            _ => {}
        }
    }
    findings.extend(told);
    super::sort(findings);
    accepted
}

/// An entry as a line of the file.
pub fn line(id: &str, subject: Option<&str>, reason: &str, until: Option<Date>) -> String {
    // JSON's strings are YAML's.
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let subject = subject.map(|subject| format!(", subject: {}", text(subject))).unwrap_or_default();
    let until = until.map(|until| format!(", until: {until}")).unwrap_or_default();
    format!("  - {{id: {id}{subject}, reason: {}{until}}}\n", text(reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::{Style, render_all};

    fn date(text: &str) -> Date {
        text.parse().unwrap()
    }

    #[test]
    fn days_are_days() {
        assert_eq!(Date::of_unix_s(0).to_string(), "1970-01-01");
        assert_eq!(Date::of_unix_s(951_782_400).to_string(), "2000-02-29");
        assert_eq!(Date::of_unix_s(1_795_651_199).to_string(), "2026-11-25");
        assert!("2028-02-29".parse::<Date>().is_ok());
        for wrong in ["2027-02-29", "2027-13-01", "2027-1-1", "27-01-01", "2027-01-01-01", "+027-01-01", "soon"] {
            assert!(wrong.parse::<Date>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_accepted_goes_until_its_day() {
        let text = format!(
            "accept:\n{}{}{}",
            line("port-unknown", Some("49913/tcp"), "the \"game\" server", Some(date("2027-03-01"))),
            line("raw-socket", None, "dhclient", None),
            line("dns-exposed", Some("53/udp"), "ours", None),
        );
        let acceptances = read("accept.yaml", &text).unwrap();
        let findings = || {
            vec![
                super::super::rules::PORT_UNKNOWN.hit("49913/tcp", "a"),
                super::super::rules::PORT_UNKNOWN.hit("49914/tcp", "b"),
                super::super::rules::RAW_SOCKET.hit("dhclient", "c"),
            ]
        };
        let after = |today: &str| {
            let mut findings = findings();
            let accepted = apply(&acceptances, &mut findings, date(today));
            let left: Vec<_> = findings.iter().map(|f| format!("{} {}", f.id, f.subject)).collect();
            (accepted.iter().map(|a| a.reason.clone()).collect::<Vec<_>>(), left)
        };
        let unused = "acceptance-unused accept.yaml:4:5".to_owned();
        assert_eq!(
            after("2027-03-01"),
            (
                vec!["the \"game\" server".into(), "dhclient".into()],
                vec!["port-unknown 49914/tcp".into(), unused.clone()]
            )
        );
        assert_eq!(
            after("2027-03-02"),
            (
                vec!["dhclient".into()],
                vec![
                    "port-unknown 49913/tcp".into(),
                    "port-unknown 49914/tcp".into(),
                    "acceptance-expired accept.yaml:2:5".into(),
                    unused
                ]
            )
        );
    }

    #[test]
    fn mistakes_are_all_told() {
        let text = "accept:\n  - {id: port-unknwon, reason: x}\n  - {id: port-unknown}\n  - {id: port-unknown, reason: x, until: soon}\n  - x\naccepted: []\n";
        let wrong = read("a.yaml", text).unwrap_err();
        insta::assert_snapshot!(render_all(&wrong.diagnostics, &wrong.sources, Style::default()));
        assert!(read("a.yaml", "").unwrap().is_empty());
        assert!(read("a.yaml", "accept:\n").unwrap().is_empty());
    }
}
