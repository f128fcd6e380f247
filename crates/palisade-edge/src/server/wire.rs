//! A client's connection as bytes: what passes is counted and, for HTTP/1, judged; and how long a client may keep it waiting.

use super::gather::Gather;
use super::strict::{NO_HEAD, Strict};
use crate::access_log::Unread;
use crate::proxy::{Clock, TICK_MS};
use crate::send::poll_send;
use bytes::Bytes;
use palisade_core::edge::ConnectionLimits;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// Over this time a client's speed is measured.
const SPEED_MS: u32 = 10_000;
/// An idle connection of HTTP/1 is one that rests after so long.
const REST_MS: u64 = 1_000;
/// What a client still sends is taken for so long after the answer, so that the answer isn't lost by a reset; in all, and as long as
/// nothing comes. It is what nginx does.
const LINGER_MS: u64 = 30_000;
const LINGER_SILENT_MS: u32 = 5_000;
/// Who was told that an idle connection ends has so long to end it.
const PARTING_MS: u64 = 5_000;

/// Of a connection without a socket of its own.
const NO_DESCRIPTOR: RawFd = -1;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No request has begun yet.
    New = 0,
    /// A request's head has begun.
    Head = 1,
    /// A request is being answered.
    Busy = 2,
    /// All requests are answered.
    Idle = 3,
    /// Another protocol is spoken, for as long as both sides like.
    Tunnel = 4,
    /// The last answer was sent.
    Lingering = 5,
    /// It was idle for too long, and the client has taken everything: the last thing it gets is a farewell.
    Parting = 6,
}

/// What the thread that serves a connection knows of it. It is shared with the connection's bytes, which a protocol that it is
/// upgraded to takes along; nobody else looks at it, so nothing in it is ordered.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    phase: AtomicU8,
    /// When the phase began; 0: at the next look.
    since_ms: AtomicU64,
    /// Requests that aren't answered.
    requests: AtomicU32,
    written: AtomicU64,
    /// A write waits for the client.
    blocked: AtomicBool,
    /// What the client had taken at the last look, and when that was more than before.
    taken: AtomicU64,
    taken_ms: AtomicU64,
    slow_ms: AtomicU32,
    slow_from: AtomicU64,
    /// So long nothing has come while it lingers.
    silent_ms: AtomicU32,
    /// What has come so far ends with a request's end.
    whole: AtomicBool,
    /// A reader of HTTP/1 is there, with buffers that could be given up.
    rests: AtomicBool,
    /// It takes no new requests, and ends with those that it has.
    leaving: AtomicBool,
    /// It is to end now.
    cut: AtomicBool,
    descriptor: AtomicI32,
}

impl Pulse {
    pub(crate) fn new(stream: &TcpStream) -> Self {
        let pulse = Self::default();
        pulse.descriptor.store(stream.as_raw_fd(), Relaxed);
        pulse
    }

    /// Of a connection of HTTP/3, whose bytes no socket of its own has.
    pub(crate) fn translated() -> Self {
        let pulse = Self::default();
        pulse.descriptor.store(NO_DESCRIPTOR, Relaxed);
        pulse
    }

