//! Follows where requests begin and end on a connection of HTTP/1, beside the library that reads them, and refuses whatever two
//! readers could read differently. What passes here has one meaning, for the edge and for everybody behind it (RFC 9112, section 11.2).
//!
//! It judges framing only: the library judges characters of names, values and targets.

use memchr::memchr;

/// A line longer than this is no line of a chunk's size.
const CHUNK_LINE_BYTES_MAX: usize = 256;

/// Why a connection can't go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    LineEnd,
    Folded,
    SpaceInName,
    Underscore,
    TwoLengths,
    Length,
    Coding,
    LengthAndCoding,
    ChunkSize,
    ChunkEnd,
    BeforeUpgrade,
    TooLong,
}

/// Where a connection's bytes stopped being sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) why: Refusal,
    /// So many of the bytes that were just fed are whole requests, whole heads and parts of bodies: they mean what they say. A head
    /// that was refused has none, so that nothing of it is served.
    pub(super) sound: usize,
    /// What is refused belongs to a head, which can be answered. Otherwise it is a body that breaks off.
    pub(super) in_head: bool,
}

/// What no reader takes for a part of a head, but for the end of what it waits for: it stands in the place of a head that was refused.
pub(super) const NO_HEAD: &[u8] = b"\0\r\n\r\n";

/// What the next byte belongs to.
#[derive(Debug)]
enum State {
    Head,
    Body(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    /// A request asked for another protocol: nothing may come before the answer.
    Upgrade,
}

/// One connection's requests.
#[derive(Debug)]
pub(super) struct Strict {
    state: State,
    /// A line whose end hasn't arrived.
    line: Vec<u8>,
    /// Of a head, or of trailers.
    head_bytes: usize,
    head_bytes_max: usize,
    /// Nothing of the head but empty lines has come.
    blank: bool,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
}

impl Strict {
    pub(super) fn new(head_bytes_max: usize) -> Self {
        Self {
            state: State::Head,
            line: Vec::new(),
            head_bytes: 0,
            head_bytes_max,
            blank: true,
            length: None,
            chunked: false,
            upgrade: false,
        }
    }

    /// No part of a request has come that isn't whole.
    pub(super) fn between_requests(&self) -> bool {
        match self.state {
            State::Head => self.blank && self.line.is_empty(),
            State::Upgrade => true,
            _ => false,
        }
    }

    /// The head of a request has begun and isn't whole.
    pub(super) fn within_head(&self) -> bool {
        matches!(self.state, State::Head) && !self.between_requests()
    }

    /// The request that asked for another protocol was answered, and got none.
    pub(super) fn not_upgraded(&mut self) {
        if matches!(self.state, State::Upgrade) {
            self.state = State::Head;
        }
    }

    /// These bytes came next.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let (mut rest, mut sound) = (bytes, 0);
        // Who asked in an earlier part has been heard; nothing can be said to it any more.
        let asked = matches!(self.state, State::Upgrade);
        while !rest.is_empty() {
            rest = self.take(rest).map_err(|why| {
                let in_head = matches!(self.state, State::Head | State::Upgrade) && !asked;
                Refused { why, sound, in_head }
            })?;
            if !self.within_head() && !matches!(self.state, State::Upgrade) {
                sound = bytes.len() - rest.len();
            }
        }
        Ok(())
    }

    /// Takes what belongs together: a line, a part of a line that isn't whole, or a part of a body. Returns what follows.
    fn take<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Refusal> {
        match &mut self.state {
            State::Body(left) | State::Chunk(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                if *left == 0 {
                    self.state = if matches!(self.state, State::Body(_)) { State::Head } else { State::ChunkEnd };
                }
                Ok(&bytes[taken..])
            }
            State::Upgrade => Err(Refusal::BeforeUpgrade),
            State::Head | State::ChunkSize | State::ChunkEnd | State::Trailers => {
                let Some(end) = memchr(b'\n', bytes) else {
                    self.line.extend_from_slice(bytes);
                    self.bounded(0)?;
                    return Ok(&[]);
                };
                let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
                if self.line.is_empty() {
                    self.bounded(line.len() + 1)?;
                    self.take_line(line)?;
                } else {
                    let mut whole = std::mem::take(&mut self.line);
                    whole.extend_from_slice(line);
                    self.bounded(whole.len() + 1)?;
                    self.take_line(&whole)?;
                    whole.clear();
                    self.line = whole;
                }
                Ok(rest)
            }
        }
    }

