//! `history`: the generations of a stack, which one is current, and what changed from each to the next.

use std::time::{Duration, UNIX_EPOCH};

use palisade_core::generation::{Changes, Generation};
use palisade_host::runtime::rfc3339;
use serde_json::json;

use crate::cli::{Format, StackArgs};
use crate::exit::{Answer, Failure};
use crate::generations::{self, GenerationError};
use crate::load;
use crate::state::State;

/// Prints a table, or an object for programs.
pub(crate) fn run(args: &StackArgs, format: Format) -> Result<Answer, Failure> {
    let layout = args.layout(load::project(args)?);
    if !nix::unistd::geteuid().is_root() {
        let what = "only root can read generations: they hold the environment of services";
        return Err(Failure::lacking(what, "run `sudo palisade history`"));
    }
    let numbers = generations::numbers(&layout).map_err(|error| Failure::new("can't list generations", error))?;
    let state = State::read(&layout).map_err(|error| Failure::new("can't read what was applied", error))?;
    // The last one is what is up, if anything is.
    let current = state.stack.and(numbers.last().copied());
    let read: Vec<(u64, Result<Generation, GenerationError>)> =
        numbers.into_iter().map(|number| (number, generations::read(&layout, number))).collect();
    let mut before: Option<&Generation> = None;
    let mut rows = Vec::new();
    for (number, generation) in &read {
        let changes = match (before, generation) {
            (Some(before), Ok(generation)) => Some(Changes::between(before, generation)),
            _ => None,
        };
        before = generation.as_ref().ok();
        rows.push((*number, generation, changes));
    }
    match format {
        Format::Json => {
            let generations: Vec<_> = rows
                .iter()
                .map(|(number, generation, changes)| match generation {
                    Ok(generation) => json!({
                        "number": number,
                        "current": current == Some(*number),
                        "made_at_s": generation.made_at_s,
                        "origin": generation.origin,
                        "user": generation.user,
                        "command": generation.command,
                        "changes": changes,
                        "images": generation.images.iter().map(|(name, image)| (name.clone(), json!({
                            "id": image.id, "digest": image.digest,
                        }))).collect::<serde_json::Map<_, _>>(),
                    }),
                    Err(error) => json!({
                        "number": number,
                        "current": current == Some(*number),
                        "error": crate::exit::chain(error),
                    }),
                })
                .collect();
            println!("{}", json!({ "version": 1, "project": layout.project, "generations": generations }));
        }
        Format::Text if rows.is_empty() => eprintln!("{}: no generations yet: `palisade up` makes one", layout.project),
        Format::Text => {
            let header = ["", "NUMBER", "TIME", "BY", "USER", "CHANGED"].map(str::to_owned);
            let lines = rows.iter().rev().map(|(number, generation, changes)| {
                let mark = if current == Some(*number) { "*" } else { "" };
                let [time, by, user, changed] = match generation {
                    Ok(generation) => {
                        let time = rfc3339(UNIX_EPOCH + Duration::from_secs(generation.made_at_s));
                        let changed = changes.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
                        let time = format!("{}Z", time.split('.').next().unwrap_or_default());
                        [time, generation.origin.to_string(), generation.user.clone(), changed]
                    }
                    Err(error) => ["-", "-", "-", &crate::exit::chain(error)].map(str::to_owned),
                };
                [mark.to_owned(), number.to_string(), time, by, user, changed]
            });
            print!("{}", super::table(std::iter::once(header).chain(lines).collect()));
        }
    }
    Ok(Answer::Yes)
}
