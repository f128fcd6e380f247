//! Answers of upstreams over HTTP/1: where they end doesn't depend on how they arrive, and is where the library sees it.

use super::head::{Head, parse};
use super::pieces;
use super::pipe::{Pipe, run};
use bytes::BytesMut;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

/// What was understood of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    status: Option<StatusCode>,
    body: Vec<u8>,
    trailers: usize,
    end: End,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    /// So much of what came is behind it.
    Whole {
        behind: usize,
        keep_alive: bool,
    },
    Broken,
    Garbage(&'static str),
}

/// Checks one answer.
pub fn check(input: &[u8]) {
    let Some((piece, more, bytes)) = pieces(input) else { return };
    let method = if more & 1 == 1 { Method::HEAD } else { Method::GET };
    let ours = read(bytes, bytes.len().max(1), &method);
    assert_eq!(ours, read(bytes, piece, &method), "what an answer is depends on how it arrives");
    if !matches!(ours.end, End::Whole { .. }) || ours.status == Some(StatusCode::SWITCHING_PROTOCOLS) {
        return;
    }
    if let Some((status, body)) = library(bytes, piece, &method) {
        assert_eq!(ours.status, Some(status));
        assert_eq!(ours.body, body, "the library sees another body");
    }
}

/// As the edge reads it.
fn read(bytes: &[u8], piece: usize, method: &Method) -> Read {
    let mut parts = bytes.chunks(piece);
    let mut buffer = BytesMut::new();
    let mut read = Read { status: None, body: Vec::new(), trailers: 0, end: End::Broken };
    let mut decoder = loop {
        match parse(&mut buffer, method) {
            Ok(Some(Head { response, decoder, keep_alive })) => {
                read.status = Some(response.status());
                read.end = End::Whole { behind: 0, keep_alive };
                break decoder;
            }
            Ok(None) => {}
            Err(why) => return Read { end: End::Garbage(why), ..read },
        }
        match parts.next() {
            Some(part) => buffer.extend_from_slice(part),
            None => return read,
        }
    };
    loop {
        match decoder.decode(&mut buffer) {
            Ok(Some(frame)) => match frame.into_data() {
                Ok(data) => {
                    assert!(!data.is_empty(), "a part of a body without anything in it");
                    read.body.extend_from_slice(&data);
                }
                Err(trailers) => read.trailers += trailers.into_trailers().map_or(0, |trailers| trailers.len()),
            },
            Ok(None) if decoder.is_end() => break,
            Ok(None) => match parts.next() {
                Some(part) => buffer.extend_from_slice(part),
                // The connection's end is the body's, or it comes too early.
                None if matches!(decoder, super::decode::Decoder::Close) => break,
                None => return Read { end: End::Broken, ..read },
            },
            Err(why) => return Read { end: End::Garbage(why), ..read },
        }
    }
    if let End::Whole { behind, .. } = &mut read.end {
        *behind = buffer.len() + parts.map(<[u8]>::len).sum::<usize>();
    }
    read
}

/// As the library reads it. `None`: it doesn't, or not to the end.
fn library(bytes: &[u8], piece: usize, method: &Method) -> Option<(StatusCode, Vec<u8>)> {
    let pipe = Pipe::new(bytes.to_vec(), piece).answering();
    let (mut sender, connection) = run(http1::handshake::<_, Empty<Bytes>>(pipe)).ok()?;
    let mut request = Request::new(Empty::new());
    *request.method_mut() = method.clone();
    let mut answer = pin!(async move {
        let response = sender.send_request(request).await.ok()?;
        let status = response.status();
        let body = response.into_body().collect().await.ok()?;
        Some((status, body.to_bytes().to_vec()))
    });
    let mut connection = pin!(connection);
    let mut ended = false;
    run(poll_fn(|context| {
        if let Poll::Ready(answer) = answer.as_mut().poll(context) {
            return Poll::Ready(answer);
        }
        if !ended {
            ended = connection.as_mut().poll(context).is_ready();
        }
        Poll::Pending
    }))
}
