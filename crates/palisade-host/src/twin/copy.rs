//! The copy of the host: its interfaces, addresses, routes, settings and ruleset in namespaces of its own.
//!
//! What is sent through it is the business of `lane` and `trace`.

use std::net::IpAddr;
use std::time::Instant;

use super::lane::Lane;
use super::ruleset::{self, Unknown, Why, Words};
use super::world::is_link_local;
use super::{PortSet, Reached, TwinError, TwinReport, TwinSpec, recorder};
use crate::link::{self, InterfaceAddresses, LinkError, VethEnd};
use crate::netns::{Netns, NetnsError};
use crate::nft;
use crate::routes::{self, Routes, Way};

/// The outside end of the twin's wire.
pub(super) const OUTSIDE: &str = "outside0";
pub(super) const OUTSIDE_MAC: [u8; 6] = [0x02, 0x70, 0x61, 0x6c, 0x00, 0x02];
const INSIDE_MAC: [u8; 6] = [0x02, 0x70, 0x61, 0x6c, 0x00, 0x01];

/// A copy of a host, ready to be asked; gone when it is dropped.
pub struct Twin {
    pub(super) spec: TwinSpec,
    pub(super) inside: Netns,
    pub(super) outside: Netns,
    pub(super) original: Original,
    pub(super) targets: Vec<IpAddr>,
    pub(super) words: Words,
    started: Instant,
}

