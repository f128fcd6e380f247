//! `.env` and `env_file` contents: `NAME=value` lines, as Compose reads them.
//!
//! Errors hold line numbers and names, never values: these files are where secrets are.

use super::interpolate::{Lookup, expand};

/// What is wrong with a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LineProblem {
    pub(crate) line: usize,
    pub(crate) what: String,
}

/// The variables of a file in its order, and what was probably not meant.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Lines {
    /// A name without `=` has no value: the caller decides where it comes from.
    pub(crate) variables: Vec<(String, Option<String>)>,
    pub(crate) warnings: Vec<LineProblem>,
}

/// Parses the file.
pub(crate) fn parse(text: &str, lookup: Lookup<'_>) -> Result<Lines, Vec<LineProblem>> {
    let mut lines = Lines::default();
    let mut problems = Vec::new();
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut line = 1;
    while !rest.is_empty() {
        let end = rest.find('\n').unwrap_or(rest.len());
        let mut consumed = (end + 1).min(rest.len());
        let this = rest[..end].trim();
        if !this.is_empty() && !this.starts_with('#') {
            let start = rest[..end].len() - rest[..end].trim_start().len();
            match statement(&rest[start..], &lines.variables, lookup) {
                Ok(statement) => {
                    consumed = consumed.max((start + statement.length).min(rest.len()));
                    if statement.unset {
                        let what = "a `$` in the value names a variable that is not set, so it stands for nothing: write `$$` for a dollar sign, or quote the value with '…'";
                        lines.warnings.push(LineProblem { line, what: what.to_owned() });
                    }
                    lines.variables.push((statement.name, statement.value));
                }
                Err(what) => problems.push(LineProblem { line, what: what.to_owned() }),
            }
        }
        line += rest[..consumed].matches('\n').count();
        rest = &rest[consumed..];
    }
    if problems.is_empty() { Ok(lines) } else { Err(problems) }
}

/// Takes the lines as they are: no quotes, no variables, no comments behind values. `format: raw`.
pub(crate) fn raw(text: &str) -> Result<Lines, Vec<LineProblem>> {
    let mut lines = Lines::default();
    let mut problems = Vec::new();
    for (number, line) in text.strip_prefix('\u{feff}').unwrap_or(text).lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (line.trim_end(), None),
        };
        if is_name(name) && !value.as_ref().is_some_and(|value| value.contains('\0')) {
            lines.variables.push((name.to_owned(), value));
        } else {
            let what = "there is no `NAME=value`; before the `=` there may be no space".to_owned();
            problems.push(LineProblem { line: number + 1, what });
        }
    }
    if problems.is_empty() { Ok(lines) } else { Err(problems) }
}

/// A name that an environment can hold.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c == '=' || c.is_whitespace() || c.is_control())
}

/// One variable.
struct Statement {
    name: String,
    value: Option<String>,
    /// So many bytes were read; a quoted value may be many lines.
    length: usize,
    unset: bool,
}

fn statement(text: &str, earlier: &[(String, Option<String>)], lookup: Lookup<'_>) -> Result<Statement, &'static str> {
    let line = text.split('\n').next().unwrap_or_default();
    let export = line.strip_prefix("export").filter(|rest| rest.starts_with(char::is_whitespace));
    let line = export.unwrap_or(line).trim_start();
    // `NAME: value` is a variable as well.
    let at = line.find(['=', ':']).unwrap_or(line.len());
    let name = line[..at].trim_end();
    if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '[' | ']')) {
        return Err("there is no `NAME=value`");
    }
    let name = name.to_owned();
    let Some(value) = line.get(at + 1..) else {
        return Ok(Statement { name, value: None, length: 0, unset: false });
    };
    let value = value.trim();
    let (written, expanded, length) = match value.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            // The line is the beginning of the text, so what is behind its first quote goes on below it.
            let start = offset(text, value) + 1;
            let (inner, close) = quoted(&text[start..], quote).ok_or("a quote is opened and never closed")?;
            let after = &text[start + close + 1..];
            let behind = after.split('\n').next().unwrap_or_default();
            if !behind.trim().is_empty() && !behind.trim_start().starts_with('#') {
                return Err("something stands behind the closing quote");
            }
            let length = start + close + 1 + (behind.len() + 1).min(after.len());
            (if quote == '"' { unescape(&inner) } else { inner }, quote == '"', length)
        }
        _ => (value.split(" #").next().unwrap_or_default().trim_end().to_owned(), true, 0),
    };
    let known = |wanted: &str| {
        let before = earlier.iter().rev().find(|(name, _)| name == wanted);
        lookup(wanted).or_else(|| before.and_then(|(_, value)| value.clone()))
    };
    let (value, unset) = if expanded {
        let unresolved =
            "a `$` in the value can't be resolved: write `$$` for a dollar sign, or quote the value with '…'";
        let expanded = expand(&written, &known).map_err(|_| unresolved)?;
        (expanded.text, !expanded.unset.is_empty())
    } else {
        (written, false)
    };
    if value.contains('\0') {
        return Err("the value holds a NUL character, which no environment can");
    }
    Ok(Statement { name, value: Some(value), length, unset })
}

