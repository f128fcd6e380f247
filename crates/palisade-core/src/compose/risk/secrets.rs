//! Passwords and keys: weak ones, and those that stand in the file. None is ever shown.

use std::collections::BTreeSet;

use super::passwords::{
    defaults, ends_with, is_known_token, is_no_secret, is_password_name, is_secret_name, url_password, weakness,
};
use super::{Hit, Hits, Seen, Sight, table};
use crate::compose::file::resolve;
use crate::compose::yaml::{Data, Node, Scalar};
use crate::diagnostic::{Span, quoted};

/// A secret's file is not longer.
const SECRET_BYTES_MAX: usize = 4096;

/// One variable as the file has it.
struct Pair<'a> {
    name: &'a str,
    /// Variables filled in; `None`: it comes from outside.
    value: Option<&'a str>,
    /// As written, when variables were filled in.
    written: Option<&'a str>,
    span: Span,
}

/// Who holds a value, for messages.
#[derive(Clone, Copy)]
struct Holder<'h> {
    /// "in `environment` of", "in an `env_file` of" …
    what: &'h str,
    name: &'h str,
    span: Span,
}

pub(super) fn examine(seen: &Seen<'_>, sight: Sight<'_>, hits: &mut Hits) {
    let variables = seen.get("environment").map(|node| pairs(node, sight)).unwrap_or_default();
    let environment = &seen.service.environment;
    let mut related: BTreeSet<&str> = BTreeSet::from([seen.name()]);
    related.extend(environment.iter().filter(|(name, _)| is_owner_name(name)).map(|(_, value)| value.as_str()));
    let related: Vec<&str> = related.into_iter().collect();
    let own: BTreeSet<&str> = variables.iter().map(|pair| pair.name).collect();
    for pair in &variables {
        let effective = pair.value.or_else(|| environment.get(pair.name).map(String::as_str)).unwrap_or_default();
        let holder = Holder { what: "", name: pair.name, span: pair.span };
        judge(seen, holder, effective, &related, hits);
        match pair.written {
            Some(written) => in_defaults(seen, sight, pair, written, &related, hits),
            None => {
                if let Some(value) = pair.value {
                    in_clear(seen, pair, value, &related, hits);
                }
            }
        }
    }
    if let Some(node) = seen.get("env_file") {
        for (name, value) in environment.iter().filter(|(name, _)| !own.contains(name.as_str())) {
            let holder = Holder { what: "from its `env_file`", name, span: node.span };
            judge(seen, holder, value, &related, hits);
        }
    }
    command(seen, sight, hits);
    if let Some(arguments) = seen.get("build").and_then(|build| build.get("args")) {
        for pair in pairs(&arguments.value, sight) {
            if let (Some(value), None) = (pair.value, pair.written) {
                hits.masked.extend(is_secret_name(pair.name).then_some(pair.span));
                in_clear(seen, &pair, value, &[], hits);
            }
        }
    }
}

