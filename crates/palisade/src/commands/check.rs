//! `check`: every mistake of the file at once. Needs neither root nor a host.

use palisade_core::address::AddressBook;
use palisade_core::compile::{Numbers, Surroundings, objections};
use palisade_core::diagnostic::Severity;
use palisade_core::finding::Finding;
use palisade_core::observed::EngineState;
use palisade_core::policy::Mode;
use serde_json::json;
use std::collections::BTreeSet;

use crate::cli::{Format, StackArgs};
use crate::exit::{Answer, Failure};
use crate::load::{self, Loaded, counted};

/// Reads the file and says what is wrong with it, or what it is.
pub(crate) fn run(args: &StackArgs, strict: bool, format: Format) -> Result<Answer, Failure> {
    let loaded = match (load::load_to_start(args), format) {
        (Ok(loaded), _) => loaded,
        (Err(unusable), Format::Text) => return Err(unusable.into_failure_with_risks()),
        (Err(unusable), Format::Json) => {
            let diagnostics = unusable.to_json().ok_or_else(|| unusable.into_failure())?;
            println!("{}", json!({ "version": 1, "valid": false, "diagnostics": diagnostics }));
            return Err(Failure::Input(String::new()));
        }
    };
    // The process ends with this: what was read for a thousand services needn't be taken apart first.
    let loaded = std::mem::ManuallyDrop::new(loaded);
    let Loaded { stack, .. } = &*loaded;
    let names = stack.services.iter().map(|service| &service.name);
    let addresses = AddressBook::default()
        .assign(names, &BTreeSet::new())
        .map_err(|error| Failure::Input(format!("error: {error}")))?;
    let volume_path = |name: &str, _: &_| name.into();
    let surroundings = Surroundings {
        addresses: &addresses,
        resolvers: &[],
        mode: Mode::Enforce,
        volume_path: &volume_path,
        files: None,
        engine: &EngineState::NotAsked,
        numbers: Numbers::FIRST,
        own: None,
    };
    let findings = objections(stack, surroundings);
    // What the guard can't hold was told as a risk.
    let wrong: Vec<&Finding> = findings.iter().filter(|finding| finding.id != "beyond-the-guard").collect();
    let count = |severity| loaded.count(severity);
    match format {
        Format::Json => println!(
            "{}",
            json!({
                "version": 1,
                "valid": wrong.is_empty(),
                "project": stack.project,
                "services": stack.services.iter().map(|service| &service.name).collect::<Vec<_>>(),
                "diagnostics": loaded.diagnostics_json(),
                "accepted": loaded.accepted,
                "findings": findings,
                "counts": {
                    "errors": wrong.len(),
                    "risks": count(Severity::Risk),
                    "warnings": count(Severity::Warning),
                    "notes": count(Severity::Note),
                    "accepted": loaded.accepted.len(),
                },
            })
        ),
        Format::Text => {
            loaded.print_all();
            if wrong.is_empty() {
                println!("{}: {}, {}", stack.project, counted(stack.services.len(), "service"), summary(&loaded));
            }
        }
    }
    match (wrong.is_empty(), format) {
        (true, _) if strict && count(Severity::Risk) > 0 => Ok(Answer::No),
        (true, _) => Ok(Answer::Yes),
        (false, Format::Json) => Err(Failure::Input(String::new())),
        (false, Format::Text) => Err(super::refused(&wrong.into_iter().cloned().collect::<Vec<_>>())),
    }
}

/// `3 risks, 1 warning; silence a risk with x-palisade.allow`.
fn summary(loaded: &Loaded) -> String {
    let kinds = [(Severity::Risk, "risk"), (Severity::Warning, "warning"), (Severity::Note, "note")];
    let counts = kinds.map(|(severity, what)| (loaded.count(severity), what));
    let told: Vec<_> = counts.iter().filter(|(number, _)| *number > 0).map(|(n, what)| counted(*n, what)).collect();
    let mut text = if told.is_empty() { "nothing wrong".to_owned() } else { told.join(", ") };
    match loaded.accepted.len() {
        0 => {}
        number => text.push_str(&format!(" ({} accepted)", counted(number, "risk"))),
    }
    if counts[0].0 > 0 {
        text.push_str("; silence a risk with x-palisade.allow");
    }
    text
}
