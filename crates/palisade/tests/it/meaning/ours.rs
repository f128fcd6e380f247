//! A case under Palisade.

use std::time::{Duration, Instant};

use super::case::{Case, Question};
use super::place::{Place, copy, wait_for};
use crate::scratch::left_at_last;

/// Brings it up, asks, and takes it away; what is not as expected is returned.
pub(crate) fn run(case: &Case) -> Vec<String> {
    let mut place = Place::new(&case.name);
    let speak = copy(case, &place.host.folder);
    let palisade = |arguments: &[&str]| place.host.palisade(&[&["--project-name", &case.name], arguments].concat());
    let refused = case.probes.iter().find_map(|probe| match &probe.question {
        Question::Refuses { part } => Some(part),
        _ => None,
    });
    if let Some(part) = refused {
        let ran = palisade(&["up", "--wait"]).expect(2);
        let mut wrong = left_at_last(|| place.host.left());
        wrong.retain(|line| !line.contains("speak.py"));
        wrong.extend((!ran.err.contains(part)).then(|| format!("not refused with {part:?}: {}", ran.err)));
        return wrong;
    }
    palisade(&["up", "--wait"]).expect(0);
    wait_for(&speak, &case.speakers, || palisade(&["logs"]).out);
    let mut wrong = place.asker.ask(case, &speak, |probe| probe.ours());
    let parts = case.probes.iter().filter_map(|probe| match &probe.question {
        Question::Events { part } => Some(part),
        _ => None,
    });
    for part in parts {
        // The agent writes it a little later.
        let until = Instant::now() + Duration::from_secs(10);
        let mut events = palisade(&["events"]).expect(0).out;
        while !events.contains(part) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(100));
            events = palisade(&["events"]).expect(0).out;
        }
        if !events.contains(part) {
            wrong.push(format!("no event says {part:?}: {events}"));
        }
    }
    palisade(&["down", "--volumes", "--yes"]).expect(0);
    place.hush();
    wrong.extend(left_at_last(|| place.host.left()));
    wrong
}
