//! Any bytes as Compose files, see `files`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use palisade_fuzz::{Files, load, seeds};

fuzz_target!(
    init: seeds::write_if_asked(),
    |input: &[u8]| {
        let _ = load(&Files::parse(input));
    }
);
