//! A model as data, and its text as YAML and JSON.
//!
//! Both texts parse back to the same model. What the model means is said in the module above.

use std::fmt::Write as _;

/// One value of the model. Mappings keep their order.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the usual kinds of values")]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Value>),
    Map(Vec<(String, Value)>),
}

impl Value {
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }
    /// The value of a key, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries().iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }
    /// The entries of a mapping; nothing else has some.
    pub fn entries(&self) -> &[(String, Value)] {
        match self {
            Self::Map(entries) => entries,
            _ => &[],
        }
    }
    /// The items of a list; nothing else has some.
    pub fn items(&self) -> &[Value] {
        match self {
            Self::List(items) => items,
            _ => &[],
        }
    }
    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::List(items) => items.is_empty(),
            Self::Map(entries) => entries.is_empty(),
            _ => false,
        }
    }
    /// Every text in it changed; keys stay.
    pub(super) fn map_texts(&mut self, change: &impl Fn(&str) -> String) {
        match self {
            Self::Text(text) => *text = change(text),
            Self::List(items) => items.iter_mut().for_each(|item| item.map_texts(change)),
            Self::Map(entries) => entries.iter_mut().for_each(|(_, value)| value.map_texts(change)),
            _ => {}
        }
    }

    /// As JSON, indented.
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        self.json(0, &mut out);
        out.push('\n');
        out
    }

    /// As YAML.
    pub fn to_yaml(&self) -> String {
        let mut out = String::new();
        if self.is_block() {
            self.yaml(0, &mut out);
        } else {
            self.yaml_inline(&mut out);
            out.push('\n');
        }
        out
    }

    fn json(&self, depth: usize, out: &mut String) {
        let line = |depth: usize, out: &mut String| {
            let _ = write!(out, "\n{:width$}", "", width = depth * 2);
        };
        match self {
            Self::List(items) if !items.is_empty() => {
                out.push('[');
                for (number, item) in items.iter().enumerate() {
                    out.push_str(if number > 0 { "," } else { "" });
                    line(depth + 1, out);
                    item.json(depth + 1, out);
                }
                line(depth, out);
                out.push(']');
            }
            Self::Map(entries) if !entries.is_empty() => {
                out.push('{');
                for (number, (key, value)) in entries.iter().enumerate() {
                    out.push_str(if number > 0 { "," } else { "" });
                    line(depth + 1, out);
                    quote(key, out);
                    out.push_str(": ");
                    value.json(depth + 1, out);
                }
                line(depth, out);
                out.push('}');
            }
            Self::Text(text) => quote(text, out),
            other => other.yaml_inline(out),
        }
    }

    /// Whether it stands on lines of its own.
    fn is_block(&self) -> bool {
        matches!(self, Self::List(_) | Self::Map(_)) && !self.is_empty()
    }

    fn yaml(&self, depth: usize, out: &mut String) {
        let indent = |out: &mut String| {
            let _ = write!(out, "{:width$}", "", width = depth * 2);
        };
        match self {
            Self::Map(entries) => {
                for (key, value) in entries {
                    indent(out);
                    scalar(key, out);
                    out.push(':');
                    value.yaml_after(depth, out);
                }
            }
            Self::List(items) => {
                for item in items {
                    indent(out);
                    out.push('-');
                    match item {
                        Self::Map(entries) if !entries.is_empty() => {
                            // The first key stands beside the dash.
                            let mut below = String::new();
                            item.yaml(depth + 1, &mut below);
                            out.push(' ');
                            out.push_str(below.trim_start());
                        }
                        _ => item.yaml_after(depth, out),
                    }
                }
            }
            _ => {}
        }
    }

    fn yaml_after(&self, depth: usize, out: &mut String) {
        if self.is_block() {
            out.push('\n');
            self.yaml(depth + 1, out);
        } else {
            out.push(' ');
            self.yaml_inline(out);
            out.push('\n');
        }
    }

    fn yaml_inline(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => {
                let _ = write!(out, "{value}");
            }
            Self::Int(value) => {
                let _ = write!(out, "{value}");
            }
            Self::Float(value) => {
                let _ = write!(out, "{value}");
            }
            Self::Text(text) => scalar(text, out),
            Self::List(_) => out.push_str("[]"),
            Self::Map(_) => out.push_str("{}"),
        }
    }
}

