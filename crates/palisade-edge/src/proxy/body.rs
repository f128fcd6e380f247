//! The body of an answer to a client.

use super::http1;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};

/// Why a body ends before its end. The client sees a connection that breaks off.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Where it comes from.
#[derive(Debug)]
pub(crate) enum Body {
    Full(Bytes),
    Http1(Box<http1::AnswerBody>),
}

impl Body {
    pub(crate) fn full(bytes: Bytes) -> Self {
        Self::Full(bytes)
    }

    pub(crate) fn empty() -> Self {
        Self::Full(Bytes::new())
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Http1(body) => body.poll_frame(context).map(|frame| frame.map(|frame| frame.map_err(Into::into))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_empty(),
            Self::Http1(body) => body.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Http1(body) => body.size_hint(),
        }
    }
}
