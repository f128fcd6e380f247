//! Instances: started and stopped by the agent.

use std::fs;

use palisade_core::action::Action;
use palisade_core::address::InstanceAddress;
use palisade_core::apply::{Host, Undo};
use palisade_core::instance::InstanceSpec;
use palisade_core::names::InstanceId;
use palisade_core::stack::Condition;
use palisade_host::agent::{AgentError, Client};
use palisade_host::cgroup::Cgroup;
use palisade_host::edge as host_edge;
use palisade_host::link;
use palisade_host::program;

use super::error::io_error;
use super::{Adapters, HostError, has_ipv6};
use crate::agent;
use crate::edge;
use crate::state::{Applied, make_private_dir, read_json, write_json};

/// More stops than that at once only wait for each other.
const STOPS_AT_ONCE: usize = 64;

const SPEC_UNKNOWN: &str = "what it was started with isn't known any more";

impl Adapters {
    pub(super) fn start_instance(&mut self, spec: &InstanceSpec) -> Result<Undo, HostError> {
        let folder = self.layout.instance(&spec.id);
        make_private_dir(&folder)?;
        let log_start = fs::metadata(self.layout.log(&spec.id)).map_or(0, |metadata| metadata.len());
        self.log_starts.insert(spec.id.clone(), log_start);
        // Noted first: a note about an instance that didn't start says nothing, as its status has another digest.
        write_json(&folder.join("applied.json"), &applied(spec))?;
        if let Some(own) = &spec.own_program {
            program::keep(own).map_err(io_error("keeping this program at", &own.file))?;
        }
        if let Some(settings) = host_edge::settings_of(spec) {
            if let Some(edge) = &self.edge {
                for wrong in edge::prepare(&self.layout, edge)? {
                    eprintln!("warning: {wrong}: {}", wrong.text());
                }
            }
            self.tell_edge(Some(&settings))?;
        }
        self.agent()?.start(spec)?;
        if host_edge::settings_of(spec).is_some() {
            edge::started(&self.layout)?;
        }
        Ok(Undo::Do(vec![Action::StopInstance { id: spec.id.clone() }]))
    }

    pub(super) fn stop_instance(&mut self, id: &InstanceId) -> Result<Undo, HostError> {
        let spec = read_json::<InstanceSpec>(&self.layout.instance(id).join("spec.json"))?;
        self.agent()?.stop(id)?;
        Ok(match spec {
            Some(spec) => Undo::Do(start_again(spec).into()),
            None => Undo::Impossible(SPEC_UNKNOWN),
        })
    }

    /// All of them at the same time. When one can't be stopped, the others run again.
    pub(super) fn stop_instances(&mut self, ids: &[InstanceId]) -> Result<Undo, HostError> {
        let specs: Vec<_> = ids
            .iter()
            .map(|id| read_json::<InstanceSpec>(&self.layout.instance(id).join("spec.json")))
            .collect::<Result<_, _>>()?;
        let stopped = self.stop_together(ids);
        let mut failure = None;
        let mut undo = Vec::new();
        let mut unknown = false;
        for (stopped, spec) in stopped.into_iter().zip(specs) {
            match (stopped, spec) {
                (Ok(()), Some(spec)) => undo.extend(start_again(spec)),
                (Ok(()), None) => unknown = true,
                (Err(error), _) => failure = failure.or(Some(HostError::from(error))),
            }
        }
        // All are started before one is waited for.
        undo.sort_by_key(|action| matches!(action, Action::Await { .. }));
        match failure {
            None if unknown => Ok(Undo::Impossible(SPEC_UNKNOWN)),
            None => Ok(Undo::Do(undo)),
            Some(error) => {
                for action in &undo {
                    if let Err(error) = self.perform(action) {
                        eprintln!("warning: can't {action}: {}", crate::exit::chain(&error));
                    }
                }
                Err(error)
            }
        }
    }

    fn stop_together(&self, ids: &[InstanceId]) -> Vec<Result<(), AgentError>> {
        let layout = &self.layout;
        let stop = |id: &InstanceId| Client::connect(layout).and_then(|mut agent| agent.stop(id));
        let together = |ids: &[InstanceId]| -> Vec<_> {
            std::thread::scope(|scope| {
                let threads: Vec<_> = ids.iter().map(|id| scope.spawn(move || stop(id))).collect();
                let ended = threads.into_iter().map(|thread| thread.join());
                ended.map(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
            })
        };
        ids.chunks(STOPS_AT_ONCE).flat_map(together).collect()
    }

    pub(super) fn remove_instance(&mut self, id: &InstanceId) -> Result<Undo, HostError> {
        let cgroups = Cgroup::all_of_instance(&self.layout, id)?;
        let guard = self.guard()?;
        let guarded = cgroups.iter().find_map(|cgroup| {
            let address = guard.identity(&cgroup.v2_path()).ok().flatten()?;
            Some((InstanceAddress::from_ip(address)?, cgroup.driver()))
        });
        agent::remove(&self.layout, id)?;
        cgroups.iter().try_for_each(Cgroup::remove)?;
        if let Some((address, driver)) = guarded {
            self.guard()?.detach(address)?;
            self.end_datagrams_to(address);
            if has_ipv6() {
                link::remove_private_ipv6(address.ipv6())?;
            }
            return Ok(Undo::Do(vec![Action::GuardInstance { id: id.clone(), address, driver }]));
        }
        Ok(Undo::Nothing)
    }

    /// The last lines that the instance printed in this run, without time and stream.
    pub(super) fn log_end(&self, id: &InstanceId, lines: usize) -> Vec<String> {
        let bytes = fs::read(self.layout.log(id)).unwrap_or_default();
        let start = self.log_starts.get(id).and_then(|start| usize::try_from(*start).ok()).unwrap_or(0);
        // A log that is shorter was rotated since.
        let text = String::from_utf8_lossy(bytes.get(start..).unwrap_or(&bytes)).into_owned();
        let all: Vec<_> = text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or(line)).collect();
        all[all.len().saturating_sub(lines)..].iter().map(|line| (*line).to_owned()).collect()
    }
}

/// What takes a stop back.
fn start_again(spec: InstanceSpec) -> [Action; 2] {
    let id = spec.id.clone();
    let (condition, timeout_ms) = match &spec.healthcheck {
        Some(check) => (Condition::ServiceHealthy, Some(check.verdict_within_ms())),
        None => (Condition::ServiceStarted, None),
    };
    [Action::StartInstance { spec: Box::new(spec) }, Action::Await { id, condition, timeout_ms, optional: false }]
}

pub(super) fn applied(spec: &InstanceSpec) -> Applied {
    Applied { fingerprint: spec.fingerprint(), hosts_digest: spec.hosts.digest().to_owned() }
}
