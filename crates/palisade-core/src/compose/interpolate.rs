//! `${VARIABLE}` in values, in all the forms of the Compose Specification.
//!
//! Where variables come from is the caller's business. Errors hold offsets into the source and names of variables,
//! never an expanded value: that may be a secret.

/// Nested deeper than this is refused.
const DEPTH_MAX: usize = 32;
/// A value that grows beyond this is refused.
const EXPANDED_BYTES_MAX: usize = 1 << 20;

/// A value with its variables filled in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expanded {
    pub(crate) text: String,
    /// Variables that were used without a default and don't exist: they became nothing.
    pub(crate) unset: Vec<String>,
}

/// What is wrong, and at which bytes of the source.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) kind: ProblemKind,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ProblemKind {
    /// `${V:?text}` or `${V?text}`: the variable, and the text as written.
    Required { variable: String, empty: bool, says: String },
    /// A `$` that begins nothing.
    LoneDollar,
    /// `${` without its `}`.
    Unclosed,
    /// `${}` or `${1x}`.
    NoName,
    /// `${V!x}`.
    UnknownOperator,
    /// Too deep or too long.
    TooMuch,
}

pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Fills in the variables of a value.
pub(crate) fn expand(source: &str, lookup: Lookup<'_>) -> Result<Expanded, Problem> {
    let whole = |balanced: bool| {
        let mut expander = Expander { source, at: 0, lookup, unset: Vec::new(), balanced };
        let text = expander.text(false, true, 0)?;
        Ok(Expanded { text, unset: expander.unset })
    };
    // A default like `{"a": 1}` brings braces of its own. When they don't fit together, the first `}` ends it.
    match whole(true) {
        Err(Problem { kind: ProblemKind::Unclosed, .. }) => whole(false),
        result => result,
    }
}

struct Expander<'a> {
    source: &'a str,
    at: usize,
    lookup: Lookup<'a>,
    unset: Vec<String>,
    /// Plain braces inside `${…}` come in pairs.
    balanced: bool,
}

