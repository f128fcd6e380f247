//! A connection in memory: what one side says is known before, and it arrives in pieces.

use hyper::rt::{Read, ReadBufCursor, Write};
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, ReadBuf};

/// Polls without progress that are too many.
const POLLS_MAX: usize = 100_000;

/// The one side's words.
pub(super) struct Pipe {
    words: Vec<u8>,
    next: usize,
    piece: usize,
    /// After the last word comes a failure, not the end.
    fails: bool,
    /// Nothing is said before something was heard.
    waits: bool,
}

impl Pipe {
    pub(super) fn new(words: Vec<u8>, piece: usize) -> Self {
        Self { words, next: 0, piece, fails: false, waits: false }
    }

    pub(super) fn failing(self, fails: bool) -> Self {
        Self { fails, ..self }
    }

    pub(super) fn answering(self) -> Self {
        Self { waits: true, ..self }
    }

    /// How much was taken.
    pub(super) fn taken(&self) -> usize {
        self.next
    }

    fn say(&mut self, room: usize) -> Poll<io::Result<&[u8]>> {
        if self.waits {
            return Poll::Pending;
        }
        let rest = &self.words[self.next..];
        if rest.is_empty() && self.fails {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let length = rest.len().min(self.piece).min(room);
        self.next += length;
        Poll::Ready(Ok(&rest[..length]))
    }
}

impl Read for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let room = buffer.remaining();
        self.say(room).map_ok(|words| buffer.put_slice(words))
    }
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buffer.remaining();
        self.say(room).map_ok(|words| buffer.put_slice(words))
    }
}

impl Write for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.waits = false;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What comes of this, which waits for nothing but itself.
pub(super) fn run<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..POLLS_MAX {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
    panic!("it waits for ever");
}
