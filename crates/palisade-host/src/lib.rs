//! The effects of Palisade that need root: processes, cgroups, namespaces, the firewall, sockets.
//!
//! Nothing in here decides what should be: it does what a plan says, or reads what is.

pub mod agent;
pub mod cgroup;
pub mod edge;
pub mod engine;
pub mod firewall;
pub mod hosts_file;
pub mod layout;
pub mod link;
mod netlink;
pub mod netns;
pub mod nft;
pub mod operators;
mod packets;
pub mod probe;
pub mod program;
pub mod provided;
pub mod routes;
pub mod runtime;
pub mod session;
pub mod slice;
pub mod sockets;
pub mod sshd;
pub mod survey;
mod terminal;
pub mod twin;
pub mod volumes;
pub mod whole_file;
