//! Fields of proxies, see `edge::ways`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_fuzz::edge::ways;

fuzz_target!(|input: &[u8]| ways::check(input));
