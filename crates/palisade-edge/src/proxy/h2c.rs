//! HTTP/2 without TLS with an upstream, which is what gRPC needs: streams of one connection are shared by all clients of a worker.

use super::clock::{Clock, Limit};
use super::http1::{Bounds, ExchangeError, Timeouts};
use super::pool::{Active, Stream};
use super::upload::Upload;
use crate::server::LocalExecutor;
use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::cell::{Cell, RefCell};
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
#[derive(Debug)]
struct Shared {
    /// `None` once nobody is to send it any more.
    body: RefCell<Option<Upload>>,
    /// Some of it was taken, so the request can't be sent again.
    touched: Cell<bool>,
    answered: Cell<bool>,
    /// More of it was wanted than the client had sent.
    waits_for_client: Cell<bool>,
    fault: Cell<Option<Fault>>,
    /// How long the upstream is silent. One that takes some of the body isn't.
    upstream: Limit,
}

impl Shared {
    fn new(body: Upload, upstream: Limit) -> Self {
        Self {
            body: RefCell::new(Some(body)),
            touched: Cell::default(),
            answered: Cell::default(),
            waits_for_client: Cell::default(),
            fault: Cell::default(),
            upstream,
        }
    }

    /// The body, if none of it was taken.
    fn untouched(&self) -> Option<Upload> {
        if self.touched.get() { None } else { self.body.take() }
    }
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
    #[error("nobody waits for an answer any more")]
    GivenUp,
}

/// A client's body on its way to an upstream.
#[derive(Debug)]
pub(super) struct RequestBody {
    bounds: Bounds,
    bytes: u64,
    shared: Rc<Shared>,
    limit: Limit,
}

impl RequestBody {
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
        let polled = match &mut *this.shared.body.borrow_mut() {
            Some(body) => Pin::new(body).poll_frame(context),
            // An end would make the upstream take it for whole.
            None => return this.fault(Fault::GivenUp),
        };
        this.shared.waits_for_client.set(polled.is_pending());
        match polled {
            // A stream that is answered may be quiet for as long as the upstream likes.
            Poll::Pending if !this.shared.answered.get() && this.limit.expired(context) => this.fault(Fault::Slow),
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                this.shared.upstream.renew();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(_))) => this.fault(Fault::Client),
            Poll::Ready(Some(Ok(frame))) => {
                this.shared.touched.set(true);
                this.shared.upstream.renew();
                this.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                if this.bytes > this.bounds.body_bytes_max {
                    return this.fault(Fault::TooLong);
                }
                this.limit.progress();
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.shared.body.borrow().as_ref().is_some_and(Upload::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.shared.body.borrow().as_ref().map(Upload::size_hint).unwrap_or_default()
    }
}

/// What became of a request that has no answer.
pub(super) struct Failed {
    pub(super) error: ExchangeError,
    /// The upstream may have seen it.
    pub(super) sent: bool,
    /// Its body, if none of it was taken.
    pub(super) untouched: Option<Upload>,
}

/// Sends a request and waits for the head of its answer.
pub(super) async fn exchange(
    mut stream: Stream,
    head: Request<()>,
    body: Upload,
    bounds: Bounds,
    active: Active,
    clock: &Rc<Clock>,
    timeouts: Timeouts,
) -> Result<Response<AnswerBody>, Failed> {
    let shared = Rc::new(Shared::new(body, Limit::begun(clock, timeouts.upstream_ms, timeouts.left_ms)));
    let limit = Limit::new(clock, timeouts.client_ms);
    let body = RequestBody { bounds, bytes: 0, shared: Rc::clone(&shared), limit };
    let mut answer = pin!(stream.sender().try_send_request(head.map(|()| body)));
    let answered = std::future::poll_fn(|context| {
        if let Poll::Ready(answered) = answer.as_mut().poll(context) {
            return Poll::Ready(Some(answered));
        }
        if shared.waits_for_client.get() {
            // The upstream may wait, too.
            shared.upstream.renew();
        }
        match shared.upstream.expired(context) {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    });
    match answered.await {
        Some(Ok(response)) => {
            shared.answered.set(true);
            shared.upstream.progress();
            Ok(response.map(|body| AnswerBody { body, request: shared, _stream: stream, _active: active }))
        }
        Some(Err(mut failed)) => {
            let sent = failed.take_message().is_none();
            let error = match shared.fault.get() {
                Some(Fault::TooLong) => ExchangeError::TooLong,
                Some(Fault::Slow) => ExchangeError::Slow,
                Some(Fault::Client) => ExchangeError::ClientEnded,
                Some(Fault::GivenUp) | None => ExchangeError::Http2(failed.into_error()),
            };
            Err(Failed { error, sent, untouched: shared.untouched() })
        }
        None => {
            // The library keeps a request for as long as the upstream takes no more of them; its client isn't to wait for that.
            drop(shared.body.take());
            Err(Failed { error: ExchangeError::Late, sent: true, untouched: None })
        }
    }
}

/// The body of an answer, trailers included.
#[derive(Debug)]
pub(crate) struct AnswerBody {
    body: Incoming,
    request: Rc<Shared>,
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
        if polled.is_pending() && self.request.upstream.expired(context) {
            return Poll::Ready(Some(Err(ExchangeError::Late)));
        }
        let frame = ready!(polled);
        self.request.upstream.progress();
        Poll::Ready(frame.map(|frame| frame.map_err(ExchangeError::Http2)))
    }
}
