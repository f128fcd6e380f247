//! What the worker remembers of each domain, across restarts.

use palisade_core::edge::{AcmeDirectory, Domain};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::schedule::{self, Window};
use super::store::{self, StoreError};

/// So many attempts may be cut short before that counts as a failure.
const CUT_SHORT_MAX: u32 = 3;

/// One domain's. It holds a private key while an order is on its way.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Memory {
    /// Attempts in a row that failed.
    pub failures: u32,
    /// When all this was noted, by the clock of then; seconds since the Unix epoch.
    pub noted_s: u64,
    /// Not to be tried before.
    pub again_s: u64,
    /// What the last failure was, in words.
    pub text: String,
    /// Attempts that were begun and of which no end is known.
    pub begun: u32,
    /// Directories that asked to be left alone until then.
    pub blocked: BTreeMap<String, u64>,
    /// Directories that have refused, and until when they are left alone for it.
    pub refused: BTreeMap<String, u64>,
    /// With what authorities were asked when that was noted: a digest.
    pub asked_with: u64,
    /// Where the certificate that is served came from.
    pub issued: Option<Issued>,
    /// When its authority wants it renewed.
    pub window: Option<Window>,
    /// The serial number of a certificate whose authority has no word on that, and when it is asked again.
    pub silent: Option<(String, u64)>,
    /// Orders on their way, by directory.
    pub orders: BTreeMap<String, Pending>,
    /// The end of the certificate of which somebody was warned, and how urgently.
    pub warned: Option<(u64, u8)>,
    /// What was said of the edge serving another certificate than the file's.
    pub unserved: Option<String>,
    /// When its authority had a certificate replaced long before its time.
    pub hurried_s: Option<u64>,
}

/// What couldn't be written is remembered as long as the process lives: a full disk must not make each failure the first.
pub(super) type Unwritten = BTreeMap<Domain, Memory>;

/// Where a certificate came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Issued {
    /// The authority's directory.
    pub directory: String,
    /// The certificate's serial number.
    pub serial: String,
}

/// An order that an authority has taken: whoever goes on with it needs no other.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Pending {
    pub url: String,
    /// PEM.
    pub key: String,
    pub since_s: u64,
}

