//! `palisade config` beside another implementation of Compose: Debian's `docker-compose` 1.29, over every file that both
//! can read.
//!
//! Both models are brought into one notation (`notation`); what is different then has to be in the table (`explained`),
//! of which the page `docs/config-compared.md` is made (`page`).

mod case;
mod explained;
mod notation;
mod page;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use self::case::{Case, Folder};
use self::explained::TABLE;
use crate::support::skipped;

/// A value that one of them shows and the other doesn't, or another one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Difference {
    path: String,
    theirs: Option<String>,
    ours: Option<String>,
}

/// What came of a case.
enum Outcome {
    /// Palisade finds mistakes in it.
    NotOurs,
    /// docker-compose does.
    NotTheirs,
    Both(Vec<Difference>),
}

#[test]
fn config_means_what_docker_compose_1_29_reads() {
    if let Err(why) = case::docker_compose() {
        return skipped("compared::config_means_what_docker_compose_1_29_reads", &why);
    }
    let cases = Case::all();
    let outcomes = outcomes(&cases);
    let mut used = vec![0_usize; TABLE.len()];
    let mut summary = page::Summary { cases: cases.len(), ..page::Summary::default() };
    let mut unexplained = Vec::new();
    for (case, outcome) in cases.iter().zip(&outcomes) {
        let differences = match outcome {
            Outcome::NotOurs => continue,
            Outcome::NotTheirs => {
                summary.not_theirs += 1;
                continue;
            }
            Outcome::Both(differences) => differences,
        };
        summary.both += 1;
        summary.identical += usize::from(differences.is_empty());
        for difference in differences {
            match TABLE.iter().position(|entry| entry.explains(&case.name, difference)) {
                Some(number) => {
                    used[number] += 1;
                    summary.explained += 1;
                }
                None => unexplained.push(format!("{}: {difference:?}", case.name)),
            }
        }
    }
    assert!(unexplained.is_empty(), "no entry of the table explains:\n{}", unexplained.join("\n"));
    let idle: Vec<_> = TABLE.iter().zip(&used).filter(|(_, count)| **count == 0).map(|(entry, _)| entry).collect();
    assert!(idle.is_empty(), "these entries explain nothing: {idle:#?}");
    assert!(summary.both >= 40, "only {} files were read by both", summary.both);
    page::check(&summary, &used);
}

/// All cases, as many at a time as there are processors.
fn outcomes(cases: &[Case]) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = outcome(case);
                    done.lock().unwrap().insert(case.name.clone(), outcome);
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    cases.iter().map(|case| done.remove(&case.name).unwrap_or_else(|| panic!("{} has no outcome", case.name))).collect()
}

fn outcome(case: &Case) -> Outcome {
    let folder = Folder::of(case);
    let Some(ours) = folder.palisade() else { return Outcome::NotOurs };
    folder.prepare_for_docker_compose(&ours);
    let project = ours["name"].as_str().unwrap().to_owned();
    let Some(theirs) = folder.docker_compose(&project) else { return Outcome::NotTheirs };
    let (ours, theirs) = (notation::plain(ours, &project), notation::plain(theirs, &project));
    Outcome::Both(differences(&leaves(&theirs), &leaves(&ours)))
}

/// Every single value with its path. Empty lists and mappings are values of their own.
fn leaves(model: &Value) -> BTreeMap<String, String> {
    fn walk(value: &Value, path: &str, into: &mut BTreeMap<String, String>) {
        let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}/{key}") };
        match value {
            Value::Object(map) if !map.is_empty() => map.iter().for_each(|(key, value)| walk(value, &below(key), into)),
            Value::Array(list) if !list.is_empty() => {
                list.iter().enumerate().for_each(|(number, value)| walk(value, &below(&number.to_string()), into));
            }
            Value::String(text) => {
                into.insert(path.to_owned(), text.clone());
            }
            other => {
                into.insert(path.to_owned(), other.to_string());
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(model, "", &mut all);
    all
}

fn differences(theirs: &BTreeMap<String, String>, ours: &BTreeMap<String, String>) -> Vec<Difference> {
    let mut paths: Vec<&String> = theirs.keys().chain(ours.keys()).collect();
    paths.sort();
    paths.dedup();
    let one = |path: &String| Difference {
        path: path.clone(),
        theirs: theirs.get(path).cloned(),
        ours: ours.get(path).cloned(),
    };
    paths.into_iter().map(one).filter(|difference| difference.theirs != difference.ours).collect()
}

/// A command that is killed when it takes too long.
fn patient(program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["60", program]);
    command
}

#[test]
fn a_difference_is_found_wherever_it_is() {
    let model = |text: &str| leaves(&serde_json::from_str(text).unwrap());
    let theirs = model(r#"{"services": {"a": {"image": "x", "ports": [1, 2]}, "b": {}}}"#);
    let ours = model(r#"{"services": {"a": {"image": "y", "ports": [1]}, "b": {}}, "x-a": null}"#);
    let shown: Vec<_> = differences(&theirs, &ours).into_iter().map(|d| (d.path, d.theirs, d.ours)).collect();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        shown,
        [
            ("services/a/image".to_owned(), some("x"), some("y")),
            ("services/a/ports/1".to_owned(), some("2"), None),
            ("x-a".to_owned(), None, some("null")),
        ]
    );
    assert_eq!(differences(&theirs, &theirs), []);
}
