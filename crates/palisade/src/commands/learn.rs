//! `learn`: lets the stack's services do what they like with each other for a while, and prints the narrowest policy
//! that would have allowed it, as a patch to the file.
//!
//! What was seen becomes a policy in `palisade_core::learn`. The old policy is back when this ends, however it ends:
//! after a SIGKILL the agent puts it back within a few seconds.

use std::collections::BTreeSet;
use std::fs;
use std::io::IsTerminal;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use palisade_core::address::InstanceAddress;
use palisade_core::learn::{Use, lessons, rewrite};
use palisade_core::names::ServiceName;
use palisade_core::observed::{Observed, SocketOwner};
use palisade_core::policy::{Mode, Policy};
use palisade_core::stack::{PortProto, Proto, Stack};
use palisade_guard::{Guard, GuardError, Hook, Kind};
use palisade_host::layout::Layout;
use similar::TextDiff;

use crate::cli::StackArgs;
use crate::exit::{Answer, Failure};
use crate::observe::{self, pins};
use crate::state::{Lock, State};
use crate::{agent, load, signals};

/// How often the clock and Ctrl-C are looked at.
const TICK: Duration = Duration::from_millis(100);
/// The agent writes down what the guard tells within this time.
const SETTLE: Duration = Duration::from_millis(1_500);

/// Watches for `seconds`, or until Ctrl-C.
pub(crate) fn run(args: &StackArgs, seconds: Option<u64>) -> Result<Answer, Failure> {
    let loaded = load::load(args).map_err(load::Unusable::into_failure)?;
    super::require_machine("learn")?;
    signals::catch();
    let layout = args.layout(loaded.stack.project.clone());
    let _lock = super::lock(&layout, "learn from")?;
    let seen = watch(&layout, &loaded.stack, seconds)?;
    let all = lessons(&loaded.stack, seen);
    // A service is patched in the file that it is written in.
    let files: BTreeSet<_> = loaded.stack.services.iter().map(|service| service.place.file.clone()).collect();
    let mut changed = false;
    for file in files {
        let text = fs::read_to_string(&*file)
            .map_err(|error| Failure::new(format!("can't read {file} again, to write a patch for it"), error))?;
        let new = rewrite(&text, &file, &loaded.stack, &all);
        changed |= new.text != text || !new.by_hand.is_empty();
        print!(
            "{}",
            TextDiff::from_lines(&text, &new.text).unified_diff().header(&format!("a/{file}"), &format!("b/{file}"))
        );
        for by_hand in &new.by_hand {
            eprintln!("to be written by hand: {by_hand}");
        }
    }
    if !changed {
        eprintln!("the file already says no more than what was used");
        return Ok(Answer::Yes);
    }
    for (service, lesson) in &all {
        for (address, port) in &lesson.outside {
            eprintln!("{service} also used {address} port {port} outside; x-palisade.egress can narrow that");
        }
    }
    eprintln!("Read it before you apply it (patch -p1): what nobody used while it watched is not in it.");
    Ok(Answer::Yes)
}

/// Puts the old policy back when it is dropped.
struct Learning<'a> {
    guard: &'a Guard,
    before: Policy,
}

impl<'a> Learning<'a> {
    fn begin(guard: &'a Guard, before: Policy) -> Result<Self, GuardError> {
        let learning = Self { guard, before };
        guard.set_policy(&Policy { mode: Mode::Learn, ..learning.before.clone() })?;
        Ok(learning)
    }
}

impl Drop for Learning<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.guard.set_policy(&self.before) {
            eprintln!("error: the policy could not be put back: {}", crate::exit::chain(&error));
            eprintln!("  hint: services may do more than the file says until you run `palisade up`");
        }
    }
}

