//! Requests of HTTP/1: whatever the edge lets through has one meaning. Three readers are held against each other: `strict`, which
//! judges what comes; the library, which then reads it; and a slow one in here, which knows nothing but the plainest requests.

use super::pieces;
use super::pipe::{Pipe, run};
use super::strict::{NO_HEAD, Refusal, Strict};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use std::cell::RefCell;
use std::convert::Infallible;

/// Small, so that inputs get there.
const HEAD_BYTES_MAX: usize = 1_000;
const BUFFER_BYTES_MAX: usize = 16 << 10;

/// A request, as a reader has understood it.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    method: Vec<u8>,
    target: Vec<u8>,
    body: Vec<u8>,
    /// Its body has come to its end.
    whole: bool,
}

/// What the library is given of a connection.
struct Heard {
    refusal: Option<Refusal>,
    bytes: Vec<u8>,
    fails: bool,
}

/// Checks one connection.
pub fn check(input: &[u8]) {
    let Some((piece, more, bytes)) = pieces(input) else { return };
    if more & 1 == 1 {
        // Each piece comes when what came before it is answered: who asked for another protocol may go on without one.
        let heard = hear(bytes, piece, true);
        return same(&meaning(bytes, Some(piece)), &library(&heard, piece));
    }
    let at_once = hear(bytes, bytes.len().max(1), false);
    let in_pieces = hear(bytes, piece, false);
    assert_eq!(at_once.refusal, in_pieces.refusal, "the verdict depends on how it arrives");
    let meant = meaning(bytes, None);
    let mut served = Vec::new();
    for heard in [&at_once, &in_pieces] {
        let asked = library(heard, piece);
        same(&meant, &asked);
        // A refused connection isn't one that went well.
        served.push(asked.into_iter().filter(|asked| asked.whole).count());
    }
    // Who asks for another protocol and goes on without waiting is heard, if what follows comes later.
    let may_differ = at_once.refusal == Some(Refusal::BeforeUpgrade);
    assert!(served[0] == served[1] || may_differ && served[0] < served[1], "{served:?} are served");
}

/// What passes of these bytes, as the edge's connections do it; `answered`: all that came before a piece is.
fn hear(bytes: &[u8], piece: usize, answered: bool) -> Heard {
    let mut strict = Strict::new(HEAD_BYTES_MAX);
    let mut heard = Heard { refusal: None, bytes: Vec::new(), fails: false };
    for part in bytes.chunks(piece) {
        if answered {
            strict.not_upgraded();
        }
        match strict.feed(part) {
            Ok(()) => heard.bytes.extend_from_slice(part),
            Err(refused) => {
                heard.bytes.extend_from_slice(&part[..refused.sound]);
                if refused.in_head {
                    heard.bytes.extend_from_slice(NO_HEAD);
                }
                heard.refusal = Some(refused.why);
                heard.fails = !refused.in_head;
                break;
            }
        }
    }
    heard
}

/// Requests as the library reads them.
fn library(heard: &Heard, piece: usize) -> Vec<Asked> {
    let asked = RefCell::new(Vec::new());
    let service = service_fn(|request: Request<Incoming>| async {
        let (parts, mut body) = request.into_parts();
        let number = {
            let mut asked = asked.borrow_mut();
            asked.push(Asked {
                method: parts.method.as_str().into(),
                target: parts.uri.to_string().into_bytes(),
                body: Vec::new(),
                whole: false,
            });
            asked.len() - 1
        };
        loop {
            match body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        asked.borrow_mut()[number].body.extend_from_slice(&data);
                    }
                }
                Some(Err(_)) => break,
                None => {
                    asked.borrow_mut()[number].whole = true;
                    break;
                }
            }
        }
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
    });
    let mut builder = http1::Builder::new();
    builder.max_buf_size(BUFFER_BYTES_MAX).max_header_size(HEAD_BYTES_MAX);
    let pipe = Pipe::new(heard.bytes.clone(), piece).failing(heard.fails);
    let ended = run(builder.serve_connection(pipe, service));
    let asked = asked.into_inner();
    if heard.refusal.is_some() && ended.is_ok() {
        // It may have ended before it got there: a request was the last one, or its body was refused.
        assert!(!asked.is_empty(), "what was refused has ended well");
    }
    asked
}

