//! What one stream of HTTP/2 was given and hasn't sent, because its client leaves it no room while the connection goes on.

use super::clock::{Clock, Limit};
use crate::server::Pulse;
use bytes::{Buf, Bytes};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use tokio::task::AbortHandle;

/// A client that takes less than this within the limit takes nothing: a byte now and then is no progress.
const PROGRESS_BYTES: usize = 8 << 10;

/// What a stream's client hasn't taken.
#[derive(Debug)]
pub(crate) struct Owed {
    parts: Cell<usize>,
    /// Bytes that were taken since it was last said to be progress.
    taken: Cell<usize>,
    limit: Limit,
}

impl Owed {
    pub(crate) fn new(clock: &Rc<Clock>, limit_ms: u64) -> Self {
        Self { parts: Cell::new(0), taken: Cell::new(0), limit: Limit::new(clock, limit_ms) }
    }

    /// This task sends the stream on this connection, and is given up when nothing of it is taken for too long.
    pub(crate) fn by(&self, task: AbortHandle, pulse: &Arc<Pulse>) {
        self.limit.gives_up(task, pulse);
    }

    fn give(&self) {
        if self.parts.replace(self.parts.get() + 1) == 0 {
            self.progress();
        }
    }

    fn take(&self, bytes: usize) {
        self.taken.set(self.taken.get() + bytes);
        if self.taken.get() >= PROGRESS_BYTES {
            self.progress();
        }
    }

    /// A part has gone.
    fn leave(&self) {
        if self.parts.replace(self.parts.get() - 1) == 1 {
            self.limit.progress();
        }
    }

    fn progress(&self) {
        self.taken.set(0);
        self.limit.restart();
    }
}

/// A part of an answer on its way to the client. It lives until it is sent.
#[derive(Debug)]
pub(crate) struct Part {
    bytes: Bytes,
    /// For HTTP/2.
    owed: Option<Rc<Owed>>,
}

impl Part {
    pub(super) fn new(bytes: Bytes, owed: Option<&Rc<Owed>>) -> Self {
        if let Some(owed) = owed {
            owed.give();
        }
        Self { bytes, owed: owed.cloned() }
    }

    fn took(&self, bytes: usize) {
        if let Some(owed) = &self.owed {
            owed.take(bytes);
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(owed) = &self.owed {
            owed.leave();
        }
    }
}

impl Buf for Part {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.took(count);
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        self.took(length);
        self.bytes.copy_to_bytes(length)
    }
}
