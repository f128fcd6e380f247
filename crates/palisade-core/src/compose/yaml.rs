//! YAML text as a tree that knows where each of its nodes stands.
//!
//! What the keys mean is none of its business. Aliases share their target, so a file that doubles itself a hundred
//! times costs no memory; how big it would be when written out is counted, and too much of it is refused.
//! Keys and values are nearly all short, and [`SmolStr`] keeps short text in place: most of a tree is one allocation a node.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Tag};
use smol_str::SmolStr;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::ascii::Ascii;
use crate::diagnostic::{Diagnostic, FileId, Span, quoted};

/// Nesting deeper than this is refused.
pub(crate) const DEPTH_MAX: usize = 64;
/// More nodes than this, aliases written out, are refused.
pub(crate) const NODES_MAX: u64 = 2_000_000;
/// More documents in one file are refused.
pub(crate) const DOCUMENTS_MAX: usize = 100;
/// So many nodes may come from aliases at most, whatever the size of the rest.
pub(crate) const ALIASED_NODES_MAX: u64 = 200_000;

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) data: Data,
    pub(crate) tag: MergeTag,
    sum: Sum,
}

/// What a node and everything below it come to.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    /// How many there are when aliases are written out.
    nodes: u32,
    /// One of them has a [`MergeTag`].
    tagged: bool,
    /// A `$` stands in one of them.
    dollar: bool,
}

impl Sum {
    fn of(data: &Data, tag: MergeTag) -> Self {
        let one = Self { nodes: 1, tagged: tag != MergeTag::None, dollar: false };
        match data {
            Data::Null => one,
            Data::Scalar(scalar) => Self { dollar: scalar.text.contains('$'), ..one },
            Data::List(items) => items.iter().fold(one, |sum, item| sum.and(item.sum)),
            Data::Map(entries) => entries.iter().fold(one, |sum, entry| sum.and(entry.value.sum)),
        }
    }
    fn and(self, other: Self) -> Self {
        Self {
            nodes: self.nodes.saturating_add(other.nodes),
            tagged: self.tagged || other.tagged,
            dollar: self.dollar || other.dollar,
        }
    }
}

/// What the value does to the one of an earlier file. Compose Specification, 13-merge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum MergeTag {
    /// It is merged.
    #[default]
    None,
    /// `!reset`: the earlier value is taken away, and this one with it.
    Reset,
    /// `!override`: it takes the earlier value's place whole.
    Override,
}

#[derive(Clone, Debug)]
pub(crate) enum Data {
    Null,
    Scalar(Scalar),
    List(Vec<Arc<Node>>),
    Map(Vec<Entry>),
}

/// A single value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scalar {
    /// Variables are filled in once the file is part of an assembly.
    pub(crate) text: SmolStr,
    /// As it stands in the file, when variables were filled in: all that a message may show.
    pub(crate) written: Option<Arc<str>>,
    /// Without quotes: `true` and `5` may be more than text.
    pub(crate) plain: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: SmolStr,
    pub(crate) key_span: Span,
    pub(crate) value: Arc<Node>,
}

