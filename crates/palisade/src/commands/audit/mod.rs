//! `audit`: what this host exposes, to whom, and what to do about it. Reads, and changes nothing.
//!
//! What is wrong is decided in `palisade_core::audit`; how it is laid out, in the modules here.

mod markdown;
mod sarif;
mod text;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use palisade_core::audit::accepted::{self, Acceptance, Accepted, Date};
use palisade_core::audit::facts::{Facts, Listener, Owner};
use palisade_core::audit::rules::{self, Needs, Rule};
use palisade_core::audit::{Audit, Declared, at_least, audit};
use palisade_core::diagnostic::render_all;
use palisade_core::finding::{Finding, Severity};
use palisade_core::names::ProjectName;
use palisade_core::prove::open_doors;
use palisade_core::stack::{Proto, Stack};
use palisade_host::firewall::Firewall;
use palisade_host::layout::Layout;
use palisade_host::sockets;
use palisade_host::survey::{self, Request};
use serde_json::json;

use crate::cli::{AuditArgs, AuditFormat, StackArgs};
use crate::exit::{Answer, Failure};
use crate::load::Loaded;
use crate::state::State;
use crate::{load, observe, proof};

/// Everything that the layouts below show.
struct Report {
    stack: Option<ProjectName>,
    facts: Facts,
    audit: Audit,
    accepted: Vec<Accepted>,
    took: Duration,
}

impl Report {
    /// How many findings are exactly that bad.
    fn count(&self, severity: Severity) -> usize {
        self.audit.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    fn packets(&self) -> u64 {
        self.facts.worlds.iter().map(|world| world.packets).sum()
    }

    /// Whether what the rule is about is here at all.
    fn applies(&self, rule: &Rule) -> bool {
        match rule.needs {
            Needs::Host => true,
            Needs::Stack => self.stack.is_some(),
            Needs::Engine => self.facts.engine.is_some(),
            Needs::Postgres => !self.facts.postgres.is_empty(),
            Needs::Ssh => self.facts.sshd.is_some(),
        }
    }
}

/// Audits this host, with the stack if there is one.
pub(crate) fn run(args: &StackArgs, options: &AuditArgs) -> Result<Answer, Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::lacking(
            "`palisade audit` needs root: only root sees whose sockets are whose, and what the firewall says",
            "run `sudo palisade audit`",
        ));
    }
    let began = Instant::now();
    let loaded = loaded(args, options)?;
    let place = acceptance_file(options, loaded.as_ref());
    let stack = loaded.map(|loaded| loaded.stack);
    let project = stack.as_ref().map(|stack| stack.project.clone());
    if let Some(id) = &options.accept {
        return accept(&place, id, options);
    }
    let acceptances = acceptances(&place)?;
    // Whose name stands for the realm doesn't matter when there is no stack.
    let nobody = ProjectName::parse("audit").map_err(|error| Failure::new("can't name an audit", error))?;
    let layout = args.layout(project.clone().unwrap_or(nobody));
    let facts = look(&layout)?;
    let declared = declared(&layout, stack.as_ref())?;
    let mut audit = audit(&facts, declared.as_ref());
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let accepted = accepted::apply(&acceptances, &mut audit.findings, Date::of_unix_s(seconds));
    let report = Report { stack: project, facts, audit, accepted, took: began.elapsed() };
    let shown = match options.format {
        AuditFormat::Text => text::lay_out(&report, options.all),
        AuditFormat::Json => format!("{}\n", to_json(&report)),
        AuditFormat::Sarif => format!("{:#}\n", sarif::lay_out(&report)),
        AuditFormat::Markdown => markdown::lay_out(&report),
    };
    // Whoever reads only the beginning has seen enough.
    let _ = io::stdout().write_all(shown.as_bytes());
    let bad = at_least(&report.audit.findings, options.fail_on.severity());
    Ok(if bad > 0 { Answer::No } else { Answer::Yes })
}

/// The stack that is meant; none where there is no file, unless one was asked for.
fn loaded(args: &StackArgs, options: &AuditArgs) -> Result<Option<Loaded>, Failure> {
    if options.host_only {
        if let Some(file) = args.files.first() {
            let message = format!("error: `--host-only` looks at no stack, and `-f {}` names one", file.display());
            return Err(Failure::Input(message));
        }
        return Ok(None);
    }
    match load::load(args) {
        Ok(loaded) => Ok(Some(loaded)),
        Err(load::Unusable::NoFile(_)) if args.files.is_empty() => Ok(None),
        Err(unusable) => Err(unusable.into_failure()),
    }
}

fn look(layout: &Layout) -> Result<Facts, Failure> {
    let firewall = Firewall::new(&layout.realm);
    let instances = observe::instance_names(layout);
    let external = proof::external_interfaces()?;
    let docker_host = std::env::var("DOCKER_HOST").ok();
    let request = Request {
        own_table: firewall.table(),
        docker_host: docker_host.as_deref(),
        instances: &instances,
        led: led(layout),
        external: &external,
        given: Vec::new(),
    };
    survey::survey(request).map_err(|error| Failure::new("can't audit this host", error))
}

/// Published TCP ports of all stacks: no socket is bound to them, the guard leads what arrives to the instances.
fn led(layout: &Layout) -> Vec<Listener> {
    let mut found = Vec::new();
    for layout in observe::stacks_of(layout) {
        let Ok(State { policy: Some(policy), .. }) = State::read(&layout) else { continue };
        for service in &policy.services {
            for bind in service.binds.iter().filter(|bind| bind.container.proto == Proto::Tcp) {
                let Some(at) = bind.published else { continue };
                let everywhere = std::net::Ipv6Addr::UNSPECIFIED.into();
                let local = std::net::SocketAddr::new(at.host_ip.unwrap_or(everywhere), at.host_port);
                let instance = Some(format!("{}/{}", layout.project, service.name));
                let owner = Owner { instance, ..Owner::default() };
                found.push(Listener { proto: Proto::Tcp, local, v6_only: false, interface: None, owner });
            }
        }
    }
    found
}

