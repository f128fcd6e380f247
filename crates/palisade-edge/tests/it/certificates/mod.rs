//! Certificates: how the edge shows them, and how they are obtained from real authorities on loopback.

mod attacks;
mod between;
mod clocks;
mod failures;
mod full_disks;
mod handshakes;
mod orders;
mod pebble;
mod refusals;
mod renewals;
mod stack;
