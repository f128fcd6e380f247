//! The body of a client's request.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Version;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};

/// A body as it arrives. Over HTTP/2 many a client doesn't see an answer before its request was taken: what is left of a body that
/// nobody wants is taken nevertheless, for a while.
#[derive(Debug)]
pub(super) struct Upload {
    /// `None` only while it is dropped.
    body: Option<Incoming>,
    drains: bool,
}

impl Upload {
    pub(super) fn new(body: Incoming, version: Version) -> Self {
        Self { body: Some(body), drains: version == Version::HTTP_2 }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.drains
            && let Some(body) = self.body.take()
        {
            drain(body);
        }
    }
}

/// Takes what a client still sends, for a while.
fn drain(mut body: Incoming) {
    const BYTES_MAX: usize = 8 << 20;
    const TIME: std::time::Duration = std::time::Duration::from_secs(2);
    if body.is_end_stream() || tokio::runtime::Handle::try_current().is_err() {
        return;
    }
    tokio::task::spawn_local(tokio::time::timeout(TIME, async move {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > BYTES_MAX {
                break;
            }
        }
    }));
}
