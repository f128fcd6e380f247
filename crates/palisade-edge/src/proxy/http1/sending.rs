//! A request on its way to an upstream: its head, then its body as the client sends it.

use crate::proxy::clock::Clock;
use crate::proxy::upload::Upload;
use crate::send::poll_send;
use bytes::{Buf, Bytes};
use hyper::body::Body as _;
use hyper::http::request::Parts;
use std::io::{IoSlice, Write};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::net::TcpStream;

/// How the upstream is told where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Framing {
    None,
    Length(u64),
    Chunked,
}

impl Framing {
    pub(in crate::proxy) fn of(parts: &Parts, body: &Upload) -> Self {
        match body.size_hint().exact() {
            Some(0) if body.is_end_stream() && !parts.headers.contains_key(hyper::header::CONTENT_LENGTH) => Self::None,
            Some(length) => Self::Length(length),
            None => Self::Chunked,
        }
    }
}

/// Why sending ends before its end.
#[derive(Debug)]
pub(super) enum SendError {
    Upstream,
    Client(hyper::Error),
    TooLong,
    Slow,
}

/// What a client may send, and how slowly.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct Bounds {
    pub(in crate::proxy) body_bytes_max: u64,
    pub(in crate::proxy) bytes_per_s_min: u32,
}

/// Over this time a client's speed is measured.
const SPEED_MS: u64 = 10_000;

/// What is still to be sent.
#[derive(Debug)]
pub(in crate::proxy) struct Sending {
    /// The head, then what stands before each chunk and after the last.
    out: Vec<u8>,
    out_sent: usize,
    data: Bytes,
    /// The line end behind a chunk.
    tail: &'static [u8],
    framing: Framing,
    /// `None` only once it was taken.
    body: Option<Upload>,
    /// There is no more to fetch from the client.
    fetched: bool,
    /// All is sent, or sending was given up.
    over: bool,
    given_up: bool,
    /// Bytes of the body that were fetched, and may be.
    body_bytes: u64,
    bounds: Bounds,
    sent_bytes: u64,
    waits_for_client: bool,
    clock: Rc<Clock>,
    /// When the client's speed began to be measured, and what it had sent then; it isn't while the upstream takes nothing.
    measured: Option<(u64, u64)>,
}

impl Sending {
    pub(in crate::proxy) fn new(
        head: Vec<u8>,
        framing: Framing,
        body: Upload,
        bounds: Bounds,
        clock: &Rc<Clock>,
    ) -> Self {
        Self {
            out: head,
            out_sent: 0,
            data: Bytes::new(),
            tail: b"",
            framing,
            body: Some(body),
            fetched: matches!(framing, Framing::None | Framing::Length(0)),
            over: false,
            given_up: false,
            body_bytes: 0,
            bounds,
            sent_bytes: 0,
            waits_for_client: false,
            clock: Rc::clone(clock),
            measured: None,
        }
    }

    /// Some of the body was fetched, so the request can't be sent again.
    pub(in crate::proxy) fn body_touched(&self) -> bool {
        self.body_bytes > 0
    }

    pub(in crate::proxy) fn take_body(&mut self) -> Option<Upload> {
        self.body.take()
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// The whole request was sent, so that the connection can be used for another one.
    pub(super) fn is_whole(&self) -> bool {
        self.over && !self.given_up
    }

    /// What is left is not sent.
    pub(super) fn give_up(&mut self) {
        self.over = true;
        self.given_up = true;
    }

    /// A number that grows while something is sent.
    pub(super) fn progress(&self) -> u64 {
        self.sent_bytes
    }

    /// Nothing can be sent before the client has sent more.
    pub(super) fn waits_for_client(&self) -> bool {
        self.waits_for_client
    }

    pub(super) fn take_scratch(&mut self) -> Vec<u8> {
        if self.over { std::mem::take(&mut self.out) } else { Vec::new() }
    }

    /// Sends what can be sent.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, stream: &mut TcpStream) -> Poll<Result<(), SendError>> {
        loop {
            self.waits_for_client = false;
            if !self.fetched && self.data.is_empty() && self.tail.is_empty() {
                self.fetch(context)?;
            }
            let head = &self.out[self.out_sent..];
            if head.is_empty() && self.data.is_empty() && self.tail.is_empty() {
                if self.fetched {
                    self.over = true;
                    return Poll::Ready(Ok(()));
                }
                self.waits_for_client = true;
                return match self.is_slow() {
                    true => Poll::Ready(Err(SendError::Slow)),
                    false => Poll::Pending,
                };
            }
            let parts = [IoSlice::new(head), IoSlice::new(&self.data), IoSlice::new(self.tail)];
            let used = if self.data.is_empty() && self.tail.is_empty() { 1 } else { 3 };
            let sent = match poll_send(stream, context, &parts[..used]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(SendError::Upstream)),
                Poll::Ready(Ok(sent)) => sent,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(SendError::Upstream)),
                Poll::Pending => {
                    self.measured = None;
                    return Poll::Pending;
                }
            };
            self.advance(sent);
        }
    }

    /// The client, which is waited for, has sent too little of late.
    fn is_slow(&mut self) -> bool {
        let now = self.clock.now_ms();
        let (since, before) = *self.measured.get_or_insert((now, self.body_bytes));
        if now < since + SPEED_MS {
            return false;
        }
        self.measured = Some((now, self.body_bytes));
        (self.body_bytes - before) * 1000 < u64::from(self.bounds.bytes_per_s_min) * (now - since)
    }

    fn advance(&mut self, sent: usize) {
        self.sent_bytes += sent as u64;
        let of_out = sent.min(self.out.len() - self.out_sent);
        self.out_sent += of_out;
        if self.out_sent == self.out.len() {
            self.out.clear();
            self.out_sent = 0;
        }
        let of_data = (sent - of_out).min(self.data.len());
        self.data.advance(of_data);
        self.tail = &self.tail[sent - of_out - of_data..];
    }

    /// Takes the next part of the body, if the client has sent it.
    fn fetch(&mut self, context: &mut Context<'_>) -> Result<(), SendError> {
        loop {
            let polled = match &mut self.body {
                Some(body) => Pin::new(body).poll_frame(context),
                None => Poll::Ready(None),
            };
            match polled {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => {
                    self.fetched = true;
                    if self.framing == Framing::Chunked {
                        self.out.extend_from_slice(b"0\r\n\r\n");
                    }
                    return Ok(());
                }
                Poll::Ready(Some(Err(error))) => return Err(SendError::Client(error)),
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers of requests concern nobody behind HTTP/1.1.
                    let Ok(data) = frame.into_data() else { continue };
                    if data.is_empty() {
                        continue;
                    }
                    self.body_bytes += data.len() as u64;
                    if self.body_bytes > self.bounds.body_bytes_max {
                        return Err(SendError::TooLong);
                    }
                    if self.framing == Framing::Chunked {
                        // Writing to a vector can't fail.
                        let _ = write!(self.out, "{:x}\r\n", data.len());
                        self.tail = b"\r\n";
                    }
                    self.data = data;
                    self.fetched = matches!(self.framing, Framing::Length(length) if self.body_bytes >= length);
                    return Ok(());
                }
            }
        }
    }
}
