//! An upstream's answer: its head as it stands in a buffer, and its body as it arrives.

use super::decode::Decoder;
use super::sending::{SendError, Sending};
use super::{Connection, ExchangeError, HEAD_BYTES_MAX};
use crate::proxy::clock::Limit;
use crate::proxy::head::{field_of_connection, is_of_connection};
use crate::proxy::pool::Active;
use bytes::{Bytes, BytesMut};
use hyper::body::{Frame, SizeHint};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Response, StatusCode};
use std::mem::MaybeUninit;
use std::task::{Context, Poll};

/// Fields of an answer at most.
const FIELDS_MAX: usize = 128;

/// The head of an answer.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) response: Response<()>,
    pub(super) decoder: Decoder,
    /// The connection can be used for another request afterwards.
    pub(super) keep_alive: bool,
}

/// Takes the head of an answer out of the buffer, if it is all there. Interim answers (1xx) are dropped.
pub(super) fn parse(buffer: &mut BytesMut, method: &Method) -> Result<Option<Head>, &'static str> {
    loop {
        if buffer.is_empty() {
            return Ok(None);
        }
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut parsed = httparse::Response::new(&mut []);
        let length = match httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut parsed,
            buffer,
            &mut fields,
        ) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if buffer.len() > HEAD_BYTES_MAX => return Err("its head is too long"),
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err("its head has too many fields"),
            Err(_) => return Err("its head can't be read"),
        };
        let status = StatusCode::from_u16(parsed.code.unwrap_or(0)).map_err(|_| "its status is none")?;
        let http_11 = parsed.version == Some(1);
        // Where fields stand, so that they can be cut from the buffer without copying.
        let begin = buffer.as_ptr() as usize;
        let mut places = [(0_u32, 0_u32, 0_u32, 0_u32); FIELDS_MAX];
        let count = parsed.headers.len();
        for (place, field) in places.iter_mut().zip(parsed.headers.iter()) {
            let (name, value) = (field.name.as_ptr() as usize - begin, field.value.as_ptr() as usize - begin);
            // Heads are far shorter than 4 GB.
            *place = (name as u32, (name + field.name.len()) as u32, value as u32, (value + field.value.len()) as u32);
        }
        let bytes = buffer.split_to(length).freeze();
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            continue;
        }
        return head(bytes, &places[..count], status, http_11, method).map(Some);
    }
}

fn head(
    bytes: Bytes,
    places: &[(u32, u32, u32, u32)],
    status: StatusCode,
    http_11: bool,
    method: &Method,
) -> Result<Head, &'static str> {
    let mut headers = HeaderMap::with_capacity(places.len() + 2);
    let (mut length, mut chunked, mut named) = (None, false, Vec::new());
    let mut keep_alive = http_11;
    for &(name, name_end, value, value_end) in places {
        let name =
            HeaderName::from_bytes(&bytes[name as usize..name_end as usize]).map_err(|_| "a field's name is none")?;
        let value = HeaderValue::from_maybe_shared(bytes.slice(value as usize..value_end as usize))
            .map_err(|_| "a field's value is none")?;
        if name == header::CONTENT_LENGTH {
            let text = value.as_bytes();
            let stated: u64 = match std::str::from_utf8(text).ok().filter(|_| text.iter().all(u8::is_ascii_digit)) {
                Some(text) => text.parse().map_err(|_| "its length is none")?,
                None => return Err("its length is none"),
            };
            if length.is_some_and(|length| length != stated) {
                return Err("it states two lengths");
            }
            if length.replace(stated).is_some() {
                continue;
            }
        } else if name == header::TRANSFER_ENCODING {
            if chunked || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return Err("its transfer coding isn't known");
            }
            chunked = true;
            continue;
        } else if name == header::CONNECTION {
            for token in value.as_bytes().split(|&byte| byte == b',').map(|token| token.trim_ascii()) {
                keep_alive = match token {
                    _ if token.eq_ignore_ascii_case(b"close") => false,
                    _ if token.eq_ignore_ascii_case(b"keep-alive") && !http_11 => true,
                    _ => keep_alive,
                };
                named.extend(field_of_connection(token));
            }
            continue;
        } else if is_of_connection(&name) {
            continue;
        }
        headers.append(name, value);
    }
    if chunked && length.is_some() {
        return Err("it has both a length and chunks");
    }
    let bodiless = method == Method::HEAD || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    let decoder = match (chunked, length) {
        _ if bodiless || status == StatusCode::SWITCHING_PROTOCOLS => Decoder::Length(0),
        (true, _) => Decoder::chunked(),
        (false, Some(length)) => Decoder::Length(length),
        (false, None) => Decoder::Close,
    };
    for name in named {
        headers.remove(name);
    }
    if status != StatusCode::SWITCHING_PROTOCOLS {
        headers.remove(header::UPGRADE);
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    let keep_alive = keep_alive && !matches!(decoder, Decoder::Close) && status != StatusCode::SWITCHING_PROTOCOLS;
    Ok(Head { response, decoder, keep_alive })
}

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
            match self.sending.poll(context, &mut connection.stream) {
                Poll::Ready(Ok(())) | Poll::Pending => {}
                Poll::Ready(Err(SendError::Upstream | SendError::Client(_))) => self.sending.give_up(),
                Poll::Ready(Err(SendError::TooLong | SendError::Slow)) => {
                    return Poll::Ready(Some(Err(ExchangeError::TooLong)));
                }
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
