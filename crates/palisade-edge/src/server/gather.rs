//! What a server of TLS 1.3 says after a handshake, tickets for the next one, goes out with the first answer instead of alone: nobody
//! waits for it, and a segment of its own costs more than making the ticket. nginx and haproxy send it alone.

use crate::send::poll_send;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The first byte of a record that is encrypted in TLS 1.3, and belongs to no handshake in earlier versions (RFC 8446, section 5.1).
const APPLICATION_DATA: u8 = 23;
/// More than this is no ticket.
const HELD_BYTES_MAX: usize = 2 << 10;

/// A client's TCP connection, below TLS.
#[derive(Debug)]
pub(super) struct Gather {
    tcp: TcpStream,
    step: Step,
    held: Vec<u8>,
}

/// How far the handshake is, as seen from below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The client has begun it.
    Begun,
    /// The server has said its part, and all of it was sent.
    Answered,
    /// The client has said more. What the server says before the handshake is over here, too, ends it in TLS 1.2, and is a ticket in 1.3.
    Heard,
    /// Everything goes out as it comes.
    Over,
}

impl Gather {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { tcp, step: Step::Begun, held: Vec::new() }
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// What comes now is for those who use the connection.
    pub(super) fn end_handshake(&mut self) {
        self.step = Step::Over;
    }

    /// Nobody waits for this.
    fn may_wait(&self, parts: &[IoSlice<'_>], bytes: usize) -> bool {
        let first = parts.iter().find_map(|part| part.first());
        self.step == Step::Heard && first == Some(&APPLICATION_DATA) && bytes <= HELD_BYTES_MAX
    }

    /// Sends what was held, and then these.
    fn poll_send(&mut self, context: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        while !self.held.is_empty() {
            let mut all = Vec::with_capacity(parts.len() + 1);
            all.push(IoSlice::new(&self.held));
            all.extend_from_slice(parts);
            let sent = ready!(Pin::new(&mut self.tcp).poll_write_vectored(context, &all))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let later = sent.saturating_sub(self.held.len());
            self.held.drain(..sent - later);
            if self.held.is_empty() {
                self.held = Vec::new();
                if later > 0 {
                    return Poll::Ready(Ok(later));
                }
            }
        }
        match parts.iter().all(|part| part.is_empty()) {
            true => Poll::Ready(Ok(0)),
            false => poll_send(&mut self.tcp, context, parts),
        }
    }
}

impl AsyncRead for Gather {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.tcp).poll_read(context, buffer))?;
        if this.step == Step::Answered && buffer.filled().len() > before {
            this.step = Step::Heard;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gather {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.step == Step::Over {
            return this.poll_send(context, parts);
        }
        let bytes = parts.iter().map(|part| part.len()).sum();
        if this.may_wait(parts, bytes) {
            this.step = Step::Over;
            parts.iter().for_each(|part| this.held.extend_from_slice(part));
            return Poll::Ready(Ok(bytes));
        }
        let sent = ready!(this.poll_send(context, parts))?;
        let whole = sent == bytes && matches!(this.step, Step::Begun | Step::Answered);
        this.step = if whole { Step::Answered } else { Step::Over };
        Poll::Ready(Ok(sent))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(context, &[]))?;
        Pin::new(&mut this.tcp).poll_shutdown(context)
    }
}