/// Where `part`, which is a slice of `text`, begins in it.
fn offset(text: &str, part: &str) -> usize {
    part.as_ptr().addr() - text.as_ptr().addr()
}

/// What stands before the closing quote, where a backslash protects a quote, and the place of that quote.
fn quoted(text: &str, quote: char) -> Option<(String, usize)> {
    let mut inner = String::new();
    let mut escaped = false;
    for (at, char) in text.char_indices() {
        match char {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            _ if char == quote && !escaped => return Some((inner, at)),
            _ if char == quote => {}
            _ if escaped => inner.push('\\'),
            _ => {}
        }
        escaped = false;
        inner.push(char);
    }
    None
}

/// The escapes of a shell's double quotes. Those that aren't known stay as they are.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(char) = rest.chars().next() else {
            out.push('\\');
            break;
        };
        let mut length = char.len_utf8();
        match char {
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\x0b'),
            '$' => out.push_str("$$"),
            '"' | '\\' => out.push(char),
            // `\0` and three octal digits are a character.
            '0' => match rest.get(1..4).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
                Some(byte) => {
                    out.push(char::from(byte));
                    length = 4;
                }
                None => out.push_str("\\0"),
            },
            _ => out.extend(['\\', char]),
        }
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    #[track_caller]
    fn reads(text: &str, wanted: &[(&str, Option<&str>)]) {
        let wanted: Vec<_> = wanted.iter().map(|(n, v)| ((*n).to_owned(), v.map(str::to_owned))).collect();
        assert_eq!(parse(text, &none).map(|lines| lines.variables), Ok(wanted), "{text}");
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
        reads(text, &wanted);
    }

    #[test]
    fn the_rarer_forms_are_read_as_compose_reads_them() {
        reads("A: 1\nexport\tB=2\n  C.x-y[0] = 3\n", &[("A", Some("1")), ("B", Some("2")), ("C.x-y[0]", Some("3"))]);
        reads("URL=http://a:80/?b=c\n", &[("URL", Some("http://a:80/?b=c"))]);
        reads(r"A='it\'s' # c", &[("A", Some("it's"))]);
        reads(r"A='a\nb\\'", &[("A", Some(r"a\nb\\"))]);
        reads(r#"A="say \"x\" \\ \t\z\0101\09""#, &[("A", Some("say \"x\" \\ \t\\zA\\09"))]);
        reads(
            "A=\"${X:-d}\"\nB=${A}${X+no}\nC='one\n\n# two'\nD=4",
            &[("A", Some("d")), ("B", Some("d")), ("C", Some("one\n\n# two")), ("D", Some("4"))],
        );
        reads("A=a\\b\nB=x\"y'\nC= # none\n", &[("A", Some(r"a\b")), ("B", Some("x\"y'")), ("C", Some("# none"))]);
        reads("\u{feff}A=ü\n\tB='ö' # ä\n", &[("A", Some("ü")), ("B", Some("ö"))]);
        let outside = |name: &str| (name == "A").then(|| "outside".to_owned());
        assert_eq!(
            parse("A=inside\nB=$A", &outside).unwrap().variables[1],
            ("B".to_owned(), Some("outside".to_owned())),
            "what is known already wins inside values"
        );
    }

    #[test]
    fn problems_name_lines_and_no_values() {
        let problems = parse("A=1\nhunter2 x=\nB=\"hunter2\n", &none).unwrap_err();
        assert_eq!(problems.iter().map(|p| p.line).collect::<Vec<_>>(), [2, 3]);
        assert!(!format!("{problems:?}").contains("hunter2"));
        assert_eq!(parse("A=pa$5\n", &none).unwrap_err()[0].line, 1);
        assert_eq!(parse("A='x' y\n", &none).unwrap_err()[0].line, 1);
        assert_eq!(parse("A/B=1\n=2\n", &none).unwrap_err().len(), 2);
        assert_eq!(parse("A=\"two\nlines\"\nB C\n", &none).unwrap_err()[0].line, 3);
    }

    #[test]
    fn a_dollar_that_eats_a_part_of_a_password_is_told() {
        let lines = parse("A=1\nB=pa$word\nC=pa$$word\nD='pa$word'\n", &none).unwrap();
        assert_eq!(lines.warnings.iter().map(|warning| warning.line).collect::<Vec<_>>(), [2]);
        assert!(!lines.warnings[0].what.contains("word`"));
        assert_eq!(lines.variables[1].1.as_deref(), Some("pa"));
    }

    #[test]
    fn raw_lines_are_taken_as_they_are() {
        let lines = raw("# c\n A=\"x\" # $y \nB\n\nC= '1'\\n\n").unwrap().variables;
        let wanted = [("A", Some("\"x\" # $y ")), ("B", None), ("C", Some(" '1'\\n"))];
        assert_eq!(lines, wanted.map(|(name, value)| (name.to_owned(), value.map(str::to_owned))));
        assert_eq!(raw("A=1\nB C=2\n=3\n").unwrap_err().iter().map(|p| p.line).collect::<Vec<_>>(), [2, 3]);
    }
}
