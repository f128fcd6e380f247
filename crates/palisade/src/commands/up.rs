//! `up`: makes the host as the file says, or leaves it as it was.

use palisade_core::action::Action;
#[cfg(debug_assertions)]
use palisade_core::apply::Progress;
use palisade_core::apply::apply;
use palisade_core::edge::WORKER_NAME;
use palisade_core::finding::Severity;
use palisade_core::generation::{self, Origin};
use palisade_core::image::{FetchWishes, PullPolicy};
use palisade_core::instance::InstanceSpec;
use palisade_core::lint::lint;
use palisade_core::lockout::Confirm;
use palisade_core::names::ServiceName;
use palisade_core::observed::{EngineState, ImageSeen, Observed};
use palisade_core::plan::{self, Wishes};
use palisade_core::policy::Mode;
use palisade_core::stack::{Stack, Volume};
use palisade_core::verify::verify;
use palisade_host::layout::Layout;
use palisade_host::{program, volumes};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::cli::{Pull, StackArgs, UpArgs};
use crate::exit::{Answer, Failure};
use crate::host::Adapters;
use crate::progress::Lines;
use crate::state::{Lock, LockError, State, read_json};
use crate::{confirmation, edge, generations, load, observe, signals};

/// What is to be brought up, and how.
pub(crate) struct Goal<'a> {
    /// The stack.
    pub(crate) stack: &'a Stack,
    /// What the guard does about a breach.
    pub(crate) mode: Mode,
    /// Wait for the health of everything that is started.
    pub(crate) wait: bool,
    /// Which images are fetched.
    pub(crate) fetch: FetchWishes,
    /// Only these services are started or replaced.
    pub(crate) only: Option<BTreeSet<ServiceName>>,
    /// Replace instances also when nothing changed.
    pub(crate) recreate: bool,
    /// Make everything and start nothing.
    pub(crate) no_start: bool,
    /// Images that names stand for whatever they stand for by now.
    pub(crate) images: BTreeMap<String, ImageSeen>,
    /// When a change of the firewall has to be confirmed; `None`: as the file says.
    pub(crate) confirm: Option<Confirm>,
    /// What makes the generation.
    pub(crate) origin: Origin,
}

impl<'a> Goal<'a> {
    /// All of a stack.
    pub(crate) fn of(stack: &'a Stack, mode: Mode) -> Self {
        Self {
            stack,
            mode,
            wait: false,
            fetch: FetchWishes::default(),
            only: None,
            recreate: false,
            no_start: false,
            images: BTreeMap::new(),
            confirm: None,
            origin: Origin::Up,
        }
    }

    /// The host, as far as it matters for this.
    pub(crate) fn observe(&self, layout: &Layout) -> Observed {
        let mut host = observe::observe_for(layout, self.stack);
        if let EngineState::There(engine) = &mut host.engine {
            engine.images.extend(self.images.clone());
        }
        host
    }

    /// What is planned.
    pub(crate) fn wishes<'w>(&'w self, volume_path: &'w dyn Fn(&str, &Volume) -> PathBuf) -> Wishes<'w> {
        Wishes {
            fetch: None,
            only: self.only.as_ref(),
            recreate: self.recreate,
            confirm: self.confirm,
            back: matches!(self.origin, Origin::Rollback { .. }),
            ..super::wishes(self.mode, self.wait, volume_path)
        }
    }
}

