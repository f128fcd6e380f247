//! nginx's language: words that end in `;`, or in `{` and a block.
//!
//! Words are cut as nginx cuts them. Nothing is known of directives here, but that blocks of Lua hold another language.

use crate::diagnostic::{Diagnostic, FileId, Span};

use super::rules;

/// Blocks in blocks. nginx has no such limit, and nobody gets near it.
const DEPTH_MAX: usize = 64;
/// Directives in one block: what holds in a block is looked up by going through it.
const BLOCK_MAX: usize = 20_000;

/// One word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// What it means, without quotes and backslashes before quotes.
    pub(super) text: String,
    /// Where it stands, with its quotes.
    pub(super) span: Span,
}

/// `name arguments;` or `name arguments { block }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Directive {
    /// What is said.
    pub(super) name: Word,
    /// What it is said with.
    pub(super) args: Vec<Word>,
    /// What is in its braces, if it has some.
    pub(super) block: Option<Vec<Directive>>,
}

impl Directive {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name.text
    }
    /// An argument's text.
    pub(super) fn arg(&self, at: usize) -> Option<&str> {
        self.args.get(at).map(|word| word.text.as_str())
    }
    /// From its name to its last argument.
    pub(super) fn span(&self) -> Span {
        let end = self.args.last().map_or(self.name.span.end, |word| word.span.end);
        // An argument may stand in another line; the name is what is looked for.
        Span { end: end.max(self.name.span.end), ..self.name.span }
    }
    /// What is in its block.
    pub(super) fn children(&self) -> &[Directive] {
        self.block.as_deref().unwrap_or_default()
    }
}

/// The directives of a file, as far as they can be read; and what stands in the way of the rest.
pub(super) fn parse(file: FileId, text: &str) -> (Vec<Directive>, Option<Diagnostic>) {
    let mut parser = Parser { file, text, at: if text.starts_with('\u{feff}') { 3 } else { 0 }, fault: None };
    let directives = parser.block(0, None);
    (directives, parser.fault)
}

struct Parser<'a> {
    file: FileId,
    text: &'a str,
    at: usize,
    fault: Option<Diagnostic>,
}

enum Token {
    Word(Word),
    /// `;`
    End,
    /// `{`
    Open,
    /// `}`
    Close,
    /// Of the file, or of what can be read.
    Stop,
}

