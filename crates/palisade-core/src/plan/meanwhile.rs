//! What a service may do while an older version of it is still there: what both versions need.
//!
//! The guard knows services and not their versions, so for that time either has what the other one needs.

use std::collections::BTreeSet;

use crate::address::ServiceAddress;
use crate::policy::{BindRule, EGRESS_RULES_MAX, EgressPolicy, PeerGrant, Policy, RESOLVERS_MAX, ServicePolicy};
use crate::stack::PortProto;

/// A service on its way from one policy to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meanwhile {
    /// The newer one, with what the older one may reach besides.
    grants: ServicePolicy,
    /// The ports of both; where they can't both be, those of the older one.
    binds: Vec<BindRule>,
    host_mode: bool,
    strict: bool,
}

impl Meanwhile {
    /// Between `before` and the policy `after`, which is of one of its services `new`; `None`: the older version has all it needs.
    pub(super) fn between(before: &Policy, after: &Policy, new: &ServicePolicy) -> Option<Self> {
        let old = before.services.iter().find(|old| old.name == new.name && old.address == new.address)?;
        let mut grants = new.clone();
        let (mut had, has) = (peers(before, old), peers(after, new));
        let there: BTreeSet<_> = after.services.iter().map(|service| service.address).collect();
        had.retain(|(server, _)| there.contains(server));
        let covered =
            |&(server, port): &(ServiceAddress, _)| has.contains(&(server, None)) || has.contains(&(server, port));
        if !had.iter().all(covered) {
            let all = has.union(&had).map(|&(server, port)| PeerGrant { server, port });
            grants.connect = Some(all.collect());
        }
        grants.egress = both_egress(&new.egress, &old.egress);
        grants.host_ports = both(&new.host_ports, &old.host_ports, usize::MAX);
        grants.resolvers = both(&new.resolvers, &old.resolvers, RESOLVERS_MAX);
        let only_old = |port: PortProto| !new.localhost.iter().any(|known| known.port == port);
        grants.localhost.extend(old.localhost.iter().filter(|known| only_old(known.port)));
        let meanwhile =
            Self { grants, binds: both_binds(after, new, old), host_mode: old.host_mode, strict: old.strict };
        (meanwhile.policy(true, false) != *new).then_some(meanwhile)
    }

    /// `older_serves`: somebody of the older version takes new connections. `newer_runs`: somebody of the newer one was
    /// started. What that one binds it keeps, so from then on it is bound as the newer one's policy says.
    pub(super) fn policy(&self, older_serves: bool, newer_runs: bool) -> ServicePolicy {
        let mut policy = self.grants.clone();
        if older_serves {
            policy.binds.clone_from(&self.binds);
        }
        if !newer_runs {
            (policy.host_mode, policy.strict) = (self.host_mode, self.strict);
        }
        policy
    }
}

/// Whom a service may connect to, in words that don't depend on how the networks of a policy are numbered.
fn peers(policy: &Policy, of: &ServicePolicy) -> BTreeSet<(ServiceAddress, Option<PortProto>)> {
    match &of.connect {
        Some(grants) => grants.iter().map(|grant| (grant.server, grant.port)).collect(),
        None => {
            let others = policy.services.iter().filter(|peer| peer.address != of.address);
            let peers = others.filter(|peer| peer.networks & of.networks != 0);
            peers.map(|peer| (peer.address, None)).collect()
        }
    }
}

/// The newer ones come first: when there are too many, it is the older version that goes without.
fn both<T: Copy + PartialEq>(new: &[T], old: &[T], max: usize) -> Vec<T> {
    let only_old = old.iter().filter(|value| !new.contains(value));
    new.iter().chain(only_old).take(max).copied().collect()
}

fn both_egress(new: &EgressPolicy, old: &EgressPolicy) -> EgressPolicy {
    match (new, old) {
        (EgressPolicy::All, _) | (_, EgressPolicy::All) => EgressPolicy::All,
        (EgressPolicy::Only(new), EgressPolicy::Only(old)) => EgressPolicy::Only(both(new, old, EGRESS_RULES_MAX)),
        (EgressPolicy::None, other) | (other, EgressPolicy::None) => other.clone(),
    }
}

fn both_binds(after: &Policy, new: &ServicePolicy, old: &ServicePolicy) -> Vec<BindRule> {
    let others = after.services.iter().filter(|other| other.address != new.address);
    let others: Vec<_> = others.flat_map(|other| &other.binds).collect();
    let only_old = old.binds.iter().filter(|bind| !new.binds.contains(bind));
    // What goes to another service was given up before.
    let kept: Vec<_> =
        only_old.filter(|bind| !others.iter().any(|other| is_same_place(bind, other))).copied().collect();
    let mut binds = new.binds.clone();
    for bind in &mut binds {
        if kept.iter().any(|kept| kept.container != bind.container && is_same_place(kept, bind)) {
            // The newer version listens there, and is led to when the older one takes no connections any more.
            bind.published = None;
        }
    }
    binds.extend(kept);
    binds
}

/// Both are published at one port of the host, on an address that both mean.
fn is_same_place(one: &BindRule, other: &BindRule) -> bool {
    let (Some(here), Some(there)) = (one.published, other.published) else { return false };
    let everywhere = |ip: Option<std::net::IpAddr>| ip.is_none_or(|ip| ip.is_unspecified());
    let meet = here.host_ip == there.host_ip || everywhere(here.host_ip) || everywhere(there.host_ip);
    one.container.proto == other.container.proto && here.host_port == there.host_port && meet
}
