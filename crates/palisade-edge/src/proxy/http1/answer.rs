//! The body of an upstream's answer as it arrives.

use super::decode::Decoder;
use super::sending::{SendError, Sending};
use super::{Connection, ExchangeError};
use crate::proxy::clock::Limit;
use crate::proxy::pool::Active;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::task::{Context, Poll};

/// The body of an answer. The connection goes back to the pool when all of it, and of the request, has passed.
#[derive(Debug)]
pub(crate) struct AnswerBody {
    /// `None` when it has gone back.
    connection: Option<Connection>,
    sending: Sending,
    decoder: Decoder,
    keep_alive: bool,
    active: Active,
    limit: Limit,
    /// The connection goes on in another protocol.
    upgraded: bool,
}

impl AnswerBody {
    pub(super) fn new(
        connection: Connection,
        sending: Sending,
        decoder: Decoder,
        keep_alive: bool,
        active: Active,
        limit: Limit,
        upgraded: bool,
    ) -> Self {
        let mut body = Self { connection: Some(connection), sending, decoder, keep_alive, active, limit, upgraded };
        body.put_back();
        body
    }

    /// For another protocol.
    pub(super) fn into_connection(self) -> Option<(Connection, Active)> {
        Some((self.connection?, self.active))
    }

    pub(super) fn take_scratch(&mut self) -> Vec<u8> {
        self.sending.take_scratch()
    }

    pub(in crate::proxy) fn is_end(&self) -> bool {
        self.decoder.is_end()
    }

    pub(in crate::proxy) fn size_hint(&self) -> SizeHint {
        match self.decoder {
            Decoder::Length(length) => SizeHint::with_exact(length),
            _ => SizeHint::default(),
        }
    }

    /// Gives the connection back if it is of use; a request that wasn't sent whole makes it useless.
    fn put_back(&mut self) {
        if self.decoder.is_end()
            && !self.upgraded
            && let Some(connection) = self.connection.take()
            && self.keep_alive
            && self.sending.is_whole()
            && connection.buffer.is_empty()
        {
            self.active.keep(connection);
        }
    }

    pub(in crate::proxy) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let Some(connection) = &mut self.connection else { return Poll::Ready(None) };
        if !self.sending.is_over() {
            let before = self.sending.progress();
            match self.sending.poll(context, &mut connection.stream) {
                Poll::Ready(Ok(())) | Poll::Pending => {}
                Poll::Ready(Err(SendError::Upstream | SendError::Client(_))) => self.sending.give_up(),
                Poll::Ready(Err(SendError::TooLong | SendError::Slow)) => {
                    return Poll::Ready(Some(Err(ExchangeError::TooLong)));
                }
            }
            // Whoever takes a request isn't silent.
            if self.sending.progress() != before {
                self.limit.progress();
            }
        }
        loop {
            match self.decoder.decode(&mut connection.buffer) {
                Ok(Some(frame)) => {
                    self.limit.progress();
                    self.put_back();
                    return Poll::Ready(Some(Ok(frame)));
                }
                Ok(None) if self.decoder.is_end() => {
                    self.put_back();
                    return Poll::Ready(None);
                }
                Ok(None) => {}
                Err(why) => return Poll::Ready(Some(Err(ExchangeError::Garbage(why)))),
            }
            match connection.poll_fill(context) {
                Poll::Ready(Ok(0)) if matches!(self.decoder, Decoder::Close) => {
                    self.decoder = Decoder::Length(0);
                    self.put_back();
                    return Poll::Ready(None);
                }
                Poll::Ready(Ok(0)) => return Poll::Ready(Some(Err(ExchangeError::Broken(None)))),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(ExchangeError::Broken(Some(error))))),
                Poll::Pending if self.limit.expired(context) => return Poll::Ready(Some(Err(ExchangeError::Late))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
