//! Compares a host, read afresh after an apply, with the stack: what isn't as the file says is a finding.
//!
//! It reads nothing itself and repairs nothing.

use std::collections::{BTreeMap, HashMap};

use crate::address::{InstanceAddress, is_reserved};
use crate::compile::{Compiled, CompiledInstance};
use crate::finding::{Finding, Severity};
use crate::firewall::{Backend, FirewallRules};
use crate::instance::{Health, RunState};
use crate::names::{InstanceId, ServiceName};
use crate::observed::{InstanceSeen, Observed, SocketOwner, SocketSeen};
use crate::stack::{PortProto, Proto, Restart, Service, Stack};

/// Everything that isn't as the stack says. Errors come first; otherwise in the order of the file.
pub fn verify(stack: &Stack, compiled: &Compiled, host: &Observed) -> Vec<Finding> {
    let mut findings = Vec::new();
    instances(stack, compiled, host, &mut findings);
    guard(compiled, host, &mut findings);
    firewall(stack, host, &mut findings);
    sockets(stack, compiled, host, &mut findings);
    kernel(host, &mut findings);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

fn instances(stack: &Stack, compiled: &Compiled, host: &Observed, findings: &mut Vec<Finding>) {
    if host.agent.is_none() {
        findings.push(
            Finding::error(
                "agent-away",
                &stack.project,
                "its agent doesn't answer, so nothing restarts or checks its services",
            )
            .remedy("`palisade up` starts it again; what runs goes on running"),
        );
    }
    let seen: HashMap<&InstanceId, &InstanceSeen> = host.instances.iter().map(|i| (&i.status.id, i)).collect();
    for instance in &compiled.instances {
        let id = &instance.spec.id;
        let Some(seen) = seen.get(id) else {
            findings.push(Finding::error("instance-missing", id, "it was never started").remedy("run `palisade up`"));
            continue;
        };
        let status = &seen.status;
        // What everybody can do without doesn't make the stack wrong.
        let bad = |rule: &'static str, message: String| {
            if stack.is_optional(&id.service) {
                Finding::warning(rule, id, message)
            } else {
                Finding::error(rule, id, message)
            }
        };
        match status.state {
            RunState::Exited { .. } if status.stopped => findings.push(
                bad("instance-stopped", "it was stopped, and stays so".to_owned())
                    .remedy(format!("`palisade start {}`, or `palisade up`", id.service)),
            ),
            RunState::Exited { code: 0 }
                if matches!(instance.spec.restart, Restart::No | Restart::OnFailure { .. }) => {}
            RunState::Exited { code } => findings.push(
                bad("instance-exited", status.hook_failure.clone().unwrap_or_else(|| format!("it exited with {code}")))
                    .remedy(format!("`palisade logs {}` shows why", id.service)),
            ),
            RunState::BackingOff => findings.push(
                bad("instance-crashing", "it keeps exiting and is started again after a pause".to_owned())
                    .seen(format!("{} restarts", status.restarts))
                    .remedy(format!("`palisade logs {}` shows why", id.service)),
            ),
            RunState::Starting | RunState::Running => {}
        }
        if status.health == Health::Unhealthy {
            let mut finding = bad("instance-unhealthy", "its health check fails".to_owned());
            finding.evidence.extend(status.health_output.clone());
            findings.push(finding.remedy(format!("`palisade logs {}` may show why", id.service)));
        }
        if status.spec_digest != instance.fingerprint.digest {
            let keys = seen.fingerprint.as_ref().map(|old| old.differences(&instance.fingerprint).join(", "));
            let mut finding = Finding::warning("instance-outdated", id, "it runs with older settings than the file's");
            finding.evidence.extend(keys.filter(|keys| !keys.is_empty()).map(|keys| format!("changed: {keys}")));
            findings.push(finding.remedy("run `palisade up`"));
        }
    }
}

