//! Which passwords are guessed first. Pure: a text in, a judgement out that doesn't repeat it.

/// Shorter ones are tried out in no time.
const CHARS_MIN: usize = 8;

/// What default and example passwords are made of.
const WORDS: [&str; 103] = [
    "password",
    "passwort",
    "passwd",
    "pass",
    "pwd",
    "pw",
    "secret",
    "secrets",
    "admin",
    "administrator",
    "root",
    "user",
    "username",
    "users",
    "guest",
    "test",
    "testing",
    "tester",
    "example",
    "sample",
    "demo",
    "default",
    "dev",
    "develop",
    "development",
    "prod",
    "production",
    "staging",
    "local",
    "localhost",
    "changeme",
    "changeit",
    "change",
    "me",
    "this",
    "it",
    "please",
    "replace",
    "insert",
    "enter",
    "set",
    "here",
    "your",
    "my",
    "our",
    "the",
    "a",
    "some",
    "super",
    "very",
    "strong",
    "secure",
    "safe",
    "long",
    "random",
    "key",
    "token",
    "value",
    "string",
    "postgres",
    "postgresql",
    "pg",
    "mysql",
    "maria",
    "mariadb",
    "mongo",
    "mongodb",
    "redis",
    "rabbit",
    "rabbitmq",
    "minio",
    "grafana",
    "elastic",
    "elasticsearch",
    "kibana",
    "neo",
    "neo4j",
    "wordpress",
    "word",
    "press",
    "wp",
    "nextcloud",
    "odoo",
    "keycloak",
    "django",
    "rails",
    "laravel",
    "app",
    "application",
    "api",
    "web",
    "site",
    "db",
    "database",
    "data",
    "master",
    "docker",
    "compose",
    "server",
    "letmein",
    "welcome",
    "qwerty",
    "foobar",
];
/// Passwords that stand in widely copied example files.
const PUBLISHED: [&str; 8] =
    ["db-78n9n", "db-btf5q", "db-57xsl", "1qaz2wsx", "abc123", "iloveyou", "yourstrong!passw0rd", "hunter2"];

/// Why a password is weak, as the end of a sentence about it; `None`: nothing is known against it. `related` are names
/// that stand beside it: its user, its database, its service.
pub(super) fn weakness(password: &str, related: &[&str]) -> Option<&'static str> {
    let lower = password.to_lowercase();
    if related.iter().any(|name| !name.is_empty() && name.to_lowercase() == lower) {
        return Some("is the name of its user, database or service");
    }
    if PUBLISHED.contains(&lower.as_str()) || made_of_words(&lower) || made_of_words(&plain(&lower)) {
        return Some("is a well-known one, or made of the words that are tried first");
    }
    if password.chars().count() < CHARS_MIN {
        return Some("is shorter than 8 characters");
    }
    let mut distinct: Vec<char> = lower.chars().collect();
    distinct.sort_unstable();
    distinct.dedup();
    let steps = || lower.as_bytes().windows(2).filter(|pair| pair[1] == pair[0].wrapping_add(1)).count();
    if distinct.len() < 5 || steps() * 4 >= lower.len() * 3 {
        return Some("repeats or counts characters");
    }
    None
}

/// `p@ssw0rd` is tried together with `password`.
fn plain(lower: &str) -> String {
    let letter = |c| match c {
        '0' => 'o',
        '1' => 'i',
        '3' => 'e',
        '4' | '@' => 'a',
        '5' | '$' => 's',
        '7' => 't',
        other => other,
    };
    lower.chars().map(letter).collect()
}

/// Nothing but known words, with digits and punctuation between and around them.
fn made_of_words(lower: &str) -> bool {
    const BYTES_MAX: usize = 64;
    if lower.len() > BYTES_MAX || !lower.bytes().any(|byte| byte.is_ascii_alphabetic()) {
        return false;
    }
    let bytes = lower.as_bytes();
    let mut reached = vec![false; bytes.len() + 1];
    reached[0] = true;
    for at in 0..bytes.len() {
        if !reached[at] {
            continue;
        }
        if !bytes[at].is_ascii_alphabetic() && bytes[at].is_ascii() {
            reached[at + 1] = true;
        }
        for word in WORDS.iter().filter(|word| bytes[at..].starts_with(word.as_bytes())) {
            reached[at + word.len()] = true;
        }
    }
    reached[bytes.len()] && bytes.iter().filter(|byte| byte.is_ascii_digit()).count() <= 6
}

/// A variable of this name holds a password.
pub(super) fn is_password_name(name: &str) -> bool {
    const OTHERS: [&str; 6] = ["RANDOM", "ALLOW_EMPTY", "ONETIME", "REQUIRE", "RESET", "POLICY"];
    let mut words = name.rsplit(['_', '.', '-']).filter(|word| !word.is_empty());
    let Some(last) = words.next() else { return false };
    let tells = ["PASSWORD", "PASSWD", "PASSPHRASE", "REQUIREPASS"].iter().any(|end| ends_with(last, end))
        || ["PASS", "PWD", "PW"].iter().any(|word| last.eq_ignore_ascii_case(word)) && words.next().is_some();
    tells && {
        let upper = name.to_ascii_uppercase();
        !OTHERS.iter().any(|word| upper.contains(word))
    }
}

/// Whatever the case of its letters.
pub(super) fn ends_with(text: &str, end: &str) -> bool {
    let start = text.len().checked_sub(end.len());
    start.is_some_and(|start| text.as_bytes()[start..].eq_ignore_ascii_case(end.as_bytes()))
}

