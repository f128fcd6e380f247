//! How a run ends: the one place that knows exit codes.
//!
//! What was found or failed is decided by the verbs; here it is only told and mapped.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

pub(crate) use palisade_core::causes::chain;

/// A run that did what it was asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// As asked.
    Yes,
    /// The answer is no: findings, pending changes, a failed proof. What they are was printed already.
    No,
    /// What was run inside a service ended with this exit code, which is passed on.
    Passed(u8),
}

/// A run that could not do what it was asked to.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Bad input or usage. Holds the whole message, already laid out.
    Input(String),
    /// What the host has stands against it. Holds the whole message, already laid out.
    Refused(String),
    /// What the file asks for can't be done by this machine or this version. Holds the whole message.
    Unable(String),
    /// This machine lacks something.
    Lacking(Lacking),
    /// Something went wrong on the way.
    Failed {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: Option<Box<dyn Error + Send + Sync>>,
        /// What to do, line by line.
        hints: Vec<String>,
    },
    /// Ctrl-C or SIGTERM.
    Interrupted {
        /// What is left behind, if anything.
        left: Vec<String>,
        /// How things are when nothing is.
        undone: &'static str,
    },
}

/// How things are after something that makes a stack was interrupted and undone.
pub(crate) const NOTHING_LEFT: &str = "nothing was left behind";

/// Something that this machine lacks, and how to get it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Lacking {
    /// What is lacking.
    pub(crate) what: String,
    /// How to get it.
    pub(crate) remedy: String,
}

impl Failure {
    /// A failure with its cause.
    pub(crate) fn new(what: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Failed { what: what.into(), source: Some(source.into()), hints: Vec::new() }
    }
    /// Something that this machine lacks.
    pub(crate) fn lacking(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Lacking(Lacking { what: what.into(), remedy: remedy.into() })
    }
    /// A failure without a deeper cause.
    pub(crate) fn plain(what: impl Into<String>) -> Self {
        Self::Failed { what: what.into(), source: None, hints: Vec::new() }
    }
    /// With what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Failed { hints, .. } = &mut self {
            hints.push(hint.into());
        }
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(message) | Self::Refused(message) | Self::Unable(message) => f.write_str(message.trim_end()),
            Self::Lacking(Lacking { what, remedy }) => write!(f, "error: {what}\n  hint: {remedy}"),
            Self::Failed { what, source, hints } => {
                write!(f, "error: {what}")?;
                let mut cause = source.as_deref().map(|source| source as &(dyn Error + 'static));
                while let Some(error) = cause {
                    write!(f, "\n  because: {error}")?;
                    cause = error.source();
                }
                hints.iter().try_for_each(|hint| write!(f, "\n  hint: {hint}"))
            }
            Self::Interrupted { left, undone } if left.is_empty() => write!(f, "interrupted; {undone}"),
            Self::Interrupted { left, .. } => {
                f.write_str("interrupted")?;
                left.iter().try_for_each(|left| write!(f, "\n  {left}"))
            }
        }
    }
}

/// Tells a failure on standard error and maps the end of a run to its code.
pub(crate) fn report(end: Result<Answer, Failure>) -> ExitCode {
    if let Err(failure) = &end {
        let message = failure.to_string();
        // Where a program asked for JSON, the answer stands on standard output and there is nothing to add.
        if !message.is_empty() {
            eprintln!("{message}");
        }
    }
    ExitCode::from(code(&end))
}

fn code(end: &Result<Answer, Failure>) -> u8 {
    match end {
        Ok(Answer::Yes) => 0,
        Ok(Answer::Passed(code)) => *code,
        Ok(Answer::No) | Err(Failure::Failed { .. } | Failure::Refused(_)) => 1,
        Err(Failure::Input(_)) => 2,
        Err(Failure::Lacking(_) | Failure::Unable(_)) => 3,
        Err(Failure::Interrupted { .. }) => 130,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_documented_ones() {
        let lacking = || Failure::lacking("no cgroup2", "mount it");
        assert_eq!(code(&Ok(Answer::Yes)), 0);
        assert_eq!(code(&Ok(Answer::No)), 1);
        assert_eq!(code(&Ok(Answer::Passed(42))), 42);
        assert_eq!(code(&Err(Failure::plain("it broke"))), 1);
        assert_eq!(code(&Err(Failure::Input("bad".into()))), 2);
        assert_eq!(code(&Err(lacking())), 3);
        assert_eq!(code(&Err(Failure::Interrupted { left: Vec::new(), undone: NOTHING_LEFT })), 130);
        assert_eq!(lacking().to_string(), "error: no cgroup2\n  hint: mount it");
    }

    #[test]
    fn causes_are_listed_once_each() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        let failure = Failure::new("can't start", Outer(std::io::Error::other("inner"))).hint("try again");
        assert_eq!(failure.to_string(), "error: can't start\n  because: outer\n  because: inner\n  hint: try again");
    }
}
