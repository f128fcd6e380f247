//! ASCII text as the YAML parser's input: a byte is a character, so that none has to be decoded.
//!
//! Nearly all Compose files are ASCII. Others take the parser's own input, which is slower.

use saphyr_parser::Input;

pub(crate) struct Ascii<'t> {
    rest: &'t [u8],
    /// So many characters were asked for at most; the scanner wants to hear that.
    asked: usize,
}

impl<'t> Ascii<'t> {
    /// `text` is ASCII.
    pub(crate) fn new(text: &'t str) -> Self {
        debug_assert!(text.is_ascii());
        Self { rest: text.as_bytes(), asked: 0 }
    }
}

impl Input for Ascii<'_> {
    #[inline]
    fn lookahead(&mut self, count: usize) {
        self.asked = self.asked.max(count);
    }
    #[inline]
    fn buflen(&self) -> usize {
        self.asked
    }
    /// The scanner makes room for so many characters in each plain value, which begins with room for 32, one of which
    /// is taken: more than this would have every value moved, and take much memory.
    #[inline]
    fn bufmaxlen(&self) -> usize {
        31
    }
    #[inline]
    fn raw_read_ch(&mut self) -> char {
        let c = self.peek();
        self.skip();
        c
    }
    #[inline]
    fn raw_read_non_breakz_ch(&mut self) -> Option<char> {
        let (first, rest) = self.rest.split_first()?;
        if matches!(first, b'\n' | b'\r' | 0) {
            return None;
        }
        self.rest = rest;
        Some(char::from(*first))
    }
    #[inline]
    fn skip(&mut self) {
        self.rest = self.rest.get(1..).unwrap_or_default();
    }
    #[inline]
    fn skip_n(&mut self, count: usize) {
        self.rest = self.rest.get(count..).unwrap_or_default();
    }
    #[inline]
    fn peek(&self) -> char {
        self.peek_nth(0)
    }
    #[inline]
    fn peek_nth(&self, n: usize) -> char {
        self.rest.get(n).copied().map_or('\0', char::from)
    }
    #[inline]
    fn peek_opt(&self) -> Option<char> {
        self.rest.first().copied().map(char::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use saphyr_parser::{Event, Parser, ScanError, Span};

    fn events<'i>(parser: impl Iterator<Item = Result<(Event<'i>, Span), ScanError>>) -> Vec<String> {
        let mut seen = Vec::new();
        for event in parser {
            let last = event.is_err();
            seen.push(format!("{event:?}"));
            if last {
                break;
            }
        }
        seen
    }

    fn same(text: &str) {
        let (own, theirs) = (events(Parser::new(Ascii::new(text))), events(Parser::new_from_str(text)));
        assert_eq!(own, theirs, "{text:?}");
    }

    /// Whatever stands in a text, and wherever it ends, it is read as the parser's own input would.
    #[test]
    fn it_reads_what_the_parsers_own_input_reads() {
        let long = "word ".repeat(60);
        let deep = " ".repeat(40);
        let wide = " ".repeat(140);
        let texts = [
            "a: &x {b: [1, 'two', \"th\\u0072ee\\\n  x\"], <<: *y}\r\nc: !reset\n? d\n: - e\n  - f # g\n#h\n",
            "%YAML 1.2\n---\na: |+\n  one\n\n  two\n\n...\n--- >-\n folded\n text\n\n more\n---\n!!str x\n",
            "a: b: c\n",
            "a:\n\t- b\n",
            "a: b#c #d\n e\n\n f\n'g': h\ti\n- j\n",
            "a: \0b\n",
            "key:\n  - !<tag:x> y\n  - %z\n  - @\n",
            &format!("a: {long}\nb: '{long}'\n\"{long}\": {}\n", "x".repeat(200)),
            &format!("a:\n{deep}b: |\n{deep}  one\n{deep}   two\n\n{deep}  three\n{deep}c: >2\n{deep}  {long}\n"),
            &format!("a:\n{wide}b: |\n{wide}  one\n{wide}   two\n{wide} c: d\n"),
        ];
        for text in texts {
            (0..=text.len()).for_each(|end| same(&text[..end]));
            (0..text.len()).for_each(|start| same(&text[start..]));
        }
    }
}
