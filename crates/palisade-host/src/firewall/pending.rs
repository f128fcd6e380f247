//! A change of the firewall that waits to be confirmed over a new connection, and is taken back when it isn't.
//!
//! It is noted below `/run` first; then a keeper is started, a process in a session of its own that nobody's death or
//! hang-up ends; only then the firewall is changed. The keeper waits for the deadline and puts back what was there. If
//! it is killed, whoever waits starts another one; if nobody is left, the kernel stops closing a few seconds later. A
//! reboot takes both the note and the table away.

use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use palisade_core::firewall::FirewallRules;
use palisade_core::lockout::{self, Risk, WaysIn};

use super::{Firewall, FirewallError, Snapshot};
use crate::cgroup::Cgroup;
use crate::runtime::{self, THIS_PROGRAM};
use crate::session::{self, Session, Stat};
use crate::whole_file;
use palisade_core::causes::chain;

/// The kernel stops closing so long after the deadline: the keeper has to have its turn first.
const KERNEL_GRACE_MS: u64 = 5_000;

/// How often a keeper looks whether somebody has confirmed.
const LOOK: Duration = Duration::from_millis(100);

/// So long whoever waited has to take note of the end.
const NOTED_WITHIN: Duration = Duration::from_secs(10);

/// How long a keeper tries to put back what was there.
const TRIES: u32 = 300;

/// In the realm's folder; held while what waits is changed.
pub const LOCK: &str = "firewall-pending.lock";

/// The hidden verb of the keeper.
pub const KEEPER: &str = "__take-back";

/// What waits, as `firewall-pending.json` of the realm has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The stack whose `up` changed the firewall.
    pub project: String,
    /// How it stands.
    pub state: State,
    /// When it is taken back, in milliseconds since boot.
    pub deadline_boot_ms: u64,
    /// Where whoever made the change came in from over SSH.
    pub client: Option<IpAddr>,
    /// What it closes that was open; `None`: nothing.
    pub closes: Option<Risk>,
    /// `SSH_CONNECTION` of whoever made the change.
    connection: Option<String>,
    /// A connection that came after this is a new one. Clock ticks since boot.
    changed_ticks: u64,
    before: Snapshot,
    after: Option<Snapshot>,
    boot: String,
    initiator: Proc,
    keeper: Option<Proc>,
}

/// How a change stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// For somebody to confirm it.
    Waiting,
    /// It stays.
    Confirmed,
    /// The firewall is as it was.
    TakenBack,
}

/// A process that can't be mistaken for a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Proc {
    pid: i32,
    started_ticks: u64,
}

impl Proc {
    fn of(pid: i32) -> Option<Self> {
        Stat::of(pid).map(|stat| Self { pid, started_ticks: stat.started_ticks })
    }
    fn is_alive(self) -> bool {
        Stat::of(self.pid).is_some_and(|stat| stat.started_ticks == self.started_ticks && !"ZX".contains(stat.state))
    }
}

/// A change couldn't be made to wait, be confirmed or be taken back.
#[derive(Debug, thiserror::Error)]
pub enum PendingError {
    /// The firewall itself.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// What comes after the next boot.
    #[error(transparent)]
    Boot(#[from] super::boot::BootError),
    /// A file.
    #[error("{operation} {} failed", path.display())]
    Io {
        /// "writing" …
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Another change waits already.
    #[error("a change of the firewall by stack {project} still waits to be confirmed, {left_s} s more")]
    Busy {
        /// Whose.
        project: String,
        /// Until it is taken back.
        left_s: u64,
    },
    /// A change failed, and then what was there before couldn't be put back.
    #[error("{failure}; the table can't be put back")]
    NotPutBack {
        /// Why it failed.
        failure: String,
        /// Why it stays.
        #[source]
        source: FirewallError,
    },
    /// There is nobody to take it back.
    #[error("the process that would take the change back can't be started: {0}")]
    NoKeeper(String),
    /// Nothing waits.
    #[error("no change of the firewall waits to be confirmed")]
    Nothing,
    /// The time was over.
    #[error("it is too late: the firewall is as it was before")]
    TooLate,
    /// Whoever confirms came in before the change.
    #[error(
        "this login is over a connection that was there before the change, so it doesn't prove that you can get in"
    )]
    OldConnection,
    /// Whoever confirms came in over SSH, and when can't be told.
    #[error("which SSH connection this is can't be told, as in a terminal multiplexer")]
    UnknownConnection,
}

