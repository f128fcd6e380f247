//! An nginx configuration that somebody has: read, and judged.
//!
//! Pure: texts come in through [`Source`], findings go out. The language is nginx's own (words, quotes, braces); what a
//! directive means is known only as far as something is said about it.

mod checks;
mod glob;
mod load;
mod parse;
pub mod rules;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, BTreeSet};

use crate::diagnostic::{Diagnostic, Severity, Sink, SourceMap};
use crate::stack::Stack;
pub use glob::matches;
pub use load::{FILE_BYTES_MAX, dumped};

/// Where the files of a configuration come from.
pub trait Source {
    /// The files that a pattern of `include` names, sorted by name, each with its text or why it can't be read. The
    /// pattern is as written; relative ones are the source's to place.
    fn matching(&self, pattern: &str) -> Vec<(String, Result<String, String>)>;
    /// Whether a file or folder is there. `None`: it can't be told, or this is another host's configuration.
    fn exists(&self, path: &str) -> Option<bool>;
}

/// What is known besides the configuration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// The stack that is meant, if there is one.
    pub stack: Option<&'a Stack>,
    /// TCP ports on which something of this host listens on every address.
    pub open_ports: Option<&'a BTreeSet<u16>>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// In the order of the files.
    pub diagnostics: Vec<Diagnostic>,
    /// What they point into.
    pub sources: SourceMap,
    /// So many files were read.
    pub files: usize,
    /// Files that couldn't be read.
    pub unreadable: usize,
}

impl Report {
    /// How many findings are that bad.
    pub fn count(&self, severity: Severity) -> usize {
        self.diagnostics.iter().filter(|diagnostic| diagnostic.severity == severity).count()
    }
}

/// Reads the configuration that begins with this text, and says what is wrong with it.
pub fn check(name: &str, text: &str, source: &dyn Source, known: Known<'_>) -> Report {
    let mut sink = Sink::default();
    let loaded = load::load(name, text, source, &mut sink);
    checks::all(&loaded, source, known, &mut sink);
    Report { diagnostics: sink.finish(), sources: loaded.sources, files: loaded.files, unreadable: loaded.unreadable }
}

/// The files of a configuration that are there already, by name: what `nginx -T` prints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump(pub BTreeMap<String, String>);

impl Source for Dump {
    fn matching(&self, pattern: &str) -> Vec<(String, Result<String, String>)> {
        // nginx prints absolute names; relative patterns start from a folder that it doesn't print.
        let is_it = |name: &str| match pattern.starts_with('/') {
            true => matches(pattern, name),
            false => name.match_indices('/').any(|(at, _)| matches(pattern, &name[at + 1..])),
        };
        let found = self.0.iter().filter(|(name, _)| is_it(name));
        found.map(|(name, text)| (name.clone(), Ok(text.clone()))).collect()
    }
    fn exists(&self, _: &str) -> Option<bool> {
        None
    }
}
