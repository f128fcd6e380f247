//! `explain`: why a port can or can't be reached, step by step.
//!
//! What is asked is read here, and who could answer is asked; what that means is decided in `palisade_core::explain`.

mod packets;

use palisade_core::explain::{Explanation, FromOutside, FromPeer, Step, Verdict, from_outside, from_peer, unpublished};
use palisade_core::image;
use palisade_core::names::ProjectName;
use palisade_core::observed::Observed;
use palisade_core::prove::Answer as Answered;
use palisade_core::stack::{PortProto, Proto, Service, Stack};
use palisade_host::layout::Layout;
use serde_json::json;
use std::collections::BTreeSet;

use crate::cli::{ExplainArgs, Format, StackArgs};
use crate::exit::{Answer, Failure};
use crate::inside::probe::Target;
use crate::state::State;
use crate::{load, observe, proof};
use packets::Outsider;

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// A port of the host.
    Port(PortProto),
    /// A service of the stack, and perhaps one of its own ports.
    Service(String, Option<PortProto>),
}

/// Tells it, for people or for programs.
pub(crate) fn run(args: &StackArgs, options: &ExplainArgs) -> Result<Answer, Failure> {
    let what = what(&options.what)?;
    let stack = match load::load(args) {
        Ok(loaded) => Some(loaded.stack),
        Err(load::Unusable::NoFile(_)) if args.files.is_empty() && matches!(what, What::Port(_)) => None,
        Err(unusable) => return Err(unusable.into_failure()),
    };
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::lacking(
            "`palisade explain` needs root: it asks the firewall and real connections, not only the file",
            "run it with sudo; what the file says alone is in `palisade ports`",
        ));
    }
    let asker = Asker::new(args, stack)?;
    let answers = asker.answers(&what, options.from.as_deref())?;
    match options.format {
        Format::Text => {
            let texts: Vec<_> = answers.iter().map(text).collect();
            print!("{}", texts.join("\n"));
        }
        Format::Json => println!("{:#}", json!({ "version": 1, "answers": answers })),
    }
    let any = answers.iter().any(|answer| answer.verdict == Verdict::Reachable);
    Ok(if any { Answer::Yes } else { Answer::No })
}

/// What was typed.
fn what(text: &str) -> Result<What, Failure> {
    if text.starts_with(|c: char| c.is_ascii_digit())
        && let Some(port) = port(text)
    {
        return Ok(What::Port(port));
    }
    let (name, rest) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
    match rest.map(port) {
        None => Ok(What::Service(name.to_owned(), None)),
        Some(Some(port)) => Ok(What::Service(name.to_owned(), Some(port))),
        Some(None) => Err(Failure::Input(format!(
            "error: `{text}` is neither a port nor a port of a service\n  hint: write 5432, 53/udp, db or db:5432"
        ))),
    }
}

/// `5432` or `53/udp`.
fn port(text: &str) -> Option<PortProto> {
    let (port, proto) = text.split_once('/').unwrap_or((text, "tcp"));
    let proto = match proto {
        "tcp" => Proto::Tcp,
        "udp" => Proto::Udp,
        _ => return None,
    };
    port.parse().ok().filter(|port| *port > 0).map(|port| PortProto { port, proto })
}

/// Who asks.
enum Who<'a> {
    Outsider(Outsider),
    Service(&'a Service),
}

/// Everything that answers are made of.
struct Asker {
    layout: Layout,
    stack: Option<Stack>,
    host: Observed,
    state: State,
}

impl Asker {
    fn new(args: &StackArgs, stack: Option<Stack>) -> Result<Self, Failure> {
        let project = match &stack {
            Some(stack) => stack.project.clone(),
            // Whose name stands for the realm doesn't matter when there is no stack.
            None => ProjectName::parse("explain").map_err(|error| Failure::new("can't name a question", error))?,
        };
        let layout = args.layout(project);
        let host = match &stack {
            Some(stack) => observe::observe_for(&layout, stack),
            None => observe::observe(&layout),
        };
        let stack = stack.map(|stack| image::completed(&stack, &host.engine).into_owned());
        let state = State::read(&layout).map_err(|error| Failure::new("can't read what was applied", error))?;
        Ok(Self { layout, stack, host, state })
    }

