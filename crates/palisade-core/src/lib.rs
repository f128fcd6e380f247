//! From `compose.yaml` to a plan, and from an observed host to findings.
//!
//! This crate opens no file, starts no process, makes no socket and reads no clock: what it needs to know about
//! the world is a parameter. That is why everything in here can be tested without a machine.
#![forbid(unsafe_code)]

pub mod action;
pub mod address;
pub mod apply;
pub mod audit;
pub mod calendar;
pub mod causes;
pub mod compile;
pub mod compose;
pub mod diagnostic;
pub mod digest;
pub mod edge;
pub mod environment;
pub mod explain;
pub mod finding;
pub mod firewall;
pub mod generation;
pub mod hints;
pub mod image;
pub mod instance;
pub mod learn;
pub mod life;
pub mod lint;
pub mod lockout;
pub mod names;
pub mod network;
pub mod nginx;
pub mod observed;
pub mod place;
pub mod plan;
pub mod policy;
pub mod port_document;
pub mod port_set;
mod ports;
pub mod prove;
pub mod stack;
#[cfg(test)]
mod testing;
pub mod update;
pub mod verify;
