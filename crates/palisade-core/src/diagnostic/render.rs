//! Diagnostics as text with the line, a caret and hints, the way rustc shows them.
//!
//! What the messages say is decided where they are made.

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use std::borrow::Cow;

use super::{Diagnostic, FileId, Label, Severity, SourceFile, SourceMap, Span, is_unseen};

/// A window of more bytes than this (a file of one endless line) is not shown, only named.
const WINDOW_BYTES_MAX: usize = 64 << 10;

/// How the text looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// With terminal colours.
    pub color: bool,
    /// Lines are cut at this many columns.
    pub width: usize,
}

impl Default for Style {
    /// Plain, for pipes and files.
    fn default() -> Self {
        Self { color: false, width: 140 }
    }
}

/// One diagnostic as text, ending in a line end.
pub fn render(diagnostic: &Diagnostic, sources: &SourceMap, style: Style) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Risk => Level::WARNING.with_name("risk"),
        Severity::Warning => Level::WARNING,
        Severity::Note => Level::NOTE,
    };
    let diagnostic = &printable(diagnostic);
    let title = level.primary_title(diagnostic.message.as_str()).id(diagnostic.id);
    let mut group = Group::with_title(title);
    if let Some(primary) = &diagnostic.primary {
        for file in files_of(diagnostic) {
            let in_file = |label: &&Label| label.span.file == file;
            let own = (primary.span.file == file).then_some(primary);
            let others: Vec<&Label> = diagnostic.secondary.iter().filter(in_file).collect();
            group = add_snippet(group, sources, file, own, &others);
        }
    }
    if let Some(why) = diagnostic.why {
        group = group.element(Level::NOTE.with_name("why").message(why));
    }
    for hint in &diagnostic.hints {
        group = group.element(Level::HELP.with_name("hint").message(hint.as_str()));
    }
    let renderer = if style.color { Renderer::styled() } else { Renderer::plain() };
    let mut text = renderer.term_width(style.width).render(&[group]);
    text.push('\n');
    // The renderer leaves some of them in the lines of the file.
    text.replace(is_unseen, "\u{fffd}")
}

/// The same without characters that a terminal would obey: a name of the user's can stand anywhere in a message.
fn printable(diagnostic: &Diagnostic) -> Cow<'_, Diagnostic> {
    let hostile = |char: char| (char.is_control() && char != '\n') || is_unseen(char);
    let labels = || diagnostic.primary.iter().chain(&diagnostic.secondary).map(|label| &label.text);
    if ![&diagnostic.message].into_iter().chain(&diagnostic.hints).chain(labels()).any(|text| text.contains(hostile)) {
        return Cow::Borrowed(diagnostic);
    }
    let escape = |text: &mut String| {
        *text = text.chars().fold(String::with_capacity(text.len()), |mut shown, char| {
            if hostile(char) {
                shown.extend(char.escape_default());
            } else {
                shown.push(char);
            }
            shown
        });
    };
    let mut shown = diagnostic.clone();
    escape(&mut shown.message);
    shown.hints.iter_mut().for_each(escape);
    shown.primary.iter_mut().chain(&mut shown.secondary).for_each(|label| escape(&mut label.text));
    Cow::Owned(shown)
}

/// All of them, with an empty line after each.
pub fn render_all<'a>(
    diagnostics: impl IntoIterator<Item = &'a Diagnostic>,
    sources: &SourceMap,
    style: Style,
) -> String {
    diagnostics.into_iter().map(|diagnostic| render(diagnostic, sources, style) + "\n").collect()
}

/// The primary label's file first, then the others.
fn files_of(diagnostic: &Diagnostic) -> Vec<FileId> {
    let mut files = Vec::new();
    for label in diagnostic.primary.iter().chain(&diagnostic.secondary) {
        if !files.contains(&label.span.file) {
            files.push(label.span.file);
        }
    }
    files
}

