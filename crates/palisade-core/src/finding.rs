//! What a check of a plan or of a host has to say, as data.
//!
//! Rendering belongs to the binary; mistakes in the user's files are diagnostics of `compose`.

use serde::Serialize;
use std::fmt;

use crate::place::Place;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know; nothing is wrong.
    Note,
    /// Works, but weaker than it looks.
    Warning,
    /// Not as the file says.
    Error,
}

/// One thing that isn't as it should be, why that is known, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable, for scripts: `port-taken`.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: a service, an instance, a table of the firewall.
    pub subject: String,
    /// What is wrong, in one sentence.
    pub message: String,
    /// Why it matters, where that isn't plain from what is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<&'static str>,
    /// What was seen.
    pub evidence: Vec<String>,
    /// What to do, if there is something to do.
    pub remedy: Option<String>,
    /// The line of the user's file that it is about.
    pub place: Option<Place>,
}

impl Finding {
    /// An error without evidence, remedy or place yet.
    pub fn error(id: &'static str, subject: impl fmt::Display, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, id, subject, message)
    }
    /// A warning without evidence, remedy or place yet.
    pub fn warning(id: &'static str, subject: impl fmt::Display, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, id, subject, message)
    }
    fn new(severity: Severity, id: &'static str, subject: impl fmt::Display, message: impl Into<String>) -> Self {
        Self {
            id,
            severity,
            subject: subject.to_string(),
            message: message.into(),
            why: None,
            evidence: Vec::new(),
            remedy: None,
            place: None,
        }
    }
    /// With one more thing that was seen.
    pub fn seen(mut self, evidence: impl Into<String>) -> Self {
        self.evidence.push(evidence.into());
        self
    }
    /// With what to do.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
    /// With the line that it is about.
    pub fn at(mut self, place: &Place) -> Self {
        self.place = Some(place.clone());
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}[{}]: {}: {}", self.id, self.subject, self.message)?;
        if let Some(place) = &self.place {
            write!(f, "\n  --> {place}")?;
        }
        if let Some(why) = self.why {
            write!(f, "\n  why: {why}")?;
        }
        for evidence in &self.evidence {
            write!(f, "\n  seen: {evidence}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "\n  hint: {remedy}")?;
        }
        Ok(())
    }
}