impl Node {
    /// A node made of others, without a place of its own in the file.
    pub(crate) fn made(span: Span, data: Data) -> Self {
        Self::tagged(span, data, MergeTag::None)
    }
    fn tagged(span: Span, data: Data, tag: MergeTag) -> Self {
        Self { sum: Sum::of(&data, tag), span, data, tag }
    }
    /// The same place and tag with other data.
    pub(crate) fn with(&self, data: Data) -> Arc<Self> {
        Arc::new(Self::tagged(self.span, data, self.tag))
    }
    /// How many values it is, itself included, when what is shared is written out.
    pub(crate) fn weight(&self) -> u64 {
        self.sum.nodes.into()
    }
    /// A [`MergeTag`] stands here or below.
    pub(crate) fn has_tags(&self) -> bool {
        self.sum.tagged
    }
    /// A `$` stood here or below when the node was made.
    pub(crate) fn has_variables(&self) -> bool {
        self.sum.dollar
    }
    /// This mapping without that key.
    pub(crate) fn without(self: &Arc<Self>, key: &str) -> Arc<Self> {
        match &self.data {
            Data::Map(entries) if entries.iter().any(|entry| entry.key == key) => {
                self.with(Data::Map(entries.iter().filter(|entry| entry.key != key).cloned().collect()))
            }
            _ => Arc::clone(self),
        }
    }
    /// This mapping with that value in place of the key's own.
    pub(crate) fn replacing(self: &Arc<Self>, key: &str, value: &Arc<Self>) -> Arc<Self> {
        let Data::Map(entries) = &self.data else { return Arc::clone(self) };
        let entries = entries.iter().map(|entry| match entry.key == key {
            true => Entry { value: Arc::clone(value), ..entry.clone() },
            false => entry.clone(),
        });
        self.with(Data::Map(entries.collect()))
    }
    /// The value of that key, if this is a mapping that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        match &self.data {
            Data::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }
    pub(crate) fn is_null(&self) -> bool {
        matches!(self.data, Data::Null)
    }
    /// "a list", for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self.data {
            Data::Null => "nothing",
            Data::Scalar(_) => "a single value",
            Data::List(_) => "a list",
            Data::Map(_) => "a mapping",
        }
    }
}

/// A list or mapping that isn't complete yet.
struct Open {
    start: usize,
    anchor: usize,
    tag: MergeTag,
    sum: Sum,
    parts: Parts,
}

enum Parts {
    List(Vec<Arc<Node>>),
    Map { entries: Vec<Entry>, key: Option<(SmolStr, Span, bool)>, merges: Vec<(Span, Arc<Node>)> },
}

struct Builder<'t> {
    text: &'t str,
    file: FileId,
    /// Byte of each character; `None` when each character is one byte.
    byte_of_char: Option<Vec<u32>>,
    open: Vec<Open>,
    anchors: HashMap<usize, Arc<Node>>,
    /// Anchors up to this number stand in documents before.
    anchors_before: usize,
    aliased: u64,
    documents: Vec<Arc<Node>>,
    problems: Vec<Diagnostic>,
}

/// Parses the documents of a file; one at least. `None`: the parser had to stop. Problems that don't stop it (a key
/// given twice) come with the trees.
pub(crate) fn parse(text: &str, file: FileId) -> (Option<Vec<Arc<Node>>>, Vec<Diagnostic>) {
    let byte_of_char = (!text.is_ascii())
        .then(|| text.char_indices().map(|(at, _)| at as u32).chain(std::iter::once(text.len() as u32)).collect());
    let builder = Builder {
        text,
        file,
        byte_of_char,
        open: Vec::new(),
        anchors: HashMap::new(),
        anchors_before: 0,
        aliased: 0,
        documents: Vec::new(),
        problems: Vec::new(),
    };
    match text.is_ascii() {
        true => builder.build(Parser::new(Ascii::new(text))),
        false => builder.build(Parser::new_from_str(text)),
    }
}

