//! Waiting: until an instance is ready, whether it stays so, and until nobody is connected to it any more.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use palisade_core::apply::Undo;
use palisade_core::instance::{Health, InstanceStatus, RunState};
use palisade_core::names::InstanceId;
use palisade_core::policy::{Policy, ServicePolicy};
use palisade_core::stack::{Condition, Proto};
use palisade_host::sockets::{self, Socket, SocketProto, Which};

use super::{Adapters, HostError};
use crate::observe;

/// How often the agent is asked while something is waited for.
const POLL: Duration = Duration::from_millis(50);
/// How often the kernel's sockets are listed while connections are to end.
const DRAIN_POLL: Duration = Duration::from_millis(100);
/// So long somebody may need for the last packet of a handshake, after that of a former one was lost.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A process that is still there after this time did start; one that can't exits sooner.
const SETTLED: Duration = Duration::from_millis(300);

impl Adapters {
    /// Until an instance is as far as it should be.
    pub(super) fn wait(
        &self,
        id: &InstanceId,
        condition: Condition,
        timeout_ms: Option<u64>,
    ) -> Result<Undo, HostError> {
        let began = Instant::now();
        let deadline = timeout_ms.map(|ms| began + Duration::from_millis(ms));
        let failed = |what: String| Err(HostError::NotReady { id: id.clone(), what, log: self.log_end(id, 6) });
        // What was started in this run began with no restart.
        let mut at_first = self.log_starts.contains_key(id).then_some(0);
        loop {
            if self.interrupted() {
                return Err(HostError::Interrupted);
            }
            let status = self.status(id)?;
            let restarts = status.as_ref().map_or(0, |status| status.restarts);
            // Whoever was about to be started again when the waiting began gets that chance.
            let exited = restarts > *at_first.get_or_insert(restarts);
            match judge(status.as_ref(), condition, began.elapsed(), exited) {
                Verdict::Reached => return Ok(Undo::Nothing),
                Verdict::Never(what) => return failed(what),
                Verdict::NotYet => {}
            }
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                let output = status.map(|status| last_line(&status)).unwrap_or_default();
                let seconds = timeout_ms.unwrap_or(0).div_ceil(1_000);
                let last = if output.is_empty() { String::new() } else { format!("; its last check said: {output}") };
                return failed(match condition {
                    Condition::ServiceStarted => format!("did not start within {seconds} s"),
                    Condition::ServiceHealthy => format!("was not healthy after {seconds} s{last}"),
                    Condition::ServiceCompletedSuccessfully => format!("was not done after {seconds} s"),
                });
            }
            std::thread::sleep(POLL);
        }
    }

    fn status(&self, id: &InstanceId) -> Result<Option<InstanceStatus>, HostError> {
        Ok(self.agent()?.status()?.into_iter().find(|status| status.id == *id))
    }

    /// Fails when one of them ends, is started again or becomes unhealthy within the time.
    pub(super) fn watch(&self, ids: &[InstanceId], time: Duration) -> Result<Undo, HostError> {
        let end = Instant::now() + time;
        let restarts = |id: &InstanceId| Ok::<_, HostError>(self.status(id)?.map_or(0, |status| status.restarts));
        let before = ids.iter().map(restarts).collect::<Result<Vec<_>, _>>()?;
        loop {
            let now = self.agent()?.status()?;
            for (id, before) in ids.iter().zip(&before) {
                let status = now.iter().find(|status| status.id == *id);
                if let Some(what) = gone_bad(status, *before) {
                    let what = format!("{what} after it had taken over");
                    return Err(HostError::NotReady { id: id.clone(), what, log: self.log_end(id, 6) });
                }
            }
            if self.interrupted() {
                return Err(HostError::Interrupted);
            }
            if Instant::now() >= end {
                return Ok(Undo::Nothing);
            }
            std::thread::sleep(POLL);
        }
    }

    /// Until nobody is connected to an instance, or the time is over: then what is open is told, and ends with it.
    pub(super) fn drain(&self, id: &InstanceId, time: Duration) -> Result<Undo, HostError> {
        let began = Instant::now();
        let mut clients = None;
        loop {
            let sockets = sockets::list(Which::All)?;
            let clients = clients.get_or_insert_with(|| {
                let places = Places::of(self.state.policy.as_ref(), id);
                Clients::at_first(&sockets, observe::cgroups_of(&self.layout, id), &places)
            });
            let open = clients.open(&sockets);
            if open == 0 && (began.elapsed() >= HANDSHAKE || !clients.are_coming(&sockets)) {
                return Ok(Undo::Nothing);
            }
            if self.interrupted() {
                return Err(HostError::Interrupted);
            }
            if began.elapsed() >= time {
                let seconds = time.as_millis().div_ceil(1_000);
                match open {
                    0 => {}
                    1 => eprintln!("1 connection is still open to {id} after {seconds} s (`stop_grace_period`)"),
                    _ => eprintln!("{open} connections are still open to {id} after {seconds} s (`stop_grace_period`)"),
                }
                return Ok(Undo::Nothing);
            }
            std::thread::sleep(DRAIN_POLL);
        }
    }
}

