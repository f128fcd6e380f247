//! A line of the log. What clients send is escaped, so that it can neither end a line nor move a terminal's cursor.

use super::Log;
use crate::address::Address;
use hyper::header::{HOST, HeaderMap, REFERER, USER_AGENT};
use hyper::{Method, Uri, Version};
use palisade_core::calendar::Moment;
use palisade_core::edge::LogFormat;
use std::cell::RefCell;
use std::io::Write;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Bytes of one field at most; the rest is cut off.
const FIELD_BYTES_MAX: usize = 1_024;

/// What is known of a request before it is answered.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Who asks.
    pub client: &'a Address,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The request's.
    pub method: &'a Method,
    /// The request's.
    pub uri: &'a Uri,
    /// The request's.
    pub version: Version,
    /// The request's.
    pub headers: &'a HeaderMap,
}

/// A request that couldn't be read, or that never became whole.
#[derive(Debug)]
pub struct Unread<'a> {
    /// Who is connected: what trusted proxies say of others stands in what couldn't be read.
    pub client: &'a Address,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// What it was answered with, if it was.
    pub status: u16,
    /// Its first line, or what came of that.
    pub line: &'a [u8],
}

impl Unread<'_> {
    /// More of the line isn't logged.
    pub const LINE_BYTES_MAX: usize = FIELD_BYTES_MAX;

    pub(super) fn line(&self, format: LogFormat, query: bool) -> Vec<u8> {
        let mut text = Vec::with_capacity(160);
        let request = referer(self.line, query);
        // Writing to a vector can't fail.
        let _ = match format {
            LogFormat::Json => {
                begin_json(&mut text, self.client, self.scheme);
                text.extend_from_slice(b",\"request\":\"");
                push_escaped(&mut text, request, format);
                writeln!(text, "\",\"status\":{},\"bytes\":0}}", self.status)
            }
            LogFormat::Combined => {
                begin_combined(&mut text, self.client);
                push_escaped(&mut text, if request.is_empty() { b"-" } else { request }, format);
                writeln!(text, "\" {} 0 \"-\" \"-\"", self.status)
            }
        };
        text
    }
}

/// A request that is being answered. Its line is written when this is dropped.
#[derive(Debug)]
pub struct Entry {
    log: Arc<Log>,
    /// What stands before status and size, and from `split` on what stands behind.
    text: Vec<u8>,
    split: usize,
    /// For the formats that say how long it took.
    began: Option<Instant>,
    status: u16,
    bytes: u64,
}

impl Entry {
    pub(super) fn new(log: Arc<Log>, format: LogFormat, query: bool, seen: &Seen<'_>) -> Self {
        let mut text = Vec::with_capacity(320);
        let split = match format {
            LogFormat::Json => json(&mut text, query, seen),
            LogFormat::Combined => combined(&mut text, query, seen),
        };
        // 499: nothing was answered because the client had gone, as in nginx.
        let began = (format == LogFormat::Json).then(Instant::now);
        Self { log, text, split, began, status: 499, bytes: 0 }
    }

    /// It is answered with this.
    pub fn answered(&mut self, status: u16) {
        self.status = status;
    }

    /// So much of the answer's body was taken.
    pub fn sent(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let (mut status, mut bytes) = (itoa::Buffer::new(), itoa::Buffer::new());
        let (status, bytes) = (status.format(self.status), bytes.format(self.bytes));
        let duration = self.began.map(|began| format!("{:.3}", began.elapsed().as_micros() as f64 / 1_000.0));
        let parts = match &duration {
            Some(ms) => [",\"status\":", status, ",\"bytes\":", bytes, ",\"duration_ms\":", ms, "}\n"],
            None => [" ", status, " ", bytes, "", "", ""],
        };
        let mut middle = [0; 96];
        let mut rest: &mut [u8] = &mut middle;
        for part in parts {
            // Three numbers fit.
            let _ = rest.write_all(part.as_bytes());
        }
        let unused = rest.len();
        let (before, behind) = self.text.split_at(self.split);
        let middle = middle.get(..middle.len() - unused).unwrap_or_default();
        self.log.append(&[before, middle, behind]);
    }
}

fn begin_json(text: &mut Vec<u8>, client: &Address, scheme: &str) {
    text.extend_from_slice(b"{\"time\":\"");
    push_time(text, LogFormat::Json);
    for part in ["\",\"client\":\"", client.as_str(), "\",\"scheme\":\"", scheme, "\""] {
        text.extend_from_slice(part.as_bytes());
    }
}

fn json(text: &mut Vec<u8>, query: bool, seen: &Seen<'_>) -> usize {
    begin_json(text, seen.client, seen.scheme);
    let mut field = |name: &str, value: &[u8]| {
        for part in [",\"", name, "\":\""] {
            text.extend_from_slice(part.as_bytes());
        }
        push_escaped(text, value, LogFormat::Json);
        text.push(b'"');
    };
    field("host", host(seen));
    field("method", seen.method.as_str().as_bytes());
    field("path", target(seen.uri, query).as_bytes());
    field("version", version(seen.version).as_bytes());
    for (name, header) in [("referer", REFERER), ("user_agent", USER_AGENT)] {
        if let Some(value) = seen.headers.get(header) {
            field(name, if name == "referer" { referer(value.as_bytes(), query) } else { value.as_bytes() });
        }
    }
    text.len()
}

