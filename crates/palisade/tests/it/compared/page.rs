//! The comparison as a page for people: `docs/config-compared.md`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::explained::{TABLE, Who};

/// How the comparison went, in numbers.
#[derive(Debug, Default)]
pub(super) struct Summary {
    pub(super) cases: usize,
    /// Files that Palisade has a model of, and docker-compose refuses.
    pub(super) not_theirs: usize,
    pub(super) both: usize,
    /// Of those, without a difference.
    pub(super) identical: usize,
    /// Differences that the table explains.
    pub(super) explained: usize,
}

/// The page holds what was found; with `UPDATE_DOCS` in the environment it is made so. `used`: how often each entry of the
/// table explained something.
pub(super) fn check(summary: &Summary, used: &[usize]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/config-compared.md");
    let page = page(summary, used);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/config-compared.md is out of date: run this test with UPDATE_DOCS=1");
}

fn page(summary: &Summary, used: &[usize]) -> String {
    let Summary { cases, not_theirs, both, identical, explained } = summary;
    let mut page = format!(
        "# `palisade config` beside `docker-compose config`\n\n\
        This page is made by a test (`UPDATE_DOCS=1 cargo test -p palisade --test it compared`), which asks both programs about\n\
        every project of the corpus, of the tests and of the examples, writes both answers in one notation, and fails at a\n\
        difference that the table below doesn't explain, or at a line of it that explains nothing.\n\n\
        The other program is Debian's `docker-compose` 1.29. It knows no `name` in a file and gets it as an option; folders\n\
        that a `build` names are made for it. It follows an older state of the Compose Specification: where it and the\n\
        specification differ, Palisade does what the specification and Docker Compose 2 do.\n\n\
        | | |\n| --- | ---: |\n\
        | projects | {cases} |\n\
        | with mistakes on purpose, or refused by Palisade's reader | {} |\n\
        | refused by docker-compose 1.29, which doesn't know a key or a value in them | {not_theirs} |\n\
        | read by both | {both} |\n\
        | of these, identical | {identical} |\n\
        | of these, different where the table says so | {} |\n\
        | values that differ, all explained | {explained} |\n\n\
        ## What differs\n\n\
        `*` is any name. “Values” counts the places where the line explains something.\n\n\
        | project | where | shown by | values | why |\n| --- | --- | --- | ---: | --- |\n",
        cases - not_theirs - both,
        both - identical,
    );
    for (entry, count) in TABLE.iter().zip(used) {
        let who = match entry.who {
            Who::Theirs => "docker-compose",
            Who::Ours => "Palisade",
            Who::Both => "both, differently",
        };
        let case = if entry.case == "*" { "all" } else { entry.case };
        let _ = writeln!(page, "| {case} | `{}` | {who} | {count} | {} |", entry.path, entry.reason);
    }
    page
}
