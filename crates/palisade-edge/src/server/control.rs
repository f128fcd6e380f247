//! The control socket: orders from root, one JSON object a line; and the signals that mean the same.

use super::worker::Told;
use super::{Shared, StartError};
use palisade_core::edge::{Answer, CertificateSource, Order, Report, Upstreams};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, oneshot};

/// An order's length at most: thousands of instances.
const ORDER_BYTES_MAX: u64 = 4 << 20;

/// The socket, bound before any worker starts.
pub(super) struct Socket(StdListener);

impl Socket {
    /// Takes the place of a socket that a former process left.
    pub(super) fn bind(path: &Path) -> Result<Self, StartError> {
        let bound = || {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = StdListener::bind(path)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        bound().map(Self).map_err(|source| StartError::Control { path: path.to_owned(), source })
    }
}

/// Whoever gives orders talks to this.
struct Orders {
    shared: Arc<Shared>,
    workers: Vec<UnboundedSender<Told>>,
    drain: Notify,
    /// Where requests go to is known.
    told: AtomicBool,
}

/// Takes orders until every worker has ended.
pub(super) fn run(
    shared: &Arc<Shared>,
    socket: Socket,
    workers: Vec<UnboundedSender<Told>>,
    threads: Vec<JoinHandle<()>>,
) -> Result<(), StartError> {
    let path = shared.settings.control.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(StartError::Thread)?;
    let told = AtomicBool::new(shared.first_upstreams.is_some());
    let orders = Arc::new(Orders { shared: Arc::clone(shared), workers, drain: Notify::new(), told });
    let control = |source| StartError::Control { path: path.clone(), source };
    runtime.block_on(async {
        let listener = UnixListener::from_std(socket.0).map_err(control)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(control)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(control)?;
        let (mut ended, mut workers_left) = (ends(&orders.workers), threads.len());
        let mut draining = false;
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let orders = Arc::clone(&orders);
                        tokio::spawn(async move { orders.serve(stream).await });
                    }
                    // Out of descriptors: whoever waits is served when there are some.
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
                },
                _ = terminate.recv(), if !draining => orders.drain.notify_one(),
                _ = interrupt.recv(), if !draining => orders.drain.notify_one(),
                () = orders.drain.notified(), if !draining => {
                    draining = true;
                    for worker in &orders.workers {
                        let _ = worker.send(Told::Drain);
                    }
                }
                _ = ended.recv() => {
                    workers_left -= 1;
                    if workers_left == 0 {
                        break;
                    }
                    if !draining {
                        return Err(StartError::Worker);
                    }
                }
            }
        }
        Ok(())
    })?;
    let failed = threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count();
    // Another edge may have bound the path meanwhile only if ours is gone: it is removed by whoever comes next otherwise.
    let _ = std::fs::remove_file(&path);
    if failed > 0 { Err(StartError::Worker) } else { Ok(()) }
}

/// Tells of each worker that has ended: then nobody receives what it could be told any more.
fn ends(workers: &[UnboundedSender<Told>]) -> UnboundedReceiver<()> {
    let (tell, ended) = unbounded_channel();
    for worker in workers {
        let (worker, tell) = (worker.clone(), tell.clone());
        tokio::spawn(async move {
            worker.closed().await;
            let _ = tell.send(());
        });
    }
    ended
}

impl Orders {
    async fn serve(&self, stream: UnixStream) {
        // The socket's mode says the same; a descriptor that was passed on doesn't know of it.
        let allowed =
            stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw());
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader);
        loop {
            let mut line = String::new();
            match (&mut lines).take(ORDER_BYTES_MAX).read_line(&mut line).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let answer = match serde_json::from_str::<Order>(&line) {
                _ if !allowed => Answer::Refused("only root may give orders".to_owned()),
                Err(error) => Answer::Refused(format!("that is no order: {error}")),
                Ok(order) => self.obey(order).await,
            };
            let Ok(mut text) = serde_json::to_vec(&answer) else { return };
            text.push(b'\n');
            if writer.write_all(&text).await.is_err() || !allowed {
                return;
            }
        }
    }

    async fn obey(&self, order: Order) -> Answer {
        match order {
            Order::SetUpstreams(upstreams) => self.set_upstreams(upstreams).await,
            Order::ReloadCertificates => match &self.shared.certificates {
                // Files are read, which is nothing a worker waits for: this thread is none.
                Some(certificates) => match certificates.reload() {
                    Ok(()) => Answer::Done,
                    Err(error) => Answer::Refused(crate::chain(&error)),
                },
                None => Answer::Refused("nothing listens for TLS".to_owned()),
            },
            Order::Drain => {
                self.drain.notify_one();
                Answer::Done
            }
            Order::Report => self.report(true).await,
            Order::Look => self.report(false).await,
        }
    }

    async fn set_upstreams(&self, upstreams: Upstreams) -> Answer {
        let upstreams = Arc::new(upstreams);
        let mut answers = Vec::new();
        for worker in &self.workers {
            let (done, answer) = oneshot::channel();
            if worker.send(Told::SetUpstreams(Arc::clone(&upstreams), done)).is_ok() {
                answers.push(answer);
            }
        }
        for answer in answers {
            // A worker that has ended sends nothing anywhere.
            let _ = answer.await;
        }
        self.told.store(true, Ordering::Relaxed);
        Answer::Done
    }

    async fn report(&self, limits: bool) -> Answer {
        let mut report = Report::default();
        if let Some(certificates) = &self.shared.certificates {
            report.certificates = certificates.expiry();
        }
        for worker in &self.workers {
            let (sender, answer) = oneshot::channel();
            if worker.send(Told::Report(sender)).is_ok()
                && let Ok(part) = answer.await
            {
                report.connections += part.connections;
                for (class, count) in part.answered {
                    *report.answered.entry(class).or_default() += count;
                }
            }
        }
        (report.reset, report.starved) = self.shared.places.troubles();
        self.shared.limits.count(&mut report);
        if limits {
            let wall_s =
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
            self.shared.limits.name(&mut report, self.shared.now_ms(), wall_s);
        }
        report.certificates = self.shared.certificates.iter().flat_map(|held| held.expiry()).collect();
        report.missing = self.missing(&report);
        Answer::Report(Box::new(report))
    }

    /// What keeps the edge from serving as it should, in words for whoever waits for it.
    fn missing(&self, report: &Report) -> Vec<String> {
        let untold = (!self.told.load(Ordering::Relaxed)).then(|| "nobody has said where requests go to".to_owned());
        let sources = self.shared.certificates.iter().flat_map(|_| &self.shared.settings.edge.certificates);
        // One that is ordered can come only once the edge answers for it.
        let unserved = sources.filter(|(domain, source)| {
            **source != CertificateSource::Acme && !report.certificates.contains_key(*domain)
        });
        untold.into_iter().chain(unserved.map(|(domain, _)| format!("{domain} has no valid certificate"))).collect()
    }
}
