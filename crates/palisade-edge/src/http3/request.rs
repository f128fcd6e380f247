//! One request of HTTP/3, asked over HTTP/2.

use super::{Both, Receiving, Sending};
use crate::access_log::Unread;
use crate::address::Address;
use crate::server::{Scheme, Worker};
use bytes::{Buf, Bytes};
use h3::error::{Code, StreamError};
use h3::server::{RequestResolver, RequestStream};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http2::SendRequest;
use hyper::header::CONTENT_LENGTH;
use hyper::{HeaderMap, Method, Request, Response, Version};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::timeout;

/// Whose requests they are.
pub(super) struct Asking {
    pub(super) worker: Rc<Worker>,
    pub(super) peer: Address,
}

impl Asking {
    /// A request that never became whole is logged and counted, as those of the other versions are. The library has answered a head
    /// that is too long, and reset what it couldn't read.
    fn note(&self, why: Option<&StreamError>, line: &str) {
        let status = match why {
            None => 408,
            Some(StreamError::HeaderTooBig { .. }) => 431,
            Some(StreamError::StreamError { .. }) => 400,
            // The client has gone.
            Some(_) => 499,
        };
        if status == 431 {
            self.worker.proxy.count(status);
        }
        if let Some(log) = &self.worker.shared.log {
            let scheme = Scheme::Https.as_str();
            log.unread(&Unread { client: &self.peer, scheme, status, line: line.as_bytes() });
        }
    }
}

/// Answers one request, whatever happens.
pub(super) async fn answer(
    resolver: RequestResolver<h3_quinn::Connection, Bytes>,
    mut inner: SendRequest<Arriving>,
    asking: Rc<Asking>,
) {
    let limits = asking.worker.limits();
    let header_timeout = Duration::from_millis(limits.header_timeout_ms);
    let (request, stream) = match timeout(header_timeout, resolver.resolve_request()).await {
        Ok(Ok(resolved)) => resolved,
        Ok(Err(error)) => return asking.note(Some(&error), ""),
        Err(_) => return asking.note(None, ""),
    };
    let stream: RequestStream<Both, Bytes> = stream;
    let (mut sending, receiving) = stream.split();
    let (parts, ()) = request.into_parts();
    let mut arriving = Arriving::new(receiving, &parts.headers);
    if may_lack_a_body(&parts.method) && arriving.left.is_none() {
        // Whether there is a body shows only when its first part comes, or the end. Upstreams are to be told rightly.
        let error = match timeout(header_timeout, arriving.first()).await {
            Ok(Ok(())) => None,
            Ok(Err(ArrivingError::Stream(error))) => Some(Some(error)),
            Ok(Err(ArrivingError::Length)) | Err(_) => Some(None),
        };
        if let Some(error) = error {
            asking.note(error.as_ref(), &format!("{} {} HTTP/3.0", parts.method, parts.uri.path()));
            return sending.stop_stream(Code::H3_REQUEST_INCOMPLETE);
        }
    }
    let mut translated = Request::from_parts(parts, arriving);
    *translated.version_mut() = Version::HTTP_2;
    if inner.ready().await.is_err() {
        // Not one byte of it was looked at: the client may ask elsewhere.
        return sending.stop_stream(Code::H3_REQUEST_REJECTED);
    }
    match inner.send_request(translated).await {
        Ok(response) => {
            let late = Duration::from_millis(limits.body_timeout_ms);
            if give(response, &mut sending, late).await.is_none() {
                sending.stop_stream(Code::H3_INTERNAL_ERROR);
            }
        }
        Err(error) if error.is_user() => sending.stop_stream(Code::H3_MESSAGE_ERROR),
        Err(_) => sending.stop_stream(Code::H3_REQUEST_CANCELLED),
    }
}

fn may_lack_a_body(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::DELETE, Method::TRACE].contains(method)
}

/// Passes the answer on. `None`: it broke off, on either side.
async fn give(response: Response<Incoming>, sending: &mut RequestStream<Sending, Bytes>, late: Duration) -> Option<()> {
    let (mut parts, mut body) = response.into_parts();
    parts.version = Version::HTTP_3;
    timeout(late, sending.send_response(Response::from_parts(parts, ()))).await.ok()?.ok()?;
    while let Some(frame) = body.frame().await {
        match frame.ok()?.into_data() {
            Ok(data) => timeout(late, sending.send_data(data)).await.ok()?.ok()?,
            Err(frame) => {
                let trailers = frame.into_trailers().ok()?;
                timeout(late, sending.send_trailers(trailers)).await.ok()?.ok()?;
            }
        }
    }
    timeout(late, sending.finish()).await.ok()?.ok()
}

/// A request's body as it arrives.
pub(super) struct Arriving {
    stream: RequestStream<Receiving, Bytes>,
    /// What was looked at ahead.
    first: Option<Bytes>,
    state: State,
    /// Bytes that are still to come, if the client has said how many.
    left: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Data,
    Trailers,
    End,
}

/// Why a body doesn't arrive.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArrivingError {
    #[error("the client ended the request before its end")]
    Stream(#[source] StreamError),
    #[error("the body isn't as long as the client has said")]
    Length,
}

impl Arriving {
    fn new(stream: RequestStream<Receiving, Bytes>, headers: &HeaderMap) -> Self {
        let stated = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { stream, first: None, state: State::Data, left: stated }
    }

    /// Waits for the first part of the body, or for the end.
    async fn first(&mut self) -> Result<(), ArrivingError> {
        self.first = std::future::poll_fn(|context| self.poll_data(context)).await?;
        if self.first.is_none() {
            self.state = State::Trailers;
            let trailers = std::future::poll_fn(|context| self.stream.poll_recv_trailers(context)).await;
            // Trailers of nothing say nothing.
            trailers.map_err(ArrivingError::Stream)?;
            self.state = State::End;
        }
        Ok(())
    }

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, ArrivingError>> {
        let data = ready!(self.stream.poll_recv_data(context)).map_err(ArrivingError::Stream)?;
        let data = data.map(|mut data| data.copy_to_bytes(data.remaining()));
        if let Some(left) = &mut self.left {
            let arrived = data.as_ref().map_or(0, |data| data.len() as u64);
            *left = left.checked_sub(arrived).ok_or(ArrivingError::Length)?;
            if data.is_none() && *left > 0 {
                return Poll::Ready(Err(ArrivingError::Length));
            }
        }
        Poll::Ready(Ok(data))
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = ArrivingError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ArrivingError>>> {
        if let Some(data) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if self.state == State::Data {
            match ready!(self.poll_data(context)) {
                Ok(Some(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(None) => self.state = State::Trailers,
                Err(error) => {
                    self.state = State::End;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        if self.state == State::Trailers {
            let trailers = ready!(self.stream.poll_recv_trailers(context));
            self.state = State::End;
            match trailers {
                Ok(Some(trailers)) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(ArrivingError::Stream(error)))),
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && (self.state == State::End || (self.state == State::Data && self.left == Some(0)))
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