impl Builder<'_> {
    fn build<'i>(
        mut self,
        events: impl Iterator<Item = Result<(Event<'i>, saphyr_parser::Span), ScanError>>,
    ) -> (Option<Vec<Arc<Node>>>, Vec<Diagnostic>) {
        for event in events {
            let fatal = match event {
                Err(error) => Some(self.scan_error(&error)),
                Ok((Event::DocumentStart(_), span)) if self.documents.len() >= DOCUMENTS_MAX => Some(
                    Diagnostic::error("too-many", format!("this file has more than {DOCUMENTS_MAX} YAML documents"))
                        .at(self.span(span), "this one is too much")
                        .hint("is it a Compose file? It needs only one"),
                ),
                Ok((event, span)) => self.event(event, self.span(span)),
            };
            if let Some(fatal) = fatal {
                self.problems.push(fatal);
                return (None, self.problems);
            }
        }
        if self.documents.is_empty() {
            self.documents.push(Arc::new(Node::made(Span { file: self.file, start: 0, end: 0 }, Data::Null)));
        }
        (Some(self.documents), self.problems)
    }

    fn byte(&self, index: usize) -> u32 {
        match &self.byte_of_char {
            None => index.min(self.text.len()) as u32,
            Some(bytes) => bytes.get(index).copied().unwrap_or(self.text.len() as u32),
        }
    }

    fn span(&self, span: saphyr_parser::Span) -> Span {
        let start = self.byte(span.start.index());
        Span { file: self.file, start, end: self.byte(span.end.index()).max(start) }
    }

    fn scan_error(&self, error: &ScanError) -> Diagnostic {
        let start = self.byte(error.marker().index()) as usize;
        let rest = &self.text[start..];
        if error.info().contains("recursion") {
            return too_deep(Span { file: self.file, start: start as u32, end: start as u32 });
        }
        if error.info().contains("unknown anchor") {
            let name = rest.split(|c: char| c.is_whitespace() || ",[]{}".contains(c)).next().unwrap_or_default();
            let span = Span { file: self.file, start: start as u32, end: (start + name.len()) as u32 };
            let anchor = quoted(&name.replacen('*', "&", 1));
            return Diagnostic::error("alias", format!("there is no anchor {anchor} above this alias"))
                .at(span, "")
                .hint("an alias repeats what an anchor above it names; a value that begins with `*` must be quoted");
        }
        // The parser notices a tab late or early; the tab itself is what must be looked at.
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let mut at = line_start;
        for line in self.text[line_start..].split_inclusive('\n').take(3) {
            let indentation = &line[..line.len() - line.trim_start().len()];
            if let Some(tab) = indentation.find('\t').filter(|_| !line.trim().is_empty()) {
                let start = (at + tab) as u32;
                return Diagnostic::error("yaml", "this is not valid YAML: a tab is in the indentation")
                    .at(Span { file: self.file, start, end: start + 1 }, "a tab")
                    .hint("YAML is indented with spaces: replace the tab");
            }
            at += line.len();
        }
        let end = start + rest.chars().next().filter(|c| *c != '\n').map_or(0, char::len_utf8);
        let span = Span { file: self.file, start: start as u32, end: end as u32 };
        let diagnostic = Diagnostic::error("yaml", "this is not valid YAML").at(span, error.info());
        if rest.trim().is_empty() {
            return diagnostic.hint("the file ends too early: is a quote or a bracket left open?");
        }
        if error.info().contains("mapping values") || error.info().contains("simple key") {
            return diagnostic
                .hint("look at the indentation here and one line above, and quote values that contain `: `");
        }
        diagnostic.hint("look at the indentation, quotes and brackets here and one line above")
    }

    /// Takes one event; `Some` stops the parser.
    fn event(&mut self, event: Event<'_>, span: Span) -> Option<Diagnostic> {
        match event {
            Event::Alias(anchor) => {
                let Some(target) = self.anchors.get(&anchor).cloned() else {
                    if anchor <= self.anchors_before {
                        return Some(
                            Diagnostic::error("alias", "this alias refers to another document")
                                .at(span, "its anchor stands above a `---`")
                                .hint("anchors end with their document: repeat the anchor, or take the `---` out"),
                        );
                    }
                    return Some(
                        Diagnostic::error("alias", "this alias stands inside what it refers to")
                            .at(span, "")
                            .hint("an alias repeats something that is complete: write its content out instead"),
                    );
                };
                self.aliased = self.aliased.saturating_add(target.weight());
                if self.aliased > ALIASED_NODES_MAX {
                    return Some(
                        Diagnostic::error(
                            "alias-bomb",
                            format!("written out, the aliases of this file are more than {ALIASED_NODES_MAX} values"),
                        )
                        .at(span, "this one goes past the limit")
                        .hint("aliases of aliases multiply: repeat smaller parts, or write them out"),
                    );
                }
                self.add(target, span)
            }
            Event::Scalar(value, style, anchor, tag) => {
                let merge_tag = match self.merge_tag(tag.as_deref(), span) {
                    Ok(tag) => tag,
                    Err(problem) => return Some(*problem),
                };
                let untagged = tag.is_none() || merge_tag != MergeTag::None;
                let plain = style == ScalarStyle::Plain && untagged;
                // `<<` is the merge key only when it isn't quoted.
                let merge = plain && value == "<<";
                let data = if plain && matches!(&*value, "" | "~" | "null" | "Null" | "NULL") {
                    Data::Null
                } else {
                    Data::Scalar(Scalar { text: SmolStr::new(value), written: None, plain })
                };
                if let Some(Open { parts: Parts::Map { key: key @ None, .. }, .. }) = self.open.last_mut() {
                    let text = match data {
                        Data::Scalar(scalar) => scalar.text,
                        _ if span.start == span.end => {
                            return Some(
                                Diagnostic::error("yaml", "a key is missing before this `:`")
                                    .at(span, "")
                                    .hint("write `key: value`"),
                            );
                        }
                        _ => SmolStr::new_static("null"),
                    };
                    *key = Some((text, span, merge));
                    return None;
                }
                self.finish(Node::tagged(span, data, merge_tag), anchor)
            }
            Event::SequenceStart(anchor, tag) => self.open(anchor, tag.as_deref(), span, Parts::List(Vec::new())),
            Event::MappingStart(anchor, tag) => {
                let parts = Parts::Map { entries: Vec::new(), key: None, merges: Vec::new() };
                self.open(anchor, tag.as_deref(), span, parts)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let open = self.open.pop()?;
                let data = match open.parts {
                    Parts::List(items) => Data::List(items),
                    Parts::Map { entries, merges, .. } => Data::Map(self.merge(entries, merges)),
                };
                let span = self.collection_span(open.start, span, &data);
                self.finish(Node { span, data, tag: open.tag, sum: open.sum }, open.anchor)
            }
            Event::DocumentStart(_) => {
                let highest = self.anchors.drain().map(|(anchor, _)| anchor).max();
                self.anchors_before = self.anchors_before.max(highest.unwrap_or_default());
                None
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => None,
        }
    }

    fn open(&mut self, anchor: usize, tag: Option<&Tag>, span: Span, parts: Parts) -> Option<Diagnostic> {
        let tag = match self.merge_tag(tag, span) {
            Ok(tag) => tag,
            Err(problem) => return Some(*problem),
        };
        if let Some(Open { parts: Parts::Map { key: None, .. }, .. }) = self.open.last() {
            return Some(
                Diagnostic::error("yaml", "a list or mapping can't be a key")
                    .at(span, "")
                    .hint("keys are plain words; quote a value that starts with `[` or `{`"),
            );
        }
        if self.open.len() >= DEPTH_MAX {
            return Some(too_deep(span));
        }
        let sum = Sum { nodes: 1, tagged: tag != MergeTag::None, dollar: false };
        self.open.push(Open { start: span.start as usize, anchor, tag, sum, parts });
        None
    }

    /// A list or mapping in brackets is pointed at whole when it is on one line, everything else at its first part:
    /// carets below fifty lines help nobody.
    fn collection_span(&self, start: usize, end: Span, data: &Data) -> Span {
        let end = end.end as usize;
        let whole = self.text.get(start..end).unwrap_or_default();
        if whole.starts_with(['[', '{']) {
            let length = if whole.contains('\n') { 1 } else { whole.len() };
            return Span { file: self.file, start: start as u32, end: (start + length) as u32 };
        }
        match data {
            Data::Map(entries) if !entries.is_empty() => entries[0].key_span,
            Data::List(items) if !items.is_empty() => items[0].span,
            _ => Span { file: self.file, start: start as u32, end: start as u32 },
        }
    }

    fn finish(&mut self, node: Node, anchor: usize) -> Option<Diagnostic> {
        let span = node.span;
        let node = Arc::new(node);
        if anchor != 0 {
            self.anchors.insert(anchor, Arc::clone(&node));
        }
        self.add(node, span)
    }

    /// Puts a complete node into what is open.
    fn add(&mut self, node: Arc<Node>, span: Span) -> Option<Diagnostic> {
        let Some(open) = self.open.last_mut() else {
            self.documents.push(node);
            return None;
        };
        open.sum = open.sum.and(node.sum);
        if u64::from(open.sum.nodes) > NODES_MAX {
            return Some(
                Diagnostic::error("too-large", format!("this file holds more than {NODES_MAX} values"))
                    .at(span, "")
                    .hint("split it into several stacks"),
            );
        }
        match &mut open.parts {
            Parts::List(items) => items.push(node),
            Parts::Map { entries, key, merges } => match key.take() {
                Some((_, _, true)) => merges.push((span, node)),
                Some((key, key_span, false)) => entries.push(Entry { key, key_span, value: node }),
                // An alias stands where the key should be.
                None => match &node.data {
                    Data::Scalar(scalar) => *key = Some((scalar.text.clone(), span, false)),
                    _ => {
                        return Some(
                            Diagnostic::error("yaml", "a list or mapping can't be a key").at(span, "an alias to one"),
                        );
                    }
                },
            },
        }
        None
    }

    /// Refuses keys that are given twice, and adds what `<<` brings where the mapping itself says nothing.
    fn merge(&mut self, mut entries: Vec<Entry>, merges: Vec<(Span, Arc<Node>)>) -> Vec<Entry> {
        self.problems.extend(given_twice(&entries));
        if merges.is_empty() {
            return entries;
        }
        let mut known: HashSet<SmolStr> = entries.iter().map(|entry| entry.key.clone()).collect();
        for (span, merged) in merges {
            let maps: Vec<&Arc<Node>> = match &merged.data {
                Data::List(items) => items.iter().collect(),
                _ => vec![&merged],
            };
            for map in maps {
                let Data::Map(brought) = &map.data else {
                    self.problems.push(
                        Diagnostic::error("merge", format!("`<<` takes a mapping, but this is {}", map.kind()))
                            .at(span, "")
                            .hint("write `<<: *name`, where `&name` stands at a mapping"),
                    );
                    continue;
                };
                for entry in brought {
                    if known.insert(entry.key.clone()) {
                        entries.push(entry.clone());
                    }
                }
            }
        }
        entries
    }

    /// `!reset` and `!override`; every other tag but those of YAML itself is refused.
    fn merge_tag(&self, tag: Option<&Tag>, span: Span) -> Result<MergeTag, Box<Diagnostic>> {
        let Some(tag) = tag.filter(|tag| !tag.is_yaml_core_schema()) else { return Ok(MergeTag::None) };
        match (tag.handle.as_str(), tag.suffix.as_str()) {
            ("!", "reset") => Ok(MergeTag::Reset),
            ("!", "override") => Ok(MergeTag::Override),
            _ => Err(Box::new(
                Diagnostic::error("tag", format!("the tag {} is not known", quoted(&tag.to_string())))
                    .at(span, "on this value")
                    .hint("`!reset` and `!override` are; a value that starts with `!` must be quoted"),
            )),
        }
    }
}

