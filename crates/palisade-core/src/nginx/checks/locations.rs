//! Locations by regular expression: which of them are never asked, and what their captures let a client choose.

use crate::diagnostic::{Sink, quoted};

use super::super::parse::{Directive, Word};
use super::super::rules;

/// nginx takes the first expression that matches, in the order of the file: one that matches less and stands behind is never asked.
pub(super) fn never_asked(block: &Directive, sink: &mut Sink) {
    let all: Vec<(&Directive, &Word)> = block.children().iter().filter_map(|it| Some((it, expression(it)?))).collect();
    for (at, (later, narrow)) in all.iter().enumerate() {
        let before = all[..at]
            .iter()
            .find(|(earlier, wide)| ignores_case(earlier) >= ignores_case(later) && is_part(&wide.text, &narrow.text));
        let Some((_, wide)) = before else { continue };
        // What both do alike doesn't matter; what keeps people out does.
        if !later.children().iter().any(|it| matches!(it.name(), "deny" | "return" | "auth_basic" | "internal")) {
            continue;
        }
        let found = rules::LOCATION_NEVER.hit(format!("{} is never asked", quoted(&narrow.text)));
        let found = found.at(narrow.span, "this stands behind").also(wide.span, "this matches the same and more");
        sink.push(found.hint("move it before the other one: the first expression that matches wins"));
    }
}

/// The regular expression of a location.
pub(super) fn expression(location: &Directive) -> Option<&Word> {
    match &location.args[..] {
        [modifier, expression] if location.name() == "location" && modifier.text.starts_with('~') => Some(expression),
        _ => None,
    }
}

fn ignores_case(location: &Directive) -> bool {
    location.arg(0) == Some("~*")
}

/// Whatever matches `narrow` matches `wide`, because it ends with the same: `/uploads/.*\.php$` after `\.php$`. `false` where that isn't plain.
fn is_part(wide: &str, narrow: &str) -> bool {
    let Some(head) = narrow.strip_suffix(wide) else { return false };
    let is_anchored = wide.starts_with('^');
    // An alternation, or a head that goes on into what follows, means something else.
    let is_plain =
        !has_alternation(wide) && !has_alternation(head) && !wide.starts_with(['*', '+', '?', '{', ')', ']']);
    let is_whole = !head.ends_with('\\') && head.matches('(').count() == head.matches(')').count();
    is_plain && is_whole && (!is_anchored || head.is_empty()) && !wide.is_empty()
}

/// A `|` outside of all groups.
fn has_alternation(text: &str) -> bool {
    let mut depth = 0_i32;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => drop(characters.next()),
            '(' => depth += 1,
            ')' => depth -= 1,
            '|' if depth <= 0 => return true,
            _ => {}
        }
    }
    false
}

/// What a capture of this expression (`1`, `name`) may hold: whatever the client likes, or one of some words.
pub(super) fn captures_anything(expression: &str, name: &str) -> bool {
    let Some(group) = group(expression, name) else { return false };
    let plain = group.replace("\\.", "").replace("\\-", "");
    plain.contains(['.', '[', '*', '+', '\\'])
}

/// The inside of a group, by its number or name.
fn group<'a>(expression: &'a str, name: &str) -> Option<&'a str> {
    let mut number = 0;
    let mut escaped = false;
    for (at, character) in expression.char_indices() {
        if escaped || character != '(' {
            escaped = !escaped && character == '\\';
            continue;
        }
        let inside = &expression[at + 1..];
        let named = inside.strip_prefix("?<").or_else(|| inside.strip_prefix("?P<"));
        let named = named.filter(|rest| !rest.starts_with(['=', '!'])).and_then(|rest| rest.split_once('>'));
        if inside.starts_with('?') && named.is_none() {
            continue;
        }
        number += 1;
        let (own, inside) = named.unwrap_or(("", inside));
        if own == name || name.parse() == Ok(number) {
            return Some(&inside[..end_of_group(inside)]);
        }
    }
    None
}

fn end_of_group(inside: &str) -> usize {
    let (mut depth, mut escaped) = (0, false);
    for (at, character) in inside.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '(' => depth += 1,
            ')' if depth == 0 => return at,
            ')' => depth -= 1,
            _ => {}
        }
    }
    inside.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_part_of_another_only_where_that_is_plain() {
        for (wide, narrow, expected) in [
            (r"\.php$", r"/(?:uploads|files)/.*\.php$", true),
            (r"\.php$", r"\.php$", true),
            (r"^/a", r"^/a", true),
            (r"^/a", r"x^/a", false),
            (r"\.php$", r"\.phtml$", false),
            (r"\.php$", r"/a|/b\.php$", false),
            (r"a|b", r"xa|b", false),
            (r".php$", r"\.php$", false),
            (r"b)$", r"(a|b)$", false),
            ("", "/x", false),
        ] {
            assert_eq!(is_part(wide, narrow), expected, "{wide} {narrow}");
        }
    }

    #[test]
    fn what_a_capture_may_hold_is_read_from_its_group() {
        for (expression, name, expected) in [
            ("^/proxy/(.*)$", "1", true),
            ("^/(app1|app2)/(.*)$", "1", false),
            ("^/(app1|app2)/(.*)$", "2", true),
            (r"^/(?:x.)(a\.example)/", "1", false),
            ("^/(?<to>[^/]+)/", "to", true),
            ("^/(?P<to>a|b)/", "to", false),
            (r"^/\((.*)\)", "1", true),
            ("^/((a|b).*)", "1", true),
            ("^/(a", "1", false),
            ("^/x", "1", false),
        ] {
            assert_eq!(captures_anything(expression, name), expected, "{expression} {name}");
        }
    }
}
