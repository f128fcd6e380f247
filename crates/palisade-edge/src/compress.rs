//! Compression of answers: what is worth it, in which coding, and the bytes themselves.

use bytes::Bytes;
use flate2::write::GzEncoder;
use hyper::body::Frame;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};
use std::collections::BTreeSet;
use std::io::{self, Write};

/// Smaller bodies fit into one packet anyway.
const BYTES_MIN: u64 = 512;
/// What answers are worth that are made while the client waits: about 100 MB/s and more.
const GZIP_LEVEL: u32 = 4;
const BROTLI_QUALITY: u32 = 4;
const BROTLI_WINDOW_BITS: u32 = 18;
const BROTLI_BUFFER_BYTES: usize = 4096;
/// Its window is 2 MiB, which every client has to have (RFC 9659).
const ZSTD_LEVEL: i32 = 3;

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 7932.
    Br,
    /// RFC 8878.
    Zstd,
}

impl Coding {
    /// The best first.
    const ALL: [Self; 3] = [Self::Zstd, Self::Br, Self::Gzip];

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Br => "br",
            Self::Zstd => "zstd",
        }
    }
}

/// Decides whether an answer is compressed, and changes its fields if so. `bytes` is its body's length, if known. `types` are the media
/// types that are compressed.
pub fn settle(
    types: &BTreeSet<String>,
    method: &Method,
    asked: &HeaderMap,
    status: StatusCode,
    bytes: Option<u64>,
    answer: &mut HeaderMap,
) -> Option<Coding> {
    let untouched = status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT | StatusCode::RESET_CONTENT)
        || answer.contains_key(header::CONTENT_ENCODING)
        || answer.contains_key(header::CONTENT_RANGE)
        || has_token(answer, header::CACHE_CONTROL, "no-transform")
        || !is_compressed(types, answer);
    if untouched {
        return None;
    }
    // Caches have to know, whichever form this client gets. An answer that is confirmed (304) was such a one.
    if !has_token(answer, header::VARY, "accept-encoding") && !has_token(answer, header::VARY, "*") {
        answer.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
    if status == StatusCode::NOT_MODIFIED || *method == Method::HEAD || bytes.is_some_and(|bytes| bytes < BYTES_MIN) {
        return None;
    }
    let coding = accepted(asked)?;
    answer.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    answer.remove(header::CONTENT_LENGTH);
    // Ranges of the compressed form can't be served.
    answer.remove(header::ACCEPT_RANGES);
    let strong = answer.get(header::ETAG).filter(|tag| tag.as_bytes().starts_with(b"\""));
    if let Some(weak) = strong.and_then(|tag| HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()).ok()) {
        answer.insert(header::ETAG, weak);
    }
    Some(coding)
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    let texts = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).any(|it| it.trim().eq_ignore_ascii_case(token))
}

/// Its type is among them. Events are sent one by one, for somebody who waits for each: they are left alone.
fn is_compressed(types: &BTreeSet<String>, answer: &HeaderMap) -> bool {
    let Some(written) = answer.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = written.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let group = essence.split('/').next().unwrap_or_default();
    essence != "text/event-stream" && (types.contains(&essence) || types.contains(&format!("{group}/*")))
}

/// The coding that the client likes best; of several, the best (RFC 9110, section 12.5.3).
fn accepted(asked: &HeaderMap) -> Option<Coding> {
    let texts = asked.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let mut weights = [None; Coding::ALL.len()];
    let (mut others, mut identity) = (None, None);
    for element in texts.flat_map(|text| text.split(',')) {
        let mut parts = element.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        // What is no number is no wish.
        let weight = weight.map_or(1.0, |text| text.parse::<f32>().unwrap_or(0.0));
        if name == "*" {
            others = Some(weight);
        } else if name.eq_ignore_ascii_case("identity") {
            identity = Some(weight);
        } else if let Some(at) = Coding::ALL.iter().position(|coding| name.eq_ignore_ascii_case(coding.name())) {
            weights[at] = Some(weight);
        }
    }
    let mut best: Option<(Coding, f32)> = None;
    for (coding, weight) in Coding::ALL.into_iter().zip(weights) {
        let weight = weight.or(others).unwrap_or(0.0);
        if weight > best.map_or(0.0, |(_, weight)| weight) {
            best = Some((coding, weight));
        }
    }
    best.filter(|(_, weight)| *weight >= identity.unwrap_or(0.0)).map(|(coding, _)| coding)
}

enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Br(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

/// A body that is being compressed. Each part is sent on at once.
pub struct Compressor {
    /// `None` when the body has ended.
    encoder: Option<Encoder>,
    trailers: Option<HeaderMap>,
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").field("ended", &self.encoder.is_none()).finish_non_exhaustive()
    }
}

impl Compressor {
    /// # Errors
    /// There is no memory for it.
    pub fn new(coding: Coding) -> io::Result<Self> {
        let encoder = match coding {
            Coding::Gzip => Encoder::Gzip(GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL))),
            Coding::Br => Encoder::Br(Box::new(brotli::CompressorWriter::new(
                Vec::new(),
                BROTLI_BUFFER_BYTES,
                BROTLI_QUALITY,
                BROTLI_WINDOW_BITS,
            ))),
            Coding::Zstd => Encoder::Zstd(zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?),
        };
        Ok(Self { encoder: Some(encoder), trailers: None })
    }

    /// What is left when the body has ended. `None`: it hasn't.
    pub fn last(&mut self) -> Option<Option<Frame<Bytes>>> {
        match self.encoder {
            Some(_) => None,
            None => Some(self.trailers.take().map(Frame::trailers)),
        }
    }

    /// What is sent instead of this frame, or of the body's end.
    pub fn compress<E: From<io::Error>>(
        &mut self,
        frame: Option<Result<Frame<Bytes>, E>>,
    ) -> Option<Result<Frame<Bytes>, E>> {
        match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => Some(self.part(&data).map(Frame::data).map_err(Into::into)),
                Err(frame) => {
                    self.trailers = frame.into_trailers().ok();
                    self.end()
                }
            },
            Some(Err(error)) => Some(Err(error)),
            None => self.end(),
        }
    }

    fn end<E: From<io::Error>>(&mut self) -> Option<Result<Frame<Bytes>, E>> {
        let encoder = self.encoder.take()?;
        Some(encoder.finish().map(|bytes| Frame::data(bytes.into())).map_err(Into::into))
    }

    fn part(&mut self, data: &[u8]) -> io::Result<Bytes> {
        let Some(encoder) = &mut self.encoder else { return Ok(Bytes::new()) };
        let out = match encoder {
            Encoder::Gzip(encoder) => written(encoder, data)?.get_mut(),
            Encoder::Br(encoder) => written(encoder.as_mut(), data)?.get_mut(),
            Encoder::Zstd(encoder) => written(encoder, data)?.get_mut(),
        };
        Ok(std::mem::take(out).into())
    }
}

fn written<'a, W: Write>(encoder: &'a mut W, data: &[u8]) -> io::Result<&'a mut W> {
    encoder.write_all(data)?;
    encoder.flush()?;
    Ok(encoder)
}

