//! One thread for each instance: starts it, waits for its end, checks its health, starts it again, stops it.
//!
//! The thread is the only one that changes the instance. Others put orders into its queue and read its status; no lock
//! is held while something takes time. The rules that it follows are in [`super::rules`]; here are the handle, the
//! queue and the clock, and what a worker does is in the modules below.

mod health;
mod hooks;
mod life;
mod others;

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};
use serde_json::json;

use palisade_core::causes::chain;
use palisade_core::instance::{Health, Hosts, InstanceSpec, InstanceStatus, RunState};
use palisade_core::names::InstanceId;

use self::hooks::Moment;
use super::events::EventSink;
use super::rules::{HealthState, Restarts};
use crate::cgroup::{self, Cgroup};
use crate::hosts_file;
use crate::layout::Layout;
use crate::runtime::{self, Exit, Found, Running};

/// What a service gets after its stop signal when its `pre_stop` used up the grace period.
const AFTER_PRE_STOP: Duration = Duration::from_secs(2);
/// Between attempts to start a container while its engine is away.
const ENGINE_PAUSE: Duration = Duration::from_secs(1);
/// After SIGKILL, what is left must be gone within this time.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// The answer to an order.
type Reply = Sender<Result<(), String>>;

enum Order {
    Start(Box<InstanceSpec>, Reply),
    Stop(Reply),
    SetHosts(Hosts, Reply),
    Forget,
    Checked {
        run: u64,
        passed: bool,
        output: String,
    },
    /// The hooks of a moment are through; an error says which one failed, and with which exit code.
    Hooked {
        run: u64,
        moment: Moment,
        result: Result<(), (String, i32)>,
    },
}

/// What outlives an agent: kept as `status.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Saved {
    status: InstanceStatus,
    stopped_by_user: bool,
}

/// The handle that other threads have.
#[derive(Clone)]
pub(super) struct Supervised(Arc<Shared>);

struct Shared {
    queue: Mutex<VecDeque<Order>>,
    wake: EventFd,
    status: Mutex<InstanceStatus>,
    spec: Mutex<InstanceSpec>,
}

/// What stays the same for all instances.
#[derive(Clone)]
pub(super) struct Surroundings {
    pub(super) layout: Layout,
    pub(super) exe: PathBuf,
    pub(super) events: EventSink,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked left a whole value: statuses and queues are replaced or pushed to in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Supervised {
    /// Begins to supervise an instance that doesn't run; it is started by an order.
    pub(super) fn begin(surroundings: Surroundings, spec: InstanceSpec) -> Result<Self, String> {
        Self::spawn(surroundings, spec, None)
    }

    /// Takes over an instance that an earlier agent started, whether it still runs or has ended since.
    pub(super) fn adopt(surroundings: Surroundings, spec: InstanceSpec) -> Result<Self, String> {
        let path = surroundings.layout.instance(&spec.id).join("status.json");
        Cgroup::of(&surroundings.layout, &spec).map_err(|error| chain(&error))?.close_gate();
        let saved = runtime::read_json::<Saved>(&path).map_err(|error| chain(&error))?;
        let found = runtime::find(&surroundings.layout, &spec.id).map_err(|error| chain(&error))?;
        Self::spawn(surroundings, spec, Some((saved, found)))
    }

    fn spawn(
        surroundings: Surroundings,
        spec: InstanceSpec,
        before: Option<(Option<Saved>, Option<Found>)>,
    ) -> Result<Self, String> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let wake = wake.map_err(|error| format!("cannot make an eventfd: {error}"))?;
        let fresh = InstanceStatus {
            id: spec.id.clone(),
            address: spec.address,
            spec_digest: spec.fingerprint().digest,
            state: RunState::Starting,
            health: Health::None,
            pid: None,
            restarts: 0,
            started_at_s: now_s(),
            health_output: None,
            hook_failure: None,
            stopped: false,
        };
        // Whoever asks before the worker has looked is told what the former agent knew.
        let known = before.as_ref().and_then(|(saved, _)| Some(saved.as_ref()?.status.clone()));
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake,
            status: Mutex::new(known.unwrap_or(fresh)),
            spec: Mutex::new(spec.clone()),
        });
        let handle = Self(shared.clone());
        let name = spec.id.to_string();
        let mut worker = Worker {
            surroundings,
            shared,
            spec,
            running: None,
            run: 0,
            started: Instant::now(),
            restarts: Restarts::default(),
            restart_at: None,
            stopping: None,
            stopped_by_user: false,
            health: HealthState::new(Health::None),
            check_at: None,
            last_code: 0,
            by_user: false,
            hook_failure: None,
            told_away: None,
            shipping: None,
            events: None,
            look: None,
        };
        let work = move || {
            if let Some((saved, found)) = before {
                worker.adopt(saved, found);
            }
            worker.work();
        };
        std::thread::Builder::new()
            .name(name)
            .spawn(work)
            .map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(handle)
    }

    fn order(&self, order: Order) {
        lock(&self.0.queue).push_back(order);
        // It can only fail when 2^64 wakes are pending.
        let _ = self.0.wake.write(1);
    }

    fn order_and_wait(&self, order: impl FnOnce(Reply) -> Order) -> Result<(), String> {
        let (reply, answer) = mpsc::channel();
        self.order(order(reply));
        answer.recv().unwrap_or_else(|_| Err("the instance was removed meanwhile".into()))
    }

    pub(super) fn status(&self) -> InstanceStatus {
        lock(&self.0.status).clone()
    }
    pub(super) fn spec(&self) -> InstanceSpec {
        lock(&self.0.spec).clone()
    }
    pub(super) fn start(&self, spec: InstanceSpec) -> Result<(), String> {
        self.order_and_wait(|reply| Order::Start(Box::new(spec), reply))
    }
    pub(super) fn stop(&self) -> Result<(), String> {
        self.order_and_wait(Order::Stop)
    }
    pub(super) fn set_hosts(&self, hosts: Hosts) -> Result<Hosts, String> {
        let old = self.spec().hosts;
        self.order_and_wait(|reply| Order::SetHosts(hosts, reply)).map(|()| old)
    }
    /// Ends the thread; the instance should be stopped by then.
    pub(super) fn forget(&self) {
        self.order(Order::Forget);
    }
}