/// Where an instance is connected to.
#[derive(Default)]
struct Places {
    /// Its own addresses.
    own: Vec<IpAddr>,
    /// TCP ports of the host where its service is published.
    published: HashSet<u16>,
}

impl Places {
    fn of(policy: Option<&Policy>, id: &InstanceId) -> Self {
        let mut services = policy.into_iter().flat_map(|policy| &policy.services);
        let Some(ServicePolicy { address, binds, .. }) = services.find(|service| service.name == id.service) else {
            return Self::default();
        };
        let own = address.instance(id.number);
        let tcp = binds.iter().filter(|bind| bind.container.proto == Proto::Tcp);
        let published = tcp.filter_map(|bind| Some(bind.published?.host_port)).collect();
        Self { own: vec![own.ip().into(), own.ipv6().into()], published }
    }
}

/// Who is connected to an instance, or was about to be, when it began to get no new connections.
struct Clients {
    cgroups: HashSet<u64>,
    /// TCP ports that it listens on. A server may stop to listen when it is told that it is about to end.
    ports: HashSet<u16>,
    /// Handshakes that only their client's last packet is missing of. The kernel doesn't tell which instance of a service
    /// has them; when that one stops listening, they come to nothing.
    handshakes: HashSet<(SocketAddr, SocketAddr)>,
}

/// The kernel's numbers for the states of a TCP socket: `enum` in `include/net/tcp_states.h`.
const HALF_OPEN: u8 = 3;
const LISTENING: u8 = 10;
/// Open for both sides, not yet accepted, or only still open for the server.
const OPEN: [u8; 3] = [1, HALF_OPEN, 8];

impl Clients {
    fn at_first(sockets: &[Socket], cgroups: HashSet<u64>, places: &Places) -> Self {
        let listening = sockets.iter().filter(|socket| socket.state == LISTENING && is_in(socket, &cgroups));
        let ports = listening.map(|socket| socket.local.port()).collect();
        let here = |socket: &&Socket| {
            places.published.contains(&socket.local.port()) || places.own.contains(&socket.local_ip())
        };
        let handshakes = sockets.iter().filter(|socket| is_handshake(socket)).filter(here).map(ends).collect();
        Self { cgroups, ports, handshakes }
    }

    /// Connections that somebody made to one of the ports. What the instance itself has connected to isn't one.
    fn open(&self, sockets: &[Socket]) -> usize {
        let served = |socket: &&Socket| {
            is_in(socket, &self.cgroups) && OPEN.contains(&socket.state) && self.ports.contains(&socket.local.port())
        };
        sockets.iter().filter(served).count()
    }

    /// Somebody is still about to be connected.
    fn are_coming(&self, sockets: &[Socket]) -> bool {
        sockets.iter().any(|socket| is_handshake(socket) && self.handshakes.contains(&ends(socket)))
    }
}

