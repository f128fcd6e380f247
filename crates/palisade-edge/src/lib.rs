//! The TLS edge: a reverse proxy in front of a stack's services, which runs as an unprivileged process of its own.
//!
//! What it serves is data of [`palisade_core::edge`]. It reads the certificates that others obtain ([`palisade_core::edge::Settings`]
//! says where) and takes orders over one socket; it decides nothing about the stack, and nothing in here needs root.

pub mod acme;
pub mod local_ca;
pub mod tls;
