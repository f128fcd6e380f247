//! The head of an upstream's answer, as it stands in a buffer: how the body is framed, and whether the connection goes on.

use super::decode::Decoder;
use bytes::{Bytes, BytesMut};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Response, StatusCode};
use std::mem::MaybeUninit;

/// An answer's head may have so many bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
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
    let (mut length, mut chunked) = (None, false);
    let (mut closes, mut stays) = (false, http_11);
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
                closes |= token.eq_ignore_ascii_case(b"close");
                stays |= token.eq_ignore_ascii_case(b"keep-alive");
            }
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
    if status != StatusCode::SWITCHING_PROTOCOLS {
        headers.remove(header::UPGRADE);
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    // HTTP/1.0 has no chunks: whoever sends them nevertheless may not be sure where they end (RFC 9112, section 6.1).
    let ends = closes || !stays || chunked && !http_11 || matches!(decoder, Decoder::Close);
    let keep_alive = !ends && status != StatusCode::SWITCHING_PROTOCOLS;
    Ok(Head { response, decoder, keep_alive })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_goes_on_only_where_both_sides_know_that() {
        for (head, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0", true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", true),
            ("HTTP/1.1 200 OK", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close, keep-alive", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x\r\nConnection: Close", false),
            ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x", false),
            ("HTTP/1.1 304 Not Modified", true),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive", true),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: close, keep-alive", false),
            ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive", false),
        ] {
            let mut buffer = BytesMut::from(format!("{head}\r\n\r\n").as_bytes());
            let read = parse(&mut buffer, &Method::GET).expect(head).expect("it is whole");
            assert_eq!(read.keep_alive, expected, "{head}");
        }
    }
}