    fn answers(&self, what: &What, from: Option<&str>) -> Result<Vec<Explanation>, Failure> {
        let who = from.map(|from| self.who(from)).transpose()?;
        match (what, who) {
            (What::Port(port), None) => Ok(vec![self.outside(&Outsider::Internet, *port)?]),
            (What::Port(port), Some(Who::Outsider(outsider))) => Ok(vec![self.outside(&outsider, *port)?]),
            (What::Port(port), Some(Who::Service(client))) => Err(self.name_it(client, *port)),
            (What::Service(name, port), who) => {
                let server = self.service(name)?;
                let ports = ports(server, *port)?;
                match who {
                    Some(Who::Outsider(outsider)) => self.published(&outsider, server, &ports),
                    Some(Who::Service(client)) => self.peers(client, server, &ports),
                    None => {
                        let mut all = self.published(&Outsider::Internet, server, &ports)?;
                        let services = self.stack.iter().flat_map(|stack| &stack.services);
                        for client in services.filter(|client| client.name != server.name) {
                            all.extend(self.peers(client, server, &ports)?);
                        }
                        Ok(all)
                    }
                }
            }
        }
    }

    fn who(&self, from: &str) -> Result<Who<'_>, Failure> {
        match Outsider::parse(from) {
            Some(outsider) => Ok(Who::Outsider(outsider)),
            None => self.service(from).map(Who::Service),
        }
    }

    fn service(&self, name: &str) -> Result<&Service, Failure> {
        let services = || self.stack.iter().flat_map(|stack| &stack.services);
        services().find(|service| service.name.as_str() == name).ok_or_else(|| {
            let known: Vec<_> = services().map(|service| service.name.as_str()).collect();
            let known = if known.is_empty() { "there is no Compose file here".to_owned() } else { known.join(", ") };
            Failure::Input(format!(
                "error: `{name}` is no service, and neither `internet` nor a network\n  hint: services: {known}"
            ))
        })
    }

    /// A service doesn't see ports of the host as outsiders do.
    fn name_it(&self, client: &Service, port: PortProto) -> Failure {
        let services = self.stack.iter().flat_map(|stack| &stack.services);
        let having = services.filter(|service| {
            let inside = service.expose.iter().any(|expose| expose.value == port);
            let outside = service.publish.iter().any(|publish| publish.value.host_port == port.port);
            inside || outside
        });
        let having: Vec<_> = having
            .map(|service| {
                let publish = service.publish.iter().find(|publish| publish.value.host_port == port.port);
                let inside = publish.map_or(port, |publish| publish.value.container);
                format!("`palisade explain {}:{inside} --from {}`", service.name, client.name)
            })
            .collect();
        let hint = if having.is_empty() {
            let listed = client.host_ports.iter().find(|listed| listed.value == port.port);
            match listed {
                Some(listed) => format!(
                    "x-palisade.host of {} lets it use {port} of this host's own 127.0.0.1 ({})",
                    client.name, listed.place
                ),
                None => format!(
                    "no service has {port}, and x-palisade.host of {} doesn't list it, so it may not connect there",
                    client.name
                ),
            }
        } else {
            having.join(", ")
        };
        Failure::Input(format!("error: services reach each other by name, not by ports of the host\n  hint: {hint}"))
    }

    fn outside(&self, from: &Outsider, port: PortProto) -> Result<Explanation, Failure> {
        let (ways, unknown) = packets::ways(&self.layout, from, port)?;
        Ok(from_outside(FromOutside {
            who: from.name(),
            port,
            ways: &ways,
            stack: self.stack.as_ref(),
            policy: self.state.policy.as_ref(),
            host: &self.host,
            unknown: &unknown,
        }))
    }

    /// Wherever the service publishes these ports of its own.
    fn published(&self, from: &Outsider, server: &Service, ports: &[PortProto]) -> Result<Vec<Explanation>, Failure> {
        let mut all = Vec::new();
        for port in ports {
            let published = server.publish.iter().filter(|publish| publish.value.container == *port);
            let places: BTreeSet<u16> = published.map(|publish| publish.value.host_port).collect();
            if places.is_empty() {
                all.push(unpublished(from.name(), server, *port));
            }
            for place in places {
                all.push(self.outside(from, PortProto { port: place, proto: port.proto })?);
            }
        }
        Ok(all)
    }

    fn peers(&self, client: &Service, server: &Service, ports: &[PortProto]) -> Result<Vec<Explanation>, Failure> {
        let Some(stack) = &self.stack else { return Ok(Vec::new()) };
        if client.name == server.name {
            return Err(Failure::Input(format!(
                "error: {} always reaches itself\n  hint: name another service",
                client.name
            )));
        }
        let tried = self.try_from(client, server, ports)?;
        let explained = ports.iter().enumerate().map(|(at, port)| {
            let tried = tried.as_ref().and_then(|(id, answers)| Some((id.clone(), answers.get(at)?.clone())));
            let policy = self.state.policy.as_ref();
            from_peer(FromPeer { stack, policy, host: &self.host, client, server, port: *port, tried: tried.as_ref() })
        });
        Ok(explained.collect())
    }

    /// Real connections from inside an instance of the client that runs.
    fn try_from(
        &self,
        client: &Service,
        server: &Service,
        ports: &[PortProto],
    ) -> Result<Option<(String, Vec<Answered>)>, Failure> {
        let Some(address) = self.host.addresses.address(&server.name) else { return Ok(None) };
        let id = proof::some_instance(&self.host, &client.name);
        let target = |port: &PortProto| Target { address: address.ip().into(), port: port.port, proto: port.proto };
        let targets: Vec<_> = ports.iter().map(target).collect();
        Ok(proof::inside(&self.layout, &id, &targets)?.map(|answers| (id.to_string(), answers)))
    }
}