    fn bounded(&self, next: usize) -> Result<(), Refusal> {
        let most = match self.state {
            State::ChunkSize | State::ChunkEnd => CHUNK_LINE_BYTES_MAX,
            // The library counts a head too, and says which limit it was; here the line that isn't whole is bounded.
            _ => self.head_bytes_max * 2,
        };
        if self.line.len() + next > most || self.head_bytes > self.head_bytes_max * 2 {
            Err(Refusal::TooLong)
        } else {
            Ok(())
        }
    }

    /// A line without its LF.
    fn take_line(&mut self, line: &[u8]) -> Result<(), Refusal> {
        let line = line.strip_suffix(b"\r").ok_or(Refusal::LineEnd)?;
        if memchr(b'\r', line).is_some() {
            return Err(Refusal::LineEnd);
        }
        match self.state {
            State::Head => {
                self.head_bytes += line.len() + 2;
                match line.first() {
                    None if self.blank => {}
                    None => self.end_head()?,
                    Some(_) if self.blank => self.blank = false,
                    Some(_) => self.field(line)?,
                }
            }
            State::ChunkSize => {
                self.state = match chunk_size(line)? {
                    0 => State::Trailers,
                    size => State::Chunk(size),
                };
            }
            State::ChunkEnd if line.is_empty() => self.state = State::ChunkSize,
            State::ChunkEnd => return Err(Refusal::ChunkEnd),
            State::Trailers => {
                self.head_bytes += line.len() + 2;
                match line.first() {
                    None => {
                        self.state = State::Head;
                        self.head_bytes = 0;
                    }
                    Some(b' ' | b'\t') => return Err(Refusal::Folded),
                    Some(_) => {}
                }
            }
            // No lines are looked for there.
            State::Body(_) | State::Chunk(_) | State::Upgrade => {}
        }
        Ok(())
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Refusal> {
        if matches!(line[0], b' ' | b'\t') {
            return Err(Refusal::Folded);
        }
        let Some(colon) = memchr(b':', line) else {
            // The library refuses it.
            return Ok(());
        };
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if name.last().is_some_and(|byte| matches!(byte, b' ' | b'\t')) {
            return Err(Refusal::SpaceInName);
        }
        match name.len() {
            14 if is(name, b"content-length") => {
                plain(name)?;
                let value = value.trim_ascii();
                if self.length.is_some() {
                    return Err(Refusal::TwoLengths);
                }
                if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
                    return Err(Refusal::Length);
                }
                self.length = Some(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')));
            }
            17 if is(name, b"transfer-encoding") => {
                plain(name)?;
                if self.chunked || !is(value.trim_ascii(), b"chunked") {
                    return Err(Refusal::Coding);
                }
                self.chunked = true;
            }
            7 if is(name, b"upgrade") => self.upgrade = true,
            _ => {}
        }
        Ok(())
    }

    fn end_head(&mut self) -> Result<(), Refusal> {
        self.state = match (self.length, self.chunked) {
            (Some(_), true) => return Err(Refusal::LengthAndCoding),
            (None, true) => State::ChunkSize,
            (Some(length), false) if length > 0 => State::Body(length),
            _ if self.upgrade => State::Upgrade,
            _ => State::Head,
        };
        (self.length, self.chunked, self.upgrade, self.blank, self.head_bytes) = (None, false, false, true, 0);
        Ok(())
    }
}

/// Equal but for case; servers that hand fields on as variables don't tell `_` from `-`.
fn is(text: &[u8], name: &[u8]) -> bool {
    text.len() == name.len()
        && text.iter().zip(name).all(|(a, b)| a.eq_ignore_ascii_case(b) || *a == b'_' && *b == b'-')
}

/// With an underscore it is another field for this edge and the same for some servers behind it.
fn plain(name: &[u8]) -> Result<(), Refusal> {
    if memchr(b'_', name).is_some() { Err(Refusal::Underscore) } else { Ok(()) }
}

fn chunk_size(line: &[u8]) -> Result<u64, Refusal> {
    let digits = line.split(|&byte| byte == b';').next().unwrap_or_default();
    if digits.is_empty() || digits.len() > 15 {
        return Err(Refusal::ChunkSize);
    }
    digits.iter().try_fold(0, |sum, &digit| {
        let value = char::from(digit).to_digit(16).ok_or(Refusal::ChunkSize)?;
        Ok(sum << 4 | u64::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(text: &[u8], piece: usize) -> Result<bool, Refusal> {
        let mut strict = Strict::new(32 << 10);
        for piece in text.chunks(piece) {
            strict.feed(piece).map_err(|refused| refused.why)?;
        }
        Ok(strict.between_requests())
    }

    #[test]
    fn whole_requests_are_followed_however_they_arrive() {
        let text = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n\n\n\nPOST / HTTP/1.1\r\n\
            Transfer-Encoding: Chunked\r\n\r\n3;a=b\r\n\n\n\n\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.1\r\nUpgrade: x\r\n\r\n";
        for piece in 1..=text.len() {
            assert_eq!(fed(text, piece), Ok(true), "{piece}");
        }
        assert_eq!(fed(&text[..text.len() - 2], 7), Ok(false));
    }

    #[test]
    fn what_could_be_read_differently_is_refused() {
        for (text, refusal) in [
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", Refusal::LineEnd),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", Refusal::LineEnd),
            ("GET / HTTP/1.1\r\nA: b\rc: d\r\n\r\n", Refusal::LineEnd),
            ("GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", Refusal::Folded),
            ("GET / HTTP/1.1\r\n A: b\r\n\r\n", Refusal::Folded),
            ("GET / HTTP/1.1\r\nA : b\r\n\r\n", Refusal::SpaceInName),
            ("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", Refusal::TwoLengths),
            ("GET / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n", Refusal::Length),
            ("GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", Refusal::Length),
            ("GET / HTTP/1.1\r\nContent-Length:\r\n\r\n", Refusal::Length),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Refusal::Coding),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n", Refusal::Coding),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", Refusal::Coding),
            ("GET / HTTP/1.1\r\nTransfer_Encoding: chunked\r\n\r\n", Refusal::Underscore),
            ("GET / HTTP/1.1\r\nContent_length: 5\r\n\r\n", Refusal::Underscore),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", Refusal::LengthAndCoding),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n 1\r\n", Refusal::ChunkSize),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\n", Refusal::ChunkSize),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\r\n", Refusal::LineEnd),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n", Refusal::ChunkEnd),
            ("GET / HTTP/1.1\r\nUpgrade: a\r\n\r\nx", Refusal::BeforeUpgrade),
        ] {
            for piece in [1, 7, text.len()] {
                assert_eq!(fed(text.as_bytes(), piece), Err(refusal), "{text:?}");
            }
        }
        assert_eq!(fed(&[b'a'; 70_000], 1000), Err(Refusal::TooLong));
    }

    #[test]
    fn what_comes_before_a_refusal_is_sound_but_for_its_own_head() {
        let get = "GET / HTTP/1.1\r\nHost: a\r\n";
        for (sound, refused, in_head) in [
            ("", "G\n", true),
            ("GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nA: b\nC: d", true),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "G\n", true),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na", "b\r\n", false),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", "0\n", false),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", " x\r\n", false),
            (get, "", true),
            ("", "GET / HTTP/1.1\r\nUpgrade: a\r\n\r\nx", true),
        ] {
            let mut strict = Strict::new(1000);
            let fed = strict.feed([sound, refused].concat().as_bytes());
            match refused {
                "" => assert_eq!(fed, Ok(())),
                _ => {
                    let fed = fed.expect_err(refused);
                    assert_eq!((fed.sound, fed.in_head), (sound.len(), in_head), "{sound:?} {refused:?}");
                }
            }
        }
        let mut strict = Strict::new(1000);
        assert_eq!(strict.feed(b"GET / HTTP/1.1\r\nUpgrade: a\r\n\r\n"), Ok(()));
        assert_eq!(strict.feed(b"x"), Err(Refused { why: Refusal::BeforeUpgrade, sound: 0, in_head: false }));
    }
}
