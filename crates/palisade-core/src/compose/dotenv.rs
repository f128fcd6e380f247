//! `.env` and `env_file` contents: `NAME=value` lines.
//!
//! Errors hold line numbers and names, never values: these files are where secrets are.

use super::interpolate::{Lookup, expand};

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LineProblem {
    pub(crate) line: usize,
    pub(crate) what: String,
}

/// Parses the file. A name without `=` has no value: the caller decides where it comes from.
pub(crate) fn parse(text: &str, lookup: Lookup<'_>) -> Result<Vec<(String, Option<String>)>, Vec<LineProblem>> {
    let mut variables: Vec<(String, Option<String>)> = Vec::new();
    let mut problems = Vec::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1;
    while !rest.is_empty() {
        let mut problem = |what: &str| problems.push(LineProblem { line, what: what.to_owned() });
        let end = rest.find('\n').unwrap_or(rest.len());
        let this = rest[..end].trim();
        let mut consumed = (end + 1).min(rest.len());
        if !this.is_empty() && !this.starts_with('#') {
            let this = this.strip_prefix("export ").unwrap_or(this).trim_start();
            let (name, value) = match this.split_once('=') {
                Some((name, value)) => (name.trim_end(), Some(value.trim_start())),
                None => (this, None),
            };
            if !is_name(name) {
                problem("there is no `NAME=value`");
            } else if let Some(value) = value {
                let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
                let raw = match quote {
                    None => Some((value.split(" #").next().unwrap_or_default().trim_end().to_owned(), true)),
                    Some(quote) => {
                        // The value starts at its quote, which is the first one behind the `=`.
                        let start = rest.find('=').map_or(0, |eq| eq + 1);
                        let start = start + rest[start..].find(quote).unwrap_or(0) + 1;
                        let closed = closing(&rest[start..], quote);
                        if let Some(close) = closed {
                            let after = start + close + 1;
                            let line_end = rest[after..].find('\n').map_or(rest.len(), |at| after + at + 1);
                            let tail = rest[after..line_end].trim();
                            if !tail.is_empty() && !tail.starts_with('#') {
                                problem("something stands behind the closing quote");
                            }
                            consumed = line_end;
                        } else {
                            problem("a quote is opened and never closed");
                        }
                        closed.map(|close| {
                            let inner = &rest[start..start + close];
                            (if quote == '"' { unescape(inner) } else { inner.to_owned() }, quote == '"')
                        })
                    }
                };
                if let Some((raw, interpolated)) = raw {
                    let from_before = |wanted: &str| {
                        let earlier = variables.iter().rev().find(|(name, _)| name == wanted);
                        lookup(wanted).or_else(|| earlier.and_then(|(_, value)| value.clone()))
                    };
                    let value = if interpolated { expand(&raw, &from_before).map(|e| e.text).ok() } else { Some(raw) };
                    match value {
                        Some(value) if !value.contains('\0') => variables.push((name.to_owned(), Some(value))),
                        _ => problem(
                            "a `$` in the value can't be resolved: write `$$` for a dollar sign, or quote the value with '…'",
                        ),
                    }
                }
            } else {
                variables.push((name.to_owned(), None));
            }
        }
        line += rest[..consumed].matches('\n').count();
        rest = &rest[consumed..];
    }
    if problems.is_empty() { Ok(variables) } else { Err(problems) }
}

/// A name that an environment can hold.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c == '=' || c.is_whitespace() || c.is_control())
}

fn closing(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, char)| {
        let closes = char == quote && !escaped;
        escaped = quote == '"' && char == '\\' && !escaped;
        closes.then_some(at)
    })
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char != '\\' {
            out.push(char);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('$') => out.push_str("$$"),
            Some(other @ ('"' | '\\')) => out.push(other),
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn the_usual_forms_are_read() {
        let text = "# comment\nA=1\nexport B = two words # comment\nC='$A #'\nD=\"x\\n${A}\\$\" # c\nE=\n\nF\nG=\"a\nb\"\nH=a#b\r\n";
        let wanted = [
            ("A", Some("1")),
            ("B", Some("two words")),
            ("C", Some("$A #")),
            ("D", Some("x\n1$")),
            ("E", Some("")),
            ("F", None),
            ("G", Some("a\nb")),
            ("H", Some("a#b")),
        ];
        let wanted: Vec<_> = wanted.iter().map(|(n, v)| ((*n).to_owned(), v.map(str::to_owned))).collect();
        assert_eq!(parse(text, &none).unwrap(), wanted);
    }

    #[test]
    fn problems_name_lines_and_no_values() {
        let problems = parse("A=1\nhunter2 x=\nB=\"hunter2\n", &none).unwrap_err();
        assert_eq!(problems.iter().map(|p| p.line).collect::<Vec<_>>(), [2, 3]);
        assert!(!format!("{problems:?}").contains("hunter2"));
        assert_eq!(parse("A=pa$5\n", &none).unwrap_err()[0].line, 1);
        assert_eq!(parse("A='x' y\n", &none).unwrap_err()[0].line, 1);
    }
}