fn is_in(socket: &Socket, cgroups: &HashSet<u64>) -> bool {
    socket.proto == SocketProto::Tcp && socket.cgroup_id.is_some_and(|id| cgroups.contains(&id))
}

fn is_handshake(socket: &Socket) -> bool {
    socket.proto == SocketProto::Tcp && socket.state == HALF_OPEN && socket.cgroup_id.is_none()
}

fn ends(socket: &Socket) -> (SocketAddr, SocketAddr) {
    (socket.local, socket.remote)
}

/// Why an instance that worked doesn't any more.
fn gone_bad(status: Option<&InstanceStatus>, restarts: u32) -> Option<String> {
    let Some(status) = status else { return Some("disappeared".to_owned()) };
    match status.state {
        RunState::Exited { code: 0 } => None,
        RunState::Exited { code } => Some(format!("exited with {code}")),
        RunState::BackingOff => Some("exited".to_owned()),
        RunState::Starting | RunState::Running if status.restarts > restarts => Some("exited".to_owned()),
        RunState::Starting | RunState::Running if status.health == Health::Unhealthy => {
            Some(format!("became unhealthy ({})", last_line(status)))
        }
        RunState::Starting | RunState::Running => None,
    }
}

enum Verdict {
    Reached,
    NotYet,
    Never(String),
}

/// Whether an instance is as far as it should be, or can't be any more. `exited`: since the waiting began.
fn judge(status: Option<&InstanceStatus>, condition: Condition, waited: Duration, exited: bool) -> Verdict {
    let Some(status) = status else { return Verdict::Never("is not known to the agent".into()) };
    match (status.state, condition) {
        (RunState::Exited { code: 0 }, Condition::ServiceStarted | Condition::ServiceCompletedSuccessfully) => {
            Verdict::Reached
        }
        (RunState::Exited { code }, _) => match &status.hook_failure {
            Some(failure) => Verdict::Never(format!("was stopped: {failure}")),
            None => Verdict::Never(format!("exited with {code}")),
        },
        (RunState::BackingOff, Condition::ServiceStarted) if exited => {
            Verdict::Never("exits as soon as it is started".into())
        }
        (RunState::Running, Condition::ServiceStarted) if waited >= SETTLED => Verdict::Reached,
        (RunState::Running, Condition::ServiceHealthy) => match status.health {
            Health::Healthy => Verdict::Reached,
            Health::None => Verdict::Never("has no health check".into()),
            Health::Unhealthy => {
                let output = last_line(status);
                Verdict::Never(if output.is_empty() {
                    "is unhealthy".into()
                } else {
                    format!("is unhealthy: {output}")
                })
            }
            Health::Starting => Verdict::NotYet,
        },
        _ => Verdict::NotYet,
    }
}

