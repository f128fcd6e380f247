//! The instances that answer for an upstream, and this worker's connections to them.

use super::clock::Clock;
use super::h2c;
use super::http1::Connection;
use palisade_core::edge::UpstreamInstance;
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

/// Connections that are kept although nothing is asked on them, for each instance.
const IDLE_MAX: usize = 128;
/// An idle connection is closed after this: before servers with the shortest usual limit (five seconds) do so.
const IDLE_MS: u64 = 4_000;
/// What can't be asked twice is asked only on a connection that was used this lately, or on a new one.
const FRESH_MS: u64 = 1_000;
/// Until a connection must be there, if there is so much time.
const CONNECT_MS: u64 = 5_000;
/// An instance that can't be connected to isn't tried for this long, then for twice as long, up to the last.
const AVOID_MS: u64 = 500;
const AVOID_MS_MAX: u64 = 8_000;

/// Connections of HTTP/2 to an instance, and requests on each before another one is opened.
const SHARED_MAX: usize = 8;
const STREAMS_MAX: usize = 100;

/// The instances of one upstream.
#[derive(Debug)]
pub(super) struct Group {
    clock: Rc<Clock>,
    instances: RefCell<Vec<Rc<Instance>>>,
    /// Where the next choice among equals begins.
    turn: Cell<usize>,
}

/// One instance, as this worker sees it.
#[derive(Debug)]
pub(super) struct Instance {
    clock: Rc<Clock>,
    address: SocketAddr,
    /// Requests on their way.
    active: Cell<u32>,
    /// Latest used last.
    idle: RefCell<Vec<(u64, Connection)>>,
    /// It was taken out of the set: what is on its way ends, nothing is kept.
    gone: Cell<bool>,
    avoid_until_ms: Cell<u64>,
    avoid_ms: Cell<u64>,
    /// Connections of HTTP/2, and the requests on each.
    shared: RefCell<Vec<(h2c::Sender, Rc<Cell<usize>>)>>,
    opening: Opening,
}

/// A connection of HTTP/2 that is being opened: whoever comes meanwhile waits for it instead of opening one more.
#[derive(Debug, Default)]
struct Opening {
    begun: Cell<bool>,
    over: Notify,
    /// How often it failed, and how it did last.
    failures: Cell<u64>,
    failure: Cell<Option<io::ErrorKind>>,
}

impl Opening {
    /// As long as the result lives.
    fn begin(&self) -> Begun<'_> {
        self.begun.set(true);
        Begun(self)
    }

    fn failed(&self, error: &io::Error) {
        self.failures.set(self.failures.get() + 1);
        self.failure.set(Some(error.kind()));
    }

    /// Until it is over, one way or the other.
    async fn wait(&self) -> io::Result<()> {
        let failures = self.failures.get();
        self.over.notified().await;
        match self.failure.get() {
            Some(kind) if self.failures.get() != failures => Err(kind.into()),
            _ => Ok(()),
        }
    }
}

struct Begun<'a>(&'a Opening);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.begun.set(false);
        self.0.over.notify_waiters();
    }
}

impl Group {
    pub(super) fn new(clock: Rc<Clock>) -> Self {
        Self { clock, instances: RefCell::default(), turn: Cell::new(0) }
    }

    /// Instances that stay keep their connections.
    pub(super) fn set(&self, wanted: &[UpstreamInstance]) {
        let mut instances = self.instances.borrow_mut();
        let mut next = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            match instances.iter().position(|instance| instance.address == wanted.address) {
                Some(place) => next.push(instances.swap_remove(place)),
                None => next.push(Rc::new(Instance::new(Rc::clone(&self.clock), wanted.address))),
            }
        }
        for instance in std::mem::replace(&mut *instances, next) {
            instance.gone.set(true);
            instance.idle.borrow_mut().clear();
            instance.shared.borrow_mut().clear();
        }
    }

    /// The one with the fewest requests on their way that wasn't tried; one that is avoided only if there is no other.
    pub(super) fn pick(&self, tried: &[Rc<Instance>]) -> Option<Rc<Instance>> {
        let instances = self.instances.borrow();
        let count = instances.len();
        let now = self.clock.now_ms();
        let begin = self.turn.get();
        self.turn.set(begin.wrapping_add(1));
        (0..count)
            .map(|step| &instances[begin.wrapping_add(step) % count])
            .filter(|instance| !tried.iter().any(|tried| Rc::ptr_eq(tried, instance)))
            .min_by_key(|instance| (instance.avoid_until_ms.get() > now, instance.active.get()))
            .cloned()
    }

    /// How many there are besides those that were tried; at least one.
    pub(super) fn untried(&self, tried: &[Rc<Instance>]) -> u64 {
        let count = self.instances.borrow().len().saturating_sub(tried.len());
        u64::try_from(count).unwrap_or(u64::MAX).max(1)
    }

    /// Closes what nobody has used for long, or the other side has closed.
    pub(super) fn prune(&self) {
        let now = self.clock.now_ms();
        for instance in self.instances.borrow().iter() {
            instance
                .idle
                .borrow_mut()
                .retain_mut(|(since, connection)| *since + IDLE_MS > now && connection.is_quiet());
        }
    }
}

