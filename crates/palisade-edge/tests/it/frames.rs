//! HTTP/2 by hand: frames, and a client that reads only when it is told to.

use crate::support::{DOMAIN, Edge, PATIENCE, Tls, tls};
use std::io::{self, Read, Write};
use std::net::TcpStream;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (u32::try_from(payload.len()).expect("short")).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A request's head, as HPACK without a table of its own.
pub(crate) fn request(stream: u32, method: &str, path: &str, flags: u8) -> Vec<u8> {
    let mut head = vec![0x87];
    // Names of the static table: `:authority`, `:method`, `:path`.
    for (name, value) in [(1, DOMAIN), (2, method), (4, path)] {
        head.extend_from_slice(&[name, u8::try_from(value.len()).expect("short")]);
        head.extend_from_slice(value.as_bytes());
    }
    frame(HEADERS, flags | END_HEADERS, stream, &head)
}

/// A frame that came.
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The next one. `None`: the other side has ended the connection.
    pub(crate) fn read(stream: &mut impl Read) -> Option<Self> {
        let mut head = [0; 9];
        stream.read_exact(&mut head).ok()?;
        let [a, b, c, kind, flags, number @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).ok()?;
        Some(Self { kind, flags, stream: u32::from_be_bytes(number), payload })
    }

    /// The head of an answer with status 200.
    pub(crate) fn is_ok(&self) -> bool {
        // It may begin with what the table's size is from now on.
        self.kind == HEADERS && self.payload.iter().find(|byte| **byte & 0xe0 != 0x20) == Some(&0x88)
    }
}

pub(crate) struct Client {
    stream: Tls,
}

impl Client {
    /// Connects, with these settings and a window for the whole connection that nobody comes to the end of.
    pub(crate) fn connect(edge: &Edge, settings: &[u8]) -> Self {
        let mut client = Self { stream: tls(edge, &[b"h2"]) };
        client.send(PREFACE).expect("it listens");
        client.send(&frame(SETTINGS, 0, 0, settings)).expect("it listens");
        client.send(&frame(WINDOW_UPDATE, 0, 0, &0x3fff_ffff_u32.to_be_bytes())).expect("it listens");
        client
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.stream.sock
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    pub(crate) fn read(&mut self, part: &mut [u8]) -> io::Result<usize> {
        self.stream.read(part)
    }

    /// Something came that wasn't read yet.
    pub(crate) fn waits(&mut self) -> bool {
        let read = self.stream.conn.process_new_packets().is_ok_and(|state| state.plaintext_bytes_to_read() > 0);
        let socket = &self.stream.sock;
        socket.set_nonblocking(true).expect("a socket");
        let arrived = socket.peek(&mut [0]).is_ok();
        socket.set_nonblocking(false).expect("a socket");
        read || arrived
    }

    /// The next frame. `None`: the edge has ended the connection.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        Frame::read(&mut self.stream)
    }

    /// Sends this again and again. False when the edge takes no more of it: it has ended the connection, or lets it wait.
    pub(crate) fn flood(&mut self, part: &[u8], times: usize) -> bool {
        self.tcp().set_write_timeout(Some(std::time::Duration::from_secs(1))).expect("a time limit");
        let passed = (0..times).all(|_| self.send(part).is_ok());
        self.tcp().set_write_timeout(Some(PATIENCE)).expect("a time limit");
        passed
    }
}
