//! `up`: makes the host as the file says, or leaves it as it was.

use palisade_core::action::Action;
#[cfg(debug_assertions)]
use palisade_core::apply::Progress;
use palisade_core::apply::apply;
use palisade_core::finding::Severity;
use palisade_core::lint::lint;
use palisade_core::plan::{self, Wishes};
use palisade_core::policy::Mode;
use palisade_core::stack::Stack;
use palisade_core::verify::verify;
use palisade_host::layout::Layout;
use palisade_host::volumes;

use crate::cli::{StackArgs, UpArgs};
use crate::exit::{Answer, Failure};
use crate::host::Adapters;
use crate::progress::Lines;
use crate::state::{Lock, LockError, State};
use crate::{load, observe, signals};

/// Plans, carries out, and verifies.
pub(crate) fn run(args: &StackArgs, up: UpArgs) -> Result<Answer, Failure> {
    let loaded = load::load(args).map_err(load::Unusable::into_failure)?;
    loaded.print_warnings();
    super::require_machine("up")?;
    let layout = args.layout(loaded.stack.project.clone());
    let mode = if up.learn { Mode::Learn } else { Mode::Enforce };
    signals::catch();
    bring_up(&layout, &loaded.stack, mode, up.wait)
}

/// What `up` does once it knows the stack: also what a rehearsal does, in its own realm.
pub(crate) fn bring_up(layout: &Layout, stack: &Stack, mode: Mode, wait: bool) -> Result<Answer, Failure> {
    let _lock = super::lock(layout, "up")?;
    let state = State::read(layout).map_err(|error| Failure::new("can't read what was applied before", error))?;
    let was_there = state != State::default();
    let mut adapters = Adapters::new(layout.clone(), state);
    match change(layout, stack, mode, wait, &mut adapters) {
        Ok(()) => report(layout, stack, mode),
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

fn change(layout: &Layout, stack: &Stack, mode: Mode, wait: bool, adapters: &mut Adapters) -> Result<(), End> {
    fetch_images(layout, stack, mode, wait, adapters)?;
    // Two stacks that come up at the same time must not take the same addresses.
    let realm_lock = Lock::take(&layout.realm_run().join("lock")).map_err(|error| match error {
        LockError::State(error) => Failure::new("can't lock the addresses of this host", error),
        LockError::Held(_) => Failure::plain("can't lock the addresses of this host"),
    })?;
    let before = observe::observe_for(layout, stack);
    let volume_path = |key: &str, volume: &_| volumes::folder(layout, key, volume);
    let wishes = Wishes { fetch: None, ..super::wishes(mode, wait, &volume_path) };
    let plan = plan::plan(stack, &before, wishes).map_err(|findings| super::refused(&findings))?;
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
    let noted = adapters.remember(|state| state.stack = Some(stack.clone()));
    noted.map_err(|error| End {
        failure: Failure::new("everything runs, but it can't be noted", error),
        anything_left: true,
    })
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
fn fetch_images(layout: &Layout, stack: &Stack, mode: Mode, wait: bool, adapters: &mut Adapters) -> Result<(), End> {
    if !stack.needs_engine() {
        return Ok(());
    }
    let host = observe::observe_for(layout, stack);
    adapters.with_engine(&host.engine);
    let volume_path = |key: &str, volume: &_| volumes::folder(layout, key, volume);
    let mut plan = plan::plan(stack, &host, super::wishes(mode, wait, &volume_path))
        .map_err(|findings| super::refused(&findings))?;
    plan.steps.retain(|step| matches!(step.action, Action::FetchImage { .. }));
    let mut lines = Lines::new();
    apply(&plan, adapters, &signals::interrupted, &mut |progress| lines.show(progress))
        .map_err(|failure| super::failed(&stack.project, "up", failure).into())
}

/// Reads the host afresh and says what isn't as the file says.
fn report(layout: &Layout, stack: &Stack, mode: Mode) -> Result<Answer, Failure> {
    let host = observe::observe_for(layout, stack);
    let (stack, compiled) = super::compiled(layout, stack, &host, mode)?;
    let findings = verify(&stack, &compiled, &host);
    for finding in &findings {
        eprintln!("{finding}");
    }
    let bad = findings.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if bad { Answer::No } else { Answer::Yes })
}
