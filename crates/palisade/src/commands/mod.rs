//! The verbs, one file each, and what they share.
//!
//! A verb reads the host, asks the core what to do or say, and prints; it decides nothing that the core could.

pub(crate) mod audit;
pub(crate) mod check;
pub(crate) mod check_nginx;
pub(crate) mod config;
pub(crate) mod confirm;
pub(crate) mod down;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod explain;
pub(crate) mod export;
pub(crate) mod history;
pub(crate) mod learn;
pub(crate) mod life;
pub(crate) mod logs;
pub(crate) mod plan;
pub(crate) mod ports;
pub(crate) mod prove;
pub(crate) mod ps;
pub(crate) mod rollback;
pub(crate) mod up;

use palisade_core::apply;
use palisade_core::compile::{Compiled, Numbers, Surroundings};
use palisade_core::finding::Finding;
use palisade_core::image::{self, FetchWishes};
use palisade_core::life::Turn;
use palisade_core::names::{ProjectName, ServiceName};
use palisade_core::observed::Observed;
use palisade_core::plan::{Wishes, compile_standing};
use palisade_core::policy::Mode;
use palisade_core::stack::{Stack, Volume};
use palisade_host::cgroup::{self, Mounts};
use palisade_host::layout::Layout;
use palisade_host::volumes;
use std::collections::BTreeSet;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use crate::cli::{Cli, Verb};
use crate::exit::{Answer, Failure, NOTHING_LEFT};
use crate::host::HostError;
use crate::state::{Lock, LockError};

/// Does what was typed.
pub(crate) fn run(cli: Cli) -> Result<Answer, Failure> {
    match cli.verb {
        Verb::Config(args) => config::run(&cli.stack, &args),
        Verb::Check { strict, format } => check::run(&cli.stack, strict, format),
        Verb::Plan { format } => plan::run(&cli.stack, format),
        Verb::Up(args) => up::run(&cli.stack, &args),
        Verb::Confirm { yes } => confirm::run(&cli.stack, yes),
        Verb::Down { volumes, yes } => down::run(&cli.stack, volumes, yes),
        Verb::Stop { services } => life::run(&cli.stack, Turn::Stop, &services),
        Verb::Start { services } => life::run(&cli.stack, Turn::Start, &services),
        Verb::Restart { services } => life::run(&cli.stack, Turn::Restart, &services),
        Verb::Exec(args) => exec::run(&cli.stack, args),
        Verb::History { format } => history::run(&cli.stack, format),
        Verb::Rollback { generation, yes } => rollback::run(&cli.stack, generation, yes),
        Verb::Ps { format } => ps::run(&cli.stack, format),
        Verb::Logs { services, follow, tail } => logs::run(&cli.stack, &services, follow, tail),
        Verb::Learn { seconds } => learn::run(&cli.stack, seconds),
        Verb::Audit(args) => audit::run(&cli.stack, &args),
        Verb::Explain(args) => explain::run(&cli.stack, &args),
        Verb::CheckNginx(args) => check_nginx::run(&cli.stack, &args),
        Verb::Export(args) => export::run(&cli.stack, &args),
        Verb::Ports(args) => ports::run(&cli.stack, &args),
        Verb::Prove { format } => prove::run(&cli.stack, format),
        Verb::Rehearse { file, format } => {
            let mut stack = cli.stack;
            stack.files.extend(file);
            crate::rehearse::run(&stack, format)
        }
        Verb::Events { follow, format } => events::run(&cli.stack, follow, format),
    }
}

/// What every plan of this binary wishes, and how a volume is found.
pub(crate) fn wishes<'a>(
    mode: Mode,
    wait_for_health: bool,
    volume_path: &'a dyn Fn(&str, &Volume) -> PathBuf,
) -> Wishes<'a> {
    Wishes {
        mode,
        wait_for_health,
        fetch: Some(FetchWishes::default()),
        only: None,
        recreate: false,
        back: false,
        confirm: None,
        volume_path,
    }
}

/// The stack with what its images say, and what the guard and the runtime are given, on this host.
pub(crate) fn compiled(
    layout: &Layout,
    stack: &Stack,
    host: &Observed,
    mode: Mode,
) -> Result<(Stack, Compiled), Failure> {
    let stack = image::completed(stack, &host.engine).into_owned();
    let volume_path = |key: &str, volume: &_| volumes::folder(layout, key, volume);
    let surroundings = Surroundings {
        addresses: &host.addresses,
        resolvers: &host.resolvers,
        mode,
        volume_path: &volume_path,
        files: Some(&host.files),
        engine: &host.engine,
        numbers: Numbers::FIRST,
        own: host.own.as_ref(),
    };
    let compiled = compile_standing(&stack, host, surroundings).map_err(|findings| refused(&findings))?;
    Ok((stack, compiled))
}

/// Asks on a terminal. Elsewhere nobody is there to answer.
pub(crate) fn says_yes(question: &str) -> bool {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return false;
    }
    eprint!("{question}");
    let mut answer = String::new();
    io::stderr().flush().is_ok() && io::stdin().lock().read_line(&mut answer).is_ok() && answer.trim() == "yes"
}

