//! What is wrong with a file, as data: where, what, and what to do about it.
//!
//! Nothing in here knows Compose, and nothing prints: `render` returns text.

use serde::Serialize;
use std::collections::HashSet;
use std::sync::Arc;

use crate::place::Place;

mod render;
pub use render::{Style, render, render_all};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is done until it is repaired.
    Error,
    /// It works, and makes a bad day likelier or worse.
    Risk,
    /// Probably not meant.
    Warning,
    /// Good to know.
    Note,
}

/// Names a file of a [`SourceMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct FileId(u16);

impl FileId {
    /// Counted from 0 in the order in which files were added.
    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A range of bytes in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Span {
    /// Which file.
    pub file: FileId,
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The part of this span from `start` to `end`, both counted in bytes from its beginning.
    pub fn part(self, start: usize, end: usize) -> Span {
        let at = |offset: usize| (self.start + offset as u32).min(self.end);
        Span { file: self.file, start: at(start), end: at(end) }
    }
}

/// A value together with the range of bytes that it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spanned<T> {
    /// What was read.
    pub value: T,
    /// Where.
    pub span: Span,
}

impl<T> Spanned<T> {
    /// Pairs the two.
    pub fn new(value: T, span: Span) -> Self {
        Self { value, span }
    }
}

/// A range with a word about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Label {
    /// Where.
    pub span: Span,
    /// What is to be seen there; may be empty.
    pub text: String,
}

/// One thing to tell about the user's files.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// A stable name of the kind of mistake: `unknown-key`.
    pub id: &'static str,
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// The place to look at. `None` when no file of the source map is to blame.
    pub primary: Option<Label>,
    /// Other places that matter.
    pub secondary: Vec<Label>,
    /// More places of the same kind: a text counts them, and programs get them all.
    pub elsewhere: Vec<Label>,
    /// Why it matters, in one sentence without a full stop.
    pub why: Option<&'static str>,
    /// What to do about it.
    pub hints: Vec<String>,
}

impl Diagnostic {
    fn new(severity: Severity, id: &'static str, message: impl Into<String>) -> Self {
        Self {
            severity,
            id,
            message: message.into(),
            primary: None,
            secondary: Vec::new(),
            elsewhere: Vec::new(),
            why: None,
            hints: Vec::new(),
        }
    }
    /// Something that must be repaired.
    pub fn error(id: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, id, message)
    }
    /// Something that works and is dangerous.
    pub fn risk(id: &'static str, message: impl Into<String>, why: &'static str) -> Self {
        Self { why: Some(why), ..Self::new(Severity::Risk, id, message) }
    }
    /// Something that was probably not meant.
    pub fn warning(id: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, id, message)
    }
    /// Something good to know.
    pub fn note(id: &'static str, message: impl Into<String>) -> Self {
        Self::new(Severity::Note, id, message)
    }
    /// Sets the place to look at.
    pub fn at(mut self, span: Span, label: impl Into<String>) -> Self {
        self.primary = Some(Label { span, text: label.into() });
        self
    }
    /// Adds another place that matters.
    pub fn also(mut self, span: Span, label: impl Into<String>) -> Self {
        self.secondary.push(Label { span, text: label.into() });
        self
    }
    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

/// Past this many, diagnostics are only counted: nobody reads more, and a hostile file could make millions.
const DIAGNOSTICS_MAX: usize = 400;

/// Collects diagnostics, each once.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    list: Vec<Diagnostic>,
    seen: HashSet<Diagnostic>,
    left_out: usize,
    errors: usize,
}

impl Sink {
    /// So many errors were told so far.
    pub(crate) fn error_count(&self) -> usize {
        self.errors
    }
    pub(crate) fn push(&mut self, diagnostic: Diagnostic) {
        let is_error = diagnostic.severity == Severity::Error;
        if self.list.len() >= DIAGNOSTICS_MAX && !(is_error && self.errors == 0) {
            self.left_out += 1;
            self.errors += usize::from(is_error);
        } else if self.seen.insert(diagnostic.clone()) {
            self.errors += usize::from(is_error);
            self.list.push(diagnostic);
        }
    }
    /// What comes now is only counted: no work need go into hints.
    pub(crate) fn is_full(&self) -> bool {
        self.list.len() >= DIAGNOSTICS_MAX
    }
    pub(crate) fn has_errors(&self) -> bool {
        self.errors > 0
    }
    /// All of them in the order of the file, errors of no place first.
    pub(crate) fn finish(mut self) -> Vec<Diagnostic> {
        self.list.sort_by_key(|d| d.primary.as_ref().map(|label| (label.span.file, label.span.start)));
        if self.left_out > 0 {
            let left_out = self.left_out;
            self.list.push(Diagnostic::note("left-out", format!("{left_out} more messages are not shown")));
        }
        self.list
    }
}

