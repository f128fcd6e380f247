//! Bytes of an upstream's answer, see `edge::answers`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_fuzz::edge::answers;

fuzz_target!(|input: &[u8]| answers::check(input));
