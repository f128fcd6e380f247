//! From one service to a port of another: networks, grants, the guard in the kernel, and the server itself.

use std::net::IpAddr;

use super::{Explanation, Step, Verdict, is_ready, state};
use crate::digest::digest_of;
use crate::edge::is_own;
use crate::instance::{InstanceStatus, RunState};
use crate::names::ServiceName;
use crate::observed::{Observed, SocketOwner, SocketSeen};
use crate::policy::{Mode, Policy};
use crate::prove::{Answer, reaches};
use crate::stack::{PortProto, Proto, Service, Stack};

/// What is asked, and what was seen.
#[derive(Clone, Copy, Debug)]
pub struct FromPeer<'a> {
    /// The file.
    pub stack: &'a Stack,
    /// What the guard was given.
    pub policy: Option<&'a Policy>,
    /// The host.
    pub host: &'a Observed,
    /// Who connects.
    pub client: &'a Service,
    /// To whom.
    pub server: &'a Service,
    /// To which of its ports.
    pub port: PortProto,
    /// What a real connection from inside an instance of the client got, and from inside which one.
    pub tried: Option<&'a (String, Answer)>,
}

/// Explains whether a service reaches a port of another.
pub fn from_peer(asked: FromPeer<'_>) -> Explanation {
    let FromPeer { client, server, port, .. } = asked;
    let mut hints = Vec::new();
    let mut steps = asked.file(&mut hints);
    let file_allows = reaches(client, server, port).0;
    let allowed = asked.guard(file_allows, &mut steps, &mut hints);
    let answers = asked.server(&mut steps, &mut hints);
    let mut verdict = match allowed {
        Some(allowed) => {
            if allowed && answers {
                Verdict::Reachable
            } else {
                Verdict::Unreachable
            }
        }
        None => Verdict::Unknown,
    };
    if let Some((from, answer)) = asked.tried {
        let found = match answer {
            Answer::Reached => Verdict::Reachable,
            Answer::Refused | Answer::NobodyListens => Verdict::Unreachable,
            Answer::Silent | Answer::Failed(_) => Verdict::Unknown,
        };
        let answer = match (port.proto, answer) {
            (Proto::Udp, Answer::Reached) => "a datagram was let go, and nobody said that there is no one".to_owned(),
            (_, answer) => answer.to_string(),
        };
        let passes = (found != Verdict::Unknown).then_some(found == Verdict::Reachable);
        steps.push(Step::new(passes, format!("tried from inside {from}: {answer}")));
        if verdict != found && verdict != Verdict::Unknown && found != Verdict::Unknown {
            hints.push(
                "what was tried isn't what the steps before lead to: if that stays so, please report it".to_owned(),
            );
        }
        // What really happened is right.
        verdict = if found == Verdict::Unknown { verdict } else { found };
    }
    Explanation {
        question: format!("{} → {}:{port}", client.name, server.name),
        verdict,
        steps,
        hints,
        unknown: Vec::new(),
    }
}

