//! Compression of answers: whether it may be done, in which coding, and the coding itself.
//!
//! Only what a route lists by media type is compressed. What a page reveals together with what a client may put into it can be
//! guessed from its compressed size (BREACH), so secrets and foreign input don't belong into one compressed answer.

use bytes::Bytes;
use hyper::Method;
use hyper::StatusCode;
use hyper::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
    HeaderMap, HeaderValue, VARY,
};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Write};
use std::rc::Rc;

/// What is shorter grows, or gains less than a packet.
const BYTES_MIN: u64 = 1024;
/// Each holds up to about a megabyte. Beyond so many of one worker at once, answers are passed on as they are.
const AT_ONCE_MAX: u32 = 64;
/// Fast enough for answers that are made anew for each request.
const GZIP_LEVEL: u32 = 4;
const BROTLI_QUALITY: u32 = 4;
/// Window of 256 KiB: what a stream holds is bounded, and clients must hold as much.
const WINDOW_LOG: u32 = 18;
const ZSTD_LEVEL: i32 = 3;

/// A content coding that the edge can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// RFC 8878.
    Zstd,
    /// RFC 7932.
    Brotli,
    /// RFC 1952.
    Gzip,
}

impl Coding {
    /// As it is called in `Content-Encoding`.
    fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Gzip => "gzip",
        }
    }
}

/// What the client likes best of those (RFC 9110, section 12.5.3); among equals, what costs the edge least for its size.
pub(crate) fn accepted(request: &HeaderMap) -> Option<Coding> {
    let mut best: Option<(u16, Coding)> = None;
    let (mut named, mut rest) = ([None; 3], None);
    for value in request.get_all(ACCEPT_ENCODING) {
        for item in value.to_str().ok()?.split(',') {
            let (name, quality) = item.split_once(';').map_or((item, None), |(name, quality)| (name, Some(quality)));
            let quality = quality.map_or(Some(1000), quality_milli)?;
            match name.trim().to_ascii_lowercase().as_str() {
                "zstd" => named[0] = Some(quality),
                "br" => named[1] = Some(quality),
                "gzip" | "x-gzip" => named[2] = Some(quality),
                "*" => rest = Some(quality),
                _ => {}
            }
        }
    }
    for (quality, coding) in named.into_iter().zip([Coding::Zstd, Coding::Brotli, Coding::Gzip]) {
        let quality = quality.or(rest).unwrap_or(0);
        if quality > best.map_or(0, |(best, _)| best) {
            best = Some((quality, coding));
        }
    }
    best.map(|(_, coding)| coding)
}

/// `q=0.5` in thousandths. `None`: it is none, and who can't write that may not read codings either.
fn quality_milli(text: &str) -> Option<u16> {
    let digits = text.trim().strip_prefix("q=").or_else(|| text.trim().strip_prefix("Q="))?;
    let value: f32 = digits.parse().ok()?;
    (0.0..=1.0).contains(&value).then_some((value * 1000.0) as u16)
}

/// The media type is one of those listed; `text/*` stands for all of text, but for streams of events: they must not wait.
fn is_listed(types: &BTreeSet<String>, content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind == "text/event-stream" {
        return false;
    }
    types.contains(&kind)
        || kind.split_once('/').is_some_and(|(family, _)| {
            types.iter().any(|listed| listed.strip_suffix("/*").is_some_and(|listed| listed == family))
        })
}

/// An answer on its way: decides, and says in the answer's head what was decided.
pub(crate) fn decide(
    types: &BTreeSet<String>,
    request: (&Method, &HeaderMap),
    status: StatusCode,
    headers: &mut HeaderMap,
    length: Option<u64>,
) -> Option<Coding> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if types.is_empty() || !content_type.is_some_and(|content_type| is_listed(types, content_type)) {
        return None;
    }
    let bodiless = status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED);
    let whole = status != StatusCode::PARTIAL_CONTENT && !headers.contains_key(CONTENT_RANGE);
    let may_be_changed = !headers.get_all(CACHE_CONTROL).iter().any(|value| {
        value.to_str().is_ok_and(|value| value.split(',').any(|it| it.trim().eq_ignore_ascii_case("no-transform")))
    });
    if headers.contains_key(CONTENT_ENCODING) || !whole || !may_be_changed {
        return None;
    }
    vary(headers);
    let (method, asked) = request;
    if bodiless || *method == Method::HEAD || length.is_some_and(|length| length < BYTES_MIN) {
        return None;
    }
    let coding = accepted(asked)?;
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    headers.remove(CONTENT_LENGTH);
    headers.remove(ACCEPT_RANGES);
    // The bytes are others than those that a strong validator speaks of (RFC 9110, section 8.8.1).
    if let Some(tag) = headers.get(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/")) {
        match HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()) {
            Ok(weak) => headers.insert(ETAG, weak),
            Err(_) => headers.remove(ETAG),
        };
    }
    Some(coding)
}

