//! One thread for each instance: starts it, waits for its end, checks its health, starts it again, stops it.
//!
//! The thread is the only one that changes the instance. Others put orders into its queue and read its status; no lock
//! is held while something takes time. The rules that it follows are in [`super::rules`].

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
use palisade_core::instance::{Health, Hosts, InstanceSpec, InstanceStatus, Program, RunState};
use palisade_core::names::InstanceId;
use palisade_core::stack::{HealthTest, Hook};

use super::events::EventSink;
use super::rules::{HealthState, Restarts};
use super::ship::ship;
use crate::cgroup::{self, Cgroup};
use crate::edge;
use crate::hosts_file;
use crate::layout::Layout;
use crate::runtime::{self, EnterOptions, Exit, Found, Inside, Running};

/// What a health check printed is kept up to this.
const HEALTH_OUTPUT_BYTES_MAX: usize = 4096;
/// What one hook printed goes into the log up to this.
const HOOK_OUTPUT_BYTES_MAX: usize = 64 << 10;
/// A hook has no time limit of its own, as in Compose.
const HOOK_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);
/// What a service gets after its stop signal when its `pre_stop` used up the grace period.
const AFTER_PRE_STOP: Duration = Duration::from_secs(2);
/// Between attempts to start a container while its engine is away.
const ENGINE_PAUSE: Duration = Duration::from_secs(1);
/// When somebody has come into the cgroup of a container that doesn't run, its engine says so within this time.
const STARTED_BY_OTHERS_WAIT: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile.
const STARTED_BY_OTHERS_PAUSE: Duration = Duration::from_millis(200);
/// What a container printed is in the log within this time after its end.
const LAST_WORDS: Duration = Duration::from_secs(2);
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

/// When hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    PostStart,
    PreStop,
}

