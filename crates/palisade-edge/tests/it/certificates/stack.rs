//! A domain with all that belongs to it: an edge, where its challenges are served, and the worker that obtains its certificate.

use crate::certificates::pebble::Wish;
use crate::support::{DOMAIN, Edge, Folder, settings};
use palisade_core::edge::{Acme, AcmeDirectory, CertificateSource, Challenge, Domain, EdgeAt, WorkerSettings};
use palisade_edge::acme::{Outcome, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The edge, and what the worker is told.
pub(crate) struct Stack {
    pub(crate) edge: Edge,
    pub(crate) worker: WorkerSettings,
    _folder: Folder,
}

impl Stack {
    /// Ordering from these, once they are known; the authority needs to know first where the domain is ([`Stack::wish`]).
    pub(crate) fn new(challenge: Challenge) -> Self {
        Self::with_environment(challenge, &[])
    }

    /// The edge has this clock.
    pub(crate) fn with_clock(challenge: Challenge, clock: &Clock) -> Self {
        Self::with_environment(challenge, &clock.environment())
    }

    fn with_environment(challenge: Challenge, environment: &[(&str, String)]) -> Self {
        let (mut told, folder) = settings();
        told.edge.certificates = BTreeMap::from([(DOMAIN.to_owned(), CertificateSource::Acme)]);
        told.edge.acme = Some(Acme { directories: vec![], email: Some("admin@shop.example".to_owned()), challenge });
        // A redirect that comes before the answers to challenges would break them.
        told.edge.redirect = true;
        std::fs::remove_file(told.certificates.join(format!("{DOMAIN}.pem"))).expect("the settings come with one");
        let own = Folder::new();
        let mut worker = WorkerSettings::new(&told.edge, told.certificates.clone(), own.path().join("state"));
        worker.edges = vec![EdgeAt { control: told.control.clone(), https: Some(told.https[0]) }];
        worker.addresses = BTreeMap::from([(DOMAIN.to_owned(), vec![told.https[0].ip()])]);
        worker.challenge_port = Some(match challenge {
            Challenge::Http01 => told.http[0].port(),
            Challenge::TlsAlpn01 => told.https[0].port(),
        });
        let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let edge = Edge::start_by(command, (told, folder));
        Self { edge, worker, _folder: own }
    }

    /// An authority that finds the domain here.
    pub(crate) fn wish(&self) -> Wish {
        Wish::new(self.edge.http(), self.edge.https())
    }

    pub(crate) fn order_from(&mut self, directories: Vec<AcmeDirectory>) {
        self.worker.acme.as_mut().expect("it orders").directories = directories;
    }

    /// One look.
    pub(crate) fn look(&self) -> Outcome {
        let mut outcomes: BTreeMap<Domain, Outcome> = ensure(&self.worker).expect("its folders can be used");
        outcomes.remove(DOMAIN).expect("the domain was looked at")
    }

    /// One look that gets a certificate.
    pub(crate) fn obtain(&self) {
        let outcome = self.look();
        assert!(matches!(outcome, Outcome::Obtained { .. }), "{outcome:?}\n{:#?}", self.events());
    }

    /// One look that fails; why.
    pub(crate) fn fail(&self) -> String {
        match self.look() {
            Outcome::Waiting { text, .. } => text,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.worker.folder.join(format!("{DOMAIN}.pem"))
    }

    pub(crate) fn memory(&self) -> PathBuf {
        self.worker.state.join("domains").join(format!("{DOMAIN}.json"))
    }

    pub(crate) fn remembered(&self) -> Value {
        let text = std::fs::read(self.memory()).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Its order on its way, at whichever authority, or nothing.
    pub(crate) fn pending(&self) -> Value {
        let orders = self.remembered()["orders"].as_object().cloned().unwrap_or_default();
        orders.into_values().next().unwrap_or_default()
    }

    /// Notes something in the worker's place.
    pub(crate) fn note(&self, change: impl FnOnce(&mut Value)) {
        let mut memory = self.remembered();
        change(&mut memory);
        std::fs::write(self.memory(), memory.to_string()).expect("it is there");
    }

    /// As if the time that it waits had passed.
    pub(crate) fn wait_over(&self) {
        self.note(|memory| {
            memory["again_s"] = 0.into();
            for directories in ["blocked", "refused"] {
                memory[directories] = Value::Object(Default::default());
            }
        });
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.worker.state.join("events.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("each line is one object")).collect()
    }

    pub(crate) fn kinds(&self) -> Vec<String> {
        self.events().iter().map(|event| event["kind"].as_str().expect("a kind").to_owned()).collect()
    }

    /// The worker as a process.
    pub(crate) fn start_worker(&self) -> Worker {
        self.start_worker_with(&[])
    }

    /// The same with these variables.
    pub(crate) fn start_worker_with(&self, environment: &[(&str, String)]) -> Worker {
        let file = self.worker.state.parent().expect("it has one").join("worker.json");
        std::fs::write(&file, serde_json::to_vec(&self.worker).expect("settings are data"))
            .expect("the folder is there");
        let child = Command::new(std::env::current_exe().expect("this program has a path"))
            .args(["--ignored", "--exact", "child::certificates", "--nocapture"])
            .env("WORKER_SETTINGS", file)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("this program can be started");
        Worker(child)
    }

    /// What a client is shown, in DER as openssl prints it.
    pub(crate) fn served(&self) -> String {
        serial(self.edge.https(), DOMAIN)
    }
}

/// The serial number of the certificate that a client is shown, or nothing.
pub(crate) fn serial(at: SocketAddr, name: &str) -> String {
    let script = r#"openssl s_client -connect "$0" -servername "$1" </dev/null 2>/dev/null | openssl x509 -noout -serial 2>/dev/null"#;
    let output = Command::new("sh").args(["-c", script, &at.to_string(), name]).output().expect("sh is there");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A wall clock that can be set, for processes that are started with its [`Clock::environment`]; monotonic clocks go on as they do.
pub(crate) struct Clock {
    library: PathBuf,
    folder: Folder,
}

impl Clock {
    /// `None`: libfaketime isn't installed.
    pub(crate) fn new() -> Option<Self> {
        let mut folders: Vec<PathBuf> = vec!["/usr/lib64/faketime".into(), "/usr/lib/faketime".into()];
        let machines = std::fs::read_dir("/usr/lib").ok()?.flatten();
        folders.extend(machines.map(|entry| entry.path().join("faketime")));
        let library = folders.into_iter().map(|folder| folder.join("libfaketimeMT.so.1")).find(|path| path.exists())?;
        let clock = Self { library, folder: Folder::new() };
        clock.set("+0");
        Some(clock)
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("difference")
    }

    /// How far it differs from the host's: `+2h`, `-365d`.
    pub(crate) fn set(&self, difference: &str) {
        let beside = self.folder.path().join("new");
        std::fs::write(&beside, difference).expect("the folder is there");
        std::fs::rename(beside, self.file()).expect("it was written");
    }

    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let flag = |name| (name, "1".to_owned());
        vec![
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file().display().to_string()),
            flag("FAKETIME_NO_CACHE"),
            flag("FAKETIME_DONT_FAKE_MONOTONIC"),
            flag("FAKETIME_DONT_RESET"),
            flag("NO_FAKE_STAT"),
        ]
    }
}

impl Drop for Clock {
    /// What processes that were killed have left in shared memory.
    fn drop(&mut self) {
        for entry in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name.strip_prefix("faketime_shm_").or_else(|| name.strip_prefix("sem.faketime_sem_"));
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// The worker's process. It is killed with the value.
pub(crate) struct Worker(pub(crate) Child);

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