fn guard(compiled: &Compiled, host: &Observed, findings: &mut Vec<Finding>) {
    let Some(guard) = &host.guard else {
        let finding =
            Finding::error("guard-missing", "guard", "it isn't in the kernel: nothing keeps the services apart");
        findings.push(finding.remedy("run `palisade up`"));
        return;
    };
    for CompiledInstance { spec, .. } in &compiled.instances {
        match guard.attached.get(&spec.id) {
            Some(address) if *address == spec.address => {}
            Some(address) => findings.push(
                Finding::error(
                    "guard-address",
                    &spec.id,
                    format!("it is guarded at {address} and not at {}", spec.address),
                )
                .remedy("run `palisade up`"),
            ),
            None => findings.push(
                Finding::error(
                    "guard-detached",
                    &spec.id,
                    "its cgroup isn't guarded: it binds and connects where it likes",
                )
                .remedy("run `palisade up`, which restarts it under the guard"),
            ),
        }
    }
    if guard.policy_digest.as_ref() != Some(&compiled.policy_digest) {
        let message = "the policy in the kernel isn't the one of this file";
        findings.push(Finding::error("policy-differs", "guard", message).remedy("run `palisade up`"));
    }
}

fn firewall(stack: &Stack, host: &Observed, findings: &mut Vec<Finding>) {
    let Some(rules) = FirewallRules::of(stack, &host.ssh_ports, host.firewall_runs) else { return };
    if rules.closes() && host.firewall_runs != Backend::Nftables {
        let runs = host.firewall_runs;
        let message =
            format!("{runs} decides on this host as well: what it drops stays dropped, whatever Palisade lets in");
        let remedy = "write `backend: auto` below x-palisade.firewall";
        findings.push(Finding::warning("two-firewalls", "firewall", message).remedy(remedy));
    }
    for chain in host.foreign_drops.iter().filter(|_| rules.closes() && !rules.doors().is_empty()) {
        let message = format!("chain {chain} drops what it doesn't let in, whatever Palisade's table lets in");
        let remedy = "let the published ports in there as well; `palisade prove` shows what gets through";
        findings.push(Finding::warning("foreign-firewall", "firewall", message).remedy(remedy));
    }
    for door in rules.doors().intersection(&host.shut_by_ufw) {
        let from = door.host_ip.map_or_else(String::new, |ip| format!(" at {ip}"));
        let message = format!("ufw doesn't let {}/{}{from} in, and Palisade never changes ufw", door.port, door.proto);
        let command = match door.host_ip {
            None => format!("ufw allow {}/{}", door.port, door.proto),
            Some(ip) => format!("ufw allow proto {} to {ip} port {}", door.proto, door.port),
        };
        findings.push(Finding::warning("shut-by-ufw", "firewall", message).remedy(format!("run `{command}`")));
    }
    if let (true, Some(fault)) = (rules.closes(), &host.firewall_at_boot) {
        let finding = Finding::error("firewall-at-boot", "firewall", "after a boot Palisade's table wouldn't be there");
        findings.push(finding.seen(fault).remedy("run `palisade up`"));
    }
    let message = match &host.firewall {
        None => "Palisade's table isn't there: only what other tables refuse is refused",
        Some(seen) if seen.digest.as_deref() != Some(&rules.digest()) => {
            "Palisade's table isn't what this file asks for"
        }
        Some(_) => return,
    };
    findings.push(Finding::error("firewall-differs", "firewall", message).remedy("run `palisade up`"));
}

