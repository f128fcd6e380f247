//! The TLS edge: a reverse proxy in front of a stack's services, which runs as an unprivileged process of its own.
//!
//! What it serves is data of [`palisade_core::edge`]. It reads the certificates that others obtain ([`palisade_core::edge::Settings`]
//! says where) and takes orders over one socket; it decides nothing about the stack, and nothing in here needs root.

pub mod access_log;
pub mod acme;
pub mod address;
pub mod client;
mod compress;
pub mod error_pages;
pub mod forwarded;
mod http3;
pub mod limit;
pub mod local_ca;
mod plain_file;
mod proxy;
mod proxy_protocol;
mod send;
mod server;
pub mod tls;

use palisade_core::causes::chain;
use std::path::Path;
use std::process::ExitCode;

/// Runs the edge as the settings in this file say, until it is drained. What fails is said on standard error.
pub fn main(settings: &Path) -> ExitCode {
    match server::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("palisade-edge: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Whether the edge at this control socket serves as it should: the code of its end says it, and the output what is missing.
pub fn ready_main(control: &Path) -> ExitCode {
    match server::missing(control) {
        Ok(missing) if missing.is_empty() => ExitCode::SUCCESS,
        Ok(missing) => {
            println!("{}", missing.join("; "));
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("it doesn't answer: {error}");
            ExitCode::FAILURE
        }
    }
}