impl FromPeer<'_> {
    /// What the file says.
    fn file(&self, hints: &mut Vec<String>) -> Vec<Step> {
        let Self { client, server, port, .. } = self;
        let (ours, theirs) = (networks(client), networks(server));
        let Some(network) = client.networks.intersection(&server.networks).next() else {
            hints.push(match server.networks.first() {
                Some(network) => {
                    format!("add {network} to networks of service {}, or give both another one", client.name)
                }
                None => format!("service {} is in no network: give both the same one", server.name),
            });
            let what = format!("they share no network: {} is in {ours}, {} in {theirs}", client.name, server.name);
            return vec![Step::no(what).at(&client.place)];
        };
        let mut steps = vec![Step::yes(format!("both are in network {network}")).at(&client.place)];
        let Some(grants) = &client.connect else {
            steps.push(Step::yes(format!("{} has no x-palisade.connect, which would narrow that", client.name)));
            return steps;
        };
        let of_server = || grants.iter().filter(|grant| grant.value.service == server.name);
        let grant = of_server().find(|grant| grant.value.port.is_none_or(|granted| granted == *port));
        steps.push(match (grant, of_server().next().or(grants.first())) {
            (Some(grant), _) if is_own(&client.name) => {
                Step::yes(format!("x-palisade.edge needs {} to connect to it", client.name)).at(&grant.place)
            }
            (Some(grant), _) => Step::yes(format!("x-palisade.connect of {} names it", client.name)).at(&grant.place),
            (None, _) if is_own(&client.name) => {
                Step::no(format!("x-palisade.edge needs {} to connect to nothing of it", client.name)).at(&client.place)
            }
            (None, near) => {
                hints.push(format!(
                    "add \"{}:{}\" to x-palisade.connect of service {}",
                    server.name,
                    crate::hints::short(*port),
                    client.name
                ));
                let place = near.map_or(&client.place, |near| &near.place);
                Step::no(format!("x-palisade.connect of {} doesn't name it", client.name)).at(place)
            }
        });
        steps
    }

    /// What the guard in the kernel says; `None` when that isn't known.
    fn guard(&self, file_allows: bool, steps: &mut Vec<Step>, hints: &mut Vec<String>) -> Option<bool> {
        let up = format!("run `palisade up`, which makes this host as the file of {} says", self.stack.project);
        let Some(guard) = &self.host.guard else {
            steps.push(Step::new(None, "no guard of this stack is in the kernel: it isn't up"));
            hints.push(up);
            return None;
        };
        let policy = self.policy.filter(|policy| guard.policy_digest == Some(digest_of(*policy)));
        let Some(policy) = policy else {
            steps.push(Step::new(None, "the policy in the kernel isn't one that Palisade wrote down"));
            hints.push(up);
            return None;
        };
        let unguarded = self.host.instances.iter().filter(|seen| seen.status.id.service == self.client.name);
        for seen in unguarded.filter(|seen| !guard.attached.contains_key(&seen.status.id)) {
            steps.push(Step::new(None, format!("{} isn't guarded, so nothing holds it", seen.status.id)));
            hints.push(up.clone());
        }
        let allows = in_force(policy, &self.client.name, &self.server.name, self.port);
        let step = match (allows, file_allows) {
            (None, _) => {
                hints.push(up);
                Step::new(Some(false), "the guard in the kernel doesn't know both services yet")
            }
            (Some(_), false) if policy.mode == Mode::Learn => {
                Step::yes("the guard only watches and refuses nothing inside the stack")
            }
            (Some(true), true) => Step::yes("the guard in the kernel lets it through"),
            (Some(false), false) => Step::no("the guard in the kernel refuses it (EPERM)"),
            (Some(now), _) => {
                hints.push(up);
                let (now_text, file) =
                    if now { ("still lets it through", "refuses it") } else { ("still refuses it", "allows it") };
                Step::new(
                    Some(now),
                    format!("the guard in the kernel {now_text}, as it was brought up before the file that {file}"),
                )
            }
        };
        let passes = step.passes;
        steps.push(step);
        passes
    }

    /// Whether somebody answers.
    fn server(&self, steps: &mut Vec<Step>, hints: &mut Vec<String>) -> bool {
        let all = || self.host.instances.iter().filter(|seen| seen.status.id.service == self.server.name);
        let serving: Vec<&InstanceStatus> = all()
            .map(|seen| &seen.status)
            .filter(|status| self.host.guard.as_ref().is_none_or(|guard| guard.serving.contains(&status.address)))
            .collect();
        let logs = format!("`palisade logs {}` and `palisade ps` tell more", self.server.name);
        if serving.is_empty() {
            let states: Vec<_> = all().map(|seen| state(&seen.status)).collect();
            let states = if states.is_empty() { "it has no instance".to_owned() } else { states.join(", ") };
            steps.push(Step::no(format!("no instance of {} takes connections: {states}", self.server.name)));
            hints.push(logs);
            return false;
        }
        let ready = serving.iter().filter(|status| is_ready(status)).count();
        let mut answers = false;
        let told = hints.len();
        for status in &serving {
            let get = match (is_ready(status), ready) {
                (true, _) => Step::yes(format!("{} at {}", state(status), status.address)),
                (false, 0) if status.state == RunState::Running => {
                    Step::yes(format!("{}; it gets connections all the same, as no other one is ready", state(status)))
                }
                (false, 0) => Step::no(state(status)),
                (false, _) => Step::new(None, format!("{}; connections go to the others meanwhile", state(status))),
            };
            let gets = get.passes == Some(true);
            steps.push(get);
            let step = self.listener(status, hints);
            answers |= gets && step.passes == Some(true);
            steps.push(step);
        }
        if !answers && hints.len() == told {
            hints.push(logs);
        }
        answers
    }

    /// Whether the instance listens where the guard sends its peers.
    fn listener(&self, status: &InstanceStatus, hints: &mut Vec<String>) -> Step {
        let (id, port) = (&status.id, self.port);
        let own = |socket: &&SocketSeen| {
            socket.owner == SocketOwner::Instance(id.clone())
                && socket.proto == port.proto
                && socket.local.port() == port.port
        };
        let at = |ip: IpAddr| {
            self.host.sockets.iter().filter(own).find(move |socket| socket.local.ip().to_canonical() == ip)
        };
        if let Some(socket) = at(status.address.ip().into()) {
            return Step::yes(format!("{id} listens at {}/{}", socket.local, port.proto));
        }
        if at(status.address.own_localhost().into()).is_some() {
            hints.push(format!("let {} listen on 0.0.0.0 inside; the guard keeps that private", self.server.name));
            return Step::no(format!("{id} listens on {port} at its own localhost only, which is nobody else's"));
        }
        if at(status.address.ipv6().into()).is_some() {
            hints.push(format!("let {} listen on IPv4, or on both; names lead to IPv4 addresses", self.server.name));
            return Step::no(format!("{id} listens on {port} by IPv6 only"));
        }
        // A published UDP port is bound where it is published, and peers are led there.
        let published = self.server.publish.iter().any(|publish| publish.value.container == port);
        let elsewhere = self.host.sockets.iter().find(|socket| {
            socket.owner == SocketOwner::Instance(id.clone())
                && socket.proto == port.proto
                && published
                && port.proto == Proto::Udp
                && self.server.publish.iter().any(|publish| publish.value.host_port == socket.local.port())
        });
        match elsewhere {
            Some(socket) => {
                Step::yes(format!("{id} listens at {}/{}, where it is published", socket.local, port.proto))
            }
            None => Step::no(format!("{id} doesn't listen on {port}: connections are refused (ECONNREFUSED)")),
        }
    }
}

fn networks(service: &Service) -> String {
    let names: Vec<_> = service.networks.iter().map(String::as_str).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Whether a policy lets a service connect to a port of another; `None` when it doesn't know both.
fn in_force(policy: &Policy, client: &ServiceName, server: &ServiceName, port: PortProto) -> Option<bool> {
    let of = |name: &ServiceName| policy.services.iter().find(|service| service.name == *name);
    let (client, server) = (of(client)?, of(server)?);
    let granted = client.connect.as_ref().is_none_or(|grants| {
        grants.iter().any(|grant| grant.server == server.address && grant.port.is_none_or(|granted| granted == port))
    });
    Some(client.networks & server.networks != 0 && granted)
}
