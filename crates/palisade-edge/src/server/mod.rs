//! The process: its listeners, one thread for each worker, and the thread that takes orders.
//!
//! What becomes of a request is decided in `proxy`.

mod connection;
mod control;
mod gather;
mod listen;
mod places;
mod strict;
mod unread;
mod wire;
mod worker;

pub(crate) use connection::{Client, LocalExecutor, Scheme};
pub(crate) use places::Taken;
pub(crate) use wire::Pulse;
pub(crate) use worker::Worker;

use crate::access_log::Log;
use crate::error_pages::ErrorPages;
use crate::http3;
use crate::limit::Limits;
use crate::tls::{Certificates, TlsError};
use palisade_core::edge::{Answer, Order, Settings, Upstreams};
use places::Places;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Why the edge can't start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("can't read the settings in {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the settings in {path} are not the edge's")]
    Settings { path: PathBuf, source: serde_json::Error },
    #[error("can't listen on {address}")]
    Listen { address: std::net::SocketAddr, source: std::io::Error },
    #[error("can't take orders at {path}")]
    Control { path: PathBuf, source: std::io::Error },
    #[error("can't serve TLS")]
    Tls(#[source] TlsError),
    #[error("can't serve HTTP/3")]
    Http3(#[source] quinn::crypto::rustls::NoInitialCipherSuite),
    #[error("can't start a thread")]
    Thread(#[source] std::io::Error),
    #[error("a worker failed")]
    Worker,
}

/// What all threads share; nothing in here changes but what guards itself.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    /// `None` if nothing listens for TLS.
    pub(crate) certificates: Option<Arc<Certificates>>,
    /// Who answers until the first order says it, if that was left for us.
    pub(crate) first_upstreams: Option<Upstreams>,
    pub(crate) limits: Limits,
    pub(crate) places: Arc<Places>,
    pub(crate) log: Option<Arc<Log>>,
    pub(crate) pages: ErrorPages,
    start: Instant,
}

impl Shared {
    /// Milliseconds since the edge began.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What the edge at this control socket is still missing.
pub(crate) fn missing(control: &Path) -> std::io::Result<Vec<String>> {
    use std::io::{BufRead, BufReader, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(control)?;
    stream.write_all(&[serde_json::to_vec(&Order::Look)?, b"\n".to_vec()].concat())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    match serde_json::from_str(&line)? {
        Answer::Report(report) => Ok(report.missing),
        Answer::Refused(why) => Err(std::io::Error::other(why)),
        Answer::Done => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

/// What was left for us. Without it requests can't be passed on until somebody says where.
fn first_upstreams(path: &Path) -> Option<Upstreams> {
    let read = || -> std::io::Result<Upstreams> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    read().map_err(|error| eprintln!("palisade-edge: can't read who answers in {}: {error}", path.display())).ok()
}

/// Runs until drained.
pub(crate) fn run(path: &Path) -> Result<(), StartError> {
    let text = std::fs::read(path).map_err(|source| StartError::Read { path: path.to_owned(), source })?;
    let settings: Settings =
        serde_json::from_slice(&text).map_err(|source| StartError::Settings { path: path.to_owned(), source })?;
    listen::raise_descriptor_limit();
    let certificates = match settings.https.is_empty() {
        true => None,
        false => Some(Certificates::open(&settings).map_err(StartError::Tls)?),
    };
    for problem in certificates.iter().flat_map(|certificates| certificates.problems()) {
        eprintln!("palisade-edge: {problem}");
    }
    let workers = match settings.workers {
        0 => std::thread::available_parallelism().map_or(1, |count| count.get()),
        count => usize::from(count),
    };
    let mut listeners = listen::bind_all(&settings, workers)?;
    let edge = &settings.edge;
    let mut quic = match certificates.as_ref().filter(|_| edge.http3) {
        Some(certificates) => {
            Some(http3::prepare(&settings.https, certificates, &edge.limits).map_err(StartError::Http3)?)
        }
        None => None,
    };
    let limits = Limits::new(edge);
    let places = Places::new(edge.limits.connections);
    let (pages, problems) = ErrorPages::load(edge.error_pages.as_deref());
    for problem in problems {
        eprintln!("palisade-edge: {problem}");
    }
    let log = match (edge.access_log, &settings.access_log) {
        (Some(how), Some(path)) => {
            let say = |text| eprintln!("palisade-edge: {text}");
            Some(Arc::new(Log::start(path, how, say).map_err(StartError::Thread)?))
        }
        _ => None,
    };
    let orders = control::Socket::bind(&settings.control)?;
    // After the socket is there: who is told something else from now on is told to us as well.
    let first_upstreams = settings.upstreams.as_deref().and_then(first_upstreams);
    let start = Instant::now();
    let shared = Arc::new(Shared { settings, certificates, first_upstreams, limits, places, log, pages, start });

    let mut told = Vec::new();
    let mut threads = Vec::new();
    for number in 0..workers {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        told.push(sender);
        let shared = Arc::clone(&shared);
        let listeners = std::mem::take(&mut listeners[number]);
        let quic = quic.take();
        let thread = std::thread::Builder::new()
            .name(format!("edge-{number}"))
            .spawn(move || worker::run(shared, listeners, quic, receiver))
            .map_err(StartError::Thread)?;
        threads.push(thread);
    }
    control::run(&shared, orders, told, threads)
}
