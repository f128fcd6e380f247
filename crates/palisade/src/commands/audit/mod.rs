//! `audit`: what this host exposes, to whom, and what to do about it. Reads, and changes nothing.
//!
//! What is wrong is decided in `palisade_core::audit`; how it is laid out, in the modules here.

mod accept;
mod fix;
mod markdown;
mod sarif;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use palisade_core::audit::accepted::{self, Acceptance, Accepted, Date};
use palisade_core::audit::checked::Known;
use palisade_core::audit::facts::{Facts, Listener, Owner};
use palisade_core::audit::{Audit, Declared, at_least, audit, idle_ports};
use palisade_core::finding::{Finding, Severity};
use palisade_core::firewall::FirewallRules;
use palisade_core::names::ProjectName;
use palisade_core::policy::Mode;
use palisade_core::prove::open_doors;
use palisade_core::stack::{PortProto, Proto, Stack};
use palisade_core::verify::verify;
use palisade_host::firewall::Firewall;
use palisade_host::layout::Layout;
use palisade_host::session;
use palisade_host::survey::{self, Request, SurveyError};
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
    acceptances: usize,
    /// Ports that are open for nobody, by the subjects of what is found about them.
    idle: BTreeMap<String, BTreeSet<PortProto>>,
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

    fn known(&self) -> Known {
        Known { stack: self.stack.is_some(), acceptances: self.acceptances }
    }
}

/// Audits this host, with the stack if there is one.
pub(crate) fn run(args: &StackArgs, options: &AuditArgs) -> Result<Answer, Failure> {
    let loaded = loaded(args, options)?;
    let place = accept::file(options, loaded.as_ref());
    if let Some(id) = &options.accept {
        return accept::add(&place, id, options);
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::lacking(
            "`palisade audit` needs root: only root sees whose sockets are whose, and what the firewall says",
            "run `sudo palisade audit`",
        ));
    }
    let acceptances = accept::read(&place)?;
    // Whose name stands for the realm doesn't matter when there is no stack.
    let nobody = ProjectName::parse("audit").map_err(|error| Failure::new("can't name an audit", error))?;
    let layout = args.layout(loaded.as_ref().map_or(nobody, |loaded| loaded.stack.project.clone()));
    let mut report = report(&layout, loaded.as_ref(), &acceptances, options)?;
    if options.fix
        && let Some(mended) = fix::run(&report, options.yes)?
    {
        report = self::report(&layout, loaded.as_ref(), &acceptances, options)?;
        let not_helped = mended.verify(&report);
        if !not_helped.is_empty() {
            not_helped.iter().for_each(|line| eprintln!("{line}"));
            report = self::report(&layout, loaded.as_ref(), &acceptances, options)?;
        }
    }
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

