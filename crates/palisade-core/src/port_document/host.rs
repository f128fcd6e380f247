//! What a host has that the port document doesn't name.
//!
//! Who reaches what was answered by an audit's packets; whether that is wrong otherwise is the audit's business.

use std::ops::RangeInclusive;

use crate::address::is_reserved;
use crate::audit::Audit;
use crate::audit::facts::{Facts, Listener};
use crate::audit::rules::DOOR_WITHOUT_LISTENER;
use crate::finding::Finding;
use crate::names::InstanceId;
use crate::prove::reaches;
use crate::stack::{PortProto, Proto, Stack};

/// The id of everything that is found here.
const ID: &str = "port-not-in-document";

/// Ports that somebody outside of this host reaches, doors of the firewall with nobody behind them, and ports of the
/// stack's services that peers may connect to, as far as the stack doesn't declare them. `ephemeral`: ports that the
/// kernel gives to clients, which a datagram client has while it waits for an answer.
pub fn unnamed(stack: &Stack, facts: &Facts, audit: &Audit, ephemeral: &RangeInclusive<u16>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for row in audit.ports.iter().filter(|row| row.is_reached() && row.declared.is_none() && !row.findings.is_empty()) {
        let from: Vec<_> = row.reached_from.keys().map(String::as_str).collect();
        let message = format!("{} is reached there from {}", row.who, from.join(" and "));
        findings.push(Finding::error(ID, row.port, message).remedy(
            "`palisade audit` tells what to do about it; if it is meant, publish it, or name it in x-palisade.firewall.allow",
        ));
    }
    for door in audit.findings.iter().filter(|finding| finding.id == DOOR_WITHOUT_LISTENER.id) {
        let mut finding = Finding::error(ID, &door.subject, door.message.clone());
        finding.evidence.clone_from(&door.evidence);
        finding.remedy.clone_from(&door.remedy);
        findings.push(finding);
    }
    let mut undeclared: Vec<_> = facts.listeners.iter().filter_map(|it| undeclared(stack, it, ephemeral)).collect();
    undeclared.sort_by(|a, b| a.subject.cmp(&b.subject));
    undeclared.dedup_by(|a, b| a.subject == b.subject);
    findings.extend(undeclared);
    findings
}

fn undeclared(stack: &Stack, listener: &Listener, ephemeral: &RangeInclusive<u16>) -> Option<Finding> {
    let id =
        InstanceId::parse(listener.owner.instance.as_ref()?.strip_prefix(stack.project.as_str())?.strip_prefix('/')?)?;
    let service = stack.service(&id.service)?;
    let port = PortProto { port: listener.local.port(), proto: listener.proto };
    let client = port.proto == Proto::Udp && ephemeral.contains(&port.port);
    // Elsewhere it is published, or its own localhost, where nobody else gets to.
    let at = listener.local.ip().to_canonical();
    let own_localhost = matches!(at, std::net::IpAddr::V4(ip) if ip.octets()[1] & 0x80 != 0);
    if client || !is_reserved(at) || own_localhost || service.expose.iter().any(|declared| declared.value == port) {
        return None;
    }
    let clients = stack.services.iter().filter(|client| client.name != service.name);
    let callers: Vec<_> =
        clients.filter(|client| reaches(client, service, port).0).map(|it| it.name.as_str()).collect();
    if callers.is_empty() {
        return None;
    }
    let message = format!("{id} listens there, and {} may connect", callers.join(", "));
    let remedy = format!(
        "add \"{port}\" to expose of service {}, or narrow who may connect with x-palisade.connect; \
         x-palisade.strict refuses ports that aren't declared",
        service.name
    );
    Some(
        Finding::error(ID, format!("{}:{port}", service.name), message)
            .seen(format!("{} {}", port.proto, listener.local))
            .remedy(remedy)
            .at(&service.place),
    )
}
