//! Takes root's login by password away from sshd, by a file of its own in `sshd_config.d`: only if that cuts nobody off.
//!
//! Sessions that are there stay: sshd reads its settings for new connections.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};

use crate::nft::{self, ToolError};
use crate::session;
use crate::sockets::{self, SocketProto, Which};
use crate::whole_file;

const CONFIG: &str = "/etc/ssh/sshd_config";
const DROP_IN: &str = "/etc/ssh/sshd_config.d/00-palisade.conf";
const TEXT: &str = "# Set by `palisade audit --fix`: root logs in with a key.\nPermitRootLogin prohibit-password\n";
/// sshd starts itself anew when it reads its settings.
const LISTENS_AGAIN: Duration = Duration::from_secs(10);
/// What an audit says for a session that nobody logged in for.
const NO_LOGIN: u32 = u32::MAX;

/// It can't be done, or was undone.
#[derive(Debug, thiserror::Error)]
pub enum SshdError {
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
    /// sshd doesn't take it.
    #[error("sshd refuses its settings")]
    Refused(#[from] ToolError),
    /// Another line comes before ours.
    #[error("{CONFIG} says something else before it reads {DROP_IN}")]
    NotFirst,
    /// It isn't there any more.
    #[error("sshd didn't listen again within {} s of reading its settings", LISTENS_AGAIN.as_secs())]
    Gone,
}

/// What was done, to be taken back.
#[derive(Debug)]
pub struct RootByKey {
    /// The file that was there before.
    before: Option<Vec<u8>>,
}

/// Why it would not be safe; `None`: it is. `settings`: what `sshd -T` says.
pub fn why_not(settings: &BTreeMap<String, String>) -> Option<String> {
    let own = session::own();
    let login = fs::read_to_string("/proc/self/loginuid").ok().and_then(|text| text.trim().parse::<u32>().ok());
    let includes = fs::read_to_string(CONFIG).is_ok_and(|text| {
        let mut words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        words.any(|words| {
            words.first().is_some_and(|word| word.eq_ignore_ascii_case("include"))
                && words.iter().any(|word| word.contains("sshd_config.d/"))
        })
    });
    if !includes {
        return Some(format!("{CONFIG} doesn't include /etc/ssh/sshd_config.d"));
    }
    if masters()
        .iter()
        .any(|(_, title)| title.split_whitespace().any(|word| word.starts_with("-f") || word.starts_with("-o")))
    {
        return Some("sshd was started with settings of its own".to_owned());
    }
    let as_somebody_else = login.is_some_and(|uid| uid != 0 && uid != NO_LOGIN);
    if own.connection.is_some() && !as_somebody_else {
        return Some("you are here over SSH, maybe as root with a password, and would not get in again".to_owned());
    }
    if !as_somebody_else && !root_has_keys(settings) {
        return Some("root has no key here, so nobody could log in as root any more".to_owned());
    }
    None
}

/// A key is let in for root.
fn root_has_keys(settings: &BTreeMap<String, String>) -> bool {
    if settings.get("pubkeyauthentication").is_none_or(|value| value != "yes") {
        return false;
    }
    let home = User::from_uid(Uid::from_raw(0)).ok().flatten().map_or_else(|| "/root".into(), |root| root.dir);
    let files = settings.get("authorizedkeysfile").map_or(".ssh/authorized_keys", String::as_str);
    files.split_whitespace().any(|file| {
        let path = file.replace("%h", &home.to_string_lossy()).replace("%u", "root");
        let text = fs::read_to_string(home.join(path)).unwrap_or_default();
        let is_key = |line: &str| {
            ["ssh-", "ecdsa-", "sk-"].iter().any(|kind| line.split_whitespace().any(|word| word.starts_with(kind)))
        };
        text.lines().any(|line| !line.trim_start().starts_with('#') && is_key(line))
    })
}

impl RootByKey {
    /// Writes the file, has sshd try it, and has it read. What fails is undone.
    pub fn set() -> Result<Self, SshdError> {
        let done = Self { before: fs::read(DROP_IN).ok() };
        write(TEXT.as_bytes())?;
        let tried = effective().and_then(|effective| if effective { reload() } else { Err(SshdError::NotFirst) });
        match tried {
            Ok(()) => Ok(done),
            Err(error) => {
                // That it failed is what is told.
                let _ = done.take_back();
                Err(error)
            }
        }
    }

    /// As it was before.
    pub fn take_back(&self) -> Result<(), SshdError> {
        match &self.before {
            Some(before) => write(before)?,
            None => match fs::remove_file(DROP_IN) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at("removing")(error)),
                _ => {}
            },
        }
        reload()
    }
}

fn at(operation: &'static str) -> impl FnOnce(io::Error) -> SshdError {
    move |source| SshdError::Io { operation, path: DROP_IN.into(), source }
}

fn write(bytes: &[u8]) -> Result<(), SshdError> {
    whole_file::replace(Path::new(DROP_IN), bytes, 0o644).map_err(at("writing"))
}

/// Whether root can't log in with a password by the files as they are; an error when sshd doesn't take them.
fn effective() -> Result<bool, SshdError> {
    nft::run("sshd", &["-t"], "")?;
    let said = nft::run("sshd", &["-T"], "")?;
    let root = said.lines().find_map(|line| line.strip_prefix("permitrootlogin ")).unwrap_or_default().to_owned();
    Ok(matches!(root.trim(), "without-password" | "prohibit-password" | "forced-commands-only" | "no"))
}

/// The sockets on which sshd listens here, by inode, and whose they are. None where it is started for each connection.
fn listeners() -> BTreeMap<u32, i32> {
    let holders = sockets::holders();
    let listening = sockets::list(Which::Listening).unwrap_or_default();
    let tcp = listening.iter().filter(|it| it.proto == SocketProto::Tcp && it.state == sockets::LISTENING);
    let of_sshd = |inode: u32| Some((inode, holders.get(&inode)?.iter().find(|holder| holder.comm == "sshd")?.pid));
    tcp.filter_map(|socket| of_sshd(socket.inode)).collect()
}

/// Those who listen here, and what they wrote over their command line.
fn masters() -> Vec<(i32, String)> {
    let pids: BTreeSet<i32> = listeners().into_values().collect();
    let title = |pid: i32| {
        let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        title.split('[').next().unwrap_or_default().to_owned()
    };
    pids.into_iter().map(|pid| (pid, title(pid))).collect()
}

fn reload() -> Result<(), SshdError> {
    let before = listeners();
    for pid in before.values().collect::<BTreeSet<_>>() {
        // Whoever has ended meanwhile reads nothing.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGHUP);
    }
    let deadline = Instant::now() + LISTENS_AGAIN;
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let now = listeners();
        // It makes its sockets anew, but for those that somebody else made for it.
        if now.len() >= before.len() && now.keys().all(|inode| !before.contains_key(inode)) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return if now.len() >= before.len() { Ok(()) } else { Err(SshdError::Gone) };
        }
    }
}
