//! Patterns of `include`: `*`, `?` and `[…]`, none of which matches a slash, nor a dot that begins a name.

/// Whether the whole path is one of the pattern's.
pub fn matches(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('/').collect();
    let path: Vec<&str> = path.split('/').collect();
    pattern.len() == path.len() && pattern.iter().zip(path).all(|(pattern, name)| name_matches(pattern, name))
}

fn name_matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut p, mut n) = (0, 0);
    // Where the last star was, and what it has taken so far: only the last one ever has to take more.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match one(&pattern[p..], name[n]) {
            One::Star => {
                star = Some((p, n));
                p += 1;
            }
            One::Yes(width) => {
                p += width;
                n += 1;
            }
            One::No => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

enum One {
    Star,
    /// So many characters of the pattern match.
    Yes(usize),
    No,
}

fn one(pattern: &[char], c: char) -> One {
    match pattern.first() {
        None => One::No,
        Some('*') => One::Star,
        Some('?') => One::Yes(1),
        Some('\\') if pattern.len() > 1 => {
            if pattern[1] == c {
                One::Yes(2)
            } else {
                One::No
            }
        }
        Some('[') => match class(&pattern[1..], c) {
            Some((width, true)) => One::Yes(width + 1),
            Some((_, false)) => One::No,
            None => {
                if c == '[' {
                    One::Yes(1)
                } else {
                    One::No
                }
            }
        },
        Some(literal) => {
            if *literal == c {
                One::Yes(1)
            } else {
                One::No
            }
        }
    }
}

/// How long a class is, its closing bracket included, and whether it has the character.
fn class(pattern: &[char], c: char) -> Option<(usize, bool)> {
    let negated = matches!(pattern.first(), Some('!' | '^'));
    let start = usize::from(negated);
    let end = (start + 1..pattern.len()).find(|at| pattern[*at] == ']')?;
    let (mut at, mut has) = (start, false);
    while at < end {
        if at + 2 < end && pattern[at + 1] == '-' {
            has |= (pattern[at]..=pattern[at + 2]).contains(&c);
            at += 3;
        } else {
            has |= pattern[at] == c;
            at += 1;
        }
    }
    Some((end + 1, has != negated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_a_shell_s_do() {
        for (pattern, path) in [
            ("/etc/nginx/conf.d/*.conf", "/etc/nginx/conf.d/a.conf"),
            ("sites-enabled/*", "sites-enabled/default"),
            ("/etc/nginx/*/[a-c]*.con?", "/etc/nginx/x/b1.conf"),
            ("*a*b*c", "xaybzc"),
            ("[!a]", "b"),
            ("[", "["),
            ("a\\*b", "a*b"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("conf.d/*.conf", "conf.d/a.conf.bak"),
            ("conf.d/*", "conf.d/.hidden"),
            ("*", "a/b"),
            ("[!a]", "a"),
            ("a\\*b", "axb"),
            ("*a*b*c", "cba"),
            ("", "a"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }
}
