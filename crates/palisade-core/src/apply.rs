//! Carries out a plan step by step, and undoes it in reverse when a step fails.
//!
//! It decides nothing: what is done is in the plan, and how is the host's business.

use std::error::Error;
use std::fmt;

use crate::action::{Action, Step};
use crate::plan::Plan;

/// What carries out actions. Each must be complete or without effect when it returns.
pub trait Host {
    /// Why an action failed.
    type Error: Error + Send + Sync + 'static;
    /// Does it, and tells how to undo it.
    fn perform(&mut self, action: &Action) -> Result<Undo, Self::Error>;
    /// Everything from here on undoes what was done, perhaps because of an interruption.
    fn begin_to_undo(&mut self) {}
}

/// How to undo an action that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undo {
    /// There is nothing to undo.
    Nothing,
    /// These actions, in this order.
    Do(Vec<Action>),
    /// It can't be undone, and why.
    Impossible(&'static str),
}

/// What is happening, for whoever watches.
#[derive(Debug)]
pub enum Progress<'a, E> {
    /// A step begins; `number` counts from 1.
    Begins {
        /// Its number.
        number: usize,
        /// Of how many.
        total: usize,
        /// The step.
        step: &'a Step,
    },
    /// The step that began is done.
    Done {
        /// The step.
        step: &'a Step,
    },
    /// The step that began failed; undoing begins.
    Failed {
        /// The step.
        step: &'a Step,
        /// Why.
        error: &'a E,
    },
    /// Interrupted before this many steps of all were left; undoing begins.
    Interrupted,
    /// An action that undoes an earlier step begins.
    Undoes {
        /// The action.
        action: &'a Action,
    },
}

/// A plan that was not carried out.
#[derive(Debug)]
pub struct Failure<E> {
    /// Why not.
    pub reason: Reason<E>,
    /// What could not be undone, in the order in which it was tried. Empty: the host is as it was before.
    pub left: Vec<Left<E>>,
}

/// Why a plan was not carried out.
#[derive(Debug)]
pub enum Reason<E> {
    /// The user interrupted it.
    Interrupted,
    /// A step failed.
    Step {
        /// What it was to do.
        action: String,
        /// Why it failed.
        error: E,
    },
}

/// Something that was done and could not be undone.
#[derive(Debug)]
pub enum Left<E> {
    /// Undoing failed.
    Failed {
        /// What was to be undone.
        done: String,
        /// By what.
        undo: String,
        /// Why it failed.
        error: E,
    },
    /// There is no way to undo it.
    Impossible {
        /// What was done.
        done: String,
        /// Why it stays.
        why: &'static str,
    },
    /// Undoing ended here, as what ran before doesn't come back: what took its place goes on.
    Kept {
        /// What was done before that.
        done: Vec<String>,
    },
}

impl<E> fmt::Display for Failure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::Interrupted => f.write_str("interrupted")?,
            Reason::Step { action, .. } => write!(f, "can't {action}")?,
        }
        match self.left.len() {
            0 => f.write_str("; what was done before is undone"),
            1 => f.write_str("; one thing that was done before could not be undone"),
            number => write!(f, "; {number} things that were done before could not be undone"),
        }
    }
}

impl<E: Error + 'static> Error for Failure<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.reason {
            Reason::Interrupted => None,
            Reason::Step { error, .. } => Some(error),
        }
    }
}

impl<E> fmt::Display for Left<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Left::Failed { done, undo, .. } => write!(f, "`{done}` stays: can't {undo}"),
            Left::Impossible { done, why } => write!(f, "`{done}` stays: {why}"),
            Left::Kept { done } => {
                write!(f, "what was done before that stays as well, so that somebody serves: `{}`", done.join("`, `"))
            }
        }
    }
}

