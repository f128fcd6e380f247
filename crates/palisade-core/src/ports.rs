//! Ports that the stack wants and something else on the host has.
//!
//! What to do about it is the planner's question.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::finding::Finding;
use crate::names::{InstanceId, ServiceName};
use crate::observed::{Observed, SocketOwner, SocketSeen};
use crate::place::Place;
use crate::stack::{PortProto, Proto, Stack};

/// A port of the host that an instance of the stack holds and another service is to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handover {
    pub(crate) holder: InstanceId,
    pub(crate) to: ServiceName,
    pub(crate) port: u16,
}

type ByPort<'a> = HashMap<(Proto, u16), Vec<&'a SocketSeen>>;

fn by_port(observed: &Observed) -> ByPort<'_> {
    let mut sockets: ByPort<'_> = HashMap::new();
    for socket in &observed.sockets {
        sockets.entry((socket.proto, socket.local.port())).or_default().push(socket);
    }
    sockets
}

/// Everything that can't be bound because a process outside of the stack has it.
pub(crate) fn conflicts(stack: &Stack, observed: &Observed) -> Vec<Finding> {
    let sockets = by_port(observed);
    let mut findings = Vec::new();
    for service in &stack.services {
        for publish in &service.publish {
            let value = publish.value;
            let holders = sockets.get(&(value.container.proto, value.host_port)).into_iter().flatten();
            for socket in holders.filter(|socket| is_foreign(socket) && overlaps(socket, value.host_ip)) {
                let what = PortProto { port: value.host_port, proto: value.container.proto };
                let message = format!("its published port {what} is taken on this host");
                findings.push(taken(&service.name, message, socket, &publish.place));
            }
        }
        // A private address is only in the way of a socket that takes every address.
        let published = |port: &PortProto| service.publish.iter().any(|publish| publish.value.container == *port);
        for port in service.expose.iter().filter(|port| !published(&port.value)) {
            let holders = sockets.get(&(port.value.proto, port.value.port)).into_iter().flatten();
            let wildcard = |socket: &&&SocketSeen| is_wildcard(socket) && takes_ipv4(socket);
            for socket in holders.filter(|socket| is_foreign(socket)).filter(wildcard) {
                let message = format!(
                    "its private port {} can't be bound, because a process of the host listens there on every address",
                    port.value
                );
                findings.push(taken(&service.name, message, socket, &port.place));
            }
        }
    }
    findings
}

fn taken(service: &ServiceName, message: String, socket: &SocketSeen, place: &Place) -> Finding {
    let remedy = match &socket.owner {
        SocketOwner::Process { pid, command } => format!("stop process {pid} ({command}), or take another port"),
        SocketOwner::OtherStack(id) => format!("take {id} down, or take another port"),
        SocketOwner::Instance(_) | SocketOwner::Replaced(_) | SocketOwner::Unknown => {
            "see `ss -tulpn` as root for who has it, or take another port".to_owned()
        }
    };
    Finding::error("port-taken", service, message).seen(socket.to_string()).remedy(remedy).at(place)
}

/// Published ports that go from one service of the stack to another.
pub(crate) fn handovers(stack: &Stack, observed: &Observed) -> Vec<Handover> {
    let sockets = by_port(observed);
    let mut handovers = Vec::new();
    for service in &stack.services {
        for publish in &service.publish {
            let value = publish.value;
            let holders = sockets.get(&(value.container.proto, value.host_port)).into_iter().flatten();
            for socket in holders.filter(|socket| overlaps(socket, value.host_ip)) {
                if let SocketOwner::Instance(holder) = &socket.owner
                    && holder.service != service.name
                {
                    let (holder, to) = (holder.clone(), service.name.clone());
                    handovers.push(Handover { holder, to, port: value.host_port });
                }
            }
        }
    }
    handovers
}

fn is_foreign(socket: &SocketSeen) -> bool {
    !matches!(socket.owner, SocketOwner::Instance(_) | SocketOwner::Replaced(_))
}

fn is_wildcard(socket: &SocketSeen) -> bool {
    socket.local.ip().to_canonical().is_unspecified()
}

fn takes_ipv4(socket: &SocketSeen) -> bool {
    socket.local.ip().to_canonical().is_ipv4() || (is_wildcard(socket) && !socket.v6_only)
}

