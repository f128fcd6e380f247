//! Counts the bytes that are allocated, so that an input that takes too many is noticed at once and not by luck.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

struct Counting;

static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK_BYTES: AtomicUsize = AtomicUsize::new(0);
static START_BYTES: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it is; only numbers are kept besides.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE_BYTES.fetch_add(layout.size(), Relaxed).wrapping_add(layout.size());
        PEAK_BYTES.fetch_max(live, Relaxed);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Begins to look for a new peak.
pub fn start() {
    let live = LIVE_BYTES.load(Relaxed);
    START_BYTES.store(live, Relaxed);
    PEAK_BYTES.store(live, Relaxed);
}

/// The most bytes that were in use at once since then, what was there before left out.
pub fn peak_bytes() -> usize {
    PEAK_BYTES.load(Relaxed).saturating_sub(START_BYTES.load(Relaxed))
}
