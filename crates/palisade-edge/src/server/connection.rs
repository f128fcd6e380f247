//! One connection of a client: its handshake, and the protocol that is spoken on it.

use super::gather::Gather;
use super::places::Taken;
use super::strict::Strict;
use super::unread::Left;
use super::wire::{Phase, Pulse, Stream, Wire};
use super::worker::Worker;
use crate::address::Address;
use crate::limit::Slot;
use crate::proxy::{Body, Owed};
use crate::proxy_protocol;
use crate::tls::ACME_ALPN;
use hyper::body::Incoming;
use hyper::header::{ALT_SVC, CONNECTION, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncWriteExt, DuplexStream};
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

/// A client's connection, as those who answer its requests see it.
pub(crate) struct Client {
    pub(crate) peer: Address,
    pub(crate) scheme: Scheme,
    pub(crate) pulse: Arc<Pulse>,
    worker: Rc<Worker>,
    /// Nothing, where somebody else holds it.
    held: Option<Rc<Held>>,
}

/// What a connection counts for, as long as it lasts, or what became of it.
struct Held {
    /// Among all of the edge's.
    _taken: Taken,
    /// Among those of its address.
    _slot: Option<Slot>,
}

impl Client {
    pub(super) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// The connection goes on in another protocol, with a task and a place of its own.
    pub(crate) fn tunnel(&self, task: impl Future<Output = ()> + 'static) {
        self.pulse.set(Phase::Tunnel);
        let place = Place::take(&self.worker, &self.pulse);
        let held = self.held.clone();
        tokio::task::spawn_local(async move {
            let _held = held;
            let _ = place.until_cut(pin!(task)).await;
        });
    }
}

/// Bytes that are read ahead of a connection at most; a request's head has to fit as well.
const BUFFER_BYTES_MIN: usize = 16 << 10;
/// What the library reserves for fields unless told otherwise.
const USUAL_FIELDS_MAX: u16 = 100;

/// Streams of one connection of HTTP/2 at once.
const STREAMS_MAX: u32 = 128;
/// What a client may send ahead on one stream, and on all.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
/// What waits to be sent on one stream.
const STREAM_SEND_BYTES_MAX: usize = 64 << 10;
/// Streams that were reset and aren't yet forgotten: beyond it the connection ends (rapid reset, CVE-2023-44487).
const RESET_STREAMS_MAX: usize = 20;
/// Streams that the edge itself had to reset because of the client (CVE-2025-8671).
const LOCAL_RESETS_MAX: usize = 256;

/// Serves a connection until it ends.
pub(super) async fn serve(
    worker: Rc<Worker>,
    scheme: Scheme,
    mut stream: TcpStream,
    mut peer: SocketAddr,
    taken: Taken,
) {
    // Whoever has too many already isn't worth an answer. A trusted proxy's are many clients'.
    let shared = Arc::clone(&worker.shared);
    let is_proxy = shared.settings.edge.trusted_proxies.iter().any(|network| network.contains(peer.ip()));
    let slot = if is_proxy { Some(None) } else { shared.limits.connection(peer.ip()) };
    let Some(slot) = slot else { return };
    let pulse = Arc::new(Pulse::new(&stream));
    let place = Place::take(&worker, &pulse);
    if is_proxy && shared.settings.edge.proxy_protocol {
        match place.until_cut(pin!(proxy_protocol::read(&mut stream))).await {
            Some(Ok(client)) => peer = client.unwrap_or(peer),
            Some(Err(_)) | None => return,
        }
    }
    let peer = Address::from(peer.ip().to_canonical());
    let held = Some(Rc::new(Held { _taken: taken, _slot: slot }));
    let client = Rc::new(Client { peer, scheme, pulse, worker: Rc::clone(&worker), held });
    match scheme {
        Scheme::Http => serve_http1(&place, client, stream).await,
        Scheme::Https => {
            let Some(acceptor) = &worker.tls else { return };
            // Who speaks no TLS, or names no domain of ours, has been told so by the library.
            // In the heap: what a handshake or another protocol needs isn't kept by a connection that rests.
            let Some(Ok(stream)) = place.until_cut(Box::pin(acceptor.accept(Gather::new(stream)))).await else {
                return;
            };
            let mut stream = Box::new(stream);
            stream.get_mut().0.end_handshake();
            client.pulse.set(Phase::New);
            match stream.get_ref().1.alpn_protocol() {
                // The certificate was the answer to the challenge.
                Some(ACME_ALPN) => {}
                Some(b"h2") => Box::pin(serve_http2(&place, client, stream)).await,
                _ => serve_http1(&place, client, stream).await,
            }
        }
    }
}

