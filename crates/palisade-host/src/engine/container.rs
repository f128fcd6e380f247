//! One container: made and started in its guarded cgroup, asked how it ended, entered, taken away.
//!
//! A file that the container mounts, the gate, keeps it from being started by somebody else when there is no guard: without
//! it the engine can't start the container. The mount of `/etc/hosts` would not do: `docker restart` leaves it out when its
//! file is missing. The gate is below `/run`, where it is gone after a boot and after `down`; or, where systemd makes cgroups,
//! in the guarded slice itself and only while the agent starts the container ([`crate::slice`] says why).

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::models::{ContainerInspectResponse, ContainerState};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    RenameContainerOptionsBuilder, StartContainerOptions,
};
use futures_util::StreamExt;
use palisade_core::instance::{CgroupDriver, ContainerProgram, InstanceSpec};
use palisade_core::names::InstanceId;

use super::body::{Placed, body};
use super::{Engine, EngineError, LABEL_INSTANCE, LABEL_REALM, LABEL_SPEC, filter, is_podman};
use crate::cgroup::{self, Cgroup};
use crate::hosts_file;
use crate::layout::Layout;
use crate::runtime::{self, EnterOptions, EnterResult, Exit, files};
use crate::slice;

/// How long the engine gets to notice that a container has ended.
const NOTICED: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile.
const NOTICED_PAUSE: Duration = Duration::from_millis(20);

/// Where the container shows the file without which it doesn't start.
const GATE: &str = "/.palisade";

/// A container that was started: its first process in the host's numbers, or how it ended at once.
pub(crate) enum Started {
    Running(i32),
    Ended(Exit),
}

/// Starts the instance's container in its cgroup, which exists and is guarded. One that was made of the same
/// specification before is started again, with what it has written; any other is made anew.
pub(crate) fn start(layout: &Layout, spec: &InstanceSpec, program: &ContainerProgram) -> Result<Started, EngineError> {
    let engine = Engine::connect(&program.socket)?;
    let cgroup = Cgroup::of(layout, spec).map_err(of_cgroup("find its cgroup"))?;
    let placed = place_files(layout, spec, program, cgroup.gate())?;
    let name = &program.name;
    let digest = spec.fingerprint().digest;
    let reusable = engine.clear_the_way(layout, spec, name, &digest)?;
    // The engine looks for what a container mounts also when it makes it.
    let _gate = cgroup.open_gate().map_err(of_cgroup("open the gate of its slice"))?;
    if !reusable {
        let hostname = (!program.host_mode || spec.settings.hostname.is_some()).then(|| runtime::hostname_of(spec));
        let security = security_options(layout, spec, program)?;
        let mut body = body(layout, spec, program, cgroup.parent_for_engines(), &placed, hostname, security);
        // People look for the name in `docker ps`; it counts as long as it stands for the image that was planned.
        let named =
            engine.ask(|| format!("describe image {}", program.image), engine.docker.inspect_image(&program.image));
        if named.is_ok_and(|image| image.id.is_some() && image.id == program.image_id) {
            body.image = Some(program.image.clone());
        }
        let mut options = CreateContainerOptionsBuilder::default().name(name);
        if let Some(platform) = &program.settings.platform {
            options = options.platform(platform);
        }
        let create = engine.docker.create_container(Some(options.build()), body);
        engine.ask(|| format!("create container {name}"), create)?;
    }
    if program.cgroup_driver == CgroupDriver::Systemd {
        let id = engine.inspect(name)?.id.unwrap_or_default();
        slice::forget_scope(&id).map_err(|why| EngineError::Local {
            operation: format!("give container {name} a scope of its own"),
            source: io::Error::other(why),
        })?;
    }
    let start = engine.docker.start_container(name, None::<StartContainerOptions>);
    engine.ask(|| format!("start container {name}"), start)?;
    let state = engine.inspect(name)?.state.unwrap_or_default();
    match pid_of(&state) {
        Some(pid) => {
            engine.require_guarded(&cgroup, name, pid)?;
            Ok(Started::Running(pid))
        }
        None => Ok(Started::Ended(exit_of(&state))),
    }
}

