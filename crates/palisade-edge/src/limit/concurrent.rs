//! How many things one client has at once. Only clients that have any are known, so there are no more of them than of the things.

use super::client::ClientKey;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Separately locked parts.
const SHARDS: usize = 64;

type Key = (u16, ClientKey);

#[derive(Debug)]
pub(super) struct Concurrent {
    shards: Box<[Mutex<HashMap<Key, u32>>]>,
    hasher: RandomState,
}

/// One of them. It counts until it is dropped.
#[derive(Debug)]
pub struct Slot {
    of: Arc<Concurrent>,
    key: Key,
}

impl Concurrent {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }

    fn shard(&self, key: Key) -> MutexGuard<'_, HashMap<Key, u32>> {
        // The remainder is less than the number of shards.
        let at = (self.hasher.hash_one(key) % SHARDS as u64) as usize;
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more, if the client has fewer than `max`.
    pub(super) fn enter(self: &Arc<Self>, key: Key, max: u32) -> Option<Slot> {
        let mut shard = self.shard(key);
        let count = shard.get(&key).copied().unwrap_or(0);
        if count >= max {
            return None;
        }
        shard.insert(key, count + 1);
        Some(Slot { of: Arc::clone(self), key })
    }

    #[cfg(test)]
    pub(super) fn clients(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().len()).sum()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut shard = self.of.shard(self.key);
        if let Entry::Occupied(mut count) = shard.entry(self.key) {
            match *count.get() {
                0 | 1 => drop(count.remove()),
                more => *count.get_mut() = more - 1,
            }
        }
        // Many clients at once leave no room behind that isn't used any more.
        if shard.capacity() > 64 && shard.len() < shard.capacity() / 8 {
            shard.shrink_to_fit();
        }
    }
}