/// Mappings with fewer entries than this are searched, bigger ones hashed.
const FEW: usize = 32;

/// Mistakes: keys that stand there already.
fn given_twice(entries: &[Entry]) -> Vec<Diagnostic> {
    let mut hashed: HashMap<&str, Span> = HashMap::new();
    let mut twice = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        let earlier = match entries.len() {
            ..FEW => entries[..at].iter().rfind(|known| known.key == entry.key).map(|known| known.key_span),
            _ => hashed.insert(&entry.key, entry.key_span),
        };
        if let Some(earlier) = earlier {
            twice.push(
                Diagnostic::error("duplicate-key", format!("the key {} is given twice", quoted(&entry.key)))
                    .at(entry.key_span, "given again here")
                    .also(earlier, "first given here")
                    .hint("keep one of them; YAML parsers differ in which one they take"),
            );
        }
    }
    twice
}

fn too_deep(span: Span) -> Diagnostic {
    Diagnostic::error("too-deep", format!("values are nested more than {DEPTH_MAX} deep"))
        .at(span, "")
        .hint("no Compose file needs that: is a bracket left open?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::SourceMap;

    fn tree(text: &str) -> Result<Arc<Node>, Vec<Diagnostic>> {
        let mut sources = SourceMap::default();
        let file = sources.add("t.yaml", text).unwrap();
        match parse(text, file) {
            (Some(mut roots), problems) if problems.is_empty() && roots.len() == 1 => Ok(roots.remove(0)),
            (_, problems) => Err(problems),
        }
    }

    fn ids(text: &str) -> Vec<&'static str> {
        tree(text).unwrap_err().iter().map(|d| d.id).collect()
    }

    fn write(node: &Node) -> String {
        match &node.data {
            Data::Null => "~".into(),
            Data::Scalar(scalar) => scalar.text.to_string(),
            Data::List(items) => format!("[{}]", items.iter().map(|i| write(i)).collect::<Vec<_>>().join(" ")),
            Data::Map(entries) => {
                let parts: Vec<_> = entries.iter().map(|e| format!("{}:{}", e.key, write(&e.value))).collect();
                format!("{{{}}}", parts.join(" "))
            }
        }
    }

    #[test]
    fn aliases_and_merge_keys_are_resolved() {
        let text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [{y: 4}, *a]}\nd: *a\n\"<<\": plain\n";
        assert_eq!(write(&tree(text).unwrap()), "{a:{x:1 y:2} b:{y:3 x:1} c:{y:4 x:1} d:{x:1 y:2} <<:plain}");
        assert_eq!(ids("a: &a [*a]\n"), ["alias"]);
        assert_eq!(ids("a: &a 5\nb: {<<: *a}\n"), ["merge"]);
    }

    #[test]
    fn spans_are_bytes_also_behind_other_scripts() {
        let text = "é: ü\nkey: 'wört'\n";
        let root = tree(text).unwrap();
        let Data::Map(entries) = &root.data else { panic!("{root:?}") };
        let (key, value) = (entries[1].key_span, entries[1].value.span);
        assert_eq!(&text[key.start as usize..key.end as usize], "key");
        assert_eq!(&text[value.start as usize..value.end as usize], "'wört'");
    }

    #[test]
    fn limits_hold() {
        assert_eq!(ids(&format!("a: {}", "[".repeat(200))), ["too-deep"]);
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for n in 1..40 {
            let previous = format!("*a{}", n - 1);
            bomb += &format!("a{n}: &a{n} [{}]\n", vec![previous; 10].join(", "));
        }
        assert_eq!(ids(&bomb), ["alias-bomb"]);
    }

    #[test]
    fn each_document_is_a_tree() {
        let mut sources = SourceMap::default();
        let file = sources.add("t.yaml", "").unwrap();
        let (roots, problems) = parse("a: 1\n---\nb: &x 2\nc: *x\n...\n---\n", file);
        assert_eq!(problems, []);
        assert_eq!(roots.unwrap().iter().map(|root| write(root)).collect::<Vec<_>>(), ["{a:1}", "{b:2 c:2}", "~"]);
        let (roots, problems) = parse(&"--- a\n".repeat(DOCUMENTS_MAX + 1), file);
        assert!(roots.is_none());
        assert_eq!(problems.iter().map(|d| d.id).collect::<Vec<_>>(), ["too-many"]);
    }

    #[test]
    fn tags_stand_on_every_kind_of_value() {
        let root = tree("a: !reset null\nb: !reset [1]\nc: !reset {x: 1}\nd: !reset\ne: !reset 5\nf: !override {x: 1, y: !reset 2}\ng: [1, !reset 2]\nh: !override [3]\n").unwrap();
        let Data::Map(entries) = &root.data else { panic!("{root:?}") };
        let tags: Vec<_> = entries.iter().map(|entry| entry.value.tag).collect();
        let (reset, over) = (MergeTag::Reset, MergeTag::Override);
        assert_eq!(tags, [reset, reset, reset, reset, reset, over, MergeTag::None, over]);
    }

    #[test]
    fn what_is_not_plain_yaml_is_refused() {
        assert_eq!(ids("a: 1\na: 2\na: 3\nb: 1\n"), ["duplicate-key", "duplicate-key"]);
        assert_eq!(ids("a: &x 1\n---\nb: *x\n"), ["alias"]);
        assert_eq!(ids("a: 'open\n"), ["yaml"]);
        assert_eq!(ids("a:\n\t- b\n"), ["yaml"]);
        assert_eq!(ids("? [a]\n: b\n"), ["yaml"]);
        assert_eq!(ids("a: !other null\n"), ["tag"]);
        assert!(tree("").unwrap().is_null());
    }
}