/// One file as it was read.
#[derive(Clone, Debug)]
struct SourceFile {
    name: Arc<str>,
    text: String,
    line_starts: Vec<u32>,
}

/// The files that spans point into.
#[derive(Clone, Debug, Default)]
pub struct SourceMap {
    files: Vec<SourceFile>,
}

impl SourceMap {
    /// Adds a file under the name that the user gave it; `None` when there are 65,536 already.
    pub fn add(&mut self, name: &str, text: &str) -> Option<FileId> {
        let id = FileId(u16::try_from(self.files.len()).ok()?);
        let mut line_starts = vec![0];
        for (at, byte) in text.bytes().enumerate() {
            if byte == b'\n' {
                line_starts.push(at as u32 + 1);
            }
        }
        self.files.push(SourceFile { name: name.into(), text: text.to_owned(), line_starts });
        Some(id)
    }
    /// The name of the file.
    pub fn name(&self, file: FileId) -> &Arc<str> {
        &self.files[usize::from(file.0)].name
    }
    /// What stands there.
    pub fn text(&self, span: Span) -> &str {
        self.files[usize::from(span.file.0)].text.get(span.start as usize..span.end as usize).unwrap_or_default()
    }
    /// The span of a part of a value: exact when the value stands in the file as it is.
    pub(crate) fn part(&self, value: &str, span: Span, start: usize, end: usize) -> Span {
        let shown = self.text(span);
        let at = if shown.starts_with(value) { Some(0) } else { shown.find(value) };
        match at {
            Some(at) if !value.is_empty() => span.part(at + start, at + end),
            _ => span,
        }
    }
    /// The span of the first `part` in a value.
    pub(crate) fn find(&self, value: &str, span: Span, part: &str) -> Span {
        value.find(part).map_or(span, |at| self.part(value, span, at, at + part.len()))
    }
    /// Where a span begins, as people count.
    pub fn place(&self, span: Span) -> Place {
        let file = &self.files[usize::from(span.file.0)];
        let line = file.line_of(span.start);
        let before = file.text.get(file.line_starts[line] as usize..span.start as usize).unwrap_or_default();
        let column = if before.is_ascii() { before.len() } else { before.chars().count() };
        Place { file: Arc::clone(&file.name), line: line as u32 + 1, column: column as u32 + 1 }
    }
    /// Puts an asterisk over every byte of the span but line ends, so that no message can show it.
    pub(crate) fn mask(&mut self, spans: &[Span]) {
        for (number, file) in self.files.iter_mut().enumerate() {
            let mut bytes = std::mem::take(&mut file.text).into_bytes();
            for span in spans.iter().filter(|span| usize::from(span.file.0) == number) {
                for byte in &mut bytes[span.start as usize..span.end as usize] {
                    if !matches!(byte, b'\n' | b'\r' | b'"' | b'\'') {
                        *byte = b'*';
                    }
                }
            }
            // Spans begin and end between characters, so what is left is UTF-8 still.
            file.text = String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
        }
    }
}

impl SourceFile {
    /// The line of a byte, counted from 0.
    fn line_of(&self, byte: u32) -> usize {
        self.line_starts.partition_point(|start| *start <= byte).saturating_sub(1)
    }
}

/// Text of the user's, fit for a message: in backticks, on one line, not endless, without control characters.
pub(crate) fn quoted(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    let mut shown = String::with_capacity(text.len().min(CHARS_MAX) + 2);
    shown.push('`');
    for (count, char) in text.chars().enumerate() {
        if count == CHARS_MAX {
            shown.push('…');
            break;
        }
        if char.is_control() || is_unseen(char) {
            shown.extend(char.escape_default());
        } else {
            shown.push(char);
        }
    }
    shown.push('`');
    shown
}

/// Characters without a shape of their own: those that turn the direction of what stands around them, so that a name
/// reads as another one, and those of no width.
fn is_unseen(char: char) -> bool {
    matches!(char, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}