/// Requests by where `strict` sees heads and bodies end, byte by byte; what is in them is read in the plainest way. If all that
/// came before a piece is answered, that is its length.
fn meaning(bytes: &[u8], answered: Option<usize>) -> Vec<Asked> {
    let mut strict = Strict::new(HEAD_BYTES_MAX);
    let mut all: Vec<Asked> = Vec::new();
    let (mut head_from, mut body_from) = (0, None);
    for (at, byte) in bytes.iter().enumerate() {
        if answered.is_some_and(|piece| at % piece == 0) {
            strict.not_upgraded();
        }
        let was_within = strict.within_head();
        if strict.feed(std::slice::from_ref(byte)).is_err() {
            break;
        }
        let next = at + 1;
        if let Some(begin) = body_from {
            let last = all.last_mut().expect("a body has a head");
            let head = &bytes[head_from..begin];
            last.body = content(head, &bytes[begin..next]);
            if strict.between_requests() {
                last.whole = true;
                (head_from, body_from) = (next, None);
            }
        } else if was_within && !strict.within_head() {
            let head = bytes[head_from..next].trim_ascii_start();
            if head.is_empty() {
                continue;
            }
            let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
            let mut words = line.split(|byte| *byte == b' ');
            let mut word = || words.next().unwrap_or_default().to_vec();
            let whole = strict.between_requests();
            all.push(Asked { method: word(), target: word(), body: Vec::new(), whole });
            if whole {
                head_from = next;
            } else {
                body_from = Some(next);
            }
        }
    }
    all
}

/// A body's content: all of it, or what stands in its chunks.
fn content(head: &[u8], body: &[u8]) -> Vec<u8> {
    let lower = head.to_ascii_lowercase();
    let chunked = lower.windows(7).any(|window| window == b"chunked")
        && lower.split(|byte| *byte == b'\n').any(|line| {
            let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
            name == b"transfer-encoding" || name == b"transfer_encoding"
        });
    if !chunked {
        return body.to_vec();
    }
    let (mut rest, mut content) = (body, Vec::new());
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = rest[..end].split(|byte| *byte == b';').next().unwrap_or_default();
        let size = std::str::from_utf8(size).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        let Some(size) = size.filter(|size| *size > 0) else { break };
        rest = &rest[end + 2..];
        content.extend_from_slice(&rest[..size.min(rest.len())]);
        let Some(behind) = size.checked_add(2).and_then(|next| rest.get(next..)) else { break };
        rest = behind;
    }
    content
}

/// The library has served nothing but what was meant, in this order, and may have given up at any place.
fn same(meant: &[Asked], asked: &[Asked]) {
    assert!(asked.len() <= meant.len(), "more is served than was asked\n{meant:#?}\n{asked:#?}");
    for (number, (meant, got)) in meant.iter().zip(asked).enumerate() {
        let target = String::from_utf8_lossy(&meant.target);
        assert_eq!(got.method, meant.method, "{number}");
        // A target without a path gets one.
        let shown = String::from_utf8_lossy(&got.target);
        assert!(shown == target || is_same_uri(&shown, &target), "{number}: {shown:?} for {target:?}");
        assert!(meant.body.starts_with(&got.body), "{number}: another body\n{meant:?}\n{got:?}");
        if got.whole {
            assert!(meant.whole && meant.body == got.body, "{number}: another end\n{meant:?}\n{got:?}");
        } else {
            assert_eq!(number + 1, asked.len(), "something is served behind a body that broke off");
        }
    }
}

fn is_same_uri(shown: &str, written: &str) -> bool {
    written.parse::<hyper::Uri>().is_ok_and(|uri| uri == *shown)
}
