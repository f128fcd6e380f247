//! HTTP/1.1 with an upstream, in the task of the client's connection: nothing is handed from task to task.

mod answer;
mod decode;
mod head;
mod sending;

pub(super) use answer::AnswerBody;
pub(super) use sending::{Bounds, Framing, Sending};

use super::clock::{Clock, Limit};
use super::head::drop_connection_fields;
use super::pool::Active;
use super::{Body, Refused};
use bytes::BytesMut;
use head::Head;
use hyper::{Method, Response, StatusCode};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::TcpStream;

/// Room for what is read at once, at first; it grows with bodies that fill it.
const READ_BYTES: usize = 8 << 10;
const READ_BYTES_MAX: usize = 64 << 10;

/// A connection to an instance.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    /// What was read and isn't used yet.
    buffer: BytesMut,
    read_bytes: usize,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: BytesMut::new(), read_bytes: READ_BYTES }
    }

    /// Nothing has arrived on it, not even its end. Costs no system call unless something has.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut context = Context::from_waker(Waker::noop());
        self.buffer.is_empty()
            && Pin::new(&mut self.stream).poll_read(&mut context, &mut ReadBuf::new(&mut byte)).is_pending()
    }

    /// For another protocol: the stream, and what was read of it already.
    pub(super) fn into_parts(self) -> (TcpStream, BytesMut) {
        (self.stream, self.buffer)
    }

    /// Reads what there is. 0: the other side has ended.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.buffer.reserve(self.read_bytes);
        let read = ready!(pin!(self.stream.read_buf(&mut self.buffer)).poll(context))?;
        if read >= self.read_bytes {
            self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX);
        }
        Poll::Ready(Ok(read))
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    /// Not a byte of it came before the connection ended.
    #[error("the upstream ended the connection without an answer")]
    NoAnswer(#[source] Option<io::Error>),
    #[error("the upstream ended the connection within its answer")]
    Broken(#[source] Option<io::Error>),
    #[error("what the upstream answered is not HTTP: {0}")]
    Garbage(&'static str),
    #[error("the upstream took too long")]
    Late,
    #[error("the client didn't send its whole request")]
    Client(#[source] hyper::Error),
    #[error("the client sent its request too slowly")]
    Slow,
    #[error("the client ended within its request")]
    ClientEnded,
    #[error("the request is longer than allowed")]
    TooLong,
    #[error("the upstream gave no answer over HTTP/2")]
    Http2(#[source] hyper::Error),
}

impl ExchangeError {
    /// The upstream isn't to blame.
    pub(super) fn is_clients(&self) -> bool {
        matches!(self, Self::Client(_) | Self::ClientEnded | Self::Slow | Self::TooLong)
    }

    /// What the client is told.
    pub(super) fn refused(&self) -> Refused {
        match self {
            Self::NoAnswer(_) | Self::Broken(_) | Self::Garbage(_) | Self::Http2(_) => StatusCode::BAD_GATEWAY.into(),
            Self::Late => StatusCode::GATEWAY_TIMEOUT.into(),
            Self::Client(_) | Self::ClientEnded => Refused::closing(StatusCode::BAD_REQUEST),
            Self::Slow => Refused::closing(StatusCode::REQUEST_TIMEOUT),
            Self::TooLong => Refused::closing(StatusCode::PAYLOAD_TOO_LARGE),
        }
    }
}

/// The head of an answer, and where its body comes from.
pub(super) struct Answered {
    response: Response<()>,
    body: AnswerBody,
}

impl Answered {
    /// The room in which the request's head was written, if that is over.
    pub(super) fn take_scratch(&mut self) -> Vec<u8> {
        self.body.take_scratch()
    }

    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn into_response(self) -> Response<Body> {
        self.response.map(|()| Body::http1(self.body))
    }

    /// For another protocol: the answer that says so, and the connection.
    pub(super) fn into_upgraded(self) -> (Response<Body>, Option<(Connection, Active)>) {
        (self.response.map(|()| Body::default()), self.body.into_connection())
    }
}

/// How long one side may keep the other waiting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    pub(super) upstream_ms: u64,
    /// What is left of that for the upstream's first word: reaching it has taken time already.
    pub(super) left_ms: u64,
    pub(super) client_ms: u64,
}

/// Sends a request and reads the head of its answer. The answer may come before the request's body has been sent; the rest
/// of it is sent while the answer's body is read.
///
/// # Errors
/// With what is left of the request.
pub(super) async fn exchange(
    mut connection: Connection,
    mut sending: Sending,
    method: &Method,
    active: Active,
    clock: &Rc<Clock>,
    timeouts: Timeouts,
) -> Result<Answered, Box<(ExchangeError, Sending)>> {
    let limit = Limit::begun(clock, timeouts.upstream_ms, timeouts.left_ms);
    let mut waited_for_client = false;
    let head = std::future::poll_fn(|context| {
        let mut waits_for_client = false;
        if !sending.is_over() {
            let before = sending.progress();
            match sending.poll(context, &mut connection.stream) {
                Poll::Ready(Ok(())) => {}
                // An answer may be there nevertheless: that the request is too long, say.
                Poll::Ready(Err(sending::SendError::Upstream)) => sending.give_up(),
                Poll::Ready(Err(sending::SendError::Client(error))) => {
                    return Poll::Ready(Err(ExchangeError::Client(error)));
                }
                Poll::Ready(Err(sending::SendError::TooLong)) => return Poll::Ready(Err(ExchangeError::TooLong)),
                Poll::Ready(Err(sending::SendError::Slow)) => return Poll::Ready(Err(ExchangeError::Slow)),
                Poll::Pending => waits_for_client = sending.waits_for_client(),
            }
            if sending.progress() != before || waits_for_client != waited_for_client {
                limit.progress();
            }
        } else if waited_for_client {
            limit.progress();
        }
        waited_for_client = waits_for_client;
        loop {
            match head::parse(&mut connection.buffer, method) {
                Ok(Some(head)) => return Poll::Ready(Ok(head)),
                Ok(None) => {}
                Err(why) => return Poll::Ready(Err(ExchangeError::Garbage(why))),
            }
            let none = connection.buffer.is_empty();
            match connection.poll_fill(context) {
                Poll::Ready(Ok(0)) if none => return Poll::Ready(Err(ExchangeError::NoAnswer(None))),
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(ExchangeError::Broken(None))),
                Poll::Ready(Ok(_)) => limit.progress(),
                Poll::Ready(Err(error)) if none => return Poll::Ready(Err(ExchangeError::NoAnswer(Some(error)))),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(ExchangeError::Broken(Some(error)))),
                Poll::Pending if waits_for_client && limit.expired_after(timeouts.client_ms, context) => {
                    return Poll::Ready(Err(ExchangeError::Slow));
                }
                Poll::Pending if waits_for_client => return Poll::Pending,
                Poll::Pending if limit.expired(context) => return Poll::Ready(Err(ExchangeError::Late)),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    match head.await {
        Ok(Head { mut response, decoder, keep_alive }) => {
            drop_connection_fields(response.headers_mut());
            limit.progress();
            let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            let body = AnswerBody::new(connection, sending, decoder, keep_alive, active, limit, upgraded);
            Ok(Answered { response, body })
        }
        Err(error) => Err(Box::new((error, sending))),
    }
}