struct Stopping {
    deadline: Instant,
    /// The stop signal was sent; before, `pre_stop` is running.
    signalled: bool,
    killed: bool,
    replies: Vec<Reply>,
}

struct Worker {
    surroundings: Surroundings,
    shared: Arc<Shared>,
    spec: InstanceSpec,
    running: Option<Running>,
    /// Counts starts, so that the result of a check of an earlier run is told apart.
    run: u64,
    started: Instant,
    restarts: Restarts,
    restart_at: Option<Instant>,
    stopping: Option<Stopping>,
    stopped_by_user: bool,
    health: HealthState,
    check_at: Option<Instant>,
    last_code: i32,
    /// Started by an order, and not again after it exited.
    by_user: bool,
    /// Why it is being stopped, and the exit code that this counts as.
    hook_failure: Option<(String, i32)>,
    /// That the engine is away was told at this count of restarts.
    told_away: Option<u32>,
    /// Brings what its container prints into the log.
    shipping: Option<std::thread::JoinHandle<()>>,
    /// Tells that somebody else starts the container while it doesn't run.
    events: Option<cgroup::Events>,
    /// When the engine is asked whether it runs, and until when.
    look: Option<(Instant, Instant)>,
}

impl Worker {
    fn id(&self) -> &InstanceId {
        &self.spec.id
    }
    fn layout(&self) -> &Layout {
        &self.surroundings.layout
    }
    fn exe(&self) -> &Path {
        &self.surroundings.exe
    }
    fn event(&self, kind: &str, details: serde_json::Value) {
        self.surroundings.events.append(kind, Some(self.id()), details);
    }

    /// Changes the status, for those who ask and for the next agent.
    fn publish(&self, change: impl FnOnce(&mut InstanceStatus)) {
        let status = {
            let mut status = lock(&self.shared.status);
            change(&mut status);
            status.health = self.health.health;
            status.restarts = self.restarts.count;
            status.stopped = self.stopped_by_user;
            status.pid = self.running.as_ref().map(|running| running.process().pid);
            status.clone()
        };
        let path = self.layout().instance(self.id()).join("status.json");
        let saved = Saved { status, stopped_by_user: self.stopped_by_user };
        if let Err(error) = runtime::write_private(&path, &saved) {
            eprintln!("{}: {}", self.id(), chain(&error));
        }
    }