/// Looks at the host and judges it.
fn report(
    layout: &Layout,
    loaded: Option<&Loaded>,
    acceptances: &[Acceptance],
    options: &AuditArgs,
) -> Result<Report, Failure> {
    let began = Instant::now();
    let stack = loaded.map(|loaded| &loaded.stack);
    let names = served_names(stack, &options.tls_name)?;
    let (facts, declared) = looked_at(layout, stack, &options.from, Some(&names))?;
    let mut audit = audit(&facts, declared.as_ref());
    let idle = idle_ports(&facts, declared.as_ref());
    if let Some(loaded) = loaded {
        audit.findings.extend(promises(layout, loaded)?);
        palisade_core::audit::sort(&mut audit.findings);
    }
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let accepted = accepted::apply(acceptances, &mut audit.findings, Date::of_unix_s(seconds));
    let stack = loaded.map(|loaded| loaded.stack.project.clone());
    Ok(Report { stack, facts, audit, accepted, acceptances: acceptances.len(), idle, took: began.elapsed() })
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

/// What this host is, and what it is meant to be. `from`: networks that are asked for, too. `names`: those that servers are
/// asked for, with their ports; `None`: certificates don't matter.
pub(crate) fn looked_at(
    layout: &Layout,
    stack: Option<&Stack>,
    from: &[String],
    names: Option<&[(String, u16)]>,
) -> Result<(Facts, Option<Declared>), Failure> {
    let firewall = Firewall::new(&layout.realm);
    let current = firewall.current().map_err(|error| Failure::new("can't read Palisade's firewall table", error))?;
    let facts = look(layout, &firewall, current.is_some(), from, names)?;
    let stacks = current.into_iter().flat_map(|current| current.stacks);
    Ok((facts, declared(stack, stacks)?))
}

/// Names that servers of this host have to have a certificate for: those of the stack's edge, and those that were given.
fn served_names(stack: Option<&Stack>, given: &[String]) -> Result<Vec<(String, u16)>, Failure> {
    const HTTPS: u16 = 443;
    let mut names = Vec::new();
    if let Some(edge) = stack.and_then(|stack| stack.edge.as_ref()) {
        // A star is asked for by a name that it stands for.
        let asked =
            |domain: &String| domain.strip_prefix("*.").map_or_else(|| domain.clone(), |rest| format!("any.{rest}"));
        names.extend(edge.certificates.keys().map(|domain| (asked(domain), edge.https_port)));
    }
    for text in given {
        let (name, port) =
            text.rsplit_once(':').map_or((text.as_str(), Some(HTTPS)), |(name, port)| (name, port.parse().ok()));
        let Some(port) = port.filter(|_| is_name(name)) else {
            return Err(Failure::Input(format!(
                "error: --tls-name: `{text}` is no name; write shop.example or shop.example:8443"
            )));
        };
        names.push((name.to_lowercase(), port));
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Labels of letters, digits and hyphens.
fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() < 64
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    name.len() < 254 && name.split('.').all(label)
}

fn look(
    layout: &Layout,
    firewall: &Firewall,
    own_firewall: bool,
    from: &[String],
    names: Option<&[(String, u16)]>,
) -> Result<Facts, Failure> {
    let instances = observe::instance_names(layout);
    let external = proof::external_interfaces()?;
    let docker_host = std::env::var("DOCKER_HOST").ok();
    let request = Request {
        own_table: firewall.table(),
        own_firewall,
        docker_host: docker_host.as_deref(),
        instances: &instances,
        led: led(layout),
        external: &external,
        names,
        given: from,
    };
    survey::survey(request).map_err(|error| match error {
        SurveyError::World(error) => Failure::Input(format!("error: --from: {error}")),
        error => Failure::new("can't audit this host", error),
    })
}

/// Published TCP ports of all stacks: no socket is bound to them, the guard leads what arrives to the instances.
fn led(layout: &Layout) -> Vec<Listener> {
    let mut found = Vec::new();
    for layout in observe::stacks_of(layout) {
        let Ok(State { policy: Some(policy), .. }) = State::read(&layout) else { continue };
        for service in &policy.services {
            for (local, _) in observe::led_to(service) {
                let instance = Some(format!("{}/{}", layout.project, service.name));
                let owner = Owner { instance, ..Owner::default() };
                found.push(Listener { proto: Proto::Tcp, local, v6_only: false, interface: None, owner });
            }
        }
    }
    found
}

/// What this stack and all others of the host say; `None` when there is neither.
fn declared(
    stack: Option<&Stack>,
    stacks: impl Iterator<Item = (String, FirewallRules)>,
) -> Result<Option<Declared>, Failure> {
    let ssh_ports = session::ssh_ports().map_err(|error| Failure::new("can't find sshd's ports", error))?;
    let own = stack.map(|stack| (stack.project.as_str(), Declared::by(stack, &ssh_ports)));
    let (name, mut declared) = own.unzip();
    for (other, rules) in stacks.filter(|(other, _)| Some(other.as_str()) != name) {
        let doors = open_doors(Some(&rules)).unwrap_or_default();
        declared = Some(declared.unwrap_or_default().and(&other, doors));
    }
    Ok(declared)
}

/// What the stack promises and isn't so, and what its file risks.
fn promises(layout: &Layout, loaded: &Loaded) -> Result<Vec<Finding>, Failure> {
    let mut findings = loaded.risk_findings();
    let host = observe::observe_for(layout, &loaded.stack);
    // A stack that isn't up breaks no promise.
    if host.agent.is_some() || !host.instances.is_empty() {
        let (stack, compiled) = super::compiled(layout, &loaded.stack, &host, Mode::Enforce)?;
        findings.extend(verify(&stack, &compiled, &host));
    }
    Ok(findings)
}

fn to_json(report: &Report) -> serde_json::Value {
    json!({
        "version": 1,
        "host": report.facts.host,
        "kernel": report.facts.kernel,
        "stack": report.stack,
        "duration_ms": report.took.as_millis() as u64,
        "packets": report.packets(),
        "worlds": report.facts.worlds,
        "ports": report.audit.ports,
        "findings": report.audit.findings,
        "accepted": report.accepted,
        "unknown": report.facts.unknown.iter().map(|unknown| &unknown.why).collect::<Vec<_>>(),
        "tls": report.facts.tls,
        "counts": {
            "errors": report.count(Severity::Error),
            "warnings": report.count(Severity::Warning),
            "notes": report.count(Severity::Note),
            "accepted": report.accepted.len(),
        },
    })
}
