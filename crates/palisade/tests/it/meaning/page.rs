//! The tables as a page for people: `docs/meaning.md`.

use std::fs;
use std::path::Path;

use super::case::{Case, Question};

const BEGIN: &str = "<!-- made from the tests' tables: `UPDATE_PAGE=1 cargo test -p palisade meaning::the_page` -->\n";
const END: &str = "<!-- end of the tables -->\n";

/// The page holds what the tables say; with `UPDATE_PAGE` in the environment it is made so.
pub(crate) fn check(cases: &[Case]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/meaning.md");
    let text = fs::read_to_string(&path).unwrap();
    let (head, rest) = text.split_once(BEGIN).expect("the page has a place for the tables");
    let (_, tail) = rest.split_once(END).expect("the place has an end");
    let wanted = format!("{head}{BEGIN}\n{}\n{END}{tail}", tables(cases));
    if std::env::var_os("UPDATE_PAGE").is_some() {
        fs::write(&path, wanted).unwrap();
        return;
    }
    assert!(text == wanted, "docs/meaning.md is not what the tables say: run this test with UPDATE_PAGE=1");
}

fn tables(cases: &[Case]) -> String {
    let mut text = String::from(
        "### What differs\n\n| case | asked | Docker | Palisade | why |\n| --- | --- | --- | --- | --- |\n",
    );
    for case in cases {
        for probe in &case.probes {
            if let Question::Refuses { part } = &probe.question {
                text += &format!("| {} | the file | runs | is refused | {part} |\n", case.name);
            } else if let Some((ours, why)) = &probe.differs {
                text += &format!("| {} | `{}` | {} | {ours} | {why} |\n", case.name, probe.text, probe.docker);
            }
        }
    }
    for case in cases {
        text += &format!("\n### {}\n\n{}\n\n| asked | answer |\n| --- | --- |\n", case.name, case.title);
        for probe in case.probes.iter().filter(|probe| probe.question.from().is_some()) {
            let answer = match &probe.differs {
                None => probe.docker.clone(),
                Some((ours, _)) => format!("Docker: {}; Palisade: {ours}", probe.docker),
            };
            text += &format!("| `{}` | {answer} |\n", probe.text);
        }
    }
    text
}
