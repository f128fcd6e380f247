//! One worker: a thread with its own listeners, connections, upstream pool and counters. It shares nothing that needs a lock.

use super::Shared;
use super::connection::{self, Scheme};
use super::listen::Listeners;
use crate::http3::Listening;
use crate::proxy::Proxy;
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
    /// Connections of clients, those that were upgraded included; each with the task that serves it.
    pub(super) connections: RefCell<Slab<Option<Waker>>>,
    pub(super) draining: Cell<bool>,
    drain: Notify,
    /// The last connection of a draining worker has ended.
    pub(super) ended: Notify,
}

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
    let worker = Rc::new(Worker {
        proxy: Proxy::new(&shared.settings),
        shared,
        tls,
        connections: RefCell::new(Slab::new()),
        draining: Cell::new(false),
        drain: Notify::new(),
        ended: Notify::new(),
    });
    let mut accepting = Vec::new();
    for (scheme, listener) in listeners {
        match TcpListener::from_std(listener) {
            Ok(listener) => accepting.push(tokio::task::spawn_local(accept(Rc::clone(&worker), scheme, listener))),
            Err(error) => eprintln!("palisade-edge: a worker can't listen: {error}"),
        }
    }
    if let Some(Err(error)) = quic.map(|quic| quic.serve(&worker)) {
        eprintln!("palisade-edge: HTTP/3 can't be served: {error}");
    }
    let mut tick = tokio::time::interval(Duration::from_millis(crate::proxy::TICK_MS));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => worker.proxy.sweep(),
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
                        worker.drain.notify_waiters();
                        // What waits to be accepted is served: each listener ends when there is none left.
                        for task in accepting.drain(..) {
                            let _ = task.await;
                        }
                        worker.wake_all();
                        if worker.connections.borrow().is_empty() {
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

    fn wake_all(&self) {
        for (_, waker) in self.connections.borrow_mut().iter_mut() {
            if let Some(waker) = waker.take() {
                waker.wake();
            }
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
            let _ = stream.set_nodelay(true);
            tokio::task::spawn_local(connection::serve(Rc::clone(worker), scheme, stream, peer));
        }
        Err(error) => match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
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
