//! Code of this program that runs inside a service: probes that prove what it reaches, and attacks on the guard.
//!
//! It knows nothing of the stack; what to try comes in from outside, what happened goes out. What surrounds an attack
//! (`stage`, `peer`) is here too, as it is made of the same sockets.

pub(crate) mod attack;
mod attacks;
pub(crate) mod peer;
pub(crate) mod probe;
pub(crate) mod stage;
mod sys;
pub(crate) mod targets;
