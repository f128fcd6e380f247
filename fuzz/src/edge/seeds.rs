//! Where the fuzzer begins with the edge's readers: what its tests send, one input each, and the words of HTTP.

use std::path::Path;

#[path = "../../../crates/palisade-edge/tests/it/hostile/attacks.rs"]
mod attacks;

const REQUESTS: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b?c HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcGET http://a/ HTTP/1.1\r\nConnection: close\r\n\r\n",
    "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n00A\r\n0123456789\r\n0\r\nA: b\r\n\r\nHEAD / HTTP/1.1\r\n\r\n",
    "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\naOPTIONS * HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    "\r\n\r\nCONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
];
const ANSWERS: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nA: b\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nA \r\n0123456789\r\n0\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    "HTTP/1.0 200 OK\r\nConnection: keep-alive, close\r\n\r\nuntil the end",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nabc",
    "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nContent-Length: 7\r\n\r\n",
    "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
];
const TARGETS: &[&str] = &[
    "/\nshop.example",
    "/a/b/../c;d=e/%2e%2E\\%5c//.well-known?x=%00\nShop.Example.:8443",
    "/%2561dmin;x/%2fa\n[2001:db8::1]:80",
    "http://shop.example:80/admin\nshop.example:80",
    "*\n",
    "/a%00b\na@b\na,b",
];
const WAYS: &[&str] = &[
    "x-forwarded-for: 6.6.6.6, 203.0.113.1, 10.0.0.2\nx-forwarded-for: 10.0.0.3\nx-forwarded-proto: https",
    "forwarded: for=\"[2001:db8::7]:80\";proto=https;by=_x, For=10.0.0.9;proto=http",
    "x-forwarded-for: unknown\nforwarded: for=_hidden;host=\"a;b\"",
    "x-forwarded-for: ::ffff:10.0.0.2, [2001:db8:f::1]:1",
];
const CONNECTIONS: &[&[u8]] = &[
    b"PROXY TCP4 198.51.100.7 10.0.0.1 4711 80\r\nGET /",
    b"PROXY TCP6 2001:db8::1 ::1 4711 80\r\n",
    b"PROXY UNKNOWN a b\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc6\x33\x64\x09\x0a\0\0\x01\x12\x34\0\x50GET /",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x12\x34\0\x50",
    b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\x00",
];

/// Writes a folder for each target.
pub(crate) fn write(folder: &Path) -> std::io::Result<()> {
    let attacks = attacks::ATTACKS.iter().map(|(text, _)| text.as_bytes());
    let requests: Vec<&[u8]> = REQUESTS.iter().map(|text| text.as_bytes()).chain(attacks).collect();
    // The first byte says in which pieces it arrives.
    inputs(&folder.join("requests"), "\x03", &requests)?;
    inputs(&folder.join("answers"), "\x03", &ANSWERS.iter().map(|text| text.as_bytes()).collect::<Vec<_>>())?;
    inputs(&folder.join("connections"), "\x03", CONNECTIONS)?;
    inputs(&folder.join("targets"), "", &TARGETS.iter().map(|text| text.as_bytes()).collect::<Vec<_>>())?;
    inputs(&folder.join("ways"), "", &WAYS.iter().map(|text| text.as_bytes()).collect::<Vec<_>>())
}

fn inputs(folder: &Path, before: &str, inputs: &[&[u8]]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (number, input) in inputs.iter().enumerate() {
        std::fs::write(folder.join(number.to_string()), [before.as_bytes(), input].concat())?;
    }
    Ok(())
}

/// Words that have a meaning of their own to one of the readers.
pub(crate) const WORDS: &[&str] = &[
    "\r\n",
    "\r\n\r\n",
    "\n\n",
    " HTTP/1.1\r\n",
    " HTTP/1.0\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 101 S\r\n",
    "HTTP/1.1 204 N\r\n",
    "HTTP/1.1 304 N\r\n",
    "GET / HTTP/1.1\r\n",
    "POST / HTTP/1.1\r\n",
    "GET ",
    "POST ",
    "CONNECT ",
    "Content-Length: ",
    "Content_Length: ",
    "Transfer-Encoding: chunked\r\n",
    "Transfer_Encoding: chunked\r\n",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "Upgrade: ",
    "Expect: 100-continue\r\n",
    "Host: ",
    "0\r\n\r\n",
    "1\r\na\r\n",
    "x-forwarded-for: ",
    "x-forwarded-proto: ",
    "forwarded: ",
    "for=",
    ";proto=https",
    ";host=",
    ", ",
    "10.0.0.1",
    "::ffff:10.0.0.1",
    "[2001:db8:f::1]:80",
    "203.0.113.1",
    "/..",
    "/.",
    "%2e",
    "%2f",
    "%5c",
    "%25",
    "%00",
    "\\",
    ";",
    "//",
    "/admin",
    "/.well-known",
    "http://a",
    "PROXY TCP4 ",
    "PROXY TCP6 ",
    "PROXY UNKNOWN",
    "\r\n\r\n\0\r\nQUIT\n",
];