fn of_cgroup(operation: &str) -> impl FnOnce(cgroup::Error) -> EngineError {
    let operation = operation.to_owned();
    |error| EngineError::Local { operation, source: io::Error::other(error) }
}

/// The first process of the instance's container, if that runs, whoever started it. It is in the guarded cgroup.
pub(crate) fn running(
    layout: &Layout,
    spec: &InstanceSpec,
    program: &ContainerProgram,
) -> Result<Option<i32>, EngineError> {
    let engine = Engine::connect(&program.socket)?;
    let found = match engine.inspect(&program.name) {
        Ok(found) => found,
        Err(error) if error.is_missing() => return Ok(None),
        Err(error) => return Err(error),
    };
    if !is_of(&found, layout, &spec.id) || label(&found, LABEL_SPEC) != Some(&spec.fingerprint().digest) {
        return Ok(None);
    }
    let Some(pid) = found.state.as_ref().and_then(pid_of).filter(|pid| !has_ended(*pid)) else { return Ok(None) };
    let cgroup = Cgroup::of(layout, spec).map_err(of_cgroup("find its cgroup"))?;
    engine.require_guarded(&cgroup, &program.name, pid)?;
    Ok(Some(pid))
}

/// How the instance's container ended; `None`: the engine doesn't say, or somebody has started it again by now.
pub(crate) fn end(program: &ContainerProgram) -> Option<Exit> {
    let engine = Engine::connect(&program.socket).ok()?;
    let deadline = Instant::now() + NOTICED;
    loop {
        let state = engine.inspect(&program.name).ok()?.state?;
        if state.running != Some(true) {
            return Some(exit_of(&state));
        }
        if pid_of(&state).is_some_and(|pid| !has_ended(pid)) || Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(NOTICED_PAUSE);
    }
}

/// Removes the instance's container, whatever its state. One that isn't there is removed already.
pub(crate) fn take_away(layout: &Layout, id: &InstanceId, program: &ContainerProgram) -> Result<(), EngineError> {
    let engine = Engine::connect(&program.socket)?;
    match engine.inspect(&program.name) {
        Ok(found) if is_of(&found, layout, id) => engine.remove(&program.name),
        Ok(_) => Ok(()),
        Err(error) if error.is_missing() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Runs a command inside, as its service is confined; the engine puts it into the container's cgroup.
pub(crate) fn exec(
    spec: &InstanceSpec,
    program: &ContainerProgram,
    command: Vec<String>,
    user: Option<&str>,
    options: EnterOptions,
) -> Result<EnterResult, EngineError> {
    let engine = Engine::connect(&program.socket)?;
    let name = &program.name;
    let config = CreateExecOptions {
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(command),
        user: user.map(str::to_owned).or_else(|| program.settings.user.clone()),
        // As its service, hooks besides with what they say themselves.
        env: Some(spec.environment.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        working_dir: program.settings.working_dir.as_ref().map(|path| path.to_string_lossy().into_owned()),
        ..CreateExecOptions::<String>::default()
    };
    let operation = || format!("run a command in {name}");
    let made = engine.ask(operation, engine.docker.create_exec(name, config))?;
    let run = async {
        let mut output = Vec::new();
        let started = engine.docker.start_exec(&made.id, None::<StartExecOptions>).await?;
        if let StartExecResults::Attached { output: mut stream, .. } = started {
            let read = async {
                while let Some(piece) = stream.next().await {
                    let bytes = piece?.into_bytes();
                    let room = options.output_bytes_max.saturating_sub(output.len()).min(bytes.len());
                    output.extend_from_slice(&bytes[..room]);
                }
                Ok::<_, bollard::errors::Error>(())
            };
            match tokio::time::timeout(options.timeout, read).await {
                Ok(ended) => ended?,
                Err(_) => return Ok((None, output)),
            }
        }
        let code = engine.docker.inspect_exec(&made.id).await?.exit_code;
        Ok((Some(code.map_or(255, |code| code as i32)), output))
    };
    let (code, output) = engine.ask(operation, run)?;
    if code.is_none() {
        // The engine has no way to end it.
        let asked = engine.ask(operation, engine.docker.inspect_exec(&made.id))?;
        if let Some(pid) = asked.pid.filter(|pid| *pid > 0 && asked.running == Some(true)) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL);
        }
    }
    Ok(EnterResult { code, output })
}

/// A line that a container printed.
pub(crate) struct Printed<'a> {
    /// `stdout` or `stderr`.
    pub(crate) stream: &'static str,
    /// When, in RFC 3339 with nanoseconds.
    pub(crate) time: &'a str,
    /// With its end of line.
    pub(crate) text: &'a [u8],
}

