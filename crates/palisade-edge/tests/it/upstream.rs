//! Servers behind the edge: a well-behaved one that says what it was asked, and those that do as they are told.

use crate::frames::{ACK, END_HEADERS, END_STREAM, Frame, HEADERS, PREFACE, SETTINGS, frame};
use crate::support::{own_address, skipped};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A server that answers each request with the request: a line with method and path, one for each field, and the body's
/// length. What each path does besides is told at [`answer`].
pub(crate) struct Echo {
    pub(crate) address: SocketAddr,
    pub(crate) requests: Arc<AtomicUsize>,
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Echo {
    pub(crate) fn start() -> Self {
        Self::named("echo")
    }

    /// Answers say the name in the field `x-upstream`.
    pub(crate) fn named(name: &'static str) -> Self {
        let listener = TcpListener::bind((own_address(), 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        listener.set_nonblocking(true).expect("a socket");
        let (requests, connections) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counted = (Arc::clone(&requests), Arc::clone(&connections));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                loop {
                    let Ok((stream, _)) = listener.accept().await else { continue };
                    counted.1.fetch_add(1, Ordering::Relaxed);
                    let requests = Arc::clone(&counted.0);
                    let service = service_fn(move |request| {
                        requests.fetch_add(1, Ordering::Relaxed);
                        answer(name, request)
                    });
                    let connection =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    tokio::spawn(connection.with_upgrades());
                }
            });
        });
        Self { address, requests, connections }
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

async fn answer(name: &'static str, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let mut text = format!("{} {}\n", parts.method, parts.uri);
    for (field, value) in &parts.headers {
        text += &format!("{field}: {}\n", value.to_str().unwrap_or("?"));
    }
    text += &format!("body: {}\n", body.len());
    if let Some(length) = parts.uri.path().strip_prefix("/big/") {
        text = "x".repeat(length.parse().expect("a length"));
    }
    let mut response = Response::new(Full::new(text.into()));
    response.headers_mut().insert("x-upstream", hyper::header::HeaderValue::from_static(name));
    Ok(response)
}

/// A server that treats each connection as the function does.
pub(crate) fn raw(serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((own_address(), 0)).expect("loopback has a free port");
    let address = listener.local_addr().expect("it is bound");
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let Ok(stream) = stream else { continue };
            let serve = Arc::clone(&serve);
            std::thread::spawn(move || serve(stream, number));
        }
    });
    address
}

/// Reads a request's head.
pub(crate) fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut all = Vec::new();
    let mut byte = [0];
    while !all.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => all.push(byte[0]),
            _ => return None,
        }
    }
    Some(String::from_utf8_lossy(&all).into_owned())
}

/// A server that reads a head and then sends this, whatever it was asked, and closes.
pub(crate) fn saying(text: &'static [u8]) -> SocketAddr {
    raw(move |mut stream, _| {
        while read_head(&mut stream).is_some() {
            if stream.write_all(text).is_err() {
                return;
            }
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
    })
}

/// A server of HTTP/2 without TLS that answers as gRPC does: fields tell what it was asked, trailers end the answer.
pub(crate) struct Grpc {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
}

impl Grpc {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind((own_address(), 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        listener.set_nonblocking(true).expect("a socket");
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                loop {
                    let Ok((stream, _)) = listener.accept().await else { continue };
                    counted.fetch_add(1, Ordering::Relaxed);
                    let builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                    tokio::spawn(builder.serve_connection(TokioIo::new(stream), service_fn(call)));
                }
            });
        });
        Self { address, connections }
    }
}

