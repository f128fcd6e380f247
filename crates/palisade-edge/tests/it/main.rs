//! The edge as a process, between real clients and real servers on loopback.

mod certificates;
mod child;
mod forwarding;
mod support;
mod upstream;
