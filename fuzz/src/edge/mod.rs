//! The edge's readers of what strangers send, compiled as they stand in its sources and by themselves: the whole edge takes minutes to
//! build, for TLS that nothing in here speaks.

#[path = "../../../crates/palisade-edge/src/address.rs"]
#[allow(dead_code)]
mod address;
#[path = "../../../crates/palisade-edge/src/proxy/http1/decode.rs"]
#[allow(dead_code)]
mod decode;
#[path = "../../../crates/palisade-edge/src/forwarded.rs"]
#[allow(dead_code)]
mod forwarded;
#[path = "../../../crates/palisade-edge/src/proxy/http1/head.rs"]
#[allow(dead_code)]
mod head;
#[path = "../../../crates/palisade-edge/src/proxy_protocol.rs"]
#[allow(dead_code)]
mod proxy_protocol;
#[path = "../../../crates/palisade-edge/src/server/strict.rs"]
#[allow(dead_code)]
mod strict;
#[path = "../../../crates/palisade-edge/src/proxy/target.rs"]
#[allow(dead_code)]
mod target;

pub mod answers;
pub mod connections;
mod pipe;
pub mod requests;
pub(crate) mod seeds;
pub mod targets;
pub mod ways;

/// Takes the first byte of an input off: it says in which pieces the rest arrives, and one more thing.
fn pieces(input: &[u8]) -> Option<(usize, u8, &[u8])> {
    let (&first, rest) = input.split_first()?;
    let piece = match first & 0xf {
        0 => 1,
        few @ 1..=7 => usize::from(few) + 1,
        many => usize::from(many) * 13,
    };
    Some((piece, first >> 4, rest))
}
