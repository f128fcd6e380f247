//! Two or three files grown from the key table: what must hold of merging them.
#![no_main]

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use palisade_core::compose::{Loaded, Rejected};
use palisade_fuzz::trees::Tree;
use palisade_fuzz::{Files, load};
use serde_json::Value;

#[derive(Debug)]
struct Input(Vec<Tree>);

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Self> {
        let count = bytes.int_in_range(1..=3)?;
        (0..count).map(|_| Tree::file(bytes)).collect::<Result<_>>().map(Self)
    }
}

fuzz_target!(|input: Input| {
    let written: Vec<String> = input.0.iter().map(Tree::yaml).collect();
    let as_written = load(&files(written.clone()));
    // A file that says nothing changes nothing, wherever it stands.
    for at in 0..=written.len() {
        let mut with_empty = written.clone();
        with_empty.insert(at, "x-nothing: {}\n".to_owned());
        same("with an empty file", &written, &as_written, &load(&files(with_empty)));
    }
    // Neither does the order of keys.
    let reversed = input.0.iter().map(|tree| tree.reversed().yaml()).collect();
    same("with keys in another order", &written, &as_written, &load(&files(reversed)));
});

fn files(texts: Vec<String>) -> Files {
    let names = (0..).map(|number| format!("compose.{number}.yaml"));
    Files(names.zip(texts.into_iter().map(String::into_bytes)).collect())
}

type Outcome = std::result::Result<Loaded, Box<Rejected>>;

fn same(what: &str, written: &[String], before: &Outcome, after: &Outcome) {
    let said = |outcome: &Outcome| outcome.as_ref().err().map(|rejected| rejected.diagnostics.clone());
    assert_eq!(
        before.is_ok(),
        after.is_ok(),
        "{what}\n{}\n{:?}\n{:?}",
        written.join("---\n"),
        said(before),
        said(after)
    );
    if let (Ok(before), Ok(after)) = (before, after) {
        assert_eq!(meaning(before), meaning(after), "{what}\n{}", written.join("---\n"));
    }
}

/// The stack without the places where its parts were written, services by name.
fn meaning(loaded: &Loaded) -> Value {
    let mut stack = serde_json::to_value(&loaded.stack).expect("a stack can be written down");
    forget_places(&mut stack);
    if let Some(Value::Array(services)) = stack.get_mut("services") {
        services.sort_by_key(|service| service["name"].to_string());
    }
    stack
}

fn forget_places(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| name != "place");
            fields.values_mut().for_each(forget_places);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_places),
        _ => {}
    }
}