fn watch(layout: &Layout, stack: &Stack, seconds: Option<u64>) -> Result<Vec<(ServiceName, Use)>, Failure> {
    let guarded = |error: GuardError| Failure::new("can't watch the stack", error);
    let host = observe::observe_for(layout, stack);
    let not_up = || {
        Failure::plain(format!("{} isn't up, so there is nothing to learn from", stack.project))
            .hint("run `palisade up --wait` first")
    };
    let guard = Guard::open(&pins(layout)).map_err(guarded)?.ok_or_else(not_up)?;
    // Not what the file says by now: that is for `up`.
    let state = State::read(layout).map_err(|error| Failure::new("can't read what was applied before", error))?;
    let in_force = state.policy.ok_or_else(not_up)?;
    // The agent looks after this lock: when nobody holds it, nobody is there to put the policy back.
    let _mark = Lock::try_take(&agent::learning_mark(layout))
        .map_err(|_| Failure::plain(format!("somebody is learning from {} already", stack.project)))?;
    let before = fs::metadata(layout.events()).map(|metadata| metadata.len()).unwrap_or(0);
    {
        let _learning = Learning::begin(&guard, in_force).map_err(guarded)?;
        let how_long = seconds.map_or("until Ctrl-C".to_owned(), |seconds| format!("for {seconds} s"));
        eprintln!("Watching {} {how_long}: use everything that should work afterwards", stack.project);
        if seconds.is_none() && !std::io::stdin().is_terminal() {
            eprintln!("(give --for SECONDS where nobody can press Ctrl-C)");
        }
        let began = Instant::now();
        while !signals::interrupted() && seconds.is_none_or(|seconds| began.elapsed() < Duration::from_secs(seconds)) {
            std::thread::sleep(TICK);
        }
        std::thread::sleep(SETTLE);
    }
    if let Err(error) = fs::remove_file(agent::learning_mark(layout)) {
        eprintln!("left behind: {}: {error}", agent::learning_mark(layout).display());
    }
    let mut seen = events(layout, &host, before)?;
    // What was bound before the watching began is still there to be seen.
    let now = observe::observe_for(layout, stack);
    seen.extend(now.sockets.iter().filter_map(|socket| {
        let SocketOwner::Instance(id) = &socket.owner else { return None };
        let private =
            matches!(socket.local.ip().to_canonical(), IpAddr::V4(ip) if InstanceAddress::from_ip(ip).is_some());
        // A datagram socket on a port that the kernel picks is a client's.
        let declared = socket.proto == Proto::Tcp || socket.local.port() < 32_768;
        (private && declared)
            .then(|| (id.service.clone(), Use::Bind(PortProto { port: socket.local.port(), proto: socket.proto })))
    }));
    Ok(seen)
}

/// What the guard told since the log had this length. A log that was rotated meanwhile is read from its beginning.
fn events(layout: &Layout, host: &Observed, from: u64) -> Result<Vec<(ServiceName, Use)>, Failure> {
    let path = layout.events();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::new(format!("can't read {}", path.display()), error)),
    };
    let new = usize::try_from(from).ok().and_then(|from| text.get(from..)).unwrap_or(&text);
    let mut seen = Vec::new();
    for line in new.lines() {
        let Ok(record) = serde_json::from_str::<palisade_host::agent::Event>(line) else { continue };
        let Some(instance) = record.instance else { continue };
        let Ok(event) = serde_json::from_value::<palisade_guard::Event>(record.details) else { continue };
        if event.kind == Kind::Used {
            seen.extend(used(host, &event).map(|used| (instance.service, used)));
        }
    }
    Ok(seen)
}

fn used(host: &Observed, event: &palisade_guard::Event) -> Option<Use> {
    let proto = if event.proto == 17 { Proto::Udp } else { Proto::Tcp };
    let port = PortProto { port: event.port, proto };
    match (event.hook, event.address.to_canonical()) {
        (Hook::Bind, _) if event.port != 0 => Some(Use::Bind(port)),
        (Hook::Connect | Hook::Send, IpAddr::V4(address)) if address.is_loopback() => {
            let server = host.addresses.iter().find(|(_, index)| index.address().is_some_and(|a| a.ip() == address))?;
            Some(Use::Peer { server: server.0.clone(), port })
        }
        (Hook::Connect | Hook::Send, address) => Some(Use::Outside(address, port)),
        _ => None,
    }
}