    pub(crate) fn is_translated(&self) -> bool {
        self.descriptor.load(Relaxed) == NO_DESCRIPTOR
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::New,
            1 => Phase::Head,
            2 => Phase::Busy,
            4 => Phase::Tunnel,
            5 => Phase::Lingering,
            6 => Phase::Parting,
            _ => Phase::Idle,
        }
    }

    pub(crate) fn set(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
        self.since_ms.store(0, Relaxed);
    }

    /// A request has come.
    pub(crate) fn begin(&self) {
        self.requests.store(self.requests.load(Relaxed) + 1, Relaxed);
        self.set(Phase::Busy);
    }

    /// Its answer has gone, or was given up.
    pub(crate) fn end(&self) {
        let left = self.requests.load(Relaxed).saturating_sub(1);
        self.requests.store(left, Relaxed);
        if left == 0 && self.phase() == Phase::Busy {
            self.set(if self.is_leaving() { Phase::Parting } else { Phase::Idle });
        }
    }

    /// Another protocol was spoken, and one side has said its last word.
    pub(crate) fn half_ended(&self) {
        if self.phase() == Phase::Tunnel {
            self.set(Phase::Idle);
        }
    }

    pub(super) fn may_have_rests(&self, rests: bool) {
        self.rests.store(rests, Relaxed);
    }

    /// Nothing has come or gone for so long that its reader isn't worth its memory.
    pub(super) fn may_rest(&self, now_ms: u64) -> bool {
        let since = self.since_ms.load(Relaxed);
        self.rests.load(Relaxed)
            && self.phase() == Phase::Idle
            && since != 0
            && now_ms >= since + REST_MS
            && self.whole.load(Relaxed)
            && !self.blocked.load(Relaxed)
    }

    /// The client is told at the next look to ask elsewhere.
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Relaxed);
        if self.phase() == Phase::Idle {
            self.set(Phase::Parting);
        }
    }

    /// The client is to be told, if it can be, that nothing more is answered.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Relaxed)
    }

    /// Ends the connection at the next look.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Relaxed);
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Relaxed)
    }

    /// The last answer was sent, and more of a request comes.
    fn linger(&self) {
        self.silent_ms.store(0, Relaxed);
        self.set(Phase::Lingering);
    }

    /// Looks at the time. True if the connection is to end, to rest or to take its leave, which its task does.
    pub(super) fn look(&self, clock: &Clock, limits: &ConnectionLimits) -> bool {
        if self.is_cut() {
            return true;
        }
        let now = clock.now_ms();
        let since = match self.since_ms.load(Relaxed) {
            0 => {
                self.since_ms.store(now, Relaxed);
                now
            }
            since => since,
        };
        let lasts = |ms: u64| now > since + ms;
        let blocked = self.blocked.load(Relaxed);
        let over = match self.phase() {
            Phase::New | Phase::Head => lasts(limits.header_timeout_ms) || self.is_slow(blocked, now, limits),
            Phase::Idle if lasts(limits.idle_timeout_ms) => return self.look_idle(blocked, now, limits),
            Phase::Idle | Phase::Busy | Phase::Tunnel => self.is_slow(blocked, now, limits),
            Phase::Parting => lasts(PARTING_MS),
            Phase::Lingering => lasts(LINGER_MS) || self.is_silent(),
        };
        if over {
            self.cut();
            return true;
        }
        self.may_rest(now) || self.is_leaving()
    }

    /// It was idle for too long; but time doesn't count in which the client took what it had asked for.
    fn look_idle(&self, blocked: bool, now: u64, limits: &ConnectionLimits) -> bool {
        let took = self.taken_ms.load(Relaxed) != 0;
        let owed = blocked || self.unsent() > 0;
        if self.is_slow(owed, now, limits) {
            self.cut();
        } else if owed {
            return self.may_rest(now);
        } else if took {
            self.since_ms.store(now, Relaxed);
            return false;
        } else {
            self.leave();
        }
        true
    }

    /// Nothing has come for a while.
    fn is_silent(&self) -> bool {
        let silent_ms = self.silent_ms.load(Relaxed) + TICK_MS as u32;
        self.silent_ms.store(silent_ms, Relaxed);
        silent_ms > LINGER_SILENT_MS
    }

    /// Bytes that the kernel holds because the client hasn't acknowledged them.
    fn unsent(&self) -> u64 {
        let mut bytes: libc::c_int = 0;
        // SAFETY: SIOCOUTQ writes one int to where the pointer leads, which lives until the call returns. The descriptor is a
        // connection's that is registered, so it is open; if it weren't, the call would fail and write nothing.
        let done = unsafe { libc::ioctl(self.descriptor.load(Relaxed), libc::TIOCOUTQ, &mut bytes) };
        if done == 0 { u64::try_from(bytes).unwrap_or(0) } else { 0 }
    }

    /// The client takes what is owed to it too slowly.
    fn is_slow(&self, owed: bool, now: u64, limits: &ConnectionLimits) -> bool {
        if !owed {
            self.taken_ms.store(0, Relaxed);
            self.slow_ms.store(0, Relaxed);
            return false;
        }
        let taken = self.written.load(Relaxed).saturating_sub(self.unsent());
        if self.taken_ms.load(Relaxed) == 0 || taken > self.taken.load(Relaxed) {
            self.taken_ms.store(now, Relaxed);
            self.taken.store(taken, Relaxed);
        }
        if now > self.taken_ms.load(Relaxed) + limits.body_timeout_ms {
            return true;
        }
        match self.slow_ms.load(Relaxed) {
            0 => self.slow_from.store(taken, Relaxed),
            lasted if lasted >= SPEED_MS => {
                let wanted = u64::from(limits.body_bytes_per_s_min) * u64::from(SPEED_MS) / 1000;
                if taken.saturating_sub(self.slow_from.load(Relaxed)) < wanted {
                    return true;
                }
                self.slow_from.store(taken, Relaxed);
                self.slow_ms.store(0, Relaxed);
            }
            _ => {}
        }
        self.slow_ms.store(self.slow_ms.load(Relaxed) + TICK_MS as u32, Relaxed);
        false
    }
}

