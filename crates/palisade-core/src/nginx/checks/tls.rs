//! What is said about TLS, wherever it stands: ciphers.
//!
//! What a server as a whole speaks is in `servers`.

use crate::diagnostic::{Diagnostic, Sink, quoted};

use super::super::parse::Directive;
use super::super::rules;
use super::super::view::At;

/// Parts of names of ciphers that are broken.
const WEAK: [&str; 11] = ["RC4", "3DES", "DES", "MD5", "NULL", "EXP", "EXPORT", "LOW", "ADH", "AECDH", "RC2"];

pub(super) fn check(at: At<'_, '_>, sink: &mut Sink) {
    let found = Some(at.directive).filter(|directive| directive.name() == "ssl_ciphers").and_then(ciphers);
    if let Some(found) = found {
        sink.push(found);
    }
}

/// Ciphers that OpenSSL's list lets in.
fn ciphers(directive: &Directive) -> Option<Diagnostic> {
    let word = directive.args.first()?;
    let parts: Vec<&str> = word.text.split([':', ',', ' ']).filter(|part| !part.is_empty()).collect();
    let taken_out = |what: &str| {
        parts.iter().any(|part| part.strip_prefix(['!', '-']).is_some_and(|out| out.eq_ignore_ascii_case(what)))
    };
    let let_in = |part: &&&str| {
        if part.starts_with(['!', '-', '@', '+']) {
            return false;
        }
        let name = part.to_ascii_uppercase();
        let weak = name
            .split(['-', '+', '_'])
            .find(|piece| WEAK.contains(piece) || piece.starts_with("ANULL") || *piece == "ENULL");
        let everything = matches!(name.as_str(), "ALL" | "COMPLEMENTOFALL") && !taken_out("aNULL");
        // OpenSSL's names of triple DES have DES and CBC3 in them.
        let is_out = |piece: &str| taken_out(piece) || piece == "DES" && taken_out("3DES");
        everything || weak.is_some_and(|piece| !is_out(piece))
    };
    let part = parts.iter().find(let_in)?;
    let start = word.text.find(part)?;
    let offset = usize::from(word.span.end as usize - word.span.start as usize > word.text.len());
    let span = word.span.part(start + offset, start + offset + part.len());
    let found = rules::TLS_CIPHERS.hit(format!("{} lets broken ciphers in", quoted(part))).at(span, "");
    Some(
        found
            .hint("leave `ssl_ciphers` away: OpenSSL's own choice is good, or use what `palisade export nginx` writes"),
    )
}