impl Twin {
    /// Copies the calling thread's network namespace; nothing of it is changed.
    pub fn copy(spec: &TwinSpec) -> Result<Self, TwinError> {
        let started = Instant::now();
        let (original, prepared) = std::thread::scope(|scope| {
            let namespaces = scope.spawn(|| Ok::<_, NetnsError>((Netns::unnamed()?, Netns::unnamed()?)));
            let original = Original::read(spec);
            (original, namespaces.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        let (mut original, (inside, outside)) = (original?, prepared?);
        let targets = original.targets(spec);
        original.build(&inside, &outside)?;
        let recorder = recorder::tables(&spec.world.interface, original.ruleset.rewrites);
        let words = inside
            .run(|| original.ruleset.load(&recorder))?
            .map_err(|source| TwinError::Ruleset { operation: "load the copy of the ruleset", source })?;
        Ok(Self { spec: spec.clone(), inside, outside, original, targets, words, started })
    }

    /// Sends a packet to each port of every target, by TCP and UDP. No packet leaves the copy.
    pub fn probe(&self) -> Result<TwinReport, TwinError> {
        self.probe_ports(&self.spec.ports)
    }

    /// Changes the copy's ruleset by a batch of `nft`; the host's is left alone.
    pub fn apply(&self, batch: &str) -> Result<(), TwinError> {
        let loaded = self.inside.run(|| nft::run("nft", &["-f", "-"], batch))?;
        loaded.map(drop).map_err(|source| TwinError::Ruleset { operation: "change the copy of the ruleset", source })
    }

    pub(super) fn probe_ports(&self, ports: &PortSet) -> Result<TwinReport, TwinError> {
        let results = std::thread::scope(|scope| {
            let lanes: Vec<_> = [false, true]
                .into_iter()
                .map(|ipv6| {
                    scope.spawn(move || {
                        let Some(source) = self.spec.world.source(ipv6) else { return Ok((Vec::new(), 0, 0)) };
                        // Sets and counters hold one target's answer at a time; each family has its own.
                        let mut lane = Lane::new(self, source, ports);
                        let mut results: Vec<Reached> = Vec::new();
                        for target in self.targets.iter().filter(|target| target.is_ipv6() == ipv6) {
                            results.extend(lane.probe(*target)?);
                        }
                        Ok::<_, TwinError>((results, lane.packets, lane.lost))
                    })
                })
                .collect();
            lanes
                .into_iter()
                .map(|lane| lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect::<Vec<_>>()
        });
        let mut report = TwinReport {
            world: self.spec.world.clone(),
            interface: self.spec.world.interface.clone(),
            reached: Vec::new(),
            unknown: self.original.ruleset.unknown.clone(),
            without_limit: self.original.ruleset.without_limit.clone(),
            packets: 0,
            lost: 0,
            duration_ms: 0,
        };
        for result in results {
            let (reached, packets, lost) = result?;
            report.reached.extend(reached);
            report.packets += packets;
            report.lost += lost;
        }
        report.duration_ms = self.started.elapsed().as_millis() as u64;
        Ok(report)
    }

    pub(super) fn mac(&self) -> [u8; 6] {
        self.original.mac()
    }
}

/// What is copied.
pub(super) struct Original {
    external: InterfaceAddresses,
    others: Vec<InterfaceAddresses>,
    pub(super) ruleset: ruleset::Ruleset,
    settings: Vec<(String, String)>,
    routes: Routes,
    /// The host has no route at all to who asks by IPv4 and by IPv6.
    unrouted: [bool; 2],
}

impl Original {
    fn read(spec: &TwinSpec) -> Result<Self, TwinError> {
        let world = &spec.world;
        let ruleset = ruleset::read(spec.own_table.as_deref())
            .map_err(|source| TwinError::Ruleset { operation: "read the host's ruleset", source })?;
        let mut others = link::interfaces()?;
        let at = others.iter().position(|interface| interface.name == world.interface);
        let external = at.map(|at| others.swap_remove(at));
        let external = external.ok_or_else(|| TwinError::NoInterface { name: world.interface.clone() })?;
        let routes = Routes::read()?;
        // The others matter when they have an address, or a route or a rule names them.
        others.retain(|interface| {
            interface.addresses.iter().any(|(ip, _)| !is_link_local(*ip))
                || routes.use_interface(interface.index)
                || ruleset.mentions(&interface.name)
        });
        let settings = ["all", &world.interface]
            .iter()
            .flat_map(|name| {
                ["rp_filter", "route_localnet", "accept_local", "src_valid_mark"]
                    .map(|key| format!("ipv4/conf/{name}/{key}"))
            })
            .chain(["ipv4/ip_forward".into(), "ipv6/conf/all/forwarding".into()])
            .filter_map(|key| {
                // `/proc/sys/net` shows the reader's namespace.
                let value = std::fs::read_to_string(format!("/proc/sys/net/{key}")).ok()?;
                Some((key, value.trim().to_owned()))
            })
            .collect();
        let unrouted = [false, true]
            .map(|ipv6| world.source(ipv6).is_some_and(|source| matches!(routes::way_to(source), Ok(Way::Unknown))));
        let mut original = Self { external, others, ruleset, settings, routes, unrouted };
        let mut note = |rule: String| original.ruleset.unknown.push(Unknown { why: Why::NotCopied, rule });
        if original.external.xdp {
            note(format!("the XDP program on {}", world.interface));
        }
        if original.external.vrf {
            note(format!("the VRF that {} belongs to, and its routes", world.interface));
        }
        if link::has_ingress_filters(original.external.index) {
            note(format!("filters of traffic control on {} (`tc filter show dev {0} ingress`)", world.interface));
        }
        if original.routes.truncated {
            note("some of very many routes".into());
        }
        Ok(original)
    }

    fn mac(&self) -> [u8; 6] {
        self.external.mac.as_slice().try_into().unwrap_or(INSIDE_MAC)
    }

    fn targets(&self, spec: &TwinSpec) -> Vec<IpAddr> {
        if !spec.targets.is_empty() {
            return spec.targets.clone();
        }
        let of_family = |ipv6: bool| {
            let source = spec.world.source(ipv6)?;
            let addresses = || self.external.addresses.iter().map(|(ip, _)| *ip).filter(|ip| ip.is_ipv6() == ipv6);
            // Neighbours who have nothing but link-local addresses ask for such a one.
            let first = addresses().find(|ip| !is_link_local(*ip)).filter(|_| !(ipv6 && is_link_local(source)));
            let link_local = || addresses().find(|_| !ipv6 || is_link_local(source));
            let own = || match routes::way_to(source) {
                Ok(Way::Out { interface, own }) if interface == self.external.index => own,
                _ => None,
            };
            first.or_else(link_local).or_else(own)
        };
        [false, true].into_iter().filter_map(of_family).collect()
    }

    fn build(&mut self, inside: &Netns, outside: &Netns) -> Result<(), TwinError> {
        inside.run(|| {
            // The host's own addresses are all that there are, and at once: no addresses made from hardware addresses
            // (IN6_ADDR_GEN_MODE_NONE), and none that wait for duplicates to answer.
            for (key, value) in [("addr_gen_mode", "1"), ("accept_dad", "0"), ("accept_ra", "0")] {
                // Without IPv6 there are no such settings.
                let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/default/{key}"), value);
            }
        })?;
        let (name, index) = (self.external.name.as_str(), Some(self.external.index));
        link::add_veth(
            VethEnd { netns: inside, name, index, mac: Some(self.mac()) },
            VethEnd { netns: outside, name: OUTSIDE, index: None, mac: Some(OUTSIDE_MAC) },
        )?;
        for other in self.others.iter().filter(|other| !other.loopback) {
            let peer = format!("other{}", other.index);
            link::add_veth(
                VethEnd { netns: inside, name: &other.name, index: Some(other.index), mac: None },
                VethEnd { netns: outside, name: &peer, index: None, mac: None },
            )?;
        }
        outside.run(|| link::set_up(OUTSIDE, true))??;
        let problems = inside.run(|| {
            // Settings of an interface are there once it is; forwarding comes first, as it resets others.
            let mut problems = Vec::new();
            for (key, value) in self.settings.iter().rev() {
                let path = format!("/proc/sys/net/{key}");
                let same = || std::fs::read_to_string(&path).is_ok_and(|now| now.trim() == value);
                if !same() && std::fs::write(&path, value).is_err() {
                    problems.push(format!("the setting net/{key} = {value}"));
                }
            }
            link::set_up("lo", false)?;
            link::set_up(&self.external.name, true)?;
            for interface in self.others.iter().chain([&self.external]) {
                if interface.up && !interface.loopback && interface.index != self.external.index {
                    link::set_up(&interface.name, true)?;
                }
                for (ip, prefix_len) in &interface.addresses {
                    if !(interface.loopback && ip.is_loopback()) {
                        link::add_address(&interface.name, *ip, *prefix_len)?;
                    }
                }
            }
            let up = self.others.iter().filter(|interface| interface.up).chain([&self.external]);
            for (ip, _) in
                up.flat_map(|interface| &interface.addresses).filter(|(ip, _)| ip.is_ipv6() && !ip.is_loopback())
            {
                routes::wait_until_here(*ip)?;
            }
            let exists = |index| index == self.external.index || self.others.iter().any(|other| other.index == index);
            problems.extend(self.routes.restore(exists)?);
            for ipv6 in [false, true] {
                // Whoever asks is then reached through the interface that the question came in by, so that filters of
                // the reverse path judge as they do for a host whose default route leads there.
                if self.unrouted[usize::from(ipv6)]
                    && self.external.addresses.iter().any(|(ip, _)| ip.is_ipv6() == ipv6)
                {
                    link::add_route(&self.external.name, None, None, ipv6)?;
                }
            }
            Ok::<_, LinkError>(problems)
        })??;
        self.ruleset.unknown.extend(problems.into_iter().map(|rule| Unknown { why: Why::NotCopied, rule }));
        Ok(())
    }
}
