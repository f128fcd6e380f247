//! A worker's coarse clock, and what it wakes. Time limits are seconds: none of them is worth a timer for each request.

use crate::server::Pulse;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;
use tokio::task::AbortHandle;

/// How often the clock ticks; limits are kept to this.
pub(crate) const TICK_MS: u64 = 250;

/// The time of the last tick, and those who wait.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    now_ms: Cell<u64>,
    waiting: RefCell<Slab<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    /// `u64::MAX` while nothing is waited for.
    due_ms: u64,
    then: Then,
}

/// What is done when it is due.
#[derive(Debug)]
enum Then {
    Nothing,
    Wake(Waker),
    GiveUp(Stalled),
    Cut(Arc<Pulse>),
}

/// A task whose client takes nothing.
#[derive(Debug)]
struct Stalled {
    task: AbortHandle,
    pulse: Arc<Pulse>,
    limit_ms: u64,
}

impl Stalled {
    /// Ends the task; or, if what is left of it is beyond reach, the connection. What is to be done after the same time again.
    fn give_up(self) -> Then {
        if self.task.is_finished() {
            self.pulse.leave();
            return Then::Cut(self.pulse);
        }
        self.task.abort();
        Then::GiveUp(self)
    }
}

impl Clock {
    pub(crate) fn new() -> Self {
        // It never shows 0, which stands for "never" elsewhere.
        Self { start: Instant::now(), now_ms: Cell::new(1), waiting: RefCell::default() }
    }

    /// Milliseconds since the worker began, as of the last tick.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    fn due_ms(&self, limit_ms: u64) -> u64 {
        // The last tick may be almost a tick ago.
        self.now_ms().saturating_add(limit_ms).saturating_add(TICK_MS)
    }

    /// Looks at the time, and wakes whoever waits for longer than it wanted.
    pub(crate) fn tick(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        self.now_ms.set(now);
        // Woken tasks run later, so nothing touches the list meanwhile.
        for (_, waiting) in self.waiting.borrow_mut().iter_mut() {
            if waiting.due_ms <= now {
                match std::mem::replace(&mut waiting.then, Then::Nothing) {
                    Then::Nothing => {}
                    Then::Wake(waker) => waker.wake(),
                    Then::GiveUp(stalled) => {
                        waiting.due_ms = now.saturating_add(stalled.limit_ms);
                        waiting.then = stalled.give_up();
                    }
                    Then::Cut(pulse) => pulse.cut(),
                }
            }
        }
    }
}

/// One thing that may take only so long.
#[derive(Debug)]
pub(crate) struct Limit {
    clock: Rc<Clock>,
    key: usize,
    limit_ms: u64,
    /// How long the next wait may be.
    next_ms: Cell<u64>,
}

impl Limit {
    pub(crate) fn new(clock: &Rc<Clock>, limit_ms: u64) -> Self {
        Self::begun(clock, limit_ms, limit_ms)
    }

    /// So much of the first wait's time is left.
    pub(crate) fn begun(clock: &Rc<Clock>, limit_ms: u64, left_ms: u64) -> Self {
        let key = clock.waiting.borrow_mut().insert(Waiting { due_ms: u64::MAX, then: Then::Nothing });
        Self { clock: Rc::clone(clock), key, limit_ms, next_ms: Cell::new(left_ms) }
    }

    /// Something has happened: whoever waits next waits from then on.
    pub(crate) fn progress(&self) {
        if let Some(waiting) = self.clock.waiting.borrow_mut().get_mut(self.key) {
            waiting.due_ms = u64::MAX;
        }
    }

    /// Something has happened, and whoever waits goes on waiting from now on.
    pub(crate) fn renew(&self) {
        if let Some(waiting) = self.clock.waiting.borrow_mut().get_mut(self.key)
            && waiting.due_ms != u64::MAX
        {
            waiting.due_ms = self.clock.due_ms(self.limit_ms);
        }
    }

    /// Nothing has happened yet. True when that has lasted too long; otherwise the task is woken when it has.
    pub(crate) fn expired(&self, context: &Context<'_>) -> bool {
        self.expired_after(self.next_ms.replace(self.limit_ms), context)
    }

    /// The same with another limit, for the time from now on until something happens.
    pub(crate) fn expired_after(&self, limit_ms: u64, context: &Context<'_>) -> bool {
        let mut all = self.clock.waiting.borrow_mut();
        let Some(waiting) = all.get_mut(self.key) else { return false };
        if waiting.due_ms == u64::MAX {
            waiting.due_ms = self.clock.due_ms(limit_ms);
        } else if waiting.due_ms <= self.clock.now_ms() {
            return true;
        }
        match &waiting.then {
            Then::Wake(waker) if waker.will_wake(context.waker()) => {}
            _ => waiting.then = Then::Wake(context.waker().clone()),
        }
        false
    }

    /// From now on something is waited for, also if nobody waited before.
    pub(crate) fn restart(&self) {
        if let Some(waiting) = self.clock.waiting.borrow_mut().get_mut(self.key) {
            waiting.due_ms = self.clock.due_ms(self.limit_ms);
        }
    }

    /// This task, which sends on this connection, is given up when nothing happens for too long.
    pub(crate) fn gives_up(&self, task: AbortHandle, pulse: &Arc<Pulse>) {
        if let Some(waiting) = self.clock.waiting.borrow_mut().get_mut(self.key) {
            let pulse = Arc::clone(pulse);
            waiting.then = Then::GiveUp(Stalled { task, pulse, limit_ms: self.limit_ms });
        }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        self.clock.waiting.borrow_mut().remove(self.key);
    }
}