impl Expander<'_> {
    fn rest(&self) -> &str {
        &self.source[self.at..]
    }

    fn problem<T>(&self, start: usize, kind: ProblemKind) -> Result<T, Problem> {
        Err(Problem { start, end: self.at.max(start + 1).min(self.source.len()), kind })
    }

    /// Reads up to the end, or up to the `}` that closes the braces it is in. What isn't `used` (the default of a
    /// variable that exists) is read for its syntax only: a variable in it may be missing.
    fn text(&mut self, in_braces: bool, used: bool, depth: usize) -> Result<String, Problem> {
        let mut text = String::new();
        let mut open = 0_usize;
        let stops: &[char] = if in_braces && self.balanced { &['$', '}', '{'] } else { &['$', '}'] };
        loop {
            let stop = self.rest().find(stops).unwrap_or(self.rest().len());
            if used {
                text.push_str(&self.source[self.at..self.at + stop]);
            }
            self.at += stop;
            if text.len() > EXPANDED_BYTES_MAX || depth > DEPTH_MAX {
                return self.problem(self.at.saturating_sub(1), ProblemKind::TooMuch);
            }
            match self.rest().as_bytes() {
                [] => return Ok(text),
                [b'}', ..] if in_braces && open == 0 => return Ok(text),
                [brace @ (b'{' | b'}'), ..] => {
                    open = if *brace == b'{' { open + 1 } else { open.saturating_sub(1) };
                    text.push(char::from(*brace));
                    self.at += 1;
                }
                [b'$', b'$', ..] => {
                    text.push('$');
                    self.at += 2;
                }
                [b'$', b'{', ..] => {
                    let value = self.braces(used, depth)?;
                    text.push_str(&value);
                }
                _ => {
                    let start = self.at;
                    self.at += 1;
                    let name = self.name();
                    if name.is_empty() {
                        return self.problem(start, ProblemKind::LoneDollar);
                    }
                    if used {
                        text.push_str(&self.value_or_empty(name));
                    }
                }
            }
        }
    }

    /// Reads `${…}`.
    fn braces(&mut self, used: bool, depth: usize) -> Result<String, Problem> {
        let start = self.at;
        self.at += 2;
        let name = self.name();
        if name.is_empty() {
            return self.problem(start, ProblemKind::NoName);
        }
        let colon = self.rest().starts_with(':');
        self.at += usize::from(colon);
        let Some(operator) = self.rest().chars().next() else {
            return self.problem(start, ProblemKind::Unclosed);
        };
        if operator == '}' && !colon {
            self.at += 1;
            return Ok(if used { self.value_or_empty(name) } else { String::new() });
        }
        if !matches!(operator, '-' | '?' | '+') {
            return self.problem(start, ProblemKind::UnknownOperator);
        }
        self.at += 1;
        let value = (self.lookup)(&name);
        // With a colon, an empty variable counts as missing.
        let present = value.as_deref().is_some_and(|value| !colon || !value.is_empty());
        let word_start = self.at;
        let word_used = used && (operator == '-' && !present || operator == '+' && present);
        let word = self.text(true, word_used, depth + 1)?;
        let says = self.source[word_start..self.at].to_owned();
        if !self.rest().starts_with('}') {
            return self.problem(start, ProblemKind::Unclosed);
        }
        self.at += 1;
        match operator {
            _ if !used => Ok(String::new()),
            '+' => Ok(word),
            '?' if !present => {
                self.problem(start, ProblemKind::Required { variable: name, empty: value.is_some(), says })
            }
            _ if present => Ok(value.unwrap_or_default()),
            _ => Ok(word),
        }
    }

    fn name(&mut self) -> String {
        let length = self
            .rest()
            .bytes()
            .enumerate()
            .take_while(|(at, byte)| byte.is_ascii_alphabetic() || *byte == b'_' || *at > 0 && byte.is_ascii_digit())
            .count();
        let name = self.rest()[..length].to_owned();
        self.at += length;
        name
    }

    fn value_or_empty(&mut self, name: String) -> String {
        (self.lookup)(&name).unwrap_or_else(|| {
            self.unset.push(name);
            String::new()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "SET" => Some("value".into()),
            "EMPTY" => Some(String::new()),
            "DOLLAR" => Some("$SET".into()),
            _ => None,
        }
    }

    #[track_caller]
    fn expands(source: &str, to: &str) {
        assert_eq!(expand(source, &lookup).map(|e| e.text), Ok(to.to_owned()), "{source}");
    }

    #[test]
    fn every_form_does_what_the_specification_says() {
        for (source, to) in [
            ("plain", "plain"),
            ("a $SET b", "a value b"),
            ("${SET}s", "values"),
            ("$SET-x", "value-x"),
            ("$$SET and $${SET}", "$SET and ${SET}"),
            ("${SET:-d}", "value"),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY-d}", ""),
            ("${NO-d}", "d"),
            ("${NO:-}", ""),
            ("${SET:?e}${EMPTY?e}", "value"),
            ("${SET:+a}${EMPTY:+a}", "a"),
            ("${EMPTY+a}${NO+a}", "a"),
            ("${NO:-${EMPTY:-${SET}}}", "value"),
            ("${NO:-$${x}}", "${x}"),
            ("${NO:-http://a:80/?q=1}", "http://a:80/?q=1"),
            ("{a}", "{a}"),
            ("$DOLLAR", "$SET"),
            ("${SET:-${NO:?not looked at}}", "value"),
            ("ü${SET}ü", "üvalueü"),
            (r#"${NO:-{"a":{"b":1}}}x"#, r#"{"a":{"b":1}}x"#),
            (r#"${SET:-{"a":1}}x"#, "valuex"),
            ("${NO:-{}}", "{}"),
            ("${NO:-{}", "{"),
            ("${NO:-{${SET}}}", "{value}"),
            ("${NO-a$$b}", "a$b"),
            ("$SET$SET.$_x${SET}", "valuevalue.value"),
        ] {
            expands(source, to);
        }
    }

    #[test]
    fn missing_variables_become_nothing_and_are_told() {
        let expanded = expand("$NO-${ALSO}", &lookup).unwrap();
        assert_eq!((expanded.text.as_str(), expanded.unset), ("-", vec!["NO".to_owned(), "ALSO".to_owned()]));
    }

    #[test]
    fn problems_say_where() {
        let problem = |source: &str| expand(source, &lookup).unwrap_err();
        let says = "set $SET".to_owned();
        assert_eq!(
            problem("x${NO:?set $SET}"),
            Problem { start: 1, end: 16, kind: ProblemKind::Required { variable: "NO".into(), empty: false, says } }
        );
        assert!(matches!(problem("${EMPTY:?}").kind, ProblemKind::Required { empty: true, .. }));
        assert_eq!(problem("pa$5"), Problem { start: 2, end: 3, kind: ProblemKind::LoneDollar });
        assert_eq!(problem("end$").kind, ProblemKind::LoneDollar);
        assert_eq!(problem("${SET").kind, ProblemKind::Unclosed);
        assert_eq!(problem("${SET:-x").kind, ProblemKind::Unclosed);
        assert_eq!(problem("${}").kind, ProblemKind::NoName);
        assert_eq!(problem("${SET!x}").kind, ProblemKind::UnknownOperator);
        assert_eq!(problem("${SET:}").kind, ProblemKind::UnknownOperator);
        assert_eq!(problem(&"${NO:-".repeat(100)).kind, ProblemKind::TooMuch);
    }
}
