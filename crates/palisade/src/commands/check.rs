//! `check`: every mistake of the file at once. Needs neither root nor a host.

use palisade_core::address::AddressBook;
use palisade_core::compile::{Surroundings, compile};
use palisade_core::policy::Mode;
use serde_json::json;
use std::collections::BTreeSet;

use crate::cli::{Format, StackArgs};
use crate::exit::{Answer, Failure};
use crate::load::{self, Loaded};

/// Reads the file and says what is wrong with it, or what it is.
pub(crate) fn run(args: &StackArgs, format: Format) -> Result<Answer, Failure> {
    let loaded = match (load::load(args), format) {
        (Ok(loaded), _) => loaded,
        (Err(unusable), Format::Text) => return Err(unusable.into_failure()),
        (Err(unusable), Format::Json) => {
            let diagnostics = unusable.to_json().ok_or_else(|| unusable.into_failure())?;
            println!("{}", json!({ "version": 1, "valid": false, "diagnostics": diagnostics }));
            return Err(Failure::Input(String::new()));
        }
    };
    let Loaded { stack, .. } = &loaded;
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
    };
    let findings = compile(stack, surroundings).err().unwrap_or_default();
    match format {
        Format::Json => println!(
            "{}",
            json!({
                "version": 1,
                "valid": findings.is_empty(),
                "project": stack.project,
                "services": stack.services.iter().map(|service| &service.name).collect::<Vec<_>>(),
                "diagnostics": loaded.warnings_json(),
                "findings": findings,
            })
        ),
        Format::Text => {
            loaded.print_warnings();
            if findings.is_empty() {
                println!("{}: {}, nothing wrong", stack.project, services(stack.services.len()));
            }
        }
    }
    match (findings.is_empty(), format) {
        (true, _) => Ok(Answer::Yes),
        (false, Format::Json) => Err(Failure::Input(String::new())),
        (false, Format::Text) => Err(super::refused(&findings)),
    }
}

fn services(number: usize) -> String {
    format!("{number} service{}", if number == 1 { "" } else { "s" })
}
