//! `down`: takes a stack away. Volumes stay unless they are named and the user says yes.

use palisade_core::action::{Action, VolumeName};
use palisade_core::apply::apply;
use palisade_core::lint::lint;
use palisade_core::observed::Observed;
use palisade_core::plan::{Plan, plan_down};
use palisade_host::engine;
use palisade_host::layout::Layout;

use crate::cli::StackArgs;
use crate::exit::{Answer, Failure};
use crate::host::Adapters;
use crate::progress::Lines;
use crate::state::State;
use crate::{confirmation, generations, load, observe, signals};

/// Plans and carries out.
pub(crate) fn run(args: &StackArgs, volumes: bool, yes: bool) -> Result<Answer, Failure> {
    let project = load::project(args)?;
    super::require_machine("down")?;
    let layout = args.layout(project);
    signals::catch();
    take_down(&layout, volumes, &|names| yes || confirmed(names))
}

/// What `down` does once it knows the stack: also what ends a rehearsal.
pub(crate) fn take_down(
    layout: &Layout,
    volumes: bool,
    confirmed: &dyn Fn(&[String]) -> bool,
) -> Result<Answer, Failure> {
    let lock = super::lock(layout, "down")?;
    confirmation::require_none(layout, "down")?;
    let state = State::read(layout).map_err(|error| Failure::new("can't read what was applied", error))?;
    let host = match &state.stack {
        Some(stack) => observe::observe_for(layout, stack),
        None => observe::observe(layout),
    };
    let plan = plan_down(&layout.project, state.stack.as_ref(), &host, volumes);
    super::require_safe(&lint(&plan, &host))?;
    require_unused(layout, &plan, &host)?;
    let doomed: Vec<String> =
        plan.steps.iter().map(|step| &step.action).filter(|a| a.destroys_data()).map(ToString::to_string).collect();
    if !doomed.is_empty() && !confirmed(&doomed) {
        let message = format!("error: not confirmed, so nothing was changed: {}", doomed.join(", "));
        return Err(Failure::Input(format!("{message}\n  hint: say yes on a terminal, or give --yes")));
    }
    let mut adapters = Adapters::new(layout.clone(), state);
    adapters.with_engine(&host.engine);
    if plan.is_empty() {
        eprintln!("{}: nothing to take away", layout.project);
    } else {
        let mut lines = Lines::new();
        apply(&plan, &mut adapters, &signals::interrupted, &mut |progress| lines.show(progress))
            .map_err(|failure| super::failed(&layout.project, "down", failure))?;
    }
    if volumes {
        generations::remove_all(layout)
            .map_err(|error| Failure::new("everything is down, but generations are left behind", error))?;
    }
    adapters.clean_up().map_err(|error| Failure::new("everything is down, but something is left behind", error))?;
    drop(lock);
    Ok(Answer::Yes)
}

/// An engine keeps a volume that a container of somebody else has mounted: better said before the stack is stopped.
fn require_unused(layout: &Layout, plan: &Plan, host: &Observed) -> Result<(), Failure> {
    let Some(engine) = host.engine.seen() else { return Ok(()) };
    for step in &plan.steps {
        let Action::RemoveVolume { name: VolumeName::Engine(volume) } = &step.action else { continue };
        let users = engine::other_users_of(&engine.socket, layout, volume)
            .map_err(|error| Failure::new(format!("can't take {} down", layout.project), error))?;
        if !users.is_empty() {
            let containers = if users.len() == 1 { "container" } else { "containers" };
            let message = format!(
                "can't delete volume {volume}, which {containers} {} of somebody else {} mounted; nothing was changed",
                users.join(", "),
                if users.len() == 1 { "has" } else { "have" }
            );
            let hint = format!("remove them (`docker rm --force {}`), or leave out --volumes", users.join(" "));
            return Err(Failure::plain(message).hint(hint));
        }
    }
    Ok(())
}

fn confirmed(doomed: &[String]) -> bool {
    super::says_yes(&format!("{}. This can't be undone. Type yes: ", doomed.join(", ")))
}