/// Follows what the container prints from `since_s` (seconds since the Unix epoch) on, until it ends.
pub(crate) fn follow(
    program: &ContainerProgram,
    since_s: i32,
    take: &mut dyn FnMut(Printed<'_>),
) -> Result<(), EngineError> {
    let engine = Engine::connect(&program.socket)?;
    let options =
        LogsOptionsBuilder::default().follow(true).stdout(true).stderr(true).timestamps(true).since(since_s).build();
    let follow = async {
        let mut pieces = engine.docker.logs(&program.name, Some(options));
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            let stream = if matches!(piece, LogOutput::StdErr { .. }) { "stderr" } else { "stdout" };
            let bytes = piece.into_bytes();
            let Some(space) = bytes.iter().position(|byte| *byte == b' ') else { continue };
            let Ok(time) = std::str::from_utf8(&bytes[..space]) else { continue };
            take(Printed { stream, time, text: &bytes[space + 1..] });
        }
        Ok(())
    };
    engine.ask(|| format!("show what {} prints", program.name), follow)
}

impl Engine {
    fn inspect(&self, name: &str) -> Result<ContainerInspectResponse, EngineError> {
        let question = self.docker.inspect_container(name, None::<InspectContainerOptions>);
        self.ask(|| format!("describe container {name}"), question)
    }

    fn remove(&self, name: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.ask(|| format!("remove container {name}"), self.docker.remove_container(name, Some(options))) {
            Err(error) if error.is_missing() => Ok(()),
            other => other,
        }
    }

    /// Makes the name free; true: the container that has it is of the same specification, and stopped.
    fn clear_the_way(
        &self,
        layout: &Layout,
        spec: &InstanceSpec,
        name: &str,
        digest: &str,
    ) -> Result<bool, EngineError> {
        let found = match self.inspect(name) {
            Ok(found) => found,
            Err(error) if error.is_missing() => return Ok(false),
            Err(error) => return Err(error),
        };
        let running = found.state.as_ref().is_some_and(|state| state.running == Some(true));
        if is_of(&found, layout, &spec.id) {
            if !running && label(&found, LABEL_SPEC) == Some(digest) {
                return Ok(true);
            }
            // One that runs was started by somebody else than the agent.
            return self.remove(name).map(|()| false);
        }
        // With `container_name` the next instance of a service comes while the last one has the name.
        let sibling = label(&found, LABEL_REALM) == Some(&layout.realm)
            && label(&found, super::COMPOSE_PROJECT) == Some(spec.project.as_str())
            && label(&found, super::COMPOSE_SERVICE) == Some(spec.id.service.as_str());
        if !sibling {
            return Err(EngineError::NameTaken { name: name.to_owned() });
        }
        let number = label(&found, LABEL_INSTANCE).and_then(|id| id.rsplit('.').next()).unwrap_or("old");
        let aside = RenameContainerOptionsBuilder::default().name(&format!("{name}-{number}")).build();
        self.ask(|| format!("rename container {name}"), self.docker.rename_container(name, aside))?;
        Ok(false)
    }

    /// The engine was told where to put it; what isn't there is ended.
    fn require_guarded(&self, guarded: &Cgroup, name: &str, pid: i32) -> Result<(), EngineError> {
        // In this order: a directory that has a process in it isn't replaced by another one meanwhile.
        let held = guarded.holds(pid).unwrap_or(false) && guarded.is_guardable();
        // One that has ended is in no list of a cgroup, also as long as the engine hasn't noticed.
        if held || has_ended(pid) {
            return Ok(());
        }
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let cgroup = text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
        self.remove(name)?;
        Err(EngineError::Elsewhere { name: name.to_owned(), cgroup: cgroup.to_owned() })
    }
}