/// A variable of this name holds a password, a key or a token.
pub(super) fn is_secret_name(name: &str) -> bool {
    const ENDS: [&str; 18] = [
        "SECRET",
        "SECRET_KEY",
        "SECRETKEY",
        "SECRET_KEY_BASE",
        "API_KEY",
        "APIKEY",
        "SECRET_ACCESS_KEY",
        "PRIVATE_KEY",
        "ENCRYPTION_KEY",
        "SIGNING_KEY",
        "MASTER_KEY",
        "APP_KEY",
        "JWT_KEY",
        "AUTH_TOKEN",
        "ACCESS_TOKEN",
        "API_TOKEN",
        "BOT_TOKEN",
        "_TOKEN",
    ];
    is_password_name(name) || ENDS.iter().any(|end| ends_with(name, end))
}

/// The value is a key of a known provider, whatever the variable is called.
pub(super) fn is_known_token(value: &str) -> bool {
    const BEGINS: [&str; 11] =
        ["AKIA", "ghp_", "gho_", "github_pat_", "glpat-", "xoxb-", "xoxp-", "sk_live_", "sk-ant-", "sk-proj-", "hf_"];
    value.len() >= 20 && BEGINS.iter().any(|begin| value.starts_with(begin))
        || value.starts_with("-----BEGIN ") && value.contains("PRIVATE KEY")
}

/// What stands in place of a secret: a path, a switch, nothing.
pub(super) fn is_no_secret(value: &str) -> bool {
    let switch = matches!(value.to_ascii_lowercase().as_str(), "true" | "false" | "yes" | "no" | "on" | "off" | "none");
    value.is_empty() || switch || value.starts_with('/') || value.starts_with('$')
}

/// The user and the password of `scheme://user:password@host`, the password with its place in the text.
pub(super) fn url_password(text: &str) -> Option<(&str, &str, usize)> {
    let start = text.find("://")? + 3;
    let authority = &text[start..];
    let end = authority.find(['/', '?', '#', ' ', '"', '\'']).unwrap_or(authority.len());
    let (login, _) = authority[..end].rsplit_once('@')?;
    let (user, password) = login.split_once(':')?;
    (!password.is_empty()).then(|| (user, password, start + user.len() + 1))
}

/// `${NAME:-default}` and `${NAME-default}` in a text: the name, the default and where it begins.
pub(super) fn defaults(text: &str) -> Vec<(&str, &str, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(open) = text[at..].find("${") {
        let name_at = at + open + 2;
        at = name_at;
        // `$${` is a dollar sign.
        let dollars = text[..name_at - 2].bytes().rev().take_while(|byte| *byte == b'$').count();
        let length = text[name_at..].bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count();
        let rest = &text[name_at + length..];
        let Some(default) = rest.strip_prefix(":-").or_else(|| rest.strip_prefix('-')) else { continue };
        if dollars % 2 == 1 {
            continue;
        }
        let start = text.len() - default.len();
        let mut depth = 0;
        let mut end = default.len();
        let mut bytes = default.bytes().enumerate().peekable();
        while let Some((offset, byte)) = bytes.next() {
            match byte {
                b'$' if bytes.peek().is_some_and(|(_, next)| *next == b'{') => depth += 1,
                b'}' if depth == 0 => {
                    end = offset;
                    break;
                }
                b'}' => depth -= 1,
                _ => {}
            }
        }
        found.push((&text[name_at..name_at + length], &default[..end], start));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_that_are_guessed_first_are_weak() {
        for weak in [
            "postgres",
            "example",
            "changeme",
            "CHANGE_ME",
            "root",
            "admin",
            "admin123",
            "P@ssw0rd",
            "passw0rd!",
            "mysecretpassword",
            "minioadmin",
            "somewordpress",
            "your-password-here",
            "db-78n9n",
            "x7Kq",
            "aaaaaaaaaa",
            "12345678",
            "abcdefgh",
            "supersecret",
            "neo4j/password",
            "guest",
            "rootpassword2024",
        ] {
            assert!(weakness(weak, &[]).is_some(), "{weak}");
        }
        assert!(weakness("Barterers", &["barterers"]).is_some());
    }

    #[test]
    fn others_are_not() {
        for strong in ["uF4vJ8qLw2Zr", "correct horse battery", "Tr0ub4dor&Three", "9f86d081884c7d65", "zażółć-gęślą"]
        {
            assert_eq!(weakness(strong, &["app"]), None, "{strong}");
        }
    }

    #[test]
    fn names_of_passwords_and_secrets() {
        for name in ["POSTGRES_PASSWORD", "PGPASSWORD", "RABBITMQ_DEFAULT_PASS", "spring.datasource.password", "DB_PWD"]
        {
            assert!(is_password_name(name), "{name}");
        }
        for name in ["PWD", "OLDPWD", "POSTGRES_PASSWORD_FILE", "MYSQL_RANDOM_ROOT_PASSWORD", "COMPASS", "PASSENGERS"] {
            assert!(!is_password_name(name), "{name}");
        }
        assert!(is_secret_name("OPENAI_API_KEY") && is_secret_name("JWT_SECRET") && !is_secret_name("PUBLIC_KEY"));
    }

    #[test]
    fn urls_and_defaults() {
        assert_eq!(url_password("postgres://ada:pw@db:5432/shop"), Some(("ada", "pw", 15)));
        assert_eq!(url_password("http://db:5432/a@b"), None);
        assert_eq!(url_password("redis://:pw@cache"), Some(("", "pw", 9)));
        assert_eq!(defaults("a${PW:-x}b${Q-${R:-y}}$${N:-z}"), [("PW", "x", 7), ("Q", "${R:-y}", 14), ("R", "y", 19)]);
        assert!(defaults("${A:?b} ${C:-").len() == 1);
    }
}