/// Serves a client of HTTP/3 whose requests come over HTTP/2 from within the process.
pub(super) async fn serve_translated(worker: Rc<Worker>, peer: SocketAddr, stream: DuplexStream) {
    let pulse = Arc::new(Pulse::translated());
    let place = Place::take(&worker, &pulse);
    let peer = Address::from(peer.ip().to_canonical());
    let client = Rc::new(Client { peer, scheme: Scheme::Https, pulse, worker: Rc::clone(&worker), held: None });
    serve_http2(&place, client, stream).await;
}

async fn serve_http1<S: Stream>(place: &Place, client: Rc<Client>, stream: S) {
    let head_bytes_max = place.worker.limits().header_bytes_max as usize;
    let mut wire = Wire::new(stream, Arc::clone(&client.pulse), Some(Strict::new(head_bytes_max)));
    loop {
        let Some(resting) = Box::pin(speak_http1(place, &client, wire)).await else { return };
        wire = resting;
        if !place.until_asked(&mut wire).await {
            let _ = place.until_cut(pin!(wire.shutdown())).await;
            return;
        }
    }
}

/// Answers requests until the connection ends, or rests: what the library has for it, 16 KiB of buffers and more, is given up then.
async fn speak_http1<S: Stream>(place: &Place, client: &Rc<Client>, wire: Wire<S>) -> Option<Wire<S>> {
    let limits = place.worker.limits();
    let head_bytes_max = limits.header_bytes_max as usize;
    let mut builder = http1::Builder::new();
    builder.max_buf_size(head_bytes_max.max(BUFFER_BYTES_MIN)).max_header_size(head_bytes_max);
    if limits.header_fields_max != USUAL_FIELDS_MAX {
        builder.max_headers(usize::from(limits.header_fields_max));
    }
    let service = service_fn(|request| answer(client, request, None));
    // Whoever would begin where the last one ended could rest again at once, and for ever.
    client.pulse.may_have_rests(!wire.has_returned());
    let mut connection = builder.serve_connection(TokioIo::new(wire), service).with_upgrades();
    let shutdown = |it: Pin<&mut http1::UpgradeableConnection<_, _>>| it.graceful_shutdown();
    let turn = Draining { place, connection: &mut connection, told: false, http_1: true, shutdown }.await;
    let ended = match turn {
        Turn::Ended(Ok(())) => return None,
        Turn::Rests => {
            client.pulse.may_have_rests(false);
            let http1::Parts { io, read_buf, .. } = connection.into_parts()?;
            let mut wire = io.into_inner();
            wire.give_back(read_buf);
            return Some(wire);
        }
        Turn::Ended(Err(error)) => Some(error),
        Turn::Cut => None,
    };
    let parts = connection.into_parts()?;
    let mut wire = parts.io.into_inner();
    let (begun, refused) = wire.unread();
    Left { ended: ended.as_ref(), buffer: &parts.read_buf, begun, refused }.note(client);
    if ended.is_some() {
        // The library has answered what it couldn't read, and lets go of the connection at once.
        let _ = place.until_cut(pin!(wire.shutdown())).await;
    }
    None
}

async fn serve_http2<S: Stream>(place: &Place, client: Rc<Client>, stream: S) {
    let limits = &place.worker.shared.settings.edge.limits;
    let wire = Wire::new(stream, Arc::clone(&client.pulse), None);
    let streams = Streams { client, next: Rc::default() };
    let mut builder = http2::Builder::new(streams.clone());
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(STREAM_SEND_BYTES_MAX)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(LOCAL_RESETS_MAX)
        .max_header_list_size(limits.header_bytes_max);
    let service = service_fn(|request| answer(&streams.client, request, Some(streams.begin())));
    let connection = &mut builder.serve_connection(TokioIo::new(wire), service);
    let shutdown = |it: Pin<&mut http2::Connection<_, _, _>>| it.graceful_shutdown();
    let _ = Draining { place, connection, told: false, http_1: false, shutdown }.await;
}

