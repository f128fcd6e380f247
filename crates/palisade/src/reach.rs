//! What a plan opens and closes to strangers: the same packets through a copy of this host, before the change and after it.
//!
//! Only Palisade's own table is tried: what another firewall is asked to let in stands in the plan's steps.

use std::collections::BTreeMap;

use palisade_core::action::Action;
use palisade_core::plan::Plan;
use palisade_core::prove::Family;
use palisade_core::stack::Proto;
use palisade_host::firewall::Firewall;
use palisade_host::layout::Layout;
use palisade_host::session;
use palisade_host::twin::{PortSet, Twin, TwinReport, TwinSpec};
use serde::Serialize;

use crate::exit::Failure;
use crate::proof;

/// What becomes of doors that packets from outside may find open.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Reach {
    /// `8080/tcp over IPv4 by eth0`.
    pub(crate) opens: Vec<String>,
    /// The same.
    pub(crate) closes: Vec<String>,
}

/// Finds it out, if the plan changes Palisade's table. Changes nothing.
pub(crate) fn of(plan: &Plan, layout: &Layout) -> Result<Option<Reach>, Failure> {
    let changes = plan.steps.iter().rev().find_map(|step| match &step.action {
        Action::SetFirewall { rules, .. } => Some(Some(rules)),
        Action::RemoveFirewall => Some(None),
        _ => None,
    });
    let Some(rules) = changes else { return Ok(None) };
    let failed = |error| Failure::new("can't find out what the change opens and closes", error);
    let ssh_ports = session::ssh_ports().unwrap_or_default();
    let firewall = Firewall::new(&layout.realm);
    let batch = firewall
        .batch(layout.project.as_str(), rules, &ssh_ports)
        .map_err(|error| Failure::new("can't read Palisade's firewall table", error))?;
    let mut reach = Reach::default();
    for interface in proof::external_interfaces()? {
        let spec = TwinSpec { own_table: Some(firewall.table().to_owned()), ..TwinSpec::new(&interface) };
        let twin = Twin::copy(&spec).map_err(failed)?;
        let ask = || twin.probe_by_classes(&PortSet::default()).map(|report| doors(&report));
        let before = ask().map_err(failed)?;
        twin.apply(&batch).map_err(failed)?;
        let after = ask().map_err(failed)?;
        for (at, new) in &after {
            let (family, proto) = at;
            let old = before.get(at).cloned().unwrap_or_default();
            for (ports, told) in [(new.minus(&old), &mut reach.opens), (old.minus(new), &mut reach.closes)] {
                if !ports.is_empty() {
                    told.push(format!("{ports}/{proto} over {family} by {interface}"));
                }
            }
        }
    }
    Ok(Some(reach))
}

fn doors(report: &TwinReport) -> BTreeMap<(Family, Proto), PortSet> {
    let mut doors: BTreeMap<(Family, Proto), PortSet> = BTreeMap::new();
    for reached in &report.reached {
        let family = if reached.target.is_ipv4() { Family::V4 } else { Family::V6 };
        let open = doors.entry((family, reached.proto)).or_default();
        open.extend_from(&reached.local);
        open.extend_from(&reached.redirected.iter().map(|(outside, _)| *outside).collect());
        open.extend_from(&reached.forwarded);
    }
    doors
}

/// For people; nothing where nothing changes.
pub(crate) fn text(reach: &Reach) -> String {
    let mut text = String::new();
    if reach.opens.is_empty() && reach.closes.is_empty() {
        return text;
    }
    text.push_str("Strangers, by packets to all ports of a copy of this host:\n");
    for (what, all) in [("opens", &reach.opens), ("closes", &reach.closes)] {
        all.iter().for_each(|doors| text.push_str(&format!("  {what:<6}  {doors}\n")));
    }
    text
}