impl Encoder {
    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Br(encoder) => Ok(encoder.into_inner()),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |&(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value));
        fields.iter().map(pair).collect()
    }

    fn chosen(
        accept: &'static str,
        status: u16,
        bytes: Option<u64>,
        fields: &[(&'static str, &'static str)],
    ) -> (Option<Coding>, HeaderMap) {
        let types = ["text/*".to_owned(), "application/json".to_owned()].into();
        let mut answer = headers(fields);
        let asked = headers(&[("accept-encoding", accept)]);
        let status = StatusCode::from_u16(status).unwrap();
        (settle(&types, &Method::GET, &asked, status, bytes, &mut answer), answer)
    }

    #[test]
    fn clients_get_what_they_like_best() {
        for (accept, expected) in [
            ("gzip, deflate, br, zstd", Some(Coding::Zstd)),
            ("gzip, br", Some(Coding::Br)),
            ("gzip;q=1.0, br;q=0.5", Some(Coding::Gzip)),
            ("GZIP", Some(Coding::Gzip)),
            ("*", Some(Coding::Zstd)),
            ("*;q=0.1, zstd;q=0", Some(Coding::Br)),
            ("gzip;q=0", None),
            ("gzip;q=0.5, identity", None),
            ("gzip;q=x", None),
            ("identity", None),
            ("", None),
            ("deflate", None),
        ] {
            assert_eq!(
                chosen(accept, 200, None, &[("content-type", "text/html; charset=utf-8")]).0,
                expected,
                "{accept}"
            );
        }
    }

    #[test]
    fn only_what_is_worth_it_is_touched() {
        let text = ("content-type", "text/plain");
        let (coding, answer) =
            chosen("gzip", 200, Some(600), &[text, ("etag", "\"a\""), ("content-length", "600"), ("vary", "cookie")]);
        assert_eq!(coding, Some(Coding::Gzip));
        assert_eq!((answer[header::ETAG].as_bytes(), answer.get(header::CONTENT_LENGTH)), (&b"W/\"a\""[..], None));
        assert!(has_token(&answer, header::VARY, "accept-encoding") && has_token(&answer, header::VARY, "cookie"));
        for (status, bytes, fields) in [
            (200, Some(511), &[text][..]),
            (204, None, &[text]),
            (206, None, &[text]),
            (304, None, &[text]),
            (200, None, &[text, ("content-encoding", "br")]),
            (200, None, &[text, ("content-range", "bytes 0-1/2")]),
            (200, None, &[text, ("cache-control", "public, No-Transform")]),
            (200, None, &[("content-type", "text/event-stream")]),
            (200, None, &[("content-type", "image/png")]),
            (200, None, &[]),
        ] {
            assert_eq!(chosen("gzip", status, bytes, fields).0, None, "{status} {bytes:?} {fields:?}");
        }
    }

    #[test]
    fn what_arrives_is_what_was_sent_and_each_part_can_be_read_at_once() {
        for coding in Coding::ALL {
            let mut compressor = Compressor::new(coding).unwrap();
            let mut all = Vec::new();
            let mut sizes = Vec::new();
            for part in ["one ".repeat(5_000), "two".to_owned(), String::new()] {
                let frame: Result<Frame<Bytes>, io::Error> = Ok(Frame::data(part.into()));
                let data = compressor.compress(Some(frame)).unwrap().unwrap().into_data().unwrap();
                all.extend_from_slice(&data);
                sizes.push(data.len());
            }
            assert!(sizes[0] > 0 && sizes[0] < 2_000 && sizes[1] > 0, "{coding:?} {sizes:?}");
            assert!(compressor.last().is_none());
            let trailers: Result<Frame<Bytes>, io::Error> = Ok(Frame::trailers(headers(&[("x-a", "b")])));
            all.extend_from_slice(&compressor.compress(Some(trailers)).unwrap().unwrap().into_data().unwrap());
            assert!(compressor.last().unwrap().unwrap().is_trailers());
            assert!(compressor.last().unwrap().is_none());
            let mut text = String::new();
            match coding {
                Coding::Gzip => flate2::read::GzDecoder::new(&all[..]).read_to_string(&mut text).unwrap(),
                Coding::Br => brotli::Decompressor::new(&all[..], 4096).read_to_string(&mut text).unwrap(),
                Coding::Zstd => zstd::stream::read::Decoder::new(&all[..]).unwrap().read_to_string(&mut text).unwrap(),
            };
            assert_eq!(text, "one ".repeat(5_000) + "two", "{coding:?}");
        }
    }
}