fn sockets(stack: &Stack, compiled: &Compiled, host: &Observed, findings: &mut Vec<Finding>) {
    let services: HashMap<&ServiceName, &Service> = stack.services.iter().map(|s| (&s.name, s)).collect();
    let addresses: BTreeMap<&InstanceId, InstanceAddress> =
        compiled.instances.iter().map(|instance| (&instance.spec.id, instance.spec.address)).collect();
    for socket in &host.sockets {
        match &socket.owner {
            SocketOwner::Instance(id) => {
                let Some(address) = addresses.get(id) else { continue };
                let service = services.get(&id.service);
                if service.is_some_and(|service| expected(service, *address, socket)) {
                    continue;
                }
                if service.is_some_and(|service| never_bound(service, socket)) {
                    findings.push(
                        Finding::warning(
                            "listener-unbound",
                            id,
                            "it listens on a socket that it never bound, where the guard lets nobody in",
                        )
                        .seen(socket.to_string())
                        .remedy("let it bind the socket to a port first"),
                    );
                } else {
                    findings.push(
                        Finding::error("listener-misplaced", id, "it listens where the file doesn't let it")
                            .seen(socket.to_string())
                            .remedy("restart it with `palisade up`; if it comes back, the guard has a hole: please report it"),
                    );
                }
            }
            SocketOwner::Process { .. } | SocketOwner::Unknown if is_reserved(socket.local.ip()) => findings.push(
                Finding::error(
                    "address-squatted",
                    socket.local,
                    "a process of the host sits on an address that belongs to services",
                )
                .seen(socket.to_string())
                .remedy("end that process: it could pose as a service"),
            ),
            SocketOwner::OtherStack(_)
            | SocketOwner::Process { .. }
            | SocketOwner::Replaced(_)
            | SocketOwner::Unknown => {}
        }
    }
}

/// Whether an instance of the service may have this socket: on its own addresses, or where it publishes a port.
/// A wildcard socket on a port that the file doesn't name: no bind leads there under guard, only listening without one.
/// What arrives for it is dropped (`guard_ingress`).
fn never_bound(service: &Service, socket: &SocketSeen) -> bool {
    let port = PortProto { port: socket.local.port(), proto: socket.proto };
    let exposed = service.expose.iter().any(|exposed| exposed.value == port);
    let published = service.publish.iter().any(|publish| publish.value.container == port);
    socket.local.ip().to_canonical().is_unspecified() && !exposed && !published
}

fn expected(service: &Service, address: InstanceAddress, socket: &SocketSeen) -> bool {
    let ip = socket.local.ip().to_canonical();
    if ip == address.ip() || ip == address.own_localhost() || ip == address.ipv6() {
        return true;
    }
    // A client that never bound its UDP socket has one on a port of the kernel's choice, where the guard lets in
    // nothing but answers.
    let declares = |port: PortProto| {
        service.expose.iter().any(|p| p.value == port) || service.publish.iter().any(|p| p.value.container == port)
    };
    if socket.proto == Proto::Udp && !declares(PortProto { port: socket.local.port(), proto: Proto::Udp }) {
        return true;
    }
    service.publish.iter().any(|publish| {
        let publish = publish.value;
        publish.host_port == socket.local.port()
            && publish.container.proto == socket.proto
            && publish.host_ip.is_none_or(|host_ip| host_ip.to_canonical() == ip || host_ip.is_unspecified())
    })
}

fn kernel(host: &Observed, findings: &mut Vec<Finding>) {
    for interface in &host.kernel.route_localnet {
        findings.push(
            Finding::error("route-localnet", interface, "other machines can reach 127.0.0.0/8 through this interface")
                .seen(format!("net.ipv4.conf.{interface}.route_localnet = 1"))
                .remedy(format!("sysctl -w net.ipv4.conf.{interface}.route_localnet=0, unless something needs it")),
        );
    }
    if host.kernel.unix_hooks == Some(false) {
        let message = "this kernel has no hooks for unix sockets: services reach each other's abstract ones";
        findings.push(
            Finding::warning("abstract-unix", "kernel", message)
                .seen(format!("kernel {}", host.kernel.release))
                .remedy("kernel 6.7 or later"),
        );
    }
    for unknown in &host.unknown {
        let mut finding = Finding::warning("not-observed", "host", unknown.clone());
        finding.severity = Severity::Note;
        findings.push(finding);
    }
}

#[cfg(test)]
mod tests;
