//! Names that are known to be valid because they were parsed.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A name that breaks the rules of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not a valid {kind} name: {rule}")]
pub struct InvalidName {
    /// What was written.
    pub name: String,
    /// "project", "service" …
    pub kind: &'static str,
    /// The rule in words.
    pub rule: &'static str,
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Parses the name; an error says the rule that it breaks.
            pub fn parse(name: impl Into<String>) -> Result<Self, InvalidName> {
                let name = name.into();
                let valid: fn(&str) -> bool = $valid;
                if valid(&name) { Ok(Self(name)) } else { Err(InvalidName { name, kind: $kind, rule: $rule }) }
            }
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(name: String) -> Result<Self, InvalidName> {
                Self::parse(name)
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }
    };
}

name_type!(
    /// A Compose project name (Compose Specification, "Name top-level element").
    ProjectName,
    "project",
    "lower-case letters, digits, `-` and `_`, starting with a letter or digit, at most 63 characters",
    |s| s.len() <= 63
        && s.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && s.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
);

name_type!(
    /// A service name. Compose allows letters, digits, `.`, `_` and `-`.
    ServiceName,
    "service",
    "letters, digits, `.`, `_` and `-`, starting with a letter or digit, at most 63 characters",
    |s| s.len() <= 63
        && s.starts_with(|c: char| c.is_ascii_alphanumeric())
        && s.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
);

/// One running copy of a service: `postgres.1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InstanceId {
    /// The service it is a copy of.
    pub service: ServiceName,
    /// Counted from 1.
    pub number: u8,
}

impl InstanceId {
    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let (service, number) = text.rsplit_once('.')?;
        // Leading zeros and signs would be other spellings of the same instance.
        let parsed: u8 = number.parse().ok()?;
        if parsed == 0 || parsed.to_string() != number {
            return None;
        }
        Some(Self { service: ServiceName::parse(service).ok()?, number: parsed })
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.service, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_reads_what_it_writes() {
        let id = InstanceId { service: ServiceName::parse("my.db-2").unwrap(), number: 12 };
        assert_eq!(InstanceId::parse(&id.to_string()), Some(id));
        for other in ["db", "db.", "db.0", "db.256", "db.+1", "db.01", ".1", "a b.1"] {
            assert_eq!(InstanceId::parse(other), None, "{other}");
        }
    }
}