/// A text of YAML: without quotes where nobody could take it for something else.
fn scalar(text: &str, out: &mut String) {
    if is_plain(text) {
        out.push_str(text);
    } else {
        quote(text, out);
    }
}

fn is_plain(text: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '_' | '.');
    let other = |c: char| {
        c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '.' | '-' | '=' | '+' | '@' | ',' | ':' | ' ' | '$')
    };
    let word = ["true", "false", "yes", "no", "on", "off", "y", "n", "null"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word));
    let number = text.parse::<f64>().is_ok() || text.trim_start_matches('.').parse::<f64>().is_ok();
    text.starts_with(first)
        && text.chars().all(other)
        && !text.contains(": ")
        && !text.ends_with([':', ' '])
        && !word
        && !number
}

/// In quotes, which JSON and YAML read alike.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Line ends and marks of other alphabets, too: YAML gives them a meaning.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::super::super::yaml;
    use super::*;
    use crate::diagnostic::SourceMap;

    fn parsed(text: &str) -> Value {
        let mut sources = SourceMap::default();
        let file = sources.add("t", text).unwrap();
        let (documents, problems) = yaml::parse(text, file);
        assert!(problems.is_empty(), "{text}: {problems:?}");
        super::super::scalar::generic(&documents.unwrap_or_default()[0])
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let texts = [
            "",
            " ",
            "a",
            "true",
            "No",
            "null",
            "~",
            "1",
            "1.5",
            "0x10",
            "0440",
            "1e3",
            ".5",
            ".inf",
            ".nan",
            "-",
            "- a",
            "-a",
            "a: b",
            "a:",
            "a #b",
            "#a",
            "a\nb\n",
            "tab\there",
            "'",
            "\"",
            "\\",
            "é ü",
            "\u{85}\u{2028}\u{feff}",
            "\u{7f}\u{1}",
            "{a}",
            "[a]",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
            "`a`",
            "a, b",
            "?",
            "? a",
            "...",
            "---",
            "=",
            "<<",
            "$$A",
            "a=b:c",
            "2001-01-01",
            "12:30",
            "/a b/c",
            "inf",
            "NaN",
            "infinity",
            "a\r\nb",
            "😀",
            "y",
            "+1",
            "1_000",
            "key: [x",
            "x ",
            "\u{a0}x",
        ];
        let mut entries: Vec<_> = texts.iter().map(|text| ((*text).to_owned(), Value::text(*text))).collect();
        entries.retain(|(key, _)| key != "<<");
        let all = Value::Map(vec![
            ("texts".into(), Value::List(texts.iter().map(|text| Value::text(*text)).collect())),
            ("keys".into(), Value::Map(entries)),
            (
                "rest".into(),
                Value::List(vec![
                    Value::Null,
                    Value::Bool(true),
                    Value::Int(-5),
                    Value::Float(0.25),
                    Value::List(vec![]),
                    Value::Map(vec![]),
                    Value::List(vec![
                        Value::List(vec![Value::Int(1)]),
                        Value::Map(vec![("a".into(), Value::List(vec![Value::Null]))]),
                    ]),
                    Value::Map(vec![
                        ("a".into(), Value::Map(vec![("b".into(), Value::Int(1))])),
                        ("c".into(), Value::text("d")),
                    ]),
                ]),
            ),
        ]);
        assert_eq!(parsed(&all.to_yaml()), all, "{}", all.to_yaml());
        assert_eq!(parsed(&all.to_json()), all, "{}", all.to_json());
        let json: serde_json::Value = serde_json::from_str(&all.to_json()).unwrap();
        let read = json["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap());
        assert!(read.eq(texts.iter().copied()));
    }
}