/// A stream that may end in a TCP connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    fn tcp(&self) -> Option<&TcpStream>;
}

impl Stream for DuplexStream {
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

impl Stream for TcpStream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

impl Stream for Box<TlsStream<Gather>> {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self.as_ref().get_ref().0.tcp())
    }
}

/// What the reader gets instead of what was refused.
#[derive(Clone, Copy, Debug)]
enum Instead {
    /// The rest of [`NO_HEAD`], which it answers, and then the end.
    Head(&'static [u8]),
    /// A body that breaks off.
    Failure,
}

/// A client's connection.
pub(super) struct Wire<S: Stream> {
    stream: S,
    pulse: Arc<Pulse>,
    /// For HTTP/1 only.
    strict: Option<Strict>,
    /// What an earlier reader had read and not used.
    returned: Bytes,
    refused: Option<Instead>,
    /// How what was refused begins, as far as it is logged.
    unread: Vec<u8>,
    /// The client has ended the connection when nothing was owed to it.
    left: bool,
    shut: bool,
}

impl<S: Stream> Wire<S> {
    pub(super) fn new(stream: S, pulse: Arc<Pulse>, strict: Option<Strict>) -> Self {
        Self {
            stream,
            pulse,
            strict,
            returned: Bytes::new(),
            refused: None,
            unread: Vec::new(),
            left: false,
            shut: false,
        }
    }

    /// What the last reader had read and not used, which was judged already. Empty lines before a request mean nothing; anything
    /// else is what the next reader begins with.
    pub(super) fn give_back(&mut self, returned: Bytes) {
        if returned.iter().any(|byte| !matches!(byte, b'\r' | b'\n')) {
            self.returned = returned;
        }
    }

    /// The next reader begins with what the last one left.
    pub(super) fn has_returned(&self) -> bool {
        !self.returned.is_empty()
    }

    /// Until there is something to read. The reader before must have read until it had to wait.
    pub(super) fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self.stream.tcp() {
            // What is wrong with it the next reader sees.
            Some(tcp) if !self.has_returned() => tcp.poll_read_ready(context).map(|_| ()),
            _ => Poll::Ready(()),
        }
    }

    /// Whether a request's head has begun that isn't whole; and how the head begins that was refused.
    pub(super) fn unread(&self) -> (bool, &[u8]) {
        (self.strict.as_ref().is_some_and(Strict::within_head), &self.unread)
    }