fn label<'a>(found: &'a ContainerInspectResponse, name: &str) -> Option<&'a str> {
    found.config.as_ref()?.labels.as_ref()?.get(name).map(String::as_str)
}

fn is_of(found: &ContainerInspectResponse, layout: &Layout, id: &InstanceId) -> bool {
    label(found, LABEL_REALM) == Some(&layout.realm)
        && label(found, super::COMPOSE_PROJECT) == Some(layout.project.as_str())
        && label(found, LABEL_INSTANCE) == Some(&id.to_string())
}

fn pid_of(state: &ContainerState) -> Option<i32> {
    state.pid.filter(|pid| *pid > 0 && state.running == Some(true)).and_then(|pid| i32::try_from(pid).ok())
}

/// It is gone, or nobody has asked yet how it ended.
fn has_ended(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn exit_of(state: &ContainerState) -> Exit {
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    Exit { code: state.exit_code.unwrap_or(255) as i32, ended_at_s: now.as_secs() }
}

/// What the file says, and our system call filter where it doesn't say another, or that there is none.
fn security_options(
    layout: &Layout,
    spec: &InstanceSpec,
    program: &ContainerProgram,
) -> Result<Vec<String>, EngineError> {
    let mut options = program.settings.security_opt.clone();
    if !program.settings.privileged && !options.iter().any(|option| option.starts_with("seccomp")) {
        options.push(format!("seccomp={}", filter::profile(&spec.cap_add)));
    }
    if is_podman(&program.socket) {
        // Docker takes the profile itself and nothing else, Podman a path and nothing else (podman#27710).
        for option in &mut options {
            let Some(profile) = option.strip_prefix("seccomp=").filter(|value| value.starts_with('{')) else {
                continue;
            };
            let path = layout.instance(&spec.id).join("seccomp.json");
            let written = fs::write(&path, profile);
            written.map_err(|source| EngineError::Local { operation: format!("write {}", path.display()), source })?;
            *option = format!("seccomp={}", path.display());
        }
    }
    Ok(options)
}

/// Writes what the container shows at fixed places: its hosts file, name servers, secrets and configs.
fn place_files(
    layout: &Layout,
    spec: &InstanceSpec,
    program: &ContainerProgram,
    gate: Option<PathBuf>,
) -> Result<Vec<Placed>, EngineError> {
    let folder = layout.instance(&spec.id);
    let local = |operation: &str, path: &Path| {
        let operation = format!("{operation} {}", path.display());
        move |source: io::Error| EngineError::Local { operation, source }
    };
    let mut placed = Vec::new();
    let mut write = |name: &str, text: String, target: &str| {
        let path = folder.join(name);
        // In place: a container that is started again mounts the same file.
        fs::write(&path, text).map_err(local("write", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(local("write", &path))?;
        placed.push(Placed { source: path, target: target.into() });
        Ok::<_, EngineError>(())
    };
    if gate.is_none() {
        write("gate", "This container runs under the guard of Palisade.\n".to_owned(), GATE)?;
    }
    let hostname = if program.host_mode { None } else { Some(runtime::hostname_of(spec)) };
    write("hosts", hosts_file::text(spec, hostname.as_deref()), "/etc/hosts")?;
    if spec.settings.dns.is_some() {
        let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        write("resolv.conf", runtime::resolv_conf(&host, spec.settings.dns.as_ref()), "/etc/resolv.conf")?;
    }
    let provided = files::provide(&spec.files, &folder.join("files"))
        .map_err(|(operation, source)| EngineError::Local { operation, source })?;
    placed.extend(provided.into_iter().map(|(target, source)| Placed { source, target }));
    placed.extend(gate.map(|source| Placed { source, target: GATE.into() }));
    Ok(placed)
}
