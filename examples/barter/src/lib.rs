//! The barter service's parts, shared by its two programs: `barter` and `ollama-stand-in`.
//!
//! No program logic lives here: `main.rs` and `bin/ollama-stand-in.rs` put the parts together.

#![forbid(unsafe_code)]

pub mod config;
pub mod db;
pub mod embedder;
pub mod embedding;
pub mod http;
pub mod listing;
pub mod matching;
pub mod migrate;
pub mod ollama;
pub mod page;
pub mod ranking;
pub mod signals;
pub mod store;
pub mod web;
