//! The integration tests, in one binary: each module tests one part against the real kernel.

mod agent;
mod attacks;
mod bad_days;
mod compared;
mod config;
mod containers;
mod dockerd;
mod engine;
mod files;
mod generations;
mod host_firewalls;
mod learn;
mod life;
mod lockout;
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
mod update;
