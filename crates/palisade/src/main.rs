//! `palisade`: parses what was typed, runs it, and maps its end to an exit code.
//!
//! Hidden verbs come first: they are this program as the runtime, the agent and the proofs start it. What a verb does
//! is in `commands`; what may be said about a host is decided in `palisade_core`.

mod agent;
mod cli;
mod commands;
mod confirmation;
mod edge;
mod exit;
mod generations;
mod host;
mod inside;
mod load;
mod observe;
mod progress;
mod proof;
mod reach;
mod rehearse;
mod signals;
mod state;

use clap::Parser;
use palisade_host::firewall::{boot, pending};
use palisade_host::layout::HOST_REALM;
use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("__init") => palisade_host::runtime::init_main(),
        Some("__enter") => palisade_host::runtime::enter_main(),
        Some("__attach") => palisade_host::runtime::attach_main(),
        Some("__agent") => {
            let arguments: Vec<String> = std::env::args().skip(2).collect();
            palisade_host::agent::agent_main(&arguments, agent::tasks)
        }
        Some(pending::KEEPER) => {
            let arguments: Vec<String> = std::env::args().skip(2).collect();
            pending::keeper_main(&arguments);
            return ExitCode::SUCCESS;
        }
        Some(boot::VERB) => {
            let realm = std::env::args().nth(2).unwrap_or_else(|| HOST_REALM.to_owned());
            return ended(boot::load(&realm).map_err(|error| std::io::Error::other(exit::chain(&error))));
        }
        Some("__edge") => {
            let settings = std::env::args_os().nth(2).unwrap_or_default();
            return palisade_edge::main(settings.as_ref());
        }
        Some(palisade_core::edge::READY_VERB) => {
            let control = std::env::args_os().nth(2).unwrap_or_default();
            return palisade_edge::ready_main(control.as_ref());
        }
        Some("__certificates") => {
            let settings = std::env::args_os().nth(2).unwrap_or_default();
            let worked = palisade_edge::acme::worker_main(settings.as_ref());
            return ended(worked.map_err(|error| std::io::Error::other(exit::chain(&error))));
        }
        Some("__probe") => {
            let asked = std::env::args().nth(2).unwrap_or_default();
            return ExitCode::from(u8::from(inside::probe::main(&asked).is_err()));
        }
        Some("__attack") => {
            let asked = std::env::args().nth(2).unwrap_or_default();
            return ended(inside::attack::main(&asked));
        }
        Some("__attack-peer") => return ended(inside::peer::main()),
        Some("__stage") => return ended(inside::stage::main()),
        _ => {}
    }
    match cli::Cli::try_parse() {
        Ok(cli) => exit::report(commands::run(cli)),
        Err(error) => {
            // Help and version are answers, anything else is bad usage; a closed pipe is no reason to fail.
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { 2 } else { 0 })
        }
    }
}

/// How a hidden verb that can only fail by its input or its surroundings ends.
fn ended(result: std::io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("palisade: {error}");
            ExitCode::FAILURE
        }
    }
}