/// `environment` and the like, in either form.
fn pairs<'a>(node: &'a Node, sight: Sight<'a>) -> Vec<Pair<'a>> {
    match &node.data {
        Data::Map(entries) => entries
            .iter()
            .filter_map(|entry| match &entry.value.data {
                Data::Null => Some(Pair { name: &entry.key, value: None, written: None, span: entry.key_span }),
                Data::Scalar(Scalar { text, written, .. }) => Some(Pair {
                    name: &entry.key,
                    value: Some(text),
                    written: written.as_deref(),
                    span: entry.value.span,
                }),
                _ => None,
            })
            .collect(),
        Data::List(items) => items
            .iter()
            .filter_map(|item| {
                let Data::Scalar(Scalar { text, written, .. }) = &item.data else { return None };
                let Some((name, value)) = text.split_once('=') else {
                    return Some(Pair { name: text, value: None, written: None, span: item.span });
                };
                let whole = written.as_deref().unwrap_or(text);
                let span = match whole.split_once('=') {
                    Some((name, _)) => sight.sources.part(whole, item.span, name.len() + 1, whole.len()),
                    None => item.span,
                };
                let written = written.as_deref().and_then(|written| Some(written.split_once('=')?.1));
                Some(Pair { name, value: Some(value), written, span })
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Its value is who the password belongs to.
fn is_owner_name(name: &str) -> bool {
    ["USER", "USERNAME", "_DB", "DATABASE", "LOGIN"].iter().any(|end| ends_with(name, end))
}

fn weak(seen: &Seen<'_>, holder: Holder<'_>, why: &str, hits: &mut Hits) {
    let from = if holder.what.is_empty() { String::new() } else { format!(" ({})", holder.what) };
    let message = format!("the password {} of `{}`{from} {why}", quoted(holder.name), seen.name());
    hits.push(Hit::new(&table::WEAK_PASSWORD, seen, holder.span, message));
}

/// What a variable holds, wherever it comes from.
fn judge(seen: &Seen<'_>, holder: Holder<'_>, value: &str, related: &[&str], hits: &mut Hits) {
    let named = |name: &str| holder.name.eq_ignore_ascii_case(name);
    let is = |word: &str| value.eq_ignore_ascii_case(word);
    let on = || ["true", "yes", "on", "1"].into_iter().any(is);
    let allows_none =
        ends_with(holder.name, "PASSWORD") && holder.name.to_ascii_uppercase().contains("ALLOW_EMPTY") && on();
    let no_password = allows_none
        || named("POSTGRES_HOST_AUTH_METHOD") && is("trust")
        || named("NEO4J_AUTH") && is("none")
        || named("XPACK.SECURITY.ENABLED") && is("false")
        || named("DISABLE_SECURITY_PLUGIN") && is("true");
    if no_password {
        let message = format!("`{}` asks for no password, because of {}", seen.name(), quoted(holder.name));
        hits.push(
            Hit::new(&table::WEAK_PASSWORD, seen, holder.span, message)
                .hint("remove it and give a password; peers of a broken service are not friends"),
        );
        return;
    }
    let neo4j = value.strip_prefix("neo4j/").filter(|_| named("NEO4J_AUTH"));
    if (is_password_name(holder.name) || neo4j.is_some()) && !is_no_secret(value) {
        if let Some(why) = weakness(neo4j.unwrap_or(value), related) {
            weak(seen, holder, why, hits);
        }
    } else if let Some((user, password, _)) = url_password(value) {
        let mut related = related.to_vec();
        related.push(user);
        if let Some(why) = weakness(password, &related).filter(|_| !password.contains('$')) {
            let message = format!("the password in the address {} of `{}` {why}", quoted(holder.name), seen.name());
            hits.push(Hit::new(&table::WEAK_PASSWORD, seen, holder.span, message));
        }
    }
}

/// Defaults stand in the file, and are what runs wherever somebody forgets the variable.
fn in_defaults(seen: &Seen<'_>, sight: Sight<'_>, pair: &Pair<'_>, written: &str, related: &[&str], hits: &mut Hits) {
    for (variable, default, start) in defaults(written) {
        let alone = written.len() == default.len() + start + 1 && written.starts_with("${");
        let named = |is: fn(&str) -> bool| is(variable) || alone && is(pair.name);
        if default.contains("${") || is_no_secret(default) || !named(is_secret_name) {
            continue;
        }
        let span = sight.sources.part(written, pair.span, start, start + default.len());
        hits.masked.push(span);
        let name = seen.name();
        let why = weakness(default, related).filter(|_| named(is_password_name));
        match why {
            Some(why) => {
                let message = format!("the default password for {} in `{name}` {why}", quoted(variable));
                let hint = format!(
                    "give it no default: `${{{variable}:?}}` stops where it is not set; make one with `openssl rand -base64 24`"
                );
                hits.push(Hit::new(&table::WEAK_PASSWORD, seen, span, message).label("the default").hint(hint));
            }
            None => {
                let message =
                    format!("a secret stands in the file as the default for {} in `{name}`", quoted(variable));
                hits.push(Hit::new(&table::SECRET_IN_CLEAR, seen, span, message).label("the default"));
            }
        }
    }
    // `postgres://user:pw@${HOST}` holds a password, too.
    if let Some((user, password, start)) = url_password(written).filter(|(_, password, _)| !password.contains('$')) {
        let span = sight.sources.part(written, pair.span, start, start + password.len());
        hits.masked.push(span);
        let mut related = related.to_vec();
        related.push(user);
        if weakness(password, &related).is_none() {
            clear(seen, pair.name, span, hits);
        }
    }
}

fn clear(seen: &Seen<'_>, name: &str, span: Span, hits: &mut Hits) {
    let message = format!("the secret {} of `{}` stands in the file", quoted(name), seen.name());
    hits.push(Hit::new(&table::SECRET_IN_CLEAR, seen, span, message));
}

/// A value that was written out. Weak ones are told as such, which is the worse.
fn in_clear(seen: &Seen<'_>, pair: &Pair<'_>, value: &str, related: &[&str], hits: &mut Hits) {
    let long = || value.chars().count() >= 8;
    let secret = is_secret_name(pair.name) && !is_no_secret(value) && long() || is_known_token(value);
    let address = url_password(value).filter(|(_, password, _)| !password.contains('$'));
    let is_weak = match address {
        Some((user, password, _)) => weakness(password, related).is_some() || user == password,
        None => is_password_name(pair.name) && weakness(value, related).is_some(),
    };
    // A placeholder is no secret.
    let placeholder = || !is_password_name(pair.name) && weakness(value, related).is_some();
    if !is_weak && (address.is_some() || secret && !placeholder()) {
        clear(seen, pair.name, pair.span, hits);
    }
}

/// `redis-server --requirepass …` and the like.
fn command(seen: &Seen<'_>, sight: Sight<'_>, hits: &mut Hits) {
    const OPTIONS: [&str; 3] = ["--requirepass", "--masterauth", "--password"];
    let Some(node) = seen.get("command") else { return };
    let scalars: Vec<(&Scalar, Span)> = match &node.data {
        Data::Scalar(scalar) => vec![(scalar, node.span)],
        Data::List(items) => items
            .iter()
            .filter_map(|item| match &item.data {
                Data::Scalar(scalar) => Some((scalar, item.span)),
                _ => None,
            })
            .collect(),
        _ => return,
    };
    let mut expected: Option<&str> = None;
    for (scalar, span) in scalars {
        // A variable may be filled in with spaces, but its word as written has none.
        let written = scalar.written.as_deref();
        let effective: Vec<&str> = scalar.text.split_whitespace().collect();
        let words: Vec<&str> = written.unwrap_or(&scalar.text).split_whitespace().collect();
        for (number, word) in words.iter().enumerate() {
            let option =
                OPTIONS.iter().find(|option| word.strip_prefix(**option).is_some_and(|rest| rest.starts_with('=')));
            let (option, shown) = match (expected.take(), option) {
                (Some(option), _) => (option, *word),
                (None, Some(option)) => (*option, &word[option.len() + 1..]),
                (None, None) => {
                    expected = OPTIONS.iter().find(|option| word == *option).copied();
                    continue;
                }
            };
            let shown = shown.trim_matches(['"', '\'']);
            let at = sight.sources.find(written.unwrap_or(&scalar.text), span, shown);
            let mut judged: Vec<&str> = Vec::new();
            if written.is_some() && shown.contains('$') {
                for (_, default, _) in defaults(shown) {
                    hits.masked.push(sight.sources.find(written.unwrap_or_default(), span, default));
                    judged.push(default);
                }
                if effective.len() == words.len() {
                    let word = effective[number];
                    judged.push(word.split_once('=').map_or(word, |(_, value)| value));
                }
            } else if !shown.starts_with('$') {
                hits.masked.push(at);
                judged.push(shown);
            }
            let judged = judged.into_iter().filter(|value| !value.is_empty() && !value.starts_with('$'));
            if let Some(why) = judged.clone().find_map(|value| weakness(value, &[seen.name()])) {
                weak(seen, Holder { what: "in its command", name: option, span: at }, why, hits);
            } else if written.is_none() && judged.count() > 0 {
                clear(seen, option, at, hits);
            }
        }
    }
}

/// The file's `secrets` and `configs`: their contents.
pub(super) fn examine_provided(sight: Sight<'_>, services: &[Seen<'_>], hits: &mut Hits) {
    for section in ["secrets", "configs"] {
        let Some(entry) = sight.root.get(section) else { continue };
        let Data::Map(entries) = &entry.value.data else { continue };
        for entry in entries {
            let user = services.iter().find(|seen| uses(seen, section, &entry.key));
            let Some(seen) = user else { continue };
            provided(sight, seen, section, &entry.key, &entry.value, hits);
        }
    }
}

fn uses(seen: &Seen<'_>, section: &str, name: &str) -> bool {
    let Some(Data::List(items)) = seen.get(section).map(|node| &node.data) else { return false };
    items.iter().any(|item| match &item.data {
        Data::Scalar(scalar) => scalar.text == name,
        _ => item.get("source").is_some_and(|e| matches!(&e.value.data, Data::Scalar(s) if s.text == name)),
    })
}

fn provided(sight: Sight<'_>, seen: &Seen<'_>, section: &str, name: &str, node: &Node, hits: &mut Hits) {
    let scalar = |key: &str| match node.get(key).map(|entry| (&entry.value.data, entry.value.span)) {
        Some((Data::Scalar(scalar), span)) => Some((scalar, span)),
        _ => None,
    };
    let lower = name.to_ascii_lowercase();
    let password = ["password", "passwd", "_pw", "-pw", "passphrase"].iter().any(|word| lower.contains(word))
        || seen.service.environment.iter().any(|(variable, value)| {
            let held = variable.strip_suffix("_FILE").or_else(|| variable.strip_suffix("__FILE"));
            held.is_some_and(is_password_name) && value.rsplit('/').next() == Some(name)
        });
    let related: Vec<&str> = vec![seen.name()];
    let owners = seen.service.environment.iter().filter(|(name, _)| is_owner_name(name));
    let related: Vec<&str> = related.into_iter().chain(owners.map(|(_, value)| value.as_str())).collect();
    let tell = |value: &str, span: Span, hits: &mut Hits| {
        let value = value.trim_end_matches(['\r', '\n']);
        if let Some(why) = weakness(value, &related).filter(|_| password && !value.is_empty()) {
            let message = format!("the secret {} that `{}` uses {why}", quoted(name), seen.name());
            hits.push(Hit::new(&table::WEAK_PASSWORD, seen, span, message));
        }
    };
    if let Some((content, span)) = scalar("content") {
        if section == "secrets" || is_known_token(content.text.trim()) {
            hits.masked.push(span);
            let message = format!("the content of {} stands in the file", quoted(name));
            hits.push(Hit::new(&table::SECRET_IN_CLEAR, seen, span, message));
        }
        if section == "secrets" {
            tell(&content.text, span, hits);
        }
    }
    if section != "secrets" {
        return;
    }
    if let Some((variable, span)) = scalar("environment")
        && let Some(value) = sight.origins.of(span).variables.get(&variable.text)
    {
        tell(&value, span, hits);
    }
    if let Some((file, span)) = scalar("file") {
        let origin = sight.origins.of(span);
        let path = resolve(&origin.directory, origin.variables.get("HOME").as_deref(), &file.text);
        // That it can't be read is said elsewhere.
        if let Ok(bytes) = sight.others.read(&path)
            && bytes.len() <= SECRET_BYTES_MAX
            && let Ok(text) = String::from_utf8(bytes)
        {
            tell(&text, span, hits);
        }
    }
}