impl PendingError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Busy { .. } => {
                Some("run `palisade confirm` over a new SSH connection, or wait until it is taken back; then try again")
            }
            Self::OldConnection | Self::UnknownConnection => Some(
                "open another terminal, log in anew (`ssh -S none …` if you share connections), and run `sudo palisade \
                 confirm` there; `palisade confirm --yes` if you know that you can get in",
            ),
            Self::TooLate => Some("run `palisade up` again; `--confirm-within 5m` gives you more time"),
            _ => None,
        }
    }
}

pub(super) type Result<T> = std::result::Result<T, PendingError>;

fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PendingError {
    move |source| PendingError::Io { operation, path: path.to_owned(), source }
}

/// The change of a realm that waits, or whose end nobody has taken note of.
#[derive(Clone, Debug)]
pub struct Book {
    pub(super) realm: String,
    pub(super) firewall: Firewall,
}

impl Book {
    /// Of a realm (`palisade` on a host).
    pub fn of(realm: &str) -> Self {
        Self { realm: realm.to_owned(), firewall: Firewall::new(realm) }
    }

    fn folder(&self) -> PathBuf {
        Path::new("/run").join(&self.realm)
    }

    fn path(&self) -> PathBuf {
        self.folder().join("firewall-pending.json")
    }

    fn confirmed_path(&self) -> PathBuf {
        Path::new("/var/lib").join(&self.realm).join("firewall-confirmed.json")
    }

    /// What waits; `None` if nothing does. What an earlier boot left is nothing.
    pub fn read(&self) -> Result<Option<Pending>> {
        let pending = read_json::<Pending>(&self.path())?;
        Ok(pending.filter(|pending| pending.boot == boot_id()))
    }

    /// Which ways in were confirmed last on this host.
    pub fn confirmed(&self) -> Option<WaysIn> {
        // What can't be read was not confirmed: at worst it is asked once more.
        read_json(&self.confirmed_path()).ok().flatten()
    }