/// Whoever keeps the answer has to know that others may get another one.
fn vary(headers: &mut HeaderMap) {
    let known = headers.get_all(VARY).iter().any(|value| {
        value.to_str().is_ok_and(|value| {
            value.split(',').map(str::trim).any(|it| it == "*" || it.eq_ignore_ascii_case("accept-encoding"))
        })
    });
    if !known {
        headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    }
}

/// How many encoders a worker has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Encoders(Rc<Cell<u32>>);

impl Encoders {
    /// Another one can be had.
    pub(crate) fn have_room(&self) -> bool {
        self.0.get() < AT_ONCE_MAX
    }

    /// A new one.
    ///
    /// # Errors
    ///
    /// The library can't make one, as there is no memory.
    pub(crate) fn begin(&self, coding: Coding) -> io::Result<Encoder> {
        let stream = match coding {
            Coding::Gzip => {
                Stream::Gzip(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL)))
            }
            Coding::Brotli => {
                Stream::Brotli(Box::new(brotli::CompressorWriter::new(Vec::new(), 4096, BROTLI_QUALITY, WINDOW_LOG)))
            }
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.window_log(WINDOW_LOG)?;
                Stream::Zstd(encoder)
            }
        };
        self.0.set(self.0.get() + 1);
        Ok(Encoder { stream: Some(stream), count: Rc::clone(&self.0) })
    }
}

/// Compresses one body.
pub(crate) struct Encoder {
    /// `None` when it has ended.
    stream: Option<Stream>,
    count: Rc<Cell<u32>>,
}

