//! A command in one text becomes words, as Docker Compose splits it: with quotes, and without a shell.

/// What became of a text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) words: Vec<String>,
    /// The byte where a sign for shells stands: Docker Compose takes no notice of it and of all that follows.
    pub(crate) cut_at: Option<usize>,
}

/// `None`: a quote or a bracket is left open.
pub(crate) fn split(text: &str) -> Option<Split> {
    let mut words = Vec::new();
    // `None`: between two words; `""` is a word, too.
    let mut word: Option<String> = None;
    let (mut quote, mut closing, mut escaped) = (None, None, false);
    let mut cut_at = None;
    for (at, c) in text.char_indices() {
        if escaped {
            let meant = match c {
                't' => '\t',
                'n' => '\n',
                other => other,
            };
            word.get_or_insert_default().push(meant);
            escaped = false;
        } else if c == '\\' && quote != Some('\'') {
            escaped = true;
        } else if quote.is_some() {
            if quote == Some(c) {
                quote = None;
            } else {
                word.get_or_insert_default().push(c);
            }
        } else if closing.is_some() {
            word.get_or_insert_default().push(c);
            closing = closing.filter(|end| *end != c);
        } else if c.is_ascii_whitespace() {
            words.extend(word.take());
        } else {
            match c {
                '"' | '\'' => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                ';' | '&' | '|' | '<' | '>' => {
                    cut_at = Some(at);
                    break;
                }
                // What a shell would run stays one word.
                '(' if word.as_ref().is_some_and(|word| word.ends_with('$')) => {
                    word.get_or_insert_default().push(c);
                    closing = Some(')');
                }
                '(' | ')' => return None,
                _ => {
                    closing = (c == '`').then_some('`');
                    word.get_or_insert_default().push(c);
                }
            }
        }
    }
    if cut_at.is_none() && (escaped || quote.is_some() || closing.is_some()) {
        return None;
    }
    words.extend(word);
    Some(Split { words, cut_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        split(text).unwrap().words
    }

    #[test]
    fn quotes_keep_words_together_and_go_away() {
        assert_eq!(words("redis-server --save '' --port  6379"), ["redis-server", "--save", "", "--port", "6379"]);
        assert_eq!(words("sh -c \"a && b; c\""), ["sh", "-c", "a && b; c"]);
        assert_eq!(words("a\\ b 'c\\d' e\"f g\"h"), ["a b", "c\\d", "ef gh"]);
        assert_eq!(words("echo `date +%F` $(id -u) ${X}"), ["echo", "`date +%F`", "$(id -u)", "${X}"]);
        assert_eq!(words(" \n "), Vec::<String>::new());
    }

    #[test]
    fn signs_for_shells_end_the_command() {
        assert_eq!(split("migrate && serve"), Some(Split { words: vec!["migrate".into()], cut_at: Some(8) }));
        assert_eq!(split("a 'b").or(split("a (b)")).or(split("a \\")), None);
    }
}
