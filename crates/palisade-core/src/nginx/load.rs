//! One configuration out of its files: `include` is put in its place.

use std::collections::BTreeMap;

use crate::diagnostic::{Diagnostic, FileId, Sink, SourceMap, Span};

use super::parse::{Directive, parse};
use super::{Dump, Source, rules};

/// A file's size at most.
pub const FILE_BYTES_MAX: usize = 4 << 20;
/// All files' size, how many there may be, and how deep they may include each other.
const ALL_BYTES_MAX: usize = 32 << 20;
const FILES_MAX: usize = 2_000;
const INCLUDES_MAX: usize = 16;

/// What a whole configuration says.
pub(super) struct Loaded {
    /// Its outermost directives.
    pub(super) root: Vec<Directive>,
    /// What spans point into.
    pub(super) sources: SourceMap,
    /// So many files were read.
    pub(super) files: usize,
    /// So many couldn't be.
    pub(super) unreadable: usize,
    /// All of it could be read, so what isn't said isn't there.
    pub(super) is_whole: bool,
}

/// Reads it from its first file on.
pub(super) fn load(name: &str, text: &str, source: &dyn Source, sink: &mut Sink) -> Loaded {
    let mut loader = Loader {
        source,
        sink,
        loaded: Loaded { root: Vec::new(), sources: SourceMap::default(), files: 0, unreadable: 0, is_whole: true },
        bytes: 0,
        ids: BTreeMap::new(),
        open: Vec::new(),
    };
    let root = loader.file(name, text, None);
    loader.loaded.root = root;
    loader.loaded
}

struct Loader<'a> {
    source: &'a dyn Source,
    sink: &'a mut Sink,
    loaded: Loaded,
    bytes: usize,
    ids: BTreeMap<String, FileId>,
    /// Files that are being read.
    open: Vec<String>,
}

impl Loader<'_> {
    fn file(&mut self, name: &str, text: &str, because: Option<Span>) -> Vec<Directive> {
        let too_much = if text.len() > FILE_BYTES_MAX {
            Some(format!("{name} is larger than {} MiB", FILE_BYTES_MAX >> 20))
        } else if self.bytes + text.len() > ALL_BYTES_MAX || self.loaded.files >= FILES_MAX {
            Some(format!("{name} and what comes after it isn't read: the configuration is too large"))
        } else {
            None
        };
        if let Some(message) = too_much {
            self.unreadable(message, because);
            return Vec::new();
        }
        // A snippet that is included often is one file: what is wrong with it is told once.
        let id = match self.ids.get(name) {
            Some(id) => *id,
            None => {
                let Some(id) = self.loaded.sources.add(name, text) else { return Vec::new() };
                self.ids.insert(name.to_owned(), id);
                id
            }
        };
        self.loaded.files += 1;
        self.bytes += text.len();
        let (directives, fault) = parse(id, text);
        if let Some(fault) = fault {
            self.loaded.is_whole = false;
            self.sink.push(fault);
        }
        self.open.push(name.to_owned());
        let directives = self.with_includes(directives);
        self.open.pop();
        directives
    }

    fn with_includes(&mut self, directives: Vec<Directive>) -> Vec<Directive> {
        let mut all = Vec::with_capacity(directives.len());
        for mut directive in directives {
            if directive.name() == "include" && directive.block.is_none() {
                all.extend(self.include(&directive));
                continue;
            }
            directive.block = directive.block.map(|block| self.with_includes(block));
            all.push(directive);
        }
        all
    }

    fn include(&mut self, directive: &Directive) -> Vec<Directive> {
        let Some(pattern) = directive.arg(0) else { return Vec::new() };
        let mut all = Vec::new();
        let found = self.source.matching(pattern);
        let is_pattern = pattern.contains(['*', '?', '[']);
        if found.is_empty() && !is_pattern {
            self.unreadable(format!("{pattern} isn't there"), Some(directive.span()));
        }
        for (name, text) in found {
            if self.open.len() >= INCLUDES_MAX || self.open.contains(&name) {
                self.unreadable(format!("{name} includes itself"), Some(directive.span()));
                continue;
            }
            match text {
                Ok(text) => all.extend(self.file(&name, &text, Some(directive.span()))),
                Err(why) => self.unreadable(format!("{name} can't be read: {why}"), Some(directive.span())),
            }
        }
        all
    }

    fn unreadable(&mut self, message: String, because: Option<Span>) {
        self.loaded.unreadable += 1;
        self.loaded.is_whole = false;
        let diagnostic: Diagnostic = rules::UNREADABLE.hit(message).hint("what is in there wasn't looked at");
        self.sink.push(match because {
            Some(span) => diagnostic.at(span, "it is included here"),
            None => diagnostic,
        });
    }
}

/// The files in the output of `nginx -T`, the first one's name first. `None`: it is no such output.
pub fn dumped(text: &str) -> Option<(String, Dump)> {
    const HEAD: &str = "# configuration file ";
    let mut first = None;
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    let mut current: Option<String> = None;
    for line in text.split_inclusive('\n') {
        let name = line.strip_prefix(HEAD).and_then(|rest| rest.trim_end().strip_suffix(':'));
        if let Some(name) = name {
            first.get_or_insert_with(|| name.to_owned());
            files.entry(name.to_owned()).or_default();
            current = Some(name.to_owned());
        } else if let Some(text) = current.as_ref().and_then(|name| files.get_mut(name)) {
            text.push_str(line);
        }
    }
    first.map(|first| (first, Dump(files)))
}