fn answer(
    client: &Rc<Client>,
    request: Request<Incoming>,
    owed: Option<Rc<Owed>>,
) -> impl Future<Output = Result<Response<Body>, Infallible>> + use<> {
    let client = Rc::clone(client);
    async move {
        let worker = &client.worker;
        let http_1 = request.version() < Version::HTTP_2;
        let mut response = worker.proxy.answer(&client, request, owed).await;
        if client.scheme == Scheme::Https
            && let Some(alternative) = &worker.alternative
        {
            response.headers_mut().insert(ALT_SVC, alternative.clone());
        }
        if worker.draining.get() && http_1 && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

/// Tasks of a connection stay in its worker's thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

/// The streams of a client's connection of HTTP/2. The library resets one whose task is given up, and the others go on.
#[derive(Clone)]
struct Streams {
    client: Rc<Client>,
    /// Of the request that was just taken, until its task begins.
    next: Rc<Cell<Option<Rc<Owed>>>>,
}

impl Streams {
    /// A request has come. The library runs it next.
    fn begin(&self) -> Rc<Owed> {
        let worker = &self.client.worker;
        let owed = Rc::new(Owed::new(&worker.proxy.clock, worker.limits().body_timeout_ms));
        self.next.set(Some(Rc::clone(&owed)));
        owed
    }
}

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, task: F) {
        let task = tokio::task::spawn_local(task).abort_handle();
        if let Some(owed) = self.next.take() {
            owed.by(task, &self.client.pulse);
        }
    }
}

/// A connection's place among those of its worker, for as long as this lives.
struct Place {
    worker: Rc<Worker>,
    pulse: Arc<Pulse>,
    key: usize,
}

impl Place {
    fn take(worker: &Rc<Worker>, pulse: &Arc<Pulse>) -> Self {
        Self { worker: Rc::clone(worker), pulse: Arc::clone(pulse), key: worker.register(Arc::clone(pulse)) }
    }

    /// Notes which task is to be woken. True if the connection is to end at once.
    fn is_cut(&self, context: &Context<'_>) -> bool {
        self.worker.attend(self.key, context.waker())
    }

    /// What comes of this, unless the connection is cut before.
    async fn until_cut<F: Future + Unpin>(&self, mut future: F) -> Option<F::Output> {
        std::future::poll_fn(|context| match self.is_cut(context) {
            true => Poll::Ready(None),
            false => Pin::new(&mut future).poll(context).map(Some),
        })
        .await
    }

    /// Until a resting client sends something. False: it is to rest no longer.
    async fn until_asked<S: Stream>(&self, wire: &mut Wire<S>) -> bool {
        std::future::poll_fn(|context| {
            let drains = self.worker.draining.get() && !self.worker.is_farewell();
            if self.is_cut(context) || self.pulse.is_leaving() || drains {
                return Poll::Ready(false);
            }
            wire.poll_sent(context).map(|()| true)
        })
        .await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.worker.forget(self.key);
    }
}

/// How a connection goes on when nothing more is to be done for it now.
enum Turn<T> {
    Ended(T),
    /// It took too long.
    Cut,
    /// Nobody has asked for a while.
    Rests,
}

/// A connection that is told once when the worker drains, or when it takes its leave.
struct Draining<'a, C, F> {
    place: &'a Place,
    connection: &'a mut C,
    told: bool,
    /// It may rest. And when it is idle it isn't told at once: HTTP/1 has no way to say so but in an answer, and whoever
    /// asks just then would lose a request. HTTP/2 has one.
    http_1: bool,
    shutdown: F,
}

impl<C: Future + Unpin, F: Fn(Pin<&mut C>) + Unpin> Draining<'_, C, F> {
    fn tell(&mut self) {
        let worker = &self.place.worker;
        let quiet = matches!(self.place.pulse.phase(), Phase::New | Phase::Head | Phase::Idle);
        let drains = worker.draining.get() && !(self.http_1 && quiet && worker.is_farewell());
        if !self.told && (drains || self.place.pulse.is_leaving()) {
            self.told = true;
            (self.shutdown)(Pin::new(&mut *self.connection));
        }
    }
}

impl<C: Future + Unpin, F: Fn(Pin<&mut C>) + Unpin> Future for Draining<'_, C, F> {
    type Output = Turn<C::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if this.place.is_cut(context) {
            return Poll::Ready(Turn::Cut);
        }
        this.tell();
        if let Poll::Ready(ended) = Pin::new(&mut *this.connection).poll(context) {
            return Poll::Ready(Turn::Ended(ended));
        }
        // A request may just have come, whose answer is to say that it is the last one.
        this.tell();
        match this.http_1 && !this.told && this.place.pulse.may_rest(this.place.worker.proxy.clock.now_ms()) {
            true => Poll::Ready(Turn::Rests),
            false => Poll::Pending,
        }
    }
}
