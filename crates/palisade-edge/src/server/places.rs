//! How many connections the edge may have at once, all workers together; and how often it had no room, which is said once a minute.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// What goes wrong with each connection isn't said with each.
const QUIET_MS: u64 = 60_000;

#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    taken: AtomicUsize,
    /// Connections that were reset because there were so many.
    reset: Trouble,
    /// How often no connection could be accepted, because no descriptor was left.
    starved: Trouble,
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Taken(Arc<Places>);

impl Places {
    pub(super) fn new(max: u32) -> Arc<Self> {
        let max = max as usize;
        Arc::new(Self { max, taken: AtomicUsize::new(0), reset: Trouble::default(), starved: Trouble::default() })
    }

    /// `None`: all are taken, and whoever has come is to be sent away.
    pub(crate) fn take(self: &Arc<Self>, now_ms: u64) -> Option<Taken> {
        match self.taken.fetch_update(Relaxed, Relaxed, |taken| (taken < self.max).then_some(taken + 1)) {
            Ok(_) => Some(Taken(Arc::clone(self))),
            Err(_) => {
                self.reset.happens(now_ms, |times| {
                    eprintln!(
                        "palisade-edge: there are {} connections, as many as `limits.connections` says: others are reset ({times} since the start)",
                        self.max
                    );
                });
                None
            }
        }
    }

    /// A connection couldn't be accepted for want of descriptors or memory.
    pub(super) fn starve(&self, now_ms: u64, error: &std::io::Error) {
        self.starved.happens(now_ms, |times| {
            eprintln!(
                "palisade-edge: clients have to wait: can't accept connections ({times} times since the start): {error}"
            );
        });
    }

    /// How many connections were reset, and how often none could be accepted.
    pub(super) fn troubles(&self) -> (u64, u64) {
        (self.reset.times.load(Relaxed), self.starved.times.load(Relaxed))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Relaxed);
    }
}

#[derive(Debug, Default)]
struct Trouble {
    times: AtomicU64,
    quiet_until_ms: AtomicU64,
}

impl Trouble {
    fn happens(&self, now_ms: u64, say: impl FnOnce(u64)) {
        let times = self.times.fetch_add(1, Relaxed) + 1;
        let until = self.quiet_until_ms.load(Relaxed);
        let next = now_ms.saturating_add(QUIET_MS);
        if now_ms >= until && self.quiet_until_ms.compare_exchange(until, next, Relaxed, Relaxed).is_ok() {
            say(times);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_so_many_and_no_more_whoever_asks_for_them() {
        let places = Places::new(4);
        let taken: Vec<Option<Taken>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..40).map(|_| scope.spawn(|| places.take(0))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(taken.iter().flatten().count(), 4);
        assert_eq!(places.troubles(), (36, 0));
        drop(taken);
        assert!(places.take(0).is_some());
    }

    #[test]
    fn trouble_is_said_once_a_minute_and_always_counted() {
        let trouble = Trouble::default();
        let said = std::cell::RefCell::new(Vec::new());
        for now_ms in [5, 6, 60_004, 60_005, 60_006, 500_000] {
            trouble.happens(now_ms, |times| said.borrow_mut().push(times));
        }
        assert_eq!(*said.borrow(), [1, 4, 6]);
    }
}
