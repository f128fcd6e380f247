//! Where an answer's body ends, and what of a buffer belongs to it.

use bytes::{Buf, Bytes, BytesMut};
use hyper::body::Frame;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};

/// A line of a chunk's size, or of trailers, may be so long.
const LINE_BYTES_MAX: usize = 8 << 10;
const TRAILERS_MAX: usize = 32;

/// What of the body is to come.
#[derive(Debug)]
pub(super) enum Decoder {
    /// So many bytes.
    Length(u64),
    Chunks(Chunk),
    /// All until the connection ends.
    Close,
}

/// Where in the chunks the buffer begins.
#[derive(Debug)]
pub(super) enum Chunk {
    Size,
    Data(u64),
    /// The line end behind a chunk.
    DataEnd,
    Trailers(HeaderMap),
    End,
}

impl Decoder {
    pub(super) fn chunked() -> Self {
        Self::Chunks(Chunk::Size)
    }

    pub(super) fn is_end(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunks(Chunk::End))
    }

    /// The next part that is in the buffer.
    pub(super) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame<Bytes>>, &'static str> {
        match self {
            Self::Length(left) => {
                let data = take(buffer, *left);
                *left -= data.as_ref().map_or(0, |data| data.len() as u64);
                Ok(data.map(Frame::data))
            }
            Self::Close => Ok(take(buffer, u64::MAX).map(Frame::data)),
            Self::Chunks(chunk) => chunk.decode(buffer),
        }
    }
}

fn take(buffer: &mut BytesMut, left: u64) -> Option<Bytes> {
    let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
    (length > 0).then(|| buffer.split_to(length).freeze())
}

impl Chunk {
    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame<Bytes>>, &'static str> {
        loop {
            match self {
                Self::Size => match line(buffer)? {
                    Some(line) => {
                        *self = match size(&line)? {
                            0 => Self::Trailers(HeaderMap::new()),
                            size => Self::Data(size),
                        };
                    }
                    None => return Ok(None),
                },
                Self::Data(left) => {
                    let Some(data) = take(buffer, *left) else { return Ok(None) };
                    *left -= data.len() as u64;
                    if *left == 0 {
                        *self = Self::DataEnd;
                        // With the last chunk's end there, too, the connection is free when the client has got this.
                        if buffer.starts_with(b"\r\n0\r\n\r\n") {
                            buffer.advance(7);
                            *self = Self::End;
                        }
                    }
                    return Ok(Some(Frame::data(data)));
                }
                Self::DataEnd => match line(buffer)? {
                    Some(line) if line.is_empty() => *self = Self::Size,
                    Some(_) => return Err("a chunk is longer than it says"),
                    None => return Ok(None),
                },
                Self::Trailers(trailers) => match line(buffer)? {
                    Some(line) if line.is_empty() => {
                        let trailers = std::mem::take(trailers);
                        *self = Self::End;
                        return Ok((!trailers.is_empty()).then(|| Frame::trailers(trailers)));
                    }
                    Some(line) => {
                        let colon = line.iter().position(|&byte| byte == b':').ok_or("a trailer has no colon")?;
                        let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| "a trailer's name is none")?;
                        let value = line[colon + 1..].trim_ascii();
                        let value = HeaderValue::from_bytes(value).map_err(|_| "a trailer's value is none")?;
                        if trailers.len() >= TRAILERS_MAX {
                            return Err("it has too many trailers");
                        }
                        trailers.append(name, value);
                    }
                    None => return Ok(None),
                },
                Self::End => return Ok(None),
            }
        }
    }
}

/// Takes a line, without its end, which is CR LF and nothing else.
fn line(buffer: &mut BytesMut) -> Result<Option<BytesMut>, &'static str> {
    match memchr::memchr(b'\n', buffer) {
        // Whether it has come at once or not.
        Some(end) if end > LINE_BYTES_MAX => Err("a line of its chunks is too long"),
        Some(end) if end > 0 && buffer[end - 1] == b'\r' => {
            let mut line = buffer.split_to(end + 1);
            line.truncate(end - 1);
            Ok(Some(line))
        }
        Some(_) => Err("a line of its chunks doesn't end with CR LF"),
        None if buffer.len() > LINE_BYTES_MAX => Err("a line of its chunks is too long"),
        None => Ok(None),
    }
}

/// A chunk's size; extensions mean nothing to anybody.
fn size(line: &[u8]) -> Result<u64, &'static str> {
    let digits = line.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii_end();
    if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err("a chunk's size is none");
    }
    let text = std::str::from_utf8(digits).map_err(|_| "a chunk's size is none")?;
    u64::from_str_radix(text, 16).map_err(|_| "a chunk's size is none")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a body's parts say, fed in pieces of that length.
    fn decoded(text: &[u8], piece: usize) -> Result<(Vec<u8>, bool), &'static str> {
        let mut decoder = Decoder::chunked();
        let (mut buffer, mut all) = (BytesMut::new(), Vec::new());
        for piece in text.chunks(piece) {
            buffer.extend_from_slice(piece);
            while let Some(frame) = decoder.decode(&mut buffer)? {
                all.extend_from_slice(&frame.into_data().unwrap_or_default());
            }
        }
        Ok((all, decoder.is_end() && buffer.is_empty()))
    }

    #[test]
    fn chunks_are_put_together_however_they_arrive() {
        let text = b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nx: y\r\n\r\n";
        for piece in 1..=text.len() {
            assert_eq!(decoded(text, piece), Ok((b"hello world".to_vec(), true)), "{piece}");
        }
        let long = |bytes| [b"1;", &vec![b'x'; bytes][..], b"\r\na\r\n0\r\n\r\n"].concat();
        for piece in [1, 100, 20_000] {
            assert_eq!(decoded(&long(8_000), piece), Ok((b"a".to_vec(), true)));
            assert!(decoded(&long(10_000), piece).is_err(), "{piece}");
        }
        assert_eq!(decoded(b"1\r\na\r\n0\r\n\r\n", 100), Ok((b"a".to_vec(), true)));
    }

    #[test]
    fn chunks_that_two_readers_could_read_differently_are_refused() {
        for text in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"-1\r\n",
            b"0x5\r\nhello",
            b"+5\r\n",
            b"\r\n",
            b"ffffffffffffffff\r\n",
            b"1\r\nab\r\n",
        ] {
            assert!(decoded(text, 100).is_err(), "{text:?}");
        }
    }
}
