//! Bytes of a client's connection of HTTP/1, see `edge::requests`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_fuzz::edge::requests;

fuzz_target!(|input: &[u8]| requests::check(input));
