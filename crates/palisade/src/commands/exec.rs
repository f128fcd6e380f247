//! `exec`: a command inside a running service, with the terminal of whoever typed it.

use std::io::{self, IsTerminal};
use std::path::Path;

use palisade_core::instance::{InstanceSpec, Program};
use palisade_core::names::InstanceId;
use palisade_host::layout::Layout;
use palisade_host::runtime::{self, Attach, Found, Running, THIS_PROGRAM};

use crate::cli::{ExecArgs, StackArgs};
use crate::exit::{Answer, Failure, chain};
use crate::state::{State, read_json};
use crate::{agent, load};

/// Exit codes of shells for a command that isn't there, and for one that can't be run.
const NOT_FOUND: u8 = 127;
const NOT_RUNNABLE: u8 = 126;

/// Runs it, and passes its exit code on.
pub(crate) fn run(args: &StackArgs, exec: ExecArgs) -> Result<Answer, Failure> {
    let layout = args.layout(load::project(args)?);
    super::require_machine("exec")?;
    let id = instance(&layout, &exec.service)?;
    let (mut spec, running) = opened(&layout, &id)?;
    let terminal = !exec.no_tty && io::stdin().is_terminal();
    adjust(&mut spec, &exec, terminal);
    let attach = Attach { command: exec.command, terminal };
    match runtime::attach(&layout, &spec, &running, Path::new(THIS_PROGRAM), &attach) {
        Ok(code) => Ok(Answer::Passed(u8::try_from(code).unwrap_or(255))),
        Err(error) => match not_run(&error) {
            Some(code) => {
                eprintln!("error: {}", chain(&error));
                Ok(Answer::Passed(code))
            }
            None => Err(Failure::new(format!("can't run a command in {id}"), error)),
        },
    }
}

/// The exit code that a shell has for a command that could not be run, if that is the reason.
fn not_run(error: &runtime::Error) -> Option<u8> {
    let runtime::Error::Enter { source, .. } = error else { return None };
    match source.kind() {
        io::ErrorKind::NotFound => Some(NOT_FOUND),
        io::ErrorKind::PermissionDenied => Some(NOT_RUNNABLE),
        _ => None,
    }
}

/// The instance that is meant by `app` or `app.2`: of a service, the first that runs. A service's own name may look like
/// an instance's; then it is the service.
fn instance(layout: &Layout, typed: &str) -> Result<InstanceId, Failure> {
    let (_, statuses) = agent::seen(layout).map_err(|error| Failure::new("can't ask what runs", error))?;
    let of_service = statuses.iter().filter(|status| status.id.service.as_str() == typed);
    let runs = of_service.clone().find(|status| status.pid.is_some());
    if let Some(status) = runs.or_else(|| of_service.clone().next()) {
        return Ok(status.id.clone());
    }
    if let Some(id) = InstanceId::parse(typed) {
        if statuses.iter().any(|status| status.id == id) {
            return Ok(id);
        }
        let siblings: Vec<_> =
            statuses.iter().filter(|s| s.id.service == id.service).map(|s| s.id.to_string()).collect();
        if !siblings.is_empty() {
            let known = siblings.join(", ");
            let message = format!("error: {} has no instance `{typed}`\n  hint: it has {known}", layout.project);
            return Err(Failure::Input(message));
        }
    }
    let state = State::read(layout).map_err(|error| Failure::new("can't read what was applied", error))?;
    match &state.stack {
        Some(stack) => {
            super::services_of(stack, &[typed.to_owned()])?;
            Err(Failure::plain(format!("can't run a command in {typed}: it has no instances")).hint("`palisade up`"))
        }
        None => {
            Err(Failure::plain(format!("can't run a command in {}: it isn't up", layout.project)).hint("`palisade up`"))
        }
    }
}

/// What the instance was started with, and its process.
fn opened(layout: &Layout, id: &InstanceId) -> Result<(InstanceSpec, Running), Failure> {
    let path = layout.instance(id).join("spec.json");
    let spec = read_json::<InstanceSpec>(&path)
        .map_err(|error| Failure::new(format!("can't read what {id} was started with"), error))?;
    let found = runtime::find(layout, id).map_err(|error| Failure::new(format!("can't find {id}"), error))?;
    match (spec, found) {
        (Some(spec), Some(Found::Running(running))) => Ok((spec, running)),
        _ => Err(Failure::plain(format!("can't run a command in {id}: it doesn't run"))
            .hint(format!("`palisade ps` shows its state; `palisade start {}` starts it", id.service))),
    }
}

/// What the command line says instead of the file.
fn adjust(spec: &mut InstanceSpec, exec: &ExecArgs, terminal: bool) {
    let (user, working_dir) = match &mut spec.program {
        Program::Process(process) => (&mut process.user, &mut process.working_dir),
        Program::Container(container) => (&mut container.settings.user, &mut container.settings.working_dir),
    };
    if exec.user.is_some() {
        user.clone_from(&exec.user);
    }
    if exec.workdir.is_some() {
        working_dir.clone_from(&exec.workdir);
    }
    if let (true, Ok(term)) = (terminal, std::env::var("TERM")) {
        spec.environment.entry("TERM".into()).or_insert(term);
    }
    for variable in &exec.env {
        match variable.split_once('=') {
            Some((name, value)) => drop(spec.environment.insert(name.into(), value.into())),
            None => {
                if let Ok(value) = std::env::var(variable) {
                    spec.environment.insert(variable.clone(), value);
                }
            }
        }
    }
}
