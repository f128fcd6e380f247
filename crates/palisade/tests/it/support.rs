//! What root tests share: the reason why one is skipped, places of their own, and their removal.
//!
//! No assertions live here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use palisade_core::address::ServiceIndex;
use palisade_core::instance::{CgroupDriver, InstanceSpec, Program};
use palisade_core::names::{InstanceId, ProjectName, ServiceName};
use palisade_core::stack::{Limits, LogRotation, Process, ProcessSettings, Restart};
use palisade_host::cgroup::Cgroup;
use palisade_host::layout::Layout;

/// The binary under test.
pub(crate) const PALISADE: &str = env!("CARGO_BIN_EXE_palisade");

/// Ends the test with a note if it doesn't run as root.
#[macro_export]
macro_rules! need_root {
    ($test:literal) => {
        if !nix::unistd::geteuid().is_root() {
            return $crate::support::skipped($test, "it needs root");
        }
    };
}

/// Says that a test can't run here, and why: also in the file that `scripts/test` collects these in.
pub(crate) fn skipped(test: &str, reason: &str) {
    let line = format!("SKIPPED: {test}: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("PALISADE_SKIP_LOG") {
        // One write of a short line: those of other processes don't come between.
        let log = std::fs::OpenOptions::new().append(true).create(true).open(path);
        std::io::Write::write_all(&mut log.unwrap(), line.as_bytes()).unwrap();
    }
}

/// A realm that nobody else uses, removed with everything in it at the end, also when the test panics.
pub(crate) struct Realm {
    pub(crate) layout: Layout,
}

impl Realm {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let realm = format!("palisade-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let layout = Layout { realm, project: ProjectName::parse("shop").unwrap() };
        std::fs::create_dir_all(layout.run()).unwrap();
        Self { layout }
    }

    /// The specification of the service's first instance that runs a shell script, with its cgroup made.
    pub(crate) fn shell(&self, service: &str, script: &str) -> InstanceSpec {
        self.command(service, &["/bin/sh", "-c", script])
    }

    /// The same with an argument vector.
    pub(crate) fn command(&self, service: &str, command: &[&str]) -> InstanceSpec {
        let id = InstanceId { service: ServiceName::parse(service).unwrap(), number: 1 };
        Cgroup::made_by(&self.layout, &id, CgroupDriver::Cgroupfs).unwrap().create().unwrap();
        InstanceSpec {
            project: self.layout.project.clone(),
            id,
            address: ServiceIndex(7).address().unwrap().instance(1),
            program: Program::Process(Process {
                command: command.iter().map(|word| (*word).to_owned()).collect(),
                user: None,
                working_dir: None,
                own: false,
            }),
            environment: Default::default(),
            hosts: vec![("postgres".to_owned(), "127.77.9.0".parse().unwrap())].into(),
            mounts: Vec::new(),
            limits: Limits::default(),
            stop_signal: "SIGTERM".into(),
            stop_grace_ms: 5_000,
            restart: Restart::No,
            healthcheck: None,
            log: LogRotation::default(),
            cap_add: BTreeSet::new(),
            cap_drop: BTreeSet::new(),
            read_only: false,
            files: Vec::new(),
            settings: ProcessSettings::default(),
            published: Vec::new(),
            own_program: None,
        }
    }

    /// What the instance has logged, without times.
    pub(crate) fn log(&self, spec: &InstanceSpec) -> String {
        let text = std::fs::read_to_string(self.layout.log(&spec.id)).unwrap_or_default();
        text.lines().filter_map(|line| line.split_once(' ')).map(|(_, rest)| format!("{rest}\n")).collect()
    }
}

/// The process that the specification runs.
pub(crate) fn process_of(spec: &mut InstanceSpec) -> &mut Process {
    let Program::Process(process) = &mut spec.program else { panic!("it runs no process") };
    process
}

impl Drop for Realm {
    fn drop(&mut self) {
        // Everything that was started is in the realm's cgroups, whatever became of the test.
        match Cgroup::all_of_realm(&self.layout).and_then(|all| all.iter().try_for_each(Cgroup::remove)) {
            Ok(()) => {}
            Err(error) => {
                eprintln!("cannot clean up {}: {error}: {:?}", self.layout.realm, std::error::Error::source(&error))
            }
        }
        for base in ["/run", "/var/lib", "/var/log"] {
            let _ = std::fs::remove_dir_all(Path::new(base).join(&self.layout.realm));
        }
    }
}

/// A directory below the system's temporary one, removed at the end.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new(realm: &Realm) -> Self {
        let path = std::env::temp_dir().join(&realm.layout.realm);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Asks until the answer is there; fails with `what` after a minute, which only something stuck takes.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited 60 s for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