async fn call(
    request: Request<Incoming>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let (parts, body) = request.into_parts();
    let bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let mut trailers = hyper::HeaderMap::new();
    trailers.insert("grpc-status", hyper::header::HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from_static(b"answer")).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(body);
    let te = parts.headers.get("te").and_then(|te| te.to_str().ok()).unwrap_or("none").to_owned();
    let authority = parts.uri.authority().map(ToString::to_string).unwrap_or_default();
    let said = [
        ("method", parts.method.to_string()),
        ("path", parts.uri.path().to_owned()),
        ("target", parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default()),
        ("x-te", te),
        ("bytes", bytes.len().to_string()),
        ("authority", authority),
        ("version", format!("{:?}", parts.version)),
    ];
    for (name, value) in said {
        response.headers_mut().insert(name, value.parse().expect("a value"));
    }
    Ok(response)
}

/// A server of HTTP/2 without TLS that treats each connection as the function does, frame by frame.
pub(crate) fn raw_http2(serve: impl Fn(Http2, usize) + Send + Sync + 'static) -> SocketAddr {
    raw(move |mut stream, number| {
        let mut preface = [0; PREFACE.len()];
        if stream.read_exact(&mut preface).is_ok() {
            serve(Http2(stream), number);
        }
    })
}

/// A connection of HTTP/2 that has just begun.
pub(crate) struct Http2(TcpStream);

impl Http2 {
    /// Says so: requests at once at most.
    pub(crate) fn settings(&mut self, requests_max: u32) {
        let value = [&[0, 3][..], &requests_max.to_be_bytes()].concat();
        let _ = self.0.write_all(&frame(SETTINGS, 0, 0, &value));
    }

    /// The next frame of a request. `None`: the edge has ended the connection.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        loop {
            let got = Frame::read(&mut self.0)?;
            match got.kind {
                SETTINGS if got.flags & ACK == 0 => self.0.write_all(&frame(SETTINGS, ACK, 0, &[])).ok()?,
                _ if got.stream != 0 => return Some(got),
                _ => {}
            }
        }
    }

    /// The stream of the next request.
    pub(crate) fn request(&mut self) -> Option<u32> {
        std::iter::from_fn(|| self.next()).find(|frame| frame.kind == HEADERS).map(|frame| frame.stream)
    }

    /// 200 and nothing else.
    pub(crate) fn answer(&mut self, stream: u32) {
        let _ = self.0.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &[0x88]));
    }

    /// Whatever comes is read, and never answered.
    pub(crate) fn hang(mut self) {
        while self.next().is_some() {}
    }
}

/// A real nginx that serves one file.
pub(crate) struct Nginx {
    pub(crate) address: SocketAddr,
    child: std::process::Child,
    _folder: crate::support::Folder,
}

impl Nginx {
    pub(crate) const FILE_BYTES: usize = 5_000_000;

    /// `None`, with the reason on standard error, if it isn't installed.
    pub(crate) fn start() -> Option<Self> {
        let folder = crate::support::Folder::new();
        let address = crate::support::free_address();
        let path = folder.path().display();
        std::fs::write(folder.path().join("file"), vec![b'x'; Self::FILE_BYTES]).expect("its folder is there");
        // It changes its user when root starts it; the files are for everybody.
        let text = format!(
            "daemon off; worker_processes 1; pid {path}/pid; error_log {path}/error.log;\nevents {{ worker_connections 64; }}\n\
             http {{ access_log off; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy; fastcgi_temp_path {path}/fastcgi;\n\
             uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;\n server {{ listen {address}; root {path}; }} }}\n"
        );
        std::fs::write(folder.path().join("nginx.conf"), text).expect("its folder is there");
        let started = std::process::Command::new("nginx")
            .arg("-c")
            .arg(folder.path().join("nginx.conf"))
            .stderr(std::process::Stdio::null())
            .spawn();
        let child = match started {
            Ok(child) => child,
            Err(error) => {
                skipped("nginx as an upstream", format!("it can't be started: {error}"));
                return None;
            }
        };
        let nginx = Self { address, child, _folder: folder };
        crate::support::wait_until("nginx listens", || TcpStream::connect(nginx.address).is_ok());
        Some(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its workers when it is asked to.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a process number"));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
