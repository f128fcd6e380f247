//! The last steps before a service's program, or a command beside it, runs: user, capabilities, no_new_privs, seccomp, exec.
//!
//! Both ways into an instance (start and enter) go through here, so that they cannot differ. Namespaces, cgroups and
//! mounts are settled before.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use palisade_core::instance::InstanceSpec;
use serde::{Deserialize, Serialize};

use super::capability::{self, Set};
use super::init::Failure;
use super::rootfs::c_string;
use super::user::Identity;
use super::{seccomp, sys};

/// Where a command without a slash is looked up unless the environment says otherwise: Docker's default.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// As what something runs inside an instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Confinement {
    pub(super) identity: Identity,
    capabilities: u64,
    pub(super) environment: BTreeMap<String, String>,
    working_dir: PathBuf,
    /// Soft and hard limit by `RLIMIT_…`.
    limits: BTreeMap<u32, (u64, u64)>,
    oom_score_adj: Option<i16>,
}

/// The limits of setrlimit(2) by the names that Compose has for them.
const ULIMITS: [(&str, u32); 16] = [
    ("as", libc::RLIMIT_AS),
    ("core", libc::RLIMIT_CORE),
    ("cpu", libc::RLIMIT_CPU),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("locks", libc::RLIMIT_LOCKS),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("msgqueue", libc::RLIMIT_MSGQUEUE),
    ("nice", libc::RLIMIT_NICE),
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
    ("rss", libc::RLIMIT_RSS),
    ("rtprio", libc::RLIMIT_RTPRIO),
    ("rttime", libc::RLIMIT_RTTIME),
    ("sigpending", libc::RLIMIT_SIGPENDING),
    ("stack", libc::RLIMIT_STACK),
];

/// What is run.
pub(super) enum Program {
    /// An argument vector; the first is a path, or a name looked up in PATH.
    Command(Vec<String>),
    /// This program, which needs no path inside the instance.
    Own(OwnedFd, Vec<String>),
}

impl Confinement {
    /// What the spec says.
    pub(super) fn of(spec: &InstanceSpec, identity: Identity) -> Result<Self, Failure> {
        let set = Set::of(&spec.cap_add, &spec.cap_drop).map_err(|name| {
            let granted = capability::GRANTABLE.join(", ");
            let why = format!("services can have {granted}, and no others");
            Failure::new(
                format!("grant or drop the capability `{name}`"),
                io::Error::new(io::ErrorKind::InvalidInput, why),
            )
        })?;
        let capabilities = if identity.uid == 0 { set.0 } else { 0 };
        let missing = Set(capabilities).missing_here();
        if !missing.is_empty() {
            let why = "this machine (or the container that Palisade runs in) lacks them itself";
            let operation = format!("grant the capabilities {}", missing.join(", "));
            return Err(Failure::new(operation, io::Error::new(io::ErrorKind::PermissionDenied, why)));
        }
        let mut environment = (*spec.environment).clone();
        environment.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
        environment.entry("HOME".into()).or_insert_with(|| identity.home.to_string_lossy().into_owned());
        let working_dir = spec.program.process().and_then(|process| process.working_dir.clone());
        let working_dir = working_dir.unwrap_or_else(|| PathBuf::from("/"));
        // A core dump of a service holds its secrets and lands wherever the host's core_pattern says: only for those
        // who ask for it.
        let mut limits = BTreeMap::from([(libc::RLIMIT_CORE, (0, 0))]);
        for (name, limit) in &spec.settings.ulimits {
            let wrong = |why: String| {
                let operation = format!("set the limit `{name}`");
                Err(Failure::new(operation, io::Error::new(io::ErrorKind::InvalidInput, why)))
            };
            let Some((_, resource)) = ULIMITS.iter().find(|(known, _)| known == name) else {
                let known: Vec<_> = ULIMITS.iter().map(|(name, _)| *name).collect();
                return wrong(format!("there is no limit `{name}`; there are {}", known.join(", ")));
            };
            let unlimited = libc::RLIM_INFINITY;
            let (soft, hard) = (limit.soft.unwrap_or(unlimited), limit.hard.unwrap_or(unlimited));
            if soft > hard {
                return wrong("its soft limit is above its hard limit".into());
            }
            limits.insert(*resource, (soft, hard));
        }
        Ok(Self {
            identity,
            capabilities,
            environment,
            working_dir,
            limits,
            oom_score_adj: spec.settings.oom_score_adj,
        })
    }

    /// Becomes the program. Returns only what went wrong.
    pub(super) fn exec(&self, program: Program) -> Failure {
        match self.prepare(program) {
            Ok(never) => never,
            Err(failure) => failure,
        }
    }

