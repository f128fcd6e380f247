//! How a connection from a proxy begins, see `edge::connections`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_fuzz::edge::connections;

fuzz_target!(|input: &[u8]| connections::check(input));