fn begin_combined(text: &mut Vec<u8>, client: &Address) {
    text.extend_from_slice(client.as_str().as_bytes());
    text.extend_from_slice(b" - - [");
    push_time(text, LogFormat::Combined);
    text.extend_from_slice(b"] \"");
}

fn combined(text: &mut Vec<u8>, query: bool, seen: &Seen<'_>) -> usize {
    begin_combined(text, seen.client);
    push_escaped(text, seen.method.as_str().as_bytes(), LogFormat::Combined);
    text.push(b' ');
    push_escaped(text, target(seen.uri, query).as_bytes(), LogFormat::Combined);
    text.push(b' ');
    text.extend_from_slice(version(seen.version).as_bytes());
    text.push(b'"');
    let split = text.len();
    for header in [REFERER, USER_AGENT] {
        let value = seen.headers.get(&header).map_or(&b"-"[..], |value| value.as_bytes());
        text.extend_from_slice(b" \"");
        push_escaped(text, if header == REFERER { referer(value, query) } else { value }, LogFormat::Combined);
        text.push(b'"');
    }
    text.push(b'\n');
    split
}

fn host<'a>(seen: &'a Seen<'_>) -> &'a [u8] {
    match seen.headers.get(HOST) {
        Some(host) => host.as_bytes(),
        None => seen.uri.authority().map_or("", |it| it.as_str()).as_bytes(),
    }
}

fn target(uri: &Uri, query: bool) -> &str {
    match query {
        true => uri.path_and_query().map_or("/", |it| it.as_str()),
        false => uri.path(),
    }
}

/// Where the client comes from may hold the same secrets as where it goes.
fn referer(value: &[u8], query: bool) -> &[u8] {
    let end = if query { None } else { value.iter().position(|byte| matches!(byte, b'?' | b'#')) };
    value.get(..end.unwrap_or(value.len())).unwrap_or_default()
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    }
}

/// JSON's escapes in JSON; nginx's `\xXX` in the combined format.
fn push_escaped(text: &mut Vec<u8>, value: &[u8], format: LogFormat) {
    let value = value.get(..FIELD_BYTES_MAX).unwrap_or(value);
    if value.iter().all(|byte| matches!(byte, b' '..=b'~') && *byte != b'"' && *byte != b'\\') {
        return text.extend_from_slice(value);
    }
    for &byte in value {
        let _ = match (byte, format) {
            (b'"' | b'\\', LogFormat::Json) => text.write_all(&[b'\\', byte]),
            (b' '..=b'~', _) if byte != b'"' && byte != b'\\' => text.write_all(&[byte]),
            // Bytes beyond ASCII aren't known to be UTF-8: each is shown as the character of that number.
            (_, LogFormat::Json) => write!(text, "\\u00{byte:02x}"),
            (_, LogFormat::Combined) => write!(text, "\\x{byte:02X}"),
        };
    }
}

thread_local! {
    /// The second whose text is kept, by format.
    static TIMES: RefCell<[(u64, String); 2]> = RefCell::default();
}

fn push_time(text: &mut Vec<u8>, format: LogFormat) {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    TIMES.with_borrow_mut(|times| {
        let kept = &mut times[usize::from(format == LogFormat::Combined)];
        if kept.0 != now_s || kept.1.is_empty() {
            *kept = (now_s, time(now_s, format));
        }
        text.extend_from_slice(kept.1.as_bytes());
    });
}

/// UTC, in the format's own way to write it.
fn time(now_s: u64, format: LogFormat) -> String {
    let moment = Moment::at(now_s);
    match format {
        LogFormat::Json => moment.date_and_time() + "Z",
        LogFormat::Combined => {
            const NAMES: [&str; 12] =
                ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
            let Moment { year, month, day, hour, minute, second } = moment;
            let name = NAMES[(month - 1) as usize];
            format!("{day:02}/{name}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, json, combined) in [
            (0, "1970-01-01T00:00:00Z", "01/Jan/1970:00:00:00 +0000"),
            (951_782_400, "2000-02-29T00:00:00Z", "29/Feb/2000:00:00:00 +0000"),
            (1_764_190_799, "2025-11-26T20:59:59Z", "26/Nov/2025:20:59:59 +0000"),
            (4_107_542_399, "2100-02-28T23:59:59Z", "28/Feb/2100:23:59:59 +0000"),
            (4_107_542_400, "2100-03-01T00:00:00Z", "01/Mar/2100:00:00:00 +0000"),
        ] {
            assert_eq!(time(seconds, LogFormat::Json), json);
            assert_eq!(time(seconds, LogFormat::Combined), combined);
        }
    }
}