/// Plans, carries out, and verifies.
pub(crate) fn run(args: &StackArgs, up: &UpArgs) -> Result<Answer, Failure> {
    let loaded = load::load_to_start(args).map_err(load::Unusable::into_failure)?;
    loaded.print_warnings();
    let asked = super::services_of(&loaded.stack, &up.services)?;
    super::require_machine("up")?;
    let layout = args.layout(loaded.stack.project.clone());
    let mode = if up.learn { Mode::Learn } else { Mode::Enforce };
    signals::catch();
    // Before it is read what the others are: nobody changes that from here on.
    let _lock = super::lock(&layout, "up")?;
    let mut stack = loaded.stack;
    let mut only = None;
    if !asked.is_empty() {
        let state = State::read(&layout).map_err(|error| Failure::new("can't read what was applied before", error))?;
        let chosen = generation::with_dependencies(&stack, &asked, up.no_deps);
        stack = generation::partly(&stack, state.stack.as_ref(), &chosen);
        only = Some(chosen);
    }
    let pull = up.pull.map(|pull| match pull {
        Pull::Always => PullPolicy::Always,
        Pull::Missing => PullPolicy::Missing,
        Pull::Never => PullPolicy::Never,
    });
    let goal = Goal {
        wait: up.wait,
        fetch: FetchWishes { pull, build: up.build },
        only,
        recreate: up.force_recreate,
        no_start: up.no_start,
        confirm: match up.confirm_within {
            Some(within_ms) => Some(Confirm::Always { within_ms }),
            None => up.no_confirm.then_some(Confirm::Never),
        },
        ..Goal::of(&stack, mode)
    };
    bring_up_locked(&layout, &goal)
}

/// What `up` does once it knows the stack: also what a rehearsal does, in its own realm.
pub(crate) fn bring_up(layout: &Layout, goal: &Goal<'_>) -> Result<Answer, Failure> {
    let _lock = super::lock(layout, "up")?;
    bring_up_locked(layout, goal)
}

/// The same for a caller that has the lock.
fn bring_up_locked(layout: &Layout, goal: &Goal<'_>) -> Result<Answer, Failure> {
    confirmation::require_none(layout, "up")?;
    let state = State::read(layout).map_err(|error| Failure::new("can't read what was applied before", error))?;
    let was_there = state != State::default();
    let mut adapters = Adapters::new(layout.clone(), state);
    match change(layout, goal, &mut adapters) {
        Ok(()) if goal.no_start => Ok(Answer::Yes),
        Ok(()) => report(layout, goal),
        Err(End { failure, anything_left }) => {
            if !was_there && !anything_left {
                // The failure is what matters; an empty folder that stays is not worth a word.
                let _ = adapters.clean_up();
            }
            Err(failure)
        }
    }
}

/// An `up` that came to nothing.
struct End {
    failure: Failure,
    /// Something that was done could not be undone.
    anything_left: bool,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self { failure, anything_left: false }
    }
}

fn change(layout: &Layout, goal: &Goal<'_>, adapters: &mut Adapters) -> Result<(), End> {
    let stack = goal.stack;
    adapters.with_edge(stack.edge.as_ref());
    fetch_images(layout, goal, adapters)?;
    // Two stacks that come up at the same time must not take the same addresses.
    let realm_lock = Lock::take(&layout.realm_run().join("lock")).map_err(|error| match error {
        LockError::State(error) => Failure::new("can't lock the addresses of this host", error),
        LockError::Held(_) => Failure::plain("can't lock the addresses of this host"),
    })?;
    let before = goal.observe(layout);
    let volume_path = |key: &str, volume: &_| volumes::folder(layout, key, volume);
    let mut plan =
        plan::plan(stack, &before, goal.wishes(&volume_path)).map_err(|findings| super::refused(&findings))?;
    if goal.no_start {
        plan.start_nothing();
    }
    super::require_safe(&lint(&plan, &before))?;
    if plan.is_empty() {
        eprintln!("{}: nothing to change", stack.project);
    } else {
        adapters
            .remember(|state| state.addresses = plan.addresses.clone())
            .map_err(|error| Failure::new("can't note the addresses", error))?;
        drop(realm_lock);
        let mut lines = Lines::new();
        let done = apply(&plan, adapters, &signals::interrupted, &mut |progress| {
            #[cfg(debug_assertions)]
            cut_off(&progress);
            lines.show(progress);
        });
        if let Err(failure) = done {
            let anything_left = !failure.left.is_empty();
            if !anything_left {
                // Addresses of services that were not there before may be given to others again. If that can't be
                // noted, they stay reserved.
                let _ = adapters.remember(|state| state.addresses = before.addresses.clone());
            }
            return Err(End { failure: super::failed(&stack.project, "up", failure), anything_left });
        }
    }
    tidy_programs(layout);
    adapters.renew_for_boot();
    let noted = adapters.remember(|state| state.stack = Some(stack.clone()));
    noted.map_err(|error| End {
        failure: Failure::new("everything runs, but it can't be noted", error),
        anything_left: true,
    })?;
    if goal.no_start || goal.mode == Mode::Learn {
        // What was never meant to run, or to stay, is nothing to go back to.
        return Ok(());
    }
    generations::record(layout, stack, &goal.observe(layout), goal.origin).map(drop).map_err(|error| End {
        failure: Failure::new("everything runs, but it can't be kept as a generation", error),
        anything_left: true,
    })
}

