//! The eBPF program that keeps services apart, and its loader.
//!
//! What is allowed is decided in `palisade_core::policy`; here it is put into the kernel, kept there by pins while
//! Palisade itself may die, and listened to. Cgroups and namespaces are made elsewhere.

mod bpffs;
mod events;
mod guard;
mod raw;
mod wire;

pub use bpffs::{mount_bpffs, pin_root, pinned_stacks, unmount_bpffs};
pub use events::{Event, EventReader, Hook, Kind, Reason};
pub use guard::{Guard, GuardError};
