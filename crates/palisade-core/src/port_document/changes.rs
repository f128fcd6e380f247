//! What differs between two texts, line by line.

use serde::Serialize;
use std::fmt;

/// A line that only one of two texts has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum Change {
    /// Only the old text has it.
    Gone {
        /// Counted from 1 in the old text.
        number: usize,
        /// The line.
        text: String,
    },
    /// Only the new text has it.
    New {
        /// Counted from 1 in the new text.
        number: usize,
        /// The line.
        text: String,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Gone { number, text } => write!(f, "{number:>5} - {text}"),
            Change::New { number, text } => write!(f, "{number:>5} + {text}"),
        }
    }
}

/// Longer texts are compared line by line from both ends only: every port document of this size has changed anyway.
const LINES_MAX: usize = 4_000;

/// Lines that one of the texts has and the other doesn't, in their order. Lines that differ in the numbers of lines that
/// they point at are the same: a comment somewhere in the Compose file opens no port.
pub fn changes(old: &str, new: &str) -> Vec<Change> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let (old_key, new_key): (Vec<String>, Vec<String>) = (
        old.iter().map(|line| without_numbers(line)).collect(),
        new.iter().map(|line| without_numbers(line)).collect(),
    );
    let start = old_key.iter().zip(&new_key).take_while(|(a, b)| a == b).count();
    let rest = old_key.len().min(new_key.len()) - start;
    let end = old_key.iter().rev().zip(new_key.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let (old_end, new_end) = (old_key.len() - end, new_key.len() - end);
    let (a, b) = (&old_key[start..old_end], &new_key[start..new_end]);
    let common = if a.len() * b.len() <= LINES_MAX * LINES_MAX { longest_common(a, b) } else { Vec::new() };
    let mut changes = Vec::new();
    let (mut at_old, mut at_new) = (0, 0);
    for (next_old, next_new) in common.into_iter().chain([(a.len(), b.len())]) {
        changes.extend((at_old..next_old).map(|at| gone(&old, start + at)));
        changes.extend(
            (at_new..next_new).map(|at| Change::New { number: start + at + 1, text: new[start + at].to_owned() }),
        );
        (at_old, at_new) = (next_old + 1, next_new + 1);
    }
    changes
}

fn gone(old: &[&str], at: usize) -> Change {
    Change::Gone { number: at + 1, text: old[at].to_owned() }
}

/// Pairs of positions of lines that both have, as many as possible, in order.
fn longest_common(a: &[String], b: &[String]) -> Vec<(usize, usize)> {
    // lengths[i][j]: of what a[i..] and b[j..] have in common.
    let mut lengths = vec![vec![0_u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            lengths[i][j] =
                if a[i] == b[j] { lengths[i + 1][j + 1] + 1 } else { lengths[i + 1][j].max(lengths[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if lengths[i + 1][j] >= lengths[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

/// A line of the document without the numbers of lines that it points at: those after `, line `.
fn without_numbers(line: &str) -> String {
    const WORDS: &str = ", line ";
    let mut parts = line.split(WORDS);
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text += WORDS;
        text += part.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(old: &str, new: &str) -> Vec<String> {
        changes(old, new).iter().map(|change| change.to_string().trim_start().to_owned()).collect()
    }

    #[test]
    fn only_lines_that_differ_are_told() {
        assert_eq!(shown("a\nb\nc\n", "a\nb\nc\n"), [""; 0]);
        assert_eq!(shown("a\nb\nc\nd", "a\nx\nc\ny\nd"), ["2 - b", "2 + x", "4 + y"]);
        assert_eq!(shown("", "a"), ["1 + a"]);
        assert_eq!(shown("a\na\na", "a\na"), ["3 - a"]);
    }

    #[test]
    fn lines_that_moved_are_the_same_and_ports_are_not() {
        assert_eq!(shown("| 80 | compose.yaml, line 7 |", "| 80 | compose.yaml, line 12 |"), [""; 0]);
        assert_eq!(shown("| db:5432 | x, line 7 |", "| db:5433 | x, line 7 |").len(), 2);
        assert_eq!(shown("| 80 | a.yaml, line 7 |", "| 80 | b.yaml, line 7 |").len(), 2);
    }
}