    /// Judges what was read.
    fn judge(&mut self, buffer: &mut ReadBuf<'_>, before: usize) -> io::Result<()> {
        let Some(strict) = &mut self.strict else { return Ok(()) };
        let phase = self.pulse.phase();
        if phase == Phase::Tunnel {
            self.strict = None;
            return Ok(());
        }
        if phase == Phase::Idle {
            strict.not_upgraded();
        }
        let judged = strict.feed(&buffer.filled()[before..]);
        self.pulse.whole.store(judged.is_ok() && strict.between_requests(), Relaxed);
        if let Err(refused) = judged {
            let sound = before + refused.sound;
            let unread = &buffer.filled()[sound..];
            self.unread = unread[..unread.len().min(Unread::LINE_BYTES_MAX)].to_vec();
            buffer.set_filled(sound);
            self.refused = Some(if refused.in_head { Instead::Head(NO_HEAD) } else { Instead::Failure });
            if sound == before {
                return self.refuse(buffer);
            }
        } else if strict.within_head() && phase == Phase::Idle {
            // What is new has begun with the handshake; a head that is whole becomes a request at once.
            self.pulse.set(Phase::Head);
        }
        Ok(())
    }

    fn refuse(&mut self, buffer: &mut ReadBuf<'_>) -> io::Result<()> {
        match &mut self.refused {
            Some(Instead::Head(rest)) => {
                let (now, later) = rest.split_at(rest.len().min(buffer.remaining()));
                buffer.put_slice(now);
                *rest = later;
                Ok(())
            }
            Some(Instead::Failure) => Err(io::ErrorKind::InvalidData.into()),
            None => Ok(()),
        }
    }
}

impl<S: Stream> Drop for Wire<S> {
    fn drop(&mut self) {
        // What the client doesn't take isn't kept for it. The last words of a connection that ends as it should are.
        if self.pulse.is_cut()
            && !matches!(self.pulse.phase(), Phase::Parting | Phase::Lingering)
            && let Some(tcp) = self.stream.tcp()
        {
            let _ = tcp.set_zero_linger();
        }
    }
}

impl<S: Stream> AsyncRead for Wire<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.refused.is_some() {
            return Poll::Ready(this.refuse(buffer));
        }
        if this.has_returned() {
            let now = this.returned.split_to(this.returned.len().min(buffer.remaining()));
            buffer.put_slice(&now);
            if this.returned.is_empty() {
                this.returned = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            return Poll::Ready(this.judge(buffer, before));
        }
        if buffer.remaining() > 0 {
            this.left = this.pulse.phase() == Phase::Idle && this.pulse.whole.load(Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Stream> Wire<S> {
    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &polled {
            Poll::Ready(Ok(count)) => {
                self.pulse.written.store(self.pulse.written.load(Relaxed) + *count as u64, Relaxed);
                self.pulse.blocked.store(false, Relaxed);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.pulse.blocked.store(true, Relaxed),
        }
        polled
    }
}

impl<S: Stream> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.wrote(polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = poll_send(&mut this.stream, context, parts);
        this.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_flush(context);
        this.pulse.blocked.store(polled.is_pending(), Relaxed);
        polled
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.left {
            // A farewell would only be answered by a reset.
            return Poll::Ready(Ok(()));
        }
        if !this.shut {
            let polled = Pin::new(&mut this.stream).poll_shutdown(context);
            this.pulse.blocked.store(polled.is_pending(), Relaxed);
            ready!(polled)?;
            this.shut = true;
            // The client may be in the middle of a request: a reset now could reach it before the answer does.
            if this.refused.is_none() && this.strict.as_ref().is_none_or(Strict::between_requests) {
                return Poll::Ready(Ok(()));
            }
            this.pulse.linger();
        }
        this.poll_discarded(context).map(Ok)
    }
}

impl<S: Stream> Wire<S> {
    /// Takes what the client still sends until it ends. Nobody reads it, so it isn't decrypted.
    fn poll_discarded(&self, context: &mut Context<'_>) -> Poll<()> {
        let Some(tcp) = self.stream.tcp() else { return Poll::Ready(()) };
        let mut scrap = [0; 16 << 10];
        while ready!(tcp.poll_read_ready(context)).is_ok() {
            match tcp.try_read(&mut scrap) {
                Ok(1..) => self.pulse.silent_ms.store(0, Relaxed),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}