    /// Whoever changes the table, or what waits, does it alone.
    pub(super) fn lock(&self) -> Result<Flock<File>> {
        let folder = self.folder();
        runtime::make_private_directory(&folder)
            .map_err(|error| at("making", &folder)(io::Error::other(error.to_string())))?;
        let path = folder.join(LOCK);
        let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(at("locking", &path))?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| at("locking", &path)(errno.into()))
    }

    /// The same when nothing waits, and whoever waited has taken note of the end. What one that is gone has left is cleared.
    pub(super) fn lock_when_nothing_waits(&self) -> Result<Flock<File>> {
        let until = Instant::now() + NOTED_WITHIN;
        loop {
            let lock = self.lock()?;
            let Some(pending) = self.read()? else { return Ok(lock) };
            match pending.state {
                State::Waiting if pending.is_abandoned() => {
                    self.put_back(pending)?;
                    self.remove_note()?;
                    return Ok(lock);
                }
                State::Waiting => {
                    let left_s = pending.left_ms().div_ceil(1_000);
                    return Err(PendingError::Busy { left_s, project: pending.project });
                }
                State::Confirmed | State::TakenBack if pending.is_orphaned() || Instant::now() > until => {
                    return Ok(lock);
                }
                State::Confirmed | State::TakenBack => drop(lock),
            }
            std::thread::sleep(LOOK);
        }
    }

    fn write(&self, pending: &Pending) -> Result<()> {
        write_json(&self.path(), pending)
    }

    fn remove_note(&self) -> Result<()> {
        match fs::remove_file(self.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("removing", &self.path())(error)),
            _ => Ok(()),
        }
    }

    /// Changes the firewall so that it is taken back unless somebody confirms it `within_ms`. `on_the_way` is told what
    /// was done, for tests that kill this process there.
    pub fn change(
        &self,
        stack: &str,
        rules: &FirewallRules,
        within_ms: u64,
        session: &Session,
        on_the_way: &dyn Fn(&str),
    ) -> Result<Pending> {
        let lock = self.lock_when_nothing_waits()?;
        let before = self.firewall.snapshot()?;
        let mut pending = Pending {
            closes: lockout::risk(stack, rules, before.0.as_ref()),
            project: stack.to_owned(),
            state: State::Waiting,
            deadline_boot_ms: session::boot_ms() + within_ms,
            client: session.connection.as_ref().map(|connection| connection.client),
            connection: session.connection.as_ref().map(|connection| connection.text.clone()),
            changed_ticks: session::now_ticks(),
            before,
            after: None,
            boot: boot_id(),
            initiator: own_process(),
            keeper: None,
        };
        self.write(&pending)?;
        on_the_way("noted");
        // From here on nobody else changes the table.
        drop(lock);
        let changed = self.start_keeper().and_then(|keeper| {
            pending.keeper = keeper;
            self.write(&pending)?;
            on_the_way("kept");
            self.firewall.apply_for_a_time(&pending.project, rules, within_ms + KERNEL_GRACE_MS)?;
            on_the_way("changed");
            pending.after = Some(self.firewall.snapshot()?);
            pending.changed_ticks = session::now_ticks();
            self.write(&pending)
        });
        if let Err(error) = changed {
            self.take_back()?;
            self.forget()?;
            return Err(error);
        }
        Ok(pending)
    }

    /// Starts a process that takes back what waits. It is ready when this returns.
    fn start_keeper(&self) -> Result<Option<Proc>> {
        let failed = |error: io::Error| PendingError::NoKeeper(error.to_string());
        let mut command = Command::new(THIS_PROGRAM);
        command.args([KEEPER, &self.realm]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(self.log().map_or_else(Stdio::null, Stdio::from));
        // SAFETY: setsid() is safe after a fork.
        unsafe {
            command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into));
        }
        let mut child = command.spawn().map_err(failed)?;
        let mut said = [0; 5];
        let mut pipe = child.stdout.take().expect("piped");
        match pipe.read_exact(&mut said) {
            Ok(()) => Ok(Proc::of(child.id() as i32)),
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                let log = self.log_path();
                Err(PendingError::NoKeeper(format!("it ended at once; see {}", log.display())))
            }
        }
    }

    fn log_path(&self) -> PathBuf {
        Path::new("/var/log").join(&self.realm).join("firewall.log")
    }

    fn log(&self) -> Option<File> {
        let path = self.log_path();
        fs::create_dir_all(path.parent()?).ok()?;
        File::options().create(true).append(true).mode(0o640).open(path).ok()
    }

    /// Sees to it that somebody takes back what waits. Tells whether the keeper was gone and another one is there.
    pub fn keep(&self, pending: &mut Pending) -> Result<bool> {
        if pending.keeper.is_some_and(Proc::is_alive) {
            return Ok(false);
        }
        let keeper = self.start_keeper()?;
        let _lock = self.lock()?;
        // It may have ended meanwhile.
        if let Some(mut current) = self.read()?.filter(|current| current.state == State::Waiting) {
            current.keeper = keeper;
            self.write(&current)?;
        }
        pending.keeper = keeper;
        Ok(true)
    }

    /// The keeper's process: waits for the end and takes back. Returns when nothing waits any more.
    fn wait_and_take_back(&self) {
        let Ok(Some(own)) = self.read() else { return };
        loop {
            std::thread::sleep(LOOK);
            match self.read() {
                Ok(Some(now)) if now.is_same_as(&own) && now.state == State::Waiting => {}
                Ok(_) => break,
                // Whoever can't read what waits must not let it stay closed.
                Err(error) => eprintln!("{}", chain(&error)),
            }
            if own.left_ms() == 0 {
                for _ in 0..TRIES {
                    match self.take_back() {
                        Ok(()) => {
                            eprintln!("nobody confirmed the change by stack {}: it is taken back", own.project);
                            break;
                        }
                        Err(error) => eprintln!("can't take the firewall back, trying again: {}", chain(&error)),
                    }
                    std::thread::sleep(Duration::from_secs(1));
                }
                break;
            }
        }
        // Whoever waits for the answer takes note of it; if nobody does, nothing of it is left.
        let is_there = || self.read().is_ok_and(|now| now.is_some_and(|now| now.is_same_as(&own)));
        while own.initiator.is_alive() && is_there() {
            std::thread::sleep(LOOK);
        }
        if is_there() {
            let _ = self.forget();
        }
    }

    /// Puts back what was there before, and verifies that it is. Nothing is done when nothing waits.
    pub fn take_back(&self) -> Result<()> {
        let _lock = self.lock()?;
        match self.read()? {
            Some(pending) if pending.state == State::Waiting => self.put_back(pending),
            _ => Ok(()),
        }
    }

    /// The same for who has the lock.
    fn put_back(&self, mut pending: Pending) -> Result<()> {
        self.firewall.restore(&pending.before)?;
        pending.state = State::TakenBack;
        self.write(&pending)?;
        // Who would have done it while this waited has left it. The table, which matters now, is back all the same.
        let _ = super::boot::tidy(&self.realm);
        Ok(())
    }

    /// Makes what waits stay. `session` is that of whoever confirms; `sure` takes their word for it.
    pub fn confirm(&self, session: &Session, sure: bool) -> Result<Pending> {
        let _lock = self.lock()?;
        let mut pending = self.read()?.ok_or(PendingError::Nothing)?;
        match pending.state {
            State::Confirmed => return Err(PendingError::Nothing),
            State::TakenBack => return Err(PendingError::TooLate),
            State::Waiting if pending.left_ms() == 0 => return Err(PendingError::TooLate),
            State::Waiting => {}
        }
        if !sure {
            pending.require_new(session)?;
        }
        let after = pending.after.clone().ok_or(PendingError::Nothing)?;
        // Without the time limit in the kernel.
        self.firewall.restore(&after)?;
        super::boot::keep(&self.realm)?;
        let ways = WaysIn::of(after.0.iter().flat_map(|stacks| stacks.values()));
        let path = self.confirmed_path();
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(at("making", folder))?;
        }
        write_json(&path, &ways)?;
        pending.state = State::Confirmed;
        self.write(&pending)?;
        if !pending.initiator.is_alive() {
            self.remove_note()?;
        }
        Ok(pending)
    }

    /// Takes note of the end: nothing waits any more.
    pub fn forget(&self) -> Result<()> {
        self.remove_note()?;
        // A keeper that is about to end is still in it, and removes it then.
        let _ = Cgroup::of_keepers(&self.realm).map(|cgroup| cgroup.remove_upwards_if_empty());
        Ok(())
    }
}

