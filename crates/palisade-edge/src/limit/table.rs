//! A table of fixed size for what is known of clients, shared by all workers.
//!
//! An entry can be in one of the eight places of one set only, which the hash of its key says; each set has its own lock, so two
//! workers meet only when they ask about the same few clients. The hash is keyed at random: nobody outside can tell which clients
//! share a set. When a set is full, the entry that is worth least gives way, as its owner defines it.

use super::client::ClientKey;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

/// Places of one set.
pub(super) const WAYS: usize = 8;

/// Whose entry it is: a client at a route, which is counted from 0.
pub(super) type Key = (u16, ClientKey);

type Set<T> = [Option<(Key, T)>; WAYS];

#[derive(Debug)]
pub(super) struct Table<T> {
    sets: Box<[Mutex<Set<T>>]>,
    hasher: RandomState,
}

impl<T: Copy> Table<T> {
    /// Room for this many entries, rounded up to whole sets.
    pub(super) fn new(entries: usize) -> Self {
        let sets = entries.div_ceil(WAYS).max(1);
        Self { sets: (0..sets).map(|_| Mutex::new([None; WAYS])).collect(), hasher: RandomState::new() }
    }

    /// Looks at an entry, or makes it. `worth` says which gives way when there is no room (the least does); `new` makes the new
    /// one from that.
    pub(super) fn with<R>(
        &self,
        key: Key,
        worth: impl Fn(&Key, &T) -> i64,
        new: impl FnOnce(Option<(&Key, &T)>) -> T,
        then: impl FnOnce(&mut T) -> R,
    ) -> R {
        // The remainder is less than the number of sets.
        let at = (self.hasher.hash_one(key) % self.sets.len() as u64) as usize;
        // Whoever panicked with the lock held has left whole entries.
        let mut set = self.sets[at].lock().unwrap_or_else(PoisonError::into_inner);
        let mut least: (usize, i64) = (0, i64::MAX);
        for (way, place) in set.iter_mut().enumerate() {
            let worth = match place {
                Some((known, value)) if *known == key => return then(value),
                Some((known, value)) => worth(known, value),
                None => i64::MIN,
            };
            if worth < least.1 {
                least = (way, worth);
            }
        }
        let place = &mut set[least.0];
        let mut value = new(place.as_ref().map(|(key, value)| (key, value)));
        let result = then(&mut value);
        *place = Some((key, value));
        result
    }

    /// What it takes, full or empty.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.sets)
    }

    /// Everything that is in it.
    pub(super) fn entries(&self) -> Vec<(Key, T)> {
        let all = self.sets.iter().flat_map(|set| *set.lock().unwrap_or_else(PoisonError::into_inner));
        all.flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_grows_and_the_least_gives_way() {
        let table = Table::new(64);
        for client in 0..10_000 {
            table.with((0, ClientKey::V4(client)), |_, value| *value, |_| i64::from(client), |_| ());
        }
        let entries = table.entries();
        assert_eq!(entries.len(), 64);
        // In every set the greatest have stayed, but for the place that all the others took in turn.
        assert!(entries.iter().filter(|(_, value)| *value > 8_000).count() > 48, "{entries:?}");
    }
}
