//! Fewer packets where there are very many rules: ports that no rule tells from their neighbours share one answer.
//!
//! A rule compares a port with numbers that are written in it; between two numbers that stand nowhere in the ruleset all
//! ports fare alike. Where anything is computed from a port, and wherever ports of one class disagree, each port is asked.

use super::copy::Twin;
use super::{PortSet, TwinError, TwinReport};

/// With fewer rules, asking every port takes well below a second.
const RULES_FEW: usize = 1_000;
/// So many more ports are asked, spread over all: they must agree with their class.
const SAMPLES: u16 = 512;

impl Twin {
    /// What [`Twin::probe`] says. Ports of `known` are asked one by one in any case; of others, where there are many
    /// rules, one of each class.
    pub fn probe_by_classes(&self, known: &PortSet) -> Result<TwinReport, TwinError> {
        let firsts = match self.original.ruleset.numbers() {
            Some(numbers) if self.original.ruleset.rules() > RULES_FEW => firsts(&numbers),
            _ => return self.probe(),
        };
        let mut asked = firsts.clone();
        asked.extend_from(known);
        asked.extend_from(&(0..SAMPLES).map(|n| 1 + n * (u16::MAX / SAMPLES)).collect());
        let mut report = self.probe_ports(&asked)?;
        for reached in &mut report.reached {
            match spread(&reached.local, &asked, &firsts) {
                Some(local) => reached.local = local,
                None => return self.probe(),
            }
        }
        Ok(report)
    }
}

/// The first port of each class: a number, and the one after it.
fn firsts(numbers: &PortSet) -> PortSet {
    let mut firsts: PortSet = numbers.iter().flat_map(|port| [Some(port), port.checked_add(1)]).flatten().collect();
    firsts.insert(1);
    firsts.iter().filter(|port| *port > 0).collect()
}

/// All ports of the classes whose first was reached; `None` when ports of one class disagree.
fn spread(reached: &PortSet, asked: &PortSet, firsts: &PortSet) -> Option<PortSet> {
    let mut all = PortSet::default();
    let mut open = false;
    for port in 1..=u16::MAX {
        if firsts.contains(port) {
            open = reached.contains(port);
        } else if asked.contains(port) && reached.contains(port) != open {
            return None;
        }
        if open {
            all.insert(port);
        }
    }
    Some(all)
}

/// Numbers that a line of rules holds; `None` when it computes something from a port.
pub(super) fn numbers_of(line: &str) -> Option<impl Iterator<Item = u16>> {
    const COMPUTED: [&str; 12] =
        ["@th", "@nh", "@ih", "@ll", "hash", "numgen", "u32", "bpf", "string", "statistic", "xt match", "xt target"];
    let has = |part: &str| line.contains(part);
    let of_a_port = has("port") || has(" th ");
    let computes = has(" & ") || has(" | ") || has(" ^ ") || has(" << ") || has(" >> ") || has(" set ");
    if COMPUTED.iter().any(|word| has(word)) || (of_a_port && computes) {
        return None;
    }
    Some(line.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_begin_at_numbers_and_behind_them() {
        let numbers: PortSet = [22, 80, 90].into_iter().collect();
        assert_eq!(firsts(&numbers).to_string(), "1,22-23,80-81,90-91");
        let firsts = firsts(&numbers);
        let set = |ports: &[u16]| ports.iter().copied().collect::<PortSet>();
        let asked = set(&[1, 22, 23, 80, 81, 85, 90, 91, 1000]);
        assert_eq!(spread(&set(&[22, 80, 81, 85, 90]), &asked, &firsts).unwrap().to_string(), "22,80-90");
        assert!(spread(&set(&[22, 80, 81, 90]), &asked, &firsts).is_none(), "85 disagrees with 81");
    }

    #[test]
    fn what_is_computed_is_not_taken_apart() {
        let numbers = |line: &str| numbers_of(line).map(|all| all.collect::<Vec<_>>());
        assert_eq!(numbers("tcp dport { 22, 8000-8010 } accept"), Some(vec![22, 8000, 8010]));
        assert_eq!(numbers("-A INPUT -p tcp -m multiport --dports 80,443 -j ACCEPT"), Some(vec![80, 443]));
        assert_eq!(numbers("meta mark & 255 == 7 accept"), Some(vec![255, 7]));
        assert_eq!(numbers("tcp dport & 1 == 1 accept"), None);
        assert_eq!(numbers("meta mark set tcp dport"), None);
        assert_eq!(numbers("@th,16,16 80 accept"), None);
        assert_eq!(numbers("jhash tcp dport mod 2 0 accept"), None);
    }
}
