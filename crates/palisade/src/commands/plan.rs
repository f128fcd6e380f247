//! `plan`: what `up` would change. Changes nothing, and works without root as far as the host can be read.

use palisade_core::plan;
use palisade_core::policy::Mode;
use palisade_host::volumes;
use serde_json::json;

use crate::cli::{Format, StackArgs};
use crate::exit::{Answer, Failure};
use crate::{confirmation, load, observe, reach};

/// Prints the plan. The answer is no when there is something to change.
pub(crate) fn run(args: &StackArgs, format: Format) -> Result<Answer, Failure> {
    let loaded = load::load_to_start(args).map_err(load::Unusable::into_failure)?;
    let layout = args.layout(loaded.stack.project.clone());
    let host = observe::observe_for(&layout, &loaded.stack);
    let volume_path = |key: &str, volume: &_| volumes::folder(&layout, key, volume);
    let wishes = super::wishes(Mode::Enforce, false, &volume_path);
    let plan = plan::plan(&loaded.stack, &host, wishes).map_err(|findings| super::refused(&findings))?;
    let mut unknown = host.unknown.clone();
    let reach = if nix::unistd::geteuid().is_root() {
        reach::of(&plan, &layout).unwrap_or_else(|failure| {
            unknown.push(format!("what the change opens and closes: {failure}"));
            None
        })
    } else {
        None
    };
    match format {
        Format::Text => {
            loaded.print_warnings();
            confirmation::tell(&layout);
            if let Some(fault) = &host.firewall_at_boot {
                eprintln!(
                    "note: after a boot Palisade's table wouldn't be there, until the next `palisade up` mends it: {fault}"
                );
            }
            for unknown in &unknown {
                eprintln!("not known: {unknown}");
            }
            print!("{plan}{}", reach.as_ref().map(reach::text).unwrap_or_default());
        }
        Format::Json => {
            let mut json = plan.to_json();
            json["unknown"] = unknown.into();
            json["reach"] = json!(reach);
            println!("{json}");
        }
    }
    Ok(if plan.is_empty() { Answer::Yes } else { Answer::No })
}
