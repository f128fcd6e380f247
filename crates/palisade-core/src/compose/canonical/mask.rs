//! What looks like a secret, and what is shown instead.
//!
//! A rule of thumb for people who look over a shoulder or paste into a ticket.

use super::value::Value;

/// What stands in a secret's place.
pub(super) const MASK: &str = "***";

/// Parts of names that tell a secret wherever they stand.
const PARTS: [&str; 10] = [
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "SECRET",
    "TOKEN",
    "CREDENTIAL",
    "APIKEY",
    "ACCESSKEY",
    "PRIVATEKEY",
    "REQUIREPASS",
];
/// Words that tell a secret when they stand alone in a name: `API_KEY`, not `MONKEY`.
const WORDS: [&str; 8] = ["KEY", "KEYS", "PASS", "PWD", "PW", "AUTH", "DSN", "SALT"];

/// Whether the value of something with this name is a secret.
pub(in crate::compose) fn is_secret_name(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let words: Vec<&str> = upper.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    // It says where the secret is, or that it is for everybody.
    if matches!(words.last(), Some(&("FILE" | "PATH" | "DIR"))) || words.contains(&"PUBLIC") || is_folder(&upper) {
        return false;
    }
    PARTS.iter().any(|part| upper.contains(part)) || words.iter().any(|word| WORDS.contains(word))
}

/// Where a shell stands, and stood.
fn is_folder(upper: &str) -> bool {
    matches!(upper, "PWD" | "OLDPWD")
}

/// The values of secret names of a mapping.
pub(super) fn mask_pairs(pairs: &mut Value) {
    let Value::Map(entries) = pairs else { return };
    for (name, value) in entries {
        if matches!(value, Value::Text(text) if !text.is_empty()) && is_secret_name(name) {
            *value = Value::text(MASK);
        }
    }
}

/// `--password=…`, `--password …` and `NAME=…` among the words of a command.
pub(super) fn mask_words(words: &mut [Value]) {
    let mut next = false;
    for word in words {
        let Value::Text(text) = word else { continue };
        let is_option = text.starts_with('-');
        match text.split_once('=') {
            Some((name, value)) if is_secret_name(name) && !value.is_empty() && !name.contains(char::is_whitespace) => {
                *text = format!("{name}={MASK}");
                next = false;
            }
            _ if next && !is_option => {
                *text = MASK.to_owned();
                next = false;
            }
            _ => next = is_option && !text.contains('=') && is_secret_name(text),
        }
    }
}

/// The password of `scheme://user:password@host`, however often that stands there.
pub(super) fn mask_urls(text: &str) -> String {
    let mut masked = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        masked.push_str(before);
        let end =
            after.find(|c: char| c.is_whitespace() || matches!(c, '/' | '"' | '\'' | '?' | '#')).unwrap_or(after.len());
        let (authority, tail) = after.split_at(end);
        match authority.rsplit_once('@').map(|(user, host)| (user.split_once(':'), host)) {
            Some((Some((user, password)), host)) if !password.is_empty() => {
                masked.push_str(&format!("{user}:{MASK}@{host}"));
            }
            _ => masked.push_str(authority),
        }
        rest = tail;
    }
    masked + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in [
            "POSTGRES_PASSWORD",
            "db_password",
            "API_KEY",
            "SECRET_KEY_BASE",
            "GITHUB_TOKEN",
            "aws-credentials",
            "SMTP_PASS",
            "apiKey",
            "DB_PWD",
            "--requirepass",
        ] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in [
            "PWD",
            "OLDPWD",
            "POSTGRES_PASSWORD_FILE",
            "MONKEY",
            "PUBLIC_KEY",
            "KEYBOARD",
            "COMPASS",
            "PATH",
            "AUTHOR",
            "SSH_KEY_PATH",
        ] {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn urls() {
        for (text, masked) in [
            ("postgres://u:p4ss@db:5432/x?y", "postgres://u:***@db:5432/x?y"),
            ("a redis://:p@ss@r/0 b http://x:y@z", "a redis://:***@r/0 b http://x:***@z"),
            ("http://db:5432/a@b", "http://db:5432/a@b"),
            ("http://user@host", "http://user@host"),
            ("://", "://"),
        ] {
            assert_eq!(mask_urls(text), masked);
        }
    }

    #[test]
    fn words_of_commands() {
        let mut words: Vec<_> = [
            "redis-server",
            "--requirepass",
            "hunter2",
            "--port",
            "1",
            "--token=abc",
            "-v",
            "PASSWORD=x",
            "--secret",
            "-x",
        ]
        .map(Value::text)
        .into();
        mask_words(&mut words);
        let shown: Vec<_> = words.iter().filter_map(Value::as_text).collect();
        assert_eq!(
            shown,
            [
                "redis-server",
                "--requirepass",
                "***",
                "--port",
                "1",
                "--token=***",
                "-v",
                "PASSWORD=***",
                "--secret",
                "-x"
            ]
        );
    }
}
