//! One worker: a thread with its own listeners, connections, upstream pool and counters. It shares nothing that needs a lock.

use super::Shared;
use super::connection::{self, Scheme};
use super::listen::Listeners;
use super::places::Taken;
use super::wire::Pulse;
use crate::http3::{self, Listening};
use crate::proxy::Proxy;
use hyper::header::HeaderValue;
use palisade_core::edge::{ConnectionLimits, Report, Upstreams};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, oneshot};

/// What a worker is told by the thread that takes orders.
pub(crate) enum Told {
    SetUpstreams(Arc<Upstreams>, oneshot::Sender<()>),
    Drain,
    Report(oneshot::Sender<Report>),
}

/// A worker's own state. Everything in it belongs to one thread.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) proxy: Proxy,
    pub(super) tls: Option<tokio_rustls::TlsAcceptor>,
    /// Connections of clients, those that were upgraded included.
    connections: RefCell<Slab<Served>>,
    /// Where HTTP/3 is spoken, for clients of the other versions.
    pub(super) alternative: Option<HeaderValue>,
    pub(super) draining: Cell<bool>,
    /// When that began, by the worker's clock.
    draining_ms: Cell<u64>,
    drain: Notify,
    /// Connections of QUIC, which outlast what is translated of them by their last words.
    kept: Cell<usize>,
    /// The last connection of a draining worker has ended.
    ended: Notify,
}

/// A connection, and the task that serves it.
struct Served {
    pulse: Arc<Pulse>,
    task: Option<Waker>,
}

/// So long after a drain began, clients of HTTP/1 may ask once more: the answer says that the connection ends.
const FAREWELL_MS: u64 = 3_000;
/// How long accepting rests when the process or the host has no descriptor left.
const REST_MS: u64 = 50;

/// The thread's whole life.
pub(super) fn run(shared: Arc<Shared>, listeners: Listeners, quic: Option<Listening>, told: UnboundedReceiver<Told>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default()) {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("palisade-edge: a worker can't start: {error}");
            return;
        }
    };
    runtime.block_on(work(shared, listeners, quic, told));
}

async fn work(shared: Arc<Shared>, listeners: Listeners, quic: Option<Listening>, mut told: UnboundedReceiver<Told>) {
    let protocols: [&[u8]; 2] = [b"h2", b"http/1.1"];
    let tls = shared.certificates.as_ref().map(|it| tokio_rustls::TlsAcceptor::from(it.server_config(&protocols)));
    let edge = &shared.settings.edge;
    let worker = Rc::new(Worker {
        alternative: edge.http3.then(|| http3::alternative(edge.https_port)),
        proxy: Proxy::new(&shared),
        shared,
        tls,
        connections: RefCell::new(Slab::new()),
        draining: Cell::new(false),
        draining_ms: Cell::new(0),
        drain: Notify::new(),
        kept: Cell::new(0),
        ended: Notify::new(),
    });
    if let Some(upstreams) = &worker.shared.first_upstreams {
        worker.proxy.set_upstreams(upstreams);
    }
    let mut accepting = Vec::new();
    for (scheme, listener) in listeners {
        match TcpListener::from_std(listener) {
            Ok(listener) => accepting.push(tokio::task::spawn_local(accept(Rc::clone(&worker), scheme, listener))),
            Err(error) => eprintln!("palisade-edge: a worker can't listen: {error}"),
        }
    }
    if let Some(quic) = quic {
        quic.serve(&worker);
    }
    let mut tick = tokio::time::interval(Duration::from_millis(crate::proxy::TICK_MS));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => worker.sweep(),
            order = told.recv() => match order {
                Some(Told::SetUpstreams(upstreams, done)) => {
                    worker.proxy.set_upstreams(&upstreams);
                    let _ = done.send(());
                }
                Some(Told::Report(answer)) => {
                    let _ = answer.send(worker.report());
                }
                Some(Told::Drain) | None => {
                    if !worker.draining.replace(true) {
                        worker.draining_ms.set(worker.proxy.clock.now_ms());
                        worker.drain.notify_waiters();
                        // What waits to be accepted is served: each listener ends when there is none left.
                        for task in accepting.drain(..) {
                            let _ = task.await;
                        }
                        worker.wake_all();
                        if worker.is_over() {
                            return;
                        }
                    }
                }
            },
            () = worker.ended.notified() => return,
        }
    }
}

impl Worker {
    pub(crate) fn limits(&self) -> &ConnectionLimits {
        &self.shared.settings.edge.limits
    }

    /// Until no new connection is to be taken.
    pub(crate) async fn until_draining(&self) {
        let drain = self.drain.notified();
        if !self.draining.get() {
            drain.await;
        }
    }