/// Whether a bind of the host's address (`None`: all of them, of both families) would meet the socket.
fn overlaps(socket: &SocketSeen, host_ip: Option<IpAddr>) -> bool {
    let held = socket.local.ip().to_canonical();
    match host_ip.map(|ip| ip.to_canonical()) {
        // Private addresses of other stacks and of the guard are no address that is published.
        None => {
            !held.is_loopback()
                || held == IpAddr::from([127, 0, 0, 1])
                || held == IpAddr::from(std::net::Ipv6Addr::LOCALHOST)
        }
        Some(ip) if is_wildcard(socket) => {
            if ip.is_ipv4() {
                takes_ipv4(socket)
            } else {
                held.is_ipv6()
            }
        }
        Some(ip) if ip.is_unspecified() => held.is_ipv4() == ip.is_ipv4() || ip.is_ipv6(),
        Some(ip) => held == ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{at, name, publish, service, stack, tcp};

    fn socket(local: &str, v6_only: bool, owner: SocketOwner) -> SocketSeen {
        SocketSeen { proto: Proto::Tcp, local: local.parse().unwrap(), v6_only, uid: 0, inode: 7, owner }
    }

    fn foreign(local: &str) -> SocketSeen {
        socket(local, false, SocketOwner::Process { pid: 41, command: "nginx".into() })
    }

    /// Whether a service that exposes 5432 and publishes 80 at `host_ip` could start beside the socket.
    fn conflict(host_ip: Option<&str>, socket: SocketSeen) -> bool {
        let mut web = service("web");
        web.expose = vec![at(tcp(5432))];
        web.publish = vec![publish(host_ip, 80, 8080)];
        let observed = Observed { sockets: vec![socket], ..Observed::default() };
        !conflicts(&stack([web]), &observed).is_empty()
    }

    #[test]
    fn a_published_port_meets_sockets_whose_address_overlaps() {
        assert!(conflict(None, foreign("0.0.0.0:80")));
        assert!(conflict(None, foreign("[::]:80")));
        assert!(conflict(None, foreign("192.0.2.1:80")));
        assert!(conflict(None, foreign("127.0.0.1:80")));
        assert!(!conflict(None, foreign("127.77.9.1:80")), "another stack's private port");
        assert!(!conflict(None, foreign("0.0.0.0:81")));
        assert!(conflict(Some("127.0.0.1"), foreign("0.0.0.0:80")));
        assert!(conflict(Some("127.0.0.1"), foreign("[::]:80")));
        assert!(!conflict(Some("127.0.0.1"), socket("[::]:80", true, SocketOwner::Unknown)));
        assert!(!conflict(Some("192.0.2.1"), foreign("192.0.2.2:80")));
        assert!(conflict(Some("192.0.2.1"), foreign("192.0.2.1:80")));
        assert!(conflict(Some("0.0.0.0"), foreign("192.0.2.1:80")));
        assert!(!conflict(Some("0.0.0.0"), foreign("[2001:db8::1]:80")));
    }

    #[test]
    fn a_private_port_meets_only_sockets_that_take_every_address() {
        assert!(conflict(None, foreign("0.0.0.0:5432")));
        assert!(conflict(None, foreign("[::]:5432")));
        assert!(!conflict(None, socket("[::]:5432", true, SocketOwner::Unknown)));
        assert!(!conflict(None, foreign("127.0.0.1:5432")));
    }

    #[test]
    fn what_the_stack_holds_itself_is_no_conflict_but_may_be_handed_over() {
        let id = InstanceId { service: name("old"), number: 1 };
        let own = socket("0.0.0.0:80", false, SocketOwner::Instance(id.clone()));
        assert!(!conflict(None, own.clone()));
        let mut web = service("web");
        web.publish = vec![publish(None, 80, 8080)];
        let observed = Observed { sockets: vec![own], ..Observed::default() };
        assert_eq!(handovers(&stack([web]), &observed), [Handover { holder: id, to: name("web"), port: 80 }]);
    }

    #[test]
    fn the_message_names_the_process_and_the_line() {
        let mut web = service("web");
        web.publish = vec![publish(None, 80, 8080)];
        let observed = Observed { sockets: vec![foreign("0.0.0.0:80")], ..Observed::default() };
        let findings = conflicts(&stack([web]), &observed);
        insta::assert_snapshot!(findings[0], @r"
        error[port-taken]: web: its published port 80/tcp is taken on this host
          --> compose.yaml:12:5
          seen: tcp 0.0.0.0:80 held by process 41 (nginx)
          hint: stop process 41 (nginx), or take another port
        ");
    }
}