impl Memory {
    /// A file that can't be read is as none: what it knew can be found out again.
    pub(super) fn read(state: &Path, domain: &str) -> Self {
        let bytes = fs::read(file(state, domain)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// What was noted by a clock that was ahead: each wait is as long as it was meant, and begins now.
    pub(super) fn by_this_clock(mut self, now_s: u64) -> Self {
        let ahead_s = self.noted_s.saturating_sub(now_s);
        if self.noted_s > 0 && ahead_s > 0 {
            let window = self.window.as_mut().map(|window| &mut window.look_s);
            let silent = self.silent.as_mut().map(|(_, look_s)| look_s);
            let directories = self.blocked.values_mut().chain(self.refused.values_mut());
            for wait in directories.chain(window).chain(silent).chain([&mut self.again_s]) {
                *wait = wait.saturating_sub(ahead_s);
            }
            self.hurried_s = self.hurried_s.map(|time| time.min(now_s));
            self.noted_s = now_s;
        }
        self
    }

    pub(super) fn write(&mut self, state: &Path, domain: &str, now_s: u64) -> Result<(), StoreError> {
        self.noted_s = now_s;
        let bytes = serde_json::to_vec(self).expect("maps have text for keys");
        store::replace(&file(state, domain), &bytes, None)
    }

    /// An attempt begins. It is noted first: one that kills its process each time must not become a hundred orders.
    pub(super) fn begin(&mut self) {
        self.begun += 1;
    }

    /// Too many attempts came to no end, and left no order that could be gone on with.
    pub(super) fn is_cut_short(&self, directories: &[AcmeDirectory]) -> bool {
        self.begun >= CUT_SHORT_MAX && !directories.iter().any(|directory| self.orders.contains_key(&directory.url))
    }

    /// What was refused was something else than what is asked for now: nobody is left alone for it any longer, but for who demanded that.
    pub(super) fn asks_with(&mut self, asked_with: u64) {
        if self.asked_with != asked_with {
            self.refused.clear();
            (self.asked_with, self.again_s, self.failures) = (asked_with, 0, 0);
        }
    }

    /// Until when a directory is left alone; 0: it may be asked.
    pub(super) fn left_alone_s(&self, directory: &AcmeDirectory, now_s: u64) -> u64 {
        let waits = [&self.blocked, &self.refused].into_iter().filter_map(|waits| waits.get(&directory.url));
        waits.copied().filter(|until_s| schedule::waits(*until_s, now_s)).max().unwrap_or(0)
    }

    /// An attempt failed.
    pub(super) fn failed(&mut self, text: String, again_s: u64) {
        self.begun = 0;
        self.text = text;
        self.again_s = again_s;
    }

    /// All is well.
    pub(super) fn succeeded(&mut self, issued: Issued) {
        let blocked = std::mem::take(&mut self.blocked);
        let (asked_with, hurried_s) = (self.asked_with, self.hurried_s);
        *self = Self { issued: Some(issued), blocked, asked_with, hurried_s, ..Self::default() };
    }
}

fn file(state: &Path, domain: &str) -> PathBuf {
    state.join("domains").join(crate::tls::file_of(domain)).with_extension("json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(url: &str) -> AcmeDirectory {
        AcmeDirectory { url: url.to_owned(), root: None, eab: None }
    }

    #[test]
    fn what_was_refused_counts_for_what_was_asked_and_demands_count_for_all() {
        let (a, b) = (directory("a"), directory("b"));
        let mut memory = Memory { asked_with: 1, again_s: 900, failures: 7, ..Memory::default() };
        memory.blocked.insert("a".to_owned(), 800);
        memory.refused = [("a".to_owned(), 900), ("b".to_owned(), 900)].into();
        memory.asks_with(1);
        assert_eq!((memory.left_alone_s(&a, 500), memory.left_alone_s(&b, 500), memory.again_s), (900, 900, 900));
        assert_eq!(memory.left_alone_s(&b, 950), 0);
        memory.asks_with(2);
        assert_eq!((memory.left_alone_s(&a, 500), memory.left_alone_s(&b, 500), memory.again_s), (800, 0, 0));
        assert_eq!((memory.asked_with, memory.failures), (2, 0));
    }

    #[test]
    fn what_was_cut_short_is_given_up_for_a_while_unless_an_order_can_be_gone_on_with() {
        let mut memory = Memory { begun: CUT_SHORT_MAX, ..Memory::default() };
        assert!(memory.is_cut_short(&[directory("a")]));
        let pending = Pending { url: String::new(), key: String::new(), since_s: 0 };
        memory.orders.insert("a".to_owned(), pending);
        assert!(!memory.is_cut_short(&[directory("b"), directory("a")]));
        assert!(memory.is_cut_short(&[directory("b")]), "nobody asks there any more");
    }

    #[test]
    fn waits_of_a_clock_that_was_ahead_are_as_long_as_they_were_meant() {
        let blocked = BTreeMap::from([("a".to_owned(), 9_000)]);
        let refused = BTreeMap::from([("a".to_owned(), 7_000)]);
        let silent = Some(("01".to_owned(), 8_000));
        let noted = Memory { noted_s: 5_000, again_s: 5_300, blocked, refused, silent, ..Memory::default() };
        let back = noted.clone().by_this_clock(1_000);
        assert_eq!((back.noted_s, back.again_s, back.blocked["a"]), (1_000, 1_300, 5_000));
        assert_eq!((back.refused["a"], back.silent.as_ref().map(|(_, look_s)| *look_s)), (3_000, Some(4_000)));
        // A second look changes nothing more, and time that passes is no jump.
        assert_eq!(back.clone().by_this_clock(1_001).again_s, 1_300);
        assert_eq!(noted.by_this_clock(5_200).again_s, 5_300);
        // Notes of a version that didn't say when it wrote them.
        assert_eq!(Memory { again_s: 5_300, ..Memory::default() }.by_this_clock(1).again_s, 5_300);
    }
}
