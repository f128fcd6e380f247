//! `audit --fix`: shows what can be mended without harm, asks, does it, and takes it back if it can't be done whole or the
//! next audit doesn't show that it has helped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use palisade_core::audit::fix::{Setting, fixes, refused, sysctl_file};
use palisade_core::audit::rules::{DOOR_WITHOUT_LISTENER_ID, SSH_ROOT_PASSWORD_ID};
use palisade_core::finding::Finding;
use palisade_core::stack::{PortProto, Proto};
use palisade_host::firewall::close::{self, Opening};
use palisade_host::sshd::{self, RootByKey};
use palisade_host::{firewall, sockets, whole_file};

use super::Report;
use crate::exit::Failure;

const FILE: &str = "/etc/sysctl.d/90-palisade.conf";

/// More ports than this that nobody needs aren't closed one by one: there is another rule behind them.
const PORTS_MAX: usize = 32;

/// What could be mended, and why the rest isn't.
#[derive(Default)]
struct Plan {
    settings: Vec<Setting>,
    openings: Vec<Opening>,
    sshd: bool,
    refused: Vec<String>,
}

/// What was mended, until the next audit has shown that it is.
pub(super) struct Mended {
    settings: Settings,
    openings: Vec<Opening>,
    sshd: Option<RootByKey>,
}

/// Mends what can be mended; `None` when there was nothing to do.
pub(super) fn run(report: &Report, yes: bool) -> Result<Option<Mended>, Failure> {
    let plan = Plan::of(report);
    if !plan.refused.is_empty() {
        eprintln!("Not mended here:");
        plan.refused.iter().for_each(|line| eprintln!("  {line}"));
    }
    if plan.is_empty() {
        eprintln!("Nothing of this can be mended without harm by itself: each finding says what to do.");
        return Ok(None);
    }
    eprintln!("To be mended, now and at each boot:");
    plan.settings.iter().for_each(|setting| eprintln!("  {setting}, also in {FILE}"));
    plan.openings.iter().for_each(|opening| eprintln!("  {opening} ({DOOR_WITHOUT_LISTENER_ID})"));
    if plan.sshd {
        eprintln!(
            "  let root log in with a key only, in /etc/ssh/sshd_config.d/00-palisade.conf ({SSH_ROOT_PASSWORD_ID})"
        );
    }
    if !yes && !crate::commands::says_yes("Do it? Type yes: ") {
        let message = "error: not confirmed, so nothing was changed\n  hint: say yes on a terminal, or give --yes";
        return Err(Failure::Input(message.to_owned()));
    }
    plan.carry_out().map(Some)
}

impl Plan {
    fn of(report: &Report) -> Self {
        let findings = &report.audit.findings;
        let has = |id: &str| findings.iter().any(|finding| finding.id == id);
        let mut plan = Self { settings: fixes(findings), refused: refused(findings), ..Self::default() };
        plan.close_idle(report, findings);
        if has(SSH_ROOT_PASSWORD_ID) {
            match report.facts.sshd.as_ref().and_then(sshd::why_not) {
                None => plan.sshd = true,
                Some(why) => plan.refused.push(format!("{SSH_ROOT_PASSWORD_ID}: {why}")),
            }
        }
        plan
    }

