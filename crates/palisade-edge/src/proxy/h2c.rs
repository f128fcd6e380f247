//! HTTP/2 without TLS with an upstream, which is what gRPC needs: streams of one connection are shared by all clients of a worker.

use super::body::drain;
use super::clock::{Clock, Limit};
use super::http1::{Bounds, ExchangeError, Timeouts};
use super::pool::{Active, Stream};
use crate::server::LocalExecutor;
use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::cell::Cell;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::net::TcpStream;

/// What an upstream may send ahead on one stream, and on all.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const HEAD_BYTES_MAX: u32 = 64 << 10;

pub(super) type Sender = SendRequest<RequestBody>;

/// Begins to speak HTTP/2 on a connection.
pub(super) async fn handshake(stream: TcpStream) -> Result<Sender, hyper::Error> {
    let (sender, connection) = Builder::new(LocalExecutor)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await?;
    // How it ends is told to each of its requests.
    tokio::task::spawn_local(async move { drop(connection.await) });
    Ok(sender)
}

/// What both ends of a request know of its body.
#[derive(Debug, Default)]
struct Shared {
    /// Some of it was taken, so the request can't be sent again.
    touched: Cell<bool>,
    ended: Cell<bool>,
    answered: Cell<bool>,
    fault: Cell<Option<Fault>>,
}

/// Why a client's body isn't sent on.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the client ended within its request")]
    Client,
    #[error("the request is longer than allowed")]
    TooLong,
    #[error("the client sent its request too slowly")]
    Slow,
}

/// A client's body on its way to an upstream.
#[derive(Debug)]
pub(super) struct RequestBody {
    /// `None` only once it was taken.
    body: Option<Incoming>,
    bounds: Bounds,
    bytes: u64,
    shared: Rc<Shared>,
    limit: Limit,
}

impl RequestBody {
    fn new(body: Incoming, bounds: Bounds, clock: &Rc<Clock>, timeouts: Timeouts) -> Self {
        let shared = Rc::new(Shared::default());
        shared.ended.set(body.is_end_stream());
        Self { body: Some(body), bounds, bytes: 0, shared, limit: Limit::new(clock, timeouts.client_ms) }
    }

    fn fault(&self, fault: Fault) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        self.shared.fault.set(Some(fault));
        Poll::Ready(Some(Err(fault)))
    }
}

impl hyper::body::Body for RequestBody {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        match Pin::new(&mut *body).poll_frame(context) {
            // A stream that is answered may be quiet for as long as the upstream likes.
            Poll::Pending if !this.shared.answered.get() && this.limit.expired(context) => this.fault(Fault::Slow),
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                this.shared.ended.set(true);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(_))) => this.fault(Fault::Client),
            Poll::Ready(Some(Ok(frame))) => {
                this.shared.touched.set(true);
                this.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                if this.bytes > this.bounds.body_bytes_max {
                    return this.fault(Fault::TooLong);
                }
                this.shared.ended.set(body.is_end_stream());
                this.limit.progress();
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if self.bounds.drains
            && let Some(body) = self.body.take()
        {
            drain(body);
        }
    }
}

/// What became of a request that has no answer: why, and its body if nothing of the request was sent.
pub(super) struct Failed {
    pub(super) error: ExchangeError,
    pub(super) unsent: Option<Incoming>,
}

/// Sends a request and waits for the head of its answer.
pub(super) async fn exchange(
    mut stream: Stream,
    head: Request<()>,
    body: Incoming,
    bounds: Bounds,
    active: Active,
    clock: &Rc<Clock>,
    timeouts: Timeouts,
) -> Result<Response<AnswerBody>, Failed> {
    let body = RequestBody::new(body, bounds, clock, timeouts);
    let shared = Rc::clone(&body.shared);
    let limit = Limit::new(clock, timeouts.upstream_ms);
    let mut answer = pin!(stream.sender().try_send_request(head.map(|()| body)));
    let answered = std::future::poll_fn(|context| match answer.as_mut().poll(context) {
        Poll::Ready(answered) => Poll::Ready(Some(answered)),
        // While the client sends, the upstream may wait.
        Poll::Pending if !shared.ended.get() => Poll::Pending,
        Poll::Pending if limit.expired(context) => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    });
    match answered.await {
        Some(Ok(response)) => {
            shared.answered.set(true);
            limit.progress();
            Ok(response.map(|body| AnswerBody { body, limit, _stream: stream, _active: active }))
        }
        Some(Err(mut failed)) => {
            let unsent =
                failed.take_message().map(|request| request.into_body()).filter(|body| !body.shared.touched.get());
            let error = match shared.fault.get() {
                Some(Fault::TooLong) => ExchangeError::TooLong,
                Some(Fault::Slow) => ExchangeError::Slow,
                Some(Fault::Client) => ExchangeError::ClientEnded,
                None => ExchangeError::Http2(failed.into_error()),
            };
            Err(Failed { error, unsent: unsent.and_then(|mut body| body.body.take()) })
        }
        None => Err(Failed { error: ExchangeError::Late, unsent: None }),
    }
}

/// The body of an answer, trailers included.
#[derive(Debug)]
pub(crate) struct AnswerBody {
    body: Incoming,
    limit: Limit,
    _stream: Stream,
    _active: Active,
}

impl AnswerBody {
    pub(super) fn is_end(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_pending() && self.limit.expired(context) {
            return Poll::Ready(Some(Err(ExchangeError::Late)));
        }
        let frame = ready!(polled);
        self.limit.progress();
        Poll::Ready(frame.map(|frame| frame.map_err(ExchangeError::Http2)))
    }
}
