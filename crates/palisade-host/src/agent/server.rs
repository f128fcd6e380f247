//! The agent's process: becomes a daemon, takes over what runs, answers requests.
//!
//! It decides nothing about single instances (that is [`super::supervise`]) and nothing about the stack.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::exit;
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::{ForkResult, fork, pipe2};

use palisade_core::causes::chain;
use palisade_core::instance::InstanceSpec;
use palisade_core::names::{InstanceId, ProjectName};

use super::events::EventSink;
use super::protocol::{Request, Response, short_socket_path};
use super::supervise::{Supervised, Surroundings};
use crate::cgroup::Cgroup;
use crate::layout::Layout;
use crate::runtime::{self, THIS_PROGRAM};

/// The agent's own log starts anew when it is longer than this.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// Something that runs beside the supervision, on a thread of its own, for as long as the agent lives.
pub type Task = Box<dyn FnOnce(EventSink) + Send>;

/// Entry point of the hidden verb `__agent <realm> <project>`: the process becomes a daemon, and its parent's call
/// returns when the daemon listens or has said why not. `tasks` makes what else the daemon runs.
pub fn agent_main(arguments: &[String], tasks: impl FnOnce(&Layout) -> Vec<Task>) -> ! {
    let (realm, project) = match arguments {
        [realm, project] => (realm.clone(), ProjectName::parse(project.as_str())),
        _ => fail("__agent takes a realm and a project"),
    };
    let project = project.unwrap_or_else(|error| fail(&error.to_string()));
    let layout = Layout { realm, project };
    // Out of the cgroup of whoever typed `up`, which may be killed with its login session or have limits. It is the first
    // thing: until then this process dies with its parent, from then on whoever clears the cgroup finds it and its child.
    let joined = Cgroup::of_agent(&layout)
        .and_then(|cgroup| cgroup.create().and_then(|()| cgroup.create_v1()).and_then(|()| cgroup.join()));
    joined.unwrap_or_else(|error| fail(&chain(&error)));
    let pipe = pipe2(OFlag::O_CLOEXEC).unwrap_or_else(|error| fail(&format!("cannot make a pipe: {error}")));
    let (ready_read, ready_write) = pipe;
    // The daemon belongs to no terminal and no login session.
    let _ = nix::unistd::setsid();
    // SAFETY: this process has one thread.
    match unsafe { fork() } {
        Err(error) => fail(&format!("cannot fork: {error}")),
        Ok(ForkResult::Parent { .. }) => {
            drop(ready_write);
            let mut message = String::new();
            let _ = File::from(ready_read).read_to_string(&mut message);
            match message.strip_prefix("ready") {
                Some(_) => exit(0),
                None => fail(if message.is_empty() { "the agent ended at once" } else { &message }),
            }
        }
        Ok(ForkResult::Child) => {
            drop(ready_read);
            let mut ready = File::from(ready_write);
            match prepare(&layout) {
                Ok(prepared) => {
                    let _ = ready.write_all(b"ready");
                    drop(ready);
                    run(layout, prepared, tasks)
                }
                Err(message) => {
                    let _ = ready.write_all(message.as_bytes());
                    exit(1)
                }
            }
        }
    }
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    exit(1)
}

struct Prepared {
    listener: UnixListener,
    agent: Agent,
    /// Only one agent may supervise a stack: held until the process ends.
    _lock: Flock<File>,
}

fn prepare(layout: &Layout) -> Result<Prepared, String> {
    let io = |operation: &str, path: PathBuf| {
        let operation = operation.to_owned();
        move |error: io::Error| format!("cannot {operation} {}: {error}", path.display())
    };
    let run = layout.run();
    runtime::make_private_directory(&run).map_err(|error| chain(&error))?;
    let path = run.join("agent.lock");
    let lock = File::create(&path).map_err(io("make", path))?;
    let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
        .map_err(|_| format!("another agent already supervises {}", layout.project))?;

    let log = layout.log_directory().join("agent.log");
    if let Some(parent) = log.parent() {
        fs::create_dir_all(parent).map_err(io("make", parent.to_owned()))?;
    }
    let long = fs::metadata(&log).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX);
    let mut options = OpenOptions::new();
    options.create(true).mode(0o640);
    let file = if long { options.write(true).truncate(true) } else { options.append(true) }.open(&log);
    let file = OwnedFd::from(file.map_err(io("open", log.clone()))?);
    let null = File::open("/dev/null").map_err(io("open", "/dev/null".into()))?;
    let redirected = nix::unistd::dup2_stdin(&null)
        .and_then(|()| nix::unistd::dup2_stdout(&file))
        .and_then(|()| nix::unistd::dup2_stderr(&file));
    redirected.map_err(|error| format!("cannot redirect output to {}: {error}", log.display()))?;
    let _ = nix::unistd::chdir("/");
    let _ = fs::write("/proc/self/comm", "palisade-agent");

    let (_folder, socket) = short_socket_path(layout).map_err(io("open", run.clone()))?;
    // We hold the lock, so whoever made a socket there is gone.
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(io("listen at", layout.agent_socket()))?;
    fs::set_permissions(layout.agent_socket(), fs::Permissions::from_mode(0o600))
        .map_err(io("set the mode of", layout.agent_socket()))?;
    let events = EventSink::open(layout);
    let surroundings = Surroundings { layout: layout.clone(), exe: PathBuf::from(THIS_PROGRAM), events };
    let agent = Agent { surroundings, instances: Arc::default() };
    Ok(Prepared { listener, agent, _lock: lock })
}

