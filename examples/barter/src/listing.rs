//! A listing as it was sent, and as it is once it is known to be fine.
//!
//! Nothing is stored here.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Longest title, in characters.
pub const TITLE_CHARS_MAX: usize = 120;
/// Longest text, in characters.
pub const TEXT_CHARS_MAX: usize = 2_000;
/// Longest location, in characters.
pub const LOCATION_CHARS_MAX: usize = 80;

/// Somebody has something, or is looking for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// To give.
    Offer,
    /// To get.
    Want,
}

impl Kind {
    /// As stored and sent.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Offer => "offer",
            Kind::Want => "want",
        }
    }
    /// What matches it.
    pub fn opposite(self) -> Self {
        match self {
            Kind::Offer => Kind::Want,
            Kind::Want => Kind::Offer,
        }
    }
    /// The kind of that name.
    pub fn parse(text: &str) -> Option<Self> {
        [Kind::Offer, Kind::Want].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// A new listing as it was sent. Missing fields are empty, so that all mistakes can be told at once.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Draft {
    /// `offer` or `want`.
    pub kind: String,
    /// One line.
    pub title: String,
    /// A few sentences; may be left out.
    pub text: String,
    /// Where; free text.
    pub location: String,
}

/// A new listing that may be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewListing {
    /// Offer or want.
    pub kind: Kind,
    /// 1 to [`TITLE_CHARS_MAX`] characters on one line.
    pub title: String,
    /// Up to [`TEXT_CHARS_MAX`] characters.
    pub text: String,
    /// 1 to [`LOCATION_CHARS_MAX`] characters on one line.
    pub location: String,
}

/// What is wrong, by field.
pub type Mistakes = BTreeMap<&'static str, String>;

impl Draft {
    /// The listing, or everything that is wrong with it.
    pub fn validate(&self) -> Result<NewListing, Mistakes> {
        let mut mistakes = Mistakes::new();
        let kind = Kind::parse(self.kind.trim());
        if kind.is_none() {
            mistakes.insert("kind", "must be \"offer\" or \"want\"".into());
        }
        let title = line("title", &self.title, TITLE_CHARS_MAX, &mut mistakes);
        let location = line("location", &self.location, LOCATION_CHARS_MAX, &mut mistakes);
        let text = self.text.replace("\r\n", "\n").trim().to_string();
        check("text", &text, TEXT_CHARS_MAX, |c| c == '\n' || c == '\t', &mut mistakes);
        match kind {
            Some(kind) if mistakes.is_empty() => Ok(NewListing { kind, title, text, location }),
            _ => Err(mistakes),
        }
    }
}

fn line(field: &'static str, value: &str, chars_max: usize, mistakes: &mut Mistakes) -> String {
    let value = value.trim().to_string();
    if value.is_empty() {
        mistakes.insert(field, "must not be empty".into());
    }
    check(field, &value, chars_max, |_| false, mistakes);
    value
}

fn check(
    field: &'static str,
    value: &str,
    chars_max: usize,
    control_allowed: fn(char) -> bool,
    mistakes: &mut Mistakes,
) {
    let chars = value.chars().count();
    if chars > chars_max {
        mistakes.insert(field, format!("has {chars} characters; at most {chars_max} are allowed"));
    } else if value.chars().any(|c| c.is_control() && !control_allowed(c)) {
        mistakes.insert(field, "must not contain control characters".into());
    }
}

impl NewListing {
    /// What is turned into a vector.
    pub fn embedding_input(&self) -> String {
        embedding_input(&self.title, &self.text)
    }
}

/// What of a listing is turned into a vector: all but the place, which counts on its own.
pub fn embedding_input(title: &str, text: &str) -> String {
    format!("{title}\n{text}")
}

/// A stored listing.
#[derive(Clone, Debug, Serialize)]
pub struct Listing {
    /// Its number.
    pub id: i64,
    /// Offer or want.
    pub kind: Kind,
    /// One line.
    pub title: String,
    /// A few sentences.
    pub text: String,
    /// Where.
    pub location: String,
    /// UTC, as in `2026-01-31T12:00:00Z`.
    pub created_at: String,
    /// Whether it can be found by meaning already.
    pub embedded: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_draft_is_trimmed() {
        let draft = Draft {
            kind: "want".into(),
            title: "  Bike ".into(),
            text: " any\r\nsize ".into(),
            location: " Leipzig".into(),
        };
        let listing = draft.validate().unwrap();
        assert_eq!(
            (listing.title.as_str(), listing.text.as_str(), listing.location.as_str()),
            ("Bike", "any\nsize", "Leipzig")
        );
        assert_eq!(listing.kind.opposite(), Kind::Offer);
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let mistakes = Draft {
            kind: "gift".into(),
            title: " ".into(),
            text: "x".repeat(TEXT_CHARS_MAX + 1),
            location: "a\0b".into(),
        }
        .validate()
        .unwrap_err();
        assert_eq!(mistakes.keys().copied().collect::<Vec<_>>(), ["kind", "location", "text", "title"]);
        assert_eq!(mistakes["text"], "has 2001 characters; at most 2000 are allowed");
    }

    #[test]
    fn limits_count_characters_and_not_bytes() {
        let draft = Draft {
            kind: "offer".into(),
            title: "ü".repeat(TITLE_CHARS_MAX),
            location: "x".into(),
            ..Draft::default()
        };
        assert!(draft.validate().is_ok());
        let long = Draft { title: "ü".repeat(TITLE_CHARS_MAX + 1), ..draft };
        assert!(long.validate().unwrap_err().contains_key("title"));
    }
}