/// Removes versions of this program that nothing of the stack runs any more.
fn tidy_programs(layout: &Layout) {
    let folders = std::fs::read_dir(layout.run().join("instances")).into_iter().flatten().flatten();
    let specs = folders.filter_map(|entry| read_json::<InstanceSpec>(&entry.path().join("spec.json")).ok()?);
    let used: Vec<String> = specs.filter_map(|spec| Some(spec.own_program?.digest)).collect();
    program::tidy(layout, &used);
}

/// For tests of what a killed `up` leaves: ends this process before the step with the number in PALISADE_TEST_CUT, or
/// before the first step that undoes something when that is `undo`. No release has this.
#[cfg(debug_assertions)]
fn cut_off<E>(progress: &Progress<'_, E>) {
    let Ok(at) = std::env::var("PALISADE_TEST_CUT") else { return };
    let here = match progress {
        Progress::Begins { number, .. } => at.parse() == Ok(*number),
        Progress::Undoes { .. } => at == "undo",
        _ => false,
    };
    if here {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Brings the images here before anything is changed, so that the rest of the plan knows what is in them. What could be
/// said against the plan is said before that.
fn fetch_images(layout: &Layout, goal: &Goal<'_>, adapters: &mut Adapters) -> Result<(), End> {
    let stack = goal.stack;
    if !stack.needs_engine() {
        return Ok(());
    }
    let host = goal.observe(layout);
    adapters.with_engine(&host.engine);
    let volume_path = |key: &str, volume: &_| volumes::folder(layout, key, volume);
    let wishes = Wishes { fetch: Some(goal.fetch), ..goal.wishes(&volume_path) };
    let mut plan = plan::plan(stack, &host, wishes).map_err(|findings| super::refused(&findings))?;
    let chosen = |service: &ServiceName| goal.only.as_ref().is_none_or(|only| only.contains(service));
    plan.steps.retain(|step| matches!(&step.action, Action::FetchImage { service, .. } if chosen(service)));
    let mut lines = Lines::new();
    apply(&plan, adapters, &signals::interrupted, &mut |progress| lines.show(progress))
        .map_err(|failure| super::failed(&stack.project, "up", failure).into())
}

/// Reads the host afresh and says what isn't as the file says.
fn report(layout: &Layout, goal: &Goal<'_>) -> Result<Answer, Failure> {
    let host = goal.observe(layout);
    let (stack, compiled) = super::compiled(layout, goal.stack, &host, goal.mode)
        .inspect_err(|_| eprintln!("everything was done, but it can't be checked:"))?;
    let mut findings = verify(&stack, &compiled, &host);
    if let Some(only) = &goal.only {
        // What was not asked for may be stopped.
        let stopped = host.instances.iter().map(|seen| &seen.status.id).filter(|id| !only.contains(&id.service));
        let stopped: BTreeSet<String> = stopped.map(ToString::to_string).collect();
        findings.retain(|finding| !stopped.contains(&finding.subject));
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    let waiting = edge::waiting(layout, &stack);
    if !waiting.is_empty() {
        // It takes as long as an authority takes, and the edge has to serve meanwhile.
        eprintln!(
            "the edge serves, and waits for {} of {}: `palisade events` and `palisade logs {}` tell how that goes",
            if waiting.len() == 1 { "the certificate" } else { "certificates" },
            waiting.join(", "),
            WORKER_NAME
        );
    }
    let bad = findings.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if bad { Answer::No } else { Answer::Yes })
}