/// What this stack and all others of the host say; `None` when there is neither.
fn declared(layout: &Layout, stack: Option<&Stack>) -> Result<Option<Declared>, Failure> {
    let ssh = std::env::var("SSH_CONNECTION").ok();
    let ssh_ports =
        sockets::ssh_ports(ssh.as_deref()).map_err(|error| Failure::new("can't find sshd's ports", error))?;
    let current = Firewall::new(&layout.realm)
        .current()
        .map_err(|error| Failure::new("can't read Palisade's firewall table", error))?;
    let others = current.into_iter().flat_map(|current| current.stacks);
    let own = stack.map(|stack| (stack.project.as_str(), Declared::by(stack, &ssh_ports)));
    let (name, mut declared) = own.unzip();
    for (other, rules) in others.filter(|(other, _)| Some(other.as_str()) != name) {
        let doors = open_doors(Some(&rules)).unwrap_or_default();
        declared = Some(declared.unwrap_or_default().and(&other, doors));
    }
    Ok(declared)
}

/// Beside the Compose file, or one for the whole host.
fn acceptance_file(options: &AuditArgs, loaded: Option<&Loaded>) -> PathBuf {
    const NAME: &str = "palisade.accept.yaml";
    if let Some(path) = &options.accepted {
        return path.clone();
    }
    loaded.map_or(Path::new("/etc/palisade"), |loaded| &loaded.folder).join(NAME)
}

fn acceptances(path: &Path) -> Result<Vec<Acceptance>, Failure> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Failure::new(format!("can't read {}", path.display()), error)),
    };
    accepted::read(&path.display().to_string(), &text).map_err(|unreadable| {
        let text = render_all(&unreadable.diagnostics, &unreadable.sources, load::style());
        Failure::Input(format!("{text}error: {} can't be used; nothing was audited", path.display()))
    })
}

/// Writes one more entry into the file.
fn accept(path: &Path, what: &str, options: &AuditArgs) -> Result<Answer, Failure> {
    let input = |message: String| Failure::Input(format!("error: {message}"));
    let (id, subject) = what.split_once('=').map_or((what, None), |(id, subject)| (id, Some(subject)));
    if rules::rule(id).is_none() {
        let ids: Vec<_> = rules::RULES.iter().map(|rule| rule.id).collect();
        return Err(input(format!(
            "nothing that an audit finds is called `{id}`\n  hint: there are {}",
            ids.join(", ")
        )));
    }
    let reason = options.reason.as_deref().unwrap_or_default().trim();
    if reason.is_empty() {
        return Err(input("`--accept` needs `--reason`: whoever reads it next wants to know why".to_owned()));
    }
    let until = options.until.as_deref().map(|text| {
        text.parse::<Date>().map_err(|()| input(format!("`{text}` is no day; write `--until 2027-03-01`")))
    });
    let until = until.transpose()?;
    // What is there must be sound before something is added to it.
    acceptances(path)?;
    let failed = |error: io::Error| Failure::new(format!("can't write {}", path.display()), error);
    let mut text = fs::read_to_string(path).unwrap_or_default();
    if !text.lines().any(|line| line.trim_end() == "accept:") {
        if text.lines().any(|line| line.starts_with("accept:")) {
            return Err(Failure::plain(format!(
                "{} is written in another form than `--accept` can add to",
                path.display()
            ))
            .hint("put each acceptance on a line of its own below `accept:`"));
        }
        text.push_str("# Findings of `palisade audit` that are lived with. Review this file like code.\naccept:\n");
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&accepted::line(id, subject, reason, until));
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let beside = path.with_extension("yaml.new");
    fs::write(&beside, text).and_then(|()| fs::rename(&beside, path)).map_err(failed)?;
    acceptances(path)?;
    println!("{what} is accepted in {}", path.display());
    Ok(Answer::Yes)
}

/// Why a finding matters.
fn why(finding: &Finding) -> &'static str {
    rules::rule(finding.id).map_or("", |rule| rule.why)
}

fn to_json(report: &Report) -> serde_json::Value {
    let finding = |finding: &Finding| {
        let mut value = serde_json::to_value(finding).unwrap_or_default();
        value["why"] = why(finding).into();
        value
    };
    let accepted = report.accepted.iter().map(
        |accepted| json!({ "finding": finding(&accepted.finding), "reason": accepted.reason, "until": accepted.until }),
    );
    json!({
        "version": 1,
        "host": report.facts.host,
        "kernel": report.facts.kernel,
        "stack": report.stack,
        "duration_ms": report.took.as_millis() as u64,
        "packets": report.packets(),
        "worlds": report.facts.worlds,
        "ports": report.audit.ports,
        "findings": report.audit.findings.iter().map(finding).collect::<Vec<_>>(),
        "accepted": accepted.collect::<Vec<_>>(),
        "unknown": report.facts.unknown,
        "counts": {
            "errors": report.count(Severity::Error),
            "warnings": report.count(Severity::Warning),
            "notes": report.count(Severity::Note),
            "accepted": report.accepted.len(),
        },
    })
}

/// What this host is, and what it is meant to be, for other verbs.
pub(crate) fn looked_at(layout: &Layout, stack: &Stack) -> Result<(Facts, Option<Declared>), Failure> {
    Ok((look(layout)?, declared(layout, Some(stack))?))
}