/// Carries out the plan. `interrupted` is asked between steps; a host that waits in a step should ask as well.
pub fn apply<H: Host>(
    plan: &Plan,
    host: &mut H,
    interrupted: &dyn Fn() -> bool,
    progress: &mut dyn FnMut(Progress<'_, H::Error>),
) -> Result<(), Failure<H::Error>> {
    let mut done: Vec<(&Action, Undo)> = Vec::with_capacity(plan.steps.len());
    let mut reason = None;
    for (number, step) in (1..).zip(&plan.steps) {
        if interrupted() {
            progress(Progress::Interrupted);
            reason = Some(Reason::Interrupted);
            break;
        }
        progress(Progress::Begins { number, total: plan.steps.len(), step });
        match host.perform(&step.action) {
            Ok(undo) => {
                done.push((&step.action, undo));
                progress(Progress::Done { step });
            }
            Err(_) if interrupted() => {
                progress(Progress::Interrupted);
                reason = Some(Reason::Interrupted);
                break;
            }
            Err(error) => {
                progress(Progress::Failed { step, error: &error });
                reason = Some(Reason::Step { action: step.action.to_string(), error });
                break;
            }
        }
    }
    match reason {
        None => Ok(()),
        Some(reason) => {
            host.begin_to_undo();
            Err(Failure { reason, left: undo(done, host, progress) })
        }
    }
}

/// Goes on past failures: one thing that stays is no reason to leave the rest. But when something that was stopped
/// doesn't come back, whatever else made place for its successor stays, and so does that.
fn undo<H: Host>(
    done: Vec<(&Action, Undo)>,
    host: &mut H,
    progress: &mut dyn FnMut(Progress<'_, H::Error>),
) -> Vec<Left<H::Error>> {
    let mut left = Vec::new();
    let mut rest = done.into_iter().rev();
    while let Some((action, undo)) = rest.next() {
        match undo {
            Undo::Nothing => {}
            Undo::Impossible(why) => left.push(Left::Impossible { done: action.to_string(), why }),
            Undo::Do(actions) => {
                for undo in &actions {
                    progress(Progress::Undoes { action: undo });
                    if let Err(error) = host.perform(undo) {
                        left.push(Left::Failed { done: action.to_string(), undo: undo.to_string(), error });
                        if matches!(action, Action::StopInstance { .. }) {
                            left.extend(kept(rest));
                            return left;
                        }
                        break;
                    }
                }
            }
        }
    }
    left
}

/// What is not undone any more.
fn kept<'a, E>(rest: impl Iterator<Item = (&'a Action, Undo)>) -> Option<Left<E>> {
    let stays = rest.filter(|(_, undo)| *undo != Undo::Nothing).map(|(action, _)| action.to_string());
    let done: Vec<_> = stays.collect();
    (!done.is_empty()).then_some(Left::Kept { done })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::{Cause, VolumeName};
    use crate::address::AddressBook;
    use crate::names::{InstanceId, ProjectName, ServiceName};
    use std::cell::Cell;

    #[derive(Debug, thiserror::Error)]
    #[error("disk full")]
    struct Full;

    /// A host on which volumes can be made and deleted, and the n-th action from the start fails.
    struct Fake {
        volumes: Vec<VolumeName>,
        calls: usize,
        fails: Vec<usize>,
    }

    impl Host for Fake {
        type Error = Full;
        fn perform(&mut self, action: &Action) -> Result<Undo, Full> {
            self.calls += 1;
            if self.fails.contains(&self.calls) {
                return Err(Full);
            }
            match action {
                Action::CreateVolume { name, .. } => {
                    self.volumes.push(name.clone());
                    Ok(Undo::Do(vec![Action::RemoveVolume { name: name.clone() }]))
                }
                Action::RemoveVolume { name } => {
                    assert_eq!(self.volumes.pop().as_ref(), Some(name), "undone in another order than reverse");
                    Ok(Undo::Impossible("its data is gone"))
                }
                _ => Ok(Undo::Nothing),
            }
        }
    }

    fn plan(steps: usize) -> Plan {
        let steps = (0..steps)
            .map(|n| Step {
                action: Action::CreateVolume { name: VolumeName::Own(format!("v{n}")), owner: None },
                cause: Cause::Missing,
            })
            .collect();
        Plan { project: ProjectName::parse("shop").unwrap(), steps, addresses: AddressBook::default() }
    }

    fn fake(fails: &[usize]) -> Fake {
        Fake { volumes: Vec::new(), calls: 0, fails: fails.to_vec() }
    }

    #[test]
    fn a_failure_at_any_step_leaves_nothing() {
        for steps in 0..12 {
            for fails in 1..=steps {
                let mut host = fake(&[fails]);
                let failure = apply(&plan(steps), &mut host, &|| false, &mut |_| {}).unwrap_err();
                assert!(failure.left.is_empty() && host.volumes.is_empty(), "{steps} {fails}");
                assert_eq!(host.calls, fails + fails - 1);
            }
            let mut host = fake(&[]);
            apply(&plan(steps), &mut host, &|| false, &mut |_| {}).unwrap();
            assert_eq!(host.volumes.len(), steps);
        }
    }

    #[test]
    fn an_interruption_at_any_step_leaves_nothing() {
        for stop_before in 0..6 {
            let asked = Cell::new(0);
            let interrupted = || asked.replace(asked.get() + 1) >= stop_before;
            let mut host = fake(&[]);
            let failure = apply(&plan(6), &mut host, &interrupted, &mut |_| {}).unwrap_err();
            assert!(matches!(failure.reason, Reason::Interrupted));
            assert!(failure.left.is_empty() && host.volumes.is_empty());
            assert_eq!(host.calls, 2 * stop_before);
        }
    }

    #[test]
    fn undoing_goes_on_past_a_failure_and_reports_all_of_them() {
        // Steps 1 and 2 are done, 3 fails; then undoing 2 fails (4), and undoing 1 must still happen (5).
        struct Tolerant(Fake, Vec<String>);
        impl Host for Tolerant {
            type Error = Full;
            fn perform(&mut self, action: &Action) -> Result<Undo, Full> {
                self.1.push(action.to_string());
                self.0.calls += 1;
                if self.0.fails.contains(&self.0.calls) {
                    return Err(Full);
                }
                match action {
                    Action::CreateVolume { name, .. } => {
                        Ok(Undo::Do(vec![Action::RemoveVolume { name: name.clone() }]))
                    }
                    _ => Ok(Undo::Nothing),
                }
            }
        }
        let mut host = Tolerant(fake(&[3, 4]), Vec::new());
        let failure = apply(&plan(3), &mut host, &|| false, &mut |_| {}).unwrap_err();
        assert_eq!(host.1.last().unwrap(), "delete volume v0 and its data");
        let left: Vec<_> = failure.left.iter().map(ToString::to_string).collect();
        assert_eq!(left, ["`create volume v1` stays: can't delete volume v1 and its data"]);
        assert_eq!(failure.to_string(), "can't create volume v2; one thing that was done before could not be undone");
        assert_eq!(failure.source().unwrap().to_string(), "disk full");
    }

    #[test]
    fn what_took_the_place_of_something_stays_when_that_does_not_come_back() {
        // The third step fails, and so does what undoes the second.
        struct Engine(Vec<String>);
        impl Host for Engine {
            type Error = Full;
            fn perform(&mut self, action: &Action) -> Result<Undo, Full> {
                self.0.push(action.to_string());
                match action {
                    Action::CreateVolume { name, .. } => {
                        Ok(Undo::Do(vec![Action::RemoveVolume { name: name.clone() }]))
                    }
                    // In place of its start, which needs a whole specification.
                    Action::StopInstance { .. } => Ok(Undo::Do(vec![Action::StopAgent])),
                    _ => Err(Full),
                }
            }
        }
        let id = InstanceId { service: ServiceName::parse("web").unwrap(), number: 1 };
        let mut plan = plan(1);
        for action in [Action::StopInstance { id: id.clone() }, Action::RemoveInstance { id }] {
            plan.steps.push(Step { action, cause: Cause::Down });
        }
        let mut host = Engine(Vec::new());
        let failure = apply(&plan, &mut host, &|| false, &mut |_| {}).unwrap_err();
        assert_eq!(host.0, ["create volume v0", "stop web.1", "remove web.1", "stop the agent"]);
        let left: Vec<_> = failure.left.iter().map(ToString::to_string).collect();
        assert_eq!(
            left,
            [
                "`stop web.1` stays: can't stop the agent",
                "what was done before that stays as well, so that somebody serves: `create volume v0`"
            ]
        );
    }

    #[test]
    fn what_cannot_be_undone_is_said() {
        let mut plan = plan(0);
        for action in [Action::RemoveVolume { name: VolumeName::Own("old".into()) }, Action::StartAgent] {
            plan.steps.push(Step { action, cause: Cause::Down });
        }
        let mut host = Fake { volumes: vec![VolumeName::Own("old".into())], ..fake(&[2]) };
        let failure = apply(&plan, &mut host, &|| false, &mut |_| {}).unwrap_err();
        let left: Vec<_> = failure.left.iter().map(ToString::to_string).collect();
        assert_eq!(left, ["`delete volume old and its data` stays: its data is gone"]);
    }
}
