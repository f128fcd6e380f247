//! The body of an answer to a client.

use super::owed::{Owed, Part};
use super::{h2c, http1};
use crate::access_log::Entry;
use crate::compress::Encoder;
use crate::limit::Slot;
use crate::server::Pulse;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Why a body ends before its end. The client sees a connection that breaks off.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Where it comes from, and what ends with it.
#[derive(Debug, Default)]
pub(crate) struct Body {
    source: Source,
    request: Option<Answering>,
    /// For HTTP/2, where a stream may stand still while its connection doesn't.
    owed: Option<Rc<Owed>>,
    /// Why it ends. It is said only when what came before has had a chance to be sent.
    fault: Option<BodyError>,
    /// The client's place among requests at once.
    slot: Option<Slot>,
    log: Option<Box<Entry>>,
    encoding: Option<Box<Encoding>>,
}

#[derive(Debug)]
enum Source {
    Full(Bytes),
    Http1(Box<http1::AnswerBody>),
    H2c(Box<h2c::AnswerBody>),
}

impl Default for Source {
    fn default() -> Self {
        Self::Full(Bytes::new())
    }
}

/// What is compressed on its way.
#[derive(Debug)]
struct Encoding {
    encoder: Encoder,
    /// Something went in that may not have come out yet.
    holds: bool,
    /// What follows the body, when all of that came out.
    trailers: Option<Frame<Bytes>>,
    ended: bool,
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Answering(Arc<Pulse>);

impl Answering {
    pub(super) fn begin(pulse: &Arc<Pulse>) -> Self {
        pulse.begin();
        Self(Arc::clone(pulse))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Body {
    pub(crate) fn full(bytes: Bytes) -> Self {
        Self { source: Source::Full(bytes), ..Self::default() }
    }

    pub(super) fn http1(body: http1::AnswerBody) -> Self {
        match body.is_end() {
            true => Self::default(),
            false => Self { source: Source::Http1(Box::new(body)), ..Self::default() },
        }
    }

    pub(super) fn h2c(body: h2c::AnswerBody) -> Self {
        Self { source: Source::H2c(Box::new(body)), ..Self::default() }
    }

    /// This place is taken as long as the answer lasts.
    pub(super) fn hold(&mut self, slot: Option<Slot>) {
        self.slot = slot;
    }

    /// It is logged when it has ended.
    pub(super) fn log(&mut self, entry: Box<Entry>) {
        self.log = Some(entry);
    }

    /// The request ends with this.
    pub(super) fn of(&mut self, request: Answering, owed: Option<Rc<Owed>>) {
        self.request = Some(request);
        self.owed = owed;
    }

    /// From now on it is compressed. Without an encoder it breaks off: its head says already that it is.
    pub(super) fn encode(&mut self, encoder: std::io::Result<Encoder>) {
        match encoder {
            Ok(encoder) => {
                self.encoding = Some(Box::new(Encoding { encoder, holds: false, trailers: None, ended: false }));
            }
            Err(error) => self.fault = Some(error.into()),
        }
    }

    /// What the upstream sent, compressed if that was decided.
    fn poll_part(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(encoding) = &mut self.encoding else { return self.source.poll(context) };
        loop {
            if encoding.ended {
                return Poll::Ready(encoding.trailers.take().map(Ok));
            }
            let out = match self.source.poll(context) {
                // What is there isn't kept back until the upstream has more.
                Poll::Pending if !std::mem::take(&mut encoding.holds) => return Poll::Pending,
                Poll::Pending => encoding.encoder.flush(),
                Poll::Ready(Some(Err(fault))) => return Poll::Ready(Some(Err(fault))),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) => {
                        encoding.holds = true;
                        encoding.encoder.write(&bytes)
                    }
                    Err(trailers) => {
                        encoding.ended = true;
                        encoding.trailers = Some(trailers);
                        encoding.encoder.finish()
                    }
                },
                Poll::Ready(None) => {
                    encoding.ended = true;
                    encoding.encoder.finish()
                }
            };
            match out {
                Ok(out) if out.is_empty() => {}
                Ok(out) => return Poll::Ready(Some(Ok(Frame::data(out)))),
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }
}

impl Source {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(match self {
            Self::Full(bytes) if bytes.is_empty() => None,
            Self::Full(bytes) => Some(Ok(Frame::data(std::mem::take(bytes)))),
            Self::Http1(body) => ready!(body.poll_frame(context)).map(|frame| frame.map_err(Into::into)),
            Self::H2c(body) => ready!(body.poll_frame(context)).map(|frame| frame.map_err(Into::into)),
        })
    }
}

impl hyper::body::Body for Body {
    type Data = Part;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Part>, BodyError>>> {
        let this = self.get_mut();
        if let Some(fault) = this.fault.take() {
            return Poll::Ready(Some(Err(fault)));
        }
        let frame = ready!(this.poll_part(context));
        if let Some(Err(fault)) = frame {
            this.fault = Some(fault);
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let (Some(entry), Some(Ok(frame))) = (&mut this.log, &frame) {
            entry.sent(frame.data_ref().map_or(0, Bytes::len));
        }
        let owed = this.owed.as_ref();
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|bytes| Part::new(bytes, owed)))))
    }

    fn is_end_stream(&self) -> bool {
        if let Some(encoding) = &self.encoding {
            return encoding.ended && encoding.trailers.is_none();
        }
        match &self.source {
            Source::Full(bytes) => bytes.is_empty(),
            Source::Http1(body) => body.is_end(),
            Source::H2c(body) => body.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        if self.encoding.is_some() {
            return SizeHint::default();
        }
        match &self.source {
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Http1(body) => body.size_hint(),
            Source::H2c(body) => body.size_hint(),
        }
    }
}