    /// Serves a client of HTTP/3 whose requests come over HTTP/2 from within the process.
    pub(crate) fn serve_translated(
        self: &Rc<Self>,
        peer: SocketAddr,
        stream: DuplexStream,
    ) -> impl Future<Output = ()> + use<> {
        connection::serve_translated(Rc::clone(self), peer, stream)
    }

    fn report(&self) -> Report {
        Report {
            connections: self.connections.borrow().len() as u64,
            answered: self.proxy.answered(),
            ..Report::default()
        }
    }

    /// The drain has just begun, so quiet connections may still be told in an answer.
    pub(super) fn is_farewell(&self) -> bool {
        self.proxy.clock.now_ms() < self.draining_ms.get() + FAREWELL_MS
    }

    fn wake_all(&self) {
        for (_, served) in self.connections.borrow().iter() {
            if let Some(task) = &served.task {
                task.wake_by_ref();
            }
        }
    }

    /// Ends what takes too long.
    fn sweep(&self) {
        let farewell = self.is_farewell();
        self.proxy.sweep();
        if self.draining.get() && farewell && !self.is_farewell() {
            self.wake_all();
        }
        let limits = &self.shared.settings.edge.limits;
        for (_, served) in self.connections.borrow().iter() {
            if served.pulse.look(&self.proxy.clock, limits)
                && let Some(task) = &served.task
            {
                task.wake_by_ref();
            }
        }
    }

    /// A connection is there.
    pub(super) fn register(&self, pulse: Arc<Pulse>) -> usize {
        self.connections.borrow_mut().insert(Served { pulse, task: None })
    }

    /// This task serves it. True if it is to end at once.
    pub(super) fn attend(&self, key: usize, task: &Waker) -> bool {
        let mut connections = self.connections.borrow_mut();
        let Some(served) = connections.get_mut(key) else { return true };
        if served.task.is_none() {
            // A connection stays with its task.
            served.task = Some(task.clone());
        }
        served.pulse.is_cut()
    }

    /// It has ended.
    pub(super) fn forget(&self, key: usize) {
        self.connections.borrow_mut().remove(key);
        if self.draining.get() && self.is_over() {
            self.ended.notify_one();
        }
    }

    fn is_over(&self) -> bool {
        self.connections.borrow().is_empty() && self.kept.get() == 0
    }

    /// A place for a connection that has come. `None`: it is to be sent away.
    pub(crate) fn place(&self) -> Option<Taken> {
        self.shared.places.take(self.shared.now_ms())
    }

    /// The worker stays at least as long as this.
    pub(crate) fn keep(self: &Rc<Self>) -> Kept {
        self.kept.set(self.kept.get() + 1);
        Kept(Rc::clone(self))
    }
}

/// Keeps a worker from ending.
pub(crate) struct Kept(Rc<Worker>);

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.kept.set(self.0.kept.get() - 1);
        if self.0.draining.get() && self.0.is_over() {
            self.0.ended.notify_one();
        }
    }
}

async fn accept(worker: Rc<Worker>, scheme: Scheme, listener: TcpListener) {
    let drain = worker.drain.notified();
    tokio::pin!(drain);
    loop {
        tokio::select! {
            accepted = listener.accept() => if !admit(&worker, scheme, accepted).await { return },
            () = &mut drain => break,
        }
    }
    // A connection that the kernel has already answered for would be reset with the listener.
    while let Ok(Ok(accepted)) = tokio::time::timeout(Duration::ZERO, listener.accept()).await {
        admit(&worker, scheme, Ok(accepted)).await;
    }
}

/// False when the listener is of no use any more.
async fn admit(worker: &Rc<Worker>, scheme: Scheme, accepted: std::io::Result<(TcpStream, SocketAddr)>) -> bool {
    match accepted {
        Ok((stream, peer)) => {
            // Now, not when its task runs: many may come before.
            let Some(taken) = worker.place() else {
                // Who waits in the kernel's queue would wait for nothing.
                let _ = stream.set_zero_linger();
                return true;
            };
            tokio::task::spawn_local(connection::serve(Rc::clone(worker), scheme, stream, peer, taken));
        }
        Err(error) => match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                worker.shared.places.starve(worker.shared.now_ms(), &error);
                tokio::time::sleep(Duration::from_millis(REST_MS)).await;
            }
            Some(libc::EBADF | libc::EINVAL | libc::ENOTSOCK) => {
                eprintln!("palisade-edge: can't accept connections: {error}");
                return false;
            }
            // The client has gone already.
            _ => {}
        },
    }
    true
}