fn run(layout: Layout, prepared: Prepared, tasks: impl FnOnce(&Layout) -> Vec<Task>) -> ! {
    let Prepared { listener, agent, _lock } = prepared;
    // Before the first request is answered, so that nobody is told of an empty stack.
    agent.adopt_all();
    for task in tasks(&layout) {
        let events = agent.surroundings.events.clone();
        let spawned = std::thread::Builder::new().name("task".into()).spawn(move || task(events));
        if let Err(error) = spawned {
            eprintln!("cannot start a thread: {error}");
        }
    }
    for connection in listener.incoming() {
        let Ok(connection) = connection else {
            // Out of descriptors, most likely: trying again at once would only spin.
            std::thread::sleep(std::time::Duration::from_millis(100));
            continue;
        };
        let agent = agent.clone();
        let spawned = std::thread::Builder::new().name("request".into()).spawn(move || agent.serve(connection));
        if let Err(error) = spawned {
            eprintln!("cannot start a thread: {error}");
        }
    }
    exit(1)
}

#[derive(Clone)]
struct Agent {
    surroundings: Surroundings,
    instances: Arc<Mutex<BTreeMap<InstanceId, Supervised>>>,
}

impl Agent {
    fn instances(&self) -> std::sync::MutexGuard<'_, BTreeMap<InstanceId, Supervised>> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn adopt_all(&self) {
        let folder = self.surroundings.layout.run().join("instances");
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path().join("spec.json");
            let adopted = match runtime::read_json::<InstanceSpec>(&path) {
                Ok(Some(spec)) => {
                    let id = spec.id.clone();
                    Supervised::adopt(self.surroundings.clone(), spec).map(|supervised| (id, supervised))
                }
                Ok(None) => continue,
                Err(error) => Err(chain(&error)),
            };
            match adopted {
                Ok((id, supervised)) => drop(self.instances().insert(id, supervised)),
                Err(message) => eprintln!("cannot take over {}: {message}", path.display()),
            }
        }
    }

    fn serve(&self, connection: UnixStream) {
        let Ok(mut writer) = connection.try_clone() else { return };
        for line in BufReader::new(connection).lines() {
            let Ok(line) = line else { return };
            let (response, last) = match serde_json::from_str(&line) {
                Ok(Request::Shutdown) => (Response::Done, true),
                Ok(request) => (self.answer(request), false),
                Err(error) => (Response::Failed { message: format!("not a request of this version: {error}") }, false),
            };
            let Ok(mut text) = serde_json::to_vec(&response) else { return };
            text.push(b'\n');
            let written = writer.write_all(&text);
            if last {
                let _ = fs::remove_file(self.surroundings.layout.agent_socket());
                exit(0)
            }
            if written.is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: Request) -> Response {
        let done = |result: Result<(), String>| match result {
            Ok(()) => Response::Done,
            Err(message) => Response::Failed { message },
        };
        match request {
            Request::Hello => {
                Response::Hello { pid: std::process::id() as i32, program: crate::program::own_digest().ok() }
            }
            Request::Status => {
                Response::Status { instances: self.instances().values().map(Supervised::status).collect() }
            }
            Request::Start { spec } => done(self.start(*spec)),
            Request::Stop { id } => done(self.known(&id).and_then(|supervised| supervised.stop())),
            Request::Restart { id } => done(self.known(&id).and_then(|supervised| {
                supervised.stop()?;
                supervised.start(supervised.spec())
            })),
            Request::Remove { id } => done(self.remove(&id)),
            Request::SetHosts { id, hosts } => match self.known(&id) {
                Ok(supervised) => match supervised.set_hosts(hosts) {
                    Ok(old) => Response::Hosts { old: Some(old) },
                    Err(message) => Response::Failed { message },
                },
                Err(_) => Response::Hosts { old: None },
            },
            // Answered by `serve`, which ends the process.
            Request::Shutdown => Response::Done,
        }
    }

    fn known(&self, id: &InstanceId) -> Result<Supervised, String> {
        self.instances().get(id).cloned().ok_or_else(|| format!("the agent knows no instance {id}"))
    }

    fn start(&self, spec: InstanceSpec) -> Result<(), String> {
        let supervised = {
            let mut instances = self.instances();
            match instances.get(&spec.id) {
                Some(supervised) => supervised.clone(),
                None => {
                    let folder = self.surroundings.layout.instance(&spec.id);
                    runtime::make_private_directory(&folder).map_err(|error| chain(&error))?;
                    let supervised = Supervised::begin(self.surroundings.clone(), spec.clone())?;
                    instances.insert(spec.id.clone(), supervised.clone());
                    supervised
                }
            }
        };
        supervised.start(spec)
    }

    fn remove(&self, id: &InstanceId) -> Result<(), String> {
        // Removing what isn't there is done already; an undo may ask for it.
        let Ok(supervised) = self.known(id) else {
            return runtime::remove(&self.surroundings.layout, id).map_err(|error| chain(&error));
        };
        supervised.stop()?;
        supervised.forget();
        self.instances().remove(id);
        runtime::remove(&self.surroundings.layout, id).map_err(|error| chain(&error))
    }
}
