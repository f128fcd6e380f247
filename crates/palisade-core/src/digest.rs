//! Digests that tell whether something is as it was when it was applied.
//!
//! They are compared, never trusted: nothing here authenticates anything.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// SHA-256 of the value's JSON, in hexadecimal, shortened to 128 bits.
pub fn digest_of(value: &impl Serialize) -> String {
    let mut json = Vec::new();
    // Only a map with keys that aren't strings can fail here, and no type of ours has one. A failure would still
    // give a digest that differs from the full one, which means a needless restart and not a missed change.
    let _ = serde_json::to_writer(&mut json, value);
    hex(&Sha256::digest(&json)[..16])
}

/// The digest of something together with the digests of its named parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Of the whole.
    pub digest: String,
    /// Name and digest of each part.
    pub parts: Vec<(String, String)>,
}

impl Fingerprint {
    /// From the digests of the parts.
    pub fn new(mut parts: Vec<(String, String)>) -> Self {
        parts.sort_unstable();
        Self { digest: digest_of(&parts), parts }
    }
    /// Names of the parts that only one of the two has or that differ.
    pub fn differences(&self, other: &Fingerprint) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (from, to) in [(self, other), (other, self)] {
            for part in &from.parts {
                if to.parts.binary_search(part).is_err() {
                    names.push(part.0.clone());
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        names
    }
}

fn hex(bytes: &[u8]) -> String {
    // Thousands are made for a large stack, and `format!` takes its time.
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_changed_added_and_removed_parts() {
        let fingerprint = |parts: &[(&str, u8)]| {
            Fingerprint::new(parts.iter().map(|(name, value)| ((*name).to_owned(), digest_of(value))).collect())
        };
        let before = fingerprint(&[("a", 1), ("b", 2), ("c", 3)]);
        let after = fingerprint(&[("a", 1), ("b", 7), ("d", 3)]);
        assert_eq!(before.differences(&after), ["b", "c", "d"]);
        assert_ne!(before.digest, after.digest);
        assert!(before.differences(&before).is_empty());
    }

    #[test]
    fn a_digest_is_the_start_of_sha256_of_the_json() {
        // printf '"abc"' | sha256sum
        assert_eq!(digest_of(&"abc"), "6cc43f858fbb763301637b5af970e2a4");
    }
}