/// Rows of cells as a table; the last column isn't filled up.
pub(crate) fn table<const COLUMNS: usize>(rows: Vec<[String; COLUMNS]>) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Names of services as typed, each of which the stack must have.
pub(crate) fn services_of(stack: &Stack, typed: &[String]) -> Result<BTreeSet<ServiceName>, Failure> {
    let find = |name: &String| {
        let found = stack.services.iter().find(|service| service.name.as_str() == name);
        found.map(|service| service.name.clone()).ok_or_else(|| {
            let known: Vec<_> = stack.services.iter().map(|service| service.name.as_str()).collect();
            let known = if known.is_empty() { "no services".to_owned() } else { known.join(", ") };
            Failure::Input(format!("error: {} has no service `{name}`\n  hint: it has {known}", stack.project))
        })
    };
    typed.iter().map(find).collect()
}

/// Says what this machine lacks before anything is changed.
pub(crate) fn require_machine(verb: &str) -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::lacking(
            format!("`palisade {verb}` needs root: it makes cgroups and loads eBPF programs"),
            format!("run `sudo palisade {verb}`; `palisade check` and `palisade plan` work without"),
        ));
    }
    let lacking = lacking_capabilities();
    if !lacking.is_empty() {
        let names = lacking.join(", ");
        return Err(Failure::lacking(
            format!("`palisade {verb}` needs all of root's power, and this root lacks {names}"),
            "run it on the host itself; inside a container it needs --privileged",
        ));
    }
    match Mounts::find() {
        Ok(_) => Ok(()),
        Err(cgroup::Error::NoCgroup2) => Err(Failure::lacking(
            "this machine has no cgroup2 mounted, and cgroups are what tells services apart",
            "mount -t cgroup2 none /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1",
        )),
        Err(error) => Err(Failure::new("can't find out where cgroup2 is mounted", error)),
    }
}

/// What the adapters can't work without. Whoever has `CAP_SYS_ADMIN` may also load eBPF programs.
const CAPABILITIES: [(u32, &str); 6] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (12, "CAP_NET_ADMIN"),
    (21, "CAP_SYS_ADMIN"),
];

/// Root of a container often isn't what it seems. What can't be found out is not said to be lacking.
fn lacking_capabilities() -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else { return Vec::new() };
    CAPABILITIES.iter().filter(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| *name).collect()
}

/// One change of a stack at a time.
pub(crate) fn lock(layout: &Layout, verb: &str) -> Result<Lock, Failure> {
    Lock::try_take(&layout.run().join("lock")).map_err(|error| match error {
        LockError::Held(pid) => {
            let who =
                pid.map_or_else(|| "another palisade".to_owned(), |pid| format!("palisade with process id {pid}"));
            Failure::plain(format!("can't {verb} {}: {who} is changing it", layout.project))
                .hint("try again when it is done")
        }
        LockError::State(error) => Failure::new(format!("can't {verb} {}", layout.project), error),
    })
}

/// A plan that its own check objects to is a fault of ours, and is not carried out.
pub(crate) fn require_safe(faults: &[Finding]) -> Result<(), Failure> {
    if faults.is_empty() {
        return Ok(());
    }
    let faults = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    Err(Failure::plain(format!("the plan isn't safe, so nothing was changed:\n{faults}"))
        .hint("this is a fault of Palisade: please report it"))
}

/// Findings that stand against a plan: a port that is taken is the host's matter, anything else the file's.
pub(crate) fn refused(findings: &[Finding]) -> Failure {
    let text = findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n");
    if findings.iter().any(|finding| finding.id == "needs-engine") {
        return Failure::Unable(text);
    }
    if findings.iter().all(|finding| finding.id == "port-taken") {
        Failure::Refused(text)
    } else {
        Failure::Input(text)
    }
}

/// A failed apply as the end of a run.
pub(crate) fn failed(project: &ProjectName, verb: &str, failure: apply::Failure<HostError>) -> Failure {
    let mut told = match &failure.reason {
        apply::Reason::Interrupted => String::new(),
        apply::Reason::Step { error, .. } => crate::exit::chain(error),
    };
    let mut why = |error: &HostError| {
        let text = crate::exit::chain(error);
        // The last part, the kernel's word, may differ: a connection is first reset and then refused.
        let trouble = |text: &str| text.rsplit_once(": ").map(|(trouble, _)| trouble.to_owned());
        if trouble(&text).is_some_and(|trouble| told.contains(&trouble)) {
            return "for the same reason".to_owned();
        }
        told.push_str(&text);
        text
    };
    let left: Vec<String> = failure
        .left
        .iter()
        .map(|left| match left {
            apply::Left::Failed { error, .. } => format!("{left}: {}", why(error)),
            apply::Left::Impossible { .. } | apply::Left::Kept { .. } => left.to_string(),
        })
        .collect();
    match failure.reason {
        apply::Reason::Interrupted => {
            let undone = match verb {
                "down" | "stop" => "what was stopped runs again, and nothing was taken away",
                "start" | "restart" => "everything is as it was before",
                _ => NOTHING_LEFT,
            };
            Failure::Interrupted { left, undone }
        }
        apply::Reason::Step { action, error } => {
            let hint = error.hint();
            if let (Some(lacking), true) = (error.lacking(), left.is_empty()) {
                return Failure::Lacking(lacking);
            }
            let undone = match left.len() {
                0 => "; what was done before is undone",
                _ => "; not everything that was done before could be undone",
            };
            let failure = match error {
                HostError::NotReady { .. } => Failure::plain(format!("`{verb}` of {project}: {error}{undone}")),
                _ => Failure::new(format!("`{verb}` of {project}: can't {action}{undone}"), error),
            };
            left.into_iter().chain(hint).fold(failure, |failure, hint| failure.hint(hint))
        }
    }
}