    fn prepare(&self, program: Program) -> Result<Failure, Failure> {
        let step = |result: io::Result<()>, what: &str| result.map_err(|source| Failure::new(what.to_owned(), source));
        let identity = &self.identity;
        let set = Set(self.capabilities);
        step(
            nix::unistd::setsid()
                .map(drop)
                .or_else(|error| if error == nix::Error::EPERM { Ok(()) } else { Err(error) })
                .map_err(Into::into),
            "start a session",
        )?;
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        sys::reset_signals();
        step(sys::cloexec_from(3), "close the runtime's files")?;
        if let Some(score) = self.oom_score_adj {
            // Going below what it was takes a capability, as does raising a hard limit: both come before those go.
            step(
                fs::write("/proc/self/oom_score_adj", score.to_string()),
                &format!("set oom_score_adj to {score}{}", capability_hint()),
            )?;
        }
        for (resource, (soft, hard)) in &self.limits {
            step(
                sys::set_limit(*resource, *soft, *hard),
                &format!("set the limit `{}`{}", limit_name(*resource), capability_hint()),
            )?;
        }
        step(capability::bound(set), "drop capabilities for good")?;
        let groups: Vec<_> = identity.groups.iter().map(|gid| nix::unistd::Gid::from_raw(*gid)).collect();
        step(nix::unistd::setgroups(&groups).map_err(Into::into), "set the supplementary groups")?;
        let (uid, gid) = (nix::unistd::Uid::from_raw(identity.uid), nix::unistd::Gid::from_raw(identity.gid));
        step(nix::unistd::setresgid(gid, gid, gid).map_err(Into::into), "set the group")?;
        step(nix::unistd::setresuid(uid, uid, uid).map_err(Into::into), "set the user")?;
        step(capability::set(set, set), "set the capabilities")?;
        step(sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map(drop), "set no_new_privs")?;
        step(
            nix::unistd::chdir(&self.working_dir).map_err(Into::into),
            &format!("change to the working directory {}", self.working_dir.display()),
        )?;
        step(seccomp::apply(), "apply the system call filter")?;
        self.run(program)
    }

    fn run(&self, program: Program) -> Result<Failure, Failure> {
        let mut environment = Vec::new();
        for (name, value) in &self.environment {
            environment.push(c_string(format!("{name}={value}"))?);
        }
        let arguments = |arguments: &[String]| -> Result<Vec<CString>, Failure> {
            arguments.iter().map(|argument| c_string(argument.as_str())).collect()
        };
        match program {
            Program::Own(fd, line) => {
                let (arguments, environment) = (arguments(&line)?, environment);
                let result =
                    nix::unistd::execveat(&fd, c"", &arguments, &environment, nix::fcntl::AtFlags::AT_EMPTY_PATH);
                let source = result.err().map_or_else(io::Error::last_os_error, io::Error::from);
                Ok(Failure::new(format!("run this program (descriptor {})", fd.as_raw_fd()), source))
            }
            Program::Command(line) => {
                let arguments = arguments(&line)?;
                let name = line.first().cloned().unwrap_or_default();
                Ok(self.run_command(&name, &arguments, &environment))
            }
        }
    }

    fn run_command(&self, name: &str, arguments: &[CString], environment: &[CString]) -> Failure {
        let path = self.environment.get("PATH").map_or(DEFAULT_PATH, String::as_str);
        let candidates: Vec<PathBuf> = if name.contains('/') {
            vec![PathBuf::from(name)]
        } else {
            path.split(':').map(|directory| Path::new(directory).join(name)).collect()
        };
        let mut refused = None;
        for candidate in &candidates {
            let Ok(file) = c_string(OsString::from(candidate.clone()).into_vec()) else { continue };
            let Err(errno) = nix::unistd::execve(&file, arguments, environment);
            match errno {
                nix::Error::ENOENT | nix::Error::ENOTDIR if !candidate.exists() => {}
                errno => refused = refused.or_else(|| Some((candidate.clone(), errno))),
            }
        }
        match refused {
            // The file is there, so what the kernel misses is the interpreter that its first line or header names.
            Some((file, nix::Error::ENOENT)) => Failure::new(
                format!("run {}: its interpreter is missing in the instance", file.display()),
                nix::Error::ENOENT.into(),
            ),
            Some((file, errno)) => {
                let hint = match fs::metadata(&file) {
                    Ok(metadata) if metadata.is_dir() => ": it is a directory",
                    _ => "",
                };
                Failure::new(format!("run {}{hint}", file.display()), errno.into())
            }
            None if name.contains('/') => {
                Failure::new(format!("run {name}: there is no such file in the instance"), nix::Error::ENOENT.into())
            }
            None => Failure::new(
                format!("run: command `{name}` not found in the service's PATH: {path}"),
                nix::Error::ENOENT.into(),
            ),
        }
    }
}

fn limit_name(resource: u32) -> &'static str {
    ULIMITS.iter().find(|(_, known)| *known == resource).map_or("?", |(name, _)| name)
}

/// Containers and some machines keep from root what raising a hard limit or lowering oom_score_adj takes.
fn capability_hint() -> &'static str {
    let needed = capability::bit("SYS_RESOURCE").unwrap_or(0);
    if Set(needed).missing_here().is_empty() { "" } else { " (root of this machine lacks CAP_SYS_RESOURCE)" }
}