impl Pending {
    /// Until it is taken back, in milliseconds.
    pub fn left_ms(&self) -> u64 {
        self.deadline_boot_ms.saturating_sub(session::boot_ms())
    }
    /// Nobody can confirm it any more and nobody has taken it back: its time is over, or whoever made the change was gone
    /// before it was complete.
    pub fn is_abandoned(&self) -> bool {
        let overdue = self.left_ms() == 0 && !self.keeper.is_some_and(Proc::is_alive);
        let cut_short = self.after.is_none() && self.is_orphaned();
        self.state == State::Waiting && (overdue || cut_short)
    }
    /// Whoever made the change is gone, so nobody else will take note of its end.
    pub fn is_orphaned(&self) -> bool {
        !self.initiator.is_alive()
    }
    fn is_same_as(&self, other: &Self) -> bool {
        (self.initiator, self.deadline_boot_ms) == (other.initiator, other.deadline_boot_ms)
    }
    /// Whoever confirms came in after the change: over a connection of their own, or, where that can't be told, as
    /// somebody who logged in from the same place since. The machine's console is no matter of its firewall.
    fn require_new(&self, session: &Session) -> Result<()> {
        match (&session.connection, session.sshd_started_ticks) {
            (Some(connection), Some(started)) => {
                let new = started > self.changed_ticks && self.connection.as_ref() != Some(&connection.text);
                if new { Ok(()) } else { self.require_login(PendingError::OldConnection) }
            }
            (Some(_), None) | (None, Some(_)) => self.require_login(PendingError::UnknownConnection),
            (None, None) => Ok(()),
        }
    }
    fn require_login(&self, otherwise: PendingError) -> Result<()> {
        match self.client.is_some_and(|client| session::logged_in_since(self.changed_ticks, client)) {
            true => Ok(()),
            false => Err(otherwise),
        }
    }
}

/// Entry point of the hidden verb: waits for the end of what waits, and takes it back.
pub fn keeper_main(arguments: &[String]) {
    let [realm] = arguments else { return };
    // Out of the cgroup of whoever typed `up`: it may be killed with the login session. On a machine without cgroups
    // nobody does that.
    let cgroup = Cgroup::of_keepers(realm);
    let _ =
        cgroup.as_ref().map(|cgroup| cgroup.create().and_then(|()| cgroup.create_v1()).and_then(|()| cgroup.join()));
    // When memory runs out, others go first.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = nix::unistd::chdir("/");
    let mut stdout = io::stdout();
    if stdout.write_all(b"ready").and_then(|()| stdout.flush()).is_err() {
        return;
    }
    // Whoever started us may wait for the end of this.
    let _ = File::open("/dev/null").map(|null| nix::unistd::dup2_stdout(&null));
    Book::of(realm).wait_and_take_back();
    if let Ok(cgroup) = cgroup {
        cgroup.leave();
        cgroup.remove_upwards_if_empty();
    }
}

fn own_process() -> Proc {
    let pid = std::process::id() as i32;
    Proc::of(pid).unwrap_or(Proc { pid, started_ticks: 0 })
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| at("reading", path)(error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at("reading", path)(error)),
    }
}

/// Complete or not at all.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(value).map_err(|error| at("writing", path)(error.into()))?;
    whole_file::replace(path, &bytes, 0o600).map_err(at("writing", path))
}