impl Instance {
    fn new(clock: Rc<Clock>, address: SocketAddr) -> Self {
        Self {
            clock,
            address,
            active: Cell::new(0),
            idle: RefCell::default(),
            gone: Cell::new(false),
            avoid_until_ms: Cell::new(0),
            avoid_ms: Cell::new(0),
            shared: RefCell::default(),
            opening: Opening::default(),
        }
    }

    /// A request is on its way as long as what this returns lives.
    pub(super) fn take(self: &Rc<Self>) -> Active {
        self.active.set(self.active.get() + 1);
        Active(Rc::clone(self))
    }

    /// A connection, and whether it was used before. What isn't `repeatable` gets none that may have been closed meanwhile.
    ///
    /// # Errors
    /// Nothing was sent.
    pub(super) async fn connect(&self, repeatable: bool, within_ms: u64) -> io::Result<(Connection, bool)> {
        let now = self.clock.now_ms();
        let kept_ms = if repeatable { IDLE_MS } else { FRESH_MS };
        loop {
            let Some((since, mut connection)) = self.idle.borrow_mut().pop() else { break };
            if since + kept_ms <= now {
                // Those below it are older.
                if since + IDLE_MS > now {
                    self.idle.borrow_mut().push((since, connection));
                } else {
                    self.idle.borrow_mut().clear();
                }
                break;
            }
            if connection.is_quiet() {
                return Ok((connection, true));
            }
        }
        self.open(within_ms).await.map(|stream| (Connection::new(stream), false))
    }

    async fn open(&self, within_ms: u64) -> io::Result<TcpStream> {
        let within = Duration::from_millis(within_ms.min(CONNECT_MS));
        let connected = match timeout(within, TcpStream::connect(self.address)).await {
            Ok(connected) => connected,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        match connected {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                self.avoid_ms.set(0);
                self.avoid_until_ms.set(0);
                Ok(stream)
            }
            Err(error) => {
                self.failed(&error);
                Err(error)
            }
        }
    }

    /// Room for a request of HTTP/2, on a connection that is there if one has it; and whether it was.
    ///
    /// # Errors
    /// Nothing was sent.
    pub(super) async fn stream(&self, within_ms: u64) -> io::Result<(Stream, bool)> {
        if let Some(stream) = self.shared_stream() {
            return Ok((stream, true));
        }
        let until = Instant::now() + Duration::from_millis(within_ms.min(CONNECT_MS));
        while self.opening.begun.get() && !self.gone.get() {
            timeout_at(until, self.opening.wait()).await.map_err(|_| io::ErrorKind::TimedOut)??;
            if let Some(stream) = self.shared_stream() {
                return Ok((stream, false));
            }
        }
        let _begun = self.opening.begin();
        let opened = self.open_shared(within_ms).await.inspect_err(|error| self.opening.failed(error));
        opened.map(|stream| (stream, false))
    }

    async fn open_shared(&self, within_ms: u64) -> io::Result<Stream> {
        let sender = h2c::handshake(self.open(within_ms).await?).await.map_err(io::Error::other)?;
        let requests = Rc::new(Cell::new(0));
        if !self.gone.get() {
            self.shared.borrow_mut().push((sender.clone(), Rc::clone(&requests)));
        }
        Ok(Stream::new(sender, requests))
    }

    fn shared_stream(&self) -> Option<Stream> {
        let mut shared = self.shared.borrow_mut();
        shared.retain(|(sender, _)| !sender.is_closed());
        let full = shared.len() >= SHARED_MAX;
        let (sender, requests) = shared.iter().min_by_key(|(_, requests)| requests.get())?;
        (full || requests.get() < STREAMS_MAX).then(|| Stream::new(sender.clone(), Rc::clone(requests)))
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// It couldn't be connected to.
    fn failed(&self, error: &io::Error) {
        // The edge's own want of descriptors is no fault of the instance.
        if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::EADDRNOTAVAIL)) {
            return;
        }
        let avoid = (self.avoid_ms.get() * 2).clamp(AVOID_MS, AVOID_MS_MAX);
        self.avoid_ms.set(avoid);
        self.avoid_until_ms.set(self.clock.now_ms() + avoid);
    }
}

/// Room for one request on a connection of HTTP/2.
#[derive(Debug)]
pub(super) struct Stream {
    sender: h2c::Sender,
    requests: Rc<Cell<usize>>,
}

impl Stream {
    fn new(sender: h2c::Sender, requests: Rc<Cell<usize>>) -> Self {
        requests.set(requests.get() + 1);
        Self { sender, requests }
    }

    pub(super) fn sender(&mut self) -> &mut h2c::Sender {
        &mut self.sender
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.requests.set(self.requests.get() - 1);
    }
}

/// A request on its way to an instance.
#[derive(Debug)]
pub(super) struct Active(Rc<Instance>);

impl Active {
    /// The request is answered and the connection of use for another one.
    pub(super) fn keep(&self, connection: Connection) {
        let instance = &self.0;
        let mut idle = instance.idle.borrow_mut();
        if !instance.gone.get() && idle.len() < IDLE_MAX {
            idle.push((instance.clock.now_ms(), connection));
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get() - 1);
    }
}
