//! Heads of requests that ended a connection because nobody could read them, or because they never became whole: they are logged
//! and counted as requests are.

use super::connection::Client;
use super::strict::NO_HEAD;
use crate::access_log::Unread;

/// How a connection of HTTP/1 ended, and what was left of it.
pub(super) struct Left<'a> {
    /// `None`: it was cut.
    pub(super) ended: Option<&'a hyper::Error>,
    /// What the library had read and couldn't use.
    pub(super) buffer: &'a [u8],
    /// A head has begun that isn't whole.
    pub(super) begun: bool,
    /// How a head, or its rest, begins that was kept from the library.
    pub(super) refused: &'a [u8],
}

impl Left<'_> {
    /// The status, as nginx has it, and whether the library has said it to the client.
    fn status(&self) -> Option<(u16, bool)> {
        match self.ended {
            Some(error) if error.is_parse_too_large() => Some((431, true)),
            Some(error) if error.is_parse() => Some((400, true)),
            // The client has gone.
            Some(_) if self.begun => Some((499, false)),
            None if self.begun => Some((408, false)),
            _ => None,
        }
    }

    /// The first line of it, or what there is of that.
    fn line(&self) -> Vec<u8> {
        let heard = match self.refused {
            [] => self.buffer,
            _ => self.buffer.strip_suffix(NO_HEAD).unwrap_or(self.buffer),
        };
        let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let text = heard.iter().chain(self.refused).copied();
        text.skip_while(is_end).take_while(|byte| !is_end(byte)).take(Unread::LINE_BYTES_MAX).collect()
    }

    /// Logs and counts it, if there was such a head.
    pub(super) fn note(&self, client: &Client) {
        let Some((status, answered)) = self.status() else { return };
        let worker = client.worker();
        if answered {
            worker.proxy.count(status);
        }
        if let Some(log) = &worker.shared.log {
            let scheme = client.scheme.as_str();
            log.unread(&Unread { client: &client.peer, scheme, status, line: &self.line() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_what_was_heard_and_what_was_refused() {
        let line = |buffer: &[u8], refused: &[u8]| {
            let left = Left { ended: None, buffer, begun: true, refused };
            String::from_utf8(left.line()).unwrap()
        };
        assert_eq!(line(b"GET / HTTP/1.1\r\nHost", b""), "GET / HTTP/1.1");
        assert_eq!(line(b"\r\n\r\nGET /", b""), "GET /");
        assert_eq!(line(b"GET /\0\r\n\r\n", b"a HTTP/1.1\nHost: a\n"), "GET /a HTTP/1.1");
        assert_eq!(line(NO_HEAD, b"GET / HTTP/1.1\nHost: a\n"), "GET / HTTP/1.1");
        assert_eq!(line(b"", b"\r\n"), "");
        assert_eq!(line(&[b'x'; 5_000], b"").len(), Unread::LINE_BYTES_MAX);
    }
}
