//! `stop`, `start` and `restart`: what was brought up is ended or started as it was, whatever the file says by now.

use std::collections::BTreeMap;

use palisade_core::apply::apply;
use palisade_core::instance::{InstanceSpec, RunState};
use palisade_core::life::{Turn, plan_turn};
use palisade_core::lint::lint;
use palisade_core::names::{InstanceId, ServiceName};
use palisade_core::observed::Observed;
use palisade_host::layout::Layout;

use crate::cli::StackArgs;
use crate::exit::{Answer, Failure};
use crate::host::Adapters;
use crate::progress::Lines;
use crate::state::{State, read_json};
use crate::{load, observe, signals};

/// Plans and carries out.
pub(crate) fn run(args: &StackArgs, turn: Turn, services: &[String]) -> Result<Answer, Failure> {
    let verb = match turn {
        Turn::Stop => "stop",
        Turn::Start => "start",
        Turn::Restart => "restart",
    };
    let project = load::project(args)?;
    super::require_machine(verb)?;
    let layout = args.layout(project);
    signals::catch();
    let state = State::read(&layout).map_err(|error| Failure::new("can't read what was applied", error))?;
    let Some(stack) = state.stack.clone() else {
        return Err(Failure::plain(format!("can't {verb} {}: it isn't up", layout.project)).hint("`palisade up`"));
    };
    let wanted = super::services_of(&stack, services)?;
    let _lock = super::lock(&layout, verb)?;
    let host = observe::observe_for(&layout, &stack);
    let there = |name: &ServiceName| host.instances.iter().any(|seen| seen.status.id.service == *name);
    if let Some(name) = wanted.iter().find(|name| !there(name)) {
        return Err(
            Failure::plain(format!("can't {verb} {name}: it has no instances")).hint("`palisade up` makes them")
        );
    }
    let specs = if turn == Turn::Stop { BTreeMap::new() } else { specs(&layout, &host)? };
    let plan = plan_turn(turn, &stack, &host, &wanted, &specs, state.policy.as_ref());
    super::require_safe(&lint(&plan, &host))?;
    if plan.is_empty() {
        eprintln!("{}: nothing to {verb}", layout.project);
        return Ok(Answer::Yes);
    }
    let mut adapters = Adapters::new(layout.clone(), state);
    adapters.with_engine(&host.engine);
    let mut lines = Lines::new();
    apply(&plan, &mut adapters, &signals::interrupted, &mut |progress| lines.show(progress))
        .map_err(|failure| super::failed(&layout.project, verb, failure))?;
    Ok(Answer::Yes)
}

/// What each instance was started with; for one that is to be started, it has to be known, and the guard to be there.
fn specs(layout: &Layout, host: &Observed) -> Result<BTreeMap<InstanceId, InstanceSpec>, Failure> {
    let mut specs = BTreeMap::new();
    for seen in &host.instances {
        let id = &seen.status.id;
        let path = layout.instance(id).join("spec.json");
        let spec = read_json::<InstanceSpec>(&path)
            .map_err(|error| Failure::new(format!("can't read what {id} was started with"), error))?;
        let guarded = host.guard.as_ref().is_some_and(|guard| guard.attached.contains_key(id));
        let ended = matches!(seen.status.state, RunState::Exited { .. });
        match spec {
            Some(spec) if guarded || !ended => drop(specs.insert(id.clone(), spec)),
            _ => {
                let message = format!("can't start {id} as it was: it has no guard, or isn't known any more");
                return Err(Failure::plain(message).hint("`palisade up` makes it anew"));
            }
        }
    }
    Ok(specs)
}