impl Moment {
    fn name(self) -> &'static str {
        match self {
            Moment::PostStart => "post_start",
            Moment::PreStop => "pre_stop",
        }
    }
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

    /// A container that shall not run may be started all the same, by `docker start` or `docker restart`: it comes up in
    /// its guarded cgroup, and has to be known. While one is to be started here, nobody else is waited for.
    fn watch_for_others(&mut self) {
        let waits = self.running.is_none() && self.restart_at.is_none() && self.stopping.is_none();
        if !waits || self.spec.program.container().is_none() {
            (self.events, self.look) = (None, None);
        } else if self.events.is_none() {
            self.events = Cgroup::of(self.layout(), &self.spec).and_then(|cgroup| cgroup.events()).ok();
            self.look_soon();
        }
    }

    /// Something has changed in the cgroup.
    fn look_soon(&mut self) {
        let populated = self.events.as_ref().is_some_and(cgroup::Events::is_populated);
        let now = Instant::now();
        self.look = populated.then_some((now, now + STARTED_BY_OTHERS_WAIT));
    }

    /// The engine says that a container runs a little after its process is there.
    fn look_for_others(&mut self, now: Instant) {
        let Some((_, until)) = self.look.take() else { return };
        match runtime::find_started_by_others(self.layout(), &self.spec) {
            Ok(Some(running)) => self.started_by_others(running),
            Ok(None) | Err(_) if now < until => self.look = Some((now + STARTED_BY_OTHERS_PAUSE, until)),
            Ok(None) => {}
            Err(error) => eprintln!("{}: {}", self.id(), chain(&error)),
        }
    }

    fn started_by_others(&mut self, running: Running) {
        self.run += 1;
        self.started = Instant::now();
        self.stopped_by_user = false;
        self.hook_failure = None;
        self.health = HealthState::new(if self.spec.healthcheck.is_some() { Health::Starting } else { Health::None });
        self.check_at = self.spec.healthcheck.as_ref().map(|check| self.started + HealthState::first_check(check));
        self.event("started", json!({ "pid": running.process().pid, "by": "somebody else, at the engine" }));
        self.publish(|status| {
            status.started_at_s = now_s();
            status.health_output = None;
            status.hook_failure = None;
        });
        self.runs(running);
    }

    fn start_by_user(&mut self, spec: InstanceSpec) -> Result<(), String> {
        if self.running.is_some() {
            return if spec.fingerprint() == self.spec.fingerprint() && self.stopping.is_none() {
                Ok(())
            } else {
                Err(format!("{} runs with another specification: stop it first", spec.id))
            };
        }
        self.spec = spec;
        *lock(&self.shared.spec) = self.spec.clone();
        self.stopped_by_user = false;
        self.restart_at = None;
        self.restarts = Restarts::default();
        self.by_user = true;
        let (digest, address) = (self.spec.fingerprint().digest, self.spec.address);
        self.publish(|status| {
            status.spec_digest = digest;
            status.address = address;
        });
        self.start().map_err(|error| {
            // What can't even be executed is a mistake to be told, not one to be tried again.
            let message = chain(&error);
            self.event("start_failed", json!({ "error": message }));
            self.publish(|status| status.state = RunState::Exited { code: 127 });
            message
        })
    }

    fn start(&mut self) -> Result<(), runtime::Error> {
        self.run += 1;
        self.started = Instant::now();
        self.health = HealthState::new(if self.spec.healthcheck.is_some() { Health::Starting } else { Health::None });
        self.check_at = None;
        self.publish(|status| {
            status.state = RunState::Starting;
            status.started_at_s = now_s();
            status.health_output = None;
            status.hook_failure = None;
        });
        self.hook_failure = None;
        match runtime::start(self.layout(), &self.spec, self.exe()) {
            Ok(Found::Running(running)) => {
                self.event("started", json!({ "pid": running.process().pid }));
                self.runs(running);
                self.check_at =
                    self.spec.healthcheck.as_ref().map(|check| self.started + HealthState::first_check(check));
                Ok(())
            }
            Ok(Found::Ended(exit)) => {
                if let Program::Container(program) = &self.spec.program {
                    // What it printed before anybody followed is what says why.
                    ship(self.layout(), &self.spec, program, None);
                }
                self.exited(exit.unwrap_or(Exit { code: 128 + libc::SIGKILL, ended_at_s: now_s() }));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// It runs; it counts as started when its `post_start` is through.
    fn runs(&mut self, running: Running) {
        self.ship_output(&running);
        self.running = Some(running);
        if self.spec.settings.post_start.is_empty() {
            self.publish(|status| status.state = RunState::Running);
        } else {
            self.publish(|status| status.state = RunState::Starting);
            self.hook(Moment::PostStart);
        }
    }

    /// A process writes its log itself; what a container prints is with its engine.
    fn ship_output(&mut self, running: &Running) {
        let Program::Container(program) = self.spec.program.clone() else { return };
        let Ok(running) = running.try_clone() else { return };
        let (layout, spec) = (self.layout().clone(), self.spec.clone());
        let work = move || ship(&layout, &spec, &program, Some(&running));
        match std::thread::Builder::new().name("log".into()).spawn(work) {
            Ok(thread) => self.shipping = Some(thread),
            Err(error) => eprintln!("{}: cannot start a thread for its log: {error}", self.id()),
        }
    }

    /// Whoever learns that it has ended finds its last words in the log, unless its engine is too slow.
    fn await_last_words(&mut self) {
        let deadline = Instant::now() + LAST_WORDS;
        while self.shipping.as_ref().is_some_and(|thread| !thread.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.shipping = None;
    }

    fn adopt(&mut self, saved: Option<Saved>, found: Option<Found>) {
        if let Some(saved) = &saved {
            self.restarts = Restarts::continued(saved.status.restarts);
            self.stopped_by_user = saved.stopped_by_user;
            let ran_s = now_s().saturating_sub(saved.status.started_at_s);
            self.started = Instant::now().checked_sub(Duration::from_secs(ran_s)).unwrap_or_else(Instant::now);
            *lock(&self.shared.status) = saved.status.clone();
            if let RunState::Exited { code } = saved.status.state {
                self.last_code = code;
            }
        }
        match found {
            Some(Found::Running(running)) => {
                let known = saved.as_ref().map(|saved| saved.status.health);
                self.health = match (&self.spec.healthcheck, known) {
                    (None, _) => HealthState::new(Health::None),
                    (Some(_), Some(health @ (Health::Healthy | Health::Unhealthy))) => HealthState::new(health),
                    (Some(_), _) => HealthState::new(Health::Starting),
                };
                self.check_at = self.spec.healthcheck.as_ref().map(|_| Instant::now());
                if saved.as_ref().is_some_and(|saved| saved.status.state == RunState::Starting) {
                    // Whether its hooks got through isn't known: they run once more.
                    self.runs(running);
                } else {
                    self.ship_output(&running);
                    self.running = Some(running);
                    self.publish(|status| status.state = RunState::Running);
                }
                if self.stopped_by_user {
                    // The agent that was told to stop it died before it was done.
                    self.begin_to_stop(None);
                }
            }
            Some(Found::Ended(exit)) => {
                let stays =
                    matches!(saved, Some(Saved { status: InstanceStatus { state: RunState::Exited { .. }, .. }, .. }));
                if !stays {
                    self.exited(exit.unwrap_or(Exit { code: 128 + libc::SIGKILL, ended_at_s: now_s() }));
                }
            }
            None => self.publish(|status| status.state = RunState::Exited { code: 0 }),
        }
    }

    /// The init process is gone.
    fn ended(&mut self) {
        let before = self.running.as_ref().map(Running::process);
        let found = runtime::find(self.layout(), self.id());
        let exit = match found {
            Ok(Some(Found::Ended(Some(exit)))) => exit,
            // Killed as a whole, by us or for want of memory.
            _ => Exit { code: 128 + libc::SIGKILL, ended_at_s: now_s() },
        };
        // After `docker restart` there is another one by now.
        if !matches!(found, Ok(Some(Found::Ended(Some(_)))))
            && self.stopping.is_none()
            && let Ok(Some(running)) = runtime::find_started_by_others(self.layout(), &self.spec)
            && Some(running.process()) != before
        {
            self.await_last_words();
            return self.started_by_others(running);
        }
        self.await_last_words();
        self.exited(exit);
    }

    fn exited(&mut self, mut exit: Exit) {
        self.running = None;
        let hook_failure = self.hook_failure.take();
        if let Some((_, code)) = &hook_failure {
            // How it reacted to the stop signal says nothing: that it was sent is a failure.
            exit.code = *code;
        }
        let told = hook_failure.map(|(message, _)| message);
        if told.is_some() {
            self.publish(|status| status.hook_failure = told.clone());
        }
        let ordered = self.stopped_by_user || (self.stopping.is_some() && (told.is_none() || self.by_user));
        self.check_at = None;
        self.last_code = exit.code;
        // A health check may be on its way inside. What an engine has in there is its own to end: it still writes down
        // how the container ended.
        let leftovers = Cgroup::of(self.layout(), &self.spec).and_then(|cgroup| match self.spec.program {
            Program::Process(_) => cgroup.kill(),
            Program::Container(_) => Ok(()),
        });
        if let Err(error) = leftovers {
            eprintln!("{}: {}", self.id(), chain(&error));
        }
        self.event("exited", json!({ "code": exit.code }));
        let next =
            if ordered { None } else { self.restarts.next(self.spec.restart, exit.code, self.started.elapsed()) };
        self.health = HealthState::new(if self.spec.healthcheck.is_some() { Health::Starting } else { Health::None });
        match next {
            Some(pause) => {
                self.event("restarting", json!({ "in_ms": pause.as_millis() as u64 }));
                self.restart_at = Some(Instant::now() + pause);
                self.publish(|status| status.state = RunState::BackingOff);
            }
            None => self.publish(|status| status.state = RunState::Exited { code: exit.code }),
        }
        for reply in self.stopping.take().into_iter().flat_map(|stopping| stopping.replies) {
            let _ = reply.send(Ok(()));
        }
    }

    fn stop_by_user(&mut self, reply: Reply) {
        self.stopped_by_user = true;
        if let Some(stopping) = &mut self.stopping {
            stopping.replies.push(reply);
            return;
        }
        if self.running.is_some() {
            // Noted before the signal: an agent that comes after us must know that it shall end.
            self.publish(|_| {});
            return self.begin_to_stop(Some(reply));
        }
        if self.restart_at.take().is_some() {
            let code = self.last_code;
            self.publish(|status| status.state = RunState::Exited { code });
        } else {
            self.publish(|_| {});
        }
        let _ = reply.send(Ok(()));
    }

    fn begin_to_stop(&mut self, reply: Option<Reply>) {
        let deadline = Instant::now() + Duration::from_millis(self.spec.stop_grace_ms);
        let replies = reply.into_iter().collect();
        self.stopping = Some(Stopping { deadline, signalled: false, killed: false, replies });
        if self.spec.settings.pre_stop.is_empty() || self.hook_failure.is_some() {
            self.send_stop_signal();
        } else {
            self.hook(Moment::PreStop);
        }
    }

    fn send_stop_signal(&mut self) {
        self.event("stopping", json!({ "signal": self.spec.stop_signal }));
        let signal = runtime::signal_number(&self.spec.stop_signal).unwrap_or(libc::SIGTERM);
        if let Some(running) = &self.running {
            let _ = running.signal(signal);
        }
        if let Some(stopping) = &mut self.stopping {
            stopping.signalled = true;
        }
    }

    /// Runs the hooks of a moment, one after the other, on a thread of its own; the result comes back as an order.
    fn hook(&self, moment: Moment) {
        let (run, supervised) = (self.run, Supervised(self.shared.clone()));
        let (hooks, timeout) = match moment {
            Moment::PostStart => (self.spec.settings.post_start.clone(), HOOK_TIMEOUT),
            Moment::PreStop => {
                (self.spec.settings.pre_stop.clone(), Duration::from_millis(self.spec.stop_grace_ms) + AFTER_PRE_STOP)
            }
        };
        let running = self.running.as_ref().map(Running::try_clone);
        let Some(Ok(running)) = running else {
            let result = Err(("its process can't be reached".to_owned(), 1));
            return supervised.order(Order::Hooked { run, moment, result });
        };
        let (surroundings, spec) = (self.surroundings.clone(), self.spec.clone());
        let work = move || {
            let result = run_hooks(&surroundings, &spec, &running, moment, &hooks, timeout);
            supervised.order(Order::Hooked { run, moment, result });
        };
        if let Err(error) = std::thread::Builder::new().name("hook".into()).spawn(work) {
            let result = Err((format!("cannot start a thread: {error}"), 1));
            Supervised(self.shared.clone()).order(Order::Hooked { run, moment, result });
        }
    }

    fn hooked(&mut self, run: u64, moment: Moment, result: Result<(), (String, i32)>) {
        if run != self.run || self.running.is_none() {
            return;
        }
        if let Err((message, code)) = &result {
            self.event("hook_failed", json!({ "hook": moment.name(), "error": message, "code": code }));
        }
        match (moment, result) {
            (Moment::PreStop, _) => {
                // A hook that failed is told, and no reason to go on running.
                if self.stopping.as_ref().is_some_and(|stopping| !stopping.signalled) {
                    self.send_stop_signal();
                }
            }
            (Moment::PostStart, Ok(())) => self.publish(|status| status.state = RunState::Running),
            (Moment::PostStart, Err(failure)) if self.stopping.is_none() => {
                self.hook_failure = Some(failure);
                self.begin_to_stop(None);
            }
            (Moment::PostStart, Err(_)) => {}
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

    /// Runs the health check on a thread of its own; its result comes back as an order.
    fn check(&self) {
        let (Some(check), Some(running)) = (&self.spec.healthcheck, &self.running) else { return };
        let inside = match &check.test {
            HealthTest::Command(line) => Inside::Command(line.clone()),
            HealthTest::Shell(script) => Inside::Command(vec!["/bin/sh".into(), "-c".into(), script.clone()]),
            HealthTest::Own(arguments) => Inside::Same(arguments.clone()),
        };
        let timeout = Duration::from_millis(check.timeout_ms);
        let options = EnterOptions { timeout, output_bytes_max: HEALTH_OUTPUT_BYTES_MAX, as_root: false };
        let (surroundings, spec, run) = (self.surroundings.clone(), self.spec.clone(), self.run);
        let supervised = Supervised(self.shared.clone());
        let Ok(running) = running.try_clone() else { return };
        let asks = edge::asks_itself(&spec);
        let work = move || {
            let Surroundings { layout, exe, .. } = &surroundings;
            if asks {
                // It answers the agent over its socket: no process has to be started for that.
                let (passed, output) = edge::health(layout, spec.id.number, timeout);
                return supervised.order(Order::Checked { run, passed, output });
            }
            let result = runtime::enter(layout, &spec, &running, exe, inside, options);
            let (passed, output) = match result {
                Ok(result) => {
                    let text = String::from_utf8_lossy(&result.output).into_owned();
                    match result.code {
                        Some(0) => (true, text),
                        Some(code) => {
                            (false, if text.is_empty() { format!("it exited with code {code}") } else { text })
                        }
                        None => (false, format!("it took longer than {} ms\n{text}", timeout.as_millis())),
                    }
                }
                Err(error) => (false, chain(&error)),
            };
            supervised.order(Order::Checked { run, passed, output });
        };
        let failed = std::thread::Builder::new().name("health check".into()).spawn(work).err();
        if let Some(error) = failed {
            let output = format!("cannot start a thread: {error}");
            Supervised(self.shared.clone()).order(Order::Checked { run, passed: false, output });
        }
    }

    fn checked(&mut self, run: u64, passed: bool, output: String) {
        if run != self.run || self.running.is_none() {
            return;
        }
        let Some(check) = self.spec.healthcheck.clone() else { return };
        let (before, since_start) = (self.health.health, self.started.elapsed());
        self.health.took(&check, passed, since_start);
        self.check_at = Some(Instant::now() + self.health.pause(&check, since_start));
        let now = self.health.health;
        if now != before {
            self.event("health", json!({ "from": before, "to": now, "output": if passed { "" } else { &output } }));
        }
        self.publish(|status| {
            if !passed {
                status.health_output = Some(output);
            } else {
                status.health_output = None;
            }
        });
    }
}

/// Runs hooks until one fails; says which, by its number and program (arguments may be secrets), and its exit code.
fn run_hooks(
    surroundings: &Surroundings,
    spec: &InstanceSpec,
    running: &Running,
    moment: Moment,
    hooks: &[Hook],
    timeout: Duration,
) -> Result<(), (String, i32)> {
    let Surroundings { layout, exe, .. } = surroundings;
    let deadline = Instant::now() + timeout;
    for (number, hook) in (1..).zip(hooks) {
        let mut spec = spec.clone();
        let (user, working_dir) = match &mut spec.program {
            Program::Process(process) => (&mut process.user, &mut process.working_dir),
            Program::Container(container) => (&mut container.settings.user, &mut container.settings.working_dir),
        };
        if hook.user.is_some() {
            user.clone_from(&hook.user);
        }
        if hook.working_dir.is_some() {
            working_dir.clone_from(&hook.working_dir);
        }
        spec.environment.extend(hook.environment.iter().map(|(name, value)| (name.clone(), value.clone())));
        let timeout = deadline.saturating_duration_since(Instant::now());
        let options = EnterOptions { timeout, output_bytes_max: HOOK_OUTPUT_BYTES_MAX, as_root: false };
        let program = hook.command.first().map_or("", String::as_str);
        let failed =
            |how: String, code| Err((format!("its {} hook {number} (`{program}`) {how}", moment.name()), code));
        match runtime::enter(layout, &spec, running, exe, Inside::Command(hook.command.clone()), options) {
            Ok(result) => {
                if let Err(error) = runtime::logs::append(&layout.log(&spec.id), &result.output) {
                    eprintln!("{}: cannot log what a hook printed: {error}", spec.id);
                }
                match result.code {
                    Some(0) => {}
                    Some(code) => return failed(format!("exited with {code}"), code),
                    None => return failed("took too long".to_owned(), 1),
                }
            }
            Err(error) => return failed(format!("can't be run: {}", chain(&error)), 1),
        }
    }
    Ok(())
}
