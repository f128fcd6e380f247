//! A request's target and hosts, see `edge::targets`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_fuzz::edge::targets;

fuzz_target!(|input: &[u8]| targets::check(input));