/// Adds the lines that the labels point at. Only those lines are handed on: the renderer reads all it is given,
/// and a big file with many mistakes would take minutes. Labels that are far from each other get a snippet each.
fn add_snippet<'a>(
    group: Group<'a>,
    sources: &'a SourceMap,
    file: FileId,
    primary: Option<&'a Label>,
    others: &[&'a Label],
) -> Group<'a> {
    let source = &sources.files[usize::from(file.0)];
    let labels: Vec<(&Label, AnnotationKind)> = primary
        .into_iter()
        .map(|label| (label, AnnotationKind::Primary))
        .chain(others.iter().map(|label| (*label, AnnotationKind::Context)))
        .collect();
    let Some((start, end)) = window(source, labels.iter().map(|(label, _)| label.span)) else { return group };
    if end - start > WINDOW_BYTES_MAX {
        if let [(label, _)] = labels[..] {
            let place = sources.place(label.span);
            let origin = Origin::path(source.name.as_ref()).line(place.line as usize);
            return group.element(origin.char_column(place.column as usize));
        }
        let group = primary.into_iter().fold(group, |group, label| add_snippet(group, sources, file, Some(label), &[]));
        return others.iter().fold(group, |group, label| add_snippet(group, sources, file, None, &[label]));
    }
    let text = &source.text[start..end];
    let first_line = source.line_of(start as u32);
    let mut snippet = Snippet::source(text).line_start(first_line + 1).path(source.name.as_ref());
    for (label, kind) in labels {
        let from = (label.span.start as usize - start).min(text.len());
        let annotation = kind.span(from..(label.span.end as usize - start).clamp(from, text.len()));
        snippet =
            snippet.annotation(if label.text.is_empty() { annotation } else { annotation.label(label.text.as_str()) });
    }
    group.element(snippet)
}

/// The bytes of the lines from the first of the spans to the last.
fn window(source: &SourceFile, spans: impl Iterator<Item = Span> + Clone) -> Option<(usize, usize)> {
    let first = source.line_of(spans.clone().map(|span| span.start).min()?);
    let last = source.line_of(spans.map(|span| span.end).max()?);
    let end = source.line_starts.get(last + 1).map_or(source.text.len(), |next| *next as usize);
    Some((source.line_starts[first] as usize, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnostic_shows_line_caret_and_hint() {
        let mut sources = SourceMap::default();
        let file = sources.add("compose.yaml", "services:\n  wéb:\n    imagee: nginx\n").unwrap();
        let span = Span { file, start: 22, end: 28 };
        assert_eq!(sources.text(span), "imagee");
        let diagnostic = Diagnostic::error("unknown-key", "`imagee` is not a key of a service")
            .at(span, "unknown")
            .hint("did you mean `image`?");
        assert_eq!(
            render(&diagnostic, &sources, Style::default()),
            "error[unknown-key]: `imagee` is not a key of a service\n \
             --> compose.yaml:3:5\n  |\n3 |     imagee: nginx\n  |     ^^^^^^ unknown\n  |\n  = hint: did you mean `image`?\n"
        );
        assert!(render(&diagnostic, &sources, Style { color: true, width: 140 }).contains("\u{1b}["));
        assert_eq!(sources.place(span).to_string(), "compose.yaml:3:5");
    }

    #[test]
    fn labels_far_from_each_other_are_all_shown() {
        let mut sources = SourceMap::default();
        let text = format!("first\n{}last\n", "filler\n".repeat(WINDOW_BYTES_MAX));
        let file = sources.add("compose.yaml", &text).unwrap();
        let end = text.len() as u32;
        let diagnostic = Diagnostic::error("twice", "given twice")
            .at(Span { file, start: end - 5, end: end - 1 }, "again")
            .also(Span { file, start: 0, end: 5 }, "before");
        let text = render(&diagnostic, &sources, Style::default());
        assert!(text.contains("^^^^ again") && text.contains("----- before"), "{text}");
    }

    #[test]
    fn an_endless_line_is_named_but_not_shown() {
        let mut sources = SourceMap::default();
        let file = sources.add("compose.yaml", &"x".repeat(WINDOW_BYTES_MAX + 1)).unwrap();
        let diagnostic = Diagnostic::error("yaml", "not a mapping").at(Span { file, start: 3, end: 4 }, "");
        let text = render(&diagnostic, &sources, Style::default());
        assert!(text.len() < 200 && text.contains("compose.yaml:1:4"), "{text}");
    }
}
