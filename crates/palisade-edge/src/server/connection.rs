//! One connection of a client: its handshake, and the protocol that is spoken on it.

use super::worker::Worker;
use crate::tls::ACME_ALPN;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpStream;

/// How a client speaks with the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) peer: SocketAddr,
    pub(crate) scheme: Scheme,
}

/// Bytes that are read ahead of a connection at most; a request's head has to fit as well.
const BUFFER_BYTES_MIN: usize = 16 << 10;

/// Serves a connection until it ends.
pub(super) async fn serve(worker: Rc<Worker>, scheme: Scheme, stream: TcpStream, peer: SocketAddr) {
    let place = Place::take(&worker);
    let client = Rc::new(Client { peer, scheme });
    match scheme {
        Scheme::Http => serve_http1(&place, client, stream).await,
        Scheme::Https => {
            let Some(acceptor) = &worker.tls else { return };
            // Who speaks no TLS, or names no domain of ours, has been told so by the library.
            let Ok(stream) = acceptor.accept(stream).await else { return };
            match stream.get_ref().1.alpn_protocol() {
                // The certificate was the answer to the challenge.
                Some(ACME_ALPN) => {}
                Some(b"h2") => serve_http2(&place, client, stream).await,
                _ => serve_http1(&place, client, stream).await,
            }
        }
    }
}

/// Serves a client of HTTP/3 whose requests come over HTTP/2 from within the process.
pub(super) async fn serve_translated(worker: Rc<Worker>, peer: SocketAddr, stream: DuplexStream) {
    let place = Place::take(&worker);
    serve_http2(&place, Rc::new(Client { peer, scheme: Scheme::Https }), stream).await;
}

async fn serve_http1<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(place: &Place, client: Rc<Client>, stream: S) {
    let worker = &place.worker;
    let limits = &worker.shared.settings.edge.limits;
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (worker, client) = (Rc::clone(worker), Rc::clone(&client));
        async move { Ok::<_, Infallible>(worker.proxy.answer(&client, request).await) }
    });
    let connection = http1::Builder::new()
        .max_buf_size((limits.header_bytes_max as usize).max(BUFFER_BYTES_MIN))
        .max_headers(usize::from(limits.header_fields_max))
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let shutdown = |it: Pin<&mut http1::UpgradeableConnection<_, _>>| it.graceful_shutdown();
    let _ = Draining { place, connection, told: false, shutdown }.await;
}

async fn serve_http2<S: AsyncRead + AsyncWrite + Unpin + 'static>(place: &Place, client: Rc<Client>, stream: S) {
    let worker = &place.worker;
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (worker, client) = (Rc::clone(worker), Rc::clone(&client));
        async move { Ok::<_, Infallible>(worker.proxy.answer(&client, request).await) }
    });
    let connection =
        http2::Builder::new(LocalExecutor).auto_date_header(false).serve_connection(TokioIo::new(stream), service);
    let shutdown = |it: Pin<&mut http2::Connection<_, _, _>>| it.graceful_shutdown();
    let _ = Draining { place, connection, told: false, shutdown }.await;
}

/// Tasks of a connection stay in its worker's thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

/// A connection's place among those of its worker, for as long as this lives.
pub(crate) struct Place {
    worker: Rc<Worker>,
    key: usize,
}

impl Place {
    fn take(worker: &Rc<Worker>) -> Self {
        Self { worker: Rc::clone(worker), key: worker.connections.borrow_mut().insert(None) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = self.worker.connections.borrow_mut();
        connections.remove(self.key);
        if self.worker.draining.get() && connections.is_empty() {
            self.worker.ended.notify_one();
        }
    }
}

/// A connection that is told once when the worker drains.
struct Draining<'a, C, F> {
    place: &'a Place,
    connection: C,
    told: bool,
    shutdown: F,
}

impl<C: Future + Unpin, F: Fn(Pin<&mut C>) + Unpin> Future for Draining<'_, C, F> {
    type Output = C::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if this.place.worker.draining.get() && !this.told {
            this.told = true;
            (this.shutdown)(Pin::new(&mut this.connection));
        }
        let polled = Pin::new(&mut this.connection).poll(context);
        if polled.is_pending() && !this.told {
            let mut connections = this.place.worker.connections.borrow_mut();
            if let Some(waker @ None) = connections.get_mut(this.place.key) {
                *waker = Some(context.waker().clone());
            }
        }
        polled
    }
}