/// What a failed health check said last: of a stack trace, that is the reason.
fn last_line(status: &InstanceStatus) -> String {
    let output = status.health_output.as_deref().unwrap_or_default();
    output.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::address::ServiceIndex;
    use palisade_core::names::ServiceName;

    fn status(state: RunState, health: Health) -> InstanceStatus {
        InstanceStatus {
            id: InstanceId { service: ServiceName::parse("db").unwrap(), number: 1 },
            address: ServiceIndex(0).address().unwrap().instance(1),
            spec_digest: String::new(),
            state,
            health,
            pid: None,
            restarts: 0,
            started_at_s: 0,
            health_output: Some("connection refused\n".into()),
            hook_failure: None,
            stopped: false,
        }
    }

    fn judged(state: RunState, health: Health, condition: Condition) -> String {
        judged_after(state, health, condition, true)
    }

    fn judged_after(state: RunState, health: Health, condition: Condition, exited: bool) -> String {
        match judge(Some(&status(state, health)), condition, Duration::from_secs(1), exited) {
            Verdict::Reached => "reached".into(),
            Verdict::NotYet => "not yet".into(),
            Verdict::Never(why) => why,
        }
    }

    #[test]
    fn waiting_ends_when_it_is_certain() {
        use Condition::{ServiceCompletedSuccessfully as Done, ServiceHealthy as Healthy, ServiceStarted as Started};
        let exited = |code| RunState::Exited { code };
        assert_eq!(judged(RunState::Running, Health::None, Started), "reached");
        assert_eq!(judged(RunState::Starting, Health::None, Started), "not yet");
        assert_eq!(judged(exited(0), Health::None, Started), "reached", "a short job");
        assert_eq!(judged(exited(1), Health::None, Started), "exited with 1");
        assert_eq!(judged(RunState::BackingOff, Health::None, Started), "exits as soon as it is started");
        let again = judged_after(RunState::BackingOff, Health::None, Started, false);
        assert_eq!(again, "not yet", "its engine was away, say");
        assert_eq!(judged(RunState::BackingOff, Health::Starting, Healthy), "not yet", "it may recover");
        assert_eq!(judged(RunState::Running, Health::Starting, Healthy), "not yet");
        assert_eq!(judged(RunState::Running, Health::Healthy, Healthy), "reached");
        assert_eq!(judged(RunState::Running, Health::Unhealthy, Healthy), "is unhealthy: connection refused");
        assert_eq!(judged(RunState::Running, Health::None, Done), "not yet");
        assert_eq!(judged(exited(0), Health::None, Done), "reached");
        assert_eq!(judged(exited(2), Health::None, Done), "exited with 2");
    }

    #[test]
    fn what_took_over_must_go_on_working() {
        let bad = |state, health, restarts| {
            let status = InstanceStatus { restarts, ..status(state, health) };
            gone_bad(Some(&status), 1).unwrap_or_else(|| "good".into())
        };
        assert_eq!(bad(RunState::Running, Health::Healthy, 1), "good");
        assert_eq!(bad(RunState::Running, Health::None, 1), "good");
        assert_eq!(bad(RunState::Running, Health::Starting, 2), "exited");
        assert_eq!(bad(RunState::BackingOff, Health::None, 1), "exited");
        assert_eq!(bad(RunState::Exited { code: 0 }, Health::None, 1), "good", "a job that is done");
        assert_eq!(bad(RunState::Exited { code: 3 }, Health::None, 1), "exited with 3");
        assert_eq!(bad(RunState::Running, Health::Unhealthy, 1), "became unhealthy (connection refused)");
        assert_eq!(gone_bad(None, 0).unwrap(), "disappeared");
    }

    #[test]
    fn only_connections_that_others_made_are_drained() {
        let socket = |local: &str, state, cgroup: Option<u64>| Socket {
            proto: SocketProto::Tcp,
            local: local.parse().unwrap(),
            remote: "127.77.9.1:40000".parse().unwrap(),
            state,
            v6_only: None,
            interface: 0,
            uid: 0,
            inode: 1,
            mark: None,
            cgroup_id: cgroup,
        };
        let mut sockets = vec![
            socket("127.77.1.1:8081", 10, Some(7)),
            socket("127.77.1.1:8081", 1, Some(7)),
            socket("127.77.1.1:8081", 8, Some(7)),
            socket("127.77.1.1:8081", 6, Some(7)),
            socket("127.77.1.1:51234", 1, Some(7)),
            socket("127.77.1.2:8081", 1, Some(8)),
        ];
        let places = Places { own: vec!["127.77.1.1".parse().unwrap()], published: HashSet::from([80]) };
        let clients = |sockets: &[Socket]| Clients::at_first(sockets, HashSet::from([7]), &places);
        let drained = clients(&sockets);
        assert_eq!((&drained.ports, drained.open(&sockets)), (&HashSet::from([8081]), 2));
        assert!(!drained.are_coming(&sockets));
        // Handshakes are nobody's by their cgroup.
        for (local, counts) in [("127.77.1.1:8081", true), ("203.0.113.1:80", true), ("203.0.113.1:22", false)] {
            sockets.push(socket(local, 3, None));
            assert!(!drained.are_coming(&sockets), "those that begin later are somebody else's");
            assert_eq!(clients(&sockets).are_coming(&sockets), counts, "{local}");
            sockets.pop();
        }
    }
}
