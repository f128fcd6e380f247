//! The checks, one file for each kind.

mod content;
mod context;
mod locations;
mod proxy;
mod servers;
mod set;
mod tls;

use crate::diagnostic::Sink;

use super::load::Loaded;
use super::parse::{Directive, Word};
use super::view::{At, walk};
use super::{Known, Source};

/// What every check is given.
pub(super) struct Case<'a> {
    /// The file itself as a block without a name.
    root: &'a Directive,
    /// What the outermost directives are in: `main`, `http`, `server`, `location`.
    outermost: &'static str,
    /// All of the configuration is there, so what isn't said isn't so.
    is_whole: bool,
    source: &'a dyn Source,
    known: Known<'a>,
}

/// Runs all of them.
pub(super) fn all(loaded: &Loaded, source: &dyn Source, known: Known<'_>, sink: &mut Sink) {
    let Some(first) = loaded.root.first() else { return };
    let name = Word { text: String::new(), span: first.name.span };
    let root = Directive { name, args: Vec::new(), block: Some(loaded.root.clone()) };
    let outermost = outermost(&loaded.root);
    let is_whole = loaded.is_whole && outermost == "main";
    let case = Case { root: &root, outermost, is_whole, source, known };
    walk(&root, &mut |at: At<'_, '_>| {
        context::check(&case, at, sink);
        content::check(&case, at, sink);
        proxy::check(&case, at, sink);
        tls::check(at, sink);
    });
    context::zones(&case, sink);
    servers::check(&case, sink);
    proxy::versions(&case, sink);
}

/// A file of conf.d, sites-enabled or snippets isn't a whole configuration: what it holds says where it belongs.
fn outermost(root: &[Directive]) -> &'static str {
    let has = |names: &[&str]| root.iter().any(|directive| names.contains(&directive.name()));
    if has(&["http", "events", "stream", "mail"]) {
        "main"
    } else if let Some(narrowest) = context::narrowest(root) {
        narrowest
    } else if has(&["server", "upstream", "map", "geo", "limit_req_zone", "limit_conn_zone", "log_format"]) {
        "http"
    } else {
        // Something is misplaced wherever it belongs.
        "server"
    }
}

/// The kind of block that a directive stands in.
fn kind<'a>(case: &Case<'_>, around: &[&'a Directive]) -> &'a str {
    match around {
        [] | [_] => case.outermost,
        [.., outer, block] if block.name() == "if" => match outer.name() {
            "location" => "if in location",
            _ => "if",
        },
        [.., block] => block.name(),
    }
}
