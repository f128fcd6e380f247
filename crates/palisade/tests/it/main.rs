//! The integration tests, in one binary: each module tests one part against the real kernel.

mod agent;
mod attacks;
mod bad_days;
mod config;
mod files;
mod learn;
mod meaning;
mod rehearse;
mod replicas;
mod runtime;
mod scratch;
mod servers;
mod settings;
mod support;
mod takeover;
mod up;
