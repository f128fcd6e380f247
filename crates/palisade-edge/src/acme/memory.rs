//! What the worker remembers of each domain, across restarts.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::schedule::{Trouble, Window};
use super::store::{self, StoreError};

/// So many attempts may be cut short before that counts as a failure.
const CUT_SHORT_MAX: u32 = 3;

/// One domain's. It holds a private key while an order is on its way.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Memory {
    /// Attempts in a row that failed.
    pub failures: u32,
    /// Not to be tried before; seconds since the Unix epoch.
    pub again_s: u64,
    /// What the last failure was.
    pub trouble: Option<Trouble>,
    /// The same in words.
    pub text: String,
    /// Attempts that were begun and of which no end is known.
    pub begun: u32,
    /// Directories that asked to be left alone until then.
    pub blocked: BTreeMap<String, u64>,
    /// Where the certificate that is served came from.
    pub issued: Option<Issued>,
    /// When its authority wants it renewed.
    pub window: Option<Window>,
    /// The order on its way.
    pub pending: Option<Pending>,
    /// The end of the certificate of which somebody was warned, and how urgently.
    pub warned: Option<(u64, u8)>,
    /// What was said of the edge serving another certificate than the file's.
    pub unserved: Option<String>,
}

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
    pub directory: String,
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

    pub(super) fn write(&self, state: &Path, domain: &str) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(self).expect("maps have text for keys");
        store::replace(&file(state, domain), &bytes, None)
    }

    /// An attempt begins. It is noted first: one that kills its process each time must not become a hundred orders.
    pub(super) fn begin(&mut self) {
        self.begun += 1;
    }

    /// Too many attempts came to no end.
    pub(super) fn is_cut_short(&self) -> bool {
        self.begun >= CUT_SHORT_MAX
    }

    /// An attempt failed.
    pub(super) fn failed(&mut self, trouble: Trouble, text: String, again_s: u64) {
        self.begun = 0;
        self.trouble = Some(trouble);
        self.text = text;
        self.again_s = again_s;
    }

    /// All is well.
    pub(super) fn succeeded(&mut self, issued: Issued) {
        let blocked = std::mem::take(&mut self.blocked);
        *self = Self { issued: Some(issued), blocked, ..Self::default() };
    }
}

fn file(state: &Path, domain: &str) -> PathBuf {
    state.join("domains").join(crate::tls::file_of(domain)).with_extension("json")
}