    fn close_idle(&mut self, report: &Report, findings: &[Finding]) {
        // What is accepted isn't among the findings any more.
        let wanted = |subject: &String| {
            findings.iter().any(|finding| finding.id == DOOR_WITHOUT_LISTENER_ID && finding.subject == *subject)
        };
        let ports: Vec<PortProto> = {
            let all = report.idle.iter().filter(|(subject, _)| wanted(subject)).flat_map(|(_, ports)| ports);
            // sshd may only be stopped for a moment, or be started anew.
            let ssh = sockets::configured_ssh_ports();
            let may_be_sshd =
                |port: &PortProto| port.proto == Proto::Tcp && (port.port == 22 || ssh.contains(&port.port));
            let mut ports: Vec<_> = all.copied().filter(|port| !may_be_sshd(port)).collect();
            ports.sort_unstable();
            ports.dedup();
            ports
        };
        if ports.is_empty() {
            return;
        }
        if ports.len() > PORTS_MAX {
            let what = format!(
                "{DOOR_WITHOUT_LISTENER_ID}: {} ports are open for nobody; see which rule lets them in",
                ports.len()
            );
            return self.refused.push(what);
        }
        let backend = firewall::runs();
        for port in ports {
            match close::openings(backend, port) {
                Ok(openings) if openings.is_empty() => self.refused.push(format!(
                    "{DOOR_WITHOUT_LISTENER_ID}: no plain entry of {} opens {port}; `palisade explain {}` names the rule",
                    backend.name(),
                    port.port
                )),
                Ok(openings) => self.openings.extend(openings),
                Err(error) => self
                    .refused
                    .push(format!("{DOOR_WITHOUT_LISTENER_ID}: {port}: {}", crate::exit::chain(&error))),
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.settings.is_empty() && self.openings.is_empty() && !self.sshd
    }

    /// Everything or nothing.
    fn carry_out(self) -> Result<Mended, Failure> {
        let mut mended = Mended { settings: Settings::default(), openings: Vec::new(), sshd: None };
        let failed = |what: String, error: &(dyn std::error::Error + 'static), mended: Mended| {
            let left = mended.take_back();
            let chain = crate::exit::chain(error);
            let failure = Failure::plain(format!("can't {what}; what was changed before is undone: {chain}"));
            left.into_iter().fold(failure, Failure::hint)
        };
        if let Err((what, error)) = mended.settings.set(&self.settings) {
            return Err(failed(what, &error, mended));
        }
        for opening in self.openings {
            if let Err(error) = opening.close() {
                return Err(failed(opening.to_string(), &error, mended));
            }
            mended.openings.push(opening);
        }
        if self.sshd {
            match RootByKey::set() {
                Ok(set) => mended.sshd = Some(set),
                Err(error) => return Err(failed("change sshd's settings".to_owned(), &error, mended)),
            }
        }
        Ok(mended)
    }
}

impl Mended {
    /// Holds what was done against an audit that came after it: what has not helped is taken back, and told.
    pub(super) fn verify(mut self, after: &Report) -> Vec<String> {
        let findings = &after.audit.findings;
        let mut told = Vec::new();
        let still_idle = |port: PortProto| after.idle.values().any(|ports| ports.contains(&port));
        let openings = std::mem::take(&mut self.openings);
        for opening in openings.into_iter().filter(|opening| still_idle(opening.port())) {
            told.push(format!("{} is let in by something else as well; its entry is put back", opening.port()));
            told.extend(opening.open_again().err().map(|error| crate::exit::chain(&error)));
        }
        if let Some(set) = self.sshd.take().filter(|_| findings.iter().any(|it| it.id == SSH_ROOT_PASSWORD_ID)) {
            told.push("root can still log in with a password; sshd's settings are put back".to_owned());
            told.extend(set.take_back().err().map(|error| crate::exit::chain(&error)));
        }
        // Each of these was read back when it was written.
        let open = fixes(findings);
        if self.settings.all().any(|setting| open.iter().any(|again| again.path == setting.path)) {
            told.push("settings of the kernel are not as they were set; they are put back".to_owned());
            told.extend(self.settings.put_back());
        }
        told
    }

    /// Puts everything back; what can't be is told.
    fn take_back(mut self) -> Vec<String> {
        let mut left = self.settings.put_back();
        left.extend(
            self.openings.iter().filter_map(|opening| opening.open_again().err()).map(|it| crate::exit::chain(&it)),
        );
        left.extend(self.sshd.iter().filter_map(|set| set.take_back().err()).map(|it| crate::exit::chain(&it)));
        left
    }
}

/// Settings of the kernel, and what was there before.
#[derive(Default)]
struct Settings {
    set: Vec<Setting>,
    values: Vec<(PathBuf, String)>,
    file: Option<Option<String>>,
}

impl Settings {
    fn all(&self) -> impl Iterator<Item = &Setting> {
        self.set.iter()
    }

    fn set(&mut self, settings: &[Setting]) -> Result<(), (String, io::Error)> {
        if settings.is_empty() {
            return Ok(());
        }
        for setting in settings {
            let path = Path::new("/proc/sys").join(&setting.path);
            let failed = |error| (setting.to_string(), error);
            let before = fs::read_to_string(&path).map_err(failed)?;
            fs::write(&path, setting.value.to_string()).map_err(failed)?;
            self.values.push((path, before));
        }
        let old = fs::read_to_string(FILE).ok();
        let text = sysctl_file(old.as_deref().unwrap_or_default(), settings);
        write_whole(&text).map_err(|error| (format!("write {FILE}"), error))?;
        self.file = Some(old);
        self.set = settings.to_vec();
        Ok(())
    }

    /// Puts everything back; what can't be is told.
    fn put_back(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        for (path, before) in self.values.drain(..).rev() {
            if let Err(error) = fs::write(&path, before.trim()) {
                left.push(format!("{} couldn't be put back to {}: {error}", path.display(), before.trim()));
            }
        }
        let put_back = match self.file.take() {
            Some(Some(old)) => write_whole(&old),
            Some(None) => fs::remove_file(FILE),
            None => Ok(()),
        };
        left.extend(put_back.err().map(|error| format!("{FILE} couldn't be put back: {error}")));
        left
    }
}

fn write_whole(text: &str) -> io::Result<()> {
    fs::create_dir_all(Path::new(FILE).parent().unwrap_or(Path::new("/")))?;
    whole_file::replace(Path::new(FILE), text.as_bytes(), 0o666)
}