/// The port that was asked about, or all that the service declares.
fn ports(service: &Service, asked: Option<PortProto>) -> Result<Vec<PortProto>, Failure> {
    let declared = service.expose.iter().map(|port| port.value);
    let ports: BTreeSet<_> = asked.map_or_else(|| declared.collect(), |port| BTreeSet::from([port]));
    if ports.is_empty() {
        let name = &service.name;
        return Err(Failure::Input(format!(
            "error: {name} declares no port\n  hint: say which one is meant: `palisade explain {name}:8080`"
        )));
    }
    Ok(ports.into_iter().collect())
}

fn text(answer: &Explanation) -> String {
    let verdict = match answer.verdict {
        Verdict::Reachable => "yes",
        Verdict::Unreachable => "no",
        Verdict::Unknown => "not known",
    };
    let mut text = format!("{}: {verdict}\n", answer.question);
    answer.steps.iter().for_each(|step| text += &step_text(step));
    answer.unknown.iter().for_each(|unknown| text += &format!("  not known: {unknown}\n"));
    answer.hints.iter().for_each(|hint| text += &format!("  hint: {hint}\n"));
    text
}

fn step_text(step: &Step) -> String {
    let mark = match step.passes {
        Some(true) => "yes",
        Some(false) => "NO ",
        None => "-  ",
    };
    let place = step.place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default();
    let seen: String = step.seen.iter().map(|seen| format!("         {seen}\n")).collect();
    format!("  {mark}  {}{place}\n{seen}", step.what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_services_are_told_apart() {
        let tcp = |port| PortProto { port, proto: Proto::Tcp };
        let udp = |port| PortProto { port, proto: Proto::Udp };
        assert_eq!(what("5432").unwrap(), What::Port(tcp(5432)));
        assert_eq!(what("53/udp").unwrap(), What::Port(udp(53)));
        assert_eq!(what("db").unwrap(), What::Service("db".into(), None));
        assert_eq!(what("db:5432").unwrap(), What::Service("db".into(), Some(tcp(5432))));
        assert_eq!(what("9-lives:53/udp").unwrap(), What::Service("9-lives".into(), Some(udp(53))));
        assert_eq!(what("9-lives").unwrap(), What::Service("9-lives".into(), None));
        for wrong in ["db:", "db:0", "db:65536", "db:http", "db:53/sctp"] {
            assert!(matches!(what(wrong), Err(Failure::Input(_))), "{wrong}");
        }
    }
}