impl Parser<'_> {
    fn span(&self, start: usize, end: usize) -> Span {
        Span { file: self.file, start: start as u32, end: end as u32 }
    }

    fn fail(&mut self, start: usize, end: usize, message: &str, label: &str) {
        if self.fault.is_none() {
            let diagnostic = rules::SYNTAX.hit(message).at(self.span(start, end.max(start)), label);
            self.fault = Some(diagnostic.hint("nginx -t stops here, too: nothing behind this place was looked at"));
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Directives until the block's end. `opened`: where its brace is, if it has one.
    fn block(&mut self, depth: usize, opened: Option<usize>) -> Vec<Directive> {
        let mut directives = Vec::new();
        loop {
            let start = self.at;
            match self.token() {
                Token::Word(name) => match self.directive(name, depth) {
                    Some(directive) => directives.push(directive),
                    None => return directives,
                },
                Token::Close if opened.is_some() => return directives,
                Token::Close => {
                    self.fail(self.at - 1, self.at, "a block is closed that was never opened", "no `{` belongs to it");
                    return directives;
                }
                Token::End => {
                    let at = self.at - 1;
                    self.fail(at, self.at, "a `;` without a directive", "nothing stands before it");
                    return directives;
                }
                Token::Open => {
                    self.fail(self.at - 1, self.at, "a block without a name", "nothing stands before it");
                    return directives;
                }
                Token::Stop => {
                    if let Some(opened) = opened {
                        self.fail(opened, opened + 1, "a block isn't closed", "its `}` is missing");
                    }
                    return directives;
                }
            }
            if directives.len() > BLOCK_MAX {
                self.fail(start, self.at, "a block has too many directives", "this is one more than are read");
            }
            if self.fault.is_some() || self.at <= start {
                return directives;
            }
        }
    }

    fn directive(&mut self, name: Word, depth: usize) -> Option<Directive> {
        let mut args = Vec::new();
        loop {
            match self.token() {
                Token::Word(word) => args.push(word),
                Token::End => return Some(Directive { name, args, block: None }),
                Token::Open => {
                    let opened = self.at - 1;
                    if name.text.ends_with("_by_lua_block") {
                        self.skip_lua(opened);
                        return Some(Directive { name, args, block: Some(Vec::new()) });
                    }
                    if depth >= DEPTH_MAX {
                        self.fail(opened, self.at, "blocks are nested too deeply", "this is the sixty-fifth");
                        return None;
                    }
                    let block = self.block(depth + 1, Some(opened));
                    return Some(Directive { name, args, block: Some(block) });
                }
                Token::Close => {
                    let message = format!("{} isn't ended", crate::diagnostic::quoted(&name.text));
                    let end = args.last().map_or(name.span.end, |word| word.span.end);
                    self.fail(name.span.start as usize, end as usize, &message, "a `;` is missing behind this");
                    return None;
                }
                Token::Stop => {
                    let message = format!("{} isn't ended", crate::diagnostic::quoted(&name.text));
                    self.fail(
                        name.span.start as usize,
                        name.span.end as usize,
                        &message,
                        "the file ends before its `;`",
                    );
                    return None;
                }
            }
        }
    }

    fn token(&mut self) -> Token {
        loop {
            match self.peek() {
                None => return Token::Stop,
                Some(b' ' | b'\t' | b'\r' | b'\n') => self.at += 1,
                Some(b'#') => {
                    let rest = &self.text.as_bytes()[self.at..];
                    self.at += rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                }
                Some(_) => break,
            }
        }
        let first = self.at;
        match self.peek() {
            Some(b';') => self.ended(Token::End),
            Some(b'{') => self.ended(Token::Open),
            Some(b'}') => self.ended(Token::Close),
            Some(quote @ (b'"' | b'\'')) => self.quoted(quote),
            _ => {
                while let Some(byte) = self.peek() {
                    match byte {
                        b' ' | b'\t' | b'\r' | b'\n' | b';' => break,
                        // `${name}` belongs to the word.
                        b'{' if self.at == first || self.text.as_bytes()[self.at - 1] != b'$' => break,
                        b'\\' => self.at += 2,
                        _ => self.at += 1,
                    }
                }
                self.word(first, first, self.at)
            }
        }
    }

    fn ended(&mut self, token: Token) -> Token {
        self.at += 1;
        token
    }

    fn quoted(&mut self, quote: u8) -> Token {
        let first = self.at;
        self.at += 1;
        loop {
            match self.peek() {
                None => {
                    self.at = self.text.len();
                    let end = self.text[first..].find('\n').map_or(self.text.len(), |line| first + line);
                    self.fail(first, end, "a quote isn't closed", "it begins here");
                    return Token::Stop;
                }
                Some(b'\\') => self.at += 2,
                Some(byte) if byte == quote => break,
                Some(_) => self.at += 1,
            }
        }
        self.at += 1;
        let end = self.at;
        if !matches!(self.peek(), None | Some(b' ' | b'\t' | b'\r' | b'\n' | b';' | b'{' | b')')) {
            let message = "something stands right behind a quote";
            self.fail(first, end, message, "a space or `;` is missing behind this");
            return Token::Stop;
        }
        match self.word(first, first + 1, end - 1) {
            Token::Word(word) => Token::Word(Word { span: self.span(first, end), ..word }),
            token => token,
        }
    }

    /// A word from what stands from `start` to `end`; a backslash may have led past the end or into a character.
    fn word(&mut self, first: usize, start: usize, end: usize) -> Token {
        let mut end = end.min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end += 1;
        }
        self.at = self.at.max(end).min(self.text.len());
        while !self.text.is_char_boundary(self.at) {
            self.at += 1;
        }
        Token::Word(Word {
            text: unescaped(self.text.get(start..end).unwrap_or_default()),
            span: self.span(first, end),
        })
    }

    /// Lua until the brace that closes the block: braces in its strings and comments don't count.
    fn skip_lua(&mut self, opened: usize) {
        let mut depth = 1_usize;
        while let Some(byte) = self.peek() {
            let rest = &self.text.as_bytes()[self.at..];
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                b'"' | b'\'' => {
                    let mut at = 1;
                    while at < rest.len() && rest[at] != byte && rest[at] != b'\n' {
                        at += if rest[at] == b'\\' { 2 } else { 1 };
                    }
                    self.at = (self.at + at).min(self.text.len().saturating_sub(1));
                }
                b'-' | b'[' => {
                    let comment = rest.starts_with(b"--");
                    let long = &rest[if comment { 2 } else { 0 }..];
                    if let Some(length) = long_bracket(long) {
                        self.at += length + if comment { 2 } else { 0 };
                        continue;
                    }
                    if comment {
                        self.at += rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                        continue;
                    }
                }
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return;
            }
        }
        self.at = self.text.len();
        self.fail(opened, opened + 1, "a block of Lua isn't closed", "its `}` is missing");
    }
}

/// How long `[[ … ]]` or `[==[ … ]==]` is that begins here.
fn long_bracket(text: &[u8]) -> Option<usize> {
    let level = text.strip_prefix(b"[")?.iter().take_while(|byte| **byte == b'=').count();
    if text.get(level + 1) != Some(&b'[') {
        return None;
    }
    let close = [b"]".as_slice(), &b"=".repeat(level), b"]"].concat();
    let inner = &text[level + 2..];
    let end = inner.windows(close.len()).position(|window| window == close);
    Some(end.map_or(text.len(), |end| level + 2 + end + close.len()))
}

/// nginx takes a backslash away before quotes and itself, and knows `\t`, `\r` and `\n`; others stay for patterns.
fn unescaped(text: &str) -> String {
    let mut meant = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let next = chars.peek().copied();
        let escaped = match (c, next) {
            ('\\', Some(next @ ('"' | '\'' | '\\'))) => next,
            ('\\', Some('t')) => '\t',
            ('\\', Some('r')) => '\r',
            ('\\', Some('n')) => '\n',
            _ => {
                meant.push(c);
                continue;
            }
        };
        chars.next();
        meant.push(escaped);
    }
    meant
}