    fn work(mut self) {
        loop {
            self.watch_for_others();
            let stopping = self.stopping.as_ref().map(|stopping| stopping.deadline);
            let deadlines = [self.restart_at, self.check_at, stopping, self.look.map(|(at, _)| at)];
            let timeout = match deadlines.into_iter().flatten().min() {
                // Rounded up, or the last millisecond would be spent spinning.
                Some(at) => {
                    let left_ms = at.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
                    PollTimeout::try_from(left_ms).unwrap_or(PollTimeout::MAX)
                }
                None => PollTimeout::NONE,
            };
            let happened = {
                let mut polled = vec![PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN)];
                if let Some(running) = &self.running {
                    polled.push(PollFd::new(running.pidfd(), PollFlags::POLLIN));
                } else if let Some(events) = &self.events {
                    polled.push(PollFd::new(events.as_fd(), PollFlags::POLLPRI));
                }
                let _ = poll(&mut polled, timeout);
                polled.get(1).is_some_and(|other| other.any().unwrap_or(false))
            };
            let _ = self.shared.wake.read();
            match (happened, &self.running) {
                (true, Some(_)) => self.ended(),
                (true, None) => self.look_soon(),
                (false, _) => {}
            }
            loop {
                let order = lock(&self.shared.queue).pop_front();
                match order {
                    Some(Order::Forget) => return,
                    Some(order) => self.obey(order),
                    None => break,
                }
            }
            self.look_at_the_clock();
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Start(spec, reply) => {
                let answer = self.start_by_user(*spec);
                let _ = reply.send(answer);
            }
            Order::Stop(reply) => self.stop_by_user(reply),
            Order::SetHosts(hosts, reply) => {
                let answer = self.set_hosts(hosts);
                let _ = reply.send(answer);
            }
            Order::Checked { run, passed, output } => self.checked(run, passed, output),
            Order::Hooked { run, moment, result } => self.hooked(run, moment, result),
            Order::Forget => {}
        }
    }

    fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        if self.restart_at.is_some_and(|at| at <= now) {
            self.restart_at = None;
            self.by_user = false;
            match self.start() {
                Ok(()) => {}
                // Nothing is wrong with the instance: it is started as soon as somebody is there to do it.
                Err(error) if error.is_engine_away() => {
                    if self.told_away != Some(self.restarts.count) {
                        self.told_away = Some(self.restarts.count);
                        self.event("start_failed", json!({ "error": chain(&error) }));
                    }
                    self.restart_at = Some(Instant::now() + ENGINE_PAUSE);
                    self.publish(|status| status.state = RunState::BackingOff);
                }
                Err(error) => {
                    self.event("start_failed", json!({ "error": chain(&error) }));
                    self.exited(Exit { code: 127, ended_at_s: now_s() });
                }
            }
        }
        if self.check_at.is_some_and(|at| at <= now) {
            self.check_at = None;
            self.check();
        }
        if self.look.is_some_and(|(at, _)| at <= now) {
            self.look_for_others(now);
        }
        if let Some(stopping) = &mut self.stopping
            && stopping.deadline <= now
        {
            if !stopping.signalled {
                stopping.deadline = now + AFTER_PRE_STOP;
                self.event("hook_failed", json!({ "hook": "pre_stop", "error": "it used up the grace period" }));
                self.send_stop_signal();
            } else if stopping.killed {
                let message = format!("{} is still there {} s after SIGKILL", self.spec.id, KILL_WAIT.as_secs());
                for reply in self.stopping.take().into_iter().flat_map(|stopping| stopping.replies) {
                    let _ = reply.send(Err(message.clone()));
                }
            } else {
                stopping.killed = true;
                stopping.deadline = now + KILL_WAIT;
                if let Some(running) = &self.running {
                    let _ = running.signal(libc::SIGKILL);
                }
            }
        }
    }

    fn set_hosts(&mut self, hosts: Hosts) -> Result<(), String> {
        self.spec.hosts = hosts;
        *lock(&self.shared.spec) = self.spec.clone();
        let path = self.layout().instance(self.id()).join("spec.json");
        runtime::write_private(&path, &self.spec).map_err(|error| chain(&error))?;
        let digest = self.spec.fingerprint().digest;
        self.publish(|status| status.spec_digest = digest);
        match &self.running {
            Some(running) => {
                let pid = running.process().pid;
                hosts_file::replace(self.layout(), self.id(), pid, &self.spec.hosts).map_err(|error| chain(&error))
            }
            None => Ok(()),
        }
    }
}
