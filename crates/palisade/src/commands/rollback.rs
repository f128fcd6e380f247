//! `rollback`: brings an earlier generation back whole: stack, environment, policy and the images that ran then.

use palisade_core::action::Fetch;
use palisade_core::generation::{Changes, Generation, Origin};
use palisade_core::image::{self, FetchWishes, PullPolicy, image_name};
use palisade_core::observed::{EngineState, ImageSeen};
use palisade_core::plan;
use palisade_core::policy::Mode;
use palisade_core::stack::Runner;
use palisade_host::engine;
use palisade_host::layout::Layout;
use palisade_host::volumes;

use super::up::{Goal, bring_up};
use crate::cli::StackArgs;
use crate::exit::{Answer, Failure};
use crate::{generations, load, signals};

/// Plans, shows, asks and carries out.
pub(crate) fn run(args: &StackArgs, number: Option<u64>, yes: bool) -> Result<Answer, Failure> {
    let layout = args.layout(load::project(args)?);
    super::require_machine("rollback")?;
    let known = generations::numbers(&layout).map_err(|error| Failure::new("can't list generations", error))?;
    let number = match number {
        Some(number) => number,
        None => match known[..] {
            [.., earlier, _] => earlier,
            _ => {
                let message = format!("can't roll back {}: there is no generation before the last", layout.project);
                return Err(Failure::plain(message).hint("`palisade history` lists them"));
            }
        },
    };
    let generation = generations::read(&layout, number).map_err(|error| {
        Failure::new(format!("can't roll back {}", layout.project), error)
            .hint("`palisade history` lists generations; `palisade rollback N` takes another one")
    })?;
    signals::catch();
    require_images(&layout, &generation)?;
    let goal = Goal {
        origin: Origin::Rollback { to: number },
        images: generation.images.clone(),
        // They are here, and what their names stand for by now doesn't matter.
        fetch: FetchWishes { pull: Some(PullPolicy::Never), build: false },
        ..Goal::of(&generation.stack, Mode::Enforce)
    };
    show(&layout, &known, &generation, &goal)?;
    if !yes && !confirmed(number) {
        let message = format!("error: not confirmed, so nothing was changed: rollback to generation {number}");
        return Err(Failure::Input(format!("{message}\n  hint: say yes on a terminal, or give --yes")));
    }
    bring_up(&layout, &goal)
}

/// The images that ran then have to be here; one that isn't is pulled by its digest, if it came from a registry.
fn require_images(layout: &Layout, generation: &Generation) -> Result<(), Failure> {
    let stack = &generation.stack;
    if !stack.needs_engine() {
        return Ok(());
    }
    // The same stack, which names its images by what they are.
    let mut exact = stack.clone();
    for service in &mut exact.services {
        let Runner::Engine(container) = service.run.runner() else { continue };
        let image = generation.images.get(&image_name(&stack.project, service, container)).map(|seen| seen.id.clone());
        if let Some(container) = &mut service.run.container {
            container.image = image;
        }
    }
    let look = || engine::look(layout, &exact, std::env::var("DOCKER_HOST").ok().as_deref());
    let missing = |engine: &EngineState| -> Vec<&ImageSeen> {
        let there = |id: &String| engine.seen().is_some_and(|engine| engine.images.contains_key(id));
        let wanted = image::names(&exact);
        generation.images.values().filter(|image| wanted.contains(&image.id) && !there(&image.id)).collect()
    };
    let seen = look();
    let Some(there) = seen.seen() else { return Ok(()) };
    let to_pull: Vec<&String> = missing(&seen).iter().filter_map(|image| image.digest.as_ref()).collect();
    for digest in &to_pull {
        engine::fetch(&there.socket, digest, &Fetch::Pull { platform: None }, true)
            .map_err(|error| Failure::new(format!("can't bring image {digest} back"), error))?;
    }
    match missing(&look())[..] {
        [] => Ok(()),
        [image, ..] => {
            let id = &image.id;
            let message = format!("can't roll back to generation {}: its image {id} is gone", generation.number);
            Err(Failure::plain(message).hint("load it with `docker load`, or roll back to another generation"))
        }
    }
}

/// What would change, from what was kept last and from what is so.
fn show(layout: &Layout, known: &[u64], generation: &Generation, goal: &Goal<'_>) -> Result<(), Failure> {
    if let Some(last) = known.last().and_then(|last| generations::read(layout, *last).ok()) {
        eprintln!("from generation {} to {}: {}", last.number, generation.number, Changes::between(&last, generation));
    }
    let host = goal.observe(layout);
    let volume_path = |key: &str, volume: &_| volumes::folder(layout, key, volume);
    let plan =
        plan::plan(goal.stack, &host, goal.wishes(&volume_path)).map_err(|findings| super::refused(&findings))?;
    eprint!("{plan}");
    Ok(())
}

fn confirmed(number: u64) -> bool {
    super::says_yes(&format!("Go back to generation {number}? Type yes: "))
}
