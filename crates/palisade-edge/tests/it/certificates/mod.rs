//! Certificates: how the edge shows them, and how they are obtained from real authorities on loopback.

mod failures;
mod handshakes;
mod orders;
mod pebble;
mod renewals;
mod stack;