enum Stream {
    Gzip(flate2::write::GzEncoder<Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Encoder {
    /// What comes out of this; perhaps nothing yet.
    ///
    /// # Errors
    ///
    /// The library says so.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<Bytes> {
        match &mut self.stream {
            Some(Stream::Gzip(stream)) => stream.write_all(bytes)?,
            Some(Stream::Brotli(stream)) => stream.write_all(bytes)?,
            Some(Stream::Zstd(stream)) => stream.write_all(bytes)?,
            None => {}
        }
        Ok(self.take())
    }

    /// All that went in comes out: nothing waits for what the upstream hasn't sent yet.
    ///
    /// # Errors
    ///
    /// The library says so.
    pub(crate) fn flush(&mut self) -> io::Result<Bytes> {
        match &mut self.stream {
            Some(Stream::Gzip(stream)) => stream.flush()?,
            Some(Stream::Brotli(stream)) => stream.flush()?,
            Some(Stream::Zstd(stream)) => stream.flush()?,
            None => {}
        }
        Ok(self.take())
    }

    /// The rest.
    ///
    /// # Errors
    ///
    /// The library says so.
    pub(crate) fn finish(&mut self) -> io::Result<Bytes> {
        Ok(match self.stream.take() {
            Some(Stream::Gzip(stream)) => stream.finish()?.into(),
            Some(Stream::Brotli(stream)) => stream.into_inner().into(),
            Some(Stream::Zstd(stream)) => stream.finish()?.into(),
            None => Bytes::new(),
        })
    }

    fn take(&mut self) -> Bytes {
        let out = match &mut self.stream {
            Some(Stream::Gzip(stream)) => stream.get_mut(),
            Some(Stream::Brotli(stream)) => stream.get_mut(),
            Some(Stream::Zstd(stream)) => stream.get_mut(),
            None => return Bytes::new(),
        };
        std::mem::take(out).into()
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        self.count.set(self.count.get() - 1);
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn fields(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn the_client_chooses_by_quality() {
        for (accept, expected) in [
            ("gzip", Some(Coding::Gzip)),
            ("gzip, br", Some(Coding::Brotli)),
            ("gzip, deflate, br, zstd", Some(Coding::Zstd)),
            ("gzip;q=1.0, br;q=0.5", Some(Coding::Gzip)),
            ("gzip; q=0.2, br;q=0.3", Some(Coding::Brotli)),
            ("gzip;q=0", None),
            ("*", Some(Coding::Zstd)),
            ("*;q=0.5, zstd;q=0", Some(Coding::Brotli)),
            ("GZIP", Some(Coding::Gzip)),
            ("identity", None),
            ("deflate", None),
            ("gzip;q=much", None),
            ("gzip;q=2", None),
            ("", None),
        ] {
            assert_eq!(accepted(&fields(&[("accept-encoding", accept)])), expected, "{accept}");
        }
        assert_eq!(accepted(&HeaderMap::new()), None);
    }

    #[test]
    fn only_what_may_be_and_gains_from_it_is_compressed() {
        let types = BTreeSet::from(["text/*".to_owned(), "application/json".to_owned()]);
        let asks = fields(&[("accept-encoding", "gzip")]);
        let html = ("content-type", "text/html; charset=utf-8");
        let decided = |status: u16, method: Method, answer: &[(&'static str, &'static str)], length| {
            let status = StatusCode::from_u16(status).expect("a status");
            let mut headers = fields(answer);
            (decide(&types, (&method, &asks), status, &mut headers, length), headers)
        };
        let (coding, headers) =
            decided(200, Method::GET, &[html, ("etag", "\"a\""), ("accept-ranges", "bytes")], Some(5000));
        assert_eq!(coding, Some(Coding::Gzip));
        assert_eq!(headers[CONTENT_ENCODING], "gzip");
        assert_eq!(headers[ETAG], "W/\"a\"");
        assert_eq!(headers[VARY], "accept-encoding");
        assert!(!headers.contains_key(ACCEPT_RANGES));
        assert_eq!(decided(404, Method::GET, &[("content-type", "application/json")], None).0, Some(Coding::Gzip));
        // Not compressed, but caches are told that it might have been.
        for (status, method, length) in
            [(200, Method::HEAD, Some(5000)), (304, Method::GET, None), (200, Method::GET, Some(100))]
        {
            let (coding, headers) = decided(status, method, &[html], length);
            assert!(coding.is_none() && headers.contains_key(VARY), "{status}");
        }
        // Nothing of it is touched.
        for answer in [
            &[("content-type", "image/png")][..],
            &[("content-type", "text/event-stream")],
            &[html, ("content-encoding", "br")],
            &[html, ("cache-control", "private, No-Transform")],
            &[html, ("content-range", "bytes 0-1/2")],
            &[],
        ] {
            let (coding, headers) = decided(200, Method::GET, answer, Some(5000));
            assert!(coding.is_none() && headers == fields(answer), "{answer:?}");
        }
        let (_, headers) = decided(200, Method::GET, &[html, ("vary", "Cookie, Accept-Encoding")], Some(5000));
        assert_eq!(headers.get_all(VARY).iter().count(), 1);
    }

    #[test]
    fn every_coding_comes_back_as_it_was_and_flushes_in_between() {
        let encoders = Encoders::default();
        let parts: Vec<Vec<u8>> =
            (0..50_u32).map(|n| format!("part {n} of a text that repeats ").repeat(40).into_bytes()).collect();
        let whole = parts.concat();
        for coding in [Coding::Zstd, Coding::Brotli, Coding::Gzip] {
            let mut encoder = encoders.begin(coding).expect("memory");
            let mut out = Vec::new();
            for part in &parts {
                out.extend(encoder.write(part).expect("memory is never full"));
            }
            out.extend(encoder.flush().expect("memory is never full"));
            let decoded = decode(coding, &out);
            assert_eq!(decoded.len(), whole.len(), "{coding:?}: a flush keeps nothing back");
            out.extend(encoder.finish().expect("memory is never full"));
            assert!(decode(coding, &out) == whole && out.len() < whole.len() / 4, "{coding:?}");
        }
        assert!(encoders.have_room() && encoders.0.get() == 0);
        let held: Vec<_> = (0..AT_ONCE_MAX).map(|_| encoders.begin(Coding::Gzip).expect("memory")).collect();
        assert!(!encoders.have_room());
        drop(held);
        assert!(encoders.have_room());
    }

    /// As much as can be decoded of what may have no end yet.
    fn decode(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        let mut decoder: Box<dyn Read> = match coding {
            Coding::Zstd => Box::new(zstd::stream::read::Decoder::new(bytes).expect("memory")),
            Coding::Brotli => Box::new(brotli::Decompressor::new(bytes, 4096)),
            Coding::Gzip => Box::new(flate2::read::GzDecoder::new(bytes)),
        };
        let (mut out, mut part) = (Vec::new(), [0; 4096]);
        while let Ok(read @ 1..) = decoder.read(&mut part) {
            out.extend_from_slice(&part[..read]);
        }
        out
    }
}
